"""Points of the figures: what the runs of a cell scored, what they cost, which are missing.

Usage:
    part = TaskPoints(args, "fig2", task)               # args as plots.py parses them
    points = [part.make_point(cell, "small") for cell in part.cells]
    points[0].usd, points[0].mean, points[0].spread     # dollars, percent, percent or None
Reads:  runs/WORLD/TASK/RUN/metrics.json (for measured dollars also training.json), data/tasks.json,
        data/scales.json, data/prices.csv, data/paper/scores.csv
Writes: nothing
Paper:  section 4, Tables 2, 3 and 11
"""

import csv
import statistics
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.costs.budget import count_llm_labels, load_scale, make_terms
from data.costs.grid import cells, parse_seeds
from data.costs.ledger import Ledger
from data.costs.prices import load_prices
from data.costs.runs import find_annotation, read_record
from data.files import DATA, UserError, read_json

# --- the paper's scores --------------------------------------------------------------------


def load_scores(path=DATA / "paper" / "scores.csv"):
    """The scores that the paper prints in Tables 2, 3, 4, 9, 10 and 11: one dict per cell.

    Keys: table, task, strategy (small, teacher, dist, self, distilbert, bert; small-full: on all
    labels; existing: of other papers), labels (N), budget_usd (additional dollars; in Table 4
    all that is printed), extra_labels, gpu_hours, unlabeled, metric, score, note. Counts are
    ints and scores floats; None where nothing or N/A is printed, or, see note, isn't legible.
    """
    numbers = ("table", "labels", "budget_usd", "extra_labels", "gpu_hours", "unlabeled")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({key: int(row[key]) if row[key] else None for key in numbers})
        row["score"] = float(row["score"]) if row["score"] not in ("", "N/A") else None
    return rows


# --- what the runs say ---------------------------------------------------------------------

RELEASED_KEYS = {"entity_f1": "f1_released"}  # elsewhere the name of the score and _released
METRIC_TITLES = {
    "entity_f1": "Entity F1",
    "f1": "F1",
    "micro_f1": "Micro F1",
    "accuracy": "Accuracy",
    "bert_ibleu": "BERT-iBLEU",
}


def find_score(metrics, rule):
    """(name, value) of the score by `rule`, strict or released; or the one score."""
    name, values = metrics["metric"], metrics["metrics"]
    if name.endswith("_released"):  # evaluate.py --rule released
        back = {released: strict for strict, released in RELEASED_KEYS.items()}
        name = back.get(name, name.removesuffix("_released"))
    paper = RELEASED_KEYS.get(name, f"{name}_released")
    name = paper if rule == "released" and paper in values else name
    return name, values[name]


class Results:
    """The runs of one task, read once: their scores, what they cost, which of them are missing."""

    def __init__(self, args, task):
        self.folder, self.rule = Path(args.runs) / task.name, args.rule
        self.measured = args.dollars == "measured"
        self.found, self.missing, self.names = {}, {}, {}
        if self.measured:
            tasks = {task.name: task}
            self.ledger = Ledger(load_prices(args.prices), tasks, "paper", args.gpu)

    def read(self, run):
        """metrics.json of a Run, None where the run is missing or not finished."""
        if run.name not in self.found:
            path = self.folder / run.name / "metrics.json"
            self.found[run.name] = read_json(path) if path.exists() else None
            if self.found[run.name] is None:
                self.missing[run.name] = None
        return self.found[run.name]

    def score(self, run):
        """The score of a Run in percent, None where it is missing."""
        metrics = self.read(run)
        if metrics is None:
            return None
        try:
            name, value = find_score(metrics, self.rule)
        except (KeyError, TypeError):
            path = self.folder / run.name / "metrics.json"
            raise UserError(f"{path}: no score by rule {self.rule}; evaluate again") from None
        self.names[name] = None
        return value

    def price(self, run):
        """Measured dollars of a Run: its labels, its hours and those of the run it learns from."""
        records = []
        for place in (self.folder / run.name, *(self.folder / name for name in run.needs)):
            records.append(read_record(place))
            if records[-1] is None:
                raise UserError(f"{place}: no training.json, so no hours to price; train it")
        others = {(record.world, record.task, record.run): record for record in records}
        usd = self.ledger.price_model(records[0], others)["usd"]
        if usd is None:
            raise UserError(
                f"{self.folder / run.name}: used a CPU, which has no price; pass --gpu NAME to "
                "count its hours as that GPU's, or --dollars planned"
            )
        return usd


class Point(NamedTuple):
    """One point of a figure: the runs of one strategy in one cell of cells, one a seed.

    `labels` is N, `trained` what the run itself trains on. `budget_usd` is additional to
    `initial_usd`, `planned_usd` what the plan spends of it; `usd` is all that is drawn: initial
    and planned, or measured. `reported` is the paper's score at this N and budget, if any.
    """

    task: str
    strategy: str
    labels: int
    trained: int
    unlabeled: int
    llm_labels: int
    student: str
    teacher: str
    initial_usd: Fraction
    budget_usd: Fraction
    planned_usd: Fraction
    usd: Fraction
    runs: tuple
    scores: tuple
    reported: float
    notes: tuple
    llm_today: dict  # of an LLM's labels: how many the budget buys, by price list

    @property
    def mean(self):
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self):
        """Standard deviation over seeds, None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def make_point(cell, strategy, results, reported=None, llm_today=None):
    """The Point of `strategy` in a cell, None where the budget doesn't cover it."""
    runs = cell.runs.get(strategy)
    if not runs:
        return None
    # An LLM's answers to test rows have no planned price where its tokens are not known.
    planned = {"small": cell.annotate_usd, "llm": cell.llm_usd, "prompted": cell.llm_usd}
    planned_usd = planned.get(strategy, cell.distill_usd) or 0
    there = [run for run in runs if results.read(run) is not None]
    usd = cell.initial_usd + planned_usd
    if results.measured and there and strategy != "prompted":  # which trains nothing
        usd = sum(map(results.price, there), Fraction(0)) / len(there)
    run = runs[0]
    return Point(
        cell.task,
        strategy,
        cell.labels,
        run.labels,
        run.unlabeled,
        run.llm_labels,
        run.student,
        run.teacher if strategy == "dist" else "",
        cell.initial_usd,
        cell.budget_usd,
        planned_usd,
        usd,
        tuple(run.name for run in runs),
        tuple(map(results.score, there)),
        reported,
        cell.notes,
        llm_today or {},
    )


def find_frontier(points):
    """The points that no other one beats at the same dollars or fewer, by dollars (Figure 2)."""
    best, kept = None, []
    for point in sorted(points, key=lambda point: (point.usd, -point.mean)):
        if best is None or point.mean > best:
            best = point.mean
            kept.append(point)
    return kept


class Reported:
    """The paper's scores of one task, for the points that stand at the same counts and dollars.

    Scales that divide the paper's dollars, and tasks of one's own, have no such points.
    """

    def __init__(self, task, scale):
        same = load_scale(scale)["divide_by"] == 1 and not task.own
        self.cells = [c for c in load_scores() if same and c["task"] == task.name]

    def find(self, strategy, labels, **counts):
        """The score in Tables 2, 3 and 11 at N = `labels` and these counts, or None."""
        for cell in self.cells:
            found = (cell["strategy"], cell["labels"]) == (strategy, labels)
            if found and cell["table"] in (2, 3, 11) and counts.items() <= cell.items():
                return cell["score"]
        return None


def name_metric(results):
    """Label of the y axis: the metric of the runs, in percent."""
    rules = {f"{name}_released": title for name, title in METRIC_TITLES.items()}
    titles = {**METRIC_TITLES, **{n: f"{t}, paper's rule" for n, t in rules.items()}}
    names = dict.fromkeys(titles.get(name, name) for name in results.names)
    return f"{' / '.join(names) or 'Score'} (%)"


class TaskPoints:
    """One task of a figure: its cells, its results, and the points that are drawn of it."""

    def __init__(self, args, figure, task):
        self.task, self.title, self.scale, self.entry = task.name, task.title, args.scale, task
        self.own = task.own
        self.prices = load_prices(args.prices)
        terms = make_terms(task, self.prices)
        place = (figure, task, args.scale, parse_seeds(args.seeds), terms)
        self.cells = cells(*place, prepared=args.prepared)
        self.results, self.reported = Results(args, task), Reported(task, args.scale)
        self.drawn = []  # (name of the series, Point, on the frontier?)

    def make_point(self, cell, strategy):
        """The Point of a strategy in a cell, the paper's score beside it where one is printed."""
        today = None
        if strategy == "llm":
            today = count_llm_labels(self.entry, cell.budget_usd, self.prices)
        usual = all(
            (run.student, run.teacher) == ("small", "xxl") for run in cell.runs.get(strategy) or ()
        )
        counts = {"unlabeled": cell.unlabeled}
        if cell.budget_usd is not None:
            counts = {"budget_usd": cell.budget_usd}
        elif strategy == "small":
            counts = {"budget_usd": 0}
        theirs = self.reported.find(strategy, cell.labels, **counts) if usual else None
        return make_point(cell, strategy, self.results, theirs, today)

    def read_annotations(self):
        """What annotation.json says of each run on an LLM's labels or answers that has one."""
        runs = [r for c in self.cells for s in ("llm", "prompted") for r in c.runs.get(s, ())]
        paths = [find_annotation(self.results.folder / run.name) for run in runs]
        return [read_json(path) for path in paths if path]

    def name_annotator(self):
        """Who labeled in place of people: an LLM's name, or a simulated annotator's."""
        names = dict.fromkeys(each["annotator"] for each in self.read_annotations())
        return " / ".join(names) or "LLM"

    def keep(self, series, points, best=None):
        """`points` without doubles and gaps, noted as drawn; `best` are those of the frontier."""
        points = list({point.runs: point for point in points if point}.values())
        self.drawn += [(series, point, best and point in best) for point in points]
        return points
