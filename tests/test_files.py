"""data/files.py: JSON that is none is named by file, key and type; files are whole or not there."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.files import (
    ROOT,
    UserError,
    need,
    read_if_there,
    read_json,
    read_jsonl,
    run_cli,
    write_atomic,
    write_json,
)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (b'{"source": "so happy \\ud83d", "target": "x"}', "line 1: half of a character"),
        (b'{"source": "a", "target": "b"}\n[1]', "line 2: no 'source'"),
        (b'{"source": "a"}', "line 1: no 'target'"),
        (b'{"source": NaN, "target": "b"}', "NaN is no number"),
        (b'{"source": 1e999, "target": "b"}', "1e999 is too large a number"),
        (b'{"source": "a", "target": "b", "target": "c"}', "'target' stands twice"),
        (b"[" * 100_000, "line 1: not JSON"),
        (b'{"source": "a", "target": "b"}\n\xff', "line 2: not UTF-8"),
        (b"\n\n", "no rows"),
    ],
)
def test_a_row_that_is_none_is_named_by_file_and_line(tmp_path, text, named):
    (tmp_path / "rows.jsonl").write_bytes(text)
    with pytest.raises(UserError, match=r"rows\.jsonl") as stop:
        read_jsonl(tmp_path / "rows.jsonl")
    assert named in str(stop.value) and "\n" not in str(stop.value)


def test_a_mark_at_the_front_and_odd_line_ends_are_read(tmp_path):
    text = '\ufeff{"source": "a\u2028b", "target": "ã"}\r\n{"source": "c", "target": ""}\n'
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8", newline="")
    assert [row["source"] for row in read_jsonl(tmp_path / "rows.jsonl")] == ["a\u2028b", "c"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([1], "must be an object"),
        ({}, "no 'a', which is an object"),
        ({"a": 5}, "'a': must be an object, not 5"),
        ({"a": {"b": "x"}}, "'b': must be a number"),
        ({"a": {"b": True}}, "'b': must be a number, not true"),
    ],
)
def test_a_record_of_the_wrong_shape_is_named_by_key_and_type(tmp_path, value, named):
    path = tmp_path / "metrics.json"
    write_json(path, value)
    with pytest.raises(UserError) as stop:
        need(read_json(path), "a b", float, path)
    assert str(path) in str(stop.value) and named in str(stop.value)


SHAPE = {"n": int, "seconds": {None: float}, "intervals": {None: [float]}, "settings": {"k": int}}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"n": 5, "seconds": None, "intervals": {"f1": [1, 2.5]}, "more": [1]}, None),
        ({"seconds": [1]}, "'seconds': must be an object"),
        ({"seconds": {"train": "x"}}, "'train': must be a number"),
        ({"seconds": {"train": 10**400}}, "'train': must be a number"),
        ({"intervals": {"f1": 5}}, "'f1': must be a list"),
        ({"intervals": {"f1": [None]}}, "'f1': must be a number"),
        ({"settings": 5}, "'settings': must be an object"),
        ({"settings": {"k": True}}, "'k': must be a whole number"),
        ({"n": None}, "'n': must be a whole number, not null"),
    ],
)
def test_a_record_is_of_its_shape(tmp_path, value, named):
    path = tmp_path / "metrics.json"
    write_json(path, {"n": 1, **value})
    if not named:
        assert read_json(path, SHAPE, "n") == read_if_there(path, SHAPE) == {"n": 1, **value}
        assert read_if_there(tmp_path / "none.json", SHAPE) == {}
        return
    with pytest.raises(UserError) as stop:
        read_json(path, SHAPE, "n")
    assert str(path) in str(stop.value) and named in str(stop.value)


@pytest.mark.parametrize("mask", [0o077, 0o022])
def test_a_file_has_the_permissions_that_the_umask_gives(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_atomic(tmp_path / "file", "x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as stop:
        write_atomic(tmp_path / "file", "new")
    assert stop.value.filename == str(tmp_path / "file")
    assert Path(tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_terminal_that_knows_no_dash_still_gets_its_table():
    line = [sys.executable, "plots.py", "table5"]
    setting = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(line, cwd=ROOT, env=setting, capture_output=True, check=False)
    assert done.returncode == 0 and b"?" in done.stdout and not done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("costs.py prices >&-", 0, b""),
        (
            "costs.py report $'caf\\xe9'",
            1,
            b"error: 'caf\\udce9': a name that is not UTF-8; rename it\n",
        ),
    ],
)
def test_a_closed_stdout_and_a_name_that_is_no_text_are_no_traceback(words, code, said):
    line = ["bash", "-c", f"{sys.executable} {words}"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (code, said)


def test_a_missing_package_is_one_line_that_says_what_to_do(capsys):
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: importlib.import_module("no_such_package"))
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.startswith("error: no package 'no_such_package' in /")
    assert error.endswith("make venv, then source .venv/bin/activate\n")


@pytest.mark.parametrize("script", ["train_small.py", "train_teacher.py", "distill.py"])
def test_a_training_script_without_torch_says_so_in_one_line(script):
    here = Path(__file__)
    what = ["--labels", here.parent, "--teacher", here.parent, "--unlabeled", here]
    what = what if script == "distill.py" else ["--train", here]
    words = [sys.executable, "-S", here.parents[1] / script, *what, "--output", "/tmp/none/run"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: no package 'torch' in /")
    assert done.stderr.count("\n") == 1


def test_scoring_without_numpy_says_so_in_one_line(tmp_path):
    words = [sys.executable, "-S", "evaluate.py", "--task", "wlp", "--predictions", "none.jsonl"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("error: no package 'numpy' in /")
    assert done.stderr.endswith("source .venv/bin/activate\n") and done.stderr.count("\n") == 1
