"""Tables and figures of the paper beside the paper's own values.

Usage:
    python plots.py table2 --task wlp --seeds "0 1 2"          scores of the runs in runs/mini
    python plots.py table11 --task all --scale paper --runs runs/paper --output out
    python plots.py table6 --task wlp --output out/  one row; also out/table6.md, .csv and .tex
    python plots.py fig2 --task wlp --output out/    out/fig2.png, .pdf, .csv and notes in .md
    python plots.py advice --advice FILE.json        beside it .png and .pdf of make advise
    python plots.py pipeline --output out/           a picture of the method: .png and .svg

Reads:  of runs metrics.json, training.json, row_scores.json and predictions.jsonl; data/tasks.json,
        data/scales.json, data/prices.csv, data/paper/
Writes: with --output NAME.md, NAME.csv and NAME.tex in that folder, and for a table of scores
        NAME-cells, which lists its cells one by one; then stdout (Markdown)
Copy:   plots.py data/plots/ data/paper/ and what costs.py names; standard library only for tables
Paper:  Tables 1 to 11, Figures 2 to 7
"""

from pathlib import Path

from data.files import DATA, make_parser, run_cli
from data.plots.advice import write_advice
from data.plots.figures import MAKERS, write_figure
from data.plots.measured import SCORES, build_scores
from data.plots.pipeline import write_pipeline
from data.plots.printed import PRINTED, build_printed
from data.plots.tables import Table, render

COMMANDS = {  # name -> (a line of help, what builds Tables, or writes what it builds)
    **{name: (text, build_printed) for name, (text, _) in PRINTED.items()},
    **{name: (text, build_scores) for name, (text, _) in SCORES.items()},
    **{name: (text, write_figure) for name, (_, text) in MAKERS.items()},
    "advice": ("what each budget will score, from make advise", write_advice),
    "pipeline": ("labels, Ann., Dist., LLM, compact model: a picture", write_pipeline),
}


def add_flags(add, name):
    """The flags of one table or figure, by a parser's `add`."""
    add("--task", default="all", metavar="NAMES", help="one task or several (default: all)")
    add("--output", metavar="DIR", help="also write files here (default: only print)")
    text = "folder of real data, if the runs are on it; its task.json tells a task of one's own"
    add("--data", default="", metavar="DIR", help=f"{text} (default: none)")
    price = "price list (default: data/prices.csv)"
    add("--prices", default=DATA / "prices.csv", metavar="FILE", help=price)
    if name in (*MAKERS, *SCORES):
        add("--scale", default="mini", help="an entry of data/scales.json (default: mini)")
        add("--seeds", default="0", help='seeds of the runs, e.g. "0 1 2" (default: 0)')
        place = "holds TASK/RUN (default: runs/SCALE, with --data's name)"
        add("--runs", metavar="DIR", help=place)
        add("--llm", action="store_true", help="also runs on labels by an LLM (default: no)")
    if name in MAKERS:
        rule = "score by the strict rule or by the released scorer's (default: strict)"
        add("--rule", choices=("strict", "released"), default="strict", help=rule)
    if name in (*MAKERS, *SCORES, "table5", "table6", "table7"):
        splits = "data/prepared/mini" if name == "table7" else None
        text = "prepared tasks, whose row counts limit the runs, as in costs.py grid"
        add("--prepared", metavar="DIR", default=splits, help=f"{text} (default: %(default)s)")
    if name == "advice":
        said = "what `costs.py advise --save` wrote"
        add("--advice", required=True, metavar="FILE", help=said)


def parse_args(argv=None):
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="command", metavar="TABLE|FIGURE", required=True)
    for name, (summary, _) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary)
        add_flags(command.add_argument, name)
    args = parser.parse_args(argv)
    if "runs" in args and args.runs is None:  # counts of another scale are no runs of this one
        args.runs = f"runs/{args.scale}{'-' + Path(args.data).resolve().name if args.data else ''}"
    return args


def main(argv=None):
    args = parse_args(argv)
    built = COMMANDS[args.command][1](args)  # None where it is written already
    if built:
        render([built] if isinstance(built, Table) else built, args.output)


if __name__ == "__main__":
    run_cli(main)
