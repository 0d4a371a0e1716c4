"""Fine-tune a large teacher on labeled examples: Strategy 2, its first half.

Usage:
    python train_teacher.py --train data/prepared/paper/wlp/train.jsonl --num-labels 5000 \\
        --prefix "wlp: " --output runs/paper/wlp/teacher-n5000-s0
    python train_teacher.py --model data/world/models/teacher --num-labels 100 --max-steps 200 \\
        --train data/prepared/mini/wlp/train.jsonl --prefix "wlp: " --learning-rate 3e-4 \\
        --output /tmp/teacher
    Every other flag is that of Hugging Face's Seq2SeqTrainingArguments: --max-steps 200,
    --learning-rate (3e-5), --warmup-steps, --weight-decay, --gradient-accumulation-steps, --seed
    (0), --save-steps (by time; 0 = none), --report-to tensorboard, --fsdp, ...

Reads:  TRAIN, a JSONL file of {"source", "target"}; a Hugging Face T5 folder or hub name.
Writes: OUTPUT/config.json first, log.jsonl, checkpoints/ (a killed run continues from there),
        model/, and training.json last: what was trained, on what, in how many seconds.
Copy:   train_teacher.py alone
Paper:  section 2.3; input and output formats of Appendix B; hyperparameters of Table 8.

The paper held an 11B teacher in fp32 with AdamW, layers split over several GPUs. Three ways are
offered; --memory auto takes the fewest GPUs, on as many the first way whose weights leave room:
    fp32  fp32 weights and AdamW, on one GPU or with the layers split over some: 16 bytes a weight
    bf16  bf16 weights computed with, their lower 16 bits kept beside them, so that no update is
          lost to rounding; Adafactor's factored second moments: 6 bytes a weight, one 80 GB card
    lora  frozen bf16 weights and trained low-rank adapters (needs the package peft), merged at
          the end: 2 bytes a weight; another method, so only where neither of the others fits
Where memory runs out, layers are recomputed in the backward pass, then rows a pass halve. The
planner, `costs.py memory`, says before a GPU is rented which way fits it, in how many hours. With a
process for each GPU (torchrun) each holds the whole model: T5-XXL takes one process.
"""
# ruff: noqa: E402 (torch is loaded after --help is answered)

import argparse
import contextlib
import fcntl
import gc
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
import signal
import subprocess
import sys
import time
import types
import warnings
import zipfile
from pathlib import Path

TABLE_8 = {"epochs": 20, "batch_size": 32, "learning_rate": 3e-5, "length": 128}
# Bytes a weight: on GPUs the weight, its gradient and the optimiser; of the gradient alone; on the
# host to save it, to continue; on the disk a checkpoint, the model.
BYTES = {"fp32": 16, "bf16": 6, "lora": 2}
GRADIENT = {"fp32": 4, "bf16": 2, "lora": 0}
HOST = {"fp32": 8, "bf16": 2, "lora": 2}
DISK = {"fp32": (12, 4), "bf16": (4, 2), "lora": (0, 2)}


def parse_args(argv=None):
    """(our flags, the words left for Trainer's); files that are not there are said at once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add, yes_no, length = parser.add_argument, argparse.BooleanOptionalAction, TABLE_8["length"]
    add("--model", default="google/t5-v1_1-xxl", help="T5 folder or hub name (%(default)s)")
    add("--train", type=Path, required=True, help="JSONL file of source and target")
    add("--num-labels", type=int, help="labels to sample from it (default: all)")
    add("--keep-empty", action="store_true", help="learn from empty targets too: no entities here")
    add("--prefix", default="", help='put before every source, e.g. "wlp: " (default: nothing)')
    add("--output", type=Path, required=True, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="teacher", help="name recorded in training.json (%(default)s)")
    add("--max-source-length", type=int, default=length, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=length, help="tokens (%(default)s)")
    add("--epochs", type=float, default=TABLE_8["epochs"], help="over the labels (%(default)s)")
    add("--min-steps", type=int, default=0, help="of --epochs, at least so many (%(default)s)")
    add("--batch-size", type=int, default=TABLE_8["batch_size"], help="of a step (%(default)s)")
    add("--dropout", type=float, help="rate, 0 to 1 (default: the model's own, 0.1 in T5)")
    add("--bf16", action=yes_no, help="bf16 over fp32 weights; paper: fp32 (default: if native)")
    add("--memory", choices=["auto", *BYTES], default="auto", help="see above (%(default)s)")
    add("--micro-batch", type=int, help="rows a pass (default: all of a step; halved as needed)")
    add("--recompute", action=yes_no, help="layers in the backward pass (default: if needed)")
    add("--lora-rank", type=int, default=8, help="of the adapters (%(default)s)")
    rate = "replaces --learning-rate under lora, whose adapters start from zero (%(default)s)"
    add("--lora-learning-rate", type=float, default=3e-4, help=rate)
    args, rest = parser.parse_known_args(argv)
    if args.micro_batch and (args.micro_batch < 1 or args.batch_size % args.micro_batch):
        parser.error(f"--micro-batch must divide --batch-size {args.batch_size}")
    if not args.train.is_file():
        sys.exit(f"error: {args.train}: no such file")
    return args, rest


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the middle of an import
    parse_args()  # --help and a wrong path are answered before torch is loaded

import numpy as np
import torch
import transformers
from accelerate.utils import gather_object
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    HfArgumentParser,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
)


# same in: train_small.py, train_teacher.py, distill.py
def read_rows(path, keys=("source", "target")):
    """The rows of a JSONL file, each with the texts `keys`; a fault is named by file and line."""
    rows = []
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007
                if line.strip():
                    rows.append({key: json.loads(line)[key] for key in keys})
                    "".join(rows[-1].values()).encode()
    except UnicodeEncodeError:
        fail(f"{path} line {number}: half a character (a lone surrogate such as \\ud83d)")
    except UnicodeDecodeError as error:
        fail(f"{path}: not UTF-8 ({error.reason} at byte {error.start:,})")
    except (KeyError, TypeError):
        fail(f"{path} line {number}: a row needs the texts {' and '.join(keys)}")
    except (ValueError, RecursionError):
        fail(f"{path} line {number}: not a JSON object")
    return rows or fail(f"{path}: no rows")


# end same


# same in: train_small.py, train_teacher.py
def sample_rows(rows, count, seed, path, keep_empty=False):
    """The first `count` rows of a seeded permutation, so that more labels contain fewer."""
    rows = [row for row in rows if keep_empty or row["target"].strip()]
    if (count or 1) > len(rows):
        fail(f"{path}: {count or 1:,} labels asked for, {len(rows):,} rows with a target are there")
    random.Random(seed).shuffle(rows)
    return rows[:count]


def encode(texts, tokenizer, limit):
    """(ids of each text, at most `limit` with the end token kept; the number of texts cut)."""
    rows = tokenizer(texts).input_ids
    cut = [ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:] for ids in rows]
    return cut, sum(len(ids) > limit for ids in rows)


def check_classes(texts, tokenizer, limit):
    """Refuse class names that the model can't write whole, or that become the same tokens.

    Targets that repeat, at most 100 different ones, are taken for classes.
    """
    names = sorted({text.strip() for text in texts})
    if len(names) > min(100, len(texts) / 2):
        return
    ids = dict(zip(names, map(tuple, tokenizer(names).input_ids), strict=True))
    longest = max(map(len, ids.values()))
    if cut := [name for name in names if len(ids[name]) > limit]:
        fail(
            f"--max-target-length {limit}: {len(cut)} of {len(names)} different targets are longer"
            f", as {cut[0]!r}, so no output could be right; {longest} tokens hold them all"
        )
    same = [name for name in names if list(ids.values()).count(ids[name]) > 1]
    if same:
        fail(f"{', '.join(map(repr, same))} are the same tokens to this model; rename the targets")


def compute_loss(model, inputs, count=None):
    """A batch's share of the step's cross-entropy, in nats per target of the whole step.

    Logits (B, T, V), or (B, C) of an encoder. T5 itself averages over each batch it is given, so
    the gradient would grow with the number of batches, and short ones would count too much.
    """
    labels = inputs.pop("labels").flatten()
    logits = model(**inputs).logits.float().flatten(0, -2)
    labels = labels.to(logits.device)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    count = (labels != -100).sum() if count is None else count
    return loss / torch.as_tensor(count, device=loss.device)


# end same


def encode_rows(rows, tokenizer, args):
    """Token ids of prefixed sources and of targets; counts what the maximum lengths cut off."""
    sources, targets = (
        [args.prefix + row["source"] for row in rows],
        [row["target"] for row in rows],
    )
    check_classes(targets, tokenizer, args.max_target_length)
    sources, cut = encode(sources, tokenizer, args.max_source_length)
    targets, more = encode(targets, tokenizer, args.max_target_length)
    pairs = zip(sources, targets, strict=True)
    examples = [{"input_ids": source, "labels": target} for source, target in pairs]
    return examples, {"truncated_sources": cut, "truncated_targets": more}


# --- the optimiser of --memory bf16 ---------------------------------------------------------


class SplitAdafactor(torch.optim.Optimizer):
    """Adafactor without momentum for bf16 weights whose lower 16 bits are kept beside them.

    A bf16 weight plus 16 bits is an fp32 weight exactly, so an update of 3e-5 on a weight of 0.1,
    which bf16 alone would round away, is never lost; 2 bytes a weight instead of 4 for fp32 master
    weights. The second moment is factored (Shazeer and Stern 2018, as T5 was trained) and the
    update's root mean square is at most the learning rate, so `lr` means what it does in AdamW.
    """

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        self.compiled = {}  # device -> update_weight, compiled for it

    @torch.no_grad()
    def step(self, closure=None):
        loss, known = closure() if closure else None, {}  # one copy to each device, not a weight
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state = self.state[weight] or self.start(weight)
                state["step"] += 1
                rates = group["lr"], 1 - float(state["step"]) ** -0.8  # and the moments' decay
                key = (weight.device, rates)
                if key not in known:
                    known[key] = torch.tensor(rates, device=weight.device)
                moments = state["row"], state.get("column")
                self.update(weight, weight.grad, state.get("low"), *moments, known[key])
        return loss

    def update(self, weight, *tensors):
        """update_weight in one pass over memory instead of a dozen, where it can be compiled.

        A device has its own: torch gives up on a function after 8 variants, and each needs 4.
        """
        device = weight.device
        if device not in self.compiled:
            code = update_weight.__code__.replace(co_name=f"update_weight_{len(self.compiled)}")
            own = types.FunctionType(code, update_weight.__globals__)
            self.compiled[device] = torch.compile(own) if device.type == "cuda" else own
        try:
            self.compiled[device](weight, *tensors)
        except torch._dynamo.exc.TorchDynamoException as error:  # raised before anything is run
            reason = str(error).strip().splitlines()[0]
            print(f"[optimiser] slower: cannot be compiled here ({reason})", file=sys.stderr)
            self.compiled[device] = update_weight
            update_weight(weight, *tensors)

    def start(self, weight):
        """The state of a weight before its first step."""
        zeros = lambda shape, dtype: torch.zeros(shape, dtype=dtype, device=weight.device)  # noqa: E731
        state = self.state[weight]
        state["step"] = torch.zeros(())
        state["row"] = zeros(weight.shape[:-1] if weight.ndim > 1 else weight.shape, torch.float32)
        if weight.ndim > 1:
            state["column"] = zeros(weight.shape[:-2] + weight.shape[-1:], torch.float32)
        if weight.dtype == torch.bfloat16:
            state["low"] = zeros(weight.shape, torch.int16)
        return state

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


# --- how the model lies in memory -----------------------------------------------------------


def measure_ram():
    """Bytes of memory that are free, or all there are where the system doesn't tell."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure_free(training):
    """Free bytes of each device that this process may use: one of several processes has its own."""
    if training.device.type != "cuda":
        return [measure_ram()]
    several = training.world_size > 1
    devices = [training.device.index] if several else range(torch.cuda.device_count())
    return [torch.cuda.mem_get_info(device)[0] for device in devices]


def count_weights(config):
    """Weights of a T5 with that configuration, counted without building it."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
    tied = getattr(config, "scale_decoder_outputs", config.tie_word_embeddings)
    # transformers 5 builds every T5 with a tied head; one of its own comes with the weights
    return model.num_parameters() + (0 if tied else config.vocab_size * config.d_model)


def choose_way(args, training, weights):
    """(way, over how many devices, share of their memory that the weights take).

    The fewest devices first, on as many fp32, as in the paper, then bf16, so that a fifth of each
    is left for activations, or else what there is; LoRA only where a single process fits no other.
    """
    free, cuda = measure_free(training), training.device.type == "cuda"
    auto, several = args.memory == "auto", training.world_size > 1
    ways = [args.memory] if not auto else [*BYTES] if cuda else ["fp32"]
    if cuda and not torch.cuda.is_bf16_supported(including_emulation=False):
        ways = [way for way in ways if way == "fp32"]
        if not ways:
            fail(f"--memory {args.memory}: this GPU has no bf16 and would emulate it, slowly")
    need = {way: BYTES[way] * weights for way in ways}
    if "fp32" in ways and training.bf16:
        need["fp32"] += 2 * weights  # autocast keeps copies of the weights for the backward pass
    if several:  # DDP has a second copy of the gradients
        need = {way: size + GRADIENT[way] * weights for way, size in need.items()}
    counts = range(1, len(free) + 1)
    whole = [way for way in ways if way != "lora" or not auto]
    tries = [(room, n, way) for room in (0.8, 0.97) for n in counts for way in whole]
    if "lora" in ways and not several:
        tries += [(0.97, n, "lora") for n in counts]
    for room, count, way in tries:
        share = need[way] / count / min(free[:count])
        if share <= room:
            return way, count, share
    way = min(whole, key=need.get)
    one = "; start one process, without torchrun, or say --memory lora" if several else ""
    fail(
        f"{args.model} does not fit: {way} takes {need[way] / 2**30:.1f} GiB and {len(free)} x "
        f"{min(free) / 2**30:.1f} GiB are free; take more or larger GPUs or a smaller model "
        f"(costs.py memory plans){one}"
    )


def check_host(args, training, way, weights):
    """Refuse a run that could not be loaded, saved or continued for lack of RAM or disk."""
    whole = Path(args.model).is_dir() and any(Path(args.model).glob("*.safetensors"))
    need, free = weights * max(HOST[way], 0 if whole else 4) / 1e9, measure_ram() / 1e9
    if free < need:
        fail(
            f"{free:,.1f} GB of RAM free, {need:,.1f} GB needed to load, save and continue by "
            f"--memory {way}; free some or take another machine"
        )
    checkpoint, model = DISK[way]
    if training.save_strategy == "no":
        checkpoint = 0
    need, free = max(2 * checkpoint, checkpoint + model), shutil.disk_usage(args.output).free / 1e9
    if free < need * weights / 1e9:
        fail(
            f"{args.output}: {free:,.1f} GB free, {need * weights / 1e9:,.1f} GB needed for "
            f"checkpoints and the model ({model * weights / 1e9:,.1f} with --save-steps 0); make "
            "room or choose another --output"
        )


def place_model(args, training, config, tokenizer, way, devices):
    """Load the model: dtype, layers on their devices, adapters, layers to recompute."""
    kwargs = {} if way == "fp32" else {"dtype": torch.bfloat16}
    if devices > 1:
        free = measure_free(training)[:devices]
        kwargs |= {"device_map": "balanced", "max_memory": dict(enumerate(free))}
    elif training.device.type == "cuda":
        kwargs["device_map"] = {"": training.device}
    if way == "fp32":
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs: 10 bits of fraction in matmuls
    model = fuse_gelu(load_model(args.model, config, tokenizer, **kwargs))
    model.config.use_cache = False
    return add_adapters(model, args.lora_rank) if way == "lora" else model


def fuse_gelu(model):
    """T5's gelu_new as the one fused kernel it equals, which keeps 1 tensor, not 6."""
    for module in model.modules():
        if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
            module.act = torch.nn.GELU(approximate="tanh")
    return model


def recompute_layers(model):
    """Gradient checkpointing, by its name in transformers 5.17 or in 5.23."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def add_adapters(model, rank):
    """The model with LoRA on all linear layers of its blocks, everything else frozen."""
    try:
        import peft
    except ImportError:
        fail("--memory lora needs the package peft: pip install peft")
    names = ["q", "k", "v", "o", "wi", "wi_0", "wi_1", "wo"]
    kind = {"task_type": "SEQ_2_SEQ_LM", "target_modules": names}
    setup = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, **kind)
    with warnings.catch_warnings():  # peft asks for a property under its old name
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, setup)


@torch.no_grad()
def merge_adapters(model):
    """The plain T5: each adapter added to its bf16 weight, in fp32, one layer at a time."""
    for layer in model.modules():
        if hasattr(layer, "get_delta_weight"):
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + layer.get_delta_weight("default").float())
    return model.unload()


def check_head(model):
    """Whether the output head shares its weights with the embeddings."""
    shared = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    return "tied" if shared else "untied"


def build_trainer(args, training, model, way, examples, passes, tokenizer=None):
    """A Trainer that takes a step in passes of so many rows, layers recomputed or not."""
    if passes["recompute"]:
        recompute_layers(model)
    training.per_device_train_batch_size = passes["rows"]
    training.gradient_accumulation_steps = args.batch_size // training.world_size // passes["rows"]
    split = way == "bf16"
    optimiser = SplitAdafactor(model.parameters(), training.learning_rate) if split else None
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=examples,
        data_collator=DataCollatorForSeq2Seq(tokenizer, model=model),
        compute_loss_func=compute_loss,
        optimizers=(optimiser, None),
    )
    trainer.head = check_head(model)
    return trainer


def fit_in_memory(args, training, parts, examples, *run, crowded):
    """(Trainer, record, passes): fit(*run); where memory runs out, again from the last checkpoint,
    with layers recomputed, then with half the rows a pass. A continued run keeps to what fitted.

    crowded: whether the weights alone take most of the memory.
    """
    kept = args.output / "checkpoints" / "passes.json"
    rows, fixed = args.batch_size // training.world_size, args.recompute is not None
    passes = {"rows": min(args.micro_batch or rows, rows)}
    passes |= {"recompute": args.recompute if fixed else crowded, **read_json(kept)}
    while True:
        config, tokenizer, way, devices = parts
        model = place_model(args, training, config, tokenizer, way, devices)
        trainer = build_trainer(args, training, model, way, examples, passes, tokenizer)
        try:
            return trainer, fit(trainer, args, *run), passes
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
        if passes["recompute"] or fixed:
            passes["rows"] //= 2
        passes["recompute"] = args.recompute if fixed else True
        if training.world_size > 1 or args.micro_batch or not passes["rows"]:
            fail(
                f"{args.output.name}: out of GPU memory ({reason}); --recompute, a smaller "
                "--micro-batch, shorter rows or a larger GPU would do"
            )
        text = f"{passes['rows']} rows a pass" + ", layers recomputed" * passes["recompute"]
        print(f"[{args.output.name}] out of memory ({reason}); again with {text}", file=sys.stderr)
        write_json(kept, passes)
        del trainer, model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def train(args, training):
    """Fine-tune and write the run folder."""
    start = time.monotonic()
    config, tokenizer = load_config(args.model, args.dropout), load_tokenizer(args.model)
    rows = sample_rows(
        read_rows(args.train), args.num_labels, training.seed, args.train, args.keep_empty
    )
    examples, counts = encode_rows(rows, tokenizer, args)
    weights = count_weights(config)
    way, devices, share = choose_way(args, training, weights)
    args.memory = way
    if way != "fp32":  # autocast is for fp32 weights
        training.bf16, training.mixed_precision = False, "no"
    if way == "lora":
        training.learning_rate = args.lora_learning_rate
    if way == "bf16":
        training.max_grad_norm = 0.0  # SplitAdafactor has its own clipping
    settings = open_run(args, training, data=args.train, model=args.model)
    if not settings:
        return
    check_host(args, training, way, weights)
    torch.manual_seed(training.seed)
    record = {"script": "train_teacher.py", "labels": len(rows), "unlabeled": 0, **counts}
    parts, crowded = (
        (config, tokenizer, way, devices),
        share > 0.5 and training.device.type != "cpu",
    )
    run = settings, record, start
    trainer, record, passes = fit_in_memory(args, training, parts, examples, *run, crowded=crowded)
    if way == "lora" and trainer.is_world_process_zero():
        trainer.model = merge_adapters(trainer.model)
    if check_head(trainer.model) != trainer.head:
        fail(f"the output head was {trainer.head} before training and is not any more")
    record["placement"] = {
        "memory": way,
        "micro_batch": passes["rows"],
        "recompute": passes["recompute"],
        "autocast": training.bf16,
        "gpus": devices,
        "head": trainer.head,
        "gib_measured": [
            torch.cuda.max_memory_allocated(gpu) / 2**30 for gpu in range(torch.cuda.device_count())
        ],
    }
    save_run(trainer, tokenizer, args, record, devices)


def main(argv=None):
    args, rest = parse_args(argv)
    training = read_training(args, rest)
    with run_folder(args.output):
        train(args, training)


# --- run folder -----------------------------------------------------------------------------
# same in: train_small.py, train_teacher.py, distill.py
LIMITS = (  # lowest and highest value of our flags and Trainer's; no flag is NaN or infinite
    (1, 10**9, "num_labels num_unlabeled batch_size teacher_batch_size micro_batch shard_rows"),
    (1, 10**4, "lora_rank gradient_accumulation_steps"),
    (2, 32_767, "max_source_length max_target_length"),
    (0, 10**9, "min_steps top_k save_steps"),
    (1e-300, 1e300, "epochs learning_rate lora_learning_rate temperature temperatures"),
    (0, 1, "ce_weight utilisation"),
    (0, 0.99, "dropout"),
    (0, 2**32 - 1, "seed"),
)
OURS = {  # Trainer's flags that have another name here, or no place
    "num_train_epochs": "is --epochs here",
    "per_device_train_batch_size": "is --batch-size here, the batch of a step on all devices",
    "output_dir": "is --output here",
    "resume_from_checkpoint": "is not needed: the same command goes on from its checkpoint",
    "train_sampling_strategy": "has no effect: batches are always of similar length",
    "label_smoothing_factor": "is no part of the loss",
    "push_to_hub": "would send checkpoints; send the end by: hf upload REPOSITORY OUTPUT/model",
    "auto_find_batch_size": "would be another experiment: use --gradient-accumulation-steps",
    **dict.fromkeys(["fp16", "fp16_full_eval"], "overflows in T5 (activations reach 1e5): bf16"),
}
BY_TIME = 10**9  # the --save-steps that stands for a checkpoint each PAUSE seconds
PAUSE = 600
DRIVER = Path("/proc/driver/nvidia/version")
FREE = re.compile(  # settings that may change: they leave the result alone, or have their own hash
    "output|(model|train|dev)$|log|sav|report|run_name|disable|hub|project|trackio|dataloader|local"
    "|micro_batch|recompute"
)
FULL = "iostream|inline_container|PytorchStreamWriter|No space|code: 28"  # said of a disk


def fail(message):
    """Stop with one `error:` line on stderr and exit code 1."""
    sys.exit(f"error: {message}")


def say(text, end="\n"):
    """A line on stderr, of the first process."""
    if not int(os.environ.get("RANK", 0)):
        print(text, end=end, file=sys.stderr, flush=True)


def check_limits(flags):
    """ValueError for a flag outside its limits."""
    limits = {name: (low, high) for low, high, names in LIMITS for name in names.split()}
    for name, given in flags.items():
        for value in given if isinstance(given, list) else [given]:
            low, high = limits.get(name, (-1e300, 1e300))
            if isinstance(value, (int, float)) and not low <= value <= high:
                within = f"{low:g} to {high:g}" if name in limits else "a number"
                raise ValueError(f"--{name.replace('_', '-')} {value}: not within {within}")


def read_training(args, rest):
    """Seq2SeqTrainingArguments of the flags `rest` that are not ours; settles args.bf16.

    --batch-size is the batch of a step, so a device's share follows from the number of processes.
    A wrong flag of either kind is one line and exit code 2, before anything is written.
    """
    parser = HfArgumentParser(Seq2SeqTrainingArguments, usage=argparse.SUPPRESS, allow_abbrev=False)
    for action in parser._actions:
        action.default = argparse.SUPPRESS  # leaves the flags that were given
    given = vars(parser.parse_args(rest))
    for name in OURS.keys() & given.keys():
        parser.error(f"--{name.replace('_', '-')} {OURS[name]}")
    cuda = set_up(given)
    if args.bf16 is None:  # not where it is emulated, as on a T4
        args.bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    flags = {"learning_rate": TABLE_8["learning_rate"], "optim": "adamw_torch_fused", "seed": 0}
    flags |= {"save_strategy": "steps", "save_steps": BY_TIME, "save_total_limit": 1}
    flags |= {"logging_steps": 20, "logging_nan_inf_filter": False, "prediction_loss_only": True}
    flags |= {"dataloader_pin_memory": cuda, "use_cpu": not torch.accelerator.is_available()}
    flags |= {"remove_unused_columns": False, "ddp_find_unused_parameters": False}
    flags |= {"disable_tqdm": True, "report_to": "none"}
    if given.get("load_best_model_at_end"):
        flags["save_strategy"] = given.get("eval_strategy", "no")
        flags["save_steps"] = given.get("eval_steps", 500)
    flags |= given
    if flags["save_steps"] == 0:
        flags["save_strategy"] = "no"
    try:
        check_limits({**vars(args), **given})
        parts = int(os.environ.get("WORLD_SIZE", 1)) * given.get("gradient_accumulation_steps", 1)
        if args.batch_size % parts:
            text = f"--batch-size {args.batch_size}, of a step, does not divide by {parts}"
            raise ValueError(f"{text} (processes x --gradient-accumulation-steps)")
        flags |= {"output_dir": str((args.output or Path()) / "checkpoints"), "bf16": args.bf16}
        flags |= {"per_device_train_batch_size": args.batch_size // parts}
        training = Seq2SeqTrainingArguments(**flags, num_train_epochs=args.epochs)
        if training.eval_strategy != "no" and not getattr(args, "dev", None):
            raise ValueError("--eval-strategy needs --dev, the rows whose loss it shows")
        trackers = transformers.integrations.get_reporting_integration_callbacks
        for tracker in trackers(training.report_to):
            tracker()  # refused where its package is missing
    except (ValueError, ImportError, RuntimeError) as error:
        parser.error(str(error).partition("\n")[0])
    training._n_gpu = min(1, training.n_gpu)  # DataParallel would multiply the batch unasked
    return training


def set_up(given):
    """Turn off what libraries do unasked; whether there is CUDA, or no use of an old driver."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a word on each retry
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")  # would download it all again
    torch.backends.cuda.enable_cudnn_sdp(False)  # builds a plan for each new shape, for seconds
    hidden = given.get("use_cpu") or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if DRIVER.exists() and not torch.cuda.is_available() and not hidden:
        fail(
            f"torch {torch.__version__} can't use this machine's NVIDIA driver, and a CPU would "
            "take days: install a build for the driver's CUDA (see nvidia-smi), or say --use-cpu"
        )
    return torch.cuda.is_available()


def raise_steps(args, training, rows):
    """Set Trainer's max_steps to --min-steps where --epochs of `rows` would be fewer."""
    fewer = math.ceil(rows / args.batch_size) * args.epochs < args.min_steps
    if training.max_steps <= 0 and fewer:
        training.max_steps = args.min_steps


def write_json(path, value):
    """Write `value` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False, default=str)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_json(path):
    """The object in a JSON file, or {} where there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def hash_file(path):
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_model(model):
    """The hash of a folder's weights, config and tokenizer, or a hub name with its commit."""
    if not Path(model).is_dir():
        return f"{model}@{getattr(AutoConfig.from_pretrained(model), '_commit_hash', None)}"
    kinds = (".safetensors", ".bin", ".json", ".model", ".txt")
    files = sorted(path for path in Path(model).iterdir() if path.suffix in kinds)
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()


@contextlib.contextmanager
def on_signals(handler):
    """Ctrl-C and SIGTERM go to `handler` meanwhile."""
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


@contextlib.contextmanager
def run_folder(output):
    """Lock OUTPUT, in the first process, until it ends in whatever way; a fault of input, disk or
    memory, or a signal, is one line on stderr."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    path, held = output / ".lock", bool(int(os.environ.get("RANK", 0)))
    try:
        with on_signals(interrupt), contextlib.ExitStack() as stack:
            output.mkdir(parents=True, exist_ok=True)
            if not held:
                file = stack.enter_context(open(path, "w"))
                with contextlib.suppress(BlockingIOError, FileNotFoundError):
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    held = os.path.samestat(os.fstat(file.fileno()), path.stat())
                if not held:
                    fail(f"{output}: another process is training here")
                stack.callback(path.unlink, missing_ok=True)
            yield
    except KeyboardInterrupt as error:
        print(f"error: {output.name}: interrupted; run the same command again", file=sys.stderr)
        sys.exit(128 + (error.args or [signal.SIGINT])[0])
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError):
            text = f"out of GPU memory ({text}); --gradient-accumulation-steps 2 takes half"
        elif re.search(FULL, str(error)):
            text = "the disk is full, or a quota; make room and run the same command again"
        elif isinstance(error, OSError):
            fail(f"{error.filename or output}: {error.strerror or text}")
        elif isinstance(error, RuntimeError):
            raise
        fail(f"{output}: {text}")


def open_run(args, training, data, model, **more):
    """The settings for config.json, or None for a finished run. Refuses to overwrite what is not
    this run's: an input, a foreign model/ or checkpoints/, a run begun with other settings."""
    output, before = args.output, read_json(args.output / "config.json")
    names = ("model", "checkpoints", "config.json", "log.jsonl", "training.json")
    for path in (Path(data).resolve(), Path(model).resolve()):
        if {output.resolve() / name for name in names} & {path, *path.parents}:
            fail(f"{path} would be overwritten by this run; choose another --output than {output}")
    there = [output / name for name in names if (output / name).exists()]
    if there and "model_sha256" not in before:
        fail(f"{there[0]}: not of a run of this version; remove {output} or choose another")
    about = {"processes": training.world_size, "device": training.device.type}
    about |= {"data_sha256": hash_file(data), "model_sha256": hash_model(model)}
    settings = {**training.to_dict(), **vars(args), **more, **about}
    settings = json.loads(json.dumps(settings, default=str))
    keys = sorted(key for key in before.keys() & settings.keys() if not FREE.match(key))
    changes = [f"{k} {before[k]!r} -> {settings[k]!r}" for k in keys if before[k] != settings[k]]
    if changes:
        changes = ", ".join(changes)
        fail(f"{output} was begun with other settings ({changes}); remove it or choose another")
    if output / "training.json" in there:
        if read_json(output / "training.json") and (output / "model" / "config.json").exists():
            return say(f"[{output.name}] already trained")
        say(f"[{output.name}] training.json or model/ is damaged: trained again")
    return settings


def load(kind, name, what="model", **kwargs):
    """kind.from_pretrained(name); whatever a library raises is one line."""
    try:
        return kind.from_pretrained(name, **kwargs)
    except Exception as error:
        text = str(error).partition("\n")[0]
        fail(f"{name}: no {what} can be loaded ({text})")


def load_config(model, dropout=None):
    """The configuration of a T5 or an encoder, from a folder or the hub; others are refused."""
    looks_local = model.count("/") > 1 or ("/" in model and Path(model).parent.is_dir())
    if looks_local and not Path(model).is_dir():
        fail(f"{model}: no such model folder")
    config = load(AutoConfig, model)
    encoder = type(config) in transformers.MODEL_FOR_MASKED_LM_MAPPING
    if config.model_type != "t5" and (config.is_encoder_decoder or not encoder):
        fail(f"{model}: a {config.model_type}; T5 (v1.1, Flan, ByT5) and encoders (BERT, ...) work")
    if config.model_type == "t5" and getattr(config, "decoder_start_token_id", None) is None:
        fail(f"{model}: its config.json names no decoder_start_token_id")
    if dropout is not None:  # the names differ
        config.update({key: dropout for key in config.to_dict() if "dropout" in key})
    return config


def load_tokenizer(model):
    """The tokenizer of a model folder or hub name; of an empty folder transformers makes one up."""
    files = "tokenizer.json", "spiece.model", "tokenizer.model", "vocab.txt", "vocab.json"
    if Path(model).is_dir() and not any((Path(model) / name).exists() for name in files):
        fail(f"{model}: no tokenizer ({', '.join(files)}: none is there)")
    return load(AutoTokenizer, model, "tokenizer")


def load_model(model, config, tokenizer, kind=T5ForConditionalGeneration, **kwargs):
    """A model of a folder or the hub, fp32 unless told otherwise; refused where it is not whole.

    An encoder's new head, and the pooler below it, may be missing.
    """
    if (pieces := len(tokenizer)) > (size := config.vocab_size):
        fail(f"{model}: {pieces:,} pieces in the tokenizer, but {size:,} embeddings")
    kwargs = {"dtype": torch.float32, **kwargs, "config": config, "output_loading_info": True}
    loaded, found = load(kind, model, **kwargs)
    t5 = kind is T5ForConditionalGeneration
    own = "" if t5 else f"{loaded.base_model_prefix}."
    weights = loaded.named_parameters()
    faults = {  # the missing ones would be random, and only the scores would show it
        "missing": {k for k in found["missing_keys"] if k.startswith(own) and ".pooler." not in k},
        "not in its config": found["unexpected_keys"] if t5 else (),
        "NaN or infinite": {name for name, weight in weights if not weight.isfinite().all()},
    }
    for fault, names in faults.items():
        if names:
            fail(f"{model}: {len(names)} weights are {fault}, as {min(names)}")
    return loaded


class LengthGroupedSampler(torch.utils.data.Sampler):
    """Batches of similar length in a random order that depends on (seed, epoch) alone.

    Hugging Face's draws from the global random state, so a resumed run would see other batches.
    Arrays, not lists: a million rows take a second and 12 MB.
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


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with batches of similar length that a resumed run sees again.

    compute_loss_func(model, inputs, count) gives a batch's share of the loss of the step, which
    has `count` real target tokens; the shares of all batches and processes add up to it.
    """

    def _get_train_sampler(self, train_dataset=None):
        rows, size = self.train_dataset, self.args.gradient_accumulation_steps
        if (lengths := getattr(rows, "lengths", None)) is None:
            lengths = [len(row["input_ids"]) + len(row["labels"]) for row in rows]
        size *= self.args.train_batch_size * self.args.world_size
        return LengthGroupedSampler(lengths, size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.compute_loss_func(model, inputs, num_items_in_batch)
        loss = loss * self.args.world_size if model.training else loss  # DDP averages
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs):
        return 0  # walks over all weights at each step

    def _get_grad_norm(self, model, grad_norm=None):
        """Without clipping Trainer would walk over all gradients for the log alone."""
        return super()._get_grad_norm(model, grad_norm) if self.args.max_grad_norm > 0 else None


class Progress(transformers.TrainerCallback):
    """log.jsonl, the line of time left, checkpoints by time, and an end after Ctrl-C or SIGTERM.

    `start` is when the script began; `earlier` the seconds of all starts of this run before.
    """

    def __init__(self, output, start):
        self.name, self.log, self.start = output.name, output / "log.jsonl", start
        self.clock = output / "checkpoints" / "seconds.json"
        self.earlier, self.signal, self.pause = read_json(self.clock).get("seconds", 0), 0, PAUSE

    def stop(self, number, frame):
        self.signal = number  # the step at hand ends, and a checkpoint is written

    def tick(self, state):
        self.ticked = time.monotonic()
        if state.is_world_process_zero:
            write_json(self.clock, {"seconds": self.earlier + self.ticked - self.start})

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, history = state.global_step, state.log_history
        self.before = max((entry.get("seconds", 0) for entry in history), default=0)
        self.train = self.shown = self.saved = time.monotonic()
        if state.is_world_process_zero:  # later steps are done again
            self.clock.parent.mkdir(exist_ok=True)
            self.log.write_text("".join(json.dumps(entry) + "\n" for entry in history))
        self.tick(state)

    def on_step_end(self, args, state, control, **kwargs):
        """Checkpoints are of logged steps, so that the log that they hold is whole."""
        due = args.save_steps == BY_TIME and time.monotonic() - self.saved > self.pause
        due = self.signal or int(due)
        if args.world_size > 1:  # all do what one of them must; to agree takes time
            due = max(gather_object([due])) if control.should_log else 0
        if due > 1:
            self.signal, control.should_training_stop = due, True
        last = state.global_step >= state.max_steps
        control.should_save = (control.should_save or due > 0) and args.save_strategy != "no"
        if last and not args.load_best_model_at_end:
            control.should_save = False  # the model itself comes next
        control.should_log |= control.should_save or last or due > 1
        self.saving = time.monotonic()

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.monotonic()
        self.pause = max(PAUSE, 20 * (self.saved - self.saving))  # at most a twentieth of the time
        self.tick(state)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" in logs:
            state.log_history.pop()
            return
        now, entry = time.monotonic(), state.log_history[-1]
        entry["seconds"] = self.before + now - self.train
        if not math.isfinite(loss := logs.get("loss", 0.0)):
            fail(f"{self.name}: the loss is {loss} at step {state.global_step}; lower the rate")
        if now - self.ticked > 1:
            self.tick(state)
        if not state.is_world_process_zero:
            return
        with open(self.log, "a") as file:
            file.write(json.dumps(entry) + "\n")
        live = sys.stderr.isatty() and "MAKELEVEL" not in os.environ  # make -j mixes its runs
        if "loss" in logs and (live or now - self.shown > 10):
            left = (now - self.train) / (state.global_step - self.begun)
            self.shown, left = now, left * (state.max_steps - state.global_step)
            text = f"step {state.global_step:,}/{state.max_steps:,} loss {loss:.3f}, {left:.0f} s"
            say(f"[{self.name}] {text} left   ", end="\r" if live else "\n")


def find_checkpoint(output, training):
    """The newest checkpoint whose weights, optimiser, schedule, random states and step can be read,
    or None; what is passed over is said on stderr."""
    found = {}
    for folder in (output / "checkpoints").glob("checkpoint-*"):
        weights, states = [*folder.glob("*.safetensors")], [*folder.glob("*.pt*")]
        try:
            step = int(read_json(folder / "trainer_state.json")["global_step"])  # written last
            if not (training.fsdp or training.deepspeed):  # they have files of their own
                damaged = [path for path in states if zipfile.ZipFile(path).testzip()]
                lost = len(states) < 2 + training.world_size  # a process has its random state
                if damaged or lost or not [safe_open(path, "pt") for path in weights]:
                    raise ValueError(folder)
            found[step] = folder
        except Exception:  # each library has its own for a damaged file
            say(f"[{output.name}] {folder.name} is not whole: passed over")
    return str(found[max(found)]) if found else None


def fit(trainer, args, settings, record, start):
    """Train, from the last whole checkpoint if there is one; `record` and what was done."""
    output, training, model = args.output, trainer.args, trainer.model
    raise_steps(args, training, len(trainer.train_dataset))
    if trainer.is_world_process_zero():
        write_json(output / "config.json", settings)
    checkpoint, progress = find_checkpoint(output, training), Progress(output, start)
    trainer.add_callback(progress)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    walk = model.train  # Trainer calls it in each step, and it would go through all modules
    model.train = lambda mode=True: model if model.training == mode else walk(mode)
    loaded = time.monotonic()
    with on_signals(progress.stop):
        trainer.train(resume_from_checkpoint=checkpoint)
    state = trainer.state
    if progress.signal and state.global_step < state.max_steps:
        kept = training.save_strategy != "no"
        text = "the same command goes on from there" if kept else "without a checkpoint"
        say(f"error: {output.name}: stopped at step {state.global_step:,}; {text}")
        sys.exit(128 + progress.signal)
    losses = [(log["step"], log["loss"]) for log in state.log_history if "loss" in log]
    steps = np.diff([0, *(step for step, _ in losses)])
    seconds = {"load": loaded - start, "train": progress.before + time.monotonic() - loaded}
    if (lost := progress.earlier - progress.before) > 0:  # by starts that were killed
        seconds["lost"] = lost
    about = {"strategy": args.strategy, "task": args.task, "seed": training.seed}
    about |= {"parameters": model.num_parameters(), "epochs": state.epoch}
    about |= {"steps": state.global_step, "seconds": seconds}
    about |= {"examples_seen": round(state.epoch * len(trainer.train_dataset))}
    about |= {"train_loss": float(steps @ [loss for _, loss in losses] / state.global_step)}
    return {**record, **about, **{key: settings[key] for key in ("data_sha256", "model_sha256")}}


def save_run(trainer, tokenizer, args, record, gpus=1):
    """Save the model, then training.json (last and atomically), then drop the checkpoints."""
    start, output, model = time.monotonic(), args.output, trainer.model
    if not all(weight.isfinite().all() for weight in model.parameters()):
        fail(f"{output.name}: the last step made weights infinite or NaN; lower the rate")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True  # Trainer turns it off
    temporary = output / ".model.new"
    if trainer.is_world_process_zero():  # the others may come when it is being written
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(temporary)
    (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing needs
    keys = ("task", "prefix", "max_source_length", "max_target_length", "labels")
    write_json(temporary / "preprocessing.json", {key: getattr(args, key, None) for key in keys})
    for path in temporary.iterdir():  # safetensors gives 0600
        path.chmod((temporary / "preprocessing.json").stat().st_mode)
    shutil.rmtree(output / "model", ignore_errors=True)
    os.replace(temporary, output / "model")
    record["seconds"]["save"] = time.monotonic() - start
    if (output / "checkpoints" / "runs").exists():  # what a tracker wrote
        shutil.copytree(output / "checkpoints" / "runs", output / "runs", dirs_exist_ok=True)
    write_json(output / "training.json", {**record, **describe_run(trainer.args, gpus)})
    shutil.rmtree(output / "checkpoints", ignore_errors=True)
    rows, seconds = record["unlabeled"], record["seconds"]["train"]
    text = f"{rows:,} rows" if rows else f"{record['labels']:,} labels"
    text += f", {record['steps']:,} steps, loss {record['train_loss']:.3f}, {seconds:.0f} s"
    for kind in ("source", "target"):
        if count := record.get(f"truncated_{kind}s"):
            text += f", {count:,} {kind}s cut at {getattr(args, f'max_{kind}_length')} tokens"
    say(f"[{output.name}] {text}")


def describe_run(training, gpus=1):
    """What repeats a run: command, versions, commit, machine; `gpus` is what one process used."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    cuda, versions = training.device.type == "cuda", {"python": platform.python_version()}
    versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    hardware = {
        "device": training.device.type,
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "gpus": gpus * training.world_size if cuda else 0,
        "cpu_threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
    }
    about = {"command": shlex.join(sys.argv), "versions": versions, "git_commit": commit or None}
    return {"hardware": hardware, **about}


# end same


if __name__ == "__main__":
    main()
