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
from fractions import Fraction
from pathlib import Path

from data.costs.budget import choose_list, count_llm_labels, make_terms
from data.costs.flags import find_unit
from data.costs.grid import LLM_EXAMPLES, TABLES, cells, choose_tasks, parse_seeds
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


def read_metrics(path, task):
    """metrics.json of a finished run, checked: shape, finite numbers, task and metric."""
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
        for half, part in halves.items():  # a measure like the others
            where = f"{path}: 'by': {half!r}"
            found["metrics"][f"{half} half"] = need(part, f"metrics {metric}", float, where)
    except UserError as error:
        raise UserError(f"{error}; run evaluate.py again") from None
    return found


def check_origin(path, found):
    """Refuse the metrics.json of another run, such as a copied one, by what its name says."""
    run, trained = parse_run(path.parent.name), found.get("training") or {}
    keys = ["strategy", "seed", "unlabeled"]
    for key in keys if run.needs or run.llm_labels else [*keys, "labels"]:
        if trained.get(key) not in (None, getattr(run, key)):
            raise UserError(f"{path}: of a run with {key} {trained[key]}, not of {run.name}")


def read_row_scores(path, n, score):
    """(numerators, denominators) of the rows of row_scores.json, whose sums give the strict `score`
    of metrics.json; None where the file is not there or belongs to another scoring."""
    try:
        shape = {"numerators": [float], "denominators": [float]}
        found = read_json(path, shape, " ".join(shape))
        numbers = [found[key] for key in shape]
    except UserError:
        return None
    whole = [len(column) for column in numbers] == [n, n]
    return numbers if whole and abs(score_rows(*numbers) - score) < 0.01 else None


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
        self.title, self.scale, self.own, self.prices = task.title, args.scale, task.own, prices
        self.metric, self.released = task.name_score(), task.name_score("released")
        self.llm, self.rule = getattr(args, "llm", False), getattr(args, "rule", "strict")
        self.folder, splits = Path(args.runs, task.name), None
        if not Path(args.runs).is_dir():
            raise UserError(f"--runs {args.runs}: no such folder; give the one with the tasks")
        if args.prepared:
            splits = Path(args.prepared, task.name, "train.jsonl")
        self.task = complete_task(task, args.scale, splits)
        self.terms, self.unit = make_terms(self.task, prices), find_unit(task, args.scale)
        place = (args.command, self.task, args.scale, parse_seeds(args.seeds), self.terms)
        self.cells = cells(*place, prepared=args.prepared, llm=self.llm)
        self.figure = args.command.startswith("fig")
        self.number = int(args.command.removeprefix("fig").removeprefix("table"))
        # Points of the paper stand in a figure only where counts and dollars are the same.
        same = self.unit == 1 and not self.own
        tables = (self.number,) if not self.figure else (2, 3, 11) if same else ()
        self.printed = [r for r in load_scores() if r["table"] in tables and r["task"] == task.name]
        self.read, self.records, self.parts, self.first = {}, {}, {}, None

    def load(self, run):
        """metrics.json of a run, checked; None where the run is missing or not finished."""
        if run not in self.read:
            path = self.folder / run / "metrics.json"
            self.read[run] = read_metrics(path, self.task) if path.exists() else None
            if self.read[run]:
                check_origin(path, self.read[run])
            if self.read[run] and not run.startswith("prompted"):  # which answers to some rows
                self.check_rows(path, self.read[run])
        return self.read[run]

    def check_rows(self, path, found):
        """Refuse a run that was scored on other rows than the first one, by count or by hash."""
        data = (found.get("provenance") or {}).get("data_sha256")
        self.first = self.first or (path, found["n"], data)
        where, n, same = self.first
        if n != found["n"] or (data and same and data != same):
            text = f"{path}: scored on other rows ({found['n']:,}) than {where} ({n:,})"
            raise UserError(f"{text}; run evaluate.py again on one file")

    def record(self, run):
        """What a run used as costs.py reads it, None where that isn't recorded."""
        if run not in self.records:
            there = self.load(run) and (self.load(run).get("training") or {}).get("hardware")
            self.records[run] = read_record(self.folder / run) if there else None
        return self.records[run]

    def rows(self, run):
        """As read_row_scores() has it, of a run; None where there is none."""
        if run not in self.parts:
            path, found = self.folder / run / "row_scores.json", self.load(run)
            score = found and found["metrics"][self.metric]
            self.parts[run] = found and read_row_scores(path, found["n"], score)
        return self.parts[run]

    def score_part(self, run, prompted):
        """The strict score of a run on the rows that an LLM answered; None where they are not
        known: no row_scores.json, or rows that the two don't share."""
        place = find_annotation(self.folder / prompted)
        paths = [self.folder / run, place and place.parent]
        paths = [folder and folder / "predictions.jsonl" for folder in paths]
        if not self.rows(run) or not all(path and path.exists() for path in paths):
            return None
        mine, asked = ([(str(r["source"]), str(r["target"])) for r in read_jsonl(p)] for p in paths)
        places = defaultdict(list)
        for i, key in reversed(list(enumerate(mine))):
            places[key].append(i)
        try:
            chosen = [places[key].pop() for key in asked]
            return score_rows(*([part[i] for i in chosen] for part in self.rows(run)))
        except IndexError:
            return None

    def read_annotations(self):
        """[(path, annotation.json)] of each run on an LLM's labels or answers that has one."""
        runs = [r for c in self.cells for s in ("llm", "prompted") for r in c.runs.get(s) or ()]
        paths = [find_annotation(self.folder / run.name) for run in dict.fromkeys(runs)]
        return [(path, read_json(path)) for path in paths if path]

    def name_annotator(self):
        """Who labeled in place of people: an LLM's name, or a simulated annotator's."""
        names = (need(found, "annotator", str, path) for path, found in self.read_annotations())
        return " / ".join(dict.fromkeys(names)) or "LLM"

    def name_paid(self):
        """The LLM whose price the plans pay and the list that has it, as count_llm_labels() names
        them: "text-davinci-003, paper", of a task of one's own "gpt-6-luna, today"."""
        which = choose_list(self.task)
        return f"{name_llm(which)}, {which}"

    def count_llm_labels(self, cell):
        """{how it is paid: LLM labels that a cell's budget buys}, {} where it buys none."""
        bought = cell.llm_labels and cell.budget_usd
        return count_llm_labels(self.task, cell.budget_usd, self.prices) if bought else {}

    def score(self, cell, strategy):
        return Score(self, cell, strategy)

    def list_runs(self):
        """Names of all runs of the cells, each once."""
        groups = (group or () for cell in self.cells for group in cell.runs.values())
        return list(dict.fromkeys(run.name for group in groups for run in group))

    def find_printed(self, cell, strategy):
        """The score that the paper prints for a cell, None where it prints none."""
        whole = self.number in (4, 9) and not self.figure and cell is self.cells[-1]  # all labels
        strategy = f"{strategy}-full" if whole and strategy == "small" else strategy
        wanted = {} if whole else {"labels": cell.labels * self.unit}
        if cell.budget_usd is not None and strategy != "teacher" and not whole:
            wanted["budget_usd"] = cell.budget_usd * self.unit
        elif self.figure:
            wanted |= {"budget_usd": 0} if strategy == "small" else {"unlabeled": cell.unlabeled}
        for row in self.printed:
            usual = row["metric"] not in ("macro F1", "EM")
            if usual and row["strategy"] == strategy and wanted.items() <= row.items():
                return row["score"]
        return None


# --- one cell ------------------------------------------------------------------------------


# strategy -> what of a cell's plan is short for its runs; where there is no budget, labels for all
PLANNED = {"small": "labels", "llm": "rows for an LLM", "dist": "unlabeled rows"}
PLANNED["self"] = PLANNED["dist"]


class Score:
    """What the runs of one strategy in one cell scored, a run for each seed: percent.

    `key` is "score" (strict), "released" (strict where both rules agree; a task of one's own has
    none), "rule" (what the figure asks for) or any key of metrics.json. With `part`, a strategy of
    the cell that answered to some test rows alone, the strict score is of these rows where they are
    known.
    """

    def __init__(self, study, cell, strategy, part=None):
        self.study, self.cell, self.strategy = study, cell, strategy
        self.runs = tuple(cell.runs.get(strategy) or ())
        self.there = [run for run in self.runs if study.load(run.name)]
        self.found = [study.load(run.name) for run in self.there]
        self.part, self.other = {}, part
        for run in self.there if part else ():
            other = next((o.name for o in part.there if o.seed == run.seed), None)
            self.part[run.name] = other and study.score_part(run.name, other)

    def list_notes(self):
        """The cell's notes, without those on rows that only other strategies' runs lack."""
        kinds = {PLANNED.get(self.strategy), None if self.cell.budget_usd else "labels"}
        return [
            note
            for note in self.cell.notes
            if not note.endswith(" exist") or any(f" {kind} planned, " in note for kind in kinds)
        ]

    def is_part(self):
        """Whether all finished runs are scored on the rows of `part`."""
        return bool(self.part) and None not in self.part.values()

    def name_keys(self, key):
        """The keys of metrics.json that `key` stands for, the first that is there."""
        metric = self.study.metric
        key = {"score": "strict", "rule": self.study.rule}.get(key, key)
        released = [] if self.study.own else [self.study.released, metric]
        return {"strict": [metric], "released": released}.get(key, [key])

    def values(self, key="score"):
        """One value for each finished run that has it."""
        names = self.name_keys(key)
        if names == [self.study.metric] and self.is_part():
            return list(self.part.values())
        found = [[m["metrics"].get(name) for name in names] for m in self.found]
        found = [next((v for v in each if v is not None), None) for each in found]
        return [value for value in found if value is not None]

    def mean(self, key="score"):
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def spread(self, key="score"):
        """Standard deviation over seeds, None for fewer than two."""
        values = self.values(key)
        return statistics.stdev(values) if len(values) > 1 else None

    def bar(self):
        """(low, high) of an error bar: a standard deviation over seeds, of one seed the 95%
        interval over test rows; None where neither is known."""
        if self.spread("rule") is not None:
            return tuple(self.mean("rule") + sign * self.spread("rule") for sign in (-1, 1))
        known = self.found[0].get("intervals") if self.found and not self.part else None
        ends = (known[name] for name in self.name_keys("rule") if name in (known or {}))
        found = next(ends, None) or ()
        return tuple(found) if len(found) == 2 else None

    def count_rows(self):
        """Test rows behind the score; None without a finished run."""
        found = self.other.found if self.is_part() else self.found
        return found[0]["n"] if found else None

    def has_released(self):
        """Whether these runs have a score by the released rule, which knows no own tasks."""
        return not self.study.own and any(self.study.released in m["metrics"] for m in self.found)

    def show(self, key="score"):
        """Mean, spread over seeds and what is missing; N/A where the budget doesn't cover it."""
        if not self.found:
            return "missing" if self.runs else "N/A"
        values, spread = self.values(key), self.spread(key)
        if not values:
            return None
        text = self.show_mean(key) + (f" ±{spread:.1f}" if spread is not None else "")
        short = f" ({len(values)}/{len(self.runs)})" if len(values) < len(self.runs) else ""
        return text + short + " ↓" * (key == "score" and self.is_below_constant())

    def show_mean(self, key):
        """The mean alone, for what hardly differs between seeds; None where there is none."""
        return f"{self.mean(key):.1f}" if self.values(key) else None

    def is_below_constant(self):
        """Whether the mean is below the best predictor that always gives the same output."""
        constant = self.mean("constant")
        return constant is not None and self.mean() < constant

    def list_records(self, run):
        """Records of a run and of those it needs; None where one of them is missing."""
        records = [self.study.record(name) for name in (run.name, *run.needs)]
        return None if None in records else records

    def seconds(self):
        """Mean seconds of a run's devices, with those of the run it learns from."""
        spent = [self.list_records(run) for run in self.there]
        hours = [sum(r.hours + r.pass_hours for r in each) for each in spent if each]
        return float(statistics.fmean(hours) * 3600) if hours else None

    def price(self, book):
        """Mean dollars of GPU time and an LLM's tokens by a Ledger, those of the needed run too;
        None where one has no price."""
        bills = []
        for run in self.there:
            records = self.list_records(run)
            others = {(r.world, r.task, r.run): r for r in records or ()}
            bill = book.price_model(records[0], others) if records else {}
            bills.append([bill.get(kind) for kind in ("compute_usd", "llm_usd")])
        known = bills and not any(None in bill for bill in bills)
        return sum(map(sum, bills), Fraction(0)) / len(bills) if known else None

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
