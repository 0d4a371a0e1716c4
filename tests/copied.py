"""The files that a module's docstring says to copy along with it."""

import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def list_copied(path):
    """Paths, from the project's root, of all files that the `Copy:` part of `path` names."""
    said = re.search(r"^Copy:(.*(?:\n {8}.*)*)", Path(ROOT, path).read_text(encoding="utf-8"), re.M)
    found = set()
    for name in re.findall(r"[\w./*-]+(?:\.(?:py|jsonl?|csv|html)\b|/(?= |,|;|\n|$))", said[1]):
        name = f"{name}*.*" if name.endswith("/") else name
        found |= {p.relative_to(ROOT) for p in ROOT.glob(name) if p.is_file()}
    for other in re.findall(r"what (\S+\.py) names", said[1]):
        found |= list_copied(other)
    return found


def copy_stage(path, folder):
    """Copy what `path` names into `folder`, as a user would."""
    for name in list_copied(path):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
