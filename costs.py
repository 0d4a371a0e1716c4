"""Dollars for labels, GPU-hours and tokens: what a budget buys, which runs that is, what they cost.

Usage:
    python costs.py plan --task wlp --labels 5000 --budget 100
        Table 2, WLP, N=5K, +$100: 384 labels, or 36 h of teacher and 7,471 unlabeled (54h / 7K)
    python costs.py plan --task wlp --labels 5000 --budget 100 --gpu H100-80GB --json
        the same choice with a GPU of today, for a program to read
    python costs.py convert --task wlp --usd 200
        Appendix E: $200 buys 4,347 labels of GPT-3.5, 769 of people, 107 A40-hours
    python costs.py convert --task wlp --unlabeled 100000 --at-labels 5000
        Table 6: $67.50 for the teacher and $435 for 100K examples
    python costs.py grid --for table2 --task wlp --scale mini --seeds "0 1 2"
        the runs behind a table, each once, what it depends on before it
    python costs.py flags --task nq --scale paper --strategy dist
        Table 8 as flags for distill.py
    python costs.py rules --for "table2 fig2" --task all --scale mini
        the same for make: each run's flags, and the labels that it learns from
    python costs.py report runs/
        what the runs of a folder cost, at the paper's prices and at today's
    python costs.py memory --model google/t5-v1_1-xxl --gpus "1xH100-80GB 4xA40"
        which way a teacher fits these GPUs, in how many hours, for how many dollars
    python costs.py prices
        the price list, with source and date of each row

Reads:  data/prices.csv (edit it, or pass --prices), data/tasks.json, data/scales.json; report also
        training.json and metrics.json of each run
Writes: nothing; results go to stdout
Copy:   costs.py data/__init__.py data/files.py data/costs/ data/tasks.json data/scales.json
        data/prices.csv; standard library only
Paper:  sections 2.4, 2.5 and 5, Tables 1, 2, 4, 6, 8 and 11, appendices A and E
"""

import argparse
import itertools
import json
import math
from fractions import Fraction

from data.costs.budget import count_teacher_hours, make_terms, plan, price_distilling, read_study
from data.costs.grid import (
    TABLES,
    cells,
    choose_tasks,
    grid,
    list_rules,
    list_tasks,
    make_flags,
    order_work,
    parse_seeds,
    show_flags,
    shows,
)
from data.costs.ledger import Ledger
from data.costs.memory import run_memory
from data.costs.prices import (
    load_prices,
    parse_amount,
    parse_count,
    price_gpu_hour,
    show_columns,
    show_price,
    show_usd,
    to_json,
)
from data.costs.runs import parse_run, read_runs
from data.files import DATA, UserError, load_task, load_tasks, run_cli

# --- what finished runs cost ----------------------------------------------------------------


def group_tables(records, tasks, asked=None):
    """{"world task table": (its Records, how many runs it needs)} for the tables whose runs, at
    the seeds there, are all there; table `asked` is listed incomplete too."""
    groups, found = {}, {}
    for record in records:
        groups.setdefault((record.world, record.task), {})[record.run] = record
    for (world, task), runs in groups.items():
        seeds = sorted({record.seed for record in runs.values()})
        for table in TABLES:
            try:
                wanted = grid(table, task, world.split("-")[0], seeds, tasks=tasks)
                names = [run.name for run in wanted if run.strategy != "prompted"]
            except UserError:  # the table isn't made for this task, or the folder for a scale
                continue
            there = [runs[name] for name in names if name in runs]
            if there and (len(there) == len(names) or table == asked):
                found[f"{world} {task} {table}"] = (there, len(names))
    return found


REPORT_NOTES = (
    "Model: dollars of its labels, its own hours and those of the runs it needs",
    "totals pay nothing twice: labels once a task and seed, a teacher's pass once",
    "hours of evaluation are listed and not priced, as in the paper",
)


def report(folder, prices, tasks=DATA / "tasks.json", table=None, gpu=None, **asked):
    """What the runs below `folder` cost: by run, strategy, table and in all, by both lists.

    `gpu` prices hours on a CPU; `asked`: gpu_usd_per_hour (of every hour), llm_model.
    """
    records, entries = read_runs(folder), load_tasks(tasks)
    lists = ("paper", "today")
    books = {which: Ledger(prices, entries, which, gpu, **asked) for which in lists}
    others = {(record.world, record.task, record.run): record for record in records}

    def price_group(group):
        return {"runs": len(group), **{w: books[w].price_group(group) for w in lists}}

    runs, strategies, tables = [], {}, {}
    for record in records:
        strategies.setdefault(record.strategy, []).append(record)
        told = record._asdict()
        told["hours"] += told.pop("pass_hours")
        runs.append({**told, **{w: books[w].price_model(record, others) for w in lists}})
    for name, (group, needed) in group_tables(records, tasks, table).items():
        tables[name] = {"needs": needed, **price_group(group)}
    strategies = {name: price_group(group) for name, group in strategies.items()}
    total = price_group(records)
    notes = [note for book in books.values() for note in book.notes]
    if any(record.gpu is None for record in records) and not asked.get("gpu_usd_per_hour"):
        said = f"are priced as hours of one {gpu}" if gpu else "have no price (--gpu gives one)"
        notes.append(f"hours on a CPU {said}")
    if any(set(record.llm_tokens) == {"in"} for record in records):
        notes.append("LLM tokens recorded without a split are priced as input")
    unknown = [r.run for r in records if r.strategy == "llm" and not any(r.llm_tokens.values())]
    if unknown:
        notes.append(f"no LLM tokens recorded, so none priced: {', '.join(unknown)}")
    result = {"runs": runs, "strategies": strategies, "tables": tables, "total": total}
    return {**result, "notes": [*notes, *REPORT_NOTES]}


# --- command line --------------------------------------------------------------------------


def print_json(value):
    print(json.dumps(to_json(value), indent=2))


def print_notes(notes):
    print("\n".join(["", *(f"- {note}" for note in notes)]))


def read_terms(args):
    """The Terms that the flags of plan, convert and grid describe."""
    entry, prices = load_task(args.task, args.tasks), load_prices(args.prices)
    asked = {name: getattr(args, name) for name in ["rates", "runs", *ASKED]}
    return make_terms(args.task, entry, prices, args.price_list, **asked)


def run_plan(args):
    """what a budget buys under each strategy"""
    terms = read_terms(args)
    budget, labels = parse_amount(args.budget, "--budget"), parse_count(args.labels, "--labels", 1)
    result = plan(terms, labels, budget)
    if args.json:
        return print_json(result)
    title, initial = load_task(args.task, args.tasks)["title"], show_usd(result["initial_usd"])
    each = show_price(terms.usd_per_label)
    print(f"{title}: N = {labels:,} labels ({initial} at {each}).", end=" ")
    print(f"{show_usd(budget)} more buy one of:\n")
    ann, dist, llm = result["annotate"], result["distill"], result["llm"]
    hours = count_teacher_hours(terms, labels)
    teacher = f"teacher {float(hours):.4g} h, {show_usd(hours * terms.usd_per_gpu_hour)}"
    rows = [["Ann.", f"{ann['extra_labels']:,}", "labels", show_usd(ann["usd"]), ""]]
    if dist:
        detail, count = f"{dist['gpu_hours']} GPU-hours; {teacher}", f"{dist['unlabeled']:,}"
        rows.append(["Dist.", count, "unlabeled examples", show_usd(dist["usd"]), detail])
    else:
        rows.append(["Dist.", "N/A", "", None, f"nothing left to distil with: {teacher}"])
    if llm:
        count, each = f"{llm['extra_labels']:,}", f"{show_price(llm['usd_per_label'])} each"
        rows.append(["LLM", count, "labels by an LLM", show_usd(llm["usd"]), each])
    else:
        rows.append(["LLM", "N/A", "", None, "no tokens per label known for this task"])
    print(show_columns(["Strategy", "Buys", "What", "Spends", "Detail"], rows))
    print(
        "\nAnn.   people label more; the compact model is fine-tuned on N + these labels"
        "\nDist.  a teacher is fine-tuned on the N labels; the compact model learns from its"
        "\n       soft labels on the unlabeled examples"
        "\nLLM    a large language model labels more, paid by the token"
    )
    print_notes(result["notes"])


def run_convert(args):
    """dollars into labels, hours, examples and tokens, and back"""
    terms = read_terms(args)
    first = read_study(args.task, load_task(args.task, args.tasks)).labels_n[0]
    at = parse_count(args.at_labels or first, "--at-labels", 1)
    result, llm = {"task": args.task, "at_labels": at}, terms.usd_per_llm_label
    prices = {"labels": terms.usd_per_label, "llm_labels": llm, "tokens": terms.usd_per_token}
    if args.usd is not None:
        result["usd"] = usd = parse_amount(args.usd, "--usd")
        bought = {name: each and math.floor(usd / each) for name, each in prices.items()}
        distill = plan(terms, at, usd)["distill"]
        result.update(gpu_hours=usd / terms.usd_per_gpu_hour, **bought)
        result["unlabeled"] = distill and distill["unlabeled"]
    elif args.unlabeled is not None:
        count = parse_count(args.unlabeled, "--unlabeled")
        usd, teacher = price_distilling(terms, at, count), price_distilling(terms, at, 0)
        result.update(unlabeled=count, usd=usd, teacher_usd=teacher, distill_usd=usd - teacher)
    elif args.gpu_hours is not None:
        hours = parse_amount(args.gpu_hours, "--gpu-hours")
        result.update(gpu_hours=hours, usd=hours * terms.usd_per_gpu_hour)
    else:
        name = next(name for name in prices if getattr(args, name) is not None)
        count = parse_count(getattr(args, name), f"--{name.replace('_', '-')}")
        if prices[name] is None:
            raise UserError(f"task {args.task!r}: no field 'llm_tokens_per_label' in its entry")
        result.update({name: count, "usd": count * prices[name]})
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
    for name in choose_tasks(args.table, args.task, args.tasks):
        args.task = name
        place = (args.table, name, args.scale, seeds, read_terms(args), args.tasks, args.llm)
        place += (args.prepared,)
        runs = grid(*place)
        results.append({"task": name, "runs": runs, "cells": cells(*place)})
        for run in () if args.json else runs:
            print(f"{name}/" * several + run.name)
    if args.json:
        print_json({"for": args.table, "scale": args.scale, "seeds": seeds, "tasks": results})


def run_flags(args):
    """command-line flags of the script that trains a strategy or a run"""
    if (args.strategy is None) == (args.run is None):
        raise UserError("flags: pass one of --strategy NAME and --run NAME")
    run = parse_run(args.run) if args.run else None
    shared = (args.task, args.scale, args.strategy, run, args.tasks, args.real_text)
    print(show_flags(make_flags(*shared)))


def run_rules(args):
    """what make must know of the runs of tables and figures: Makefile variables"""
    seeds, place = parse_seeds(args.seeds), (args.tasks, args.llm, args.prepared)
    names, wanted = args.table.split(), {}
    if args.table == "all":
        asked = list_tasks(args.task, args.tasks)
        names = [table for table in TABLES if any(shows(table, name) for name in asked)]
    for table in names:
        chosen = choose_tasks(table, args.task, args.tasks)
        wanted[table] = {t: grid(table, t, args.scale, seeds, None, *place) for t in chosen}
    every = {}
    for runs in wanted.values():
        for task in runs:
            every.setdefault(task, {}).update({run.name: run for run in runs[task]})
    print(f"ASKED := {' '.join(wanted)}")
    for task, runs in every.items():
        rules = list_rules(task, runs.values(), args.scale, args.tasks, args.real_text)
        print("\n".join(rules))
    for table, runs in wanted.items():
        work = (order_work(task, runs[task], every[task].values()) for task in runs)
        print(f"WORK_{table} := {' '.join(itertools.chain(*work))}")


def run_report(args):
    """what finished runs cost: by run, strategy, table and in all"""
    prices, hour = load_prices(args.prices), args.gpu_usd_per_hour
    hour = None if hour is None else parse_amount(hour, "--gpu-usd-per-hour")
    if args.gpu and hour is None:
        price_gpu_hour(prices, args.gpu, "paper")  # an unknown name stops here, used or not
    if args.table not in (None, *TABLES):
        raise UserError(f"unknown table or figure {args.table!r}; known: {', '.join(TABLES)}")
    asked = {"gpu_usd_per_hour": hour, "llm_model": args.llm_model}
    result = report(args.folder, prices, args.tasks, args.table, args.gpu, **asked)
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
        whole = bill.get("needs", bill["runs"]) == bill["runs"]
        runs = bill["runs"] if whole else f"{bill['runs']} of {bill['needs']}"
        row = [name, runs, f"{float(bill['paper']['hours']):.3f}", *usd(bill, "labels_usd")[:1]]
        rows.append(row + usd(bill, "llm_usd", "compute_usd", "usd"))
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
        rows.append((p.list, p.item, p.name, value, p.unit, p.date, p.source))
    print(show_columns("List,Item,Name,Price,Unit,Date,Source".split(","), rows))
    print_notes(
        [f"{args.prices}: edit it, or pass --prices FILE; a price given by flag comes first"]
    )


LLM_DEFAULT = "(default: text-davinci-003; of today's list gpt-4o-mini)"
FLAGS = {  # flag -> (its value's name, None for a switch; help); default None unless in DEFAULTS
    "task": ("NAME", "a task of --tasks, e.g. wlp; grid and rules take several, or all"),
    "labels": ("N", "labels there are already"),
    "budget": ("USD", "additional dollars"),
    "at-labels": ("N", "labels of the teacher (default: the first N of the task)"),
    "for": ("TABLE", f"one of {', '.join(TABLES)}; rules takes several, or all"),
    "scale": ("NAME", "an entry of data/scales.json (default: mini)"),
    "seeds": ("LIST", "seeds, e.g. '0 1 2' (default: 0)"),
    "prepared": ("DIR", "folder of data/prepare.py: its row counts limit the runs"),
    "llm": (None, "also runs on LLM labels at equal dollars (default: no)"),
    "strategy": ("NAME", "small, teacher, dist, self, llm, distilbert or bert"),
    "run": ("NAME", "name of a run: its strategy, counts and seed"),
    "real-text": (
        None,
        "data of one's own, not the scale's: flags of \"real-text\" too (default: no)",
    ),
    "json": (None, "print JSON (default: a table)"),
    "tasks": ("FILE", "task entries (default: data/tasks.json)"),
    "prices": ("FILE", "price list (default: data/prices.csv)"),
    "rates": ("KIND", "paper, or measured: GPU time of one's own --runs (default: paper)"),
    "runs": ("DIR", "folder of runs for --rates measured"),
    "price-list": ("LIST", "paper or today: rows of the price list (default: paper)"),
    "gpu": ("NAME", "GPU to rent, of the price list (default: the paper's A40; that of --runs)"),
    "gpus": ("LIST", "COUNTxCARD of the price list, or COUNTxGB, e.g. '1xH100-80GB 4x48'"),
    "model": ("NAMES", "T5 folders or hub names (default: the scale's teacher)"),
    "utilisation": ("SHARE", "of the card's peak FLOP/s, assumed (default: 0.4)"),
    "gpu-usd-per-hour": ("USD", "dollars of an hour of it (default: price list)"),
    "gpu-speed": ("X", "its speed in multiples of an A100-40GB (default: price list)"),
    "usd-per-label": ("USD", "dollars of a label (default: price list)"),
    "usd-per-1k-tokens": ("USD", "dollars of 1,000 LLM tokens (default: price list)"),
    "llm-model": ("NAME", f"LLM to pay {LLM_DEFAULT}"),
}
DEFAULTS = {
    "scale": "mini",
    "seeds": "0",
    "tasks": DATA / "tasks.json",
    "prices": DATA / "prices.csv",
    "rates": "paper",
    "price-list": "paper",
    "utilisation": 0.4,
    "memory task": "wlp",
    "memory scale": "paper",
}
CHOICES = {"rates": ("paper", "measured"), "price-list": ("paper", "today")}
ASKED = "gpu gpu_usd_per_hour gpu_speed usd_per_label usd_per_1k_tokens llm_model".split()
TERMS = "tasks prices price-list rates runs " + " ".join(ASKED).replace("_", "-")
COMMANDS = {  # name -> (function, its flags, ! marks a required one); its docstring is the help
    "plan": (run_plan, f"!task !labels !budget json {TERMS}"),
    "convert": (run_convert, f"!task at-labels json {TERMS}"),
    "grid": (run_grid, f"!for !task scale seeds llm prepared json {TERMS}"),
    "flags": (run_flags, "!task scale strategy run real-text tasks"),
    "rules": (run_rules, "!for !task scale seeds llm prepared real-text tasks"),
    "report": (run_report, "for json tasks prices gpu gpu-usd-per-hour llm-model"),
    "memory": (
        run_memory,
        "!gpus model task scale labels utilisation tasks prices gpu-usd-per-hour",
    ),
    "prices": (run_prices, "json prices"),
}
OWN_FLAGS = {  # where a command means something else by a flag; convert takes one of these
    "memory": {
        "task": ("NAME", "a task of --tasks, for its lengths (default: wlp)"),
        "scale": ("NAME", "an entry of data/scales.json, for its settings (default: paper)"),
        "labels": ("N", "labels to train on (default: the task's largest N)"),
    },
    "report": {
        "for": ("TABLE", "list this table too if runs of it are missing"),
        "gpu": ("NAME", "price hours on a CPU as hours of this GPU (default: no dollars)"),
        "gpu-usd-per-hour": ("USD", "dollars of every hour, on any device (default: price list)"),
    },
    "convert": {
        "usd": ("USD", "dollars into all that they buy"),
        "labels": ("N", "labels by people into dollars"),
        "llm-labels": ("N", "labels by an LLM into dollars"),
        "tokens": ("N", "input tokens of an LLM into dollars"),
        "gpu-hours": ("H", "hours of a GPU into dollars"),
        "unlabeled": ("N", "distilled examples into dollars, teacher included"),
    },
}


def add_flag(add, command, name, required=False):
    value, text = {**FLAGS, **OWN_FLAGS.get(command, {})}[name]
    if value is None:
        return add(f"--{name}", action="store_true", help=text)
    kind = {"metavar": value, "help": text}
    kind["default"] = DEFAULTS.get(f"{command} {name}", DEFAULTS.get(name))
    if name in CHOICES:
        kind["choices"] = CHOICES[name]
    if required:  # a group of flags that exclude each other doesn't take this word
        kind["required"] = True
    return add(f"--{name}", dest="table" if name == "for" else None, **kind)


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, (function, flags) in COMMANDS.items():
        text = function.__doc__
        command = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        if name == "report":
            command.add_argument("folder", help="a folder of runs, e.g. runs/ or runs/mini/wlp")
        if name == "convert":
            group = command.add_mutually_exclusive_group(required=True)
            for flag in OWN_FLAGS[name]:
                add_flag(group.add_argument, name, flag)
        for flag in flags.split():
            add_flag(command.add_argument, name, flag.lstrip("!"), flag.startswith("!"))
        command.set_defaults(function=function)
    args = parser.parse_args(argv)
    if not args.command:
        parser.print_help()
    return args


def main(argv=None):
    args = parse_args(argv)
    if args.command:
        args.function(args)


if __name__ == "__main__":
    run_cli(main)
