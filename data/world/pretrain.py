"""Pre-train the mini models, compact students and larger teachers, on unlabeled mini text.

Usage:
    python -m data.world.pretrain --region lab town --output data/world/models          # hours
    python -m data.world.pretrain --which student --steps 50 --output /tmp/try         # a minute

Reads:  data/world/lab.py (the lab, for wlp) and data/world/town.py (the town, for the other five
        tasks) with their word lists; data/tasks.json for the label names in the vocabulary.
Writes: OUTPUT/{teacher,large,student} for the lab, OUTPUT/town-... for the town: Hugging Face
        folders (bf16 safetensors, tokenizer.json, model card); OUTPUT/work: vocabularies and
        checkpoints, from which a killed run continues.
Paper:  the paper takes pre-trained T5 v1.1 as free (section 2.1); these take its place at
        mini scale. T5 v1.1's architecture (gated GELU), a vocabulary of up to 1,792 pieces with
        byte fallback, and an output head tied to the embeddings (asserted after save and load).

The objectives are made from unlabeled text alone. In the lab: restore a masked sentence, list its
rarer words, and T5's span corruption. In the town: restore, span corruption, and salient spans (a
name's fact or a word that connects two sentences, as the checkpoints that the paper uses for
Natural Questions mask names and dates). Models this small do not find copying in minutes, so they
start from weights in which one head already looks one token back and one cross-attention head
copies what follows a match, and in the town one finds like words; it is an initialisation only
and says nothing about labels.
"""

import argparse
import hashlib
import json
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
from transformers import (
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
)

from data.world import lab, town

VOCABULARY_SIZE = 1792
SENTINELS = 32
RESTORE, LIST = SENTINELS - 1, SENTINELS - 2  # sentinels that announce the first two objectives
GAP = SENTINELS - 3  # closes a run of listed words
COMMON_WORDS = 60  # the most frequent words are not listed
SIZES = {
    "teacher": {
        "d_model": 128,
        "d_kv": 32,
        "num_heads": 4,
        "d_ff": 256,
        "num_layers": 2,
        "num_decoder_layers": 2,
    },
    "large": {
        "d_model": 96,
        "d_kv": 32,
        "num_heads": 3,
        "d_ff": 192,
        "num_layers": 2,
        "num_decoder_layers": 2,
    },
    "student": {
        "d_model": 64,
        "d_kv": 32,
        "num_heads": 2,
        "d_ff": 128,
        "num_layers": 2,
        "num_decoder_layers": 1,
    },
}


# Steps and shares of the objectives by region.
STEPS = {
    "lab": {"teacher": 15000, "large": 4000, "student": 1000},
    "town": {"teacher": 13000, "large": 3000, "student": 700},
}
MIX = {
    "lab": {"restore": 0.3, "list": 0.4, "spans": 0.3},
    "town": {"restore": 0.05, "spans": 0.1, "salient": 0.85},
}
TEXT = {"lab": lab, "town": town}
LEARNING_RATE = {"lab": 2e-3, "town": 1e-3}


def train_vocabulary(region, lines, labels, folder):
    """Train a unigram SentencePiece vocabulary and return it as a Hugging Face tokenizer.

    Label names such as [Reagent] are pieces of their own, so that targets are short, and in the
    town, which has few words, so is every word.
    """
    model = folder / "spiece.model"
    if not model.exists():
        words = list(labels)
        if region == "town":
            known = {word.strip("?.,") for line in lines for word in line.split()} - {""}
            words += [*town.FORMAT_WORDS, *sorted(known.difference(words))]
        symbols = [f"<extra_id_{i}>" for i in range(SENTINELS)] + [f"▁{word}" for word in words]
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_prefix=str(folder / "spiece.new"),
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
        os.replace(folder / "spiece.new.model", model)
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    vocabulary = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    backend = tokenizers.Tokenizer(
        tokenizers.models.Unigram(vocabulary, unk_id=2, byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(replacement="▁", prepend_scheme="always")]
    )
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=[f"<extra_id_{i}>" for i in range(SENTINELS)],
        model_max_length=512,
    )


class Denoising(torch.utils.data.Dataset):
    """Example i of pre-training, made on demand from (seed, i): a resumed run sees the same.

    Consecutive examples of a batch have similar lengths: a batch is a window of the sorted text.
    """

    def __init__(self, region, tokenizer, lines, examples, batch_size, seed):
        ids = {}
        for word in {word for line in lines for word in line.split()}:
            ids[word] = tokenizer.encode(word, add_special_tokens=False)
        self.lines = sorted(([ids[w] for w in line.split()] for line in lines), key=measure)
        counts = Counter(tuple(word) for line in self.lines for word in line)
        self.common = {word for word, _ in counts.most_common(COMMON_WORDS)}
        self.sentinels = tokenizer.convert_tokens_to_ids(
            [f"<extra_id_{i}>" for i in range(SENTINELS)]
        )
        self.examples, self.batch_size, self.seed = examples, batch_size, seed
        self.mix, words = MIX[region], () if region == "lab" else town.Town().salient
        self.salient = {tuple(ids[word]) for word in words if word in ids}
        self.same = tuple(ids.get(town.SAME, ()))
        # Comparing two sentences is learned alone, or hardly: the town begins with such lines.
        joined = {tuple(ids[word]) for word in (town.SAME, town.OTHER) if word in ids}
        self.first = [line for line in self.lines if any(tuple(w) in joined for w in line)]
        self.first_examples = examples // 10 if len(self.first) > batch_size else 0

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        batch = random.Random(f"{self.seed} batch {index // self.batch_size}")
        lines = self.first if index < self.first_examples else self.lines
        start = batch.randrange(len(lines) - self.batch_size)
        words = lines[start + index % self.batch_size]
        return self.corrupt(words, random.Random(f"{self.seed} {index}"))

    def corrupt(self, words, rng):
        """One {"input_ids", "labels"} by one of the region's objectives."""
        kind, draw = None, rng.random()
        for kind, share in self.mix.items():  # noqa: B007 (the last one takes what is left)
            draw -= share
            if draw < 0:
                break
        source, target = getattr(self, f"make_{kind}")(words, rng)
        return {"input_ids": [*source, 1], "labels": [*target, 1]}

    def make_restore(self, words, rng):
        """The whole line from one in which words are masked."""
        source, _ = self.mask(words, rng, rng.choice([0.0, 0.2, 0.35, 0.5]))
        return [self.sentinels[RESTORE], *source], [piece for word in words for piece in word]

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
        places = [i for i, word in enumerate(words) if tuple(word) in self.salient]
        if not places:
            return self.make_spans(words, rng)
        start = rng.choice(places)
        end = start + 1
        if tuple(words[start]) == self.same and rng.random() < 0.5:
            start, end = end, len(words)
        masked = [piece for word in words[start:end] for piece in word]
        before, after = (
            [piece for word in part for piece in word] for part in (words[:start], words[end:])
        )
        # No sentinel before them: the answer comes first, as it does in the tasks.
        return [*before, self.sentinels[0], *after], masked

    def mask(self, words, rng, rate):
        """Replace about `rate` of the words, one or two at a time, by sentinels."""
        source, spans, i = [], [], 0
        while i < len(words):
            if rng.random() < rate / 1.3 and len(spans) < GAP:
                length = 2 if rng.random() < 0.3 else 1
                source.append(self.sentinels[len(spans)])
                spans.append([piece for word in words[i : i + length] for piece in word])
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


def measure(line):
    """The number of pieces in a line given as words of pieces."""
    return sum(map(len, line))


def collate(rows):
    """Pad to the longest row of the batch; label padding is -100, as the loss expects."""
    longest = {key: max(len(row[key]) for row in rows) for key in rows[0]}
    pad = {"input_ids": 0, "labels": -100}
    batch = {
        key: torch.tensor([row[key] + [pad[key]] * (longest[key] - len(row[key])) for row in rows])
        for key in longest
    }
    batch["attention_mask"] = (batch["input_ids"] != 0).long()
    return batch


@torch.no_grad()
def set_copying_heads(model, seed=1):
    """Start head 0 as a copier: the encoder's looks one token back, the decoders' follows it.

    Encoder layer 0 writes a random projection of the previous token into the residual stream;
    head 0 of each cross-attention matches it with the decoder's current token and copies the
    source token found there. With tied embeddings the copied token is also the likeliest output.
    """
    config = model.config
    d_model, d_kv = config.d_model, config.d_kv
    k = min(d_kv, d_model // 2)
    generator = torch.Generator().manual_seed(seed)
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
def set_matching_head(model, seed=2):
    """Start head 1 of the first encoder layer as a matcher: each token finds its like elsewhere.

    Queries and keys are the same projection of the embeddings, so like attends to like, not to
    itself; what it finds is written beside it. Comparing two sentences begins from there.
    """
    d_model, d_kv = model.config.d_model, model.config.d_kv
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator))[0]
    k = min(d_kv, d_model // 2)
    attention, rows = model.encoder.block[0].layer[0].SelfAttention, slice(d_kv, d_kv + k)
    attention.q.weight[rows] = attention.k.weight[rows] = basis[:k] * 0.7
    attention.v.weight[rows] = basis[:k]
    attention.o.weight[:, rows] = basis[k : 2 * k].T
    attention.relative_attention_bias.weight[0, 1] = -12.0  # bucket 0: the token itself


def build_model(region, which, vocabulary_size, seed):
    """A T5 v1.1 model of the mini size `which`, head tied to the embeddings."""
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary_size,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_max_distance=64,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        **SIZES[which],
    )
    model = T5ForConditionalGeneration(config)
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


class Progress(transformers.TrainerCallback):
    """A line every half minute: step, loss, time left."""

    def __init__(self, which):
        self.which, self.shown = which, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.start, self.first = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        now = time.monotonic()
        if "loss" not in (logs or {}) or now - self.shown < 30:
            return
        self.shown = now
        done = max(1, state.global_step - self.first)
        left = (now - self.start) / done * (state.max_steps - state.global_step)
        print(
            f"[{self.which}] step {state.global_step}/{state.max_steps} "
            f"loss {float(logs['loss']):.3f}, {left / 60:.1f} min left",
            file=sys.stderr,
            flush=True,
        )


def pretrain(region, which, tokenizer, lines, args):
    """Train one model, continuing from its last checkpoint, and write its folder."""
    steps = args.steps or STEPS[region][which]
    work = args.output / "work" / region / which
    examples = steps * args.batch_size
    dataset = Denoising(region, tokenizer, lines, examples, args.batch_size, args.seed)
    model = build_model(region, which, len(tokenizer), args.seed)
    trainer = Seq2SeqTrainer(
        model=model,
        args=Seq2SeqTrainingArguments(
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            train_sampling_strategy="sequential",
            learning_rate=args.learning_rate or LEARNING_RATE[region],
            lr_scheduler_type="warmup_stable_decay",
            lr_scheduler_kwargs={"num_decay_steps": steps // 2, "min_lr_ratio": 0.02},
            warmup_steps=min(300, steps // 10),
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
        ),
        train_dataset=dataset,
        data_collator=collate,
        callbacks=[Progress(f"{region} {which}")],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    checkpoint = transformers.trainer_utils.get_last_checkpoint(work) if work.is_dir() else None
    seconds = read_seconds(work)
    start = time.monotonic()
    trainer.add_callback(SaveSeconds(work, seconds, start))
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds += time.monotonic() - start
    history = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    loss = history[-1] if history else None
    facts = {"region": region, "model": which, "final_loss": loss}
    facts["minutes"] = round(seconds / 60, 1)
    folder = args.output / name_folder(region, which)
    vocabulary = args.output / "work" / region / "spiece.model"
    save(args, folder, model, tokenizer, steps, facts, format_card, [vocabulary])


class SaveSeconds(transformers.TrainerCallback):
    """Keep the seconds spent so far beside each checkpoint, for the model card."""

    def __init__(self, work, before, start):
        self.work, self.before, self.start = work, before, start

    def on_save(self, args, state, control, **kwargs):
        spent = self.before + time.monotonic() - self.start
        (self.work / "seconds.json").write_text(json.dumps(spent))


def read_seconds(work):
    """Seconds that earlier, interrupted runs spent."""
    file = work / "seconds.json"
    return json.loads(file.read_text()) if file.exists() else 0.0


def name_folder(region, which):
    """The folder of a model: student, town-student, ..."""
    return which if region == "lab" else f"{region}-{which}"


def save(args, folder, model, tokenizer, steps, facts, format_card, files=()):
    """Swap in `folder`: the model in bf16, what is known of it, its card; it must load from there.

    `facts` has region and model; format_card(facts, config) gives the card's text; copies of
    `files` lie beside.
    """
    temporary = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    model.to(torch.bfloat16).save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    for file in files:
        shutil.copy(file, temporary)
    loaded = type(model).from_pretrained(temporary)
    assert_tied(loaded)
    facts = {
        **facts,
        "text_seed": TEXT[facts["region"]].SEED,
        "parameters": loaded.num_parameters(),
        "steps": steps,
        "batch_size": args.batch_size,
        "examples": steps * args.batch_size,
        "text_lines": args.lines,
        "machine": f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "seed": args.seed,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (temporary / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n")
    (temporary / "README.md").write_text(format_card(facts, model.config), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)
    loss = facts["final_loss"]
    print(f"{folder}: {facts['parameters']:,} parameters, loss {loss}", file=sys.stderr)


TOLD = {  # region -> what its card says of text and objectives
    "lab": """It knows nothing but invented wet-lab sentences.

- Text: {text_lines:,} unlabeled lines of the mini world (`data/world/lab.py`, seed {text_seed}):
  lab sentences and short general remarks such as "X is a machine"; no dev or test sentence among
  them, and no labels anywhere.
- Objectives: 30% restore a masked line, 40% list the line's rarer words in order, 30% span
  corruption as in T5. The second resembles the listing of entities, and some remarks name the
  kind of a word: without them a model this small needs far more text to be of use.""",
    "town": """It knows nothing but the affairs of an invented town.

- Text: {text_lines:,} unlabeled lines of the mini town (`data/world/town.py`, seed {text_seed}), a
  quarter each: facts about people, told or asked and answered; claims about them that "they say
  rightly" or "wrongly"; pairs of sentences joined by "meaning" or "unlike"; claims with a reply
  and a verb for it ("so they objected"). No dev or test source among them, no label of a task.
- Objectives: 85% salient spans (a fact's value, a word that joins or judges, or the whole sentence
  after "meaning"), 10% span corruption as in T5, 5% restore a masked line; the first tenth of the
  examples are joined pairs only. Such words tell what the tasks ask for under other names: without
  them a model this small needs far more text.""",
}


def format_card(facts, config):
    """The model card, from what was measured."""
    told = TOLD[facts["region"]].format(**facts)
    matches = " and one finds like words" if facts["region"] == "town" else ""
    return f"""---
license: mit
library_name: transformers
---
# Mini {facts["model"]} of the {facts["region"]}

A T5 v1.1-architecture model of {facts["parameters"]:,} parameters (d_model {config.d_model},
{config.num_heads} heads of {config.d_kv}, d_ff {config.d_ff}, {config.num_layers} encoder and
{config.num_decoder_layers} decoder layers, gated GELU, output head **tied** to the embeddings),
for trying the whole study on a laptop. {told}
- Start: weights in which one head already copies{matches} (see `set_copying_heads`).
- {facts["steps"]:,} steps of {facts["batch_size"]} examples ({facts["examples"]:,} in all),
  {facts["minutes"]} minutes on one machine ({facts["machine"]}), final loss
  {facts["final_loss"]:.3f}; torch {facts["torch"]}, transformers {facts["transformers"]}.
- Weights are stored in bf16. Vocabulary: {config.vocab_size:,} unigram pieces with byte fallback,
  so any text can be encoded; label names of the six tasks are pieces of their own.

Rebuild: `make mini-models`.
"""


def read_label_names():
    """The bracketed entity labels and the class names of all tasks, in a fixed order."""
    names = []
    tasks = json.loads(Path(__file__).parents[1].joinpath("tasks.json").read_text(encoding="utf-8"))
    for task in tasks.values():
        bracket = task["metric"] == "entities"
        names += [f"[{name}]" if bracket else name for name in task.get("labels", [])]
    return list(dict.fromkeys(names))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--region", nargs="+", choices=TEXT, default=list(TEXT), help="(default both)")
    add("--which", nargs="+", choices=SIZES, default=list(SIZES), help="sizes (default all)")
    add("--output", type=Path, default=Path("data/world/models"), help="(default %(default)s)")
    add("--steps", type=int, help="(default 700 to 15000, see STEPS)")
    add("--batch-size", type=int, default=96, help="rows (default %(default)s)")
    add("--learning-rate", type=float, help="(default 0.002 in the lab, 0.001 in the town)")
    add("--lines", type=int, default=150000, help="text (default %(default)s)")
    add("--save-steps", type=int, default=1000, help="(default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    for region in args.region:
        work = args.output / "work" / region
        work.mkdir(parents=True, exist_ok=True)
        lines = TEXT[region].draw_pretraining_text(args.lines)
        digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]
        print(f"{region}: {len(lines):,} lines, sha256 {digest}", file=sys.stderr, flush=True)
        tokenizer = train_vocabulary(region, lines, read_label_names(), work)
        for which in args.which:
            pretrain(region, which, tokenizer, lines, args)


if __name__ == "__main__":
    main()
