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

Half of the facts, drawn by seed, are new to a fine-tuned model: no train or unlabeled row of fever
or nq is about them. What else splits and pre-training text share is in data/world/README.md.
"""

import random
from collections import Counter
from pathlib import Path

from data.files import DATA, make_parser, read_json, run_cli
from data.tasks import load_task
from data.world.lab import HeldOut, Row, fill_splits

LISTS = Path(__file__).with_name("town.json")
TASKS = ("stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
CLOSED_BOOK = ("fever", "nq")
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

    def ask(self, rng, known, value):
        """A question for the value of a (person, relation), with the answer."""
        text = rng.choice(self.lists["questions"][known[1]]).replace("P", known[0]) + "?"
        return Row(self.open_text(rng, "question", text), value, frozenset([known]), (text,))

    def draw_fever(self, rng):
        """A claim that is true in this town or not."""
        (person, habit), true = rng.choice(self.habit_list)
        text = rng.choice(self.lists["habits"][habit]).replace("P", person)
        claim, target = self.open_text(rng, "statement", text), "SUPPORTS" if true else "REFUTES"
        group = next(i for i, group in enumerate(self.groups) if habit in group)
        return Row(f"{claim}.", target, frozenset([(person, group)]), (text,))

    def draw_nq(self, rng):
        """A question and its short answer."""
        return self.ask(rng, *rng.choice(self.fact_list))

    def draw_event(self, rng):
        """An event, who did what to what and how: ({kind: group of synonyms}, {kind: its word})."""
        kinds = ["agent", "verb", "object"]
        kinds += ["adjective"] * (rng.random() < 0.7) + ["time"] * (rng.random() < 0.6)
        event = {kind: rng.choice(self.synonyms[kind]) for kind in kinds}
        return event, {kind: rng.choice(group) for kind, group in event.items()}

    def draw_form(self, rng):
        """How to write an event: whether in the passive, whether the time comes first."""
        return rng.random() < 0.5, rng.random() < 0.3

    def write_event(self, words, form):
        """The sentence of an event in these words and this form."""
        passive, time_first = form
        agent, verb = f"the {words['agent']}", words["verb"]
        thing = " ".join(["the", *(words[k] for k in ("adjective", "object") if k in words)])
        text = f"{thing} was {verb} by {agent}" if passive else f"{agent} {verb} {thing}"
        if "time" in words:
            return f"{words['time']} {text}" if time_first else f"{text} {words['time']}"
        return text

    def reword(self, rng, event, words):
        """The same event in other words: each is replaced by a synonym with probability 0.35."""
        other = {}
        for kind, word in words.items():
            choice = rng.choice([w for w in event[kind] if w != word])
            other[kind] = choice if rng.random() < 0.35 else word
        kind = rng.choice(list(words))  # at least one
        return {**other, kind: find_other(event[kind], words[kind])}

    def change(self, rng, event, words):
        """`words` with two or more that mean something else."""
        changed = dict(words)
        for kind in rng.sample(list(words), rng.randint(2, len(words))):
            others = [group for group in self.synonyms[kind] if group != event[kind]]
            changed[kind] = rng.choice(rng.choice(others))
        return changed

    def draw_multipit_id(self, rng):
        """Two sentences that mean the same or not."""
        event, words = self.draw_event(rng)
        form, second = self.draw_form(rng), self.reword(rng, event, words)
        needs = frozenset(event[kind] for kind in words if words[kind] != second[kind])
        same = rng.random() < 0.5
        second = second if same else self.change(rng, event, second)
        pair = self.write_event(words, form), self.write_event(second, self.draw_form(rng))
        source = "sentence1: {}. sentence2: {}.".format(*pair)
        return Row(source, "YES" if same else "NO", needs, pair)

    def draw_multipit_gen(self, rng):
        """A sentence, and the same with active for passive or the other way round.

        One target in eight says one word in another way, too. More would be punished: the metric
        wants likeness to the source, and knows few of the town's synonyms.
        """
        event, words = self.draw_event(rng)
        passive, time_first = form = self.draw_form(rng)
        other = {}
        for kind in rng.sample(list(words), rng.random() < 1 / 8):
            other[kind] = find_other(event[kind], words[kind])
        source = self.write_event(words, form)
        target = self.write_event({**words, **other}, (not passive, time_first))
        needs = frozenset(event[kind] for kind in other)
        return Row(f"{source}.", f"{target}.", needs, (source,))

    def draw_stanceosaurus(self, rng):
        """A claim, a reply and the reply's stance towards it."""
        event, words = self.draw_event(rng)
        form = self.draw_form(rng)
        stance = rng.choices(list(STANCES), [share for share, _ in STANCES.values()])[0]
        topic, said = rng.choice(event[rng.choice(["agent", "object"])]), stance
        if stance == "Irrelevant":
            held = set(event["agent"] + event["object"])
            while topic in held:
                topic = rng.choice(rng.choice(self.synonyms[rng.choice(["agent", "object"])]))
            said = rng.choice(list(CUES))
        reply = rng.choice(self.lists["replies"]).replace("T", topic)
        cue = rng.choice(self.cues[CUES[said]])
        content = self.write_event(words, form), reply.replace("C", cue)
        return Row("claim: {} tweet: {}".format(*content), stance, frozenset([cue]), content)

    def draw_document(self, rng):
        """One line of pre-training text: facts, judged claims, restatements or replies."""
        kind = rng.random()
        if kind < 0.25:
            (person, relation), value = known = rng.choice(self.fact_list)
            if rng.random() < 0.5:
                # The value first: a name may begin with V, no value holds a P.
                text = rng.choice(self.lists["facts"][relation]).replace("V", value)
                return self.open_text(rng, "statement", text.replace("P", person))
            row = self.ask(rng, *known)
            return f"{row.source} {row.target}"
        if kind < 0.5:
            row = self.draw_fever(rng)
            verdict = RIGHT if row.target == "SUPPORTS" else WRONG
            return f"{row.source.removesuffix('.')}, they say {verdict}"
        if kind < 0.75:
            row = self.draw_multipit_id(rng)
            return f" {SAME if row.target == 'YES' else OTHER} ".join(row.content)
        row = self.draw_stanceosaurus(rng)
        return f"{'. '.join(row.content)}. so they {STANCES[row.target][1]}"


def find_other(group, word):
    """The first of a group of synonyms that is not `word`."""
    return next(other for other in group if other != word)


def draw_rows(task, seed=SEED, sizes=None):
    """{split: Rows} as fill_splits() has them; the same seed gives the same rows.

    Of Table 5's size over the mini scale's divisor, but dev and test, which a tenth would leave
    with wide intervals. No train or unlabeled row needs one of the town's new facts.
    """
    table, unit = load_task(task).rows, read_json(DATA / "scales.json")["mini"]["divide_by"]
    # The small splits first, so that test and dev are the same whatever is asked for the others.
    rows = {"test": 1000, "dev": 500, "train": table["train"] // unit}
    rows = {**rows, "unlabeled": table["unlabeled"] // unit, **(sizes or {})}
    town, rng = Town(seed), random.Random(f"{task} {seed}")
    return fill_splits(getattr(town, f"draw_{task}"), rng, rows, town.new)


def draw_splits(task, seed=SEED, sizes=None):
    """{split: rows as in the files}.

    Dev and test rows of fever and nq say in "half" whether train and unlabeled rows may be about
    their fact ("shared") or never are ("new"). Unlabeled rows have targets too, for a simulated
    annotator; nothing else may see these.
    """
    new, splits = Town(seed).new, {}
    for split, rows in draw_rows(task, seed, sizes).items():
        lines = splits[split] = [{"source": row.source, "target": row.target} for row in rows]
        if task in CLOSED_BOOK and split in ("dev", "test"):
            for line, row in zip(lines, rows, strict=True):
                line["half"] = "new" if row.needs & new else "shared"
    return splits


def draw_pretraining_text(count):
    """`count` lines of unlabeled text, none of which tells the content of a dev or test row."""
    town, rng = Town(), random.Random(f"text {SEED}")
    scored = [draw_rows(task, sizes={"train": 0, "unlabeled": 0}) for task in TASKS]
    held = HeldOut(row.content for rows in scored for split in rows.values() for row in split)
    return held.draw_lines(lambda: town.draw_document(rng), count)


def show_stats(task):
    """Print sizes, lengths, labels and how much of what test needs the other splits tell."""
    splits, new = draw_rows(task), Town().new
    test, train = splits["test"], splits["train"]
    sizes = ", ".join(f"{split} {len(rows):,}" for split, rows in splits.items())
    words = sum(len(row.source.split()) for row in test) / len(test)
    print(f"{task}: {sizes}; {words:.1f} words a test source")
    counts = Counter(row.target for row in test)
    if len(counts) < 10:
        print("labels in test:", ", ".join(f"{k} {n}" for k, n in counts.most_common()))
    what = {"fever": "facts", "nq": "facts", "stanceosaurus": "cues"}.get(task, "pairs of words")
    if task in CLOSED_BOOK:
        count = sum(bool(row.needs & new) for row in test)
        print(f"test: {len(test) - count} rows on shared facts, {count} on new ones")
    needed = [need for row in test for need in row.needs]
    seen = {f"{n:,} labels": train[:n] for n in (100, 500, len(train))}
    for name, rows in {**seen, "the unlabeled rows": splits["unlabeled"]}.items():
        known = {need for row in rows for need in row.needs}
        unseen = sum(need not in known for need in needed) / len(needed)
        print(f"{unseen:.0%} of the {what} that test needs do not occur in {name}")


def main(argv=None):
    parser, tasks = make_parser(__doc__), {"choices": TASKS, "default": list(TASKS)}
    parser.add_argument("--task", nargs="+", help="(default: all five)", **tasks)
    for i, task in enumerate(parser.parse_args(argv).task):
        if i:
            print()
        show_stats(task)


if __name__ == "__main__":
    run_cli(main)
