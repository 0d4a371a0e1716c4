"""From a few runs and a price list to advice: which strategy, at which budget, how sure.

Reads:  the dev scores of a pilot's runs, RUNS/NAME/dev/metrics.json; PREPARED/TASK/about.json
Writes: nothing but the page that is asked for; standard library only
Paper:  the question of its title and of Tables 2 and 4, for a task that it does not have

The scores come from data/costs/curves.py, what dollars buy from data/costs/budget.py. Budgets are
dollars beside the labels in hand, as in Table 2.
"""

import json
import math
import shlex
import sys
from fractions import Fraction
from pathlib import Path
from statistics import fmean, median
from typing import NamedTuple

from data.costs import serving
from data.costs.budget import choose_list, plan, price_distilling, read_terms
from data.costs.curves import STRATEGIES, band, list_budgets, share_above
from data.costs.explorer import make_state, write_page
from data.costs.flags import find_unit
from data.costs.grid import read_row_counts
from data.costs.pilot import make_posterior, read_pilot, read_score
from data.costs.prices import (
    fill,
    load_prices,
    name_llm,
    show_columns,
    show_dollars,
    show_price,
    show_usd,
    tell,
    to_json,
)
from data.costs.runs import find_run
from data.files import DATA, UserError, check_overwrite, parse_amount, plural, read_csv, write_json
from data.tasks import load_task

WORDS = {0.8: "Dist.", 0.65: "lean Dist.", 0.35: "can't tell", 0.2: "lean Ann.", 0: "Ann."}
ARMS = {"ann": "Ann.", "dist": "Dist.", "llm": "LLM"}
NAMES = {"small": "student", "teacher": "teacher", "dist": "student distilled from a teacher"}
# Shares of a budget spent on labels before distilling.
SPLITS = (0, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85, 0.95, 0.98)
HIGHEST = 100_000  # dollars, to which a lead is looked for
FAR_LABELS, FAR_ROWS = 10, 30  # times what the pilot saw, from where a score is a guess
ANY = 10**9  # unlabeled rows, where nobody says how many there are
SHARES = (Fraction(1, 5), Fraction(2, 5), 1, 2, 4)  # of BUDGET, in the advice
CURVE = 24  # budgets at which the figure draws a band


class Market(NamedTuple):
    """What dollars buy for one task; `unit` divides the paper's counts and dollars at a scale."""

    terms: NamedTuple
    labels: int  # in hand
    unlabeled: int  # rows there are
    most_labels: int = None  # that exist, None if any number can be had
    unit: int = 1
    llm: bool = False  # whether an LLM is an arm: its price and its own score are known

    def price_dist(self, labels, rows=0):
        """Dollars of a teacher on `labels` and of `rows` distilled from it."""
        return price_distilling(self.terms, labels * self.unit, rows * self.unit) / self.unit

    def buy(self, budget, extra=0):
        """{arm: (labels, rows)} that `budget` dollars buy; of these, `extra` labels come first.

        Dist. is missing where the teacher leaves nothing.
        """
        labels, budget = self.labels + extra, Fraction(budget)
        left = budget - extra * self.terms.usd_per_label
        alone = self.labels + budget // self.terms.usd_per_label
        counts = {"ann": (min(alone, self.most_labels or alone), 0)}
        bought = plan(self.terms, labels * self.unit, left * self.unit)["distill"]
        rows = min(bought["unlabeled"] // self.unit if bought else 0, self.unlabeled)
        if rows > 0:
            counts["dist"] = (labels, rows)
        if self.llm:
            counts["llm"] = (labels, min(left // self.terms.usd_per_llm_label, self.unlabeled))
        return counts


def choose_word(p):
    """The advice in words where Dist. wins with probability `p`."""
    return next(word for least, word in WORDS.items() if p >= least)


def judge(posterior, market, budget):
    """The advice at one budget: what each arm buys and scores, and who wins how surely; nothing can
    be told where the curves do not explain the runs."""
    counts = market.buy(budget)
    mean = {arm: posterior.score(arm, c, noise=0) for arm, c in counts.items()}
    bands = {arm: band(posterior.score(arm, c)) for arm, c in counts.items()}
    p = share_above(mean["dist"], mean["ann"]) if "dist" in counts else 0.0
    best, told = "dist" if p >= 0.5 else "ann", {"advice": choose_word(p)}
    if "llm" in counts:
        best, told["p_best"], told["advice"] = choose_arm(mean)
    if posterior.misfits and len(counts) > 1:
        told["advice"] = "can't tell"
    # Points lost on average to whatever turns out best.
    lost = [max(scores) - scores[0] for scores in zip(mean[best], *mean.values(), strict=True)]
    found = {"budget": budget, "buys": counts, "bands": bands, "p": p}
    return {**found, "loss": 100 * fmean(lost), **told}


def choose_arm(mean):
    """(the arm with the highest mean score, its probability of being best, the advice); where that
    is no better than a guess, the arms between which it is one: the best and those that it beats
    in less than nine of ten draws."""
    best = max(mean, key=lambda arm: sum(mean[arm]))
    others = zip(*(scores for arm, scores in mean.items() if arm != best), strict=True)
    p = share_above(mean[best], [max(scores) for scores in others])
    if p >= 0.65:
        return best, p, ("" if p >= 0.8 else "lean ") + ARMS[best]
    near = [a for a in mean if a == best or share_above(mean[best], mean[a]) < 0.9]
    *first, last = (ARMS[arm] for arm in near)
    return best, p, f"can't tell: {', '.join(first)} or {last}"


def find_split(posterior, market, budget):
    """The labels to buy first and the rows to distil that score best for `budget`, with the median
    score, its band, dollars and the probability of beating labels alone; None without a teacher."""
    price = market.terms.usd_per_label
    most = (market.most_labels or math.inf) - market.labels
    extras = (min(math.floor(Fraction(share) * budget / price), most) for share in SPLITS)
    bought = [c["dist"] for c in (market.buy(budget, extra) for extra in extras) if "dist" in c]
    if not bought:
        return None
    score, _, labels, rows = max((median(posterior.dist(*c, 0)), -c[0], *c) for c in bought)
    extra, alone = labels - market.labels, market.buy(budget)["ann"]
    return {
        "labels": extra,
        "rows": rows,
        "score": 100 * score,
        "band": band(posterior.dist(labels, rows)),
        "usd": min(budget, extra * price + market.price_dist(labels, rows)),
        "p": share_above(posterior.dist(labels, rows, 0), posterior.ann(alone[0], 0)),
    }


def find_turns(posterior, market, low, high, steps=160):
    """Budgets from `low` to `high` dollars between which Dist. leads, without the noise of single
    runs.

    {"first": (10%, 50%, 90%) of the first one, inf if never; "never": the share of draws;
    "last": (10%, 50%) of the last one, among draws that ever lead; "open": the share of these that
    still lead at `high` dollars or when every label is bought}.
    """
    bought = [(usd, market.buy(usd)) for usd in list_budgets(low, high, steps)]
    bought = [(usd, counts) for usd, counts in bought if "dist" in counts]
    leads = [
        [usd for usd, c in bought if draw.dist(*c["dist"]) > draw.ann(*c["ann"])]
        for draw in posterior.draws
    ]
    first = sorted(each[0] if each else math.inf for each in leads)
    last = sorted(each[-1] for each in leads if each)

    def pick(values, *shares):
        return tuple(values[int(len(values) * q)] if values else math.inf for q in shares)

    return {
        "first": pick(first, 0.1, 0.5, 0.9),
        "never": first.count(math.inf) / len(first),
        "last": pick(last, 0.1, 0.5),
        "open": last.count(bought[-1][0]) / len(last) if last else 0.0,
    }


def rank_next_runs(posterior, market, budgets):
    """[{points gained, share of changed choices, dollars, run}], the most useful next run first."""
    n, have, draws = market.labels, {run[:3] for run in posterior.runs}, posterior.draws
    rows = [4 * run.unlabeled for run in posterior.runs if run.strategy == "dist"]
    teacher, rows = ("teacher", n, 0), min(max(rows, default=1000), market.unlabeled)
    usd = {("small", n, 0): 0, ("small", n // 2, 0): 0, teacher: market.price_dist(n)}
    usd["dist", n, rows] = market.price_dist(n, rows)
    if teacher in have:
        usd["dist", n, rows] -= usd.pop(teacher)
    counts = [c for c in map(market.buy, budgets) if "dist" in c]
    leads = [[d.dist(*c["dist"]) - d.ann(*c["ann"]) for d in draws] for c in counts]
    ranked = []
    for run in usd if leads else ():
        gains, changes = zip(*(posterior.value_of_run(run, each) for each in leads), strict=True)
        found = {"points": fmean(gains), "changed": fmean(changes)}
        ranked.append({**found, "usd": usd[run], "run": run})
    return sorted(ranked, key=lambda each: -each["points"])


def list_notes(pilot, posterior, market, rows):
    """What the advice rests on weakly and how it was tested, in sentences."""
    notes = [tell("no_run", like=", ".join(pilot.like))]
    if pilot.runs:
        notes = list_doubts(pilot, posterior, market, rows)
    if market.terms.usd_per_llm_label is not None and not pilot.llm:
        notes.append(tell("no_llm"))
    tests = DATA / "results" / "advise-backtest.csv"
    if tests.exists() and any(run.strategy == "dist" for run in pilot.runs):
        found = [r for r in read_csv(tests).values() if (r["world"], r["case"]) == ("paper", "P3")]
        found = {row["measure"]: float(row["value"]) for row in found if row["test"] == "winner"}
        notes.append(tell("tests", right=found["right if told"], told=found["told"]))
    return notes


def list_doubts(pilot, posterior, market, rows):
    """What makes the runs of a pilot a weak ground."""
    of = {name: [run.score for run in pilot.runs if run.strategy == name] for name in STRATEGIES}
    best, top = (max(of[name], default=math.nan) for name in ("small", "teacher"))
    labels = max(row["buys"]["ann"][0] for row in rows) / posterior.most_labels
    most = max((row["buys"].get("dist", (0, 0))[1] for row in rows), default=0)
    doubts = {
        "no_teacher": not of["teacher"],
        "at_constant": best - pilot.constant < 0.03,
        "weak_teacher": top < best - 0.05,
        "above_teacher": any(score > top + 0.08 for score in of["dist"]),
        "below_constant": any(score < pilot.constant for score in of["dist"]),
        "far": labels > FAR_LABELS or (of["dist"] and most / posterior.most_rows > FAR_ROWS),
        "other_labels": market.labels != posterior.most_labels,
    }
    words = {"n": market.labels, "most": posterior.most_labels}
    notes = [tell(key, **words) for key, holds in doubts.items() if holds]
    notes += [tell("misfit", run=name_run(run), score=100 * run.score) for run in posterior.misfits]
    usd = show_usd(pilot.rows * market.terms.usd_per_label)
    notes.append(tell("rows", half=196 * pilot.error, rows=pilot.rows, usd=usd))
    if (pilot.annotator or "").startswith("simulated-"):
        notes.append(tell("simulated", annotator=pilot.annotator))
    return notes


def advise(pilot, market, budgets, servings, llm, unit):
    """(Posterior, all that the command prints as one object of plain numbers: scores in points,
    dollars); servings, llm: as list_serving() has them."""
    posterior = make_posterior(pilot, unit)
    rows = [judge(posterior, market, budget) for budget in budgets]
    middle, teacher = budgets[len(budgets) // 2], market.price_dist(market.labels)
    low, high = min(1 / market.unit, budgets[0]), max(HIGHEST / market.unit, budgets[-1])
    return posterior, {
        "labels": market.labels,
        "unlabeled": market.unlabeled,
        "metric": pilot.metric,
        "dev_rows": pilot.rows,
        "constant": None if pilot.constant is None else 100 * pilot.constant,
        "pilot": [{**run._asdict(), "score": 100 * run.score} for run in pilot.runs],
        "prior": list(pilot.like),
        "sure": not posterior.misfits,
        "budgets": rows,
        "turns": find_turns(posterior, market, low, high),
        "llm": pilot.llm and {"score": 100 * pilot.llm[0], "rows": pilot.llm[1]},
        "split": {"budget": middle, "best": find_split(posterior, market, middle)},
        "next_runs": rank_next_runs(posterior, market, budgets),
        "serving": list_serving(servings, market, middle, llm),
        "teacher_usd": teacher,
        "rows_usd": market.price_dist(market.labels, 1000) - teacher,
        "notes": [*list_notes(pilot, posterior, market, rows), *market.terms.notes],
    }


def list_serving(servings, market, budget, llm):
    """Each way to serve with its build and the predictions from which the student, of as many rows
    as `budget` buys and are there, has paid against it; None where it buys none or a price is not
    known, inf where it never pays.

    servings: [(Serving, dollars of an hour of its device or None)]; llm: the name of the LLM.
    """
    spent = min(budget, market.price_dist(market.labels, market.unlabeled))
    builds = {"student": spent, "teacher": market.price_dist(market.labels), "LLM": 0}
    ways = [(each.model, usd := each.price(hour), each.show(usd)) for each, hour in servings]
    student = next((usd for model, usd, _ in ways if model == "student"), None)
    if market.terms.usd_per_llm_label is not None:
        usd = 1_000_000 * market.terms.usd_per_llm_label
        ways.append(("LLM", usd, f"LLM {llm} {serving.show_predictions(usd)}"))
    there, found = "dist" in market.buy(budget) and student is not None, []
    for model, usd, how in ways:
        entry = {"model": model, "usd_per_million": usd, "how": how, "build_usd": builds[model]}
        known = there and model != "student" and usd is not None
        paid = serving.find_payback(spent, student, builds[model], usd) if known else None
        found.append({**entry, "paid_back_after": paid})
    return found


# --- the command ------------------------------------------------------------------------------

HEADS = ["Budget", "Ann. buys", "score, 80%", "Dist. rows", "score, 80%", "P(Dist.)"]
LLM_HEADS = ["Budget", "LLM labels", "score, 80%", "advice", "P(that arm is best)", "loss"]


def show_budgets(rows, labels):
    """The table of budgets beside `labels`; an LLM's arm and the advice on all three in a second
    one, where it was judged."""
    first, second = [], []
    for row in rows:
        usd, bands = show_dollars(row["budget"]), {a: show_band(b) for a, b in row["bands"].items()}
        more = {arm: f"{sum(counts) - labels:,}" for arm, counts in row["buys"].items()}
        dist = ["N/A", "the teacher's price", None]
        if "dist" in more:
            dist = [more["dist"], bands["dist"], f"{row['p']:.2f}"]
        told = [row["advice"], f"{row['loss']:.1f}"]
        if "llm" in more:
            llm = [usd, f"+{more['llm']}", bands["llm"]]
            second.append([*llm, told[0], f"{row['p_best']:.2f}", told[1]])
        first.append([usd, f"+{more['ann']}", bands["ann"], *dist, *told])
    if not second:
        return show_columns([*HEADS, "advice", "loss"], first)
    tables = show_columns(HEADS, [row[:-2] for row in first]), show_columns(LLM_HEADS, second)
    return "\n\n".join(tables)


def show_turns(turns, highest):
    """The sentence on first lead and catch-up, looked for to `highest` dollars."""
    low, middle, high = map(show_budget, turns["first"])
    if middle == "never":
        early = "" if low == "never" else f"; at the earliest from {low} (10%)"
        share = f" in {turns['never']:.0%}" * (turns["never"] < 0.995)
        return f"Dist. leads at no budget{share}{early}"
    never = f"; never in {turns['never']:.0%}" * (turns["never"] >= 0.005)
    spread = f" (80%: {low} to {high}{never})" * bool(low != high or never)
    text = f"Dist. leads from {middle}{spread}"
    most = f"within {show_budget(highest)} or all labels"
    if turns["open"] > 0.5:
        early = f"in {turns['open']:.0%} of those" if turns["open"] < 1 else "at all"
        return f"{text}; where it does, Ann. does not catch up {most} {early}"
    early, last = map(show_budget, turns["last"])
    text += f"; where it does, Ann. catches up at {last}"
    text += f", not before {early} (90%)" * (early != last)
    return text + f", not {most} in {turns['open']:.0%}" * (turns["open"] >= 0.01)


def show_split(split, market):
    """The sentence on the best split between labels and rows."""
    usd, best = show_dollars(split["budget"]), split["best"]
    if not best:
        return tell("no_split", usd=usd)
    extra, unspent = best["labels"], split["budget"] - best["usd"]
    words = {**best, "labels": f"buy {plural(extra, 'label')}" if extra else "buy no label"}
    words |= {"usd": usd, "n": market.labels + extra, "band": show_band(best["band"])}
    words["left"] = f"; {show_budget(unspent)} are left" * (50 * unspent >= split["budget"])
    return tell("split", **words)


def show_next(ranked):
    """The sentence on what to run next, where that is of use."""
    said = []
    for each in [each for each in ranked if each["points"] >= 0.005][:2]:
        price = show_budget(each["usd"]) if each["usd"] else "a student's own hours"
        said.append(tell("next_run", **{**each, "run": name_run(each["run"])}, price=price))
    if said:
        return f"Most useful next run: {'; '.join(said)}"
    why = "none changes the choice" if ranked else "no teacher is affordable"
    return f"Next run: none, as {why}"


def show_costs(ways):
    """Serving costs and from how many predictions on distilling has paid."""
    hows = [way["how"] for way in ways]
    builds = [way["build_usd"] for way in ways if way["model"] == "student"]
    if not builds:
        hows.append("no model is scored yet, so none is measured")
    text = f"Serving, $ per million predictions: {'; '.join(hows)}"
    paid = [(way["paid_back_after"], way["model"]) for way in ways]
    paid = [f"{show_digits(n)} against the {model}" for n, model in paid if n is not None]
    if paid:
        spent = show_dollars(builds[0])
        text += f". {spent} of distilling paid back after (predictions) {', '.join(paid)}"
    return text


def name_run(run):
    rows = f", {plural(run[2], 'row')}" if run[2] else ""
    return f"{NAMES[run[0]]} on {plural(run[1], 'label')}{rows}"


def show_digits(value, mark="", decimals=0):
    """A number to three digits; a quantile of draws is not known better."""
    if value == math.inf:
        return "never"
    digits = 2 - math.floor(math.log10(max(value, 10**-decimals)))
    shown = f"{mark}{round(float(value), digits):,.{decimals * (digits > 0)}f}"
    return shown.removesuffix(".00")  # $55 and $75.50


def show_budget(usd):
    return show_usd(usd) if 0 < usd < 0.01 else show_digits(usd, "$", 2)


def show_band(scores):
    low, middle, high = scores
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]"


def show_advice(task, found, market):
    """The advice as text, at most 100 columns wide."""
    rows = "any number of" if found["unlabeled"] == ANY else f"{found['unlabeled']:,}"
    known = "no run: the paper's cells as a prior"
    if found["pilot"]:
        known = f"{len(found['pilot'])} pilot runs; {found['metric'].replace('_', ' ')} on "
        known += f"{found['dev_rows']:,} dev rows, constant predictor {found['constant']:.1f}"
    prices = {"label": show_price(market.terms.usd_per_label), "n": found["labels"]}
    prices |= {"teacher": show_budget(found["teacher_usd"]), "rows": show_budget(found["rows_usd"])}
    head = f"{task.title}: N = {found['labels']:,} labels, {rows} unlabeled rows, {known}"
    notes, last = [], found["budgets"][-1]
    turns = show_turns(found["turns"], max(HIGHEST / market.unit, last["budget"]))
    said = [show_split(found["split"], market), turns, show_next(found["next_runs"])]
    said.append(show_costs(found["serving"]))
    spent = market.price_dist(market.labels, market.unlabeled)
    if any("dist" not in row["buys"] for row in found["budgets"]):
        notes.append(tell("not_affordable", teacher=show_usd(found["teacher_usd"])))
    if last["buys"].get("dist", (0, 0))[1] == found["unlabeled"] and spent < last["budget"]:
        notes.append(tell("rows_run_out", rows=found["unlabeled"], spent=show_dollars(spent)))

    table = show_budgets(found["budgets"], market.labels)
    parts = [fill(head, ""), fill(tell("prices", **prices), ""), "", table]
    parts += [*(fill(text, "") for text in ("", tell("legend"), "", *said)), ""]
    return "\n".join([*parts, *(fill(f"- {note}") for note in notes + found["notes"])])


def read_market(task, args, terms, pilot):
    """The Market that the flags describe; counts that they leave out are those of the splits, the
    pilot's or the entry's."""
    divide, held = find_unit(task, args.scale), task.rows.get("unlabeled")
    unlabeled, labels = held // divide if held else ANY, task.labels_n[-1] // divide
    if args.prepared and Path(args.prepared, task.name, "about.json").exists():
        known = read_row_counts(args.prepared, task.name)
        unlabeled, labels = known["unlabeled"], min(labels, known["train"])
    labels = args.labels or max((run.labels for run in pilot.runs), default=labels)
    most = task.rows.get("train")
    most = most and max(most // divide, labels)
    unit, llm = 1 if terms.rates == "measured" else divide, terms.usd_per_llm_label and pilot.llm
    return Market(terms, labels, args.unlabeled or unlabeled, most, unit, bool(llm))


def read_budgets(task, args, unit):
    """Dollars of each line, rising."""
    if args.budgets and args.budget is not None:
        raise UserError("advise: pass one of --budget USD and --budgets LIST")
    if args.budgets:
        found = [parse_amount(word, "--budgets") for word in args.budgets.split()]
    elif args.budget is not None:
        found = [share * args.budget for share in SHARES]
    else:
        found = [Fraction(usd) / unit for usd in task.budgets]
    if not all(found):
        raise UserError("--budgets: dollars above 0 are needed, for example '100 200 500'")
    return sorted(set(found))


def read_llm(args, pilot):
    """The Pilot with an LLM's own score, where a flag tells it."""
    if args.llm_score is None:
        return pilot
    if args.llm_score > 100 or 0 < args.llm_score < 1:  # a share is meant otherwise
        score = f"{float(args.llm_score):g}"
        raise UserError(f"--llm-score: {score}: percent are needed, 0 or from 1 to 100")
    return pilot._replace(llm=(float(args.llm_score) / 100, args.llm_rows))


def show_command(args):
    """The command without what the page's sliders say."""
    words = ["python", "costs.py", "advise"]
    for name in "task data scale runs prepared prices rates price_list gpu gpu_speed".split():
        if (value := getattr(args, name)) is not None and value != DATA / "prices.csv":
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join(words)


def run_advise(args):
    """which strategy, at which budget, how sure, from the runs of a pilot"""
    task = load_task(args.task, args.data)
    inputs = args.prices, DATA / "tasks.json", DATA / "scales.json", task.word.partition("=")[2]
    check_overwrite(filter(None, (args.page, args.save)), inputs)
    pilot = read_llm(args, read_pilot(args.runs, task))
    args.price_list = choose_list(task, args.price_list)
    folder = Path(args.prepared, task.name) if args.prepared else Path(args.data or "")
    task, terms = read_terms(task, args, folder / "train.jsonl")
    market, unit = read_market(task, args, terms, pilot), find_unit(task, args.scale)
    price = load_prices(args.prices), args.price_list, args.gpu, args.gpu_usd_per_hour
    servings = [
        (each, serving.price_hour(each, *price, args.cpu_usd_per_hour))
        for each in (serving.measure_serving(args.runs) if args.runs else ())
    ]
    llm = args.llm_model or name_llm(args.price_list)
    posterior, found = advise(pilot, market, read_budgets(task, args, unit), servings, llm, unit)
    if task.own and args.scale == "mini" and pilot.runs:
        found["notes"].insert(0, tell("mini"))
    if args.page:
        words = (found, servings, show_command(args), task.llm_tokens_per_label)
        write_page(args.page, make_state(task.title, posterior, market, *words))
        print(f"page: {args.page}", file=sys.stderr)
    found = {"task": task.name, "title": task.title, **found}
    if args.save:
        save_advice(args, posterior, market, found)
    print(json.dumps(to_json(found), indent=2) if args.json else show_advice(task, found, market))


def save_advice(args, posterior, market, found):
    """Write the advice for `plots.py advice`: beside it each arm's band on a grid of budgets, and
    the cells that are measured by now."""
    low, high = found["budgets"][0]["budget"], found["budgets"][-1]["budget"]
    tried, curve = list_tried(found["pilot"], market), []
    low = min([low, *(run["usd"] for run in tried if run["usd"] > low / 20)])
    for budget in list_budgets(low, high, CURVE):
        judged, split = judge(posterior, market, budget), find_split(posterior, market, budget)
        curve.append(
            {"budget": budget, "bands": judged["bands"], "split": split and split["score"]}
        )
    measured = list_tried(read_cells(args.runs, found["task"]), market)
    found = {**found, "curve": curve, "tried": tried, "measured": measured}
    write_json(args.save, to_json(found))


def list_tried(runs, market):
    """Runs with the dollars beside the N labels in hand that such a model costs; those on fewer
    labels, or of a teacher on more, have no place there."""
    found = []
    for run in runs:
        extra = run["labels"] - market.labels
        usd = extra * market.terms.usd_per_label
        if run["strategy"] != "small":
            usd = market.price_dist(run["labels"], run["unlabeled"])
        if extra == 0 or (extra > 0 and run["strategy"] == "small"):
            found.append({**run, "usd": usd})
    return found


def read_cells(folder, task):
    """The finished runs below a folder with their score on test, as the pilot's have it on dev."""
    found = []
    for path in sorted(Path(folder).glob("*/metrics.json")) if folder else ():
        run = find_run(path.parent.name)
        if run and run.usual and run.strategy in STRATEGIES:
            counts = {key: getattr(run, key) for key in ("strategy", "labels", "unlabeled")}
            found.append({**counts, "score": read_score(path, task)["score"]})
    return found
