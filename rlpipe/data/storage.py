"""One way to a run directory, whether it is a folder on disk or a prefix in an object store (any fsspec URL).

`write` puts a whole object or nothing: on a disk write, fsync, rename, and fsync of the folder; in an object store one
put. `create` does the same for whoever comes first. `append` adds to a file where the backend can; where it cannot
(object stores have no append) the whole object is put again at intervals.
"""

import os
import posixpath
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol
from uuid import uuid4

import fsspec

PARTIAL = ".partial"
"""Ending of a file that is being written; a kill may leave one, which is of no use."""


class Appender(Protocol):
    """An append-only file. What `write` was given survives the death of this process on a disk, and the death of the
    machine after `close`."""

    def write(self, data: bytes) -> None: ...

    def flush(self) -> None:
        """Whoever reads the file from now on finds all of it."""

    def close(self) -> None: ...


class Storage:
    """A folder; names inside it use `/`."""

    def __init__(self, url: str | os.PathLike):
        # Cached listings would hide what another process has written.
        self._fs, root = fsspec.core.url_to_fs(str(url), use_listings_cache=False)
        self._root = root.rstrip("/")

    def __str__(self) -> str:
        return str(self.local) if self.local else self._fs.unstrip_protocol(self._root)

    @property
    def local(self) -> Path | None:
        """The folder, where it is on this machine's file system."""
        return Path(self._root) if "file" in _protocols(self._fs) else None

    def folder(self, name: str) -> "Storage":
        """The storage of a folder inside."""
        return Storage(self._fs.unstrip_protocol(self._path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Put the whole object: readers see the old one or the new one, never a part."""
        if self.local is None:
            self._fs.pipe_file(self._path(name), data)
            return
        path = self.local / name
        with _beside(path, data) as written:
            os.replace(written, path)

    def create(self, name: str, data: bytes) -> None:
        """Put the whole object where there is none. Raises FileExistsError where there is: of several writers one
        succeeds. (Object stores: where fsspec's backend knows a conditional put, such as s3fs and gcsfs.)"""
        if self.local is None:
            self._fs.pipe_file(self._path(name), data, mode="create")
            return
        path = self.local / name
        with _beside(path, data) as written:
            os.link(written, path)
            os.unlink(written)

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        with suppress(FileNotFoundError):
            self._fs.rm_file(self._path(name))

    def read(self, name: str) -> bytes:
        """The whole object. Raises FileNotFoundError."""
        return self._fs.cat_file(self._path(name))

    def open(self, name: str) -> BinaryIO:
        """The object, for reading parts of it. Raises FileNotFoundError."""
        return self._fs.open(self._path(name), "rb")

    def exists(self, name: str) -> bool:
        return self._fs.exists(self._path(name))

    def names(self, pattern: str) -> list[str]:
        """Files and folders that match a glob pattern, sorted."""
        found = self._fs.glob(self._path(pattern))
        return sorted(posixpath.relpath(path, self._root) for path in found)

    def files(self, folder: str) -> list[str]:
        """The names of all files in a folder and below it, sorted."""
        return sorted(posixpath.relpath(path, self._root) for path in self._fs.find(self._path(folder)))

    def put_files(self, files: Mapping[str, Path]) -> None:
        """Copy files of this machine here, under these names. Not one by one: many small ones take no longer than a
        few."""
        if files:
            self._fs.put([str(path) for path in files.values()], [self._path(name) for name in files])

    def get_files(self, files: Mapping[str, Path]) -> None:
        """Copy the files of these names to this machine."""
        if files:
            self._fs.get([self._path(name) for name in files], [str(path) for path in files.values()])

    def append(self, name: str) -> Appender:
        """Open for appending; what is there already stays."""
        if self.local is None:
            return _Resend(self, name)
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return _LocalAppender(path)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


@contextmanager
def _beside(path: Path, data: bytes) -> Iterator[Path]:
    """The data in a file beside `path`, to be moved there. It is on the disk before the move, and the move is in the
    end."""
    _make(path.parent)
    beside = path.with_name(f".{path.name}.{uuid4().hex[:12]}{PARTIAL}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield beside
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def _make(folder: Path) -> None:
    """A folder that is still there after the machine has died."""
    if not folder.exists():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def flush(path: Path) -> None:
    """To the disk: the contents of a file, or which files a folder has."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _LocalAppender:
    """Each `write` is one system call, so that two lines never mix and a kill tears the last one at most."""

    def __init__(self, path: Path):
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  closed by close()

    def write(self, data: bytes) -> None:
        self._file.write(data)

    def flush(self) -> None: ...

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


class _Resend:
    """Keeps the object in memory and puts it whole, at most every `SECONDS` and at the end."""

    SECONDS = 15.0

    def __init__(self, storage: Storage, name: str):
        self._storage, self._name = storage, name
        self._data = bytearray(storage.read(name) if storage.exists(name) else b"")
        self._sent_at = float("-inf")

    def write(self, data: bytes) -> None:
        self._data += data
        if time.monotonic() - self._sent_at >= self.SECONDS:
            self._send()

    def flush(self) -> None:
        self._send()

    def close(self) -> None:
        self._send()

    def _send(self) -> None:
        self._storage.write(self._name, bytes(self._data))
        self._sent_at = time.monotonic()


def _protocols(filesystem: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)
