"""distill.py: the loss by hand and against a dense reference, the labels on disk, whole runs.

Models are random T5s of a few thousand parameters. SLOW=1 adds the tests that take minutes.
"""

import contextlib
import itertools
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
import weakref
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tiny import WORDS, build_word_tokenizer, slow  # noqa: E402

import distill  # noqa: E402
from data.distill import imports  # noqa: E402

# --- models and data ---------------------------------------------------------------------------


def save_model(folder, seed, words=WORDS, d_model=16, vocabulary_size=None, factor=2.0, ending=2.0):
    """A random T5 v1.1 with a word vocabulary, sure of itself by `factor`, fond of ending rows."""
    tokenizer = build_word_tokenizer(words)
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=vocabulary_size or len(tokenizer),
        d_model=d_model,
        d_kv=8,
        num_heads=2,
        d_ff=32,
        num_layers=1,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.1,
        initializer_factor=factor,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration(config)
    model.shared.weight.data[1] *= ending
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def write_rows(path, count, seed=0):
    rng = random.Random(seed)
    rows = [" ".join(rng.choices(WORDS, k=rng.randint(1, 12))) for _ in range(count)]
    path.write_text(
        "".join(json.dumps({"source": f"r{i} {row}"}) + "\n" for i, row in enumerate(rows))
    )
    return path


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A teacher, a student, unlabeled rows, and the labels of 60 of them."""
    folder = tmp_path_factory.mktemp("world")
    save_model(folder / "teacher", 1, d_model=24)
    save_model(folder / "student", 2, factor=1.0, ending=1.0)
    write_rows(folder / "unlabeled.jsonl", 120)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distill, "SHARD_ROWS", 16)
        make_labels(folder, folder / "labels")
    return folder


PASS = ["--prefix", "do: ", "--max-source-length", "12", "--max-target-length", "10"]
PASS += ["--top-k", "8", "--teacher-batch-size", "8", "--seed", "3"]
TRAIN = ["--max-steps", "6", "--learning-rate", "1e-2", "--logging-steps", "1", "--batch-size", "8"]


@pytest.fixture(autouse=True)
def short_files(monkeypatch):
    """Sixteen rows a file of labels, so that a few rows make several."""
    monkeypatch.setattr(distill, "SHARD_ROWS", 16)


def make_labels(world, labels, count=60, flags=(), teacher="teacher", unlabeled="unlabeled.jsonl"):
    """Run the teacher pass alone."""
    unlabeled = ["--unlabeled", str(world / unlabeled), "--num-unlabeled", str(count)]
    models = ["--teacher", str(world / teacher), "--labels", str(labels)]
    distill.main([*models, "--labels-only", *unlabeled, *PASS, *flags])


def train_student(world, output, *flags, count=60, teacher="labels", student="student"):
    """Run the student half (from the world's labels, unless told otherwise); its record."""
    unlabeled = ["--unlabeled", str(world / "unlabeled.jsonl"), "--num-unlabeled", str(count)]
    models = ["--teacher", str(world / teacher), "--student", str(world / student)]
    distill.main([*models, "--output", str(output), *unlabeled, *PASS, *TRAIN, *flags])
    return json.loads((output / "training.json").read_text())


def open_labels(folder, count=60):
    """The first rows of a folder of labels."""
    key = json.loads((folder / "labels.json").read_text())["key"]
    tables, damaged = distill.open_shards(folder, key)
    assert not damaged and not distill.find_missing(tables, count)
    return distill.Labels(tables, count, key)


def read_tables(folder):
    """{first and last row: table} of a folder's files, without what each says of its making."""
    found = {}
    for path in sorted(folder.glob("*.arrow")):
        table = pa.ipc.open_stream(path.read_bytes()).read_all()
        found[path.name[:19]] = table.replace_schema_metadata(None)
    return found


def load_model(folder, **kwargs):
    """A model folder as distill.py loads it."""
    folder = str(folder)
    config, _ = distill.load_parts(folder)
    for name, value in kwargs.items():
        setattr(config, name, value)
    return distill.load_model(folder, config)


def read_log(output):
    return [json.loads(line) for line in (output / "log.jsonl").read_text().splitlines()]


def fails(match):
    """A user's mistake: one error line, exit code 1."""
    return pytest.raises(SystemExit, match=f"error: .*{match}")


# --- the loss ----------------------------------------------------------------------------------


def top_loss(student, teacher, k, temperature):
    """The loss over the teacher's k largest logits, from dense ones."""
    kept = teacher.topk(k)
    others = (teacher / temperature).scatter(1, kept.indices, float("-inf"))
    return distill.TopLoss.apply(
        student, kept.values, kept.indices, others.logsumexp(1), temperature
    )


def reference(student, teacher, temperature):
    """T^2 sum p (log p - log q) in float64, written without log_softmax or any helper."""
    p = torch.exp(teacher / temperature)
    p = p / p.sum(1, keepdim=True)
    q = torch.exp(student / temperature)
    q = q / q.sum(1, keepdim=True)
    return temperature**2 * (p * (p / q).log()).sum(1)


def draw(rows=7, size=40, scale=3.0):
    generator = torch.Generator().manual_seed(5)
    kwargs = {"generator": generator, "dtype": torch.float64}
    return scale * torch.randn(rows, size, **kwargs), scale * torch.randn(rows, size, **kwargs)


def test_two_tokens_by_hand():
    """V = 3, k = 1, T = 1, logits chosen as logarithms so that the probabilities are fractions.

    Token 1: teacher 1/2 1/4 1/4, student 1/4 1/4 1/2; kept: id 0. Buckets 1/2 + 1/2 and 1/4 + 3/4:
        1/2 log 2 + 1/2 log(2/3) = 1/2 log(4/3).
    Token 2: teacher 1/8 3/4 1/8, student 1/4 1/2 1/4; kept: id 1. Buckets 3/4 + 1/4, 1/2 + 1/2:
        3/4 log(3/2) + 1/4 log(1/2).
    """
    teacher = torch.log(torch.tensor([[1 / 2, 1 / 4, 1 / 4], [1 / 8, 3 / 4, 1 / 8]]))
    student = torch.log(torch.tensor([[1 / 4, 1 / 4, 1 / 2], [1 / 4, 1 / 2, 1 / 4]]))
    by_hand = [0.5 * math.log(4 / 3), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)]
    assert top_loss(student, teacher, 1, 1.0).tolist() == pytest.approx(by_hand, abs=1e-6)
    # All three ids: 1/2 log 2 + 1/4 log 1 + 1/4 log(1/2) = 1/4 log 2; token 2 as above, since the
    # student splits its bucket as the teacher does.
    dense = [0.25 * math.log(2), by_hand[1]]
    assert distill.dense_loss(student, teacher, 1.0).tolist() == pytest.approx(dense, abs=1e-6)


def test_temperature_two_by_hand():
    """At T = 2 probabilities go with their square roots, and the loss is times 4.

    Teacher 9/14 4/14 1/14 -> 3/6 2/6 1/6; student 1/18 1/18 16/18 -> 1/6 1/6 4/6; kept: id 0.
    """
    teacher = torch.log(torch.tensor([[9.0, 4.0, 1.0]]))
    student = torch.log(torch.tensor([[1.0, 1.0, 16.0]]))
    by_hand = 4 * (1 / 2 * math.log(3) + 1 / 2 * math.log((1 / 2) / (5 / 6)))
    assert top_loss(student, teacher, 1, 2.0).item() == pytest.approx(by_hand, abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_dense_loss_and_its_gradient_are_those_of_a_float64_reference(temperature):
    student, teacher = draw()
    ours, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = distill.dense_loss(ours, teacher, temperature)
    expected = reference(other, teacher, temperature)
    weights = torch.arange(1.0, 8.0, dtype=torch.float64)
    (loss * weights).sum().backward()
    (expected * weights).sum().backward()
    assert torch.allclose(loss, expected, rtol=0, atol=1e-12)
    assert torch.allclose(ours.grad, other.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 8, 39])
def test_top_loss_is_dense_less_the_divergence_inside_the_bucket(k, temperature):
    """T^2 KL = loss + T^2 r KL(others || others), and the gradient of that, in float64."""
    student, teacher = draw()
    ours, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss = top_loss(ours, teacher, k, temperature)
    kept = teacher.topk(k).indices
    outside = torch.ones_like(teacher).scatter(1, kept, 0)
    p = (teacher / temperature).exp()
    r = (p * outside).sum(1) / p.sum(1)
    inside = p * outside / (p * outside).sum(1, keepdim=True)
    q = (other / temperature).exp() * outside
    q = q / q.sum(1, keepdim=True)
    ratio = torch.where(outside > 0, inside / torch.where(outside > 0, q, 1.0), 1.0)
    lost = temperature**2 * r * (inside * ratio.log()).sum(1)
    expected = reference(other, teacher, temperature) - lost
    loss.sum().backward()
    expected.sum().backward()
    assert torch.allclose(loss, expected, rtol=0, atol=1e-11)
    assert torch.allclose(ours.grad, other.grad, rtol=0, atol=1e-11)


def test_gradient_by_finite_differences():
    student, teacher = draw(rows=1, size=12)
    student.requires_grad_()
    top_loss(student, teacher, 4, 2.0).backward()
    for i in range(12):
        step = torch.zeros(1, 12, dtype=torch.float64)
        step[0, i] = 1e-5
        ends = [top_loss(student.detach() + s * step, teacher, 4, 2.0).item() for s in (1, -1)]
        assert student.grad[0, i].item() == pytest.approx((ends[0] - ends[1]) / 2e-5, abs=1e-8)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_from_itself_is_zero_and_never_negative(temperature):
    student, teacher = draw(rows=200)
    for k in (1, 5, 39):
        same = top_loss(teacher.clone().requires_grad_(), teacher, k, temperature)
        assert same.abs().max() < 1e-12
        assert top_loss(student, teacher, k, temperature).min() >= 0
    assert distill.dense_loss(teacher, teacher, temperature).abs().max() < 1e-12


def test_less_is_lost_the_more_is_kept():
    student, teacher = draw(rows=50)
    losses = [top_loss(student, teacher, k, 2.0) for k in (1, 4, 16, 39)]
    losses.append(distill.dense_loss(student, teacher, 2.0))
    for fewer, more in itertools.pairwise(losses):
        assert (more - fewer).min() > -1e-12


def test_extreme_logits_stay_finite():
    """Residuals far below what 1 - sum could tell from 0, and a student sure of another word."""
    teacher = torch.full((2, 50), -300.0)
    teacher[:, 3], teacher[:, 4] = 0.0, -40.0
    student = torch.full((2, 50), -1e4)
    student[0, 3], student[1, 9] = 1e4, 1e4
    student.requires_grad_()
    loss = top_loss(student, teacher, 2, 1.0)
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(0, abs=1e-6)
    assert loss[1].item() == pytest.approx(2e4, rel=1e-3)
    assert torch.isfinite(student.grad).all()


def test_residual_of_one_in_a_billion_is_still_learned():
    """In fp32, 1 - sum of the top k would be 0 or 1e-7 here."""
    teacher = torch.full((1, 40), -24.4)
    teacher[0, 0] = 0.0  # the others: 39 * exp(-24.4) = 1e-9
    near = torch.full((1, 40), -24.4 - math.log(1000))
    near[0, 0] = 0.0
    exact = top_loss(near.double(), teacher.double(), 1, 1.0).item()
    assert exact == pytest.approx(39 * math.exp(-24.4) * (math.log(1000) - 1), rel=1e-2)


# --- whole steps -------------------------------------------------------------------------------


def compute(world, tmp_path, flags=(), rows=range(8), longer=0, labels="labels"):
    """Loss and gradient of one batch; `longer` adds padding to its targets."""
    labels = open_labels(world / labels)
    model = load_model(world / "student", dropout_rate=0.0)
    args, _ = distill.parse_args(
        ["--teacher", "x", "--unlabeled", __file__, "--output", str(tmp_path), *PASS, *flags]
    )
    released = load_model(world / "teacher").eval() if args.loss == "paper" else None
    collate = distill.Collator(model, labels.key, args.temperature)
    one = types.SimpleNamespace(world_size=1, gradient_accumulation_steps=1)
    soft_loss = distill.SoftLoss(model, args, one, released)
    batch = collate([labels[i] for i in rows])
    if longer:
        pad = torch.nn.functional.pad
        batch["labels"] = pad(batch["labels"], (0, longer), value=-100)
        batch["decoder_input_ids"] = pad(batch["decoder_input_ids"], (0, longer), value=0)
        for name in ("input_ids", "attention_mask"):
            batch[name] = pad(batch[name], (0, longer), value=0)
    loss = soft_loss(model, dict(batch), (batch["labels"] != -100).sum())
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}, batch


def largest_difference(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("flags", [(), ("--temperature", "1")])
def test_longer_padding_changes_nothing(world, tmp_path, flags):
    loss, gradient, batch = compute(world, tmp_path, flags)
    padded, other, _ = compute(world, tmp_path, flags, longer=9)
    assert (batch["labels"] == -100).any(), "the batch should have padding of its own"
    assert padded == pytest.approx(loss, rel=1e-6)
    assert largest_difference(gradient, other) < 1e-6


def test_longer_padding_changes_the_released_loss(world, tmp_path):
    loss, *_ = compute(world, tmp_path, ("--loss", "paper"))
    padded, *_ = compute(world, tmp_path, ("--loss", "paper"), longer=9)
    assert abs(padded - loss) > 1e-3 * loss


def test_a_batch_is_the_mean_over_its_tokens_not_its_rows(world, tmp_path):
    loss, *_ = compute(world, tmp_path, rows=range(8))
    parts = [compute(world, tmp_path, rows=[i]) for i in range(8)]
    counts = [(batch["labels"] != -100).sum().item() for *_, batch in parts]
    mean = sum(part[0] * n for part, n in zip(parts, counts, strict=True)) / sum(counts)
    assert len(set(counts)) > 1
    assert loss == pytest.approx(mean, rel=1e-5)


def test_kept_labels_give_the_loss_of_the_live_teacher(world, tmp_path):
    """One cache, T = 1 and T = 2: against both models run here, in float64, padding masked."""
    teacher = load_model(world / "teacher").double()
    student = load_model(world / "student").double().eval()
    for temperature in (1.0, 2.0):
        loss, _, batch = compute(world, tmp_path, ("--temperature", str(temperature)))
        inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")}
        real = batch["labels"] != -100
        with torch.no_grad():
            logits = [model(**inputs).logits[real] for model in (student, teacher)]
        assert logits[1].argmax(1).tolist() == batch["labels"][real].tolist()
        expected = top_loss(*logits, 8, temperature).mean().item()
        assert loss == pytest.approx(expected, rel=2e-4)  # fp16 logits


def test_all_logits_kept_give_the_dense_loss_and_gradient(world, tmp_path):
    make_labels(world, world / "dense", flags=["--top-k", "0"])
    loss, gradient, batch = compute(world, tmp_path, labels="dense")
    teacher = load_model(world / "teacher").double()
    student = load_model(world / "student", dropout_rate=0.0).double()
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")}
    real = batch["labels"] != -100
    with torch.no_grad():
        target = teacher(**inputs).logits[real]
    expected = reference(student(**inputs).logits[real], target, 2.0).mean()
    expected.backward()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    exact = {name: p.grad for name, p in student.named_parameters()}
    scale = max(g.abs().max().item() for g in exact.values())
    assert largest_difference(gradient, exact) < 1e-5 * scale


def test_released_loss_is_the_mean_over_every_position(world, tmp_path):
    loss, _, batch = compute(world, tmp_path, ("--loss", "paper"))
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask", "decoder_input_ids")}
    with torch.no_grad():
        logits = [
            load_model(world / name).double().eval()(**inputs).logits.flatten(0, 1)
            for name in ("student", "teacher")
        ]
    assert loss == pytest.approx(reference(*logits, 2.0).mean().item(), rel=1e-5)


# --- the labels on disk ------------------------------------------------------------------------


def test_labels_are_greedy_and_hold_what_the_teacher_said(world):
    """Against generate() and a teacher-forced forward, row by row, without batches."""
    labels = open_labels(world / "labels")
    teacher = load_model(world / "teacher")
    _, tokenizer = distill.load_parts(str(world / "teacher"))
    mass, count, ends, cut = {1.0: 0.0, 2.0: 0.0}, 0, 0, 0
    sources, targets = labels.read("source"), labels.read("target")
    for i, source in enumerate(sources):
        row, text = labels[i], tokenizer("do: " + source).input_ids
        cut += len(text) > 12
        assert row["input_ids"].tolist() == (text if len(text) <= 12 else [*text[:11], 1])
        inputs = torch.tensor(row["input_ids"])[None]
        out = teacher.generate(inputs, max_new_tokens=10, do_sample=False, num_beams=1)
        assert row["labels"].tolist() == out[0, 1:].tolist()
        assert targets[i] == tokenizer.decode(out[0], skip_special_tokens=True)
        ends += row["labels"][-1] == 1
        with torch.no_grad():
            logits = teacher(inputs, decoder_input_ids=out[:, :-1]).logits[0]
        kept = logits.topk(8)
        assert np.array_equal(row["ids"], kept.indices)
        near = torch.tensor(row["logits"].astype(np.float32))
        assert np.allclose(near, kept.values - kept.values[:, :1], atol=1e-4, rtol=1e-3)
        for column, t in enumerate((1.0, 2.0)):  # log p as the docstring says
            rest = torch.tensor(row["rest"][:, column].copy())
            ours = near / t - torch.logaddexp((near / t).logsumexp(1), rest)[:, None]
            exact = (logits.double() / t).log_softmax(1).gather(1, kept.indices)
            assert np.allclose(ours, exact, atol=1e-3, rtol=1e-3)  # fp16
            mass[t] += (1 - exact.exp().sum(1)).sum().item()
        count += len(row["labels"])
    summary = labels.summarise()
    assert 0 < ends < len(labels), "some rows should end and some be cut"
    assert summary["truncated_targets"] == len(labels) - ends
    assert summary["truncated_sources"] == cut > 0 and summary["tokens"] == count
    for t, total in mass.items():
        assert summary["residual"][t] == pytest.approx(total / count, abs=1e-4)


def test_rows_are_those_of_the_seeds_permutation(world):
    texts = [json.loads(line)["source"] for line in (world / "unlabeled.jsonl").open()]
    order = np.random.RandomState(3).permutation(120)
    assert open_labels(world / "labels").read("source") == [texts[i] for i in order[:60]]


def test_datasets_and_pyarrow_open_a_folder(world):
    import datasets

    labels, opened = open_labels(world / "labels"), datasets.load_from_disk(world / "labels")
    assert len(opened) == 60
    for i, row in enumerate(opened):
        assert row["source"] == labels.read("source")[i]
        assert row["target"] == labels.read("target")[i]
        assert np.array_equal(row["ids"], labels[i]["ids"])
        assert len(row["ids"]) == len(row["labels"]) and len(row["ids"][0]) == 8
    path = sorted((world / "labels").glob("*.arrow"))[1]
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_stream(file).read_all()
    assert table.column("target").to_pylist() == labels.read("target")[16:32]


def test_more_rows_extend_fewer(world, tmp_path, monkeypatch):
    make_labels(world, tmp_path / "labels", 40)
    small = read_tables(tmp_path / "labels")
    labeled, real = [], distill.label_rows
    monkeypatch.setattr(distill, "label_rows", lambda *a: labeled.append(len(a[2])) or real(*a))
    make_labels(world, tmp_path / "labels", 100)
    assert labeled == [8, 16, 16, 16, 4]
    large = read_tables(tmp_path / "labels")
    assert small.items() <= large.items() and len(open_labels(tmp_path / "labels", 100)) == 100
    labeled.clear()
    make_labels(world, tmp_path / "labels", 70)
    assert not labeled


def test_a_continued_pass_writes_the_same_labels(world, tmp_path, monkeypatch):
    make_labels(world, tmp_path / "whole", 100)
    real, done = distill.label_rows, []

    def stop_after_three(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(distill, "label_rows", stop_after_three)
        make_labels(world, tmp_path / "parts", 100)
    assert stop.value.code == 130 and len(read_tables(tmp_path / "parts")) == 3
    make_labels(world, tmp_path / "parts", 100)
    assert read_tables(tmp_path / "parts") == read_tables(tmp_path / "whole")


def test_two_processes_write_the_same_labels_as_one(world, tmp_path, monkeypatch):
    make_labels(world, tmp_path / "one", 100)

    class Process:
        is_main_process, num_processes, device = True, 2, torch.device("cpu")

        def __init__(self, index):
            self.process_index = index

        def wait_for_everyone(self):
            pass

        def main_process_first(self):
            return contextlib.nullcontext()

    counts = []
    for index in (0, 1):  # the second finds the files of the first missing too, as if at once
        folder = tmp_path / f"two-{index}"
        monkeypatch.setattr(distill, "PartialState", lambda i=index: Process(i))
        with fails("of the rows have no labels"):
            make_labels(world, folder, 100)
        counts.append(len(read_tables(folder)))
        for file in folder.glob("*.arrow"):
            if index:
                shutil.move(file, tmp_path / "two-0" / file.name)
    assert counts == [4, 3]
    assert read_tables(tmp_path / "two-0") == read_tables(tmp_path / "one")


@pytest.mark.parametrize("harm", ["flip", "shorten", "rename", "move", "copy", "foreign"])
def test_a_damaged_file_is_named_and_made_again(world, tmp_path, capsys, harm):
    shutil.copytree(world / "labels", tmp_path / "labels")
    before = read_tables(tmp_path / "labels")
    path = sorted((tmp_path / "labels").glob("*.arrow"))[1]
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "shorten":
        path.write_bytes(data[:-1])
    elif harm == "rename":
        path = path.rename(path.with_name("000000016-x.arrow"))
    elif harm == "move":  # rows 8 to 16 would be there twice, 16 to 24 never
        path = path.rename(path.with_name(f"000000008-000000024{path.name[19:]}"))
    elif harm == "copy":
        first, name = min(path.parent.glob("*.arrow")), path.name[:20]
        path.unlink()
        path = Path(shutil.copy(first, path.with_name(f"{name}{first.name[20:]}")))
    else:  # a whole file, but made with other settings
        make_labels(world, tmp_path / "other", 32, ["--top-k", "4"])
        path.unlink()
        path = Path(shutil.copy(sorted((tmp_path / "other").glob("*.arrow"))[1], path.parent))
    with fails("16 of the rows have no labels"):
        train_student(world, tmp_path / "run", teacher=tmp_path / "labels")
    assert f"{path.name} is damaged" in capsys.readouterr().err
    make_labels(world, tmp_path / "labels")
    assert f"{path.name} is damaged" in capsys.readouterr().err
    assert read_tables(tmp_path / "labels") == before
    make_labels(world, tmp_path / "labels")
    assert "damaged" not in capsys.readouterr().err


def test_damage_at_the_end_never_means_fewer_rows(world, tmp_path):
    shutil.copytree(world / "labels", tmp_path / "labels")
    path = max((tmp_path / "labels").glob("*.arrow"))
    path.write_bytes(path.read_bytes()[:-1])
    words = ["--teacher", tmp_path / "labels", "--student", world / "student", *PASS[:6]]
    for rows in ("12", "some"):
        with fails(f"{rows} of the rows have no labels; run the teacher pass"):
            distill.main([*map(str, words), "--output", str(tmp_path / "run")])
        (tmp_path / "labels" / "state.json").unlink(missing_ok=True)  # of a killed pass
    make_labels(world, tmp_path / "labels")
    path = max((tmp_path / "labels").glob("*.arrow"))
    path.unlink()
    with fails(r"[0-9]+ of the rows have no labels"):
        distill.main([*map(str, words), "--output", str(tmp_path / "run")])


def forge(text, *lost):
    """A manifest with a checksum of its own, whose key has lost some names or all that it says."""
    manifest = json.loads(text)
    manifest["key"] = {n: v for n, v in manifest["key"].items() if n not in lost} if lost else [1]
    del manifest["sha256"]
    return json.dumps({**manifest, "sha256": distill.hash_json(manifest)})


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda old: "[1]", "edited, damaged"),
        (lambda old: "null", "edited, damaged"),
        (lambda old: old[:-9], "edited, damaged"),
        (lambda old: '{"key": 5}', "edited, damaged"),
        (lambda old: old.replace('"top_k": 8', '"top_k": 4'), "edited, damaged"),
        (lambda old: old.replace('"vocabulary_size": 63', '"vocabulary_size": "x"'), "edited"),
        (lambda old: forge(old, "classes"), "of an older version"),
        (lambda old: forge(old), "of an older version"),
        (None, "no labels.json"),
    ],
)
@pytest.mark.parametrize("flag", ["--labels", "--teacher"])
def test_a_manifest_that_was_edited_is_refused(world, tmp_path, edit, said, flag):
    shutil.copytree(world / "labels", tmp_path / "labels")
    path = tmp_path / "labels" / "labels.json"
    text = edit(path.read_text()) if edit else path.unlink()
    if text:
        path.write_text(text)
    with fails(said):
        distill.main([flag, str(path.parent), "--output", str(tmp_path / "run")])


def test_labels_of_an_older_version_say_what_to_do(world, tmp_path):
    (tmp_path / "labels.json").write_text('{"key": {"top_k": 64}, "model": "x"}')
    (tmp_path / "shard-0123456789ab.bin").write_bytes(b"x")
    with fails("of an older version, by its checksum; remove .* and run the teacher pass again"):
        make_labels(world, tmp_path)


def test_a_changed_file_of_rows_is_refused_never_mismatched(world, tmp_path):
    shutil.copytree(world / "labels", tmp_path / "labels")
    rows = (world / "unlabeled.jsonl").read_text().splitlines()
    (tmp_path / "unlabeled.jsonl").write_text("\n".join([*rows[1:], rows[0], ""]))
    changed = ["--unlabeled", str(tmp_path / "unlabeled.jsonl")]
    with fails("labels of other rows than .*unlabeled.jsonl now has"):
        train_student(world, tmp_path / "run", *changed, teacher=str(tmp_path / "labels"))
    with fails("labels of other rows than"):
        make_labels(world, tmp_path / "labels", flags=changed)


def test_a_batch_that_memory_does_not_hold_is_halved(world, tmp_path, monkeypatch, capsys):
    real, sizes = distill.decode, []

    def decode(model, batch, key):
        sizes.append(len(batch))
        if len(batch) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(model, batch, key)

    monkeypatch.setattr(distill, "decode", decode)
    make_labels(world, tmp_path / "labels", 20)
    assert sizes == [8, 4, *[2] * 8, 2, 2]  # goes on with what fitted
    assert "out of memory: now 2 rows at once" in capsys.readouterr().err
    path = min((tmp_path / "labels").glob("*.arrow"))
    facts = distill.read_facts(pa.ipc.open_stream(path.read_bytes()).read_all())
    assert facts["batch_size"] == 2
    one, two = open_labels(tmp_path / "labels", 16), open_labels(world / "labels", 16)
    assert one.read("target") == two.read("target")
    with monkeypatch.context() as patch, fails("out of GPU memory"):
        patch.setattr(distill, "decode", lambda *args: decode(*args[:1], [0] * 9, None))
        make_labels(world, tmp_path / "other", 20)


def test_the_teacher_is_loaded_onto_its_gpu(world, tmp_path, monkeypatch):
    """CUDA is played: what load_model() would be asked for."""

    class Process:
        is_main_process, num_processes, process_index = True, 2, 1
        device = torch.device("cuda", 1)

        def wait_for_everyone(self):
            pass

        def main_process_first(self):
            return contextlib.nullcontext()

    def load(model, config, **kwargs):
        raise ValueError(f"asked {kwargs}")

    monkeypatch.setattr(distill, "PartialState", Process)
    monkeypatch.setattr(distill, "load_model", load)
    with fails(r"asked \{'device_map': \{'': device\(type='cuda', index=1\)\}, 'dtype'"):
        make_labels(world, tmp_path / "labels")


def test_another_teacher_never_reuses_labels(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "teacher")
    save_model(tmp_path / "teacher", 9, d_model=24)
    with fails(r"holds other labels \(teacher .*another --labels"):
        make_labels(world, world / "labels", teacher=str(tmp_path / "teacher"))
    weights = next((tmp_path / "teacher").glob("*.safetensors"))
    shutil.copy(world / "teacher" / "model.safetensors", weights)
    make_labels(world, world / "labels", teacher=str(tmp_path / "teacher"))  # the same by content
    tokenizer = tmp_path / "teacher" / "tokenizer.json"
    text = tokenizer.read_text()
    tokenizer.write_text(text.replace('"normalizer": null', '"normalizer": {"type": "Lowercase"}'))
    assert tokenizer.read_text() != text  # the same vocabulary, other source ids
    with fails("holds other labels"):
        make_labels(world, world / "labels", teacher=str(tmp_path / "teacher"))
    tokenizer.write_text(text)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit of one weight
    weights.write_bytes(data)
    with fails("holds other labels"):
        make_labels(world, world / "labels", teacher=str(tmp_path / "teacher"))


@pytest.mark.parametrize(
    "flags",
    [
        ("--prefix", "other: "),
        ("--max-source-length", "11"),
        ("--max-target-length", "9"),
        ("--teacher-batch-size", "4"),
        ("--seed", "4"),
        ("--top-k", "4"),
        ("--teacher-dtype", "bfloat16"),
        ("--temperatures", "1", "2", "4"),
    ],
)
def test_whatever_changes_a_label_is_part_of_its_key(world, flags):
    name = flags[0].removeprefix("--").removeprefix("teacher-").replace("-", "_")
    with fails(rf"holds other labels \({name} "):
        make_labels(world, world / "labels", flags=flags)


# --- whole runs --------------------------------------------------------------------------------


def test_two_halves_are_one_command(world, tmp_path):
    """The student from labels moved elsewhere, without the teacher, ends at the same weights."""
    shutil.copytree(world / "labels", tmp_path / "elsewhere")
    apart = train_student(world, tmp_path / "apart", teacher=str(tmp_path / "elsewhere"))
    together = train_student(world, tmp_path / "together", teacher="teacher")
    weights = [
        load_file(tmp_path / run / "model/model.safetensors") for run in ("apart", "together")
    ]
    assert largest_difference(*weights) == 0
    assert read_tables(tmp_path / "together" / "labels") == read_tables(world / "labels")
    for record in (apart, together):
        assert record["unlabeled"] == 60 and record["steps"] == 6
        assert record["seconds"]["teacher_pass"] > 0
        assert record["teacher"]["key"] == apart["teacher"]["key"]
    tables, _ = distill.open_shards(world / "labels", apart["teacher"]["key"])
    whole = sum(distill.read_facts(table)["seconds"] for table in tables.values())
    assert apart["seconds"]["teacher_pass"] == pytest.approx(whole)


def test_seconds_of_the_pass_are_those_of_the_rows_used(world):
    whole, part, half = (open_labels(world / "labels", n).seconds for n in (60, 16, 8))
    assert 0 < part < whole and half == pytest.approx(part / 2)


def test_the_teacher_is_gone_before_the_student_comes(world, tmp_path, monkeypatch):
    loaded, load = [], distill.load_model

    def remember(*args, **kwargs):
        assert all(model() is None for model in loaded), "two models in memory"
        model = load(*args, **kwargs)
        loaded.append(weakref.ref(model))
        return model

    monkeypatch.setattr(distill, "load_model", remember)
    train_student(world, tmp_path / "run", teacher="teacher")
    assert len(loaded) == 2


def test_a_finished_run_is_left_alone(world, tmp_path, capsys):
    train_student(world, tmp_path / "run")
    stamp = (tmp_path / "run" / "training.json").stat().st_mtime_ns
    train_student(world, tmp_path / "run")
    assert "already trained" in capsys.readouterr().err
    assert (tmp_path / "run" / "training.json").stat().st_mtime_ns == stamp
    with fails("begun with other settings .*temperature"):
        train_student(world, tmp_path / "run", "--temperature", "1")


def test_a_student_learns_its_teacher(world, tmp_path):
    """Self-distillation of a copy with other weights: the loss falls to a small part."""
    save_model(tmp_path / "student", 5, d_model=24)
    record = train_student(
        world,
        tmp_path / "run",
        "--max-steps",
        "250",
        student=str(tmp_path / "student"),
    )
    losses = [entry["loss"] for entry in read_log(tmp_path / "run")]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert record["strategy"] == "dist" and record["parameters"] > 0


def test_self_distillation_from_itself_starts_at_zero(world, tmp_path):
    train_student(world, tmp_path / "run", "--dropout", "0", student="teacher")
    assert read_log(tmp_path / "run")[0]["loss"] < 1e-4


def test_gradient_accumulation_is_the_same_step(world, tmp_path):
    flags = ("--batch-size", "16", "--dropout", "0")
    train_student(world, tmp_path / "one", *flags)
    train_student(world, tmp_path / "four", *flags, "--gradient-accumulation-steps", "4")
    for one, four in zip(*(read_log(tmp_path / n)[:3] for n in ("one", "four")), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize("flags", [("--loss", "paper"), ("--bf16",)])
def test_other_losses_train(world, tmp_path, flags):
    train_student(
        world, tmp_path / "run", "--labels", str(world / "labels"), *flags, teacher="teacher"
    )
    assert all(math.isfinite(entry["loss"]) for entry in read_log(tmp_path / "run"))


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=slow)])
def test_a_compiled_step_is_the_same(world, tmp_path, backend):
    train_student(world, tmp_path / "plain", "--dropout", "0")
    flags = ("--dropout", "0", "--torch-compile-backend", backend)
    train_student(world, tmp_path / "made", *flags)
    plain, made = ([log["loss"] for log in read_log(tmp_path / n)] for n in ("plain", "made"))
    assert made == pytest.approx(plain, rel=1e-4)


# --- refusals ----------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_the_rows(world, tmp_path):
    text = (world / "unlabeled.jsonl").read_text()
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8-sig")
    make_labels(world, tmp_path / "labels", unlabeled=tmp_path / "rows.jsonl")
    assert read_tables(tmp_path / "labels") == read_tables(world / "labels")


def test_different_vocabularies_are_refused(world, tmp_path):
    save_model(tmp_path / "other", 2, words=[*WORDS[:-1], "another"])
    with fails("differ in vocabulary"):
        train_student(world, tmp_path / "run", student=str(tmp_path / "other"))
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_output_layer_may_be_larger_but_not_smaller(world, tmp_path):
    save_model(tmp_path / "larger", 2, vocabulary_size=70, factor=1.0, ending=1.0)
    train_student(world, tmp_path / "run", student=str(tmp_path / "larger"))
    make_labels(world, tmp_path / "labels", 20, teacher=str(tmp_path / "larger"))
    with fails("fewer output ids than the teacher"):
        train_student(world, tmp_path / "other", teacher=str(tmp_path / "labels"), count=20)


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        ('{"source": "a"}\n{"source": 3}\n', "rows.jsonl line 2: a row needs the text"),
        ('{"source": "a"}\n\n{"text": "b"}\n', "rows.jsonl line 3: a row needs the text"),
        ('{"source": "a"}\n["b"]\n', "rows.jsonl line 2: a row needs the text"),
        ('{"source": "a"}\n{"sou', "rows.jsonl line 2: not a JSON object"),
        ("\n\n", "rows.jsonl: no rows"),
        ('{"source": "a"}\n{"source": ""}\n', "rows.jsonl: 1 empty sources, the first in line 2"),
        ('{"source": "a \\ud83d"}\n', "rows.jsonl line 1: not UTF-8 .*surrogate"),
        ('{"source": "a"}\n', "rows.jsonl: 60 rows asked for, 1 are there"),
        (None, "rows.jsonl: no such file"),
    ],
)
def test_bad_rows_are_named(world, tmp_path, lines, match):
    if lines is not None:
        (tmp_path / "rows.jsonl").write_text(lines)
    flags = ["--unlabeled", str(tmp_path / "rows.jsonl")]
    with fails(match):
        train_student(world, tmp_path / "run", *flags, teacher="teacher")
    assert not (tmp_path / "run" / "labels").exists()


def test_mistakes_get_one_line(world, tmp_path):
    with fails("no such model folder"):
        train_student(world, tmp_path / "run", teacher=str(tmp_path / "none"))
    distill.load_parts(str(world / "student"))[1].save_pretrained(tmp_path / "bare")
    with fails("bare: no model can be loaded"):
        train_student(world, tmp_path / "run", student=str(tmp_path / "bare"))
    with fails("kept for temperatures 1.0 and 2.0, not 3.0"):
        train_student(world, tmp_path / "run", "--temperature", "3")
    with fails("give its model folder"):
        train_student(world, tmp_path / "run", "--loss", "paper")
    with fails("60 of the rows have no labels"):
        train_student(world, tmp_path / "run", count=120)
    with fails(r"holds other labels \(top_k 8 -> 4\)"):
        train_student(world, tmp_path / "run", "--top-k", "4")
    with fails("the vocabulary has 63 ids"):
        make_labels(world, tmp_path / "labels", flags=["--top-k", "63"])


@pytest.mark.parametrize("harm", ["nan", "lost", "layers", "tokenizer"])
@pytest.mark.parametrize("who", ["teacher", "student"])
def test_a_model_that_is_not_whole_is_refused(world, tmp_path, who, harm):
    shutil.copytree(world / who, tmp_path / who)
    path = tmp_path / who / "model.safetensors"
    weights = load_file(path)
    if harm == "nan":
        weights["shared.weight"][5, 0] = float("nan")
    elif harm == "lost":
        del weights["decoder.block.0.layer.0.SelfAttention.q.weight"]
    elif harm == "layers":
        config = tmp_path / who / "config.json"
        config.write_text(config.read_text().replace('"num_layers": 1', '"num_layers": 2'))
    else:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / who / name).unlink()
    save_file(weights, path, {"format": "pt"})
    with fails("NaN or infinite|weights are missing|no tokenizer|no model"):
        if who == "teacher":
            make_labels(world, tmp_path / "labels", teacher=tmp_path / "teacher")
        else:
            train_student(world, tmp_path / "run", student=tmp_path / "student")


@pytest.mark.parametrize("inside", ["teacher", "rows"])
def test_no_output_overwrites_an_input(world, tmp_path, inside):
    if inside == "teacher":
        shutil.copytree(world / "teacher", tmp_path / "run" / "model")
        flags, teacher = ("--labels", str(tmp_path / "labels")), str(tmp_path / "run" / "model")
    else:
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        rows = shutil.copy(world / "unlabeled.jsonl", tmp_path / "run" / "checkpoints")
        flags, teacher = ("--unlabeled", str(rows)), "teacher"
    with fails("would be overwritten|not of a run of this version"):
        train_student(world, tmp_path / "run", *flags, teacher=teacher)
    assert not (tmp_path / "run" / "config.json").exists()
    if inside == "teacher":
        weights = [tmp_path / "run" / "model", world / "teacher"]
        assert len({(path / "model.safetensors").read_bytes() for path in weights}) == 1


@pytest.mark.parametrize("name", ["teacher", "."])
def test_labels_are_never_written_among_other_files(world, tmp_path, name):
    folder = shutil.copytree(world / name, tmp_path / "copy")
    before = sorted(folder.iterdir())
    with fails("holds .*, so it is no folder of labels; choose another"):
        make_labels(world, folder)
    assert sorted(set(folder.iterdir()) - {folder / ".lock"}) == before


def test_a_damaged_record_beside_the_teacher_is_no_traceback(world, tmp_path):
    shutil.copytree(world / "teacher", tmp_path / "run" / "model")
    (tmp_path / "run" / "training.json").write_text("[1]")
    make_labels(world, tmp_path / "labels", 20, teacher=tmp_path / "run" / "model")
    record = train_student(world, tmp_path / "out", count=20, teacher=str(tmp_path / "labels"))
    assert record["labels"] is None


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--teacher x",
        "--teacher x --output OUT",
        "--teacher x --output OUT --unlabeled ROWS --num-unlabeled 0",
        "--teacher x --output OUT --unlabeled ROWS --temperature 0",
        "--teacher x --output OUT --unlabeled ROWS --temperatures nan",
        "--teacher x --output OUT --unlabeled ROWS --temperature 1e-9",
        "--teacher x --output OUT --unlabeled ROWS --temperatures 1e300",
        "--teacher x --output OUT --unlabeled ROWS --temperatures 1 inf",
        "--teacher x --output OUT --unlabeled ROWS --max-source-length 0",
        "--teacher x --output OUT --unlabeled ROWS --top-k -1",
        "--teacher x --output OUT --unlabeled ROWS --epochs -1",
        "--teacher x --output OUT --unlabeled ROWS --teacher-batch-size 0",
        "--teacher LABELS --output ",
        "--teacher x --labels-only --unlabeled ROWS --labels .",
        "--teacher x --output OUT --unlabeled ROWS --loss paper --classes a b",
        "--teacher x --output OUT --unlabeled ROWS --classes a",
        "--teacher x --output OUT --unlabeled ROWS --classes a a b",
        "--teacher x --output OUT --unlabeled ROWS --fp16",
        "--teacher LABELS --output OUT --labels z",
    ],
)
def test_wrong_flags_exit_2(world, tmp_path, flags):
    flags = flags.replace("ROWS", str(world / "unlabeled.jsonl"))
    flags = flags.replace("LABELS", str(world / "labels")).replace("OUT", str(tmp_path / "out"))
    with pytest.raises(SystemExit) as stop:
        distill.main(flags.split(" ") if flags else [])
    assert stop.value.code == 2 and not (tmp_path / "out").exists()


# --- killed and resumed ------------------------------------------------------------------------


def run_until(world, output, ready, delay):
    """Distill in a child process; once ready() and `delay` seconds later, SIGKILL. True if hit."""

    def work():
        distill.SHARD_ROWS = 8
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        train_student(
            *(world, output, "--max-steps", "40", "--save-steps", "5"),
            teacher="teacher",
            count=120,
        )

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while child.is_alive() and not ready():
        time.sleep(0.002)
    time.sleep(delay)
    hit = child.is_alive()
    if hit:
        os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert hit or child.exitcode == 0
    return hit


def test_killed_and_resumed_is_as_if_undisturbed(world, tmp_path):
    """SIGKILLs in each half, at random moments of its progress, one after another."""
    kills = 10 if os.environ.get("SLOW") else 3
    calm, output, rng = tmp_path / "calm", tmp_path / "killed", random.Random()
    assert not run_until(world, calm, lambda: False, 0)
    files = len(list((calm / "labels").glob("*.arrow")))
    hits = []
    for target in sorted(rng.sample(range(files), kills)):

        def ready(target=target):
            return len(list(output.glob("labels/*.arrow"))) >= target

        hits.append(run_until(world, output, ready, rng.uniform(0, 0.02)))
        assert not (output / "log.jsonl").exists(), "should have been killed in the teacher pass"
    for target in sorted(rng.sample(range(1, 31), kills)):

        def ready(target=target):
            log = output / "log.jsonl"
            return log.exists() and log.read_text().count("\n") >= target

        hits.append(run_until(world, output, ready, rng.uniform(0, 0.02)))
    assert all(hits)
    assert not run_until(world, output, lambda: False, 0)
    assert read_tables(output / "labels") == read_tables(calm / "labels")
    assert not list((output / "labels").glob(".*new"))
    weights = [load_file(run / "model/model.safetensors") for run in (calm, output)]
    assert largest_difference(*weights) == 0
    losses = [[entry["loss"] for entry in read_log(run)] for run in (calm, output)]
    assert losses[0] == losses[1]


@slow
def test_two_real_processes(world, tmp_path):
    """torchrun with gloo: the same labels as one process, and the same first steps."""
    train_student(
        world, tmp_path / "one", "--dropout", "0", "--batch-size", "16", teacher="teacher"
    )
    flags = ["--unlabeled", str(world / "unlabeled.jsonl"), "--num-unlabeled", "60", *PASS, *TRAIN]
    models = ["--teacher", str(world / "teacher"), "--student", str(world / "student")]
    script = tmp_path / "run.py"
    start = "import distill; distill.SHARD_ROWS = 16; distill.main()"
    script.write_text(f"import sys; sys.path.insert(0, {str(ROOT)!r}); {start}")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(random.randint(20000, 60000)), str(script)]
    output = ["--output", str(tmp_path / "two"), "--dropout", "0", "--batch-size", "16"]
    done = subprocess.run(
        [*launch, *models, *flags, *output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_tables(tmp_path / "two" / "labels") == read_tables(tmp_path / "one" / "labels")
    for one, two in zip(*(read_log(tmp_path / n)[:3] for n in ("one", "two")), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


def test_a_copy_alone_runs(world, tmp_path):
    """The docstring's Copy line: distill.py alone, in an empty folder, by its command line."""
    shutil.copy(ROOT / "distill.py", tmp_path)
    flags = ["--unlabeled", str(world / "unlabeled.jsonl"), "--num-unlabeled", "60", *PASS, *TRAIN]
    models = ["--teacher", str(world / "labels"), "--student", str(world / "student")]
    done = subprocess.run(
        [sys.executable, "distill.py", "--output", "run", *models, *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


# --- labels of another framework ---------------------------------------------------------------


def export_labels(world, path, how="ids", count=60):
    """The world's labels as another framework would give them: natural logarithms at T = 1."""
    labels, tokenizer = open_labels(world / "labels"), distill.load_parts(f"{world}/student")[1]
    rows = []
    for i, source in enumerate(labels.read("source")[:count]):
        row, near = labels[i], labels[i]["logits"].astype(float)
        total = np.logaddexp(np.logaddexp.reduce(near, 1), row["rest"][:, 0])
        rows.append({"source": source, "target": labels.read("target")[i]})
        rows[-1]["logprobs"] = (near - total[:, None]).tolist()
        rows[-1]["target_ids"] = row["labels"].tolist()
        rows[-1][how] = row["ids"].tolist()
        if how == "tokens":
            rows[-1][how] = [tokenizer.convert_ids_to_tokens(ids) for ids in rows[-1][how]]
    if path.suffix == ".parquet":
        pa.parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def import_labels(world, path, labels, *flags):
    models = ["--student", str(world / "student"), "--labels", str(labels)]
    imports.main([str(path), *models, *PASS[:6], *flags])


@pytest.mark.parametrize(
    ("name", "how"), [("l.jsonl", "ids"), ("l.jsonl", "tokens"), ("l.parquet", "ids")]
)
def test_labels_come_back_from_another_frameworks_file(world, tmp_path, name, how):
    export_labels(world, tmp_path / name, how)
    for _ in range(2):  # again is the same
        import_labels(world, tmp_path / name, tmp_path / "labels")
    ours, theirs = open_labels(world / "labels"), open_labels(tmp_path / "labels")
    assert len(theirs) == 60 and len(read_tables(tmp_path / "labels")) == 4
    for column in ("source", "target", "cut_target"):
        assert theirs.read(column) == ours.read(column)
    for i in range(60):
        for column in ("input_ids", "labels", "ids"):
            assert np.array_equal(theirs[i][column], ours[i][column])
        assert np.allclose(theirs[i]["logits"], ours[i]["logits"], atol=2e-3)
        assert np.allclose(theirs[i]["rest"][:, 0], ours[i]["rest"][:, 0], atol=1e-4)
    mass = [labels.summarise()["residual"][1.0] for labels in (ours, theirs)]
    assert mass[1] == pytest.approx(mass[0], rel=1e-4)


def test_a_student_learns_from_imported_labels_as_from_ours(world, tmp_path):
    export_labels(world, tmp_path / "l.jsonl")
    import_labels(world, tmp_path / "l.jsonl", tmp_path / "labels")
    flags = ["--student", str(world / "student"), "--temperature", "1", *PASS[:6], *TRAIN]
    distill.main(
        ["--teacher", str(tmp_path / "labels"), "--output", str(tmp_path / "theirs"), *flags]
    )
    train_student(world, tmp_path / "ours", "--temperature", "1", "--seed", "0")
    losses = [[log["loss"] for log in read_log(tmp_path / run)] for run in ("ours", "theirs")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    with fails("kept for temperatures 1.0, not 2.0"):
        other = ["--teacher", str(tmp_path / "labels"), "--output", str(tmp_path / "x")]
        distill.main([*other, *flags[:2], *PASS[:6]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"logprobs": None}, "line 3: "),
        ({"logprobs": [[-0.1]]}, "line 3: ids and logprobs are no lists of the same k"),
        ({"logprobs": "x"}, "line 3: could not convert"),
        ({"ids": None}, "line 3: no field 'tokens'"),
        ({"ids": [[5] * 8]}, "line 3: ids and logprobs|line 3: not 8 different ids"),
        ({"target_ids": [1] * 40}, "line 3: 40 tokens in target"),
        ({"source": 5}, "line 3: "),
        ({"source": " "}, "line 3: an empty source"),
        ({"tokens": [["w1", "nosuch"]], "ids": None}, "line 3: tokens: 'nosuch' is not in the"),
    ],
)
def test_an_imported_row_at_fault_is_named(world, tmp_path, change, said):
    rows = export_labels(world, tmp_path / "l.jsonl", count=5)
    rows[2] |= change
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with fails(f"l.jsonl {said}"):
        import_labels(world, tmp_path / "l.jsonl", tmp_path / "labels")
    assert not (tmp_path / "labels" / "labels.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--classes", "a"], "two names or more"),
        (["--classes", "a", "a"], "each once"),
        (["--max-target-length", "1"], "--max-target-length 1: not within"),
        (["--unknown"], "--unknown"),
    ],
)
def test_wrong_flags_of_an_import_exit_2(world, tmp_path, capsys, flags, said):
    export_labels(world, tmp_path / "l.jsonl", count=5)
    with pytest.raises(SystemExit) as stop:
        import_labels(world, tmp_path / "l.jsonl", tmp_path / "labels", *flags)
    assert stop.value.code == 2 and said in capsys.readouterr().err
    with fails("nosuch.jsonl: no such file"):
        import_labels(world, tmp_path / "nosuch.jsonl", tmp_path / "labels")
    assert not (tmp_path / "labels").exists()


def test_logprobs_that_are_none_are_refused(world, tmp_path):
    for logprobs, said in (([[3.0, -1.0]], "natural logarithms"), ([[-0.1, -0.2]], "add to 1")):
        row = {"source": "a", "target_ids": [1], "ids": [[1, 5]], "logprobs": logprobs}
        (tmp_path / "l.jsonl").write_text(json.dumps(row))
        with fails(f"line 1: .*{said}"):
            import_labels(world, tmp_path / "l.jsonl", tmp_path / "labels")
        (tmp_path / "l.jsonl").write_text(json.dumps({**row, "ids": [[1, 500]]}))
        with fails("vocabulary of 63"):
            import_labels(world, tmp_path / "l.jsonl", tmp_path / "labels")


# --- an encoder as the student -----------------------------------------------------------------

CLASSES = ["Supporting", "Refuting", "Irrelevant", "Discussing", "Querying"]  # two never occur
TOLD = {"w7": "Supporting", "w8": "Refuting", "w9": "Querying"}


def save_encoder(folder, words):
    """A tiny BERT as the hub serves one, without a head, with a vocabulary of its own."""
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(words)
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=len(tokenizer), intermediate_size=32, initializer_range=0.2, **size
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_classes(path, count, seed):
    """Rows whose class is told by one word among others."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        word = list(TOLD)[i % 3]
        source = rng.choices(WORDS[10:], k=rng.randint(1, 5))
        source.insert(rng.randint(0, len(source)), word)
        rows.append({"source": " ".join(source), "target": TOLD[word]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """A teacher that tells the classes, fine-tuned on labels, and what an encoder learns from."""
    import train_small

    folder = tmp_path_factory.mktemp("classes")
    save_model(folder / "t5", 3, [*WORDS, *CLASSES], d_model=32, factor=1.0, ending=1.0)
    save_encoder(folder / "bert", WORDS[::-1])
    for name, count in (("train", 120), ("unlabeled", 240), ("test", 60)):
        write_classes(folder / f"{name}.jsonl", count, name)
    flags = (
        "--max-steps 150 --batch-size 16 --learning-rate 1e-2 --dropout 0 --max-source-length 12"
    )
    files = ["--model", folder / "t5", "--train", folder / "train.jsonl", "--output", folder / "t"]
    train_small.main([*map(str, files), *flags.split(), "--max-target-length", "8"])
    return folder


def train_encoder(folder, output, *flags):
    words = ["--teacher", folder / "t" / "model", "--student", folder / "bert", "--output", output]
    words += ["--unlabeled", folder / "unlabeled.jsonl", "--labels", folder / "labels"]
    words += ["--classes", *CLASSES, "--max-source-length", 12, "--max-target-length", 8]
    words += ["--max-steps", 120, "--learning-rate", 1e-2, "--batch-size", 16, *flags]
    distill.main([str(word) for word in words])
    return json.loads((output / "training.json").read_text())


def test_an_encoder_learns_its_teachers_scores_of_the_classes(classes, tmp_path, capsys):
    import evaluate

    record = train_encoder(classes, tmp_path / "run", "--strategy", "dist")
    assert (record["unlabeled"], record["steps"], record["strategy"]) == (240, 120, "dist")
    assert record["seconds"]["teacher_pass"] > 0 and record["teacher"]["key"]["classes"] == CLASSES
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert list(config["id2label"].values()) == CLASSES
    files = ["--model", str(tmp_path / "run" / "model"), "--data", str(classes / "test.jsonl")]
    evaluate.main(["--task", "stanceosaurus", *files, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["score"] > 90 and result["settings"]["prefix"] == ""
    stamp = {path: path.stat().st_mtime_ns for path in (classes / "labels").glob("*.arrow")}
    other = train_encoder(classes, tmp_path / "other", "--temperature", "1")
    assert other["train_loss"] != record["train_loss"]
    assert {p: p.stat().st_mtime_ns for p in (classes / "labels").glob("*.arrow")} == stamp


def test_scores_are_those_of_each_class_name_forced(classes):
    """Against the teacher row by row: the summed log-probabilities of the names' tokens."""
    key = json.loads((classes / "labels" / "labels.json").read_text())["key"]
    tables, damaged = distill.open_shards(classes / "labels", key)
    labels = distill.Labels(tables, 20, key)
    teacher = load_model(classes / "t" / "model")
    _, tokenizer = distill.load_parts(str(classes / "t5"))
    assert not damaged
    for source, scores, target in zip(
        *(labels.read(name) for name in ("source", "logprobs", "target")), strict=True
    ):
        inputs, exact = tokenizer(source, return_tensors="pt"), []
        for name in CLASSES:
            ids = tokenizer(name, return_tensors="pt").input_ids
            with torch.no_grad():  # its loss is the mean over the tokens
                exact.append(-teacher(**inputs, labels=ids).loss.item() * ids.shape[1])
        exact = torch.tensor(exact).log_softmax(0)
        assert np.allclose(scores, exact, atol=1e-4)
        assert np.exp(scores).sum() == pytest.approx(1, abs=1e-5)
        assert target == CLASSES[exact.argmax()]


def test_scores_of_classes_can_be_imported(classes, tmp_path):
    key = json.loads((classes / "labels" / "labels.json").read_text())["key"]
    labels = distill.Labels(distill.open_shards(classes / "labels", key)[0], 60, key)
    rows = zip(labels.read("source"), labels.read("logprobs"), strict=True)
    text = "".join(json.dumps({"source": s, "logprobs": p}) + "\n" for s, p in rows)
    (tmp_path / "l.jsonl").write_text(text)
    flags = ["--classes", *CLASSES, "--student", str(classes / "bert")]
    folder = ["--labels", str(tmp_path / "labels")]
    imports.main([str(tmp_path / "l.jsonl"), *folder, *flags])
    run = ["--teacher", str(tmp_path / "labels"), "--output", str(tmp_path / "run")]
    distill.main([*run, *flags, "--max-steps", "2", "--logging-steps", "1"])
    assert read_log(tmp_path / "run")[-1]["loss"] > 0
    for text, said in {
        b'{"source": "a", "logprobs": [0, -1]}\n': "line 1: logprobs: not 5 numbers",
        b'{"source": 5, "logprobs": [0, -1]}\n': "line 1: not as `Reads` in --help has a row",
        b"5\n": "line 1: not as `Reads` in --help has a row",
        b"[" * 50_000: "line 1: maximum recursion depth",
        b"\xff\xfe{\x00": "l.jsonl after line 0: not UTF-8",
    }.items():
        (tmp_path / "l.jsonl").write_bytes(text)
        with fails(said):
            imports.main([str(tmp_path / "l.jsonl"), *flags, *folder[:1], str(tmp_path / "x")])


def test_encoders_and_classes_belong_together(world, classes, tmp_path):
    with fails("an encoder only tells classes; name them by --classes"):
        train_student(world, tmp_path / "run", student=str(classes / "bert"))
    with fails("holds scores of classes, for an encoder"):
        train_encoder(classes, tmp_path / "run", "--student", str(classes / "t5"))
    with fails("the teacher is a T5"):
        make_labels(world, tmp_path / "labels", teacher=str(classes / "bert"))
    with fails("two of them are the same tokens"):
        flags = ["--classes", "Supporting", "unknown", "also"]
        make_labels(classes, tmp_path / "labels", flags=flags, teacher="t5")
