"""Dollars for labels, GPU-hours and tokens: what a budget buys, which runs that is, what they cost.

Usage:
    python costs.py plan --task wlp --labels 5000 --budget 100
        Table 2, WLP, N=5K, +$100: 384 labels, or 36 h of teacher and 7,471 unlabeled (54h / 7K)
    python costs.py plan --task wlp --labels 1000 --budget 100 --gpu H100-80GB --json
        the same choice on a GPU of today
    python costs.py convert --task wlp --usd 200
        Appendix E: $200 buys 4,347 labels of GPT-3.5, 769 of people, 107 A40-hours
    python costs.py convert --task wlp --unlabeled 100000 --at-labels 5000
        Table 6: $67.50 for the teacher and $435 for 100K examples
    python costs.py grid --for table2 --task wlp --scale mini --seeds "0 1 2"
        the runs behind a table, each once, what it depends on before it
    python costs.py flags --task nq --scale paper --strategy dist
        Table 8 as flags for distill.py
    python costs.py report runs/
        what the runs of a folder cost, at the paper's prices and at today's
    python costs.py prices
        the price list, with source and date of each row

Reads:  data/prices.csv (edit it, or pass --prices), data/tasks.json, data/scales.json,
        data/paper_scores.csv; report also training.json and metrics.json of each run
Writes: nothing; results go to stdout
Copy:   costs.py and data/ (tasks.json, scales.json, prices.csv, paper_scores.csv)
Paper:  sections 2.4, 2.5 and 5, Tables 1, 2, 4, 6, 8 and 11, appendices A and E
"""

import argparse
import csv
import json
import math
import os
import re
import shlex
import sys
import tempfile
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"


# --- helpers that the other scripts import -------------------------------------------------


class UserError(ValueError):
    """A mistake that the user can mend; its text says what, where and what to do."""


def run_cli(main):
    """Run `main()` as a command: a UserError becomes one `error:` line and exit code 1."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # full disk, no permission, not a folder, ...
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
    sys.exit(1)


def read_json(path):
    """The JSON value in `path`, or a UserError that names the file and the fault."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def read_jsonl(path, keys=("source", "target")):
    """The rows of a JSONL file, each an object that has `keys`; a UserError names file and line."""
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path} line {number}: not JSON ({error.msg})") from None
                missing = [key for key in keys if not isinstance(row, dict) or key not in row]
                if missing:
                    raise UserError(f"{path} line {number}: no {missing[0]!r} in this row")
                rows.append(row)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def write_atomic(path, text):
    """Write `text` to `path` so that a reader sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path, value):
    """Write `value` as JSON, atomically; NaN is refused, as no reader could use it."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load_tasks(path=DATA / "tasks.json"):
    """Every task entry by name, as in data/tasks.json."""
    return read_json(path)


def load_task(name, path=DATA / "tasks.json"):
    """One task entry; a UserError lists the known names where `name` is none of them."""
    tasks = load_tasks(path)
    if name not in tasks:
        raise UserError(f"unknown task {name!r}; known: {', '.join(tasks)} (entries of {path})")
    return tasks[name]


# --- money ---------------------------------------------------------------------------------

# Money is a Fraction of a dollar. Floats lose labels: three dimes buy two labels at $0.10, as
# 0.1 + 0.2 is not 0.3. Decimal mends sums, but what decides a count here are quotients
# ($435 / 100,000 rows, seconds / 3,600, budget / price) and only Fraction keeps those exact, so
# floor and ceil below are never off by one. Rounding happens once, when an amount is printed.

PAPER_USD_PER_GPU_HOUR = Fraction("1.875")  # section 2.5; turns Table 6's dollars into A40-hours
GOOD_AMOUNT = "give a number of 0 or more, such as 100 or 0.26"


def parse_amount(value, what):
    """`value` as an exact Fraction >= 0; `what` names it in the error.

    Text is read digit by digit; a float counts as the shortest decimal that prints the same.
    """
    if isinstance(value, Fraction) and value >= 0:
        return value
    try:
        amount = Decimal(str(value).strip().removeprefix("$"))
    except InvalidOperation:
        raise UserError(f"{what}: {value!r} is not a number; {GOOD_AMOUNT}") from None
    if not amount.is_finite() or amount < 0:
        raise UserError(f"{what}: {value} is not an amount; {GOOD_AMOUNT}")
    if amount.adjusted() > 15 or amount.as_tuple().exponent < -40 or amount.adjusted() < -40:
        raise UserError(f"{what}: {value} is out of range; {GOOD_AMOUNT}")
    return Fraction(amount)


def parse_count(value, what, least=0):
    """`value` as an int >= `least`; `what` names it in the error."""
    text = str(value).strip()
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
        raise UserError(f"{what}: {value!r} is not a whole number of {least} or more")
    return int(text)


def parse_price(value, what):
    """An amount above 0: at a price of 0 a budget would buy without end."""
    price = parse_amount(value, what)
    if not price:
        raise UserError(f"{what}: a price of 0 has no count that a budget buys; give one above 0")
    return price


def show_usd(amount):
    """Dollars and cents, rounded half to even: $1,300.00."""
    return f"${round(amount * 100) / 100:,.2f}"


def show_price(amount):
    """A price with two to six decimals: $0.26, $0.00435."""
    whole, decimals = f"{round(amount * 10**6) / 10**6:,.6f}".split(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def to_json(value):
    """`value` for json.dumps: a Fraction becomes an int where whole, else the nearest float."""
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    if hasattr(value, "_asdict"):
        return to_json(value._asdict())
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    return [to_json(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def show_columns(columns, rows, left=1):
    """Lines of an aligned plain table; the first `left` columns are text, None shows as –."""
    lines = [["–" if cell is None else str(cell) for cell in line] for line in [columns, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    sides = ["<" if i < left else ">" for i in range(len(columns))]
    shown = [
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip()
        for line in lines
    ]
    return [shown[0], "-" * max(map(len, shown)), *shown[1:]]


# --- the price list ------------------------------------------------------------------------


class Price(NamedTuple):
    """A row of the price list.

    `list` is paper (what the paper paid), today (what `report` and --price-list today use) or
    other (kept to compare). `usd` is the price of one `unit`. Rows of speed and batch have a
    `ratio` in place of a price: speed in multiples of the GPU that `unit` names.
    """

    list: str
    item: str
    name: str
    unit: str
    usd: Fraction
    ratio: Fraction
    source: str
    date: str


LISTS = ("paper", "today", "other")
PRICED = {"label", "gpu", "tokens-in", "tokens-out", "tokens-cached"}  # these rows need usd
UNITS = {"label": 1, "hour": 1, "1K tokens": 1000, "1M tokens": 10**6}
DATE = re.compile(r"\d{4}(-\d\d){0,2}(/\d{4}(-\d\d){0,2})?")


def read_price(row, where):
    """One row of the list, checked; a UserError names the line and the column."""
    text = {key: (row.get(key) or "").strip() for key in Price._fields}
    priced = text["item"] in PRICED
    faults = {
        "list": text["list"] not in LISTS and f"must be one of {', '.join(LISTS)}",
        "item": not priced
        and text["item"] not in ("speed", "batch")
        and f"must be one of {', '.join([*sorted(PRICED), 'speed', 'batch'])}",
        "name": not text["name"] and "is empty",
        "unit": priced and text["unit"] not in UNITS and f"must be one of {', '.join(UNITS)}",
        "source": not text["source"] and "is empty: say where the price stands",
        "date": not DATE.fullmatch(text["date"]) and "must look like 2026-11 or 2026-11-05",
    }
    for column, fault in faults.items():
        if fault:
            raise UserError(f"{where}: {column} {text[column]!r} {fault}")
    column = "usd" if priced else "ratio"
    value = parse_amount(text[column], f"{where}: {column}")
    if not priced:
        value = parse_price(value, f"{where}: {column}")
    return Price(**{**text, "usd": None, "ratio": None, column: value})


def load_prices(path=DATA / "prices.csv"):
    """The price list, every row checked: exact amounts, known items and units, no doubles."""
    prices, seen = [], set()
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [key for key in Price._fields if key not in (rows.fieldnames or [])]
            if missing:
                raise UserError(f"{path} line 1: no column {missing[0]!r} in the heading")
            for row in rows:
                where = f"{path} line {rows.line_num}"
                if None in row or None in row.values():
                    raise UserError(f"{where}: not {len(rows.fieldnames)} columns as the heading")
                price = read_price(row, where)
                key = (price.list, price.item, price.name)
                if price.list != "other" and key in seen:
                    raise UserError(f"{where}: a second {' '.join(key)}; mark one of them other")
                seen.add(key)
                prices.append(price)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if len({price.unit for price in prices if price.item == "speed"}) > 1:
        raise UserError(f"{path}: the speed rows name two units; compare all GPUs to one GPU")
    return prices


def find_price(prices, which, item, name):
    """Dollars of one label, hour or token in list `which`, or None where it has no such row."""
    for price in prices:
        if (price.list, price.item, price.name.lower()) == (which, item, name.lower()):
            return price.usd / UNITS[price.unit]
    return None


def find_speed(prices, gpu):
    """(GPU that all speeds refer to, speed of `gpu` in multiples of it); speed None if unknown."""
    base = next((price.unit for price in prices if price.item == "speed"), gpu)
    if gpu.lower() == base.lower():
        return base, Fraction(1)
    speeds = (p.ratio for p in prices if p.item == "speed" and p.name.lower() == gpu.lower())
    return base, next(speeds, None)


def price_gpu_hour(prices, gpu, which):
    """(dollars of an hour of `gpu`, how that was found), from list `which` or the next best.

    In order: its own row; the price of the GPU that speeds refer to times its speed, as the
    paper prices its A40; its row in the other list.
    """
    usd = find_price(prices, which, "gpu", gpu)
    if usd is not None:
        return usd, f"{which}'s row"
    base, speed = find_speed(prices, gpu)
    usd = find_price(prices, which, "gpu", base)
    if speed and usd is not None:
        return usd * speed, f"{float(speed):g} x {which}'s {base}, by the speed row"
    other = "today" if which == "paper" else "paper"
    usd = find_price(prices, other, "gpu", gpu)
    if usd is not None:
        return usd, f"{other}'s row, as {which} has none"
    raise UserError(
        f"no price for an hour of GPU {gpu!r}; known: {', '.join(list_gpus(prices))}; add a row "
        "to the price list or pass --gpu-usd-per-hour"
    )


def list_gpus(prices):
    """Names of the GPUs that the list prices or rates, in its order."""
    return list(dict.fromkeys(p.name for p in prices if p.item in ("gpu", "speed")))


def match_gpu(prices, device):
    """The list's name for a GPU as its driver spells it ("NVIDIA A100-SXM4-40GB"), or None."""
    words = set(re.findall(r"[a-z0-9]+", device.lower()))
    found = [g for g in list_gpus(prices) if words >= set(re.findall(r"[a-z0-9]+", g.lower()))]
    return max(found, key=len, default=None)


def price_tokens(prices, model, which=None):
    """{"in", "out", "cached"}: dollars of one token of `model`; cached input defaults to input.

    `which` list is looked at first, then paper and today.
    """
    for name in filter(None, (which, "paper", "today")):
        usd = {k: find_price(prices, name, f"tokens-{k}", model) for k in ("in", "out", "cached")}
        if usd["in"] is not None and usd["out"] is not None:
            return {**usd, "cached": usd["in"] if usd["cached"] is None else usd["cached"]}
    models = dict.fromkeys(price.name for price in prices if price.item == "tokens-in")
    raise UserError(
        f"no token prices for model {model!r}; known: {', '.join(models)}; add its tokens-in and "
        "tokens-out rows to the price list or pass its price by flag"
    )


def price_label(prices, name, entry, which="paper"):
    """Dollars of one label of task `name`: its entry's usd_per_label, or the list's row."""
    if "usd_per_label" in entry:
        return parse_price(entry["usd_per_label"], f"task {name!r}: field 'usd_per_label'")
    found = (find_price(prices, each, "label", name) for each in (which, "paper", "today"))
    usd = next((usd for usd in found if usd is not None), None)
    if usd is None:
        raise UserError(
            f"task {name!r}: no price of a label; give its entry a field 'usd_per_label', add a "
            f"row to the price list, or pass --usd-per-label"
        )
    return parse_price(usd, f"task {name!r}: price of a label")


# --- tasks and scales ----------------------------------------------------------------------


class Study(NamedTuple):
    """The counts of a task's tables, before `divide_by` makes them fit a scale."""

    labels_n: list
    budgets: list
    few_shot_n: int
    few_shot_budgets: list
    catch_up_usd: list
    train_rows: int
    unlabeled_rows: int
    divide_by: int
    thousands: bool  # unlabeled counts are whole thousands, as Table 2 prints them


def load_scale(name, path=DATA / "scales.json"):
    """One entry of data/scales.json; a UserError lists the names where `name` is none."""
    scales = read_json(path)
    if name not in scales:
        raise UserError(f"unknown scale {name!r}; known: {', '.join(scales)} (entries of {path})")
    return scales[name]


def check_entry(name, entry):
    """The fields of a task entry, those of the paper's tables included; UserError names a fault.

    An entry of one's own has the table's fields (labels_n, budgets, ...) beside its title; an
    entry of the paper has them under "paper", as they are divided at other scales.
    """
    if not isinstance(entry, dict):
        raise UserError(f"task {name!r}: its entry is not an object of fields")
    fields = {**entry.get("paper", {}), **entry}
    kinds = {
        "title": (str, "text"),
        "metric": (str, "the name of a metric of evaluate.py"),
        "prefix": (str, 'text such as "wlp: "'),
        "labels": (list, "a list of label names, [] where outputs are free text"),
        "max_source_length": (int, "a number of tokens"),
        "max_target_length": (int, "a number of tokens"),
        "labels_n": (list, "a list of label counts such as [1000, 5000]"),
        "budgets": (list, "a list of dollars such as [100, 200]"),
    }
    for key, (kind, example) in kinds.items():
        if key not in fields:
            raise UserError(f"task {name!r}: field {key!r} is missing; it is {example}")
        if not isinstance(fields[key], kind) or fields[key] in (0, True):
            raise UserError(f"task {name!r}: field {key!r} must be {example}, not {fields[key]!r}")
    for key in ("labels_n", "budgets"):
        if not fields[key]:
            raise UserError(f"task {name!r}: field {key!r} is empty; it is {kinds[key][1]}")
    return fields


def read_study(name, entry, divide_by=1):
    """The Study of a task entry; only the paper's own counts (under "paper") are divided."""
    fields = check_entry(name, entry)
    own = "labels_n" in entry
    rows = fields.get("rows") or {}

    def amounts(key, default):
        return [parse_price(v, f"task {name!r}: field {key!r}") for v in fields.get(key, default)]

    def count(key):
        known = rows.get(key) is not None
        return parse_count(rows[key], f"task {name!r}: field 'rows' {key!r}", 1) if known else None

    return Study(
        [parse_count(n, f"task {name!r}: field 'labels_n'", 1) for n in fields["labels_n"]],
        amounts("budgets", []),
        parse_count(fields.get("few_shot_n", 100), f"task {name!r}: field 'few_shot_n'", 1),
        amounts("few_shot_budgets", fields["budgets"]),
        amounts("catch_up_usd", []),
        count("train"),
        count("unlabeled"),
        1 if own else divide_by,
        not own,
    )


# --- what a budget buys --------------------------------------------------------------------


class Terms(NamedTuple):
    """What things cost for one task: exact dollars, and hours of one kind of GPU."""

    task: str
    rates: str  # paper or measured
    usd_per_label: Fraction
    usd_per_llm_label: Fraction  # None where no price is known
    usd_per_token: Fraction  # of input; None where no price is known
    gpu: str
    usd_per_gpu_hour: Fraction
    teacher_hours: dict  # labels -> GPU-hours that fine-tune the teacher on them
    distill_hours: dict  # labels of the teacher -> GPU-hours for one unlabeled example
    notes: tuple = ()


def read_rates(name, fields):
    """(labels -> teacher hours, labels -> hours an example) of an entry, on the GPU it names."""
    where = f"task {name!r}: field"

    def table(key, divide):
        value = fields.get(key, {})
        pairs = value.items() if isinstance(value, dict) else [("0", value)]
        hours = {
            parse_count(n, f"{where} {key!r}"): parse_amount(v, f"{where} {key!r}") / divide
            for n, v in pairs
        }
        return dict(sorted(hours.items()))

    teacher = table("teacher_gpu_hours", 1)
    if "distill_gpu_hours_per_100k" in fields:
        return teacher, table("distill_gpu_hours_per_100k", 100_000)
    return teacher, table("distill_usd_per_100k", 100_000 * PAPER_USD_PER_GPU_HOUR)


def price_llm_label(name, fields, prices, which, model, usd_per_1k_tokens):
    """(dollars of one LLM label, dollars of one input token), None where no count is known."""
    tokens = fields.get("llm_tokens_per_label")
    if usd_per_1k_tokens is not None:
        each = parse_price(usd_per_1k_tokens, "--usd-per-1k-tokens") / 1000
        usd = {"in": each, "out": each}
    else:
        usd = price_tokens(prices, model, which)
    if tokens is None:
        return None, usd["in"]
    tokens = parse_price(tokens, f"task {name!r}: field 'llm_tokens_per_label'")
    if usd["in"] == usd["out"]:
        return tokens * usd["in"], usd["in"]
    # The paper counts prompt and answer together; the answer is as long as a target.
    answer = parse_amount(
        fields.get("mean_tokens", {}).get("target", 0), f"task {name!r}: field 'mean_tokens'"
    )
    return (tokens - answer) * usd["in"] + answer * usd["out"], usd["in"]


def make_terms(
    name,
    entry,
    prices,
    which="paper",
    rates="paper",
    runs=None,
    gpu=None,
    gpu_usd_per_hour=None,
    gpu_speed=None,
    usd_per_label=None,
    usd_per_1k_tokens=None,
    llm_model=None,
):
    """The Terms of task `name`: rates of the paper or of the folder `runs`, prices of list
    `which`; every other argument overrides what the list or the entry says."""
    fields = check_entry(name, entry)
    notes = []
    label = price_label(prices, name, entry, which) if usd_per_label is None else None
    label = label or parse_price(usd_per_label, "--usd-per-label")
    model = llm_model or ("text-davinci-003" if which == "paper" else "gpt-4o-mini")
    llm = price_llm_label(name, fields, prices, which, model, usd_per_1k_tokens)
    named_price = gpu_usd_per_hour is not None
    if rates == "measured":
        kind, teacher, distill = measure_rates(name, runs, prices, gpu, named_price)
        notes.append(f"rates measured in {runs}")
    else:
        kind, (teacher, distill) = fields.get("gpu", "A40"), read_rates(name, fields)
        if gpu and gpu.lower() != kind.lower():
            factor = compare_speeds(prices, kind, gpu, gpu_speed)
            teacher = {n: hours * factor for n, hours in teacher.items()}
            distill = {n: hours * factor for n, hours in distill.items()}
            notes.append(f"one hour of {gpu} counts as {float(1 / factor):g} hours of {kind}")
            kind = gpu
    if named_price:
        hour, how = parse_price(gpu_usd_per_hour, "--gpu-usd-per-hour"), "as given"
    else:
        # A GPU asked for by name is priced by a row of its own, of any list, before a derived one.
        lists = (which, "today", "paper")
        direct = [each for each in lists if gpu and find_price(prices, each, "gpu", kind)]
        hour, how = price_gpu_hour(prices, kind, direct[0] if direct else which)
        hour = parse_price(hour, f"price of an hour of {kind}")
    notes.append(f"an hour of {kind} is {show_price(hour)} ({how})")
    return Terms(name, rates, label, *llm, kind, hour, teacher, distill, tuple(notes))


def compare_speeds(prices, kind, gpu, gpu_speed=None):
    """Hours of `gpu` that do the work of one hour of `kind`."""
    base, speed = find_speed(prices, gpu)
    if gpu_speed is not None:
        speed = parse_price(gpu_speed, "--gpu-speed")
    known = find_speed(prices, kind)[1]
    for name, value in ((gpu, speed), (kind, known)):
        if value is None:
            raise UserError(
                f"no speed of GPU {name!r}, so hours of {kind} can't be turned into hours of "
                f"{gpu}; add a speed row (in multiples of {base}) or pass --gpu-speed"
            )
    return known / speed


def read_at(table, labels, terms, what):
    """The value of `table` (labels -> hours) at `labels`.

    Between two of its counts it is on the straight line between them, beyond the last it grows
    with the labels, below the first it stays (start-up and loading cost as much for few labels).
    """
    if not table:
        raise UserError(
            f"task {terms.task!r}: no {what}; give its entry the fields 'teacher_gpu_hours' and "
            "'distill_gpu_hours_per_100k', or pass --rates measured --runs DIR"
        )
    below = max((n for n in table if n <= labels), default=None)
    above = min((n for n in table if n > labels), default=None)
    if below is None:
        return table[above]
    if above is None:
        return table[below] * Fraction(labels, below) if below else table[below]
    return table[below] + (table[above] - table[below]) * Fraction(labels - below, above - below)


def count_teacher_hours(terms, labels):
    """GPU-hours that fine-tune the teacher on `labels`; estimated between the known counts."""
    return read_at(terms.teacher_hours, labels, terms, "hours of the teacher")


def count_distill_hours(terms, labels):
    """GPU-hours for one unlabeled example, with a teacher of `labels`: the nearest count below
    (the paper has two rates for nq, one each side of 5K)."""
    table = terms.distill_hours
    nearest = max((n for n in table if n <= labels), default=min(table, default=0))
    return read_at({nearest: table[nearest]} if table else {}, nearest, terms, "rate of distilling")


def price_distilling(terms, labels, unlabeled):
    """Dollars for the teacher on `labels` and the distillation of `unlabeled` examples."""
    hours = count_teacher_hours(terms, labels) + unlabeled * count_distill_hours(terms, labels)
    return hours * terms.usd_per_gpu_hour


def plan(terms, labels, budget):
    """What `budget` dollars buy beside `labels` labels, under each strategy (Tables 2 and 11).

    Dollars are Fractions; `distill` is None where nothing is left after the teacher, `llm` where
    no price of an LLM label is known. `gpu_hours` are rounded up as in the tables.
    """
    teacher = count_teacher_hours(terms, labels)
    left = budget - teacher * terms.usd_per_gpu_hour
    each = count_distill_hours(terms, labels) * terms.usd_per_gpu_hour
    unlabeled = math.floor(left / each) if left > 0 else 0
    extra = math.floor(budget / terms.usd_per_label)
    distill = llm = None
    if unlabeled > 0:
        distill = {
            "teacher_gpu_hours": teacher,
            "gpu_hours": math.ceil(budget / terms.usd_per_gpu_hour),
            "unlabeled": unlabeled,
            "usd": price_distilling(terms, labels, unlabeled),
        }
    if terms.usd_per_llm_label is not None:
        count = math.floor(budget / terms.usd_per_llm_label)
        llm = {
            "extra_labels": count,
            "usd_per_label": terms.usd_per_llm_label,
            "usd": count * terms.usd_per_llm_label,
        }
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
        "notes": [*terms.notes, *note_estimate(terms, labels)],
    }


def note_estimate(terms, labels):
    """A line that says so where the teacher's hours at `labels` are not a known count."""
    known = ", ".join(f"{n:,}" for n in terms.teacher_hours)
    if labels in terms.teacher_hours:
        return []
    return [f"the teacher's hours at N={labels:,} are estimated from those at {known}"]


# --- the experiment grid -------------------------------------------------------------------


class Run(NamedTuple):
    """One training run; `needs` names the runs that must be done before it."""

    name: str
    strategy: str  # small, teacher, dist, self, llm; distilbert and bert in Table 10
    labels: int
    unlabeled: int
    llm_labels: int
    seed: int
    needs: tuple
    student: str = "small"
    teacher: str = "xxl"


class Cell(NamedTuple):
    """One cell of a table: what is planned there, and the runs (one per seed) that fill it.

    `budget_usd` is the table's additional dollars, None where the table fixes counts instead.
    `runs` maps a strategy to a tuple of Runs, or to None for N/A (the budget doesn't cover it).
    """

    task: str
    labels: int
    budget_usd: Fraction
    initial_usd: Fraction
    extra_labels: int
    annotate_usd: Fraction
    gpu_hours: int
    unlabeled: int
    distill_usd: Fraction
    llm_labels: int
    runs: dict
    notes: tuple = ()


RUN_NAME = re.compile(
    r"(?P<strategy>small|teacher|dist|self|llm|distilbert|bert)(?:-(?P<size>base|large|xl))?"
    r"(?:-from-(?P<teacher>large|xl))?-n(?P<labels>\d+)(?:-u(?P<unlabeled>\d+))?"
    r"(?:-g(?P<llm>\d+))?-s(?P<seed>\d+)"
)


def make_run(strategy, labels, seed, unlabeled=0, llm_labels=0, student="small", teacher="xxl"):
    """A Run with its folder's name, e.g. dist-n1000-u19000-s0; the usual sizes go unnamed."""
    size = teacher if strategy == "teacher" else student
    name = strategy + (f"-{size}" if size not in ("small", "xxl") else "")
    name += f"-from-{teacher}" if strategy == "dist" and teacher != "xxl" else ""
    name += f"-n{labels}" + (f"-u{unlabeled}" if strategy in ("dist", "self") else "")
    name += (f"-g{llm_labels}" if strategy == "llm" else "") + f"-s{seed}"
    needs = ()
    if strategy == "dist":
        needs = (make_run("teacher", labels, seed, teacher=teacher).name,)
    elif strategy == "self":
        needs = (make_run("small", labels, seed, student=student).name,)
    return Run(name, strategy, labels, unlabeled, llm_labels, seed, needs, student, teacher)


def parse_run(name):
    """The Run of a folder's name: the inverse of make_run."""
    match = RUN_NAME.fullmatch(name)
    run = None
    if match:
        strategy, size = match["strategy"], match["size"]
        counts = {key: int(match[key] or 0) for key in ("labels", "seed", "unlabeled", "llm")}
        run = make_run(
            strategy,
            counts["labels"],
            counts["seed"],
            counts["unlabeled"],
            counts["llm"],
            (strategy != "teacher" and size) or "small",
            (size if strategy == "teacher" else match["teacher"]) or "xxl",
        )
    if run is None or run.name != name:
        raise UserError(f"run {name!r}: not a name such as small-n1000-s0 or dist-n1000-u19000-s0")
    return run


class Layout:
    """Lays out cells of one task at one scale: counts in the paper's units in, ours out."""

    def __init__(self, study, terms, seeds, parameters, llm=False):
        self.study, self.terms, self.seeds, self.llm = study, terms, seeds, llm
        self.parameters = parameters  # size -> million parameters
        self.unit = study.divide_by

    def make_runs(self, strategy, labels, **kind):
        return tuple(make_run(strategy, labels, seed, **kind) for seed in self.seeds)

    def cap(self, count, rows, what):
        """(`count`, or the rows there are if fewer; a note if so), both in the scale's units."""
        limit = count if rows is None else rows // self.unit
        if count <= limit:
            return count, ()
        return limit, (f"{count:,} {what} planned, {limit:,} exist",)

    def scale_terms(self, student, teacher):
        """Terms for models of other sizes, estimated: the paper prices only Small and XXL.

        Operations a token: the teacher's fine-tuning goes with its parameters; in every step of
        distilling the released code runs the teacher forward and the student three times that.
        """
        if (student, teacher) == ("small", "xxl"):
            return self.terms, ()
        size = self.parameters
        fit = Fraction(size[teacher], size["xxl"])
        step = Fraction(size[teacher] + 3 * size[student], size["xxl"] + 3 * size["small"])
        terms = self.terms._replace(
            teacher_hours={n: hours * fit for n, hours in self.terms.teacher_hours.items()},
            distill_hours={n: hours * step for n, hours in self.terms.distill_hours.items()},
        )
        return terms, (f"hours of {teacher} => {student} estimated from parameter counts",)

    def plan_unlabeled(self, terms, labels, budget):
        """Unlabeled rows at the scale, 0 where the budget doesn't cover the teacher.

        With the paper's rates N and the dollars are the paper's, its count is rounded down to
        thousands as printed, and all is divided after that; measured rates are of our own runs.
        """
        if terms.rates == "measured":
            bought = plan(terms, labels // self.unit, budget / self.unit)["distill"]
            return bought["unlabeled"] if bought else 0
        bought = plan(terms, labels, budget)["distill"]
        count = bought["unlabeled"] if bought else 0
        return (count // 1000 * 1000 if self.study.thousands else count) // self.unit

    def price_cell(self, terms, labels, unlabeled):
        """Planned dollars at the scale: the teacher's share shrinks with N, rates stay."""
        at = labels // self.unit if terms.rates == "measured" else labels
        teacher = count_teacher_hours(terms, at) / (at // max(1, labels // self.unit) or 1)
        hours = teacher + unlabeled * count_distill_hours(terms, at)
        return hours * terms.usd_per_gpu_hour

    def make_budget_cell(self, labels, budget, also=(), student="small", teacher="xxl"):
        """A cell of Table 2: `labels` labels and what `budget` additional dollars buy."""
        terms, notes = self.scale_terms(student, teacher)
        n, usd = labels // self.unit, Fraction(budget) / self.unit
        extra = math.floor(usd / terms.usd_per_label)
        total, note = self.cap(n + extra, self.study.train_rows, "labels")
        wanted = self.plan_unlabeled(terms, labels, Fraction(budget)) if budget else 0
        unlabeled, cut = self.cap(wanted, self.study.unlabeled_rows, "unlabeled rows")
        size = {"student": student, "teacher": teacher}
        runs = {"small": self.make_runs("small", total, student=student)}
        runs["teacher"] = self.make_runs("teacher", n, teacher=teacher) if unlabeled else None
        runs["dist"] = self.make_runs("dist", n, unlabeled=unlabeled, **size) if unlabeled else None
        llm = None
        if self.llm and terms.usd_per_llm_label is not None and budget:
            llm = math.floor(usd / terms.usd_per_llm_label)
            runs["llm"] = self.make_runs("llm", n, llm_labels=llm)
        runs.update({strategy: self.make_runs(strategy, total) for strategy in also})
        return Cell(
            terms.task,
            n,
            usd,
            n * terms.usd_per_label,
            extra,
            extra * terms.usd_per_label,
            math.ceil(usd / terms.usd_per_gpu_hour) if unlabeled else None,
            unlabeled or None,
            self.price_cell(terms, labels, unlabeled) if unlabeled else None,
            llm,
            runs,
            (*notes, *note, *cut),
        )

    def make_fixed_cell(self, labels, unlabeled, strategies):
        """A cell of fixed counts, as in Table 3: `labels` labels, `unlabeled` rows."""
        n, note = self.cap(labels // self.unit, self.study.train_rows, "labels")
        rows, cut = self.cap(unlabeled // self.unit, self.study.unlabeled_rows, "unlabeled rows")
        runs = {
            strategy: self.make_runs(
                strategy, n, unlabeled=rows if strategy in ("dist", "self") else 0
            )
            for strategy in strategies
        }
        usd = self.price_cell(self.terms, labels, rows) if rows else None
        hours = math.ceil(usd / self.terms.usd_per_gpu_hour) if rows else None
        initial = n * self.terms.usd_per_label
        zero = Fraction(0)
        counts = (None, initial, 0, zero, hours, rows or None, usd, None)
        return Cell(self.terms.task, n, *counts, runs, (*note, *cut))

    def need_train_rows(self):
        if self.study.train_rows is None:
            raise UserError(
                f"task {self.terms.task!r}: field 'rows' has no 'train', the number of labeled "
                "rows there are"
            )
        return self.study.train_rows


FIGURE_N = (100, 500, 1000, 5000, 10000)  # Figure 2's L; Figures 3 and 7 print none, so theirs too
FIGURE_U = (10_000, 100_000)


def lay_table2(at):
    return [at.make_budget_cell(n, b) for n in at.study.labels_n for b in (0, *at.study.budgets)]


def lay_table3(at):
    n = at.study.labels_n[-1]
    return [at.make_fixed_cell(n, 100_000, ("small", "teacher", "self", "dist"))]


def lay_table4(at):
    n = at.study.labels_n[-1]
    catch_up = [at.make_budget_cell(n, usd) for usd in at.study.catch_up_usd]
    catch_up = [cell._replace(runs={"small": cell.runs["small"]}) for cell in catch_up]
    full = at.make_fixed_cell(at.need_train_rows(), 0, ("small",))
    return [at.make_fixed_cell(n, 100_000, ("teacher", "dist")), *catch_up, full]


def lay_table9(at):
    return [at.make_fixed_cell(at.need_train_rows(), 0, ("teacher",))]


def lay_table10(at):
    budget = at.study.budgets[-1]
    return [at.make_budget_cell(n, budget, ("distilbert", "bert")) for n in at.study.labels_n]


def lay_table11(at):
    budgets = (0, *at.study.few_shot_budgets)
    return [at.make_budget_cell(at.study.few_shot_n, budget) for budget in budgets]


def lay_fig2(at):
    unlabeled = [at.make_fixed_cell(n, u, ("teacher", "dist")) for n in FIGURE_N for u in FIGURE_U]
    return [*lay_fig7(at), *unlabeled]


def lay_fig3(at):
    return [at.make_budget_cell(n, b) for n in FIGURE_N for b in at.study.few_shot_budgets]


def lay_fig4(at):
    sizes, n = ("small", "base", "large"), (at.study.few_shot_n, *at.study.labels_n)
    return [at.make_budget_cell(each, 300, student=size) for size in sizes for each in n]


def lay_fig5(at):
    budget = 200 if at.terms.task == "wlp" else 150  # the figure's caption
    sizes, n = ("large", "xl", "xxl"), (at.study.few_shot_n, *at.study.labels_n)
    return [at.make_budget_cell(each, budget, teacher=size) for size in sizes for each in n]


def lay_fig6(at):
    if at.terms.usd_per_llm_label is None:
        raise UserError(f"task {at.terms.task!r}: no 'llm_tokens_per_label', so no LLM labels")
    at.llm = True
    cells = [
        at.make_budget_cell(n, b)
        for n in (at.study.few_shot_n, *at.study.labels_n)
        for b in (0, 200)
    ]
    alone = {"llm": at.make_runs("llm", 0, llm_labels=cells[-1].llm_labels)}
    return [*cells, cells[-1]._replace(labels=0, initial_usd=Fraction(0), runs=alone)]


def lay_fig7(at):
    return [at.make_fixed_cell(n, 0, ("small",)) for n in FIGURE_N]


TABLES = {  # name -> (its layout, the tasks that the paper has in it)
    "table2": (lay_table2, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "table3": (lay_table3, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "table4": (lay_table4, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "table9": (lay_table9, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "table10": (lay_table10, "stanceosaurus fever"),
    "table11": (lay_table11, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "fig2": (lay_fig2, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "fig3": (lay_fig3, "wlp stanceosaurus fever multipit_id multipit_gen nq"),
    "fig4": (lay_fig4, "wlp multipit_gen"),
    "fig5": (lay_fig5, "wlp multipit_gen"),
    "fig6": (lay_fig6, "wlp stanceosaurus"),
    "fig7": (lay_fig7, "wlp stanceosaurus"),
}


def cells(table, task, scale="paper", seeds=(0,), terms=None, tasks=None, llm=False):
    """The cells of a table or figure for one task, in reading order.

    `terms` default to the paper's rates and prices; `llm` adds LLM labels to each cell.
    """
    if table not in TABLES:
        raise UserError(f"unknown table or figure {table!r}; known: {', '.join(TABLES)}")
    entry = load_task(task, tasks or DATA / "tasks.json")
    settings = load_scale(scale)
    terms = terms or make_terms(task, entry, load_prices())
    study = read_study(task, entry, settings["divide_by"])
    sizes = load_scale("paper")["million_parameters"]
    return TABLES[table][0](Layout(study, terms, tuple(seeds), sizes, llm))


def grid(table, task, scale="paper", seeds=(0,), terms=None, tasks=None, llm=False):
    """The Runs behind a table or figure, each once, and what a run needs before it."""
    runs = {}
    for cell in cells(table, task, scale, seeds, terms, tasks, llm):
        for run in (run for group in cell.runs.values() for run in group or ()):
            for needed in map(parse_run, run.needs):
                runs.setdefault(needed.name, needed)
            runs.setdefault(run.name, run)
    return list(runs.values())


# --- flags of the training scripts ---------------------------------------------------------

LEARNING_RATES = {"small": "small", "llm": "small", "teacher": "teacher"}  # others: distill


def make_flags(task, scale, run=None, strategy=None, tasks=None):
    """{flag: value} for the script that trains `strategy`, or for one run of it.

    Scale settings, then the entry's own for that scale: under "all" and under the strategy.
    """
    entry = load_task(task, tasks or DATA / "tasks.json")
    check_entry(task, entry)
    settings = load_scale(scale)
    strategy = run.strategy if run else strategy
    if strategy not in settings["flags"]:
        raise UserError(
            f"scale {scale!r} has no flags for strategy {strategy!r}; "
            f"known: {', '.join(settings['flags'])}"
        )
    own = entry.get(scale, {})
    rates = own.get("learning_rate", {})
    rate = rates.get(LEARNING_RATES.get(strategy, "distill"))
    size = (
        (run.student if run else "small")
        if strategy != "teacher"
        else (run.teacher if run else "xxl")
    )
    models = {**settings["models"], **own.get("models", {})}
    if size not in models:
        raise UserError(
            f"scale {scale!r} has no model of size {size!r}: add it to data/scales.json"
        )
    flags = {
        "student" if strategy in ("dist", "self") else "model": models[size],
        **settings["flags"][strategy],
        **({"learning-rate": rate} if rate is not None else {}),
        "max-source-length": entry["max_source_length"],
        "max-target-length": entry["max_target_length"],
        "prefix": entry["prefix"],
        **own.get("all", {}),
        **own.get(strategy, {}),
    }
    if run:
        counts = {"dist": "num-unlabeled", "self": "num-unlabeled"}
        if strategy != "llm":  # all rows of the file that gpt_annotate.py wrote
            flags[counts.get(strategy, "num-labels")] = run.unlabeled or run.labels
        flags["seed"] = run.seed
    return flags


def show_flags(flags):
    """Flags as one shell line: true is --flag, false --no-flag, null leaves a flag out."""
    words = []
    for name, value in flags.items():
        if value is None:
            continue
        words.append(f"--no-{name}" if value is False else f"--{name}")
        if not isinstance(value, bool):
            words.append(str(value))
    return shlex.join(words)


# --- the ledger ----------------------------------------------------------------------------


class Record(NamedTuple):
    """What one finished run used, as its training.json and metrics.json say: no dollars."""

    run: str
    world: str
    task: str
    strategy: str
    labels: int
    unlabeled: int
    seed: int
    llm_tokens: dict  # {"in", "out", "cached"}
    llm_model: str  # None where not recorded
    hours: Fraction  # of the device, all but the teacher's pass
    pass_hours: Fraction  # of the teacher's pass over the unlabeled rows, this run's share
    evaluate_hours: Fraction
    gpu: str  # as the driver names it; None on CPU
    gpus: int


def read_record(folder):
    """The Record of a run folder; a UserError names file and field."""
    path = folder / "training.json"
    metrics = read_json(folder / "metrics.json") if (folder / "metrics.json").exists() else {}
    training = read_json(path) if path.exists() else metrics.get("training")
    if not isinstance(training, dict):
        raise UserError(f"{path}: not the record of a run")

    def need(record, key, where=""):
        if not isinstance(record, dict) or key not in record:
            raise UserError(f"{path}: no {where}{key!r}; train this run again")
        return record[key]

    def total(seconds, keep):
        amounts = (parse_amount(v, f"{path}: seconds {k!r}") for k, v in seconds.items() if keep(k))
        return sum(amounts, Fraction(0)) / 3600

    seconds, hardware = need(training, "seconds"), need(training, "hardware")
    cpu = need(hardware, "device", "hardware ") == "cpu"
    gpus = 1 if cpu else parse_count(need(hardware, "gpus", "hardware "), f"{path}: gpus", 1)
    tokens = training.get("llm_tokens") or {}
    tokens = tokens if isinstance(tokens, dict) else {"in": tokens}
    place = folder.resolve()
    return Record(
        folder.name,
        place.parent.parent.name,
        str(need(training, "task")),
        str(need(training, "strategy")),
        parse_count(need(training, "labels"), f"{path}: labels"),
        parse_count(training.get("unlabeled") or 0, f"{path}: unlabeled"),
        parse_count(training.get("seed") or 0, f"{path}: seed"),
        {k: parse_count(v, f"{path}: llm_tokens {k!r}") for k, v in tokens.items()},
        training.get("llm_model"),
        total(seconds, lambda key: key != "teacher_pass") * gpus,
        total(seconds, lambda key: key == "teacher_pass") * gpus,
        total(metrics.get("seconds") or {}, lambda key: True),
        None if cpu else str(need(hardware, "gpu", "hardware ")),
        gpus,
    )


def read_runs(folder):
    """Records of every finished run below `folder`, by path."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the runs")
    found = {
        path.parent for name in ("training", "metrics") for path in folder.rglob(f"{name}.json")
    }
    if not found:
        raise UserError(f"{folder}: no finished run here (no training.json); train one first")
    return [read_record(path) for path in sorted(found)]


def measure_rates(name, folder, prices, gpu=None, priced=False):
    """(GPU, labels -> teacher hours, labels -> hours an example) of the runs of task `name`.

    Hours of several runs at the same N are averaged; distilling is one rate, hours over rows.
    """
    if folder is None:
        raise UserError("--rates measured: pass --runs DIR, the folder of your runs")
    records = [record for record in read_runs(folder) if record.task == name]
    teachers = [record for record in records if record.strategy == "teacher"]
    students = [record for record in records if record.strategy == "dist"]
    if not teachers or not students:
        raise UserError(
            f"{folder}: {len(teachers)} teacher and {len(students)} dist runs of task {name!r}; "
            "measured rates need one of each"
        )
    kinds = {r.gpu and (match_gpu(prices, r.gpu) or r.gpu) for r in teachers + students}
    if None in kinds and not gpu and not priced:
        raise UserError(
            f"{folder}: these runs used a CPU, which has no price; pass --gpu NAME to count "
            "their seconds as that GPU's, or --gpu-usd-per-hour"
        )
    if len(kinds) > 1 and not gpu:
        raise UserError(f"{folder}: runs on {len(kinds)} kinds of device; pass --gpu to name one")
    target = gpu or next(iter(kinds)) or "CPU"

    def hours(record):
        kind = record.gpu and (match_gpu(prices, record.gpu) or record.gpu)
        same = kind is None or kind.lower() == target.lower()
        used = record.hours + record.pass_hours
        return used if same else used * compare_speeds(prices, kind, target)

    by_labels = {}
    for record in teachers:
        by_labels.setdefault(record.labels, []).append(hours(record))
    teacher = {n: sum(each) / len(each) for n, each in sorted(by_labels.items())}
    rows = sum(record.unlabeled for record in students)
    return target, teacher, {0: sum(map(hours, students)) / rows}


class Ledger:
    """Prices Records with one of the lists; dollars are None where a CPU has no price."""

    def __init__(self, prices, tasks, which, gpu=None, gpu_usd_per_hour=None, llm_model=None):
        self.prices, self.tasks, self.which, self.gpu = prices, tasks, which, gpu
        self.llm_model = llm_model or ("text-davinci-003" if which == "paper" else "gpt-4o-mini")
        self.usd_per_hour = gpu_usd_per_hour
        self.notes = {}

    def price_hours(self, record, hours):
        kind = self.gpu if record.gpu is None else match_gpu(self.prices, record.gpu) or record.gpu
        if self.usd_per_hour is not None and (kind or self.gpu is None):
            return hours * self.usd_per_hour
        if kind is None:
            return None
        usd, how = price_gpu_hour(self.prices, kind, self.which)
        self.notes[f"{self.which}: an hour of {kind} is {show_price(usd)} ({how})"] = None
        return hours * usd

    def price_labels(self, record):
        entry = self.tasks.get(record.task, {})
        return record.labels * price_label(self.prices, record.task, entry, self.which)

    def price_llm(self, record):
        if not any(record.llm_tokens.values()):
            return Fraction(0)
        usd = price_tokens(self.prices, record.llm_model or self.llm_model, self.which)
        return sum(usd[kind] * count for kind, count in record.llm_tokens.items())

    def add_up(self, records):
        """Totals of `records` with nothing paid twice.

        Labels of a seed are nested samples, so the largest N of each task and seed buys them all;
        a teacher's pass is made once, for its largest student.
        """
        labels, passes = {}, {}
        for record in records:
            key = (record.world, record.task, record.seed)
            labels[key] = max(labels.get(key, 0), self.price_labels(record))
            if record.pass_hours:
                teacher = (*key, record.labels, record.strategy)
                passes[teacher] = max(
                    passes.get(teacher, record), record, key=lambda r: r.pass_hours
                )
        parts = [(r, r.hours) for r in records] + [(r, r.pass_hours) for r in passes.values()]
        compute = [self.price_hours(*part) for part in parts]
        compute = None if None in compute else sum(compute, Fraction(0))
        spent = {"labels_usd": sum(labels.values()), "llm_usd": sum(map(self.price_llm, records))}
        total = None if compute is None else compute + sum(spent.values())
        hours = sum((hours for _, hours in parts), Fraction(0))
        return {"hours": hours, **spent, "compute_usd": compute, "usd": total}

    def price_model(self, record, others):
        """Dollars of one compact model: its labels, its own compute and its teacher's."""
        compute = self.price_hours(record, record.hours + record.pass_hours)
        for name in parse_run(record.run).needs if RUN_NAME.fullmatch(record.run) else ():
            needed = others.get((record.world, record.task, name))
            if needed is None:
                self.notes[f"{record.run}: {name} is not there, so its price isn't known"] = None
                compute = None
            elif compute is not None:
                compute += self.price_hours(needed, needed.hours + needed.pass_hours)
        spent = {"labels_usd": self.price_labels(record), "llm_usd": self.price_llm(record)}
        total = None if compute is None else compute + sum(spent.values())
        return {**spent, "compute_usd": compute, "usd": total}


def list_tables(records):
    """{(world, task, table): its Records} for every table whose runs, at the seeds there, are
    all there."""
    groups, found = {}, {}
    for record in records:
        groups.setdefault((record.world, record.task), {})[record.run] = record
    for (world, task), runs in groups.items():
        seeds = sorted({record.seed for record in runs.values()})
        for table in TABLES:
            try:
                names = [run.name for run in grid(table, task, world.split("-")[0], seeds)]
            except UserError:  # a scale, task or table that this world doesn't have
                continue
            if names and all(name in runs for name in names):
                found[world, task, table] = [runs[name] for name in names]
    return found


def report(folder, prices, tasks, gpu=None, gpu_usd_per_hour=None, llm_model=None):
    """What the runs below `folder` cost: by run, strategy, table and total, under both lists."""
    records = read_runs(folder)
    lists = ("paper", "today")
    books = {
        which: Ledger(prices, tasks, which, gpu, gpu_usd_per_hour, llm_model) for which in lists
    }
    others = {(record.world, record.task, record.run): record for record in records}
    strategies = {}
    for record in records:
        strategies.setdefault(record.strategy, []).append(record)

    def add_up(group):
        return {"runs": len(group), **{which: books[which].add_up(group) for which in lists}}

    result = {
        "runs": [
            {
                **{key: getattr(record, key) for key in ("world", "task", "run", "strategy")},
                "device": record.gpu or "CPU",
                "devices": record.gpus,
                "hours": record.hours + record.pass_hours,
                "evaluate_hours": record.evaluate_hours,
                **{which: books[which].price_model(record, others) for which in lists},
            }
            for record in records
        ],
        "strategies": {name: add_up(group) for name, group in strategies.items()},
        "tables": {" ".join(key): add_up(group) for key, group in list_tables(records).items()},
        "total": add_up(records),
    }
    notes = [note for book in books.values() for note in book.notes]
    if any(record.gpu is None for record in records):
        said = f"are counted as those of one {gpu}" if gpu else "have no price (--gpu gives one)"
        notes.append(f"hours on a CPU {said}")
    if any(set(record.llm_tokens) == {"in"} for record in records):
        notes.append("LLM tokens recorded without a split are priced as input tokens")
    return {**result, "notes": [*notes, *REPORT_NOTES]}


REPORT_NOTES = [
    "a model's dollars hold its labels, its own hours and those of its teacher",
    "totals pay nothing twice: labels once per task and seed, a teacher's pass once",
    "hours of evaluation are listed, not priced, as in the paper",
]


# --- the paper's scores --------------------------------------------------------------------


def load_scores(path=DATA / "paper_scores.csv"):
    """The scores that the paper prints in Tables 2, 3, 4, 9, 10 and 11, one dict per cell.

    Keys: table, task, strategy (small, teacher, dist, self, small-full: on all labels, existing:
    of other papers, distilbert, bert), labels (N), budget_usd (additional dollars; Table 4: the
    printed budget), extra_labels, gpu_hours, unlabeled, metric, score, note. Counts are ints,
    scores floats; None where the paper prints nothing, N/A, or (see note) it is not legible.
    """
    numbers = ("table", "labels", "budget_usd", "extra_labels", "gpu_hours", "unlabeled")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({key: int(row[key]) if row[key] else None for key in numbers})
        row["score"] = float(row["score"]) if row["score"] not in ("", "N/A") else None
    return rows


# --- command line --------------------------------------------------------------------------


def make_cli_terms(args):
    """The Terms that the flags of plan, convert and grid describe."""
    names = "rates runs gpu gpu_usd_per_hour gpu_speed usd_per_label usd_per_1k_tokens llm_model"
    entry = load_task(args.task, args.tasks)
    overrides = {name: getattr(args, name) for name in names.split()}
    return make_terms(args.task, entry, load_prices(args.prices), args.price_list, **overrides)


def run_plan(args):
    terms = make_cli_terms(args)
    labels = parse_count(args.labels, "--labels", 1)
    result = plan(terms, labels, parse_amount(args.budget, "--budget"))
    if args.json:
        return print(json.dumps(to_json(result), indent=2))
    title = load_task(args.task, args.tasks)["title"]
    print(
        f"{title}: N = {labels:,} labels ({show_usd(result['initial_usd'])} at "
        f"{show_price(terms.usd_per_label)} each). {show_usd(result['budget_usd'])} more buy one of"
    )
    annotate, distill, llm = result["annotate"], result["distill"], result["llm"]
    hours = count_teacher_hours(terms, labels)
    teacher = f"teacher {float(hours):.4g} h, {show_usd(hours * terms.usd_per_gpu_hour)}"
    rows = [["Ann.", f"{annotate['extra_labels']:,} more labels", show_usd(annotate["usd"]), ""]]
    if distill:
        count = f"{distill['unlabeled']:,} unlabeled examples"
        detail = f"{distill['gpu_hours']} GPU-hours in all; {teacher}"
        rows.append(["Dist.", count, show_usd(distill["usd"]), detail])
    else:
        rows.append(["Dist.", "N/A", None, f"no dollars left for distilling: {teacher}"])
    if llm:
        count = f"{llm['extra_labels']:,} labels by an LLM"
        each = f"at {show_price(llm['usd_per_label'])} each"
        rows.append(["LLM", count, show_usd(llm["usd"]), each])
    else:
        rows.append(["LLM", "N/A", None, "no tokens per label known for this task"])
    print("\n".join(["", *show_columns(["Strategy", "Buys", "Spends", "Detail"], rows, 2), ""]))
    print("Ann.   people label more examples; the compact model is fine-tuned on N + these")
    print("Dist.  a teacher is fine-tuned on the N labels, then the compact model learns from its")
    print("       soft labels on the unlabeled examples")
    print("LLM    a large language model labels more examples, paid by the token")
    print("\n".join(["", *(f"- {note}" for note in result["notes"])]))


def run_convert(args):
    terms = make_cli_terms(args)
    fields = check_entry(args.task, load_task(args.task, args.tasks))
    at = parse_count(args.at_labels or fields["labels_n"][0], "--at-labels", 1)
    result = {"task": args.task, "at_labels": at}
    llm = terms.usd_per_llm_label
    if args.usd is not None:
        usd = parse_amount(args.usd, "--usd")
        bought = plan(terms, at, usd)
        result.update(usd=usd, labels=bought["annotate"]["extra_labels"])
        result["gpu_hours"] = usd / terms.usd_per_gpu_hour
        result["unlabeled"] = bought["distill"]["unlabeled"] if bought["distill"] else None
        result["llm_labels"] = bought["llm"]["extra_labels"] if llm else None
        result["tokens"] = math.floor(usd / terms.usd_per_token)
    elif args.unlabeled is not None:
        count = parse_count(args.unlabeled, "--unlabeled")
        usd = price_distilling(terms, at, count)
        teacher = price_distilling(terms, at, 0)
        result.update(unlabeled=count, usd=usd, teacher_usd=teacher, distill_usd=usd - teacher)
    elif args.gpu_hours is not None:
        hours = parse_amount(args.gpu_hours, "--gpu-hours")
        result.update(gpu_hours=hours, usd=hours * terms.usd_per_gpu_hour)
    else:
        prices = {"labels": terms.usd_per_label, "llm_labels": llm, "tokens": terms.usd_per_token}
        name = next(name for name in prices if getattr(args, name) is not None)
        count = parse_count(getattr(args, name), f"--{name.replace('_', '-')}")
        if prices[name] is None:
            raise UserError(f"task {args.task!r}: no field 'llm_tokens_per_label' in its entry")
        result.update({name: count, "usd": count * prices[name]})
    if args.json:
        return print(json.dumps(to_json({**result, "notes": list(terms.notes)}), indent=2))
    for name, value in result.items():
        if "usd" in name:
            value = show_usd(value)
        elif isinstance(value, Fraction):
            value = f"{float(value):,.2f}"
        elif isinstance(value, int):
            value = f"{value:,}"
        print(f"{name:12} {'N/A' if value is None else value}")
    print("\n".join(["", *(f"- {note}" for note in terms.notes)]))


def parse_seeds(text):
    """ "0 1 2" as a tuple of seeds, each once."""
    seeds = tuple(dict.fromkeys(parse_count(seed, "--seeds") for seed in text.split()))
    if not seeds:
        raise UserError("--seeds: no seed given; write for example --seeds '0 1 2'")
    return seeds


def run_grid(args):
    seeds, everything = parse_seeds(args.seeds), args.task == "all"
    if args.table not in TABLES:
        raise UserError(f"unknown table or figure {args.table!r}; known: {', '.join(TABLES)}")
    results = []
    for task in TABLES[args.table][1].split() if everything else [args.task]:
        args.task = task
        shared = (args.table, task, args.scale, seeds, make_cli_terms(args), args.tasks, args.llm)
        runs = grid(*shared)
        if args.json:
            results.append({"task": task, "runs": runs, "cells": cells(*shared)})
            continue
        for run in runs:
            needs = "".join(f" {need}" for need in run.needs)
            print(f"{task}/" * everything + run.name + (f":{needs}" if args.needs else ""))
    if args.json:
        head = {"table": args.table, "scale": args.scale, "seeds": seeds}
        print(json.dumps(to_json({**head, "tasks": results}), indent=2))


def run_flags(args):
    if (args.strategy is None) == (args.run is None):
        raise UserError("flags: pass one of --strategy NAME and --run NAME")
    run = parse_run(args.run) if args.run else None
    print(show_flags(make_flags(args.task, args.scale, run, args.strategy, args.tasks)))


def run_report(args):
    hour = args.gpu_usd_per_hour
    hour = None if hour is None else parse_amount(hour, "--gpu-usd-per-hour")
    prices, tasks = load_prices(args.prices), load_tasks(args.tasks)
    if args.gpu and hour is None:
        price_gpu_hour(prices, args.gpu, "paper")  # an unknown name stops here, not halfway
    result = report(args.folder, prices, tasks, args.gpu, hour, args.llm_model)
    if args.json:
        return print(json.dumps(to_json(result), indent=2))

    def money(entry, key):
        return [
            None if entry[w][key] is None else show_usd(entry[w][key]) for w in ("paper", "today")
        ]

    groups = {}
    for run in result["runs"]:
        groups.setdefault(f"{run['world']}/{run['task']}", []).append(run)
    for place, runs in groups.items():
        rows = [
            [
                run["run"],
                run["device"] + (f" x{run['devices']}" if run["devices"] > 1 else ""),
                f"{float(run['hours']):.3f}",
                f"{float(run['evaluate_hours']):.3f}",
                show_usd(run["paper"]["labels_usd"]),
                *money(run, "compute_usd"),
                *money(run, "usd"),
            ]
            for run in runs
        ]
        heads = "Run,Device,Hours,Eval. h,Labels,GPU paper,GPU today,Model paper,Model today"
        print("\n".join([place, *show_columns(heads.split(","), rows, 2), ""]))
    totals = [*result["strategies"].items(), *result["tables"].items(), ("all", result["total"])]
    rows = [
        [
            name,
            total["runs"],
            f"{float(total['paper']['hours']):.3f}",
            show_usd(total["paper"]["labels_usd"]),
            *money(total, "llm_usd"),
            *money(total, "compute_usd"),
            *money(total, "usd"),
        ]
        for name, total in totals
    ]
    heads = "Total,Runs,Hours,Labels,LLM paper,LLM today,GPU paper,GPU today,All paper,All today"
    print("\n".join(show_columns(heads.split(","), rows)))
    print("\n".join(["", *(f"- {note}" for note in result["notes"])]))


def run_prices(args):
    prices = load_prices(args.prices)
    if args.json:
        return print(json.dumps(to_json([price._asdict() for price in prices]), indent=2))
    rows = []
    for price in prices:
        value = f"{float(price.ratio):g} x" if price.ratio else show_price(price.usd)
        rows.append(
            [price.list, price.item, price.name, value, price.unit, price.date, price.source]
        )
    heads = "List,Item,Name,Price,Unit,Date,Source"
    print("\n".join(line for line in show_columns(heads.split(","), rows, 7)))
    print(f"\n- {args.prices}: edit it, or pass --prices FILE; prices given by flag come first")


def add_terms(command):
    """The flags that say at which prices and rates."""
    add = command.add_argument
    add(
        "--rates",
        choices=["paper", "measured"],
        default="paper",
        help="GPU time of the paper, or of the runs in --runs (default: paper)",
    )
    add("--runs", metavar="DIR", help="folder of one's own runs, for --rates measured")
    add(
        "--price-list",
        choices=["paper", "today"],
        default="paper",
        help="rows of the price list to use (default: paper)",
    )
    add(
        "--gpu",
        metavar="NAME",
        help="GPU to rent, a gpu or speed row of the price list (default: the A40 of the paper, or the GPU of the runs)",
    )
    add(
        "--gpu-usd-per-hour",
        metavar="USD",
        help="dollars of an hour of that GPU (default: price list)",
    )
    add(
        "--gpu-speed",
        metavar="X",
        help="speed of that GPU in multiples of an A100-40GB (default: price list)",
    )
    add("--usd-per-label", metavar="USD", help="dollars of one label (default: price list)")
    add(
        "--usd-per-1k-tokens",
        metavar="USD",
        help="dollars of 1,000 LLM tokens, in and out (default: price list)",
    )
    add(
        "--llm-model",
        metavar="NAME",
        help="LLM to pay (default: text-davinci-003, with --price-list today gpt-4o-mini)",
    )


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def add_command(function, summary):
        name = function.__name__.removeprefix("run_")
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        command.set_defaults(function=function)
        return command, command.add_argument

    def add_shared(add, *names):
        flags = {
            "task": {"required": True, "help": "a task of --tasks, e.g. wlp"},
            "scale": {"default": "mini", "help": "an entry of data/scales.json (default: mini)"},
            "json": {"action": "store_true", "help": "JSON in place of a table"},
            "tasks": {
                "default": DATA / "tasks.json",
                "metavar": "FILE",
                "help": "task entries (default: data/tasks.json)",
            },
            "prices": {
                "default": DATA / "prices.csv",
                "metavar": "FILE",
                "help": "price list (default: data/prices.csv)",
            },
        }
        for name in names:
            add(f"--{name}", **flags[name])

    command, add = add_command(run_plan, "what an additional budget buys under each strategy")
    add("--labels", required=True, metavar="N", help="labels there are already")
    add("--budget", required=True, metavar="USD", help="additional dollars")
    add_shared(add, "task", "json", "tasks", "prices")
    add_terms(command)

    command, add = add_command(
        run_convert, "dollars into labels, hours, examples, tokens; and back"
    )
    one = command.add_mutually_exclusive_group(required=True)
    one.add_argument("--usd", help="dollars, into everything they buy")
    one.add_argument("--labels", metavar="N", help="labels by people, into dollars")
    one.add_argument("--llm-labels", metavar="N", help="labels by an LLM, into dollars")
    one.add_argument("--tokens", metavar="N", help="input tokens of an LLM, into dollars")
    one.add_argument("--gpu-hours", metavar="H", help="hours of one GPU, into dollars")
    one.add_argument(
        "--unlabeled", metavar="N", help="examples to distil, into dollars, teacher included"
    )
    add("--at-labels", metavar="N", help="labels of the teacher (default: the task's first N)")
    add_shared(add, "task", "json", "tasks", "prices")
    add_terms(command)

    command, add = add_command(
        run_grid, "the runs that a table or figure needs, dependencies first"
    )
    add("--for", dest="table", required=True, metavar="TABLE", help=f"one of {', '.join(TABLES)}")
    add("--seeds", default="0", metavar="LIST", help="seeds, e.g. '0 1 2' (default: 0)")
    add("--llm", action="store_true", help="also runs on LLM labels at equal dollars")
    add("--needs", action="store_true", help="print 'run: the runs it needs'")
    add_shared(add, "task", "scale", "json", "tasks", "prices")
    add_terms(command)

    command, add = add_command(run_flags, "command-line flags of the script that trains a strategy")
    add("--strategy", metavar="NAME", help="small, teacher, dist, self or llm")
    add("--run", metavar="NAME", help="a run's name: also its counts and seed")
    add_shared(add, "task", "scale", "tasks")

    command, add = add_command(
        run_report, "what finished runs cost, by run, strategy, table, in all"
    )
    add("folder", help="a folder of runs, e.g. runs/ or runs/mini/wlp")
    add(
        "--gpu",
        metavar="NAME",
        help="count hours on a CPU as hours of this GPU (default: no price)",
    )
    add("--gpu-usd-per-hour", metavar="USD", help="dollars of every hour (default: price list)")
    add(
        "--llm-model",
        metavar="NAME",
        help="LLM to price where a run names none (default: text-davinci-003; today gpt-4o-mini)",
    )
    add_shared(add, "json", "tasks", "prices")

    command, add = add_command(run_prices, "the price list, with source and date")
    add_shared(add, "json", "prices")

    args = parser.parse_args(argv)
    if not args.command:
        parser.print_help()
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.command:
        args.function(args)


if __name__ == "__main__":
    run_cli(main)
