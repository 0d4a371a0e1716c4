"""data/bench/gpu.py: every part runs on a CPU with mini models, and its arithmetic is right."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import slow

from data import prepare
from data.bench import gpu as bench_gpu

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = json.loads(bench_gpu.LENGTHS.read_text())["lengths"]
MINI = ["--teacher", "mini", "--student", "mini", "--vocabulary", "300", "--seconds", "0.2"]
MINI += ["--shard-rows", "16", "--pass-batch", "4", "8"]


@pytest.fixture
def args(tmp_path):
    args = bench_gpu.parse_args([*MINI, "--output", str(tmp_path), "--into", str(tmp_path / "p")])
    args.scratch, args.stop_at = str(tmp_path), time.time() + 3600
    return args


def run_part(args, name):
    """What a part leaves in its file."""
    args.part = name
    bench_gpu.run_part(args)
    return json.loads(args.into.read_text())


@pytest.mark.parametrize("name", ["tune", "pass", "student", "released"])
def test_every_part_measures(args, name):
    kept = run_part(args, name)
    assert {"device", "date", "versions"} <= set(kept["machine"])
    found = kept["found"]
    assert found["rows_a_second"] > 0 and found["whole"] and "failed" not in found
    if name == "tune":
        assert found["longest"]["steps"] >= 1 and found["out_of_memory"] == []
    if name == "pass":
        assert [entry["rows"] for entry in found["batches"]] == [16, 16]
        assert found["mean_tokens"] == pytest.approx(np.mean(LENGTHS[:16], axis=0)[1])
    if name == "student":
        assert found["batch"] == 32 and found["larger"]["batch"] == 128


@slow
def test_the_compiled_student_measures(args):
    assert run_part(args, "graphs")["found"]["rows_a_second"] > 0


def test_a_part_that_runs_out_of_memory_takes_fewer_rows(args, monkeypatch):
    real, tried = bench_gpu.train_teacher.build_arguments, []

    def refuse(settings, plan):
        tried.append(plan["micro_batch"])
        if plan["micro_batch"] > 8:
            raise bench_gpu.torch.OutOfMemoryError("CUDA out of memory")
        return real(settings, plan)

    monkeypatch.setattr(bench_gpu.train_teacher, "build_arguments", refuse)
    found = run_part(args, "tune")["found"]
    assert tried == [32, 16, 8] and found["out_of_memory"] == [32, 16]
    assert found["micro_batch"] == 8 and found["recompute"] and found["rows_a_second"] > 0


def test_a_crash_keeps_what_was_measured_before_it(args, monkeypatch):
    real = bench_gpu.time_steps

    def crash(trainer, clock, rows):
        if rows == 128:
            raise RuntimeError("illegal memory access")
        return real(trainer, clock, rows)

    monkeypatch.setattr(bench_gpu, "time_steps", crash)
    with pytest.raises(RuntimeError):
        run_part(args, "student")
    found = json.loads(args.into.read_text())["found"]
    assert found["rows_a_second"] > 0 and "whole" not in found
    assert found["failed"] == "RuntimeError: illegal memory access"


def test_parts_are_processes_and_a_failed_one_takes_no_other_along(tmp_path, capfd):
    """The teacher pass gets a batch size of 0 and fails; the student's part goes on."""
    flags = [*MINI[:-3], "--pass-batch", "0", "--parts", "pass", "student"]
    bench_gpu.main([*flags, "--output", str(tmp_path)])
    (file,) = tmp_path.glob("*-mini.json")
    parts = json.loads(file.read_text())["parts"]
    assert parts["pass"]["failed"].startswith("ValueError")
    assert parts["student"]["rows_a_second"] > 0
    printed = capfd.readouterr().out
    assert "\npass      failed: ValueError" in printed and "\nstudent " in printed


def test_a_part_that_hangs_is_stopped(args, tmp_path):
    found = bench_gpu.start_part("student", args, 0.2, tmp_path / "part.json")["found"]
    assert found == {"failed": "it did not start, or was stopped after 0.2 s"}


def test_without_a_gpu_the_large_models_are_refused(tmp_path):
    if bench_gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="error: no GPU that this torch can use"):
        bench_gpu.main(["--output", str(tmp_path)])


def test_a_batch_is_padded_to_few_shapes_and_means_the_same(args):
    rows, key = (
        bench_gpu.make_soft_rows(args, [[5, 9], [33, 60], [7, 2]], 3),
        bench_gpu.make_key(args),
    )
    assert [len(row["input_ids"]) for row in rows] == [5, 33, 7]
    model = bench_gpu.make_model(bench_gpu.make_config("mini", 300), bench_gpu.torch.float32, "cpu")
    plain = bench_gpu.distill.Collator(model, key, 2.0)(rows)
    padded = bench_gpu.BucketCollator(model, key, 2.0)(rows)
    assert padded["input_ids"].shape == (3, 64) and padded["labels"].shape == (3, 64)
    loss = []
    for batch in (plain, padded):
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        logits = model.eval()(**{name: batch[name] for name in names}).logits
        loss.append(logits[batch["labels"] != -100])
    bench_gpu.torch.testing.assert_close(*loss)


def test_lengths_are_wlps():
    lengths = np.array(LENGTHS)
    assert lengths.shape == (2048, 2) and lengths.max() == 128 and lengths.min() >= 1
    assert lengths.mean(0) == pytest.approx([28.1, 43.1], abs=0.1)


def test_decoding_stops_each_row_at_its_length(args):
    rows = [[5, 9], [9, 2], [3, 30], [4, 17], [7, 9], [6, 1]]
    model = bench_gpu.make_model(bench_gpu.make_config("mini", 300), bench_gpu.torch.float32, "cpu")
    batch = [row["input_ids"] for row in bench_gpu.make_rows(rows, 300, len(rows))]
    with bench_gpu.force_lengths(model.eval()):
        decoded = bench_gpu.distill.decode(model, batch, bench_gpu.make_key(args))
    assert [len(row["labels"]) for row in decoded] == [target for _, target in rows]


def test_flops_and_dollars():
    config = bench_gpu.make_config("xxl", 32128)
    flops = bench_gpu.count_flops(config, [[100, 0]])
    assert flops == pytest.approx(6 * 100 * 24 * (4 * 4096**2 + 3 * 4096 * 10240), rel=0.001)
    speeds = {"tune": 100_000 / 3600, "pass": 100_000 / 3600, "student": 5_000_000 / 3600}
    parts = {name: {"rows_a_second": speed} for name, speed in speeds.items()}
    row = bench_gpu.price_row(parts, 4.0)
    assert row["hours"] == pytest.approx({"tune": 1, "pass": 1, "student": 1})
    assert row["usd"] == pytest.approx({"tune": 4, "distill": 8})
    del parts["pass"]
    parts["released"] = {"skipped": "does not fit"}
    row = bench_gpu.price_row(parts, 4.0)
    assert row["usd"] is None and set(row["hours"]) == {"tune", "student"}


def test_the_head_is_untied_as_in_the_published_models():
    model = bench_gpu.make_model(
        bench_gpu.make_config("mini", 300), bench_gpu.torch.bfloat16, "cpu"
    )
    assert model.lm_head.weight is not model.shared.weight
    assert model.dtype == bench_gpu.torch.bfloat16 and not model.config.scale_decoder_outputs


def test_optimisers_are_compared(tmp_path, capsys):
    """A few steps of each way; the kept figures say what the README says."""
    from data.bench import optimisers as bench_optimisers

    prepare.main(["--task", "wlp", "--output", str(tmp_path)])
    flags = ["--train", tmp_path / "train.jsonl", "--dev", tmp_path / "dev.jsonl", "--seeds", 0]
    flags += ["--rates", "3e-5", "--steps", 2, "--labels", 16, "--dev-rows", 8, "--batch-size", 4]
    bench_optimisers.main([str(flag) for flag in [*flags, "--output", tmp_path / "o.json"]])
    runs = json.loads((tmp_path / "o.json").read_text())["runs"]
    assert [run["way"] for run in runs] == list(bench_optimisers.WAYS)
    assert all(0 < run["dev_loss"] < 30 for run in runs)
    assert "bf16 split" in capsys.readouterr().out

    kept = json.loads((ROOT / "data" / "results" / "optimisers.json").read_text())["runs"]
    for rate in {run["rate"] for run in kept}:
        loss = {way: [] for way in bench_optimisers.WAYS}
        for run in kept:
            if run["rate"] == rate:
                loss[run["way"]].append(run["dev_loss"])
        mean = {way: np.mean(values) for way, values in loss.items()}
        assert mean["bf16 split"] < 1.05 * mean["fp32 adamw"]
        assert mean["bf16 adamw"] > mean["bf16 split"]
