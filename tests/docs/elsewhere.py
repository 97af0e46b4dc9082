"""A machine of its own on this one, as far as Linux's namespaces go: nothing on its network but itself, own names of
hosts and processes. So Ray has the ports there that pages name, and whatever ran there is gone with it."""

import contextlib
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Self

import psutil

SETUP = 'ip link set lo up && mount --bind "$0" /etc/hosts && echo ready && exec sleep infinity'


def missing() -> str:
    """Why there can be none here; empty if there can."""
    if lacking := [program for program in ("unshare", "nsenter", "ip") if not shutil.which(program)]:
        return f"{', '.join(lacking)} not installed"
    tried = subprocess.run(["unshare", "-Urnmpf", "ip", "link", "set", "lo", "up"], capture_output=True, text=True)
    return tried.stderr.strip()


class Elsewhere:
    """Such a machine, until it is left."""

    def __init__(self, folder: Path, hosts: str, environment: dict[str, str]) -> None:
        """`hosts`: names of this machine there, beside localhost. Commands run in `folder`."""
        self.folder, self._environment = folder, environment
        names = folder / ".hosts"
        names.write_text(f"127.0.0.1 localhost {hosts}\n")
        command = ["unshare", "-Urnm", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", SETUP, names]
        self._unshare = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._unshare.stdout.readline() == "ready\n"
        [self._first] = psutil.Process(self._unshare.pid).children()

    def start(self, text: str) -> subprocess.Popen:
        """A line of shell."""
        there = ["nsenter", "-t", str(self._first.pid), "-U", "-n", "-m", "-p", "--preserve-credentials"]
        return subprocess.Popen(
            [*there, "bash", "-c", f"cd {shlex.quote(str(self.folder))} && {text}"],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def do(self, text: str, seconds: float = 300.0) -> tuple[int, str]:
        """Exit code and output. A daemon that the line leaves behind must not keep its output open."""
        process = self.start(text)
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._first.kill()  # the first process of its processes' namespace: all others end with it
        self._unshare.wait()
        self._unshare.stdout.close()
