"""Distill a teacher into a compact model on unlabeled rows, running the teacher once: Strategy 2.

Usage:
    python distill.py --teacher runs/paper/wlp/teacher-n5000-s0/model --num-unlabeled 100000 \\
        --unlabeled data/prepared/paper/wlp/unlabeled.jsonl --prefix "wlp: " \\
        --output runs/paper/wlp/dist-n5000-u100000-s0
    python distill.py --teacher data/world/models/teacher --student data/world/models/student \\
        --unlabeled data/prepared/mini/wlp/unlabeled.jsonl --num-unlabeled 500 --prefix "wlp: " \\
        --max-steps 200 --learning-rate 3e-3 --output /tmp/dist
    The halves can be two commands, on two machines: --labels-only stops after the teacher pass,
    --teacher LABELS begins with its result. An encoder learns the teacher's scores of class names:
    --classes REFUTES SUPPORTS --student distilbert-base-uncased. Labels that another framework made
    become LABELS by: python -m data.distill.imports --labels LABELS --student MODEL FILE
    Every other flag is that of Hugging Face's Seq2SeqTrainingArguments, as in train_small.py.

Reads:  UNLABELED, a JSONL file of {"source"}; Hugging Face folders or hub names: T5, and with
        --classes an encoder as student.
Writes: LABELS (default OUTPUT/labels), see below; then OUTPUT/config.json, log.jsonl, checkpoints/
        (a killed run continues from there), model/, and training.json last.
Copy:   distill.py alone
Paper:  section 2.3, equation 1; self-distillation of section 3.2; hyperparameters of Table 8.

LABELS holds the teacher's greedy targets and soft labels: labels.json, what they were made from,
and Arrow files of 1,024 rows, named by place and checksum (a killed pass continues, more rows
extend it). `datasets.load_from_disk(LABELS)` opens all, `pyarrow.ipc.open_stream` one. A row has
    source, target    texts, without prefix; input_ids (S), labels (T): the teacher's ids of both
    ids (T, k)        the k likeliest ids for each token of the target (--top-k)
    logits (T, k)     their logits relative to the largest, fp16, so exact where the mass is
    rest (T, t)       for each of --temperatures the logsumexp of all other logits / temperature,
                      relative too: log p = logits / t - logaddexp(logsumexp(logits / t), rest)
    outside (t)       the mass outside the k, summed over the tokens
    cut_source, cut_target   whether the limits cut them
With --top-k 0, `logits` are all of them, in fp32. With --classes there are source, target and
logprobs (C), the teacher's scores of the class names by forced decoding, normalised over them.
"""
# ruff: noqa: E402 (torch is loaded after --help is answered)

import argparse
import contextlib
import fcntl
import gc
import hashlib
import importlib.util
import itertools
import json
import logging
import math
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

TABLE_8 = {"epochs": 50, "batch_size": 32, "learning_rate": 3e-5, "length": 128, "temperature": 2.0}
SHARD_ROWS = 1024  # rows a file of labels


def parse_args(argv=None):
    """(our flags, the words left for Trainer's); files that are not there are said at once."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add, yes_no, length = parser.add_argument, argparse.BooleanOptionalAction, TABLE_8["length"]
    add("--teacher", help="T5 folder or hub name, or a folder of labels made before")
    add("--student", default="google/t5-v1_1-small", help="folder or hub name (%(default)s)")
    add("--unlabeled", type=Path, help="JSONL file of source; with LABELS it may be left out")
    add("--num-unlabeled", type=int, help="rows to sample from it (default: all)")
    add("--labels", type=Path, help="folder of the teacher's labels (default: OUTPUT/labels)")
    add("--labels-only", action=yes_no, help="stop after the teacher pass")
    add("--classes", nargs="+", help="class names; the teacher scores these, for an encoder")
    add("--prefix", default="", help='before every source the T5 reads, "wlp: " (default: nothing)')
    add("--output", type=Path, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="dist", help="name recorded in training.json (%(default)s)")
    add("--top-k", type=int, help="logits kept a token, 0 = all (default: 64, or as in LABELS)")
    temperature, kept = TABLE_8["temperature"], "those to choose from without a new teacher pass"
    add("--temperature", type=float, default=temperature, help="T of Equation 1 (%(default)s)")
    add("--temperatures", type=float, nargs="+", default=[1.0, 2.0], help=f"{kept} (1 2)")
    paper = "paper = as released: teacher run in every step, mean over padding too"
    add("--loss", choices=["kl", "paper"], default="kl", help=f"{paper} (%(default)s)")
    rows = "rows decoded at once (default: 64; on a GPU up to 256, as memory allows)"
    add("--teacher-batch-size", type=int, help=rows)
    add("--teacher-dtype", choices=["float32", "bfloat16"], help="(default: bfloat16 if native)")
    add("--max-source-length", type=int, default=length, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=length, help="tokens (%(default)s)")
    add("--epochs", type=float, default=TABLE_8["epochs"], help="over the rows (%(default)s)")
    add("--min-steps", type=int, default=0, help="of --epochs, at least so many (%(default)s)")
    add("--batch-size", type=int, default=TABLE_8["batch_size"], help="of a step (%(default)s)")
    add("--dropout", type=float, help="rate, 0 to 1 (default: the model's own, 0.1 in T5)")
    add("--bf16", action=yes_no, help="bf16 over fp32 weights; paper: fp32 (default: if native)")
    args, rest = parser.parse_known_args(argv)
    check_flags(parser, args)
    return args, rest


def check_flags(parser, args):
    """Refuse flags that do not go together; settle where LABELS lies."""
    there = Path(args.teacher or "/dev/null").glob("*")
    labels = any(path.name == "labels.json" or path.suffix == ".arrow" for path in there)
    made = args.teacher if labels else None
    if not (args.teacher or args.labels):
        parser.error("give --teacher, or --labels made before")
    if not (args.output or (args.labels and args.labels_only)):
        parser.error("give --output (with --labels-only, --labels will do)")
    if args.classes and len(set(args.classes)) < max(2, len(args.classes)):
        parser.error("--classes needs two names or more, each once")
    if args.classes and args.loss == "paper":
        parser.error("--loss paper has no classes: leave them out")
    if made and args.labels not in (None, Path(made)):
        parser.error(f"--teacher {made} is a folder of labels itself: leave --labels out")
    args.teacher = None if made else args.teacher
    args.labels = Path(made or args.labels or args.output / "labels")
    if args.teacher and not args.unlabeled:
        parser.error("give --unlabeled, the rows that the teacher labels")
    if args.unlabeled and not args.unlabeled.is_file():
        sys.exit(f"error: {args.unlabeled}: no such file")
    for model in (args.student, None if args.labels.is_dir() else args.teacher):
        check_model(model or "")


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
import torch
import transformers
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors import safe_open

# --- the losses ------------------------------------------------------------------------------


def dense_loss(student, teacher, temperature):
    """T^2 KL(teacher || student) of each token at temperature T, from logits (N, V): nats >= 0."""
    student = student.float() if student.dtype in (torch.bfloat16, torch.float16) else student
    target = (teacher.to(student.dtype) / temperature).log_softmax(1)
    output = (student / temperature).log_softmax(1)[:, : target.shape[1]]
    return temperature**2 * (target.exp() * (target - output)).sum(1)


class TopLoss(torch.autograd.Function):
    """Equation 1 over k ids and one bucket for all others: T^2 KL(teacher || student), nats >= 0.

    student (N, V) logits; teacher (N, k) logits of `ids` (N, k); rest (N,) the logsumexp of the
    teacher's other logits / T. It is the dense loss less T^2 r KL(others || others), r being their
    mass. The student's bucket is summed over the other ids, never 1 - sum. The gradient is
    written out, T (q - p) for the k ids and for the bucket, shared by q inside it, because it then
    needs one buffer (N, V) and less time than cross-entropy.
    """

    @staticmethod
    def forward(ctx, student, teacher, ids, rest, temperature):
        half = student.dtype in (torch.bfloat16, torch.float16)
        others = (student.float() if half else student) / temperature
        kept = others.gather(1, ids)
        others.scatter_(1, ids, float("-inf"))
        largest = others.amax(1, keepdim=True)
        total = others.sub_(largest).exp_().sum(1, keepdim=True)
        output = torch.cat([kept, total.log() + largest], 1).log_softmax(1)
        target = torch.cat([teacher / temperature, rest[:, None]], 1)
        target = target.to(output.dtype).log_softmax(1)
        ctx.save_for_backward(others.div_(total), ids, output.exp() - target.exp())
        ctx.temperature, ctx.dtype = temperature, student.dtype
        return temperature**2 * (target.exp() * (target - output)).sum(1)

    @staticmethod
    def backward(ctx, upstream):
        share, ids, difference = ctx.saved_tensors
        difference = difference * (ctx.temperature * upstream[:, None])
        gradient = share.mul_(difference[:, -1:]).scatter_(1, ids, difference[:, :-1])
        return gradient.to(ctx.dtype), None, None, None, None


class SoftLoss:
    """The loss of a step, for the Trainer. `released`: the teacher that --loss paper runs in it."""

    def __init__(self, model, args, training, released=None):
        self.args, self.released, self.real = args, released, None
        self.parts = training.world_size * training.gradient_accumulation_steps
        if hasattr(model, "lm_head"):
            model.lm_head.register_forward_pre_hook(self.pick_real)

    def pick_real(self, head, inputs):
        """Give the output layer the real target positions alone: padding costs nothing there, but
        where code is compiled, for shapes that are known."""
        whole = torch.compiler.is_compiling() or self.real is None
        return inputs if whole else (inputs[0][self.real],)

    def __call__(self, model, inputs, count=None):
        """This batch's share of the mean over the `count` real target tokens of the whole step."""
        temperature, labels = self.args.temperature, inputs.pop("labels")
        soft = {name: inputs.pop(name, None) for name in ("teacher", "ids", "rest")}
        if self.released is not None:
            with torch.no_grad():
                teacher = self.released(**inputs).logits.flatten(0, 1)
            student = model(**inputs).logits.flatten(0, 1)
            return dense_loss(student, teacher, temperature).mean() / self.parts  # padding included
        self.real = labels != -100
        student = model(**inputs).logits  # (real target tokens, V), or of an encoder (B, C)
        student = student[self.real] if student.ndim > 2 else student  # compiled: (B, T, V)
        if soft["ids"] is None:
            loss = dense_loss(student, soft["teacher"], temperature).sum()
        else:
            ids = soft["ids"].long()
            loss = TopLoss.apply(student, soft["teacher"], ids, soft["rest"], temperature).sum()
        return loss / (self.real.sum() if count is None else count)


# --- the teacher pass ------------------------------------------------------------------------


def capture(logits, key):
    """What LABELS keeps of logits (B, V), see the docstring, and the mass outside the k (B, t)."""
    top_k, temperatures = key["top_k"], key["temperatures"]
    if not top_k:
        return {"logits": logits, "outside": logits.new_zeros(len(logits), len(temperatures))}
    top, first = logits.topk(top_k), logits.amax(1, keepdim=True)
    others = (logits - first).scatter(1, top.indices, float("-inf"))
    near = (top.values - first).clamp(min=-6e4)  # within fp16
    rest = torch.stack([(others / t).logsumexp(1) for t in temperatures], 1)
    mass = torch.sigmoid(rest - torch.stack([(near / t).logsumexp(1) for t in temperatures], 1))
    return {"ids": top.indices.int(), "logits": near.half(), "rest": rest, "outside": mass}


@torch.inference_mode()
def decode(model, batch, key):
    """Greedy targets of source ids with the distribution at every step, from one incremental pass.

    Returns for each row a dict of `labels` (T), what capture() keeps of each token (T, ...),
    `outside` summed over them, and `cut_target`. Rows that have ended leave the batch, a quarter or
    more at a time. All that is kept stays on the device until the last has ended.
    """
    config, limit = model.config, key["max_target_length"]
    inputs = pad_rows(batch, -1).to(model.device)
    mask, inputs = (inputs >= 0).long(), inputs.clamp(min=0)
    encoded = model.encoder(input_ids=inputs, attention_mask=mask)
    last = torch.full_like(inputs[:, :1], config.decoder_start_token_id)
    rows, alive = np.arange(len(batch)), np.ones(len(batch), bool)
    steps, owners, cache = [], [], None
    while alive.any() and len(steps) < limit:
        inputs = {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": last}
        output = model(**inputs, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        last = logits.argmax(-1, keepdim=True)
        steps.append({"labels": last[:, 0].int(), **capture(logits, key)})
        owners.append(np.where(alive, rows, -1))
        alive = alive & (last[:, 0] != config.eos_token_id).cpu().numpy()
        if 0 < alive.sum() <= 0.75 * len(rows):
            keep = torch.from_numpy(np.flatnonzero(alive)).to(model.device)
            cache.batch_select_indices(keep)
            encoded.last_hidden_state = encoded.last_hidden_state[keep]
            mask, last, rows, alive = mask[keep], last[keep], rows[alive], alive[alive]
    owners = np.concatenate(owners)
    order = np.argsort(owners, kind="stable")[(owners < 0).sum() :]  # by row, then by step
    picked = torch.from_numpy(order).to(model.device)
    ends = np.bincount(owners[order]).cumsum()[:-1]
    kept = {n: torch.cat([step[n] for step in steps])[picked].cpu().numpy() for n in steps[0]}
    found = zip(*(np.split(values, ends) for values in kept.values()), strict=True)
    found = [dict(zip(kept, values, strict=True)) for values in found]
    for row in found:
        row["outside"] = row["outside"].sum(0)
        row["cut_target"] = bool(row["labels"][-1] != config.eos_token_id)
    return found


@torch.inference_mode()
def score_classes(model, batch, key):
    """For each row `logprobs` (C): log p(class | source), the tokens of each class name forced on
    the decoder and their log-probabilities added, normalised over the classes."""
    inputs = pad_rows(batch, -1).to(model.device)
    mask, scores = (inputs >= 0).long(), []
    encoded = model.encoder(input_ids=inputs.clamp(min=0), attention_mask=mask)
    for ids in key["class_ids"]:
        labels = torch.tensor([ids], device=model.device).expand(len(batch), -1)
        shifted = model.prepare_decoder_input_ids_from_labels(labels)
        inputs = {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": shifted}
        logs = model(**inputs).logits.float().log_softmax(-1)
        scores.append(logs.gather(-1, labels[..., None]).sum((1, 2)))
    scores = torch.stack(scores, 1).log_softmax(1).cpu().numpy()
    return [{"logprobs": row} for row in scores]


def pad_rows(rows, value, multiple=1):
    """Rows of ids as one tensor (rows, longest), as wide as a multiple."""
    longest = max(map(len, rows))
    padded = np.full((len(rows), longest + -longest % multiple), value, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def make_labels(args, key, sources, missing):
    """The teacher pass over ranges of rows, shared among the processes.

    Greedy decoding can change with the batch, so a file always has the same ones: a continued
    pass, or one by several processes, writes the same labels.
    """
    begun = start = time.monotonic()
    state, (config, tokenizer) = PartialState(), load_parts(args.teacher)
    place = {"device_map": {"": state.device}} if state.device.type == "cuda" else {}
    model = load_model(args.teacher, config, **place, dtype=getattr(torch, key["dtype"]))
    size, done = key["batch_size"] or (256 if place else 64), 0
    total = sum(end - first for first, end in missing) / state.num_processes
    for first, end in missing[state.process_index :: state.num_processes]:
        rows, size = label_rows(model, tokenizer, sources[first:end], key, size)
        now, done = time.monotonic(), done + len(rows)
        facts = {"seconds": now - begun, "processes": state.num_processes, "batch_size": size}
        write_shard(args.labels, key, first, make_table(rows, key, tokenizer), **facts)
        begun, left = now, max(0, total - done) * (now - start) / done
        text = f"{done:,}/{total:,.0f} rows, {done / (now - start):.1f} a second, {left:.0f} s left"
        print(f"[labels] {text}", file=sys.stderr, flush=True)


def label_rows(model, tokenizer, texts, key, size):
    """(labels of some rows as make_table() takes them, how many were decoded at once).

    The longest come first: where memory does not suffice it ends at once, and the batch is halved.
    """
    whole = tokenizer([key["prefix"] + text for text in texts]).input_ids
    ids, answers = cut_rows(whole, key["max_source_length"]), {}
    order = sorted(range(len(texts)), key=lambda i: -len(whole[i]))
    answer = score_classes if key["classes"] else decode
    while len(answers) < len(texts):
        try:
            for i in range(0, len(order), size):
                batch = order[i : i + size]
                answers.update(zip(batch, answer(model, [ids[j] for j in batch], key), strict=True))
        except torch.OutOfMemoryError:
            if size == 1:
                raise
            size, answers = size // 2, {}  # a file is made at one size, which it tells
            print(f"[labels] out of memory: now {size} rows at once", file=sys.stderr, flush=True)
        torch.cuda.empty_cache()
    scores = [row.get("logits", row.get("logprobs")) for row in answers.values()]
    if not all(np.isfinite(values).all() for values in scores):
        fail("the teacher's logits are not finite: are its weights whole, its dtype bf16 or fp32?")
    rows = zip(texts, ids, whole, strict=True)
    rows = [{"source": t, "input_ids": a, "cut_source": len(a) < len(b)} for t, a, b in rows]
    return [{**row, **answers[i]} for i, row in enumerate(rows)], size


# --- the student -----------------------------------------------------------------------------


class Collator:
    """Batches: padded ids, and the soft labels of all real target tokens one after another."""

    def __init__(self, model, key, temperature, pad_to=1):
        self.model, self.pad_to = model, pad_to
        self.column = key["temperatures"].index(temperature) if key["top_k"] else None

    def __call__(self, rows):
        inputs = pad_rows([row["input_ids"] for row in rows], -1, self.pad_to)
        labels = pad_rows([row["labels"] for row in rows], -100, self.pad_to)
        soft = {"teacher": self.join(rows, "logits").float()}
        if self.column is not None:
            soft |= {"ids": self.join(rows, "ids")}
            soft["rest"] = self.join(rows, "rest")[:, self.column].clone()
        return {
            "input_ids": inputs.clamp(min=self.model.config.pad_token_id),
            "attention_mask": (inputs >= 0).long(),
            "decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(labels),
            "labels": labels,
            **soft,
        }

    def join(self, rows, name):
        return torch.from_numpy(np.concatenate([row[name] for row in rows]))


def check_student(args, key):
    """Refuse what can't be distilled; returns the student's configuration and tokenizer."""
    name, classes, length = args.student, key["classes"], args.max_source_length
    config, tokenizer = load_parts(name, args.dropout)
    if classes and config.is_encoder_decoder:
        fail(f"{args.labels} holds scores of classes, for an encoder; {name} needs no --classes")
    if classes and length > (longest := getattr(config, "max_position_embeddings", length)):
        fail(f"--max-source-length {length}: {name} reads {longest} tokens")
    if not classes and not config.is_encoder_decoder:
        fail(f"{name}: an encoder only tells classes; name them by --classes for the teacher")
    if not classes and hash_json(tokenizer.get_vocab()) != key["vocabulary"]:
        fail(f"{name} and the teacher differ in vocabulary; soft labels need the same one")
    if not classes and config.vocab_size < key["vocabulary_size"]:
        fail(f"{name} has fewer output ids than the teacher ({key['vocabulary_size']:,})")
    if key["top_k"] and args.temperature not in key["temperatures"]:
        known = " and ".join(map(str, key["temperatures"]))
        fail(f"{args.labels}: kept for temperatures {known}, not {args.temperature}")
    if args.loss == "paper" and not args.teacher:
        fail("--loss paper runs the teacher in every step: give its model folder as --teacher")
    return config, tokenizer


def load_student(args, config, tokenizer, labels, seed):
    """(model, rows, collator): a T5, or an encoder with a new head."""
    classes = labels.key["classes"]
    torch.manual_seed(seed)  # draws the head
    model = load_model(args.student, config, classes)
    if not classes:
        return model, labels, Collator(model, labels.key, args.temperature, args.pad_to)
    ids = cut_rows(tokenizer(labels.read("source")).input_ids, args.max_source_length)
    scores, best = labels.read("logprobs"), map(classes.index, labels.read("target"))
    rows = zip(ids, scores, best, strict=True)
    rows = [{"input_ids": row, "teacher": soft, "labels": [hard]} for row, soft, hard in rows]
    collate = transformers.DataCollatorWithPadding(tokenizer, pad_to_multiple_of=args.pad_to)
    return model, rows, collate


def show_outside(args, key, facts):
    """Say how much of the teacher's mass the kept ids leave out: after a pass alone, and before
    training where it is much."""
    mass = facts.get("residual", {}) if key["top_k"] else {}
    if mass and (args.labels_only or mass[args.temperature] > 0.1):
        text = ", ".join(f"{value:.2%} at T = {t:g}" for t, value in mass.items())
        text = f"teacher's mass outside the top {key['top_k']}: {text}"
        say(f"[labels] {text} (--top-k keeps more)")


def distill(args, training):
    """Both halves, or the teacher pass alone."""
    sources = draw_sources(args, training.seed) if args.teacher else []
    manifest = open_labels(args, training)
    key = manifest["key"]
    if args.labels_only:
        return show_outside(args, key, prepare_labels(args, key, sources).summarise())
    config, tokenizer = check_student(args, key)
    about = {**vars(args), "labels": args.classes, "prefix": "" if args.classes else args.prefix}
    about = argparse.Namespace(**about)  # what evaluate.py needs to know of the student
    data = args.unlabeled or args.labels / "labels.json"
    settings = open_run(about, training, data, args.student, labels_key=key)
    if not settings:
        return
    labels = prepare_labels(args, key, sources)
    facts = labels.summarise()
    show_outside(args, key, facts)
    start, released = time.monotonic(), None
    model, rows, collator = load_student(args, config, tokenizer, labels, training.seed)
    if args.loss == "paper":
        released = load_model(args.teacher, load_parts(args.teacher)[0])
        released = released.to(training.device)
    trainer = Trainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=collator,
        compute_loss_func=SoftLoss(model, args, training, released),
    )
    behind = (manifest.get("training") or {}).get("labels")  # the teacher
    record = {"script": "distill.py", "labels": behind, "unlabeled": len(labels)}
    record |= {**facts, "teacher": manifest}
    record = fit(trainer, args, settings, record, start)
    record["seconds"]["teacher_pass"] = labels.seconds
    save_run(trainer, tokenizer, about, record)


# --- labels on disk --------------------------------------------------------------------------


def hash_json(value):
    """One hash of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def open_manifest(folder, begin=None):
    """labels.json as it was written: its checksum covers all it says, so an edit is refused.

    Where there is none, `begin()` gives what to write there. Its `key` is all that a label depends
    on.
    """
    path = folder / "labels.json"
    if begin and not path.exists():
        theirs = {path.name for path in folder.glob("[!.]*") if path.suffix != ".arrow"}
        if theirs := sorted(theirs - {"state.json", "dataset_info.json"}):
            fail(f"{folder}: holds {theirs[0]}, so it is no folder of labels; choose another")
        manifest = json.loads(json.dumps(begin()))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {**manifest, "sha256": hash_json(manifest)})
    if not path.exists():
        fail(f"{folder}: no labels.json; make labels with --teacher MODEL")
    manifest = read_json(path)
    whole, key = manifest.pop("sha256", None) == hash_json(manifest), manifest.get("key")
    if not (whole and isinstance(key, dict) and key.keys() >= KEY):
        fault = "edited, damaged or of an older version, by its checksum"
        fail(f"{path}: {fault}; remove {folder} and run the teacher pass again")
    return manifest


KEY = {"prefix", "max_source_length", "max_target_length", "classes", "top_k", "unlabeled"}
KEY |= {"vocabulary", "vocabulary_size", "temperatures"}  # of any labels, also of imported ones
PER_TOKEN = "labels", "ids", "logits", "rest"
PER_ROW = "source", "target", "input_ids", "logprobs", "outside", "cut_source", "cut_target"


def make_table(rows, key, tokenizer):
    """The Arrow table of rows of labels: dicts of what PER_TOKEN and PER_ROW name, as arrays
    (T, ...) and (...), but for the target's text."""
    import pyarrow as pa  # not at the top: in memory, labels can be used without it

    columns = {name: [row[name] for row in rows] for name in rows[0]}
    if key["classes"]:
        columns["target"] = [key["classes"][scores.argmax()] for scores in columns["logprobs"]]
    else:
        columns["target"] = tokenizer.batch_decode(columns["labels"], skip_special_tokens=True)

    def pack(values):
        flat = pa.array(values.ravel().astype(np.int32) if values.dtype == int else values.ravel())
        wide = values.ndim > 1
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if wide else flat

    for name in columns.keys() & {"input_ids", *PER_TOKEN}:
        ends = pa.array(np.cumsum([0, *map(len, columns[name])]), pa.int32())
        columns[name] = pa.ListArray.from_arrays(ends, pack(np.concatenate(columns[name])))
    for name in columns.keys() & {"logprobs", "outside"}:
        columns[name] = pack(np.stack(columns[name]))
    return pa.table({name: columns[name] for name in (*PER_ROW, *PER_TOKEN) if name in columns})


def write_shard(folder, key, start, table, **facts):
    """Write the labels of the rows from `start` on; they appear whole or not at all."""
    import pyarrow as pa

    facts = json.dumps({"key": hash_json(key), "start": start, **facts})
    table = table.replace_schema_metadata({"facts": facts})
    new = folder / f".{start:09}.{os.getpid()}.new"
    with pa.ipc.new_stream(str(new), table.schema) as writer:
        writer.write_table(table)
    name = f"{start:09}-{start + len(table):09}-{hash_file(new)[:16]}.arrow"
    os.replace(new, folder / name)
    for path in folder.glob(f".{start:09}.*.new"):
        path.unlink(missing_ok=True)  # of a killed pass


def read_facts(table):
    """What write_shard() said of a table."""
    return json.loads(table.schema.metadata[b"facts"])


def open_shards(folder, key):
    """({first row: table}, damaged files): the Arrow files of a folder, each byte of them checked,
    and that each stands in its place and no row in two.

    The tables are mapped from disk and stay open; they take no memory of their own.
    """
    import pyarrow as pa

    tables, damaged, done = {}, [], 0
    for path in sorted(folder.glob("*.arrow")):
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            start, _, digest = path.stem.split("-")
            if digest == hash_file(path)[:16]:
                with pa.memory_map(str(path)) as file:
                    table = pa.ipc.open_stream(file).read_all()
                facts, start = read_facts(table), int(start)
                place = facts.get("start", start)  # which older files do not say
                if facts["key"] == hash_json(key) and place == start >= done:
                    tables[start], done = table, start + len(table)
                    continue
        damaged.append(path)
    return tables, damaged


def find_missing(tables, count):
    """[(start, end)] of the rows below `count` without labels, cut at multiples of SHARD_ROWS."""
    done = [(start, start + len(table)) for start, table in tables.items()]
    cuts = sorted({count, *range(0, count, SHARD_ROWS), *(row for pair in done for row in pair)})
    pairs = [(row, end) for row, end in itertools.pairwise(cuts) if end <= count]
    return [pair for pair in pairs if not any(first <= pair[0] < last for first, last in done)]


def write_index(folder):
    """The two files that let datasets.load_from_disk() open a folder of labels."""
    names = sorted(path.name for path in folder.glob("*.arrow"))
    index = dict.fromkeys(("_format_columns", "_format_type", "_split"))
    index |= {"_data_files": [{"filename": name} for name in names], "_format_kwargs": {}}
    index |= {"_fingerprint": hash_json(names)[:16], "_output_all_columns": False}
    write_json(folder / "state.json", index)
    write_json(folder / "dataset_info.json", {})


class Labels(list):
    """The first `count` rows of a folder of labels, each a dict of the arrays that a T5 learns
    from, views of the mapped files. `seconds`: the teacher pass's share for these rows."""

    def __init__(self, tables, count, key):
        self.key, self.tables, self.seconds = key, [], 0.0
        for start, whole in tables.items():
            if start < count:
                table, facts = whole.slice(0, count - start), read_facts(whole)
                self.seconds += facts["seconds"] / facts["processes"] * len(table) / len(whole)
                self.tables.append(table)
                names = [n for n in ("input_ids", *PER_TOKEN) if n in table.column_names]
                rows = zip(*(view_lists(table.column(n)) for n in names), strict=True)
                self.extend(dict(zip(names, row, strict=True)) for row in rows)

    def read(self, name):
        """All values of a column, as Python has them."""
        return [value for table in self.tables for value in table.column(name).to_pylist()]

    def summarise(self):
        """What training.json says of the rows. `residual`: the mean mass outside the top k by T."""
        cut = {"truncated_sources": sum(self.read("cut_source"))}
        if self.key["classes"]:
            return cut
        tokens = sum(len(row["labels"]) for row in self)
        mass = np.sum(self.read("outside"), 0) / tokens
        residual = dict(zip(self.key["temperatures"], mass.tolist(), strict=True))
        cut["truncated_targets"] = sum(self.read("cut_target"))
        return {**cut, "tokens": tokens, "residual": residual}


def view_lists(column):
    """The rows of a column of lists as arrays (n) or (n, width), views without a copy."""
    lists = column.chunk(0)
    width = getattr(lists.values.type, "list_size", None)
    values = lists.values.values.to_numpy().reshape(-1, width) if width else lists.values.to_numpy()
    return [values[start:end] for start, end in itertools.pairwise(lists.offsets.to_numpy())]


def describe_labels(args, training):
    """All that a label depends on, the `key` of labels.json; without a teacher what the flags say
    of it, None where they say nothing."""
    names = ("prefix", "max_source_length", "max_target_length", "classes", "top_k")
    key = {name: getattr(args, name) for name in names}
    key["unlabeled"] = args.unlabeled and hash_file(args.unlabeled)
    if not args.teacher:
        return key
    config, tokenizer = load_parts(args.teacher)
    ids, limit = [tokenizer(name).input_ids for name in args.classes or ()], args.max_target_length
    top_k = 0 if args.classes else 64 if args.top_k is None else args.top_k
    if not config.is_encoder_decoder:
        fail(f"--teacher {args.teacher}: a {config.model_type}; the teacher is a T5")
    if top_k >= config.vocab_size:
        fail(f"--top-k {top_k}: the vocabulary has {config.vocab_size:,} ids; 0 keeps all of them")
    if len(set(map(tuple, ids))) < len(ids):
        fail(f"--classes: two of them are the same tokens to {args.teacher}; rename them")
    if (longest := max(map(len, ids), default=0)) > limit:
        fail(f"--max-target-length {limit}: a class name takes {longest} tokens")
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    temperatures = () if args.classes else {*args.temperatures, args.temperature}
    return {
        **key,
        "teacher": hash_model(args.teacher),
        "vocabulary": hash_json(tokenizer.get_vocab()),
        "vocabulary_size": config.vocab_size,
        "seed": training.seed,
        "dtype": args.teacher_dtype or ("bfloat16" if bf16 else "float32"),
        "batch_size": args.teacher_batch_size,
        "class_ids": ids,
        "top_k": top_k,
        "temperatures": sorted(temperatures),
    }


def open_labels(args, training):
    """labels.json of args.labels, begun if new; refused if made from anything else than asked."""
    wanted = describe_labels(args, training)

    def begin():
        record = read_json(Path(args.teacher).parent / "training.json")
        about = {"model": args.teacher, "training": record or None}
        return {"key": wanted, **about, **describe_run(training)}

    with PartialState().main_process_first():  # begins the folder, the others read it
        manifest = open_manifest(args.labels, begin if args.teacher else None)
    key = manifest["key"]
    asked = {name for name, value in wanted.items() if args.teacher or value is not None}
    changed = sorted(name for name in asked if key.get(name) != wanted[name])
    if "unlabeled" in changed:
        fail(f"{args.labels}: labels of other rows than {args.unlabeled} now has; remove it")
    if changed:
        changes = ", ".join(f"{name} {key.get(name)!r} -> {wanted[name]!r}" for name in changed)
        fail(f"{args.labels} holds other labels ({changes}); choose another --labels")
    return manifest


def draw_sources(args, seed):
    """The first rows of a seeded permutation, so that fewer are the beginning of more."""
    texts = [row["source"] for row in read_rows(args.unlabeled, "source")]
    count = args.num_unlabeled or len(texts)
    if count > len(texts):
        fail(f"{args.unlabeled}: {count:,} rows asked for, {len(texts):,} are there")
    return [texts[i] for i in np.random.RandomState(seed).permutation(len(texts))[:count]]


def prepare_labels(args, key, sources):
    """The Labels asked for, after the teacher pass over those that are missing or damaged."""
    folder, state = args.labels, PartialState()
    tables, damaged = open_shards(folder, key)
    names = str(read_json(folder / "state.json"))  # of all files when a pass had ended
    ends = map(int, re.findall(r"\d{9}-(\d{9})-", names))
    count = len(sources) or args.num_unlabeled or max(ends, default=0)
    missing = find_missing(tables, count)
    state.wait_for_everyone()  # all have seen the same rows missing
    for path in damaged if state.is_main_process else ():
        say(f"[labels] {path} is damaged")
        if args.teacher:
            path.unlink(missing_ok=True)
    if missing and args.teacher:
        make_labels(args, key, sources, missing)
        gc.collect()  # the teacher is gone before the student comes
        torch.cuda.empty_cache()
        state.wait_for_everyone()
        tables, _ = open_shards(folder, key)
        missing = find_missing(tables, count)
    if missing or not count:
        rows = f"{sum(end - start for start, end in missing):,}" if count else "some"
        fail(f"{folder}: {rows} of the rows have no labels; run the teacher pass")
    if args.teacher and state.is_main_process:
        write_index(folder)
    return Labels(tables, count, key)


def main(argv=None):
    args, rest = parse_args(argv)
    training = read_training(args, rest)
    with run_folder(args.output or args.labels):
        distill(args, training)


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
