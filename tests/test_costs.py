"""costs.py: the paper's dollars to the cent, properties of budgets, grid, flags, ledger, faults."""

import csv
import json
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import pytest
from copied import copy_stage
from hypothesis import given, settings
from hypothesis import strategies as st

import costs
from data.costs.budget import make_terms
from data.costs.flags import load_scale, make_flags, pick_nearest
from data.costs.grid import TABLES
from data.costs.prices import match_gpu
from data.costs.rules import tell_progress, tell_work
from data.costs.runs import make_run, measure_rates, read_llm_use
from data.files import UserError, read_csv, read_json
from data.plots.printed import load_printed
from data.plots.results import load_scores
from data.tasks import load_task, load_tasks

ROOT = Path(__file__).resolve().parents[1]
PRICES = costs.load_prices()
TASKS = {task.name: task for task in load_tasks("all")}
SCORES = load_scores()
PAPER = list(TASKS)
TERMS = {name: make_terms(TASKS[name], PRICES) for name in PAPER}
OWN = {
    "title": "Mine",
    "metric": "classes",
    "prefix": "mine: ",
    "labels": ["yes", "no"],
    "max_source_length": 64,
    "max_target_length": 8,
    "usd_per_label": 0.05,
    "labels_n": [200, 400],
    "budgets": [10, 20],
    "gpu": "H100-80GB",
    "teacher_gpu_hours": {"200": 0.5},
    "distill_gpu_hours_per_100k": 12,
    "rows": {"train": 900, "unlabeled": 12000},
}


def run(*argv, capsys=None):
    """stdout of a command called in this process."""
    costs.main([str(each) for each in argv])
    return capsys.readouterr().out


def fail(*argv):
    """The one line of a command that the user got wrong."""
    with pytest.raises(costs.UserError) as caught:
        costs.main([str(each) for each in argv])
    text = str(caught.value)
    assert text and "\n" not in text
    return text


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


@pytest.fixture
def own_tasks(tmp_path):
    return "mine=" + str(write(tmp_path / "task.json", OWN))


# --- golden: what the paper prints ---------------------------------------------------------

BUDGETED = [row for row in SCORES if row["table"] in (2, 11) and row["budget_usd"]]
ANN = [row for row in BUDGETED if row["strategy"] == "small"]


def find_dist(row):
    keys = ("table", "task", "labels", "budget_usd")
    found = [r for r in BUDGETED if r["strategy"] == "dist" and all(r[k] == row[k] for k in keys)]
    assert len(found) == 1
    return found[0]


def test_there_are_66_cells():
    assert len(ANN) == 66
    assert sum(find_dist(row)["unlabeled"] is None for row in ANN) == 1  # nq, N=10K, +$50


@pytest.mark.parametrize(
    "row", ANN, ids=lambda row: f"{row['table']}-{row['task']}-{row['labels']}-{row['budget_usd']}"
)
def test_cell_of_tables_2_and_11(row):
    dist = find_dist(row)
    plan = costs.plan(TERMS[row["task"]], row["labels"], Fraction(row["budget_usd"]))
    assert plan["annotate"]["extra_labels"] == row["extra_labels"]
    if dist["unlabeled"] is None:
        assert plan["distill"] is None
    else:
        assert plan["distill"]["gpu_hours"] == dist["gpu_hours"]
        assert plan["distill"]["unlabeled"] // 1000 * 1000 == dist["unlabeled"]


@pytest.mark.parametrize("row", ANN, ids=lambda row: f"{row['task']}-{row['budget_usd']}")
def test_grid_at_paper_scale_has_the_printed_counts(row):
    table = f"table{row['table']}"
    cell = next(
        cell
        for cell in costs.cells(table, load_task(row["task"]), "paper")
        if (cell.labels, cell.budget_usd) == (row["labels"], row["budget_usd"])
    )
    dist, rows = find_dist(row), TASKS[row["task"]].rows["unlabeled"]
    assert cell.extra_labels == row["extra_labels"]
    assert cell.gpu_hours == dist["gpu_hours"]
    if dist["unlabeled"] is None:
        assert (cell.unlabeled, cell.runs["dist"]) == (None, None)
    else:  # five cells of Table 11 ask for more rows than Table 5 has
        assert cell.unlabeled == min(rows, dist["unlabeled"])
        assert bool(cell.notes) == (dist["unlabeled"] > rows)


@pytest.mark.parametrize(
    ("task", "printed"),
    [
        ("wlp", "3,111"),
        ("stanceosaurus", "4,415"),
        ("fever", None),  # $13,544 is printed; 104,966 x $0.129 is $13,541
        ("multipit_id", "18,443"),
        ("multipit_gen", None),  # $18,443 is printed, MultiPIT-Id's total; ours is $18,429
        ("nq", "11,271"),
    ],
)
def test_totals_of_table_1(task, printed):
    total = TASKS[task].rows["train"] * TERMS[task].usd_per_label
    paper = load_printed(1)[task, "total_usd"]
    assert (f"{round(total):,}" == printed) == (f"${round(total):,}" == paper)


@pytest.mark.parametrize(
    ("task", "initial", "thousand", "teacher", "distill"),
    [
        ("wlp", 1300, 260, "67.5", 435),
        ("stanceosaurus", 1820, 364, "60", 225),
        ("fever", 645, 129, "22.5", 78),
        # $37.5 (20 h) is printed, but the counts of Table 2 follow from 17.33 h
        ("multipit_id", 1000, 200, "32.49375", 123),
        ("multipit_gen", 1855, 371, "45", 163),
        ("nq", 645, 129, "30", 86),
    ],
)
def test_breakdown_of_table_6(task, initial, thousand, teacher, distill):
    terms = TERMS[task]
    assert 5000 * terms.usd_per_label == initial
    assert 1000 * terms.usd_per_label == thousand
    assert costs.price_distilling(terms, 5000, 0) == Fraction(teacher)
    both = costs.price_distilling(terms, 5000, 100_000)
    assert both - Fraction(teacher) == distill


@pytest.mark.parametrize(
    ("task", "ours", "paper"),
    [
        ("wlp", "502.5", 502),
        ("stanceosaurus", "285", 279),  # the paper's own parts: 60 + 225
        ("fever", "100.5", 101),
        ("multipit_id", "155.49375", 161),  # the paper's 37.5 + 123
        ("multipit_gen", "245.5", 245),  # at N = 10K
        ("nq", "146", 148),  # the paper's own parts at N = 10K: 60 + 86
    ],
)
def test_distillation_budgets_of_table_4(task, ours, paper):
    row = next(r for r in SCORES if (r["table"], r["task"], r["strategy"]) == (4, task, "dist"))
    assert row["budget_usd"] == paper
    assert costs.price_distilling(TERMS[task], row["labels"], row["unlabeled"]) == Fraction(ours)
    consistent = task not in ("stanceosaurus", "multipit_id", "nq")
    assert (abs(Fraction(ours) - paper) <= Fraction("0.5")) == consistent


@pytest.mark.parametrize(
    ("task", "labels"), [("wlp", 5000), ("fever", 8000), ("multipit_id", 9900), ("nq", 25744)]
)
def test_catch_up_budgets_of_table_4(task, labels):
    usd = TASKS[task].catch_up_usd[0]
    assert costs.plan(TERMS[task], 5000, usd)["annotate"]["extra_labels"] == labels


def test_gpt_3_5_labels_of_appendix_e():
    found = {}
    for task in ("wlp", "stanceosaurus"):
        llm = costs.plan(TERMS[task], 1000, Fraction(200))["llm"]
        found[task] = (llm["extra_labels"], llm["usd_per_label"])
    assert found == {
        "wlp": (4347, Fraction("0.046")),
        "stanceosaurus": (2739, Fraction("0.073")),
    }
    assert costs.plan(TERMS["fever"], 1000, Fraction(200))["llm"] is None


def test_stanceosaurus_at_10k_as_in_section_4_1():
    # "only 35K unlabeled data are used when N = 10K", at +$200
    plan = costs.plan(TERMS["stanceosaurus"], 10_000, Fraction(200))
    assert plan["distill"]["unlabeled"] // 1000 == 35


def test_scores_are_those_of_six_tables_once():
    keys = [
        (r["table"], r["task"], r["strategy"], r["labels"], r["budget_usd"], r["metric"])
        for r in SCORES
    ]
    # the two cells that the copy lost, and Table 4's empty catch-up cell, share no key either
    assert len(keys) == len(set(keys)) == 240
    assert {r["table"] for r in SCORES} == {2, 3, 4, 9, 10, 11}
    assert all(r["score"] is not None or r["note"] for r in SCORES)
    assert all(0 <= r["score"] <= 100 for r in SCORES if r["score"] is not None)
    assert {r["task"] for r in SCORES} == set(PAPER)


# --- properties ----------------------------------------------------------------------------

tasks = st.sampled_from(PAPER)
labels = st.integers(1, 20_000)
cents = st.integers(0, 10**7).map(lambda n: Fraction(n, 100))
quick = settings(max_examples=150, deadline=None)


@quick
@given(tasks, labels, cents)
def test_spending_never_exceeds_the_budget(task, n, budget):
    plan = costs.plan(TERMS[task], n, budget)
    shown = costs.to_json(plan)
    for part in ("annotate", "distill", "llm"):
        if plan[part]:
            assert 0 <= plan[part]["usd"] <= budget
            assert shown[part]["usd"] <= shown["budget_usd"]
    label = TERMS[task].usd_per_label
    assert plan["annotate"]["usd"] + label > budget  # nothing that could be bought is left


@quick
@given(tasks, labels, cents, cents)
def test_more_budget_never_buys_less(task, n, one, two):
    less, more = (costs.plan(TERMS[task], n, budget) for budget in sorted((one, two)))
    assert less["annotate"]["extra_labels"] <= more["annotate"]["extra_labels"]
    if less["distill"]:
        assert less["distill"]["unlabeled"] <= more["distill"]["unlabeled"]
        assert less["distill"]["gpu_hours"] <= more["distill"]["gpu_hours"]


@quick
@given(tasks, labels, st.integers(1, 10**6))
def test_plan_and_its_inverse_agree(task, n, count):
    terms = TERMS[task]
    at_cost = costs.plan(terms, n, count * terms.usd_per_label)
    assert at_cost["annotate"]["extra_labels"] == count
    usd = costs.price_distilling(terms, n, count)
    assert costs.plan(terms, n, usd)["distill"]["unlabeled"] == count
    below = costs.plan(terms, n, usd - Fraction(1, 10**9))["distill"]
    assert (below["unlabeled"] if below else 0) == count - 1


@quick
@given(st.integers(0, 10**6), st.integers(1, 9999))
def test_cents_do_not_drift(count, price_cents):
    price = costs.parse_amount(f"0.{price_cents:04d}", "price")
    assert math.floor(sum([price] * (count % 500), Fraction(0)) / price) == count % 500
    assert math.floor(count * price / price) == count


def test_three_dimes_buy_three_labels():
    terms = make_terms(TASKS["wlp"], PRICES, usd_per_label=0.1)
    budget = costs.parse_amount(0.1, "a") + costs.parse_amount(0.2, "b")
    assert math.floor((0.1 + 0.1 + 0.1) / 0.1) == 3 and math.floor(0.3 / 0.1) == 2  # floats
    assert costs.plan(terms, 100, budget)["annotate"]["extra_labels"] == 3


@quick
@given(tasks, st.integers(1, 30_000), st.integers(1, 30_000))
def test_teacher_hours_grow_with_labels(task, one, two):
    less, more = (costs.count_teacher_hours(TERMS[task], n) for n in sorted((one, two)))
    assert 0 < less <= more


@quick
@given(
    st.sampled_from(["small", "teacher", "dist", "self", "llm"]),
    st.integers(0, 10**6),
    st.integers(0, 10**6),
    st.integers(0, 10**4),
    st.integers(0, 99),
    st.sampled_from(["small", "base", "large"]),
    st.sampled_from(["large", "xl", "xxl"]),
)
def test_run_names_read_back(strategy, n, unlabeled, llm, seed, student, teacher):
    made = make_run(
        strategy,
        n,
        seed,
        unlabeled if strategy in ("dist", "self") else 0,
        llm if strategy == "llm" else 0,
        "small" if strategy == "teacher" else student,
        teacher if strategy in ("dist", "teacher") else "xxl",
    )
    assert costs.parse_run(made.name) == made


def test_names_of_distilled_encoders():
    """Only distilling takes an encoder as a size, and its settings are of its own name."""
    for kind in ("bert", "distilbert"):
        made = make_run("dist", 100, 0, unlabeled=1000, student=kind)
        assert made.name == f"dist-{kind}-n100-u1000-s0" and costs.parse_run(made.name) == made
        assert (made.encoder, made.recipe, made.needs) == (
            kind,
            f"dist-{kind}",
            ("teacher-n100-s0",),
        )
        flags = costs.make_flags(load_task("fever"), "paper", f"dist-{kind}")
        assert flags["student"] == f"{kind}-base-uncased" and "model" not in flags
        assert flags["classes"] == ["REFUTES", "SUPPORTS"] and flags["prefix"] == "fever: "
        assert costs.parse_run(f"{kind}-n100-s0").encoder == kind
        assert costs.parse_run("dist-n100-u1000-s0").encoder is None
        for name in (f"small-{kind}-n100-s0", f"{kind}-{kind}-n1-s0", f"teacher-{kind}-n1-s0"):
            with pytest.raises(UserError, match="not a name such as"):
                costs.parse_run(name)


@quick
@given(st.floats(1e-12, 10**6))
def test_a_float_counts_as_the_decimal_that_it_prints(value):
    assert float(costs.parse_amount(value, "x")) == value


# --- the grid ------------------------------------------------------------------------------


def test_grid_of_table_2_wlp_at_mini_scale():
    names = [run.name for run in costs.grid("table2", load_task("wlp"), "mini", (0,))]
    assert [n for n in names if n.startswith("small-n1")] == [
        "small-n100-s0",
        "small-n138-s0",
        "small-n176-s0",
    ]
    dist = [n for n in names if n.startswith("dist-n100-")]
    assert dist == [f"dist-n100-u{u}-s0" for u in (1900, 4200, 6500, 11100)]
    assert len(names) == 20


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_grids_list_each_run_once_and_after_what_it_needs(table, scale):
    for task in TABLES[table][1].split():
        seen = []
        for made in costs.grid(table, load_task(task), scale, (0, 3)):
            assert made.name not in seen
            assert set(made.needs) <= set(seen)
            seen.append(made.name)
        assert len(seen) % 2 == 0  # as many of each seed


def test_tables_share_runs():
    def names(table):
        return {run.name for run in costs.grid(table, load_task("fever"), "mini")}

    assert names("table10") & names("table2")
    assert {"small-n500-s0", "teacher-n500-s0"} <= names("table2") & names("table3")
    assert names("table11") < names("fig3") | names("table11")
    assert {run.name for run in costs.grid("table9", TASKS["wlp"], "mini")} == {"teacher-n1196-s0"}


@pytest.mark.parametrize("task", PAPER)
def test_mini_scale_is_the_paper_divided_by_ten(task):
    cells = (costs.cells("table2", load_task(task), scale) for scale in ("paper", "mini"))
    pairs = zip(*cells, strict=True)
    for paper, mini in pairs:
        assert mini.labels * 10 == paper.labels
        assert mini.budget_usd * 10 == paper.budget_usd
        assert mini.extra_labels == paper.extra_labels // 10
        assert (mini.unlabeled or 0) * 10 == (paper.unlabeled or 0)
        assert mini.initial_usd * 10 == paper.initial_usd
        assert (mini.runs["dist"] is None) == (paper.runs["dist"] is None)
        if mini.distill_usd:
            assert mini.distill_usd * 10 == paper.distill_usd <= paper.budget_usd


def test_llm_labels_on_request():
    plain = costs.grid("table2", load_task("wlp"), "mini")
    more = costs.grid("table2", load_task("wlp"), "mini", llm=True)
    added = {run.name for run in more} - {run.name for run in plain}
    assert "llm-n100-g434-s0" in added and len(added) == 8
    assert "llm-n0-g434-s0" in [run.name for run in costs.grid("fig6", load_task("wlp"), "mini")]


def test_grid_command(capsys):
    line = ("grid", "--for", "table2", "--task", "wlp", "--scale", "mini", "--seeds", "1 0 1")
    names = run(*line, capsys=capsys).split()
    assert names == [run.name for run in costs.grid("table2", load_task("wlp"), "mini", (1, 0))]
    found = json.loads(run(*line, "--json", capsys=capsys))
    assert [each["name"] for each in found["tasks"][0]["runs"]] == names
    assert found["tasks"][0]["cells"][1]["extra_labels"] == 38
    everything = run("grid", "--for", "table10", "--task", "all", capsys=capsys).split()
    assert {line.split("/")[0] for line in everything} == {"stanceosaurus", "fever"}


def test_sizes_that_a_scale_lacks_are_left_out_with_a_note():
    for table, word in (("fig4", "T5 of size base"), ("fig5", "T5 of size xl")):
        cells = costs.cells(table, load_task("wlp"), "mini")
        runs = [run for cell in cells for group in cell.runs.values() for run in group or ()]
        assert {run.student for run in runs} <= {"small", "large"}
        assert {run.teacher for run in runs} <= {"large", "xxl"}
        assert any(word in note for note in cells[0].notes)
        full = {run.name for run in costs.grid(table, load_task("wlp"), "paper")}
        assert any(size in name for name in full for size in ("base", "xl"))
    cells = costs.cells("table10", load_task("wlp"), "paper")
    assert set(cells[0].runs) == {"small", "teacher", "dist"}
    assert any("BERT only tells classes" in note for note in cells[0].notes)


def test_a_tasks_own_models_of_a_scale_count(tmp_path):
    task = replace(TASKS["wlp"], scales={"mini": {"models": {"base": "some/folder"}}})
    names = {run.name for run in costs.grid("fig4", task, "mini")}
    assert "small-base-n215-s0" in names
    assert not any("base" in run.name for run in costs.grid("fig4", load_task("wlp"), "mini"))


def test_several_tasks(capsys):
    def choose(table, words):
        return [task.name for task in costs.choose_tasks(table, load_tasks(words))]

    assert choose("table10", "wlp fever") == ["fever"]
    assert choose("table10", "wlp") == ["wlp"]
    assert choose("fig2", "fever wlp fever") == ["fever", "wlp"]
    assert len(choose("table2", "all")) == 6
    assert "known" in fail("grid", "--for", "table2", "--task", "wlp nosuch")
    names = run("grid", "--for", "table2", "--task", "wlp fever", capsys=capsys).split()
    assert {name.split("/")[0] for name in names} == {"wlp", "fever"} and len(names) == 40


def write_rules(tmp_path, capsys, *argv):
    """The lines of the file of rules, {target: (prerequisites, recipe)} and {variable: value}."""
    made = ("--made", tmp_path, "--prepared", tmp_path, "--runs", tmp_path)
    path = run("rules", *argv, *made, capsys=capsys).strip()
    text = Path(path).read_text(encoding="utf-8")
    found = re.findall(r"^(\S+): ?(.*)\n((?:\t.*\n)*)", text, re.MULTILINE)
    return {target: (needs, recipe) for target, needs, recipe in found}, path


def test_rules_for_make(tmp_path, capsys):
    rules, _ = write_rules(tmp_path, capsys, "--for", "table2 fig2", "--task", "wlp")
    work = rules["table2"][0].split()
    metrics = {name for name in work if name.endswith("/metrics.json")}
    runs = costs.grid("table2", TASKS["wlp"], "mini")
    assert metrics == {f"$(RUNS)/wlp/{run.name}/metrics.json" for run in runs} <= set(rules)
    # one pass labels as many rows as any run of the two needs
    labels = "$(RUNS)/wlp/teacher-n100-s0/11100.labels"
    needs, recipe = rules["$(RUNS)/wlp/dist-n100-u1000-s0/metrics.json"]
    assert labels in needs.split() and labels in work and needs.startswith("| ")
    assert "--num-unlabeled 1000 --seed 0 $(TRAIN_FLAGS) $(DIST_FLAGS)" in recipe
    assert "--num-unlabeled 11100 --seed 0" in rules[labels][1]
    assert work.index("$(RUNS)/wlp/teacher-n100-s0/metrics.json") < work.index(labels)


def test_rules_have_a_tasks_flags_of_evaluation(tmp_path, capsys):
    asked = ("--for", "table2", "--task", "multipit_gen wlp")
    rules, _ = write_rules(tmp_path, capsys, *asked)
    for target, (_, recipe) in rules.items():
        if target.endswith("/metrics.json"):
            assert ("--bertscore-model package:" in recipe) == ("multipit_gen" in target)


def test_rules_are_quoted_for_make_and_the_shell(tmp_path, capsys):
    path = write(tmp_path / "mine.json", {**OWN, "prefix": "it's #1 for $5: "})
    _, rules = write_rules(tmp_path, capsys, "--for", "table2", "--task", path)
    text = f"PY := printf '%s\\n'\nRUNS := {tmp_path}/none\nthen := && true\n"
    text += f"told := true\ninclude {rules}\n"
    text += "%/about.json %.py:\n\t@:\n%.labels:\n\t@:\n"
    made = ["make", "-s", "-f", write(tmp_path / "Makefile", text)]
    target = f"{tmp_path}/none/mine/small-n200-s0/metrics.json"
    (tmp_path / "none/mine/small-n200-s0").mkdir(parents=True)
    done = subprocess.run([*made, target], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "it's #1 for $5: " in done.stdout.splitlines()


# --- flags ---------------------------------------------------------------------------------


def read_flags(text):
    words = shlex.split(text)
    return dict(zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("task", PAPER)
@pytest.mark.parametrize("strategy", ["small", "teacher", "dist", "self"])
def test_flags_at_paper_scale_are_table_8(task, strategy, capsys):
    lengths = {"wlp": (128, 128), "multipit_id": (64, 8)}
    lengths |= {"multipit_gen": (32, 32), "nq": (32, 32)}
    line = ("flags", "--task", task, "--scale", "paper", "--strategy", strategy)
    flags = read_flags(run(*line, capsys=capsys))
    found = (int(flags["--max-source-length"]), int(flags["--max-target-length"]))
    assert found == lengths.get(task, (128, 8))
    assert flags["--batch-size"] == "32"
    assert flags["--epochs"] == ("20" if strategy == "teacher" else "50")
    fast = task == "nq" and strategy != "teacher"
    assert float(flags["--learning-rate"]) == (1e-3 if fast else 3e-5)
    assert flags["--prefix"] == f"{task}: "
    model = flags["--student" if strategy in ("dist", "self") else "--model"]
    small, large = ("t5-small-ssm", "t5-xxl-ssm") if task == "nq" else ("small", "xxl")
    assert model.startswith("google/") and model.endswith(large if strategy == "teacher" else small)


def test_flags_of_a_run(capsys):
    def flags(*argv):
        return read_flags(run("flags", "--task", "wlp", *argv, capsys=capsys))

    dist = flags("--run", "dist-n100-u1900-s2")
    assert (dist["--num-unlabeled"], dist["--seed"]) == ("1900", "2")
    assert dist["--student"] == "data/world/models/student"
    small = flags("--run", "small-n138-s0", "--scale", "paper")
    assert (small["--num-labels"], small["--seed"]) == ("138", "0")
    base = flags("--run", "small-base-n1000-s0", "--scale", "paper")
    assert base["--model"] == "google/t5-v1_1-base"
    assert flags("--strategy", "small")["--max-source-length"] == "64"
    assert flags("--strategy", "small", "--real-text")["--max-source-length"] == "128"


def test_flags_of_every_kind():
    shown = costs.show_flags({"a": 1, "b": True, "c": False, "d": None, "e": "x: "})
    assert shlex.split(shown) == ["--a", "1", "--b", "--no-c", "--e", "x: "]


# --- a task of one's own -------------------------------------------------------------------


def test_own_task(own_tasks, capsys):
    line = ("--task", own_tasks)
    plan = json.loads(run("plan", *line, "--labels", 200, "--budget", 10, "--json", capsys=capsys))
    assert plan["annotate"] == {"extra_labels": 200, "usd": 10}
    assert plan["gpu"] == "H100-80GB"
    # $10 - 0.5 h x $3.99, at 12 h x $3.99 for 100K examples; only today's list prices an H100
    assert plan["distill"]["unlabeled"] == math.floor((10 - 0.5 * 3.99) / (12 * 3.99 / 1e5))
    names = run("grid", "--for", "table2", *line, capsys=capsys).split()
    # its counts stand as they are, at any scale; capped by the rows there are
    assert names[:2] == ["small-n200-s0", "small-n400-s0"]
    assert "dist-n200-u12000-s0" in names
    for table in ("table3", "table9", "fig2"):
        assert run("grid", "--for", table, *line, capsys=capsys)
    assert "--prefix 'mine: '" in run("flags", *line, "--strategy", "small", capsys=capsys)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"title": None}, "title"),
        ({"labels_n": "1000"}, "labels_n"),
        ({"labels_n": []}, "labels_n"),
        ({"labels_n": [0]}, "labels_n"),
        ({"budgets": [-5]}, "budgets"),
        ({"budgets": ["ten"]}, "budgets"),
        ({"max_source_length": 0}, "max_source_length"),
        ({"max_target_length": True}, "max_target_length"),
        ({"usd_per_label": 0}, "usd_per_label"),
        ({"usd_per_label": "free"}, "usd_per_label"),
        ({"teacher_gpu_hours": {"many": 1}}, "teacher_gpu_hours"),
        ({"distill_gpu_hours_per_100k": -1}, "distill_gpu_hours_per_100k"),
        ({"rows": {"train": "all"}}, "train"),
        ({"gpu": "RTX-9"}, "RTX-9"),
        ({"Mini": {"small": {}}}, "did you mean 'mini'?"),
    ],
)
def test_a_fault_in_an_entry_is_named(tmp_path, change, named):
    path = write(tmp_path / "mine.json", {**OWN, **change})
    text = fail("grid", "--for", "table2", "--task", path)
    assert named in text and ("mine" in text or named == "RTX-9")


def test_settings_for_no_strategy_are_named(tmp_path):
    path = write(tmp_path / "mine.json", {**OWN, "mini": {"al": {"dropout": 0}}})
    told = "task 'mine': 'al' at scale 'mini' is none of models, evaluate"
    assert told in fail("flags", "--task", path, "--scale", "mini", "--strategy", "small")


@pytest.mark.parametrize(
    "field", ["metric", "prefix", "budgets", "usd_per_label", "max_source_length"]
)
def test_a_missing_field_is_named(tmp_path, field):
    entry = {key: value for key, value in OWN.items() if key != field}
    path = write(tmp_path / "mine.json", entry)
    assert field in fail("grid", "--for", "table2", "--task", path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"divide_by": 0}, "'divide_by'"),
        ({"divide_by": "10"}, "'divide_by'"),
        ({"flags": []}, "'flags'"),
        ({"flags": {"small": 5}}, "'small'"),
        ({"models": None}, "'models'"),
        ({"title": 5}, "'title'"),
        ({"like": "nosuch"}, "unknown scale 'nosuch'"),
        ({"seconds_a_step": 5}, "'seconds_a_step'"),
        ({"seconds_a_step": {"small": "x"}}, "'small': must be a number"),
        ({"million_parameters": {"xxl": "x"}}, "'xxl': must be a whole number"),
        ({"models": {"xxl": {}}}, "'xxl': must be a text"),
        ({"flags": {"small": {"epochs": {}}}}, "'epochs': must be a number"),
        ({"flags": {"small": {"near": []}}}, "'near' is empty"),
        ({"flags": {"small": {"near": [{"epochs": 1}]}}}, "no 'labels'"),
        ({"flags": {"small": {"near": [{"labels": 0}]}}}, "'labels': 0"),
        ({"recipes": {"x": [1]}}, "'x': must be an object"),
    ],
)
def test_a_fault_in_a_scale_is_named(tmp_path, change, named):
    scales = json.loads((ROOT / "data" / "scales.json").read_text(encoding="utf-8"))
    path = write(tmp_path / "scales.json", {"mine": {**scales["mini"], **change}})
    with pytest.raises(costs.UserError) as stop:
        load_scale("mine", path)
    assert named in str(stop.value) and "\n" not in str(stop.value)


def test_a_scale_is_like_others_and_its_own_words_win(tmp_path):
    entry = {"title": "a", "divide_by": 2, "models": {}, "flags": {"small": {"epochs": 1}}}
    more = {"like": "a", "flags": {"small": {"seed": 3}}}
    path = write(tmp_path / "s.json", {"a": entry, "b": more, "c": {"like": "b", "title": "c"}})
    scale = load_scale("c", path)
    assert scale["title"] == "c" and scale["flags"]["small"] == {"epochs": 1, "seed": 3}


# --- prices, overrides, conversions --------------------------------------------------------


def test_overrides(capsys):
    def plan(*argv):
        line = ("plan", "--task", "wlp", "--labels", 5000, "--budget", 100, "--json", *argv)
        return json.loads(run(*line, capsys=capsys))

    paper = plan()
    assert plan("--usd-per-label", "0.13")["annotate"]["extra_labels"] == 769
    assert plan("--usd-per-1k-tokens", "0.01")["llm"]["extra_labels"] == 4347
    # the same work on the GPU that counts twice, at twice the price
    a100 = plan("--gpu", "A100-40GB")["distill"]
    assert a100["unlabeled"] == paper["distill"]["unlabeled"]
    assert a100["teacher_gpu_hours"] == 18 and a100["gpu_hours"] == 27
    half = plan("--gpu-usd-per-hour", "0.9375")["distill"]
    assert half["unlabeled"] > 2 * paper["distill"]["unlabeled"]
    assert plan("--gpu", "h100-80gb")["gpu_usd_per_hour"] == 3.99  # only today's list has it
    assert plan("--price-list", "today")["gpu_usd_per_hour"] == 0.995  # half of Lambda's A100
    new = plan("--gpu", "B300", "--gpu-speed", "10", "--gpu-usd-per-hour", "8")
    assert new["distill"]["teacher_gpu_hours"] == 1.8
    with pytest.raises(costs.UserError, match="--gpu-speed: name its GPU by --gpu"):
        plan("--gpu-speed", "10", "--gpu-usd-per-hour", "8")
    today = plan("--llm-model", "gpt-4o-mini")["llm"]
    assert today["usd_per_label"] == pytest.approx((2251 * 0.15 + 49 * 0.60) / 1e6)


@pytest.mark.parametrize(
    ("flags", "key", "value"),
    [
        (["--unlabeled", 100000, "--at-labels", 5000], "distill_usd", 435),
        (["--unlabeled", 100000, "--at-labels", 5000], "usd", 502.5),
        (["--usd", 200], "llm_labels", 4347),
        (["--usd", 200], "labels", 769),
        (["--usd", 200], "tokens", 10**7),
        (["--usd", 200], "unlabeled", 42528),
        (["--usd", 7.5], "gpu_hours", 4),
        (["--usd", 67.5, "--gpu", "A100-40GB"], "gpu_hours", 18),
    ],
)
def test_convert(flags, key, value, capsys):
    found = json.loads(run("convert", "--task", "wlp", *flags, "--json", capsys=capsys))
    assert found[key] == value
    assert key in run("convert", "--task", "wlp", *flags, capsys=capsys)


def test_gpus_are_recognised_as_drivers_spell_them():
    for device, name in {
        "NVIDIA A100-SXM4-40GB": "A100-40GB",
        "NVIDIA H100 80GB HBM3": "H100-80GB",
        "NVIDIA A40": "A40",
        "NVIDIA A100 80GB PCIe": "A100-80GB",
        "NVIDIA H100 PCIe": "H100-PCIe",
        "NVIDIA GeForce RTX 4090": "RTX-4090",
        "NVIDIA RTX A4000": "RTX-A4000",  # no A40
        "NVIDIA L40S": "L40S",
        "NVIDIA L4": "L4",
        "Tesla T4": "T4",
    }.items():
        assert match_gpu(PRICES, device) == name
    for other in (  # not in the list: as it is
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA GH200 480GB",
        "NVIDIA RTX 6000 Ada Generation",
    ):
        assert match_gpu(PRICES, other) == other


def test_speeds_of_the_list_are_those_of_its_tflops():
    """A card without bf16 works in fp32; the A40's is the paper's own figure."""
    with open(costs.DATA / "prices.csv", newline="") as file:
        for row in csv.DictReader(file):
            if row["gib"] and row["name"] != "A40":
                speed = float(row["bf16_tflops"] or row["fp32_tflops"]) / 312
                assert float(row["ratio"]) == pytest.approx(speed, rel=0.01), row["name"]


HEAD = "list,item,name,unit,usd,ratio,source,date\n"
GOOD = "paper,label,wlp,label,0.26,,Table 1,2023\n"


@pytest.mark.parametrize(
    ("rows", "line", "named"),
    [
        ("paper,label,wlp,label,cheap,,Table 1,2023\n", 2, "usd"),
        ("paper,label,wlp,label,,,Table 1,2023\n", 2, "usd"),
        ("paper,label,wlp,label,nan,,Table 1,2023\n", 2, "usd"),
        ("paper,label,wlp,label,-1,,Table 1,2023\n", 2, "usd"),
        ("paper,label,wlp,dozen,0.26,,Table 1,2023\n", 2, "unit"),
        ("today,gpu,A40,1M tokens,0.44,,a shop,2026\n", 2, "unit"),
        ("today,tokens-in,llama,hour,0.44,,a shop,2026\n", 2, "unit"),
        ("then,label,wlp,label,0.26,,Table 1,2023\n", 2, "list"),
        ("paper,tip,wlp,label,0.26,,Table 1,2023\n", 2, "item"),
        ("paper,label,,label,0.26,,Table 1,2023\n", 2, "name"),
        ("paper,label,wlp,label,0.26,,,2023\n", 2, "source"),
        ("paper,label,wlp,label,0.26,,Table 1,soon\n", 2, "date"),
        ("paper,speed,A40,A100-40GB,,,section 2.5,2023\n", 2, "ratio"),
        (GOOD + GOOD, 3, "second row"),
        (GOOD + "paper,label,wlp\n", 3, "columns"),
        (GOOD + "paper,label,nq,label,0.129,,Table 1, page 2,2023\n", 3, "columns"),
    ],
)
def test_a_broken_price_row_is_named(tmp_path, rows, line, named):
    path = write(tmp_path / "prices.csv", HEAD + rows)
    text = fail("prices", "--prices", path)
    assert f"{path} line {line}" in text and named in text


def test_a_price_that_was_not_read_at_the_vendor_says_so(capsys):
    """Lists of other people's are named behind "secondary source", and nothing else is."""
    lists = (
        r"data-receipts|silybench|evangelist|deploybase|factualminds|privum|autolabel|collective"
    )
    for price in PRICES:
        _, _, second = price.source.partition("secondary source")
        assert bool(second) == bool(re.search(lists, price.source)), price
        assert bool(second) == bool(re.search(lists, second)), price
    assert "check it before you spend" in run("prices", capsys=capsys)


@pytest.mark.parametrize(
    "line",
    [
        "prices",
        "plan --task wlp --labels 5000 --budget 100",
        "plan --task nq --labels 1000 --budget 0.5",
        "convert --task wlp --usd 200",
        "convert --task fever --unlabeled 100000 --at-labels 5000",
        'memory --gpus "1xH100-80GB 64xA40 3x48 1xT4"',
        "memory --scale middle --model google/t5-v1_1-xl --gpus 1x24",
    ],
)
def test_what_is_printed_fits_a_terminal(line, capsys):
    text = run(*shlex.split(line), capsys=capsys)
    assert max(map(len, text.splitlines())) <= 100, text
    words = re.sub(r"\s+", " ", text)
    if line == "prices":  # what goes on below is whole
        lambda_row = next(price for price in PRICES if price.source.startswith("Lambda"))
        assert f"{lambda_row.source} ({lambda_row.date})" in words


def test_a_missing_price_is_named(tmp_path):
    plan = ("plan", "--task", "wlp", "--labels", 100, "--budget", 10, "--prices")
    path = write(tmp_path / "prices.csv", HEAD)
    assert "price of a label" in fail(*plan, path)
    assert "text-davinci-003" in fail(*plan, write(path, HEAD + GOOD))
    assert "'A40'" in fail(*plan, path, "--usd-per-1k-tokens", 0.02)
    write(path, "item,usd\nlabel,1\n")
    assert "'list'" in fail(*plan, path)
    assert "no such file" in fail(*plan, tmp_path / "none.csv")


def test_free_tokens_are_refused_not_divided_by(tmp_path):
    rows = [
        f"today,tokens-{kind},llama,1M tokens,0,,own server,2026,,,,\n" for kind in ("in", "out")
    ]
    text = (ROOT / "data" / "prices.csv").read_text() + "".join(rows)
    words = ("--prices", write(tmp_path / "prices.csv", text), "--llm-model", "llama")
    line = ("plan", "--task", "wlp", "--labels", 100, "--budget", 10)
    assert "tokens-in of llama: must be above 0" in fail(*line, *words)


def test_hours_of_one_gpu_are_none_of_another_without_their_speeds(tmp_path):
    rows = (ROOT / "data" / "prices.csv").read_text().splitlines(keepends=True)
    path = write(tmp_path / "prices.csv", "".join(row for row in rows if ",speed," not in row))
    line = ("plan", "--task", "wlp", "--labels", 100, "--budget", 10, "--prices", path)
    assert "no speed of GPU 'H100-80GB'" in fail(*line, "--gpu", "H100-80GB")


def test_edited_prices_count(tmp_path, capsys):
    text = costs.DATA.joinpath("prices.csv").read_text().replace("wlp,label,0.260", "wlp,label,0.1")
    path = write(tmp_path / "prices.csv", text)
    line = ("plan", "--task", "wlp", "--labels", 100, "--budget", 0.3, "--prices", path, "--json")
    assert json.loads(run(*line, capsys=capsys))["annotate"]["extra_labels"] == 3


# --- the scale between mini and paper --------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "model", "millions", "memory"),
    [
        ("middle", "google/t5-v1_1-xl", 2850, "bf16"),
        ("middle_large", "google/t5-v1_1-large", 783, "bf16"),
        ("middle_base", "google/t5-v1_1-base", 248, "fp32"),
        ("middle_flan", "google/flan-t5-xl", 2850, "bf16"),
    ],
)
def test_scale_middle_prices_its_own_teacher(scale, model, millions, memory):
    """Hours go with parameters: of the teacher to train it, of it and 3 students to distil."""
    flags = costs.make_flags(TASKS["wlp"], scale, "teacher")
    assert (flags["model"], flags["memory"], flags["min-steps"]) == (model, memory, 600)
    own, full = (costs.cells("table2", TASKS["wlp"], each)[1] for each in (scale, "paper"))
    assert own.teacher_usd == full.teacher_usd / 10 * Fraction(millions, 11135)
    assert f"{millions:,}M parameters" in costs.cells("table2", TASKS["wlp"], scale)[0].notes[0]
    left = (10 - own.teacher_usd) * 10
    rate = Fraction(435, 100_000) * Fraction(millions + 3 * 77, 11135 + 3 * 77)
    assert own.unlabeled == min(math.floor(left / rate) // 1000 * 100, 11_100)
    assert own.extra_labels == full.extra_labels // 10


# --- the ledger ----------------------------------------------------------------------------


def add_run(root, made, gpu="NVIDIA A40", gpus=2, task="wlp", world="mini", **more):
    seconds = {"load": 0, "train": 3600, "save": 0}
    if made.strategy == "dist":
        seconds["teacher_pass"] = made.unlabeled
    hardware = {"device": "cuda" if gpu else "cpu", "gpu": gpu, "gpus": gpus if gpu else 0}
    training = {
        "script": "any.py",
        "strategy": made.strategy,
        "task": task,
        "seed": made.seed,
        "labels": made.labels,
        "unlabeled": made.unlabeled,
        "seconds": seconds,
        "hardware": hardware,
        **more,
    }
    folder = root / world / task / made.name
    write(folder / "training.json", training)
    write(folder / "metrics.json", {"score": 50.0, "seconds": {"load": 900, "generate": 900}})
    return folder


def test_report_prices_each_run_and_pays_nothing_twice(tmp_path, capsys):
    for made in costs.grid("table2", load_task("wlp"), "mini"):
        add_run(tmp_path, made)
    found = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    models = {each["run"]: each for each in found["runs"]}
    small = models["small-n138-s0"]
    assert small["hours"] == 2  # two GPUs for an hour
    assert small["evaluate_hours"] == 0.5  # on one
    assert small["paper"]["labels_usd"] == 35.88
    assert small["paper"]["compute_usd"] == 2 * 1.875
    assert small["today"]["compute_usd"] == 2 * 0.995
    dist = models["dist-n100-u1900-s0"]["paper"]  # with its teacher's two hours
    assert dist["compute_usd"] == pytest.approx((2 + 2 * 1900 / 3600 + 2) * 1.875)
    assert dist["usd"] == pytest.approx(26 + dist["compute_usd"])
    total = found["total"]["paper"]
    # labels: the largest N; teacher's pass: once for each teacher, 11,100 and 9,900 rows
    assert total["labels_usd"] == 179.92
    assert total["compute_usd"] == pytest.approx((20 * 2 + 2 * (11100 + 9900) / 3600) * 1.875)
    assert found["tables"]["mini wlp table2"]["paper"] == total
    assert {name: part["runs"] for name, part in found["strategies"].items()} == {
        "small": 10,
        "teacher": 2,
        "dist": 8,
    }
    text = run("report", tmp_path, capsys=capsys)
    assert "dist-n100-u11100-s0" in text and "mini wlp table2" in text
    assert text.index("dist-n100-u1900-s0") < text.index("dist-n100-u11100-s0")


def test_two_worlds_of_one_name_are_two(tmp_path, capsys):
    """A sweep's teacher, in runs/sweep/mini, is not the one that runs/mini learned from."""
    for made in costs.grid("table2", load_task("wlp"), "mini"):
        add_run(tmp_path, made)
    before = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    long = {"seconds": {"load": 0, "train": 36_000, "save": 0}}
    add_run(tmp_path, costs.parse_run("teacher-n100-s0"), world="sweep/mini", **long)
    found = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    runs = [each for each in found["runs"] if each["world"] == "mini"]
    assert (runs, found["tables"]) == (before["runs"], before["tables"])
    total, alone = (each["total"]["paper"] for each in (found, before))
    assert total["hours"] == pytest.approx(alone["hours"] + 20)
    assert total["labels_usd"] == alone["labels_usd"]  # bought once
    assert "sweep/mini/wlp " in run("report", tmp_path, capsys=capsys)


def test_an_encoder_costs_a_pass_of_its_own_and_measures_no_t5(tmp_path, capsys):
    """It learns from scores of the classes: another pass of the teacher, and no rate of Dist."""
    for name in ("teacher-n100-s0", "dist-n100-u1900-s0", "dist-bert-n100-u1900-s0"):
        add_run(tmp_path, costs.parse_run(name))
    found = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    hours = 3 * 2 + 2 * 2 * 1900 / 3600  # three runs on two GPUs, and two passes
    assert found["total"]["paper"]["compute_usd"] == pytest.approx(hours * 1.875)
    assert found["strategies"]["dist"]["runs"] == 2
    rates = measure_rates("wlp", tmp_path, PRICES)
    (tmp_path / "mini" / "wlp" / "dist-bert-n100-u1900-s0" / "training.json").unlink()
    (tmp_path / "mini" / "wlp" / "dist-bert-n100-u1900-s0" / "metrics.json").unlink()
    assert measure_rates("wlp", tmp_path, PRICES) == rates


def test_report_on_a_cpu_shows_hours_and_no_dollars_unless_asked(tmp_path, capsys):
    for name in ("teacher-n100-s0", "dist-n100-u1900-s0"):
        add_run(tmp_path, costs.parse_run(name), gpu=None)
    plain = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    assert plain["runs"][0]["hours"] > 0
    assert plain["runs"][0]["paper"]["compute_usd"] is plain["total"]["paper"]["usd"] is None
    assert any("CPU" in note for note in plain["notes"])
    asked = json.loads(run("report", tmp_path, "--gpu", "A40", "--json", capsys=capsys))
    assert asked["runs"][1]["paper"]["compute_usd"] == 1.875
    assert any("priced as hours of one A40" in note for note in asked["notes"])
    assert "–" in run("report", tmp_path, capsys=capsys)


def test_report_of_a_run_without_its_teacher_and_of_llm_labels(tmp_path, capsys):
    add_run(tmp_path, costs.parse_run("dist-n100-u1900-s0"))
    tokens = {"in": 900_000, "out": 100_000}
    folder = add_run(tmp_path, costs.parse_run("llm-n0-g434-s0"))
    write(folder / "annotation.json", {"llm_tokens": tokens})
    found = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    assert found["tables"] == {}  # where a run is missing, its dollars are not the table's
    models = {each["run"]: each for each in found["runs"]}
    assert models["dist-n100-u1900-s0"]["paper"]["usd"] is None
    assert any("teacher-n100-s0 is not there" in note for note in found["notes"])
    llm = models["llm-n0-g434-s0"]
    assert llm["paper"]["llm_usd"] == 20
    assert llm["today"]["llm_usd"] == pytest.approx(0.9 * 0.125 + 0.1 * 0.5)


def test_report_reads_what_the_annotator_wrote(tmp_path, capsys):
    def report(*argv):
        return json.loads(run("report", tmp_path, "--json", *argv, capsys=capsys))

    for name in ("llm-n0-g434-s0", "llm-n100-g434-s0"):
        # train_small.py counts the LLM's labels as labels; the name knows the people's
        folder = add_run(tmp_path, costs.parse_run(name), labels=534)
    assert any("no LLM tokens recorded" in note for note in report()["notes"])
    used = {"llm_model": "gpt-4o-mini", "llm_tokens": {"in": 10**6, "cached": 10**6, "out": 10**6}}
    for other in (folder.parent / "llm-n0-g434-s0", folder / "annotation"):
        write(other / "annotation.json", used)
    found = report()
    assert [each["today"]["llm_usd"] for each in found["runs"]] == [0.825, 0.825]
    assert [each["paper"]["labels_usd"] for each in found["runs"]] == [0, 26]
    assert found["total"]["today"]["llm_usd"] == 0.825  # the same labels, bought once
    assert report("--llm-model", "text-davinci-003")["total"]["paper"]["llm_usd"] == 60
    write(folder / "annotation" / "annotation.json", {**used, "annotator": "simulated annotator"})
    assert report()["runs"][1]["paper"]["llm_usd"] == 60
    for name, who in (("gpt-4o-mini", "gpt-4o-mini"), ("simulated-0.7", "simulated annotator")):
        for place in (name, f"dev/{name}"):
            answered = {**used, "annotator": who, "usd": 1.25}
            write(folder.parent / "prompted-n100-g200-s0" / place / "annotation.json", answered)
    said = "an LLM's own answers ($2.50, as bought) are in no total"
    assert said in report()["notes"] and "own answers" not in str(found["notes"])


def test_report_faults(tmp_path):
    assert "no such folder" in fail("report", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no finished run" in fail("report", tmp_path / "empty")
    write(tmp_path / "empty" / "metrics.json", {"score": 50.0, "training": None})
    assert "no finished run" in fail("report", tmp_path / "empty")
    made = costs.parse_run("small-n100-s0")
    path = add_run(tmp_path, made) / "training.json"
    good = json.loads(path.read_text())
    assert "'H900'" in fail("report", tmp_path, "--gpu", "H900")
    for change, named in [
        ({"seconds": None}, "seconds"),
        ({"seconds": {"train": "long"}}, "train"),
        ({"seconds": {"train": float("nan")}}, "train"),
        ({"hardware": {}}, "device"),
        ({"seconds": [1]}, "must be an object"),
        ({"hardware": 5}, "must be an object"),
        ({"command": 5}, "must be a text"),
        ({"labels": -1}, "labels"),
    ]:
        write(path, {**good, **change})
        text = fail("report", tmp_path)
        assert str(path) in text and named in text
    write(path, "{")
    assert "not JSON" in fail("report", tmp_path)
    write(path, good)
    path = path.with_name("annotation.json")
    for change, named in [
        ({"llm_model": ["x"]}, "must be a text"),
        ({"llm_tokens": 5}, "must be an object"),
        ({"llm_tokens": {"in": -5}}, "whole number"),
    ]:
        write(path, change)
        text = fail("report", tmp_path)
        assert str(path) in text and named in text


@pytest.mark.parametrize(
    ("change", "used", "row"),
    [
        ({"hardware": {"device": "cuda", "gpu": "NVIDIA X1", "gpus": 1}}, {}, "gpu,NVIDIA X1,hour"),
        ({"task": "other"}, {}, "label,other,label"),
        ({}, {"llm_tokens": {"in": 9}, "llm_model": "llama"}, "tokens-in,llama,1M tokens"),
    ],
)
def test_what_has_no_price_is_no_dollars_and_a_row_to_add(tmp_path, capsys, change, used, row):
    path = add_run(tmp_path, costs.parse_run("small-n100-s0")) / "training.json"
    write(path, {**json.loads(path.read_text()), **change})
    write(path.with_name("annotation.json"), used)
    found = json.loads(run("report", tmp_path, "--json", capsys=capsys))
    assert found["runs"][0]["paper"]["usd"] is found["total"]["today"]["usd"] is None
    assert found["runs"][0]["hours"] >= 1
    told = [note for note in found["notes"] if f",{row},USD,,SOURCE,YEAR" in note]
    assert f"paper,{row}" in told[0]
    assert len(told) == (1 if row.startswith("label") else 2)  # either list prices a label
    assert "–" in run("report", tmp_path, capsys=capsys)


def test_measured_rates(tmp_path, capsys):
    def plan(*argv):
        line = ("plan", "--task", "wlp", "--labels", 100, "--budget", 10, "--rates", "measured")
        return json.loads(run(*line, "--runs", tmp_path, "--json", *argv, capsys=capsys))

    add_run(tmp_path, costs.parse_run("teacher-n100-s0"))
    assert "measured rates need" in fail(
        *("plan", "--task", "wlp", "--labels", 100, "--budget", 10),
        *("--rates", "measured", "--runs", tmp_path),
    )
    add_run(tmp_path, costs.parse_run("dist-n100-u1900-s0"))
    found = plan()["distill"]
    assert found["teacher_gpu_hours"] == 2
    each = (2 + 2 * Fraction(1900, 3600)) / 1900 * Fraction("1.875")
    assert found["unlabeled"] == math.floor((10 - 2 * Fraction("1.875")) / each)
    a100 = plan("--gpu", "A100-40GB")["distill"]
    assert a100["teacher_gpu_hours"] == 1 and a100["unlabeled"] == found["unlabeled"]
    grid = ("grid", "--for", "table2", "--task", "wlp", "--rates", "measured", "--runs", tmp_path)
    assert f"dist-n100-u{found['unlabeled']}-s0" in run(*grid, capsys=capsys).split()
    for name in ("teacher-n100-s0", "dist-n100-u1900-s0"):
        add_run(tmp_path, costs.parse_run(name), gpu=None)
    line = ("plan", "--task", "wlp", "--labels", 100, "--budget", 10, "--rates", "measured")
    for flags in ((), ("--gpu", "A100-40GB"), ("--gpu", "A40", "--gpu-usd-per-hour", 1)):
        assert "say nothing of a GPU" in fail(*line, "--runs", tmp_path, *flags)
    priced = plan("--gpu-usd-per-hour", "0.1")
    assert priced["gpu"] == "CPU" and any("on a CPU" in note for note in priced["notes"])
    teacher = {"command": "train_teacher.py --model tiny"}
    add_run(tmp_path, costs.parse_run("teacher-n100-s0"), **teacher)
    add_run(tmp_path, costs.parse_run("dist-n100-u1900-s0"), command="distill.py --student small")
    assert any("teacher tiny, student small, on A40" in note for note in plan()["notes"])
    add_run(tmp_path, costs.parse_run("teacher-n500-s0"), command="train_teacher.py --model xxl")
    assert "several models" in fail(*line, "--runs", tmp_path)


# --- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("plan --task wlq --labels 100 --budget 10", "'wlq'"),
        ("plan --task wlp --labels 100 --budget -10", "--budget"),
        ("plan --task wlp --labels 100 --budget nan", "--budget"),
        ("plan --task wlp --labels 100 --budget inf", "--budget"),
        ("plan --task wlp --labels 100 --budget ten", "--budget"),
        ("plan --task wlp --labels 100 --budget 1e999999999", "--budget"),
        ("plan --task wlp --labels 100 --budget 1e-999999999", "--budget"),
        ("plan --task wlp --labels 0 --budget 10", "--labels"),
        ("plan --task wlp --labels 1.5 --budget 10", "--labels"),
        ("plan --task wlp --labels 100 --budget 10 --gpu X9", "X9"),
        ("plan --task wlp --labels 100 --budget 10 --usd-per-label 0", "--usd-per-label"),
        ("plan --task wlp --labels 100 --budget 10 --gpu-usd-per-hour -1", "--gpu-usd-per-hour"),
        ("plan --task wlp --labels 100 --budget 10 --llm-model gpt-9", "gpt-9"),
        ("plan --task wlp --labels 100 --budget 10 --rates measured", "--runs"),
        ("plan --task wlp --labels 100 --budget 10 --runs runs", "--rates measured"),
        ("grid --for table99 --task wlp", "table99"),
        ("grid --for table2 --task wlp --scale huge", "huge"),
        ("grid --for table2 --task wlp --seeds x", "--seeds"),
        ("grid --for table2 --task wlp --seeds=", "--seeds"),
        ("grid --for fig6 --task fever", "llm_tokens_per_label"),
        ("flags --task wlp", "--strategy"),
        ("flags --task wlp --strategy best", "best"),
        ("flags --task wlp --run small-n100-s0 --strategy small", "--strategy"),
        ("flags --task wlp --run small-n0100-s0", "small-n0100-s0"),
        ("flags --task wlp --run small-base-n100-s0", "base"),
        ("rules --for table2 --task nosuch", "'nosuch'"),
        ("convert --task fever", "--usd"),
        ("advise --task wlp --budget 10 --budgets 20", "pass one of --budget USD and --budgets"),
        ("convert --task fever --usd 10 --unlabeled 10", "--usd"),
    ],
)
def test_a_mistake_is_named(line, named):
    assert named in fail(*shlex.split(line))


def test_options_are_those_of_the_commands():
    rows = read_csv(ROOT / "data" / "costs" / "options.csv").values()
    named = [word.lstrip("!") for row in rows for word in row["commands"].split()]
    assert set(named) == set(costs.COMMANDS)
    taken = [(row["option"], name) for row in rows for name in row["commands"].split()]
    assert len(taken) == len(set(taken))  # no command has an option twice


@pytest.mark.parametrize("room", ["costs", "plots"])
def test_each_text_is_said_somewhere(room):
    """A key of texts.json stands in the code, as a word or as a table's or a figure's name."""
    code = "".join(p.read_text() for p in [*ROOT.glob("*s.py"), *ROOT.glob(f"data/{room}/*.py")])
    for key in read_json(ROOT / "data" / room / "texts.json"):
        assert f'"{key}"' in code or f"'{key}'" in code, key


def test_plan_reads_well(capsys):
    text = run("plan", "--task", "nq", "--labels", 10000, "--budget", 50, capsys=capsys)
    assert "387" in text and "N/A" in text and "$60.00" in text


def test_budget_of_nothing_buys_nothing():
    plan = costs.plan(TERMS["wlp"], 1000, Fraction(0))
    assert plan["annotate"]["extra_labels"] == 0 and plan["distill"] is None
    # exactly the teacher's dollars leave none for distilling
    assert costs.plan(TERMS["wlp"], 1000, Fraction(15))["distill"] is None


def call(*argv, folder=ROOT):
    line = [sys.executable, "costs.py", *argv]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def test_exit_codes_and_streams():
    alone = call()
    assert alone.returncode == 0 and "plan" in alone.stdout and "4,347" in alone.stdout
    wrong = call("plan", "--task", "wlp", "--labels", "100", "--budget", "nan")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: --budget") and wrong.stderr.count("\n") == 1
    assert call("plan", "--bugdet", "5").returncode == 2
    assert call("plan", "--task", "wlp", "--labels", "1", "--bud", "5").returncode == 2


def test_copied_as_its_docstring_says(tmp_path):
    copy_stage("costs.py", tmp_path)
    done = call("grid", "--for", "table2", "--task", "wlp", folder=tmp_path)
    assert done.returncode == 0 and len(done.stdout.split()) == 20
    assert call("plan", "--task", "wlp", "--labels", "1", "--budget", "5", folder=tmp_path)


def test_standard_library_only():
    code = (
        "import sys; old = set(sys.modules); import costs; "
        "print(*{m.split('.')[0] for m in set(sys.modules) - old})"
    )
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    modules = set(done.stdout.split())
    assert "costs" in modules
    assert modules - {"costs", "data"} <= set(sys.stdlib_module_names)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("plan --task wlp --labels 5000 --budget 100 --json", (384, 7471, 54)),
        ("plan --task wlp --labels 1000 --budget 100 --json", (384, 19540, 54)),
    ],
)
def test_json_of_a_plan(line, expected, capsys):
    found = json.loads(run(*line.split(), capsys=capsys))
    distill = found["distill"]
    shown = (found["annotate"]["extra_labels"], distill["unlabeled"], distill["gpu_hours"])
    assert shown == expected
    keys = {"task", "labels", "initial_usd", "budget_usd", "annotate", "distill", "llm"}
    assert keys <= set(found)
    assert set(distill) == {"teacher_gpu_hours", "gpu_hours", "unlabeled", "usd"}
    assert {"extra_labels", "usd_per_label"} <= set(found["llm"])


def test_flags_that_hang_on_counts_are_those_of_the_nearest():
    tried = [
        {"labels": 100, "unlabeled": 1000, "max-steps": 1},
        {"labels": 100, "unlabeled": 10000, "max-steps": 2},
        {"labels": 500, "unlabeled": 1000, "max-steps": 3, "dropout": 0},
    ]
    flags = {"dropout": 0.1, "near": tried}
    found = [
        pick_nearest(flags, make_run("dist", labels, 0, unlabeled=rows))
        for labels, rows in ((100, 1900), (10, 5000), (600, 700), (100, 1000))
    ]
    assert [each["max-steps"] for each in found] == [1, 2, 3, 1]
    assert [each["dropout"] for each in found] == [0.1, 0.1, 0, 0.1]
    assert set(found[0]) == {"dropout", "max-steps"}
    assert pick_nearest({"epochs": 3}, make_run("small", 10, 0)) == {"epochs": 3}


@pytest.mark.parametrize("scale", ["mini", "middle", "paper"])
def test_one_word_restores_table_8_or_the_released_protocol(scale):
    wlp, nq = load_task("wlp"), load_task("nq")
    paper = make_flags(wlp, scale, "dist", recipe="paper")
    assert (paper["epochs"], paper["learning-rate"], paper["temperature"]) == (50, 3e-5, 2)
    assert make_flags(nq, scale, "small", recipe="paper")["learning-rate"] == 1e-3
    released = make_flags(wlp, scale, "dist", recipe="released")
    assert (released["loss"], released["top-k"], released["bf16"]) == ("paper", 0, False)
    assert make_flags(wlp, scale, "teacher", recipe="released")["memory"] == "fp32"
    with pytest.raises(UserError, match="known: paper, released"):
        make_flags(wlp, scale, "dist", recipe="fair")


def test_an_annotation_as_it_is_written_is_read(tmp_path):
    """Its seconds are one number, where those of a run are an object."""
    found = {"annotator": "simulated annotator (70% correct)", "llm_model": "text-davinci-003"}
    found |= {"llm_tokens": {"in": 9, "cached": 0, "out": 1}, "seconds": 1.341}
    write(tmp_path / "annotation.json", found)
    assert read_llm_use(tmp_path) == (found["llm_tokens"], None)


def test_work_to_do_is_runs_apart_from_scores(tmp_path):
    """Of six runs three are there; one is trained and lacks its score on dev."""
    runs = [f"small-n{count}-s0" for count in range(1, 7)]
    for name in runs[:3]:
        (tmp_path / name / "dev").mkdir(parents=True)
        (tmp_path / name / "training.json").touch()
    for name in runs[:2]:
        (tmp_path / name / "dev" / "metrics.json").touch()
    args = SimpleNamespace(runs=tmp_path, jobs=2, partial=False)

    def tell(names, seconds=600):
        return tell_work({f"{name}/dev/metrics.json": seconds for name in names}, args)

    assert tell(runs) == "3 of 6 runs to do, 1 to score, about 20 minutes, 2 at a time"
    assert tell(runs[3:]) == "3 of 3 runs to do, about 15 minutes, 2 at a time"
    assert tell(runs[:3], 0) == "1 to score, about a minute" and tell(runs[:2]) is None
    both = {f"{runs[2]}/{stamp}": 0 for stamp in ("metrics.json", "dev/metrics.json")}
    assert tell_work(both, args).startswith("2 to score, about a minute")
    new = {f"{runs[3]}/metrics.json": 60, f"{runs[3]}/dev/metrics.json": 0}
    assert tell_work(new, args).startswith("1 of 1 run to do, about a minute")
    chain = ["teacher-n1-s0", "dist-n1-u9-s0"]  # one waits for the other
    assert tell(chain) == "2 of 2 runs to do, about 20 minutes, 2 at a time"


def test_the_time_left_goes_by_the_runs_that_this_make_finished(tmp_path, capsys):
    """Run a was there before, so nothing was estimated; b took six times what was, and a minute
    that went as estimated stands beside it: four times."""
    stamps = {name: tmp_path / name / "metrics.json" for name in "abc"}
    for name, seconds in (("a", 900), ("b", 600)):
        stamps[name].parent.mkdir()
        stamps[name].write_text(json.dumps({"seconds": {"generate": seconds}}))
    planned = {"a/metrics.json": 0, "b/metrics.json": 100, "c/metrics.json": 100}
    record = tmp_path / "rules.json"
    record.write_text(json.dumps({"runs": str(tmp_path), "seconds": planned, "jobs": 1}))
    tell_progress(record)
    assert capsys.readouterr().err == "2 of 3 runs done, about 7 minutes left\n"
    planned = dict.fromkeys(("teacher-n1-s0/metrics.json", "dist-n1-u9-s0/metrics.json"), 600)
    record.write_text(json.dumps({"runs": str(tmp_path), "seconds": planned, "jobs": 2}))
    tell_progress(record)  # one waits for the other
    assert capsys.readouterr().err == "0 of 2 runs done, about 20 minutes left\n"


def test_a_run_that_is_scored_twice_is_trained_once(tmp_path, capsys):
    """So one stamp has the seconds, that of the table; the pilot's own runs are trained for it."""
    asked = ("--for", "table2 pilot", "--task", "wlp")
    _, path = write_rules(tmp_path, capsys, *asked)
    seconds = read_json(Path(path).with_suffix(".json"))["seconds"]
    assert (
        seconds["wlp/small-n500-s0/metrics.json"]
        > 0
        < seconds["wlp/small-n125-s0/dev/metrics.json"]
    )
    assert seconds["wlp/small-n500-s0/dev/metrics.json"] == 0
