"""A run that is begun, and resumed when its driver dies: what a job on a cluster runs.

The driver is a process of its own, and this one imports nothing heavy: what kills the driver (the kernel for want of
memory, a library that crashes) leaves this one alive.
"""

import contextlib
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path

from rlpipe.data import remote
from rlpipe.data.storage import Storage
from rlpipe.ledger.standing import standing
from rlpipe.observe.events import EventLog
from rlpipe.observe.standing import newest_stage
from rlpipe.pipelines.exit_codes import FAILED, INTERRUPTED, MISTAKE
from rlpipe.pipelines.sole import Taken, Unusable, alone_in
from rlpipe.recipe.tasks import Recipe
from rlpipe.runtime.backoff import Losses, rest_before
from rlpipe.runtime.handle import GivenUp

INPUTS = "inputs"
"""Folder of a run directory with the files that a job brought along."""

Say = Callable[[str], None]


class DriverLost(RuntimeError):
    """The driver ended with something that may not come again; the message says with what."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How an attempt ended."""

    code: int
    fault: str = ""
    """What a further attempt may mend; empty where there is nothing to try again."""


_LONGEST_FAULT = 4000
"""Characters: the supervisor reads when the driver has ended, and a pipe holds 64 KiB."""
HEAD_SECONDS = "120"
"""For a head that is started again, as Ray itself has it: nobody sits before this run."""
LOCK_SECONDS = 10.0
"""How long a child of a driver that was killed may hold its run directory."""


def supervise(attempt: Callable[[], Ended], steps: Callable[[], int], most: int, say: Say) -> int:
    """Make attempts until one ends for good; returns the exit code. Between two of them is a rest, which doubles while
    no step comes in between; after more than `most` such losses in a row it says which fault recurs, and gives up.
    `steps`: how many are done and durable."""
    losses, step = Losses("The driver was", most, "--max-retries"), 0
    while (ended := attempt()).fault:
        with contextlib.suppress(Exception):  # what ended the driver may keep the run directory from being read, too
            step = steps()
        try:
            losses.add(DriverLost(ended.fault), step)
        except GivenUp as error:
            say(str(error))
            return ended.code
        seconds = rest_before(losses.in_a_row + 1)
        say(f"The driver was lost: {ended.fault}. It resumes from the run directory in {seconds:g} s ({losses}).")
        time.sleep(seconds)
    return ended.code


def steps_done(run_dir: str) -> int:
    """Of all stages together: those that the ledger has committed, or that the last checkpoint holds."""
    run = Storage(run_dir)
    stages = [run, *(run.folder(name) for name in run.names("stages/*"))]
    return sum(max(_committed(stage), _saved(stage)) for stage in stages)


def record(run_dir: str, message: str) -> None:
    """As a fault in the events of the stage that was under way, where `status` and the report find it."""
    if (stage := newest_stage(run_dir)) is not None:
        name, storage, _ = stage
        events = EventLog(storage, stage=name or None)
        events.fault(message)
        events.close()


def _committed(stage: Storage) -> int:
    found = standing(stage)
    return found.step if found else 0


def _saved(stage: Storage) -> int:
    names = stage.names("checkpoints/step-*/manifest.json")
    return max((int(name.split("/")[1].removeprefix("step-")) for name in names), default=0)


def keep_inputs(folder: Path, run_dir: str) -> Path:
    """Copy what a job brought into its run directory, whose own it is from then on: a run is resumed when the job's own
    folder is long gone. Returns the folder there. Raises `Taken` while another process works in `run_dir`."""
    directory = remote.work_folder(run_dir)
    with alone_in(directory):
        shutil.copytree(folder, directory / INPUTS, dirs_exist_ok=True)
        remote.keep(directory, INPUTS)
    return directory / INPUTS


# ---- an attempt ------------------------------------------------------------------------------------------------------


def in_a_process(recipe: Recipe, run_dir: str) -> Ended:
    """Run, or resume, in a process of its own. SIGTERM and SIGINT end it, and then there is no further attempt."""
    context = multiprocessing.get_context("spawn")  # a fork would have the threads of whoever is above
    ours, theirs = context.Pipe(duplex=False)
    driver = context.Process(target=_drive, args=(recipe, run_dir, theirs), name="driver")
    with _Stopping() as stopping:
        driver.start()
        theirs.close()
        stopping.pass_on_to(driver.pid)
        driver.join()
    if stopping.asked:
        return Ended(INTERRUPTED)
    return _ended(driver.exitcode, ours)


def _ended(code: int, said: Connection) -> Ended:
    """What the driver said of its end; one that was killed says nothing."""
    try:
        return said.recv()
    except EOFError:
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
        return Ended(FAILED, how)


def _drive(recipe: Recipe, run_dir: str, says: Connection) -> None:
    """The driver's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches both; the supervisor passes it on
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded, as `rlpipe run`
    from rlpipe.pipelines.run import attempt
    from rlpipe.runtime.joining import PATIENCE

    os.environ.setdefault(PATIENCE, HEAD_SECONDS)
    until = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            outcome = attempt(recipe, run_dir, debug=False)
            break
        except Taken as error:
            if time.monotonic() > until:
                print(f"error: {run_dir} is at work: {error.who}; wait for it, or stop it first", flush=True)
                return says.send(Ended(MISTAKE))
            time.sleep(0.5)
        except Unusable as error:
            print(f"error: {error}: --run-dir", flush=True)
            return says.send(Ended(MISTAKE))
    fault = outcome.cause.strip()[:_LONGEST_FAULT] or "the driver was lost"
    says.send(Ended(outcome.code, fault if outcome.mendable else ""))


def _end_with_parent() -> None:
    """A driver without its supervisor would go on unseen, and hold the run directory."""
    wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)


class _Stopping:
    """While it is entered, SIGTERM and SIGINT go to the driver, and are remembered."""

    def __init__(self) -> None:
        self.asked = False
        self._driver: int | None = None

    def pass_on_to(self, driver: int) -> None:
        self._driver = driver
        if self.asked:
            os.kill(driver, signal.SIGTERM)

    def __enter__(self) -> "_Stopping":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, *_: object) -> None:
        self.asked = True
        if self._driver is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._driver, signal.SIGTERM)
