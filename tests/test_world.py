"""The made-up world: its rows, what splits and text give away, its models and their cards."""

import functools
import re
import shutil
from types import SimpleNamespace

import pytest
from transformers import PreTrainedTokenizerFast

from data import files
from data.evaluate import metrics, paraphrase
from data.tasks import load_tasks
from data.world import lab, pretrain, town

ENTRIES = {task.name: task for task in load_tasks("all")}
REGIONS = ("lab", "town")


@pytest.fixture(scope="module", params=town.TASKS)
def task(request):
    return request.param


@functools.cache
def draw_rows(task):
    return town.draw_rows(task)


@pytest.fixture
def rows(task):
    return draw_rows(task)


def read_claim(here, text):
    """(person, habit) that a claim is about."""
    person = next(word for word in re.findall(r"\w+", text) if word in here.people)
    said = re.sub(rf"\b{person}\b", "P", text)
    habits = [h for h, told in here.lists["habits"].items() if any(w in said for w in told)]
    return person, habits[0]


def test_splits_share_no_source_and_have_table_5s_sizes(task, rows):
    sources = [row.source for split in rows.values() for row in split]
    assert len(sources) == len(set(sources))
    table = ENTRIES[task].rows
    assert len(rows["train"]) == table["train"] // 10
    assert len(rows["unlabeled"]) == table["unlabeled"] // 10
    assert (len(rows["dev"]), len(rows["test"])) == (500, 1000)


def test_the_same_seed_draws_the_same_rows_and_another_seed_others(task):
    small = {"train": 20, "unlabeled": 20}
    assert town.draw_splits(task, 1, small) == town.draw_splits(task, 1, small)
    assert town.draw_splits(task, 1, small) != town.draw_splits(task, 2, small)
    assert town.draw_rows(task, sizes=small)["test"] == draw_rows(task)["test"]


def test_targets_are_labels_of_the_task_and_none_is_rare(task, rows):
    labels = ENTRIES[task].labels
    found = [row.target for row in rows["test"]]
    if labels:
        assert set(found) == set(labels)
        assert min(found.count(label) for label in labels) >= 50
    else:
        assert all(found)


def test_claims_are_labeled_by_the_facts():
    here = town.Town()
    for row in town.draw_rows("fever", sizes={"train": 300, "unlabeled": 0})["train"]:
        assert here.habits[read_claim(here, row.source)] == (row.target == "SUPPORTS")


def test_questions_are_answered_by_the_facts():
    here = town.Town()
    for row in town.draw_rows("nq", sizes={"train": 300, "unlabeled": 0})["train"]:
        ((person, relation),) = row.needs
        assert person in row.source and row.target == here.facts[person, relation]


def group_of(here, word):
    groups = [group for kind in here.synonyms.values() for group in kind if word in group]
    return groups[0] if groups else word


def test_paraphrases_mean_the_same_word_by_word():
    here = town.Town()

    def meaning(sentence):
        words = [group_of(here, word) for word in re.findall(r"\w+", sentence)]
        return sorted(str(word) for word in words if word not in ("the", "was", "by"))

    for row in town.draw_rows("multipit_id", sizes={"train": 300, "unlabeled": 0})["train"]:
        first, second = re.fullmatch(r"sentence1: (.*) sentence2: (.*)", row.source).groups()
        assert (meaning(first) == meaning(second)) == (row.target == "YES")
        assert first != second
    for row in town.draw_rows("multipit_gen", sizes={"train": 300, "unlabeled": 0})["train"]:
        assert meaning(row.source) == meaning(row.target) and row.source != row.target


def test_a_word_has_one_meaning():
    here = town.Town()
    words = [word for kind in here.synonyms.values() for group in kind for word in group]
    cues = [cue for cues in here.cues.values() for cue in cues]
    values = [value for values in here.values.values() for value in values]
    for group in (words, cues, values, here.people):
        assert len(group) == len(set(group))


def test_irrelevant_replies_name_neither_agent_nor_object_of_the_claim():
    here = town.Town()
    for row in town.draw_rows("stanceosaurus", sizes={"train": 300, "unlabeled": 0})["train"]:
        claim, reply = re.fullmatch(r"claim: (.*) tweet: (.*)", row.source).groups()
        kinds = {group for kind in ("agent", "object") for group in here.synonyms[kind]}
        told = {group_of(here, word) for word in re.findall(r"\w+", claim)} & kinds
        named = {group_of(here, word) for word in re.findall(r"\w+", reply)} & kinds
        assert bool(told & named) == (row.target != "Irrelevant")


def test_pretraining_text_tells_the_truth_and_holds_no_label():
    here, lines = town.Town(), town.draw_pretraining_text(4000)
    judged = [line for line in lines if line.endswith(("rightly", "wrongly"))]
    for line in judged:
        assert here.habits[read_claim(here, line)] == line.endswith("rightly")
    assert len(judged) > 300
    words = {word for line in lines for word in line.split()}
    assert not words & {label for entry in ENTRIES.values() for label in entry.labels}


def find_told(contents, lines):
    """The contents, tuples of texts, all of whose texts are in one of the lines."""
    text = "\n".join(lines)
    near = [content for content in contents if all(part in text for part in content)]
    return [c for c in near if any(all(part in line for part in c) for line in lines)]


def list_contents(task):
    """The contents of dev and test: what no other text may tell."""
    if task == "wlp":
        return [(row["source"],) for split in ("dev", "test") for row in lab.draw_splits()[split]]
    rows = draw_rows(task)
    for row in rows["test"]:
        assert row.content and all(text in row.source for text in row.content)
    return [row.content for split in ("dev", "test") for row in rows[split]]


def test_find_told_finds_what_is_planted():
    lines = ["well then does Barlo swim? yes", "the cook left unlike the chef left"]
    planted = [("does Barlo swim?",), ("the chef left", "the cook left")]
    assert find_told([*planted, ("does Barlo sing?",), ("the cook left", "swim")], lines) == planted
    held = lab.HeldOut(planted)
    assert [held.told_in(line) for line in [*lines, "does Barlo sing? no"]] == [True, True, False]


@pytest.mark.parametrize("task", ENTRIES)
def test_no_line_of_the_pretraining_text_tells_a_dev_or_test_row(task):
    """On the first tenth of the text that the models are trained on."""
    text = pretrain.TEXT["lab" if task == "wlp" else "town"].draw_pretraining_text(15000)
    assert find_told(list_contents(task), text) == []


@pytest.mark.parametrize("task", ENTRIES)
def test_no_train_or_unlabeled_row_tells_a_dev_or_test_row(task):
    known = ("train", "unlabeled")
    if task == "wlp":
        sources = [row["source"] for split in known for row in lab.draw_splits()[split]]
    else:
        sources = [row.source for split in known for row in draw_rows(task)[split]]
    assert find_told(list_contents(task), sources) == []


@pytest.mark.parametrize("task", ["fever", "nq"])
def test_half_of_the_test_facts_occur_in_no_train_or_unlabeled_row(task):
    rows, splits = draw_rows(task), town.draw_splits(task)
    known = {
        split: {need for row in rows[split] for need in row.needs}
        for split in ("train", "unlabeled")
    }
    for split in ("dev", "test"):
        halves = {"shared": [], "new": []}
        for row, line in zip(rows[split], splits[split], strict=True):
            halves[line["half"]] += row.needs
        assert 0.4 < len(halves["new"]) / len(rows[split]) < 0.6
        for needs in known.values():
            assert set(halves["shared"]) <= needs and not set(halves["new"]) & needs
    assert not any("half" in row for split in known for row in splits[split])


def test_the_measure_ranks_paraphrases_above_shuffled_sources_and_copies():
    """On 200 rows of test, by the measure and encoder of the task."""
    drawn = town.draw_splits("multipit_gen", sizes={"train": 0, "unlabeled": 0})["test"][:200]
    texts = [(row["source"], row["target"], row["target"]) for row in drawn]
    rows = [metrics.Row(*text, None, *text) for text in texts]
    flags = ENTRIES["multipit_gen"].at("mini", "evaluate")
    options = {key.replace("-", "_"): value for key, value in flags.items()}
    options = SimpleNamespace(**options, rule="strict")
    details = paraphrase.score_paraphrase(rows, ENTRIES["multipit_gen"], options).details
    points = details["reference_points"]
    assert points["gold"] > max(94, points["shuffled_source"] + 0.5) and points["copy"] < 1
    assert "note" not in details


def test_command_lines_print_what_the_splits_hold(capsys):
    town.main(["--task", "nq"])
    assert "facts that test needs do not occur in 100 labels" in capsys.readouterr().out
    lab.main([])
    assert "N=100: 72% of the test entities not among the labeled ones" in capsys.readouterr().out


def list_models(region):
    """The folders of the committed models of a region."""
    prefix = "" if region == "lab" else f"{region}-"
    return [pretrain.MODELS / f"{prefix}{which}" for which in pretrain.WHICH[region]]


def test_no_model_lies_about_that_nothing_makes():
    made = {folder for region in REGIONS for folder in list_models(region)}
    assert made == {folder for folder in pretrain.MODELS.iterdir() if folder.name != "work"}


@pytest.mark.parametrize("region", REGIONS)
def test_cards_say_what_was_recorded_and_all_models_saw_as_many_examples(region):
    for folder in list_models(region):
        assert (folder / "README.md").read_text() == pretrain.format_card(folder)
        facts = files.read_json(folder / "pretraining.json")
        steps = pretrain.SHORT.get(facts["model"], pretrain.STEPS[region])
        assert (facts["steps"], facts["examples"]) == (steps, 96 * steps)


@pytest.mark.parametrize("region", REGIONS)
def test_models_of_a_region_share_one_vocabulary_in_which_any_text_comes_back(region):
    folders = list_models(region)
    tokenizers = [PreTrainedTokenizerFast.from_pretrained(folder) for folder in folders]
    assert all(one.get_vocab() == tokenizers[0].get_vocab() for one in tokenizers)
    pieces = {file.read_bytes() for folder in folders for file in folder.glob("spiece.model")}
    assert len(pieces) == 1
    labels = [label for entry in ENTRIES.values() for label in entry.labels]
    texts = ["New York City", "GOOD BAD NEITHER", "naïve café à 12 é", "1.19 of 2,000 (3%)"]
    texts += ["🙂🙂 ok 🙂", "日本 語 text", " ".join(labels), *labels]
    for tokenizer in tokenizers:
        for text in texts:
            assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


def test_a_killed_pre_training_continues_to_the_same_weights(tmp_path, capsys):
    flags = ["--region", "town", "--which", "student", "--lines", "2000", "--batch-size", "8"]
    flags += ["--steps", "4", "--save-steps", "2", "--output"]
    pretrain.main([*flags, str(tmp_path / "whole")])
    shutil.copytree(tmp_path / "whole" / "work", tmp_path / "cut" / "work")
    shutil.rmtree(tmp_path / "cut" / "work" / "town" / "student" / "checkpoint-4")
    pretrain.main([*flags, str(tmp_path / "cut")])
    names = ("model.safetensors", "tokenizer.json", "spiece.model")
    for name in names:
        one, two = (tmp_path / run / "town-student" / name for run in ("whole", "cut"))
        assert one.read_bytes() == two.read_bytes()
    assert "[town student] step" in capsys.readouterr().err


def test_the_readme_lists_the_models_as_they_are():
    text = (pretrain.MODELS.parent / "README.md").read_text()
    assert pretrain.format_table(pretrain.MODELS) in text
