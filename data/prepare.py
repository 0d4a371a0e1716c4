"""Write one task's splits, train, dev, test and unlabeled, from the mini world or from real data.

Usage:
    python -m data.prepare --task wlp --scale paper --unlabeled unlabeled.zip \\
        --output data/prepared/paper/wlp
    python -m data.prepare --task wlp --scale mini --output data/prepared/mini/wlp
    python -m data.prepare --task mytask --data FOLDER --check        # look, write nothing

Reads:  data/tasks.json and scales.json; the mini world's generators (scale mini without --data);
        FOLDER (or FOLDER/TASK) with train, test, dev and unlabeled .jsonl, or in the authors'
        layout, TASK/TASK_train_all.json and TASK_test_all.json; at scale paper without --data the
        authors' public repository.
Writes: OUTPUT/{dev,test,unlabeled,train}.jsonl, then OUTPUT/about.json: which files, with
        sha256, how many rows, and what was left out. OUTPUT/unlabeled_gold.jsonl, the answers to
        the unlabeled rows where all of them are known (mini world, rows taken from train): for
        the simulated annotator of gpt_annotate.py alone, no training script reads it.
Copy:   data/prepare.py data/fetch.py data/sources.json data/world/ and what costs.py names
Paper:  Table 5 (sizes) and Appendix D (unlabeled rows); differences are printed with the reason.

Without a dev file, dev is drawn from train. Without unlabeled rows, at scale mini, they too are
drawn from train, which stands for text that nobody has labeled yet. No source is in two splits:
what test holds is taken out of the others, and what dev or train holds out of unlabeled.
"""

import argparse
import hashlib
import json
import random
import re
import sys
from pathlib import Path

from data import fetch
from data.costs.budget import load_scale, make_terms
from data.costs.grid import TABLES, grid
from data.costs.prices import load_prices, show_price
from data.costs.stale import REDO, find_changed_splits
from data.files import UserError, parse_json, read_json, run_cli, write_atomic, write_json
from data.tasks import load_task
from data.world import lab, town

ROOT = Path(__file__).resolve().parents[1]
SPLITS = ("train", "dev", "test", "unlabeled")
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
NO_OWN_UNLABELED = (
    "no unlabeled rows of {task} in {folder}; put unlabeled.jsonl there, give --unlabeled "
    "FILE.jsonl, or rest (half of train without its targets, which leaves fewer labels)"
)
NO_UNLABELED = (
    "no unlabeled rows of {task} in {folder}; give --unlabeled FILE.jsonl, or the authors' archive "
    "(download {archive} in a browser, then --unlabeled ARCHIVE), {public}or rest "
    "(half of train without its targets, which leaves fewer labels)"
)


def find_files(folder, task, sources):
    """{split: file} of a data folder, in any of the layouts that the docstring names."""
    name = sources["folders"].get(task, task)
    places = [folder / task, folder / name, folder]
    found = {}
    for split in SPLITS:
        names = [f"{split}.jsonl", f"{name}_{split}_all.json", f"{name}_{split}.json"]
        paths = [place / file for place in places for file in names if (place / file).is_file()]
        found |= {split: paths[0]} if paths else {}
    if "test" not in found and "dev" in found and found["dev"].name.endswith("_all.json"):
        found["test"] = found.pop("dev")  # Table 5: scored on dev where the test set is private
    for split in ("train", "test"):
        if split not in found:
            raise UserError(
                f"{folder}: no {split} rows of {task}; looked for {places[0]}/{split}.jsonl, "
                f"{folder}/{split}.jsonl and {places[1]}/{name}_{split}_all.json"
            )
    return found


def check_row(row, split, entry):
    """What is wrong with a row, or None."""
    if not isinstance(row, dict):
        return "not a JSON object"
    keys = ("source",) if split == "unlabeled" else ("source", "target")
    for key in keys:
        if key not in row:
            return f"no {key!r}"
        several = key == "target" and entry.metric == "answers" and split in ("dev", "test")
        texts = row[key] if several and isinstance(row[key], list) else [row[key]]
        if not texts or not all(isinstance(text, str) for text in texts):
            return f"{key!r} is {row[key]!r}, not a text" + " or a list of texts" * several
    if not row["source"].strip():
        return "the source is empty"
    return check_target(row, entry) if split != "unlabeled" else None


def check_target(row, entry):
    """What is wrong with the labels in a target, or None."""
    labels, target = entry.labels, row["target"]
    if entry.metric == "classes" and target not in labels:
        return f"target {target!r} is none of {', '.join(labels)}"
    if entry.metric == "entities":
        words = target.split()
        marked = [word for word in words if re.fullmatch(r"\[.+\]", word)]
        unknown = [word for word in marked if word[1:-1] not in labels]
        if wrong := [word for word in unknown if word not in row["source"]]:  # else it is text
            return f"{wrong[0]} in the target is neither a label nor in the source"
        if words and words[-1][1:-1] not in labels:
            return f"target {target!r} does not end with a [Label]"
    return None


def read_split(lines, name, split, entry):
    """(rows, faults) of JSON lines; a fault names file and line."""
    rows, faults = [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line, f"{name} line {number}")
            fault = check_row(row, split, entry)
            fault = fault and f"{name} line {number}: {fault}"
        except UserError as error:
            fault = str(error)
        if fault:
            faults.append(fault)
        else:
            rows.append(row)
    return rows, faults if rows or faults else [f"{name}: no rows"]


def read_file(path, split, entry):
    """(rows, faults) of a JSONL file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")  # Windows programs put a mark first
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return [], [f"{path} line {line}: not UTF-8"]
    except FileNotFoundError:
        return [], [f"{path}: no such file"]
    return read_split(text.split("\n"), path, split, entry)


def read_unlabeled(origin, task, entry, sources):
    """(rows, faults, name) of one --unlabeled: a JSONL file, an archive or hub:NAME."""
    folder = sources["folders"].get(task, task)
    if origin.startswith("hub:"):
        texts = fetch.read_public(origin[4:], task, sources)
        return [{"source": text} for text in texts if text.strip()], [], origin
    if origin.partition(":")[0].endswith(ARCHIVES):
        name, lines = fetch.read_archive(origin, folder, sources)
        return *read_split(lines, name, "unlabeled", entry), name
    return *read_file(Path(origin), "unlabeled", entry), origin


def drop_sources(rows, held, what, notes):
    """`rows` without those whose source is among `held`; what was dropped goes to `notes`."""
    kept = [row for row in rows if row["source"] not in held]
    if len(kept) < len(rows):
        notes.append(f"{len(rows) - len(kept):,} rows dropped: {what}")
    return kept


def take_rows(rows, count, seed, notes, what):
    """(taken, rest): `count` rows of different sources, drawn by seed, and all rows of the others.

    A source may come with several annotations; one of them, by chance, is taken.
    """
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    taken = {}
    for i in order:
        if len(taken) == count:
            break
        taken.setdefault(rows[i]["source"], i)
    rest = [row for row in rows if row["source"] not in taken]
    copies = len(rows) - len(rest) - len(taken)
    notes.append(
        f"{len(taken):,} of {len(rows):,} rows {what}"
        + f"; {copies:,} more rows of the same sources left out" * (copies > 0)
    )
    return [rows[i] for i in sorted(taken.values())], rest


def list_sources(rows, notes):
    """One row per distinct source, the first; its target stays where it has one."""
    distinct = {}
    for row in rows:
        distinct.setdefault(row["source"], row)
    if len(distinct) < len(rows):
        notes.append(f"{len(rows) - len(distinct):,} repeated sources dropped")
    return list(distinct.values())


def split_rows(rows, sizes, seed):
    """The four splits without a shared source, and {split: notes} on what was moved or dropped.

    `rows` has train and test and may have dev and unlabeled; `sizes` is size_splits' answer.
    """
    notes = {split: [] for split in SPLITS}
    test = rows["test"]
    held = {row["source"] for row in test}  # the whole test set, even where a part is scored
    if sizes["test"] and sizes["test"] < len(test):
        keep = sorted(random.Random(f"test {seed}").sample(range(len(test)), sizes["test"]))
        notes["test"].append(f"{len(keep):,} of {len(test):,} rows drawn")
        test = [test[i] for i in keep]
    train = drop_sources(rows["train"], held, "their source is in test", notes["train"])
    labeled = [row for row in train if row["target"]]
    empty = [row for row in train if not row["target"]]
    if empty:
        notes["train"].append(f"{len(empty):,} rows dropped: no target, so nothing to learn from")
    if "dev" in rows:
        dev = drop_sources(rows["dev"], held, "their source is in test", notes["dev"])
        train = drop_sources(
            labeled, {row["source"] for row in dev}, "their source is in dev", notes["train"]
        )
    else:
        dev, train = take_rows(
            labeled, sizes["dev"], f"dev {seed}", notes["dev"], "of train drawn as dev"
        )
    rest = []
    if sizes["train"] and sizes["train"] < len(train):
        train, rest = take_rows(
            train, sizes["train"], f"train {seed}", notes["train"], "of train drawn as labeled"
        )
    pool = rows["unlabeled"] if "unlabeled" in rows else rest + empty
    if "unlabeled" not in rows:
        notes["unlabeled"].append("drawn from train, targets taken off")
    held |= {row["source"] for row in dev + train}
    pool = drop_sources(pool, held, "their source is in test, dev or train", notes["unlabeled"])
    unlabeled = list_sources(pool, notes["unlabeled"])
    random.Random(f"unlabeled {seed}").shuffle(unlabeled)
    splits = {"train": train, "dev": dev, "test": test, "unlabeled": unlabeled}
    return splits, notes


def size_splits(args, entry, rows, divide_by):
    """{split: rows wanted or None for all}: the flags', else Table 5's over the scale's divisor."""
    table = {} if entry.own else {key: n // divide_by for key, n in entry.rows.items() if n}
    count = len({row["source"] for row in rows["train"] if row["target"]})
    dev = min(table.get("dev", 500), count // 10) if args.dev_rows is None else args.dev_rows
    train = args.train_rows
    if train is None and "unlabeled" not in rows:
        train = min(table.get("train", count), (count - dev) // 2)
    return {"train": train, "dev": dev, "test": args.test_rows}


def read_data(args, entry, sources):
    """({split: rows}, [names of what was read]) of real data; every fault is in the UserError."""
    folder = args.data or fetch.fetch_task(args.task, args.downloads, args.base, sources)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; --data takes one that holds train and test")
    files, rows, faults = find_files(folder, args.task, sources), {}, []
    origins = args.unlabeled or [str(path) for split, path in files.items() if split == "unlabeled"]
    if not origins and args.scale == "paper":
        public = [f"hub:{k}, " for k, v in sources["public"].items() if v["task"] == args.task]
        text = NO_OWN_UNLABELED if entry.own else NO_UNLABELED
        raise UserError(
            text.format(
                task=args.task,
                folder=folder,
                archive=sources["archive"],
                public="".join(public),
            )
        )
    for split in [split for split in files if split != "unlabeled"]:
        rows[split], wrong = read_file(files[split], split, entry)
        faults += wrong
    if args.output and args.output.resolve() in {path.resolve().parent for path in files.values()}:
        raise UserError(f"{args.output}: holds the data to read; choose another --output")
    names = [str(files[split]) for split in rows]
    for origin in [origin for origin in origins if origin != "rest"]:
        more, wrong, name = read_unlabeled(origin, args.task, entry, sources)
        rows.setdefault("unlabeled", []).extend(more)
        faults += wrong
        names.append(name)
    if faults and args.check:
        print("\n".join(faults))
    if faults:
        more = f" (and {len(faults) - 1:,} more faults; --check lists them)" * (len(faults) > 1)
        raise UserError(faults[0] + more)
    return rows, names


def describe_splits(splits, notes, entry, divide_by):
    """The splits' sizes beside Table 5's, and why they differ, as text."""
    table = {} if entry.own else entry.rows
    over = f"Table 5 / {divide_by}" if divide_by > 1 else "Table 5"
    lines = [f"{'split':<10}{'rows':>9}{'sources':>9}" + f"{over:>14}" * bool(table)]
    for split in SPLITS:
        rows, paper = splits[split], table.get(split)
        if split == "test" and not paper and table:
            paper = table["dev"]  # scored on dev: the test set is private
        told = f"{paper // divide_by:,}" if paper else "-"
        distinct = len({row["source"] for row in rows})
        lines.append(f"{split:<10}{len(rows):>9,}{distinct:>9,}" + f"{told:>14}" * bool(table))
    lines += [f"{split}: {note}" for split in SPLITS for note in notes.get(split, [])]
    return "\n".join(lines)


def compare_rows(rows, splits, notes, entry, divide_by):
    """Add to `notes` where the files or the splits hold other counts than Table 5, and why."""
    table = {} if entry.own else entry.rows
    if table.get("train") and len(rows["train"]) != table["train"]:
        notes["train"].insert(
            0,
            f"the file has {len(rows['train']):,} rows where Table 5 says {table['train']:,}; "
            "the paper does not say which rows it left out",
        )
    if table.get("dev") and "dev" not in rows:
        notes["dev"].append("Table 5's dev set is not among the files")
    short = table.get("unlabeled", 0) // divide_by - len(splits["unlabeled"])
    if short > 0:
        notes["unlabeled"].append(
            f"{short:,} fewer than the paper's largest run uses, so budgets that would buy more "
            "can't be run in full"
        )


def hash_file(name):
    """The sha256 of a file that was read, or None for what is no single file."""
    path = Path(name.partition(":")[0])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def separate_gold(splits):
    """The files to write, {name: rows}: unlabeled rows lose their targets, which go to a file of
    their own if every row has one."""
    unlabeled = splits["unlabeled"]
    files = {**splits, "unlabeled": [{"source": row["source"]} for row in unlabeled]}
    if all(isinstance(row.get("target"), str) for row in unlabeled):
        files["unlabeled_gold"] = [
            {key: row[key] for key in ("source", "target")} for row in unlabeled
        ]
    return files


def write_splits(output, splits, about):
    """Write the JSONL files, each whole or not at all, and about.json last."""
    for name in ("about.json", "unlabeled_gold.jsonl"):
        (output / name).unlink(missing_ok=True)
    for name, rows in separate_gold(splits).items():
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        write_atomic(output / f"{name}.jsonl", "".join(lines))
    write_json(output / "about.json", about)


def draw_mini(task):
    """({split: rows}, files that made them) of the mini world: the lab or the town."""
    if task == "wlp":
        return lab.draw_splits(), ["data/world/lab.py", "data/world/lab.json"]
    if task in town.TASKS:
        return town.draw_splits(task), ["data/world/town.py", "data/world/town.json"]
    raise UserError(f"the mini world has no {task}; give a folder by --data")


def check_targets(args, entry, rows):
    """Lines on what the entry gives: which tables and figures, and why not the others.

    Raises UserError where none is possible, as for a missing price.
    """
    terms = make_terms(entry, load_prices())
    gpu = f"{show_price(terms.usd_per_gpu_hour)} an hour of {terms.gpu}"
    lines = [f"prices: {show_price(terms.usd_per_label)} a label, {gpu}"]
    most, scales = max(entry.labels_n), read_json(ROOT / "data" / "scales.json")
    if entry.own and most > rows["train"]:
        lines.append(f"labels_n: {most:,} are more than train has; runs take its {rows['train']:,}")
    if unread := sorted(set(entry.scales) - set(scales)):
        lines.append(f"fields of the entry that nothing reads: {', '.join(unread)}")
    made, lacking = [], {}
    for name in TABLES:
        try:
            grid(name, entry, args.scale, rows=rows)
            made.append(name)
        except UserError as error:
            lacking.setdefault(str(error), []).append(name)
    lines += [f"make can make: {', '.join(made) or 'nothing'}"]
    return lines + [f"not {', '.join(names)}: {fault}" for fault, names in lacking.items()]


def keep_splits(args, sources):
    """Whether the splits there are those of the data and flags of now; others are refused, or with
    --redo made again."""
    path = args.output / "about.json"
    if not path.exists():
        return False
    files = {}
    if args.data and not args.unlabeled:
        files = find_files(args.data, args.task, sources)
    change = find_changed_splits(read_json(path), args.asked, map(str, files.values()))
    if change and not args.redo:
        raise UserError(f"{args.output}: {change}; {REDO}")
    return not change


def prepare(args):
    """Make the splits; returns what was made as text."""
    entry, sources = load_task(args.task, args.data), read_json(args.sources)
    args.task, divide_by = entry.name, load_scale(args.scale)["divide_by"]
    if args.keep and keep_splits(args, sources):
        return f"{args.output}: as its data stands there"
    if args.scale == "mini" and not args.data:
        splits, names = draw_mini(args.task)
        notes = {}
    else:
        rows, names = read_data(args, entry, sources)
        sizes = size_splits(args, entry, rows, divide_by)
        splits, notes = split_rows(rows, sizes, args.seed)
        compare_rows(rows, splits, notes, entry, divide_by)
        for split in [split for split in SPLITS if not splits[split]]:
            why = f" ({'; '.join(notes[split])})" if notes[split] else ""
            raise UserError(f"{args.task}: no rows are left for {split}{why}")
    text = describe_splits(splits, notes, entry, divide_by)
    if args.check:
        rows = {split: len(splits[split]) for split in SPLITS}
        text = "\n".join([text, *check_targets(args, entry, rows)])
    else:
        about = {"task": args.task, "scale": args.scale, "seed": args.seed, "notes": notes}
        about["rows"] = {split: len(splits[split]) for split in SPLITS}
        about["asked"] = args.asked
        about["files"] = {name: hash_file(name) for name in names}
        write_splits(args.output, splits, about)
    return text


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", required=True, help="entry of data/tasks.json, or DATA/task.json, or FILE.json")
    add("--scale", default="mini", help="entry of data/scales.json (%(default)s)")
    add("--data", type=Path, help="folder of real data (default: mini world, or the download)")
    add(
        "--unlabeled",
        action="append",
        metavar="FILE|ARCHIVE[:MEMBER]|hub:NAME|rest",
        help="unlabeled rows, may be given several times (default: the folder's unlabeled file, "
        "else, at scale mini, the rest of train)",
    )
    add("--output", type=Path, help="folder for the JSONL files")
    add("--check", action="store_true", help="validate and count only, write nothing")
    add("--keep", action="store_true", help="splits of this data stay, those of other are refused")
    add("--redo", action="store_true", help="with --keep: those of other data are made again")
    add("--train-rows", type=int, help="labeled rows (default: all, or Table 5's / the scale's 10)")
    add("--dev-rows", type=int, help="rows drawn as dev where no dev file is (a tenth at most)")
    add("--test-rows", type=int, help="seeded sample of test, to save time (default: all)")
    add("--seed", type=int, default=0, help="which rows are drawn (%(default)s)")
    add("--base", help="address of the authors' files (default: their repository)")
    add("--downloads", type=Path, default=fetch.DOWNLOADS, help="where they are kept")
    add("--sources", type=Path, default=fetch.SOURCES, help="addresses, counts and hashes")
    args, words = parser.parse_args(argv), list(sys.argv[1:] if argv is None else argv)
    words = [word for word in words if word not in ("--keep", "--redo")]
    for flag in ("--data", "--output"):  # where, not what: `files` has the hash of what was read
        at = words.index(flag) if flag in words else len(words)
        del words[at : at + 2]
    args.asked = words
    if not args.check and not args.output:
        parser.error("give --output, or --check to write nothing")
    for name in ("train_rows", "dev_rows", "test_rows"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(argv=None):
    print(prepare(parse_args(argv)))


if __name__ == "__main__":
    run_cli(main)
