"""A run directory in an object store, and the folder on this machine that it is worked on in.

What has to be durable at once (ledger, rollouts, events, recipe) is written to the store. What libraries write as files
(checkpoints, models, adapters) is written to the folder and copied to the store when it is whole. The folder says in a
file of its own which place in the store it stands for; a folder without that file is a run directory itself, and then
nothing here does anything.
"""

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from uuid import uuid4

from rlpipe.data.storage import Storage

MARK = ".stands-for"
WORK = "RLPIPE_WORK"
"""Environment variable: where such folders are. With several nodes, a place that all of them see."""
DEFAULT_WORK = "~/.cache/rlpipe/runs"


class Unreachable(RuntimeError):
    """A run directory's URL cannot be used here; the message says why."""


def is_url(run_dir: str | Path) -> bool:
    return "://" in str(run_dir)


def work_folder(run_dir: str | Path) -> Path:
    """The folder on this machine that a run directory is worked on in: itself, if it is no URL. Raises
    `Unreachable`."""
    if not is_url(run_dir):
        return Path(run_dir).expanduser().resolve()
    url = str(run_dir).rstrip("/")
    _require_reachable(url)
    name = f"{url.rpartition('/')[2]}-{hashlib.sha256(url.encode()).hexdigest()[:10]}"
    folder = Path(os.environ.get(WORK) or DEFAULT_WORK).expanduser().resolve() / name
    mark(folder, url)
    return folder


def mark(folder: Path, url: str) -> None:
    """From now on `folder` stands for `url`."""
    folder.mkdir(parents=True, exist_ok=True)
    if url_of(folder) != url:  # whole or not at all: others may look at it
        Storage(folder).write(MARK, url.encode())


def mark_below(directory: Path, folders: Iterable[Path]) -> None:
    """What lies in `directory` stands for the same places in the store, if `directory` stands for one."""
    if (url := url_of(directory)) is not None:
        for folder in folders:
            if folder != directory:
                mark(folder, f"{url}/{folder.relative_to(directory).as_posix()}")


def url_of(directory: Path) -> str | None:
    """What a folder stands for; None if it stands for itself."""
    try:
        return (directory / MARK).read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def storage_of(directory: Path) -> Storage:
    """Where what has to be durable at once is written."""
    return Storage(url_of(directory) or directory)


def keep(directory: Path, name: str, last: str = "") -> None:
    """Copy the folder `name` to the store in place of what is there, the file `last` after all others, so that who sees
    it sees a whole folder."""
    if url_of(directory) is None:
        return
    storage, folder = storage_of(directory), directory / name
    files = {f"{name}/{file.relative_to(folder).as_posix()}": file for file in folder.rglob("*") if file.is_file()}
    final = f"{name}/{last}"
    storage.delete(final)
    storage.put_files({key: file for key, file in files.items() if key != final})
    for stale in set(storage.files(name)) - set(files):
        storage.delete(stale)
    if final in files:
        storage.put_files({final: files[final]})
    copy = uuid4().hex.encode()
    storage.write(_copy_of(name), copy)
    Storage(directory).write(_copy_of(name), copy)


def same(directory: Path, name: str) -> bool:
    """Whether the folder `name` is here as the store has it."""
    here, there = Storage(directory), storage_of(directory)
    known = [place.read(_copy_of(name)) if place.exists(_copy_of(name)) else b"" for place in (here, there)]
    return known[0] == known[1] != b"" and (directory / name).is_dir()


def fetch(directory: Path, name: str) -> None:
    """Bring the folder `name` from the store, in place of one that is here."""
    storage, folder = storage_of(directory), directory / name
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    storage.get_files({key: partial / key.removeprefix(f"{name}/") for key in storage.files(name)})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    if storage.exists(_copy_of(name)):
        Storage(directory).write(_copy_of(name), storage.read(_copy_of(name)))


def drop(directory: Path, name: str, first: str = "") -> None:
    """Remove the folder `name` from the store, the file `first` before all others."""
    if url_of(directory) is None:
        return
    storage = storage_of(directory)
    storage.delete(_copy_of(name))
    storage.delete(f"{name}/{first}")
    for file in storage.files(name):
        storage.delete(file)


def _copy_of(name: str) -> str:
    """The file that says which copy of a folder it is."""
    return f".copies/{name.replace('/', '-')}"


def _require_reachable(url: str) -> None:
    try:
        Storage(url).exists("recipe.yaml")
    except ImportError as error:
        extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}.get(url.partition("://")[0])
        fix = f"pip install 'rlpipe[{extra}]'" if extra else "install the package that it names"
        raise Unreachable(f"{url}: {error}; {fix}, here and on every node") from error
    except Exception as error:  # of whichever library speaks to the store
        raise Unreachable(f"{url} cannot be read: {type(error).__name__}: {error}") from error
