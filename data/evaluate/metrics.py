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
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data.spans import find_made_up, make_brackets, split_entities

NONE = -1  # the class of an output that is no label


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


def count_pairs(pairs, n, size):
    """(n, 3 x size) counts of targets, outputs and hits of each class, from (row, class of the
    target, class of the output); NONE counts nowhere."""
    rows, gold, predicted = np.array(pairs, int).reshape(-1, 3).T
    counts = np.zeros((n, 3, size + 1), int)  # the last class is NONE
    for i, ids in enumerate((gold, predicted, np.where(gold == predicted, gold, NONE))):
        np.add.at(counts, (rows, i, ids), 1)
    return counts[:, :, :-1].reshape(n, -1)


def count_each(values):
    """(n, 2) parts of a score that is the mean of `values`, 0-1 each."""
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


def describe_classes(labels, gold, predicted, hits):
    """{label: precision, recall, F1 and support} from counts (labels,)."""
    keys = ("precision", "recall", "f1", "support")
    ratios = to_percent([hits, hits, 2 * hits], [predicted, gold, gold + predicted]).tolist()
    rows = zip(*ratios, gold.tolist(), strict=True)
    pairs = zip(labels, rows, strict=True)
    return {label: dict(zip(keys, row, strict=True)) for label, row in pairs}


# --- entities -------------------------------------------------------------------------------


def parse_released(text, brackets):
    """{entity text without its last word: upper-case bracketed label}, as the released scorer's.

    'cold water [Reagent] Mix [Action] ice [Size]' is {'cold': '[REAGENT]', '': '[SIZE]'}: later
    entities overwrite earlier ones, and all entities of one word share the empty text. Labels are
    compared in upper case, entity texts as they are. A label that opens the text has no words
    before it, but the released slice then ends at -1: its key is all but the last word. A label of
    several words, in its brackets and any case, is one word.
    """
    several = tuple(label for label in brackets if " " in label)
    words = compile_words(several).findall(text) if several else text.split()
    entities, start = {}, 0
    for end, word in enumerate(words):
        label = f"[{' '.join(word[1:-1].split()).upper()}]"
        if "[" in word and "]" in word and label in brackets:
            entities[" ".join(words[start : end - 1])] = label
            start = end + 1
    return entities


@functools.cache
def compile_words(several):
    """A pattern of words; each of `several` bracketed labels of more than one word is a word."""
    spaced = (r"\s+".join(map(re.escape, label.split())) + r"(?!\S)" for label in several)
    return re.compile("|".join([*spaced, r"\S+"]), re.IGNORECASE)


def match_entities(rows, golds, brackets):
    """(pairs of targets and outputs as count_pairs takes them, (n, 4) of each row: invalid, exact,
    hits and predicted of the raw output)."""
    ids = {label: i for i, label in enumerate(brackets.values())}
    pairs, others = [], []
    for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
        predicted, rest = split_entities(row.prediction, brackets)
        gold, found = Counter(gold), Counter(predicted)
        shared = gold & found
        pairs += [(number, ids[label], ids[label]) for _, label in shared.elements()]
        pairs += [(number, ids[label], NONE) for _, label in (gold - shared).elements()]
        pairs += [(number, NONE, ids[label]) for _, label in (found - shared).elements()]
        raw = found
        if row.generated not in (None, row.prediction):
            raw = Counter(split_entities(row.generated, brackets)[0])
        texts = [text for text, _ in predicted]
        invalid = rest or not all(texts) or find_made_up(texts, row.source)
        exact = gold == found and not rest
        others.append((bool(invalid), exact, (gold & raw).total(), raw.total()))
    return pairs, np.array(others)


def match_released(rows, golds, brackets, default):
    """The released scorer's pairs of each target's entities, as count_pairs takes them."""
    ids, pairs = {label: i for i, label in enumerate(brackets)}, []
    for number, (row, gold) in enumerate(zip(rows, golds, strict=True)):
        have = parse_released(row.released_output, brackets)
        for text, label in gold.items():
            pairs.append((number, ids[label], ids[have.get(text, default)]))
    return pairs


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
    brackets, n, size = make_brackets(task.labels), len(rows), len(task.labels)
    names = {bracket.upper(): label for bracket, label in brackets.items()}
    default = find_default(task)
    missing = f"[{' '.join(default.split())}]".upper()
    golds = [split_entities(row.target, brackets) for row in rows]
    odd = [number for number, (_, rest) in enumerate(golds, 1) if rest]
    if odd:
        told = f"{len(odd)} targets have words without a label, first in row {odd[0]:,}"
        print(f"note: {told}: these words are not scored", file=sys.stderr)
    golds = [gold for gold, _ in golds]
    released_golds = [parse_released(row.released_target, names) for row in rows]
    pairs, others = match_entities(rows, golds, brackets)
    released = match_released(rows, released_golds, names, missing)
    counts = [count_pairs(each, n, size) for each in (pairs, released)]

    def finish(sums, n):
        invalid, exact, raw_hits, raw = np.moveaxis(sums[..., -4:], -1, 0)
        *strict, targets, outputs, matched = np.split(sums[..., :-4], 6, axis=-1)
        gold, predicted, hits = (each.sum(-1) for each in strict)
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
    settings = {"match": "multiset(text,label)", "case": "kept", "missing_released": default}
    settings |= {"characters": "restored" if restored else "as-given"}
    gold, predicted, hits = np.split(counts[0], 3, axis=1)
    parts = np.stack([2 * hits.sum(1), (predicted + gold).sum(1)], axis=1)  # F1
    details = {"classes": describe_classes(task.labels, *np.split(counts[0].sum(0), 3))}
    columns = np.hstack([*counts, others])
    return Scores(columns, finish, constants, settings, parts, others[:, 0] > 0, details)


# --- classes --------------------------------------------------------------------------------


def find_class(text, index, otherwise):
    """The class id of a text, outer whitespace and case aside."""
    return index.get(text.strip().upper(), otherwise)


def score_classes(rows, task, options):
    """Accuracy, or micro and macro F1, of outputs that are one label of the task.

    FEVER, targets SUPPORTS REFUTES REFUTES, outputs 'supports' 'no' 'SUPPORTS': strict accuracy is
    1 / 3; released, 'no' counts as the default label, REFUTES, and is right: 2 / 3.
    """
    labels, n, size = task.labels, len(rows), len(task.labels)
    default, head = find_default(task), task.name_score()
    index = {unicodedata.normalize("NFC", label).upper(): i for i, label in enumerate(labels)}
    gold = [find_class(row.target, index, NONE) for row in rows]
    predicted = [find_class(row.prediction, index, NONE) for row in rows]
    written, other = dict(index), labels.index(default)
    for row, label in zip(rows, gold, strict=True):  # '<=50K' may be known as '=50K' alone
        written.setdefault(row.released_target.strip().upper(), label)
    released = [find_class(row.released_target, written, other) for row in rows]
    said = [find_class(row.released_output, written, other) for row in rows]
    sides = (gold, predicted), (released, said)
    counts = [count_pairs(np.transpose([range(n), *side]), n, size) for side in sides]

    def finish(sums, n):
        sides, scores = np.split(sums, 6, axis=-1), {}
        for suffix, (gold, predicted, hits) in (("_released", sides[3:]), ("", sides[:3])):
            scores[head + suffix] = to_percent(hits.sum(-1), n)
            if head == "micro_f1":
                scores[f"macro_f1{suffix}"] = average_f1(hits, predicted, gold)
        return scores | {"invalid_rate": to_percent(n - sides[1].sum(-1), n)}

    best, count = min(Counter(gold).items(), key=lambda item: (-item[1], item[0]))
    constants = dict.fromkeys(("", "_released"), (labels[best], float(to_percent(count, n))))
    settings = {"case": "ignored", "invalid_released": default}
    parts = count_each(np.equal(gold, predicted))
    confusion = np.zeros((size, size + 1), int)  # the last column: no label
    np.add.at(confusion, (gold, predicted), 1)
    details = {"classes": describe_classes(labels, *np.split(counts[0].sum(0), 3))}
    details["confusion"] = {"labels": [*labels, None], "counts": confusion.tolist()}
    invalid = np.equal(predicted, NONE)
    return Scores(np.hstack(counts), finish, constants, settings, parts, invalid, details)


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
    constants, settings = {"": constant, "_released": released[1]}, {"normalization": "squad1.1"}
    parts, invalid = count_each(strict[:, 1]), np.zeros(len(rows), bool)
    return Scores(columns, finish, constants, settings, parts, invalid, {})


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
