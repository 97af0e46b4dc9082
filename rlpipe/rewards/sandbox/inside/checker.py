"""Runs the tests of a program that lives in another process: what they name of it is asked for, and comes as a value.

Comparisons are made here, between values that are nothing but data. So an object that claims to equal everything, a
changed `builtins`, an early exit or whatever is done to the program's own process cannot make a test pass, and what a
test expects is never told to the program.
"""

import builtins
import importlib
import os
import re
import select
import signal
import sys

import wire
from asked import Asked
from theirs import Unsupported

MODULES = sys.stdlib_module_names


def check(tests, report, reads, writes, process):
    """Run program and tests, and report. Returns the exit status."""
    asked = Asked(wire.Wire(reads, writes, process))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return report.end(*_outcome(tests, report, asked))
    except wire.Closed:
        return _gone(report, process)


def _outcome(tests, report, asked):
    """(kind, error): the end of the program and its tests."""
    try:
        asked.ask("run")
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        return getattr(error, "limit", "exception"), error
    names, before, failed = Names(asked, "\n".join(tests)), asked.questions, None
    for index, test in enumerate(tests):
        error = _raised(test, index, names)
        if (kind := _limit(error)) != "exception":
            return kind, error
        if error is None:
            report.say("passed", index)
        failed = failed or error
    if failed is None and asked.questions == before:
        why = "the tests ask nothing of the program; a name of Python's own, such as pow, is Python's in them"
        return "unsupported_test", Unsupported(why)
    return ("exception", failed) if failed else ("-", None)


def _raised(test, index, names):
    try:
        exec(compile(test, f"test {index}", "exec"), names)
    except wire.Closed:
        raise
    except BaseException as error:
        return error
    names.asked.must_be_open()  # a test that swallows everything has swallowed the program's end, too
    return None


def _limit(error):
    if isinstance(error, Unsupported):
        return "unsupported_test"
    return "memory" if isinstance(error, MemoryError) else getattr(error, "limit", "exception")


def _gone(report, process):
    """The program has left, or stopped to make sense."""
    end = select.poll()
    end.register(os.pidfd_open(process), select.POLLIN)
    if not end.poll(500):
        os.kill(process, signal.SIGKILL)
        return report.end("exception", RuntimeError("it no longer answers"))
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        return 128 + os.WTERMSIG(status)  # to those outside as if it had been the program alone
    return report.end("exception", SystemExit(f"left with status {os.WEXITSTATUS(status)} before the tests"))


class Names(dict):
    """The globals of the tests: what they do not define themselves is the program's, but for Python's own names."""

    def __init__(self, asked, source):
        super().__init__(__name__="__main__", __builtins__=builtins)
        self.asked = asked
        # `math.isclose` is the library's, whatever the program calls math.
        self._modules = MODULES & set(re.findall(r"\b(\w+)\s*\.", source))

    def __missing__(self, name):
        if hasattr(builtins, name):
            raise KeyError(name)
        if name in self._modules:
            return importlib.import_module(name)
        return self.asked.ask("name", name=name)
