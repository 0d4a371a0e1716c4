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
import functools
import gc
import hashlib
import importlib.util
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
    check_model(args.model)
    return args, rest


# same in: train_small.py, train_teacher.py, distill.py
def check_model(name):
    """Refuse a path without a folder before libraries load; NAME and OWNER/NAME are the hub's."""
    path, local = Path(name), name.startswith((".", "/")) or name.count("/") > 1
    if (local or ("/" in name and path.parent.is_dir())) and not path.is_dir():
        sys.exit(f"error: {name}: no such model folder")
    if (path / "model").is_dir():
        sys.exit(f"error: {name}: a run folder, whose model is {path / 'model'}")


# end same


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback from the middle of an import
    parse_args()  # --help and a wrong path are answered before torch is loaded
    if not importlib.util.find_spec("torch"):
        sys.exit(f"error: no package 'torch' in {sys.executable}; requirements.txt names all")

import numpy as np
import psutil
import torch
import transformers
from accelerate.utils import gather_object
from safetensors import safe_open


# same in: train_small.py, train_teacher.py
def sample_rows(rows, count, seed, path, keep_empty=False):
    """The first `count` rows of a seeded permutation, so that more labels contain fewer."""
    rows = [row for row in rows if keep_empty or row["target"].strip()]
    if (count or 1) > len(rows):
        fail(f"{path}: {count or 1:,} labels asked for, {len(rows):,} rows with a target are there")
    random.Random(seed).shuffle(rows)
    return rows[:count]


def encode_rows(rows, tokenizer, args, classes=None):
    """(examples, how many sources and targets the limits cut): ids of prefixed sources and of
    targets. An encoder has `classes`, and a target is one id, its place among them."""

    def encode(texts, limit):
        ids = tokenizer(texts).input_ids
        return cut_rows(ids, limit), sum(len(row) > limit for row in ids)

    sources, cut = encode([args.prefix + row["source"] for row in rows], args.max_source_length)
    targets, counts = [row["target"] for row in rows], {"truncated_sources": cut}
    if classes:
        if odd := sorted({target.strip() for target in targets} - {*classes}):
            fail(f"target {odd[0]!r} is none of the classes {', '.join(classes)}")
        targets = [[classes.index(target.strip())] for target in targets]
    else:
        check_classes(targets, tokenizer, args.max_target_length)
        targets, counts["truncated_targets"] = encode(targets, args.max_target_length)
    pairs = zip(sources, targets, strict=True)
    return [{"input_ids": source, "labels": target} for source, target in pairs], counts


def check_classes(targets, tokenizer, limit):
    """Refuse class names that the model can't write whole, or that become the same tokens: at most
    100 different targets, that repeat."""
    names = sorted({target.strip() for target in targets})
    if len(names) > min(100, len(targets) / 2):
        return
    ids = [tuple(row) for row in tokenizer(names).input_ids]
    long = [name for name, row in zip(names, ids, strict=True) if len(row) > limit]
    same = [repr(name) for name, row in zip(names, ids, strict=True) if ids.count(row) > 1]
    if long:
        fail(
            f"--max-target-length {limit}: {len(long)} of {len(names)} different targets are longer"
            f", as {long[0]!r}, so none could be right; {max(map(len, ids))} tokens hold them all"
        )
    if same:
        fail(f"{', '.join(same)} are the same tokens to this model; rename the targets")


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
        fused = torch.cuda.is_available()  # one pass over memory in place of a dozen
        self.update = torch.compile(update_weight) if fused else update_weight

    @torch.no_grad()
    @torch._dynamo.config.patch(recompile_limit=64, suppress_errors=True)
    def step(self, closure=None):
        """Compiled code has 4 variants a device, where torch would give up after 8; what it can't
        compile it runs as it is, saying so."""
        loss, known = closure() if closure else None, {}  # one copy to each device, not a weight
        for group in self.param_groups:
            for weight in (weight for weight in group["params"] if weight.grad is not None):
                state = self.state[weight] or self.start(weight)
                state["step"] += 1
                key = weight.device, group["lr"], 1 - state["step"] ** -0.8  # the moments' decay
                if key not in known:
                    known[key] = torch.tensor(key[1:], device=weight.device)
                moments = state["row"], state.get("column")
                self.update(weight, weight.grad, state.get("low"), *moments, known[key])
        return loss

    def start(self, weight):
        """The state of a weight before its first step."""
        shape, state = weight.shape, self.state[weight]
        zeros = functools.partial(torch.zeros, device=weight.device)
        state |= {"step": 0, "row": zeros(shape[:-1] or shape)}
        if weight.ndim > 1:
            state["column"] = zeros(shape[:-2] + shape[-1:])
        if weight.dtype == torch.bfloat16:
            state["low"] = zeros(shape, dtype=torch.int16)
        return state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)  # casts to the weight's dtype: put back what was saved
        weights = [weight for group in self.param_groups for weight in group["params"]]
        for i, saved in state_dict["state"].items():
            for name in saved.keys() - {"step"}:
                self.state[weights[i]][name] = saved[name].to(weights[i].device)


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


def measure_free(training):
    """Free bytes of each device that this process may use: one of several processes has its own."""
    if training.device.type != "cuda":
        return [psutil.virtual_memory().available]
    several = training.world_size > 1
    devices = [training.device.index] if several else range(torch.cuda.device_count())
    return [torch.cuda.mem_get_info(device)[0] for device in devices]


def count_weights(config):
    """Weights of a T5 with that configuration, counted without building it."""
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(config)
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
    # DDP has a second copy of the gradients, autocast keeps copies of the weights
    need = {way: (BYTES[way] + several * GRADIENT[way]) * weights for way in ways}
    if "fp32" in ways and training.bf16:
        need["fp32"] += 2 * weights
    counts, whole = range(1, len(free) + 1), [way for way in ways if way != "lora" or not auto]
    tries = [(room, n, way) for room in (0.8, 0.97) for n in counts for way in whole]
    tries += [(0.97, n, "lora") for n in counts if "lora" in ways and not several]
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
    whole = any(Path(args.model).glob("*.safetensors"))  # the hub has T5 v1.1 as one fp32 file
    checkpoint, model = DISK[way]
    checkpoint *= training.save_strategy != "no"
    ram, disk = max(HOST[way], 0 if whole else 4), max(2 * checkpoint, checkpoint + model)
    for what, free, each, remedy in (
        ("RAM", psutil.virtual_memory().available, ram, "another machine"),
        ("disk", shutil.disk_usage(args.output).free, disk, "another --output or --save-steps 0"),
    ):
        if free < each * weights:
            fail(
                f"{args.output}: {free / 1e9:,.1f} GB of {what} free, {each * weights / 1e9:,.1f} "
                f"GB needed to load, save and continue by --memory {way}; make room, or {remedy}"
            )


def place_model(args, training, config, way, devices):
    """Load the model: dtype, layers on their devices, adapters, layers to recompute."""
    kwargs = {} if way == "fp32" else {"dtype": torch.bfloat16}
    if devices > 1:
        free = measure_free(training)[:devices]
        kwargs |= {"device_map": "balanced", "max_memory": dict(enumerate(free))}
    elif training.device.type == "cuda":
        kwargs["device_map"] = {"": training.device}
    if way == "fp32":
        torch.set_float32_matmul_precision("high")  # TF32 on GPUs: 10 bits of fraction in matmuls
    model = fuse_gelu(load_model(args.model, config, **kwargs))
    return add_adapters(model, args.lora_rank) if way == "lora" else model


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
    kind = {"task_type": "SEQ_2_SEQ_LM", "target_modules": "all-linear"}
    setup = peft.LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, **kind)
    with warnings.catch_warnings():  # peft asks for a property under its old name
        warnings.simplefilter("ignore", FutureWarning)
        return peft.get_peft_model(model, setup)


def build_trainer(args, training, model, way, examples, passes, tokenizer=None):
    """A Trainer that takes a step in passes of so many rows, layers recomputed or not."""
    pad = {"pad_to_multiple_of": args.pad_to}
    if passes["recompute"]:  # by its name in transformers 5.17 or in 5.23
        enable = getattr(model, "activation_checkpointing_enable", None)
        (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})
    training.per_device_train_batch_size = passes["rows"]
    training.gradient_accumulation_steps = args.batch_size // training.world_size // passes["rows"]
    split = way == "bf16"
    optimiser = SplitAdafactor(model.parameters(), training.learning_rate) if split else None
    return Trainer(
        model=model,
        args=training,
        train_dataset=examples,
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer, model, **pad),
        compute_loss_func=compute_loss,
        optimizers=(optimiser, None),
    )


def fit_in_memory(args, training, parts, examples, *run, crowded):
    """(Trainer, record, passes): fit(*run); where memory runs out, again from the last checkpoint,
    with layers recomputed, then with half the rows a pass. A continued run keeps to what fitted.

    crowded: whether the weights alone take most of the memory.
    """
    kept = args.output / "checkpoints" / "passes.json"
    rows, fixed = args.batch_size // training.world_size, args.recompute is not None
    sizes = [size for size in range(1, rows + 1) if rows % size == 0]
    most = args.micro_batch or training.per_device_train_batch_size
    passes = {"rows": max(size for size in sizes if size <= most)}
    passes |= {"recompute": args.recompute if fixed else crowded}
    before = read_json(kept)
    if before.get("rows") in sizes and before.get("recompute") in (True, False):
        passes = before
    config, tokenizer, way, devices = parts
    while True:
        model = place_model(args, training, config, way, devices)
        trainer = build_trainer(args, training, model, way, examples, passes, tokenizer)
        try:
            return trainer, fit(trainer, args, *run), passes
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
        if passes["recompute"] or fixed:
            passes["rows"] = max((size for size in sizes if size <= passes["rows"] / 2), default=0)
        passes["recompute"] |= not fixed
        if training.world_size > 1 or args.micro_batch or not passes["rows"]:
            fail(
                f"{args.output.name}: out of GPU memory ({reason}); --recompute, a smaller "
                "--micro-batch, shorter rows or a larger GPU would do"
            )
        text = f"{passes['rows']} rows a pass" + ", layers recomputed" * passes["recompute"]
        say(f"[{args.output.name}] out of memory ({reason}); again with {text}")
        write_json(kept, passes)
        del trainer, model
        gc.collect()
        torch.cuda.empty_cache()


def train(args, training):
    """Fine-tune and write the run folder."""
    start, rows = time.monotonic(), read_rows(args.train, "source", "target")
    config, tokenizer = load_parts(args.model, args.dropout)
    if not config.is_encoder_decoder:
        fail(f"{args.model}: a {config.model_type}; the teacher is a T5")
    rows = sample_rows(rows, args.num_labels, training.seed, args.train, args.keep_empty)
    examples, counts = encode_rows(rows, tokenizer, args)
    with loading(args.model):
        weights = count_weights(config)
    args.memory, devices, share = choose_way(args, training, weights)
    way, crowded = args.memory, share > 0.5 and training.device.type != "cpu"
    if way != "fp32":  # autocast is for fp32 weights
        training.bf16, training.mixed_precision = False, "no"
    if way == "lora":
        training.learning_rate = args.lora_learning_rate
    if way == "bf16":
        training.max_grad_norm = 0.0  # SplitAdafactor has its own clipping
        if training.weight_decay or training.optim != "adamw_torch_fused":
            fail("--memory bf16 has an optimiser of its own: leave --optim and --weight-decay out")
    settings = open_run(args, training, data=args.train, model=args.model)
    if not settings:
        return
    check_host(args, training, way, weights)
    torch.manual_seed(training.seed)
    record = {"script": "train_teacher.py", "labels": len(rows), "unlabeled": 0, **counts}
    parts, run = (config, tokenizer, way, devices), (settings, record, start)
    trainer, record, passes = fit_in_memory(args, training, parts, examples, *run, crowded=crowded)
    if way == "lora" and trainer.is_world_process_zero():
        trainer.model.merge_adapter()  # in place, one layer at a time, rounded to bf16 once
        trainer.model = trainer.model.unload()
    model, gpus = trainer.model, range(torch.cuda.device_count())
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    record["placement"] = {
        "memory": way,
        "micro_batch": passes["rows"],
        "recompute": passes["recompute"],
        "gpus": devices,
        "head": "tied" if tied else "untied",
        "gib_measured": [torch.cuda.max_memory_allocated(gpu) / 2**30 for gpu in gpus],
    }
    save_run(trainer, tokenizer, args, record, devices)


def main(argv=None):
    args, rest = parse_args(argv)
    training = read_training(args, rest)
    with run_folder(args.output):
        train(args, training)


# --- run folder -----------------------------------------------------------------------------
# same in: train_small.py, train_teacher.py, distill.py
gc.freeze()  # what was imported stays: Trainer's collections need not walk it
LIMITS = {  # lowest and highest value of flags; none is NaN or infinite
    "num_labels num_unlabeled batch_size teacher_batch_size micro_batch": (1, 10**9),
    "lora_rank gradient_accumulation_steps": (1, 10**4),
    "max_source_length max_target_length": (2, 32_767),
    "min_steps top_k save_steps weight_decay max_grad_norm adam_epsilon": (0, 10**9),
    "dataloader_num_workers": (0, 10**4),
    "dataloader_prefetch_factor per_device_eval_batch_size eval_accumulation_steps": (1, 10**4),
    "epochs learning_rate lora_learning_rate": (1e-300, 1e300),
    "temperature temperatures": (0.01, 100),
    "dropout": (0, 0.99),
    "adam_beta1 adam_beta2": (0, 0.999_999),
    "seed": (0, 2**32 - 1),
}
OURS = (  # Trainer's flags that are settled by ours, would change the experiment or do nothing here
    "output_dir num_train_epochs per_device_train_batch_size resume_from_checkpoint push_to_hub"
    " fp16 fp16_full_eval train_sampling_strategy label_smoothing_factor auto_find_batch_size"
    " remove_unused_columns metric_for_best_model accelerator_config debug neftune_noise_alpha"
    " data_seed ignore_data_skip save_only_model label_names length_column_name sortish_sampler"
    " predict_with_generate prediction_loss_only generation_config generation_max_length"
    " generation_num_beams use_liger_kernel"
).split()
BY_TIME = 10**9  # the --save-steps that stands for a checkpoint each PAUSE seconds
PAUSE = 600
DEFAULTS = f"""--optim adamw_torch_fused --seed 0 --save-strategy steps --save-steps {BY_TIME}
--save-total-limit 1 --logging-steps 20 --logging-nan-inf-filter false --prediction-loss-only true
--remove-unused-columns false --ddp-find-unused-parameters false --disable-tqdm true
--report-to none --learning-rate {TABLE_8["learning_rate"]}"""  # of Trainer's flags
FIRST = os.environ.get("RANK", "0") == "0"  # of several processes
DRIVER = Path("/proc/driver/nvidia/version")
FREE = re.compile(  # settings that may change: they leave the result alone, or have their own hash
    "output|command|(model|train|dev)$|log|sav|report|run_name|disable|hub|project|trackio"
    "|dataloader(?!_drop)|local|micro_batch|recompute"
)
MADE = "model", "checkpoints", "config.json", "log.jsonl", "training.json"  # in OUTPUT


def fail(message):
    """Stop with one `error:` line on stderr and exit code 1."""
    sys.exit("error: " + message.replace("\n", "\\n"))


def say(text):
    """A line on stderr, of the first process."""
    if FIRST:
        print(text, file=sys.stderr, flush=True)


def check_limits(flags):
    """ValueError for a flag outside its limits or not UTF-8, or a folder without a name."""
    limits = {name: both for names, both in LIMITS.items() for name in names.split()}
    for name, given in flags.items():
        if isinstance(given, Path) and not given.name:
            raise ValueError(f"--{name}: {str(given)!r} has no name")
        if re.search("[\ud800-\udfff]", str(given)):
            raise ValueError(f"--{name}: {str(given)!a} is not UTF-8")
        low, high = limits.get(name, (-1e300, 1e300))
        for value in given if isinstance(given, list) else [given]:
            if isinstance(value, (int, float)) and not low <= value <= high:
                flag = f"--{name.replace('_', '-')} {value}"
                raise ValueError(f"{flag}: not within {low:g} to {high:g}")


def read_training(args, rest):
    """Seq2SeqTrainingArguments of the flags `rest` that are not ours; settles bf16 and pad_to.

    --batch-size is the batch of a step, so a device's share follows from the number of processes.
    A wrong flag of either kind is one line and exit code 2, before anything is written. What
    libraries do unasked is turned off.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a word on each retry
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")  # would download it all again
    torch.backends.cuda.enable_cudnn_sdp(False)  # builds a plan for each new shape, for seconds
    names = {word.split("=")[0][2:].replace("-", "_") for word in rest if word[:2] == "--"}
    cuda, hidden = torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if DRIVER.exists() and not (cuda or hidden or "use_cpu" in names):
        fail(
            f"torch {torch.__version__} can't use this machine's NVIDIA driver, and a CPU would "
            "take days: install a build for the driver's CUDA (see nvidia-smi), or say --use-cpu"
        )
    if args.bf16 is None:  # not where it is emulated, as on a T4
        args.bf16 = cuda and torch.cuda.is_bf16_supported(including_emulation=False)
    kind, form = transformers.Seq2SeqTrainingArguments, {"usage": argparse.SUPPRESS}
    parser = transformers.HfArgumentParser(kind, **form, allow_abbrev=False)
    for name in names & {*OURS}:
        parser.error(f"--{name.replace('_', '-')}: settled here, by a flag or for good; see --help")
    best = ["--save-strategy=best"] if "load_best_model_at_end" in names else []
    flags = vars(parser.parse_args([*DEFAULTS.split(), *best, *rest]))
    try:
        check_limits({**flags, **vars(args)})
        parts = int(os.environ.get("WORLD_SIZE", 1)) * flags["gradient_accumulation_steps"]
        if flags["max_steps"] == 0 or flags["max_steps"] < -1:  # would be one, or --epochs
            raise ValueError("--max-steps: give 1 or more, or leave it out for --epochs")
        if args.batch_size % parts:
            text = f"--batch-size {args.batch_size}, of a step, does not divide by {parts}"
            raise ValueError(f"{text} (processes x --gradient-accumulation-steps)")
        flags |= {"output_dir": str((args.output or Path()) / "checkpoints"), "bf16": args.bf16}
        flags |= {"per_device_train_batch_size": args.batch_size // parts}
        flags |= {"num_train_epochs": args.epochs}
        flags |= {"save_strategy": "no"} if flags["save_steps"] == 0 else {}
        flags["use_cpu"] |= not torch.accelerator.is_available()
        flags["dataloader_pin_memory"] &= cuda
        training = kind(**flags)
        check_training(training, bool(getattr(args, "dev", None)))
    except Exception as error:  # each flag's library has its own
        parser.error(str(error).partition("\n")[0] or type(error).__name__)
    args.pad_to = 32 if training.torch_compile else 1  # tokens: few shapes to compile and capture
    training._n_gpu = min(1, training.n_gpu)  # DataParallel would multiply the batch unasked
    return training


def check_training(training, dev):
    """Raise what Trainer or a library would only when data and models are loaded; `dev`: whether
    there is a file of it."""
    best, evaluates = training.load_best_model_at_end, training.eval_strategy != "no"
    alone = training.save_strategy == "best" and not best
    if evaluates != dev or alone or ((best or training.eval_on_start) and not dev):
        both = "--load-best-model-at-end, which --save-strategy best needs, and --eval-on-start"
        raise ValueError(f"--dev goes with --eval-strategy, for its loss, and {both} with both")
    if training.fsdp and training.world_size == 1:
        raise ValueError("--fsdp needs several processes, as by torchrun")
    if training.dataloader_persistent_workers and not training.dataloader_num_workers:
        raise ValueError("--dataloader-persistent-workers needs --dataloader-num-workers")
    trackers = transformers.integrations.get_reporting_integration_callbacks
    for tracker in trackers(training.report_to):
        tracker()  # refused where its package is missing
    weight = torch.nn.Linear(1, 1)
    make, values = transformers.Trainer.get_optimizer_cls_and_kwargs(training, weight)
    schedule = training.lr_scheduler_type, make(weight.parameters(), **values), 1, 2
    transformers.get_scheduler(*schedule, training.lr_scheduler_kwargs)
    backend, mode = training.torch_compile_backend, training.torch_compile_mode
    if training.torch_compile:  # nothing is compiled yet
        torch.compile(weight, backend=backend, mode=mode)


@contextlib.contextmanager
def on_signals(handler):
    """Ctrl-C and SIGTERM go to `handler` meanwhile."""
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, handler))
        yield


@contextlib.contextmanager
def run_folder(output):
    """Hold OUTPUT, against another run; a fault of input, disk or memory, or a signal, is one line
    on stderr."""

    def interrupt(number, frame):
        raise KeyboardInterrupt(number)

    try:
        output.mkdir(parents=True, exist_ok=True)
        with on_signals(interrupt), open(output / ".lock", "w") as lock:
            if FIRST:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield
    except KeyboardInterrupt as error:
        say(f"error: {output.name}: interrupted; run the same command again")
        sys.exit(128 + (error.args or [signal.SIGINT])[0])
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        text = str(error).partition("\n")[0]
        if isinstance(error, BlockingIOError):
            text = "another process is training here"
        elif isinstance(error, torch.OutOfMemoryError):
            text = f"out of GPU memory ({text}); --gradient-accumulation-steps 2 takes half"
        elif re.search("iostream|inline_container|PytorchStreamWriter|No space|code: 28", text):
            text = "the disk is full, or a quota; make room and run the same command again"
        elif isinstance(error, RuntimeError):
            raise
        fail(f"{output}: {text}")


def open_run(args, training, data, model, **more):
    """The settings for config.json, or None for a finished run. Refuses to overwrite what is not
    this run's: an input, a foreign model/ or checkpoints/, a run begun with other settings."""
    output, before = args.output, read_json(args.output / "config.json")
    for path in (Path(data).resolve(), Path(model).resolve()):
        if {output.resolve() / name for name in MADE} & {path, *path.parents}:
            fail(f"{path} would be overwritten by this run; choose another --output than {output}")
    paths = [output / name for name in MADE]
    there = [path for path in paths if path.is_file() or any(path.glob("*"))]
    if there and "model_sha256" not in before:
        text = "not of a run of this version, by config.json"
        fail(f"{there[0]}: {text}; remove {output} or choose another")
    settings = {**training.to_dict(), **vars(args), **more}
    settings |= {"processes": training.world_size, "device": training.device.type}
    settings["command"] = shlex.join(sys.argv)
    settings |= {"data_sha256": hash_file(data), "model_sha256": hash_model(model)}
    settings = json.loads(json.dumps(settings, default=str))
    keys = sorted(key for key in before.keys() & settings.keys() if not FREE.match(key))
    changes = [f"{k} {before[k]!r} -> {settings[k]!r}" for k in keys if before[k] != settings[k]]
    if changes := ", ".join(changes):
        fail(f"{output} was begun with other settings ({changes}); remove it or choose another")
    if (record := output / "training.json") in there:
        if "seconds" in read_json(record) and is_whole(output / "model"):
            return say(f"[{output.name}] already trained")
        say(f"[{output.name}] training.json or model/ is damaged: trained again")
    return settings


def is_whole(model):
    """Whether config, tokenizer, weights and preprocessing.json of a folder can be opened."""
    with contextlib.suppress(Exception, SystemExit):  # each library has its own; fail()
        load_parts(str(model))
        weights = [safe_open(path, "pt") for path in model.glob("*.safetensors")]
        return bool(weights) and "prefix" in read_json(model / "preprocessing.json")
    return False


def read_rows(path, *keys):
    """The rows of a JSONL file, each with the texts `keys`; a fault is named by file and line."""
    rows, empty = [], []
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if line.strip():
                    row = json.loads(line.decode("utf-8-sig"))
                    rows.append({key: row[key] for key in keys})
                    "".join(rows[-1].values()).encode()
                    empty += [] if row["source"].strip() else [number]
            except UnicodeError as error:  # of surrogates too: half a character, such as \\ud83d
                fail(f"{path} line {number}: not UTF-8 ({error.reason})")
            except (KeyError, TypeError):
                fail(f"{path} line {number}: a row needs the texts {' and '.join(keys)}")
            except (ValueError, RecursionError):
                fail(f"{path} line {number}: not a JSON object")
    if empty:
        fail(f"{path}: {len(empty):,} empty sources, the first in line {empty[0]}; leave them out")
    return rows or fail(f"{path}: no rows")


def cut_rows(rows, limit):
    """Rows of at most `limit` ids, the last one, end of sequence, kept."""
    return [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in rows]


def write_json(path, value):
    """Write `value` so that a reader sees the old file or the whole new one."""
    text, new = json.dumps(value, indent=2, ensure_ascii=False, default=str), f".{path.name}.new"
    path.with_name(new).write_text(text, encoding="utf-8")
    os.replace(path.with_name(new), path)


def read_json(path):
    """The object in a JSON file, or {} where there is none or it is damaged."""
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        return dict(json.loads(path.read_text(encoding="utf-8")))
    return {}


def hash_file(path):
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_model(model):
    """The hash of a folder's weights, config and tokenizer, or a hub name with its commit."""
    if not Path(model).is_dir():
        config = transformers.AutoConfig.from_pretrained(model)
        return f"{model}@{getattr(config, '_commit_hash', None)}"
    kinds = (".safetensors", ".bin", ".json", ".model", ".txt")
    files = sorted(path for path in Path(model).iterdir() if path.suffix in kinds)
    return hashlib.sha256("".join(map(hash_file, files)).encode()).hexdigest()


@contextlib.contextmanager
def loading(model, what="model"):
    """Whatever a library raises meanwhile is one line."""
    try:
        yield
    except Exception as error:
        text = str(error).partition("\n")[0][:300]  # some list a vocabulary
        fail(f"{model}: no {what} can be loaded ({text or type(error).__name__})")


def load_parts(model, dropout=None):
    """(config, tokenizer) of a T5 or an encoder, from a folder or the hub; others are refused."""
    check_model(model)
    with loading(model):
        config = transformers.AutoConfig.from_pretrained(model)
    with loading(model, "tokenizer"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    t5, encoders = config.model_type == "t5", transformers.MODEL_FOR_MASKED_LM_MAPPING
    if not t5 and (config.is_encoder_decoder or type(config) not in encoders):
        fail(f"{model}: a {config.model_type}; T5 (v1.1, Flan, ByT5) and encoders (BERT, ...) work")
    for key in ("decoder_start_token_id", "pad_token_id", "eos_token_id") if t5 else ():
        if (value := getattr(config, key, None)) not in range(config.vocab_size):
            fail(f"{model}: {key} {value!r} in its config.json is none of its ids")
    if t5 and tokenizer("a").input_ids[-1:] != [config.eos_token_id]:
        fail(f"{model}: its tokenizer puts no end token, {config.eos_token_id}, behind a text")
    pieces, size = len(tokenizer), config.vocab_size
    if not size / 2 < pieces <= size:  # where files are missing, transformers makes up a few pieces
        fail(f"{model}: no tokenizer of its own: {pieces:,} pieces, but {size:,} embeddings")
    if dropout is not None:  # the names differ
        config.update({key: dropout for key in config.to_dict() if "dropout" in key})
    return config, tokenizer


def load_model(model, config, classes=None, **kwargs):
    """A T5, or an encoder with a new head over `classes`, of a folder or the hub; fp32 unless told
    otherwise. Refused where it can't run or is not whole, but for an encoder's head and the pooler
    below it."""
    kind = transformers.T5ForConditionalGeneration
    if classes:
        kind = transformers.AutoModelForSequenceClassification
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: i for i, name in enumerate(classes)}
    kwargs = {"dtype": torch.float32, **kwargs, "config": config, "output_loading_info": True}
    with loading(model), torch.no_grad():
        loaded, found = kind.from_pretrained(model, **kwargs)
        size = 1, min(32, getattr(config, "max_position_embeddings", 32))
        text = torch.ones(size, dtype=int, device=loaded.device)
        if not transformers.integrations.is_deepspeed_zero3_enabled():  # weights are elsewhere yet
            loaded.train()(text, **({} if classes else {"decoder_input_ids": text}))
    own, weights = f"{loaded.base_model_prefix}." if classes else "", loaded.named_parameters()
    files = [safe_open(path, "pt") for path in Path(model).glob("*.safetensors")]
    kinds = [(n, file.get_slice(n).get_dtype()) for file in files for n in file.offset_keys()]
    integers = {n for n, kind in kinds if kind.startswith(("I", "U", "BOOL"))}
    faults = {  # the missing ones would be random, and only the scores would show it
        "missing": {k for k in found["missing_keys"] if k.startswith(own) and ".pooler." not in k},
        "not in its config": () if classes else found["unexpected_keys"],
        "integers": {name for name in integers if "position_ids" not in name},
        "NaN or infinite": {name for name, weight in weights if not weight.isfinite().all()},
    }
    for fault, names in faults.items():
        if names:
            fail(f"{model}: {len(names)} weights are {fault}, as {min(names)}")
    return loaded.eval()


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


class Trainer(transformers.Seq2SeqTrainer):
    """Seq2SeqTrainer with batches of similar length that a resumed run sees again.

    compute_loss_func(model, inputs, count) gives a batch's share of the loss of the step, which
    has `count` real target tokens; the shares of all batches and processes add up to it.
    """

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(row["input_ids"]) + len(row["labels"]) for row in self.train_dataset]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(lengths, size * self.args.world_size, self.args.seed)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss = self.compute_loss_func(model, inputs, num_items_in_batch)
        loss = loss * self.args.world_size if model.training else loss  # DDP averages
        return (loss, {}) if return_outputs else loss

    def floating_point_ops(self, inputs):
        return 0  # walks over all weights at each step

    def _get_grad_norm(self, model, grad_norm=None):
        return grad_norm  # without clipping it would walk over all gradients for the log alone


class Progress(transformers.TrainerCallback):
    """log.jsonl, the line of time left, checkpoints by time, and an end after Ctrl-C or SIGTERM.

    `start` is when the script began; `earlier` the seconds of all starts of this run before.
    """

    def __init__(self, output, start):
        self.name, self.log, self.start = output.name, output / "log.jsonl", start
        self.clock, self.signal, self.pause = output / "checkpoints" / "seconds", 0, PAUSE
        self.earlier = 0.0
        with contextlib.suppress(OSError, ValueError):
            self.earlier = float(self.clock.read_text())

    def stop(self, number, frame):
        self.signal = number  # the step at hand ends, and a checkpoint is written

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun, history = state.global_step, state.log_history
        self.before = max((entry.get("seconds", 0) for entry in history), default=0)
        self.train = self.shown = self.saved = time.monotonic()
        if state.is_world_process_zero:  # later steps are done again
            self.clock.parent.mkdir(exist_ok=True)
            self.log.write_text("".join(json.dumps(entry) + "\n" for entry in history))

    def on_step_begin(self, args, state, control, **kwargs):
        if args.torch_compile:  # gradients in a CUDA graph's memory live as long as the step
            torch.compiler.cudagraph_mark_step_begin()

    def on_step_end(self, args, state, control, **kwargs):
        """Checkpoints are of logged steps, so that the log that they hold is whole."""
        self.saving = time.monotonic()
        due = args.save_steps == BY_TIME and self.saving - self.saved > self.pause
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

    def on_save(self, args, state, control, **kwargs):
        self.saved = time.monotonic()
        self.pause = max(PAUSE, 20 * (self.saved - self.saving))  # at most a twentieth of the time
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            (folder / "sha256").write_text(hash_file(folder / "trainer_state.json"))

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_loss" in logs:  # the summary, last
            state.log_history.pop()
            return
        now, entry, step = time.monotonic(), state.log_history[-1], state.global_step
        entry["seconds"] = self.before + now - self.train
        if not math.isfinite(loss := logs.get("loss", 0.0)):
            fail(f"{self.name}: the loss is {loss} at step {step}; lower the rate")
        if not state.is_world_process_zero:
            return
        self.clock.write_text(str(self.earlier + now - self.start))
        with open(self.log, "a") as file:
            file.write(json.dumps(entry) + "\n")
        if "loss" in logs and now - self.shown > 10:
            left = (now - self.train) / (step - self.begun) * (state.max_steps - step)
            text, self.shown = f"step {step:,}/{state.max_steps:,} loss {loss:.3f}", now
            say(f"[{self.name}] {text}, {left:.0f} s left")


def find_checkpoint(output, training):
    """The newest checkpoint whose weights, optimiser, schedule, random states and step can be read
    and are as they were written, or None; others are set aside, with a word on stderr."""
    found = {}
    for folder in (output / "checkpoints").glob("checkpoint-*"):
        state, digest = folder / "trainer_state.json", folder / "sha256"  # written last
        weights, states = [*folder.glob("*.safetensors")], [*folder.glob("*.pt*")]
        try:
            step = read_json(state)["global_step"]
            whole = not digest.exists() or digest.read_text() == hash_file(state)
            whole &= all(map(read_json, folder.glob("*.json")))
            if not (training.fsdp or training.deepspeed):  # they have files of their own
                whole &= not any(zipfile.ZipFile(path).testzip() for path in states)
                whole &= len(states) >= 2 + training.world_size  # a process has its random state
                whole &= bool([safe_open(path, "pt") for path in weights])
        except Exception:  # each library has its own for a damaged file
            whole = False
        if whole and folder.name == f"checkpoint-{step}":
            found[step] = str(folder)
        else:
            say(f"[{output.name}] {folder.name} is not whole: set aside")
            aside = folder.with_name(f"not-whole-{folder.name}")
            if FIRST:  # else, of a later step, it would be kept in place of each new one
                shutil.rmtree(aside, ignore_errors=True)
                folder.rename(aside)
    return found[max(found)] if found else None


def fit(trainer, args, settings, record, start):
    """Train, from the last whole checkpoint if there is one; `record` and what was done."""
    output, training, rows = args.output, trainer.args, len(trainer.train_dataset)
    fewer = math.ceil(rows / args.batch_size) * args.epochs < args.min_steps
    if training.max_steps <= 0 and fewer:
        training.max_steps = args.min_steps
    if trainer.is_world_process_zero():
        write_json(output / "config.json", settings)
    checkpoint, progress = find_checkpoint(output, training), Progress(output, start)
    trainer.add_callback(progress)
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    model, walk = trainer.model, trainer.model.train  # in each step: 1 ms of T5-Small
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
    if not state.global_step:
        fail(f"{output.name}: no step was taken, as --dataloader-drop-last leaves no batch")
    losses = [(log["step"], log["loss"]) for log in state.log_history if "loss" in log]
    steps = np.diff([0, *(step for step, _ in losses)])
    seconds = {"load": loaded - start, "train": progress.before + time.monotonic() - loaded}
    if (lost := progress.earlier - progress.before) > 0:  # by starts that were killed
        seconds["lost"] = lost
    about = {"strategy": args.strategy, "task": args.task, "seed": training.seed}
    about |= {"parameters": model.num_parameters(), "epochs": state.epoch}
    about |= {"steps": state.global_step, "examples_seen": round(state.epoch * rows)}
    about |= {"train_loss": float(steps @ [loss for _, loss in losses] / state.global_step)}
    about |= {key: settings[key] for key in ("data_sha256", "model_sha256")}
    return {**record, **about, "seconds": seconds}


def save_run(trainer, tokenizer, args, record, gpus=1):
    """Save the model, then training.json (last and atomically), then drop the checkpoints."""
    start, output, model = time.monotonic(), args.output, trainer.model
    if not all(weight.isfinite().all() for weight in model.parameters()):
        fail(f"{output.name}: the last step made weights infinite or NaN; lower the rate")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = True  # Trainer turns it off
    new, kept = output / ".model.new", output / "checkpoints"
    if trainer.is_world_process_zero():  # the others may come when it is being written
        shutil.rmtree(new, ignore_errors=True)
    trainer.save_model(str(new))
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(new)
    (new / "training_args.bin").unlink(missing_ok=True)  # a pickle that nothing needs
    keys = ("task", "prefix", "max_source_length", "max_target_length", "labels")
    write_json(new / "preprocessing.json", {key: getattr(args, key, None) for key in keys})
    for path in new.iterdir():  # safetensors gives 0600
        path.chmod((new / "preprocessing.json").stat().st_mode)
    shutil.rmtree(output / "model", ignore_errors=True)
    os.replace(new, output / "model")
    record["seconds"]["save"] = time.monotonic() - start
    if (kept / "runs").exists():  # what a tracker wrote
        shutil.copytree(kept / "runs", output / "runs", dirs_exist_ok=True)
    write_json(output / "training.json", {**record, **describe_run(trainer.args, gpus)})
    shutil.rmtree(kept, ignore_errors=True)
    rows, seconds = record["unlabeled"], record["seconds"]["train"]
    counts = [(rows, "row") if rows else (record["labels"], "label"), (record["steps"], "step")]
    text = ", ".join(f"{count:,} {word}{'s' * (count != 1)}" for count, word in counts)
    text += f", mean loss {record['train_loss']:.3f}, {seconds:.0f} s"
    for kind in ("source", "target"):
        if count := record.get(f"truncated_{kind}s"):
            text += f", {count:,} {kind}s cut at {getattr(args, f'max_{kind}_length')} tokens"
    say(f"[{output.name}] {text}")


def describe_run(training, gpus=1):
    """What repeats a run: command, versions, commit, machine; `gpus` is what one process used."""
    git = f"git -C {shlex.quote(str(Path(__file__).resolve().parent))} rev-parse HEAD 2>/dev/null"
    _, commit = subprocess.getstatusoutput(git)  # none where git is not installed
    cuda, versions = training.device.type == "cuda", {"python": platform.python_version()}
    versions |= {"torch": torch.__version__, "transformers": transformers.__version__}
    machine = {"device": training.device.type, "cpu": platform.processor() or platform.machine()}
    machine |= {"gpu": torch.cuda.get_device_name() if cuda else None}
    machine |= {"gpus": gpus * training.world_size if cuda else 0}
    machine |= {"cpu_threads": torch.get_num_threads()}
    about = {"command": shlex.join(sys.argv), "versions": versions, "git_commit": commit or None}
    return {"hardware": machine, **about}


# end same


if __name__ == "__main__":
    main()
