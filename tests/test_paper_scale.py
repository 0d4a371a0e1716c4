"""The genuine T5 vocabulary and the authors' WLP files through every stage, a few steps on a CPU.

The vocabulary (spiece.model) and the files lie beside the repository, not in it. Models have random
weights and the form in which the hub serves them: spiece.model without tokenizer.json, weights as
safetensors or .bin, whole or in shards, a head of its own. SLOW=1 takes t5-v1_1-small's true size.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, T5ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tiny import slow  # noqa: E402

import distill  # noqa: E402
import evaluate  # noqa: E402
import train_small  # noqa: E402
import train_teacher  # noqa: E402
from data import prepare  # noqa: E402
from data.costs import memory  # noqa: E402

pytestmark = pytest.mark.skipif(
    not (SHARED / "t5_vocab" / "spiece.model").exists() or not (SHARED / "official").is_dir(),
    reason="T5's vocabulary and the authors' files are not beside the repository",
)
TINY = {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_heads": 2, "num_layers": 1}
SMALL = {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_heads": 6, "num_layers": 8}
LARGER = {**SMALL, "d_model": 640}
# config.json as google/t5-v1_1-small's on the hub, but for the sizes
HUB = {
    "architectures": ["T5ForConditionalGeneration"],
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "feed_forward_proj": "gated-gelu",
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "model_type": "t5",
    "num_decoder_layers": 8,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "tie_word_embeddings": False,
    "use_cache": True,
    "vocab_size": 32128,
}


def save_as_hub(folder, sizes, form="safetensors", seed=0):
    """A folder as the hub serves T5 v1.1: config.json, spiece.model, small JSONs, weights."""
    folder.mkdir()
    config = {**HUB, **sizes, "num_decoder_layers": sizes["num_layers"]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "spiece.model").symlink_to(SHARED / "t5_vocab" / "spiece.model")
    extra = [f"<extra_id_{i}>" for i in range(100)]
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    special["additional_special_tokens"] = extra
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(json.dumps({**special, "extra_ids": 100}))
    torch.manual_seed(seed)
    model = T5ForConditionalGeneration(AutoConfig.from_pretrained(folder))
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    for key in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"):
        weights.pop(key, None)
    weights["lm_head.weight"] = (
        torch.randn_like(weights["shared.weight"]) * sizes["d_model"] ** -0.5
    )
    if form == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
    elif form == "shards":
        names = sorted(weights)
        parts = [names[::2], names[1::2]]
        files = [f"model-0000{i + 1}-of-00002.safetensors" for i in range(2)]
        for part, file in zip(parts, files, strict=True):
            save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        where = {n: f for part, f in zip(parts, files, strict=True) for n in part}
        index = {"metadata": {"total_size": 0}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    else:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The authors' WLP, prepared at mini scale with a test set of 8 rows."""
    folder = tmp_path_factory.mktemp("data")
    flags = ["--task", "wlp", "--data", str(SHARED / "official"), "--test-rows", "8"]
    with contextlib.redirect_stdout(None):
        prepare.main([*flags, "--output", str(folder)])
    return folder


def run_stages(tmp_path, data, student, teacher, rows):
    """Train both, distill, evaluate; returns the run folders."""
    common = ["--prefix", "wlp: ", "--max-steps", "2", "--batch-size", str(rows), "--logging-steps"]
    common = [*common, "1", "--max-source-length", "48", "--max-target-length", "24"]
    labeled = ["--train", str(data / "train.jsonl"), "--num-labels", str(2 * rows)]
    runs = {name: tmp_path / name for name in ("small", "teacher", "dist")}
    train_small.main(["--model", str(student), *labeled, *common, "--output", str(runs["small"])])
    train_teacher.main(
        ["--model", str(teacher), *labeled, *common, "--output", str(runs["teacher"])]
    )
    unlabeled = ["--unlabeled", str(data / "unlabeled.jsonl"), "--num-unlabeled", str(2 * rows)]
    models = ["--teacher", str(runs["teacher"] / "model"), "--student", str(student)]
    distill.main([*models, *unlabeled, *common, "--output", str(runs["dist"])])
    lengths = ["--max-source-length", "48", "--max-target-length", "24", "--bootstrap", "0"]
    for folder in (runs["small"], runs["dist"]):
        model = ["--model", str(folder / "model"), "--data", str(data / "test.jsonl")]
        evaluate.main(["--task", "wlp", *model, "--output", str(folder), *lengths])
    return runs


def check_stages(runs, data, student):
    """What each stage left behind."""
    for name, folder in runs.items():
        record = json.loads((folder / "training.json").read_text())
        assert record["steps"] == 2 and 0 < record["train_loss"] < 100, name
        weights = load_file(folder / "model" / "model.safetensors")
        assert "lm_head.weight" in weights  # the head is still its own
        assert not torch.equal(weights["lm_head.weight"], weights["shared.weight"])
    for name in ("small", "dist"):
        metrics = json.loads((runs[name] / "metrics.json").read_text())
        assert metrics["n"] == 8 and 0 <= metrics["metrics"]["entity_f1"] <= 100
        predictions = (runs[name] / "predictions.jsonl").read_text().splitlines()
        tests = (data / "test.jsonl").read_text().splitlines()
        assert [json.loads(x)["source"] for x in predictions] == [
            json.loads(x)["source"] for x in tests
        ]


def test_every_stage_with_the_genuine_vocabulary(tmp_path, data, capsys):
    student = save_as_hub(tmp_path / "student-hub", TINY)
    teacher = save_as_hub(tmp_path / "teacher-hub", {**TINY, "d_model": 48}, "shards", seed=1)
    check_stages(run_stages(tmp_path, data, student, teacher, 4), data, student)
    capsys.readouterr()


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
def test_hub_forms_load_with_their_own_head_and_the_genuine_pieces(tmp_path, form):
    folder = save_as_hub(tmp_path / form, TINY, form)
    assert not (folder / "tokenizer.json").exists()
    _, tokenizer = train_teacher.load_parts(str(folder))
    assert len(tokenizer) == 32100
    ids = tokenizer("wlp: Add 5 ml of water.").input_ids
    assert ids[-1] == 1 and tokenizer.decode(ids[:-1]) == "wlp: Add 5 ml of water."
    assert 2 in tokenizer("25 μl").input_ids  # the micro sign is not among T5's pieces
    for scripts in (train_small, train_teacher, distill):
        config, _ = scripts.load_parts(str(folder))
        model = scripts.load_model(str(folder), config)
        assert model.lm_head.weight is not model.shared.weight
        assert model.dtype == torch.float32 and not model.config.scale_decoder_outputs
    half = train_teacher.load_model(str(folder), config, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    weights = memory.read_shape(str(folder)).count_weights()[-1]
    assert weights == train_teacher.count_weights(config) == model.num_parameters()


def test_a_half_copied_model_is_one_error(tmp_path):
    folder = save_as_hub(tmp_path / "half", TINY)
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:999])
    for scripts in (train_small, train_teacher):
        config, _ = scripts.load_parts(str(folder))
        with pytest.raises(SystemExit, match=re.escape(f"error: {folder}: no model can be load")):
            scripts.load_model(str(folder), config)


@slow
def test_every_stage_at_t5_smalls_true_size(tmp_path, data, capsys):
    student = save_as_hub(tmp_path / "t5-v1_1-small", SMALL, "bin")
    teacher = save_as_hub(tmp_path / "larger", LARGER, "shards", seed=1)
    assert train_teacher.count_weights(train_small.load_parts(str(student))[0]) == 76_961_152
    check_stages(run_stages(tmp_path, data, student, teacher, 4), data, student)
    capsys.readouterr()


def test_make_lists_the_middle_scale_on_real_data(tmp_path):
    """From an entry of data/scales.json alone: Small on labels, XL as the teacher, its passes."""
    words = ["TASK=wlp", "SCALE=middle", f"DATA={SHARED / 'official'}", f"RUNS={tmp_path / 'runs'}"]
    words += [f"PREPARED={tmp_path / 'prepared'}", "PYTHON=" + sys.executable]
    done = subprocess.run(
        ["make", "-n", "table2", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\\\n", " ")
    for script, model in (
        ("train_small.py", "--model google/t5-v1_1-small"),
        ("train_teacher.py", "--model google/t5-v1_1-xl"),
        ("distill.py", "--student google/t5-v1_1-small"),
    ):
        lines = [line for line in text.splitlines() if f" {script} --task wlp" in line]
        assert lines and all(model in line for line in lines), script
    assert "--memory bf16" in text and "--labels-only" in text


@slow
def test_the_middle_scale_at_its_true_sizes(tmp_path, data, capsys):
    """T5 v1.1 Small and Base, as middle_base has them, by the scale's own flags but the steps."""
    base = {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_heads": 12, "num_layers": 12}
    student = save_as_hub(tmp_path / "t5-v1_1-small", SMALL, "bin")
    teacher = save_as_hub(tmp_path / "t5-v1_1-base", base, "bin", seed=1)
    assert memory.read_shape(str(teacher)) == memory.SIZES["base"]
    check_stages(run_stages(tmp_path, data, student, teacher, 4), data, student)
    capsys.readouterr()
