"""Rows of evaluate.py: read, checked, and as the scorers take them."""

import unicodedata
from pathlib import Path

from data.evaluate.metrics import Row
from data.files import UserError, read_jsonl


def check_rows(rows, path, task, keys):
    """Refuse values that are no text, and targets that the task cannot have."""
    labels = {label.upper() for label in task.labels}
    for number, row in enumerate(rows, 1):
        for key in (key for key in keys if key in row):
            several = task.metric == "answers" and key in ("target", "target_decoded")
            values = row[key] if several and isinstance(row[key], list) else [row[key]]
            if not values or not all(isinstance(value, str) for value in values):
                raise UserError(f"{path} row {number}: {key!r} is no text but {row[key]!r}")
        if task.metric == "classes" and row.get("target", "").strip().upper() not in labels:
            known = f"is no label of this task; known: {', '.join(task.labels)}"
            raise UserError(f"{path} row {number}: target {row['target']!r} {known}")


def read_rows(predictions, data, task):
    """The rows of a predictions file, checked against the data file if there is one."""
    rows = read_jsonl(predictions, ("prediction",) if data else ("source", "target", "prediction"))
    if data:
        examples = read_jsonl(data)
        if len(examples) != len(rows):
            raise UserError(
                f"{predictions}: {len(rows):,} predictions for the {len(examples):,} rows of {data}"
            )
        for number, (row, example) in enumerate(zip(rows, examples, strict=True), 1):
            for key in ("source", "target", *["half"] * ("half" in example)):
                if row.setdefault(key, example[key]) != example[key]:
                    raise UserError(f"{predictions} row {number}: not the {key!r} of {data}")
    rows = [{k: v for k, v in row.items() if k != "generated" or v is not None} for row in rows]
    decoded = ("generated", "target_decoded", "source_decoded")
    check_rows(rows, predictions, task, ("source", "target", "half", "prediction", *decoded))
    return rows


def compose(text):
    """A text, or each of a list, in Unicode's form NFC; None as it is."""
    if isinstance(text, list):
        return [compose(each) for each in text]
    return text and unicodedata.normalize("NFC", text)


def make_rows(rows, vocabulary=None, max_target_length=None):
    """Rows for the scorers; `vocabulary`, a SentencePiece model, decodes the released side."""
    written, made = read_vocabulary(vocabulary) if vocabulary else None, []
    for row in rows:
        strict = [compose(row[key]) for key in ("source", "target", "prediction")]
        output = row.get("generated", row["prediction"])
        source = row.get("source_decoded", row["source"])
        target = row.get("target_decoded", row["target"])
        if written:
            answers = row["target"] if isinstance(row["target"], list) else [row["target"]]
            target = [written(answer, max_target_length) for answer in answers]
            target = target if isinstance(row["target"], list) else target[0]
            source, output = written(row["source"], max_target_length), written(output)
        raw = compose(row.get("generated"))
        made.append(Row(*strict, raw, source, target, output, row.get("half")))
    return made


def read_vocabulary(path):
    """A function text -> text as token ids of this SentencePiece model give it back."""
    import sentencepiece

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; --released-vocabulary takes a spiece.model")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):
        raise UserError(f"{path}: no SentencePiece model") from None

    def write(text, limit=None):
        ids = model.encode(text)
        ids = ids if limit is None or len(ids) < limit else ids[: limit - 1]  # and one for </s>
        return model.decode([i for i in ids if i != model.unk_id()])

    return write
