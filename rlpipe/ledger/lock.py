"""One writer at a time, where the file system has locks.

A lock of the operating system is gone when its process is, however that dies, and a child does not inherit it. Where
there are no locks (object stores, some network file systems) the numbers of the manifests alone decide (`manifests`).
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

from rlpipe.data.storage import Storage
from rlpipe.ledger.book import LedgerError

NAME = "writer.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


class InUse(LedgerError):
    """Another process writes this ledger."""


@contextmanager
def locked(folder: Storage) -> Iterator[None]:
    """Hold the folder's lock. Raises `InUse` where another process does."""
    if folder.local is None:
        yield
        return
    folder.local.mkdir(parents=True, exist_ok=True)
    with open(folder.local / NAME, "wb") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise InUse(
                    f"{folder} is in use: a process still works on this run. Wait for it, or end it first."
                ) from None
            if error.errno not in _NO_LOCKS:
                raise
        yield


def here() -> dict[str, object]:
    """Who writes, for people."""
    return {"process": os.getpid(), "host": os.uname().nodename}
