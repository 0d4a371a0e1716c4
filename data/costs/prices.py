"""Exact money and the price list: dollars of labels, GPU-hours and tokens, speeds of GPUs.

Reads:  data/prices.csv (edit it)
Paper:  section 2.5, Table 1, appendices A and E
"""

import functools
import itertools
import math
import re
import textwrap
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from data.files import DATA, UserError, parse_amount, parse_price, read_csv, read_json

read_texts = functools.cache(read_json)  # later than at import: a copied stage lacks the file

# --- money ---------------------------------------------------------------------------------

# Money is a Fraction of a dollar. Floats lose labels: three dimes buy two labels at $0.10, as
# 0.1 + 0.2 is not 0.3. Decimal mends sums, but what decides a count here are quotients
# ($435 / 100,000 rows, seconds / 3,600, budget / price) and only Fraction keeps those exact, so
# floor and ceil below are never off by one. Rounding happens once, when an amount is printed.


def show_usd(amount):
    """Dollars and cents, rounded half to even: $1,300.00; below a cent two digits: $0.0034."""
    if amount and 0 < amount < Fraction(1, 100):
        return f"${Decimal(f'{float(amount):.1e}'):f}"
    return None if amount is None else f"${round(amount * 100) / 100:,.2f}"


def show_dollars(amount):
    """Dollars without cents where there are none; None stays None."""
    return None if amount is None else show_usd(amount).removesuffix(".00")


def show_price(amount):
    """A price with two to six decimals: $0.26, $0.00435."""
    whole, decimals = f"{round(amount * 10**6) / 10**6:,.6f}".split(".")
    return f"${whole}.{decimals.rstrip('0').ljust(2, '0')}"


def to_json(value):
    """`value` for json.dumps: a Fraction becomes an int where whole, else the nearest float, and
    what is endless becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Fraction):
        return int(value) if value.denominator == 1 else float(value)
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, dict):
        return {key: to_json(entry) for key, entry in value.items()}
    return [to_json(entry) for entry in value] if isinstance(value, (list, tuple)) else value


PAGE = 100  # columns of a terminal, and of a LaTeX table that takes one of two columns
WHOLE = {"break_long_words": False, "break_on_hyphens": False}  # a path, a name


def show_columns(heads, rows):
    """An aligned plain table: columns of numbers stand right, None shows as –. Where it is wider
    than a page, its heads take a line a word and the last column's texts as many as they need."""
    rows = [["–" if cell is None else str(cell) for cell in row] for row in rows]
    top, widths = [heads], measure([heads, *rows])
    if sum(widths) + 2 * len(widths) - 2 > PAGE:
        words = (head.split()[::-1] for head in heads)
        top = [*itertools.zip_longest(*words, fillvalue="")][::-1]
        *others, last = measure([*top, *rows])
        widths = [*others, min(last, max(20, PAGE - sum(others) - 2 * len(others)))]
    number = re.compile(r"[$+]?[\d.,]+( x)?|–|N/A")
    columns = zip(heads, *rows, strict=True)
    sides = (">" if all(map(number.fullmatch, each[1:])) else "<" for each in columns)
    form = "  ".join(f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=True))
    lines = []
    for *row, last in [*top, *rows]:
        first, *more = textwrap.wrap(last, widths[-1], **WHOLE) or [""]
        lines += [form.format(*row, first), *(form.format(*[""] * len(row), m) for m in more)]
    lines = [line.rstrip() for line in lines]
    return "\n".join([*lines[: len(top)], "-" * max(map(len, lines)), *lines[len(top) :]])


def measure(lines):
    """The width of each column."""
    return [max(map(len, column)) for column in zip(*lines, strict=True)]


def fill(text, indent="  "):
    """Each line of a text on as many lines of a page as it takes, those after the first indented;
    a long word, such as a path, stays whole."""
    lines = text.split("\n")
    return "\n".join(textwrap.fill(line, PAGE, subsequent_indent=indent, **WHOLE) for line in lines)


def tell(key, **words):
    """A text of data/costs/texts.json with its words, e.g. tell("not_affordable", teacher="$9")."""
    return read_texts(DATA / "costs" / "texts.json")[key].format(**words)


# --- the price list ------------------------------------------------------------------------

LISTS = ("paper", "today", "other")
ITEMS = ("label", "gpu", "tokens-in", "tokens-out", "tokens-cached", "speed", "batch")
UNITS = {"label": 1, "hour": 1, "1K tokens": 1000, "1M tokens": 10**6}
SOLD_BY = {"label": ["label"], "gpu": ["hour"], "tokens": ["1K tokens", "1M tokens"]}
DATE = re.compile(r"\d{4}(-\d\d){0,2}(/\d{4}(-\d\d){0,2})?")
# A card with one of these words more is another card: a slice of one, a laptop's, a faster one.
VARIANTS = {"mig", "laptop", "ti", "super", "d", "ada", "max", "nvl"}


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


def read_price(row, where):
    """One row of the list, checked; a UserError names the line and the column."""
    text = {key: row[key].strip() for key in Price._fields}
    units = SOLD_BY.get(text["item"].partition("-")[0])  # None of a ratio
    known = {"list": LISTS, "item": ITEMS, "unit": units or [text["unit"]]}
    for column, words in known.items():
        if text[column] not in words:
            raise UserError(f"{where}: {column} {text[column]!r} is none of {', '.join(words)}")
    for column in ("name", "source"):  # say where a price stands
        if not text[column]:
            raise UserError(f"{where}: {column} is empty")
    if not DATE.fullmatch(text["date"]):
        example = "is no date such as 2026-11 or 2026-11-05"
        raise UserError(f"{where}: date {text['date']!r} {example}")
    column, parse = ("usd", parse_amount) if units else ("ratio", parse_price)
    value = parse(text[column], f"{where}: {column}")
    return Price(**{**text, "usd": None, "ratio": None, column: value})


def load_prices(path=DATA / "prices.csv"):
    """The price list, every row checked: exact amounts, known items and units, no doubles."""
    prices, seen = [], set()
    for line, row in read_csv(path, Price._fields).items():
        price = read_price(row, f"{path} line {line}")
        key = (price.list, price.item, price.name.lower())
        if key in seen and price.list != "other":
            raise UserError(f"{path} line {line}: a second row {' '.join(key)}; mark one as other")
        seen.add(key)
        prices.append(price)
    if len({price.unit for price in prices if price.item == "speed"}) > 1:
        raise UserError(f"{path}: the speed rows name two units; compare all GPUs to one GPU")
    return prices


def find_price(prices, which, item, name):
    """Dollars of one label, hour or token in list `which`, or None where it has no such row."""
    wanted = (which, item, name.lower())
    found = (price for price in prices if (*price[:2], price.name.lower()) == wanted)
    return next((price.usd / UNITS[price.unit] for price in found), None)


def find_speed(prices, gpu):
    """(the GPU that speeds refer to, speed of `gpu` in multiples of it or None)."""
    base = next((price.unit for price in prices if price.item == "speed"), "one GPU")
    speeds = {p.name.lower(): p.ratio for p in prices if p.item == "speed"}
    return base, Fraction(1) if gpu.lower() == base.lower() else speeds.get(gpu.lower())


def compare_speeds(prices, kind, gpu, gpu_speed):
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

    more = {gpu: words(device) - words(gpu) for gpu in list_gpus(prices)}
    found = [gpu for gpu in more if words(gpu) <= words(device) and not more[gpu] & VARIANTS]
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


def price_label(prices, name, task=None, which="paper"):
    """Dollars of one label of task `name`: its entry's usd_per_label, or the list's row."""
    if task and task.usd_per_label is not None:
        return task.usd_per_label
    found = (find_price(prices, each, "label", name) for each in (which, "paper", "today"))
    if (usd := next((usd for usd in found if usd is not None), None)) is not None:
        return parse_price(usd, f"task {name!r}: price of a label")
    raise UserError(
        f"task {name!r}: no price of a label; give its entry a field 'usd_per_label', add a row "
        "to the price list, or pass --usd-per-label"
    )


def name_llm(which):
    """The LLM that list `which` pays: the paper's, or a successor as that one was shut down."""
    return "text-davinci-003" if which == "paper" else "gpt-6-luna"
