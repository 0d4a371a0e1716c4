"""Fine-tune a compact T5, or an encoder as a classifier, on labels: Strategy 1, annotation (Ann.).

Usage:
    python train_small.py --train data/prepared/paper/wlp/train.jsonl --num-labels 1000 \\
        --prefix "wlp: " --output runs/paper/wlp/small-n1000-s0
    python train_small.py --model data/world/models/student --num-labels 100 --max-steps 200 \\
        --train data/prepared/mini/wlp/train.jsonl --prefix "wlp: " --learning-rate 3e-3 \\
        --output /tmp/small
    python train_small.py --model distilbert-base-uncased --labels REFUTES SUPPORTS \\
        --train data/prepared/paper/fever/train.jsonl --output runs/paper/fever/distilbert-n5000-s0

Reads:  TRAIN, a JSONL file of {"source", "target"}; a Hugging Face folder or hub name of a T5 or
        of an encoder (BERT, DistilBERT, ...): the model's own config says which. An encoder gets a
        new head with one logit a class, and its model folder names the classes in id2label.
Writes: OUTPUT/config.json first, log.jsonl, checkpoints/ (a killed run continues from there),
        model/, and training.json last: what was trained, on what, in how many seconds.
Copy:   train_small.py alone
Paper:  section 2.2; input and output formats of Appendix B; hyperparameters of Table 8; encoders
        in Table 10, whose own hyperparameters are not stated: Table 8's are the defaults.
"""

import argparse
import contextlib
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
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithPadding,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
)


# same in: train_small.py, train_teacher.py, distill.py
def fail(message):
    """Stop with one `error:` line on stderr and exit code 1."""
    sys.exit(f"error: {message}")


# end same


# same in: train_small.py, train_teacher.py
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


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
def raise_steps(args, rows):
    """--max-steps for Trainer: as asked, or --min-steps where --epochs of `rows` would be fewer."""
    batch = args.batch_size * args.gradient_accumulation * int(os.environ.get("WORLD_SIZE", 1))
    fewer = math.ceil(rows / batch) * args.epochs < args.min_steps
    return args.min_steps if args.max_steps <= 0 and fewer else args.max_steps


# end same


# same in: train_small.py, train_teacher.py, distill.py
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


def is_encoder(model):
    """Whether a model folder or hub name is an encoder, which can only classify."""
    try:
        return not AutoConfig.from_pretrained(model).is_encoder_decoder
    except Exception as error:
        fail(f"{model}: no model can be loaded ({str(error).splitlines()[0]})")


def name_classes(args, rows):
    """The classes of an encoder: --labels, else every target of TRAIN, in alphabetical order."""
    targets = {row["target"].strip() for row in rows} - {""}
    classes = args.labels or sorted(targets)
    if unknown := sorted(targets - set(classes)):
        fail(f"{args.train}: target {unknown[0]!r} is none of --labels {', '.join(classes)}")
    if len(classes) < 2:
        fail(
            f"{args.train}: a classifier needs two classes, found {classes}; name them by --labels"
        )
    if not args.labels and len(classes) > len(rows) / 2:
        fail(f"{args.train}: {len(classes):,} different targets, so no classes; take a T5 model")
    return classes


def load_classifier(args):
    """An encoder with a new head over args.labels, in fp32; the seed draws the head."""
    torch.manual_seed(args.seed)
    names = dict(enumerate(args.labels))
    try:
        config = AutoConfig.from_pretrained(
            args.model, id2label=names, label2id={name: i for i, name in names.items()}
        )
        for key in [key for key in config.to_dict() if "dropout" in key]:  # their names differ
            if args.dropout is not None:
                setattr(config, key, args.dropout)
        model, found = AutoModelForSequenceClassification.from_pretrained(
            args.model, config=config, dtype=torch.float32, output_loading_info=True
        )
    except Exception as error:
        fail(f"{args.model}: no encoder can be loaded ({str(error).splitlines()[0]})")
    inner = f"{model.base_model_prefix}."
    missing = [k for k in found["missing_keys"] if k.startswith(inner) and ".pooler." not in k]
    if missing:  # they would be random, and only the scores would show it
        fail(f"{args.model}: {len(missing)} weights of the encoder are missing, as {missing[0]}")
    longest = getattr(config, "max_position_embeddings", args.max_source_length)
    if args.max_source_length > longest:
        fail(f"--max-source-length {args.max_source_length}: {args.model} reads {longest} tokens")
    return model


def encode_rows(rows, tokenizer, args):
    """Token ids of prefixed sources, token ids or class of targets; counts what the limits cut.

    A class is one id, its place in args.labels, which an encoder has and a T5 has not.
    """
    counts, texts = {}, [args.prefix + row["source"] for row in rows]
    sources = tokenizer(texts).input_ids
    sources, counts["truncated_sources"] = cut_rows(sources, args.max_source_length)
    if args.labels:
        targets = [[args.labels.index(row["target"].strip())] for row in rows]
    else:
        targets = tokenizer(text_target=[row["target"] for row in rows]).input_ids
        targets, counts["truncated_targets"] = cut_rows(targets, args.max_target_length)
    pairs = zip(sources, targets, strict=True)
    return [{"input_ids": source, "labels": target} for source, target in pairs], counts


def cut_rows(rows, limit):
    """(rows of at most `limit` ids, the last one, end of sequence, kept; how many were cut)."""
    cut = [ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:] for ids in rows]
    return cut, sum(len(ids) > limit for ids in rows)


def sample_rows(rows, count, seed, path):
    """The first `count` rows of a seeded permutation, so that more labels contain fewer."""
    rows = [row for row in rows if row["target"].strip()]
    if count is not None and count > len(rows):
        fail(f"{path}: {count:,} labels asked for, {len(rows):,} rows with a target are there")
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return [rows[i] for i in order[:count]]


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py
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


def compute_class_loss(outputs, labels, num_items_in_batch=None):
    """Cross-entropy of logits (B, C) and labels (B, 1), nats per row of the whole step."""
    logits, labels = outputs.logits.float(), labels.flatten().to(outputs.logits.device)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    count = len(labels) if num_items_in_batch is None else num_items_in_batch
    return loss / torch.as_tensor(count, device=loss.device)


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with batches of similar length that a resumed run sees again."""

    def _get_train_sampler(self, train_dataset=None):
        lengths = [len(row["input_ids"]) + len(row["labels"]) for row in self.train_dataset]
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(lengths, size * self.args.world_size, self.args.seed)


def build_arguments(args):
    """Table 8's settings (or the flags') as Trainer arguments."""
    cuda = torch.cuda.is_available()
    bf16 = args.bf16 if args.bf16 is not None else cuda and torch.cuda.is_bf16_supported()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(args.output / "checkpoints"),
        use_cpu=not torch.accelerator.is_available(),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler,
        warmup_steps=args.warmup_steps,
        optim="adamw_torch_fused",
        bf16=bf16,
        seed=args.seed,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=args.save_steps,
        save_total_limit=1,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would multiply the batch unasked
    return arguments


def load_parts(args, tokenizer):
    """(model, collator, loss function) of a T5, or of an encoder where args.labels has classes."""
    if args.labels:
        return load_classifier(args), DataCollatorWithPadding(tokenizer), compute_class_loss
    dropout = {} if args.dropout is None else {"dropout_rate": args.dropout}
    model = load_model(args.model, **dropout)
    return model, DataCollatorForSeq2Seq(tokenizer, model=model), compute_loss


def read_rows(args):
    """The labeled rows to learn from; settles args.labels, the classes of an encoder."""
    rows = read_jsonl(args.train, ("source", "target"))
    if is_encoder(args.model):
        args.labels = name_classes(args, rows)
    elif args.labels:
        fail(f"--labels: {args.model} is no encoder; a T5 model learns to write the labels")
    return sample_rows(rows, args.num_labels, args.seed, args.train)


def train(args):
    """Fine-tune and write the run folder. Returns the record in training.json."""
    start = time.monotonic()
    tokenizer = load_tokenizer(args.model)
    rows = read_rows(args)
    skip = ("logging_steps", "save_steps", "fp16")
    settings = {key: value for key, value in vars(args).items() if key not in skip}
    if not open_run(args.output, settings):
        return None
    args.max_steps = raise_steps(args, len(rows))
    examples, counts = encode_rows(rows, tokenizer, args)
    model, collator, loss = load_parts(args, tokenizer)
    checkpoint = find_checkpoint(args.output / "checkpoints")
    step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    progress = Progress(args.output, step)
    trainer = Trainer(
        model=model,
        args=build_arguments(args),
        train_dataset=examples,
        data_collator=collator,
        compute_loss_func=loss,
        callbacks=[progress],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    loaded = time.monotonic()
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    record = {
        "script": "train_small.py",
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
        **describe_run(args.train),
    }
    finish_run(trainer, tokenizer, args.output, record)
    return record if trainer.is_world_process_zero() else None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--model",
        default="google/t5-v1_1-small",
        help="T5 or encoder; folder or hub name (%(default)s)",
    )
    add("--train", type=Path, required=True, help="JSONL file of source and target")
    add("--labels", nargs="+", help="class names of an encoder (default: the targets in --train)")
    add("--num-labels", type=int, help="labels to sample from it (default: all)")
    add("--prefix", default="", help='put before every source, e.g. "wlp: " (default: nothing)')
    add("--output", type=Path, required=True, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="small", help="name recorded in training.json (%(default)s)")
    add("--max-source-length", type=int, default=128, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=128, help="tokens (%(default)s)")
    add("--epochs", type=float, default=50, help="passes over the labels (%(default)s)")
    add("--max-steps", type=int, default=-1, help="optimiser steps; if above 0, replaces --epochs")
    add("--min-steps", type=int, default=0, help="of --epochs, at least so many (%(default)s)")
    add("--batch-size", type=int, default=32, help="rows a step and device (%(default)s)")
    add("--gradient-accumulation", type=int, default=1, help="batches a step (%(default)s)")
    add("--learning-rate", type=float, default=3e-5, help="peak, AdamW (%(default)s)")
    add("--lr-scheduler", default="linear", help="Trainer's schedule name (%(default)s)")
    add("--warmup-steps", type=int, default=0, help="steps (%(default)s)")
    add("--dropout", type=float, help="rate, 0 to 1 (default: the model's own, 0.1 in T5)")
    add(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="bf16 arithmetic over fp32 weights; the paper used fp32 (default: where a GPU has it)",
    )
    add("--fp16", action="store_true", help="refused: T5's activations overflow in fp16")
    add("--save-steps", type=int, default=500, help="steps between checkpoints (%(default)s)")
    add("--logging-steps", type=int, default=20, help="steps between log lines (%(default)s)")
    add("--seed", type=int, default=0, help="labels drawn and training (%(default)s)")
    args = parser.parse_args(argv)
    if args.num_labels is not None and args.num_labels < 1:
        parser.error("--num-labels must be at least 1")
    if args.labels and len(set(args.labels)) < len(args.labels):
        parser.error("--labels names a class twice")
    return args


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
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
    with one_error_line(args.output):
        record = train(args)
    if record:
        cut = record["truncated_sources"]
        print(
            f"[{args.output.name}] {record['labels']:,} labels, {record['steps']:,} steps, "
            f"loss {record['train_loss']:.3f}, {record['seconds']['train']:.0f} s"
            + f", {cut:,} sources cut at {args.max_source_length} tokens"
            * (cut > 0),
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
