"""Tables and figures of the paper beside the paper's own values.

Usage:
    python plots.py table2 --task wlp --seeds "0 1 2"          scores of the runs in runs/mini
    python plots.py table11 --task all --scale paper --runs runs/paper --output out
    python plots.py table6 --task wlp --output out/  one row; also out/table6.md, .csv and .tex
    python plots.py fig2 --task wlp --output out/    out/fig2.png, .pdf, .csv and notes in .md
    python plots.py advice --advice FILE.json        beside it .png and .pdf of make advise
    python plots.py pipeline --output out/           a picture of the method: .png and .svg

Reads:  of runs metrics.json, training.json, row_scores.json and predictions.jsonl; data/tasks.json,
        data/scales.json, data/prices.csv, data/paper/
Writes: with --output NAME.md, NAME.csv and NAME.tex in that folder, and for a table of scores
        NAME-cells, which lists its cells one by one; then stdout (Markdown)
Copy:   plots.py data/plots/ data/paper/ and what costs.py names; standard library only for tables
Paper:  Tables 1 to 11, Figures 2 to 7
"""

import itertools
from pathlib import Path

from data.costs.ledger import Ledger
from data.costs.prices import load_prices, show_dollars
from data.costs.runs import ENCODERS
from data.files import DATA, make_parser, run_cli
from data.plots import printed
from data.plots.advice import write_advice
from data.plots.budgets import lay_budgets
from data.plots.cells import CELL_COLUMNS, LLM_COLUMNS, list_details
from data.plots.figures import MAKERS, write_figure
from data.plots.notes import TEXTS, note_table, note_tests, tell
from data.plots.paired import compare_scores, find_gap
from data.plots.pipeline import write_pipeline
from data.plots.results import Score, Study, read_tasks
from data.plots.tables import Table, join, render, show_count, show_gap

PRINTED_METRICS = {"micro F1": "micro_f1", "macro F1": "macro_f1", "EM": "em"}

# --- the layouts ---------------------------------------------------------------------------


def show_both(study, groups, printed):
    """{"strict": ..., "released": ..., "paper": ...}: one entry a group of runs."""
    scores = [study.score(cell, strategy) for cell, strategy in groups]
    lines = {"strict": [score.show() for score in scores]}
    if any(score.has_released() for score in scores):
        lines["released"] = [score.show("released") for score in scores]
    return {**lines, "paper": printed} if any(printed) else lines


def lay_table3(studies):
    rows, kinds, tests = [], ("small", "self", "teacher", "dist"), []
    for study in studies:
        (cell,) = study.cells
        printed = [study.find_printed(cell, kind) for kind in kinds]
        lines = show_both(study, [(cell, kind) for kind in kinds], printed)
        arms = study.score(cell, "self"), study.score(cell, "dist")
        tested = compare_scores({f"{cell.unlabeled:,} rows": arms})
        tests.append((f"{study.title}, N={cell.labels:,}", tested))
        gaps = {"strict": show_gap(find_gap(*arms)), "paper": show_gap(printed[3], printed[1])}
        for key, line in lines.items():
            line.append(gaps.get(key))
        head = [study.title, f"{cell.labels:,}", show_count(cell.unlabeled)]
        rows += join(head, lines)
    columns = ["Task", "N", "Unlabeled", "By", "Ann.", "Self-Dist. from it", "Teacher"]
    notes = [*note_tests(tests, "Self-Dist."), TEXTS["table3"]]
    return [*columns, "Dist. from it", "Difference"], rows, notes, 4


def lay_table4(studies):
    rows, tests = [], []
    for study in studies:
        first, *bought, whole = study.cells
        groups = [(first, "dist"), (bought[-1], "small"), (whole, "small")]
        theirs = {row["strategy"]: row for row in study.printed}
        never = theirs.get("small", {}).get("text") == "N/A"
        shown = [study.find_printed(*group) for group in groups]
        lines = show_both(study, groups, [shown[0], "N/A" if never else shown[1], shown[2]])
        scores = [study.score(cell, "small") for cell in (*bought, whole)]
        ours = [first.distill_usd, *(score.planned_usd() for score in scores[-2:])]
        kinds = ("dist", "small", "small-full")
        printed = [theirs.get(kind, {}).get("budget_usd") for kind in kinds]
        scores.sort(key=Score.planned_usd)  # of one's own the budgets may stand in any order
        anns = {show_dollars(score.planned_usd()): score for score in scores}
        dist = study.score(first, "dist")
        tested = compare_scores({f"+{usd}": (ann, dist) for usd, ann in anns.items()})
        tests.append((f"{study.title}, N={first.labels:,}", tested))
        for key, line in lines.items():
            usd = list(map(show_dollars, printed if key == "paper" else ours))
            caught = "never" if never else usd[1]
            if key != "paper":
                caught = find_crossing(anns, dist, key, tested if key == "strict" else {})
            lines[key] = [*itertools.chain(*zip(line, usd, strict=True)), caught]
        rows += join([study.title, f"{first.labels:,}"], lines)
    columns = ["Task", "N", "By", "Dist.", "Dist. $", "Ann.", "Ann. $", "All labels", "All $"]
    notes = [*note_tests(tests), *TEXTS["table4"], TEXTS["limits"]]
    return [*columns, "Ann. catches up"], rows, notes, 3


def find_crossing(anns, dist, rule, tested):
    """Between which dollars the Scores {dollars: Ann.} reach that of Dist. by a rule; ns where the
    test can't tell that the last one before is behind."""
    points = [(usd, ann.mean(rule)) for usd, ann in anns.items()]
    goal = dist.mean(rule)
    if goal is None or None in [score for _, score in points]:
        return "missing"
    below = [usd for usd, _ in itertools.takewhile(lambda point: point[1] < goal, points)]
    reached = "never" if len(below) == len(points) else points[len(below)][0]
    text = f"{below[-1]} to {reached}" if below and reached != "never" else reached
    last = tested.get(f"+{below[-1]}") if below else None
    return text + " ns" * (last is not None and not last.decided)


def lay_table9(studies):
    rows = []
    for study in studies:
        (cell,) = study.cells
        score, head = study.score(cell, "teacher"), [study.title, f"{cell.labels:,}"]
        existing = {r["metric"]: r for r in study.printed if r["strategy"] == "existing"}
        for row in (r for r in study.printed if r["strategy"] == "teacher"):
            key = PRINTED_METRICS.get(row["metric"])
            released = f"{key}_released" if key else "released"
            released = score.show(released if score.values(released) else key)
            theirs = existing.get(row["metric"], {})
            constant = score.show_mean("constant") if key in (None, "micro_f1") else None
            ours = [row["metric"], theirs.get("note", ""), score.show(key), released, constant]
            rows.append([*head, *ours, row["score"], theirs.get("score")])
            head = ["", ""]
        if not study.printed:  # a task of one's own
            ours = [score.show(), score.show("released"), score.show_mean("constant")]
            rows.append([*head, "score", "", *ours, None, None])
    columns = ["Task", "Labels", "Metric", "Published by", "Teacher", "Released", "Constant"]
    notes = [TEXTS["table9"]] * any(study.printed for study in studies)
    return [*columns, "Paper: T5-XXL", "Published"], rows, notes, 4


def compare_encoders(study, kinds):
    """{words: the Difference of an encoder and Dist. at the same dollars} of Table 10."""
    return compare_scores(
        {
            f"N={cell.labels:,}, {name}": (study.score(cell, "dist"), study.score(cell, kind))
            for cell in study.cells
            for kind, name in kinds.items()
            if kind in cell.runs and kind not in ("small", "dist")
        }
    )


def lay_table10(studies):
    cells = [(study, cell) for study in studies for cell in study.cells]
    kinds = {"small": "Ann.", **{kind: f"{name} (Ann.)" for kind, name in ENCODERS.items()}}
    kinds |= {"dist": "Dist."}
    distilled = any("encoder" in cell.runs for _, cell in cells)
    if distilled:
        runs = (run for _, cell in cells for run in cell.runs.get("encoder") or ())
        names = dict.fromkeys(ENCODERS[run.student] for run in runs)
        kinds["encoder"] = f"{' / '.join(names) or 'Encoder'} (Dist.)"
    rows = []
    for study, cell in cells:
        printed = [study.find_printed(cell, kind) for kind in kinds]
        lines = show_both(study, [(cell, kind) for kind in kinds], printed)
        for key in lines.keys() - {"paper"}:
            pairs = zip(kinds, lines[key], strict=True)
            lines[key] = [text if kind in cell.runs else None for kind, text in pairs]
        total = show_dollars(cell.initial_usd + cell.budget_usd)
        rows += join([study.title, f"{cell.labels:,}", total], lines)
    tests = [(study.title, compare_encoders(study, kinds)) for study in studies]
    notes = [*note_tests(tests, "Dist.", "Encoder"), TEXTS["table10"]]
    if distilled:
        notes.append(tell("encoder", name=kinds["encoder"]))
    return ["Task", "N", "Total $", "By", *kinds.values()], rows, notes, 4


SCORES = {  # table -> (its title, its layout)
    "table2": ("Annotation (Ann.) against distillation (Dist.) at equal dollars", lay_budgets),
    "table3": ("Self-distillation against distillation on equal unlabeled rows", lay_table3),
    "table4": ("Larger budgets: where annotation (Ann.) catches up with Dist.", lay_table4),
    "table9": ("The teacher on all labels, beside published scores", lay_table9),
    "table10": ("DistilBERT and BERT against Ann. and Dist. at equal dollars", lay_table10),
    "table11": ("Annotation (Ann.) against distillation (Dist.) from few labels", lay_budgets),
}


def build_scores(args):
    """The asked table of scores in the paper's layout, and its cells one by one."""
    prices, tasks = load_prices(args.prices), read_tasks(args)
    known = {task.name: task for task in tasks}
    books = [Ledger(prices, known, which) for which in ("paper", "today")]
    studies = [Study(args, task, prices) for task in tasks]
    title, lay = SCORES[args.command]
    columns, rows, own, left = lay(studies)
    details = [row for study in studies for row in list_details(study, books)]
    title = f"Table {studies[0].number}. {title}"
    title += f", {studies[0].title}" if len(studies) == 1 else ""
    notes = note_table(args, studies, own)
    main = Table(args.command, title, columns, rows, notes, left)
    priced = dict.fromkeys(f"Prices, {note}" for book in books for note in book.notes)
    name, text = f"{args.command}-cells", "The same, cell by cell"
    heads = CELL_COLUMNS + (LLM_COLUMNS if args.llm else [])
    return main, Table(name, text, heads, details, (*TEXTS["cells"], *priced), left=4, compact=True)


# --- command line --------------------------------------------------------------------------

COMMANDS = {  # name -> (a line of help, what builds Tables, or writes what it builds)
    **printed.TABLES,
    **{name: (text, build_scores) for name, (text, _) in SCORES.items()},
    **{name: (text, write_figure) for name, (_, text) in MAKERS.items()},
    "advice": ("what each budget will score, from make advise", write_advice),
    "pipeline": ("labels, Ann., Dist., LLM, compact model: a picture", write_pipeline),
}


def add_flags(add, name):
    """The flags of one table or figure, by a parser's `add`."""
    add("--task", default="all", metavar="NAMES", help="one task or several (default: all)")
    add("--output", metavar="DIR", help="also write files here (default: only print)")
    text = "folder of real data, if the runs are on it; its task.json tells a task of one's own"
    add("--data", default="", metavar="DIR", help=f"{text} (default: none)")
    price = "price list (default: data/prices.csv)"
    add("--prices", default=DATA / "prices.csv", metavar="FILE", help=price)
    if name in MAKERS or name in SCORES:
        add("--scale", default="mini", help="an entry of data/scales.json (default: mini)")
        add("--seeds", default="0", help='seeds of the runs, e.g. "0 1 2" (default: 0)')
        place = "holds TASK/RUN (default: runs/SCALE, with --data's name)"
        add("--runs", metavar="DIR", help=place)
        add("--llm", action="store_true", help="also runs on labels by an LLM (default: no)")
        add("--prepared", metavar="DIR", help="its row counts limit the runs, as in costs.py grid")
    if name in MAKERS:
        rule = "score by the strict rule or by the released scorer's (default: strict)"
        add("--rule", choices=("strict", "released"), default="strict", help=rule)
    if name in ("table5", "table6", "table7"):
        splits = "data/prepared/mini" if name == "table7" else None
        text = "folder of prepared tasks, e.g. data/prepared/mini (default: %(default)s)"
        add("--prepared", metavar="DIR", default=splits, help=text)
    if name == "advice":
        said = "what `costs.py advise --save` wrote"
        add("--advice", required=True, metavar="FILE", help=said)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", metavar="TABLE|FIGURE", required=True)
    for name, (summary, _) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        add_flags(command.add_argument, name)
    args = parser.parse_args(argv)
    if "runs" in args and args.runs is None:  # counts of another scale are no runs of this one
        args.runs = f"runs/{args.scale}{'-' + Path(args.data).resolve().name if args.data else ''}"
    return args


def main(argv=None):
    args = parse_args(argv)
    built = COMMANDS[args.command][1](args)  # None where it is written already
    if built:
        render([built] if isinstance(built, Table) else built, args.output)


if __name__ == "__main__":
    run_cli(main)
