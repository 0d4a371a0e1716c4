"""Generate the mini world: wet-lab sentences with entity labels, in WLP's format, from a seed.

Usage:
    python -m data.world.lab --output data/prepared/mini/wlp          # the four splits
    python -m data.world.lab --stats                                  # what is in them

Reads:  data/world/lab.json (names of reagents, devices, actions, ...).
Writes: OUTPUT/{train,dev,test}.jsonl with source and target, OUTPUT/unlabeled.jsonl with source.
Paper:  stands in for WLP (Table 7) where no real data can be had; sizes are Table 5's over ten
        (the test set is larger, for narrower intervals).

A sentence is a pattern whose slots are filled from the lexicon. Most slots admit several classes
(what one adds may be a reagent, a container or "it"), so position alone does not tell the label
and a model must know the words. The words are drawn from a flat distribution, so most of those
in a test sentence never occur in a hundred labeled ones, but do occur in the unlabeled text.
"""

import argparse
import bisect
import itertools
import json
import os
import random
import re
import sys
from collections import Counter
from pathlib import Path

LEXICON = Path(__file__).with_name("lab.json")
SIZES = {"train": 1200, "dev": 500, "test": 1000, "unlabeled": 11100}
SEED = 2023

NUMBERS = (
    "1 2 3 4 5 6 8 10 12 15 20 25 30 35 37 40 42 45 50 55 60 65 70 72 75 80 90 94 95 100 120 "
    "150 200 250 300 400 500 600 800 1000"
).split()
UNITS = {
    "Amount": "µl ml l mg g ng µg kg pmol".split(),
    "Time": "min s h days weeks minutes hours seconds".split(),
    "Speed": ["rpm", "xg", "krpm"],
    "Temperature": ["°C", "degrees"],
    "Concentration": "mM µM nM M % mg/ml".split(),
    "Size": "mm cm µm kb bp nm".split(),
}
COUNTS = "two three four five six eight ten once twice several".split()
METALS = (
    "sodium potassium magnesium calcium ammonium zinc copper iron manganese lithium nickel barium"
).split()
ANIONS = (
    "chloride sulfate nitrate phosphate acetate citrate carbonate hydroxide bromide oxide"
).split()
REAGENT_FORMS = "buffer solution medium stock powder extract mixture".split()
PLACE_FORMS = "glass plastic conical round deep shallow amber metal".split()
DEVICE_FORMS = "benchtop digital automatic portable manual mini".split()

# Slots that admit several classes; the repeats are weights.
SLOTS = {
    "THING": "Reagent Reagent Reagent Location Device Mention Measure-Type".split(),
    "PLACE": "Location Location Device Reagent Seal".split(),
    "TOOL": "Device Method Reagent Location Seal".split(),
    "QUANTITY": "Amount Amount Generic-Measure Concentration Size Numerical Modifier".split(),
    "DURATION": "Time Time Numerical".split(),
    "CONDITION": "Temperature Temperature Speed Time pH".split(),
    "ASPECT": "Measure-Type Measure-Type Method".split(),
    "LEVEL": "Temperature Concentration Amount Size pH Speed Modifier".split(),
    "MANNER": "Modifier Modifier Method Mention".split(),
}
# Patterns: [X] is an entity of class X or of a class that slot X admits; THE is an article.
PATTERNS = [
    "[Action] [QUANTITY] of [THING] to THE [PLACE]",
    "[Action] THE [THING] for [DURATION] at [CONDITION]",
    "[Action] THE [THING] in THE [PLACE] with THE [TOOL]",
    "[Action] at [CONDITION] for [DURATION] in THE [PLACE]",
    "[Action] [MANNER] and [Action] [THING]",
    "[Action] THE [ASPECT] of THE [THING] to [LEVEL]",
    "[Action] THE [Modifier] [THING] onto THE [PLACE]",
    "[Action] [QUANTITY] [THING] and [QUANTITY] [THING] per [PLACE]",
    "[Action] THE [THING] by [Method] or [MANNER]",
    "[Action] [Numerical] times with [QUANTITY] of [TOOL]",
    "after [Method] , [Action] THE [THING] [MANNER]",
    "using THE [TOOL] , [Action] THE [THING] from THE [PLACE]",
    "[Action] [THING] , [THING] and [THING]",
    "if THE [THING] is [Modifier] , [Action] THE [TOOL]",
    "do not [Action] THE [THING] without THE [TOOL]",
    "[Action] THE [PLACE] and [Action] [THING] again",
    "make sure that THE [THING] stays at [LEVEL]",
    "once THE [ASPECT] is [LEVEL] , [Action] THE [THING]",
]
TAILS = [
    "before the next step",
    "as the kit describes",
    "on THE [PLACE]",
    "by [Method]",
    "and [Action] [THING]",
    "[MANNER]",
    "for [DURATION]",
]
ARTICLES = "the the a your each".split()
OPENERS = "then next now finally first".split()

# What general text says about words of each class; W is the word. Used for pre-training only.
REMARKS = {
    "Action": [
        "could you W this for me",
        "nobody knows how to W it",
        "we W every morning",
        "they had to W twice",
        "she will W them later",
    ],
    "Reagent": [
        "we ran out of W",
        "W is sold by the litre",
        "a bottle of W stood open",
        "W dissolves in water",
        "the label reads W",
    ],
    "Device": [
        "unplug the W at night",
        "the W makes a loud noise",
        "a technician repaired the W",
        "press start on the W",
        "the manual of the W was lost",
    ],
    "Location": [
        "the W was empty",
        "there is room in the W",
        "she found an old W",
        "something leaked out of the W",
        "the W holds a lot",
    ],
    "Method": [
        "W takes a whole day",
        "the chapter on W is short",
        "W was invented long ago",
        "students learn W in the second year",
        "we compared W with other techniques",
    ],
    "Modifier": [
        "it must be done W",
        "that looks rather W",
        "the result was very W",
        "keep it W please",
        "they became W",
    ],
    "Mention": ["W was named above", "nothing else but W matters", "we wrote about W earlier"],
    "Seal": ["a W closes the opening", "the W came off", "press the W down until it is tight"],
    "Measure-Type": ["the W was too high", "we plotted the W", "a chart shows the W over a year"],
    "Generic-Measure": ["just take a W of it", "only a W was left over", "he asked for a W more"],
}
KINDS = {
    "Action": ["a thing to do", "a step"],
    "Reagent": ["a chemical", "a material"],
    "Device": ["a machine", "a tool"],
    "Location": ["a vessel", "a place"],
    "Method": ["a technique", "a procedure"],
    "Modifier": ["a quality"],
    "Mention": ["a pronoun"],
    "Seal": ["a closure"],
    "Measure-Type": ["a property"],
    "Generic-Measure": ["a portion"],
}


class World:
    """The lexicon in a seeded order of frequency, and sentences drawn from it.

    Word i of a class has weight (i + 5) ** -0.4: a few words are common, none dominates.
    """

    def __init__(self, seed=SEED):
        lexicon = json.loads(LEXICON.read_text(encoding="utf-8"))
        order = random.Random(seed)
        self.words, self.cumulative = {}, {}
        for label, lines in lexicon.items():
            words = " ".join(lines).split()
            order.shuffle(words)
            self.words[label] = words
            weights = ((i + 5) ** -0.4 for i in range(len(words)))
            self.cumulative[label] = list(itertools.accumulate(weights))
        self.labels = [*self.words, *UNITS, "Numerical", "pH"]

    def draw_word(self, rng, label):
        """One word of an open class, by its frequency."""
        cumulative = self.cumulative[label]
        return self.words[label][bisect.bisect(cumulative, rng.random() * cumulative[-1])]

    def draw_entity(self, rng, label):
        """The text of one entity of class `label`."""
        if label in UNITS:
            if label == "Temperature" and rng.random() < 0.2:
                return rng.choice(["room temperature", "-80 °C", "-20 °C", "4 °C"])
            unit = rng.choice(UNITS[label])
            return f"{rng.choice(NUMBERS)}{'' if unit == '%' else ' '}{unit}"
        if label == "Numerical":
            return rng.choice(COUNTS + NUMBERS[:10])
        if label == "pH":
            return f"pH {rng.choice(NUMBERS[:8])}{rng.choice(['', '.5', '.2'])}"
        if label == "Reagent" and rng.random() < 0.12:
            return f"{rng.choice(METALS)} {rng.choice(ANIONS)}"
        word = self.draw_word(rng, label)
        if label == "Reagent" and rng.random() < 0.35:
            return f"{word} {rng.choice(REAGENT_FORMS)}"
        if label == "Location" and rng.random() < 0.3:
            return f"{rng.choice(PLACE_FORMS)} {word}"
        if label == "Device" and rng.random() < 0.25:
            return f"{rng.choice(DEVICE_FORMS)} {word}"
        return word

    def draw_labeled(self, rng):
        """One sentence as (source, target), the target in the form of Table 7."""
        pattern = rng.choice(PATTERNS)
        if len(pattern.split()) < 10 and rng.random() < 0.6:
            pattern += " " + rng.choice(TAILS)
        if rng.random() < 0.12:
            pattern = f"{rng.choice(OPENERS)} , {pattern}"
        words, entities = [], []
        for part in pattern.split():
            if part == "THE":
                words.append(rng.choice(ARTICLES))
            elif part.startswith("["):
                slot = part[1:-1]
                label = rng.choice(SLOTS[slot]) if slot in SLOTS else slot
                if label == "Mention" and words and words[-1] in ARTICLES:
                    words.pop()  # "the it" is not English
                text = self.draw_entity(rng, label)
                words.append(text)
                entities.append(f"{text} [{label}]")
            else:
                words.append(part)
        return " ".join(words).replace(" ,", ",") + ".", " ".join(entities)

    def draw_remark(self, rng):
        """One sentence of general text that tells something about a word or two."""
        label = rng.choice([*REMARKS, "Reagent", "Action", "Location", "Device", "Method"])
        first, second = self.draw_entity(rng, label), self.draw_entity(rng, label)
        kind = rng.random()
        if kind < 0.25:
            return rng.choice(
                [
                    f"{first} and {second} are alike.",
                    f"{first} can replace {second}.",
                    f"{first} or {second}, both will do.",
                ]
            )
        if kind < 0.5:
            return f"{first} is {rng.choice(KINDS[label])}."
        return rng.choice(REMARKS[label]).replace("W", first) + "."

    def draw_document(self, rng):
        """One line of pre-training text: a lab sentence (60%) or two remarks (40%)."""
        if rng.random() < 0.6:
            return self.draw_labeled(rng)[0]
        return f"{self.draw_remark(rng)} {self.draw_remark(rng)}"


def draw_splits(seed=SEED, sizes=None):
    """{split: rows}, no source in two splits or twice in one; the same seed gives the same rows.

    Unlabeled rows have targets too, for a simulated annotator; nothing else may see these.
    """
    world, rng, seen, splits = World(seed), random.Random(f"splits {seed}"), set(), {}
    for split, size in {**SIZES, **(sizes or {})}.items():
        rows = splits[split] = []
        while len(rows) < size:
            source, target = world.draw_labeled(rng)
            if source not in seen:
                seen.add(source)
                rows.append({"source": source, "target": target})
    return splits


def draw_pretraining_text(count, seed=SEED):
    """`count` lines of unlabeled text, none of them a dev or test source."""
    splits = draw_splits(seed)
    held_out = {row["source"] for split in ("dev", "test") for row in splits[split]}
    world, rng, lines = World(seed), random.Random(f"text {seed}"), []
    while len(lines) < count:
        line = world.draw_document(rng)
        if line not in held_out:
            lines.append(line)
    return lines


def read_entities(target):
    """The (text, label) pairs of a target."""
    return re.findall(r"(\S.*?) \[([A-Za-z-]+)\]", target)


def format_stats(seed=SEED):
    """Sizes, lengths, labels and the share of test entities unseen in N labels, as text."""
    splits = draw_splits(seed)
    entities = {
        split: [read_entities(row["target"]) for row in splits[split]]
        for split in ("train", "test")
    }
    flat = [pair for row in entities["test"] for pair in row]
    lines = [f"{split}: {len(rows)} rows" for split, rows in splits.items()]
    words = sum(len(row["source"].split()) for row in splits["test"]) / len(splits["test"])
    lines.append(
        f"test: {words:.1f} words and {len(flat) / len(splits['test']):.1f} entities a row"
    )
    counts = Counter(label for _, label in flat)
    lines.append("labels: " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))
    unlabeled = {w for row in splits["unlabeled"] for w in row["source"].rstrip(".").split()}
    for size in (100, 500, 1200):
        pairs = {pair for row in entities["train"][:size] for pair in row}
        known = {w for row in splits["train"][:size] for w in row["source"].rstrip(".").split()}
        new_pair = sum(pair not in pairs for pair in flat) / len(flat)
        new_word = sum(any(w not in known for w in t.split()) for t, _ in flat) / len(flat)
        lines.append(
            f"N={size}: {new_pair:.0%} of the test entities not among the labeled ones, "
            f"{new_word:.0%} hold a word that no labeled sentence holds"
        )
    covered = sum(
        all(w.rstrip(",.") in unlabeled or w in unlabeled for w in t.split()) for t, _ in flat
    ) / len(flat)
    lines.append(f"unlabeled text: {covered:.1%} of the test entities have all words in it")
    return "\n".join(lines)


def write_splits(folder, splits):
    """Write the splits as JSONL, each whole or not at all; unlabeled rows lose their targets."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        if split == "unlabeled":
            rows = [{"source": row["source"]} for row in rows]
        temporary = folder / f".{split}.jsonl.new"
        with open(temporary, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        os.replace(temporary, folder / f"{split}.jsonl")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="folder for the four JSONL files")
    parser.add_argument("--seed", type=int, default=SEED, help="world (default %(default)s)")
    parser.add_argument("--stats", action="store_true", help="print what the splits hold")
    args = parser.parse_args(argv)
    if not args.output and not args.stats:
        parser.error("give --output, --stats or both")
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.output:
            write_splits(args.output, draw_splits(args.seed))
        if args.stats:
            print(format_stats(args.seed))
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
