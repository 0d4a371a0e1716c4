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
from pathlib import Path

import numpy as np
from sklearn.isotonic import IsotonicRegression

from data.costs.advise import Market, find_turns
from data.costs.budget import count_distill_hours, make_terms, price_distilling
from data.costs.curves import STRATEGIES, Posterior, Run, band, share_above
from data.costs.pilot import PAPER_CONSTANTS, load_scores, read_paper_runs
from data.costs.prices import load_prices
from data.files import DATA, UserError, make_parser, read_csv, run_cli
from data.tasks import PAPER_TASKS, load_task

ARMS = {"Teacher": "teacher", "Ann.": "small", "Dist.": "dist"}
HORIZONS = ((1.3, 3, "2x"), (3, 7, "4x"), (7, 16, "10x"), (16, math.inf, ">16x"))
LEVELS = ("P0", "P1", "P2", "P3", "P4")
LABEL_PRICES, GPU_PRICES = (1 / 30, 1 / 10, 1 / 3, 1, 3), (1 / 3, 1, 3)
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
    """({(mini, task): Runs}, {(mini, task): constant predictor}) of the committed mini grid.

    A run in several tables counts once, as the mean over most seeds.
    """
    names = {load_task(task).title: task for task in PAPER_TASKS}
    scores, constants, runs = {}, {}, defaultdict(list)
    for path in sorted(folder.glob("mini-*-cells.csv")):
        rows = read_csv(path, COLUMNS)
        for row in (row for row in rows.values() if row["Task"] in names):
            task, arm = names[row["Task"]], ARMS.get(row["Strategy"])
            seeds = (row["By seed"] or row["Score"].split()[0]).split()
            if row["Constant"]:
                constants["mini", task] = float(row["Constant"])
            if arm and seeds != ["N/A"]:
                key = task, arm, int(row["Labels"]), int(row["Unlabeled"] or 0)
                scores[key] = max(scores.get(key, []), [float(each) for each in seeds], key=len)
    if lacking := [title for title, task in names.items() if ("mini", task) not in constants]:
        what = f"no cells of {', '.join(lacking)} in its mini-*-cells.csv"
        raise UserError(f"{folder}: {what}; make table2 TASK=all writes them")
    for (task, *run), score in scores.items():
        runs["mini", task].append(Run(*run, statistics.mean(score) / 100))
    return runs, constants


@functools.cache
def get_terms(task):
    return make_terms(load_task(task), load_prices())


class Measured:
    """The scored Runs of each world and task, and the pilots and posteriors made from them."""

    def __init__(self, folder):
        self.runs, self.constants = load_mini(folder)
        for task in PAPER_TASKS:  # of the paper its Tables 2, 3, 4, 9 and 11
            self.runs["paper", task] = read_paper_runs(load_task(task))
            self.constants["paper", task] = PAPER_CONSTANTS[task]

    def select(self, world, task, arm, labels=None):
        runs = (run for run in self.runs[world, task] if run.strategy == arm)
        return sorted(run for run in runs if labels in (None, run.labels))

    def pick_students(self, world, task, n):
        """The runs nearest to shares of n, within a factor 1.7; () if fewer than two."""
        runs = [run for run in self.select(world, task, "small") if run.labels <= n * 1.001]
        near = {}
        for ratio in (0.1, 0.25, 0.5, 1):
            off = min(
                ((abs(math.log(r.labels / (n * ratio))), r) for r in runs), default=[math.inf]
            )
            if off[0] < math.log(1.7):
                near[off[1].labels] = off[1]
        picked = tuple(near[labels] for labels in sorted(near))
        return picked if len(picked) > 1 and picked[-1].labels >= n / 1.3 else ()

    @functools.cache  # noqa: B019 (one object lives as long as the program)
    def make_pilots(self, world, task, n):
        """{level: its Runs}, as far as they were measured."""
        few, teacher, rows = (self.select(world, task, arm, n) for arm in STRATEGIES)
        students = self.pick_students(world, task, n) or tuple(few)
        pilots = {"P0": ()} | ({"P1": students} if students else {})
        if students and teacher:
            pilots["P2"] = (*students, *teacher)
            more = [run for run in rows if run.unlabeled >= 1.8 * rows[0].unlabeled]
            pilots |= {"P3": (*pilots["P2"], rows[0])} if rows else {}
            pilots |= {"P4": (*pilots["P3"], more[0])} if more else {}
        return pilots

    @functools.cache  # noqa: B019
    def make_posterior(self, world, task, runs):
        return Posterior(runs, self.constants[world, task] / 100)


def list_places(mini, paper):
    """(world, task, N) for these N of each world."""
    for world, sizes in (("mini", mini), ("paper", paper)):
        yield from itertools.product([world], PAPER_TASKS, sizes)


def measure_error(pairs):
    """(mean absolute error, share inside the band, mean width) of [(scores, Run)], in points."""
    bands = [(band(scores), 100 * run.score) for scores, run in pairs]
    off = [abs(b[1] - truth) for b, truth in bands]
    inside = [b[0] <= truth <= b[2] for b, truth in bands]
    return tuple(statistics.mean(v) for v in (off, inside, [b[2] - b[0] for b, _ in bands]))


def check_labels(measured):
    """Ann. beyond the pilot, by how far; each (task, N) counts once a horizon."""
    found = defaultdict(list)
    for world, task, n in list_places((50, 100, 500), (500, 1000, 2000, 5000, 10000)):
        if pilot := measured.pick_students(world, task, n):
            posterior = measured.make_posterior(world, task, pilot)
            students, most = measured.select(world, task, "small"), pilot[-1].labels
            beyond = [(run.labels / most, run) for run in students]
            for low, high, name in HORIZONS:
                if runs := [run for far, run in beyond if low <= far < high]:
                    pairs = [(posterior.ann(run.labels), run) for run in runs]
                    found["labels", world, name].append(measure_error(pairs))
    return found


def check_rows(measured):
    """Dist. at the pilot's N on more rows, by level of pilot."""
    found = defaultdict(list)
    for world, task, n in list_places((10, 50, 100, 500, 1000), (100, 1000, 5000, 10000)):
        beyond = measured.select(world, task, "dist", n)[2:]
        for level, runs in measured.make_pilots(world, task, n).items() if beyond else ():
            if level != "P0":
                posterior = measured.make_posterior(world, task, runs)
                pairs = [(posterior.dist(n, run.unlabeled), run) for run in beyond]
                found["rows", world, level].append(measure_error(pairs))
    return found


def interpolate(points):
    """Scores at counts between those of {count: score}, straight in the log of the count."""
    known = sorted(points)
    scores = [points[count] for count in known]
    return lambda count: float(np.interp(math.log(count), np.log(known), scores))


def price_arms(world, task, n):
    """Dollars of (a label, the teacher on n, a distilled row) in `world`."""
    unit, terms = DIVIDE[world], get_terms(task)
    teacher = price_distilling(terms, n * unit, 0) / unit
    row = count_distill_hours(terms, n * unit) * terms.usd_per_gpu_hour
    return float(terms.usd_per_label), float(teacher), float(row)


def list_cells(measured):
    """Cells at other prices: (world, task, N, labels, Ann., rows, Dist.)."""
    for world, task, n in list_places((100, 500, 1000), (100, 1000, 5000, 10000)):
        students = measured.select(world, task, "small")
        x = [run.labels for run in students]  # scores rise in labels
        fit = IsotonicRegression().fit_transform(np.log(x), [100 * r.score for r in students])
        rows = {r.unlabeled: 100 * r.score for r in measured.select(world, task, "dist", n)}
        if len(rows) < 3:
            continue
        ann, dist = interpolate(dict(zip(x, fit, strict=True))), interpolate(rows)
        label, teacher, row = price_arms(world, task, n)
        for by_label, by_gpu in itertools.product(LABEL_PRICES, GPU_PRICES):
            for budget in (usd / DIVIDE[world] for usd in (50, 100, 200, 500, 1000)):
                labels = int(n + budget // (label * by_label))
                u = int((budget - teacher * by_gpu) // (row * by_gpu))
                if labels <= max(x) * 1.05 and u >= min(rows) * 0.7:
                    u = min(u, max(rows))
                    yield world, task, n, labels, ann(labels), u, dist(max(u, min(rows)))


def judge_cells(measured, cells):
    """{(world, level): [(P(Dist. > Ann.), Ann., Dist.)]} of the cells that no pilot has seen."""
    found = defaultdict(list)
    for world, task, n, labels, ann, rows, dist in cells:
        pilots = measured.make_pilots(world, task, n)
        seen = [run.unlabeled for run in pilots.get("P4", ()) if run.strategy == "dist"]
        if not seen or rows in seen:
            continue  # the same cells for every level
        for level in LEVELS:
            posterior = measured.make_posterior(world, task, pilots[level])
            p = share_above(posterior.dist(n, rows, 0), posterior.ann(labels, 0))
            found[world, level].append((p, ann, dist))
        found[world, "always Dist."].append((1.0, ann, dist))
    return found


def summarise_winners(judged):
    """(cells decided, right, told, right if told, points lost) of [(p, ann, dist)]."""
    decided = [(p, d > a) for p, a, d in judged if abs(d - a) >= TIE]
    told = [((p > 0.5) == won) for p, won in decided if not 0.2 < p < 0.8]
    lost = statistics.mean(max(a, d) - (d if p > 0.5 else a) for p, a, d in judged)
    right = statistics.mean((p > 0.5) == won for p, won in decided)
    return len(decided), right, len(told) / len(decided), statistics.mean(told or [0]), lost


def check_calibration(judged):
    """[(low, high, cells, mean P, share of Dist. wins)] of the decided cells, by P."""
    decided = [(p, d > a) for cells in judged for p, a, d in cells if abs(d - a) >= TIE]
    for low, high in itertools.pairwise((0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.01)):
        cells = [cell for cell in decided if low <= cell[0] < high]
        if cells:
            means = (statistics.mean(v) for v in zip(*cells, strict=True))
            yield low, min(high, 1), len(cells), *means


def list_table2():
    """{(task, N): [(budget, Dist. - Ann.)]} of the paper's Table 2, where a budget buys rows."""
    keys, gaps = ("task", "labels", "budget_usd", "strategy"), defaultdict(list)
    rows = [row for row in load_scores() if row["table"] == 2 and row["budget_usd"]]
    scores = {tuple(row[key] for key in keys): row["score"] for row in rows}
    for (task, n, budget, arm), score in scores.items():
        if arm == "dist" and score is not None:
            gaps[task, n].append((budget, score - scores[task, n, budget, "small"]))
    return gaps


def check_first_lead(measured, level):
    """[whether the 80% interval of the first budget at which Dist. leads meets what Table 2 shows].

    The table shows a bracket: from the teacher's price, or the last budget lost, to the first won.
    """
    for (task, n), gaps in list_table2().items():
        lost = [budget for budget, gap in gaps if gap <= 0]
        won = [budget for budget, gap in gaps if gap > 0]
        most = max(run.unlabeled for run in measured.select("paper", task, "dist", n))
        market = Market(get_terms(task), n, most, load_task(task).rows["train"])
        low = max([float(market.price_teacher(n)), *lost])
        points = measured.make_pilots("paper", task, n)[level]
        posterior = measured.make_posterior("paper", task, points)
        first, _, last = find_turns(posterior, market, 5, 20_000, 120)["first"]
        yield first <= min(won, default=math.inf) and last >= low


def list_options(measured, world, task, n):
    """[(dollars beside n labels, Run)] of all that was measured from n labels on, as priced."""
    for run in measured.select(world, task, "small") + measured.select(world, task, "dist"):
        if run.labels >= n:
            label, teacher, row = price_arms(world, task, run.labels)
            distilling = (teacher + run.unlabeled * row) * (run.strategy == "dist")
            yield run.labels * label + distilling, run


def check_split(measured, world, n):
    """Points that the advised split of each budget loses to the best measured one."""
    for task in PAPER_TASKS:
        pilots = measured.make_pilots(world, task, n)
        options = sorted(list_options(measured, world, task, n))
        if "P2" not in pilots or len(options) < 3:
            continue
        posterior = measured.make_posterior(world, task, pilots["P2"])
        arms = {"small": "ann", "dist": "dist"}
        expected = [statistics.mean(posterior.score(arms[r.strategy], r[1:3])) for _, r in options]
        for budget in np.geomspace(options[2][0], options[-1][0] * 1.01, 12):
            can = [i for i, (usd, _) in enumerate(options) if usd <= budget]
            chosen = max(can, key=expected.__getitem__)
            yield 100 * (max(options[i][1].score for i in can) - options[chosen][1].score)


def list_results(measured):
    """Rows of the CSV: (test, world, case, measure, value, cases, its bounds or None)."""
    for (test, world, case), errors in {**check_labels(measured), **check_rows(measured)}.items():
        error, inside, width = (statistics.mean(v) for v in zip(*errors, strict=True))
        count, most = len(errors), MOST[test, world].get(case)
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
    judged = judge_cells(measured, list_cells(measured))
    least = {("paper", "P3"): (0.8, 0.55, 0.9), ("mini", "P3"): (0.97, None, None)}
    for key, cells in judged.items():
        count, *found = summarise_winners(cells)
        bounds = [each and (each, math.inf) for each in least.get(key, [None] * 3)]
        bounds.append((-math.inf, 1.1) if key == ("paper", "P3") else None)
        names = ("winner right", "told", "right if told", "points lost")
        for name, value, bound in zip(names, found, bounds, strict=True):
            yield "winner", *key, name, value, count, bound
    for low, high, count, p, share in check_calibration([judged[w, "P3"] for w in DIVIDE]):
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
    for *row, value, cases, bounds in list_results(Measured(args.results)):
        kept = [show_bounds(*bounds), bounds[0] <= value <= bounds[1]] if bounds else ["", ""]
        rows.append([*row, f"{value:.3f}", cases, *kept])
        print(*rows[-1], sep="\t", flush=True)
    with open(args.output, "w", encoding="utf-8", newline="") as file:
        heads = "test world case measure value cases bound kept".split()
        csv.writer(file).writerows([heads, *rows])
    missed = [row for row in rows if row[-1] is False]
    print(f"{len(missed)} of {sum(row[-1] != '' for row in rows)} bounds missed")


if __name__ == "__main__":
    run_cli(main)
