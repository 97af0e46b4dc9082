"""Work that goes on beside the run: one piece at a time."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor


class Beside:
    """Does one piece of work at a time in a thread of its own; with `debug` in the caller's, where a breakpoint stops
    the world."""

    def __init__(self, debug: bool) -> None:
        self._pool = None if debug else ThreadPoolExecutor(1, thread_name_prefix="beside")
        self._under_way: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Do this, once what was started before is done."""
        self.finish()
        if self._pool is None:
            work()
        else:
            self._under_way = self._pool.submit(work)

    @property
    def busy(self) -> bool:
        """Whether what was started is still being done."""
        return self._under_way is not None and not self._under_way.done()

    def finish(self) -> None:
        """Wait for what was started. Raises what that raised."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()
