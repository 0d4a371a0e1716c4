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
