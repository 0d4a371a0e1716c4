"""Figures 2 to 7 of the paper from the metrics.json of runs: score against dollars.

Usage:
    python plots.py fig2 --task wlp --scale mini --seeds "0 1" --runs runs/mini --output out
        out/fig2.png, .pdf and .csv, the last with every point that is drawn
    python plots.py fig5 --task "wlp multipit_gen" --rule paper --dollars measured --gpu A40
        the released scorer's scores, and the GPU time that was used in place of what was planned
Reads:  runs/WORLD/TASK/RUN/metrics.json (for measured dollars also training.json; of an LLM's
        labels RUN/ANNOTATOR/annotation.json),
        data/tasks.json, data/scales.json, data/prices.csv, data/paper/scores.csv
Writes: NAME.png, NAME.pdf, NAME.csv in --output, or without it the points to stdout; missing
        runs to stderr
Paper:  Figures 2 to 7, sections 4 and 5, Appendix E
"""

import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

from data.costs.budget import tell_scale
from data.costs.grid import LLM_EXAMPLES, parse_seeds
from data.files import UserError, write_atomic
from data.plots import drawing
from data.plots.drawing import (
    ANN,
    DIST,
    DIST_LESS,
    FRONTIER,
    LLM,
    LLM_ONLY,
    Dot,
    Line,
    Panel,
    Style,
)
from data.plots.points import TaskPoints, find_frontier, name_metric
from data.plots.tables import read_tasks, show_dollars

# --- from points to panels -----------------------------------------------------------------


def make_dots(points, at):
    """Dots at the x that `at` gives; a point without a finished run interrupts its line."""
    return [Dot(float(at(point)), point.mean, point.spread) for point in points if point]


def get_usd(point):
    return point.usd


def get_labels(point):
    return point.labels


def make_line(label, style, points, at=get_usd):
    return Line(label, style, make_dots(points, at))


def add_line(part, label, style, points, at=get_usd, best=None):
    """The Line of a series of a TaskPoints, which keeps its points for the CSV file."""
    return make_line(label, style, part.keep(label, points, best), at)


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


# --- the figures ---------------------------------------------------------------------------


def make_fig2(part, args):
    """Score against all dollars: a line of L labels for each U, and the Pareto frontier."""
    small = [part.make_point(c, "small") for c in part.cells if "small" in c.runs]
    rows = sorted({cell.unlabeled for cell in part.cells if cell.unlabeled})
    series = [("U=0 (Ann.)", ANN, small)]
    styles = [DIST_LESS, DIST] if len(rows) > 1 else [DIST]
    for count, style in zip(rows, styles, strict=False):
        chosen = [cell for cell in part.cells if cell.unlabeled == count]
        points = [part.make_point(cell, "dist") for cell in chosen]
        series.append((f"U={drawing.show_count(count)} (Dist.)", style, points))
    drawn = [point for *_, points in series for point in points if point and point.scores]
    best = find_frontier(drawn)
    lines = [add_line(part, *each, best=best) for each in series]
    told = [make_reported(*each) for each in series]
    edge = Line("Pareto frontier", FRONTIER, [Dot(float(p.usd), p.mean) for p in best])
    ylabel = name_metric(part.results)
    return [Panel(part.title, [*lines, edge, *told], ylabel, "Total dollars")]


def make_label_ticks(cells):
    """N at each tick, and every second one's dollars: more of them would run into each other."""
    usd = [" " if i % 2 else show_dollars(cell.initial_usd) for i, cell in enumerate(cells)]
    counts = [cell.labels for cell in cells]
    shown = [f"{drawing.show_count(n)}\n{text}" for n, text in zip(counts, usd, strict=True)]
    return tuple(zip(counts, shown, strict=True))


def make_fig3(part, args):
    """Score against N, a panel for each additional budget."""
    panels = []
    for budget in dict.fromkeys(cell.budget_usd for cell in part.cells):
        cells = [cell for cell in part.cells if cell.budget_usd == budget]
        points = {s: [part.make_point(c, s) for c in cells] for s in STRATEGIES}
        lines = [
            add_line(part, name, style, points[strategy], get_labels)
            for strategy, (name, style) in STRATEGIES.items()
        ]
        lines += [
            make_reported(name, style, points[strategy], get_labels)
            for strategy, (name, style) in STRATEGIES.items()
        ]
        gaps = [(cell.labels, "N/A", DIST.color) for cell in cells if not cell.runs["dist"]]
        panels.append(
            Panel(
                f"{part.title}, +{show_dollars(budget)}",
                lines,
                "" if panels else name_metric(part.results),
                "N (its dollars below)",
                make_label_ticks(cells),
                gaps=tuple(gaps),
                row=part.task,
                dodge=True,
            )
        )
    return panels


def make_sizes(part, lines):
    """The panel of Figures 4 and 5: score against all dollars, N on the upper axis."""
    full = {cell.labels: float(cell.initial_usd + cell.budget_usd) for cell in part.cells}
    return Panel(
        part.title,
        lines,
        name_metric(part.results),
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


SIZE_LOOKS = {  # size -> colour and marker; hollow squares and circles are the paper's
    "small": (drawing.BLUE, "v"),
    "base": (drawing.ORANGE, "^"),
    "large": (drawing.GREEN, "D"),
    "xl": (drawing.PURPLE, "v"),
    "xxl": (drawing.BLUE, "s"),
}


def make_fig4(part, args):
    """Compact models of several sizes: annotated (hollow) and distilled (filled)."""
    lines, told = [], []
    for size in dict.fromkeys(cell.runs["small"][0].student for cell in part.cells):
        cells = [cell for cell in part.cells if cell.runs["small"][0].student == size]
        for strategy, (name, _) in STRATEGIES.items():
            filled = strategy == "dist"
            style = Style(*SIZE_LOOKS[size], "-" if filled else "--", filled)
            points = [part.make_point(cell, strategy) for cell in cells]
            label = f"{name_size(size, part.scale)} ({name})"
            lines.append(add_line(part, label, style, points))
            told += points
    return [make_sizes(part, [*lines, *report_strategies(told)])]


def make_fig5(part, args):
    """Teachers of several sizes for one compact model, and that model on labels."""
    small = name_size("small", part.scale)
    points = told = [part.make_point(cell, "small") for cell in part.cells]
    lines = [add_line(part, f"{small} (Ann.)", ANN, points)]
    sizes = [run[0].teacher for cell in part.cells if (run := cell.runs["dist"])]
    for size in dict.fromkeys(sizes):
        cells = [c for c in part.cells if c.runs["dist"] and c.runs["dist"][0].teacher == size]
        points = [part.make_point(cell, "dist") for cell in cells]
        line = ":" if size == "large" else "-." if size == "xl" else "-"
        label = f"{name_size(size, part.scale)} ⇒ {small} (Dist.)"
        lines.append(add_line(part, label, Style(*SIZE_LOOKS[size], line), points))
        told = told + points
    return [make_sizes(part, [*lines, *report_strategies(told)])]


FEW = Style(ANN.color, ANN.marker, ":", filled=False)


def make_fig6(part, args):
    """An LLM's labels, alone and beside people's, against Ann. and Dist. at equal dollars."""
    name = part.name_annotator()
    few = [cell for cell in part.cells if cell.budget_usd == 0]
    alone = [cell for cell in part.cells if cell.labels == 0]
    bought = [cell for cell in part.cells if cell not in few + alone]
    series = [("N labels alone", FEW, "small", few), ("Ann.", ANN, "small", bought)]
    series += [("Dist.", DIST, "dist", bought), (f"Human + {name}", LLM, "llm", bought)]
    series += [(f"{name} alone", LLM_ONLY, "llm", alone)]
    lines = []
    for label, style, strategy, cells in series:
        points = [part.make_point(cell, strategy) for cell in cells]
        lines += [add_line(part, label, style, points), make_reported(label, style, points)]
    lines.sort(key=lambda line: line.label.startswith("paper"))
    top = [
        (float(c.initial_usd + c.budget_usd), f"N={drawing.show_count(c.labels)}") for c in bought
    ]
    ylabel = name_metric(part.results)
    return [Panel(part.title, lines, ylabel, "Total dollars", top=tuple(top), dodge=True)]


def make_fig7(part, args):
    """A compact model on more and more labels, and the level of an LLM's own answers."""
    cells = [cell for cell in part.cells if "small" in cell.runs]
    small = [part.make_point(cell, "small") for cell in cells]
    level = part.make_point(part.cells[-1], "prompted")
    label = f"{part.name_annotator()}, few-shot"
    part.keep(label, [level])
    lines = [add_line(part, "Ann.", ANN, small, get_labels)]
    if level.scores:
        ends = [cell.labels for cell in (cells[0], cells[-1])]
        dots = [Dot(ends[0], level.mean), Dot(ends[1], level.mean, level.spread)]
        lines.append(Line(label, LLM_ONLY, dots))
    lines.append(make_reported("Ann.", ANN, small, get_labels))
    ticks = tuple((cell.labels, drawing.show_count(cell.labels)) for cell in cells)
    return [Panel(part.title, lines, name_metric(part.results), "Labels", ticks)]


def note_annotators(part):
    """Who labeled, what that came to, and what the same dollars buy at today's prices."""
    told = part.read_annotations()
    if told:
        asked, valid = (sum(each[key] for each in told) for key in ("items", "valid"))
        shots, pool = told[0]["settings"]["shots"], LLM_EXAMPLES
        yield (
            f"{part.title}: {part.name_annotator()}; {valid:,} of {asked:,} answers were labels. "
            f"Prompts hold {shots} of {pool} labeled rows; those beyond N are not in the dollars."
        )
    bought = [point for _, point, _ in part.drawn if point.llm_today]
    if bought:
        counts = [f"{count:,} ({name})" for name, count in bought[0].llm_today.items()]
        budget = show_dollars(bought[0].budget_usd)
        text = (
            f"{part.title}: {budget} buys {', '.join(counts)} LLM labels; the first is drawn, the"
        )
        yield f"{text} others may be more than the unlabeled rows."


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
    "fig6": "Figure 6. Additional dollars ({budgets}) for labels of people (Ann.), for a teacher "
    "and a distillation (Dist.) or for labels of an LLM, beside N labels of people or alone.",
    "fig7": "Figure 7. Compact model on {counts} labels, scored on test, and an LLM's own answers "
    "to 200 test rows (32 examples in its prompt).",
}


def write_caption(figure, parts):
    """What is drawn, with the counts and the dollars of these cells."""
    counts = dict.fromkeys(c.labels for part in parts for c in part.cells if "small" in c.runs)
    dollars = {part.title: max(c.budget_usd or 0 for c in part.cells) for part in parts}
    several = len(set(dollars.values())) > 1
    shown = {t: show_dollars(usd) + f" ({t})" * several for t, usd in dollars.items() if usd}
    budgets = ", ".join(dict.fromkeys(shown.values()))
    counts = ", ".join(map(drawing.show_count, counts))
    return CAPTIONS[figure].format(counts=counts, budgets=budgets)


def note_dollars(args):
    if args.dollars == "measured":
        gpu = f", hours on a CPU as those of one {args.gpu}" if args.gpu else ""
        mine = "labels and measured GPU time, the compact model's own included"
        return f"Dollars: {mine}, at the paper's prices{gpu}."
    return "Dollars: initial labels and what the plan spends beside them, at the paper's prices."


def note_plans(points):
    """What differs from the paper's plan: said once, and counted where rows ran out."""
    told = dict.fromkeys(note for point in points for note in point.notes)
    short = [note for note in told if note.endswith(" exist")]
    notes = ["Plans: " + "; ".join(n for n in told if n not in short) + "."]
    if short:
        capped = sum(any(note in short for note in point.notes) for point in points)
        what = f"{capped} of {len(points)} points have fewer labels or unlabeled rows"
        notes.append(f"{what} than planned, all that exist (column Note of the CSV file).")
    return notes[1:] if notes[0] == "Plans: ." else notes


def make_notes(args, parts, missing):
    """What a reader must know to read the points."""
    seeds = parse_seeds(args.seeds)
    names = dict.fromkeys(name for part in parts for name in part.results.names)
    rule = "the released scorer's rule" if args.rule == "released" else "the strict rule"
    notes = [f"Scores: {', '.join(names)} on test, by {rule};"]
    notes[0] += f" mean and standard deviation over {len(seeds)} seeds." * (len(seeds) > 1)
    notes[0] += f" one seed ({seeds[0]}), so no spread." * (len(seeds) == 1)
    notes.append(note_dollars(args))
    if args.scale != "paper":
        own = all(part.own for part in parts)
        notes.append(
            tell_scale(args.scale, own)
            + " The paper's points are not drawn: they are T5 on real text, at other dollars."
            * (not own)
        )
    elif any(point.reported is not None for part in parts for _, point, _ in part.drawn):
        notes.append("Hollow and grey: printed in the paper at these counts, scored by its rule.")
    if args.command not in ("fig2", "fig7"):
        notes.append("Dots of one N stand side by side where they would hide each other.")
    if args.data:
        notes.append(f"Text and labels from {args.data}.")
    if args.command in ("fig6", "fig7"):
        notes += [note for part in parts for note in note_annotators(part)]
    notes += note_plans([point for part in parts for _, point, _ in part.drawn])
    if missing:
        runs = {(s.task, run) for s in parts for _, p, _ in s.drawn for run in p.runs}
        text = f"{len(missing)} of {len(runs)} runs missing"
        notes.append(f"{text}: points are means of the others, lines stop where there are none.")
    return notes


FIGURE_MAKERS = {
    "fig2": make_fig2,
    "fig3": make_fig3,
    "fig4": make_fig4,
    "fig5": make_fig5,
    "fig6": make_fig6,
    "fig7": make_fig7,
}


def build(args):
    """The Drawing of args.command; a UserError where no run of it is there."""
    figure, parts, panels = args.command, [], []
    for task in read_tasks(args):
        parts.append(TaskPoints(args, figure, task))
        panels += FIGURE_MAKERS[figure](parts[-1], args)
    if not any(point.scores for part in parts for _, point, _ in part.drawn):
        named = " or ".join(part.task for part in parts)
        raise UserError(
            f"{args.runs}: no finished run of {figure} for {named}; `make {figure}` trains them, "
            "--runs DIR names another folder"
        )
    missing = [f"{part.task}/{run}" for part in parts for run in part.results.missing]
    notes = [write_caption(figure, parts), *make_notes(args, parts, missing)]
    points = [each for part in parts for each in part.drawn]
    columns = min(len(panels) // len(parts), 4) if figure == "fig3" else None  # a task a row
    return Drawing(figure, panels, points, notes, missing, columns)


# --- what is written -----------------------------------------------------------------------

COLUMNS = (
    "Task,Series,Strategy,N,Labels,Unlabeled,LLM labels,Student,Teacher,Initial $,Budget $,"
    "Planned $,Total $,Seeds,Planned seeds,Score,SD,Paper,Frontier,Runs,Note,LLM labels by price"
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
        "; ".join(f"{count} ({name})" for name, count in point.llm_today.items()),
    ]


def to_csv(drawn):
    """Every point of a Drawing, those without a finished run too."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([COLUMNS, *(make_row(*each) for each in drawn.points)])
    return text.getvalue()


def render(drawn, output=None):
    """Write a Drawing as PNG, PDF and CSV and print the paths; without `output` print the points.

    Missing runs go to stderr.
    """
    for run in drawn.missing:
        print(f"missing: {run}", file=sys.stderr)
    if not output:
        return print(to_csv(drawn), end="")
    place = Path(output) / drawn.name
    write_atomic(place.with_suffix(".csv"), to_csv(drawn))
    figure = drawing.draw(drawn.panels, drawn.notes, drawn.columns)
    for path in [*drawing.write(figure, place), place.with_suffix(".csv")]:
        print(path)


def write_figure(args):
    """Build a figure and write it: what the commands of plots.py call."""
    render(build(args), args.output)


def add_flags(parser):
    add = parser.add_argument
    rule = "score by the strict rule or by the released scorer's (default: strict)"
    add("--rule", choices=("strict", "released"), default="strict", help=rule)
    dollars = "of the plan, or of the GPU time that the runs used (default: planned)"
    add("--dollars", choices=("planned", "measured"), default="planned", help=dollars)
    gpu = "with --dollars measured: count hours on a CPU as hours of this GPU (default: refuse)"
    add("--gpu", metavar="NAME", help=gpu)


SUMMARIES = {
    "fig2": "score against dollars for labels and unlabeled rows, with the Pareto frontier",
    "fig3": "score against N at fixed additional budgets",
    "fig4": "compact models of several sizes",
    "fig5": "teachers of several sizes",
    "fig6": "labels by an LLM against people's and distillation at equal dollars",
    "fig7": "an LLM's own answers against a compact model on labels",
}
# As TABLES of plots.py, but each function writes what it builds.
FIGURES = {name: (text, write_figure, add_flags) for name, text in SUMMARIES.items()}
