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
fallback, and an output head tied to the embeddings (asserted after save and load). Their objectives
are made from unlabeled text alone. In the lab: restore a masked sentence, list its rarer words, and
T5's span corruption. In the town: restore, span corruption, and salient spans (a name's fact or a
word that connects two sentences, as the checkpoints that the paper uses for Natural Questions mask
names and dates). Models this small do not find copying in minutes, so they start from weights in
which one head already looks one token back and one cross-attention head copies what follows a
match, and in the town one finds like words; it is an initialisation only and says nothing about
labels.

The encoder has BERT's architecture and objective: 15% of the words are to be guessed; 80% of these
are masked, 10% replaced, 10% left. Whole words, as the pieces of a short vocabulary give each other
away. There are no sentence pairs. In the town 85% of the examples mask one salient word instead.
"""

import hashlib
import io
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
SENTINELS = 32
RESTORE, LIST = SENTINELS - 1, SENTINELS - 2  # sentinels that announce the first two objectives
GAP = SENTINELS - 3  # closes a run of listed words
MASK, START = "<extra_id_0>", "<extra_id_1>"  # the encoder's [MASK] and [CLS]: no text holds them
COMMON_WORDS = 60  # the most frequent words are not listed


def list_sizes(d_model, num_heads, num_decoder_layers):
    """A T5 of two encoder layers, as arguments of its configuration."""
    sizes = {"d_model": d_model, "d_kv": 32, "num_heads": num_heads, "d_ff": 2 * d_model}
    return {**sizes, "num_layers": 2, "num_decoder_layers": num_decoder_layers}


ENCODER = "encoder"
SIZES = {
    "teacher": list_sizes(128, 4, 2),
    "large": list_sizes(96, 3, 2),
    "student": list_sizes(64, 2, 1),
    "student-short": list_sizes(64, 2, 1),
    ENCODER: {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 256,
        "max_position_embeddings": 256,
    },
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


# --- vocabulary -----------------------------------------------------------------------------


def train_pieces(region, lines, labels, model):
    """Train a unigram SentencePiece vocabulary and write it to the file `model`.

    Label names such as [Reagent] are pieces of their own, so that targets are short, and in the
    town, which has few words, so is every word.
    """
    words = list(labels)
    if region == "town":
        known = {word.strip("?.,") for line in lines for word in line.split()} - {""}
        # The empty word is the bare "▁" before a word of bytes; the lab's text brings it.
        words += ["", *town.FORMAT_WORDS, *sorted(known.difference(words))]
    symbols = [f"<extra_id_{i}>" for i in range(SENTINELS)] + [f"▁{word}" for word in words]
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
    model.with_suffix(".new").write_bytes(written.getvalue())
    os.replace(model.with_suffix(".new"), model)


def build_tokenizer(model):
    """The Hugging Face tokenizer of a SentencePiece file."""
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    unigram = tokenizers.models.Unigram(vocabulary, unk_id=2, byte_fallback=True)
    backend = tokenizers.Tokenizer(unigram)
    single_spaces = normalizers.Replace(Regex(r"\s+"), " ")
    backend.normalizer = normalizers.Sequence([single_spaces, normalizers.Strip()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(SENTINELS)],
        model_max_length=512,
    )


def build_encoder_tokenizer(tokenizer):
    """The same pieces with a start token and a mask token."""
    backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    ids = [(token, backend.token_to_id(token)) for token in (START, "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A </s>", pair=f"{START} $A </s> $B </s>", special_tokens=ids
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token=START,
        sep_token="</s>",
        mask_token=MASK,
        model_max_length=SIZES[ENCODER]["max_position_embeddings"],
    )


def list_label_names():
    """The bracketed entity labels and the class names of all tasks, in a fixed order."""
    names = []
    for task in load_tasks("all"):
        bracket = task.metric == "entities"
        names += [f"[{name}]" if bracket else name for name in task.labels]
    return list(dict.fromkeys(names))


# --- examples -------------------------------------------------------------------------------


class Examples(torch.utils.data.Dataset):
    """Example i of pre-training, made on demand from (seed, i): a resumed run sees the same.

    Consecutive examples of a batch have similar lengths: a batch is a window of the sorted text.
    A line is a list of words, a word a list of piece ids.
    """

    def __init__(self, region, tokenizer, lines, count, batch_size, seed):
        words = sorted({word for line in lines for word in line.split()})
        encoded = tokenizer(words, add_special_tokens=False).input_ids
        self.ids = dict(zip(words, encoded, strict=True))
        self.lines = sorted(
            ([self.ids[word] for word in line.split()] for line in lines),
            key=lambda line: sum(map(len, line)),
        )
        self.mix, self.tokenizer = MIX[region], tokenizer
        salient = town.Town().salient if "salient" in self.mix else ()
        self.salient = {tuple(self.ids[word]) for word in salient if word in self.ids}
        self.count, self.batch_size, self.seed = count, batch_size, seed

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        batch = random.Random(f"{self.seed} batch {index // self.batch_size}")
        lines = self.choose_lines(index)
        first = batch.randrange(len(lines) - self.batch_size)
        words = lines[first + index % self.batch_size]
        return self.corrupt(words, random.Random(f"{self.seed} {index}"))

    def choose_lines(self, index):
        """The lines that example `index` is made of."""
        return self.lines

    def find_salient(self, words):
        """The places of salient words in a line."""
        return [i for i, word in enumerate(words) if tuple(word) in self.salient]


class Denoising(Examples):
    """Examples for a T5: one of the region's objectives each."""

    def __init__(self, *args):
        super().__init__(*args)
        counts = Counter(tuple(word) for line in self.lines for word in line)
        self.common = {word for word, _ in counts.most_common(COMMON_WORDS)}
        names = [f"<extra_id_{i}>" for i in range(SENTINELS)]
        self.sentinels = self.tokenizer.convert_tokens_to_ids(names)
        self.same = tuple(self.ids.get(town.SAME, ()))
        # Comparing two sentences is learned alone, or hardly: the town begins with such lines.
        joined = {tuple(self.ids[word]) for word in (town.SAME, town.OTHER) if word in self.ids}
        self.joined = [line for line in self.lines if any(tuple(w) in joined for w in line)]

    def choose_lines(self, index):
        early = index < self.count // 10 and len(self.joined) > self.batch_size
        return self.joined if early else self.lines

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
        """The line's rarer words in order."""
        source, _ = self.mask(words, rng, rng.choice([0.0, 0.15, 0.3]))
        return [self.sentinels[LIST], *source], self.list_rare(words)

    def make_spans(self, words, rng):
        """T5's span corruption: the masked words, each run after its sentinel."""
        spans = []
        while not spans:
            source, spans = self.mask(words, rng, 0.3)
        return source, [p for i, span in enumerate(spans) for p in [self.sentinels[i], *span]]

    def make_salient(self, words, rng):
        """One salient word, or at times the whole sentence that means the same as the first."""
        places = self.find_salient(words)
        if not places:
            return self.make_spans(words, rng)
        start = rng.choice(places)
        end = start + 1
        if tuple(words[start]) == self.same and rng.random() < 0.5:
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

    def list_rare(self, words):
        """The words that are not among the most common, each unbroken run closed by a sentinel."""
        listed, gap = [], self.sentinels[GAP]
        for word in words:
            if tuple(word) not in self.common:
                listed += word
            elif listed and listed[-1] != gap:
                listed.append(gap)
        return listed if not listed or listed[-1] == gap else [*listed, gap]


class MaskedText(Examples):
    """Examples for the encoder: words to be guessed."""

    def __init__(self, *args):
        super().__init__(*args)
        self.pieces = sorted({piece for word in self.ids.values() for piece in word})

    def corrupt(self, words, rng):
        salient = self.find_salient(words)
        if salient and rng.random() < self.mix["salient"]:
            return self.hide(words, {rng.choice(salient): "mask"}, rng)
        asked = rng.sample(range(len(words)), max(1, round(0.15 * len(words))))
        kinds = rng.choices(("mask", "replace", "leave"), (8, 1, 1), k=len(asked))
        return self.hide(words, dict(zip(asked, kinds, strict=True)), rng)

    def hide(self, words, asked, rng):
        """One {"input_ids", "labels"}; `asked` says how each of the words to guess is shown."""
        source, target = [self.tokenizer.cls_token_id], [-100]
        for i, word in enumerate(words):
            shown = {"mask": [self.tokenizer.mask_token_id] * len(word), "leave": word}
            shown["replace"] = rng.choices(self.pieces, k=len(word))
            source += shown[asked.get(i, "leave")]
            target += word if i in asked else [-100] * len(word)
        return {"input_ids": [*source, self.tokenizer.sep_token_id], "labels": [*target, -100]}


def flatten(words):
    """The pieces of words."""
    return [piece for word in words for piece in word]


# --- models ---------------------------------------------------------------------------------


@torch.no_grad()
def set_copying_heads(model):
    """Start head 0 as a copier: the encoder's looks one token back, the decoders' follows it.

    Encoder layer 0 writes a random projection of the previous token into the residual stream;
    head 0 of each cross-attention matches it with the decoder's current token and copies the
    source token found there. With tied embeddings the copied token is also the likeliest output.
    """
    config = model.config
    d_model, d_kv = config.d_model, config.d_kv
    k = min(d_kv, d_model // 2)
    generator = torch.Generator().manual_seed(1)
    basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))[0]
    write, value = basis[:k], basis[k : 2 * k]
    read = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))[0][:k]
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.relative_attention_bias.weight[1, 0] = 6.0  # bucket 1: one position back
    attention.q.weight[:d_kv] = 0
    attention.k.weight[:d_kv] = 0
    attention.v.weight[:k] = read
    attention.o.weight[:, :k] = write.T
    for block in model.decoder.block:
        attention = block.layer[1].EncDecAttention
        attention.q.weight[:d_kv] = 0
        attention.q.weight[:k] = read * (12.0 / k)
        attention.k.weight[:d_kv] = 0
        attention.k.weight[:k] = write * 1.4
        attention.v.weight[:d_kv] = 0
        attention.v.weight[:k] = value
        attention.o.weight[:, :k] = value.T


@torch.no_grad()
def set_matching_head(model):
    """Start head 1 of the first encoder layer as a matcher: each token finds its like elsewhere.

    Queries and keys are the same projection of the embeddings, so like attends to like, not to
    itself; what it finds is written beside it. Comparing two sentences begins from there.
    """
    d_model, d_kv = model.config.d_model, model.config.d_kv
    generator = torch.Generator().manual_seed(2)
    basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))[0]
    k = min(d_kv, d_model // 2)
    attention, rows = model.encoder.block[0].layer[0].SelfAttention, slice(d_kv, d_kv + k)
    attention.q.weight[rows] = attention.k.weight[rows] = basis[:k] * 0.7
    attention.v.weight[rows] = basis[:k]
    attention.o.weight[:, rows] = basis[k : 2 * k].T
    attention.relative_attention_bias.weight[0, 1] = -12.0  # bucket 0: the token itself


def build_model(region, which, vocabulary_size, seed):
    """A model of the mini size `which`, head tied to the embeddings."""
    torch.manual_seed(seed)
    if which == ENCODER:
        config = transformers.BertConfig(vocab_size=vocabulary_size, pad_token_id=0, **SIZES[which])
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
        return transformers.BertForMaskedLM(config)
    config = transformers.T5Config(
        vocab_size=vocabulary_size,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_max_distance=64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **SIZES[which],
    )
    model = transformers.T5ForConditionalGeneration(config)
    set_copying_heads(model)
    if region == "town":
        set_matching_head(model)
    assert_tied(model)
    return model


def assert_tied(model):
    """Fail loudly where the head and the embeddings are two tensors."""
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight.data_ptr() != embeddings.weight.data_ptr():
        raise AssertionError("the output head is not tied to the embeddings")


# --- training -------------------------------------------------------------------------------


class Progress(transformers.TrainerCallback):
    """Loss and CPU minutes left on stderr; the CPU seconds so far beside each checkpoint."""

    def __init__(self, name, work):
        self.name, self.file = name, work / "seconds.json"
        before = read_json(self.file, float) if self.file.exists() else 0.0  # of interrupted runs
        self.clock = before - time.process_time()

    def count_seconds(self):
        return self.clock + time.process_time()

    def on_log(self, args, state, control, logs, **kwargs):
        done, steps = state.global_step, state.max_steps
        if "loss" in logs:
            left = self.count_seconds() / done * (steps - done) / 60
            told = f"step {done}/{steps}, loss {logs['loss']:.3f}, {left:.1f} CPU minutes left"
            print(f"[{self.name}] {told}", file=sys.stderr, flush=True)

    def on_save(self, args, state, control, **kwargs):
        write_json(self.file, self.count_seconds())


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
    """(model, final loss, CPU seconds); continues from the last checkpoint."""
    work = args.output / "work" / region / which
    make, rows = MaskedText if which == ENCODER else Denoising, args.batch_size
    progress = Progress(f"{region} {which}", work)
    trainer = transformers.Trainer(
        model=build_model(region, which, len(tokenizer), args.seed),
        args=transformers.TrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=rows,
            train_sampling_strategy="sequential",
            adam_beta2=0.98,
            optim="adamw_torch_fused",
            logging_steps=min(100, max(1, steps // 5)),
            save_steps=args.save_steps,
            save_total_limit=2,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            report_to="none",
            seed=args.seed,
            **choose_schedule(region, which, steps),
        ),
        train_dataset=make(region, tokenizer, lines, steps * rows, rows, args.seed),
        data_collator=transformers.DataCollatorForSeq2Seq(tokenizer),
        callbacks=[progress],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    checkpoint = transformers.trainer_utils.get_last_checkpoint(work) if work.is_dir() else None
    trainer.train(resume_from_checkpoint=checkpoint)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return trainer.model, losses[-1], progress.count_seconds()


def pretrain(region, which, lines, pieces, args):
    """Train one model and write its folder; `pieces` is the region's SentencePiece file."""
    steps = args.steps or SHORT.get(which, STEPS[region])
    tokenizer = build_tokenizer(pieces)
    if which == ENCODER:
        tokenizer = build_encoder_tokenizer(tokenizer)
    model, loss, seconds = train(region, which, steps, tokenizer, lines, args)
    facts = {
        "region": region,
        "model": which,
        "parameters": model.num_parameters(),
        "steps": steps,
        "batch_size": args.batch_size,
        "examples": steps * args.batch_size,
        "text_lines": args.lines,
        "text_seed": TEXT[region].SEED,
        "cpu_minutes": round(seconds / 60, 1),
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "final_loss": loss,
        "seed": args.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    folder = args.output / (which if region == "lab" else f"{region}-{which}")
    save(folder, model, tokenizer, facts, [] if which == ENCODER else [pieces])
    print(f"{folder}: {facts['parameters']:,} parameters, loss {loss:.3f}", file=sys.stderr)


# --- folders and cards ----------------------------------------------------------------------


def save(folder, model, tokenizer, facts, files):
    """Swap in `folder`: the model in bf16, what is known of it, its card, copies of `files`.

    Raises AssertionError where the model does not load from there as it was.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in files:
        shutil.copy(file, temporary)
    assert_tied(type(model).from_pretrained(temporary))
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
        pieces.parent.mkdir(parents=True, exist_ok=True)
        if not pieces.exists():
            train_pieces(region, lines, list_label_names(), pieces)
        for which in args.which or WHICH[region]:
            pretrain(region, which, lines, pieces, args)


if __name__ == "__main__":
    run_cli(main)
