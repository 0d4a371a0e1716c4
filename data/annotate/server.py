"""Simulate an OpenAI-compatible LLM server: gold answers, wrong at a stated rate.

Usage:
    annotator = Annotator(rows, "classes", ["yes", "no"], accuracy=0.85)
    with AnnotatorServer(annotator, "a-model") as server:
        server.url                                      # takes calls until the block ends

It stands in for the GPT-3.5 of section 5 where there is no key; it is no language model.
"""

import json
import random
import re
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data.annotate.answers import NOTHING
from data.spans import make_brackets, split_entities

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
        self.brackets = make_brackets(labels)

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
        return split_entities(target, self.brackets)[0]

    def corrupt(self, right, choices, rng):
        wrong = [choice for choice in choices if choice != right]
        return rng.choice(wrong) if wrong and rng.random() >= self.accuracy else right


class Handler(BaseHTTPRequestHandler):
    """One connection; what is asked goes to the AnnotatorServer."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        self.server.serve(self, self.rfile.read(int(self.headers.get("Content-Length") or 0)))

    do_GET = do_POST

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


class AnnotatorServer(ThreadingHTTPServer):
    """The server, in threads of its own, on a free port.

    A call is charged when an answer has been produced, whether or not the client gets to see it.
    """

    request_queue_size, daemon_threads = 512, True

    def __init__(self, annotator, model="simulated"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.annotator, self.model = annotator, model
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.requests, self.lock = 0, threading.Lock()
        self.charges = []  # one (source, prompt, cached, completion tokens, share of the price)

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    def serve(self, handler, body):
        """Answer one HTTP request."""
        self.requests += 1
        if handler.command != "POST" or not handler.path.endswith("/completions"):
            return handler.reply(*refuse(404, f"no such path: {handler.path}", "not_found"))
        with self.lock:
            answer = self.complete(handler.path, json.loads(body))
        handler.reply(*answer)

    def complete(self, path, body, share=1):
        """Answer one request body and charge it, at a share of the price: (status, reply)."""
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
        self.charges.append((source, prompt, cached, completion, share))
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

    def count_cached(self, text):
        """Tokens of a prompt at the price of cached ones."""
        return 0


def refuse(status, message, code):
    return status, {"error": {"message": message, "type": "error", "code": code}}
