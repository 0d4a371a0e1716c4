"""Scoring rows: the four families of measures, intervals by the bootstrap, runs side by side."""

from pathlib import Path

import numpy as np

from data.evaluate.metrics import score_answers, score_classes, score_entities
from data.evaluate.paraphrase import score_paraphrase
from data.evaluate.rows import make_rows, read_rows
from data.files import UserError, read_json

METRICS = {
    "entities": score_entities,
    "classes": score_classes,
    "answers": score_answers,
    "paraphrase": score_paraphrase,
}


def score_rows(rows, task, options):
    """The Scores of Rows by the task's metric family."""
    return METRICS[task.metric](rows, task, options)


def bootstrap_sums(columns, samples, seed):
    """(samples, k) sums over rows drawn with replacement, n rows a sample; seeded."""
    n, rng, chunk = len(columns), np.random.default_rng(seed), 50
    columns, sums = columns.astype(float), []
    for start in range(0, samples, chunk):
        size = min(chunk, samples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        sums.append(weights.astype(float) @ columns)
    return np.concatenate(sums)


def find_interval(values):
    """The central 95% of bootstrap values, [low, high]."""
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


def show_signature(scores, options, rows):
    """Everything that decides the numbers, as one line in sacrebleu's manner."""
    decoded = any(
        (row.released_source, row.released_target) != (row.source, row.target) for row in rows
    )
    settings = {"rule": options.rule} | scores.settings
    settings |= {"released_side": "token-ids" if decoded else "text"}
    settings |= {"bootstrap": options.bootstrap, "seed": options.seed, "version": 2}
    return "|".join(f"{key}:{value}" for key, value in settings.items())


def find_predictions(path, name):
    """The predictions file of a run folder, whose metrics.json must be this task's, or `path`."""
    path = Path(path)
    told = path / "metrics.json"
    if told.exists() and read_json(told).get("task") != name:
        raise UserError(f"{told}: of task {read_json(told).get('task')!r}, not {name!r}")
    return path / "predictions.jsonl" if path.is_dir() else path


def adjust_holm(p_values):
    """Holm's adjusted p-values: the k-th smallest of m times m - k + 1, never falling."""
    order, adjusted, highest = np.argsort(p_values), {}, 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(p_values) - rank)))
        adjusted[int(i)] = highest
    return [adjusted[i] for i in range(len(p_values))]


def find_difference(first, other):
    """{difference, interval, p_value} of (1 + samples,) scores, the observed one first.

    p is two-sided, (c + 1) / (samples + 1): c counts the samples whose difference is at least as
    far from the observed one as that is from 0. Equal predictions give p = 1.
    """
    observed, drawn = (other - first)[0], (other - first)[1:]
    extreme = np.sum(np.abs(drawn - observed) >= abs(observed) - 1e-9)
    p_value = float((extreme + 1) / (len(drawn) + 1))
    return {
        "difference": float(observed),
        "interval": find_interval(drawn),
        "p_value": p_value,
    }


def compare_runs(options, task):
    """Paired bootstrap of two runs or more on the same rows: each one's scores with intervals,
    and its differences from the first with p-values, by Holm for as many comparisons."""
    paths = [find_predictions(path, task.name) for path in options.compare]
    read = [read_rows(path, options.data, task) for path in paths]
    for path, rows in zip(paths, read, strict=True):
        if [(r["source"], r["target"]) for r in rows] != [
            (r["source"], r["target"]) for r in read[0]
        ]:
            sizes = f"{len(read[0]):,} and {len(rows):,} rows"
            raise UserError(f"{paths[0]} and {path}: not the same data ({sizes})")
    limit = options.max_target_length
    made = [make_rows(rows, options.released_vocabulary, limit) for rows in read]
    scored = [score_rows(rows, task, options) for rows in made]
    columns = np.hstack([scores.columns for scores in scored])
    sums = np.vstack([columns.sum(0), bootstrap_sums(columns, options.bootstrap, options.seed)])
    sums, n = np.split(sums, len(scored), axis=1), len(read[0])
    values = [scores.finish(part, n) for scores, part in zip(scored, sums, strict=True)]
    keys = [key for key in values[0] if all(key in value for value in values)]
    metrics = {}
    for key in keys:
        runs = [
            {
                "run": str(run),
                "score": float(value[key][0]),
                "interval": find_interval(value[key][1:]),
            }
            for run, value in zip(options.compare, values, strict=True)
        ]
        found = [find_difference(values[0][key], value[key]) for value in values[1:]]
        adjusted = adjust_holm([one["p_value"] for one in found])
        for run, one, p_holm in zip(runs[1:], found, adjusted, strict=True):
            run |= {**one, "difference_interval": one["interval"], "interval": run["interval"]}
            run["p_holm"] = p_holm
        metrics[key] = runs
    headline, signature = scored[0].headline, show_signature(scored[0], options, made[0])
    head = {"task": task.name, "n": n, "rule": options.rule, "metric": headline}
    return head | {"runs": metrics[headline], "metrics": metrics, "signature": signature}
