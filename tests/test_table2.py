"""Table 2 comes from metrics.json files only: scores, spread, what is missing or cannot be."""

import csv
import json

import pytest

import costs
import plots


def write_run(folder, run, score, paper=50.0, seconds=10.0):
    place = folder / "wlp" / run.name
    place.mkdir(parents=True, exist_ok=True)
    spent = {"load": 1.0, "train": seconds}
    metrics = {
        "task": "wlp",
        "n": 1000,
        "metric": "entity_f1",
        "score": score,
        "metrics": {"entity_f1": score, "f1_paper": paper, "invalid_rate": 2.5, "constant": 0.6},
        "signature": "rule:correct|version:1",
        "training": {"strategy": run.strategy, "seconds": spent},
    }
    (place / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def runs(tmp_path):
    """Scores of three seeds: Ann. 20, 21, 22 everywhere; the teacher 70; Dist. 60."""
    for run in costs.grid("table2", "wlp", "mini", (0, 1, 2)):
        base = {"small": 20.0 + run.seed, "teacher": 70.0, "dist": 60.0}[run.strategy]
        write_run(tmp_path, run, base)
    return tmp_path


def build(folder, *flags):
    args = plots.parse_args(
        ["table2", "--task", "wlp", "--runs", str(folder), "--seeds", "0 1 2", *flags]
    )
    return plots.build_table2(args)


def find_row(table, label):
    return next(row for row in table.rows if row[1].startswith(label))


def test_cells_are_means_over_seeds_with_their_spread_and_what_was_bought(runs):
    table, _ = build(runs)
    assert table.columns[2:] == ["+$0", "+$10", "+$20", "+$30", "+$50"]
    assert find_row(table, "Ann.")[2:4] == ["21.0 ±1.0 (+0)", "21.0 ±1.0 (+38)"]
    row = find_row(table, "Dist. from [70.0 ±0.0]")
    assert row[2:] == [
        "N/A",
        *("60.0 ±0.0 (6h/1.9K)", "60.0 ±0.0 (11h/4.2K)"),
        *("60.0 ±0.0 (16h/6.5K)", "60.0 ±0.0 (27h/11.1K)"),
    ]
    assert find_row(table, "Dist. - Ann.")[2:4] == [None, "+39.0"]
    assert find_row(table, "Ann., paper's rule")[2] == "50.0 ±0.0"


def test_the_papers_values_stand_beside(runs):
    table, _ = build(runs)
    assert find_row(table, "paper: Ann., N=1K")[2:] == [40.7, 50.0, 53.7, 57.8, 62.7]
    assert find_row(table, "paper: Dist. from [72.4]")[2:] == ["N/A", 71.1, 71.3, 70.9, 70.8]
    assert find_row(table, "paper: Dist. from [74.2]")[2:] == ["N/A", 65.3, 71.8, 72.4, 72.5]


def test_a_missing_run_shows(runs):
    (runs / "wlp" / "small-n138-s1" / "metrics.json").unlink()
    for seed in (0, 1, 2):
        (runs / "wlp" / f"dist-n100-u1900-s{seed}" / "metrics.json").unlink()
    table, cells = build(runs)
    assert find_row(table, "Ann.")[3] == "21.0 ±1.4 (2 of 3 seeds) (+38)"
    assert find_row(table, "Dist. from")[3] == "missing (6h/1.9K)"
    assert find_row(table, "Dist. - Ann.")[3] is None
    assert next(row for row in cells.rows if row[3] == "Dist.")[6] == "0/3"


def test_a_score_of_zero_is_a_score(runs):
    for seed in (0, 1, 2):
        run = costs.parse_run(f"small-n138-s{seed}")
        write_run(runs, run, 0.0)
    assert find_row(build(runs)[0], "Dist. - Ann.")[3] == "+60.0"


def test_no_runs_at_all_is_a_table_of_missing(tmp_path):
    table, cells = build(tmp_path)
    assert find_row(table, "Ann.")[2] == "missing (+0)"
    assert all(row[7] == "missing" for row in cells.rows)


def test_cells_table_has_planned_dollars_and_measured_seconds(runs):
    _, cells = build(runs)
    heads = {name: i for i, name in enumerate(cells.columns)}
    ann = next(row for row in cells.rows if row[2:5] == ["+$10", "Ann.", "138"])
    dist = next(row for row in cells.rows if row[2:4] == ["+$10", "Dist."])
    assert ann[heads["Planned $"]] == "$9.88"  # 38 labels at $0.26
    assert ann[heads["Seconds"]] == "11"
    assert dist[heads["Seconds"]] == "22"  # the teacher's 11 and its own 11
    assert (dist[heads["Unlabeled"]], dist[heads["Invalid %"]]) == ("1,900", "2.5 ±0.0")


def test_notes_say_what_the_numbers_are(runs):
    table, _ = build(runs, "--data", "FOLDER")
    text = "\n".join(table.notes)
    for part in ("entity_f1", "1000 rows", "divided by 10", "rule:correct", "FOLDER"):
        assert part in text


def test_written_as_markdown_csv_and_latex(runs, tmp_path, capsys):
    out = tmp_path / "out"
    flags = ["table2", "--task", "wlp", "--runs", str(runs), "--output", str(out)]
    plots.main(flags)
    assert capsys.readouterr().out.startswith("**Table 2.")
    for name in ("table2", "table2-cells"):
        assert {path.suffix for path in out.glob(f"{name}.*")} == {".md", ".csv", ".tex"}
    rows = list(csv.reader((out / "table2-cells.csv").open()))
    assert len(rows) == 1 + 20 and all(len(row) == len(rows[0]) for row in rows)
    tex = (out / "table2.tex").read_text()
    assert r"\toprule" in tex and r"\$10" in tex
