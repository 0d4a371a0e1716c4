"""A model's outputs for evaluate.py: greedy decoding, scores of classes, characters given back.

Imports torch and transformers; evaluate.py imports this file where it needs them, as scoring
predictions does not.
"""

import functools
import itertools
import logging
import os
import platform
import shlex
import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")  # a thread that downloads again
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that spin longer starve on busy cores

import torch
import transformers
from tqdm import tqdm

from data.evaluate.restore import LabelReader, Restorer, encode, mark_unknown, strip_ids
from data.files import UserError, find_commit, hash_file, say_first

logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its retries
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
warnings.filterwarnings("ignore", module=r"transformers|torch|bert_score")
torch.backends.cuda.enable_cudnn_sdp(False)  # it plans anew for each shape, and decoding has many


def show_progress(name, total):
    """Rows done and time left on stderr: one updating line; into a file, a line every 10 s."""
    wait = 0.2 if sys.stderr.isatty() else 10
    return tqdm(desc=name, total=total, unit="row", leave=False, mininterval=wait, delay=wait)


# --- loading ---------------------------------------------------------------------------------


@dataclass
class Loaded:
    """A model, its tokenizer, and how many rows go through it at once."""

    model: transformers.PreTrainedModel
    tokenizer: transformers.PreTrainedTokenizerBase
    classifier: bool  # an encoder with a logit a class, else a seq2seq model
    batch_size: int

    def run(self, compute, sources, **more):
        """Yield (row number, compute(**inputs)[k]) in batches of similar length.

        sources: {row number: token ids}; more: {name of an input: {row number: ids}}. The longest
        rows come first, so that memory runs out early if it does: then half the batch is taken.
        """
        order = sorted(sources, key=lambda number: (-len(sources[number]), number))
        while order:
            numbers = order[: self.batch_size]
            try:
                with torch.inference_mode():
                    found = compute(**self.make_inputs(sources, more, numbers))
            except RuntimeError as error:
                self.batch_size = halve_batch(len(numbers), error)
                continue
            order = order[len(numbers) :]
            yield from zip(numbers, found, strict=True)

    def make_inputs(self, sources, more, numbers):
        """The inputs of some rows as tensors (B, T); -100 pads all but the sources."""
        ids = {"input_ids": [sources[number] for number in numbers]}
        inputs = dict(self.tokenizer.pad(ids, return_tensors="pt"))
        for name, rows in more.items():
            rows = [torch.tensor(rows[number]) for number in numbers]
            inputs[name] = torch.nn.utils.rnn.pad_sequence(rows, True, -100)
        return {name: value.to(self.model.device) for name, value in inputs.items()}


def halve_batch(size, error):
    """Half of `size` if the error is that memory ran out; else the error goes on."""
    full = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    if not full:
        raise error
    if size == 1:
        raise UserError("not even one row fits into memory; lower the lengths, or take bf16")
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print(f"note: memory ran out at {size:,} rows at once; {size // 2:,} now", file=sys.stderr)
    return size // 2


def choose_device():
    """cuda where it works, else cpu; a GPU that torch cannot reach is an error, not a slow run."""
    if torch.cuda.is_available():
        return "cuda"
    driver = Path("/proc/driver/nvidia/version").exists()
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    if torch.version.cuda and driver and not hidden:
        cuda, how = torch.version.cuda, "for its driver, or set CUDA_VISIBLE_DEVICES= for the CPU"
        raise UserError(f"torch for CUDA {cuda} cannot reach this GPU; install one {how}")
    return "cpu"


def load_model(name, bf16, batch_size):
    """The model of a folder or hub name, in bf16 or fp32; a UserError if any part is missing.

    fp16 is not offered: T5's activations overflow in it.
    """
    device = choose_device()
    how = {"dtype": choose_dtype(device, bf16), "output_loading_info": True}
    how["device_map"] = {"": device} if device == "cuda" else None
    try:
        names = transformers.AutoConfig.from_pretrained(name).architectures or []
        classifier = any(each.endswith("ForSequenceClassification") for each in names)
        kind = "SequenceClassification" if classifier else "Seq2SeqLM"
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        model, info = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(name, **how)
    except Exception as error:  # whatever a broken folder or an unreachable hub raises
        raise UserError(f"{name}: no model can be loaded ({say_first(error)})") from None
    check_model(name, model, tokenizer, info)
    return Loaded(model.eval(), tokenizer, classifier, batch_size)


def choose_dtype(device, bf16):
    """bf16 if asked for, or where a GPU has it: a T4 only emulates it, slowly; else fp32."""
    if bf16 is None:
        bf16 = device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if bf16 else torch.float32


def check_model(name, model, tokenizer, info):
    """Refuse weights that are missing, of another shape or no numbers, and a missing tokenizer."""
    t5, size = model.config.model_type == "t5", model.get_input_embeddings().num_embeddings
    lost = [*info["missing_keys"], *map(str, info["mismatched_keys"])]
    bad = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    for keys, what in (
        (lost, "are missing or never trained"),
        (info["unexpected_keys"] if t5 else (), "are not in its config.json"),
        (bad, "hold NaN or infinity"),
    ):
        if keys:
            raise UserError(f"{name}: {len(keys):,} weights {what} ({min(keys)})")
    files = {*tokenizer.vocab_files_names.values(), "tokenizer.json", "spiece.model", "vocab.txt"}
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in files):
        raise UserError(f"{name}: no tokenizer in this folder; copy the files of the one it had")
    if len(tokenizer) > size:
        raise UserError(f"{name}: its tokenizer has {len(tokenizer):,} pieces, the model {size:,}")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{name}: its tokenizer has no token to pad with")
    own = getattr(model, "generation_config", None)
    for config in filter(None, (own, model.config if t5 else None)):
        for key in ("decoder_start_token_id", "pad_token_id"):
            value = getattr(config, key, None)
            value = own.bos_token_id if value is None and not t5 else value
            if value not in range(size):
                raise UserError(f"{name}: {key} {value!r} of its configuration is none of its ids")


def describe_run(options):
    """Hardware, as in training.json, and provenance: a number can be trusted or made again."""
    gpus = torch.cuda.device_count()
    hardware = {
        "device": "cuda" if gpus else "cpu",
        "gpu": torch.cuda.get_device_name() if gpus else None,
        "gpus": min(gpus, 1),  # used, not present
        "cpu_threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
    }
    versions = {name: version(name) for name in ("torch", "transformers", "numpy")}
    provenance = {
        "command": shlex.join(sys.argv),
        "versions": {"python": platform.python_version(), **versions},
        "git_commit": find_commit(),
        "model": options.model,
        "data": str(options.data),
        "data_sha256": hash_file(options.data),
    }
    return {"hardware": hardware, "provenance": provenance}


# --- decoding --------------------------------------------------------------------------------


def generate_ids(loaded, ids, max_target_length, progress):
    """Greedy token ids of each row without start and end, and the numbers of rows without end.

    Rows are decoded by 16 tokens, then those that have not ended by 16 more, by 32, and so on:
    a few that never end would otherwise hold up all the others of their batches.
    """
    model = loaded.model
    keys = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
    kept = {key: getattr(model.generation_config, key) for key in (*keys, "forced_bos_token_id")}
    # A new one, so that nothing else that a checkpoint may bring (beams, penalties) applies.
    model.generation_config = transformers.GenerationConfig(num_beams=1, do_sample=False, **kept)
    end = kept["eos_token_id"]
    ends = set(end if isinstance(end, list) else [end])
    found, pending, done = {}, dict(enumerate(ids)), 0
    while pending and done < max_target_length:
        step = min(max(16, done), max_target_length - done)
        decode = functools.partial(model.generate, max_new_tokens=step)
        begun = {"decoder_input_ids": dict(found)} if done else {}
        for number, row in loaded.run(decode, pending, **begun):
            found[number] = row.tolist()
            progress.update(not ends.isdisjoint(found[number][1:]))  # the start may be an end too
        done += step
        pending = {i: row for i, row in pending.items() if ends.isdisjoint(found[i][1:])}
    progress.update(len(pending))
    rows = (found[number][1:] for number in range(len(ids)))
    return [list(itertools.takewhile(lambda i: i not in ends, row)) for row in rows], set(pending)


def collect(loaded, compute, ids, progress=None, **more):
    """`compute`'s tensor of each row, stacked in the order of the rows."""
    found = [None] * len(ids)
    for number, value in loaded.run(compute, dict(enumerate(ids)), **more):
        found[number] = value
        if progress is not None:
            progress.update()
    return torch.stack(found)


def score_targets(model, labels, **inputs):
    """(B,) natural logarithms of the probabilities of targets (B, T), -100 where padded."""
    logits = model(**inputs, labels=labels).logits.float()
    chosen = logits.gather(-1, labels.clamp(min=0)[..., None])[..., 0]
    return ((chosen - logits.logsumexp(-1)) * (labels >= 0)).sum(-1).cpu()


def score_labels(model, targets, **inputs):
    """(B, C) natural logarithms of the probabilities of C targets, each a list of token ids."""
    encoded = model.get_encoder()(**inputs)
    more = {"encoder_outputs": encoded, "attention_mask": inputs["attention_mask"]}
    rows = len(inputs["input_ids"])
    texts = (torch.tensor([ids] * rows, device=model.device) for ids in targets)
    return torch.stack([score_targets(model, labels, **more) for labels in texts], 1)


# --- outputs of rows -------------------------------------------------------------------------


@dataclass
class Outputs:
    """What a model says to some rows."""

    texts: list  # raw: unknown characters vanish
    predictions: list  # what a user gets: labels by their names, entities as the source has them
    inputs: list  # token ids of prefix and source
    cut: int  # sources that are cut
    ids: list = ()  # of seq2seq models, without start and end
    unended: set = ()  # numbers of rows that reached the limit
    logits: torch.Tensor = None  # of classifiers, (n, classes)


class Reader:
    """Reads a model's outputs as a task means them; `settings` are its prefix and lengths."""

    def __init__(self, loaded, task, settings):
        self.loaded, self.task, self.settings = loaded, task, settings
        self.limit, self.names = settings["max_target_length"], None
        self.labels = self.restorer = None
        if loaded.classifier:
            self.names, known = loaded.model.config.id2label, {x.upper() for x in task.labels}
            name = loaded.model.name_or_path
            if task.metric != "classes":
                raise UserError(f"{name}: a classifier cannot do the {task.metric} of a task")
            if lost := [text for text in self.names.values() if text.upper() not in known]:
                what = f"its id2label has {lost[0]!r}, which is no label of this task"
                raise UserError(f"{name}: {what}")
        elif task.metric == "classes":
            self.labels = LabelReader(task, loaded.tokenizer, self.limit)
        elif task.metric == "entities":
            self.restorer = Restorer(loaded.tokenizer, task.labels)

    def decode(self, sources, progress=None):
        """The Outputs of rows by their sources, counted in `progress`."""
        progress = tqdm(disable=True) if progress is None else progress
        loaded, limit = self.loaded, self.settings["max_source_length"]
        texts = [self.settings["prefix"] + source for source in sources]
        inputs, sizes = encode(texts, loaded.tokenizer, limit)
        cut = sum(size > limit for size in sizes)
        if self.names:
            model = loaded.model
            logits = collect(loaded, lambda **x: model(**x).logits.float().cpu(), inputs, progress)
            texts = [self.names[number] for number in logits.argmax(-1).tolist()]
            return Outputs(texts, texts, inputs, cut, logits=logits)
        ids, unended = generate_ids(loaded, inputs, self.limit, progress)
        texts = loaded.tokenizer.batch_decode(ids, skip_special_tokens=True)
        rows = zip(sources, ids, texts, strict=True)
        return Outputs(texts, [self.read(*row) for row in rows], inputs, cut, ids, unended)

    def read(self, source, ids, text):
        """An output as a user gets it."""
        marked = mark_unknown(ids, self.loaded.tokenizer)
        if self.labels:
            return self.labels.read(ids, text, marked)
        restored = self.restorer.restore_output(marked, source) if self.restorer else text
        return text if restored.split() == text.split() else restored


def decode_targets(rows, reader):
    """Add target_decoded to rows (or source_decoded, which the released code takes for a
    paraphrase's target) as token ids within the limit give it back.

    Returns (ids of the cut ones without special tokens, rows that have one, rows whose target does
    not come back whole).
    """
    key = "source" if reader.task.metric == "paraphrase" else "target"
    tokenizer, limit, cut_ids, truncated, lost = reader.loaded.tokenizer, reader.limit, set(), 0, 0
    for row in rows:
        texts = row[key] if isinstance(row[key], list) else [row[key]]
        ids, sizes = encode(texts, tokenizer, limit, "text_target")
        written = tokenizer.batch_decode(ids, skip_special_tokens=True)
        row[f"{key}_decoded"] = written if isinstance(row[key], list) else written[0]
        cut = {strip_ids(i, tokenizer) for i, n in zip(ids, sizes, strict=True) if n > limit}
        cut_ids |= cut
        truncated += bool(cut)
        lost += any(a.split() != b.split() for a, b in zip(written, texts, strict=True))
    return cut_ids - {()}, truncated, lost


def predict(rows, reader):
    """(rows of predictions.jsonl, counts, numbers of cut outputs) of a model's greedy outputs."""
    with show_progress("decode", len(rows)) as progress:
        out = reader.decode([row["source"] for row in rows], progress)
    pairs = zip(rows, out.predictions, out.texts, strict=True)
    made = [{**row, "prediction": text, "generated": raw} for row, text, raw in pairs]
    counts = {"truncated_sources": out.cut, "parameters": reader.loaded.model.num_parameters()}
    if reader.names:
        return made, counts, ()
    short, truncated, lost = decode_targets(made, reader)
    stripped = (strip_ids(row, reader.loaded.tokenizer) for row in out.ids)
    cut = {number for number, row in enumerate(stripped) if number in out.unended or row in short}
    restored = [row["prediction"].split() != row["generated"].split() for row in made]
    counts |= {"truncated_targets": truncated, "unwritable_targets": lost}
    return made, counts | {"truncated_outputs": len(cut), "restored_outputs": sum(restored)}, cut
