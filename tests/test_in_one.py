"""data/costs/in_one.py: after an error nothing is begun; a copy of the keeper does what a process
of its own does (tests/test_pins.py has the bytes), and neither outlives those it works for."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from data.costs.in_one import LIBRARIES, name_keeper
from tests.copied import ROOT

IN_ONE = (sys.executable, "-m", "data.costs.in_one")
TELL = """import sys, os
print('dropped')
print(os.getcwd(), *sys.argv, os.environ['SEED'], 'torch' in sys.modules, file=sys.stderr)"""
WAIT = """import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit('stopped'))
print('begun', file=sys.stderr)
time.sleep(60)"""


def run(folder, *words, **given):
    return subprocess.run(
        [sys.executable, *words], cwd=folder, capture_output=True, text=True, **given
    )


@pytest.fixture
def make(tmp_path, monkeypatch):
    """A process that stands for make, and libraries that are loaded in no time."""
    for name in LIBRARIES:
        parts = name.split(".")
        for depth in range(len(parts)):
            package = tmp_path.joinpath("libraries", *parts[: depth + 1])
            package.mkdir(parents=True, exist_ok=True)
            (package / "__init__.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'libraries'}:{ROOT}")
    with subprocess.Popen(["sleep", "100"]) as process:
        monkeypatch.setenv("MAKE_PID", str(process.pid))
        yield process
        process.kill()


def ask_keeper(make):
    """Whether a keeper listens."""
    with socket.socket(socket.AF_UNIX) as connection:
        return connection.connect_ex(name_keeper(make.pid)) == 0


def until(holds):
    end = time.monotonic() + 20
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


needs_keeper = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="no keeper on this system")


@pytest.mark.parametrize("kept", [False, pytest.param(True, marks=needs_keeper)])
@pytest.mark.parametrize(
    ("ending", "code", "said"),
    [
        ("sys.exit('error: no')", 1, "error: no"),
        ("sys.exit(143)", 143, ""),
        ("sys.exit(0)", 0, "second.py --b 1"),
        ("raise ValueError('no')", 1, "ValueError: no"),
    ],
)
def test_after_an_error_nothing_is_begun(tmp_path, monkeypatch, make, kept, ending, code, said):
    (tmp_path / "empty.py").touch()
    (tmp_path / "first.py").write_text(f"import sys; {ending}")
    (tmp_path / "second.py").write_text("import sys; print(*sys.argv, file=sys.stderr)")
    if kept:
        run(tmp_path, *IN_ONE[1:], "empty.py")
        assert ask_keeper(make)
    else:
        monkeypatch.delenv("MAKE_PID")
    done = run(tmp_path, *IN_ONE[1:], *"first.py --a -- second.py --b 1".split())
    assert (done.returncode, done.stderr.strip().split("\n")[-1]) == (code, said)
    assert ("second.py" in done.stderr) == (code == 0)


@needs_keeper
def test_a_copy_has_its_callers_words_folder_environment_and_output(tmp_path, make, monkeypatch):
    (tmp_path / "tell.py").write_text(TELL)
    for seed, folder in enumerate((tmp_path, tmp_path / "libraries", tmp_path)):
        monkeypatch.setenv("SEED", str(seed))
        done = run(folder, *IN_ONE[1:], f"{tmp_path}/tell.py", "--of", "1 2", input="unread")
        assert done.stderr == f"{folder} {tmp_path}/tell.py --of 1 2 {seed} True\n"
        assert done.stdout == ""
    make.kill()
    make.wait()
    assert until(lambda: not ask_keeper(make))


@needs_keeper
@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL"])
def test_a_copy_ends_with_its_caller(tmp_path, make, name):
    (tmp_path / "empty.py").touch()
    (tmp_path / "wait.py").write_text(WAIT)
    run(tmp_path, *IN_ONE[1:], "empty.py")
    words = [*IN_ONE, "wait.py"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as caller:
        assert caller.stderr.readline() == "begun\n"
        caller.send_signal(getattr(signal, name))
        # The pipe is closed only when the copy is gone, long before it would wake.
        begin = time.monotonic()
        said = caller.communicate()[1]
        assert time.monotonic() - begin < 20
        assert (said, caller.returncode) == (("stopped\n", 1) if name == "SIGTERM" else ("", -9))


@needs_keeper
def test_a_copy_tells_how_it_ended_where_all_processes_are_stopped(tmp_path, make):
    (tmp_path / "empty.py").touch()
    (tmp_path / "wait.py").write_text(WAIT.replace("'begun'", "__import__('os').getppid()"))
    run(tmp_path, *IN_ONE[1:], "empty.py")
    words = [*IN_ONE, "wait.py"]
    with subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as caller:
        os.kill(int(caller.stderr.readline()), signal.SIGTERM)
        time.sleep(0.5)
        caller.terminate()
        assert (caller.communicate()[1], caller.returncode) == ("stopped\n", 1)


@needs_keeper
def test_no_copy_goes_on_for_a_caller_killed_before_it_is_there(tmp_path, make):
    (tmp_path / "empty.py").touch()
    (tmp_path / "late.py").write_text("import time; time.sleep(1); open('late', 'w')")
    run(tmp_path, *IN_ONE[1:], "empty.py")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(name_keeper(make.pid))
        caller.shutdown(socket.SHUT_RD)  # as if it were gone by the time of an answer
        socket.send_fds(caller, [b"\n"], [0, 1, 2])
        caller.sendall(json.dumps([["late.py"], str(tmp_path), {}]).encode() + b"\n")
    time.sleep(3)
    assert not (tmp_path / "late").exists()
