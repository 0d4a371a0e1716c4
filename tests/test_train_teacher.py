"""train_teacher.py: the memory plan, the three ways to hold a model, resume, placement, refusals.

Models are random T5s of 25,000 weights with a word vocabulary. SLOW=1 adds the two-process run
and the genuine-size model.
"""

import itertools
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, T5Config
from transformers import T5ForConditionalGeneration as T5

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tiny import WORDS, build_word_tokenizer, slow  # noqa: E402

import train_teacher  # noqa: E402


def save_model(folder, seed=1, untied=True, layers=1):
    """A random T5 v1.1 with a word vocabulary and, as the published ones have, its own head."""
    tokenizer = build_word_tokenizer(WORDS)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=32,
        d_kv=8,
        num_heads=4,
        d_ff=48,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=not untied,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if untied:
        weights = load_file(folder / "model.safetensors")
        weights["lm_head.weight"] = torch.randn_like(weights["shared.weight"]) * 0.2
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A model, and rows whose target is the reversed source."""
    folder, rng = tmp_path_factory.mktemp("world"), random.Random(0)
    save_model(folder / "model")
    rows = [rng.choices(WORDS, k=rng.randint(2, 6)) for _ in range(64)]
    lines = [json.dumps({"source": " ".join(r), "target": " ".join(r[::-1])}) for r in rows]
    (folder / "train.jsonl").write_text("\n".join([*lines, '{"source": "x", "target": " "}']))
    return folder


def run(world, output, *flags, model="model"):
    """Train a few steps; the record in training.json."""
    fixed = ["--model", world / model, "--train", world / "train.jsonl", "--output", output]
    fixed += ["--max-source-length", 8, "--max-target-length", 8, "--learning-rate", "3e-3"]
    fixed += ["--batch-size", 8, "--max-steps", 12, "--logging-steps", 1, "--save-steps", 4]
    train_teacher.main([str(flag) for flag in [*fixed, *flags]])
    return json.loads((output / "training.json").read_text())


def read_losses(output):
    return [json.loads(line)["loss"] for line in (output / "log.jsonl").read_text().splitlines()]


def compare_weights(one, two):
    """The largest difference between two runs' saved weights."""
    one, two = (load_file(path / "model" / "model.safetensors") for path in (one, two))
    assert one.keys() == two.keys()
    return max((one[key].float() - two[key].float()).abs().max().item() for key in one)


def fails(match):
    """A user's mistake: one error line, exit code 1."""
    return pytest.raises(SystemExit, match=f"error: .*{match}")


# --- training --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("way", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("lora", torch.float32)]
)
def test_every_way_learns_records_and_saves(world, tmp_path, capsys, way, dtype):
    if way == "lora":
        pytest.importorskip("peft")
    output = tmp_path / way
    flags = ("--memory", way, "--max-steps", 20, "--task", "wlp", "--lora-learning-rate", "2e-2")
    record = run(world, output, *flags)
    losses = read_losses(output)
    assert sum(losses[-5:]) < 0.93 * sum(losses[:5])
    assert record["script"] == "train_teacher.py" and record["strategy"] == "teacher"
    assert record["labels"] == 64 and record["steps"] == 20 and record["task"] == "wlp"
    assert record["placement"]["memory"] == way and record["placement"]["head"] == "untied"
    assert set(record["seconds"]) == {"load", "train", "save"}
    assert not (output / "checkpoints").exists()
    weights = load_file(output / "model" / "model.safetensors")  # plain T5, adapters merged
    assert weights.keys() == load_file(world / "model" / "model.safetensors").keys()
    assert {value.dtype for value in weights.values()} == {dtype}
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["use_cache"] is True and config["dense_act_fn"] == "gelu_new"
    model = T5.from_pretrained(output / "model")
    assert model.lm_head.weight is not model.shared.weight
    ids = AutoTokenizer.from_pretrained(output / "model")("w1 w2", return_tensors="pt").input_ids
    assert model.generate(ids, max_new_tokens=4).shape[0] == 1
    if way == "fp32":
        run(world, output, *flags)
        assert "already trained" in capsys.readouterr().err


def test_a_tied_head_stays_tied(world, tmp_path):
    pytest.importorskip("peft")
    save_model(world / "tied", untied=False)
    for way in ("fp32", "lora"):
        record = run(world, tmp_path / way, "--memory", way, "--max-steps", 2, model="tied")
        assert record["placement"]["head"] == "tied"
        before = json.loads((world / "tied" / "config.json").read_text())
        after = json.loads((tmp_path / way / "model" / "config.json").read_text())
        assert {k: v for k, v in after.items() if before.get(k) != v} == {}
        model = T5.from_pretrained(tmp_path / way / "model")
        assert model.lm_head.weight is model.shared.weight


def test_lora_leaves_all_but_the_blocks_alone_and_needs_peft(world, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    run(world, tmp_path / "lora", "--memory", "lora", "--dropout", 0)
    before = load_file(world / "model" / "model.safetensors")
    after = load_file(tmp_path / "lora" / "model" / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key].bfloat16().float(), after[key])}
    assert changed == {
        key for key in before if key.endswith((".q.weight", ".k.weight", ".v.weight", ".o.weight"))
    } | {key for key in before if ".wi_" in key or ".wo." in key}
    monkeypatch.setitem(sys.modules, "peft", None)
    with fails("needs the package peft"):
        run(world, tmp_path / "none", "--memory", "lora")


@pytest.mark.parametrize("way", ["fp32", "bf16", "lora"])
def test_a_killed_run_continues_to_the_same_weights(world, tmp_path, monkeypatch, way):
    if way == "lora":
        pytest.importorskip("peft")
    flags = ("--memory", way)  # with dropout: the random state is kept too
    run(world, tmp_path / "calm", *flags)
    log = train_teacher.Progress.on_log

    def stop(self, args, state, control, logs=None, **kwargs):
        log(self, args, state, control, logs, **kwargs)
        if state.global_step == 10:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_teacher.Progress, "on_log", stop)
        run(world, tmp_path / "killed", *flags)
    assert (tmp_path / "killed" / "checkpoints" / "checkpoint-8").is_dir()
    with fails("begun with other settings"):
        run(world, tmp_path / "killed", "--memory", "fp32" if way != "fp32" else "bf16")
    run(world, tmp_path / "killed", *flags)
    assert compare_weights(tmp_path / "calm", tmp_path / "killed") == 0
    assert read_losses(tmp_path / "calm") == read_losses(tmp_path / "killed")


def test_passes_of_a_few_rows_give_the_same_step(world, tmp_path):
    flags = ("--dropout", 0, "--max-steps", 6)
    run(world, tmp_path / "whole", *flags)
    run(world, tmp_path / "parts", *flags, "--micro-batch", 2, "--recompute")
    run(world, tmp_path / "sum", *flags, "--batch-size", 4, "--gradient-accumulation", 2)
    assert json.loads((tmp_path / "parts" / "training.json").read_text())["placement"]["recompute"]
    for other in ("parts", "sum"):
        assert read_losses(tmp_path / other) == pytest.approx(read_losses(tmp_path / "whole"), 1e-4)
        assert compare_weights(tmp_path / "whole", tmp_path / other) < 1e-4


def test_loss_is_a_mean_over_the_tokens_of_all_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    labels[0, 1:] = labels[2, 3:] = -100  # padding
    output = lambda part: type("Output", (), {"logits": part})  # noqa: E731
    whole = train_teacher.compute_loss(output(logits), labels)
    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert whole.item() == pytest.approx(mean.item())
    count = (labels != -100).sum()
    parts = [
        train_teacher.compute_loss(output(logits[i : i + 1]), labels[i : i + 1], count)
        for i in range(4)
    ]
    assert sum(parts).item() == pytest.approx(whole.item())


# --- the bf16 optimiser ------------------------------------------------------------------------


def test_kept_bits_make_bf16_weights_fp32_to_the_last_bit():
    torch.manual_seed(0)
    for shape in ((7, 5), (9,)):
        exact = torch.randn(shape).bfloat16().float()
        weight = exact.bfloat16()
        low = torch.zeros(shape, dtype=torch.int16)
        row, column = torch.zeros(shape[:1]), torch.zeros(shape[1:])
        moments = [[row.clone(), column.clone() if len(shape) > 1 else None] for _ in range(2)]
        for step in range(1, 200):
            rates = torch.tensor([3e-5, 1 - step**-0.8])
            grad = torch.randn(shape).bfloat16()
            train_teacher.update_weight(exact, grad, None, *moments[0], rates)
            train_teacher.update_weight(weight, grad, low, *moments[1], rates)
        bits = (weight.view(torch.int16).to(torch.int32) << 16) + low
        assert torch.equal(bits.view(torch.float32), exact)
        assert (weight.float() - exact).abs().max() <= exact.abs().max() / 256


def test_update_is_at_most_the_rate_and_follows_the_gradient():
    weight, grad = torch.zeros(6, 4), torch.randn(6, 4) * 100
    row, column = torch.zeros(6), torch.zeros(4)
    train_teacher.update_weight(weight, grad, None, row, column, torch.tensor([0.01, 0.0]))
    assert weight.square().mean().sqrt() <= 0.01 + 1e-6
    assert torch.equal(weight.sign(), -grad.sign())


def train_loop(folder, rows, kind, rate, steps=30):
    """The mean loss of the last steps under one optimiser: `adamw` or `split`, fp32 or bf16."""
    name, _, dtype = kind.partition(" ")
    model = train_teacher.load_model(str(folder), dtype=getattr(torch, dtype), dropout_rate=0.0)
    adamw = {"lr": rate, "weight_decay": 0.0}
    optimiser = (
        torch.optim.AdamW(model.parameters(), **adamw)
        if name == "adamw"
        else train_teacher.SplitAdafactor(model.parameters(), rate)
    )
    losses = []
    for _ in range(steps):
        output = model(input_ids=rows, decoder_input_ids=torch.roll(rows, 1, 1))
        losses.append(train_teacher.compute_loss(output, rows))
        losses[-1].backward()
        optimiser.step()
        optimiser.zero_grad()
    return losses[0].item(), sum(losses[-5:]).item() / 5


def test_small_updates_are_kept_where_plain_bf16_loses_them(world):
    torch.manual_seed(0)
    rows = torch.randint(3, 63, (16, 6))
    fall = {}
    for kind in ("adamw float32", "adamw bfloat16", "split bfloat16"):
        first, last = train_loop(world / "model", rows, kind, 2e-4)
        fall[kind] = first - last
    assert fall["adamw float32"] > 0.05
    assert fall["split bfloat16"] > 0.9 * fall["adamw float32"]
    assert fall["adamw bfloat16"] < 0.6 * fall["adamw float32"]


# --- the plan ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def xxl():
    args = train_teacher.parse_args(["--dry-run"])
    return train_teacher.Footprint(train_teacher.read_config(args.model, True), (128, 128))


def test_weights_of_the_published_sizes():
    known = {"small": 77, "base": 248, "large": 783, "xl": 2850, "xxl": 11135}
    for size, millions in known.items():
        config = train_teacher.read_config(f"google/t5-v1_1-{size}", True)
        weights = train_teacher.Footprint(config, (8, 8)).weights
        assert round(weights / 1e6) == pytest.approx(millions, abs=1), size
    assert train_teacher.read_config("google/t5-xxl-ssm", True).d_model == 4096


@pytest.mark.parametrize(
    ("spec", "way", "gpus"),
    [("1x80", "bf16", 1), ("4x48", "fp32", 4), ("8x40", "fp32", 8), ("1x24", "lora", 1)],
)
def test_xxl_on_rented_gpus(xxl, spec, way, gpus):
    args = train_teacher.parse_args(["--dry-run", "--gpus", spec])
    found = train_teacher.list_gpus(spec)
    chosen, plans = train_teacher.plan_memory(args, xxl, found, xxl.lengths)
    assert (chosen["memory"], chosen["gpus"]) == (way, gpus)
    assert max(chosen["gib_per_gpu"]) <= found[0][1]
    fp32, bf16 = plans["fp32"], plans["bf16"]
    static = {k: fp32["gib"][k] * 2**30 / 1e9 for k in ("weights", "gradients", "optimiser")}
    copies = 2 * xxl.weights / 1e9 * fp32["autocast"]
    assert sum(static.values()) == pytest.approx(16 * 11.135 + copies, rel=0.01)
    assert sum(bf16["gib"][k] for k in static) * 2**30 / 1e9 == pytest.approx(66.8, rel=0.01)


def test_what_does_not_fit_is_refused_with_what_it_needs(capsys):
    with fails(r"does not fit 1 x A10G .* the leanest way, lora with 1 rows a pass, needs 2\d"):
        train_teacher.main(["--dry-run", "--gpus", "1xA10G"])
    assert capsys.readouterr().out.count("does not fit") == 3


def test_dry_run_prints_hours_and_dollars(capsys):
    flags = ["--dry-run", "--gpus", "1xH100", "--num-labels", "5000"]
    train_teacher.main([*flags, "--usd-per-gpu-hour", "4", "--utilisation", "0.5"])
    printed = capsys.readouterr().out
    assert "11.14B weights, head untied" in printed and "<- this one" in printed
    assert "5,000 rows of 128 + 128 tokens, 20 epochs" in printed and "$" in printed
    flops = 4 / 3 * 6 * 128 * 32 * 11.004e9  # recomputed; all but the input embeddings
    steps = 157 * 20  # the optimiser reads and writes 6 bytes a weight
    hours = steps * (flops / (0.5 * 989e12) + 12 * 11.135e9 / 3.35e12) / 3600
    assert f"{hours:.2f} GPU-hours, ${4 * hours:.2f}" in printed


def test_plan_counts_what_a_real_forward_pass_keeps(world):
    """The count on the meta device against one on a real model and the CPU."""
    config = train_teacher.read_config(str(world / "model"), False)
    footprint = train_teacher.Footprint(config, (8, 8))
    for recompute in (False, True):
        encoder, decoder, rest = footprint.keep(torch.float32, recompute, 0)
        model = train_teacher.fuse_gelu(train_teacher.load_model(str(world / "model"))).train()
        model.config.use_cache = False
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        weights = {w.untyped_storage().data_ptr() for w in model.parameters()}
        saved, alive = {}, []

        def count(tensor, saved=saved, alive=alive, weights=weights):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)
            return tensor

        ids = torch.randint(3, 60, (8, 8))
        mask = torch.ones_like(ids)
        mask[0, 4:] = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = model(input_ids=ids, attention_mask=mask, decoder_input_ids=ids)
            train_teacher.compute_loss(output, ids)
        planned = 8 * (encoder + decoder + rest)
        assert planned == pytest.approx(sum(saved.values()), rel=0.15), recompute


def test_split_has_the_least_largest_share():
    rng = random.Random(0)
    for _ in range(20):
        costs = [rng.randint(1, 50) * 2.0**22 for _ in range(9)]
        shares, places = train_teacher.split_pieces(costs, 3)
        cuts = itertools.combinations(range(10), 2)
        best = min(max(sum(costs[:a]), sum(costs[a:b]), sum(costs[b:])) for a, b in cuts)
        assert max(shares) <= best + 2**21 and len(shares) <= 3
        assert places == sorted(places)
        assert shares == [
            sum(c for c, p in zip(costs, places, strict=True) if p == i) for i in range(len(shares))
        ]


def test_every_module_has_a_place_in_running_order(xxl):
    args = train_teacher.parse_args(["--dry-run"])
    chosen, _ = train_teacher.plan_memory(args, xxl, train_teacher.list_gpus("4x48"), xxl.lengths)
    places = train_teacher.expand_places(chosen["places"])
    model = train_teacher.build_empty(xxl.config)
    for name, _ in model.named_parameters():
        assert any(name.startswith(f"{module}.") for module in places), name
    blocks = [places[f"{side}.block.{i}"] for side in ("encoder", "decoder") for i in range(24)]
    assert blocks == sorted(blocks) and set(blocks) == {0, 1, 2, 3}
    assert places["decoder.embed_tokens"] == places["shared"] == 0 and places["lm_head"] == 3


# --- placement without a GPU ---------------------------------------------------------------------


def test_layers_on_different_devices_meet_where_planned(world):
    """Half of the model on the CPU, half on the meta device: hooks carry the tensors across."""
    from accelerate import dispatch_model

    config = train_teacher.read_config(str(world / "model"), False)
    pieces = train_teacher.Footprint(config, (8, 8)).pieces
    _, places = train_teacher.split_pieces([weights * 2.0**22 for _, weights in pieces], 2)
    devices = {name: ["cpu", "meta"][p] for (name, _), p in zip(pieces, places, strict=True)}
    assert set(devices.values()) == {"cpu", "meta"}
    model = train_teacher.load_model(str(world / "model"))
    whole = train_teacher.expand_places(devices)
    model = dispatch_model(model, whole, main_device="cpu", force_hooks=True)
    model._hf_hook.io_same_device = False  # or the logits would be fetched, empty, from meta
    ids = torch.randint(3, 60, (2, 8))
    output = model(input_ids=ids, decoder_input_ids=ids)
    assert output.logits.device.type == "meta" and output.logits.shape == (2, 8, 63)
    assert output.encoder_last_hidden_state.device.type == devices["encoder.final_layer_norm"]
    assert train_teacher.compute_loss(output, ids).device.type == "meta"


def test_training_under_a_device_map_is_the_same(world, tmp_path, monkeypatch):
    """The code path of several GPUs, every piece of the map on the CPU."""
    run(world, tmp_path / "plain", "--dropout", 0)
    choose = train_teacher.choose_plan

    def split(*args):
        plan = choose(*args)
        return {**plan, "gpus": 2, "places": dict.fromkeys(plan["places"], "cpu")}

    monkeypatch.setattr(train_teacher, "choose_plan", split)
    record = run(world, tmp_path / "mapped", "--dropout", 0)
    assert record["placement"]["gpus"] == 2
    assert compare_weights(tmp_path / "plain", tmp_path / "mapped") == 0


# --- mistakes ----------------------------------------------------------------------------------


def test_refusals(world, tmp_path, capsys):
    with fails("no such model folder"):
        run(world, tmp_path / "a", model="nothing")
    with fails("--gpus 2xTOASTER: COUNTxGPU, GPU one of"):
        train_teacher.main(["--dry-run", "--gpus", "2xTOASTER"])
    with fails("100 labels asked for, 64 rows with a target"):
        run(world, tmp_path / "b", "--num-labels", 100)
    with fails("the loss is nan at step"):
        run(world, tmp_path / "c", "--learning-rate", "1e18", "--dropout", 0)
    for flags in (["--train", "x"], ["--gpus", "1x80", "--train", "x", "--output", "y"]):
        with pytest.raises(SystemExit) as error:
            train_teacher.main(flags)
        assert error.value.code == 2
    with pytest.raises(SystemExit) as error:
        run(world, tmp_path / "d", "--micro-batch", 3)
    assert error.value.code == 2 and not (tmp_path / "d").exists()


def test_too_little_memory_or_disk_is_refused_before_loading(world, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher, "list_gpus", lambda spec: [("CPU", 1e-4, None, None)])
    with fails("does not fit 1 x CPU"):
        run(world, tmp_path / "run")
    monkeypatch.undo()
    free = type("Usage", (), {"free": 1e5})
    monkeypatch.setattr(train_teacher.shutil, "disk_usage", lambda folder: free)
    with fails("0.0 GB free, 0.0 GB needed for checkpoints"):
        run(world, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(train_teacher, "measure_ram", lambda: 1e-5)
    monkeypatch.setattr(train_teacher, "list_gpus", lambda spec: [("CPU", 1.0, None, None)])
    with fails("GiB needed to merge the adapters"):
        run(world, tmp_path / "run", "--memory", "lora")
    assert not (tmp_path / "run").exists()


def test_a_copy_alone_runs(world, tmp_path):
    """The docstring's Copy line: train_teacher.py alone, in an empty folder, as a command."""
    shutil.copy(ROOT / "train_teacher.py", tmp_path)
    flags = ["--model", world / "model", "--train", world / "train.jsonl", "--max-steps", "2"]
    done = subprocess.run(
        [sys.executable, "train_teacher.py", "--output", "run", *map(str, flags)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and "[run] 64 labels, 2 steps" in done.stderr
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@slow
@pytest.mark.parametrize("way", ["fp32", "bf16"])
def test_two_processes_are_as_one(world, tmp_path, way):
    """torchrun with gloo: two processes of 4 rows against one of 8."""
    run(world, tmp_path / "one", "--dropout", 0, "--memory", way)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(random.randint(20000, 60000)), str(ROOT / "train_teacher.py")]
    flags = ["--model", world / "model", "--train", world / "train.jsonl", "--dropout", 0]
    flags += ["--max-source-length", 8, "--max-target-length", 8, "--learning-rate", "3e-3"]
    flags += ["--batch-size", 4, "--max-steps", 12, "--logging-steps", 1, "--memory", way]
    flags += ["--output", tmp_path / "two"]
    done = subprocess.run([*launch, *map(str, flags)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close = 1e-4 if way == "fp32" else 2e-2
    assert read_losses(tmp_path / "two") == pytest.approx(read_losses(tmp_path / "one"), rel=close)
    assert compare_weights(tmp_path / "one", tmp_path / "two") < (1e-4 if way == "fp32" else 2e-2)
