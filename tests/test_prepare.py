"""data/prepare.py and fetch.py: splits, layouts, faults by line, downloads that go wrong."""

import argparse
import hashlib
import http.server
import io
import itertools
import json
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from data import columns, fetch, prepare
from data.costs.flags import make_flags
from data.files import UserError
from data.spans import find_spans, write_spans
from data.tasks import load_task, make_task

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = ROOT.parent / "shared" / "data" / "official"
needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the authors' files are not beside the repository"
)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def make_rows(count, start=0, target="mix [Action]"):
    return [{"source": f"sentence {i}", "target": target} for i in range(start, start + count)]


def make_folder(folder, **splits):
    """A data folder of `train=rows, test=rows, ...`."""
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


def run(output, *flags, data=None, task="wlp"):
    """{split: rows} that prepare.py wrote."""
    where = ["--data", str(data)] if data else []
    prepare.main(["--task", task, "--output", str(output), *where, *map(str, flags)])
    return {split: read_rows(output / f"{split}.jsonl") for split in prepare.SPLITS}


def assert_disjoint(splits):
    sources = {split: {row["source"] for row in rows} for split, rows in splits.items()}
    for one in sources:
        for other in sources:
            assert one == other or not sources[one] & sources[other], (one, other)


# --- splits ----------------------------------------------------------------------------------


def test_mini_world_is_the_generators(tmp_path, capsys):
    splits = run(tmp_path / "a")
    sizes = {"train": 1200, "dev": 500, "test": 1000, "unlabeled": 11100}
    assert {split: len(rows) for split, rows in splits.items()} == sizes
    assert_disjoint(splits)
    assert "1,200" in capsys.readouterr().out
    about = json.loads((tmp_path / "a" / "about.json").read_text())
    assert about["rows"] == sizes and about["seed"] == 0


def test_answers_to_unlabeled_rows_lie_apart(tmp_path):
    """Known for the mini world and for rows taken from train; no file where any is not known."""
    splits = run(tmp_path / "mini")
    gold = read_rows(tmp_path / "mini" / "unlabeled_gold.jsonl")
    assert [row["source"] for row in gold] == [row["source"] for row in splits["unlabeled"]]
    assert all("[" in row["target"] for row in gold)
    assert all(set(row) == {"source"} for row in splits["unlabeled"])
    rows = [{"source": f"s {i}", "target": f"s {i} [Action]"} for i in range(300)]
    data = make_folder(tmp_path / "mine", train=rows, test=make_rows(20))
    splits = run(tmp_path / "out", data=data)
    gold = read_rows(tmp_path / "out" / "unlabeled_gold.jsonl")
    assert [row["source"] for row in gold] == [row["source"] for row in splits["unlabeled"]]
    assert all(row in rows for row in gold)
    assert all(set(row) == {"source"} for row in splits["unlabeled"])
    write_rows(data / "unlabeled.jsonl", [{"source": "a"}, {"source": "b", "target": "x"}])
    splits = run(tmp_path / "out", data=data)
    assert all(set(row) == {"source"} for row in splits["unlabeled"])
    assert not (tmp_path / "out" / "unlabeled_gold.jsonl").exists()


def test_plain_folder_keeps_files_and_removes_overlap(tmp_path, capsys):
    data = make_folder(
        tmp_path / "mine",
        train=[*make_rows(40), {"source": "in test", "target": "x [Action]"}],
        dev=[*make_rows(5, 100), {"source": "sentence 0", "target": ""}],
        test=[{"source": "in test", "target": ""}, *make_rows(3, 200)],
        unlabeled=[{"source": "sentence 3"}, {"source": "new"}, {"source": "new"}],
    )
    splits = run(tmp_path / "out", data=data)
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [39, 6, 4]
    assert splits["unlabeled"] == [{"source": "new"}]
    assert splits["test"][0] == {"source": "in test", "target": ""}  # kept: it is scored
    assert_disjoint(splits)
    printed = capsys.readouterr().out
    assert "1 row dropped: their source is in test" in printed
    assert "1 repeated source dropped" in printed


def test_unlabeled_drawn_from_train_is_seeded_and_disjoint(tmp_path):
    train = make_rows(300) + make_rows(50, target="other [Action]") + make_rows(5, 900, target="")
    data = make_folder(tmp_path / "mine", train=train, test=make_rows(20, 1000))
    flags = ("--train-rows", 100, "--dev-rows", 20, "--test-rows", 10)
    splits = run(tmp_path / "a", *flags, data=data)
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 100,
        "dev": 20,
        "test": 10,
        "unlabeled": 185,  # the rest and the five without a target
    }
    assert_disjoint(splits)
    assert all(row["target"] for row in splits["train"])
    assert run(tmp_path / "b", *flags, data=data) == splits
    assert run(tmp_path / "c", *flags, "--seed", 1, data=data) != splits


def test_dev_is_drawn_where_absent(tmp_path):
    data = make_folder(
        tmp_path / "mine",
        train=make_rows(200),
        test=make_rows(20, 1000),
        unlabeled=[{"source": "new"}],
    )
    splits = run(tmp_path / "out", data=data)
    assert len(splits["dev"]) == 20 and len(splits["train"]) == 180
    assert_disjoint(splits)


def test_authors_layout_and_folder_name(tmp_path):
    rows = [{"source": f"s {i}", "target": f"t {i}"} for i in range(40)]
    folder = tmp_path / "authors" / "multipit"
    write_rows(folder / "multipit_train_all.json", rows)
    write_rows(folder / "multipit_test_all.json", rows[:4])
    splits = run(tmp_path / "out", data=tmp_path / "authors", task="multipit_gen")
    assert len(splits["test"]) == 4
    folder = tmp_path / "authors" / "nq"  # the test set is private: dev is scored
    write_rows(folder / "nq_train_all.json", rows)
    write_rows(folder / "nq_dev_all.json", [{"source": "q", "target": ["a", "b"]}])
    splits = run(tmp_path / "nq", data=tmp_path / "authors", task="nq")
    assert splits["test"] == [{"source": "q", "target": ["a", "b"]}]
    assert len(splits["dev"]) == 4


def test_separators_inside_a_text_do_not_split_a_line(tmp_path):
    rows = [{"source": f"line\u2028break\x85 {i}", "target": "a [Action]"} for i in range(30)]
    data = make_folder(tmp_path / "mine", train=rows, test=make_rows(3))
    splits = run(tmp_path / "out", data=data)
    assert "\u2028" in splits["train"][0]["source"]


@needs_official
def test_official_wlp_at_both_scales(tmp_path, capsys):
    mini = run(tmp_path / "mini", "--test-rows", 500, data=OFFICIAL)
    assert len(mini["train"]) == 1196 and len(mini["test"]) == 500
    assert len(mini["unlabeled"]) > 8000
    assert_disjoint(mini)
    extra = write_rows(tmp_path / "u.jsonl", [{"source": "Add 5 ml."}])
    paper = run(tmp_path / "p", "--scale", "paper", "--unlabeled", extra, data=OFFICIAL, task="wlp")
    assert len(paper["test"]) == 3562
    assert sum(not row["target"] for row in paper["test"]) == 21
    assert_disjoint(paper)
    printed = capsys.readouterr().out
    assert "the file has 14,271 rows where Table 5 says 11,966" in printed
    assert "344 rows dropped: their source is in test" in printed
    assert "110,999 fewer than the paper's largest run uses" in printed


# --- faults ----------------------------------------------------------------------------------


def test_faults_name_file_and_line(tmp_path, capsys):
    lines = [
        '{"source": "a", "target": "SUPPORTS"}',
        '{"source": "b"}',
        "",
        "[1]",
        "nope",
        '{"source": " ", "target": "REFUTES"}',
        '{"source": "c", "target": "maybe"}',
        '{"source": 3, "target": "REFUTES"}',
        '{"source": "so happy \\ud83d", "target": "REFUTES"}',
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    write_rows(tmp_path / "test.jsonl", [{"source": "t", "target": "REFUTES"}])
    with pytest.raises(UserError, match=r"train.jsonl line 2: no 'target' \(and 6 more"):
        prepare.main(["--task", "fever", "--data", str(tmp_path), "--check"])
    printed = capsys.readouterr().out
    for fault in (
        "line 4: not a JSON object",
        "line 5: not JSON",
        "line 6: the source is empty",
        "line 7: target is none of REFUTES, SUPPORTS: 'maybe'",
        "line 8: 'source' is not a text: 3",
        "line 9: half of a character (a lone surrogate) is no text",
    ):
        assert f"train.jsonl {fault}" in printed


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": make_rows(9)}, "no test rows of wlp; looked for"),
        ({"test": make_rows(9)}, "no train rows of wlp"),
        ({"train": [], "test": make_rows(9)}, "train.jsonl: no rows"),
        ({"train": make_rows(9), "test": make_rows(9)}, "no rows are left for train"),
    ],
)
def test_missing_and_empty_files(tmp_path, splits, message):
    data = make_folder(tmp_path / "mine", **splits)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(tmp_path):
    data = make_folder(tmp_path / "mine", train=make_rows(50), test=make_rows(5, 100))
    (data / "unlabeled.jsonl").write_bytes(b'{"source": "a"}\n{"source": "\xff"}\n')
    with pytest.raises(SystemExit) as error:
        prepare.main(["--task", "wlp", "--data", str(data), "--check", "--unlabeled", ""])
    assert error.value.code == 2
    for flags, message in [
        (["--task", "wlp", "--data", str(data)], "unlabeled.jsonl line 2: not UTF-8"),
        (["--task", "nope"], "unknown task 'nope'"),
        (["--task", "wlp", "--scale", "huge"], "unknown scale 'huge'"),
        (["--task", "wlp", "--test-rows", "500"], "--test-rows: goes with --data"),
        (["--task", "nq", "--seed", "1"], "--seed: goes with --data"),
        (["--task", "wlp", "--data", str(tmp_path / "no")], "no such folder"),
        (["--task", "wlp", "--data", str(data), "--unlabeled", "no.jsonl"], "no.jsonl: no such"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare.main([*flags, "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="holds the data to read"):
        prepare.main(["--task", "wlp", "--data", str(data), "--output", str(data)])
    with pytest.raises(SystemExit) as error:
        prepare.main(["--task", "wlp"])
    assert error.value.code == 2


def test_paper_scale_without_unlabeled_says_what_to_do(tmp_path):
    data = make_folder(tmp_path / "mine", train=make_rows(50), test=make_rows(5, 100))
    command = [sys.executable, "-m", "data.prepare", "--task", "wlp", "--scale", "paper"]
    command += ["--data", str(data), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no unlabeled rows of wlp")
    assert done.stderr.count("\n") == 1 and "drive.google.com" in done.stderr
    splits = run(tmp_path / "out", "--scale", "paper", "--unlabeled", "rest", data=data)
    assert_disjoint(splits)


# --- files of one's own -----------------------------------------------------------------------

INTENTS = [f"intent {letter}" for letter in "abcdefghijkl"]
ENTRY = {"title": "Mine", "metric": "classes", "prefix": "mine: ", "labels": INTENTS}
ENTRY |= {"max_source_length": 32, "max_target_length": 16, "labels_n": [20], "budgets": [10]}
ENTRY |= {"usd_per_label": 0.1, "teacher_gpu_hours": 1, "distill_gpu_hours_per_100k": 10}
GENES = {**ENTRY, "metric": "entities", "labels": ["Gene", "Cell Line"], "max_source_length": 64}
GENES |= {"max_target_length": 64}


def read_own(path, entry, labeled=True, **asked):
    """(rows, faults as texts, notes) of a file."""
    table, task = columns.read_table(path), make_task("mine", entry)
    found = columns.make_rows(table, task, labeled, asked)
    return found[0], list(map(str, found[1])), found[2]


def find_faults(path):
    """The faults of a file of intents as texts, or the error that refuses it whole."""
    try:
        return read_own(path, ENTRY)[1]
    except UserError as error:
        return [str(error)]


def write_csv(path, rows, mark=","):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path.write_bytes("\r\n".join([*lines, ""]).encode("utf-8-sig"))
    return path


@pytest.mark.parametrize(("name", "mark"), [("a.csv", ","), ("B.CSV", ";"), ("c.TSV", "\t")])
def test_csv_is_read_as_it_is(tmp_path, name, mark):
    """Quotes, line ends in a cell, NA and null: text stays text; lines are the file's own."""
    rows = [
        ["id", "text", "label"],
        ["1", 'say "x",\nthen; go', "intent a"],
        ["2", "NA", "INTENT B"],
    ]
    path = write_csv(tmp_path / name, [*rows, ["3", "null", " "]], mark)
    found, faults, notes = read_own(path, ENTRY)
    assert found == [
        {"source": 'say "x",\nthen; go', "target": "intent a"},
        {"source": "NA", "target": "intent b"},
    ]
    assert faults == [f"{path} line 5: target is none of {', '.join(INTENTS)}: ' '"]
    assert notes == [
        f"{path}: source from 'text' and target from 'label' (guessed; columns: id, text, label)",
        "1 target spelled otherwise than the label: 1 'INTENT B' for 'intent b'",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,label\na,intent a\nb\n",
            "line 3: 2 columns in the heading and another number here: 1",
        ),
        ('text,label\n"a,intent a\nb,intent a\n', "line 2: not CSV: unexpected end of data"),
        ("text,text\na,b\n", "two columns of one name"),
        (
            "utterance,intent\na,b\n",
            "no 'source'; it has 'utterance', 'intent': name the right one",
        ),
        ("", "no rows"),
        ("text,label\n", "no rows"),
        ("text,label\na,intent a\n\ufefftext,label\n", "line 3: the heading once more; remove it"),
        ('text\tlabel\n"a\tintent a\nb"\tintent b\n', 'line 2: a " that opens a cell takes in'),
        ("t\0e\0x\0t\0,\0", "line 1: not a text (a NUL, as in UTF-16); save it as UTF-8"),
        ("text,label\na,intent a\n,\nb,intent b\n", "line 3: the source is empty"),
        ("x,text,label\na\n,\nb\n", " line "),  # the blank row has all columns, too
    ],
)
def test_broken_csv(tmp_path, content, message):
    (tmp_path / "a.csv").write_text(content)
    faults = find_faults(tmp_path / "a.csv")
    assert [fault for fault in faults if message in fault] == faults != []


@pytest.mark.parametrize(
    "text",
    [
        "text,label,,\r\na b,intent a,,\r\nc,intent b\r\n,,\r\n,,,\r\n",  # a spreadsheet's rest
        "sep=;\r\ntext;label\r\na b;intent a\r\nc;intent b",
        "\n\ntext;label\ra b;intent a\rc;intent b",
    ],
)
def test_csv_of_a_spreadsheet(tmp_path, text):
    (tmp_path / "a.csv").write_bytes(text.encode())
    rows, faults, _ = read_own(tmp_path / "a.csv", ENTRY)
    assert not faults and [tuple(row.values()) for row in rows] == [
        ("a b", "intent a"),
        ("c", "intent b"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[\n{"text": "a", "label": "b"},\n]', r"a.json: not JSON \(.* in line 3"),
        ('[{"text": "a", "label"', r"a.json: not JSON \(Expecting"),
        ('{\n"data": []}', "a.json: one object; a list of objects is needed, or one a line"),
    ],
)
def test_one_json_value_over_lines_is_told_by_its_own_fault(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=message):
        read_own(tmp_path / "a.json", ENTRY)


def test_a_guess_among_several_columns_is_said(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [{"source": "web", "text": "a", "target": "intent a"}])
    assert "(guessed; columns: source, text, target)" in read_own(path, ENTRY)[2][0]
    assert read_own(path, ENTRY, source="text")[0][0]["source"] == "a"


@pytest.mark.parametrize(
    ("value", "entry", "target"),
    [
        (3, {**ENTRY, "labels": ["3", "4"]}, "3"),
        (3, ENTRY, "target is a number; write the name of the class, one of intent a"),
        (["intent c"], ENTRY, "intent c"),  # doccano
        (None, ENTRY, "target is none of intent a"),
        (True, ENTRY, "target is none of intent a"),
        (1912, {**ENTRY, "metric": "answers", "labels": []}, "1912"),
        (["a", 2], {**ENTRY, "metric": "answers", "labels": []}, ["a", "2"]),
        ({"text": ["a"], "answer_start": [0]}, {**ENTRY, "metric": "answers", "labels": []}, ["a"]),
        ([], {**ENTRY, "metric": "answers", "labels": []}, "is not a text or a list of texts"),
        (["", " "], {**ENTRY, "metric": "answers"}, "is not a text or a list of texts: ['', ' ']"),
        (["", "a"], {**ENTRY, "metric": "answers"}, ["a"]),
        ("['a', 'b']", {**ENTRY, "metric": "answers"}, "a list written as one text"),
        ("[]", {**ENTRY, "metric": "answers"}, "a list written as one text"),
        ('{"text": ["a"]}', {**ENTRY, "metric": "answers"}, "a list written as one text"),
        ("[a] or {b}", {**ENTRY, "metric": "answers"}, "[a] or {b}"),
        (10**400, {**ENTRY, "metric": "answers"}, str(10**400)),
        (
            "cafe\u0301  au\u00a0lait",
            {**ENTRY, "labels": ["Caf\u00e9 au lait", "x"]},
            "Café au lait",
        ),
        ({"choices": ["intent c"]}, ENTRY, "intent c"),  # Label Studio
        ([{"choices": ["intent c"]}], ENTRY, "intent c"),
        ({"choices": ["intent a", "intent b"]}, ENTRY, "['intent a', 'intent b']"),
        ([{"text": ["a"]}], {**ENTRY, "metric": "answers"}, ["a"]),
    ],
)
def test_targets_in_their_forms(tmp_path, value, entry, target):
    path = write_rows(tmp_path / "a.jsonl", [{"source": "s", "target": value}])
    rows, faults, _ = read_own(path, entry)
    assert rows[0]["target"] == target if rows else target in faults[0]


@pytest.mark.parametrize("value", [None, "", " ", []])  # the last as doccano exports it
def test_a_row_without_its_class_is_blank_where_it_may_be(value):
    table = columns.Table("a", [("line 1", {"text": "a", "label": value})])
    for blank, found in ((True, [{"source": "a", "target": ""}]), (False, [])):
        rows, faults, _ = columns.make_rows(table, make_task("mine", ENTRY), True, {}, blank)
        assert rows == found and bool(faults) != blank


def test_columns_by_name_and_prodigy_answers(tmp_path):
    rows = [{"text": "a", "label": "intent a", "answer": "accept", "body": "long a"}]
    for answer in ("reject", "ignore", "reject"):
        rows += [{"text": "b", "label": "intent b", "answer": answer, "body": "long b"}]
    path = write_rows(tmp_path / "a.jsonl", rows)
    found, _, notes = read_own(path, ENTRY, source="body")
    assert found == [{"source": "long a", "target": "intent a"}]
    assert "3 rows left out: 1 ignore, 2 reject" in notes
    with pytest.raises(UserError, match="no column 'nope'; it has 'text', 'label'"):
        read_own(path, ENTRY, source="nope")


def test_parquet_and_hub_with_named_classes(tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    kinds = {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=INTENTS)}
    (tmp_path / "hub").mkdir()
    for split in ("train", "validation"):
        rows = {"text": [f"{split} {i}" for i in range(40)], "label": [i % 12 for i in range(40)]}
        data = datasets.Dataset.from_dict(rows, datasets.Features(kinds))
        data.to_parquet(tmp_path / "hub" / f"{split}.parquet")
    (tmp_path / "a [1]$HOME::x").mkdir()  # a path, not a pattern
    for path in (tmp_path / "a [1]$HOME::x" / "a.parquet", tmp_path / "a*" / "b.parquet"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "hub" / "train.parquet").read_bytes())
        assert len(read_own(path, ENTRY)[0]) == 40
    rows, faults, _ = read_own(tmp_path / "hub" / "train.parquet", ENTRY)
    assert not faults and rows[13] == {"source": "train 13", "target": "intent b"}
    entry = write_rows(tmp_path / "mine.json", [ENTRY])
    splits = run(tmp_path / "out", data=f"hub:{tmp_path / 'hub'}", task=str(entry))
    assert "test: the validation set, as there is no test set" in capsys.readouterr().out
    assert len(splits["test"]) == 40 and all(row["target"] in INTENTS for row in splits["train"])
    assert splits["test"][1] == {"source": "validation 1", "target": "intent b"}


def test_unlabeled_rows_that_are_asked_for_stand_in_place_of_the_hubs(monkeypatch):
    splits = dict.fromkeys(["train", "test", "unlabeled"])
    monkeypatch.setattr(prepare, "load_hub", lambda word: splits)
    args = argparse.Namespace(data="hub:x/y", scale="mini", task="mine", unlabeled=None)
    for args.unlabeled, names in ((None, [*splits]), (["rest"], ["train", "test"])):
        assert [split for split, *_ in prepare.open_data(args, None, {})] == names


@pytest.mark.parametrize(
    ("names", "columns", "said"),
    [
        (("text", "label"), [["a"], [7]], "row 1: target is a number; write the name"),
        (("text", "label", "label"), [["a"], [0], [1]], "two columns of one name"),
        (("text", "label"), [pyarrow.array([], "string"), pyarrow.array([], "string")], "no rows"),
        ((), b"text,label\n", "no Parquet that can be read (Parquet"),
        ((), None, "no such file"),
    ],
)
def test_broken_parquet(tmp_path, names, columns, said):
    kinds = {"label": {"names": INTENTS[:2], "_type": "ClassLabel"}}  # as `datasets` notes them
    told = {"huggingface": json.dumps({"info": {"features": kinds}})}
    if names:
        table = pyarrow.table([pyarrow.array(each) for each in columns], names=names)
        parquet.write_table(table.replace_schema_metadata(told), tmp_path / "a.parquet")
    elif columns:
        (tmp_path / "a.parquet").write_bytes(columns)
    faults = find_faults(tmp_path / "a.parquet")
    assert [fault for fault in faults if said in fault] == faults != []


def test_what_is_not_read_is_said(tmp_path, capsys):
    for split in ("train", "test", "validation"):
        rows = [[f"{split} {i}", INTENTS[i % 12]] for i in range(100)]
        data = write_csv(tmp_path / f"{split}.csv", [["text", "label"], *rows]).parent
    (data / "task.json").write_text(json.dumps(ENTRY))
    run(tmp_path / "out", data=data, task="mine")
    assert f"note: {data}: not read: validation.csv\n" in capsys.readouterr().err
    (data / "test.csv").rename(data / "Test.CSV")
    with pytest.raises(UserError, match=r"it holds Test\.CSV, out, task\.json"):
        run(tmp_path / "out", data=data, task="mine")
    (data / "Test.CSV").rename(data / "test.csv")
    (data / "unlabeled.txt").write_text("one more")  # of which nobody would notice that it is not
    run(tmp_path / "out", data=data, task="mine")
    assert f"note: {data}: not read: unlabeled.txt, validation.csv\n" in capsys.readouterr().err


def test_one_labeled_file_is_split_by_seed(tmp_path, capsys):
    rows = [[f"text {i}", INTENTS[i % 12]] for i in range(200)]
    data = write_csv(tmp_path / "mine" / "data.csv", [["text", "label"], *rows]).parent
    (data / "task.json").write_text(json.dumps(ENTRY))
    for name in ("._data.csv", "~$data.csv"):  # macOS and Excel put these beside it
        (data / name).write_bytes(b"\0\5")
    splits = run(tmp_path / "out", data=data, task="mine")
    assert [len(splits[split]) for split in prepare.SPLITS] == [62, 35, 40, 63]
    assert_disjoint(splits)
    assert "test: 40 of 200 rows of the one labeled file drawn as test" in capsys.readouterr().out
    assert run(tmp_path / "b", data=data, task="mine") == splits
    assert run(tmp_path / "c", "--seed", 1, data=data, task="mine") != splits
    assert len(run(tmp_path / "d", "--test-rows", 7, data=data, task="mine")["test"]) == 7
    prepare.main(
        ["--task", "mine", "--data", str(data), "--output", str(tmp_path / "out"), "--keep"]
    )
    assert "as its data stands there" in capsys.readouterr().out
    prepare.main(["--task=mine", f"--data={data}", f"--output={tmp_path}/out", "--keep"])
    assert "as its data stands there" in capsys.readouterr().out  # flags may be written with =
    (tmp_path / "out" / "dev.jsonl").unlink()
    prepare.main(
        ["--task", "mine", "--data", str(data), "--output", str(tmp_path / "out"), "--keep"]
    )
    assert len(read_rows(tmp_path / "out" / "dev.jsonl")) == 35  # as one is gone, all are made
    odd = data.rename(tmp_path / "a:b [1]")  # no archive's member, and no pattern
    keep = ["--task", "mine", "--data", str(odd), "--output", str(tmp_path / "e"), "--keep"]
    prepare.main(keep)
    write_csv(odd / "data.csv", [["text", "label"], *rows[:99]])
    with pytest.raises(UserError, match=r"data.csv changed since these splits were made"):
        prepare.main(keep)
    write_csv(odd.rename(data) / "data.csv", [["text", "label"], *rows])
    write_rows(data / "train.jsonl", [{"source": "a", "target": INTENTS[0]}])
    with pytest.raises(UserError, match=r"no test rows of mine; looked for .*\.csv"):
        run(tmp_path / "e", data=data, task="mine")
    write_csv(data / "train.csv", [["text", "label"], *rows])
    with pytest.raises(UserError, match=r"train.jsonl and .*train.csv: which is train"):
        run(tmp_path / "e", data=data, task="mine")


def test_several_answers_are_kept_where_scored_and_the_first_is_learned(tmp_path, capsys):
    rows = [{"question": f"who {i}", "answers": [f"a {i}", f"b {i}"]} for i in range(100)]
    data = write_rows(tmp_path / "mine" / "qa.jsonl", rows).parent
    entry = {key: value for key, value in ENTRY.items() if key != "labels"}  # answers have none
    (data / "task.json").write_text(json.dumps({**entry, "metric": "answers"}))
    splits = run(tmp_path / "out", data=data, task="mine")
    assert all(len(row["target"]) == 2 for row in splits["test"])
    assert all(row["target"].startswith("a ") for row in splits["train"])
    assert " with a list of answers, the first of which is learned" in capsys.readouterr().out


@pytest.mark.parametrize("more", ["  ", "\u00a0", "\r\n", "\u200b", "\x07 ", "\u2028"])
def test_sources_of_the_same_tokens_are_one(tmp_path, more):
    """T5 reads the same ids for them, so a test row with a copy in train would be known."""
    train = [{"source": f"text{more}{i} ", "target": INTENTS[0]} for i in range(60)]
    test = [{"source": f"text {i}", "target": INTENTS[0]} for i in range(20)]
    data = make_folder(tmp_path / "mine", train=train, test=test)
    entry = write_rows(tmp_path / "mine.json", [ENTRY])
    splits = run(tmp_path / "out", data=data, task=str(entry))
    numbers = [
        {int(row["source"].split()[-1][-2:].strip("t")) for row in splits[s]} for s in splits
    ]
    assert len(splits["test"]) == 20 and not numbers[0] & numbers[2] and not numbers[3] & numbers[2]


@needs_official
def test_names_of_sources_are_t5s_reading():
    sentencepiece = pytest.importorskip("sentencepiece")
    vocabulary = sentencepiece.SentencePieceProcessor(
        model_file=str(OFFICIAL.parent / "t5_vocab" / "spiece.model")
    )
    for mark in " \u00a0\u3000\u2003\u2028\u200b\u200d\ufeff\t\n\x07\x0b\x1c\x7f-é":
        same = vocabulary.encode(f"a{mark}b") == vocabulary.encode("a b")
        joined = vocabulary.encode(f"a{mark}b") == vocabulary.encode("ab")
        name = prepare.name_source(f"a{mark}b")
        assert (name == "a b", name == "ab") == (same, joined), repr(mark)


# --- entities and spans -----------------------------------------------------------------------

TEXT = "HeLa  cells express TP1 and TP1 \U0001f600 in BRCA1"
SPANS = [[0, 11, "Cell Line"], [28, 31, "Gene"], [37, 42, "Gene"]]
TARGET = "HeLa cells [Cell Line] TP1 [Gene] BRCA1 [Gene]"


def make_span(start, end, label, form):
    if form == "list":
        return [start, end, label]
    if form == "prodigy":
        return {"start": start, "end": end, "label": label, "token_start": 0}
    if form == "doccano":
        return {"id": 1, "label": label, "start_offset": start, "end_offset": end}
    units = [len(TEXT[:at].encode("utf-16-le")) // 2 for at in (start, end)]  # as JavaScript does
    return dict(zip(("start", "end"), units, strict=True), text=TEXT[start:end], labels=[label])


@pytest.mark.parametrize(
    ("key", "form"),
    [("label", "list"), ("spans", "prodigy"), ("entities", "doccano"), ("label", "studio")],
)
def test_spans_of_annotation_tools_and_back(tmp_path, key, form):
    spans = [make_span(*span, form) for span in reversed(SPANS)]
    path = write_rows(tmp_path / "a.jsonl", [{"text": TEXT, key: spans}, {"text": "No.", key: []}])
    rows, faults, _ = read_own(path, GENES)
    assert (
        rows == [{"source": TEXT, "target": TARGET}, {"source": "No.", "target": ""}] and not faults
    )
    back = find_spans(TEXT, TARGET, GENES["labels"])
    assert [(TEXT[start:end], label) for start, end, label in back] == [
        ("HeLa  cells", "Cell Line"),
        ("TP1", "Gene"),
        ("BRCA1", "Gene"),
    ]
    assert write_spans(TEXT, [list(span) for span in back], GENES["labels"]) == TARGET


@pytest.mark.parametrize(
    ("target", "spans"),
    [
        ("pan [A] pan [A]", [(4, 7, "A")]),  # as a model repeats itself
        ("the pan [A] pan [B]", [(0, 7, "A")]),  # no place of its own is left
        ("salt [A] pan [B]", [(12, 16, "A"), (4, 7, "B")]),  # another order than the source's
        ("pan [A] lids [A] [B]", [(4, 7, "A"), (18, 22, "A")]),
        ("lid [A] lid [A]", [(18, 21, "A")]),  # within a word, where in no other way
    ],
)
def test_spans_of_a_models_output_never_overlap(target, spans):
    assert find_spans("the pan and salt, lids", target, ["A", "B"]) == spans


def test_label_studios_full_export(tmp_path):
    result = [{"value": make_span(*SPANS[2], "studio")}]
    row = {"data": {"text": TEXT}, "annotations": [{"result": result}]}
    several = {**row, "annotations": row["annotations"] * 2}
    (tmp_path / "a.json").write_text(json.dumps([row, several], indent=1))
    rows, faults, _ = read_own(tmp_path / "a.json", GENES)
    assert rows == [{"source": TEXT, "target": "BRCA1 [Gene]"}]
    assert faults[0].endswith("row 2: several annotations or none; keep one: 2")
    rows, faults, _ = read_own(tmp_path / "a.json", GENES, labeled=False)
    assert rows == [{"source": TEXT}] * 2 and not faults  # their texts alone are asked for


@pytest.mark.parametrize(
    ("more", "target"),
    [
        ({"annotations": [{"was_cancelled": True, "result": []}]}, "several annotations or none"),
        ({"annotations": [{"was_cancelled": True}, {"result": []}]}, ""),
        ({"annotations": [{"result": [{"type": "relation"}]}]}, ""),
        ({"annotations": [{"result": None}]}, ""),
        ({"annotations": [5]}, "its annotations: must be an object, not 5"),
        ({"annotations": [{"result": [5]}]}, "'result': must be an object, not 5"),
        ({"text": TEXT, "annotation_id": 3}, ""),  # JSON-MIN has no key for no entities
        ({"text": TEXT, "label": [{"start": 0, "end": 4, "labels": ["Gene", "Cell Line"]}]}, "one"),
    ],
)
def test_odd_rows_of_label_studio(tmp_path, more, target):
    """A skipped row is no text without entities, and a second label is not lost."""
    rows = [{"text": TEXT, "label": []}, {"data": {"text": TEXT}, **more}]
    rows, faults, _ = read_own(write_rows(tmp_path / "a.jsonl", rows), GENES)
    assert rows[1]["target"] == target if rows[1:] else target in faults[0]


def test_spans_that_cut_words_are_noted(tmp_path):
    rows = [{"text": TEXT, "label": [[28, 31, "Gene"], [38, 42, "Gene"]]}]
    assert read_own(write_rows(tmp_path / "a.jsonl", rows), GENES)[2][-1] == (
        "1 span, as 'RCA1', begin or end within a word; are their offsets of another text, or of "
        "bytes?"
    )


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([[0, 4, "Gene"], [2, 8, "Gene"]], "spans overlap or are empty, which no target can say"),
        ([[0, 99, "Gene"]], "a span is no start, end and one label within the text: [0, 99"),
        ([[3, 3, "Gene"]], "a span is no start, end"),
        ([[0, 4, "Genes"]], "label is none of Gene, Cell Line: 'Genes'"),
        ([{"start": 0}], "a span is no start, end and one label"),
        ([{"start": 0, "end": 4, "label": "Gene", "text": "cell"}], "are not those of its text"),
        ("HeLa", "does not end with a [Label]"),
        ("HeLa [Gene] [Gene]", "a [Label] of the target has no text"),
    ],
)
def test_spans_that_no_target_can_say(tmp_path, spans, message):
    path = write_rows(tmp_path / "a.jsonl", [{"text": TEXT, "spans": spans}])
    rows, faults, _ = read_own(path, GENES)
    assert not rows and message in faults[0]
    path = write_rows(path, [{"text": "a [Gene] b", "spans": [[0, 10, "Gene"]]}])
    assert "has a label in brackets in its text" in read_own(path, GENES)[1][0]


def test_a_text_without_entities_is_a_lesson(tmp_path):
    """Rows without entities stay in train of one's own task; the paper's authors skipped theirs."""
    rows = [{"text": f"TP{i} is here", "spans": [[0, len(f"TP{i}"), "Gene"]]} for i in range(60)]
    rows += [{"text": f"nothing {i}", "spans": []} for i in range(60)]
    data = write_rows(tmp_path / "mine" / "export.jsonl", rows).parent
    (data / "task.json").write_text(json.dumps(GENES))
    splits = run(tmp_path / "out", data=data, task="mine")
    for split in ("train", "dev", "test"):
        assert {bool(row["target"]) for row in splits[split]} == {True, False}, split
    task = load_task("mine", data)
    assert make_flags(task, "mini", "small")["keep-empty"] is True
    assert make_flags(task, "mini", "teacher")["keep-empty"] is True
    assert "keep-empty" not in make_flags(task, "mini", "dist")
    assert "keep-empty" not in make_flags(load_task("wlp"), "mini", "small")


# --- --check ----------------------------------------------------------------------------------


def test_check_groups_faults_by_kind(tmp_path, capsys):
    rows = [{"source": f"s {i}", "target": "SUPPORTS"} for i in range(2500)]
    rows += [{"source": f"t {i}", "label": "SUPPORTS"} for i in range(2500)]
    rows += [{"source": f"u {i}", "target": f"MAYBE{i % 7}"} for i in range(70)]
    make_folder(tmp_path, train=rows, test=rows[:5])
    with pytest.raises(UserError, match=r"line 2501: no 'target' \(and 2,569 more faults"):
        prepare.main(["--task", "fever", "--data", str(tmp_path), "--check"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{tmp_path}/train.jsonl: 2,500 times, first in line 2501, line 2502, line 2503: "
        "no 'target'",
        f"{tmp_path}/train.jsonl: 70 times, first in line 5001, line 5002, line 5003: "
        "target is none of REFUTES, SUPPORTS: 'MAYBE0', 'MAYBE1', "
        "'MAYBE2', 'MAYBE3', 'MAYBE4' and 2 more",
    ]


def check_own(tmp_path, capsys, entry, rows):
    """What --check says of one labeled file."""
    data = write_rows(tmp_path / "mine" / "data.jsonl", rows).parent
    (data / "task.json").write_text(json.dumps(entry))
    try:
        prepare.main(["--task", "mine", "--data", str(data), "--check"])
        return capsys.readouterr().out, ""
    except UserError as error:
        return capsys.readouterr().out, str(error)


def test_a_half_labeled_sheet_is_split_and_its_rest_unlabeled(tmp_path, capsys):
    """A few blank labels are dropped with a note; where they are the most, they are unlabeled rows;
    in a test file each is a fault, as a label of another name is everywhere."""
    data, output = tmp_path / "mine", tmp_path / "out"
    (data / "task.json").parent.mkdir()
    (data / "task.json").write_text(json.dumps(ENTRY))

    def split(blank, name="sheet.csv"):
        rows = [["text", "label"], *([f"text {i}", INTENTS[i % 12]] for i in range(100))]
        rows += [[f"more {i}", " " * (i % 2)] for i in range(blank)]
        write_csv(data / name, rows)
        prepare.main(["--task", "mine", "--data", str(data), "--output", str(output), "--redo"])
        said, about = capsys.readouterr().out, json.loads((output / "about.json").read_text())
        assert not (output / "unlabeled_gold.jsonl").exists() or blank < 100
        rows = [read_rows(output / f"{name}.jsonl") for name in ("train", "dev", "test")]
        assert all(row["target"] in INTENTS for row in itertools.chain(*rows))
        return said, about["rows"]

    said, rows = split(5)
    assert "train: 5 rows dropped: no target" in said and rows["test"] == 20
    said, rows = split(300)
    assert "unlabeled: 300 rows of the one labeled file without a target" in said
    assert rows["unlabeled"] == 300 and rows["train"] + rows["dev"] + rows["test"] == 100
    (data / "sheet.csv").unlink()
    write_csv(data / "train.csv", [["text", "label"], ["a", "intent a"]])
    with pytest.raises(UserError, match=r"test.csv line 102: target is none of .* \(and 4 more"):
        split(5, "test.csv")


def test_check_shows_classes_contradictions_lengths_and_cost(tmp_path, capsys):
    pytest.importorskip("transformers")
    rows = [{"text": f"text {i}", "label": INTENTS[i % 11]} for i in range(150)]
    rows += [{"text": f"text  {i}", "label": INTENTS[(i + 1) % 11]} for i in range(40)]
    rows += [{"text": f"{'long ' * 40}{i}", "label": INTENTS[0]} for i in range(30)]
    data = write_rows(tmp_path / "mine" / "data.jsonl", rows).parent
    write_rows(data / "unlabeled.jsonl", [{"text": "never seen"}])
    said, fault = check_own(tmp_path, capsys, {**ENTRY, "max_target_length": 32}, rows)
    assert not fault
    assert re.search(r"^intent a +\d+ +\d+ +\d+$", said, re.MULTILINE)
    assert "train has no intent l" in said and "rare, under 10 in train: intent " in said
    assert re.search(r"sources of train with several targets: \d+, as 'text +\d+': intent", said)
    cut = r"are cut at 32 tokens; 99% have at most \d+; max_source_length \d+ would hold all"
    plain = " ".join(said.split())
    assert re.search(rf"student: \d+ of \d+ sources {cut}", plain)
    assert re.search(r"student: no target is cut at 32 tokens; the longest has \d+ ", plain)
    assert "make can make: table2" in said and re.search(
        r"table2 takes \d runs, [\d,]+ steps", said
    )


def test_check_refuses_labels_that_the_models_cannot_write(tmp_path, capsys):
    pytest.importorskip("transformers")
    labels = ["Question about an invoice", "yes"]
    rows = [{"source": f"s {i}", "target": labels[i % 2]} for i in range(60)]
    entry = {**ENTRY, "labels": labels, "max_target_length": 8}
    said, fault = check_own(tmp_path, capsys, entry, rows)
    assert "make can make" in said  # all else is said before
    needed = int(re.search(r"label 'Question about an invoice' has (\d+) tokens", fault)[1])
    assert fault.endswith(f"max_target_length {needed} would hold all")
    assert not check_own(tmp_path, capsys, {**entry, "max_target_length": needed}, rows)[1]


# --- archives and public sets ----------------------------------------------------------------


def pack(path, members):
    """An archive of {name: rows}, .zip or .tar.gz by the path's ending."""
    texts = {name: "".join(json.dumps(r) + "\n" for r in rows) for name, rows in members.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, text in texts.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_archives(tmp_path, ending):
    data = make_folder(tmp_path / "mine", train=make_rows(50), test=make_rows(5, 100))
    path = pack(
        tmp_path / f"all.{ending}",
        {"unlabeled/wlp/wlp.json": [{"source": "x"}], "unlabeled/multipit_id/m.json": []},
    )
    assert run(tmp_path / "o", "--unlabeled", path, data=data)["unlabeled"] == [{"source": "x"}]
    path = pack(
        tmp_path / f"two.{ending}", {"wlp/a.json": [{"source": "a"}], "wlp/b.json": [{"x": "b"}]}
    )
    with pytest.raises(UserError, match=r"2 files could be .* wlp/a.json, wlp/b.json"):
        run(tmp_path / "o", "--unlabeled", path, data=data)
    splits = run(tmp_path / "o", "--unlabeled", f"{path}:wlp/a.json", data=data)
    assert splits["unlabeled"] == [{"source": "a"}]
    with pytest.raises(UserError, match=r"wlp/b.json: no 'source'; it has 'x'"):
        run(tmp_path / "o", "--unlabeled", f"{path}:wlp/b.json", data=data)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="archive that can be read"):
        run(tmp_path / "o", "--unlabeled", path, data=data)


def test_archive_tells_multipit_from_multipit_id(tmp_path):
    members = {"u/multipit_id_unlabeled.json": [{"source": "pair"}]}
    members["u/multipit_unlabeled.json"] = [{"source": "one"}]
    path = pack(tmp_path / "all.zip", members)
    sources = prepare.read_json(fetch.SOURCES)
    assert b"one" in fetch.read_archive(path, "multipit", sources)[1]
    assert b"pair" in fetch.read_archive(path, "multipit_id", sources)[1]


def test_odd_archives_are_one_line(tmp_path):
    """A link or a folder is no file; encrypted and damaged archives are named with their path."""
    sources, good = prepare.read_json(fetch.SOURCES), json.dumps({"source": "a"}).encode()
    odd = tmp_path / "odd:name.tar"
    with tarfile.open(odd, "w") as archive:
        for name, kind in (("wlp/x.jsonl", tarfile.SYMTYPE), ("wlp/y.jsonl", tarfile.DIRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "nowhere"
            archive.addfile(info)
    with pytest.raises(UserError, match=r"odd:name.tar: 0 files could be .* it holds no file"):
        fetch.read_archive(odd, "wlp", sources)
    zipped = tmp_path / "all.zip"
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.mkdir("fever.jsonl")
        archive.writestr("wlp/a.jsonl", good)
    assert fetch.read_archive(zipped, "wlp", sources) == (f"{zipped}:wlp/a.jsonl", good)
    whole = zipped.read_bytes()
    flagged = whole.replace(b"PK\x03\x04\x14\x00\x00\x00", b"PK\x03\x04\x14\x00\x01\x00")
    flagged = flagged.replace(b"\x14\x03\x14\x00\x00\x00", b"\x14\x03\x14\x00\x01\x00")
    for content, why in (
        (flagged, "encrypted"),
        (whole.replace(b'"a"', b'"b"'), "CRC"),
        (b"PK", "no .zip or .tar"),
    ):
        zipped.write_bytes(content)
        with pytest.raises(UserError, match=why) as stop:
            fetch.read_archive(zipped, "wlp", sources)
        assert "\n" not in str(stop.value) and str(zipped) in str(stop.value)


def write_hub(folder, entry, rows):
    """A folder in the form of a data set on the hub: files by configuration, named in README.md."""
    name = entry.get("name", "default")
    config = f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl\n"
    write_rows(folder / name / "part-0.jsonl", [{entry["column"]: text} for text in rows])
    write_rows(folder / "other" / "part-0.jsonl", [{"unrelated": "x"}])
    config += "- config_name: other\n  data_files: other/*.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{config}---\n")
    return folder


@pytest.mark.parametrize("name", ["vitaminc", "kilt_fever", "msmarco", "kilt_nq"])
def test_public_sets(tmp_path, monkeypatch, capsys, name):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sources = prepare.read_json(fetch.SOURCES)
    entry = sources["public"][name]
    entry["path"] = str(write_hub(tmp_path / "hub", entry, ["the sea is dry", "row 3", " "]))
    file = write_rows(tmp_path / "sources.json", [sources])
    target = "SUPPORTS" if entry["task"] == "fever" else "x"
    train = [{"source": f"row {i}", "target": target} for i in range(30)]
    test = [{"source": "t", "target": target}]
    data = make_folder(tmp_path / "mine", train=train, test=test)
    flags = ["--scale", "paper", "--sources", file, "--unlabeled", f"hub:{name}"]
    splits = run(tmp_path / "out", *flags, data=data, task=entry["task"])
    assert splits["unlabeled"] == [{"source": "the sea is dry"}]  # the other one is labeled
    shown = capsys.readouterr()
    assert "1 row dropped: their source is in test, dev or train" in shown.out and not shown.err


def test_public_sets_that_cannot_be_had(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sources = prepare.read_json(fetch.SOURCES)
    sources["public"]["vitaminc"]["path"] = str(tmp_path / "nothing")
    for origin, name in (("hub:vitaminc", "nothing"), (f"hub:{tmp_path}/no", "no")):
        with pytest.raises(UserError, match=rf"hub:.*{name}.*: can't be loaded") as stop:
            prepare.open_unlabeled(origin, "fever", sources)
        assert "\n" not in str(stop.value)


# --- downloads -------------------------------------------------------------------------------


class Site:
    """A local web server standing in for the authors' repository; `script` holds its faults."""

    def __init__(self):
        site = self
        self.files, self.script, self.requests = {}, [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler):
        name = handler.path.lstrip("/")
        self.requests.append(name)
        fault = self.script.pop(0) if self.script else None
        if name not in self.files or isinstance(fault, int):
            handler.send_response(fault or 404)
            handler.send_header("Location", handler.path)  # of a 302: round and round
            handler.end_headers()
            return
        body = self.files[name]
        handler.send_response(200)
        if fault != "silent":
            handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if fault in ("broken", "silent") else body)


@pytest.fixture
def site():
    """A server with a small wlp, and the sources.json that knows it."""
    site = Site()
    facts = {}
    for split, rows in (("train", make_rows(3000)), ("test", make_rows(50, 5000))):
        name = f"wlp/wlp_{split}_all.json"
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        site.files[name] = body
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        facts[name] = {"git_blob": blob}
    site.sources = {"folders": {}, "files": facts, "public": {}, "base": site.base, "archive": "A"}
    yield site
    site.server.shutdown()
    site.server.server_close()


TRAIN = "wlp/wlp_train_all.json"


def test_download_then_no_second_one(site, tmp_path):
    fetch.fetch_task("wlp", tmp_path, site.sources)
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]
    assert len(site.requests) == 2
    fetch.fetch_task("wlp", tmp_path, site.sources)
    assert len(site.requests) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("broken", r"IncompleteRead.*run the same command again"),
        ("silent", r"bytes with the git_blob \w+ where \w+ is known"),
        (503, "the server answers 503"),
        (404, "the server answers 404 Not Found; check data/sources.json, or .*--data"),
        ([302] * 20, "the server answers 302"),
    ],
)
def test_what_goes_wrong_on_the_way_is_one_line_and_leaves_no_file(site, tmp_path, fault, message):
    site.script = fault if isinstance(fault, list) else [fault]
    with pytest.raises(UserError, match=message) as stop:
        fetch.fetch_task("wlp", tmp_path, site.sources)
    assert "\n" not in str(stop.value) and site.base in str(stop.value)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    site.script = []
    fetch.fetch_task("wlp", tmp_path, site.sources)
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]


def test_bytes_of_another_file_are_refused(site, tmp_path):
    good = site.files[TRAIN]
    for body in (good + b"{}\n", good.replace(b"sentence 7", b"sentence_7", 1)):
        site.files[TRAIN] = body
        with pytest.raises(UserError, match=r"not the authors' file .*git_blob \w+ where \w+ is"):
            fetch.fetch_task("wlp", tmp_path, site.sources)
        assert not list(tmp_path.glob("wlp/*train*"))
    site.files[TRAIN] = good
    fetch.fetch_task("wlp", tmp_path, site.sources)
    (tmp_path / TRAIN).write_bytes(good[:100])
    with pytest.raises(UserError, match="remove it to download it again"):
        fetch.fetch_task("wlp", tmp_path, site.sources)


def test_unreachable_and_unknown(site, tmp_path):
    with pytest.raises(UserError, match="Connection refused; run the same command again"):
        fetch.fetch_task("wlp", tmp_path, {**site.sources, "base": "http://127.0.0.1:9"})
    with pytest.raises(UserError, match="unknown url type"):
        fetch.fetch_task("wlp", tmp_path, {**site.sources, "base": "127.0.0.1/x"})
    with pytest.raises(UserError, match="the authors' repository has no 'mytask'"):
        fetch.fetch_task("mytask", tmp_path, site.sources)
    with pytest.raises(UserError, match="no 'git_blob', which is a text"):
        fetch.fetch_task("wlp", tmp_path, {**site.sources, "files": {TRAIN: {}}})


def test_paper_scale_from_the_web_to_splits(site, tmp_path):
    sources = write_rows(tmp_path / "sources.json", [site.sources])
    flags = ["--scale", "paper", "--downloads", tmp_path / "d", "--sources", sources]
    with pytest.raises(UserError, match="no unlabeled rows of wlp"):
        run(tmp_path / "out", *flags)
    extra = write_rows(tmp_path / "u.jsonl", [{"source": "Add 5 ml."}])
    splits = run(tmp_path / "out", *flags, "--unlabeled", extra)
    assert len(splits["test"]) == 50 and len(splits["train"]) == 2700
    assert len(site.requests) == 2  # the second call read what the first had fetched
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["files"][str(extra)]


@needs_official
def test_known_hashes_are_the_authors_files():
    sources = prepare.read_json(fetch.SOURCES)
    for name, facts in sources["files"].items():
        if (OFFICIAL / name).exists():
            fetch.check_file((OFFICIAL / name).read_bytes(), name, facts)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("buffer [Reagnt]", r"\[Reagnt\] in the target is neither a label nor in the source"),
        ("buffer [Reagent] then", "does not end with a \\[Label\\]"),
        ("buffer", "does not end with a \\[Label\\]"),
        ("[viral] buffer [Reagent]", None),  # in the source, so text
        ("", None),
    ],
)
def test_entities_of_a_target_have_known_labels(target, fault):
    row = {"source": "add the [viral] buffer", "target": target}
    table = columns.Table("file", [("line 1", row)])
    _, faults, _ = columns.make_rows(table, load_task("wlp"), True, {})
    assert not faults if fault is None else re.search(fault, str(*faults))


def test_a_model_learns_to_say_nothing(tmp_path):
    """Empty targets, from the export by train.jsonl to a model that answers nothing where nothing
    is, and something elsewhere."""
    pytest.importorskip("torch")
    words = "alpha beta gamma delta".split()
    rows = [{"text": f"{w} {i}", "spans": [[0, len(w), "Gene"]]} for i in range(20) for w in words]
    rows += [{"text": f"nothing {i}", "spans": []} for i in range(80)]
    data = write_rows(tmp_path / "mine" / "export.jsonl", rows).parent
    (data / "task.json").write_text(json.dumps(GENES))
    splits = run(tmp_path / "out", "--train-rows", 110, data=data, task="mine")
    empty = {row["source"] for row in splits["test"] if not row["target"]}
    assert 5 < len(empty) < len(splits["test"]) - 5
    train = f"train_small.py --model data/world/models/student --train {tmp_path}/out/train.jsonl "
    train += "--max-steps 60 --warmup-steps 5 --batch-size 8 --learning-rate 0.003 --keep-empty "
    train += f"--output {tmp_path}/run --save-steps 1000 --max-source-length 32"
    predict = f"evaluate.py --task mine={data}/task.json --model {tmp_path}/run/model --prefix= "
    predict += f"--predict {tmp_path}/out/test.jsonl --output {tmp_path}/said.jsonl"
    both = [sys.executable, "-m", "data.costs.in_one", *train.split(), "--", *predict.split()]
    done = subprocess.run(both, cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    said = {row["source"] for row in read_rows(tmp_path / "said.jsonl") if not row["text"]}
    assert len(said ^ empty) <= 2
