"""The town of the made-up world: five tasks about invented people and things, from a seed.

Usage:
    python -m data.world.town --task fever                      # what the splits hold and share
    python -m data.prepare --task fever --output FOLDER         # write them

Reads:  data/world/town.json (word lists and wordings), data/tasks.json and scales.json (how many
        rows).
Writes: nothing.
Paper:  stands in for Stanceosaurus, FEVER, MultiPIT and Natural Questions (Table 7) where no real
        data can be had; sizes are Table 5's over ten, but 500 rows of dev and 1,000 of test.

Every task rests on something that the labeled rows tell only in part and pre-training text tells
in full. Claims (fever) and questions (nq) are closed-book: who of 200 people has which of three
groups of habits, and 1,000 facts on them. Paraphrase pairs (multipit_id) need to know which of 272
words mean the same, stances (stanceosaurus) which words of a reply agree, deny, ask or just tell.
Paraphrases (multipit_gen) turn the sentence, active for passive or the other way round.

What splits share. Half of the facts, drawn by seed, are new to a fine-tuned model: no train or
unlabeled row of fever or nq is about them. Dev and test ask for all; their rows say in "half"
whether theirs is "shared" or "new". A dev or test row's question, claim or pair of sentences is
told in no other split and in no line of pre-training text, whatever opens it; the fact itself is
told there in other wordings.
"""

import random
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data.files import DATA, make_parser, read_json, run_cli
from data.tasks import load_task
from data.world.lab import HeldOut

LISTS = Path(__file__).with_name("town.json")
TASKS = ("stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
CLOSED_BOOK = ("fever", "nq")
LABELED = {"dev": 500, "test": 1000}  # narrower intervals than a tenth of the paper's would give
SEED = 2024
PEOPLE = 200
STANCES = {  # their shares, those of the paper's test set, less uneven; the word that follows such
    "Discussing": (0.36, "told"),  # a reply in pre-training text
    "Irrelevant": (0.28, "strayed"),
    "Supporting": (0.16, "agreed"),
    "Refuting": (0.13, "objected"),
    "Querying": (0.07, "asked"),
}
# Which cue words make a stance; nothing else tells it.
CUES = {"Supporting": "agree", "Refuting": "deny", "Querying": "ask", "Discussing": "discuss"}
SAME, OTHER = "meaning", "unlike"  # between two sentences of pre-training text
RIGHT, WRONG = "rightly", "wrongly"  # before a statement of pre-training text
SALIENT = {SAME, OTHER, RIGHT, WRONG, *(verdict for _, verdict in STANCES.values())}
FORMAT_WORDS = "claim: tweet: sentence1: sentence2:".split() + [f"{task}:" for task in TASKS]


def invent_names(count, seed):
    """`count` different names such as Barlo, by seed."""
    rng, names = random.Random(f"names {seed}"), {}
    onsets = "B D F G H J K L M N P R S T V W Z Br Dr Gr Kr St Tr".split()
    while len(names) < count:
        middle = rng.choice("a e i o u".split()) + rng.choice("r l n m s k t v d lb nd rk".split())
        names[rng.choice(onsets) + middle + rng.choice("a o i e us an el".split())] = None
    return list(names)


class Row(NamedTuple):
    """A row; what must be known to get it right (facts, pairs of words or cues); and its content,
    the texts that make it what it is: a line with all of them gives it away."""

    source: str
    target: str
    needs: frozenset
    content: tuple


class Town:
    """Word lists, people and their facts; each draw_TASK takes a random.Random and makes a Row."""

    def __init__(self, seed=SEED):
        self.lists = read_json(LISTS)
        self.synonyms = {
            kind: [tuple(group.split()) for group in groups]
            for kind, groups in self.lists["synonyms"].items()
        }
        self.values = {name: text.split() for name, text in self.lists["values"].items()}
        self.cues = {
            name: [cue.replace("-", " ") for cue in text.split()]
            for name, text in self.lists["cues"].items()
        }
        self.salient = SALIENT | {value for values in self.values.values() for value in values}
        self.people = invent_names(PEOPLE, seed)
        rng = random.Random(f"facts {seed}")
        self.facts = {
            (person, relation): rng.choice(values)
            for person in self.people
            for relation, values in self.values.items()
        }
        self.groups = [tuple(group.split()) for group in self.lists["habit_groups"]]
        self.habits = self.draw_habits(random.Random(f"habits {seed}"))
        self.fact_list, self.habit_list = list(self.facts.items()), list(self.habits.items())
        # Half of the facts of each closed-book task: no train or unlabeled row is about them.
        rng, groups = random.Random(f"new facts {seed}"), range(len(self.groups))
        kinds = list(self.facts), [(person, group) for person in self.people for group in groups]
        self.new = {fact for facts in kinds for fact in rng.sample(facts, len(facts) // 2)}

    def draw_habits(self, rng):
        """{(person, habit): true}: whoever has one habit of a group has the others of it too.

        Half of the people have each group, so a habit alone tells nothing of its truth.
        """
        habits = {}
        for group in self.groups:
            holders = set(rng.sample(self.people, len(self.people) // 2))
            habits |= {(p, habit): p in holders for p in self.people for habit in group}
        return habits

    def open_text(self, rng, kind, text):
        """A statement or question behind one of the openers of its kind, often none."""
        return f"{rng.choice(self.lists[f'{kind}_openers'])} {text}".strip()

    def tell(self, rng, known, value):
        """A statement that `value` is that of `known`, a (person, relation)."""
        # The value first: a name may begin with V, no value holds a P.
        text = rng.choice(self.lists["facts"][known[1]]).replace("V", value)
        return self.open_text(rng, "statement", text.replace("P", known[0]))

    def ask(self, rng, known):
        """(question for the value of a (person, relation), the same without an opener)."""
        text = rng.choice(self.lists["questions"][known[1]]).replace("P", known[0]) + "?"
        return self.open_text(rng, "question", text), text

    def draw_claim(self, rng):
        """(claim, the same without an opener, whether it is true in this town, (person, habit))."""
        known, true = rng.choice(self.habit_list)
        text = rng.choice(self.lists["habits"][known[1]]).replace("P", known[0])
        return self.open_text(rng, "statement", text), text, true, known

    def draw_fever(self, rng):
        """A claim that is true in this town or not."""
        claim, text, true, (person, habit) = self.draw_claim(rng)
        group = next(i for i, group in enumerate(self.groups) if habit in group)
        target = "SUPPORTS" if true else "REFUTES"
        return Row(f"{claim}.", target, frozenset([(person, group)]), (text,))

    def draw_nq(self, rng):
        """A question and its short answer."""
        known, value = rng.choice(self.fact_list)
        question, text = self.ask(rng, known)
        return Row(question, value, frozenset([known]), (text,))

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
        source = f"sentence1: {first}. sentence2: {second}."
        return Row(source, "YES" if same else "NO", needs, (first, second))

    def draw_multipit_gen(self, rng):
        """A sentence, and the same with active for passive or the other way round.

        One target in eight says one word in another way, too. More would be punished: the metric
        wants likeness to the source, and knows few of the town's synonyms.
        """
        event = self.draw_event(rng)
        words, form = self.word_event(rng, event)
        source, other = self.write_event(words, form), dict(words)
        for slot in rng.sample(list(words), rng.random() < 1 / 8):
            other[slot] = next(w for w in event[slot] if w != words[slot])
        target = self.write_event(other, (not form[0], form[1])) + "."
        needs = frozenset(event[slot] for slot in words if words[slot] != other[slot])
        return Row(f"{source}.", target, needs, (source,))

    def draw_reply(self, rng):
        """(claim, reply, stance, needs)."""
        event = self.draw_event(rng)
        words, form = self.word_event(rng, event)
        stance = rng.choices(list(STANCES), [share for share, _ in STANCES.values()])[0]
        topic, said = rng.choice(event[rng.choice(["agent", "object"])]), stance
        if stance == "Irrelevant":
            held = set(event["agent"] + event["object"])
            while topic in held:
                topic = rng.choice(rng.choice(self.synonyms[rng.choice(["agent", "object"])]))
            said = rng.choice(list(CUES))
        form_of_reply = rng.choice(self.lists["replies"]).replace("T", topic)
        cue = rng.choice(self.cues[CUES[said]])
        reply = form_of_reply.replace("C", cue)
        return self.write_event(words, form), reply, stance, frozenset([cue])

    def draw_stanceosaurus(self, rng):
        """A claim, a reply and the reply's stance towards it."""
        claim, reply, stance, needs = self.draw_reply(rng)
        return Row(f"claim: {claim} tweet: {reply}", stance, needs, (claim, reply))

    def draw_document(self, rng):
        """One line of pre-training text: facts, judged claims, restatements or replies."""
        kind = rng.random()
        if kind < 0.25:
            known, value = rng.choice(self.fact_list)
            if rng.random() < 0.5:
                return self.tell(rng, known, value)
            return f"{self.ask(rng, known)[0]} {value}"
        if kind < 0.5:
            claim, _, true, _ = self.draw_claim(rng)
            return f"{claim}, they say {RIGHT if true else WRONG}"
        if kind < 0.75:
            first, second, same, _ = self.draw_pair(rng)
            return f"{first} {SAME if same else OTHER} {second}"
        claim, reply, stance, _ = self.draw_reply(rng)
        return f"{claim}. {reply}. so they {STANCES[stance][1]}"


def count_rows(task):
    """{split: rows}: Table 5's over the mini scale's divisor; dev and test as in LABELED."""
    rows, unit = load_task(task).rows, read_json(DATA / "scales.json")["mini"]["divide_by"]
    return {"train": rows["train"] // unit, **LABELED, "unlabeled": rows["unlabeled"] // unit}


def draw_rows(task, seed=SEED, sizes=None):
    """{split: Rows}; the same seed gives the same rows.

    No source is in two splits or twice in one, and no train or unlabeled row tells a dev or test
    row's content, nor does dev test's: the question or claim itself is new, whatever opens it. No
    train or unlabeled row needs one of the town's new facts.
    """
    sizes, town = {**count_rows(task), **(sizes or {})}, Town(seed)
    draw, rng = getattr(town, f"draw_{task}"), random.Random(f"{task} {seed}")
    seen, held, splits = set(), HeldOut(), {}
    # The small splits first, so that test and dev are the same whatever is asked for the others.
    for split in ("test", "dev", "train", "unlabeled"):
        rows, new = [], town.new if split in ("train", "unlabeled") else set()
        while len(rows) < sizes[split]:
            row = draw(rng)
            if row.needs & new or row.source in seen or held.told_in(row.source):
                continue
            seen.add(row.source)
            rows.append(row)
        splits[split] = rows
        if not new:
            held.add(row.content for row in rows)
    return splits


def draw_splits(task, seed=SEED, sizes=None):
    """{split: rows as in the files}.

    Dev and test rows of fever and nq say in "half" whether train and unlabeled rows may be about
    their fact ("shared") or never are ("new"). Unlabeled rows have targets too, for a simulated
    annotator; nothing else may see these.
    """
    new, splits = Town(seed).new, {}
    for split, rows in draw_rows(task, seed, sizes).items():
        splits[split] = [{"source": row.source, "target": row.target} for row in rows]
        if task in CLOSED_BOOK and split in ("dev", "test"):
            for line, row in zip(splits[split], rows, strict=True):
                line["half"] = "new" if row.needs & new else "shared"
    return splits


def draw_pretraining_text(count):
    """`count` lines of unlabeled text, none of which tells the content of a dev or test row."""
    town, rng = Town(), random.Random(f"text {SEED}")
    scored = [draw_rows(task, sizes={"train": 0, "unlabeled": 0}) for task in TASKS]
    held = HeldOut(row.content for rows in scored for split in rows.values() for row in split)
    return held.draw_lines(lambda: town.draw_document(rng), count)


def format_stats(task):
    """Sizes, lengths, labels and how much of what test needs the other splits tell, as text."""
    splits, new = draw_rows(task), Town().new
    test, words = splits["test"], sum(len(row.source.split()) for row in splits["test"])
    sizes = ", ".join(f"{split} {len(splits[split]):,}" for split in splits)
    lines = [f"{task}: {sizes}; {words / len(test):.1f} words a test source"]
    counts = Counter(row.target for row in test)
    if len(counts) < 10:
        lines.append("labels in test: " + ", ".join(f"{k} {n}" for k, n in counts.most_common()))
    what = {"fever": "facts", "nq": "facts", "stanceosaurus": "cues"}.get(task, "pairs of words")
    if task in CLOSED_BOOK:
        count = sum(bool(row.needs & new) for row in test)
        lines.append(f"test: {len(test) - count} rows on shared facts, {count} on new ones")
    needed = [need for row in test for need in row.needs]
    train = splits["train"]
    seen = {f"{n:,} labels": train[:n] for n in (100, 500, len(train))}
    for name, rows in {**seen, "the unlabeled rows": splits["unlabeled"]}.items():
        known = {need for row in rows for need in row.needs}
        unseen = sum(need not in known for need in needed) / len(needed)
        lines.append(f"{unseen:.0%} of the {what} that test needs do not occur in {name}")
    return "\n".join(lines)


def main(argv=None):
    parser, tasks = make_parser(__doc__), {"choices": TASKS, "default": list(TASKS)}
    parser.add_argument("--task", nargs="+", help="(default: all five)", **tasks)
    print("\n\n".join(format_stats(task) for task in parser.parse_args(argv).task))


if __name__ == "__main__":
    run_cli(main)
