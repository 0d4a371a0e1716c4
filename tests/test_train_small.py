"""train_small.py through its command line, on the mini student and the mini world."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from tiny import build_word_tokenizer, slow

import evaluate
import train_small
from data import prepare

ROOT = Path(__file__).resolve().parents[1]
STUDENT = ROOT / "data" / "world" / "models" / "student"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    prepare.main(["--task", "wlp", "--output", str(folder)])
    return folder


def list_flags(world, output, **changes):
    """Flags of a short run; a change of None leaves the flag out."""
    flags = {
        "model": STUDENT,
        "train": world / "train.jsonl",
        "num-labels": 60,
        "prefix": "wlp: ",
        "max-steps": 12,
        "batch-size": 8,
        "learning-rate": 2e-3,
        "save-steps": 5,
        "logging-steps": 1,
        "output": output,
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    return [word for k, v in flags.items() if v is not None for word in (f"--{k}", str(v))]


@pytest.mark.parametrize(
    ("rows", "max_steps", "min_steps", "steps"),
    [(100, -1, 0, -1), (100, -1, 40, 40), (320, -1, 40, -1), (321, -1, 41, -1), (100, 7, 40, 7)],
)
def test_steps_are_those_of_the_epochs_and_at_least_min_steps(
    monkeypatch, rows, max_steps, min_steps, steps
):
    """-1 leaves it to Trainer: 4 epochs of 10 or 11 batches are 40 or 44 steps."""
    args = Namespace(min_steps=min_steps, epochs=4, batch_size=32, output=None)
    trainer = Namespace(args=Namespace(max_steps=max_steps), train_dataset=range(rows))
    trainer.is_world_process_zero = lambda: False
    monkeypatch.setattr(train_small, "find_checkpoint", lambda *args: die())
    with pytest.raises(RuntimeError, match="killed"):
        train_small.fit(trainer, args, {}, {}, 0)
    assert trainer.args.max_steps == steps


def load_weights(run):
    return safetensors.torch.load_file(run / "model" / "model.safetensors")


def same_weights(one, other):
    one, other = load_weights(one), load_weights(other)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run of 12 steps that nothing disturbed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    train_small.main(list_flags(world, run, dropout=0.1))
    return run


@pytest.fixture(scope="module")
def killed(world, tmp_path_factory):
    """The same run, killed after step 7 with a checkpoint at 5."""
    run = tmp_path_factory.mktemp("killed") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train_small.Progress, "on_log", at_step(7, die))
        train_small.main(list_flags(world, run, dropout=0.1))
    return run


def die():
    raise RuntimeError("killed")


def at_step(step, act, log=train_small.Progress.on_log):
    """An on_log that calls `act` after the log of a step."""

    def on_log(self, args, state, control, **kwargs):
        log(self, args, state, control, **kwargs)
        if state.global_step == step:
            act()

    return on_log


def test_it_learns_and_records_what_it_did(world, tmp_path, capsys):
    run = tmp_path / "run"
    changes = {"num_labels": 200, "batch_size": 16, "logging_steps": 20}
    changes |= {"max_steps": None, "epochs": 2, "min_steps": 250}
    train_small.main(list_flags(world, run, task="wlp", dropout=0.05, **changes))
    record = json.loads((run / "training.json").read_text())
    assert (record["strategy"], record["task"], record["labels"]) == ("small", "wlp", 200)
    assert record["steps"] == 250 and record["parameters"] == 254_656
    assert set(record["seconds"]) == {"load", "train", "save"}
    assert record["hardware"]["device"] in ("cpu", "cuda") and record["data_sha256"]
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] / 2
    assert not (run / "checkpoints").exists()

    rows = world / "dev100.jsonl"
    rows.write_text("".join((world / "dev.jsonl").read_text().splitlines(True)[:100]))
    flags = ["--task", "wlp", "--model", str(run / "model"), "--data", str(rows)]
    flags += ["--output", str(run), "--max-source-length", "64", "--max-target-length", "64"]
    evaluate.main(flags)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["score"] > 10  # the constant predictor gets about 1, the untrained model 0
    assert metrics["training"]["labels"] == 200
    capsys.readouterr()


def test_a_finished_run_is_left_alone(world, tmp_path, capsys):
    flags = list_flags(world, tmp_path / "run", max_steps=2)
    train_small.main(flags)
    before = (tmp_path / "run" / "training.json").stat().st_mtime_ns
    train_small.main(flags)
    assert "already trained" in capsys.readouterr().err
    assert (tmp_path / "run" / "training.json").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(world, tmp_path):
    train_small.main(list_flags(world, tmp_path / "run", max_steps=2))
    with pytest.raises(SystemExit, match=r"error: .*learning_rate 0.002 -> 0.01"):
        train_small.main(list_flags(world, tmp_path / "run", max_steps=2, learning_rate=0.01))


def test_a_killed_run_ends_with_the_same_weights_log_and_loss(world, whole, killed, tmp_path):
    run = shutil.copytree(killed, tmp_path / "run")
    half = shutil.copytree(run / "checkpoints/checkpoint-5", run / "checkpoints/checkpoint-9")
    (half / "trainer_state.json").unlink()  # killed while it was written
    train_small.main(list_flags(world, run, dropout=0.1))
    assert same_weights(whole, run)
    logs = [[json.loads(x) for x in (path / "log.jsonl").open()] for path in (whole, run)]
    assert [log["step"] for log in logs[1]] == list(range(1, 13))
    assert [log["loss"] for log in logs[0]] == [log["loss"] for log in logs[1]]
    records = [json.loads((path / "training.json").read_text()) for path in (whole, run)]
    assert records[0]["train_loss"] == pytest.approx(sum(log["loss"] for log in logs[0]) / 12)
    assert records[1]["train_loss"] == pytest.approx(records[0]["train_loss"])
    assert "lost" not in records[0]["seconds"] and records[1]["seconds"]["lost"] > 0


@pytest.mark.parametrize("logging_steps", [1, 5, 50])
def test_the_mean_loss_counts_every_step_also_after_a_resume(
    world, whole, tmp_path, monkeypatch, logging_steps
):
    flags = list_flags(world, tmp_path / "run", dropout=0.1, logging_steps=logging_steps)
    step = train_small.Progress.on_step_end

    def on_step_end(self, args, state, control, **kwargs):
        step(self, args, state, control, **kwargs)
        if state.global_step == 8:
            die()

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
        patch.setattr(train_small.Progress, "on_step_end", on_step_end)
        train_small.main(flags)
    train_small.main(flags)
    found, wanted = (
        json.loads((run / "training.json").read_text())["train_loss"]
        for run in (tmp_path / "run", whole)
    )
    assert found == pytest.approx(wanted) and same_weights(whole, tmp_path / "run")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_a_checkpoint_and_the_same_command_goes_on(
    world, whole, tmp_path, capsys, monkeypatch, number, code
):
    run, before = tmp_path / "run", signal.getsignal(number)
    flags = list_flags(world, run, dropout=0.1, save_steps=100)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(
            train_small.Progress, "on_log", at_step(6, lambda: os.kill(os.getpid(), number))
        )
        train_small.main(flags)
    assert stop.value.code == code and signal.getsignal(number) == before
    assert (
        "run: stopped at step 7; the same command goes on from there\n" in capsys.readouterr().err
    )
    assert (run / "checkpoints" / "checkpoint-7").exists() and not (run / "model").exists()
    train_small.main(flags)
    assert same_weights(whole, run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_training_is_one_line(world, tmp_path, capsys, monkeypatch, number, code):
    monkeypatch.setattr(train_small, "load_model", lambda *args: os.kill(os.getpid(), number))
    with pytest.raises(SystemExit) as stop:
        train_small.main(list_flags(world, tmp_path / "run"))
    assert stop.value.code == code
    assert capsys.readouterr().err == "error: run: interrupted; run the same command again\n"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("optimizer.pt", cut),
        ("optimizer.pt", Path.unlink),
        ("scheduler.pt", empty),
        ("scheduler.pt", Path.unlink),
        ("rng_state.pth", empty),
        ("model.safetensors", cut),
        ("model.safetensors", Path.unlink),
        ("trainer_state.json", lambda path: path.write_text("{}")),
        ("trainer_state.json", lambda path: path.write_text("[1]")),
        ("trainer_state.json", lambda path: edit_config(path.parent, path.name, odd=1)),
        ("trainer_state.json", lambda path: edit_config(path.parent, path.name, global_step=4)),
        ("trainer_state.json", lambda path: edit_config(path.parent, path.name, logging_steps=0)),
        ("trainer_state.json", lambda path: edit_config(path.parent, path.name, log_history=[5])),
        ("trainer_state.json", lambda path: path.rename(path.parent / "x")),
        ("config.json", cut),
        ("config.json", lambda path: path.write_text("null")),
        ("", lambda path: path.rename(path.parent / "checkpoint-x")),
        ("", lambda path: path.rename(path.parent / "checkpoint-11")),
        ("../../log.jsonl", lambda path: path.write_text('garbage}\n{"loss": 3}\n')),
        ("../../log.jsonl", lambda path: path.write_bytes(b"\xff\x00")),
        ("../seconds", lambda path: path.write_text("[]")),
    ],
)
def test_a_damaged_checkpoint_is_set_aside(world, whole, killed, tmp_path, capsys, name, damage):
    """The end is the same; what can't be continued is begun anew, with a word."""
    run = shutil.copytree(killed, tmp_path / "run")
    damage(run / "checkpoints" / "checkpoint-5" / name)
    train_small.main(list_flags(world, run, dropout=0.1))
    assert ("not whole: set aside" in capsys.readouterr().err) == (".." not in name)
    assert same_weights(whole, run)
    assert len((run / "log.jsonl").read_text().splitlines()) == 12


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("training.json", empty),
        ("training.json", lambda path: path.write_text("[]")),
        ("training.json", lambda path: path.write_text('{"a": 1}')),
        ("model", shutil.rmtree),
        ("model/config.json", cut),
        ("model/config.json", lambda path: path.write_text("null")),
        ("model/config.json", lambda path: edit_config(path.parent, model_type="odd")),
        ("model/model.safetensors", cut),
        ("model/model.safetensors", Path.unlink),
        ("model/tokenizer.json", empty),
        ("model/preprocessing.json", lambda path: path.write_text("[1]")),
        ("model/preprocessing.json", Path.unlink),
    ],
)
def test_a_finished_run_needs_its_record_and_its_model(
    world, whole, tmp_path, capsys, name, damage
):
    run = shutil.copytree(whole, tmp_path / "run")
    damage(run / name)
    train_small.main(list_flags(world, run, dropout=0.1))
    assert "damaged: trained again" in capsys.readouterr().err and same_weights(whole, run)
    train_small.main(list_flags(world, run, dropout=0.1))
    assert "already trained" in capsys.readouterr().err


def test_two_processes_never_train_in_one_folder(tmp_path):
    run = tmp_path / "run"
    said = pytest.raises(SystemExit, match=f"^error: {run}: another process is training here$")
    with train_small.run_folder(run), said, train_small.run_folder(run):
        pytest.fail("two are in it")
    with train_small.run_folder(run):
        pass


@pytest.mark.parametrize(
    ("save_steps", "pause", "kept"), [(0, 0, False), (None, 0, True), (None, 600, False)]
)
def test_checkpoints_come_by_time_or_not_at_all(
    world, tmp_path, monkeypatch, save_steps, pause, kept
):
    """Without --save-steps each PAUSE seconds."""
    monkeypatch.setattr(train_small, "PAUSE", pause)
    monkeypatch.setattr(train_small.Progress, "on_log", at_step(13, die))
    with pytest.raises(RuntimeError, match="killed"):
        train_small.main(list_flags(world, tmp_path / "run", max_steps=20, save_steps=save_steps))
    assert kept == any((tmp_path / "run" / "checkpoints").glob("checkpoint-*"))


def test_the_model_folder_is_fit_to_be_handed_on(whole):
    files = {path.name: path for path in (whole / "model").iterdir()}
    assert "training_args.bin" not in files
    os.umask(mask := os.umask(0))
    assert {path.stat().st_mode & 0o777 for path in files.values()} == {0o666 & ~mask}
    assert json.loads(files["config.json"].read_text())["use_cache"] is True
    facts = {"task": None, "prefix": "wlp: ", "max_source_length": 128, "max_target_length": 128}
    assert json.loads(files["preprocessing.json"].read_text()) == {**facts, "labels": None}


def test_the_configuration_names_all_that_a_result_depends_on(world, whole, tmp_path, monkeypatch):
    config = json.loads((whole / "config.json").read_text())
    wanted = {"learning_rate": 2e-3, "batch_size": 8, "max_steps": 12, "dropout": 0.1, "seed": 0}
    wanted |= {"processes": 1, "device": "cpu", "bf16": False, "weight_decay": 0}
    assert {key: config[key] for key in wanted} == wanted
    assert config["data_sha256"] == hashlib.sha256((world / "train.jsonl").read_bytes()).hexdigest()
    run = shutil.copytree(whole, tmp_path / "run")

    def refuse(match, **changes):
        with pytest.raises(SystemExit, match=match):
            train_small.main(list_flags(world, run, **{"dropout": 0.1, **changes}))

    rows = (world / "train.jsonl").read_text()
    (tmp_path / "more.jsonl").write_text(rows + rows)
    refuse("data_sha256", train=tmp_path / "more.jsonl")
    model = shutil.copytree(STUDENT, tmp_path / "student")
    refuse_nothing = list_flags(
        world, run, dropout=0.1, model=model, save_steps=3, report_to="none"
    )
    train_small.main(refuse_nothing)  # the same model elsewhere, other checkpoints
    empty(model / "README.md")
    train_small.main(refuse_nothing)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "dropout_rate": 0.3}))
    refuse("model_sha256", model=model)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as stop:
        train_small.main(list_flags(world, run, batch_size=9))
    assert stop.value.code == 2
    monkeypatch.delenv("WORLD_SIZE")
    args, rest = train_small.parse_args(list_flags(world, run, gradient_accumulation_steps=2))
    assert train_small.read_training(args, rest).per_device_train_batch_size == 4


def test_more_labels_contain_fewer():
    rows = [{"source": str(i), "target": "x" if i % 10 else " "} for i in range(100)]
    few, more, other = (
        [row["source"] for row in train_small.sample_rows(rows, n, seed, "file")]
        for n, seed in ((20, 1), (50, 1), (20, 2))
    )
    assert more[:20] == few and set(other) != set(few)
    assert not any(int(source) % 10 == 0 for source in more)  # an empty target teaches nothing,
    kept = train_small.sample_rows(rows, None, 1, "file", keep_empty=True)  # unless it is said to
    assert len(kept) == 100


def test_batches_hold_similar_lengths_and_all_rows_once():
    lengths = [(i * 37) % 50 for i in range(203)]
    sampler = train_small.LengthGroupedSampler(lengths, 8, seed=0)
    first, again = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first == again != list(sampler)
    assert sorted(first) == list(range(203))
    spreads = [
        max(b) - min(b) for i in range(0, 200, 8) if (b := [lengths[j] for j in first[i : i + 8]])
    ]
    assert sum(spreads) / len(spreads) < 5


WRONG_FLAGS = """
--epochs 0; --epochs -3; --epochs nan; --epochs inf; --max-source-length 0; --max-source-length -5
--max-target-length 1; --max-target-length 99999; --batch-size 0; --batch-size -4; --min-steps -1
--gradient-accumulation-steps 0; --gradient-accumulation-steps 3; --learning-rate nan; --dropout nan
--learning-rate -1; --learning-rate 0; --dropout 1; --dropout -0.1; --lr-scheduler-type nonsense
--logging-steps 0; --warmup-steps -3; --seed -1; --seed 99999999999; --num-labels 0; --save-steps -1
--weight-decay nan; --weight-decay -1; --max-grad-norm -1; --adam-beta1 inf; --adam-beta1 1.5
--adam-beta2 -1; --adam-epsilon -1; --lr-scheduler-kwargs {"nonsense":1}
--num-train-epochs 3; --per-device-train-batch-size 4; --fp16
--output-dir x; --label-smoothing-factor 0.1; --no-such-flag; --learning 3; --epoch 3; --epochs x
--eval-strategy steps; --report-to nonsense; --push-to-hub; --optim nonsense
--max-steps x; --auto-find-batch-size; --metric-for-best-model x; --torch-compile-mode nonsense
--torch-compile-backend nonsense
--max-steps 0; --dataloader-num-workers -1; --load-best-model-at-end; --dev README.md
--max-steps -5; --eval-accumulation-steps 0
--prefix caf\udce9
--debug underflow_overflow; --accelerator-config {"dispatch_batches":true}; --save-only-model
--neftune-noise-alpha 5; --data-seed 3; --ignore-data-skip; --predict-with-generate; --eval-on-start
--save-strategy best; --fsdp full_shard; --generation-config x; --use-liger-kernel
--dataloader-persistent-workers; --dataloader-prefetch-factor 0; --per-device-eval-batch-size 0
--labels A A; stray; --resume-from-checkpoint x; --save-steps 5.5; --train-sampling-strategy random
"""


@pytest.mark.parametrize("flags", [x.strip() for x in re.split(r"[;\n]", WRONG_FLAGS.strip())])
def test_a_wrong_flag_is_one_line_and_exit_2_before_anything_is_written(
    world, tmp_path, capsys, flags
):
    with pytest.raises(SystemExit) as stop:
        train_small.main(list_flags(world, tmp_path / "run") + flags.split())
    text = capsys.readouterr().err
    assert stop.value.code == 2 and text.count("\n") == 1 and ": error: " in text, text
    assert flags.split()[0][2:] in text.replace("_", "-") or "nonsense" in text
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["", ".", "/"])
def test_a_run_folder_needs_a_name(world, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        train_small.main(list_flags(world, name))
    assert stop.value.code == 2 and "--output: " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_flags_of_trainer_work_as_they_are(world, tmp_path):
    """Weight decay, dev loss while training, and the best checkpoint at the end."""
    flags = {"weight_decay": 0.1, "dev": world / "few.jsonl", "eval_strategy": "steps"}
    flags |= {"eval_steps": 4, "save_steps": 4, "load_best_model_at_end": "true"}
    flags |= {"include_num_input_tokens_seen": "true"}  # stands in each entry of the log
    rows = (world / "dev.jsonl").read_text().splitlines(True)
    (world / "few.jsonl").write_text("".join(rows[:20]))
    train_small.main(list_flags(world, tmp_path / "run", **flags))
    log = [json.loads(x) for x in (tmp_path / "run" / "log.jsonl").open()]
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    assert list(losses) == [4, 8, 12] and losses[12] < losses[4]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["weight_decay"] == 0.1
    training = json.loads((tmp_path / "run" / "training.json").read_text())
    assert training["train_loss"] > 1 and all("num_input_tokens_seen" in entry for entry in log)


def write_lines(path, *lines):
    path.write_bytes(b"".join(x if isinstance(x, bytes) else f"{x}\n".encode() for x in lines))
    return path


ROW = '{"source": "a", "target": "b c"}'
BAD_FILES = {  # name: (its lines, what is said of it)
    "broken": ([ROW, '{"source": '], "broken.jsonl line 2: not a JSON object"),
    "lacking": (['{"source": "a"}'], "lacking.jsonl line 1: a row needs the texts source and tar"),
    "number": (['{"source": "a", "target": 3}'], "number.jsonl line 1: a row needs the texts"),
    "list": (["[1]"], "list.jsonl line 1: a row needs the texts"),
    "null": (["null"], "null.jsonl line 1: a row needs the texts"),
    "empty": (["", " "], "empty.jsonl: no rows"),
    "blank": (['{"source": "a", "target": " "}'], "blank.jsonl: .* 0 rows with a target"),
    "unsaid": (
        [ROW, '{"source": " ", "target": "b"}', "", '{"source": "", "target": "b"}'],
        "unsaid.jsonl: 2 empty sources, the first in line 2; leave them out",
    ),
    "half": (
        [ROW, '{"source": "a \\ud83d", "target": "b"}'],
        "half.jsonl line 2: not UTF-8 .*surrogate",
    ),
    "deep": (["[" * 100_000], "deep.jsonl line 1: not a JSON object"),
    "latin": ([b'{"source": "\xe9", "target": "b"}'], "latin.jsonl line 1: not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_error_line(world, tmp_path, name):
    lines, message = BAD_FILES[name]
    train = write_lines(tmp_path / f"{name}.jsonl", *lines)
    refuse(message, list_flags(world, tmp_path / "run", train=train, num_labels=None))


def refuse(message, flags):
    """Assert one `error:` line, and that nothing hinders the right command afterwards."""
    with pytest.raises(SystemExit) as stop:
        train_small.main(flags)
    text = str(stop.value)
    assert text.startswith("error: ") and "\n" not in text and re.search(message, text), text
    run = Path(flags[flags.index("--output") + 1])
    assert not (run / "training.json").exists()
    return text


def test_a_byte_order_mark_is_no_part_of_the_text(world, tmp_path):
    path = write_lines(tmp_path / "bom.jsonl", b"\xef\xbb\xbf", ROW)
    assert train_small.read_rows(path, "source", "target") == [{"source": "a", "target": "b c"}]


def test_a_run_folder_is_not_taken_for_a_model(tmp_path):
    (tmp_path / "model").mkdir()
    with pytest.raises(SystemExit, match=r"a run folder, whose model is .*/model"):
        train_small.check_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_labels": 5000}, r"5,000 labels asked for, 1,200 rows"),
        ({"train": "/no/such.jsonl"}, r"/no/such.jsonl: no such file"),
        ({"dev": "/no/such.jsonl"}, r"/no/such.jsonl: no such file"),
        ({"model": "/no/such/model"}, r"/no/such/model: no such model folder"),
        ({"learning_rate": 1e30}, r"the loss is (nan|inf)"),
        ({"learning_rate": 1e30, "logging_steps": 50}, r"the loss is (nan|inf)"),
        (
            {"num_labels": 4, "dataloader_drop_last": True},
            r"no step was taken, as --dataloader-drop",
        ),
        ({"learning_rate": 1e39, "max_steps": 1}, r"last step made weights infinite or NaN"),
    ],
)
def test_bad_input_is_one_error_line(world, tmp_path, changes, message):
    refuse(message, list_flags(world, tmp_path / "run", **changes))


def edit_weights(folder, change):
    file = folder / "model.safetensors"
    weights = change(safetensors.torch.load_file(file))
    safetensors.torch.save_file(weights, file, {"format": "pt"})


def edit_config(folder, name="config.json", **changes):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**config, **changes}))


def drop_tokenizer(folder):
    for path in [*folder.glob("tokenizer*"), *folder.glob("*.model")]:
        path.unlink()


def add_nan(weights):
    weights["shared.weight"][3] = float("nan")
    return weights


MODELS = {  # name: (damage to a copy of the student, what is said)
    "cut": (lambda folder: cut(folder / "model.safetensors"), "cut: no model can be loaded"),
    "third": (
        lambda folder: edit_weights(folder, lambda w: dict(sorted(w.items())[::3])),
        "third: 24 weights are missing, as",
    ),
    "taller": (lambda folder: edit_config(folder, num_layers=4), "taller: .* weights are missing"),
    "lower": (lambda folder: edit_config(folder, num_layers=1), "lower: .* are not in its config"),
    "mute": (drop_tokenizer, "mute: no tokenizer"),
    "nan": (lambda folder: edit_weights(folder, add_nan), "nan: 1 weights are NaN or infinite"),
    "narrow": (lambda folder: edit_config(folder, vocab_size=99), "narrow: .* but 99 embeddings"),
    "bart": (lambda folder: edit_config(folder, model_type="bart"), "a bart; T5 .* work"),
    "mt5": (lambda folder: edit_config(folder, model_type="mt5"), "a mt5; T5 .* work"),
    "gpt2": (lambda folder: edit_config(folder, model_type="gpt2"), "a gpt2; T5 .* work"),
    "odd": (lambda folder: edit_config(folder, model_type="odd"), "odd: no model can be loaded"),
    "list": (lambda folder: (folder / "config.json").write_text("[1]"), "list: no model can be"),
    "bare": (lambda folder: (folder / "config.json").unlink(), "bare: no model can be loaded"),
    "mute start": (
        lambda folder: edit_config(folder, decoder_start_token_id=None),
        "decoder_start_token_id None in its config.json is none of its ids",
    ),
    "endless": (
        lambda folder: edit_config(folder, name="tokenizer.json", post_processor=None),
        "puts no end token, 1, behind a text",
    ),
    "pad": (lambda folder: edit_config(folder, pad_token_id=10**9), "pad_token_id 1000000000 in"),
    "eos": (lambda folder: edit_config(folder, eos_token_id=[1, 2]), r"eos_token_id \[1, 2\] in"),
    "gone": (lambda folder: (folder / "model.safetensors").unlink(), "gone: no model can be"),
    "int8": (
        lambda folder: edit_weights(folder, lambda w: {n: x.to(torch.int8) for n, x in w.items()}),
        "int8: 37 weights are integers, as",
    ),
    "short": (
        lambda folder: edit_config(folder, relative_attention_max_distance=0),
        "short: no model can be loaded",
    ),
    "equal": (
        lambda folder: edit_config(folder, relative_attention_max_distance=8),
        "equal: no model can be loaded",
    ),
    "dropout": (lambda folder: edit_config(folder, dropout_rate=float("nan")), "no model can be"),
    "norm": (lambda folder: edit_config(folder, layer_norm_epsilon="x"), "norm: no model can be"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_damaged_or_foreign_model_is_refused(world, tmp_path, name):
    damage, message = MODELS[name]
    damage(shutil.copytree(STUDENT, tmp_path / name))
    refuse(message, list_flags(world, tmp_path / "run", model=tmp_path / name))
    train_small.main(list_flags(world, tmp_path / "run", max_steps=1))  # nothing lies in its way


@pytest.mark.parametrize(
    ("targets", "limit", "message"),
    [
        ("GOOD BAD NEITHER", 8, "8: 1 of 3 .* longer, as 'NEITHER', .*; 9 tokens hold them all"),
        ("GOOD BAD NEITHER", 9, None),
        ("α β γ", 64, "'α', 'β', 'γ' are the same tokens to this model"),
    ],
)
def test_classes_that_the_model_cannot_write_are_refused(targets, limit, message):
    tokenizer = (
        build_word_tokenizer() if "α" in targets else train_small.load_parts(str(STUDENT))[1]
    )
    texts = targets.split() * 3
    if not message:
        return train_small.check_classes(texts, tokenizer, limit)
    with pytest.raises(SystemExit, match=message):
        train_small.check_classes(texts, tokenizer, limit)


def test_a_machine_without_git_trains(world, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    train_small.main(list_flags(world, tmp_path / "run", max_steps=1))
    assert json.loads((tmp_path / "run" / "training.json").read_text())["git_commit"] is None


def test_targets_that_are_cut_are_counted_and_said(world, tmp_path, capsys):
    train_small.main(list_flags(world, tmp_path / "run", max_target_length=6, max_steps=1))
    count = json.loads((tmp_path / "run" / "training.json").read_text())["truncated_targets"]
    assert count and f"{count} targets cut at 6 tokens" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model", "checkpoints", "log.jsonl", "training.json"])
def test_what_is_not_of_this_run_is_never_overwritten(world, tmp_path, name):
    run = tmp_path / "run"
    run.mkdir()
    if "." in name:
        (run / name).write_text('{"source": "mine"}\n')
    else:
        shutil.copytree(STUDENT, run / name)
    with pytest.raises(SystemExit, match=f"{name}: not of a run of this version"):
        train_small.main(list_flags(world, run))
    assert (run / name).exists()


def test_an_input_is_never_overwritten(world, whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    before = (run / "model" / "model.safetensors").read_bytes()
    cases = {"model": run / "model", "train": run / "model" / "rows.jsonl"}
    shutil.copy(world / "train.jsonl", cases["train"])
    for flag, path in cases.items():
        with pytest.raises(SystemExit, match="would be overwritten by this run"):
            train_small.main(list_flags(world, run, **{flag: path}))
    assert (run / "model" / "model.safetensors").read_bytes() == before


def test_an_unusable_gpu_is_an_error_not_a_slow_run(world, tmp_path, monkeypatch):
    monkeypatch.setattr(train_small, "DRIVER", Path(__file__))  # a file that is there
    refuse("can't use this machine's NVIDIA driver", list_flags(world, tmp_path / "run"))
    train_small.main([*list_flags(world, tmp_path / "run", max_steps=1), "--use-cpu"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    train_small.main(list_flags(world, tmp_path / "other", max_steps=1))


@pytest.mark.parametrize(
    ("module", "name", "error"),
    [
        (torch, "save", RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos")),
        (train_small, "write_json", OSError(28, "No space left on device")),  # before config.json
    ],
)
def test_a_full_disk_is_one_error_line_and_the_run_goes_on_later(
    world, tmp_path, monkeypatch, module, name, error
):
    def refuse(*args, **kwargs):
        raise error

    flags = list_flags(world, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(module, name, refuse)
        with pytest.raises(SystemExit, match=r"error: .*the disk is full"):
            train_small.main(flags)
    train_small.main(flags)
    assert (tmp_path / "run" / "training.json").exists()


@slow
def test_two_processes_are_as_one(world, tmp_path):
    """torchrun with gloo: two processes against one.

    64 rows are whole batches; accelerate fills a short one with rows of the epoch's beginning.
    """
    train_small.main(list_flags(world, tmp_path / "one", dropout=0, num_labels=64))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    flags = list_flags(world, tmp_path / "two", dropout=0, num_labels=64)
    done = subprocess.run(
        [*launch, "2", str(ROOT / "train_small.py"), *flags],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("64 labels, 12 steps") == 1  # one process speaks
    again = subprocess.run(done.args, capture_output=True, text=True, check=False)
    assert again.returncode == 0 and again.stderr.count("already trained") == 1, again.stderr
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").open()]
        for name in ("one", "two")
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    one, two = load_weights(tmp_path / "one"), load_weights(tmp_path / "two")
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4


def test_alone_in_an_empty_folder(world, tmp_path):
    """The Copy line of the docstring: this one file, nothing else of the project."""
    shutil.copy(ROOT / "train_small.py", tmp_path)
    done = subprocess.run(
        [sys.executable, "train_small.py", *list_flags(world, "run", max_steps=2)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "training.json").exists()
    assert done.stdout == ""


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=slow)])
def test_a_compiled_step_is_the_same(world, tmp_path, backend):
    """Padded to multiples of 32 and traced as a whole; on a GPU inductor captures it as a graph."""
    flags = {"dropout": 0, "max_steps": 4}
    train_small.main(list_flags(world, tmp_path / "plain", **flags))
    train_small.main(list_flags(world, tmp_path / "made", **flags, torch_compile_backend=backend))
    logs = [[json.loads(x) for x in (tmp_path / n / "log.jsonl").open()] for n in ("plain", "made")]
    assert [log["loss"] for log in logs[1]] == pytest.approx([log["loss"] for log in logs[0]], 1e-4)
    one, two = load_weights(tmp_path / "plain"), load_weights(tmp_path / "made")
    assert max((one[name] - two[name]).abs().max() for name in one) < 1e-4
    assert json.loads((tmp_path / "made" / "config.json").read_text())["pad_to"] == 32
