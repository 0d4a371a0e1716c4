"""Rows of one's own files, JSONL, CSV, TSV, Parquet or a data set of the hub, as source and target.

Reads:  the files it is asked for; of the hub and of Parquet by the library `datasets`
Copy:   data/__init__.py data/files.py data/columns.py data/spans.py (and the library)

Columns that no flag names are guessed and said. A target may be a text, a list of answers, a class
by number where the file names its classes, or the spans that Prodigy, doccano and Label Studio
export, which data/spans.py turns into targets.
"""

import csv
import io
import logging
import math
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.files import UserError, parse_json, plural, read_text, say_first
from data.spans import Wrong, check_entities, write_spans

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SOURCES = ("source", "text", "sentence", "question", "input")  # guesses, the first that is there
TARGETS = ("target", "label", "labels", "answers", "answer", "output")
SPANS = ("target", "spans", "entities", "label", "labels")  # of tasks of entities
LEFT_OUT = ("reject", "ignore")  # what a Prodigy user answered to a row that is no lesson


class Fault(NamedTuple):
    """What is wrong at one place; the same `what` is one kind, `value` is what stands there."""

    file: str
    place: str  # "line 3" or "row 3"
    what: str
    value: str = ""

    def __str__(self):
        return f"{self.file} {self.place}: {self.what}{self.value and ': '}{self.value[:80]}"


class Table(NamedTuple):
    """A file's rows [(place, {column: value})]; a Wrong in place of what could not be read."""

    name: str
    rows: list


# --- files to tables -------------------------------------------------------------------------


def read_table(path):
    """The Table of a file, by the ending of its name."""
    if path.suffix == ".parquet":
        data = load_dataset(path, "parquet", data_files=str(path), split="train")
        return make_table(path, data)
    text = read_text(path)
    if path.suffix in (".csv", ".tsv"):
        return read_cells(path, text, path.suffix == ".tsv")
    return read_lines(path, text)


def read_lines(name, text):
    """The Table of JSON lines, or of one JSON array as Label Studio exports it."""
    rows = []
    if text.lstrip().startswith("["):
        try:
            array = parse_json(text, name)
            if not array or isinstance(array[0], dict):
                return Table(name, [(f"row {n}", row) for n, row in enumerate(array, 1)])
        except UserError:
            pass  # lines after all, the first of them a list
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((f"line {number}", parse_json(line, name)))
            except UserError as error:
                what = str(error).removeprefix(f"{name}: ")
                if Path(name).suffix not in ENDINGS:
                    what += f"; a file's name tells what it is: {' '.join(ENDINGS)}"
                rows.append((f"line {number}", Wrong(what)))
    return Table(name, rows)


def read_cells(name, text, tabs):
    """The Table of a CSV or TSV file with a heading, its commas, semicolons or tabs counted."""
    csv.field_size_limit(1 << 30)
    mark = "\t" if tabs else max(",;\t", key=text.partition("\n")[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    rows, start = [], 1
    try:
        names = [each.strip() for each in next(lines, [])]
        if len(set(names)) < len(names):
            raise UserError(f"{name}: two columns of one name in its heading, {', '.join(names)}")
        start = lines.line_num + 1
        for cells in lines:
            row = dict(zip(names, cells, strict=False))
            if len(cells) != len(names):
                what = f"{len(names)} columns in the heading and another number here"
                row = Wrong(what, str(len(cells)))
            rows += [(f"line {start}", row)] if cells else []
            start = lines.line_num + 1
    except csv.Error as error:
        rows.append((f"line {start}", Wrong("not CSV", str(error))))
    return Table(name, rows)


def load_dataset(shown, *args, **options):
    """What `datasets` loads; a UserError that begins with `shown` if it can't."""
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"{shown}: needs the package `datasets`; make venv, then .venv/bin/python (make: "
            "PYTHON=.venv/bin/python)"
        ) from None
    for name in ("huggingface_hub", "datasets"):  # they tell of each retry, and of what is raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(*args, **options)
    except Exception as error:  # the hub's errors have no common class
        if type(error).__name__ == "DatasetGenerationError":  # whose own text says nothing
            error = error.__cause__ or error
        reason = say_first(error)
        raise UserError(
            f"{shown}: can't be loaded ({reason}); check the file, or the name and the connection"
        ) from None


def load_hub(word, split=None):
    """{split: Table} of hub:NAME or hub:NAME:CONFIG, or the Table of one split."""
    _, name, config = (*word.split(":", 2), None)[:3]
    data = load_dataset(word, name, config, split=split)
    if split:
        return make_table(word, data)
    return {key: make_table(f"{word} {key}", rows) for key, rows in data.items()}


def make_table(name, data):
    """The Table of a Dataset, whose classes by number become their names."""
    classes = {key: kind.names for key, kind in data.features.items() if hasattr(kind, "names")}
    rows = []
    for number, row in enumerate(data, 1):
        for key, names in classes.items():
            if row[key] is not None and row[key] >= 0:  # -1 is no class: a private test set
                row[key] = names[row[key]]
        rows.append((f"row {number}", row))
    return Table(name, rows)


# --- tables to rows --------------------------------------------------------------------------


def choose_columns(table, task, labeled, columns):
    """({"source": a column of a table, where `labeled` also "target"}, what was found and guessed
    as a sentence or None). `columns` are the names to read, of which None is guessed."""
    if not table.rows:
        raise UserError(f"{table.name}: no rows")
    rows = [row for _, row in table.rows if isinstance(row, dict)]
    names = list(dict.fromkeys(key for row in rows for key in row))
    wanted, found = {"source": SOURCES}, {}
    if labeled:
        wanted["target"] = SPANS if task.metric == "entities" else TARGETS
    for key, guesses in wanted.items():
        asked = columns.get(key)
        found[key] = asked or next((guess for guess in guesses if guess in names), None)
        if rows and found[key] not in names:
            what = f"no column {asked!r}" if asked else f"no {key!r}"
            fields = " and ".join(f"'{key}_column'" for key in wanted)
            flags = " ".join(f"--{key}-column NAME" for key in wanted)
            raise UserError(
                f"{table.name}: {what}; it has {', '.join(map(repr, names))}: name the right one "
                f"by {fields} in the task's entry, or {flags}"
            )
    if all(key == name for key, name in found.items()) or not rows:
        return found, None
    told = " and ".join(f"{key} from {name!r}" for key, name in found.items())
    guessed = "guessed; " * any(columns.get(key) is None for key in found)
    return found, f"{table.name}: {told} ({guessed}columns: {', '.join(names)})"


def make_rows(table, task, labeled, columns, blank=False):
    """([{"source", "target"}], [Fault], [notes]) of a Table; without `labeled` sources alone.

    A target of a task of answers may stay a list of texts. `blank`: a row may be without its class,
    as in a sheet that is half labeled; its target is "".
    """
    rows, faults, left, renamed = [], [], 0, Counter()
    table = unwrap(table, labeled)
    chosen, told = choose_columns(table, task, labeled, columns)
    names = {label.casefold(): label for label in task.labels}
    hub = str(table.name).startswith("hub:")
    for place, row in table.rows:
        try:
            if isinstance(row, Wrong):
                raise row
            if hub and not labeled and not str(row.get(chosen["source"]) or "").strip():
                left += 1
                continue
            source = read_source(row, chosen["source"])
            if not labeled:  # answers that are there are kept apart, for a simulated annotator
                known = {"target": row["target"]} if isinstance(row.get("target"), str) else {}
                rows.append({"source": source, **known})
            elif row.get("answer") in LEFT_OUT and chosen["target"] != "answer":
                left += 1
            elif blank and is_blank(row, chosen["target"], task):
                rows.append({"source": source, "target": ""})
            else:
                target = read_target(row, source, chosen["target"], task, names, renamed)
                rows.append({"source": source, "target": target})
        except Wrong as wrong:
            faults.append(Fault(table.name, place, *wrong.args))
    notes = [told] if told else []
    if left:
        notes.append(f"{plural(left, 'row')} left out: blank, or their answer is reject or ignore")
    if renamed:
        told = ", ".join(f"{n:,} {said!r} for {label!r}" for (said, label), n in renamed.items())
        count = plural(sum(renamed.values()), "target")
        notes.append(f"{count} spelled otherwise than the label: {told}")
    return rows, faults, notes


def unwrap(table, labeled):
    """A Table whose rows are flat objects, or Wrong: those of Label Studio's full export are
    {"data": ..., "annotations": ...}; where no label is asked for, they may be without one."""
    return table._replace(rows=[(place, flatten(row, labeled)) for place, row in table.rows])


def flatten(row, labeled):
    if not isinstance(row, dict):
        return row if isinstance(row, Wrong) else Wrong("not a JSON object")
    if not (isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list)):
        return row
    if not labeled:
        return {**{key: row[key] for key in row.keys() & {"id"}}, **row["data"]}
    if len(row["annotations"]) != 1:
        return Wrong("several annotations or none; keep one", str(len(row["annotations"])))
    result = row["annotations"][0].get("result", [])
    return {**row["data"], "label": [each.get("value") for each in result]}


def is_blank(row, key, task):
    """Whether a row of classes is not labeled yet: its cell is there and empty."""
    value = row.get(key, key)
    return task.metric == "classes" and (value is None or str(value).strip() == "")


def read_source(row, key):
    if key not in row:
        raise Wrong(f"no {key!r}")
    if not isinstance(row[key], str):
        raise Wrong(f"{key!r} is not a text", repr(row[key]))
    if not row[key].strip():
        raise Wrong("the source is empty")
    return row[key]


def read_target(row, source, key, task, names, renamed):
    """The target of a row as the task has it; counts in `renamed` what is respelt."""
    marked = key in ("spans", "entities") and row.get("answer") == "accept"  # Prodigy without any
    if key not in row and not marked:
        raise Wrong(f"no {key!r}")
    value = row.get(key, [])
    if task.metric == "entities":
        if isinstance(value, list):
            return write_spans(source, value, task.labels)
        return check_entities(check_text(value, key), source, task.labels)
    if isinstance(value, dict) and isinstance(value.get("text"), list):  # SQuAD's answers
        value = value["text"]
    if task.metric == "classes":
        if isinstance(value, list) and len(value) == 1:  # doccano's
            (value,) = value
        return name_class(value, names, task.labels, renamed)
    several = " or a list of texts" * (task.metric == "answers")
    if several and isinstance(value, list) and value:
        return [check_text(each, key, several) for each in value]
    return check_text(value, key, several)


def check_text(value, key, more=""):
    if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(value)
    if not isinstance(value, str):
        raise Wrong(f"{key!r} is not a text{more}", repr(value))
    return value


def name_class(value, names, labels, renamed):
    """The label that a target means: case and outer spaces aside, numbers as they are written."""
    if value in labels:
        return value
    label = names.get(str(value).strip().casefold())
    if label is None or value is None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        what = "a number; write the name of the class, one of" if number else "none of"
        raise Wrong(f"target is {what} {', '.join(labels)}", repr(value))
    if isinstance(value, str):
        renamed[value, label] += 1
    return label
