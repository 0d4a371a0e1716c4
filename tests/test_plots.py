"""plots.py: tables in three formats; Tables 1, 5, 6, 7 and 8 beside the paper's values."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import plots
from data.costs.prices import parse_amount
from data.plots import printed, tables
from data.plots.notes import note_weak_teachers

ROOT = Path(__file__).resolve().parents[1]
TABLE = tables.Table(
    "any",
    "Any table: 5% ± 1",
    ["Name", "Score", "$"],
    [["a|b", "71.1 ± 0.3", "$1,300"], ["c_d", None, 7]],
    ["kept below & escaped"],
)


def build(name, *argv):
    args = plots.parse_args([name, *map(str, argv)])
    return plots.COMMANDS[name][1](args)


def column(table, head):
    at = table.columns.index(head)
    return [row[at] for row in table.rows]


def test_markdown_aligns_numbers_right_and_shows_what_is_missing():
    lines = tables.to_markdown(TABLE).splitlines()
    assert lines[0] == "**Any table: 5% ± 1**"
    assert lines[2:6] == [
        "| Name |      Score |      $ |",
        "| ---- | ---------: | -----: |",
        "| a\\|b | 71.1 ± 0.3 | $1,300 |",
        "| c_d  |          – |      7 |",
    ]
    assert lines[-1] == "- kept below & escaped"


def test_numbers_stand_right_among_the_left_columns_too():
    rows = [["a", "1,000", "10K", "x"], ["b", "", None, "2"]]
    table = tables.Table("t", "T", ["A", "N", "Rows", "By"], rows, left=4)
    assert "| --- | ----: | ---: | --- |" in tables.to_markdown(table)
    assert r"\begin{tabular}{lrrl}" in tables.to_tex(table)


def test_csv_holds_plain_numbers():
    rows = list(csv.reader(io.StringIO(tables.to_csv(TABLE))))
    assert rows == [["Name", "Score", "$"], ["a|b", "71.1 ± 0.3", "1300"], ["c_d", "", "7"]]


def test_csv_holds_no_formula():
    cells = ["=1+1", "@x", "+39.0 ns", "-5 a", "+10", "-2.5", "–", "", None, "a\nb"]
    table = tables.Table("t", "T", ["=A"], [[cell] for cell in cells])
    found = [row[0] if row else "" for row in csv.reader(io.StringIO(tables.to_csv(table)))]
    assert found[:5] == ["'=A", "'=1+1", "'@x", "'+39.0 ns", "'-5 a"]
    assert found[5:] == ["+10", "-2.5", "–", "", "", "a\nb"]


def test_titles_keep_to_one_line_and_east_asian_ones_to_their_columns():
    table = tables.Table("t", "T\nU", ["A", "B"], [["x\r\ny", "1"], ["日本", "2"]])
    lines = tables.to_markdown(table).splitlines()
    assert lines == [
        "**T U**",
        "",
        "| A    |   B |",
        "| ---- | --: |",
        "| x y  |   1 |",
        "| 日本 |   2 |",
    ]
    assert "x y & 1" in tables.to_tex(table)


def test_tex_is_escaped():
    text = tables.to_tex(TABLE)
    assert r"\caption{Any table: 5\% $\pm$ 1}" in text and r"\label{tab:any}" in text
    assert text.startswith(r"% needs \usepackage{booktabs,graphicx}")
    assert r"\begin{tabular}{lrr}" in text and r"a\textbar{}b & " in text
    assert r"c\_d & -- & 7 \\" in text and r"kept below \& escaped\par" in text
    assert text.count("{") == text.count("}")


def test_tex_leaves_the_number_to_latex_keeps_indents_and_fits_the_page():
    rows = [["Ann.", "1"], ["  labels <bought>", "2"]]
    table = tables.Table("table2", "Table 2. Title", ["A", "B"], rows)
    text = tables.to_tex(table)
    assert (
        r"\caption{Title}" in text and r"\quad labels \textless{}bought\textgreater{} & 2" in text
    )
    assert r"\begin{table}" in text and r"\resizebox" not in text
    wide = tables.to_tex(table._replace(rows=[["x" * 100, "1"]]))
    assert r"\begin{table*}" in wide and r"\resizebox{\textwidth}{!}{%" in wide
    assert wide.count("{") == wide.count("}")


@pytest.mark.parametrize("command", ["table1", "table6"])
def test_a_terminal_that_knows_few_characters_costs_no_file(command, tmp_path):
    line = [sys.executable, "plots.py", command, "--output", str(tmp_path)]
    env = {**os.environ, "PYTHONIOENCODING": "latin-1", "LC_ALL": "C"}
    done = subprocess.run(line, cwd=ROOT, env=env, capture_output=True, check=False)
    assert done.returncode == 0 and b"Table" in done.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".md", ".csv", ".tex"}


def test_all_files_are_there_before_anything_is_printed(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise UnicodeEncodeError("latin-1", "–", 0, 1, "no")

    monkeypatch.setattr("builtins.print", fail)
    with pytest.raises(UnicodeEncodeError):
        tables.render([TABLE, TABLE._replace(name="other")], tmp_path)
    assert len(list(tmp_path.iterdir())) == 6


def test_render_prints_and_writes_three_files(tmp_path, capsys):
    tables.render([TABLE], tmp_path / "new")
    assert capsys.readouterr().out == tables.to_markdown(TABLE)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"any.md", "any.csv", "any.tex"}
    assert (tmp_path / "new" / "any.md").read_text() == tables.to_markdown(TABLE)


def test_of_a_second_table_the_path_is_printed(tmp_path, capsys):
    cells = TABLE._replace(name="other", title="Cells")
    tables.render([TABLE, cells], tmp_path)
    shown = tables.to_markdown(TABLE) + f"\nCells: {tmp_path}/other.md\n"
    assert capsys.readouterr().out == shown
    tables.render([TABLE, cells])
    assert capsys.readouterr().out.endswith(tables.to_markdown(cells))


def test_long_cells_and_notes_go_on_in_further_lines():
    words = " ".join(f"word{i}" for i in range(40))
    table = tables.Table("t", "T", ["A", "Text"], [["a", words], ["b", "|"]], [words], 2, wide=1)
    text = tables.to_markdown(table)
    assert max(map(len, text.splitlines())) <= 100
    cells = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert [cell[0].strip("| ") for cell in cells] == ["a", *[""] * (len(cells) - 2), "b"]
    assert " ".join(cell[1].strip("| ") for cell in cells[:-1]) == words
    assert text.split("- ")[-1].split() == words.split()
    assert next(csv.reader(io.StringIO(tables.to_csv(table).splitlines()[1])))[1] == words
    assert r"\begin{tabular}{lp{0.6\linewidth}}" in tables.to_tex(table)


def test_columns_of_one_value_are_left_out_of_compact_tables_and_empty_ones_of_all_but_csv():
    rows = [["a", None, "1", 0, "x"], ["b", "", "1", 0, ""]]
    columns = ["A", "Empty", "Seeds", "Zero", "B"]
    table = tables.Table("t", "T", columns, rows, compact=True)
    assert tables.to_markdown(table).splitlines()[::2] == [
        *("**T: Seeds 1, Zero 0**", "| A   |   B |", "| a   |   x |")
    ]
    assert "Empty" not in tables.to_tex(table) and "T: Seeds 1, Zero 0" in tables.to_tex(table)
    assert tables.to_csv(table).splitlines()[:2] == [",".join(columns), "a,,1,0,x"]
    whole = table._replace(compact=False, left=2, wide=4)
    lines = tables.to_markdown(whole).splitlines()
    assert lines[2::2] == ["| A   | Seeds | Zero |   B |", "| a   |     1 |    0 |   x |"]
    assert r"\begin{tabular}{lrrp{0.6\linewidth}}" in tables.to_tex(whole)  # wide goes along
    assert "Seeds" in tables.to_markdown(table._replace(rows=rows[:1])).splitlines()[2]


@pytest.mark.parametrize(("last", "width"), [(27, 100), (28, 93)])
def test_a_table_wider_than_a_page_leaves_out_the_spaces_at_its_bars(last, width):
    row = [*["x" * 20] * 3, "y" * last]
    lines = tables.to_markdown(tables.Table("t", "T", row, [row])).splitlines()[2:]
    assert {len(line) for line in lines} == {width}
    assert all(line[0] == line[-1] == "|" for line in lines)


def test_a_row_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="shorter"):
        tables.render([TABLE, TABLE._replace(rows=[["a"]])], tmp_path)


def test_every_printed_value_of_the_paper_stands_beside_ours():
    for number, items in {1: 3, 5: 4, 6: 4, 8: 5}.items():
        assert len(printed.load_printed(number)) == 6 * items


def test_table1():
    table = build("table1")
    pairs = list(zip(column(table, "Total $"), column(table, "Paper"), strict=True))
    # FEVER and MultiPIT-Gen: the paper's totals are not #train x price
    assert [ours == paper for ours, paper in pairs] == [True, True, False, True, False, True]
    numbers = printed.load_printed(1)
    names = ("wlp", "stanceosaurus", "fever", "multipit_id", "multipit_gen", "nq")
    assert column(table, "#Train") == [numbers[name, "train"] for name in names]
    assert column(table, "$/Label") == [numbers[name, "usd_per_label"] for name in names]
    text = "\n".join(table.notes)
    assert "82 tweets x 2 annotators = $0.3659; the paper takes $0.364" in text
    assert "59.76%, the entities' share of its labels = $0.2629; the paper takes $0.260" in text
    assert "100 / 53.9, the share of paraphrases = $0.3711" in text and text.count("takes") == 2
    for value in ("$13,544", "$18,443, the total of MultiPIT-Id", "$14,469", "$12,899"):
        assert value in text


def test_table5():
    table = build("table5")
    assert len(table.rows) == 24
    for ours, paper in zip(column(table, "tasks.json"), column(table, "Paper"), strict=True):
        assert ours == paper or (ours, paper) == (None, "N/A")
    text = "\n".join(table.notes)
    for value in ("14,271", "FEVER 187,000", "MultiPIT-Id 240,000"):
        assert value in text


def test_table5_counts_a_prepared_world(tmp_path):
    (tmp_path / "wlp").mkdir()
    rows = "".join(json.dumps({"source": str(i), "target": "t"}) + "\n" for i in range(7))
    (tmp_path / "wlp" / "train.jsonl").write_text(rows)
    table = build("table5", "--task", "wlp", "--prepared", tmp_path)
    assert column(table, "Prepared") == ["7", None, None, None]


def test_table6():
    table = build("table6")
    pairs = list(zip(table.rows[::2], table.rows[1::2], strict=True))
    assert len(pairs) == 6
    different = []
    for ours, paper in pairs:
        assert (ours[1], paper[1]) == ("ours", "paper")
        for head, *both in list(zip(table.columns, ours, paper, strict=True))[2:6]:
            one, other = (parse_amount(cell.replace(",", ""), head) for cell in both)
            different += [(ours[0], head)] * (abs(one - other) >= 0.05)
    assert different == [("MultiPIT-Id", "Teacher")]  # $37.5 against the $32.49 of Table 2
    text = "\n".join(table.notes)
    assert "A40-hours at $1.875: WLP 36, Stanceosaurus 32, FEVER 12" in text
    assert re.search(r"Tables 2 and 11, 17 are printed nowhere", text)
    for value in ("$37.5", "$279", "$161", "$148"):
        assert value in text


def test_table8():
    rows = build("table8").rows
    for ours, paper in zip(rows[::2], rows[1::2], strict=True):
        assert (ours[1], paper[1]) == ("ours", "paper")
        assert ours[2:] == paper[2:]
    assert len(rows) == 10


def test_table7_shows_the_first_labeled_row_as_a_model_reads_it(tmp_path):
    rows = {
        "wlp": [
            {"source": "skipped", "target": ""},
            {"source": "Add it", "target": "Add [Action]"},
        ],
        "fever": [{"source": "Water is wet.", "target": "SUPPORTS"}],
        "nq": [{"source": "who?", "target": "one"}],
    }
    for task, lines in rows.items():
        (tmp_path / task).mkdir()
        text = "".join(json.dumps(row) + "\n" for row in lines)
        (tmp_path / task / "train.jsonl").write_text(text)
    table = build("table7", "--task", "wlp fever nq stanceosaurus", "--prepared", tmp_path)
    assert table.rows[:2] == [
        ["WLP", "Named Entity Recognition", "Source", "wlp: Add it"],
        ["", "", "Target", "Add [Action]"],
    ]
    texts = column(table, "Text")
    assert "fever: Water is wet." in texts and "REFUTES, SUPPORTS" in texts and "one" in texts
    assert texts[-3:-1] == [None, None] and "Stanceosaurus" in table.notes[-1]


def test_table7_of_a_task_without_splits_says_so(tmp_path):
    """Then its column of texts, the wide one, holds nothing and is left out."""
    text = tables.to_markdown(build("table7", "--task", "wlp", "--prepared", tmp_path))
    assert "Not prepared, `make data` does it: WLP" in text and "| Text" not in text


@pytest.mark.parametrize("name", ["table1", "table5", "table6", "table8"])
def test_one_task_and_a_task_of_ones_own(name, tmp_path):
    assert len({row[0] for row in build(name, "--task", "wlp").rows} - {""}) in (1, 5)
    entry = {"title": "Mine", "metric": "classes", "prefix": "mine: ", "labels": ["a", "b"]}
    entry |= {"max_source_length": 32, "max_target_length": 8, "usd_per_label": 0.5}
    entry |= {"labels_n": [100], "budgets": [10]}
    hours = {"teacher_gpu_hours": {"100": 1}, "distill_gpu_hours_per_100k": 20}
    for more in (hours, {}):  # of an entry without hours they are planned, and said to be
        path = tmp_path / "mine.json"
        path.write_text(json.dumps({**entry, **more}))
        text = tables.to_markdown(build(name, "--task", path))
        assert "Mine" in text
        planned = not more and name in ("table5", "table6")
        assert ("are planned (arithmetic" in " ".join(text.split())) == planned
        assert (name != "table6") or "A40 at $0.995 an hour" in text


@pytest.mark.parametrize("name", ["table1", "table5", "table6", "table8"])
def test_printed_tables_fit_a_terminal(name):
    text = tables.to_markdown(build(name, "--task", "all"))
    assert max(map(len, text.splitlines())) <= 100


def test_mistakes_and_exit_codes(tmp_path):
    def call(*argv):
        line = [sys.executable, "plots.py", *map(str, argv)]
        return subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)

    wrong = call("table1", "--task", "wlq")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith("error: unknown task 'wlq'") and wrong.stderr.count("\n") == 1
    assert call("table99").returncode == 2
    (tmp_path / "file").write_text("")
    blocked = call("table1", "--output", tmp_path / "file")
    assert blocked.returncode == 1 and blocked.stderr.startswith("error: ")


def test_tables_need_the_standard_library_only():
    code = "import plots, sys; print('matplotlib' in sys.modules, 'numpy' in sys.modules)"
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_teacher_below_its_student_is_said():
    """A Dist. that learns from such a teacher says nothing of distilling."""
    means = {("small", 100): 75.0, ("teacher", 100): 60.0, ("small", 500): 80, ("teacher", 500): 90}
    cells = [
        SimpleNamespace(labels=n, budget_usd=usd, runs={"teacher": ("t",) if usd else None})
        for n in (100, 500)
        for usd in (0, 10)
    ]
    score = lambda cell, kind: SimpleNamespace(mean=lambda: means[kind, cell.labels])  # noqa: E731
    study = SimpleNamespace(title="Tickets", cells=cells, score=score)
    (note,) = note_weak_teachers([study])
    assert note.startswith("Tickets, N=100: the teacher is below the compact model")
