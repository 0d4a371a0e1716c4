"""One way to show a table: as Markdown that reads well in a terminal, as CSV and as LaTeX.

Usage:
    table = Table("table1", "Table 1. Prices", ["Task", "$"], [["WLP", "$0.26"]], ["kept below"])
    render([table], "out")        # writes out/table1.md, .csv and .tex, then prints the Markdown
Writes: stdout; NAME.md, NAME.csv and NAME.tex in a folder
Paper:  Tables 1 to 11
"""

import csv
import io
import itertools
import re
import textwrap
import unicodedata
from pathlib import Path
from typing import NamedTuple

from data.costs.prices import PAGE, fill
from data.files import write_atomic


class Table(NamedTuple):
    """A table before it has a format.

    `rows` hold one cell per column: text is shown as it is, numbers by `str`, None as missing.
    The first `left` columns are text and stand left, unless all they hold is numbers; the others
    stand right.
    `notes` are printed below, one per line. Of a `wide` table the last column's texts may be long:
    in Markdown they go on in further rows, in LaTeX in a paragraph. These two leave out the columns
    that hold nothing, and of a `compact` table those that hold the same in all rows, which CSV
    keeps.
    """

    name: str
    title: str
    columns: list
    rows: list
    notes: tuple = ()
    left: int = 1
    wide: bool = False
    compact: bool = False


MISSING = "–"
NUMBER = re.compile(rf"([$+-]*[\d.,]+K?|{MISSING})?")
CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")  # line ends among them


def show_count(count):
    """1000 as 1K and 1900 as 1.9K, as the paper prints them; 538 and 1,138 as they are."""
    return f"{count / 1000:g}K" if count >= 1000 and count % 100 == 0 else f"{count:,}"


def show_cell(cell):
    """A cell as text of one line; a missing value shows, it is never an empty or zero cell."""
    return MISSING if cell is None else CONTROLS.sub(" ", str(cell))


def measure(text):
    """The width of `text` in a terminal, in columns: East Asian characters take two."""
    marks = (c for c in text if not unicodedata.combining(c))
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in marks)


def show_gap(one, other=0):
    """The difference of two means, or one that is known; None where one is missing."""
    return f"{one - other:+.1f}" if None not in (one, other) else None


def join(head, lines):
    """Rows of {label: cells}; `head` stands before the first of them only."""
    blank = [""] * len(head)
    pairs = enumerate(lines.items())
    return [[*(blank if i else head), label, *line] for i, (label, line) in pairs]


def drop_same(table):
    """A table without the columns in which nothing stands; of a compact one without those that hold
    one value in all rows either, which its title says."""
    if not table.rows:
        return table
    columns = list(zip(*table.rows, strict=True))
    values = [{"" if cell is None else str(cell) for cell in column} for column in columns]
    alone = len(table.rows) == 1
    keep = [any(each) and (not table.compact or alone or len(each) > 1) for each in values]
    pairs = zip(table.columns, values, keep, strict=True)
    same = ", ".join(f"{name} {min(each)}" for name, each, kept in pairs if not kept and any(each))
    lines = [list(itertools.compress(line, keep)) for line in [table.columns, *table.rows]]
    title = f"{table.title}: {same}" if same else table.title
    left, wide = sum(keep[: table.left]), table.wide and keep[-1]
    return table._replace(title=title, columns=lines[0], rows=lines[1:], left=left, wide=wide)


def find_sides(table):
    """ "<" for each column that stands left, ">" for those that stand right."""
    for i in range(len(table.columns)):
        cells = [show_cell(row[i]) for row in table.rows]
        numbers = any(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
        yield "<" if i < table.left and not numbers else ">"


def wrap_rows(table):
    """The rows, each with a long text at its end spread over several, as wide as a page has room
    for beside the others."""
    *columns, _ = zip(table.columns, *table.rows, strict=True)
    sizes = [max(3, *(measure(show_cell(cell)) for cell in column)) for column in columns]
    room = max(30, PAGE - sum(sizes) - 3 * len(sizes) - 4)
    for *others, text in table.rows:
        first, *more = textwrap.wrap(show_cell(text), room) or [""]
        yield [*others, first]
        yield from ([*[""] * len(others), line] for line in more)


def wrap_notes(notes):
    """Notes as a Markdown list of short lines; a long word, such as a path, stays whole."""
    return "".join(fill("- " + CONTROLS.sub(" ", note)) + "\n" for note in notes)


def pad(text, side, width):
    """`text` with spaces up to `width` columns, at its left where `side` is ">"."""
    gap = " " * (width - measure(text))
    return text + gap if side == "<" else gap + text


def to_markdown(table):
    """A Markdown table, padded so that it reads as well in a terminal, and without the spaces at
    its bars where it would else be wider than a page."""
    table = drop_same(table)
    lines = [table.columns, *(wrap_rows(table) if table.wide else table.rows)]
    cells = [[show_cell(cell).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *map(measure, column)) for column in zip(*cells, strict=True)]
    sides = list(find_sides(table))
    pairs = zip(sides, widths, strict=True)
    cells.insert(1, ["-" * w if side == "<" else "-" * (w - 1) + ":" for side, w in pairs])
    bar = "|" if sum(widths) + 3 * len(widths) + 1 > PAGE else " | "
    body = [bar.join(map(pad, line, sides, widths)) for line in cells]
    body = [f"{bar.lstrip()}{line}{bar.rstrip()}" for line in body]
    notes = "\n" * bool(table.notes) + wrap_notes(table.notes)
    return "\n".join([f"**{show_cell(table.title)}**", "", *body]) + "\n" + notes


def guard_cell(cell):
    """A cell for CSV: `$1,300` is 1300, a missing one is empty, and no text is taken for a
    formula by a program that opens the file."""
    text = "" if cell is None else str(cell)
    if re.fullmatch(r"[$+-]*[\d,.]+", text):
        return re.sub(r"[$,]", "", text)
    return "'" + text if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def to_csv(table):
    """Comma-separated values as text."""
    text, lines = io.StringIO(), [table.columns, *table.rows]
    csv.writer(text, lineterminator="\n").writerows(map(guard_cell, line) for line in lines)
    return text.getvalue()


TEX = {"\\": r"\textbackslash{}", **{mark: "\\" + mark for mark in "&%$#_{}"}, "–": "--"}
TEX |= {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}", "−": "$-$"}
TEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "±": r"$\pm$", "⇒": r"$\Rightarrow$"}
TEX |= {"→": r"$\rightarrow$", "↓": r"$\downarrow$", "×": r"$\times$", "≤": r"$\leq$"}
TEX |= {"≥": r"$\geq$", "§": r"\S{}"}


def escape(cell):
    """A cell in LaTeX; the indent of a row's label is kept."""
    text = show_cell(cell)
    indent = r"\quad " * text.startswith("  ")
    return indent + text.strip().translate(str.maketrans(TEX))


def to_tex(table):
    """A LaTeX table, notes under it; LaTeX itself numbers it, so the paper's number goes."""
    table = drop_same(table)
    sides = ["l" if side == "<" else "r" for side in find_sides(table)]
    lines = [[escape(cell) for cell in line] for line in [table.columns, *table.rows]]
    size = sum(max(map(measure, column)) + 2 for column in zip(*lines, strict=True))
    kind, fit = ("table*", r"\textwidth") if size > PAGE else ("table", r"\linewidth")
    if table.wide:
        sides[-1] = r"p{0.6\linewidth}"
    head, *body = (" & ".join(line) + r" \\" for line in lines)
    caption = escape(re.sub(r"^Table \d+\. ", "", table.title))
    tabular = [rf"\begin{{tabular}}{{{''.join(sides)}}}", r"\toprule", head, r"\midrule", *body]
    tabular += [r"\bottomrule", r"\end{tabular}"]
    if size > PAGE and not table.wide:
        tabular = [rf"\resizebox{{{fit}}}{{!}}{{%", *tabular, "}"]
    lines = [r"% needs \usepackage{booktabs,graphicx}", rf"\begin{{{kind}}}", r"\centering"]
    lines += [rf"\caption{{{caption}}}", rf"\label{{tab:{table.name}}}", *tabular]
    if table.notes:
        lines += [r"\par\smallskip", rf"\begin{{minipage}}{{{fit}}}\footnotesize"]
        lines += [*(escape(note) + r"\par" for note in table.notes), r"\end{minipage}"]
    return "\n".join([*lines, rf"\end{{{kind}}}", ""])


def render(tables, output=None):
    """Write each table in the folder `output`, if one is given, as .md, .csv and .tex; then, when
    all files are there, print them as Markdown, of those after the first their paths alone."""
    formats = {"md": to_markdown, "csv": to_csv, "tex": to_tex}
    for table in tables if output else ():
        for suffix, convert in formats.items():
            write_atomic(Path(output) / f"{table.name}.{suffix}", convert(table))
    for i, table in enumerate(tables):
        if i and output:
            print(f"\n{table.title}: {Path(output) / table.name}.md")
        else:
            print("\n" * bool(i) + to_markdown(table), end="")
