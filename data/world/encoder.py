"""Pre-train the mini encoder, a small BERT, on the unlabeled text of a mini world.

Usage:
    python -m data.world.encoder --region town                   # data/world/models/town-encoder
    python -m data.world.encoder --region lab --steps 20 --output /tmp/encoder      # to try it

Reads:  data/world/town.py or data/world/lab.py; the vocabulary of data/world/models/town-student
        or student.
Writes: OUTPUT: a Hugging Face folder (bf16 safetensors, tokenizer.json, model card);
        work/ beside it: checkpoints, from which a killed run continues.
Paper:  the encoders of Table 10, DistilBERT and BERT Base, come pre-trained and free; this one
        takes BERT's place at mini scale. It was not distilled, so it is no DistilBERT.

BERT's architecture and objective: 15% of the words are to be guessed; 80% of these are masked, 10%
replaced, 10% left. Whole words, as the pieces of a short vocabulary give each other away. There are
no sentence pairs. In the town 85% of the examples mask one salient word instead, as for the town's
T5 models. The student's vocabulary has no [CLS] and no [MASK]; two of its sentinels, which no text
holds, take their places.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
import transformers
from tokenizers import processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast, TrainingArguments

from data.world import town
from data.world.pretrain import TEXT, Progress, measure, name_folder, read_seconds, save

MODELS = Path(__file__).with_name("models")
SALIENT = {"lab": 0, "town": 0.85}  # share of the examples that mask one salient word
MASK, START = "<extra_id_0>", "<extra_id_1>"
SIZE = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 256,
}


def load_vocabulary(folder):
    """The student's tokenizer as an encoder's: a start token, and a mask token."""
    backend = PreTrainedTokenizerFast.from_pretrained(folder).backend_tokenizer
    ids = [(token, backend.token_to_id(token)) for token in (START, "</s>")]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{START} $A </s>", pair=f"{START} $A </s> $B </s>", special_tokens=ids
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        cls_token=START,
        sep_token="</s>",
        mask_token=MASK,
        model_max_length=SIZE["max_position_embeddings"],
    )


class MaskedText(torch.utils.data.Dataset):
    """Example i of pre-training, made on demand from (seed, i): a resumed run sees the same.

    Consecutive examples of a batch have similar lengths: a batch is a window of the sorted text.
    """

    def __init__(self, region, tokenizer, lines, examples, batch_size, seed):
        words = sorted({word for line in lines for word in line.split()})
        encoded = tokenizer(words, add_special_tokens=False).input_ids
        ids = dict(zip(words, encoded, strict=True))
        self.lines = sorted(([ids[word] for word in line.split()] for line in lines), key=measure)
        self.share, salient = SALIENT[region], town.Town().salient
        self.salient = {tuple(ids[word]) for word in salient if word in ids}
        self.pieces = sorted({piece for word in encoded for piece in word})
        self.start, self.end = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.mask = tokenizer.mask_token_id
        self.examples, self.batch_size, self.seed = examples, batch_size, seed

    def __len__(self):
        return self.examples

    def __getitem__(self, index):
        batch = random.Random(f"{self.seed} batch {index // self.batch_size}")
        first = batch.randrange(len(self.lines) - self.batch_size)
        words = self.lines[first + index % self.batch_size]
        rng = random.Random(f"{self.seed} {index}")
        salient = [i for i, word in enumerate(words) if tuple(word) in self.salient]
        if salient and rng.random() < self.share:
            return self.hide(words, {rng.choice(salient): "mask"}, rng)
        asked = rng.sample(range(len(words)), max(1, round(0.15 * len(words))))
        kinds = rng.choices(("mask", "replace", "leave"), (8, 1, 1), k=len(asked))
        return self.hide(words, dict(zip(asked, kinds, strict=True)), rng)

    def hide(self, words, asked, rng):
        """One {"input_ids", "labels"}; `asked` says how each of the words to guess is shown."""
        source, target = [self.start], [-100]
        for i, word in enumerate(words):
            shown = {"mask": [self.mask] * len(word), "leave": word}
            shown["replace"] = rng.choices(self.pieces, k=len(word))
            source += shown[asked.get(i, "leave")]
            target += word if i in asked else [-100] * len(word)
        return {"input_ids": [*source, self.end], "labels": [*target, -100]}


def collate(rows, pad):
    """Pad inputs by `pad` and labels by -100 to the longest row of the batch."""
    longest = max(len(row["input_ids"]) for row in rows)
    batch = {}
    for key, filler in (("input_ids", pad), ("labels", -100)):
        batch[key] = torch.tensor([row[key] + [filler] * (longest - len(row[key])) for row in rows])
    batch["attention_mask"] = (batch["input_ids"] != pad).long()
    return batch


def build_arguments(args, work):
    return TrainingArguments(
        output_dir=str(work),
        max_steps=args.steps,
        per_device_train_batch_size=args.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=args.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=min(200, args.steps // 10),
        adam_beta2=0.98,
        weight_decay=0.01,
        optim="adamw_torch_fused",
        logging_steps=min(100, max(1, args.steps // 5)),
        save_steps=args.save_steps,
        save_total_limit=1,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        seed=args.seed,
    )


class SaveSeconds(transformers.TrainerCallback):
    """CPU seconds so far, those of interrupted runs too, kept beside each checkpoint."""

    def __init__(self, work):
        self.work, self.before, self.start = work, read_seconds(work), time.process_time()

    def count(self):
        return self.before + time.process_time() - self.start

    def on_save(self, args, state, control, **kwargs):
        (self.work / "seconds.json").write_text(json.dumps(self.count()))


def pretrain(args, tokenizer, lines, work):
    """(model, CPU seconds, final loss); continues from the last checkpoint in `work`."""
    torch.manual_seed(args.seed)
    config = BertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **SIZE)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    examples = args.steps * args.batch_size
    trainer = transformers.Trainer(
        model=BertForMaskedLM(config),
        args=build_arguments(args, work),
        train_dataset=MaskedText(
            args.region, tokenizer, lines, examples, args.batch_size, args.seed
        ),
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        callbacks=[Progress(args.output.name)],
    )
    trainer.remove_callback(transformers.trainer_callback.PrinterCallback)
    checkpoint = transformers.trainer_utils.get_last_checkpoint(work) if work.is_dir() else None
    clock = SaveSeconds(work)
    trainer.add_callback(clock)
    trainer.train(resume_from_checkpoint=checkpoint)
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return trainer.model, clock.count(), losses[-1]


TOLD = {  # region -> what its card adds about the objective
    "lab": "",
    "town": """ 85% of the examples mask one salient word instead: a fact's value, or a word
  that joins or judges sentences. Such words tell what the tasks ask for under other names.""",
}


def format_card(facts, config):
    """The model card, from what was measured."""
    return f"""---
license: mit
library_name: transformers
---
# Mini {facts["region"]} encoder

A BERT-architecture masked language model of {facts["parameters"]:,} parameters
({config.num_hidden_layers} layers of {config.hidden_size}, {config.num_attention_heads} heads,
feed-forward {config.intermediate_size}, {config.max_position_embeddings} positions), for trying
Table 10 on a laptop. It is no copy of BERT or DistilBERT, and was not distilled from anything. It
knows nothing but the invented text of one mini world.

- Text: {facts["text_lines"]:,} unlabeled lines of the mini {facts["region"]}
  (`data/{TEXT[facts["region"]].__name__}.py`, seed {facts["text_seed"]}), no dev or test source
  of a task among them, and no label of a task anywhere.
- Objective: guess 15% of the words (whole words; 80% masked, 10% replaced, 10% left as they
  are).{TOLD[facts["region"]]}
- {facts["steps"]:,} steps of {facts["batch_size"]} examples ({facts["examples"]:,} in all),
  {facts["cpu_minutes"]} CPU minutes ({facts["machine"]}), final loss
  {facts["final_loss"]:.3f}; torch {facts["torch"]}, transformers {facts["transformers"]}.
- Weights are stored in bf16. Vocabulary: the {config.vocab_size:,} unigram pieces of
  `{name_folder(facts["region"], "student")}`; `{START}` stands for [CLS], `{MASK}` for [MASK].

Rebuild: `python -m data.world.encoder --region {facts["region"]}`.
"""


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--region", choices=TEXT, default="town", help="whose text (default %(default)s)")
    add("--vocabulary", type=Path, help="model folder to take it from (default: the student's)")
    add("--output", type=Path, help="model folder (default data/world/models/REGION-encoder)")
    add("--steps", type=int, default=4000, help="(default %(default)s)")
    add("--batch-size", type=int, default=96, help="rows (default %(default)s)")
    add("--learning-rate", type=float, default=2e-3, help="(default %(default)s)")
    add("--lines", type=int, default=150000, help="text (default %(default)s)")
    add("--save-steps", type=int, default=1000, help="(default %(default)s)")
    add("--seed", type=int, default=0, help="(default %(default)s)")
    args = parser.parse_args(argv)
    args.vocabulary = args.vocabulary or MODELS / name_folder(args.region, "student")
    args.output = args.output or MODELS / f"{args.region}-encoder"
    return args


def main(argv=None):
    args = parse_args(argv)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lines = TEXT[args.region].draw_pretraining_text(args.lines)
    tokenizer = load_vocabulary(args.vocabulary)
    work = args.output.parent / "work" / args.output.name
    model, seconds, loss = pretrain(args, tokenizer, lines, work)
    facts = {"region": args.region, "model": args.output.name, "final_loss": loss}
    facts["cpu_minutes"] = round(seconds / 60, 1)
    save(args, args.output, model, tokenizer, args.steps, facts, format_card)


if __name__ == "__main__":
    main()
