"""BERT-iBLEU, the measure of paraphrases: BERTScore against the source, less copying by BLEU.

BERTScore F1 (Zhang et al., 2020) compares the contextual vectors of two texts' tokens; the paper's
encoder is microsoft/deberta-xlarge-mnli. Imports bert-score and torch where they are needed.
"""

import functools
import importlib.util
import random
from collections import Counter
from pathlib import Path

import numpy as np

from data.evaluate.metrics import Scores, make_parts
from data.files import UserError, hash_file, read_json, say_first

NO_PREDICTION = "no prediction"  # stands for an empty paraphrase, as BERTScore needs a word
ADVICE = "give a folder with --bertscore-model DIR --bertscore-layers N"


@functools.cache
def load_bertscore(name, layers):
    """(BERTScorer without idf weights yet, its part of the signature) of an encoder."""
    import bert_score
    from bert_score.utils import model2layers

    import data.evaluate.decode  # noqa: F401  quiets the libraries

    layers = layers or model2layers.get(name)
    if layers is None:
        raise UserError(f"--bertscore-layers: needed for {name}, which bert-score does not know")
    name = find_encoder(name)
    settings = {"encoder": name_encoder(name), "layers": layers, "idf": "sources"}
    try:
        scorer = bert_score.BERTScorer(model_type=name, num_layers=layers, nthreads=0, idf=True)
    except Exception as error:  # whatever an unreachable hub or a foreign folder raises
        what = f"BERTScore's encoder {name} cannot be had ({say_first(error)})"
        raise UserError(f"{what}; {ADVICE}") from None
    # DeBERTa's tokenizer brings no length limit, and its 1e30 overflows in the fast tokenizers.
    limit = getattr(scorer._model.config, "max_position_embeddings", 512)
    scorer._tokenizer.model_max_length = min(scorer._tokenizer.model_max_length, limit)
    return scorer, {**settings, "bert-score": bert_score.__version__}


def find_encoder(name):
    """A hub name or folder as it is; "package:NAME" is the folder with weights in a package."""
    if not name.startswith("package:"):
        return name
    package = name.removeprefix("package:")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    places = spec.submodule_search_locations or [] if spec else []
    found = [path for place in places for path in sorted(Path(place).rglob("*.safetensors"))]
    if not found:
        raise UserError(f"{name}: no installed package of this name holds an encoder; {ADVICE}")
    return str(found[0].parent)


def name_encoder(name):
    """What the signature calls an encoder: its hub name, or its folder and the weights' hash."""
    folder = Path(name)
    if not folder.is_dir() and not name.startswith((".", "/")):
        return name
    weights = sorted([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")])
    if not (folder / "config.json").exists() or not weights:
        raise UserError(f"{name}: no encoder in this folder; {ADVICE}")
    if "t5" in name and read_json(folder / "config.json").get("model_type") != "t5":
        raise UserError(f"{name}: bert-score takes every path with 't5' in it for a T5; link it")
    return "/".join(folder.resolve().parts[-2:]) + "@" + hash_file(weights[0])[:8]


def compute_bertscore(scorer, columns, references):
    """BERTScore F1, 0-1, of k columns of n texts against n references: (k, n)."""
    from data.evaluate.decode import halve_batch, show_progress

    scorer.compute_idf(references)
    found, start, batch_size = [], 0, 64
    with show_progress("BERTScore", len(references)) as progress:
        while start < len(references):
            part = slice(start, start + 512)
            texts = [text for column in columns for text in column[part]]
            beside = references[part] * len(columns)
            try:
                scores = scorer.score(texts, beside, batch_size=batch_size)[2].numpy()
            except RuntimeError as error:
                batch_size = halve_batch(batch_size, error)
                continue
            found.append(scores.astype(float).reshape(len(columns), -1))
            progress.update(len(references[part]))
            start += 512
    return np.concatenate(found, axis=1)


def combine_ibleu(bertscore, bleu):
    """BERT-iBLEU of each row, 0-1, from BERTScore F1 and self-BLEU, 0-1 (Niu et al., 2021)."""
    bertscore, bleu = np.asarray(bertscore) + 1e-5, np.asarray(bleu) + 1e-5
    return 5 / (4 / bertscore + 1 / (1 - bleu))


def compute_bleu(outputs, sources, effective_order):
    """Sentence BLEU of each output against its source, 0-1: 13a tokens, 4-grams, no smoothing.

    An output of three words has no 4-gram: 0 in the released code, however like its source it is;
    with `effective_order` its 1- to 3-grams decide, so that a copy has BLEU 1.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(smooth_method="none", effective_order=effective_order)
    pairs = zip(outputs, sources, strict=True)  # sentence_score would warn in every row
    return np.array([bleu.corpus_score([out], [[src]]).score / 100 for out, src in pairs])


def shuffle_words(texts):
    """Each text with its words in a random order, the same in every run."""
    rng = random.Random(0)
    return [" ".join(rng.sample(words, len(words))) for words in map(str.split, texts)]


def choose_constants(sources):
    """The two outputs without learning: "no prediction", and the most frequent words of sources,
    as many as the median source has."""
    counts = Counter(word for source in sources for word in set(source.split()))
    frequent = sorted(counts, key=lambda word: (-counts[word], word))
    length = sorted(len(source.split()) for source in sources)[len(sources) // 2]
    return [NO_PREDICTION, " ".join(frequent[:length])]


def rank_references(points):
    """What a measure of paraphrases must not do: a note if it does, None if it does not."""
    wrong = [name for name in ("shuffled_source", "copy") if points[name] >= points["gold"]]
    if not wrong:
        return None
    told = ", ".join(f"{name.replace('_', ' ')} {value:.1f}" for name, value in points.items())
    return f"this measure is not to be trusted here, it ranks {wrong[0]} above gold: {told}"


def score_paraphrase(rows, task, options):
    """BERT-iBLEU, its two parts, and the share of outputs that repeat their source.

    BS 0.8 and SB 0.5 give 5 / (4 / 0.8 + 1 / 0.5) = 71.4; a copy, SB 1, about 0. The same measure
    of gold targets, of sources with their words shuffled and of copies stands beside it.
    """
    sources = [row.source.strip() for row in rows]
    if "" in sources:
        raise UserError(f"row {sources.index('') + 1}: an empty source has no paraphrase")
    outputs = [row.prediction.strip() or NO_PREDICTION for row in rows]
    points = {"gold": [row.target.strip() or NO_PREDICTION for row in rows]}
    points |= {"shuffled_source": shuffle_words(sources), "copy": sources}
    constants = choose_constants(sources)
    scorer, settings = load_bertscore(options.bertscore_model, options.bertscore_layers)
    columns = [outputs, *points.values(), *([text] * len(rows) for text in constants)]
    similar = compute_bertscore(scorer, columns, sources)
    bleu = [compute_bleu(column, sources, True) for column in columns]
    ibleu = combine_ibleu(similar, bleu)
    values = score_released_paraphrase(rows, similar[0], scorer)
    values |= {"bert_ibleu": ibleu[0], "self_bleu": bleu[0], "bertscore": similar[0]}
    pairs = zip(outputs, sources, strict=True)
    values["copy_rate"] = [output.split() == source.split() for output, source in pairs]
    means = [float(100 * row.mean()) for row in ibleu]
    points = dict(zip(points, means[1:4], strict=True))
    score, text = max(zip(means[4:], constants, strict=True))
    # The paper's own test files repeat the source as the target.
    differ = any(row.target.strip() != row.source.strip() for row in rows)
    note = rank_references(points) if differ else None
    details = {"reference_points": points} | ({"note": note} if note else {})
    rule = {} if options.rule == "released" else {"rule": "effective-order"}  # not strict
    settings = {**rule, "beta": 4, "bleu": "13a,4-gram,unsmoothed", **settings}
    parts, invalid = {key: make_parts(each) for key, each in values.items()}, np.zeros(len(rows))
    return Scores(parts, {"": (text, score)}, settings, invalid > 0, details)


def score_released_paraphrase(rows, similar, scorer):
    """BERT-iBLEU and self-BLEU, each (n,) 0-1, against sources as token ids give them back.

    `similar` is BERTScore against the sources themselves; it is used where they are the same.
    """
    sources = [row.released_source.strip() or NO_PREDICTION for row in rows]
    outputs = [row.released_output.strip() or NO_PREDICTION for row in rows]
    if sources != [row.source.strip() for row in rows]:
        (similar,) = compute_bertscore(scorer, [outputs], sources)
    bleu = compute_bleu(outputs, sources, False)
    return {"bert_ibleu_released": combine_ibleu(similar, bleu), "self_bleu_released": bleu}
