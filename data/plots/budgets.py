"""Tables 2 and 11: Ann. against Dist. at each N and budget, with a paired test of the difference.

Reads:  nothing; it is handed the Studies of data/plots/results.py
Paper:  sections 3.1 and 5, Tables 2 and 11
"""

from data.costs.grid import LLM_EXAMPLES
from data.costs.prices import name_llm, show_dollars, show_price
from data.plots.notes import TEXTS, keep, note_halves, note_tests, tell
from data.plots.paired import compare_scores, find_gap
from data.plots.tables import join, show_count, show_gap

FEW_ROWS = 200  # below it a point of score is a row or two


def compare_cells(study):
    """{(N, budget): the Difference of Dist. - Ann.}, tested together over the task's cells."""
    sides = {
        (cell.labels, cell.budget_usd): (study.score(cell, "small"), study.score(cell, "dist"))
        for cell in study.cells
    }
    return compare_scores(sides)


def show_tested(cell, ann, dist, tested):
    """Dist. - Ann. in a cell, at the seeds that both have: ns where chance alone may make it, n=
    where few rows are scored."""
    found, gap = tested.get((cell.labels, cell.budget_usd)), show_gap(find_gap(ann, dist))
    if gap is None:
        return None
    gap += " ns" * (found is not None and not found.decided)
    gap += " untested" * (found is None and bool(tested))
    rows = ann.count_rows()
    return gap + (f" (n={rows})" if rows < FEW_ROWS else "")


def show_once(texts, runs, heads):
    """Each text, or where its runs are those of a cell before, as nothing more could be bought,
    that cell's budget."""
    seen, shown = {}, []
    for text, each, head in zip(texts, runs, heads, strict=True):
        first = seen.setdefault(each, head)
        shown.append(text if first == head or not each else f"as {first}")
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
    runs = [[score.runs for score in scores] for scores in (ann, dist)]
    runs.append([(a, d) if d else () for a, d in zip(*runs, strict=True)])
    gaps = [show_tested(*each, tested) for each in both]
    rows = [c.unlabeled and show_part(c.unlabeled, c.wanted, show_count) for c in cells]
    lines = {
        "Ann.": show_once([s.show() for s in ann], runs[0], heads),
        "  labels bought": ["+" + show_part(s.count_bought(), c.extra_labels) for c, s, _ in both],
        f"Dist. from [{teacher.show()}]": show_once([s.show() for s in dist], runs[1], heads),
        f"  {study.terms.gpu}-h / rows distilled": [
            some and f"{c.gpu_hours}h / {some}" for c, some in zip(cells, rows, strict=True)
        ],
        "Dist. - Ann.": show_once(gaps, runs[2], heads),
    }
    if any(cell.llm_labels for cell in cells):
        lines |= lay_llm(study, cells)
    if any(score.has_released() for score in ann + dist):
        lines["Ann., released"] = [score.show("released") for score in ann]
        label = f"Dist. [{teacher.show_mean('released') or '–'}], released"
        lines[label] = [score.show("released") for score in dist]
    constants = [score.show_mean("constant") for score in ann + dist]  # each the same or None
    lines["Constant predictor"] = [next(filter(None, constants), None), *[""] * (len(cells) - 1)]
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
    bought = [c.llm_labels and f"+{c.llm_labels:,} / {count_today(study, c):,}" for c in cells]
    lines = {name: [score.show() if score.runs else None for score in scores]}
    lines["  labels bought / today"] = bought
    if any(score.has_released() for score in scores):
        shown = [score.show("released") if score.runs else None for score in scores]
        lines[f"{name}, released"] = shown
    return lines


def count_today(study, cell):
    """LLM labels that a cell's budget buys at today's prices, None where it buys none."""
    counts = study.count_llm_labels(cell)
    return next((count for name, count in counts.items() if name.endswith("today")), None)


def group_tests(study, tested):
    """(task and N, {budget: its Difference}) for each N."""
    for n in dict.fromkeys(labels for labels, _ in tested):
        own = {f"+{show_dollars(usd)}": found for (m, usd), found in tested.items() if m == n}
        yield f"{study.title}, N={n:,}", own


def lay_budgets(studies):
    """Tables 2 and 11: rows of each N, a column a budget."""
    rows, heads, same, tests = [], [], len(studies) == 1, []
    for study in studies:
        counts, tested = dict.fromkeys(cell.labels for cell in study.cells), compare_cells(study)
        groups = [[cell for cell in study.cells if cell.labels == n] for n in counts]
        heads.append([f"+{show_dollars(cell.budget_usd)}" for cell in groups[0]])
        rows += [] if same else [[study.title, "Additional $", *heads[-1]]]
        for cells in groups:
            head = f"{cells[0].labels:,} ({show_dollars(cells[0].initial_usd)})"
            rows += join([head], lay_group(study, cells, tested))
        tests += group_tests(study, tested)
    width = max(map(len, heads))
    if not same:
        rows = [row + [""] * (width + 2 - len(row)) for row in rows]
        heads = [["+$0", *(f"budget {i}" for i in range(1, width))]]
    llm = any(c.llm_labels for study in studies for c in study.cells)
    notes = note_budgets(studies, str(rows), note_tests(tests), llm)
    return ["N (initial $)", "Strategy", *heads[0]], rows, notes, 2


def note_budgets(studies, shown, tested, llm):
    """The notes of Tables 2 and 11 that hang on what is `shown` in them."""
    rates = {f"{s.terms.gpu} at {show_price(s.terms.usd_per_gpu_hour)}": None for s in studies}
    paid = " or ".join(dict.fromkeys(study.name_paid() for study in studies))
    return keep(
        [
            *tested,
            *(note for study in studies for note in note_halves(study)),
            tell("bought", rates=", ".join(rates)),
            (" of " in shown or "as +" in shown) and TEXTS["capped"],
            "(n=" in shown and tell("few_rows", most=FEW_ROWS),
            TEXTS["constant"],
            llm and tell("llm", paid=paid, today=name_llm("today"), examples=LLM_EXAMPLES),
            TEXTS["limits"],
        ]
    )
