"""README's task of one's own, from its folder and entry to a table, through the real commands."""

import json
import math
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data.costs.budget import make_terms, plan
from data.costs.grid import cells, grid
from data.costs.prices import load_prices
from data.costs.runs import parse_run
from data.files import UserError
from data.tasks import load_task, make_task

ROOT = Path(__file__).resolve().parents[1]
WORDS = {
    "GOOD": "splendid lovely sturdy handy quick quiet",
    "BAD": "flimsy noisy slow ugly leaky dull",
    "NEITHER": "plain square grey heavy short round",
}
FORMS = ("the {} is {}", "my {} turned out {}", "this {}, so {}", "a {}, and a {} one")
TARGETS = [*(f"table{i}" for i in range(1, 12)), *(f"fig{i}" for i in range(2, 8))]
STEPS = "--max-steps 2 --warmup-steps 0 --batch-size 4 --save-steps 100"
# Runs the lines of `make -n` in one process, as loading the libraries is all the time they take.
RUNNER = """
import pathlib, runpy, shlex, sys
for line in open(sys.argv[1]).read().replace("\\\\\\n", " ").splitlines():
    words = shlex.split(line.partition(" >")[0])
    if words[0] == "touch":
        pathlib.Path(words[1]).touch()
    if words[1:] and words[1].endswith(".py"):
        sys.argv, sys.path[0] = words[1:], "."
        try:
            runpy.run_path(words[1], run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, (line, stop.code)
"""


def write_remarks(folder, sizes):
    """Short remarks on invented products; which words they praise or blame with is the class."""
    rng, seen = random.Random(0), set()
    folder.mkdir()
    for split, count in sizes.items():
        rows = []
        while len(rows) < count:
            label = rng.choice(list(WORDS))
            thing = f"{rng.choice('kettle lamp fan mug chair radio'.split())} {rng.randrange(300)}"
            source = rng.choice(FORMS).format(thing, rng.choice(WORDS[label].split()))
            if source not in seen:
                seen.add(source)
                rows.append({"source": source, "target": label})
        if split == "unlabeled":
            rows = [{"source": row["source"]} for row in rows]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_entry():
    """README's entry, as {name: entry}."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- own task -->\n```json\n(.*?)```\n<!-- end", text, re.DOTALL)[1]
    return json.loads("{" + shown + "}")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project and a folder of remarks with README's entry in it."""
    folder = tmp_path_factory.mktemp("own") / "project"
    ignored = shutil.ignore_patterns("prepared", "models", "results", "__pycache__")
    shutil.copytree(ROOT / "data", folder / "data", ignore=ignored)
    (folder / "data" / "world" / "models").symlink_to(ROOT / "data" / "world" / "models")
    for name in ("Makefile", "requirements.txt", *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, folder)
    write_remarks(folder / "remarks", {"train": 240, "test": 40, "unlabeled": 90})
    (folder / "remarks" / "task.json").write_text(json.dumps(read_entry()["mine"]))
    return folder


def call(project, *words):
    setting = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        words, cwd=project, env=setting, capture_output=True, text=True, check=False, timeout=300
    )


def make(project, *words):
    tools = (f"PYTHON={sys.executable}", f"PY={sys.executable}", "INSTALLED=requirements.txt")
    return call(project, "make", *tools, "TASK=mine", "DATA=remarks", *words)


def test_from_the_folder_to_table_2(project):
    checked = call(project, *"python3 -m data.prepare --task mine --data remarks --check".split())
    assert checked.returncode == 0, checked.stderr
    assert "prices: $0.10 a label, $3.75 an hour of A100-40GB" in checked.stdout
    assert "make can make: table2, table3, table4" in checked.stdout
    assert not (project / "data" / "prepared").exists()

    asked = ("table2", f"TRAIN_FLAGS={STEPS}")
    commands = make(project, "-n", *asked)
    assert commands.returncode == 0, commands.stderr
    (project / "commands").write_text(commands.stdout)
    done = call(project, sys.executable, "-c", RUNNER, "commands")
    assert done.returncode == 0, done.stderr
    made = make(project, *asked)  # finds every run finished
    assert made.returncode == 0 and "labels, 2 steps" not in made.stderr, made.stderr
    rows = re.findall(r"^\| .*\|$", made.stdout, re.MULTILINE)
    assert rows and "missing" not in made.stdout
    heading = next(row for row in rows if "+$10" in row)
    assert "+$20" in heading and "N (initial $)" in heading
    ann = next(row for row in rows if "| Ann." in row)
    assert "100 ($10)" in ann
    assert "333 unlabeled rows planned, 90 exist" in made.stdout
    assert "300 labels planned, 216 exist" in made.stdout  # a tenth of train's 240 is dev
    assert "as the task's entry has them" in made.stdout and "divided by" not in made.stdout
    scores = {
        path.parent.name: json.loads(path.read_text())
        for path in (project / "runs" / "mini-remarks" / "mine").glob("*/metrics.json")
    }
    assert set(scores) == {
        *("small-n100-s0", "small-n200-s0", "small-n216-s0"),
        *("teacher-n100-s0", "dist-n100-u90-s0"),
    }
    assert all(score["n"] == 40 and score["metric"] == "accuracy" for score in scores.values())


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_every_other_target_is_planned_or_says_what_the_entry_lacks(project, scale):
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    there = [name for name in TARGETS if re.search(rf"^{name}:.*## ", text, re.MULTILINE)]
    assert len(there) >= 15
    for name in there:
        done = make(project, "-n", name, f"SCALE={scale}", "RUNS=none")
        if done.returncode:
            lacks = {"fig6": "no field 'llm_tokens_per_label'", "fig7": "say MODEL=gpt-4o-mini"}
            assert done.stderr.count("error:") == 1 and lacks[name] in done.stderr, done.stderr
            assert (name, scale) != ("fig7", "mini")
        else:
            assert f"plots.py {name} " in done.stdout


def test_what_an_entry_lacks_is_one_line_that_names_it():
    entry = read_entry()["mine"]
    faults = {
        "title": (None, "field 'title' is missing"),
        "metric": ("f1", "field 'metric' must be one of entities, classes, answers"),
        "report": ("acc", "field 'report' must be one of accuracy, f1"),
        "prefix": (None, "field 'prefix' is missing"),
        "labels": (["GOOD", "good"], "has a label twice"),
        "max_source_length": ("48", "must be a number of tokens"),
        "usd_per_label": (None, "no price of a label; give its entry a field 'usd_per_label'"),
        "labels_n": ([], "'labels_n' is empty"),
        "budgets": ([-5], "-5 is not a number of 0 or more"),
        "gpu": ("TPU", "no price for an hour of GPU 'TPU'"),
        "teacher_gpu_hours": (None, "no GPU rates; give its entry the fields 'teacher_gpu_hours'"),
        "distill_gpu_hours_per_100k": (None, "no GPU rates"),
    }
    for field, (value, message) in faults.items():
        broken = {**entry, field: value}
        broken = {key: kept for key, kept in broken.items() if kept is not None}
        with pytest.raises(UserError, match=re.escape(message)) as stop:
            plan(make_terms(make_task("mine", broken), load_prices()), 100, 10)
        assert "\n" not in str(stop.value)


ODD_FIELDS = [
    *({field: 5} for field in "gpu few_shot_budgets catch_up_usd rows mini paper".split()),
    *({"mini": {key: 5}} for key in "models small all learning_rate evaluate real-text".split()),
    *({"instruction": 5}, {"mean_tokens": 5}, {"paper_default_label": "NOPE"}, {"title": None}),
    *({"prefix": "remark:\n"}, {"labels": ["a\tb", "c"]}, {"title": "x\u2028y"}, {"labels": "ab"}),
    *({"figure_usd": [5]}, {"mini": {"small": {"epochs": math.nan}}}, {"metrik": "classes"}),
    *({"mini": {"all": [1]}}, {"mini": {"models": {"small": ["x\n"]}}}, {"labels": [1, 2]}),
    *({"mean_tokens": {"target": -1}}, {"rows": {"train": 0.5}}, {"few_shot_n": True}),
]


@pytest.mark.parametrize("change", ODD_FIELDS, ids=str)
def test_a_wrong_type_or_key_is_one_line_that_names_it(change):
    (field,) = change
    with pytest.raises(UserError) as stop:
        make_task("mine", {**read_entry()["mine"], **change})
    named = "labels" if field == "paper_default_label" else field
    assert repr(named) in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("name", ["all", "made", "my task", "a/b", "-x", "", "é", "$(x)"])
def test_a_name_that_make_cannot_carry_is_refused(name, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(read_entry()["mine"]))
    with pytest.raises(UserError, match=r"no name for a task|unknown task"):
        load_task(f"{name}={tmp_path / 'task.json'}" if name else "=", tmp_path)


def test_labels_beyond_the_rows_are_cut_and_no_cell_stands_twice(project):
    """N of 100 and 50,000 with 216 rows: the teacher learns from what there is, and only once."""
    entry = {**read_entry()["mine"], "labels_n": [100, 5000, 50000]}
    (project / "own.json").write_text(json.dumps(entry))
    task = load_task(f"mine={project / 'own.json'}")
    limits = {"rows": {"train": 216, "unlabeled": 90}}
    for figure in ("fig2", "fig3", "fig4", "fig7"):
        found = cells(figure, task, **limits)
        runs = [(cell.labels, cell.budget_usd, str(cell.runs)) for cell in found]
        assert len(set(runs)) == len(runs) and {run[0] for run in runs} == {100, 216}
    names = {run.name for run in grid("fig3", task, **limits)}
    assert {"teacher-n216-s0", "small-n216-s0"} <= names
    assert max(parse_run(name).labels for name in names) == 216


def test_files_of_a_windows_program_are_read(project):
    """A byte order mark and CRLF are no part of a row; a repeated source is in one split only."""
    folder = project / "windows"
    shutil.copytree(project / "remarks", folder)
    train = (folder / "train.jsonl").read_text()
    (folder / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + train.replace("\n", "\r\n").encode())
    with (folder / "test.jsonl").open("a") as file:
        file.write(train[: train.index("\n") + 1])
    flags = "-m data.prepare --task mine --data windows --check".split()
    done = call(project, sys.executable, *flags)
    assert done.returncode == 0, done.stderr
    assert "train: 1 rows dropped: their source is in test" in done.stdout
    (folder / "test.jsonl").write_text(train)
    done = call(project, sys.executable, *flags)
    assert done.returncode == 1
    assert "no rows are left for train (240 rows dropped: their source is in test)" in done.stderr
