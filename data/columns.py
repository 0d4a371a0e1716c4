"""Rows of one's own files, JSONL, CSV, TSV, Parquet or a data set of the hub, as source and target.

Reads:  the files it is asked for; Parquet by the library `pyarrow`, the hub by `datasets`
Copy:   data/__init__.py data/files.py data/columns.py data/spans.py (and the libraries)

Columns that no flag names are guessed and said. A target may be a text, a list of answers, a class
by number where the file names its classes, or the spans that Prodigy, doccano and Label Studio
export, which data/spans.py turns into targets.
"""

import csv
import io
import json
import logging
import math
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.files import UserError, check_shape, fold, parse_json, plural, read_text, say_first
from data.spans import Wrong, check_entities, find_cut, write_spans

ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SOURCES = ("source", "text", "sentence", "question", "input")  # guesses, the first that is there
TARGETS = ("target", "label", "labels", "answers", "answer", "output")
SPANS = ("target", "spans", "entities", "label", "labels")  # of tasks of entities
LIST = re.compile(r"\[\s*\]|[\[{]['\"].*[\]}]", re.DOTALL)  # of answers, as a cell of CSV has it
LEFT_OUT = ("reject", "ignore")  # what a Prodigy user answered to a row that is no lesson
ANNOTATIONS = [{"was_cancelled": bool, "result": [{"value": dict}]}]  # of Label Studio


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
    ending = path.suffix.lower()
    if ending == ".parquet":
        return read_parquet(path)
    text = read_text(path)
    if ending in (".csv", ".tsv"):
        return read_cells(path, text, ending == ".tsv")
    return read_lines(path, text)


def read_lines(name, text):
    """The Table of JSON lines, or of one JSON array as Label Studio exports it."""
    rows = []
    if re.match(r"\s*(\[\s*[{\]]|\{\s*\n)", text):  # one value over lines, not one a line
        array = parse_json(text, name)
        if isinstance(array, dict):
            raise UserError(f"{name}: one object; a list of objects is needed, or one a line")
        return Table(name, [(f"row {n}", row) for n, row in enumerate(array, 1)])
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
    text = re.sub(r"\Asep=.(?=[\r\n])", "", text)  # as Excel is told
    mark = "\t" if tabs else max(",;\t", key=re.split("[\r\n]", text.lstrip(), maxsplit=1)[0].count)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    names, rows, start = [], [], 1
    try:
        for cells in lines:
            if names and cells:
                rows.append((f"line {start}", read_row(cells, names, mark)))
            elif not names:
                names = [each.strip() for each in cells]
                while names and not names[-1]:  # a spreadsheet's empty columns
                    names.pop()
                check_names(names, name)
            start = lines.line_num + 1
    except csv.Error as error:
        rows.append((f"line {start}", Wrong("not CSV", str(error))))
    while rows and isinstance(rows[-1][1], dict) and not any(rows[-1][1].values()):
        rows.pop()  # a spreadsheet's empty rows
    return Table(name, rows)


def read_row(cells, names, mark):
    """The cells of a row by the names in the heading, or Wrong."""
    if any(cells) and (len(cells) < len(names) or any(cells[len(names) :])):
        what = f"{len(names)} columns in the heading and another number here"
        return Wrong(what, str(len(cells)))
    if names[1:] and [each.strip("\ufeff ") for each in cells[: len(names)]] == names:
        return Wrong("the heading once more; remove it")
    if mark == "\t" and any("\t" in cell and "\n" in cell for cell in cells):
        return Wrong('a " that opens a cell takes in lines; double it, or remove it')
    return dict.fromkeys(names, "") | dict(zip(names, cells, strict=False))


def check_names(names, where):
    if len(set(names)) < len(names):
        raise UserError(f"{where}: two columns of one name in its heading, {', '.join(names)}")


def read_parquet(path):
    """The Table of a Parquet file, whose classes by number become the names that `datasets` noted
    in it."""
    from pyarrow import parquet

    try:
        table = parquet.ParquetFile(path).read()
        told = json.loads((table.schema.metadata or {}).get(b"huggingface", "{}"))
        kinds = told.get("info", {}).get("features", {})
        rows = table.to_pylist()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, NotImplementedError) as error:  # as ArrowInvalid is
        raise UserError(f"{path}: no Parquet that can be read ({say_first(error)})") from None
    check_names(table.column_names, path)
    classes = {key: kind["names"] for key, kind in kinds.items() if "names" in kind}
    return make_table(path, rows, classes)


def load_hub(word, split=None):
    """{split: Table} of hub:NAME or hub:NAME:CONFIG, of one split or of all."""
    import datasets

    for name in ("huggingface_hub", "datasets"):  # they tell of each retry, and of what is raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    _, name, config = (*word.split(":", 2), None)[:3]
    try:
        data = datasets.load_dataset(name, config, split=split)
    except Exception as error:  # the hub's errors have no common class
        if type(error).__name__ == "DatasetGenerationError":  # whose own text says nothing
            error = error.__cause__ or error
        check = "check the file, or the name and the connection"
        raise UserError(f"{word}: can't be loaded ({say_first(error)}); {check}") from None
    tables = {}
    for key, part in ({split: data} if split else data).items():
        kinds = part.features.items()
        classes = {column: kind.names for column, kind in kinds if hasattr(kind, "names")}
        tables[key] = make_table(f"{word} {key}", part, classes)
    return tables


def make_table(name, data, classes):
    """The Table of rows; a number in a column of `classes` {column: names} becomes its name."""
    rows = []
    for number, row in enumerate(data, 1):
        for key, names in classes.items():
            if row[key] in range(len(names)):  # -1 is no class: a private test set
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
    wanted, found, plain = {"source": SOURCES}, {}, True
    if labeled:
        wanted["target"] = SPANS if task.metric == "entities" else TARGETS
    for key, guesses in wanted.items():
        asked = columns.get(key)
        there = [name for name in ([asked] if asked else guesses) if name in names]
        if rows and not there:
            what = f"no column {asked!r}" if asked else f"no {key!r}"
            raise UserError(
                f"{table.name}: {what}; it has {', '.join(map(repr, names))}: name the right one "
                f"by '{key}_column' in the task's entry, or --{key}-column NAME"
            )
        found[key] = there[0] if there else asked
        plain = plain and there in ([key], [])
    if plain:
        return found, None
    told = " and ".join(f"{key} from {name!r}" for key, name in found.items())
    guessed = "guessed; " * any(columns.get(key) is None for key in found)
    return found, f"{table.name}: {told} ({guessed}columns: {', '.join(names)})"


def make_rows(table, task, labeled, columns, blank=False):
    """([{"source", "target"}], [Fault], [notes]) of a Table; without `labeled` sources alone.

    A target of a task of answers may stay a list of texts. `blank`: a row may be without its class,
    as in a sheet that is half labeled; its target is "".
    """
    rows, faults, left, renamed, torn = [], [], Counter(), Counter(), []
    table = unwrap(table, labeled)
    chosen, told = choose_columns(table, task, labeled, columns)
    hub, key = str(table.name).startswith("hub:"), chosen.get("target")
    names = {fold(label): label for label in task.labels}
    for place, row in table.rows:
        try:
            if isinstance(row, Wrong):
                raise row
            if hub and not labeled and not str(row.get(chosen["source"]) or "").strip():
                left["blank"] += 1
                continue
            source = read_source(row, chosen["source"])
            if not labeled:  # answers that are there are kept apart, for a simulated annotator
                known = {"target": row["target"]} if isinstance(row.get("target"), str) else {}
                rows.append({"source": source, **known})
            elif row.get("answer") in LEFT_OUT and key != "answer":
                left[row["answer"]] += 1
            elif blank and task.metric == "classes" and is_blank(row.get(key, key)):
                rows.append({"source": source, "target": ""})
            else:
                value = read_value(row, key, task)
                target = read_target(value, source, key, task, names)
                rows.append({"source": source, "target": target})
                if task.metric == "entities" and isinstance(value, list):
                    torn += find_cut(source, value)
                if task.metric == "classes" and isinstance(value, str) and value != target:
                    renamed[value, target] += 1
        except Wrong as wrong:
            faults.append(Fault(table.name, place, *wrong.args))
    notes = [told] if told else []
    if left:
        told = ", ".join(f"{n:,} {why}" for why, n in sorted(left.items()))
        notes.append(f"{plural(left.total(), 'row')} left out: {told}")
    if torn:
        what = "begin or end within a word; are their offsets of another text, or of bytes?"
        notes.append(f"{plural(len(torn), 'span')}, as {torn[0]!r}, {what}")
    if renamed:
        told = ", ".join(f"{n:,} {said!r} for {label!r}" for (said, label), n in renamed.items())
        count = plural(renamed.total(), "target")
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
    try:
        check_shape(row["annotations"], ANNOTATIONS, "its annotations")
    except UserError as error:
        return Wrong(str(error))
    kept = [each for each in row["annotations"] if not each.get("was_cancelled")]
    if len(kept) != 1:
        return Wrong("several annotations or none; keep one", str(len(kept)))
    result = kept[0].get("result") or []  # a relation has no value
    return {**row["data"], "label": [each["value"] for each in result if "value" in each]}


def is_blank(value):
    return value in (None, []) or str(value).strip() == ""


def read_source(row, key):
    if key not in row:
        raise Wrong(f"no {key!r}")
    if not isinstance(row[key], str):
        raise Wrong(f"{key!r} is not a text", repr(row[key]))
    if not row[key].strip():
        raise Wrong("the source is empty")
    return row[key]


def read_value(row, key, task):
    """What stands for the target of a row, out of the lists and objects that tools put it in."""
    none = key in ("spans", "entities") and row.get("answer") == "accept"  # Prodigy without any
    none |= task.metric == "entities" and "annotation_id" in row  # Label Studio's JSON-MIN
    if key not in row and not none:
        raise Wrong(f"no {key!r}")
    value = row.get(key, [])
    if task.metric == "entities":
        return value
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        (value,) = value
    if isinstance(value, dict):  # Label Studio's choices; its texts and SQuAD's
        value = value.get("choices", value.get("text", value))
    one = task.metric == "classes" and isinstance(value, list) and len(value) == 1  # doccano's
    return value[0] if one else value


def read_target(value, source, key, task, names):
    """The target that a value is, as the task has it."""
    if task.metric == "classes":
        return name_class(value, names)
    if task.metric == "entities" and isinstance(value, list):
        return write_spans(source, value, task.labels)
    if task.metric == "entities":
        return check_entities(check_text(value, key), source, task.labels)
    more = " or a list of texts" * (task.metric == "answers")
    if more and isinstance(value, str) and LIST.fullmatch(value.strip()):
        raise Wrong("a list written as one text; bring lists as JSONL, or one answer", repr(value))
    if more and isinstance(value, list):
        texts = [text for each in value if (text := check_text(each, key, more)).strip()]
        return texts or check_text(value, key, more)
    return check_text(value, key, more)


def check_text(value, key, more=""):
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    if not isinstance(value, str):
        raise Wrong(f"{key!r} is not a text{more}", repr(value))
    return value


def name_class(value, names):
    """The label of `names` {folded: label} that a target means: case and outer spaces aside,
    numbers as they are written."""
    labels = names.values()
    label = value if value in labels else names.get(fold(str(value)))
    if label is None or value is None:
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        what = "a number; write the name of the class, one of" if number else "none of"
        raise Wrong(f"target is {what} {', '.join(labels)}", repr(value))
    return label
