"""Tables and figures of the paper beside the paper's own values.

Usage:
    python plots.py table2 --task wlp --seeds "0 1 2"          scores of the runs in runs/mini
    python plots.py table11 --task all --scale paper --runs runs/paper --output out
    python plots.py table6 --task wlp --output out/  one row; also out/table6.md, .csv and .tex
    python plots.py fig2 --task wlp --output out/    out/fig2.png, .pdf and .csv

Reads:  metrics.json (and training.json) of runs; data/tasks.json, data/scales.json,
        data/prices.csv, data/paper/scores.csv, data/paper/tables.csv
Writes: stdout (Markdown); with --output also NAME.md, NAME.csv and NAME.tex in that folder, and
        for a table of scores NAME-cells, which lists its cells one by one
Copy:   plots.py data/plots/ data/paper/ and what costs.py names; standard library only for tables
Paper:  Tables 1 to 11, Figures 2 to 7
"""

import argparse
import itertools

from data.costs.grid import LLM_EXAMPLES
from data.costs.ledger import Ledger
from data.costs.prices import load_prices, name_llm
from data.files import DATA, run_cli
from data.plots import printed
from data.plots.figures import FIGURES
from data.plots.scores import CELL_COLUMNS, CELL_NOTES, LLM_COLUMNS, Study, list_details, make_notes
from data.plots.tables import Table, read_tasks, render, show_count, show_dollars

# --- the layouts ---------------------------------------------------------------------------


def show_gap(one, other):
    """The difference of two means; None where one is missing."""
    return f"{one - other:+.1f}" if None not in (one, other) else None


def join(head, lines):
    """Rows of {label: cells}; `head` stands before the first of them only."""
    blank = [""] * len(head)
    pairs = enumerate(lines.items())
    return [[*(blank if i else head), label, *line] for i, (label, line) in pairs]


def show_constant(scores):
    """The best score of a predictor that always gives the same output; None without a run."""
    return next(filter(None, (score.show_mean("constant") for score in scores)), None)


def lay_group(study, cells):
    """Lines of Table 2 for one task and N: {label: one entry a budget}."""
    teacher = study.score(next((c for c in cells if c.runs["teacher"]), cells[0]), "teacher")
    scores = [(c, study.score(c, "small"), study.score(c, "dist")) for c in cells]
    lines = {
        "Ann.": [ann.show() for _, ann, _ in scores],
        "  labels bought": [f"+{c.extra_labels:,}" for c in cells],
        f"Dist. from [{teacher.show()}]": [dist.show() for *_, dist in scores],
        "  A40-hours / rows distilled": [
            f"{c.gpu_hours}h / {show_count(c.unlabeled)}" if c.unlabeled else None for c in cells
        ],
        "Dist. - Ann.": [show_gap(dist.mean(), ann.mean()) for _, ann, dist in scores],
    }
    if any(cell.llm_labels for cell in cells):
        lines |= lay_llm(study, cells)
    if any(score.released_key() for _, *both in scores for score in both):
        lines["Ann., paper's rule"] = [ann.show_released() for _, ann, _ in scores]
        label = f"Dist. [{teacher.show_released()}], paper's rule"
        lines[label] = [dist.show_released() for *_, dist in scores]
    lines["Constant predictor"] = [show_constant([a, d]) for _, a, d in scores[:1]]
    lines["Constant predictor"] += [""] * (len(cells) - 1)
    invalid = [[score.show_mean("invalid_rate") for score in both] for _, *both in scores]
    if any(map(any, invalid)):
        shown = [" / ".join(rate or "–" for rate in rates) for rates in invalid]
        lines["Invalid %: Ann. / Dist."] = shown
    printed = [[study.find_printed(c, kind) for c in cells] for kind in ("small", "dist")]
    if any(printed[0]):
        lines[f"paper: Ann., N={show_count(cells[0].labels * study.unit)}"] = printed[0]
        theirs = study.find_printed(cells[0], "teacher")
        lines[f"paper: Dist. from [{theirs}]"] = [score or "N/A" for score in printed[1]]
        lines["paper: Dist. - Ann."] = [show_gap(d, a) for a, d in zip(*printed, strict=True)]
    return lines


def lay_llm(study, cells):
    """Lines of Table 2 on an LLM's labels beside N of people, by both rules."""
    scores = [study.score(cell, "llm") for cell in cells]
    counts = [study.count_llm_labels(cell) for cell in cells]
    name = f"Human + {study.name_annotator()}"
    lines = {
        name: [score.show() if score.runs else None for score in scores],
        "  labels bought / today": [f"+{n} / {today}" if n else None for n, today in counts],
    }
    if any(score.released_key() for score in scores):
        shown = [score.show_released() if score.runs else None for score in scores]
        lines[f"{name}, paper's rule"] = shown
    return lines


def lay_budgets(studies):
    """Tables 2 and 11: rows of each N, a column a budget."""
    rows, heads, same = [], [], len(studies) == 1
    for study in studies:
        counts = dict.fromkeys(cell.labels for cell in study.cells)
        groups = [[cell for cell in study.cells if cell.labels == n] for n in counts]
        heads.append([f"+{show_dollars(cell.budget_usd)}" for cell in groups[0]])
        rows += [] if same else [[study.title, "Additional $", *heads[-1]]]
        for cells in groups:
            head = f"{cells[0].labels:,} ({show_dollars(cells[0].initial_usd)})"
            rows += join([head], lay_group(study, cells))
    width = max(map(len, heads))
    if not same:
        rows = [row + [""] * (width + 2 - len(row)) for row in rows]
        heads = [["+$0", *(f"budget {i}" for i in range(1, width))]]
    notes = [
        "Labels bought: on top of N. A40-hours: what the dollars buy at the paper's $1.875; rows: "
        "what they distil after the teacher is paid; N/A: they don't cover it. [Its teacher's].",
        "Constant predictor: the best that always gives the same output. Invalid: outputs that "
        "can't be read.",
    ]
    if any(cell.llm_labels for study in studies for cell in study.cells):
        notes.append(
            "Human + an annotator that isn't one: the dollars buy its labels at text-davinci-003's "
            f"price in the paper; today: as many of {name_llm('today')}, not in batches; the "
            "scores are of the former, the latter may be more than the unlabeled rows. The labeled "
            f"rows in its prompts, {LLM_EXAMPLES}, are not in the dollars where N is smaller."
        )
    return ["N (initial $)", "Strategy", *heads[0]], rows, notes, 2


def show_both(study, groups, printed):
    """{"score": ..., "paper's rule": ..., "paper": ...}: one entry a group of runs."""
    scores = [study.score(cell, strategy) for cell, strategy in groups]
    lines = {"score": [score.show() for score in scores]}
    if any(score.released_key() for score in scores):
        lines["paper's rule"] = [score.show_released() for score in scores]
    return {**lines, "paper": printed} if any(printed) else lines


def lay_table3(studies):
    rows = []
    for study in studies:
        (cell,) = study.cells
        kinds = ("small", "self", "teacher", "dist")
        printed = [study.find_printed(cell, kind) for kind in kinds]
        lines = show_both(study, [(cell, kind) for kind in kinds], printed)
        gaps = {"score": [study.score(cell, kind).mean() for kind in kinds], "paper": printed}
        for key, line in lines.items():
            line.append(show_gap(gaps[key][3], gaps[key][1]) if key in gaps else None)
        head = [study.title, f"{cell.labels:,}", show_count(cell.unlabeled)]
        rows += join(head, lines)
    columns = ["Task", "N", "Unlabeled", "By", "Ann.", "Self-Dist. from it", "Teacher"]
    notes = [
        "Ann., the compact model on N labels, teaches its like in Self-Dist.; the large Teacher on "
        "the same labels teaches it in Dist.; both on the same unlabeled rows. Difference: Dist. - "
        "Self-Dist."
    ]
    return [*columns, "Dist. from it", "Difference"], rows, notes, 4


def lay_table4(studies):
    rows = []
    for study in studies:
        first, *bought, whole = study.cells
        groups = [(first, "dist"), (bought[-1], "small"), (whole, "small")]
        lines = show_both(study, groups, [study.find_printed(*group) for group in groups])
        usd = [first.distill_usd, bought[-1].annotate_usd, whole.annotate_usd]
        for key, line in lines.items():
            theirs = key == "paper"
            dollars = read_dollars(study) if theirs else usd
            caught = show_dollars(dollars[1]) if theirs else find_crossing(study, key == "score")
            pairs = zip(line, map(show_dollars, dollars), strict=True)
            lines[key] = [*itertools.chain(*pairs), caught]
        rows += join([study.title, f"{first.labels:,}"], lines)
    columns = ["Task", "N", "By", "Dist.", "Dist. $", "Ann.", "Ann. $", "All labels", "All $"]
    notes = [
        "$: beyond N labels. Dist.: of the unlabeled rows of Table 3. Ann.: at the budget at which "
        "it caught up in the paper, or if it never did, at Table 2's last one. All labels: Ann. "
        "with every label there is, its upper bound.",
        "Catches up: between which budgets Ann. first reaches Dist., of Table 2's, the paper's and "
        "all labels; never: not with all labels.",
    ]
    return [*columns, "Ann. catches up"], rows, notes, 3


def find_crossing(study, strict):
    """Between which dollars Ann. reaches the score of Dist., by either rule."""
    first, *cells = study.cells

    def mean(cell, strategy):
        score = study.score(cell, strategy)
        return score.mean("score" if strict else score.released_key() or "score")

    goal, below = mean(first, "dist"), ""
    points = [(cell.annotate_usd, mean(cell, "small")) for cell in cells]
    if goal is None or None in [score for _, score in points]:
        return "missing"
    for usd, score in points:
        if score >= goal:
            return below + show_dollars(usd)
        below = f"{show_dollars(usd)} to "
    return "never"


def read_dollars(study):
    """Table 4's dollars of Dist., Ann. and Ann. with all labels; None where none are printed."""
    kinds = {row["strategy"]: row["budget_usd"] for row in study.printed}
    return [kinds.get(kind) for kind in ("dist", "small", "small-full")]


PRINTED_METRICS = {"micro F1": "micro_f1", "macro F1": "macro_f1", "EM": "em"}


def lay_table9(studies):
    rows = []
    for study in studies:
        (cell,) = study.cells
        score = study.score(cell, "teacher")
        existing = {r["metric"]: r for r in study.printed if r["strategy"] == "existing"}
        head = [study.title, f"{cell.labels:,}"]
        for row in (r for r in study.printed if r["strategy"] == "teacher"):
            key = PRINTED_METRICS.get(row["metric"], "score")
            paper = f"{key}_released" if key != "score" else score.released_key()
            paper = score.show(paper) if paper and score.values(paper) else score.show(key)
            theirs = existing.get(row["metric"], {})
            constant = score.show_mean("constant") if key in ("score", "micro_f1") else None
            rows.append([*head, row["metric"], theirs.get("note", ""), score.show(key), paper])
            rows[-1] += [constant, row["score"], theirs.get("score")]
            head = ["", ""]
        if not study.printed:  # a task of one's own
            rows.append([*head, "score", "", score.show(), score.show_released()])
            rows[-1] += [score.show_mean("constant"), None, None]
    columns = ["Task", "Labels", "Metric", "Published by", "Teacher", "Paper's rule", "Constant"]
    notes = ["T5-XXL and Published: printed in the paper, on real data, not to compare directly."]
    notes *= any(study.printed for study in studies)
    return [*columns, "Paper: T5-XXL", "Published"], rows, notes, 4


def lay_table10(studies):
    kinds = ("small", "distilbert", "bert", "dist")
    rows = []
    for study in studies:
        for cell in study.cells:
            printed = [study.find_printed(cell, kind) for kind in kinds]
            lines = show_both(study, [(cell, kind) for kind in kinds], printed)
            for key, line in lines.items():
                if key != "paper":
                    absent = [kind not in cell.runs for kind in kinds]
                    lines[key] = [
                        None if gone else text for gone, text in zip(absent, line, strict=True)
                    ]
            total = show_dollars(cell.initial_usd + cell.budget_usd)
            rows += join([study.title, f"{cell.labels:,}", total], lines)
    heads = ["Ann.", "DistilBERT (Ann.)", "BERT (Ann.)", "Dist."]
    notes = [
        "Total $: N labels and the additional budget, which buys labels for the first three and "
        "distillation for the last. DistilBERT and BERT come pre-trained, and free, as T5 does."
    ]
    return ["Task", "N", "Total $", "By", *heads], rows, notes, 4


SCORES = {  # table -> (its line of help, its title, its layout)
    "table2": (
        "annotation against distillation at equal dollars",
        "Annotation (Ann.) against distillation (Dist.) at equal dollars",
        lay_budgets,
    ),
    "table3": (
        "self-distillation against distillation",
        "Self-distillation against distillation on equal unlabeled rows",
        lay_table3,
    ),
    "table4": (
        "budgets at which annotation catches up with distillation",
        "Larger budgets: where annotation (Ann.) catches up with distillation (Dist.)",
        lay_table4,
    ),
    "table9": (
        "the teacher on all labels beside published scores",
        "The teacher on all labels, beside published scores",
        lay_table9,
    ),
    "table10": (
        "encoder classifiers against annotation and distillation",
        "General distillation: DistilBERT and BERT against Ann. and Dist. at equal dollars",
        lay_table10,
    ),
    "table11": (
        "annotation against distillation from few labels",
        "Annotation (Ann.) against distillation (Dist.) from few labels",
        lay_budgets,
    ),
}


def build_scores(args):
    """The asked table of scores in the paper's layout, and its cells one by one."""
    prices, tasks = load_prices(args.prices), read_tasks(args)
    known = {task.name: task for task in tasks}
    books = {which: Ledger(prices, known, which) for which in ("paper", "today")}
    studies = [Study(args, task, books) for task in tasks]
    _, title, lay = SCORES[args.command]
    columns, rows, own, left = lay(studies)
    details = [row for study in studies for row in list_details(study)]
    title = f"Table {studies[0].number}. {title}"
    title += f", {studies[0].title}" if len(studies) == 1 else ""
    notes = make_notes(args, studies, own)
    main = Table(args.command, title, columns, rows, notes, left)
    priced = [*(f"Prices, {note}" for book in books.values() for note in book.notes)]
    name, text = f"{args.command}-cells", "The same, cell by cell"
    heads = CELL_COLUMNS + (LLM_COLUMNS if args.llm else [])
    return main, Table(name, text, heads, details, (*CELL_NOTES, *priced), left=4, compact=True)


def add_score_flags(parser):
    add = parser.add_argument
    add("--scale", default="mini", help="mini or paper (default: mini)")
    add("--seeds", default="0", help='seeds of the runs, e.g. "0 1 2" (default: 0)')
    add("--runs", default="runs/mini", metavar="DIR", help="holds TASK/RUN (default: runs/mini)")
    add("--llm", action="store_true", help="also runs on labels by an LLM (default: no)")
    add("--prepared", metavar="DIR", help="its row counts limited the runs, as costs.py grid says")


# --- command line --------------------------------------------------------------------------

TABLES = {name: (text, build_scores, add_score_flags) for name, (text, *_) in SCORES.items()}
COMMANDS = {**printed.TABLES, **TABLES, **FIGURES}


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    shared, data = argparse.ArgumentParser(add_help=False), "(default: data/%s)"
    add = shared.add_argument
    add("--task", default="all", metavar="NAMES", help="one task or several (default: all)")
    add("--output", metavar="DIR", help="also write files here (default: only print)")
    add(
        "--data",
        default="",
        metavar="DIR",
        help="folder of real data, if the runs are on it; its "
        "task.json tells a task of one's own (default: none)",
    )
    path = DATA / "prices.csv"
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
    run_cli(main)
