"""Dollars for labels, GPU-hours and tokens: what a budget buys, which runs that is, what they cost.

Usage:
    python costs.py plan --task wlp --labels 5000 --budget 100
        Table 2, WLP, N=5K, +$100: 384 labels, or 36 h of teacher and 7,471 unlabeled (54h / 7K)
    python costs.py plan --task wlp --labels 5000 --budget 100 --gpu H100-80GB --json
        the same choice with a GPU of today, for a program to read
    python costs.py convert --task wlp --usd 200
        Appendix E: $200 buys 4,347 labels of GPT-3.5, 769 of people, 107 A40-hours
    python costs.py convert --task wlp --unlabeled 100000 --at-labels 5000
        Table 6: $67.50 for the teacher and $435 for 100K examples
    python costs.py grid --for table2 --task wlp --scale mini --seeds "0 1 2"
        the runs behind a table, each once, what it depends on before it
    python costs.py flags --task nq --scale paper --strategy dist
        Table 8 as flags for distill.py
    python costs.py rules --for "table2 fig2" --task all --scale mini
        the same for make: each run's flags, and the labels that it learns from
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
import itertools
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
    tasks = read_json(path)
    if not isinstance(tasks, dict):
        raise UserError(f"{path}: not an object of task entries by name")
    return tasks


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


def parse_amount(value, what):
    """`value` as an exact Fraction >= 0; `what` names it in the error.

    Text is read digit by digit; a float counts as the shortest decimal that prints the same.
    """
    if isinstance(value, Fraction) and value >= 0:
        return value
    try:
        amount = Decimal(str(value).strip().removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise UserError(f"{what}: {value!r} is not a number of 0 or more, such as 100 or 0.26")
    if amount.adjusted() > 15 or amount.as_tuple().exponent < -40:
        raise UserError(f"{what}: {value} is out of range")
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
        raise UserError(f"{what}: must be above 0, or a budget would buy without end")
    return price


def show_usd(amount):
    """Dollars and cents, rounded half to even: $1,300.00; None stays None."""
    return None if amount is None else f"${round(amount * 100) / 100:,.2f}"


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


def show_columns(columns, rows):
    """An aligned plain table: columns of numbers stand right, None shows as –."""
    lines = [["–" if cell is None else str(cell) for cell in line] for line in [columns, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    number = re.compile(r"[$+]?[\d.,]+( x)?|–|N/A")
    sides = [">" if all(number.fullmatch(x) for x in c[1:]) else "<" for c in zip(*lines)]  # noqa: B905
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    shown = [form.format(*line).rstrip() for line in lines]
    return "\n".join([shown[0], "-" * max(map(len, shown)), *shown[1:]])


# --- the price list ------------------------------------------------------------------------


class Price(NamedTuple):
    """A row of the price list.

    `list` is paper (what the paper paid), today (what --price-list today and `report` use) or
    other (kept to compare). `usd` buys one `unit`. Rows of speed and batch have a `ratio` in
    place of a price: a GPU's speed in multiples of the GPU in `unit`, a discount's factor.
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
ITEMS = ("label", "gpu", "tokens-in", "tokens-out", "tokens-cached", "speed", "batch")
UNITS = {"label": 1, "hour": 1, "1K tokens": 1000, "1M tokens": 10**6}
DATE = re.compile(r"\d{4}(-\d\d){0,2}(/\d{4}(-\d\d){0,2})?")


def read_price(row, where):
    """One row of the list, checked; a UserError names the line and the column."""
    text = {key: row[key].strip() for key in Price._fields}
    priced = text["item"] not in ("speed", "batch")
    good = {
        "list": (text["list"] in LISTS, f"is none of {', '.join(LISTS)}"),
        "item": (text["item"] in ITEMS, f"is none of {', '.join(ITEMS)}"),
        "name": (text["name"], "is empty"),
        "unit": (not priced or text["unit"] in UNITS, f"is none of {', '.join(UNITS)}"),
        "source": (text["source"], "is empty: say where this price stands"),
        "date": (DATE.fullmatch(text["date"]), "is no date such as 2026-11 or 2026-11-05"),
    }
    for column, (passed, fault) in good.items():
        if not passed:
            raise UserError(f"{where}: {column} {text[column]!r} {fault}")
    column, parse = ("usd", parse_amount) if priced else ("ratio", parse_price)
    value = parse(text[column], f"{where}: {column}")
    return Price(**{**text, "usd": None, "ratio": None, column: value})


def load_prices(path=DATA / "prices.csv"):
    """The price list, every row checked: exact amounts, known items and units, no doubles."""
    prices = {}
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
                key = (price.list, price.item, price.name.lower())
                key += (len(prices),) if price.list == "other" else ()
                if key in prices:
                    raise UserError(f"{where}: a second row {' '.join(key)}; mark one as other")
                prices[key] = price
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    if len({price.unit for price in prices.values() if price.item == "speed"}) > 1:
        raise UserError(f"{path}: the speed rows name two units; compare all GPUs to one GPU")
    return list(prices.values())


def find_price(prices, which, item, name):
    """Dollars of one label, hour or token in list `which`, or None where it has no such row."""
    for price in prices:
        if (price.list, price.item, price.name.lower()) == (which, item, name.lower()):
            return price.usd / UNITS[price.unit]
    return None


def find_speed(prices, gpu):
    """(the GPU that speeds refer to, speed of `gpu` in multiples of it or None)."""
    base = next((price.unit for price in prices if price.item == "speed"), gpu)
    speeds = {p.name.lower(): p.ratio for p in prices if p.item == "speed"}
    return base, Fraction(1) if gpu.lower() == base.lower() else speeds.get(gpu.lower())


def compare_speeds(prices, kind, gpu, gpu_speed=None):
    """Hours of `gpu` that do the work of one hour of `kind`; `gpu_speed` overrides the list."""
    (_, known), (base, speed) = find_speed(prices, kind), find_speed(prices, gpu)
    speed = speed if gpu_speed is None else parse_price(gpu_speed, "--gpu-speed")
    for name, value in ((gpu, speed), (kind, known)):
        if value is None:
            raise UserError(
                f"no speed of GPU {name!r}, so hours of {kind} can't become hours of {gpu}; add "
                f"a speed row (in multiples of {base}) to the price list or pass --gpu-speed"
            )
    return known / speed


def price_gpu_hour(prices, gpu, which, derive=True):
    """(dollars of an hour of `gpu`, how that was found), from list `which` or the next best.

    In order: its own row; with `derive`, its speed times the price of the GPU that speeds refer
    to, as the paper prices its A40; its row in the other list; that product, if nothing else.
    """
    other = "today" if which == "paper" else "paper"
    base, speed = find_speed(prices, gpu)
    rows = {each: find_price(prices, each, "gpu", gpu) for each in (which, other)}
    base_usd = find_price(prices, which, "gpu", base)
    if rows[which] is not None:
        return rows[which], f"{which}'s row"
    if speed and base_usd is not None and (derive or rows[other] is None):
        return base_usd * speed, f"{float(speed):g} x {which}'s {base}, by the speed row"
    if rows[other] is not None:
        return rows[other], f"{other}'s row, as {which} has none"
    raise UserError(
        f"no price for an hour of GPU {gpu!r}; known: {', '.join(list_gpus(prices))}; add a row "
        "to the price list or pass --gpu-usd-per-hour"
    )


def list_gpus(prices):
    """Names of the GPUs that the list prices or rates, in its order."""
    return list(dict.fromkeys(p.name for p in prices if p.item in ("gpu", "speed")))


def match_gpu(prices, device):
    """The list's name for a GPU as its driver spells it ("NVIDIA A100-SXM4-40GB"), else that."""

    def words(name):
        return set(re.findall(r"[a-z0-9]+", name.lower()))

    found = [gpu for gpu in list_gpus(prices) if words(gpu) <= words(device)]
    return max(found, key=len, default=device)


def price_tokens(prices, model, which="paper"):
    """{"in", "out", "cached"}: dollars of one token of `model`; cached input defaults to input.

    List `which` is looked at first, then the other one.
    """
    for name in (which, "paper", "today"):
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
    for each in (which, "paper", "today"):
        usd = find_price(prices, each, "label", name)
        if usd is not None:
            return parse_price(usd, f"task {name!r}: price of a label")
    raise UserError(
        f"task {name!r}: no price of a label; give its entry a field 'usd_per_label', add a row "
        "to the price list, or pass --usd-per-label"
    )


def name_llm(which):
    """The LLM that list `which` pays: the paper's, or a successor as that one was shut down."""
    return "text-davinci-003" if which == "paper" else "gpt-4o-mini"


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
    """One entry of data/scales.json; a UserError lists the names where `name` is none."""
    scales = read_json(path)
    if name not in scales:
        raise UserError(f"unknown scale {name!r}; known: {', '.join(scales)} (entries of {path})")
    return scales[name]


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


# --- the experiment grid -------------------------------------------------------------------


class Run(NamedTuple):
    """One training run; `needs` names the runs that must be done before it."""

    name: str
    # small, teacher, dist, self, llm; distilbert and bert in Table 10; prompted: an LLM's own
    # answers to `llm_labels` test rows, from prompts with examples out of `labels` labeled ones
    strategy: str
    labels: int
    unlabeled: int
    llm_labels: int
    seed: int
    needs: tuple
    student: str = "small"
    teacher: str = "xxl"


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
    extra_labels: int = None
    annotate_usd: Fraction = None
    gpu_hours: int = None
    unlabeled: int = None
    distill_usd: Fraction = None  # the teacher's training in it
    teacher_usd: Fraction = None
    llm_labels: int = None
    llm_usd: Fraction = None


ENCODERS = {"distilbert": "DistilBERT", "bert": "BERT"}  # strategies that train a classifier
RUN_NAME = re.compile(
    r"(?P<strategy>small|teacher|dist|self|llm|prompted|distilbert|bert)(?:-(?P<size>base|large|xl))?"
    r"(?:-from-(?P<teacher>large|xl))?-n(?P<labels>\d+)(?:-u(?P<unlabeled>\d+))?"
    r"(?:-g(?P<llm>\d+))?-s(?P<seed>\d+)"
)


def make_run(strategy, labels, seed, unlabeled=0, llm_labels=0, student="small", teacher="xxl"):
    """A Run with its folder's name, e.g. dist-n1000-u19000-s0; the usual sizes go unnamed."""
    size = teacher if strategy == "teacher" else student
    name = strategy + (f"-{size}" if size not in ("small", "xxl") else "")
    name += f"-from-{teacher}" if strategy == "dist" and teacher != "xxl" else ""
    name += f"-n{labels}" + (f"-u{unlabeled}" if strategy in ("dist", "self") else "")
    name += (f"-g{llm_labels}" if strategy in ("llm", "prompted") else "") + f"-s{seed}"
    needs = ()
    if strategy == "dist":
        needs = (make_run("teacher", labels, seed, teacher=teacher).name,)
    elif strategy == "self":
        needs = (make_run("small", labels, seed, student=student).name,)
    return Run(name, strategy, labels, unlabeled, llm_labels, seed, needs, student, teacher)


def parse_run(name):
    """The Run of a folder's name: the inverse of make_run."""
    match = RUN_NAME.fullmatch(name)
    if match:
        strategy, size = match["strategy"], match["size"]
        count = {key: int(match[key] or 0) for key in ("labels", "seed", "unlabeled", "llm")}
        sizes = ("small", size) if strategy == "teacher" else (size, match["teacher"])
        run = make_run(strategy, *count.values(), sizes[0] or "small", sizes[1] or "xxl")
        if run.name == name:
            return run
    raise UserError(f"run {name!r}: not a name such as small-n1000-s0 or dist-n1000-u19000-s0")


class Layout:
    """Lays out the cells of one task: takes the paper's counts, gives those of a scale.

    `missing` maps a kind of model that the paper has (a size, distilbert, bert) to why this task
    has none at this scale; its runs are left out, and `notes` say so.
    """

    def __init__(self, study, terms, seeds, divide_by, parameters, llm=False, missing=None):
        self.study, self.terms, self.seeds, self.llm = study, terms, seeds, llm
        self.parameters = parameters  # size -> million parameters
        self.missing, self.notes = missing or {}, {}  # in order, each once
        self.unit = 1 if study.own else divide_by
        # The paper's rates are for the paper's N, measured ones for the N of our runs.
        self.rate_unit = 1 if terms.rates == "measured" else self.unit

    def make_runs(self, strategy, labels, **kind):
        return tuple(make_run(strategy, labels, seed, **kind) for seed in self.seeds)

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
        study = self.study
        counts = sorted({study.few_shot_n, *study.labels_n}) if study.own else FIGURE_N
        return self.keep_distinct(counts, study.train_rows)

    def list_study(self):
        """N of Figures 4, 5 and 6: those of Tables 11 and 2."""
        counts = (self.study.few_shot_n, *self.study.labels_n)
        return self.keep_distinct(counts, self.study.train_rows)

    def list_unlabeled(self):
        """Unlabeled rows of Figure 2, none twice."""
        return self.keep_distinct(FIGURE_U, self.study.unlabeled_rows)

    def keep_distinct(self, counts, rows):
        """`counts` up to the first that takes all `rows` there are, as more would be the same."""
        whole = [count for count in counts if rows is not None and count >= rows]
        return [count for count in dict.fromkeys(counts) if count not in whole[1:]]

    def scale_terms(self, student, teacher):
        """Terms for models of other sizes, estimated: the paper prices only Small and XXL.

        Fine-tuning goes with the teacher's parameters. A step of the released distillation runs
        the teacher forward and the student forward and back, three times its forward pass.
        """
        size, terms = self.parameters, self.terms
        fit = Fraction(size[teacher], size["xxl"])
        step = Fraction(size[teacher] + 3 * size[student], size["xxl"] + 3 * size["small"])
        return terms._replace(
            teacher_hours={n: hours * fit for n, hours in terms.teacher_hours.items()},
            distill_hours={n: hours * step for n, hours in terms.distill_hours.items()},
        )

    def count_unlabeled(self, terms, labels, usd):
        """Rows that `usd` dollars distil at N = `labels`, 0 if they don't cover the teacher.

        For the paper's tasks the count is that of Table 2: whole thousands, rounded down.
        """
        bought = plan(terms, labels * self.rate_unit, usd * self.rate_unit)["distill"]
        count = bought["unlabeled"] if bought else 0
        printed = not self.study.own and terms.rates == "paper"
        return (count // 1000 * 1000 if printed else count) // self.rate_unit

    def price_distilling(self, terms, labels, unlabeled):
        usd = price_distilling(terms, labels * self.rate_unit, unlabeled * self.rate_unit)
        return usd / self.rate_unit

    def at_budget(self, labels, budget, also=(), student="small", teacher="xxl"):
        """A cell of Table 2: `labels` labels and what `budget` additional dollars buy; `also`
        names further strategies that train on the bought labels."""
        wanted, usd = labels // self.unit, Fraction(budget) / self.unit
        n, _ = self.cap(wanted, self.study.train_rows, "labels")
        size, terms, notes = {"student": student, "teacher": teacher}, self.terms, ()
        if (student, teacher) != ("small", "xxl"):
            terms = self.scale_terms(student, teacher)
            notes += (f"hours of {teacher} => {student} are estimated from parameter counts",)
        extra = math.floor(usd / terms.usd_per_label)
        total, note = self.cap(wanted + extra, self.study.train_rows, "labels")
        wanted = self.count_unlabeled(terms, n, usd) if budget else 0
        rows, cut = self.cap(wanted, self.study.unlabeled_rows, "unlabeled rows")
        runs = {each: self.make_runs(each, total) for each in also}
        runs["small"] = self.make_runs("small", total, student=student)
        runs["teacher"] = self.make_runs("teacher", n, teacher=teacher) if rows else None
        runs["dist"] = self.make_runs("dist", n, unlabeled=rows, **size) if rows else None
        plans = {"budget_usd": usd, "extra_labels": extra}
        plans["annotate_usd"] = extra * terms.usd_per_label
        plans["teacher_usd"] = self.price_distilling(terms, n, 0)
        if rows:
            plans["gpu_hours"] = math.ceil(usd / terms.usd_per_gpu_hour)
            plans["unlabeled"] = rows
            plans["distill_usd"] = self.price_distilling(terms, n, rows)
        if self.llm and terms.usd_per_llm_label is not None and budget:
            count = math.floor(usd / terms.usd_per_llm_label)
            count, more = self.cap(count, self.study.unlabeled_rows, "rows for an LLM")
            plans["llm_labels"], notes = count, notes + more
            plans["llm_usd"] = count * terms.usd_per_llm_label
            runs["llm"] = self.make_runs("llm", n, llm_labels=count)
        notes += (*note, *cut)
        return Cell(terms.task, n, n * terms.usd_per_label, runs, notes, **plans)

    def at_counts(self, labels, unlabeled, strategies):
        """A cell of fixed counts, as in Table 3: `labels` labels, `unlabeled` rows."""
        n, note = self.cap(labels // self.unit, self.study.train_rows, "labels")
        rows, cut = self.cap(unlabeled // self.unit, self.study.unlabeled_rows, "unlabeled rows")
        runs, plans = {}, {}
        for each in strategies:
            use = rows if each in ("dist", "self") else 0
            runs[each] = self.make_runs(each, n, unlabeled=use)
        if rows:
            usd = self.price_distilling(self.terms, n, rows)
            plans = {"unlabeled": rows, "distill_usd": usd}
            plans["gpu_hours"] = math.ceil(usd / self.terms.usd_per_gpu_hour)
        if "small" in strategies:
            plans["annotate_usd"] = Fraction(0)
        if "teacher" in strategies and self.terms.teacher_hours:
            plans["teacher_usd"] = self.price_distilling(self.terms, n, 0)
        initial = n * self.terms.usd_per_label
        return Cell(self.terms.task, n, initial, runs, (*note, *cut), **plans)

    def at_all_labels(self, strategy):
        """A cell of all labeled rows."""
        if self.study.train_rows is None:
            raise UserError(
                f"task {self.terms.task!r}: field 'rows' needs 'train', how many labels exist"
            )
        return self.at_counts(self.study.train_rows, 0, (strategy,))


FIGURE_N = (100, 500, 1000, 5000, 10000)  # Figure 2's L; Figures 3 and 7 print none, so theirs too
FIGURE_U = (10_000, 100_000)
# Appendix E: 32 examples a prompt out of 100 labeled rows; Figure 7: answers to 200 test rows. No
# scale divides these: the prompt is the paper's, and a price of a label stands on its length.
LLM_EXAMPLES, LLM_TEST_ROWS = 100, 200


def lay_table2(at):
    return [at.at_budget(n, usd) for n in at.study.labels_n for usd in (0, *at.study.budgets)]


def lay_table3(at):
    return [at.at_counts(at.study.labels_n[-1], 100_000, ("small", "teacher", "self", "dist"))]


def lay_table4(at):
    """Dist. of 100K rows, Ann. at Table 2's budgets and the paper's larger one, and all labels."""
    n, ann_only = at.study.labels_n[-1], {"unlabeled": None, "gpu_hours": None, "distill_usd": None}
    budgets = (0, *at.study.budgets, *at.study.catch_up_usd)
    bought = [at.at_budget(n, usd) for usd in budgets]
    bought = [
        cell._replace(runs={"small": cell.runs["small"]}, notes=(), **ann_only) for cell in bought
    ]
    first, whole = at.at_counts(n, 100_000, ("teacher", "dist")), at.at_all_labels("small")
    extra = whole.labels - first.labels
    plans = {"extra_labels": extra, "annotate_usd": extra * at.terms.usd_per_label}
    whole = whole._replace(labels=first.labels, initial_usd=first.initial_usd, **plans)
    return [first, *bought, whole]


def lay_table9(at):
    return [at.at_all_labels("teacher")]


def lay_table10(at):
    usd, also = at.study.budgets[-1], at.keep_known(("distilbert", "bert"))
    return [at.at_budget(n, usd, also) for n in at.study.labels_n]


def lay_table11(at):
    return [at.at_budget(at.study.few_shot_n, usd) for usd in (0, *at.study.few_shot_budgets)]


def lay_fig2(at):
    kinds, rows = ("teacher", "dist"), at.list_unlabeled()
    distilled = [at.at_counts(n, u, kinds) for n in at.list_labels() for u in rows]
    return [*lay_labels(at), *distilled]


def lay_fig3(at):
    return [at.at_budget(n, usd) for n in at.list_labels() for usd in at.study.few_shot_budgets]


def lay_sizes(at, figure, role, sizes):
    usd = at.study.figure_usd.get(figure, at.study.budgets[-1])
    counts, sizes = at.list_study(), at.keep_known(sizes)
    return [at.at_budget(n, usd, **{role: size}) for size in sizes for n in counts]


def lay_fig4(at):
    return lay_sizes(at, "fig4", "student", ("small", "base", "large"))


def lay_fig5(at):
    return lay_sizes(at, "fig5", "teacher", ("large", "xl", "xxl"))


def lay_fig6(at):
    if at.terms.usd_per_llm_label is None:
        raise UserError(f"task {at.terms.task!r}: no field 'llm_tokens_per_label', so no figure 6")
    at.llm, usd = True, at.study.figure_usd.get("fig6", at.study.budgets[-1])
    counts = at.list_study()
    cells = [at.at_budget(n, each) for n in counts for each in (0, usd)]
    alone = {"llm": at.make_runs("llm", 0, llm_labels=cells[-1].llm_labels)}
    only = Cell(at.terms.task, 0, Fraction(0), alone, (), cells[1].budget_usd)
    return [*cells, only._replace(llm_labels=cells[1].llm_labels, llm_usd=cells[1].llm_usd)]


def lay_labels(at):
    return [at.at_counts(n, 0, ("small",)) for n in at.list_labels()]


def lay_fig7(at):
    usd = LLM_EXAMPLES * at.terms.usd_per_label
    runs = {"prompted": at.make_runs("prompted", LLM_EXAMPLES, llm_labels=LLM_TEST_ROWS)}
    level = Cell(at.terms.task, LLM_EXAMPLES, usd, runs, llm_labels=LLM_TEST_ROWS)
    if at.terms.usd_per_llm_label is not None:
        level = level._replace(llm_usd=LLM_TEST_ROWS * at.terms.usd_per_llm_label)
    return [*lay_labels(at), level]


ALL = "wlp stanceosaurus fever multipit_id multipit_gen nq"
TABLES = {  # name -> (its layout, the tasks that the paper shows in it)
    "table2": (lay_table2, ALL),
    "table3": (lay_table3, ALL),
    "table4": (lay_table4, ALL),
    "table9": (lay_table9, ALL),
    "table10": (lay_table10, "stanceosaurus fever"),
    "table11": (lay_table11, ALL),
    "fig2": (lay_fig2, ALL),
    "fig3": (lay_fig3, ALL),
    "fig4": (lay_fig4, "wlp multipit_gen"),
    "fig5": (lay_fig5, "wlp multipit_gen"),
    "fig6": (lay_fig6, "wlp stanceosaurus"),
    "fig7": (lay_fig7, "wlp stanceosaurus"),
}


def find_missing(entry, scale, settings):
    """{kind of model: why there are no runs of it} for one task at one scale."""
    models, missing = {**settings["models"], **entry.get(scale, {}).get("models", {})}, {}
    for kind in (*load_scale("paper")["million_parameters"], *ENCODERS):
        name = ENCODERS.get(kind, f"T5 of size {kind}")
        if kind in ENCODERS and entry["metric"] != "classes":
            missing[kind] = f"{entry['title']}: {name} only tells classes, so it is left out"
        elif kind not in models or (kind in ENCODERS and kind not in settings["flags"]):
            missing[kind] = f"{entry['title']}: no {name} at scale {scale}, so it is left out"
    return missing


def list_tasks(asked, tasks=DATA / "tasks.json"):
    """The names in a text such as "wlp fever", or for "all" the paper's six, each once."""
    names = ALL.split() if asked == "all" else list(dict.fromkeys(asked.split()))
    if not names:
        raise UserError("--task: no task given; write for example wlp, 'wlp fever' or all")
    for name in names:
        load_task(name, tasks)
    return names


def shows(table, task):
    """Whether the paper shows `task` in `table`; a task of one's own goes with all six."""
    if table not in TABLES:
        raise UserError(f"unknown table or figure {table!r}; known: {', '.join(TABLES)}")
    shown = TABLES[table][1]
    return task in shown.split() or (shown == ALL and task not in ALL.split())


def choose_tasks(table, asked, tasks=DATA / "tasks.json"):
    """The tasks of `asked` ("all" or names) that `table` shows, or if it shows none, all asked."""
    names = list_tasks(asked, tasks)
    return [name for name in names if shows(table, name)] or names


def cells(
    table,
    task,
    scale="mini",
    seeds=(0,),
    terms=None,
    tasks=DATA / "tasks.json",
    llm=False,
    prepared=None,
    rows=None,
):
    """The Cells of a table or figure for one task, in reading order.

    `terms` default to the paper's rates and prices; `llm` adds LLM labels at equal dollars to
    Tables 2 and 11, if it is known how many tokens one takes;
    `prepared` is a folder of data/prepare.py, whose row counts then limit what can be bought, or
    `rows` has them by split.
    """
    if table not in TABLES:
        raise UserError(f"unknown table or figure {table!r}; known: {', '.join(TABLES)}")
    entry, settings = load_task(task, tasks), load_scale(scale)
    study, divide_by = read_study(task, entry), settings["divide_by"]
    terms = terms or make_terms(task, entry, load_prices())
    sizes = load_scale("paper")["million_parameters"]
    rows = read_json(Path(prepared) / task / "about.json")["rows"] if prepared else rows
    if rows:
        unit = 1 if study.own else divide_by
        study = study._replace(
            train_rows=rows["train"] * unit, unlabeled_rows=rows["unlabeled"] * unit
        )
    missing, llm = find_missing(entry, scale, settings), llm and table in ("table2", "table11")
    layout = Layout(study, terms, tuple(seeds), divide_by, sizes, llm, missing)
    first, *others = TABLES[table][0](layout)
    return [first._replace(notes=(*first.notes, *layout.notes)), *others]


def grid(*args, **options):
    """The Runs behind cells(...), same arguments: each once, after what it needs."""
    runs = {}
    for cell in cells(*args, **options):
        for run in (run for group in cell.runs.values() for run in group or ()):
            for needed in map(parse_run, run.needs):
                runs.setdefault(needed.name, needed)
            runs.setdefault(run.name, run)
    return list(runs.values())


# --- flags of the training scripts ---------------------------------------------------------


def make_flags(task, scale, strategy=None, run=None, tasks=DATA / "tasks.json", real_text=False):
    """{flag: value} for the script that trains `strategy`, or for one Run with its counts.

    The scale's settings first, then the entry's own at that scale: "all", the strategy's and,
    for `real_text` (data that the scale wasn't made for), those of "real-text".
    """
    entry, settings = load_task(task, tasks), load_scale(scale)
    check_entry(task, entry)
    run = run or make_run(strategy, 0, 0)
    known, own = settings["flags"], entry.get(scale, {})
    if run.strategy not in known:
        raise UserError(f"scale {scale!r}: no strategy {run.strategy!r}; known: {', '.join(known)}")
    models = {**settings["models"], **own.get("models", {})}
    encoder = run.strategy in ENCODERS
    size = run.teacher if run.strategy == "teacher" else run.strategy if encoder else run.student
    if size not in models:
        raise UserError(f"scale {scale!r}: no model of size {size!r}; known: {', '.join(models)}")
    distilled = run.strategy in ("dist", "self")
    # Table 8 has one rate for T5-Small trained on labels, by anyone, and one for distilled ones.
    kind = "distill" if distilled else "teacher" if run.strategy == "teacher" else "small"
    rate = own.get("learning_rate", {}).get(kind)
    flags = {
        "student" if distilled else "model": models[size],
        **known[run.strategy],
        **({} if rate is None else {"learning-rate": rate}),
        "max-source-length": entry["max_source_length"],
        "max-target-length": entry["max_target_length"],
        "prefix": entry["prefix"],
        **own.get("all", {}),
        **own.get(run.strategy, {}),
        **(own.get("real-text", {}) if real_text else {}),
    }
    if encoder:  # it has one output a class, so nothing to write and no task to be told
        if entry["metric"] != "classes":
            raise UserError(f"task {task!r}: no classes, so nothing for {run.strategy} to learn")
        flags |= {"max-target-length": None, "prefix": None, "labels": entry["labels"]}
    if strategy:
        return flags
    if run.strategy != "llm":  # which trains on every row that gpt_annotate.py wrote
        flags["num-unlabeled" if distilled else "num-labels"] = run.unlabeled or run.labels
    return {**flags, "seed": run.seed}


def make_evaluation_flags(task, scale, tasks=DATA / "tasks.json"):
    """{flag: value} for evaluate.py: the "evaluate" of a task's entry for `scale`."""
    return load_task(task, tasks).get(scale, {}).get("evaluate", {})


def show_flags(flags):
    """Flags as one shell line: true is --flag, false --no-flag, null leaves a flag out; a list
    is several values of one flag."""
    words = []
    for name, value in flags.items():
        if value is not None:
            words.append(f"--no-{name}" if value is False else f"--{name}")
            values = value if isinstance(value, list) else [value]
            words += [] if isinstance(value, bool) else map(str, values)
    return shlex.join(words)


# --- the runs as make sees them ------------------------------------------------------------


def name_pass(run, runs):
    """The file that says that enough rows are labeled for `run`, e.g. teacher-n100-s0/1900.labels:
    as many as any of `runs` needs, so that one pass of the teacher serves them all."""
    (needed,) = run.needs
    return f"{needed}/{max(r.unlabeled for r in runs if needed in r.needs)}.labels"


def order_work(task, runs, every):
    """Files of the finished `runs` of a task, some of its runs in `every` table asked for, in the
    order in which make should start them.

    Teachers come first, and then half of what doesn't need them: by then they are done, on two
    cores too, and a run whose files are not there yet would have to wait for make's next round.
    """
    learners = [run for run in runs if run.needs]
    teachers = dict.fromkeys(name for run in learners for name in run.needs)
    others = [run.name for run in runs if not run.needs and run.name not in teachers]
    half = len(others) // 2
    names = [*teachers, *others[:half], *dict.fromkeys(name_pass(r, every) for r in learners)]
    names += [*others[half:], *(run.name for run in learners)]
    return [f"{task}/{n}" + "/metrics.json" * (not n.endswith(".labels")) for n in names]


def list_llm_rules(task, run, runs):
    """{Makefile variable: value} of a run on an LLM's labels or answers.

    A seed has its own examples, so its answers are its own; its runs share them, each with the
    first of the rows, so that the run with most of them pays for all.
    """
    if run.strategy == "prompted":
        return {f"ANNOTATE_{task}/{run.name}": f"--num {run.llm_labels} --seed {run.seed}"}
    most = max(r.llm_labels for r in runs if (r.strategy, r.seed) == ("llm", run.seed))
    flags = f"--num {run.llm_labels} --add-labeled {run.labels} --seed {run.seed}"
    answers = f"s{run.seed}/{most}.answers"
    return {f"ANNOTATE_{task}/{run.name}": flags, f"ANSWERS_{task}/{run.name}": answers}


def list_rules(task, runs, scale, tasks=DATA / "tasks.json", real_text=False):
    """Makefile variables of the `runs` of a task: flags, and the labels that a run learns from."""

    def assign(name, value):
        return f"{name} := " + value.replace("$", "$$").replace("#", "\\#")

    lines = []
    for run in runs:
        if run.strategy in ("llm", "prompted"):
            lines += map(assign, *zip(*list_llm_rules(task, run, runs).items(), strict=True))
        if run.strategy == "prompted":  # no model is trained
            continue
        flags = make_flags(task, scale, run=run, tasks=tasks, real_text=real_text)
        lines.append(assign(f"FLAGS_{task}/{run.name}", show_flags(flags)))
        if run.needs:
            labels = f"{task}/{name_pass(run, runs)}"
            lines.append(assign(f"LABELS_{task}/{run.name}", labels))
            plain = make_run("dist", run.labels, run.seed, int(Path(labels).stem))
            flags = make_flags(task, scale, run=plain, tasks=tasks, real_text=real_text)
            lines.append(assign(f"FLAGS_{labels}", show_flags(flags)))
    evaluation = make_evaluation_flags(task, scale, tasks)
    return [*dict.fromkeys(lines), assign(f"EVALUATE_{task}", show_flags(evaluation))]


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
    llm_tokens: dict  # "in", "out", "cached" -> count
    llm_model: str  # None where not recorded
    gpu: str  # as the driver names it; None on a CPU
    gpus: int
    hours: Fraction  # all but the teacher's pass, times the number of GPUs
    pass_hours: Fraction  # this run's share of the teacher's pass over the unlabeled rows
    evaluate_hours: Fraction


def read_record(folder):
    """The Record of a run folder, None where it only scores a model that was trained elsewhere;
    a UserError names the file and the field at fault."""
    path, scored = folder / "training.json", folder / "metrics.json"
    metrics = read_json(scored) if scored.exists() else {}
    training = read_json(path) if path.exists() else metrics.get("training")
    if training is None:
        return None

    def need(record, key):
        if not isinstance(record, dict) or record.get(key) is None:
            raise UserError(f"{path}: no {key!r} in this record; train this run again")
        return record[key]

    def count(key, record=training, least=0):
        return parse_count(record.get(key) or 0, f"{path}: {key!r}", least)

    def hours(phases, gpus):
        used = (parse_amount(v, f"{path}: seconds {k!r}") for k, v in phases.items())
        return sum(used, Fraction(0)) * max(1, gpus) / 3600

    hardware, seconds = need(training, "hardware"), need(training, "seconds")
    cpu = need(hardware, "device") == "cpu"
    gpus = 1 if cpu else count("gpus", hardware, 1)
    teacher_pass = hours({"teacher_pass": seconds.get("teacher_pass", 0)}, gpus)
    labels = count("labels")
    if RUN_NAME.fullmatch(folder.name):  # people's labels alone; the file also counts an LLM's
        labels = parse_run(folder.name).labels
    return Record(
        folder.name,
        folder.resolve().parent.parent.name,
        str(need(training, "task")),
        str(need(training, "strategy")),
        labels,
        count("unlabeled"),
        count("seed"),
        *read_llm_use(folder, training),
        None if cpu else str(need(hardware, "gpu")),
        gpus,
        hours(seconds, gpus) - teacher_pass,
        teacher_pass,
        hours(metrics.get("seconds") or {}, count("gpus", metrics.get("hardware") or {})),
    )


def find_annotation(folder):
    """The annotation.json of a run, in its folder or one below; None where it has none."""
    found = [folder / "annotation.json", *sorted(folder.glob("*/annotation.json"))]
    return next((path for path in found if path.exists()), None)


def read_llm_use(folder, training):
    """(tokens in, out and cached; model or None) of a run's LLM labels: as its record says, or
    its annotation.json. A simulated annotator has no model."""
    path = find_annotation(folder)
    used = training if training.get("llm_tokens") or path is None else read_json(path)
    tokens = used.get("llm_tokens") or {}
    tokens = tokens if isinstance(tokens, dict) else {"in": tokens}
    tokens = {k: parse_count(v, f"{path}: llm_tokens {k!r}") for k, v in tokens.items()}
    simulated = str(used.get("annotator")).startswith("simulated")
    return tokens, None if simulated else used.get("llm_model")


def read_runs(folder):
    """Records of every finished run below `folder`, by path."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the runs")
    found = {path.parent for path in folder.rglob("training.json")}
    found |= {path.parent for path in folder.rglob("metrics.json")}
    by_numbers = sorted(found, key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(15), str(path)))
    records = [record for record in map(read_record, by_numbers) if record]
    if not records:
        raise UserError(f"{folder}: no finished run here (no training.json); train one first")
    return records


def measure_rates(name, folder, prices, gpu=None, gpu_speed=None, priced=False):
    """(GPU, labels -> teacher hours, labels -> hours an example) of the runs of task `name`.

    Hours of teachers with the same N are averaged; distilling is hours over rows of all runs.
    On a CPU the hours count as those of `gpu`, unless the hour is `priced` by flag.
    """
    if folder is None:
        raise UserError("--rates measured: pass --runs DIR, the folder of your runs")
    records = [record for record in read_runs(folder) if record.task == name]
    teachers = [record for record in records if record.strategy == "teacher"]
    students = [record for record in records if record.strategy == "dist" and record.unlabeled]
    if not teachers or not students:
        raise UserError(
            f"{folder}: {len(teachers)} teacher and {len(students)} dist runs of task {name!r}; "
            "measured rates need one of each"
        )
    kinds = [r.gpu and match_gpu(prices, r.gpu) for r in teachers + students]
    if None in kinds and not gpu and not priced:
        raise UserError(
            f"{folder}: these runs used a CPU, which has no price; pass --gpu NAME to count "
            "their seconds as that GPU's, or --gpu-usd-per-hour"
        )
    if len(set(kinds)) > 1 and not gpu:
        raise UserError(f"{folder}: runs on {len(set(kinds))} kinds of device; name one by --gpu")
    target = gpu or kinds[0] or "CPU"
    used = {}
    for record, kind in zip(teachers + students, kinds, strict=True):
        same = kind is None or kind.lower() == target.lower()
        factor = 1 if same else compare_speeds(prices, kind, target, gpu_speed)
        key = record.labels if record.strategy == "teacher" else "dist"
        used.setdefault(key, []).append((record.hours + record.pass_hours) * factor)
    distill = sum(used.pop("dist")) / sum(record.unlabeled for record in students)
    return target, {n: sum(each) / len(each) for n, each in sorted(used.items())}, {0: distill}


class Ledger:
    """Prices Records by list `which`; dollars are None where a CPU has no price."""

    def __init__(self, prices, tasks, which, gpu=None, gpu_usd_per_hour=None, llm_model=None):
        self.prices, self.tasks, self.which, self.gpu = prices, tasks, which, gpu
        self.usd_per_hour, self.llm_model = gpu_usd_per_hour, llm_model
        self.notes = {}  # in order, each once

    def price_hours(self, record, hours):
        if self.usd_per_hour is not None:
            return hours * self.usd_per_hour
        kind = match_gpu(self.prices, record.gpu) if record.gpu else self.gpu
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
        model = self.llm_model or record.llm_model or name_llm(self.which)
        usd = price_tokens(self.prices, model, self.which)
        self.notes[f"{self.which}: tokens are those of {model}"] = None
        return sum(usd[kind] * count for kind, count in record.llm_tokens.items())

    def sum_up(self, labels_usd, llm_usd, parts):
        """The four amounts of a bill; `parts` are (Record, hours)."""
        parts = [self.price_hours(*part) for part in parts]
        compute = None if None in parts else sum(parts, Fraction(0))
        total = None if compute is None else labels_usd + llm_usd + compute
        return {"labels_usd": labels_usd, "llm_usd": llm_usd, "compute_usd": compute, "usd": total}

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
        labels, llm, passes = {}, {}, {}
        for record in records:
            key = (record.world, record.task, record.seed)
            labels[key] = max(labels.get(key, 0), self.price_labels(record))
            llm[key] = max(llm.get(key, 0), self.price_llm(record))
            needs = parse_run(record.run).needs if RUN_NAME.fullmatch(record.run) else ()
            key += (needs or record.run,)
            passes[key] = max(passes.get(key, record), record, key=lambda each: each.pass_hours)
        parts = [(r, r.hours) for r in records] + [(r, r.pass_hours) for r in passes.values()]
        bill = self.sum_up(sum(labels.values()), sum(llm.values()), parts)
        return {"hours": sum((hours for _, hours in parts), Fraction(0)), **bill}


def group_tables(records, tasks, asked=None):
    """{"world task table": (its Records, how many runs it needs)} for the tables whose runs, at
    the seeds there, are all there; table `asked` is listed incomplete too."""
    groups, found = {}, {}
    for record in records:
        groups.setdefault((record.world, record.task), {})[record.run] = record
    for (world, task), runs in groups.items():
        seeds = sorted({record.seed for record in runs.values()})
        for table in TABLES:
            try:
                wanted = grid(table, task, world.split("-")[0], seeds, tasks=tasks)
                names = [run.name for run in wanted if run.strategy != "prompted"]
            except UserError:  # the table isn't made for this task, or the folder for a scale
                continue
            there = [runs[name] for name in names if name in runs]
            if there and (len(there) == len(names) or table == asked):
                found[f"{world} {task} {table}"] = (there, len(names))
    return found


REPORT_NOTES = (
    "Model: dollars of its labels, its own hours and those of the runs it needs",
    "totals pay nothing twice: labels once a task and seed, a teacher's pass once",
    "hours of evaluation are listed and not priced, as in the paper",
)


def report(folder, prices, tasks=DATA / "tasks.json", table=None, gpu=None, **asked):
    """What the runs below `folder` cost: by run, strategy, table and in all, by both lists.

    `gpu` prices hours on a CPU; `asked`: gpu_usd_per_hour (of every hour), llm_model.
    """
    records, entries = read_runs(folder), load_tasks(tasks)
    lists = ("paper", "today")
    books = {which: Ledger(prices, entries, which, gpu, **asked) for which in lists}
    others = {(record.world, record.task, record.run): record for record in records}

    def price_group(group):
        return {"runs": len(group), **{w: books[w].price_group(group) for w in lists}}

    runs, strategies, tables = [], {}, {}
    for record in records:
        strategies.setdefault(record.strategy, []).append(record)
        told = record._asdict()
        told["hours"] += told.pop("pass_hours")
        runs.append({**told, **{w: books[w].price_model(record, others) for w in lists}})
    for name, (group, needed) in group_tables(records, tasks, table).items():
        tables[name] = {"needs": needed, **price_group(group)}
    strategies = {name: price_group(group) for name, group in strategies.items()}
    total = price_group(records)
    notes = [note for book in books.values() for note in book.notes]
    if any(record.gpu is None for record in records) and not asked.get("gpu_usd_per_hour"):
        said = f"are priced as hours of one {gpu}" if gpu else "have no price (--gpu gives one)"
        notes.append(f"hours on a CPU {said}")
    if any(set(record.llm_tokens) == {"in"} for record in records):
        notes.append("LLM tokens recorded without a split are priced as input")
    unknown = [r.run for r in records if r.strategy == "llm" and not any(r.llm_tokens.values())]
    if unknown:
        notes.append(f"no LLM tokens recorded, so none priced: {', '.join(unknown)}")
    result = {"runs": runs, "strategies": strategies, "tables": tables, "total": total}
    return {**result, "notes": [*notes, *REPORT_NOTES]}


# --- the paper's scores --------------------------------------------------------------------


def load_scores(path=DATA / "paper_scores.csv"):
    """The scores that the paper prints in Tables 2, 3, 4, 9, 10 and 11: one dict per cell.

    Keys: table, task, strategy (small, teacher, dist, self, distilbert, bert; small-full: on all
    labels; existing: of other papers), labels (N), budget_usd (additional dollars; in Table 4
    all that is printed), extra_labels, gpu_hours, unlabeled, metric, score, note. Counts are
    ints and scores floats; None where nothing or N/A is printed, or, see note, isn't legible.
    """
    numbers = ("table", "labels", "budget_usd", "extra_labels", "gpu_hours", "unlabeled")
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row.update({key: int(row[key]) if row[key] else None for key in numbers})
        row["score"] = float(row["score"]) if row["score"] not in ("", "N/A") else None
    return rows


# --- command line --------------------------------------------------------------------------


def print_json(value):
    print(json.dumps(to_json(value), indent=2))


def print_notes(notes):
    print("\n".join(["", *(f"- {note}" for note in notes)]))


def parse_seeds(text):
    """The seeds of a flag such as "0 1 2", each once."""
    seeds = tuple(dict.fromkeys(parse_count(seed, "--seeds") for seed in text.split()))
    if not seeds:
        raise UserError("--seeds: no seed given; write for example --seeds '0 1 2'")
    return seeds


def read_terms(args):
    """The Terms that the flags of plan, convert and grid describe."""
    entry, prices = load_task(args.task, args.tasks), load_prices(args.prices)
    asked = {name: getattr(args, name) for name in ["rates", "runs", *ASKED]}
    return make_terms(args.task, entry, prices, args.price_list, **asked)


def run_plan(args):
    """what a budget buys under each strategy"""
    terms = read_terms(args)
    budget, labels = parse_amount(args.budget, "--budget"), parse_count(args.labels, "--labels", 1)
    result = plan(terms, labels, budget)
    if args.json:
        return print_json(result)
    title, initial = load_task(args.task, args.tasks)["title"], show_usd(result["initial_usd"])
    each = show_price(terms.usd_per_label)
    print(f"{title}: N = {labels:,} labels ({initial} at {each}).", end=" ")
    print(f"{show_usd(budget)} more buy one of:\n")
    ann, dist, llm = result["annotate"], result["distill"], result["llm"]
    hours = count_teacher_hours(terms, labels)
    teacher = f"teacher {float(hours):.4g} h, {show_usd(hours * terms.usd_per_gpu_hour)}"
    rows = [["Ann.", f"{ann['extra_labels']:,}", "labels", show_usd(ann["usd"]), ""]]
    if dist:
        detail, count = f"{dist['gpu_hours']} GPU-hours; {teacher}", f"{dist['unlabeled']:,}"
        rows.append(["Dist.", count, "unlabeled examples", show_usd(dist["usd"]), detail])
    else:
        rows.append(["Dist.", "N/A", "", None, f"nothing left to distil with: {teacher}"])
    if llm:
        count, each = f"{llm['extra_labels']:,}", f"{show_price(llm['usd_per_label'])} each"
        rows.append(["LLM", count, "labels by an LLM", show_usd(llm["usd"]), each])
    else:
        rows.append(["LLM", "N/A", "", None, "no tokens per label known for this task"])
    print(show_columns(["Strategy", "Buys", "What", "Spends", "Detail"], rows))
    print(
        "\nAnn.   people label more; the compact model is fine-tuned on N + these labels"
        "\nDist.  a teacher is fine-tuned on the N labels; the compact model learns from its"
        "\n       soft labels on the unlabeled examples"
        "\nLLM    a large language model labels more, paid by the token"
    )
    print_notes(result["notes"])


def run_convert(args):
    """dollars into labels, hours, examples and tokens, and back"""
    terms = read_terms(args)
    first = read_study(args.task, load_task(args.task, args.tasks)).labels_n[0]
    at = parse_count(args.at_labels or first, "--at-labels", 1)
    result, llm = {"task": args.task, "at_labels": at}, terms.usd_per_llm_label
    prices = {"labels": terms.usd_per_label, "llm_labels": llm, "tokens": terms.usd_per_token}
    if args.usd is not None:
        result["usd"] = usd = parse_amount(args.usd, "--usd")
        bought = {name: each and math.floor(usd / each) for name, each in prices.items()}
        distill = plan(terms, at, usd)["distill"]
        result.update(gpu_hours=usd / terms.usd_per_gpu_hour, **bought)
        result["unlabeled"] = distill and distill["unlabeled"]
    elif args.unlabeled is not None:
        count = parse_count(args.unlabeled, "--unlabeled")
        usd, teacher = price_distilling(terms, at, count), price_distilling(terms, at, 0)
        result.update(unlabeled=count, usd=usd, teacher_usd=teacher, distill_usd=usd - teacher)
    elif args.gpu_hours is not None:
        hours = parse_amount(args.gpu_hours, "--gpu-hours")
        result.update(gpu_hours=hours, usd=hours * terms.usd_per_gpu_hour)
    else:
        name = next(name for name in prices if getattr(args, name) is not None)
        count = parse_count(getattr(args, name), f"--{name.replace('_', '-')}")
        if prices[name] is None:
            raise UserError(f"task {args.task!r}: no field 'llm_tokens_per_label' in its entry")
        result.update({name: count, "usd": count * prices[name]})
    if args.json:
        return print_json({**result, "notes": terms.notes})
    for name, value in result.items():
        if "usd" in name:
            value = show_usd(value)
        elif isinstance(value, (int, Fraction)):
            value = f"{float(value):,.2f}" if name == "gpu_hours" else f"{value:,}"
        print(f"{name:12} {'N/A' if value is None else value}")
    print_notes(terms.notes)


def run_grid(args):
    """the runs of a table or figure, each once, after what it needs"""
    seeds, results = parse_seeds(args.seeds), []
    several = args.task == "all" or " " in args.task.strip()
    for name in choose_tasks(args.table, args.task, args.tasks):
        args.task = name
        place = (args.table, name, args.scale, seeds, read_terms(args), args.tasks, args.llm)
        place += (args.prepared,)
        runs = grid(*place)
        results.append({"task": name, "runs": runs, "cells": cells(*place)})
        for run in () if args.json else runs:
            print(f"{name}/" * several + run.name)
    if args.json:
        print_json({"for": args.table, "scale": args.scale, "seeds": seeds, "tasks": results})


def run_flags(args):
    """command-line flags of the script that trains a strategy or a run"""
    if (args.strategy is None) == (args.run is None):
        raise UserError("flags: pass one of --strategy NAME and --run NAME")
    run = parse_run(args.run) if args.run else None
    shared = (args.task, args.scale, args.strategy, run, args.tasks, args.real_text)
    print(show_flags(make_flags(*shared)))


def run_rules(args):
    """what make must know of the runs of tables and figures: Makefile variables"""
    seeds, place = parse_seeds(args.seeds), (args.tasks, args.llm, args.prepared)
    names, wanted = args.table.split(), {}
    if args.table == "all":
        asked = list_tasks(args.task, args.tasks)
        names = [table for table in TABLES if any(shows(table, name) for name in asked)]
    for table in names:
        chosen = choose_tasks(table, args.task, args.tasks)
        wanted[table] = {t: grid(table, t, args.scale, seeds, None, *place) for t in chosen}
    every = {}
    for runs in wanted.values():
        for task in runs:
            every.setdefault(task, {}).update({run.name: run for run in runs[task]})
    print(f"ASKED := {' '.join(wanted)}")
    for task, runs in every.items():
        rules = list_rules(task, runs.values(), args.scale, args.tasks, args.real_text)
        print("\n".join(rules))
    for table, runs in wanted.items():
        work = (order_work(task, runs[task], every[task].values()) for task in runs)
        print(f"WORK_{table} := {' '.join(itertools.chain(*work))}")


def run_report(args):
    """what finished runs cost: by run, strategy, table and in all"""
    prices, hour = load_prices(args.prices), args.gpu_usd_per_hour
    hour = None if hour is None else parse_amount(hour, "--gpu-usd-per-hour")
    if args.gpu and hour is None:
        price_gpu_hour(prices, args.gpu, "paper")  # an unknown name stops here, used or not
    if args.table not in (None, *TABLES):
        raise UserError(f"unknown table or figure {args.table!r}; known: {', '.join(TABLES)}")
    asked = {"gpu_usd_per_hour": hour, "llm_model": args.llm_model}
    result = report(args.folder, prices, args.tasks, args.table, args.gpu, **asked)
    if args.json:
        return print_json(result)

    def usd(bill, *keys):
        return [show_usd(bill[which][key]) for key in keys for which in ("paper", "today")]

    groups = {}
    for run in result["runs"]:
        device = (run["gpu"] or "CPU") + (f" x{run['gpus']}" if run["gpus"] > 1 else "")
        hours = [f"{float(run[key]):.3f}" for key in ("hours", "evaluate_hours")]
        row = [run["run"], device, *hours, *usd(run, "labels_usd")[:1]]
        row += usd(run, "compute_usd", "usd")
        groups.setdefault(f"{run['world']}/{run['task']}", []).append(row)
    heads = "Device,Hours,Evaluating,Labels,Compute (paper),(today),Model (paper),(today)"
    for place, rows in groups.items():
        print(show_columns([place, *heads.split(",")], rows), end="\n\n")
    bills = {**result["strategies"], **result["tables"], "all runs": result["total"]}
    rows = []
    for name, bill in bills.items():
        whole = bill.get("needs", bill["runs"]) == bill["runs"]
        runs = bill["runs"] if whole else f"{bill['runs']} of {bill['needs']}"
        row = [name, runs, f"{float(bill['paper']['hours']):.3f}", *usd(bill, "labels_usd")[:1]]
        rows.append(row + usd(bill, "llm_usd", "compute_usd", "usd"))
    heads = "Runs,Hours,Labels,LLM (paper),(today),Compute (paper),(today),All (paper),(today)"
    print(show_columns(["Totals", *heads.split(",")], rows))
    print_notes(result["notes"])


def run_prices(args):
    """the price list, with source and date"""
    prices = load_prices(args.prices)
    if args.json:
        return print_json(prices)
    rows = []
    for p in prices:
        value = show_price(p.usd) if p.ratio is None else f"{float(p.ratio):g} x"
        rows.append((p.list, p.item, p.name, value, p.unit, p.date, p.source))
    print(show_columns("List,Item,Name,Price,Unit,Date,Source".split(","), rows))
    print_notes(
        [f"{args.prices}: edit it, or pass --prices FILE; a price given by flag comes first"]
    )


LLM_DEFAULT = "(default: text-davinci-003; of today's list gpt-4o-mini)"
FLAGS = {  # flag -> (its value's name, None for a switch; help); default None unless in DEFAULTS
    "task": ("NAME", "a task of --tasks, e.g. wlp; grid and rules take several, or all"),
    "labels": ("N", "labels there are already"),
    "budget": ("USD", "additional dollars"),
    "at-labels": ("N", "labels of the teacher (default: the first N of the task)"),
    "for": ("TABLE", f"one of {', '.join(TABLES)}; rules takes several, or all"),
    "scale": ("NAME", "an entry of data/scales.json (default: mini)"),
    "seeds": ("LIST", "seeds, e.g. '0 1 2' (default: 0)"),
    "prepared": ("DIR", "folder of data/prepare.py: its row counts limit the runs"),
    "llm": (None, "also runs on LLM labels at equal dollars (default: no)"),
    "strategy": ("NAME", "small, teacher, dist, self, llm, distilbert or bert"),
    "run": ("NAME", "name of a run: its strategy, counts and seed"),
    "real-text": (
        None,
        "data of one's own, not the scale's: flags of \"real-text\" too (default: no)",
    ),
    "json": (None, "print JSON (default: a table)"),
    "tasks": ("FILE", "task entries (default: data/tasks.json)"),
    "prices": ("FILE", "price list (default: data/prices.csv)"),
    "rates": ("KIND", "paper, or measured: GPU time of one's own --runs (default: paper)"),
    "runs": ("DIR", "folder of runs for --rates measured"),
    "price-list": ("LIST", "paper or today: rows of the price list (default: paper)"),
    "gpu": ("NAME", "GPU to rent, of the price list (default: the paper's A40; that of --runs)"),
    "gpu-usd-per-hour": ("USD", "dollars of an hour of it (default: price list)"),
    "gpu-speed": ("X", "its speed in multiples of an A100-40GB (default: price list)"),
    "usd-per-label": ("USD", "dollars of a label (default: price list)"),
    "usd-per-1k-tokens": ("USD", "dollars of 1,000 LLM tokens (default: price list)"),
    "llm-model": ("NAME", f"LLM to pay {LLM_DEFAULT}"),
}
DEFAULTS = {
    "scale": "mini",
    "seeds": "0",
    "tasks": DATA / "tasks.json",
    "prices": DATA / "prices.csv",
    "rates": "paper",
    "price-list": "paper",
}
CHOICES = {"rates": ("paper", "measured"), "price-list": ("paper", "today")}
ASKED = "gpu gpu_usd_per_hour gpu_speed usd_per_label usd_per_1k_tokens llm_model".split()
TERMS = "tasks prices price-list rates runs " + " ".join(ASKED).replace("_", "-")
COMMANDS = {  # name -> (function, its flags, ! marks a required one); its docstring is the help
    "plan": (run_plan, f"!task !labels !budget json {TERMS}"),
    "convert": (run_convert, f"!task at-labels json {TERMS}"),
    "grid": (run_grid, f"!for !task scale seeds llm prepared json {TERMS}"),
    "flags": (run_flags, "!task scale strategy run real-text tasks"),
    "rules": (run_rules, "!for !task scale seeds llm prepared real-text tasks"),
    "report": (run_report, "for json tasks prices gpu gpu-usd-per-hour llm-model"),
    "prices": (run_prices, "json prices"),
}
OWN_FLAGS = {  # where a command means something else by a flag; convert takes one of these
    "report": {
        "for": ("TABLE", "list this table too if runs of it are missing"),
        "gpu": ("NAME", "price hours on a CPU as hours of this GPU (default: no dollars)"),
        "gpu-usd-per-hour": ("USD", "dollars of every hour, on any device (default: price list)"),
    },
    "convert": {
        "usd": ("USD", "dollars into all that they buy"),
        "labels": ("N", "labels by people into dollars"),
        "llm-labels": ("N", "labels by an LLM into dollars"),
        "tokens": ("N", "input tokens of an LLM into dollars"),
        "gpu-hours": ("H", "hours of a GPU into dollars"),
        "unlabeled": ("N", "distilled examples into dollars, teacher included"),
    },
}


def add_flag(add, command, name, required=False):
    value, text = {**FLAGS, **OWN_FLAGS.get(command, {})}[name]
    if value is None:
        return add(f"--{name}", action="store_true", help=text)
    kind = {"metavar": value, "default": DEFAULTS.get(name), "help": text}
    if name in CHOICES:
        kind["choices"] = CHOICES[name]
    if required:  # a group of flags that exclude each other doesn't take this word
        kind["required"] = True
    return add(f"--{name}", dest="table" if name == "for" else None, **kind)


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (function, flags) in COMMANDS.items():
        text = function.__doc__
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "report":
            command.add_argument("folder", help="a folder of runs, e.g. runs/ or runs/mini/wlp")
        if name == "convert":
            group = command.add_mutually_exclusive_group(required=True)
            for flag in OWN_FLAGS[name]:
                add_flag(group.add_argument, name, flag)
        for flag in flags.split():
            add_flag(command.add_argument, name, flag.lstrip("!"), flag.startswith("!"))
        command.set_defaults(function=function)
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
