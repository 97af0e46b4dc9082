"""Training that loses a process starts again from its last checkpoint."""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.trl_worker import TrlJob
from rlpipe.runtime.backoff import Losses, rest_before
from rlpipe.runtime.handle import DeadlineExceeded, NotStarted, RoleDied
from rlpipe.runtime.roles import PlacementError

logger = logging.getLogger(__name__)

Attempt = Callable[[TrlJob, Report], None]
"""Trains to the end, or raises."""


def to_the_end(name: str, job: TrlJob, attempt: Attempt, report: Report) -> None:
    """Train in as many attempts as it takes. `name` is for people.

    Raises `GivenUp` if processes are lost more than train.max_restarts times in a row without a step in between,
    `NotStarted` if the first ones do not come up, and whatever else an attempt raises: a fault of the data or of code
    comes again.
    """
    losses, told = Losses(f"{name} training was", job.training.max_restarts), Once(report)
    fault = _fault_of(attempt, job, told, first=True)
    while fault is not None:
        losses.add(fault, told.step)
        job = from_last_checkpoint(job)
        logger.warning(
            "%s\n%s training starts again (%s), %s.", fault, name, losses, _whence(job), extra={"lost": "training"}
        )
        time.sleep(rest_before(losses.in_a_row))
        # What was lost may have taken its node along, or have left it only just now.
        fault = _fault_of(attempt, job, told, first=False)


def from_last_checkpoint(job: TrlJob) -> TrlJob:
    """The same, to go on from its last whole checkpoint, or to begin. Warns of those that are damaged."""
    directory = Path(job.directory)
    checkpoints.set_damaged_aside(directory)
    checkpoint = checkpoints.newest(directory)
    return replace(job, checkpoint=None if checkpoint is None else str(checkpoint))


class Once:
    """Passes on what was not reported before: steps that are done again report the same."""

    def __init__(self, report: Report) -> None:
        self.step = 0
        """The last one that was reported."""
        self._report = report
        self._seen: set[tuple[int, frozenset[str]]] = set()

    def __call__(self, step: int, values: dict[str, float]) -> None:
        what = step, frozenset(values)
        if what not in self._seen:
            self._seen.add(what)
            self.step = max(self.step, step)
            self._report(step, values)


def _fault_of(attempt: Attempt, job: TrlJob, report: Report, first: bool) -> Exception | None:
    """The loss that the attempt ended with, if it did. That the first one finds no room, or that its processes do not
    come up, is none: it is raised."""
    try:
        attempt(job, report)
    except (PlacementError, NotStarted) as fault:
        if first:
            raise
        return fault
    except (RoleDied, DeadlineExceeded) as fault:
        return fault
    return None


def _whence(job: TrlJob) -> str:
    if job.checkpoint is not None:
        return f"from the checkpoint {Path(job.checkpoint).name}"
    return "from the beginning: there is no checkpoint" + (
        "" if job.training.save_steps else " without train.save_steps"
    )
