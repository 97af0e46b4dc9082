"""The command line of bubblewrap: what there is in a sandbox."""

import os
import secrets
from pathlib import Path
from typing import NamedTuple

from rlpipe.rewards.sandbox import interpreter

MIB = 1 << 20
BOX = "/box"
INSIDE = str(Path(__file__).with_name("inside"))
"""The folder of what runs in there."""


class Limits(NamedTuple):
    """Sizes in MiB. Memory is that of each process, and of all of them together by a watch that looks now and then."""

    memory: int = 512
    files: int = 16
    output: int = 1
    processes: int = 16


def bwrap(limits: Limits, filter_fd: int) -> list[str]:
    """The command line up to Python's own arguments."""
    python = interpreter.find()
    # Root gets no user namespace: in one of its own it would still be root to the kernel, whose processes are not
    # counted. It becomes a user that nobody else is, which takes the two capabilities; with them go all others.
    root = ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"] if os.geteuid() == 0 else ["--unshare-user"]
    namespaces = ["ipc", "pid", "net", "uts", "cgroup-try"]
    read_only = [python.binary, python.library, *python.shared]
    room = ["--perms", "1777", "--size", str(limits.files * MIB), "--tmpfs"]
    environment = {
        "HOME": BOX, "TMPDIR": BOX, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1",
        "LD_LIBRARY_PATH": ":".join(dict.fromkeys(os.path.dirname(path) for path in python.shared)),
    }  # fmt: skip
    return [
        "bwrap", "--die-with-parent", "--new-session", "--clearenv", *root,
        *(f"--unshare-{name}" for name in namespaces),
        *(word for folder in _parents([*read_only, "/dev/shm"]) for word in ("--perms", "0755", "--dir", folder)),
        *(word for path in read_only for word in ("--ro-bind", path, path)),
        "--ro-bind", INSIDE, "/inside",
        *(word for path in python.hidden for word in ("--perms", "0555", "--tmpfs", path, "--remount-ro", path)),
        *(word for name in ("null", "zero", "urandom") for word in ("--dev-bind", f"/dev/{name}", f"/dev/{name}")),
        *room, BOX, *room, "/dev/shm", "--remount-ro", "/", "--chdir", BOX,
        *(word for name, value in environment.items() for word in ("--setenv", name, value)),
        "--seccomp", str(filter_fd), "--", python.binary, "-P", "-s",
    ]  # fmt: skip


def _parents(paths: list[str]) -> list[str]:
    """The folders above them, outermost first. Left to bwrap they would be root's alone."""
    return sorted({str(parent) for path in paths for parent in Path(path).parents} - {"/"})


def fresh_uid() -> int:
    """A user id that most likely nobody has, so that the limit of processes counts this sandbox alone."""
    with open("/proc/self/uid_map") as file:
        first, _, count = max((tuple(map(int, line.split())) for line in file), key=lambda row: row[2])
    return first + count // 2 + secrets.randbelow(max(count // 4, 1))
