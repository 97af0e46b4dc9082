"""What one node shows of itself. Nothing heavy is imported: versions are read from packages' metadata."""

import hashlib
import os
import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import rlpipe
from rlpipe.observe import runinfo
from rlpipe.runtime import machine

MARK = ".preflight-"
"""Begins the names of files that are written to see who else sees them."""


@dataclass(frozen=True, slots=True)
class Task:
    """What to look at."""

    models: Mapping[str, str]
    run_dir: str
    token: str
    """What the driver has written into its file there, and what the others write into theirs."""
    gpus: bool
    """Whether the run asks for any."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found. Where something could not be had, the reason stands in its place."""

    versions: Mapping[str, str]
    models: Mapping[str, str]
    """By recipe key: a digest of what the folder holds, or why it cannot be read (`no: …`)."""
    reads: str
    """Why the driver's file in the run directory cannot be read there; empty if it can."""
    writes: str
    """The same for writing one of its own."""
    binds: str
    """The same for opening a port on the node's address."""
    gpus: list[str] = field(default_factory=list)
    """Names of the GPUs that the driver software of the node lists."""


def look(task: Task, node: str, address: str) -> Seen:
    """From a process on the node `node`, which the others reach at `address`."""
    return Seen(
        versions=versions(),
        models={key: fingerprint(path) for key, path in task.models.items()},
        reads=unreadable(mark(task.run_dir, "driver"), task.token),
        writes=unwritable(mark(task.run_dir, node), task.token),
        binds=_unbindable(address),
        gpus=[gpu.name for gpu in machine.find_gpus()] if task.gpus else [],
    )


def mark(run_dir: str, who: str) -> Path:
    return Path(run_dir) / f"{MARK}{who}"


def versions() -> dict[str, str]:
    """Of Python and the packages that a run is made of; of rlpipe also what its code is, which has one number long."""
    return runinfo.versions() | {"rlpipe": f"{rlpipe.__version__}, code {code()}"}


@cache
def code() -> str:
    """A digest of rlpipe's own files as they are imported here."""
    folder, digest = Path(rlpipe.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:8]


def fingerprint(path: str) -> str:
    """Of a model folder: its config.json, and the names and sizes of its files, whose contents would take long."""
    try:
        config = (Path(path) / "config.json").read_bytes()
        files = sorted(f"{entry.name} {entry.stat().st_size}" for entry in os.scandir(path) if entry.is_file())
    except OSError as error:
        return f"no: {error.strerror}"
    return hashlib.sha256(config + "\n".join(files).encode()).hexdigest()[:8]


def unreadable(file: Path, token: str) -> str:
    """Why `token` does not stand in the file; empty if it does."""
    try:
        return "" if file.read_text() == token else "it holds something else"
    except OSError as error:
        return str(error.strerror)


def unwritable(file: Path, token: str) -> str:
    """A folder that is not there is not made: then it is not the one that the driver has."""
    try:
        with open(file, "w") as out:
            out.write(token)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        return str(error.strerror)
    return ""


def _unbindable(address: str) -> str:
    try:
        with socket.create_server((address, 0)):
            return ""
    except OSError as error:
        return str(error.strerror)


def free_bytes(folder: str) -> int:
    return shutil.disk_usage(folder).free
