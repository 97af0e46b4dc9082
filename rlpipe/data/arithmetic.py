"""The embedded task: sums, with held-out problems that training never sees in any order of their operands."""

import hashlib
from collections.abc import Iterator

from rlpipe.data.records import DataError, Record
from rlpipe.recipe.data import ArithmeticData

_MOST_PROBLEMS = 100_000
"""Larger spaces are sampled: more than a small model's run can use, and little enough to build in a second."""


def problems(data: ArithmeticData) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records such as `prompt: 23+58, completion: 81, answer: 81`; `seed` decides their order."""
    space = (data.largest + 1) ** data.operands
    order = _permutation(space, data.seed) if space <= _MOST_PROBLEMS else _sample(space, data.seed)
    drawn = [_operands(index, data) for index in order]
    heldout = drawn[: data.heldout]
    never = {tuple(sorted(operands)) for operands in heldout}
    train = [operands for operands in drawn[data.heldout :] if tuple(sorted(operands)) not in never]
    if not train:
        raise DataError(
            f"data: {data.operands} operands up to {data.largest} make {space} problems, and data.heldout="
            f"{data.heldout} leaves none to train on. Lower data.heldout or raise data.largest."
        )
    return _records(train, "training"), _records(heldout, "held-out")


def _operands(index: int, data: ArithmeticData) -> tuple[int, ...]:
    base = data.largest + 1
    return tuple(index // base**place % base for place in reversed(range(data.operands)))


def _records(drawn: list[tuple[int, ...]], part: str) -> list[Record]:
    rows = (("+".join(map(str, operands)), str(sum(operands))) for operands in drawn)
    return [
        Record({"prompt": question, "completion": total, "answer": total}, f"arithmetic, {part} problem {number}")
        for number, (question, total) in enumerate(rows, 1)
    ]


def _hash(seed: int, number: int) -> int:
    # hashlib, not `random`: the same problems for every Python and NumPy version.
    return int.from_bytes(hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest(), "big")


def _permutation(space: int, seed: int) -> list[int]:
    return sorted(range(space), key=lambda index: (_hash(seed, index), index))


def _sample(space: int, seed: int) -> Iterator[int]:
    seen: set[int] = set()
    counter = 0
    while len(seen) < _MOST_PROBLEMS:
        index = _hash(seed, counter) % space
        counter += 1
        if index not in seen:
            seen.add(index)
            yield index
