"""One task: what its texts are, how they are scored, the counts and prices behind its tables.

Usage:
    task = load_task("wlp")                         # an entry of data/tasks.json
    task = load_task("mine=/data/remarks/task.json")  # one entry in a file of its own, named mine
    tasks = load_tasks("wlp mine", folder)          # mine from FOLDER/task.json; "all": the six
Reads:  data/tasks.json, or task.json files of one's own: an object of the fields below
Copy:   data/__init__.py data/files.py data/tasks.py data/tasks.json; standard library only

The paper's tasks keep their counts and prices under "paper", as other scales divide them; an entry
of one's own has them beside its title, and they are meant as they stand. Every other object in an
entry holds settings for the scale of its name: "models", "learning_rate", "evaluate", and flags
for "all" strategies, for one ("small", "dist", ...) and for "real-text".
"""

import difflib
import functools
import hashlib
import json
import re
import unicodedata
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated

from data.files import (
    DATA,
    UserError,
    check_kind,
    fold,
    parse_amount,
    parse_count,
    parse_price,
    read_json,
)

PAPER_TASKS = ("wlp", "stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
FAMILIES = ("entities", "classes", "answers", "paraphrase")  # of evaluate.py
PAPER_USD_PER_GPU_HOUR = Fraction("1.875")  # section 2.5; turns Table 6's dollars into A40-hours
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
TAKEN = ("all", "made")  # words of the Makefile: all six tasks, the folder of finished tables


# --- readers of fields: (value, where it stands) -> the checked value ------------------------


def read_words(value, where):
    """A text on one line: nothing in it can end a line of a table, of make or of a shell."""
    for mark in check_kind(value, str, where):
        if unicodedata.category(mark) in ("Cc", "Zl", "Zp"):
            raise UserError(f"{where}: has a control character, {value!r}; write it without")
    return value


def read_choice(*words):
    def read(value, where):
        if value not in words:
            raise UserError(f"{where} must be one of {', '.join(words)}, not {value!r}")
        return value

    return read


def read_each(read, example=None):
    """A list, each of whose values passes `read`; it must not be empty where `example` is given."""

    def read_list(value, where):
        if not isinstance(value, list):
            such = f" such as {example}" if example else ""
            raise UserError(f"{where} must be a list{such}, not {value!r}")
        if example and not value:
            raise UserError(f"{where} is empty; it is a list such as {example}")
        return tuple(read(each, where) for each in value)

    return read_list


def read_map(read, known=(), needed=()):
    """An object, each of whose values passes `read`; of the keys `known` alone, if given, and in
    the order of those that are `needed`."""

    def read_object(value, where):
        value = check_kind(value, dict, where)
        if unknown := [key for key in value if known and key not in known]:
            raise UserError(f"{where}: {unknown[0]!r} is none of {', '.join(known)}")
        if missing := [key for key in needed if key not in value]:
            raise UserError(f"{where}: no {missing[0]!r}")
        names = dict.fromkeys([*needed, *value])
        return {read_words(key, where): read(value[key], f"{where}: {key!r}") for key in names}

    return read_object


def read_tokens(value, where):
    if type(value) is not int or not 2 <= value <= 32_767:
        raise UserError(f"{where} must be a number of tokens from 2 to 32,767, not {value!r}")
    return value


def read_number(value, where):
    return parse_count(value, where, 1)


def read_rows(value, where):
    return None if value is None else read_number(value, where)


def read_hours(divide):
    """Hours by labels, {"100": 2, "1000": "7.5"}, or one number for any labels; over `divide`."""

    def read(value, where):
        pairs = value.items() if isinstance(value, dict) else [(0, value)]
        hours = {parse_count(n, where): parse_amount(v, where) / divide for n, v in pairs}
        return dict(sorted(hours.items()))

    return read


def read_label(value, where):
    if read_words(value, where).strip() != value or not value:
        raise UserError(f"{where} must be texts without spaces around them, not {value!r}")
    return value


def read_setting(value, where):
    """A flag's value: a text, a number, true or false, null, or a list of such."""
    if isinstance(value, list):
        return [read_setting(each, where) for each in value]
    if isinstance(value, str):
        return read_words(value, where)
    return value if value is None or isinstance(value, bool) else check_kind(value, float, where)


def read_near(value, where):
    """Flags that were tried at counts of labels, and of unlabeled rows where that matters."""
    flags = read_map(read_setting, needed=("labels",))(value, where)
    for key in ("labels", "unlabeled"):
        parse_count(flags.get(key, 1), f"{where}: {key!r}", 1)
    return flags


def read_flags(value, where):
    """Flags by name; "near" is a list of such, of which a run takes those of the nearest counts."""
    found = {}
    for key, each in check_kind(value, dict, where).items():
        read = read_each(read_near, '{"labels": 100}') if key == "near" else read_setting
        found[read_words(key, where)] = read(each, f"{where}: {key!r}")
    return found


# Objects in an entry that have certain keys alone.
read_tokens_by_side = read_map(parse_amount, ("source", "target"), ("source", "target"))
read_usd_by_figure = read_map(parse_price, ("fig4", "fig5", "fig6"))
read_rows_by_split = read_map(read_rows, ("train", "dev", "test", "unlabeled"))


# --- what a task is -------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A checked entry, each field by its reader: dollars, hours and tokens are Fractions, texts
    have no control characters, and what the entry lacks is None or empty."""

    name: str
    title: Annotated[str, read_words]
    metric: Annotated[str, read_choice(*FAMILIES)]
    prefix: Annotated[str, read_words]
    max_source_length: Annotated[int, read_tokens]
    max_target_length: Annotated[int, read_tokens]
    labels_n: Annotated[tuple, read_each(read_number, [1000, 5000])]
    budgets: Annotated[tuple, read_each(parse_price, [100, 200])]  # dollars
    labels: Annotated[tuple, read_each(read_label)] = ()
    own: bool = True  # a task that the paper has not
    kind: Annotated[str, read_words] = None
    report: Annotated[str, read_choice("accuracy", "f1")] = "f1"
    source_column: Annotated[str, read_words] = None  # of files with other columns
    target_column: Annotated[str, read_words] = None
    instruction: Annotated[str, lambda value, where: check_kind(value, str, where)] = None
    # label -> text, for an LLM's prompt
    label_descriptions: Annotated[dict, read_map(read_words)] = field(default_factory=dict)
    # what the released scorer makes of an output without a label
    paper_default_label: Annotated[str, read_words] = None
    mean_tokens: Annotated[dict, read_tokens_by_side] = field(default_factory=dict)
    usd_per_label: Annotated[Fraction, parse_price] = None
    few_shot_n: Annotated[int, read_number] = 100
    few_shot_budgets: Annotated[tuple, read_each(parse_price)] = ()
    catch_up_usd: Annotated[tuple, read_each(parse_price)] = ()
    figure_usd: Annotated[dict, read_usd_by_figure] = field(default_factory=dict)
    # split -> rows there are, None where not known
    rows: Annotated[dict, read_rows_by_split] = field(default_factory=dict)
    gpu: Annotated[str, read_words] = "A40"  # whose hours these are:
    teacher_hours: dict = field(default_factory=dict)  # labels -> hours that fine-tune the teacher
    distill_hours: dict = field(default_factory=dict)  # labels -> hours for one unlabeled example
    llm_tokens_per_label: Annotated[Fraction, parse_price] = None
    # the paper's, as published
    released_rows: Annotated[dict, read_map(read_rows)] = field(default_factory=dict)
    scales: dict = field(default_factory=dict)  # scale -> {models, learning_rate, all, small, ...}
    estimates: tuple = ()  # what costs/memory.py filled in where the entry lacks it
    word: str = None  # by which scripts that know no folder of data find it

    def hash_rules(self):
        """What names the rules by which its outputs are read and scored."""
        rules = [self.metric, self.report, self.labels, self.paper_default_label, self.prefix]
        text = json.dumps([*rules, self.max_source_length, self.max_target_length])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def name_score(self, rule="strict"):
        """The key of metrics.json that is this task's score by a rule."""
        classes = "accuracy" if self.report == "accuracy" else "micro_f1"
        families = {"entities": "entity_f1", "answers": "f1", "paraphrase": "bert_ibleu"}
        strict = families.get(self.metric, classes)
        return strict if rule == "strict" else f"{strict.removeprefix('entity_')}_released"

    @property
    def keeps_empty(self):
        """Whether a text without entities is a lesson; the paper's authors left theirs out."""
        return self.own and self.metric == "entities"

    def at(self, scale, key):
        """The settings `key` of this task at a scale, {} where it has none of its own."""
        return self.scales.get(scale, {}).get(key, {})


HOURS = {  # what an entry has in other words than the Task: (its field, its reader)
    "teacher_gpu_hours": ("teacher_hours", read_hours(1)),
    "distill_gpu_hours_per_100k": ("distill_hours", read_hours(100_000)),
    "distill_usd_per_100k": ("distill_hours", read_hours(100_000 * PAPER_USD_PER_GPU_HOUR)),
}
HINTS = {key: each for key, each in Task.__annotations__.items() if hasattr(each, "__metadata__")}
READERS = {key: (key, each.__metadata__[0]) for key, each in HINTS.items()} | HOURS
NEEDED = tuple(READERS)[:7]
read_scale = read_map(read_flags)


# --- from an entry to a Task ----------------------------------------------------------------


def split_entry(entry, what):
    """(the fields of an entry, those under "paper" among them; its settings by scale)."""
    own = "labels_n" in entry
    paper = {} if own else entry.get("paper", {})
    paper = check_kind(paper, dict, f"{what} 'paper'")
    found = {key: value for key, value in {**paper, **entry}.items() if key in READERS}
    scales = {key: value for key, value in entry.items() if key not in READERS}
    if "paper" in scales and not own:
        scales["paper"] = {key: paper[key] for key in paper if key not in READERS}
    return found, scales


@functools.cache
def list_scales():
    """The names of scales, under which an entry has settings; () beside a script copied alone."""
    path = DATA / "scales.json"
    return tuple(read_json(path, {None: dict})) if path.exists() else ()


def make_task(name, entry, where=""):
    """The Task of an entry; a UserError names the field at fault and what it must be."""
    what = f"{where}task {name!r}: field"
    found, settings = split_entry(check_kind(entry, dict, f"{where}task {name!r}"), what)
    for key in NEEDED:
        if key not in found:
            raise UserError(f"{what} {key!r} is missing; data/README.md says what it is")
    values, scales = {}, {}
    for key, value in found.items():  # null is the same as no field, but for those that are needed
        if value is not None or key in NEEDED:
            name_there, read = READERS[key]
            values[name_there] = read(value, f"{what} {key!r}")
    for key, value in settings.items():
        if not isinstance(value, dict) or (list_scales() and key not in list_scales()):
            known = [*READERS, *list_scales()]
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{what} {key!r} is none that an entry has; {hint}")
        scales[key] = read_scale(value, f"{what} {key!r}")
    values = {"few_shot_budgets": values["budgets"], **values}
    task = Task(name=name, word=name, own="labels_n" in entry, scales=scales, **values)
    check_labels(task, f"{what} 'labels'")
    return task


def check_labels(task, what):
    """Refuse label names that outputs can't tell apart."""
    if len(set(map(fold, task.labels))) < len(task.labels):
        raise UserError(f"{what} has a label twice (case and spaces do not count)")
    least = {"classes": 2, "entities": 1}.get(task.metric, 0)
    if len(task.labels) < least:
        raise UserError(f"{what} needs {least} names or more for {task.metric}")
    unknown = task.label_descriptions.keys() - set(task.labels)
    if unknown:
        raise UserError(f"{what} has no {min(unknown)!r}, which 'label_descriptions' describes")
    if task.paper_default_label not in (None, *task.labels):
        raise UserError(f"{what} has no {task.paper_default_label!r}, the 'paper_default_label'")


def check_name(name):
    """`name`, if it can name a folder, a word of make and a word of a shell."""
    if not NAME.fullmatch(name) or name in TAKEN:
        raise UserError(
            f"task {name!r}: no name for a task; take letters and digits and _ . - alone, and not "
            + " or ".join(TAKEN)
        )
    return name


def load_task(word, folder=None):
    """The Task that `word` names: an entry of data/tasks.json, a file FILE.json that is one entry,
    NAME=FILE.json, or a name whose entry is FOLDER/task.json."""
    name, _, file = ("", "", word) if Path(word).is_file() else word.partition("=")
    file = file or name
    known, own = read_json(DATA / "tasks.json"), file.endswith(".json")
    path = Path(file) if own else Path(folder or "", "task.json")
    if folder and not str(folder).startswith("hub:") and not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; one that holds train and test is needed")
    if word in known and folder and path.is_file():
        raise UserError(
            f"{path}: would not be read, as {word!r} is an entry of data/tasks.json; name the task "
            "otherwise (make: TASK=mine), or move the file away"
        )
    if word in known:
        return make_task(check_name(word), known[word])
    if own or (folder and path.is_file()):
        stem = path.resolve().parent.name if path.name == "task.json" else path.stem
        name = check_name((name or stem) if own else word)
        return replace(make_task(name, read_json(path), f"{path}: "), word=f"{name}={path}")
    near = difflib.get_close_matches(word, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown task {word!r}; {hint}known: {', '.join(known)} (entries of data/tasks.json); "
        "one's own is FOLDER/task.json with the data (make: DATA=FOLDER), or --task FILE.json"
    )


def load_tasks(words, folder=None):
    """The Tasks of a text such as "wlp fever", or for "all" the paper's six, each once."""
    names = PAPER_TASKS if words == "all" else tuple(dict.fromkeys(words.split()))
    if not names:
        raise UserError("--task: no task given; write for example wlp, 'wlp fever' or all")
    return [load_task(name, folder) for name in names]
