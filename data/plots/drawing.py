"""Small multiples with a legend and notes below them: how every figure here is drawn and written.

Usage:
    panel = Panel("WLP", [Line("Ann.", ANN, [Dot(26, 40.7), Dot(1300, 67.4)])], ylabel="F1")
    write(draw([panel], notes=["One seed."]), Path("out/fig2"))      # out/fig2.png and out/fig2.pdf
Reads:  nothing
Writes: a PNG and a PDF; the same input gives the same bytes
Paper:  Figures 2 to 7
"""

import itertools
import math
import os
from pathlib import Path
from typing import NamedTuple

# Okabe and Ito's colours stay apart for colour-blind eyes; a marker and a kind of line of its own
# keep each series apart in grey print too.
GREY = "#6F6F6F"
ORANGE, SKY, GREEN, BLUE = "#E69F00", "#56B4E9", "#009E73", "#0072B2"
VERMILLION, PURPLE = "#D55E00", "#CC79A7"


class Style(NamedTuple):
    """How a series looks; `line` is a line style of matplotlib, "none" for points alone."""

    color: str
    marker: str
    line: str = "-"
    filled: bool = True


ANN = Style(VERMILLION, "o", "-.")
DIST = Style(BLUE, "s")
DIST_LESS = Style(SKY, "^", (0, (5, 1)))
LLM = Style(GREEN, "D", (0, (3, 1, 1, 1, 1, 1)))
LLM_ONLY = Style(PURPLE, "v", (0, (1, 1)))
FRONTIER = Style("#C4C4C4", "none")


def report(style):
    """The look of the paper's own points: grey and hollow, the marker of their series."""
    return Style(GREY, style.marker, "none", filled=False)


class Dot(NamedTuple):
    """A point; `spread` is half the length of its error bar, None where there is none.

    Where `y` is None nothing is drawn: its line is interrupted there.
    """

    x: float
    y: float
    spread: float = None


class Line(NamedTuple):
    """A series: its name in the legend, its Style, its Dots from left to right."""

    label: str
    style: Style
    dots: list


class Panel(NamedTuple):
    """One set of axes; panels with the same `row` share their range of y.

    `ticks` and `top` are [(x, text)] of the lower and the upper axis; without `ticks` the lower
    axis shows dollars. `gaps` are [(x, text, colour)]: what can't be drawn there, said in words.
    `dodge` moves series sideways, so that dots of one x don't hide each other.
    """

    title: str
    lines: list
    ylabel: str = ""
    xlabel: str = ""
    ticks: tuple = ()
    top: tuple = ()
    gaps: tuple = ()
    row: str = ""
    dodge: bool = False


# --- numbers as text -----------------------------------------------------------------------


def show_count(count):
    """1000 as 1K, 1900 as 1.9K, 538 as 538."""
    return f"{count / 1000:g}K" if count >= 1000 and count % 100 == 0 else f"{count:,}"


def show_dollars(amount):
    """$1,600 or $32.60: cents only where there are any."""
    return f"${amount:,.2f}".removesuffix(".00")


def make_dollar_ticks(low, high, inches):
    """[(dollars, text)] at round amounts on a logarithmic axis of `inches` from `low` to `high`.

    As many as fit: texts of neighbours don't touch.
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10**power for power in powers for step in steps]
        ticks = [x for x in ticks if low <= x <= high]
        gap = TICK_INCHES / inches * math.log10(high / low)
        if all(math.log10(b / a) >= gap for a, b in itertools.pairwise(ticks)):
            break
    shown = [f"${x / 1000:g}K" if x >= 1000 else show_dollars(x) for x in ticks]
    return list(zip(ticks, shown, strict=True))


# --- drawing -------------------------------------------------------------------------------

LOOK = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so it is the same everywhere
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 5,
    "pdf.fonttype": 42,  # text stays text
    "text.parse_math": False,  # a dollar is a dollar
    "figure.dpi": 200,
}
WIDTHS = {1: 4.8, 2: 6.8, 3: 7.2}  # columns -> inches; two columns of a paper are 6.3 to 7
TICK_INCHES = 0.38  # a text such as $1.5K at the size of ticks, and some air
NOTE_SIZE, NOTE_LINE, LEGEND_LINE = 6.5, 0.114, 0.19  # points, inches, inches


def measure_text(text, size):
    """Inches of `text` in one line, at `size` points."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family=LOOK["font.family"], size=size)
    return text_to_path.get_text_width_height_descent(text, font, False)[0] / 72


def wrap(text, inches, size):
    """`text` in lines of at most `inches` at `size` points."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and measure_text(longer, size) > inches:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def keep_seen(dots):
    return [dot for dot in dots if dot.y is not None]


def find_range(panels):
    """(low, high) of y over `panels`, error bars inside; None where they have no dots."""
    dots = [dot for panel in panels for line in panel.lines for dot in keep_seen(line.dots)]
    if not dots:
        return None
    low = min(dot.y - (dot.spread or 0) for dot in dots)
    high = max(dot.y + (dot.spread or 0) for dot in dots)
    edge = max(high - low, 2) * 0.09
    below = 2 * edge if any(panel.gaps for panel in panels) else edge  # room for their words
    return low - below, high + edge


def find_shifts(panel, inches, most=4 / 72, reach=14 / 72):
    """A factor of x for each series of a panel: 1, or a little to either side with `dodge`.

    Neighbours are `most` inches apart, nearer where the outer ones would be more than `reach`.
    Points without a line (the paper's own) stay in the middle: they are hollow and hide nothing.
    """
    xs = [dot.x for line in panel.lines for dot in keep_seen(line.dots)]
    xs += [x for x, _ in (*panel.ticks, *panel.top)]
    if not panel.dodge or not xs:
        return [1] * len(panel.lines)
    decades = max(math.log10(max(xs) / min(xs)), 0.3)
    joined = [line.style.line != "none" for line in panel.lines]
    middle = (sum(joined) - 1) / 2
    step = min(most, reach / max(sum(joined) - 1, 1)) / inches
    places = [sum(joined[:i]) - middle if own else 0 for i, own in enumerate(joined)]
    return [10 ** (place * step * decades) for place in places]


def draw_line(axes, line, shift, size):
    """One series with its error bars; returns what the legend shows of it."""
    style = line.style
    look = {"color": style.color, "linestyle": style.line, "marker": style.marker}
    look["markerfacecolor"] = style.color if style.filled else "none"
    # A light edge keeps dots apart where they touch; a hollow dot needs its colour there.
    look["markeredgecolor"] = "white" if style.filled else style.color
    look |= {"markeredgewidth": 0.5 if style.filled else 1, "markersize": size}
    if style.marker == "none":  # a line that only joins what others draw: wide, below them
        look |= {"linewidth": 5, "zorder": 1, "solid_capstyle": "round"}
    xs = [dot.x * shift for dot in line.dots]
    ys = [math.nan if dot.y is None else dot.y for dot in line.dots]
    bars = [dot for dot in line.dots if dot.spread]
    axes.errorbar(
        [dot.x * shift for dot in bars],
        [dot.y for dot in bars],
        [dot.spread for dot in bars],
        fmt="none",
        ecolor=style.color,
        elinewidth=0.8,
        capsize=2,
    )
    return axes.plot(xs, ys, label=line.label, **look)[0]


def draw_x(axes, panel, inches):
    """Ticks of the lower and the upper axis, both logarithmic."""
    low, high = axes.get_xlim()
    ticks = panel.ticks or make_dollar_ticks(low, high, inches)
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    if panel.top:
        upper = axes.secondary_xaxis("top")
        upper.set_xticks([x for x, _ in panel.top], [text for _, text in panel.top])
        upper.set_xticks([], minor=True)
    else:
        axes.spines["top"].set_visible(False)


def draw_panel(axes, panel, limits, inches):
    """One Panel, its axes about `inches` wide; returns {label: handle} for the legend."""
    axes.set_title(panel.title)
    axes.set_ylabel(panel.ylabel)
    if limits is None:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no finished run", transform=axes.transAxes, ha="center", color=GREY)
        return {}
    axes.set_xscale("log")
    axes.set_ylim(*limits)
    shown = {}
    for i, (line, shift) in enumerate(zip(panel.lines, find_shifts(panel, inches), strict=True)):
        # What is drawn later is smaller, so that dots in one place show all the same.
        size = 5.5 if panel.dodge else max(7 - i, 4.5)
        if keep_seen(line.dots):
            shown[line.label] = draw_line(axes, line, shift, size)
    for x, _ in (*panel.ticks, *panel.top):  # all are in sight, with or without a dot there
        axes.plot([x], [limits[0]], alpha=0)
    axes.margins(x=0.07)
    for x, text, color in panel.gaps:
        place = axes.get_xaxis_transform()
        axes.text(x, 0.03, text, transform=place, ha="center", color=color, size=7)
    draw_x(axes, panel, inches)
    return shown


def place_footer(figure, shown, notes, sizes):
    """The legend, and below it the notes, in the lowest `sizes` inches of the figure."""
    (legend_inches, columns), note_inches = sizes
    height = figure.get_size_inches()[1]
    if shown:
        top = (note_inches + legend_inches) / height
        figure.legend(
            list(shown.values()),
            list(shown),
            loc="upper center",
            bbox_to_anchor=(0.5, top),
            borderaxespad=0,
            ncols=columns,
            handlelength=3,
            columnspacing=1.5,
        )
    at = note_inches / height
    figure.text(0.012, at, "\n".join(notes), size=NOTE_SIZE, va="top", linespacing=1.25)


def measure_legend(labels, width):
    """(inches of height, columns) of a legend with `labels` below a figure of `width` inches."""
    size = LOOK["legend.fontsize"]
    longest = max((measure_text(label, size) for label in labels), default=0)
    fit = int(width / (longest + 0.6))  # beside its text, a label has its line and some air
    columns = max(1, min(len(labels), fit))
    rows = math.ceil(len(labels) / columns)
    columns = math.ceil(len(labels) / rows) if rows else 1
    return LEGEND_LINE * rows + 0.06, columns


def draw(panels, notes=(), columns=None):
    """A matplotlib Figure of `panels`, in rows of `columns` (default: one row, at most three)."""
    import matplotlib.style
    from matplotlib.figure import Figure

    columns = columns or min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    width = WIDTHS.get(columns, 2.4 * columns)
    inner = 3.1 if columns == 1 else 2.7 if columns == 2 else 2.1 if rows < 4 else 1.5
    inner += 0.2 if any(panel.top for panel in panels) else 0
    notes = [row for note in notes for row in wrap(note, width * 0.97, NOTE_SIZE)]
    labels = {line.label for panel in panels for line in panel.lines if keep_seen(line.dots)}
    legend, note_inches = measure_legend(labels, width), NOTE_LINE * len(notes) + 0.1
    footer = legend[0] + note_inches
    height = inner * rows + footer
    with matplotlib.style.context(["default", LOOK]):
        figure = Figure(figsize=(width, height))
        box = (0.005, footer / height, 0.99, 1 - footer / height - 0.02)
        figure.set_layout_engine("constrained", rect=box, w_pad=0.06, h_pad=0.06)
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        shown = {}
        for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            limits = find_range([p for p in panels if p.row and p.row == panel.row] or [panel])
            shown = {**draw_panel(axes, panel, limits, width / columns - 0.5), **shown}
            below = panels[i + columns].xlabel if i + columns < len(panels) else None
            axes.set_xlabel("" if below == panel.xlabel else panel.xlabel)  # once a column
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        order = dict.fromkeys(line.label for panel in panels for line in panel.lines)
        shown = {label: shown[label] for label in order if label in shown}
        place_footer(figure, shown, notes, (legend, note_inches))
    return figure


def write(figure, path):
    """Write PATH.png and PATH.pdf, each whole or not at all; no date in them. Returns the paths."""
    import matplotlib.style

    path, dates = Path(path), {"pdf": {"CreationDate": None}, "png": {"Software": None}}
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, metadata in dates.items():
        temporary = path.with_name(f".{path.name}.{suffix}")
        with matplotlib.style.context(["default", LOOK]):
            figure.savefig(temporary, format=suffix, metadata=metadata)
        os.replace(temporary, path.with_name(f"{path.name}.{suffix}"))
    return [path.with_name(f"{path.name}.{suffix}") for suffix in dates]
