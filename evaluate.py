"""Score predictions or a model's greedy outputs, by a strict and by the released rule; label rows.

Usage:
  python evaluate.py --task wlp --model runs/paper/wlp/small-n1000-s0/model \\
      --data data/prepared/paper/wlp/test.jsonl --output runs/paper/wlp/small-n1000-s0
  python evaluate.py --task wlp --predictions predictions.jsonl --json   # seconds, without torch
  python evaluate.py --task wlp --compare RUN RUN RUN        # run folders or predictions.jsonl
  python evaluate.py --task wlp --model MODEL --predict new.jsonl --output labeled.jsonl
Reads:  data/tasks.json; a JSONL file of {"source", "target", "prediction"}, or a Hugging Face
        model (T5 or any other seq2seq, or an encoder classifier) and a file that data.prepare
        wrote, {"source", "target"}; with --predict any file of texts, - is stdin
Writes: stdout: the scores. With --output: OUTPUT/predictions.jsonl (every raw output is kept),
        OUTPUT/row_scores.json (each row's part of the strict score), OUTPUT/errors.md (what is
        wrong, worst first), README.md in a model folder of this project (its card), then
        OUTPUT/metrics.json, last and atomically, with the training.json that lies beside it.
        With --predict: OUTPUT or stdout, as data/evaluate/predict.py says
Copy:   evaluate.py data/__init__.py data/files.py data/tasks.py data/columns.py data/spans.py
        data/evaluate/ data/costs/prices.py data/plots/paired.py data/tasks.json
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
targets or outputs. By the released rule it counts as paper_default_label.
Answers. SQuAD's EM and F1: lower case; punctuation, articles and extra whitespace removed; the
best of several targets. As in SQuAD 1.1, no shared word is F1 0, even if both sides are empty.
Paraphrase. BERT-iBLEU, mean over rows of 5 / (4 / BS + 1 / (1 - SB)), BS and SB each + 1e-5; SB is
sentence BLEU and BS BERTScore F1, both against the source. An empty output is "no prediction". SB
of outputs under four words is of their shorter n-grams, so that a copy scores 0; the released rule
has 0 for their SB, so that a copy of "Good night !" scores 100. Beside it stand reference_points:
the same of gold targets, of sources with shuffled words and of copies; where one of the latter is
above gold, a note says that the measure is not to be trusted. It is not called strict.

Where rows have a "half" ("shared" with unlabeled rows or "new"), "by" has the scores of each. The
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
the strict score of `generated`: WLP's test targets through T5's vocabulary and back score 95.9, and
100.0 restored. unwritable_targets counts rows whose target cannot come back whole. Without a model,
the _released keys compare the texts as given.

Prefix and lengths are those that the model was trained with (model/preprocessing.json), else the
task's. Intervals and p-values are of the drawing of test rows alone, not of seeds: where seeds
differ by more, a small p means nothing. --compare adjusts p by Holm for the number of runs.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

from data.files import (
    UserError,
    check_overwrite,
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


def check_model(options):
    """Refuse a model folder that is not there, before libraries load for seconds; without --output
    the scores go to its run folder."""
    name, folder = options.model, Path(options.model)
    if (folder / "model").is_dir():
        raise UserError(f"{name}: a run folder, whose model is {folder / 'model'}")
    if not folder.is_dir():
        if name.startswith((".", "/")) or name.count("/") != 1 or folder.parent.is_dir():
            raise UserError(f"{name}: no such model folder")
        if options.data and not options.output:
            raise UserError(f"--output: needed for {name}, which is no local folder")
    if options.data and not options.output:
        trained = (folder.parent / "training.json").exists()
        options.output = folder.parent if trained else folder


def load_reader(options, task):
    """The model and what reads its outputs, with the settings of choose_settings()."""
    from data.evaluate import decode

    loaded = decode.load_model(options.model, options.bf16, options.batch_size)
    settings = choose_settings(options, task, loaded.classifier)
    settings["dtype"] = str(loaded.model.dtype).removeprefix("torch.")
    return decode.Reader(loaded, task, settings)


def choose_settings(options, task, classifier):
    """Prefix and lengths: a flag's, else those the model was trained with, else the task's, of
    which a classifier has no prefix.

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
        given, known = getattr(options, key), trained.get(key)
        usual = "" if classifier and key == "prefix" and not trained else getattr(task, key)
        settings[key] = next(value for value in (given, known, usual) if value is not None)
        if known not in (None, settings[key]):
            told = f"--{key.replace('_', '-')} {settings[key]!r}, but the model was trained with"
            print(f"note: {told} {known!r}", file=sys.stderr)
    return settings


def evaluate_model(options, task):
    """Decode, write predictions.jsonl, score: what metrics.json holds."""
    from data.evaluate import report, scores

    check_overwrite((options.output / name for name in OUTPUTS), [options.data])
    rows = scores.read_data(options.data, task)
    training = read_if_there(options.output / "training.json", TRAINING) or None
    options.batch_size = options.batch_size or 128
    start = time.monotonic()
    from data.evaluate import decode  # torch loads where the files are right

    reader = load_reader(options, task)
    loaded = time.monotonic()
    rows, counts, cut = decode.predict(rows, reader)
    decoded = time.monotonic()
    write_atomic(options.output / "predictions.jsonl", show_rows(rows))
    result = score_into(options, task, rows, cut)
    seconds = {"load": loaded - start, "generate": decoded - loaded}
    seconds["score"] = time.monotonic() - decoded
    result |= {"split": options.data.stem, **counts}
    result["settings"] = {**reader.settings, "batch_size": reader.loaded.batch_size}
    result |= {"seconds": seconds, "training": training, **decode.describe_run(options)}
    report.write_card(options, task, result)
    return result


def score_predictions(options, task):
    """Score a file of predictions: what metrics.json holds, if there is an output."""
    from data.evaluate import scores

    if options.output:
        outputs = (options.output / name for name in OUTPUTS[1:])
        check_overwrite(outputs, [options.predictions, options.data])
        there = options.output / OUTPUTS[0]
        if there.exists() and hash_file(there) != hash_file(options.predictions):
            raise UserError(f"{there}: other predictions than these; choose another --output")
    rows = scores.read_rows(options.predictions, options.data, task)
    return score_into(options, task, rows)


def score_into(options, task, rows, cut=()):
    """The result of rows of predictions; with an output folder, row_scores.json and errors.md.

    row_scores.json has two lists over the rows, the strict score's numerators and denominators:
    their sums give the score of any part of the rows, and of two runs on the same rows the
    sampling error of a difference (data/plots/paired.py).
    """
    from data.evaluate import report, scores

    result, found = scores.summarize(rows, task, options)
    if options.output:
        parts = found.parts[task.name_score()]
        numerators, denominators = parts.round(6).T.tolist()
        told = {"task": task.name, "n": len(rows), "numerators": numerators}
        told["denominators"] = denominators
        write_atomic(options.output / "row_scores.json", json.dumps(told, allow_nan=False) + "\n")
        errors = report.show_errors(result, rows, parts, found.invalid, cut)
        write_atomic(options.output / "errors.md", errors)
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
    label = "label the rows of a file by --model; - is stdin"
    add("--predict", type=Path, metavar="FILE", help=label)
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
    if options.predict and not options.model:
        parser.error("--predict needs --model")
    for name in ("source_column", "usd_per_hour") if not options.predict else ():
        if getattr(options, name) is not None:
            parser.error(f"--{name.replace('_', '-')} needs --predict")
    if options.compare and (len(options.compare) < 2 or options.output):
        parser.error("--compare needs two runs or more, and prints alone: no --output")
    least = {"batch_size": 1, "max_source_length": 2, "max_target_length": 2, "bertscore_layers": 1}
    least |= {"bootstrap": int(bool(options.compare)), "seed": 0, "usd_per_hour": 0}
    most = {"bootstrap": 100_000, "usd_per_hour": 1e6}
    for name, low in least.items():
        value, high = getattr(options, name), most.get(name, math.inf)
        if value is not None and not low <= value <= high:
            limits = f"at least {low}" + f" and at most {high:,.0f}" * (name in most)
            parser.error(f"--{name.replace('_', '-')} must be {limits}")


def main(argv=None):
    options = parse_args(argv)
    from data.evaluate import report, scores  # after --help; run_cli() tells of a missing package

    task = load_task(options.task)
    if options.model:
        check_model(options)
    if options.predict:
        from data.evaluate.predict import predict_file, read_rows

        rows = read_rows(options, task)  # what is wrong with them is said before torch loads
        return predict_file(options, rows, load_reader(options, task))
    if options.compare:
        result = scores.compare_runs(options, task)
    else:
        result = (evaluate_model if options.model else score_predictions)(options, task)
        if options.output:
            write_json(options.output / "metrics.json", result)
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False))
    else:
        print(report.show_comparison(result) if options.compare else report.show_result(result))


if __name__ == "__main__":
    run_cli(main)
