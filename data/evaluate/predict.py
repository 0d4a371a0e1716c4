"""Label rows without targets: evaluate.py --predict.

Each row is written as soon as its part of the file is done, with its own keys and
  text        the output as a user gets it
  confidence  0-1: for classes, the text's share of `scores`, null if the text is no class; else
              the probability of the whole output
  scores      for classes: the probability of each, over the classes of the task (by forced
              decoding of each label; an encoder's softmax)
  spans       for entities: [start, end, label] of each that stands in the source, in characters
A file may be JSONL, CSV, TSV or Parquet, or what Prodigy, doccano and Label Studio export, whose
own spans are left out; its column of texts becomes "source", stdin is JSONL. Of Parquet dates are
written as in ISO 8601, decimals as texts, NaN and infinity as null. A killed run goes on after the
last whole line; a file of other rows, or begun with other settings than stand beside it in
OUTPUT.settings.json, is refused.
"""

import fcntl
import functools
import json
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from data.columns import choose_columns, read_table, unwrap
from data.files import (
    UserError,
    check_kind,
    check_overwrite,
    parse_json,
    plural,
    read_json,
    write_json,
)
from data.spans import find_spans

ADDED = ("text", "confidence", "scores", "spans")


def predict_file(options, rows, reader):
    """Label rows; says how fast, and the cost of a million."""
    from data.evaluate import decode

    reader.loaded.batch_size = options.batch_size or fit_batch(reader)
    told = {"model": name_weights(options.model), "task": reader.task.name, **reader.settings}
    with open_output(options.output, rows, told) as (file, done):
        start, size = time.monotonic(), 4 * reader.loaded.batch_size
        with decode.show_progress("predict", len(rows) - done) as progress:
            for first in range(done, len(rows), size):
                part = rows[first : first + size]
                for row, more in zip(part, predict_rows(reader, part), strict=True):
                    file.write(json.dumps({**row, **more}, ensure_ascii=False) + "\n")
                file.flush()
                progress.update(len(part))  # of rows that are written, scores and all
        tell_speed(len(rows) - done, time.monotonic() - start, done, options.usd_per_hour)


def fit_batch(reader):
    """Rows whose keys and values take half of a GPU's free memory, up to 1,024; 128 on a CPU."""
    model, settings = reader.loaded.model, reader.settings
    if model.device.type != "cuda":
        return 128
    import torch

    layers = getattr(model.config, "num_decoder_layers", None) or model.config.num_hidden_layers
    tokens = settings["max_source_length"] + settings["max_target_length"]
    row = 2 * layers * tokens * model.config.hidden_size * model.dtype.itemsize
    return int(max(1, min(1024, torch.cuda.mem_get_info()[0] / 2 // row)))


def name_weights(model):
    """A model by its path and, in a folder, the size and time of its weights."""
    files = sorted([*Path(model).glob("*.safetensors"), *Path(model).glob("*.bin")])
    return [str(model), *(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files)]


def tell_speed(count, seconds, before, usd_per_hour):
    """Rows a second and the cost of a million of them, on stderr."""
    text = f"{plural(count, 'row')} in {seconds:.1f} s"
    text += f", {before:,} were there" * bool(before)
    if count:
        hours = seconds / count * 1e6 / 3600
        text += f": {count / seconds:,.1f} rows a second, {hours:,.2f} hours a million"
        text += f", ${hours * usd_per_hour:,.2f}" if usd_per_hour is not None else ""
    print(text, file=sys.stderr)


def read_rows(options, task):
    """The rows of a file or of stdin with the texts of a column as their source; says how many, and
    a guessed column."""
    path = Path("/dev/stdin") if str(options.predict) == "-" else options.predict
    check_overwrite(filter(None, [options.output]), [path])
    table = unwrap(read_table(path), labeled=False)
    column = {"source": options.source_column or task.source_column}
    found, told = choose_columns(table, task, False, column)
    name, lines = found["source"], [told] * bool(told)
    exported = [row for _, row in table.rows if isinstance(row, dict) and name != "spans"]
    spans = [row.pop("spans") for row in exported if isinstance(row.get("spans"), list)]
    if any(spans):
        lines.append(f"note: spans in {path} are left out, those written are the model's")
    rows = [check_row(row, name, f"{path} {place}") for place, row in table.rows]
    empty = sum(not row["source"].strip() for row in rows)
    more = f", {empty:,} of them empty, whose labels say nothing" * bool(empty)
    lines.append(f"{path}: {plural(len(rows), 'row')}{more}; loading {options.model}")
    print("\n".join(lines), file=sys.stderr)
    return rows


def check_row(row, name, where):
    """A row as JSON can have it with its source first, which must be a text, and without a key that
    the output adds."""
    if not isinstance(row, dict):
        raise UserError(f"{where}: {row}")
    if name not in row:
        raise UserError(f"{where}: no {name!r} in this row")
    check_kind(row[name], str, f"{where}: {name!r}")
    if taken := [key for key in ("source", *ADDED) if key in row and key != name]:
        raise UserError(f"{where}: has a key {taken[0]!r}, as the output; rename it")
    try:
        text = json.dumps({"source": row.pop(name), **row}, default=show_value)
        return json.loads(text, parse_constant=lambda name: None)
    except (TypeError, RecursionError) as error:
        what = f"a value that JSON has not ({error})"
        raise UserError(f"{where}: {what}; leave its column out") from None


def show_value(value):
    """A value of Parquet as a text: a date, a decimal, a span of time."""
    if isinstance(value, bytes):
        raise TypeError("bytes")
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@contextmanager
def open_output(path, rows, told):
    """(the file to write to, how many of `rows` it has already); stdout has none."""
    if path is None:  # the same bytes as in a file, whatever the terminal's encoding
        sys.stdout.reconfigure(encoding="utf-8")
        yield sys.stdout, 0
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        raise UserError(f"{path}: not a file, so none that could be continued; choose another")
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{path}: another process is writing to it") from None
        beside = Path(f"{path}.settings.json")
        *lines, torn = path.read_bytes().split(b"\n")
        if (lines or torn) and (not beside.exists() or read_json(beside) != told):
            raise UserError(f"{path}: not begun with these settings; choose another --output")
        for number, line in enumerate(lines, 1):
            where = f"{path} line {number}"
            said = check_kind(parse_json(line.decode(errors="replace"), where), dict, where)
            own = {key: said[key] for key in said if key not in ADDED}
            whole = {"text", "confidence"} <= said.keys()
            if not whole or [own] != rows[number - 1 : number]:
                raise UserError(f"{where}: not of this row of the file; choose another --output")
        file.truncate(sum(len(line) + 1 for line in lines))
        write_json(beside, told)
        yield file, len(lines)


def predict_rows(reader, rows):
    """What is added to each of some rows."""
    from data.evaluate import decode

    out, loaded = reader.decode([row["source"] for row in rows]), reader.loaded
    if reader.names:
        return share_scores(out, reader.names.values(), out.logits)
    if reader.labels:
        targets = reader.labels.targets
        compute = functools.partial(decode.score_labels, loaded.model, targets.values())
        return share_scores(out, targets, decode.collect(loaded, compute, out.inputs))
    end = loaded.tokenizer.eos_token_id
    whole = [[*ids, *[end] * (n not in out.unended)] for n, ids in enumerate(out.ids)]
    compute = functools.partial(decode.score_targets, loaded.model)
    found = decode.collect(loaded, compute, out.inputs, labels=dict(enumerate(whole)))
    pairs = zip(out.predictions, found.exp().tolist(), strict=True)
    made = [{"text": text, "confidence": round(value, 6)} for text, value in pairs]
    for row, said in zip(rows, made, strict=True) if reader.restorer else ():
        said["spans"] = find_spans(row["source"], said["text"], reader.task.labels)
    return made


def share_scores(out, labels, logits):
    """Yield text, confidence and scores of each row, from (n, C) logits of the labels."""
    for text, values in zip(out.predictions, logits.softmax(-1).tolist(), strict=True):
        scores = {label: round(value, 6) for label, value in zip(labels, values, strict=True)}
        known = {label.upper(): value for label, value in scores.items()}
        yield {"text": text, "confidence": known.get(text.strip().upper()), "scores": scores}
