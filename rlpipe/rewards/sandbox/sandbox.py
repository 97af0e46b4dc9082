"""Runs a program that nobody trusts, each time in a sandbox of its own.

    sandbox = Sandbox(Limits(), "bubblewrap")
    sandbox.check()                                           # raises Unavailable
    run = sandbox.run(Job("print(6 * 7)"), seconds=5.0)       # Run(kind="", …, out="42\\n")

`bubblewrap` gives namespaces of its own for processes, network, IPC, host name and mounts. In it are this Python, an
empty folder in memory, and nothing else: no /proc, no /etc, no packages, no environment. `none` gives a process with
rlimits and nothing more. Standard library only.
"""

import contextlib
import fcntl
import marshal
import math
import os
import secrets
import shutil
import subprocess
import tempfile
from typing import Literal, NamedTuple

from rlpipe.rewards.sandbox import interpreter, seccomp
from rlpipe.rewards.sandbox.bubblewrap import BOX, INSIDE, MIB, Limits, bwrap, fresh_uid
from rlpipe.rewards.sandbox.verdict import Run, judge
from rlpipe.rewards.sandbox.watch import Watch

OPEN_FILES = 64
INSTALL = "sudo apt install bubblewrap (Debian, Ubuntu) or sudo dnf install bubblewrap (Fedora, RHEL)"
CHECK_SECONDS = 30.0
FORKS = "import os, signal\nfor _ in range({}):\n    if not os.fork(): signal.pause()"

Isolation = Literal["bubblewrap", "none"]


class Unavailable(RuntimeError):
    """Programs cannot be isolated on this machine. The message says why and how to mend it."""


class Job(NamedTuple):
    """A program, and snippets that test it from a process of their own."""

    program: str
    tests: tuple[str, ...] = ()
    stdin: str = ""


class Sandbox:
    """Starts programs. Used by several threads at once."""

    def __init__(self, limits: Limits, isolation: Isolation):
        self._limits, self._isolation = limits, isolation

    def check(self) -> None:
        """Run a program that starts a process, and one that starts too many. Raises `Unavailable`."""
        if self._isolation == "none":
            return
        if shutil.which("bwrap") is None:
            raise Unavailable(f"bubblewrap is not installed: {INSTALL}")
        try:
            one, many = (self.run(Job(FORKS.format(count)), CHECK_SECONDS) for count in (1, self._limits.processes))
        except (OSError, subprocess.SubprocessError, NotImplementedError) as error:
            raise Unavailable(f"bubblewrap cannot be used here: {error}") from error
        if one.kind:
            raise Unavailable(f"bubblewrap does not work here: {one.message} (a container needs CAP_SYS_ADMIN for it)")
        if many.kind != "processes":
            raise Unavailable("this kernel does not count the processes of a sandbox: Linux 5.14 does")

    def run(self, job: Job, seconds: float) -> Run:
        """The program's end, after at most `seconds`, with every process of it gone."""
        with contextlib.ExitStack() as stack:
            nonce = secrets.token_hex(16)
            request = marshal.dumps(self._request(job, nonce, seconds))
            job_fd, stdin = (_readable(stack, data) for data in (request, job.stdin.encode()))
            tests = [_readable(stack, marshal.dumps(list(job.tests)))] if job.tests else []
            status, status_end = os.pipe()
            stack.callback(os.close, status)
            command, fds = self._command(stack, [job_fd, status_end, *tests], bool(tests))
            try:
                process = _start(command, stdin, fds, self._folder(stack))
            finally:
                os.close(status_end)
            with process.stdout, process.stderr:
                limits = self._limits
                ended = Watch(process, status, limits.memory * MIB, limits.output * MIB).follow(seconds)
            return judge(ended, nonce)

    def _request(self, job: Job, nonce: str, seconds: float) -> dict:
        isolated = self._isolation == "bubblewrap"
        return {
            "program": job.program,
            "nonce": nonce,
            "limits": self._rlimits(seconds, isolated, bool(job.tests)),
            "uid": fresh_uid() if isolated and os.geteuid() == 0 else 0,
            "box": BOX if isolated else "",
        }

    def _rlimits(self, seconds: float, isolated: bool, checker: bool) -> dict[str, int]:
        limits = {
            "RLIMIT_CPU": math.ceil(seconds),
            "RLIMIT_AS": self._limits.memory * MIB,
            "RLIMIT_FSIZE": self._limits.files * MIB,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_CORE": 1,  # one byte: at 0 a program that takes core dumps would still be started
        }
        if not isolated:  # where it would count every process of this user
            return limits
        # In a user namespace the sandbox's first process, which is bubblewrap's, counts too.
        return limits | {"RLIMIT_NPROC": self._limits.processes + checker + (os.geteuid() != 0)}

    def _command(self, stack: contextlib.ExitStack, fds: list[int], checker: bool) -> tuple[list[str], list[int]]:
        """The command that takes these file descriptors, and all that it needs."""
        words = ["main.py", *map(str, fds)]
        if self._isolation == "none":
            return [interpreter.BINARY, "-P", "-s", f"{INSIDE}/{words[0]}", *words[1:]], fds
        filter_fd = _readable(stack, seccomp.build(checker))
        return [*bwrap(self._limits, filter_fd), f"/inside/{words[0]}", *words[1:]], [*fds, filter_fd]

    def _folder(self, stack: contextlib.ExitStack) -> str:
        return (
            "/"
            if self._isolation == "bubblewrap"
            else stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        )


def problem() -> str | None:
    """Why programs cannot be isolated on this machine, if so."""
    try:
        Sandbox(Limits(), "bubblewrap").check()
    except Unavailable as error:
        return str(error)
    return None


def _start(command: list[str], stdin: int, fds: list[int], folder: str) -> subprocess.Popen:
    return subprocess.Popen(
        command,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        pass_fds=fds,
        env={"PATH": os.environ.get("PATH", os.defpath)} if command[0] == "bwrap" else {},
        cwd=folder,
        start_new_session=True,
    )


def _readable(stack: contextlib.ExitStack, data: bytes) -> int:
    """A file descriptor with these bytes, unchangeable. Unlike a pipe it never blocks, however much it holds."""
    fd = os.memfd_create("rlpipe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return fd
