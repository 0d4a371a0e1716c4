"""The measures of evaluate.py, whose text describes them: strict rules and the released scorer's.

Each score_FAMILY(rows, task, options) turns rows into the parts of scores, whose sums over rows
give them, so that the same code scores a test set and its bootstrap samples. Three rows of classes
a and b, targets a a b, outputs a b ?, where ? is no label:

            accuracy    macro_f1: target    output    hit       accuracy = 1 / 3
                                  a  b      a  b      a  b      F1 of a = 2 * 1 / (2 + 1)
    row 1   1  1                  1  0      1  0      1  0      F1 of b = 0 / (1 + 1)
    row 2   0  1                  1  0      0  1      0  0      macro F1 = (2 / 3 + 0) / 2 = 1 / 3
    row 3   0  1                  0  1      0  0      0  0
    sums    1  3                  2  1      1  1      1  0

A bootstrap sample is another sum of rows; 1,000 sums of either kind give 1,000 scores at once.
"""

import re
import string
import sys
import unicodedata
from collections import Counter
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


class Scores(NamedTuple):
    """The parts of a task's scores and what stands beside them.

    parts: {key of a score: parts of each row as compute_score() takes their sums}.
    constants: {"" and "_released": (text, score)} of the best constant; settings: the signature's.
    invalid (n,): outputs that are none of the task's form; details: more for metrics.json.
    """

    parts: dict
    constants: dict
    settings: dict
    invalid: np.ndarray
    details: dict


# --- arithmetic -----------------------------------------------------------------------------


def to_percent(part, whole):
    """100 * part / whole elementwise; 0 where the whole is 0, as scikit-learn and seqeval do."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    zeros = np.zeros(np.broadcast(part, whole).shape)
    return 100 * np.divide(part, whole, out=zeros, where=whole > 0)


def compute_score(sums):
    """A score, 0-100, from sums over rows: (..., 2) of its numerators and denominators, or of
    count_pairs() (..., 3 C), whose macro F1 it is, over classes with a target or an output."""
    if sums.shape[-1] == 2:
        return to_percent(sums[..., 0], sums[..., 1])
    gold, predicted, hits = np.split(sums, 3, axis=-1)
    scores = to_percent(2 * hits, predicted + gold)
    return scores.sum(-1) / np.maximum((predicted + gold > 0).sum(-1), 1)


def make_parts(part, whole=1.0):
    """(n, 2) parts of a ratio of sums, of a mean over rows without `whole`."""
    return np.stack(np.broadcast_arrays(np.asarray(part, float), whole), axis=-1)


def count_pairs(pairs, n, size):
    """(n, 3 x size) counts of targets, outputs and hits of each class, from (row, class of the
    target, class of the output); NONE counts nowhere."""
    rows, gold, predicted = np.array(pairs, int).reshape(-1, 3).T
    counts = np.zeros((n, 3, size + 1), int)  # the last class is NONE
    for i, ids in enumerate((gold, predicted, np.where(gold == predicted, gold, NONE))):
        np.add.at(counts, (rows, i, ids), 1)
    return counts[:, :, :-1].reshape(n, -1)


def describe_classes(labels, gold, predicted, hits):
    """{label: precision, recall, F1 and support} from counts of each label."""
    keys = ("precision", "recall", "f1", "support")
    ratios = to_percent([hits, hits, 2 * hits], [predicted, gold, gold + predicted]).tolist()
    rows = zip(*ratios, gold.tolist(), strict=True)
    return {labels[i]: dict(zip(keys, row, strict=True)) for i, row in enumerate(rows)}


# --- entities -------------------------------------------------------------------------------


def parse_released(text, brackets):
    """{entity text without its last word: upper-case bracketed label}, as the released scorer's.

    'cold water [Reagent] Mix [Action] ice [Size]' is {'cold': '[REAGENT]', '': '[SIZE]'}: later
    entities overwrite earlier ones, and all entities of one word share the empty text. Labels are
    compared in upper case, entity texts as they are. A label that opens the text has no words
    before it, but the released slice then ends at -1: its key is all but the last word.
    """
    words, entities, start = text.split(), {}, 0
    for end, word in enumerate(words):
        label = f"[{word[1:-1].upper()}]"
        if "[" in word and "]" in word and label in brackets:
            entities[" ".join(words[start : end - 1])] = label
            start = end + 1
    return entities


def match_entities(rows, golds, brackets):
    """(Counters of the labels of targets, outputs and hits; of each row (n, 7) how many these are,
    hits and outputs of the raw output, whether it is exact and whether invalid)."""
    labels, found = (Counter(), Counter(), Counter()), []
    for row, gold in zip(rows, map(Counter, golds), strict=True):
        predicted, rest = split_entities(row.prediction, brackets)
        texts, predicted = [text for text, _ in predicted], Counter(predicted)
        invalid = rest or not all(texts) or find_made_up(texts, row.source)
        raw = predicted
        if row.generated is not None:
            raw = Counter(split_entities(row.generated, brackets)[0])
        sides = gold, predicted, gold & predicted
        for count, side in zip(labels, sides, strict=True):
            count.update(label for _, label in side.elements())
        totals = [side.total() for side in (*sides, gold & raw, raw)]
        found.append([*totals, gold == predicted and not rest, bool(invalid)])
    return labels, np.array(found)


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
    gains = [(n - free[text], text, label) for (text, label), n in pairs.items()]
    gain, text, label = min(gains, key=lambda one: (-one[0], *one[1:]), default=(0, "", default))
    score = float(to_percent(free.total() + max(gain, 0), pairs.total()))
    return f"{text} _ [{names[label]}]".removeprefix(" _ ") if gain > 0 else "", score


def score_entities(rows, task, options):
    """Strict entity F1 and the released scorer's, for targets 'Entity [Label] ...'.

    Target 'cold water [Reagent] Mix [Action]', output 'cold wine [Reagent] Mix [Action]': strict
    F1 is 2 * 1 / (2 + 2) = 50; released, both pairs ('cold' and '') are right: 100.
    """
    restored = any(row.generated is not None for row in rows)
    brackets, default = make_brackets(task.labels), task.paper_default_label or task.labels[0]
    names = {bracket.upper(): label for bracket, label in brackets.items()}
    missing = f"[{' '.join(default.split())}]".upper()
    golds, rests = zip(*(split_entities(row.target, brackets) for row in rows), strict=True)
    if odd := [number for number, rest in enumerate(rests, 1) if rest]:
        told = f"{len(odd)} targets have words without a label, first in row {odd[0]:,}"
        print(f"note: {told}: these words are not scored", file=sys.stderr)
    released_golds = [parse_released(row.released_target, names) for row in rows]
    labels, found = match_entities(rows, golds, brackets)
    gold, predicted, hits, raw_hits, raw, exact, invalid = found.T
    pairs = match_released(rows, released_golds, names, missing)
    released = count_pairs(pairs, len(rows), len(brackets))
    targets, _, matched = (each.sum(1) for each in np.split(released, 3, axis=1))
    parts = {
        "f1_released": make_parts(matched, targets),
        "macro_f1_released": released,
        "entity_f1": make_parts(2 * hits, predicted + gold),
        "entity_precision": make_parts(hits, predicted),
        "entity_recall": make_parts(hits, gold),
        "exact_match": make_parts(exact),
        "invalid_rate": make_parts(invalid),
    }
    if restored:
        parts["entity_f1_unrestored"] = make_parts(2 * raw_hits, raw + gold)
    constants = {"": choose_constant_entity(golds)}
    constants["_released"] = choose_constant_released(released_golds, missing, names)
    settings = {"match": "multiset(text,label)", "case": "kept", "missing_released": default}
    settings |= {"characters": "restored" if restored else "as-given"}
    counts = [[count[label] for label in task.labels] for count in labels]
    details = {"classes": describe_classes(task.labels, *np.array(counts))}
    return Scores(parts, constants, settings, invalid > 0, details)


# --- classes --------------------------------------------------------------------------------


def find_classes(texts, index, otherwise):
    """The class id of each text, outer whitespace and case aside."""
    return [index.get(text.strip().upper(), otherwise) for text in texts]


def score_classes(rows, task, options):
    """Accuracy, or micro and macro F1, of outputs that are one label of the task.

    FEVER, targets SUPPORTS REFUTES REFUTES, outputs 'supports' 'no' 'SUPPORTS': strict accuracy is
    1 / 3; released, 'no' counts as the default label, REFUTES, and is right: 2 / 3.
    """
    labels, n, size, head = task.labels, len(rows), len(task.labels), task.name_score()
    default = task.paper_default_label or labels[0]
    index = {unicodedata.normalize("NFC", label).upper(): i for i, label in enumerate(labels)}
    gold = find_classes((row.target for row in rows), index, NONE)
    predicted = find_classes((row.prediction for row in rows), index, NONE)
    written, other = dict(index), labels.index(default)
    for row, label in zip(rows, gold, strict=True):  # '<=50K' may be known as '=50K' alone
        written.setdefault(row.released_target.strip().upper(), label)
    released = find_classes((row.released_target for row in rows), written, other)
    said = find_classes((row.released_output for row in rows), written, other)
    parts, counts = {}, {}
    for suffix, sides in (("_released", (released, said)), ("", (gold, predicted))):
        parts[head + suffix] = make_parts(np.equal(*sides))
        counts[suffix] = count_pairs(np.transpose([range(n), *sides]), n, size)
        if head == "micro_f1":
            parts[f"macro_f1{suffix}"] = counts[suffix]
    invalid = np.equal(predicted, NONE)
    parts["invalid_rate"] = make_parts(invalid)
    best, count = min(Counter(gold).items(), key=lambda item: (-item[1], item[0]))
    constants = dict.fromkeys(("", "_released"), (labels[best], float(to_percent(count, n))))
    settings = {"case": "ignored", "invalid_released": default}
    confusion = np.zeros((size, size + 1), int)  # the last column: no label
    np.add.at(confusion, (gold, predicted), 1)
    details = {"classes": describe_classes(labels, *np.split(counts[""].sum(0), 3))}
    details["confusion"] = {"labels": [*labels, None], "counts": confusion.tolist()}
    return Scores(parts, constants, settings, invalid, details)


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

    keys = ("em_released", "f1_released", "em", "f1")
    columns = np.hstack([released[0], strict]).T
    parts = {key: make_parts(column) for key, column in zip(keys, columns, strict=True)}
    constants, settings = {"": constant, "_released": released[1]}, {"normalization": "squad1.1"}
    return Scores(parts, constants, settings, np.zeros(len(rows), bool), {})


def choose_constant_answer(targets, golds):
    """The better by F1 of: every single word (exactly), and the five most frequent answers."""
    words = Counter()
    for several in golds:
        several = sorted(several, key=len, reverse=True)  # the shortest with a word is its best
        words.update({word: 2 / (1 + len(gold)) for gold in several for word in gold})
    answers = Counter(target for several in targets for target in several)
    found = [(score, word) for word, score in words.items()]
    for answer in sorted(answers, key=lambda answer: (-answers[answer], answer))[:5]:
        words = normalize_answer(answer)
        scores = (max(match_answer(words, gold)[1] for gold in several) for several in golds)
        found.append((sum(scores), answer))
    score, answer = min(found, key=lambda item: (-item[0], item[1]))
    return answer, float(to_percent(score, len(golds)))
