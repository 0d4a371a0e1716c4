"""What several tests share: a tokenizer of whole words and the mark of the slow tests."""

import os

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS = [f"w{i}" for i in range(60)]
slow = pytest.mark.skipif(not os.environ.get("SLOW"), reason="takes minutes: run with SLOW=1")


def build_word_tokenizer(words=WORDS):
    """A tokenizer with one id a word; ids 0 to 2 are <pad>, </s> and <unk>."""
    pieces = {piece: i for i, piece in enumerate(["<pad>", "</s>", "<unk>", *words])}
    backend = Tokenizer(models.WordLevel(pieces, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def build_char_tokenizer(texts, lacking="", words=()):
    """Characters of `texts` as pieces, with an unknown token for those in `lacking`, and words."""
    from tokenizers import decoders

    letters = sorted(set("".join(texts)) - set(lacking) - {" "})
    pieces = ["<pad>", "</s>", "<unk>", "▁", *letters, *(f"▁{word}" for word in words)]
    scores = [(piece, 0.0 if piece == "▁" else -1.0) for piece in pieces]
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def train_by_heart(folder, pairs, tokenizer, limit=64, prefix=""):
    """Save a tiny T5 that answers each source with its target, cut to `limit` tokens."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    sizes = {"d_model": 32, "d_kv": 16, "num_heads": 4, "d_ff": 128, "num_layers": 1}
    config = T5Config(
        vocab_size=len(tokenizer), **sizes, dropout_rate=0.0, decoder_start_token_id=0
    )
    model = T5ForConditionalGeneration(config)
    sources, targets = zip(*pairs, strict=True)
    kwargs = {"padding": True, "return_tensors": "pt", "return_token_type_ids": False}
    inputs = tokenizer([prefix + source for source in sources], **kwargs)
    labels = tokenizer(list(targets), truncation=True, max_length=limit, **kwargs).input_ids
    labels[labels == 0] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(2000):
        out = model(**inputs, labels=labels)
        optimizer.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        exact = bool(((out.logits.argmax(-1) == labels) | (labels == -100)).all())
        if exact and out.loss.item() < 0.01:
            break
    torch.set_num_threads(threads)
    assert exact, "the tiny model did not learn its rows by heart"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
