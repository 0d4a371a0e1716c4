"""evaluate.py with models: decoding, what a vocabulary cannot write, --predict, damaged folders."""

import io
import json
import shutil
import sys
from argparse import Namespace
from dataclasses import replace
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet
from test_evaluate import LABELS, SPIECE, needs_spiece, run, write
from tiny import build_char_tokenizer, train_by_heart

import evaluate
from data.evaluate import decode, predict
from data.evaluate.restore import LabelReader, Restorer, check_labels, split_units
from data.evaluate.scores import make_row
from data.files import UserError, read_jsonl
from data.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]

TRAINED = [
    ("Add 25 μl of buffer .", "Add [Action] 25 μl [Amount] buffer [Reagent]"),
    ("Spin ≥ 5 min × 3 .", "Spin [Action] ≥ 5 min [Time] × [Modifier] 3 [Numerical]"),
    ("Keep at pH 7 .", "Keep [Action] pH 7 [pH]"),
    ("Take care .", ""),
]


def make_tokenizer():
    """As T5's a vocabulary with an unknown token: no 'μ', '≥' or '×'."""
    texts = [a + b for a, b in TRAINED]
    return build_char_tokenizer([*texts, "wlp:"], "μ≥×", [f"[{label}]" for label in LABELS])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a tiny T5 that knows the rows of TRAINED by heart, and their file."""
    folder = tmp_path_factory.mktemp("run")
    train_by_heart(folder / "model", TRAINED, make_tokenizer(), prefix="wlp: ")
    rows = [{"source": a, "target": b} for a, b in TRAINED]
    (folder / "training.json").write_text('{"strategy": "small"}')
    return folder, write(folder / "test.jsonl", rows)


def test_model(trained, capsys):
    folder, data = trained
    argv = ["--task", "wlp", "--model", folder / "model", "--data", data, "--json"]
    assert run(*argv) == 0
    out, err = capsys.readouterr()
    result = json.loads((folder / "metrics.json").read_text())
    assert json.loads(out) == result and err == ""
    found = result["metrics"]
    # Both rules are satisfied in full; without the lost characters 3 of 9 entities are wrong.
    assert found["entity_f1"] == found["f1_released"] == 100
    assert found["entity_f1_unrestored"] < 90
    assert found["invalid_rate"] == 0
    assert result["restored_outputs"] == 2
    assert result["truncated_sources"] == result["truncated_outputs"] == 0
    assert result["split"] == "test" and result["training"] == {"strategy": "small"}
    assert result["settings"]["dtype"] == "float32" and result["settings"]["prefix"] == "wlp: "
    assert {"load", "generate", "score"} == result["seconds"].keys()
    assert "characters:restored|released_side:token-ids" in result["signature"]
    assert result["provenance"]["data_sha256"] and result["hardware"]["cpu_threads"]
    rows = read_jsonl(folder / "predictions.jsonl")
    assert [row["prediction"] for row in rows] == [target for _, target in TRAINED]
    assert "half" not in rows[0] and "by" not in result
    assert rows[0]["generated"].split()[2:4] == ["25", "l"]  # what the model could write
    assert rows[0]["target_decoded"].split() == rows[0]["generated"].split()


def test_predictions_of_a_model_score_the_same_again(trained, capsys):
    folder, data = trained
    rows = [{**row, "half": "new"} for row in read_jsonl(data)]
    data = write(folder / "halves.jsonl", rows)
    argv = ["--task", "wlp", "--model", folder / "model", "--data", data, "--json"]
    assert run(*argv, "--output", folder / "other", "--batch-size", 1) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["by"]["half"]["new"]["n"] == 4
    path = folder / "other" / "predictions.jsonl"
    assert run("--task", "wlp", "--predictions", path, "--data", data, "--json") == 0
    second = json.loads(capsys.readouterr().out)
    for key in ("metrics", "by", "intervals", "signature", "constant", "score"):
        assert first[key] == second[key]
    assert first["split"] == "halves" and first["training"] is None


def test_lengths_cut_and_are_counted(trained, capsys):
    folder, data = trained
    argv = ["--task", "wlp", "--model", folder / "model", "--data", data, "--json"]
    assert run(*argv, "--output", folder / "short", "--max-target-length", 5) == 0
    result = json.loads(capsys.readouterr().out)
    # The fourth row has no entity, so its output ends at once.
    assert (result["truncated_sources"], result["truncated_outputs"]) == (0, 3)
    assert (folder / "short" / "errors.md").read_text().count(", cut off at the limit") == 3
    rows = read_jsonl(folder / "short" / "predictions.jsonl")
    assert all(len(row["target_decoded"]) <= 12 for row in rows)
    assert run(*argv, "--output", folder / "short", "--max-source-length", 12) == 0
    assert json.loads(capsys.readouterr().out)["truncated_sources"] == 4


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_decoding_in_stages_is_greedy_decoding(kind):
    """Rows that end at once, late or never, as one call of generate() gives them."""
    import torch
    import transformers

    torch.manual_seed(3)
    tokenizer = make_tokenizer()
    size = {"vocab_size": len(tokenizer), "d_model": 32, "pad_token_id": 0, "eos_token_id": 1}
    if kind == "t5":
        config = transformers.T5Config(**size, d_kv=16, num_heads=2, d_ff=32, num_layers=1)
        config.decoder_start_token_id = 0
        model = transformers.T5ForConditionalGeneration(config)
    else:  # decoding starts with the end token; beams and a penalty that must not apply
        layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32}
        layers |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        config = transformers.BartConfig(**size, **layers, decoder_ffn_dim=32, init_std=0.5)
        config.decoder_start_token_id, config.forced_eos_token_id = 1, None
        model = transformers.BartForConditionalGeneration(config)
        model.generation_config.update(num_beams=3, no_repeat_ngram_size=2)
    model.eval()
    ids = tokenizer([text[:n] for n in (3, 9, 14) for text, _ in TRAINED]).input_ids
    loaded = decode.Loaded(model, tokenizer, False, 5)
    found, unended = decode.generate_ids(loaded, ids, 70, decode.show_progress("decode", len(ids)))
    wanted = []
    for row in ids:
        out = model.generate(
            torch.tensor([row]), max_new_tokens=70, num_beams=1, do_sample=False
        ).tolist()[0][1:]
        wanted.append(out[: out.index(1)] if 1 in out else out)
    assert found == wanted
    assert len(unended) == sum(len(row) == 70 for row in wanted) > 0


def test_classifier(tmp_path, capsys):
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer, data = make_tokenizer(), tmp_path / "test.jsonl"
    write(data, [{"source": text, "target": "SUPPORTS"} for text, _ in TRAINED])
    for folder, names in (("good", ["REFUTES", "SUPPORTS"]), ("bad", ["LABEL_0", "LABEL_1"])):
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            id2label=dict(enumerate(names)),
        )
        model = BertForSequenceClassification(config)
        model.classifier.bias.data += model.classifier.bias.new_tensor([-9.0, 9.0])
        model.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    flags = ["--data", data, "--json", "--model"]
    assert run("--task", "fever", *flags, tmp_path / "good") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["metrics"]["accuracy"] == 100 and result["settings"]["prefix"] == ""
    assert (tmp_path / "good" / "metrics.json").exists()
    assert run("--task", "fever", *flags, tmp_path / "bad") == 1
    assert "'LABEL_0', which is no label" in capsys.readouterr().err
    assert run("--task", "wlp", *flags, tmp_path / "good") == 1
    assert "a classifier cannot" in capsys.readouterr().err


def test_bad_models(tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", [{"source": "a", "target": "NO"}])
    (tmp_path / "hollow").mkdir()
    (tmp_path / "whole" / "model").mkdir(parents=True)
    for model, text in (
        (tmp_path / "absent", "no such model folder"),
        (tmp_path / "whole", f"a run folder, whose model is {tmp_path / 'whole' / 'model'}"),
        (tmp_path / "hollow", "no model can be loaded"),
        ("owner/t5-tiny", "--output: needed"),
    ):
        flags = [] if model == "owner/t5-tiny" else ["--output", tmp_path / "run"]
        assert run("--task", "multipit_id", "--model", model, "--data", data, *flags) == 1
        out, err = capsys.readouterr()
        assert out == "" and text in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# --- what a vocabulary cannot write ----------------------------------------------------------

INCOME = ["<=5", ">5", "<5", "5", "MAYBE NOT"]
JOBS = [(f"job {mark}", label) for mark, label in zip("abcde", INCOME, strict=True)]


@pytest.fixture(scope="module")
def income(tmp_path_factory):
    """(model folder, data file) of a tiny T5 without '<', which knows JOBS within 6 tokens."""
    folder = tmp_path_factory.mktemp("income")
    tokenizer = build_char_tokenizer([a + b for a, b in JOBS], "<")
    train_by_heart(folder / "model", JOBS, tokenizer, limit=6)
    return folder, write(folder / "d.jsonl", [{"source": a, "target": b} for a, b in JOBS])


def make_task(labels, metric="classes"):
    """A task of one's own, with sources of 16 and targets of 6 tokens."""
    lengths = {"max_source_length": 16, "max_target_length": 6}
    entry = {"metric": metric, "labels": tuple(labels), "prefix": "", "paper_default_label": None}
    return replace(load_task("fever"), name="income", **entry, **lengths)


def use(monkeypatch, task):
    """Let evaluate.py find `task` under every name."""
    monkeypatch.setattr(evaluate, "load_task", lambda name: task)


def test_labels_are_known_by_what_the_tokenizer_and_the_limit_make_of_them(
    income, monkeypatch, tmp_path, capsys
):
    """'<=5' is written '=5', '<5' as '5', which is another label, and MAYBE NOT is cut."""
    folder, data = income
    use(monkeypatch, make_task(INCOME))
    argv = ["--task", "income", "--model", folder / "model", "--data", data, "--json"]
    assert run(*argv, "--output", tmp_path) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["metrics"]["accuracy"] == found["metrics"]["accuracy_released"] == 100
    assert found["metrics"]["invalid_rate"] == 0
    assert found["truncated_targets"] == found["truncated_outputs"] == 1
    assert found["unwritable_targets"] == 3
    rows = read_jsonl(tmp_path / "predictions.jsonl")
    assert [row["prediction"] for row in rows] == INCOME
    assert [row["generated"] for row in rows] == ["=5", ">5", "5", "5", "MAYB"]
    # The predictions say the same without the model.
    assert run("--task", "income", "--predictions", tmp_path / "predictions.jsonl", "--json") == 0
    assert json.loads(capsys.readouterr().out)["metrics"] == found["metrics"]


def test_labels_that_cannot_be_told_apart_are_refused(income, monkeypatch, capsys):
    folder, data = income
    tokenizer = build_char_tokenizer([a + b for a, b in JOBS], "<~")
    told = check_labels(make_task(INCOME), tokenizer, 6)
    assert told == ["label 'MAYBE NOT' has 11 tokens; cut to 6 it is 'MAYB'"]
    assert check_labels(make_task(INCOME), tokenizer, 11) == []
    same = make_task(["<5", "~5"])
    assert check_labels(same, tokenizer, 8) == [
        "label '~5': its token ids are those of '<5'; rename it"
    ]
    cut = make_task(["MAYBE NOT", "MAYBE"])
    assert len(check_labels(cut, tokenizer, 6)) == 3
    assert check_labels(make_task([], "answers"), tokenizer, 6) == []
    entities = make_task(["<5", "~5"], "entities")
    assert "'[" not in check_labels(entities, tokenizer, 16)[0]
    with pytest.raises(UserError, match="no token ids of its own"):
        LabelReader(same, tokenizer, 8)
    assert set(Restorer(tokenizer, entities.labels).brackets) == {"[<5]", "[~5]"}
    forms = Restorer(tokenizer, ["<5", "MAYBE"]).brackets
    assert forms["<unk>5<unk>"] == "<5"  # this tokenizer lacks brackets too
    use(monkeypatch, make_task([*INCOME, "MAYBE SO"]))
    argv = ["--task", "income", "--model", folder / "model", "--data", data]
    assert run(*argv, "--output", folder / "no") == 1
    assert "'MAYBE SO' has no token ids of its own" in capsys.readouterr().err
    assert not (folder / "no").exists()


@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("u\u0308b", ["u\u0308", "b"]),  # a letter and its accent
        ("\u1100\u1161\u11a8", ["\u1100\u1161\u11a8"]),  # Hangul
        ("\u09c7\u09be\u0995", ["\u09c7\u09be", "\u0995"]),  # Bengali vowel signs
        ("\uff76\uff9e", ["\uff76\uff9e"]),  # half-width kana
        ("℃½", ["℃", "½"]),
    ],
)
def test_units_are_what_nfkc_joins(text, units):
    assert split_units(text) == units


@needs_spiece
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("text", ["Müller broth", "naïve cells", "café au lait", "Å 25 μl"])
def test_accents_come_back_in_any_form(text, form):
    import unicodedata

    from transformers import T5TokenizerFast

    tokenizer = T5TokenizerFast.from_pretrained(SPIECE.parent)
    text = unicodedata.normalize(form, text)
    target = f"{text} [Reagent] {text} [Device]"
    marked = tokenizer.decode(tokenizer(target).input_ids[:-1])
    source = f"Add {text} to the {text} ."
    assert Restorer(tokenizer, LABELS).restore_output(marked, source) == target


def test_targets_in_another_form_are_the_same_text():
    rows = [{"source": "u\u0308", "target": "u\u0308 [Time]", "prediction": "\u00fc [Time]"}]
    row = make_row(rows[0])
    assert row.target == row.prediction and row.released_target == rows[0]["target"]


# --- settings of training --------------------------------------------------------------------


def test_prefix_and_lengths_are_those_of_training(trained, tmp_path, capsys):
    folder, data = trained
    model = shutil.copytree(folder / "model", tmp_path / "model")
    told = {"task": "wlp", "prefix": "wlp: ", "max_source_length": 40, "max_target_length": 5}
    argv = ["--task", "wlp", "--model", model, "--data", data, "--json", "--output", tmp_path]

    def score(*more, **changes):
        (model / "preprocessing.json").write_text(json.dumps({**told, "labels": None, **changes}))
        code = run(*argv, *more)
        out, err = capsys.readouterr()
        return (json.loads(out)["settings"] if out else code), err

    found, err = score()
    assert (found["max_source_length"], found["max_target_length"], err) == (40, 5, "")
    found, err = score("--max-target-length", 64, "--prefix", "")
    assert found["max_target_length"] == 64 and found["prefix"] == ""
    assert "trained with 5" in err and "trained with 'wlp: '" in err
    assert score(labels=["A", "B"])[1].startswith("error: ") and score(labels=["A"])[0] == 1
    assert "'labels'" in score(labels="A")[1]
    assert score(labels=LABELS)[1] == ""
    assert "of task 'nq'" in score(task="nq")[1]
    assert "'max_source_length': must be a whole number" in score(max_source_length="x")[1]


# --- damaged or partial models ---------------------------------------------------------------


def change_weights(folder, change):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop_weights(folder):
    change_weights(folder, lambda weights: [weights.pop(key) for key in sorted(weights)[:5]])


def spoil_weights(folder):
    change_weights(folder, lambda weights: weights["shared.weight"].fill_(float("nan")))


def edit_json(name, **changes):
    def edit(folder):
        record = json.loads((folder / name).read_text()) if changes else {}
        (folder / name).write_text(json.dumps({**record, **changes}))

    return edit


def drop_tokenizer(folder):
    for path in folder.glob("*token*"):
        path.unlink()


def grow_tokenizer(folder):
    build_char_tokenizer([chr(i) for i in range(60, 900)]).save_pretrained(folder)


def drop_head(folder):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = dict(enumerate(LABELS[:2]))
    config = BertConfig(vocab_size=400, **sizes, intermediate_size=16, id2label=names)
    BertForSequenceClassification(config).save_pretrained(folder)
    change_weights(folder, lambda weights: weights.pop("classifier.weight"))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (drop_weights, "5 weights are missing or never trained"),
        (spoil_weights, "weights hold NaN"),
        (edit_json("config.json", num_layers=3), "weights are missing"),
        (edit_json("config.json", num_layers=0), "weights are not in its config.json"),
        (edit_json("config.json", pad_token_id=10**9), "pad_token_id 1000000000 of its config"),
        (edit_json("generation_config.json"), "decoder_start_token_id None of its config"),
        (drop_tokenizer, "tokenizer"),
        (grow_tokenizer, "its tokenizer has"),
        (drop_head, "1 weights are missing or never trained (classifier.weight)"),
    ],
)
def test_damaged_models_are_refused(trained, tmp_path, capsys, damage, text):
    folder, data = trained
    model = shutil.copytree(folder / "model", tmp_path / "model")
    damage(model)
    flags = ["--task", "wlp", "--model", model, "--output", tmp_path / "out"]
    for more in (["--data", data], ["--predict", data]):
        assert run(*flags, *more) == 1
        out, err = capsys.readouterr()
        *before, fault = err.splitlines()
        assert out == "" and fault.startswith("error: ") and text in fault
        told = f"{data}: 4 rows; loading {model}"  # before the libraries load
        assert before == [told] * ("--predict" in more)
    assert not (tmp_path / "out").exists()


# --- memory and devices ----------------------------------------------------------------------


def test_half_the_batch_where_memory_runs_out(trained, capsys):
    import torch

    folder, _ = trained
    loaded = decode.load_model(str(folder / "model"), None, 4)
    ids = loaded.tokenizer([f"wlp: {text}" for text, _ in TRAINED]).input_ids
    step, calls = loaded.model.generate, []

    def grow(**inputs):
        calls.append(len(inputs["input_ids"]))
        if calls[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return step(**inputs)

    loaded.model.generate = grow
    found, _ = decode.generate_ids(loaded, ids, 64, decode.show_progress("decode", 4))
    texts = loaded.tokenizer.batch_decode(found, skip_special_tokens=True)
    kept = [target.translate({ord(mark): None for mark in "μ≥×"}) for _, target in TRAINED]
    assert [text.split() for text in texts] == [text.split() for text in kept]
    assert calls[:3] == [4, 2, 1] and loaded.batch_size == 1
    assert "memory ran out at 4 rows at once; 2 now" in capsys.readouterr().err

    def fail(**inputs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    loaded.model.generate = fail
    with pytest.raises(UserError, match="not even one row"):
        decode.generate_ids(loaded, ids, 64, decode.show_progress("decode", 4))
    with pytest.raises(RuntimeError, match="shape"):
        decode.halve_batch(8, RuntimeError("shape"))


def test_bf16_only_where_a_gpu_has_it(monkeypatch):
    import torch

    def emulate(including_emulation=True):
        return including_emulation  # as a T4 answers

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulate)
    for device, asked, dtype in (
        ("cuda", None, torch.float32),
        ("cuda", True, torch.bfloat16),
        ("cpu", None, torch.float32),
    ):
        assert decode.choose_dtype(device, asked) is dtype
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert decode.choose_dtype("cuda", None) is torch.bfloat16
    assert not torch.backends.cuda.cudnn_sdp_enabled()


# --- files -----------------------------------------------------------------------------------


def test_inputs_are_never_overwritten_and_faults_are_told_before_decoding(
    trained, tmp_path, capsys
):
    folder, data = trained
    flags = ["--task", "wlp", "--model", folder / "model", "--output", tmp_path]
    kept = tmp_path / "predictions.jsonl"
    shutil.copy(data, kept)
    rows = kept.read_text()
    assert run(*flags, "--data", kept) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert run("--task", "wlp", "--predictions", kept, "--output", tmp_path) == 1
    assert run(*flags[:4], "--predict", kept, "--output", kept) == 1
    assert kept.read_text() == rows
    kept.unlink()
    for text in ("[1]", "{", "null", '{"seconds": 5}'):
        (tmp_path / "training.json").write_text(text)
        capsys.readouterr()
        assert run(*flags, "--data", data) == 1
        assert f"{tmp_path}/training.json" in capsys.readouterr().err and not kept.exists()


def test_targets_are_checked_before_the_model_is_loaded(tmp_path, capsys):
    data = write(tmp_path / "d.jsonl", [{"source": "a", "target": "PERHAPS"}])
    (tmp_path / "none").mkdir()
    flags = ["--task", "fever", "--model", tmp_path / "none", "--data", data]
    assert run(*flags, "--output", tmp_path) == 1
    assert f"{data} row 1: target 'PERHAPS' is no label" in capsys.readouterr().err


def test_the_card_of_a_model_says_what_it_is_and_its_snippet_runs(trained, tmp_path, capsys):
    folder, data = trained
    shutil.copytree(folder / "model", tmp_path / "model")
    told = {"strategy": "dist", "labels": 100, "unlabeled": 3000, "seed": 0, "steps": 1200}
    behind = {"model": "runs/teacher/model", "training": {"seconds": {"train": 7.0}}}
    told |= {"seconds": {"train": 5.0}, "teacher": behind}  # as distill.py writes it
    (tmp_path / "training.json").write_text(json.dumps(told))
    (tmp_path / "config.json").write_text(
        json.dumps({"student": "google/t5-v1_1-small", "teacher": None})  # learned of saved labels
    )
    argv = ["--task", "wlp", "--model", tmp_path / "model", "--data", data]
    assert run(*argv) == 0
    card = (tmp_path / "model" / "README.md").read_text()
    for text in (
        "base_model: google/t5-v1_1-small",
        "on 3,000 unlabeled rows from the teacher `runs/teacher/model`, which was trained on 100",
        *("| entity_f1 | 100.0 | 100.0 to 100.0 |", "took 5 s", "its teacher's 7 s", "1,200 steps"),
    ):
        assert text in card
    snippet = card.split("```python\n")[1].split("```")[0]
    snippet = snippet.replace("text to be labeled", TRAINED[2][0])
    capsys.readouterr()
    exec(snippet, {})
    assert capsys.readouterr().out.strip() == str([TRAINED[2][1]])
    (tmp_path / "model" / "README.md").write_text("mine")
    assert run(*argv) == 0 and (tmp_path / "model" / "README.md").read_text() == "mine"


# --- rows without targets --------------------------------------------------------------------


def read_lines(text):
    return [json.loads(line) for line in text.splitlines()]


def test_predict_entities(trained, tmp_path, capsys):
    folder, _ = trained
    rows = [{"id": i, "source": text} for i, (text, _) in enumerate(TRAINED)]
    data, out = write(tmp_path / "new.jsonl", rows), tmp_path / "out.jsonl"
    flags = ["--task", "wlp", "--model", folder / "model", "--predict"]
    assert run(*flags, data, "--output", out, "--usd-per-hour", 2) == 0
    err = capsys.readouterr().err
    assert "4 rows in " in err and "rows a second" in err and "a million, $" in err
    found = read_lines(out.read_text())
    assert [(row["id"], row["text"]) for row in found] == [
        (i, target) for i, (_, target) in enumerate(TRAINED)
    ]
    assert all(0.5 < row["confidence"] <= 1 and "scores" not in row for row in found)
    assert found[2]["spans"] == [[0, 4, "Action"], [8, 12, "pH"]] and found[3]["spans"] == []
    assert run(*flags, data) == 0
    assert read_lines(capsys.readouterr().out) == found


def test_predict_goes_on_where_it_was_killed(trained, tmp_path, capsys):
    folder, _ = trained
    data = write(tmp_path / "new.jsonl", [{"source": text} for text, _ in TRAINED])
    out = tmp_path / "out.jsonl"
    flags = ["--task", "wlp", "--model", folder / "model", "--predict", data, "--output", out]
    assert run(*flags) == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: whole.index(b"\n", 200) + 20])
    assert run(*flags) == 0
    assert out.read_bytes() == whole and "were there" in capsys.readouterr().err
    assert run(*flags, "--max-target-length", 9) == 1
    assert "not begun with these settings" in capsys.readouterr().err
    write(tmp_path / "new.jsonl", [{"source": "other"}])
    assert run(*flags) == 1
    assert "not of this row" in capsys.readouterr().err and out.read_bytes() == whole
    cells = "".join(f'{i},"{text}"\n' for i, (text, _) in enumerate(TRAINED))
    table, out = tmp_path / "new.csv", tmp_path / "cells.jsonl"
    table.write_text("id,text\n" + cells)
    assert run(*flags[:4], "--predict", table, "--output", out) == 0
    assert "source from 'text' (guessed" in capsys.readouterr().err
    (first, *_), row = read_lines(whole.decode()), read_lines(out.read_text())[0]
    assert row == {"id": "0", **first}
    assert run(*flags[:4], "--predict", table, "--source-column", "body") == 1
    assert "no column 'body'; it has 'id', 'text'" in capsys.readouterr().err
    write(tmp_path / "new.jsonl", [{"source": "a", "text": "mine"}])
    assert run(*flags) == 1
    assert "has a key 'text'" in capsys.readouterr().err


def test_predict_writes_every_four_batches(trained, tmp_path, monkeypatch):
    """What is written when it is killed is all but the last few batches."""
    folder, _ = trained
    data = write(tmp_path / "new.jsonl", [{"source": text} for text, _ in TRAINED * 2])
    label, parts = predict.predict_rows, []

    def stop_at_the_second(reader, rows):
        parts.append(len(rows))
        return label(reader, rows) if len(parts) == 1 else sys.exit(9)

    monkeypatch.setattr(predict, "predict_rows", stop_at_the_second)
    flags = ["--task", "wlp", "--model", folder / "model", "--predict", data, "--batch-size", 1]
    assert run(*flags, "--output", tmp_path / "out.jsonl") == 9
    assert parts == [4, 4] and len(read_lines((tmp_path / "out.jsonl").read_text())) == 4


def read_rows(path, column=None):
    asked = {"predict": Path(path), "output": None, "source_column": column, "model": "m"}
    return predict.read_rows(Namespace(**asked), load_task("wlp"))


def test_rows_of_every_kind_of_file_are_written_as_json_has_them(tmp_path):
    columns = {
        "text": ["a"],
        "day": [date(2026, 1, 2)],
        "x": [float("nan")],
        "usd": [Decimal("1.1")],
    }
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({**columns, "more": [{"y": [1.5, float("inf")]}]}), path)
    row = {"source": "a", "day": "2026-01-02", "x": None, "usd": "1.1", "more": {"y": [1.5, None]}}
    assert read_rows(path) == [row]


def test_rows_without_a_text_are_labeled_with_a_word(tmp_path, capsys):
    (tmp_path / "a.csv").write_text('text\na\n" "\n')
    assert [row["source"] for row in read_rows(tmp_path / "a.csv")] == ["a", " "]
    assert "a.csv: 2 rows, 1 of them empty, whose labels say nothing;" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exported", "row"),
    [
        (
            {"text": "a b", "spans": [{"start": 0, "end": 1, "label": "Gene"}], "answer": "accept"},
            {},
        ),
        ({"text": "a b", "spans": [[0, 1, "Gene"]], "meta": {"page": 1}}, {"meta": {"page": 1}}),
        ({"text": "a b", "label": [[0, 1, "Gene"]]}, {"label": [[0, 1, "Gene"]]}),
        ({"source": "a b", "spans": [[0, 1, "Gene"]], "id": 7}, {"id": 7}),
        ({"id": 7, "data": {"text": "a b"}, "annotations": [{"result": []}] * 2}, {"id": 7}),
        ({"id": 7, "data": {"text": "a b", "n": 1}, "annotations": []}, {"id": 7, "n": 1}),
    ],
    ids=["Prodigy", "spans", "doccano", "source", "Label Studio, twice", "Label Studio, without"],
)
def test_texts_of_exports_are_labeled_anew(tmp_path, capsys, exported, row):
    path = write(tmp_path / "a.jsonl", [exported])
    accepted = {"answer": "accept"} if "answer" in exported else {}
    assert read_rows(path) == [{"source": "a b", **row, **accepted}]
    said = f"note: spans in {path} are left out, those written are the model's\n"
    assert (said in capsys.readouterr().err) == ("spans" in exported)


@pytest.mark.parametrize(
    ("name", "content", "column", "said"),
    [
        (
            "a.parquet",
            {"source": ["a"], "x": [b"\0"]},
            None,
            "row 1: a value that JSON has not (bytes)",
        ),
        (
            "a.parquet",
            {"text": [date(2026, 1, 2)]},
            None,
            "row 1: 'text': must be a text, not \"2026",
        ),
        ("a.parquet", {"text": ["a"], "source": ["b"]}, "text", "row 1: has a key 'source'"),
        ("a.csv", "text,source\na,b\n", "text", "line 2: has a key 'source', as the output"),
        ("a.csv", 'text\n"a "b" c"\n', None, "line 2: not CSV"),
        ("a.txt", "Add water .\n", None, "line 1: not JSON (Expecting value); a file's name tells"),
    ],
)
def test_rows_that_cannot_be_labeled_are_named(tmp_path, name, content, column, said):
    path = tmp_path / name
    if isinstance(content, dict):
        parquet.write_table(pyarrow.table(content), path)
    else:
        path.write_text(content)
    with pytest.raises(UserError) as error:
        read_rows(path, column)
    assert str(error.value).startswith(f"{path} {said}")


def open_rows(path, rows):
    with predict.open_output(path, rows, {"task": "wlp"}) as (_, done):
        return done


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"source": "a", "id": 1, "text": "x", "confidence": 1}, None),
        ({"source": "a", "id": 2, "text": "x", "confidence": 1}, "line 1: not of this row"),
        ({"source": "b", "id": 1, "text": "x", "confidence": 1}, "line 1: not of this row"),
        (
            {"source": "a", "id": 1, "more": 1, "text": "x", "confidence": 1},
            "line 1: not of this row",
        ),
        ({"source": "a", "id": 1}, "line 1: not of this row"),
    ],
)
def test_a_file_of_other_rows_is_not_continued(tmp_path, line, said):
    """Other columns than the source tell, too: two rows of one text, or a file that was edited."""
    path, rows = tmp_path / "out", [{"source": "a", "id": 1}, {"source": "c", "id": 3}]
    assert open_rows(path, rows) == 0
    path.write_text(json.dumps(line) + '\n{"source": "c", "i')
    if said is None:
        assert open_rows(path, rows) == 1
        return
    with pytest.raises(UserError, match=said):
        open_rows(path, rows)
    assert path.read_text().endswith('"i')


def test_only_a_file_that_was_begun_here_is_continued(tmp_path):
    (tmp_path / "mine.txt").write_text("one line of mine without an end")
    for path, said in ((tmp_path / "mine.txt", "not begun with these"), (tmp_path, "not a file")):
        with pytest.raises(UserError, match=said):
            open_rows(path, [{"source": "a"}])
    assert (tmp_path / "mine.txt").read_text() == "one line of mine without an end"


def test_labels_on_stdout_are_the_bytes_of_a_file(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, "latin-1", errors="replace"))
    with predict.open_output(None, [], {}) as (file, _):
        file.write("25 μl")
        file.flush()
    assert raw.getvalue() == "25 μl".encode()


def test_predict_gives_each_class_a_score(income, monkeypatch, capsys):
    """Forced decoding of each label, '<5' and '5' apart, though both are written '5'."""
    folder, data = income
    use(monkeypatch, make_task(INCOME))
    assert run("--task", "income", "--model", folder / "model", "--predict", data) == 0
    rows = read_lines(capsys.readouterr().out)
    assert [row["text"] for row in rows] == INCOME
    for row in rows:
        assert list(row["scores"]) == INCOME
        assert sum(row["scores"].values()) == pytest.approx(1, abs=1e-4)
        assert row["confidence"] == row["scores"][row["text"]] == max(row["scores"].values()) > 0.9


def test_a_classifiers_scores_are_its_softmax(tmp_path, capsys):
    from transformers import BertConfig, BertForSequenceClassification

    tokenizer = make_tokenizer()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    names = {0: "REFUTES", 1: "SUPPORTS"}
    config = BertConfig(vocab_size=len(tokenizer), **sizes, intermediate_size=16, id2label=names)
    model = BertForSequenceClassification(config)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data += model.classifier.bias.new_tensor([0.0, 1.0])
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    data = write(tmp_path / "new.jsonl", [{"source": "Add"}])
    assert run("--task", "fever", "--model", tmp_path / "model", "--predict", data) == 0
    (row,) = read_lines(capsys.readouterr().out)
    assert row["text"] == "SUPPORTS" and row["confidence"] == pytest.approx(0.7311, abs=1e-4)
    assert row["scores"] == pytest.approx({"REFUTES": 0.2689, "SUPPORTS": 0.7311}, abs=1e-4)
