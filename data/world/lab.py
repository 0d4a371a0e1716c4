"""The lab of the made-up world: wet-lab sentences with entity labels, in WLP's format, from a seed.

Usage:
    python -m data.world.lab                                    # what the splits hold
    python -m data.prepare --task wlp --output FOLDER           # write them

Reads:  data/world/lab.json (names of reagents, devices, actions, ..., and sentence patterns).
Writes: nothing.
Paper:  stands in for WLP (Table 7) where no real data can be had; sizes are Table 5's over ten
        (the test set is larger, for narrower intervals).

A sentence is a pattern whose slots are filled from the lexicon. Most slots admit several classes
(what one adds may be a reagent, a container or "it"), so position alone does not tell the label. Of
the words, drawn from a flat distribution, most in a test sentence occur in no hundred labeled ones,
but do occur in the unlabeled text.
"""

import itertools
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from data.files import make_parser, read_json, run_cli

LEXICON = Path(__file__).with_name("lab.json")
SIZES = {"train": 1200, "dev": 500, "test": 1000, "unlabeled": 11100}
SEED = 2023
ODD_TEMPERATURES = ("room temperature", "-80 °C", "-20 °C", "4 °C")
FORMS = {"Reagent": 0.35, "Location": 0.3, "Device": 0.25}  # share that has a second word
LIKENESS = ("{0} and {1} are alike.", "{0} can replace {1}.", "{0} or {1}, both will do.")


class Row(NamedTuple):
    """A row; what must be known to get it right (of the lab: its entities and their labels); and
    its content, the texts that make it what it is: a line with all of them gives it away."""

    source: str
    target: str
    needs: frozenset | list
    content: tuple


class Lab:
    """The lexicon in a seeded order of frequency, and sentences drawn from it.

    Word i of a class has weight (i + 5) ** -0.4: a few words are common, none dominates.
    """

    def __init__(self):
        lists, order = read_json(LEXICON), random.Random(SEED)
        self.words, self.cumulative = {}, {}
        for label, lines in lists["words"].items():
            words = self.words[label] = " ".join(lines).split()
            order.shuffle(words)
            weights = ((i + 5) ** -0.4 for i in range(len(words)))
            self.cumulative[label] = list(itertools.accumulate(weights))
        # Repeats are weights. [X] in a pattern is an entity of class X or of one that slot X
        # admits, THE an article; W in a remark is the word.
        self.lists = {k: v.split() if isinstance(v, str) else v for k, v in lists.items()}

    def draw_quantity(self, rng, label):
        """A number with a unit of class `label`."""
        if label == "Temperature" and rng.random() < 0.2:
            return rng.choice(ODD_TEMPERATURES)
        unit = rng.choice(self.lists["units"][label].split())
        return f"{rng.choice(self.lists['numbers'])}{'' if unit == '%' else ' '}{unit}"

    def draw_entity(self, rng, label):
        """The text of one entity of class `label`."""
        lists = self.lists
        if label in lists["units"]:
            return self.draw_quantity(rng, label)
        if label == "Numerical":
            return rng.choice(lists["counts"] + lists["numbers"][:10])
        if label == "pH":
            return f"pH {rng.choice(lists['numbers'][:8])}{rng.choice(['', '.5', '.2'])}"
        if label == "Reagent" and rng.random() < 0.12:
            return f"{rng.choice(lists['metals'])} {rng.choice(lists['anions'])}"
        word = rng.choices(self.words[label], cum_weights=self.cumulative[label])[0]
        if label not in FORMS or rng.random() >= FORMS[label]:
            return word
        form = rng.choice(lists["forms"][label].split())
        return f"{word} {form}" if label == "Reagent" else f"{form} {word}"

    def draw_pattern(self, rng):
        pattern = rng.choice(self.lists["patterns"])
        if len(pattern.split()) < 10 and rng.random() < 0.6:
            pattern += " " + rng.choice(self.lists["tails"])
        return (
            f"{rng.choice(self.lists['openers'])} , {pattern}" if rng.random() < 0.12 else pattern
        )

    def draw_labeled(self, rng):
        """A sentence, the target in the form of Table 7."""
        slots, words, entities = self.lists["slots"], [], []
        for part in self.draw_pattern(rng).split():
            if part == "THE":
                words.append(rng.choice(self.lists["articles"]))
            elif part.startswith("["):
                slot = part[1:-1]
                label = rng.choice(slots[slot].split()) if slot in slots else slot
                if label == "Mention" and words and words[-1] in self.lists["articles"]:
                    words.pop()  # "the it" is not English
                words.append(self.draw_entity(rng, label))
                entities.append((words[-1], label))
            else:
                words.append(part)
        source = " ".join(words).replace(" ,", ",") + "."
        target = " ".join(f"{text} [{label}]" for text, label in entities)
        return Row(source, target, entities, (source,))

    def draw_remark(self, rng):
        """One sentence of general text that tells something about a word or two."""
        remarks = self.lists["remarks"]
        label = rng.choice([*remarks, "Reagent", "Action", "Location", "Device", "Method"])
        first, second = self.draw_entity(rng, label), self.draw_entity(rng, label)
        kind = rng.random()
        if kind < 0.25:
            return rng.choice(LIKENESS).format(first, second)
        if kind < 0.5:
            return f"{first} is {rng.choice(self.lists['kinds'][label])}."
        return rng.choice(remarks[label]).replace("W", first) + "."

    def draw_document(self, rng):
        """One line of pre-training text: a lab sentence (60%) or two remarks (40%)."""
        if rng.random() < 0.6:
            return self.draw_labeled(rng).source
        return f"{self.draw_remark(rng)} {self.draw_remark(rng)}"


class HeldOut:
    """Contents that no line may tell; each is a tuple of texts of three words or more.

    A line tells a content if it contains all of its texts, whatever stands around and between.
    """

    def __init__(self, contents=()):
        self.by_start = defaultdict(set)  # first three words of the first text -> contents
        for content in contents:
            self.by_start[tuple(split_words(content[0])[:3])].add(content)

    def told_in(self, line):
        """Whether `line` tells one of the contents."""
        words = split_words(line)
        starts = zip(words, words[1:], words[2:], strict=False)
        near = (content for start in starts for content in self.by_start.get(start, ()))
        return any(all(text in line for text in content) for content in near)

    def draw_lines(self, draw, count):
        """`count` lines of `draw()`, without those that tell one of the contents."""
        return list(itertools.islice(itertools.filterfalse(self.told_in, iter(draw, None)), count))


def split_words(text):
    """The words without what closes a sentence."""
    return [word.rstrip(".,?") for word in text.split()]


def fill_splits(draw, rng, sizes, new=frozenset()):
    """{split: Rows of draw(rng)}, the splits in the order of `sizes`.

    No source is in two splits or twice in one, and no row tells the content of a dev or test row
    drawn before: the question or claim itself is new, whatever opens it. No train or unlabeled row
    needs anything `new`.
    """
    seen, contents, splits = set(), [], {}
    for split, size in sizes.items():
        rows, scored, held = [], split in ("dev", "test"), HeldOut(contents)
        while len(rows) < size:
            row = draw(rng)
            if row.source in seen or held.told_in(row.source):
                continue
            if scored or new.isdisjoint(row.needs):
                seen.add(row.source)
                rows.append(row)
        splits[split] = rows
        contents += [row.content for row in rows if scored]
    return splits


def draw_rows(sizes=SIZES):
    """{split: Rows}, the same ones each time."""
    return fill_splits(Lab().draw_labeled, random.Random(f"splits {SEED}"), sizes)


def draw_splits(sizes=SIZES):
    """{split: rows as in the files}.

    Unlabeled rows have targets too, for a simulated annotator; nothing else may see these.
    """
    splits = draw_rows(sizes).items()
    return {
        split: [{"source": r.source, "target": r.target} for r in rows] for split, rows in splits
    }


def draw_pretraining_text(count):
    """`count` lines of unlabeled text, none of which contains a dev or test source."""
    lab, rng, splits = Lab(), random.Random(f"text {SEED}"), draw_rows()
    held = HeldOut(row.content for row in splits["dev"] + splits["test"])
    return held.draw_lines(lambda: lab.draw_document(rng), count)


def share_known(entities, rows):
    """The share of (text, label) entities all of whose words some source of `rows` holds."""
    known = {word for row in rows for word in row.source.rstrip(".").split()}
    known |= {word.rstrip(",") for word in known}
    return sum(all(word in known for word in text.split()) for text, _ in entities) / len(entities)


def main(argv=None):
    """Print sizes, lengths, labels and what of the test entities other splits hold."""
    make_parser(__doc__).parse_args(argv)
    splits = draw_rows()
    test = splits["test"]
    flat = [entity for row in test for entity in row.needs]
    for split, rows in splits.items():
        print(f"{split}: {len(rows)} rows")
    words = sum(len(row.source.split()) for row in test) / len(test)
    print(f"test: {words:.1f} words and {len(flat) / len(test):.1f} entities a row")
    counts = Counter(label for _, label in flat).most_common()
    print("labels: " + ", ".join(f"{label} {count}" for label, count in counts))
    for size in (100, 500, 1200):
        rows = splits["train"][:size]
        known = {entity for row in rows for entity in row.needs}
        new = sum(entity not in known for entity in flat) / len(flat)
        print(
            f"N={size}: {new:.0%} of the test entities not among the labeled ones, "
            f"{1 - share_known(flat, rows):.0%} hold a word that no labeled sentence holds"
        )
    known = share_known(flat, splits["unlabeled"])
    print(f"unlabeled: {known:.1%} of the test entities have all words in it")


if __name__ == "__main__":
    run_cli(main)
