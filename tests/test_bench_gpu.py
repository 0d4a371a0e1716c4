"""data/bench_gpu.py: every part runs on a CPU with mini models, and its arithmetic is right."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "data"))
import bench_gpu

ROOT = Path(__file__).resolve().parents[1]
LENGTHS = json.loads(bench_gpu.LENGTHS.read_text())["lengths"]
MINI = ["--teacher", "mini", "--student", "mini", "--vocabulary", "300", "--seconds", "0.2"]


@pytest.fixture
def args(tmp_path):
    args = bench_gpu.parse_args([*MINI, "--output", str(tmp_path)])
    args.scratch = str(tmp_path)
    return args


def test_all_parts_run_and_are_kept(tmp_path, capsys):
    bench_gpu.main([*MINI, "--pass-batch", "8", "--output", str(tmp_path)])
    (file,) = tmp_path.glob("*-mini.json")
    result = json.loads(file.read_text())
    assert set(result["parts"]) == set(bench_gpu.PARTS)
    assert all(part["rows_a_second"] > 0 for part in result["parts"].values())
    assert {"device", "date", "versions"} <= set(result)
    printed = capsys.readouterr().out
    assert all(f"\n{name}" in printed for name in bench_gpu.PARTS)


def test_lengths_are_wlps():
    lengths = np.array(LENGTHS)
    assert lengths.shape == (2048, 2) and lengths.max() == 128 and lengths.min() >= 1
    assert lengths.mean(0) == pytest.approx([28.1, 43.1], abs=0.1)


def test_decoding_stops_each_row_at_its_length(args):
    rows = [[5, 9], [9, 2], [3, 30], [4, 17], [7, 9], [6, 1]]
    model = bench_gpu.make_model(bench_gpu.make_config("mini", 300), bench_gpu.torch.float32, "cpu")
    batch = [row["input_ids"] for row in bench_gpu.make_rows(rows, 300, len(rows))]
    with bench_gpu.force_lengths(model.eval()):
        decoded = bench_gpu.distill.decode(model, batch, bench_gpu.make_labels(args, args.scratch))
    assert [len(tokens) for tokens, *_ in decoded] == [target for _, target in rows]


def test_flops_and_dollars():
    config = bench_gpu.make_config("xxl", 32128)
    flops = bench_gpu.count_flops(config, [[100, 0]])
    assert flops == pytest.approx(6 * 100 * 24 * (4 * 4096**2 + 3 * 4096 * 10240), rel=0.001)
    speeds = {"tune": 100_000 / 3600, "pass": 100_000 / 3600, "student": 5_000_000 / 3600}
    row = bench_gpu.price_row({k: {"rows_a_second": v} for k, v in speeds.items()}, 4.0)
    assert row["hours"] == pytest.approx({"tune": 1, "pass": 1, "student": 1})
    assert row["usd"] == pytest.approx(12)
    assert bench_gpu.price_row({"tune": {"skipped": "does not fit"}}, 4.0) is None


def test_the_head_is_untied_as_in_the_published_models():
    model = bench_gpu.make_model(
        bench_gpu.make_config("mini", 300), bench_gpu.torch.bfloat16, "cpu"
    )
    assert model.lm_head.weight is not model.shared.weight
    assert model.dtype == bench_gpu.torch.bfloat16 and not model.config.scale_decoder_outputs


def test_optimisers_are_compared(tmp_path, capsys):
    """A few steps of each way; the kept figures say what the README says."""
    import bench_optimisers
    import mini_world

    mini_world.write_splits(tmp_path, 1)
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
