"""An LLM's labels in the study: bought once, kept, never mixed, not for real money by chance."""

import json
import os
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import pytest

from data.costs.budget import count_llm_labels
from data.costs.grid import cells, grid
from data.costs.prices import load_prices
from data.costs.runs import parse_run
from data.files import ROOT, UserError
from data.tasks import load_task

ROOT = ROOT


@pytest.fixture
def make(tmp_path):
    """make -n in a folder that has the bundle's files and no runs; returns what it said."""
    for path in (*ROOT.glob("*.py"), ROOT / "Makefile", ROOT / "requirements.txt"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "data").mkdir()
    for path in ROOT.glob("data/*"):
        (tmp_path / "data" / path.name).symlink_to(path)

    def run(*args, **environment):
        names = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
        kept = {name: value for name, value in os.environ.items() if name not in names}
        done = subprocess.run(
            ["make", "-n", *args], cwd=tmp_path, env={**kept, **environment},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        return done.returncode, done.stdout.replace("\\\n", " "), done.stderr

    run.folder = tmp_path
    return run


def find_calls(text, script="gpt_annotate.py"):
    """The command lines of a script, each as {flag: value}."""
    lines = [line for line in text.splitlines() if f" {script} " in line]
    return [dict(re.findall(r"--([a-z-]+)(?: +([^-\s]\S*))?", line)) for line in lines]


def test_answers_are_bought_once_a_seed_and_shared(make):
    code, text, _ = make("fig6", "table2", "LLM=1", "SEEDS=0 1")
    assert code == 0
    calls = find_calls(text)
    bought = {call["seed"]: call for call in calls if "replay" not in call}
    assert [call["num"] for call in bought.values()] == ["1086", "1086"]  # the most, +$50
    shared = [call for call in calls if "replay" in call]
    assert len(shared) == 2 * (8 + 2)  # N=100 and 500 at four budgets; N=10 and none at +$20
    for call in shared:
        assert call["store"] == f"{bought[call['seed']]['output']}/answers.jsonl"
        run = parse_run(Path(call["output"]).parent.name)
        assert (run.llm_labels, run.labels) == (int(call["num"]), int(call["add-labeled"]))
    trained = [call for call in find_calls(text, "train_small.py") if call["strategy"] == "llm"]
    assert {call["train"] for call in trained} == {f"{c['output']}/labels.jsonl" for c in shared}
    assert not any("num-labels" in call for call in trained)


def test_no_target_and_no_cleaning_touches_what_was_paid(make):
    _, text, _ = make("clean", "clean-runs")
    assert "rm -rf" in text and "answers" not in text
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([^\t#\n:=]+):(?!=)", makefile, re.MULTILINE)
    assert not any("$(ANSWERS)" in target for target in targets)
    assert "data/answers/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


@pytest.mark.parametrize(
    ("args", "environment", "text"),
    [
        (["fig6", "SCALE=paper"], {}, "say MODEL=gpt-6-luna"),
        (["table2", "LLM=1", "SCALE=paper"], {"OPENAI_API_KEY": "x"}, "say MODEL=gpt-6-luna"),
        (["fig7", "SCALE=paper", "MODEL=gpt-4o-mini"], {}, "set OPENAI_API_KEY"),
        (["fig6", "MODEL=gpt-4o-mini"], {}, "set OPENAI_API_KEY"),
    ],
)
def test_a_paid_run_needs_a_model_and_a_key(make, args, environment, text):
    code, _, errors = make(*args, **environment)
    assert code != 0
    assert errors.count("error:") == 1 and text in errors


def test_a_key_alone_spends_nothing(make):
    code, text, _ = make("fig6", "fig7", OPENAI_API_KEY="x")
    assert code == 0
    assert all(call["simulate"] == "0.7" and "model" not in call for call in find_calls(text))


def test_a_paid_run_has_its_budget(make):
    for environment in ({"OPENAI_API_KEY": "x"}, {"OPENAI_BASE_URL": "http://localhost/v1"}):
        code, text, _ = make("fig6", "MODEL=org/m:1", "LLM_FLAGS=--price-in 1", **environment)
        assert code == 0
        calls = find_calls(text)
        assert all("simulate" not in call and call["price-in"] == "1" for call in calls)
        assert {call["output"] for call in calls} >= {"data/answers/mini/wlp/org_m_1-s0"}
        assert "--budget 'paper'" in text
    _, text, _ = make("fig6", "MODEL=m", "BUDGET=5", OPENAI_API_KEY="x")
    assert "--budget '5'" in text


def test_two_annotators_are_not_mixed(make):
    folder = make.folder / "runs" / "mini" / "wlp" / "llm-n10-g434-s0" / "simulated-0.7"
    folder.mkdir(parents=True)
    (folder / "annotation.json").write_text("{}")
    assert make("fig6")[0] == 0
    for args in (["LLM_ACCURACY=0.9"], ["MODEL=gpt-4o-mini"]):
        code, _, errors = make("fig6", *args, OPENAI_API_KEY="x")
        assert code != 0 and errors.count("error:") == 1
        assert "llm-n10-g434-s0/simulated-0.7: labels of another annotator" in errors


def test_a_finished_study_needs_no_key(make):
    for run in grid("fig6", load_task("wlp"), "mini"):
        folder = make.folder / "runs" / "mini" / "wlp" / run.name
        (folder / "m").mkdir(parents=True)
        for name in ("metrics.json", "m/annotation.json"):
            (folder / name).write_text("{}")
    code, text, errors = make("fig6", "MODEL=m")
    assert code == 0, errors
    assert not find_calls(text)


def test_all_leaves_the_llm_out_where_it_costs_money(make):
    code, text, errors = make("all", "SCALE=paper", "TASK=stanceosaurus")
    assert code == 0 and "without MODEL=... fig6 and fig7 are left out" in errors
    assert not find_calls(text) and "fig3.png" in text
    _, text, _ = make("all", "TASK=stanceosaurus")
    assert find_calls(text) and "fig7.png" in text


def test_counts_of_an_llm(tmp_path):
    """Appendix E's counts, those of today's prices, and what a small unlabeled set limits."""
    prices = load_prices()
    found = count_llm_labels(load_task("wlp"), Fraction(200), prices)
    each = 2251 * Fraction("0.125") / 10**6 + 49 * Fraction("0.50") / 10**6
    assert list(found.values()) == [4347, 200 // each, 200 // (each / 2)]
    with pytest.raises(UserError, match="llm_tokens_per_label"):
        count_llm_labels(load_task("fever"), Fraction(200), prices)
    (tmp_path / "wlp").mkdir()
    rows = {"rows": {"train": 1200, "unlabeled": 300}}
    (tmp_path / "wlp" / "about.json").write_text(json.dumps(rows))
    laid = cells("fig6", load_task("wlp"), "mini", prepared=tmp_path)
    bought = [cell for cell in laid if cell.llm_labels]
    assert {cell.llm_labels for cell in bought} == {300}
    assert any("434 rows for an LLM planned, 300 exist" in cell.notes for cell in bought)


def test_the_level_of_an_llm_is_a_run_without_training():
    run = grid("fig7", load_task("wlp"), "paper")[-1]
    assert run.name == "prompted-n100-g200-s0"
    assert parse_run(run.name) == run


def test_a_prompted_run_asks_and_scores_and_trains_nothing(make):
    _, text, _ = make("fig7")
    (call,) = [call for call in find_calls(text) if "predictions" in call]
    assert call["num"] == "200" and call["seed"] == "0"
    assert not any(c["strategy"] == "prompted" for c in find_calls(text, "train_small.py"))
