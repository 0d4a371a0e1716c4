"""From a few runs and a price list to advice: which strategy, at which budget, how sure.

Reads:  the dev scores of a pilot's runs, RUNS/NAME/dev/metrics.json
Writes: nothing; standard library only
Paper:  the question of its title and of Tables 2 and 4, for a task that it does not have

The scores come from data/costs/curves.py, what dollars buy from data/costs/budget.py. Budgets are
dollars beside the labels in hand, as in Table 2.
"""

import math
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.costs.budget import count_distill_hours, plan, price_distilling
from data.costs.curves import (
    EFFECTIVE,
    Posterior,
    Run,
    band,
    list_budgets,
    quantile,
    share_above,
)
from data.costs.prices import show_usd
from data.costs.runs import parse_run
from data.files import UserError, read_json

WORDS = (
    (0.8, "Dist."),
    (0.65, "lean Dist."),
    (0.35, "can't tell"),
    (0.2, "lean Ann."),
    (0, "Ann."),
)
ARMS = {"ann": "Ann.", "dist": "Dist.", "llm": "LLM"}
SPLITS = (0, 0.1, 0.2, 0.35, 0.5, 0.7)  # shares of a budget spent on labels before distilling
FAR_LABELS, FAR_ROWS = 10, 30  # times what the pilot saw, from where a score is a guess


class Market(NamedTuple):
    """What dollars buy for one task; `unit` divides the paper's counts and dollars at a scale."""

    terms: NamedTuple
    labels: int  # in hand
    unlabeled: int  # rows there are
    most_labels: int = None  # that exist, None if any number can be had
    unit: int = 1

    def price_teacher(self, labels):
        return price_distilling(self.terms, labels * self.unit, 0) / self.unit

    def price_rows(self, rows):
        hours = rows * count_distill_hours(self.terms, self.labels * self.unit)
        return hours * self.terms.usd_per_gpu_hour

    def buy(self, budget, extra=0):
        """{arm: (labels, rows)} that `budget` dollars buy; of these, `extra` labels come first.

        Dist. is missing where the teacher leaves nothing, LLM where no price of it is known.
        """
        labels, budget = self.labels + extra, Fraction(budget)
        left = budget - extra * self.terms.usd_per_label
        bought = plan(self.terms, labels * self.unit, left * self.unit)
        all_labels = self.labels + math.floor(budget / self.terms.usd_per_label)
        counts = {"ann": (min(all_labels, self.most_labels or all_labels), 0)}
        rows = min(
            bought["distill"]["unlabeled"] // self.unit if bought["distill"] else 0, self.unlabeled
        )
        if rows > 0:
            counts["dist"] = (labels, rows)
        if bought["llm"]:
            usd = bought["llm"]["usd_per_label"]
            counts["llm"] = (labels, min(math.floor(left / usd), self.unlabeled))
        return counts


class Pilot(NamedTuple):
    """Scored runs of one task; scores and their standard error by the rows are from 0 to 1."""

    runs: list
    constant: float
    error: float
    metric: str
    rows: int  # of dev that they were scored on


def read_pilot(folder, task):
    """The Pilot of all runs in `folder` that have a dev score."""
    runs, errors, seen = [], [], {}
    for path in sorted(Path(folder).glob("*/dev/metrics.json")):
        run, found = parse_run(path.parents[1].name), read_json(path)
        if not run or run.strategy not in ("small", "teacher", "dist") or run.student != "small":
            continue
        if found["task"] != task:
            raise UserError(f"{path}: scores of task {found['task']!r}, not of {task!r}")
        score, constant = check_score(found, path), found["constant"]["score"]
        seen.setdefault((found["metric"], found["n"]), path)
        if len(seen) > 1:
            raise UserError(
                f"{path}: another metric or other rows than {next(iter(seen.values()))}"
            )
        low, high = found["intervals"][found["metric"]]
        errors.append((high - low) / 3.92 / 100)  # a 95% interval
        runs.append(Run(run.strategy, run.labels, run.unlabeled, score / 100))
    if not runs:
        raise UserError(f"{folder}: no finished pilot run; make pilot TASK={task}, or --runs DIR")
    return Pilot(runs, constant / 100, sum(errors) / len(errors), *next(iter(seen)))


def check_score(found, path):
    """The score of a metrics.json in percent; a UserError where it can be no percentage."""
    score, constant = found["score"], found["constant"]["score"]
    if not isinstance(score, int | float) or not 0 <= score <= 100:
        raise UserError(f"{path}: score {score!r}: a number from 0 to 100 is needed")
    if 0 < score <= 1 < constant:
        raise UserError(
            f"{path}: score {score} beside a constant predictor of {constant:.1f}: percent expected"
        )
    return score


def explains(posterior):
    """Whether some curve goes through all runs."""
    effective = min(posterior.effective, posterior.effective_student)
    return effective >= EFFECTIVE and not posterior.find_misfits()


def choose_word(p):
    """The advice in words where Dist. wins with probability `p`."""
    return next(word for least, word in WORDS if p >= least)


def judge(posterior, market, budget, sure=True, arms=ARMS):
    """The advice at one budget: what each arm buys and scores, and who wins how surely.

    sure: whether the curves explain the runs; else nothing can be told.
    """
    counts = {arm: c for arm, c in market.buy(budget).items() if arm in arms}
    mean = {arm: posterior.score(arm, c, noise=0) for arm, c in counts.items()}
    row = {"budget": budget, "buys": counts, "bands": {}, "p": 0.0, "loss": 0.0}
    row["bands"] = {arm: band(posterior.score(arm, c)) for arm, c in counts.items()}
    if "dist" in counts:
        row["p"] = share_above(mean["dist"], mean["ann"])
    best = "dist" if row["p"] >= 0.5 else "ann"
    row["advice"] = choose_word(row["p"]) if "dist" in counts else "Ann."
    if "llm" in counts:
        best, row["p_best"], row["advice"] = choose_arm(mean)
    if not sure and len(counts) > 1:
        row["advice"] = "can't tell"
    row["loss"] = measure_loss(mean[best], [v for arm, v in mean.items() if arm != best])
    return row


def choose_arm(mean):
    """(the arm with the highest mean score, its probability of being best, the advice)."""
    best = max(mean, key=lambda arm: sum(mean[arm]))
    others = [
        max(scores) for scores in zip(*(v for a, v in mean.items() if a != best), strict=True)
    ]
    p = share_above(mean[best], others)
    lean = "" if p >= 0.8 else "lean "
    return best, p, f"{lean}{ARMS[best]}" if p >= 0.65 else "can't tell"


def measure_loss(chosen, others):
    """Points that the choice loses on average to whatever turns out best."""
    if not others:
        return 0.0
    lost = [max(0, max(rest) - one) for one, *rest in zip(chosen, *others, strict=True)]
    return 100 * sum(lost) / len(lost)


def find_split(posterior, market, budget):
    """(labels to buy first, rows to distil, median score 0 to 100) that score best for `budget`."""
    found = []
    for share in SPLITS:
        extra = math.floor(Fraction(share) * budget / market.terms.usd_per_label)
        most = (market.most_labels or math.inf) - market.labels
        counts = market.buy(budget, min(extra, most)).get("dist")
        if counts:
            score = 100 * quantile(posterior.dist(*counts, 0), 0.5)
            found.append((score, counts[0] - market.labels, counts[1]))
    if not found:
        return None
    score, extra, rows = max(found, key=lambda split: (split[0], -split[1]))
    return extra, rows, score


def find_turns(posterior, market, low=1, high=100_000, steps=160):
    """Budgets between which Dist. leads, without the noise of single runs.

    {"first": (10%, 50%, 90%) of the first one, inf if never; "never": the share of draws;
    "last": (10%, 50%) of the last one, among draws that ever lead; "open": the share of these that
    still lead at `high` dollars or when every label is bought}.
    """
    bought = [
        (usd, market.buy(usd)) for usd in list_budgets(low / market.unit, high / market.unit, steps)
    ]
    bought = [(usd, counts) for usd, counts in bought if "dist" in counts]
    first, last = [], []
    for draw in posterior.draws:
        leads = [usd for usd, c in bought if draw.dist(*c["dist"]) > draw.ann(c["ann"][0])]
        first.append(leads[0] if leads else math.inf)
        last += leads[-1:]
    pick = lambda values, q: sorted(values)[int(len(values) * q)] if values else math.inf  # noqa: E731
    return {
        "first": tuple(pick(first, q) for q in (0.1, 0.5, 0.9)),
        "never": first.count(math.inf) / len(first),
        "last": tuple(pick(last, q) for q in (0.1, 0.5)),
        "open": sum(usd == bought[-1][0] for usd in last) / max(1, len(last)),
    }


def rank_next_runs(posterior, market, budgets):
    """[(points gained, share of changed choices, dollars, run)], the most useful next run first."""
    n, have = market.labels, {run[:3] for run in posterior.runs}
    rows = [run.unlabeled for run in posterior.runs if run.strategy == "dist"]
    rows = min(4 * max(rows), market.unlabeled) if rows else min(1000, market.unlabeled)
    teacher = 0 if ("teacher", n, 0) in have else market.price_teacher(n)
    wanted = [(("small", n, 0), 0), (("small", n // 2, 0), 0)]
    wanted += [(("teacher", n, 0), teacher)] if teacher else []
    wanted += [(("dist", n, rows), teacher + market.price_rows(rows))]
    counts = [market.buy(budget) for budget in budgets]
    options = [
        [
            [d.ann(c["ann"][0]) for d in posterior.draws],
            [d.dist(*c["dist"]) for d in posterior.draws],
        ]
        for c in counts
        if "dist" in c
    ]
    ranked = []
    for run, usd in wanted if options else ():
        values = [posterior.value_of_run(run, option) for option in options]
        gain, changed = (sum(v) / len(values) for v in zip(*values, strict=True))
        ranked.append((gain, changed, usd, run))
    return sorted(ranked, key=lambda each: -each[0])


def price_predictions(seconds, usd_per_hour, gpus=1):
    """Dollars per million predictions of a model that takes `seconds` for one."""
    return 1_000_000 * seconds * gpus * usd_per_hour / 3600


def find_payback(build, serve, other_build, other_serve):
    """Predictions from which building pays, against another way; inf where it never does.

    Builds in dollars, serving in dollars per million predictions.
    """
    saved = other_serve - serve
    return max(0, 1_000_000 * (build - other_build) / saved) if saved > 0 else math.inf


def list_notes(posterior, market, constant, rows):
    """What the advice rests on weakly, in sentences."""
    small = [run for run in posterior.runs if run.strategy == "small"]
    teacher = [run for run in posterior.runs if run.strategy == "teacher"]
    distilled = [run for run in posterior.runs if run.strategy == "dist"]
    best = max((run.score for run in small), default=math.nan)
    top = max((run.score for run in teacher), default=math.nan)
    labels = max(row["buys"]["ann"][0] for row in rows) / posterior.most_labels
    most = max((row["buys"].get("dist", (0, 0))[1] for row in rows), default=0)
    far = labels > FAR_LABELS or (distilled and most / posterior.most_rows > FAR_ROWS)
    said = [
        (not teacher, f"no teacher run, so Dist. is a guess (in tests off by 15 points); next: a "
         f"teacher on {market.labels:,} labels"),
        (best - constant < 0.03, "the student is still at the constant "
         "predictor; where learning starts is a guess: try a higher rate, or buy in rounds"),
        (top < best - 0.05, "the teacher is below the "
         "student: its training failed, or there are too few labels for it"),
        (any(run.score > top + 0.08 for run in distilled), "a distilled student is far above its "
         "teacher; score both on the same rows"),
        (any(run.score < constant for run in distilled), "a distilled student is below the "
         "constant predictor; its training failed"),
        (far, "some budgets go beyond 10 times the pilot; in tests off by 6 to 11 points there"),
    ]  # fmt: skip
    said += [
        (True, f"{name_run(run)} scored {100 * run.score:.1f}, which no curve through the other "
         "runs explains; another seed?")
        for run in posterior.find_misfits()
    ]  # fmt: skip
    return [text for condition, text in said if condition]


def name_run(run):
    rows = f", {run[2]:,} rows" if run[2] else ""
    return f"{run[0]} on {run[1]:,} labels{rows}"


def show_budget(usd):
    return "never" if usd == math.inf else show_usd(Fraction(round(usd, 2)).limit_denominator(100))


def show_band(scores):
    low, middle, high = scores
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def make_market(study, terms, labels, unlabeled, unit=1):
    """The Market of a task as its tables see it: what is in hand, what exists at most."""
    rows = study.unlabeled_rows if unlabeled is None else unlabeled * unit
    most = study.train_rows and study.train_rows // unit
    return Market(terms, labels, rows // unit if rows else 10**9, most, unit)


def advise(pilot, market, budgets, llm=None):
    """All that the command prints, as one object of plain numbers (scores in points, dollars)."""
    posterior = Posterior(pilot.runs, pilot.constant, llm, pilot.error)
    sure = explains(posterior)
    rows = [judge(posterior, market, budget, sure) for budget in budgets]
    middle = budgets[len(budgets) // 2]
    return {
        "labels": market.labels,
        "unlabeled": market.unlabeled,
        "metric": pilot.metric,
        "dev_rows": pilot.rows,
        "constant": 100 * pilot.constant,
        "pilot": [{**run._asdict(), "score": 100 * run.score} for run in pilot.runs],
        "budgets": rows,
        "turns": find_turns(posterior, market),
        "split": {"budget": middle, "best": find_split(posterior, market, middle)},
        "next_runs": rank_next_runs(posterior, market, budgets),
        "notes": list_notes(posterior, market, pilot.constant, rows),
    }


def lay_row(row, market):
    """One budget as the cells of a line."""
    usd, counts, bands = row["budget"], row["buys"], row["bands"]
    cells = [show_usd(usd), f"+{counts['ann'][0] - market.labels:,}", show_band(bands["ann"])]
    if "dist" in counts:
        cells += [f"{counts['dist'][1]:,} rows", show_band(bands["dist"]), f"{row['p']:.2f}"]
    else:
        cells += ["N/A", f"the teacher costs {show_usd(market.price_teacher(market.labels))}", "–"]
    if "llm" in counts:
        cells += [f"+{counts['llm'][1]:,}", show_band(bands["llm"])]
    return [*cells, row["advice"], f"{row['loss']:.1f}"]


COLUMNS = ("Budget", "Ann. buys", "score, 80% of runs", "Dist. buys", "score, 80% of runs")
COLUMNS += ("P(Dist. > Ann.)", "advice", "loss if wrong")


def show_turns(turns, unit):
    """The sentence on first lead and catch-up."""
    low, middle, high = map(show_budget, turns["first"])
    text = f"Dist. leads from {middle} (80%: {low} to {high}; never in {turns['never']:.0%})"
    if turns["last"][1] == math.inf:
        return text
    early, last = map(show_budget, turns["last"])
    return (
        f"{text}; where it does, Ann. catches up at {last}, not before {early} (90%), and not "
        + (f"within {show_usd(Fraction(100_000, unit))} or all labels in {turns['open']:.0%}")
    )
