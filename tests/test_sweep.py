"""data/bench/sweep.py: which runs are tried, what is chosen, a trial through the real scripts."""

import csv
import itertools
import json
import shlex
from pathlib import Path

import pytest

from data.bench import sweep
from data.costs.runs import make_run
from data.files import ROOT, UserError, hash_file, write_json
from data.tasks import load_task

ARMS = {"small": "Ann.", "teacher": "teacher", "dist": "Dist."}


def make_args(tmp_path, *words):
    args = sweep.parse_args(["--task", "wlp", "--output", str(tmp_path / "sweep.csv"), *words])
    args.splits, args.runs = tmp_path / "mini" / "wlp", tmp_path / "runs"
    args.splits.mkdir(parents=True)
    rows = {"train": 1196, "dev": 200, "test": 1000, "unlabeled": 11100}
    write_json(args.splits / "about.json", {"rows": rows})
    return args


@pytest.mark.parametrize(
    ("strategy", "counts"),
    [
        ("small", [(10, 0), (100, 0), (500, 0), (1196, 0)]),
        ("dist", [(10, 2200), (10, 6800), (100, 1900), (100, 11100), (500, 700), (500, 10000)]),
    ],
)
def test_recipes_are_chosen_at_each_n_and_at_fewest_and_most_rows(tmp_path, strategy, counts):
    runs = sweep.list_runs(make_args(tmp_path, "--strategy", strategy))
    assert [(run.labels, run.unlabeled) for run in runs] == counts


def test_double_tries_the_recipe_and_twice_its_steps_at_each_run_of_table_2(tmp_path):
    args = make_args(tmp_path, "--strategy", "dist", "--double")
    tried = {(r.labels, r.unlabeled): sweep.list_trials(args, r) for r in sweep.list_runs(args)}
    assert [rows for n, rows in tried if n == 100] == [1900, 4200, 6500, 11100]
    assert tried[100, 1900] == [(2e-3, 1200), (2e-3, 2400)]  # the fewest that a recipe takes
    assert tried[100, 11100] == [(2e-3, 2638), (2e-3, 5276)]  # 3.8 epochs of 694 steps
    named = make_args(tmp_path / "named", "--labels", "500", "--double")
    (run,) = sweep.list_runs(named)
    assert sweep.list_trials(named, run) == [(1e-3, 3600), (1e-3, 7200)]


@pytest.mark.parametrize(
    "words",
    [
        ["--strategy", "dist", "--labels", "100"],
        ["--strategy", "self", "--unlabeled", "1900"],
        ["--strategy", "small", "--labels", "100", "--unlabeled", "1900"],
    ],
)
def test_counts_that_do_not_go_together_are_refused(words, capsys):
    """A distilled run without rows would train on as many as there are labels, and say 0."""
    with pytest.raises(SystemExit):
        sweep.parse_args(["--task", "wlp", *words])
    assert "--unlabeled goes with --labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("strategy", "script"), [("dist", "train_teacher"), ("self", "train_small")]
)
def test_a_distilled_run_learns_from_the_run_that_its_name_needs(
    tmp_path, monkeypatch, strategy, script
):
    words = ("--strategy", strategy, "--labels", "100", "--unlabeled", "1900")
    args, called = make_args(tmp_path, *words), []
    args.most = 1900
    monkeypatch.setattr(sweep, "call", lambda *words: called.append([*map(str, words)]))
    (run,) = sweep.list_runs(args)
    inputs = sweep.find_inputs(args, run)
    home = args.runs / run.needs[0]
    train, label = called
    assert train[0] == script and train[-1] == str(home)
    assert label[:2] == ["distill", "--labels-only"] and str(home / "model") in label
    assert inputs[-1] == home / "labels"


def test_the_best_trial_is_the_cheapest_of_equals_and_edges_are_told(tmp_path):
    args = make_args(tmp_path, "--rates", "1", "2", "3", "--steps", "10", "30")
    trials = [(50.0, 10, 1), (60.0, 30, 2), (60.0, 10, 3), (60.0, 10, 2)]
    rows = [
        dict(zip(("score_dev", "steps", "learning_rate"), trial, strict=True)) for trial in trials
    ]
    assert sweep.choose(rows) == rows[3]
    assert sweep.tell_edges(rows[3], args) == ""
    assert "steps 30 is the highest" in sweep.tell_edges(rows[1], args)
    assert "learning_rate 1 is the lowest" in sweep.tell_edges(rows[0], args)


def test_a_task_of_ones_own_is_swept_on_its_own_splits(tmp_path, monkeypatch, capsys):
    """Its trials stay out of the bundle's own CSV, and its empty rows are lessons."""
    entry = {"title": "Mine", "metric": "entities", "prefix": "m: ", "labels": ["Gene"]}
    entry |= {"max_source_length": 32, "max_target_length": 16, "usd_per_label": 0.1}
    data, called = tmp_path / "notes", []
    data.mkdir()
    (data / "task.json").write_text(json.dumps({**entry, "labels_n": [20], "budgets": [10]}))
    splits = tmp_path / "data" / "prepared" / "mini-notes" / "mine"
    splits.mkdir(parents=True)
    (splits / "dev.jsonl").touch()
    (splits / "train.jsonl").touch()

    def call(script, *words):
        called.append([script, *map(str, words)])
        output = Path(words[words.index("--output") + 1])
        (output / "model").mkdir(parents=True, exist_ok=True)
        record = {"train_loss": 1.5, "seconds": {"train": 2}, "git_commit": None}
        if script == "train_small":
            record["command"] = shlex.join([script, *map(str, words)])
            record["data_sha256"] = hash_file(splits / "train.jsonl")
            write_json(output / "training.json", record)
        write_json(output / "metrics.json", {"score": 50, "metric": "entity_f1"})

    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    monkeypatch.setattr(sweep, "call", call)
    words = ["--labels", "20", "--rates", "1e-3", "2e-3", "0.001", "--steps", "30"]
    sweep.main(["--task", "mine", "--data", str(data), *words])
    home = tmp_path / "runs" / "sweep" / "mini-notes" / "mine"
    train, score = called[:2]
    assert (train[0], score[0], len(called)) == ("train_small", "evaluate", 4)
    assert str(splits / "train.jsonl") in train and "--keep-empty" in train
    assert f"mine={data / 'task.json'}" in score and str(splits / "dev.jsonl") in score
    said = capsys.readouterr()
    assert said.err.split() == f"1 run, 2 trials on dev, written to {home / 'sweep.csv'}".split()
    assert "small-n20-s0: chosen rate 0.001, 30 steps, 50.0 on dev" in said.out
    assert len(sweep.read_trials(home / "sweep.csv")) == 2 and not [*home.glob("*/model")]
    sweep.main(["--task", "mine", "--data", str(data), *words])
    assert len(called) == 4  # each trial is known
    (splits / "train.jsonl").write_text("more labels")
    with pytest.raises(
        UserError, match=r"sweep.csv: \S+train.jsonl changed since its trials of sm"
    ):
        sweep.main(["--task", "mine", "--data", str(data), *words])
    with pytest.raises(UserError, match=r"no splits; make data TASK=mine SCALE=mini DATA=\S+notes"):
        (splits / "dev.jsonl").unlink()
        sweep.main(["--task", "mine", "--data", str(data), *words])


def test_a_sweep_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    args, tried = make_args(tmp_path, "--labels", "100", "--rates", "1e-3", "2e-3"), []

    def try_recipe(args, run, inputs, rate, steps):
        tried.append((rate, steps))
        if len(tried) == 3:
            raise UserError("stopped")
        place = sweep.find_place(args, run)
        assert place == ("mini", "wlp", "small", 100, 0, 16)
        values = [*place, rate, steps, 0, 50 + steps, "f1", 1, 2, None]
        return dict(zip(sweep.COLUMNS, values, strict=True))

    monkeypatch.setattr(sweep, "parse_args", lambda argv: args)
    monkeypatch.setattr(sweep, "try_recipe", try_recipe)
    (args.splits / "dev.jsonl").touch()
    with pytest.raises(UserError):
        sweep.main([])
    sweep.main([])
    assert tried == [(1e-3, 900), (1e-3, 2700), (2e-3, 900), (2e-3, 900), (2e-3, 2700)]
    with open(args.output) as file:
        assert len(list(csv.DictReader(file))) == 4
    assert "chosen rate 0.001, 2700 steps, 2750.0 on dev" in capsys.readouterr().out


def list_doubled():
    """README's lines on the trials of --double: of each arm, at N (and rows), the score on dev
    after the recipe's steps and after twice as many, bold where that is a point more; the mean of
    the seeds where there are several."""
    tasks = json.loads((ROOT / "data" / "tasks.json").read_text())
    trials, lines = sweep.read_trials(ROOT / "data" / "results" / "mini-sweep.csv"), []
    for task, strategy in itertools.product(tasks, ("small", "teacher", "dist")):
        cells, args = [], sweep.parse_args(["--task", task, "--strategy", strategy, "--double"])
        tried = {(int(k[3]), int(k[4])) for k in trials if k[1:3] == (task, strategy)}
        for labels, rows in sorted(tried):
            run = make_run(strategy, labels, 0, unlabeled=rows)
            place = sweep.find_place(args, run)
            pairs = sweep.list_trials(args, run)
            keys = [[tuple(map(str, (*place, *p, seed))) for p in pairs] for seed in range(3)]
            told = [
                [float(trials[k]["score_dev"]) for k in both]
                for both in keys
                if {*both} <= {*trials}
            ]
            if told:
                before, after = (sum(scores) / len(told) for scores in zip(*told, strict=True))
                mark, of = "**" * (after - before > 1), f" of {len(told)}" * (len(told) > 1)
                at = f"{labels:,}" + f" ({rows:,})" * bool(rows)
                cells.append(f"{at}: {before:.1f} {mark}{after:.1f}{mark}{of}")
        if cells:
            title, arm = load_task(task).title, ARMS[strategy]
            lines.append(f"| {title} | {arm} | {'; '.join(cells)} |")
    return "\n".join(lines) + "\n"


def test_the_readme_shows_what_twice_the_steps_did():
    assert list_doubled() in (ROOT / "data" / "results" / "README.md").read_text(encoding="utf-8")
