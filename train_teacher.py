"""Fine-tune a large teacher on labeled examples: Strategy 2, its first half.

Usage:
    python train_teacher.py --train data/prepared/paper/wlp/train.jsonl --num-labels 5000 \\
        --prefix "wlp: " --output runs/paper/wlp/teacher-n5000-s0
    python train_teacher.py --dry-run --gpus 1xH100 --num-labels 5000 --usd-per-gpu-hour 4
    python train_teacher.py --model data/world/models/teacher --num-labels 100 --max-steps 200 \\
        --train data/prepared/mini/wlp/train.jsonl --prefix "wlp: " --learning-rate 3e-4 \\
        --output /tmp/teacher

Reads:  TRAIN, a JSONL file of {"source", "target"}; a Hugging Face T5 folder or hub name.
Writes: OUTPUT/config.json first, log.jsonl, checkpoints/ (a killed run continues from there),
        model/, and training.json last: what was trained, on what, in how many seconds.
Copy:   train_teacher.py alone
Paper:  section 2.3; input and output formats of Appendix B; hyperparameters of Table 8.

The paper held an 11B teacher in fp32 with AdamW, layers split over several GPUs. Three ways are
offered, and the first that fits the GPUs at hand is taken (--memory chooses another):
    fp32  fp32 weights and AdamW, on one GPU or with the layers split over all: 16 bytes a weight
    bf16  bf16 weights computed with, their lower 16 bits kept beside them, so that no update is
          lost to rounding; Adafactor's factored second moments: 6 bytes a weight, one 80 GB card
    lora  frozen bf16 weights and trained low-rank adapters (needs the package peft), merged at
          the end: 2 bytes a weight
"""

import argparse
import contextlib
import copy
import hashlib
import json
import logging
import math
import os
import platform
import random
import re
import shlex
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
)


# same in: train_teacher.py, distill.py
def fail(message):
    """Stop with one `error:` line on stderr and exit code 1."""
    sys.exit(f"error: {message}")


# end same


# same in: train_teacher.py
def read_jsonl(path, keys):
    """The rows of a JSONL file, each an object with `keys`; a fault is named by file and line."""
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                row = json.loads(line) if line.strip() else None
                if row is not None and not all(isinstance(row.get(key), str) for key in keys):
                    fail(f"{path} line {number}: a row needs the texts {' and '.join(keys)}")
                rows += [] if row is None else [row]
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")
    except (ValueError, AttributeError):
        fail(f"{path} line {number}: not a JSON object")
    return rows or fail(f"{path}: no rows")


# end same


# same in: train_teacher.py, distill.py
def write_json(path, value):
    """Write `value` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def hash_file(path, digest=None):
    """SHA-256 of a file, or the digest so far continued with it; a large file stays on disk."""
    digest = digest or hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def describe_run(data):
    """What a reader needs to trust or repeat a run: command, versions, commit, data, machine."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    gpus = torch.cuda.device_count()
    return {
        "hardware": {
            "device": "cuda" if gpus else "cpu",
            "gpu": torch.cuda.get_device_name() if gpus else None,
            "gpus": gpus,
            "cpu_threads": torch.get_num_threads(),
            "cpu": platform.processor() or platform.machine(),
        },
        "command": shlex.join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "git_commit": commit or None,
        "data_sha256": hash_file(data),
    }


# end same


# same in: train_teacher.py, distill.py
def open_run(output, settings):
    """Write OUTPUT/config.json, or refuse a folder begun with other settings; False if finished."""
    config = output / "config.json"
    settings = json.loads(json.dumps(settings, default=str))
    if config.exists():
        try:
            before = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            fail(f"{config}: not JSON; remove {output} to start over")
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            changes = ", ".join(f"{key} {before.get(key)!r} -> {settings[key]!r}" for key in other)
            fail(f"{output} was begun with other settings ({changes}); remove it or choose another")
        if (output / "training.json").exists():
            print(f"[{output.name}] already trained", file=sys.stderr)
            return False
    output.mkdir(parents=True, exist_ok=True)
    write_json(config, settings)
    return True


# end same


# same in: train_teacher.py, distill.py
def raise_steps(args, rows):
    """--max-steps for Trainer: as asked, or --min-steps where --epochs of `rows` would be fewer."""
    batch = args.batch_size * args.gradient_accumulation * int(os.environ.get("WORLD_SIZE", 1))
    fewer = math.ceil(rows / batch) * args.epochs < args.min_steps
    return args.min_steps if args.max_steps <= 0 and fewer else args.max_steps


# end same


# same in: train_teacher.py, distill.py
def load_tokenizer(model):
    """The tokenizer of a model folder or hub name."""
    looks_local = model.count("/") > 1 or ("/" in model and Path(model).parent.is_dir())
    if looks_local and not Path(model).is_dir():
        fail(f"{model}: no such model folder")
    try:
        return AutoTokenizer.from_pretrained(model)
    except Exception as error:
        fail(f"{model}: no tokenizer can be loaded ({str(error).splitlines()[0]})")


def load_model(model, **kwargs):
    """A T5 model from a folder or the hub, in fp32 unless told otherwise.

    fp16 is not offered: T5's activations overflow in it.
    """
    try:
        config = AutoConfig.from_pretrained(model)
        for key in [key for key in kwargs if key != "dtype" and hasattr(config, key)]:
            setattr(config, key, kwargs.pop(key))
        kwargs.setdefault("dtype", torch.float32)
        return T5ForConditionalGeneration.from_pretrained(model, config=config, **kwargs)
    except Exception as error:
        fail(f"{model}: no T5 model can be loaded ({str(error).splitlines()[0]})")


# end same


def encode_rows(rows, tokenizer, args):
    """Token ids of prefixed sources and of targets; counts what the maximum lengths cut off."""
    encoded = []
    sources = tokenizer([args.prefix + row["source"] for row in rows]).input_ids
    targets = tokenizer(text_target=[row["target"] for row in rows]).input_ids
    limits = args.max_source_length, args.max_target_length
    for source, target in zip(sources, targets, strict=True):
        cut = [cut_ids(ids, limit) for ids, limit in zip((source, target), limits, strict=True)]
        encoded.append({"input_ids": cut[0], "labels": cut[1]})
    return encoded, {
        "truncated_sources": sum(len(ids) > limits[0] for ids in sources),
        "truncated_targets": sum(len(ids) > limits[1] for ids in targets),
    }


def cut_ids(ids, limit):
    """At most `limit` ids, the last one (end of sequence) kept."""
    return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]


def sample_rows(rows, count, seed, path):
    """The first `count` rows of a seeded permutation, so that more labels contain fewer."""
    rows = [row for row in rows if row["target"].strip()]
    if count is not None and count > len(rows):
        fail(f"{path}: {count:,} labels asked for, {len(rows):,} rows with a target are there")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in order[:count]]


# same in: train_teacher.py, distill.py
class LengthGroupedSampler(torch.utils.data.Sampler):
    """Batches of similar length in a random order that depends on (seed, epoch) alone.

    Hugging Face's sampler draws from the global random state, so a resumed run would see other
    batches; this one is told its epoch and is the same in every process. Arrays, not lists: a
    million rows take a second and 12 MB.
    """

    def __init__(self, lengths, batch_size, seed):
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.seed, self.epoch = seed, 0

    def __len__(self):
        return len(self.lengths)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rng, size = np.random.RandomState([self.seed, self.epoch]), self.batch_size
        order = rng.permutation(len(self)).astype(np.int32)
        for pool in np.split(order, range(50 * size, len(order), 50 * size)):
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]  # a view: sorts `order`
        whole = len(order) // size  # the short batch stays last
        for batch in [*rng.permutation(whole), whole]:
            yield from order[batch * size : (batch + 1) * size].tolist()


# end same


# same in: train_teacher.py, distill.py
class Progress(transformers.TrainerCallback):
    """Steps, loss and time left on stderr; the same in OUTPUT/log.jsonl; stops on a NaN loss."""

    def __init__(self, output, step):
        self.name, self.log, self.begun = output.name, output / "log.jsonl", step
        old = self.log.read_text().splitlines() if self.log.exists() else []
        old = [line for line in old if line.endswith("}") and json.loads(line)["step"] <= step]
        self.log.write_text("".join(f"{line}\n" for line in old))  # later steps are done again
        self.before = json.loads(old[-1])["seconds"] if old else 0.0
        self.start = self.shown = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or not state.is_world_process_zero:
            return
        now, loss = time.monotonic(), float(logs["loss"])
        entry = {"step": state.global_step, "loss": loss, "learning_rate": logs["learning_rate"]}
        with open(self.log, "a") as file:
            file.write(json.dumps({**entry, "seconds": self.before + now - self.start}) + "\n")
        if not math.isfinite(loss):
            fail(f"{self.name}: the loss is {loss} at step {state.global_step}; lower the rate")
        live = sys.stderr.isatty() and "MAKELEVEL" not in os.environ  # make -j mixes its runs
        if live or now - self.shown > 10:
            left = (now - self.start) / (state.global_step - self.begun)
            self.shown, left = now, left * (state.max_steps - state.global_step)
            end = "\r" if live else "\n"
            text = (
                f"step {state.global_step:,}/{state.max_steps:,} loss {loss:.3f}, {left:.0f} s left"
            )
            print(f"[{self.name}] {text}   ", end=end, file=sys.stderr, flush=True)


# end same


# same in: train_teacher.py, distill.py
def find_checkpoint(folder):
    """The newest whole checkpoint (its trainer_state.json is written last), or None."""
    found = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found[json.loads(path.read_text())["global_step"]] = path.parent
        except ValueError:
            continue  # killed in the middle of writing it
    return found[max(found)] if found else None


def finish_run(trainer, tokenizer, output, record):
    """Save the model, then training.json (last and atomically), then drop the checkpoints."""
    start = time.monotonic()
    if not math.isfinite(record["train_loss"]):  # a short run may end before its first log line
        fail(f"{output.name}: the loss is {record['train_loss']}; lower the rate")
    if not all(weight.isfinite().all() for weight in trainer.model.parameters()):
        fail(f"{output.name}: the last step made weights infinite or NaN; lower the rate")
    temporary = output / ".model.new"
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(output / "model", ignore_errors=True)
    os.replace(temporary, output / "model")
    record["seconds"]["save"] = time.monotonic() - start
    write_json(output / "training.json", record)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)


# end same


# same in: train_teacher.py
def compute_loss(outputs, labels, num_items_in_batch=None):
    """Cross-entropy of logits (B, T, V), nats per target token of the whole step.

    T5 averages over each batch it is given and Trainer adds these up, so without this the gradient
    would grow with the number of batches and processes, and short batches would count too much.
    """
    logits = outputs.logits.float().flatten(0, 1)
    labels = labels.to(logits.device).flatten()
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return loss / torch.as_tensor(count, device=loss.device)


# end same


HEAD = ("tie_word_embeddings", "scale_decoder_outputs")  # what a config says of the output head
# Bytes per weight: the weight itself, its gradient, what the optimiser keeps beside it.
BYTES = {"fp32": (4, 4, 8), "bf16": (2, 2, 2), "lora": (2, 0, 0)}
KINDS = ("weights", "gradients", "optimiser")
# Bytes per weight on disk: a checkpoint, of which two lie there while one is written; the model.
DISK = {"fp32": (12, 4), "bf16": (4, 2), "lora": (0, 4)}
RESERVE = 1.2  # GiB a GPU for the CUDA context, libraries' workspaces and fragmentation
MICRO_TOKENS = 2048  # with fewer in a pass, a big GPU mostly reads weights: rather recompute
GPUS = {  # GiB that a program can use, dense bf16 TFLOP/s (fp32 is TF32 here: half), TB/s of memory
    "A100-80GB": (79.1, 312, 2.0),
    "H100": (79.1, 989, 3.35),
    "A100-40GB": (39.4, 312, 1.55),
    "A40": (44.4, 150, 0.7),
    "L40S": (44.4, 362, 0.86),
    "RTX4090": (23.5, 165, 1.0),
    "A10G": (22.1, 70, 0.6),
    "H200": (139.8, 989, 4.8),
}
SIZES = {"80": "A100-80GB", "40": "A100-40GB", "48": "A40", "24": "RTX4090", "141": "H200"}
T5_SHAPES = {  # d_model, d_ff, heads, layers a side of T5 v1.1
    "small": (512, 1024, 6, 8),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 16, 24),
    "xl": (2048, 5120, 32, 24),
    "xxl": (4096, 10240, 64, 24),
}


def read_config(model, dry_run):
    """A model's config; a plan for a published T5 v1.1 needs no hub."""
    size = model.removeprefix("google/t5-").removeprefix("v1_1-").removesuffix("-ssm")
    if dry_run and model.startswith("google/t5-") and size in T5_SHAPES:
        width, hidden, heads, layers = T5_SHAPES[size]
        shape = {"d_model": width, "d_ff": hidden, "num_heads": heads, "num_layers": layers}
        return transformers.T5Config(
            **shape, vocab_size=32128, feed_forward_proj="gated-gelu", tie_word_embeddings=False
        )
    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:
        fail(f"{model}: no T5 model can be loaded ({str(error).splitlines()[0]})")


def list_gpus(spec):
    """[(name, free GiB, TFLOP/s, TB/s)] of `4x48` or `1xH100`, else of what this machine has."""
    if spec:
        count, _, name = spec.partition("x")
        name = SIZES.get(name, name)
        if not count.isdigit() or int(count) < 1 or name not in GPUS:
            fail(f"--gpus {spec}: COUNTxGPU, GPU one of {', '.join([*SIZES, *GPUS])}")
        return [(name, *GPUS[name])] * int(count)
    if torch.cuda.is_available():
        several = int(os.environ.get("WORLD_SIZE", 1)) > 1  # one process for each GPU: no split
        count = torch.cuda.device_count()
        here = [int(os.environ.get("LOCAL_RANK", 0))] if several else range(count)
        return [describe_gpu(i) for i in here]
    return [("CPU", measure_ram(), None, None)]


def measure_ram():
    """GiB of memory that is free, or all there is where the system doesn't tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) << 10
    except (OSError, StopIteration):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return free / 2**30


def describe_gpu(index):
    """(name, free GiB, TFLOP/s, TB/s) of one of this machine's GPUs; None where not known."""
    name, free = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)[0] / 2**30
    speeds = [speed for key, (_, *speed) in GPUS.items() if key.split("-")[0] in name]
    return name, free, *(speeds[0] if speeds else (None, None))


def build_empty(config, layers=None):
    """The model on the meta device: shapes without memory, of `layers` blocks a side or all."""
    config = copy.deepcopy(config)
    if layers:
        config.num_layers, config.num_decoder_layers = layers
    config.use_cache = False
    with torch.device("meta"):
        return fuse_gelu(T5ForConditionalGeneration(config))


class Footprint:
    """What a model's pieces weigh and what they keep for the backward pass, without building it.

    pieces: [(module, weights)] in the order they run; an untied head has weights of its own.
    """

    rows = 8  # measured with; all but the small position biases grows with the rows

    def __init__(self, config, lengths):
        self.config, self.lengths, self.known = config, lengths, {}
        model = build_empty(config)
        count = lambda module: sum(weight.numel() for weight in module.parameters())  # noqa: E731
        self.pieces = [("shared", count(model.shared))]
        for side in ("encoder", "decoder"):
            stack = getattr(model, side)
            self.pieces += [(f"{side}.block.{i}", count(b)) for i, b in enumerate(stack.block)]
            self.pieces.append((f"{side}.final_layer_norm", count(stack.final_layer_norm)))
        self.untied = not config.scale_decoder_outputs
        self.pieces.append(("lm_head", count(model.shared) if self.untied else 0))
        self.weights = sum(weights for _, weights in self.pieces)
        linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        linear.remove(model.lm_head)
        self.adapters = sum(m.in_features + m.out_features for m in linear)  # of LoRA at rank 1

    def measure(self, layers, dtype, recompute, rank):
        """Bytes that a forward pass of `layers` blocks a side saves, counted on meta tensors."""
        model = build_empty(self.config, layers).to(dtype)
        model = (add_adapters(model, rank) if rank else model).train()
        if recompute:
            model.activation_checkpointing_enable({"use_reentrant": False})
        weights = {weight.untyped_storage()._cdata for weight in model.parameters()}
        saved, alive = {}, []

        def count(tensor):
            storage = tensor.untyped_storage()
            if storage._cdata not in weights:
                saved[storage._cdata] = storage.nbytes()
                alive.append(tensor)  # or the address of a freed one could come again
            return tensor

        rows, (source, target) = self.rows, self.lengths
        empty = lambda *shape, dtype: torch.zeros(shape, dtype=dtype, device="meta")  # noqa: E731
        targets = empty(rows, target, dtype=torch.long)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            output = model(
                input_ids=empty(rows, source, dtype=torch.long),
                attention_mask=empty(rows, 1, 1, source, dtype=dtype),
                decoder_input_ids=targets,
                decoder_attention_mask=empty(rows, 1, target, target, dtype=dtype),
            )
            compute_loss(output, targets, 1)
        return sum(saved.values())

    def keep(self, *settings):
        """Bytes a row keeps: (an encoder block, a decoder block, all the rest).

        settings: dtype, recompute, rank of the adapters or 0.
        """
        if settings not in self.known:
            shapes = (1, 1), (2, 1), (1, 2)
            one, encoder, decoder = (self.measure(shape, *settings) for shape in shapes)
            encoder, decoder = encoder - one, decoder - one
            kept = encoder, decoder, one - encoder - decoder
            self.known[settings] = [size / self.rows for size in kept]
        return self.known[settings]

    def list_costs(self, way, rows, recompute, autocast, rank):
        """(bytes of each piece with its share of the activations, bytes any GPU needs besides)."""
        dtype, rank = (torch.float32 if way == "fp32" else torch.bfloat16), rank * (way == "lora")
        encoder, decoder, rest = self.keep(dtype, recompute, rank)
        each = sum(BYTES[way]) + 2 * autocast  # autocast keeps bf16 copies for the backward pass
        each += 16 * rank * self.adapters / self.weights
        kept = {"encoder.block": encoder, "decoder.block": decoder, "lm_head": rest}
        # the logits come back to the first GPU: copies in fp32, their softmax and gradients
        kept["shared"] = 14 * self.lengths[1] * self.config.vocab_size
        costs = [
            weights * each + rows * kept.get(name.rpartition(".")[0] or name, 0)
            for name, weights in self.pieces
        ]
        again = (
            rows * self.keep(dtype, False, rank)[1] if recompute else 0
        )  # one block, while redone
        largest = 12 * self.config.vocab_size * self.config.d_model  # fp32 copies in the optimiser
        return costs, max(again, largest if way == "bf16" else 0)


def split_pieces(costs, count):
    """(share of each part, part of each piece): consecutive parts with the least largest share."""

    def fill(limit):
        places, shares = [], [0.0]
        for cost in costs:
            if shares[-1] + cost > limit and shares[-1]:
                shares.append(0.0)
            shares[-1] += cost
            places.append(len(shares) - 1)
        return shares, places

    low, high = max(costs), sum(costs)
    while high - low > 2**20:
        middle = (low + high) / 2
        low, high = (low, middle) if len(fill(middle)[0]) <= count else (middle, high)
    return fill(high)


def plan_way(footprint, gpus, way, rows, recompute, autocast, rank):
    """How the model lies on `gpus` under these settings, GiB, and whether that fits."""
    costs, spare = footprint.list_costs(way, rows, recompute, autocast, rank)
    shares, places = split_pieces(costs, len(gpus))
    reserve = 0 if gpus[0][0] == "CPU" else RESERVE
    needs = [(share + spare) / 2**30 + reserve for share in shares]
    gib = {
        kind: footprint.weights * size / 2**30 for kind, size in zip(KINDS, BYTES[way], strict=True)
    }
    gib["optimiser"] += (16 * rank * footprint.adapters if way == "lora" else 0) / 2**30
    gib["weights"] += 2 * autocast * footprint.weights / 2**30
    gib["activations"] = sum(costs) / 2**30 - sum(gib.values())
    return {
        "memory": way,
        "micro_batch": rows,
        "recompute": recompute,
        "autocast": autocast,
        "gpus": len(shares),
        "disk_gb": footprint.weights * max(2 * DISK[way][0], sum(DISK[way])) / 1e9,
        "gib": gib,
        "gib_per_gpu": needs,
        "fits": all(need <= gpu[1] for need, gpu in zip(needs, gpus, strict=False)),
        "places": {name: place for (name, _), place in zip(footprint.pieces, places, strict=True)},
    }


def list_tries(args, way, cpu, tokens):
    """(rows, recompute, autocast) in the order to try: fast first, lean last."""
    sizes = [n for n in range(args.batch_size, 0, -1) if args.batch_size % n == 0]
    sizes = [args.micro_batch] if args.micro_batch else sizes
    casts = [False] if way != "fp32" or args.bf16 is False else [True, False]
    if way == "fp32" and (cpu or args.bf16):
        casts = [bool(args.bf16)]
    again = [False, True] if args.recompute is None else [args.recompute]
    return [
        (rows, recompute, cast)
        for cast in casts
        for recompute in again
        for rows in sizes
        if len(again) == 1
        or recompute
        or rows in (sizes[0], args.micro_batch)
        or rows * tokens >= MICRO_TOKENS
    ]


def plan_memory(args, footprint, gpus, tokens):
    """(the plan to run or None, plans by way): the fastest settings that fit, else the leanest.

    One GPU is used where it suffices, otherwise all of them. A dry run plans all ways, to compare.
    tokens: mean source and target tokens of a row.
    """
    plans, wanted = {}, [*BYTES] if args.memory == "auto" else [args.memory]
    for way in BYTES if args.dry_run else wanted:
        tries = list_tries(args, way, gpus[0][0] == "CPU", sum(tokens))
        for devices in (gpus[:1], gpus)[: len(gpus)]:
            for settings in tries:
                plans[way] = plan_way(footprint, devices, way, *settings, args.lora_rank)
                if plans[way]["fits"]:
                    break
            if plans[way]["fits"]:
                break
        if plans[way]["fits"] and not args.dry_run:
            break
    return next((plans[w] for w in wanted if w in plans and plans[w]["fits"]), None), plans


def estimate_hours(args, footprint, gpus, plan, rows, tokens):
    """Hours of training; None where the GPU's speed isn't known.

    6 FLOP a weight and real token, a third more with recompute, and for each step the optimiser
    reads and writes all it keeps. Layers on several GPUs work one after the other, optimisers at
    the same time.
    """
    _, _, speed, bandwidth = gpus[0]
    if not speed:
        return None
    flops = 0
    for name, weights in footprint.pieces[1:]:
        flops += 6 * weights * (tokens[0] if name.startswith("encoder") else tokens[1])
    flops *= (4 / 3 if plan["recompute"] else 1) * (2 / 3 if plan["memory"] == "lora" else 1)
    speed *= 0.5 if plan["memory"] == "fp32" and not plan["autocast"] else 1
    batch = args.batch_size * args.gradient_accumulation
    steps = raise_steps(args, rows)
    steps = steps if steps > 0 else math.ceil(rows / batch) * args.epochs
    kept = 0 if plan["memory"] == "lora" else 2 * sum(BYTES[plan["memory"]]) * footprint.weights
    seconds = batch * flops / (speed * 1e12 * args.utilisation)
    return steps * (seconds + kept / plan["gpus"] / (bandwidth * 1e12)) / 3600


def show_plan(args, footprint, gpus, chosen, plans, rows, tokens):
    """Print what each way needs beside what is there, then time and dollars of the chosen one."""
    name, free = gpus[0][:2]
    print(
        f"{args.model}: {footprint.weights / 1e9:.2f}B weights, head "
        f"{'untied' if footprint.untied else 'tied'}; {footprint.lengths[0]} + "
        f"{footprint.lengths[1]} tokens; batches of {args.batch_size * args.gradient_accumulation}"
    )
    print(f"{len(gpus)} x {name}, {free:.1f} GiB free on each")
    heads = [*KINDS, "activations"]
    print(
        f"{'way':<5}{'GPUs':>5}{'rows':>5} {'recompute':<10}" + "".join(f"{h:>12}" for h in heads)
    )
    for plan in plans.values():
        note = "  <- this one" if plan is chosen else "" if plan["fits"] else "  does not fit"
        used = max(plan["gib_per_gpu"])
        print(
            f"{plan['memory']:<5}{plan['gpus']:>5}{plan['micro_batch']:>5} "
            f"{'yes' if plan['recompute'] else 'no':<10}"
            + "".join(f"{plan['gib'][head]:>8.1f} GiB" for head in heads)
            + f"  {used:.1f} GiB a GPU{note}"
        )
    if not chosen:
        return
    each = ", ".join(f"{need:.1f}" for need in chosen["gib_per_gpu"])
    print(f"GiB by GPU: {each} (activations are an upper estimate, at the longest rows)")
    print(f"disk: {chosen['disk_gb']:,.1f} GB for checkpoints and the model")
    hours = estimate_hours(args, footprint, gpus, chosen, rows, tokens)
    if hours is None:
        print("hours: not estimated for this device")
        return
    spent = hours * chosen["gpus"]
    dollars = f", ${spent * args.usd_per_gpu_hour:,.2f}" if args.usd_per_gpu_hour else ""
    print(
        f"{rows:,} rows of {tokens[0]:.0f} + {tokens[1]:.0f} tokens, {args.epochs:g} epochs: "
        f"{hours:.2f} h, {spent:.2f} GPU-hours{dollars} at {args.utilisation:.0%} of "
        f"{gpus[0][2]:,} TFLOP/s (assumed, not measured)"
    )


class SplitAdafactor(torch.optim.Optimizer):
    """Adafactor without momentum for bf16 weights whose lower 16 bits are kept beside them.

    A bf16 weight plus 16 bits is an fp32 weight exactly, so an update of 3e-5 on a weight of 0.1,
    which bf16 alone would round away, is never lost; 2 bytes a weight instead of 4 for fp32 master
    weights. The second moment is factored (Shazeer and Stern 2018, as T5 was trained) and the
    update's root mean square is at most the learning rate, so `lr` means what it does in AdamW.
    """

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        compiles = torch.cuda.is_available()  # one pass over memory instead of a dozen
        self.update_weight = torch.compile(update_weight) if compiles else update_weight

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure() if closure else None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    self.start(weight, state)
                state["step"] += 1
                decay = 1 - float(state["step"]) ** -0.8
                rates = torch.tensor([group["lr"], decay], device=weight.device)
                low = state.get("low")
                self.update(weight, weight.grad, low, state["row"], state.get("column"), rates)
        return loss

    def update(self, *tensors):
        """update_weight, uncompiled from now on where this machine cannot compile it."""
        try:
            self.update_weight(*tensors)
        except torch._dynamo.exc.TorchDynamoException as error:  # raised before anything is run
            reason = str(error).strip().splitlines()[0]
            print(f"[optimiser] slower: cannot be compiled here ({reason})", file=sys.stderr)
            self.update_weight = update_weight
            self.update_weight(*tensors)

    def start(self, weight, state):
        zeros = lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=weight.device)  # noqa: E731
        state["step"] = torch.zeros(())
        state["row"] = zeros(weight.shape[:-1] if weight.ndim > 1 else weight.shape, torch.float32)
        if weight.ndim > 1:
            state["column"] = zeros(weight.shape[:-2] + weight.shape[-1:], torch.float32)
        if weight.dtype == torch.bfloat16:
            state["low"] = zeros(weight.shape, torch.int16)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)  # casts to the weight's dtype: put back what was saved
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for key, weight in zip(keys, weights, strict=True):
            for name, value in state_dict["state"].get(key, {}).items():
                place = value.device if name == "step" else weight.device
                self.state[weight][name] = value.to(place)


def update_weight(weight, grad, low, row, column, rates):
    """One step of SplitAdafactor on one tensor, in place; rates holds lr and the moments' decay."""
    lr, decay = rates[0], rates[1]
    grad = grad.float()
    square = grad.square() + 1e-30
    if column is None:
        row.lerp_(square, 1 - decay)
        update = grad * row.rsqrt()
    else:
        row.lerp_(square.mean(-1), 1 - decay)
        column.lerp_(square.mean(-2), 1 - decay)
        scale = (row / row.mean(-1, keepdim=True)).rsqrt()
        update = grad * scale.unsqueeze(-1) * column.rsqrt().unsqueeze(-2)
    update = update * (lr / update.square().mean().sqrt().clamp(min=1))
    if low is None:  # an fp32 weight
        weight.sub_(update)
        return
    bits = (weight.view(torch.int16).to(torch.int32) << 16) + low
    bits = (bits.view(torch.float32) - update).view(torch.int32)
    high = (bits + 0x8000) >> 16  # the nearest bf16; what is left over fits into 16 bits
    low.copy_(bits - (high << 16))
    weight.view(torch.int16).copy_(high)


def fuse_gelu(model):
    """T5's gelu_new as the one fused kernel it equals, which keeps 1 tensor, not 6."""
    for module in model.modules():
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = torch.nn.GELU(approximate="tanh")
    return model


def add_adapters(model, rank):
    """The model with LoRA on all linear layers of its blocks, everything else frozen."""
    try:
        import peft
    except ImportError:
        fail("--memory lora needs the package peft: pip install peft")
    names = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
    setup = peft.LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=0.0,
        target_modules=names,
    )
    with warnings.catch_warnings():  # peft asks for a property under its old name
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, setup)


def place_model(args, plan):
    """Load the model as planned: dtype, layers on their GPUs, adapters."""
    kwargs = {} if args.dropout is None else {"dropout_rate": args.dropout}
    if plan["memory"] != "fp32":
        kwargs["dtype"] = torch.bfloat16
    if plan["gpus"] > 1:
        kwargs["device_map"] = expand_places(plan["places"], plan["tied"])
    elif torch.cuda.is_available():
        kwargs["device_map"] = {"": torch.cuda.current_device()}
    if torch.cuda.is_available() and plan["memory"] == "fp32":
        torch.backends.cuda.matmul.allow_tf32 = True  # fp32 storage, 10 bits of fraction in matmuls
    model = fuse_gelu(load_model(args.model, **kwargs))
    plan["config"] = {key: getattr(model.config, key) for key in ("use_cache", *HEAD)}
    model.config.use_cache = False
    plan["head"] = check_head(model)
    return add_adapters(model, args.lora_rank) if plan["memory"] == "lora" else model


def check_head(model):
    """Whether the output head shares its weights with the embeddings."""
    return "tied" if model.lm_head.weight is model.shared.weight else "untied"


def restore_model(model, plan):
    """The model to save: adapters merged in fp32 (bf16 would round them away), config as it was."""
    if plan["memory"] == "lora":
        with warnings.catch_warnings():  # peft takes the head for tied, and says so
            warnings.simplefilter("ignore", UserWarning)
            model = model.to("cpu").float().merge_and_unload()
    if check_head(model) != plan["head"]:
        raise RuntimeError(f"the head was {plan['head']} before training and is not any more")
    for key, value in plan["config"].items():
        setattr(model.config, key, value)
    return model


def describe_placement(plan):
    """The plan as run and the peak memory measured, for training.json."""
    keys = ("memory", "micro_batch", "recompute", "autocast", "gpus", "gib_per_gpu", "head")
    gpus = range(torch.cuda.device_count())
    peaks = [torch.cuda.max_memory_allocated(i) / 2**30 for i in gpus]
    return {**{key: plan[key] for key in keys}, "gib_measured": peaks}


def expand_places(places, tied=False):
    """A device_map from the plan's pieces: both stacks' embeddings lie with `shared`."""
    places = dict(places)
    for name in ("encoder.embed_tokens", "decoder.embed_tokens"):
        places[name] = places["shared"]
    for side in ("encoder", "decoder"):
        places[f"{side}.dropout"] = places[f"{side}.final_layer_norm"]
    if tied:
        places["lm_head"] = places["shared"]
    return places


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with batches of similar length that a resumed run sees again."""

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(row["input_ids"]) + len(row["labels"]) for row in self.train_dataset]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(lengths, size * self.args.world_size, self.args.seed)


def build_arguments(args, plan):
    """Table 8's settings (or the flags') as Trainer arguments; a batch in the plan's passes."""
    lora = plan["memory"] == "lora"
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(args.output / "checkpoints"),
        use_cpu=not torch.accelerator.is_available(),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=plan["micro_batch"],
        gradient_accumulation_steps=args.gradient_accumulation
        * (args.batch_size // plan["micro_batch"]),
        activation_checkpointing=plan["recompute"],
        activation_checkpointing_kwargs={"use_reentrant": False},
        learning_rate=args.lora_learning_rate if lora else args.learning_rate,
        lr_scheduler_type=args.lr_scheduler,
        warmup_steps=args.warmup_steps,
        optim="adamw_torch_fused",
        max_grad_norm=0.0 if plan["memory"] == "bf16" else 1.0,  # SplitAdafactor has its own
        bf16=plan["autocast"],
        seed=args.seed,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=args.save_steps,
        save_total_limit=1,
        dataloader_pin_memory=torch.cuda.is_available(),
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would multiply the batch unasked
    return arguments


def choose_plan(args, tokens, rows):
    """The plan to train by; with --dry-run it is shown; exit code 1 where nothing fits."""
    config, gpus = read_config(args.model, args.dry_run), list_gpus(args.gpus)
    footprint = Footprint(config, [max(lengths) for lengths in tokens])
    means = [sum(lengths) / len(lengths) for lengths in tokens]
    plan, plans = plan_memory(args, footprint, gpus, means)
    if args.dry_run:
        show_plan(args, footprint, gpus, plan, plans, rows, means)
    if not plan:
        wanted = [plan for way, plan in plans.items() if args.memory in ("auto", way)]
        least = min(wanted, key=lambda p: max(p["gib_per_gpu"]))
        fail(
            f"{args.model} does not fit {len(gpus)} x {gpus[0][0]} ({gpus[0][1]:.1f} GiB free): "
            f"the leanest way, {least['memory']} with {least['micro_batch']} rows a pass, needs "
            f"{max(least['gib_per_gpu']):.1f} GiB on one; take more or larger GPUs, shorter "
            "rows or a smaller model"
        )
    plan["tied"] = not footprint.untied
    if not args.dry_run:
        check_host(plan, footprint, args.output)
    return plan


def check_host(plan, footprint, output):
    """Refuse a run that could not be saved, for lack of disk or RAM, before hours are spent."""
    merging = 4.2 * footprint.weights / 2**30 if plan["memory"] == "lora" else 0
    if measure_ram() < merging:
        fail(
            f"{measure_ram():.1f} GiB of RAM free, {merging:.1f} GiB needed to merge the adapters "
            "in fp32; free some or take another machine"
        )
    folder = next(path for path in (output, *output.absolute().parents) if path.exists())
    free = shutil.disk_usage(folder).free / 1e9
    if free < plan["disk_gb"]:
        fail(
            f"{folder}: {free:,.1f} GB free, {plan['disk_gb']:,.1f} GB needed for checkpoints and "
            "the model; make room or choose another --output"
        )


def choose_untrained(args):
    """Show the plan without data: all rows at the maximum lengths."""
    choose_plan(args, [[args.max_source_length], [args.max_target_length]], args.num_labels or 5000)


def train(args):
    """Fine-tune and write the run folder. Returns the record in training.json."""
    start = time.monotonic()
    tokenizer = load_tokenizer(args.model)
    rows = sample_rows(
        read_jsonl(args.train, ("source", "target")), args.num_labels, args.seed, args.train
    )
    examples, counts = encode_rows(rows, tokenizer, args)
    tokens = [[len(row[key]) for row in examples] for key in ("input_ids", "labels")]
    plan = choose_plan(args, tokens, len(rows))
    skip = ("logging_steps", "save_steps", "fp16", "dry_run", "gpus", "usd_per_gpu_hour")
    skip = (*skip, "utilisation")
    settings = {key: value for key, value in vars(args).items() if key not in skip}
    if args.dry_run or not open_run(args.output, {**settings, "memory": plan["memory"]}):
        return None
    args.max_steps = raise_steps(args, len(rows))
    model = place_model(args, plan)
    checkpoint = find_checkpoint(args.output / "checkpoints")
    step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    progress = Progress(args.output, step)
    bf16 = plan["memory"] == "bf16"
    optimiser = SplitAdafactor(model.parameters(), args.learning_rate) if bf16 else None
    trainer = Trainer(
        model=model,
        args=build_arguments(args, plan),
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_loss_func=compute_loss,
        optimizers=(optimiser, None),
        callbacks=[progress],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    loaded = time.monotonic()
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    record = {
        "script": "train_teacher.py",
        "strategy": args.strategy,
        "task": args.task,
        "seed": args.seed,
        "labels": len(rows),
        "unlabeled": 0,
        "parameters": model.num_parameters(),
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "examples_seen": round(trainer.state.epoch * len(rows)),
        "train_loss": result.training_loss,
        **counts,
        "seconds": {"load": loaded - start, "train": progress.before + time.monotonic() - loaded},
        "placement": describe_placement(plan),
        **describe_run(args.train),
    }
    trainer.model = restore_model(model, plan)
    finish_run(trainer, tokenizer, args.output, record)
    return record if trainer.is_world_process_zero() else None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default="google/t5-v1_1-xxl", help="T5 folder or hub name (%(default)s)")
    add("--train", type=Path, help="JSONL file of source and target")
    add("--num-labels", type=int, help="labels to sample from it (default: all)")
    add("--prefix", default="", help='put before every source, e.g. "wlp: " (default: nothing)')
    add("--output", type=Path, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="teacher", help="name recorded in training.json (%(default)s)")
    add("--max-source-length", type=int, default=128, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=128, help="tokens (%(default)s)")
    add("--epochs", type=float, default=20, help="passes over the labels (%(default)s)")
    add("--max-steps", type=int, default=-1, help="optimiser steps; if above 0, replaces --epochs")
    add("--min-steps", type=int, default=0, help="of --epochs, at least so many (%(default)s)")
    add("--batch-size", type=int, default=32, help="rows a step and device (%(default)s)")
    add("--gradient-accumulation", type=int, default=1, help="batches a step (%(default)s)")
    add("--learning-rate", type=float, default=3e-5, help="peak (%(default)s)")
    add("--lr-scheduler", default="linear", help="Trainer's schedule name (%(default)s)")
    add("--warmup-steps", type=int, default=0, help="steps (%(default)s)")
    add("--dropout", type=float, help="rate, 0 to 1 (default: the model's own, 0.1 in T5)")
    add(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="bf16 arithmetic over fp32 weights; the paper used fp32 (default: where a GPU has it "
        "and it fits)",
    )
    add("--fp16", action="store_true", help="refused: T5's activations overflow in fp16")
    add("--memory", choices=["auto", *BYTES], default="auto", help="see above (%(default)s)")
    add("--micro-batch", type=int, help="rows a pass; divides --batch-size (default: what fits)")
    add(
        "--recompute",
        action=argparse.BooleanOptionalAction,
        help="gradient checkpointing: a third more arithmetic, less memory (default: if needed)",
    )
    add("--lora-rank", type=int, default=8, help="of the adapters (%(default)s)")
    add(
        "--lora-learning-rate",
        type=float,
        default=3e-4,
        help="replaces --learning-rate under lora, whose adapters start from zero (%(default)s)",
    )
    add("--dry-run", action="store_true", help="print the plan for memory and time, then stop")
    add("--gpus", help="COUNTxGPU to plan for, e.g. 4x48 or 1xH100 (default: this machine's)")
    add("--usd-per-gpu-hour", type=float, help="price for the plan's dollars (default: hours only)")
    add(
        "--utilisation",
        type=float,
        default=0.4,
        help="share of the peak FLOP/s assumed for the plan's hours (%(default)s)",
    )
    add("--save-steps", type=int, default=500, help="steps between checkpoints (%(default)s)")
    add("--logging-steps", type=int, default=20, help="steps between log lines (%(default)s)")
    add("--seed", type=int, default=0, help="labels drawn and training (%(default)s)")
    args = parser.parse_args(argv)
    if args.num_labels is not None and args.num_labels < 1:
        parser.error("--num-labels must be at least 1")
    if not args.dry_run and not (args.train and args.output):
        parser.error("--train and --output are needed, except with --dry-run")
    if args.gpus and not args.dry_run:
        parser.error("--gpus is for --dry-run; CUDA_VISIBLE_DEVICES chooses GPUs to run on")
    if args.micro_batch and (args.micro_batch < 1 or args.batch_size % args.micro_batch):
        parser.error(f"--micro-batch must divide --batch-size {args.batch_size}")
    return args


# same in: train_teacher.py, distill.py
@contextlib.contextmanager
def one_error_line(folder):
    """Turn what the system refuses (full disk, no permission) into one `error:` line.

    torch and safetensors report a full disk in their own ways, not as an OSError.
    """
    try:
        yield
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}")
    except Exception as error:
        writing = "iostream|inline_container|PytorchStreamWriter|No space|code: 28"
        while not folder.exists():
            folder = folder.parent
        if re.search(writing, str(error)) and shutil.disk_usage(folder).free < 2**24:
            fail(f"{folder}: the disk is full; make room, then run the same command again")
        raise


# end same


# same in: train_teacher.py, distill.py
def start_quietly(args):
    """Refuse fp16; leave stderr to our own lines: no bars, no word on each retry of the hub."""
    if args.fp16:
        fail("--fp16: T5's activations overflow in fp16 (they reach 1e5); use bf16 or fp32")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


# end same


def main(argv=None):
    args = parse_args(argv)
    start_quietly(args)
    with one_error_line(args.output or Path(".")):
        try:
            record = train(args) if args.train else choose_untrained(args)
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            fail(f"out of GPU memory ({reason}); try a smaller --micro-batch, or --recompute")
    if record:
        print(
            f"[{args.output.name}] {record['labels']:,} labels, {record['steps']:,} steps, "
            f"loss {record['train_loss']:.3f}, {record['seconds']['train']:.0f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
