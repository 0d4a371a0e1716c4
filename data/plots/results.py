"""What runs scored, cost and lack: read and checked once, for the tables and the figures.

Usage:
    study = Study(args, task, load_prices())            # args as plots.py parses them
    score = study.score(study.cells[0], "small")        # one cell and strategy: a run a seed
    score.show(), score.mean(), score.spread()          # "18.8 ±0.6", percent, percent
    score.usd(), score.price(ledger)                    # planned and measured dollars
Reads:  of each run metrics.json, training.json, row_scores.json and predictions.jsonl, of an LLM's
        labels annotation.json; data/tasks.json, data/scales.json, data/paper/scores.csv
Paper:  section 4, Tables 2, 3, 4, 9, 10 and 11

Two rules score each run: strict, ours, which is right, and released, that of the authors' code.
"""

import statistics
from collections import defaultdict
from pathlib import Path

from data.costs.budget import choose_list, count_llm_labels, make_terms
from data.costs.flags import find_unit
from data.costs.grid import LLM_EXAMPLES, TABLES, cells, choose_tasks, parse_seeds
from data.costs.ledger import add_up
from data.costs.memory import complete_task
from data.costs.pilot import load_scores
from data.costs.prices import name_llm
from data.costs.runs import find_annotation, parse_run, read_record
from data.costs.stale import METRICS
from data.files import UserError, need, read_json, read_jsonl
from data.tasks import load_tasks

# --- one finished run ----------------------------------------------------------------------

TITLES = {"entity_f1": "Entity F1", "f1": "F1", "micro_f1": "Micro F1", "accuracy": "Accuracy"}
TITLES |= {"bert_ibleu": "BERT-iBLEU"}
ROW_SCORES = {"numerators": [float], "denominators": [float]}


def read_metrics(path, task):
    """metrics.json of a finished run, checked (shape, finite numbers, task and metric), its scores
    by half and by rule among the others."""
    metric, released = task.name_score(), task.name_score("released")
    try:
        found = read_json(path, METRICS, "task metric n metrics signature")
        if found["metric"] not in (metric, released) or found["task"] != task.name:
            theirs = f"{found['metric']} of task {found['task']!r}"
            raise UserError(f"{path}: {theirs}, not {metric} of {task.name!r}")
        score = need(found, f"metrics {metric}", float, path)
        if not -1 <= score <= 101:  # rounding, and BERT-iBLEU of copies
            raise UserError(f"{path}: {metric!r}: no percentage")
        halves = need(found, "by half", dict, path) if "by" in found else {}
        for half, part in halves.items():
            where = f"{path}: 'by': {half!r}"
            found["metrics"][f"{half} half"] = need(part, f"metrics {metric}", float, where)
    except UserError as error:
        raise UserError(f"{error}; run evaluate.py again") from None
    for scores in (found["metrics"], found.get("intervals") or {}):
        strict, other = scores.get(metric), scores.get(released)
        scores["strict"] = strict
        if not task.own:
            scores["released"] = strict if other is None else other
    return found


def check_origin(path, found):
    """Refuse the metrics.json of another run, such as a copied one, by what its name says."""
    run, trained = parse_run(path.parent.name), found.get("training") or {}
    keys = ["strategy", "seed", "unlabeled"]
    for key in keys if run.needs or run.llm_labels else [*keys, "labels"]:
        if trained.get(key) not in (None, getattr(run, key)):
            raise UserError(f"{path}: of a run with {key} {trained[key]}, not of {run.name}")


def score_rows(numerators, denominators):
    """The strict score in percent of rows by their parts; 0 where there is nothing to score."""
    return 100 * sum(numerators) / sum(denominators) if sum(denominators) else 0.0


# --- the runs of a task --------------------------------------------------------------------


def read_tasks(args):
    """The Tasks of --task that the paper shows in this table or figure, or all that are named."""
    tasks = load_tasks(args.task, args.data)
    return choose_tasks(args.command, tasks) if args.command in TABLES else tasks


class Study:
    """One task of a table or figure: its cells, its finished runs, what the paper prints of it."""

    def __init__(self, args, task, prices):
        if not Path(args.runs).is_dir():
            raise UserError(f"--runs {args.runs}: no such folder; give the one with the tasks")
        self.title, self.scale, self.own, self.prices = task.title, args.scale, task.own, prices
        self.metric, self.released = task.name_score(), task.name_score("released")
        self.llm, self.rule = args.llm, getattr(args, "rule", "strict")
        splits = args.prepared and Path(args.prepared, task.name, "train.jsonl")
        self.task, self.folder = complete_task(task, args.scale, splits), Path(args.runs, task.name)
        self.terms, self.unit = make_terms(self.task, prices), find_unit(task, args.scale)
        place = (args.command, self.task, args.scale, parse_seeds(args.seeds), self.terms)
        self.cells = cells(*place, prepared=args.prepared, llm=args.llm)
        groups = (group or () for cell in self.cells for group in cell.runs.values())
        self.runs = list(dict.fromkeys(run for group in groups for run in group))
        self.figure = args.command.startswith("fig")
        self.number = int(args.command.removeprefix("fig").removeprefix("table"))
        # Points of the paper stand in a figure only where counts and dollars are the same.
        same = self.unit == 1 and not self.own
        tables = (self.number,) if not self.figure else (2, 3, 11) if same else ()
        self.printed = [r for r in load_scores() if r["table"] in tables and r["task"] == task.name]
        self.read, self.first = {}, None

    def load(self, run):
        """metrics.json of a run, checked; None where the run is missing or not finished."""
        if run not in self.read:
            path = self.folder / run / "metrics.json"
            self.read[run] = found = read_metrics(path, self.task) if path.exists() else None
            if found:
                check_origin(path, found)
                self.check_rows(path, found)
        return self.read[run]

    def check_rows(self, path, found):
        """Refuse a run that was scored on other rows than the first one, by count or by hash."""
        if path.parent.name.startswith("prompted"):  # which answers to some rows
            return
        data = (found.get("provenance") or {}).get("data_sha256")
        self.first = self.first or (path, found["n"], data)
        where, n, same = self.first
        if n != found["n"] or (data and same and data != same):
            text = f"{path}: scored on other rows ({found['n']:,}) than {where} ({n:,})"
            raise UserError(f"{text}; run evaluate.py again on one file")

    def rows(self, run):
        """(numerators, denominators) of the rows of a finished run, whose sums give its strict
        score; None where row_scores.json is not there or belongs to another scoring."""
        found = self.load(run)
        try:
            path = self.folder / run / "row_scores.json"
            read = read_json(path, ROW_SCORES, "numerators denominators")
        except UserError:
            return None
        parts = [read[key] for key in ROW_SCORES]
        whole = [len(part) for part in parts] == [found["n"], found["n"]]
        same = whole and abs(score_rows(*parts) - found["metrics"]["strict"]) < 0.01
        return parts if same else None

    def score_part(self, run, prompted):
        """The strict score of a run on the rows that an LLM answered; None where they are not
        known: no row_scores.json, or rows that the two don't share."""
        place, parts = find_annotation(self.folder / prompted), self.rows(run)
        folders = [self.folder / run, place.parent] if place and parts else []
        paths = [folder / "predictions.jsonl" for folder in folders]
        if not paths or not all(path.exists() for path in paths):
            return None
        mine, asked = ([(str(r["source"]), str(r["target"])) for r in read_jsonl(p)] for p in paths)
        places = defaultdict(list)
        for i, key in reversed(list(enumerate(mine))):
            places[key].append(i)
        try:
            chosen = [places[key].pop() for key in asked]
            return score_rows(*([part[i] for i in chosen] for part in parts))
        except IndexError:
            return None

    def read_annotations(self):
        """[(path, annotation.json)] of each run on an LLM's labels or answers that has one."""
        runs = [run for run in self.runs if run.strategy in ("llm", "prompted")]
        paths = [find_annotation(self.folder / run.name) for run in runs]
        return [(path, read_json(path)) for path in paths if path]

    def name_annotator(self):
        """Who labeled in place of people: an LLM's name, or a simulated annotator's."""
        names = (need(found, "annotator", str, path) for path, found in self.read_annotations())
        return " / ".join(dict.fromkeys(names)) or "LLM"

    def name_paid(self):
        """What the plans pay, as count_llm_labels() names it: "text-davinci-003, paper"."""
        which = choose_list(self.task)
        return f"{name_llm(which)}, {which}"

    def count_llm_labels(self, cell):
        """{how it is paid: LLM labels that a cell's budget buys}, {} where it buys none."""
        bought = cell.llm_labels and cell.budget_usd
        return count_llm_labels(self.task, cell.budget_usd, self.prices) if bought else {}

    def score(self, cell, strategy, part=None):
        return Score(self, cell, strategy, part)


# --- one cell ------------------------------------------------------------------------------

# what of a cell's plan may be short for a figure's runs; where there is no budget, labels for all
PLANNED = {"small": "labels", "llm": "rows for an LLM", "dist": "unlabeled rows"}


class Score:
    """What the runs of one strategy in one cell scored, a run for each seed: percent.

    `key` is "strict", "released" (strict where both rules agree; a task of one's own has none) or
    any key of metrics.json; by default the rule that is asked for. With `part`, the Score of a
    strategy that answered to some test rows alone, the strict score is of these rows where they are
    known; `on_part` says whether.
    """

    def __init__(self, study, cell, strategy, part=None):
        self.study, self.cell, self.strategy, self.on_part = study, cell, strategy, False
        self.runs = tuple(cell.runs.get(strategy) or ())
        self.there = [run for run in self.runs if study.load(run.name)]
        self.found = [study.load(run.name) for run in self.there]
        if part and self.found:
            self.keep_part(part)

    def keep_part(self, part):
        """Score each run on the rows that the run of `part` with the same seed answered; for them
        there is no interval."""
        asked = {run.seed: run.name for run in part.there}
        pairs = [(run.name, asked.get(run.seed)) for run in self.there]
        scores = [other and self.study.score_part(run, other) for run, other in pairs]
        self.on_part = None not in scores
        self.found = [{**found, "intervals": None} for found in self.found]
        for found, score in zip(self.found, scores if self.on_part else (), strict=False):
            found["n"] = part.found[0]["n"]
            found["metrics"] = {**found["metrics"], "strict": score}

    def find_printed(self):
        """The paper's score of the same models, counts and dollars, None where it prints none."""
        study, cell = self.study, self.cell
        if not all(run.usual for run in self.runs):
            return None
        wanted = {"strategy": self.strategy, "labels": cell.labels * study.unit}
        if study.number in (4, 9) and not study.figure and cell is study.cells[-1]:  # all labels
            wanted = {"strategy": "small-full" if self.strategy == "small" else self.strategy}
        elif cell.budget_usd is not None and self.strategy != "teacher":
            wanted["budget_usd"] = cell.budget_usd * study.unit
        elif study.figure:
            wanted |= (
                {"budget_usd": 0} if self.strategy == "small" else {"unlabeled": cell.unlabeled}
            )
        rows = (row for row in study.printed if row["metric"] not in ("macro F1", "EM"))
        return next((row["score"] for row in rows if wanted.items() <= row.items()), None)

    def list_notes(self):
        """The cell's notes, without those on rows that only other strategies' runs lack."""
        kinds = {PLANNED.get(self.strategy), None if self.cell.budget_usd else "labels"}
        return [
            note
            for note in self.cell.notes
            if not note.endswith(" exist") or any(f" {kind} planned, " in note for kind in kinds)
        ]

    def values(self, key=None):
        """One value for each finished run that has it."""
        values = [found["metrics"].get(key or self.study.rule) for found in self.found]
        return [value for value in values if value is not None]

    def mean(self, key=None):
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key=None):
        """Standard deviation over seeds, None for fewer than two."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None

    def bar(self):
        """(low, high) of an error bar: a standard deviation over seeds, of one seed the 95%
        interval over test rows; None where neither is known."""
        if (spread := self.spread()) is not None:
            return self.mean() - spread, self.mean() + spread
        known = self.found[0].get("intervals") if self.found else None
        ends = (known or {}).get(self.study.rule) or ()
        return tuple(ends) if len(ends) == 2 else None

    def count_rows(self):
        """Test rows behind the score; None without a finished run."""
        return self.found[0]["n"] if self.found else None

    def has_released(self):
        """Whether these runs have a score by the released rule, which knows no own tasks."""
        return not self.study.own and any(self.study.released in m["metrics"] for m in self.found)

    def show(self, key=None):
        """Mean, spread over seeds and what is missing; N/A where the budget doesn't cover it."""
        if not self.found:
            return "missing" if self.runs else "N/A"
        values, spread = self.values(key), self.spread(key)
        if not values:
            return None
        text = self.show_mean(key) + (f" ±{spread:.1f}" if spread is not None else "")
        short = f" ({len(values)}/{len(self.runs)})" if len(values) < len(self.runs) else ""
        return text + short + " ↓" * (key is None and self.is_below_constant())

    def show_mean(self, key=None):
        """The mean alone, for what hardly differs between seeds; None where there is none."""
        return f"{self.mean(key):.1f}" if self.values(key) else None

    def is_below_constant(self):
        """Whether the mean is below the best predictor that always gives the same output."""
        constant = self.mean("constant")
        return constant is not None and self.mean() < constant

    def list_records(self, run):
        """What a run and those it needs used, as Records; [] where it isn't recorded of one."""
        names, study = (run.name, *run.needs), self.study
        trained = [(study.load(name) or {}).get("training") or {} for name in names]
        known = all(each.get("hardware") for each in trained)
        return [read_record(study.folder / name) for name in names] if known else []

    def seconds(self):
        """Mean seconds of a run's devices, with those of the run it learns from."""
        spent = filter(None, map(self.list_records, self.there))
        hours = [sum(r.hours + r.pass_hours for r in each) for each in spent]
        return float(statistics.fmean(hours) * 3600) if hours else None

    def price(self, book):
        """Mean dollars of GPU time and an LLM's tokens by a Ledger, those of the needed run too;
        None where one has no price."""
        amounts = []
        for records in map(self.list_records, self.there):
            others = {(r.world, r.task, r.run): r for r in records}
            bill = book.price_model(records[0], others) if records else {}
            amounts += [bill.get("compute_usd"), bill.get("llm_usd")]
        usd = add_up(amounts)
        return usd / len(self.there) if self.there and usd is not None else None

    def planned_usd(self):
        """Dollars that the plan spends beyond `initial_usd`; None where it has no price."""
        cell, spent = self.cell, self.cell.annotate_usd
        if spent and self.runs:  # for as many labels as there are
            spent = min(spent, self.count_bought() * self.study.terms.usd_per_label)
        plans = {"teacher": cell.teacher_usd, "self": None}
        plans |= dict.fromkeys(("dist", "encoder"), cell.distill_usd)
        plans |= dict.fromkeys(("llm", "prompted"), cell.llm_usd)
        return plans.get(self.strategy, spent)

    def count_bought(self):
        """Labels of people that the runs train on beyond the cell's N."""
        return self.runs[0].labels - self.cell.labels

    def initial_usd(self):
        """Dollars of the labels there are; the rows in an LLM's prompts are paid for as well."""
        shown = LLM_EXAMPLES if self.strategy in ("llm", "prompted") else 0
        return max(self.cell.labels, shown) * self.study.terms.usd_per_label

    def usd(self):
        """The dollars at which a figure draws the cell."""
        return self.initial_usd() + (self.planned_usd() or 0)


def find_frontier(points):
    """The (usd, mean, ...) tuples that no other one beats at the same dollars or fewer, by dollars
    (Figure 2)."""
    kept = []
    for point in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept
