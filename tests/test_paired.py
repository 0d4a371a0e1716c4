"""The paired test of Dist. - Ann.: a worked example, Student's t, Holm's rule, rows, notes."""

import json
import random
import statistics

import pytest
from test_score_tables import build, find_row, write_run

from data.costs.grid import grid
from data.plots.paired import (
    Pair,
    adjust_holm,
    compare,
    find_p,
    find_quantile,
    find_row_variance,
    weigh_rows,
)
from data.plots.results import score_rows
from data.tasks import load_task


def test_the_worked_example():
    one, other = compare([Pair([3, 5, 4], 1.44), Pair([-1, 1, 3], 1.44)])
    assert one.error == other.error == pytest.approx(1.5078, abs=1e-4)
    assert [each.mean / each.error for each in (one, other)] == pytest.approx([2.653, 0.663], 1e-3)
    assert [one.p, other.p] == pytest.approx([0.0568, 0.5434], abs=1e-4)
    assert [one.holm, other.holm] == pytest.approx([0.1136, 0.5434], abs=1e-4)
    assert (one.decided, other.decided) == (False, False)


@pytest.mark.parametrize(
    ("degrees", "t"),  # of Student's table: 5% on both sides
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (16, 2.1199), (60, 2.0003), (0, 1.9600)],
)
def test_students_t(degrees, t):
    assert find_p(t, degrees) == find_p(-t, degrees) == pytest.approx(0.05, abs=1e-5)
    assert find_quantile(degrees) == pytest.approx(t, abs=1e-4)
    assert find_p(0, degrees) == 1
    assert 0 <= find_p(1000, degrees) < 0.001


def test_holms_rule():
    assert adjust_holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_holm([0.5, 0.9]) == [1.0, 1.0]


def test_equal_arms_are_a_tie_and_a_constant_lead_is_none():
    tie, lead = compare([Pair([0.0], 0.0), Pair([5.0], 0.0)])
    assert (tie.p, tie.decided, lead.p, lead.decided) == (1.0, False, 0.0, True)


def test_rows_of_a_mean_are_its_own_and_of_f1_add_up_to_it():
    assert weigh_rows([1, 0, 1, 1], [1, 1, 1, 1]) == [100, 0, 100, 100]
    numerators, denominators = [2, 4, 0, 6], [4, 4, 2, 6]
    rows = weigh_rows(numerators, denominators)
    assert statistics.fmean(rows) == pytest.approx(100 * 12 / 16)
    first, second = [([1, 0, 1, 1], [1] * 4)], [([0, 0, 1, 0], [1] * 4)]
    expected = statistics.variance([-100, 0, 0, -100]) / 4
    assert find_row_variance(first, second) == pytest.approx(expected)


def write_rows(folder, run, hits, task="fever"):
    """A run whose first rows are right, `hits` of 100, with row_scores.json."""
    write_run(folder, run, float(hits), task=task, paper=float(hits))
    place = folder / task / run.name
    metrics = json.loads((place / "metrics.json").read_text())
    (place / "metrics.json").write_text(json.dumps({**metrics, "n": 100}))
    rows = [1] * hits + [0] * (100 - hits)
    rows = {"numerators": rows, "denominators": [1] * 100}
    (place / "row_scores.json").write_text(json.dumps(rows))


def write_arms(folder, ann, dist, seeds, table="table2"):
    for run in grid(table, load_task("fever"), "mini", seeds):
        hits = {"small": ann, "dist": dist, "self": 45}.get(run.strategy, 70)
        write_rows(folder, run, hits)
    return folder


def test_under_table_2_stands_a_sentence_for_each_n(tmp_path):
    table, _ = build(write_arms(tmp_path, 40, 70, (0, 1, 2)), task="fever")
    told = [note for note in table.notes if "Dist. - Ann. over 3 seeds" in note]
    assert [note[:14] for note in told] == ["FEVER, N=100, ", "FEVER, N=500, "]
    # seeds are alike: rows alone, 30 of 100 differ, t with 16 degrees
    error = (statistics.variance([100] * 30 + [0] * 70) / 100) ** 0.5
    low, high = (30 + sign * find_quantile(16) * error for sign in (-1, 1))
    assert f"+$5: Dist. better, +30.0 [{low:.1f}, {high:.1f}]" in told[0]
    assert find_row(table, "Dist. - Ann.")[3] == "+30.0 (n=100)"
    assert "Of 8 cells Dist. wins 8, Ann. 0; ties: 0." in table.notes


def test_a_tie_is_marked_and_one_seed_is_said(tmp_path):
    table, _ = build(write_arms(tmp_path, 69, 70, (0,)), task="fever", seeds="0")
    text = "\n".join(table.notes)
    assert "over one seed: +$5: no difference (ns), +1.0 [" in text
    assert "Of 8 cells Dist. wins 0, Ann. 0; ties: 8." in text
    assert "Of one seed: rows are drawn anew, training is not." in text
    assert find_row(table, "Dist. - Ann.")[3] == "+1.0 ns (n=100)"


def test_under_table_4_stands_how_far_ann_is_behind_at_each_budget(tmp_path):
    table, _ = build(write_arms(tmp_path, 40, 70, (0,), "table4"), table="table4", task="fever")
    (told,) = [note for note in table.notes if "Dist. - Ann. over" in note]
    assert told.count("Dist. better, +30.0 [") == 7 and "+$1,289.48: Dist. better" in told
    assert table.rows[0][-1] == "never"


def test_a_budget_that_may_as_well_have_caught_up_is_marked(tmp_path):
    table, _ = build(write_arms(tmp_path, 69, 70, (0,), "table4"), table="table4", task="fever")
    assert [row[-1] for row in table.rows] == ["never ns", "never", "$1,032"]


def test_under_table_3_self_distillation_is_compared(tmp_path):
    table, _ = build(write_arms(tmp_path, 40, 70, (0,), "table3"), table="table3", task="fever")
    (told,) = [note for note in table.notes if "over one seed" in note]
    assert told.startswith("FEVER, N=500, Dist. - Self-Dist. over one seed: 10,000 rows: Dist. be")


def test_under_table_10_encoders_are_compared_with_dist(tmp_path):
    table, _ = build(write_arms(tmp_path, 40, 70, (0,), "table10"), table="table10", task="fever")
    (told,) = [note for note in table.notes if "Encoder - Dist. over one seed" in note]
    assert (
        "N=100, BERT (Ann.): no difference (ns), +0.0" in told and "N=500, BERT (Dist.): " in told
    )


@pytest.mark.parametrize("text", ["", "{}", '{"numerators": [1], "denominators": [1]}'])
def test_rows_that_are_not_those_of_the_score_are_not_used(tmp_path, text):
    write_arms(tmp_path, 40, 70, (0,))
    for path in tmp_path.glob("fever/*/row_scores.json"):
        path.write_text(text) if text else path.unlink()
    table, _ = build(tmp_path, task="fever", seeds="0")
    told = "No paired test: it takes finished runs of both"
    assert any(note.startswith(told) for note in table.notes)
    assert not any("no difference" in note for note in table.notes)


def test_the_error_of_an_f1_difference_is_that_of_drawing_rows_anew():
    rng = random.Random(0)
    gold = [rng.randint(1, 6) for _ in range(400)]
    arms = []
    for skill in (0.5, 0.7):
        hits = [sum(rng.random() < skill for _ in range(n)) for n in gold]
        arms.append(([2 * hit for hit in hits], [n + max(1, n - 1) for n in gold]))
    error = find_row_variance(*([arm] for arm in arms)) ** 0.5
    drawn = []
    for _ in range(600):
        rows = rng.choices(range(400), k=400)
        a, b = (score_rows(*([part[i] for i in rows] for part in arm)) for arm in arms)
        drawn.append(b - a)
    assert error == pytest.approx(statistics.stdev(drawn), rel=0.1)
