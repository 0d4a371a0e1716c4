"""Calls to an OpenAI-compatible server at a hard budget: many at a time, each try set aside first.

The wallet (store.py) holds the budget, the Client sends one request, the Run takes all items
through both. A connection is used once: what a server sends after its reply, such as a second
copy, can never be read as the reply to another call.
"""

import asyncio
import base64
import email.utils
import json
import random
import re
import signal
import sys
import time
from collections import Counter
from contextlib import suppress
from itertools import islice
from urllib.parse import unquote, urlsplit

from data.annotate.store import TOO_LONG, BudgetReached, hash_reply, read_error, read_reply
from data.costs.prices import show_usd
from data.files import UserError

NO_QUOTA = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
FILTERED = {"content_filter", "content_policy_violation", "invalid_prompt"}
NEVER_SENT = (  # what httpx calls the failures that come before the request
    "ConnectError ConnectTimeout PoolTimeout ProxyError UnsupportedProtocol LocalProtocolError "
    "InvalidURL UnicodeEncodeError"
).split()
PASSING = {408, 409, 425, 429}  # statuses below 500 that another try may not meet
LONGEST_WAIT = 600  # seconds; a Retry-After beyond it ends the run
SECRET = 8  # characters: a shorter key is a local server's, and a word of any message


class Stopped(Exception):
    """Another call has ended the run."""


class Fault(Exception):
    """A try without a usable answer; `free` if it surely was not billed.

    `advice` says what the user can do where another try cannot help; `wait` is the server's word.
    """

    def __init__(self, why, free=False, raw=None, advice=None, status=None, code="", wait=None):
        super().__init__(why)
        self.why, self.free, self.raw, self.advice = why, free, raw, advice
        self.status, self.code, self.wait = status, code, wait


def check_server(url, key):
    """(url, key) as they can be sent; what cannot is refused before the first call."""
    key, url = (key or "").strip(), url and url.strip()
    if not key and not url:
        raise UserError(
            "no key and no server: set OPENAI_API_KEY, or give --base-url URL, or simulate the "
            "annotator by --simulate 0.85 --gold FILE"
        )
    odd = next((c for c in key if not "!" <= c <= "~"), None)
    if odd:
        raise UserError(f"OPENAI_API_KEY: {odd!r} is in no key; copy it again")
    if not url:
        return None, key
    with suppress(ValueError):  # of a port
        parts = urlsplit(url)
        if re.fullmatch(r"https?://\S+", url) and parts.hostname and parts.port != 0:
            return url, key
    raise UserError(f"--base-url {clean_url(url)}: no address such as http://127.0.0.1:8000/v1")


def clean_url(url):
    """`url` without a name, password or query, for messages and records."""
    return re.sub(r"//[^/?#\s]*@", "//", url).partition("?")[0]


class Client:
    """One server: sends a request, gives its raw reply or a Fault. Used in one event loop."""

    def __init__(self, url, key, endpoint):
        import openai  # run_cli() tells where a package is missing

        local = urlsplit(url or "").hostname in ("127.0.0.1", "localhost", "::1")
        http = openai.DefaultAsyncHttpxClient(trust_env=not local)  # no proxy to this machine
        options = {"base_url": url, "api_key": key or "none", "http_client": http}
        once = {"Connection": "close"}
        self.api = openai.AsyncOpenAI(**options, default_headers=once, max_retries=0)
        self.refused = openai.APIStatusError
        self.failed = (openai.OpenAIError, OSError, json.JSONDecodeError)
        self.url = clean_url(str(self.api.base_url))
        self.path = "completions" if endpoint == "completions" else "chat/completions"
        user = unquote(urlsplit(url or "").netloc.rpartition("@")[0])  # sent in place of a key
        basic = base64.b64encode(user.encode()).decode()
        known = filter(None, (key, user, basic, user.partition(":")[2]))
        self.secrets = [word for word in known if len(word) >= SECRET]
        self.heard = False

    async def ask(self, body, timeout):
        """The raw reply to `body` within `timeout` seconds."""
        options = {"cast_to": str, "body": body, "options": {"timeout": timeout}}
        try:
            raw = await asyncio.wait_for(self.api.post(f"/{self.path}", **options), timeout)
        except asyncio.TimeoutError:
            raise Fault("timeout") from None
        except self.refused as error:
            self.heard = True
            raise self.read_refusal(error) from None
        except self.failed as error:
            raise self.read_failure(error) from None
        self.heard = True
        return raw

    def read_refusal(self, error):
        """The Fault of an HTTP error status."""
        status, raw = error.status_code, self.hide(error.response.text)
        message, code = read_error(error.body if error.body is not None else raw)
        said = self.hide(f"{status}: {message}" if message else str(status))
        wait = read_wait(error.response.headers)
        advice = None
        if code in NO_QUOTA or status == 402:
            advice = f"no quota left ({said}); add credit, then run the same command again"
        elif status in (401, 403):
            advice = f"the server refuses the key ({said}); check OPENAI_API_KEY"
        elif status == 404:
            advice = f"no such model or address ({said}); check --model and --base-url"
        elif status < 500 and status not in PASSING and code not in FILTERED | TOO_LONG:
            advice = f"the server refuses the request ({said}); see --extra and --endpoint"
        free = status != 408 and status < 500
        return Fault(f"HTTP {status}", free, raw, advice, status, code, wait)

    def read_failure(self, error):
        """The Fault of a request without a reply; what was never sent is free."""
        cause = error.__cause__ or error
        kind = type(cause).__name__
        if kind not in NEVER_SENT:
            return Fault("timeout" if "Timeout" in kind else "connection lost")
        lasting = not self.heard and not kind.endswith("Timeout")
        advice = f"cannot be reached ({self.hide(str(cause) or kind)}); check --base-url"
        return Fault("no connection", free=True, advice=advice if lasting else None)

    def hide(self, text):
        """An error's text without the key, should a server repeat it; never used on an answer."""
        for secret in self.secrets:
            text = text.replace(secret, "[key]")
        return text


def read_wait(headers):
    """Seconds of Retry-After: OpenAI's milliseconds, a number, or a date; None without it."""
    value = headers.get("retry-after", "")
    for read in (
        lambda: float(headers["retry-after-ms"]) / 1000,
        lambda: float(value),
        lambda: email.utils.parsedate_to_datetime(value).timestamp() - time.time(),
    ):
        with suppress(LookupError, ValueError, TypeError):
            return max(0.0, read())
    return None


class Limiter:
    """Spreads calls so that neither requests nor tokens of a minute pass their limit."""

    def __init__(self, rpm=None, tpm=None):
        self.rpm, self.tpm, self.next = rpm, tpm, 0.0

    def take(self, tokens):
        """Seconds until a call of so many tokens may be sent."""
        now = time.monotonic()
        start = max(now, self.next)
        spans = (60 / self.rpm if self.rpm else 0, 60 * tokens / self.tpm if self.tpm else 0)
        self.next = start + max(spans)
        return start - now

    def pause(self, seconds):
        self.next = max(self.next, time.monotonic() + seconds)


class Run:
    """Takes calls through a client: `concurrency` at a time, retried, within rpm and tpm.

    The job's prompter writes the request of a call, its reader finds the label in an answer.
    """

    def __init__(self, job, store, client):
        self.store, self.client, self.args = store, client, job.args
        self.prompter, self.reader = job.prompter, job.reader
        self.limiter = Limiter(job.args.rpm, job.args.tpm)
        self.stopping, self.error = asyncio.Event(), None
        self.failed, self.failing, self.bar = [], 0, None
        self.before = store.wallet.used
        self.twice, self.unlike = set(), True  # calls answered by a copy; whether replies differ
        self.structured = job.args.structured == "on" or bool(store.structured)

    async def run(self, calls):
        """Ask for all that the store lacks; False where the budget ended before that."""
        from tqdm import tqdm

        start, left = time.monotonic(), [c for c in calls if c.key not in self.store.answers]
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):  # let the calls in flight come home
            with suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, self.interrupt, loop, number)
        often = {"mininterval": 0.5 if sys.stderr.isatty() else 10, "delay": 0.5}
        with tqdm(total=len(left), unit=" answers", **often) as self.bar:
            await self.guard(self.work(iter(left), calls))
        if not self.store.file.closed:
            seconds = round(time.monotonic() - start, 3)
            await self.store.append({"type": "session", "seconds": seconds, "url": self.client.url})
        reached = isinstance(self.error, BudgetReached)
        if self.error and not reached:
            raise self.error
        if self.failed and not (reached and self.store.answers):
            call, why = self.failed[-1]
            raise UserError(
                f"{call.name}: no answer after {self.args.attempts} tries (the last: {why}); so "
                f"{len(self.failed)} of {len(left)}; run the same command again to continue, or "
                "with --replay to do without them"
            )
        return not reached

    def show(self):
        """One row less to go; dollars so far and, at this rate, in all."""
        wallet, left = self.store.wallet, self.bar.total - self.bar.n - 1
        in_all = wallet.used + (wallet.used - self.before) / (self.bar.n + 1) * left
        usd = f"{show_usd(wallet.used)} of {show_usd(wallet.budget)}, in all about"
        self.bar.set_postfix_str(f"{usd} {show_usd(in_all)}", refresh=False)
        self.bar.update()

    def interrupt(self, loop, number):
        loop.call_later(1, loop.remove_signal_handler, number)  # `timeout` sends it twice at once;
        self.stop(KeyboardInterrupt())  # one that comes later ends the run where it is

    def stop(self, error):
        if self.error is None or isinstance(self.error, BudgetReached):
            self.error = error
        self.stopping.set()

    async def guard(self, work):
        """Do `work`; what ends it ends the run."""
        try:
            await work
        except Stopped:
            pass
        except (BudgetReached, UserError, OSError) as error:
            self.stop(error)

    async def work(self, queue, calls):
        """The first calls find out about schemas and labels, then the rest go side by side."""
        while self.args.structured == "auto" and self.store.structured is None:
            if not (call := next(queue, None)):
                return
            await self.try_schema(call)
        while not self.has_label(calls) and not self.stopping.is_set():
            first = list(islice(queue, self.args.brake))
            if not first:
                return
            await self.answer_all(iter(first))
        await self.answer_all(queue)

    async def answer_all(self, queue):
        async def answer_next():
            for call in queue:  # the one iterator of them all
                if self.stopping.is_set():
                    return
                await self.guard(self.answer(call))

        await asyncio.gather(*(answer_next() for _ in range(self.args.concurrency)))

    def has_label(self, calls):
        """Whether an answer holds a label; a UserError where so many hold none: a brake."""
        reasons = Counter()
        for call in calls if self.args.brake else ():
            if reply := self.store.answers.get(call.key):
                target, why = self.reader.read(reply["text"], call.source, reply["finish"])
                if target is not None:
                    return True
                reasons[why] += 1
        if self.args.brake and reasons.total() >= self.args.brake:
            told = ", ".join(f"{n:,} {why}" for why, n in reasons.most_common())
            cut = reasons["truncated"] + reasons["empty"] and (
                f"; {self.args.max_tokens} tokens may be too few, as where a model reasons first: "
                "see --max-tokens and --extra"
            )
            raise UserError(
                f"{self.store.path}: no label in the first {reasons.total():,} answers ({told})"
                f"{cut or ''}; read them, then change the request and --output; --brake 0 goes on"
            )
        return not self.args.brake

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
        if reply := self.store.answers.get(call.key):  # else the next one will tell
            self.structured = self.structured and is_json_object(reply["text"])
            await self.store.append({"type": "decision", "structured": self.structured})

    async def answer(self, call):
        """Call until there is an answer; retry what may pass, stop at once at what will not."""
        first = self.store.attempts[call.key] + 1
        for tried in range(self.args.attempts):
            await self.rest(self.limiter.take(call.estimate + call.worst[2]))
            async with self.store.wallet.reserve(call.key, first + tried, call.worst):
                fault = await self.try_once(call, first + tried)
            if not fault:
                return self.show()
            if tried + 1 < self.args.attempts:
                await self.back_off(fault, tried)
        self.failed.append((call, fault.why))
        self.failing += 1
        if self.failing >= max(5, self.args.concurrency):  # the server is ill: no use in going on
            self.stopping.set()

    async def try_once(self, call, attempt):
        """None once the store has an answer, else the Fault that another try may not meet."""
        if self.stopping.is_set():  # while it waited for room
            self.store.wallet.release(call.key, attempt)
            raise Stopped
        try:
            await self.send(call, attempt)
        except Fault as fault:
            return await self.take_fault(call, attempt, fault)
        self.failing = 0

    async def send(self, call, attempt):
        """One request, recorded before it is sent; its answer goes to the store."""
        record = {"type": "call", "key": call.key, "attempt": attempt, "worst": call.worst}
        await self.store.append(record)
        body = self.prompter.write_request(call.source, self.structured)
        start = time.monotonic()
        raw = await self.client.ask(body, self.args.timeout)
        seconds = round(time.monotonic() - start, 3)
        if self.is_copy(call, raw):
            raise Fault("a copy of another reply", raw=raw)
        usage, wrong = await self.take_reply(call, attempt, raw, request=body, seconds=seconds)
        if wrong == "usage above the worst case":
            raise UserError(
                f"{call.name}: billed {usage[0]:,} + {usage[2]:,} tokens where {call.worst[0]:,} + "
                f"{call.worst[2]:,} were possible, so no budget can be held; does the server know "
                "the parameter max_tokens? (the answer is kept)"
            )

    def is_copy(self, call, raw):
        """Whether a reply is another call's, sent twice: the store has it, id and all.

        A server that answers so again gives all its replies one id, which then says nothing.
        """
        if not self.unlike or hash_reply(raw) not in self.store.replies:
            return False
        self.unlike = call.key not in self.twice
        self.twice.add(call.key)
        return self.unlike

    async def take_reply(self, call, attempt, raw, **extra):
        """Keep a whole reply; (its usage, what is wrong with that or None)."""
        try:
            usage, wrong = read_reply(raw, call.worst)
        except (ValueError, RecursionError):
            raise Fault("broken reply", raw=raw) from None
        extra |= {"wrong": wrong} if wrong else {}
        await self.take(call, attempt, raw, 200, usage, **extra)
        return usage, wrong

    async def take(self, call, attempt, raw, status, usage, **extra):
        record = {"type": "answer", "key": call.key, "attempt": attempt, "status": status}
        record |= {"usage": usage, "estimate": round(call.estimate, 1), **extra}
        if usage:  # kept, as prices may fall
            wallet = self.store.wallet
            record["usd"] = str(wallet.money.cost(usage, wallet.find_kind(call.key, attempt)))
        await self.store.append({**record, "raw": raw})

    async def take_fault(self, call, attempt, fault):
        """Record a try without an answer: its fault if another may help, an error if none will."""
        if fault.code in FILTERED | TOO_LONG and fault.free:  # other rows may have one
            return await self.take(call, attempt, fault.raw, fault.status, [0, 0, 0])
        if self.structured and self.store.structured is None and is_schema_refused(fault):
            fault.free, fault.advice = True, fault.advice or "the server refuses a JSON schema"
        record = {"type": "free" if fault.free else "lost", "key": call.key, "attempt": attempt}
        await self.store.append({**record, "why": fault.why, "raw": fault.raw})
        if fault.advice:
            place = call.name if fault.status in (400, 413, 422) else self.client.url
            raise UserError(f"{place}: {fault.advice}") from fault
        return fault

    async def rest(self, seconds):
        """Sleep, unless the run is stopped."""
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
            asked = f"asks to wait {wait:,.0f} s ({fault.why})"
            raise UserError(f"{self.client.url}: {asked}; run the same command then")
        if fault.status == 429:  # the limit is everyone's
            self.limiter.pause(wait)
        await self.rest(wait)


def is_schema_refused(fault):
    """Whether an error is about response_format: a 400 or 422, from some servers a 500."""
    status = getattr(fault, "status", None)
    return status in (400, 422) or (status and "response_format" in (fault.raw or ""))


def is_json_object(text):
    with suppress(ValueError):
        return isinstance(json.loads(text), dict)
    return False
