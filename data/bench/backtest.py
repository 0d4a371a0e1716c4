"""Is the advice right? Predict measured cells from fewer runs, and see who really won.

Usage:
    python -m data.bench.backtest                         # two to four minutes
    python -m data.bench.backtest --output /tmp/backtest.csv

Reads:  data/results/mini-*-cells.csv (tables of the mini grid), data/paper/scores.csv
Writes: OUTPUT, a CSV of every figure with the bound that it should keep

A pilot is what one would run first: students on about N/10, N/4, N/2 and N labels (P1), a teacher
on N (P2), a distilled student on the fewest rows measured (P3) and one on about twice as many (P4).
Everything beyond is predicted and compared with what was measured. Prices: the paper's, times 1/30
to 3 for labels and 1/3 to 3 for GPUs; the truth at a budget is then between measured points, the
nearest of them at most a few percent away. A gap below 1.5 points is nobody's win.
"""

import csv
import functools
import itertools
import math
import statistics
from collections import defaultdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.isotonic import IsotonicRegression

from data.costs.advise import Market, find_turns
from data.costs.budget import make_terms
from data.costs.curves import Posterior, Run, band, share_above
from data.costs.pilot import load_scores, read_paper_runs
from data.costs.prices import load_prices
from data.files import DATA, UserError, make_parser, read_csv, run_cli
from data.tasks import PAPER_TASKS, load_task

ARMS = {"Teacher": "teacher", "Ann.": "small", "Dist.": "dist"}
HORIZONS = ((1.3, 3, "2x"), (3, 7, "4x"), (7, 16, "10x"), (16, math.inf, ">16x"))
THIRD, TENTH = Fraction(1, 3), Fraction(1, 10)
LABEL_PRICES, GPU_PRICES = (THIRD * TENTH, TENTH, THIRD, 1, 3), (THIRD, 1, 3)
COLUMNS = ("Task", "Strategy", "Labels", "Unlabeled", "Score", "By seed", "Constant")
TIE = 1.5  # points
DIVIDE = {"mini": 10, "paper": 1}
MOST = {  # mean absolute errors that the method kept when it was designed, on these tables
    ("labels", "mini"): {"2x": 2.7, "4x": 4, "10x": 7},
    ("labels", "paper"): {"2x": 5.5, "4x": 8, "10x": 12},
    ("rows", "mini"): {"P2": 7, "P4": 4},
    ("rows", "paper"): {"P2": 4, "P4": 1.5},
}


def load_mini(folder):
    """{(mini, task): (its Runs, its constant predictor)} of the committed mini grid.

    A run in several tables counts once, as the mean over most seeds.
    """
    names = {load_task(task).title: task for task in PAPER_TASKS}
    scores, constants = {task: {} for task in PAPER_TASKS}, {}
    for path in sorted(folder.glob("mini-*-cells.csv")):
        rows = read_csv(path, COLUMNS)
        for row in (row for row in rows.values() if row["Task"] in names):
            task, arm = names[row["Task"]], ARMS.get(row["Strategy"])
            seeds = (row["By seed"] or row["Score"].split()[0]).split()
            if row["Constant"]:
                constants[task] = float(row["Constant"]) / 100
            if arm and seeds != ["N/A"]:
                run, known = (arm, int(row["Labels"]), int(row["Unlabeled"] or 0)), scores[task]
                known[run] = max(known.get(run, []), [float(each) for each in seeds], key=len)
    if lacking := [title for title, task in names.items() if task not in constants]:
        what = f"no cells of {', '.join(lacking)} in its mini-*-cells.csv"
        raise UserError(f"{folder}: {what}; make table2 TASK=all writes them")
    measured = {}
    for task, known in scores.items():
        runs = [Run(*run, statistics.mean(seeds) / 100) for run, seeds in known.items()]
        measured["mini", task] = runs, constants[task]
    return measured


fit = functools.cache(Posterior)  # of the same runs once


class Place:
    """One task of a world with N labels: its measured runs, the pilots, the market."""

    def __init__(self, measured, world, task, n):
        runs, self.constant = measured[world, task]
        self.world, self.n, self.runs = world, n, sorted(runs)
        self.students, self.rows = self.select("small"), self.select("dist", n)
        most = max((run.unlabeled for run in self.rows), default=0)
        terms = make_terms(load_task(task), load_prices())
        self.market = Market(terms, n, most, unit=DIVIDE[world])

    def select(self, arm, labels=None):
        return [run for run in self.runs if run.strategy == arm and labels in (None, run.labels)]

    def pick_students(self):
        """The runs nearest to shares of N, within a factor 1.7; () if fewer than two."""
        runs, near = [run for run in self.students if run.labels <= self.n * 1.001], set()
        for ratio in (0.1, 0.25, 0.5, 1):
            off = [abs(math.log(run.labels / (self.n * ratio))) for run in runs]
            if min(off, default=math.inf) < math.log(1.7):
                near.add(runs[off.index(min(off))])
        picked = tuple(sorted(near))
        return picked if len(picked) > 1 and picked[-1].labels >= self.n / 1.3 else ()

    @functools.cached_property
    def pilots(self):
        """{level: its Runs}, as far as they were measured."""
        students = self.pick_students() or self.select("small", self.n)
        more = [run for run in self.rows if run.unlabeled >= 1.8 * self.rows[0].unlabeled]
        groups = {"P1": students, "P2": self.select("teacher", self.n), "P3": self.rows[:1]}
        pilots, runs = {"P0": ()}, ()
        for level, group in {**groups, "P4": more[:1]}.items():
            if not group:
                break
            pilots[level] = runs = (*runs, *group)
        return pilots

    def fit(self, level):
        return fit(self.pilots[level], self.constant)


def list_places(measured, mini, paper):
    """The Places of these N of each world."""
    for world, sizes in (("mini", mini), ("paper", paper)):
        for task, n in itertools.product(PAPER_TASKS, sizes):
            yield Place(measured, world, task, n)


def measure_error(posterior, runs):
    """(mean absolute error, share inside the band, mean width) of what is predicted, in points."""
    bands = [band(posterior.score(run.strategy, run[1:3])) for run in runs]
    (low, middle, high), truth = np.transpose(bands), np.array([100 * run.score for run in runs])
    inside = (low <= truth) & (truth <= high)
    return [each.mean() for each in (abs(middle - truth), inside, high - low)]


def check_labels(measured):
    """Ann. beyond the pilot, by how far; each (task, N) counts once a horizon."""
    for place in list_places(measured, (50, 100, 500), (500, 1000, 2000, 5000, 10000)):
        pilot = place.pick_students()
        for low, high, name in HORIZONS if pilot else ():
            far = [run for run in place.students if low <= run.labels / pilot[-1].labels < high]
            if far:
                yield ("labels", place.world, name), measure_error(place.fit("P1"), far)


def check_rows(measured):
    """Dist. at the pilot's N on more rows, by level of pilot."""
    for place in list_places(measured, (10, 50, 100, 500, 1000), (100, 1000, 5000, 10000)):
        for level in [*place.pilots][1:] if place.rows[2:] else ():
            yield ("rows", place.world, level), measure_error(place.fit(level), place.rows[2:])


def list_cells(place):
    """Cells at other prices: (labels, Ann., rows, Dist.)."""
    labels = [run.labels for run in place.students]  # scores rise in labels
    rows = [run.unlabeled for run in place.rows]
    ann = IsotonicRegression(out_of_bounds="clip")
    ann.fit(np.log(labels), [100 * run.score for run in place.students])
    for by_label, by_gpu in itertools.product(LABEL_PRICES, GPU_PRICES):
        terms = place.market.terms
        label, hour = terms.usd_per_label * by_label, terms.usd_per_gpu_hour * by_gpu
        terms = terms._replace(usd_per_label=label, usd_per_gpu_hour=hour)
        for usd in (50, 100, 200, 500, 1000):
            counts = place.market._replace(terms=terms).buy(Fraction(usd, place.market.unit))
            n, u = counts["ann"][0], counts.get("dist", (0, 0))[1]
            if n <= max(labels) * 1.05 and u >= min(rows) * 0.7:
                dist = np.interp(math.log(u), np.log(rows), [100 * run.score for run in place.rows])
                yield n, ann.predict([math.log(n)])[0], u, dist


def judge_cells(measured):
    """{(world, level): [(P(Dist. > Ann.), Ann., Dist.)]} of the cells that no pilot has seen."""
    found = defaultdict(list)
    for place in list_places(measured, (100, 500, 1000), (100, 1000, 5000, 10000)):
        seen = [run.unlabeled for run in place.pilots.get("P4", ()) if run.strategy == "dist"]
        for labels, ann, rows, dist in list_cells(place) if seen and place.rows[2:] else ():
            if rows in seen:
                continue  # the same cells for every level
            for level in place.pilots:
                posterior = place.fit(level)
                p = share_above(posterior.dist(place.n, rows, 0), posterior.ann(labels, 0))
                found[place.world, level].append((p, ann, dist))
            found[place.world, "always Dist."].append((1.0, ann, dist))
    return found


def summarise_winners(judged):
    """(cells decided, right, told, right if told, points lost) of [(p, ann, dist)]."""
    p, ann, dist = np.transpose(judged)
    decided = abs(dist - ann) >= TIE
    right = ((p > 0.5) == (dist > ann))[decided]
    told = ((p <= 0.2) | (p >= 0.8))[decided]
    lost = np.maximum(ann, dist) - np.where(p > 0.5, dist, ann)
    return len(right), right.mean(), told.mean(), right[told].mean(), lost.mean()


def check_calibration(judged):
    """[(low, high, cells, mean P, share of Dist. wins)] of the decided cells, by P."""
    p, ann, dist = np.transpose(judged)
    for low, high in itertools.pairwise((0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.01)):
        cells = (low <= p) & (p < high) & (abs(dist - ann) >= TIE)
        if cells.any():
            yield low, min(high, 1), cells.sum(), p[cells].mean(), (dist > ann)[cells].mean()


def check_first_lead(measured, level):
    """[whether the 80% interval of the first budget at which Dist. leads meets what Table 2 shows].

    The table shows a bracket: from the teacher's price, or the last budget lost, to the first won.
    """
    rows = pd.DataFrame(row for row in load_scores() if row["table"] == 2 and row["budget_usd"])
    scores = rows.pivot(index=["task", "labels", "budget_usd"], columns="strategy", values="score")
    for (task, n), gaps in (scores.dist - scores.small).dropna().groupby(level=["task", "labels"]):
        budgets = gaps.droplevel(["task", "labels"])
        place = Place(measured, "paper", task, n)
        market = place.market._replace(most_labels=load_task(task).rows["train"])
        low = max([float(market.price_dist(n)), *budgets[budgets <= 0].index])
        high = min(budgets[budgets > 0].index, default=math.inf)
        first, _, last = find_turns(place.fit(level), market, 5, 20_000, 120)["first"]
        yield first <= high and last >= low


def list_options(place):
    """All that was measured from N labels on: dollars in all, score and predicted score."""
    posterior, market = place.fit("P2"), place.market
    for run in place.students + place.select("dist"):
        if run.labels >= place.n:
            usd = run.labels * market.terms.usd_per_label
            usd += market.price_dist(*run[1:3]) if run.strategy == "dist" else 0
            scores = posterior.score(run.strategy, run[1:3])
            yield float(usd), run.score, statistics.mean(scores)


def check_split(measured, world, n):
    """Points that the advised split of each budget loses to the best measured one."""
    for place in (Place(measured, world, task, n) for task in PAPER_TASKS):
        options = sorted(list_options(place)) if "P2" in place.pilots else []
        for budget in np.geomspace(options[2][0], options[-1][0] * 1.01, 12) if options[2:] else ():
            scores = {expected: score for usd, score, expected in options if usd <= budget}
            yield 100 * (max(scores.values()) - scores[max(scores)])


def list_results(measured):
    """Rows of the CSV: (test, world, case, measure, value, cases, its bounds or None)."""
    errors = defaultdict(list)
    for key, found in itertools.chain(check_labels(measured), check_rows(measured)):
        errors[key].append(found)
    for (test, world, case), found in errors.items():
        error, inside, width = np.mean(found, axis=0)
        count, most = len(found), MOST[test, world].get(case)
        yield test, world, case, "mean absolute error", error, count, most and (-math.inf, most)
        kept = (0.75, 0.98) if count >= 10 else None
        yield test, world, case, "inside the 80% band", inside, count, kept
        yield test, world, case, "width of the band", width, count, None
    for level in ("P2", "P3"):
        met = list(check_first_lead(measured, level))
        yield "first lead", "paper", level, "brackets met", sum(met), len(met), (11, math.inf)
    for world, n, most in (("paper", 1000, 0.5), ("mini", 100, 1.0)):
        lost = list(check_split(measured, world, n))
        mean = statistics.mean(lost)
        yield "split", world, "P2", "points lost", mean, len(lost), (-math.inf, most)
    judged = judge_cells(measured)
    least = {("paper", "P3"): (0.8, 0.55, 0.9), ("mini", "P3"): (0.97, None, None)}
    for key, cells in judged.items():
        count, *found = summarise_winners(cells)
        bounds = [each and (each, math.inf) for each in least.get(key, [None] * 3)]
        bounds.append((-math.inf, 1.1) if key == ("paper", "P3") else None)
        names = ("winner right", "told", "right if told", "points lost")
        for name, value, bound in zip(names, found, bounds, strict=True):
            yield "winner", *key, name, value, count, bound
    cells = [cell for world in DIVIDE for cell in judged[world, "P3"]]
    for low, high, count, p, share in check_calibration(cells):
        case, bound = f"{low:g} to {high:g}", (-0.12, 0.12) if count >= 100 else None
        yield "calibration", "both", case, "share of wins less P", share - p, count, bound


def show_bounds(low, high):
    if math.inf in (-low, high):
        return f">= {low}" if high == math.inf else f"<= {high}"
    return f"+-{high}" if low == -high else f"{low} to {high}"


def main(argv=None):
    parser = make_parser(__doc__)
    results, rows = DATA / "results", []
    parser.add_argument("--results", type=Path, default=results, help="folder (%(default)s)")
    parser.add_argument("--output", type=Path, default=results / "advise-backtest.csv")
    args = parser.parse_args(argv)
    if not args.output.parent.is_dir():  # before minutes are spent
        raise UserError(f"{args.output.parent}: no such folder to write to")
    measured = load_mini(args.results)
    measured |= {("paper", task): read_paper_runs(task) for task in PAPER_TASKS}
    for *row, value, cases, bounds in list_results(measured):
        low, high = bounds or (0, 0)
        kept = [show_bounds(low, high), bool(low <= value <= high)] if bounds else ["", ""]
        rows.append([*row, f"{value:.3f}", cases, *kept])
        print(*rows[-1], sep="\t", flush=True)
    with open(args.output, "w", encoding="utf-8", newline="") as file:
        heads = "test world case measure value cases bound kept".split()
        csv.writer(file).writerows([heads, *rows])
    missed = [row for row in rows if row[-1] is False]
    print(f"{len(missed)} of {sum(row[-1] != '' for row in rows)} bounds missed")


if __name__ == "__main__":
    run_cli(main)
