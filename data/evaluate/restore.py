"""Entities of a model's outputs with the characters of their source: T5's ids write 'μl' as 'l'.

Needs a tokenizer, but neither torch nor transformers itself.
"""

import functools
import re
import unicodedata

from data.spans import make_brackets, split_entities


def strip_ids(ids, tokenizer):
    """Ids without special tokens, the unknown one aside: it stands for text."""
    hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    return tuple(i for i in ids if i not in hidden)


def mark_unknown(ids, tokenizer):
    """The text of token ids with the unknown token shown and without the other special ones."""
    return tokenizer.decode(list(strip_ids(ids, tokenizer)))


def split_units(word):
    """Characters, together where NFKC joins them: letters and accents, Hangul, vowel signs."""
    units, join = [], functools.partial(unicodedata.normalize, "NFKC")
    for mark in word:
        last = units[-1] if units else ""
        if last and (unicodedata.combining(mark) or join(last + mark) != join(last) + join(mark)):
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
        self.brackets, self.shown = make_brackets(labels), {}
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
        if word not in self.shown:
            same, units = self.write(word) == word, split_units(word)
            self.shown[word] = [(unit, unit if same else self.write(unit)) for unit in units]
        return self.shown[word]

    def find(self, text, source, start):
        """(begin, end) of the entity `text` in `source`, at best after `start`; None if absent."""
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
            found = [(m.start() < start, m.start(), m.end()) for m in re.finditer("u+", mask)]
            return min(found)[1:] if found else None
        found = []
        for match in re.finditer(f"(?={re.escape(core)})", letters):
            begin = owners[match.start()][0]
            end = owners[match.start() + len(core) - 1][1]
            fits = not source[max(begin - 1, 0) : begin + 1].isalnum() or begin == 0
            if text.startswith(self.unknown):
                before = re.search("u+s*$", mask[:begin])
                fits, begin = bool(before), before.start() if before else begin
            if text.endswith(self.unknown):
                after = re.match("s*u+", mask[end:])
                fits, end = fits and bool(after), end + after.end() if after else end
            elif source[end - 1 : end + 1].isalnum() and end < len(source):
                fits = False
            found.append((not fits, begin < start, begin, end))
        return min(found)[2:] if found else None

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
        pairs = zip(texts, entities, strict=True)
        parts = [f"{text} [{label}]" for text, (_, label) in pairs]
        return " ".join(" ".join([*parts, rest]).replace(self.unknown, "").split())
