"""The lab of the made-up world: wet-lab sentences with entity labels, in WLP's format, from a seed.

Usage:
    python -m data.world.lab                                    # what the splits hold
    python -m data.prepare --task wlp --output FOLDER           # write them

Reads:  data/world/lab.json (names of reagents, devices, actions, ..., and sentence patterns).
Writes: nothing.
Paper:  stands in for WLP (Table 7) where no real data can be had; sizes are Table 5's over ten
        (the test set is larger, for narrower intervals).

A sentence is a pattern whose slots are filled from the lexicon. Most slots admit several classes
(what one adds may be a reagent, a container or "it"), so position alone does not tell the label
and a model must know the words. The words are drawn from a flat distribution, so most of those
in a test sentence never occur in a hundred labeled ones, but do occur in the unlabeled text, which
is of the test's own kind (much of the paper's is of another: Appendix D).
"""

import itertools
import random
import re
from collections import Counter
from pathlib import Path

from data.files import make_parser, read_json, run_cli

LEXICON = Path(__file__).with_name("lab.json")
SIZES = {"train": 1200, "dev": 500, "test": 1000, "unlabeled": 11100}
SEED = 2023
ODD_TEMPERATURES = ("room temperature", "-80 °C", "-20 °C", "4 °C")
FORMS = {"Reagent": 0.35, "Location": 0.3, "Device": 0.25}  # share that has a second word
LIKENESS = ("{0} and {1} are alike.", "{0} can replace {1}.", "{0} or {1}, both will do.")


class Lab:
    """The lexicon in a seeded order of frequency, and sentences drawn from it.

    Word i of a class has weight (i + 5) ** -0.4: a few words are common, none dominates.
    """

    def __init__(self):
        lists = read_json(LEXICON)
        order = random.Random(SEED)
        self.words, self.cumulative = {}, {}
        for label, lines in lists["words"].items():
            words = self.words[label] = " ".join(lines).split()
            order.shuffle(words)
            weights = ((i + 5) ** -0.4 for i in range(len(words)))
            self.cumulative[label] = list(itertools.accumulate(weights))
        # Repeats are weights. [X] in a pattern is an entity of class X or of one that slot X
        # admits, THE an article; W in a remark is the word.
        self.slots = {slot: classes.split() for slot, classes in lists["slots"].items()}
        self.patterns, self.tails = lists["patterns"], lists["tails"]
        self.articles, self.openers = lists["articles"].split(), lists["openers"].split()
        self.numbers, self.counts = lists["numbers"].split(), lists["counts"].split()
        self.units = {label: units.split() for label, units in lists["units"].items()}
        self.metals, self.anions = lists["metals"].split(), lists["anions"].split()
        self.forms = {label: forms.split() for label, forms in lists["forms"].items()}
        self.remarks, self.kinds = lists["remarks"], lists["kinds"]

    def draw_word(self, rng, label):
        """One word of an open class, by its frequency."""
        return rng.choices(self.words[label], cum_weights=self.cumulative[label])[0]

    def draw_quantity(self, rng, label):
        """A number with a unit of class `label`."""
        if label == "Temperature" and rng.random() < 0.2:
            return rng.choice(ODD_TEMPERATURES)
        unit = rng.choice(self.units[label])
        return f"{rng.choice(self.numbers)}{'' if unit == '%' else ' '}{unit}"

    def draw_entity(self, rng, label):
        """The text of one entity of class `label`."""
        if label in self.units:
            return self.draw_quantity(rng, label)
        if label == "Numerical":
            return rng.choice(self.counts + self.numbers[:10])
        if label == "pH":
            return f"pH {rng.choice(self.numbers[:8])}{rng.choice(['', '.5', '.2'])}"
        if label == "Reagent" and rng.random() < 0.12:
            return f"{rng.choice(self.metals)} {rng.choice(self.anions)}"
        word = self.draw_word(rng, label)
        if label not in FORMS or rng.random() >= FORMS[label]:
            return word
        form = rng.choice(self.forms[label])
        return f"{word} {form}" if label == "Reagent" else f"{form} {word}"

    def draw_pattern(self, rng):
        pattern = rng.choice(self.patterns)
        if len(pattern.split()) < 10 and rng.random() < 0.6:
            pattern += " " + rng.choice(self.tails)
        return f"{rng.choice(self.openers)} , {pattern}" if rng.random() < 0.12 else pattern

    def draw_labeled(self, rng):
        """One sentence as (source, target), the target in the form of Table 7."""
        words, entities = [], []
        for part in self.draw_pattern(rng).split():
            if part == "THE":
                words.append(rng.choice(self.articles))
            elif part.startswith("["):
                slot = part[1:-1]
                label = rng.choice(self.slots[slot]) if slot in self.slots else slot
                if label == "Mention" and words and words[-1] in self.articles:
                    words.pop()  # "the it" is not English
                text = self.draw_entity(rng, label)
                words.append(text)
                entities.append(f"{text} [{label}]")
            else:
                words.append(part)
        return " ".join(words).replace(" ,", ",") + ".", " ".join(entities)

    def draw_remark(self, rng):
        """One sentence of general text that tells something about a word or two."""
        label = rng.choice([*self.remarks, "Reagent", "Action", "Location", "Device", "Method"])
        first, second = self.draw_entity(rng, label), self.draw_entity(rng, label)
        kind = rng.random()
        if kind < 0.25:
            return rng.choice(LIKENESS).format(first, second)
        if kind < 0.5:
            return f"{first} is {rng.choice(self.kinds[label])}."
        return rng.choice(self.remarks[label]).replace("W", first) + "."

    def draw_document(self, rng):
        """One line of pre-training text: a lab sentence (60%) or two remarks (40%)."""
        if rng.random() < 0.6:
            return self.draw_labeled(rng)[0]
        return f"{self.draw_remark(rng)} {self.draw_remark(rng)}"


class HeldOut:
    """Contents that no line may tell; each is a tuple of texts of three words or more.

    A line tells a content if it contains all of its texts, whatever stands around and between.
    """

    def __init__(self, contents=()):
        self.by_start = {}  # first three words of the first text -> contents
        self.add(contents)

    def add(self, contents):
        for content in contents:
            start = tuple(split_words(content[0])[:3])
            self.by_start.setdefault(start, set()).add(content)

    def told_in(self, line):
        """Whether `line` tells one of the contents."""
        words = split_words(line)
        starts = zip(words, words[1:], words[2:], strict=False)
        near = (content for start in starts for content in self.by_start.get(start, ()))
        return any(all(text in line for text in content) for content in near)

    def draw_lines(self, draw, count):
        """`count` lines of `draw()`, without those that tell one of the contents."""
        lines = (draw() for _ in itertools.count())
        return list(itertools.islice(itertools.filterfalse(self.told_in, lines), count))


def split_words(text):
    """The words without what closes a sentence."""
    return [word.rstrip(".,?") for word in text.split()]


def draw_splits(sizes=SIZES):
    """{split: rows}, no source in two splits or twice in one, the same ones each time.

    Unlabeled rows have targets too, for a simulated annotator; nothing else may see these.
    """
    lab, rng, seen, splits = Lab(), random.Random(f"splits {SEED}"), set(), {}
    for split, size in sizes.items():
        rows = splits[split] = []
        while len(rows) < size:
            source, target = lab.draw_labeled(rng)
            if source not in seen:
                seen.add(source)
                rows.append({"source": source, "target": target})
    return splits


def draw_pretraining_text(count):
    """`count` lines of unlabeled text, none of which contains a dev or test source."""
    splits = draw_splits()
    held = HeldOut((row["source"],) for split in ("dev", "test") for row in splits[split])
    lab, rng = Lab(), random.Random(f"text {SEED}")
    return held.draw_lines(lambda: lab.draw_document(rng), count)


def read_entities(target):
    """The (text, label) pairs of a target."""
    return re.findall(r"(\S.*?) \[([A-Za-z-]+)\]", target)


def format_stats():
    """Sizes, lengths, labels and what of the test entities other splits hold, as text."""
    splits = draw_splits()
    test = [read_entities(row["target"]) for row in splits["test"]]
    flat = [pair for row in test for pair in row]
    words = sum(len(row["source"].split()) for row in splits["test"]) / len(test)
    lines = [f"{split}: {len(rows)} rows" for split, rows in splits.items()]
    lines += [f"test: {words:.1f} words and {len(flat) / len(test):.1f} entities a row"]
    counts = Counter(label for _, label in flat)
    lines += ["labels: " + ", ".join(f"{name} {n}" for name, n in counts.most_common())]
    for size in (100, 500, 1200):
        rows = splits["train"][:size]
        pairs = {pair for row in rows for pair in read_entities(row["target"])}
        new_pair = sum(pair not in pairs for pair in flat) / len(flat)
        new_word = 1 - share_known(flat, rows)
        lines += [
            f"N={size}: {new_pair:.0%} of the test entities not among the labeled ones, "
            f"{new_word:.0%} hold a word that no labeled sentence holds"
        ]
    known = share_known(flat, splits["unlabeled"])
    return "\n".join([*lines, f"unlabeled: {known:.1%} of the test entities have all words in it"])


def share_known(entities, rows):
    """The share of (text, label) entities all of whose words some source of `rows` holds."""
    known = {word for row in rows for word in row["source"].rstrip(".").split()}
    known |= {word.rstrip(",") for word in known}
    return sum(all(word in known for word in text.split()) for text, _ in entities) / len(entities)


def main(argv=None):
    make_parser(__doc__).parse_args(argv)
    print(format_stats())


if __name__ == "__main__":
    run_cli(main)
