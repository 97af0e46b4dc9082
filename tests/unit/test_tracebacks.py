"""Tracebacks for people."""

import pytest

from rlpipe.runtime import tracebacks
from rlpipe.runtime.handle import Within
from rlpipe.runtime.local import LocalHandle


class Role:
    def fail(self) -> None:
        raise ValueError("by design")

    def fail_of_something_else(self) -> None:
        try:
            {}["absent"]
        except KeyError as error:
            raise ValueError("by design") from error


def raised_by(method) -> ValueError:
    with pytest.raises(ValueError, match="by design") as raised:
        LocalHandle("role", Role()).call(Within("train", 1), method).result()
    return raised.value


def test_what_carries_a_call_is_left_out():
    lines = tracebacks.clean(raised_by(Role.fail)).splitlines()
    assert [line.split(", in ")[1] for line in lines if line.startswith("  File ")] == ["raised_by", "fail"]
    assert lines[-2:] == ['    raise ValueError("by design")', "ValueError: by design"]


def test_what_an_error_came_from_stays():
    text = tracebacks.clean(raised_by(Role.fail_of_something_else))
    assert text.count("Traceback") == 2 and "KeyError: 'absent'" in text and "direct cause" in text


def test_of_carriers_alone_all_is_shown():
    with pytest.raises(TypeError) as raised:
        LocalHandle("role", Role()).restart()
    error = raised.value
    error.__traceback__ = error.__traceback__.tb_next  # this test's own frame
    assert "in restart" in tracebacks.clean(error)


def test_an_error_of_another_process_is_told_as_it_was_there():
    error = ValueError("by design")
    tracebacks.attach(error, "policy[1] failed")
    assert tracebacks.told(error) == "policy[1] failed"
