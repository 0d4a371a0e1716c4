"""Distill a teacher into a compact T5 on unlabeled rows, running the teacher only once: Strategy 2.

Usage:
    python distill.py --teacher runs/paper/wlp/teacher-n5000-s0/model --num-unlabeled 100000 \\
        --unlabeled data/prepared/paper/wlp/unlabeled.jsonl --prefix "wlp: " \\
        --output runs/paper/wlp/dist-n5000-u100000-s0
    python distill.py --teacher data/mini-models/teacher --student data/mini-models/student \\
        --unlabeled data/prepared/mini/wlp/unlabeled.jsonl --num-unlabeled 500 --prefix "wlp: " \\
        --max-steps 200 --learning-rate 3e-3 --output /tmp/dist

Two halves, in one command or two: the teacher pass (stop there with --labels-only) writes LABELS;
the student reads it, also on another machine: --teacher LABELS.

Reads:  UNLABELED, a JSONL file of {"source"}; Hugging Face T5 folders or hub names.
Writes: LABELS (default OUTPUT/labels): the teacher's greedy targets and soft labels, in shards;
        OUTPUT/config.json, log.jsonl, checkpoints/, model/, and training.json last.
Copy:   distill.py alone
Paper:  section 2.3, equation 1 (strategy); section 3.2 and Table 3 (self-distillation).
"""

import argparse
import gc
import hashlib
import json
import mmap
import os
import platform
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


# same in: train_small.py, train_teacher.py, distill.py
def fail(message):
    """Stop with one `error:` line on stderr and exit code 1."""
    sys.exit(f"error: {message}")


# end same


# same in: train_small.py, train_teacher.py, distill.py
def write_json(path, value):
    """Write `value` so that a reader sees the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


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
        "data_sha256": hashlib.sha256(Path(data).read_bytes()).hexdigest(),
    }


# end same


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
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
    """The unlabeled rows to use, in the order of a seeded permutation; texts stay in the file.

    A smaller count is the beginning of a larger one. Memory: 16 bytes a row of the file.
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
        if not keys or (count or 0) > len(keys):
            fail(f"{path}: {count or 1:,} rows asked for, {len(keys):,} are there")
        order = np.random.RandomState(seed).permutation(len(keys))[:count]
        self.path, self.offsets, self.keys = path, np.array(offsets)[order], np.array(keys)[order]

    def read(self, indices):
        """The texts of some rows."""
        with open(self.path, "rb") as file:
            return [json.loads(self.read_line(file, index))["source"] for index in indices]

    def read_line(self, file, index):
        file.seek(self.offsets[index])
        return file.readline()


def hash_text(text):
    """64 bits that name a row by its content; two of a million rows meet with odds of 3e-8."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def token_dtype(key):
    """One target token on disk: with k = 64 and two temperatures 4k + 14 = 270 bytes.

    `logits` are relative to the largest one, `top`, so that fp16 is exact where the mass is; `rest`
    is the logsumexp, at each temperature, of all other logits on the same scale. Kept in this
    form, the mass outside the top k needs no 1 - sum; the full logsumexp follows by adding.
    """
    ids = "<u2" if key["vocabulary_size"] <= 2**16 else "<u4"
    if key["top_k"] == 0:
        return np.dtype([("id", ids), ("logits", "<f4", (key["vocabulary_size"],))])
    rest = ("rest", "<f4", (len(key["temperatures"]),))
    top = [("ids", ids, (key["top_k"],)), ("logits", "<f2", (key["top_k"],))]
    return np.dtype([("id", ids), ("top", "<f4"), rest, *top])


def row_dtype(key):
    """One row of a shard's table: what it is, its lengths, and what the summary needs."""
    residual = ("residual", "<f4", (len(key["temperatures"]),))  # summed over the target's tokens
    return np.dtype([("key", "<u8"), ("source", "<u4"), ("target", "<u4"), ("cut", "u1"), residual])


class Labels(torch.utils.data.Dataset):
    """The teacher's labels on disk, found by row content; nothing but an index in memory.

    FOLDER/labels.json says what they were made with. A shard is NAME.bin, for each row its
    source's ids and its target's tokens and then a table of the rows, and NAME.json with the
    checksum, written last. Memory: 17 bytes a row once `select` has chosen the rows.
    """

    def __init__(self, folder, key):
        self.folder, self.key = folder, key
        self.token, self.row = token_dtype(key), row_dtype(key)
        self.id_type = self.token["id"]

    def load(self):
        """Read the tables of all whole shards. Returns the names of damaged ones."""
        self.shards, tables, damaged = [], [np.empty(0, self.row)], []
        for path in sorted(self.folder.glob("*.json")):
            if path.name == "labels.json":
                continue
            try:
                shard = json.loads(path.read_text())
                tables.append(self.read_table(path.with_suffix(".bin"), shard))
                self.shards.append({**shard, "path": path.with_suffix(".bin")})
            except (OSError, ValueError, KeyError):
                damaged.append(path.stem)
        counts = [len(table) for table in tables[1:]]
        table = np.concatenate(tables)
        self.table, self.shard = table, np.repeat(np.arange(len(counts), dtype=np.int32), counts)
        sizes = table["source"] * self.id_type.itemsize + table["target"] * self.token.itemsize
        ends = [np.cumsum(size) for size in np.split(sizes, np.cumsum(counts))[:-1]]
        self.start = np.concatenate([np.empty(0, np.int64), *ends]).astype(np.int64) - sizes
        self.order = np.argsort(table["key"], kind="stable")
        return damaged

    def read_table(self, path, shard):
        """A shard's table of rows; ValueError where its bytes are not those written."""
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while part := file.read(1 << 20):
                digest.update(part)
            if digest.hexdigest() != shard["sha256"]:
                raise ValueError(path)
            file.seek(-shard["rows"] * self.row.itemsize, os.SEEK_END)
            return np.frombuffer(file.read(), self.row)

    def find(self, keys):
        """Position in the tables of each row key, -1 where a row is not labeled."""
        if not len(self.table):
            return np.full(len(keys), -1)
        ordered = self.table["key"][self.order]
        places = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
        return np.where(ordered[places] == keys, self.order[places], -1)

    def select(self, keys):
        """Keep the rows with these keys, in this order. Returns what is known about them."""
        places = self.find(keys)
        used, table = np.unique(places), self.table
        tokens = table["target"][places].sum(dtype=np.int64)
        residual = table["residual"][places].sum(0, dtype=np.float64) / tokens
        share = [shard["seconds"] / shard["rows"] / shard["processes"] for shard in self.shards]
        summary = {
            "tokens": int(tokens),
            "truncated_sources": int((table["cut"][places] & 1).sum()),
            "truncated_targets": int((table["cut"][places] >> 1).sum()),
            "residual": dict(
                zip(map(str, self.key["temperatures"]), residual.tolist(), strict=True)
            ),
            "seconds": float(np.array(share)[self.shard[used]].sum()),
        }
        self.sources, self.targets = table["source"][places], table["target"][places]
        self.shard, self.start = self.shard[places].astype(np.uint16), self.start[places]
        self.table = self.order = None
        return summary

    def __len__(self):
        return len(self.start)

    def __getitem__(self, index):
        """The source's ids and the target's tokens, through a memory map of this row alone.

        A map of the whole shard would stay in memory wherever it was touched.
        """
        source, target = int(self.sources[index]), int(self.targets[index])
        start = int(self.start[index])
        page = start - start % mmap.ALLOCATIONGRANULARITY
        size = source * self.id_type.itemsize + target * self.token.itemsize
        with (
            open(self.shards[self.shard[index]]["path"], "rb") as file,
            mmap.mmap(
                file.fileno(), start - page + size, offset=page, access=mmap.ACCESS_READ
            ) as m,
        ):
            data = m[start - page :]
        return (
            np.frombuffer(data, self.id_type, source),
            np.frombuffer(data, self.token, target, source * self.id_type.itemsize),
        )


def hash_vocabulary(tokenizer):
    """One hash for equal pieces with equal ids."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def hash_weights(model):
    """A hash of a model folder's weights and config, or the commit of a hub model."""
    if not Path(model).is_dir():
        return f"commit {AutoConfig.from_pretrained(model)._commit_hash}"
    digest = hashlib.sha256()
    for path in sorted(Path(model).iterdir()):
        if path.suffix in (".safetensors", ".bin") or path.name == "config.json":
            with open(path, "rb") as file:
                while part := file.read(1 << 22):
                    digest.update(part)
    return digest.hexdigest()


def open_labels(args):
    """The labels folder, begun if new; refused where it was made from anything else.

    Returns Labels and the teacher to run for missing rows, None where only labels were given.
    """
    given = args.teacher and (Path(args.teacher) / "labels.json").exists()
    folder = Path(args.teacher) if given else args.labels or args.output / "labels"
    file = folder / "labels.json"
    manifest = json.loads(file.read_text()) if file.exists() else None
    if given or not args.teacher:
        key = manifest["key"] if manifest else fail(f"{folder}: no labels.json; give --teacher")
        wanted = {name: value for name, value in describe_labels(args).items() if name in SHARED}
    else:
        tokenizer = load_tokenizer(args.teacher)
        try:
            size = AutoConfig.from_pretrained(args.teacher).vocab_size
            identity = {"teacher": hash_weights(args.teacher), "vocabulary_size": size}
        except Exception as error:
            fail(f"{args.teacher}: no T5 model can be loaded ({str(error).splitlines()[0]})")
        identity["vocabulary"] = hash_vocabulary(tokenizer)
        wanted = {**identity, **describe_labels(args)}
        if not 0 <= wanted["top_k"] < size:
            fail(f"--top-k {wanted['top_k']}: the vocabulary has {size:,} ids; 0 keeps them all")
        if not manifest:
            folder.mkdir(parents=True, exist_ok=True)
            manifest = {"key": wanted, "model": args.teacher, **describe_run(args.unlabeled)}
            history = Path(args.teacher).parent / "training.json"
            manifest["training"] = json.loads(history.read_text()) if history.exists() else None
            write_json(file, manifest)
        key = manifest["key"]
    other = [name for name in wanted if key.get(name) != wanted[name]]
    if other:
        changes = ", ".join(f"{name} {key.get(name)!r} -> {wanted[name]!r}" for name in other)
        fail(f"{folder} holds labels made otherwise ({changes}); choose another --labels folder")
    labels = Labels(folder, key)
    labels.manifest = manifest
    return labels, None if given else args.teacher


SHARED = "prefix", "max_source_length", "max_target_length"  # what the student must agree with


def describe_labels(args):
    """The settings that change a label, teacher and vocabulary aside."""
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return {
        "prefix": args.prefix,
        "max_source_length": args.max_source_length,
        "max_target_length": args.max_target_length,
        "dtype": args.teacher_dtype or ("bfloat16" if bf16 else "float32"),
        "batch_size": args.teacher_batch_size,
        "shard_rows": args.shard_rows,
        "top_k": args.top_k,
        "temperatures": sorted({*args.temperatures, args.temperature}),
    }


def make_labels(labels, teacher, sources, indices):
    """The teacher pass over some rows: fixed pieces of the order, so a continued pass is the same.

    Greedy decoding can change with the batch, so a batch never mixes pieces.
    """
    start, key, state = time.monotonic(), labels.key, PartialState()
    tokenizer = load_tokenizer(teacher)
    model = load_model(teacher, dtype=getattr(torch, key["dtype"])).to(state.device).eval()
    pieces = np.split(indices, np.flatnonzero(np.diff(indices // key["shard_rows"])) + 1)
    done, begun = 0, start
    for piece in pieces[state.process_index :: state.num_processes]:
        write_shard(labels, model, tokenizer, sources, piece, begun)
        begun, done = time.monotonic(), done + len(piece) * state.num_processes
        left = (begun - start) / done * max(0, len(indices) - done)
        text = f"{min(done, len(indices)):,}/{len(indices):,} rows, {left:.0f} s left"
        print(f"[{labels.folder.name}] teacher {text}", file=sys.stderr, flush=True)


def write_shard(labels, model, tokenizer, sources, piece, begun):
    """Label the rows of one shard and write it: data, then the JSON that makes it count."""
    key, state = labels.key, PartialState()
    limit, size = key["max_source_length"], key["batch_size"]
    encoded = tokenizer([key["prefix"] + text for text in sources.read(piece)]).input_ids
    order = sorted(range(len(piece)), key=lambda i: -len(encoded[i]))
    rows, digest = [], hashlib.sha256()
    name = hashlib.sha256(sources.keys[piece].tobytes()).hexdigest()[:16]
    data = labels.folder / f"{name}.bin"
    temporary = labels.folder / f".{name}.{os.getpid()}.new"
    with open(temporary, "wb") as file:
        for i in range(0, len(order), size):
            batch = [cut_ids(encoded[j], limit) for j in order[i : i + size]]
            for j, ids, (tokens, residual) in zip(
                order[i : i + size], batch, decode(model, batch, labels), strict=True
            ):
                record = np.array(ids, labels.id_type).tobytes() + tokens.tobytes()
                file.write(record)
                digest.update(record)
                ended = tokens["id"][-1] == model.config.eos_token_id
                cut = (len(encoded[j]) > limit) + 2 * (not ended)
                rows.append((sources.keys[piece[j]], len(ids), len(tokens), cut, residual))
        table = np.array(rows, labels.row).tobytes()
        file.write(table)
        digest.update(table)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, data)
    facts = {"rows": len(rows), "sha256": digest.hexdigest()}
    facts |= {"seconds": time.monotonic() - begun, "processes": state.num_processes}
    write_json(data.with_suffix(".json"), facts)


def cut_ids(ids, limit):
    """At most `limit` ids, the last one (end of sequence) kept."""
    return ids if len(ids) <= limit else ids[: limit - 1] + ids[-1:]


@torch.inference_mode()
def decode(model, batch, labels):
    """Greedy targets with the distribution at every step, both from one incremental pass.

    Returns, for each row, its tokens and their summed residual mass (per temperature).
    """
    width, config = max(map(len, batch)), model.config
    ids = [row + [config.pad_token_id] * (width - len(row)) for row in batch]
    inputs = torch.tensor(ids, device=model.device)
    lengths = torch.tensor([len(row) for row in batch], device=model.device)
    mask = (torch.arange(width, device=model.device) < lengths[:, None]).long()
    encoded = model.encoder(input_ids=inputs, attention_mask=mask)
    last = torch.full_like(inputs[:, :1], config.decoder_start_token_id)
    steps, residuals, cache = [], [], None
    alive, counts = np.ones(len(batch), bool), np.zeros(len(batch), int)
    while alive.any() and len(steps) < labels.key["max_target_length"]:
        output = model(
            encoder_outputs=encoded,
            attention_mask=mask,
            decoder_input_ids=last,
            past_key_values=cache,
            use_cache=True,
        )
        cache, logits = output.past_key_values, output.logits[:, -1].float()
        last = logits.argmax(-1, keepdim=True)
        tokens, residual = capture(logits, last, labels)
        steps.append(tokens)
        residuals.append(residual)
        counts += alive
        alive &= tokens["id"] != config.eos_token_id
    tokens, residuals = np.stack(steps, 1), np.stack(residuals, 1)
    return [(tokens[i, :n], residuals[i, :n].sum(0)) for i, n in enumerate(counts)]


def capture(logits, ids, labels):
    """What `token_dtype` keeps of logits (B, V); and the residual mass (B, temperatures)."""
    key, tokens = labels.key, np.zeros(len(logits), labels.token)
    tokens["id"] = ids[:, 0].cpu().numpy()
    if not key["top_k"]:
        tokens["logits"] = logits.cpu().numpy()
        return tokens, np.zeros((len(logits), len(key["temperatures"])))
    top = logits.topk(key["top_k"])
    first = top.values[:, :1]
    others = (logits - first).scatter(1, top.indices, float("-inf"))
    rest = torch.stack([(others / t).logsumexp(1) for t in key["temperatures"]], 1)
    kept = (top.values - first).clamp(min=-6e4)  # within fp16
    whole = torch.stack([(kept / t).logsumexp(1) for t in key["temperatures"]], 1)
    tokens["top"], tokens["rest"] = first[:, 0].cpu().numpy(), rest.cpu().numpy()
    tokens["ids"], tokens["logits"] = top.indices.cpu().numpy(), kept.cpu().numpy()
    return tokens, torch.sigmoid(rest - whole).cpu().numpy()


# same in: train_small.py, train_teacher.py, distill.py
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


# same in: train_small.py, train_teacher.py, distill.py
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
        if loss != loss or loss in (float("inf"), -float("inf")):
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


# same in: train_small.py, train_teacher.py, distill.py
def find_checkpoint(folder):
    """The newest whole checkpoint (its trainer_state.json is written last), or None."""
    states = list(folder.glob("checkpoint-*/trainer_state.json"))
    by_step = {int(path.parent.name.split("-")[1]): path.parent for path in states}
    return by_step[max(by_step)] if by_step else None


def finish_run(trainer, tokenizer, output, record):
    """Save the model, then training.json (last and atomically), then drop the checkpoints."""
    start = time.monotonic()
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
        self.model, self.dense = model, labels.key["top_k"] == 0
        temperatures = labels.key["temperatures"]
        self.column = temperatures.index(temperature) if not self.dense else None

    def __call__(self, rows):
        pad = self.model.config.pad_token_id
        inputs = pad_rows([source for source, _ in rows], pad)
        targets = pad_rows([tokens["id"] for _, tokens in rows], -100)
        tokens = np.concatenate([tokens for _, tokens in rows])
        lengths = torch.tensor([len(source) for source, _ in rows])
        batch = {
            "input_ids": inputs,
            "attention_mask": (torch.arange(inputs.shape[1]) < lengths[:, None]).long(),
            "decoder_input_ids": self.model.prepare_decoder_input_ids_from_labels(targets),
            "labels": targets,
            "teacher": torch.from_numpy(tokens["logits"].astype(np.float32)),
        }
        if not self.dense:
            batch["ids"] = torch.from_numpy(tokens["ids"].astype(np.int64))
            batch["rest"] = torch.from_numpy(tokens["rest"][:, self.column].copy())
        return batch


def pad_rows(rows, value):
    """Arrays of ids as one tensor (rows, longest)."""
    padded = np.full((len(rows), max(map(len, rows))), value, np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return torch.from_numpy(padded)


def soft_loss(student, teacher, ids=None, rest=None, temperature=1.0):
    """Equation 1 at a temperature T: T^2 KL(teacher || student) of each token, nats, >= 0.

    student (N, V) logits. teacher (N, V) logits; or (N, k) logits of the vocabulary `ids` (N, k),
    with `rest` (N,) the logsumexp of all other teacher logits / T. Those others are one bucket of
    the distribution, the student's bucket being the logsumexp over the same ids: what is left
    out is exactly rest mass * KL(rest || rest).
    """
    student = student.to(torch.promote_types(student.dtype, torch.float32)) / temperature
    teacher = teacher.to(student.dtype) / temperature
    if ids is not None:
        others = student.scatter(1, ids, float("-inf")).logsumexp(1, keepdim=True)
        student = torch.cat([student.gather(1, ids), others], 1)
        teacher = torch.cat([teacher, rest[:, None].to(student.dtype)], 1)
    target, output = teacher.log_softmax(1), student.log_softmax(1)[:, : teacher.shape[1]]
    return temperature**2 * (target.exp() * (target - output)).sum(1)


class Trainer(Seq2SeqTrainer):
    """Seq2SeqTrainer with soft labels, and batches of similar length that a resumed run sees again.

    `released` is a teacher to run in every step, for --loss paper.
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
        labels, temperature = inputs["labels"], self.settings.temperature
        names = "input_ids", "attention_mask", "decoder_input_ids"
        batch = {name: inputs[name] for name in names}
        if self.released is not None:
            with torch.no_grad():
                teacher = self.released(**batch).logits.flatten(0, 1)
            return soft_loss(
                model(**batch).logits.flatten(0, 1), teacher, temperature=temperature
            ).mean()
        self.real = labels != -100
        student = model(**batch).logits
        loss = soft_loss(
            student, inputs["teacher"], inputs.get("ids"), inputs.get("rest"), temperature
        ).sum()
        if self.settings.ce_weight:
            hard = torch.nn.functional.cross_entropy(
                student.float(), labels[self.real], reduction="sum"
            )
            loss = (1 - self.settings.ce_weight) * loss + self.settings.ce_weight * hard
        count = self.real.sum() if num_items_in_batch is None else num_items_in_batch
        return loss / count * (1 if num_items_in_batch is None else self.args.world_size)

    def _get_train_sampler(self, train_dataset=None):
        lengths = self.train_dataset.sources + self.train_dataset.targets
        size = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedSampler(lengths, size * self.args.world_size, self.args.seed)


def build_arguments(args):
    """Table 8's settings (or the flags') as Trainer arguments."""
    cuda = torch.cuda.is_available()
    bf16 = args.bf16 if args.bf16 is not None else cuda and torch.cuda.is_bf16_supported()
    return Seq2SeqTrainingArguments(
        output_dir=str(args.output / "checkpoints"),
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
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
    )


def prepare_labels(args, labels, teacher, sources):
    """Make what is missing, name what is damaged, and choose the rows. Returns the summary."""
    damaged = labels.load()
    first = np.unique(sources.keys, return_index=True)[1]  # a repeated row is labeled once
    first.sort()
    missing = first[labels.find(sources.keys[first]) < 0]
    remedy = "made again" if teacher else "make it again with --teacher MODEL"
    for name in damaged:
        print(f"[{labels.folder}] shard {name}.bin is damaged: {remedy}", file=sys.stderr)
    if len(missing) and not teacher:
        fail(f"{labels.folder}: {len(missing):,} rows of {args.unlabeled} have no labels here")
    if len(missing):
        make_labels(labels, teacher, sources, missing)
        gc.collect()
        PartialState().wait_for_everyone()
        labels.load()
    summary = labels.select(sources.keys)
    for temperature, mass in summary["residual"].items():
        note = "; consider a larger --top-k" if mass > 0.01 else ""
        warning = f"{mass:.3%} of the teacher's mass at T={temperature} is outside the top k{note}"
        print(f"[{labels.folder.name}] {warning}", file=sys.stderr)
    return summary


def distill(args):
    """Both halves, or the teacher's. Returns the record in training.json."""
    PartialState()
    sources = Sources(args.unlabeled, args.num_unlabeled, args.seed)
    labels, teacher = open_labels(args)
    key = labels.key
    if args.labels_only:
        prepare_labels(args, labels, teacher, sources)
        return None
    tokenizer = load_tokenizer(args.student)
    if hash_vocabulary(tokenizer) != key["vocabulary"]:
        fail(f"{args.student} and the teacher have different vocabularies; soft labels need one")
    if args.temperature not in key["temperatures"] and key["top_k"]:
        fail(f"{labels.folder} was made for temperatures {key['temperatures']}, --temperature not")
    settings = {name: value for name, value in vars(args).items() if name != "logging_steps"}
    if not open_run(args.output, {**settings, "labels_key": key}):
        return None
    summary = prepare_labels(args, labels, teacher, sources)
    ready = time.monotonic()
    dropout = {} if args.dropout is None else {"dropout_rate": args.dropout}
    model = load_model(args.student, **dropout)
    if model.config.vocab_size < key["vocabulary_size"]:
        fail(f"{args.student}: fewer output ids than the teacher's {key['vocabulary_size']:,}")
    released = load_model(teacher).to(PartialState().device) if args.loss == "paper" else None
    checkpoint = find_checkpoint(args.output / "checkpoints")
    progress = Progress(args.output, int(checkpoint.name.split("-")[1]) if checkpoint else 0)
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
    history = labels.manifest["training"] or {}
    record = {
        "script": "distill.py",
        "strategy": args.strategy,
        "task": args.task,
        "seed": args.seed,
        "labels": history.get("labels"),
        "unlabeled": len(labels),
        "parameters": model.num_parameters(),
        "epochs": trainer.state.epoch,
        "steps": trainer.state.global_step,
        "examples_seen": round(trainer.state.epoch * len(labels)),
        "train_loss": result.training_loss,
        "truncated_sources": summary["truncated_sources"],
        "truncated_targets": summary["truncated_targets"],
        "residual": summary["residual"],
        "seconds": {
            "load": loaded - ready,
            "train": progress.before + time.monotonic() - loaded,
            "teacher_pass": summary["seconds"],
        },
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
    add("--labels", type=Path, help="folder of the soft labels (default: OUTPUT/labels)")
    add("--labels-only", action=argparse.BooleanOptionalAction, help="stop after the teacher pass")
    add("--prefix", default="", help='put before every source, e.g. "wlp: " (default: nothing)')
    add("--output", type=Path, help="run folder")
    add("--task", help="name recorded in training.json")
    add("--strategy", default="dist", help="name recorded: dist or self (%(default)s)")
    add("--top-k", type=int, default=64, help="logits kept a token; 0 keeps all (%(default)s)")
    add("--temperature", type=float, default=2.0, help="of both distributions (%(default)s)")
    add(
        "--temperatures",
        type=float,
        nargs="+",
        default=[1.0, 2.0],
        help="those that can be chosen later without a new teacher pass (default: 1 2)",
    )
    add(
        "--loss",
        choices=["kl", "paper"],
        default="kl",
        help="kl: Eq. 1 from the kept labels, over real tokens; paper: as released, the teacher "
        "run again in every step, the mean over padding too (%(default)s, far faster)",
    )
    add("--ce-weight", type=float, default=0.0, help="share of cross-entropy, 0 to 1 (%(default)s)")
    add("--teacher-batch-size", type=int, default=64, help="rows decoded at once (%(default)s)")
    add("--shard-rows", type=int, default=1024, help="rows a shard of labels (%(default)s)")
    add(
        "--teacher-dtype",
        choices=["float32", "bfloat16"],
        help="of the teacher; the paper used float32 (default: bfloat16 where a GPU has it)",
    )
    add("--max-source-length", type=int, default=128, help="tokens (%(default)s)")
    add("--max-target-length", type=int, default=128, help="tokens (%(default)s)")
    add("--epochs", type=float, default=50, help="passes over the rows (%(default)s)")
    add("--max-steps", type=int, default=-1, help="optimiser steps; if above 0, replaces --epochs")
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
    add("--save-steps", type=int, default=500, help="steps between checkpoints (%(default)s)")
    add("--logging-steps", type=int, default=20, help="steps between log lines (%(default)s)")
    add("--seed", type=int, default=0, help="rows drawn and training (%(default)s)")
    args = parser.parse_args(argv)
    if args.num_unlabeled is not None and args.num_unlabeled < 1:
        parser.error("--num-unlabeled must be at least 1")
    if not (args.teacher or args.labels):
        parser.error("give --teacher, or --labels made before")
    if not args.output and not (args.labels_only and args.labels):
        parser.error("give --output (with --labels-only, --labels is enough)")
    return args


def main(argv=None):
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        record = distill(args)
    except OSError as error:
        fail(f"{error.filename or args.output}: {error.strerror or error}")
    if record:
        print(
            f"[{args.output.name}] {record['unlabeled']:,} rows, {record['steps']:,} steps, "
            f"loss {record['train_loss']:.3f}, {record['seconds']['train']:.0f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
