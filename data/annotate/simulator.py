"""A simulated LLM: gold answers, wrong at a stated rate, as an OpenAI-compatible server gives them.

It stands in for the GPT-3.5 of section 5 where there is no key; it is no language model.
"""

import contextlib
import json
import math
import random
import re

from data.annotate.answers import NOTHING
from data.annotate.prompts import estimate_tokens
from data.files import UserError
from data.spans import make_brackets, split_entities


def count_tokens(text):
    """Whole tokens of `text`, as they are estimated."""
    return math.ceil(sum(map(estimate_tokens, text.split("\n\n"))))


def cut_text(text, limit):
    """The start of `text`, in whole words, that is at most `limit` tokens long."""
    words = re.findall(r"\s*\S+", text)
    while words and count_tokens("".join(words)) > limit:
        words.pop()
    return "".join(words)


class Annotator:
    """Gold answers by source; 1 - accuracy of the decisions are wrong, the same ones each time.

    A decision is a label: one per item for classes, one per entity for entities. For text tasks
    it is the whole answer, and the wrong one is the gold answer of another source. Used in place
    of a Client, in this process; `rows` have source and target.
    """

    url = "simulated"

    def __init__(self, rows, metric, labels, accuracy, seed=0):
        self.gold = {}
        for row in rows:
            self.gold.setdefault(" ".join(row["source"].split()), row["target"])
        self.targets = sorted(set(self.gold.values()))
        self.metric, self.labels, self.accuracy, self.seed = metric, labels, accuracy, seed
        self.brackets, self.replies = make_brackets(labels), 0
        self.api = contextlib.nullcontext()  # what a Client closes

    async def ask(self, body, timeout):
        return json.dumps(self.complete(body))

    def answer(self, source):
        if source not in self.gold:
            raise UserError(f"--gold: no answer for the input {source[:60]!r}")
        target, rng = self.gold[source], random.Random(f"{self.seed} {source}")
        if self.metric != "entities":
            return self.corrupt(target, self.labels or self.targets, rng)
        pairs, _ = split_entities(target, self.brackets)
        said = (f"{text} [{self.corrupt(label, self.labels, rng)}]" for text, label in pairs)
        return " ".join(said) or NOTHING

    def corrupt(self, right, choices, rng):
        wrong = [choice for choice in choices if choice != right]
        return rng.choice(wrong) if wrong and rng.random() >= self.accuracy else right

    def complete(self, body):
        """The reply to one request body, with the tokens that it takes."""
        chat = "messages" in body
        text = "\n".join(m["content"] for m in body["messages"]) if chat else body["prompt"]
        source = text.rpartition("\nInput: ")[2].rpartition("\nOutput:")[0]
        answer = self.answer(" ".join(source.split()))
        shown = cut_text(answer, body.get("max_completion_tokens") or body.get("max_tokens", 16))
        choice = {"index": 0, "finish_reason": "stop" if shown == answer else "length"}
        choice |= {"message": {"role": "assistant", "content": shown}} if chat else {"text": shown}
        usage = {"prompt_tokens": count_tokens(text) + 4 * len(body.get("messages", ()))}
        usage |= {"completion_tokens": count_tokens(shown)}
        usage["prompt_tokens_details"] = {"cached_tokens": 0}
        self.replies += 1
        kind = "chat.completion" if chat else "text_completion"
        head = {"id": f"sim-{self.replies}", "object": kind, "model": body["model"]}
        return {**head, "choices": [choice], "usage": usage}
