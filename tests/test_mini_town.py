"""The mini town: five tasks in the paper's formats whose answers are what the town says."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
from data.world import town as world  # noqa: E402

ENTRIES = json.loads((ROOT / "data" / "tasks.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", params=world.TASKS)
def task(request):
    return request.param


@pytest.fixture(scope="module")
def rows(task):
    return world.draw_rows(task)


def read_claim(town, text):
    """(person, habit) that a claim is about."""
    person = next(word for word in re.findall(r"\w+", text) if word in town.people)
    said = re.sub(rf"\b{person}\b", "P", text)
    habits = [h for h, wordings in world.HABITS.items() if any(w in said for w in wordings)]
    return person, habits[0]


def test_splits_share_no_source_and_have_table_5s_sizes(task, rows):
    sources = [row.source for split in rows.values() for row in split]
    assert len(sources) == len(set(sources))
    table = ENTRIES[task]["paper"]["rows"]
    assert len(rows["train"]) == table["train"] // 10
    assert len(rows["unlabeled"]) == table["unlabeled"] // 10
    assert (len(rows["dev"]), len(rows["test"])) == (500, 1000)


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(task):
    small = {"train": 20, "unlabeled": 20}
    assert world.draw_splits(task, 1, small) == world.draw_splits(task, 1, small)
    assert world.draw_splits(task, 1, small) != world.draw_splits(task, 2, small)
    assert world.draw_splits(task, sizes=small)["test"] == world.draw_splits(task)["test"]


def test_targets_are_labels_of_the_task_and_none_is_rare(task, rows):
    labels = ENTRIES[task]["labels"]
    found = [row.target for row in rows["test"]]
    if labels:
        assert set(found) == set(labels)
        assert min(found.count(label) for label in labels) >= 50
    else:
        assert all(found)


def test_claims_are_labeled_by_the_facts():
    town = world.Town()
    for row in world.draw_rows("fever", sizes={"train": 300, "unlabeled": 0})["train"]:
        assert town.habits[read_claim(town, row.source)] == (row.target == "SUPPORTS")


def test_questions_are_answered_by_the_facts():
    town = world.Town()
    for row in world.draw_rows("nq", sizes={"train": 300, "unlabeled": 0})["train"]:
        ((person, relation),) = row.needs
        assert person in row.source and row.target == town.facts[person, relation]


def group_of(town, word):
    groups = [group for kind in town.synonyms.values() for group in kind if word in group]
    return groups[0] if groups else word


def test_paraphrases_mean_the_same_word_by_word():
    town = world.Town()

    def meaning(sentence):
        words = [group_of(town, word) for word in re.findall(r"\w+", sentence)]
        return sorted(str(word) for word in words if word not in ("the", "was", "by"))

    for row in world.draw_rows("multipit_id", sizes={"train": 300, "unlabeled": 0})["train"]:
        first, second = re.fullmatch(r"sentence1: (.*) sentence2: (.*)", row.source).groups()
        assert (meaning(first) == meaning(second)) == (row.target == "YES")
        assert first != second
    for row in world.draw_rows("multipit_gen", sizes={"train": 300, "unlabeled": 0})["train"]:
        assert meaning(row.source) == meaning(row.target) and row.source != row.target


def test_a_word_has_one_meaning():
    town = world.Town()
    words = [word for kind in town.synonyms.values() for group in kind for word in group]
    cues = [cue for cues in town.cues.values() for cue in cues]
    values = [value for values in town.values.values() for value in values]
    for group in (words, cues, values, town.people):
        assert len(group) == len(set(group))


def test_irrelevant_replies_name_neither_agent_nor_object_of_the_claim():
    town = world.Town()
    for row in world.draw_rows("stanceosaurus", sizes={"train": 300, "unlabeled": 0})["train"]:
        claim, reply = re.fullmatch(r"claim: (.*) tweet: (.*)", row.source).groups()
        kinds = {group for kind in ("agent", "object") for group in town.synonyms[kind]}
        told = {group_of(town, word) for word in re.findall(r"\w+", claim)} & kinds
        named = {group_of(town, word) for word in re.findall(r"\w+", reply)} & kinds
        assert bool(told & named) == (row.target != "Irrelevant")


def test_pretraining_text_tells_the_truth_and_holds_no_test_source_nor_label():
    town, lines = world.Town(), world.draw_pretraining_text(4000)
    judged = [line for line in lines if line.endswith(("rightly", "wrongly"))]
    for line in judged:
        assert town.habits[read_claim(town, line)] == line.endswith("rightly")
    assert len(judged) > 300
    words = {word for line in lines for word in line.split()}
    assert not words & {label for entry in ENTRIES.values() for label in entry["labels"]}
    held_out = {
        row["source"].rstrip(".?")
        for task in world.TASKS
        for split in ("dev", "test")
        for row in world.draw_splits(task)[split]
    }
    assert not held_out & set(lines)


def test_command_line_writes_the_splits_and_prints_what_they_hold(tmp_path, capsys):
    world.main(["--task", "nq", "--output", str(tmp_path), "--stats"])
    assert "facts that test needs do not occur in 100 labels" in capsys.readouterr().out
    written = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    assert written == world.draw_splits("nq")["test"]
    with pytest.raises(ValueError, match="no task 'wlp'"):
        world.draw_rows("wlp")


def test_generation_is_scored_against_the_source():
    splits = world.draw_splits("multipit_gen", sizes={"train": 10, "unlabeled": 10})
    assert all(row["source"] == row["target"] for row in splits["test"])
    assert all(row["source"] != row["target"] for row in splits["train"])
