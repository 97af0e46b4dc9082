"""An event loop in a thread of its own, for callers that are none."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import CancelledError
from typing import Any, TypeVar

T = TypeVar("T")


class Closed(RuntimeError):
    """The loop has ended, and with it what was awaited."""


class LoopThread:
    """Started with the first call."""

    def __init__(self, name: str):
        self._name = name
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._running = self._closed = False

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What it returns; callable from any thread but the loop's. Raises `Closed`."""
        with self._lock:
            if self._closed:
                work.close()
                raise Closed
            self._start()
            pending = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return pending.result()
        except CancelledError:
            raise Closed from None

    def close(self, last: Coroutine[Any, Any, None]) -> None:
        """Cancel what runs, then do this."""
        with self._lock:
            if self._closed:
                last.close()
                return
            self._closed = True
            self._start()
            asyncio.run_coroutine_threadsafe(self._end(last), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _start(self) -> None:
        if not self._running:
            self._running = True
            threading.Thread(target=self._serve, daemon=True, name=self._name).start()

    def _serve(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _end(self, last: Coroutine[Any, Any, None]) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await last
