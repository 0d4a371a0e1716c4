"""Dollars for labels, GPU-hours and tokens: what a budget buys, which runs that is, what they cost.

Usage:
    python costs.py plan --task wlp --labels 5000 --budget 100
        Table 2, WLP, N=5K, +$100: 384 labels, or 36 h of teacher and 7,471 unlabeled (54h / 7K)
    python costs.py plan --task wlp --labels 5000 --budget 100 --gpu H100-80GB --json
    python costs.py advise --task mine=FILE.json --runs runs/mini/mine --budgets "100 200 500"
    python costs.py convert --task wlp --usd 200
        Appendix E: $200 buys 4,347 labels of GPT-3.5, 769 of people, 107 A40-hours
    python costs.py convert --task wlp --unlabeled 100000 --at-labels 5000
        Table 6: $67.50 for the teacher and $435 for 100K examples
    python costs.py grid --for table2 --task wlp --scale mini --seeds "0 1 2"
    python costs.py flags --task nq --scale paper --strategy dist
    python costs.py rules --for "table2 fig2" --task all --scale mini
    python costs.py report runs/
    python costs.py memory --model google/t5-v1_1-xxl --gpus "1xH100-80GB 4xA40"
    python costs.py prices

Reads:  data/prices.csv (edit it, or pass --prices), data/tasks.json, data/scales.json; report and
        advise also training.json and metrics.json of each run, advise data/paper/scores.csv
Writes: nothing but the file of `rules`; results go to stdout
Copy:   costs.py data/__init__.py data/files.py data/tasks.py data/costs/ data/tasks.json
        data/scales.json data/prices.csv data/paper/; standard library only
Paper:  sections 2.4, 2.5 and 5, Tables 1, 2, 4, 6, 8 and 11, appendices A and E
"""

import argparse
import functools
import json
import math
import shlex
from fractions import Fraction
from pathlib import Path

from data.costs.advise import run_advise
from data.costs.budget import count_teacher_hours, plan, price_distilling, read_terms
from data.costs.flags import make_flags, show_flags
from data.costs.grid import cells, choose_tasks, grid, parse_seeds
from data.costs.ledger import report
from data.costs.memory import run_memory
from data.costs.prices import fill, load_prices, show_columns, show_price, show_usd, tell, to_json
from data.costs.runs import parse_run
from data.costs.serving import report_serving
from data.files import DATA, ROOT, UserError, parse_amount, parse_count, read_csv, run_cli
from data.tasks import load_task, load_tasks


def print_json(value):
    print(json.dumps(to_json(value), indent=2))


def print_notes(notes):
    print("\n".join(["", *(fill(f"- {note}") for note in notes)]))


def run_plan(args):
    """what a budget buys under each strategy"""
    task, terms = read_terms(load_task(args.task), args)
    labels, result = args.labels, plan(terms, args.labels, args.budget, args.unlabeled)
    if args.json:
        return print_json(result)
    initial, each = show_usd(result["initial_usd"]), show_price(terms.usd_per_label)
    print(f"{task.title}: N = {labels:,} labels ({initial} at {each}).", end=" ")
    print(f"{show_usd(args.budget)} more buy one of:\n")
    hours = count_teacher_hours(terms, labels)
    teacher = f"teacher {float(hours):.4g} h, {show_usd(hours * terms.usd_per_gpu_hour)}"
    ann, dist, mixed, llm = (result[way] for way in ("annotate", "distill", "mixed", "llm"))

    def lay(name, count, what, bought, detail):
        return [name, f"{bought[count]:,}", what, show_usd(bought["usd"]), detail]

    rows = [lay("Ann.", "extra_labels", "labels", ann, "")]
    if dist:
        detail = f"{dist['gpu_hours']} GPU-hours; {teacher}"
        rows.append(lay("Dist.", "unlabeled", "unlabeled examples", dist, detail))
    else:
        rows.append(["Dist.", "N/A", "", None, f"nothing left to distil with: {teacher}"])
    if mixed:
        whole = f"distil all {mixed['unlabeled']:,} for {show_usd(mixed['distill_usd'])}"
        detail = f"{whole}, labels for the rest"
        rows.append(lay("Both", "extra_labels", "labels beside that", mixed, detail))
    if llm:
        detail = f"{show_price(llm['usd_per_label'])} each"
        rows.append(lay("LLM", "extra_labels", "labels by an LLM", llm, detail))
    else:
        rows.append(["LLM", "N/A", "", None, "no tokens per label known for this task"])
    print(show_columns(["Strategy", "Buys", "What", "Spends", "Detail"], rows))
    print(tell("ways"))
    print_notes(result["notes"])


def run_convert(args):
    """dollars into labels, hours, examples and tokens; examples into dollars"""
    if (args.usd is None) == (args.unlabeled is None):
        raise UserError("convert: pass one of --usd USD and --unlabeled N")
    task, terms = read_terms(load_task(args.task), args)
    at = args.at_labels or task.labels_n[0]
    result = {"task": task.name, "at_labels": at}
    if args.usd is None:
        usd, teacher = (price_distilling(terms, at, count) for count in (args.unlabeled, 0))
        result |= {"unlabeled": args.unlabeled, "usd": usd, "teacher_usd": teacher}
        result["distill_usd"] = usd - teacher
    else:
        prices = {"labels": terms.usd_per_label, "llm_labels": terms.usd_per_llm_label}
        prices["tokens"] = terms.usd_per_token
        result |= {"usd": args.usd, "gpu_hours": args.usd / terms.usd_per_gpu_hour}
        result |= {name: each and math.floor(args.usd / each) for name, each in prices.items()}
        result["unlabeled"] = (plan(terms, at, args.usd)["distill"] or {}).get("unlabeled")
    if args.json:
        return print_json({**result, "notes": terms.notes})
    for name, value in result.items():
        if "usd" in name:
            value = show_usd(value)
        elif isinstance(value, (int, Fraction)):
            value = f"{float(value):,.2f}" if name == "gpu_hours" else f"{value:,}"
        print(f"{name:12} {'N/A' if value is None else value}")
    print_notes(terms.notes)


def run_grid(args):
    """the runs of a table or figure, each once, after what it needs"""
    seeds, results = parse_seeds(args.seeds), []
    several = args.task == "all" or " " in args.task.strip()
    for task in choose_tasks(args.table, load_tasks(args.task, args.data)):
        task, terms = read_terms(task, args)
        place = (args.table, task, args.scale, seeds, terms, args.llm, args.prepared)
        runs = grid(*place)
        results.append({"task": task.name, "runs": runs, "cells": cells(*place)})
        for run in () if args.json else runs:
            print(f"{task.name}/" * several + run.name)
    if args.json:
        print_json({"for": args.table, "scale": args.scale, "seeds": seeds, "tasks": results})


def run_flags(args):
    """command-line flags of the script that trains a strategy or a run"""
    if (args.strategy is None) == (args.run is None):
        raise UserError("flags: pass one of --strategy NAME and --run NAME")
    run, task = args.run and parse_run(args.run), load_task(args.task)
    print(show_flags(make_flags(task, args.scale, args.strategy, run, args.real_text, args.recipe)))


def run_rules(args):
    """write make's rules of the runs of tables and figures; prints their file"""
    from data.costs.rules import write_rules

    world = f"{args.scale}{'-' + Path(args.data).resolve().name if args.data else ''}"
    args.runs = args.runs or f"runs/{world}"
    args.made = args.made or f"{args.runs}/made"
    args.prepared = args.prepared or f"data/prepared/{world}"
    for name in [name for name in vars(args) if name.endswith("_flags")]:
        try:
            setattr(args, name, shlex.split(getattr(args, name) or ""))
        except ValueError as fault:
            raise UserError(f"{name.upper()}: {fault}") from None
    tasks = load_tasks(args.task, args.data)
    if args.advise_flags:  # wrong ones are told before the pilot
        words = ["advise", "--task", args.task, "--scale", args.scale, *args.advise_flags]
        advice = parse_args(words)
        for task in tasks:
            read_terms(task, advice)
    print(write_rules(tasks, parse_seeds(args.seeds), args))


def run_report(args):
    """what finished runs cost: by run, strategy, table and in all"""
    prices, hour = load_prices(args.prices), args.gpu_usd_per_hour
    asked = {"gpu_usd_per_hour": hour, "llm_model": args.llm_model}
    tasks = [*load_tasks("all"), *(load_task(word) for word in (args.task or "").split())]
    result = report(args.folder, prices, tasks, args.gpu, **asked)
    cpu = hour if args.cpu_usd_per_hour is None else args.cpu_usd_per_hour
    result["serving"], line = report_serving(args.folder, prices, hour, cpu)
    result["notes"] += [line] if line else []
    if args.json:
        return print_json(result)

    def usd(bill, *keys):
        return [show_usd(bill[which][key]) for key in keys for which in ("paper", "today")]

    groups = {}
    for run in result["runs"]:
        device = (run["gpu"] or "CPU") + (f" x{run['gpus']}" if run["gpus"] > 1 else "")
        hours = [f"{float(run[key]):.3f}" for key in ("hours", "evaluate_hours")]
        row = [run["run"], device, *hours, *usd(run, "labels_usd")[:1]]
        row += usd(run, "compute_usd", "usd")
        groups.setdefault(f"{run['world']}/{run['task']}", []).append(row)
    heads = "Device,Hours,Evaluating,Labels,Compute (paper),(today),Model (paper),(today)"
    for place, rows in groups.items():
        print(show_columns([place, *heads.split(",")], rows), end="\n\n")
    bills = {**result["strategies"], **result["tables"], "all runs": result["total"]}
    rows = []
    for name, bill in bills.items():
        hours = f"{float(bill['paper']['hours']):.3f}"
        amounts = usd(bill, "llm_usd", "compute_usd", "usd")
        rows.append([name, bill["runs"], hours, *usd(bill, "labels_usd")[:1], *amounts])
    heads = "Runs,Hours,Labels,LLM (paper),(today),Compute (paper),(today),All (paper),(today)"
    print(show_columns(["Totals", *heads.split(",")], rows))
    print_notes(result["notes"])


def run_prices(args):
    """the price list, with source and date"""
    prices = load_prices(args.prices)
    if args.json:
        return print_json(prices)
    rows = []
    for p in prices:
        value = show_price(p.usd) if p.ratio is None else f"{float(p.ratio):g} x"
        rows.append((p.list, p.item, p.name, value, p.unit, f"{p.source} ({p.date})"))
    print(show_columns("List,Item,Name,Price,Unit,Source".split(","), rows))
    own = f"{args.prices}: edit it, or pass --prices FILE; a price given by flag comes first"
    second = "secondary source: read off another list than the vendor's; check it before you spend"
    print_notes([own, second])


# A command has its function's name and docstring; its options stand in data/costs/options.csv.
FUNCTIONS = (run_plan, run_advise, run_convert, run_grid, run_flags, run_rules, run_report)
FUNCTIONS += (run_memory, run_prices)
COMMANDS = {function.__name__.removeprefix("run_"): function for function in FUNCTIONS}
COUNT = functools.partial(parse_count, least=1)
NUMBERS = {"USD": parse_amount, "PERCENT": parse_amount, "N": COUNT}


def add_option(parser, row, required):
    """An option as its row says: one without a value is a switch, a|b are choices."""
    value, default, kind = row["value"], row["default"], {"action": "store_true"}
    if value:
        choices = value.split("|") if "|" in value else None
        kind = {"choices": choices, "metavar": None if choices else value, "required": required}
        kind["default"] = ROOT / default if value == "FILE" and default else default or None
    text = row["help"] + (f" (default: {default})" if default else "")
    dest = "table" if row["option"] == "for" else None
    parser.add_argument(f"--{row['option']}", dest=dest, help=text, **kind)


def parse_args(argv=None):
    """The command and its options; dollars and counts among them as exact numbers."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    options = list(read_csv(DATA / "costs" / "options.csv").values())
    for name, function in COMMANDS.items():
        text = function.__doc__
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "report":
            command.add_argument("folder", help="a folder of runs, e.g. runs/ or runs/mini/wlp")
        for row in options:  # `!plan`: plan needs it
            if needing := {name, f"!{name}"} & set(row["commands"].split()):
                add_option(command, row, f"!{name}" in needing)
        command.set_defaults(function=function)
    args = parser.parse_args(argv)
    for row in options:
        key, read = row["option"].replace("-", "_"), NUMBERS.get(row["value"])
        if read and getattr(args, key, None) is not None:
            setattr(args, key, read(getattr(args, key), f"--{row['option']}"))
    if not args.command:
        parser.print_help()
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.command:
        args.function(args)


if __name__ == "__main__":
    run_cli(main)
