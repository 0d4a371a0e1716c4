"""data/prepare.py and fetch.py: splits, layouts, faults by line, downloads that go wrong."""

import hashlib
import http.server
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest

from data import fetch, prepare
from data.files import UserError
from data.tasks import load_task

ROOT = Path(__file__).resolve().parents[1]
OFFICIAL = ROOT.parent / "shared" / "data" / "official"
needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the authors' files are not beside the repository"
)


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def make_rows(count, start=0, target="mix [Action]"):
    return [{"source": f"sentence {i}", "target": target} for i in range(start, start + count)]


def make_folder(folder, **splits):
    """A data folder of `train=rows, test=rows, ...`."""
    for split, rows in splits.items():
        write_rows(folder / f"{split}.jsonl", rows)
    return folder


def run(output, *flags, data=None, task="wlp"):
    """{split: rows} that prepare.py wrote."""
    where = ["--data", str(data)] if data else []
    prepare.main(["--task", task, "--output", str(output), *where, *map(str, flags)])
    return {split: read_rows(output / f"{split}.jsonl") for split in prepare.SPLITS}


def assert_disjoint(splits):
    sources = {split: {row["source"] for row in rows} for split, rows in splits.items()}
    for one in sources:
        for other in sources:
            assert one == other or not sources[one] & sources[other], (one, other)


# --- splits ----------------------------------------------------------------------------------


def test_mini_world_is_the_generators(tmp_path, capsys):
    splits = run(tmp_path / "a")
    sizes = {"train": 1200, "dev": 500, "test": 1000, "unlabeled": 11100}
    assert {split: len(rows) for split, rows in splits.items()} == sizes
    assert_disjoint(splits)
    assert "1,200" in capsys.readouterr().out
    about = json.loads((tmp_path / "a" / "about.json").read_text())
    assert about["rows"] == sizes and about["seed"] == 0


def test_answers_to_unlabeled_rows_lie_apart(tmp_path):
    """Known for the mini world and for rows taken from train; no file where any is not known."""
    splits = run(tmp_path / "mini")
    gold = read_rows(tmp_path / "mini" / "unlabeled_gold.jsonl")
    assert [row["source"] for row in gold] == [row["source"] for row in splits["unlabeled"]]
    assert all("[" in row["target"] for row in gold)
    assert all(set(row) == {"source"} for row in splits["unlabeled"])
    rows = [{"source": f"s {i}", "target": f"s {i} [Action]"} for i in range(300)]
    data = make_folder(tmp_path / "mine", train=rows, test=make_rows(20))
    splits = run(tmp_path / "out", data=data)
    gold = read_rows(tmp_path / "out" / "unlabeled_gold.jsonl")
    assert [row["source"] for row in gold] == [row["source"] for row in splits["unlabeled"]]
    assert all(row in rows for row in gold)
    assert all(set(row) == {"source"} for row in splits["unlabeled"])
    write_rows(data / "unlabeled.jsonl", [{"source": "a"}, {"source": "b", "target": "x"}])
    splits = run(tmp_path / "out", data=data)
    assert all(set(row) == {"source"} for row in splits["unlabeled"])
    assert not (tmp_path / "out" / "unlabeled_gold.jsonl").exists()


def test_plain_folder_keeps_files_and_removes_overlap(tmp_path, capsys):
    data = make_folder(
        tmp_path / "mine",
        train=[*make_rows(40), {"source": "in test", "target": "x [Action]"}],
        dev=[*make_rows(5, 100), {"source": "sentence 0", "target": ""}],
        test=[{"source": "in test", "target": ""}, *make_rows(3, 200)],
        unlabeled=[{"source": "sentence 3"}, {"source": "new"}, {"source": "new"}],
    )
    splits = run(tmp_path / "out", data=data)
    assert [len(splits[split]) for split in ("train", "dev", "test")] == [39, 6, 4]
    assert splits["unlabeled"] == [{"source": "new"}]
    assert splits["test"][0] == {"source": "in test", "target": ""}  # kept: it is scored
    assert_disjoint(splits)
    printed = capsys.readouterr().out
    assert "1 rows dropped: their source is in test" in printed
    assert "1 repeated sources dropped" in printed


def test_unlabeled_drawn_from_train_is_seeded_and_disjoint(tmp_path):
    train = make_rows(300) + make_rows(50, target="other [Action]") + make_rows(5, 900, target="")
    data = make_folder(tmp_path / "mine", train=train, test=make_rows(20, 1000))
    flags = ("--train-rows", 100, "--dev-rows", 20, "--test-rows", 10)
    splits = run(tmp_path / "a", *flags, data=data)
    assert {split: len(rows) for split, rows in splits.items()} == {
        "train": 100,
        "dev": 20,
        "test": 10,
        "unlabeled": 185,  # the rest and the five without a target
    }
    assert_disjoint(splits)
    assert all(row["target"] for row in splits["train"])
    assert run(tmp_path / "b", *flags, data=data) == splits
    assert run(tmp_path / "c", *flags, "--seed", 1, data=data) != splits


def test_dev_is_drawn_where_absent(tmp_path):
    data = make_folder(
        tmp_path / "mine",
        train=make_rows(200),
        test=make_rows(20, 1000),
        unlabeled=[{"source": "new"}],
    )
    splits = run(tmp_path / "out", data=data)
    assert len(splits["dev"]) == 20 and len(splits["train"]) == 180
    assert_disjoint(splits)


def test_authors_layout_and_folder_name(tmp_path):
    rows = [{"source": f"s {i}", "target": f"t {i}"} for i in range(40)]
    folder = tmp_path / "authors" / "multipit"
    write_rows(folder / "multipit_train_all.json", rows)
    write_rows(folder / "multipit_test_all.json", rows[:4])
    splits = run(tmp_path / "out", data=tmp_path / "authors", task="multipit_gen")
    assert len(splits["test"]) == 4
    folder = tmp_path / "authors" / "nq"  # the test set is private: dev is scored
    write_rows(folder / "nq_train_all.json", rows)
    write_rows(folder / "nq_dev_all.json", [{"source": "q", "target": ["a", "b"]}])
    splits = run(tmp_path / "nq", data=tmp_path / "authors", task="nq")
    assert splits["test"] == [{"source": "q", "target": ["a", "b"]}]
    assert len(splits["dev"]) == 4


def test_separators_inside_a_text_do_not_split_a_line(tmp_path):
    rows = [{"source": f"line\u2028break\x85 {i}", "target": "a [Action]"} for i in range(30)]
    data = make_folder(tmp_path / "mine", train=rows, test=make_rows(3))
    splits = run(tmp_path / "out", data=data)
    assert "\u2028" in splits["train"][0]["source"]


@needs_official
def test_official_wlp_at_both_scales(tmp_path, capsys):
    mini = run(tmp_path / "mini", "--test-rows", 500, data=OFFICIAL)
    assert len(mini["train"]) == 1196 and len(mini["test"]) == 500
    assert len(mini["unlabeled"]) > 8000
    assert_disjoint(mini)
    extra = write_rows(tmp_path / "u.jsonl", [{"source": "Add 5 ml."}])
    paper = run(tmp_path / "p", "--scale", "paper", "--unlabeled", extra, data=OFFICIAL, task="wlp")
    assert len(paper["test"]) == 3562
    assert sum(not row["target"] for row in paper["test"]) == 21
    assert_disjoint(paper)
    printed = capsys.readouterr().out
    assert "the file has 14,271 rows where Table 5 says 11,966" in printed
    assert "344 rows dropped: their source is in test" in printed
    assert "110,999 fewer than the paper's largest run uses" in printed


# --- faults ----------------------------------------------------------------------------------


def test_faults_name_file_and_line(tmp_path, capsys):
    lines = [
        '{"source": "a", "target": "SUPPORTS"}',
        '{"source": "b"}',
        "",
        "[1]",
        "nope",
        '{"source": " ", "target": "REFUTES"}',
        '{"source": "c", "target": "maybe"}',
        '{"source": 3, "target": "REFUTES"}',
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    write_rows(tmp_path / "test.jsonl", [{"source": "t", "target": "REFUTES"}])
    with pytest.raises(UserError, match=r"train.jsonl line 2: no 'target' \(and 5 more"):
        prepare.main(["--task", "fever", "--data", str(tmp_path), "--check"])
    printed = capsys.readouterr().out
    for fault in (
        "line 4: not a JSON object",
        "line 5: not JSON",
        "line 6: the source is empty",
        "line 7: target 'maybe' is none of REFUTES, SUPPORTS",
        "line 8: 'source' is 3, not a text",
    ):
        assert f"train.jsonl {fault}" in printed


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"train": make_rows(9)}, "no test rows of wlp; looked for"),
        ({"test": make_rows(9)}, "no train rows of wlp"),
        ({"train": [], "test": make_rows(9)}, "train.jsonl: no rows"),
        ({"train": make_rows(9), "test": make_rows(9)}, "no rows are left for train"),
    ],
)
def test_missing_and_empty_files(tmp_path, splits, message):
    data = make_folder(tmp_path / "mine", **splits)
    with pytest.raises(UserError, match=message):
        run(tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_other_mistakes(tmp_path):
    data = make_folder(tmp_path / "mine", train=make_rows(50), test=make_rows(5, 100))
    (data / "unlabeled.jsonl").write_bytes(b'{"source": "a"}\n{"source": "\xff"}\n')
    for flags, message in [
        (["--task", "wlp", "--data", str(data)], "unlabeled.jsonl line 2: not UTF-8"),
        (["--task", "nope"], "unknown task 'nope'"),
        (["--task", "wlp", "--scale", "huge"], "unknown scale 'huge'"),
        (["--task", "wlp", "--data", str(tmp_path / "no")], "no such folder"),
        (["--task", "wlp", "--data", str(data), "--unlabeled", "no.jsonl"], "no.jsonl: no such"),
    ]:
        with pytest.raises(UserError, match=message):
            prepare.main([*flags, "--output", str(tmp_path / "out")])
    with pytest.raises(UserError, match="holds the data to read"):
        prepare.main(["--task", "wlp", "--data", str(data), "--output", str(data)])
    with pytest.raises(SystemExit) as error:
        prepare.main(["--task", "wlp"])
    assert error.value.code == 2


def test_paper_scale_without_unlabeled_says_what_to_do(tmp_path):
    data = make_folder(tmp_path / "mine", train=make_rows(50), test=make_rows(5, 100))
    command = [sys.executable, "-m", "data.prepare", "--task", "wlp", "--scale", "paper"]
    command += ["--data", str(data), "--output", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: no unlabeled rows of wlp")
    assert done.stderr.count("\n") == 1 and "drive.google.com" in done.stderr
    splits = run(tmp_path / "out", "--scale", "paper", "--unlabeled", "rest", data=data)
    assert_disjoint(splits)


# --- archives and public sets ----------------------------------------------------------------


def pack(path, members):
    """An archive of {name: rows}, .zip or .tar.gz by the path's ending."""
    texts = {name: "".join(json.dumps(r) + "\n" for r in rows) for name, rows in members.items()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, text in texts.items():
                archive.writestr(name, text)
    else:
        with tarfile.open(path, "w:gz") as archive:
            for name, text in texts.items():
                info = tarfile.TarInfo(name)
                info.size = len(text.encode())
                archive.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.mark.parametrize("ending", ["zip", "tar.gz"])
def test_archives(tmp_path, ending):
    data = make_folder(tmp_path / "mine", train=make_rows(50), test=make_rows(5, 100))
    path = pack(
        tmp_path / f"all.{ending}",
        {"unlabeled/wlp/wlp.json": [{"source": "x"}], "unlabeled/multipit_id/m.json": []},
    )
    assert run(tmp_path / "o", "--unlabeled", path, data=data)["unlabeled"] == [{"source": "x"}]
    path = pack(
        tmp_path / f"two.{ending}", {"wlp/a.json": [{"source": "a"}], "wlp/b.json": [{"x": "b"}]}
    )
    with pytest.raises(UserError, match=r"2 files could be .* wlp/a.json, wlp/b.json"):
        run(tmp_path / "o", "--unlabeled", path, data=data)
    splits = run(tmp_path / "o", "--unlabeled", f"{path}:wlp/a.json", data=data)
    assert splits["unlabeled"] == [{"source": "a"}]
    with pytest.raises(UserError, match=r"wlp/b.json line 1: no 'source'"):
        run(tmp_path / "o", "--unlabeled", f"{path}:wlp/b.json", data=data)
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(UserError, match="or damaged"):
        run(tmp_path / "o", "--unlabeled", path, data=data)


def test_archive_tells_multipit_from_multipit_id(tmp_path):
    members = {"u/multipit_id_unlabeled.json": [{"source": "pair"}]}
    members["u/multipit_unlabeled.json"] = [{"source": "one"}]
    path = pack(tmp_path / "all.zip", members)
    sources = prepare.read_json(fetch.SOURCES)
    assert "one" in fetch.read_archive(path, "multipit", sources)[1][0]
    assert "pair" in fetch.read_archive(path, "multipit_id", sources)[1][0]


def write_hub(folder, entry, rows):
    """A folder in the form of a data set on the hub: files by configuration, named in README.md."""
    name = entry.get("name", "default")
    config = f"- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/*.jsonl\n"
    write_rows(folder / name / "part-0.jsonl", [{entry["column"]: text} for text in rows])
    write_rows(folder / "other" / "part-0.jsonl", [{"unrelated": "x"}])
    config += "- config_name: other\n  data_files: other/*.jsonl\n"
    (folder / "README.md").write_text(f"---\nconfigs:\n{config}---\n")
    return folder


@pytest.mark.parametrize("name", ["vitaminc", "kilt_fever", "msmarco", "kilt_nq"])
def test_public_sets(tmp_path, monkeypatch, capsys, name):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sources = prepare.read_json(fetch.SOURCES)
    entry = sources["public"][name]
    entry["path"] = str(write_hub(tmp_path / "hub", entry, ["the sea is dry", "row 3", " "]))
    file = write_rows(tmp_path / "sources.json", [sources])
    target = "SUPPORTS" if entry["task"] == "fever" else "x"
    train = [{"source": f"row {i}", "target": target} for i in range(30)]
    test = [{"source": "t", "target": target}]
    data = make_folder(tmp_path / "mine", train=train, test=test)
    flags = ["--scale", "paper", "--sources", file, "--unlabeled", f"hub:{name}"]
    splits = run(tmp_path / "out", *flags, data=data, task=entry["task"])
    assert splits["unlabeled"] == [{"source": "the sea is dry"}]  # the other one is labeled
    shown = capsys.readouterr()
    assert "1 rows dropped: their source is in test, dev or train" in shown.out and not shown.err


def test_public_sets_that_cannot_be_had(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    sources = prepare.read_json(fetch.SOURCES)
    sources["public"]["vitaminc"]["path"] = str(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"hub:vitaminc: .* can't be loaded"):
        fetch.read_public("vitaminc", "fever", sources)
    with pytest.raises(UserError, match=r"hub:x: unknown; .*\['vitaminc', 'kilt_fever'\]"):
        fetch.read_public("x", "fever", sources)


# --- downloads -------------------------------------------------------------------------------


class Site:
    """A local web server standing in for the authors' repository; `script` holds its faults."""

    def __init__(self):
        site = self
        self.files, self.script, self.requests = {}, [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                site.answer(self)

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}/"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, handler):
        name, wanted = handler.path.lstrip("/"), handler.headers.get("Range")
        self.requests.append((name, wanted))
        fault = self.script.pop(0) if self.script else None
        if name not in self.files or isinstance(fault, int):
            handler.send_error(fault or 404)
            return
        body = self.files[name]
        first = int(wanted[6:-1]) if wanted and fault != "no ranges" else 0
        if first >= len(body):
            handler.send_error(416)
            return
        handler.send_response(206 if first else 200)
        if fault != "silent":
            handler.send_header("Content-Length", str(len(body) - first))
        handler.end_headers()
        cut = fault in ("broken", "silent")
        handler.wfile.write(body[first : first + (len(body) - first) // 2] if cut else body[first:])


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A server with a small wlp, and the sources.json that knows it."""
    monkeypatch.setattr(fetch, "PAUSE", 0.01)
    site = Site()
    facts = {}
    for split, rows in (("train", make_rows(3000)), ("test", make_rows(50, 5000))):
        name = f"wlp/wlp_{split}_all.json"
        body = "".join(json.dumps(row) + "\n" for row in rows).encode()
        site.files[name] = body
        blob = hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()
        facts[name] = {"rows": len(rows), "bytes": len(body), "git_blob": blob}
    site.sources = {"folders": {}, "files": facts, "public": {}, "base": site.base, "archive": "A"}
    yield site
    site.server.shutdown()
    site.server.server_close()


TRAIN = "wlp/wlp_train_all.json"


def test_download_then_no_second_one(site, tmp_path):
    fetch.fetch_task("wlp", tmp_path, None, site.sources)
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]
    sums = fetch.read_sums(tmp_path / "SHA256SUMS")
    assert sums[TRAIN] == hashlib.sha256(site.files[TRAIN]).hexdigest()
    assert len(site.requests) == 2
    fetch.fetch_task("wlp", tmp_path, None, site.sources)
    assert len(site.requests) == 2


@pytest.mark.parametrize("fault", ["broken", 503, 429])
def test_interruption_goes_on_where_it_broke(site, tmp_path, fault):
    site.script = [fault]
    fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]
    assert not list(tmp_path.glob("*/*.part"))
    half = len(site.files[TRAIN]) // 2
    assert (TRAIN, f"bytes={half}-") in site.requests or fault != "broken"


def test_interrupted_for_good_is_resumed_by_the_next_call(site, tmp_path):
    site.script = ["broken"] * fetch.TRIES
    with pytest.raises(UserError, match="bytes came; run the same command again"):
        fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    assert not (tmp_path / TRAIN).exists()
    have = (tmp_path / f"{TRAIN}.part").stat().st_size
    assert have > len(site.files[TRAIN]) * 0.9
    fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    assert (TRAIN, f"bytes={have}-") in site.requests
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]


def test_server_without_ranges_and_an_overlong_part(site, tmp_path):
    site.script = ["broken", "no ranges"]
    fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]
    (tmp_path / TRAIN).unlink()
    (tmp_path / f"{TRAIN}.part").write_bytes(site.files[TRAIN] + b"x")  # answered with 416
    fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    assert (tmp_path / TRAIN).read_bytes() == site.files[TRAIN]


def test_bad_bodies_are_thrown_away(site, tmp_path):
    good = site.files[TRAIN]
    extra = json.dumps({"source": "one more", "target": ""}).encode() + b"\n"
    for body, message in [
        (good + extra, r"rows 3001 where 3000 is known"),
        (good.replace(b"sentence 7", b"sentence_7", 1), r"git_blob \w+ where \w+ is known"),
        (good[: len(good) // 2], r"bytes \d+ where \d+ is known"),
    ]:
        site.files[TRAIN] = body
        with pytest.raises(UserError, match=f"{message}.*the download was thrown away"):
            fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
        assert not list(tmp_path.glob("wlp/*train*"))
    site.files[TRAIN] = good
    site.script = ["silent"]  # half of the body, and no word on its length
    with pytest.raises(UserError, match=r"bytes \d+ where"):
        fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    fetch.fetch_task("wlp", tmp_path, site.base, site.sources)


def test_first_download_records_and_later_ones_verify(site, tmp_path):
    site.sources["files"][TRAIN] = {}  # nothing is known of this one
    fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    (tmp_path / TRAIN).unlink()
    site.files[TRAIN] = site.files[TRAIN].replace(b"sentence 7", b"sentence_7", 1)
    with pytest.raises(UserError, match="where the first download had"):
        fetch.fetch_task("wlp", tmp_path, site.base, site.sources)


def test_missing_and_unreachable(site, tmp_path):
    del site.files[TRAIN]
    with pytest.raises(UserError, match=r"answers 404 .*check --base.*--data"):
        fetch.fetch_task("wlp", tmp_path, site.base, site.sources)
    assert len([r for r in site.requests if r[0] == TRAIN]) == 1  # not tried again
    with pytest.raises(UserError, match="Connection refused; run the same command again"):
        fetch.fetch_task("wlp", tmp_path / "b", "http://127.0.0.1:9", site.sources)
    with pytest.raises(UserError, match="the authors' repository has no 'mytask'"):
        fetch.fetch_task("mytask", tmp_path, site.base, site.sources)


def test_paper_scale_from_the_web_to_splits(site, tmp_path):
    sources = write_rows(tmp_path / "sources.json", [site.sources])
    flags = ["--scale", "paper", "--downloads", tmp_path / "d", "--sources", sources]
    with pytest.raises(UserError, match="no unlabeled rows of wlp"):
        run(tmp_path / "out", *flags)
    extra = write_rows(tmp_path / "u.jsonl", [{"source": "Add 5 ml."}])
    splits = run(tmp_path / "out", *flags, "--unlabeled", extra)
    assert len(splits["test"]) == 50 and len(splits["train"]) == 2700
    assert len(site.requests) == 2  # the second call read what the first had fetched
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["files"][str(extra)]


@needs_official
def test_known_hashes_are_the_authors_files():
    sources = prepare.read_json(fetch.SOURCES)
    for name, facts in sources["files"].items():
        if (OFFICIAL / name).exists():
            fetch.check_file(OFFICIAL / name, name, facts)


@pytest.mark.parametrize(
    ("target", "fault"),
    [
        ("buffer [Reagnt]", r"\[Reagnt\] in the target is neither a label nor in the source"),
        ("buffer [Reagent] then", "does not end with a \\[Label\\]"),
        ("buffer", "does not end with a \\[Label\\]"),
        ("[viral] buffer [Reagent]", None),  # in the source, so text
        ("", None),
    ],
)
def test_entities_of_a_target_have_known_labels(target, fault):
    row = {"source": "add the [viral] buffer", "target": target}
    found = prepare.check_row(row, "train", load_task("wlp"))
    assert found is None if fault is None else re.search(fault, found)
