"""Compare ways to update bf16 weights with fp32 AdamW, fine-tuning a real small teacher.

Usage:
    python -m data.bench.optimisers --output data/results/optimisers.json
    python -m data.bench.optimisers --rates 3e-5 --seeds 0 --steps 20 --output /tmp/optimisers.json

Reads:  a T5 folder, TRAIN and DEV, JSONL files of source and target.
Writes: OUTPUT: settings, versions and the dev loss of every run, written after each one.
Paper:  Appendix C: AdamW at 3e-5 in fp32, which train_teacher.py --memory bf16 has to match.

The ways: `fp32 adamw`; `bf16 adamw`, which rounds small updates away; `bf16 adafactor`, the same
moments as train_teacher.py's SplitAdafactor but weights rounded to bf16; `bf16 split`,
SplitAdafactor itself; `fp32 split`, the same on fp32 weights, to tell rounding from the optimiser.
"""

import argparse
import platform
import random
import sys
import time
from pathlib import Path

import torch
import transformers

import train_teacher
from data.files import ROOT, make_parser

load = transformers.T5ForConditionalGeneration.from_pretrained

WAYS = ("fp32 adamw", "bf16 adamw", "bf16 adafactor", "bf16 split", "fp32 split")


def make_optimiser(way, model, rate):
    """The optimiser of one way."""
    if way.endswith("adamw"):
        return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    optimiser = train_teacher.SplitAdafactor(model.parameters(), rate)
    if way == "bf16 adafactor":

        def update(weight, grad, low, row, column, rates):
            exact = weight.float()
            train_teacher.update_weight(exact, grad, None, row, column, rates)
            weight.copy_(exact)

        optimiser.update = update
    return optimiser


def run_way(args, way, rate, seed, examples, dev, collate):
    """Mean nats per dev token after fine-tuning, and the seconds that took."""
    start, rng = time.monotonic(), random.Random(seed)
    torch.manual_seed(seed)
    dtype = torch.float32 if way.startswith("fp32") else torch.bfloat16
    model = load(args.model, dtype=dtype, dropout_rate=args.dropout).train()
    model.config.use_cache = False
    optimiser = make_optimiser(way, model, rate)
    for step in range(args.steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / args.steps)
        batch = collate(model, rng.sample(examples, args.batch_size))
        train_teacher.compute_loss(model, batch).backward()
        if way.endswith("adamw"):
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
    seconds = time.monotonic() - start
    return measure_loss(model.eval(), dev, collate), seconds


@torch.no_grad()
def measure_loss(model, rows, collate):
    """Mean nats per target token."""
    total, count = 0.0, 0
    for i in range(0, len(rows), 50):
        batch = collate(model, rows[i : i + 50])
        tokens = int((batch["labels"] != -100).sum())
        total += float(train_teacher.compute_loss(model, batch)) * tokens
        count += tokens
    return total / count


def read_examples(args, tokenizer, path, count):
    """The first `count` rows of a file, encoded."""
    limits = argparse.Namespace(prefix=args.prefix, max_source_length=64, max_target_length=64)
    rows = train_teacher.read_rows(path, "source", "target")[:count]
    return train_teacher.encode_rows(rows, tokenizer, limits)[0]


def show(result):
    """Mean dev loss over seeds, a row for each rate."""
    print(f"{'rate':>8}" + "".join(f"{way:>16}" for way in WAYS) + "   dev loss, nats a token")
    for rate in dict.fromkeys(run["rate"] for run in result["runs"]):
        cells = []
        for way in WAYS:
            found = [r["dev_loss"] for r in result["runs"] if (r["rate"], r["way"]) == (rate, way)]
            cells.append(f"{sum(found) / len(found):>16.4f}" if found else f"{'-':>16}")
        print(f"{rate:>8.0e}" + "".join(cells))


def parse_args(argv=None):
    parser = make_parser(__doc__)
    world = ROOT / "data" / "prepared" / "mini" / "wlp"
    add = parser.add_argument
    add("--model", default=str(ROOT / "data" / "world" / "models" / "teacher"), help="T5 folder")
    add("--train", type=Path, default=world / "train.jsonl", help="JSONL file")
    add("--dev", type=Path, default=world / "dev.jsonl", help="JSONL file")
    add("--prefix", default="wlp: ", help="put before sources (%(default)r)")
    add("--labels", type=int, default=500, help="rows trained on (%(default)s)")
    add("--dev-rows", type=int, default=200, help="rows measured on (%(default)s)")
    add("--rates", type=float, nargs="+", default=[3e-5, 1e-4, 3e-4, 1e-3], help="learning rates")
    add("--seeds", type=int, nargs="+", default=[0, 1], help="of batches and dropout (0 1)")
    add("--steps", type=int, default=300, help="optimiser steps (%(default)s)")
    add("--batch-size", type=int, default=16, help="rows a step (%(default)s)")
    add("--dropout", type=float, default=0.1, help="rate (%(default)s)")
    add("--output", type=Path, required=True, help="JSON file of the raw figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _, tokenizer = train_teacher.load_parts(args.model)
    examples = read_examples(args, tokenizer, args.train, args.labels)
    dev = read_examples(args, tokenizer, args.dev, args.dev_rows)

    def collate(model, rows):
        return transformers.DataCollatorForSeq2Seq(tokenizer, model=model)(
            [dict(row) for row in rows]
        )

    paths = ("output", "model", "train", "dev")
    settings = {key: value for key, value in vars(args).items() if key not in paths}
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    result = {"settings": settings, "versions": versions, "runs": []}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for rate in args.rates:
        for way in WAYS:
            for seed in args.seeds:
                loss, seconds = run_way(args, way, rate, seed, examples, dev, collate)
                print(f"[{way}, {rate:g}, seed {seed}] {loss:.4f}", file=sys.stderr)
                run = {"rate": rate, "way": way, "seed": seed, "dev_loss": loss}
                result["runs"].append({**run, "seconds": round(seconds, 1)})
                train_teacher.write_json(args.output, result)
    show(result)


if __name__ == "__main__":
    main()
