"""data/costs/curves.py and advise.py: scores that were not measured, and advice in dollars."""

import math

import pytest

from data.costs.advise import choose_word, find_payback, price_predictions
from data.costs.curves import Posterior, Run, band, share_above

WLP = [("small", 1253, 0, 47.6), ("small", 2153, 0, 57.8), ("small", 5000, 0, 67.4)]
WLP += [("teacher", 5000, 0, 74.2), ("dist", 5000, 7000, 65.3)]
FEVER = [("small", 100, 0, 50.3), ("small", 487, 0, 49.3), ("small", 1000, 0, 49.7)]
FEVER += [("teacher", 1000, 0, 73.5)]
MINI = [("small", 25, 0, 6.0), ("small", 50, 0, 10.9), ("small", 100, 0, 18.8)]
MINI += [("teacher", 100, 0, 88.3), ("dist", 100, 1000, 60.9), ("dist", 100, 4200, 78.0)]
FALLS = [("small", 100, 0, 80.0), ("small", 200, 0, 60.0), ("small", 400, 0, 40.0)]
# (runs, constant predictor, {counts: 10%, 50%, 90%}), worked out apart from this code
BANDS = {
    "WLP, N=5K": (
        WLP,
        9.2,
        {
            6923: (66.57, 70.07, 73.2),
            10000: (67.84, 72.65, 76.69),
            (5000, 30000): (66.12, 70.76, 75.61),
            (5000, 99000): (66.25, 72.0, 77.75),
        },
    ),
    "FEVER, N=1K, at the constant predictor": (
        FEVER,
        50.3,
        {
            5000: (48.82, 54.02, 68.08),
            13000: (49.68, 60.25, 84.28),
            (1000, 54000): (56.48, 68.31, 77.92),
        },
    ),
    "mini WLP, N=100": (
        MINI,
        0.6,
        {292: (27.78, 34.79, 41.82), (100, 6500): (74.99, 79.64, 82.7)},
    ),
}


def make_posterior(runs, constant):
    return Posterior([Run(*run[:3], run[3] / 100) for run in runs], constant / 100)


@pytest.mark.parametrize("name", BANDS)
def test_bands_are_the_same_to_a_hundredth(name):
    runs, constant, wanted = BANDS[name]
    posterior = make_posterior(runs, constant)
    for counts, expected in wanted.items():
        scores = posterior.dist(*counts) if isinstance(counts, tuple) else posterior.ann(counts)
        assert band(scores) == pytest.approx(expected, abs=0.006), counts


@pytest.mark.parametrize(
    ("runs", "constant", "rows", "labels", "p"),
    [
        (WLP, 9.2, (5000, 30000), 6923, 0.594),
        (FEVER, 50.3, (1000, 54000), 2162, 0.962),
        ([("small", 100, 0, 50.3), ("teacher", 100, 0, 49.7)], 50.3, (100, 187000), 1262, 0.233),
        (MINI, 0.6, (100, 6500), 292, 1.0),
    ],
)
def test_who_wins_how_surely(runs, constant, rows, labels, p):
    posterior = make_posterior(runs, constant)
    assert share_above(posterior.dist(*rows, 0), posterior.ann(labels, 0)) == pytest.approx(
        p, abs=5e-4
    )


def test_runs_that_no_curve_explains_are_named():
    assert [run.labels for run in make_posterior(FALLS, 10).find_misfits()] == [100]
    for name in BANDS:
        assert not make_posterior(*BANDS[name][:2]).find_misfits()


def test_the_order_of_runs_does_not_matter():
    one, other = (make_posterior(runs, 9.2).ann(10000) for runs in (WLP, WLP[::-1]))
    assert band(one) == pytest.approx(band(other), abs=0.5)


def test_scores_rise_with_counts_and_bands_are_wider_with_fewer_runs():
    posterior, bare = make_posterior(WLP, 9.2), make_posterior(WLP[:1], 9.2)
    for make, counts in (
        (posterior.ann, (5000, 7000, 10000)),
        (lambda u: posterior.dist(5000, u), (7000, 30000, 99000)),
    ):
        medians = [band(make(count))[1] for count in counts]
        assert medians == sorted(medians)
    low, _, high = band(posterior.ann(8000))
    wide_low, _, wide_high = band(bare.ann(8000))
    assert wide_high - wide_low > high - low


def test_words():
    told = [choose_word(p) for p in (0, 0.19, 0.2, 0.34, 0.35, 0.64, 0.65, 0.79, 0.8, 1)]
    assert (
        told
        == ["Ann."] * 2
        + ["lean Ann."] * 2
        + ["can't tell"] * 2
        + ["lean Dist."] * 2
        + ["Dist."] * 2
    )


def test_serving_and_payback():
    student, teacher = price_predictions(0.0004, 1.875), price_predictions(0.03, 1.875)
    assert (round(student, 2), round(teacher, 2)) == (0.21, 15.62)
    assert round(find_payback(300, student, 0, 367)) == pytest.approx(817_903, abs=60)
    assert find_payback(300, teacher, 0, student) == math.inf
