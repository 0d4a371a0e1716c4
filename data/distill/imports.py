"""Make a folder of labels for distill.py from the labels of a teacher in another framework.

Usage:
    python -m data.distill.imports --labels LABELS --student MODEL --prefix "wlp: " FILE
    python distill.py --teacher LABELS --student MODEL --temperature 1 --output RUN

Reads:  FILE: JSONL or Parquet of {"source", "target", "ids" or "tokens", "logprobs"}: at each token
        of the target the k likeliest ids or pieces of MODEL's vocabulary and their natural
        log-probabilities at temperature 1 (lists of lists); "target_ids" too, where MODEL cuts the
        text otherwise.
        With --classes: {"source", "logprobs"}, one a class.
        MODEL: the folder or hub name of the student, or of another model of its vocabulary.
Writes: LABELS, as distill.py describes it; the same file again gives the same folder.
Copy:   data/distill/imports.py distill.py data/__init__.py
"""

import argparse
import json
from itertools import islice
from pathlib import Path

import numpy as np

import distill


def parse_args(argv=None):
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add, length = parser.add_argument, distill.TABLE_8["length"]
    add("file", type=Path, help="labels of another framework, JSONL or .parquet")
    add("--labels", type=Path, required=True, help="folder to write")
    add("--student", default="google/t5-v1_1-small", help="folder or hub name (%(default)s)")
    add("--classes", nargs="+", help="class names that the scores are of, for an encoder")
    add("--prefix", default="", help='before every source the T5 reads, "wlp: " (default: nothing)')
    add("--max-source-length", type=int, default=length, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=length, help="tokens (%(default)s)")
    args = parser.parse_args(argv)
    if args.classes and len(set(args.classes)) < max(2, len(args.classes)):
        parser.error("--classes needs two names or more, each once")
    if not args.file.is_file():
        distill.fail(f"{args.file}: no such file")
    try:
        distill.check_limits(vars(args))
    except ValueError as error:
        parser.error(str(error))
    return args


def import_labels(args):
    """Make LABELS of FILE, a shard after another; a row at fault is named before its shard."""
    path, start, (config, tokenizer) = args.file, 0, distill.load_parts(args.student)
    key = {"teacher": "imported", "unlabeled": distill.hash_file(path), "prefix": args.prefix}
    key |= {n: getattr(args, n) for n in ("max_source_length", "max_target_length", "classes")}
    key |= {"vocabulary": distill.hash_json(tokenizer.get_vocab()), "top_k": 0}
    key |= {"vocabulary_size": config.vocab_size, "temperatures": [1.0]}
    answers = read_answers(path)
    while part := list(islice(answers, distill.SHARD_ROWS)):
        rows = [read_answer(*answer, key, tokenizer) for answer in part]
        manifest = distill.open_manifest(args.labels, lambda: {"key": key, "model": str(path)})
        if manifest["key"] != key:
            distill.fail(f"{args.labels} holds other labels; choose another --labels")
        table = distill.make_table(rows, key, tokenizer)
        distill.write_shard(args.labels, key, start, table, seconds=0, processes=1)
        start += len(rows)
        distill.say(f"[labels] {start:,} rows")
    if not start:
        distill.fail(f"{path}: no rows")
    distill.write_index(args.labels)


def read_answers(path):
    """(where it stands, row) of a JSONL or Parquet file, one after another."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        rows = (row for batch in ParquetFile(path).iter_batches(64) for row in batch.to_pylist())
        yield from ((f"{path} row {number}", row) for number, row in enumerate(rows, 1))
        return
    number = 0
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path} line {number}", line
    except UnicodeDecodeError as error:
        distill.fail(f"{path} after line {number}: not UTF-8 ({error.reason})")


def read_answer(where, row, key, tokenizer):
    """One row as distill.make_table() takes it; what is wrong with it is said with its place."""
    try:
        row = json.loads(row) if isinstance(row, str) else row
        text, scores = row["source"], np.array(row["logprobs"], np.float64)
        if not text.strip():
            raise ValueError("an empty source")
        whole = tokenizer(key["prefix"] + text).input_ids
        if key["classes"]:
            soft = {"logprobs": read_scores(scores, len(key["classes"]))}
        else:
            soft = read_tokens(row, scores, key, tokenizer)
    except KeyError as error:
        distill.fail(f"{where}: no field {error}; `Reads` in --help says what a row has")
    except (TypeError, AttributeError, IndexError, OverflowError) as error:
        distill.fail(f"{where}: not as `Reads` in --help has a row ({str(error).splitlines()[0]})")
    except (ValueError, RecursionError) as error:
        distill.fail(f"{where}: {str(error).splitlines()[0]}")
    (ids,) = distill.cut_rows([whole], key["max_source_length"])
    return {"source": text, "input_ids": ids, "cut_source": len(ids) < len(whole), **soft}


def read_scores(scores, count):
    """Log-probabilities (C) of `count` classes, normalised over them."""
    if scores.shape != (count,) or not np.isfinite(scores).all():
        raise ValueError(f"logprobs: not {count} numbers, one for each class")
    return (scores - np.logaddexp.reduce(scores)).astype(np.float32)


def read_tokens(row, scores, key, tokenizer):
    """What LABELS keeps of the k likeliest ids at each token of the target, at temperature 1.

    Of all other ids only the mass is known, 1 - sum, and no better than to 1e-9.
    """
    labels, ids = row.get("target_ids"), row.get("ids")
    labels = tokenizer(text_target=row["target"]).input_ids if labels is None else labels
    ids = [find_ids(step, tokenizer) for step in row["tokens"]] if ids is None else ids
    labels, ids, mass = np.array(labels), np.array(ids), np.exp(scores).sum(-1)
    if ids.dtype.kind != "i" or ids.ndim != 2 or ids.shape != scores.shape or not ids.size:
        raise ValueError("ids and logprobs are no lists of the same k for each token of the target")
    if labels.shape != ids.shape[:1]:
        raise ValueError(f"{len(labels)} tokens in target, {len(ids)} in logprobs: give target_ids")
    key["top_k"] = key["top_k"] or ids.shape[1]
    if ids.shape[1] != key["top_k"] or min(map(len, map(set, ids))) < key["top_k"]:
        raise ValueError(f"not {key['top_k']} different ids for each token, as in the first row")
    every, size = np.append(labels, ids), key["vocabulary_size"]
    if every.dtype.kind != "i" or every.min() < 0 or every.max() >= size:
        raise ValueError(f"not all ids are within the vocabulary of {size:,}")
    if not (mass <= 1.001).all():
        raise ValueError("logprobs: not the natural logarithms of probabilities that add to 1")
    largest, limit = scores.max(1, keepdims=True), key["max_target_length"]
    soft = {
        "labels": labels.astype(np.int32),
        "ids": ids.astype(np.int32),
        "logits": (scores - largest).clip(-6e4).astype(np.float16),
        "rest": (np.log(np.maximum(1 - mass, 1e-9))[:, None] - largest).astype(np.float32),
    }
    soft = {name: values[:limit] for name, values in soft.items()}
    cut = bool(soft["labels"][-1] != tokenizer.eos_token_id)
    outside = np.maximum(1 - mass[:limit], 0).sum(keepdims=True).astype(np.float32)
    return {**soft, "outside": outside, "cut_target": cut}


def find_ids(pieces, tokenizer):
    """The ids of pieces; a ValueError names one that the vocabulary has not."""
    ids = tokenizer.convert_tokens_to_ids(pieces)
    for piece, token in zip(pieces, ids, strict=True):
        if token is None or (token == tokenizer.unk_token_id and piece != tokenizer.unk_token):
            raise ValueError(f"tokens: {piece!r} is not in the vocabulary")
    return ids


def main(argv=None):
    args = parse_args(argv)
    with distill.run_folder(args.labels):
        import_labels(args)


if __name__ == "__main__":
    main()
