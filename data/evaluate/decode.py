"""A model's outputs for evaluate.py: greedy decoding, scores of classes, characters given back.

Imports torch and transformers; evaluate.py imports this file where it needs them, as scoring
predictions does not.
"""

import functools
import itertools
import logging
import os
import platform
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "true")  # a thread that downloads again
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # threads that spin longer starve on busy cores

import torch
import transformers
from tqdm import tqdm

from data.evaluate.restore import Restorer, mark_unknown, strip_ids
from data.files import UserError, say_first

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
        raise UserError(
            f"torch {torch.__version__} cannot reach this machine's GPU: its driver is too old for "
            f"CUDA {torch.version.cuda}; install a torch for the driver, or set "
            "CUDA_VISIBLE_DEVICES= to use the CPU"
        )
    return "cpu"


def load_model(name, bf16, batch_size):
    """The model of a folder or hub name, in bf16 or fp32; a UserError if any part is missing.

    fp16 is not offered: T5's activations overflow in it.
    """
    device = choose_device()
    place = {"device_map": {"": device}} if device == "cuda" else {}
    try:
        names = transformers.AutoConfig.from_pretrained(name).architectures or []
        classifier = any(each.endswith("ForSequenceClassification") for each in names)
        kind = transformers.AutoModelForSeq2SeqLM
        kind = transformers.AutoModelForSequenceClassification if classifier else kind
        tokenizer = transformers.AutoTokenizer.from_pretrained(name)
        place |= {"dtype": choose_dtype(device, bf16), "output_loading_info": True}
        model, info = kind.from_pretrained(name, **place)
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
    lost = sorted([*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
    if lost:
        raise UserError(f"{name}: {len(lost):,} weights are missing or never trained ({lost[0]})")
    if model.config.model_type == "t5" and (more := sorted(info["unexpected_keys"])):
        raise UserError(f"{name}: {len(more):,} weights are not in its config.json ({more[0]})")
    bad = [key for key, value in model.named_parameters() if not value.isfinite().all()]
    if bad:
        raise UserError(f"{name}: {len(bad):,} weights hold NaN or infinity ({bad[0]})")
    files = {*tokenizer.vocab_files_names.values(), "tokenizer.json", "spiece.model", "vocab.txt"}
    if Path(name).is_dir() and not any((Path(name) / file).exists() for file in files):
        raise UserError(f"{name}: no tokenizer in this folder; copy the files of the one it had")
    size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > size:
        raise UserError(f"{name}: its tokenizer has {len(tokenizer):,} pieces, the model {size:,}")
    if tokenizer.pad_token_id is None:
        raise UserError(f"{name}: its tokenizer has no token to pad with")
    t5, own = model.config.model_type == "t5", getattr(model, "generation_config", None)
    for config in filter(None, (own, model.config if t5 else None)):
        for key in ("decoder_start_token_id", "pad_token_id"):
            value = getattr(config, key, None)
            value = own.bos_token_id if value is None and not t5 else value
            if value not in range(size):
                raise UserError(f"{name}: {key} {value!r} of its configuration is none of its ids")


def describe_machine():
    """(hardware, versions), as in training.json."""
    gpus = torch.cuda.device_count()
    hardware = {
        "device": "cuda" if gpus else "cpu",
        "gpu": torch.cuda.get_device_name() if gpus else None,
        "gpus": min(gpus, 1),  # used, not present
        "cpu_threads": torch.get_num_threads(),
        "cpu": platform.processor() or platform.machine(),
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return hardware, {"python": platform.python_version(), **versions}


# --- token ids -------------------------------------------------------------------------------


def encode(texts, tokenizer, limit, kind="text"):
    """(ids of each text as training cuts them, end token and all; tokens that each has uncut).

    `kind` is "text" of sources and "text_target" of targets.
    """
    ids = tokenizer(**{kind: texts}).input_ids
    cut = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in ids]
    return cut, [len(row) for row in ids]


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


# --- classes ---------------------------------------------------------------------------------


def encode_labels(task, tokenizer, limit):
    """{label: (its ids as in targets, cut to `limit`; tokens uncut)} of classes and entities."""
    forms = {"classes": "{}", "entities": "[{}]"}
    if task.metric not in forms:
        return {}
    texts = [forms[task.metric].format(label) for label in task.labels]
    pairs = zip(*encode(texts, tokenizer, limit, "text_target"), strict=True)
    return dict(zip(task.labels, pairs, strict=True))


def check_labels(task, tokenizer, limit):
    """Sentences on labels that a seq2seq model cannot learn to write within `limit` tokens, or []:
    cut ones, and those whose token ids are another's."""
    told, taken = [], {}
    for label, (ids, size) in encode_labels(task, tokenizer, limit).items():
        ids = strip_ids(ids, tokenizer)
        if size > limit:
            cut = tokenizer.decode(ids)
            told.append(f"label {label!r} has {size} tokens; cut to {limit} it is {cut!r}")
        if not ids or ids in taken:
            same = f"those of {taken[ids]!r}" if ids else "none"
            told.append(f"label {label!r}: its token ids are {same}; rename it")
        taken.setdefault(ids, label)
    return told


class LabelReader:
    """The label that an output stands for: the tokenizer may write '<=50K' as '=50K'.

    Labels are known by their token ids as training cuts them, then by their text with unknown
    tokens shown. Any other output stays as it is.
    """

    def __init__(self, task, tokenizer, limit):
        self.tokenizer, self.by_ids = tokenizer, {}
        encoded = encode_labels(task, tokenizer, limit)
        self.targets = {label: ids for label, (ids, _) in encoded.items()}
        for label, ids in self.targets.items():
            own = strip_ids(ids, tokenizer)
            if not own or own in self.by_ids:
                raise UserError(
                    f"label {label!r} has no token ids of its own within {limit} tokens, so no "
                    "output can be told to be it; rename it or allow more tokens"
                )
            self.by_ids[own] = label
        texts = [mark_unknown(ids, tokenizer).strip().upper() for ids in self.targets.values()]
        pairs = zip(texts, self.targets, strict=True)
        self.by_text = {text: label for text, label in pairs if texts.count(text) == 1}

    def read(self, ids, text, marked):
        """The label of an output: its ids, its text, its text with unknown tokens shown."""
        label = self.by_ids.get(strip_ids(ids, self.tokenizer))
        label = label or self.by_text.get(marked.strip().upper())
        return text if label is None or label.upper() == text.strip().upper() else label


def name_classes(model, labels, name):
    """The label of each class of a classifier; a UserError if its id2label names others."""
    names, known = model.config.id2label, {label.upper() for label in labels}
    unknown = [text for text in names.values() if text.upper() not in known]
    if unknown:
        raise UserError(f"{name}: its id2label has {unknown[0]!r}, which is no label of this task")
    return names


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
    """Reads a model's outputs as a task means them."""

    def __init__(self, loaded, task, settings, name):
        self.loaded, self.task, self.metric = loaded, task, task.metric
        self.settings, self.limit = settings, settings["max_target_length"]
        self.names = self.labels = self.restorer = None
        if loaded.classifier:
            if self.metric != "classes":
                raise UserError(f"{name}: a classifier cannot do the {self.metric} of a task")
            self.names = name_classes(loaded.model, task.labels, name)
        elif self.metric == "classes":
            self.labels = LabelReader(task, loaded.tokenizer, self.limit)
        elif self.metric == "entities":
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
        if self.restorer:
            restored = self.restorer.restore_output(marked, source)
            return text if restored.split() == text.split() else restored
        return text


def decode_targets(rows, metric, tokenizer, limit):
    """Add target_decoded to rows (or source_decoded, which the released code takes for a
    paraphrase's target) as token ids within `limit` give it back.

    Returns (ids of the cut ones without special tokens, rows that have one, rows whose target does
    not come back whole).
    """
    key = "source" if metric == "paraphrase" else "target"
    cut_ids, truncated, lost = set(), 0, 0
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
