"""Batch API: calls at half the price within a day; submit, leave, collect.

Reads:  nothing but the replies
Writes: the store of data/annotate/store.py: a batch before it is made, its answers as they are read
Paper:  none: it was not on offer in 2022
"""

import asyncio
import json
import re
import uuid

from data.annotate.calls import FILTERED
from data.annotate.store import TOO_LONG, Call, read_choice, read_error, read_usage
from data.files import UserError

LIMIT = 50_000, 150_000_000  # requests and bytes of one batch
RUNNING = {"validating", "in_progress", "finalizing", "cancelling"}
CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([0-9a-f]{32})"')


async def submit(run, calls):
    """Send as many calls as the budget can hold as one batch; how many."""
    chosen, lines, size, total, client = {}, [], 0, [0, 0, 0], run.client
    for call in calls:
        request = {"custom_id": call.key, "method": "POST", "url": f"/v1/{client.path}"}
        request["body"] = run.prompter.write_request(call.source, run.structured)
        line = json.dumps(request) + "\n"
        size += len(line)
        total = [a + b for a, b in zip(total, call.worst, strict=True)]
        full = len(lines) == LIMIT[0] or size > LIMIT[1]
        if full or not run.store.wallet.fits(total, "batch"):
            break
        chosen[call.key] = call.worst
        lines.append(line)
    if not chosen:
        return 0
    nonce = uuid.uuid4().hex
    await run.store.append({"type": "batch", "nonce": nonce, "calls": chosen})
    file, mark = None, {"nonce": nonce}  # by it, collect finds a batch whose reply was lost
    try:
        upload = ("b.jsonl", "".join(lines).encode())
        file = await client.api.files.create(file=upload, purpose="batch")
        options = {"endpoint": f"/v1/{client.path}", "completion_window": "24h"}
        batch = await client.api.batches.create(input_file_id=file.id, metadata=mark, **options)
    except client.failed as error:
        if file is None or getattr(error, "status_code", 500) < 500:  # it was surely not made
            await run.store.append({"type": "batch-end", "nonce": nonce})
        raise explain(client, error) from None
    await run.store.append({"type": "batch-id", "nonce": nonce, "id": batch.id})
    return len(chosen)


async def collect(run, calls):
    """Take in all finished batches; lines to tell, and whether some are not finished."""
    told, waiting, calls = [], False, {call.key: call for call in calls}
    try:
        for nonce, entry in list(run.store.batches.items()):
            batch = await find_batch(run, nonce, entry["id"])
            if batch and batch.status in RUNNING:
                counts = batch.request_counts
                done = f", {counts.completed:,} of {counts.total:,} done" if counts else ""
                told.append(f"batch {batch.id} is {batch.status}{done}")
                waiting = True
                continue
            lines = []
            for name in (batch.output_file_id, batch.error_file_id) if batch else ():
                if name:
                    content = (await run.client.api.files.content(name)).content
                    lines += [(name, *line) for line in enumerate(content.split(b"\n"), 1)]
            told += await take_lines(run, lines, nonce, calls)
            await run.store.append({"type": "batch-end", "nonce": nonce})
    except run.client.failed as error:
        raise explain(run.client, error) from None
    return told, waiting


async def find_batch(run, nonce, name):
    """The server's batch; None where it was never made."""
    batches = run.client.api.batches
    if name:
        return await batches.retrieve(name)
    async for batch in batches.list(limit=100):
        if (batch.metadata or {}).get("nonce") == nonce:
            await run.store.append({"type": "batch-id", "nonce": nonce, "id": batch.id})
            return await batches.retrieve(batch.id)
    return None


def read_line(line):
    """(custom_id, (response, its body, error)) of a line; a ValueError if it cannot be read."""
    row = json.loads(line)
    try:
        key, response = row["custom_id"], row.get("response") or {}
        return key.strip(), (response, response.get("body"), row.get("error"))
    except (LookupError, TypeError, AttributeError):
        raise ValueError("no line of a batch") from None


async def take_lines(run, lines, nonce, calls):
    """Take in each line by itself; a text for each that cannot be read: its answer is lost."""
    rows, told, lost = {}, [], []
    sent = run.store.batches[nonce]["calls"]  # of all that was submitted, not of `calls` alone
    for name, number, line in lines:
        try:
            key, row = read_line(line) if line.strip() else (None, None)
            rows.setdefault(key, row)
        except (ValueError, RecursionError):
            told.append(f"{name} line {number}: not readable; its answer counts at its worst case")
            lost.append(CUSTOM_ID.search(line))
    new = sent.keys() & rows.keys() - run.store.answers.keys()  # the others came before a kill
    known = {key: Call(key, f"call {key} of a batch", "", 0, sent[key]) for key in new} | calls
    await asyncio.gather(*(take_row(run, known[key], *rows[key], nonce) for key in new))
    named = {match[1].decode() for match in lost if match}
    silent = sent.keys() - named - rows.keys()
    silent = sorted(silent, key=lambda key: (-run.store.wallet.money.cost(sent[key]), key))
    for key in [*named, *silent[: lost.count(None)]]:
        if key in sent and key not in run.store.answers:
            why = "unreadable line of a batch"
            await run.store.append({"type": "lost", "key": key, "attempt": nonce, "why": why})
    return told


async def take_row(run, call, response, body, error, nonce):
    """The answer to one call of a batch, or why it has none."""
    raw, status = json.dumps(body), response.get("status_code")
    record = {"key": call.key, "attempt": nonce}
    if status == 200:
        try:
            read_choice(raw)
            usage, wrong = read_usage(raw, call.worst)
        except (ValueError, AttributeError):
            lost = {"type": "lost", **record, "why": "broken reply in a batch", "raw": raw}
            return await run.store.append(lost)
        return await run.take(call, nonce, raw, 200, usage, **({"wrong": wrong} if wrong else {}))
    message, code = read_error(body or error or "no reply")
    if code in FILTERED | TOO_LONG:
        return await run.take(call, nonce, run.client.hide(raw), status, [0, 0, 0])
    why = run.client.hide(f"in a batch: {status or ''} {message}")
    await run.store.append({"type": "free", **record, "why": why})


def explain(client, error):
    """A UserError that says what went wrong with a file or a batch."""
    what = client.hide(str(error) or type(error).__name__)
    if isinstance(error, client.refused):
        fault = client.read_refusal(error)
        what = fault.advice or f"{fault.why}: {client.hide(read_error(error.body)[0])}"
    return UserError(f"{client.url}: {what}; run the same command again to continue")
