"""The grid of experiments: the cells of each table and figure, and the runs that fill them.

Reads:  data/tasks.json, data/scales.json, data/prices.csv
Paper:  section 4, Tables 2 to 4 and 9 to 11, Figures 2 to 7, appendix E
"""

import copy
import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.costs.budget import make_terms, plan, price_distilling
from data.costs.flags import find_unit, load_scale
from data.costs.memory import complete_task
from data.costs.prices import load_prices
from data.costs.runs import ENCODERS, make_run, parse_run
from data.files import UserError, need, parse_count, read_json
from data.tasks import PAPER_TASKS

FIGURE_N = (100, 500, 1000, 5000, 10000)  # Figure 2's L; Figures 3 and 7 print none, so theirs too
FIGURE_U = (10_000, 100_000)
# Appendix E: 32 examples a prompt out of 100 labeled rows; Figure 7: answers to 200 test rows. No
# scale divides these: the prompt is the paper's, and a price of a label stands on its length.
LLM_EXAMPLES, LLM_TEST_ROWS, LLM_DEV_ROWS = 100, 200, 100


class Cell(NamedTuple):
    """One cell of a table: what is planned there, and the runs (one per seed) that fill it.

    `runs` maps a strategy to a tuple of Runs, or to None for N/A: the budget doesn't cover it.
    Amounts are the scale's own; those that a cell doesn't have are None.
    """

    task: str
    labels: int
    initial_usd: Fraction
    runs: dict
    notes: tuple = ()
    budget_usd: Fraction = None  # additional dollars; None where the table fixes counts instead
    extra_labels: int = None  # that the dollars buy, of which only so many may exist
    annotate_usd: Fraction = None
    gpu_hours: int = None
    unlabeled: int = None
    wanted: int = None  # unlabeled rows that the dollars buy, of which only so many may exist
    distill_usd: Fraction = None  # the teacher's training in it
    teacher_usd: Fraction = None
    llm_labels: int = None
    llm_usd: Fraction = None


def scale_terms(terms, priced, wanted, unit=1):
    """Terms for models of other sizes, estimated, as the paper prices only Small and XXL, and for a
    `unit`-th of the labels, of which a teacher takes as much less time.

    `priced`, `wanted`: million parameters of (the student, the teacher). Fine-tuning goes with the
    teacher's parameters. A step of the released distillation runs the teacher forward and the
    student forward and back, three times its forward pass.
    """
    fit = Fraction(wanted[1], priced[1] * unit)
    step = Fraction(wanted[1] + 3 * wanted[0], priced[1] + 3 * priced[0])
    teacher, distill = terms.teacher_hours.items(), terms.distill_hours.items()
    return terms._replace(
        teacher_hours={Fraction(n, unit): hours * fit for n, hours in teacher},
        distill_hours={Fraction(n, unit): hours * step for n, hours in distill},
    )


class Layout:
    """Lays out the cells of one task: takes the paper's counts, gives those of a scale.

    `missing` maps a kind of model that the paper has (a size, distilbert, bert) to why this task
    has none at this scale; its runs are left out, and `notes` say so.
    """

    student, teacher = "small", "xxl"  # sizes of the models
    about = ()  # notes of each cell with a budget

    def __init__(self, task, terms, seeds, scale, parameters, llm=False):
        self.task, self.terms, self.seeds, self.llm = task, terms, seeds, llm
        self.train_rows, self.unlabeled_rows = task.rows.get("train"), task.rows.get("unlabeled")
        self.parameters = parameters  # size -> million parameters
        self.missing, self.notes = find_missing(task, scale), {}  # in order, each once
        self.unit = find_unit(task, scale)

    def resize(self, student="small", teacher="xxl"):
        """The same for models of these sizes."""
        other, known = copy.copy(self), self.parameters
        other.student, other.teacher = student, teacher
        if (student, teacher) != ("small", "xxl"):
            priced, asked = (known["small"], known["xxl"]), (known[student], known[teacher])
            other.terms = scale_terms(self.terms, priced, asked)
            other.about = (f"hours of {teacher} => {student} are estimated from parameter counts",)
        return other

    def make_runs(self, strategy, labels, seeds=None, **kind):
        return tuple(make_run(strategy, labels, seed, **kind) for seed in seeds or self.seeds)

    def keep_known(self, kinds):
        """Those of `kinds` that this task has at this scale; a note for each other one."""
        self.notes |= {self.missing[kind]: None for kind in kinds if kind in self.missing}
        return [kind for kind in kinds if kind not in self.missing]

    def cap(self, count, rows, what):
        """(`count`, or the rows there are if those are fewer; a note if so)."""
        limit = count if rows is None else rows // self.unit
        note = (f"{count:,} {what} planned, {limit:,} exist",) if count > limit else ()
        return min(count, limit), note

    def list_labels(self):
        """N of Figures 2, 3 and 7: a task of one's own has its own, none twice."""
        own = sorted({self.task.few_shot_n, *self.task.labels_n})
        return self.keep_distinct(own if self.task.own else FIGURE_N, self.train_rows)

    def keep_distinct(self, counts, rows):
        """`counts` up to the first that takes all `rows` there are, as more would be the same."""
        counts = list(dict.fromkeys(counts))
        whole = [count for count in counts if rows is not None and count >= rows]
        return [count for count in counts if count not in whole[1:]]

    def price_labels(self, count):
        return count * self.terms.usd_per_label

    def at_budget(self, labels, budget):
        """A cell of Table 2: `labels` labels and what `budget` additional dollars buy."""
        cell = self.buy_labels(labels, budget)
        bought = plan(self.terms, cell.labels, cell.budget_usd)
        cell = self.add_distilling(cell, bought["distill"] or {"unlabeled": 0})
        return self.add_llm(cell, bought["llm"]) if self.llm and budget else cell

    def at_budgets(self, counts, budgets):
        """A cell of each count and budget, none twice."""
        counts, budgets = self.keep_distinct(counts, self.train_rows), dict.fromkeys(budgets)
        return [self.at_budget(n, usd) for n in counts for usd in budgets]

    def buy_labels(self, labels, budget):
        """Ann.: a cell of `labels` labels and of those that `budget` additional dollars buy."""
        wanted, usd = labels // self.unit, Fraction(budget) / self.unit
        extra = math.floor(usd / self.terms.usd_per_label)
        n, _ = self.cap(wanted, self.train_rows, "labels")
        total, note = self.cap(wanted + extra, self.train_rows, "labels")
        runs = {"small": self.make_runs("small", total, student=self.student)}
        bought = usd, extra, self.price_labels(extra)
        return Cell(self.task.name, n, self.price_labels(n), runs, (*self.about, *note), *bought)

    def add_distilling(self, cell, bought):
        """Dist.: the teacher on N labels and the rows that what is left of the dollars distils; for
        the paper's tasks, as in Table 2, whole thousands of them."""
        n, wanted = cell.labels, bought["unlabeled"]
        if not self.task.own and self.terms.rates == "paper":
            wanted = wanted * self.unit // 1000 * 1000 // self.unit
        rows, cut = self.cap(wanted, self.unlabeled_rows, "unlabeled rows")
        runs, size = dict.fromkeys(("teacher", "dist")), {"teacher": self.teacher}
        plans = {"teacher_usd": price_distilling(self.terms, n, 0), "notes": (*cell.notes, *cut)}
        if rows:
            runs["teacher"] = self.make_runs("teacher", n, **size)
            runs["dist"] = self.make_runs("dist", n, unlabeled=rows, student=self.student, **size)
            plans |= {"gpu_hours": bought["gpu_hours"], "unlabeled": rows, "wanted": wanted}
            plans["distill_usd"] = price_distilling(self.terms, n, rows)
        return cell._replace(runs={**cell.runs, **runs}, **plans)

    def add_llm(self, cell, bought):
        """LLM: the labels that the dollars buy of one, beside the N of people."""
        if not bought:  # no price of a label is known
            return cell
        count, note = self.cap(bought["extra_labels"], self.unlabeled_rows, "rows for an LLM")
        runs = {**cell.runs, "llm": self.make_runs("llm", cell.labels, llm_labels=count)}
        plans = {"llm_labels": count, "llm_usd": count * bought["usd_per_label"]}
        return cell._replace(runs=runs, notes=(*cell.notes, *note), **plans)

    def at_answers(self, split, most, seeds=None):
        """A cell of an LLM's own answers to `most` rows of test or dev, or those that a task of
        one's own has."""
        rows = min(most, self.task.rows.get(split) or most) if self.task.own else most
        runs = {"prompted": self.make_runs("prompted", LLM_EXAMPLES, seeds, llm_labels=rows)}
        each = self.terms.usd_per_llm_label
        usd = {"llm_labels": rows, "llm_usd": None if each is None else rows * each}
        return Cell(self.task.name, LLM_EXAMPLES, self.price_labels(LLM_EXAMPLES), runs, **usd)

    def at_counts(self, labels, unlabeled, strategies):
        """A cell of fixed counts, as in Table 3: `labels` labels, `unlabeled` rows."""
        n, note = self.cap(labels // self.unit, self.train_rows, "labels")
        rows, cut = self.cap(unlabeled // self.unit, self.unlabeled_rows, "unlabeled rows")
        use = {"dist": rows, "self": rows}
        runs = {each: self.make_runs(each, n, unlabeled=use.get(each, 0)) for each in strategies}
        plans = {"annotate_usd": Fraction(0)} if "small" in strategies else {}
        if rows:
            usd = price_distilling(self.terms, n, rows)
            plans |= {"unlabeled": rows, "distill_usd": usd}
            plans["gpu_hours"] = math.ceil(usd / self.terms.usd_per_gpu_hour)
        if "teacher" in strategies and self.terms.teacher_hours:
            plans["teacher_usd"] = price_distilling(self.terms, n, 0)
        return Cell(self.task.name, n, self.price_labels(n), runs, (*note, *cut), **plans)

    def at_all_labels(self, strategy):
        """A cell of all labeled rows."""
        if self.train_rows is None:
            what = "field 'rows' needs 'train', how many labels exist"
            raise UserError(f"task {self.task.name!r}: {what}")
        return self.at_counts(self.train_rows, 0, (strategy,))


def lay_table4(at):
    """Dist. of 100K rows, Ann. at Table 2's budgets and the paper's larger one, and all labels."""
    n, usd = at.task.labels_n[-1], dict.fromkeys((0, *at.task.budgets, *at.task.catch_up_usd))
    bought = [at.buy_labels(n, each)._replace(notes=()) for each in usd]
    first, whole = at.at_counts(n, 100_000, ("teacher", "dist")), at.at_all_labels("small")
    extra = whole.labels - first.labels
    plans = {"extra_labels": extra, "annotate_usd": at.price_labels(extra)}
    whole = whole._replace(labels=first.labels, initial_usd=first.initial_usd, **plans)
    return [first, *bought, whole]


def lay_table10(at):
    """Encoders on the bought labels, and the smallest of them distilled like Dist."""
    kinds, cells = at.keep_known(ENCODERS), at.at_budgets(at.task.labels_n, at.task.budgets[-1:])
    smallest = next((kind for kind in kinds if f"dist-{kind}" not in at.missing), None)
    for i, cell in enumerate(cells):
        runs = {kind: at.make_runs(kind, cell.runs["small"][0].labels) for kind in kinds}
        runs |= cell.runs
        if smallest:
            rows = {"unlabeled": cell.unlabeled, "student": smallest}
            runs["encoder"] = rows["unlabeled"] and at.make_runs("dist", cell.labels, **rows)
        cells[i] = cell._replace(runs=runs)
    return cells


def lay_fig2(at):
    if at.task.own:  # the runs of Table 2, so that one training gives both
        return at.at_budgets(at.task.labels_n, (0, *at.task.budgets))
    rows = at.keep_distinct(FIGURE_U, at.unlabeled_rows)
    distilled = [at.at_counts(n, u, ("teacher", "dist")) for n in at.list_labels() for u in rows]
    return [*lay_labels(at), *distilled]


def lay_sizes(at, figure, role, sizes):
    """Figures 4 and 5: the `role` (student or teacher) in several sizes."""
    usd = at.task.figure_usd.get(figure, at.task.budgets[-1])
    counts = at.task.few_shot_n, *at.task.labels_n  # those of Tables 11 and 2
    resized = [at.resize(**{role: size}) for size in at.keep_known(sizes)]
    return [cell for each in resized for cell in each.at_budgets(counts, [usd])]


def lay_fig6(at):
    if at.terms.usd_per_llm_label is None:
        raise UserError(f"task {at.terms.task!r}: no field 'llm_tokens_per_label', so no figure 6")
    at.llm, usd = True, at.task.figure_usd.get("fig6", at.task.budgets[-1])
    cells = at.at_budgets((at.task.few_shot_n, *at.task.labels_n), (0, usd))
    none = Cell(at.task.name, 0, Fraction(0), {}, (), cells[1].budget_usd)
    return [*cells, at.add_llm(none, plan(at.terms, 0, none.budget_usd)["llm"])]


def lay_labels(at):
    return [at.at_counts(n, 0, ("small",)) for n in at.list_labels()]


def lay_fig7(at):
    return [*lay_labels(at), at.at_answers("test", LLM_TEST_ROWS)]


def lay_pilot(at):
    """What data/costs/advise.py learns from: students on N/4, N/2 and N (the latter two with three
    seeds), a teacher on N, students distilled on few rows and on four times as many; an LLM's own
    answers to dev rows where it is an arm."""
    n, _ = at.cap(at.task.labels_n[-1] // at.unit, at.train_rows, "labels")
    few = max(1, min(10_000, (at.unlabeled_rows or 10_000 * at.unit) // at.unit) // 10)
    students = {max(1, n // 4): (0,), max(1, n // 2): range(3), n: range(3)}
    groups = [{"small": at.make_runs("small", size, seeds)} for size, seeds in students.items()]
    groups.append({"teacher": at.make_runs("teacher", n, (0,))})
    groups += [{"dist": at.make_runs("dist", n, (0,), unlabeled=u)} for u in (few, 4 * few)]
    cells = [Cell(at.task.name, n, at.price_labels(n), runs) for runs in groups]
    return [*cells, at.at_answers("dev", LLM_DEV_ROWS, (0,))] if at.llm else cells


ALL, SIZED = " ".join(PAPER_TASKS), "wlp multipit_gen"
ARMS = ("small", "teacher", "self", "dist")
TABLES = {  # name -> (its layout, the tasks that the paper shows in it)
    "table2": (lambda at: at.at_budgets(at.task.labels_n, (0, *at.task.budgets)), ALL),
    "table3": (lambda at: [at.at_counts(at.task.labels_n[-1], 100_000, ARMS)], ALL),
    "table4": (lay_table4, ALL),
    "table9": (lambda at: [at.at_all_labels("teacher")], ALL),
    "table10": (lay_table10, "stanceosaurus fever"),
    "table11": (
        lambda at: at.at_budgets([at.task.few_shot_n], (0, *at.task.few_shot_budgets)),
        ALL,
    ),
    "fig2": (lay_fig2, ALL),
    "fig3": (lambda at: at.at_budgets(at.list_labels(), at.task.few_shot_budgets), ALL),
    "fig4": (lambda at: lay_sizes(at, "fig4", "student", ("small", "base", "large")), SIZED),
    "fig5": (lambda at: lay_sizes(at, "fig5", "teacher", ("large", "xl", "xxl")), SIZED),
    "fig6": (lay_fig6, "wlp stanceosaurus"),
    "fig7": (lay_fig7, "wlp stanceosaurus"),
    "pilot": (lay_pilot, ALL),
}
PILOTS = {  # how far a pilot goes -> its strategies
    "students": ("small",),
    "teacher": ("small", "teacher"),
    "distilled": ("small", "teacher", "dist"),
}


def find_missing(task, scale):
    """{kind of model: why there are no runs of it} for one task at one scale."""
    settings, missing = load_scale(scale), {}
    models = {**settings["models"], **task.at(scale, "models")}
    for kind in load_scale("paper")["million_parameters"]:
        if kind not in models:
            missing[kind] = f"no T5 of size {kind} at scale {scale}, so it is left out"
    for kind, name in ENCODERS.items():
        if task.metric != "classes":
            missing[kind] = f"{name} only tells classes, so it is left out"
        elif kind not in models or kind not in settings["flags"]:
            missing[kind] = f"no {name} at scale {scale}, so it is left out"
        if f"dist-{kind}" not in settings["flags"]:
            missing[f"dist-{kind}"] = f"no settings that distil {name} at scale {scale}"
    return {kind: f"{task.title}: {why}" for kind, why in missing.items()}


def parse_seeds(text):
    """The seeds of a flag such as "0 1 2", each once."""
    seeds = tuple(dict.fromkeys(parse_count(seed, "--seeds") for seed in text.split()))
    if not seeds:
        raise UserError("--seeds: no seed given; write for example --seeds '0 1 2'")
    return seeds


def shows(table, name):
    """Whether the paper shows a task in `table`; a task of one's own goes with all six."""
    if table not in TABLES:
        raise UserError(f"unknown table or figure {table!r}; known: {', '.join(TABLES)}")
    shown = TABLES[table][1]
    return name in shown.split() or (shown == ALL and name not in PAPER_TASKS)


def choose_tasks(table, tasks):
    """Those of `tasks` that `table` shows, or if it shows none, all of them."""
    return [task for task in tasks if shows(table, task.name)] or tasks


def read_row_counts(prepared, name):
    """{split: how many rows} of a task in a folder of data/prepare.py."""
    path = Path(prepared) / name / "about.json"
    rows = need(read_json(path), "rows", dict, path)
    found = {split: need(rows, split, int, path) for split in ("train", "unlabeled")}
    return found | {split: rows[split] for split in ("dev", "test") if split in rows}


def cells(table, task, scale="mini", seeds=(0,), terms=None, llm=False, prepared=None, rows=None):
    """The Cells of a table or figure for one Task, in reading order.

    `terms` default to the paper's rates and prices; `llm` adds LLM labels at equal dollars to
    Tables 2 and 11, if it is known how many tokens one takes; `prepared` is a folder of
    data/prepare.py, whose row counts then limit what can be bought, or `rows` has them by split.
    """
    shows(table, task.name)
    if not terms:
        task = complete_task(task, scale, prepared and Path(prepared, task.name, "train.jsonl"))
        terms = make_terms(task, load_prices())
    paper, here = (load_scale(each).get("million_parameters", {}) for each in ("paper", scale))
    notes, sizes = task.estimates, {**paper, **here}
    priced = paper if terms.rates == "paper" and not task.own else sizes
    if sizes != priced:
        notes += (
            f"the teacher has {sizes['xxl']:,}M parameters: its hours and those of distilling are "
            "the paper's for XXL, scaled by parameter counts, not measured",
        )
    unit = find_unit(task, scale)
    if rows := read_row_counts(prepared, task.name) if prepared else rows:
        held = {split: count * unit for split, count in rows.items()}
        task = replace(task, rows={**task.rows, **held})
    models = ((each["small"], each["xxl"]) for each in (priced, sizes))
    # The paper's rates are for the paper's N, measured ones for the N of our runs.
    terms = scale_terms(terms, *models, 1 if terms.rates == "measured" else unit)
    llm = llm and table in ("table2", "table11", "pilot")
    layout = Layout(task, terms, tuple(seeds), scale, sizes, llm)
    first, *others = TABLES[table][0](layout)
    return [first._replace(notes=(*first.notes, *notes, *layout.notes)), *others]


def grid(*args, **options):
    """The Runs behind cells(...), same arguments: each once, after what it needs."""
    groups = (group or () for cell in cells(*args, **options) for group in cell.runs.values())
    every = [(*map(parse_run, run.needs), run) for group in groups for run in group]
    return list(dict.fromkeys(run for chain in every for run in chain))
