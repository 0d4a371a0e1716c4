"""What evaluate.py shows to people: scores, comparisons, errors.md, a model's card."""

import textwrap
from pathlib import Path

from data.files import plural, read_if_there, write_atomic

ERRORS = 200  # rows in errors.md
CARD = Path(__file__).with_name("card.md")
MARK = "written-by-evaluate.py"  # a card without it is a user's own and is left alone


def show_spread(result, key, form):
    """The 95% interval of a score by `form`, "" where there is none."""
    interval = result.get("intervals", {}).get(key)
    return form.format(*interval) if interval else ""


def show_result(result):
    """The result as text; --json prints it whole."""
    rows = plural(result["n"], "row")
    lines = [f"{result['task']}: {result['metric']} {result['score']:.2f} on {rows}"]
    for key, value in result["metrics"].items():
        lines.append(f"  {key:<20} {value:7.2f}" + show_spread(result, key, "  [{:.2f}, {:.2f}]"))
    lines.append(f"  best constant output {result['constant']['prediction']!r}")
    for name, value in result.get("reference_points", {}).items():
        lines.append(f"  {result['metric']} of {name.replace('_', ' ')}: {value:.2f}")
    for half, found in result.get("by", {}).get("half", {}).items():
        told = ", ".join(f"{key} {value:.2f}" for key, value in found["metrics"].items())
        lines.append(f"  half {half}, {plural(found['n'], 'row')}: {told}")
    lines += show_classes(result)
    kinds = [kind for kind in ("sources", "targets", "outputs") if f"truncated_{kind}" in result]
    cut = ", ".join(f"{result[f'truncated_{kind}']:,} {kind}" for kind in kinds)
    lines += [f"  cut off: {cut}"] if cut else []
    if result.get("unwritable_targets"):
        lost = f"  {result['unwritable_targets']:,} targets hold what the tokenizer cannot write"
        lines.append(f"{lost}, or more than the limit")
    lines += [f"note: {result['note']}"] if "note" in result else []
    return "\n".join([*lines, show_signature(result["signature"])])


def show_signature(signature):
    """A signature of metrics.json on lines of a page."""
    return textwrap.fill(signature.replace("|", " | "), 100, break_on_hyphens=False)


def show_classes(result):
    """Lines of scores by class and, for tasks of classes, the confusion table."""
    if "classes" not in result:
        return []
    keys = ("precision", "recall", "f1", "support")
    width = max(map(len, result["classes"]))
    lines = [f"  {'by class':<{width}} " + " ".join(f"{key:>9}" for key in keys)]
    for label, row in result["classes"].items():
        values = " ".join(f"{row[key]:9.1f}" for key in keys[:3])
        lines.append(f"  {label:<{width}} {values} {row['support']:9,}")
    if "confusion" in result:
        labels = [label or "no label" for label in result["confusion"]["labels"]]
        counts, end = result["confusion"]["counts"], len(str(len(labels)))
        wide = 1 + max(len(f"{count:,}") for row in (*counts, [len(labels)]) for count in row)
        heads = "".join(f"{number:>{wide}}" for number in range(1, len(labels) + 1))
        lines.append("  targets in rows, outputs in columns:")
        lines.append(f"  {'':<{width + end + 1}}{heads}")
        for number, (label, row) in enumerate(zip(labels, counts, strict=False), 1):
            shown = "".join(f"{format(count, ',') if count else '.':>{wide}}" for count in row)
            lines.append(f"  {number:>{end}} {label:<{width}}{shown}")
        if len(labels) > len(counts):
            lines.append(f"  {len(labels):>{end}} {labels[-1]}")
    return lines


def show_comparison(result):
    """Several runs side by side as text: each metric of each, and its difference from the first."""
    folders = {Path(run["run"]).parent for run in result["runs"]}
    folder = folders.pop() if len(folders) == 1 else Path()
    inside = f" in {folder}" * (folder != Path())
    head = f"{result['task']}, {plural(result['n'], 'row')}, 95% intervals"
    lines = [f"{head}; differences from the first{inside}:"]
    names = [Path(run["run"]).name if inside else run["run"] for run in result["runs"]]
    width = max(map(len, names))
    for key, runs in sorted(
        result["metrics"].items(), key=lambda each: each[0] != result["metric"]
    ):
        lines.append(key)
        for name, run in zip(names, runs, strict=True):
            spread = "[{:.2f}, {:.2f}]".format(*run["interval"])
            score, told = f"{name:<{width}} {run['score']:7.2f} {spread:<16}", ""
            if "difference" in run:
                low, high = run["difference_interval"]
                told = (
                    f"  {run['difference']:+7.2f} [{low:+.2f}, {high:+.2f}] p={run['p_value']:.4f}"
                )
                told += f", by Holm {run['p_holm']:.4f}" if len(runs) > 2 else ""
            lines.append(f"  {score}{told}".rstrip())
    lines.append("p is of the drawing of test rows alone, not of seeds")
    return "\n".join([*lines, show_signature(result["signature"])])


def show_errors(result, rows, scores, cut):
    """errors.md: outputs that are wrong or unreadable, unreadable ones first, then the worst; those
    with a number in `cut` ended at the limit of tokens."""
    ratio = [hit / possible if possible else 1.0 for hit, possible in scores.parts]
    bad = [i for i, value in enumerate(ratio) if value < 1 - 1e-9 or scores.invalid[i]]
    bad.sort(key=lambda i: (not scores.invalid[i], ratio[i], i))
    first = plural(int(scores.invalid.sum()), "unreadable one") + " first, then the lowest score"
    first = first if scores.invalid.any() else "The lowest score first"
    shown = f"; {ERRORS:,} are shown" * (len(bad) > ERRORS)
    lines = [
        f"# {result['task']}: {len(bad):,} of {len(rows):,} outputs are not right",
        "",
        f"{first}{shown}. predictions.jsonl has all.",
    ]
    for i in bad[:ERRORS]:
        kind = "unreadable" if scores.invalid[i] else f"score {100 * ratio[i]:.0f}"
        kind += ", cut off at the limit of tokens" * (i in cut)
        lines += ["", f"## Row {i + 1:,}, {kind}", ""]
        for name in ("source", "target", "prediction"):
            text = rows[i][name] if isinstance(rows[i][name], str) else " | ".join(rows[i][name])
            lines.append(f"    {name:<10} {' '.join(text.split())}")
    return "\n".join(lines) + "\n"


# --- model cards -----------------------------------------------------------------------------

GENERATE = """greedy = {{"max_new_tokens": {max_target_length}, "num_beams": 1, "do_sample": False}}
outputs = model.generate(**inputs, **greedy)
print(tokenizer.batch_decode(outputs, skip_special_tokens=True))"""
CLASSIFY = "print([model.config.id2label[i] for i in model(**inputs).logits.argmax(-1).tolist()])"
RELEASED = "Keys that end in _released are the rule of the paper's released scorer. "
FORMS = {
    "entities": "The output is `entity [Label] entity [Label] ...`.",
    "classes": "The output is one of {labels}.",
}


def write_card(options, task, result):
    """README.md of a model folder whose run folder is the output; a user's own stays."""
    folder = Path(options.model)
    card = folder / "README.md"
    ours = folder.is_dir() and folder.resolve().parent == options.output.resolve()
    if not ours or not result["training"]:
        return
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        return
    config = read_if_there(options.output / "config.json")
    write_atomic(card, show_card(folder, task, result, config))


def show_origin(training, config):
    """Sentences: what was trained, from what, on how much, at what cost."""
    base = config.get("student") or config.get("model") or "a pre-trained model"
    labels, teacher = training.get("labels"), training.get("teacher") or {}
    text = f"`{base}`, trained by strategy `{training.get('strategy')}`"
    if rows := training.get("unlabeled"):
        text += f": distilled on {plural(rows, 'unlabeled row')} from the teacher "
        text += f"`{teacher.get('model')}`"
    if labels:
        text += f"{', which was trained' if rows else ''} on {plural(labels, 'labeled row')}"
    both = training, teacher.get("training") or {}
    total, before = (sum((each.get("seconds") or {}).values()) for each in both)
    hardware = training.get("hardware") or {}
    device = hardware.get("gpu") or hardware.get("cpu") or "an unknown device"
    cost = f"Training took {total:,.0f} s on {device}" if total else "Its training was not timed"
    cost += f", its teacher's {before:,.0f} s" if before else ""
    steps = plural(training.get("steps") or 0, "step")
    return f"{text}. {cost}; seed {training.get('seed')}, {steps}."


def show_card(folder, task, result, config):
    """A model card in Hugging Face's form."""
    settings, seq2seq = result["settings"], "truncated_targets" in result
    teacher = result["training"].get("strategy") == "teacher"
    base = config.get("student") or config.get("model")
    hub = base and base.count("/") == 1 and not Path(base).exists()
    scores = (
        f"| {key} | {value:.1f} | {show_spread(result, key, '{:.1f} to {:.1f}')} |"
        for key, value in result["metrics"].items()
    )
    return CARD.read_text(encoding="utf-8").format(
        **{**result, **settings},
        base=f"base_model: {base}\n" if hub else "",
        mark=MARK,
        model_kind="a teacher" if teacher else "a compact model",
        title=task.title,
        origin=show_origin(result["training"], config),
        scores="\n".join(scores),
        released="" if task.own else RELEASED,
        told=f"Note: {result['note']}.\n" if "note" in result else "",
        form=FORMS.get(task.metric, "The output is a text.").format(labels=", ".join(task.labels)),
        kind="AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForSequenceClassification",
        model=folder,
        rest=GENERATE.format(**settings) if seq2seq else CLASSIFY,
    )
