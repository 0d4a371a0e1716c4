"""Tables of the paper beside the paper's own values, as Markdown, CSV and LaTeX.

Usage:
  python plots.py table1                           annotation prices of the six data sets
  python plots.py table6 --task wlp --output out/  one row; also out/table6.md, .csv and .tex
  python plots.py fig2 --task wlp --output out/    out/fig2.png, .pdf and .csv (data/figures.py)
Reads:  data/tasks.json, data/scales.json, data/prices.csv, data/paper_tables.csv
Writes: stdout (Markdown); with --output also NAME.md, NAME.csv and NAME.tex in that folder
Copy:   plots.py, costs.py and data/*.json, data/*.csv; standard library only for tables
Paper:  Tables 1, 5, 6 and 8
"""

import argparse
import csv
import io
import math
import re
import statistics
from pathlib import Path
from typing import NamedTuple

import costs
from data.figures import FIGURES

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


# --- the paper's tables of prices and settings ---------------------------------------------


def load_printed(table, path=costs.DATA / "paper_tables.csv"):
    """{(task, item): the text that the paper prints} of Table 1, 5, 6 or 8."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        return {(r["task"], r["item"]): r["printed"] for r in rows if r["table"] == str(table)}


def read_number(printed):
    """The number in a printed value such as $13,544; None where nothing or N/A is printed."""
    digits = re.sub(r"[$,]", "", printed or "")
    return float(digits) if re.fullmatch(r"[\d.]+", digits) else None


class Notes(list):
    """The notes below a table; `mark` adds one and gives the letter that points to it."""

    def mark(self, text):
        self.append(f"{chr(ord('a') + len(self))}: {text}")
        return self[-1][0]


def read_tasks(args):
    """[(name, entry)] of --task that the paper shows in this table, or of all that are named."""
    names = costs.list_tasks(args.task, args.tasks)
    if args.command in costs.TABLES:
        names = costs.choose_tasks(args.command, args.task, args.tasks)
    return [(name, costs.load_task(name, args.tasks)) for name in names]


def read_table4(strategy, name):
    """(N, dollars) that Table 4 prints for a strategy; None where it prints no dollars."""
    cells = [c for c in costs.load_scores() if (c["table"], c["task"]) == (4, name)]
    found = [(c["labels"], c["budget_usd"]) for c in cells if c["strategy"] == strategy]
    return found[0] if found and found[0][1] else None


def build_table1(args):
    printed, notes, rows = load_printed(1), Notes(), []
    prices = costs.load_prices(args.prices)
    totals = {name: text for (name, item), text in printed.items() if item == "total_usd"}
    for name, entry in read_tasks(args):
        fields = costs.check_entry(name, entry)
        price = costs.price_label(prices, name, entry)
        train = costs.read_study(name, entry).train_rows
        total = None if train is None else f"${round(train * price):,}"
        theirs, mark = totals.get(name), ""
        if theirs and total != theirs:
            text = f"{train:,} labels at ${float(price):.3f} are {total}; the paper prints {theirs}"
            same = [t for t, value in totals.items() if value == theirs and t != name]
            also = ", the total of " + costs.load_task(same[0])["title"] if same else ""
            mark = notes.mark(text + also)
        kind, count = fields.get("kind"), None if train is None else f"{train:,}"
        rows.append([fields["title"], kind, count, f"${float(price):.3f}", total, theirs, mark])
        n, usd = read_table4("small-full", name) or (0, None)
        if usd and abs((train - n) * price - usd) > 1:
            mark = notes.mark(
                f"Table 4's upper bound, ${usd:,}, pays {math.floor(usd / price):,} labels; the "
                f"{train - n:,} there are beyond N = {n:,} cost ${round((train - n) * price):,}"
            )
            rows[-1][-1] += mark
    columns = ["Dataset", "Task", "#Train", "$/Label", "Total $", "Paper", "Note"]
    title = "Table 1. What it costs to annotate each training set"
    return Table("table1", title, columns, rows, tuple(notes), left=2)


def count_rows(path):
    """Rows of a prepared file, None where there is none."""
    return len(costs.read_jsonl(path, ("source",))) if path.exists() else None


def find_most_unlabeled(table, name, args):
    """The most unlabeled rows that a cell of `table` asks for at the paper's scale, uncapped."""
    entry = costs.load_task(name, args.tasks)
    study = costs.read_study(name, entry)
    terms = costs.make_terms(name, entry, costs.load_prices(args.prices))
    few = table == "table11"
    labels = [study.few_shot_n] if few else study.labels_n
    budgets = study.few_shot_budgets if few else study.budgets
    plans = [costs.plan(terms, n, usd)["distill"] for n in labels for usd in budgets]
    return max((bought["unlabeled"] // 1000 * 1000 for bought in plans if bought), default=0)


def build_table5(args):
    printed, notes, rows, short = load_printed(5), Notes(), [], []
    for name, entry in read_tasks(args):
        fields = costs.check_entry(name, entry)
        ours = {**fields.get("rows", {})}
        ours["unlabeled"] = find_most_unlabeled("table2", name, args)
        few_shot = find_most_unlabeled("table11", name, args)
        if few_shot > ours["unlabeled"]:
            short.append(f"{fields['title']} {few_shot:,}")
        for split in ("train", "dev", "test", "unlabeled"):
            theirs, count = printed.get((name, split)), ours.get(split)
            released, mark = fields.get("released_rows", {}).get(split), ""
            if released not in (None, count):
                mark = notes.mark(f"the released file has {released:,} rows, the paper {theirs}")
            elif read_number(theirs) not in (None, count):
                mark = notes.mark(f"{count:,} here; the paper prints {theirs}")
            cells = [None if n is None else f"{n:,}" for n in (count, released)]
            row = [fields["title"], split, cells[0], theirs, cells[1]]
            if args.prepared:
                found = count_rows(Path(args.prepared) / name / f"{split}.jsonl")
                row.append(None if found is None else f"{found:,}")
            rows.append([*row, mark])
    notes.append("Ours, unlabeled: the most that a cell of Table 2 buys at the paper's rates.")
    if short:
        text = "Table 11 asks for more than there is: {}; its runs take what there is."
        notes.append(text.format(", ".join(short)))
    counted = ["Prepared"] * bool(args.prepared)
    columns = ["Dataset", "Split", "Ours", "Paper", "Released file", *counted, "Note"]
    return Table("table5", "Table 5. Rows of each data set", columns, rows, tuple(notes), left=2)


def add_table5_flags(parser):
    text = "also count a prepared world, e.g. data/prepared/mini (default: no)"
    parser.add_argument("--prepared", metavar="DIR", help=text)


def build_table6(args):
    printed, notes, rows, n = load_printed(6), Notes(), [], 5000
    prices = costs.load_prices(args.prices)
    for name, entry in read_tasks(args):
        terms = costs.make_terms(name, entry, prices)
        teacher = costs.price_distilling(terms, n, 0)
        ours = {
            "initial_usd": n * terms.usd_per_label,
            "annotate_1k_usd": 1000 * terms.usd_per_label,
            "teacher_usd": teacher,
            "distill_100k_usd": costs.price_distilling(terms, n, 100_000) - teacher,
        }
        row, mark = [entry["title"]], ""
        at, whole = read_table4("dist", name) or (n, None)
        for item, usd in ours.items():
            theirs = printed.get((name, item))
            row += [costs.show_usd(usd), theirs]
            if theirs and abs(usd - costs.parse_amount(theirs.replace(",", ""), item)) >= 0.05:
                hours = costs.count_teacher_hours(terms, n)
                counts = (
                    f"the unlabeled counts of Table 2 follow from {float(hours):g} h of teacher"
                )
                what = f"{counts}, {costs.show_usd(usd)}" if item == "teacher_usd" else item
                mark += notes.mark(f"{what}; the paper prints {theirs} here")
        usd = costs.price_distilling(terms, at, 100_000)
        if whole and abs(usd - whole) > 1:
            parts = f"at N = {at:,} teacher and 100K examples come to {costs.show_usd(usd)}"
            mark += notes.mark(f"{parts}; Table 4 prints ${whole:,}")
        rows.append([*row, mark])
    columns = ["Dataset"]
    for head in ("Initial $", "Ann. +1K", "Teacher", "Dist. 100K"):
        columns += [head, "Paper"]
    title = "Table 6. What 1K labels or a distillation cost, from N = 5K labels"
    return Table("table6", title, [*columns, "Note"], rows, tuple(notes))


def show_rate(rate):
    """A learning rate as Table 8 prints it: 3e-5."""
    mantissa, exponent = f"{rate:e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def build_table8(args):
    printed, notes, tasks = load_printed(8), Notes(), read_tasks(args)
    heads = {
        "max_source_length": "Max source length",
        "max_target_length": "Max target length",
        "batch_size": "Batch size",
        "epochs": "Epochs",
        "learning_rate": "Learning rate",
    }
    rows = []
    for item, head in heads.items():
        ours, theirs = [], []
        for name, entry in tasks:
            flags = [
                costs.make_flags(name, "paper", strategy, tasks=args.tasks)[item.replace("_", "-")]
                for strategy in ("small", "dist", "teacher")
            ]
            small, dist, teacher = map(show_rate if item == "learning_rate" else str, flags)
            ours.append(small if small == teacher else f"{small} ({teacher})")
            theirs.append(printed.get((name, item)))
            if dist != small:
                notes.append(f"{head}, {entry['title']}: {dist} when distilling")
            if theirs[-1] not in (None, ours[-1]):
                text = f"{head}, {entry['title']}: {ours[-1]} here, {theirs[-1]} in the paper"
                notes.append(text)
        rows += [[head, "ours", *ours], ["", "paper", *theirs]]
    notes.append("In brackets: the teacher's value, where it is another one.")
    columns = ["Hyperparameter", "From", *(entry["title"] for _, entry in tasks)]
    title = "Table 8. Hyperparameters at scale paper"
    return Table("table8", title, columns, rows, tuple(notes), left=2)


# --- command line --------------------------------------------------------------------------

# Command -> (one line of help, function of the parsed flags that returns a Table, function
# that adds flags of its own to the parser or None).
# --- tables of scores ----------------------------------------------------------------------

PAPER_RULE = {"entity_f1": "f1_paper"}  # elsewhere the name of the score and _paper


def load_metrics(folder):
    """metrics.json of a run, None where the run is missing or not finished."""
    path = Path(folder) / "metrics.json"
    return costs.read_json(path) if path.exists() else None


class Score:
    """What the runs of one cell (one run a seed) scored; a missing run stays visible."""

    def __init__(self, runs, folder):
        self.runs = runs or ()
        self.found = [m for m in (load_metrics(folder / run.name) for run in self.runs) if m]

    def values(self, key):
        """One value per finished run: "score", or any key of its metrics."""
        found = [m["score"] if key == "score" else m["metrics"].get(key) for m in self.found]
        return [value for value in found if value is not None]

    def mean(self, key="score"):
        values = self.values(key)
        return statistics.fmean(values) if values else None

    def show(self, key="score"):
        """Mean, spread over seeds (standard deviation) and what is missing; N/A as planned."""
        if not self.runs:
            return "N/A"
        if not self.found:
            return "missing"
        values = self.values(key)
        if not values:
            return None
        text = f"{statistics.fmean(values):.1f}"
        text += f" ±{statistics.stdev(values):.1f}" if len(values) > 1 else ""
        short = len(values) < len(self.runs)
        return text + (f" ({len(values)} of {len(self.runs)} seeds)" if short else "")

    def paper_key(self):
        """The key of the score by the paper's rule; None where both rules agree."""
        metric = self.found[0]["metric"] if self.found else ""
        key = PAPER_RULE.get(metric, f"{metric}_paper")
        return key if self.values(key) else None

    def seconds(self):
        """Mean seconds of training, loading, the teacher's pass; None where not recorded."""
        spent = [sum(m["training"]["seconds"].values()) for m in self.found if m.get("training")]
        return statistics.fmean(spent) if spent else None


def load_reported(task):
    """{(strategy, N, additional dollars): score} of the paper's Table 2; the teacher's has None."""
    cells = [c for c in costs.load_scores() if (c["table"], c["task"]) == (2, task)]
    return {(c["strategy"], c["labels"], c["budget_usd"]): c["score"] for c in cells}


def show_usd(amount):
    """Dollars without cents where there are none."""
    return costs.show_usd(amount).removesuffix(".00")


def show_count(count):
    """Thousands as the paper prints them, where a count is round enough."""
    return f"{count / 1000:g}K" if count % 100 == 0 else f"{count:,}"


def lay_group(cells, folder, unit):
    """The rows of Table 2 for one task and N, its cells one by one, and the metrics behind them."""
    first, printed = cells[0], load_reported(cells[0].task)
    teacher = Score(next((c.runs["teacher"] for c in cells if c.runs["teacher"]), None), folder)
    scores = [(c, Score(c.runs["small"], folder), Score(c.runs["dist"], folder)) for c in cells]
    paper_key = next((s.paper_key() for _, *both in scores for s in both if s.found), None)
    reported = {
        kind: [printed.get((kind, first.labels * unit, c.budget_usd * unit)) for c in cells]
        for kind in ("small", "dist")
    }
    theirs = printed.get(("teacher", first.labels * unit, None))
    gap = [(d.mean(), s.mean()) for _, s, d in scores]
    lines = {
        "Ann.": [f"{s.show()} (+{c.extra_labels:,})" for c, s, _ in scores],
        f"Dist. from [{teacher.show()}]": [
            f"{d.show()} ({c.gpu_hours}h/{show_count(c.unlabeled)})" if d.runs else "N/A"
            for c, _, d in scores
        ],
        "Dist. - Ann.": [f"{d - s:+.1f}" if None not in (d, s) else None for d, s in gap],
    }
    if paper_key:
        lines["Ann., paper's rule"] = [s.show(paper_key) for _, s, _ in scores]
        lines[f"Dist. from [{teacher.show(paper_key)}], paper's rule"] = [
            d.show(paper_key) for _, _, d in scores
        ]
    if any(reported["small"]):
        labels = show_count(first.labels * unit)
        lines[f"paper: Ann., N={labels}"] = reported["small"]
        lines[f"paper: Dist. from [{theirs}]"] = [x or "N/A" for x in reported["dist"]]
    head = f"{first.labels:,} ({show_usd(first.initial_usd)})"
    rows = [[head if i == 0 else "", label, *line] for i, (label, line) in enumerate(lines.items())]
    details = [lay_detail(first, "teacher", teacher, theirs, paper_key)] if teacher.runs else []
    for (cell, small, dist), ann, distilled in zip(scores, *reported.values(), strict=True):
        details.append(lay_detail(cell, "small", small, ann, paper_key))
        if dist.runs:
            spent = (teacher.seconds() or 0) + (dist.seconds() or 0) if dist.found else None
            details.append(lay_detail(cell, "dist", dist, distilled, paper_key, spent))
    found = [
        m for score in (teacher, *(s for _, *both in scores for s in both)) for m in score.found
    ]
    return rows, details, found


def lay_detail(cell, strategy, score, reported, paper_key, seconds=None):
    """One cell as a row of numbers; `seconds` include the teacher's where they are given."""
    dist = strategy == "dist"
    usd = {"small": cell.annotate_usd, "dist": cell.distill_usd}.get(strategy)
    labels = score.runs[0].labels
    seconds = score.seconds() if seconds is None else seconds
    return [
        *(cell.task, f"{cell.labels:,}"),
        "" if strategy == "teacher" else f"+{show_usd(cell.budget_usd)}",
        {"small": "Ann.", "dist": "Dist.", "teacher": "Teacher"}[strategy],
        f"{labels:,}",
        f"{cell.unlabeled:,}" if dist else "0",
        f"{len(score.found)}/{len(score.runs)}",
        score.show(),
        score.show(paper_key) if paper_key else "same",
        score.show("invalid_rate"),
        score.show("constant"),
        reported,
        "" if usd is None else show_usd(usd),
        None if seconds is None else f"{seconds:,.0f}",
    ]


def note_table2(scale, seeds, found, data):
    """What a reader must know to read the numbers."""
    metrics = sorted({m["metric"] for m in found})
    rows = sorted({m["n"] for m in found})
    notes = [
        f"Scores: {', '.join(metrics) or 'none yet'} on test ({', '.join(map(str, rows))} rows), "
        f"in percent; mean and standard deviation over {len(seeds)} seed(s). "
        "paper's rule: the released scorer's, to compare; the other one is to believe.",
        "(+n): labels bought on top of N. (h/n): A40-hours that the dollars buy at the paper's "
        "$1.875, and unlabeled rows that they distil after the teacher is paid; N/A: they don't "
        "cover it. Dist. from [score of its teacher].",
    ]
    if scale != "paper":
        notes.append(
            f"Scale {scale}: {costs.load_scale(scale)['title']}. Only the geometry of the paper's "
            "table is kept: its values, marked paper:, are T5 v1.1 on the real task at ten times "
            "the counts, by its own rule."
        )
    if data:
        notes.append(f"Text and labels from {data}: small models of invented text on real text.")
    for signature in sorted({m["signature"] for m in found}):
        notes.append(f"Scorer: {signature}")
    return notes


def build_table2(args):
    """Table 2 in the paper's layout, and its cells one by one."""
    seeds = costs.parse_seeds(args.seeds)
    rows, details, found, budgets, shown = [], [], [], [], []
    unit, tasks = costs.load_scale(args.scale)["divide_by"], read_tasks(args)
    for name, entry in tasks:
        folder = Path(args.runs) / name
        limits = {"tasks": args.tasks, "prepared": args.prepared}
        cells = costs.cells("table2", name, args.scale, seeds, **limits)
        own = 1 if "labels_n" in entry else unit
        shown += cells
        for labels in dict.fromkeys(cell.labels for cell in cells):
            group = [cell for cell in cells if cell.labels == labels]
            budgets.append([f"+{show_usd(cell.budget_usd)}" for cell in group])
            lines, cellwise, metrics = lay_group(group, folder, own)
            if len(tasks) > 1:
                title = entry["title"] if labels == cells[0].labels else ""
                lines = [["", "Additional $", *budgets[-1]], *lines]
                lines = [[title if i == 0 else "", *line] for i, line in enumerate(lines)]
            rows, details, found = rows + lines, details + cellwise, found + metrics
    same = len(tasks) == 1
    width = max(map(len, budgets))
    if not same:
        rows = [row + [""] * (width + 3 - len(row)) for row in rows]
    heads = budgets[0] if same else [f"({i})" for i in range(width)]
    columns = [*([] if same else ["Task"]), "N (initial $)", "Strategy", *heads]
    title = "Table 2. Annotation (Ann.) against distillation (Dist.) at equal dollars"
    title += f", {tasks[0][1]['title']}" if same else ""
    notes = note_table2(args.scale, seeds, found, args.data)
    notes += dict.fromkeys(note for cell in shown for note in cell.notes)
    main = Table("table2", title, columns, rows, tuple(notes), left=2 if same else 3)
    columns = "Task,N,Budget,Strategy,Labels,Unlabeled,Seeds,Score,Paper's rule,Invalid %,Constant"
    columns = [*columns.split(","), "Paper", "Planned $", "Seconds"]
    text = (
        "Seconds are measured, loading and saving included; those of Dist. include its teacher's "
        "training and its share of the teacher's pass. Planned $ are what the plan spends beyond "
        "N labels, at the paper's rates; `python costs.py report` prices the measured seconds. "
        "Constant: the best predictor that always gives the same output."
    )
    name = "table2-cells"
    return main, Table(name, "The same, cell by cell", columns, details, (text,), left=4)


def add_score_flags(parser):
    add = parser.add_argument
    add("--scale", default="mini", help="mini or paper (default: mini)")
    add("--seeds", default="0", help='seeds of the runs, e.g. "0 1 2" (default: 0)')
    add("--runs", default="runs/mini", metavar="DIR", help="holds TASK/RUN (default: runs/mini)")
    add("--data", default="", help="name of the data if not the scale's own, for a note")
    add("--prepared", metavar="DIR", help="its row counts limited the runs, as costs.py grid says")


TABLES = {
    "table1": ("annotation price of each data set", build_table1, None),
    "table2": ("annotation against distillation at equal dollars", build_table2, add_score_flags),
    "table5": ("rows of each data set", build_table5, add_table5_flags),
    "table6": ("dollars of 1K labels and of a distillation", build_table6, None),
    "table8": ("hyperparameters of each task", build_table8, None),
}

COMMANDS = {**TABLES, **FIGURES}


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    shared, data = argparse.ArgumentParser(add_help=False), "(default: data/%s)"
    add = shared.add_argument
    add("--task", default="all", metavar="NAME", help="a task of --tasks (default: all)")
    add("--output", metavar="DIR", help="also write .md, .csv and .tex here (default: only print)")
    path = costs.DATA / "tasks.json"
    add("--tasks", default=path, metavar="FILE", help="task entries " + data % path.name)
    path = costs.DATA / "prices.csv"
    add("--prices", default=path, metavar="FILE", help="price list " + data % path.name)
    commands = parser.add_subparsers(dest="command", metavar="TABLE|FIGURE", required=True)
    for name, (summary, _, add_flags) in COMMANDS.items():
        command = commands.add_parser(name, parents=[shared], help=summary, description=summary)
        if name in FIGURES:
            add_score_flags(command)
        if add_flags:
            add_flags(command)
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    _, build, _ = COMMANDS[args.command]
    built = build(args)  # a figure is written by its builder, which returns None
    for table in [built] if isinstance(built, Table) else built or ():
        render(table, args.output)


if __name__ == "__main__":
    costs.run_cli(main)
