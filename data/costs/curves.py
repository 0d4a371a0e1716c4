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

import bisect
import copy
import functools
import itertools
import math
import random
from statistics import NormalDist, quantiles
from typing import NamedTuple

STRATEGIES = ("small", "teacher", "dist")
STUDENTS, KEPT, OTHERS = 40_000, 1_000, 30  # draws; draws kept; draws of the rest for each kept
DRIFT = 0.012  # standard deviation by which real curves leave the family, per e-fold past the runs
OUTCOMES = 40  # of a run that is not made yet
EFFECTIVE, ROUNDS = 400, 12  # where fewer draws share the weight, moves of each
# arm or strategy -> (what one run differs by, which noise of a draw moves the curve, which the run)
NOISE = {"ann": ("s", 0, 1), "dist": ("sd", 2, 3), "llm": ("s", 0, 4)}
NOISE |= {"small": NOISE["ann"], "teacher": ("st", 0, 1)}
STANDARD = NormalDist()


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
    """One draw: a value for each letter of the module's equations, and noise of its own; `point`
    are the uniform numbers that it is made of."""

    __slots__ = "point f a k b s at kt bt cap r bd sd l w z".split()
    st = 0.02  # of one teacher run

    def ann(self, n, m=0):
        return self.f + (self.a - self.f) * rise(n, self.k, self.b)

    def teach(self, n, m=0):
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

    small, teacher = ann, teach  # as strategies

    def predict(self, strategy, n, u):
        """(mean, standard deviation) of one run."""
        return getattr(self, strategy)(n, u), getattr(self, NOISE[strategy][0])

    def explain(self, runs):
        """Log-likelihood of `runs`, up to a constant."""
        total = 0.0
        for run in runs:
            mean, sd = self.predict(*run[:3])
            degrees = 3 if run.strategy == "dist" else 4
            total += weigh(run.score - mean, math.hypot(sd, run.error), degrees)
        return total


def normal(u):
    """The quantile `u`, 0 to 1, of a normal distribution; likewise in those below."""
    return STANDARD.inv_cdf(min(max(u, 1e-12), 1 - 1e-12))


def lognormal(u, median, sd):
    return median * math.exp(sd * normal(u))


def bounded(u, a, b):
    """Kumaraswamy's distribution on 0 to 1: a Beta whose inverse has a closed form."""
    return (1 - (1 - u) ** (1 / b)) ** (1 / a)


def draw_student(point, constant):
    """A curve of the student on labels, before any run; one in four rises in a jump."""
    near, floor, jump, b, a, k, s = point
    draw = Curves()
    draw.point = point
    floor = constant + 0.012 * normal(floor) if near < 0.7 else constant * floor
    draw.f = min(max(floor, 0.0), 0.98)
    draw.b = lognormal(b, 2.2 if jump < 0.25 else 0.75, 0.45)
    draw.a = draw.f + (1 - draw.f) * bounded(a, 2.1, 1.3)
    draw.k = lognormal(k, math.exp(6.5), 2.0)
    draw.s = lognormal(s, 0.014, 0.45)
    return draw


def draw_others(point, student):
    """The same draw with a teacher and with what its labels are worth."""
    at, kt, bt, cap, r, bd, sd = point
    draw = copy.copy(student)
    draw.point = student.point + point
    draw.at = draw.f + (1 - draw.f) * bounded(at, 4.75, 1.35)
    draw.kt, draw.bt = lognormal(kt, math.exp(4.3), 2.0), lognormal(bt, 0.9, 0.4)
    draw.cap = max(draw.a, draw.f + (1 - draw.f) * bounded(cap, 5.7, 1.2))
    draw.r, draw.bd = lognormal(r, 1, 1), lognormal(bd, 1.1, 0.4)
    draw.sd = lognormal(sd, 0.018, 0.5)
    return draw


def add_noise(draw, u, llm):
    """A draw's own noise, and where an LLM was scored what its labels are worth.

    llm: (its own score, 0 to 1; rows it was scored on), or None.
    """
    draw = copy.copy(draw)
    draw.z = [normal(u()) for _ in range(5)]
    if llm:
        score, rows = llm
        score += math.sqrt(max(score * (1 - score), 0.01) / rows) * normal(u())
        draw.l = min(max(score, draw.f), 1.0) + 0.03 * abs(normal(u()))
        draw.w = lognormal(u(), max(0.05, (score - draw.f) / (1 - draw.f)) ** 2, 0.5)
    return draw


def weigh(residual, scale, degrees=4):
    """Log of Student's t density, up to a constant: a run far off is forgiven, not believed."""
    return -math.log(scale) - (degrees + 1) / 2 * math.log1p((residual / scale) ** 2 / degrees)


def resample(draws, weigh, u, count):
    """(`count` draws in proportion to exp(weigh(draw)), systematically; how many share the
    weight)."""
    logs = [weigh(draw) for draw in draws]
    most = max(logs)
    weights = [math.exp(log - most) for log in logs]
    reached, start = list(itertools.accumulate(weights)), u()
    wanted = ((start + i) / count * reached[-1] for i in range(count))
    kept = [draws[bisect.bisect(reached, each, hi=len(draws) - 1)] for each in wanted]
    return kept, reached[-1] ** 2 / sum(weight * weight for weight in weights)


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
            if u() < math.exp(min(0, log - logs[i])):
                draws[i], logs[i] = moved, log
    return draws


def sample(runs, constant, u, share):
    """Draws that explain `runs`: students by their own runs, then each with several teachers by
    the rest; stirred where few of them share the weight."""
    own = [run for run in runs if run.strategy == "small"]
    others = [run for run in runs if run.strategy != "small"]
    n = max((run.labels for run in own), default=100)
    guess = all(run.strategy != "teacher" for run in runs)

    def make(point):
        student = draw_student(point[:7], constant)
        return draw_others(point[7:], student) if point[7:] else student

    def weigh_student(draw):
        return draw.explain(own)

    def weigh_others(draw):
        # Unmeasured, a teacher is hardly worse than the student.
        weak = guess and draw.teach(n) <= draw.ann(n) - 0.02
        return draw.explain(others) - 4 * weak

    def choose(draws, weigh, weigh_moved):
        kept, effective = resample(draws, weigh, u, KEPT // share)
        return stir(kept, make, weigh_moved, u) if effective < EFFECTIVE else kept

    students = [make([u() for _ in range(7)]) for _ in range(STUDENTS // share)]
    students = choose(students, weigh_student, weigh_student)
    both = [draw_others([u() for _ in range(7)], d) for d in students for _ in range(OTHERS)]
    return choose(both, weigh_others, lambda draw: weigh_student(draw) + weigh_others(draw))


class Posterior:
    """Draws that explain `runs` (Run) of a task whose constant predictor scores `constant`, 0 to 1.

    llm: (an LLM's own score, rows) or None; error: the standard error of a score by the rows it is
    measured on. like: [(runs, constant)] of the tasks that one without runs is like; each has its
    share of the draws.
    """

    def __init__(self, runs, constant, llm=None, error=0.0, like=()):
        self.runs, self.error, self.draws = list(runs), error, []
        groups = like or [(self.runs, constant)]
        for known, floor in groups:
            u = random.Random(0).random
            found = sample(known, floor, u, len(groups))
            self.draws += [add_noise(draw, u, llm) for draw in found]
        seen = [run for known, _ in groups for run in known]
        self.most_labels = max((run.labels for run in seen if run.strategy == "small"), default=10)
        self.most_rows = max((run.unlabeled for run in seen if run.unlabeled), default=1000)

    def ann(self, n, noise=1):
        return self.score("ann", (n, 0), noise)

    def dist(self, n, u, noise=1):
        return self.score("dist", (n, u), noise)

    def score(self, arm, counts, noise=1):
        """Scores of an arm or a strategy at its counts (labels, rows), one a draw; with noise 0
        what runs score on average."""
        (n, m), (sd, far, own) = counts, NOISE[arm]
        beyond = m / self.most_rows if arm == "dist" else (n + m) / self.most_labels
        drift = DRIFT * math.log(max(1, beyond))
        scores = []
        for d in self.draws:
            spread = noise * math.hypot(getattr(d, sd), self.error)  # of a run as measured
            score = getattr(d, arm)(n, m) + drift * d.z[far] + spread * d.z[own]
            scores.append(min(1.0, max(0.0, score)))
        return scores

    @functools.cached_property
    def misfits(self):
        """The runs outside the 98% band of their own posterior: no curve goes through them all."""
        scores = [self.score(run.strategy, run[1:3]) for run in self.runs]
        cuts = [quantiles(each, n=100, method="inclusive") for each in scores]
        both = zip(self.runs, cuts, strict=True)
        return [run for run, cut in both if not cut[0] <= run.score <= cut[-1]]

    def value_of_run(self, run, leads):
        """(points, 0 to 100, that the choice between two options gains by knowing `run` first; how
        often it changes): the expected value of sample information.

        run: (strategy, labels, unlabeled); leads: of one option over the other, one a draw, no
        noise.
        """
        u, gain, changed, now = random.Random(1).random, 0, 0, sum(leads) > 0
        expected = [draw.predict(*run) for draw in self.draws]
        for _ in range(OUTCOMES):
            mean, sd = expected[int(u() * len(expected))]
            found = mean + sd * normal(u())
            weights = [math.exp(weigh(found - mean, sd)) for mean, sd in expected]
            lead = sum(map(float.__mul__, weights, leads)) / sum(weights)
            if (lead > 0) != now:
                gain, changed = gain + abs(lead), changed + 1
        return 100 * gain / OUTCOMES, changed / OUTCOMES


def band(values):
    """(10%, 50%, 90%) in points, 0 to 100: the band that four of five runs fall into."""
    tenths = quantiles(values, n=10, method="inclusive")
    return tuple(100 * tenths[i] for i in (0, 4, 8))


def share_above(first, second):
    """P(first > second) over paired draws, 0 to 1."""
    return sum(x > y for x, y in zip(first, second, strict=True)) / len(first)


def list_budgets(low, high, steps):
    """`steps` budgets from `low` to `high` dollars, in equal ratios."""
    return [low * (high / low) ** (i / (steps - 1)) for i in range(steps)]
