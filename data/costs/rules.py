"""Make's rules of the runs behind tables and figures, whole, so that the file reads as the study.

Usage:
    python costs.py rules --for "table2 fig2" --task wlp --made runs/mini/made
        writes runs/mini/made/rules-HASH.mk and prints its path; the Makefile includes it
    python -m data.costs.rules runs/mini/made/rules-HASH.json      # 5 of 20 runs done, ...
Reads:  data/costs/recipes.txt, data/tasks.json, data/scales.json, run folders; with DATA splits,
        made where missing
Writes: MADE/rules-HASH.mk, and beside it, as .json, the runs with the seconds that each may take
Paper:  section 4, Appendix E

What is the user's (flags of his, LAUNCH, PY, ...) stays a variable of the Makefile; what tasks.json
says is quoted for the shell and for make. A file is named by what it says, so that two makes never
write the same name with other words in it.
"""

import hashlib
import math
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path

from data.costs import stale
from data.costs.flags import load_scale, make_flags, show_flags
from data.costs.grid import PILOTS, TABLES, choose_tasks, grid, shows
from data.costs.runs import find_annotation, find_run_folder, make_run, parse_run
from data.files import (
    ROOT,
    UserError,
    check_kind,
    plural,
    read_if_there,
    read_json,
    read_text,
    run_cli,
    write_atomic,
    write_json,
)
from data.tasks import PAPER_TASKS

SCRIPTS = {"teacher": "train_teacher.py", "dist": "distill.py", "self": "distill.py"}
# The user's own flags, a variable of the Makefile and a flag of costs.py; else small_flags.
USERS = {"teacher": "teacher_flags", "dist": "dist_flags", "self": "dist_flags"}


def name_stamp(name, dev=False):
    """The file that says that a run is scored, on the test set or on dev."""
    return f"{name}/dev/metrics.json" if dev else f"{name}/metrics.json"


def escape(text):
    """A text of the task's own for make: a dollar sign in it is not make's."""
    return text.replace("$", "$$")


def read_recipes():
    """{kind of rule: its text} of data/costs/recipes.txt."""
    text = re.sub(r"^# .*\n", "", read_text(Path(__file__).with_name("recipes.txt")), flags=re.M)
    return dict(re.findall(r"^## (\w+)\n((?:[^#\n].*\n)+)", text, re.M))


class Rules:
    """The rules of one task's runs; paths of runs and splits stay make's $(RUNS), $(PREPARED).

    asked: {table, figure or pilot: its runs}. The pilot's are scored on dev and never on test, so
    that advice has not seen what tables show.
    """

    def __init__(self, task, asked, args):
        self.task, self.asked, self.args = task, asked, args
        self.home, self.prepared = Path(args.runs, task.name), Path(args.prepared, task.name)
        shown = [run for table, runs in asked.items() for run in runs if table != "pilot"]
        self.stamps = {name_stamp(run.name): run for run in shown}
        self.stamps |= {name_stamp(run.name, dev=True): run for run in asked.get("pilot", ())}
        self.runs = list({run.name: run for run in self.stamps.values()}.values())
        self.annotator, self.recipes = name_annotator(args), read_recipes()
        self.splits, self.place = f"$(PREPARED)/{task.name}", f"$(RUNS)/{task.name}"
        scorer = escape(show_flags(task.at(args.scale, "evaluate")))
        self.words = {"task": task.name, "word": escape(shlex.quote(task.word))}
        self.words |= {"place": self.place, "splits": self.splits, "annotator": self.annotator}
        self.words["scorer"] = f" {scorer}" * bool(scorer)

    def make_flags(self, run):
        args = self.args
        return make_flags(self.task, args.scale, None, run, bool(args.data), args.recipe)

    def list_flags(self, run):
        return escape(show_flags(self.make_flags(run)))

    def order_work(self, table):
        """Files of the finished runs of a table, in the order in which make should start them.

        Teachers come first, and then half of what doesn't need them: by then they are done, on two
        cores too, and a run whose files are not there yet would have to wait for make's next round.
        Of those that need them the longest come first, so that none is left alone at the end.
        """
        runs = self.asked.get(table, ())
        learners = [run for run in runs if run.needs]
        teachers = dict.fromkeys(name for run in learners for name in run.needs)
        others = [run.name for run in runs if not run.needs and run.name not in teachers]
        half = len(others) // 2
        names = [*teachers, *others[:half], *dict.fromkeys(map(self.name_pass, learners))]
        names += others[half:]
        names += [run.name for run in sorted(learners, key=lambda run: -run.unlabeled)]
        return [n if "/" in n else name_stamp(n, table == "pilot") for n in names]

    def name_pass(self, run):
        """The file that says that enough rows are labeled for `run`, as
        teacher-n100-s0/1900.labels: as many as any run needs, so that one pass of the teacher
        serves them all. An encoder's is 1900.classes, as it learns from scores of the classes."""
        learners = [r for r in self.runs if r.needs == run.needs]
        most = max(r.unlabeled for r in learners if bool(r.encoder) == bool(run.encoder))
        return f"{run.needs[0]}/{most}.{'classes' if run.encoder else 'labels'}"

    def find_stamp(self, name):
        """The first file that says that a run is trained: its table's, else its pilot's."""
        return f"{self.place}/{name_stamp(name, name_stamp(name) not in self.stamps)}"

    def fill(self, kind, run, **words):
        """The rule of data/costs/recipes.txt for a run."""
        return self.recipes[kind].format(run=run, **self.words, **words)

    def write_run(self, run, stamp, split):
        """A run of a table and of the pilot is trained for the table first, by one make."""
        folder, script = f"{self.place}/{run.name}", SCRIPTS.get(run.strategy, "train_small.py")
        needs, reads = [], f"--train {self.splits}/train.jsonl"
        if run.strategy == "llm":
            needs.append(f"{folder}/{self.annotator}/annotation.json")
            reads = f"--train $(@D)/{self.annotator}/labels.jsonl"
        elif run.needs:
            needs.append(f"{self.place}/{self.name_pass(run)}")
            reads = f"--unlabeled {self.splits}/unlabeled.jsonl"
            teacher = f"{self.place}/{run.needs[0]}"
            released = self.make_flags(run).get("loss") == "paper"  # runs the teacher in every step
            reads += f" --teacher {teacher}/model --labels" if released else " --teacher"
            reads += f" {teacher}/{'classes' if run.encoder else 'labels'}"
        needs += [script, "evaluate.py"]
        if split == "dev" and name_stamp(run.name) in self.stamps:
            needs.append(f"{folder}/metrics.json")
        words = {"stamp": stamp, "split": split, "script": script, "needs": " ".join(needs)}
        words |= {"own": USERS.get(run.strategy, "small_flags").upper(), "reads": reads}
        return self.fill("run", run, flags=self.list_flags(run), **words)

    def write_pass(self, file):
        teacher, count, kind = re.split(r"[/.]", file)
        made = parse_run(teacher)
        learners = (r for r in self.runs if r.needs and file == self.name_pass(r))
        student = next(learners).student if kind == "classes" else "small"
        plain = make_run("dist", made.labels, made.seed, int(count), student=student)
        words = {"file": file, "folder": kind, "trained": self.find_stamp(teacher)}
        return self.fill("pass", plain, flags=self.list_flags(plain), **words)

    def write_all(self):
        passes = dict.fromkeys(self.name_pass(run) for run in self.runs if run.needs)
        rules, asked = [self.write_pass(file) for file in passes], {}
        for run in self.runs:
            if run.strategy == "llm":
                asked[run.seed] = max(asked.get(run.seed, 0), run.llm_labels)
        bought = set()
        for stamp, run in self.stamps.items():
            split = "test" if stamp == name_stamp(run.name) else "dev"
            if run.strategy == "llm":
                kinds = ("labels",) if run.seed in bought else ("answers", "labels")
                rules += [self.fill(kind, run, most=asked[run.seed]) for kind in kinds]
                bought.add(run.seed)
            if run.strategy == "prompted":
                rules.append(self.fill("prompted", run, stamp=stamp, split=split))
            else:
                rules.append(self.write_run(run, stamp, split))
        return rules


# --- labels by an LLM: checked before anything is made --------------------------------------


def name_annotator(args):
    """The folder's name of who labels: MODEL, or the simulation with its accuracy."""
    return re.sub("[:/]", "_", args.model) if args.model else f"simulated-{args.accuracy}"


def check_annotator(rules):
    """No two annotators in one run folder, no paid run without a model and a key, and no simulated
    one without the right answers."""
    args, annotator, unlabeled = rules.args, rules.annotator, []
    runs = [run for run in rules.runs if run.strategy in ("llm", "prompted")]
    for folder in (rules.home / run.name for run in runs):
        found = find_annotation(folder)
        if found and found.parent.name not in (annotator, folder.name):
            raise UserError(
                f"{found.parent}: labels of another annotator than {annotator}; say MODEL=... or "
                f"LLM_ACCURACY=... as then, or move {folder} away"
            )
        unlabeled += [] if found else [folder]
    if not unlabeled or args.partial:
        return
    if args.model and not args.key:
        what = "no key and no server; set OPENAI_API_KEY or OPENAI_BASE_URL"
        raise UserError(f"MODEL={args.model}: {what}")
    if args.scale == "paper" and not args.model:
        raise UserError(
            f"{unlabeled[0]} needs labels by an LLM: say MODEL=gpt-6-luna (any of data/prices.csv)"
            " and the most that a task and seed may cost, BUDGET=20"
        )
    splits = rules.prepared
    known = (splits / "unlabeled_gold.jsonl").exists() or not (splits / "about.json").exists()
    if not args.model and not known and any(run.strategy == "llm" for run in runs):
        raise UserError(
            f"a simulated annotator needs {splits}/unlabeled_gold.jsonl, the right answers, which"
            " data/prepare.py writes where they are known; for other rows say MODEL=gpt-6-luna"
        )


# --- how long it may take ---------------------------------------------------------------------


def read_number(flags, name, default):
    """A number among flags {name: value}; the scripts check what is within their limits."""
    try:
        return check_kind(float(flags.get(name) or default), float, f"--{name}")
    except (TypeError, ValueError):
        raise UserError(f"--{name} {flags[name]}: no number") from None


def count_steps(run, flags):
    """Optimiser steps of a run with these flags, as make_flags() or as read_words() has them;
    Table 8's where they say nothing."""
    flags = {name.replace("_", "-"): value for name, value in flags.items()}
    if (most := read_number(flags, "max-steps", 0)) > 0:
        return int(most)
    rows, batch = run.unlabeled or run.labels + run.llm_labels, read_number(flags, "batch-size", 32)
    steps = math.ceil(rows / max(1, batch)) * read_number(flags, "epochs", 50)
    return math.ceil(max(steps, read_number(flags, "min-steps", 0)))


def tell_duration(seconds):
    """About how long, in words a person plans with."""
    if seconds < 90:
        return "about a minute"
    short = f"about {seconds / 60:.0f} minutes"
    return short if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


# --- all of it ----------------------------------------------------------------------------------


def prepare_splits(task, args):
    """Make the splits of real data where there are none; refuse, or with REDO=1 make again, those
    that are not of the data that stands there now."""
    place = Path(args.prepared, task.name)
    others = {path.parent.name for path in place.parent.glob("*/about.json")} - {*PAPER_TASKS}
    if task.word != task.name and others and task.name not in others:  # it is mistyped, surely
        raise UserError(
            f"the one task of {args.data} is {min(others)!r} so far: say TASK={min(others)}, or "
            f"remove {place.parent / min(others)}"
        )
    if (args.dry and args.redo) or not (args.data or (place / "about.json").exists()):
        return
    words = ["--task", task.name, "--scale", args.scale, *args.prepare_flags, "--keep"]
    words += ["--redo"] * args.redo + (["--data", args.data] if args.data else [])
    command = [sys.executable, "-m", "data.prepare", *words, "--output", str(place)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    setting = {"env": {**os.environ, "PYTHONPATH": paths}, "capture_output": True, "text": True}
    done = subprocess.run(command, check=False, **setting)
    if done.returncode:
        paths = sorted(Path(args.runs, task.name).glob("*/metrics.json"))
        shown = ", ".join(path.parent.name for path in paths[:3])
        made = f" ({plural(len(paths), 'run')} made of them: {shown}, ...)" * bool(paths)
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError((said.partition("error: ")[2] or said) + made)


def list_asked(rules, run):
    """{flag: text} of the words that make passes to the script that trains a run."""
    own = getattr(rules.args, USERS.get(run.strategy, "small_flags"))
    words = shlex.split(show_flags(rules.make_flags(run)))
    return stale.read_words([*words, *rules.args.train_flags, *own])


def check_runs(rules):
    """{what is to be made again, as TASK/RUN: what changed since}: finished runs, or where these
    are only scored otherwise their metrics.json."""
    changed, splits = {}, rules.prepared
    for run in sorted(rules.runs, key=lambda run: bool(run.needs)):
        folder, change = rules.home / run.name, None
        if run.strategy != "prompted":
            data = splits / f"{'unlabeled' if run.needs else 'train'}.jsonl"
            if run.strategy == "llm":
                data = folder / rules.annotator / "labels.jsonl"
            change = stale.find_change(folder, list_asked(rules, run), data)
        change = change or next((changed[name] for name in run.needs if name in changed), None)
        if change and folder.exists():
            changed[run.name] = change
            continue
        for stamp, split in ((name_stamp(run.name), "test"), (name_stamp(run.name, True), "dev")):
            place = (rules.home / stamp).parent
            if change := stale.find_changed_score(place, rules.task, splits / f"{split}.jsonl"):
                changed[stamp] = change
    return {f"{rules.task.name}/{name}": change for name, change in changed.items()}


def estimate(rules):
    """{stamp of a run: seconds that it may take or None}, from the finished runs of its strategy,
    else from the scale's recorded seconds a step."""
    steps, made, spent = {}, Counter(), Counter()
    for stamp, run in rules.stamps.items():
        there = (rules.home / stamp).exists()
        trained = is_trained(rules.home / stamp) and not there  # its score alone is missing
        none = trained or run.strategy == "prompted"
        steps[stamp] = 0 if none else count_steps(run, list_asked(rules, run))
        if there and steps[stamp]:
            made[run.recipe] += steps[stamp]
            spent[run.recipe] += read_spent(rules.home / stamp)
    rates = {**(load_scale(rules.args.scale).get("seconds_a_step") or {})}
    rates |= {kind: seconds / made[kind] for kind, seconds in spent.items() if seconds}
    found = {}
    for stamp, run in rules.stamps.items():
        rate = rates.get(run.recipe)
        found[f"{rules.task.name}/{stamp}"] = steps[stamp] and rate and steps[stamp] * rate
    return found


def is_trained(stamp):
    return (find_run_folder(stamp) / "training.json").exists()


def read_spent(stamp):
    """Seconds that a finished run took, by its metrics.json."""
    metrics = read_json(stamp, stale.METRICS)
    path = find_run_folder(stamp) / "training.json"
    training = read_if_there(path, stale.TRAINING) or metrics.get("training") or {}
    return sum({**(metrics.get("seconds") or {}), **(training.get("seconds") or {})}.values())


def tell_work(seconds, args):
    """The first line of a make: how many runs are to do, and about how long they take."""
    stamps = {Path(args.runs, stamp): each for stamp, each in seconds.items()}
    left = {stamp: each for stamp, each in stamps.items() if not stamp.exists()}
    if not left or args.partial:
        return None
    new = {find_run_folder(stamp) for stamp in left if not is_trained(stamp)}
    score = sum(map(is_trained, left))
    every = plural(len(set(map(find_run_folder, stamps))), "run")
    text = f"{len(new)} of {every} to do" * bool(new)
    text += f"{', ' * bool(new)}{score} to score" * bool(score)
    if None in left.values():
        return f"{text}; no run like them is finished, so nobody knows how long they take"
    at_once, runs = max(1, min(args.jobs, len(left))), Counter()
    for stamp, each in left.items():  # a run scored on dev too is trained once
        runs[find_run_folder(stamp)] = max(runs[find_run_folder(stamp)], each)
    needs = {run: [run, *map(run.with_name, parse_run(run.name).needs)] for run in runs}
    longest = max(sum(map(runs.__getitem__, chain)) for chain in needs.values())
    side = f", {at_once} at a time" * (at_once > 1)
    return f"{text}, {tell_duration(max(sum(runs.values()) / at_once, longest))}{side}"


def choose_tables(tasks, args):
    """The tables and figures asked for, or all that have one of the tasks."""
    names = [name for name in args.table.split() if name in (*TABLES, "all")]
    if "all" in names:
        names = [t for t in TABLES if any(shows(t, x.name) for x in tasks) and t != "pilot"]
        if args.scale == "paper" and not args.model:  # where an LLM costs money
            print("note: without MODEL=... fig6 and fig7 are left out", file=sys.stderr)
            names = [name for name in names if name not in ("fig6", "fig7")]
    return names


def list_runs(table, task, seeds, args):
    """The runs of a table, of a pilot those that go as far as is asked."""
    prepared = args.prepared if args.data else None
    runs = grid(table, task, args.scale, seeds, llm=args.llm, prepared=prepared)
    kinds = (*PILOTS[args.pilot], "prompted")
    return [run for run in runs if table != "pilot" or run.strategy in kinds]


def write_rules(tasks, seeds, args):
    """Check all that can be wrong, then write the file of rules; its path."""
    for task in tasks:
        prepare_splits(task, args)
    names, asked = choose_tables(tasks, args), {}
    for table in names:
        for task in choose_tasks(table, tasks):
            asked.setdefault(task.name, {})[table] = list_runs(table, task, seeds, args)
    every, changed, seconds, lines = [], {}, {}, []
    for task in (task for task in tasks if task.name in asked):
        every.append(rules := Rules(task, asked[task.name], args))
        check_annotator(rules)
        found = check_runs(rules)
        for name in found if args.redo and not args.dry else ():
            stale.drop(Path(args.runs, name))
        changed |= found
        seconds |= estimate(rules)
        lines += rules.write_all()
    if changed and not args.redo:
        raise UserError(stale.tell_changes(changed))
    if said := tell_work(seconds, args):
        print(said, file=sys.stderr)
    lines.append(f"ASKED := {' '.join(names)}")
    for table in names:
        works = [f"{r.place}/{file}" for r in every for file in r.order_work(table)]
        lines.append(f"{table}: {' '.join(works if not args.partial else ())}")
    text = "\n".join(lines) + "\n"
    path = Path(args.made, f"rules-{hashlib.sha256(text.encode()).hexdigest()[:12]}.mk")
    write_atomic(path, text)
    record = {"runs": args.runs, "seconds": seconds, "jobs": args.jobs}
    write_json(path.with_suffix(".json"), record)
    return path


def tell_progress(path):
    """How many runs of a make are done, and about how long the others take: as much longer than
    estimated as those did that were done since it began, as what is older was measured."""
    shape = {"runs": str, "seconds": {None: float}, "jobs": int}
    record = read_json(path, shape, "runs seconds jobs")
    runs, seconds, jobs = (record[key] for key in shape)
    stamps = {Path(runs, stamp): each for stamp, each in seconds.items()}
    done = {stamp: each for stamp, each in stamps.items() if stamp.exists()}
    left = [each for stamp, each in stamps.items() if stamp not in done]
    text = f"{len(done)} of {plural(len(stamps), 'run')} done"
    if left and None not in left:
        begun = Path(path).stat().st_mtime
        new = [(s, each) for s, each in done.items() if each and s.stat().st_mtime >= begun]
        known = [(each, read_spent(stamp)) for stamp, each in new]
        # A minute as estimated beside them, as loading alone makes one short run many times longer.
        guessed, spent = (60 + sum(pair[i] for pair in known) for i in (0, 1))
        duration = tell_duration(sum(left) * spent / guessed / max(1, min(jobs, len(left))))
        text += f", {duration} left"
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run_cli(lambda: tell_progress(sys.argv[1]))
