"""gpt_annotate.py: nothing lost, nothing paid twice, no budget passed, on a server with faults."""

import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from collections import Counter
from dataclasses import replace
from fractions import Fraction

import pytest
from copied import copy_stage
from faulty_server import FAULTS, LOST, USAGE, FaultyServer

import evaluate
import gpt_annotate
import train_small
from data.annotate import calls, simulator
from data.annotate.calls import clean_url
from data.annotate.prompts import Prompter, estimate_tokens
from data.annotate.simulator import Annotator
from data.annotate.store import Money, Store, Wallet
from data.costs.prices import load_prices, show_usd
from data.files import ROOT, UserError, read_json, read_jsonl
from data.tasks import load_task
from data.world import lab

KEY = "sk-test-0123456789"
PRICES = ("3", "1.5", "7")  # USD per million prompt, cached and answer tokens
FAST = "--shots 3 --backoff 0.001 --timeout 5 --structured off --price-in 3 --price-cached 1.5"
FAST = [*FAST.split(), "--price-out", "7", "--model", "simulated"]
PRICE_LIST = load_prices()
SLOW = os.environ.get("SLOW")
LABELS = list(load_task("stanceosaurus").labels)


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_world(folder, count, labeled=100):
    """Files of a stance task; {source: target} of the unlabeled rows."""
    rng = random.Random(count)
    rows = [
        {"source": f"claim: {i} is odd tweet: is {i} odd?", "target": rng.choice(LABELS)}
        for i in range(count + labeled)
    ]
    write_rows(folder / "labeled.jsonl", rows[:labeled])
    write_rows(folder / "gold.jsonl", rows[labeled:])
    write_rows(folder / "unlabeled.jsonl", [{"source": row["source"]} for row in rows[labeled:]])
    return {row["source"]: row["target"] for row in rows[labeled:]}


def open_annotator(gold, accuracy=1.0, metric="classes", labels=LABELS, **options):
    rows = [{"source": source, "target": target} for source, target in gold.items()]
    return FaultyServer(rows, metric, labels, accuracy, prices=PRICES, **options)


def make_args(folder, url=None, *flags, task="stanceosaurus", out="out"):
    command = ["--task", task, "--labeled", folder / "labeled.jsonl"]
    command += ["--unlabeled", folder / "unlabeled.jsonl", "--output", folder / out]
    command += ["--base-url", url] if url else []
    return [str(part) for part in [*command, *FAST, *flags]]


def annotate(folder, url=None, *flags, **options):
    return gpt_annotate.main(make_args(folder, url, *flags, **options))


def read_results(folder, out="out"):
    summary = json.loads((folder / out / "annotation.json").read_text())
    return read_jsonl(folder / out / "labels.jsonl"), summary


def read_money(folder, out="out"):
    """The store's own account, exactly: (paid, possibly paid besides)."""
    given = dict(zip(("in", "cached", "out"), PRICES, strict=True))
    path = folder / out / "answers.jsonl"
    settings = json.loads(path.open().readline())["settings"]
    wallet = Wallet(Money("simulated", PRICE_LIST, given))
    Store(path, settings, wallet, write=False)
    return wallet.used, wallet.held


def spread_faults(count, first, kinds=FAULTS):
    """A schedule with `count` faults over the first `first` requests, each kind as often."""
    at = random.Random(0).sample(range(first), count)
    schedule = {n: kinds[i % len(kinds)] for i, n in enumerate(at)}
    return schedule.get


# --- faults --------------------------------------------------------------------------------


def price_charges(charges):
    """Exact dollars of the server's charges."""
    fresh, cached, completion = map(Fraction, PRICES)
    usd = ((p - c) * fresh + c * cached + o * completion for _, p, c, o, _ in charges)
    return sum(usd, Fraction(0)) / 10**6


@pytest.mark.parametrize(
    ("items", "count", "timeout"),  # seconds that no honest answer takes on a busy machine
    [
        (250, 100, 6),
        pytest.param(2500, 1000, 20, marks=pytest.mark.skipif(not SLOW, reason="SLOW=1")),
    ],
)
def test_faults_at_concurrency_64(tmp_path, items, count, timeout):
    """Each item labeled once; both books agree on every try, to the last fraction of a cent."""
    gold = make_world(tmp_path, items)
    faults = spread_faults(count, items)
    options = {"retry_after": "0.01", "slow": timeout + 2, "faults": faults}
    with open_annotator(gold, **options) as server:
        flags = f"--budget 9 --concurrency 64 --timeout {timeout} --attempts 20".split()
        annotate(tmp_path, server.url, *flags)
    labels, summary = read_results(tmp_path)
    assert sum(server.fired.values()) == count
    assert set(server.fired) - {None} == set(FAULTS)
    assert {row["source"]: row["target"] for row in labels} == gold
    assert len(labels) == items
    records = read_jsonl(tmp_path / "out" / "answers.jsonl", ("type",))
    counts = Counter(record["type"] for record in records)
    lost = sum(server.fired[kind] for kind in [*LOST, "500", "503", "drop"])
    assert counts["call"] == server.requests
    assert (counts["answer"], counts["lost"]) == (items, lost)
    assert counts["free"] == server.fired["429"] + server.fired["429-after"]
    answered = Counter(server.charges) - Counter(server.charged_and_lost)
    assert answered.total() == len({charge[0] for charge in answered}) == items
    silent = [record for record in records if record["type"] == "answer" and not record["usage"]]
    assert len(silent) == sum(server.fired[kind] for kind in USAGE)
    texts = [record["request"]["messages"][-1]["content"] for record in silent]
    silent = {text.rpartition("Input: ")[2].partition("\nOutput:")[0] for text in texts}
    known, possible = read_money(tmp_path)
    assert known == price_charges(c for c in answered.elements() if c[0] not in silent)
    assert known <= Fraction(server.usd) <= known + possible < 9
    assert summary["usd_possible"] == float(possible)


@pytest.mark.parametrize("concurrency", [1, 64])
def test_budget_is_never_passed(tmp_path, concurrency, capsys):
    """Even where the server bills every lost answer again; a larger budget continues."""
    gold = make_world(tmp_path, 120)
    kinds = [kind for kind in FAULTS if kind != "slow"]
    with open_annotator(gold, retry_after="0", faults=spread_faults(60, 120, kinds)) as server:
        spent = []
        for budget in ("0.005", "0.02", "0.03"):
            flags = ["--budget", budget, "--concurrency", str(concurrency), "--attempts", "20"]
            annotate(tmp_path, server.url, *flags)
            assert "reached" in capsys.readouterr().err
            known, possible = read_money(tmp_path)
            assert known <= Fraction(server.usd) <= known + possible <= Fraction(budget)
            spent.append(server.usd)
        assert 0 < spent[0] < spent[1] < spent[2]
        annotate(tmp_path, server.url, "--budget", "9", "--attempts", "20")
    labels, _ = read_results(tmp_path)
    assert {row["source"]: row["target"] for row in labels} == gold
    known, possible = read_money(tmp_path)
    assert known <= Fraction(server.usd) <= known + possible


def test_unknown_usage_counts_at_its_worst(tmp_path):
    gold = make_world(tmp_path, 20)
    options = {"faults": {3: "usage-null"}.get}
    with open_annotator(gold, **options) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "1")
    labels, summary = read_results(tmp_path)
    known, possible = read_money(tmp_path)
    assert len(labels) == len(server.charges) == 20  # not asked again: that would cost
    assert known < Fraction(server.usd) < known + possible
    assert summary["usd_possible"] > 0


def test_usage_above_the_worst_case_ends_the_run(tmp_path):
    gold = make_world(tmp_path, 20)
    options = {"faults": {3: "usage-huge"}.get}
    with (
        open_annotator(gold, **options) as server,
        pytest.raises(UserError, match=r"billed .* possible"),
    ):
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "1")
    assert server.requests == 4


@pytest.mark.parametrize(
    ("fault", "options", "text"),
    [
        (None, {"api_key": "other"}, "refuses the key"),
        (None, {"model": "another"}, "no such model"),
        ("quota", {}, "no quota left"),
    ],
)
def test_hopeless_errors_end_the_run_at_once(tmp_path, monkeypatch, fault, options, text):
    gold = make_world(tmp_path, 20)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with (
        open_annotator(gold, faults=lambda n: fault, **options) as server,
        pytest.raises(UserError, match=text) as error,
    ):
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "1")
    assert server.requests == 1
    assert KEY not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", [KEY, "x", "0", "token", "Paris"])
def test_answers_are_kept_as_they_came(tmp_path, monkeypatch, key):
    """A key that is a word of the answer, or of its JSON, is never cut out of it."""
    gold = dict.fromkeys(make_world(tmp_path, 6), f"Paris {key} 100")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with open_annotator(gold, api_key=key) as server:
        annotate(tmp_path, server.url, "--budget", "1", task="nq")
    labels, summary = read_results(tmp_path)
    assert {row["target"] for row in labels} == {f"Paris {key} 100"}
    assert (summary["calls"], summary["usd_possible"]) == (6, 0)
    assert summary["usd"] == float(server.usd)


@pytest.mark.parametrize("form", [["--base-url", "{}"], ["--base-url={}"]])
def test_no_secret_is_written(tmp_path, monkeypatch, form):
    """Neither the key nor what an address holds besides the place; an error may repeat both."""
    gold = make_world(tmp_path, 10)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with open_annotator(gold) as server:
        address = server.url.replace("//", "//user:sk-SECRET@")
        flags = [part.format(address) for part in form]
        args = [*make_args(tmp_path), "--budget", "1", *flags]
        monkeypatch.setattr("sys.argv", ["gpt_annotate.py", *args, f"--x={KEY}"])
        gpt_annotate.main(args)
    with open_annotator(gold, api_key="other") as server:
        for url in (server.url, server.url.replace("//", "//user:sk-SECRET@")):
            with pytest.raises(UserError, match=r"refuses the key .*\[key\]") as error:
                annotate(tmp_path, url, "--budget", "1", out="refused")
            assert not re.search(f"{KEY}|SECRET|dXNlc", str(error.value))
    written = "".join(path.read_text() for path in tmp_path.glob("*/*.*"))
    assert "[key]" in written
    assert not re.search(f"{KEY}|SECRET|dXNlc", written)
    assert clean_url("http://a:b@c.d/v1/@cf?key=sk-a") == "http://c.d/v1/@cf"


@pytest.mark.parametrize("form", ["{}\r", "{}\n", " {} "])
def test_white_space_around_a_key_is_none_of_it(tmp_path, monkeypatch, form):
    gold = make_world(tmp_path, 3)
    monkeypatch.setenv("OPENAI_API_KEY", form.format(KEY))
    with open_annotator(gold, api_key=KEY) as server:
        annotate(tmp_path, server.url, "--budget", "1")


@pytest.mark.parametrize(
    ("url", "key", "text"),
    [
        ("127.0.0.1:8000/v1", KEY, "--base-url 127.0.0.1:8000/v1: no address such as"),
        ("ftp://127.0.0.1/v1", KEY, "no address such as"),
        ("http://", KEY, "no address such as"),
        ("http://127.0.0.1:99999/v1", KEY, "no address such as"),
        ("http://127.0.0.1:port/v1", KEY, "no address such as"),
        ("http://a b/v1", KEY, "no address such as"),
        ("http://127.0.0.1:9/v1", "sk-\u201cabc\u201d", "OPENAI_API_KEY: '\u201c' is in no key"),
        ("http://127.0.0.1:9/v1", "sk-äöü", "OPENAI_API_KEY: 'ä' is in no key"),
        ("http://127.0.0.1:9/v1", "sk-a\nb", "OPENAI_API_KEY: '\\n' is in no key"),
        ("http://127.0.0.1:9/v1", KEY, "cannot be reached"),
        ("http://no.such.host.invalid/v1", KEY, "cannot be reached"),
    ],
)
def test_what_cannot_be_sent_is_free(tmp_path, monkeypatch, url, key, text):
    make_world(tmp_path, 3)
    monkeypatch.setenv("OPENAI_API_KEY", key)
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    start = time.monotonic()
    with pytest.raises(UserError, match=re.escape(text)) as error:
        annotate(tmp_path, None, "--budget", "1")
    assert time.monotonic() - start < 10 and KEY not in str(error.value)
    path = tmp_path / "out" / "answers.jsonl"
    assert not path.exists() or '"lost"' not in path.read_text()


def test_retry_after_is_kept(tmp_path):
    gold = make_world(tmp_path, 5)
    with open_annotator(gold, faults={0: "429-after"}.get, retry_after="1") as server:
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "5")
    assert min(server.times[5:]) - server.times[0] >= 1
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 30))
    assert 25 < calls.read_wait({"retry-after": date}) <= 30
    assert calls.read_wait({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert calls.read_wait({"retry-after": "soon"}) is None


def test_long_retry_after_ends_the_run(tmp_path):
    gold = make_world(tmp_path, 5)
    options = {"faults": {0: "429-after"}.get, "retry_after": "86400"}
    with (
        open_annotator(gold, **options) as server,
        pytest.raises(UserError, match="asks to wait 86,400 s"),
    ):
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "1")


def test_ill_server_ends_the_run(tmp_path):
    gold = make_world(tmp_path, 50)
    with (
        open_annotator(gold, faults=lambda n: "503") as server,
        pytest.raises(UserError, match=r"no answer after 3 tries \(the last: HTTP 503\)"),
    ):
        annotate(tmp_path, server.url, "--budget", "9", "--attempts", "3", "--concurrency", "5")
    assert server.requests < 50
    assert not (tmp_path / "out" / "labels.jsonl").exists()


def test_rates_are_kept(tmp_path):
    gold = make_world(tmp_path, 20)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--rpm", "1200")
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    assert sum(gaps) >= 0.9 * 19 * 60 / 1200
    limiter = calls.Limiter(tpm=6000)
    assert [round(limiter.take(100)) for _ in range(4)] == [0, 1, 2, 3]


# --- killed, repeated, shared --------------------------------------------------------------

NURSERY = """
import json, os, sys
import openai, gpt_annotate
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        gpt_annotate.run_cli(lambda: gpt_annotate.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""  # forks, so that many runs import once


@pytest.mark.parametrize("times", [20])
def test_killed_many_times(tmp_path, times):
    """One pass is paid, and at most the calls in flight at each kill."""
    gold, rng = make_world(tmp_path, 200), random.Random(1)
    command = [sys.executable, "-c", NURSERY]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with (
        open_annotator(gold, latency=0.02) as server,
        subprocess.Popen(command, **pipes) as nursery,
    ):
        args = make_args(tmp_path, server.url, "--budget", "1", "--concurrency", "8")
        assert nursery.stdout.readline() == "ready\n"

        def run(requests=None):
            """Kill a random moment after so many requests; (exit status, requests of the run)."""
            before = server.requests
            nursery.stdin.write(json.dumps(args) + "\n")
            nursery.stdin.flush()
            child = int(nursery.stdout.readline())
            if requests is not None:
                end = time.monotonic() + 20
                while server.requests < before + requests and time.monotonic() < end:
                    time.sleep(0.001)
                time.sleep(rng.uniform(0, 0.06))
                os.kill(child, signal.SIGKILL)
            return int(nursery.stdout.readline()), server.requests - before

        kills = [run(rng.randrange(0, 8)) for _ in range(times)]
        assert all(status == signal.SIGKILL for status, _ in kills)
        assert len({requests for _, requests in kills}) > 1  # at different moments
        assert run()[0] == 0
        nursery.stdin.close()
    labels, _ = read_results(tmp_path)
    assert {row["source"]: row["target"] for row in labels} == gold
    known, possible = read_money(tmp_path)
    assert 200 <= len(server.charges) <= 200 + times * 8
    assert known <= Fraction(server.usd) <= known + possible
    answers = [r["key"] for r in read_jsonl(tmp_path / "out" / "answers.jsonl", ("type",))
               if r["type"] == "answer"]  # fmt: skip
    assert len(answers) == len(set(answers)) == 200  # what was answered is never asked again


def test_finished_job_makes_no_call(tmp_path, capsys):
    gold = make_world(tmp_path, 30)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1")
    first = capsys.readouterr().out
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    annotate(tmp_path, server.url, "--budget", "1")  # the server is gone
    annotate(tmp_path, None, "--replay")
    assert capsys.readouterr().out == first * 2
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert {path.name for path in kept} == {
        "answers.jsonl",
        "labels.jsonl",
        "prompt.txt",
        "annotation.json",
    }
    assert kept == files


def test_more_rows_keep_the_former(tmp_path):
    gold = make_world(tmp_path, 40)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--num", "15")
        few, _ = read_results(tmp_path)
        annotate(tmp_path, server.url, "--budget", "1", "--num", "40")
    many, _ = read_results(tmp_path)
    assert many[:15] == few
    assert len(server.charges) == len(many) == 40


def test_outputs_share_a_store(tmp_path):
    """Each row is paid once for all of them, and each output counts the tokens of its own rows."""
    gold = make_world(tmp_path, 40)
    shared = ["--store", str(tmp_path / "paid" / "answers.jsonl"), "--budget", "1"]
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, *shared, "--num", "40", out="all")
    for count, labeled in ((15, 0), (30, 7)):
        flags = ["--replay", "--num", str(count), "--add-labeled", str(labeled)]
        annotate(tmp_path, None, *shared, *flags, out=f"of-{count}")
    everything, total = read_results(tmp_path, "all")
    few, spent = read_results(tmp_path, "of-15")
    mixed, more = read_results(tmp_path, "of-30")
    assert few == everything[:15] and mixed[7:] == everything[:30]
    assert mixed[:7] == train_small.sample_rows(
        read_jsonl(tmp_path / "labeled.jsonl"), 7, 0, "labeled.jsonl"
    )
    assert more["labels"] == 30  # the LLM's
    charged = {charge[0]: charge[1] for charge in server.charges}
    for rows, summary in ((few, spent), (everything[:30], more), (everything, total)):
        tokens = summary["llm_tokens"]
        assert tokens["in"] + tokens["cached"] == sum(charged[row["source"]] for row in rows)
        assert summary["calls"] == len(rows)
    assert spent["usd"] < more["usd"] < total["usd"] == float(server.usd)


def test_complete_means_every_row(tmp_path):
    gold = make_world(tmp_path, 40)
    with open_annotator(gold) as server:
        flags = ["--complete", "--budget", "0.005"]
        with pytest.raises(UserError, match=r"\d+ of 40 rows without an answer; a larger --bud"):
            annotate(tmp_path, server.url, *flags)
        assert not (tmp_path / "out" / "labels.jsonl").exists()
        annotate(tmp_path, server.url, "--complete", "--budget", "1")
    assert len(server.charges) == 40
    annotate(tmp_path, None, "--replay", "--complete")


def test_predictions_are_scored_with_what_is_no_label(tmp_path):
    """Two targets of one source stay two rows; an answer that is no label is wrong, not missing."""
    gold = make_world(tmp_path, 40)
    rows = [{"source": source, "target": target} for source, target in gold.items()]
    rows[5]["half"] = "new"
    rows.append({**rows[0], "target": next(x for x in LABELS if x != rows[0]["target"])})
    write_rows(tmp_path / "unlabeled.jsonl", rows)
    odd = dict(zip(list(gold)[1:4], ["", "I cannot say.", "both of them"], strict=True))
    with open_annotator({**gold, **odd}) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--predictions")
    said = read_jsonl(tmp_path / "out" / "predictions.jsonl", ("prediction",))
    assert Counter((row["source"], row["target"]) for row in said) == Counter(
        (row["source"], row["target"]) for row in rows
    )
    right = sum(row["prediction"] == row["target"] for row in said)
    assert right == 37
    wrong = [row["prediction"] for row in said if row["source"] in odd]
    assert sorted(wrong) == ["", "I cannot say.", "both of them"]
    flags = ["--predictions", str(tmp_path / "out" / "predictions.jsonl"), "--bootstrap", "0"]
    evaluate.main(["--task", "stanceosaurus", *flags, "--output", str(tmp_path / "out")])
    metrics = read_json(tmp_path / "out" / "metrics.json")
    assert metrics["score"] == pytest.approx(100 * 37 / 41)
    assert metrics["by"]["half"]["new"]["n"] == 1
    with pytest.raises(UserError, match="no 'target' in this row"):
        write_rows(tmp_path / "unlabeled.jsonl", [{"source": "x"}])
        annotate(tmp_path, None, "--budget", "1", "--predictions")


def test_equal_rows_are_paid_once(tmp_path):
    gold = make_world(tmp_path, 10)
    rows = [{"source": source} for source in gold] * 3
    write_rows(tmp_path / "unlabeled.jsonl", rows)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1")
    labels, summary = read_results(tmp_path)
    assert len(labels) == summary["items"] == 30
    assert len(server.charges) == 10


def test_torn_line_is_dropped(tmp_path):
    gold = make_world(tmp_path, 10)
    path = tmp_path / "out" / "answers.jsonl"
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1")
        lines = path.read_bytes().splitlines(keepends=True)
        answers = [i for i, line in enumerate(lines) if b'"type": "answer"' in line]
        path.write_bytes(b"".join(lines[: answers[-1]]) + lines[answers[-1]][:-30])
        annotate(tmp_path, server.url, "--budget", "1")
        assert len(server.charges) == 11  # the torn one again
        path.write_bytes(path.read_bytes() + b"not json\n")
        with pytest.raises(UserError, match=r"answers.jsonl line \d+: not a record"):
            annotate(tmp_path, server.url, "--budget", "1")


def test_one_writer_at_a_time(tmp_path):
    gold = make_world(tmp_path, 10)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--num", "5")
        path = tmp_path / "out" / "answers.jsonl"
        settings = json.loads(path.open().readline())["settings"]
        other = Store(path, settings, Wallet(Money("gpt-4o-mini", PRICE_LIST)))
        with pytest.raises(UserError, match="another process is writing it"):
            annotate(tmp_path, server.url, "--budget", "1")
        other.close()
        annotate(tmp_path, server.url, "--budget", "1")


@pytest.mark.parametrize("signals", [[signal.SIGINT], [signal.SIGTERM] * 2])  # as `timeout` does
def test_interrupted_run_takes_its_answers_home(tmp_path, signals):
    gold = make_world(tmp_path, 200)
    with open_annotator(gold, latency=0.05) as server:
        args = make_args(tmp_path, server.url, "--budget", "1")
        command = [sys.executable, "gpt_annotate.py", *args]
        run = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        while len(server.charges) < 20:
            time.sleep(0.01)
        for number in signals:
            run.send_signal(number)
        _, errors = run.communicate(timeout=20)
    assert run.returncode == 130
    assert errors.endswith("run the same command again to continue\n")
    assert len(server.charges) < 200
    assert read_money(tmp_path) == (Fraction(server.usd), 0)


def test_store_of_the_first_version_is_read(tmp_path):
    """What was paid for then is not asked again; its books are the same, lost calls included."""
    gold = make_world(tmp_path, 8, labeled=4)
    path = tmp_path / "out" / "answers.jsonl"
    path.parent.mkdir()
    path.write_bytes((ROOT / "tests" / "old_store.jsonl").read_bytes())
    assert read_money(tmp_path) == (Fraction(1871, 10**6), Fraction(4707, 10**6))
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1")
    assert server.requests == 1  # 7 of 8 rows were there
    assert {row["source"]: row["target"] for row in read_results(tmp_path)[0]} == gold
    known, possible = read_money(tmp_path)
    assert (known, possible) == (
        Fraction(1871, 10**6) + Fraction(server.usd),
        Fraction(4707, 10**6),
    )


@pytest.mark.parametrize("version", ["3", "0", '"2"', "true", "null"])
def test_store_of_another_version_is_refused_and_left_alone(tmp_path, version):
    gold = make_world(tmp_path, 3)
    path, text = tmp_path / "s", f'{{"type": "store", "settings": {{}}, "version": {version}}}\n'
    path.write_text(text)
    said = pytest.raises(UserError, match=r"s line 1: not a record of such a store \(.*version")
    with open_annotator(gold) as server, said:
        annotate(tmp_path, server.url, "--budget", "1", "--store", str(path))
    assert path.read_text() == text and server.requests == 0


@pytest.mark.parametrize("text", ["my notes", "my notes\n", '{"a": 1}\n{"a": 2}\n', "\n"])
def test_another_file_is_no_store(tmp_path, text):
    gold = make_world(tmp_path, 3)
    path = tmp_path / "notes.json"
    path.write_text(text)
    with open_annotator(gold) as server:
        with pytest.raises(UserError, match=r"notes.json line 1: not the heading of a store"):
            annotate(tmp_path, server.url, "--budget", "1", "--store", str(path))
        assert path.read_text() == text and server.requests == 0
        path.write_text('{"typ')  # torn by a kill while the heading was written
        annotate(tmp_path, server.url, "--budget", "1", "--store", str(path))


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ('{"type": "answer", "key": "k", "attempt": 1, "status": 200, "usage": [-8, 0, 1], '
         '"estimate": 1, "raw": "{\\"choices\\": [{\\"text\\": \\"x\\"}]}"}', "no counts of"),
        ('{"type": "call", "key": "k", "attempt": 1, "worst": [1, 2]}', "no counts of tokens"),
        ("[1]", "list"), ("null", "NoneType"), ("{", "JSONDecodeError"),
        ('{"type": 5}', "KeyError.5"), ("[" * 100_000, "RecursionError"),
        ('{"type": "call", "key": "k", "attempt": "1", "worst": [1, 0, 2]}', "'attempt': must"),
        ('{"type": "answer", "key": null, "raw": "{}", "status": 200}', "'key': must be a text"),
        ('{"type": "answer", "key": "k", "raw": "{}", "status": "200"}', "'status': must"),
        ('{"type": "decision", "structured": "no"}', "must be true or false"),
    ],
)  # fmt: skip
def test_damaged_store_names_its_line(tmp_path, record, text):
    make_world(tmp_path, 8, labeled=4)
    path = tmp_path / "old.jsonl"
    path.write_bytes((ROOT / "tests" / "old_store.jsonl").read_bytes() + f"{record}\n".encode())
    with pytest.raises(UserError, match=rf"old.jsonl line 24: not a record .*{text}"):
        annotate(tmp_path, None, "--replay", "--store", str(path))


@pytest.mark.parametrize(
    "flags",
    [
        ["--labeled", "out/labels.jsonl"],
        ["--unlabeled", "out/predictions.jsonl"],
        ["--gold", "out/annotation.json"],
        ["--store", "labeled.jsonl"],
        ["--store", "link.jsonl"],
        ["--store", "out/labels.jsonl"],
        ["--prices", "out/prompt.txt"],
    ],
)
def test_an_output_never_overwrites_an_input(tmp_path, flags):
    make_world(tmp_path, 4)
    os.link(tmp_path / "unlabeled.jsonl", tmp_path / "link.jsonl")
    path = tmp_path / flags[1]
    if not path.exists() and flags[0] != "--store":
        path.parent.mkdir(exist_ok=True)
        path.write_bytes((tmp_path / "labeled.jsonl").read_bytes())
    before = {each: each.read_bytes() for each in tmp_path.rglob("*.*")}
    with pytest.raises(UserError, match=r"would be overwritten, and it is an(other)? (in|out)put"):
        annotate(tmp_path, "http://127.0.0.1:9/v1", "--budget", "1", flags[0], str(path))
    assert {each: each.read_bytes() for each in tmp_path.rglob("*.*")} == before


# --- nothing usable comes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "tokens", "reasons"),
    [
        ("no idea", 16, "20 unparseable"),
        ("I'm sorry, I can't help with that.", 16, "20 refusal"),
        ("<think> so many words of reasoning " * 9, 16, "20 truncated); 16 tokens may be too few"),
    ],
)
def test_a_brake_where_no_answer_holds_a_label(tmp_path, answer, tokens, reasons):
    gold = make_world(tmp_path, 60)
    odd = dict.fromkeys(gold, answer)
    flags = ["--budget", "1", "--concurrency", "64", "--max-tokens", str(tokens)]
    with open_annotator(odd) as server:
        for _ in range(2):  # and again: no call more
            with pytest.raises(UserError, match=re.escape(f"first 20 answers ({reasons}")):
                annotate(tmp_path, server.url, *flags)
            assert server.requests == 20
        with pytest.raises(UserError, match=re.escape("no label in its 60 answers (60 ")):
            annotate(tmp_path, server.url, *flags, "--brake", "0")
    assert server.requests == 60


def test_the_brake_is_off_with_the_first_label(tmp_path):
    gold = make_world(tmp_path, 60)
    odd = {**dict.fromkeys(gold, "no idea"), list(gold)[7]: LABELS[0]}
    with open_annotator(odd) as server:
        flags = ["--budget", "1", "--brake", "60", "--concurrency", "1"]
        annotate(tmp_path, server.url, *flags)
        assert len(read_results(tmp_path)[0]) == 1
        annotate(tmp_path, server.url, "--budget", "1", "--replay", "--brake", "1")
    assert server.requests == 60


# --- replies that are another call's ---------------------------------------------------------


def test_a_reply_sent_to_two_calls_answers_one(tmp_path):
    """A gateway that now and then gives the former reply again, id and all."""
    gold, before = make_world(tmp_path, 60), []

    def edit(reply):
        before.append(reply)
        return before[-2] if len(before) % 7 == 0 else reply

    with open_annotator(gold, edit=edit) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "1")
    assert {row["source"]: row["target"] for row in read_results(tmp_path)[0]} == gold
    known, possible = read_money(tmp_path)
    assert known <= Fraction(server.usd) <= known + possible
    records = read_jsonl(tmp_path / "out" / "answers.jsonl", ("type",))
    lost = [record for record in records if record["type"] == "lost"]
    assert {record["why"] for record in lost} == {"a copy of another reply"}


def test_a_server_whose_replies_all_have_one_id(tmp_path):
    """Then the id says nothing: at most one call is asked twice."""
    gold = dict.fromkeys(make_world(tmp_path, 30), LABELS[0])
    with open_annotator(gold, edit=lambda reply: {**reply, "id": "x", "model": ["odd"]}) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--concurrency", "1")
    assert len(read_results(tmp_path)[0]) == 30
    assert server.requests == 31


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_confidence_comes_from_logprobs(tmp_path, endpoint):
    gold = make_world(tmp_path, 5)
    told = {"content": [{"logprob": -0.1}, {"logprob": -0.3}]}
    told = told if endpoint == "chat" else {"token_logprobs": [-0.1, -0.3]}

    def edit(reply):
        return {**reply, "choices": [{**reply["choices"][0], "logprobs": told}]}

    with open_annotator(gold, edit=edit) as server:
        flags = ["--budget", "1", "--endpoint", endpoint, "--logprobs"]
        annotate(tmp_path, server.url, *flags)
        assert all(b'"logprobs"' in body for body in server.bodies)
        annotate(tmp_path, server.url, *flags[:-1])  # the same calls: nothing is asked again
    assert server.requests == 5
    labels, summary = read_results(tmp_path)
    assert [row["confidence"] for row in labels] == [pytest.approx(0.818731)] * 5
    assert summary["confidence"] == {"rows": 5, "mean": pytest.approx(0.818731)}


# --- prompts and answers -------------------------------------------------------------------


def make_prompter(task="wlp", count=100, **options):
    entry = load_task(task) if isinstance(task, str) else task
    pool = [
        {"source": f"mix {i} ml", "target": f"mix [Action] {i} ml [Amount]"} for i in range(count)
    ]
    given = {"seed": 0, "shots": 32, "fixed_examples": False, "model": "m"}
    given |= {"temperature": 0.0, "max_tokens": 64, "extra": {}}
    given |= {"endpoint": "chat", "structured": "off", "logprobs": False, "task": "t"}
    return Prompter(Namespace(**{**given, **options}), entry, pool)


def test_examples_are_drawn_and_shuffled_anew():
    prompter = make_prompter()
    parts = {f"stir {i}": prompter.write_parts(f"stir {i}") for i in range(200)}
    for source, (instruction, *examples, last) in parts.items():
        assert instruction.startswith(
            "Classify named entities into one of the following categories: {Amount, Reagent, "
        )
        assert len(set(examples)) == 32
        assert last == f"Input: {source}\nOutput:"
        assert make_prompter().write_parts(source) == parts[source]  # on resumption
    used = Counter(example for part in parts.values() for example in part[1:-1])
    assert len(used) == 100
    assert max(used.values()) < 2 * min(used.values())
    first = Counter(part[1] for part in parts.values())
    assert len(first) > 70  # order too
    assert make_prompter(seed=1).write_parts("stir 1") != parts["stir 1"]


def test_own_source_is_no_example():
    for options in ({}, {"fixed_examples": True}):
        parts = make_prompter(count=33, **options).write_parts("mix 7 ml")
        assert len(parts) == 34
        assert sum("mix 7 ml" in part for part in parts) == 1


def test_fixed_examples_keep_the_prefix(tmp_path):
    prompter = make_prompter(fixed_examples=True)
    assert len({tuple(prompter.write_parts(f"stir {i}")[:-1]) for i in range(20)}) == 1
    gold = {f"stir {i}": "stir [Action]" for i in range(30)}
    write_rows(tmp_path / "labeled.jsonl", prompter.pool)
    write_rows(tmp_path / "unlabeled.jsonl", [{"source": source} for source in gold])
    labels = list(load_task("wlp").labels)
    with open_annotator(gold, metric="entities", labels=labels) as server:
        flags = "--budget 1 --shots 80 --fixed-examples --concurrency 1".split()
        annotate(tmp_path, server.url, *flags, task="wlp")
    _, summary = read_results(tmp_path)
    assert summary["llm_tokens"]["cached"] == sum(c[2] for c in server.charges) > 29 * 1024
    assert summary["usd"] == float(server.usd)


def test_completion_endpoint(tmp_path):
    body = make_prompter(endpoint="completions").write_request("stir")
    assert body["prompt"].endswith("\n\nInput: stir\nOutput:")
    assert "messages" not in body
    gold = make_world(tmp_path, 10)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--endpoint", "completions")
    assert read_results(tmp_path)[1]["valid"] == 10
    assert all(b'"prompt"' in body for body in server.bodies)


def test_own_task_has_a_prompt():
    entry = replace(load_task("fever"), labels=("spam", "ham"), instruction=None)
    prompter = make_prompter(entry)
    assert prompter.instruction.endswith("categories: {spam, ham}")


def test_odd_answers_are_left_out(tmp_path, capsys):
    gold = make_world(tmp_path, 30)
    odd = dict(zip(list(gold)[:6], ["", "I cannot say.", "yes"] * 2, strict=True))
    with open_annotator({**gold, **odd}) as server:
        annotate(tmp_path, server.url, "--budget", "1")
    labels, summary = read_results(tmp_path)
    assert {row["source"]: row["target"] for row in labels} == {
        source: target for source, target in gold.items() if source not in odd
    }
    assert summary["invalid_reasons"] == {"empty": 2, "refusal": 2, "unparseable": 2}
    assert summary["usd"] == float(server.usd)  # paid for all the same
    assert "6 answers without a label" in capsys.readouterr().out


@pytest.mark.parametrize("structured", ["yes", "reject", "reject-500", "ignore"])
@pytest.mark.parametrize("task", ["stanceosaurus", "wlp"])
def test_schema_where_the_server_knows_it(tmp_path, structured, task):
    gold, entry = make_world(tmp_path, 12), load_task(task)
    if task == "wlp":
        gold = dict.fromkeys(gold, "claim [Action] is odd [Modifier]")
        rows = [{"source": f"claim: {i} is odd", "target": "claim [Action]"} for i in range(100)]
        write_rows(tmp_path / "labeled.jsonl", rows)
    options = {"structured": structured, "metric": entry.metric, "labels": list(entry.labels)}
    with open_annotator(gold, **options) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--structured", "auto", task=task)
    labels, summary = read_results(tmp_path)
    assert {row["source"]: row["target"] for row in labels} == gold
    assert summary["structured"] == (structured == "yes")
    assert len(server.charges) == 12
    asked = sum(b"json_schema" in body for body in server.bodies)
    assert asked == (12 if structured == "yes" else 1)
    assert server.requests == 12 + structured.startswith("reject")
    assert summary["usd_possible"] == 0


@pytest.mark.parametrize("structured", ["on", "off"])
def test_a_text_without_entities_is_a_lesson_and_an_answer(tmp_path, structured):
    """An own task's empty targets are drawn, shown, answered, written and scored as such."""
    task = {"title": "T", "metric": "entities", "prefix": "t: ", "labels": ["Gene"]}
    task |= {"max_source_length": 9, "max_target_length": 9, "labels_n": [1], "budgets": [1]}
    (tmp_path / "task.json").write_text(json.dumps(task))
    targets = ["", "TP1 [Gene]", "", ""]
    rows = [{"source": f"TP1 x {i}", "target": targets[i % 4]} for i in range(80)]
    write_rows(tmp_path / "labeled.jsonl", rows[:40])
    write_rows(tmp_path / "unlabeled.jsonl", rows[40:])
    gold = {row["source"]: row["target"] for row in rows[40:]}
    with open_annotator(gold, metric="entities", labels=["Gene"]) as server:
        flags = ["--budget", "1", "--predictions", "--add-labeled", "9", "--structured", structured]
        word = f"t={tmp_path / 'task.json'}"
        annotate(tmp_path, server.url, *flags, task=word)
    labels, summary = read_results(tmp_path)
    assert {row["source"]: row["target"] for row in labels[9:]} == gold
    assert labels[:9] == train_small.sample_rows(rows[:40], 9, 0, "labeled", keep_empty=True)
    assert "" in {row["target"] for row in labels[:9]}
    assert (summary["valid"], summary["invalid"]) == (40, 0)
    assert "Output: none\n" in (tmp_path / "out" / "prompt.txt").read_text()
    flags = ["--predictions", str(tmp_path / "out" / "predictions.jsonl"), "--bootstrap", "0"]
    evaluate.main(["--task", word, *flags, "--output", str(tmp_path / "out")])
    metrics = read_json(tmp_path / "out" / "metrics.json")["metrics"]
    assert (metrics["exact_match"], metrics["invalid_rate"]) == (100, 0)


# --- estimates and the paper's counts ------------------------------------------------------


@pytest.mark.parametrize(("task", "labels"), [("wlp", "4,347"), ("stanceosaurus", "2,739")])
def test_200_dollars_buy_the_papers_labels(tmp_path, capsys, task, labels):
    make_world(tmp_path, 3)
    flags = ["--dry-run", "--budget", "200", "--model", "text-davinci-003"]
    annotate(tmp_path, None, *flags, task="stanceosaurus")
    text = capsys.readouterr().out
    assert "$200.00 bought 2,739 labels at $0.073 in the paper, 3,650 tokens each" in text
    entry = load_task(task)
    line = gpt_annotate.count_paper(Namespace(budget=Fraction(200)), entry, load_prices())
    assert f"bought {labels} labels" in line
    assert not (tmp_path / "out").exists()  # a dry run leaves nothing behind


def test_the_papers_budget_for_so_many_labels(tmp_path, capsys):
    make_world(tmp_path, 10)
    annotate(tmp_path, None, "--dry-run", "--budget", "paper", "--num", "10")
    assert "$0.73 bought 10 labels at $0.073 in the paper" in capsys.readouterr().out


def test_budget_buys_what_the_price_says(tmp_path):
    """At 2.3K tokens and $0.02 per 1K, spent to the last label that surely fits."""
    words = " ".join(["pipette"] * 70)
    rows = [{"source": f"{words} {i}", "target": LABELS[0]} for i in range(200)]
    write_rows(tmp_path / "labeled.jsonl", rows[:100])
    write_rows(tmp_path / "unlabeled.jsonl", rows[100:])
    gold = {row["source"]: row["target"] for row in rows[100:]}
    with FaultyServer(rows, "classes", LABELS, 1.0, prices=("20", "20", "20")) as server:
        flags = "--shots 32 --budget 2 --price-in 20 --price-out 20 --price-cached 20".split()
        annotate(tmp_path, server.url, *flags)
        spent = server.usd
        annotate(tmp_path, server.url, *(flag.replace("20", "15") for flag in flags))
        more = (server.usd - spent) * 3 / 4
        assert spent + more <= 2  # prices fall, and what was bought before cost what it did
    assert len(gold) == 100
    labels, summary = read_results(tmp_path)
    each = server.usd / len(labels)
    worst = Fraction(20 * (35 * (len(words) + 40)), 10**6)
    assert 2 - worst < server.usd <= 2
    assert int(2 / each) - len(labels) <= worst / Fraction(each)
    assert summary["missing"] == 100 - len(labels)


def read_wlp():
    path = ROOT.parent / "shared" / "data" / "official" / "wlp" / "wlp_test_all.json"
    if not path.exists():
        pytest.skip("the released wlp file is not at hand")
    return [row for row in read_jsonl(path) if row["target"].strip()]


def make_mini_rows():
    sizes = {"train": 150, "dev": 1, "test": 40, "unlabeled": 1}
    splits = lab.draw_splits(sizes=sizes)
    return [*splits["train"], *splits["test"]]


@pytest.mark.parametrize("read", [read_wlp, make_mini_rows])
def test_estimate_is_near_the_servers_count(tmp_path, read, capsys):
    """Within 5% of the tokens that the server bills, by another rule, before any call."""
    rows = read()
    write_rows(tmp_path / "labeled.jsonl", rows[:150])
    write_rows(tmp_path / "unlabeled.jsonl", rows[150:190])
    labels = list(load_task("wlp").labels)
    gold = {row["source"]: row["target"] for row in rows[150:190]}
    with open_annotator(gold, metric="entities", labels=labels) as server:
        flags = ["--budget", "9", "--shots", "32"]
        annotate(tmp_path, server.url, *flags, "--dry-run", task="wlp")
        prompt = re.search(r"([\d,.]+) prompt and", capsys.readouterr().out)[1].replace(",", "")
        annotate(tmp_path, server.url, *flags, task="wlp")
    counted = statistics.fmean(charge[1] for charge in server.charges)
    assert abs(float(prompt) / counted - 1) < 0.05


def test_estimate_follows_the_answers(tmp_path, capsys, monkeypatch):
    """A tokenizer of another kind: after a few answers, the estimate is within 5% again."""
    gold, count = make_world(tmp_path, 120), simulator.count_tokens
    monkeypatch.setattr(simulator, "count_tokens", lambda text: round(1.4 * count(text)))
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--num", "20")
        capsys.readouterr()
        annotate(tmp_path, server.url, "--budget", "1", "--dry-run")
        text = capsys.readouterr().out
        assert "100 calls" in text
        prompt = re.search(r"([\d,.]+) prompt and", text)[1].replace(",", "")
        annotate(tmp_path, server.url, "--budget", "1")
    counted = statistics.fmean(charge[1] for charge in server.charges)
    assert abs(float(prompt) / counted - 1) < 0.05


def test_no_tokenizer_makes_more_tokens_than_the_bound():
    prompter = make_prompter()
    for source in ("stir", "µ" * 300, "東京" * 200, "a b " * 500, "\U0001f9ea" * 100):
        call = prompter.make_call("row", source)
        text = "".join(prompter.write_parts(source))
        assert len(text.encode()) <= call.worst[0]
        assert call.estimate <= call.worst[0]
    assert estimate_tokens("") == 0


def test_prices_are_named(tmp_path, capsys):
    make_world(tmp_path, 3)
    args = make_args(tmp_path)
    args = [
        *args[: args.index("--price-in")],
        "--model",
        "gpt-4o-mini",
        "--dry-run",
    ]
    gpt_annotate.main(args)
    text = capsys.readouterr().out
    assert "for gpt-4o-mini" in text
    assert "at the paper's price" in text
    assert "with --batch" in text


# --- batches -------------------------------------------------------------------------------


def test_batch_is_half_the_price(tmp_path, capsys):
    """Submitted, left, collected; what failed is sent again; nothing twice."""
    gold = make_world(tmp_path, 40)
    fails = dict.fromkeys(range(3), "missing") | dict.fromkeys(range(3, 8), "error")
    names = {}

    def fail(custom_id):
        return (
            fails.get(names.setdefault(custom_id, len(names))) if len(server.batches) == 1 else None
        )

    with open_annotator(gold, batch_fails=fail, batch_delay=1) as server:

        def run(mode, **options):
            return annotate(tmp_path, server.url, "--budget", "1", "--batch", mode, **options)

        run("submit")
        assert "40 of 40 calls submitted" in capsys.readouterr().out
        run("submit")  # nothing left to send
        assert "0 of 40 calls submitted" in capsys.readouterr().out
        with pytest.raises(UserError, match="a batch is under way"):
            annotate(tmp_path, server.url, "--budget", "1")
        with pytest.raises(UserError, match="batch batch_1 is in_progress, 0 of 40 done; collect"):
            run("collect")
        with pytest.raises(UserError, match=r"8 calls have no answer \(in a batch: 500 failed\)"):
            run("collect")
        assert read_money(tmp_path) == (Fraction(server.usd), 0)
        run("submit")
        assert "8 of 8 calls submitted" in capsys.readouterr().out
        with pytest.raises(UserError, match="batch batch_2 is in_progress"):
            run("collect")
        assert run("collect") is None
    labels, summary = read_results(tmp_path)
    assert {row["source"]: row["target"] for row in labels} == gold
    assert len(server.charges) == 40
    assert read_money(tmp_path) == (Fraction(server.usd), 0)
    assert all(charge[-1] == Fraction(1, 2) for charge in server.charges)
    prompt = sum(charge[1] for charge in server.charges)
    assert summary["tokens_of_batches"]["prompt"] == prompt


def test_batch_whose_name_was_lost_is_found(tmp_path):
    gold = make_world(tmp_path, 10)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--batch", "submit")
        path = tmp_path / "out" / "answers.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        assert '"batch-id"' in lines[-1]
        path.write_text("".join(lines[:-1]))  # killed before the reply
        annotate(tmp_path, server.url, "--budget", "1", "--batch", "collect")
    assert len(server.charges) == 10
    assert read_results(tmp_path)[1]["valid"] == 10


def test_batch_holds_the_budget(tmp_path):
    gold = make_world(tmp_path, 100)
    with open_annotator(gold) as server:
        for _ in range(3):
            annotate(tmp_path, server.url, "--budget", "0.01", "--batch", "submit")
            with pytest.raises(UserError, match="calls have no answer"):
                annotate(tmp_path, server.url, "--budget", "0.01", "--batch", "collect")
            known, possible = read_money(tmp_path)
            assert known == Fraction(server.usd) <= Fraction("0.01")
            assert possible == 0
    assert 0 < len(server.charges) < 100


def test_lines_of_a_batch_are_read_one_by_one(tmp_path, capsys):
    """Line separators inside an answer are text; what cannot be read is one lost answer."""
    gold = make_world(tmp_path, 12)
    odd = dict(zip(list(gold)[:3], ["Paris\u2028France", "a\u2029b", "a\x85b"], strict=True))

    def edit(content):
        lines = content.split(b"\n")
        if len(server.batches) == 1:  # one torn behind its name, one before it
            lines[0], lines[1] = lines[0][:90], b'{"id": "r", "cus'
        return b"\n".join(lines)

    with open_annotator({**dict.fromkeys(gold, "Rome"), **odd}, edit_file=edit) as server:

        def run(*flags):
            return annotate(tmp_path, server.url, "--budget", "1", *flags, task="nq")

        run("--batch", "submit")
        lost = r"2 calls have no answer \(unreadable line of a batch\); --batch submit sends"
        with pytest.raises(UserError, match=lost):
            run("--batch", "collect")
        text = capsys.readouterr().out
        for number in (1, 2):
            assert f"file-2 line {number}: not readable; its answer counts at its worst" in text
        known, possible = read_money(tmp_path)
        assert known < Fraction(server.usd) <= known + possible
        run("--batch", "submit")
        run("--batch", "collect")
    labels = {row["source"]: row["target"] for row in read_results(tmp_path)[0]}
    right = ["Paris France", "a b", "a b"]
    assert labels == {**dict.fromkeys(gold, "Rome"), **dict(zip(odd, right, strict=True))}
    assert len(server.charges) == 12 + 2


def test_a_server_with_another_batch_api_is_one_line(tmp_path):
    gold = make_world(tmp_path, 4)
    with open_annotator(dict.fromkeys(gold, "Rome"), batch_delay=9) as server:

        def run(step):
            return annotate(tmp_path, server.url, "--budget", "1", "--batch", step, task="nq")

        run("submit")
        batch = server.batches["batch_1"]["batch"]
        for counts in (None, "x", {"total": None}):
            batch["request_counts"] = counts
            with pytest.raises(UserError, match="batch_1 is in_progress; collect"):
                run("collect")
        for field in ("id", "status"):
            before, batch[field] = batch[field], None
            with pytest.raises(UserError, match=f"no '{field}'"):
                run("collect")
            batch[field] = before


def test_a_batch_is_taken_in_whole(tmp_path):
    """Also where fewer rows are asked for by then: their answers are paid."""
    gold = make_world(tmp_path, 20)
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1", "--batch", "submit")
        annotate(tmp_path, server.url, "--budget", "1", "--batch", "collect", "--num", "5")
        annotate(tmp_path, server.url, "--budget", "1")
    assert len(server.charges) == 20 and server.requests == 0
    assert read_money(tmp_path) == (Fraction(server.usd), 0)


# --- bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--budget", "1"], "no key and no server: set OPENAI_API_KEY"),
        ([], "no --budget"),
        (["--budget", "0"], "--budget 0: buys nothing"),
        (["--budget", "-3"], "--budget: '-3' is not a number of 0 or more"),
        (["--budget", "much"], "--budget: 'much' is not a number"),
        (["--budget", "1", "--shots", "101"], r"101 examples go into a prompt, and 100 labeled"),
        (["--budget", "1", "--num", "11"], r"unlabeled.jsonl: 11 rows asked for, 10 there"),
        (["--budget", "1", "--base-url", "http://127.0.0.1:9/v1"], "cannot be reached"),
        (["--budget", "paper"], "--budget paper: needs --num"),
        (["--budget", "paper", "--num", "5", "--task", "nq"], "task whose price the paper states"),
        (
            ["--budget", "1", "--add-labeled", "101"],
            "101 rows asked for by --add-labeled, 100 with",
        ),
        (["--replay"], "no answers yet"),
        (["--budget", "1", "--unlabeled", "none.jsonl"], "none.jsonl: no such file"),
        (["--budget", "1", "--task", "unknown"], "unknown task 'unknown'"),
        (["--budget", "1", "--simulate", "1", "--gold", "no.jsonl"], "no.jsonl: no such file"),
        (["--budget", "1", "--simulate", "1", "--gold", "IN/labeled.jsonl"], "no answer for the"),
        (["--budget", "1", "--extra", '{"max_tokens": null}'], "no budget holds"),
        (["--budget", "1", "--price-in", "x"], "--price-in: 'x' is not a number"),
        (["--budget", "1", "--price-out", "-1"], "--price-out: '-1' is not a number"),
        (["--budget", "1", "--price-cached", "x"], "--price-cached: 'x' is not a number"),
        (["--budget", "1", "--price-cached", "9"], "cached tokens dearer than others"),
        (["--budget", "1", "--unlabeled", "IN/blank.jsonl"], r"blank.jsonl row 3: an empty source"),
        (["--budget", "1", "--labeled", "IN/blank.jsonl"], r"blank.jsonl: an empty source with t"),
        (
            ["--budget", "1", "--add-labeled", "6", "--pool", "3", "--labeled", "IN/late.jsonl"],
            "'x'",
        ),
        (
            ["--budget", "1", "--labeled", "IN/plain.jsonl", "--task", "wlp"],
            r"plain.jsonl: target does not end with a \[Label\]",
        ),
    ],
)
def test_bad_input_is_one_line(tmp_path, flags, text):
    make_world(tmp_path, 10)
    good = [{"source": f"a{i}", "target": LABELS[0]} for i in range(5)]
    write_rows(tmp_path / "blank.jsonl", [{"source": " ", "target": LABELS[0]}] * 5)
    write_rows(tmp_path / "late.jsonl", [*good, {"source": "b", "target": "x"}])
    write_rows(tmp_path / "plain.jsonl", good)
    with pytest.raises(UserError, match=text) as error:
        annotate(tmp_path, None, *(flag.replace("IN", str(tmp_path)) for flag in flags))
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("out/*.json"))


@pytest.mark.parametrize(
    "flags",
    [
        *(["--concurrency", "0"], ["--simulate", "0.5"], ["--extra", "[]"], ["--rpm", "nan"]),
        *(["--temperature", "nan"], ["--temperature", "-1"], ["--timeout", "inf"]),
        *(["--concurrency", "9" * 25], ["--brake", "9" * 25], ["--attempts", "9" * 25]),
        *(["--brake", "-1"], ["--backoff", "nan"], ["--simulate", "nan", "--gold", "x"]),
        *(["--extra", '{"x": NaN}'], ["--extra", '{"x": 1e999}'], ["--extra", '{"x": "\\ud83d"}']),
        *(["--pool", "2"], ["--seed", "-1"], ["--store", ""]),
        ["--extra", '{"tools": []}'],
    ],
)
def test_wrong_flags_are_argparse_errors(tmp_path, flags):
    make_world(tmp_path, 10)
    with pytest.raises(SystemExit) as error:
        annotate(tmp_path, None, "--budget", "1", *flags)
    assert error.value.code == 2


def test_fewer_than_32_examples(tmp_path):
    make_world(tmp_path, 5, labeled=31)
    with pytest.raises(UserError, match="32 examples go into a prompt, and 31 labeled rows"):
        annotate(tmp_path, None, "--budget", "1", "--shots", "32")


def test_missing_price(tmp_path):
    make_world(tmp_path, 5)
    args = make_args(tmp_path)
    args = [*args[: args.index("--price-in")], "--model", "brand-new", "--budget", "1"]
    with pytest.raises(UserError, match="no token prices for model 'brand-new'"):
        gpt_annotate.main(args)
    with pytest.raises(SystemExit):  # a tier's tokens cost other than a model's
        gpt_annotate.parse_args([*args, "--extra", '{"service_tier": "priority"}'])


def test_label_outside_the_set(tmp_path):
    make_world(tmp_path, 5)
    with pytest.raises(UserError, match="is no label of task 'fever'"):
        annotate(tmp_path, None, "--budget", "1", task="fever")


def test_store_of_another_model(tmp_path):
    gold = make_world(tmp_path, 5)
    with open_annotator(gold) as server:
        with pytest.raises(UserError, match="no such model"):  # paid nothing, binds nothing
            annotate(tmp_path, server.url, "--budget", "1", "--model", "c", "--concurrency", "1")
        annotate(tmp_path, server.url, "--budget", "1")
        for flags, text in (
            (["--model", "b"], 'by model "simulated", not "b"'),
            (["--temperature", "1"], "with temperature 0.0, not 1.0"),
            (["--seed", "1"], "with seed 0, not 1"),
        ):
            with pytest.raises(UserError, match=f"answers.jsonl: written {text}"):
                annotate(tmp_path, server.url, "--budget", "1", *flags)
    assert server.requests == 6


# --- as a command --------------------------------------------------------------------------


def test_copied_files_label_with_the_simulated_annotator(tmp_path):
    """The docstring's Copy line, the offline default, and error lines of the command."""
    copied = tmp_path / "copied"
    copy_stage("gpt_annotate.py", copied)
    gold = make_world(tmp_path, 200)
    simulate = ["--simulate", "0.8", "--gold", str(tmp_path / "gold.jsonl")]
    command = [sys.executable, "gpt_annotate.py", *make_args(tmp_path), *simulate]

    def run(*flags):
        return subprocess.run([*command, *flags], cwd=copied, capture_output=True, text=True)

    done = run("--budget", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("simulated annotator (80% correct): 200 of 200 rows labeled\n")
    assert "no key is used" in done.stderr
    labels, summary = read_results(tmp_path)
    right = sum(gold[row["source"]] == row["target"] for row in labels) / 200
    assert summary["accuracy"]["exact"] == right
    assert abs(right - 0.8) < 0.1
    failed = run("--budget", "0")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: --budget 0")
    assert failed.stderr.count("\n") == 1


def test_corruption_is_at_the_stated_rate():
    gold = {f"stir {i}": "stir [Action] buffer [Reagent]" for i in range(1000)}
    rows = [{"source": source, "target": target} for source, target in gold.items()]
    labels = list(load_task("wlp").labels)
    annotator = Annotator(rows, "entities", labels, 0.9)
    answers = [annotator.answer(source) for source in gold]
    assert answers == [annotator.answer(source) for source in gold]
    right = sum(
        answer.count("stir [Action]") + answer.count("buffer [Reagent]") for answer in answers
    )
    assert abs(right / 2000 - 0.9) < 0.02


def test_a_prompt_is_shown_and_kept(tmp_path, capsys):
    gold = make_world(tmp_path, 5)
    annotate(tmp_path, None, "--dry-run")
    shown = capsys.readouterr().out
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1")
    kept = (tmp_path / "out" / "prompt.txt").read_text()
    assert shown.startswith(kept)
    first = read_results(tmp_path)[0][0]["source"]
    sent = next(body for body in map(json.loads, server.bodies) if first in str(body))
    assert all(message["content"] in kept for message in sent["messages"])
    number = re.search(r'"llm_tokens_per_label": (\d+) in the entry', shown)[1]
    tokens = statistics.fmean(charge[1] + charge[3] for charge in server.charges)
    assert int(number) == pytest.approx(tokens, rel=0.05)


def test_label_descriptions_go_into_the_prompt(tmp_path):
    task = replace(load_task("fever"), label_descriptions={"SUPPORTS": "the claim is true"})
    plain, told = make_prompter("fever"), make_prompter(task)
    assert told.instruction == plain.instruction + "\nSUPPORTS: the claim is true"
    entry = {"title": "T", "metric": "classes", "prefix": "t: ", "labels": ["a", "b"]}
    entry |= {"max_source_length": 9, "max_target_length": 9, "labels_n": [1], "budgets": [1]}
    path = tmp_path / "task.json"
    path.write_text(json.dumps({**entry, "label_descriptions": {"a": "first"}}))
    assert make_prompter(load_task(f"t={path}")).instruction.endswith("{a, b}\na: first")
    for odd, text in (({"c": "x"}, "has no 'c'"), ({"a": 5}, "must be a text"), (5, "an object")):
        path.write_text(json.dumps({**entry, "label_descriptions": odd}))
        with pytest.raises(UserError, match=text):
            load_task(f"t={path}")


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (None, {"max_completion_tokens": 40, "reasoning_effort": "none", "temperature": 0.0}),
        ("gpt-6-luna", {"max_completion_tokens": 40, "reasoning_effort": "none"}),
        ("gpt-5.6-terra", {"max_completion_tokens": 40}),
        ("o4-mini", {"max_completion_tokens": 40}),
        ("gpt-4o-mini", {"max_tokens": 40}),
        ("org/gpt-oss", {"max_tokens": 40}),
    ],
)
def test_models_get_the_fields_that_they_know(tmp_path, model, fields, capsys):
    make_world(tmp_path, 3)
    args = make_args(tmp_path, None, "--dry-run", "--structured", "auto")
    at = args.index("--model")
    args = [*args[:at], *(["--model", model] if model else []), *args[at + 2 :]]
    gpt_annotate.main(args)
    body = json.loads(capsys.readouterr().out.partition("[other fields]\n")[2].splitlines()[0])
    assert fields.items() <= body.items()
    assert ("max_tokens" in body) == ("max_tokens" in fields)
    assert body["model"] == (model or gpt_annotate.DEFAULT_MODEL)


def test_the_default_model_has_prices():
    assert Money(gpt_annotate.DEFAULT_MODEL, PRICE_LIST).usd["in"] > 0
    assert gpt_annotate.DEFAULT_MODEL != gpt_annotate.PAPER_MODEL


@pytest.mark.parametrize(
    ("usd", "text"),
    [("0", "$0.00"), ("0.0034", "$0.0034"), ("0.00001234", "$0.000012"), ("0.0099", "$0.0099"),
     ("0.01", "$0.01"), ("1300", "$1,300.00")],
)  # fmt: skip
def test_dollars_below_a_cent_have_two_digits(usd, text):
    assert show_usd(Fraction(usd)) == text


def test_marks_and_damage_that_other_programs_leave(tmp_path):
    """A byte order mark before the rows; an annotation.json that is none is written anew."""
    gold = make_world(tmp_path, 4)
    for name in ("labeled", "unlabeled"):
        path = tmp_path / f"{name}.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    with open_annotator(gold) as server:
        annotate(tmp_path, server.url, "--budget", "1")
    for text in ("[]", "{", "null", '"x"'):
        (tmp_path / "out" / "annotation.json").write_text(text)
        annotate(tmp_path, None, "--replay")
        assert read_results(tmp_path)[1]["valid"] == 4


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as stop:
        gpt_annotate.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "Copy:   gpt_annotate.py" in text
    assert "--fixed-examples, --no-fixed-examples" in text


def test_store_survives_a_full_disk(tmp_path, monkeypatch):
    """What cannot be written ends the run; nothing is appended to the torn line."""
    gold = make_world(tmp_path, 30)
    write, count = Store.write, iter(range(1000))

    def fail(store, text):
        if next(count) == 4:
            store.file.write(text.encode()[:10])
            store.file.flush()
            store.file.close()
            raise OSError(28, "No space left on device", str(store.path))
        write(store, text)

    with open_annotator(gold) as server:
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write", fail)
            with pytest.raises((OSError, UserError)):
                annotate(tmp_path, server.url, "--budget", "1")
        annotate(tmp_path, server.url, "--budget", "1")
    assert 30 <= len(server.charges) <= 30 + 8  # those in flight then
