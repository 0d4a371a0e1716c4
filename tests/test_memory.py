"""costs.py memory: sizes from configs, bytes of activations as counted, the plan that is chosen."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import costs
from data.costs import memory

ROOT = Path(__file__).resolve().parents[1]
CARDS = memory.read_cards()
WLP = memory.Work((128, 128), (26, 49), 3140, 32, 0.4)
PLANS = 'memory --gpus "1x80 4x48 8x40 1x24 1x16 1xT4"'


def run(*flags):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        costs.main(["memory", *map(str, flags)])
    return out.getvalue()


def make_config(width, hidden, heads, blocks, head_width=64):
    return T5Config(
        d_model=width,
        d_ff=hidden,
        num_heads=heads,
        d_kv=head_width,
        num_layers=blocks,
        vocab_size=32128 if width > 64 else 100,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )


def make_model(config):
    """On the meta device, with a head of its own, as T5 v1.1 has."""
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    return model


def test_sizes_come_from_configs(tmp_path):
    millions = {"small": 77, "base": 248, "large": 783, "xl": 2850, "xxl": 11135}
    for size, count in millions.items():
        shape = memory.read_shape(f"google/t5-v1_1-{size}")
        assert round(shape.count_weights()[-1] / 1e6) == count
        assert shape == memory.read_shape(f"google/flan-t5-{size}")
    assert memory.SIZES["xxl"].count_weights()[-1] == 11_135_332_352  # by hand from its config
    assert memory.read_shape("google/t5-xl-lm-adapt") == memory.SIZES["xl"]
    config = make_config(64, 96, 2, 3, 16)
    config.save_pretrained(tmp_path)
    weights = memory.read_shape(str(tmp_path)).count_weights()[-1]
    assert weights == sum(w.numel() for w in make_model(config).parameters())
    for bad in ("google/t5-large", "google/t5-v1_1-huge", str(tmp_path / "none")):
        with pytest.raises(memory.UserError, match="no folder with a config"):
            memory.read_shape(bad)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(memory.UserError, match="no 'd_model', so no T5"):
        memory.read_shape(str(tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_real_forward_pass_keeps_as_much_as_planned(dtype):
    """Both kinds of block at sizes that tell the terms apart; what is shared counts once."""
    kept = []
    for blocks in ((1, 1), (2, 1), (1, 2)):
        torch.manual_seed(0)
        config = make_config(48, 112, 3, 1, 24)
        config.num_layers, config.num_decoder_layers, config.use_cache = *blocks, False
        model = T5ForConditionalGeneration(config).to(dtype).train()
        for module in model.modules():  # as train_teacher.py has it
            if type(getattr(module, "act", None)).__name__ == "NewGELUActivation":
                module.act = torch.nn.GELU(approximate="tanh")
        own = {w.untyped_storage().data_ptr() for w in model.parameters()}
        saved, alive = {}, []

        def count(tensor, own=own, saved=saved, alive=alive):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                saved[storage.data_ptr()] = storage.nbytes()
                alive.append(tensor)  # or the address of a freed one could come again
            return tensor

        source, target = torch.randint(3, 99, (8, 20)), torch.randint(3, 99, (8, 28))
        mask = torch.ones_like(source)
        mask[0, 9:] = 0
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(input_ids=source, attention_mask=mask, decoder_input_ids=target)
        kept.append(sum(saved.values()) / 8)
    one, encoder, decoder = kept
    shape = memory.Shape(48, 112, 3, 1, 1, 24, 100)
    planned = shape.count_kept(20, 28, dtype.itemsize)[:2]
    assert planned == pytest.approx((encoder - one, decoder - one), rel=0.05)


@pytest.mark.parametrize(
    ("size", "spec", "way", "cards", "ddp_fits"),
    [
        ("xxl", "1x80", "bf16", 1, False),  # DDP's buckets: 90.5 GiB
        ("xxl", "1xH100-PCIe", "bf16", 1, False),
        ("xxl", "8xH100-80GB", "bf16", 1, False),  # not fp32 over all, at six times the dollars
        ("xxl", "4x48", "bf16", 2, False),
        ("xxl", "8x40", "bf16", 2, False),
        ("xxl", "1x24", "lora", 1, True),
        ("xxl", "1x16", None, None, None),
        ("xxl", "1xT4", None, None, None),
        ("xl", "1xA40", "bf16", 1, True),  # fp32 would crawl at 2 rows a pass
        ("xl", "1xRTX4090", "bf16", 1, False),
        ("large", "1xRTX A4000", "bf16", 1, True),
        ("large", "1xT4", "fp32", 1, False),
        ("base", "1xT4", "fp32", 1, True),
    ],
)
def test_the_cheapest_plan_that_fits_is_chosen(size, spec, way, cards, ddp_fits):
    count, card = memory.find_cards(spec, CARDS)
    ways = memory.BYTES if card.bf16 else ["fp32"]
    plans = [memory.plan_way(memory.SIZES[size], card, count, each, WLP) for each in ways]
    chosen = memory.choose_plan(plans)
    if way is None:
        assert chosen is None
        return
    assert (chosen.way, chosen.cards) == (way, cards) and chosen.most <= card.gib
    if cards == 1:
        assert (chosen.ddp <= card.gib) == ddp_fits
    others = [p for p in plans if p.most <= card.gib and p.way != "lora"]
    assert all(chosen.hours * chosen.cards <= p.hours * p.cards for p in others)


def test_memory_by_hand():
    """XXL: 16, 6 and 2 bytes a weight; what accelerate's balanced map gives a card is no more."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    xxl, weights = memory.SIZES["xxl"], 11_135_332_352
    _, card = memory.find_cards("1x80", CARDS)
    for way, each in (("bf16", 6), ("lora", 2)):
        plan = memory.make_plan(xxl, card, way, 1, 32, True, WLP)
        adapters = 16 * xxl.count_adapters() if way == "lora" else 0
        assert plan.model == pytest.approx((each * weights + adapters) / 2**30)
        assert plan.ram == pytest.approx(4 * weights / 1e9)  # the hub's one file
    _, old = memory.find_cards("1xT4", CARDS)
    assert memory.make_plan(xxl, old, "fp32", 1, 1, True, WLP).model == pytest.approx(
        16 * weights / 2**30
    )
    assert memory.make_plan(xxl, card, "fp32", 1, 1, True, WLP).ram == pytest.approx(
        8 * weights / 1e9
    )  # to read AdamW's moments again
    model = make_model(make_config(4096, 10240, 64, 24))
    for cards in (2, 4, 8):
        some = {"no_split_module_classes": ["T5Block"], "dtype": torch.float32}
        room = get_balanced_memory(model, max_memory=dict.fromkeys(range(cards), 2**36), **some)
        places = infer_auto_device_map(model, max_memory=room, **some)
        shares = dict.fromkeys(range(cards), 0)
        for name, weight in model.named_parameters():
            place = next(p for key, p in places.items() if f"{name}.".startswith(f"{key}."))
            shares[place] += 16 * weight.numel() / 2**30
        plan = memory.make_plan(xxl, old, "fp32", cards, 1, True, WLP)
        assert max(shares.values()) <= plan.most - memory.RESERVE, cards


def test_hours_by_hand():
    _, card = memory.find_cards("1xH100-80GB", CARDS)
    work = memory.Work((128, 128), (128, 128), 3140, 32, 0.5)
    plan = memory.make_plan(memory.SIZES["xxl"], card, "bf16", 1, 32, True, work)
    flops = 4 / 3 * 6 * 128 * 32 * 11.004e9  # recomputed; all but the input embeddings
    hours = 3140 * (flops / (0.5 * 989e12) + 12 * 11.135e9 / 3.35e12) / 3600
    assert plan.hours == pytest.approx(hours, rel=0.001)
    dear = run("--gpus", "1xH100-80GB", "--gpu-usd-per-hour", 10)
    cheap = run("--gpus", "1xH100-80GB", "--gpu-usd-per-hour", 1)
    assert re.search(r"\$2\.7\d", dear) and "$0.28" in cheap


def test_kept_plans_are_those_of_the_command():
    flags = [PLANS.split('"')[1], "1x24 1x16 1xT4"]
    assert (ROOT / "data/results/memory-plans.txt").read_text() == run("--gpus", flags[0])
    middle = " ".join(f"google/t5-v1_1-{size}" for size in ("xl", "large", "base"))
    text = run("--scale", "middle", "--gpus", flags[1], "--model", middle)
    assert (ROOT / "data/results/memory-plans-middle.txt").read_text() == text


def test_faults_are_named(tmp_path):
    for flags, fault in (
        (["--gpus", "2xTOASTER"], "--gpus 2xTOASTER: say COUNTxCARD"),
        (["--gpus", "99999xA40"], "--gpus 99999xA40: plans are for at most 64 cards"),
        (["--gpus", ""], "say COUNTxCARD"),
        (["--gpus", "0x80"], "--gpus 0x80: '0' is not a whole number"),
        (["--gpus", "1x80", "--labels", "many"], "--labels"),
        (["--gpus", "1x80", "--task", "none"], "unknown task"),
        (["--gpus", "1x80", "--scale", "none"], "unknown scale"),
        (["--gpus", "1x80", "--utilisation", "0"], "--utilisation"),
        (["--gpus", "1x80", "--utilisation", "40"], "--utilisation 40: a share of the peak"),
    ):
        with pytest.raises(memory.UserError, match=fault):
            run(*flags)
    assert json.dumps(memory.find_cards("2x141", CARDS)[1].name) == '"H200"'


@pytest.mark.parametrize(
    ("numbers", "fault"),
    [
        ("eighty,149.7,74.8,0.696", "gib: 'eighty' is not a number"),
        ("44.4,1497 TF,74.8,0.696", "bf16_tflops: '1497 TF' is not a number"),
        ("44.4,149.7,,0.696", "fp32_tflops: a number above 0 is needed"),
        ("44.4,149.7,74.8,", "tb_per_s: a number above 0 is needed"),
    ],
)
def test_a_card_with_odd_numbers_is_named_by_its_line(tmp_path, numbers, fault):
    text = (ROOT / "data/prices.csv").read_text().replace("44.4,149.7,74.8,0.696", numbers)
    path = tmp_path / "prices.csv"
    path.write_text(text)
    with pytest.raises(memory.UserError, match=rf"prices.csv line \d+: {fault}"):
        run("--gpus", "1xA40", "--prices", str(path))


@pytest.mark.parametrize(
    ("card", "rows"), [("H100-80GB", 256), ("RTX-4090", 60), ("RTX-3090", 64), ("T4", 1)]
)
def test_a_plan_decodes_as_many_rows_as_the_card_holds(card, rows):
    """T5-XXL: 20.7 GiB in bf16, and 24 x 2 x 71 x 4,096 x 2 bytes a row. A T4 is full."""
    (card,) = [each for each in CARDS if each.name == card]
    shape = memory.read_shape("google/t5-v1_1-xxl")
    assert round(memory.count_decoded(shape, card, (28, 43))) == rows
