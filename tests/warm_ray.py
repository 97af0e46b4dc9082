"""Ray's workers without a quarter of a minute of imports each: a process that has imported everything forks them.

Ray starts a worker as `PYTHON setup_worker.py default_worker.py …`. A Ray that `forks_workers` is told of starts, in
place of Python, a client that takes a few milliseconds: it hands its arguments, environment, folder and outputs to the
process that serves, whose child then does what a fresh Python would have done. All else the client hands to Python.
Unlike fresh processes they share a seed of string hashes, and an import that is missing would not be noticed: those of
tests/recipes/test_recipes.py::test_as_shipped are fresh.
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

CLIENT, ADDRESS = "python", "address"
SCRIPT = """#!/bin/sh
exec '{python}' -I -S '{client}' '{python}' '{address}' "$@"
"""


def start_serving(folder: Path) -> Path:
    """Forks the process that serves, and returns what a Ray starts in place of Python. For a process that has imported
    what workers need, except Ray, which reads the environment when it is imported, and has not computed anything."""
    address, script = folder / ADDRESS, folder / CLIENT
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))
    listening.listen(128)
    with listening:
        if os.fork() == 0:
            serve(listening)
    script.write_text(SCRIPT.format(python=sys.executable, client=__file__, address=address))
    script.chmod(0o755)
    return script


@contextlib.contextmanager
def forks_workers(client: Path) -> Iterator[None]:
    """A Ray that is started in the block has its workers forked."""
    from unittest import mock

    from ray._private import services

    start = services.start_raylet

    def start_raylet(*args, **kwargs):
        with mock.patch.object(sys, "executable", str(client)):  # it becomes part of the raylet's command
            return start(*args, **kwargs)

    with mock.patch.object(services, "start_raylet", start_raylet):
        yield


# ---- the client ------------------------------------------------------------------------------------------------------


def ask(python: str, address: str, arguments: list[str]) -> None:
    if Path(arguments[0]).name not in ("setup_worker.py", "default_worker.py"):
        os.execv(python, [python, *arguments])
    question = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        socket.send_fds(server, [b"?"], [0, 1, 2])
        server.sendall(json.dumps(question).encode())
        server.shutdown(socket.SHUT_WR)
        server.recv(1)


# ---- the process that serves -----------------------------------------------------------------------------------------


def serve(listening: socket.socket) -> NoReturn:
    """Forks until its parent dies."""
    die_with_the_parent()
    signal.signal(signal.SIGCHLD, bury)
    while True:
        asking, _ = listening.accept()
        with asking:
            try:
                answer(asking, listening)
            except Exception as error:  # one who asks may be killed while it does; the others are to be answered
                print(f"warm_ray: {error!r}", file=sys.stderr)


def die_with_the_parent() -> None:
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def bury(*_) -> None:
    """A worker that died is gone at once, as Ray looks for its process id."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def answer(asking: socket.socket, listening: socket.socket) -> None:
    _, outputs, _, _ = socket.recv_fds(asking, 1, 3)
    question = json.loads(b"".join(iter(lambda: asking.recv(65536), b"")))
    if os.fork() == 0:
        listening.close()
        asking.close()
        in_the_child(question, outputs)
    for output in outputs:
        os.close(output)


def in_the_child(question: dict, outputs: list[int]) -> NoReturn:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for number, output in enumerate(outputs):
        os.dup2(output, number)
    os.chdir(question["folder"])
    os.environ.clear()
    os.environ.update(question["environment"])
    code = 1
    try:
        code = work(question["arguments"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        import atexit

        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def work(arguments: list[str]) -> int:
    """What `setup_worker.py` does, if it is asked for, and then Python."""
    from ray._private.utils import update_envs
    from ray._private.workers import setup_worker

    if Path(arguments[0]).name == "setup_worker.py":
        setup, arguments = setup_worker.parser.parse_known_args(arguments[1:])
        context = setup_worker.RuntimeEnvContext.deserialize(setup.serialized_runtime_env_context or "{}")
        update_envs(context.env_vars)
    worker, *rest = arguments
    as_if_fresh(Path(worker).parent)
    sys.argv = [worker, *rest]
    try:
        runpy.run_path(worker, run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def as_if_fresh(folder: Path) -> None:
    """What Python and libraries read from the environment when they begin."""
    import numpy
    import torch

    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [str(folder), *paths, *(path for path in sys.path[1:] if path not in paths)]
    numpy.random.seed()
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))


if __name__ == "__main__":
    ask(sys.argv[1], sys.argv[2], sys.argv[3:])
