"""The simulated annotator made unreliable: faults on demand, other habits, the Batch API."""

import hashlib
import json
import random
import time
from collections import Counter
from decimal import Decimal

from data.annotate.server import AnnotatorServer, count_tokens, refuse

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


class FaultyServer(AnnotatorServer):
    """`prices` are USD per million tokens: prompt, cached, completion; `usd` its own books.

    `faults(n)` names the fault of the n-th completion request (from 0), or None.

    `structured` says what becomes of a JSON schema: "yes" follows it, "reject" refuses it by a 400
    and "reject-500" by a 500, as some servers do, "ignore" answers in plain text. `edit(reply)`
    changes a reply, `edit_file(bytes)` a batch's output; `batch_fails(custom_id)` names its fault.
    """

    def __init__(self, annotator, *args, prices=("0", "0", "0"), faults=None, structured="yes",
                 slow=5.0, latency=0.0, retry_after="1", context=None, api_key=None, batch_delay=0,
                 batch_fails=None, edit=None, edit_file=None, **options):  # fmt: skip
        super().__init__(annotator, *args, **options)
        self.latency = latency
        self.prices = [Decimal(price) for price in prices]
        self.faults, self.structured, self.slow = faults or (lambda n: None), structured, slow
        self.retry_after, self.context, self.api_key = retry_after, context, api_key
        self.batch_delay, self.batch_fails = batch_delay, batch_fails or (lambda custom_id: None)
        self.edit, self.edit_file = edit or (lambda reply: reply), edit_file or (lambda file: file)
        self.fired, self.times, self.bodies, self.charged_and_lost = Counter(), [], [], []
        self.files, self.batches, self.prefixes = {}, {}, set()

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
            status, reply = self.complete(handler.path, json.loads(body))
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

    def complete(self, path, body, share=1):
        chat, schema = "messages" in body, "response_format" in body
        if schema and self.structured.startswith("reject"):
            status = int(self.structured[7:] or 400)
            return refuse(status, "response_format: no json_schema here", "invalid")
        text = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        if self.context and len(text) / 4 > self.context:
            text = f"maximum context length is {self.context}"
            return refuse(400, text, "context_length_exceeded")
        if self.structured == "ignore":
            body = {key: value for key, value in body.items() if key != "response_format"}
        status, reply = super().complete(path, body, share)
        return status, self.edit(reply) if status == 200 else reply

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
                status, reply = self.complete(line["url"], line["body"], Decimal("0.5"))
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
