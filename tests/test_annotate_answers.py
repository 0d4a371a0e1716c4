"""data/annotate/answers.py: what wraps a label is taken off, what is none is counted."""

from dataclasses import replace

import pytest

from data.annotate.answers import Reader
from data.tasks import load_task

SOURCE = "Add water to 1 ml of [viral] buffer"
WRAPPED = [  # around a label of each task
    "{}", " {}\n", "<think>\n\n</think>\n\n{}", "<think>It is Add [Food]\n\nor REFUTES.</think>{}",
    "[THINK]hm[/THINK]{}", "<|channel|>analysis hm<|channel|>final<|message|>{}",
    "Output: {}", "Answer: {}", "**Answer:** {}", "The final answer is: {}", "Sure! Here it is: {}",
    "Here is the answer:\n\n{}", "```\n{}\n```", "```text\n{}\n```", "Sure:\n```\n{}\n```",
    "{}\n\nExplanation: it is well known.", "- {}", "* {}", f"Input: {SOURCE}\nOutput: {{}}",
    "Output: {}\n\nInput: heat it\nOutput: heat [Action]",
]  # fmt: skip
LABEL = {"nq": "Paris", "fever": "SUPPORTS", "wlp": "Add [Action] water [Reagent]"}


@pytest.mark.parametrize("task", LABEL)
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_a_wrapped_label_is_the_label(task, wrapped):
    text = wrapped.replace("{}", LABEL[task])
    assert Reader(load_task(task)).read(text, SOURCE) == (LABEL[task], None)


@pytest.mark.parametrize(
    ("task", "text", "label"),
    [
        ("nq", "**Paris**", "Paris"),
        ("nq", '"Paris"', "Paris"),
        ("nq", "“Paris”", "Paris"),
        ("nq", "`Paris`", "Paris"),
        ("nq", "- **Answer: Paris**", "Paris"),
        ("nq", "1. Paris\n2. Lyon", "Paris"),
        ("nq", "1. FC Köln", "1. FC Köln"),
        ("nq", '"Heroes" and "Low"', '"Heroes" and "Low"'),
        ("nq", "Paris\u2028France", "Paris France"),
        ("nq", '{"answer": "Paris"}', "Paris"),
        ("nq", '{"a": 1}', '{"a": 1}'),
        ("nq", "two  words", "two words"),
        ("nq", "I Can't Help Myself", "I Can't Help Myself"),
        ("nq", "Sorry Seems to Be the Hardest Word", "Sorry Seems to Be the Hardest Word"),
        ("multipit_gen", "I can't believe it is Friday", "I can't believe it is Friday"),
        ("multipit_gen", "Sorry, I can't wait", "Sorry, I can't wait"),
        ("fever", "Category: SUPPORTS", "SUPPORTS"),
        ("fever", "{SUPPORTS}", "SUPPORTS"),
        ("fever", "**supports.**", "SUPPORTS"),
        ("fever", "Let me think about it.\nCategory: SUPPORTS", "SUPPORTS"),
        ("fever", '{"category": "SUPPORTS"}', "SUPPORTS"),
        ("fever", 'Here is the JSON: {"label": "SUPPORTS"}', "SUPPORTS"),
        ("stanceosaurus", ' "refuting".\nBecause', "Refuting"),
        ("stanceosaurus", '```json\n{"label": "Querying"}\n```', "Querying"),
        ("wlp", "- Add [Action]\n- water [Reagent]", "Add [Action] water [Reagent]"),
        ("wlp", "1. Add [Action]\n\n2. 1 ml [Amount]", "Add [Action] 1 ml [Amount]"),
        ("wlp", "Here are the entities: Add [Action]", "Add [Action]"),
        ("wlp", "What I found are these: Add [Action]", "Add [Action]"),
        ("wlp", "**Add** [Action], `water` [Reagent], and 1 ml [amount].",
         "Add [Action] water [Reagent] 1 ml [Amount]"),
        ("wlp", "Add [viral] [Action]", None),
        ("wlp", "of [viral] [Action]", "of [viral] [Action]"),
        ("wlp", '{"entities": [{"text": "Add", "label": "Action"}]}', "Add [Action]"),
        ("wlp", '[{"text": "Add", "label": "Action"}]', "Add [Action]"),
        *(("wlp", text, "") for text in ("none", "Output: None.", "**none**\n\nIt has no entity.")),
        *(("wlp", text, "") for text in ("Output:\nnone", "None\nThere is no entity here.")),
        ("wlp", "none\nAdd [Action]", None),
        *(("wlp", text, "") for text in ('{"entities": []}', "```json\n[]\n```")),
        ("wlp", "none of it", None),
    ],
)  # fmt: skip
def test_labels(task, text, label):
    assert Reader(load_task(task)).read(text, SOURCE)[0] == label


@pytest.mark.parametrize(
    ("task", "text", "finish", "reason"),
    [
        ("stanceosaurus", "not Supporting", "stop", "unparseable"),
        ("stanceosaurus", "Supporting or Refuting", "stop", "unparseable"),
        ("stanceosaurus", '{"label": "Agreeing"}', "stop", "unparseable"),
        ("stanceosaurus", "Sup", "length", "truncated"),
        ("stanceosaurus", " \n", "stop", "empty"),
        ("stanceosaurus", "", "length", "truncated"),
        ("stanceosaurus", "I'm sorry, but I can't help.", "stop", "refusal"),
        ("stanceosaurus", "I cannot say.", "stop", "refusal"),
        ("stanceosaurus", "Querying", "refusal", "refusal"),
        ("wlp", "Add [Food] 1 ml [Amount]", "stop", "unparseable"),
        ("wlp", "Add [Action] 1 ml", "stop", "unparseable"),
        ("wlp", "[Action]", "stop", "unparseable"),
        ("wlp", "Add [Action] milk [Reagent]", "stop", "not in the source"),
        ("wlp", "Add [Action] 1", "length", "truncated"),
        ("wlp", "none", "length", "truncated"),
        ("wlp", "", "stop", "empty"),
        ("wlp", '{"entities": [{"text": "Add"}]}', "stop", "unparseable"),
        ("fever", "Input: Rome is big\nOutput: SUPPORTS", "stop", "unparseable"),
        ("nq", "Input: Where is Rome?\nOutput: Italy", "stop", "unparseable"),
        ("nq", "I cannot answer that.", "stop", "refusal"),
        ("nq", "I'm sorry, but as an AI I can't assist with that request.", "stop", "refusal"),
        ("nq", "I don't know.", "stop", "refusal"),
        ("nq", "<think>Paris is", "length", "truncated"),
        ("nq", "<think>Paris is", "stop", "empty"),
        ("multipit_gen", "I'm sorry, but I can't help with that.", "stop", "refusal"),
        ("multipit_gen", "cut of", "length", "truncated"),
        ("nq", "too much", "too long", "too long"),
    ],
)
def test_what_is_no_label_is_counted(task, text, finish, reason):
    """Never made into a class."""
    assert Reader(load_task(task)).read(text, SOURCE, finish) == (None, reason)


def test_what_the_source_begins_with_is_no_wrapper():
    reader = Reader(load_task("multipit_gen"))
    refusal = "I can't help you with that tonight, sorry"
    for source, answer in (
        (refusal, "Sorry, I can't help you with that today"),
        ("Answer: yes", "Answer: yes, it is"),
        ("- so it goes", "- thus it goes"),
        ('"Never" is a word', '"Not ever"'),
    ):
        assert reader.read(answer, source) == (answer, None)


def test_labels_that_look_like_wrappers_are_labels():
    reader = Reader(replace(load_task("fever"), labels=("<=50K", ">50K", "-", "*", "IT", "It")))
    for label in reader.labels:
        assert reader.read(label, "x") == (label, None)
    assert reader.read("it", "x") == (None, "unparseable")  # of two
