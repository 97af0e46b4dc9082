"""rlpipe commands without a quarter of a minute of imports: one process imports everything and forks for each command.

A fork is as good as a fresh process: nothing that one command leaves behind reaches the next. What is imported here has
not computed anything yet, so no thread is lost in the fork.

    warm = shared()
    done = warm.rlpipe(["run", "arithmetic/sft", "--debug"], folder)
    done = warm.python("script.py", folder)

Workers of a Ray that such a command starts, or that is started within `warm.forks_workers()`, are forked, too.
"""

import atexit
import contextlib
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import warm_ray

ENVIRONMENT = {
    "OMP_WAIT_POLICY": "PASSIVE",  # as `rlpipe run` sets it before torch is imported
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
    "COLUMNS": "200",
    "NO_COLOR": "1",
}


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    """stdout and stderr as a person sees them."""
    seconds: float


class Warm:
    """The process that forks. Used by one thread."""

    def __init__(self) -> None:
        self._server: subprocess.Popen | None = None

    def rlpipe(self, arguments: list[str], folder: Path, typed: str = "", seconds: float = 240.0) -> Done:
        """`rlpipe ARGUMENTS` in a folder, with `typed` on its stdin."""
        return self._run({"rlpipe": arguments}, folder, typed, seconds)

    def on_terminal(self, terminal: str, what: dict, folder: Path, seconds: float = 120.0) -> int | None:
        """`{"rlpipe": ARGUMENTS}` or `{"python": FILE}` on the terminal of this path (/dev/pts/3): its exit code, or
        None if it did not end."""
        files = {"stdin": terminal, "output": terminal}
        return self._ask(what | files | {"folder": str(folder), "seconds": seconds})["code"]

    def python(self, file: Path, folder: Path, seconds: float = 120.0) -> Done:
        """`python FILE` in a folder."""
        return self._run({"python": str(file)}, folder, "", seconds)

    def forks_workers(self) -> contextlib.AbstractContextManager[None]:
        """A Ray that is started in the block has its workers forked."""
        self._start()
        return warm_ray.forks_workers(self._folder / warm_ray.CLIENT)

    def close(self) -> None:
        if self._server is not None:
            self._server.stdin.close()
            self._server.wait(timeout=30)
            shutil.rmtree(self._folder)

    def _run(self, what: dict, folder: Path, typed: str, seconds: float) -> Done:
        with tempfile.TemporaryDirectory() as scratch:
            files = {"stdin": f"{scratch}/stdin", "output": f"{scratch}/output"}
            Path(files["stdin"]).write_text(typed)
            answer = self._ask(what | files | {"folder": str(folder), "seconds": seconds})
            output = Path(files["output"]).read_text(errors="replace")
        if answer["code"] is None:
            raise TimeoutError(f"{what} did not end within {seconds:g} s; it printed:\n{output}")
        return Done(answer["code"], output, answer["seconds"])

    def _ask(self, question: dict) -> dict:
        self._start()
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return self._answer()

    def _start(self) -> None:
        if self._server is not None:
            return
        self._folder = Path(tempfile.mkdtemp(prefix="rlpipe-warm-"))
        self._server = subprocess.Popen(
            [sys.executable, __file__, self._folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ENVIRONMENT,
        )
        self._answer()

    def _answer(self) -> dict:
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the warm process ended with {self._server.wait()}; its stderr stands above")
        return json.loads(line)


@cache
def shared() -> Warm:
    """One for all tests of this process."""
    warm = Warm()
    atexit.register(warm.close)
    return warm


# ---- the other side --------------------------------------------------------------------------------------------------


def serve(folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what imports print is no answer
    import_libraries()
    gc.freeze()  # every fork would look through all of this again and again
    client = warm_ray.start_serving(folder)
    import_ours()
    gc.freeze()
    answers.write('{"ready": true}\n')
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(in_a_fork(json.loads(line), client)) + "\n")
        answers.flush()


def import_libraries() -> None:
    """All but Ray."""
    from rlpipe.models.quiet import quiet_libraries

    quiet_libraries()
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import pandas  # noqa: F401
    import transformers.models.llama.modeling_llama
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401
    from tensorboard.summary.writer.event_file_writer import EventFileWriter  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401
    from trl import SFTConfig, SFTTrainer  # noqa: F401


def import_ours() -> None:
    import ray.train.torch  # noqa: F401

    import rlpipe.cli
    import rlpipe.pipelines.offline.stage
    import rlpipe.pipelines.online.rl
    import rlpipe.pipelines.run
    import rlpipe.rollout.transformers_engine  # noqa: F401
    from rlpipe.observe.templates import template

    template("page.html")


def in_a_fork(question: dict, client: Path) -> dict:
    begin = time.monotonic()
    child = os.fork()
    if child == 0:
        in_the_child(question, client)
    while time.monotonic() - begin < question["seconds"]:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return {"code": os.waitstatus_to_exitcode(status), "seconds": time.monotonic() - begin}
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"code": None, "seconds": question["seconds"]}


def in_the_child(question: dict, client: Path) -> None:
    os.setsid()
    os.chdir(question["folder"])
    os.dup2(os.open(question["stdin"], os.O_RDONLY), 0)
    output = os.open(question["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdin = os.fdopen(0, closefd=False)
    code = 1
    try:
        with warm_ray.forks_workers(client):
            code = exit_code(question)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(question: dict) -> int:
    try:
        if "rlpipe" in question:
            from rlpipe.cli import app

            sys.argv = ["rlpipe", *question["rlpipe"]]
            app(prog_name="rlpipe")
        else:
            import runpy

            sys.argv = [question["python"]]
            sys.path[0] = question["folder"]
            runpy.run_path(question["python"], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
