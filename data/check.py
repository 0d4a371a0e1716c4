"""What prepare.py --check says: faults by kind, classes, lengths, what make can make and its cost.

Reads:  data/tasks.json, scales.json, prices.csv; the tokenizers of the scale's models
Paper:  Table 2 (what N labels and a budget buy)
"""

from collections import Counter

from data.costs.budget import make_terms
from data.costs.flags import load_scale, make_flags
from data.costs.grid import TABLES, grid
from data.costs.memory import complete_task
from data.costs.prices import fill, load_prices, show_columns, show_price, show_usd
from data.costs.rules import count_steps, tell_duration
from data.evaluate.restore import check_labels, encode_labels
from data.files import UserError, plural, say_first
from data.spans import make_brackets, split_entities

RARE = 10  # rows of train, below which a class is called rare
MOST = 10_000  # rows whose tokens are counted
LABELED = ("train", "dev", "test")


def describe_faults(faults):
    """One line a kind of fault: where it is, how often, the first three places."""
    kinds = {}
    for fault in faults:
        kinds.setdefault((fault.file, fault.what), []).append(fault)
    for (file, what), group in kinds.items():
        values = Counter(fault.value for fault in group if fault.value)
        shown = ", ".join(value[:80] for value, _ in values.most_common(5))
        shown += f" and {len(values) - 5:,} more" * (len(values) > 5)
        places = ", ".join(fault.place for fault in group[:3])
        told = f"{file}: {len(group):,} times, first in {places}: {what}{shown and ': '}{shown}"
        yield told if group[1:] else str(group[0])


# --- classes ---------------------------------------------------------------------------------


def list_labels(row, task):
    """The labels in a row's target; of an entity row without any, (no entity)."""
    if task.metric == "classes":
        return [row["target"]]
    entities, _ = split_entities(row["target"], make_brackets(task.labels))
    return [label for _, label in entities] or ["(no entity)"]


def describe_classes(splits, task):
    """Rows (of entities: mentions) by label and split, and labels that are absent or rare."""
    counts = {
        split: Counter(label for row in splits[split] for label in list_labels(row, task))
        for split in LABELED
    }
    names = dict.fromkeys([*task.labels, *(label for each in counts.values() for label in each)])
    rows = [[name, *(f"{counts[split][name]:,}" for split in LABELED)] for name in names]
    yield show_columns(["label", *LABELED], rows)
    for split in ("train", "test"):
        if absent := [label for label in task.labels if not counts[split][label]]:
            yield f"{split} has no {', '.join(absent)}"
    if rare := [label for label in task.labels if 0 < counts["train"][label] < RARE]:
        yield f"rare, under {RARE} in train: {', '.join(rare)}"


def describe_contradictions(rows):
    """One line on sources that stand there with several targets."""
    targets = {}
    for row in rows:
        targets.setdefault(" ".join(row["source"].split()), set()).add(row["target"])
    several = [(source, each) for source, each in targets.items() if len(each) > 1]
    shown = [f"{source[:60]!r}: {' / '.join(sorted(each))[:60]}" for source, each in several[:3]]
    if several:
        yield f"sources of train with several targets: {len(several):,}, as {'; '.join(shown)}"


# --- lengths and vocabulary ------------------------------------------------------------------


def describe_models(task, scale, splits, real_text, refused):
    """Lines on what the compact model and the teacher of the scale make of the rows; labels that
    one of them cannot write go to `refused`."""
    try:
        from transformers import AutoTokenizer, logging
    except ImportError:
        yield "lengths and labels not checked: make venv, then .venv/bin/python"
        return
    logging.set_verbosity_error()  # else it tells of each long text
    seen = []
    for strategy in ("small", "teacher"):
        flags = make_flags(task, scale, strategy, real_text=real_text)
        try:
            tokenizer = AutoTokenizer.from_pretrained(flags["model"])
        except Exception as error:  # of a broken folder or an unreachable hub
            yield f"{flags['model']}: lengths and labels not checked ({say_first(error)})"
            continue
        if tokenizer.get_vocab() not in seen:
            seen.append(tokenizer.get_vocab())
            yield from describe_lengths(splits, tokenizer, flags)
            refused += find_unwritable(task, tokenizer, flags)


def describe_lengths(splits, tokenizer, flags):
    """A line each on the sources and targets that the limits cut."""
    rows = (splits["train"] + splits["test"])[:MOST]
    texts = {"source": [flags["prefix"] + row["source"] for row in rows], "target": []}
    for target in (row["target"] for row in rows):
        texts["target"] += target if isinstance(target, list) else [target]
    for kind in texts:
        limit = flags[f"max-{kind}-length"]
        sizes = sorted(map(len, tokenizer(texts[kind]).input_ids))
        cut, usual = sum(size > limit for size in sizes), sizes[int(len(sizes) * 0.99)]
        told = f"no {kind} is cut at {limit} tokens; the longest has {sizes[-1]}"
        if cut:
            told = f"{cut:,} of {plural(len(sizes), kind)} are cut at {limit} tokens; 99% have at "
            told += f"most {usual}; max_{kind}_length {sizes[-1]} would hold all"
        yield f"{flags['model']}: {told}"


def find_unwritable(task, tokenizer, flags):
    """One line on labels that a model cannot write, in a list that is empty if it can."""
    limit = flags["max-target-length"]
    wrong = check_labels(task, tokenizer, limit)
    if not wrong:
        return []
    longest = max(size for _, size in encode_labels(task, tokenizer, limit).values())
    more = f" and {len(wrong) - 1:,} more labels" * (len(wrong) > 1)
    needed = f"; max_target_length {longest} would hold all" * (longest > limit)
    return [f"{flags['model']}: {wrong[0]}{more}{needed}"]


# --- what can be made ------------------------------------------------------------------------


def describe_cost(task, scale, runs, real_text):
    """What a table's runs take: how many, their steps and, where the scale knows it, the time."""
    rates, steps = load_scale(scale).get("seconds_a_step", {}), Counter()
    for run in runs:
        flags = make_flags(task, scale, run=run, real_text=real_text)
        steps[run.recipe] += count_steps(run, flags)
    known = steps.keys() <= rates.keys()
    seconds = sum(count * rates[kind] for kind, count in steps.items() if known)
    time = f", {tell_duration(seconds)} on one core, one after the other" if seconds else ""
    return f"{plural(len(runs), 'run')}, {plural(steps.total(), 'step')}{time}"


def describe_targets(task, scale, rows, real_text):
    """Lines on what the entry gives: prices, which tables and figures, and why not the others."""
    terms = make_terms(task, load_prices())
    gpu = f"{show_price(terms.usd_per_gpu_hour)} an hour of {terms.gpu}"
    yield f"prices: {show_price(terms.usd_per_label)} a label, {gpu}"
    yield from task.estimates
    most, made, lacking = max(task.labels_n), {}, {}
    if task.own and most > rows["train"]:
        yield f"labels_n: {most:,} are more than train has; runs take its {rows['train']:,}"
    for table in TABLES:
        try:
            made[table] = grid(table, task, scale, rows=rows)
        except UserError as error:
            lacking.setdefault(str(error), []).append(table)
    yield f"make can make: {', '.join(made) or 'nothing'}"
    yield from (f"not {', '.join(names)}: {fault}" for fault, names in lacking.items())
    if "table2" in made:
        bought = max(run.labels for run in made["table2"])
        told = describe_cost(task, scale, made["table2"], real_text)
        usd = show_usd(bought * terms.usd_per_label)
        yield f"table2 takes {told}; the {bought:,} labels of its largest run are {usd}"


def check_task(task, scale, splits, real_text):
    """Print what can be seen before anything is trained; refuse labels that no model can write."""
    lines, refused = [], []
    if task.metric in ("classes", "entities"):
        lines += [*describe_classes(splits, task), *describe_contradictions(splits["train"])]
    lines += describe_models(task, scale, splits, real_text, refused)
    rows = {split: len(splits[split]) for split in splits}
    task = complete_task(task, scale, splits["train"])
    lines += describe_targets(task, scale, rows, real_text)
    print("\n".join(map(fill, lines)))
    if refused:
        raise UserError("; ".join(refused))
