"""Entities as targets, "text [Label] text [Label]", and as spans of characters, and back.

Reads:  nothing
Writes: nothing
Copy:   data/spans.py; standard library only

Spans are those that Prodigy, doccano and Label Studio export: [start, end, label], or an object of
start, end (or start_offset, end_offset) and label (or labels). A text without entities is "".
"""

import json
import re


class Wrong(Exception):
    """A row that is no lesson: (what, value) of its Fault."""

    def __str__(self):
        return ": ".join(map(str, self.args))


def split_entities(target, labels):
    """([(text before a [Label], label)], what follows the last) of a target."""
    names = {" ".join(label.split()): label for label in labels}
    words = "|".join(r"\s+".join(map(re.escape, name.split())) for name in names)
    *pieces, rest = re.split(rf"(?<!\S)\[({words})\](?!\S)", target)
    pairs = zip(pieces[::2], pieces[1::2], strict=True)
    return [(" ".join(text.split()), names[" ".join(name.split())]) for text, name in pairs], rest


def check_entities(target, source, labels):
    """`target`, if it is "text [Label] ..." with known labels."""
    entities, rest = split_entities(target, labels)
    for text in [*(text for text, _ in entities), rest]:
        for word in re.findall(r"(?<!\S)\[[^\[\]]+\](?!\S)", text):
            if word not in source:  # else it is text
                raise Wrong(f"{word} in the target is neither a label nor in the source")
    if rest.strip():
        raise Wrong("target does not end with a [Label]", repr(target))
    return target


def read_span(span, source):
    """(start, end, label) of a span in any of the exports; characters, the end excluded."""
    try:
        if isinstance(span, list):
            start, end, label = span
        else:
            start = span["start"] if "start" in span else span["start_offset"]
            end = span["end"] if "end" in span else span["end_offset"]
            label = span["label"] if "label" in span else span["labels"][0]
        said = span.get("text") if isinstance(span, dict) else None
        if said is not None and said != source[start:end]:  # Label Studio counts an emoji twice,
            units = source.encode("utf-16-le")  # as JavaScript does
            start, end = (len(units[: 2 * at].decode("utf-16-le", "ignore")) for at in (start, end))
        whole = type(start) is type(end) is int and isinstance(label, str)
        if not (whole and 0 <= start < end <= len(source)):
            raise ValueError
    except (KeyError, IndexError, TypeError, ValueError):
        raise Wrong("a span is no start, end and label within the text", json.dumps(span)) from None
    if said not in (None, source[start:end]):
        raise Wrong("a span's start and end are not those of its text", json.dumps(span))
    return start, end, label


def write_spans(source, spans, labels):
    """Spans of a source as a target "text [Label] text [Label]", "" where there is none."""
    target, last, expected = [], 0, []
    for start, end, label in sorted(read_span(span, source) for span in spans):
        text = " ".join(source[start:end].split())
        if label not in labels:
            raise Wrong(f"label is none of {', '.join(labels)}", repr(label))
        if start < last or not text:
            raise Wrong("spans overlap or are empty, which no target can say", repr(text))
        last = end
        expected.append((text, label))
        target.append(f"{text} [{' '.join(label.split())}]")
    if split_entities(" ".join(target), labels) != (expected, ""):
        raise Wrong("an entity has a label in brackets in its text", repr(" ".join(target)))
    return " ".join(target)


def find_spans(source, target, labels):
    """[(start, end, label)] of a target's entities in its source, each after the one before it.

    Whole words are preferred; an entity that is not in the source has no span. Where a text stands
    several times the target does not say which is meant: the next is taken.
    """
    spans, last = [], 0
    for text, label in split_entities(target, labels)[0]:
        words = r"\s+".join(map(re.escape, text.split()))
        for form, start in ((rf"(?<!\w){words}(?!\w)", last), (words, last), (words, 0)):
            found = words and re.compile(form).search(source, start)
            if found:
                spans.append((found.start(), last := found.end(), label))
                break
    return spans
