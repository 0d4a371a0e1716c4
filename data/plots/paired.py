"""The paired test of two arms in each cell of a table, such as Dist. - Ann. at each budget.

Usage:
    pairs = [Pair([3, 5, 4], 1.44), Pair([-1, 1, 3], 1.44)]    # differences by seed, points
    compare(pairs)[0]       # mean 4.0 [-0.19, 8.19], p 0.057, 0.114 by Holm's rule: no difference
Paper:  Tables 2, 3, 4, 10 and 11, which print single runs and no test

A seed draws the same labels for both arms, and both are scored on the same test rows; so their
difference d is taken seed by seed and row by row. It varies with the seed, by a variance v that
is pooled over the C cells of a task, as S seeds of one cell are too few to tell it; and with the
R rows that happen to be in the test set. SE^2 = v / S + V / R, where V is the variance over rows
of the difference averaged over seeds; t has the sum of S - 1 over the cells as its degrees.
"""

import itertools
import math
import statistics
from typing import NamedTuple

LEVEL = 0.05


class Pair(NamedTuple):
    """One cell: the second arm less the first at each seed in percentage points, and V / R."""

    differences: list
    row_variance: float


class Difference(NamedTuple):
    """What the test says of one cell, in percentage points; `holm` is p by Holm's rule."""

    mean: float
    error: float
    low: float
    high: float
    p: float
    holm: float
    seeds: int

    @property
    def decided(self):
        """Whether it is more than chance makes of equal arms; else it is a tie."""
        return self.holm < LEVEL


def find_p(t, degrees):
    """P(|T| >= |t|) of Student's t, the normal law for 0 degrees: the finite series for whole
    degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    if not degrees:
        return math.erfc(abs(t) / math.sqrt(2))
    odd, angle = degrees % 2, math.atan(abs(t) / math.sqrt(degrees))
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for i in range(1, degrees // 2 + 1):
        total += term
        term *= math.cos(angle) ** 2 * (2 * i - 1 + odd) / (2 * i + odd)
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


def find_quantile(degrees):
    """The t whose two-sided p is LEVEL, by halving."""
    low, high = 0.0, 1e6
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if find_p(middle, degrees) > LEVEL else (low, middle)
    return high


def adjust_holm(ps):
    """Holm's p-values: the k-th smallest times the number of those not smaller, never falling."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    scaled = (min(1.0, ps[i] * (len(ps) - rank)) for rank, i in enumerate(order))
    adjusted = dict(zip(order, itertools.accumulate(scaled, max), strict=True))
    return [adjusted[i] for i in range(len(ps))]


def compare(pairs):
    """The Difference of each Pair, tested together."""
    degrees = sum(len(pair.differences) - 1 for pair in pairs)
    squares = [statistics.pvariance(p.differences) * len(p.differences) for p in pairs]
    seed_variance = sum(squares) / degrees if degrees else 0.0
    reach, found = find_quantile(degrees), []
    for differences, row_variance in pairs:
        mean = statistics.fmean(differences)
        error = math.sqrt(seed_variance / len(differences) + row_variance)
        p = find_p(mean / error, degrees) if error else float(mean == 0)
        low, high = mean - reach * error, mean + reach * error
        found.append(Difference(mean, error, low, high, p, p, len(differences)))
    holm = adjust_holm([each.p for each in found])
    return [each._replace(holm=p) for each, p in zip(found, holm, strict=True)]


def weigh_rows(numerators, denominators):
    """What each row adds to a score of 100 * sum / sum, in percent: its own score where that is a
    mean over rows; for F1 the row's part to first order, around the score."""
    whole = sum(denominators) or 1
    score, n = sum(numerators) / whole, len(numerators)
    pairs = zip(numerators, denominators, strict=True)
    return [100 * (n * (a - score * b) / whole + score) for a, b in pairs]


def find_row_variance(first, second):
    """V / R of the arms' rows: for each seed the (numerators, denominators) of row_scores.json."""
    sides = [[weigh_rows(*rows) for rows in arm] for arm in (first, second)]
    means = [[statistics.fmean(row) for row in zip(*arm, strict=True)] for arm in sides]
    differences = [b - a for a, b in zip(*means, strict=True)]
    return statistics.variance(differences) / len(differences) if len(differences) > 1 else 0.0


def match_seeds(first, second):
    """[(name of a run of one Score, of the other)] at the seeds that both have."""
    ours, theirs = ({run.seed: run.name for run in score.there} for score in (first, second))
    return [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]


def list_differences(first, second):
    """second - first at each seed that both Scores have, in percentage points."""
    runs = ([first.study.load(run) for run in pair] for pair in match_seeds(first, second))
    return [b["metrics"]["strict"] - a["metrics"]["strict"] for a, b in runs]


def find_gap(first, second):
    """The mean of list_differences(), None where no seed has both."""
    differences = list_differences(first, second)
    return statistics.fmean(differences) if differences else None


def pair_scores(first, second):
    """The Pair of two Scores over the seeds that both have; None without rows or seeds."""
    parts = [[first.study.rows(run) for run in pair] for pair in match_seeds(first, second)]
    if not parts or any(None in pair for pair in parts):
        return None
    return Pair(list_differences(first, second), find_row_variance(*zip(*parts, strict=True)))


def compare_scores(sides):
    """{key: the Difference of second - first} of {key: (first, second)} Scores, tested together;
    without those whose runs are not there, were scored before rows were kept, or are those of a
    key before."""
    first = {}
    for key, each in sides.items():
        first.setdefault(tuple(score.runs for score in each), key)
    pairs = {key: pair for key in first.values() if (pair := pair_scores(*sides[key]))}
    return dict(zip(pairs, compare(list(pairs.values())), strict=True)) if pairs else {}


def tell_differences(what, tested, first="Ann.", second="Dist."):
    """A sentence on {words: Difference}: who is better, and by how much."""
    told = []
    for words, found in tested.items():
        better = f"{second if found.mean > 0 else first} better"
        interval = f"{found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}]"
        told.append(f"{words}: {better if found.decided else 'no difference (ns)'}, {interval}")
    seeds = sorted({found.seeds for found in tested.values()})
    count = "one seed" if seeds == [1] else "/".join(map(str, seeds)) + " seeds"
    return f"{what}, {second} - {first} over {count}: {'; '.join(told)}."
