"""One task: what its texts are, how they are scored, the counts and prices behind its tables.

Usage:
    task = load_task("wlp")                         # an entry of data/tasks.json
    task = load_task("mine=/data/remarks/task.json")  # one entry in a file of its own, named mine
    tasks = load_tasks("wlp mine", folder)          # mine from FOLDER/task.json; "all": the six
Reads:  data/tasks.json, or task.json files of one's own: an object of the fields below
Copy:   data/__init__.py data/files.py data/tasks.py data/tasks.json; standard library only

The paper's tasks keep their counts and prices under "paper", as other scales divide them; an entry
of one's own has them beside its title, and they are meant as they stand. Every other object in an
entry holds settings for the scale of its name: "models", "evaluate", and flags for "all"
strategies, for one ("small", "dist", ...) and for "real-text".
"""

import difflib
import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Annotated

from data.files import (
    DATA,
    UserError,
    check_kind,
    check_line,
    check_shape,
    fold,
    need,
    parse_amount,
    parse_count,
    parse_price,
    read_if_there,
    read_json,
)

PAPER_TASKS = ("wlp", "stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
FAMILIES = ("entities", "classes", "answers", "paraphrase")  # of evaluate.py
PAPER_USD_PER_GPU_HOUR = Fraction("1.875")  # section 2.5; turns Table 6's dollars into A40-hours
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
TAKEN = ("all", "made")  # words of the Makefile: all six tasks, the folder of finished tables


# --- readers of fields: (value, where it stands) -> the checked value ------------------------

read_count = partial(parse_count, least=1)


def read_length(value, where):
    if type(value) is not int or not 2 <= value <= 32_767:
        raise UserError(f"{where} must be a number of tokens from 2 to 32,767, not {value!r}")
    return value


def read_rows(value, where):
    return None if value is None else read_count(value, where)


def read_means(value, where):
    """Mean tokens of source and target."""
    sides = dict.fromkeys(("source", "target"), parse_amount)
    check_shape(value, sides, where, strict=True)  # of no third
    return {side: parse_amount(need(value, side, float, where), where) for side in sides}


def read_hours(value, where, divide=1):
    """Hours by labels, {"100": 2, "1000": "7.5"}, or one number for any labels; over `divide`."""
    pairs = value.items() if isinstance(value, dict) else [(0, value)]
    hours = {parse_count(n, where): parse_amount(v, where) / divide for n, v in pairs}
    return dict(sorted(hours.items()))


def read_setting(value, where):
    """A flag's value: a text, a number, true or false, null, or a list of such."""
    if isinstance(value, list):
        return [read_setting(each, where) for each in value]
    if isinstance(value, str):
        return check_line(value, where)
    return value if value is None or isinstance(value, bool) else check_kind(value, float, where)


def read_near(value, where):
    """Flags that were tried at a count of labels, and of unlabeled rows where that matters."""
    need(value, "labels", int, where)
    counts = dict.fromkeys(["labels", "unlabeled"], read_count)
    return check_shape(value, {**counts, None: read_setting}, where, strict=True)


SPLITS = ("train", "dev", "test", "unlabeled")
FIGURES = dict.fromkeys(["fig4", "fig5", "fig6"], parse_price)
# Flags by name; of those under "near" a run takes the ones of the nearest counts.
FLAGS = {"near": [read_near, {"labels": 100}], None: read_setting}
SETTINGS = {None: FLAGS}  # of a scale: flags by strategy, models by size and the like


# --- what a task is -------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A checked entry, each field by its shape: dollars, hours and tokens are Fractions, texts
    have no control characters, and what the entry lacks is None or empty."""

    name: str
    title: Annotated[str, check_line]
    metric: Annotated[str, FAMILIES]
    prefix: Annotated[str, check_line]
    max_source_length: Annotated[int, read_length]
    max_target_length: Annotated[int, read_length]
    labels_n: Annotated[tuple, [read_count, 1000, 5000]]
    budgets: Annotated[tuple, [parse_price, 100, 200]]  # dollars
    labels: Annotated[tuple, [check_line]] = ()
    own: bool = True  # a task that the paper has not
    kind: Annotated[str, check_line] = None
    report: Annotated[str, ("accuracy", "f1")] = "f1"
    source_column: Annotated[str, check_line] = None  # of files with other columns
    target_column: Annotated[str, check_line] = None
    instruction: Annotated[str, str] = None
    # label -> text, for an LLM's prompt
    label_descriptions: Annotated[dict, {None: check_line}] = field(default_factory=dict)
    # what the released scorer makes of an output without a label
    paper_default_label: Annotated[str, check_line] = None
    mean_tokens: Annotated[dict, read_means] = field(default_factory=dict)
    usd_per_label: Annotated[Fraction, parse_price] = None
    few_shot_n: Annotated[int, read_count] = 100
    few_shot_budgets: Annotated[tuple, [parse_price]] = ()
    catch_up_usd: Annotated[tuple, [parse_price]] = ()
    figure_usd: Annotated[dict, FIGURES] = field(default_factory=dict)
    # split -> rows there are, None where not known
    rows: Annotated[dict, dict.fromkeys(SPLITS, read_rows)] = field(default_factory=dict)
    gpu: Annotated[str, check_line] = "A40"  # whose hours these are:
    teacher_hours: dict = field(default_factory=dict)  # labels -> hours that fine-tune the teacher
    distill_hours: dict = field(default_factory=dict)  # labels -> hours for one unlabeled example
    llm_tokens_per_label: Annotated[Fraction, parse_price] = None
    # the paper's, as published
    released_rows: Annotated[dict, {None: read_rows}] = field(default_factory=dict)
    scales: dict = field(default_factory=dict)  # scale -> {models, all, small, ...}
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


HOURS = {  # what an entry has in other words than the Task: (its field, its shape)
    "teacher_gpu_hours": ("teacher_hours", read_hours),
    "distill_gpu_hours_per_100k": ("distill_hours", partial(read_hours, divide=100_000)),
    "distill_usd_per_100k": (
        "distill_hours",
        partial(read_hours, divide=100_000 * PAPER_USD_PER_GPU_HOUR),
    ),
}
HINTS = {key: each for key, each in Task.__annotations__.items() if hasattr(each, "__metadata__")}
SHAPES = {key: (key, each.__metadata__[0]) for key, each in HINTS.items()} | HOURS
NEEDED = tuple(SHAPES)[:7]


# --- from an entry to a Task ----------------------------------------------------------------


def make_task(name, entry, where=""):
    """The Task of an entry; a UserError names the field at fault and what it must be."""
    if not NAME.fullmatch(name) or name in TAKEN:  # a folder, a word of make and of a shell
        taken = f"take letters and digits and _ . - alone, and not {' or '.join(TAKEN)}"
        raise UserError(f"task {name!r}: no name for a task; {taken}")
    what = f"{where}task {name!r}: field"
    own = "labels_n" in check_kind(entry, dict, f"{where}task {name!r}")
    if not own:  # counts and prices lie under "paper", with settings for the scale of that name
        paper = check_kind(entry.get("paper", {}), dict, f"{what} 'paper'")
        counts = {key: paper[key] for key in paper if key in SHAPES}
        entry = {**counts, **entry, "paper": {k: paper[k] for k in paper if k not in SHAPES}}
    scales = read_if_there(DATA / "scales.json") or entry.keys() - SHAPES.keys()
    known, values = {**SHAPES, **{scale: (scale, SETTINGS) for scale in scales}}, {}
    for key in dict.fromkeys([*NEEDED, *entry]):
        if key not in entry:
            raise UserError(f"{what} {key!r} is missing; data/README.md says what it is")
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            raise UserError(f"{what} {key!r} is none that an entry has; {hint}")
        if entry[key] is not None or key in NEEDED:  # null is the same as no field
            name_there, shape = known[key]
            value = check_shape(entry[key], shape, f"{what} {key!r}", strict=True)
            values[name_there] = tuple(value) if isinstance(value, list) else value
    settings = {key: values.pop(key) for key in scales if key in values}
    values = {"few_shot_budgets": values["budgets"], **values}
    task = Task(name=name, word=name, own=own, scales=settings, **values)
    check_labels(task, f"{what} 'labels'")
    return task


def check_labels(task, what):
    """Refuse label names that outputs can't tell apart."""
    if len(set(map(fold, task.labels))) < len(task.labels):
        raise UserError(f"{what} has a label twice (case and spaces do not count)")
    if odd := [label for label in task.labels if label.strip() != label or not label]:
        raise UserError(f"{what} must be texts without spaces around them, not {odd[0]!r}")
    least = {"classes": 2, "entities": 1}.get(task.metric, 0)
    if len(task.labels) < least:
        raise UserError(f"{what} needs {least} names or more for {task.metric}")
    unknown = task.label_descriptions.keys() - set(task.labels)
    if unknown:
        raise UserError(f"{what} has no {min(unknown)!r}, which 'label_descriptions' describes")
    if task.paper_default_label not in (None, *task.labels):
        raise UserError(f"{what} has no {task.paper_default_label!r}, the 'paper_default_label'")


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
            f"{path}: would not be read, as {word!r} is an entry of data/tasks.json; give the task "
            "another name (make: TASK=mine)"
        )
    if word in known:
        return make_task(word, known[word])
    if own or (folder and path.is_file()):
        stem = path.resolve().parent.name if path.name == "task.json" else path.stem
        name = (name or stem) if own else word
        return replace(make_task(name, read_json(path), f"{path}: "), word=f"{name}={path}")
    near = difflib.get_close_matches(word, known, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        f"unknown task {word!r}; {hint}known: {', '.join(known)} (entries of data/tasks.json); "
        "one's own is FOLDER/task.json with the data (--data FOLDER; make: DATA=FOLDER), or --task "
        "FILE.json"
    )


def load_tasks(words, folder=None):
    """The Tasks of a text such as "wlp fever", or for "all" the paper's six, each once."""
    names = PAPER_TASKS if words == "all" else tuple(dict.fromkeys(words.split()))
    if not names:
        raise UserError("--task: no task given; write for example wlp, 'wlp fever' or all")
    return [load_task(name, folder) for name in names]
