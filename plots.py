"""Tables of the paper beside the paper's own values, as Markdown, CSV and LaTeX.

Usage:
  python plots.py table1                           annotation prices of the six data sets
  python plots.py table6 --task wlp --output out/  one row; also out/table6.md, .csv and .tex
Reads:  data/tasks.json, data/scales.json, data/prices.csv, data/paper_tables.csv
Writes: stdout (Markdown); with --output also NAME.md, NAME.csv and NAME.tex in that folder
Copy:   plots.py, costs.py and data/*.json, data/*.csv; standard library only for tables
Paper:  Tables 1, 5, 6 and 8
"""

import argparse
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

import costs

# --- one way to show a table ---------------------------------------------------------------


class Table(NamedTuple):
    """A table before it has a format.

    `rows` hold one cell per column: text is shown as it is, numbers by `str`, None as missing.
    The first `left` columns are text and stand left; all others are numbers and stand right.
    `notes` are printed below, one per line.
    """

    name: str
    title: str
    columns: list
    rows: list
    notes: tuple = ()
    left: int = 1


MISSING = "–"
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


def to_markdown(table):
    """A Markdown table, padded so that it reads as well in a terminal."""
    lines = [table.columns, *table.rows]
    cells = [[show_cell(cell).replace("|", "\\|") for cell in line] for line in lines]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(table.columns))]

    def pad(line):
        sides = ("<" if i < table.left else ">" for i in range(len(line)))
        padded = (f"{c:{side}{w}}" for c, side, w in zip(line, sides, widths, strict=True))
        return "| " + " | ".join(padded) + " |"

    rule = ["-" * w if i < table.left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    body = [pad(cells[0]), "| " + " | ".join(rule) + " |", *map(pad, cells[1:])]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
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

    def escape(cell):
        return "".join(TEX.get(mark, mark) for mark in show_cell(cell))

    def line(cells):
        return " & ".join(map(escape, cells)) + r" \\"

    sides = "l" * table.left + "r" * (len(table.columns) - table.left)
    text = [r"\begin{table}", r"\centering", rf"\caption{{{escape(table.title)}}}"]
    text += [rf"\begin{{tabular}}{{{sides}}}", r"\toprule", line(table.columns), r"\midrule"]
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
            costs.write_atomic(Path(output) / f"{table.name}.{suffix}", convert(table))
    print(to_markdown(table), end="")


# --- the tables ----------------------------------------------------------------------------

# Each entry: the command's name -> (one line of help, function of the parsed flags that
# returns a Table, function that adds flags of its own to the parser or None).
TABLES = {}


def parse_args(argv=None):
    first, rest = __doc__.split("\n", 1)
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=first, epilog=rest, formatter_class=raw)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--output", metavar="DIR", help="also write .md, .csv and .tex here (default: only print)"
    )
    shared.add_argument("--task", default="all", help="a task of data/tasks.json (default: all)")
    commands = parser.add_subparsers(dest="command", metavar="TABLE", required=True)
    for name, (summary, _, add_flags) in TABLES.items():
        command = commands.add_parser(name, parents=[shared], help=summary, description=summary)
        if add_flags:
            add_flags(command)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _, build, _ = TABLES[args.command]
    render(build(args), args.output)


if __name__ == "__main__":
    costs.run_cli(main)
