"""data/bench/distill.py: what it compares is what it says; its parts run."""

import json
from pathlib import Path

import pytest
import torch

from data.bench import distill as bench

MODELS = Path(__file__).resolve().parents[1] / "data" / "world" / "models"
ROWS = [f"add {i} ml of buffer and mix for {i} minutes" for i in range(1, 41)]


@pytest.fixture
def data(tmp_path):
    rows = [{"source": row, "target": "buffer [Reagent]"} for row in ROWS]
    for name in ("train", "dev", "unlabeled"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def test_a_larger_teacher_says_exactly_the_same(tmp_path):
    parameters = bench.enlarge(MODELS / "teacher", 3_000_000, tmp_path / "large")
    assert 3_000_000 <= parameters < 3_010_000
    inputs = {
        "input_ids": torch.arange(5, 25)[None],
        "decoder_input_ids": torch.arange(9, 15)[None],
    }
    with torch.no_grad():
        small, large = (
            bench.load(folder).double()(**inputs).logits
            for folder in (MODELS / "teacher", tmp_path / "large")
        )
    assert torch.equal(small.argmax(-1), large.argmax(-1))
    assert torch.allclose(small, large, rtol=0, atol=1e-10)


def test_released_loop_and_ours_decode_the_same_targets(tmp_path, data):
    """All three are given the same rows, and (a)'s targets are those in (b)'s labels."""
    args = bench.parse_args(
        ["--models", str(MODELS), "--output", str(tmp_path), "--epochs", "1", "--batch-size", "16"]
    )
    unlabeled = data / "unlabeled.jsonl"
    cached = bench.run_released(args, MODELS / "teacher", ROWS, bench.Clock())
    clock = bench.Clock()
    bench.run_ours(args, MODELS / "teacher", unlabeled, clock)
    labels = bench.open_labels(tmp_path / "labels", len(ROWS))
    rows = [labels[i] for i in range(len(ROWS))]
    assert sorted((row["input_ids"].tolist(), row["labels"].tolist()) for row in rows) == sorted(
        cached
    )
    plain = bench.write_plain(args).read_text(encoding="utf-8").splitlines()
    assert sorted(json.loads(line)["source"] for line in plain) == sorted(ROWS)
    assert clock.seconds["student"] > clock.seconds["train"] > 0 < clock.seconds["teacher, once"]
    loop = bench.Clock()
    bench.run_loop(args, loop)
    assert loop.seconds["train"] > 0


def test_every_mode_runs(tmp_path, data, capsys):
    """The command line from end to end at the smallest size, a table on stdout."""
    flags = ["--models", MODELS, "--data", data, "--output", tmp_path / "out", "--batch-size", 8]
    flags += ["--teacher-steps", 2, "--labels", 8, "--steps", 2, "--unlabeled", 16, "--seeds", 1]
    flags += ["--rows", 8, "--epochs", 1, "--repeats", 1, "--times", 5]
    for mode, sign in (
        ("speed", "(a) / (b)"),
        ("exactness", "gradient error"),
        ("losses", "paper"),
    ):
        bench.main([str(flag) for flag in [*flags, *([] if mode == "speed" else [f"--{mode}"])]])
        assert sign in capsys.readouterr().out
        text = (tmp_path / "out" / f"{mode}.json").read_text()
        assert json.loads(text)["results"] and str(bench.ROOT) not in text
    exact = json.loads((tmp_path / "out" / "exactness.json").read_text())["results"]
    dense = [row for row in exact if row["k"] == 0]
    assert all(abs(row["loss"] / row["dense_loss"] - 1) < 1e-5 for row in dense)
    assert all(row["gradient_error"] < 1e-4 for row in dense)
