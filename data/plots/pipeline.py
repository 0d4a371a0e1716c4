"""The picture of the method: one budget, three ways to a compact model, and where the dollars go.

Paper:  Figure 1 and section 2: Ann., Dist.; section 5: labels by an LLM
"""

from pathlib import Path

from data.files import UserError
from data.plots.drawing import ANN, DIST, GREY, LLM, LOOK, write

WIDTH, HEIGHT = 7.2, 2.85  # inches
HIGH = 0.5  # of a box
ROWS = {"Ann.": 2.35, "Dist.": 1.42, "LLM": 0.5}  # y of each way, in inches
# (x of the middle, y, width, text, colour): what is there or made; dollars in green are spent.
BOXES = (
    (0.75, ROWS["Dist."], 1.2, "N labels\nthat you have", GREY),
    (2.6, ROWS["Ann."], 1.7, "people label more", ANN.color),
    (2.6, ROWS["Dist."], 1.7, "teacher (large)\nlearns the N labels", DIST.color),
    (2.6, ROWS["LLM"], 1.7, "an LLM labels\nunlabeled text", LLM.color),
    (4.75, ROWS["Dist."], 1.7, "its soft labels on\nunlabeled text", DIST.color),
    (6.5, ROWS["Dist."], 1.15, "compact model\nto use", GREY),
)
ARROWS = (  # (from x, y, to x, y, colour)
    (1.35, ROWS["Dist."] + 0.15, 1.75, ROWS["Ann."], ANN.color),
    (1.35, ROWS["Dist."], 1.75, ROWS["Dist."], DIST.color),
    (1.35, ROWS["Dist."] - 0.15, 1.75, ROWS["LLM"], LLM.color),
    (3.45, ROWS["Dist."], 3.9, ROWS["Dist."], DIST.color),
    (5.6, ROWS["Dist."], 5.925, ROWS["Dist."], DIST.color),
    (3.45, ROWS["Ann."], 6.5, ROWS["Dist."] + HIGH / 2, ANN.color),
    (3.45, ROWS["LLM"], 6.5, ROWS["Dist."] - HIGH / 2, LLM.color),
)
DOLLARS = (  # (x, y, text, colour): under its box
    (2.6, ROWS["Ann."], "$ per label", ANN.color),
    (2.6, ROWS["Dist."], "GPU-hours to train it", DIST.color),
    (4.75, ROWS["Dist."], "GPU-hours for these rows", DIST.color),
    (2.6, ROWS["LLM"], "$ per token", LLM.color),
    (0.75, ROWS["Dist."], "paid already", GREY),
)
NAMES = {"Ann.": ANN, "Dist.": DIST, "LLM": LLM}


def draw_pipeline():
    """A matplotlib Figure: boxes from labels to the compact model, one colour a way."""
    import matplotlib.style
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    with matplotlib.style.context(LOOK):
        figure = Figure(figsize=(WIDTH, HEIGHT))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
        axes.set_axis_off()
        for x, y, width, text, color in BOXES:
            place, look = (x - width / 2, y - HIGH / 2), "round,pad=0,rounding_size=0.08"
            axes.add_patch(
                FancyBboxPatch(place, width, HIGH, look, fc="white", ec=color, lw=1.4, zorder=2)
            )
            axes.text(x, y, text, ha="center", va="center", zorder=3)
        for x, y, to_x, to_y, color in ARROWS:
            corner = "arc3" if y == to_y or x < 2 else "angle,angleA=0,angleB=90,rad=8"
            look = {"arrowstyle": "-|>", "color": color, "lw": 1.3, "connectionstyle": corner}
            look |= {"shrinkA": 0, "shrinkB": 1}
            axes.annotate("", (to_x, to_y), (x, y), arrowprops=look)
        for x, y, text, color in DOLLARS:
            axes.text(x, y - HIGH / 2 - 0.05, text, ha="center", va="top", color=color, size=7)
        for name, y in ROWS.items():
            look = {"color": NAMES[name].color, "weight": "bold", "size": 9}
            axes.text(1.75, y + HIGH / 2 + 0.04, name, **look)
    return figure


def write_pipeline(args):
    """Draw it as PNG and SVG; a UserError without a folder to write to."""
    if not args.output:
        raise UserError("pipeline: a picture needs a folder; say --output DIR")
    print(*write(draw_pipeline(), Path(args.output) / "pipeline", ("png", "svg")), sep="\n")
