"""data/bench/gpu.py: every part runs on a CPU with mini models, and its arithmetic is right."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.bench import gpu as bench_gpu

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = bench_gpu.LENGTHS
MINI = ["--teacher", "mini", "--student", "mini", "--vocabulary", "300", "--seconds", "0.2"]
MINI += ["--shard-rows", "16", "--pass-batch", "4", "8"]


@pytest.fixture
def args(tmp_path):
    return bench_gpu.parse_args([*MINI, "--output", str(tmp_path)])


def run_part(args, name):
    """What a part leaves in its file."""
    into = args.output / "p"
    bench_gpu.run_part(name, args, time.time() + 3600, into)
    return json.loads(into.read_text())


@pytest.mark.parametrize("name", bench_gpu.PARTS)
def test_every_part_measures(args, name):
    args.compiled = "--torch-compile-backend eager"  # off without a GPU
    kept = run_part(args, name)
    assert {"device", "date", "versions"} <= set(kept["machine"])
    assert "command" not in kept["machine"]
    found = kept["found"]
    assert found["rows_a_second"] > 0 and found["whole"] and "failed" not in found
    if name == "tune":
        assert found["longest"]["steps"] >= 1 and found["out_of_memory"] == []
    if name == "pass":
        assert [entry["rows"] for entry in found["batches"]] == [16, 16]
        assert (
            found["batch"] == 4 and found["rows_a_second"] == found["batches"][0]["rows_a_second"]
        )
        assert found["mean_tokens"] == pytest.approx(np.mean(LENGTHS[:16], axis=0)[1])
    if name == "student":
        assert (
            found["batch"] == 32
            and found["compiled"]["batch"] == 32
            and found["compiled"]["steps"] >= 1
        )


def test_a_part_that_runs_out_of_memory_recomputes_then_takes_fewer_rows(args, monkeypatch):
    real, tried = bench_gpu.train_teacher.compute_loss, []

    def refuse(model, inputs, count=None):
        passes = len(inputs["labels"]), model.is_gradient_checkpointing
        tried.append(passes)
        if passes[0] > 8:
            raise bench_gpu.torch.OutOfMemoryError("CUDA out of memory")
        return real(model, inputs, count)

    monkeypatch.setattr(bench_gpu.train_teacher, "compute_loss", refuse)
    found = run_part(args, "tune")["found"]
    assert list(dict.fromkeys(tried)) == [(32, False), (32, True), (16, True), (8, True)]
    assert [each["rows"] for each in found["out_of_memory"]] == [32, 32, 16]
    assert found["rows"] == 8 and found["recompute"] and found["rows_a_second"] > 0


def test_a_crash_keeps_what_was_measured_before_it(args, monkeypatch):
    real = bench_gpu.build_student

    def crash(args, rows, flags):
        if flags:
            raise RuntimeError("illegal memory access")
        return real(args, rows, flags)

    args.compiled = "--torch-compile-backend eager"
    monkeypatch.setattr(bench_gpu, "build_student", crash)
    with pytest.raises(RuntimeError):
        run_part(args, "student")
    found = json.loads((args.output / "p").read_text())["found"]
    assert found["rows_a_second"] > 0 and "whole" not in found
    assert found["failed"] == "RuntimeError: illegal memory access"


def test_parts_are_processes_and_a_failed_one_takes_no_other_along(tmp_path, capfd):
    """The teacher pass gets a batch size of 0 and fails; the next part goes on."""
    flags = [*MINI[:-3], "--pass-batch", "0", "--parts", "pass", "tune"]
    bench_gpu.main([*flags, "--output", str(tmp_path)])
    (file,) = tmp_path.glob("*-mini.json")
    parts = json.loads(file.read_text())["parts"]
    assert parts["pass"]["failed"].startswith("ValueError")
    assert parts["tune"]["rows_a_second"] > 0
    printed = capfd.readouterr().out
    assert "\npass      failed: ValueError" in printed and "\ntune " in printed


def test_a_part_that_hangs_is_stopped(args, tmp_path):
    found = bench_gpu.start_part("student", args, 0.2, tmp_path / "part.json")["found"]
    assert found == {"failed": "it did not start, or was stopped after 0.2 s"}


def test_without_a_gpu_the_large_models_are_refused(tmp_path):
    if bench_gpu.torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="error: no GPU that torch can use"):
        bench_gpu.main(["--output", str(tmp_path)])


def test_lengths_are_wlps():
    lengths = np.array(LENGTHS)
    assert lengths.shape == (2048, 2) and lengths.max() == 128 and lengths.min() >= 1
    assert lengths.mean(0) == pytest.approx([28.1, 43.1], abs=0.1)


def test_decoding_stops_each_row_at_its_length(args):
    rows = [[5, 9], [9, 2], [3, 30], [4, 17], [7, 9], [6, 1]]
    model = bench_gpu.make_model("mini", 300, bench_gpu.torch.float32)
    batch = [row["input_ids"] for row in bench_gpu.make_rows(rows, 300, len(rows))]
    model = bench_gpu.force_lengths(model.eval())
    decoded = bench_gpu.distill.decode(model, batch, bench_gpu.make_key(args))
    assert [len(row["labels"]) for row in decoded] == [target for _, target in rows]


def test_flops_and_dollars():
    flops = bench_gpu.count_flops(bench_gpu.SIZES["xxl"], [[100, 0]])
    assert flops == pytest.approx(6 * 100 * 24 * (4 * 4096**2 + 3 * 4096 * 10240), rel=0.001)
    speeds = {"tune": 100_000 / 3600, "pass": 100_000 / 3600, "student": 5_000_000 / 3600}
    parts = {name: {"rows_a_second": speed} for name, speed in speeds.items()}
    row = bench_gpu.price_row(parts, 4.0)
    assert row["hours"] == pytest.approx({"tune": 1, "pass": 1, "student": 1})
    assert row["usd"] == pytest.approx({"tune": 4, "distill": 8})
    # 10 GB of bf16 model read for 4 + 2 bytes a weight, it and 6 checkpoints of 4 written
    disk = {"disk_seconds_a_gb": {"read": 10, "write": 20}, "memory": "bf16", "parameters": 1e10}
    parts["tune"] |= disk
    row = bench_gpu.price_row(parts, 4.0)
    assert row["hours"]["disk"] == pytest.approx((10 * 6 * 10 + 10 * (2 + 6 * 4) * 20) / 3600)
    assert row["usd"]["tune"] == pytest.approx(4 + 4 * row["hours"]["disk"])
    del parts["pass"]
    row = bench_gpu.price_row(parts, 4.0)
    assert row["usd"] is None and set(row["hours"]) == {"tune", "student", "disk"}


def test_a_config_has_the_size_that_the_planner_counts():
    model = bench_gpu.make_model("mini", 300, bench_gpu.torch.float32)
    shape = bench_gpu.SIZES["mini"]._replace(vocabulary=300)
    assert shape.count_weights()[-1] == sum(w.numel() for w in model.parameters())
    seconds = bench_gpu.time_disk(Path("/tmp"), 2**22)["disk_seconds_a_gb"]
    assert seconds["write"] > 0 and seconds["read"] > 0


def test_parts_need_torch_transformers_and_accelerate_alone(tmp_path):
    """On a machine without network: none of the other requirements, nor what they bring."""
    code = (
        "import pathlib, sys\n"
        "for name in ('datasets', 'pyarrow', 'peft', 'bert_score', 'openai', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "from data.bench import gpu\n"
        f"args = gpu.parse_args({[*MINI, '--output', str(tmp_path)]})\n"
        "for name in gpu.PARTS:\n"
        "    gpu.run_part(name, args, 9e9, args.output / name)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in bench_gpu.PARTS:
        assert json.loads((tmp_path / name).read_text())["found"]["whole"]


def test_the_head_is_untied_as_in_the_published_models():
    model = bench_gpu.make_model("mini", 300, bench_gpu.torch.bfloat16)
    assert model.lm_head.weight is not model.shared.weight
    assert model.dtype == bench_gpu.torch.bfloat16 and not model.config.scale_decoder_outputs
