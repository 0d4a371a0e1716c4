"""Make's rules of the runs behind tables and figures, whole, so that the file reads as the study.

Usage:
    python costs.py rules --for "table2 fig2" --task wlp --made runs/mini/made
        writes runs/mini/made/rules-HASH.mk and prints its path; the Makefile includes it
    python -m data.costs.rules runs/mini/made/rules-HASH.json      # 5 of 20 runs done, ...
Reads:  data/tasks.json, data/scales.json, run folders; with DATA its splits, made where missing
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
from pathlib import Path

from data.costs.budget import load_scale
from data.costs.grid import PILOTS, TABLES, choose_tasks, grid, make_flags, show_flags, shows
from data.costs.runs import find_annotation, make_run, parse_run
from data.costs.stale import (
    METRICS,
    TRAINING,
    drop,
    find_change,
    find_changed_score,
    read_words,
    tell,
)
from data.files import (
    ROOT,
    UserError,
    check_kind,
    read_if_there,
    read_json,
    run_cli,
    write_atomic,
    write_json,
)
from data.tasks import name_word

SCRIPTS = {"teacher": "train_teacher.py", "dist": "distill.py", "self": "distill.py"}
USERS = {"teacher": "TEACHER_FLAGS", "dist": "DIST_FLAGS", "self": "DIST_FLAGS"}  # else SMALL_FLAGS
BY_LLM = ("llm", "prompted")


def find_script(strategy):
    return SCRIPTS.get(strategy, "train_small.py")


def name_pass(run, runs):
    """The file that says that enough rows are labeled for `run`, e.g. teacher-n100-s0/1900.labels:
    as many as any of `runs` needs, so that one pass of the teacher serves them all."""
    (needed,) = run.needs
    return f"{needed}/{max(r.unlabeled for r in runs if needed in r.needs)}.labels"


def name_stamp(name, dev=False):
    """The file that says that a run is scored, on the test set or on dev."""
    return f"{name}/dev/metrics.json" if dev else f"{name}/metrics.json"


def order_work(runs, every, dev=False):
    """Files of the finished `runs` of a task, some of its runs in `every` table asked for, in the
    order in which make should start them.

    Teachers come first, and then half of what doesn't need them: by then they are done, on two
    cores too, and a run whose files are not there yet would have to wait for make's next round.
    """
    learners = [run for run in runs if run.needs]
    teachers = dict.fromkeys(name for run in learners for name in run.needs)
    others = [run.name for run in runs if not run.needs and run.name not in teachers]
    half = len(others) // 2
    names = [*teachers, *others[:half], *dict.fromkeys(name_pass(r, every) for r in learners)]
    names += [*others[half:], *(run.name for run in learners)]
    return [n if n.endswith(".labels") else name_stamp(n, dev) for n in names]


def write_rule(target, needs, *recipe):
    """One rule; its prerequisites are order-only, as a changed comment in a script must not train
    for hours again. A dollar sign of the task's own must already be doubled."""
    return "\n".join([f"{target}: | {' '.join(needs)}", *(f"\t@{line}" for line in recipe), ""])


class Rules:
    """The rules of one task's runs; paths of runs and splits stay make's $(RUNS), $(PREPARED).

    Those of `tables` are scored on the test set, those of the `pilot` on dev and never on test, so
    that advice has not seen what tables show.
    """

    def __init__(self, task, word, tables, pilot, args):
        self.task, self.scale, self.recipe = task, args.scale, args.recipe
        self.tables, self.pilot = tables, pilot
        self.runs = list({run.name: run for run in [*tables, *pilot]}.values())
        self.word, self.real_text = shlex.quote(word).replace("$", "$$"), bool(args.data)
        self.annotator = name_annotator(args)
        self.splits, self.place = f"$(PREPARED)/{task.name}", f"$(RUNS)/{task.name}"
        self.first = ["$(INSTALLED)", f"{self.splits}/about.json"]

    def make_flags(self, run):
        return make_flags(self.task, self.scale, None, run, self.real_text, self.recipe)

    def list_flags(self, run):
        return show_flags(self.make_flags(run)).replace("$", "$$")

    def list_stamps(self):
        """{file that says that a run is scored: Run}"""
        stamps = {name_stamp(run.name): run for run in self.tables}
        return stamps | {name_stamp(run.name, dev=True): run for run in self.pilot}

    def find_stamp(self, name):
        """The first file that says that a run is trained: its table's, else its pilot's."""
        return f"{self.place}/{name_stamp(name, name not in {run.name for run in self.tables})}"

    def write_run(self, run, dev=False):
        """Train and score in one recipe, as make would else train all runs before it scores one.
        A run of a table and of the pilot is trained for the table first, by one make."""
        folder, script = f"{self.place}/{run.name}", find_script(run.strategy)
        needs, reads = [*self.first], f"--train {self.splits}/train.jsonl"
        if run.strategy == "llm":
            needs.append(f"{folder}/{self.annotator}/annotation.json")
            reads = f"--train $(@D)/{self.annotator}/labels.jsonl"
        elif run.needs:
            needs.append(f"{self.place}/{name_pass(run, self.runs)}")
            reads = f"--unlabeled {self.splits}/unlabeled.jsonl"
            teacher = f"{self.place}/{run.needs[0]}"
            released = self.make_flags(run).get("loss") == "paper"  # runs the teacher in every step
            reads += f" --teacher {teacher}/model --labels" if released else " --teacher"
            reads += f" {teacher}/labels"
        own = USERS.get(run.strategy, "SMALL_FLAGS")
        train = f"$(launch) $(PY) {script} --task {self.task.name} --strategy {run.strategy}"
        train += f" {self.list_flags(run)} $(TRAIN_FLAGS) $({own}) {reads} --output {folder}"
        score = f"$(queue) {self.score(f'--model {folder}/model')}"
        score += f" --data {self.splits}/{'dev' if dev else 'test'}.jsonl"
        needs += [script, "evaluate.py"]
        if dev and run in self.tables:
            needs.append(f"{folder}/metrics.json")
        target = f"{self.place}/{name_stamp(run.name, dev)}"
        return write_rule(target, needs, train, f"{score} > /dev/null", "$(told)")

    def score(self, what):
        flags = show_flags(self.task.at(self.scale, "evaluate")).replace("$", "$$")
        return f"$(PY) evaluate.py --task {self.word} {what} --output $(@D) {flags}".rstrip()

    def write_pass(self, file):
        """The teacher's pass, once for all runs that learn from it."""
        teacher, count = file.split("/")
        made = parse_run(teacher)
        plain = make_run("dist", made.labels, made.seed, int(count.removesuffix(".labels")))
        label = (
            "$(launch) $(PY) distill.py --labels-only --teacher $(@D)/model --labels $(@D)/labels"
        )
        label += (
            f" {self.list_flags(plain)} $(DIST_FLAGS) --unlabeled {self.splits}/unlabeled.jsonl"
        )
        needs = [self.find_stamp(teacher), "distill.py"]
        return write_rule(f"{self.place}/{file}", needs, label, "touch $@")

    # What was paid for lies outside RUNS, is no target and is never removed. A folder of answers is
    # of one annotator and one seed, as its prompts have examples from that seed's labeled rows.

    def annotate(self, rows, gold, flags):
        files = f"--labeled {self.splits}/train.jsonl --unlabeled {self.splits}/{rows}.jsonl"
        files += f" --complete $(llm) $(if $(MODEL),,--gold {self.splits}/{gold}.jsonl)"
        return f"$(PY) gpt_annotate.py --task {self.word} {files} $(LLM_FLAGS) {flags}"

    def write_answers(self, seed):
        """All answers that the runs of a seed need: each takes the first of them, so that the run
        with most pays for all."""
        most = max(r.llm_labels for r in self.runs if (r.strategy, r.seed) == ("llm", seed))
        name = f"{self.annotator}-s{seed}"
        bought = f"--num {most} --seed {seed} --output $(ANSWERS)/{self.task.name}/{name}"
        lines = [self.annotate("unlabeled", "unlabeled_gold", bought), "mkdir -p $(@D) && touch $@"]
        target = f"{self.place}/answers/{name}/{most}.answers"
        rule = write_rule(target, [*self.first, "gpt_annotate.py"], f"{lines[0]} >&2", lines[1])
        return target, rule

    def write_labels(self, run, answers):
        """The labels of one run: so many of people, so many of the answers."""
        folder = f"{self.place}/{run.name}/{self.annotator}"
        flags = f"--replay --num {run.llm_labels} --add-labeled {run.labels} --seed {run.seed}"
        flags += f" --output $(@D) --store $(ANSWERS)/{self.task.name}/{self.annotator}-s{run.seed}"
        line = self.annotate("unlabeled", "unlabeled_gold", f"{flags}/answers.jsonl")
        needs = [answers, "gpt_annotate.py"]
        return write_rule(f"{folder}/annotation.json", needs, f"{line} > /dev/null")

    def write_prompted(self, run):
        """An LLM's own answers to test rows, scored as a model's."""
        store = f"$(ANSWERS)/{self.task.name}/{self.annotator}-s{run.seed}-test/answers.jsonl"
        flags = f"--num {run.llm_labels} --seed {run.seed} --predictions --store {store}"
        ask = self.annotate("test", "test", f"{flags} --output $(@D)/{self.annotator}")
        score = self.score(f"--predictions $(@D)/{self.annotator}/predictions.jsonl")
        needs = [*self.first, "gpt_annotate.py", "evaluate.py"]
        target = f"{self.place}/{run.name}/metrics.json"
        return write_rule(target, needs, f"{ask} >&2", f"{score} > /dev/null", "$(told)")

    def write_all(self):
        learners = [run for run in self.runs if run.needs]
        rules = [
            self.write_pass(f) for f in dict.fromkeys(name_pass(r, self.runs) for r in learners)
        ]
        answers = {}
        for run in self.tables:
            if run.strategy == "llm":
                if run.seed not in answers:
                    answers[run.seed], rule = self.write_answers(run.seed)
                    rules.append(rule)
                rules.append(self.write_labels(run, answers[run.seed]))
            rules.append(
                self.write_prompted(run) if run.strategy == "prompted" else self.write_run(run)
            )
        return rules + [self.write_run(run, dev=True) for run in self.pilot]


# --- labels by an LLM: checked before anything is made --------------------------------------


def name_annotator(args):
    """The folder's name of who labels: MODEL, or the simulation with its accuracy."""
    return re.sub("[:/]", "_", args.model) if args.model else f"simulated-{args.accuracy}"


def check_annotator(task, runs, args):
    """No two annotators in one run folder, no paid run without a model and a key, and no simulated
    one without the right answers."""
    annotator, home, unlabeled = name_annotator(args), Path(args.runs, task.name), []
    for run in (run for run in runs if run.strategy in BY_LLM):
        found = find_annotation(home / run.name)
        other = found and found.parent.name not in (annotator, run.name)
        if other:
            raise UserError(
                f"{found.parent}: labels of another annotator than {annotator}; say MODEL=... or "
                f"LLM_ACCURACY=... as then, or move {home / run.name} away"
            )
        unlabeled += [] if found else [home / run.name]
    if not unlabeled or args.partial:
        return
    if args.model and not args.key:
        raise UserError(
            f"MODEL={args.model}: no key and no server; set OPENAI_API_KEY or OPENAI_BASE_URL"
        )
    if args.scale == "paper" and not args.model:
        raise UserError(
            f"{unlabeled[0]} needs labels by an LLM: say MODEL=gpt-4o-mini (any of data/prices.csv)"
            " and the most that a task and seed may cost, BUDGET=20"
        )
    splits = Path(args.prepared, task.name)
    known = (splits / "unlabeled_gold.jsonl").exists() or not (splits / "about.json").exists()
    if not args.model and not known and any(run.strategy == "llm" for run in runs):
        raise UserError(
            f"a simulated annotator needs {splits}/unlabeled_gold.jsonl, the right answers, which"
            " data/prepare.py writes where they are known; for other rows say MODEL=gpt-4o-mini"
        )


# --- how long it may take ---------------------------------------------------------------------


def read_number(flags, name, default):
    """A number among flags {name: text}; the scripts check what is within their limits."""
    try:
        return check_kind(float(flags.get(name) or default), float, f"--{name.replace('_', '-')}")
    except (TypeError, ValueError):
        raise UserError(f"--{name.replace('_', '-')} {flags[name]}: no number") from None


def count_steps(run, flags):
    """Optimiser steps of a run with these flags {name: text}; Table 8's where they say nothing."""
    if (most := read_number(flags, "max_steps", 0)) > 0:
        return int(most)
    rows, batch = run.unlabeled or run.labels + run.llm_labels, read_number(flags, "batch_size", 32)
    steps = math.ceil(rows / max(1, batch)) * read_number(flags, "epochs", 50)
    return math.ceil(max(steps, read_number(flags, "min_steps", 0)))


def tell_duration(seconds):
    """About how long, in words a person plans with."""
    if seconds < 90:
        return "about a minute"
    return (
        f"about {seconds / 60:.0f} minutes"
        if seconds < 5400
        else f"about {seconds / 3600:.1f} hours"
    )


# --- all of it ----------------------------------------------------------------------------------


def prepare_splits(task, args):
    """Make the splits of real data where there are none; refuse, or with REDO=1 make again, those
    that are not of the data that stands there now."""
    place = Path(args.prepared, task.name)
    there = (place / "about.json").exists()
    if (args.dry and args.redo) or not (args.data or there):
        return
    words = ["--task", task.name, "--scale", args.scale, *args.prepare_flags, "--keep"]
    words += ["--redo"] * args.redo + (["--data", args.data] if args.data else [])
    command = [sys.executable, "-m", "data.prepare", *words, "--output", str(place)]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.returncode:
        runs = sorted(
            path.parent.name for path in Path(args.runs, task.name).glob("*/metrics.json")
        )
        made = f" ({len(runs)} runs were made of them: {', '.join(runs[:3])}, ...)" * bool(runs)
        said = (done.stderr.strip().splitlines() or ["no word"])[-1]
        raise UserError((said.partition("error: ")[2] or said) + made)


def list_asked(run, rules, args):
    """{flag: text} of the words that make passes to the script that trains a run."""
    own = {"teacher": args.teacher_flags, "dist": args.dist_flags, "self": args.dist_flags}
    words = shlex.split(rules.list_flags(run).replace("$$", "$"))
    words += [*args.train_flags, *own.get(run.strategy, args.small_flags)]
    return read_words(words)


def find_data(run, task, args):
    """The file of rows that a run learns from."""
    if run.strategy == "llm":
        return Path(args.runs, task.name, run.name, name_annotator(args), "labels.jsonl")
    return Path(args.prepared, task.name, f"{'unlabeled' if run.needs else 'train'}.jsonl")


def check_runs(rules, args, hashes):
    """({run: what changed}, {run: what changed in how it is scored}) of a task's finished runs."""
    task, changed, scored = rules.task, {}, {}
    for run in sorted(rules.runs, key=lambda run: bool(run.needs)):
        folder = Path(args.runs, task.name, run.name)
        change = None
        if run.strategy != "prompted":
            asked, data = list_asked(run, rules, args), find_data(run, task, args)
            change = find_change(folder, asked, data, hashes)
        change = change or next((changed[name] for name in run.needs if name in changed), None)
        if change and folder.exists():
            changed[run.name] = change
            continue
        for place, split in ((folder, "test"), (folder / "dev", "dev")):
            data = Path(args.prepared, task.name, f"{split}.jsonl")
            if change := find_changed_score(place, task, data, hashes):
                scored[str(place.relative_to(Path(args.runs, task.name)))] = change
    return changed, scored


def drop_changed(task, changed, scored, args):
    """Remove what REDO=1 makes again: whole runs, or of those scored otherwise their scores."""
    for name in changed:
        drop(Path(args.runs, task.name, name), "runs")
    for name in scored:
        drop(Path(args.runs, task.name, name, "metrics.json"), "runs")


def estimate(rules, args):
    """{stamp of a run: seconds that it may take or None}, from the finished runs of its strategy,
    else from the scale's recorded seconds a step."""
    rates, known, used = load_scale(args.scale).get("seconds_a_step", {}), {}, {}
    for stamp, run in rules.list_stamps().items():
        steps = count_steps(run, list_asked(run, rules, args)) if run.strategy != "prompted" else 0
        known[stamp] = run.strategy, steps
        home = Path(args.runs, rules.task.name)
        if (home / stamp).exists() and steps:
            metrics = read_json(home / stamp, METRICS)
            training = read_if_there(home / run.name / "training.json", TRAINING)
            training = training or metrics.get("training") or {}
            spent = {**(metrics.get("seconds") or {}), **(training.get("seconds") or {})}
            total = used.setdefault(run.strategy, [0, 0])
            total[0], total[1] = total[0] + sum(spent.values()), total[1] + steps
    rates = {
        **rates,
        **{kind: seconds / steps for kind, (seconds, steps) in used.items() if seconds},
    }
    found = {
        stamp: steps * rates[kind] if kind in rates else None
        for stamp, (kind, steps) in known.items()
    }
    return {f"{rules.task.name}/{stamp}": seconds for stamp, seconds in found.items()}


def tell_work(seconds, args):
    """The first line of a make: how many runs are to do, and about how long they take."""
    left = [each for stamp, each in seconds.items() if not Path(args.runs, stamp).exists()]
    if not left or args.partial:
        return None
    known = [each for each in left if each is not None]
    at_once = max(1, min(args.jobs, len(left)))
    text = f"{len(left)} of {len(seconds)} runs to do"
    if len(known) < len(left):
        return f"{text}; no run like them is finished, so nobody knows how long they take"
    return f"{text}, {tell_duration(sum(known) / at_once)}" + f", {at_once} at a time" * (
        at_once > 1
    )


def choose_tables(tasks, args):
    """The tables and figures asked for, or all that have one of the tasks."""
    names = [name for name in args.table.split() if name in (*TABLES, "all")]
    if "all" in names:
        names = [t for t in TABLES if any(shows(t, x.name) for x in tasks) and t != "pilot"]
        if args.scale == "paper" and not args.model:  # where an LLM costs money
            print("note: without MODEL=... fig6 and fig7 are left out", file=sys.stderr)
            names = [name for name in names if name not in ("fig6", "fig7")]
    return names


def write_rules(tasks, seeds, args):
    """Check all that can be wrong, then write the file of rules; its path."""
    for task in tasks:
        prepare_splits(task, args)
    names, every, needed = choose_tables(tasks, args), {}, {}
    prepared = args.prepared if args.data else None
    for table in names:
        for task in choose_tasks(table, tasks):
            runs = grid(table, task, args.scale, seeds, None, args.llm, prepared)
            if table == "pilot":
                runs = [run for run in runs if run.strategy in PILOTS[args.pilot]]
            needed.setdefault(table, {})[task.name] = runs
            kind = every.setdefault(task.name, ({}, {}))[table == "pilot"]
            kind.update({run.name: run for run in runs})
    lines, seconds, changed, scored, hashes = [], {}, {}, {}, {}
    for task in (task for task in tasks if task.name in every):
        word = name_word(task, args.task.split(), args.data)
        rules = Rules(task, word, *(list(kind.values()) for kind in every[task.name]), args)
        check_annotator(task, rules.runs, args)
        found = check_runs(rules, args, hashes)
        if args.redo and not args.dry:
            drop_changed(task, *found, args)
        changed.update(found[0])
        scored.update(found[1])
        seconds |= estimate(rules, args)
        lines += rules.write_all()
    if (changed or scored) and not args.redo:
        raise UserError(tell(changed, scored))
    if said := tell_work(seconds, args):
        print(said, file=sys.stderr)
    lines.append(f"ASKED := {' '.join(names)}")
    for table, runs in needed.items():
        works = [
            f"$(RUNS)/{task}/{file}"
            for task, some in runs.items()
            for file in order_work(
                some, [*every[task][0].values(), *every[task][1].values()], table == "pilot"
            )
        ]
        lines.append(f"{table}: {'' if args.partial else ' '.join(works)}")
    text = "\n".join(lines) + "\n"
    path = Path(args.made, f"rules-{hashlib.sha256(text.encode()).hexdigest()[:12]}.mk")
    write_atomic(path, text)
    write_json(
        path.with_suffix(".json"), {"runs": args.runs, "seconds": seconds, "jobs": args.jobs}
    )
    return path


def tell_progress(path):
    """How many runs of a make are done, and about how long the others take."""
    shape = {"runs": str, "seconds": {None: float}, "jobs": int}
    record = read_json(path, shape, "runs seconds jobs")
    runs, seconds, jobs = (record[key] for key in shape)
    left = [each for stamp, each in seconds.items() if not Path(runs, stamp).exists()]
    total = len(seconds)
    text = f"{total - len(left)} of {total} runs done"
    if left and None not in left:
        text += f", {tell_duration(sum(left) / max(1, min(jobs, len(left))))} left"
    print(text, file=sys.stderr)


if __name__ == "__main__":
    run_cli(lambda: tell_progress(sys.argv[1]))
