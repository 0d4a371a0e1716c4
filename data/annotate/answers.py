"""What an LLM's answer says: a label, or why it is none. No answer is ever made into a class.

The paper does not say what became of answers that are no label (Appendix E). Models wrap labels: in
reasoning, fences, JSON, lead-ins ("Here are the entities:", "Answer:"), list marks, quotes and
bold, and they explain themselves afterwards. What is known to be such a wrapper is taken off,
unless the source itself begins so; anything else that is no label is counted.
"""

import json
import re
from contextlib import suppress
from itertools import dropwhile

THINK = "think|thinking|thought|reasoning|analysis|scratchpad"
REASONING = re.compile(rf"^.*(</({THINK})>|\[/think\]|<\|message\|>)", re.IGNORECASE | re.DOTALL)
UNFINISHED = re.compile(rf"\s*(<({THINK})>|\[think\])", re.IGNORECASE)
FENCE = re.compile(r"```(?:[\w-]*\n)?(.*?)(?:```|\Z)", re.DOTALL)
NAMES = (
    "answer|output|label|labels|category|class|classification|stance|sentiment|verdict|prediction|"
    "entity|entities|named entities|response|result|paraphrase|rewrite|rewritten|text"
)
OPENING = "sure|certainly|of course|okay|ok|here is|here are|here['’]s|based on|the following"
LEAD_IN = re.compile(
    rf"(?P<mark>[*_]{{0,2}}(?:(?:the |my )?(?:final |correct |short )?(?:{NAMES})\b"
    rf"(?: sentence)?(?: is| are)?|(?:{OPENING})\b[^:\n]{{0,80}})\s*:[*_]{{0,2}})\s*(?P<rest>.*)",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?P<mark>\d{1,2}[.)])\s+(?P<rest>.+)")  # may be a name, such as 1. FC Köln
WRAPPERS = (  # what is taken off, and what stays; the latter is empty where a line only leads in
    re.compile(r"(?P<mark>\*\*|__|[\"'`*_])(?P<rest>(?:(?!(?P=mark)).)+)(?P=mark)"),
    re.compile(r"(?P<mark>[“«‘])(?P<rest>[^“”«»‘]+)[”»’]"),
    re.compile(r"(?P<mark>[-*•–+])\s+(?P<rest>.+)"),
    LEAD_IN,
)
NOTHING = "none"  # what an annotator writes where a text has no entities: silence is no answer
EDGES = " \t\"'`*_.:“”‘’«»()[]{}<>"  # around the name of a class
SORRY = (
    r"(?:i['’]?m|i am)?\s*(?:really |very |so )?(?:sorry|afraid)|(?:my )?apologies|i apologi[sz]e|"
    r"unfortunately|as an ai"
)
CANNOT = r"i(?:['’]m| am)? (?:can(?:no|['’]?)t|can not|unable to|not able to|won['’]t|must decline)"
TASK = "help|assist|comply|answer|fulfil|fulfill|provide|continue|respond|generate|create|engage"
TASK += "|paraphrase|rewrite|classify|label|determine"
REFUSAL = re.compile(  # the whole answer, so that "I can't help myself" is a title
    rf"\W*(?:(?:{SORRY})\b.{{0,60}}?\b{CANNOT} (?:to )?(?:{TASK})\b.*|"
    rf"{CANNOT} (?:to )?(?:{TASK})\b(?: you)?(?: with)? (?:that|this|your|the request)\b.*|"
    rf"(?:(?:{SORRY})\b.{{0,20}})?i (?:don['’]t|do not) know(?: the answer[.!]?|\.))",
    re.IGNORECASE,
)
NO_LABEL = re.compile(rf"\W*(?:(?:{SORRY})\b|{CANNOT}\b)", re.IGNORECASE)  # where it must be one


class Reader:
    """Reads the answers of one task."""

    def __init__(self, task):
        self.labels, self.metric = task.labels, task.metric
        names = "|".join(map(re.escape, sorted(self.labels, key=len, reverse=True)))
        self.entity = re.compile(rf"\s*(.*?)\s*\[({names})\]", re.IGNORECASE | re.DOTALL)
        self.names = {}  # a name in any case, where it is only one label's
        for label in self.labels:
            fold = label.casefold()
            self.names[fold] = None if fold in self.names else label

    def read(self, text, source, finish="stop"):
        """(target, None) of an answer, or (None, why it is none)."""
        if finish in ("refusal", "too long"):
            return None, finish
        plain = unwrap(text, source)
        if plain is not None:
            plain = self.read_json(plain)
        if plain is None:
            return None, "unparseable"
        read = {"classes": self.read_class, "entities": self.read_entities}
        target, reason = read.get(self.metric, self.read_line)(plain, source, finish == "length")
        if target is None and finish == "length":
            reason = "truncated"
        elif target is None and reason == "unparseable" and NO_LABEL.match(plain):
            reason = "refusal"
        return target, reason

    def read_json(self, text):
        """The plain form of an answer in JSON; any other text as it is; None if it is neither."""
        inner = text[text.find("{") : text.rfind("}") + 1] if self.labels else ""
        for part in (text, inner):  # the latter behind a lead-in without a fence
            with suppress(ValueError, RecursionError):
                return self.read_value(json.loads(part), text)
        return text

    def read_value(self, value, text):
        pairs = value.get("entities") if isinstance(value, dict) else value
        if self.metric == "entities" and isinstance(pairs, list):
            try:
                return " ".join(f"{pair['text']} [{pair['label']}]" for pair in pairs) or NOTHING
            except (KeyError, TypeError):
                return None
        if isinstance(value, dict):
            key, inner = next(iter(value.items()), ("", None))
            named = len(value) == 1 and re.fullmatch(NAMES, key.strip(), re.IGNORECASE)
            inner = value.get("label", inner if named else None)
            if isinstance(inner, str) or self.labels:
                return inner if isinstance(inner, str) else None
        return text

    def read_class(self, text, source, cut):
        """The first line, or else the one that a lead-in such as "Category:" names."""
        lines = list(dropwhile(lambda line: not peel(line), split_lines(text)))  # only lead in
        if not lines:
            return None, "empty"
        named = {self.find_label(line) for line in lines[1:] if LEAD_IN.fullmatch(line)}
        label = self.find_label(lines[0]) or (named.pop() if len(named) == 1 else None)
        return label, None if label else "unparseable"

    def find_label(self, text):
        for form in (text, peel(text), peel(text).strip(EDGES)):
            if form in self.labels:
                return form
            if self.names.get(form.casefold()):
                return self.names[form.casefold()]
        return None

    def read_entities(self, text, source, cut):
        """Entity [Label] ..., each of them text of the source, with known labels; "" for none."""
        if not text.strip():
            return None, "empty"
        if cut:
            return None, "truncated"
        blocks = re.split(r"\n\s*\n", text.strip())
        while blocks[1:] and not self.entity.search(blocks[-1]):  # an explanation
            blocks.pop()
        first = next(filter(None, map(peel, split_lines(text))), "")
        text, source = (" ".join(each.split()) for each in (" ".join(blocks), source))
        pairs = self.entity.findall(text)
        if not pairs and first.strip(EDGES).casefold() == NOTHING:
            return "", None
        if not pairs or self.entity.sub("", text).strip(" .,;*`-"):
            return None, "unparseable"
        found = [(find_entity(entity, source), self.find_label(label)) for entity, label in pairs]
        if not all(entity and label for entity, label in found):
            odd = any(not said or ("[" in said and said not in source) for said, _ in pairs)
            return None, "unparseable" if odd else "not in the source"
        return " ".join(f"{entity} [{label}]" for entity, label in found), None

    def read_line(self, text, source, cut):
        """Free text: the first line, without what wraps it."""
        if REFUSAL.fullmatch(" ".join(text.split())) and not NO_LABEL.match(source):
            return None, "refusal"
        lines = split_lines(text)
        said = (peel(line, source, numbered=len(lines) > 1) for line in lines)
        said = list(dropwhile(lambda line: not line, said))
        if not said:
            return None, "empty"
        return (None, "truncated") if cut and len(said) == 1 else (said[0], None)


def split_lines(text):
    """The lines that are not blank, at "\\n" alone, each with single spaces."""
    return [" ".join(line.split()) for line in text.split("\n") if line.strip()]


def unwrap(text, source):
    """What follows the reasoning, in the first fence if any, without the source repeated before the
    answer or made-up inputs behind it, as small models write on in the form of the examples; None
    where it answers another input."""
    text = REASONING.sub("", text)
    text = "" if UNFINISHED.match(text) else text.strip()
    fence = FENCE.search(text)
    if fence and fence[1].strip():
        text = fence[1].strip()
    text = re.split(r"\n\s*Input:", text)[0]
    if not text.startswith("Input:") or source.startswith("Input:"):
        return text
    said, _, rest = text.removeprefix("Input:").partition("\n")
    return rest if said.split() == source.split() else None


def peel(line, source="", numbered=True):
    """`line` without lead-in, list mark, quotes and bold, unless `source` begins with them, too."""
    source = source.strip().casefold()
    while True:
        for wrapper in (*WRAPPERS, *[NUMBER] * numbered):
            match = wrapper.fullmatch(line)
            if match and not source.startswith(match["mark"].casefold()):
                line = match["rest"].strip()
                break
        else:
            return line


def find_entity(text, source):
    """An entity as it stands in `source`: as it was said, or without what wraps it; else None."""
    text = text.strip()
    bare = re.sub(r"^(?:(?:[,;|]|and\b)\s*)+", "", text)
    for form in (text, bare, peel(bare), peel(bare.rpartition(": ")[2]), text.strip(EDGES + ",;")):
        if form and form in source:
            return form
    return None
