"""Kill a whole `make table2` again and again: does the same table come out, byte for byte?

Usage:
    python tests/kill_make.py --kills 100 --output data/results/kills.json   # half an hour, 2 cores
    SLOW=1 python -m pytest tests/test_kill_make.py                            # three kills

A copy of the project gets two small tasks (entities and classes, about 100 rows each) and recipes
of a few steps. Table 2 of both is made once undisturbed; then again and again, each time killed
with all its children (SIGKILL) at random moments, once a start, until a start comes through. Of a
finished grid the table, every cell and every prediction must be those of the undisturbed one.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "--max-steps 6 --min-steps 0 --warmup-steps 0 --batch-size 8 --save-steps 2"
COMMAND = [*"make table2 DATA=rows".split(), "TASK=wlp fever"]
COMMAND += ["PREPARE_FLAGS=--test-rows 24"]


def copy_project(folder):
    """The bundle with its .venv by link, and the rows of both tasks in the authors' layout."""
    ignored = shutil.ignore_patterns("prepared", "answers", "models", "results", "__pycache__")
    shutil.copytree(ROOT / "data", folder / "data", ignore=ignored)
    (folder / "data" / "world" / "models").symlink_to(ROOT / "data" / "world" / "models")
    for path in (*ROOT.glob("*.py"), ROOT / "Makefile", ROOT / "requirements.txt"):
        shutil.copy(path, folder)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    rng = random.Random(0)
    things = "water buffer ethanol agar lysate pellet".split()
    for task, make in (("wlp", write_entities), ("fever", write_claim)):
        (folder / "rows" / task).mkdir(parents=True)
        for split, count in (("train", 160), ("dev" if task == "fever" else "test", 40)):
            rows = {}
            while len(rows) < count:
                row = make(rng, rng.choice(things), rng.randrange(10_000))
                rows[row["source"]] = row
            text = "".join(json.dumps(row) + "\n" for row in rows.values())
            (folder / "rows" / task / f"{task}_{split}_all.json").write_text(text)


def write_entities(rng, thing, number):
    return {
        "source": f"add {number} ml of {thing}",
        "target": f"add [Action] {number} ml [Amount] {thing} [Reagent]",
    }


def write_claim(rng, thing, number):
    target = "SUPPORTS" if number % 2 else "REFUTES"
    return {"source": f"{thing} number {number} is odd", "target": target}


def start(folder):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    environment |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    log = open(folder / "log.txt", "a")  # noqa: SIM115 (the child keeps it)
    command = [*COMMAND, f"TRAIN_FLAGS={RECIPE}"]
    return subprocess.Popen(
        command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
    )


def make_whole(folder):
    """Seconds of a make that nobody kills."""
    begun = time.monotonic()
    assert start(folder).wait() == 0, (folder / "log.txt").read_text()[-2000:]
    return time.monotonic() - begun


def kill(process):
    """SIGKILL to make and everything that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def hash_results(folder):
    """One hash of the table and of all predictions; seconds differ, so the cells do."""
    digest, runs = hashlib.sha256(), folder / "runs" / "mini-rows"
    for path in [runs / "made" / "table2.md", *sorted(runs.glob("*/*/predictions.jsonl"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def count_runs(folder):
    return len(list((folder / "runs").glob("*/*/*/metrics.json")))


def kill_grid(folder, rng, seconds, kills):
    """Make the grid in `folder` with at most `kills` kills on the way. Returns how many fell."""
    done = 0
    while done < kills:
        process = start(folder)
        try:
            process.wait(rng.uniform(0.2, max(2, seconds / 2)))
        except subprocess.TimeoutExpired:
            kill(process)
            done += 1
        else:
            assert process.returncode == 0, (folder / "log.txt").read_text()[-2000:]
            return done
    make_whole(folder)
    return done


def run(work, kills, seed=0):
    """{kills, grids, same, runs, seconds}: what came of killing."""
    rng, first = random.Random(seed), work / "undisturbed"
    copy_project(first)
    seconds = make_whole(first)
    wanted, runs = hash_results(first), count_runs(first)
    done = grids = same = 0
    while done < kills:
        folder = work / f"grid{grids}"
        copy_project(folder)
        fell = kill_grid(folder, rng, seconds, min(8, kills - done))
        done, grids = done + fell, grids + 1
        same += hash_results(folder) == wanted and count_runs(folder) == runs
        print(f"{done} of {kills} kills, {same} of {grids} grids the same", flush=True)
        if same == grids:
            shutil.rmtree(folder)
    found = {"kills": done, "grids": grids, "same": same, "runs_a_grid": runs, "seed": seed}
    return {**found, "seconds_undisturbed": round(seconds, 1)}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="in all (default %(default)s)")
    parser.add_argument("--work", type=Path, default=Path("/tmp/kill_make"), help="(%(default)s)")
    parser.add_argument("--output", type=Path, help="JSON file of what came of it")
    args = parser.parse_args(argv)
    shutil.rmtree(args.work, ignore_errors=True)
    found = run(args.work, args.kills)
    print(json.dumps(found))
    if args.output:
        args.output.write_text(json.dumps(found, indent=2) + "\n")
    return found["same"] != found["grids"]


if __name__ == "__main__":
    raise SystemExit(main())
