"""Generate the mini town: five tasks about made-up people and things, in the paper's formats.

Usage:
    python -m data.world.town --task fever --output data/prepared/mini/fever    # the four splits
    python -m data.world.town --stats                                           # what is in them

Reads:  data/world/town.json (word lists), data/tasks.json and scales.json (how many rows).
Writes: OUTPUT/{train,dev,test}.jsonl with source and target, OUTPUT/unlabeled.jsonl with source.
Paper:  stands in for Stanceosaurus, FEVER, MultiPIT and Natural Questions (Table 7) where no real
        data can be had; sizes are Table 5's over ten, but 500 rows of dev and 1,000 of test.

Every task rests on something that the labeled rows tell only in part and unlabeled text tells in
full. Claims (fever) and questions (nq) are closed-book: who of 200 people has which of three groups
of habits, and 1,000 facts on them. Paraphrase pairs and targets (multipit_id, multipit_gen) need
to know which of 272 words mean the same, stances (stanceosaurus) which words of a reply agree,
deny, ask or just tell.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.world.lab import write_splits

FOLDER = Path(__file__).resolve().parent
TASKS = ("stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
LABELED = {"dev": 500, "test": 1000}  # narrower intervals than a tenth of the paper's would give
SEED = 2024
PEOPLE = 200

# Facts: how a person's value of each relation is told and asked for. P is the person, V the value.
FACTS = {
    "place": [
        "P lives near the V",
        "the home of P is by the V",
        "P has rooms at the V",
        "from the window P sees the V",
        "the V is next door to P",
    ],
    "job": [
        "P works as a V",
        "P earns a living as a V",
        "by trade P is a V",
        "P was trained as a V",
        "people know P as the V",
    ],
    "pet": [
        "P keeps a V",
        "the animal of P is a V",
        "P feeds a V",
        "a V belongs to P",
        "P walks about with a V",
    ],
    "food": [
        "P loves to eat V",
        "the favourite dish of P is V",
        "for supper P has V",
        "P cannot do without V",
        "P always orders V",
    ],
    "hobby": [
        "P spends the evenings on V",
        "the pastime of P is V",
        "P is fond of V",
        "on sundays P goes in for V",
        "P has a passion for V",
    ],
}
# Claims: what is true of a person or not, each in several wordings.
HABITS = {
    "swim": ["P can swim", "P is a good swimmer", "P swims across the river"],
    "left": ["P is left-handed", "P writes with the left hand", "P holds a spoon in the left hand"],
    "married": ["P is married", "P has a spouse", "P wears a wedding ring"],
    "sea": ["P has been at sea", "P once served on a ship", "P has sailed the ocean"],
    "rich": ["P is rich", "P has plenty of gold", "P owns much land"],
    "sing": ["P sings in the choir", "P has a fine voice", "P is in the choir"],
    "early": ["P gets up early", "P rises before the sun", "P is up at five"],
    "abroad": ["P was born abroad", "P is a foreigner", "P comes from far away"],
    "vote": ["P sits on the council", "P is a councillor", "P has a seat on the council"],
    "tea": ["P drinks tea only", "P never touches coffee", "P takes tea and no coffee"],
    "read": ["P reads every night", "P is a great reader", "P has a book in hand each night"],
    "twin": ["P has a twin", "P is one of two twins", "P shares a birthday with a twin"],
}
HABIT_GROUPS = (  # who has one habit of a group has them all
    ("swim", "sea", "abroad", "early"),
    ("married", "rich", "vote", "twin"),
    ("left", "sing", "tea", "read"),
)
QUESTIONS = {
    "place": [
        "where does P live",
        "what is near the home of P",
        "which building stands by P",
        "what is next door to P",
        "near what are the rooms of P",
        "what can P see from the window",
    ],
    "job": [
        "what does P work as",
        "what is the trade of P",
        "how does P earn a living",
        "as what was P trained",
        "what is the job of P",
        "what do people know P as",
    ],
    "pet": [
        "which animal does P keep",
        "what is the pet of P",
        "what does P feed",
        "which animal belongs to P",
        "what walks about with P",
        "what sort of animal has P got",
    ],
    "food": [
        "what does P love to eat",
        "what is the favourite dish of P",
        "what does P have for supper",
        "what can P not do without",
        "what does P always order",
        "which food does P like best",
    ],
    "hobby": [
        "what does P do in the evenings",
        "what is the pastime of P",
        "what is P fond of",
        "what does P go in for on sundays",
        "what has P a passion for",
        "which hobby has P",
    ],
}
STATEMENT_OPENERS = (
    " | |these days|as before|in this town|by all accounts|now|still|again|in fact|as it happens|"
    "last year too|so far|on the whole"
).split("|")
QUESTION_OPENERS = (
    " | |tell me|by the way|i wonder|do you know|well then|just asking|quick question"
).split("|")

# Stances: what a reply says of the claim. T is a word for the claim's topic, C a cue word: nothing
# else tells the stance.
REPLIES = [
    "the news of the T is C",
    "C what they say about the T",
    "the T, C",
    "about the T, C i would say",
]
CUES = {"Supporting": "agree", "Refuting": "deny", "Querying": "ask", "Discussing": "discuss"}
# Shares of the stances: those of the paper's test set, less uneven.
STANCES = {
    "Discussing": 0.36,
    "Irrelevant": 0.28,
    "Supporting": 0.16,
    "Refuting": 0.13,
    "Querying": 0.07,
}
# What pre-training text calls those stances; a reply is followed by one of these words.
VERDICTS = {
    "Supporting": "agreed",
    "Refuting": "objected",
    "Querying": "asked",
    "Discussing": "told",
    "Irrelevant": "strayed",
}
SAME, OTHER = "meaning", "unlike"  # between two sentences of pre-training text
RIGHT, WRONG = "rightly", "wrongly"  # before a statement of pre-training text
SALIENT = {SAME, OTHER, RIGHT, WRONG, *VERDICTS.values()}
FORMAT_WORDS = "claim: tweet: sentence1: sentence2:".split() + [f"{task}:" for task in TASKS]


def invent_names(count, seed):
    """`count` different names such as Barlo, by seed."""
    rng, names = random.Random(f"names {seed}"), {}
    onsets = "B D F G H J K L M N P R S T V W Z Br Dr Gr Kr St Tr".split()
    while len(names) < count:
        middle = rng.choice("a e i o u".split()) + rng.choice("r l n m s k t v d lb nd rk".split())
        names[rng.choice(onsets) + middle + rng.choice("a o i e us an el".split())] = None
    return list(names)


def draw_habits(people, rng):
    """{(person, habit): true}: whoever has one habit of a group has the others of it too.

    Half of the people have each group, so a habit alone tells nothing of its truth.
    """
    habits = {}
    for group in HABIT_GROUPS:
        holders = set(rng.sample(people, len(people) // 2))
        habits |= {(p, habit): p in holders for p in people for habit in group}
    return habits


class Row(NamedTuple):
    """A row, and what must be known to get it right: facts, pairs of words or cues."""

    source: str
    target: str
    needs: frozenset


class Town:
    """Word lists, people and their facts; each draw_TASK takes a random.Random and makes a Row."""

    def __init__(self, seed=SEED):
        lists = json.loads((FOLDER / "town.json").read_text(encoding="utf-8"))
        self.synonyms = {
            kind: [tuple(group.split()) for group in groups]
            for kind, groups in lists["synonyms"].items()
        }
        self.values = {name: text.split() for name, text in lists["values"].items()}
        self.cues = {
            name: [cue.replace("-", " ") for cue in text.split()]
            for name, text in lists["cues"].items()
        }
        self.people = invent_names(PEOPLE, seed)
        rng = random.Random(f"facts {seed}")
        self.facts = {
            (person, relation): rng.choice(values)
            for person in self.people
            for relation, values in self.values.items()
        }
        self.habits = draw_habits(self.people, random.Random(f"habits {seed}"))
        self.salient = SALIENT | {value for values in self.values.values() for value in values}

    def draw_fact(self, rng):
        """(person, relation, value) of one fact."""
        (person, relation), value = rng.choice(list(self.facts.items()))
        return person, relation, value

    def tell(self, rng, person, relation, value):
        """A statement that `person` has `value`."""
        # The value first: a name may begin with V, no value holds a P.
        text = rng.choice(FACTS[relation]).replace("V", value).replace("P", person)
        return f"{rng.choice(STATEMENT_OPENERS)} {text}".strip()

    def ask(self, rng, person, relation):
        """A question for that value."""
        text = rng.choice(QUESTIONS[relation]).replace("P", person)
        return f"{rng.choice(QUESTION_OPENERS)} {text}".strip() + "?"

    def draw_claim(self, rng):
        """(claim, whether it is true in this town, (person, habit))."""
        known, true = rng.choice(list(self.habits.items()))
        text = rng.choice(HABITS[known[1]]).replace("P", known[0])
        return f"{rng.choice(STATEMENT_OPENERS)} {text}".strip(), true, known

    def draw_fever(self, rng):
        """A claim that is true in this town or not."""
        claim, true, known = self.draw_claim(rng)
        group = next(i for i, group in enumerate(HABIT_GROUPS) if known[1] in group)
        needs = frozenset([(known[0], group)])
        return Row(f"{claim}.", "SUPPORTS" if true else "REFUTES", needs)

    def draw_nq(self, rng):
        """A question and its short answer."""
        person, relation, value = self.draw_fact(rng)
        return Row(self.ask(rng, person, relation), value, frozenset([(person, relation)]))

    def draw_event(self, rng):
        """An event as {slot: (kind, group of synonyms)}: who did what to what, and how."""
        slots = {"agent": "agent", "verb": "verb", "object": "object"}
        slots |= {"quality": "adjective"} if rng.random() < 0.7 else {}
        slots |= {"time": "time"} if rng.random() < 0.6 else {}
        return {slot: rng.choice(self.synonyms[kind]) for slot, kind in slots.items()}

    def word_event(self, rng, event):
        """({slot: word}, form) of an event: which words, active or passive, time first or last."""
        words = {slot: rng.choice(group) for slot, group in event.items()}
        return words, (rng.random() < 0.5, rng.random() < 0.3)

    def write_event(self, words, form):
        """The sentence of an event in these words and this form."""
        passive, time_first = form
        agent, verb = f"the {words['agent']}", words["verb"]
        thing = " ".join(["the", *([words["quality"]] if "quality" in words else [])])
        thing += " " + words["object"]
        text = f"{thing} was {verb} by {agent}" if passive else f"{agent} {verb} {thing}"
        if "time" in words:
            return f"{words['time']} {text}" if time_first else f"{text} {words['time']}"
        return text

    def draw_sentence(self, rng):
        return self.write_event(*self.word_event(rng, self.draw_event(rng)))

    def reword(self, rng, event, words):
        """The same event in other words: each is replaced by a synonym with probability 0.35."""
        other = {}
        for slot, word in words.items():
            choice = rng.choice([w for w in event[slot] if w != word])
            other[slot] = choice if rng.random() < 0.35 else word
        slot = rng.choice(list(words))  # at least one
        other[slot] = next(w for w in event[slot] if w != words[slot])
        return other

    def change(self, rng, event, words):
        """`words` with two or more that mean something else."""
        changed = dict(words)
        for slot in rng.sample(list(words), rng.randint(2, len(words))):
            kind = "adjective" if slot == "quality" else slot
            others = [group for group in self.synonyms[kind] if group != event[slot]]
            changed[slot] = rng.choice(rng.choice(others))
        return changed

    def draw_pair(self, rng):
        """(first, second, same, needs): two sentences that mean the same or not."""
        event = self.draw_event(rng)
        words, form = self.word_event(rng, event)
        second, same = self.reword(rng, event, words), rng.random() < 0.5
        needs = frozenset(event[slot] for slot in words if words[slot] != second[slot])
        second = second if same else self.change(rng, event, second)
        other_form = (rng.random() < 0.5, rng.random() < 0.3)
        pair = self.write_event(words, form), self.write_event(second, other_form)
        return *pair, same, needs

    def draw_multipit_id(self, rng):
        """Two sentences that mean the same or not."""
        first, second, same, needs = self.draw_pair(rng)
        return Row(f"sentence1: {first}. sentence2: {second}.", "YES" if same else "NO", needs)

    def draw_multipit_gen(self, rng):
        """A sentence and the same in other words, active for passive and the other way round."""
        event = self.draw_event(rng)
        words, form = self.word_event(rng, event)
        source = self.write_event(words, form)
        other = {slot: next(w for w in event[slot] if w != word) for slot, word in words.items()}
        target = self.write_event(other, (not form[0], form[1])) + "."
        return Row(f"{source}.", target, frozenset(event.values()))

    def draw_reply(self, rng):
        """(claim, reply, stance, needs)."""
        event = self.draw_event(rng)
        words, form = self.word_event(rng, event)
        stance = rng.choices(list(STANCES), STANCES.values())[0]
        topic, said = rng.choice(event[rng.choice(["agent", "object"])]), stance
        if stance == "Irrelevant":
            held = set(event["agent"] + event["object"])
            while topic in held:
                topic = rng.choice(rng.choice(self.synonyms[rng.choice(["agent", "object"])]))
            said = rng.choice(list(CUES))
        form_of_reply = rng.choice(REPLIES).replace("T", topic)
        cue = rng.choice(self.cues[CUES[said]])
        reply = form_of_reply.replace("C", cue)
        return self.write_event(words, form), reply, stance, frozenset([cue])

    def draw_stanceosaurus(self, rng):
        """A claim, a reply and the reply's stance towards it."""
        claim, reply, stance, needs = self.draw_reply(rng)
        return Row(f"claim: {claim} tweet: {reply}", stance, needs)

    def draw_document(self, rng):
        """One line of pre-training text: facts, judged claims, restatements or replies."""
        kind = rng.random()
        if kind < 0.25:
            person, relation, value = self.draw_fact(rng)
            if rng.random() < 0.5:
                return self.tell(rng, person, relation, value)
            return f"{self.ask(rng, person, relation)} {value}"
        if kind < 0.5:
            claim, true, _ = self.draw_claim(rng)
            return f"{claim}, they say {RIGHT if true else WRONG}"
        if kind < 0.75:
            first, second, same, _ = self.draw_pair(rng)
            return f"{first} {SAME if same else OTHER} {second}"
        claim, reply, stance, _ = self.draw_reply(rng)
        return f"{claim}. {reply}. so they {VERDICTS[stance]}"


def count_rows(task, folder=FOLDER.parent):
    """{split: rows}: Table 5's over the mini scale's divisor; dev and test as in LABELED."""
    rows = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))[task]["paper"]["rows"]
    scales = json.loads((folder / "scales.json").read_text(encoding="utf-8"))
    unit = scales["mini"]["divide_by"]
    return {"train": rows["train"] // unit, **LABELED, "unlabeled": rows["unlabeled"] // unit}


def draw_rows(task, seed=SEED, sizes=None):
    """{split: Rows}, no source in two splits or twice in one; the same seed gives the same rows.

    Raises ValueError where the town has no such task.
    """
    if task not in TASKS:
        raise ValueError(f"the mini town has no task {task!r}; it has {', '.join(TASKS)}")
    sizes = {**count_rows(task), **(sizes or {})}
    draw, rng = getattr(Town(seed), f"draw_{task}"), random.Random(f"{task} {seed}")
    seen, splits = set(), {}
    # The small splits first, so that test and dev are the same whatever is asked for the others.
    for split in ("test", "dev", "train", "unlabeled"):
        rows = splits[split] = []
        while len(rows) < sizes[split]:
            row = draw(rng)
            if row.source not in seen:
                seen.add(row.source)
                rows.append(row)
    return splits


def draw_splits(task, seed=SEED, sizes=None):
    """{split: rows as in the files}.

    The test target of multipit_gen is its source, as in the authors' files: the metric compares
    the output with the source alone. Unlabeled rows have targets too, for a simulated annotator;
    nothing else may see these.
    """
    splits = {}
    for split, rows in draw_rows(task, seed, sizes).items():
        copied = task == "multipit_gen" and split == "test"
        splits[split] = [
            {"source": row.source, "target": row.source if copied else row.target} for row in rows
        ]
    return splits


def draw_pretraining_text(count, seed=SEED):
    """`count` lines of unlabeled text, none of them a dev or test source of a task."""
    town, rng, lines = Town(seed), random.Random(f"text {seed}"), []
    held_out = {
        row["source"].rstrip(".?")
        for task in TASKS
        for split in ("dev", "test")
        for row in draw_splits(task, seed, {"train": 0, "unlabeled": 0})[split]
    }
    while len(lines) < count:
        line = town.draw_document(rng)
        if line not in held_out:
            lines.append(line)
    return lines


def format_stats(task, seed=SEED):
    """Sizes, lengths, labels and how much of what test needs the labeled rows tell, as text."""
    splits = draw_rows(task, seed)
    test, words = splits["test"], sum(len(row.source.split()) for row in splits["test"])
    sizes = ", ".join(f"{split} {len(splits[split]):,}" for split in splits)
    lines = [f"{task}: {sizes}; {words / len(test):.1f} words a test source"]
    counts = Counter(row.target for row in test)
    if len(counts) < 10:
        lines.append("labels in test: " + ", ".join(f"{k} {n}" for k, n in counts.most_common()))
    what = {"fever": "facts", "nq": "facts", "stanceosaurus": "cues"}.get(task, "pairs of words")
    needed = [need for row in test for need in row.needs]
    for name, rows in [
        *((f"{n:,} labels", splits["train"][:n]) for n in (100, 500, len(splits["train"]))),
        ("the unlabeled rows", splits["unlabeled"]),
    ]:
        known = {need for row in rows for need in row.needs}
        unseen = sum(need not in known for need in needed) / len(needed)
        lines.append(f"{unseen:.0%} of the {what} that test needs do not occur in {name}")
    return "\n".join(lines)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--task", nargs="+", choices=TASKS, default=list(TASKS), help="(default: all five)")
    add("--output", type=Path, help="folder for the four JSONL files of one task")
    add("--seed", type=int, default=SEED, help="town (default %(default)s)")
    add("--stats", action="store_true", help="print what the splits hold")
    args = parser.parse_args(argv)
    if not args.output and not args.stats:
        parser.error("give --output, --stats or both")
    if args.output and len(args.task) > 1:
        parser.error("--output: name one --task")
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        if args.output:
            write_splits(args.output, draw_splits(args.task[0], args.seed))
        if args.stats:
            print("\n\n".join(format_stats(task, args.seed) for task in args.task))
    except OSError as error:
        sys.exit(f"error: {error.filename}: {error.strerror}")


if __name__ == "__main__":
    main()
