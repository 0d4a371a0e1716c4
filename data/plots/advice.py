"""The advice as a picture: what each budget will score by annotation and by distillation, how sure.

Reads:  the JSON of `costs.py advise --save`
Writes: NAME.png and NAME.pdf, NAME as that file's
Paper:  none; Figure 2's question for scores that were not measured
"""

from pathlib import Path

from data.costs.prices import show_dollars
from data.files import UserError, read_json
from data.plots import drawing
from data.plots.drawing import ANN, DIST, GREY, LLM, Dot, Line, Panel, Style
from data.plots.results import TITLES

ARMS = {"ann": ("Ann.", ANN), "dist": ("Dist.", DIST), "llm": ("LLM", LLM)}
RUNS = {"small": ARMS["ann"], "dist": ARMS["dist"]}  # by the strategy of a run
SPLIT = Style(drawing.PURPLE, "", (0, (4, 2)))
TRIED = {"strategy": str, "usd": float, "score": float}
ADVICE = {  # the file, as read_json() checks it
    **dict.fromkeys(["title", "task", "metric"], str),
    "labels": int,
    "constant": float,
    "curve": [{"budget": float, "split": float, "bands": {None: [float]}}],
    "tried": [TRIED],
    "measured": [TRIED],
    "llm": {"score": float},
    "turns": {"first": list},
}


def make_panel(advice):
    """The Panel of one task's advice; medians as lines, where four of five runs fall as bands."""
    curve = advice["curve"]
    low, high = curve[0]["budget"], curve[-1]["budget"]
    zero = low / 1.6  # where a logarithmic axis shows $0
    lines = []
    for arm, (name, style) in ARMS.items():
        points = [(row["budget"], *row["bands"][arm]) for row in curve if arm in row["bands"]]
        if points:
            dots = [Dot(x, y, (below, above)) for x, below, y, above in points]
            look = Style(style.color, "", style.line)
            lines.append(Line(f"{name}, predicted", look, dots, band=True))
    splits = [Dot(row["budget"], row["split"]) for row in curve]
    lines.append(Line("best split of both", SPLIT, splits))
    for key, what, filled in (("tried", "pilot (dev)", True), ("measured", "measured", False)):
        for arm, (name, style) in RUNS.items():
            runs = [run for run in advice[key] if run["strategy"] == arm and run["usd"] <= high]
            dots = [Dot(run["usd"] if run["usd"] >= low else zero, run["score"]) for run in runs]
            look = Style(style.color, style.marker, "none", filled)
            lines.append(Line(f"{name}, {what}", look, dots))
    ticks = drawing.make_dollar_ticks(low, high, inches=4)
    edge = [run["usd"] for key in ("tried", "measured") for run in advice[key] if run["usd"] < low]
    if edge:  # what costs less than the axis shows
        ticks = [(zero, f"under {show_dollars(low)}" if any(edge) else "$0"), *ticks]
    title = f"{advice['title']}, N = {advice['labels']:,}; bands hold four of five runs"
    return Panel(
        title, lines, f"{TITLES.get(advice['metric'], 'score')} (%)",
        "dollars beside the N labels", ticks=tuple(ticks),
        levels=tuple(list_levels(advice)), span=find_span(advice, low, high),
    )  # fmt: skip


def list_levels(advice):
    """Scores that no budget changes: of the constant predictor, the teacher, the LLM itself. Their
    names say them, as one far from all others is out of sight."""
    if advice["constant"] is not None:
        yield f"constant predictor, {advice['constant']:.1f}", GREY, advice["constant"]
    teachers = [run["score"] for run in advice["tried"] if run["strategy"] == "teacher"]
    if teachers:
        mean = sum(teachers) / len(teachers)
        yield f"teacher on N, {mean:.1f}", DIST.color, mean
    if advice["llm"]:
        score = advice["llm"]["score"]
        yield f"LLM's own answers, {score:.1f}", LLM.color, score


def find_span(advice, low, high):
    """The budgets among which Dist. first leads, with 80%, as far as they are in sight; none where
    that is all of them, as the shade would then look as if Dist. led everywhere."""
    first, _, last = (high if usd is None else usd for usd in advice["turns"]["first"])
    first, last = max(first, low), min(last, high)
    seen = first < last and (first, last) != (low, high)
    return ("Dist. first leads (80%)", drawing.SKY, first, last) if seen else ()


def write_advice(args):
    """Draw one advice; prints the paths."""
    advice = read_json(args.advice, ADVICE, "title task labels metric curve tried measured turns")
    if not drawing.can_draw(advice["title"]):
        advice["title"] = advice["task"]
    place = Path(args.output or Path(args.advice).parent, Path(args.advice).stem)
    try:
        panel = make_panel(advice)
    except (LookupError, TypeError, ValueError) as error:
        what = f"not an advice as costs.py advise --save writes it ({error!r})"
        raise UserError(f"{args.advice}: {what}") from None
    print(*drawing.write(drawing.draw([panel], width=6.3), place), sep="\n")
