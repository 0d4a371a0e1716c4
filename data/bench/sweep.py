"""Try learning rates and steps of one arm, scored on dev: what its recipe is chosen from.

Usage:
    make sweep TASK=wlp STRATEGY=small                 # at the N of Tables 2 and 11, and all labels
    make sweep TASK=mine DATA=remarks STRATEGY=dist RATES="1e-3 3e-3" STEPS="300 900"
    python -m data.bench.sweep --task wlp --strategy dist --labels 100 --unlabeled 1900 11100
    python -m data.bench.sweep --task wlp --strategy teacher --labels 100 --rates 1e-3 --steps 500
    python -m data.bench.sweep --task wlp --strategy small --double   # do the chosen steps suffice?
    python -m data.bench.sweep --task wlp --strategy small --double --seed 1

Reads:  the splits in data/prepared/SCALE/TASK, of a folder DATA SCALE-DATA/TASK; the recipe of
        SCALE, for all other settings; for dist and self the teacher of that recipe, trained first
Writes: OUTPUT, a CSV with a row a trial, which a second call continues; runs/sweep/SCALE/TASK

Every arm gets the same number of trials: all RATES x all STEPS, at each number of labels (and of
unlabeled rows), one seed. Test is never read. A choice at the edge of what was tried is told: widen
the grid there. --double tries what the recipe chose, at each run of Table 2 or those named, and
twice its steps: where that gains more than a point the chosen steps were too few. One process
trains and scores, as loading the libraries takes longer than a trial.
"""

import contextlib
import csv
import importlib
import itertools
import shlex
import shutil
import sys
from pathlib import Path

from data.costs.flags import make_flags, show_flags
from data.costs.grid import cells, grid
from data.costs.prices import fill
from data.costs.rules import SCRIPTS, count_steps
from data.costs.runs import make_run, parse_run
from data.costs.stale import find_change, read_words
from data.files import ROOT, UserError, make_parser, plural, read_csv, read_json, run_cli
from data.tasks import load_task

COLUMNS = (
    "scale task strategy labels unlabeled batch_size learning_rate steps seed score_dev metric "
    "train_loss seconds git_commit"
).split()
KEY = COLUMNS[:9]
DISTILLED = ("dist", "self")
TABLES = ("table2", "table11", "table3", "table4")


def call(script, *words):
    """Run a script of the bundle in this process; UserError where it ends with an error."""
    main = importlib.import_module(script).main
    try:
        with contextlib.redirect_stdout(sys.stderr):
            main([str(word) for word in words])
    except SystemExit as end:
        if end.code:
            raise UserError(f"{script}.py: {end.code}") from None


def read_recipe(args, run):
    """The recipe's flags of a run, {name: value}."""
    return make_flags(args.entry, args.scale, run=run, real_text=bool(args.data))


def list_flags(args, run, **changed):
    """The recipe's flags of a run as words, with some `changed`; None takes one away."""
    return shlex.split(show_flags({**read_recipe(args, run), **changed}))


def find_place(args, run):
    """The first values of a trial's CSV row: what no trial of the run changes."""
    batch = read_recipe(args, run)["batch-size"]
    return args.scale, args.task, run.strategy, run.labels, run.unlabeled, batch


def train(args, run, flags, inputs, output):
    """Train a run with these flags, unless `output` has it."""
    script = SCRIPTS.get(run.strategy, "train_small.py").removesuffix(".py")
    names = ["--task", args.task, "--strategy", run.strategy]
    call(script, *names, *flags, *inputs, "--output", output)


def find_inputs(args, run):
    """The flags that say what a run learns from; of a distilled one its teacher's labels, made."""
    if not run.needs:
        return ["--train", args.splits / "train.jsonl"]
    teacher = parse_run(run.needs[0])
    home, rows = args.runs / teacher.name, ["--unlabeled", args.splits / "unlabeled.jsonl"]
    train(args, teacher, list_flags(args, teacher), find_inputs(args, teacher), home)
    flags = list_flags(args, make_run("dist", run.labels, args.seed, unlabeled=args.most))
    files = ["--teacher", home / "model", *rows, "--labels", home / "labels"]
    call("distill", "--labels-only", *files, *flags)
    return [*rows, "--teacher", home / "labels"]


def make_trial(args, run, rate, steps):
    """(folder, flags) of a trial."""
    output = args.runs / f"{run.name}-b{find_place(args, run)[-1]}-r{rate:g}-x{steps}"
    tried = {"learning-rate": rate, "max-steps": steps, "epochs": None, "min-steps": None}
    return output, list_flags(args, run, **tried)


def check_trial(args, run, rate, steps):
    """Refuse a trial that data, recipe or model have left behind, where its folder is here."""
    made = [(run, *make_trial(args, run, rate, steps))]
    teachers = map(parse_run, run.needs)
    made += [(each, args.runs / each.name, list_flags(args, each)) for each in teachers]
    for each, folder, flags in made:
        data = args.splits / f"{'unlabeled' if each.needs else 'train'}.jsonl"
        if change := find_change(folder, read_words(flags), data):
            what = f"{change} since its trials of {run.name}"
            raise UserError(f"{args.output}: {what}; move it and {args.runs} away, or --output")


def try_recipe(args, run, inputs, rate, steps):
    """One trial: train and score on dev. Returns its CSV row."""
    output, flags = make_trial(args, run, rate, steps)
    train(args, run, flags, inputs, output)
    dev = ["--data", args.splits / "dev.jsonl", "--output", output]
    scorer = shlex.split(show_flags(args.entry.at(args.scale, "evaluate")))
    call("evaluate", "--task", args.entry.word, "--model", output / "model", *dev, *scorer)
    record, metrics = read_json(output / "training.json"), read_json(output / "metrics.json")
    values = [*find_place(args, run), rate, steps, args.seed, metrics["score"], metrics["metric"]]
    values += [record["train_loss"], record["seconds"]["train"], record["git_commit"]]
    return dict(zip(COLUMNS, values, strict=True))


def read_trials(path):
    """{trial: its row} of a CSV written before."""
    rows = read_csv(path, COLUMNS).values() if path.exists() else ()
    return {tuple(row[name] for name in KEY): row for row in rows}


def write_trial(path, row):
    rows = [row.values()] if path.exists() else [COLUMNS, row.values()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


def choose(rows):
    """The best trial of a cell: the highest score on dev, then the fewer steps, the lower rate."""
    return min(
        rows, key=lambda r: (-float(r["score_dev"]), int(r["steps"]), float(r["learning_rate"]))
    )


def tell_edges(best, args):
    """Which chosen values lie at the edge of those tried, as text."""
    edges = []
    for name, tried in (("learning_rate", args.rates), ("steps", args.steps)):
        low, high, value = min(tried), max(tried), float(best[name])
        if value == high or (value == low and name == "learning_rate"):
            edges.append(f"{name} {value:g} is the {'highest' if value == high else 'lowest'}")
    return f"; at the edge: {', '.join(edges)}" if edges else ""


def list_runs(args):
    """The runs whose recipe is chosen: those asked for, else of Tables 2, 11 and 4 each N and all
    labels, and of distilled students the fewest and the most rows at each N."""
    home = args.splits.parent
    if args.labels:
        counts = args.unlabeled if args.strategy in DISTILLED else [0]
        pairs = set(itertools.product(args.labels, counts))
    elif args.double:
        runs = grid("table2", args.entry, args.scale, prepared=home)
        pairs = {(run.labels, run.unlabeled) for run in runs if run.strategy == args.strategy}
    else:
        rows = {}
        laid = [cell for t in TABLES for cell in cells(t, args.entry, args.scale, prepared=home)]
        found = [(cell.labels, run) for cell in laid for run in cell.runs.get(args.strategy) or ()]
        most = max((run.labels for _, run in found), default=0)
        for n, run in found:
            if args.strategy in DISTILLED or run.labels in (n, most):
                rows.setdefault(run.labels, set()).add(run.unlabeled)
        pairs = {(n, pick(counts)) for n, counts in rows.items() for pick in (min, max)}
    return [make_run(args.strategy, n, args.seed, unlabeled=count) for n, count in sorted(pairs)]


def list_trials(args, run):
    """(learning rate, steps) of each trial of a run."""
    if not args.double:
        return list(dict.fromkeys(itertools.product(args.rates, args.steps)))
    flags = read_recipe(args, run)
    rate, steps = float(flags["learning-rate"]), count_steps(run, flags)
    return [(rate, steps), (rate, 2 * steps)]


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add, labels = parser.add_argument, "(default: each N of Tables 2 and 11, and all labels)"
    add("--task", required=True, help="a name in data/tasks.json, or of DATA/task.json")
    add("--data", default="", help="folder of real data (default: none)")
    add("--scale", default="mini", help="a name in data/scales.json (%(default)s)")
    add("--strategy", default="small", help="small, teacher, dist, self, bert (%(default)s)")
    add("--labels", type=int, nargs="+", help=labels)
    add("--unlabeled", type=int, nargs="+", help="with --labels, for dist and self: unlabeled rows")
    add("--rates", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3], help="peak learning rates")
    add("--steps", type=int, nargs="+", default=[900, 2700], help="optimiser steps")
    add("--double", action="store_true", help="the recipe's steps and twice as many, nothing else")
    add("--seed", type=int, default=0, help="order of labels, rows and batches (%(default)s)")
    more = "with --data runs/sweep/SCALE-DATA/TASK/sweep.csv"
    add("--output", type=Path, help=f"(default: data/results/sweep.csv, {more})")
    args = parser.parse_args(argv)
    if bool(args.unlabeled) != bool(args.labels and args.strategy in DISTILLED):
        parser.error("--unlabeled goes with --labels for dist and self, and only there")
    args.entry = load_task(args.task, args.data)
    args.task = args.entry.name
    world = f"{args.scale}-{Path(args.data).resolve().name}" if args.data else args.scale
    args.runs = ROOT / "runs" / "sweep" / world / args.task
    args.splits = ROOT / "data" / "prepared" / world / args.task
    known = args.runs / "sweep.csv" if args.data else ROOT / "data/results/sweep.csv"
    args.output = args.output or known
    return args


def main(argv=None):
    args = parse_args(argv)
    if not (args.splits / "dev.jsonl").exists():
        data = f" DATA={args.data}" * bool(args.data)
        make = f"make data TASK={args.task} SCALE={args.scale}{data}"
        raise UserError(f"{args.splits}: no splits; {make}")
    runs = list_runs(args)
    if not runs:
        raise UserError(f"--strategy {args.strategy}: no such run in the tables of {args.task}")
    args.most = max(run.unlabeled for run in runs)
    known, trials = read_trials(args.output), [list_trials(args, run) for run in runs]
    told = f"{plural(len(runs), 'run')}, {plural(sum(map(len, trials)), 'trial')} on dev"
    print(fill(f"{told}, written to {args.output}"), file=sys.stderr)
    for run, pairs in zip(runs, trials, strict=True):
        rows, place = [], find_place(args, run)
        inputs = None  # of a run without a trial left they are not made
        for rate, steps in pairs:
            row = known.get(tuple(map(str, (*place, rate, steps, args.seed))))
            if row is None:
                inputs = inputs or find_inputs(args, run)
                row = try_recipe(args, run, inputs, rate, steps)
                write_trial(args.output, row)
                shutil.rmtree(make_trial(args, run, rate, steps)[0] / "model", ignore_errors=True)
            else:
                check_trial(args, run, rate, steps)
            rows.append(row)
            print(f"{run.name} rate {rate:g} steps {steps}: {float(row['score_dev']):.1f}")
        if not args.double:
            best = choose(rows)
            rate, steps, score = (best[key] for key in ("learning_rate", "steps", "score_dev"))
            chosen = f"rate {float(rate):g}, {steps} steps, {float(score):.1f} on dev"
            print(fill(f"{run.name}: chosen {chosen}{tell_edges(best, args)}"), flush=True)


if __name__ == "__main__":
    run_cli(main)
