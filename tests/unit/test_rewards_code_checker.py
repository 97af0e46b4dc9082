"""The checker of the code reward: what snippets may ask of a program, and that none passes one by cheating."""

import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure
from rlpipe.recipe.rewards import CodeReward
from rlpipe.rewards import code
from rlpipe.rewards.killable import Pool
from rlpipe.rewards.reward import Allowance
from rlpipe.rewards.sandbox.sandbox import Job, Limits, Sandbox, problem

PROBLEM = problem()
ISOLATION = "bubblewrap" if PROBLEM is None else "none"
"""The checker is the same in both."""
SANDBOX = Sandbox(Limits(), ISOLATION)
isolated = pytest.mark.skipif(PROBLEM is not None, reason=f"programs cannot be isolated here: {PROBLEM}")


def run(program, *tests, seconds=20.0):
    return SANDBOX.run(Job(program, tests), seconds)


def passed(program, *tests):
    """Which tests hold, of a program and tests that run into no limit."""
    result = run(program, *tests)
    assert result.kind in ("", "exception"), result
    assert (result.kind == "") == (len(result.passed) == len(tests)), result
    return sorted(result.passed)


# What honest programs and tests do


def test_plain_values_are_the_same_on_both_sides():
    values = [
        None, True, -1, 10**5000, 0.1, float("inf"), "a\n\ud800é", b"\xff", bytearray(b"x"), 2j, (1, (2,)), [[]], {1},
        frozenset({"a"}), {1: (2, 3), "k": None, (0, 1): {}}, range(3), ..., int, ValueError,
    ]  # fmt: skip
    program = "def same(x): return x\ndef kind(x): return type(x).__name__"
    tests = [
        f"import sys; sys.set_int_max_str_digits(0)\nvalue = {_source(v)}\nassert same(value) == value" for v in values
    ]
    assert passed(program, *tests, f"assert kind({{1}}) == 'set' and {_source('x')} == 'x'") == list(
        range(len(values) + 1)
    )
    assert passed(program, "n = same(float('nan'))\nassert n != n", "assert type(same(True)) is bool") == [0, 1]


def _source(value):
    if isinstance(value, type):
        return value.__name__
    if value == 10**5000:
        return "10**5000"
    return {"inf": "float('inf')", "Ellipsis": "..."}.get(repr(value), repr(value))


def test_values_of_the_standard_library():
    program = """
from collections import Counter, OrderedDict, deque, namedtuple
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
Point = namedtuple("Point", "x y")
Colour = IntEnum("Colour", "RED BLUE")
def point(): return Point(1, 2)
def count(text): return Counter(text)
def ordered(): return OrderedDict(a=1)
"""
    assert passed(
        program,
        "assert point() == (1, 2) and (1, 2) == point() and point().x == 1 and len(point()) == 2 and sum(point()) == 3",
        "from collections import Counter\nassert count('aab') == {'a': 2, 'b': 1} == Counter('aab') == count('aab')",
        "assert sorted(count('ba').items()) == [('a', 1), ('b', 1)] and ordered() == {'a': 1} and 'a' in ordered()",
        "assert Colour.BLUE == 2 and Colour.RED != 2 and Colour.RED < Colour.BLUE",
        "from fractions import Fraction as F\nassert F(1, 3) == Fraction(1, 3)",
        "from decimal import Decimal as D\nassert D('.1') != .1 and D('.1') == Decimal('.1')",
        "from collections import deque as d\nassert d([1]) == deque([1])",
    ) == [0, 1, 2, 3, 4, 5, 6]  # fmt: skip


def test_objects_of_the_program():
    program = """
class Vector:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    def __hash__(self): return hash(self.x)
    def __add__(self, other): return Vector(self.x + other.x)
    def __lt__(self, other): return self.x < other.x
    def __neg__(self): return Vector(-self.x)
    def __repr__(self): return f"Vector({self.x})"
    def __getitem__(self, index): return self.x[index]
    def __enter__(self): self.x += 1; return self
    def __exit__(self, *error): self.x += 1
"""
    assert passed(
        program,
        "assert Vector(1) + Vector(2) == Vector(3) != Vector(4)",
        "assert sorted([Vector(2), Vector(1)]) == [Vector(1), Vector(2)] and -Vector(2) < Vector(1)",
        "assert repr(Vector(1)) == str(Vector(1)) == f'{Vector(1)}' == 'Vector(1)'",
        "assert isinstance(Vector(1), Vector) and not isinstance(1, Vector) and hasattr(Vector(1), 'x')",
        "assert len({Vector(1), Vector(1), Vector(2)}) == 2 and Vector([5, 6])[1] == 6",
        "v = Vector(1)\nv.x = 5\nassert v.x == 5 and v is v\nassert not hasattr(v, 'y')",
        "w = Vector(1)\nwith w: assert w.x == 2\nassert w.x == 3",
    ) == [0, 1, 2, 3, 4, 5, 6]


def test_calls_in_both_directions():
    program = """
def sort(items, key=None): items.sort(key=key)
def apply(function, *args): return function(*args)
def adder(n): return lambda x: x + n
def count(n):
    for i in range(n): yield i
class Odd(ValueError): pass
def even(n):
    if n % 2: raise Odd("odd", n)
total = 0
def add(n):
    global total
    total += n
async def later(x): return x + 1
"""
    assert passed(
        program,
        "items = [3, 1]\nsort(items)\nassert items == [1, 3]\nsort(items, key=lambda x: -x)\nassert items == [3, 1]",
        "assert apply(lambda a: a + 1, 3) == 4 and apply(sum, [1, 2]) == 3 and apply(adder(1), 2) == 3",
        "assert list(count(2)) == [0, 1] == apply(list, iter([0, 1])) and apply(max, (i for i in (1, 5, 2))) == 5",
        "try: even(1)\nexcept Odd as error: assert error.args == ('odd', 1)\nelse: assert 0",
        "try: even(1)\nexcept ValueError: pass\nelse: assert 0",
        "add(2)\nassert total == 2\nadd(3)\nassert total == 5",
        "import asyncio\nassert asyncio.run(later(1)) == 2",
        "def check(candidate):\n    assert candidate(1)(2) == 3\nif __name__ == '__main__': check(adder)",
        "def fails(): raise KeyError('k')\ntry: apply(fails)\nexcept KeyError: pass\nelse: assert 0",
    ) == list(range(9))  # fmt: skip


def test_a_wrong_program_passes_the_tests_that_hold_for_it():
    tests = ["assert f(1) == 1", "assert f(2) == 4", "assert g(1)", "f(0)", "assert f(-1) == 1"]
    assert passed("def f(x): return x if x else 1 / x", *tests) == [0]


# Cheating

EQUAL = """
class Equal(BASE):
    __eq__ = __lt__ = __gt__ = __le__ = __ge__ = __bool__ = lambda *_: True
    __ne__ = lambda *_: False
    __hash__ = lambda self: hash(4)
    __sub__ = __rsub__ = __abs__ = lambda *_: 0.0
    __contains__ = __instancecheck__ = lambda *_: True
    __class__ = int
def f(x): return Equal()
"""
WRONG = "def f(x): return 5\n"
LEAVE = ("import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "exit()")
INSTEAD = """
import builtins
for name in ("abs", "isinstance", "all", "any", "print", "len", "sum"):
    setattr(builtins, name, lambda *_, **__: True)
"""
STUFFED = r"""
import os
for fd in range(3, 64):
    for line in (b"passed x 0\nended x - \n", b'{"value": 4}\n' * 3):
        try: os.write(fd, line)
        except OSError: pass
"""
FRAMES = """
import gc, os, sys
def forge(report):
    report._process = os.getpid()
    try: report.say("passed", 0); report.end("-")
    except OSError: pass
frame = sys._getframe()
while frame:
    for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):
        if hasattr(value, "say"): forge(value)
    frame = frame.f_back
for thing in gc.get_objects():
    if type(thing).__name__ == "Report": forge(thing)
"""


@pytest.mark.parametrize(
    "program",
    [
        *(WRONG + leave for leave in LEAVE),
        *(f"def f(x):\n    {leave}" for leave in LEAVE),
        WRONG + "import os; os.close(1); os.close(2)",
        WRONG + "import os; os.closerange(0, 64)",
        WRONG + "import builtins; builtins.AssertionError = type('Never', (Exception,), {})",
        WRONG + INSTEAD,
        WRONG + "abs = isinstance = lambda *_: 0",
        WRONG + "import sys; sys.modules['__main__'] = sys.modules['math'] = None; sys.settrace(lambda *_: None)",
        WRONG + "import atexit, os; atexit.register(os._exit, 0)",
        WRONG + "class math: isclose = staticmethod(lambda *_, **__: True)",
        *(EQUAL.replace("BASE", base) for base in ("object", "int", "float", "list")),
        "class f:\n    __new__ = lambda *_: Equal()\n" + EQUAL.replace("BASE", "object").replace("def f", "def g"),
        FRAMES + WRONG,
        "import os\nif os.fork(): os._exit(0)\n" + WRONG,
        "def f(x): raise AssertionError",
    ],
)  # fmt: skip
def test_no_test_is_passed_by_cheating(program):
    tests = ["assert f(2) == 4", "assert 4 == f(2)", "assert isinstance(f(2), int) and f(2) in (4,) and [f(2)] == [4]"]
    assert run(program, *tests, "import math\nassert math.isclose(f(2), 4, abs_tol=0.1)").passed == frozenset()


def test_words_put_into_every_pipe_are_no_verdict_and_no_more_than_values():
    """They may be taken for answers: the first name is then a number, which cannot be called."""
    assert run(STUFFED + WRONG, "assert f(2) == 4", "assert f(2) == 4").passed == frozenset()


def test_what_tests_expect_never_enters_the_program():
    """What it finds of their text in its memory, being told the text backwards."""
    program = """
import gc
def found(backwards):
    text, holders = backwards[::-1], (list, tuple, dict, set)
    return [text in repr(thing) for thing in gc.get_objects() if isinstance(thing, holders)].count(True)
"""
    assert passed(program, "assert found('5-yzzyx') == 0, 'xyzzy-5'") == [0]


@pytest.mark.parametrize(
    ("test", "why"),
    [
        ("assert abs(f(2) - 4) < 1", "by __sub__"),
        ("assert 3.9 < f(2) < 4.1", "by __gt__"),
        ("assert 4 in f(2)", "whether it holds a value"),
        ("class Mine: pass\ntry: f(Mine())\nexcept Exception: pass", "an object of Mine"),
    ],
)
def test_what_cannot_be_judged_from_outside_is_a_failure(test, why):
    """The program would hear what is expected, and answer itself."""
    result = run(EQUAL.replace("BASE", "object"), test)
    assert result.kind == "unsupported_test" and why in result.message and not result.passed


def test_tests_that_ask_nothing_of_the_program_judge_nothing():
    result = run("def pow(a, b): return 0", "assert pow(2, 3) == 8")
    assert result.kind == "unsupported_test" and "the tests ask nothing of the program" in result.message
    reward = code.Code(recipe := CodeReward(kind="code", isolation=ISOLATION),
                       Pool("code", code.FACTORY, code.factory_options(recipe), 1, 60.0))  # fmt: skip
    try:
        [outcome] = reward.score(make_group(["x = 1"], {"tests": "assert 1"}), Allowance(60.0))
    finally:
        reward.close()
    assert isinstance(outcome, Failure) and outcome.kind == "unsupported_test"


@isolated
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("import os; os.kill(os.getppid(), 9)", "forbidden"),
        ("import os; os.kill(2, 19)", "forbidden"),
        ("import os; os.kill(0, 9)", "crashed"),
        ("while True: pass", "deadline"),
        ("return bytearray(10 << 30)", "memory"),
        ("import os\n    while True: os.fork()", "processes"),
        ("return open('/etc/passwd').read()", "forbidden"),
        ("import ctypes; ctypes.string_at(0)", "crashed"),
        ("import socket; socket.socket()", "forbidden"),
        ("print('x' * (1 << 21))", "output"),
        ("open('x', 'wb').write(bytes(1 << 28))", "files"),
    ],
)
def test_limits_count_while_tests_run_too(body, kind):
    result = run(f"def f(x):\n    {body}", "assert f(2) == 4", "assert f(2) == 4", seconds=3.0)
    assert (result.kind, result.passed) == (kind, frozenset()), result


def test_a_program_names_no_kind_that_is_not_its_own():
    """Its process says which limit an exception stands for, and may lie: but only by the names of limits."""
    program = """
import gc
for thing in gc.get_objects():
    if type(thing).__name__ == "Program": type(thing).cause = lambda *_: "-"
def f(x): raise ValueError
"""
    result = run(program, "assert f(2) == 4")
    assert (result.kind, result.passed) == ("exception", frozenset())
