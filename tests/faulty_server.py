"""The simulated annotator as a server: faults on demand, other habits, the Batch API."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from data.annotate.simulator import Annotator, count_tokens
from data.files import UserError
from data.spans import split_entities

UNBILLED = ["429", "429-after", "500", "503", "drop"]
LOST = ["error-after", "drop-after", "truncated", "cut", "not-json", "slow"]  # billed, and lost
USAGE = ["usage-null", "usage-negative", "usage-text"]  # answered, and the bill is not known
FAULTS = [*UNBILLED, *LOST, *USAGE, "twice"]
WRONG = {
    "usage-null": None,
    "usage-negative": {"prompt_tokens": -5},
    "usage-huge": {"completion_tokens": 10**9},
    "usage-text": {"prompt_tokens": "many"},
}


class Handler(BaseHTTPRequestHandler):
    """One connection; what is asked goes to the FaultyServer."""

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


class FaultyServer(Annotator, ThreadingHTTPServer):
    """`prices` are USD per million tokens: prompt, cached, completion; `usd` its own books.

    `faults(n)` names the fault of the n-th completion request (from 0), or None.

    `structured` says what becomes of a JSON schema: "yes" follows it, "reject" refuses it by a 400
    and "reject-500" by a 500, as some servers do, "ignore" answers in plain text. `edit(reply)`
    changes a reply, `edit_file(bytes)` a batch's output; `batch_fails(custom_id)` names its fault.
    """

    request_queue_size, daemon_threads = 512, True

    def __init__(self, *annotator, model="simulated", prices=("0", "0", "0"), faults=None,
                 structured="yes", slow=5.0, latency=0.0, retry_after="1", context=None,
                 api_key=None, batch_delay=0, batch_fails=None, edit=None,
                 edit_file=None):  # fmt: skip
        Annotator.__init__(self, *annotator)
        ThreadingHTTPServer.__init__(self, ("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.model, self.latency = model, latency
        self.requests, self.lock = 0, threading.Lock()
        self.charges = []  # one (source, prompt, cached, completion tokens, share of the price)
        self.prices = [Decimal(price) for price in prices]
        self.faults, self.structured, self.slow = faults or (lambda n: None), structured, slow
        self.retry_after, self.context, self.api_key = retry_after, context, api_key
        self.batch_delay, self.batch_fails = batch_delay, batch_fails or (lambda custom_id: None)
        self.edit, self.edit_file = edit or (lambda reply: reply), edit_file or (lambda file: file)
        self.fired, self.times, self.bodies, self.charged_and_lost = Counter(), [], [], []
        self.files, self.batches, self.prefixes = {}, {}, set()

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        super().__exit__(*error)

    @property
    def usd(self):
        """Dollars charged so far, exactly."""
        fresh, cached, completion = self.prices
        usd = (
            share * ((p - c) * fresh + c * cached + o * completion)
            for _, p, c, o, share in self.charges
        )
        return sum(usd, Decimal(0)) / 1_000_000

    def serve(self, handler, body):
        if not handler.path.endswith("/completions"):
            return handler.reply(*self.route(handler, body))
        with self.lock:
            fault = self.faults(self.requests)
            self.requests += 1
            self.times.append(time.monotonic())
            self.bodies.append(body)
            self.fired[fault] += bool(fault)
        said = handler.headers.get("Authorization")
        if self.api_key and said != f"Bearer {self.api_key}":
            return handler.reply(*refuse(401, f"Incorrect API key: {said}", "invalid_api_key"))
        if fault in ("429", "429-after", "500", "503"):
            wait = {"Retry-After": self.retry_after} if fault == "429-after" else {}
            return handler.reply(*refuse(int(fault[:3]), "try again", "injected"), wait)
        if fault == "quota":
            return handler.reply(*refuse(429, "You exceeded your quota", "insufficient_quota"))
        if fault == "drop":
            return hang_up(handler)
        time.sleep(self.latency)
        with self.lock:
            status, reply = self.charge(json.loads(body))
            if fault in LOST and status == 200:
                self.charged_and_lost.append(self.charges[-1])
        self.deliver(handler, fault, status, reply)

    def deliver(self, handler, fault, status, reply):
        """Send what was produced, or what the fault makes of it."""
        if fault == "drop-after":
            return hang_up(handler)
        if fault == "slow":
            time.sleep(self.slow)
        if fault == "error-after":  # charged, and then the gateway gives up
            status, reply = refuse(502, "bad gateway", "injected")
        if fault == "not-json":
            reply = b"<html>busy</html>"
        if fault == "cut":
            reply = json.dumps(reply).encode()[:-20]
        if fault in WRONG:
            wrong = WRONG[fault]
            reply = {**reply, "usage": wrong and {**reply.get("usage", {}), **wrong}}
        handler.reply(status, reply, cut=fault == "truncated")
        if fault == "truncated":
            hang_up(handler)
        if fault == "twice":  # a stray second copy on the same connection
            handler.reply(status, reply)

    def charge(self, body, share=1):
        """Answer one request body and charge it, at a share of the price: (status, reply).

        That is when an answer has been produced, whether or not the client gets to see it.
        """
        if body.get("model") != self.model:
            return refuse(404, f"The model {body.get('model')!r} does not exist", "model_not_found")
        if "response_format" in body and self.structured.startswith("reject"):
            status = int(self.structured[7:] or 400)
            return refuse(status, "response_format: no json_schema here", "invalid")
        text = "\n".join(m["content"] for m in body.get("messages", ())) or body.get("prompt")
        if self.context and len(text) / 4 > self.context:
            text = f"maximum context length is {self.context}"
            return refuse(400, text, "context_length_exceeded")
        if self.structured == "ignore":
            body = {key: value for key, value in body.items() if key != "response_format"}
        try:
            reply = self.complete(body)
        except UserError as error:
            return refuse(400, str(error), "no_gold")
        usage, cached = reply["usage"], self.count_cached(text)
        usage["prompt_tokens_details"]["cached_tokens"] = cached
        source = " ".join(text.rpartition("Input: ")[2].rpartition("Output:")[0].split())
        tokens = usage["prompt_tokens"], cached, usage["completion_tokens"]
        self.charges.append((source, *tokens, share))
        return 200, self.edit(reply)

    def complete(self, body):
        """The reply to one request body, in JSON where that has a schema."""
        reply = super().complete(body)
        if "response_format" in body:
            message = reply["choices"][0]["message"]
            schema = body["response_format"]["json_schema"]["schema"]
            message["content"] = self.follow_schema(message["content"], schema)
            reply["usage"]["completion_tokens"] = count_tokens(message["content"])
        return reply

    def follow_schema(self, answer, schema):
        if "entities" not in schema["properties"]:
            return json.dumps({next(iter(schema["properties"])): answer})
        pairs, _ = split_entities(answer, self.brackets)
        return json.dumps({"entities": [{"text": text, "label": name} for text, name in pairs]})

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

    def route(self, handler, body):
        """(status, reply) of everything but completions; reply is JSON or bytes."""
        parts = handler.path.partition("?")[0].split("/")[2:]
        if parts == ["files"]:
            name = f"file-{len(self.files) + 1}"
            self.files[name] = read_upload(handler.headers["Content-Type"], body)
            return 200, {"id": name, "object": "file", "purpose": "batch", "bytes": len(body)}
        if parts[0] == "files" and parts[1] in self.files:
            return 200, self.files[parts[1]]
        if parts == ["batches"] and handler.command == "POST":
            return 200, self.create_batch(json.loads(body))
        if parts == ["batches"]:
            batches = [entry["batch"] for entry in self.batches.values()]
            return 200, {"object": "list", "data": batches, "has_more": False}
        if parts[0] == "batches" and parts[1] in self.batches:
            return 200, self.show_batch(parts[1])
        return refuse(404, f"no such path: {handler.path}", "not_found")

    def create_batch(self, body):
        lines = self.files[body["input_file_id"]].decode().splitlines()
        name = f"batch_{len(self.batches) + 1}"
        batch = {"id": name, "object": "batch", "status": "in_progress", **body, "created_at": 0}
        batch |= {"output_file_id": None, "error_file_id": None}
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
            status, reply = (500, {"error": {"message": "failed"}}) if fault else (0, None)
            if not fault:
                status, reply = self.charge(line["body"], Decimal("0.5"))
            row = {"id": "r", "custom_id": line["custom_id"], "error": None}
            row["response"] = {"status_code": status, "request_id": "q", "body": reply}
            text = json.dumps(row, ensure_ascii=False)
            (output if status == 200 else errors).append(text)
        random.Random(0).shuffle(output)  # as at the real service, in any order
        for field, rows in (("output_file_id", output), ("error_file_id", errors)):
            if rows:
                batch[field] = f"file-{len(self.files) + 1}"
                content = "".join(f"{row}\n" for row in rows).encode()
                self.files[batch[field]] = self.edit_file(content)
        done = {"completed": len(output), "failed": len(errors)}
        batch |= {"status": "completed" if len(output) + len(errors) == len(lines) else "expired"}
        batch["request_counts"] |= done


def refuse(status, message, code):
    return status, {"error": {"message": message, "type": "error", "code": code}}


def hang_up(handler):
    """Close a connection without another word."""
    handler.close_connection = True


def read_upload(content_type, body):
    """The `file` part of a multipart form."""
    boundary = content_type.partition("boundary=")[2].strip('"').encode()
    for part in body.split(b"--" + boundary):
        head, _, content = part.partition(b"\r\n\r\n")
        if b'name="file"' in head:
            return content.removesuffix(b"\r\n")
    return b""
