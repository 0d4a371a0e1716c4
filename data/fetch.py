"""Fetch the authors' data files, checked, and read unlabeled sources from their archives.

Reads:  data/sources.json: addresses, row counts, sizes and hashes; the web.
Writes: OUTPUT/<task>/<task>_{train,test|dev}_all.json, each whole and checked or not at all
Copy:   data/fetch.py data/sources.json data/files.py data/__init__.py
Paper:  Table 5 and Appendix D (which data); the files are those of the authors' repository.
"""

import hashlib
import http.client
import re
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from data.files import UserError, need, read_json, say_first, write_atomic

SOURCES = Path(__file__).with_name("sources.json")
DOWNLOADS = Path(__file__).with_name("prepared") / "downloads"
ARCHIVE = re.compile(r"(.+?\.(?:zip|tgz|tar(?:\.(?:gz|bz2|xz))?))(?::(.*))?")  # PATH or PATH:MEMBER


def read_sources(path):
    """sources.json, checked."""
    shape = {"base": str, "archive": str, "folders": {None: str}, "files": {None: {}}}
    shape["public"] = {None: dict.fromkeys(["task", "path", "name", "split", "column"], str)}
    return read_json(path, shape, " ".join(shape))


def list_folders(sources):
    """The folders of the authors' repository, one a task."""
    return {name.split("/")[0] for name in sources["files"]}


def download(url):
    """The bytes at `url`, at most 3 MB for the files of this bundle."""
    try:
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        fault = f"the server answers {error.code} {say_first(error)}; check data/sources.json, or"
    except (OSError, ValueError, http.client.HTTPException) as error:
        fault = f"{say_first(error)}; run the same command again, or"
    raise UserError(f"{url}: {fault} download the file yourself and give its folder by --data")


def check_file(content, name, facts):
    """Refuse bytes whose hash is not the one by which git knows the authors' file."""
    known = need(facts, "git_blob", str, f"data/sources.json, {name}")
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if blob != known:
        fault = f"{len(content):,} bytes with the git_blob {blob} where {known} is known"
        raise UserError(f"{name}: not the authors' file ({fault})")


def fetch_task(task, output, sources):
    """Download what is missing of the authors' files of `task`. Returns the folder `output`."""
    folder, folders = sources["folders"].get(task, task), list_folders(sources)
    if folder not in folders:
        known = ", ".join(sorted(folders))
        raise UserError(f"the authors' repository has no {task!r} (it has {known}); give --data")
    for name in [name for name in sources["files"] if name.startswith(f"{folder}/")]:
        path, facts = output / name, sources["files"][name]
        if path.exists():
            check_file(path.read_bytes(), f"{path}: remove it to download it again", facts)
            continue
        url = f"{sources['base'].rstrip('/')}/{name}"
        print(f"downloading {url}", file=sys.stderr)
        content = download(url)
        check_file(content, url, facts)
        write_atomic(path, content.decode())
    return output


# --- archives --------------------------------------------------------------------------------


def find_owner(name, folders):
    """The folder that a file's path is about; `multipit_id/x` is not about `multipit`."""
    parts = Path(name).parts
    fits = [f for f in folders if any(part == f or part.startswith(f"{f}_") for part in parts)]
    return max(fits, key=len, default=None)


def find_member(names, path, member, folder, sources):
    """The one file of an archive that holds the unlabeled rows of `folder`, or `member`."""
    hits = [name for name in names if name.endswith((".json", ".jsonl"))]
    if member:
        hits = [name for name in names if name == member]
    elif len(hits) > 1:
        folders = {*list_folders(sources), folder}
        hits = [name for name in hits if find_owner(name, folders) == folder]
    if len(hits) != 1:
        raise UserError(
            f"{path}: {len(hits)} files could be the unlabeled rows of {folder}; name the right "
            f"one as {path}:NAME; it holds {', '.join(sorted(names)[:12]) or 'no file'}"
        )
    return hits[0]


def read_archive(path, folder, sources):
    """(name, bytes) of the one JSON file about `folder` in an archive, a match of ARCHIVE."""
    path, member = ARCHIVE.fullmatch(str(path)).groups()
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if not name.endswith("/")]
                name = find_member(names, path, member, folder, sources)
                return f"{path}:{name}", archive.read(name)
        with tarfile.open(path) as archive:  # links and folders are no files
            names = [info.name for info in archive if info.isfile()]
            name = find_member(names, path, member, folder, sources)
            return f"{path}:{name}", archive.extractfile(name).read()
    except (UserError, FileNotFoundError):
        raise
    except Exception as error:  # a damaged or encrypted one raises what its compression does
        fault = f"no .zip or .tar archive that can be read ({say_first(error)})"
        raise UserError(f"{path}: {fault}; download it again, or unpack it") from None
