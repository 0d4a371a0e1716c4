"""distill.py: the loss by hand and against a dense reference, the labels on disk, whole runs.

Models are random T5s of a few thousand parameters. SLOW=1 adds the tests that take minutes.
"""

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
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[1]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
from tiny import WORDS, build_word_tokenizer, slow  # noqa: E402

import distill  # noqa: E402

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
    make_labels(folder, folder / "labels")
    return folder


PASS = ["--prefix", "do: ", "--max-source-length", "12", "--max-target-length", "10"]
PASS += ["--top-k", "8", "--teacher-batch-size", "8", "--shard-rows", "16", "--seed", "3"]
TRAIN = ["--max-steps", "6", "--learning-rate", "1e-2", "--logging-steps", "1", "--batch-size", "8"]


def make_labels(world, labels, count=60, flags=(), teacher="teacher"):
    """Run the teacher pass alone."""
    unlabeled = ["--unlabeled", str(world / "unlabeled.jsonl"), "--num-unlabeled", str(count)]
    models = ["--teacher", str(world / teacher), "--labels", str(labels)]
    distill.main([*models, "--labels-only", *unlabeled, *PASS, *flags])


def train_student(world, output, *flags, count=60, teacher="labels", student="student"):
    """Run the student half (from the world's labels, unless told otherwise); its record."""
    unlabeled = ["--unlabeled", str(world / "unlabeled.jsonl"), "--num-unlabeled", str(count)]
    models = ["--teacher", str(world / teacher), "--student", str(world / student)]
    distill.main([*models, "--output", str(output), *unlabeled, *PASS, *TRAIN, *flags])
    return json.loads((output / "training.json").read_text())


def open_labels(world, folder, count=60, seed=3, unlabeled="unlabeled.jsonl"):
    """The labels of a folder, opened for the first rows of the world's unlabeled file."""
    sources = distill.Sources(world / unlabeled, count, seed)
    labels = distill.Labels(folder, json.loads((folder / "labels.json").read_text()))
    damaged, missing = labels.load(sources.keys)
    assert not damaged and not len(missing)
    return labels, sources, labels.summary


def read_bytes(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.bin"))}


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
    """Loss and gradient of one batch by the trainer; `longer` adds padding to its targets."""
    labels, _, _ = open_labels(world, world / labels)
    model = distill.load_model(str(world / "student"), dropout_rate=0.0)
    args = distill.parse_args(
        ["--teacher", "x", "--unlabeled", "x", "--output", str(tmp_path), *PASS, *flags]
    )
    released = distill.load_model(str(world / "teacher")) if args.loss == "paper" else None
    collate = distill.Collator(model, labels, args.temperature)
    trainer = distill.Trainer(
        settings=args,
        released=released,
        model=model,
        args=distill.build_arguments(args),
        train_dataset=labels,
        data_collator=collate,
    )
    batch = collate([labels[i] for i in rows])
    if longer:
        pad = torch.nn.functional.pad
        batch["labels"] = pad(batch["labels"], (0, longer), value=-100)
        batch["decoder_input_ids"] = pad(batch["decoder_input_ids"], (0, longer), value=0)
        for name in ("input_ids", "attention_mask"):
            batch[name] = pad(batch[name], (0, longer), value=0)
    count = (batch["labels"] != -100).sum()
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=count)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}, batch


def largest_difference(one, two):
    return max((one[name] - two[name]).abs().max().item() for name in one)


@pytest.mark.parametrize("flags", [(), ("--ce-weight", "0.5"), ("--temperature", "1")])
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
    teacher = distill.load_model(str(world / "teacher")).double()
    student = distill.load_model(str(world / "student")).double().eval()
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
    teacher = distill.load_model(str(world / "teacher")).double()
    student = distill.load_model(str(world / "student"), dropout_rate=0.0).double()
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
            distill.load_model(str(world / name)).double().eval()(**inputs).logits.flatten(0, 1)
            for name in ("student", "teacher")
        ]
    assert loss == pytest.approx(reference(*logits, 2.0).mean().item(), rel=1e-5)


# --- the labels on disk ------------------------------------------------------------------------


def test_labels_are_greedy_and_hold_what_the_teacher_said(world):
    """Against generate() and a teacher-forced forward, row by row, without batches."""
    labels, sources, summary = open_labels(world, world / "labels")
    teacher = distill.load_model(str(world / "teacher"))
    tokenizer = distill.load_tokenizer(str(world / "teacher"))
    mass, count, ends, cut = {1.0: 0.0, 2.0: 0.0}, 0, 0, 0
    for i in range(len(labels)):
        ids, tokens = labels[i]
        text = tokenizer("do: " + sources.read([i])[0]).input_ids
        cut += len(text) > 12
        assert ids.tolist() == (text if len(text) <= 12 else [*text[:11], 1])
        inputs = torch.tensor([ids.tolist()])
        out = teacher.generate(inputs, max_new_tokens=10, do_sample=False, num_beams=1)
        assert tokens["id"].tolist() == out[0, 1:].tolist()
        ends += tokens["id"][-1] == 1
        with torch.no_grad():
            logits = teacher(inputs, decoder_input_ids=out[:, :-1]).logits[0]
        kept = logits.topk(8)
        near = kept.values - kept.values[:, :1]
        assert np.allclose(tokens["top"], kept.values[:, 0], atol=1e-4)
        assert np.allclose(tokens["logits"], near, atol=1e-4, rtol=1e-3)
        for column, t in enumerate((1.0, 2.0)):
            whole = (logits / t).logsumexp(1)  # follows from what is kept, by adding
            ours = torch.tensor(tokens["logits"].astype(np.float32)) / t
            rest = torch.tensor(tokens["rest"][:, column].copy())
            ours = torch.logaddexp(ours.logsumexp(1), rest)
            assert np.allclose(ours + tokens["top"] / t, whole, atol=1e-3)
            mass[t] += (1 - (kept.values.double() / t - whole[:, None]).exp().sum(1)).sum().item()
        count += len(tokens)
    assert 0 < ends < len(labels), "some rows should end and some be cut"
    assert summary["truncated_targets"] == len(labels) - ends
    assert summary["truncated_sources"] == cut > 0
    for t, total in mass.items():
        assert summary["residual"][t] == pytest.approx(total / count, abs=1e-4)


def test_size_on_disk_is_4k_and_14_bytes_a_token(world):
    labels, *_ = open_labels(world, world / "labels")
    assert labels.token.itemsize == 4 * 8 + 14


def test_order_of_rows_and_repeats_do_not_matter(world, tmp_path):
    lines = (world / "unlabeled.jsonl").read_text().splitlines()
    random.Random(1).shuffle(lines)
    (world / "shuffled.jsonl").write_text("\n".join([*lines, *lines, ""]))
    make_labels(world, tmp_path / "labels", 120)
    before = read_bytes(tmp_path / "labels")
    labels, sources, _ = open_labels(world, tmp_path / "labels", 240, 0, "shuffled.jsonl")
    again, others, _ = open_labels(world, tmp_path / "labels", 120)
    tokens = {others.read([i])[0]: again[i][1].tobytes() for i in range(120)}
    assert all(labels[i][1].tobytes() == tokens[sources.read([i])[0]] for i in range(240))
    assert read_bytes(tmp_path / "labels") == before


def test_more_rows_extend_fewer(world, tmp_path, monkeypatch):
    make_labels(world, tmp_path / "labels", 40)
    small = read_bytes(tmp_path / "labels")
    labeled = []
    real = distill.write_shard
    monkeypatch.setattr(distill, "write_shard", lambda *a: labeled.append(len(a[-1])) or real(*a))
    make_labels(world, tmp_path / "labels", 100)
    assert sum(labeled) == 60
    large = read_bytes(tmp_path / "labels")
    assert small.items() <= large.items()
    labeled.clear()
    make_labels(world, tmp_path / "labels", 70)
    assert not labeled


def test_a_continued_pass_writes_the_same_labels(world, tmp_path, monkeypatch):
    make_labels(world, tmp_path / "whole", 100)
    real, done = distill.write_shard, []

    def stop_after_three(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(distill, "write_shard", stop_after_three)
        make_labels(world, tmp_path / "parts", 100)
    assert len(read_bytes(tmp_path / "parts")) == 3
    make_labels(world, tmp_path / "parts", 100)
    assert read_bytes(tmp_path / "parts") == read_bytes(tmp_path / "whole")


def test_two_processes_write_the_same_labels_as_one(world, tmp_path, monkeypatch):
    make_labels(world, tmp_path / "one", 100)

    class Process:
        is_main_process, num_processes, device = True, 2, torch.device("cpu")

        def __init__(self, index):
            self.process_index = index

        def wait_for_everyone(self):
            pass

    counts = []
    for index in (0, 1):  # the second finds the shards of the first missing too, as if at once
        folder = tmp_path / f"two-{index}"
        monkeypatch.setattr(distill, "PartialState", lambda cpu=None, i=index: Process(i))
        with fails("of the rows have no labels"):
            make_labels(world, folder, 100)
        counts.append(len(read_bytes(folder)))
        for file in folder.glob("shard-*"):
            if index:
                shutil.move(file, tmp_path / "two-0" / file.name)
    assert counts == [4, 3]
    assert read_bytes(tmp_path / "two-0") == read_bytes(tmp_path / "one")


@pytest.mark.parametrize("harm", ["flip", "shorten", "remove", "json"])
def test_a_damaged_shard_is_named_and_made_again(world, tmp_path, capsys, harm):
    shutil.copytree(world / "labels", tmp_path / "labels")
    before = read_bytes(tmp_path / "labels")
    path = sorted((tmp_path / "labels").glob("shard-*.bin"))[1]
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif harm == "shorten":
        path.write_bytes(data[:-1])
    elif harm == "remove":
        path.unlink()
    else:
        path.with_suffix(".json").write_text("{")
    with fails("of the rows have no labels"):
        train_student(world, tmp_path / "run", teacher=tmp_path / "labels")
    assert f"{path.name} is damaged" in capsys.readouterr().err
    make_labels(world, tmp_path / "labels")
    assert f"{path.name} is damaged" in capsys.readouterr().err
    assert read_bytes(tmp_path / "labels") == before
    make_labels(world, tmp_path / "labels")
    assert "damaged" not in capsys.readouterr().err


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
        ("--shard-rows", "8"),
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
    assert read_bytes(tmp_path / "together" / "labels") == read_bytes(world / "labels")
    for record in (apart, together):
        assert record["unlabeled"] == 60 and record["steps"] == 6
        assert record["seconds"]["teacher_pass"] > 0
        assert record["teacher"]["key"] == apart["teacher"]["key"]
    assert apart["seconds"]["teacher_pass"] == pytest.approx(
        sum(json.loads(p.read_text())["seconds"] for p in (world / "labels").glob("shard-*.json"))
    )


def test_seconds_of_the_pass_are_those_of_the_rows_used(world):
    whole = open_labels(world, world / "labels", 60)[2]["seconds"]
    part = open_labels(world, world / "labels", 16)[2]["seconds"]  # exactly the first shard
    assert 0 < part < whole


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
    train_student(world, tmp_path / "one", "--batch-size", "16", "--dropout", "0")
    train_student(
        *(world, tmp_path / "four", "--batch-size", "4", "--gradient-accumulation", "4"),
        *("--dropout", "0"),
    )
    for one, four in zip(*(read_log(tmp_path / n)[:3] for n in ("one", "four")), strict=True):
        assert four["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.parametrize("flags", [("--loss", "paper"), ("--ce-weight", "1"), ("--bf16",)])
def test_other_losses_train(world, tmp_path, flags):
    train_student(
        world, tmp_path / "run", "--labels", str(world / "labels"), *flags, teacher="teacher"
    )
    assert all(math.isfinite(entry["loss"]) for entry in read_log(tmp_path / "run"))


# --- refusals ----------------------------------------------------------------------------------


def test_different_vocabularies_are_refused(world, tmp_path):
    save_model(tmp_path / "other", 2, words=[*WORDS[:-1], "another"])
    with fails("differ in vocabulary"):
        train_student(world, tmp_path / "run", student=str(tmp_path / "other"))
    assert not (tmp_path / "run").exists()


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
        ('{"source": "a"}\n', "rows.jsonl: 60 rows asked for, 1 are there"),
        (None, "rows.jsonl: cannot be read"),
    ],
)
def test_bad_rows_are_named(world, tmp_path, lines, match):
    if lines is not None:
        (tmp_path / "rows.jsonl").write_text(lines)
    with fails(match):
        train_student(world, tmp_path / "run", "--unlabeled", str(tmp_path / "rows.jsonl"))


def test_mistakes_get_one_line(world, tmp_path):
    with fails("no labels.json"):
        distill.main(
            [
                "--labels",
                str(tmp_path),
                "--unlabeled",
                str(world / "unlabeled.jsonl"),
                "--output",
                str(tmp_path / "run"),
            ]
        )
    with fails("no such model folder"):
        train_student(world, tmp_path / "run", teacher=str(tmp_path / "none"))
    distill.load_tokenizer(str(world / "student")).save_pretrained(tmp_path / "bare")
    with fails("bare: no T5 model can be loaded"):
        train_student(world, tmp_path / "run", student=str(tmp_path / "bare"))
    with fails("kept for temperatures 1.0 and 2.0, not 3.0"):
        train_student(world, tmp_path / "run", "--temperature", "3")
    with fails("give its model folder"):
        train_student(world, tmp_path / "run", "--loss", "paper")
    with fails("60 of the rows have no labels"):
        train_student(world, tmp_path / "run", count=120)
    with fails(r"holds other labels \(top_k 8 -> 4\)"):
        train_student(world, tmp_path / "run", "--top-k", "4")
    with fails("is a folder of labels itself"):
        train_student(world, tmp_path / "run", "--labels", str(tmp_path / "other"))
    for flags in (["--top-k", "63"], ["--top-k", "-1"]):
        with fails("the vocabulary has 63 ids"):
            make_labels(world, tmp_path / "labels", flags=flags)


def test_a_broken_teacher_is_refused(world, tmp_path):
    model = distill.load_model(str(world / "teacher"))
    model.shared.weight.data[5, 0] = float("nan")
    model.save_pretrained(tmp_path / "broken")
    distill.load_tokenizer(str(world / "teacher")).save_pretrained(tmp_path / "broken")
    with fails("logits are not finite"):
        make_labels(world, tmp_path / "labels", teacher=tmp_path / "broken")


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--teacher", "x"],
        ["--teacher", "x", "--output", "y", "--num-unlabeled", "0"],
        ["--teacher", "x", "--output", "y", "--ce-weight", "2"],
        ["--teacher", "x", "--output", "y", "--temperature", "0"],
        ["--teacher", "x", "--output", "y", "--max-source-length", "0"],
        ["--teacher", "x", "--output", "y", "--loss", "paper", "--ce-weight", "0.5"],
    ],
)
def test_wrong_flags_exit_2(flags):
    with pytest.raises(SystemExit) as stop:
        distill.parse_args(["--unlabeled", "rows.jsonl", *flags])
    assert stop.value.code == 2


# --- killed and resumed ------------------------------------------------------------------------


def run_until(world, output, ready, delay):
    """Distill in a child process; once ready() and `delay` seconds later, SIGKILL. True if hit."""

    def work():
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        train_student(
            *(world, output, "--max-steps", "40", "--save-steps", "5", "--shard-rows", "8"),
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
    shards = len(list((calm / "labels").glob("shard-*.json")))
    hits = []
    for target in sorted(rng.sample(range(shards), kills)):

        def ready(target=target):
            return len(list(output.glob("labels/shard-*.json"))) >= target

        hits.append(run_until(world, output, ready, rng.uniform(0, 0.02)))
        assert not (output / "log.jsonl").exists(), "should have been killed in the teacher pass"
    for target in sorted(rng.sample(range(1, 31), kills)):

        def ready(target=target):
            log = output / "log.jsonl"
            return log.exists() and log.read_text().count("\n") >= target

        hits.append(run_until(world, output, ready, rng.uniform(0, 0.02)))
    assert all(hits)
    assert not run_until(world, output, lambda: False, 0)
    assert read_bytes(output / "labels") == read_bytes(calm / "labels")
    assert not list((output / "labels").glob(".*new"))
    weights = [load_file(run / "model/model.safetensors") for run in (calm, output)]
    assert largest_difference(*weights) == 0
    losses = [[entry["loss"] for entry in read_log(run)] for run in (calm, output)]
    assert losses[0] == losses[1]


def test_a_checkpoint_cut_off_while_written_is_passed_over(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_st'), (15, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert distill.find_checkpoint(tmp_path).name == "checkpoint-5"
    assert distill.find_checkpoint(tmp_path / "none") is None


@slow
def test_two_real_processes(world, tmp_path):
    """torchrun with gloo: the same labels as one process, and the same first steps."""
    train_student(
        world, tmp_path / "one", "--dropout", "0", "--batch-size", "16", teacher="teacher"
    )
    flags = ["--unlabeled", str(world / "unlabeled.jsonl"), "--num-unlabeled", "60", *PASS, *TRAIN]
    models = ["--teacher", str(world / "teacher"), "--student", str(world / "student")]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    launch += ["--master_port", str(random.randint(20000, 60000)), str(ROOT / "distill.py")]
    output = ["--output", str(tmp_path / "two"), "--dropout", "0", "--batch-size", "8"]
    done = subprocess.run(
        [*launch, *models, *flags, *output], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert read_bytes(tmp_path / "two" / "labels") == read_bytes(tmp_path / "one" / "labels")
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
