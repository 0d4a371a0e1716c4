"""Entities as targets, "text [Label] text [Label]", and as spans of characters, and back.

Copy:   data/spans.py; standard library only

Spans are those that Prodigy, doccano and Label Studio export: [start, end, label], or an object of
start, end (or start_offset, end_offset) and label (or labels). A text without entities is "".
"""

import functools
import json
import re

WITHIN = re.compile("(?<=[A-Za-z0-9])(?=[A-Za-z0-9])")  # a place in a word


class Wrong(Exception):
    """A row that is no lesson: (what, value) of its Fault."""

    def __str__(self):
        return ": ".join(map(str, self.args))


def make_brackets(labels):
    """{"[Cell Line]": "Cell Line", ...}: the label that each bracketed text stands for."""
    return {f"[{' '.join(label.split())}]": label for label in labels}


@functools.cache
def compile_forms(forms):
    words = "|".join(r"\s+".join(map(re.escape, form.split())) for form in forms)
    return re.compile(rf"(?<!\S)({words})(?!\S)")


def split_entities(text, brackets):
    """[(entity text, label)] in order, and the words after the last label.

    'HeLa cells [Cell Line] TP1 [Gene] and' is [('HeLa cells', 'Cell Line'), ('TP1', 'Gene')] and
    'and', with `brackets` as make_brackets(["Cell Line", "Gene"]) gives them.
    """
    *pieces, rest = compile_forms(tuple(brackets)).split(text)
    pieces = [" ".join(piece.split()) for piece in pieces]
    labels = (brackets[form] for form in pieces[1::2])
    return list(zip(pieces[::2], labels, strict=True)), " ".join(rest.split())


def find_made_up(texts, source):
    """Bracketed words of texts that are not in the source: labels that a task has not."""
    source = " ".join(source.split())
    words = (word for text in texts for word in re.findall(r"(?<!\S)\[[^\[\]]+\](?!\S)", text))
    return [word for word in words if word not in source]


def check_entities(target, source, labels):
    """`target`, if it is "text [Label] ..." with known labels."""
    entities, rest = split_entities(target, make_brackets(labels))
    for word in find_made_up([*(text for text, _ in entities), rest], source):
        raise Wrong(f"{word} in the target is neither a label nor in the source")
    if not all(text for text, _ in entities):
        raise Wrong("a [Label] of the target has no text", repr(target))
    if rest:
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
            (label,) = [span["label"]] if "label" in span else span["labels"]
        said = span.get("text") if isinstance(span, dict) else None
        if said is not None and said != source[start:end]:  # Label Studio counts an emoji twice,
            units = source.encode("utf-16-le")  # as JavaScript does
            start, end = (len(units[: 2 * at].decode("utf-16-le", "ignore")) for at in (start, end))
        whole = type(start) is type(end) is int and isinstance(label, str)
        if not (whole and 0 <= start < end <= len(source)):
            raise ValueError
    except (KeyError, IndexError, TypeError, ValueError):
        what = "a span is no start, end and one label within the text"
        raise Wrong(what, json.dumps(span, default=str)) from None
    if said not in (None, source[start:end]):
        raise Wrong("a span's start and end are not those of its text", repr(span))
    return start, end, label


def find_cut(source, spans):
    """The texts of spans that begin or end between two letters or digits."""
    places = [read_span(span, source)[:2] for span in spans]
    return [source[s:e] for s, e in places if WITHIN.match(source, s) or WITHIN.match(source, e)]


def write_spans(source, spans, labels):
    """Spans of a source as a target "text [Label] text [Label]", "" where there is none."""
    entities, last = [], 0
    for start, end, label in sorted(read_span(span, source) for span in spans):
        text = " ".join(source[start:end].split())
        if label not in labels:
            raise Wrong(f"label is none of {', '.join(labels)}", repr(label))
        if start < last or not text:
            raise Wrong("spans overlap or are empty, which no target can say", repr(text))
        last = end
        entities.append((text, label))
    target = " ".join(f"{text} [{' '.join(label.split())}]" for text, label in entities)
    if split_entities(target, make_brackets(labels)) != (entities, ""):
        raise Wrong("an entity has a label in brackets in its text", repr(target))
    return target


def find_spans(source, target, labels):
    """[(start, end, label)] of a target's entities in its source, each after the one before it.

    Whole words are preferred; an entity that is not in the source, or not as often as in the
    target, has no span, so that none overlap. Where a text stands several times the target does
    not say which is meant: the next is taken.
    """
    spans, last = [], 0
    for text, label in split_entities(target, make_brackets(labels))[0]:
        words = r"\s+".join(map(re.escape, text.split()))
        forms = (rf"(?<!\w){words}(?!\w)", words) if words else ()
        places = [found.span() for form in forms for found in re.finditer(form, source)]
        free = [(s, e) for s, e in places if all(e <= a or b <= s for a, b, _ in spans)]
        for start, end in [*(each for each in free if each[0] >= last), *free][:1]:
            spans.append((start, last := end, label))
    return spans
