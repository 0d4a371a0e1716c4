"""The ledger: dollars of what finished runs used, each at one list of prices.

Reads:  nothing; it prices the Records of data/costs/runs.py
Writes: nothing
Paper:  sections 2.4 and 2.5, Tables 1 and 6
"""

from fractions import Fraction

from data.costs.prices import (
    match_gpu,
    name_llm,
    price_gpu_hour,
    price_label,
    price_tokens,
    show_price,
)
from data.costs.runs import RUN_NAME, parse_run
from data.files import UserError


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

    def look_up(self, find, *row):
        """find(), or None and a note of the `row` (item, name, unit) that prices.csv lacks."""
        try:
            return find()
        except UserError:
            line = ",".join((self.which, *row, "USD,,SOURCE,YEAR"))
            self.notes[f"no price of {row[1]}, so dollars are –; add to prices.csv: {line}"] = None
            return None

    def price_hours(self, record, hours):
        if self.usd_per_hour is not None:
            return hours * self.usd_per_hour
        kind = match_gpu(self.prices, record.gpu) if record.gpu else self.gpu
        if kind is None:
            return None
        found = self.look_up(
            lambda: price_gpu_hour(self.prices, kind, self.which), "gpu", kind, "hour"
        )
        if found is None:
            return None
        self.notes[f"{self.which}: an hour of {kind} is {show_price(found[0])} ({found[1]})"] = None
        return hours * found[0]

    def price_labels(self, record):
        task, entry = record.task, self.tasks.get(record.task, {})
        usd = self.look_up(
            lambda: price_label(self.prices, task, entry, self.which), "label", task, "label"
        )
        return None if usd is None else record.labels * usd

    def price_llm(self, record):
        if not any(record.llm_tokens.values()):
            return Fraction(0)
        model = self.llm_model or record.llm_model or name_llm(self.which)
        usd = self.look_up(
            lambda: price_tokens(self.prices, model, self.which), "tokens-in", model, "1M tokens"
        )
        if usd is None:
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
        parts, missing = [(record, record.hours + record.pass_hours)], False
        for name in parse_run(record.run).needs if RUN_NAME.fullmatch(record.run) else ():
            needed = others.get((record.world, record.task, name))
            if needed:
                parts.append((needed, needed.hours + needed.pass_hours))
            else:
                self.notes[f"{record.run}: no price, as {name} is not there"] = missing = True
        bill = self.sum_up(self.price_labels(record), self.price_llm(record), parts)
        return {**bill, "compute_usd": None, "usd": None} if missing else bill

    def price_group(self, records):
        """Several runs, nothing paid twice.

        Labels of a seed are nested samples, so the largest N of each task and seed buys them
        all, an LLM's likewise; a teacher's pass is made once, for the student with most rows.
        """
        most, asked, passes = {}, {}, {}
        for record in records:
            key = (record.world, record.task, record.seed)
            most[key] = max(most.get(key, record), record, key=lambda each: each.labels)
            asked.setdefault(key, []).append(self.price_llm(record))
            needs = parse_run(record.run).needs if RUN_NAME.fullmatch(record.run) else ()
            key += (needs or record.run,)
            passes[key] = max(passes.get(key, record), record, key=lambda each: each.pass_hours)
        labels = add_up(map(self.price_labels, most.values()))
        llm = add_up(None if None in usd else max(usd) for usd in asked.values())
        parts = [(r, r.hours) for r in records] + [(r, r.pass_hours) for r in passes.values()]
        bill = self.sum_up(labels, llm, parts)
        return {"hours": sum((hours for _, hours in parts), Fraction(0)), **bill}
