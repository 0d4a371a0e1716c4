"""What came of the calls: labels, predictions, counts, tokens and dollars, from the store alone."""

import os
import platform
import shlex
import sys
from collections import Counter
from contextlib import suppress
from importlib import metadata
from typing import NamedTuple

from data.annotate.answers import Reader
from data.annotate.calls import SECRET, clean_url
from data.annotate.prompts import ESTIMATE, Prompter
from data.annotate.store import Money
from data.costs.prices import show_usd, to_json
from data.files import (
    UserError,
    find_commit,
    hash_file,
    parse_amount,
    plural,
    read_json,
    show_rows,
    write_atomic,
    write_json,
)
from data.tasks import Task

FILES = "labels.jsonl", "predictions.jsonl", "prompt.txt", "annotation.json"
PAPER_MODEL = "text-davinci-003"  # shut down on 2024-01-04


class Job(NamedTuple):
    """What is to be labeled and how."""

    args: object
    task: Task
    prompter: Prompter
    reader: Reader
    money: Money
    prices: list
    labeled: list  # rows with a target in the order of drawing; the first ones are the examples
    rows: list  # rows to label, in the order of labeling
    calls: dict  # {source: its Call}; equal sources share one
    gold: list  # rows with the right answers, None where none are given


def read_answers(job, store):
    """Yield (row, its reply, its target, why there is none) in the order of the rows."""
    for row in job.rows:
        reply, read = store.answers.get(job.calls[row["source"]].key), (None, "missing")
        if reply:
            read = job.reader.read(reply["text"], row["source"], reply["finish"])
        yield row, reply, *read


def list_labels(answers):
    for row, reply, target, _ in answers:
        if target is not None:
            told = {} if reply["confidence"] is None else {"confidence": reply["confidence"]}
            yield {"source": row["source"], "target": target, **told}


def list_predictions(answers):
    """Rows for evaluate.py: what is no label stays as it was said, and so counts as wrong."""
    for row, reply, target, _ in answers:
        said = " ".join(reply["text"].split()) if target is None else target
        given = {key: row[key] for key in ("source", "target", "half") if key in row}
        yield {**given, "prediction": said}


def measure_accuracy(job, labels):
    """Shares of right labels (and entities) where --gold has the answers."""
    gold = {row["source"]: row["target"] for row in reversed(job.gold)}  # the first, as simulated
    known = [(row["target"], gold[row["source"]]) for row in labels if row["source"] in gold]
    if not known:
        return None
    shares = {"rows": len(known), "exact": sum(ours == right for ours, right in known) / len(known)}
    if job.reader.metric == "entities":
        find = job.reader.entity.findall
        pairs = [(Counter(find(ours)), Counter(find(right))) for ours, right in known]
        total = sum(right.total() for _, right in pairs)
        shares["entities"] = sum((ours & right).total() for ours, right in pairs) / max(1, total)
    return shares


def summarize(job, store, answers):
    """labels.jsonl's rows and annotation.json's content; a store may hold more rows than these."""
    args, money, wallet = job.args, job.money, store.wallet
    labels, counts = list(list_labels(answers)), Counter(why or "valid" for *_, why in answers)
    invalid = {key: n for key, n in counts.items() if key not in ("valid", "missing")}
    keys = {call.key for call in job.calls.values()}
    used = wallet.count_used(keys)
    prompt, cached, completion = (sum(column) for column in zip(*used.values(), strict=True))
    usd_paper = Money(PAPER_MODEL, job.prices).cost((prompt, 0, completion))
    models = Counter(reply["model"] for reply in store.answers.values() if reply["model"])
    simulated = args.simulate is not None
    name = f"simulated annotator ({100 * args.simulate:g}% correct)" if simulated else args.model
    sure = [row["confidence"] for row in labels if "confidence" in row]
    summary = {
        "annotator": name, "task": args.task, "model": args.model, "models_seen": dict(models),
        "items": len(job.rows), "labels": len(labels), "valid": counts["valid"],
        "invalid": sum(invalid.values()), "invalid_reasons": invalid, "missing": counts["missing"],
        **({"confidence": {"rows": len(sure), "mean": sum(sure) / len(sure)}} if sure else {}),
        "calls": sum(store.attempts[key] for key in keys),
        "answers": len(keys & set(store.answers)),
        "store": str(store.path), "faults_of_the_store": dict(store.faults),
        "llm_model": args.model,
        "llm_tokens": {"in": prompt - cached, "cached": cached, "out": completion},
        "tokens_of_batches": dict(zip(("prompt", "cached", "out"), used["batch"], strict=True)),
        "usd": to_json(sum(money.cost(tokens, kind) for kind, tokens in used.items())),
        "usd_paper": to_json(usd_paper),
        "usd_possible": to_json(wallet.count_held(keys)),  # if lost answers were billed
        "usd_per_million_tokens": {k: to_json(v * 10**6) for k, v in money.usd.items()},
        "prices": money.rows or ["given by flag"],
        "prompt_tokens": {
            "estimated": round(store.estimated[0]), "counted": store.estimated[1],
            "estimate_by": ESTIMATE,
        },
        "structured": args.structured == "on" or bool(store.structured),
        "settings": store.settings, "seconds": round(store.seconds, 3),
    }  # fmt: skip
    if job.gold:
        summary["accuracy"] = measure_accuracy(job, labels)
    return labels, summary


def write_results(job, store):
    """All files, each only if it says something new, so that make sees no change in a repeat."""
    args = job.args
    if not store.answers:
        raise UserError(f"{store.path}: no answers yet")
    answers = list(read_answers(job, store))
    labels, summary = summarize(job, store, answers)
    if summary["missing"] and (args.complete or args.predictions):
        raise UserError(
            f"{store.path}: {summary['missing']:,} of {plural(len(job.rows), 'row')} without an "
            "answer; a larger --budget (make: BUDGET=USD) continues"
        )
    if not summary["valid"]:
        told = show_reasons(summary)
        text = f"no label in its {plural(summary['answers'], 'answer')} ({told}); read them"
        raise UserError(f"{store.path}: {text}")
    own = [{key: row[key] for key in ("source", "target")} for row in job.labeled]
    texts = {"labels.jsonl": show_rows([*own[: args.add_labeled], *labels])}
    if args.predictions:
        texts["predictions.jsonl"] = show_rows(list_predictions(answers))
    texts["prompt.txt"] = job.prompter.show_request(job.rows[0]["source"], summary["structured"])
    for name, text in texts.items():
        path = args.output / name
        if not path.exists() or path.read_bytes() != text.encode():
            write_atomic(path, text)
    path, known = args.output / "annotation.json", {}
    with suppress(UserError):  # none, another's, or damaged: written anew
        known = {**read_json(path), "provenance": None}
    if known != {**summary, "provenance": None}:
        write_json(path, {**summary, "provenance": describe_run(args)})
    return summary


def describe_run(args):
    versions = {"python": platform.python_version()}
    with suppress(metadata.PackageNotFoundError):
        versions["openai"] = metadata.version("openai")
    command = shlex.join(clean_url(word) if "://" in word else word for word in sys.argv)
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    return {
        "command": command.replace(key, "[key]") if len(key) >= SECRET else command,
        "budget": to_json(args.budget) if args.budget else None,
        "versions": versions,
        "git_commit": find_commit(),
        "data_sha256": {k: hash_file(getattr(args, k)) for k in ("labeled", "unlabeled")},
    }


def show_reasons(summary):
    return ", ".join(f"{n:,} {reason}" for reason, n in summary["invalid_reasons"].items())


def show_result(args, summary):
    """The result in a few lines, for stdout."""
    keys = ("usd", "usd_paper", "usd_possible")
    usd, paper, possible = (show_usd(parse_amount(summary[key], key)) for key in keys)
    items, wrong = plural(summary["items"], "row"), plural(summary["invalid"], "answer")
    yield f"{summary['annotator']}: {summary['valid']:,} of {items} labeled"
    if summary["invalid"]:
        yield f"{wrong} without a label ({show_reasons(summary)}); left out"
    if summary["missing"]:
        yield f"{plural(summary['missing'], 'row')} without an answer"
    tokens = summary["llm_tokens"]
    yield (
        f"{plural(summary['calls'], 'call')}; {tokens['in']:,} new, {tokens['cached']:,} cached "
        f"and {tokens['out']:,} answer tokens"
    )
    more = f"; up to {possible} more may have been billed for lost answers"
    spent = "that real answers would cost, none spent" if args.simulate is not None else "spent"
    yield f"{usd} {spent}, {paper} at the paper's price" + more * bool(summary["usd_possible"])
    if "confidence" in summary:
        yield f"probability of an answer's tokens: {summary['confidence']['mean']:.3f} in the mean"
    for key, share in (summary.get("accuracy") or {}).items():
        if key != "rows":
            yield f"{100 * share:.1f}% right ({key}), against {args.gold}"
