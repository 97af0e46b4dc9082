"""The tests of a row, as the data writes them."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Pair(NamedTuple):
    """What a program reads from stdin, and what it must print."""

    input: str
    output: str


Tests = tuple[str, ...] | tuple[Pair, ...]
"""Python snippets to run behind the program, or pairs; at least one."""

EXPECTED = "a Python snippet, a list of such, or a list of {input, output}"


def read_tests(value: Any) -> Tests:
    """Raises `ValueError` if it is nothing that can be run."""
    tests = [value] if isinstance(value, str) else value
    if not isinstance(tests, list | tuple) or not tests:
        raise ValueError(f"expected {EXPECTED}; found {value!r:.200}")
    if all(isinstance(test, str) for test in tests):
        return tuple(map(_snippet, tests))
    return tuple(map(_pair, tests))


def same_output(printed: str, expected: str) -> bool:
    """Equal but for spaces at the ends of lines and empty lines at the end."""
    return _lines(printed) == _lines(expected)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _snippet(text: str) -> str:
    """A fault of the data must not be taken for one of the program."""
    try:
        compile(text, "tests", "exec")
    except SyntaxError as error:
        raise ValueError(f"a test is no Python: {error}: {text!r:.200}") from None
    return text


def _pair(test: Any) -> Pair:
    keys = {"input", "output"}
    if not isinstance(test, Mapping) or set(test) != keys or not all(isinstance(test[key], str) for key in keys):
        raise ValueError(f"expected {EXPECTED}, all text; found {test!r:.200}")
    return Pair(test["input"], test["output"])
