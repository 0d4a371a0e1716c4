"""data/costs/in_one.py: what scripts write in one process; after an error nothing is begun."""

import subprocess
import sys

import pytest

from tests.copied import ROOT

TRAIN = f"""{ROOT}/train_small.py --model {ROOT}/data/world/models/student --train rows.jsonl
--max-source-length 16 --max-target-length 16 --max-steps 3 --batch-size 4 --output""".split()
SCORE = [f"{ROOT}/evaluate.py", "--task", "wlp", "--data", "rows.jsonl", "--model"]


def run(folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)


def test_scripts_in_one_process_write_what_each_writes_alone(tmp_path, monkeypatch):
    rows = [f'{{"source": "mix {n} ml", "target": "mix [Action]"}}\n' for n in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for command in ([*TRAIN, "apart"], [*SCORE, "apart/model", "--output", "apart"]):
        assert run(tmp_path, *command).returncode == 0
    both = [*TRAIN, "one", "--", *SCORE, "one/model", "--output", "one"]
    done = run(tmp_path, "-m", "data.costs.in_one", *both)
    assert done.returncode == 0, done.stderr
    for name in ("model/model.safetensors", "predictions.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "apart" / name).read_bytes()


@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [("sys.exit('error: no')", 1, "error: no"), ("sys.exit(143)", 143, ""), ("sys.exit(0)", 0, "")],
)
def test_after_an_error_nothing_is_begun(tmp_path, monkeypatch, ending, code, said):
    (tmp_path / "first.py").write_text(f"import sys; {ending}")
    (tmp_path / "second.py").write_text("import sys; print(*sys.argv)")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = "-m data.costs.in_one first.py --a -- second.py --b 1".split()
    done = run(tmp_path, *words)
    assert (done.returncode, done.stderr.strip()) == (code, said)
    assert done.stdout == ("" if code else "second.py --b 1\n")
