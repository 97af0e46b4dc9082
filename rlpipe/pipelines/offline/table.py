"""Records as the ranks get them: a few flat arrays instead of many lists."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True, slots=True)
class Ragged:
    """Sequences end to end: sequence i is tokens_N[offsets_B1[i]:offsets_B1[i + 1]]."""

    tokens_N: np.ndarray
    offsets_B1: np.ndarray

    @classmethod
    def of(cls, sequences: list[list[int]]) -> "Ragged":
        tokens = np.fromiter((token for ids in sequences for token in ids), dtype=np.int32)
        return cls(tokens, np.cumsum([0, *map(len, sequences)]))

    def apart(self) -> list[np.ndarray]:
        return np.split(self.tokens_N, self.offsets_B1[1:-1])


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of token sequences, and columns of one value for each record, by name."""

    sequences: dict[str, Ragged]
    values_B: dict[str, np.ndarray]

    @classmethod
    def of(cls, sequences: Mapping[str, list[list[int]]], values_B: Mapping[str, np.ndarray] | None = None) -> "Table":
        return cls({name: Ragged.of(column) for name, column in sequences.items()}, dict(values_B or {}))

    def dataset(self) -> "Dataset":
        from datasets import Dataset

        return Dataset.from_dict({name: column.apart() for name, column in self.sequences.items()} | self.values_B)
