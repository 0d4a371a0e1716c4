"""Tables of the paper that need no training: prices, sizes, costs, examples, hyperparameters.

Reads:  data/tasks.json, data/scales.json, data/prices.csv, data/paper/tables.csv; for Table 7, and
        for Table 5 if asked, the splits of data/prepare.py
Paper:  Tables 1, 5, 6, 7 and 8
"""

import math
import re
from decimal import Decimal
from pathlib import Path

from data.costs.budget import count_teacher_hours, make_terms, plan, price_distilling
from data.costs.flags import make_flags
from data.costs.memory import complete_task
from data.costs.pilot import load_scores
from data.costs.prices import load_prices, show_dollars, show_price, show_usd
from data.files import DATA, read_csv, read_jsonl
from data.plots.notes import TEXTS, tell
from data.plots.results import read_tasks
from data.plots.tables import Table, join
from data.tasks import PAPER_USD_PER_GPU_HOUR, load_task

APPENDIX_A = {  # task -> (how the paper comes to the price of a label, that in dollars)
    "wlp": ("$0.44 a sentence x 59.76%, the entities' share of its labels", 0.44 * 0.5976),
    "stanceosaurus": ("$15 an hour / 82 tweets x 2 annotators", 15 / 82 * 2),
    "fever": ("$129 per 1,000 units of 50 words", 0.129),
    "multipit_id": ("the price of a pair in the data's own paper", 0.2),
    "multipit_gen": ("$0.2 a pair x 100 / 53.9, the share of paraphrases", 0.2 * 100 / 53.9),
    "nq": ("$129 per 1,000 units of 50 words", 0.129),
}


def load_printed(table):
    """{(task, item): the text that the paper prints} of Table 1, 5, 6 or 8."""
    path = DATA / "paper" / "tables.csv"
    rows = read_csv(path, ("table", "task", "item", "printed")).values()
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


def read_table4(strategy, name):
    """(N, dollars) that Table 4 prints for a strategy; (0, None) where it prints no dollars."""
    wanted = {"table": 4, "task": name, "strategy": strategy}.items()
    cell = next((cell for cell in load_scores() if wanted <= cell.items()), {})
    return (cell["labels"], cell["budget_usd"]) if cell.get("budget_usd") else (0, None)


def lay_table1(args):
    printed, notes, rows = load_printed(1), Notes(), []
    prices = load_prices(args.prices)
    totals = {name: text for (name, item), text in printed.items() if item == "total_usd"}
    for task in read_tasks(args):
        name, price = task.name, make_terms(task, prices).usd_per_label
        train, theirs, mark, each = task.rows.get("train"), totals.get(name), "", float(price)
        total = None if train is None else f"${round(train * price):,}"
        if theirs and total != theirs:
            text = f"{train:,} labels at ${each:.3f} are {total}; the paper prints {theirs}"
            same = [t for t, value in totals.items() if value == theirs and t != name]
            also = ", the total of " + load_task(same[0]).title if same else ""
            mark = notes.mark(text + also)
        if name in APPENDIX_A:
            text, usd = APPENDIX_A[name]
            takes = "" if abs(usd - each) < 0.0005 else f"; the paper takes ${each:.3f}"
            mark += notes.mark(f"{text} = ${usd:.4f}{takes}")
        n, usd = read_table4("small-full", name)
        if usd and abs((train - n) * price - usd) > 1:
            mark += notes.mark(
                f"Table 4's upper bound, ${usd:,}, pays {math.floor(usd / price):,} labels; the "
                f"{train - n:,} there are beyond N = {n:,} cost ${round((train - n) * price):,}"
            )
        count = None if train is None else f"{train:,}"
        rows.append([task.title, task.kind, count, f"${each:.3f}", total, theirs, mark])
    columns = ["Dataset", "Task", "#Train", "$/Label", "Total $", "Paper", "Note"]
    return columns, rows, [*notes, TEXTS["table1"]]


def read_planned(args):
    """The Tasks of --task, with planned hours where one of one's own states none, as Table 2 has
    them."""
    homes = Path(args.prepared or "")
    tasks = read_tasks(args)
    return [complete_task(each, "paper", homes / each.name / "train.jsonl") for each in tasks]


def find_most_unlabeled(task, terms, labels, budgets):
    """The most unlabeled rows that N and budgets ask for, uncapped; of the paper's tasks in whole
    thousands, as Table 2 prints them."""
    plans = [plan(terms, n, usd)["distill"] for n in labels for usd in budgets]
    most = max((bought["unlabeled"] for bought in plans if bought), default=0)
    return most if task.own else most // 1000 * 1000


def lay_table5(args):
    printed, notes, rows, short = load_printed(5), Notes(), [], []
    tasks, prices = read_planned(args), load_prices(args.prices)
    for task in tasks:
        name, terms = task.name, make_terms(task, prices)
        most = find_most_unlabeled(task, terms, task.labels_n, task.budgets)
        few_shot = find_most_unlabeled(task, terms, [task.few_shot_n], task.few_shot_budgets)
        if few_shot > most:
            short.append(f"{task.title} {few_shot:,}")
        for split in ("train", "dev", "test", "unlabeled"):
            theirs = printed.get((name, split))
            count = most if split == "unlabeled" else task.rows.get(split)
            released, mark = task.released_rows.get(split), ""
            if released not in (None, count):
                mark = notes.mark(f"the released file has {released:,} rows, the paper {theirs}")
            elif read_number(theirs) not in (None, count):
                mark = notes.mark(f"{count:,} here; the paper prints {theirs}")
            path, counts = Path(args.prepared or "", name, f"{split}.jsonl"), [count, released]
            if args.prepared:
                counts.append(len(read_jsonl(path, ("source",))) if path.exists() else None)
            count, *others = (None if n is None else f"{n:,}" for n in counts)
            rows.append([task.title, split, count, theirs, *others, mark])
    notes += [TEXTS["table5"], *(text for task in tasks for text in task.estimates)]
    if short:
        notes.append(tell("table5_short", tasks=", ".join(short)))
    counted = ["Prepared"] * bool(args.prepared)
    columns = ["Dataset", "Split", "tasks.json", "Paper", "Released file", *counted, "Note"]
    return columns, rows, notes


def count_fitted(tasks, printed):
    """How many of the paper's tasks' GPU rates Table 6 does not print."""
    rates = [
        (hours * PAPER_USD_PER_GPU_HOUR * rows, read_number(printed.get((task.name, item))) or 0)
        for task in tasks
        for item, table, rows in (
            ("teacher_usd", task.teacher_hours, 1),
            ("distill_100k_usd", task.distill_hours, 100_000),
        )
        for hours in table.values()
        if not task.own
    ]
    return sum(abs(ours - theirs) > 0.05 for ours, theirs in rates)


def compare_table6(terms, ours, theirs, hours):
    """Notes on where the paper prints other dollars than `ours`, in Table 6 or in Table 4."""
    for item, usd in ours.items():
        if abs(usd - (read_number(theirs[item]) or usd)) >= 0.05:
            counts = f"the unlabeled counts of Table 2 follow from {hours:g} h of teacher"
            what = f"{counts}, {show_usd(usd)}" if item == "teacher_usd" else item
            yield f"{what}; the paper prints {theirs[item]} here"
    at, whole = read_table4("dist", terms.task)
    if whole and abs((usd := price_distilling(terms, at, 100_000)) - whole) > 1:
        parts = f"at N = {at:,} teacher and 100K examples come to {show_usd(usd)}"
        yield f"{parts}; Table 4 prints ${whole:,}"


def lay_table6(args):
    printed, notes, rows, n = load_printed(6), Notes(), [], 5000
    tasks, teachers, prices = read_planned(args), [], load_prices(args.prices)
    for task in tasks:
        terms = make_terms(task, prices)
        teacher, hours = price_distilling(terms, n, 0), float(count_teacher_hours(terms, n))
        ours = {
            "initial_usd": n * terms.usd_per_label,
            "annotate_1k_usd": 1000 * terms.usd_per_label,
            "teacher_usd": teacher,
            "distill_100k_usd": price_distilling(terms, n, 100_000) - teacher,
        }
        theirs = {item: printed.get((task.name, item)) for item in ours}
        mark = "".join(map(notes.mark, compare_table6(terms, ours, theirs, hours)))
        lines = {"ours": [*map(show_dollars, ours.values()), mark]}
        if task.own:
            price = f"{terms.gpu} at {show_price(terms.usd_per_gpu_hour)} an hour"
            notes += [f"Teacher of {task.title}: {hours:.4g} hours of {price}.", *task.estimates]
        else:
            lines["paper"] = [*theirs.values(), ""]
            teachers.append(f"{task.title} {hours:.4g}")
        rows += join([task.title], lines)
    if teachers:
        notes.append(tell("table6", hours=", ".join(teachers)))
    if fitted := count_fitted(tasks, printed):
        notes.append(tell("table6_fitted", count=fitted))
    columns = ["Dataset", "By", "Initial $", "Ann. +1K", "Teacher", "Dist. 100K", "Note"]
    return columns, rows, notes


def lay_table7(args):
    rows, missing = [], []
    for task in read_tasks(args):
        path = Path(args.prepared, task.name, "train.jsonl")
        labeled = read_jsonl(path) if path.exists() else []
        row = next((row for row in labeled if row["target"]), None)
        if row is None:
            missing.append(task.title)
        parts = {"Source": row and task.prefix + row["source"], "Target": row and row["target"]}
        if task.metric == "classes":
            parts["Target is one of"] = ", ".join(task.labels)
        rows += join([task.title, task.kind], {part: [text] for part, text in parts.items()})
    notes = [f"The first labeled row of {args.prepared}; the source as a model reads it, prefixed."]
    if missing:
        notes.append(f"Not prepared, `make data` does it: {', '.join(missing)}")
    return ["Dataset", "Task", "Part", "Text"], rows, notes


def lay_table8(args):
    printed, notes, tasks, rows = load_printed(8), [], read_tasks(args), []
    kinds = ("small", "dist", "teacher")
    flags = {task.name: [make_flags(task, "paper", kind) for kind in kinds] for task in tasks}
    for item in ("max_source_length", "max_target_length", "batch_size", "epochs", "learning_rate"):
        head, ours, theirs = item.replace("_", " ").capitalize(), [], []
        for task in tasks:
            found = [each[item.replace("_", "-")] for each in flags[task.name]]
            if item == "learning_rate":  # 3e-5, as the paper prints it
                found = [f"{Decimal(str(rate)).normalize():e}" for rate in found]
            small, dist, teacher = map(str, found)
            ours.append(small if small == teacher else f"{small} ({teacher})")
            theirs.append(printed.get((task.name, item)))
            if dist != small:
                notes.append(f"{head}, {task.title}: {dist} when distilling")
            if theirs[-1] not in (None, ours[-1]):
                text = f"{head}, {task.title}: {ours[-1]} here, {theirs[-1]} in the paper"
                notes.append(text)
        rows += join([head], {"ours": ours, "paper": theirs})
    columns = ["Hyperparameter", "From", *(task.title for task in tasks)]
    return columns, rows, [*notes, TEXTS["table8"]]


PRINTED = {  # table -> (its title, its layout)
    "table1": ("What it costs to annotate each training set", lay_table1),
    "table5": ("Rows of each data set", lay_table5),
    "table6": ("What 1K labels or a distillation cost, from N = 5K labels", lay_table6),
    "table7": ("An example of each task", lay_table7),
    "table8": ("Hyperparameters at scale paper", lay_table8),
}


def build_printed(args):
    """The asked table."""
    title, lay = PRINTED[args.command]
    columns, rows, notes = lay(args)
    title = f"Table {args.command[-1]}. {title}"
    wide = columns[-1] == "Text"
    return Table(args.command, title, columns, rows, notes, 4 if wide else 2, wide)
