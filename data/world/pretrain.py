"""Pre-train the mini models, T5s of three sizes and an encoder, on text of the made-up world.

Usage:
    python -m data.world.pretrain                                     # all of them: hours
    python -m data.world.pretrain --region lab --which student --steps 50 --output /tmp/try
    python -m data.world.pretrain --cards                             # write the cards again

Reads:  data/world/lab.py (the lab, for wlp) and data/world/town.py (the town, for the other five
        tasks) with their word lists; data/tasks.json for the label names in the vocabulary.
Writes: OUTPUT/{teacher,large,student,student-short} for the lab, OUTPUT/town-... for the town:
        Hugging Face folders (bf16 safetensors, tokenizer.json, model card, pretraining.json);
        OUTPUT/work: vocabularies and checkpoints, from which a killed run continues.
Paper:  the paper takes pre-trained T5 v1.1 as free (section 2.1) and, in Table 10, BERT; these
        take their place at mini scale. All models of a region see as many examples, as the sizes
        of T5 v1.1 did; student-short, on 15 times fewer, shows what that does.

The T5s have T5 v1.1's architecture (gated GELU), a vocabulary of up to 1,792 pieces with byte
fallback, and an output head tied to the embeddings (asserted after save and load). Some heads start
as copiers or matchers, as models this small do not find copying in minutes: an initialisation only,
which says nothing about labels. Objectives are made from unlabeled text alone: restore a masked
sentence and T5's span corruption, in the lab list rarer words, in the town salient spans (as the
checkpoints that the paper uses for Natural Questions mask names and dates).

The encoder has BERT's architecture and objective, of whole words, as the pieces of a short
vocabulary give each other away, and without pairs of sentences; in the town 85% of its examples
mask one salient word instead.
"""

import hashlib
import io
import itertools
import os
import platform
import random
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import sentencepiece
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors

from data.files import make_parser, read_json, run_cli, write_atomic, write_json
from data.tasks import load_tasks
from data.world import lab, town

MODELS = Path(__file__).with_name("models")
CARDS = Path(__file__).with_name("cards.json")  # what they say
TEXT = {"lab": lab, "town": town}
VOCABULARY_SIZE = 1792
SENTINELS = [f"<extra_id_{i}>" for i in range(32)]
# Of these the last two announce the first two objectives, the one before closes a run of listed
# words; the first two are the encoder's [MASK] and [CLS], as no text holds them.
GAP, LIST, RESTORE = range(29, 32)
MASK, START = SENTINELS[:2]
COMMON_WORDS = 60  # the most frequent words are not listed
POSITIONS = 256  # that the encoder reads
ENCODER = "encoder"
SIZES = {  # width, heads, layers; a T5's encoder has two layers
    "teacher": (128, 4, 2),
    "large": (96, 3, 2),
    "student": (64, 2, 1),
    "student-short": (64, 2, 1),
    ENCODER: (128, 4, 2),
}
WHICH = {
    "lab": ("teacher", "large", "student", "student-short"),
    "town": ("teacher", "large", "student", ENCODER),
}
STEPS = {"lab": 15000, "town": 13000}
SHORT = {"student-short": 1000}  # steps, where not STEPS
LEARNING_RATE = {"lab": 2e-3, "town": 1e-3, ENCODER: 2e-3}
# Shares of the objectives; the encoder's "spans" are single words.
MIX = {
    "lab": {"restore": 0.3, "list": 0.4, "spans": 0.3},
    "town": {"restore": 0.05, "spans": 0.1, "salient": 0.85},
}


def train_pieces(region, lines, model):
    """Train a unigram SentencePiece vocabulary and write it to the file `model`.

    Label names such as [Reagent] are pieces of their own, so that targets are short, and in the
    town, which has few words, so is every word.
    """
    labels = [(task, name) for task in load_tasks("all") for name in task.labels]
    words = [f"[{name}]" if task.metric == "entities" else name for task, name in labels]
    if region == "town":
        # The empty word is the bare "▁" before a word of bytes; the lab's text brings it.
        words += ["", *town.FORMAT_WORDS]
        words += sorted({word.strip("?.,") for line in lines for word in line.split()})
    symbols = [*SENTINELS, *dict.fromkeys(f"▁{word}" for word in words)]
    written = io.BytesIO()  # a model_prefix would be stored in the file
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=written,
        vocab_size=VOCABULARY_SIZE,
        hard_vocab_limit=region == "lab",  # the town's text is too plain to fill it
        model_type="unigram",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        user_defined_symbols=symbols,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    write_atomic(model, written.getvalue())


def build_tokenizer(model, encoder=False):
    """The Hugging Face tokenizer of a SentencePiece file; an encoder's has a start and a mask."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    unigram = tokenizers.models.Unigram(vocabulary, unk_id=2, byte_fallback=True)
    backend = tokenizers.Tokenizer(unigram)
    single_spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([single_spaces, normalizers.Strip()])
    form = {"replacement": "▁", "prepend_scheme": "always"}
    backend.pre_tokenizer = pre_tokenizers.Metaspace(**form)
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(**form)])
    start = f"{START} " if encoder else ""
    backend.post_processor = processors.TemplateProcessing(
        single=f"{start}$A </s>",
        pair=f"{start}$A </s> $B </s>",
        special_tokens=[(name, pieces.piece_to_id(name)) for name in f"{start}</s>".split()],
    )
    backend.add_special_tokens(SENTINELS)
    kinds = {"eos_token": "</s>", "extra_special_tokens": SENTINELS, "model_max_length": 512}
    if encoder:
        kinds = {"cls_token": START, "sep_token": "</s>", "mask_token": MASK}
        kinds["model_max_length"] = POSITIONS
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", **kinds
    )


# --- examples -------------------------------------------------------------------------------


class Examples(torch.utils.data.Dataset):
    """Example i of pre-training, made on demand from (seed, i): a resumed run sees the same.

    Consecutive examples of a batch have similar lengths: a batch is a window of the sorted text.
    A line is a list of words, a word a tuple of piece ids.
    """

    def __init__(self, region, tokenizer, lines, count, batch_size, seed):
        words = sorted({word for line in lines for word in line.split()})
        encoded = map(tuple, tokenizer(words, add_special_tokens=False).input_ids)
        self.ids = dict(zip(words, encoded, strict=True))
        lines = ([self.ids[word] for word in line.split()] for line in lines)
        self.lines = sorted(lines, key=lambda line: sum(map(len, line)))
        self.early = self.lines  # what the first tenth of the examples is made of
        self.mix, self.tokenizer = MIX[region], tokenizer
        self.salient = self.find(town.Town().salient if "salient" in self.mix else ())
        self.count, self.batch_size, self.seed = count, batch_size, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        batch = random.Random(f"{self.seed} batch {index // self.batch_size}")
        lines = self.early if index < self.count // 10 else self.lines
        first = batch.randrange(len(lines) - self.batch_size)
        words = lines[first + index % self.batch_size]
        return self.corrupt(words, random.Random(f"{self.seed} {index}"))

    def find(self, words):
        """Those of `words` that the text has, as ids."""
        return {self.ids[word] for word in words if word in self.ids}


flatten = itertools.chain.from_iterable  # the pieces of words, or the words of lines


class Denoising(Examples):
    """Examples for a T5: one of the region's objectives each."""

    def __init__(self, *args):
        super().__init__(*args)
        counts = Counter(flatten(self.lines))
        self.common = {word for word, _ in counts.most_common(COMMON_WORDS)}
        self.sentinels = self.tokenizer.convert_tokens_to_ids(SENTINELS)
        # Comparing two sentences is learned alone, or hardly: the town begins with such lines.
        joined = self.find((town.SAME, town.OTHER))
        joined = [line for line in self.lines if not joined.isdisjoint(line)]
        self.early = joined if len(joined) > self.batch_size else self.lines

    def corrupt(self, words, rng):
        """One {"input_ids", "labels"} by one of the region's objectives."""
        (kind,) = rng.choices(list(self.mix), self.mix.values())
        source, target = getattr(self, f"make_{kind}")(words, rng)
        return {"input_ids": [*source, 1], "labels": [*target, 1]}

    def make_restore(self, words, rng):
        """The whole line from one in which words are masked."""
        source, _ = self.mask(words, rng, rng.choice([0.0, 0.2, 0.35, 0.5]))
        return [self.sentinels[RESTORE], *source], flatten(words)

    def make_list(self, words, rng):
        """The words that are not among the most common, each unbroken run closed by a sentinel."""
        source, _ = self.mask(words, rng, rng.choice([0.0, 0.15, 0.3]))
        target = []
        for common, run in itertools.groupby(words, lambda word: word in self.common):
            target += [] if common else [*flatten(run), self.sentinels[GAP]]
        return [self.sentinels[LIST], *source], target

    def make_spans(self, words, rng):
        """T5's span corruption: the masked words, each run after its sentinel."""
        spans = []
        while not spans:
            source, spans = self.mask(words, rng, 0.3)
        return source, [p for i, span in enumerate(spans) for p in [self.sentinels[i], *span]]

    def make_salient(self, words, rng):
        """One salient word, or at times the whole sentence that means the same as the first."""
        places = [i for i, word in enumerate(words) if word in self.salient]
        if not places:
            return self.make_spans(words, rng)
        start = rng.choice(places)
        end = start + 1
        if words[start] == self.ids.get(town.SAME) and rng.random() < 0.5:
            start, end = end, len(words)
        # No sentinel before the target: the answer comes first, as it does in the tasks.
        source = [*flatten(words[:start]), self.sentinels[0], *flatten(words[end:])]
        return source, flatten(words[start:end])

    def mask(self, words, rng, rate):
        """Replace about `rate` of the words, one or two at a time, by sentinels."""
        source, spans, i = [], [], 0
        while i < len(words):
            if rng.random() < rate / 1.3 and len(spans) < GAP:
                length = 2 if rng.random() < 0.3 else 1
                source.append(self.sentinels[len(spans)])
                spans.append(flatten(words[i : i + length]))
                i += length
            else:
                source += words[i]
                i += 1
        return source, spans


class MaskedText(Examples):
    """Examples for the encoder: words to be guessed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.pieces = sorted(set(flatten(self.ids.values())))

    def corrupt(self, words, rng):
        """One {"input_ids", "labels"}: one salient word masked, or 15% of all to be guessed."""
        salient = [i for i, word in enumerate(words) if word in self.salient]
        if salient and rng.random() < self.mix["salient"]:
            asked = {rng.choice(salient): "mask"}
        else:
            places = rng.sample(range(len(words)), max(1, round(0.15 * len(words))))
            kinds = rng.choices(("mask", "replace", "leave"), (8, 1, 1), k=len(places))
            asked = dict(zip(places, kinds, strict=True))
        source, target = [self.tokenizer.cls_token_id], [-100]
        for i, word in enumerate(words):
            shown = {"mask": [self.tokenizer.mask_token_id] * len(word), "leave": word}
            shown["replace"] = rng.choices(self.pieces, k=len(word))
            source += shown[asked.get(i, "leave")]
            target += word if i in asked else [-100] * len(word)
        return {"input_ids": [*source, self.tokenizer.sep_token_id], "labels": [*target, -100]}


# --- models ---------------------------------------------------------------------------------


@torch.no_grad()
def set_copying_heads(model):
    """Start head 0 as a copier: the encoder's looks one token back, the decoders' follows it.

    Encoder layer 0 writes a random projection of the previous token into the residual stream;
    head 0 of each cross-attention matches it with the decoder's current token and copies the
    source token found there. With tied embeddings the copied token is also the likeliest output.
    """
    size, generator = model.config.d_kv, torch.Generator().manual_seed(1)
    write, value, *_ = draw_basis(model, generator).split(size)
    read = draw_basis(model, generator)[:size]
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.relative_attention_bias.weight[1, 0] = 6.0  # bucket 1: one position back
    attention.q.weight[:size] = attention.k.weight[:size] = 0
    attention.v.weight[:size] = read
    attention.o.weight[:, :size] = write.T
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.q.weight[:size] = read * (12.0 / size)
        attention.k.weight[:size] = write * 1.4
        attention.v.weight[:size] = value
        attention.o.weight[:, :size] = value.T


@torch.no_grad()
def set_matching_head(model):
    """Start head 1 of the first encoder layer as a matcher: each token finds its like elsewhere.

    Queries and keys are the same projection of the embeddings, so like attends to like, not to
    itself; what it finds is written beside it. Comparing two sentences begins from there.
    """
    size = model.config.d_kv
    find, write, *_ = draw_basis(model, torch.Generator().manual_seed(2)).split(size)
    attention, rows = model.encoder.block[0].layer[0].SelfAttention, slice(size, 2 * size)
    attention.q.weight[rows] = attention.k.weight[rows] = find * 0.7
    attention.v.weight[rows] = find
    attention.o.weight[:, rows] = write.T
    attention.relative_attention_bias.weight[0, 1] = -12.0  # bucket 0: the token itself


def draw_basis(model, generator):
    """Random orthonormal directions (d_model, d_model) of the residual stream."""
    size = model.config.d_model
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


def build_model(region, which, vocabulary_size, seed):
    """A model of the mini size `which`, head tied to the embeddings."""
    torch.manual_seed(seed)
    width, heads, layers = SIZES[which]
    if which == ENCODER:
        config = transformers.BertConfig(
            vocab_size=vocabulary_size,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            intermediate_size=2 * width,
            max_position_embeddings=POSITIONS,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        return transformers.BertForMaskedLM(config)
    config = transformers.T5Config(
        vocab_size=vocabulary_size,
        d_model=width,
        d_kv=32,
        num_heads=heads,
        d_ff=2 * width,
        num_layers=2,
        num_decoder_layers=layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_max_distance=64,
        decoder_start_token_id=0,
    )
    model = transformers.T5ForConditionalGeneration(config)
    set_copying_heads(model)
    if region == "town":
        set_matching_head(model)
    return model


# --- training -------------------------------------------------------------------------------


class Progress(transformers.TrainerCallback):
    """Loss and CPU minutes left on stderr; CPU seconds, of all starts of a run, in its log."""

    def __init__(self, name):
        self.name, self.start = name, time.process_time()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start -= max((log.get("cpu_seconds", 0) for log in state.log_history), default=0)

    def on_log(self, args, state, control, logs, **kwargs):
        done, steps, seconds = state.global_step, state.max_steps, time.process_time() - self.start
        state.log_history[-1]["cpu_seconds"] = seconds  # checkpoints hold the log
        if "loss" in logs:
            left = seconds / done * (steps - done) / 60
            told = f"step {done}/{steps}, loss {logs['loss']:.3f}, {left:.1f} CPU minutes left"
            print(f"[{self.name}] {told}", file=sys.stderr, flush=True)


def choose_schedule(region, which, steps):
    """How the learning rate goes, by arguments of the Trainer."""
    if which == ENCODER:
        schedule = {"lr_scheduler_type": "linear", "warmup_steps": min(200, steps // 10)}
        return {**schedule, "weight_decay": 0.01, "learning_rate": LEARNING_RATE[which]}
    return {
        "lr_scheduler_type": "warmup_stable_decay",
        "lr_scheduler_kwargs": {"num_decay_steps": steps // 2, "min_lr_ratio": 0.02},
        "warmup_steps": min(300, steps // 10),
        "learning_rate": LEARNING_RATE[region],
    }


def train(region, which, steps, tokenizer, lines, args):
    """The model and the log of its training, which continues from the last checkpoint."""
    work = args.output / "work" / region / which
    make, rows = MaskedText if which == ENCODER else Denoising, args.batch_size
    trainer = transformers.Trainer(
        model=build_model(region, which, len(tokenizer), args.seed),
        args=transformers.TrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=rows,
            train_sampling_strategy="sequential",
            adam_beta2=0.98,
            logging_steps=min(100, max(1, steps // 5)),
            save_steps=args.save_steps,
            save_total_limit=2,
            dataloader_pin_memory=False,
            seed=args.seed,
            **choose_schedule(region, which, steps),
        ),
        train_dataset=make(region, tokenizer, lines, steps * rows, rows, args.seed),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        callbacks=[Progress(f"{region} {which}")],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    checkpoint = transformers.trainer_utils.get_last_checkpoint(work) if work.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    return trainer.model, trainer.state.log_history


def pretrain(region, which, lines, pieces, args):
    """Train one model and write its folder; `pieces` is the region's SentencePiece file."""
    steps = args.steps or SHORT.get(which, STEPS[region])
    tokenizer = build_tokenizer(pieces, which == ENCODER)
    model, log = train(region, which, steps, tokenizer, lines, args)
    facts = {
        "region": region,
        "model": which,
        "parameters": model.num_parameters(),
        "steps": steps,
        "batch_size": args.batch_size,
        "examples": steps * args.batch_size,
        "text_lines": args.lines,
        "text_seed": TEXT[region].SEED,
        "cpu_minutes": round(log[-1]["cpu_seconds"] / 60, 1),
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "final_loss": [entry["loss"] for entry in log if "loss" in entry][-1],
        "seed": args.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    folder = args.output / (which if region == "lab" else f"{region}-{which}")
    save(folder, model, tokenizer, facts, pieces)
    print(
        f"{folder}: {facts['parameters']:,} parameters, loss {facts['final_loss']:.3f}",
        file=sys.stderr,
    )


# --- folders and cards ----------------------------------------------------------------------


def save(folder, model, tokenizer, facts, pieces):
    """Swap in `folder`: the model in bf16, its vocabulary, what is known of it, its card.

    Raises AssertionError where head and embeddings, loaded from there, are two tensors.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if facts["model"] != ENCODER:
        shutil.copy(pieces, temporary)
    loaded = type(model).from_pretrained(temporary)
    if loaded.get_output_embeddings().weight is not loaded.get_input_embeddings().weight:
        raise AssertionError("the output head is not tied to the embeddings")
    write_json(temporary / "pretraining.json", facts)
    write_atomic(temporary / "README.md", format_card(temporary))
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def format_card(folder):
    """The card of the model in `folder`, from its pretraining.json and config.json."""
    facts = {**read_json(folder / "config.json"), **read_json(folder / "pretraining.json")}
    clock = "cpu_minutes" if "cpu_minutes" in facts else "minutes"
    facts["time"] = f"{facts[clock]} {clock.replace('cpu_', 'CPU ')}"
    cards, names = read_json(CARDS), (facts["model"], facts["region"], "t5")
    for part, texts in cards["parts"].items():  # each by the model's name, else a wider one
        lines = next((texts[name] for name in names if name in texts), [])
        facts[part] = "\n".join(lines).format(**facts)
    return "\n".join(cards["card"]).format(**facts)


def format_table(folder):
    """A Markdown table of the models in `folder`."""
    lines = [
        "| model | parameters | steps | examples | minutes | loss |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for file in sorted(folder.glob("*/pretraining.json")):
        facts = read_json(file)
        minutes, loss = facts.get("cpu_minutes", facts.get("minutes")), facts["final_loss"]
        counts = " | ".join(f"{facts[key]:,}" for key in ("parameters", "steps", "examples"))
        lines.append(f"| {file.parent.name} | {counts} | {minutes} | {loss:.3f} |")
    return "\n".join(lines) + "\n"


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--region", nargs="+", choices=TEXT, default=list(TEXT), help="(default both)")
    add("--which", nargs="+", choices=SIZES, help="models (default: all of the region)")
    add("--output", type=Path, default=MODELS, help="(default data/world/models)")
    add("--steps", type=int, help="(default 15000 in the lab, 13000 in the town)")
    add("--batch-size", type=int, default=96, help="rows (default %(default)s)")
    add("--lines", type=int, default=150000, help="text (default %(default)s)")
    add("--save-steps", type=int, default=1000, help="(default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    add("--cards", action="store_true", help="only write the cards of OUTPUT's models again")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if args.cards:
        for file in sorted(args.output.glob("*/pretraining.json")):
            write_atomic(file.with_name("README.md"), format_card(file.parent))
        print(format_table(args.output), end="")  # for data/world/README.md
        return
    for region in args.region:
        lines = TEXT[region].draw_pretraining_text(args.lines)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
        print(f"{region}: {len(lines):,} lines, sha256 {digest}", file=sys.stderr, flush=True)
        pieces = args.output / "work" / region / "spiece.model"
        if not pieces.exists():
            train_pieces(region, lines, pieces)
        for which in args.which or WHICH[region]:
            pretrain(region, which, lines, pieces, args)


if __name__ == "__main__":
    run_cli(main)
