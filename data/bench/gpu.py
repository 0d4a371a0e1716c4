"""Measure the paper's WLP row on the GPU at hand: random weights, WLP's real lengths, our code.

Usage:
    python3 -m data.bench.gpu --output data/results              # T5-XXL and T5-Small, 10 minutes
    python3 -m data.bench.gpu --teacher mini --student mini --seconds 2 --output /tmp/bench
    No network is needed, and of the requirements only torch, transformers and accelerate, in any
    version from 2.11 and 5.17.

Reads:  data/bench/wlp_lengths.json (tokens of 2,048 WLP rows); the training scripts.
Writes: OUTPUT/DEVICE-TEACHER.json: device, versions, date, and every part's raw figures, after
        each part anew.
Paper:  Table 6: $67.5 to fine-tune T5-XXL on 5K labels, $435 to distill with 100K rows.

Parts, the most important first: `tune`, train_teacher.py's Trainer by the way that it chooses, then
a step of the longest rows, whose memory costs.py memory plans; `pass`, distill.py's greedy decoding
with soft labels, each row stopped at its real length, at its default batch (which is priced) and at
a smaller one; `student`, distill.py's Trainer on kept soft labels, as it is, which is priced, then
by --compiled. The disk is timed too: loading, checkpoints and saving are in the price, scoring is
not. Speed does not depend on the weights' values, so they are random. Each part is a process of its
own with a share of --minutes: one that fails or hangs takes no other along.
"""

import argparse
import datetime
import gc
import json
import multiprocessing
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers

import distill
import train_teacher
from data.costs import memory
from data.costs.prices import load_prices, match_gpu
from data.files import make_parser

LENGTHS = json.loads(Path(__file__).with_name("wlp_lengths.json").read_text())["lengths"]
SIZES = {**memory.SIZES, "mini": memory.Shape(64, 128, 4, 2, 2, 16)}  # mini: to try it on a CPU
CARDS = memory.read_cards()
PAPER_USD = {"tune": 67.5, "distill": 435.0}  # Table 6, WLP: 5K labels, 100K rows
BATCH = 32  # rows of a step
ENDLESS = "--max-steps 100000 --save-strategy no --logging-strategy no".split()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SPARE = 10  # seconds before its end at which a part stops measuring


def make_model(size, vocabulary, dtype):
    """T5 v1.1 of that size, of random weights made on the device, with a head of its own."""
    width, hidden, heads, layers, _, head_width, *_ = SIZES[size]
    shape = {"d_model": width, "d_ff": hidden, "num_heads": heads, "num_layers": layers}
    shape |= {"d_kv": head_width, "vocab_size": vocabulary, "feed_forward_proj": "gated-gelu"}
    known = {"tie_word_embeddings": False, "decoder_start_token_id": 0, "use_cache": False}
    config = transformers.T5Config(**shape, **known)
    with torch.device(DEVICE):
        model = transformers.AutoModelForSeq2SeqLM.from_config(config, dtype=dtype)
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
        torch.nn.init.normal_(model.lm_head.weight, std=width**-0.5)
    return train_teacher.fuse_gelu(model)


def make_rows(lengths, vocabulary, count):
    """Rows of random ids with WLP's lengths; the first source id encodes the target's length."""
    rng, rows = np.random.default_rng(0), []
    for i in range(count):
        source, target = lengths[i % len(lengths)]
        ids, labels = (rng.integers(3, vocabulary, n) for n in (source, target))
        ids[0], ids[-1], labels[-1] = target + 2, 1, 1  # 1 ends a sequence; a length is 1 to 128
        rows.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return rows


def count_flops(shape, lengths):
    """FLOP to train on a row: 6 for each weight and real token. Attention's own products are left
    out, as is usual; at these lengths they are some 2%."""
    head, encoder, decoder, _ = shape.count_weights()
    source, target = np.mean(lengths, axis=0)
    ends = shape.decoders * decoder + head
    return float(6 * (shape.encoders * encoder * source + ends * target))


def measure_peak():
    """GiB at the peak since the last call: in tensors, and as the allocator held them."""
    if DEVICE != "cuda":
        return {"peak_gib": None, "reserved_gib": None}
    peaks = torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    return {"peak_gib": peaks[0] / 2**30, "reserved_gib": peaks[1] / 2**30}


class Clock(transformers.TrainerCallback):
    """Times the steps after the first few, which warm up and compile; stops when time is up.

    seconds: measured after the warm-up; until: of time.monotonic(), never to be passed.
    """

    def __init__(self, seconds, until, skip=3):
        self.seconds, self.until, self.skip, self.times = seconds, until, skip, []

    def on_step_begin(self, args, state, control, **kwargs):
        torch.compiler.cudagraph_mark_step_begin()

    def on_step_end(self, args, state, control, **kwargs):
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        self.times.append(time.monotonic())
        measured = self.times[-1] - self.times[min(self.skip, len(self.times) - 1)]
        if self.times[-1] > self.until or measured > self.seconds:
            control.should_training_stop = True

    def report(self):
        """Steps timed, seconds a step (mean, fastest and slowest tenth), rows a second, GiB."""
        steps = np.diff(self.times[self.skip :])
        if not len(steps):
            raise RuntimeError(f"time was up after {len(self.times)} steps of warm-up")
        found = {"steps": len(steps), "seconds_a_step": float(steps.mean())}
        found["seconds_a_step_10_90"] = np.quantile(steps, [0.1, 0.9]).tolist()
        found |= {"batch": BATCH, "rows_a_second": float(BATCH / steps.mean())}
        return {**found, **measure_peak()}


def time_steps(trainer, clock):
    """Train until the clock stops it; the clock's report."""
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    trainer.remove_callback(Clock)
    trainer.add_callback(clock)
    trainer.train()
    return clock.report()


def bench_tune(args):
    """Fine-tuning the teacher by the way that train_teacher.py chooses on this machine."""
    flags = ["--train", __file__, "--output", str(args.scratch), "--memory", args.memory, *ENDLESS]
    settings, rest = train_teacher.parse_args([*flags, "--batch-size", str(BATCH)])
    training = train_teacher.read_training(settings, rest)
    shape = SIZES[args.teacher]._replace(vocabulary=args.vocabulary)
    weights = shape.count_weights()[-1]
    way, _, share = train_teacher.choose_way(settings, training, weights)
    if way != "fp32":
        training.bf16, training.mixed_precision = False, "no"
    training.max_grad_norm = 0.0 if way == "bf16" else 1.0
    known = {"memory": way, "parameters": weights, "flops_a_row": count_flops(shape, LENGTHS)}
    known |= {"peak_tflops": find_peak(), "out_of_memory": [], **time_disk(args.scratch)}
    tries = [{"rows": BATCH >> halved, "recompute": True} for halved in range(6)]
    if share <= 0.5 or DEVICE != "cuda":
        tries.insert(0, {"rows": BATCH, "recompute": False})
    for passes in tries:
        try:
            yield from tune_in_passes(args, settings, training, shape, passes, known)
            return
        except torch.OutOfMemoryError:
            known["out_of_memory"].append(passes)
        gc.collect()  # the failed try is gone once its traceback is
        torch.cuda.empty_cache()
    yield {**known, "failed": "out of memory at 1 row a pass"}


def tune_in_passes(args, settings, training, shape, passes, known):
    """The speed at WLP's lengths, and the memory of a few steps at the longest ones."""
    way, backend = known["memory"], tokenizers.Tokenizer(tokenizers.models.WordLevel())
    padder = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>")
    dtype = torch.float32 if way == "fp32" else torch.bfloat16
    model = make_model(args.teacher, args.vocabulary, dtype)
    model = train_teacher.add_adapters(model, settings.lora_rank) if way == "lora" else model
    rows = make_rows(LENGTHS, args.vocabulary, 5000)
    trainer = train_teacher.build_trainer(settings, training, model, way, rows, passes, padder)
    found = {**known, **passes, **time_steps(trainer, Clock(args.seconds, args.until))}
    if known["peak_tflops"]:
        reached = found["rows_a_second"] * known["flops_a_row"] / 1e12
        found["utilisation"] = reached / known["peak_tflops"]
    yield found
    longest, mean = (tuple(map(float, f(LENGTHS, axis=0))) for f in (np.max, np.mean))
    trainer.train_dataset = make_rows([tuple(map(int, longest))], args.vocabulary, 96)
    work, card = memory.Work(longest, mean, 1, BATCH, 0.4), memory.find_cards("1x80", CARDS)[1]
    planned = memory.make_plan(shape, card, way, 1, passes["rows"], passes["recompute"], work)
    found["planned_gib"] = planned.most
    try:
        found["longest"] = time_steps(trainer, Clock(0, args.until + SPARE / 2, skip=1))
    except torch.OutOfMemoryError as error:
        found["longest"] = {"failed": str(error)}
    yield found


def find_peak():
    """The price list's TFLOP/s of this GPU, None where it has none."""
    name = DEVICE == "cuda" and match_gpu(load_prices(), torch.cuda.get_device_name())
    return next((card.bf16 or card.fp32 for card in CARDS if card.name == name), None)


def time_disk(folder, size=2**28):
    """Seconds a GB to write, through to the disk, and to read what was written."""
    path, data, seconds = folder / "disk", os.urandom(size), {}
    start = time.monotonic()
    with open(path, "wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    seconds["write"] = (time.monotonic() - start) / size * 1e9
    start = time.monotonic()
    path.read_bytes()  # from the page cache, as what was just downloaded or saved mostly is
    seconds["read"] = (time.monotonic() - start) / size * 1e9
    path.unlink()
    return {"disk_seconds_a_gb": seconds}


def force_lengths(model):
    """Make the model's greedy decoding end each row where its source's first id says.

    The length travels in the encoder's output, which distill.py thins out with the rows.
    """

    def mark(module, inputs, kwargs, output):
        state = output.last_hidden_state
        state[:, 0, 0] = kwargs["input_ids"][:, 0].to(state.dtype)

    def end(module, inputs, kwargs, output):
        wanted = kwargs["encoder_outputs"].last_hidden_state[:, 0, 0].long() - 2
        done = output.past_key_values.get_seq_length() >= wanted
        output.logits[:, -1, 1] = torch.where(done, 1e4, -1e4).to(output.logits.dtype)

    model.encoder.register_forward_hook(mark, with_kwargs=True)
    model.register_forward_hook(end, with_kwargs=True)
    return model


def make_key(args):
    """What distill.py's labels.json says of labels made with its defaults, as far as it matters."""
    top_k = min(64, args.vocabulary // 2)
    return {"top_k": top_k, "max_target_length": 128, "temperatures": [1.0, 2.0]}


def bench_pass(args):
    """The teacher pass: shards of 1,024 rows sorted by length as distill.py has them, decoded in
    batches of its default size, which counts if it fits, and of another."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    model = force_lengths(make_model(args.teacher, args.vocabulary, dtype).eval())
    rows = [row["input_ids"] for row in make_rows(LENGTHS, args.vocabulary, args.shard_rows)]
    rows.sort(key=len, reverse=True)
    batches = []
    for size in args.pass_batch:
        if batches and time.monotonic() > args.until:
            break
        try:
            batches.append(time_shard(model, rows, size, args))
        except torch.OutOfMemoryError:
            batches.append({"batch": size, "failed": "out of memory"})
            torch.cuda.empty_cache()
        counted = next((each for each in batches if "failed" not in each), batches[0])
        yield {"dtype": str(dtype), "batches": batches, **counted}


def time_shard(model, rows, size, args):
    """Rows a second of a whole shard, or, if time is up, of a part of it chosen by chance."""
    batches, key = [rows[i : i + size] for i in range(0, len(rows), size)], make_key(args)
    distill.decode(model, batches[-1], key)
    start, done, tokens = time.monotonic(), 0, 0
    for i in np.random.default_rng(0).permutation(len(batches)):
        decoded = distill.decode(model, batches[i], key)  # which waits for the device
        done, tokens = done + len(decoded), tokens + sum(len(row["labels"]) for row in decoded)
        if time.monotonic() > args.until:
            break
    speed = {"rows_a_second": done / (time.monotonic() - start), "mean_tokens": tokens / done}
    return {"batch": size, "rows": done, "of_rows": len(rows), **speed, **measure_peak()}


def make_soft_rows(args):
    """Rows as distill.py's Labels has them: random ids and logits of WLP's lengths."""
    key, rng = make_key(args), np.random.default_rng(0)
    longest, top_k = int(np.max(LENGTHS)), key["top_k"]
    ids = rng.integers(3, args.vocabulary, longest).astype(np.int32)
    drawn = [rng.choice(args.vocabulary, top_k, replace=False) for _ in range(longest)]
    soft = {"ids": np.array(drawn, np.int32), "rest": np.full((longest, 2), -2, np.float32)}
    soft["labels"] = soft["ids"][:, 0]
    soft["logits"] = -np.sort(rng.exponential(3, (longest, top_k)), 1).astype(np.float16)
    return [
        {"input_ids": ids[:source], **{name: values[:target] for name, values in soft.items()}}
        for source, target in [*LENGTHS, *LENGTHS]
    ]


def build_student(args, rows, flags):
    """distill.py's Trainer."""
    words = ["--teacher", "x", "--unlabeled", __file__, "--output", str(args.scratch), *ENDLESS]
    words += ["--temperature", "2", "--batch-size", str(BATCH)]
    words += ["--bf16" if DEVICE == "cuda" else "--no-bf16"]
    settings, rest = distill.parse_args([*words, *flags.split()])
    training = distill.read_training(settings, rest)
    model = make_model(args.student, args.vocabulary, torch.float32)
    return distill.Trainer(
        model=model,
        args=training,
        train_dataset=rows,
        data_collator=distill.Collator(model, make_key(args), 2.0, settings.pad_to),
        compute_loss_func=distill.SoftLoss(model, settings, training),
    )


def bench_student(args):
    """The student's training on kept soft labels, then the same step compiled, whose shapes are
    all met in the first 60 steps."""
    rows, skip = make_soft_rows(args), 10 if DEVICE == "cuda" else 1
    found = time_steps(build_student(args, rows, ""), Clock(args.seconds / 2, args.until, skip))
    yield found
    if args.compiled and time.monotonic() <= args.until:
        trainer = build_student(args, rows, args.compiled)
        yield {**found, "compiled": time_steps(trainer, Clock(args.seconds / 2, args.until, 60))}


def price_row(parts, usd):
    """GPU-hours and dollars of WLP's row: 5K labels x 20 epochs, 100K rows x 50 epochs.

    `disk`: the teacher loaded to train and to decode, saved, and a checkpoint each 10 minutes. What
    was not measured is left out; `usd` needs all three parts of our way.
    """
    counts = {"tune": 5_000 * 20, "pass": 100_000, "student": 100_000 * 50}
    speeds = {name: parts.get(name, {}).get("rows_a_second") for name in counts}
    hours = {name: counts[name] / speed / 3600 for name, speed in speeds.items() if speed}
    tune, ours = parts.get("tune", {}), None
    if "tune" in hours and "disk_seconds_a_gb" in tune:
        checkpoint, model = memory.DISK[tune["memory"]]
        written = model + checkpoint * int(6 * hours["tune"])
        disk, gb = tune["disk_seconds_a_gb"], tune["parameters"] / 1e9
        hours["disk"] = gb * ((4 + model) * disk["read"] + written * disk["write"]) / 3600
    if counts.keys() <= hours.keys():
        ours = {"tune": usd * (hours["tune"] + hours.get("disk", 0))}
        ours["distill"] = usd * (hours["pass"] + hours["student"])
    return {"hours": hours, "usd_per_hour": usd, "paper_usd": PAPER_USD, "usd": ours}


def describe_machine():
    here = argparse.Namespace(device=torch.device(DEVICE), world_size=1)
    about = train_teacher.describe_run(here)
    del about["command"]  # of a part's own process: where this module lies
    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    name = about["hardware"]["gpu"] or about["hardware"]["cpu"]
    return {"device": name, "date": today, **about}


PARTS = {  # name -> (what measures it, its share of the time)
    "tune": (bench_tune, 4),
    "pass": (bench_pass, 3),
    "student": (bench_student, 4),
}


def run_part(name, args, stop_at, into):
    """Measure one part in this process until time.time() says `stop_at`; its figures so far are in
    the file `into` at any time."""
    args.until, args.scratch = time.monotonic() + stop_at - time.time() - SPARE, into.parent
    transformers.utils.logging.set_verbosity_error()
    torch.backends.cuda.enable_cudnn_sdp(False)  # as the scripts do: it plans for each new shape
    machine, found = describe_machine(), {}

    def save(found):
        train_teacher.write_json(into, {"machine": machine, "found": found})

    save({"failed": "it was stopped before its first figure"})
    try:
        for found in PARTS[name][0](args):
            save(found)
        save({**found, "whole": True})
    except Exception as error:
        text = str(error).partition("\n")[0]
        save({**found, "failed": f"{type(error).__name__}: {text}"})
        raise


def start_part(name, args, limit, into):
    """Run one part as a process of its own, killed after `limit` seconds; what it left behind."""
    words = (name, args, time.time() + limit, into)
    process = multiprocessing.get_context("spawn").Process(target=run_part, args=words)
    process.start()
    process.join(limit)
    process.kill()
    process.join()
    failed = {"failed": f"it did not start, or was stopped after {limit:g} s"}
    return json.loads(into.read_text()) if into.exists() else {"machine": {}, "found": failed}


def run_parts(args):
    """All parts in turn, each with its share of the time that is left; the file grows with them."""
    begun, result = time.monotonic(), {"teacher": args.teacher, "student": args.student}
    result |= {"vocabulary": args.vocabulary, "parts": {}, "seconds": {}, "wlp_row": None}
    args.output.mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(args.parts):
        start, shares = time.monotonic(), [PARTS[part][1] for part in args.parts[i:]]
        limit = (60 * args.minutes - (start - begun)) * shares[0] / sum(shares)
        print(f"[bench] {name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            answer = start_part(name, args, limit, Path(folder) / "part.json")
        result |= answer["machine"]
        result["parts"][name] = answer["found"]
        result["seconds"][name] = time.monotonic() - start
        if result.get("hardware", {}).get("gpu"):  # a CPU has no hourly price here
            result["wlp_row"] = price_row(result["parts"], args.usd_per_gpu_hour)
        words = f"{result.get('device', 'unknown')} {args.teacher}".lower()
        file = args.output / f"{re.sub(r'[^a-z0-9]+', '-', words).strip('-')}.json"
        train_teacher.write_json(file, result)
    return result, file


def show(result):
    """The figures as text."""
    print(f"{result.get('device')}, {result.get('date')}, teacher {result['teacher']}")
    for name, part in result["parts"].items():
        longest, measured = part.get("longest") or {}, "rows_a_second" in part
        said = [
            measured and f"{part['rows_a_second']:,.1f} rows a second at batch {part['batch']}",
            "compiled" in part and f"{part['compiled']['rows_a_second']:,.1f} compiled",
            "utilisation" in part and f"{part['utilisation']:.1%} of peak",
            part.get("peak_gib") and f"{part['peak_gib']:.1f} GiB at the peak",
            longest.get("peak_gib")
            and f"{longest['peak_gib']:.1f} GiB with the longest rows "
            f"(planned {part['planned_gib']:.1f})",
            "failed" in part and f"failed: {part['failed']}",
            measured and not part.get("whole") and "stopped before its end",
        ]
        print(f"{name:<9} {'; '.join(filter(None, said))}")
    if row := result["wlp_row"]:
        hours = ", ".join(f"{name} {value:.2f}" for name, value in row["hours"].items())
        print(f"WLP's row, 5K labels x 20 epochs and 100K rows x 50: GPU-hours {hours}")
        if row["usd"]:
            ours, theirs = row["usd"], row["paper_usd"]
            print(
                f"= ${ours['tune']:,.2f} + ${ours['distill']:,.2f} at ${row['usd_per_hour']:g} an "
                f"hour; the paper: ${theirs['tune']:g} + ${theirs['distill']:g}"
            )


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--teacher", choices=SIZES, default="xxl", help="T5 v1.1 size (%(default)s)")
    add("--student", choices=SIZES, default="small", help="T5 v1.1 size (%(default)s)")
    graphs = "--torch-compile-mode reduce-overhead" if torch.cuda.is_available() else ""
    add("--compiled", default=graphs, help="distill.py's flags to compile by (%(default)s)")
    add("--vocabulary", type=int, default=32128, help="ids (%(default)s)")
    add("--parts", nargs="+", choices=PARTS, default=[*PARTS], help="which (default: all)")
    add("--memory", default="auto", help="train_teacher.py's --memory (%(default)s)")
    text = "rows at once; the first that fits is priced"
    add("--pass-batch", type=int, nargs="+", default=[256, 64], help=text)
    add("--shard-rows", type=int, default=1024, help="rows decoded at each size (%(default)s)")
    add("--seconds", type=float, default=45, help="measured for each part (%(default)s)")
    add("--minutes", type=float, default=9.5, help="for all parts together (%(default)s)")
    add("--usd-per-gpu-hour", type=float, default=4.0, help="price (%(default)s)")
    add("--output", type=Path, required=True, help="folder for the raw figures")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    if args.teacher != "mini" and not torch.cuda.is_available():
        train_teacher.fail("no GPU that torch can use; --teacher mini --student mini run on a CPU")
    result, file = run_parts(args)
    show(result)
    print(f"raw figures: {file}", file=sys.stderr)
    if not any("rows_a_second" in part for part in result["parts"].values()):
        train_teacher.fail("no part was measured; the reasons are above")


if __name__ == "__main__":
    main()
