"""Score predictions or a model's greedy outputs, by a strict and by the released rule; label rows.

Usage:
  python evaluate.py --task wlp --model runs/paper/wlp/small-n1000-s0/model \\
      --data data/prepared/paper/wlp/test.jsonl --output runs/paper/wlp/small-n1000-s0
  python evaluate.py --task wlp --predictions predictions.jsonl --json   # seconds, without torch
  python evaluate.py --task wlp --compare RUN RUN RUN        # run folders or predictions.jsonl
  python evaluate.py --task wlp --model MODEL --predict new.jsonl --output labeled.jsonl
Reads:  data/tasks.json; a JSONL file of {"source", "target", "prediction"}, or a Hugging Face
        model (T5 or any other seq2seq, or an encoder classifier) and {"source", "target"}; with
        --predict {"source"} suffices, and - is stdin
Writes: stdout: the scores. With --output: OUTPUT/predictions.jsonl (every raw output is kept),
        OUTPUT/row_scores.json (each row's part of the strict score), OUTPUT/errors.md (what is
        wrong, worst first), README.md in a model folder of this project (its card), then
        OUTPUT/metrics.json, last and atomically, with the training.json that lies beside it.
        With --predict: rows of {"source", ..., "text", "confidence", "scores" or "spans"} to
        OUTPUT or stdout, as data/evaluate/predict.py says
Copy:   evaluate.py data/__init__.py data/files.py data/tasks.py data/columns.py data/spans.py
        data/evaluate/ data/plots/paired.py data/tasks.json
Paper:  section 3 (measures), Table 8 (lengths), Table 9 (macro F1, EM), Table 10 (classifiers)

All scores are percentages. A key that ends in _released is the released scorer's rule, every other
key the strict one; `score` is the task's headline, strict unless --rule released is given. Strict
rules compare texts in Unicode's form NFC, in which u and a combining mark are the same as ü.

Entities, 'Entity [Label] Entity [Label] ...'. A word is a label if it is one of the task's, exact
in brackets and case; other bracketed words are text. Whitespace is collapsed, case is kept. The
multisets of (text, label) in each sentence are compared, micro: their order is not checked. An
output is invalid if words follow its last label (which else cost nothing), if a label has no text,
or if a bracketed word is neither label nor source. exact_match counts rows without entities too.
  f1_released, macro_f1_released: each entity loses its last word, one entity per remaining text is
  kept, a missing one counts as paper_default_label, extra ones are free. See parse_released().
Classes. Case and outer whitespace are ignored. An output that is no label is invalid and wrong for
every class: micro F1 is the share of right rows, macro F1 the mean over classes that occur in
targets or outputs. By the released rule such an output counts as paper_default_label.
Answers. SQuAD's EM and F1: lower case; punctuation, articles and extra whitespace removed; the
best of several targets. As in SQuAD 1.1, no shared word is F1 0, even if both sides are empty.
Paraphrase. BERT-iBLEU, mean over rows of 5 / (4 / BS + 1 / (1 - SB)), BS and SB each + 1e-5; SB is
sentence BLEU and BS BERTScore F1, both against the source. An empty output is "no prediction". SB
of outputs under four words is of their shorter n-grams, so that a copy scores 0; the released rule
has 0 for their SB, so that a copy of "Good night !" scores 100. Beside it stand reference_points:
the same of gold targets, of sources with shuffled words and of copies; where one of the latter is
above gold, a note says that the measure is not to be trusted. It is not called strict.

Where rows have a "half", such as whether their fact is "shared" with unlabeled rows or "new", all
scores are given for each of its values as well: "by" in metrics.json.

constant is the best score without learning: the most frequent class; the one entity whose
repetition in every output scores best; the best single word or frequent answer; for paraphrase
the better of "no prediction" and the most frequent words, as many as the median source has.

What a vocabulary cannot write. T5's lacks 'μ', '×', '≥', '<' and others in 19% of WLP's targets
and writes '²' as 2. With --model, entities are copied from the source, so each generated entity is
aligned with its source and the source's own characters are given back ("25 <unk>l" -> "25 μl"),
and a class is known by the token ids of its label as training cuts them ("=50K" -> "<=50K"):
`prediction` is this text, which a user of the model gets and which the strict rule compares with
the target as it was annotated. `generated` is the raw output (unknown characters vanish), and
`target_decoded` the target as its token ids give it back, cut to --max-target-length (for
paraphrase `source_decoded`, the source): the released rule compares these. entity_f1_unrestored is
the strict score of `generated`. Real targets sent through T5's vocabulary and back score 95.9
unrestored and 100.0 restored on WLP's test set. unwritable_targets counts rows whose target cannot
come back whole. Without a model, the _released keys compare the texts as given.

Prefix and lengths are those that the model was trained with (model/preprocessing.json), else the
task's. Scores depend on them: a model of WLP scored 51.3 cut at 64 tokens and 47.6 at 128.
Intervals and p-values are of the drawing of test rows alone, not of seeds: where seeds differ by
more, a small p means nothing. --compare adjusts p by Holm for the number of runs.
"""

import argparse
import itertools
import json
import shlex
import sys
import time
from importlib.metadata import version
from pathlib import Path

from data.files import (
    UserError,
    check_overwrite,
    find_commit,
    hash_file,
    make_parser,
    read_if_there,
    run_cli,
    show_rows,
    write_atomic,
    write_json,
)
from data.tasks import load_task

OUTPUTS = "predictions.jsonl", "row_scores.json", "errors.md", "metrics.json"
TRAINING = {"seconds": {None: float}, "hardware": dict, "labels": int, "unlabeled": int}
TRAINING["teacher"] = {"training": {"seconds": {None: float}}}

# --- a model's outputs -----------------------------------------------------------------------


def choose_settings(options, task):
    """Prefix and lengths: a flag's, else those the model was trained with, else the task's.

    Differences between the three are said on stderr; other labels than in training are refused.
    """
    path = Path(options.model, "preprocessing.json")
    kinds = {"prefix": str, "max_source_length": int, "max_target_length": int}
    trained = read_if_there(path, {**kinds, "task": str, "labels": [str]})
    labels = trained.get("labels")  # the classes of an encoder
    if labels and not {x.upper() for x in labels} <= {x.upper() for x in task.labels}:
        raise UserError(f"{path}: trained on labels {labels}, but {task.name} has others")
    if trained.get("task") not in (None, task.name):
        print(f"note: {path} is of task {trained['task']!r}, not {task.name!r}", file=sys.stderr)
    settings = {}
    for key in kinds:
        given, known, usual = getattr(options, key), trained.get(key), getattr(task, key)
        settings[key] = next(value for value in (given, known, usual) if value is not None)
        if known not in (None, settings[key]):
            told = f"--{key.replace('_', '-')} {settings[key]!r}, but the model was trained with"
            print(f"note: {told} {known!r}", file=sys.stderr)
    return settings


def check_paths(options):
    """Refuse a model folder and a file that are not there, before libraries load for seconds."""
    name, folder = options.model, Path(options.model)
    named = name.startswith((".", "/")) or name.count("/") != 1 or folder.parent.is_dir()
    if named and not folder.is_dir():
        raise UserError(f"{name}: no such model folder")
    if (folder / "model").is_dir():
        raise UserError(f"{name}: a run folder, whose model is {folder / 'model'}")
    if options.predict not in (None, "-") and not Path(options.predict).is_file():
        raise UserError(f"--predict {options.predict!r}: no such file")


def load_parts(options, task):
    """(loaded model, reader of its outputs, settings)."""
    settings = choose_settings(options, task)
    from data.evaluate import decode

    loaded = decode.load_model(options.model, options.bf16, options.batch_size)
    trained = Path(options.model, "preprocessing.json").exists()
    if loaded.classifier and options.prefix is None and not trained:
        settings["prefix"] = ""
    settings["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
    return loaded, decode.Reader(loaded, task, settings, options.model), settings


def predict(rows, task, loaded, reader):
    """(rows of predictions.jsonl, counts, numbers of cut outputs) of a model's greedy outputs."""
    from data.evaluate import decode

    with decode.show_progress("decode", len(rows)) as progress:
        out = reader.decode([row["source"] for row in rows], progress)
    counts = {"truncated_sources": out.cut, "parameters": loaded.model.num_parameters()}
    pairs = zip(rows, out.predictions, out.texts, strict=True)
    made = [{**row, "prediction": text, "generated": raw} for row, text, raw in pairs]
    if loaded.classifier:
        return made, counts, ()
    short, truncated, lost = decode.decode_targets(
        made, task.metric, loaded.tokenizer, reader.limit
    )
    stripped = (decode.strip_ids(row, loaded.tokenizer) for row in out.ids)
    cut = {number for number, row in enumerate(stripped) if number in out.unended or row in short}
    restored = [row["prediction"].split() != row["generated"].split() for row in made]
    counts |= {"truncated_targets": truncated, "unwritable_targets": lost}
    counts |= {"truncated_outputs": len(cut), "restored_outputs": sum(restored)}
    return made, counts, cut


def describe_run(options):
    """Hardware and provenance, so that a number can be trusted or made again."""
    from data.evaluate import decode

    hardware, versions = decode.describe_machine()
    provenance = {
        "command": shlex.join(sys.argv),
        "versions": {**versions, "numpy": version("numpy")},
        "git_commit": find_commit(),
        "model": options.model,
        "data": str(options.data),
        "data_sha256": hash_file(options.data),
    }
    return {"hardware": hardware, "provenance": provenance}


def evaluate_model(options, task):
    """Decode, write predictions.jsonl, score, write metrics.json. Returns what the latter holds."""
    from data.evaluate import report, scores

    check_overwrite((options.output / name for name in OUTPUTS), [options.data])
    rows = scores.read_data(options.data, task)
    training = read_if_there(options.output / "training.json", TRAINING) or None
    times = [time.monotonic()]
    loaded, reader, settings = load_parts(options, task)
    times.append(time.monotonic())
    rows, counts, cut = predict(rows, task, loaded, reader)
    times.append(time.monotonic())
    write_atomic(options.output / "predictions.jsonl", show_rows(rows))
    result = score_into(options, task, rows, cut)
    times.append(time.monotonic())
    spans = (end - start for start, end in itertools.pairwise(times))
    seconds = dict(zip(("load", "generate", "score"), spans, strict=True))
    result |= {"split": options.data.stem, **counts}
    result["settings"] = {**settings, "batch_size": loaded.batch_size}
    result |= {"seconds": seconds, "training": training, **describe_run(options)}
    report.write_card(options, task, result)
    write_json(options.output / "metrics.json", result)
    return result


def score_into(options, task, rows, cut=()):
    """The result of rows of predictions; with an output folder, row_scores.json and errors.md.

    row_scores.json has two lists over the rows, the strict score's numerators and denominators:
    their sums give the score of any part of the rows, and of two runs on the same rows the
    sampling error of a difference (data/plots/paired.py).
    """
    from data.evaluate import report, scores

    result, found = scores.summarize(rows, task, options)
    if options.output:
        parts = [[round(float(value), 6) for value in column] for column in found.parts.T]
        told = {"task": task.name, "n": len(rows), "numerators": parts[0], "denominators": parts[1]}
        write_atomic(options.output / "row_scores.json", json.dumps(told, allow_nan=False) + "\n")
        write_atomic(options.output / "errors.md", report.show_errors(result, rows, found, cut))
    return result


# --- command line ----------------------------------------------------------------------------


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--task", required=True, help="entry of data/tasks.json, or FILE.json or NAME=FILE.json")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--model", help="model folder or hub name; needs --data or --predict")
    what.add_argument("--predictions", help="JSONL file of source, target, prediction")
    compared = "run folders, or their predictions.jsonl, on the same rows; the first is compared to"
    what.add_argument("--compare", nargs="+", metavar="RUN", help=compared)
    add("--predict", metavar="FILE", help="label the rows of a file by --model; - is stdin")
    guess = "the entry's source_column, else source, text, sentence, question or input"
    add("--source-column", help=f"the text in --predict's file (default: {guess})")
    add("--data", type=Path, help="JSONL file of source and target; predictions must match it")
    output = "folder to write (default: with --model its run folder); with --predict, the JSONL "
    add("--output", type=Path, help=output + "file (default: stdout; a file can be continued)")
    add("--json", action=argparse.BooleanOptionalAction, default=False, help="print JSON (no)")
    add("--rule", choices=("strict", "released"), default="strict", help="of `score` (%(default)s)")
    add("--bootstrap", type=int, default=1000, help="samples for 95%% intervals (%(default)s)")
    add("--seed", type=int, default=0, help="of the bootstrap (%(default)s)")
    deberta = "microsoft/deberta-xlarge-mnli"
    name = "folder, hub name, or package:NAME of an installed one (%(default)s, the paper's)"
    add("--bertscore-model", default=deberta, help=name)
    add("--bertscore-layers", type=int, help="layers used (default: bert-score's for the model)")
    add_decoding_flags(parser.add_argument_group("with --model").add_argument)
    options = parser.parse_args(argv)
    check_args(parser, options)
    return options


def add_decoding_flags(add):
    """The flags that only decoding needs."""
    trained = "(default: as the model was trained, else the task's)"
    add("--prefix", help=f"put before sources {trained}")
    add("--max-source-length", type=int, help=f"tokens {trained}")
    limit = "tokens of outputs and of the _released keys' targets, the end token too"
    add("--max-target-length", type=int, help=f"{limit} {trained}")
    more = "rows decoded at once; halved where memory runs out (default: 128; with --predict on a "
    add("--batch-size", type=int, help=more + "GPU what fits)")
    bf16 = "decode in bf16, not fp32 (default: where the GPU has it; the paper used fp32)"
    add("--bf16", action=argparse.BooleanOptionalAction, help=bf16)
    add("--usd-per-hour", type=float, help="of this machine, for --predict's dollars a million")


def check_args(parser, options):
    """Refuse a command line that cannot be meant, with exit code 2."""
    if options.model and (options.data is None) == (options.predict is None):
        parser.error("--model needs --data or --predict")
    if options.predict is not None and not options.model:
        parser.error("--predict needs --model")
    for name in ("source_column", "usd_per_hour") if options.predict is None else ():
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} needs --predict")
    if options.compare and (len(options.compare) < 2 or options.output):
        parser.error("--compare needs two runs or more, and prints alone: no --output")
    least = {"batch_size": 1, "max_source_length": 2, "max_target_length": 2, "bertscore_layers": 1}
    for name, low in {**least, "bootstrap": bool(options.compare) + 0, "seed": 0}.items():
        value = getattr(options, name)
        if value is not None and value < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}")
    if options.bootstrap > 100_000:
        parser.error("--bootstrap must be at most 100,000")
    if options.usd_per_hour is not None and not 0 <= options.usd_per_hour < float("inf"):
        parser.error("--usd-per-hour must be a number of dollars")


def choose_output(options):
    """Where a model's results go if no --output says so."""
    folder = Path(options.model)
    if not folder.is_dir():
        raise UserError(f"--output: needed for {options.model}, which is no local folder")
    return folder.parent if (folder.parent / "training.json").exists() else folder


def main(argv=None):
    options = parse_args(argv)
    from data.evaluate import report, scores  # after --help; run_cli() tells of a missing package

    task = load_task(options.task)
    if options.model:
        check_paths(options)
    if options.predict is not None:
        from data.evaluate.predict import predict_file, read_rows

        rows = read_rows(options, task)  # what is wrong with them is said before torch loads
        return predict_file(options, rows, *load_parts(options, task))
    if options.compare:
        result = scores.compare_runs(options, task)
    elif options.model:
        options.batch_size = options.batch_size or 128
        options.output = options.output or choose_output(options)
        result = evaluate_model(options, task)
    else:
        if options.output:
            outputs = (options.output / name for name in OUTPUTS[1:])
            check_overwrite(outputs, [options.predictions, options.data])
            there = options.output / OUTPUTS[0]
            if there.exists() and hash_file(there) != hash_file(options.predictions):
                raise UserError(f"{there}: other predictions than these; choose another --output")
        rows = scores.read_rows(options.predictions, options.data, task)
        result = score_into(options, task, rows)
        if options.output:
            write_json(options.output / "metrics.json", result)
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(report.show_comparison(result) if options.compare else report.show_result(result))


if __name__ == "__main__":
    run_cli(main)
