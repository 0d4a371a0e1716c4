"""Fetch the authors' data files, checked, and read unlabeled sources from archives or public sets.

Usage:
    python -m data.fetch --task wlp                                 # into data/prepared/downloads
    python -m data.fetch --task wlp --base http://127.0.0.1:8000    # a mirror of your own

Reads:  data/sources.json: addresses, row counts, sizes and hashes; the web.
Writes: OUTPUT/<task>/<task>_{train,test|dev}_all.json, each whole and checked or not at all, and
        OUTPUT/SHA256SUMS (`sha256sum -c` reads it), against which later downloads are compared.
Copy:   data/fetch.py data/sources.json data/files.py data/__init__.py
Paper:  Table 5 and Appendix D (which data); the files are those of the authors' repository.

An interrupted download leaves `<file>.part`; the next call asks the server for the rest only.
"""

import argparse
import hashlib
import http.client
import json
import logging
import os
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path

from data.files import UserError, read_json, run_cli, write_atomic

SOURCES = Path(__file__).with_name("sources.json")
DOWNLOADS = Path(__file__).with_name("prepared") / "downloads"
TRIES = 4  # of one file, each going on where the one before broke off
PAUSE = 2.0  # seconds before the second try, doubled for each further one


def list_files(task, sources):
    """The authors' files of a task, as paths under the base address."""
    folder = sources["folders"].get(task, task)
    files = [name for name in sources["files"] if name.startswith(f"{folder}/")]
    if not files:
        known = ", ".join(sorted({name.split("/")[0] for name in sources["files"]}))
        raise UserError(f"the authors' repository has no {task!r} (it has {known}); give --data")
    return files


def read_rest(url, part, timeout):
    """Append to `part` what the server has beyond it. Returns the size the server announced."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        if have and answer.status != 206:  # a server without ranges sends the whole file again
            part.unlink()
            have = 0
        length = answer.headers.get("Content-Length")
        with open(part, "ab") as file:
            while block := answer.read(1 << 16):
                file.write(block)
    return have + int(length) if length else None


def download(url, part, timeout=60):
    """Fetch `url` into `part`, going on after broken connections; a UserError if it can't be."""
    for attempt in range(TRIES):
        try:
            size = read_rest(url, part, timeout)
            if size is None or part.stat().st_size == size:
                return
            fault = f"{part.stat().st_size:,} of {size:,} bytes came"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # `part` is as long as the file or longer: start over
                part.unlink(missing_ok=True)
            elif error.code not in (408, 429) and error.code < 500:
                raise UserError(
                    f"{url}: the server answers {error.code} {error.reason}; check --base, or "
                    "download the file yourself and give its folder by --data"
                ) from None
            fault = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            fault = str(getattr(error, "reason", None) or error or type(error).__name__)
        if attempt + 1 < TRIES:
            print(f"{url}: {fault}; going on", file=sys.stderr)
            time.sleep(PAUSE * 2**attempt)
    raise UserError(f"{url}: {fault}; run the same command again to go on from there")


def check_file(path, name, facts, recorded=None):
    """A UserError that names what is wrong with the downloaded `path`; else its sha256."""
    content = path.read_bytes()
    rows = sum(1 for line in content.splitlines() if line.strip())
    sha256 = hashlib.sha256(content).hexdigest()
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    found = {"bytes": len(content), "rows": rows, "sha256": sha256, "git_blob": blob}
    wrong = [key for key in found if facts.get(key, found[key]) != found[key]]
    if wrong:
        faults = ", ".join(f"{key} {found[key]} where {facts[key]} is known" for key in wrong)
        raise UserError(f"{name}: not the authors' file ({faults})")
    if recorded not in (None, sha256):
        raise UserError(
            f"{name}: sha256 {sha256} where the first download had {recorded}; if the new file is "
            "the right one, remove its line from SHA256SUMS"
        )
    for number, line in enumerate(content.splitlines(), 1):
        try:
            json.loads(line or b"null")
        except ValueError:
            raise UserError(f"{name} line {number}: not JSON") from None
    return sha256


def read_sums(path):
    """{file name: sha256} of a SHA256SUMS file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def fetch_task(task, output=DOWNLOADS, base=None, sources=None):
    """Download what is missing of the authors' files of `task`. Returns the folder `output`."""
    sources = sources or read_json(SOURCES)
    sums = read_sums(output / "SHA256SUMS")
    for name in list_files(task, sources):
        path, facts = output / name, sources["files"][name]
        if path.exists():
            try:
                check_file(path, str(path), facts, sums.get(name))
            except UserError as error:
                raise UserError(f"{error}; remove it to download it again") from None
            continue
        url = f"{(base or sources['base']).rstrip('/')}/{name}"
        part = path.with_name(f"{path.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {url}", file=sys.stderr)
        download(url, part)
        try:
            sums[name] = check_file(part, url, facts, sums.get(name))
        except UserError as error:
            part.unlink()
            raise UserError(f"{error}; the download was thrown away") from None
        lines = [f"{digest}  {name}\n" for name, digest in sorted(sums.items())]
        write_atomic(output / "SHA256SUMS", "".join(lines))
        os.replace(part, path)
    return output


def find_owner(name, folders):
    """The folder that a file's path is about; `multipit_id/x` is not about `multipit`."""
    parts = Path(name).parts
    fits = [f for f in folders if any(part == f or part.startswith(f"{f}_") for part in parts)]
    return max(fits, key=len, default=None)


def find_member(names, path, member, folder, sources):
    """The one file of an archive that holds the unlabeled rows of `folder`, or `member`."""
    hits = [name for name in names if name.endswith((".json", ".jsonl"))]
    folders = {name.split("/")[0] for name in sources["files"]} | {folder}
    if member:
        hits = [name for name in names if name == member]
    elif len(hits) > 1:
        hits = [name for name in hits if find_owner(name, folders) == folder]
    if len(hits) != 1:
        raise UserError(
            f"{path}: {len(hits)} files could be the unlabeled rows of {folder}; name the right "
            f"one as {path}:NAME; it holds {', '.join(sorted(names)[:12])}"
        )
    return hits[0]


def read_archive(path, folder, sources):
    """(name, lines) of the one JSON file about `folder` in a .zip or .tar archive.

    `path` may be ARCHIVE:MEMBER.
    """
    path, _, member = str(path).partition(":")
    try:
        zipped = zipfile.is_zipfile(path)
        with (zipfile.ZipFile if zipped else tarfile.open)(path) as archive:
            names = archive.namelist() if zipped else archive.getnames()
            name = find_member(names, path, member, folder, sources)
            content = (archive.open if zipped else archive.extractfile)(name).read()
        return f"{path}:{name}", content.decode("utf-8").split("\n")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(
            f"{path}: not a .zip or .tar archive, or damaged ({error}); download it again"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: {name} is not UTF-8") from None


def read_public(name, task, sources):
    """The texts of a public data set named in sources.json, by the `datasets` library."""
    public = sources["public"]
    fitting = [key for key, entry in public.items() if entry["task"] == task]
    if name not in public:
        raise UserError(f"hub:{name}: unknown; public sets for {task}: {fitting or 'none'}")
    entry = public[name]
    try:
        import datasets

        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it tells of each retry
        if not sys.stderr.isatty():
            datasets.disable_progress_bars()
        rows = datasets.load_dataset(entry["path"], entry.get("name"), split=entry["split"])
        return [str(text) for text in rows[entry["column"]]]
    except ImportError:
        raise UserError(f"hub:{name}: needs the package `datasets` (requirements.txt)") from None
    except Exception as error:  # the hub's errors have no common class
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"hub:{name}: {entry['path']} can't be loaded ({reason}); check the connection, or "
            "give a JSONL file by --unlabeled"
        ) from None


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, help="entry of data/tasks.json")
    parser.add_argument("--base", help="address the files lie under (default: sources.json's)")
    parser.add_argument("--output", type=Path, default=DOWNLOADS, help="folder (%(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_args(argv)
    print(fetch_task(args.task, args.output, args.base))


if __name__ == "__main__":
    run_cli(main)
