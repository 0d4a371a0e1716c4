"""Batch API: calls at half the price within a day; submit, leave, collect.

Reads:  nothing but the replies
Writes: the store of data/annotate/store.py: a batch before it is made, its answers as they are read
Paper:  none: it was not on offer in 2022
"""

import asyncio
import json
import uuid
from contextlib import suppress

from data.annotate.calls import FILTERED, read_refusal
from data.annotate.store import TOO_LONG, read_choice, read_error, read_usage
from data.files import UserError

LIMIT = 50_000, 150_000_000  # requests and bytes of one batch
RUNNING = {"validating", "in_progress", "finalizing", "cancelling"}


async def submit(caller, calls):
    """Send as many calls as the budget can hold as one batch; how many."""
    store, chosen, lines, size, total = caller.store, {}, [], 0, [0, 0, 0]
    structured = caller.args.structured == "on" or bool(store.structured)
    for call in calls:
        request = {"custom_id": call.key, "method": "POST", "url": f"/v1/{caller.path}"}
        line = json.dumps({**request, "body": call.make_body(structured)}) + "\n"
        size += len(line)
        total = [a + b for a, b in zip(total, call.worst, strict=True)]
        if len(lines) == LIMIT[0] or size > LIMIT[1] or not store.fits(total, "batch"):
            break
        chosen[call.key] = call.worst
        lines.append(line)
    if not chosen:
        return 0
    nonce = uuid.uuid4().hex
    await store.append({"type": "batch", "nonce": nonce, "calls": chosen})
    openai, files, batches = caller.openai, caller.client.files, caller.client.batches
    try:
        file = await files.create(file=("b.jsonl", "".join(lines).encode()), purpose="batch")
    except openai.OpenAIError as error:
        await store.append({"type": "batch-end", "nonce": nonce})
        raise explain(caller, error) from None
    options = {"endpoint": f"/v1/{caller.path}", "completion_window": "24h"}
    try:
        mark = {"nonce": nonce}  # by it, collect finds a batch whose reply was lost
        batch = await batches.create(input_file_id=file.id, metadata=mark, **options)
    except openai.OpenAIError as error:
        if getattr(error, "status_code", 500) < 500:
            await store.append({"type": "batch-end", "nonce": nonce})
        raise explain(caller, error) from None
    await store.append({"type": "batch-id", "nonce": nonce, "id": batch.id})
    return len(chosen)


async def collect(caller, calls):
    """Take in all finished batches; a line for each one that is not."""
    waiting, calls, store = [], {call.key: call for call in calls}, caller.store
    try:
        for nonce, entry in list(store.batches.items()):
            batch = await find_batch(caller, nonce, entry["id"])
            if batch and batch.status in RUNNING:
                counts = batch.request_counts
                done = f", {counts.completed:,} of {counts.total:,} done" if counts else ""
                waiting.append(f"batch {batch.id} is {batch.status}{done}")
                continue
            for file in (batch.output_file_id, batch.error_file_id) if batch else ():
                text = (await caller.client.files.content(file)).text if file else ""
                rows = map(json.loads, text.splitlines())
                await asyncio.gather(*(take_row(caller, row, nonce, calls) for row in rows))
            await store.append({"type": "batch-end", "nonce": nonce})
    except caller.openai.OpenAIError as error:
        raise explain(caller, error) from None
    except ValueError as error:
        raise UserError(f"{caller.url}: a batch's file is no JSONL ({error})") from None
    return waiting


async def find_batch(caller, nonce, name):
    """The server's batch; None where it was never made."""
    if name:
        return await caller.client.batches.retrieve(name)
    async for batch in caller.client.batches.list(limit=100):
        if (batch.metadata or {}).get("nonce") == nonce:
            await caller.store.append({"type": "batch-id", "nonce": nonce, "id": batch.id})
            return await caller.client.batches.retrieve(batch.id)
    return None


async def take_row(caller, row, nonce, calls):
    """One line of a batch's output or error file."""
    key, response = row["custom_id"], row.get("response") or {}
    call = calls.get(key)
    if call is None or key in caller.store.answers:  # taken in before a kill
        return
    raw, status = caller.hide(json.dumps(response.get("body"))), response.get("status_code")
    if status == 200:
        with suppress(ValueError, AttributeError):
            read_choice(raw)
            usage, wrong = read_usage(raw, call.worst)
            return await caller.take(call, nonce, raw, 200, usage, wrong=wrong)
    message, code = read_error(response.get("body") or row.get("error") or "no reply")
    if code in FILTERED | TOO_LONG:
        return await caller.take(call, nonce, raw, status, [0, 0, 0])
    why = f"in a batch: {status or ''} {message}"
    await caller.store.append({"type": "free", "key": key, "attempt": nonce, "why": why})


def explain(caller, error):
    """A UserError that says what went wrong with a file or a batch."""
    what = str(error)
    if hasattr(error, "status_code"):
        fault = read_refusal(error)
        what = fault.advice or f"{fault.why}: {read_error(error.body)[0]}"
    return UserError(f"{caller.url}: {caller.hide(what)}; run the same command again to continue")
