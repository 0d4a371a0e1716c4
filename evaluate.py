"""Score predictions, or a model's greedy outputs, by the right rule and by the paper's.

Usage:
  python evaluate.py --task wlp --model runs/paper/wlp/small-n1000-s0/model \\
      --data data/prepared/paper/wlp/test.jsonl --output runs/paper/wlp/small-n1000-s0
  python evaluate.py --task wlp --predictions predictions.jsonl --json   # seconds, without torch
  python evaluate.py --task wlp --compare ann.jsonl dist.jsonl           # paired difference
Reads:  data/tasks.json; a JSONL file of {"source", "target", "prediction"}, or a Hugging Face
        model (T5 or any other seq2seq, or an encoder classifier) and {"source", "target"}
Writes: stdout: the scores. With --output: OUTPUT/predictions.jsonl (every raw output is kept),
        then OUTPUT/metrics.json, last and atomically, with the training.json that lies beside it
Copy:   evaluate.py costs.py data/tasks.json
Paper:  section 3 (measures), Table 8 (lengths), Table 9 (macro F1, EM), Table 10 (classifiers)

All scores are percentages. A key that ends in _paper is the released scorer's rule, every other
key the right one; `score` is the task's headline, the right one unless --rule paper is given.

Entities, 'Entity [Label] Entity [Label] ...'. A word is a label if it is one of the task's, exact
in brackets and case; other bracketed words are text. Whitespace is collapsed, case is kept. Strict:
the multisets of (text, label) in each sentence are compared, micro. An output is invalid if words
follow its last label, if a label has no text, or if a bracketed word is neither label nor source.
  f1_paper, macro_f1_paper: each entity loses its last word, one entity per remaining text is
  kept, a missing one counts as paper_default_label, extra ones are free. See parse_paper().
Classes. Case and outer whitespace are ignored. An output that is no label is invalid and wrong for
every class: micro F1 is the share of right rows, macro F1 the mean over classes that occur in
targets or outputs. In the paper's rule such an output counts as paper_default_label.
Answers. SQuAD's EM and F1: lower case; punctuation, articles and extra whitespace removed; the
best of several targets. As in SQuAD 1.1, no shared word is F1 0, even if both sides are empty.
Paraphrase. BERT-iBLEU, mean over rows of 5 / (4 / BS + 1 / (1 - SB)), BS and SB each + 1e-5; SB is
sentence BLEU and BS BERTScore F1, both against the source. An empty output is "no prediction".

constant is the best score without learning: the most frequent class; the one entity whose
repetition in every output scores best; the best single word or frequent answer; for paraphrase
the better of "no prediction" and the most frequent words, as many as the median source has.

What a vocabulary cannot write. T5's lacks 'μ', '×', '≥', '<' and others in 19% of WLP's targets
and writes '²' as 2. With --model, entities are copied from the source, so each generated entity is
aligned with its source and the source's own characters are given back ("25 <unk>l" -> "25 μl"):
`prediction` is this text, which a user of the model gets and which the right rule compares with
the target as it was annotated. `output` is what was generated (unknown characters vanish), and
`reference` the target decoded from its token ids, cut to --max-target-length: the paper's rule
compares these two. entity_f1_unrestored is the strict score of `output`. Without a model, the
_paper keys compare the texts as given, or as --paper-vocabulary spiece.model would decode them.
"""

import argparse
import functools
import hashlib
import json
import logging
import os
import platform
import re
import shlex
import string
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from costs import (
    ROOT,
    UserError,
    load_task,
    read_json,
    read_jsonl,
    run_cli,
    write_atomic,
    write_json,
)

NO_PREDICTION = "no prediction"  # stands for an empty paraphrase, as BERTScore needs a word


class Row(NamedTuple):
    """One example: what the right rule compares, and what the paper's rule does."""

    source: str
    target: str  # a list where a task of answers has several
    prediction: str
    output: str  # as generated, before restoring; the prediction where there is no such text
    paper_target: str
    paper_output: str


class Scores(NamedTuple):
    """Additive statistics of a task's rows and how their sums become scores.

    columns (n, k): statistics of each row; finish: sums (..., k), row count -> {key: (...)}, 0-100.
    constants: {"": (text, score), "_paper": ...} of the best constant; settings: for the signature.
    """

    columns: np.ndarray
    finish: Callable
    headline: str
    constants: dict
    settings: dict


# --- arithmetic -----------------------------------------------------------------------------


def percent(part, whole):
    """100 * part / whole elementwise; 0 where the whole is 0, as scikit-learn and seqeval do."""
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    zeros = np.zeros(np.broadcast(part, whole).shape)
    return 100 * np.divide(part, whole, out=zeros, where=whole > 0)


def average_f1(hits, predicted, gold):
    """Macro F1, 0-100, of counts (..., classes), over classes with a target or an output."""
    scores = percent(2 * hits, predicted + gold)
    return scores.sum(-1) / np.maximum((predicted + gold > 0).sum(-1), 1)


def count_classes(rows, classes, n, size):
    """(n, size) counts from parallel lists of row numbers and class ids; ids from `size` on are
    left out."""
    rows, classes = np.asarray(rows, int), np.asarray(classes, int)
    keep = classes < size
    counts = np.bincount(rows[keep] * size + classes[keep], minlength=n * size)
    return counts.reshape(n, size)


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


def interval(values):
    """The central 95% of bootstrap values, [low, high]."""
    return [float(value) for value in np.percentile(values, [2.5, 97.5])]


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


def parse_paper(text, labels):
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


def match_entities(rows, labels):
    """(n, 6) counts: hits, predicted, gold, invalid, and hits and predicted of the raw outputs."""
    counts, odd, brackets = [], [], {f"[{label}]": label for label in labels}
    for number, row in enumerate(rows, 1):
        gold, rest = parse_entities(row.target, brackets)
        odd += [number] if rest else []
        predicted, leftover = parse_entities(row.prediction, brackets)
        raw = predicted
        if row.output is not row.prediction:
            raw, _ = parse_entities(row.output, brackets)
        hits, raw_hits = ((Counter(gold) & Counter(found)).total() for found in (predicted, raw))
        invalid = is_invalid(predicted, leftover, row.source)
        counts.append((hits, len(predicted), len(gold), invalid, raw_hits, len(raw)))
    if odd:
        text = f"note: {len(odd):,} targets have words without a label, first in row {odd[0]:,}"
        print(f"{text}: these words are not scored", file=sys.stderr)
    return np.array(counts)


def match_paper_entities(rows, labels, default):
    """(n, 3 x labels) targets, outputs and hits of each label in the released scorer's pairs."""
    index = {label.upper(): i for i, label in enumerate(labels)}
    numbers, gold, predicted = [], [], []
    for number, row in enumerate(rows):
        want, have = (parse_paper(text, index) for text in (row.paper_target, row.paper_output))
        for text, label in want.items():
            numbers.append(number)
            gold.append(index[label])
            predicted.append(index[have.get(text, default.upper())])
    hits = [g if g == p else len(labels) for g, p in zip(gold, predicted, strict=True)]
    return np.hstack(
        [count_classes(numbers, ids, len(rows), len(labels)) for ids in (gold, predicted, hits)]
    )


def choose_constant_entities(rows, labels, default):
    """The best constant outputs of both rules as {suffix: (text, score)}; exact, not sampled."""
    brackets = {f"[{label}]": label for label in labels}
    names = {label.upper(): label for label in labels}
    sentences, pairs, total = Counter(), Counter(), 0
    for row in rows:
        gold, _ = parse_entities(row.target, brackets)
        total += len(gold)
        sentences.update(set(gold))
        pairs.update(parse_paper(row.paper_target, names).items())
    constants = {"": ("", 0.0), "_paper": ("", 0.0)}
    if sentences:
        (text, label), count = min(sentences.items(), key=lambda item: (-item[1], item[0]))
        constants[""] = f"{text} [{label}]", float(percent(2 * count, len(rows) + total))
    default = default.upper()
    missed = Counter({text: n for (text, label), n in pairs.items() if label == default})
    gains = {pair: n - missed[pair[0]] for pair, n in pairs.items()}
    if pairs:
        (text, label), gain = min(gains.items(), key=lambda item: (-item[1], item[0]))
        output = f"{text} _ [{names[label]}]" if text else f"[{names[label]}]"
        score = float(percent(missed.total() + max(gain, 0), pairs.total()))
        constants["_paper"] = (output if gain > 0 else ""), score
    return constants


def score_entities(rows, task, options):
    """Strict entity F1 and the released scorer's, for targets 'Entity [Label] ...'."""
    labels, restored = task["labels"], any(row.output is not row.prediction for row in rows)
    default = task.get("paper_default_label") or labels[0]
    columns = np.hstack([match_entities(rows, labels), match_paper_entities(rows, labels, default)])

    def finish(sums, n):
        hits, predicted, gold, invalid, raw_hits, raw = np.moveaxis(sums[..., :6], -1, 0)
        paper = np.split(sums[..., 6:], 3, axis=-1)  # targets, outputs, hits
        scores = {
            "f1_paper": percent(paper[2].sum(-1), paper[0].sum(-1)),
            "macro_f1_paper": average_f1(paper[2], paper[1], paper[0]),
            "entity_f1": percent(2 * hits, predicted + gold),
            "entity_precision": percent(hits, predicted),
            "entity_recall": percent(hits, gold),
            "invalid_rate": percent(invalid, n),
        }
        if restored:
            scores["entity_f1_unrestored"] = percent(2 * raw_hits, raw + gold)
        return scores

    constants = choose_constant_entities(rows, labels, default)
    headline = {"correct": "entity_f1", "paper": "f1_paper"}[options.rule]
    settings = {"match": "multiset(text,label)", "case": "kept", "missing_paper": default}
    settings |= {"characters": "restored" if restored else "as-given"}
    return Scores(columns, finish, headline, constants, settings)


# --- classes --------------------------------------------------------------------------------


def score_classes(rows, task, options):
    """Accuracy, or micro and macro F1, of outputs that are one label of the task."""
    labels, numbers = task["labels"], range(len(rows))
    index = {label.upper(): i for i, label in enumerate(labels)}
    default = task.get("paper_default_label") or labels[0]
    gold = [index.get(row.target.strip().upper()) for row in rows]
    if None in gold:
        target = rows[gold.index(None)].target
        raise UserError(f"target {target!r} is no label of this task; known: {', '.join(labels)}")
    correct = [index.get(row.prediction.strip().upper(), len(labels)) for row in rows]
    paper = [index.get(row.paper_output.strip().upper(), index[default.upper()]) for row in rows]
    counts = [gold]
    for ids in (correct, paper):
        counts += [ids, [g if g == p else len(labels) for g, p in zip(gold, ids, strict=True)]]
    columns = np.hstack([count_classes(numbers, ids, len(rows), len(labels)) for ids in counts])

    def finish(sums, n):
        gold, predicted, hits, paper, paper_hits = np.split(sums, 5, axis=-1)
        right, paper_right = percent(hits.sum(-1), n), percent(paper_hits.sum(-1), n)
        invalid = percent(n - predicted.sum(-1), n)
        if task.get("report") == "accuracy":
            return {"accuracy_paper": paper_right, "accuracy": right, "invalid_rate": invalid}
        return {
            "micro_f1_paper": paper_right,
            "macro_f1_paper": average_f1(paper_hits, paper, gold),
            "micro_f1": right,
            "macro_f1": average_f1(hits, predicted, gold),
            "invalid_rate": invalid,
        }

    headline = "accuracy" if task.get("report") == "accuracy" else "micro_f1"
    headline += {"correct": "", "paper": "_paper"}[options.rule]
    best, count = min(Counter(gold).items(), key=lambda item: (-item[1], item[0]))
    constant = labels[best], float(percent(count, len(rows)))
    settings = {"case": "ignored", "invalid_paper": default}
    return Scores(columns, finish, headline, {"": constant, "_paper": constant}, settings)


# --- answers --------------------------------------------------------------------------------

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalize_answer(text):
    """The words of an answer by SQuAD's rules: lower case, no punctuation, no articles."""
    return ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split()


def match_answer(words, gold):
    """SQuAD 1.1's (EM, F1), 0-1, of two lists of normalised words."""
    shared = (Counter(words) & Counter(gold)).total()
    return float(words == gold), 2 * shared / (len(words) + len(gold)) if shared else 0.0


def score_answers(rows, task, options):
    """SQuAD's exact match and word F1 against the best of the targets."""
    targets = [row.target if isinstance(row.target, list) else [row.target] for row in rows]
    golds = [[normalize_answer(target) for target in several] for several in targets]
    columns = np.zeros((len(rows), 2))
    for number, (row, several) in enumerate(zip(rows, golds, strict=True)):
        words = normalize_answer(row.prediction)
        columns[number] = np.max([match_answer(words, gold) for gold in several], axis=0)

    def finish(sums, n):
        return {"em": percent(sums[..., 0], n), "f1": percent(sums[..., 1], n)}

    constants = {"": choose_constant_answer(targets, golds)}
    return Scores(columns, finish, "f1", constants, {"normalization": "squad1.1"})


def choose_constant_answer(targets, golds):
    """The better by F1 of: every single word (exactly), and the ten most frequent answers."""
    words, n = Counter(), len(golds)
    for several in golds:
        best = {}
        for gold in several:
            for word in set(gold):
                best[word] = max(best.get(word, 0), 2 / (1 + len(gold)))
        words.update(best)
    answers = Counter(target for several in targets for target in several)
    found = [(score, word) for word, score in words.items()]
    for answer, _ in answers.most_common(10):
        words = normalize_answer(answer)
        scores = (max(match_answer(words, gold)[1] for gold in several) for several in golds)
        found.append((sum(scores), answer))
    score, answer = min(found, key=lambda item: (-item[0], item[1]))
    return answer, float(percent(score, n))


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
    quiet_libraries()
    import bert_score
    from bert_score.utils import model2layers

    advice = "give a folder with --bertscore-model DIR --bertscore-layers N"
    layers = layers or model2layers.get(name)
    if layers is None:
        raise UserError(f"--bertscore-layers: needed for {name}, which bert-score does not know")
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
    return Scores(columns, finish, "bert_ibleu", {"": (text, score)}, settings)


METRICS = {
    "entities": score_entities,
    "classes": score_classes,
    "answers": score_answers,
    "paraphrase": score_paraphrase,
}


# --- rows and results -----------------------------------------------------------------------


def check_texts(rows, path, keys, several):
    """Refuse a value that is no text; `several` allows a list of texts as a target."""
    for number, row in enumerate(rows, 1):
        for key in keys:
            values = row[key] if several and key == "target" else [row[key]]
            values = [values] if isinstance(values, str) else values
            good = isinstance(values, list) and values and all(isinstance(v, str) for v in values)
            if not good:
                raise UserError(f"{path} row {number}: {key!r} is no text but {row[key]!r}")


def read_rows(predictions, data, task):
    """The rows of a predictions file, checked against the data file if there is one."""
    several = task["metric"] == "answers"
    keys = ("prediction",) if data else ("source", "target", "prediction")
    rows = read_jsonl(predictions, keys)
    if data:
        examples = read_jsonl(data)
        if len(examples) != len(rows):
            raise UserError(
                f"{predictions}: {len(rows):,} predictions for the {len(examples):,} rows of {data}"
            )
        for number, (row, example) in enumerate(zip(rows, examples, strict=True), 1):
            for key in ("source", "target"):
                if row.setdefault(key, example[key]) != example[key]:
                    raise UserError(f"{predictions} row {number}: not the {key!r} of {data}")
    check_texts(rows, predictions, ("source", "target", "prediction"), several)
    return rows


def make_rows(rows, vocabulary=None, max_target_length=None):
    """Rows for the scorers; `vocabulary` is a SentencePiece model that decodes the paper's side."""
    written = read_vocabulary(vocabulary) if vocabulary else None
    made = []
    for row in rows:
        target, prediction = row["target"], row["prediction"]
        output = row.get("output", prediction)
        output = prediction if output == prediction else output  # one object: nothing restored
        paper = row.get("reference", target), output
        if written and isinstance(target, str):
            paper = written(target, max_target_length), written(prediction)
        made.append(Row(row["source"], target, prediction, output, *paper))
    return made


def read_vocabulary(path):
    """A function text -> text as token ids of this SentencePiece model give it back."""
    import sentencepiece

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; --paper-vocabulary takes a spiece.model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise UserError(f"{path}: no SentencePiece model") from None

    def write(text, limit=None):
        ids = model.encode(text)
        ids = ids if limit is None or len(ids) < limit else ids[: limit - 1]  # and one for </s>
        return model.decode([i for i in ids if i != model.unk_id()])

    return write


def score_rows(rows, task, options):
    """Score Rows by the task's metric family; a UserError names the families if it has another."""
    scorer = METRICS.get(task["metric"])
    if scorer is None:
        raise UserError(
            f"metric {task['metric']!r} in data/tasks.json: not one of {', '.join(METRICS)}"
        )
    return scorer(rows, task, options)


def show_signature(scores, options, rows):
    """Everything that decides the numbers, as one line in sacrebleu's manner."""
    paper = "token-ids" if any(row.paper_target is not row.target for row in rows) else "text"
    settings = {"rule": options.rule, **scores.settings}
    if any(key.endswith("_paper") for key in scores.finish(scores.columns[:1], 1)):
        settings["paper_side"] = paper
    settings |= {"bootstrap": options.bootstrap, "seed": options.seed, "version": 1}
    return "|".join(f"{key}:{value}" for key, value in settings.items())


def summarize(scores, task, options, rows):
    """The result of one set of predictions, as in metrics.json."""
    n = len(rows)
    point = scores.finish(scores.columns.sum(0), n)
    metrics = {key: float(value) for key, value in point.items()}
    suffix = "_paper" if options.rule == "paper" and "_paper" in scores.constants else ""
    text, constant = scores.constants[suffix]
    result = {
        "task": options.task,
        "n": n,
        "metric": scores.headline,
        "score": metrics[scores.headline],
        "metrics": metrics | {f"constant{key}": pair[1] for key, pair in scores.constants.items()},
        "constant": {"metric": scores.headline, "prediction": text, "score": constant},
    }
    if options.bootstrap:
        sums = bootstrap_sums(scores.columns, options.bootstrap, options.seed)
        values = scores.finish(sums, n)
        result["intervals"] = {key: interval(value) for key, value in values.items()}
    return result | {"signature": show_signature(scores, options, rows)}


def compare_runs(options, task):
    """Paired bootstrap of B - A: every metric's difference, 95% interval and p-value.

    p is two-sided, (c + 1) / (samples + 1): c counts the samples whose difference is at least as
    far from the observed one as that is from 0. Equal predictions give p = 1.
    """
    both = [read_rows(path, options.data, task) for path in options.compare]
    first, second = ([(row["source"], row["target"]) for row in rows] for rows in both)
    if first != second:
        sizes = f"{len(first):,} and {len(second):,} rows"
        raise UserError(f"{' and '.join(options.compare)}: not the same data ({sizes})")
    limit = options.max_target_length
    both = [make_rows(rows, options.paper_vocabulary, limit) for rows in both]
    first, second = (score_rows(rows, task, options) for rows in both)
    n, width = len(both[0]), first.columns.shape[1]
    columns = np.hstack([first.columns, second.columns])
    sums = np.vstack([columns.sum(0), bootstrap_sums(columns, options.bootstrap, options.seed)])
    scores = first.finish(sums[:, :width], n), second.finish(sums[:, width:], n)
    metrics = {}
    for key in scores[0].keys() & scores[1].keys():
        a, b = (side[key] for side in scores)
        observed, drawn = (b - a)[0], (b - a)[1:]
        extreme = np.sum(np.abs(drawn - observed) >= abs(observed) - 1e-9)
        metrics[key] = {
            "a": float(a[0]),
            "b": float(b[0]),
            "difference": float(observed),
            "interval": interval(drawn),
            "p_value": float((extreme + 1) / (len(drawn) + 1)),
        }
    metrics = {key: metrics[key] for key in scores[0] if key in metrics}
    signature = show_signature(first, options, both[0])
    head = {"task": options.task, "n": n, "metric": first.headline, **metrics[first.headline]}
    return head | {"metrics": metrics, "signature": signature}


# --- a model's outputs ----------------------------------------------------------------------


class Progress:
    """Rows done and time left on stderr: one updating line, or a line every 10 s into a file."""

    def __init__(self, name, total):
        self.name, self.total, self.done, self.tty = name, total, 0, sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if now - self.shown < (0.2 if self.tty else 10):
            return
        self.shown, left = now, (now - self.start) / self.done * (self.total - self.done)
        text = f"{self.name} {self.done:,}/{self.total:,} rows, {left:.0f} s left"
        print(f"\r{text}   " if self.tty else text, end="" if self.tty else "\n", file=sys.stderr)
        sys.stderr.flush()

    def close(self):
        if self.tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def quiet_libraries():
    """Import transformers without log lines, bars and warnings of its own."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    hidden = "scipy" not in sys.modules
    if hidden:
        sys.modules["scipy"] = None  # else loaded, a third of a second, for losses on images
    try:
        import torch  # noqa: F401
        import transformers
        from transformers import modeling_utils  # noqa: F401
    finally:
        if hidden:
            del sys.modules["scipy"]
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", module=r"transformers|torch|bert_score")


def load_model(name, bf16):
    """(model, tokenizer, is it a classifier) of a folder or hub name, in bf16 or fp32.

    fp16 is not offered: T5's activations overflow in it.
    """
    quiet_libraries()
    import torch
    from transformers import AutoConfig, AutoTokenizer

    if not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise UserError(f"{name}: no such model folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = device == "cuda" if bf16 is None else bf16
    try:
        config = AutoConfig.from_pretrained(name)
        kinds = config.architectures or []
        classifier = any(kind.endswith("ForSequenceClassification") for kind in kinds)
        if classifier:
            from transformers import AutoModelForSequenceClassification as Model
        elif config.is_encoder_decoder:
            from transformers import AutoModelForSeq2SeqLM as Model
        else:
            raise UserError(f"{name}: neither a seq2seq model nor a sequence classifier")
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = Model.from_pretrained(name, dtype=torch.bfloat16 if bf16 else torch.float32)
    except UserError:
        raise
    except Exception as error:  # whatever a broken folder or an unreachable hub raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: no model can be loaded ({reason})") from None
    return model.to(device).eval(), tokenizer, classifier


def encode_sources(texts, tokenizer, limit):
    """Token ids of each text, at most `limit` with its end tokens, and how many were cut."""
    ids = tokenizer(texts).input_ids
    long = [number for number, row in enumerate(ids) if len(row) > limit]
    for number in long:
        ids[number] = tokenizer(texts[number], truncation=True, max_length=limit).input_ids
    return ids, len(long)


def run_batches(model, tokenizer, ids, batch_size, compute):
    """compute(inputs) -> one value a row, over batches of similar length, longest first."""
    import torch

    order = sorted(range(len(ids)), key=lambda number: (-len(ids[number]), number))
    found, progress = [None] * len(ids), Progress("generate", len(ids))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt")
            values = compute({key: value.to(model.device) for key, value in inputs.items()})
            for number, value in zip(batch, values, strict=True):
                found[number] = value
            progress.add(len(batch))
    progress.close()
    return found


def generate_ids(model, tokenizer, ids, batch_size, max_target_length):
    """Greedy token ids of each row, special ones included, and how many never ended."""
    from transformers import GenerationConfig

    keys = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    kept = {key: getattr(model.generation_config, key) for key in (*keys, "forced_bos_token_id")}
    model.generation_config = GenerationConfig(  # nothing else that a checkpoint may bring along
        max_new_tokens=max_target_length, num_beams=1, do_sample=False, **kept
    )
    ends = kept["eos_token_id"]
    ends = set(ends if isinstance(ends, list) else [ends])

    def compute(inputs):
        return [row[1:] for row in model.generate(**inputs).tolist()]

    found, unfinished = run_batches(model, tokenizer, ids, batch_size, compute), 0
    for number, row in enumerate(found):
        end = next((i for i, token in enumerate(row) if token in ends), None)
        unfinished += end is None
        found[number] = row if end is None else row[:end]
    return found, unfinished


def classify(model, tokenizer, ids, batch_size, labels, name):
    """The most probable label of each row by an encoder classifier whose id2label names them."""
    names = model.config.id2label
    known = {label.upper() for label in labels}
    unknown = [text for text in names.values() if text.upper() not in known]
    if unknown:
        raise UserError(f"{name}: its id2label has {unknown[0]!r}, which is no label of this task")

    def compute(inputs):
        return model(**inputs).logits.argmax(-1).tolist()

    return [names[i] for i in run_batches(model, tokenizer, ids, batch_size, compute)]


class Restorer:
    """Gives entities the characters of their source that the tokenizer cannot write.

    Each entity is looked up in its source after the entity before it, whitespace and unwritable
    characters aside; an unknown token at its edge takes in the unwritable characters there. Text
    that stands in the source as generated, or that is not found in it, stays as generated.
    """

    def __init__(self, tokenizer, labels):
        self.tokenizer, self.unknown = tokenizer, tokenizer.unk_token or "\0"
        self.brackets, self.shown = {f"[{label}]": label for label in labels}, {}

    def write(self, text):
        """What of `text` comes back from token ids."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def show_word(self, word):
        """What comes back of each character of a word."""
        if word not in self.shown:
            same = self.write(word) == word
            self.shown[word] = list(word) if same else [self.write(mark) for mark in word]
        return self.shown[word]

    def find(self, text, source, start):
        """(begin, end) of the entity `text` in `source`, at best after `start`; None if absent."""
        letters, owners, mask = "", [], ["s"] * len(source)  # space, word, unwritable
        for word in re.finditer(r"\S+", source):
            for i, shown in enumerate(self.show_word(word.group()), word.start()):
                shown = "".join(shown.split())
                letters += shown
                owners += [i] * len(shown)
                mask[i] = "w" if shown else "u"
        core, mask = "".join(text.replace(self.unknown, "").split()), "".join(mask)
        if not core:
            found = [(m.start() < start, m.start(), m.end()) for m in re.finditer("u+", mask)]
            return min(found)[1:] if found else None
        found = []
        for match in re.finditer(f"(?={re.escape(core)})", letters):
            begin, end = owners[match.start()], owners[match.start() + len(core) - 1] + 1
            fits = not source[max(begin - 1, 0) : begin + 1].isalnum() or begin == 0
            if text.startswith(self.unknown):
                before = re.search("u+s*$", mask[:begin])
                fits, begin = bool(before), before.start() if before else begin
            if text.endswith(self.unknown):
                after = re.match("s*u+", mask[end:])
                fits, end = fits and bool(after), end + after.end() if after else end
            elif source[end - 1 : end + 1].isalnum() and end < len(source):
                fits = False
            found.append((not fits, begin < start, begin, end))
        return min(found)[2:] if found else None

    def restore(self, output, source):
        """`output` (unknown tokens shown) with its entities as `source` writes them."""
        entities, leftover = parse_entities(output, self.brackets)
        start, parts = 0, []
        for text, label in entities:
            at = source.find(text, start)
            at = source.find(text) if at < 0 else at
            span = (at, at + len(text)) if at >= 0 else self.find(text, source, start)
            if span:
                text, start = source[slice(*span)], span[1]
            parts += [text.replace(self.unknown, ""), f"[{label}]"]
        return " ".join(" ".join([*parts, *leftover]).replace(self.unknown, "").split())


def decode_outputs(found, rows, tokenizer, task, max_target_length):
    """The rows of predictions.jsonl from generated token ids, and how many were restored."""
    hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    outputs = tokenizer.batch_decode(found, skip_special_tokens=True)
    marked = tokenizer.batch_decode([[i for i in ids if i not in hidden] for ids in found])
    restorer, decoded, restored = Restorer(tokenizer, task["labels"]), [], 0
    for row, output, text in zip(rows, outputs, marked, strict=True):
        prediction = output
        if task["metric"] == "entities":
            prediction = restorer.restore(text, row["source"])
            same = prediction.split() == output.split()
            prediction, restored = (output if same else prediction), restored + (not same)
        decoded.append({**row, "prediction": prediction, "output": output})
        if task["metric"] in ("entities", "classes"):
            ids = tokenizer(
                text_target=row["target"], truncation=True, max_length=max_target_length
            )
            decoded[-1]["reference"] = tokenizer.decode(ids.input_ids, skip_special_tokens=True)
    return decoded, restored


def predict(options, task, rows):
    """(rows of predictions.jsonl, counts, seconds) of a model's greedy outputs."""
    times = [time.monotonic()]
    model, tokenizer, classifier = load_model(options.model, options.bf16)
    times.append(time.monotonic())
    if classifier and task["metric"] != "classes":
        raise UserError(f"{options.model}: a classifier cannot do the {task['metric']} of a task")
    prefix = options.prefix
    if prefix is None:
        prefix = "" if classifier else task["prefix"]
    texts = [prefix + row["source"] for row in rows]
    ids, cut = encode_sources(texts, tokenizer, options.max_source_length)
    counts = {"truncated_sources": cut, "parameters": model.num_parameters()}
    batch, length = options.batch_size, options.max_target_length
    if classifier:
        outputs = classify(model, tokenizer, ids, batch, task["labels"], options.model)
        pairs = zip(rows, outputs, strict=True)
        rows = [{**row, "prediction": output, "output": output} for row, output in pairs]
    else:
        found, unfinished = generate_ids(model, tokenizer, ids, batch, length)
        rows, restored = decode_outputs(found, rows, tokenizer, task, length)
        counts |= {"truncated_outputs": unfinished, "restored_outputs": restored}
    times.append(time.monotonic())
    counts |= {"dtype": str(model.dtype).removeprefix("torch."), "prefix": prefix}
    return rows, counts, {"load": times[1] - times[0], "generate": times[2] - times[1]}


def describe_run(options):
    """Hardware and provenance, so that a number can be trusted or made again."""
    import torch
    import transformers

    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    gpus = torch.cuda.device_count()
    return {
        "hardware": {
            "device": "cuda" if gpus else "cpu",
            "gpu": torch.cuda.get_device_name() if gpus else None,
            "gpus": gpus,
            "cpu_threads": torch.get_num_threads(),
            "cpu": platform.processor() or platform.machine(),
        },
        "provenance": {
            "command": shlex.join(sys.argv),
            "versions": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "torch": torch.__version__,
                "transformers": transformers.__version__,
            },
            "git_commit": commit or None,
            "model": options.model,
            "data": str(options.data),
            "data_sha256": hashlib.sha256(options.data.read_bytes()).hexdigest(),
        },
    }


def evaluate_model(options, task):
    """Decode, write predictions.jsonl, score, write metrics.json. Returns what the latter holds."""
    rows = read_jsonl(options.data)
    check_texts(rows, options.data, ("source", "target"), task["metric"] == "answers")
    rows = [{"source": row["source"], "target": row["target"]} for row in rows]
    rows, counts, seconds = predict(options, task, rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(options.output / "predictions.jsonl", "".join(lines))
    start, rows = time.monotonic(), make_rows(rows)
    result = summarize(score_rows(rows, task, options), task, options, rows)
    keys = ("max_source_length", "max_target_length", "batch_size")
    result |= {"split": options.split or options.data.stem}
    result |= {"settings": {**{key: getattr(options, key) for key in keys}}, **counts}
    result["settings"] |= {key: result.pop(key) for key in ("dtype", "prefix")}
    result["seconds"] = {**seconds, "score": time.monotonic() - start}
    training = options.output / "training.json"
    result["training"] = read_json(training) if training.exists() else None
    result |= describe_run(options)
    write_json(options.output / "metrics.json", result)
    return result


# --- command line ---------------------------------------------------------------------------


def show_result(result):
    """The result as text for people; --json prints it whole."""
    lines = [f"{result['task']}: {result['metric']} {result['score']:.2f} on {result['n']:,} rows"]
    for key, value in result["metrics"].items():
        low, high = result.get("intervals", {}).get(key, (None, None))
        spread = "" if low is None else f"  [{low:.2f}, {high:.2f}]"
        lines.append(f"  {key:<20} {value:7.2f}{spread}")
    lines.append(f"  best constant output {result['constant']['prediction']!r}")
    if "truncated_sources" in result:
        cut = result["truncated_sources"], result.get("truncated_outputs", 0)
        lines.append(f"  cut off: {cut[0]:,} sources, {cut[1]:,} outputs")
    return "\n".join([*lines, result["signature"]])


def show_comparison(result):
    """A comparison as text for people."""
    lines = [f"{result['task']}: B - A on {result['n']:,} rows, 95% interval, p"]
    for key, row in result["metrics"].items():
        low, high = row["interval"]
        text = (
            f"{row['a']:7.2f} {row['b']:7.2f} {row['difference']:+7.2f}  [{low:+.2f}, {high:+.2f}]"
        )
        lines.append(f"  {key:<20} {text}  p={row['p_value']:.4f}")
    return "\n".join([*lines, result["signature"]])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", required=True, help="entry of data/tasks.json, e.g. wlp")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", help="JSONL file of source, target, prediction")
    what.add_argument("--model", help="model folder or hub name; needs --data")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two prediction files")
    add("--data", type=Path, help="JSONL file of source and target; predictions must match it")
    add("--output", type=Path, help="folder to write (default: with --model its run folder)")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="print JSON (no)")
    add("--rule", choices=("correct", "paper"), default="correct", help="of `score` (%(default)s)")
    add("--bootstrap", type=int, default=1000, help="samples for 95%% intervals (%(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    add("--paper-vocabulary", help="spiece.model through which the _paper keys see all texts")
    deberta = "microsoft/deberta-xlarge-mnli"
    add("--bertscore-model", default=deberta, help="folder or hub name (%(default)s, the paper's)")
    add("--bertscore-layers", type=int, help="layers used (default: bert-score's for the model)")
    add_decoding_flags(parser.add_argument_group("with --model").add_argument)
    options = parser.parse_args(argv)
    if options.model and not options.data:
        parser.error("--model needs --data")
    least = {"batch_size": 1, "max_source_length": 1, "max_target_length": 1, "bertscore_layers": 1}
    for name, low in {**least, "bootstrap": 1 if options.compare else 0}.items():
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}")
    return options


def add_decoding_flags(add):
    add("--split", help="name in metrics.json (default: the data file's, without its ending)")
    add("--prefix", help="put before sources (default: the task's; nothing for a classifier)")
    add("--max-source-length", type=int, help="tokens (default: the task's, Table 8)")
    limit = "tokens of outputs and of the _paper keys' targets, the end token too (default: the "
    limit += "task's, Table 8; with --predictions no limit)"
    add("--max-target-length", type=int, help=limit)
    add("--batch-size", type=int, default=128, help="rows decoded at once (%(default)s)")
    bf16 = "decode in bf16, not fp32 (default: where there is a GPU; the paper used fp32)"
    add("--bf16", action=argparse.BooleanOptionalAction, help=bf16)


def choose_output(options):
    """Where a model's results go if no --output says so."""
    folder = Path(options.model)
    if not folder.is_dir():
        raise UserError(f"--output: needed for {options.model}, which is no local folder")
    return folder.parent if (folder.parent / "training.json").exists() else folder


def main(argv=None):
    options = parse_args(argv)
    task = load_task(options.task)
    if options.compare:
        result = compare_runs(options, task)
    elif options.model:
        options.output = options.output or choose_output(options)
        options.max_source_length = options.max_source_length or task["max_source_length"]
        options.max_target_length = options.max_target_length or task["max_target_length"]
        result = evaluate_model(options, task)
    else:
        rows = read_rows(options.predictions, options.data, task)
        rows = make_rows(rows, options.paper_vocabulary, options.max_target_length)
        result = summarize(score_rows(rows, task, options), task, options, rows)
        if options.output:
            write_json(options.output / "metrics.json", result)
    if options.json:
        print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(show_comparison(result) if options.compare else show_result(result))


if __name__ == "__main__":
    run_cli(main)
