"""One way to show a table: as Markdown that reads well in a terminal, as CSV and as LaTeX.

Usage:
    table = Table("table1", "Table 1. Prices", ["Task", "$"], [["WLP", "$0.26"]], ["kept below"])
    render(table, "out")          # prints Markdown; writes out/table1.md, .csv and .tex
Reads:  nothing
Writes: stdout; NAME.md, NAME.csv and NAME.tex in a folder
Paper:  Tables 1 to 11
"""

import csv
import io
import itertools
import re
import textwrap
from functools import partial
from pathlib import Path
from typing import NamedTuple

from data.costs.grid import TABLES, choose_tasks
from data.costs.prices import show_usd
from data.files import write_atomic
from data.tasks import load_tasks

# --- one way to show a table ---------------------------------------------------------------


class Table(NamedTuple):
    """A table before it has a format.

    `rows` hold one cell per column: text is shown as it is, numbers by `str`, None as missing.
    The first `left` columns are text and stand left, unless all they hold is numbers; the others
    stand right.
    `notes` are printed below, one per line. The texts of column `wide` may be long: in Markdown
    they go on in further rows, in LaTeX in a paragraph. Of a `compact` table these two leave out
    the columns without any value, which CSV keeps.
    """

    name: str
    title: str
    columns: list
    rows: list
    notes: tuple = ()
    left: int = 1
    wide: int = None
    compact: bool = False


MISSING = "–"
NUMBER = re.compile(rf"([$+-]*[\d.,]+K?|{MISSING})?")
WIDTH = 76  # characters of a long cell before it goes on in the next row; of a note 24 more
TEX = {
    "\\": r"\textbackslash{}",
    **{mark: "\\" + mark for mark in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "⇒": r"$\Rightarrow$",
    "→": r"$\rightarrow$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "–": "--",
    "§": r"\S{}",
}


def show_cell(cell):
    """A cell as text; a missing value shows, it is never an empty or zero cell."""
    return MISSING if cell is None else str(cell)


def check_shape(table):
    """A row that is longer or shorter than the heading is our own mistake: stop."""
    for row in table.rows:
        if len(row) != len(table.columns):
            raise ValueError(f"{table.name}: {len(row)} cells under {len(table.columns)} columns")


def drop_empty(table):
    """A compact table without the columns of numbers that hold no value in any row."""
    keep = [
        i < table.left or any(row[i] not in (None, "") for row in table.rows)
        for i in range(len(table.columns))
    ]
    if not table.compact or all(keep):
        return table
    pick = partial(itertools.compress, selectors=keep)
    return table._replace(columns=[*pick(table.columns)], rows=[[*pick(row)] for row in table.rows])


def find_sides(table):
    """ "<" for each column that stands left, ">" for those that stand right."""
    for i in range(len(table.columns)):
        cells = [show_cell(row[i]) for row in table.rows]
        numbers = any(cells) and all(NUMBER.fullmatch(cell) for cell in cells)
        yield "<" if i < table.left and not numbers else ">"


def wrap_rows(table):
    """The rows, each with a long cell in column `wide` spread over several."""
    for row in table.rows:
        texts = textwrap.wrap(show_cell(row[table.wide]), WIDTH) or [""]
        for number, text in enumerate(texts):
            others = row if number == 0 else [""] * len(row)
            yield [text if i == table.wide else cell for i, cell in enumerate(others)]


def wrap_note(note):
    """A note as a Markdown list item of short lines; a long word, such as a path, stays whole."""
    whole = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.wrap(note, WIDTH + 24, initial_indent="- ", subsequent_indent="  ", **whole)


def to_markdown(table):
    """A Markdown table, padded so that it reads as well in a terminal."""
    table = drop_empty(table)
    lines = [table.columns, *(table.rows if table.wide is None else wrap_rows(table))]
    cells = [[show_cell(cell).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(table.columns))]

    sides = list(find_sides(table))

    def pad(line):
        padded = (f"{c:{side}{w}}" for c, side, w in zip(line, sides, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    pairs = zip(sides, widths, strict=True)
    rule = ["-" * width if side == "<" else "-" * (width - 1) + ":" for side, width in pairs]
    body = [pad(cells[0]), "| " + " | ".join(rule) + " |", *map(pad, cells[1:])]
    notes = ["", *(line for note in table.notes for line in wrap_note(note))]
    notes = notes if table.notes else []
    return "\n".join([f"**{table.title}**", "", *body, *notes]) + "\n"


def to_csv(table):
    """Comma-separated values: `$1,300` becomes 1300, a missing cell is empty; no notes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        cells = ("" if cell is None else str(cell) for cell in row)
        writer.writerow(
            re.sub(r"[$,]", "", c) if re.fullmatch(r"[$+-]*[\d,.]+", c) else c for c in cells
        )
    return text.getvalue()


def to_tex(table):
    """A LaTeX table for the booktabs package, notes under it."""
    table = drop_empty(table)

    def escape(cell):
        return "".join(TEX.get(mark, mark) for mark in show_cell(cell))

    def line(cells):
        return " & ".join(map(escape, cells)) + r" \\"

    sides = ["l" if side == "<" else "r" for side in find_sides(table)]
    if table.wide is not None:
        sides[table.wide] = r"p{0.6\linewidth}"
    text = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}"]
    text += [
        rf"\begin{{tabular}}{{{''.join(sides)}}}",
        r"\toprule",
        line(table.columns),
        r"\midrule",
    ]
    text += [*map(line, table.rows), r"\bottomrule", r"\end{tabular}"]
    if table.notes:
        text += [r"\par\smallskip\footnotesize", *(escape(n) + r"\par" for n in table.notes)]
    return "\n".join([*text, r"\end{table}"]) + "\n"


def render(table, output=None):
    """Print `table` as Markdown; with a folder `output`, write it as .md, .csv and .tex too."""
    check_shape(table)
    if output:
        formats = {"md": to_markdown, "csv": to_csv, "tex": to_tex}
        for suffix, convert in formats.items():
            write_atomic(Path(output) / f"{table.name}.{suffix}", convert(table))
    print(to_markdown(table), end="")


# --- amounts and tasks ---------------------------------------------------------------------


def show_dollars(amount):
    """Dollars without cents where there are none; None stays None."""
    return None if amount is None else show_usd(amount).removesuffix(".00")


def show_count(count):
    """Thousands as the paper prints them, where a count is round enough."""
    return f"{count / 1000:g}K" if count % 100 == 0 else f"{count:,}"


def read_tasks(args):
    """The Tasks of --task that the paper shows in this table or figure, or all that are named."""
    tasks = load_tasks(args.task, args.data)
    return choose_tasks(args.command, tasks) if args.command in TABLES else tasks
