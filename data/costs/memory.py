"""Which way a T5 teacher fits rented GPUs: memory, hours and dollars of fine-tuning it, by way.

The ways are train_teacher.py's. Nothing is loaded: sizes come from the model's config, and what a
forward pass keeps for the backward pass was counted tensor by tensor with transformers 5.23 (a test
counts again). Hours are arithmetic at an assumed share of the card's peak, not measured.

Reads:  data/prices.csv, data/tasks.json, data/scales.json; MODEL/config.json if that is a folder
Writes: nothing; the plans go to stdout
Paper:  section 2.3: an 11B teacher in fp32 with AdamW, its layers split over several GPUs
"""

import itertools
import math
import operator
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.costs.flags import find_unit, make_flags
from data.costs.prices import (
    fill,
    load_prices,
    price_gpu_hour,
    show_columns,
    show_price,
    show_usd,
    tell,
)
from data.files import DATA, UserError, parse_amount, parse_count, read_csv, read_json, read_jsonl
from data.tasks import load_task

# Bytes per weight: on a GPU for the weight, its gradient and the optimiser; on the host to load the
# hub's T5 v1.1, a file in fp32, to save and to continue; on the disk of a checkpoint, of the model.
BYTES = {"fp32": (4, 4, 8), "bf16": (2, 2, 2), "lora": (2, 0, 0)}
HOST = {"fp32": 8, "bf16": 4, "lora": 4}
DISK = {"fp32": (12, 4), "bf16": (4, 2), "lora": (0, 2)}
LORA_RANK = 8  # train_teacher.py's default
RESERVE = 1.2  # GiB a GPU for the CUDA context, libraries' workspaces and fragmentation
TIGHT = 0.97  # what needs a larger share of a card is taken only if nothing else fits
# Estimated seconds that launching takes on any card: a step of a compact student, and one position
# of a large teacher's greedy decoding of at most so many rows, distill.py's default.
STEP_SECONDS, DECODE_SECONDS, DECODE_ROWS = 0.035, 0.02, 256
LOADED = 0.25e9  # bytes a second of the published fp32 weights, fetched and loaded; assumed
LLM_SHOTS = 32  # labeled examples in each prompt of an LLM, as in the paper's appendix E
MICRO_TOKENS = 2048  # with fewer in a pass, a big GPU mostly reads weights: rather recompute
ROWS = 100_000  # unlabeled, of which one's share of distilling is taken
MOST_CARDS = 64  # no task here gains by more; each count below is tried

# Bytes that a row keeps for the backward pass, by bytes of a number: of an encoder block for each
# of S*d, S*f, S*i, heads*S*S; of a decoder block for T*d, T*f, T*i, S*i, heads*T*T, heads*T*S; of
# the rest for (S+T)*d. S, T: source and target tokens; d, f, i: width of the model, of its
# feed-forward layers, of its attention.
KEPT = {
    4: ((32, 20, 16, 12), (48, 20, 24, 8, 12, 12), 20),
    2: ((24, 10, 14, 12), (36, 10, 20, 8, 12, 12), 14),
}
LOGITS = 18  # bytes for each of T*V: the logits, copies of them in fp32, softmax and gradients
HEADS = "Way,GPUs,Rows,Recompute,Model,Kept,Fullest,DDP,Hours,GPU-h,USD,Disk,RAM,Fits"


class Shape(NamedTuple):
    """What of a T5's config decides its size."""

    width: int
    hidden: int
    heads: int
    encoders: int  # blocks
    decoders: int
    head_width: int = 64
    vocabulary: int = 32128
    gated: bool = True
    tied: bool = False  # whether the output head is the embeddings

    def count_weights(self):
        """Weights of (the embeddings, an encoder block, a decoder block, the whole model)."""
        attention = 4 * self.width * self.heads * self.head_width
        feed = (3 if self.gated else 2) * self.width * self.hidden
        encoder, decoder = (n * attention + feed + (n + 1) * self.width for n in (1, 2))
        embeddings = self.vocabulary * self.width
        rest = 2 * 32 * self.heads + 2 * self.width + (1 if self.tied else 2) * embeddings
        whole = self.encoders * encoder + self.decoders * decoder + rest
        return embeddings, encoder, decoder, whole

    def count_adapters(self):
        """Weights of LoRA on every linear layer of the blocks."""
        attention = 4 * (self.width + self.heads * self.head_width)
        feed = (3 if self.gated else 2) * (self.width + self.hidden)
        blocks = self.encoders + self.decoders
        return LORA_RANK * ((blocks + self.decoders) * attention + blocks * feed)

    def count_kept(self, source, target, size):
        """Bytes a row keeps of (an encoder block, a decoder block, the rest)."""
        widths = self.width, self.hidden, self.heads * self.head_width
        encoder = [source * n for n in (*widths, self.heads * source)]
        decoder = [*(target * n for n in widths), source * widths[2]]
        decoder += [self.heads * target * target, self.heads * target * source]
        *blocks, each = KEPT[size]
        pairs = zip(blocks, (encoder, decoder), strict=True)
        kept = (sum(map(operator.mul, *pair)) for pair in pairs)
        return *kept, each * (source + target) * self.width + LOGITS * target * self.vocabulary


SIZES = {  # T5 v1.1
    "small": Shape(512, 1024, 6, 8, 8),
    "base": Shape(768, 2048, 12, 12, 12),
    "large": Shape(1024, 2816, 16, 24, 24),
    "xl": Shape(2048, 5120, 32, 24, 24),
    "xxl": Shape(4096, 10240, 64, 24, 24),
}
NAMES = re.compile(r"(.+/)?(t5-v1_1-|flan-t5-|t5-(?=\w+-(lm-adapt|ssm)))(\w+?)(-lm-adapt|-ssm.*)?")
KEYS = "d_model d_ff num_heads num_layers num_decoder_layers d_kv vocab_size".split()
CONFIG = {**dict.fromkeys(KEYS, int), "feed_forward_proj": str}


def read_shape(model):
    """The Shape of a model folder, or by its hub name of a T5 v1.1 or one made from it."""
    path = Path(model) / "config.json"
    if not path.exists():
        name = NAMES.fullmatch(model)
        if name and name[4] in SIZES:
            return SIZES[name[4]]
        raise UserError(f"--model {model}: no folder with a config.json, no T5 v1.1 or Flan-T5")
    config = {"feed_forward_proj": "relu", "tie_word_embeddings": True, **read_json(path, CONFIG)}
    config.setdefault("num_decoder_layers", config.get("num_layers"))
    if missing := [key for key in KEYS if (config.get(key) or 0) < 1]:
        raise UserError(f"{path}: no {missing[0]!r}, so no T5")
    gated = str(config["feed_forward_proj"]).startswith("gated")
    # transformers 5 saves every T5 as tied and says by another key whether its head is its own
    tied = config.get("scale_decoder_outputs", config["tie_word_embeddings"])
    return Shape(*(config[key] for key in KEYS), gated, tied)


class Card(NamedTuple):
    """A GPU of the price list: usable GiB, peak TFLOP/s (bf16 0 where it has none), TB/s."""

    name: str
    gib: float
    bf16: float
    fp32: float
    bandwidth: float


def read_cards(path=DATA / "prices.csv"):
    """The cards of the price list: its rows that say how much memory a GPU has."""
    cards = []
    for line, row in read_csv(path).items():
        numbers = []
        for key in ("gib", "bf16_tflops", "fp32_tflops", "tb_per_s") if row.get("gib") else ():
            where = f"{path} line {line}: {key}"
            numbers.append(float(parse_amount(row.get(key) or 0, where)))
            if not numbers[-1] and key != "bf16_tflops":
                raise UserError(f"{where}: a number above 0 is needed beside gib")
        cards += [Card(row["name"], *numbers)] if numbers else []
    return cards


def find_cards(spec, cards):
    """(count, Card) of COUNTxCARD: a name of the list, or the first of so many GB, as in 4x48."""
    count, _, name = spec.partition("x")
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    for card in cards:
        size = plain.isdigit() and 0.9 * int(plain) < card.gib <= int(plain)
        if size or plain == re.sub(r"[^a-z0-9]", "", card.name.lower()):
            count = parse_count(count, f"--gpus {spec}", 1)
            if count > MOST_CARDS:
                raise UserError(f"--gpus {spec}: plans are for at most {MOST_CARDS} cards")
            return count, card
    known = ", ".join(card.name for card in cards)
    raise UserError(f"--gpus {spec}: say COUNTxCARD, as 4x48 or 1xT4; known cards: {known}")


class Work(NamedTuple):
    """What is trained: source and target tokens of a row, at most and on average; steps."""

    longest: tuple
    mean: tuple
    steps: int
    batch: int  # rows a step
    utilisation: float  # share of the peak FLOP/s


def make_work(task, flags, rows, mean=None, utilisation=0.4):
    """The Work of training with these flags on `rows` rows of `mean` tokens; by default the
    entry's, else the longest."""
    epochs = math.ceil(rows / flags["batch-size"]) * flags["epochs"]
    longest = flags["max-source-length"], flags["max-target-length"]
    mean = mean or tuple(map(float, task.mean_tokens.values())) or longest
    steps = math.ceil(max(epochs, flags.get("min-steps", 0)))
    return Work(longest, mean, steps, flags["batch-size"], utilisation)


class Plan(NamedTuple):
    """One way on so many cards, `rows` rows in a pass; GiB of all cards, GB of the host."""

    way: str
    cards: int
    rows: int
    recompute: bool
    model: float  # weights, gradients, optimiser
    kept: float  # for the backward pass, or by the optimiser while it works
    most: float  # on the fullest card
    ddp: float  # on each card if every card has a process with the whole model
    hours: float
    gpu_hours: float
    disk: float
    ram: float
    fits: str  # yes, tight or no


def make_plan(shape, card, way, cards, rows, recompute, work):
    """The Plan of one way with these settings, whether it fits or not."""
    _, _, decoder, weights = shape.count_weights()
    size, gradient, _ = BYTES[way]
    each = sum(BYTES[way])
    if way == "fp32" and card.bf16:
        each += 2  # autocast keeps bf16 copies for the backward pass
    adapters = shape.count_adapters() if way == "lora" else 0
    model = weights * each + 16 * adapters  # in fp32, with gradients and AdamW's moments
    *blocks, rest = (rows * kept for kept in shape.count_kept(*work.longest, size))
    spare, kept = 0, blocks
    if recompute:  # a block keeps its input and position biases; one at a time is done again
        spare = blocks[1]
        kept = [size * t * (rows * shape.width + shape.heads * t) for t in work.longest]
    if way == "bf16":  # the optimiser's fp32 copies of the largest tensor
        spare = max(spare, 12 * shape.vocabulary * shape.width)
    kept = shape.encoders * kept[0] + shape.decoders * kept[1]
    # Layers are shared out by weights, a block at a time: the fullest card may have one too many.
    most = (model + kept) / cards + (decoder * each if cards > 1 else 0) + rest + spare
    buckets = 4 * adapters or gradient * weights  # DDP's own copy of the gradients
    disk = max(2 * DISK[way][0], sum(DISK[way]))  # the next checkpoint lies beside the last
    model, kept, most, buckets = (n / 2**30 for n in (model, kept + rest + spare, most, buckets))
    most, ddp = most + RESERVE, model + kept + buckets + RESERVE
    hours = estimate_hours(shape, card, way, cards, recompute, work)
    fits = "no" if most > card.gib else "tight" if most > TIGHT * card.gib else "yes"
    what = (way, cards, rows, recompute, model, kept, most, ddp, hours, hours * cards)
    return Plan(*what, weights * disk / 1e9, weights * HOST[way] / 1e9, fits)


def estimate_hours(shape, card, way, cards, recompute, work):
    """Hours of training.

    6 FLOP a weight and real token, a third more with recompute, a third less where no weight has
    a gradient; in each step the optimiser reads and writes all it keeps. Layers on several cards
    work one after the other, optimisers at the same time.
    """
    head, encoder, decoder, weights = shape.count_weights()
    flops = work.mean[0] * shape.encoders * encoder
    flops += work.mean[1] * (shape.decoders * decoder + head)
    flops *= 6 * work.batch * (4 / 3 if recompute else 1) * (2 / 3 if way == "lora" else 1)
    moved = 0 if way == "lora" else 2 * sum(BYTES[way]) * weights / cards
    seconds = flops / ((card.bf16 or card.fp32) * 1e12 * work.utilisation)
    return work.steps * (seconds + moved / (card.bandwidth * 1e12)) / 3600


def plan_way(shape, card, count, way, work):
    """The Plan of a way with the fewest GPU-hours among those that fit, of these with the most
    rows in a pass; where none fits the leanest one."""

    def rank(plan):
        short = plan.fits == "no"
        return short, plan.fits == "tight", plan.most if short else plan.gpu_hours

    rows = [n for n in range(work.batch, 0, -1) if work.batch % n == 0]
    plans = (
        make_plan(shape, card, way, cards, n, recompute, work)
        for cards, n, recompute in itertools.product(range(1, count + 1), rows, (False, True))
        if recompute or n == work.batch or n * sum(work.mean) >= MICRO_TOKENS
    )
    return min(plans, key=rank)


def choose_plan(plans):
    """The cheapest that trains all weights; LoRA, another method, where none of them fits."""
    plans = [plan for plan in plans if plan.fits != "no"]
    return min(plans, key=lambda plan: (plan.way == "lora", plan.gpu_hours), default=None)


def estimate_teacher(model, card, work):
    """GPU-hours that fetch, load and fine-tune a teacher, all weights, on the fewest cards."""
    shape, ways = read_shape(model), ["fp32", "bf16"] if card.bf16 else ["fp32"]
    for count in (1, 2, 4, 8, 16):
        if plan := choose_plan([plan_way(shape, card, count, way, work) for way in ways]):
            loading = 4 * shape.count_weights()[-1] / LOADED / 3600
            return (plan.hours + loading) * plan.cards
    raise UserError(f"{model} does not fit 16 x {card.name}; state hours in the task's entry")


def count_decoded(teacher, card, mean):
    """Rows that a card decodes at once: beside the weights each has, in each decoder block, a key
    and a value of every source and target token."""
    size = 2 if card.bf16 else 4
    row = size * 2 * teacher.decoders * sum(mean) * teacher.heads * teacher.head_width
    free = (card.gib - RESERVE) * 2**30 - size * teacher.count_weights()[-1]
    return min(DECODE_ROWS, max(1, free / row))


def estimate_distilling(teacher, student, card, work):
    """GPU-hours for one unlabeled row: the teacher's greedy pass, and training the student on it,
    a row of the `work`.

    A pass reads the decoder for each position of a batch of rows; a step of a compact student is
    over before a processor has launched it.
    """
    head, encoder, decoder, _ = teacher.count_weights()
    decoder = teacher.decoders * decoder + head
    flops = 2 * (work.mean[0] * teacher.encoders * encoder + work.mean[1] * decoder)
    peak = (card.bf16 or card.fp32) * 1e12 * work.utilisation
    position = max(DECODE_SECONDS, 2 * decoder / (card.bandwidth * 1e12))
    label = max(flops / peak, work.mean[1] * position / count_decoded(teacher, card, work.mean))
    train = estimate_hours(student, card, "fp32", 1, False, work) * 3600
    return (label + max(train, work.steps * STEP_SECONDS) / ROWS) / 3600


def estimate_rates(task, scale, gpu, mean):
    """(GPU, labels -> teacher hours, labels -> hours of one row, a note) for a task without GPU
    hours, as Terms have them; the mini models stand for the paper's, whose hours these then are."""
    scale = "paper" if scale == "mini" else scale
    known = {card.name.lower(): card for card in read_cards()}
    if gpu.lower() not in known:
        raise UserError(f"GPU {gpu!r}: no memory and speed in the price list, so no hours to plan")
    card, flags = known[gpu.lower()], make_flags(task, scale, "teacher")
    teacher, more = flags["model"], make_flags(task, scale, "dist")

    def exact(hours):
        return Fraction(hours).limit_denominator(10**12)

    works = {n: make_work(task, flags, n, mean) for n in (100, 1000, 10_000)}
    hours = {n: exact(estimate_teacher(teacher, card, work)) for n, work in works.items()}
    shapes, work = map(read_shape, (teacher, more["student"])), make_work(task, more, ROWS, mean)
    note = (
        f"no GPU hours in the entry: those of {teacher} into {more['student']} on "
        f"{card.name} are planned (arithmetic at 40% of the peak, 0.25 GB/s to load), not measured"
    )
    return card.name, hours, {0: exact(estimate_distilling(*shapes, card, work))}, note


def complete_task(task, scale, rows=None, gpu=None, measured=False):
    """A Task of one's own with GPU hours and an LLM's tokens by arithmetic where its entry has
    none, which `estimates` then say; any other Task as it is.

    rows: labeled rows or their JSONL file, whose length is taken if it is there; gpu: whose hours;
    measured: whether hours come from runs.
    """
    timed = measured or (task.teacher_hours and task.distill_hours)
    if not task.own or (timed and task.llm_tokens_per_label):
        return task
    mean, said = measure_tokens(task, rows)
    if not timed:
        gpu = task.gpu if task.teacher_hours or task.distill_hours else gpu or task.gpu
        gpu, teacher, row, note = estimate_rates(task, scale, gpu, mean)
        known = {"teacher_hours": task.teacher_hours or teacher}
        task = replace(task, gpu=gpu, distill_hours=task.distill_hours or row, **known)
        said.append(note)
    if task.llm_tokens_per_label is None:
        tokens = round((LLM_SHOTS + 1) * sum(mean))
        known = {"mean_tokens": dict(zip(("source", "target"), mean, strict=True))}
        task = replace(task, llm_tokens_per_label=Fraction(tokens), **known)
        said.append(f"an LLM's label takes about {tokens:,} tokens: {LLM_SHOTS} examples and a row")
    return replace(task, estimates=(*task.estimates, *said))


def measure_tokens(task, rows):
    """((source, target) tokens of a row on average, [how that is known if it is a guess]).

    The entry's word, else a fourth of the characters of `rows`, else the most that is read.
    """
    if len(task.mean_tokens) == 2:
        return tuple(map(float, task.mean_tokens.values())), []
    if isinstance(rows, Path):
        rows = read_jsonl(rows) if rows.is_file() else None
    if not rows:
        return (task.max_source_length, task.max_target_length), []
    texts = [[row[side] for row in rows] for side in ("source", "target")]
    texts[1] = [text[0] if isinstance(text, list) else text for text in texts[1]]
    mean = tuple(max(1.0, sum(map(len, map(str, each))) / len(rows) / 4) for each in texts)
    said = f"a row is priced at about {mean[0]:.0f} + {mean[1]:.0f} tokens of source and target, a "
    return mean, [said + "fourth of their characters"]


def show_plan(plan, usd, chosen):
    """One line of the table of plans, under HEADS."""
    sizes = (plan.model, plan.kept, plan.most, plan.ddp if plan.cards == 1 else None)
    costs = (f"{plan.hours:.2f}", f"{plan.gpu_hours:.2f}", show_usd(Fraction(plan.gpu_hours) * usd))
    return [
        *(plan.way, plan.cards, plan.rows, "yes" if plan.recompute else "no"),
        *(each and f"{each:.1f}" for each in sizes),
        *(costs if plan.fits != "no" else [None] * 3),
        *(f"{plan.disk:,.0f}", f"{plan.ram:,.0f}"),
        plan.fits + "*" * (plan is chosen),
    ]


def show_cards(shape, count, card, work, usd, how):
    """Every way on `count` cards, and how to train by the cheapest on the first of them."""
    plans = [plan_way(shape, card, count, way, work) for way in (BYTES if card.bf16 else ["fp32"])]
    chosen = choose_plan(plans)
    print(fill(f"{count} x {card.name}: {card.gib} GiB each, {show_price(usd)} an hour ({how})"))
    print(show_columns(HEADS.split(","), [show_plan(plan, usd, chosen) for plan in plans]))
    if not card.bf16:
        print("fp32 alone, as this card would have to emulate bf16")
    command = "nothing fits: take more or larger GPUs, shorter rows or a smaller model"
    if chosen:
        command = f"python train_teacher.py --memory {chosen.way} --micro-batch {chosen.rows}"
        command += " --recompute" if chosen.recompute else " --no-recompute"
        if chosen.cards < count:
            command = f"CUDA_VISIBLE_DEVICES={','.join(map(str, range(chosen.cards)))} {command}"
    print(command, end="\n\n")


def run_memory(args):
    """which way to hold a teacher fits rented GPUs, in how many hours, for how many dollars"""
    prices, cards = load_prices(args.prices), read_cards(args.prices)
    task, used = load_task(args.task), parse_amount(args.utilisation, "--utilisation")
    labels = args.labels or task.labels_n[-1] // find_unit(task, args.scale)
    if not 0 < used <= 1:
        raise UserError(f"--utilisation {args.utilisation}: a share of the peak, such as 0.4")
    flags = make_flags(task, args.scale, "teacher")
    work = make_work(task, flags, labels, utilisation=float(used))
    shapes = {model: read_shape(model) for model in (args.model or flags["model"]).split()}
    wanted = [find_cards(spec, cards) for spec in args.gpus.split() or [""]]
    for model, shape in shapes.items():
        head = "tied" if shape.tied else "untied"
        rows = [f"{source:g} + {target:g}" for source, target in (work.mean, work.longest)]
        size = f"{shape.count_weights()[-1] / 1e9:.2f}B weights, head {head}"
        steps = f"{work.steps:,} steps of {work.batch} rows of {rows[0]} tokens"
        print(fill(f"{model}: {size}; {steps}, at most {rows[1]}"), end="\n\n")
        for count, card in wanted:
            usd, how = args.gpu_usd_per_hour, "as given"
            if usd is None:
                usd, how = price_gpu_hour(prices, card.name, "today")
            show_cards(shape, count, card, work, usd, how)
    print(fill(tell("memory", reserve=RESERVE, used=work.utilisation)))
