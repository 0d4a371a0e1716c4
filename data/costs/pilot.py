"""A pilot: the few runs that tell how a task's curves go, scored on dev; without one, a prior.

Reads:  RUNS/NAME/dev/metrics.json; for the prior data/paper/scores.csv
Paper:  the prior is its Tables 2, 3, 4, 9 and 11
"""

import math
from pathlib import Path
from typing import NamedTuple

from data.costs.curves import Posterior, Run
from data.costs.prices import load_prices, price_label
from data.costs.runs import parse_run
from data.costs.stale import METRICS
from data.files import DATA, UserError, need, read_csv, read_json
from data.tasks import PAPER_TASKS, load_task

# Of the released test sets; where these are not public, the lowest score that the paper prints.
PAPER_CONSTANTS = dict(zip(PAPER_TASKS, (9.2, 45.5, 50.3, 53.1, 45.0, 1.8), strict=True))


class Pilot(NamedTuple):
    """Scored runs of one task; scores and their standard error by the rows are from 0 to 1.

    Without a run all that is known is what `like` it there is: names of the paper's tasks.
    """

    runs: list
    constant: float  # None without a run
    error: float
    metric: str
    rows: int  # of dev that they were scored on
    llm: tuple = None  # (an LLM's own score, rows it was scored on)
    annotator: str = None  # whose score that is, as its run names it
    like: tuple = ()


def read_pilot(folder, task):
    """The Pilot of all runs in `folder` that have a dev score; without one, the prior's."""
    runs, errors, first, llm, annotator = [], [], None, None, None
    for path in sorted(Path(folder).glob("*/dev/metrics.json")) if folder else ():
        run = parse_run(path.parents[1].name)
        if run.strategy not in ("small", "teacher", "dist", "prompted") or not run.usual:
            continue
        found = read_score(path, task.name)
        if run.strategy == "prompted":  # each of its answers is paid, so it has fewer rows
            llm = found["score"] / 100, found["n"]
            annotator = next((p.parent.name for p in path.parent.glob("*/annotation.json")), None)
            continue
        rows = found["n"], (found.get("provenance") or {}).get("data_sha256")
        first = first or (found["metric"], *rows, path)
        if (found["metric"], *rows) != first[:3]:
            raise UserError(f"{path}: another metric or scored on other rows than {first[3]}")
        ends = need(found, f"intervals {found['metric']}", list, path)
        errors.append((max(ends) - min(ends)) / 3.92 / 100)  # a 95% interval
        runs.append(Run(run.strategy, run.labels, run.unlabeled, found["score"] / 100))
    if not runs:
        like = PAPER_TASKS if task.own else (task.name,)
        return Pilot([], None, 0.0, "score", 0, llm, annotator, like)
    constant = found["constant"]["score"] / 100
    error = sum(errors) / len(errors)
    # Runs share their rows, so half of the variance by rows is a run's own; of many rows the noise
    # of seeds covers it.
    own = math.sqrt(max(0, error**2 / 2 - 0.01**2))
    runs = [run._replace(error=own) for run in runs]
    return Pilot(runs, constant, error, *first[:2], llm, annotator)


def read_score(path, task):
    """A metrics.json whose scores are percentages of `task`; a UserError names what is not."""
    found = read_json(path, METRICS, "task metric n score")
    if found["task"] != task:
        raise UserError(f"{path}: scores of task {found['task']!r}, not of {task!r}")
    score, constant = found["score"], need(found, "constant score", float, path)
    for value in (score, constant):
        if not 0 <= value <= 100:
            raise UserError(f"{path}: score {value!r}: a number from 0 to 100 is needed")
    if 0 < score <= 1 < constant:
        beside = f"score {score} beside a constant predictor of {constant:.1f}"
        raise UserError(f"{path}: {beside}: percent expected")
    return found


def make_posterior(pilot, unit=1):
    """The curves that explain a Pilot; `unit` divides the paper's counts where those stand in."""
    like = [read_paper_runs(task, unit) for task in pilot.like]
    return Posterior(pilot.runs, pilot.constant, pilot.llm, pilot.error, like)


# --- the paper's scores --------------------------------------------------------------------

COUNTS = ("table", "labels", "budget_usd", "extra_labels", "gpu_hours", "unlabeled")


def load_scores(path=DATA / "paper" / "scores.csv"):
    """The scores that the paper prints in Tables 2, 3, 4, 9, 10 and 11: one dict per cell.

    Keys: table, task, strategy (small, teacher, dist, self, distilbert, bert; small-full: on all
    labels; existing: of other papers), labels (N), budget_usd (additional dollars; in Table 4
    all that is printed), extra_labels, gpu_hours, unlabeled, metric, score, note. Counts are
    ints and scores floats; None where nothing or N/A, as `text` then says, is printed.
    """
    rows = read_csv(path, (*COUNTS, "task", "strategy", "metric", "score", "note"))
    for line, row in rows.items():
        try:
            row.update({key: int(row[key]) if row[key] else None for key in COUNTS})
            row["text"] = row["score"]
            row["score"] = float(row["score"]) if row["score"] not in ("", "N/A") else None
        except ValueError:
            raise UserError(f"{path} line {line}: not a number where one is due") from None
    return list(rows.values())


def read_paper_runs(name, unit=1):
    """(the Runs of one of the paper's tasks in its Tables 2, 3, 4, 9 and 11, each count once and
    divided by `unit`; its constant predictor, 0 to 1)."""
    task = load_task(name)
    label, found = price_label(load_prices(), name, task), {}
    for row in load_scores():
        table, arm = row["table"], row["strategy"].removesuffix("-full")
        skip = row["task"] != name or row["score"] is None or table == 10
        skip |= arm not in ("small", "teacher", "dist") or (table, arm) == (3, "small")
        skip |= table == 9 and (arm != "teacher" or row["metric"] in ("macro F1", "EM"))
        if not skip:
            extra = row["extra_labels"] or 0
            if table == 4 and arm == "small":  # what the budget buys
                extra = round(row["budget_usd"] / float(label))
            labels = min(row["labels"] + extra, task.rows["train"])
            found.setdefault((arm, labels, row["unlabeled"] or 0), row["score"] / 100)
    runs = [Run(arm, n // unit, rows // unit, score) for (arm, n, rows), score in found.items()]
    return runs, PAPER_CONSTANTS[name] / 100
