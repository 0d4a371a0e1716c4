"""The measures of evaluate.py, whose text describes them: strict rules and the released scorer's.

Each score_FAMILY(rows, task, options) turns rows into additive statistics and a function from
their sums to scores, so that the same code scores a test set and its bootstrap samples. Three
rows of classes a and b, targets a a b, outputs a b ?, where ? is no label:

    columns (3, 6)    target    output    hit       finish(sums (6,), 3)
                      a  b      a  b      a  b
    row 1             1  0      1  0      1  0      accuracy = sum of hits / 3 = 1 / 3
    row 2             1  0      0  1      0  0      F1 of a = 2 * 1 / (2 + 1), F1 of b = 0 / (1 + 1)
    row 3             0  1      0  0      0  0      macro F1 = (2 / 3 + 0) / 2 = 1 / 3
    sums              2  1      1  1      1  0      invalid = 1 - (1 + 1) / 3 = 1 / 3

A bootstrap sample is another sum of rows of `columns`; (1000, 6) sums give 1000 scores at once.
"""

import functools
import re
import string
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data.files import UserError

NONE = -1  # the class of an output that is no label, and of a row or pair that is no hit


class Row(NamedTuple):
    """One example: what the strict rule compares, and what the released one does."""

    source: str
    target: str  # a list where a task of answers has several
    prediction: str
    generated: str  # before restoring; None where the prediction was not restored from one
    released_source: str  # as the model's token ids give them back, where it is known
    released_target: str
    released_output: str
    half: str = None  # which part of the rows it is of, where the data has two


class Scores(NamedTuple):
    """Additive statistics of a task's rows and how their sums become scores.

    columns (n, k): statistics of each row; finish: sums (..., k), row count -> {key: (...)}, 0-100.
    constants: {"" and "_released": (text, score)} of the best constant; settings: the signature's.
    parts (n, 2): the strict score is 100 * sum of the first over sum of the second column.
    invalid (n,): outputs that are none of the task's form; details: more for metrics.json.
    """

    columns: np.ndarray
    finish: Callable
    headline: str
    constants: dict
    settings: dict
    parts: np.ndarray
    invalid: np.ndarray
    details: dict


def find_default(task):
    """The label that the released rule takes for no label; the first if the entry names none."""
    return task.paper_default_label or task.labels[0]


# --- arithmetic -----------------------------------------------------------------------------


def to_percent(part, whole):
    """100 * part / whole elementwise; 0 where the whole is 0, as scikit-learn and seqeval do."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    zeros = np.zeros(np.broadcast(part, whole).shape)
    return 100 * np.divide(part, whole, out=zeros, where=whole > 0)


def average_f1(hits, predicted, gold):
    """Macro F1, 0-100, of counts (..., classes), over classes with a target or an output."""
    scores = to_percent(2 * hits, predicted + gold)
    return scores.sum(-1) / np.maximum((predicted + gold > 0).sum(-1), 1)


def count_classes(rows, classes, n, size):
    """(n, size) counts from parallel lists of row numbers and class ids; NONE counts nowhere."""
    rows, classes = np.asarray(rows, int), np.asarray(classes, int)
    keep = classes != NONE
    counts = np.bincount(rows[keep] * size + classes[keep], minlength=n * size)
    return counts.reshape(n, size)


def count_hits(rows, gold, predicted, n, size):
    """(n, 3 x size) counts of targets, outputs and hits of each class."""
    hits = [g if g == p else NONE for g, p in zip(gold, predicted, strict=True)]
    return np.hstack([count_classes(rows, ids, n, size) for ids in (gold, predicted, hits)])


def count_each(values):
    """(n, 2) parts of a score that is the mean of `values`, 0-1 each."""
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


def describe_classes(labels, gold, predicted, hits):
    """{label: precision, recall, F1 and support} from counts of each label."""
    columns = {
        "precision": to_percent(hits, predicted),
        "recall": to_percent(hits, gold),
        "f1": to_percent(2 * np.asarray(hits), np.asarray(gold) + predicted),
        "support": np.asarray(gold),
    }
    return {
        label: {key: values[i].item() for key, values in columns.items()}
        for i, label in enumerate(labels)
    }


# --- entities -------------------------------------------------------------------------------


def make_brackets(labels):
    """{"[Cell Line]": "Cell Line", ...}: the label that each bracketed text stands for."""
    return {f"[{' '.join(label.split())}]": label for label in labels}


@functools.cache
def find_words(several):
    """A pattern of words; each of `several` bracketed labels of more than one word is a word."""
    spaced = (r"\s+".join(map(re.escape, label.split())) + r"(?!\S)" for label in several)
    return re.compile("|".join([*spaced, r"\S+"]), re.IGNORECASE)


def split_words(text, brackets):
    """The words of a text; a label of several words, in its brackets and any case, is one."""
    several = tuple(label for label in brackets if " " in label)
    if not several:
        return text.split()
    return [" ".join(word.split()) for word in find_words(several).findall(text)]


def parse_entities(text, brackets):
    """[(entity text, label)] in order, and the words after the last label.

    'HeLa cells [Cell Line] TP1 [Gene] and' is [('HeLa cells', 'Cell Line'), ('TP1', 'Gene')] and
    ['and'], with `brackets` as make_brackets(["Cell Line", "Gene"]) gives them.
    """
    entities, words = [], []
    for word in split_words(text, brackets):
        if word in brackets:
            entities.append((" ".join(words), brackets[word]))
            words = []
        else:
            words.append(word)
    return entities, words


def parse_released(text, brackets):
    """{entity text without its last word: upper-case bracketed label}, as the released scorer's.

    'cold water [Reagent] Mix [Action] ice [Size]' is {'cold': '[REAGENT]', '': '[SIZE]'}: later
    entities overwrite earlier ones, and all entities of one word share the empty text. Labels are
    compared in upper case, entity texts as they are. A label that opens the text has no words
    before it, but the released slice then ends at -1: its key is all but the last word.
    """
    words, entities, start = split_words(text, brackets), {}, 0
    for end, word in enumerate(words):
        if "[" in word and "]" in word and f"[{word[1:-1].upper()}]" in brackets:
            entities[" ".join(words[start : end - 1])] = f"[{word[1:-1].upper()}]"
            start = end + 1
    return entities


def is_invalid(entities, leftover, source):
    """True if an entity output breaks the format: see the text of evaluate.py."""
    if leftover or any(not text for text, _ in entities):
        return True
    texts = (text for text, _ in entities if "[" in text)
    made_up = (word for text in texts for word in re.findall(r"(?<!\S)\[[^\[\]]+\](?!\S)", text))
    return any(word not in " ".join(source.split()) for word in made_up)


def match_entities(rows, golds, brackets):
    """(n, 7) counts, and {label: [hits, predicted, gold]} over all rows.

    The columns: hits, predicted, gold, invalid, hits and predicted of the raw outputs, exact rows.
    """
    counts, labels = [], {label: [0, 0, 0] for label in brackets.values()}
    for row, gold in zip(rows, golds, strict=True):
        predicted, leftover = parse_entities(row.prediction, brackets)
        invalid = is_invalid(predicted, leftover, row.source)
        gold, found = Counter(gold), Counter(predicted)
        shared = gold & found
        for i, entities in enumerate((shared, found, gold)):
            for (_, label), count in entities.items():
                labels[label][i] += count
        raw_hits, raw = shared.total(), len(predicted)
        if row.generated not in (None, row.prediction):
            raw_found = Counter(parse_entities(row.generated, brackets)[0])
            raw_hits, raw = (gold & raw_found).total(), raw_found.total()
        sizes = shared.total(), len(predicted), gold.total()
        counts.append((*sizes, invalid, raw_hits, raw, gold == found and not leftover))
    return np.array(counts), labels


def match_released_entities(rows, golds, brackets, default):
    """(n, 3 x labels) targets, outputs and hits of each label in the released scorer's pairs."""
    index = {label: i for i, label in enumerate(brackets)}
    numbers, gold, predicted = [], [], []
    for number, (row, want) in enumerate(zip(rows, golds, strict=True)):
        have = parse_released(row.released_output, brackets)
        for text, label in want.items():
            numbers.append(number)
            gold.append(index[label])
            predicted.append(index[have.get(text, default)])
    return count_hits(numbers, gold, predicted, len(rows), len(index))


def choose_constant_entity(golds):
    """(text, score) of the output of one entity with the best strict F1; exact, not sampled."""
    sentences = Counter(entity for gold in golds for entity in set(gold))
    if not sentences:
        return "", 0.0
    (text, label), hits = min(sentences.items(), key=lambda item: (-item[1], item[0]))
    total = len(golds) + sum(len(gold) for gold in golds)
    return f"{text} [{label}]", float(to_percent(2 * hits, total))


def choose_constant_released(golds, default, names):
    """The same by the released rule, which gives the pairs of the default label for nothing."""
    pairs = Counter(pair for gold in golds for pair in gold.items())
    free = Counter({text: n for (text, label), n in pairs.items() if label == default})
    gains = {pair: n - free[pair[0]] for pair, n in pairs.items()}
    (text, label), gain = min(
        gains.items(), key=lambda item: (-item[1], item[0]), default=(("", default), 0)
    )
    score = float(to_percent(free.total() + max(gain, 0), pairs.total()))
    if gain <= 0:
        return "", score
    return f"{text} _ [{names[label]}]" if text else f"[{names[label]}]", score


def score_entities(rows, task, options):
    """Strict entity F1 and the released scorer's, for targets 'Entity [Label] ...'.

    Target 'cold water [Reagent] Mix [Action]', output 'cold wine [Reagent] Mix [Action]': strict
    F1 is 2 * 1 / (2 + 2) = 50; released, both pairs ('cold' and '') are right: 100.
    """
    restored = any(row.generated is not None for row in rows)
    brackets = make_brackets(task.labels)
    names = {bracket.upper(): label for bracket, label in brackets.items()}
    default = find_default(task)
    missing = f"[{' '.join(default.split())}]".upper()
    golds = [parse_entities(row.target, brackets) for row in rows]
    note_odd_targets([bool(rest) for _, rest in golds])
    golds = [gold for gold, _ in golds]
    released_golds = [parse_released(row.released_target, names) for row in rows]
    counts, labels = match_entities(rows, golds, brackets)
    pairs = match_released_entities(rows, released_golds, names, missing)

    def finish(sums, n):
        hits, predicted, gold, invalid, raw_hits, raw, exact = np.moveaxis(sums[..., :7], -1, 0)
        targets, outputs, matched = np.split(sums[..., 7:], 3, axis=-1)
        scores = {
            "f1_released": to_percent(matched.sum(-1), targets.sum(-1)),
            "macro_f1_released": average_f1(matched, outputs, targets),
            "entity_f1": to_percent(2 * hits, predicted + gold),
            "entity_precision": to_percent(hits, predicted),
            "entity_recall": to_percent(hits, gold),
            "exact_match": to_percent(exact, n),
            "invalid_rate": to_percent(invalid, n),
        }
        unrestored = to_percent(2 * raw_hits, raw + gold)
        return scores | ({"entity_f1_unrestored": unrestored} if restored else {})

    constants = {"": choose_constant_entity(golds)}
    constants["_released"] = choose_constant_released(released_golds, missing, names)
    headline = {"strict": "entity_f1", "released": "f1_released"}[options.rule]
    settings = {"match": "multiset(text,label)", "case": "kept", "missing_released": default}
    settings |= {"characters": "restored" if restored else "as-given"}
    parts = np.stack([2 * counts[:, 0], counts[:, 1] + counts[:, 2]], axis=1)  # F1
    hits, predicted, gold = zip(*labels.values(), strict=True)
    details = {"classes": describe_classes(labels, gold, predicted, hits)}
    columns, invalid = np.hstack([counts, pairs]), counts[:, 3] > 0
    return Scores(columns, finish, headline, constants, settings, parts, invalid, details)


def note_odd_targets(odd):
    """Say so on stderr if a target has words that belong to no entity."""
    if any(odd):
        first = (
            f"{sum(odd):,} targets have words without a label, first in row {odd.index(True) + 1:,}"
        )
        print(f"note: {first}: these words are not scored", file=sys.stderr)


# --- classes --------------------------------------------------------------------------------


def find_class(text, index, otherwise):
    """The class id of a text, outer whitespace and case aside."""
    return index.get(text.strip().upper(), otherwise)


def index_released(rows, index):
    """Class ids by text as token ids write it: '<=50K' may be known as '=50K' alone."""
    written = dict(index)
    for row in rows:
        written.setdefault(row.released_target.strip().upper(), find_class(row.target, index, NONE))
    return written


def score_classes(rows, task, options):
    """Accuracy, or micro and macro F1, of outputs that are one label of the task.

    FEVER, targets SUPPORTS REFUTES REFUTES, outputs 'supports' 'no' 'SUPPORTS': strict accuracy is
    1 / 3; released, 'no' counts as the default label, REFUTES, and is right: 2 / 3.
    """
    labels, n = task.labels, len(rows)
    index = {label.upper(): i for i, label in enumerate(labels)}
    default = find_default(task)
    gold = [find_class(row.target, index, NONE) for row in rows]
    if NONE in gold:
        where = f"row {gold.index(NONE) + 1}: target {rows[gold.index(NONE)].target!r}"
        raise UserError(f"{where} is no label of this task; known: {', '.join(labels)}")
    predicted = [find_class(row.prediction, index, NONE) for row in rows]
    written, other = index_released(rows, index), index[default.upper()]
    sides = [(gold, predicted)]
    sides += [
        [
            [find_class(row.released_target, written, other) for row in rows],
            [find_class(row.released_output, written, other) for row in rows],
        ]
    ]
    columns = np.hstack([count_hits(range(n), *side, n, len(labels)) for side in sides])

    def finish(sums, n):
        gold, predicted, hits, *released = np.split(sums, 6, axis=-1)
        strict, released_right = to_percent(hits.sum(-1), n), to_percent(released[2].sum(-1), n)
        invalid = to_percent(n - predicted.sum(-1), n)
        if task.report == "accuracy":
            return {
                "accuracy_released": released_right,
                "accuracy": strict,
                "invalid_rate": invalid,
            }
        return {
            "micro_f1_released": released_right,
            "macro_f1_released": average_f1(released[2], released[1], released[0]),
            "micro_f1": strict,
            "macro_f1": average_f1(hits, predicted, gold),
            "invalid_rate": invalid,
        }

    headline = "accuracy" if task.report == "accuracy" else "micro_f1"
    headline += {"strict": "", "released": "_released"}[options.rule]
    best, count = min(Counter(gold).items(), key=lambda item: (-item[1], item[0]))
    constant = labels[best], float(to_percent(count, n))
    constants = {"": constant, "_released": constant}
    settings = {"case": "ignored", "invalid_released": default}
    parts = count_each([a == b for a, b in zip(gold, predicted, strict=True)])
    totals = np.split(columns.sum(0)[: 3 * len(labels)], 3)
    confusion = np.zeros((len(labels), len(labels) + 1), int)  # the last column: no label
    np.add.at(confusion, (gold, predicted), 1)
    details = {"classes": describe_classes(labels, *totals)}
    details["confusion"] = {"labels": [*labels, None], "counts": confusion.tolist()}
    invalid = np.array(predicted) == NONE
    return Scores(columns, finish, headline, constants, settings, parts, invalid, details)


# --- answers --------------------------------------------------------------------------------

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text):
    """The words of an answer by SQuAD's rules: lower case, no punctuation, no articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def match_answer(words, gold):
    """SQuAD 1.1's (EM, F1), 0-1, of two lists of normalised words."""
    if words == gold:
        return 1.0, float(words != [])
    shared = sum(min(words.count(word), gold.count(word)) for word in set(words))
    return 0.0, 2 * shared / (len(words) + len(gold)) if shared else 0.0


def match_answers(pairs):
    """((n, 2) EM and F1, the best constant) of pairs (target or list of targets, output)."""
    targets = [target if isinstance(target, list) else [target] for target, _ in pairs]
    golds = [[normalize_answer(target) for target in several] for several in targets]
    outputs = [normalize_answer(output) for _, output in pairs]
    scores = [
        np.max([match_answer(words, gold) for gold in several], axis=0)
        for words, several in zip(outputs, golds, strict=True)
    ]
    return np.array(scores), choose_constant_answer(targets, golds)


def score_answers(rows, task, options):
    """SQuAD's exact match and word F1 against the best of the targets.

    Target 'New York City', output 'the new york!': EM 0, F1 2 * 2 / (2 + 3) = 80. The released
    rule is the same, on targets as token ids give them back.
    """
    strict, constant = match_answers([(row.target, row.prediction) for row in rows])
    released = match_answers([(row.released_target, row.released_output) for row in rows])

    def finish(sums, n):
        keys = ("em_released", "f1_released", "em", "f1")
        return {key: to_percent(sums[..., i], n) for i, key in enumerate(keys)}

    columns = np.hstack([released[0], strict])
    headline = {"strict": "f1", "released": "f1_released"}[options.rule]
    constants, settings = {"": constant, "_released": released[1]}, {"normalization": "squad1.1"}
    parts, invalid = count_each(strict[:, 1]), np.zeros(len(rows), bool)
    return Scores(columns, finish, headline, constants, settings, parts, invalid, {})


def choose_constant_answer(targets, golds):
    """The better by F1 of: every single word (exactly), and the five most frequent answers."""
    words, n = Counter(), len(golds)
    for several in golds:
        best = {}
        for gold in several:
            for word in set(gold):
                best[word] = max(best.get(word, 0), 2 / (1 + len(gold)))
        words.update(best)
    answers = Counter(target for several in targets for target in several)
    found = [(score, word) for word, score in words.items()]
    for answer in sorted(answers, key=lambda answer: (-answers[answer], answer))[:5]:
        words = normalize_answer(answer)
        scores = (max(match_answer(words, gold)[1] for gold in several) for several in golds)
        found.append((sum(scores), answer))
    score, answer = min(found, key=lambda item: (-item[0], item[1]))
    return answer, float(to_percent(score, n))
