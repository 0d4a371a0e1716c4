"""What a prediction costs once the model is there, and from how many on building it has paid.

Reads:  metrics.json of scored runs: seconds of generating, rows, device
Paper:  none; it counts training alone
"""

import contextlib
import math
import statistics
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.costs.prices import match_gpu, price_gpu_hour
from data.costs.runs import find_run, find_run_folder
from data.costs.stale import METRICS
from data.files import UserError, need, parse_amount, parse_count, read_json

KINDS = {"teacher": "teacher", **dict.fromkeys(("small", "dist", "self", "llm"), "student")}


class Serving(NamedTuple):
    """Measured seconds of one prediction; loading the model is not in them."""

    place: str  # world and task, e.g. mini/wlp
    model: str  # student or teacher
    gpu: str  # as the driver names it, None on a CPU
    gpus: int
    batch: int  # rows at a time, None where not recorded
    seconds: Fraction
    runs: int  # whose median this is

    def price(self, hour):
        """Dollars per million predictions at `hour` dollars of one device, None where that is
        None."""
        return None if hour is None else 1_000_000 * self.seconds * self.gpus * hour / 3600

    def show(self, usd):
        """It as the reports write it, at `usd` per million predictions."""
        batch = f", {self.batch} rows at a time" if self.batch else ""
        if usd is None:
            device = f"{self.gpu or 'CPU'}{batch}, which have no price"
            return f"{self.model} {float(self.price(1)):,.1f} hours of {device}"
        return f"{self.model} {show_predictions(usd)} on {self.gpu or 'a CPU'}{batch}"


def measure_serving(folder):
    """The Servings of all scored runs below a folder: student and teacher, on each device."""
    found = {}
    for path in sorted(Path(folder).rglob("metrics.json")):
        home = find_run_folder(path)
        run = find_run(home.name)
        usual = run and run.usual and run.strategy in KINDS
        metrics = read_json(path, METRICS) if usual else {}
        if hardware := metrics.get("hardware"):
            rows = parse_count(metrics.get("n"), f"{path}: 'n'", 1)
            seconds = need(metrics, "seconds generate", float, path)
            seconds = parse_amount(seconds, f"{path}: 'seconds generate'")
            device = hardware.get("gpu"), hardware.get("gpus") or 1
            device = (None, 1) if hardware.get("device") == "cpu" else device
            batch = (metrics.get("settings") or {}).get("batch_size")
            key = ("/".join(home.resolve().parts[-3:-1]), KINDS[run.strategy], *device, batch)
            found.setdefault(key, []).append(seconds / rows)
    order = sorted(found.items(), key=lambda item: str(item[0]))
    return [Serving(*key, statistics.median(seconds), len(seconds)) for key, seconds in order]


def price_hour(serving, prices, which, gpu=None, usd_per_hour=None, cpu_usd_per_hour=None):
    """Dollars of an hour of the device that was measured; None where it has no price.
    `usd_per_hour`, if given, is that of `gpu`, or of any GPU."""
    if serving.gpu is None:
        return cpu_usd_per_hour
    kind = match_gpu(prices, serving.gpu)
    if usd_per_hour is not None and gpu in (None, kind):
        return usd_per_hour
    with contextlib.suppress(UserError):
        return price_gpu_hour(prices, kind, which)[0]


def find_payback(build, serve, other_build, other_serve):
    """Predictions from which building pays, against another way; inf where it never does.

    Builds in dollars, serving in dollars per million predictions.
    """
    saved = other_serve - serve
    return max(0.0, float(1_000_000 * (build - other_build) / saved)) if saved > 0 else math.inf


def show_predictions(usd):
    """Dollars per million predictions: 0.21, 15.60, 367."""
    return f"{float(usd):,.2f}" if usd < 100 else f"{float(usd):,.0f}"


def report_serving(folder, prices, usd_per_hour, cpu_usd_per_hour):
    """(an entry for each task, model and device; the report's line, None where nothing is there)"""
    found, said = [], {}
    for each in measure_serving(folder):
        usd = each.price(price_hour(each, prices, "today", None, usd_per_hour, cpu_usd_per_hour))
        found.append({**each._asdict(), "usd_per_million": usd})
        said.setdefault(each.place, []).append(each.show(usd))
    text = "; ".join(f"{place} {', '.join(models)}" for place, models in said.items())
    line = f"serving (today), $ per million predictions, loading not counted: {text}"
    return found, line if said else None
