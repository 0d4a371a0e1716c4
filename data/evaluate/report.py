"""What evaluate.py shows to people: scores, comparisons, errors.md, a model's card."""

from pathlib import Path

from data.costs.prices import fill, show_columns
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
    return "\n".join([*lines, fill(result["signature"].replace("|", " | "), "")])


def show_classes(result):
    """Tables of scores by class and, for tasks of classes, of targets against outputs."""
    tables = []
    if "classes" in result:
        keys = ("precision", "recall", "f1", "support")
        rows = [
            [label, *(f"{row[key]:.1f}" for key in keys[:3]), f"{row['support']:,}"]
            for label, row in result["classes"].items()
        ]
        tables.append(show_columns(["by class", *keys], rows))
    if "confusion" in result:
        labels = [label or "no label" for label in result["confusion"]["labels"]]
        counts = [*result["confusion"]["counts"], [0] * len(labels)]
        rows = [
            [f"{number} {label}", *(count or "." for count in row)]
            for number, (label, row) in enumerate(zip(labels, counts, strict=True), 1)
        ]
        heads = ["targets in rows", *(str(number) for number in range(1, len(labels) + 1))]
        tables.append(show_columns(heads, rows))
    return tables


def show_comparison(result):
    """Several runs side by side as text: each metric of each, and its difference from the first."""
    folders = {Path(run["run"]).parent for run in result["runs"]}
    inside = f" in {min(folders)}" * (len(folders) == 1 and folders != {Path()})
    names = [Path(run["run"]).name if inside else run["run"] for run in result["runs"]]
    head = f"{result['task']}, {plural(result['n'], 'row')}, 95% intervals"
    lines, width = [f"{head}; differences from the first{inside}:"], max(map(len, names))
    shown = sorted(result["metrics"].items(), key=lambda each: each[0] != result["metric"])
    for key, runs in shown:
        lines.append(key)
        for name, run in zip(names, runs, strict=True):
            spread = "[{:.2f}, {:.2f}]".format(*run["interval"])
            line = f"  {name:<{width}} {run['score']:7.2f} {spread:<16}"
            if "difference" in run:
                spread = "[{:+.2f}, {:+.2f}]".format(*run["difference_interval"])
                line += f"  {run['difference']:+7.2f} {spread} p={run['p_value']:.4f}"
                line += f", by Holm {run['p_holm']:.4f}" * (len(runs) > 2)
            lines.append(line.rstrip())
    lines.append("p is of the drawing of test rows alone, not of seeds")
    return "\n".join([*lines, fill(result["signature"].replace("|", " | "), "")])


def show_errors(result, rows, parts, invalid, cut):
    """errors.md: outputs that are wrong or unreadable, unreadable ones first, then the worst; those
    with a number in `cut` ended at the limit of tokens."""
    ratio = [hit / possible if possible else 1.0 for hit, possible in parts]
    bad = [i for i, value in enumerate(ratio) if value < 1 - 1e-9 or invalid[i]]
    bad.sort(key=lambda i: (not invalid[i], ratio[i], i))
    first = plural(int(invalid.sum()), "unreadable one") + " first, then the lowest score"
    first = first if invalid.any() else "The lowest score first"
    shown = f"; {ERRORS:,} are shown" * (len(bad) > ERRORS)
    lines = [f"# {result['task']}: {len(bad):,} of {len(rows):,} outputs are not right", ""]
    lines.append(f"{first}{shown}. predictions.jsonl has all.")
    for i in bad[:ERRORS]:
        kind = "unreadable" if invalid[i] else f"score {100 * ratio[i]:.0f}"
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
    folder, card = Path(options.model), Path(options.model, "README.md")
    own = folder.is_dir() and folder.resolve().parent == options.output.resolve()
    if card.exists() and MARK not in card.read_text(encoding="utf-8", errors="replace"):
        own = False
    if own and result["training"]:
        config = read_if_there(options.output / "config.json")
        write_atomic(card, show_card(folder, task, result, config))


def show_origin(training, base):
    """Sentences: what was trained, from what, on how much, at what cost."""
    teacher, rows = training.get("teacher") or {}, training.get("unlabeled")
    text = f"`{base or 'a pre-trained model'}`, trained by strategy `{training.get('strategy')}`"
    if rows:
        text += f": distilled on {plural(rows, 'unlabeled row')} from the teacher "
        text += f"`{teacher.get('model')}`"
    if labels := training.get("labels"):
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
        origin=show_origin(result["training"], base),
        scores="\n".join(scores),
        released="" if task.own else RELEASED,
        told=f"Note: {result['note']}.\n" if "note" in result else "",
        form=FORMS.get(task.metric, "The output is a text.").format(labels=", ".join(task.labels)),
        kind="AutoModelForSeq2SeqLM" if seq2seq else "AutoModelForSequenceClassification",
        model=folder,
        rest=GENERATE.format(**settings) if seq2seq else CLASSIFY,
    )
