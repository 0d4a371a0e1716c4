"""What is out of date: splits and finished runs, against the data, flags and task of now.

Reads:  PREPARED/TASK/about.json, its sources; config.json, training.json, metrics.json of runs
Writes: nothing, but drop() removes what is to be made again, below runs/ alone

A run is its command: the flags that make would give it now against those in its training.json, each
by its value in config.json where that knows it, and the hashes of data and model. A price or a
budget changes which runs are asked for, and no run.
"""

import functools
import hashlib
import re
import shlex
import shutil
from pathlib import Path

from data.files import ROOT, UserError, hash_file, plural, read_if_there, read_json

# What leaves a result alone or is held to account by a hash: paths, and how a run logs and saves.
FREE = re.compile(
    r"output$|train$|dev$|unlabeled$|teacher$|task$|strategy$|log|sav|report|run.name|disable|hub|push"
    r"|project|trackio|dataloader(?!.drop)|local|micro.batch|recompute"
)
REDO = "add REDO=1 to the same command, which makes exactly these again"
# What the records of splits and runs have, as read_json() checks it.
ABOUT = {"asked": [str], "files": {None: str}, "rows": {None: int}}
HARDWARE = {"device": str, "gpu": str, "gpus": int}
TRAINING = {
    **dict.fromkeys(["task", "strategy", "command", "data_sha256", "model_sha256"], str),
    **dict.fromkeys(["labels", "unlabeled", "seed", "steps"], int),
    "seconds": {None: float},
    "hardware": HARDWARE,
}
METRICS = {
    **dict.fromkeys(["task", "task_sha256", "metric", "signature"], str),
    **dict.fromkeys(["n", "parameters"], int),
    "score": float,
    "constant": {"score": float},
    "metrics": {None: float},
    "intervals": {None: [float]},
    "seconds": {None: float},
    "settings": {"batch_size": int},
    "hardware": HARDWARE,
    "training": TRAINING,
    "provenance": {"data_sha256": str},
}


@functools.cache
def hash_version(path, modified):
    return hash_file(path)


def hash_once(path):
    """hash_file(), of each version of a file once a process."""
    return hash_version(path, path.stat().st_mtime_ns)


def hash_model(folder):
    """As the training scripts name a model folder: its weights, configuration and tokenizer."""
    kinds = (".safetensors", ".bin", ".json", ".model", ".txt")
    files = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    return hashlib.sha256("".join(map(hash_once, files)).encode()).hexdigest()


def read_command(text):
    """The flags of a recorded command, as read_words(); {} of one that no shell could have had."""
    try:
        return read_words(shlex.split(text or "")[1:])
    except ValueError:
        return {}


def read_words(words):
    """{flag: its values as one text} of a command line; --no-x is x False, a bare --x is True."""
    found, values = {}, []
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            bare = str(not name.startswith("no-"))
            name, values = name.removeprefix("no-").replace("-", "_"), [value] if value else []
            found[name] = bare, values
        else:
            values.append(word)
    return {name: " ".join(values) if values else bare for name, (bare, values) in found.items()}


def same(text, value):
    """Whether a flag's text says `value`, as config.json has it: 1e-3 is 0.001."""
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    try:
        return float(text) == float(shown)
    except ValueError:
        return text == shown


def find_read(name):
    """The file of a name in about.json, "a.zip:member" of an archive; None where there is none."""
    names = name, name.rpartition(":")[0]
    paths = (place / each for each in names for place in (Path(), ROOT))
    return next((path for path in paths if path.is_file()), None)


def find_changed_splits(about, asked, names):
    """What changed since splits were made, None where nothing did: `about` is their about.json,
    `asked` the words that prepare.py would get now, `names` the files that it would read."""
    if not {"asked", "files"} <= about.keys():
        return "these splits are of an older version"
    if about["asked"] != asked:
        now, then = (" ".join(words) or "no flags" for words in (asked, about["asked"]))
        return f"prepare.py would get {now}; these splits were made with {then}"
    files = about["files"]
    known = {str(Path(name).resolve()) for name in files}
    if new := [name for name in names if str(Path(name).resolve()) not in known]:
        return f"{new[0]} was not read for these splits"
    for name, before in files.items():
        path = find_read(name)
        if before and not path:
            return f"{name}, of which these splits were made, is gone"
        if before and hash_once(path) != before:
            return f"{name} changed since these splits were made"
    return None


def find_changed_flags(now, training, config):
    """["epochs 15 -> 50", ...]: how the flags `now` differ from those of a run."""
    then = read_command(training.get("command"))
    changes = []
    for name in (name for name in {**now, **then} if not FREE.search(name)):
        text, before = now.get(name, "none"), then.get(name)
        known = config.get(name, before) if name in now else before
        if text != before and not same(text, known):
            changes.append(f"{name} {known} -> {text}")
    return changes


def find_change(folder, now, data):
    """What changed since the run in `folder` was made or begun, None where nothing did or none is
    there.

    `now` are its flags {name: text}, `data` the file that it learns from.
    """
    config, path = read_if_there(folder / "config.json"), folder / "training.json"
    if not config and not path.exists():
        return None
    training = read_json(path, TRAINING) if path.exists() else config  # of a run that was stopped
    if "data_sha256" not in training:
        return "a run of an older version"
    if changes := find_changed_flags(now, training, config):
        return ", ".join(changes)
    model = Path(now.get("model") or now.get("student"))
    for path, key, find in ((data, "data_sha256", hash_once), (model, "model_sha256", hash_model)):
        if path.exists() and training.get(key) and find(path) != training[key]:
            return f"{path} changed"
    return None


def find_changed_score(folder, task, test):
    """What changed since a finished run was scored, None where nothing did."""
    metrics = read_if_there(folder / "metrics.json", METRICS)
    if metrics.get("task_sha256") not in (None, task.hash_rules()):
        return f"the entry of task {task.name} (labels, lengths, prefix or measure)"
    before = (metrics.get("provenance") or {}).get("data_sha256")
    changed = before and test.exists() and hash_once(test) != before
    return f"{test} changed" if changed else None


def drop(path):
    """Remove a folder or a file strictly below runs/WORLD, never anything else."""
    if Path("runs").resolve() not in list(path.resolve().parents)[1:]:
        raise UserError(f"{path}: not a run below runs, so it is not removed; move it away")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def tell_changes(changed):
    """The one line of an error: what changed, and which runs {name: what changed} it touches."""
    names = [name.removesuffix("/metrics.json") for name in changed]
    first, *others = dict.fromkeys(changed.values())
    more = f" and {len(others)} more changes" if others else ""
    shown = ", ".join(names[:3]) + (", ..." if names[3:] else "")
    made = f"{plural(len(names), 'run')} {'was' if len(names) == 1 else 'were'} made"
    return f"{first}{more} since {made} ({shown}): take that back, or {REDO}"
