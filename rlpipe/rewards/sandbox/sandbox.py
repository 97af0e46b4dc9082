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
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Literal, NamedTuple

from rlpipe.rewards.sandbox import interpreter, seccomp
from rlpipe.rewards.sandbox.watch import Ended, Watch

MIB = 1 << 20
OPEN_FILES = 64
BOX = "/box"
INSIDE = str(Path(__file__).with_name("inside.py"))
INSTALL = "sudo apt install bubblewrap (Debian, Ubuntu) or sudo dnf install bubblewrap (Fedora, RHEL)"
CHECK_SECONDS = 30.0
FORKS = "import os, signal\nfor _ in range({}):\n    if not os.fork(): signal.pause()"
SIGNALS = {
    signal.SIGXCPU: ("deadline", "it used up its seconds of processor time"),
    signal.SIGXFSZ: ("files", "it wrote a larger file than it may"),
    signal.SIGSYS: (
        "forbidden",
        "it made a system call that it may not: network, other processes, the kernel's inner parts",
    ),
}
STOPPED = {
    "deadline": "it did not end in time",
    "memory": "its processes together took more memory than they may",
    "output": "it printed more than it may",
}

Isolation = Literal["bubblewrap", "none"]


class Unavailable(RuntimeError):
    """Programs cannot be isolated on this machine. The message says why and how to mend it."""


class Limits(NamedTuple):
    """Sizes in MiB. Memory is that of each process, and of all of them together by a watch that looks now and then."""

    memory: int = 512
    files: int = 16
    output: int = 1
    processes: int = 16


class Job(NamedTuple):
    """A program, and snippets to run behind it in its namespace."""

    program: str
    tests: tuple[str, ...] = ()
    stdin: str = ""


class Run(NamedTuple):
    """How a program ended: `kind` is empty if by itself, `exception` if by its own fault, else what it ran into."""

    kind: str
    message: str
    passed: frozenset[int]
    """Indices of the tests that held."""
    out: str


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
            raise Unavailable("this kernel sets no limit to the number of processes in a sandbox; Linux 5.14 does")

    def run(self, job: Job, seconds: float) -> Run:
        """The program's end, after at most `seconds`, with every process of it gone."""
        with contextlib.ExitStack() as stack:
            nonce = secrets.token_hex(16)
            request = marshal.dumps(self._request(job, nonce, seconds))
            job_fd, stdin = (_readable(stack, data) for data in (request, job.stdin.encode()))
            status, status_end = os.pipe()
            stack.callback(os.close, status)
            command, fds = self._command(stack, job_fd, status_end)
            try:
                process = _start(command, stdin, [job_fd, status_end, *fds], self._folder(stack))
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
            "tests": list(job.tests),
            "nonce": nonce,
            "limits": self._rlimits(seconds, isolated),
            "uid": fresh_uid() if isolated and os.geteuid() == 0 else 0,
            "box": BOX if isolated else "",
        }

    def _rlimits(self, seconds: float, isolated: bool) -> dict[str, int]:
        limits = {
            "RLIMIT_CPU": math.ceil(seconds),
            "RLIMIT_AS": self._limits.memory * MIB,
            "RLIMIT_FSIZE": self._limits.files * MIB,
            "RLIMIT_NOFILE": OPEN_FILES,
            "RLIMIT_CORE": 1,  # one byte: at 0 a program that takes core dumps would still be started
        }
        # Outside a sandbox it would count every process of this user.
        return limits | ({"RLIMIT_NPROC": self._limits.processes} if isolated else {})

    def _command(self, stack: contextlib.ExitStack, job: int, status: int) -> tuple[list[str], list[int]]:
        """The command, and the file descriptors that it needs besides."""
        if self._isolation == "none":
            return [interpreter.BINARY, "-P", "-s", INSIDE, str(job), str(status)], []
        filter_fd = _readable(stack, seccomp.build())
        return [*bwrap(self._limits, filter_fd), "/inside.py", str(job), str(status)], [filter_fd]

    def _folder(self, stack: contextlib.ExitStack) -> str:
        return "/" if self._isolation == "bubblewrap" else stack.enter_context(tempfile.TemporaryDirectory())


def problem() -> str | None:
    """Why programs cannot be isolated on this machine, if so."""
    try:
        Sandbox(Limits(), "bubblewrap").check()
    except Unavailable as error:
        return str(error)
    return None


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
        "--ro-bind", INSIDE, "/inside.py",
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


def judge(ended: Ended, nonce: str) -> Run:
    """What its end means, from what stopped it, what it reported and how it exited."""
    lines = [line.split(" ", 3) for line in ended.status.decode(errors="replace").splitlines()]
    passed = frozenset(int(line[2]) for line in lines if line[:2] == ["passed", nonce])
    out = ended.out.decode(errors="replace")
    kind, message = _end(ended, [line for line in lines if line[:2] == ["ended", nonce]], ["started"] in lines)
    return Run(kind, message, passed, out)


def _end(ended: Ended, reports: list[list[str]], started: bool) -> tuple[str, str]:
    if ended.stopped:
        return ended.stopped, STOPPED[ended.stopped]
    last_words = ended.errors.decode(errors="replace").strip()[-300:]
    if not started:
        return "crashed", f"the sandbox did not start (exit status {ended.code}): {last_words}"
    number = -ended.code if ended.code < 0 else ended.code - 128
    killed = number in set(signal.Signals)
    if reports and not killed:
        kind = reports[0][2]
        return ("" if kind == "-" else kind), " ".join(reports[0][3:])
    if killed:
        return SIGNALS.get(number, ("crashed", f"the program died of {signal.Signals(number).name}"))
    return ("exception" if ended.code else ""), f"the program left with status {ended.code}. {last_words}"


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
