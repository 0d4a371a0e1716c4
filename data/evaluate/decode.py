"""A model's outputs for evaluate.py: greedy decoding, classification, characters given back.

Imports torch and transformers; evaluate.py imports this file where it needs them, as scoring
predictions does not.
"""

import logging
import os
import platform
import re
import sys
import time
import warnings
from pathlib import Path

import torch
import transformers

from data.files import UserError

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", module=r"transformers|torch|bert_score")


class Progress:
    """Rows done and time left on stderr: one updating line, or a line every 10 s into a file."""

    def __init__(self, name, total):
        self.name, self.total, self.done, self.tty = name, total, 0, sys.stderr.isatty()
        self.start = self.shown = time.monotonic()

    def add(self, count):
        self.done += count
        now = time.monotonic()
        if not self.done or now - self.shown < (0.2 if self.tty else 10):
            return
        self.shown, left = now, (now - self.start) / self.done * (self.total - self.done)
        text = f"{self.name} {self.done:,}/{self.total:,} rows, {left:.0f} s left"
        print(f"\r{text}   " if self.tty else text, end="" if self.tty else "\n", file=sys.stderr)
        sys.stderr.flush()

    def close(self):
        if self.tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def load_model(name, bf16):
    """(model, tokenizer, is it a classifier) of a folder or hub name, in bf16 or fp32.

    fp16 is not offered: T5's activations overflow in it.
    """
    if not Path(name).is_dir() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise UserError(f"{name}: no such model folder")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    bf16 = device == "cuda" if bf16 is None else bf16
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        names = config.architectures or []
        classifier = any(kind.endswith("ForSequenceClassification") for kind in names)
        if classifier:
            kind = transformers.AutoModelForSequenceClassification
        elif config.is_encoder_decoder:
            kind = transformers.AutoModelForSeq2SeqLM
        else:
            raise UserError(f"{name}: neither a seq2seq model nor a sequence classifier")
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model = kind.from_pretrained(name, dtype=torch.bfloat16 if bf16 else torch.float32)
    except UserError:
        raise
    except Exception as error:  # whatever a broken folder or an unreachable hub raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{name}: no model can be loaded ({reason})") from None
    return model.to(device).eval(), tokenizer, classifier


def encode_sources(texts, tokenizer, limit):
    """Token ids of each text, at most `limit` with its end tokens, and how many were cut."""
    ids = tokenizer(texts).input_ids
    long = [number for number, row in enumerate(ids) if len(row) > limit]
    for number in long:
        ids[number] = tokenizer(texts[number], truncation=True, max_length=limit).input_ids
    return ids, len(long)


def run_batches(model, tokenizer, ids, batch_size, compute):
    """Yield (row number, compute(inputs, row numbers)[k]), in batches of similar length.

    `ids` maps row numbers to token ids; the longest rows come first, so that memory runs out
    early if it does.
    """
    order = sorted(ids, key=lambda number: (-len(ids[number]), number))
    with torch.inference_mode():
        for start in range(0, len(order), batch_size):
            numbers = order[start : start + batch_size]
            inputs = tokenizer.pad({"input_ids": [ids[i] for i in numbers]}, return_tensors="pt")
            inputs = {key: value.to(model.device) for key, value in inputs.items()}
            yield from zip(numbers, compute(inputs, numbers), strict=True)


def generate_ids(model, tokenizer, ids, batch_size, max_target_length):
    """Greedy token ids of each row without start and end, and how many rows never ended.

    Rows are decoded by 16 tokens, then those that have not ended by 16 more, by 32, and so on:
    a few that never end would otherwise hold up all the others of their batches.
    """
    keys = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    kept = {key: getattr(model.generation_config, key) for key in (*keys, "forced_bos_token_id")}
    # A new one, so that nothing else that a checkpoint may bring (beams, penalties) applies.
    model.generation_config = transformers.GenerationConfig(num_beams=1, do_sample=False, **kept)
    ends = (
        kept["eos_token_id"] if isinstance(kept["eos_token_id"], list) else [kept["eos_token_id"]]
    )
    found, done = {number: [] for number in range(len(ids))}, 0
    pending, progress = dict(enumerate(ids)), Progress("generate", len(ids))

    def compute(inputs, numbers):
        if done:
            rows = [found[number] for number in numbers]
            inputs["decoder_input_ids"] = torch.tensor(rows, device=model.device)
        return model.generate(**inputs, max_new_tokens=step).tolist()

    while pending and done < max_target_length:
        step = min(max(16, done), max_target_length - done)
        for number, row in run_batches(model, tokenizer, pending, batch_size, compute):
            ended = any(token in ends for token in row[1:])  # the start may be an end token too
            found[number] = row
            progress.add(ended)
        done += step
        pending = {i: pending[i] for i in pending if not set(found[i][1:]) & set(ends)}
    progress.close()
    rows = [found[number][1:] for number in range(len(ids))]
    cut = [next((i for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:end] for row, end in zip(rows, cut, strict=True)], len(pending)


def decode_ids(rows, tokenizer):
    """Texts of token ids: without special tokens, and with the unknown token shown."""
    hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    marked = [[i for i in ids if i not in hidden] for ids in rows]
    return tokenizer.batch_decode(rows, skip_special_tokens=True), tokenizer.batch_decode(marked)


def decode_target(text, tokenizer, limit):
    """A target as its token ids give it back, cut to `limit` tokens as in training."""
    ids = tokenizer(text_target=text, truncation=True, max_length=limit).input_ids
    return tokenizer.decode(ids, skip_special_tokens=True)


def name_classes(model, labels, name):
    """The label of each class of a classifier; a UserError if its id2label names others."""
    names, known = model.config.id2label, {label.upper() for label in labels}
    unknown = [text for text in names.values() if text.upper() not in known]
    if unknown:
        raise UserError(f"{name}: its id2label has {unknown[0]!r}, which is no label of this task")
    return names


def classify(model, tokenizer, ids, batch_size, names):
    """The most probable label of each row by an encoder classifier."""
    found, progress = [None] * len(ids), Progress("classify", len(ids))

    def compute(inputs, numbers):
        return model(**inputs).logits.argmax(-1).tolist()

    for number, value in run_batches(model, tokenizer, dict(enumerate(ids)), batch_size, compute):
        found[number] = names[value]
        progress.add(1)
    progress.close()
    return found


class Restorer:
    """Gives entities the characters of their source that the tokenizer cannot write.

    Each entity is looked up in its source after the entity before it, whitespace and unwritable
    characters aside; an unknown token at its edge takes in the unwritable characters there. Text
    that stands in the source as generated, or that is not found in it, stays as generated.
    """

    def __init__(self, tokenizer):
        self.tokenizer, self.unknown = tokenizer, tokenizer.unk_token or "\0"
        self.shown = {}

    def write(self, text):
        """What of `text` comes back from token ids."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def show_word(self, word):
        """What comes back of each character of a word."""
        if word not in self.shown:
            same = self.write(word) == word
            self.shown[word] = list(word) if same else [self.write(mark) for mark in word]
        return self.shown[word]

    def find(self, text, source, start):
        """(begin, end) of the entity `text` in `source`, at best after `start`; None if absent."""
        letters, owners, mask = "", [], ["s"] * len(source)  # space, word, unwritable
        for word in re.finditer(r"\S+", source):
            for i, shown in enumerate(self.show_word(word.group()), word.start()):
                shown = "".join(shown.split())
                letters += shown
                owners += [i] * len(shown)
                mask[i] = "w" if shown else "u"
        core, mask = "".join(text.replace(self.unknown, "").split()), "".join(mask)
        if not core:
            found = [(m.start() < start, m.start(), m.end()) for m in re.finditer("u+", mask)]
            return min(found)[1:] if found else None
        found = []
        for match in re.finditer(f"(?={re.escape(core)})", letters):
            begin, end = owners[match.start()], owners[match.start() + len(core) - 1] + 1
            fits = not source[max(begin - 1, 0) : begin + 1].isalnum() or begin == 0
            if text.startswith(self.unknown):
                before = re.search("u+s*$", mask[:begin])
                fits, begin = bool(before), before.start() if before else begin
            if text.endswith(self.unknown):
                after = re.match("s*u+", mask[end:])
                fits, end = fits and bool(after), end + after.end() if after else end
            elif source[end - 1 : end + 1].isalnum() and end < len(source):
                fits = False
            found.append((not fits, begin < start, begin, end))
        return min(found)[2:] if found else None

    def restore(self, texts, source):
        """Entity texts in order, unknown tokens shown, as `source` writes them."""
        start, restored = 0, []
        for text in texts:
            at = source.find(text, start)
            at = source.find(text) if at < 0 else at
            span = (at, at + len(text)) if at >= 0 else self.find(text, source, start)
            if span:
                text, start = source[slice(*span)], span[1]
            restored.append(" ".join(text.replace(self.unknown, "").split()))
        return restored


def describe_machine():
    """(hardware, versions), as in training.json."""
    gpus = torch.cuda.device_count()
    hardware = {
        "device": "cuda" if gpus else "cpu",
        "gpu": torch.cuda.get_device_name() if gpus else None,
        "gpus": gpus,
        "cpu_threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return hardware, {"python": platform.python_version(), **versions}
