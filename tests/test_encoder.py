"""Encoder classifiers (Table 10) through train_small.py and evaluate.py, in the hub's forms."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, DistilBertConfig, DistilBertForMaskedLM

import costs
import distill
import evaluate
import plots
import train_small
from data.costs.flags import make_flags, show_flags
from data.costs.runs import parse_run
from data.files import UserError
from data.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
from data.world import pretrain  # noqa: E402

PIECES = "[PAD] [UNK] [CLS] [SEP] [MASK] the a is it said about warm cold wet ##ter ##ly , ."
PIECES += " moon sea road bread"
LABELS = ["Supporting", "Refuting", "Irrelevant", "Discussing", "Querying"]
TOLD = {"warm": "Supporting", "cold": "Refuting", "wet": "Discussing"}


def save_as_hub(folder, kind):
    """A folder as the hub serves bert-base-uncased and distilbert-base-uncased, but tiny."""
    torch.manual_seed(0)
    size = {"vocab_size": len(PIECES.split()), "max_position_embeddings": 40}
    size |= {"initializer_range": 0.2}  # from 0.02 so small a model learns nothing in 60 steps
    if kind == "bert":
        size |= {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = BertForMaskedLM(BertConfig(**size, intermediate_size=32))
    else:
        model = DistilBertForMaskedLM(
            DistilBertConfig(**size, dim=16, n_layers=1, n_heads=2, hidden_dim=32)
        )
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(PIECES.split()) + "\n")
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def write_rows(path, count):
    """Rows whose class is told by the second last word; two of Stanceosaurus's five never occur."""
    rows = []
    for i in range(count):
        word = list(TOLD)[i % 3]
        thing = ("moon", "sea", "road", "bread")[i // 3 % 4]
        rows.append({"source": f"It said the {thing} is {word} .", "target": TOLD[word]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    for kind in ("bert", "distilbert"):
        save_as_hub(folder / kind, kind)
    write_rows(folder / "train.jsonl", 48)
    return folder


def list_flags(files, output, labels=LABELS, **changes):
    flags = {
        "model": files / "bert",
        "train": files / "train.jsonl",
        "max-steps": 12,
        "batch-size": 8,
        "learning-rate": 1e-2,
        "max-source-length": 16,
        "save-steps": 5,
        "logging-steps": 1,
        "output": output,
        **{key.replace("_", "-"): value for key, value in changes.items()},
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    return words + (["--labels", *labels] if labels else [])


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_it_learns_and_is_scored_like_any_model(files, tmp_path, capsys, kind):
    changes = {"model": files / kind, "strategy": kind, "task": "stanceosaurus", "max_steps": 60}
    train_small.main(list_flags(files, tmp_path, **changes))
    record = json.loads((tmp_path / "training.json").read_text())
    assert (record["strategy"], record["labels"], record["steps"]) == (kind, 48, 60)
    assert record["truncated_sources"] == 0 and record["parameters"] > 2000
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == LABELS  # the two that never occurred too

    flags = ["--task", "stanceosaurus", "--model", str(tmp_path / "model"), "--json"]
    evaluate.main([*flags, "--data", str(files / "train.jsonl")])
    result = json.loads(capsys.readouterr().out)
    assert result["score"] == 100 and result["metric"] == "micro_f1"
    assert result["metrics"]["invalid_rate"] == 0 and result["settings"]["prefix"] == ""
    assert result["training"]["strategy"] == kind
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").open()]
    assert all(row["prediction"] == row["generated"] == row["target"] for row in rows)


def test_classes_come_from_the_targets_where_no_flag_names_them(files, tmp_path):
    train_small.main(list_flags(files, tmp_path, labels=None, max_steps=1, num_labels=2))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == ["Discussing", "Refuting", "Supporting"]
    with pytest.raises(SystemExit, match=r"error: .*labels \['Discussing"):  # another order
        train_small.main(list_flags(files, tmp_path, max_steps=1, num_labels=2))


def test_an_interrupted_run_ends_with_the_same_weights(files, tmp_path, monkeypatch):
    """The new head is drawn by the seed, and a checkpoint holds it."""
    weights = {}
    for name in ("whole", "killed", "other"):
        flags = list_flags(files, tmp_path / name, dropout=0.1, seed=int(name == "other"))
        if name == "killed":
            with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="killed"):
                patch.setattr(train_small.Progress, "on_log", stop_at_7)
                train_small.main(flags)
        train_small.main(flags)
        weights[name] = load_file(tmp_path / name / "model" / "model.safetensors")
    whole, killed, other = weights.values()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)
    assert not torch.equal(whole["classifier.weight"], other["classifier.weight"])


def stop_at_7(self, args, state, control, **kwargs):
    if state.global_step == 7:
        raise RuntimeError("killed")


def test_long_sources_are_cut_counted_and_said(files, tmp_path, capsys):
    train_small.main(list_flags(files, tmp_path, max_source_length=6, max_steps=2))
    assert json.loads((tmp_path / "training.json").read_text())["truncated_sources"] == 48
    assert "48 sources cut at 6 tokens" in capsys.readouterr().err


def test_dropout_reaches_every_layer(files, tmp_path):
    train_small.main(list_flags(files, tmp_path, dropout=0.3, max_steps=1))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert {value for key, value in config.items() if "dropout" in key} == {0.3}


def test_bad_input_is_one_error_line(files, tmp_path):
    single, free = tmp_path / "single.jsonl", tmp_path / "free.jsonl"
    single.write_text('{"source": "a", "target": "YES"}\n' * 9)
    free.write_text("".join(json.dumps({"source": "a", "target": str(i)}) + "\n" for i in range(9)))
    save_as_hub(tmp_path / "hollow", "bert")
    weights = load_file(tmp_path / "hollow" / "model.safetensors")
    weights = {key: value for key, value in weights.items() if "attention.self" not in key}
    save_file(weights, tmp_path / "hollow" / "model.safetensors", {"format": "pt"})
    cases = [
        ({"labels": LABELS[1:]}, "target 'Supporting' is none of --labels Refuting"),
        ({"labels": None, "train": single}, "single.jsonl: 1 different targets are no classes"),
        ({"labels": None, "train": free}, "9 different targets are no classes"),
        ({"model": ROOT / "data/world/models/student"}, "--labels: .*student is no encoder"),
        ({"model": tmp_path / "hollow"}, "6 weights are missing, as bert.encoder.layer.0"),
        ({"max_source_length": 50}, "--max-source-length: .*bert reads 40 tokens"),
    ]
    for changes, message in cases:
        with pytest.raises(SystemExit) as stop:
            train_small.main(list_flags(files, tmp_path / "run" / str(len(message)), **changes))
        text = str(stop.value)
        assert text.startswith("error: ") and "\n" not in text and re.search(message, text), text
    assert not list(tmp_path.rglob("training.json"))


def test_a_mini_encoder_is_pre_trained_and_can_be_fine_tuned(files, tmp_path, capsys):
    """A few steps on the lab's text leave a folder that goes on to classify."""
    flags = ["--region", "lab", "--which", "encoder", "--lines", "3000", "--batch-size", "16"]
    pretrain.main([*flags, "--output", str(tmp_path), "--steps", "6", "--save-steps", "3"])
    folder = tmp_path / "encoder"
    facts = json.loads((folder / "pretraining.json").read_text())
    assert (
        facts["examples"] == 96 and f"{facts['parameters']:,}" in (folder / "README.md").read_text()
    )
    train_small.main(list_flags(files, tmp_path / "run", model=folder, max_steps=2))
    assert (tmp_path / "run" / "training.json").exists()
    capsys.readouterr()


def test_masking_hides_whole_words_and_asks_for_no_others():
    pieces = pretrain.MODELS / "student" / "spiece.model"
    tokenizer = pretrain.build_tokenizer(pieces, encoder=True)
    lines = [f"add {i} ml of chloroform buffer to the flask" for i in range(40)]
    text = pretrain.MaskedText("lab", tokenizer, lines, 400, 8, 0)
    masked = 0
    for i in range(400):
        row = text[i]
        assert row == text[i] and len(row["input_ids"]) == len(row["labels"])
        assert sum(label != -100 for label in row["labels"]) >= 1
        for given, label in zip(row["input_ids"], row["labels"], strict=True):
            assert label != -100 or given != tokenizer.mask_token_id
            masked += given == tokenizer.mask_token_id
        whole = [b if b != -100 else a for a, b in zip(*row.values(), strict=True)]
        assert tokenizer.decode(whole, skip_special_tokens=True) in lines
    asked = sum(label != -100 for i in range(400) for label in text[i]["labels"])
    assert 0.7 < masked / asked < 0.9


def test_flags_of_table_10():
    """Table 8's settings for encoders too, no task prefix, and every class by name."""
    run = parse_run("distilbert-n5824-s1")
    flags = make_flags(load_task("stanceosaurus"), "paper", run=run)
    words = shlex.split(show_flags({"train": __file__, "output": "run", **flags}))
    args, rest = train_small.parse_args(words)
    training = train_small.read_training(args, rest)
    assert (args.model, args.labels, args.num_labels) == ("distilbert-base-uncased", LABELS, 5824)
    assert (args.epochs, args.batch_size, training.learning_rate) == (50, 32, 3e-5)
    assert (args.prefix, args.max_source_length, training.seed) == ("", 128, 1)
    assert make_flags(load_task("fever"), "paper", "bert")["model"] == "bert-base-uncased"
    with pytest.raises(UserError, match="no classes, so nothing for bert to learn"):
        make_flags(load_task("wlp"), "paper", "bert")


def test_the_towns_encoder_has_the_vocabulary_of_the_towns_student():
    encoder, student = (
        train_small.load_parts(str(ROOT / "data" / "world" / "models" / name))[1]
        for name in ("town-encoder", "town-student")
    )
    assert encoder.get_vocab() == student.get_vocab()
    pieces = encoder.convert_ids_to_tokens(encoder("so they agreed").input_ids)
    assert pieces[0] == encoder.cls_token and pieces[-1] == encoder.sep_token
    assert pieces[1:-1] == student.convert_ids_to_tokens(student("so they agreed").input_ids)[:-1]
    for task in ("stanceosaurus", "fever", "multipit_id"):
        model = make_flags(load_task(task), "mini", "bert")["model"]
        assert model == "data/world/models/town-encoder"


def test_table_10_distils_the_towns_encoder(tmp_path, capsys):
    """The very recipes that make would run, for two steps on a few rows: a pass for the scores of
    the classes, the student, its score, its place in the table."""
    runs, splits = tmp_path / "mini" / "stanceosaurus", tmp_path / "rows" / "stanceosaurus"
    splits.mkdir(parents=True)
    for name in ("train", "dev", "test", "unlabeled"):
        write_rows(splits / f"{name}.jsonl", 12)
    (runs / "teacher-n100-s0").mkdir(parents=True)
    teacher = ROOT / "data" / "world" / "models" / "town-teacher"
    (runs / "teacher-n100-s0" / "model").symlink_to(teacher, target_is_directory=True)
    place = ["--runs", str(runs.parent), "--made", str(tmp_path)]
    costs.main(["rules", "--for", "table10", "--task", "stanceosaurus", *place])
    rules = Path(capsys.readouterr().out.strip()).read_text()
    values = {"$(RUNS)": str(runs.parent), "$(PREPARED)": str(splits.parent), "$(quiet)": ""}
    values |= {"$(TRAIN_FLAGS)": "--max-steps 2", "$(DIST_FLAGS)": "--num-unlabeled 12"}
    values |= {"$(launch)": "", "$(in_one)": "", "$(then)": "\n", "$(PY)": "", "@": ""}
    scripts = {"distill.py": distill.main, "evaluate.py": evaluate.main}
    name = "dist-bert-n100-u12600-s0"
    for target in ("teacher-n100-s0/12600.classes", f"{name}/metrics.json"):
        recipe = re.search(rf"^\S*/{re.escape(target)}: (.*\n)((?:\t.*\n)+)", rules, re.M)[2]
        recipe = recipe.replace("$(@D)", str((runs / target).parent))
        for variable, value in values.items():
            recipe = recipe.replace(variable, value)
        for line in recipe.splitlines():
            script, *words = shlex.split(line)
            if script in scripts:
                scripts[script](words)
    capsys.readouterr()
    metrics = json.loads((runs / name / "metrics.json").read_text())
    score, metrics["training"]["unlabeled"] = metrics["score"], 12600  # as its name says
    (runs / name / "metrics.json").write_text(json.dumps(metrics))
    assert json.loads((runs / name / "training.json").read_text())["steps"] == 2
    plots.main(["table10", "--task", "stanceosaurus", "--runs", str(runs.parent)])
    head, _, row, *_ = capsys.readouterr().out.splitlines()[2:]
    shown = dict(zip(*([cell.strip() for cell in x.split("|")] for x in (head, row)), strict=True))
    (said,) = (value for column, value in shown.items() if "BERT (Dist.)" in column)
    assert float(said.strip(" |↓")) == pytest.approx(score, abs=0.05)
