"""Rows of predictions, read and checked; their scores with intervals; runs side by side."""

import unicodedata
from pathlib import Path

import numpy as np

from data.evaluate.metrics import Row, compute_score, score_answers, score_classes, score_entities
from data.evaluate.paraphrase import score_paraphrase
from data.files import UserError, plural, read_if_there, read_jsonl
from data.plots.paired import adjust_holm

SCORERS = {
    "entities": score_entities,
    "classes": score_classes,
    "answers": score_answers,
    "paraphrase": score_paraphrase,
}
GIVEN = ("source", "target", "half")  # what a data file says; the last one in some alone
SAID = ("prediction", "generated", "target_decoded", "source_decoded")

# --- rows ------------------------------------------------------------------------------------


def check_rows(rows, path, task):
    """Refuse values that are no text, and targets that the task cannot have."""
    labels = {compose(label).upper() for label in task.labels}
    for number, row in enumerate(rows, 1):
        for key in (key for key in (*GIVEN, *SAID) if key in row):
            several = task.metric == "answers" and key in ("target", "target_decoded")
            values = row[key] if several and isinstance(row[key], list) else [row[key]]
            if not values or not all(isinstance(value, str) for value in values):
                raise UserError(f"{path} row {number}: {key!r} is no text but {row[key]!r:.60}")
        if task.metric == "classes" and compose(row["target"]).strip().upper() not in labels:
            known = f"is no label of this task; known: {', '.join(task.labels)}"
            raise UserError(f"{path} row {number}: target {row['target']!r} {known}")


def read_prepared(path):
    """The rows of a file as data/prepare.py writes it."""
    try:
        return read_jsonl(path)
    except UserError as error:
        made = "python -m data.prepare makes such files of a spreadsheet or of other columns"
        raise UserError(f"{error}; a prepared file is needed: {made}") from None


def read_data(path, task):
    """The rows of a data file, checked, as predictions.jsonl begins them."""
    rows = read_prepared(path)
    check_rows(rows, path, task)
    if empty := sum(not row["source"].strip() for row in rows):
        raise UserError(f"{path}: {plural(empty, 'row')} with an empty source, to be left out")
    return [{key: row[key] for key in GIVEN if key in row} for row in rows]


def read_rows(predictions, data, task):
    """The rows of a predictions file, checked against the data file if there is one."""
    rows = read_jsonl(predictions, ("prediction",) if data else ("source", "target", "prediction"))
    examples = read_prepared(data) if data else [{}] * len(rows)
    if len(examples) != len(rows):
        said, asked = plural(len(rows), "prediction"), plural(len(examples), "row")
        raise UserError(f"{predictions}: {said} for the {asked} of {data}")
    for number, (row, example) in enumerate(zip(rows, examples, strict=True), 1):
        for key in (key for key in GIVEN if key in example):
            if row.setdefault(key, example[key]) != example[key]:
                raise UserError(f"{predictions} row {number}: not the {key!r} of {data}")
    check_rows(rows, predictions, task)
    return rows


def compose(text):
    """A text, or each of a list, in Unicode's form NFC; None as it is."""
    if isinstance(text, list):
        return [compose(each) for each in text]
    return text and unicodedata.normalize("NFC", text)


def make_row(row):
    """A row of predictions as the scorers take it."""
    texts = (compose(row.get(key)) for key in ("source", "target", "prediction", "generated"))
    decoded = (row.get(f"{key}_decoded", row[key]) for key in ("source", "target"))
    return Row(*texts, *decoded, row.get("generated", row["prediction"]))


# --- scores ----------------------------------------------------------------------------------


def score_rows(rows, task, options):
    """The Scores of rows of predictions by the task's metric family; those of a task of one's own
    are strict alone, as the authors have no scorer for it."""
    if task.own and options.rule == "released":
        what = f"the authors released no scorer of {task.name}, a task of one's own"
        raise UserError(f"--rule released: {what}")
    made = [make_row(row) for row in rows]
    scores = SCORERS[task.metric](made, task, options)
    if task.own:
        for found in (scores.parts, scores.constants, scores.settings):
            for key in [key for key in found if key.endswith("_released")]:
                del found[key]
    else:
        sides = ((r.released_source, r.released_target) != (r.source, r.target) for r in made)
        scores.settings["released_side"] = "token-ids" if any(sides) else "text"
    return scores


def bootstrap_sums(columns, samples, seed):
    """(1 + samples, k) sums: of all rows, then over n rows drawn with replacement; seeded."""
    n, rng, chunk = len(columns), np.random.default_rng(seed), 50
    columns = columns.astype(float)
    sums = [columns.sum(0, keepdims=True)]
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums.append(weights.astype(float) @ columns)
    return np.concatenate(sums)


def draw_scores(several, options):
    """[{key: (1 + samples,)}] of each Scores, all on the same drawn rows, the observed first."""
    parts = [part for scores in several for part in scores.parts.values()]
    sums = bootstrap_sums(np.hstack(parts), options.bootstrap, options.seed)
    ends = np.cumsum([part.shape[1] for part in parts])
    values = map(compute_score, np.split(sums, ends[:-1], axis=1))
    return [{key: next(values) for key in scores.parts} for scores in several]


def find_interval(values):
    """The central 95% of bootstrap values, [low, high]."""
    return np.percentile(values, [2.5, 97.5]).tolist()


def score_halves(scores, rows, headline):
    """{value of the rows' "half": n, score and metrics of its rows}, {} where no row has one."""
    found = {}
    for half in sorted({row["half"] for row in rows if "half" in row}):
        there = np.array([row.get("half") == half for row in rows])
        sums = {key: part[there].sum(0) for key, part in scores.parts.items()}
        metrics = {key: float(compute_score(each)) for key, each in sums.items()}
        found[half] = {"n": int(there.sum()), "score": metrics[headline], "metrics": metrics}
    return found


def summarize(rows, task, options):
    """(the result of rows of predictions, as in metrics.json; their Scores)."""
    scores = score_rows(rows, task, options)
    (values,) = draw_scores([scores], options)
    metrics = {key: float(value[0]) for key, value in values.items()}
    if bad := [key for key, value in metrics.items() if not np.isfinite(value)]:
        raise UserError(f"{bad[0]} is {metrics[bad[0]]}, no number: a row cannot be scored")
    suffix = "_released" if options.rule == "released" and "_released" in scores.constants else ""
    headline, (text, constant) = task.name_score(options.rule), scores.constants[suffix]
    result = {
        "task": task.name,
        "task_sha256": task.hash_rules(),
        "n": len(rows),
        "rule": options.rule,
        "metric": headline,
        "score": metrics[headline],
        "metrics": metrics | {f"constant{key}": pair[1] for key, pair in scores.constants.items()},
        "constant": {"metric": headline, "prediction": text, "score": constant},
    }
    if halves := score_halves(scores, rows, headline):
        result["by"] = {"half": halves}
    if options.bootstrap:
        result["intervals"] = {key: find_interval(value[1:]) for key, value in values.items()}
    return result | scores.details | {"signature": show_signature(scores, options)}, scores


def show_signature(scores, options):
    """Everything that decides the numbers, as one line in sacrebleu's manner."""
    settings = {"rule": options.rule} | scores.settings
    settings |= {"bootstrap": options.bootstrap, "seed": options.seed, "version": 2}
    return "|".join(f"{key}:{value}" for key, value in settings.items())


# --- runs side by side -----------------------------------------------------------------------


def find_predictions(path, name):
    """The predictions file of a run folder, whose metrics.json must be this task's, or `path`."""
    path = Path(path)
    told = read_if_there(path / "metrics.json")
    if told and told.get("task") != name:
        raise UserError(f"{path / 'metrics.json'}: of task {told.get('task')!r}, not {name!r}")
    return path / "predictions.jsonl" if path.is_dir() else path


def find_difference(first, other):
    """{difference, its interval, p_value} of (1 + samples,) scores, the observed one first.

    p is two-sided, (c + 1) / (samples + 1): c counts the samples whose difference is at least as
    far from the observed one as that is from 0. Equal predictions give p = 1.
    """
    observed, drawn = (other - first)[0], (other - first)[1:]
    extreme = np.sum(np.abs(drawn - observed) >= abs(observed) - 1e-9)
    return {
        "difference": float(observed),
        "difference_interval": find_interval(drawn),
        "p_value": float((extreme + 1) / (len(drawn) + 1)),
    }


def compare_runs(options, task):
    """Paired bootstrap of two runs or more on the same rows: each one's scores with intervals,
    and its differences from the first with p-values, by Holm for as many comparisons."""
    paths = [find_predictions(path, task.name) for path in options.compare]
    read = [read_rows(path, options.data, task) for path in paths]
    keys = [[(row["source"], row["target"]) for row in rows] for rows in read]
    for path, mine in zip(paths, keys, strict=True):
        if mine != keys[0]:
            sizes = f"{len(keys[0]):,} and {plural(len(mine), 'row')}"
            raise UserError(f"{paths[0]} and {path}: not the same data ({sizes})")
    scored = [score_rows(rows, task, options) for rows in read]
    values, metrics, headline = draw_scores(scored, options), {}, task.name_score(options.rule)
    for key in (key for key in values[0] if all(key in value for value in values)):
        runs = metrics[key] = []
        for run, value in zip(options.compare, (value[key] for value in values), strict=True):
            told = {"run": str(run), "score": float(value[0]), "interval": find_interval(value[1:])}
            runs.append(told | (find_difference(values[0][key], value) if runs else {}))
        adjusted = adjust_holm([run["p_value"] for run in runs[1:]])
        for run, p_holm in zip(runs[1:], adjusted, strict=True):
            run["p_holm"] = p_holm
    head = {"task": task.name, "n": len(keys[0]), "rule": options.rule, "metric": headline}
    signature = show_signature(scored[0], options)
    return head | {"runs": metrics[headline], "metrics": metrics, "signature": signature}
