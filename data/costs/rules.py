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

import contextlib
import hashlib
import json
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
from data.costs.runs import find_annotation, find_needs, find_run_folder, make_run
from data.files import ROOT, UserError, plural, read_if_there, read_json, run_cli, write_atomic
from data.tasks import PAPER_TASKS

SCRIPTS = {"teacher": "train_teacher.py", "dist": "distill.py", "self": "distill.py"}
# The user's own flags, a variable of the Makefile and a flag of costs.py; else small_flags.
USERS = {"teacher": "teacher_flags", "dist": "dist_flags", "self": "dist_flags"}
RECIPE = re.compile(r"^## (\w+)\n(?:# .*\n)*((?:[^#\n].*\n)+)", re.M)


def name_stamp(name, split):
    """The file that says that a run is scored, on test or on dev."""
    return f"{name}/dev/metrics.json" if split == "dev" else f"{name}/metrics.json"


def escape(text):
    """A text of the task's own for make: a dollar sign in it is not make's."""
    return text.replace("$", "$$")


class Rules:
    """The rules of one task's runs; paths of runs and splits stay make's $(RUNS), $(PREPARED).

    asked: {table, figure or pilot: its runs}. The pilot's are scored on dev and never on test, so
    that advice has not seen what tables show.
    """

    def __init__(self, task, asked, args):
        self.task, self.asked, self.args = task, asked, args
        self.home, self.prepared = Path(args.runs, task.name), Path(args.prepared, task.name)
        self.work = {}  # stamp -> (the run, the split that scores it)
        for table, runs in asked.items():
            split = "dev" if table == "pilot" else "test"
            self.work |= {name_stamp(run.name, split): (run, split) for run in runs}
        self.runs = list(dict.fromkeys(run for run, _ in self.work.values()))
        trained = [run for run in self.runs if run.strategy != "prompted"]
        self.flags = {run.name: self.list_asked(run) for run in trained}
        # Counted first: a word that is no number is refused before any run is dropped.
        self.steps = {run.name: count_steps(run, self.flags[run.name]) for run in trained}
        # The folder's name of who labels: MODEL, or the simulation with its accuracy.
        self.annotator = re.sub("[:/]", "_", args.model or f"simulated-{args.accuracy}")
        text = Path(__file__).with_name("recipes.txt").read_text(encoding="utf-8")
        self.recipes = dict(RECIPE.findall(text))  # kind of rule -> its text
        self.splits, self.place = f"$(PREPARED)/{task.name}", f"$(RUNS)/{task.name}"
        scorer = escape(show_flags(task.at(args.scale, "evaluate")))
        self.words = {"task": task.name, "word": escape(shlex.quote(task.word))}
        self.words |= {"place": self.place, "splits": self.splits, "annotator": self.annotator}
        self.words["scorer"] = f" {scorer}" * bool(scorer)

    def make_flags(self, run):
        args = self.args
        return make_flags(self.task, args.scale, None, run, bool(args.data), args.recipe)

    def list_asked(self, run):
        """{flag: text} of the words that make passes to the script that trains a run."""
        own = getattr(self.args, USERS.get(run.strategy, "small_flags"))
        words = shlex.split(show_flags(self.make_flags(run)))
        return stale.read_words([*words, *self.args.train_flags, *own])

    def order_work(self, table):
        """Files of the finished runs of a table, in the order in which make should start them.

        Teachers come first, and then half of what doesn't need them: by then they are done, on two
        cores too, and a run whose files are not there yet would have to wait for make's next round.
        Of those that need them the longest come first, so that none is left alone at the end.
        """
        runs, split = self.asked.get(table, ()), "dev" if table == "pilot" else "test"
        learners = [run for run in runs if run.needs]
        teachers = list(dict.fromkeys(name for run in learners for name in run.needs))
        others = [run.name for run in runs if not run.needs and run.name not in teachers]
        half, passes = len(others) // 2, [self.find_pass(run)[0] for run in learners]
        last = [run.name for run in sorted(learners, key=lambda run: -run.unlabeled)]
        names = [*teachers, *others[:half], *dict.fromkeys(passes), *others[half:], *last]
        return [name if "/" in name else name_stamp(name, split) for name in names]

    def find_pass(self, run):
        """(the file that says that enough rows are labeled for `run`, as
        teacher-n100-s0/1900.labels; the run that needs most rows, as one pass of the teacher serves
        them all). An encoder's is 1900.classes, as it learns from scores of the classes."""
        alike = [r for r in self.runs if (r.needs, not r.encoder) == (run.needs, not run.encoder)]
        most = max(alike, key=lambda each: each.unlabeled)
        return f"{run.needs[0]}/{most.unlabeled}.{'classes' if run.encoder else 'labels'}", most

    def find_stamp(self, name):
        """The first file that says that a run is trained: its table's, else its pilot's."""
        tested = name_stamp(name, "test")
        return tested if tested in self.work else name_stamp(name, "dev")

    def fill(self, kind, run, **words):
        """The rule of data/costs/recipes.txt for a run; a word `flags` is {flag: value}."""
        words["flags"] = escape(show_flags(words.get("flags", {})))
        return self.recipes[kind].format(run=run, **self.words, **words)

    def write_run(self, run, stamp, split):
        """A run of a table and of the pilot is trained for the table first, by one make."""
        script, needs = SCRIPTS.get(run.strategy, "train_small.py"), []
        flags, reads = self.make_flags(run), f"--train {self.splits}/train.jsonl"
        if run.strategy == "llm":
            needs.append(f"{self.place}/{run.name}/{self.annotator}/annotation.json")
            reads = f"--train $(@D)/{self.annotator}/labels.jsonl"
        elif run.needs:
            needs.append(f"{self.place}/{self.find_pass(run)[0]}")
            teacher = f"{self.place}/{run.needs[0]}"
            labels = f"{teacher}/{'classes' if run.encoder else 'labels'}"
            if flags.get("loss") == "paper":  # runs the teacher in every step
                labels = f"{teacher}/model --labels {labels}"
            reads = f"--unlabeled {self.splits}/unlabeled.jsonl --teacher {labels}"
        needs += [script, "evaluate.py"]
        if (first := self.find_stamp(run.name)) != stamp:
            needs.append(f"{self.place}/{first}")
        words = {"stamp": stamp, "split": split, "script": script, "needs": " ".join(needs)}
        own = USERS.get(run.strategy, "small_flags").upper()
        return self.fill("run", run, flags=flags, own=own, reads=reads, **words)

    def write_pass(self, run):
        file, most = self.find_pass(run)
        student = most.student if most.encoder else "small"
        plain = make_run("dist", most.labels, most.seed, most.unlabeled, student=student)
        words = {"file": file, "folder": "classes" if most.encoder else "labels"}
        words["trained"] = f"{self.place}/{self.find_stamp(run.needs[0])}"
        return self.fill("pass", plain, flags=self.make_flags(plain), **words)

    def write_all(self):
        """Each rule once, however many runs ask for it."""
        rules = [self.write_pass(run) for run in self.runs if run.needs]
        for stamp, (run, split) in self.work.items():
            if run.strategy == "llm":
                alike = [r for r in self.runs if (r.strategy, r.seed) == ("llm", run.seed)]
                most = max(each.llm_labels for each in alike)
                rules += [self.fill(kind, run, most=most) for kind in ("answers", "labels")]
            if run.strategy == "prompted":
                rules.append(self.fill("prompted", run, stamp=stamp, split=split))
            else:
                rules.append(self.write_run(run, stamp, split))
        return dict.fromkeys(rules)


# --- labels by an LLM: checked before anything is made --------------------------------------


def check_annotator(rules):
    """No two annotators in one run folder, no paid run without a model and a key, and no simulated
    one without the right answers."""
    args, unlabeled = rules.args, []
    runs = [run for run in rules.runs if run.strategy in ("llm", "prompted")]
    for folder in (rules.home / run.name for run in runs):
        found = find_annotation(folder)
        if found and found.parent.name not in (rules.annotator, folder.name):
            raise UserError(
                f"{found.parent}: labels of another annotator than {rules.annotator}; say MODEL=..."
                f" or LLM_ACCURACY=... as then, or move {folder} away"
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
    value = flags.get(name) or default
    with contextlib.suppress(TypeError, ValueError):
        if math.isfinite(float(value)):
            return float(value)
    raise UserError(f"--{name} {value}: no number")


def count_steps(run, flags):
    """Optimiser steps of a run with these flags, as make_flags() or as read_words() has them;
    Table 8's where they say nothing."""
    flags = {name.replace("_", "-"): value for name, value in flags.items()}
    if (most := read_number(flags, "max-steps", 0)) > 0:
        return int(most)
    rows, batch = run.unlabeled or run.labels + run.llm_labels, read_number(flags, "batch-size", 32)
    steps = math.ceil(rows / max(1, batch)) * read_number(flags, "epochs", 50)
    return math.ceil(max(steps, read_number(flags, "min-steps", 0)))


def estimate(rules):
    """{stamp: seconds until it is there or None}, from the finished runs of its strategy, else from
    the scale's recorded seconds a step; 0 where the run is trained, be it for another stamp."""
    steps, made, spent = {}, Counter(), Counter()
    for stamp, (run, _) in rules.work.items():
        path, first = rules.home / stamp, rules.find_stamp(run.name)
        if path.exists():
            count, seconds = read_spent(path)
            made[run.recipe] += count
            spent[run.recipe] += seconds
        done = path.exists() or is_trained(path) or stamp != first
        steps[stamp] = 0 if done else rules.steps.get(run.name, 0)
    rates = {**(load_scale(rules.args.scale).get("seconds_a_step") or {})}
    rates |= {kind: spent[kind] / count for kind, count in made.items() if count and spent[kind]}
    found = {}
    for stamp, (run, _) in rules.work.items():
        rate = rates.get(run.recipe)
        found[f"{rules.task.name}/{stamp}"] = steps[stamp] and rate and steps[stamp] * rate
    return found


def is_trained(stamp):
    return (find_run_folder(stamp) / "training.json").exists()


def read_spent(stamp):
    """(steps, seconds) that a finished run took."""
    metrics = read_if_there(stamp, stale.METRICS)
    path = find_run_folder(stamp) / "training.json"
    training = read_if_there(path, stale.TRAINING) or metrics.get("training") or {}
    seconds = {**(metrics.get("seconds") or {}), **(training.get("seconds") or {})}
    return training.get("steps") or 0, sum(seconds.values())


def tell_duration(seconds):
    """About how long, in words a person plans with."""
    if seconds < 90:
        return "about a minute"
    short = f"about {seconds / 60:.0f} minutes"
    return short if seconds < 5400 else f"about {seconds / 3600:.1f} hours"


def find_wait(left, jobs):
    """Seconds until `jobs` at a time have made what is left, {stamp: seconds}; a student waits for
    its teacher."""
    runs = Counter()
    for stamp, each in left.items():
        runs[find_run_folder(stamp)] += each
    chains = ([run, *map(run.with_name, find_needs(run.name))] for run in runs)
    longest = max(sum(runs[each] for each in chain) for chain in chains)
    return max(sum(runs.values()) / jobs, longest)


def tell_work(seconds, args):
    """The first line of a make: how many runs are to do, and about how long they take."""
    stamps = {Path(args.runs, stamp): each for stamp, each in seconds.items()}
    left = {stamp: each for stamp, each in stamps.items() if not stamp.exists()}
    if not left:
        return None
    score, every = sum(map(is_trained, left)), {find_run_folder(stamp) for stamp in stamps}
    new = {find_run_folder(stamp) for stamp in left if not is_trained(stamp)}
    parts = [f"{len(new)} of {plural(len(every), 'run')} to do"] * bool(new)
    text = ", ".join(parts + [f"{score} to score"] * bool(score))
    if None in left.values():
        return f"{text}; no run like them is finished, so nobody knows how long they take"
    at_once = min(args.jobs, len(left))
    side = f", {at_once} at a time" * (at_once > 1)
    return f"{text}, {tell_duration(find_wait(left, args.jobs))}{side}"


def tell_progress(path):
    """How many runs of a make are done, and about how long the others take: as much longer than
    estimated as those did that it has made."""
    shape = {"runs": str, "seconds": {None: float}, "jobs": int}
    record = read_json(path, shape, "runs seconds jobs")
    stamps = {Path(record["runs"], stamp): each for stamp, each in record["seconds"].items()}
    left = {stamp: each for stamp, each in stamps.items() if not stamp.exists()}
    text = f"{len(stamps) - len(left)} of {plural(len(stamps), 'run')} done"
    if left and None not in left.values():
        # A minute as estimated beside them, as loading alone makes one short run many times longer.
        made = [s for s, each in stamps.items() if each and s not in left]
        slower = (60 + sum(read_spent(s)[1] for s in made)) / (60 + sum(stamps[s] for s in made))
        text += f", {tell_duration(find_wait(left, record['jobs']) * slower)} left"
    print(text, file=sys.stderr)


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


def check_runs(rules):
    """{what is to be made again, as TASK/RUN: what changed since}: finished runs, or where these
    are only scored otherwise their metrics.json."""
    changed = {}
    for stamp, (run, split) in rules.work.items():
        folder, change = rules.home / run.name, None
        if run.strategy != "prompted":
            data = rules.prepared / f"{'unlabeled' if run.needs else 'train'}.jsonl"
            if run.strategy == "llm":
                data = folder / rules.annotator / "labels.jsonl"
            change = stale.find_change(folder, rules.flags[run.name], data)
        change = change or next((changed[name] for name in run.needs if name in changed), None)
        scored = (rules.home / stamp).parent, rules.task, rules.prepared / f"{split}.jsonl"
        if change and folder.exists():
            changed[run.name] = change
        elif change := stale.find_changed_score(*scored):
            changed[stamp] = change
    return {f"{rules.task.name}/{name}": change for name, change in changed.items()}


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
    names, every, changed = choose_tables(tasks, args), [], {}
    for task in tasks:
        tables = [table for table in names if task in choose_tasks(table, tasks)]
        if asked := {table: list_runs(table, task, seeds, args) for table in tables}:
            every.append(rules := Rules(task, asked, args))
            check_annotator(rules)
            changed |= check_runs(rules)
    if changed and not args.redo:
        raise UserError(stale.tell_changes(changed))
    for name in () if args.dry else changed:
        stale.drop(Path(args.runs, name))
    seconds, lines = {}, []
    for rules in every:
        seconds |= estimate(rules)
        lines += rules.write_all()
    if not args.partial and (said := tell_work(seconds, args)):
        print(said, file=sys.stderr)
    lines.append(f"ASKED := {' '.join(names)}")
    for table in names:
        works = [f"{r.place}/{file}" for r in every for file in r.order_work(table)]
        lines.append(f"{table}: {' '.join(works if not args.partial else ())}")
    text = "\n".join(lines) + "\n"
    path = Path(args.made, f"rules-{hashlib.sha256(text.encode()).hexdigest()[:12]}.mk")
    write_atomic(path, text)
    record = {"runs": args.runs, "seconds": seconds, "jobs": args.jobs}
    write_atomic(path.with_suffix(".json"), json.dumps(record))
    return path


if __name__ == "__main__":
    run_cli(lambda: tell_progress(sys.argv[1]))
