"""The store of paid LLM answers: an append-only record of calls, and the wallet that pays them.

A call goes through these records, each on the disk before the next step is taken:
  call    a try is about to be sent; its worst case (most tokens of the prompt, longest answer) is
          set aside, so that the budget holds whatever becomes of it
  free    it was never sent, or refused (an error below 500): nothing was billed
  lost    no whole answer came (5xx, timeout, dropped connection, broken body): it may have been
          billed, so the worst case stays set aside; a run killed in mid-call leaves the same
  answer  the raw reply and the tokens of its `usage`, which replace the worst case of this try, at
          today's prices or those of its day, whichever are higher
Each retry is a call of its own. A batch has `batch` in place of its calls (all their worst cases),
`batch-id` when the server has taken it, `batch-end` when its answers are in: what it then left
unanswered and not lost was not billed. Stores of version 1 are read like those of version 2.
"""

import asyncio
import fcntl
import hashlib
import json
import math
import os
from collections import Counter
from contextlib import asynccontextmanager, suppress
from fractions import Fraction
from typing import NamedTuple

from data.costs.prices import price_tokens
from data.files import UserError, need, parse_amount

TOO_LONG = {"context_length_exceeded", "string_above_max_length"}
HEADING = b'{"type": "store"'
DAMAGE = (ValueError, ZeroDivisionError, LookupError, TypeError, AttributeError, RecursionError)
RECORDS = {  # type of a record -> what it must have
    "store": {"settings": dict, "version": int},
    "call": {"key": str, "attempt": int, "worst": list},
    "answer": {"key": str, "status": int, "raw": str},
    "free": {"key": str, "why": str},
    "lost": {"key": str, "why": str},
    "batch": {"nonce": str, "calls": dict},
    "batch-id": {"nonce": str, "id": str},
    "batch-end": {"nonce": str},
    "decision": {"structured": bool},
    "session": {"seconds": float},
}


class BudgetReached(Exception):
    """The worst case of the next call is more than what is left."""


class Call(NamedTuple):
    """What is asked once, for one source."""

    key: str  # hash of model, parameters and prompt
    name: str  # for messages: which row of which file
    source: str
    estimate: float  # tokens of the prompt
    worst: list  # the most it can cost, as tokens: prompt, cached (0), completion


class Money:
    """Exact dollars of tokens: (prompt, those of them that were cached, completion)."""

    def __init__(self, model, prices, given=None):
        """`given` {"in", "cached", "out"}: USD per million tokens, in place of the list's."""
        if given:
            usd = {k: parse_amount(v, f"--price-{k}") for k, v in given.items() if v is not None}
            self.usd = {k: v / 10**6 for k, v in {"cached": usd["in"], **usd}.items()}
        else:
            self.usd = price_tokens(prices, model)
        self.rows = [
            f"{p.item} ${float(p.usd):g} per {p.unit} ({p.source}, {p.date})"
            for p in prices
            if p.name == model and p.item.startswith("tokens-") and not given
        ]
        if self.usd["cached"] > self.usd["in"]:  # the worst case has no cached token
            raise UserError(f"{model}: cached tokens dearer than others, so no budget can be held")
        batch = next((p.ratio for p in prices if p.item == "batch"), 1)
        self.share = {"call": 1, "batch": batch}

    def cost(self, tokens, kind="call"):
        prompt, cached, completion = tokens
        usd = (prompt - cached) * self.usd["in"] + cached * self.usd["cached"]
        return Fraction((usd + completion * self.usd["out"]) * self.share[kind])


class Wallet:
    """A budget, what of it was paid by usage, and what is set aside for open calls; dollars."""

    def __init__(self, money, budget=math.inf):
        self.money, self.budget = money, budget
        self.used = self.held = Fraction(0)
        self.open = {}  # (key, attempt) -> (kind, dollars of its worst case)
        self.billed = {}  # key -> (kind, tokens by usage) of its answer
        self.in_flight, self.change = 0, asyncio.Condition()

    def hold(self, key, attempt, kind, worst):
        if (key, attempt) not in self.open:  # else set aside before its record was written
            self.open[key, attempt] = kind, self.money.cost(check_tokens(worst), kind)
            self.held += self.open[key, attempt][1]

    def release(self, key, attempt):
        self.held -= self.open.pop((key, attempt), (None, 0))[1]

    def find_kind(self, key, attempt):
        """Whether an open try is a call or of a batch: each has its price."""
        return self.open.get((key, attempt), ("call", None))[0]

    def pay(self, key, attempt, usage, before=0):
        """`before`: the dollars that it cost when it was bought."""
        kind = self.find_kind(key, attempt)
        self.billed[key] = kind, check_tokens(usage)
        self.used += max(self.money.cost(usage, kind), Fraction(before))
        self.release(key, attempt)

    def fits(self, usd):
        return self.used + self.held + usd <= self.budget

    @asynccontextmanager
    async def reserve(self, key, attempt, worst):
        """Set `worst` aside for a call once it fits: others in flight may make room."""
        usd = self.money.cost(worst)
        async with self.change:
            await self.change.wait_for(lambda: self.fits(usd) or not self.in_flight)
            if not self.fits(usd):
                raise BudgetReached
            self.in_flight += 1
            self.hold(key, attempt, "call", worst)
        try:
            yield
        finally:
            async with self.change:
                self.in_flight -= 1
                self.change.notify_all()

    def count_used(self, keys):
        """Tokens by usage of the answers to `keys`: {"call", "batch": [prompt, cached, answer]}."""
        sums = {"call": [0, 0, 0], "batch": [0, 0, 0]}
        for kind, tokens in (self.billed[key] for key in keys if key in self.billed):
            sums[kind] = [a + b for a, b in zip(sums[kind], tokens, strict=True)]
        return sums

    def count_held(self, keys):
        return sum((usd for (key, _), (_, usd) in self.open.items() if key in keys), Fraction(0))


def check_tokens(tokens):
    """`tokens` if they are prompt, those of them cached, completion; else a ValueError."""
    counts = len(tokens) == 3 and all(type(n) is int and n >= 0 for n in tokens)
    if not counts or tokens[1] > tokens[0]:
        raise ValueError(f"no counts of tokens: {tokens}")
    return tokens


class Store:
    """The append-only record of all calls and answers; one process writes it at a time."""

    def __init__(self, path, settings, wallet, write=True):
        self.path, self.wallet = path, wallet
        self.answers, self.replies, self.batches = {}, set(), {}
        self.estimated = [0.0, 0]  # prompt tokens of the answered calls: by estimate, by usage
        self.settings, self.file = None, None
        self.lines, self.lock = [], asyncio.Lock()  # those to be written next
        self.forget()
        if write:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "ab")  # noqa: SIM115 - open, with its lock, until close()
        try:
            if write:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.load(settings)
        except BlockingIOError:
            self.close()
            raise UserError(f"{path}: another process is writing it; wait until it ends") from None
        except BaseException:
            self.close()
            raise

    def forget(self):
        """Counts that bind nothing: of tries and faults, the schema's decision, seconds."""
        self.attempts, self.faults = Counter(), Counter()
        self.structured, self.seconds = None, 0.0

    def load(self, settings):
        """Read all records, cut off a last line torn by a kill, begin an empty store."""
        whole = self.read() if self.path.exists() else 0
        if self.answers or self.wallet.open:
            self.check_settings(settings)
            if self.file:
                self.file.truncate(whole)
        elif self.file:  # at most refused calls: other settings are welcome
            self.file.truncate(0)
            self.forget()
            header = {"type": "store", "version": 2, "settings": settings}
            self.write(json.dumps(header, ensure_ascii=False) + "\n")
            self.apply(header)
            folder = os.open(self.path.parent, os.O_RDONLY)
            os.fsync(folder)  # its name, too
            os.close(folder)

    def read(self):
        """Apply all whole records; the bytes they take. Another kind of file is refused."""
        whole = 0
        with open(self.path, "rb") as lines:  # which end at "\n" alone
            for number, line in enumerate(lines, 1):
                if number == 1 and not line.startswith(HEADING[: len(line)]):
                    fault = "not the heading of a store; choose another --store"
                    raise UserError(f"{self.path} line 1: {fault}")
                if not line.endswith(b"\n"):
                    break
                try:
                    record = json.loads(line)
                    for name, kind in RECORDS[record["type"]].items():
                        need(record, name, kind, record["type"])
                    self.apply(record)
                except DAMAGE as error:
                    what = error if isinstance(error, UserError) else repr(error)
                    where = f"{self.path} line {number}"
                    raise UserError(f"{where}: not a record of such a store ({what})") from None
                whole += len(line)
        return whole

    def check_settings(self, settings):
        """Refuse a store made with other settings: all its answers would be paid for again."""
        for key, value in json.loads(json.dumps(settings)).items():
            before = self.settings.get(key)
            if before != value:
                what = "by model" if key == "model" else f"with {key}"
                old, new = (json.dumps(each, ensure_ascii=False)[:60] for each in (before, value))
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
        async with self.lock:
            if self.lines or self.file.closed:  # else whoever had the lock has written it
                lines, self.lines = self.lines, []
                await asyncio.to_thread(self.write, "".join(lines))
        self.apply(record)

    def write(self, text):
        if self.file.closed:
            raise UserError(f"{self.path}: closed, as it could not be written")
        try:
            self.file.write(text.encode("utf-8", "surrogatepass"))
            self.file.flush()
            os.fsync(self.file.fileno())
        except BaseException:  # nothing may follow a torn line
            with suppress(OSError):
                self.file.close()
            raise

    def apply(self, record):
        """Take a record into account: the same when it is made and when it is read again."""
        kind, key, attempt = record["type"], record.get("key"), record.get("attempt")
        if kind == "store":
            if record["version"] not in (1, 2):
                raise UserError(f"version {record['version']}, where 1 and 2 are known")
            self.settings = record["settings"]
        elif kind == "call":
            self.attempts[key] = attempt
            self.wallet.hold(key, attempt, "call", record["worst"])
        elif kind == "answer":
            self.take_answer(record)
        elif kind in ("free", "lost"):
            self.faults[record["why"]] += 1
            if kind == "free":
                self.wallet.release(key, attempt)
            elif attempt in self.batches:
                self.batches[attempt]["lost"].add(key)
        elif kind == "batch":
            self.batches[record["nonce"]] = {"id": None, "calls": record["calls"], "lost": set()}
            for key, worst in record["calls"].items():
                self.wallet.hold(key, record["nonce"], "batch", worst)
        elif kind == "batch-id":
            self.batches[record["nonce"]]["id"] = record["id"]
        elif kind == "batch-end":
            batch = self.batches.pop(record["nonce"])
            for key in batch["calls"].keys() - self.answers.keys() - batch["lost"]:
                self.wallet.release(key, record["nonce"])
        elif kind == "decision":
            self.structured = record["structured"]
        elif kind == "session":
            self.seconds += record["seconds"]

    def take_answer(self, record):
        key, usage = record["key"], record["usage"]
        self.answers[key] = read_choice(record["raw"], record["status"])
        self.replies |= {hash_reply(record["raw"])} - {None}
        if usage:  # else it is unknown, and the worst case stays
            self.wallet.pay(key, record["attempt"], usage, record.get("usd", 0))
            if usage[0] and record["estimate"]:
                self.estimated[0] += record["estimate"]
                self.estimated[1] += usage[0]

    @property
    def calibration(self):
        """Tokens counted by the server per token of our estimate, from the answers so far."""
        return self.estimated[1] / self.estimated[0] if self.estimated[0] else 1.0


def hash_reply(raw):
    """A hash of a reply that has an id, and so is like no other; None for one without."""
    with suppress(ValueError, AttributeError):
        if json.loads(raw).get("id"):
            return hashlib.sha256(raw.encode("utf-8", "surrogatepass")).hexdigest()
    return None


def read_choice(raw, status=200):
    """{"text", "finish", "model", "confidence"} of a stored reply; a ValueError without answer."""
    reply = json.loads(raw)
    if status != 200:
        finish = "too long" if read_error(reply)[1] in TOO_LONG else "refusal"
        return {"text": "", "finish": finish, "model": None, "confidence": None}
    try:
        choice = reply["choices"][0]
        message = choice["message"] if "message" in choice else {"content": choice["text"]}
        finish = "refusal" if message.get("refusal") else choice.get("finish_reason")
        text = message.get("refusal") or message.get("content") or ""
        if isinstance(text, list):  # parts, of which those of other types are no answer
            text = "".join(part["text"] for part in text if part.get("type") == "text")
        if not isinstance(text, str):
            raise TypeError
    except (LookupError, TypeError, AttributeError):
        raise ValueError("a reply without an answer") from None
    finish = "refusal" if finish == "content_filter" else finish
    confidence = read_confidence(choice.get("logprobs"))
    model = reply["model"] if isinstance(reply.get("model"), str) else None
    return {"text": text, "finish": finish, "model": model, "confidence": confidence}


def read_confidence(logprobs):
    """Geometric mean of the probabilities of an answer's tokens, 0..1; None where not told."""
    with suppress(LookupError, TypeError, AttributeError, ValueError, OverflowError):
        tokens = logprobs.get("content")
        values = [x["logprob"] for x in tokens] if tokens else logprobs["token_logprobs"]
        mean = math.fsum(values) / len(values) if values else math.nan
        return round(math.exp(min(0, mean)), 6) if math.isfinite(mean) else None
    return None


def read_error(body):
    """(message, code) of an error's body, whatever its form."""
    error = body.get("error", body) if isinstance(body, dict) else body
    if not isinstance(error, dict):
        return " ".join(str(error).split())[:200], ""
    message = " ".join(str(error.get("message") or error.get("detail") or error).split())[:300]
    return message, str(error.get("code") or error.get("type") or "")


def read_reply(raw, worst):
    """(tokens of a reply by its usage, what is wrong with that or None); tokens None where it
    cannot be believed; a ValueError where the reply has no answer."""
    read_choice(raw)
    try:
        usage = json.loads(raw)["usage"]
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        tokens = check_tokens([usage["prompt_tokens"], cached, usage.get("completion_tokens", 0)])
    except (AttributeError, LookupError):
        return None, "no usage"
    except ValueError:
        return None, "usage is no count of tokens"
    if tokens[0] * 32 < worst[0]:
        return None, "usage below what the prompt must have"
    over = tokens[0] > worst[0] or tokens[2] > worst[2]
    return tokens, "usage above the worst case" if over else None
