"""Prompts for a task: instruction, examples, input (section 5 and Appendix E), and their tokens."""

import functools
import hashlib
import json
import random
import re

from data.annotate.answers import NOTHING
from data.annotate.store import Call

GENERIC = {  # by metric, for a task whose entry has no "instruction"
    "classes": "Classify a given input into one of the following categories: {labels}",
    "entities": "Classify named entities into one of the following categories: {labels}",
    "answers": "Answer a given input with a short text.",
    "paraphrase": "Rewrite a given input in other words with the same meaning.",
}
FORMATS = {  # plain, JSON
    "classes": ("Answer with the category alone.", 'Answer in JSON: {"label": category}'),
    "entities": (
        "Answer with each entity of the input in order, followed by its category in brackets.",
        'Answer in JSON: {"entities": [{"text": entity, "label": category}, ...]}',
    ),
}
EMPTY = f"Answer {NOTHING} where there are no entities.", "The list may be empty."
ESTIMATE = "built-in estimate"  # what tokens are counted by
WORDS = re.compile(r"([^\W\d_]+)|(\d{1,3}|\n+|_)|([^\w\s]+)")


class Prompter:
    """The request of each source: instruction, examples, the source last (Appendix E)."""

    def __init__(self, args, task, pool):
        self.args, self.pool = args, pool
        self.labels, self.metric = list(task.labels), task.metric
        self.instruction = write_instruction(task)
        self.fixed = random.Random(f"{args.seed} fixed").sample(pool, len(pool))

    def draw_examples(self, source, fixed):
        """The examples of one source, by (seed, source) alone; never the source itself."""
        rows = self.fixed
        if not fixed:
            rng = random.Random(f"{self.args.seed} {source}")
            rows = rng.sample(self.pool, min(len(self.pool), self.args.shots + 1))
        return [row for row in rows if row["source"] != source][: self.args.shots]

    def write_parts(self, source, structured=False, fixed=False):
        """The parts of a prompt, to be joined by blank lines: instruction, examples, source."""
        form = FORMATS.get(self.metric, ("", ""))[structured]
        if not all(row["target"].strip() for row in self.pool):
            form = f"{form}\n{EMPTY[structured]}"
        parts = [f"{self.instruction}\n{form}".strip()]
        for row in self.draw_examples(source, fixed or self.args.fixed_examples):
            said, target = (" ".join(row[key].split()) for key in ("source", "target"))
            parts.append(f"Input: {said}\nOutput: {target or NOTHING}")
        return [*parts, f"Input: {' '.join(source.split())}\nOutput:"]

    def write_request(self, source, structured=False):
        """The body of one call, as it is sent. Logprobs change no answer, nor the call's key."""
        asked = {"logprobs": 1 if self.args.endpoint == "completions" else True}
        return self.write_body(source, structured) | (asked if self.args.logprobs else {})

    def write_body(self, source, structured=False):
        instruction, *rest = self.write_parts(source, structured)
        body = {"model": self.args.model, "temperature": self.args.temperature}
        body["max_tokens"] = self.args.max_tokens
        if self.args.endpoint == "completions":
            body |= {"prompt": "\n\n".join([instruction, *rest]), "stop": ["\n"]}
        else:
            body["messages"] = [
                {"role": "system", "content": instruction},
                {"role": "user", "content": "\n\n".join(rest)},
            ]
        if structured:
            body["response_format"] = self.make_schema()
        body |= self.args.extra
        return {key: value for key, value in body.items() if value is not None}

    def show_request(self, source, structured):
        """One whole prompt to read: what the model gets to see, and the fields beside it."""
        body = self.write_request(source, structured)
        parts = [body.pop("prompt")] if "prompt" in body else []
        parts += [f"[{part['role']}]\n{part['content']}" for part in body.pop("messages", [])]
        fields = json.dumps(body, ensure_ascii=False)
        return "\n\n".join([*parts, f"[other fields]\n{fields}"]) + "\n"

    def make_call(self, name, source):
        """The Call of one source; `name` is for messages."""
        body = json.dumps([self.args.structured, self.write_body(source)], sort_keys=True)
        parts = self.write_parts(source)
        tokens = sum(map(estimate_tokens, parts)) + 8
        # No byte-level tokenizer makes more tokens than there are bytes; some are for the seams
        # between parts and what the chat format adds.
        most = len("".join(parts).encode()) + 64 + 4 * len(parts)
        if self.args.structured != "off":
            most += len(json.dumps(self.make_schema()))
        key = hashlib.sha256(body.encode()).hexdigest()[:32]
        return Call(key, name, source, tokens, [most, 0, self.args.max_tokens])

    def make_schema(self):
        label = {"type": "string", "enum": self.labels}
        fields = {"label": label}
        if self.metric == "entities":
            entity = make_object({"text": {"type": "string"}, "label": label})
            fields = {"entities": {"type": "array", "items": entity}}
        schema = {"name": "annotation", "strict": True, "schema": make_object(fields)}
        return {"type": "json_schema", "json_schema": schema}


def write_instruction(task):
    """The instruction with the task's labels and, where its entry has them, their descriptions."""
    labels = "{" + ", ".join(task.labels) + "}"
    text = (task.instruction or GENERIC[task.metric]).replace("{labels}", labels)
    told = task.label_descriptions
    return "\n".join([text, *(f"{label}: {told[label]}" for label in task.labels if label in told)])


def make_object(fields):
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


@functools.cache
def estimate_tokens(text):
    """Estimated tokens of `text`, within 3% of cl100k_base: words, more for long ones and capitals,
    symbols, rare letters."""
    count = len(text.encode()) - len(text)
    for word, number, symbols in WORDS.findall(text):
        count += 1 if number else 1.3 if symbols else 0.88 + 0.16 * max(0, len(word) - 6)
        count += 0.1 * len(word) if len(word) > 1 and word.isupper() else 0
    return count
