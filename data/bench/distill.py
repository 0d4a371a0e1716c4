"""Time distillation, and measure what its shortcuts cost: what `make bench` runs.

Usage:
    python -m data.bench.distill              # speed: about 4 minutes on one core
    python -m data.bench.distill --times 145  # the paper's ratio of sizes: 8 minutes
    python -m data.bench.distill --exactness | --losses   # 15 minutes, 10

Reads:  data/world/models (make mini-models) and data/prepared/mini/wlp (make table2, or
        data/world/lab.py); the teacher is fine-tuned first, once, as Table 2's with N = 100.
Writes: stdout: tables. OUTPUT: models, labels and runs; OUTPUT/<mode>.json: every measurement.
Paper:  Table 2's GPU hours of distillation; the released training code's loop.

Speed (the default): one run each of (a) the loop of the released code, (b) distill.py, (c) plain
fine-tuning of the same student on the same rows (train_small.py), (d) the student half of (b) as a
plain loop without the Trainer; for the same epochs, batches, threads and fp32, repeated in turn, so
that each ratio is of neighbours in time. (a) has no Trainer either: targets decoded once, then in
every step of every epoch the teacher again, T^2 KL over the whole vocabulary, averaged over padding
too, rows in random order. The teacher is the mini teacher made larger by feed-forward units that
add exactly nothing: its outputs stay those of a real teacher, its cost is that of its size.
`taskset -c 0 python -m data.bench.distill` keeps to one core, which steadies the times.
"""

import argparse
import contextlib
import math
import random
import shlex
import shutil
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

import distill
from data.bench.sweep import call
from data.costs.flags import make_flags, show_flags
from data.costs.prices import show_columns
from data.files import ROOT, UserError, make_parser, read_json, run_cli, show_rows, write_atomic
from data.tasks import load_task

LENGTHS = ["--prefix", "wlp: ", "--max-source-length", "64", "--max-target-length", "64"]
RUNS = {
    "a": "(a) the released loop",
    "b": "(b) distill.py",
    "c": "(c) plain fine-tuning",
    "d": "(d) student half, no Trainer",
}
RATIOS = {  # of runs and phases
    "(a) / (b)": ("a", "whole", "b", "whole"),
    "student half of (b) / (c)": ("b", "student", "c", "student"),
    "a step of (b) / (c)": ("b", "train", "c", "train"),
    "a step of (b) / (d)": ("b", "train", "d", "train"),
}


def read_recipe(strategy):
    """Table 2's settings at mini scale for "teacher" or "dist", as command-line words."""
    return shlex.split(show_flags(make_flags(load_task("wlp"), "mini", strategy)))


def say(text):
    print(f"[bench] {text}", file=sys.stderr, flush=True)


def load(folder):
    """A T5 folder in fp32."""
    return distill.load_model(str(folder), distill.load_parts(str(folder))[0])


def make_teacher(args):
    """The mini teacher fine-tuned on labeled rows, kept for the next time. Returns its folder."""
    output = args.output / f"teacher-n{args.labels}"
    say(f"fine-tuning the teacher: {output}")
    flags = [*read_recipe("teacher"), "--model", args.models / "teacher"]
    flags += ["--num-labels", args.labels]
    flags += ["--max-steps", args.teacher_steps] if args.teacher_steps else []
    call("train_teacher", *flags, "--train", args.data / "train.jsonl", "--output", output)
    return output / "model"


def enlarge(folder, parameters, output):
    """Save the model with as many more feed-forward units, adding nothing, as make `parameters`."""
    small = load(folder)
    config = small.config
    layers = config.num_layers + config.num_decoder_layers
    missing = max(0, parameters - small.num_parameters())
    config.d_ff += math.ceil(missing / (3 * config.d_model * layers))
    torch.manual_seed(0)
    large = type(small)(config)
    for name, new in large.state_dict().items():
        old = small.state_dict()[name]
        if name.endswith("wo.weight"):
            new.zero_()
        new[tuple(slice(size) for size in old.shape)] = old
    shutil.rmtree(output, ignore_errors=True)
    large.save_pretrained(output)
    distill.load_parts(str(folder))[1].save_pretrained(output)
    return large.num_parameters()


# --- speed ------------------------------------------------------------------------------------


class Clock:
    """Seconds by phase, which ends what runs on the device, if any, before it reads the time."""

    def __init__(self):
        self.seconds = defaultdict(float)

    @contextlib.contextmanager
    def phase(self, name):
        start = self.read()
        yield
        self.seconds[name] += self.read() - start

    def read(self):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def run_released(args, teacher_folder, rows, clock):
    """(a): the released loop. `rows` are texts. Returns the source and target ids it trained on."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _, tokenizer = distill.load_parts(str(args.models / "student"))
    teacher = load(teacher_folder).to(device).eval()
    student = load(args.models / "student").to(device).train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate, fused=True)
    cached = decode_once(args, teacher, tokenizer, rows)
    for epoch in range(args.epochs):
        random.Random(epoch).shuffle(cached)
        for i in range(0, len(cached), args.batch_size):
            sources, targets = zip(*cached[i : i + args.batch_size], strict=True)
            ids = distill.pad_rows(sources, -1).to(device)
            labels = distill.pad_rows(targets, -100).to(device)
            batch = {"input_ids": ids.clamp(min=0), "attention_mask": (ids >= 0).long()}
            batch["decoder_input_ids"] = student.prepare_decoder_input_ids_from_labels(labels)
            with clock.phase("teacher, every step"), torch.no_grad():
                target = (teacher(**batch).logits / 2).softmax(-1)
            with clock.phase("student"):
                output = (student(**batch).logits / 2).log_softmax(-1)
                loss = torch.nn.functional.kl_div(output, target, reduction="none")
                optimizer.zero_grad()
                (4 * loss.sum(-1).mean()).backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
    return cached


def decode_once(args, teacher, tokenizer, rows):
    """The ids of each row and of its greedy target, by generate()."""
    cached, flags = [], {"padding": True, "truncation": True, "max_length": 64}
    for i in range(0, len(rows), args.batch_size):
        texts = [LENGTHS[1] + row for row in rows[i : i + args.batch_size]]
        inputs = tokenizer(texts, **flags, return_tensors="pt").to(teacher.device)
        ids = teacher.generate(**inputs, max_new_tokens=64, do_sample=False, num_beams=1)[:, 1:]
        for pair in zip(inputs.input_ids, ids, strict=True):
            cached.append(tuple(row[row > 0].tolist() for row in pair))  # 0 is padding
    return cached


def run_ours(args, teacher_folder, unlabeled, clock):
    """(b): both halves of distill.py."""
    labels = args.output / "labels"
    shutil.rmtree(labels, ignore_errors=True)
    common = ["--unlabeled", unlabeled, "--teacher-dtype", "float32"]
    teacher = ["--teacher", teacher_folder, "--labels", labels, "--labels-only", "--no-bf16"]
    with clock.phase("teacher, once"):
        call("distill", *teacher, *common, *LENGTHS)
    student = ["--teacher", labels, "--student", args.models / "student"]
    train(args, "distill", args.output / "ours", clock, *student, *common)


def train(args, script, output, clock, *flags):
    """Train anew by a script, from its start to its end and, as it records it, the steps alone."""
    shutil.rmtree(output, ignore_errors=True)
    flags += ("--epochs", args.epochs, "--batch-size", args.batch_size, "--save-steps", 0)
    flags += ("--learning-rate", args.learning_rate, "--no-bf16", *LENGTHS, "--output", output)
    with clock.phase("student"):
        call(script, *flags)
    clock.seconds["train"] = read_json(output / "training.json")["seconds"]["train"]


def run_loop(args, clock):
    """(d): the student half of (b) on its labels, without the Trainer."""
    labels, student = open_labels(args.output / "labels"), load(args.models / "student").train()
    loss, collate = make_loss(student, 2.0), distill.Collator(student, labels.key, 2.0)
    optimizer = torch.optim.AdamW(student.parameters(), lr=args.learning_rate, fused=True)
    lengths = [len(row["input_ids"]) + len(row["labels"]) for row in labels]
    sampler = distill.LengthGroupedSampler(lengths, args.batch_size, 0)
    with clock.phase("train"):
        for epoch in range(args.epochs):
            sampler.set_epoch(epoch)
            order = list(sampler)
            for i in range(0, len(order), args.batch_size):
                batch = collate([labels[j] for j in order[i : i + args.batch_size]])
                loss(student, batch).backward()
                torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()


def make_loss(student, temperature):
    """distill.py's loss of a step of one batch, by one process."""
    settings = argparse.Namespace(temperature=temperature)
    alone = argparse.Namespace(world_size=1, gradient_accumulation_steps=1)
    return distill.SoftLoss(student, settings, alone)


def measure_speed(args):
    teacher, unlabeled = make_teacher(args), args.output / "rows.jsonl"
    rows = distill.read_rows(args.data / "unlabeled.jsonl", "source")[: args.rows]
    write_atomic(unlabeled, show_rows(rows))
    rows = [row["source"] for row in rows]
    size = load(args.models / "student").num_parameters()
    results = []
    for times in args.times:
        folder = args.output / f"teacher-{times}x"
        parameters = enlarge(teacher, times * size, folder)
        say(f"teacher of {parameters:,} parameters, {parameters / size:.1f} times the student's")
        once = argparse.Namespace(**{**vars(args), "epochs": 1})
        run_all(once, folder, rows, unlabeled)  # what is loaded or compiled only once
        runs = []
        for repeat in range(args.repeats):
            runs.append(run_all(args, folder, rows, unlabeled))
            seconds = [f"({name}) {run['whole']:.1f} s" for name, run in runs[-1].items()]
            say(f"repeat {repeat + 1}: {', '.join(seconds)}")
        about = {"teacher": parameters, "student": size, "times": parameters / size}
        results.append({**about, "rows": len(rows), "runs": runs})
    show_speed(args, results)
    return results


def run_all(args, teacher, rows, unlabeled):
    """One run each of (a) to (d). Returns the seconds of each by phase."""
    clocks = {name: Clock() for name in "abcd"}
    with clocks["a"].phase("whole"):
        run_released(args, teacher, rows, clocks["a"])
    with clocks["b"].phase("whole"):
        run_ours(args, teacher, unlabeled, clocks["b"])
    files = ["--model", args.models / "student", "--train", write_plain(args)]
    with clocks["c"].phase("whole"):
        train(args, "train_small", args.output / "plain", clocks["c"], *files)
    with clocks["d"].phase("whole"):
        run_loop(args, clocks["d"])
    return {name: dict(clock.seconds) for name, clock in clocks.items()}


def write_plain(args):
    """A file of the rows with the teacher's targets as text."""
    path, labels = args.output / "plain.jsonl", open_labels(args.output / "labels")
    pairs = zip(labels.read("source"), labels.read("target"), strict=True)
    write_atomic(path, show_rows({"source": s, "target": t or "nothing"} for s, t in pairs))
    return path


def open_labels(folder, count=10**9):
    """The first rows of a folder of labels."""
    key = distill.open_manifest(folder)["key"]
    return distill.Labels(distill.open_shards(folder, key)[0], count, key)


def show_speed(args, results):
    """Seconds of each run and phase, and their ratios, for each size of the teacher."""
    print(
        f"{results[0]['rows']:,} rows, {args.epochs} epochs, batches of {args.batch_size}, "
        f"{torch.get_num_threads()} thread(s), fp32; {args.repeats} repeats\n"
    )
    for result in results:
        runs, times = result["runs"], f"{result['times']:.0f} times the student's"
        values = {}
        for letter, name in RUNS.items():
            values[f"{name}, s"] = [run[letter]["whole"] for run in runs]
            for phase in [*runs[0][letter]][:-1]:  # the whole ends last
                values[f"    {letter}: {phase}"] = [run[letter][phase] for run in runs]
        for name, (one, phase, other, its) in RATIOS.items():
            values[name] = [run[one][phase] / run[other][its] for run in runs]
        found = {name: np.quantile(each, [0.5, 0, 1]) for name, each in values.items()}
        rows = [[name, *(f"{value:.2f}" for value in each)] for name, each in found.items()]
        head = f"a teacher of {result['teacher']:,} parameters, {times} {result['student']:,}"
        print(show_columns([head, "median", "least", "most"], rows), end="\n\n")
    print("(a) / (b) is at most 1 + teacher forward / student step, about 1 + times / 3.")


# --- exactness --------------------------------------------------------------------------------


def measure_exactness(args):
    """k = 8, 32, 64 and all against the teacher itself in float64: loss, gradient, dev score."""
    teacher, results = make_teacher(args), []
    folders = {k: label_rows(args, teacher, k) for k in (8, 32, 64, 0)}
    for temperature in args.temperatures:
        exact = differentiate(args, teacher, folders[0][0], temperature, live=True)
        for k, labels in folders.items():
            loss, gradient, mass = differentiate(args, teacher, labels[0], temperature)
            error = torch.linalg.vector_norm(gradient - exact[1])
            error = (error / torch.linalg.vector_norm(exact[1])).item()
            cosine = torch.cosine_similarity(gradient, exact[1], 0).item()
            result = {"k": k, "temperature": temperature, "mass_outside": mass, "loss": loss}
            result |= {"dense_loss": exact[0], "gradient_error": error, "cosine": cosine}
            flags = ["--temperature", temperature, "--top-k", k]
            result |= train_students(args, f"k{k}-t{temperature:g}", teacher, labels, flags)
            results.append(result)
            say(f"T = {temperature:g}, k = {k or 'all'}: {result.get('scores')}")
    show_exactness(args, results)
    return results


def label_rows(args, teacher, k):
    """The teacher pass over the rows of each seed. Returns the folders of labels."""
    folders = [args.output / f"labels-k{k}-s{seed}" for seed in range(max(1, args.seeds))]
    rows = ["--unlabeled", args.data / "unlabeled.jsonl", "--num-unlabeled", args.unlabeled]
    for seed, folder in enumerate(folders):
        flags = ["--labels", folder, "--labels-only", "--top-k", k, "--seed", seed]
        call("distill", "--teacher", teacher, *flags, *rows, *LENGTHS)
    return folders


def show_exactness(args, results):
    print(
        f"{args.unlabeled:,} rows. Loss, gradient: the untrained student on {args.batch_size * 4} "
        "rows, against the teacher in float64."
    )
    if args.seeds:
        print(
            f"Score: dev, after {results[0]['steps']:,} steps, mean ± spread (each seed); "
            "difference: to k = all with the same seeds."
        )
    dense, rows = {r["temperature"]: r.get("scores") for r in results if not r["k"]}, []
    for r in results:
        error = f"{r['loss'] / r['dense_loss'] - 1:.1e}"
        row = [f"{r['temperature']:g}", r["k"] or "all", f"{r['mass_outside']:.3%}"]
        row += [f"{r['loss']:.4f}", error, f"{r['gradient_error']:.1e}", f"{r['cosine']:.6f}"]
        if args.seeds:
            difference = statistics.mean(r["scores"]) - statistics.mean(dense[r["temperature"]])
            row += [f"{difference:+.1f}", show_scores(r["scores"])]
        rows.append(row)
    heads = ["T", "k", "mass outside", "loss", "loss error", "gradient error", "cosine"]
    heads += ["difference", "score"] if args.seeds else []
    print("\n" + show_columns(heads, rows))


def differentiate(args, teacher, folder, temperature, live=False):
    """Loss and flat gradient of the student on some rows by distill.py; live: the reference."""
    labels, student = open_labels(folder), load(args.models / "student").double()
    collate = distill.Collator(student, labels.key, temperature)
    batch = collate([labels[i] for i in range(min(len(labels), args.batch_size * 4))])
    batch = {n: each.double() if each.is_floating_point() else each for n, each in batch.items()}
    mass = 0.0
    if "rest" in batch:
        soft = torch.cat([batch["teacher"] / temperature, batch["rest"][:, None]], 1)
        mass = soft.softmax(1)[:, -1].mean().item()
    if live:
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")}
        real = batch["labels"] != -100
        with torch.no_grad():
            p = (load(teacher).double()(**inputs).logits[real] / temperature).softmax(1)
        q = (student(**inputs).logits[real] / temperature).softmax(1)
        loss = temperature**2 * (p * (p.log() - q.log())).sum(1).mean()
    else:
        loss = make_loss(student, temperature)(student, batch)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in student.parameters()])
    return loss.item(), gradient, mass


def train_students(args, name, teacher, folders, flags):
    """{dev scores in percent, seconds of training, steps} of a student a seed, each on its seed's
    labels; {} without a seed."""
    found = {"scores": [], "seconds": []} if args.seeds else {}
    for seed in range(args.seeds):
        output = args.output / "students" / f"{name}-s{seed}"
        files = ["--teacher", teacher, "--labels", folders[seed], "--output", output]
        files += ["--student", args.models / "student"]
        rows = ["--unlabeled", args.data / "unlabeled.jsonl", "--num-unlabeled", args.unlabeled]
        steps = ["--max-steps", args.steps] if args.steps else []
        call("distill", *read_recipe("dist"), *files, *rows, *steps, "--seed", seed, *flags)
        if not (output / "metrics.json").exists():
            score = ["--model", output / "model", "--data", args.data / "dev.jsonl"]
            call("evaluate", "--task", "wlp", *score, "--output", output)
        record = read_json(output / "training.json")
        found["scores"].append(read_json(output / "metrics.json")["score"])
        found["seconds"].append(record["seconds"]["train"])
        found["steps"] = record["steps"]
    return found


def show_scores(scores):
    spread = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return f"{statistics.mean(scores):.1f}{spread} ({' '.join(f'{s:.1f}' for s in scores)})"


def measure_losses(args):
    """--loss paper and ours on the same teacher, rows, steps and seeds: dev score and seconds."""
    teacher, results, rows = make_teacher(args), [], []
    labels = label_rows(args, teacher, 64)
    for temperature in args.temperatures:
        for loss, name in (("paper", "paper"), ("kl", "k64")):  # k64: of --exactness, if there
            flags = ["--temperature", temperature, "--top-k", 64, "--loss", loss]
            found = train_students(args, f"{name}-t{temperature:g}", teacher, labels, flags)
            results.append({"loss": loss, "temperature": temperature, **found})
            seconds = f"{statistics.median(found['seconds']):.1f}"
            rows.append([loss, f"{temperature:g}", seconds, show_scores(found["scores"])])
            say(f"{loss}, T = {temperature:g}: {found['scores']}")
    print(f"{args.unlabeled:,} rows, {found['steps']:,} steps; mean ± spread (each seed)\n")
    print(show_columns(["loss", "T", "training s", "dev score"], rows))
    return results


MODES = {"speed": measure_speed, "exactness": measure_exactness, "losses": measure_losses}


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    for name in ("exactness", "losses"):
        text, store = MODES[name].__doc__.splitlines()[0], {"const": name, "default": "speed"}
        add(f"--{name}", dest="mode", action="store_const", help=text, **store)
    add("--models", type=Path, default=ROOT / "data/world/models", help="folder (%(default)s)")
    add("--data", type=Path, default=ROOT / "data/prepared/mini/wlp", help="folder (%(default)s)")
    add("--output", type=Path, default=ROOT / "runs/bench", help="folder (%(default)s)")
    times, rates = {"type": int, "default": [10, 20, 40]}, {"type": float, "default": [1.0, 2.0]}
    add("--times", nargs="+", help="teacher / student (%(default)s)", **times)
    add("--rows", type=int, default=64, help="unlabeled rows, speed (%(default)s)")
    add("--epochs", type=int, default=50, help="passes over them (%(default)s)")
    add("--repeats", type=int, default=3, help="of (a) to (d) (%(default)s)")
    add("--unlabeled", type=int, default=4200, help="rows, exactness and losses (%(default)s)")
    add("--steps", type=int, help="of their students (default: Table 2's)")
    add("--temperatures", nargs="+", help="T, exactness and losses (%(default)s)", **rates)
    add("--seeds", type=int, default=3, help="of their students; 0: no scores (%(default)s)")
    add("--labels", type=int, default=100, help="the teacher's (%(default)s)")
    add("--teacher-steps", type=int, help="of its fine-tuning (default: Table 2's)")
    add("--batch-size", type=int, default=32, help="rows, speed (%(default)s)")
    add("--learning-rate", type=float, default=3e-3, help="the students', speed (%(default)s)")
    add("--threads", type=int, default=1, help="of torch (%(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.seeds < (args.mode != "exactness"):
        raise UserError(f"--seeds {args.seeds}: at least one is needed")
    for path in (args.models / "teacher", args.models / "student", args.data / "unlabeled.jsonl"):
        if not path.exists():
            raise UserError(f"{path}: not there; run `make mini-models` and `make data`")
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(args.threads)
    results = MODES[args.mode](args)
    settings = {key: value for key, value in vars(args).items() if not isinstance(value, Path)}
    here = argparse.Namespace(device=torch.empty(0).device, world_size=1)
    machine = distill.describe_run(here)
    del machine["command"]  # of a module: where it lies, and the settings say the rest
    facts = {"settings": settings, "results": results, "machine": machine}
    distill.write_json(args.output / f"{args.mode}.json", facts)


if __name__ == "__main__":
    run_cli(main)
