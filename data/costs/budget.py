"""What a budget buys: from a task's rates and prices to labels or distillation.

Reads:  data/prices.csv; with measured rates the run folders
Paper:  sections 2.4, 2.5 and 5, Tables 1, 2, 4, 6 and 11, appendices A and E
"""

import bisect
import math
from fractions import Fraction
from typing import NamedTuple

from data.costs.memory import complete_task
from data.costs.prices import (
    compare_speeds,
    list_gpus,
    load_prices,
    name_llm,
    price_gpu_hour,
    price_label,
    price_tokens,
    show_price,
)
from data.costs.runs import measure_rates
from data.files import UserError, parse_price


class Terms(NamedTuple):
    """What things cost for one task: exact dollars, and hours of one kind of GPU."""

    task: str
    rates: str  # paper or measured
    usd_per_label: Fraction
    usd_per_llm_label: Fraction  # None where not known
    usd_per_token: Fraction  # of the LLM's input
    gpu: str
    usd_per_gpu_hour: Fraction
    teacher_hours: dict  # labels -> GPU-hours that fine-tune the teacher on them
    distill_hours: dict  # labels of the teacher -> GPU-hours for one unlabeled example
    notes: tuple = ()


def price_llm_label(task, usd):
    """Dollars of one LLM label at token prices `usd`; None where its tokens aren't known."""
    if (tokens := task.llm_tokens_per_label) is None:
        return None
    # The paper counts prompt and answer together; the answer is about as long as a target.
    answer = min(tokens, task.mean_tokens.get("target", Fraction(0)))
    return (tokens - answer) * usd["in"] + answer * usd["out"]


def choose_list(task, which=None):
    """The list of prices that a task pays: `which`, else the paper's, today's for one's own."""
    return which or ("today" if task.own else "paper")


def make_terms(task, prices, which=None, rates="paper", runs=None, **asked):
    """The Terms of a Task: rates of the paper, or "measured" in the folder `runs`, at the
    prices of list `which`, by default that of choose_list().

    What is `asked` overrides the price list: gpu, gpu_usd_per_hour, gpu_speed, usd_per_label,
    usd_per_1k_tokens and llm_model, as the command-line flags of these names.
    """
    which, gpu, speed = choose_list(task, which), asked.get("gpu"), asked.get("gpu_speed")
    gpu = next((known for known in list_gpus(prices) if known.lower() == str(gpu).lower()), gpu)

    def given(name):  # a price given by flag comes first
        price, flag = asked.get(name), f"--{name.replace('_', '-')}"
        return None if price is None else parse_price(price, flag)

    label = given("usd_per_label") or price_label(prices, task.name, task, which)
    model = asked.get("llm_model") or name_llm(which)
    if tokens := given("usd_per_1k_tokens"):
        tokens = dict.fromkeys(("in", "out"), tokens / 1000)
    else:
        tokens = price_tokens(prices, model, which)
    for kind in ("in", "out"):
        parse_price(tokens[kind], f"tokens-{kind} of {model}")
    hour, how = given("gpu_usd_per_hour"), "as given"
    if rates == "measured":
        priced = hour is not None
        kind, teacher, distill, told = measure_rates(task.name, runs, prices, gpu, speed, priced)
    else:
        kind, teacher, distill, told = move_rates(task, prices, gpu, speed)
    if hour is None:
        hour, how = price_gpu_hour(prices, kind, which, derive=which == "today")
        hour = parse_price(hour, f"price of an hour of {kind}")
    notes = (*task.estimates, *told, f"an hour of {kind} is {show_price(hour)} ({how})")
    llm = price_llm_label(task, tokens)
    return Terms(task.name, rates, label, llm, tokens["in"], kind, hour, teacher, distill, notes)


def move_rates(task, prices, gpu, gpu_speed):
    """(GPU, labels -> teacher hours, labels -> hours of one row, notes): the entry's hours, as
    hours of `gpu` where one is named."""
    kind, teacher, distill = task.gpu, task.teacher_hours, task.distill_hours
    if not gpu or gpu == kind:
        if gpu_speed is not None:  # would change nothing
            raise UserError(f"--gpu-speed: name its GPU by --gpu, another one than {kind}")
        return kind, teacher, distill, []
    factor = compare_speeds(prices, kind, gpu, gpu_speed)
    moved = ({n: hours * factor for n, hours in table.items()} for table in (teacher, distill))
    return gpu, *moved, [f"one hour of {gpu} does the work of {float(1 / factor):g} h of {kind}"]


def read_terms(task, args, rows=None):
    """(the Task with what its entry lacks by arithmetic, its Terms) that the flags of costs.py
    describe; rows: as complete_task() has them."""
    scale, measured = getattr(args, "scale", "paper"), args.rates == "measured"
    if args.runs and not measured and args.command != "advise":  # whose pilot they are
        raise UserError(f"--runs {args.runs}: not read without --rates measured; pass both")
    task = complete_task(task, scale, rows, args.gpu, measured)
    words = "rates runs gpu gpu_usd_per_hour gpu_speed usd_per_label usd_per_1k_tokens llm_model"
    asked = {word: getattr(args, word) for word in words.split()}
    return task, make_terms(task, load_prices(args.prices), args.price_list, **asked)


def count_teacher_hours(terms, labels):
    """GPU-hours that fine-tune the teacher on `labels`.

    Between two known counts they are on the straight line, beyond the last they grow with the
    labels, below the first they stay, as loading a large model costs the same for few labels.
    """
    table = terms.teacher_hours
    below = max((n for n in table if n <= labels), default=0)
    above = min((n for n in table if n > labels), default=0)
    if not below:
        return table[above]
    if not above:
        return table[below] * Fraction(labels, below)
    return table[below] + (table[above] - table[below]) * Fraction(labels - below, above - below)


def count_distill_hours(terms, labels):
    """GPU-hours for one unlabeled example with a teacher of `labels`: the known count below
    (the paper has two rates for nq, up to 1K labels and from 5K)."""
    table = terms.distill_hours
    return table[max((n for n in table if n <= labels), default=min(table))]


def price_distilling(terms, labels, unlabeled):
    """Dollars for the teacher on `labels` and the distillation of `unlabeled` examples."""
    if not (terms.teacher_hours and terms.distill_hours):
        raise UserError(
            f"task {terms.task!r}: no GPU rates; give its entry the fields 'teacher_gpu_hours' and "
            "'distill_gpu_hours_per_100k', or pass --rates measured --runs DIR"
        )
    hours = count_teacher_hours(terms, labels) + unlabeled * count_distill_hours(terms, labels)
    return hours * terms.usd_per_gpu_hour


def mix(terms, labels, unlabeled, budget):
    """All `unlabeled` rows distilled and labels for the rest of `budget`: the most labels whose
    teacher, trained on them too, is still paid; None where the rows alone cost more."""

    def price(extra):  # rises: a teacher on more labels takes more hours
        return extra * terms.usd_per_label + price_distilling(terms, labels + extra, unlabeled)

    counts = range(math.floor(budget / terms.usd_per_label) + 1)
    if (extra := bisect.bisect_right(counts, budget, key=price) - 1) < 0:
        return None
    distill = price_distilling(terms, labels + extra, unlabeled)
    bought = {"unlabeled": unlabeled, "extra_labels": extra, "distill_usd": distill}
    return {**bought, "usd": price(extra)}


def plan(terms, labels, budget, most=None):
    """What `budget` dollars buy beside `labels` labels, under each strategy (Tables 2 and 11).

    `most` unlabeled rows exist; a budget for more is "mixed": all of them and labels for the rest.
    Dollars are Fractions. `distill` is None where nothing is left after the teacher, `llm` where
    no price of an LLM label is known. `gpu_hours` are rounded up, as the tables print them.
    """
    left = budget - price_distilling(terms, labels, 0)
    each = count_distill_hours(terms, labels) * terms.usd_per_gpu_hour
    if not each:
        raise UserError(f"task {terms.task!r}: distilling takes 0 hours; correct its rate")
    extra, unlabeled = math.floor(budget / terms.usd_per_label), math.floor(left / each)
    distill = llm = mixed = None
    if most is not None and unlabeled >= most:
        unlabeled, mixed = most, mix(terms, labels, most, budget)
    if unlabeled > 0:
        usd = price_distilling(terms, labels, unlabeled)
        hours = (usd if mixed else budget) / terms.usd_per_gpu_hour  # mixed needs not all of it
        distill = {"teacher_gpu_hours": count_teacher_hours(terms, labels)}
        distill |= {"gpu_hours": math.ceil(hours), "unlabeled": unlabeled, "usd": usd}
    if (usd := terms.usd_per_llm_label) is not None:
        count = math.floor(budget / usd)
        llm = {"extra_labels": count, "usd_per_label": usd, "usd": count * usd}
    notes, known = list(terms.notes), ", ".join(f"{int(n):,}" for n in terms.teacher_hours)
    if not {0, labels} & terms.teacher_hours.keys():  # 0: one number, for any labels
        notes.append(f"the teacher's hours at N={labels:,} are estimated from those at {known}")
    result = {"task": terms.task, "labels": labels, "initial_usd": labels * terms.usd_per_label}
    bought = {"extra_labels": extra, "usd": extra * terms.usd_per_label}
    result |= {"budget_usd": budget, "annotate": bought, "distill": distill, "mixed": mixed}
    result |= {"llm": llm, "rates": terms.rates, "gpu": terms.gpu}
    result["gpu_usd_per_hour"] = terms.usd_per_gpu_hour
    return {**result, "notes": notes}


def count_llm_labels(task, usd, prices):
    """{how it is paid: labels that `usd` buy of an LLM}, at the paper's prices and at today's.

    A UserError where no tokens per label are known. Today's batches are answered within a day.
    """
    half, found = next((price.ratio for price in prices if price.item == "batch"), Fraction(1)), {}
    for which in ("paper", "today"):
        each = make_terms(task, prices, which).usd_per_llm_label
        if each is None:
            raise UserError(f"task {task.name!r}: no field 'llm_tokens_per_label' in its entry")
        found[f"{name_llm(which)}, {which}"] = math.floor(usd / each)
    found[f"{name_llm('today')}, today in batches"] = math.floor(usd / (each * half))
    return found
