"""train_small.py through its command line, on the mini student and the mini world."""

import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import slow

import evaluate
import train_small
from data import prepare

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "data" / "world" / "models" / "student"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    prepare.main(["--task", "wlp", "--output", str(folder)])
    return folder


def list_flags(world, output, **changes):
    """Flags of a short run; a change of None leaves the flag out."""
    flags = {
        "model": STUDENT,
        "train": world / "train.jsonl",
        "num-labels": 60,
        "prefix": "wlp: ",
        "max-steps": 12,
        "batch-size": 8,
        "learning-rate": 2e-3,
        "save-steps": 5,
        "logging-steps": 1,
        "output": output,
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return [word for k, v in flags.items() if v is not None for word in (f"--{k}", str(v))]


@pytest.mark.parametrize(
    ("rows", "max_steps", "min_steps", "steps"),
    [(100, -1, 0, -1), (100, -1, 40, 40), (320, -1, 40, -1), (321, -1, 41, -1), (100, 7, 40, 7)],
)
def test_steps_are_those_of_the_epochs_and_at_least_min_steps(rows, max_steps, min_steps, steps):
    """-1 leaves it to Trainer: 4 epochs of 10 or 11 batches are 40 or 44 steps."""
    args = Namespace(min_steps=min_steps, epochs=4, batch_size=32)
    training = Namespace(max_steps=max_steps)
    train_small.raise_steps(args, training, rows)
    assert training.max_steps == steps


def load_weights(run):
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def test_it_learns_and_records_what_it_did(world, tmp_path, capsys):
    run = tmp_path / "run"
    changes = {"num_labels": 200, "batch_size": 16, "logging_steps": 20}
    changes |= {"max_steps": None, "epochs": 2, "min_steps": 250}
    train_small.main(list_flags(world, run, task="wlp", dropout=0.05, **changes))
    record = json.loads((run / "training.json").read_text())
    assert (record["strategy"], record["task"], record["labels"]) == ("small", "wlp", 200)
    assert record["steps"] == 250 and record["parameters"] == 254_656
    assert set(record["seconds"]) == {"load", "train", "save"}
    assert record["hardware"]["device"] in ("cpu", "cuda") and record["data_sha256"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert not (run / "checkpoints").exists()

    rows = world / "dev100.jsonl"
    rows.write_text("".join((world / "dev.jsonl").read_text().splitlines(True)[:100]))
    flags = ["--task", "wlp", "--model", str(run / "model"), "--data", str(rows), "--split", "dev"]
    flags += ["--output", str(run), "--max-source-length", "64", "--max-target-length", "64"]
    evaluate.main(flags)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["score"] > 10  # the constant predictor gets about 1, the untrained model 0
    assert metrics["training"]["labels"] == 200
    capsys.readouterr()


def test_a_finished_run_is_left_alone(world, tmp_path, capsys):
    flags = list_flags(world, tmp_path / "run", max_steps=2)
    train_small.main(flags)
    before = (tmp_path / "run" / "training.json").stat().st_mtime_ns
    train_small.main(flags)
    assert "already trained" in capsys.readouterr().err
    assert (tmp_path / "run" / "training.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(world, tmp_path):
    train_small.main(list_flags(world, tmp_path / "run", max_steps=2))
    with pytest.raises(SystemExit, match=r"error: .*learning_rate 0.002 -> 0.01"):
        train_small.main(list_flags(world, tmp_path / "run", max_steps=2, learning_rate=0.01))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_an_interrupted_run_ends_with_the_same_weights(world, tmp_path, monkeypatch, dropout):
    """Killed after step 7 with a checkpoint at 5: the rest is what it would have been."""
    train_small.main(list_flags(world, tmp_path / "whole", dropout=dropout))
    log = train_small.Progress.on_log

    def stop(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == 7:
            raise RuntimeError("killed")

    flags = list_flags(world, tmp_path / "killed", dropout=dropout)
    monkeypatch.setattr(train_small.Progress, "on_log", stop)
    with pytest.raises(RuntimeError, match="killed"):
        train_small.main(flags)
    monkeypatch.setattr(train_small.Progress, "on_log", log)
    half = tmp_path / "killed" / "checkpoints" / "checkpoint-9"  # killed while it was written
    shutil.copytree(tmp_path / "killed" / "checkpoints" / "checkpoint-5", half)
    (half / "trainer_state.json").unlink()
    train_small.main(flags)
    whole, resumed = load_weights(tmp_path / "whole"), load_weights(tmp_path / "killed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    steps = [json.loads(x)["step"] for x in (tmp_path / "killed" / "log.jsonl").open()]
    assert steps == list(range(1, 13))


def test_more_labels_contain_fewer():
    rows = [{"source": str(i), "target": "x" if i % 10 else " "} for i in range(100)]
    few, more, other = (
        [row["source"] for row in train_small.sample_rows(rows, n, seed, "file")]
        for n, seed in ((20, 1), (50, 1), (20, 2))
    )
    assert more[:20] == few and set(other) != set(few)
    assert not any(int(source) % 10 == 0 for source in more)  # an empty target teaches nothing


def test_batches_hold_similar_lengths_and_all_rows_once():
    lengths = [(i * 37) % 50 for i in range(203)]
    sampler = train_small.LengthGroupedSampler(lengths, 8, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again != list(sampler)
    assert sorted(first) == list(range(203))
    spreads = [
        max(b) - min(b) for i in range(0, 200, 8) if (b := [lengths[j] for j in first[i : i + 8]])
    ]
    assert sum(spreads) / len(spreads) < 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 5000}, r"5,000 labels asked for, 1,200 rows"),
        ({"train": "/no/such.jsonl"}, r"/no/such.jsonl"),
        ({"train": "broken"}, r"broken.jsonl line 2"),
        ({"train": "lacking"}, r"lacking.jsonl line 1.*target"),
        ({"train": "empty"}, r"empty.jsonl: no rows"),
        ({"model": "/no/such/model"}, r"/no/such/model"),
        ({"model": "half"}, r"half: no model can be loaded"),
        ({"learning_rate": 1e30}, r"the loss is (nan|inf)"),
        ({"learning_rate": 1e30, "logging_steps": 50}, r"the loss is (nan|inf)"),
        ({"learning_rate": 1e39, "max_steps": 1}, r"last step made weights infinite or NaN"),
    ],
)
def test_bad_input_is_one_error_line(world, tmp_path, capsys, changes, message):
    contents = {
        "broken": '{"source": "a", "target": "b"}\n{"source": \n',
        "lacking": '{"source": "a"}\n',
        "empty": "\n",
    }
    if changes.get("train") in contents:
        file = tmp_path / f"{changes['train']}.jsonl"
        file.write_text(contents[changes["train"]])
        changes = {"train": file, "num_labels": None}
    if changes.get("model") == "half":  # a copy that broke off
        shutil.copytree(STUDENT, tmp_path / "half")
        weights = tmp_path / "half" / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        changes = {"model": tmp_path / "half"}
    with pytest.raises(SystemExit) as stop:
        train_small.main(list_flags(world, tmp_path / "run", **changes))
    text = str(stop.value)
    assert text.startswith("error: ") and "\n" not in text
    assert re.search(message, text), text
    assert not (tmp_path / "run" / "training.json").exists()


def test_a_full_disk_is_one_error_line_and_the_run_goes_on_later(world, tmp_path, monkeypatch):
    flags = list_flags(world, tmp_path / "run")

    def refuse(*args, **kwargs):
        raise RuntimeError(
            "[enforce fail at inline_container.cc:672] . unexpected pos 8896 vs 8788"
        )

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", refuse)
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
        with pytest.raises(SystemExit, match=r"error: .*the disk is full"):
            train_small.main(flags)
    train_small.main(flags)
    assert (tmp_path / "run" / "training.json").exists()


@slow
def test_two_processes_are_as_one(world, tmp_path):
    """torchrun with gloo: two processes against one.

    64 rows are whole batches; accelerate fills a short one with rows of the epoch's beginning.
    """
    train_small.main(list_flags(world, tmp_path / "one", dropout=0, num_labels=64))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    flags = list_flags(world, tmp_path / "two", dropout=0, num_labels=64)
    done = subprocess.run(
        [*launch, "2", str(ROOT / "train_small.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("64 labels, 12 steps") == 1  # one process speaks
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4


def test_alone_in_an_empty_folder(world, tmp_path):
    """The Copy line of the docstring: this one file, nothing else of the project."""
    shutil.copy(ROOT / "train_small.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "train_small.py", *list_flags(world, "run", max_steps=2)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "training.json").exists()
    assert done.stdout == ""


def test_a_wrong_flag_is_exit_2(capsys):
    with pytest.raises(SystemExit) as stop:
        train_small.main(["--no-such-flag"])
    assert stop.value.code == 2
    capsys.readouterr()
