"""What a reader must know to read the numbers: the notes below each table and beside each figure.

Paper:  Tables 2, 3, 4, 9, 10 and 11, Figures 2 to 7, the section on limitations

Notes are lists of `condition and sentence`: a sentence stands where its condition holds.
"""

import itertools
import re

from data.costs.flags import tell_scale
from data.costs.grid import LLM_EXAMPLES, LLM_TEST_ROWS, parse_seeds
from data.costs.prices import show_dollars
from data.files import DATA, need, read_json
from data.plots.paired import tell_differences
from data.plots.results import TITLES
from data.plots.tables import show_count

STRATEGIES = {
    "small": "Ann.",
    "teacher": "Teacher",
    "dist": "Dist.",
    "self": "Self-Dist.",
    "distilbert": "DistilBERT",
    "bert": "BERT",
    "llm": "LLM",
    "encoder": "Dist. into an encoder",
}
# The sentences of notes and captions, with {words} that hang on the runs.
TEXTS = read_json(DATA / "plots" / "texts.json")


def tell(key, **words):
    """A sentence with its words, e.g. tell("few_rows", most=200)."""
    return TEXTS[key].format(**words)


def keep(notes):
    """The sentences that are there, each once."""
    return list(dict.fromkeys(filter(None, notes)))


def note_metrics(studies):
    """One note a metric: what it is and which tasks have it, on how many rows."""
    metrics = {}
    for study in studies:
        if study.first:  # all of its runs are scored on as many rows
            shown = f"{study.title} ({study.first[1]:,} test rows)"
            metrics.setdefault(study.metric, []).append(shown)
    for metric, where in metrics.items():
        yield f"{TITLES[metric]}, {', '.join(where)}: {TEXTS['metrics'][metric]}."


def note_halves(study):
    """Ann. and Dist. at each N on each half of the test rows, where all runs are scored on both."""
    arms = [[study.score(cell, kind) for cell in study.cells] for kind in ("small", "dist")]
    scores = [score for arm in arms for score in arm]
    known = dict.fromkeys(key for s in scores for m in s.found for key in sorted(m["metrics"]))
    halves = [
        key
        for key in known
        if key.endswith(" half") and all(len(s.values(key)) == len(s.runs) for s in scores)
    ]
    for half, n in itertools.product(halves, dict.fromkeys(c.labels for c in study.cells)):
        shown = [[s.show_mean(half) or "N/A" for s in arm if s.cell.labels == n] for arm in arms]
        ann, dist = map(", ".join, shown)
        yield f"{study.title}, N={n:,}, the {half} of the rows: Ann. {ann}; Dist. {dist}."


def note_missing(studies):
    """How many runs are there, and the names of the first that are not."""
    runs = [(study, run.name) for study in studies for run in study.runs]
    gone = [f"{study.task.name}/{run}" for study, run in runs if not study.load(run)]
    more = f" and {len(gone) - 3} more" if len(gone) > 3 else ""
    if gone:
        yield f"{len(gone)} of {len(runs)} runs missing: {', '.join(gone[:3])}{more}."


def note_signatures(studies):
    """The scorer's settings of each task; several of one task would not be comparable."""
    for study in studies:
        found = sorted({metrics["signature"] for metrics in study.read.values() if metrics})
        # An encoder's output is a class, a T5's token ids: the released rule reads each as it is.
        if len({re.sub(r"released_side:[^|]*", "", signature) for signature in found}) > 1:
            text = f"{study.title}: scored with {len(found)} different settings, so these numbers"
            yield f"{text} can't be compared; run evaluate.py again"
        yield from (f"Scorer, {study.title}: {one.replace('|', ' | ')}" for one in found)


def note_printed(study):
    """What there is to say about values that the paper prints, or that can't be read in it."""
    for row in study.printed:
        if row["note"] and row["strategy"] != "existing":  # there it is where they come from
            what = f"{study.title}, {STRATEGIES[row['strategy'].removesuffix('-full')]}"
            note = row["note"].rstrip(".")
            yield f"Paper's value, {what}, N={show_count(row['labels'])}: {note}."


def list_plans(studies):
    """Notes of the cells on models that are left out and hours that are estimated."""
    notes = (note for study in studies for cell in study.cells for note in cell.notes)
    return [note for note in notes if not note.endswith(" exist")]  # the cells show those


def note_weak_teachers(studies):
    """Where the teacher scores below the compact model on the same labels, in Tables 2 and 11."""
    for study in studies:
        plain = {cell.labels: cell for cell in study.cells if cell.budget_usd == 0}
        teachers = {cell.labels: cell for cell in study.cells if cell.runs.get("teacher")}
        for n in sorted(plain.keys() & teachers.keys()):
            student = study.score(plain[n], "small").mean()
            teacher = study.score(teachers[n], "teacher").mean()
            if None not in (student, teacher) and teacher < student:
                yield tell("weak_teacher", title=study.title, n=n)


def tell_source(args):
    """Whose text it is, where that is not the made-up world's; None where it is."""
    mini = f" {TEXTS['mini']}" * (args.scale == "mini")
    return f"Text and labels from {args.data}.{mini}" if args.data else None


def note_tests(groups, first="Ann.", second="Dist."):
    """What the paired test says of [(what, {words: Difference})], who wins how many of these cells,
    and how it is tested."""
    cells = [found for _, tested in groups for found in tested.values()]
    if not cells:
        return [TEXTS["no_test"]]
    won = [found.mean > 0 for found in cells if found.decided]
    counts = {"second": won.count(True), "first": won.count(False), "ties": len(cells) - len(won)}
    most = max(found.seeds for found in cells)
    return [
        *(tell_differences(*group, first, second) for group in groups if group[1]),
        tell("wins", cells=len(cells), names=(first, second), counts=counts),
        TEXTS["test"] + TEXTS["one_seed" if most == 1 else "more_seeds"],
    ]


def note_table(args, studies, own):
    """The notes of a table of scores; `own` are those of its layout."""
    seeds, mini = parse_seeds(args.seeds), args.scale != "paper"
    spread = f"mean ± standard deviation over {len(seeds)} seeds; (1/{len(seeds)}): of one of them"
    spread = f"one seed ({seeds[0]}), so no spread" if len(seeds) == 1 else spread
    scale = tell_scale(args.scale, all(study.own for study in studies))
    scale += f" {TEXTS['sample']}" * any(study.printed for study in studies)
    scores = [study.score(c, s) for study in studies for c in study.cells for s in c.runs]
    return keep(
        [
            f"In percent; {spread}.",
            any(score.has_released() for score in scores) and TEXTS["rules"],
            *note_metrics(studies),
            any(s.is_below_constant() for s in scores) and TEXTS["below"],
            *own,
            *note_missing(studies),
            mini and scale,
            *note_weak_teachers(studies),
            tell_source(args),
            *list_plans(studies),
            *(note for study in studies for note in note_printed(study)),
            *note_signatures(studies),
        ]
    )


def write_caption(figure, studies):
    """What is drawn, with the counts and the dollars of these cells."""
    cells = [cell for study in studies for cell in study.cells]
    counts = dict.fromkeys(cell.labels for cell in cells if "small" in cell.runs)
    dollars = {study.title: max(c.budget_usd or 0 for c in study.cells) for study in studies}
    several = len(set(dollars.values())) > 1
    shown = [show_dollars(usd) + f" ({t})" * several for t, usd in dollars.items() if usd]
    budgets = ", ".join(dict.fromkeys(shown))
    own = figure == "fig2" and all(study.own for study in studies)
    key = "fig2_own" if own else figure
    return tell(key, counts=", ".join(map(show_count, counts)), budgets=budgets)


def note_annotators(study):
    """Who labeled, what that came to, and what the same dollars buy at today's prices."""
    told = study.read_annotations()
    asked, valid = (sum(need(f, key, int, p) for p, f in told) for key in ("items", "valid"))
    if told:
        name = f"{study.title}: {study.name_annotator()}"
        yield f"{name}; {valid:,} of {asked:,} answers were labels."
    bought = next(filter(None, map(study.count_llm_labels, study.cells)), {})
    counts = ", ".join(f"{count:,} ({name})" for name, count in bought.items())
    if bought:
        budget = show_dollars(max(cell.budget_usd or 0 for cell in study.cells))
        text = f"{study.title}: {budget} buys {counts} LLM labels; drawn: {study.name_paid()}, as"
        yield f"{text} far as there are unlabeled rows."


def note_rows(scores):
    """On which test rows Figure 7 scores the compact model."""
    own = [score for score in scores if score.strategy == "small" and score.there]
    same = own and all(score.on_part for score in own)
    counts = {score.count_rows() for score in scores if score.strategy == "prompted"} - {None}
    rows = " or ".join(map(str, sorted(counts or {LLM_TEST_ROWS})))
    return tell("same_rows" if same else "other_rows", rows=rows)


def note_figure(args, studies, scores, missing):
    """The notes of a figure whose points are `scores`; `missing` are runs, TASK/RUN."""
    figure, seeds, mini = args.command, parse_seeds(args.seeds), args.scale != "paper"
    names = dict.fromkeys(
        s.study.released if args.rule == "released" and s.has_released() else s.study.metric
        for s in scores
        if s.there
    )
    bars = f"mean over {len(seeds)} seeds, bars: a standard deviation"
    if len(seeds) == 1:
        bars = f"one seed ({seeds[0]}), so no spread; bars: 95% interval over test rows, where "
        bars += "metrics.json has one"
    own = all(study.own for study in studies)
    plans = list_plans(studies)
    short = [s for s in scores if any(note.endswith(" exist") for note in s.list_notes())]
    runs = {(s.study.task.name, run.name) for s in scores for run in s.runs}
    by_llm = figure in ("fig6", "fig7")
    return keep(
        [
            f"Scores: {', '.join(names)} on test, by the {args.rule} rule; {bars}.",
            "Dollars: initial labels and what the plan spends beside them, at "
            f"{'today' if own else 'the paper'}'s prices.",
            mini and tell_scale(args.scale, own) + TEXTS["not_drawn"] * (not own),
            not mini and any(study.printed for study in studies) and TEXTS["hollow"],
            figure not in ("fig2", "fig7") and TEXTS["dodged"],
            tell_source(args),
            *(note for study in studies if by_llm for note in note_annotators(study)),
            by_llm and tell("prompts", examples=LLM_EXAMPLES),
            figure == "fig7" and note_rows(scores),
            plans and "Plans: " + "; ".join(dict.fromkeys(plans)) + ".",
            any("parameter counts" in note for note in plans) and TEXTS["sizes"],
            short and tell("short", short=len(short), points=len(scores)),
            missing and tell("gone", gone=len(missing), runs=len(runs)),
            TEXTS["limits"],
        ]
    )
