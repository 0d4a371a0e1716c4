"""Tables of scores: the paper's layouts from finished runs, and their cells one by one.

Reads:  what data/plots/results.py reads
Paper:  Tables 2, 3, 4, 9, 10 and 11, sections 3.1 and 5
"""

import itertools

from data.costs.grid import LLM_EXAMPLES
from data.costs.ledger import Ledger
from data.costs.prices import load_prices, name_llm, show_dollars, show_price
from data.costs.runs import ENCODERS
from data.plots.notes import STRATEGIES, TEXTS, note_halves, note_table, note_tests, tell
from data.plots.paired import compare_scores, find_gap
from data.plots.results import Score, Study, read_tasks
from data.plots.tables import Table, join, show_count, show_gap

PRINTED_METRICS = {"micro F1": "micro_f1", "macro F1": "macro_f1", "EM": "em"}
FEW_ROWS = 200  # below it a point of score is a row or two

# --- Tables 2 and 11: Ann. against Dist. at each N and budget -------------------------------


def name_budget(cell):
    return f"+{show_dollars(cell.budget_usd)}"


def show_tested(ann, dist, tested):
    """Dist. - Ann. in a cell, at the seeds that both have: ns where chance alone may make it, n=
    where few rows are scored."""
    cell, gap = ann.cell, show_gap(find_gap(ann, dist))
    if gap is None:
        return None
    found = tested.get((cell.labels, name_budget(cell)))
    gap += " untested" * bool(tested) if found is None else " ns" * (not found.decided)
    return gap + (f" (n={ann.count_rows()})" if ann.count_rows() < FEW_ROWS else "")


def show_once(texts, runs, cells):
    """Each text, or where its runs are those of a cell before, as nothing more could be bought,
    that cell's budget."""
    seen, shown = {}, []
    for text, each, cell in zip(texts, runs, cells, strict=True):
        first = seen.setdefault(each, cell)
        shown.append(text if first == cell or not each else f"as {name_budget(first)}")
    return shown


def show_part(count, planned, show="{:,}".format):
    """A count, "of" how many were planned where there are not so many."""
    return show(count) + (f" of {show(planned)}" if planned and planned > count else "")


def lay_group(study, pairs, tested):
    """Lines of Table 2 for one task and N: {label: one entry a budget}; pairs: Scores of Ann. and
    Dist. at each."""
    ann, dist = arms = list(zip(*pairs, strict=True))
    cells = [score.cell for score in ann]
    teacher = study.score(next((c for c in cells if c.runs["teacher"]), cells[0]), "teacher")
    runs = [[score.runs for score in arm] for arm in arms]
    lines = {
        "Ann.": show_once([score.show() for score in ann], runs[0], cells),
        "  labels bought": ["+" + show_part(s.count_bought(), s.cell.extra_labels) for s in ann],
        f"Dist. from [{teacher.show()}]": show_once([s.show() for s in dist], runs[1], cells),
        f"  {study.terms.gpu}-h / rows distilled": [
            c.unlabeled and f"{c.gpu_hours}h / {show_part(c.unlabeled, c.wanted, show_count)}"
            for c in cells
        ],
        "Dist. - Ann.": show_once(
            [show_tested(*pair, tested) for pair in pairs],
            [(a, d) if d else () for a, d in zip(*runs, strict=True)],
            cells,
        ),
    }
    if any(cell.llm_labels for cell in cells):
        lines |= lay_llm(study, cells)
    if any(score.has_released() for score in ann + dist):
        lines["Ann., released"] = [score.show("released") for score in ann]
        label = f"Dist. [{teacher.show_mean('released') or '–'}], released"
        lines[label] = [score.show("released") for score in dist]
    constants = [score.show_mean("constant") for score in ann + dist]  # each the same or None
    lines["Constant predictor"] = [next(filter(None, constants), None), *[""] * (len(cells) - 1)]
    invalid = [[score.show_mean("invalid_rate") for score in pair] for pair in pairs]
    if any(map(any, invalid)):
        shown = [" / ".join(rate or "–" for rate in rates) for rates in invalid]
        lines["Invalid %: Ann. / Dist."] = shown
    printed = [[score.find_printed() for score in arm] for arm in arms]
    if any(printed[0]):
        lines[f"paper: Ann., N={show_count(cells[0].labels * study.unit)}"] = printed[0]
        label = f"paper: Dist. from [{teacher.find_printed()}]"
        lines[label] = [score or "N/A" for score in printed[1]]
        lines["paper: Dist. - Ann."] = [show_gap(d, a) for a, d in zip(*printed, strict=True)]
    return lines


def lay_llm(study, cells):
    """Lines of Table 2 on an LLM's labels beside N of people, by both rules."""
    scores = [study.score(cell, "llm") for cell in cells]
    name = f"Human + {study.name_annotator()}"
    bought = [c.llm_labels and f"+{c.llm_labels:,} / {count_today(study, c):,}" for c in cells]
    lines = show_both(scores)
    shown = {name: lines["strict"], "  labels bought / today": bought}
    return shown | ({f"{name}, released": lines["released"]} if "released" in lines else {})


def count_today(study, cell):
    """LLM labels that a cell's budget buys at today's prices, None where it buys none."""
    counts = study.count_llm_labels(cell)
    return next((count for name, count in counts.items() if name.endswith("today")), None)


def lay_budgets(studies):
    """Rows of each N, a column a budget."""
    rows, heads, tests = [], [], []
    for study in studies:
        both = [[study.score(cell, kind) for kind in ("small", "dist")] for cell in study.cells]
        cells = [(cell.labels, name_budget(cell)) for cell in study.cells]
        tested = compare_scores(dict(zip(cells, both, strict=True)))
        heads.append(list(dict.fromkeys(map(name_budget, study.cells))))
        rows += [[study.title, "Additional $", *heads[-1]]] * (len(studies) > 1)
        for n in dict.fromkeys(cell.labels for cell in study.cells):
            pairs = [pair for pair in both if pair[0].cell.labels == n]
            head = f"{n:,} ({show_dollars(pairs[0][0].initial_usd())})"
            rows += join([head], lay_group(study, pairs, tested))
            own = {usd: found for (labels, usd), found in tested.items() if labels == n}
            tests.append((f"{study.title}, N={n:,}", own))
    if len(studies) > 1:
        width = max(map(len, heads))
        rows = [row + [""] * (width + 2 - len(row)) for row in rows]
        heads = [["+$0", *(f"budget {i}" for i in range(1, width))]]
    notes = note_budgets(studies, str(rows), note_tests(tests))
    return ["N (initial $)", "Strategy", *heads[0]], rows, notes, 2


def note_budgets(studies, shown, tested):
    """The notes of Tables 2 and 11, or None, that hang on what is `shown` in them."""
    rates = {f"{s.terms.gpu} at {show_price(s.terms.usd_per_gpu_hour)}": None for s in studies}
    paid = " or ".join(dict.fromkeys(study.name_paid() for study in studies))
    llm = any(cell.llm_labels for study in studies for cell in study.cells)
    return [
        *tested,
        *(note for study in studies for note in note_halves(study)),
        tell("bought", rates=", ".join(rates)),
        (" of " in shown or "as +" in shown) and TEXTS["capped"],
        "(n=" in shown and tell("few_rows", most=FEW_ROWS),
        TEXTS["constant"],
        llm and tell("llm", paid=paid, today=name_llm("today"), examples=LLM_EXAMPLES),
        TEXTS["limits"],
    ]


# --- the other layouts ---------------------------------------------------------------------


def show_both(scores):
    """{"strict": ..., "released": ..., "paper": ...}: one entry a Score; None for runs that a cell
    is not about."""

    def show(key=None):
        return [s.show(key) if s.strategy in s.cell.runs else None for s in scores]

    lines = {"strict": show()}
    if any(score.has_released() for score in scores):
        lines["released"] = show("released")
    printed = [score.find_printed() for score in scores]
    return {**lines, "paper": printed} if any(printed) else lines


def lay_table3(studies):
    rows, tests = [], []
    for study in studies:
        (cell,) = study.cells
        kinds = ("small", "self", "teacher", "dist")
        _, own, _, dist = scores = [study.score(cell, kind) for kind in kinds]
        tested = compare_scores({f"{cell.unlabeled:,} rows": (own, dist)})
        tests.append((f"{study.title}, N={cell.labels:,}", tested))
        gaps = {"strict": show_gap(find_gap(own, dist))}
        gaps["paper"] = show_gap(dist.find_printed(), own.find_printed())
        lines = {key: [*line, gaps.get(key)] for key, line in show_both(scores).items()}
        rows += join([study.title, f"{cell.labels:,}", show_count(cell.unlabeled)], lines)
    columns = ["Task", "N", "Unlabeled", "By", "Ann.", "Self-Dist. from it", "Teacher"]
    notes = [*note_tests(tests, "Self-Dist."), TEXTS["table3"]]
    return [*columns, "Dist. from it", "Difference"], rows, notes, 4


def lay_table4(studies):
    rows, tests = [], []
    for study in studies:
        first, *others = study.cells
        dist, anns = study.score(first, "dist"), [study.score(cell, "small") for cell in others]
        theirs = {row["strategy"]: row for row in study.printed}
        never = theirs.get("small", {}).get("text") == "N/A"
        lines = show_both([dist, *anns[-2:]])
        if never:
            lines["paper"][1] = "N/A"
        ours = [first.distill_usd, *(score.planned_usd() for score in anns[-2:])]
        kinds = ("dist", "small", "small-full")
        printed = [theirs.get(kind, {}).get("budget_usd") for kind in kinds]
        anns.sort(key=Score.planned_usd)  # of one's own the budgets may stand in any order
        anns = {show_dollars(score.planned_usd()): score for score in anns}
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
        printed = [r for r in study.printed if r["strategy"] == "teacher"]
        for row in printed or [{"metric": "score", "score": None}]:  # of a task of one's own
            key, theirs = PRINTED_METRICS.get(row["metric"]), existing.get(row["metric"], {})
            released = f"{key}_released" if key else "released"
            released = score.show(key if key and not score.values(released) else released)
            constant = score.show_mean("constant") if key in (None, "micro_f1") else None
            ours = [row["metric"], theirs.get("note", ""), score.show(key), released, constant]
            rows.append([*head, *ours, row["score"], theirs.get("score")])
            head = ["", ""]
    columns = ["Task", "Labels", "Metric", "Published by", "Teacher", "Released", "Constant"]
    notes = [TEXTS["table9"]] * any(study.printed for study in studies)
    return [*columns, "Paper: T5-XXL", "Published"], rows, notes, 4


def lay_table10(studies):
    cells = [cell for study in studies for cell in study.cells]
    kinds = {"small": "Ann.", **{kind: f"{name} (Ann.)" for kind, name in ENCODERS.items()}}
    kinds |= {"dist": "Dist."}
    if any("encoder" in cell.runs for cell in cells):
        runs = (run for cell in cells for run in cell.runs.get("encoder") or ())
        names = dict.fromkeys(ENCODERS[run.student] for run in runs)
        kinds["encoder"] = f"{' / '.join(names) or 'Encoder'} (Dist.)"
    rows, tests = [], []
    for study in studies:
        sides = {}
        for cell in study.cells:
            scores = {kind: study.score(cell, kind) for kind in kinds}
            total = show_dollars(cell.initial_usd + cell.budget_usd)
            rows += join([study.title, f"{cell.labels:,}", total], show_both(scores.values()))
            for kind in (k for k in kinds if k in cell.runs and k not in ("small", "dist")):
                sides[f"N={cell.labels:,}, {kinds[kind]}"] = scores["dist"], scores[kind]
        tests.append((study.title, compare_scores(sides)))
    notes = [*note_tests(tests, "Dist.", "Encoder"), TEXTS["table10"]]
    if "encoder" in kinds:
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

# --- the same, cell by cell ----------------------------------------------------------------

ALSO = {"macro_f1": "macro F1", "em": "EM", "copy_rate": "copies %"}


def list_details(study, books):
    """The cells of a task as {column: text}: each group of runs once, a teacher first; books: the
    Ledgers of the paper's prices and of today's."""
    counts = list(dict.fromkeys(cell.labels for cell in study.cells))
    scores = [study.score(cell, strategy) for cell in study.cells for strategy in STRATEGIES]
    scores.sort(key=lambda s: (counts.index(s.cell.labels), s.strategy != "teacher"))
    rows, shown = [], set()
    for score in scores:
        unaffordable = score.strategy == "dist" in score.cell.runs and score.cell.budget_usd
        if score.runs not in shown and (score.runs or unaffordable):
            rows.append(show_detail(score, books))
            shown |= {score.runs} - {()}
    return rows


def show_detail(score, books):
    """One group of runs."""
    study, cell, strategy = score.study, score.cell, score.strategy
    run, seconds = score.runs[0] if score.runs else None, score.seconds()
    learns = strategy in ("dist", "self", "encoder")
    also = [(k, name) for k, name in ALSO.items() if score.values(k) and k != study.metric]
    asked = {}
    if study.llm:
        today = strategy == "llm" and count_today(study, cell)
        asked["LLM labels"] = f"{cell.llm_labels:,}" if today else None
        asked["At today's price"] = f"{today:,}" if today else None
    return {
        "Task": study.title,
        "N": f"{cell.labels:,}",
        "Budget": name_budget(cell)
        if cell.budget_usd is not None and strategy != "teacher"
        else "",
        "Strategy": STRATEGIES[strategy],
        "Labels": f"{run.labels + run.llm_labels:,}" if run else None,
        "Unlabeled": f"{run.unlabeled if learns else 0:,}" if run else None,
        "Seeds": f"{len(score.found)}/{len(score.runs)}",
        "Score": score.show().removesuffix(" ↓"),
        "By seed": " ".join(f"{v:.2f}" for v in score.values()) if len(score.there) > 1 else "",
        "Released": score.show("released"),
        "Also": next((f"{name} {score.show(key)}" for key, name in also), ""),
        "Invalid %": score.show_mean("invalid_rate"),
        "Constant": score.show_mean("constant"),
        "Paper": score.find_printed(),
        "Planned $": show_dollars(score.planned_usd()),
        "GPU $ paper": show_dollars(score.price(books[0])),
        "GPU $ today": show_dollars(score.price(books[1])),
        "Seconds": None if seconds is None else f"{seconds:,.0f}",
        **asked,
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
    main = Table(args.command, title, columns, rows, note_table(args, studies, own), left)
    priced = dict.fromkeys(f"Prices, {note}" for book in books for note in book.notes)
    name, title = f"{args.command}-cells", "The same, cell by cell"
    columns, rows = list(details[0]), [list(row.values()) for row in details]
    notes = [*TEXTS["cells"], *priced]
    return main, Table(name, title, columns, rows, notes, left=4, compact=True)
