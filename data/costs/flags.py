"""A scale's settings, and from them the flags of the training scripts for a task and a run.

Reads:  data/scales.json
Paper:  Table 8
"""

import math
import shlex

from data.costs.runs import make_run
from data.files import DATA, UserError, check_shape, need, parse_count, read_json
from data.tasks import SETTINGS

SCALE = {  # what one may have, as read_json() checks it
    "title": str,
    "divide_by": int,
    "like": str,
    "seconds_a_step": {None: float},
    "models": {None: str},
    "million_parameters": {None: int},
    "flags": {None: {}},
    "recipes": {None: {None: {}}},
}
# What an entry has at a scale beside flags of a strategy.
OWN = ("models", "evaluate", "all", "real-text")


def load_scale(name, path=DATA / "scales.json"):
    """One entry of data/scales.json, on top of those that it is `like`; a UserError lists the names
    where `name` is none, or names the key at fault."""
    scales, scale = read_json(path, {None: SCALE}), {"like": name}
    known = f"known: {', '.join(scales)} (entries of {path})"
    while (name := scale.pop("like", None)) is not None:
        if name not in scales:
            raise UserError(f"unknown scale {name!r}; {known}")
        where = f"{path}: scale {name!r}"
        scale = merge(scales.pop(name) or {}, scale)
    for key, kind in (("title", str), ("models", dict)):
        need(scale, key, kind, where)
    parse_count(scale.get("divide_by"), f"{where}: 'divide_by'", 1)
    flags = check_shape(scale.get("flags"), SETTINGS, f"{where}: 'flags'", strict=True)
    recipes, shape = scale.get("recipes") or {}, {None: SETTINGS}
    recipes = check_shape(recipes, shape, f"{where}: 'recipes'", strict=True)
    return {**scale, "flags": flags, "recipes": recipes}


def merge(below, above):
    """`below` with the entries of `above` in it, dicts in dicts likewise."""
    both = {**below, **above}
    for key in [key for key in above if isinstance(below.get(key), dict) and above[key]]:
        both[key] = merge(below[key], above[key])
    return both


def find_unit(task, scale):
    """What divides the paper's counts and dollars of a Task at a scale; one's own are meant as
    they stand."""
    return 1 if task.own else load_scale(scale)["divide_by"]


def tell_scale(name, own):
    """What the counts at scale `name` are, as a note; `own`: those of a task of one's own."""
    if own:
        return f"Scale {name}: labels, dollars and unlabeled rows are as the task's entry has them."
    return f"Scale {name}: {load_scale(name)['title']}."


def pick_nearest(flags, run):
    """The flags of a strategy; of a list under "near" those tried at counts nearest to the run's.

    An entry of the list names its counts, "labels" or "labels" and "unlabeled"; near is by ratio.
    """

    def measure(tried):
        keys = [key for key in ("labels", "unlabeled") if key in tried]
        return sum(abs(math.log(max(1, getattr(run, key)) / tried[key])) for key in keys)

    chosen = {**flags, **min(flags.get("near", [{}]), key=measure)}
    return {key: chosen[key] for key in chosen if key not in ("near", "labels", "unlabeled")}


def choose_recipe(task, scale, recipe):
    """({strategy: flags}, the task's own settings, models) at a scale; a `recipe` stands in place
    of the scale's flags, and the task's for a strategy are then those at scale paper."""
    settings, own = load_scale(scale), task.scales.get(scale, {})
    known, models = settings["flags"], {**settings["models"], **own.get("models", {})}
    keys = (*OWN, *known)
    if unknown := [key for key in own if key not in keys]:
        fault = f"{unknown[0]!r} at scale {scale!r} is none of {', '.join(keys)}"
        raise UserError(f"task {task.name!r}: {fault}")
    if recipe:
        paper = load_scale("paper")
        recipes = {"paper": paper["flags"], **paper["recipes"], **settings["recipes"]}
        if recipe not in recipes:
            raise UserError(f"no recipe {recipe!r}; known: {', '.join(recipes)}")
        known = {**known, **recipes[recipe]}
        kept = {key: own.get(key, {}) for key in ("all", "real-text")}
        own = {**task.scales.get("paper", {}), **kept}
    return known, own, models


def choose_model(task, scale, run, known, models):
    """The model that a Run trains, with the flags `known` and `models` of a scale; a UserError
    where there is none."""
    if run.recipe not in known:
        raise UserError(f"scale {scale!r}: no strategy {run.recipe!r}; known: {', '.join(known)}")
    size = run.teacher if run.strategy == "teacher" else run.encoder or run.student
    if size not in models:
        raise UserError(f"scale {scale!r}: no model of size {size!r}; known: {', '.join(models)}")
    if run.encoder and task.metric != "classes":
        fault = f"no classes, so nothing for {run.encoder} to learn"
        raise UserError(f"task {task.name!r}: {fault}")
    return models[size]


def make_flags(task, scale, strategy=None, run=None, real_text=False, recipe=None):
    """{flag: value} for the script that trains `strategy`, or for one Run with its counts.

    The scale's settings first, then the entry's own at that scale: "all", the strategy's and,
    for `real_text` (data that the scale wasn't made for), those of "real-text". A `recipe` stands
    in place of the scale's and the strategy's, which are then those at scale paper: "paper" is
    Table 8, "released" the released protocol in full. Flags that hang on counts are a list, "near":
    the nearest counts'.
    """
    known, own, models = choose_recipe(task, scale, recipe)
    kind, _, student = (strategy or "").partition("-")  # dist-bert distils an encoder
    run = run or make_run(kind, 0, 0, student=student or "small")
    model = choose_model(task, scale, run, known, models)
    distilled = run.strategy in ("dist", "self")
    flags = {
        "student" if distilled else "model": model,
        **pick_nearest(known[run.recipe], run),
        "max-source-length": task.max_source_length,
        "max-target-length": task.max_target_length,
        "prefix": task.prefix,
        **own.get("all", {}),
        **pick_nearest(own.get(run.recipe, {}), run),
        **(own.get("real-text", {}) if real_text else {}),
    }
    if run.encoder and distilled:  # its teacher writes, and scores each class
        flags["classes"] = list(task.labels)
    elif run.encoder:  # it has one output a class, so nothing to write and no task to be told
        flags |= {"max-target-length": None, "prefix": None, "labels": list(task.labels)}
    if task.keeps_empty and not distilled:
        flags["keep-empty"] = True
    if strategy:
        return flags
    if run.strategy != "llm":  # which trains on every row that gpt_annotate.py wrote
        flags["num-unlabeled" if distilled else "num-labels"] = run.unlabeled or run.labels
    return {**flags, "seed": run.seed}


def show_flags(flags):
    """Flags as one shell line: true is --flag, false --no-flag, null leaves a flag out; a list
    is several values of one flag."""
    words = []
    for name, value in flags.items():
        if value is not None:
            words.append(f"--no-{name}" if value is False else f"--{name}")
            values = value if isinstance(value, list) else [value]
            words += [] if isinstance(value, bool) else map(str, values)
    return shlex.join(words)
