"""What a model's outputs stand for where token ids cannot write it: T5's write 'μl' as 'l'.

A class is known by its label's ids, entities get the characters of their source. Needs a
tokenizer, but neither torch nor transformers itself.
"""

import functools
import re
import unicodedata

from data.files import UserError
from data.spans import make_brackets, split_entities


def encode(texts, tokenizer, limit, kind="text"):
    """(ids of each text as training cuts them, end token and all; tokens that each has uncut).

    `kind` is "text" of sources and "text_target" of targets.
    """
    ids = tokenizer(**{kind: texts}).input_ids
    cut = [row if len(row) <= limit else [*row[: limit - 1], row[-1]] for row in ids]
    return cut, [len(row) for row in ids]


def strip_ids(ids, tokenizer):
    """Ids without special tokens, the unknown one aside: it stands for text."""
    hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return tuple(i for i in ids if i not in hidden)


def mark_unknown(ids, tokenizer):
    """The text of token ids with the unknown token shown and without the other special ones."""
    return tokenizer.decode(list(strip_ids(ids, tokenizer)))


# --- classes ---------------------------------------------------------------------------------


def encode_labels(task, tokenizer, limit):
    """{label: (its ids as in targets, cut to `limit`; tokens uncut)} of classes and entities."""
    form, found = {"classes": "{}", "entities": "[{}]"}.get(task.metric), {}
    for label in task.labels if form else ():
        (ids,), (size,) = encode([form.format(label)], tokenizer, limit, "text_target")
        found[label] = ids, size
    return found


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
        self.tokenizer, self.by_ids, self.targets = tokenizer, {}, {}
        for label, (ids, _) in encode_labels(task, tokenizer, limit).items():
            own = strip_ids(ids, tokenizer)
            if not own or own in self.by_ids:
                what = f"no token ids of its own within {limit} tokens, so no output can be told to"
                raise UserError(f"label {label!r} has {what} be it; rename it or allow more tokens")
            self.by_ids[own], self.targets[label] = label, ids
        texts = [mark_unknown(ids, tokenizer).strip().upper() for ids in self.targets.values()]
        pairs = zip(texts, self.targets, strict=True)
        self.by_text = {text: label for text, label in pairs if texts.count(text) == 1}

    def read(self, ids, text, marked):
        """The label of an output: its ids, its text, its text with unknown tokens shown."""
        label = self.by_ids.get(strip_ids(ids, self.tokenizer))
        label = label or self.by_text.get(marked.strip().upper())
        return text if label is None or label.upper() == text.strip().upper() else label


# --- entities --------------------------------------------------------------------------------


def split_units(word):
    """Characters, together where NFKC joins them: letters and accents, Hangul, vowel signs."""
    units, join = [word[:1]], functools.partial(unicodedata.normalize, "NFKC")
    for mark in word[1:]:
        last = units[-1]
        if unicodedata.combining(mark) or join(last + mark) != join(last) + join(mark):
            units[-1] += mark
        else:
            units.append(mark)
    return units


class Restorer:
    """Gives entities the characters of their source that the tokenizer cannot write.

    Each entity is looked up in its source after the entity before it, whitespace and unwritable
    characters aside; an unknown token at its edge takes in the unwritable characters there. Text
    that stands in the source as generated, or that is not found in it, stays as generated.
    """

    def __init__(self, tokenizer, labels=()):
        self.tokenizer, self.unknown = tokenizer, tokenizer.unk_token or "\0"
        self.brackets, self.show_word = make_brackets(labels), functools.cache(self.show_word)
        texts = [mark_unknown(tokenizer(text).input_ids, tokenizer) for text in self.brackets]
        forms = [" ".join(text.split()) for text in texts]  # "[<5]" comes back as "[<unk>5]"
        for form, label in zip(forms, list(self.brackets.values()), strict=True):
            if form and forms.count(form) == 1:
                self.brackets.setdefault(form, label)

    def write(self, text):
        """What of `text` comes back from token ids."""
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.tokenizer.decode(ids, skip_special_tokens=True).strip()

    def show_word(self, word):
        """[(unit of a word, what comes back of it)]."""
        same = self.write(word) == word
        return [(unit, unit if same else self.write(unit)) for unit in split_units(word)]

    def find(self, text, source, start):
        """(begin, end) of the entity `text` in `source`, at best after `start`; () if absent."""
        letters, owners, mask = "", [], ["s"] * len(source)  # space, word, unwritable
        for word in re.finditer(r"\S+", source):
            begin = word.start()
            for unit, shown in self.show_word(word.group()):
                shown, end = "".join(shown.split()), begin + len(unit)
                letters += shown
                owners += [(begin, end)] * len(shown)
                mask[begin:end] = ("w" if shown else "u") * len(unit)
                begin = end
        core, mask = "".join(text.replace(self.unknown, "").split()), "".join(mask)
        if not core:
            found = [(m.start() < start, *m.span()) for m in re.finditer("u+", mask)]
            return min(found, default=())[1:]
        found = []
        for match in re.finditer(f"(?={re.escape(core)})", letters):
            begin = owners[match.start()][0]
            end = owners[match.start() + len(core) - 1][1]
            fits = begin == 0 or not source[begin - 1 : begin + 1].isalnum()
            if text.startswith(self.unknown):
                before = re.search("u+s*$", mask[:begin])
                fits, begin = bool(before), before.start() if before else begin
            if text.endswith(self.unknown):
                after = re.match("s*u+", mask[end:])
                fits, end = fits and bool(after), end + after.end() if after else end
            elif source[end - 1 : end + 1].isalnum() and end < len(source):
                fits = False
            found.append((not fits, begin < start, begin, end))
        return min(found, default=())[2:]

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

    def restore_output(self, output, source):
        """An output, unknown tokens shown, with its entities as the source writes them."""
        entities, rest = split_entities(output, self.brackets)
        texts = self.restore([text for text, _ in entities], source)
        parts = [f"{text} [{entity[1]}]" for text, entity in zip(texts, entities, strict=True)]
        return " ".join(" ".join([*parts, rest]).replace(self.unknown, "").split())
