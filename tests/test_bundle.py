"""Promises of the bundle: copied blocks stay the same, help lists every target, names are kept."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
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
    assert len(read_blocks()) >= 5


def test_training_scripts_import_nothing_local():
    local = {path.stem for path in [*ROOT.glob("*.py"), *(ROOT / "data").glob("*.py")]}
    for name in ("train_small.py", "train_teacher.py", "distill.py"):
        text = (ROOT / name).read_text(encoding="utf-8")
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", text, re.MULTILINE))
        assert not imported & local, f"{name} imports {imported & local}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_docstring_has_its_parts_in_order(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    parts = [text.index(f"\n{part}") for part in ("Usage:", "Reads:", "Writes:", "Copy:", "Paper:")]
    assert parts == sorted(parts)


@pytest.mark.parametrize("name", ["costs.py", "plots.py", "evaluate.py", "gpt_annotate.py"])
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
    for target in ("table1", "table2", "table5", "table6", "table8", "test", "mini-models"):
        assert f"  {target} " in shown


@pytest.mark.parametrize(
    ("setting", "named"),
    [("TASK=nosuch", "wlp"), ("SCALE=huge", "paper"), ("SEEDS=x", "x"), ("DATA=/no/such", "DATA")],
)
def test_a_bad_setting_stops_at_once_with_one_error_line(setting, named):
    done = run_make("table2", setting)
    assert done.returncode != 0
    assert done.stderr.count("error:") == 1
    assert named in done.stderr


def test_make_n_at_paper_scale_prints_the_papers_commands():
    """Table 8's settings, T5 v1.1 names and Table 2's counts are in the commands."""
    done = run_make("-n", "table2", "SCALE=paper")
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\\\n", " ")
    commands = [line for line in text.splitlines() if " --output runs/paper/wlp/" in line]
    trained = {re.search(r"runs/paper/wlp/(\S+)", c)[1]: c for c in commands if "train_" in c}
    assert set(trained) == {
        *(f"small-n{n}-s0" for n in (1000, 1384, 1769, 2153, 2923)),
        *(f"small-n{n}-s0" for n in (5000, 5384, 5769, 6153, 6923)),
        *("teacher-n1000-s0", "teacher-n5000-s0"),
    }
    small, teacher = trained["small-n1384-s0"], trained["teacher-n1000-s0"]
    assert "--model google/t5-v1_1-small " in small and "--epochs 50 " in small
    assert "--model google/t5-v1_1-xxl " in teacher and "--epochs 20 " in teacher
    for command in (small, teacher):
        for setting in (
            "--batch-size 32 ",
            "--learning-rate 3e-05 ",
            "--max-source-length 128 ",
            "--max-target-length 128 ",
            "--prefix 'wlp: '",
        ):
            assert setting in command
    distilled = re.findall(r"--num-unlabeled (\d+) --seed 0", text)
    assert sorted(map(int, distilled)) == [
        *(7000, 19000, 30000, 42000, 53000, 65000, 99000, 111000)
    ]


def test_the_teacher_labels_the_rows_that_its_students_draw():
    """Rows are drawn by seed, so the pass has the seed of the runs that learn from it."""
    text = run_make("-n", "table2", "SEEDS=0 7").stdout.replace("\\\n", " ")
    passes = [line for line in text.splitlines() if "--labels-only" in line]
    assert len(passes) == 4
    for line in passes:
        seed = re.search(r"--teacher runs/mini/wlp/teacher-n\d+-s(\d+)/model", line)[1]
        assert f"--seed {seed} " in line + " "


def test_the_readmes_table_is_the_measured_one():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- table2 -->\n(.*?)<!-- end of table2 -->", text, re.DOTALL)[1]
    assert shown == (ROOT / "data" / "results" / "mini-table2.md").read_text(encoding="utf-8")


def test_readme_names_every_target_and_script():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(
        r"^(table\d+|fig\d+|bench|test|lint|data|mini-models):.*## ", makefile, re.MULTILINE
    ):
        assert f"make {target}" in text, target
    for name in SCRIPTS:
        assert name in text, name
