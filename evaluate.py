"""Score predictions, or a model's greedy outputs, by the strict rule and by the released one.

Usage:
  python evaluate.py --task wlp --model runs/paper/wlp/small-n1000-s0/model \\
      --data data/prepared/paper/wlp/test.jsonl --output runs/paper/wlp/small-n1000-s0
  python evaluate.py --task wlp --predictions predictions.jsonl --json   # seconds, without torch
  python evaluate.py --task wlp --compare ann.jsonl dist.jsonl           # paired difference
Reads:  data/tasks.json; a JSONL file of {"source", "target", "prediction"}, or a Hugging Face
        model (T5 or any other seq2seq, or an encoder classifier) and {"source", "target"}
Writes: stdout: the scores. With --output: OUTPUT/predictions.jsonl (every raw output is kept),
        OUTPUT/row_scores.json (each row's part of the strict score), then OUTPUT/metrics.json,
        last and atomically, with the training.json that lies beside it
Copy:   evaluate.py data/__init__.py data/files.py data/tasks.py data/evaluate/ data/tasks.json
Paper:  section 3 (measures), Table 8 (lengths), Table 9 (macro F1, EM), Table 10 (classifiers)

All scores are percentages. A key that ends in _released is the released scorer's rule, every other
key the right one; `score` is the task's headline, the right one unless --rule released is given.

Entities, 'Entity [Label] Entity [Label] ...'. A word is a label if it is one of the task's, exact
in brackets and case; other bracketed words are text. Whitespace is collapsed, case is kept. Strict:
the multisets of (text, label) in each sentence are compared, micro. An output is invalid if words
follow its last label, if a label has no text, or if a bracketed word is neither label nor source.
  f1_released, macro_f1_released: each entity loses its last word, one entity per remaining text is
  kept, a missing one counts as paper_default_label, extra ones are free. See parse_released().
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
the target as it was annotated. `generated` is the raw output (unknown characters vanish), and
`target_decoded` the target as its token ids give it back, cut to --max-target-length: the paper's
rule compares these two. entity_f1_unrestored is the strict score of `generated`. Real targets sent
through T5's vocabulary and back score 95.9 unrestored and 100.0 restored on WLP's test set. Without
a model, the _released keys compare the texts as given, or as --released-vocabulary FILE, with
--max-target-length if that is given, would decode them.
"""

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from data.evaluate.metrics import METRICS, Row, parse_entities
from data.files import (
    ROOT,
    UserError,
    read_json,
    read_jsonl,
    run_cli,
    write_atomic,
    write_json,
)
from data.tasks import load_task

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
    several = task.metric == "answers"
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
        generated = row.get("generated")
        output = prediction if generated is None else generated
        paper = row.get("target_decoded", target), output
        if written and isinstance(target, str):
            paper = written(target, max_target_length), written(output)
        made.append(Row(row["source"], target, prediction, generated, *paper))
    return made


def read_vocabulary(path):
    """A function text -> text as token ids of this SentencePiece model give it back."""
    import sentencepiece

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; --released-vocabulary takes a spiece.model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise UserError(f"{path}: no SentencePiece model") from None

    def write(text, limit=None):
        ids = model.encode(text)
        ids = ids if limit is None or len(ids) < limit else ids[: limit - 1]  # and one for </s>
        return model.decode([i for i in ids if i != model.unk_id()])

    return write


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


def score_rows(rows, task, options):
    """Score Rows by the task's metric family."""
    return METRICS[task.metric](rows, task, options)


def show_signature(scores, options, rows):
    """Everything that decides the numbers, as one line in sacrebleu's manner."""
    paper = "token-ids" if any(row.released_target is not row.target for row in rows) else "text"
    settings = {"rule": options.rule, **scores.settings}
    if any(key.endswith("_released") for key in scores.finish(scores.columns[:1], 1)):
        settings["released_side"] = paper
    settings |= {"bootstrap": options.bootstrap, "seed": options.seed, "version": 1}
    return "|".join(f"{key}:{value}" for key, value in settings.items())


def summarize(scores, task, options, rows):
    """The result of one set of predictions, as in metrics.json."""
    n = len(rows)
    point = scores.finish(scores.columns.sum(0), n)
    metrics = {key: float(value) for key, value in point.items()}
    suffix = "_released" if options.rule == "released" and "_released" in scores.constants else ""
    text, constant = scores.constants[suffix]
    result = {
        "task": task.name,
        "task_sha256": task.hash_rules(),
        "n": n,
        "metric": scores.headline,
        "score": metrics[scores.headline],
        "metrics": metrics | {f"constant{key}": pair[1] for key, pair in scores.constants.items()},
        "constant": {"metric": scores.headline, "prediction": text, "score": constant},
    }
    if options.bootstrap:
        sums = bootstrap_sums(scores.columns, options.bootstrap, options.seed)
        values = scores.finish(sums, n)
        result["intervals"] = {key: find_interval(value) for key, value in values.items()}
    return result | {"signature": show_signature(scores, options, rows)}


def write_rows(folder, scores, task, n):
    """row_scores.json: two lists over the rows, of the strict score's numerator and denominator.

    Their sums give the score of any part of the rows, and of two runs on the same rows the
    sampling error of a difference (data/plots/paired.py).
    """
    parts = [[round(float(value), 6) for value in column] for column in scores.parts.T]
    told = {"task": task, "n": n, "numerators": parts[0], "denominators": parts[1]}
    write_atomic(folder / "row_scores.json", json.dumps(told, allow_nan=False) + "\n")


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
    both = [make_rows(rows, options.released_vocabulary, limit) for rows in both]
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
            "interval": find_interval(drawn),
            "p_value": float((extreme + 1) / (len(drawn) + 1)),
        }
    metrics = {key: metrics[key] for key in scores[0] if key in metrics}
    signature = show_signature(first, options, both[0])
    head = {"task": task.name, "n": n, "metric": first.headline, **metrics[first.headline]}
    return head | {"metrics": metrics, "signature": signature}


# --- a model's outputs ----------------------------------------------------------------------


def restore_entities(output, source, brackets, restorer):
    """An output, unknown tokens shown, with its entities as the source writes them."""
    entities, leftover = parse_entities(output, brackets)
    texts = restorer.restore([text for text, _ in entities], source)
    pairs = zip(texts, entities, strict=True)
    parts = [f"{text} [{label}]" for text, (_, label) in pairs]
    return " ".join(" ".join([*parts, *leftover]).replace(restorer.unknown, "").split())


def generate_rows(options, task, rows, model, tokenizer, ids):
    """(rows of predictions.jsonl, counts) of a seq2seq model's greedy outputs."""
    from data.evaluate import decode

    limit, restored = options.max_target_length, 0
    found, unfinished = decode.generate_ids(model, tokenizer, ids, options.batch_size, limit)
    restorer, brackets = decode.Restorer(tokenizer), {f"[{name}]": name for name in task.labels}
    made = []
    for row, output, marked in zip(rows, *decode.decode_ids(found, tokenizer), strict=True):
        prediction = output
        if task.metric == "entities":
            prediction = restore_entities(marked, row["source"], brackets, restorer)
            same = prediction.split() == output.split()
            prediction, restored = (output if same else prediction), restored + (not same)
        made.append({**row, "prediction": prediction, "generated": output})
        if task.metric in ("entities", "classes"):
            made[-1]["target_decoded"] = decode.decode_target(row["target"], tokenizer, limit)
    return made, {"truncated_outputs": unfinished, "restored_outputs": restored}


def predict(options, task, rows):
    """(rows of predictions.jsonl, counts, seconds) of a model on the data's rows."""
    times = [time.monotonic()]
    from data.evaluate import decode

    model, tokenizer, classifier = decode.load_model(options.model, options.bf16)
    times.append(time.monotonic())
    if classifier and task.metric != "classes":
        raise UserError(f"{options.model}: a classifier cannot do the {task.metric} of a task")
    prefix = options.prefix
    if prefix is None:
        prefix = "" if classifier else task.prefix
    texts = [prefix + row["source"] for row in rows]
    ids, cut = decode.encode_sources(texts, tokenizer, options.max_source_length)
    counts = {"truncated_sources": cut, "parameters": model.num_parameters()}
    if classifier:
        names = decode.name_classes(model, task.labels, options.model)
        outputs = decode.classify(model, tokenizer, ids, options.batch_size, names)
        pairs = zip(rows, outputs, strict=True)
        rows = [{**row, "prediction": output, "generated": output} for row, output in pairs]
    else:
        rows, more = generate_rows(options, task, rows, model, tokenizer, ids)
        counts |= more
    times.append(time.monotonic())
    counts |= {"dtype": str(model.dtype).removeprefix("torch."), "prefix": prefix}
    return rows, counts, {"load": times[1] - times[0], "generate": times[2] - times[1]}


def describe_run(options):
    """Hardware and provenance, so that a number can be trusted or made again."""
    from data.evaluate import decode

    hardware, versions = decode.describe_machine()
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    provenance = {
        "command": shlex.join(sys.argv),
        "versions": {**versions, "numpy": np.__version__},
        "git_commit": commit or None,
        "model": options.model,
        "data": str(options.data),
        "data_sha256": hashlib.sha256(options.data.read_bytes()).hexdigest(),
    }
    return {"hardware": hardware, "provenance": provenance}


def evaluate_model(options, task):
    """Decode, write predictions.jsonl, score, write metrics.json. Returns what the latter holds."""
    rows = read_jsonl(options.data)
    check_texts(rows, options.data, ("source", "target"), task.metric == "answers")
    rows = [{"source": row["source"], "target": row["target"]} for row in rows]
    rows, counts, seconds = predict(options, task, rows)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_atomic(options.output / "predictions.jsonl", "".join(lines))
    start, rows = time.monotonic(), make_rows(rows)
    scores = score_rows(rows, task, options)
    result = summarize(scores, task, options, rows)
    write_rows(options.output, scores, task.name, len(rows))
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
    add("--task", required=True, help="entry of data/tasks.json, or FILE.json or NAME=FILE.json")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--predictions", help="JSONL file of source, target, prediction")
    what.add_argument("--model", help="model folder or hub name; needs --data")
    what.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two prediction files")
    add("--data", type=Path, help="JSONL file of source and target; predictions must match it")
    add("--output", type=Path, help="folder to write (default: with --model its run folder)")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="print JSON (no)")
    add("--rule", choices=("strict", "released"), default="strict", help="of `score` (%(default)s)")
    add("--bootstrap", type=int, default=1000, help="samples for 95%% intervals (%(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    add("--released-vocabulary", help="spiece.model through which the _released keys see all texts")
    deberta = "microsoft/deberta-xlarge-mnli"
    name = "folder, hub name, or package:NAME of an installed one (%(default)s, the paper's)"
    add("--bertscore-model", default=deberta, help=name)
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
    """The flags that only decoding needs."""
    add("--split", help="name in metrics.json (default: the data file's, without its ending)")
    add("--prefix", help="put before sources (default: the task's; nothing for a classifier)")
    add("--max-source-length", type=int, help="tokens (default: the task's, Table 8)")
    limit = "tokens of outputs and of the _released keys' targets, the end token too (default: the "
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


def fill_from_task(options, task):
    """The task's lengths where no flag gives them."""
    for name in ("max_source_length", "max_target_length"):
        setattr(options, name, getattr(options, name) or getattr(task, name))
        if not getattr(options, name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: needed, as {options.task} has none in data/tasks.json")


def main(argv=None):
    options = parse_args(argv)
    task = load_task(options.task)
    if options.compare:
        result = compare_runs(options, task)
    elif options.model:
        options.output = options.output or choose_output(options)
        fill_from_task(options, task)
        result = evaluate_model(options, task)
    else:
        rows = read_rows(options.predictions, options.data, task)
        rows = make_rows(rows, options.released_vocabulary, options.max_target_length)
        scores = score_rows(rows, task, options)
        result = summarize(scores, task, options, rows)
        if options.output:
            write_rows(options.output, scores, task.name, len(rows))
            write_json(options.output / "metrics.json", result)
    if options.json:
        print(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False))
    else:
        print(show_comparison(result) if options.compare else show_result(result))


if __name__ == "__main__":
    run_cli(main)
