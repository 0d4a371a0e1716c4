"""Promises of the bundle: copied blocks stay the same, help lists every target, names are kept."""

import ast
import csv
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
from copied import list_copied  # noqa: E402

from data.costs.grid import TABLES, grid, shows  # noqa: E402
from data.costs.stale import find_changed_flags, read_words  # noqa: E402
from data.plots import printed  # noqa: E402
from data.plots.results import load_scores  # noqa: E402
from data.tasks import load_task  # noqa: E402

SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
CODE_IN_DATA = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("data/**/[!_]*.py"))
BLOCK = re.compile(r"# same in: (?P<files>.+)\n(?P<text>(?:.*\n)*?)# end same\n")


def read_blocks():
    """{(first line of the block, its files): {script: text}} of all copied blocks."""
    blocks = {}
    for name in SCRIPTS:
        for match in BLOCK.finditer((ROOT / name).read_text(encoding="utf-8")):
            files = tuple(match["files"].split(", "))
            assert name in files, f"{name}: a block that says it is in {files}"
            first = next(line for line in match["text"].splitlines() if line)
            blocks.setdefault((first, files), {})[name] = match["text"]
    return blocks


@pytest.mark.parametrize("key", read_blocks(), ids=lambda key: key[0][:40])
def test_copied_blocks_are_the_same_everywhere(key):
    texts = read_blocks()[key]
    assert set(texts) == set(key[1]), f"{key[0]}: not in {set(key[1]) - set(texts)}"
    assert len(set(texts.values())) == 1, f"{key[0]}: the copies differ"


def test_there_are_copied_blocks():
    assert len(read_blocks()) >= 2


def test_training_scripts_import_nothing_local():
    local = {path.stem for path in [*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")]}
    for name in ("train_small.py", "train_teacher.py", "distill.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        assert not imported & local, f"{name} imports {imported & local}"


def list_local_imports(path, found):
    """Add to `found` every file of the project that `path` imports, itself or by another file."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            file = Path(name.replace(".", "/") + ".py")
            if file not in found and (ROOT / file).is_file():
                found.add(file)
                list_local_imports(file, found)


@pytest.mark.parametrize("path", [*SCRIPTS, *CODE_IN_DATA])
def test_the_copy_line_names_all_that_is_imported(path):
    path, needed = Path(path), set()
    list_local_imports(path, needed)
    said = re.search(r"^Copy: *(.*)", (ROOT / path).read_text(), re.MULTILINE)
    if said and "whole project" not in said[1]:
        assert not {path, *needed} - list_copied(path)


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstring_has_its_parts_in_order(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = [text.index(f"\n{part}") for part in ("Usage:", "Reads:", "Writes:", "Copy:", "Paper:")]
    assert parts == sorted(parts)


@pytest.mark.parametrize(
    "name",
    ["costs.py", "plots.py", "evaluate.py", "gpt_annotate.py", "train_small.py", "distill.py"],
)
def test_help_needs_no_heavy_import(name):
    """`--help` and a wrong flag answer at once: torch and transformers are not loaded for them."""
    code = (
        f"import runpy, sys; sys.argv = ['{name}', '--help']\n"
        f"try: runpy.run_path('{name}', run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code\n"
        "assert not code and not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout


def run_make(*args):
    return subprocess.run(
        ["make", *args], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )


def test_make_alone_is_help_and_lists_every_target():
    shown = run_make().stdout
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"^([a-z][a-z0-9-]*):.*## ", text, re.MULTILINE):
        assert re.search(rf"^  {target} ", shown, re.MULTILINE), target
    for target in ("table1", "table2", "fig2", "all", "test", "mini-models"):
        assert f"  {target} " in shown
    known = re.search(r"^KNOWN := (.*?)OPENAI_API_KEY", text, re.MULTILINE | re.DOTALL)[1]
    for variable in known.replace("\\\n", " ").split():
        assert re.search(rf"^  {variable}=\S", shown, re.MULTILINE), variable
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("TASK=nosuch", "wlp"),
        ("TASK=-x", "'-x'"),
        ("SCALE=huge", "paper"),
        ("SEEDS=x", "x"),
        ("SEEDS=-1", "-1"),
        ("DATA=/no/such", "DATA"),
        *((f"{name}=0", f"say {name}=1 or leave it out") for name in ("PARTIAL", "REDO", "LLM")),
        *((f"BUDGET={text}", "dollars such as 20") for text in ("-5", "x", "", "0.0", "5.5.5")),
        *((f"LLM_ACCURACY={text}", "one share from 0 to 1") for text in ("x", "..", "1.5", "70")),
        ("TRAIN_FLAGS=--max-steps x", "--max-steps x: no number"),
        ("SMALL_FLAGS='", "No closing quotation"),
        ("DATA=tests PREPARE_FLAGS=--nosuch", "unrecognized arguments: --nosuch"),
    ],
)
def test_a_bad_setting_stops_at_once_with_one_error_line(setting, named):
    done = run_make("table2", "-n", *setting.split(" ", setting.startswith("DATA=tests ")))
    assert done.returncode != 0
    assert done.stderr.count("error:") == 1
    assert named in done.stderr


def test_seeds_are_never_passed_over(tmp_path):
    """A pilot has its own; a sweep takes one."""
    for goal, refused in (("pilot", True), ("advise", True), ("sweep", False)):
        done = run_make("-n", f"RUNS={tmp_path}", goal, "SEEDS=3")
        assert bool(done.returncode) == refused == ("its own seeds" in done.stderr)
    assert done.stdout.split()[-2:] == ["--seed", "'3'"]
    assert not run_make("-n", f"RUNS={tmp_path}", "table3", "advise", "SEEDS=3").returncode


@pytest.mark.parametrize(
    "setting",
    [
        "DATA={tmp}/my data",
        "DATA={tmp}/d'x",
        "DATA={tmp}/a:b",
        "DATA={tmp}/d;x",
        "DATA={tmp}/`touch made`",
        "DATA=/",
        "SCALE=",
        "SCALE=../..",
        "SCALE=mini /tmp/x",
        "SCALE=nosuch",
        "TASK=wlp' ; touch made ; '",
        "SEEDS=0;1",
        "MODEL=a b",
    ],
)
@pytest.mark.parametrize("goal", ["clean-runs", "settings", "table2", "data"])
def test_words_that_are_no_plain_path_stop_every_goal(goal, setting, tmp_path):
    for name in ("my data", "a:b"):
        (tmp_path / name).mkdir()
    done = run_make("-n", goal, setting.format(tmp=tmp_path))
    assert done.returncode and "error: " in done.stderr and setting.split("=")[0] in done.stderr
    assert "rm -rf" not in done.stdout and not (ROOT / "made").exists()


@pytest.mark.parametrize(
    ("words", "safe", "said"),
    [
        (["-f", str(ROOT / "Makefile")], "", "has no data/scales.json: run make in the folder of"),
        (["-C", str(ROOT)], "1", "PYTHONSAFEPATH is set, by which Python finds no module"),
        (["-C", str(ROOT), "SCALE=mini ", "TASK= wlp"], "", None),
    ],
)
def test_make_says_where_it_runs_and_by_which_python(words, safe, said, tmp_path):
    done = subprocess.run(
        ["make", "settings", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONSAFEPATH": safe},
        capture_output=True,
        text=True,
    )
    if said is None:
        assert done.returncode == 0 and "TASK=wlp SCALE=mini SEEDS=0" in done.stdout
        assert not done.stderr
        return
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "error: " in done.stderr
    assert said in done.stderr


@pytest.mark.parametrize("case", ["link", "whole", "broken"])
def test_an_environment_that_is_there_is_not_emptied(tmp_path, case):
    """A link may lead to another's; what runs may hold the torch that its user chose."""
    (tmp_path / "own" / "bin").mkdir(parents=True)
    inner = tmp_path / "own" / "bin" / "python"
    inner.write_text("#!/bin/sh\nexit 0\n" if case != "broken" else "#!/none\n")
    inner.chmod(0o755)
    (tmp_path / "link").symlink_to("own")
    python = tmp_path / "python"  # only tells what it would do
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\necho "asked $@"\n')
    python.chmod(0o755)
    place = tmp_path / ("link" if case == "link" else "own")
    done = run_make("venv", f"PYTHON={python}", f"VENV={place}")
    asked = [line for line in done.stdout.splitlines() if line.startswith("asked")]
    if case == "link":
        assert done.returncode and "is a link" in done.stderr and not asked
    else:
        assert asked == [f"asked -m venv {'--clear ' * (case == 'broken')}{place}"]


def test_the_project_may_lie_in_a_folder_whose_name_has_a_space(tmp_path):
    home = tmp_path / "my project"
    (home / "data").mkdir(parents=True)
    (home / "remarks").mkdir()
    for name in ("Makefile", "requirements.txt", "data/scales.json"):
        (home / name).write_bytes((ROOT / name).read_bytes())
    words = ["make", "settings", "DATA=remarks"]
    done = subprocess.run(words, cwd=home, capture_output=True, text=True, check=True)
    assert "runs: runs/mini-remarks  data: data/prepared/mini-remarks " in done.stdout


@pytest.mark.parametrize("data", ["", "tests"])
def test_clean_runs_removes_one_world_of_runs_and_splits_alone(data):
    world = "mini-tests" if data else "mini"
    lines = run_make("-n", "clean-runs", f"DATA={data}").stdout.splitlines()
    assert lines == [f"rm -rf -- 'runs/{world}' 'data/prepared/{world}'"]


def list_commands(runs, *args):
    """Commands of `make -n ARGS`, each on one line; `runs` is a folder without runs."""
    done = run_make("-n", f"RUNS={runs}", *args)
    assert done.returncode == 0, done.stderr
    return re.split(r"\n| && | -- ", done.stdout.replace("\\\n", " "))


def find_trained(commands, runs):
    """{"wlp/small-n100-s0": its training command}; each run may stand there only once."""
    found = {}
    for line in commands:
        match = re.search(rf" --output {runs}/(\S+)", line)
        if match and " --strategy " in line:
            assert match[1] not in found, f"{match[1]} is trained twice"
            found[match[1]] = line
    return found


def read_flags(command):
    words = shlex.split(command)
    return {a: b for a, b in itertools.pairwise(words) if a.startswith("--")}


def test_make_n_at_paper_scale_prints_the_papers_commands(tmp_path):
    """Table 2's counts and Table 8's settings, as the paper prints them, are in the commands."""
    trained = find_trained(list_commands(tmp_path, "table2", "SCALE=paper", "TASK=all"), tmp_path)
    numbers = printed.load_printed(8)
    wanted = set()
    for cell in (row for row in load_scores() if row["table"] == 2):
        kind, task, n = cell["strategy"], cell["task"], cell["labels"]
        counts = {"teacher": f"n{n}", "small": f"n{n + (cell['extra_labels'] or 0)}"}
        counts["dist"] = cell["unlabeled"] and f"n{n}-u{cell['unlabeled']}"
        if counts[kind]:
            wanted.add(f"{task}/{kind}-{counts[kind]}-s0")
    assert set(trained) == wanted
    for name, command in trained.items():
        task, run = name.split("/")
        flags, teacher = read_flags(command), run.startswith("teacher")
        for item in ("epochs", "learning_rate"):
            value, _, for_teacher = numbers[task, item].rstrip(")").partition(" (")
            value = for_teacher if teacher and for_teacher else value
            assert float(flags[f"--{item.replace('_', '-')}"]) == float(value), name
        for item in ("batch_size", "max_source_length", "max_target_length"):
            assert flags[f"--{item.replace('_', '-')}"] == numbers[task, item], name
        assert flags["--prefix"] == f"{task}: "
        family = "google/t5-{}-ssm" if task == "nq" else "google/t5-v1_1-{}"
        model = flags.get("--model") or flags["--student"]
        assert model == family.format("xxl" if teacher else "small"), name


def test_a_run_of_several_tables_is_trained_and_labeled_once(tmp_path):
    asked = ("table2", "table3", "table11", "fig2", "fig3")
    lines = list_commands(tmp_path, *asked, "TASK=wlp fever")
    trained = find_trained(lines, tmp_path)  # which refuses a second time
    every = {
        f"{task}/{run.name}"
        for table in asked
        for task in ("wlp", "fever")
        for run in grid(table, load_task(task), "mini")
    }
    assert set(trained) == every
    scored = [line for line in lines if "evaluate.py " in line]
    assert len(scored) == len(every)
    passes = [re.search(r"--labels (\S+)", x)[1] for x in lines if "--labels-only" in x]
    assert len(passes) == len(set(passes)) >= 10


def test_make_all_makes_what_the_paper_shows_of_a_task(tmp_path):
    def list_made(*args):
        lines = [line for line in list_commands(tmp_path, "all", *args) if " plots.py " in line]
        return {re.search(r"plots.py (\S+)", line)[1] for line in lines}

    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    made = set(re.findall(r"^((?:table|fig)\d+):.*## ", text, re.MULTILINE))
    assert list_made() == made
    unshown = {table for table in TABLES if not shows(table, "fever")}
    assert list_made("TASK=fever") == made - unshown < made


def test_a_run_is_scored_before_the_next_one_is_trained(tmp_path):
    lines = list_commands(tmp_path, "table2", "-j1")
    kinds = []
    for line in lines:
        if "evaluate.py " in line:
            kinds.append("score")
        elif " --strategy " in line:
            kinds.append("train")
    assert kinds == ["train", "score"] * 20


STAND_IN = """#!/usr/bin/env bash
# In place of .venv/bin/python: notes its command; a scored run gets metrics.json, but for one.
echo "$@" >> {log}
while [ $# -gt 0 ]; do [ "$1" = --output ] && output=$2; [ "$1" = --model ] && model=$2; shift; done
case $model in *{fails}/model) exit 1;; esac
if tail -n 1 {log} | grep -q evaluate.py; then
  mkdir -p "$output" && cp {metrics} "$output/metrics.json"
elif [ -n "$output" ]; then mkdir -p "$output"; touch "$output/about.json"
else mkdir -p {runs}/wlp/teacher-n500-s0 {runs}/wlp/small-n500-s0; fi
"""


def test_make_continues_where_it_stopped_and_then_only_prints(tmp_path):
    runs, log = tmp_path / "runs", tmp_path / "log"
    measures = {"entity_f1": 12.5, "f1_released": 25.0, "invalid_rate": 0.0, "constant": 0.5}
    metrics = {"task": "wlp", "n": 7, "metric": "entity_f1", "score": 12.5, "metrics": measures}
    (tmp_path / "metrics.json").write_text(json.dumps({**metrics, "signature": "s"}))
    script, about = tmp_path / "python", tmp_path / "data" / "wlp" / "about.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"asked": "--task wlp --scale mini".split(), "files": {}}))

    def make(fails):
        values = {"runs": runs, "log": log, "metrics": tmp_path / "metrics.json", "fails": fails}
        text = STAND_IN
        for name, value in values.items():
            text = text.replace(f"{{{name}}}", str(value))
        script.write_text(text)
        script.chmod(0o755)
        log.write_text("")
        where = (f"RUNS={runs}", f"PREPARED={tmp_path}/data", f"PY={script}")
        done = run_make("table3", "-j1", *where, "INSTALLED=Makefile", f"PYTHON={sys.executable}")
        scored = re.findall(r"evaluate.py .*/(\S+)/model ", log.read_text())
        return done.returncode, scored, done.stdout

    code, scored, shown = make(fails="self-n500-u10000-s0")
    assert code != 0 and "Table 3" not in shown
    assert scored == ["small-n500-s0", "teacher-n500-s0", "self-n500-u10000-s0"]
    partial = run_make("table3", f"RUNS={runs}", "PARTIAL=1", f"PYTHON={sys.executable}").stdout
    assert "12.5" in partial and "missing" in partial
    code, scored, shown = make(fails="none")
    assert code == 0 and scored == ["self-n500-u10000-s0", "dist-n500-u10000-s0"]
    assert "12.5" in shown and "missing" not in shown
    code, scored, again = make(fails="none")
    assert code == 0 and again == shown and log.read_text() == ""


WAITS = """#!/usr/bin/env bash
# In place of .venv/bin/python: waits at one script until it is stopped.
case " $*" in *" {script} "*) trap 'echo stopped >> {log}; kill $!; exit 143' TERM
echo begun >> {log}; sleep 60 & wait;; esac
"""


@pytest.mark.parametrize(
    "script", ["data.prepare", "train_teacher.py", "evaluate.py", "gpt_annotate.py"]
)
def test_a_sigterm_to_make_alone_reaches_what_runs(tmp_path, script):
    """Not in one process, as at the other scales: else a shell between takes it, and the run goes
    on in its folder, or buys answers, with nobody who knows."""
    log, python = tmp_path / "log", tmp_path / "python"
    python.write_text(WAITS.replace("{script}", script).replace("{log}", str(log)))
    python.chmod(0o755)
    where = (f"RUNS={tmp_path}", f"PREPARED={tmp_path}/data", f"PY={python}", "INSTALLED=Makefile")
    words = ["make", "-j1", "fig6", "LAUNCH=env", f"PYTHON={sys.executable}", *where]
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(words, cwd=ROOT, **pipes) as make:
        while not log.exists() and make.poll() is None:
            time.sleep(0.05)
        make.terminate()
    assert log.read_text() == "begun\nstopped\n"


@pytest.mark.parametrize(
    ("launch", "scored"),
    [
        ("srun --gpus 1", True),
        ("data/bench/free_gpu.sh", True),
        ("torchrun --standalone --no-python --nproc-per-node 2", False),
    ],
)
def test_launch_stands_before_training_and_a_queue_before_scoring_too(launch, scored):
    text = run_make("-n", "table2", "SCALE=paper", f"LAUNCH={launch}").stdout
    for script in ("train_small.py", "train_teacher.py", "distill.py"):
        commands = [line for line in text.splitlines() if f"python  {script} " in line]
        assert commands and all(f" {launch} " in line for line in commands)
    scores = re.findall(r"^exec (.* evaluate\.py .*)", text, re.MULTILINE)
    assert scores and all(line.startswith(launch) == scored for line in scores)


def test_the_teacher_labels_the_rows_that_its_students_draw(tmp_path):
    """Rows are drawn by seed, so the pass has the seed of the runs that learn from it."""
    passes = [x for x in list_commands(tmp_path, "table2", "SEEDS=0 7") if "--labels-only" in x]
    assert len(passes) == 4
    for line in passes:
        seed = re.search(r"--teacher \S+/wlp/teacher-n\d+-s(\d+)/model", line)[1]
        assert f"--seed {seed} " in line + " "


def read_block(path, name):
    """What stands between the marks of a block in a Markdown file."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return re.search(rf"<!-- {name} -->\n(.*?)<!-- end of {name} -->", text, re.DOTALL)[1]


def test_the_shown_table_is_the_measured_one():
    shown = read_block("data/results/README.md", "table2")
    assert shown == (ROOT / "data" / "results" / "mini-table2.md").read_text(encoding="utf-8")


def summarise_cells(path):
    """A line for each task and N of a table's cells: scores in the order of the budgets."""
    groups = {}
    with open(path, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            group = groups.setdefault((row["Task"], row["N"]), {"Ann.": [], "Dist.": []})
            group.setdefault("Constant", row["Constant"])
            group.setdefault(row["Strategy"], []).append(row["Score"])
    lines = []
    for (task, n), group in groups.items():
        scores = [" ".join(group[kind]) for kind in ("Teacher", "Ann.", "Dist.")]
        lines.append("| " + " | ".join([task, n, group["Constant"], *scores]) + " |")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("path", "name", "cells"),
    [
        ("README.md", "wlp", "mini-table2-cells.csv"),
        ("data/results/README.md", "town", "mini-town-table2-cells.csv"),
    ],
)
def test_a_summary_of_cells_is_the_measured_one(path, name, cells):
    shown = re.search(r".*\n\|[-:| ]+\n([^<]*)", read_block(path, name))[1]
    assert shown == summarise_cells(ROOT / "data" / "results" / cells)


def test_counts_of_wins_are_those_under_the_tables():
    """Each "Of 39 cells Dist. wins 27, ..." of the results stands under the table it links to."""
    folder = ROOT / "data" / "results"
    text = " ".join((folder / "README.md").read_text(encoding="utf-8").split())
    quoted = re.findall(r"\]\(([a-z0-9-]+\.md)\): (Of \d+ cells [^:]*: \d+\.)", text)
    assert len(quoted) >= 4
    for name, sentence in quoted:
        assert f"- {sentence}\n" in (folder / name).read_text(encoding="utf-8"), name


def test_the_readme_quotes_the_backtest():
    with open(ROOT / "data" / "results" / "advise-backtest.csv", encoding="utf-8") as file:
        rows = {
            (r["world"], r["case"], r["measure"]): float(r["value"]) for r in csv.DictReader(file)
        }
    text = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    always = f"{100 * rows['paper', 'always Dist.', 'winner right']:.0f}% of the paper's decided"
    right, told, told_right = (
        f"{100 * rows['paper', 'P3', name]:.0f}%"
        for name in ("winner right", "told", "right if told")
    )
    assert always in text and f"one distilled run in {right}" in text
    assert f"in {told_right} of those ({told} of all)" in text


def test_readme_names_every_target_and_script():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(
        r"^(table\d+|fig\d+|bench|test|lint|data|mini-models):.*## ", makefile, re.MULTILINE
    ):
        assert f"make {target}" in text, target
    for name in SCRIPTS:
        assert name in text, name


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MAKE_VERSION=3.81", "table1"], "GNU make 4.2 or newer is needed, this is 3.81"),
        (["PYTHON=nosuch", "table1"], "PYTHON=nosuch: no such program"),
        (["table1", "task=wlp"], "task=: no such variable; did you mean TASK?"),
        (["table2", "BUDGETS=5"], "BUDGETS=: no such variable; did you mean BUDGET?"),
        (["tabel2"], "tabel2: no such target; did you mean table2?"),
        (["table2", "RECIPE=nosuch"], "no recipe 'nosuch'"),
        (["table2", "TASK=wpl"], "unknown task 'wpl'; did you mean wlp?"),
        (["table2", "DIST_FLAGS=--x 'y"], "DIST_FLAGS: No closing quotation"),
        (["advise", "ADVISE_FLAGS=--gpu Z100"], "no speed of GPU 'Z100'"),  # before the pilot
    ],
)
def test_a_mistyped_word_is_met_with_the_nearest_one(words, said, tmp_path):
    done = run_make("-n", f"RUNS={tmp_path}", *words)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("error:") == 1
    assert not done.stdout


def test_the_environment_neither_redirects_nor_spends(tmp_path):
    odd = {
        "MODEL": "gpt-4o-mini",
        "TASK": "nq",
        "SCALE": "paper",
        "DATA": "/x",
        "OPENAI_API_KEY": "k",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}

    def make(*words, **more):
        environment = {"env": {**kept, **odd, **more}, "capture_output": True, "text": True}
        line = ["make", *words, f"RUNS={tmp_path}"]
        return subprocess.run(line, cwd=ROOT, check=False, **environment)

    done = make("-n", "fig6")
    assert done.returncode == 0 and "--simulate" in done.stdout, done.stderr
    assert "gpt-4o-mini" not in done.stdout and "--task nq" not in done.stdout
    words = (("-e",), ("-ke",), ("--environment-overrides",), ("-j2", "-e"), ("help", "-e"))
    for done in [*(make(*each, "-n", "fig6") for each in words), make("fig6", MAKEFLAGS="ne")]:
        assert done.returncode == 2 and "error: -e: variables come from" in done.stderr
        assert not done.stdout


def test_each_script_gets_its_own_flags_and_the_work_is_told_first(tmp_path):
    flags = (
        "SMALL_FLAGS=--weight-decay 0.5",
        "TEACHER_FLAGS=--lora-rank 4",
        "DIST_FLAGS=--temperature 2",
    )
    done = run_make("-n", f"RUNS={tmp_path}", "table2", "-j", "3", *flags)
    told = r"20 of 20 runs to do, about .*, 3 at a time$"
    assert re.match(told, done.stderr, re.MULTILINE), done.stderr
    told = run_make("-n", f"RUNS={tmp_path}", "table2", "-j1").stderr
    assert "20 runs to do" in told and "at a time" not in told
    for line in done.stdout.splitlines():
        for script, flag in zip(
            ("train_small.py", "train_teacher.py", "distill.py"), flags, strict=True
        ):
            assert (flag.split("=")[1] in line) == (f" {script} " in line)


def test_two_makes_at_once_each_do_their_own_work(tmp_path):
    line = ["make", "-n", "table2", f"RUNS={tmp_path}"]
    seeds = ("0", "1", "0 1")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    makes = [subprocess.Popen([*line, f"SEEDS={seed}"], **pipes) for seed in seeds]
    for process, seed in zip(makes, seeds, strict=True):
        text, errors = process.communicate(timeout=120)
        trained = re.findall(r"--strategy .* --output \S+-s(\d) -- evaluate.py ", text)
        assert process.returncode == 0 and sorted(set(trained)) == seed.split(), errors
        assert len(trained) == 20 * len(seed.split())


@pytest.mark.parametrize(
    ("word", "counts"),
    [
        ("--dataloader-drop-last", True),  # other rows are learnt from
        ("--dataloader-num-workers 2", False),
        ("--report-to tensorboard", False),
        ("--micro-batch 2", False),
        ("--weight-decay 0.1", True),
    ],
)
def test_flags_that_change_an_experiment_are_told_from_those_that_do_not(word, counts):
    """By make of a finished run, and by the scripts of a run that they continue."""
    now = read_words(shlex.split(word))
    assert bool(find_changed_flags(now, {"command": "train_small.py"}, {})) == counts
    for script in ("train_small.py", "train_teacher.py", "distill.py"):
        free = re.search(
            r"FREE = re.compile\(.*?\n    (.*?)\n\)", (ROOT / script).read_text(), re.S
        )
        assert bool(re.search(ast.literal_eval(f"({free[1]})"), *now)) != counts
