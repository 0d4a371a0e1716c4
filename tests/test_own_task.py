"""README's task of one's own, from its folder and entry to a table, through the real commands."""

import itertools
import json
import math
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import venv
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from data.costs import stale
from data.costs.budget import make_terms, plan
from data.costs.grid import cells, grid
from data.costs.prices import load_prices
from data.costs.runs import parse_run
from data.files import UserError, hash_file, write_json
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
import pathlib, shlex, sys
from data.costs import in_one
for line in open(sys.argv[1]).read().replace("\\\\\\n", " ").splitlines():
    words = shlex.split(line.partition(" >")[0])
    if words[0] == "touch":
        pathlib.Path(words[1]).touch()
    elif words[1:3] == ["-m", "data.costs.in_one"]:
        in_one.main(words[3:])
    elif words[1:] and words[1].endswith(".py"):
        in_one.main(words[1:])
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
    """README's task.json, as {name: entry}."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- own task -->\n```json\n(.*?)```\n<!-- end", text, re.DOTALL)[1]
    return {"mine": json.loads(shown)}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project and a folder of remarks with README's entry in it."""
    folder = tmp_path_factory.mktemp("own") / "project"
    ignored = shutil.ignore_patterns("prepared", "models", "results", "__pycache__")
    shutil.copytree(ROOT / "data", folder / "data", ignore=ignored)
    (folder / "data" / "world" / "models").symlink_to(ROOT / "data" / "world" / "models")
    for name in ("Makefile", "requirements.txt", *(path.name for path in ROOT.glob("*.py"))):
        shutil.copy(ROOT / name, folder)
    write_remarks(folder / "remarks", {"train": 400, "test": 40, "unlabeled": 90})
    (folder / "remarks" / "task.json").write_text(json.dumps(read_entry()["mine"]))
    venv.create(folder / "bare", symlinks=True)
    return folder


def call(project, *words):
    setting = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        words, cwd=project, env=setting, capture_output=True, text=True, check=False, timeout=300
    )


def make(project, *words):
    """The system's Python is one without any package: what make asks of it does without."""
    tools = ("PYTHON=bare/bin/python", f"PY={sys.executable}", "INSTALLED=requirements.txt")
    return call(project, "make", *tools, "TASK=mine", "DATA=remarks", *words)


def test_from_the_folder_to_table_2(project):
    checked = call(project, *"python3 -m data.prepare --task mine --data remarks --check".split())
    assert checked.returncode == 0, checked.stderr
    assert "prices: $0.10 a label, $0.995 an hour of A40" in checked.stdout
    assert "are planned (arithmetic at 40% of the peak" in " ".join(checked.stdout.split())
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
    text = re.sub(r" *\| *", " | ", made.stdout)  # a wide table has no spaces at its bars
    rows = re.findall(r"^ \| .*\| $", text, re.MULTILINE)
    assert rows and "missing" not in made.stdout
    heading = next(row for row in rows if "N (initial $)" in row)
    assert "+$10 | +$20" in heading
    ann = next(row for row in rows if "| Ann." in row)
    assert "100 ($10)" in ann
    assert re.search(r"90 of [\d,.]+[KM]?\b", made.stdout) and "only x exist" in made.stdout
    assert "+150 of 200" in made.stdout  # half of train's rows beyond N = 100 is dev
    assert "as the task's entry has them" in made.stdout and "divided by" not in made.stdout
    told = call(project, *"python3 costs.py report runs --task mine=remarks/task.json".split())
    assert "mini-remarks mine table2" in told.stdout, told.stderr
    scores = {
        path.parent.name: json.loads(path.read_text())
        for path in (project / "runs" / "mini-remarks" / "mine").glob("*/metrics.json")
    }
    assert set(scores) == {
        *("small-n100-s0", "small-n200-s0", "small-n250-s0"),
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
            assert name == "fig6" or (name, scale) == ("fig7", "paper"), done.stderr
            assert done.stderr.count("error:") == 1 and "say MODEL=" in done.stderr, done.stderr
        else:
            assert f"plots.py {name} " in done.stdout


def test_tables_of_prices_and_settings_are_made_and_a_sweep_finds_the_folder(project):
    for name in ("table1", "table5", "table6", "table7", "table8"):
        done = make(project, name)
        assert done.returncode == 0 and "Remarks" in done.stdout, done.stderr
        assert max(map(len, done.stdout.splitlines())) <= 100
    swept = make(project, "-n", "sweep", "RATES=1e-3 2e-3", "STEPS=30")
    words = " ".join(swept.stdout.replace("\\\n", " ").split())
    assert (
        "data.bench.sweep --task 'mine' --scale mini --data 'remarks' --strategy 'small'" in words
    )
    assert words.endswith("--rates 1e-3 2e-3 --steps 30"), words


def test_hours_that_an_entry_lacks_are_planned_and_said():
    task, rows = make_task("mine", read_entry()["mine"]), {"train": 300, "unlabeled": 5000}
    made = cells("table2", task, llm=True, rows=rows)
    assert [cell.unlabeled for cell in made] == [None, 5000, 5000]  # cheap on today's cards
    assert all(cell.runs["dist"] and cell.llm_labels for cell in made[1:])
    assert "planned (arithmetic at 40% of the peak" in made[0].notes[0]
    assert made[0].notes[1].startswith("an LLM's label takes about")
    few = replace(task, teacher_hours={0: Fraction(1, 2)})  # what is stated is kept
    assert cells("table2", few, rows=rows)[1].teacher_usd == Fraction("0.995") / 2


def test_own_tasks_pay_prices_of_today_and_the_papers_those_of_the_paper():
    prices = load_prices()
    own = make_terms(make_task("mine", {**read_entry()["mine"], "gpu": "A100-40GB"}), prices)
    assert own.usd_per_gpu_hour == Fraction("1.99")
    assert make_terms(load_task("wlp"), prices).usd_per_gpu_hour == Fraction("1.875")


def test_what_an_entry_lacks_is_one_line_that_names_it():
    hours = {"teacher_gpu_hours": {"100": 2}, "distill_gpu_hours_per_100k": 200}
    entry = {**read_entry()["mine"], **hours}
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
    with pytest.raises(UserError, match="field 'labels' needs 2 names or more for classes"):
        make_task("mine", {key: value for key, value in entry.items() if key != "labels"})
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
    *({"mean_tokens": {"source": 5}}, {"figure_usd": {"fig9": 5}}, {"rows": {"trian": 5}}),
    *({"mini": {"small": {"near": each}}} for each in ([], [{}], [{"labels": "x"}], 5)),
    {"mean_tokens": {"source": 5, "target": 2, "output": 2}},
    *({"mini": {"evaluate": {"x": {}}}}, {"max_target_length": 1}, {"max_source_length": 10**6}),
]


@pytest.mark.parametrize("change", ODD_FIELDS, ids=str)
def test_a_wrong_type_or_key_is_one_line_that_names_it(change):
    (field,) = change
    with pytest.raises(UserError) as stop:
        make_task("mine", {**read_entry()["mine"], **change})
    named = "labels" if field == "paper_default_label" else field
    assert repr(named) in str(stop.value) and "\n" not in str(stop.value)


@pytest.mark.parametrize("labels", [["Cell Line", "cell  line"], ["caf\u00e9", "cafe\u0301"]])
def test_labels_that_scores_would_not_tell_apart_are_refused(labels):
    with pytest.raises(UserError, match="'labels' has a label twice"):
        make_task("mine", {**read_entry()["mine"], "labels": labels})


def test_a_path_may_have_an_equals_sign(tmp_path):
    path = tmp_path / "x=1" / "task.json"
    write_json(path, read_entry()["mine"])
    assert load_task(f"mine={path}").word == load_task("mine", path.parent).word == f"mine={path}"


@pytest.mark.parametrize("name", ["all", "made", "my task", "a/b", "-x", "", "é", "$(x)"])
def test_a_name_that_make_cannot_carry_is_refused(name, tmp_path):
    (tmp_path / "task.json").write_text(json.dumps(read_entry()["mine"]))
    with pytest.raises(UserError, match=r"no name for a task|unknown task"):
        load_task(f"{name}={tmp_path / 'task.json'}" if name else "=", tmp_path)


def test_an_entry_that_a_known_name_would_hide_is_refused(tmp_path):
    assert load_task("wlp", tmp_path).name == load_task("wlp", "hub:name").name == "wlp"
    with pytest.raises(UserError, match="none: no such folder"):
        load_task("wlp", tmp_path / "none")
    (tmp_path / "task.json").write_text(json.dumps(read_entry()["mine"]))
    with pytest.raises(UserError, match="would not be read, as 'wlp'"):
        load_task("wlp", tmp_path)


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
    (cell,) = [c for c in cells("table2", task, **limits) if (c.labels, c.budget_usd) == (100, 20)]
    (run,) = cell.runs["small"]
    assert (cell.extra_labels, run.labels - 100) == (200, 116)  # planned, and really there
    names = {run.name for run in grid("fig3", task, **limits)}
    assert {"teacher-n216-s0", "small-n216-s0"} <= names
    assert max(parse_run(name).labels for name in names) == 216


def test_a_folder_with_few_labels_has_every_figure(project):
    """N of 100 twice, for few_shot_n and labels_n, in 60 rows: one N, and no traceback."""
    task = load_task(f"mine={project / 'remarks' / 'task.json'}")
    for rows in (60, 100):
        for figure in ("fig4", "fig5"):
            found = cells(figure, task, rows={"train": rows, "unlabeled": 9})
            assert {cell.labels for cell in found} == {min(rows, 100)}


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
    assert "train: 1 row dropped: their source is in test" in done.stdout
    (folder / "test.jsonl").write_text(train)
    done = call(project, sys.executable, *flags)
    assert done.returncode == 1
    assert "no rows are left for train (400 rows dropped: their source is in test)" in done.stderr


# --- results that are out of date -----------------------------------------------------------


def finish_runs(project, *words):
    """What `make -n` would train, as finished runs whose records say the command and the data."""
    done = make(project, "-n", "table2", *words)
    assert done.returncode == 0, done.stderr
    task = load_task(f"mine={project / 'remarks' / 'task.json'}")
    for line in done.stdout.splitlines():
        command = shlex.split(line.partition(" -- ")[0].replace("-m data.costs.in_one ", ""))
        if "--strategy" in command:
            flags = dict(itertools.pairwise(command))
            data = project / (flags.get("--unlabeled") or flags["--train"])
            folder = project / flags["--output"]
            record = {"command": shlex.join(command[1:]), "data_sha256": hash_file(data)}
            write_json(folder / "training.json", record)
            test = {"data_sha256": hash_file(data.parent / "test.jsonl")}
            scored = {"task_sha256": task.hash_rules(), "provenance": test, "training": record}
            write_json(folder / "metrics.json", scored)


def list_redone(project, *words):
    """Runs that REDO=1 removes, after make has refused to show them; [] where it shows them."""
    before = {path.parent.name for path in project.glob("runs/mini-remarks/mine/*/training.json")}
    done = make(project, "-n", "table2", *words)
    if not done.returncode:
        return []
    assert done.stderr.count("error:") == 1 and "REDO=1" in done.stderr, done.stderr
    assert "since" in done.stderr and "plots.py" not in done.stdout
    redo(project, *words)
    there = project.glob("runs/mini-remarks/mine/*/metrics.json")
    return sorted(before - {path.parent.name for path in there})


def redo(project, *words):
    """What make does with REDO=1 before it trains."""
    flags = [f"--train-flags={word.partition('=')[2]}" for word in words]
    line = (
        f"costs.py rules --for table2 --task mine --data {words_data(words)} --redo --prepare-flags"
    )
    done = call(project, sys.executable, *line.split(), "--test-rows 500", *flags)
    assert done.returncode == 0, done.stderr


def words_data(words):
    return next((word.partition("=")[2] for word in words if word.startswith("DATA=")), "remarks")


def test_results_out_of_date_are_refused_and_exactly_those_made_again(project):
    entry, folder = project / "remarks" / "task.json", project / "remarks"
    shutil.rmtree(project / "runs", ignore_errors=True)
    shutil.rmtree(project / "data" / "prepared", ignore_errors=True)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    finish_runs(project)
    everything = ["dist-n100-u90-s0", "small-n100-s0", "small-n200-s0", "small-n250-s0"]
    everything.append("teacher-n100-s0")

    def edit(**change):
        entry.write_text(json.dumps({**json.loads(entry.read_text()), **change}))

    def undo():
        for path, text in kept.items():
            path.write_bytes(text)
        finish_runs(project)

    assert list_redone(project) == []
    other = make(project, "-n", "table2", "TASK=mien")  # of two the last is taken
    assert other.returncode and "task of remarks is 'mine' so far: say TASK=mine" in other.stderr
    prices = project / "data" / "prices.csv"
    prices.write_text(prices.read_text().replace(",hour,1.875,", ",hour,1.885,"))
    edit(title="Other", gpu="A40")
    assert list_redone(project) == []  # neither a price nor a word of the entry trains anything
    edit(mini={"dist": {"epochs": 7}})
    assert list_redone(project) == ["dist-n100-u90-s0"]
    undo()
    edit(mini={"teacher": {"epochs": 7}})
    assert list_redone(project) == ["dist-n100-u90-s0", "teacher-n100-s0"]  # which it learned from
    for change in ({"max_target_length": 12}, {"prefix": "note: "}, {"labels": [*WORDS, "NONE"]}):
        undo()
        edit(**change)
        assert list_redone(project) == everything
    undo()
    assert list_redone(project, "TRAIN_FLAGS=--max-steps 5") == everything
    undo()
    for words in (("-n",), ("REDO=1",)):  # before it asks for REDO, or drops a run for it
        wrong = make(project, *words, "table2", "TRAIN_FLAGS=--max-steps x")
        assert wrong.returncode == 2 and "error: --max-steps x: no number\n" in wrong.stderr
    assert list_redone(project) == []
    begun = project / "runs" / "mini-remarks" / "mine" / "small-n200-s0"  # and stopped
    record = json.loads((begun / "training.json").read_text())
    for name in ("training.json", "metrics.json"):
        (begun / name).unlink()
    for flags in ("", " --weight-decay 0.5"):
        write_json(begun / "config.json", {**record, "command": record["command"] + flags})
        done = make(project, "-n", "table2")
        assert ("weight_decay 0.5 -> none since 1 run was made" in done.stderr) == bool(flags)
    redo(project)
    assert not begun.exists() and (begun.parent / "small-n100-s0" / "metrics.json").exists()
    undo()
    row = {"source": "a lamp nobody has seen, so quick", "target": "GOOD"}
    with (folder / "train.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    refused = make(project, "table2")
    assert "train.jsonl changed since these splits were made" in refused.stderr
    assert "small-n100-s0" in list_redone(project)


def test_another_folder_of_the_same_name_and_an_old_run_are_told(project):
    shutil.copytree(project / "remarks", project / "v2" / "remarks")
    shutil.rmtree(project / "runs", ignore_errors=True)
    shutil.rmtree(project / "data" / "prepared", ignore_errors=True)
    finish_runs(project)
    done = make(project, "-n", "table2", "DATA=v2/remarks")
    assert done.returncode and "v2/remarks/train.jsonl was not read for these splits" in done.stderr
    done = make(project, "-n", "table2", "PREPARE_FLAGS=--test-rows 5")
    assert done.returncode and "--test-rows 5" in done.stderr
    path = next(project.glob("runs/mini-remarks/mine/small-*/training.json"))
    path.write_text("{}")
    done = make(project, "-n", "table2")
    assert done.returncode and "a run of an older version" in done.stderr


def test_rules_prepare_the_data_from_any_folder(tmp_path):
    write_remarks(tmp_path / "remarks", {"train": 400, "test": 40, "unlabeled": 90})
    (tmp_path / "remarks" / "task.json").write_text(json.dumps(read_entry()["mine"]))
    words = "rules --for table2 --task mine --data remarks --prepared p --runs runs --made made"
    subprocess.run([sys.executable, ROOT / "costs.py", *words.split()], cwd=tmp_path, check=True)
    assert (tmp_path / "p" / "mine" / "train.jsonl").exists()


def test_nothing_outside_the_folder_of_runs_is_removed(tmp_path):
    for path in (tmp_path, Path("runs/mini"), Path("runs/../data/files.py")):
        with pytest.raises(UserError, match="not a run"):
            stale.drop(path)
