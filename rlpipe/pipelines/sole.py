"""One process at a time works in a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOCK = ".lock"


class Taken(RuntimeError):
    """Another process works in the folder."""

    def __init__(self, who: str) -> None:
        super().__init__(f"process {who}")
        self.who = f"process {who}"


class Unusable(OSError):
    """The folder cannot be made or written; the message says what to do."""


@contextmanager
def alone_in(folder: Path) -> Iterator[int]:
    """Nobody else is in the block with this folder, on any machine that sees it. Gives the lock's file descriptor: a
    child that inherits it holds the lock for as long as it lives. Raises Taken, or Unusable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        where = error.filename or folder
        raise Unusable(f"{where} cannot be written ({error.strerror}); choose another folder") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(os.read(descriptor, 100).decode().strip()) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)
