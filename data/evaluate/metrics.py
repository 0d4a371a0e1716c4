"""The measures of evaluate.py, whose text describes them: the right rules and the paper's.

Each score_FAMILY(rows, task, options) turns rows into additive statistics and a function from
their sums to scores, so that the same code scores a test set and its bootstrap samples.
"""

import functools
import hashlib
import importlib.util
import re
import string
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.files import UserError, read_json

NO_PREDICTION = "no prediction"  # stands for an empty paraphrase, as BERTScore needs a word


class Row(NamedTuple):
    """One example: what the right rule compares, and what the paper's rule does."""

    source: str
    target: str  # a list where a task of answers has several
    prediction: str
    generated: str  # before restoring; None where the prediction was not restored from one
    released_target: str
    released_output: str


class Scores(NamedTuple):
    """Additive statistics of a task's rows and how their sums become scores.

    columns (n, k): statistics of each row; finish: sums (..., k), row count -> {key: (...)}, 0-100.
    constants: {"" and "_released": (text, score)} of the best constant; settings: the signature's.
    parts (n, 2): the strict score is 100 * sum of the first over sum of the second column.
    """

    columns: np.ndarray
    finish: Callable
    headline: str
    constants: dict
    settings: dict
    parts: np.ndarray


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
    """(n, size) counts from parallel lists of row numbers and class ids; ids from `size` on are
    left out."""
    rows, classes = np.asarray(rows, int), np.asarray(classes, int)
    keep = classes < size
    counts = np.bincount(rows[keep] * size + classes[keep], minlength=n * size)
    return counts.reshape(n, size)


def count_each(values):
    """(n, 2) parts of a score that is the mean of `values`, 0-1 each."""
    return np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)


# --- entities -------------------------------------------------------------------------------


def parse_entities(text, labels):
    """[(entity text, label)] in order, and the words after the last label.

    `labels` maps the bracketed word to its label: {"[Action]": "Action"}.
    """
    entities, words = [], []
    for word in text.split():
        if word in labels:
            entities.append((" ".join(words), labels[word]))
            words = []
        else:
            words.append(word)
    return entities, words


def parse_released(text, labels):
    """{entity text without its last word: upper-case label}, as the released scorer reads a text.

    Later entities overwrite earlier ones, and all entities of one word share the empty text.
    Labels are compared in upper case, entity texts as they are. A label that opens the text has
    no words before it, but the released slice then ends at -1: its key is all but the last word.
    """
    words, entities, start = text.split(), {}, 0
    for end, word in enumerate(words):
        if "[" in word and "]" in word and word[1:-1].upper() in labels:
            entities[" ".join(words[start : end - 1])] = word[1:-1].upper()
            start = end + 1
    return entities


def is_invalid(entities, leftover, source):
    """True if an entity output breaks the format: see the module's text."""
    if leftover or any(not text for text, _ in entities):
        return True
    made_up = (word for text, _ in entities if "[" in text for word in text.split())
    return any(re.fullmatch(r"\[[^\[\]]+\]", word) and word not in source for word in made_up)


def count_shared(gold, predicted):
    """Size of the intersection of two multisets."""
    return len(gold) if gold == predicted else (Counter(gold) & Counter(predicted)).total()


def match_entities(rows, golds, brackets):
    """(n, 6) counts: hits, predicted, gold, invalid, and hits and predicted of the raw outputs."""
    counts = []
    for row, gold in zip(rows, golds, strict=True):
        predicted, leftover = parse_entities(row.prediction, brackets)
        invalid = is_invalid(predicted, leftover, row.source)
        raw, hits = predicted, count_shared(gold, predicted)
        if row.generated not in (None, row.prediction):
            raw, _ = parse_entities(row.generated, brackets)
        raw_hits = hits if raw is predicted else count_shared(gold, raw)
        counts.append((hits, len(predicted), len(gold), invalid, raw_hits, len(raw)))
    return np.array(counts)


def match_released_entities(rows, golds, index, default):
    """(n, 3 x labels) targets, outputs and hits of each label in the released scorer's pairs."""
    numbers, gold, predicted = [], [], []
    for number, (row, want) in enumerate(zip(rows, golds, strict=True)):
        have = parse_released(row.released_output, index)
        for text, label in want.items():
            numbers.append(number)
            gold.append(index[label])
            predicted.append(index[have.get(text, default)])
    hits = [g if g == p else len(index) for g, p in zip(gold, predicted, strict=True)]
    return np.hstack(
        [count_classes(numbers, ids, len(rows), len(index)) for ids in (gold, predicted, hits)]
    )


def choose_constant_entity(golds):
    """(text, score) of the output of one entity with the best strict F1; exact, not sampled."""
    sentences = Counter(entity for gold in golds for entity in set(gold))
    if not sentences:
        return "", 0.0
    (text, label), hits = min(sentences.items(), key=lambda item: (-item[1], item[0]))
    total = len(golds) + sum(len(gold) for gold in golds)
    return f"{text} [{label}]", float(to_percent(2 * hits, total))


def choose_constant_released(golds, default, names):
    """The same by the paper's rule, which gives the pairs of the default label for nothing."""
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
    """Strict entity F1 and the released scorer's, for targets 'Entity [Label] ...'."""
    labels, restored = task.labels, any(row.generated is not None for row in rows)
    default = find_default(task)
    brackets = {f"[{label}]": label for label in labels}
    names = {label.upper(): label for label in labels}
    index = {label: i for i, label in enumerate(names)}
    golds = [parse_entities(row.target, brackets) for row in rows]
    note_odd_targets([bool(rest) for _, rest in golds])
    golds = [gold for gold, _ in golds]
    released_golds = [parse_released(row.released_target, index) for row in rows]
    counts = match_entities(rows, golds, brackets)
    pairs = match_released_entities(rows, released_golds, index, default.upper())

    def finish(sums, n):
        hits, predicted, gold, invalid, raw_hits, raw = np.moveaxis(sums[..., :6], -1, 0)
        paper = np.split(sums[..., 6:], 3, axis=-1)  # targets, outputs, hits
        scores = {
            "f1_released": to_percent(paper[2].sum(-1), paper[0].sum(-1)),
            "macro_f1_released": average_f1(paper[2], paper[1], paper[0]),
            "entity_f1": to_percent(2 * hits, predicted + gold),
            "entity_precision": to_percent(hits, predicted),
            "entity_recall": to_percent(hits, gold),
            "invalid_rate": to_percent(invalid, n),
        }
        unrestored = to_percent(2 * raw_hits, raw + gold)
        return scores | ({"entity_f1_unrestored": unrestored} if restored else {})

    constants = {"": choose_constant_entity(golds)}
    constants["_released"] = choose_constant_released(released_golds, default.upper(), names)
    headline = {"strict": "entity_f1", "released": "f1_released"}[options.rule]
    settings = {"match": "multiset(text,label)", "case": "kept", "missing_released": default}
    settings |= {"characters": "restored" if restored else "as-given"}
    parts = np.stack([2 * counts[:, 0], counts[:, 1] + counts[:, 2]], axis=1)  # F1
    return Scores(np.hstack([counts, pairs]), finish, headline, constants, settings, parts)


def note_odd_targets(odd):
    """Say so on stderr if a target has words that belong to no entity."""
    if any(odd):
        first = (
            f"{sum(odd):,} targets have words without a label, first in row {odd.index(True) + 1:,}"
        )
        print(f"note: {first}: these words are not scored", file=sys.stderr)


# --- classes --------------------------------------------------------------------------------


def score_classes(rows, task, options):
    """Accuracy, or micro and macro F1, of outputs that are one label of the task."""
    labels, numbers = task.labels, range(len(rows))
    index = {label.upper(): i for i, label in enumerate(labels)}
    default = find_default(task)
    gold = [index.get(row.target.strip().upper()) for row in rows]
    if None in gold:
        target = rows[gold.index(None)].target
        where = f"row {gold.index(None) + 1}: target {target!r}"
        raise UserError(f"{where} is no label of this task; known: {', '.join(labels)}")
    correct = [index.get(row.prediction.strip().upper(), len(labels)) for row in rows]
    paper = [index.get(row.released_output.strip().upper(), index[default.upper()]) for row in rows]
    counts = [gold]
    for ids in (correct, paper):
        counts += [ids, [g if g == p else len(labels) for g, p in zip(gold, ids, strict=True)]]
    columns = np.hstack([count_classes(numbers, ids, len(rows), len(labels)) for ids in counts])

    def finish(sums, n):
        gold, predicted, hits, paper, paper_hits = np.split(sums, 5, axis=-1)
        right, paper_right = to_percent(hits.sum(-1), n), to_percent(paper_hits.sum(-1), n)
        invalid = to_percent(n - predicted.sum(-1), n)
        if task.report == "accuracy":
            return {"accuracy_released": paper_right, "accuracy": right, "invalid_rate": invalid}
        return {
            "micro_f1_released": paper_right,
            "macro_f1_released": average_f1(paper_hits, paper, gold),
            "micro_f1": right,
            "macro_f1": average_f1(hits, predicted, gold),
            "invalid_rate": invalid,
        }

    headline = "accuracy" if task.report == "accuracy" else "micro_f1"
    headline += {"strict": "", "released": "_released"}[options.rule]
    best, count = min(Counter(gold).items(), key=lambda item: (-item[1], item[0]))
    constant = labels[best], float(to_percent(count, len(rows)))
    settings = {"case": "ignored", "invalid_released": default}
    constants = {"": constant, "_released": constant}
    parts = count_each([a == b for a, b in zip(gold, correct, strict=True)])
    return Scores(columns, finish, headline, constants, settings, parts)


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


def score_answers(rows, task, options):
    """SQuAD's exact match and word F1 against the best of the targets."""
    targets = [row.target if isinstance(row.target, list) else [row.target] for row in rows]
    golds = [[normalize_answer(target) for target in several] for several in targets]
    columns = np.zeros((len(rows), 2))
    for number, (row, several) in enumerate(zip(rows, golds, strict=True)):
        words = normalize_answer(row.prediction)
        columns[number] = np.max([match_answer(words, gold) for gold in several], axis=0)

    def finish(sums, n):
        return {"em": to_percent(sums[..., 0], n), "f1": to_percent(sums[..., 1], n)}

    constants = {"": choose_constant_answer(targets, golds)}
    settings = {"normalization": "squad1.1"}
    return Scores(columns, finish, "f1", constants, settings, count_each(columns[:, 1]))


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


# --- paraphrase -----------------------------------------------------------------------------


def combine_ibleu(bertscore, bleu):
    """BERT-iBLEU of each row, 0-1, from BERTScore F1 and self-BLEU, 0-1 (Niu et al., 2021)."""
    bertscore, bleu = np.asarray(bertscore) + 1e-5, np.asarray(bleu) + 1e-5
    return 5 / (4 / bertscore + 1 / (1 - bleu))


def compute_bleu(outputs, sources):
    """Sentence BLEU of each output against its source, 0-1: 13a tokens, 4-grams, no smoothing."""
    from sacrebleu.metrics import BLEU

    bleu = BLEU(smooth_method="none", effective_order=False)  # sentence_score would warn per row
    pairs = zip(outputs, sources, strict=True)
    return np.array([bleu.corpus_score([out], [[src]]).score / 100 for out, src in pairs])


@functools.cache
def load_bertscore(name, layers, sources):
    """The encoder as a BERTScorer with idf weights of `sources`, and its part of the signature."""
    import bert_score
    from bert_score.utils import model2layers

    import data.evaluate.decode  # noqa: F401  quiets the libraries

    advice = "give a folder with --bertscore-model DIR --bertscore-layers N"
    layers = layers or model2layers.get(name)
    if layers is None:
        raise UserError(f"--bertscore-layers: needed for {name}, which bert-score does not know")
    name = find_encoder(name, advice)
    label = name_encoder(name, advice)
    try:
        scorer = bert_score.BERTScorer(model_type=name, num_layers=layers, nthreads=0, idf=True)
    except Exception as error:  # whatever an unreachable hub or a foreign folder raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"BERTScore's encoder {name} cannot be had ({reason}); {advice}") from None
    # DeBERTa's tokenizer brings no length limit, and its 1e30 overflows in the fast tokenizers.
    limit = getattr(scorer._model.config, "max_position_embeddings", 512)
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)
    scorer.compute_idf(sources)
    return scorer, {
        "encoder": label,
        "layers": layers,
        "idf": "sources",
        "bert-score": bert_score.__version__,
    }


def find_encoder(name, advice):
    """A hub name or folder as it is; "package:NAME" is the folder with weights in a package."""
    if not name.startswith("package:"):
        return name
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    places = spec.submodule_search_locations or [] if spec else []
    found = [path for place in places for path in sorted(Path(place).rglob("*.safetensors"))]
    if not found:
        raise UserError(f"{name}: no installed package of this name holds an encoder; {advice}")
    return str(found[0].parent)


def name_encoder(name, advice):
    """What the signature calls an encoder: its hub name, or its folder and the weights' hash."""
    folder = Path(name)
    if not folder.is_dir() and not name.startswith((".", "/")):
        return name
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not (folder / "config.json").exists() or not weights:
        raise UserError(f"{name}: no encoder in this folder; {advice}")
    if "t5" in name and read_json(folder / "config.json").get("model_type") != "t5":
        raise UserError(f"{name}: bert-score takes every path with 't5' in it for a T5; link it")
    digest = hashlib.sha256(weights[0].read_bytes()).hexdigest()[:8]
    return "/".join(folder.resolve().parts[-2:]) + "@" + digest


def compute_bertscore(scorer, outputs, sources, constants):
    """BERTScore F1 against the sources, 0-1: (n,) of the outputs, then (n,) of each constant."""
    texts = [outputs, *([text] * len(sources) for text in constants)]
    from data.evaluate.decode import Progress

    found, progress, size = [], Progress("BERTScore", len(sources)), 512
    for start in range(0, len(sources), size):
        part = slice(start, start + size)
        candidates = [text for column in texts for text in column[part]]
        scores = scorer.score(candidates, sources[part] * len(texts))[2].numpy()
        found.append(scores.reshape(len(texts), -1).astype(float))
        progress.add(len(sources[part]))
    progress.close()
    return np.concatenate(found, axis=1)


def score_paraphrase(rows, task, options):
    """BERT-iBLEU, its two parts, and the share of outputs that repeat their source."""
    sources = [row.source.strip() for row in rows]
    outputs = [row.prediction.strip() or NO_PREDICTION for row in rows]
    counts = Counter(word for source in sources for word in set(source.split()))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    length = sorted(len(source.split()) for source in sources)[len(sources) // 2]
    constants = [NO_PREDICTION, " ".join(frequent[:length]) or NO_PREDICTION]
    encoder = options.bertscore_model, options.bertscore_layers
    scorer, settings = load_bertscore(*encoder, tuple(sources))
    similar = compute_bertscore(scorer, outputs, sources, constants)
    bleu = compute_bleu(outputs, sources)
    copied = [out.split() == src.split() for out, src in zip(outputs, sources, strict=True)]
    columns = np.stack([combine_ibleu(similar[0], bleu), bleu, similar[0], copied], axis=1)
    found = []
    for text, scores in zip(constants, similar[1:], strict=True):
        ibleu = combine_ibleu(scores, compute_bleu([text] * len(rows), sources))
        found.append((float(100 * ibleu.mean()), text))
    score, text = max(found)

    def finish(sums, n):
        keys = ("bert_ibleu", "self_bleu", "bertscore", "copy_rate")
        return {key: 100 * sums[..., i] / n for i, key in enumerate(keys)}

    settings = {"beta": 4, "bleu": "13a,4-gram,unsmoothed", **settings}
    parts = count_each(columns[:, 0])
    return Scores(columns, finish, "bert_ibleu", {"": (text, score)}, settings, parts)


METRICS = {
    "entities": score_entities,
    "classes": score_classes,
    "answers": score_answers,
    "paraphrase": score_paraphrase,
}
