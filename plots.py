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
from data.plots import pipeline, printed
from data.plots.figures import FIGURES
from data.plots.notes import LIMITS, STRATEGIES, keep, note_table
from data.plots.paired import compare, pair_scores
from data.plots.results import Study, read_tasks
from data.plots.tables import Table, render, show_count, show_dollars

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


def compare_cells(study):
    """{(N, budget): the Difference of Dist. - Ann.}, tested together over the task's cells; empty
    where the runs were scored before rows were kept."""
    pairs = {}
    for cell in study.cells:
        pair = pair_scores(study.score(cell, "small"), study.score(cell, "dist"))
        pairs |= {(cell.labels, cell.budget_usd): pair} if pair else {}
    return dict(zip(pairs, compare(list(pairs.values())), strict=True)) if pairs else {}


def show_tested(cell, scores, tested):
    """Dist. - Ann. in a cell: ns where chance alone may make it, n= where few rows are scored."""
    found, gap = tested.get((cell.labels, cell.budget_usd)), show_gap(*(s.mean() for s in scores))
    rows = scores[0].count_rows()
    if gap is None or rows is None:
        return gap
    gap += " ns" * (found is not None and found.winner is None)
    return gap + (f" (n={rows})" if rows < FEW_ROWS else "")


FEW_ROWS = 200  # below it a point of score is a row or two


def show_once(scores, heads):
    """Each score, or where its runs are those of a cell before, as nothing more could be bought,
    that cell's budget."""
    seen, shown = {}, []
    for score, head in zip(scores, heads, strict=True):
        first = seen.setdefault(score.runs, head)
        shown.append(score.show() if first == head or not score.runs else f"as {first}")
    return shown


def show_part(count, planned, show="{:,}".format):
    """A count, "of" how many were planned where there are not so many."""
    return show(count) + (f" of {show(planned)}" if planned and planned > count else "")


def lay_group(study, cells, tested):
    """Lines of Table 2 for one task and N: {label: one entry a budget}."""
    teacher = study.score(next((c for c in cells if c.runs["teacher"]), cells[0]), "teacher")
    heads = [f"+{show_dollars(cell.budget_usd)}" for cell in cells]
    ann, dist = ([study.score(cell, kind) for cell in cells] for kind in ("small", "dist"))
    both = list(zip(cells, ann, dist, strict=True))
    lines = {
        "Ann.": show_once(ann, heads),
        "  labels bought": ["+" + show_part(s.count_bought(), c.extra_labels) for c, s, _ in both],
        f"Dist. from [{teacher.show()}]": show_once(dist, heads),
        "  A40-hours / rows distilled": [
            f"{c.gpu_hours}h / {show_part(c.unlabeled, c.wanted, show_count)}"
            if c.unlabeled
            else None
            for c in cells
        ],
        "Dist. - Ann.": [show_tested(c, (d, a), tested) for c, a, d in both],
    }
    if any(cell.llm_labels for cell in cells):
        lines |= lay_llm(study, cells)
    if any(score.has_released() for score in ann + dist):
        lines["Ann., released"] = [score.show("released") for score in ann]
        label = f"Dist. [{teacher.show('released')}], released"
        lines[label] = [score.show("released") for score in dist]
    lines["Constant predictor"] = [show_constant(ann + dist), *[""] * (len(cells) - 1)]
    invalid = [[score.show_mean("invalid_rate") for score in pair] for _, *pair in both]
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
    name = f"Human + {study.name_annotator()}"
    lines = {
        name: [score.show() if score.runs else None for score in scores],
        "  labels bought / today": [
            f"+{cell.llm_labels:,} / {count_today(study, cell):,}" if cell.llm_labels else None
            for cell in cells
        ],
    }
    if any(score.has_released() for score in scores):
        shown = [score.show("released") if score.runs else None for score in scores]
        lines[f"{name}, released"] = shown
    return lines


def count_today(study, cell):
    """LLM labels that a cell's budget buys at today's prices, None where it buys none."""
    counts = study.count_llm_labels(cell)
    return next((count for name, count in counts.items() if name.endswith("today")), None)


def tell_tests(study, tested):
    """A sentence an N: what the paired test says at each budget."""
    for n in dict.fromkeys(labels for labels, _ in tested):
        told = []
        for (labels, budget), found in tested.items():
            word = f"{found.winner} better" if found.winner else "no difference (ns)"
            interval = f"{found.mean:+.1f} [{found.low:.1f}, {found.high:.1f}]"
            told += [f"+{show_dollars(budget)}: {word}, {interval}"] if labels == n else []
        seeds = sorted({found.seeds for (labels, _), found in tested.items() if labels == n})
        count = "one seed" if seeds == [1] else "/".join(map(str, seeds)) + " seeds"
        yield f"{study.title}, N={n:,}, Dist. - Ann. over {count}: {'; '.join(told)}."


def lay_budgets(studies):
    """Tables 2 and 11: rows of each N, a column a budget."""
    rows, heads, same, sentences, seeds = [], [], len(studies) == 1, [], set()
    for study in studies:
        counts, tested = dict.fromkeys(cell.labels for cell in study.cells), compare_cells(study)
        groups = [[cell for cell in study.cells if cell.labels == n] for n in counts]
        heads.append([f"+{show_dollars(cell.budget_usd)}" for cell in groups[0]])
        rows += [] if same else [[study.title, "Additional $", *heads[-1]]]
        for cells in groups:
            head = f"{cells[0].labels:,} ({show_dollars(cells[0].initial_usd)})"
            rows += join([head], lay_group(study, cells, tested))
        sentences += tell_tests(study, tested)
        seeds |= {found.seeds for found in tested.values()}
    width = max(map(len, heads))
    if not same:
        rows = [row + [""] * (width + 2 - len(row)) for row in rows]
        heads = [["+$0", *(f"budget {i}" for i in range(1, width))]]
    shown, llm = str(rows), any(c.llm_labels for study in studies for c in study.cells)
    notes = keep(
        [
            *((True, sentence) for sentence in sentences),
            (
                sentences,
                "Test: paired by seed and row; 95% interval of each cell, p by Holm's rule over "
                "the task's cells; ns: a tie, chance alone may make it. "
                + ("Of one seed: rows are drawn anew, training is not." if seeds == {1} else "")
                + (
                    "Seeds' variance is pooled over the cells." if max(seeds, default=0) > 1 else ""
                ),
            ),
            (not sentences, "No paired test: runs without row_scores.json; evaluate.py writes it."),
            (
                True,
                "Labels bought: on top of N. A40-hours: what the dollars buy at the paper's "
                "$1.875; rows: what they distil after the teacher is paid; N/A: they don't cover "
                "it. [Its teacher's]. Training on labels, about $1 in the paper (footnote 1), is "
                "left out.",
            ),
            (
                " of " in shown or "as +" in shown,
                "x of y: the dollars buy y, only x exist; as +$: the same runs as there, as no "
                "more can be bought.",
            ),
            ("(n=" in shown, f"(n=): so few test rows, under {FEW_ROWS}, that each counts."),
            (
                True,
                "Constant predictor: the best that always gives the same output. Invalid: outputs "
                "that can't be read.",
            ),
            (
                llm,
                "Human + an annotator that isn't one: the dollars buy its labels at "
                f"text-davinci-003's price in the paper; today: as many of {name_llm('today')}, "
                "not in batches; the scores are of the former, the latter may be more than the "
                f"unlabeled rows. The labeled rows in its prompts, {LLM_EXAMPLES}, are not in the "
                "dollars where N is smaller.",
            ),
            (True, LIMITS),
        ]
    )
    return ["N (initial $)", "Strategy", *heads[0]], rows, notes, 2


def show_both(study, groups, printed):
    """{"strict": ..., "released": ..., "paper": ...}: one entry a group of runs."""
    scores = [study.score(cell, strategy) for cell, strategy in groups]
    lines = {"strict": [score.show() for score in scores]}
    if any(score.has_released() for score in scores):
        lines["released"] = [score.show("released") for score in scores]
    return {**lines, "paper": printed} if any(printed) else lines


def lay_table3(studies):
    rows = []
    for study in studies:
        (cell,) = study.cells
        kinds = ("small", "self", "teacher", "dist")
        printed = [study.find_printed(cell, kind) for kind in kinds]
        lines = show_both(study, [(cell, kind) for kind in kinds], printed)
        gaps = {"strict": [study.score(cell, kind).mean() for kind in kinds], "paper": printed}
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
        theirs = {row["strategy"]: row for row in study.printed}
        never = theirs.get("small", {}).get("text") == "N/A"
        shown = [study.find_printed(*group) for group in groups]
        lines = show_both(study, groups, [shown[0], "N/A" if never else shown[1], shown[2]])
        usd = [first.distill_usd, bought[-1].annotate_usd, whole.annotate_usd]
        for key, line in lines.items():
            dollars, caught = usd, None
            if key == "paper":
                kinds = ("dist", "small", "small-full")
                dollars = [theirs.get(kind, {}).get("budget_usd") for kind in kinds]
                caught = "never" if never else show_dollars(dollars[1])
            else:
                caught = find_crossing(study, key)
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
        LIMITS,
    ]
    return [*columns, "Ann. catches up"], rows, notes, 3


def find_crossing(study, rule):
    """Between which dollars Ann. reaches the score of Dist. by a rule."""
    first, *cells = study.cells
    goal, below = study.score(first, "dist").mean(rule), ""
    points = [(cell.annotate_usd, study.score(cell, "small").mean(rule)) for cell in cells]
    if goal is None or None in [score for _, score in points]:
        return "missing"
    for usd, score in points:
        if score >= goal:
            return below + show_dollars(usd)
        below = f"{show_dollars(usd)} to "
    return "never"


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
            released = f"{key}_released" if key != "score" else "released"
            released = score.show(released if score.values(released) else key)
            theirs = existing.get(row["metric"], {})
            constant = score.show_mean("constant") if key in ("score", "micro_f1") else None
            rows.append([*head, row["metric"], theirs.get("note", ""), score.show(key), released])
            rows[-1] += [constant, row["score"], theirs.get("score")]
            head = ["", ""]
        if not study.printed:  # a task of one's own
            rows.append([*head, "score", "", score.show(), score.show("released")])
            rows[-1] += [score.show_mean("constant"), None, None]
    columns = ["Task", "Labels", "Metric", "Published by", "Teacher", "Released", "Constant"]
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


# --- cell by cell --------------------------------------------------------------------------

CELL_COLUMNS = (
    "Task,N,Budget,Strategy,Labels,Unlabeled,Seeds,Score,By seed,Released,Also,Invalid %,"
    "Constant,Paper,Planned $,GPU $ paper,GPU $ today,Seconds"
).split(",")
LLM_COLUMNS = ["LLM labels", "At today's price"]  # where --llm asks for them
CELL_NOTES = (
    "Seeds: finished of planned. Score: by the strict rule; Paper: printed in the paper. Invalid: "
    "outputs that can't be read. Constant: the best predictor that always gives the same output.",
    "Planned $: spent beyond N labels by the plan, at the paper's rates and prices. GPU $ and "
    "seconds: measured, loading and saving included; a run that learns from another one has that "
    "one's training and its share of the pass over the unlabeled rows in it. Hours on a CPU have "
    "no price; `python costs.py report --gpu NAME` counts them as a GPU's.",
)
ALSO = {"macro_f1": "macro F1", "em": "EM", "copy_rate": "copies %"}


def list_details(study):
    """The cells of a task as rows of CELL_COLUMNS: each group of runs once, a teacher first."""
    counts = list(dict.fromkeys(cell.labels for cell in study.cells))
    groups = [(cell, strategy) for cell in study.cells for strategy in STRATEGIES]
    groups.sort(key=lambda group: (counts.index(group[0].labels), group[1] != "teacher"))
    rows, shown = [], set()
    for cell, strategy in groups:
        names = tuple(run.name for run in cell.runs.get(strategy) or ())
        unaffordable = strategy == "dist" and "dist" in cell.runs and cell.budget_usd
        if names not in shown and (names or unaffordable):
            rows.append(show_detail(study, cell, strategy))
            shown |= {names} if names else set()
    return rows


def show_detail(study, cell, strategy):
    """One group of runs as a row of CELL_COLUMNS."""
    score, learns = study.score(cell, strategy), strategy in ("dist", "self")
    run, seconds = score.runs[0] if score.runs else None, score.seconds()
    budget = None if strategy == "teacher" else cell.budget_usd
    also = [(k, name) for k, name in ALSO.items() if score.values(k) and k != study.metric]
    today = [None, None]
    if strategy == "llm" and cell.llm_labels:
        today = [f"{cell.llm_labels:,}", f"{count_today(study, cell):,}"]
    return [
        *(study.title, f"{cell.labels:,}"),
        "" if budget is None else f"+{show_dollars(budget)}",
        STRATEGIES[strategy],
        f"{run.labels + run.llm_labels:,}" if run else None,
        f"{run.unlabeled:,}" if run and learns else "0" if run else None,
        f"{len(score.found)}/{len(score.runs)}",
        score.show().removesuffix(" ↓"),
        " ".join(f"{value:.2f}" for value in score.values()) if len(score.there) > 1 else "",
        score.show("released"),
        next((f"{name} {score.show(key)}" for key, name in also), ""),
        score.show_mean("invalid_rate"),
        score.show_mean("constant"),
        study.find_printed(cell, strategy),
        show_dollars(score.planned_usd()),
        show_dollars(score.price("paper")),
        show_dollars(score.price("today")),
        None if seconds is None else f"{seconds:,.0f}",
        *(today if study.llm else ()),
    ]


# --- the tables ----------------------------------------------------------------------------

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
    notes = note_table(args, studies, own)
    main = Table(args.command, title, columns, rows, notes, left)
    priced = dict.fromkeys(f"Prices, {note}" for book in books.values() for note in book.notes)
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
COMMANDS = {**printed.TABLES, **TABLES, **FIGURES, **pipeline.COMMANDS}


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    shared = argparse.ArgumentParser(add_help=False)
    add = shared.add_argument
    add("--task", default="all", metavar="NAMES", help="one task or several (default: all)")
    add("--output", metavar="DIR", help="also write files here (default: only print)")
    text = "folder of real data, if the runs are on it; its task.json tells a task of one's own"
    add("--data", default="", metavar="DIR", help=f"{text} (default: none)")
    path = DATA / "prices.csv"
    text = "price list (default: data/prices.csv)"
    add("--prices", default=path, metavar="FILE", help=text)
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
    if built:
        render([built] if isinstance(built, Table) else built, args.output)


if __name__ == "__main__":
    run_cli(main)
