"""Simulate an OpenAI-compatible LLM server: gold answers, wrong at a stated rate.

Usage:
    python -m data.annotate.server --task wlp --gold train.jsonl --accuracy 0.85 --port 8123
Reads:  GOLD, a JSONL file of {"source", "target"}; the labels of TASK in data/tasks.json.
Writes: nothing. stdout: its address, one line; at the end its books.
Paper:  stands in for the GPT-3.5 of section 5 where there is no key; it is no language model

It keeps its own books: a call is charged when an answer has been produced, whether or not the
client gets to see it.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import threading
import time
from contextlib import suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from data.annotate.answers import NOTHING
from data.files import read_jsonl, run_cli
from data.tasks import load_task

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
            return " ".join(f"{text} [{label}]" for text, label in pairs) or NOTHING
        return self.corrupt(target, self.labels or self.targets, rng)

    def split(self, target):
        return self.entity.findall(target)

    def corrupt(self, right, choices, rng):
        wrong = [choice for choice in choices if choice != right]
        return rng.choice(wrong) if wrong and rng.random() >= self.accuracy else right


class Handler(BaseHTTPRequestHandler):
    """One connection; what is asked goes to the AnnotatorServer."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.annotator.serve(self, body)

    def do_GET(self):
        self.server.annotator.serve(self, b"")

    def reply(self, status, value, headers=(), cut=False):
        """Send one response, JSON or bytes; `cut` leaves half of the announced body out."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", **dict(headers)}.items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def handle(self):
        with suppress(ConnectionError):  # the client has hung up
            super().handle()

    def log_message(self, *_):
        pass


class AnnotatorServer:
    """The server, in threads of its own: `with AnnotatorServer(annotator) as server: server.url`.

    `prices` are USD per million tokens: prompt, cached, completion.
    """

    def __init__(self, annotator, model="simulated", prices=("0", "0", "0"), port=0, latency=0.0):
        self.annotator, self.model, self.port, self.latency = annotator, model, port, latency
        self.prices = [Decimal(price) for price in prices]
        self.requests, self.lock, self.prefixes = 0, threading.Lock(), set()
        self.charges = []  # one (source, prompt, cached, completion tokens, share of the price)

    # --- books ---

    @property
    def usd(self):
        """Dollars charged so far, exactly."""
        fresh, cached, completion = self.prices
        usd = (
            share * ((p - c) * fresh + c * cached + o * completion)
            for _, p, c, o, share in self.charges
        )
        return sum(usd, Decimal(0)) / 1_000_000

    def show_books(self):
        _, prompt, cached, completion, _ = (
            zip(*self.charges, strict=True) if self.charges else [(0,)] * 5
        )
        return {
            "requests": self.requests, "answers": len(self.charges),
            "distinct_sources": len({charge[0] for charge in self.charges}),
            "prompt_tokens": sum(prompt), "cached_tokens": sum(cached),
            "completion_tokens": sum(completion), "usd": str(self.usd),
        }  # fmt: skip

    # --- one completion ---

    def serve(self, handler, body):
        """Answer one HTTP request."""
        self.requests += 1
        if handler.command != "POST" or not handler.path.endswith("/completions"):
            return handler.reply(*refuse(404, f"no such path: {handler.path}", "not_found"))
        time.sleep(self.latency)
        with self.lock:
            answer = self.complete(handler.path, json.loads(body))
        handler.reply(*answer)

    def complete(self, path, body, share=1):
        """Answer one request body and charge it: (status, reply)."""
        if body.get("model") != self.model:
            return refuse(404, f"The model {body.get('model')!r} does not exist", "model_not_found")
        chat = path.endswith("/chat/completions")
        text = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        source = normalize(text.rpartition("Input: ")[2].rpartition("Output:")[0])
        answer = self.annotator.answer(source)
        if answer is None:
            return refuse(400, f"no gold answer for the input {source[:60]!r}", "no_gold")
        schema = body.get("response_format", {}).get("json_schema")
        answer = self.follow_schema(answer, schema["schema"]) if schema else answer
        shown = cut_text(answer, body.get("max_completion_tokens") or body.get("max_tokens", 16))
        prompt = count_tokens(text) + 4 * len(body.get("messages", ()))
        completion, cached = count_tokens(shown), self.count_cached(text)
        self.charges.append((source, prompt, cached, completion, Decimal(share)))
        choice = {"index": 0, "finish_reason": "stop" if shown == answer else "length"}
        choice |= {"message": {"role": "assistant", "content": shown}} if chat else {"text": shown}
        details = {"prompt_tokens_details": {"cached_tokens": cached}}
        usage = {"prompt_tokens": prompt, "completion_tokens": completion, **details}
        kind = "chat.completion" if chat else "text_completion"
        reply = {"id": f"sim-{len(self.charges)}", "object": kind, "model": self.model}
        return 200, {**reply, "choices": [choice], "usage": usage}

    def follow_schema(self, answer, schema):
        if "entities" in schema["properties"]:
            pairs = [{"text": text, "label": name} for text, name in self.annotator.split(answer)]
            return json.dumps({"entities": pairs})
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

    # --- threads ---

    def __enter__(self):
        ThreadingHTTPServer.request_queue_size = 512
        self.http = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.http.annotator, self.http.daemon_threads = self, True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


def refuse(status, message, code):
    return status, {"error": {"message": message, "type": "error", "code": code}}


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
    add("--seed", type=int, default=0, help="seed of the wrong answers (%(default)s)")
    add("--until-eof", action=argparse.BooleanOptionalAction, default=False,
        help="stop when standard input closes (default: on Ctrl-C)")  # fmt: skip
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    task, rows = load_task(args.task), read_jsonl(args.gold)
    annotator = Annotator(rows, task.metric, list(task.labels), args.accuracy, args.seed)
    options = {"prices": args.prices, "port": args.port, "latency": args.latency}
    with AnnotatorServer(annotator, args.model, **options) as server:
        print(server.url, flush=True)
        with suppress(KeyboardInterrupt):
            sys.stdin.read() if args.until_eof else threading.Event().wait()
        print(json.dumps(server.show_books()), flush=True)


if __name__ == "__main__":
    run_cli(main)
