"""What a reader must know to read the numbers: the notes below each table and beside each figure.

Reads:  nothing; it is handed the Studies of data/plots/results.py
Paper:  Tables 2, 3, 4, 9, 10 and 11, Figures 2 to 7, the section on limitations

Notes are lists of `condition and sentence`: a sentence stands where its condition holds.
"""

import re

from data.costs.flags import tell_scale
from data.costs.grid import LLM_EXAMPLES, LLM_TEST_ROWS, parse_seeds
from data.costs.prices import show_dollars
from data.files import need
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
METRICS = {
    "entity_f1": "an entity counts if its text and its label are right; micro",
    "micro_f1": "micro F1 over classes, which is the share of right rows; macro F1 beside it",
    "accuracy": "share of right rows; an output that is no label is wrong",
    "f1": "F1 over the words of an answer, as in SQuAD; exact match (EM) beside it",
    "bert_ibleu": "likeness to the source by BERTScore, less its copying by BLEU",
}
RULES = "Strict: our scorer, to believe. Released: the rule of the authors' scorer, to compare."
LIMITS = (
    "Limits, the paper's own: GPUs are rented, not hosted; wages and prices stay as they are; a "
    "compressed model can amplify its teacher's bias, so test for that before using one; energy "
    "and carbon are not counted."
)
SAMPLE = (
    "The paper's values are T5 v1.1 on the real task at ten times the counts, by the released "
    "rule: compare the pattern, not the numbers."
)


SIZES = (
    "The counts are T5 v1.1's: 77M, 248M, 783M, 2.9B and 11.1B, which the paper rounds to 60M, "
    "220M, 770M, 3B and 11B."
)


def keep(notes):
    """The sentences that are there, each once."""
    return list(dict.fromkeys(filter(None, notes)))


# --- of tables and figures -----------------------------------------------------------------


def note_metrics(studies):
    """One note a metric: what it is and which tasks have it, on how many rows."""
    metrics = {}
    for study in studies:
        rows = {found["n"] for run, found in study.read.items() if found and "prompted" not in run}
        shown = [f"{study.title} ({n:,} test rows)" for n in sorted(rows)]
        metrics.setdefault(study.metric, []).extend(shown)
    for metric, where in metrics.items():
        if where:
            yield f"{TITLES[metric]}, {', '.join(where)}: {METRICS[metric]}."


def note_halves(study):
    """Ann. and Dist. at each N on each half of the test rows, where all runs are scored on both."""
    scores = [study.score(cell, kind) for kind in ("small", "dist") for cell in study.cells]
    found = dict.fromkeys(key for s in scores for m in s.found for key in sorted(m["metrics"]))
    for half in (key for key in found if key.endswith(" half")):
        whole = all(len(score.values(half)) == len(score.runs) for score in scores)
        for n in dict.fromkeys(cell.labels for cell in study.cells if whole):
            shown = {"small": [], "dist": []}
            for score in scores:
                if score.cell.labels == n:
                    shown[score.strategy].append(score.show_mean(half) or "N/A")
            ann, dist = (", ".join(each) for each in shown.values())
            yield f"{study.title}, N={n:,}, the {half} of the rows: Ann. {ann}; Dist. {dist}."


def note_missing(studies):
    """How many runs are there, and the names of the first that are not."""
    runs = [(study, run) for study in studies for run in study.list_runs()]
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
        yield from (f"Scorer, {study.title}: {signature}" for signature in found)


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


REAL_TEXT = (
    "The models of scale mini know a made-up world alone: here they show that all fits together, "
    "not which strategy wins; SCALE=middle tells that."
)


def note_weak_teachers(studies):
    """Where the teacher scores below the compact model on the same labels, in Tables 2 and 11."""
    for study in studies:
        plain = {cell.labels: cell for cell in study.cells if cell.budget_usd == 0}
        teachers = {cell.labels: cell for cell in study.cells if cell.runs.get("teacher")}
        for n in plain.keys() & teachers.keys():
            student = study.score(plain[n], "small").mean()
            teacher = study.score(teachers[n], "teacher").mean()
            if None not in (student, teacher) and teacher < student:
                yield (
                    f"{study.title}, N={n:,}: the teacher is below the compact model on the same "
                    "labels, so it has nothing to hand on: its training falls short "
                    "(TEACHER_FLAGS, make sweep STRATEGY=teacher), or it does not fit this text."
                )


def note_table(args, studies, own):
    """The notes of a table of scores; `own` are those of its layout."""
    seeds, mini = parse_seeds(args.seeds), args.scale != "paper"
    spread = f"mean ± standard deviation over {len(seeds)} seeds; (1/{len(seeds)}): of one of them"
    spread = f"one seed ({seeds[0]}), so no spread" if len(seeds) == 1 else spread
    scale = tell_scale(args.scale, all(study.own for study in studies))
    scale += f" {SAMPLE}" * any(study.printed for study in studies)
    scores = [study.score(c, s) for study in studies for c in study.cells for s in c.runs]
    real = f"Text and labels from {args.data}." + f" {REAL_TEXT}" * (args.scale == "mini")
    return keep(
        [
            f"In percent; {spread}.",
            any(score.has_released() for score in scores) and RULES,
            *note_metrics(studies),
            any(s.is_below_constant() for s in scores) and "↓: below the constant predictor.",
            *own,
            *note_missing(studies),
            mini and scale,
            *note_weak_teachers(studies),
            args.data and real,
            *list_plans(studies),
            *(note for study in studies for note in note_printed(study)),
            *note_signatures(studies),
        ]
    )


# --- of figures ----------------------------------------------------------------------------

CAPTIONS = {
    "fig2": "Figure 2. Pareto curves. Along a line, from left to right, L = {counts} labels; U: "
    "unlabeled rows. Frontier: points that none beats at the same dollars or fewer, joined "
    "straight.",
    "own": "Figure 2. Pareto curves of Table 2's runs: Ann., more and more labels; Dist., from "
    "N = {counts} labels, more and more unlabeled rows. Frontier: points that none beats at the "
    "same dollars or fewer, joined straight.",
    "fig3": "Figure 3. N initial labels, then a fixed additional budget (above each panel) for "
    "more labels (Ann.) or for a teacher and a distillation (Dist.). N/A: it doesn't cover them.",
    "fig4": "Figure 4. Compact models of several sizes, one teacher; additional dollars: "
    "{budgets}. Upper axis: where N and all of these dollars are spent.",
    "fig5": "Figure 5. Teachers of several sizes, one compact model; additional dollars: "
    "{budgets}. Upper axis: where N and all of these dollars are spent.",
    "fig6": "Figure 6. Additional dollars ({budgets}) for labels of people (Ann.), for a teacher "
    "and a distillation (Dist.) or for labels of an LLM, beside N labels of people or alone.",
    "fig7": "Figure 7. Compact model on {counts} labels, and an LLM's own answers to test rows (32 "
    "examples in its prompt).",
}


def write_caption(figure, studies):
    """What is drawn, with the counts and the dollars of these cells."""
    cells = [cell for study in studies for cell in study.cells]
    counts = dict.fromkeys(cell.labels for cell in cells if "small" in cell.runs)
    dollars = {study.title: max(c.budget_usd or 0 for c in study.cells) for study in studies}
    several = len(set(dollars.values())) > 1
    shown = [show_dollars(usd) + f" ({t})" * several for t, usd in dollars.items() if usd]
    budgets = ", ".join(dict.fromkeys(shown))
    figure = "own" if figure == "fig2" and all(study.own for study in studies) else figure
    return CAPTIONS[figure].format(counts=", ".join(map(show_count, counts)), budgets=budgets)


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
        text = f"{study.title}: {budget} buys {counts} LLM labels; the first is drawn, the others"
        yield f"{text} may be more than the unlabeled rows."


def note_rows(scores):
    """On which test rows Figure 7 scores the compact model."""
    own = [score for score in scores if score.strategy == "small" and score.there]
    if own and all(score.is_part() for score in own):
        return f"Both are scored on the same {LLM_TEST_ROWS} test rows, as in the paper."
    return (
        f"The LLM is scored on {LLM_TEST_ROWS} test rows and the compact model on all of them, as "
        "its rows are not known one by one: run evaluate.py again on both."
    )


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
    theirs = " The paper's points are not drawn: they are T5 on real text, at other dollars."
    real = f"Text and labels from {args.data}." + f" {REAL_TEXT}" * (args.scale == "mini")
    plans = list_plans(studies)
    short = [s for s in scores if any(note.endswith(" exist") for note in s.cell.notes)]
    runs = {(s.study.task.name, run.name) for s in scores for run in s.runs}
    by_llm = figure in ("fig6", "fig7")
    return keep(
        [
            f"Scores: {', '.join(names)} on test, by the {args.rule} rule; {bars}.",
            "Dollars: initial labels and what the plan spends beside them, at "
            f"{'today' if own else 'the paper'}'s prices.",
            mini and tell_scale(args.scale, own) + theirs * (not own),
            not mini
            and any(study.printed for study in studies)
            and "Hollow and grey: printed in the paper at these counts, scored by its rule.",
            figure not in ("fig2", "fig7")
            and "Dots of one N stand side by side where they would hide each other.",
            args.data and real,
            *(note for study in studies if by_llm for note in note_annotators(study)),
            by_llm
            and f"An LLM's prompts draw on {LLM_EXAMPLES} labeled rows, which are in its dollars.",
            figure == "fig7" and note_rows(scores),
            plans and "Plans: " + "; ".join(dict.fromkeys(plans)) + ".",
            any("parameter counts" in note for note in plans) and SIZES,
            short
            and f"{len(short)} of {len(scores)} points have fewer labels or unlabeled rows than "
            "planned, all that exist (column Note of the CSV file).",
            missing
            and f"{len(missing)} of {len(runs)} runs missing: points are means of the others, "
            "lines stop where there are none.",
            LIMITS,
        ]
    )
