"""Reading what users wrote and writing what they read: numbers, JSON, rows, whole files; `error:`.

Reads:  the files it is asked for
Writes: the same, by a temporary file and a rename
Copy:   data/__init__.py data/files.py; standard library only
"""

import argparse
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import subprocess
import sys
import unicodedata
from collections import Counter
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path

DATA = Path(__file__).resolve().parent
ROOT = DATA.parent


class UserError(ValueError):
    """A mistake that the user can mend; its text says what, where and what to do."""


def run_cli(main):
    """Run `main()` as a command: a UserError becomes one `error:` line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows no – shows ? in its place
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - closed, as by >&-
    try:
        for word in sys.argv:  # no record could hold such a path
            if re.search("[\ud800-\udfff]", word):
                raise UserError(f"{word!a}: a name that is not UTF-8; rename it")
        code = main()
        sys.stdout.flush()
        sys.exit(code or 0)
    except UserError as error:
        print("error: " + str(error).replace("\n", "\\n"), file=sys.stderr)  # one line in any case
    except ModuleNotFoundError as error:
        how = "make venv, then source .venv/bin/activate"
        print(f"error: no package {error.name!r} in {sys.executable}; {how}", file=sys.stderr)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # full disk, no permission, not a folder, ...
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
    sys.exit(1)


def say_first(error):
    """The first line of what a library's error says, or its kind where it says nothing."""
    text = str(getattr(error, "reason", None) or error).strip() or type(error).__name__
    return text.splitlines()[0][:300]


def make_parser(about):
    """A parser whose help begins with `about`, the docstring of a script, as it is written."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=about, formatter_class=form)
    parser.register("type", Path, read_path)
    return parser


def read_path(text):
    """The Path of a flag with type=Path; "", of an unset variable, would be the folder at hand."""
    if not text:
        raise argparse.ArgumentTypeError("an empty name")
    return Path(text)


# --- numbers -------------------------------------------------------------------------------


def plural(count, word):
    """A count and its word: 1 row, 2 rows, 1,200 rows."""
    return f"{count:,} {word}{'s' * (count != 1)}"


def parse_amount(value, what):
    """`value` as an exact Fraction >= 0; `what` names it in the error.

    Text is read digit by digit; a float counts as the shortest decimal that prints the same.
    """
    if isinstance(value, Fraction) and value >= 0:
        return value
    try:
        amount = Decimal(str(value).strip().removeprefix("$"))
    except InvalidOperation:
        amount = Decimal("NaN")
    if not amount.is_finite() or amount < 0:
        raise UserError(f"{what}: {value!r} is not a number of 0 or more, such as 100 or 0.26")
    if amount.adjusted() > 15 or amount.as_tuple().exponent < -40:
        raise UserError(f"{what}: {value} is out of range")
    return Fraction(amount)


def parse_count(value, what, least=0):
    """`value` as an int >= `least`; `what` names it in the error."""
    text = str(value).strip()
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
        raise UserError(f"{what}: {value!r} is not a whole number of {least} or more")
    return int(text)


def parse_price(value, what):
    """An amount above 0: at a price of 0 a budget would buy without end."""
    price = parse_amount(value, what)
    if not price:
        raise UserError(f"{what}: must be above 0, or a budget would buy without end")
    return price


def fold(label):
    """What tells a label from others: case, Unicode's form and the number of spaces do not."""
    return " ".join(unicodedata.normalize("NFC", label).upper().split())


# --- JSON ----------------------------------------------------------------------------------

KINDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
KINDS |= {float: "a number", bool: "true or false"}


def check_kind(value, kind, where):
    """`value`, if it is of `kind`, a key of KINDS; int passes as float, true as neither, and no
    number is NaN, infinite or larger than any that is meant."""
    fits = isinstance(value, (int, float) if kind is float else kind)
    fits = fits and (kind is bool or not isinstance(value, bool))
    if not fits or (isinstance(value, (int, float)) and not abs(value) < 1e300):
        shown = json.dumps(value, default=str)[:60]  # of Parquet it may be a date
        raise UserError(f"{where}: must be {KINDS[kind]}, not {shown}")
    return value


def check_shape(value, shape, where, strict=False):
    """The checked value of `shape`: a key of KINDS, a function (value, where) -> checked value, a
    tuple of words to choose from, a list [shape of each], never empty where an example follows as
    in [shape, 100, 200], or an object {key: shape}, {None: shape} of the other keys.

    An object may lack any key; if not `strict`, a key may be null too, or be none of the shape's.
    """
    if isinstance(shape, tuple):
        if value not in shape:
            raise UserError(f"{where} must be one of {', '.join(shape)}, not {value!r}")
        return value
    if isinstance(shape, list):
        each, *example = shape
        if example and value == []:
            raise UserError(f"{where} is empty; it is a list such as {example}")
        return [check_shape(one, each, where, strict) for one in check_kind(value, list, where)]
    if not isinstance(shape, dict):
        return check_kind(value, shape, where) if shape in KINDS else shape(value, where)
    value = dict(check_kind(value, dict, where))
    for key, one in value.items():
        if strict and not {check_line(key, where), None} & shape.keys():
            raise UserError(f"{where}: {key!r} is none of {', '.join(shape)}")
        each = shape.get(key, shape.get(None))
        if strict or None not in (each, one):
            value[key] = check_shape(one, each, f"{where}: {key!r}", strict)
    return value


def check_line(value, where):
    """A text on one line: nothing in it can end a line of a table, of make or of a shell."""
    for mark in check_kind(value, str, where):
        if unicodedata.category(mark) in ("Cc", "Zl", "Zp"):
            raise UserError(f"{where}: has a control character, {value!r}; write it without")
    return value


def need(record, keys, kind, where):
    """record["a"]["b"] for `keys` "a b"; a UserError names `where`, the key and what it must be."""
    *folders, last = keys.split()
    for key, wanted in [*((key, dict) for key in folders), (last, kind)]:
        if key not in check_kind(record, dict, where):
            raise UserError(f"{where}: no {key!r}, which is {KINDS[wanted]}")
        where, record = f"{where}: {key!r}", record[key]
    return check_kind(record, kind, where)


def parse_json(text, where):
    """The value of a JSON text; a UserError that begins with `where` if it is none."""

    def number(text):
        if math.isfinite(float(text)):
            return float(text)
        fault = "too large a number" if text[-1].isdigit() else "no number that JSON knows"
        raise ValueError(f"{text} is {fault}")

    def pair(items):
        value = dict(items)
        if len(value) < len(items):  # else the last one would hold, and the others be lost
            (twice, _), *_ = Counter(name for name, _ in items).most_common(1)
            raise ValueError(f"{twice!r} stands twice in one object")
        return value

    try:
        value = json.loads(text, parse_float=number, parse_constant=number, object_pairs_hook=pair)
        if "\\ud" in text.lower():  # only an escape can be half of a character
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise UserError(f"{where}: half of a character (a lone surrogate) is no text") from None
    except json.JSONDecodeError as error:
        line = f" in line {error.lineno}" if "\n" in text.strip() else ""
        raise UserError(f"{where}: not JSON ({error.msg}{line})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None


def read_text(path):
    """The UTF-8 text in `path`, without the mark that Windows programs put first."""
    save = "save it as UTF-8 (in a spreadsheet: CSV UTF-8), or unpack it"
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path} line {line}: not UTF-8 ({error.reason}); {save}") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise UserError(f"{path} line {line}: not a text (a NUL, as in UTF-16); {save}")
    return text


def read_json(path, shape=dict, needed=""):
    """The JSON value in `path`, if it is of `shape` as check_shape() has it, with the keys `needed`
    ("a b")."""
    value = check_shape(parse_json(read_text(path), path), shape, path)
    for key in needed.split():
        kind = shape[key]
        need(value, key, kind if isinstance(kind, type) else type(kind), path)
    return value


def read_if_there(path, shape=dict):
    """read_json(), or {} where there is no such file."""
    return read_json(path, shape) if Path(path).exists() else {}


def read_jsonl(path, keys=("source", "target"), kind=None):
    """The rows of a JSONL file, each an object that has `keys`, each of `kind` where one is given;
    a UserError names file and line."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            rows.append(parse_json(line, f"{path} line {number}"))
            for key in keys:
                if not isinstance(rows[-1], dict) or key not in rows[-1]:
                    raise UserError(f"{path} line {number}: no {key!r} in this row")
                if kind:
                    check_kind(rows[-1][key], kind, f"{path} line {number}: {key!r}")
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def read_csv(path, columns=()):
    """{line: row as a dict} of a CSV file with a heading; a UserError names file and line where a
    row has more or fewer cells than that, or where one of `columns` is missing."""
    rows = {}
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""))
        for row in reader:
            if None in row or None in row.values():
                heading = f"{len(reader.fieldnames)} columns as the heading"
                raise UserError(f"{path} line {reader.line_num}: not {heading}")
            rows[reader.line_num] = row
    except csv.Error as error:
        raise UserError(f"{path}: not a CSV file ({error})") from None
    lacking = [name for name in columns if name not in (reader.fieldnames or ())]
    if lacking:
        what = f"no rows with a column {lacking[0]!r}"
        raise UserError(f"{path}: {what}; take back the file as it was")
    return rows


# --- files that are whole or not there -----------------------------------------------------


def hash_file(path):
    """SHA-256 of a file, as hexadecimal text."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomic(path, content):
    """Write text or bytes to `path` so that a reader sees the old file or the whole new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    content = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        if isinstance(error, OSError):  # a full disk names no file
            error.filename, error.filename2 = error.filename or str(path), None
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def check_overwrite(outputs, inputs):
    """Refuse an output that is an input or another output, be it by a link."""

    def name(path):
        return os.stat(path)[1:3] if os.path.exists(path) else Path(path).resolve()

    taken = {name(path): "an input" for path in filter(None, inputs)}
    for path in outputs:
        if name(path) in taken:
            text = f"would be overwritten, and it is {taken[name(path)]}"
            raise UserError(f"{path}: {text}; choose another path")
        taken[name(path)] = "another output"


def find_commit():
    """The git commit of this project's files, None outside git."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(git, capture_output=True, text=True).stdout.strip() or None


def show_rows(rows):
    """Rows as the lines of a JSONL file."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_json(path, value):
    """Write `value` as JSON, atomically; NaN is refused, as no reader could use it."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
