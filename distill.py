"""Distill a teacher into a compact T5 on unlabeled rows, running the teacher once: Strategy 2.

Usage:
    python distill.py --teacher runs/paper/wlp/teacher-n5000-s0/model --num-unlabeled 100000 \\
        --unlabeled data/prepared/paper/wlp/unlabeled.jsonl --prefix "wlp: " \\
        --output runs/paper/wlp/dist-n5000-u100000-s0
    python distill.py --teacher data/world/models/teacher --student data/world/models/student \\
        --unlabeled data/prepared/mini/wlp/unlabeled.jsonl --num-unlabeled 500 --prefix "wlp: " \\
        --max-steps 200 --learning-rate 3e-3 --output /tmp/dist
    The halves can be two commands, on two machines: --labels-only stops after the teacher pass,
    --teacher LABELS begins with its result. Several GPUs: accelerate launch distill.py ...

Reads:  UNLABELED, a JSONL file of {"source"}; Hugging Face T5 folders or hub names.
Writes: LABELS (default OUTPUT/labels): the teacher's greedy targets and soft labels, in shards (a
        killed pass continues, more rows extend it); then OUTPUT/config.json, log.jsonl,
        checkpoints/ (a killed run continues from there), model/, and training.json last.
Copy:   distill.py alone
Paper:  section 2.3, equation 1; self-distillation of section 3.2; hyperparameters of Table 8.
"""

import argparse
import contextlib
import gc
import hashlib
import json
import logging
import math
import mmap
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from array import array
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import PartialState
from transformers import (
    AutoConfig,
    AutoTokenizer,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5ForConditionalGeneration,
)


# same in: train_teacher.py, distill.py
def fail(message):
    """Stop with one `error:` line on stderr and exit code 1."""
    sys.exit(f"error: {message}")


# end same


# same in: train_teacher.py, distill.py
def write_json(path, value):
    """Write `value` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def hash_file(path, digest=None):
    """SHA-256 of a file, or the digest so far continued with it; a large file stays on disk."""
    digest = digest or hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def describe_run(data):
    """What a reader needs to trust or repeat a run: command, versions, commit, data, machine."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "rev-parse", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    gpus = torch.cuda.device_count()
    return {
        "hardware": {
            "device": "cuda" if gpus else "cpu",
            "gpu": torch.cuda.get_device_name() if gpus else None,
            "gpus": gpus,
            "cpu_threads": torch.get_num_threads(),
            "cpu": platform.processor() or platform.machine(),
        },
        "command": shlex.join(sys.argv),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "git_commit": commit or None,
        "data_sha256": hash_file(data),
    }


# end same


# same in: train_teacher.py, distill.py
def open_run(output, settings):
    """Write OUTPUT/config.json, or refuse a folder begun with other settings; False if finished."""
    config = output / "config.json"
    settings = json.loads(json.dumps(settings, default=str))
    if config.exists():
        try:
            before = json.loads(config.read_text(encoding="utf-8"))
        except ValueError:
            fail(f"{config}: not JSON; remove {output} to start over")
        other = [key for key in settings if before.get(key) != settings[key]]
        if other:
            changes = ", ".join(f"{key} {before.get(key)!r} -> {settings[key]!r}" for key in other)
            fail(f"{output} was begun with other settings ({changes}); remove it or choose another")
        if (output / "training.json").exists():
            print(f"[{output.name}] already trained", file=sys.stderr)
            return False
    output.mkdir(parents=True, exist_ok=True)
    write_json(config, settings)
    return True


# end same


# same in: train_teacher.py, distill.py
def raise_steps(args, rows):
    """--max-steps for Trainer: as asked, or --min-steps where --epochs of `rows` would be fewer."""
    batch = args.batch_size * args.gradient_accumulation * int(os.environ.get("WORLD_SIZE", 1))
    fewer = math.ceil(rows / batch) * args.epochs < args.min_steps
    return args.min_steps if args.max_steps <= 0 and fewer else args.max_steps


# end same


# same in: train_teacher.py, distill.py
def load_tokenizer(model):
    """The tokenizer of a model folder or hub name."""
    looks_local = model.count("/") > 1 or ("/" in model and Path(model).parent.is_dir())
    if looks_local and not Path(model).is_dir():
        fail(f"{model}: no such model folder")
    try:
        return AutoTokenizer.from_pretrained(model)
    except Exception as error:
        fail(f"{model}: no tokenizer can be loaded ({str(error).splitlines()[0]})")


def load_model(model, **kwargs):
    """A T5 model from a folder or the hub, in fp32 unless told otherwise.

    fp16 is not offered: T5's activations overflow in it.
    """
    try:
        config = AutoConfig.from_pretrained(model)
        for key in [key for key in kwargs if key != "dtype" and hasattr(config, key)]:
            setattr(config, key, kwargs.pop(key))
        kwargs.setdefault("dtype", torch.float32)
        return T5ForConditionalGeneration.from_pretrained(model, config=config, **kwargs)
    except Exception as error:
        fail(f"{model}: no T5 model can be loaded ({str(error).splitlines()[0]})")


# end same


class Sources:
    """The unlabeled rows to use, in the order of a seeded permutation; the texts stay in the file.

    Fewer rows are the beginning of more. Memory: 16 bytes for each row of the file.
    """

    def __init__(self, path, count, seed):
        offsets, keys, offset = array("q"), array("Q"), 0
        try:
            with open(path, "rb") as lines:
                for number, line in enumerate(lines, 1):
                    where = f"{path} line {number}"
                    if line.strip():
                        keys.append(hash_text(json.loads(line)["source"]))
                        offsets.append(offset)
                    offset += len(line)
        except OSError as error:
            fail(f"{path}: cannot be read ({error.strerror})")
        except (KeyError, TypeError, AttributeError):
            fail(f'{where}: a row needs the text "source"')
        except ValueError:
            fail(f"{where}: not a JSON object")
        if not keys:
            fail(f"{path}: no rows")
        if count and count > len(keys):
            fail(f"{path}: {count:,} rows asked for, {len(keys):,} are there")
        order = np.random.RandomState(seed).permutation(len(keys))[:count]
        self.path, self.keys = path, np.frombuffer(keys, np.uint64)[order]
        self.offsets = np.frombuffer(offsets, np.int64)[order]

    def read(self, indices):
        """The texts of some rows."""
        texts = []
        with open(self.path, "rb") as file:
            for offset in self.offsets[indices]:
                file.seek(offset)
                texts.append(json.loads(file.readline())["source"])
        return texts


def hash_text(text):
    """64 bits that name a row by its content; any two of a million rows collide once in 4e7."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


SUMMARY = "truncated_sources", "truncated_targets", "tokens", "seconds"


class Labels(torch.utils.data.Dataset):
    """A folder of the teacher's labels, as a data set that holds only an index in memory.

    labels.json says what they were made from (`key`). A shard is shard-X.bin: for each row the ids
    of its source and the tokens of its target, then a table of the rows; and shard-X.json with
    the checksum, written last. Rows are found by the hash of their text, so their order is free.

    A token is its id and the k largest logits, with their ids, relative to the largest (`top`),
    so that fp16 is exact where the mass is; and for each temperature T `rest`, the logsumexp of
    all other logits / T, relative as well. The full logsumexp follows from these by adding, and
    the mass outside the top k needs no 1 - sum. 4k + 14 bytes with k < 65,536 ids and two
    temperatures. With k = 0 a token is its id and all logits in fp32.
    """

    def __init__(self, folder, manifest):
        self.folder, self.manifest, self.key = folder, manifest, manifest["key"]
        size, top_k, count = (self.key[n] for n in ("vocabulary_size", "top_k", "temperatures"))
        self.id = np.dtype("<u2" if size <= 2**16 else "<u4")
        kept = [("ids", self.id, (top_k,)), ("logits", "<f2", (top_k,)), ("top", "<f4")]
        kept = [*kept, ("rest", "<f4", (len(count),))] if top_k else [("logits", "<f4", (size,))]
        self.token = np.dtype([("id", self.id), *kept])
        facts = [("cut", "u1"), ("residual", "<f4", (len(count),))]  # residual: sum over tokens
        self.row = np.dtype([("key", "<u8"), ("source", "<u2"), ("target", "<u2"), *facts])

    def load(self, keys):
        """Index the rows with these keys, 16 bytes each, checking every byte of the shards.

        Sets `summary`, what is known about the rows. Returns the names of damaged shards, and the
        places in `keys` of rows without labels, each row once.
        """
        wanted, place = np.unique(keys, return_inverse=True)
        place, times = place.astype(np.int32), np.bincount(place).astype(np.int32)
        count, temperatures, damaged = len(wanted), self.key["temperatures"], []
        self.shards, self.shard = [], np.full(count, -1, np.int32)
        self.start, self.source = np.zeros(count, np.int64), np.zeros(count, np.uint16)
        self.target, self.summary = np.zeros(count, np.uint16), dict.fromkeys(SUMMARY, 0)
        self.residual = np.zeros(len(temperatures))
        for path in sorted(self.folder.glob("shard-*.json")):
            try:
                shard = {**json.loads(path.read_text()), "path": path.with_suffix(".bin")}
                table = self.read_table(shard)
            except (OSError, ValueError, KeyError, TypeError):
                damaged.append(path.stem)
            else:
                self.add_shard(shard, table, wanted, times)
        mean = (self.residual / max(1, self.summary["tokens"])).tolist()
        self.summary["residual"] = dict(zip(temperatures, mean, strict=True))
        lost = np.flatnonzero((self.shard < 0)[place])
        for name in ("shard", "start", "source", "target"):
            setattr(self, name, None if len(lost) else getattr(self, name)[place])
        return damaged, lost[np.sort(np.unique(place[lost], return_index=True)[1])]

    def read_table(self, shard):
        """A shard's table of rows; ValueError where its bytes are not those written."""
        if hash_file(shard["path"]) != shard["sha256"]:
            raise ValueError(shard["path"])
        with open(shard["path"], "rb") as file:
            file.seek(-shard["rows"] * self.row.itemsize, os.SEEK_END)
            return np.frombuffer(file.read(), self.row)

    def add_shard(self, shard, table, wanted, times):
        """Index the rows of one shard that are `wanted`; each is wanted so many `times`."""
        sizes = self.measure(table["source"], table["target"])
        place = np.minimum(np.searchsorted(wanted, table["key"]), len(wanted) - 1)
        new = (wanted[place] == table["key"]) & (self.shard[place] < 0)
        place, rows = place[new], table[new]
        self.shard[place], self.start[place] = len(self.shards), (np.cumsum(sizes) - sizes)[new]
        self.source[place], self.target[place] = rows["source"], rows["target"]
        self.shards.append(shard["path"])
        share = len(rows) / shard["rows"] / shard["processes"]
        facts = rows["cut"] & 1, rows["cut"] >> 1, rows["target"]
        for name, value in zip(SUMMARY[:3], facts, strict=True):
            self.summary[name] += int(times[place] @ value)
        self.summary["seconds"] += shard["seconds"] * share
        self.residual += times[place] @ rows["residual"].astype(float)

    def measure(self, source, target):
        """Bytes of a row's record from its lengths in tokens."""
        source, target = source.astype(np.int64), target.astype(np.int64)
        return source * self.id.itemsize + target * self.token.itemsize

    def __len__(self):
        return len(self.start)

    def __getitem__(self, index):
        """A row's source ids and target tokens, read through a memory map of this row alone.

        A map of the whole shard would count as memory wherever it was once touched.
        """
        source, target = self.source[index], self.target[index]
        start, size = int(self.start[index]), int(self.measure(source, target))
        page = start % mmap.ALLOCATIONGRANULARITY
        window = {"length": page + size, "offset": start - page, "access": mmap.ACCESS_READ}
        with (
            open(self.shards[self.shard[index]], "rb") as file,
            mmap.mmap(file.fileno(), **window) as data,
        ):
            record = data[page:]
        ids = np.frombuffer(record, self.id, source)
        return ids, np.frombuffer(record, self.token, offset=ids.nbytes)


def hash_vocabulary(tokenizer):
    """One hash for the same pieces with the same ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def load_config(model):
    """The configuration of a model folder or hub name."""
    try:
        return AutoConfig.from_pretrained(model)
    except Exception as error:
        fail(f"{model}: no T5 model can be loaded ({str(error).splitlines()[0]})")


def describe_teacher(model):
    """What names a teacher: its weights and tokenizer (of a hub model, the commit)."""
    vocabulary, config = hash_vocabulary(load_tokenizer(model)), load_config(model)
    name, digest = getattr(config, "_commit_hash", None), hashlib.sha256()
    if Path(model).is_dir():
        for path in sorted(Path(model).iterdir()):
            weights = path.suffix == ".safetensors" or path.name.startswith("pytorch_model")
            if weights or path.suffix in (".json", ".model"):
                name = hash_file(path, digest)
    if not name:
        fail(f"{model}: which version of the model this is cannot be told; give a local folder")
    size = config.vocab_size
    return {"teacher": name, "vocabulary": vocabulary, "vocabulary_size": size}


def describe_labels(args):
    """What else a label depends on."""
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "prefix": args.prefix,
        "max_source_length": args.max_source_length,
        "max_target_length": args.max_target_length,
        "dtype": args.teacher_dtype or ("bfloat16" if bf16 else "float32"),
        "batch_size": args.teacher_batch_size,
        "shard_rows": args.shard_rows,
        "top_k": 64 if args.top_k is None else args.top_k,
        "temperatures": sorted({*args.temperatures, args.temperature}),
    }


def open_labels(args):
    """The labels folder, begun if new, refused if made from anything else.

    Returns Labels and the teacher that can make more, None where only labels were given.
    """
    given = not args.teacher or (Path(args.teacher) / "labels.json").exists()
    if given and args.teacher and args.labels and args.labels != Path(args.teacher):
        fail(f"--teacher {args.teacher} is a folder of labels itself; leave --labels out")
    folder = Path(args.teacher or args.labels) if given else args.labels or args.output / "labels"
    file = folder / "labels.json"
    try:
        manifest = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    except ValueError:
        fail(f"{file}: not JSON; remove {folder} to make the labels again")
    wanted = describe_labels(args)
    if given:
        manifest = manifest or fail(f"{folder}: no labels.json; make labels with --teacher MODEL")
        names = ["prefix", "max_source_length", "max_target_length"]
        names += [] if args.top_k is None else ["top_k"]
        wanted = {name: wanted[name] for name in names}
    else:
        wanted = {**describe_teacher(args.teacher), **wanted}
        if not 0 <= wanted["top_k"] < wanted["vocabulary_size"]:
            size = f"{wanted['vocabulary_size']:,}"
            fail(f"--top-k {wanted['top_k']}: the vocabulary has {size} ids; 0 keeps all of them")
    if not manifest:
        manifest = {"key": wanted, "model": args.teacher, "training": read_training(args.teacher)}
        manifest.update(describe_run(args.unlabeled))
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, manifest)
    other = [name for name in wanted if manifest["key"].get(name) != wanted[name]]
    if other:
        changes = [f"{name} {manifest['key'].get(name)!r} -> {wanted[name]!r}" for name in other]
        fail(f"{folder} holds other labels ({', '.join(changes)}); choose another --labels folder")
    return Labels(folder, manifest), None if given else args.teacher


def read_training(model):
    """The record of the run that trained a model folder, or None."""
    file = Path(model).parent / "training.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def make_labels(labels, args, sources, indices):
    """The teacher pass over some rows, shared among the processes.

    Greedy decoding can change with the batch, so batches are made of fixed pieces of the order of
    rows: a continued pass, or one by several processes, writes the same labels.
    """
    start, state, key = time.monotonic(), PartialState(), labels.key
    pieces = np.split(indices, np.flatnonzero(np.diff(indices // key["shard_rows"])) + 1)
    model = load_model(args.teacher, dtype=getattr(torch, key["dtype"])).to(state.device).eval()
    tokenizer = load_tokenizer(args.teacher)
    done, begun = 0, start
    for piece in pieces[state.process_index :: state.num_processes]:
        name = f"shard-{hashlib.sha256(sources.keys[piece].tobytes()).hexdigest()[:12]}"
        shard = write_shard(labels, name, model, tokenizer, sources, piece)
        now, done = time.monotonic(), done + len(piece)
        shard.update(seconds=now - begun, processes=state.num_processes)
        write_json(labels.folder / f"{name}.json", shard)
        for file in labels.folder.glob(f".{name}.*new"):
            file.unlink(missing_ok=True)  # of a killed pass
        begun, total = now, len(indices) / state.num_processes
        left = max(0, total - done) * (now - start) / done
        text = f"{done:,}/{total:,.0f} rows, {done / (now - start):.1f} a second, {left:.0f} s left"
        print(f"[labels] {text}", file=sys.stderr, flush=True)


def write_shard(labels, name, model, tokenizer, sources, piece):
    """Label some rows, longest first, and write their .bin. Returns what its .json needs."""
    key, keys = labels.key, sources.keys[piece]
    limit, size = key["max_source_length"], key["batch_size"]
    encoded = tokenizer([key["prefix"] + text for text in sources.read(piece)]).input_ids
    order = sorted(range(len(piece)), key=lambda i: -len(encoded[i]))
    table, temporary = [], labels.folder / f".{name}.{os.getpid()}.new"
    with open(temporary, "wb") as file:
        for i in range(0, len(order), size):
            batch = [encoded[j] for j in order[i : i + size]]
            batch = [ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]] for ids in batch]
            decoded = zip(order[i : i + size], batch, decode(model, batch, labels), strict=True)
            for j, ids, (tokens, cut, residual) in decoded:
                file.write(np.array(ids, labels.id).tobytes() + tokens.tobytes())
                cut = 2 * cut + (len(ids) < len(encoded[j]))
                table.append((keys[j], len(ids), len(tokens), cut, residual))
        file.write(np.array(table, labels.row).tobytes())
        file.flush()
        os.fsync(file.fileno())
    digest = hash_file(temporary)
    os.replace(temporary, labels.folder / f"{name}.bin")
    return {"rows": len(table), "sha256": digest}


@torch.inference_mode()
def decode(model, batch, labels):
    """Greedy targets with the distribution at every step, both from one incremental pass.

    Returns, for each row, its tokens, whether the limit cut it off, and its summed residual mass
    at each temperature. Rows that have ended leave the batch, a quarter or more at a time.
    """
    config, limit = model.config, labels.key["max_target_length"]
    inputs = pad_rows(batch, -1).to(model.device)
    mask, inputs = (inputs >= 0).long(), inputs.clamp(min=0)
    encoded = model.encoder(input_ids=inputs, attention_mask=mask)
    last = torch.full_like(inputs[:, :1], config.decoder_start_token_id)
    tokens = np.zeros((len(batch), limit), labels.token)
    residual = np.zeros((len(batch), len(labels.key["temperatures"])))
    rows, alive = np.arange(len(batch)), np.ones(len(batch), bool)
    lengths, step, cache = np.full(len(batch), limit), 0, None
    while alive.any() and step < limit:
        inputs = {"encoder_outputs": encoded, "attention_mask": mask, "decoder_input_ids": last}
        output = model(**inputs, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        last = logits.argmax(-1, keepdim=True)
        kept, mass = capture(logits, last, labels)
        tokens[rows[alive], step] = kept[alive]
        residual[rows[alive]] += mass[alive]
        step += 1
        ended = alive & (kept["id"] == config.eos_token_id)
        lengths[rows[ended]] = step
        alive &= ~ended
        if 0 < alive.sum() <= 0.75 * len(rows):
            keep = torch.from_numpy(np.flatnonzero(alive)).to(model.device)
            cache.batch_select_indices(keep)
            encoded.last_hidden_state = encoded.last_hidden_state[keep]
            mask, last, rows, alive = mask[keep], last[keep], rows[alive], alive[alive]
    cut = tokens["id"][np.arange(len(batch)), lengths - 1] != config.eos_token_id
    return [(tokens[i, :n], cut[i], residual[i]) for i, n in enumerate(lengths)]


def capture(logits, ids, labels):
    """What Labels keeps of logits (B, V), and the residual mass (B, temperatures), 0 to 1."""
    top_k, temperatures = labels.key["top_k"], labels.key["temperatures"]
    tokens = np.zeros(len(logits), labels.token)
    tokens["id"], first = ids[:, 0].cpu(), logits.amax(1, keepdim=True)
    if not first.isfinite().all():
        fail("the teacher's logits are not finite: are its weights whole, its dtype bf16 or fp32?")
    if not top_k:
        tokens["logits"] = logits.cpu()
        return tokens, np.zeros((len(logits), len(temperatures)))
    top = logits.topk(top_k)
    others = (logits - first).scatter(1, top.indices, float("-inf"))
    near = (top.values - first).clamp(min=-6e4)  # within fp16
    rest = torch.stack([(others / t).logsumexp(1) for t in temperatures], 1)
    mass = torch.sigmoid(rest - torch.stack([(near / t).logsumexp(1) for t in temperatures], 1))
    kept = {"top": first[:, 0], "rest": rest, "ids": top.indices, "logits": near}
    for name, value in kept.items():
        tokens[name] = value.cpu()
    return tokens, mass.cpu().numpy()


def pad_rows(rows, value):
    """Rows of ids as one tensor (rows, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


# same in: train_teacher.py, distill.py
class LengthGroupedSampler(torch.utils.data.Sampler):
    """Batches of similar length in a random order that depends on (seed, epoch) alone.

    Hugging Face's sampler draws from the global random state, so a resumed run would see other
    batches; this one is told its epoch and is the same in every process. Arrays, not lists: a
    million rows take a second and 12 MB.
    """

    def __init__(self, lengths, batch_size, seed):
        self.lengths, self.batch_size = np.asarray(lengths), batch_size
        self.seed, self.epoch = seed, 0

    def __len__(self):
        return len(self.lengths)

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        rng, size = np.random.RandomState([self.seed, self.epoch]), self.batch_size
        order = rng.permutation(len(self)).astype(np.int32)
        for pool in np.split(order, range(50 * size, len(order), 50 * size)):
            pool[:] = pool[np.argsort(self.lengths[pool], kind="stable")]  # a view: sorts `order`
        whole = len(order) // size  # the short batch stays last
        for batch in [*rng.permutation(whole), whole]:
            yield from order[batch * size : (batch + 1) * size].tolist()


# end same


# same in: train_teacher.py, distill.py
class Progress(transformers.TrainerCallback):
    """Steps, loss and time left on stderr; the same in OUTPUT/log.jsonl; stops on a NaN loss."""

    def __init__(self, output, step):
        self.name, self.log, self.begun = output.name, output / "log.jsonl", step
        old = self.log.read_text().splitlines() if self.log.exists() else []
        old = [line for line in old if line.endswith("}") and json.loads(line)["step"] <= step]
        self.log.write_text("".join(f"{line}\n" for line in old))  # later steps are done again
        self.before = json.loads(old[-1])["seconds"] if old else 0.0
        self.start = self.shown = time.monotonic()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" not in (logs or {}) or not state.is_world_process_zero:
            return
        now, loss = time.monotonic(), float(logs["loss"])
        entry = {"step": state.global_step, "loss": loss, "learning_rate": logs["learning_rate"]}
        with open(self.log, "a") as file:
            file.write(json.dumps({**entry, "seconds": self.before + now - self.start}) + "\n")
        if not math.isfinite(loss):
            fail(f"{self.name}: the loss is {loss} at step {state.global_step}; lower the rate")
        live = sys.stderr.isatty() and "MAKELEVEL" not in os.environ  # make -j mixes its runs
        if live or now - self.shown > 10:
            left = (now - self.start) / (state.global_step - self.begun)
            self.shown, left = now, left * (state.max_steps - state.global_step)
            end = "\r" if live else "\n"
            text = (
                f"step {state.global_step:,}/{state.max_steps:,} loss {loss:.3f}, {left:.0f} s left"
            )
            print(f"[{self.name}] {text}   ", end=end, file=sys.stderr, flush=True)


# end same


# same in: train_teacher.py, distill.py
def find_checkpoint(folder):
    """The newest whole checkpoint (its trainer_state.json is written last), or None."""
    found = {}
    for path in folder.glob("checkpoint-*/trainer_state.json"):
        try:
            found[json.loads(path.read_text())["global_step"]] = path.parent
        except ValueError:
            continue  # killed in the middle of writing it
    return found[max(found)] if found else None


def finish_run(trainer, tokenizer, output, record):
    """Save the model, then training.json (last and atomically), then drop the checkpoints."""
    start = time.monotonic()
    if not math.isfinite(record["train_loss"]):  # a short run may end before its first log line
        fail(f"{output.name}: the loss is {record['train_loss']}; lower the rate")
    if not all(weight.isfinite().all() for weight in trainer.model.parameters()):
        fail(f"{output.name}: the last step made weights infinite or NaN; lower the rate")
    temporary = output / ".model.new"
    trainer.save_model(str(temporary))
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(output / "model", ignore_errors=True)
    os.replace(temporary, output / "model")
    record["seconds"]["save"] = time.monotonic() - start
    write_json(output / "training.json", record)
    shutil.rmtree(output / "checkpoints", ignore_errors=True)


# end same


class Collator:
    """Batches: padded ids, and the soft labels of all real target tokens one after another."""

    def __init__(self, model, labels, temperature):
        self.model, self.column = model, None
        if labels.key["top_k"]:
            self.column = labels.key["temperatures"].index(temperature)

    def __call__(self, rows):
        sources, targets = zip(*rows, strict=True)
        inputs, labels = pad_rows(sources, -1), pad_rows([row["id"] for row in targets], -100)
        tokens = np.concatenate(targets)
        batch = {
            "input_ids": inputs.clamp(min=self.model.config.pad_token_id),
            "attention_mask": (inputs >= 0).long(),
            "decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(labels),
            "labels": labels,
            "teacher": torch.from_numpy(tokens["logits"].astype(np.float32)),
        }
        if self.column is not None:
            batch["ids"] = torch.from_numpy(tokens["ids"].astype(np.int64))
            batch["rest"] = torch.from_numpy(tokens["rest"][:, self.column].copy())
        return batch


def dense_loss(student, teacher, temperature):
    """T^2 KL(teacher || student) of each token at temperature T, from logits (N, V): nats >= 0."""
    student = student.float() if student.dtype in (torch.bfloat16, torch.float16) else student
    target = (teacher.to(student.dtype) / temperature).log_softmax(1)
    output = (student / temperature).log_softmax(1)[:, : target.shape[1]]
    return temperature**2 * (target.exp() * (target - output)).sum(1)


class TopLoss(torch.autograd.Function):
    """Equation 1 over k ids and one bucket for all others: T^2 KL(teacher || student), nats >= 0.

    student (N, V) logits; teacher (N, k) logits of `ids` (N, k); rest (N,) the logsumexp of the
    teacher's other logits / T. It is the dense loss less T^2 r KL(others || others), r being their
    mass. The student's bucket is summed over the other ids, never 1 - sum. The gradient is
    written out, T (q - p) for the k ids and for the bucket, shared by q inside it, because it then
    needs one buffer (N, V) and less time than cross-entropy.
    """

    @staticmethod
    def forward(ctx, student, teacher, ids, rest, temperature):
        half = student.dtype in (torch.bfloat16, torch.float16)
        others = (student.float() if half else student) / temperature
        kept = others.gather(1, ids)
        others.scatter_(1, ids, float("-inf"))
        largest = others.amax(1, keepdim=True)
        total = others.sub_(largest).exp_().sum(1, keepdim=True)
        output = torch.cat([kept, total.log() + largest], 1).log_softmax(1)
        target = (
            torch.cat([teacher / temperature, rest[:, None]], 1).to(output.dtype).log_softmax(1)
        )
        ctx.save_for_backward(others.div_(total), ids, output.exp() - target.exp())
        ctx.temperature, ctx.dtype = temperature, student.dtype
        return temperature**2 * (target.exp() * (target - output)).sum(1)

    @staticmethod
    def backward(ctx, upstream):
        share, ids, difference = ctx.saved_tensors
        difference = difference * (ctx.temperature * upstream[:, None])
        gradient = share.mul_(difference[:, -1:]).scatter_(1, ids, difference[:, :-1])
        return gradient.to(ctx.dtype), None, None, None, None


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with soft labels, and batches of similar length that a resumed run sees again.

    Several processes share a batch; the last of an epoch, where short, is filled up with rows seen
    before (accelerate's rule), so there alone their step differs from that of one process.
    `released` is the teacher that --loss paper runs again in every step.
    """

    def __init__(self, settings, released=None, **kwargs):
        super().__init__(**kwargs)
        self.settings, self.released, self.real = settings, released, None
        self.loss_is_scaled_for_ga = released is None
        self.model.lm_head.register_forward_pre_hook(self.pick_real)

    def pick_real(self, head, inputs):
        """Give the output layer the real target positions alone: padding costs nothing there."""
        return inputs if self.real is None else (inputs[0][self.real],)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The mean over the real target tokens of the whole step, on all devices."""
        settings, labels = self.settings, inputs.pop("labels")
        soft = {name: inputs.pop(name, None) for name in ("teacher", "ids", "rest")}
        if self.released is not None:
            with torch.no_grad():
                teacher = self.released(**inputs).logits.flatten(0, 1)
            student = model(**inputs).logits.flatten(0, 1)
            return dense_loss(student, teacher, settings.temperature).mean()  # padding included
        self.real = labels != -100
        student = model(**inputs).logits  # (real target tokens, V)
        if soft["ids"] is None:
            loss = dense_loss(student, soft["teacher"], settings.temperature).sum()
        else:
            loss = TopLoss.apply(student, *soft.values(), settings.temperature).sum()
        if settings.ce_weight:
            target = labels[self.real]
            hard = torch.nn.functional.cross_entropy(student.float(), target, reduction="sum")
            loss = (1 - settings.ce_weight) * loss + settings.ce_weight * hard
        return loss * self.args.world_size / num_items_in_batch

    def _get_train_sampler(self, train_dataset=None):
        lengths = self.train_dataset.source + self.train_dataset.target  # below 2^16
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(lengths, size * self.args.world_size, self.args.seed)


def build_arguments(args):
    """Table 8's settings (or the flags') as Trainer arguments."""
    cuda = torch.cuda.is_available()
    bf16 = args.bf16 if args.bf16 is not None else cuda and torch.cuda.is_bf16_supported()
    arguments = Seq2SeqTrainingArguments(
        output_dir=str(args.output / "checkpoints"),
        use_cpu=not torch.accelerator.is_available(),
        num_train_epochs=args.epochs,
        max_steps=args.max_steps,
        per_device_train_batch_size=args.batch_size,
        gradient_accumulation_steps=args.gradient_accumulation,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler,
        warmup_steps=args.warmup_steps,
        optim="adamw_torch_fused",
        bf16=bf16,
        seed=args.seed,
        logging_steps=args.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=args.save_steps,
        save_total_limit=1,
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # DataParallel would split soft labels wrongly
    return arguments


def prepare_labels(args, labels, teacher, sources):
    """Make the labels that are missing or damaged, and index them."""
    state = PartialState()
    damaged, missing = labels.load(sources.keys)
    if state.is_main_process:
        for name in damaged:
            remedy = "; its rows are labeled again" if teacher and len(missing) else ""
            print(f"[labels] {labels.folder / name}.bin is damaged{remedy}", file=sys.stderr)
    state.wait_for_everyone()  # all have seen the same rows missing
    if len(missing) and teacher:
        for name in damaged if state.is_main_process else ():
            for suffix in (".json", ".bin"):
                (labels.folder / f"{name}{suffix}").unlink(missing_ok=True)
        state.wait_for_everyone()  # none of the new shards is taken for a damaged one
        make_labels(labels, args, sources, missing)
        gc.collect()  # the teacher is gone before the student comes
        torch.cuda.empty_cache()
        state.wait_for_everyone()
        missing = labels.load(sources.keys)[1]
    if len(missing):
        fail(f"{labels.folder}: {len(missing):,} of the rows have no labels; run the teacher pass")
    if labels.key["top_k"] and state.is_main_process:
        mass = labels.summary["residual"]
        text = ", ".join(f"{value:.2%} at T = {t:g}" for t, value in mass.items())
        large = mass.get(args.temperature, 0) > 0.1
        advice = "; all that counts as one word: consider a larger --top-k" if large else ""
        print(f"[labels] teacher's mass outside the top k: {text}{advice}", file=sys.stderr)


def check_student(args, labels, teacher):
    """Refuse what can't be distilled; return the student's tokenizer."""
    tokenizer, key = load_tokenizer(args.student), labels.key
    if hash_vocabulary(tokenizer) != key["vocabulary"]:
        fail(f"{args.student} and the teacher differ in vocabulary; soft labels need the same one")
    if load_config(args.student).vocab_size < key["vocabulary_size"]:
        fail(f"{args.student} has fewer output ids than the teacher ({key['vocabulary_size']:,})")
    if key["top_k"] and args.temperature not in key["temperatures"]:
        known = " and ".join(map(str, key["temperatures"]))
        fail(f"{labels.folder}: kept for temperatures {known}, not {args.temperature}")
    if args.loss == "paper" and not teacher:
        fail("--loss paper runs the teacher in every step: give its model folder as --teacher")
    return tokenizer


def distill(args):
    """Both halves, or the teacher pass alone. Returns the record in training.json."""
    PartialState(cpu=not torch.accelerator.is_available())  # joins the other processes, if any
    sources = Sources(args.unlabeled, args.num_unlabeled, args.seed)
    labels, teacher = open_labels(args)
    if args.labels_only:
        prepare_labels(args, labels, teacher, sources)
        return None
    tokenizer = check_student(args, labels, teacher)
    skip = ("logging_steps", "save_steps", "fp16")
    settings = {key: value for key, value in vars(args).items() if key not in skip}
    if not open_run(args.output, {**settings, "labels_key": labels.key}):
        return None
    prepare_labels(args, labels, teacher, sources)
    del sources
    args.max_steps = raise_steps(args, len(labels))
    start = time.monotonic()
    dropout = {} if args.dropout is None else {"dropout_rate": args.dropout}
    model = load_model(args.student, **dropout)
    released = load_model(teacher).to(PartialState().device) if args.loss == "paper" else None
    checkpoint = find_checkpoint(args.output / "checkpoints")
    step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
    progress = Progress(args.output, step)
    trainer = Trainer(
        settings=args,
        released=released,
        model=model,
        args=build_arguments(args),
        train_dataset=labels,
        data_collator=Collator(model, labels, args.temperature),
        callbacks=[progress],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    loaded = time.monotonic()
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = {"load": loaded - start, "train": progress.before + time.monotonic() - loaded}
    record = {
        "script": "distill.py",
        "strategy": args.strategy,
        "task": args.task,
        "seed": args.seed,
        "labels": (labels.manifest["training"] or {}).get("labels"),  # behind the teacher
        "unlabeled": len(labels),
        "parameters": model.num_parameters(),
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "examples_seen": round(trainer.state.epoch * len(labels)),
        "train_loss": result.training_loss,
        "seconds": {**seconds, "teacher_pass": labels.summary.pop("seconds")},
        **labels.summary,
        "teacher": labels.manifest,
        **describe_run(args.unlabeled),
    }
    finish_run(trainer, tokenizer, args.output, record)
    return record


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--teacher", help="T5 folder or hub name, or a folder of labels made before")
    add("--student", default="google/t5-v1_1-small", help="T5 folder or hub name (%(default)s)")
    add("--unlabeled", type=Path, required=True, help="JSONL file of source")
    add("--num-unlabeled", type=int, help="rows to sample from it (default: all)")
    add("--labels", type=Path, help="folder of the teacher's labels (default: OUTPUT/labels)")
    add("--labels-only", action=argparse.BooleanOptionalAction, help="stop after the teacher pass")
    add("--prefix", default="", help='put before every source, e.g. "wlp: " (default: nothing)')
    add("--output", type=Path, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="dist", help="name recorded in training.json (%(default)s)")
    add("--top-k", type=int, help="logits kept a token, 0 = all (default: 64, or as in LABELS)")
    add("--temperature", type=float, default=2.0, help="T of Eq. 1's distributions (%(default)s)")
    kept = "that a student can choose without a new teacher pass (default: 1 2)"
    add("--temperatures", type=float, nargs="+", default=[1.0, 2.0], help=f"those {kept}")
    paper = "paper = as released: teacher run in every step, mean over padding too"
    add("--loss", choices=["kl", "paper"], default="kl", help=f"{paper} (%(default)s)")
    add("--ce-weight", type=float, default=0, help="share of cross-entropy, 0 to 1 (%(default)s)")
    add("--teacher-batch-size", type=int, default=64, help="rows decoded at once (%(default)s)")
    add("--teacher-dtype", choices=["float32", "bfloat16"], help="(default: bfloat16 on a GPU)")
    add("--shard-rows", type=int, default=1024, help="rows a file of labels (%(default)s)")
    add("--max-source-length", type=int, default=128, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=128, help="tokens (%(default)s)")
    add("--epochs", type=float, default=50, help="passes over the rows (%(default)s)")
    add("--max-steps", type=int, default=-1, help="optimiser steps; if above 0, replaces --epochs")
    add("--min-steps", type=int, default=0, help="of --epochs, at least so many (%(default)s)")
    add("--batch-size", type=int, default=32, help="rows a step and device (%(default)s)")
    add("--gradient-accumulation", type=int, default=1, help="batches a step (%(default)s)")
    add("--learning-rate", type=float, default=3e-5, help="peak, AdamW (%(default)s)")
    add("--lr-scheduler", default="linear", help="Trainer's schedule name (%(default)s)")
    add("--warmup-steps", type=int, default=0, help="steps (%(default)s)")
    add("--dropout", type=float, help="rate, 0 to 1 (default: the model's own, 0.1 in T5)")
    add(
        "--bf16",
        action=argparse.BooleanOptionalAction,
        help="bf16 arithmetic over fp32 weights; the paper used fp32 (default: where a GPU has it)",
    )
    add("--fp16", action="store_true", help="refused: T5's activations overflow in fp16")
    add("--save-steps", type=int, default=500, help="steps between checkpoints (%(default)s)")
    add("--logging-steps", type=int, default=20, help="steps between log lines (%(default)s)")
    add("--seed", type=int, default=0, help="rows drawn and training (%(default)s)")
    args = parser.parse_args(argv)
    if not (args.teacher or args.labels):
        parser.error("give --teacher, or --labels made before")
    if not args.output and not (args.labels_only and args.labels):
        parser.error("give --output (with --labels-only, --labels will do)")
    if max(args.max_source_length, args.max_target_length) > 32767:
        parser.error("--max-source-length and --max-target-length must be below 32,768")
    lengths = ("max_source_length", "max_target_length")
    for name in ("num_unlabeled", "teacher_batch_size", "shard_rows", *lengths):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if not 0 <= args.ce_weight <= 1 or min(args.temperature, *args.temperatures) <= 0:
        parser.error("--ce-weight must be 0 to 1, temperatures above 0")
    if args.loss == "paper" and args.ce_weight:
        parser.error("--loss paper has no cross-entropy: leave --ce-weight out")
    return args


# same in: train_teacher.py, distill.py
@contextlib.contextmanager
def one_error_line(folder):
    """Turn what the system refuses (full disk, no permission) into one `error:` line.

    torch and safetensors report a full disk in their own ways, not as an OSError.
    """
    try:
        yield
    except OSError as error:
        fail(f"{error.filename or folder}: {error.strerror or error}")
    except Exception as error:
        writing = "iostream|inline_container|PytorchStreamWriter|No space|code: 28"
        while not folder.exists():
            folder = folder.parent
        if re.search(writing, str(error)) and shutil.disk_usage(folder).free < 2**24:
            fail(f"{folder}: the disk is full; make room, then run the same command again")
        raise


# end same


# same in: train_teacher.py, distill.py
def start_quietly(args):
    """Refuse fp16; leave stderr to our own lines: no bars, no word on each retry of the hub."""
    if args.fp16:
        fail("--fp16: T5's activations overflow in fp16 (they reach 1e5); use bf16 or fp32")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


# end same


def main(argv=None):
    args = parse_args(argv)
    start_quietly(args)
    with one_error_line(args.output or args.labels):
        record = distill(args)
    if record and PartialState().is_main_process:
        print(
            f"[{args.output.name}] {record['unlabeled']:,} rows, {record['steps']:,} steps, "
            f"loss {record['train_loss']:.3f}, {record['seconds']['train']:.0f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
