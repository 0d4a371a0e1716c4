"""Fine-tune a compact T5, or an encoder as a classifier, on labels: Strategy 1, annotation (Ann.).

Usage:
    python train_small.py --train data/prepared/paper/wlp/train.jsonl --num-labels 1000 \\
        --prefix "wlp: " --output runs/paper/wlp/small-n1000-s0
    python train_small.py --model data/world/models/student --num-labels 100 --max-steps 200 \\
        --train data/prepared/mini/wlp/train.jsonl --prefix "wlp: " --learning-rate 3e-3 \\
        --output /tmp/small
    python train_small.py --model distilbert-base-uncased --labels REFUTES SUPPORTS \\
        --train data/prepared/paper/fever/train.jsonl --output runs/paper/fever/distilbert-n5000-s0
    Every other flag is that of Hugging Face's Seq2SeqTrainingArguments: --max-steps 200,
    --learning-rate (3e-5), --warmup-steps, --weight-decay, --gradient-accumulation-steps, --seed
    (0), --save-steps (by time; 0 = none), --report-to tensorboard, --fsdp, --eval-strategy, ...

Reads:  TRAIN, a JSONL file of {"source", "target"}; a Hugging Face folder or hub name of a T5 or
        of an encoder (BERT, DistilBERT, ...): the model's own config says which. An encoder gets a
        new head with one logit a class, and its model folder names the classes in id2label.
Writes: OUTPUT/config.json first, log.jsonl, checkpoints/ (a killed run continues from there),
        model/, and training.json last: what was trained, on what, in how many seconds.
Copy:   train_small.py alone
Paper:  section 2.2; input and output formats of Appendix B; hyperparameters of Table 8; encoders
        in Table 10, whose own hyperparameters are not stated: Table 8's are the defaults.
"""

# ruff: noqa: E402 (torch is loaded after --help is answered)
import argparse
import contextlib
import fcntl
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
import zipfile
from pathlib import Path

TABLE_8 = {"epochs": 50, "batch_size": 32, "learning_rate": 3e-5, "length": 128}


def parse_args(argv=None):
    """(our flags, the words left for Trainer's); files that are not there are said at once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add, yes_no, length = parser.add_argument, argparse.BooleanOptionalAction, TABLE_8["length"]
    add(
        "--model", default="google/t5-v1_1-small", help="T5 or encoder, folder or hub (%(default)s)"
    )
    add("--train", type=Path, required=True, help="JSONL file of source and target")
    add("--dev", type=Path, help="such a file too, for --eval-strategy and its loss")
    add("--labels", nargs="+", help="class names of an encoder (default: the targets in --train)")
    add("--num-labels", type=int, help="labels to sample from --train (default: all)")
    add("--keep-empty", action="store_true", help="learn from empty targets too: no entities here")
    add("--prefix", default="", help='put before every source, e.g. "wlp: " (default: nothing)')
    add("--output", type=Path, required=True, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="small", help="name recorded in training.json (%(default)s)")
    add("--max-source-length", type=int, default=length, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=length, help="tokens (%(default)s)")
    add("--epochs", type=float, default=TABLE_8["epochs"], help="over the labels (%(default)s)")
    add("--min-steps", type=int, default=0, help="of --epochs, at least so many (%(default)s)")
    add("--batch-size", type=int, default=TABLE_8["batch_size"], help="of a step (%(default)s)")
    add("--dropout", type=float, help="rate, 0 to 1 (default: the model's own, 0.1 in T5)")
    add("--bf16", action=yes_no, help="bf16 over fp32 weights; paper: fp32 (default: if native)")
    args, rest = parser.parse_known_args(argv)
    if args.labels and len(set(args.labels)) < len(args.labels):
        parser.error("--labels names a class twice")
    for path in filter(None, (args.train, args.dev)):
        if not path.is_file():
            sys.exit(f"error: {path}: no such file")
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
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
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


def name_classes(args, rows):
    """The classes of an encoder: --labels, else every target of TRAIN, in alphabetical order."""
    targets = {row["target"].strip() for row in rows} - {""}
    classes = args.labels or sorted(targets)
    if unknown := sorted(targets - set(classes)):
        fail(f"{args.train}: target {unknown[0]!r} is none of --labels {', '.join(classes)}")
    if len(classes) < 2:
        fail(f"{args.train}: a classifier needs two classes, found {classes}; --labels names them")
    if not args.labels and len(classes) > len(rows) / 2:
        fail(f"{args.train}: {len(classes):,} different targets, so no classes; take a T5 model")
    return classes


def encode_rows(rows, tokenizer, args):
    """Token ids of prefixed sources, token ids or class of targets; counts what the limits cut.

    A class is one id, its place in args.labels, which an encoder has and a T5 has not.
    """
    sources = [args.prefix + row["source"] for row in rows]
    sources, cut = encode(sources, tokenizer, args.max_source_length)
    targets, counts = [row["target"] for row in rows], {"truncated_sources": cut}
    if args.labels:
        targets = [[args.labels.index(target.strip())] for target in targets]
    else:
        check_classes(targets, tokenizer, args.max_target_length)
        targets, cut = encode(targets, tokenizer, args.max_target_length)
        counts["truncated_targets"] = cut
    pairs = zip(sources, targets, strict=True)
    return [{"input_ids": source, "labels": target} for source, target in pairs], counts


def load_parts(args, config, tokenizer):
    """(model, collator): a T5, or an encoder with a new head over args.labels."""
    if not args.labels:
        model = load_model(args.model, config, tokenizer)
        return model, DataCollatorForSeq2Seq(tokenizer, model=model)
    config.id2label = dict(enumerate(args.labels))
    config.label2id = {name: i for i, name in enumerate(args.labels)}
    model = load_model(args.model, config, tokenizer, AutoModelForSequenceClassification)
    return model, DataCollatorWithPadding(tokenizer)


def train(args, training):
    """Fine-tune and write the run folder."""
    start = time.monotonic()
    config, tokenizer = load_config(args.model, args.dropout), load_tokenizer(args.model)
    rows = read_rows(args.train)
    if not config.is_encoder_decoder:
        args.labels = name_classes(args, rows)
        longest = getattr(config, "max_position_embeddings", args.max_source_length)
        if args.max_source_length > longest:
            fail(f"--max-source-length: {args.model} reads {longest} tokens at the most")
    elif args.labels:
        fail(f"--labels: {args.model} is no encoder; a T5 model learns to write the labels")
    rows = sample_rows(rows, args.num_labels, training.seed, args.train, args.keep_empty)
    examples, counts = encode_rows(rows, tokenizer, args)
    dev = args.dev and encode_rows(read_rows(args.dev), tokenizer, args)[0]
    settings = open_run(args, training, data=args.train, model=args.model)
    if not settings:
        return
    torch.manual_seed(training.seed)
    model, collator = load_parts(args, config, tokenizer)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=examples,
        eval_dataset=dev,
        data_collator=collator,
        compute_loss_func=compute_loss,
    )
    record = {"script": "train_small.py", "labels": len(rows), "unlabeled": 0, **counts}
    save_run(trainer, tokenizer, args, fit(trainer, args, settings, record, start))


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
