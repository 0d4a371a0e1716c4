"""Reading and writing: JSON, rows, task entries, files that are whole or not there; `error:` lines.

Reads:  the files it is asked for, data/tasks.json
Writes: the same, by a temporary file and a rename
Copy:   data/__init__.py data/files.py data/tasks.json; standard library only
"""

import json
import os
import sys
import tempfile
from pathlib import Path

DATA = Path(__file__).resolve().parent
ROOT = DATA.parent


class UserError(ValueError):
    """A mistake that the user can mend; its text says what, where and what to do."""


def run_cli(main):
    """Run `main()` as a command: a UserError becomes one `error:` line and exit code 1."""
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except BrokenPipeError:  # the reader, e.g. `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue", file=sys.stderr)
        sys.exit(130)
    except OSError as error:  # full disk, no permission, not a folder, ...
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
    sys.exit(1)


def read_json(path):
    """The JSON value in `path`, or a UserError that names the file and the fault."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not JSON ({error})") from None


def read_jsonl(path, keys=("source", "target")):
    """The rows of a JSONL file, each an object that has `keys`; a UserError names file and line."""
    rows = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise UserError(f"{path} line {number}: not JSON ({error.msg})") from None
                missing = [key for key in keys if not isinstance(row, dict) or key not in row]
                if missing:
                    raise UserError(f"{path} line {number}: no {missing[0]!r} in this row")
                rows.append(row)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason})") from None
    if not rows:
        raise UserError(f"{path}: no rows")
    return rows


def write_atomic(path, text):
    """Write `text` to `path` so that a reader sees the old file or the whole new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path, value):
    """Write `value` as JSON, atomically; NaN is refused, as no reader could use it."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load_tasks(path=DATA / "tasks.json"):
    """Every task entry by name, as in data/tasks.json."""
    tasks = read_json(path)
    if not isinstance(tasks, dict):
        raise UserError(f"{path}: not an object of task entries by name")
    return tasks


def load_task(name, path=DATA / "tasks.json"):
    """One task entry; a UserError lists the known names where `name` is none of them."""
    tasks = load_tasks(path)
    if name not in tasks:
        raise UserError(f"unknown task {name!r}; known: {', '.join(tasks)} (entries of {path})")
    return tasks[name]
