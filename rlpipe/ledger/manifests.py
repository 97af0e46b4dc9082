"""The ledger's manifest: one object that says what is true, written after everything it names.

Each manifest is a new object with the next number, created only if nobody else has created it; the highest number is
the present one, and those before it are removed. So two writers can never both go on: the one that finds its number
taken, or a higher one there, has been replaced and stops. That holds on object stores, too, where there are no locks.
"""

import json
import zlib
from typing import Any

from rlpipe.data.storage import Storage
from rlpipe.ledger.book import LedgerError

FOLDER = "ledger"
FORMAT = 1
_ATTEMPTS = 20


class Replaced(LedgerError):
    """Another writer has taken the ledger over. What this one has acknowledged is kept; it can add nothing."""


def read(storage: Storage) -> tuple[int, dict[str, Any]] | None:
    """The present manifest and its number; None where there is no ledger. For readers and writers alike."""
    for _ in range(_ATTEMPTS):
        numbers = _numbers(storage)
        if not numbers:
            return None
        try:
            return numbers[-1], _parsed(storage, numbers[-1])
        except FileNotFoundError:
            continue  # a running writer has gone on meanwhile
    raise LedgerError(f"{storage}/{FOLDER}: the manifest changes faster than it can be read; try again")


class Manifests:
    """The writer's side."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        found = read(storage)
        self.number, self.newest = found or (0, None)
        """The number of the present manifest, and what it said when this writer came."""

    @property
    def next(self) -> int:
        return self.number + 1

    def put(self, content: dict[str, Any]) -> None:
        """Make this the present manifest. When it returns, it is durable and was not overtaken. Raises `Replaced`."""
        whole = {"format": FORMAT, "checksum": _checksum(content), "content": content}
        try:
            self._storage.create(_name(self.next), _encoded(whole))
        except FileExistsError:
            raise Replaced(_replaced(self._storage)) from None
        self.number += 1
        for number in self.require_present():
            self._storage.delete(_name(number))

    def require_present(self) -> list[int]:
        """Raises `Replaced` if somebody else has written a manifest since; returns the numbers of older ones."""
        numbers = _numbers(self._storage)
        if numbers and numbers[-1] > self.number:
            raise Replaced(_replaced(self._storage))
        return [number for number in numbers if number < self.number]


def _numbers(storage: Storage) -> list[int]:
    names = storage.names(f"{FOLDER}/manifest-*.json")
    return [int(name.removeprefix(f"{FOLDER}/manifest-").removesuffix(".json")) for name in names]


def _name(number: int) -> str:
    return f"{FOLDER}/manifest-{number:012d}.json"


def _parsed(storage: Storage, number: int) -> dict[str, Any]:
    name = f"{storage}/{_name(number)}"
    try:
        whole = json.loads(storage.read(_name(number)))
        if whole["format"] != FORMAT:
            raise LedgerError(
                f"{name} has format {whole['format']}, and this rlpipe reads format {FORMAT}: use the version that "
                "wrote it."
            )
        if _checksum(whole["content"]) != whole["checksum"]:
            raise ValueError("another checksum")
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"{name} is damaged ({error}). It was whole when it was written: restore the file, or start a new run."
        ) from error
    return whole["content"]


def _encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _checksum(content: dict[str, Any]) -> int:
    return zlib.crc32(_encoded(content))


def _replaced(storage: Storage) -> str:
    return (
        f"{storage}/{FOLDER} is written by another process now, which has taken this run over; this process stops, "
        "and nothing is lost. Let one process at a time work on a run directory."
    )
