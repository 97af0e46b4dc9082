"""Contents of completed groups whose step is not committed yet: immutable Arrow files, one for each time that groups
were handed in. Arrow, and not Parquet like the files of `observe.rollouts` that they end up in, since they are written
while somebody waits and live no longer than a step."""

import zlib
from collections.abc import Callable, Sequence
from uuid import uuid4

import pyarrow as pa

from rlpipe.data.flow import Group, Prompt
from rlpipe.data.group_table import columns_of, groups_of
from rlpipe.data.storage import Storage


class Damaged(RuntimeError):
    """A segment is not what was written."""


class Segments:
    """`rewards` are the names of the mix's components."""

    def __init__(self, folder: Storage, rewards: Sequence[str]) -> None:
        self._folder, self._rewards = folder, tuple(rewards)

    def write(self, groups: Sequence[Group], number: int) -> tuple[str, int]:
        """A new segment's name, and the checksum of what it holds. `number` is that of the manifest to name it."""
        table = pa.table(columns_of(groups, self._rewards))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        data = sink.getvalue().to_pybytes()
        name = f"segment-{number:012d}-{uuid4().hex[:8]}.arrow"
        self._folder.write(name, data)
        return name, zlib.crc32(data)

    def read(self, name: str, checksum: int, prompt: Callable[[str], Prompt]) -> list[Group]:
        """What `write` was given. Raises `Damaged`."""
        try:
            data = self._folder.read(name)
        except FileNotFoundError:
            raise Damaged(f"{self._folder}/{name} is missing") from None
        if zlib.crc32(data) != checksum:
            raise Damaged(f"{self._folder}/{name} is damaged ({len(data)} bytes with another checksum)")
        return groups_of(pa.ipc.open_file(pa.BufferReader(data)).read_all(), prompt)

    def remove(self, names: Sequence[str]) -> None:
        for name in names:
            self._folder.delete(name)

    def names(self) -> list[str]:
        return self._folder.names("segment-*.arrow")
