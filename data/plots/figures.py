"""Figures 2 to 7 of the paper from the metrics.json of runs: score against dollars.

Reads:  what data/plots/results.py reads
Writes: NAME.png, NAME.pdf, NAME.md (what to know of them) and NAME.csv (every point) in --output,
        or without it the points to stdout; missing runs to stderr
Paper:  Figures 2 to 7, sections 4 and 5, Appendix E
"""

import itertools
import operator
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple

from data.costs.prices import load_prices, show_dollars
from data.files import UserError, write_atomic
from data.plots import drawing
from data.plots.drawing import ANN, DIST, LLM, Dot, Line, Panel, Style
from data.plots.notes import note_figure, write_caption
from data.plots.results import TITLES, Score, Study, find_frontier, read_tasks
from data.plots.tables import Table, show_count, to_csv, wrap_notes

get_labels = operator.attrgetter("cell.labels")  # where a figure counts labels, not dollars
STRATEGIES = {"small": ("Ann.", ANN), "dist": ("Dist.", DIST)}
SIZE_LOOKS = {  # size -> colour and marker; hollow squares and circles are the paper's
    "small": (drawing.BLUE, "v"),
    "base": (drawing.ORANGE, "^"),
    "large": (drawing.GREEN, "D"),
    "xl": (drawing.PURPLE, "v"),
    "xxl": (drawing.BLUE, "s"),
}
FEW = Style(ANN.color, ANN.marker, ":", filled=False)


class Part:
    """One task of a figure: its Study, and the points that are drawn of it."""

    def __init__(self, study):
        self.study, self.cells = study, study.cells
        self.title = study.title if drawing.can_draw(study.title) else study.task.name
        rule = ", released rule" if study.rule == "released" else ""
        self.ylabel = f"{TITLES[study.metric]}{rule} (%)"
        self.drawn = []  # (name of the series, Score, on the frontier?)

    def list_scores(self, strategy, cells, part=None):
        """The Scores of a strategy, none twice, without cells whose budget doesn't cover it."""
        scores = [self.study.score(cell, strategy, part) for cell in cells]
        return list({score.runs: score for score in scores if score.runs}.values())

    def add(self, label, style, scores, at=Score.usd, best=None):
        """The Line of a series, whose points are kept for the CSV file."""
        self.drawn += [(label, score, best and score in best) for score in scores]
        dots = [Dot(float(at(s)), s.mean(), s.bar()) for s in scores]
        return Line(label, style, dots)

    def draw(self, series):
        """The Lines of several series, after them the paper's own points of each."""
        return [*(self.add(*each) for each in series), *(report(*each) for each in series)]

    def draw_by_dollars(self, lines, cells):
        """A panel of score against all dollars; the upper axis says where N and all are spent."""
        full = {cell.labels: float(cell.initial_usd + cell.budget_usd) for cell in cells}
        top = tuple((usd, f"N={show_count(n)}") for n, usd in full.items())
        return [Panel(self.title, lines, self.ylabel, "Total dollars", top=top, dodge=True)]

    def draw_sizes(self, lines):
        """The same of models of several sizes; the paper's points stand together by strategy."""
        for strategy, look in STRATEGIES.items():
            scores = [score for _, score, _ in self.drawn if score.strategy == strategy]
            lines = [*lines, report(*look, scores)]
        return self.draw_by_dollars(lines, self.cells)

    def name_size(self, size):
        """A model's size as the legend names it: T5-Small, or at other scales the bare size."""
        shown = size.upper() if size.startswith("x") else size.capitalize()
        return f"T5-{shown}" if self.study.scale == "paper" else shown


def report(label, style, scores, at=Score.usd):
    """The paper's own points beside a series: hollow and grey, with its marker."""
    told = [(score, score.find_printed()) for score in scores]
    dots = [Dot(float(at(score)), value) for score, value in told if value is not None]
    look = Style(drawing.GREY, style.marker, "none", filled=False)
    return Line(f"paper: {label}", look, dots)


# --- the figures ---------------------------------------------------------------------------


def make_fig2(part):
    """Score against all dollars, and the Pareto frontier: for each U a line of L labels, or of a
    task of one's own, whose cells are Table 2's, for each N a line of budgets."""
    key, letter = ("labels", "N") if part.study.own else ("unlabeled", "U")
    small = sorted(part.list_scores("small", part.cells), key=Score.usd)
    series = [("Ann." if part.study.own else "U=0 (Ann.)", ANN, small)]
    distilled = [cell for cell in part.cells if cell.unlabeled]
    counts = sorted({getattr(cell, key) for cell in distilled})
    styles = [drawing.DIST_LESS, DIST, drawing.DIST_MORE] if len(counts) > 1 else [DIST]
    for count, style in zip(counts, itertools.cycle(styles), strict=False):
        scores = part.list_scores("dist", [c for c in distilled if getattr(c, key) == count])
        series.append((f"{letter}={show_count(count)} (Dist.)", style, scores))
    points = [(s.usd(), s.mean(), s) for *_, scores in series for s in scores if s.there]
    best = find_frontier(points)
    lines = [part.add(*each, best=[score for *_, score in best]) for each in series]
    dots = [Dot(float(usd), mean) for usd, mean, _ in best]
    edge = Line("Pareto frontier", drawing.FRONTIER, dots)
    lines += [edge, *(report(*each) for each in series)]
    return [Panel(part.title, lines, part.ylabel, "Total dollars")]


def make_fig3(part):
    """Score against N, a panel for each additional budget."""
    panels = []
    for budget in dict.fromkeys(cell.budget_usd for cell in part.cells):
        cells = [cell for cell in part.cells if cell.budget_usd == budget]
        arms = [(*STRATEGIES[s], part.list_scores(s, cells), get_labels) for s in STRATEGIES]
        lines = part.draw(arms)
        gaps = tuple((cell.labels, "N/A", DIST.color) for cell in cells if not cell.runs["dist"])
        # every second N has its dollars: more of them would run into each other
        usd = [" " if i % 2 else show_dollars(c.initial_usd) for i, c in enumerate(cells)]
        pairs = zip(cells, usd, strict=True)
        ticks = tuple((c.labels, f"{show_count(c.labels)}\n{dollars}") for c, dollars in pairs)
        title, ylabel = f"{part.title}, +{show_dollars(budget)}", "" if panels else part.ylabel
        look = {"ticks": ticks, "gaps": gaps, "row": part.study.task.name, "dodge": True}
        panels.append(Panel(title, lines, ylabel, "N (its dollars below)", **look))
    return panels


def make_fig4(part):
    """Compact models of several sizes: annotated (hollow) and distilled (filled)."""
    lines = []
    for size in dict.fromkeys(cell.runs["small"][0].student for cell in part.cells):
        cells = [cell for cell in part.cells if cell.runs["small"][0].student == size]
        for strategy, (name, _) in STRATEGIES.items():
            filled = strategy == "dist"
            style = Style(*SIZE_LOOKS[size], "-" if filled else "--", filled)
            label = f"{part.name_size(size)} ({name})"
            lines.append(part.add(label, style, part.list_scores(strategy, cells)))
    return part.draw_sizes(lines)


def make_fig5(part):
    """Teachers of several sizes for one compact model, and that model on labels."""
    small = part.name_size("small")
    lines = [part.add(f"{small} (Ann.)", ANN, part.list_scores("small", part.cells))]
    known = [cell for cell in part.cells if cell.runs["dist"]]
    for size in dict.fromkeys(cell.runs["dist"][0].teacher for cell in known):
        cells = [cell for cell in known if cell.runs["dist"][0].teacher == size]
        style = Style(*SIZE_LOOKS[size], {"large": ":", "xl": "-."}.get(size, "-"))
        label = f"{part.name_size(size)} ⇒ {small} (Dist.)"
        lines.append(part.add(label, style, part.list_scores("dist", cells)))
    return part.draw_sizes(lines)


def make_fig6(part):
    """An LLM's labels, alone and beside people's, against Ann. and Dist. at equal dollars."""
    name = part.study.name_annotator()
    few = [cell for cell in part.cells if cell.budget_usd == 0]
    alone = [cell for cell in part.cells if cell.labels == 0]
    bought = [cell for cell in part.cells if cell not in few + alone]
    groups = [("N labels alone", FEW, "small", few), ("Ann.", ANN, "small", bought)]
    groups += [("Dist.", DIST, "dist", bought), (f"Human + {name}", LLM, "llm", bought)]
    groups += [(f"{name} alone", drawing.LLM_ONLY, "llm", alone)]
    series = [(label, style, part.list_scores(s, cells)) for label, style, s, cells in groups]
    return part.draw_by_dollars(part.draw(series), bought)


def make_fig7(part):
    """A compact model on more and more labels, and the level of an LLM's own answers, both on the
    rows that the LLM answered."""
    *cells, asked = part.cells
    level = part.study.score(asked, "prompted")
    ann = "Ann.", ANN, part.list_scores("small", cells, level), get_labels
    label = f"{part.study.name_annotator()}, few-shot"
    line = part.add(label, drawing.LLM_ONLY, [level], get_labels)
    lines = [part.add(*ann)]
    if level.there:  # a level over all N, its error bar at the right
        dot, ends = line.dots[0], (cells[0].labels, cells[-1].labels)
        lines.append(line._replace(dots=[Dot(ends[0], dot.y), dot._replace(x=ends[1])]))
    ticks = tuple((cell.labels, show_count(cell.labels)) for cell in cells)
    return [Panel(part.title, [*lines, report(*ann)], part.ylabel, "Labels", ticks)]


MAKERS = {  # name -> (what makes its panels, one line of help)
    "fig2": (make_fig2, "score against dollars for labels and rows, with the Pareto frontier"),
    "fig3": (make_fig3, "score against N at fixed additional budgets"),
    "fig4": (make_fig4, "compact models of several sizes"),
    "fig5": (make_fig5, "teachers of several sizes"),
    "fig6": (make_fig6, "labels by an LLM against people's and distillation at equal dollars"),
    "fig7": (make_fig7, "an LLM's own answers against a compact model on labels"),
}


class Drawing(NamedTuple):
    """A figure before it is drawn: its panels, its points as (series, Score, on the frontier or
    None), its caption, what a reader must know, missing runs as TASK/RUN."""

    name: str
    panels: list
    points: list
    caption: str
    notes: list
    missing: list
    columns: int = None


def build(args):
    """The Drawing of args.command; a UserError where no run of it is there."""
    figure, tasks, prices = args.command, read_tasks(args), load_prices(args.prices)
    parts = [Part(Study(args, task, prices)) for task in tasks]
    panels = [panel for part in parts for panel in MAKERS[figure][0](part)]
    points = [each for part in parts for each in part.drawn]
    scores, studies = [score for _, score, _ in points], [part.study for part in parts]
    if not any(score.there for score in scores):
        named = " or ".join(task.name for task in tasks)
        raise UserError(
            f"{args.runs}: no finished run of {figure} for {named}; `make {figure}` trains them, "
            "--runs DIR names another folder"
        )
    gone = [(s.study.task.name, run.name) for s in scores for run in s.runs if run not in s.there]
    missing = [f"{task}/{run}" for task, run in dict.fromkeys(gone)]
    notes = note_figure(args, studies, scores, missing)
    columns = min(len(panels) // len(parts), 4) if figure == "fig3" else None  # a task a row
    return Drawing(figure, panels, points, write_caption(figure, studies), notes, missing, columns)


# --- what is written -----------------------------------------------------------------------

COLUMNS = (
    "Task,Series,Strategy,N,Labels,Unlabeled,LLM labels,Student,Teacher,Initial $,Budget $,"
    "Planned $,Total $,Seeds,Planned seeds,Score,SD,Low,High,By seed,Test rows,Paper,Frontier,"
    "Runs,Note,LLM labels by price"
).split(",")


def make_row(series, score, best):
    """One point as a row of the CSV file; what it doesn't have stays empty."""
    cell, run, planned = score.cell, score.runs[0], score.planned_usd() or 0
    amounts = (score.initial_usd(), cell.budget_usd, planned, score.usd())
    values = (score.mean(), score.spread(), *(score.bar() or (None, None)))
    usd, scores = ([None if v is None else f"{float(v):.6g}" for v in g] for g in (amounts, values))
    today = score.study.count_llm_labels(cell) if score.strategy == "llm" else {}
    return [
        *(score.study.task.name, series, score.strategy, cell.labels, run.labels, run.unlabeled),
        *(run.llm_labels, run.student, run.teacher if score.strategy == "dist" else "", *usd),
        *(len(score.there), len(score.runs), *scores),
        " ".join(f"{value:.4f}" for value in score.values()),
        *(score.count_rows(), score.find_printed()),
        None if best is None else "yes" if best else "no",
        *(" ".join(run.name for run in score.runs), "; ".join(score.list_notes())),
        "; ".join(f"{count} ({name})" for name, count in today.items()),
    ]


def list_points(drawn):
    """A Table of every point of a Drawing, those without a finished run too."""
    return Table(drawn.name, drawn.caption, COLUMNS, [make_row(*each) for each in drawn.points])


def write_figure(args):
    """Write a figure as CSV, Markdown, PNG and PDF and print the paths; without --output print the
    points. Missing runs go to stderr."""
    drawn = build(args)
    points = to_csv(list_points(drawn))
    for run in drawn.missing[:10]:
        print(f"missing: {run}", file=sys.stderr)
    if more := drawn.missing[10:]:
        print(f"missing: {len(more)} more, as the CSV file has them", file=sys.stderr)
    if not args.output:
        return print(points, end="")
    place = Path(args.output) / drawn.name
    write_atomic(place.with_suffix(".csv"), points)
    told = f"{textwrap.fill(drawn.caption, 100)}\n\n{wrap_notes(drawn.notes)}"
    write_atomic(place.with_suffix(".md"), told)
    pictures = drawing.write(drawing.draw(drawn.panels, drawn.columns), place)
    print(*pictures, place.with_suffix(".md"), place.with_suffix(".csv"), sep="\n")
