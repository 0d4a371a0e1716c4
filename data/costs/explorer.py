"""The advice as a page with a slider for every price: one file that opens from the disk.

Reads:  data/costs/explorer.html, the template; its model is that of curves.py and advise.py
Writes: the page that is asked for; standard library only

The page carries some of the posterior's draws, which do not depend on prices; all else is computed
where it is read, without a network or a server.
"""

import json
from pathlib import Path

from data.costs.prices import to_json
from data.files import UserError, write_atomic

DRAWS = 300
COLUMNS = ("f", "a", "k", "b", "s", "at", "kt", "bt", "cap", "r", "bd", "sd")


def make_row(draw, columns):
    """One draw, its numbers to six digits."""
    values = [getattr(draw, name) for name in columns] + draw.z
    return [float(f"{value:.6g}") for value in values]


def make_state(title, posterior, market, found, serving, command, llm_tokens=None):
    """What the page computes from: draws, what the pilot saw, hours, prices, seconds.

    found: the advice's plain numbers; serving: [(Serving, dollars of an hour of its device)], which
    for the GPU to rent is the slider's.
    """
    terms, columns = market.terms, [*COLUMNS, *("l", "w") * market.llm]
    draws = posterior.draws[:: max(1, len(posterior.draws) // DRAWS)][:DRAWS]
    ways = [
        {"model": way.model, "seconds": way.seconds, "gpus": way.gpus, "hour_usd": hour,
         "rented": way.gpu is not None and hour == terms.usd_per_gpu_hour}
        for way, hour in serving
    ]  # fmt: skip
    prices = {"label_usd": terms.usd_per_label, "gpu_usd": terms.usd_per_gpu_hour, "factor": 1}
    prices |= {"llm_usd": terms.usd_per_llm_label, "budget": found["split"]["budget"]}
    counts = {"labels": market.labels, "unlabeled": market.unlabeled, "predictions": 1_000_000}
    state = {"title": title, "rows": [make_row(draw, columns) for draw in draws]}
    state["columns"] = [*columns, *(f"z{i}" for i in range(5))]
    state |= {key: getattr(posterior, key) for key in ("most_labels", "most_rows", "error")}
    state |= {key: getattr(market, key) for key in ("unit", "llm")}
    state |= {"labels_there": market.most_labels, "llm_tokens": llm_tokens, "command": command}
    state["teacher_hours"] = sorted(terms.teacher_hours.items())
    state["row_hours"] = sorted(terms.distill_hours.items())
    state["serving"] = ways + [{"model": "LLM"}] * (terms.usd_per_llm_label is not None)
    state |= {"sure": found["sure"], "notes": found["notes"], "market": {**prices, **counts}}
    return state


def write_page(path, state):
    """Write the page; a text of the task cannot end the element that holds the numbers."""
    path = Path(path)
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(b"<!doctype html>")):
        raise UserError(f"{path}: is no such page and would be overwritten; choose another --page")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    data = json.dumps(to_json(state), separators=(",", ":")).replace("<", "\\u003c")
    write_atomic(path, template.replace("__DATA__", data))
