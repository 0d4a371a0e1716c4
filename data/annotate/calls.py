"""Calls to an OpenAI-compatible server at a hard budget: many at a time, retried, each paid once.

Reads:  nothing but the replies
Writes: the store of data/annotate/store.py, before and after each call
Paper:  section 5 and Appendix E
"""

import asyncio
import email.utils
import json
import math
import random
import signal
import sys
import time
from collections import deque
from contextlib import suppress
from urllib.parse import urlsplit

from data.annotate.store import TOO_LONG, read_choice, read_error, read_usage
from data.costs.prices import show_usd
from data.files import UserError

NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt"}
LONGEST_WAIT = 600  # seconds; a Retry-After beyond it ends the run


class BudgetReached(Exception):
    """The worst case of the next call is more than what is left."""


class Stopped(Exception):
    """Another call has ended the run."""


class Fault(Exception):
    """A call without a usable answer; `free` if it surely was not billed.

    `advice` says what the user can do where another try cannot help.
    """

    def __init__(self, why, free=False, raw=None, advice=None):
        super().__init__(why)
        self.why, self.free, self.raw, self.advice = why, free, raw, advice
        self.status, self.code, self.wait = None, "", None


def read_wait(headers):
    """Seconds of Retry-After: a number, a date, or OpenAI's milliseconds; None without it."""
    value = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(headers.get("retry-after-ms", "")) / 1000)
    with suppress(ValueError):
        return max(0.0, float(value))
    with suppress(ValueError, TypeError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return None


def read_refusal(error):
    """The Fault of an HTTP error status."""
    status, raw = error.status_code, error.response.text
    message, code = read_error(error.body if error.body is not None else raw)
    said = f"{status}: {message}" if message else str(status)
    fault = Fault(f"HTTP {status}", free=status != 408 and status < 500, raw=raw)
    fault.status, fault.code, fault.wait = status, code, read_wait(error.response.headers)
    if code in NO_QUOTA or status == 402:
        fault.advice = f"no quota left ({said}); add credit, then run the same command again"
    elif status in (401, 403):
        fault.advice = f"the server refuses the key ({said}); check OPENAI_API_KEY"
    elif status == 404:
        fault.advice = f"no such model or address ({said}); check --model and --base-url"
    elif status < 500 and status not in (408, 409, 425, 429) and code not in FILTERED | TOO_LONG:
        fault.advice = f"the server refuses the request ({said}); see --extra and --endpoint"
    return fault


# --- calls ---------------------------------------------------------------------------------


class Limiter:
    """Spreads calls so that neither requests nor tokens of a minute pass their limit."""

    def __init__(self, rpm=None, tpm=None):
        self.rpm, self.tpm, self.next, self.paused = rpm, tpm, 0.0, 0.0

    def take(self, tokens):
        """Seconds until a call of so many tokens may be sent."""
        now = time.monotonic()
        start = max(now, self.next, self.paused)
        spans = (60 / self.rpm if self.rpm else 0, 60 * tokens / self.tpm if self.tpm else 0)
        self.next = start + max(spans)
        return start - now

    def pause(self, seconds):
        self.paused = max(self.paused, time.monotonic() + seconds)


class Progress:
    """A line on stderr: items, dollars so far and in the end, time left."""

    def __init__(self, store, calls, budget):
        self.store, self.total, self.budget, self.done = store, len(calls), budget, 0
        self.start = self.shown = time.monotonic()
        self.before = store.money.sum(store.used)

    def __call__(self):
        self.done, now = self.done + 1, time.monotonic()
        tty = sys.stderr.isatty()
        if now - self.shown < (0.5 if tty else 10) and self.done < self.total:
            return
        self.shown, spent = now, self.store.money.sum(self.store.used)
        left = (now - self.start) / self.done * (self.total - self.done)
        in_all = spent + (spent - self.before) / self.done * (self.total - self.done)
        print(
            f"{self.done:,}/{self.total:,} answers, {show_usd(spent)} of "
            f"{show_usd(self.budget)}, in all about {show_usd(in_all)}, "
            f"{int(left // 60)}:{int(left % 60):02} left",
            end="\r" if tty and self.done < self.total else "\n", file=sys.stderr, flush=True,
        )  # fmt: skip


class Caller:
    """Sends calls, pays each once, records all. Made and used inside one event loop."""

    def __init__(self, store, args, url, key, show=lambda: None):
        try:
            import openai
        except ImportError:
            raise UserError("the package openai is missing; pip install openai") from None
        local = urlsplit(url or "").hostname in ("127.0.0.1", "localhost", "::1")
        http = openai.DefaultAsyncHttpxClient(trust_env=not local)  # no proxy to this machine
        options = {"base_url": url, "api_key": key or "none", "http_client": http}
        self.client = openai.AsyncOpenAI(**options, timeout=args.timeout, max_retries=0)
        self.openai, self.store, self.args, self.secret, self.show = openai, store, args, key, show
        self.url = clean_url(str(self.client.base_url))
        self.path = "completions" if args.endpoint == "completions" else "chat/completions"
        self.limiter = Limiter(args.rpm, args.tpm)
        self.change, self.stopping = asyncio.Condition(), asyncio.Event()
        self.busy, self.queue, self.failed, self.failing = 0, deque(), [], 0
        self.error, self.reached, self.heard = None, False, False
        self.structured = args.structured == "on" or bool(store.structured)

    async def run(self, calls):
        """Make all calls; False where the budget ended before them."""
        start, self.queue = time.monotonic(), deque(calls)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):  # let the calls in flight come home
            with suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, self.interrupt, loop, number)
        while self.args.structured == "auto" and self.store.structured is None and self.queue:
            if self.stopping.is_set():
                break
            await self.work(self.try_schema, 1)
        await asyncio.gather(*(self.work(self.answer) for _ in range(self.args.concurrency)))
        if not self.store.file.closed:
            seconds = round(time.monotonic() - start, 3)
            await self.store.append({"type": "session", "seconds": seconds, "url": self.url})
        if self.error:
            raise self.error
        if self.failed and not (self.reached and self.store.answers):
            call, why = self.failed[-1]
            raise UserError(
                f"{call.name}: no answer after {self.args.attempts} tries (the last: {why}); so "
                f"{len(self.failed)} of {len(calls)}; run the same command again to continue, or "
                "with --replay to do without them"
            )
        return not self.reached

    def interrupt(self, loop, number):
        loop.remove_signal_handler(number)  # the second time, it ends at once
        self.halt(KeyboardInterrupt())

    def halt(self, error):
        self.error = self.error or error
        self.stopping.set()

    async def work(self, answer, most=math.inf):
        """Take calls from the queue until it is empty or something has stopped the run."""
        while self.queue and most and not self.stopping.is_set():
            call, most = self.queue.popleft(), most - 1
            try:
                await answer(call)
            except BudgetReached:
                self.reached = True
                self.stopping.set()
            except Stopped:
                return
            except (UserError, OSError) as error:
                self.halt(error)

    async def try_schema(self, call):
        """Find out by one call whether the server follows a JSON schema; the store keeps it."""
        self.structured, failed = True, len(self.failed)
        try:
            await self.answer(call)
        except UserError as error:
            if not is_schema_refused(error.__cause__):
                raise
        if call.key not in self.store.answers:  # refused, or a server that fails at it
            self.structured = False
            del self.failed[failed:]
            await self.answer(call)
        reply = self.store.answers.get(call.key)
        if reply:  # else the next one will tell
            self.structured = self.structured and is_json_object(reply["text"])
            await self.store.append({"type": "decision", "structured": self.structured})

    async def answer(self, call):
        """Call until there is an answer; retry what may pass, stop at once at what will not."""
        first, why = self.store.attempts[call.key] + 1, None
        for attempt in range(first, first + self.args.attempts):
            last = attempt == first + self.args.attempts - 1
            await self.rest(self.limiter.take(call.estimate + call.worst[2]))
            await self.reserve(call, attempt)
            try:
                record = {"type": "call", "key": call.key, "attempt": attempt}
                record |= {"worst": call.worst, "schema": self.structured}
                await self.store.append(record)
                await self.call_once(call, attempt, last)
                self.failing = 0
                return self.show()
            except Fault as fault:
                why = fault.why
                await self.take_fault(call, attempt, fault)
                if call.key in self.store.answers:
                    return self.show()
                if not last:
                    await self.back_off(fault, attempt - first)
            finally:
                await self.settle()
        self.failed.append((call, why))
        self.failing += 1
        if self.failing >= max(5, self.args.concurrency):  # the server is ill: no use in going on
            self.stopping.set()

    async def reserve(self, call, attempt):
        """Set the worst case of a call aside when it fits; calls in flight may make room."""
        async with self.change:
            while not self.store.fits(call.worst) and not self.stopping.is_set():
                if not self.busy:
                    raise BudgetReached
                await self.change.wait()
            if self.stopping.is_set():
                raise Stopped
            self.busy += 1
            self.store.hold(call.key, attempt, call.worst, "call", self.structured)

    async def settle(self):
        async with self.change:
            self.busy -= 1
            self.change.notify_all()

    async def rest(self, seconds):
        """Sleep, unless the run is stopped."""
        if seconds > 0 and not self.stopping.is_set():
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.stopping.wait(), seconds)
        if self.stopping.is_set():
            raise Stopped

    async def back_off(self, fault, tried):
        """Wait as long as the server asks, or twice as long each time, give or take a half."""
        wait = fault.wait
        if wait is None:
            wait = min(60, self.args.backoff * 2**tried) * random.uniform(0.5, 1.5)
        elif wait > LONGEST_WAIT:
            raise UserError(
                f"{self.url}: asks to wait {wait:,.0f} s ({fault.why}); run the same command then"
            )
        if fault.status == 429:  # the limit is everyone's
            self.limiter.pause(wait)
        await self.rest(wait)

    async def call_once(self, call, attempt, last):
        """One request; its answer goes to the store, anything else is a Fault."""
        body, start = call.make_body(self.structured), time.monotonic()
        try:
            raw, once = await asyncio.wait_for(self.send(call.key, body), self.args.timeout)
        except asyncio.TimeoutError:
            raise Fault("timeout") from None
        seconds = round(time.monotonic() - start, 3)
        try:
            read_choice(raw)
            usage, wrong = read_usage(raw, call.worst)
        except (ValueError, AttributeError):
            raise Fault("broken reply", raw=raw) from None
        if wrong and once and not last:  # the same call again costs nothing there
            raise Fault(wrong, raw=raw)
        extra = {"request": body, "seconds": seconds, **({"wrong": wrong} if wrong else {})}
        await self.take(call, attempt, raw, 200, usage, once, **extra)
        if wrong == "usage above the worst case":
            raise UserError(
                f"{call.name}: billed {usage[0]:,} + {usage[2]:,} tokens where {call.worst[0]:,} + "
                f"{call.worst[2]:,} were possible, so no budget can be held; does the server know "
                "the parameter max_tokens? (the answer is kept)"
            )

    async def take(self, call, attempt, raw, status, usage, once=False, **extra):
        record = {"type": "answer", "key": call.key, "attempt": attempt, "status": status}
        record |= {"once": once, "schema": self.structured, "usage": usage}
        record |= {"estimate": round(call.estimate, 1), **extra}
        await self.store.append({**record, "raw": raw})

    async def take_fault(self, call, attempt, fault):
        """Record a call without an answer; raise if a retry cannot help."""
        if fault.code in FILTERED | TOO_LONG and fault.free:  # this row has none, others may
            return await self.take(call, attempt, fault.raw, fault.status, [0, 0, 0])
        if self.structured and self.store.structured is None and is_schema_refused(fault):
            fault.free, fault.advice = True, fault.advice or "the server refuses a JSON schema"
        record = {"type": "free" if fault.free else "lost", "key": call.key, "attempt": attempt}
        await self.store.append({**record, "why": fault.why, "raw": fault.raw})
        if fault.advice:
            place = call.name if fault.status in (400, 413, 422) else self.url
            raise UserError(f"{place}: {fault.advice}") from fault

    async def send(self, key, body):
        """(raw reply, whether the server names our key); a Fault on anything else."""
        name = f"{self.store.header['id']}-{key}{'-schema' * self.structured}"
        api = self.client if self.path == "completions" else self.client.chat
        known = {"prompt": ""} if self.path == "completions" else {"messages": []}
        known["model"] = body["model"]  # the body goes as it is stored, over these
        options = {"extra_headers": {"Idempotency-Key": name}, "extra_body": body}
        try:
            async with api.completions.with_streaming_response.create(**known, **options) as reply:
                self.heard = True
                echo = reply.headers.get("idempotency-key")
                if echo not in (None, name):  # a stray one; left unread, its connection is closed
                    raise Fault("reply to another call")
                return self.hide(await reply.text()), echo == name
        except self.openai.APIStatusError as error:
            self.heard = True
            if error.response.headers.get("idempotency-key") not in (None, name):
                raise Fault("reply to another call") from None
            fault = read_refusal(error)
            fault.raw = self.hide(fault.raw)
            fault.advice = fault.advice and self.hide(fault.advice)
            raise fault from None
        except (self.openai.APIConnectionError, OSError) as error:
            raise self.read_failure(error) from None
        except Exception as error:
            if not type(error).__module__.startswith(("httpx", "httpcore")):
                raise
            raise Fault("connection lost") from None

    def read_failure(self, error):
        cause = error.__cause__ or error
        if "Timeout" in type(cause).__name__:
            return Fault("timeout", free=type(cause).__name__ == "ConnectTimeout")
        if type(cause).__name__ == "ConnectError":  # never sent
            advice = None if self.heard else f"cannot be reached ({cause}); check --base-url"
            return Fault("no connection", free=True, advice=advice)
        return Fault("connection lost")

    def hide(self, text):
        """`text` without the key, should a server repeat it."""
        return text.replace(self.secret, "[key]") if self.secret else text


def is_schema_refused(fault):
    """Whether an error is about response_format: a 400 or 422, from some servers a 500."""
    status = getattr(fault, "status", None)
    return status in (400, 422) or (status and "response_format" in (fault.raw or ""))


def is_json_object(text):
    with suppress(ValueError):
        return isinstance(json.loads(text), dict)
    return False


def clean_url(url):
    """`url` without a name, password or query, for messages and records."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
