"""Figures 2 to 7: each drawn point is in the CSV file and in the runs; no text is cut off."""

import csv
import itertools
import json
import statistics
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import costs
import plots
from data import files
from data.costs.grid import cells, grid
from data.costs.runs import parse_run
from data.files import UserError, write_json
from data.plots import drawing, figures
from data.plots.results import find_frontier
from data.plots.tables import to_csv
from data.tasks import load_task, load_tasks

ROOT = Path(__file__).resolve().parents[1]
ALL = "wlp stanceosaurus fever multipit_id multipit_gen nq"
METRICS = {
    "wlp": ("entity_f1", "f1_released"),
    "stanceosaurus": ("micro_f1", "micro_f1_released"),
    "multipit_gen": ("bert_ibleu", None),
    "nq": ("f1", None),
}


def make_score(run, task):
    """A score that differs from run to run and is the same in every test."""
    return 20 + zlib.crc32(f"{task}/{run.name}".encode()) % 6000 / 100


def write_run(folder, task, run, gpu=None):
    """metrics.json as evaluate.py writes it: a GPU hour of training, half an hour of the pass."""
    metric, paper = METRICS.get(task, ("accuracy", "accuracy_released"))
    score = make_score(run, task)
    hardware = {"device": "cuda", "gpu": gpu, "gpus": 1} if gpu else {"device": "cpu"}
    seconds = {"train": 3600, "teacher_pass": 1800 if run.strategy == "dist" else 0}
    counts = {"labels": run.labels, "unlabeled": run.unlabeled, "seed": run.seed}
    training = {"task": task, "strategy": run.strategy, **counts}
    metrics = {
        "task": task,
        "n": 1000,
        "signature": "rule:strict",
        "metric": metric,
        "score": score,
        "metrics": {metric: score, **({paper: score - 5} if paper else {})},
        "training": {**training, "hardware": hardware, "seconds": seconds},
    }
    place = folder / task / run.name
    place.mkdir(parents=True, exist_ok=True)
    (place / "metrics.json").write_text(json.dumps(metrics))
    if run.llm_labels:
        used = {"annotator": "simulated annotator (70% correct)", "settings": {"shots": 32}}
        used |= {"items": run.llm_labels, "valid": run.llm_labels - 4}
        write_json(place / "simulated-0.7" / "annotation.json", used)


def write_runs(folder, figure, tasks="wlp", scale="mini", seeds=(0,), gpu=None):
    for task in load_tasks(tasks):
        for run in grid(figure, task, scale, seeds):
            write_run(folder, task.name, run, gpu)
    return folder


def parse(figure, folder, *flags):
    task = () if "--task" in flags else ("--task", "wlp")
    return plots.parse_args([figure, "--runs", str(folder), *task, *flags])


def build(figure, folder, *flags):
    return figures.build(parse(figure, folder, *flags))


def read_rows(drawn):
    return list(csv.DictReader(to_csv(figures.list_points(drawn)).splitlines()))


@pytest.mark.parametrize("figure", figures.MAKERS)
def test_points_of_the_csv_are_the_scores_of_the_runs_and_what_is_drawn(tmp_path, figure):
    seeds = (0, 1, 2)
    drawn = build(figure, write_runs(tmp_path, figure, seeds=seeds), "--seeds", "0 1 2")
    rows = read_rows(drawn)
    for row in rows:
        runs = [parse_run(name) for name in row["Runs"].split()]
        scores = [make_score(run, "wlp") for run in runs]
        assert [run.seed for run in runs] == list(seeds) and row["Seeds"] == "3"
        assert float(row["Score"]) == pytest.approx(statistics.fmean(scores), rel=1e-5)
        assert float(row["SD"]) == pytest.approx(statistics.stdev(scores), rel=1e-5)
        llm = row["Strategy"] in ("llm", "prompted")  # with the 100 rows in its prompts
        price = 0.26 * max(int(row["N"]), 100 if llm else 0)
        assert float(row["Total $"]) == pytest.approx(price + float(row["Planned $"]), rel=1e-5)
    dots = [d for panel in drawn.panels for line in panel.lines for d in line.dots if d.bar]
    assert sorted(d.y for d in dots) == pytest.approx(
        sorted(float(r["Score"]) for r in rows), rel=1e-5
    )
    x = "N" if figure in ("fig3", "fig7") else "Total $"
    # An LLM's own answers are a level over all N: the error bar stands at its right end.
    places = [1000 if row["Strategy"] == "prompted" else float(row[x]) for row in rows]
    assert sorted(d.x for d in dots) == pytest.approx(sorted(places), rel=1e-5)
    planned = {
        run.name
        for cell in cells(figure, load_task("wlp"), "mini", seeds)
        for strategy in ("small", "dist", "llm", "prompted")
        for run in cell.runs.get(strategy) or ()
    }
    assert {name for row in rows for name in row["Runs"].split()} == planned


def test_the_dollars_of_figure_2_at_paper_scale(tmp_path):
    drawn = build("fig2", write_runs(tmp_path, "fig2", scale="paper"), "--scale", "paper")
    rows = {(r["Strategy"], r["N"], r["Unlabeled"]): r for r in read_rows(drawn)}
    assert rows["small", "5000", "0"]["Total $"] == "1300"
    # Table 6: $67.5 for the teacher and $435 for 100K rows
    assert rows["dist", "5000", "100000"]["Total $"] == "1802.5"
    assert rows["small", "1000", "0"]["Paper"] == "40.7"  # Table 2
    assert rows["dist", "5000", "100000"]["Paper"] == "70.6"  # Table 3
    assert rows["dist", "1000", "10000"]["Paper"] == ""


def test_the_papers_points_stand_at_equal_counts_only(tmp_path):
    drawn = build("fig3", write_runs(tmp_path, "fig3", scale="paper"), "--scale", "paper")
    rows = {(r["Strategy"], r["N"], r["Budget $"]): r["Paper"] for r in read_rows(drawn)}
    assert rows["dist", "5000", "200"] == "71.8" and rows["small", "100", "300"] == "47.6"
    assert rows["dist", "500", "100"] == ""
    mini = build("fig3", write_runs(tmp_path / "mini", "fig3"))
    assert not any(row["Paper"] for row in read_rows(mini))
    assert any("paper's points are not drawn" in note for note in mini.notes)


def test_other_sizes_have_no_point_of_the_paper(tmp_path):
    drawn = build("fig4", write_runs(tmp_path, "fig4", scale="paper"), "--scale", "paper")
    rows = {(r["Strategy"], r["Student"], r["N"]): r["Paper"] for r in read_rows(drawn)}
    assert rows["dist", "small", "1000"] == "70.9" and rows["small", "small", "5000"] == "68.7"
    assert {value for (_, size, _), value in rows.items() if size != "small"} == {""}


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 100)), min_size=1, max_size=30))
def test_the_frontier_holds_what_nothing_beats(pairs):
    kept = find_frontier(pairs)
    for i in (0, 1):
        assert [pair[i] for pair in kept] == sorted({pair[i] for pair in kept})
    for usd, mean in pairs:
        assert any(best[0] <= usd and best[1] >= mean for best in kept)
    for usd, mean in kept:
        assert {p for p in pairs if p[0] <= usd and p[1] >= mean} == {(usd, mean)}


def test_the_frontier_of_the_csv_is_the_drawn_one(tmp_path):
    drawn = build("fig2", write_runs(tmp_path, "fig2"))
    edge = next(line for line in drawn.panels[0].lines if line.label == "Pareto frontier")
    rows = [row for row in read_rows(drawn) if row["Frontier"] == "yes"]
    scores = sorted(float(row["Score"]) for row in rows)
    assert sorted(dot.y for dot in edge.dots) == pytest.approx(scores, rel=1e-5)


def test_a_missing_run_is_said(tmp_path, capsys):
    write_runs(tmp_path, "fig2", seeds=(0, 1))
    for name in ("small-n10-s1", "dist-n50-u1000-s0", "dist-n50-u1000-s1"):
        (tmp_path / "wlp" / name / "metrics.json").unlink()
    figures.write_figure(
        parse("fig2", tmp_path, "--seeds", "0 1", "--output", str(tmp_path / "out"))
    )
    said = capsys.readouterr().err.splitlines()
    assert sorted(said) == [
        "missing: wlp/dist-n50-u1000-s0",
        "missing: wlp/dist-n50-u1000-s1",
        "missing: wlp/small-n10-s1",
    ]
    drawn = build("fig2", tmp_path, "--seeds", "0 1")
    assert any(note.startswith("3 of 30 runs missing") for note in drawn.notes)
    rows = {(r["Strategy"], r["N"], r["Unlabeled"]): r for r in read_rows(drawn)}
    assert rows["small", "10", "0"]["Seeds"] == "1" and rows["small", "10", "0"]["SD"] == ""
    assert rows["dist", "50", "1000"]["Score"] == ""
    gaps = [dot.y for line in drawn.panels[0].lines[:3] for dot in line.dots].count(None)
    assert gaps == 1  # an interrupted line


def test_what_differs_from_the_paper_is_said_on_the_figure(tmp_path):
    notes = build("fig5", write_runs(tmp_path, "fig5")).notes
    assert any("no T5 of size xl at scale mini" in note for note in notes)
    assert any(note.startswith("3 of 9 points have fewer labels or unlabeled") for note in notes)


def test_what_a_budget_does_not_cover_is_said_in_the_panel(tmp_path):
    drawn = build("fig3", write_runs(tmp_path, "fig3"))
    assert [panel.gaps[0][:2] for panel in drawn.panels if panel.gaps] == [(1000, "N/A")]


def test_labels_of_an_llm_at_equal_dollars(tmp_path):
    """Figure 6: who labeled is named, and what the dollars buy at both price lists is told."""
    drawn = build("fig6", write_runs(tmp_path, "fig6"))
    rows = [row for row in read_rows(drawn) if row["Strategy"] == "llm"]
    name = "simulated annotator (70% correct)"
    assert [(row["Series"], row["N"], row["LLM labels"]) for row in rows] == [
        *((f"Human + {name}", n, "434") for n in ("10", "100", "500")),
        (f"{name} alone", "0", "434"),
    ]
    assert {row["LLM labels by price"] for row in rows} == {
        "434 (text-davinci-003, paper); 65386 (gpt-6-luna, today); "
        "130772 (gpt-6-luna, today in batches)"
    }
    assert [float(row["Total $"]) for row in rows] == pytest.approx(
        [45.964, 45.964, 149.964, 45.964]
    )
    text = " ".join(drawn.notes)
    for part in (
        "1,720 of 1,736 answers were labels",
        "$20 buys 434 (text-",
        "draw on 100 labeled rows",
    ):
        assert part in text, part


def test_the_level_of_an_llm_needs_its_run(tmp_path):
    write_runs(tmp_path, "fig7")
    lines = [line.label for line in build("fig7", tmp_path).panels[0].lines if line.dots]
    assert lines == ["Ann.", "simulated annotator (70% correct), few-shot"]
    (tmp_path / "wlp" / "prompted-n100-g200-s0" / "metrics.json").unlink()
    drawn = build("fig7", tmp_path)
    assert [line.label for line in drawn.panels[0].lines if line.dots] == ["Ann."]
    assert drawn.missing == ["wlp/prompted-n100-g200-s0"]


def test_the_papers_rule(tmp_path):
    folder = write_runs(tmp_path, "fig2", "wlp nq")
    correct, paper = (
        read_rows(build("fig2", folder, "--task", "wlp nq", "--rule", rule))
        for rule in ("strict", "released")
    )
    for one, other in zip(correct, paper, strict=True):
        # nq has one rule
        lower = 5 if one["Task"] == "wlp" else 0
        assert float(one["Score"]) - float(other["Score"]) == pytest.approx(lower, abs=1e-3)


LAID_OUT = [
    ("fig2", "wlp", "mini", "0"),
    ("fig2", ALL, "paper", "0 1 2"),
    ("fig3", "wlp multipit_gen", "paper", "0 1"),
    ("fig4", "wlp multipit_gen", "mini", "0 1"),
    ("fig5", "wlp", "mini", "0"),
    ("fig6", "wlp stanceosaurus", "paper", "0 1"),
    ("fig7", "wlp", "mini", "0"),
]


@pytest.mark.parametrize(("figure", "tasks", "scale", "seeds"), LAID_OUT)
def test_no_text_is_cut_off_and_none_covers_another(tmp_path, figure, tasks, scale, seeds):
    write_runs(tmp_path, figure, tasks, scale, costs.parse_seeds(seeds))
    drawn = build(figure, tmp_path, "--task", tasks, "--scale", scale, "--seeds", seeds)
    picture = drawing.draw(drawn.panels, drawn.columns)
    picture.draw_without_rendering()
    whole, (legend,) = picture.bbox, picture.legends
    boxes = [text.get_window_extent() for text in [*legend.get_texts(), *picture.texts]]
    axes = [panel for panel in picture.axes if panel.axison]
    assert not any(legend.get_window_extent().overlaps(panel.get_tightbbox()) for panel in axes)
    for panel in axes:
        ticks = [tick for tick in panel.get_xticklabels() if tick.get_text()]
        extents = [tick.get_window_extent() for tick in ticks]
        assert len(extents) >= 2
        for left, right in itertools.pairwise(extents):
            assert left.x1 < right.x0
        boxes += [panel.get_tightbbox(), panel.title.get_window_extent()]
    for box in boxes:
        assert box.x0 >= -1 and box.y0 >= -1
        assert box.x1 <= whole.x1 + 1 and box.y1 <= whole.y1 + 1


def test_files_are_whole_and_the_same_each_time(tmp_path, capsys):
    write_runs(tmp_path, "fig2", seeds=(0, 1))
    for name in ("a", "b"):
        figures.write_figure(parse("fig2", tmp_path, "--output", str(tmp_path / name)))
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "b" / "fig2.csv")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in ("a", "b"))
    assert set(one) == {f"fig2.{kind}" for kind in ("png", "pdf", "md", "csv")} and one == two
    assert one["fig2.png"].startswith(b"\x89PNG") and one["fig2.png"].endswith(b"IEND\xaeB`\x82")
    assert one["fig2.pdf"].startswith(b"%PDF-") and one["fig2.pdf"].rstrip().endswith(b"%%EOF")


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no finished run of fig2 for wlp"):
        build("fig2", tmp_path)
    with pytest.raises(UserError, match="unknown task 'wlq'"):
        build("fig2", tmp_path, "--task", "wlq")
    write_runs(tmp_path, "fig2")
    path = tmp_path / "wlp" / "small-n10-s0" / "metrics.json"
    path.write_text("{}")
    with pytest.raises(UserError, match=r"small-n10-s0/metrics.json: no 'task'"):
        build("fig2", tmp_path)


def test_mistakes_on_the_command_line(tmp_path):
    def call(*argv):
        line = [sys.executable, "plots.py", *map(str, argv)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)

    empty = call("fig3", "--task", "wlp", "--runs", tmp_path, "--output", tmp_path / "out")
    assert (empty.returncode, empty.stdout) == (1, "") and not (tmp_path / "out").exists()
    assert empty.stderr.startswith("error: ") and empty.stderr.count("\n") == 1
    assert call("fig3", "--rule", "nosuch").returncode == 2
    assert call("fig3", "--nosuch").returncode == 2


# --- what a figure says beside its points --------------------------------------------------


def write_part(folder, run, hits, rows):
    """Predictions and row_scores.json of a run: one row each, 1 where it is right."""
    place = folder / "wlp" / run
    metrics = json.loads((place / "metrics.json").read_text())
    metrics["metrics"]["entity_f1"] = metrics["score"] = 100 * sum(hits) / len(hits)
    write_json(place / "metrics.json", {**metrics, "n": len(hits)})
    parts = {"numerators": hits, "denominators": [1] * len(hits)}
    write_json(place / "row_scores.json", parts)
    lines = [json.dumps({"source": row, "target": "x", "prediction": ""}) + "\n" for row in rows]
    place = place / "simulated-0.7" if run.startswith("prompted") else place
    (place / "predictions.jsonl").write_text("".join(lines))


def test_figure_7_scores_both_on_the_rows_that_the_llm_answered(tmp_path):
    write_runs(tmp_path, "fig7")
    rows = ["a", "b", "b", "c"]
    for run in grid("fig7", load_task("wlp"), "mini"):
        if run.strategy == "small":
            write_part(tmp_path, run.name, [1, 0, 1, 1], rows)
        else:
            write_part(tmp_path, run.name, [1, 1], ["c", "b"])
    drawn = build("fig7", tmp_path)
    small = [row for row in read_rows(drawn) if row["Strategy"] == "small"]
    assert {row["Score"] for row in small} == {"50"}  # of c and the first b; 75 of all rows
    assert {row["Test rows"] for row in read_rows(drawn)} == {"2"}
    assert any("on the same 2 test rows" in note for note in drawn.notes)
    (tmp_path / "wlp" / small[0]["Runs"] / "row_scores.json").unlink()
    drawn = build("fig7", tmp_path)
    assert read_rows(drawn)[1]["Score"] == "75"
    assert any("as its rows are not known" in note for note in drawn.notes)


def test_one_seed_has_the_interval_over_rows_as_its_bar(tmp_path):
    write_runs(tmp_path, "fig2")
    path = tmp_path / "wlp" / "small-n10-s0" / "metrics.json"
    metrics = json.loads(path.read_text())
    write_json(path, {**metrics, "intervals": {"entity_f1": [12.5, 90.25]}})
    drawn = build("fig2", tmp_path)
    assert drawn.panels[0].lines[0].dots[0].bar == (12.5, 90.25)
    assert next((row["Low"], row["High"]) for row in read_rows(drawn)) == ("12.5", "90.25")
    assert any("95% interval over test rows" in note for note in drawn.notes)


def test_an_axis_never_zooms_onto_noise():
    line = drawing.Line("Ann.", drawing.ANN, [drawing.Dot(1, 50.0), drawing.Dot(2, 50.1)])
    low, high = drawing.find_range([drawing.Panel("", [line])])
    assert high - low > 10 and low < 50 < high


def test_notes_lie_beside_the_picture_and_no_text_block_in_it(tmp_path):
    out = tmp_path / "out"
    write_runs(tmp_path, "fig2")
    figures.write_figure(parse("fig2", tmp_path, "--output", str(out)))
    text = (out / "fig2.md").read_text()
    assert text.startswith("Figure 2. ") and "bias" in text and "- Dollars: " in text
    drawn = build("fig2", tmp_path)
    assert not drawing.draw(drawn.panels).texts


def write_own(folder, title, unlabeled=5000, labels_n=(30, 60)):
    entry = {"title": title, "metric": "classes", "report": "accuracy", "prefix": "mine: "}
    entry |= {"labels": ["a", "b"], "max_source_length": 32, "max_target_length": 8}
    entry |= {"usd_per_label": 0.1, "labels_n": labels_n, "budgets": [2, 4]}
    entry |= {"teacher_gpu_hours": 0.1, "distill_gpu_hours_per_100k": 500}
    entry |= {"rows": {"train": 400, "unlabeled": unlabeled}}
    write_json(folder / "task.json", entry)
    return load_task(f"mine={folder / 'task.json'}")


@pytest.mark.parametrize("title", ["Mine", "日本語の課題"])
def test_figure_2_of_an_own_task_is_drawn_from_the_runs_of_table_2(tmp_path, title, recwarn):
    task = write_own(tmp_path, title)
    for run in grid("table2", task, "mini"):
        write_run(tmp_path, "mine", run)
    flags = ("--task", "mine", "--data", str(tmp_path))
    drawn = build("fig2", tmp_path, *flags)
    assert drawn.missing == [] and not recwarn.list
    series = {row["Series"]: row["N"] for row in read_rows(drawn)}
    assert series == {"Ann.": "60", "N=30 (Dist.)": "30", "N=60 (Dist.)": "60"}
    ann = [float(row["Total $"]) for row in read_rows(drawn) if row["Series"] == "Ann."]
    assert ann == [3, 5, 6, 7, 8, 10]
    figures.write_figure(parse("fig2", tmp_path, *flags, "--output", str(tmp_path / "out")))
    assert not recwarn.list


def test_points_are_short_of_what_their_own_runs_would_take(tmp_path):
    task = write_own(tmp_path, "Mine", unlabeled=50)
    for run in grid("table2", task, "mini"):
        write_run(tmp_path, "mine", run)
    drawn = build("fig2", tmp_path, "--task", "mine", "--data", str(tmp_path))
    short = [row["Strategy"] for row in read_rows(drawn) if "50 exist" in row["Note"]]
    assert set(short) == {"dist"}
    count = f"{len(short)} of {len(drawn.points)} points have fewer labels or unlabeled rows"
    assert any(note.startswith(count) for note in drawn.notes), drawn.notes


def test_dots_of_the_only_n_stand_near_it(tmp_path):
    task = write_own(tmp_path, "Mine", labels_n=[100])
    for run in grid("fig3", task, "mini"):
        write_run(tmp_path, "mine", run)
    drawn = build("fig3", tmp_path, "--task", "mine", "--data", str(tmp_path))
    figure = drawing.draw(drawn.panels, drawn.columns)
    for axes in figure.axes:
        low, high = axes.get_xlim()
        dots = [x for line in axes.lines if line.get_alpha() != 0 for x in line.get_xdata()]
        assert len(dots) == 2 and low < 80 and high > 120
        assert all(95 < x < 105 for x in dots), dots


def test_a_failed_write_leaves_nothing_half_done(tmp_path, monkeypatch):
    drawn = build("fig2", write_runs(tmp_path / "runs", "fig2"))
    picture, out = drawing.draw(drawn.panels), tmp_path / "out"
    monkeypatch.setattr(files.os, "replace", lambda *names: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        drawing.write(picture, out / "fig2")
    assert not list(out.iterdir())


def test_the_picture_of_the_pipeline(tmp_path, capsys):
    for name in ("a", "b"):
        plots.main(["pipeline", "--output", str(tmp_path / name)])
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / x).iterdir()} for x in ("a", "b"))
    assert set(one) == {"pipeline.png", "pipeline.svg"} and one == two
    words = ("N labels", "people label more", "teacher", "soft labels", "an LLM", "compact model")
    assert all(word in one["pipeline.svg"].decode() for word in (*words, "per label", "GPU-hours"))
    with pytest.raises(UserError, match="--output DIR"):
        plots.main(["pipeline"])
