"""train_teacher.py: the three ways to hold a model, which is chosen, resume, placement, refusals.

Models are random T5s of 25,000 weights with a word vocabulary. SLOW=1 adds the two-process run
and the genuine-size model.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from argparse import Namespace
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
    ("way", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("lora", torch.bfloat16)]
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
    assert record["hardware"]["gpus"] == 0 and not (output / "checkpoints").exists()
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
        changed = {k: v for k, v in after.items() if before.get(k) != v}
        assert changed == ({} if way == "fp32" else {"dtype": "bfloat16"})
        model = T5.from_pretrained(tmp_path / way / "model")
        assert model.lm_head.weight is model.shared.weight


def test_lora_leaves_all_but_the_blocks_alone_and_needs_peft(world, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    run(world, tmp_path / "lora", "--memory", "lora", "--dropout", 0)
    before = load_file(world / "model" / "model.safetensors")
    after = load_file(tmp_path / "lora" / "model" / "model.safetensors")
    changed = {key for key in before if not torch.equal(before[key].bfloat16(), after[key])}
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

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
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
    run(world, tmp_path / "sum", *flags, "--gradient-accumulation-steps", 2)
    for other, rows in {"parts": 2, "sum": 4}.items():
        placement = json.loads((tmp_path / other / "training.json").read_text())["placement"]
        assert (placement["recompute"], placement["micro_batch"]) == (other == "parts", rows)
        assert read_losses(tmp_path / other) == pytest.approx(read_losses(tmp_path / "whole"), 1e-4)
        assert compare_weights(tmp_path / "whole", tmp_path / other) < 1e-4


class Small:
    """Plays a GPU whose memory holds so many rows a pass, and with recompute twice as many."""

    def __init__(self, monkeypatch, rows):
        self.rows, self.tried, loss = rows, [], train_teacher.compute_loss

        def compute_loss(model, inputs, count=None):
            rows = inputs["labels"].shape[0]
            again = model.is_gradient_checkpointing
            self.tried.append((rows, again))
            if rows > self.rows * (2 if again else 1):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return loss(model, inputs, count)

        monkeypatch.setattr(train_teacher, "compute_loss", compute_loss)


def test_out_of_memory_recomputes_then_halves_the_rows_of_a_pass(
    world, tmp_path, monkeypatch, capsys
):
    run(world, tmp_path / "roomy", "--dropout", 0)
    small = Small(monkeypatch, 1)
    placement = run(world, tmp_path / "small", "--dropout", 0)["placement"]
    assert placement["micro_batch"] == 2 and placement["recompute"]
    assert list(dict.fromkeys(small.tried)) == [(8, False), (8, True), (4, True), (2, True)]
    assert compare_weights(tmp_path / "roomy", tmp_path / "small") < 1e-4
    said = capsys.readouterr().err
    assert "out of memory (CUDA out of memory); again with 4 rows a pass, layers recomp" in said
    Small(monkeypatch, 0)
    with fails("out of GPU memory .*a smaller --micro-batch"):
        run(world, tmp_path / "none")
    with fails("out of GPU memory .*a smaller --micro-batch"):
        run(world, tmp_path / "asked", "--micro-batch", 8)


def test_a_pass_is_a_whole_part_of_the_step(world, tmp_path, monkeypatch):
    """Half of 12 rows, then of 6; of 3 there is no half: 1. Passes of 2 would leave out a row."""
    small = Small(monkeypatch, 1)
    flags = ("--batch-size", 12, "--no-recompute", "--max-steps", 2)
    assert run(world, tmp_path / "run", *flags)["placement"]["micro_batch"] == 1
    assert list(dict.fromkeys(rows for rows, _ in small.tried)) == [12, 6, 3, 1]


def test_a_pass_is_a_whole_part_of_what_each_process_has(tmp_path, monkeypatch):
    """Two processes have 6 rows each of a step of 12: passes of 4 would leave out 2."""
    for name in ("place_model", "build_trainer", "fit"):
        monkeypatch.setattr(train_teacher, name, lambda *args: None)
    args = Namespace(output=tmp_path, batch_size=12, micro_batch=4, recompute=None)
    training, parts = Namespace(world_size=2), (None, None, "fp32", 1)
    *_, passes = train_teacher.fit_in_memory(args, training, parts, [], crowded=False)
    assert passes == {"rows": 3, "recompute": False}


@pytest.mark.parametrize("kept", ['{"rows": 3, "recompute": true}', '{"rows": "x"}', "[1]", "{"])
def test_damaged_passes_are_begun_anew(world, tmp_path, kept):
    run(world, tmp_path / "other", "--max-steps", 1)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "passes.json").write_text(kept)
    shutil.copy(tmp_path / "other" / "config.json", tmp_path / "run")
    placement = run(world, tmp_path / "run", "--max-steps", 1)["placement"]
    assert placement["micro_batch"] == 8 and not placement["recompute"]


def test_memory_that_runs_out_later_continues_from_the_checkpoint(world, tmp_path, monkeypatch):
    """And a run that is killed after that keeps to the passes that fitted, to the last bit."""
    real, calls = train_teacher.compute_loss, []

    def run_out_once(model, inputs, count=None):
        calls.append(inputs["labels"].shape[0])
        if len(calls) == 7:  # step 7, after the checkpoint of step 4
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, inputs, count)

    monkeypatch.setattr(train_teacher, "compute_loss", run_out_once)
    assert run(world, tmp_path / "a", "--no-recompute")["placement"]["micro_batch"] == 4
    assert calls == [8] * 7 + [4] * 2 * 8 and len(read_losses(tmp_path / "a")) == 12
    log = train_teacher.Progress.on_log

    def stop(self, args, state, control, logs=None, **kwargs):
        log(self, args, state, control, logs, **kwargs)
        if state.global_step == 10:
            raise KeyboardInterrupt

    calls.clear()
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(train_teacher.Progress, "on_log", stop)
        run(world, tmp_path / "b", "--no-recompute")
    run(world, tmp_path / "b", "--no-recompute")
    assert compare_weights(tmp_path / "a", tmp_path / "b") == 0


def test_without_checkpoints_none_is_written(world, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(train_teacher.Trainer, "_save_checkpoint", lambda *a: saved.append(a))
    run(world, tmp_path / "run", "--save-steps", 0)
    assert not saved and (tmp_path / "run" / "model" / "model.safetensors").exists()


def test_loss_is_a_mean_over_the_tokens_of_all_batches():
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    labels[0, 1:] = labels[2, 3:] = -100  # padding

    def loss(part, count=None):
        model = lambda **inputs: Namespace(logits=logits[part])  # noqa: E731
        return train_teacher.compute_loss(model, {"labels": labels[part]}, count)

    mean = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    assert loss(slice(None)).item() == pytest.approx(mean.item())
    parts = [loss(slice(i, i + 1), (labels != -100).sum()) for i in range(4)]
    assert sum(parts).item() == pytest.approx(mean.item())


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
    model = T5.from_pretrained(folder, dtype=getattr(torch, dtype), dropout_rate=0.0)
    adamw = {"lr": rate, "weight_decay": 0.0}
    optimiser = (
        torch.optim.AdamW(model.parameters(), **adamw)
        if name == "adamw"
        else train_teacher.SplitAdafactor(model.parameters(), rate)
    )
    losses = []
    for _ in range(steps):
        inputs = {"input_ids": rows, "decoder_input_ids": torch.roll(rows, 1, 1)}
        losses.append(train_teacher.compute_loss(model, {**inputs, "labels": rows}))
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


def test_a_device_has_one_copy_of_the_rates(monkeypatch):
    weights = [torch.nn.Parameter(torch.zeros(4, 3, device=d)) for d in ("cpu", "meta", "cpu")]
    optimiser, made = train_teacher.SplitAdafactor(weights, 1e-3), []
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    real = torch.tensor
    monkeypatch.setattr(torch, "tensor", lambda *a, **k: made.append(k) or real(*a, **k))
    optimiser.step()
    assert [str(k["device"]) for k in made] == ["cpu", "meta"]


def test_compiled_updates_have_variants_for_every_device_and_never_stop_a_run():
    """torch gives up on a function after 8 variants of it; a device needs 4."""
    from torch._dynamo.testing import CompileCounter

    for backend in (CompileCounter(), lambda *args: 1 / 0):  # one that cannot compile anything
        torch._dynamo.reset()
        optimisers = []
        for device in ("cpu", "meta"):
            shapes = [(size,) * ndim for ndim in (1, 2, 3) for size in (3, 4)]
            kinds = [(shape, t) for shape in shapes for t in (torch.float32, torch.bfloat16)]
            weights = [torch.nn.Parameter(torch.zeros(s, dtype=t, device=device)) for s, t in kinds]
            optimisers += [train_teacher.SplitAdafactor(weights, 1e-3)]
            optimisers[-1].update = torch.compile(train_teacher.update_weight, backend=backend)
        for optimiser in optimisers:
            for weight in (weights := optimiser.param_groups[0]["params"]):
                weight.grad = torch.ones_like(weight)
            optimiser.step()
        if isinstance(backend, CompileCounter):
            assert backend.frame_count > 8
        assert all((weight != 0).all() for weight in optimisers[0].param_groups[0]["params"])


# --- the way -----------------------------------------------------------------------------------

XXL, XL, LARGE = 11_135_332_352, 2_849_757_184, 783_150_080
GIB = 2**30


def play_gpus(monkeypatch, gib, count=1, processes=1, native=True):
    """Trainer's arguments on a machine of GPUs, played; bf16 can always be emulated."""
    cuda = torch.cuda
    monkeypatch.setattr(cuda, "device_count", lambda: count)
    monkeypatch.setattr(cuda, "mem_get_info", lambda device: (gib * GIB, gib * GIB))
    emulated = lambda including_emulation=True: including_emulation or native  # noqa: E731
    monkeypatch.setattr(cuda, "is_bf16_supported", emulated)
    device = torch.device("cuda", processes - 1)
    steps = {"save_strategy": "steps", "bf16": native}
    return Namespace(device=device, world_size=processes, process_index=0, **steps)


@pytest.mark.parametrize(
    ("weights", "gib", "gpus", "way", "used"),
    [
        (XXL, 78.6, 1, "bf16", 1),
        (XXL, 78.6, 8, "bf16", 1),  # not fp32 over all eight
        (XXL, 70, 1, "bf16", 1),  # little room, yet all weights are trained
        (XXL, 44.4, 4, "bf16", 2),
        (XXL, 39.4, 8, "bf16", 2),
        (XXL, 23.5, 1, "lora", 1),
        (XXL, 23.5, 4, "bf16", 4),
        (XL, 78.6, 1, "fp32", 1),
        (XL, 44.4, 1, "bf16", 1),
        (XL, 23.5, 1, "bf16", 1),
        (LARGE, 23.5, 1, "fp32", 1),
    ],
)
def test_the_fewest_gpus_and_then_fp32(monkeypatch, weights, gib, gpus, way, used):
    training = play_gpus(monkeypatch, gib, gpus)
    found = train_teacher.choose_way(Namespace(memory="auto", model="m"), training, weights)
    assert found[:2] == (way, used) and 0 < found[2] <= 0.97


def test_what_fits_nowhere_is_refused_with_what_it_needs(monkeypatch):
    training, args = play_gpus(monkeypatch, 15.7), Namespace(memory="auto", model="xxl")
    with fails(r"xxl does not fit: bf16 takes 62.2 GiB and 1 x 15.7 GiB are free"):
        train_teacher.choose_way(args, training, XXL)
    args.memory = "fp32"
    with fails(r"fp32 takes 186.7 GiB"):
        train_teacher.choose_way(args, training, XXL)


def test_bf16_is_never_emulated(monkeypatch):
    """A T4 says that it supports bf16; it means an emulation."""
    training = play_gpus(monkeypatch, 14.6, native=False)
    args = Namespace(memory="auto", model="m")
    assert train_teacher.choose_way(args, training, LARGE)[0] == "fp32"
    with fails("fp32 takes 42.5 GiB"):
        train_teacher.choose_way(args, training, XL)
    for way in ("bf16", "lora"):
        with fails(f"--memory {way}: this GPU has no bf16 and would emulate it"):
            train_teacher.choose_way(Namespace(memory=way, model="m"), training, LARGE)


def test_ddp_counts_its_second_copy_of_the_gradients(monkeypatch):
    """So T5-XXL is never trained by it, nor quietly by LoRA instead; XL is, in bf16."""
    args = Namespace(memory="auto", model="xxl")
    training = play_gpus(monkeypatch, 78.6, 8, processes=8)
    with fails(r"bf16 takes 83.0 GiB .*start one process, without torchrun, or say --memory lora"):
        train_teacher.choose_way(args, training, XXL)
    assert train_teacher.choose_way(args, training, XL)[:2] == ("fp32", 1)
    training = play_gpus(monkeypatch, 23.5, 8, processes=8)
    assert train_teacher.choose_way(args, training, XL)[:2] == ("bf16", 1)
    args.memory = "lora"
    assert train_teacher.choose_way(args, training, XXL)[:2] == ("lora", 1)


def test_weights_are_counted_with_a_head_of_their_own(world):
    for name, untied in (("model", True), ("counted", False)):
        if not untied:
            save_model(world / name, untied=False)
        config, _ = train_teacher.load_parts(str(world / name))
        weights = sum(w.numel() for w in load_file(world / name / "model.safetensors").values())
        assert train_teacher.count_weights(config) == weights


@pytest.mark.parametrize("name", ["activation", "gradient"])
def test_layers_are_recomputed_by_either_name(monkeypatch, name):
    """transformers 5.23 says activation_, 5.17 gradient_checkpointing_enable."""
    asked, args = [], Namespace(pad_to=1, batch_size=8)
    model = Namespace(**{f"{name}_checkpointing_enable": asked.append})
    monkeypatch.setattr(train_teacher, "Trainer", Namespace)
    passes = {"rows": 2, "recompute": True}
    training = Namespace(world_size=2)
    train_teacher.build_trainer(args, training, model, "fp32", [], passes)
    assert asked == [{"use_reentrant": False}] and training.gradient_accumulation_steps == 2


@pytest.mark.parametrize(
    ("way", "ram", "disk", "none"),
    [("fp32", 8, 24, 4), ("bf16", 2, 8, 2), ("lora", 2, 2, 2)],
)
def test_ram_and_disk_are_checked_for_every_way(world, monkeypatch, way, ram, disk, none):
    """Bytes a weight to save and continue, and 4 to load the hub's file of fp32 weights."""
    args = Namespace(model=str(world / "model"), output=world)
    training, free = Namespace(save_strategy="steps"), {"ram": 1e15, "disk": 1e15}
    memory = lambda: Namespace(available=free["ram"])  # noqa: E731
    monkeypatch.setattr(train_teacher.psutil, "virtual_memory", memory)
    usage = lambda folder: Namespace(free=free["disk"])  # noqa: E731
    monkeypatch.setattr(train_teacher.shutil, "disk_usage", usage)
    check = lambda: train_teacher.check_host(args, training, way, 10**9)  # noqa: E731
    for kind, need, fault in (
        ("ram", ram, "GB of RAM free"),
        ("disk", disk, "GB of disk free, .* or another --output or --save-steps 0"),
    ):
        free[kind] = 0.99e9 * need
        with fails(fault):
            check()
        free[kind] = 1.01e9 * need
        check()
    training.save_strategy = "no"  # --save-steps 0
    free["disk"] = 1.01e9 * none
    check()
    args.model, free["ram"] = "google/t5-v1_1-xxl", 1.01e9 * max(4, ram)
    check()
    free["ram"] = 0.99e9 * max(4, ram)
    with fails("to load, save and continue"):
        check()


# --- placement without a GPU ---------------------------------------------------------------------


@pytest.mark.parametrize("way", ["fp32", "bf16"])
def test_a_process_loads_onto_its_own_gpu_and_several_gpus_share_the_layers(
    monkeypatch, tmp_path, way
):
    asked = {}
    monkeypatch.setattr(train_teacher, "load_model", lambda *a, **kwargs: asked.update(kwargs))
    monkeypatch.setattr(train_teacher, "fuse_gelu", lambda model: Namespace(config=Namespace()))
    training, args = play_gpus(monkeypatch, 40, 8, processes=4), Namespace(model="m", lora_rank=8)
    train_teacher.place_model(args, training, None, way, 1)
    assert asked["device_map"] == {"": torch.device("cuda", 3)}  # not what is current, GPU 0
    assert asked.get("dtype", torch.float32) == {"fp32": torch.float32}.get(way, torch.bfloat16)
    training = play_gpus(monkeypatch, 40, 8)
    train_teacher.place_model(args, training, None, way, 3)
    assert asked["device_map"] == "balanced"
    assert asked["max_memory"] == dict.fromkeys(range(3), 40 * GIB)


def test_layers_on_different_devices_meet(world):
    """Half of the model on the CPU, half on the meta device: hooks carry the tensors across."""
    from accelerate import dispatch_model, infer_auto_device_map

    save_model(world / "deep", layers=3)
    model = T5.from_pretrained(world / "deep")
    size = sum(w.numel() * 4 for w in model.parameters())
    room, whole = {"cpu": 0.6 * size, "disk": size}, ["T5Block"]
    places = infer_auto_device_map(model, room, no_split_module_classes=whole)
    places = {name: {"disk": "meta"}.get(place, place) for name, place in places.items()}
    assert set(places.values()) == {"cpu", "meta"}
    model = dispatch_model(model, places, main_device="cpu", force_hooks=True)
    model._hf_hook.io_same_device = False  # or the logits would be fetched, empty, from meta
    ids = torch.randint(3, 60, (2, 8))
    output = model(input_ids=ids, decoder_input_ids=ids)
    assert output.logits.shape == (2, 8, 63)


def test_training_under_a_device_map_is_the_same(world, tmp_path, monkeypatch):
    """The code path of several GPUs, every piece of the map on the CPU."""
    run(world, tmp_path / "plain", "--dropout", 0)
    load = train_teacher.load_model

    def split(*args, **kwargs):
        assert kwargs.pop("device_map") == "balanced" and kwargs.pop("max_memory")
        model = load(*args, **kwargs)
        names = [f"{side}.block.0" for side in ("encoder", "decoder")]
        model.hf_device_map = dict.fromkeys(["shared", *names, "lm_head"], "cpu")
        return model

    monkeypatch.setattr(train_teacher, "load_model", split)
    monkeypatch.setattr(train_teacher, "choose_way", lambda *args: ("fp32", 2, 0.1))
    record = run(world, tmp_path / "mapped", "--dropout", 0)
    assert record["placement"]["gpus"] == 2
    assert compare_weights(tmp_path / "plain", tmp_path / "mapped") == 0


def test_adapters_are_merged_one_layer_at_a_time(world):
    """In fp32 and rounded once: no copy of the whole model, and bf16 stays bf16."""
    pytest.importorskip("peft")
    model = T5.from_pretrained(world / "model", dtype=torch.bfloat16)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    model = train_teacher.add_adapters(model, 4)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    layer = model.base_model.model.encoder.block[0].layer[0].SelfAttention.q
    delta = 2 * layer.lora_B["default"].weight.float() @ layer.lora_A["default"].weight.float()
    model.merge_adapter()
    merged = model.unload()
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    after = dict(merged.named_parameters())
    assert after.keys() == before.keys()
    assert torch.equal(after[name], (before[name].float() + delta).bfloat16())
    assert torch.equal(after["shared.weight"], before["shared.weight"])


# --- mistakes ----------------------------------------------------------------------------------


def test_refusals(world, tmp_path, capsys):
    with fails("no such model folder"):
        run(world, tmp_path / "a", model="nothing")
    config = shutil.copytree(world / "model", world / "odd") / "config.json"
    config.write_text(config.read_text().replace('"d_kv": 8', '"d_kv": -8'))
    with fails("odd: no model can be loaded"):
        run(world, tmp_path / "a", model="odd")
    with fails("100 labels asked for, 64 rows with a target"):
        run(world, tmp_path / "b", "--num-labels", 100)
    with fails("the loss is nan at step"):
        run(world, tmp_path / "c", "--learning-rate", "1e18", "--dropout", 0)
    for flags in (["--train", "x"], ["--train", "x", "--output", "y", "--dry-run"]):
        with pytest.raises(SystemExit):
            train_teacher.main(flags)
    for flags in (["--weight-decay", 0.1], ["--optim", "sgd"]):
        with fails("--memory bf16 has an optimiser of its own"):
            run(world, tmp_path / "d", "--memory", "bf16", *flags)
    shutil.rmtree(tmp_path / "d")
    with pytest.raises(SystemExit) as error:
        run(world, tmp_path / "d", "--micro-batch", 3)
    assert error.value.code == 2 and not (tmp_path / "d").exists()


def test_too_little_memory_is_refused_before_loading(world, tmp_path, monkeypatch):
    monkeypatch.setattr(train_teacher.psutil, "virtual_memory", lambda: Namespace(available=1e5))
    with fails("does not fit: fp32 takes"):
        run(world, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


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
@pytest.mark.parametrize("way", ["fp32", "bf16", "lora"])
def test_two_processes_are_as_one(world, tmp_path, way):
    """torchrun with gloo: two processes of 4 rows against one of 8; the merge is done once."""
    run(world, tmp_path / "one", "--dropout", 0, "--memory", way)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(random.randint(20000, 60000)), str(ROOT / "train_teacher.py")]
    flags = ["--model", world / "model", "--train", world / "train.jsonl", "--dropout", 0]
    flags += ["--max-source-length", 8, "--max-target-length", 8, "--learning-rate", "3e-3"]
    flags += ["--batch-size", 8, "--max-steps", 12, "--logging-steps", 1, "--memory", way]
    flags += ["--output", tmp_path / "two"]
    done = subprocess.run([*launch, *map(str, flags)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    close = 1e-4 if way == "fp32" else 2e-2
    assert read_losses(tmp_path / "two") == pytest.approx(read_losses(tmp_path / "one"), rel=close)
    assert compare_weights(tmp_path / "one", tmp_path / "two") < (1e-4 if way == "fp32" else 2e-2)
