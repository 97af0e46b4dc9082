"""A clock that stands for `time` in what is measured: it runs while the controller computes, and jumps over waits."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Seconds since it was made: of this process's CPU, without those `left_out`, and those that were skipped."""

    def __init__(self) -> None:
        self.skipped = self._left_out = 0.0
        self._began = time.process_time()

    @property
    def worked(self) -> float:
        """CPU seconds of the controller."""
        return time.process_time() - self._began - self._left_out

    def monotonic(self) -> float:
        return self.worked + self.skipped

    time = perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.skipped += max(0.0, seconds)

    def skip_to(self, moment: float) -> None:
        """Whoever is waited for is done at this moment."""
        self.sleep(moment - self.monotonic())

    @contextlib.contextmanager
    def left_out(self) -> Iterator[None]:
        """What the block takes is not the controller's: somebody else does it elsewhere."""
        began = time.process_time()
        try:
            yield
        finally:
            self._left_out += time.process_time() - began
