"""The ledger: dollars of what finished runs used, at one list of prices, and the report of them.

Reads:  training.json, metrics.json and annotation.json of run folders
Paper:  sections 2.4 and 2.5, Tables 1 and 6
"""

import contextlib
from fractions import Fraction
from pathlib import Path

from data.costs.grid import TABLES, grid
from data.costs.prices import (
    match_gpu,
    name_llm,
    price_gpu_hour,
    price_label,
    price_tokens,
    show_price,
    show_usd,
)
from data.costs.runs import read_llm_use, read_runs
from data.files import DATA, UserError, parse_amount, read_json

REPORT_NOTES = (
    "Model: dollars of its labels, its own hours and those of the runs it needs",
    "totals pay nothing twice: labels once a task and seed, a teacher's pass once",
    "hours of evaluation are listed and not priced, as in the paper",
)


def add_up(amounts):
    """The sum of dollars; None where one of them has no price."""
    amounts = list(amounts)
    return None if None in amounts else sum(amounts, Fraction(0))


class Ledger:
    """Prices Records by list `which`. What has no price (an hour on a CPU, a card or a model that
    the list lacks) is None dollars, never an error: `notes` names it with the row to add."""

    def __init__(self, prices, tasks, which, gpu=None, gpu_usd_per_hour=None, llm_model=None):
        self.prices, self.tasks, self.which, self.gpu = prices, tasks, which, gpu
        self.usd_per_hour, self.llm_model = gpu_usd_per_hour, llm_model
        self.notes = {}  # in order, each once

    def look_up(self, item, unit, find, name, *more):
        """find() of a name, or None and a note of the row that prices.csv lacks."""
        try:
            return find(self.prices, name, *more, which=self.which)
        except UserError:
            which = "paper" if item == "label" else self.which  # either one prices labels
            how = f"add to prices.csv: {which},{item},{name},{unit},USD,,SOURCE,YEAR"
            if item == "label":
                how = f"of a task of one's own --task {name}=FILE.json tells it; else {how}"
            self.notes[f"no price of {name}, so dollars are –; {how}"] = None
            return None

    def price_hours(self, record, hours):
        if self.usd_per_hour is not None:
            return hours * self.usd_per_hour
        kind = match_gpu(self.prices, record.gpu) if record.gpu else self.gpu
        if not (found := kind and self.look_up("gpu", "hour", price_gpu_hour, kind)):
            return None
        self.notes[f"{self.which}: an hour of {kind} is {show_price(found[0])} ({found[1]})"] = None
        return hours * found[0]

    def price_labels(self, record):
        task = self.tasks.get(record.task)
        usd = self.look_up("label", "label", price_label, record.task, task)
        return None if usd is None else record.labels * usd

    def price_llm(self, record):
        if not any(record.llm_tokens.values()):
            return Fraction(0)
        model = self.llm_model or record.llm_model or name_llm(self.which)
        if not (usd := self.look_up("tokens-in", "1M tokens", price_tokens, model)):
            return None
        self.notes[f"{self.which}: tokens are those of {model}"] = None
        return sum(usd[kind] * count for kind, count in record.llm_tokens.items())

    def sum_up(self, labels_usd, llm_usd, parts):
        """The four amounts of a bill; `parts` are (Record, hours)."""
        compute = add_up(self.price_hours(*part) for part in parts)
        bill = {"labels_usd": labels_usd, "llm_usd": llm_usd, "compute_usd": compute}
        return {**bill, "usd": add_up(bill.values())}

    def price_model(self, record, others):
        """One compact model: its labels, its own hours and those of the runs it needs."""
        needed = {name: others.get((record.world, record.task, name)) for name in record.needs}
        missing = [name for name, there in needed.items() if there is None]
        parts = [record, *filter(None, needed.values())]
        parts = [(each, each.hours + each.pass_hours) for each in parts]
        bill = self.sum_up(self.price_labels(record), self.price_llm(record), parts)
        for name in missing:
            self.notes[f"{record.run}: no price, as {name} is not there"] = None
        return {**bill, "compute_usd": None, "usd": None} if missing else bill

    def price_group(self, records):
        """Several runs, nothing paid twice.

        Labels of a seed are nested samples, so the largest N of each task and seed buys them
        all, an LLM's likewise; a teacher's pass is made once, for the student with most rows (and
        once more for encoders, which learn from scores of the classes).
        """
        most, asked, passes = {}, {}, {}
        for record in records:
            key = (Path(record.world).name, record.task, record.seed)  # a sweep has the same labels
            most[key] = max(most.get(key, record), record, key=lambda each: each.labels)
            asked.setdefault(key, []).append(self.price_llm(record))
            key = (record.world, record.task, record.needs or record.run, bool(record.encoder))
            passes[key] = max(passes.get(key, record), record, key=lambda each: each.pass_hours)
        labels = add_up(map(self.price_labels, most.values()))
        llm = add_up(None if None in usd else max(usd) for usd in asked.values())
        parts = [(r, r.hours) for r in records] + [(r, r.pass_hours) for r in passes.values()]
        bill = self.sum_up(labels, llm, parts)
        return {"hours": sum((hours for _, hours in parts), Fraction(0)), **bill}


def group_tables(records, tasks):
    """{"world task table": its Records} of the tables whose runs, at the seeds there, are all
    there."""
    groups, found = {}, {}
    for record in records:
        groups.setdefault((record.world, record.task), {})[record.run] = record
    for (world, task), runs in groups.items():
        seeds = sorted({record.seed for record in runs.values()})
        scale, *own = Path(world).name.split("-")
        place = DATA / "prepared" / Path(world).name  # of DATA's rows; "mini" alone has none
        prepared = place if own and (place / task).exists() else None
        for table in TABLES:
            with contextlib.suppress(UserError, KeyError):  # no such table of it, no such scale
                wanted = grid(table, tasks[task], scale, seeds, prepared=prepared)
                names = [run.name for run in wanted if run.strategy != "prompted"]
                found[f"{world} {task} {table}"] = [runs[name] for name in names]
    return found


def note_answers(folder):
    """What an LLM's own answers to test and dev rows cost as they were bought; [] without any."""
    paths = sorted(Path(folder).rglob("prompted-*/**/annotation.json"))
    paths = [path for path in paths if read_llm_use(path.parent)[1]]  # none is simulated
    usd = add_up(parse_amount(read_json(path).get("usd"), f"{path}: 'usd'") for path in paths)
    return [f"an LLM's own answers ({show_usd(usd)}, as bought) are in no total"] if paths else []


def report(folder, prices, tasks, gpu=None, **asked):
    """What the runs below `folder` cost: by run, strategy, table and in all, by both lists.

    `tasks` are the Tasks that may occur; `gpu` prices hours on a CPU; `asked`: gpu_usd_per_hour (of
    every hour), llm_model.
    """
    if gpu and asked.get("gpu_usd_per_hour") is None:
        price_gpu_hour(prices, gpu, "paper")  # an unknown name stops here, used or not
    records, lists = read_runs(folder), ("paper", "today")
    tasks = {task.name: task for task in tasks}
    books = {which: Ledger(prices, tasks, which, gpu, **asked) for which in lists}
    others = {(record.world, record.task, record.run): record for record in records}

    def price_groups(groups):
        return {
            name: {"runs": len(group), **{w: books[w].price_group(group) for w in lists}}
            for name, group in groups.items()
        }

    runs, strategies = [], {}
    for record in records:
        strategies.setdefault(record.strategy, []).append(record)
        told = record._asdict()
        told["hours"] += told.pop("pass_hours")
        runs.append({**told, **{w: books[w].price_model(record, others) for w in lists}})
    result = {"runs": runs, "strategies": price_groups(strategies)}
    result["tables"] = price_groups(group_tables(records, tasks))
    result |= price_groups({"total": records})
    notes = list(dict.fromkeys(note for book in books.values() for note in book.notes))
    if any(record.gpu is None for record in records) and not asked.get("gpu_usd_per_hour"):
        said = f"are priced as hours of one {gpu}" if gpu else "have no price (--gpu gives one)"
        notes.append(f"hours on a CPU {said}")
    unknown = [r.run for r in records if r.strategy == "llm" and not any(r.llm_tokens.values())]
    if unknown:
        notes.append(f"no LLM tokens recorded, so none priced: {', '.join(unknown)}")
    return {**result, "notes": [*notes, *note_answers(folder), *REPORT_NOTES]}
