"""The store of paid LLM answers: an append-only record of calls, and what they cost.

Reads:  the store that gpt_annotate.py names, a JSONL file
Writes: the same; it only grows
Paper:  Appendix E: dollars per token

A call goes through these records, each on the disk before the next step is taken:
  call    it is about to be sent; its worst case (most tokens of the prompt, longest answer) is
          set aside, so that the budget holds whatever becomes of it
  free    the server refused it (an error below 500): nothing was billed
  lost    no whole answer came (5xx, timeout, dropped connection, broken body): it may have been
          billed, so the worst case stays set aside; a run killed in mid-call leaves the same
  answer  the raw reply and the tokens of its `usage`, which replace the worst case. Every retry
          has the same Idempotency-Key; a server that names it in the reply bills all tries as one
          (`once`), and what the lost ones held is set free
A batch has `batch` in place of its calls (all their worst cases), `batch-id` when the server has
taken it, `batch-end` when its answers are in.
"""

import asyncio
import fcntl
import json
import math
import os
import uuid
from collections import Counter
from contextlib import suppress
from fractions import Fraction
from typing import NamedTuple

from data.costs.prices import parse_amount, price_tokens
from data.files import UserError

TOO_LONG = {"context_length_exceeded", "string_above_max_length"}


class Call(NamedTuple):
    """What is asked once: `make_body(structured)` is its request."""

    key: str  # hash of model, parameters and prompt
    name: str  # for messages: which row of which file
    estimate: float  # tokens of the prompt
    worst: list  # the most it can cost, as tokens: prompt, cached (0), completion
    make_body: object


# --- money ---------------------------------------------------------------------------------


class Money:
    """Exact dollars of tokens: (prompt, those of them that were cached, completion)."""

    def __init__(self, model, prices, given=None):
        """`given` {"in", "cached", "out"}: USD per million tokens, in place of the list's."""
        if given:
            given = {"cached": given["in"], **{k: v for k, v in given.items() if v is not None}}
            given = {k: parse_amount(v, f"--price-{k}") for k, v in given.items()}
            self.usd = {key: usd / 10**6 for key, usd in given.items()}
        else:
            self.usd = price_tokens(prices, model)
        self.rows = [
            f"{p.item} ${float(p.usd):g} per {p.unit} ({p.source}, {p.date})"
            for p in prices
            if p.name == model and p.item.startswith("tokens-") and not given
        ]
        batch = next((p.ratio for p in prices if p.item == "batch"), 1)
        self.share = {"call": 1, "batch": batch}

    def cost(self, tokens, kind="call"):
        prompt, cached, completion = tokens
        usd = (prompt - cached) * self.usd["in"] + cached * self.usd["cached"]
        return Fraction((usd + completion * self.usd["out"]) * self.share[kind])

    def sum(self, tokens):
        return sum(self.cost(counts, kind) for kind, counts in tokens.items())


# --- the store -----------------------------------------------------------------------------


class Store:
    """The append-only record of all calls and answers; one process writes it at a time."""

    def __init__(self, path, settings, money, budget=math.inf, write=True):
        self.path, self.money, self.budget = path, money, budget
        self.answers, self.open, self.attempts, self.batches = {}, {}, Counter(), {}
        self.used = {"call": [0, 0, 0], "batch": [0, 0, 0]}  # tokens by usage
        self.held = {"call": [0, 0, 0], "batch": [0, 0, 0]}  # tokens set aside
        self.billed = {}  # key -> (kind, tokens by usage) of its answer
        self.header, self.structured, self.faults, self.seconds = None, None, Counter(), 0.0
        self.estimated = [0.0, 0]  # prompt tokens of the answered calls: by estimate, by usage
        self.lines, self.count, self.written, self.file = [], 0, 0, None
        self.lock = asyncio.Lock()
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "ab")  # noqa: SIM115 - open, with its lock, until close()
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.file.close()
                raise UserError(
                    f"{path}: another process is writing it; wait until it has ended"
                ) from None
        try:
            self.load(settings)
        except BaseException:
            self.close()
            raise

    def load(self, settings):
        """Read all records, cut off a last line torn by a kill, begin an empty store."""
        data = self.path.read_bytes() if self.path.exists() else b""
        whole = data.rfind(b"\n") + 1
        if self.file and whole < len(data):
            self.file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), 1):
            try:
                self.apply(json.loads(line))
            except (ValueError, LookupError, TypeError, AttributeError) as error:
                where = f"{self.path} line {number}"
                raise UserError(f"{where}: not a record of such a store ({error!r})") from None
            if self.header is None:
                raise UserError(f"{self.path} line 1: not the heading of a store; choose another")
        if self.answers or self.open:
            self.check_settings(settings)
        elif self.file:
            self.file.truncate(0)  # at most refused calls: other settings are welcome
            header = {"type": "store", "version": 1, "id": uuid.uuid4().hex, "settings": settings}
            self.attempts, self.faults = Counter(), Counter()
            self.structured, self.seconds = None, 0.0
            self.write(json.dumps(header, ensure_ascii=False) + "\n", 0)
            self.apply(header)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)  # its name, too
            os.close(folder)

    def check_settings(self, settings):
        """Refuse a store made with other settings: all its answers would be paid for again."""
        for key, value in json.loads(json.dumps(settings)).items():
            before = self.header["settings"].get(key)
            if before != value:
                what = "by model" if key == "model" else f"with {key}"
                old, new = (show_setting(setting) for setting in (before, value))
                raise UserError(
                    f"{self.path}: written {what} {old}, not {new}; go on with the former or name "
                    "another --output"
                )

    def close(self):
        if self.file:
            self.file.close()

    async def append(self, record):
        """Return when `record` is on the disk; records that come together share one fsync."""
        self.lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        self.count += 1
        mine = self.count
        async with self.lock:
            if self.written < mine:
                lines, self.lines = self.lines, []
                await asyncio.to_thread(self.write, "".join(lines), self.count)
        self.apply(record)

    def write(self, text, count):
        if self.file.closed:
            raise UserError(f"{self.path}: closed, as it could not be written")
        try:
            self.file.write(text.encode("utf-8", "surrogatepass"))
            self.file.flush()
            os.fsync(self.file.fileno())
        except OSError:  # nothing may follow a torn line
            with suppress(OSError):
                self.file.close()
            raise
        self.written = count

    def apply(self, record):
        """Take a record into account: the same when it is made and when it is read again."""
        kind, key = record["type"], record.get("key")
        if kind == "store":
            self.header = record
        elif kind == "call":
            self.attempts[key] = record["attempt"]
            self.hold(key, record["attempt"], record["worst"], "call", record["schema"])
        elif kind == "answer":
            self.take_answer(record)
        elif kind in ("free", "lost"):
            self.faults[record["why"]] += 1
            if kind == "free":
                self.release(key, record["attempt"])
        elif kind == "batch":
            self.batches[record["nonce"]] = {"id": None, "calls": record["calls"]}
            for key, worst in record["calls"].items():
                self.hold(key, record["nonce"], worst, "batch")
        elif kind == "batch-id":
            self.batches[record["nonce"]]["id"] = record["id"]
        elif kind == "batch-end":  # what it left unanswered was not billed
            for key in self.batches.pop(record["nonce"])["calls"]:
                if key not in self.answers:
                    self.release(key, record["nonce"])
        elif kind == "decision":
            self.structured = record["structured"]
        elif kind == "session":
            self.seconds += record["seconds"]

    def take_answer(self, record):
        key, attempt, usage = record["key"], record["attempt"], record["usage"]
        self.answers[key] = read_choice(record["raw"], record["status"])
        if record["once"]:
            same = [call for call in self.open if call[0] == key]  # under one Idempotency-Key
            for call in same:
                if call[1] != attempt and self.open[call][2] == record["schema"]:
                    self.release(*call)
        if usage:  # else it is unknown, and the worst case stays
            self.release(key, attempt)
            kind = "batch" if attempt in self.batches else "call"
            self.billed[key], used = (kind, usage), self.used[kind]
            used[:] = [a + b for a, b in zip(used, usage, strict=True)]
            if usage[0]:
                self.estimated[0] += record["estimate"]
                self.estimated[1] += usage[0]

    def hold(self, key, attempt, worst, kind, schema=False):
        if (key, attempt) in self.open:  # set aside before its record was written
            return
        self.open[key, attempt] = worst, kind, schema
        self.held[kind] = [a + b for a, b in zip(self.held[kind], worst, strict=True)]

    def release(self, key, attempt):
        worst, kind, _ = self.open.pop((key, attempt), ([0, 0, 0], "call", False))
        self.held[kind] = [a - b for a, b in zip(self.held[kind], worst, strict=True)]

    def count_used(self, keys):
        """Tokens by usage of the answers to `keys`, as `used`."""
        return add_tokens(self.billed[key] for key in keys if key in self.billed)

    def count_held(self, keys):
        """Tokens set aside for `keys`, as `held`."""
        return add_tokens(
            (entry[1], entry[0]) for call, entry in self.open.items() if call[0] in keys
        )

    def fits(self, worst, kind="call"):
        taken = self.money.sum(self.used) + self.money.sum(self.held)
        return taken + self.money.cost(worst, kind) <= self.budget

    @property
    def calibration(self):
        """Tokens counted by the server per token of our estimate, from the answers so far."""
        return self.estimated[1] / self.estimated[0] if self.estimated[0] else 1.0


def add_tokens(parts):
    """{"call", "batch": [prompt, cached, completion]}: sums of (kind, tokens)."""
    sums = {"call": [0, 0, 0], "batch": [0, 0, 0]}
    for kind, tokens in parts:
        sums[kind] = [a + b for a, b in zip(sums[kind], tokens, strict=True)]
    return sums


def show_setting(value):
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


# --- replies -------------------------------------------------------------------------------


def read_choice(raw, status=200):
    """{"text", "finish", "model"} of a stored reply; a ValueError where it holds no answer."""
    reply = json.loads(raw)
    if status != 200:
        code = read_error(reply)[1]
        return {"text": "", "finish": "too long" if code in TOO_LONG else "refusal", "model": None}
    try:
        choice = reply["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        finish = "refusal" if message.get("refusal") else choice.get("finish_reason")
        text = message.get("refusal") or message.get("content") or ""
        if not isinstance(text, str):
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise ValueError("a reply without an answer") from None
    finish = "refusal" if finish == "content_filter" else finish
    return {"text": text, "finish": finish, "model": reply.get("model")}


def read_error(body):
    """(message, code) of an error's body, whatever its form."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return " ".join(str(error).split())[:200], ""
    message = " ".join(str(error.get("message") or error.get("detail") or error).split())[:300]
    return message, str(error.get("code") or error.get("type") or "")


def read_usage(raw, worst):
    """(tokens, what is wrong with them or None); tokens None where they cannot be believed."""
    usage = json.loads(raw).get("usage")
    try:
        details = usage.get("prompt_tokens_details") or {}
        cached = details.get("cached_tokens") or 0
        tokens = [usage["prompt_tokens"], cached, usage.get("completion_tokens", 0)]
    except (AttributeError, LookupError):
        return None, "no usage"
    if not all(type(count) is int and count >= 0 for count in tokens) or cached > tokens[0]:
        return None, "usage is no count of tokens"
    if tokens[0] * 32 < worst[0]:
        return None, "usage below what the prompt must have"
    over = tokens[0] > worst[0] or tokens[2] > worst[2]
    return tokens, "usage above the worst case" if over else None
