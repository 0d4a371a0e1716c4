"""Label text with a large language model, at a hard budget: GPT-3.5 as an annotator.

Usage:
    python gpt_annotate.py --task wlp --labeled data/prepared/paper/wlp/train.jsonl \\
        --unlabeled data/prepared/paper/wlp/unlabeled.jsonl --num 4347 --model gpt-6-luna \\
        --budget 20 --output runs/paper/wlp/llm        # first with --dry-run: what it would cost
    python gpt_annotate.py --task wlp --labeled data/prepared/mini/wlp/train.jsonl \\
        --unlabeled data/prepared/mini/wlp/test.jsonl --num 100 --budget 20 --output /tmp/llm \\
        --simulate 0.85 --gold data/prepared/mini/wlp/test.jsonl   # no key, no server

Reads:  LABELED, a JSONL file of {"source", "target"}; UNLABELED, one of {"source"}; the task's
        entry in data/tasks.json ("label_descriptions": {label: text} go into the prompt);
        data/prices.csv; the key from the environment: OPENAI_API_KEY
Writes: OUTPUT/answers.jsonl (or --store), every call and raw answer: it was paid for, never delete
        it; OUTPUT/labels.jsonl, {"source", "target"}, as train_small.py --train reads it, with
        --logprobs also "confidence"; with --predictions also OUTPUT/predictions.jsonl, as
        evaluate.py reads it; OUTPUT/prompt.txt, one whole prompt; OUTPUT/annotation.json last:
        counts, tokens, dollars of these rows
Copy:   gpt_annotate.py data/__init__.py data/files.py data/tasks.py data/spans.py
        data/annotate/ data/costs/prices.py data/tasks.json data/prices.csv
Paper:  section 5 and Appendix E, Figures 6 and 7

The budget is for the store: all that was ever paid into it, with the worst case of each call set
aside before it is sent. What a provider may have billed for an answer that was lost on the way
(timeout, dropped connection, error 5xx, killed run) counts at its worst case; the rules are in
data/annotate/store.py. Run the same command again to continue; a finished job makes no call.
"""

import argparse
import asyncio
import hashlib
import json
import math
import os
import random
import re
import sys
from contextlib import closing
from pathlib import Path

from data.annotate import batches
from data.annotate.answers import Reader
from data.annotate.calls import Client, Run, check_server
from data.annotate.prompts import ESTIMATE, FORMATS, Prompter, estimate_tokens
from data.annotate.results import FILES, PAPER_MODEL, Job, show_result, write_results
from data.annotate.simulator import Annotator
from data.annotate.store import Money, Store, Wallet
from data.costs.prices import load_prices, show_price, show_usd
from data.files import (
    DATA,
    UserError,
    check_overwrite,
    make_parser,
    parse_amount,
    parse_json,
    plural,
    read_jsonl,
    run_cli,
)
from data.spans import Wrong, check_entities
from data.tasks import load_task

DEFAULT_MODEL = "gpt-6-luna"  # of the model pages on 2026-11: small, for many calls
NEW_MODELS = re.compile(r"gpt-([5-9]|\d\d)|o\d")  # know max_completion_tokens alone
FIELDS = {DEFAULT_MODEL: {"reasoning_effort": "none"}}  # with which alone it takes a temperature
RESERVED = {"model", "messages", "prompt", "n", "best_of", "stream", "response_format"}
RESERVED |= {"tools", "functions", "web_search_options"}  # they cost what no worst case holds

# --- what it would cost --------------------------------------------------------------------


def estimate_cost(job, store):
    """Lines that say what the calls still to make would cost, from real prompts."""
    args, money, prompter, calls = job.args, job.money, job.prompter, job.calls.values()
    left = [call for call in calls if call.key not in store.answers]
    n, prompt = len(left), sum(call.estimate for call in calls) * store.calibration / len(calls)
    targets = [estimate_tokens(row["target"]) for row in prompter.pool]
    answer = sum(targets) / len(targets) + 1
    parts = prompter.instruction, *prompter.write_parts("", fixed=True)[1:-1]
    same = sum(map(estimate_tokens, parts))
    each = money.cost((prompt, 0, answer))
    cached = money.cost((prompt, min(prompt, same) if same >= 1024 else 0, answer))
    worst = sum(money.cost(call.worst) for call in left)
    paper = Money(PAPER_MODEL, job.prices).cost((prompt, 0, answer))
    basis = ESTIMATE
    if store.estimated[1]:
        basis += f" times {store.calibration:.3f}, as the answers so far were counted"
    now = "the same for all" if args.fixed_examples else "drawn anew for each"
    yield f"{n:,} calls, {args.shots} examples each, {now}; above, the first one's prompt"
    yield f"{prompt:,.1f} prompt and {answer:,.1f} answer tokens a call ({basis})"
    yield f"{n * (prompt + answer):,.0f} tokens: {show_usd(each * n)} for {args.model}"
    yield f"{show_usd(worst)} at the most; that much is set aside as calls are sent"
    yield f"{show_price(each)} a label; {show_price(paper)} at the paper's price"
    if money.usd["cached"] != money.usd["in"]:
        total = show_usd(cached * n)
        yield f"{total} with --fixed-examples, if the provider caches their {round(same):,} tokens"
    if money.share["batch"] != 1:
        yield f"{show_usd(each * n * money.share['batch'])} with --batch"
    if args.budget:
        left = max(0, args.budget - store.wallet.used - store.wallet.held)
        labels = math.floor(left / each) if each else math.inf
        yield f"{show_usd(args.budget)} buys about {plural(labels, 'label')}"
    tokens = f'"llm_tokens_per_label": {round(prompt + answer)}'
    yield f"to plan with such labels (costs.py): {tokens} in the entry"


def price_paper_label(task, prices):
    """Dollars of a label in the paper (Appendix E), 0 where it says nothing of a task."""
    return Money(PAPER_MODEL, prices).cost((task.llm_tokens_per_label or 0, 0, 0))


def count_paper(args, task, prices):
    """A line with the labels that the budget buys in the paper, where it says so."""
    usd = price_paper_label(task, prices)
    if not usd or not args.budget:
        return None
    labels = f"{plural(math.floor(args.budget / usd), 'label')} at {show_price(usd)}"
    tokens = f"{float(task.llm_tokens_per_label):,.0f}"
    return f"{show_usd(args.budget)} bought {labels} in the paper, {tokens} tokens each"


# --- the run -------------------------------------------------------------------------------


def draw_rows(rows, count, seed):
    """The first `count` rows of a seeded permutation, as the training scripts draw them."""
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows[:count]


def read_labeled(args, task):
    """Rows with a target in the order in which train_small.py draws them with the same seed; the
    first --pool of them are the examples."""
    rows = read_jsonl(args.labeled, kind=str)
    rows = [row for row in rows if row["target"].strip() or task.keeps_empty]
    rows = draw_rows(rows, None, args.seed)
    pool = rows[: args.pool]
    if len(pool) < args.shots:
        raise UserError(
            f"{args.labeled}: {args.shots} examples go into a prompt, and {len(pool)} labeled rows "
            "are there; label more or lower --shots (and --pool)"
        )
    if args.add_labeled > len(rows):
        asked = f"{plural(args.add_labeled, 'row')} asked for by --add-labeled"
        raise UserError(f"{args.labeled}: {asked}, {len(rows):,} with a target are there")
    for row in rows[: max(len(pool), args.add_labeled)]:
        try:
            check_row(row["source"], row["target"], task)
        except Wrong as wrong:
            raise UserError(f"{args.labeled}: {wrong}") from None
    return rows


def check_row(source, target, task):
    if not source.strip():
        raise Wrong(f"an empty source with target {target!r}")
    if task.metric == "classes" and target not in task.labels:
        raise Wrong(f"{target!r} is no label of task {task.name!r}")
    if task.metric == "entities":
        check_entities(target, source, task.labels)


def read_inputs(args):
    """(Task, labeled rows, rows to label, right answers or None), all checked."""
    task = load_task(args.task)
    args.task = task.name
    labeled = read_labeled(args, task)
    keys = ("source", "target") if args.predictions else ("source",)
    rows = read_jsonl(args.unlabeled, keys, str)
    if args.num and args.num > len(rows):
        raise UserError(f"{args.unlabeled}: {args.num:,} rows asked for, {len(rows):,} there")
    return task, labeled, rows, read_jsonl(args.gold, kind=str) if args.gold else None


def make_calls(args, prompter, rows):
    """(the rows in the order of labeling, {source: its call}); equal sources share a call."""
    drawn, calls = draw_rows(enumerate(rows, 1), args.num, args.seed), {}
    for number, row in drawn:
        source, name = row["source"], f"{args.unlabeled} row {number}"
        if not source.strip():
            raise UserError(f"{name}: an empty source, whose label would be paid for")
        if source not in calls:
            calls[source] = prompter.make_call(name, source)
    return [row for _, row in drawn], calls


def list_settings(args, prompter):
    """What decides on the answers: a store holds those of one such choice."""
    names = "model task endpoint simulate shots seed fixed_examples temperature max_tokens"
    names += " structured extra"
    settings = {name: getattr(args, name) for name in names.split()}
    pool = json.dumps([[row["source"], row["target"]] for row in prompter.pool])
    sha256 = hashlib.sha256(pool.encode()).hexdigest()
    return {**settings, "instruction": prompter.instruction, "examples_sha256": sha256}


def open_client(job):
    """What answers: the user's server, OpenAI's, or a simulated annotator."""
    args, task = job.args, job.task
    if args.simulate is None:
        url, key = check_server(args.base_url, os.environ.get("OPENAI_API_KEY"))
        return Client(url, key, args.endpoint)
    print(f"no key is used: the answers of {args.model} are simulated", file=sys.stderr)
    annotator = Annotator(job.gold, task.metric, list(task.labels), args.simulate, args.seed)
    for source in job.calls:  # one without is refused before the first call
        annotator.answer(" ".join(source.split()))
    return annotator


async def make_calls_left(job, store, client):
    """Ask for what the store lacks."""
    run, calls = Run(job, store, client), list(job.calls.values())
    async with client.api:
        if run.args.batch == "submit":
            await batches.submit(run, calls)
        elif run.args.batch == "collect":
            await batches.collect(run, calls)
        elif store.batches:
            text = "a batch is under way; first take it in: --batch collect"
            raise UserError(f"{store.path}: {text}")
        elif not await run.run(calls):
            held = show_usd(store.wallet.held)
            budget = f"{show_usd(run.args.budget)} is reached ({held} of it for lost answers)"
            print(f"the budget of {budget}; a larger one continues", file=sys.stderr)


def prepare_job(args):
    """The Job, from all files and flags; nothing is written or called yet."""
    inputs = args.labeled, args.unlabeled, args.gold, args.prices, DATA / "tasks.json"
    check_overwrite([args.store, *(args.output / each for each in FILES)], inputs)
    task, labeled, rows, gold = read_inputs(args)
    prices = load_prices(args.prices)
    settle_args(args, task, prices)
    given = {"in": args.price_in, "cached": args.price_cached, "out": args.price_out}
    money = Money(args.model, prices, given if args.price_in is not None else None)
    prompter = Prompter(args, task, labeled[: args.pool])
    rows, calls = make_calls(args, prompter, rows)
    if known := len(calls.keys() & {row["source"] for row in labeled}):
        text = f"{known:,} of {len(calls):,} sources to label have a target in {args.labeled}"
        print(f"note: {text}, and are paid for again", file=sys.stderr)
    return Job(args, task, prompter, Reader(task), money, prices, labeled, rows, calls, gold)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--task", required=True, help="entry of data/tasks.json, or FILE.json or NAME=FILE.json")
    add("--labeled", required=True, type=Path, help="JSONL file to draw the examples from")
    add("--unlabeled", required=True, type=Path, help="JSONL file of the sources to label")
    add("--output", required=True, type=Path, help="folder of the store and the labels")
    # fmt: off
    add("--store", type=Path, help="file of the answers, for outputs that share it (default: "
        "OUTPUT/answers.jsonl)")
    add("--num", type=int, help="rows to label, drawn by --seed (default: all)")
    add("--budget", help="USD that the store may ever cost, or paper: what the paper's price of a "
        "label makes of --num; needed unless --dry-run or --replay")
    add("--model", help=f"(default: {DEFAULT_MODEL}; with --simulate {PAPER_MODEL}, the paper's, "
        "which is no longer served)")
    add("--base-url", metavar="URL",
        help="server that gets the calls and the key, such as http://127.0.0.1:8000/v1 (default: "
        "$OPENAI_BASE_URL, else OpenAI)")
    add("--endpoint", choices=("chat", "completions"),
        help="(default: completions for text-davinci-003 and *-instruct, else chat)")
    add("--shots", type=int, default=32, help="examples in a prompt (%(default)s)")
    add("--pool", type=int, help="labeled rows to draw them from (default: 100, or --shots)")
    add("--fixed-examples", action=switch, default=False,
        help="the same examples in each prompt, for providers that cache a prefix (default: no; "
        "the paper draws and shuffles anew, which lowers the variance)")
    add("--seed", type=int, default=0, help="of rows, pool and examples (%(default)s)")
    add("--temperature", type=float, default=0.0, help="of sampling (%(default)s: the likeliest)")
    add("--max-tokens", type=int, help="longest answer (default: by the task's target length)")
    add("--structured", choices=("auto", "on", "off"), default="auto",
        help="ask for JSON with the label set: auto tries it on the first chat call (%(default)s; "
        "the paper had plain text; tasks without labels always have)")
    add("--extra", type=read_extra, default={}, metavar="JSON",
        help='more fields of the request, null removes one, such as \'{"max_tokens": null, '
        '"max_completion_tokens": 64}\'')
    add("--prices", type=Path, default=DATA / "prices.csv", help="price list (%(default)s)")
    add("--price-in", metavar="USD", help="per million prompt tokens (default: price list)")
    add("--price-out", metavar="USD", help="per million answer tokens (default: price list)")
    add("--price-cached", metavar="USD", help="per million cached ones (default: as --price-in)")
    add("--concurrency", type=int, default=8, help="calls at a time (%(default)s)")
    add("--rpm", type=float, help="requests per minute (default: no limit)")
    add("--tpm", type=float, help="tokens per minute (default: no limit)")
    add("--timeout", type=float, default=120.0, help="seconds per call (%(default)s)")
    add("--attempts", type=int, default=8, help="tries per row (%(default)s)")
    add("--backoff", type=float, default=1.0, help="seconds before the first retry (%(default)s)")
    add("--batch", choices=("submit", "collect"), help="Batch API: half the price, within a day")
    add("--add-labeled", type=int, default=0, metavar="N",
        help="rows of LABELED to put before the LLM's in labels.jsonl, as train_small.py "
        "--num-labels N draws them (%(default)s)")
    add("--predictions", action=switch, default=False,
        help="UNLABELED has targets, as a test set: write predictions.jsonl too (default: no)")
    add("--complete", action=switch, default=False,
        help="an error if a row has no answer, as where the budget ends (default: no)")
    add("--logprobs", action=switch, default=False,
        help="ask for the probabilities of the answer's tokens; their geometric mean is each "
        "label's confidence (default: no, as some servers refuse)")
    add("--brake", type=int, default=20, metavar="N",
        help="stop where the first N answers hold no label, 0: never (%(default)s)")
    add("--replay", action=switch, default=False,
        help="write the results again from the store alone, without any call (default: no)")
    add("--dry-run", action=switch, default=False, help="estimate tokens and dollars only (no)")
    add("--simulate", type=float, metavar="ACCURACY",
        help="label by a simulated annotator that is right so often, 0..1; needs --gold")
    add("--gold", type=Path, help="JSONL file with the right answers of UNLABELED's sources")
    # fmt: on
    return check_args(parser, parser.parse_args(argv))


def read_extra(text):
    try:
        return parse_json(text, text)
    except UserError as error:
        raise argparse.ArgumentTypeError(error) from None


def check_args(parser, args):
    """Refuse flags that cannot be meant, and fill in defaults that depend on others."""
    above = "pool concurrency attempts num max_tokens rpm tpm timeout".split()
    for name in [*above, "shots", "backoff", "add_labeled", "brake", "temperature", "seed"]:
        value, flag = getattr(args, name), f"--{name.replace('_', '-')}"
        most = 1000 if name == "concurrency" else 10**9
        if value is not None and not (0 <= value <= most and (value or name not in above)):
            least = "above 0" if name in above else "0 or more"
            parser.error(f"{flag} must be {least} and at most {most:,}: {value:g}")
    if not isinstance(args.extra, dict) or set(args.extra) & RESERVED:
        parser.error(f"--extra must be a JSON object without {', '.join(sorted(RESERVED))}")
    given = [args.price_in is not None, args.price_out is not None]
    if any(given) != all(given) or (args.price_cached is not None and not all(given)):
        parser.error("--price-in and --price-out go together, --price-cached with them")
    if "service_tier" in args.extra and not all(given):
        parser.error("--extra: a service_tier has its own prices; say --price-in and --price-out")
    args.pool = args.pool or max(100, args.shots)
    if args.pool < args.shots:
        parser.error(f"--pool {args.pool}: fewer than the --shots {args.shots} drawn from it")
    if args.simulate is not None and not 0 <= args.simulate <= 1:
        parser.error("--simulate must be a share from 0 to 1")
    if args.simulate is not None and (args.base_url or args.batch or not args.gold):
        parser.error("--simulate needs --gold, and goes with neither --base-url nor --batch")
    args.base_url = args.base_url or os.environ.get("OPENAI_BASE_URL")
    args.model = args.model or (DEFAULT_MODEL if args.simulate is None else PAPER_MODEL)
    if not args.endpoint:
        old = args.model == PAPER_MODEL or args.model.endswith("-instruct")
        args.endpoint = "completions" if old else "chat"
    args.store = args.store or args.output / "answers.jsonl"
    return args


def settle_args(args, task, prices):
    """Defaults that the task decides, and the budget as an exact amount."""
    if args.endpoint == "completions" or task.metric not in FORMATS:
        args.structured = "off"
    length = task.max_target_length * (2 if args.structured == "off" else 5)
    args.max_tokens = args.max_tokens or max(16, length)
    if args.endpoint == "chat" and NEW_MODELS.match(args.model):
        most = {"max_tokens": None, "max_completion_tokens": args.max_tokens}
        args.extra = {**most, **FIELDS.get(args.model, {}), **args.extra}
    asked = args.extra.get("max_tokens", args.max_tokens)
    args.max_tokens = args.extra.get("max_completion_tokens") or asked
    if type(args.max_tokens) is not int or args.max_tokens < 1:
        raise UserError("--extra: without max_tokens or max_completion_tokens no budget holds")
    if args.budget is None and not args.dry_run and not args.replay:
        raise UserError("no --budget: give the USD that this may cost, or --dry-run to estimate it")
    if args.budget == "paper":
        price = price_paper_label(task, prices)
        if not price or not args.num:
            raise UserError("--budget paper: needs --num, and a task whose price the paper states")
        args.budget = args.num * price
    elif args.budget is not None:
        args.budget = parse_amount(args.budget, "--budget")
        if not args.budget:
            raise UserError("--budget 0: buys nothing; give USD above 0, such as 20")


def main(argv=None):
    args = parse_args(argv)
    job = prepare_job(args)
    settings = list_settings(args, job.prompter)
    store = Store(args.store, settings, Wallet(job.money), write=False)
    if args.dry_run:
        structured = args.structured == "on" or bool(store.structured)
        print(job.prompter.show_request(job.rows[0]["source"], structured))
        lines = [*estimate_cost(job, store), count_paper(args, job.task, job.prices)]
        return print(*filter(None, lines), sep="\n")
    pending = any(call.key not in store.answers for call in job.calls.values())
    if pending and not args.replay:
        client = open_client(job)
        with closing(Store(args.store, settings, Wallet(job.money, args.budget))) as store:
            asyncio.run(make_calls_left(job, store, client))
        if args.batch == "submit":
            return
    print(*show_result(args, write_results(job, store)), sep="\n")


if __name__ == "__main__":
    run_cli(main)
