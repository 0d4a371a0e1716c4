"""Write one task's splits, train, dev, test and unlabeled, from the mini world or from real data.

Usage:
    python -m data.prepare --task wlp --scale mini --output data/prepared/mini/wlp
    python -m data.prepare --task wlp --scale paper --unlabeled unlabeled.zip --output FOLDER
    python -m data.prepare --task mytask --data FOLDER --check        # look, write nothing

Reads:  data/tasks.json, data/scales.json; FOLDER (or FOLDER/TASK) with train, test, dev and
        unlabeled, each .jsonl, .csv, .tsv or .parquet, or with one labeled file alone, such as
        data.csv, or in the authors' layout, TASK/TASK_train_all.json and TASK_test_all.json;
        hub:NAME in place of FOLDER. Without --data the mini world's generators at scale mini, at
        scale paper the authors' public repository.
Writes: OUTPUT/{dev,test,unlabeled,train}.jsonl, then OUTPUT/about.json: which files, with
        sha256, how many rows, and what was left out; OUTPUT/unlabeled_gold.jsonl where all answers
        to the unlabeled rows are known, for the simulated annotator of gpt_annotate.py alone.
Copy:   the whole project
Paper:  Table 5 (sizes) and Appendix D (unlabeled rows); differences are printed with the reason.

Of one labeled file a fifth is test, by seed. Rows without a target are no lesson; where most of
that file are such, they are the unlabeled ones. Without a dev file dev is drawn from train, and so
are, at scale mini, unlabeled rows, as text that nobody has labeled yet. No source is in two splits,
and sources that are the same tokens to T5 are one: test keeps its own, then dev, then train.
"""

import functools
import itertools
import random
import re
import sys
import unicodedata
from pathlib import Path

from data import fetch
from data.check import check_task, describe_faults
from data.columns import ENDINGS, load_hub, make_rows, read_lines, read_table
from data.costs.flags import load_scale
from data.costs.prices import fill, show_columns
from data.costs.stale import ABOUT, REDO, find_changed_splits, find_read
from data.files import (
    UserError,
    hash_file,
    make_parser,
    plural,
    read_json,
    run_cli,
    show_rows,
    write_atomic,
    write_json,
)
from data.tasks import SPLITS, load_task
from data.world import lab, town

HIDDEN = re.compile(r"[\x01-\x08\x0b\x0e-\x1f\x7f]")  # controls that T5's vocabulary reads over
SPACES = re.compile(r"[\u200b-\u200f\ufeff]")  # what it takes for a space, as it does white space


def list_tables(folder):
    """The files of a folder that may hold rows: not what Excel and macOS put beside them."""
    paths = [path for path in sorted(folder.glob("[!.~]*")) if path.suffix.lower() in ENDINGS]
    return [path for path in paths if path.name != "task.json"]


def find_files(folder, task, sources):
    """{split: file} of a data folder, in any of the layouts that the docstring names; one labeled
    file alone is train without test."""
    name = sources["folders"].get(task, task)
    places, found = dict.fromkeys([folder / task, folder / name, folder]), {}
    for split in SPLITS:
        names = [f"{split}{ending}" for ending in ENDINGS]
        names += [f"{name}_{split}_all.json", f"{name}_{split}.json"]
        paths = [place / file for place in places for file in names if (place / file).is_file()]
        same = [path for path in paths if path.with_suffix("") == paths[0].with_suffix("")]
        if same[1:]:
            raise UserError(f"{same[0]} and {same[1]}: which is {split}? Move one away")
        found |= {split: paths[0]} if paths else {}
    if "test" not in found and "dev" in found and found["dev"].name.endswith("_all.json"):
        found["test"] = found.pop("dev")  # Table 5: scored on dev where the test set is private
    lone = [path for path in list_tables(folder) if path.stem not in SPLITS]
    if not {"train", "test", "dev"} & found.keys() and len(lone) == 1:
        return {"train": lone[0], **found}
    if lacking := [split for split in ("train", "test") if split not in found]:
        held = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
        raise UserError(
            f"{folder}: no {lacking[0]} rows of {task}; looked for {lacking[0]}.jsonl (.csv, .tsv, "
            f".parquet) in it and in {folder / task}, for {folder / name}/{name}_{lacking[0]}_all"
            f".json, and for one labeled file alone, such as data.csv; it holds {held}"
        )
    return found


def open_hub(word):
    """{split: Table} of a data set of the hub; scored on its dev set where it has no test set."""
    data = {key.replace("validation", "dev"): table for key, table in load_hub(word).items()}
    if "train" not in data:
        raise UserError(f"{word}: no split train; it has {', '.join(data)}")
    if "test" not in data and "dev" in data:
        data["test"] = data.pop("dev")
    return {split: data[split] for split in SPLITS if split in data}


def open_unlabeled(origin, task, sources):
    """(Table, its column of sources or None) of one --unlabeled: a file, an archive or hub:NAME."""
    if origin.startswith("hub:"):
        known = sources["public"].get(origin[4:], {})
        word = f"hub:{known.get('path')}:{known.get('name', '')}" if known else origin
        split = known.get("split", "train")
        return load_hub(word, split)[split], known.get("column")
    if fetch.ARCHIVE.fullmatch(origin):
        name, content = fetch.read_archive(origin, sources["folders"].get(task, task), sources)
        try:
            return read_lines(name, content.decode("utf-8-sig")), None
        except UnicodeDecodeError:
            raise UserError(f"{name}: not UTF-8") from None
    return read_table(Path(origin)), None


@functools.cache
def name_source(text):
    """What sources share that are the same tokens to T5: NFKC, white space and controls aside."""
    text = SPACES.sub(" ", HIDDEN.sub("", unicodedata.normalize("NFKC", text)))
    return " ".join(text.split())


def name_sources(rows):
    return {name_source(row["source"]) for row in rows}


def drop_sources(rows, held, where, notes):
    """`rows` without those whose source is `held` by other splits; what goes is told in `notes`."""
    kept = [row for row in rows if name_source(row["source"]) not in held]
    if len(kept) < len(rows):
        notes.append(f"{plural(len(rows) - len(kept), 'row')} dropped: their source is in {where}")
    return kept


def take_rows(rows, count, seed, notes, what):
    """(taken, rest): `count` rows of different sources, drawn by seed, and all rows of the others.

    A source may come with several annotations; one of them, by chance, is taken.
    """
    order, taken = list(range(len(rows))), {}
    random.Random(seed).shuffle(order)
    for i in order:
        taken.setdefault(name_source(rows[i]["source"]), i)
    taken = dict(itertools.islice(taken.items(), count))
    rest = [row for row in rows if name_source(row["source"]) not in taken]
    copies = len(rows) - len(rest) - len(taken)
    more = f"; {plural(copies, 'more row')} of the same sources left out" * (copies > 0)
    notes.append(f"{len(taken):,} of {plural(len(rows), 'row')} {what}{more}")
    return [rows[i] for i in sorted(taken.values())], rest


def take_first(rows):
    """Rows to learn from: of several answers the first, as a model writes one."""
    several = (isinstance(row.get("target"), list) for row in rows)
    pairs = zip(rows, several, strict=True)
    return [{**row, "target": row["target"][0]} if some else row for row, some in pairs]


def part_lessons(rows, entry):
    """(rows to learn from, those without a target)."""
    empty = [row for row in rows if not (row["target"] or entry.keeps_empty)]
    return [row for row in rows if row["target"] or entry.keeps_empty], empty


def draw_test(rows, args, entry, notes):
    """Draw a fifth of one labeled file as test, by seed. Its rows without a target are unlabeled
    ones, where they are the most or a file has others."""
    labeled, blank = part_lessons(rows["train"], entry)
    if blank and ("unlabeled" in rows or len(blank) > len(labeled)):
        rows.setdefault("unlabeled", []).extend({"source": row["source"]} for row in blank)
        told = f"{plural(len(blank), 'row')} of the one labeled file without a target"
        notes["unlabeled"].append(told)
        blank = []
    count = max(1, len(name_sources(labeled)) // 5)
    asked = (min(count, args.test_rows or count), f"test {args.seed}", notes["test"])
    rows["test"], train = take_rows(labeled, *asked, "of the one labeled file drawn as test")
    rows["train"] = train + blank


def size_splits(rows, args, entry, divide_by):
    """(rows of dev, of train or None for all): the flags', else Table 5's over the divisor."""
    table = {} if entry.own else {key: n // divide_by for key, n in entry.rows.items() if n}
    count = len(name_sources(part_lessons(rows["train"], entry)[0]))
    dev = min(table.get("dev", 500), count // 10)
    if entry.own:  # advice is read off these rows: 200, but of what is beyond N half at the most
        share = 2 if "unlabeled" in rows else 4  # or a quarter, where that is to be unlabeled too
        beyond = count - max(*entry.labels_n, args.train_rows or 0)
        dev = min(max(200, count // 5), max(dev, beyond // share))
    dev = dev if args.dev_rows is None else args.dev_rows
    if args.train_rows or "unlabeled" in rows:
        return dev, args.train_rows
    return dev, min(table.get("train", count), (count - dev) // 2)


def split_rows(rows, args, entry, divide_by, notes):
    """The four splits without a shared source; what was moved or dropped goes to `notes` by split.

    `rows` has train and test and may have dev and unlabeled.
    """
    dev_rows, train_rows = size_splits(rows, args, entry, divide_by)
    test, held, rest = rows["test"], name_sources(rows["test"]), []
    if args.test_rows and args.test_rows < len(test):  # sources of the others stay held
        keep = sorted(random.Random(f"test {args.seed}").sample(range(len(test)), args.test_rows))
        notes["test"].append(f"{len(keep):,} of {plural(len(test), 'row')} drawn")
        test = [test[i] for i in keep]
    train, empty = part_lessons(drop_sources(rows["train"], held, "test", notes["train"]), entry)
    if empty:
        notes["train"].append(
            f"{plural(len(empty), 'row')} dropped: no target (the paper's authors skip such rows "
            "too; a task of entities of one's own learns from them that there is nothing)"
        )
    if "dev" in rows:
        dev = drop_sources(rows["dev"], held, "test", notes["dev"])
        train = drop_sources(train, name_sources(dev), "dev", notes["train"])
    else:
        asked = (dev_rows, f"dev {args.seed}", notes["dev"], "of train drawn as dev")
        dev, train = take_rows(train, *asked)
    if train_rows and train_rows < len(train):
        asked = (train_rows, f"train {args.seed}", notes["train"], "of train drawn as labeled")
        train, rest = take_rows(train, *asked)
    if "unlabeled" not in rows:
        notes["unlabeled"].append("drawn from train, targets taken off")
    held |= name_sources(dev + train)
    unlabeled = draw_unlabeled(rows.get("unlabeled", rest + empty), held, args.seed, notes)
    if several := sum(isinstance(row["target"], list) for row in train):
        told = "with a list of answers, the first of which is learned"
        notes["train"].append(f"{plural(several, 'row')} {told}")
    return {"train": take_first(train), "dev": dev, "test": test, "unlabeled": unlabeled}


def draw_unlabeled(rows, held, seed, notes):
    """Each source of `rows` once, none that is `held`, in an order by seed."""
    rows = drop_sources(rows, held, "test, dev or train", notes["unlabeled"])
    distinct = {}
    for row in take_first(rows):
        distinct.setdefault(name_source(row["source"]), row)
    if len(distinct) < len(rows):
        told = f"{plural(len(rows) - len(distinct), 'repeated source')} dropped"
        notes["unlabeled"].append(told)
    unlabeled = list(distinct.values())
    random.Random(f"unlabeled {seed}").shuffle(unlabeled)
    return unlabeled


def open_data(args, entry, sources):
    """[(split, Table, its column of sources or None)] of a folder, the hub or the download, and of
    each --unlabeled, which stand in place of theirs."""
    instead = "unlabeled" if args.unlabeled else None
    if str(args.data or "").startswith("hub:"):
        tables = open_hub(str(args.data))
    else:
        folder = args.data or fetch.fetch_task(args.task, args.downloads, sources)
        files = find_files(folder, args.task, sources)
        tell_unread(folder, files.values(), args.output)
        tables = {split: read_table(path) for split, path in files.items() if split != instead}
    if args.scale == "paper" and not args.unlabeled and "unlabeled" not in tables:
        refuse_unlabeled(args, entry, sources)
    parts = [(split, table, None) for split, table in tables.items() if split != instead]
    for origin in map(str, args.unlabeled or ()):
        if origin != "rest":
            parts.append(("unlabeled", *open_unlabeled(origin, args.task, sources)))
    return parts


def tell_unread(folder, files, output):
    """Say what looks like data beside `files`, and refuse an output among them."""
    if output and output.resolve() in {path.resolve().parent for path in files}:
        raise UserError(f"{output}: holds the data to read; choose another --output")
    named = (path for path in sorted(folder.glob("*")) if path.name.lower().startswith(SPLITS))
    there = sorted({*list_tables(folder), *filter(Path.is_file, named)} - {*files})
    if left := [path.name for path in there]:
        print(f"note: {folder}: not read: {', '.join(left[:12])}", file=sys.stderr)


def refuse_unlabeled(args, entry, sources):
    """At scale paper unlabeled rows must be named."""
    public = [name for name, each in sources["public"].items() if each.get("task") == args.task]
    archive = f"ARCHIVE (that of the authors: download {sources['archive']} in a browser)"
    ways = ["FILE.jsonl", *[archive] * (not entry.own), *(f"hub:{name}" for name in public)]
    raise UserError(
        f"no unlabeled rows of {args.task} in {args.data or args.downloads}; put unlabeled.jsonl "
        f"there, or give --unlabeled {', '.join(ways)} or rest (half of train without its targets, "
        "which leaves fewer labels)"
    )


def read_data(args, entry, sources, notes):
    """({split: rows}, [names of what was read]) of real data; the UserError has the first fault,
    and --check prints all."""
    rows, faults, names = {}, [], []
    for split, table, source in open_data(args, entry, sources):
        columns = {"source": source or args.source_column, "target": args.target_column}
        labeled, blank = split != "unlabeled", split == "train"
        more, wrong, told = make_rows(table, entry, labeled, columns, blank)
        rows.setdefault(split, []).extend(more)
        faults += wrong
        notes[split] += told
        names.append(str(table.name))
        if split == "test" and names[-1].endswith(" validation"):
            notes[split].append("the validation set, as there is no test set")
    if faults and args.check:
        print("\n".join(describe_faults(faults)))
    if faults:
        first, *others = faults
        more = f" (and {plural(len(others), 'more fault')}; --check lists all)" * bool(others)
        raise UserError(f"{first}{more}")
    return rows, names


def describe_splits(splits, notes, entry, divide_by):
    """The splits' sizes beside Table 5's, and why they differ, as text."""
    heads, lines = ["split", "rows", "sources"], []
    heads += [] if entry.own else ["Table 5" + f" / {divide_by}" * (divide_by > 1)]
    for split in SPLITS:
        counts = [len(splits[split]), len({row["source"] for row in splits[split]})]
        if not entry.own:  # scored on dev where the test set is private
            counts.append((entry.rows[split] or entry.rows["dev"]) // divide_by)
        lines.append([split, *(f"{count:,}" for count in counts)])
    told = [fill(f"{split}: {note}") for split in SPLITS for note in notes[split]]
    return "\n".join([show_columns(heads, lines), *told])


def compare_rows(rows, splits, notes, table, divide_by):
    """Add to `notes` where the files or the splits hold other counts than Table 5, and why."""
    if len(rows["train"]) != table["train"]:
        theirs = f"the file has {len(rows['train']):,} rows where Table 5 says {table['train']:,}"
        notes["train"].insert(0, f"{theirs}; the paper does not say which rows it left out")
    if "dev" not in rows:
        notes["dev"].append("Table 5's dev set is not among the files")
    short = table["unlabeled"] // divide_by - len(splits["unlabeled"])
    if short > 0:
        fewer = f"{short:,} fewer than the paper's largest run uses"
        notes["unlabeled"].append(f"{fewer}, so budgets that would buy more can't be run in full")


def write_splits(output, splits, about):
    """Write the JSONL files, each whole or not at all, and about.json last. Unlabeled rows lose
    their targets, which go to a file of their own if every row has one."""
    for name in ("about.json", "unlabeled_gold.jsonl"):
        (output / name).unlink(missing_ok=True)
    unlabeled = splits["unlabeled"]
    files = {**splits, "unlabeled": [{"source": row["source"]} for row in unlabeled]}
    if all(isinstance(row.get("target"), str) for row in unlabeled):
        files["unlabeled_gold"] = unlabeled
    for name, rows in files.items():
        write_atomic(output / f"{name}.jsonl", show_rows(rows))
    write_json(output / "about.json", about)


def draw_mini(args):
    """({split: rows}, files that made them) of the mini world: the lab or the town."""
    for name in ("unlabeled", "train_rows", "dev_rows", "test_rows", "seed"):
        if getattr(args, name):  # else it would look as if it had been followed
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: goes with --data; the mini world's splits never change")
    if args.task not in ("wlp", *town.TASKS):
        raise UserError(f"the mini world has no {args.task}; give a folder by --data")
    room = "lab" if args.task == "wlp" else "town"
    splits = lab.draw_splits() if room == "lab" else town.draw_splits(args.task)
    return splits, [f"data/world/{room}.py", f"data/world/{room}.json"]


def keep_splits(args, sources):
    """Whether the splits there are those of the data and flags of now; others are refused, or with
    --redo made again."""
    path = args.output / "about.json"
    if not all(each.exists() for each in (path, *(args.output / f"{s}.jsonl" for s in SPLITS))):
        return False
    files = {}
    if args.data and not args.unlabeled and args.data.is_dir():
        files = find_files(args.data, args.task, sources)
    change = find_changed_splits(read_json(path, ABOUT), args.asked, map(str, files.values()))
    if change and not args.redo:
        raise UserError(f"{args.output}: {change}; {REDO}")
    return not change


def main(argv=None):
    """Make the splits, or with --check look at them, and print what they are."""
    args = parse_args(argv)
    entry, sources = load_task(args.task, args.data), fetch.read_sources(args.sources)
    args.task, divide_by = entry.name, load_scale(args.scale)["divide_by"]
    for name in ("source_column", "target_column"):
        if getattr(args, name) is None and getattr(entry, name):
            setattr(args, name, getattr(entry, name))
            args.asked += [f"--{name.replace('_', '-')}", getattr(entry, name)]
    if args.keep and keep_splits(args, sources):
        return print(f"{args.output}: as its data stands there")
    notes = {split: [] for split in SPLITS}
    if args.scale == "mini" and not args.data:
        splits, names = draw_mini(args)
    else:
        rows, names = read_data(args, entry, sources, notes)
        if "test" not in rows:
            draw_test(rows, args, entry, notes)
        splits = split_rows(rows, args, entry, divide_by, notes)
        if not entry.own:
            compare_rows(rows, splits, notes, entry.rows, divide_by)
        for split in [split for split in SPLITS if not splits[split]]:
            why = f" ({'; '.join(notes[split])})" if notes[split] else ""
            more = "bring more rows" + ", or say --dev-rows" * (split == "dev")
            raise UserError(f"{args.task}: no rows are left for {split}{why}; {more}")
    print(describe_splits(splits, notes, entry, divide_by))
    if args.check:
        return check_task(entry, args.scale, splits, bool(args.data))
    about = {"task": args.task, "scale": args.scale, "seed": args.seed, "notes": notes}
    about["rows"] = {split: len(splits[split]) for split in SPLITS}
    about["asked"] = args.asked
    about["files"] = {n: hash_file(path) if (path := find_read(n)) else None for n in names}
    write_splits(args.output, splits, about)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--task", required=True, help="entry of data/tasks.json, or DATA/task.json, or FILE.json")
    add("--scale", default="mini", help="entry of data/scales.json (%(default)s)")
    add("--data", type=Path, help="folder or hub:NAME[:CONFIG] (default: mini world, or download)")
    guess = "default: the entry's source_column, else source, text, sentence, question or input"
    add("--source-column", help=f"the text ({guess})")
    guess = "target_column, else target, spans, label(s), answer(s), entities or output"
    add("--target-column", help=f"default: the entry's {guess}")
    rows = "rows, may be given several times (default: the folder's, else at scale mini from train)"
    forms = "FILE|ARCHIVE[:MEMBER]|hub:NAME|rest"
    add("--unlabeled", type=Path, action="append", metavar=forms, help=rows)
    add("--output", type=Path, help="folder for the JSONL files")
    add("--check", action="store_true", help="validate and count only, write nothing")
    add("--keep", action="store_true", help="splits of this data stay, those of other are refused")
    add("--redo", action="store_true", help="with --keep: those of other data are made again")
    add("--train-rows", type=int, help="labeled rows (default: all, or Table 5's / the scale's 10)")
    drawn = "a tenth at most; one's own task a fifth or 200, of those beyond N half or a quarter"
    add("--dev-rows", type=int, help=f"drawn as dev where no dev file is (default: {drawn})")
    add("--test-rows", type=int, help="seeded sample of test, to save time (default: all)")
    add("--seed", type=int, default=0, help="which rows are drawn (%(default)s)")
    add("--downloads", type=Path, default=fetch.DOWNLOADS, help="where they are kept")
    add("--sources", type=Path, default=fetch.SOURCES, help="addresses, counts and hashes")
    args, words = parser.parse_args(argv), list(sys.argv[1:] if argv is None else argv)
    words = [word for word in words if word not in ("--keep", "--redo")]
    words = [part for word in words for part in word.split("=", 1 if word[:2] == "--" else 0)]
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


if __name__ == "__main__":
    run_cli(main)
