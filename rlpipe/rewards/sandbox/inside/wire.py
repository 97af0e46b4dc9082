"""What checker and program say to each other: lines of JSON through two pipes, in which nothing but plain data exists.

An object of no plain type stays where it is and is spoken of by a number, so neither side ever runs what the other one
sends. Types that merely derive from a plain one are not plain: their methods may do anything.
"""

import builtins
import importlib
import json
import os
import select

LONGEST = 16 << 20
"""Bytes of one message."""
CHUNK = 1 << 16
EXACT = 1 << 53
"""Integers from here on are written in hexadecimal, which has no limit of digits."""
TYPES = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, str, tuple, type(None))
NAMED = {type_.__name__: type_ for type_ in TYPES} | {
    name: value
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}
"""Classes that both sides have."""
CONSTANTS = {"...": ..., "NotImplemented": NotImplemented}
LIBRARY = {"Fraction": ("fractions", str), "Decimal": ("decimal", str), "deque": ("collections", list)}
"""Classes of the standard library whose objects travel by value: module, and what makes another one of it."""


class Closed(BaseException):
    """The other side is gone, or what it says makes no sense. No test is to catch it by accident."""


class Wire:
    """Messages to and from another process."""

    def __init__(self, reads: int, writes: int, process: int = 0) -> None:
        """`process` is the other one, if its end is to be noticed while forks of it hold its pipes."""
        self._reads, self._writes, self._held = reads, writes, bytearray()
        self._poll = select.poll()
        self._poll.register(reads, select.POLLIN)
        if process:
            self._poll.register(os.pidfd_open(process), select.POLLIN)

    def send(self, message: object) -> None:
        """Raises `Closed`, and ValueError for a message that is too long."""
        line = json.dumps(message).encode() + b"\n"
        if len(line) > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes at once")
        try:
            while line:
                line = line[os.write(self._writes, line) :]
        except OSError as error:
            raise Closed(str(error)) from None

    def receive(self) -> object:
        while (end := self._held.find(b"\n")) < 0:
            self._read()
        line, self._held = self._held[:end], self._held[end + 1 :]
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise Closed(f"no message: {error}") from None

    def _read(self) -> None:
        ready = [fd for fd, _ in self._poll.poll()]
        data = os.read(self._reads, CHUNK) if self._reads in ready else b""
        self._held += data
        if not data or len(self._held) > LONGEST:
            raise Closed("no more messages")


def encode(value, number):
    """`value` as JSON knows it; `number(object)` is asked for what stands for an object of no plain type."""
    kind = type(value)
    if value is None or kind in (bool, str, float):
        return value
    if kind is int:
        return value if abs(value) < EXACT else {"int": hex(value)}
    if kind is list:
        return [encode(item, number) for item in value]
    if kind in (tuple, set, frozenset):
        return {kind.__name__: [encode(item, number) for item in value]}
    if kind is dict:
        return {"dict": [[encode(k, number), encode(v, number)] for k, v in value.items()]}
    if kind in (bytes, bytearray):
        return {kind.__name__: value.decode("latin-1")}
    return _encode_rare(value, kind, number)


def _encode_rare(value, kind, number):
    if kind is complex:
        return {"complex": [value.real, value.imag]}
    if kind in (slice, range):
        return {kind.__name__: [encode(part, number) for part in (value.start, value.stop, value.step)]}
    if isinstance(value, type) and NAMED.get(value.__name__) is value:
        return {"type": value.__name__}
    for name, constant in CONSTANTS.items():
        if value is constant:
            return {"constant": name}
    if kind.__name__ in LIBRARY and kind.__module__ == LIBRARY[kind.__name__][0]:
        return {"library": [kind.__name__, encode(LIBRARY[kind.__name__][1](value), number)]}
    return number(value)


def decode(data, object_of):
    """The value again; `object_of(data)` is asked for an object that is spoken of. Raises for what makes no sense."""
    if isinstance(data, list):
        return [decode(item, object_of) for item in data]
    if not isinstance(data, dict):
        return data
    [(kind, held)] = data.items() if len(data) == 1 else [("object", data)]
    if kind in _READERS:
        return _READERS[kind](held, lambda item: decode(item, object_of))
    return object_of(data)


def _from_library(held, again):
    module, _ = LIBRARY[held[0]]
    return getattr(importlib.import_module(module), held[0])(again(held[1]))


_READERS = {
    "int": lambda held, again: int(held, 16),
    "tuple": lambda held, again: tuple(map(again, held)),
    "set": lambda held, again: set(map(again, held)),
    "frozenset": lambda held, again: frozenset(map(again, held)),
    "dict": lambda held, again: {again(key): again(value) for key, value in held},
    "bytes": lambda held, again: held.encode("latin-1"),
    "bytearray": lambda held, again: bytearray(held.encode("latin-1")),
    "complex": lambda held, again: complex(*held),
    "slice": lambda held, again: slice(*map(again, held)),
    "range": lambda held, again: range(*map(again, held)),
    "type": lambda held, again: NAMED[held],
    "constant": lambda held, again: CONSTANTS[held],
    "library": _from_library,
}
