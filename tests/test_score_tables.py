"""Tables 2, 3, 4, 9, 10 and 11 come from metrics.json files: scores, spread, what is missing."""

import csv
import json
import re

import pytest

import plots
from data.costs.grid import TABLES, grid
from data.costs.prices import load_prices, price_gpu_hour, show_usd
from data.costs.runs import parse_run
from data.files import UserError, read_json, write_json
from data.plots import tables
from data.plots.results import load_scores
from data.tasks import load_task

GPU = {"device": "cuda", "gpu": "NVIDIA A100-SXM4-40GB", "gpus": 1}
CPU = {"device": "cpu", "gpu": None, "gpus": 0}
METRICS = {  # task -> its metric, those by the paper's rule, others
    "wlp": ("entity_f1", "f1_released", ()),
    "stanceosaurus": ("micro_f1", "micro_f1_released", ("macro_f1", "macro_f1_released")),
    "fever": ("accuracy", "accuracy_released", ()),
    "multipit_id": ("accuracy", "accuracy_released", ()),
    "multipit_gen": ("bert_ibleu", None, ("copy_rate",)),
    "nq": ("f1", None, ("em",)),
}


def write_run(folder, run, score, paper=50.0, seconds=10.0, task="wlp", hardware=CPU):
    """metrics.json of a finished run, as evaluate.py writes it; other measures are score + 1."""
    place = folder / task / run.name
    place.mkdir(parents=True, exist_ok=True)
    metric, by_paper, others = METRICS[task]
    measures = {metric: score, "constant": 0.6, **dict.fromkeys(others, score + 1)}
    measures |= {by_paper: paper, "invalid_rate": 2.5} if by_paper else {}
    training = {"task": task, "strategy": run.strategy, "hardware": hardware}
    training |= {"labels": run.labels, "unlabeled": run.unlabeled, "seed": run.seed}
    metrics = {"task": task, "n": 1000, "metric": metric, "score": score, "metrics": measures}
    metrics["training"] = {**training, "seconds": {"load": 1.0, "train": seconds}}
    metrics["signature"] = "rule:strict|version:1"
    (place / "metrics.json").write_text(json.dumps(metrics))


SCORES = {"small": 20.0, "teacher": 70.0, "dist": 60.0, "self": 15.0, "bert": 40.0}


def write_runs(folder, table, tasks=("wlp",), scale="mini", seeds=(0, 1, 2), **options):
    """All runs of a table: Ann. is 20, 21, 22 at seeds 0, 1, 2, others have SCORES at each seed."""
    for task in tasks:
        for run in grid(table, load_task(task), scale, seeds):
            seed = run.seed if run.strategy == "small" else 0
            write_run(folder, run, SCORES.get(run.strategy, 30.0) + seed, task=task, **options)
    return folder


@pytest.fixture
def runs(tmp_path):
    return write_runs(tmp_path, "table2")


def build(folder, *flags, table="table2", task="wlp", seeds="0 1 2"):
    line = [table, "--task", task, "--runs", str(folder), "--seeds", seeds, *flags]
    return plots.build_scores(plots.parse_args(line))


def find_row(table, label):
    return next(row for row in table.rows if row[1].strip().startswith(label))


def find_cells(cells, **wanted):
    """Rows of the table of cells with these values, each as {column: value}."""
    rows = [dict(zip(cells.columns, row, strict=True)) for row in cells.rows]
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


# --- Table 2 -------------------------------------------------------------------------------


def test_cells_are_means_over_seeds_with_their_spread_and_what_was_bought(runs):
    table, _ = build(runs)
    assert table.columns[2:] == ["+$0", "+$10", "+$20", "+$30", "+$50"]
    assert find_row(table, "Ann.")[2:4] == ["21.0 ±1.0", "21.0 ±1.0"]
    assert find_row(table, "labels bought")[2:] == ["+0", "+38", "+76", "+115", "+192"]
    assert find_row(table, "Dist. from [70.0 ±0.0]")[2:] == ["N/A", *["60.0 ±0.0"] * 4]
    bought = ["6h / 1.9K", "11h / 4.2K", "16h / 6.5K", "27h / 11.1K"]
    assert find_row(table, "A40-h /")[2:] == [None, *bought]
    assert find_row(table, "Dist. - Ann.")[2:4] == [None, "+39.0"]
    assert find_row(table, "Ann., released")[2] == "50.0 ±0.0"
    assert find_row(table, "Dist. [50.0], released")[3] == "50.0 ±0.0"
    assert find_row(table, "Constant predictor")[2:] == ["0.6", "", "", "", ""]
    assert find_row(table, "Invalid %: Ann. / Dist.")[2:4] == ["2.5 / –", "2.5 / 2.5"]


def test_the_papers_values_stand_beside(runs):
    table, cells = build(runs)
    assert find_row(table, "paper: Ann., N=1K")[2:] == [40.7, 50.0, 53.7, 57.8, 62.7]
    assert find_row(table, "paper: Dist. from [72.4]")[2:] == ["N/A", 71.1, 71.3, 70.9, 70.8]
    assert find_row(table, "paper: Dist. from [74.2]")[2:] == ["N/A", 65.3, 71.8, 72.4, 72.5]
    assert find_row(table, "paper: Dist. - Ann.")[2:4] == [None, "+21.1"]
    printed = [row["Paper"] for row in find_cells(cells, Strategy="Teacher")]
    assert printed == [72.4, 74.2]


def test_halves_of_the_test_rows_are_told_where_all_runs_have_them(runs):
    def told():
        return [note for note in build(runs)[0].notes if " half of the rows" in note]

    paths = [path for kind in ("small", "dist") for path in runs.glob(f"wlp/{kind}-*/metrics.json")]
    for path in paths:
        assert path != paths[-1] or told() == []
        found = read_json(path)
        scores = {"new": found["score"] - 9, "shared": found["score"] + 9}
        parts = {half: {"metrics": {"entity_f1": score}} for half, score in scores.items()}
        write_json(path, {**found, "by": {"half": parts}})
    first, *others = told()
    arms = "Ann. 12.0, 12.0, 12.0, 12.0, 12.0; Dist. N/A, 51.0, 51.0, 51.0, 51.0"
    assert first == f"WLP, N=100, the new half of the rows: {arms}." and len(others) == 3
    write_json(path, {**found, "by": {"half": {"new": 5}}})
    with pytest.raises(UserError, match=r"metrics.json: 'by': 'new': must be an object"):
        told()


def test_a_missing_run_shows(runs):
    (runs / "wlp" / "small-n138-s1" / "metrics.json").unlink()
    for seed in (0, 1, 2):
        (runs / "wlp" / f"dist-n100-u1900-s{seed}" / "metrics.json").unlink()
    table, cells = build(runs)
    assert find_row(table, "Ann.")[3] == "21.0 ±1.4 (2/3)"
    assert find_row(table, "Dist. from")[3] == "missing"
    assert find_row(table, "Dist. - Ann.")[3] is None
    (gone,) = find_cells(cells, N="100", Budget="+$10", Strategy="Dist.")
    assert (gone["Seeds"], gone["Score"], gone["Seconds"]) == ("0/3", "missing", None)
    assert any(note.startswith("4 of 60 runs missing: wlp/") for note in table.notes)


def test_a_score_of_zero_is_a_score(runs):
    for seed in (0, 1, 2):
        write_run(runs, parse_run(f"small-n138-s{seed}"), 0.0)
    assert find_row(build(runs)[0], "Dist. - Ann.")[3] == "+60.0"


def test_no_runs_at_all_is_a_table_of_missing(tmp_path):
    table, cells = build(tmp_path)
    assert find_row(table, "Ann.")[2] == "missing"
    assert {row["Score"] for row in find_cells(cells)} == {"missing"}


def test_cells_have_planned_dollars_and_measured_seconds(runs):
    _, cells = build(runs)
    (ann,) = find_cells(cells, N="100", Budget="+$10", Strategy="Ann.")
    (dist,) = find_cells(cells, N="100", Budget="+$10", Strategy="Dist.")
    (teacher,) = find_cells(cells, N="100", Strategy="Teacher")
    assert (ann["Planned $"], ann["Seconds"]) == ("$9.88", "11")  # 38 labels at $0.26
    assert (teacher["Planned $"], teacher["Seconds"]) == ("$1.50", "11")  # 0.8 h at $1.875
    assert dist["Seconds"] == "22"  # the teacher's 11 and its own 11
    assert (dist["Unlabeled"], dist["Invalid %"], dist["Constant"]) == ("1,900", "2.5", "0.6")
    assert {row["GPU $ paper"] for row in find_cells(cells)} == {None}  # a CPU has no price


def test_gpu_time_is_priced_at_the_papers_and_at_todays_prices(tmp_path):
    write_runs(tmp_path, "table2", ["fever"], hardware=GPU, seconds=3599.0)
    _, cells = build(tmp_path, task="fever")
    (ann,) = find_cells(cells, N="100", Budget="+$0", Strategy="Ann.")
    (dist,) = find_cells(cells, N="100", Budget="+$15", Strategy="Dist.")
    today = price_gpu_hour(load_prices(), "A100-40GB", "today")[0]
    assert (ann["GPU $ paper"], dist["GPU $ paper"]) == ("$3.75", "$7.50")  # its teacher's too
    assert dist["GPU $ today"] == show_usd(2 * today)
    assert any("A100-40GB is $3.75" in note for note in cells.notes)


def test_where_the_budget_does_not_cover_the_teacher(tmp_path):
    table, cells = build(write_runs(tmp_path, "table2", ["nq"]), task="nq")
    dist = [row for row in table.rows if row[1].startswith("Dist. from")]
    assert dist[1][2:5] == ["N/A", "N/A", "60.0 ±0.0"]
    (row,) = find_cells(cells, N="1,000", Budget="+$5", Strategy="Dist.")
    assert (row["Score"], row["Seeds"], row["Labels"]) == ("N/A", "0/0", None)
    assert not any("released" in row[1] for row in table.rows)  # both rules agree
    assert find_cells(cells, N="1,000", Budget="+$0", Strategy="Ann.")[0]["Also"].startswith(
        "EM 22"
    )


def test_labels_by_an_llm_on_request(tmp_path):
    """LLM=1: a row a rule, named by who labeled; counts at both price lists; planned dollars."""
    for run in grid("table2", load_task("wlp"), "mini", (0, 1), llm=True):
        write_run(tmp_path, run, 33.0 + run.seed if run.strategy == "llm" else 20.0)
        if run.strategy == "llm":
            told = {"annotator": "simulated annotator (70% correct)", "llm_tokens": {"in": 10**6}}
            write_json(tmp_path / "wlp" / run.name / "s" / "annotation.json", told)
    table, cells = build(tmp_path, "--llm", seeds="0 1")
    name = "Human + simulated annotator (70% correct)"
    assert find_row(table, name)[2:4] == [None, "33.5 ±0.7"]
    assert find_row(table, f"{name}, released")[3] == "50.0 ±0.0"
    assert find_row(table, "labels bought / today")[2:4] == [None, "+217 / 32,693"]
    assert any("100, are not in the dollars" in note for note in table.notes)
    (cell,) = find_cells(cells, N="100", Budget="+$10", Strategy="LLM")
    assert (cell["LLM labels"], cell["At today's price"], cell["Labels"]) == (
        "217",
        "32,693",
        "317",
    )
    assert cell["Planned $"] == "$9.98"  # 217 at $0.046
    plain, _ = build(tmp_path, seeds="0 1")
    assert not any("annotator" in row[1] for row in plain.rows)


def test_notes_say_what_the_numbers_are(runs):
    (runs / "FOLDER").mkdir()
    table, _ = build(runs, "--data", str(runs / "FOLDER"))
    text = "\n".join(table.notes)
    for part in ("Entity F1", "1,000 test rows", "divided by 10", "rule:strict", "FOLDER"):
        assert part in text


def test_scores_of_different_settings_are_told_apart(runs):
    path = runs / "wlp" / "small-n138-s1" / "metrics.json"
    path.write_text(path.read_text().replace("rule:strict|", "rule:strict|case:kept|"))
    assert "2 different settings" in "\n".join(build(runs)[0].notes)


def test_an_encoder_beside_a_t5_is_no_different_setting(runs):
    for name, side in (("small-n138-s1", "text"), ("small-n138-s0", "token-ids")):
        path = runs / "wlp" / name / "metrics.json"
        text = path.read_text().replace("rule:strict|", f"rule:strict|released_side:{side}|")
        path.write_text(text)
    for path in runs.glob("wlp/*/metrics.json"):
        if path.parent.name not in ("small-n138-s1", "small-n138-s0"):
            text = path.read_text()
            path.write_text(text.replace("rule:strict|", "rule:strict|released_side:text|"))
    assert "different settings" not in "\n".join(build(runs)[0].notes)


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


# --- several tasks -------------------------------------------------------------------------


@pytest.mark.parametrize("name", plots.SCORES)
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_all_tasks_in_one_table(name, scale, tmp_path):
    shown = TABLES[name][1].split()
    write_runs(tmp_path, name, shown, scale, (0,))
    table, cells = build(tmp_path, "--scale", scale, table=name, task="all", seeds="0")
    titles = [load_task(task).title for task in shown]
    assert list(dict.fromkeys(r[0] for r in table.rows if r[0] in titles)) == titles
    assert list(dict.fromkeys(row[0] for row in cells.rows)) == titles
    assert {row["Score"] for row in find_cells(cells)} <= {
        *("20.0", "70.0", "60.0", "15.0", "40.0", "30.0", "N/A")
    }
    for each in (table, cells):
        lines = tables.to_markdown(each._replace(notes=())).splitlines()
        assert max(map(len, lines)) <= (140 if each is table else 180)


def test_tasks_that_the_paper_does_not_show_are_left_out(tmp_path):
    write_runs(tmp_path, "table10", ["fever"])
    table, _ = build(tmp_path, table="table10", task="wlp fever")
    assert {row[0] for row in table.rows} == {"FEVER", ""}


# --- the other tables ----------------------------------------------------------------------


def test_table3(tmp_path):
    table, cells = build(write_runs(tmp_path, "table3"), table="table3")
    score, rule, paper = table.rows
    assert score[:4] == ["WLP", "500", "10K", "strict"]
    assert score[4:] == ["21.0 ±1.0", "15.0 ±0.0", "70.0 ±0.0", "60.0 ±0.0", "+45.0"]
    assert rule[3:6] == ["released", "50.0 ±0.0", "50.0 ±0.0"]
    assert paper[3:] == ["paper", 67.4, 65.2, 74.2, 70.6, "+5.4"]
    assert [row["Strategy"] for row in find_cells(cells)] == [
        *("Teacher", "Ann.", "Dist.", "Self-Dist.")
    ]


def test_table4_says_between_which_budgets_ann_catches_up(tmp_path):
    def read(folder):
        table, _ = build(folder, table="table4", task="fever", seeds="0")
        return [dict(zip(table.columns, row, strict=True)) for row in table.rows]

    runs = write_runs(tmp_path, "table4", ["fever"], seeds=(0,))
    score, _, paper = read(runs)
    assert score["Ann. catches up"] == "never"
    assert (score["Dist. $"], score["Ann. $"], score["All $"]) == ("$10.05", "$103.20", "$1,289.48")
    assert (paper["Dist."], paper["Dist. $"], paper["Ann. $"]) == (74.2, "$101", "$1,032")
    assert (paper["All labels"], paper["All $"]) == (76.9, "$12,899")
    write_run(runs, parse_run("small-n10496-s0"), 60.0, task="fever")
    assert read(runs)[0]["Ann. catches up"] == "$103.20 to $1,289.48"
    write_run(runs, parse_run("small-n577-s0"), 90.0, task="fever")
    assert read(runs)[0]["Ann. catches up"] == "$7.48 to $9.93"
    write_run(runs, parse_run("small-n500-s0"), 90.0, task="fever")
    assert read(runs)[0]["Ann. catches up"] == "$0"
    (runs / "fever" / "small-n577-s0" / "metrics.json").unlink()
    assert read(runs)[0]["Ann. catches up"] == "missing"


def test_table9_has_each_printed_metric_beside_published_scores(tmp_path):
    runs = write_runs(tmp_path, "table9", ["stanceosaurus", "nq"], seeds=(0,))
    table, _ = build(runs, table="table9", task="stanceosaurus nq", seeds="0")
    assert [[row[2], *row[4:]] for row in table.rows] == [
        ["macro F1", "71.0", "71.0", None, 63.3, 61.0],
        ["micro F1", "70.0", "50.0", "0.6", 69.8, None],
        ["EM", "71.0", "71.0", None, 31.3, 35.2],
        ["F1", "70.0", "70.0", "0.6", 38.5, None],
    ]
    assert table.rows[0][3] == "Zheng et al., 2022"


def test_table10_at_paper_scale(tmp_path):
    write_runs(tmp_path, "table10", ["fever"], "paper", (0,))
    flags = ("--scale", "paper")
    table, cells = build(tmp_path, *flags, table="table10", task="fever", seeds="0")
    ours = ["20.0", "30.0", "40.0", "60.0", "60.0"]
    assert table.columns[-1] == "DistilBERT (Dist.)"
    assert table.rows[0] == ["FEVER", "1,000", "$279", "strict", *ours]
    assert table.rows[2] == ["", "", "", "paper", 49.8, 69.9, 70.7, 71.7, None]
    assert len(find_cells(cells, Strategy="BERT")) == 2
    distilled = find_cells(cells, Strategy="Dist. into an encoder")
    assert [row["Unlabeled"] for row in distilled] == ["182,000", "163,000"]
    assert [row["Planned $"] for row in distilled] == ["$149.46", "$149.64"]


def test_table10_says_which_models_a_scale_lacks(tmp_path):
    table, _ = build(tmp_path, table="table10", task="fever", seeds="0")
    lacking = [n for n in table.notes if re.search("no DistilBERT at scale mini", n)]
    assert len(lacking) == 1
    assert table.rows[0][5] is None and table.rows[0][4] == "missing"


def test_table11_starts_from_few_labels(tmp_path):
    table, _ = build(write_runs(tmp_path, "table11"), table="table11")
    assert table.rows[0][0] == "10 ($2.60)"
    assert find_row(table, "paper: Ann., N=100")[2:] == [9.1, 23.8, 37.1, 47.6]


# --- what must not be silent ---------------------------------------------------------------


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


ODD = {  # what metrics.json is or holds -> words of the error
    "[1]": "must be an object",
    "null": "must be an object",
    "{}": "no 'task'",
    '{"task": "fever"}': "no 'metric'",
    '"n": "x"': "'n': must be a whole number",
    '"metrics": 5': "'metrics': must be an object",
    '"signature": null': "'signature': must be a text",
    '"training": [1]': "'training': must be an object",
    '"provenance": [1]': "'provenance': must be an object",
    '"task": "fever"': "entity_f1 of task 'fever', not entity_f1 of 'wlp'",
    '"metric": "accuracy"': "accuracy of task 'wlp', not entity_f1 of 'wlp'",
    '"metrics": {"entity_f1": "x"}': "'entity_f1': must be a number",
    '"metrics": {"entity_f1": NaN}': "NaN is no number",
    '"metrics": {"entity_f1": null}': "'entity_f1': must be a number, not null",
    '"metrics": {"em": 3}': "no 'entity_f1', which is a number",
    '"training": {"seed": 0}': "of a run with seed 0, not of small-n138-s1",
    '"training": {"seed": 1, "labels": 100}': "of a run with labels 100, not of small-n138-s1",
    '"training": {"strategy": "dist"}': "of a run with strategy dist, not of small-n138-s1",
    '"training": {"unlabeled": 1900}': "of a run with unlabeled 1900, not of small-n138-s1",
    '"by": {"half": {"new": 5}}': "'by': 'new': must be an object",
    '"metrics": {"entity_f1": 5000}': "no percentage",
    '"settings": 5': "'settings': must be an object",
    '"seconds": {"load": []}': "'load': must be a number",
    '"training": {"seconds": 5}': "'seconds': must be an object",
    '"n": 500': "scored on other rows (500)",
}


@pytest.mark.parametrize("text", ODD)
def test_a_metrics_json_that_is_none_of_this_table_is_refused_by_name(runs, text):
    path = runs / "wlp" / "small-n138-s1" / "metrics.json"
    if text.startswith('"'):
        whole = json.loads(path.read_text())
        text, key = json.dumps({**whole, **json.loads(f"{{{text}}}")}), text
    else:
        key = text
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        build(runs)
    assert "small-n138-s1/metrics.json" in str(caught.value) and ODD[key] in str(caught.value)


def test_runs_of_another_scale_are_not_read_unasked(tmp_path):
    """small-n1000-s0 is N = 1K at scale paper and one of Table 4's at scale mini."""
    for words, place in (("--scale paper", "runs/paper"), ("--data a/notes", "runs/mini-notes")):
        assert plots.parse_args(["table2", *words.split()]).runs == place
    assert plots.parse_args(["fig2", "--scale", "paper", "--runs", "x"]).runs == "x"


def test_a_folder_of_runs_that_is_not_there_is_no_table_of_missing_runs(tmp_path):
    with pytest.raises(UserError, match=r"--runs .*nosuch: no such folder"):
        build(tmp_path / "nosuch")


def test_runs_on_other_rows_of_equal_number_are_refused(runs):
    for seed, digest in ((0, "a"), (1, "b")):
        path = runs / "wlp" / f"small-n100-s{seed}" / "metrics.json"
        change(path, provenance={"data_sha256": digest})
    with pytest.raises(UserError, match="scored on other rows"):
        build(runs)


def test_a_card_without_a_price_leaves_the_scores_and_a_row_to_add(tmp_path):
    card = {"device": "cuda", "gpu": "Cray X-MP", "gpus": 1}
    write_runs(tmp_path, "table2", hardware=card)
    table, cells = build(tmp_path)
    assert find_row(table, "Ann.")[2] == "21.0 ±1.0"
    assert {row["GPU $ paper"] for row in find_cells(cells)} == {None}
    assert any("paper,gpu,Cray X-MP,hour,USD" in note for note in cells.notes)


def test_every_seeds_score_stands_in_the_cells(runs):
    _, cells = build(runs)
    (ann,) = find_cells(cells, N="100", Budget="+$10", Strategy="Ann.")
    assert ann["By seed"] == "20.00 21.00 22.00"


def test_a_score_below_the_constant_predictor_is_marked(runs):
    for seed in (0, 1, 2):
        write_run(runs, parse_run(f"small-n138-s{seed}"), 0.2)
    table, cells = build(runs)
    assert find_row(table, "Ann.")[2:4] == ["21.0 ±1.0", "0.2 ±0.0 ↓"]
    assert "↓: below the constant predictor; between two such scores nobody has won." in table.notes
    assert "↓" not in tables.to_csv(cells)


def test_cells_that_were_never_bought_say_so_themselves(tmp_path):
    """54 labels, 300 unlabeled rows and 20 test rows: what more dollars can't buy."""
    entry = {"title": "Mine", "metric": "classes", "report": "accuracy", "prefix": "mine: "}
    entry |= {"labels": ["a", "b"], "max_source_length": 32, "max_target_length": 8}
    entry |= {"usd_per_label": 0.1, "labels_n": [30], "budgets": [2, 4, 8]}
    entry |= {"teacher_gpu_hours": 0.1, "distill_gpu_hours_per_100k": 500, "gpu": "A100-40GB"}
    entry |= {"rows": {"train": 54, "unlabeled": 300}}
    (tmp_path / "task.json").write_text(json.dumps(entry))
    METRICS["mine"] = METRICS["fever"]
    flags = ("--data", str(tmp_path))
    try:
        for run in grid("table2", load_task(f"mine={tmp_path / 'task.json'}"), "mini", (0,)):
            write_run(tmp_path, run, 75.0 if run.strategy == "small" else 65.0, task="mine")
            change(tmp_path / "mine" / run.name / "metrics.json", n=20)
    finally:
        del METRICS["mine"]
    table, cells = build(tmp_path, *flags, task="mine", seeds="0")
    assert find_row(table, "Ann.")[2:] == ["75.0", "75.0", "75.0", "as +$4"]
    assert find_row(table, "labels bought")[2:] == ["+0", "+20", "+24 of 40", "+24 of 80"]
    assert find_row(table, "Dist. from")[2:] == ["N/A", "65.0", "65.0", "as +$4"]
    bought = find_row(table, "A100-40GB-h /")[2:]  # today's $1.99: 20 cents, then a cent a row
    assert bought[1:] == ["2h / 181", "3h / 300 of 382", "5h / 300 of 784"]
    assert find_row(table, "Dist. - Ann.")[3] == "-10.0 (n=20)"
    text = "\n".join(table.notes)
    assert "only x exist" in text and "so few test rows" in text
    assert not any(note.endswith(" exist") for note in table.notes)
    spent = {row["Labels"]: row["Planned $"] for row in find_cells(cells, Strategy="Ann.")}
    assert spent == {"30": "$0", "50": "$2", "54": "$2.40"}


def write_own(folder, table, scores, seeds=(0,), rows=None, **fields):
    """Runs of a task of one's own with 290 labels; `scores` are by the run's name."""
    entry = {"title": "Mine", "metric": "classes", "report": "accuracy", "prefix": "mine: "}
    entry |= {"labels": ["a", "b"], "max_source_length": 32, "max_target_length": 8}
    entry |= {"usd_per_label": 0.1, "teacher_gpu_hours": 0.1, "gpu": "A100-40GB"}
    entry |= {"distill_gpu_hours_per_100k": 500, "rows": {"train": 290, "unlabeled": 3000}}
    write_json(folder / "task.json", {**entry, **fields})
    METRICS["mine"] = METRICS["fever"]
    try:
        for run in grid(table, load_task("mine", folder), "mini", seeds):
            write_run(folder, run, scores[run.name.split("-u")[0]], task="mine")
            if rows:
                write_json(folder / "mine" / run.name / "row_scores.json", rows(run))
    finally:
        del METRICS["mine"]
    return build(folder, "--data", str(folder), table=table, task="mine", seeds="0")


def test_all_of_several_n_that_take_every_label_are_one(tmp_path):
    """Else Table 2 has a column twice, or after all the training no table at all."""
    scores = {"small-n100-s0": 60.0, "small-n200-s0": 61.0, "small-n290-s0": 62.0}
    scores |= {"teacher-n100-s0": 70.0, "teacher-n290-s0": 71.0, "dist-n100": 64.0, "dist-n290": 65}
    labels = {"labels_n": [100, 300, 400, 100], "budgets": [10, 20, 10]}
    table, _ = write_own(tmp_path, "table2", scores, **labels)
    assert table.columns[2:] == ["+$0", "+$10", "+$20"]
    assert [row[0] for row in table.rows if row[0]] == ["100 ($10)", "290 ($29)"]
    table, _ = write_own(tmp_path, "table10", scores, **labels)
    assert [row[1] for row in table.rows] == ["100", "290"]


def test_table4_pays_for_the_labels_there_are_and_compares_each_model_once(tmp_path):
    """190 labels are left: $19, whatever the budget; budgets stand in any order."""
    scores = {"small-n100-s0": 60.0, "small-n150-s0": 61.0, "small-n200-s0": 62.0}
    scores |= {"small-n290-s0": 75.0, "teacher-n100-s0": 80.0, "dist-n100": 70.0}

    def rows(run):
        right = [1.0] * int(10 * scores[run.name.split("-u")[0]])
        return {"numerators": right + [0.0] * (1000 - len(right)), "denominators": [1.0] * 1000}

    some = {"labels_n": [100], "budgets": [500, 10], "catch_up_usd": [5, 1000]}
    table, _ = write_own(tmp_path, "table4", scores, rows=rows, **some)
    (row,) = table.rows
    found = dict(zip(table.columns, row, strict=True))
    assert (found["Ann. $"], found["All $"]) == ("$19", "$19")
    assert found["Ann. catches up"] == "$10 to $19"
    text = "\n".join(table.notes)
    assert "Of 4 cells Dist. wins 3, Ann. 1; ties: 0." in text and "$500" not in text


def test_a_gap_compares_the_same_seeds_and_says_where_it_is_not_tested(tmp_path):
    """Ann. scores 20, 21, 22 by seed. A mean over all of them and Dist. of seed 0 alone would have
    a gap that no pair of runs has."""
    write_runs(tmp_path, "table2")
    for run in grid("table2", load_task("wlp"), "mini", (0, 1, 2)):
        place = tmp_path / "wlp" / run.name
        if run.name in ("small-n138-s2", "dist-n100-u1900-s0", "dist-n100-u1900-s1"):
            (place / "metrics.json").unlink()  # no seed has both
        elif run.name in ("dist-n100-u4200-s1", "dist-n100-u4200-s2"):
            (place / "metrics.json").unlink()
        elif run.name != "dist-n100-u6500-s1":  # of which no rows are known
            score = json.loads((place / "metrics.json").read_text())["score"]
            rows = [score / 100] * 1000
            write_json(place / "row_scores.json", {"numerators": rows, "denominators": [1] * 1000})
    gaps = find_row(build(tmp_path)[0], "Dist. - Ann.")[2:]
    assert gaps == [None, None, "+40.0", "+39.0 untested", "+39.0"]


def test_where_the_paper_says_that_ann_never_catches_up(tmp_path):
    runs = write_runs(tmp_path, "table4", ["stanceosaurus"], seeds=(0,))
    table, _ = build(runs, table="table4", task="stanceosaurus", seeds="0")
    paper = dict(zip(table.columns, table.rows[-1], strict=True))
    assert (paper["Ann."], paper["Ann. catches up"]) == ("N/A", "never")
    assert any("section 3.3" in note for note in table.notes)


@pytest.mark.parametrize("table", ["table2", "table4", "table11"])
def test_the_papers_limits_are_said_where_results_are_read(tmp_path, table):
    write_runs(tmp_path, table, seeds=(0,))
    text = "\n".join(build(tmp_path, table=table, seeds="0")[0].notes)
    assert "bias" in text and "carbon" in text and "hosted" in text


@pytest.mark.parametrize("text", ["", "table,task\n", "table,task\n2,wlp\n"])
def test_an_empty_file_of_the_papers_values_is_refused(tmp_path, text):
    path = tmp_path / "scores.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=r"scores\.csv: no rows with a column"):
        load_scores(path)


def test_the_llm_whose_price_buys_labels_is_named(runs, tmp_path):
    """Of one's own task it is today's, as all its prices."""

    def told(*flags, **more):
        return next(n for n in build(*flags, "--llm", **more)[0].notes if n.startswith("Human + "))

    assert "(text-davinci-003, paper)" in told(runs)
    scores = {"small-n100-s0": 60.0, "small-n200-s0": 61.0, "teacher-n100-s0": 70.0}
    own = tmp_path / "own"
    own.mkdir()
    write_own(own, "table2", {**scores, "dist-n100": 64.0}, labels_n=[100], budgets=[10])
    flags = (own, "--data", str(own))
    assert "(gpt-6-luna, today)" in told(*flags, task="mine", seeds="0")
