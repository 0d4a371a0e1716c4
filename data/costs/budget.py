"""What a budget buys: a task's entry and a scale, its rates and prices, labels or distillation.

Reads:  data/tasks.json, data/scales.json, data/prices.csv
Writes: nothing
Paper:  sections 2.4, 2.5 and 5, Tables 1, 2, 4, 6 and 11, appendices A and E
"""

import math
from fractions import Fraction
from typing import NamedTuple

from data.costs.prices import (
    PAPER_USD_PER_GPU_HOUR,
    compare_speeds,
    list_gpus,
    name_llm,
    parse_amount,
    parse_count,
    parse_price,
    price_gpu_hour,
    price_label,
    price_tokens,
    show_price,
)
from data.costs.runs import measure_rates
from data.files import DATA, UserError, load_task, read_json

# --- tasks and scales ----------------------------------------------------------------------


class Study(NamedTuple):
    """The counts behind a task's tables, before a scale divides them."""

    labels_n: list
    budgets: list
    few_shot_n: int
    few_shot_budgets: list
    catch_up_usd: list
    figure_usd: dict
    train_rows: int  # None where not known
    unlabeled_rows: int
    own: bool  # a task of the user's: its counts are meant as they stand


def load_scale(name, path=DATA / "scales.json"):
    """One entry of data/scales.json, on top of the one that it is `like`; a UserError lists the
    names where `name` is none."""
    scales = read_json(path)
    if name not in scales:
        raise UserError(f"unknown scale {name!r}; known: {', '.join(scales)} (entries of {path})")
    scale = scales[name]
    return merge(load_scale(scale["like"], path), scale) if "like" in scale else scale


def merge(below, above):
    """`below` with the entries of `above` in it, dicts in dicts likewise."""
    both = {
        key: merge(below[key], value) if isinstance(below.get(key), dict) else value
        for key, value in above.items()
    }
    return {**below, **both}


def tell_scale(name, own):
    """What the counts at scale `name` are, as a note; `own`: those of a task of one's own."""
    if own:
        return f"Scale {name}: labels, dollars and unlabeled rows are as the task's entry has them."
    return f"Scale {name}: {load_scale(name)['title']}."


METRICS = ("entities", "classes", "answers", "paraphrase")  # families of evaluate.py
FIELDS = {  # field of a task entry -> (its type, what it is)
    "title": (str, "a text"),
    "metric": (str, f"one of {', '.join(METRICS)}"),
    "prefix": (str, 'a text such as "wlp: "'),
    "labels": (list, "a list of label names, [] where outputs are free text"),
    "max_source_length": (int, "a number of tokens"),
    "max_target_length": (int, "a number of tokens"),
    "labels_n": (list, "a list of label counts such as [1000, 5000]"),
    "budgets": (list, "a list of dollars such as [100, 200]"),
}


OPTIONAL = (  # further fields of an entry of one's own
    "kind report instruction paper_default_label mean_tokens usd_per_label few_shot_n "
    "few_shot_budgets catch_up_usd figure_usd rows gpu teacher_gpu_hours distill_usd_per_100k "
    "distill_gpu_hours_per_100k llm_tokens_per_label mini paper"
).split()


def check_entry(name, entry):
    """All fields of a task entry in one dict; a UserError names the field at fault.

    An entry of one's own has the tables' fields (labels_n, budgets, ...) beside its title; the
    paper's tasks have them under "paper", as other scales divide them.
    """
    if not isinstance(entry, dict):
        raise UserError(f"task {name!r}: its entry is not an object of fields")
    fields = {**entry.get("paper", {}), **entry}
    for key, (kind, meaning) in FIELDS.items():
        if key not in fields:
            raise UserError(f"task {name!r}: field {key!r} is missing; it is {meaning}")
        value = fields[key]
        if not isinstance(value, kind) or (kind is int and value < 1) or isinstance(value, bool):
            raise UserError(f"task {name!r}: field {key!r} must be {meaning}, not {value!r}")
    for key in ("labels_n", "budgets"):
        if not fields[key]:
            raise UserError(f"task {name!r}: field {key!r} is empty; it is {FIELDS[key][1]}")
    if fields["metric"] not in METRICS:
        raise UserError(f"task {name!r}: field 'metric' must be {FIELDS['metric'][1]}")
    if fields.get("report", "f1") not in ("f1", "accuracy"):
        raise UserError(f"task {name!r}: field 'report' must be accuracy or f1")
    check_labels(name, fields)
    return fields


def check_labels(name, fields):
    """Refuse label names that outputs can't tell apart: case and outer spaces don't count."""
    labels = fields["labels"]
    if not all(isinstance(label, str) and label.strip() == label != "" for label in labels):
        raise UserError(f"task {name!r}: field 'labels' must be texts without spaces around them")
    if len({label.upper() for label in labels}) < len(labels):
        raise UserError(f"task {name!r}: field 'labels' has a label twice (case does not count)")
    least = {"classes": 2, "entities": 1}.get(fields["metric"], 0)
    if len(labels) < least:
        raise UserError(
            f"task {name!r}: field 'labels' needs {least} names or more for {fields['metric']}"
        )


def read_study(name, entry):
    """The Study of a task entry, its counts and dollars checked."""
    fields = check_entry(name, entry)
    where = f"task {name!r}: field"

    def usd(key, default=()):
        return [parse_price(value, f"{where} {key!r}") for value in fields.get(key, default)]

    def rows(split):
        count = (fields.get("rows") or {}).get(split)
        return None if count is None else parse_count(count, f"{where} 'rows' {split!r}", 1)

    return Study(
        [parse_count(n, f"{where} 'labels_n'", 1) for n in fields["labels_n"]],
        usd("budgets"),
        parse_count(fields.get("few_shot_n", 100), f"{where} 'few_shot_n'", 1),
        usd("few_shot_budgets", fields["budgets"]),
        usd("catch_up_usd"),
        {k: parse_price(v, f"{where} {k!r}") for k, v in fields.get("figure_usd", {}).items()},
        rows("train"),
        rows("unlabeled"),
        "labels_n" in entry,
    )


# --- what a budget buys --------------------------------------------------------------------


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


def read_rates(name, fields):
    """The two tables of hours that a task entry states, on the GPU that it names."""

    def table(key, divide):
        what, value = f"task {name!r}: field {key!r}", fields.get(key, {})
        pairs = value.items() if isinstance(value, dict) else [(0, value)]
        hours = {parse_count(n, what): parse_amount(v, what) / divide for n, v in pairs}
        return dict(sorted(hours.items()))

    teacher = table("teacher_gpu_hours", 1)
    if "distill_gpu_hours_per_100k" in fields:
        return teacher, table("distill_gpu_hours_per_100k", 100_000)
    return teacher, table("distill_usd_per_100k", 100_000 * PAPER_USD_PER_GPU_HOUR)


def price_llm_label(name, fields, usd):
    """Dollars of one LLM label at token prices `usd`; None where its tokens aren't known."""
    tokens = fields.get("llm_tokens_per_label")
    if tokens is None:
        return None
    tokens = parse_price(tokens, f"task {name!r}: field 'llm_tokens_per_label'")
    if usd["in"] == usd["out"]:
        return tokens * usd["in"]
    # The paper counts prompt and answer together; the answer is about as long as a target.
    answer = fields.get("mean_tokens", {}).get("target", 0)
    answer = min(tokens, parse_amount(answer, f"task {name!r}: field 'mean_tokens'"))
    return (tokens - answer) * usd["in"] + answer * usd["out"]


def make_terms(name, entry, prices, which="paper", rates="paper", runs=None, **asked):
    """The Terms of task `name`: rates of the paper, or "measured" in the folder `runs`, at the
    prices of list `which`.

    What is `asked` overrides the price list: gpu, gpu_usd_per_hour, gpu_speed, usd_per_label,
    usd_per_1k_tokens and llm_model, as the command-line flags of these names.
    """
    asked = {key: value for key, value in asked.items() if value is not None}
    fields, gpu, notes = check_entry(name, entry), asked.get("gpu"), []
    gpu = next((known for known in list_gpus(prices) if known.lower() == str(gpu).lower()), gpu)
    if "usd_per_label" in asked:
        label = parse_price(asked["usd_per_label"], "--usd-per-label")
    else:
        label = price_label(prices, name, entry, which)
    if "usd_per_1k_tokens" in asked:
        each = parse_price(asked["usd_per_1k_tokens"], "--usd-per-1k-tokens") / 1000
        tokens = {"in": each, "out": each}
    else:
        tokens = price_tokens(prices, asked.get("llm_model") or name_llm(which), which)
    if rates == "measured":
        known = (gpu, asked.get("gpu_speed"), "gpu_usd_per_hour" in asked)
        kind, teacher, distill = measure_rates(name, runs, prices, *known)
        notes.append(f"rates measured in {runs}")
    else:
        kind, (teacher, distill) = fields.get("gpu", "A40"), read_rates(name, fields)
        if gpu and gpu != kind:
            factor = compare_speeds(prices, kind, gpu, asked.get("gpu_speed"))
            teacher = {n: hours * factor for n, hours in teacher.items()}
            distill = {n: hours * factor for n, hours in distill.items()}
            notes.append(f"one hour of {gpu} does the work of {float(1 / factor):g} h of {kind}")
            kind = gpu
    if "gpu_usd_per_hour" in asked:
        hour, how = parse_price(asked["gpu_usd_per_hour"], "--gpu-usd-per-hour"), "as given"
    else:
        hour, how = price_gpu_hour(prices, kind, which, derive=which == "today")
        hour = parse_price(hour, f"price of an hour of {kind}")
    notes.append(f"an hour of {kind} is {show_price(hour)} ({how})")
    llm = price_llm_label(name, fields, tokens)
    return Terms(name, rates, label, llm, tokens["in"], kind, hour, teacher, distill, tuple(notes))


def need_rates(terms, table):
    """`table` of hours, or a UserError that says how to come by one."""
    if table:
        return table
    raise UserError(
        f"task {terms.task!r}: no GPU rates; give its entry the fields 'teacher_gpu_hours' and "
        "'distill_gpu_hours_per_100k', or pass --rates measured --runs DIR"
    )


def count_teacher_hours(terms, labels):
    """GPU-hours that fine-tune the teacher on `labels`.

    Between two known counts they are on the straight line, beyond the last they grow with the
    labels, below the first they stay, as loading a large model costs the same for few labels.
    """
    table = need_rates(terms, terms.teacher_hours)
    below = max((n for n in table if n <= labels), default=0)
    above = min((n for n in table if n > labels), default=0)
    if not below:
        return table[above or 0]
    if not above:
        return table[below] * Fraction(labels, below)
    return table[below] + (table[above] - table[below]) * Fraction(labels - below, above - below)


def count_distill_hours(terms, labels):
    """GPU-hours for one unlabeled example with a teacher of `labels`: the known count below
    (the paper has two rates for nq, up to 1K labels and from 5K)."""
    table = need_rates(terms, terms.distill_hours)
    return table[max((n for n in table if n <= labels), default=min(table))]


def price_distilling(terms, labels, unlabeled):
    """Dollars for the teacher on `labels` and the distillation of `unlabeled` examples."""
    hours = count_teacher_hours(terms, labels) + unlabeled * count_distill_hours(terms, labels)
    return hours * terms.usd_per_gpu_hour


def plan(terms, labels, budget):
    """What `budget` dollars buy beside `labels` labels, under each strategy (Tables 2 and 11).

    Dollars are Fractions. `distill` is None where nothing is left after the teacher, `llm` where
    no price of an LLM label is known. `gpu_hours` are rounded up, as the tables print them.
    """
    left = budget - price_distilling(terms, labels, 0)
    each = count_distill_hours(terms, labels) * terms.usd_per_gpu_hour
    if not each:
        raise UserError(f"task {terms.task!r}: distilling takes 0 hours; correct its rate")
    extra, unlabeled = math.floor(budget / terms.usd_per_label), math.floor(left / each)
    distill = llm = None
    if unlabeled > 0:
        distill = {
            "teacher_gpu_hours": count_teacher_hours(terms, labels),
            "gpu_hours": math.ceil(budget / terms.usd_per_gpu_hour),
            "unlabeled": unlabeled,
            "usd": price_distilling(terms, labels, unlabeled),
        }
    if terms.usd_per_llm_label is not None:
        count, usd = math.floor(budget / terms.usd_per_llm_label), terms.usd_per_llm_label
        llm = {"extra_labels": count, "usd_per_label": usd, "usd": count * usd}
    notes, known = list(terms.notes), ", ".join(f"{n:,}" for n in terms.teacher_hours)
    if labels not in terms.teacher_hours:
        notes.append(f"the teacher's hours at N={labels:,} are estimated from those at {known}")
    return {
        "task": terms.task,
        "labels": labels,
        "initial_usd": labels * terms.usd_per_label,
        "budget_usd": budget,
        "annotate": {"extra_labels": extra, "usd": extra * terms.usd_per_label},
        "distill": distill,
        "llm": llm,
        "rates": terms.rates,
        "gpu": terms.gpu,
        "gpu_usd_per_hour": terms.usd_per_gpu_hour,
        "notes": notes,
    }


def count_llm_labels(task, usd, prices, tasks=DATA / "tasks.json"):
    """{how it is paid: labels that `usd` buy of an LLM}, at the paper's prices and at today's.

    A UserError where no tokens per label are known. Today's batches are answered within a day.
    """
    entry, found = load_task(task, tasks), {}
    half = next((price.ratio for price in prices if price.item == "batch"), Fraction(1))
    for which in ("paper", "today"):
        each = make_terms(task, entry, prices, which).usd_per_llm_label
        if each is None:
            raise UserError(f"task {task!r}: no field 'llm_tokens_per_label' in its entry")
        found[f"{name_llm(which)}, {which}"] = math.floor(usd / each)
    found[f"{name_llm('today')}, today in batches"] = math.floor(usd / (each * half))
    return found
