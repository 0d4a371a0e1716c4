"""Batch API: calls at half the price within a day; submit, leave, collect.

The store has a batch before it is made, and its answers as they are read.
"""

import asyncio
import json
import uuid

from data.annotate.calls import FILTERED, Fault
from data.annotate.store import DAMAGE, TOO_LONG, Call, read_error
from data.files import UserError

LIMIT = 50_000, 150_000_000  # requests and bytes of one batch
RUNNING = {"validating", "in_progress", "finalizing", "cancelling"}


async def submit(run, calls):
    """Send as many calls as the budget can hold as one batch, and print how many."""
    store, client, wallet = run.store, run.client, run.store.wallet
    run.has_label(calls)
    left = [call for call in calls if call.key not in store.answers]
    sent = {key for batch in store.batches.values() for key in batch["calls"]}
    chosen, lines, size, usd = {}, [], 0, 0
    for call in left:
        if call.key in sent:
            continue
        request = {"custom_id": call.key, "method": "POST", "url": f"/v1/{client.path}"}
        request["body"] = run.prompter.write_request(call.source, run.structured)
        line = json.dumps(request) + "\n"
        size += len(line)
        usd += wallet.money.cost(call.worst, "batch")
        if len(lines) == LIMIT[0] or size > LIMIT[1] or not wallet.fits(usd):
            break
        chosen[call.key] = call.worst
        lines.append(line)
    if chosen:
        await send(run, chosen, "".join(lines).encode())
    done = f"{len(chosen):,} of {len(left):,} calls submitted; now --batch collect"
    if run.args.complete:
        raise UserError(done)
    print(done)


async def send(run, calls, content):
    """Make one batch of {key: worst case}, whose requests are the file `content`."""
    append, client, nonce = run.store.append, run.client, uuid.uuid4().hex
    await append({"type": "batch", "nonce": nonce, "calls": calls})
    file, mark = None, {"nonce": nonce}  # by it, collect finds a batch whose reply was lost
    try:
        upload = client.api.files.create(file=("b.jsonl", content), purpose="batch")
        file = check_reply(client, await upload)
        options = {"endpoint": f"/v1/{client.path}", "completion_window": "24h"}
        batch = await client.api.batches.create(input_file_id=file.id, metadata=mark, **options)
        check_reply(client, batch)
    except (*client.failed, UserError) as error:
        if file is None or getattr(error, "status_code", 500) < 500:  # it was surely not made
            await append({"type": "batch-end", "nonce": nonce})
        raise explain(client, error) from None
    await append({"type": "batch-id", "nonce": nonce, "id": batch.id})


async def collect(run, calls):
    """Take in all finished batches; a UserError where something is left to do."""
    store, told = run.store, []
    try:
        for nonce, entry in list(store.batches.items()):
            batch = await find_batch(run, nonce, entry["id"])
            if batch and batch.status in RUNNING:
                counts = [getattr(batch.request_counts, key, 0) for key in ("completed", "total")]
                known = all(type(count) is int for count in counts) and counts[1]
                done = f", {counts[0]:,} of {counts[1]:,} done" if known else ""
                told.append(f"batch {batch.id} is {batch.status}{done}; collect it later")
                continue
            lines = []
            for name in filter(None, (batch.output_file_id, batch.error_file_id) if batch else ()):
                content = (await run.client.api.files.content(name)).content
                numbered = enumerate(content.split(b"\n"), 1)
                lines += [(f"{name} line {n}", line) for n, line in numbered if line.strip()]
            told += await take_lines(run, lines, nonce, calls)
            await store.append({"type": "batch-end", "nonce": nonce})
    except run.client.failed as error:
        raise explain(run.client, error) from None
    left = sum(call.key not in store.answers for call in calls)
    if left and not store.batches:
        why = next(reversed(store.faults), "none is under way")
        ways = "--batch submit sends them, --replay does without"
        told.append(f"{left:,} calls have no answer ({why}); {ways}")
    for text in told[:-1]:
        print(text)
    if told:
        raise UserError(told[-1])


async def find_batch(run, nonce, name):
    """The server's batch; None where it was never made."""
    client, batches = run.client, run.client.api.batches
    if not name:
        async for batch in batches.list(limit=100):
            if isinstance(batch.metadata, dict) and batch.metadata.get("nonce") == nonce:
                name = check_reply(client, batch).id
                await run.store.append({"type": "batch-id", "nonce": nonce, "id": name})
                break
    return check_reply(client, await batches.retrieve(name), "status") if name else None


def check_reply(client, reply, *names):
    """A file or a batch of the server's, if its id and its `names` are texts: the SDK takes all."""
    for name in ("id", *names):
        if not isinstance(getattr(reply, name, None), str):
            text = f"{client.url}: an answer of the Batch API has no {name!r}; check --base-url"
            raise UserError(f"{text}, or run the same command again")
    return reply


async def take_lines(run, lines, nonce, calls):
    """Take in each line by itself; a text for each that cannot be read: its answer is lost.

    Which calls those are is not known: the dearest of the unanswered ones count at their worst.
    """
    rows, told, store = {}, [], run.store
    sent = store.batches[nonce]["calls"]  # of all that was submitted, not of `calls` alone
    for place, line in lines:
        try:
            row = json.loads(line)
            response = row.get("response") or {}
            reply = response.get("status_code"), response.get("body"), row.get("error")
            rows.setdefault(row["custom_id"].strip(), reply)
        except DAMAGE:
            told.append(f"{place}: not readable; its answer counts at its worst case")
    new = sent.keys() & rows.keys() - store.answers.keys()  # the others came before a kill
    known = {key: Call(key, f"call {key} of a batch", "", 0, sent[key]) for key in new}
    known |= {call.key: call for call in calls}
    await asyncio.gather(*(take_row(run, known[key], nonce, *rows[key]) for key in new))
    silent = sent.keys() - rows.keys() - store.answers.keys()
    dearest = sorted(silent, key=lambda key: (-store.wallet.money.cost(sent[key]), key))
    for key in dearest[: len(told)]:
        why = "unreadable line of a batch"
        await store.append({"type": "lost", "key": key, "attempt": nonce, "why": why})
    return told


async def take_row(run, call, nonce, status, body, error):
    """Keep the answer to one call of a batch, or why it has none."""
    raw = json.dumps(body)
    record = {"key": call.key, "attempt": nonce}
    if status == 200:
        try:
            return await run.take_reply(call, nonce, raw)
        except Fault as fault:
            lost = {"type": "lost", **record, "why": f"{fault.why} in a batch", "raw": raw}
            return await run.store.append(lost)
    message, code = read_error(body or error or "no reply")
    if code in FILTERED | TOO_LONG:
        return await run.take(call, nonce, run.client.hide(raw), status, [0, 0, 0])
    why = run.client.hide(f"in a batch: {status or ''} {message}")
    await run.store.append({"type": "free", **record, "why": why})


def explain(client, error):
    if isinstance(error, UserError):
        return error
    what = client.hide(str(error) or type(error).__name__)
    if isinstance(error, client.refused):
        fault = client.read_refusal(error)
        what = fault.advice or f"{fault.why}: {client.hide(read_error(error.body)[0])}"
    return UserError(f"{client.url}: {what}; run the same command again to continue")
