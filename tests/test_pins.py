"""Small runs of each kind give the bytes that they gave before: weights, soft labels, answers.

A change here is a change of results: give its reason in the commit, then write the pins anew with
`python tests/test_pins.py`. They hold for one kind of processor and version of torch, as others
add in another order; elsewhere the tests skip, saying so. The runs learn next to nothing, that is
what the other tests are for.
"""

import hashlib
import json
import os
import platform
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import WORDS, build_word_tokenizer

ROOT = Path(__file__).resolve().parents[1]
PINS = Path(__file__).with_name("pins.json")
STEPS = (
    "--task wlp --prefix 'wlp: ' --max-steps 12 --batch-size 8 --learning-rate 3e-3 "
    "--warmup-steps 2 --dropout 0.1"
)
LENGTHS = "--max-source-length 16 --max-target-length 12"
LABELS = ["Amount", "Reagent"]


def name_machine():
    """What the bytes of a float sum depend on."""
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(
            (line.split(": ")[1] for line in lines if line.startswith("model name")), model
        )
    return f"{model}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def make_inputs(folder):
    """A T5 of two sizes and a BERT with random weights, and the files of a task of entities."""
    from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

    words = [*WORDS, *"[ ] wlp :".split(), *LABELS]
    tokenizer = build_word_tokenizer(words)
    for name, size in (("student", 16), ("teacher", 32)):
        torch.manual_seed(0)
        config = T5Config(
            vocab_size=len(tokenizer),
            d_model=size,
            d_kv=8,
            num_heads=2,
            d_ff=2 * size,
            num_layers=2,
            decoder_start_token_id=0,
        )
        T5ForConditionalGeneration(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertConfig(vocab_size=len(tokenizer), intermediate_size=32, **sizes)
    BertForMaskedLM(bert).save_pretrained(folder / "encoder")
    tokenizer.save_pretrained(folder / "encoder")
    rng, rows = random.Random(0), []
    for _ in range(96):
        source = rng.choices(WORDS, k=rng.randint(3, 9))
        label = LABELS[int(source[0][1:]) % 2]
        rows.append({"source": " ".join(source), "target": f"{source[0]} [{label}]"})
    write_rows(folder / "train.jsonl", rows[:40])
    write_rows(folder / "test.jsonl", rows[40:56])
    write_rows(folder / "unlabeled.jsonl", [{"source": row["source"]} for row in rows[56:]])
    classes = [{**row, "target": row["target"].split("[")[1][:-1]} for row in rows[:40]]
    write_rows(folder / "classes.jsonl", classes)


def run(command):
    """A script of the bundle, as make calls it at mini scale, on one thread."""
    words = [sys.executable, "-m", "data.costs.in_one", *shlex.split(command)]
    settings = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment = {**os.environ, **settings, "MAKE_PID": str(os.getpid())}
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr


def hash_bytes(*parts):
    digest = hashlib.sha256()
    for part in parts:
        # str() of a long array shows its ends alone.
        whole = part.tobytes() if hasattr(part, "tobytes") else part
        digest.update(whole if isinstance(whole, bytes) else str(whole).encode())
    return digest.hexdigest()[:16]


def hash_weights(folder):
    weights = sorted(load_file(folder / "model" / "model.safetensors").items())
    return hash_bytes(*(part for name, w in weights for part in (name, w.contiguous().numpy())))


def hash_soft_labels(folder, count):
    """(the teacher's answers, the ids of its largest logits), whatever the order of the rows."""
    sys.path.insert(0, str(ROOT))
    import distill

    key = distill.open_manifest(folder)["key"]
    labels = distill.Labels(distill.open_shards(folder, key)[0], count, key)
    names = ("input_ids", "labels", "ids")
    rows = sorted([labels[i][n].flatten().tolist() for n in names] for i in range(count))
    return hash_bytes([row[:2] for row in rows]), hash_bytes(rows)


def make_pins(folder):
    """Run everything once in `folder`; {what: hash}."""
    make_inputs(folder)
    runs, labels, answers, pins = folder / "runs/wlp", folder / "labels", folder / "answers", {}
    train = f"--train {folder}/train.jsonl {STEPS} {LENGTHS}"
    student = f"train_small.py --model {folder}/student"
    score = f"evaluate.py --task wlp --data {folder}/test.jsonl --max-source-length 128"
    score += " --max-target-length 128 --model"
    small = f"{runs}/small-n100-s0"  # trained and scored in one process, as by make
    scored = f"{score} {small}/model --output {small}"
    run(f"{student} --strategy small {train} --output {small} -- {scored}")
    run(
        f"train_small.py --model {folder}/encoder --strategy bert --train {folder}/classes.jsonl "
        f"{STEPS} --max-source-length 16 --output {runs}/bert-n40-s0"
    )
    teacher = f"{runs}/teacher-n100-s0"
    run(f"train_teacher.py --model {folder}/teacher {train} --num-labels 32 --output {teacher}")
    for strategy, model in (("dist", "student"), ("self", "teacher")):
        run(
            f"distill.py --teacher {teacher}/model --labels {labels} --student {folder}/{model} "
            f"--unlabeled {folder}/unlabeled.jsonl {STEPS} {LENGTHS} --strategy {strategy} "
            "--temperature 1 --top-k 8 --teacher-batch-size 16 "
            f"--output {runs}/{strategy}-n100-u40-s0"
        )
    run(
        f"gpt_annotate.py --task wlp --labeled {folder}/train.jsonl --num 12 --budget 1000000 "
        f"--unlabeled {folder}/test.jsonl --simulate 0.7 --gold {folder}/test.jsonl "
        f"--output {answers}"
    )
    pins["llm labels"] = hash_bytes((answers / "labels.jsonl").read_bytes())
    run(
        f"{student} --strategy llm --train {answers}/labels.jsonl {STEPS} {LENGTHS} "
        f"--output {runs}/llm-n10-g12-s0"
    )
    for path in sorted(runs.iterdir()):
        pins[f"weights {path.name}"] = hash_weights(path)
    pins["soft labels"], pins["soft labels, top ids"] = hash_soft_labels(labels, 40)
    for name in ("small-n100-s0", "teacher-n100-s0", "dist-n100-u40-s0"):
        if name != "small-n100-s0":
            run(f"{score} {runs}/{name}/model --output {runs}/{name}")
        rows = (runs / name / "predictions.jsonl").read_text().splitlines()
        # Scored runs have 40 labels and less; to tables they say as many as their names.
        path = runs / name / "metrics.json"
        path.write_text(re.sub(r'("labels": )\d+', r"\g<1>100", path.read_text()))
        pins[f"predictions {name}"] = hash_bytes(*(json.loads(row)["prediction"] for row in rows))
    made = folder / "made"
    run(f"plots.py table2 --task wlp --scale mini --runs {folder}/runs --output {made}")
    pins["table2.md"] = hash_bytes((made / "table2.md").read_bytes())
    return pins


@pytest.fixture(scope="module")
def pins(tmp_path_factory):
    kept = json.loads(PINS.read_text()).get(name_machine())
    if not kept:
        pytest.skip(f"no pins for {name_machine()}: python {Path(__file__).name} writes them")
    return kept, make_pins(tmp_path_factory.mktemp("pins"))


def test_small_runs_of_each_kind_keep_their_bytes(pins):
    kept, found = pins
    assert found == kept


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = make_pins(Path(folder))
    known = json.loads(PINS.read_text()) if PINS.exists() else {}
    PINS.write_text(json.dumps({**known, name_machine(): found}, indent=2) + "\n")
