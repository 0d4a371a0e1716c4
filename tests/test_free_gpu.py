"""data/bench/free_gpu.sh with devices that are only numbers: teachers alone, students together."""

import os
import subprocess
import time
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[1] / "data" / "bench" / "free_gpu.sh"


def start(tmp_path, name, *words, gpus="0 1"):
    """A run that says which GPU it has and goes on until the file NAME.end is there."""
    code = f"echo $CUDA_VISIBLE_DEVICES > {name}; while [ ! -e {name}.end ]; do sleep 0.05; done"
    settings = {"GPUS": gpus, "LOCKS": str(tmp_path / "locks"), "STUDENTS": "2", "PAUSE": "0.1"}
    command = [str(SCRIPT), "bash", "-c", code, *words]
    return subprocess.Popen(command, cwd=tmp_path, env={**os.environ, **settings})


def read_gpu(tmp_path, name, seconds=20):
    """The GPU of a run, None if it still waits."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (tmp_path / name).exists() and (text := (tmp_path / name).read_text().strip()):
            return text
        time.sleep(0.05)
    return None


def finish(tmp_path, name, process):
    (tmp_path / f"{name}.end").touch()
    assert process.wait(20) == 0


def test_teachers_have_a_gpu_alone_and_students_share_one(tmp_path):
    teacher = start(tmp_path, "teacher", "train_teacher.py")
    assert read_gpu(tmp_path, "teacher") == "0"
    students = {name: start(tmp_path, name, "train_small.py") for name in ("a", "b", "c")}
    time.sleep(1)
    known = [name for name in students if read_gpu(tmp_path, name, 1)]
    assert len(known) == 2 and {read_gpu(tmp_path, name) for name in known} == {"1"}
    (waiting,) = set(students) - set(known)
    labels = start(tmp_path, "pass", "distill.py", "--labels-only")
    assert read_gpu(tmp_path, "pass", 1) is None  # a student is on each, or a teacher
    finish(tmp_path, "teacher", teacher)
    assert "0" in (read_gpu(tmp_path, waiting, 3), read_gpu(tmp_path, "pass", 3))
    for name in students:
        (tmp_path / f"{name}.end").touch()
    assert read_gpu(tmp_path, "pass") in ("0", "1")
    finish(tmp_path, "pass", labels)
    assert all(student.wait(20) == 0 for student in students.values())


def test_a_teacher_is_scored_alone_too_and_no_student_is_no_place(tmp_path):
    words = ("evaluate.py", "--model", "runs/paper/wlp/{}-n100-s0/model", "--output", "x")
    scored = [[word.format(kind) for word in words] for kind in ("teacher", "small")]
    teacher = start(tmp_path, "teacher", *scored[0], gpus="0")
    assert read_gpu(tmp_path, "teacher") == "0"
    student = start(tmp_path, "student", *scored[1], gpus="0")
    assert read_gpu(tmp_path, "student", 1) is None
    finish(tmp_path, "teacher", teacher)
    assert read_gpu(tmp_path, "student") == "0"
    finish(tmp_path, "student", student)
    settings = {**os.environ, "GPUS": "0", "STUDENTS": "0", "LOCKS": str(tmp_path / "locks")}
    done = subprocess.run([SCRIPT, "true"], env=settings, capture_output=True, text=True, timeout=9)
    assert done.returncode == 1 and "STUDENTS=0; at least 1" in done.stderr


def test_a_killed_run_frees_its_gpu_and_exit_codes_pass(tmp_path):
    first = start(tmp_path, "first", "train_teacher.py", gpus="7")
    assert read_gpu(tmp_path, "first") == "7"
    second = start(tmp_path, "second", "train_teacher.py", gpus="7")
    assert read_gpu(tmp_path, "second", 1) is None
    first.kill()
    assert read_gpu(tmp_path, "second") == "7"
    finish(tmp_path, "second", second)
    (tmp_path / "first.end").touch()
    settings = {"GPUS": "0", "LOCKS": str(tmp_path / "locks")}
    failing = [str(SCRIPT), "bash", "-c", "exit 3"]
    done = subprocess.run(failing, env={**os.environ, **settings}, check=False)
    assert done.returncode == 3
