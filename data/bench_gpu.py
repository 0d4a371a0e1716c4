"""Measure the paper's WLP row on the GPU at hand: random weights, WLP's real lengths, our code.

Usage:
    python data/bench_gpu.py --output data/bench                  # T5-XXL and T5-Small, 10 minutes
    python data/bench_gpu.py --teacher mini --student mini --seconds 2 --output /tmp/bench

Reads:  data/wlp_lengths.json (token counts of 2,048 WLP rows); the training scripts themselves.
Writes: OUTPUT/DEVICE.json: device, versions, date, and every part's raw figures.
Copy:   data/bench_gpu.py data/wlp_lengths.json train_teacher.py distill.py
Paper:  Table 6: $67.5 to fine-tune T5-XXL on 5K labels, $435 to distill with 100K rows.

Parts: `tune`, train_teacher.py's Trainer as its plan says; `pass`, distill.py's greedy decoding
with soft labels, each row stopped at its real length; `student`, distill.py's Trainer on kept soft
labels; `released`, the same student with the teacher run in fp32 in every step, as the released
code does, where that fits. Speed does not depend on the weights' values, so they are random.
"""

import argparse
import contextlib
import copy
import datetime
import json
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import distill
import train_teacher

LENGTHS = Path(__file__).with_name("wlp_lengths.json")
MINI_SHAPE = (64, 128, 4, 2)  # d_model, d_ff, heads, layers
PAPER_USD = {"tune": 67.5, "distill": 435.0}  # Table 6, WLP: 5K labels, 100K rows
PARTS = ("tune", "pass", "student", "released")


def make_config(size, vocabulary):
    """T5 v1.1's config of that size; `mini` is for trying this script on a CPU."""
    shapes = {**train_teacher.T5_SHAPES, "mini": MINI_SHAPE}
    width, hidden, heads, layers = shapes[size]
    return transformers.T5Config(
        d_model=width,
        d_kv=width // heads if size == "mini" else 64,
        d_ff=hidden,
        num_heads=heads,
        num_layers=layers,
        vocab_size=vocabulary,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        use_cache=False,
    )


def make_model(config, dtype, device):
    """A model of random weights, made on the device, with a head of its own as T5 v1.1 has."""
    config, before = copy.deepcopy(config), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = transformers.T5ForConditionalGeneration(config)
            model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
            torch.nn.init.normal_(model.lm_head.weight, std=config.d_model**-0.5)
    finally:
        torch.set_default_dtype(before)
    return train_teacher.fuse_gelu(model)


def make_rows(lengths, vocabulary, count, seed=0):
    """Rows of random ids with WLP's lengths; the first source id encodes the target's length."""
    rng, rows = np.random.default_rng(seed), []
    for i in range(count):
        source, target = lengths[i % len(lengths)]
        ids, labels = (rng.integers(3, vocabulary, n) for n in (source, target))
        ids[0], ids[-1], labels[-1] = target + 2, 1, 1  # 1 ends a sequence; a length is 1 to 128
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def count_flops(config, lengths, way=6):
    """FLOP a row of a pass: `way` (6 to train, 2 to run) for each weight and real token.

    Attention's own products are left out, as is usual; at these lengths they are some 2%.
    """
    pieces = train_teacher.Footprint(config, [8, 8]).pieces[1:]
    totals = {"encoder": 0, "decoder": 0}
    for name, weights in pieces:
        totals["encoder" if name.startswith("encoder") else "decoder"] += weights
    source, target = np.mean(lengths, axis=0)
    return way * (totals["encoder"] * source + totals["decoder"] * target)


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


class Clock(transformers.TrainerCallback):
    """Times the steps after the first few, and stops the training when the time is up."""

    def __init__(self, seconds, device, skip=3):
        self.seconds, self.device, self.skip, self.times = seconds, device, skip, []

    def on_train_begin(self, args, state, control, **kwargs):
        self.begin = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        wait(self.device)
        self.times.append(time.monotonic())
        if self.times[-1] - self.begin > self.seconds and len(self.times) > self.skip + 1:
            control.should_training_stop = True

    def report(self, rows, device):
        """Steps timed, seconds a step (mean, fastest and slowest tenth) and rows a second."""
        steps = np.diff(self.times[self.skip :])
        peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
        return {
            "steps": len(steps),
            "seconds_a_step": float(steps.mean()),
            "seconds_a_step_10_90": np.quantile(steps, [0.1, 0.9]).tolist(),
            "rows_a_second": float(rows / steps.mean()),
            "peak_gib": peak,
        }


class Padding:
    """The batches that DataCollatorForSeq2Seq makes, without a tokenizer."""

    def __init__(self, model):
        self.model = model

    def __call__(self, rows):
        ids = distill.pad_rows([row["input_ids"] for row in rows], -1)
        labels = distill.pad_rows([row["labels"] for row in rows], -100)
        return {
            "input_ids": ids.clamp(min=0),
            "attention_mask": (ids >= 0).long(),
            "decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(labels),
            "labels": labels,
        }


def run_trainer(trainer, clock):
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.args.save_strategy = transformers.trainer_utils.SaveStrategy.NO
    trainer.args.logging_strategy = transformers.trainer_utils.IntervalStrategy.NO
    trainer.add_callback(clock)
    trainer.train()


def bench_tune(args, lengths, device):
    """Fine-tuning the teacher as train_teacher.py would on this machine."""
    config = make_config(args.teacher, args.vocabulary)
    flags = ["--dry-run", "--memory", args.memory, "--batch-size", "32", "--max-steps", "100000"]
    settings = train_teacher.parse_args(flags)
    settings.dry_run, settings.output = False, Path(args.scratch) / "tune"
    footprint = train_teacher.Footprint(config, np.max(lengths, axis=0).tolist())
    gpus = train_teacher.list_gpus(None)[:1]
    plan, plans = train_teacher.plan_memory(settings, footprint, gpus, np.mean(lengths, axis=0))
    if not plan:
        return {"skipped": f"does not fit: {[max(p['gib_per_gpu']) for p in plans.values()]} GiB"}
    dtype = torch.float32 if plan["memory"] == "fp32" else torch.bfloat16
    model = make_model(config, dtype, device)
    if plan["memory"] == "lora":
        model = train_teacher.add_adapters(model, settings.lora_rank)
    bf16 = plan["memory"] == "bf16"
    optimiser = train_teacher.SplitAdafactor(model.parameters(), 3e-5) if bf16 else None
    trainer = train_teacher.Trainer(
        model=model,
        args=train_teacher.build_arguments(settings, plan),
        train_dataset=make_rows(lengths, args.vocabulary, 5000),
        data_collator=Padding(model),
        compute_loss_func=train_teacher.compute_loss,
        optimizers=(optimiser, None),
    )
    clock = Clock(args.seconds, device)
    run_trainer(trainer, clock)
    found = clock.report(32, device)
    kept = ("memory", "micro_batch", "recompute", "autocast", "gib_per_gpu")
    found.update({key: plan[key] for key in kept}, parameters=footprint.weights)
    found["flops_a_row"] = float(count_flops(config, lengths))
    if gpus[0][2]:
        found["utilisation"] = found["rows_a_second"] * found["flops_a_row"] / gpus[0][2] / 1e12
    return found


@contextlib.contextmanager
def force_lengths(model):
    """Make greedy decoding end each row where its source's first id says.

    The length travels in the encoder's output, which distill.py thins out with the rows.
    """

    def mark(module, inputs, kwargs, output):
        output.last_hidden_state[:, 0, 0] = kwargs["input_ids"][:, 0].to(
            output.last_hidden_state.dtype
        )

    def end(module, inputs, kwargs, output):
        wanted = kwargs["encoder_outputs"].last_hidden_state[:, 0, 0].long() - 2
        done = output.past_key_values.get_seq_length() >= wanted
        output.logits[:, -1, 1] = torch.where(done, 1e4, -1e4).to(output.logits.dtype)

    hooks = [model.encoder.register_forward_hook(mark, with_kwargs=True)]
    hooks.append(model.register_forward_hook(end, with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()


def make_labels(args, folder):
    """distill.py's Labels for the settings of its defaults, with no row in it."""
    key = {"vocabulary_size": args.vocabulary, "top_k": min(64, args.vocabulary // 2)}
    key.update(max_target_length=128, max_source_length=128, temperatures=[1.0, 2.0])
    return distill.Labels(Path(folder), {"key": key})


def bench_pass(args, lengths, device):
    """The teacher pass: rows a second for each batch size, sorted by length as distill does."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = make_model(make_config(args.teacher, args.vocabulary), dtype, device).eval()
    rows = [row["input_ids"] for row in make_rows(lengths, args.vocabulary, 1024)]
    rows.sort(key=len, reverse=True)
    labels, found = make_labels(args, args.scratch), []
    for size in args.pass_batch:
        batches = [rows[i : i + size] for i in range(0, len(rows), size)]
        order = np.random.default_rng(0).permutation(len(batches))  # a sample of all lengths
        with force_lengths(model):
            distill.decode(model, batches[0], labels)
            wait(device)
            start, done, tokens = time.monotonic(), 0, 0
            for i in order:
                decoded = distill.decode(model, batches[i], labels)
                done, tokens = done + len(batches[i]), tokens + sum(len(r[0]) for r in decoded)
                wait(device)
                if time.monotonic() - start > args.seconds / len(args.pass_batch):
                    break
        seconds = time.monotonic() - start
        found.append({"batch": size, "rows": done, "mean_tokens": tokens / done})
        found[-1]["rows_a_second"] = done / seconds
    best = max(found, key=lambda entry: entry["rows_a_second"])
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    return {"dtype": str(dtype), "batches": found, **best, "peak_gib": peak}


class RandomLabels(distill.Labels):
    """Soft labels of random ids and logits for rows of WLP's lengths, read as distill's are."""

    def __init__(self, args, lengths, count=4096):
        super().__init__(Path(args.scratch), make_labels(args, args.scratch).manifest)
        rng, chosen = np.random.default_rng(0), np.array(lengths)[np.arange(count) % len(lengths)]
        self.source, self.target = chosen[:, 0].astype(np.uint16), chosen[:, 1].astype(np.uint16)
        self.starts, size = np.arange(count), int(self.target.max())
        self.ids = rng.integers(3, args.vocabulary, int(self.source.max())).astype(self.id)
        self.soft = np.zeros(size, self.token)
        for i in range(size):
            self.soft["ids"][i] = rng.choice(args.vocabulary, self.key["top_k"], replace=False)
        self.soft["id"] = self.soft["ids"][:, 0]
        self.soft["logits"] = -np.sort(rng.exponential(3, self.soft["logits"].shape), 1)
        self.soft["rest"] = -2.0

    def __getitem__(self, index):
        return self.ids[: self.source[index]], self.soft[: self.target[index]]


def bench_student(args, lengths, device, released=False):
    """The student's training on kept soft labels, or with the teacher run in every step."""
    flags = ["--labels", "x", "--unlabeled", "x", "--output", args.scratch, "--temperature", "2"]
    flags += ["--loss", "paper"] if released else []
    settings = distill.parse_args([*flags, "--max-steps", "100000"])
    settings.bf16 = device == "cuda" and not released
    model = make_model(make_config(args.student, args.vocabulary), torch.float32, device)
    labels, teacher = RandomLabels(args, lengths), None
    if released:
        config = make_config(args.teacher, args.vocabulary)
        needed = train_teacher.Footprint(config, [8, 8]).weights * 4 / 2**30 + 8
        if needed > train_teacher.list_gpus(None)[0][1]:
            return {"skipped": f"the fp32 teacher needs {needed:.0f} GiB"}
        teacher = make_model(config, torch.float32, device).eval()
    trainer = distill.Trainer(
        settings=settings,
        released=teacher,
        model=model,
        args=distill.build_arguments(settings),
        train_dataset=labels,
        data_collator=distill.Collator(model, labels, settings.temperature),
    )
    clock = Clock(args.seconds, device)
    run_trainer(trainer, clock)
    return {"released": released, "bf16": settings.bf16, **clock.report(32, device)}


def price_row(parts, usd):
    """GPU-hours and dollars of WLP's row: 5K labels x 20 epochs, 100K rows x 50 epochs."""
    counts = {"tune": 5_000 * 20, "pass": 100_000, "student": 100_000 * 50}
    speeds = {name: parts.get(name, {}).get("rows_a_second") for name in counts}
    if not all(speeds.values()):
        return None
    hours = {name: counts[name] / speeds[name] / 3600 for name in counts}
    row = {"hours": hours, "usd_per_hour": usd, "usd": sum(hours.values()) * usd}
    row["paper_usd"] = PAPER_USD
    if speed := parts.get("released", {}).get("rows_a_second"):
        row["released_hours"] = 100_000 * 50 / speed / 3600
    return row


def describe_device(device):
    import accelerate

    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "CPU"
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"transformers": transformers.__version__, "accelerate": accelerate.__version__}
    if device == "cuda":
        versions["cuda"] = torch.version.cuda
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    threads = torch.get_num_threads()
    return {"device": name, "date": today, "cpu_threads": threads, "versions": versions}


def show(result):
    """The figures as text."""
    print(f"{result['device']}, {result['date']}, teacher {result['teacher']}")
    for name, part in result["parts"].items():
        if "skipped" in part:
            print(f"{name:<9} {part['skipped']}")
            continue
        use = f", {part['utilisation']:.1%} of peak" if "utilisation" in part else ""
        peak = f", {part['peak_gib']:.1f} GiB at the peak" if part.get("peak_gib") else ""
        plan = f" (planned {max(part['gib_per_gpu']):.1f})" if name == "tune" and peak else ""
        print(f"{name:<9} {part['rows_a_second']:,.1f} rows a second{use}{peak}{plan}")
    if row := result["wlp_row"]:
        hours = ", ".join(f"{name} {value:.2f}" for name, value in row["hours"].items())
        print(f"WLP's row, 5K labels and 100K rows: {hours} h")
        print(f"= ${row['usd']:,.2f} at ${row['usd_per_hour']:g} an hour; the paper: $67.5 + $435")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = [*train_teacher.T5_SHAPES, "mini"]
    add = parser.add_argument
    add("--teacher", choices=sizes, default="xxl", help="T5 v1.1 size (%(default)s)")
    add("--student", choices=sizes, default="small", help="T5 v1.1 size (%(default)s)")
    add("--vocabulary", type=int, default=32128, help="ids (%(default)s)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="which (all)")
    add("--memory", default="auto", help="train_teacher.py's --memory (%(default)s)")
    add("--pass-batch", type=int, nargs="+", default=[64, 128, 256], help="rows decoded at once")
    add("--seconds", type=float, default=90, help="measured for each part (%(default)s)")
    add("--usd-per-gpu-hour", type=float, default=4.0, help="price (%(default)s)")
    add("--output", type=Path, required=True, help="folder for the raw figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lengths = json.loads(LENGTHS.read_text())["lengths"]
    result = {**describe_device(device), "teacher": args.teacher, "student": args.student}
    result.update(vocabulary=args.vocabulary, parts={})
    for name in args.parts:
        print(f"[bench] {name}", file=sys.stderr)
        with tempfile.TemporaryDirectory() as args.scratch:
            if name in ("student", "released"):
                found = bench_student(args, lengths, device, released=name == "released")
            else:
                found = (bench_tune if name == "tune" else bench_pass)(args, lengths, device)
        result["parts"][name] = found
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    priced = device == "cuda"  # a CPU has no hourly price here
    result["wlp_row"] = price_row(result["parts"], args.usd_per_gpu_hour) if priced else None
    args.output.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", f"{result['device']} {args.teacher}".lower()).strip("-")
    file = args.output / f"{name}.json"
    distill.write_json(file, result)
    show(result)
    print(f"raw figures: {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
