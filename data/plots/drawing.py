"""Small multiples with a legend below them: how every figure here is drawn and written.

Usage:
    panel = Panel("WLP", [Line("Ann.", ANN, [Dot(26, 40.7), Dot(1300, 67.4)])], ylabel="F1")
    write(draw([panel]), Path("out/fig2"))  # out/fig2.png and .pdf, the same bytes each time
"""

import io
import itertools
import math
import warnings
from pathlib import Path
from typing import NamedTuple

from data.costs.prices import show_dollars
from data.files import write_atomic

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
DIST_MORE = Style(GREEN, "D", (0, (3, 1, 1, 1)))
LLM = Style(GREEN, "D", (0, (3, 1, 1, 1, 1, 1)))
LLM_ONLY = Style(PURPLE, "v", (0, (1, 1)))
FRONTIER = Style("#C4C4C4", "none")


class Dot(NamedTuple):
    """A point; `bar` is (low, high) of its error bar, None where there is none. Where `y` is None
    nothing is drawn: its line is interrupted there."""

    x: float
    y: float
    bar: tuple = None


class Line(NamedTuple):
    """A series: its name in the legend, its Style, its Dots from left to right; their bars are one
    shaded `band` if asked."""

    label: str
    style: Style
    dots: list
    band: bool = False

    def list_seen(self):
        return [dot for dot in self.dots if dot.y is not None]


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
    levels: tuple = ()  # [(text in the legend, colour, y)]: a score all along
    span: tuple = ()  # (text in the legend, colour, low x, high x)


LOOK = ("default", Path(__file__).with_name("look.mplstyle"))
WIDTHS = {1: 3.5, 2: 6.8, 3: 7.2}  # columns -> inches; two columns of a paper are 6.3 to 7
TICK_INCHES = 0.38  # a text such as $1.5K at the size of ticks, and some air
LEGEND_LINE, LEGEND_LETTER = 0.19, 0.065  # inches
LEAST_SPAN = 10  # points of score that an axis shows at least, so that noise looks like noise


def can_draw(text):
    """Whether the font of the figures has each character of `text`."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return all(ord(mark) in known for mark in text)


def make_dollar_ticks(low, high, inches):
    """[(dollars, text)] at round amounts on a logarithmic axis of `inches` from `low` to `high`, as
    many as fit: texts of neighbours don't touch."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    gap = TICK_INCHES / inches * math.log10(high / low)
    for steps in ((1, 1.5, 2, 3, 4, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10**power for power in powers for step in steps]
        ticks = [x for x in ticks if low <= x <= high]
        if all(math.log10(b / a) >= gap for a, b in itertools.pairwise(ticks)):
            break
    return [(x, f"${x / 1000:g}K" if x >= 1000 else show_dollars(x)) for x in ticks]


def find_range(panels):
    """(low, high) of y over `panels`, error bars and near levels inside; None without dots."""
    dots = [dot for panel in panels for line in panel.lines for dot in line.list_seen()]
    values = [y for dot in dots for y in (dot.y, *(dot.bar or ()))]
    if not dots:
        return None
    low, high = min(values), max(values)
    near = 2 * low - high, 2 * high - low  # a level farther away would press all else flat
    values += [y for p in panels for *_, y in p.levels if near[0] <= y <= near[1]]
    low, high = min(values), max(values)
    lacking = max(LEAST_SPAN - (high - low), 0) / 2
    low, high = low - lacking, high + lacking
    edge = (high - low) * 0.09
    below = 2 * edge if any(panel.gaps for panel in panels) else edge  # room for their words
    return low - below, high + edge


def find_ends(panel):
    """The least and the greatest x of a panel, half an octave or more from their middle so that one
    x alone has an axis around it."""
    xs = [dot.x for line in panel.lines for dot in line.list_seen()]
    xs += [x for x, _ in (*panel.ticks, *panel.top)]
    middle = math.sqrt(min(xs) * max(xs))
    return min(*xs, middle / math.sqrt(2)), max(*xs, middle * math.sqrt(2))


def find_shifts(panel, inches):
    """A factor of x for each series of a panel: 1, or a little to either side with `dodge`.

    Neighbours that are seen are 4 points apart, nearer where the outer ones would be more than 14.
    Points without a line (the paper's own) stay in the middle: they are hollow and hide nothing.
    """
    if not panel.dodge:
        return [1] * len(panel.lines)
    low, high = find_ends(panel)
    decades = math.log10(high / low)
    joined = [line.style.line != "none" and bool(line.list_seen()) for line in panel.lines]
    middle = (sum(joined) - 1) / 2
    step = min(4 / 72, 14 / 72 / max(sum(joined) - 1, 1)) / inches
    places = [sum(joined[:i]) - middle if own else 0 for i, own in enumerate(joined)]
    return [10 ** (place * step * decades) for place in places]


def draw_line(axes, line, shift, size):
    """One series with its error bars; returns what the legend shows of it."""
    style = line.style
    # A light edge keeps dots apart where they touch; a hollow dot needs its colour there, and the
    # paper's, hollow and without a line, cover nothing.
    edge, fill = style.color, "none" if style.line == "none" else "white"
    if style.filled:
        edge, fill = "white", style.color
    look = {"color": style.color, "linestyle": style.line, "marker": style.marker}
    look |= {"markerfacecolor": fill, "markeredgecolor": edge, "markersize": size}
    look |= {"markeredgewidth": 0.5 if style.filled else 1}
    if style.marker == "none":  # a line that only joins what others draw: wide, below them
        look |= {"linewidth": 5, "zorder": 1, "solid_capstyle": "round"}
    if line.band:
        ends = zip(*((dot.x, *dot.bar) for dot in line.dots), strict=True)
        axes.fill_between(*ends, color=style.color, alpha=0.15, linewidth=0)
    for dot in (dot for dot in line.list_seen() if dot.bar and not line.band):
        ends = [[max(dot.y - dot.bar[0], 0)], [max(dot.bar[1] - dot.y, 0)]]
        bar = {"fmt": "none", "ecolor": style.color, "elinewidth": 0.8, "capsize": 2}
        axes.errorbar([dot.x * shift], [dot.y], ends, **bar)
    xs = [dot.x * shift for dot in line.dots]
    ys = [math.nan if dot.y is None else dot.y for dot in line.dots]
    return axes.plot(xs, ys, label=line.label, **look)[0]


def draw_x(axes, panel, inches):
    """Ticks of the lower and the upper axis, both logarithmic."""
    low, high = axes.get_xlim()
    sides = [(axes, panel.ticks or make_dollar_ticks(low, high, inches))]
    sides += [(axes.secondary_xaxis("top"), panel.top)] if panel.top else []
    for side, ticks in sides:
        side.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
        side.set_xticks([], minor=True)
    axes.set_xlim(low, high)
    axes.spines["top"].set_visible(bool(panel.top))


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
    for label, color, y in panel.levels:
        shown[label] = axes.axhline(y, color=color, linestyle=(0, (1, 2)), linewidth=1)
    if panel.span:
        label, color, *ends = panel.span
        shown[label] = axes.axvspan(*ends, color=color, alpha=0.25, linewidth=0, zorder=0)
    for i, (line, shift) in enumerate(zip(panel.lines, find_shifts(panel, inches), strict=True)):
        # What is drawn later is smaller, so that dots in one place show all the same.
        size = 5.5 if panel.dodge else max(7 - i, 4.5)
        if line.list_seen():
            shown[line.label] = draw_line(axes, line, shift, size)
    for x in find_ends(panel):  # all are in sight, with or without a dot there
        axes.plot([x], [limits[0]], alpha=0)
    axes.margins(x=0.07)
    for x, text, color in panel.gaps:
        place = axes.get_xaxis_transform()
        axes.text(x, 0.03, text, transform=place, ha="center", color=color, size=7)
    draw_x(axes, panel, inches)
    return shown


def count_legend_columns(labels, width):
    """As many columns of a legend as fit into `width` inches, the rows equally full."""
    longest = max(map(len, labels), default=0) * LEGEND_LETTER + 0.6  # its line and some air
    rows = math.ceil(len(labels) / max(1, int(width / longest)))
    return math.ceil(len(labels) / rows) if rows else 1


def draw(panels, columns=None, width=None):
    """A matplotlib Figure of `panels`, in rows of `columns` (default: one row, at most three),
    `width` inches wide."""
    import matplotlib.style
    from matplotlib.figure import Figure

    columns = columns or min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    width = width or WIDTHS.get(columns, 2.4 * columns)
    inner = 2.6 if columns < 3 else 2.1 if rows < 4 else 1.5
    inner += 0.2 if any(panel.top for panel in panels) else 0
    with matplotlib.style.context(LOOK):
        figure = Figure()
        figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
        grid = list(figure.subplots(rows, columns, squeeze=False).flat)
        shown = {line.label: None for panel in panels for line in panel.lines}  # in this order
        for i, (axes, panel) in enumerate(zip(grid, panels, strict=False)):
            limits = find_range([p for p in panels if p.row and p.row == panel.row] or [panel])
            handles = draw_panel(axes, panel, limits, width / columns - 0.5)
            shown.update((label, each) for label, each in handles.items() if not shown.get(label))
            below = panels[i + columns].xlabel if i + columns < len(panels) else None
            axes.set_xlabel("" if below == panel.xlabel else panel.xlabel)  # once a column
        for axes in grid[len(panels) :]:
            axes.set_axis_off()
        shown = {label: handle for label, handle in shown.items() if handle}
        in_row = count_legend_columns(shown, width)
        height = inner * rows + LEGEND_LINE * math.ceil(len(shown) / in_row) + 0.1
        figure.set_size_inches(width, height)
        if shown:
            look = {"ncols": in_row, "handlelength": 3, "columnspacing": 1.5}
            figure.legend(shown.values(), shown.keys(), loc="outside lower center", **look)
    return figure


def write(figure, path, formats=("png", "pdf")):
    """Write PATH.png, PATH.pdf, each whole or not at all; no date in them. Returns the paths."""
    import matplotlib.style

    dates = {"pdf": {"CreationDate": None}, "png": {"Software": None}, "svg": {"Date": None}}
    pictures = {}
    with matplotlib.style.context(LOOK), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # shown as a box
        for kind in formats:
            picture = pictures[Path(f"{path}.{kind}")] = io.BytesIO()
            figure.savefig(picture, format=kind, metadata=dates[kind])
    for place, picture in pictures.items():  # all are drawn: a full disk leaves nothing half done
        write_atomic(place, picture.getvalue())
    return list(pictures)
