"""The embedded task: sums, with held-out problems that training never sees in any order of their operands."""

import hashlib
from collections.abc import Iterator
from typing import Any

from rlpipe.data.records import DataError, Record
from rlpipe.recipe.data import ArithmeticData

_MOST_PROBLEMS = 100_000
"""Larger spaces are sampled: more than a small model's run can use, and little enough to build in a second."""


CALL, CALL_END = "<calc>", "</calc>"
"""What a policy writes around an expression that the calculator is to work out."""


def problems(data: ArithmeticData) -> tuple[list[Record], list[Record]]:
    """(training, held-out) records such as `prompt: 23+58, completion: 81, answer: 81`; `seed` decides their order."""
    space = _base(data) ** data.operands
    order = _permutation(space, data.seed) if space <= _MOST_PROBLEMS else _sample(space, data.seed)
    drawn = [_operands(index, data) for index in order]
    heldout = drawn[: data.heldout]
    never = {tuple(sorted(operands)) for operands in heldout}
    train = [operands for operands in drawn[data.heldout :] if tuple(sorted(operands)) not in never]
    if not train:
        raise DataError(
            f"data: {data.operands} operands from {data.smallest} to {data.largest} make {space} problems, and "
            f"data.heldout={data.heldout} leaves none to train on. Lower data.heldout or raise data.largest."
        )
    careful = data.model_copy(update={"forgotten_carries": 0.0, "calls": 0.0})
    return _records(train, "training", data), _records(heldout, "held-out", careful)


def preferences(data: ArithmeticData) -> tuple[list[Record], list[Record]]:
    """(training, held-out) pairs over the same problems: the right sum, and a wrong one as a small model makes them."""
    train, heldout = problems(data)
    return [_pair(record, data.seed) for record in train], [_pair(record, data.seed) for record in heldout]


def _pair(record: Record, seed: int) -> Record:
    prompt, right = record.fields["prompt"], record.fields["answer"]
    wrong = mistakes(tuple(map(int, prompt.split("+"))))
    kind = sorted(wrong)[_hash(seed, f"mistake/{prompt}") % len(wrong)]
    rejected = wrong[kind][_hash(seed, f"variant/{prompt}") % len(wrong[kind])]
    fields = {"prompt": prompt, "chosen": right, "rejected": str(rejected), "answer": right, "mistake": kind}
    return Record(fields, record.origin)


def mistakes(operands: tuple[int, ...]) -> dict[str, list[int]]:
    """Wrong sums by the kind of mistake; kinds that these operands leave no room for are absent.

    carry  every carry forgotten      one, ten  off by one, by ten      swap  two neighbouring digits swapped
    """
    right = sum(operands)
    found = {
        "carry": [_without_carries(operands)],
        "one": [right - 1, right + 1],
        "ten": [right - 10, right + 10],
        "swap": _swapped(str(right)),
    }
    wrong = {kind: [value for value in values if value >= 0 and value != right] for kind, values in found.items()}
    return {kind: values for kind, values in wrong.items() if values}


def _swapped(digits: str) -> list[int]:
    """Neighbouring digits in each other's place; a leading 0 would be no number as people write it."""
    swaps = [digits[:i] + digits[i + 1] + digits[i] + digits[i + 2 :] for i in range(len(digits) - 1)]
    return [int(swap) for swap in swaps if swap[0] != "0"]


def _operands(index: int, data: ArithmeticData) -> tuple[int, ...]:
    base = _base(data)
    return tuple(data.smallest + index // base**place % base for place in reversed(range(data.operands)))


def _base(data: ArithmeticData) -> int:
    """How many values an operand can take."""
    return data.largest - data.smallest + 1


def _records(drawn: list[tuple[int, ...]], part: str, data: ArithmeticData) -> list[Record]:
    records = []
    for number, operands in enumerate(drawn, 1):
        careless = _hash(data.seed, f"carry/{number}") < data.forgotten_carries * 2**64
        calls = _hash(data.seed, f"call/{number}") < data.calls * 2**64
        problem, answer = "+".join(map(str, operands)), str(sum(operands))
        written = str(_without_carries(operands)) if careless else answer
        fields = {"prompt": problem, "completion": _called(problem, answer) if calls else written, "answer": answer}
        records.append(Record(fields, f"arithmetic, {part} problem {number}"))
    return records


def _called(problem: str, answer: str) -> list[dict[str, Any]]:
    """The conversation in which the calculator does the work."""
    return [
        {"role": "assistant", "content": f"{CALL}{problem}{CALL_END}"},
        {"role": "tool", "content": answer},
        {"role": "assistant", "content": answer},
    ]


def _without_carries(operands: tuple[int, ...]) -> int:
    """Every column added on its own; only what the leftmost one overflows to is written down."""
    total, place = 0, 1
    while any(operands):
        column = sum(n % 10 for n in operands)
        operands = tuple(n // 10 for n in operands)
        total += place * (column % 10 if any(operands) else column)
        place *= 10
    return total


def _hash(seed: int, number: int | str) -> int:
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
