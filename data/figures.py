"""Figures 2 to 5 of the paper from the metrics.json of runs: score against dollars.

Usage:
    python plots.py fig2 --task wlp --scale mini --seeds "0 1" --runs runs/mini --output out
        out/fig2.png, .pdf and .csv, the last with every point that is drawn
    python plots.py fig5 --task "wlp multipit_gen" --rule paper --dollars measured --gpu A40
        the released scorer's scores, and the GPU time that was used in place of what was planned
Reads:  runs/WORLD/TASK/RUN/metrics.json (for measured dollars also training.json),
        data/tasks.json, data/scales.json, data/prices.csv, data/paper_scores.csv
Writes: NAME.png, NAME.pdf, NAME.csv in --output; missing runs to stderr
Copy:   plots.py, costs.py and data/ (figures.py, drawing.py, *.json, *.csv); matplotlib
Paper:  Figures 2, 3, 4 and 5, section 4
"""

import csv
import io
import statistics
import sys
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import costs
from data import drawing
from data.drawing import ANN, DIST, DIST_LESS, FRONTIER, Dot, Line, Panel, Style

# --- what the runs say ---------------------------------------------------------------------

PAPER_KEYS = {"entity_f1": "f1_paper"}  # elsewhere the name of the score and _paper
METRIC_TITLES = {
    "entity_f1": "Entity F1",
    "f1": "F1",
    "micro_f1": "Micro F1",
    "accuracy": "Accuracy",
    "bert_ibleu": "BERT-iBLEU",
}


def find_score(metrics, rule):
    """(name, value) of the score by `rule`, correct or paper; one score where both rules agree."""
    name, values = metrics["metric"], metrics["metrics"]
    if name.endswith("_paper"):  # evaluate.py --rule paper
        back = {paper: correct for correct, paper in PAPER_KEYS.items()}
        name = back.get(name, name.removesuffix("_paper"))
    paper = PAPER_KEYS.get(name, f"{name}_paper")
    name = paper if rule == "paper" and paper in values else name
    return name, values[name]


class Results:
    """The runs of one task, read once: their scores, what they cost, which of them are missing."""

    def __init__(self, args, task):
        self.folder, self.rule = Path(args.runs) / task, args.rule
        self.gpu, self.measured = args.gpu, args.dollars == "measured"
        self.found, self.missing, self.names = {}, {}, {}
        if self.measured:
            tasks = costs.load_tasks(args.tasks)
            self.ledger = costs.Ledger(costs.load_prices(args.prices), tasks, "paper", args.gpu)

    def read(self, run):
        """metrics.json of a Run, None where the run is missing or not finished."""
        if run.name not in self.found:
            path = self.folder / run.name / "metrics.json"
            self.found[run.name] = costs.read_json(path) if path.exists() else None
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
            raise costs.UserError(f"{path}: no score by rule {self.rule}; evaluate again") from None
        self.names[name] = None
        return value

    def price(self, run):
        """Measured dollars of a Run: its labels, its hours and those of the run it learns from."""
        needed = [self.folder / name for name in run.needs]
        records = [costs.read_record(place) for place in (self.folder / run.name, *needed)]
        if None in records:
            raise costs.UserError(f"{self.folder / run.name}: no training.json; train it again")
        others = {(record.world, record.task, record.run): record for record in records}
        usd = self.ledger.price_model(records[0], others)["usd"]
        if usd is None:
            raise costs.UserError(
                f"{self.folder / run.name}: used a CPU, which has no price; pass --gpu NAME to "
                "count its hours as that GPU's, or --dollars planned"
            )
        return usd


class Point(NamedTuple):
    """One point of a figure: the runs of one strategy in one cell of costs.cells, one a seed.

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

    @property
    def mean(self):
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def spread(self):
        """Standard deviation over seeds, None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


def make_point(cell, strategy, results, planned_usd=None, reported=None):
    """The Point of `strategy` in a cell, None where the budget doesn't cover it.

    `planned_usd` are the dollars beside the N labels; they need to be given for LLM labels only.
    """
    runs = cell.runs.get(strategy)
    if not runs:
        return None
    if planned_usd is None:
        planned_usd = cell.annotate_usd or 0 if strategy == "small" else cell.distill_usd
    there = [run for run in runs if results.read(run) is not None]
    usd = cell.initial_usd + planned_usd
    if results.measured and there:
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

    def __init__(self, task, entry, scale):
        same = costs.load_scale(scale)["divide_by"] == 1 and "labels_n" not in entry
        self.cells = [c for c in costs.load_scores() if same and c["task"] == task]

    def find(self, strategy, labels, **counts):
        """The score in Tables 2, 3 and 11 at N = `labels` and these counts, or None."""
        for cell in self.cells:
            found = (cell["strategy"], cell["labels"]) == (strategy, labels)
            if found and cell["table"] in (2, 3, 11) and counts.items() <= cell.items():
                return cell["score"]
        return None


# --- from points to panels -----------------------------------------------------------------


def make_dots(points, at):
    """Dots at the x that `at` gives; points without a finished run are left out."""
    kept = [point for point in points if point and point.scores]
    return [Dot(float(at(point)), point.mean, point.spread) for point in kept]


def get_usd(point):
    return point.usd


def get_labels(point):
    return point.labels


def make_line(label, style, points, at=get_usd):
    return Line(label, style, make_dots(points, at))


def make_reported(label, style, points, at=get_usd):
    """The paper's own points beside a series: hollow and grey, with its marker."""
    told = [point for point in points if point and point.reported is not None]
    dots = [Dot(float(at(point)), point.reported) for point in told]
    return Line(f"paper: {label}", drawing.report(style), dots)


STRATEGIES = {"small": ("Ann.", ANN), "dist": ("Dist.", DIST)}


def name_size(size, scale):
    """A model's size as the legend names it: T5-Small, or at other scales the bare size."""
    shown = size.upper() if size.startswith("x") else size.capitalize()
    return f"T5-{shown}" if scale == "paper" else shown


def name_metric(results):
    """Label of the y axis: the metric of the runs, in percent."""
    rules = {f"{name}_paper": title for name, title in METRIC_TITLES.items()}
    titles = {**METRIC_TITLES, **{n: f"{t}, paper's rule" for n, t in rules.items()}}
    names = dict.fromkeys(titles.get(name, name) for name in results.names)
    return f"{' / '.join(names) or 'Score'} (%)"


class Drawing(NamedTuple):
    """A figure before it is drawn: its panels, its points as rows, what a reader must know.

    `points` are [(name of the series, Point, whether it is on the frontier or None)].
    """

    name: str
    panels: list
    points: list
    notes: list
    missing: list  # TASK/RUN
    columns: int = None


class Study:
    """One task of a figure: its cells, its results, and the points that are drawn of it."""

    def __init__(self, args, figure, task, entry):
        self.task, self.title, self.scale = task, entry["title"], args.scale
        terms = costs.make_terms(task, entry, costs.load_prices(args.prices))
        place = (figure, task, args.scale, costs.parse_seeds(args.seeds), terms, args.tasks)
        self.cells = costs.cells(*place, prepared=args.prepared)
        self.results, self.reported = Results(args, task), Reported(task, entry, args.scale)
        self.points = []

    def make_point(self, cell, strategy, planned_usd=None):
        """The Point of a strategy in a cell, the paper's score beside it where one is printed."""
        usual = all(
            (run.student, run.teacher) == ("small", "xxl") for run in cell.runs.get(strategy) or ()
        )
        counts = {"unlabeled": cell.unlabeled}
        if cell.budget_usd is not None:
            counts = {"budget_usd": cell.budget_usd}
        elif strategy == "small":
            counts = {"budget_usd": 0}
        theirs = self.reported.find(strategy, cell.labels, **counts) if usual else None
        return make_point(cell, strategy, self.results, planned_usd, theirs)

    def add_line(self, label, style, points, at=get_usd, best=None):
        """The Line of a series; its points are kept for the CSV file."""
        points = list({point.runs: point for point in points if point}.values())
        self.points += [(label, point, best and point in best) for point in points]
        return make_line(label, style, points, at)


# --- the four figures ----------------------------------------------------------------------


def make_fig2(study, args):
    """Score against all dollars: a line of L labels for each U, and the Pareto frontier."""
    small = [study.make_point(c, "small") for c in study.cells if "small" in c.runs]
    rows = sorted({cell.unlabeled for cell in study.cells if cell.unlabeled})
    series = [("U=0 (Ann.)", ANN, small)]
    styles = [DIST_LESS, DIST] if len(rows) > 1 else [DIST]
    for count, style in zip(rows, styles, strict=True):
        chosen = [cell for cell in study.cells if cell.unlabeled == count]
        points = [study.make_point(cell, "dist") for cell in chosen]
        series.append((f"U={drawing.show_count(count)} (Dist.)", style, points))
    drawn = [point for *_, points in series for point in points if point and point.scores]
    best = find_frontier(drawn)
    lines = [study.add_line(*each, best=best) for each in series]
    told = [make_reported(*each) for each in series]
    edge = Line("Pareto frontier", FRONTIER, [Dot(float(p.usd), p.mean) for p in best])
    ylabel = name_metric(study.results)
    return [Panel(study.title, [*lines, edge, *told], ylabel, "Total dollars")]


def make_fig3(study, args):
    """Score against N, a panel for each additional budget."""
    panels = []
    for budget in dict.fromkeys(cell.budget_usd for cell in study.cells):
        cells = [cell for cell in study.cells if cell.budget_usd == budget]
        points = {s: [study.make_point(c, s) for c in cells] for s in STRATEGIES}
        lines = [
            study.add_line(name, style, points[strategy], get_labels)
            for strategy, (name, style) in STRATEGIES.items()
        ]
        lines += [
            make_reported(name, style, points[strategy], get_labels)
            for strategy, (name, style) in STRATEGIES.items()
        ]
        ticks = [
            # Every second N has its dollars: more of them would run into each other.
            (c.labels, drawing.show_count(c.labels) + f"\n{show_usd(c.initial_usd)}" * (i % 2 == 0))
            for i, c in enumerate(cells)
        ]
        gaps = [(cell.labels, "N/A", DIST.color) for cell in cells if not cell.runs["dist"]]
        panels.append(
            Panel(
                f"{study.title}, +{show_usd(budget)}",
                lines,
                "" if panels else name_metric(study.results),
                "N (its dollars below)",
                tuple(ticks),
                gaps=tuple(gaps),
                row=study.task,
                dodge=True,
            )
        )
    return panels


def show_usd(amount):
    return drawing.show_dollars(float(amount))


def make_sizes(study, lines):
    """The panel of Figures 4 and 5: score against all dollars, N on the upper axis."""
    full = {cell.labels: float(cell.initial_usd + cell.budget_usd) for cell in study.cells}
    return Panel(
        study.title,
        lines,
        name_metric(study.results),
        "Total dollars",
        top=tuple((usd, f"N={drawing.show_count(n)}") for n, usd in full.items()),
        dodge=True,
    )


def report_strategies(points):
    """The paper's own points, by strategy."""
    return [
        make_reported(name, style, [p for p in points if p and p.strategy == strategy])
        for strategy, (name, style) in STRATEGIES.items()
    ]


SIZE_LOOKS = {  # size -> colour and marker, here and in Figure 5
    "small": (drawing.BLUE, "s"),
    "base": (drawing.ORANGE, "^"),
    "large": (drawing.GREEN, "D"),
    "xl": (drawing.PURPLE, "v"),
    "xxl": (drawing.BLUE, "s"),
}


def make_fig4(study, args):
    """Compact models of several sizes: annotated (hollow) and distilled (filled)."""
    lines, told = [], []
    for size in dict.fromkeys(cell.runs["small"][0].student for cell in study.cells):
        cells = [cell for cell in study.cells if cell.runs["small"][0].student == size]
        for strategy, (name, _) in STRATEGIES.items():
            filled = strategy == "dist"
            style = Style(*SIZE_LOOKS[size], "-" if filled else "--", filled)
            points = [study.make_point(cell, strategy) for cell in cells]
            label = f"{name_size(size, study.scale)} ({name})"
            lines.append(study.add_line(label, style, points))
            told += points
    return [make_sizes(study, [*lines, *report_strategies(told)])]


def make_fig5(study, args):
    """Teachers of several sizes for one compact model, and that model on labels."""
    small = name_size("small", study.scale)
    points = told = [study.make_point(cell, "small") for cell in study.cells]
    lines = [study.add_line(f"{small} (Ann.)", ANN, points)]
    sizes = [run[0].teacher for cell in study.cells if (run := cell.runs["dist"])]
    for size in dict.fromkeys(sizes):
        cells = [c for c in study.cells if c.runs["dist"] and c.runs["dist"][0].teacher == size]
        points = [study.make_point(cell, "dist") for cell in cells]
        line = ":" if size == "large" else "-." if size == "xl" else "-"
        label = f"{name_size(size, study.scale)} ⇒ {small} (Dist.)"
        lines.append(study.add_line(label, Style(*SIZE_LOOKS[size], line), points))
        told = told + points
    return [make_sizes(study, [*lines, *report_strategies(told)])]


CAPTIONS = {
    "fig2": "Figure 2. Pareto curves. Along a line, from left to right, L = {counts} labels; U: "
    "unlabeled rows. Frontier: points that none beats at the same dollars or fewer, joined "
    "straight.",
    "fig3": "Figure 3. N initial labels, then a fixed additional budget (above each panel) for "
    "more labels (Ann.) or for a teacher and a distillation (Dist.). N/A: it doesn't cover them.",
    "fig4": "Figure 4. Compact models of several sizes, one teacher; additional dollars: "
    "{budgets}. Upper axis: where N and all of these dollars are spent.",
    "fig5": "Figure 5. Teachers of several sizes, one compact model; additional dollars: "
    "{budgets}. Upper axis: where N and all of these dollars are spent.",
}


def write_caption(figure, studies):
    """What is drawn, with the counts and the dollars of these cells."""
    counts = dict.fromkeys(cell.labels for study in studies for cell in study.cells)
    budgets = [
        f"{show_usd(study.cells[0].budget_usd)} ({study.title})"
        for study in studies
        if study.cells[0].budget_usd is not None
    ]
    shown = ", ".join(map(drawing.show_count, counts))
    return CAPTIONS[figure].format(counts=shown, budgets=", ".join(budgets))


def note_dollars(args):
    if args.dollars == "measured":
        gpu = f", hours on a CPU as those of one {args.gpu}" if args.gpu else ""
        return f"Dollars: labels, and measured GPU time at the paper's prices{gpu}."
    return "Dollars: initial labels and what the plan spends beside them, at the paper's prices."


def make_notes(args, studies, missing):
    """What a reader must know to read the points."""
    seeds = costs.parse_seeds(args.seeds)
    names = dict.fromkeys(name for study in studies for name in study.results.names)
    rule = "the released scorer's rule" if args.rule == "paper" else "the correct rule"
    notes = [f"Scores: {', '.join(names)} on test, by {rule};"]
    notes[0] += f" mean and standard deviation over {len(seeds)} seeds." * (len(seeds) > 1)
    notes[0] += f" one seed ({seeds[0]}), so no spread." * (len(seeds) == 1)
    notes.append(note_dollars(args))
    if args.scale != "paper":
        title = costs.load_scale(args.scale)["title"]
        notes.append(
            f"Scale {args.scale}: {title}. The paper's points are not drawn: they are T5 on real "
            "text, at other dollars."
        )
    elif any(point.reported is not None for study in studies for _, point, _ in study.points):
        notes.append("Hollow and grey: printed in the paper at these counts, scored by its rule.")
    if args.command != "fig2":
        notes.append("Dots of one N stand side by side where they would hide each other.")
    if args.data:
        notes.append(f"Text and labels from {args.data}.")
    told = dict.fromkeys(note for s in studies for _, p, _ in s.points for note in p.notes)
    if told:
        last = f"; and {len(told) - 2} more, see column Note of the CSV file" * (len(told) > 2)
        notes.append(f"Plans: {'; '.join(list(told)[:2])}{last}.")
    if missing:
        runs = {(s.task, run) for s in studies for _, p, _ in s.points for run in p.runs}
        notes.append(f"{len(missing)} of {len(runs)} runs missing; points are of those there are.")
    return notes


FIGURE_MAKERS = {"fig2": make_fig2, "fig3": make_fig3, "fig4": make_fig4, "fig5": make_fig5}


def read_tasks(args, figure):
    """[(name, entry)] of --task; "all" are those that the paper shows in this figure."""
    names = args.task.split() if args.task != "all" else costs.TABLES[figure][1].split()
    return [(name, costs.load_task(name, args.tasks)) for name in names]


def build(args):
    """The Drawing of args.command; a UserError where no run of it is there."""
    figure, studies, panels = args.command, [], []
    for task, entry in read_tasks(args, figure):
        studies.append(Study(args, figure, task, entry))
        panels += FIGURE_MAKERS[figure](studies[-1], args)
    if not any(point.scores for study in studies for _, point, _ in study.points):
        named = " or ".join(study.task for study in studies)
        raise costs.UserError(
            f"{args.runs}: no finished run of {figure} for {named}; `make {figure}` trains them, "
            "--runs DIR names another folder"
        )
    missing = [f"{study.task}/{run}" for study in studies for run in study.results.missing]
    notes = [write_caption(figure, studies), *make_notes(args, studies, missing)]
    points = [each for study in studies for each in study.points]
    columns = 3 if figure == "fig3" else None
    return Drawing(figure, panels, points, notes, missing, columns)


# --- what is written -----------------------------------------------------------------------

COLUMNS = (
    "Task,Series,Strategy,N,Labels,Unlabeled,LLM labels,Student,Teacher,Initial $,Budget $,"
    "Planned $,Total $,Seeds,Planned seeds,Score,SD,Paper,Frontier,Runs,Note"
).split(",")


def make_row(series, point, best):
    """One point as a row of the CSV file; what it doesn't have stays empty."""
    amounts = (point.initial_usd, point.budget_usd, point.planned_usd, point.usd)
    usd = ["" if amount is None else f"{float(amount):.6g}" for amount in amounts]
    scores = ["" if value is None else f"{value:.6g}" for value in (point.mean, point.spread)]
    return [
        *(point.task, series, point.strategy, point.labels, point.trained, point.unlabeled),
        *(point.llm_labels, point.student, point.teacher, *usd),
        *(len(point.scores), len(point.runs), *scores),
        "" if point.reported is None else point.reported,
        "" if best is None else "yes" if best else "no",
        " ".join(point.runs),
        "; ".join(point.notes),
    ]


def to_csv(drawn):
    """Every point of a Drawing, those without a finished run too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *(make_row(*each) for each in drawn.points)])
    return text.getvalue()


def render(drawn, output="."):
    """Write a Drawing as PNG, PDF and CSV; the paths go to stdout, missing runs to stderr."""
    for run in drawn.missing:
        print(f"missing: {run}", file=sys.stderr)
    place = Path(output or ".") / drawn.name
    costs.write_atomic(place.with_suffix(".csv"), to_csv(drawn))
    figure = drawing.draw(drawn.panels, drawn.notes, drawn.columns)
    for path in [*drawing.write(figure, place), place.with_suffix(".csv")]:
        print(path)


def write_figure(args):
    """Build a figure and write it: what the commands of plots.py call."""
    render(build(args), args.output)


def add_flags(parser):
    add = parser.add_argument
    add("--scale", default="mini", help="mini or paper (default: mini)")
    add("--seeds", default="0", help='seeds of the runs, e.g. "0 1 2" (default: 0)')
    add("--runs", default="runs/mini", metavar="DIR", help="holds TASK/RUN (default: runs/mini)")
    add("--data", default="", help="name of the data if not the scale's own, for a note")
    add("--prepared", metavar="DIR", help="its row counts limited the runs, as costs.py grid says")
    rule = "score by the correct rule or by the released scorer's (default: correct)"
    add("--rule", choices=("correct", "paper"), default="correct", help=rule)
    dollars = "of the plan, or of the GPU time that the runs used (default: planned)"
    add("--dollars", choices=("planned", "measured"), default="planned", help=dollars)
    gpu = "with --dollars measured: count hours on a CPU as hours of this GPU (default: refuse)"
    add("--gpu", metavar="NAME", help=gpu)


SUMMARIES = {
    "fig2": "score against dollars for labels and unlabeled rows, with the Pareto frontier",
    "fig3": "score against N at fixed additional budgets",
    "fig4": "compact models of several sizes",
    "fig5": "teachers of several sizes",
}
# As TABLES of plots.py, but each function writes what it builds.
FIGURES = {name: (text, write_figure, add_flags) for name, text in SUMMARIES.items()}
