"""Prompts for a task and what their answers say: instruction, examples, input (Appendix E).

Reads:  nothing; the task's entry is passed in
Writes: nothing
Paper:  section 5 and Appendix E
"""

import hashlib
import json
import math
import random
import re
import threading
from contextlib import suppress
from functools import partial

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
WORDS = re.compile(r"([^\W\d_]+)|(\d{1,3}|\n+|_)|([^\w\s]+)")


class Prompter:
    """The request of each source: instruction, examples, the source last (Appendix E)."""

    def __init__(self, args, task, pool):
        self.args, self.pool = args, pool
        self.labels, self.metric = list(task.labels), task.metric
        names = "|".join(map(re.escape, sorted(self.labels, key=len, reverse=True)))
        self.entity = re.compile(rf"\s*(.*?)\s*\[({names})\]", re.IGNORECASE | re.DOTALL)
        self.instruction = (task.instruction or GENERIC[self.metric]).replace(
            "{labels}", "{" + ", ".join(self.labels) + "}"
        )
        self.fixed = random.Random(f"{args.seed} fixed").sample(pool, len(pool))
        self.encode, self.tokenizer = load_tokenizer(args)
        self.known = {}  # tokens of a part of a prompt

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
        parts = [f"{self.instruction}\n{form}".strip()]
        for row in self.draw_examples(source, fixed or self.args.fixed_examples):
            texts = (" ".join(row[key].split()) for key in ("source", "target"))
            parts.append("Input: {}\nOutput: {}".format(*texts))
        return [*parts, f"Input: {' '.join(source.split())}\nOutput:"]

    def write_request(self, source, structured=False):
        """The body of one call, as it is sent."""
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

    def make_call(self, name, source):
        """The Call of one source; `name` is for messages."""
        body = json.dumps([self.args.structured, self.write_request(source)], sort_keys=True)
        parts = self.write_parts(source)
        tokens = sum(map(self.count_tokens, parts)) + 8
        # No byte-level tokenizer makes more tokens than there are bytes. A count by the model's own
        # can be off by the seams between parts and what the chat format adds.
        most = tokens if self.encode else len("".join(parts).encode())
        most += 64 + 4 * len(parts)
        if self.args.structured != "off":
            most += len(json.dumps(self.make_schema()))
        return Call(
            hashlib.sha256(body.encode()).hexdigest()[:32],
            name,
            tokens,
            [math.ceil(most), 0, self.args.max_tokens],
            lambda structured: self.write_request(source, structured),
        )

    def count_tokens(self, part):
        """Tokens of `part`: by tiktoken, or an estimate that follows cl100k_base within 3%."""
        if part not in self.known:
            self.known[part] = len(self.encode(part)) if self.encode else estimate_tokens(part)
        return self.known[part]

    def make_schema(self):
        """The JSON schema of an answer, with the task's label set."""
        label = {"type": "string", "enum": self.labels}
        fields = {"label": label}
        if self.metric == "entities":
            entity = make_object({"text": {"type": "string"}, "label": label})
            fields = {"entities": {"type": "array", "items": entity}}
        schema = {"name": "annotation", "strict": True, "schema": make_object(fields)}
        return {"type": "json_schema", "json_schema": schema}

    # --- answers ---

    def parse(self, text, source, finish="stop"):
        """(target, None) of an answer, or (None, why it is none): it is never made into a class."""
        if finish in ("refusal", "too long"):
            return None, finish
        plain = self.read_json(text) if self.labels else text
        if plain is None:
            return None, "unparseable"
        if not plain.strip():
            return None, "empty"
        if finish == "length" and self.metric != "classes":
            return None, "truncated"
        parse = {"classes": self.parse_class, "entities": self.parse_entities}.get(self.metric)
        target = parse(plain, source) if parse else " ".join(plain.split())
        if REFUSAL.match(plain) and (target is None or not parse):
            return None, "refusal"
        return (target, None) if target else (None, "unparseable")

    def read_json(self, text):
        """The plain form of an answer in JSON; any other text as it is; None if it is neither."""
        try:
            value = json.loads(re.sub(r"^```(json)?|```$", "", text.strip()))
            if not isinstance(value, dict):
                return text
            if "entities" in value:
                return " ".join(f"{pair['text']} [{pair['label']}]" for pair in value["entities"])
            return str(value["label"])
        except (KeyError, TypeError):
            return None
        except ValueError:
            return text

    def parse_class(self, text, source):
        word = text.strip().splitlines()[0].removeprefix("Output:").strip(" \t\"'`*.")
        return {label.casefold(): label for label in self.labels}.get(word.casefold())

    def parse_entities(self, text, source):
        """Entity [Label] ..., whole and with known labels only, or None."""
        names = {label.casefold(): label for label in self.labels}
        text = " ".join(text.strip().removeprefix("Output:").split())
        rest = self.entity.sub("", text).strip(" .")
        pairs = [(entity, names[name.casefold()]) for entity, name in self.entity.findall(text)]
        source = " ".join(source.split())  # "[viral]" may be text; "[Food]" is an unknown label
        odd = any("[" in entity and entity not in source for entity, _ in pairs)
        if rest or odd or not all(entity for entity, _ in pairs):
            return None
        return " ".join(f"{entity} [{label}]" for entity, label in pairs)


REFUSAL = re.compile(
    r"\W*(I['’]m sorry|I am sorry|Sorry,|I can(no|['’])t|I am unable|I['’]m unable|As an AI)", re.I
)


def make_object(fields):
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        "additionalProperties": False,
    }


def estimate_tokens(text):
    """Estimated tokens of `text`: words, more for long ones and capitals, symbols, rare letters."""
    count = len(text.encode()) - len(text)
    for word, number, symbols in WORDS.findall(text):
        count += 1 if number else 1.3 if symbols else 0.88 + 0.16 * max(0, len(word) - 6)
        count += 0.1 * len(word) if len(word) > 1 and word.isupper() else 0
    return count


def load_tokenizer(args):
    """(function from text to token ids, its name); None where only an estimate can be had.

    tiktoken fetches a vocabulary on first use, and knows OpenAI's only.
    """
    found = []

    def load():
        with suppress(Exception):  # no package, no network, no such model: estimate instead
            import tiktoken

            found.append(tiktoken.encoding_for_model(args.model))

    if args.tiktoken and not args.base_url and args.simulate is None:
        thread = threading.Thread(target=load, daemon=True)
        thread.start()
        thread.join(15)  # seconds: behind some firewalls a download hangs
    if not found:
        return None, "built-in estimate"
    return partial(found[0].encode, disallowed_special=()), f"tiktoken {found[0].name}"
