"""What the runs of a table of scores scored, cost and lack: read once, shown cell by cell, noted.

Usage:
    study = Study(args, task, books)                    # args as plots.py parses them
    score = study.score(study.cells[0], "small")        # one cell: one run a seed
    score.show(), score.show("constant"), score.price("today")  # "18.8 ±0.6", "0.6", dollars
Reads:  runs/WORLD/TASK/RUN/metrics.json (and training.json), data/tasks.json, data/scales.json,
        data/prices.csv, data/paper/scores.csv
Writes: nothing
Paper:  Tables 2, 3, 4, 9, 10 and 11
"""

import re
import statistics
from pathlib import Path

from data.costs.budget import count_llm_labels, load_scale, tell_scale
from data.costs.grid import cells, parse_seeds
from data.costs.runs import find_annotation, read_record
from data.files import read_json
from data.plots.points import METRIC_TITLES, RELEASED_KEYS, load_scores
from data.plots.tables import show_count, show_dollars

STRATEGIES = {
    "small": "Ann.",
    "teacher": "Teacher",
    "dist": "Dist.",
    "self": "Self-Dist.",
    "distilbert": "DistilBERT",
    "bert": "BERT",
    "llm": "LLM",
}
# --- finished runs -------------------------------------------------------------------------


class Study:
    """One task of a table: its cells, its finished runs and what the paper prints for it."""

    def __init__(self, args, task, books):
        name, self.entry = task.name, task
        self.task, self.title, self.books = name, task.title, books
        self.llm = args.llm
        self.number = int(args.command.removeprefix("table"))
        self.folder, self.read, self.records = Path(args.runs) / name, {}, {}
        seeds, limits = parse_seeds(args.seeds), {"prepared": args.prepared, "llm": args.llm}
        self.cells = cells(args.command, task, args.scale, seeds, **limits)
        self.own = task.own  # its counts stand at any scale
        self.unit = 1 if self.own else load_scale(args.scale)["divide_by"]
        rows = load_scores()
        self.printed = [c for c in rows if (c["table"], c["task"]) == (self.number, name)]

    def load(self, run):
        """metrics.json of a run, None where the run is missing or not finished."""
        if run not in self.read:
            path = self.folder / run / "metrics.json"
            self.read[run] = read_json(path) if path.exists() else None
        return self.read[run]

    def record(self, run):
        """What a run used as costs.py reads it, None where that isn't recorded."""
        if run not in self.records:
            there = self.load(run) and (self.load(run).get("training") or {}).get("hardware")
            self.records[run] = read_record(self.folder / run) if there else None
        return self.records[run]

    def name_annotator(self):
        """Who labeled in place of people, as the runs say; an LLM where none of them is there."""
        runs = [run for cell in self.cells for run in cell.runs.get("llm", ())]
        paths = [find_annotation(self.folder / run.name) for run in runs]
        names = dict.fromkeys(read_json(path)["annotator"] for path in paths if path)
        return " / ".join(names) or "LLM"

    def count_llm_labels(self, cell):
        """LLM labels that a cell's budget buys, as text: as planned, and at today's prices."""
        if not cell or not cell.llm_labels:
            return None, None
        prices = self.books["today"].prices
        counts = count_llm_labels(self.entry, cell.budget_usd, prices)
        today = next(count for name, count in counts.items() if name.endswith("today"))
        return f"{cell.llm_labels:,}", f"{today:,}"

    def score(self, cell, strategy):
        return Score(cell.runs.get(strategy), self)

    def find_printed(self, cell, strategy):
        """The score that the paper prints for a cell, None where it prints none."""
        n, usd, whole = cell.labels * self.unit, cell.budget_usd, False
        if self.number in (4, 9) and cell is self.cells[-1]:  # all labels
            whole, strategy = True, "small-full" if strategy == "small" else strategy
        for row in self.printed:
            bought = usd is None or strategy == "teacher" or row["budget_usd"] == usd * self.unit
            same = whole or (row["labels"] == n and bought)
            if row["strategy"] == strategy and same and row["metric"] not in ("macro F1", "EM"):
                return row["score"]
        return None


class Score:
    """What the runs of one cell (one run a seed) scored; a missing run stays visible."""

    def __init__(self, runs, study):
        self.runs, self.study = runs or (), study
        self.there = [run for run in self.runs if study.load(run.name)]
        self.found = [study.load(run.name) for run in self.there]

    def values(self, key):
        """One value per finished run: "score", or any key of its metrics."""
        found = [m["score"] if key == "score" else m["metrics"].get(key) for m in self.found]
        return [value for value in found if value is not None]

    def mean(self, key="score"):
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def show(self, key="score"):
        """Mean, spread over seeds (standard deviation) and what is missing; N/A as planned."""
        if not self.runs:
            return "N/A"
        if not self.found:
            return "missing"
        values = self.values(key)
        if not values:
            return None
        text = self.show_mean(key)
        text += f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
        short = len(values) < len(self.runs)
        return text + (f" ({len(values)}/{len(self.runs)})" if short else "")

    def show_mean(self, key):
        """The mean alone, for what hardly differs between seeds; None where there is none."""
        return f"{self.mean(key):.1f}" if self.values(key) else None

    def released_key(self):
        """The key of the score by the paper's rule; None where both rules agree."""
        metric = self.found[0]["metric"] if self.found else ""
        key = RELEASED_KEYS.get(metric, f"{metric}_released")
        return key if self.values(key) else None

    def show_released(self):
        """As show, by the paper's rule, which is the score where both rules agree."""
        return self.show(self.released_key() or "score")

    def show_also(self):
        """The task's second measure, if it has one: macro F1 of classes, EM of answers, copies."""
        for key, name in ALSO.items():
            if self.values(key) and key != self.found[0]["metric"]:
                return f"{name} {self.show(key)}"
        return ""

    def seconds(self):
        """Mean seconds of a run's devices, with those of the run it learns from."""
        spent = [self.list_records(run) for run in self.there]
        hours = [sum(r.hours + r.pass_hours for r in each) for each in spent if each]
        return float(statistics.fmean(hours) * 3600) if hours else None

    def list_records(self, run):
        """Records of a run and of those it needs; None where one of them is missing."""
        records = [self.study.record(name) for name in (run.name, *run.needs)]
        return None if None in records else records

    def price(self, which):
        """Mean dollars of measured GPU time and LLM tokens, the needed run's too; None on a CPU."""
        usd = []
        for run in self.there:
            records, book = self.list_records(run), self.study.books[which]
            others = {(r.world, r.task, r.run): r for r in records or ()}
            bill = book.price_model(records[0], others) if records else {"compute_usd": None}
            usd.append(
                None if bill["compute_usd"] is None else bill["compute_usd"] + bill["llm_usd"]
            )
        return None if None in usd or not usd else sum(usd) / len(usd)


ALSO = {"macro_f1": "macro F1", "em": "EM", "copy_rate": "copies %"}

# --- cell by cell --------------------------------------------------------------------------

CELL_COLUMNS = (
    "Task,N,Budget,Strategy,Labels,Unlabeled,Seeds,Score,Paper's rule,Also,Invalid %,Constant,"
    "Paper,Planned $,GPU $ paper,GPU $ today,Seconds"
).split(",")
LLM_COLUMNS = ["LLM labels", "At today's price"]  # where --llm asks for them
CELL_NOTES = (
    "Seeds: finished of planned. Score: by the strict rule; Paper: printed in the paper. Invalid: "
    "outputs that can't be read. Constant: the best predictor that always gives the same output.",
    "Planned $: spent beyond N labels by the plan, at the paper's rates and prices. GPU $ and "
    "seconds: measured, loading and saving included; a run that learns from another one has that "
    "one's training and its share of the pass over the unlabeled rows in it. Hours on a CPU have "
    "no price; `python costs.py report --gpu NAME` counts them as a GPU's.",
)


def list_details(study):
    """The cells of a task as rows of CELL_COLUMNS: each group of runs once, a teacher first."""
    counts = list(dict.fromkeys(cell.labels for cell in study.cells))
    groups = [(cell, strategy) for cell in study.cells for strategy in STRATEGIES]
    groups.sort(key=lambda group: (counts.index(group[0].labels), group[1] != "teacher"))
    rows, shown = [], set()
    for cell, strategy in groups:
        names = tuple(run.name for run in cell.runs.get(strategy) or ())
        unaffordable = strategy == "dist" and "dist" in cell.runs and cell.budget_usd
        if names not in shown and (names or unaffordable):
            rows.append(show_detail(study, cell, strategy))
            shown |= {names} if names else set()
    return rows


def show_detail(study, cell, strategy):
    """One group of runs as a row of CELL_COLUMNS."""
    score, learns = study.score(cell, strategy), strategy in ("dist", "self")
    planned = {"dist": cell.distill_usd, "teacher": cell.teacher_usd, "self": None}
    planned["llm"] = cell.llm_usd
    usd = planned.get(strategy, cell.annotate_usd)
    budget = None if strategy == "teacher" else cell.budget_usd
    run = score.runs[0] if score.runs else None
    seconds = score.seconds()
    return [
        *(study.title, f"{cell.labels:,}"),
        "" if budget is None else f"+{show_dollars(budget)}",
        STRATEGIES[strategy],
        f"{run.labels + run.llm_labels:,}" if run else None,
        f"{run.unlabeled:,}" if run and learns else "0" if run else None,
        f"{len(score.found)}/{len(score.runs)}",
        score.show(),
        score.show_released(),
        score.show_also(),
        score.show_mean("invalid_rate"),
        score.show_mean("constant"),
        study.find_printed(cell, strategy),
        show_dollars(usd),
        show_dollars(score.price("paper")),
        show_dollars(score.price("today")),
        None if seconds is None else f"{seconds:,.0f}",
        *(study.count_llm_labels(cell if strategy == "llm" else None) if study.llm else ()),
    ]


# --- notes ---------------------------------------------------------------------------------

METRIC_NOTES = {
    "entity_f1": "an entity counts if its text and its label are right; micro",
    "micro_f1": "micro F1 over classes, which is the share of right rows; macro F1 beside it",
    "accuracy": "share of right rows; an output that is no label is wrong",
    "f1": "F1 over the words of an answer, as in SQuAD; exact match (EM) beside it",
    "bert_ibleu": "likeness to the source by BERTScore, less its copying by BLEU",
}


def note_metrics(studies):
    """One note a metric: what it is and which tasks have it, on how many rows."""
    metrics = {}
    for study in studies:
        for found in filter(None, study.read.values()):
            metrics.setdefault(found["metric"].removesuffix("_released"), {})[
                study.title, found["n"]
            ] = 0
    for metric, tasks in metrics.items():
        metric = {rule: name for name, rule in RELEASED_KEYS.items()}.get(metric, metric)
        where = ", ".join(f"{title} ({n:,} test rows)" for title, n in tasks)
        what = METRIC_NOTES.get(metric, "see evaluate.py")
        yield f"{METRIC_TITLES.get(metric, metric)}, {where}: {what}."


def note_missing(studies):
    """How many runs are there, and the names of the first that are not."""
    names = [
        f"{study.task}/{run.name}"
        for study in studies
        for run in dict.fromkeys(r for c in study.cells for g in c.runs.values() for r in g or ())
    ]
    gone = [name for name in names if not load_named(studies, name)]
    if gone:
        more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
        yield f"{len(gone)} of {len(names)} runs missing: {', '.join(gone[:3])}{more}."


def load_named(studies, name):
    task, run = name.split("/")
    return next(study for study in studies if study.task == task).load(run)


def note_signatures(studies):
    """The scorer's settings of each task; several of one task would not be comparable."""
    for study in studies:
        found = sorted({m["signature"] for m in study.read.values() if m})
        # An encoder's output is a class, a T5's token ids: the paper's rule reads each as it comes.
        if len({re.sub(r"released_side:[^|]*", "", signature) for signature in found}) > 1:
            yield (
                f"{study.title}: scored with {len(found)} different settings, so these numbers "
                "can't be compared; run evaluate.py again"
            )
        yield from (f"Scorer, {study.title}: {signature}" for signature in found)


def make_notes(args, studies, own):
    """What a reader must know to read the numbers; `own` are the notes of this table."""
    seeds = parse_seeds(args.seeds)
    spread = f"mean ± standard deviation over {len(seeds)} seeds; (1/{len(seeds)}): of one of them"
    notes = [
        "In percent; "
        + (spread if len(seeds) > 1 else f"one seed ({seeds[0]}), so no spread")
        + ". Paper's rule: the released scorer's, to compare; the other one is to believe."
    ]
    notes += [*note_metrics(studies), *own, *note_missing(studies)]
    printed = any(study.printed for study in studies)
    if args.scale != "paper":
        notes.append(
            tell_scale(args.scale, all(study.own for study in studies))
            + " The paper's values are T5 v1.1 on the real task at ten times the counts, by its "
            "own rule: compare the pattern, not the numbers." * printed
        )
    if args.data:
        real = ": small models of invented text on real text" * (args.scale != "paper")
        notes.append(f"Text and labels from {args.data}{real}.")
    notes += dict.fromkeys(note for study in studies for cell in study.cells for note in cell.notes)
    notes += dict.fromkeys(note for study in studies for note in note_printed(study))
    return (*notes, *note_signatures(studies))


def note_printed(study):
    """What there is to say about values that the paper prints, or that can't be read in it."""
    for row in study.printed:
        if row["note"] and row["strategy"] != "existing":  # there it is where they come from
            what = f"{study.title}, {STRATEGIES[row['strategy'].removesuffix('-full')]}"
            yield f"Paper's value, {what}, N={show_count(row['labels'])}: {row['note']}."
