"""Runs: what a folder's name says, what a finished run used, rates measured from many.

Reads:  training.json, metrics.json and annotation.json of run folders
"""

import re
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from data.costs.prices import compare_speeds, match_gpu
from data.costs.stale import METRICS, TRAINING, read_command
from data.files import UserError, need, parse_amount, parse_count, read_if_there, read_json

ENCODERS = {"distilbert": "DistilBERT", "bert": "BERT"}  # classifiers, as strategies and students
RUN_NAME = re.compile(
    r"(?P<strategy>small|teacher|dist|self|llm|prompted|distilbert|bert)"
    r"(?:-(?P<size>base|large|xl|(?<=dist-)(?:distil)?bert))?(?:-from-(?P<teacher>large|xl))?"
    r"-n(?P<labels>\d+)(?:-u(?P<unlabeled>\d+))?(?:-g(?P<llm>\d+))?-s(?P<seed>\d+)"
)


class Run(NamedTuple):
    """One training run; `needs` names the runs that must be done before it."""

    name: str
    # small, teacher, dist, self, llm; distilbert and bert in Table 10; prompted: an LLM's own
    # answers to `llm_labels` test rows, from prompts with examples out of `labels` labeled ones
    strategy: str
    labels: int
    unlabeled: int
    llm_labels: int
    seed: int
    needs: tuple
    student: str = "small"  # an encoder's name where one is distilled
    teacher: str = "xxl"

    @property
    def encoder(self):
        """The encoder that is trained, on labels or distilled; None for a T5."""
        return next((kind for kind in (self.strategy, self.student) if kind in ENCODERS), None)

    @property
    def usual(self):
        """Whether its models are T5-Small and T5-XXL, or those in their place at a scale."""
        return (self.student, self.teacher) == ("small", "xxl")

    @property
    def recipe(self):
        """What names its settings: the strategy, of a distilled encoder dist-bert."""
        return f"dist-{self.student}" if self.student in ENCODERS else self.strategy


def make_run(strategy, labels, seed, unlabeled=0, llm_labels=0, student="small", teacher="xxl"):
    """A Run with its folder's name, e.g. dist-n1000-u19000-s0; the usual sizes go unnamed."""
    size = teacher if strategy == "teacher" else student
    name = strategy + (f"-{size}" if size not in ("small", "xxl") else "")
    name += f"-from-{teacher}" if strategy == "dist" and teacher != "xxl" else ""
    name += f"-n{labels}" + (f"-u{unlabeled}" if strategy in ("dist", "self") else "")
    name += (f"-g{llm_labels}" if strategy in ("llm", "prompted") else "") + f"-s{seed}"
    kind, sizes = {"dist": "teacher", "self": "small"}.get(strategy), (student, teacher)
    needs = (make_run(kind, labels, seed, 0, 0, *sizes).name,) if kind else ()
    return Run(name, strategy, labels, unlabeled, llm_labels, seed, needs, student, teacher)


def find_run(name):
    """The Run of a folder's name, None where it is none."""
    if not (match := RUN_NAME.fullmatch(name)):
        return None
    strategy, size = match["strategy"], match["size"]
    count = {key: int(match[key] or 0) for key in ("labels", "seed", "unlabeled", "llm")}
    sizes = ("small", size) if strategy == "teacher" else (size, match["teacher"])
    run = make_run(strategy, *count.values(), sizes[0] or "small", sizes[1] or "xxl")
    return run if run.name == name else None


def parse_run(name):
    """The Run of a folder's name: the inverse of make_run; a UserError says how runs are named."""
    if run := find_run(name):
        return run
    raise UserError(f"run {name!r}: not a name such as small-n1000-s0 or dist-n1000-u19000-s0")


def find_needs(name):
    """Names of the runs that the run of this name learns from."""
    return getattr(find_run(name), "needs", ())


class Record(NamedTuple):
    """What one finished run used, as its training.json and metrics.json say: no dollars."""

    run: str
    world: str
    task: str
    strategy: str
    labels: int
    unlabeled: int
    seed: int
    llm_tokens: dict  # "in", "out", "cached" -> count
    llm_model: str  # None where not recorded
    gpu: str  # as the driver names it; None on a CPU
    gpus: int
    hours: Fraction  # all but the teacher's pass, times the number of GPUs
    pass_hours: Fraction  # this run's share of the teacher's pass over the unlabeled rows
    evaluate_hours: Fraction
    model: str = "not recorded"  # what was fine-tuned, as its command named it

    @property
    def needs(self):
        """Names of the runs that it learned from."""
        return find_needs(self.run)

    @property
    def encoder(self):
        return getattr(find_run(self.run), "encoder", None)


def read_record(folder, top=None):
    """The Record of a run folder, None where it only scores a model that was trained elsewhere;
    a UserError names the file and the field at fault.

    Its world is its path below `top`, as two worlds of one name, such as runs/mini and
    runs/sweep/mini, are two; where that is none, its folder's name.
    """
    path, metrics = folder / "training.json", read_if_there(folder / "metrics.json", METRICS)
    training = read_json(path, TRAINING) if path.exists() else metrics.get("training")
    if training is None:
        return None
    path = path if path.exists() else f"{folder / 'metrics.json'}: 'training'"

    def count(key, record=training, least=0):
        return parse_count(record.get(key) or 0, f"{path}: {key!r}", least)

    def hours(phases, gpus):
        used = (parse_amount(v, f"{path}: seconds {k!r}") for k, v in phases.items())
        return sum(used, Fraction(0)) * max(1, gpus) / 3600

    seconds, words = need(training, "seconds", dict, path), read_command(training.get("command"))
    # People's labels alone, where the name tells them; the file also counts an LLM's.
    labels = getattr(find_run(folder.name), "labels", count("labels"))
    cpu = need(training, "hardware device", str, path) == "cpu"
    gpus = 1 if cpu else count("gpus", training["hardware"], 1)
    teacher_pass = hours({"teacher_pass": seconds.get("teacher_pass", 0)}, gpus)
    world = folder.resolve().parent.parent
    return Record(
        *(folder.name, str(world.relative_to(top)) if top in world.parents else world.name),
        *(need(training, key, str, path) for key in ("task", "strategy")),
        *(labels, count("unlabeled"), count("seed")),
        *read_llm_use(folder),
        None if cpu else need(training, "hardware gpu", str, path),
        *(gpus, hours(seconds, gpus) - teacher_pass, teacher_pass),
        hours(metrics.get("seconds") or {}, count("gpus", metrics.get("hardware") or {})),
        words.get("model") or words.get("student") or "not recorded",
    )


def find_run_folder(metrics):
    """The folder of the run that a metrics.json scores, on test or on dev."""
    return metrics.parents[1] if metrics.parent.name == "dev" else metrics.parent


def find_annotation(folder):
    """The annotation.json of a run, in its folder or one below; None where it has none."""
    found = [folder / "annotation.json", *sorted(folder.glob("*/annotation.json"))]
    return next((path for path in found if path.exists()), None)


def read_llm_use(folder):
    """(tokens in, out and cached; model or None) of a run's LLM labels, as its annotation.json
    has them. A simulated annotator has no model."""
    path, shape = find_annotation(folder), {"annotator": str, "llm_model": str, "llm_tokens": dict}
    used = read_json(path, shape) if path else {}
    tokens = (used.get("llm_tokens") or {}).items()
    tokens = {k: parse_count(v, f"{path}: llm_tokens {k!r}") for k, v in tokens}
    simulated = str(used.get("annotator")).startswith("simulated")
    return tokens, None if simulated else used.get("llm_model")


def read_runs(folder):
    """Records of every finished run below `folder`, by path."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the one that holds the runs")
    found = {path.parent for path in folder.rglob("training.json")}
    found |= {path.parent for path in folder.rglob("metrics.json")}
    by_numbers = sorted(found)  # then by path alone, where zeros make the difference
    by_numbers.sort(key=lambda path: re.sub(r"\d+", lambda n: n[0].zfill(15), str(path)))
    records = [record for path in by_numbers if (record := read_record(path, folder.resolve()))]
    if not records:
        raise UserError(f"{folder}: no finished run here (no training.json); train one first")
    return records


def list_timed(name, folder):
    """(teachers, distilled students) among the finished runs of task `name`, of one model each."""
    if folder is None:
        raise UserError("--rates measured: pass --runs DIR, the folder of your runs")
    records = [record for record in read_runs(folder) if record.task == name]
    teachers = [record for record in records if record.strategy == "teacher"]
    students = [r for r in records if r.strategy == "dist" and r.unlabeled and not r.encoder]
    if not teachers or not students:
        raise UserError(
            f"{folder}: {len(teachers)} teacher and {len(students)} dist runs of task {name!r}; "
            "measured rates need one of each"
        )
    models = [sorted({record.model for record in group}) for group in (teachers, students)]
    if max(map(len, models)) > 1:
        raise UserError(f"{folder}: runs of several models ({models}); measure those of one alone")
    return teachers, students


def measure_rates(name, folder, prices, gpu=None, gpu_speed=None, priced=False):
    """(GPU, labels -> teacher hours, labels -> hours an example, [what was measured]) of the runs
    of task `name`.

    Hours of teachers with the same N are averaged; distilling is hours over rows of all runs. Runs
    of several models are refused, and so are seconds of a CPU, unless its hour is `priced` by flag:
    they say nothing of a GPU.
    """
    teachers, students = list_timed(name, folder)
    kinds = [r.gpu and match_gpu(prices, r.gpu) for r in teachers + students]
    if None in kinds and (gpu or not priced):
        raise UserError(
            f"{folder}: these runs used a CPU, whose seconds say nothing of a GPU; "
            "pass --gpu-usd-per-hour (of this machine) without --gpu, or --rates paper"
        )
    if len(set(kinds)) > 1 and not gpu:
        raise UserError(f"{folder}: runs on {len(set(kinds))} kinds of device; name one by --gpu")
    target, used = gpu or kinds[0] or "CPU", {}
    for record, kind in zip(teachers + students, kinds, strict=True):
        same = kind is None or kind.lower() == target.lower()
        factor = 1 if same else compare_speeds(prices, kind, target, gpu_speed)
        key = record.labels if record.strategy == "teacher" else "dist"
        used.setdefault(key, []).append((record.hours + record.pass_hours) * factor)
    distill = sum(used.pop("dist")) / sum(record.unlabeled for record in students)
    teacher_hours = {n: sum(each) / len(each) for n, each in sorted(used.items())}
    devices = " and ".join(sorted({kind or "a CPU" for kind in kinds}))
    what = f"teacher {teachers[0].model}, student {students[0].model}, on {devices}"
    told = [f"rates measured in {folder}: {what}; other models and cards take others"]
    return target, teacher_hours, {0: distill}, told
