"""Learning curves of all arms, and what a few runs tell of them: scores, with bands.

Writes: nothing; standard library only, the same bits on every machine
Paper:  none; it answers the paper's question for scores that were not measured

Scores are fractions of 1. With H(x; k, b) = 1 / (1 + (k / x)^b), a logistic curve in log x:

    ann(n)     = f + (a - f) H(n; k, b)                             student on n labels of people
    teach(n)   = f + (at - f) H(n; kt, bt)                          teacher on n labels
    top(n)     = f + (1 - f) [t^-10 + c^-10 - 1]^(-1/10)            the teacher, or the cap
    dist(n, u) = f + (top(n) - f) H(r u; k, bd)           a distilled row is worth r labels
    llm(n, m)  = f + (la - f) H(n + w m; k, b)                      m labels of an LLM beside n

t, c and what la mixes are shares of the way from f to a perfect score, as (teach(n) - f) / (1 - f).
Two limits that are close round each other off, but a perfect one limits nothing. f is the floor (a
constant predictor), a the asymptote, k the labels half-way, b the steepness. The prior is one for
every task and is not fitted to any; runs reweight draws from it (importance resampling; where few
of them are near the runs, these then move), so that the answer is a set of curves and not one.
Nothing here knows a price.
"""

import copy
import math
import random
from statistics import NormalDist
from typing import NamedTuple

STRATEGIES = ("small", "teacher", "dist")
STUDENTS, KEPT, OTHERS = 40_000, 1_000, 30  # draws; draws kept; draws of the rest for each kept
DRIFT = 0.012  # standard deviation by which real curves leave the family, per e-fold past the runs
TEACHER_NOISE = 0.02  # of one teacher run
OUTCOMES = 40  # of a run that is not made yet
EFFECTIVE, ROUNDS = 400, 12  # where fewer draws share the weight, moves of each
# arm -> (what one run differs by, which noise of a draw moves the curve, which the run)
NOISE = {"ann": ("s", 0, 1), "dist": ("sd", 2, 3), "llm": ("s", 0, 4)}

normal = NormalDist().inv_cdf


class Run(NamedTuple):
    """A run that was scored: strategy small, teacher or dist; counts; score, 0 to 1.

    `error` is the standard error of the score by its rows, where runs were scored on other rows.
    """

    strategy: str
    labels: int
    unlabeled: int
    score: float
    error: float = 0.0


def rise(x, k, b):
    """H(x; k, b), 0 to 1: the share of the way from floor to asymptote at x examples."""
    return 1 / (1 + (k / x) ** b) if x > 0 else 0.0


def join_limits(x, y):
    """The smaller of two shares of a perfect score, rounded where they are close; x beside 1."""
    return (max(x, 1e-4) ** -10 + max(y, 1e-4) ** -10 - 1) ** -0.1


class Curves:
    """One draw: a value for each letter of the module's equations, and noise of its own."""

    __slots__ = "point f a k b s at kt bt cap r bd sd l w z".split()

    def ann(self, n, m=0):
        return self.f + (self.a - self.f) * rise(n, self.k, self.b)

    def teach(self, n):
        return self.f + (self.at - self.f) * rise(n, self.kt, self.bt)

    def dist(self, n, u):
        rest = 1 - self.f
        top = join_limits((self.teach(n) - self.f) / rest, (self.cap - self.f) / rest)
        return self.f + rest * top * rise(self.r * u, self.k, self.bd)

    def llm(self, n, m):
        whole = n + self.w * m
        share = n / whole if whole else 0
        human, rest = self.a - self.f, 1 - self.f
        limit = rest * join_limits(human / rest, (self.l - self.f) / rest)
        return self.f + (share * human + (1 - share) * limit) * rise(whole, self.k, self.b)

    def predict(self, strategy, n, u):
        """(mean, standard deviation) of one run."""
        if strategy == "teacher":
            return self.teach(n), TEACHER_NOISE
        return (self.ann(n), self.s) if strategy == "small" else (self.dist(n, u), self.sd)


class Uniform:
    """Numbers between 0 and 1, neither included, as `draw` gives them."""

    def __init__(self, draw):
        self.draw = draw

    def __call__(self):
        return min(max(self.draw(), 1e-12), 1 - 1e-12)

    def normal(self):
        return normal(self())

    def lognormal(self, median, sd):
        return median * math.exp(sd * normal(self()))

    def bounded(self, a, b):
        """Kumaraswamy's distribution on 0 to 1: a Beta whose inverse has a closed form."""
        return (1 - (1 - self()) ** (1 / b)) ** (1 / a)


def draw_student(point, constant):
    """A curve of the student on labels, before any run; one in four rises in a jump. `point`: the
    uniform numbers that it is made of."""
    u, draw = Uniform(iter(point).__next__), Curves()
    draw.point, near = point, u() < 0.7
    floor = constant + 0.012 * u.normal() if near else constant * u()
    draw.f = min(max(floor, 0.0), 0.98)
    jump = u() < 0.25
    draw.b = u.lognormal(2.2, 0.45) if jump else u.lognormal(0.75, 0.45)
    draw.a = draw.f + (1 - draw.f) * u.bounded(2.1, 1.3)
    draw.k = u.lognormal(math.exp(6.5), 2.0)
    draw.s = u.lognormal(0.014, 0.45)
    return draw


def draw_others(point, student):
    """The same draw with a teacher and with what its labels are worth."""
    u, draw = Uniform(iter(point).__next__), copy.copy(student)
    draw.point = student.point + point
    draw.at = draw.f + (1 - draw.f) * u.bounded(4.75, 1.35)
    draw.kt, draw.bt = u.lognormal(math.exp(4.3), 2.0), u.lognormal(0.9, 0.4)
    draw.cap = max(draw.a, draw.f + (1 - draw.f) * u.bounded(5.7, 1.2))
    draw.r, draw.bd, draw.sd = u.lognormal(1, 1), u.lognormal(1.1, 0.4), u.lognormal(0.018, 0.5)
    return draw


def add_noise(draw, u, llm):
    """A draw's own noise, and where an LLM was scored what its labels are worth.

    llm: (its own score, 0 to 1; rows it was scored on), or None.
    """
    draw = copy.copy(draw)
    draw.z = [u.normal() for _ in range(5)]
    if llm:
        score, rows = llm
        score += math.sqrt(max(score * (1 - score), 0.01) / rows) * u.normal()
        draw.l = min(max(score, draw.f), 1.0) + 0.03 * abs(u.normal())
        draw.w = u.lognormal(max(0.05, (score - draw.f) / (1 - draw.f)) ** 2, 0.5)
    return draw


def weigh(residual, scale, error=0.0, degrees=4):
    """Log of Student's t density, up to a constant: a run far off is forgiven, not believed."""
    scale = math.hypot(scale, error)
    return -math.log(scale) - (degrees + 1) / 2 * math.log1p((residual / scale) ** 2 / degrees)


def resample(draws, logs, u, count):
    """(`count` draws in proportion to exp(logs), systematically; how many share the weight)."""
    logs = list(logs)
    most = max(logs)
    weights = [math.exp(log - most) for log in logs]
    total = sum(weights)
    step = total / count
    kept, reached, place, at = [], 0.0, -1, u() * step
    for _ in range(count):
        while reached <= at and place + 1 < len(weights):
            place += 1
            reached += weights[place]
        kept.append(draws[place])
        at += step
    return kept, total * total / sum(weight * weight for weight in weights)


def stir(draws, make, weigh, u):
    """Draws in proportion to exp(weigh(draw)) again, all of them different.

    In each round the numbers that one is made of, `make(point)`, shift around the circle from 0 to
    1, so that the prior stays as it is: some of them at random, or all by half of what two other
    draws differ by; and the likelihood decides (Metropolis; differential evolution).
    """
    draws, logs = list(draws), [weigh(draw) for draw in draws]
    for _ in range(ROUNDS):
        before = [draw.point for draw in draws]
        for i, point in enumerate(before):
            size = 10 ** (-2 * u())
            shifts = [size * (u() - 0.5) if u() < 0.5 else 0 for _ in point]
            if u() < 0.5:
                one, other = (before[int(u() * len(before))] for _ in range(2))
                shifts = [(x - y) / 2 for x, y in zip(one, other, strict=True)]
            moved = make([(x + shift) % 1 for x, shift in zip(point, shifts, strict=True)])
            log = weigh(moved)
            if math.log(u()) < log - logs[i]:
                draws[i], logs[i] = moved, log
    return draws


def clip(score):
    return min(1.0, max(0.0, score))


class Posterior:
    """Draws that explain `runs` (Run) of a task whose constant predictor scores `constant`, 0 to 1.

    llm: (an LLM's own score, rows) or None; error: the standard error of a score by the rows it is
    measured on. With a `share` of 2 or more there are so many times fewer draws, to be joined with
    those of other tasks.
    """

    def __init__(self, runs, constant, llm=None, error=0.0, share=1):
        u, self.runs, self.error = Uniform(random.Random(0).random), list(runs), error
        of = {name: [run for run in runs if run.strategy == name] for name in STRATEGIES}
        n = max((run.labels for run in of["small"]), default=100)

        def draw_point():
            return [u() for _ in range(7)]

        def make(point):
            return draw_others(point[7:], draw_student(point[:7], constant))

        def weigh_student(draw):
            return self.weigh_runs(draw, of["small"])

        def weigh_others(draw):
            log = self.weigh_runs(draw, of["teacher"] + of["dist"])
            # Unmeasured, a teacher is hardly worse than the student.
            weak = not of["teacher"] and draw.teach(n) <= draw.ann(n) - 0.02
            return log - 4 * weak

        def weigh(draw):
            return weigh_student(draw) + weigh_others(draw)

        students = [draw_student(draw_point(), constant) for _ in range(STUDENTS // share)]
        students, effective = resample(students, map(weigh_student, students), u, KEPT // share)
        if effective < EFFECTIVE:
            students = stir(students, lambda p: draw_student(p, constant), weigh_student, u)
        both = [draw_others(draw_point(), draw) for draw in students for _ in range(OTHERS)]
        kept, effective = resample(both, map(weigh_others, both), u, KEPT // share)
        if effective < EFFECTIVE:
            kept = stir(kept, make, weigh, u)
        self.draws = [add_noise(draw, u, llm) for draw in kept]
        self.most_labels = max((run.labels for run in of["small"]), default=10)
        self.most_rows = max((run.unlabeled for run in of["dist"]), default=1000)

    @classmethod
    def join(cls, parts):
        """What is known of a task that is like one of several: their draws, and no run."""
        joined = cls.__new__(cls)
        joined.runs, joined.error = [], 0.0
        joined.draws = [draw for part in parts for draw in part.draws]
        for name in ("most_labels", "most_rows"):
            setattr(joined, name, max(getattr(part, name) for part in parts))
        return joined

    @staticmethod
    def weigh_runs(draw, runs):
        total = 0.0
        for run in runs:
            mean, sd = draw.predict(run.strategy, run.labels, run.unlabeled)
            total += weigh(run.score - mean, sd, run.error, 3 if run.strategy == "dist" else 4)
        return total

    def ann(self, n, noise=1):
        return self.score("ann", (n, 0), noise)

    def teach(self, n):
        """Scores of one teacher run on n labels, one a draw."""
        return [clip(d.teach(n) + TEACHER_NOISE * d.z[1]) for d in self.draws]

    def dist(self, n, u, noise=1):
        return self.score("dist", (n, u), noise)

    def score(self, arm, counts, noise=1):
        """Scores of an arm (ann, dist, llm) at its counts (labels, rows), one a draw; with noise 0
        what runs score on average."""
        (n, m), (sd, far, own) = counts, NOISE[arm]
        beyond = m / self.most_rows if arm == "dist" else (n + m) / self.most_labels
        drift = DRIFT * math.log(max(1, beyond))
        scores = []
        for d in self.draws:
            spread = noise * math.hypot(getattr(d, sd), self.error)  # of a run as measured
            scores.append(clip(getattr(d, arm)(n, m) + drift * d.z[far] + spread * d.z[own]))
        return scores

    def find_misfits(self):
        """The runs outside the 98% band of their own posterior: no curve goes through them all."""

        def list_scores(strategy, n, u):
            if strategy == "teacher":
                return self.teach(n)
            return self.ann(n) if strategy == "small" else self.dist(n, u)

        bands = [(run, sorted(list_scores(*run[:3]))) for run in self.runs]
        return [run for run, v in bands if not quantile(v, 0.01) <= run.score <= quantile(v, 0.99)]

    def value_of_run(self, run, options):
        """(points, 0 to 100, that the chosen option gains by knowing `run` first; how often it
        changes): the expected value of sample information.

        run: (strategy, labels, unlabeled); options: for each, its scores, one a draw, no noise.
        """
        u, count = Uniform(random.Random(1).random), len(self.draws)
        expected = [draw.predict(*run) for draw in self.draws]
        means = [sum(option) / count for option in options]
        now = max(range(len(means)), key=means.__getitem__)
        gain = changed = 0
        for _ in range(OUTCOMES):
            mean, sd = expected[int(u() * count)]
            found = mean + sd * u.normal()
            weights = [math.exp(weigh(found - mean, sd)) for mean, sd in expected]
            total = sum(weights)
            means = [sum(map(float.__mul__, weights, option)) / total for option in options]
            best = max(range(len(means)), key=means.__getitem__)
            gain += means[best] - means[now]
            changed += best != now
        return 100 * gain / OUTCOMES, changed / OUTCOMES


def quantile(values, q):
    """The q-quantile, between the two nearest values."""
    values = sorted(values)
    place = (len(values) - 1) * q
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def band(values):
    """(10%, 50%, 90%) in points, 0 to 100: the band that four of five runs fall into."""
    return tuple(100 * quantile(values, q) for q in (0.1, 0.5, 0.9))


def share_above(first, second):
    """P(first > second) over paired draws, 0 to 1."""
    return sum(x > y for x, y in zip(first, second, strict=True)) / len(first)


def list_budgets(low, high, steps):
    """`steps` budgets from `low` to `high` dollars, in equal ratios."""
    return [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
