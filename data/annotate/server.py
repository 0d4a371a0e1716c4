"""Simulate an OpenAI-compatible LLM server: gold answers, wrong at a stated rate, with faults.

Usage:
    python -m data.annotate.server --task wlp --gold train.jsonl --accuracy 0.85 --port 8123
    python -m data.annotate.server --task wlp --gold train.jsonl --fault-rate 0.3   # misbehaves
Reads:  GOLD, a JSONL file of {"source", "target"}; the labels of TASK in data/tasks.json.
Writes: nothing. stdout: its address, one line; at the end its books (GET /books shows them too).
Paper:  stands in for the GPT-3.5 of section 5 where there is no key; it is no language model

It keeps its own books: a call is charged when an answer has been produced, whether or not the
client gets to see it. Calls that carry the same Idempotency-Key are one call: the later ones get
the first one's answer, at no charge, and the reply names the key. Real providers need not do so.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path

from data.files import read_jsonl, run_cli
from data.tasks import load_task

FAULTS = (
    "429 429-after 500 503 error-after drop drop-after truncated cut not-json slow usage-null "
    "usage-negative usage-huge usage-text repeated twice"
).split()
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 409: "Conflict"}
PIECE = re.compile(r"([^\W\d_]+)|(\d{1,3})|([^\w\s]|_)|(\n+)")


def count_tokens(text):
    """Tokens of `text` by this server's own rule (within 5% of cl100k_base on English text)."""
    return sum(map(piece_tokens, PIECE.finditer(text)))


def piece_tokens(match):
    word, _, symbol, _ = match.groups()
    if word:
        size = len(word.encode())
        return 1 if size <= 8 else size // 4
    return min(2, len(symbol.encode())) if symbol else 1


def cut_text(text, limit):
    """The start of `text` that is at most `limit` tokens long."""
    tokens = 0
    for match in PIECE.finditer(text):
        tokens += piece_tokens(match)
        if tokens > limit:
            return text[: match.start()]
    return text


def normalize(text):
    return " ".join(text.split())


class Annotator:
    """Gold answers by source; 1 - accuracy of the decisions are wrong, the same ones each time.

    A decision is a label: one per item for classes, one per entity for entities. For text tasks
    it is the whole answer, and the wrong one is the gold answer of another source.
    """

    def __init__(self, rows, metric, labels, accuracy, seed=0):
        self.gold = {}
        for row in rows:
            self.gold.setdefault(normalize(row["source"]), row["target"])
        self.targets = sorted(set(self.gold.values()))
        self.metric, self.labels, self.accuracy, self.seed = metric, labels, accuracy, seed
        names = "|".join(map(re.escape, sorted(labels, key=len, reverse=True)))
        self.entity = re.compile(rf"\s*(.*?)\s*\[({names})\]") if labels else None

    def answer(self, source):
        """The answer to `source`, or None where there is no gold answer."""
        target = self.gold.get(source)
        if target is None:
            return None
        rng = random.Random(f"{self.seed} {source}")
        if self.metric == "entities":
            pairs = [
                (text, self.corrupt(label, self.labels, rng)) for text, label in self.split(target)
            ]
            return " ".join(f"{text} [{label}]" for text, label in pairs)
        return self.corrupt(target, self.labels or self.targets, rng)

    def split(self, target):
        return self.entity.findall(target)

    def corrupt(self, right, choices, rng):
        wrong = [choice for choice in choices if choice != right]
        return rng.choice(wrong) if wrong and rng.random() >= self.accuracy else right


class AnnotatorServer:
    """The server, in a thread of its own: `with AnnotatorServer(annotator) as server: server.url`.

    `faults(n)` names the fault of the n-th completion request (from 0), or None. `prices` are USD
    per million tokens: prompt, cached, completion. `structured` says what becomes of a JSON schema:
    "yes" follows it, "reject" refuses it by a 400 and "reject-500" by a 500, as some servers do,
    "ignore" answers in plain text.
    """

    def __init__(self, annotator, model="simulated", prices=("0", "0", "0"), faults=None, port=0,
                 honour_keys=True, structured="yes", latency=0.0, slow=5.0, retry_after="1",
                 context=None, api_key=None, batch_delay=0, batch_fails=None):  # fmt: skip
        self.annotator, self.model, self.port = annotator, model, port
        self.prices = [Decimal(price) for price in prices]
        self.faults = faults or (lambda n: None)
        self.honour_keys, self.structured = honour_keys, structured
        self.latency, self.slow, self.retry_after = latency, slow, retry_after
        self.context, self.api_key = context, api_key
        self.batch_delay, self.batch_fails = batch_delay, batch_fails or (lambda custom_id: None)
        self.requests, self.replays, self.fired, self.times = 0, 0, Counter(), []
        self.charges = []  # one (source, prompt, cached, completion tokens, share of the price)
        self.done, self.pending, self.prefixes = {}, set(), set()
        self.files, self.batches, self.bodies = {}, {}, []

    # --- books ---

    @property
    def usd(self):
        """Dollars charged so far, exactly."""
        fresh, cached, completion = self.prices
        return (
            sum(
                (
                    share * ((p - c) * fresh + c * cached + o * completion)
                    for _, p, c, o, share in self.charges
                ),
                Decimal(0),
            )
            / 1_000_000
        )

    def show_books(self):
        _, prompt, cached, completion, _ = (
            zip(*self.charges, strict=True) if self.charges else [(0,)] * 5
        )
        return {
            "requests": self.requests, "replays": self.replays, "answers": len(self.charges),
            "distinct_sources": len({charge[0] for charge in self.charges}),
            "prompt_tokens": sum(prompt), "cached_tokens": sum(cached),
            "completion_tokens": sum(completion), "usd": str(self.usd), "faults": dict(self.fired),
        }  # fmt: skip

    # --- one completion ---

    def complete(self, path, body, share=1):
        """Answer one request body and charge it: (status, reply)."""
        if body.get("model") != self.model:
            return refuse(404, f"The model {body.get('model')!r} does not exist", "model_not_found")
        chat = path.endswith("/chat/completions")
        text = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        schema = body.get("response_format", {}).get("json_schema")
        if schema and self.structured.startswith("reject"):
            return refuse(
                int(self.structured[7:] or 400), "response_format: no json_schema here", "invalid"
            )
        prompt = count_tokens(text) + 4 * len(body.get("messages", ()))
        limit = body.get("max_tokens") or 16
        if self.context and prompt + limit > self.context:
            return refuse(
                400, f"maximum context length is {self.context}", "context_length_exceeded"
            )
        source = normalize(text.rpartition("Input: ")[2].rpartition("Output:")[0])
        answer = self.annotator.answer(source)
        if answer is None:
            return refuse(400, f"no gold answer for the input {source[:60]!r}", "no_gold")
        if schema and self.structured == "yes":
            answer = self.follow_schema(answer, schema["schema"])
        shown = cut_text(answer, limit)
        completion, cached = count_tokens(shown), self.count_cached(text)
        self.charges.append((source, prompt, cached, completion, Decimal(share)))
        finish = "stop" if shown == answer else "length"
        choice = {"index": 0, "finish_reason": finish}
        choice |= {"message": {"role": "assistant", "content": shown}} if chat else {"text": shown}
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        usage |= {
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        reply = {"id": f"sim-{len(self.charges)}", "model": self.model, "choices": [choice]}
        return 200, {
            **reply,
            "object": "chat.completion" if chat else "text_completion",
            "usage": usage,
        }

    def follow_schema(self, answer, schema):
        if "entities" in schema["properties"]:
            pairs = self.annotator.split(answer)
            return json.dumps(
                {"entities": [{"text": text, "label": label} for text, label in pairs]}
            )
        return json.dumps({next(iter(schema["properties"])): answer})

    def count_cached(self, text, step=512):
        """Tokens of the longest start of `text` seen before, in steps of 128, from 1,024 up."""
        ends, digest, longest = range(step, len(text) + 1, step), hashlib.sha256(), 0
        for end in ends:
            digest.update(text[end - step : end].encode())
            if digest.digest() in self.prefixes:
                longest = end
            self.prefixes.add(digest.digest())
        tokens = count_tokens(text[:longest]) // 128 * 128
        return tokens if tokens >= 1024 else 0

    # --- batches ---

    def create_batch(self, body):
        lines = self.files[body["input_file_id"]].decode().splitlines()
        name = f"batch_{len(self.batches) + 1}"
        batch = {
            "id": name,
            "object": "batch",
            "status": "in_progress",
            "endpoint": body["endpoint"],
        }
        batch |= {
            "input_file_id": body["input_file_id"],
            "completion_window": "24h",
            "created_at": 0,
        }
        batch |= {
            "metadata": body.get("metadata") or {},
            "output_file_id": None,
            "error_file_id": None,
        }
        batch["request_counts"] = {"total": len(lines), "completed": 0, "failed": 0}
        self.batches[name] = {"batch": batch, "lines": lines, "looks": 0}
        return batch

    def show_batch(self, name):
        """One batch; from the `batch_delay`-th look on, it is finished."""
        entry = self.batches[name]
        batch, entry["looks"] = entry["batch"], entry["looks"] + 1
        if batch["status"] == "in_progress" and entry["looks"] > self.batch_delay:
            self.finish_batch(batch, entry["lines"])
        return batch

    def finish_batch(self, batch, lines):
        output, errors = [], []
        for line in map(json.loads, lines):
            fault = self.batch_fails(line["custom_id"])
            if fault == "missing":  # neither answered nor refused: the window closed
                continue
            status, reply = (500, {"error": {"message": "failed"}}), None
            status, reply = (
                status if fault else self.complete(line["url"], line["body"], Decimal("0.5"))
            )
            row = {"id": "r", "custom_id": line["custom_id"], "error": None}
            row["response"] = {"status_code": status, "request_id": "q", "body": reply}
            (output if status == 200 else errors).append(json.dumps(row))
        random.Random(0).shuffle(output)  # as at the real service, in any order
        for field, rows in (("output_file_id", output), ("error_file_id", errors)):
            if rows:
                batch[field] = f"file-{len(self.files) + 1}"
                self.files[batch[field]] = "".join(f"{row}\n" for row in rows).encode()
        done = {"completed": len(output), "failed": len(errors)}
        batch |= {"status": "completed" if len(output) + len(errors) == len(lines) else "expired"}
        batch["request_counts"] |= done

    # --- HTTP ---

    async def route(self, method, path, headers, body):
        """(status, reply) of everything but completions; reply is JSON or bytes."""
        if path == "/books":
            return 200, self.show_books()
        if path == "/v1/models":
            return 200, {"object": "list", "data": [{"id": self.model, "object": "model"}]}
        if path == "/v1/files" and method == "POST":
            name = f"file-{len(self.files) + 1}"
            self.files[name] = read_upload(headers["content-type"], body)
            return 200, {"id": name, "object": "file", "purpose": "batch", "bytes": len(body)}
        if path.startswith("/v1/files/") and path.split("/")[3] in self.files:
            return 200, self.files[path.split("/")[3]]
        if path == "/v1/batches" and method == "POST":
            return 200, self.create_batch(json.loads(body))
        if path.partition("?")[0] == "/v1/batches":
            batches = [entry["batch"] for entry in self.batches.values()]
            return 200, {"object": "list", "data": batches, "has_more": False}
        if path.startswith("/v1/batches/") and path.split("/")[3] in self.batches:
            return 200, self.show_batch(path.split("/")[3])
        return refuse(404, f"no such path: {path}", "not_found")

    async def serve(self, reader, writer):
        """One connection: requests one after the other until either side closes it."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                method, path, _ = head[0].split(" ")
                headers = {
                    k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head[1:])
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                if method == "POST" and path.endswith("/completions"):
                    await self.serve_completion(path, headers, body, writer)
                else:
                    await send(writer, *await self.route(method, path, headers, body))
                if headers.get("connection", "").lower() == "close":
                    break
        writer.close()

    async def serve_completion(self, path, headers, body, writer):
        """Answer, replay or fail one completion request."""
        fault, key = self.faults(self.requests), headers.get("idempotency-key")
        echo = {"Idempotency-Key": key} if self.honour_keys and key else {}
        self.requests += 1
        self.times.append(time.monotonic())
        self.bodies.append(body)
        if fault:
            self.fired[fault] += 1
        if self.api_key and headers.get("authorization") != f"Bearer {self.api_key}":
            message = f"Incorrect API key provided: {headers.get('authorization')}"
            return await send(writer, *refuse(401, message, "invalid_api_key"))
        if fault in ("429", "429-after", "500", "503"):
            wait = {"Retry-After": self.retry_after} if fault == "429-after" else {}
            status = int(fault[:3])
            return await send(writer, *refuse(status, "try again", "injected"), {**echo, **wait})
        if fault == "quota":
            return await send(writer, *refuse(429, "You exceeded your quota", "insufficient_quota"))
        if fault == "drop":
            raise ConnectionResetError
        if echo and key in self.pending:
            return await send(
                writer, *refuse(409, "this call is being answered", "in_progress"), echo
            )
        for _ in range(2 if fault == "repeated" else 1):  # as if a proxy had sent it twice
            status, reply = await self.produce(path, key if echo else None, body)
        await self.deliver(fault, status, reply, echo, writer)

    async def produce(self, path, key, body):
        if key in self.done:
            self.replays += 1
            return self.done[key]
        self.pending.add(key)
        if self.latency:
            await asyncio.sleep(self.latency)
        status, reply = self.complete(path, json.loads(body))
        self.pending.discard(key)
        if key and status == 200:
            self.done[key] = status, reply
        return status, reply

    async def deliver(self, fault, status, reply, echo, writer):
        """Send what was produced, or what the fault makes of it."""
        if fault == "drop-after":
            raise ConnectionResetError
        if fault == "slow":
            await asyncio.sleep(self.slow)
        if fault == "error-after":  # charged, and then the gateway gives up
            status, reply = refuse(502, "bad gateway", "injected")
        if fault == "not-json":
            reply = b"<html>busy</html>"
        if fault == "cut":
            reply = json.dumps(reply).encode()[:-20]
        if fault and fault.startswith("usage-"):
            reply = {**reply, "usage": spoil_usage(fault, reply.get("usage", {}))}
        await send(writer, status, reply, echo, cut=fault == "truncated")
        if fault == "truncated":
            raise ConnectionResetError
        if fault == "twice":  # a stray second copy on the same connection
            await send(writer, status, reply, echo)

    # --- thread ---

    def __enter__(self):
        ready = threading.Event()
        self.thread = threading.Thread(target=lambda: asyncio.run(self.run(ready)), daemon=True)
        self.thread.start()
        if not ready.wait(10) or self.port == 0:
            raise OSError("the simulated annotator could not open its port")
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_):
        self.loop.call_soon_threadsafe(self.stop.set)
        self.thread.join(5)

    async def run(self, ready):
        self.loop, self.stop, tasks = asyncio.get_running_loop(), asyncio.Event(), set()

        async def accept(reader, writer):
            tasks.add(asyncio.current_task())
            with contextlib.suppress(asyncio.CancelledError):
                await self.serve(reader, writer)
            tasks.discard(asyncio.current_task())

        try:
            server = await asyncio.start_server(
                accept, "127.0.0.1", self.port, limit=2**20, backlog=512
            )
            self.port = server.sockets[0].getsockname()[1]
        finally:
            ready.set()
        await self.stop.wait()
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def refuse(status, message, code):
    return status, {"error": {"message": message, "type": "error", "code": code}}


def spoil_usage(fault, usage):
    return {
        "usage-null": None,
        "usage-negative": {**usage, "prompt_tokens": -5},
        "usage-huge": {**usage, "completion_tokens": 10**9},
        "usage-text": {**usage, "prompt_tokens": "many"},
    }[fault]


def read_upload(content_type, body):
    """The `file` part of a multipart form."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    return b""


async def send(writer, status, reply, headers=None, cut=False):
    """Write one HTTP response; `cut` leaves half of the announced body out."""
    body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
    lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Error')}", f"Content-Length: {len(body)}"]
    lines += ["Content-Type: application/json", *(f"{k}: {v}" for k, v in (headers or {}).items())]
    body = body[: len(body) // 2] if cut else body
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)
    await writer.drain()


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", required=True, help="entry of data/tasks.json, or FILE.json or NAME=FILE.json")
    add("--gold", required=True, type=Path, help="JSONL file with the right answers")
    add("--accuracy", type=float, default=0.85, help="share of right decisions, 0..1 (%(default)s)")
    add("--model", default="simulated", help="the model name it answers to (%(default)s)")
    add("--prices", nargs=3, default=["0", "0", "0"], metavar=("IN", "CACHED", "OUT"),
        help="USD per million prompt, cached and completion tokens (0 0 0)")  # fmt: skip
    add("--port", type=int, default=0, help="port on 127.0.0.1 (default: a free one)")
    add("--latency", type=float, default=0.0, help="seconds per answer (%(default)s)")
    add("--fault-rate", type=float, default=0.0, help="share of requests that fail (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the wrong answers and faults (%(default)s)")
    add("--until-eof", action=argparse.BooleanOptionalAction, default=False,
        help="stop when standard input closes (default: on Ctrl-C)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    task, rows = load_task(args.task), read_jsonl(args.gold)
    annotator = Annotator(rows, task.metric, list(task.labels), args.accuracy, args.seed)

    def faults(n):
        rng = random.Random(f"{args.seed} {n}")
        return rng.choice(FAULTS) if rng.random() < args.fault_rate else None

    options = {"prices": args.prices, "faults": faults, "port": args.port, "latency": args.latency}
    with AnnotatorServer(annotator, args.model, **options) as server:
        print(server.url, flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            sys.stdin.read() if args.until_eof else threading.Event().wait()
        print(json.dumps(server.show_books()), flush=True)


if __name__ == "__main__":
    run_cli(main)
