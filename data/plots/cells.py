"""A table of scores cell by cell: counts, score of each seed, dollars planned and measured.

Reads:  nothing; it is handed the Studies of data/plots/results.py
Paper:  Tables 2, 3, 4, 9, 10 and 11
"""

from data.costs.prices import show_dollars
from data.plots.budgets import count_today
from data.plots.notes import STRATEGIES

CELL_COLUMNS = (
    "Task,N,Budget,Strategy,Labels,Unlabeled,Seeds,Score,By seed,Released,Also,Invalid %,"
    "Constant,Paper,Planned $,GPU $ paper,GPU $ today,Seconds"
).split(",")
LLM_COLUMNS = ["LLM labels", "At today's price"]  # where --llm asks for them
ALSO = {"macro_f1": "macro F1", "em": "EM", "copy_rate": "copies %"}


def list_details(study, books):
    """The cells of a task as rows of CELL_COLUMNS: each group of runs once, a teacher first; books:
    the Ledgers of the paper's prices and of today's."""
    counts = list(dict.fromkeys(cell.labels for cell in study.cells))
    groups = [(cell, strategy) for cell in study.cells for strategy in STRATEGIES]
    groups.sort(key=lambda group: (counts.index(group[0].labels), group[1] != "teacher"))
    rows, shown = [], set()
    for cell, strategy in groups:
        names = tuple(run.name for run in cell.runs.get(strategy) or ())
        unaffordable = strategy == "dist" and "dist" in cell.runs and cell.budget_usd
        if names not in shown and (names or unaffordable):
            rows.append(show_detail(study, cell, strategy, books))
            shown |= {names} if names else set()
    return rows


def show_detail(study, cell, strategy, books):
    """One group of runs as a row of CELL_COLUMNS."""
    score, learns = study.score(cell, strategy), strategy in ("dist", "self", "encoder")
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
        *(show_dollars(score.price(book)) for book in books),
        None if seconds is None else f"{seconds:,.0f}",
        *(today if study.llm else ()),
    ]
