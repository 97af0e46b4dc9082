"""The calculator: a tool that the policy calls by ending its turn after `<calc>23*4</calc>`."""

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

from rlpipe.data.arithmetic import CALL, CALL_END
from rlpipe.recipe.environment import Calculator as Recipe
from rlpipe.rollout.environments.environment import End, Reply, Response, Turn

LONGEST_EXPRESSION = 200
"""Characters of one call."""
MOST_CALLS = 8
"""Calls of one turn."""
LARGEST_EXPONENT = 64
LARGEST_NUMBER = 10**30

_CALL = re.compile(f"{CALL}(.*?){CALL_END}", re.DOTALL)
_ALPHABET = re.compile(r"[0-9+*/%(). -]*")
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}


class Unreadable(ValueError):
    """An expression that the calculator does not work out; its words are the tool's answer."""


class Calculator:
    """Answers each call of a turn on a line of its own. A turn without a call is the policy's answer: the episode ends,
    and the rewards of the recipe judge its text."""

    def __init__(self, recipe: Recipe) -> None:
        self._role = recipe.role

    def reset(self, columns: dict[str, Any], seed: int) -> None:
        return None

    def step(self, state: None, response: Response) -> Turn:
        calls = _CALL.findall(response.text)
        if calls:
            return Reply("\n".join(map(answer, calls[:MOST_CALLS])), self._role)
        if CALL in response.text:
            return Reply(f"error: a call ends with {CALL_END}", self._role)
        return End()

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def close(self) -> None: ...


def answer(expression: str) -> str:
    """The value of an expression in decimal digits, or in words why there is none. What was asked is not repeated: it
    may hold marks of the chat template."""
    try:
        return _written(_value(_parsed(expression).body))
    except Unreadable as error:
        return f"error: {error}"
    except ZeroDivisionError:
        return "error: division by zero"
    except OverflowError:
        return "error: too large"


def _parsed(expression: str) -> ast.Expression:
    if len(expression) > LONGEST_EXPRESSION:
        raise Unreadable("too long")
    # Digits and signs only: nothing else is ever given to Python's parser.
    if not _ALPHABET.fullmatch(expression):
        raise Unreadable("not arithmetic")
    try:
        return ast.parse(expression.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise Unreadable("not arithmetic") from None


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return _bounded(number)
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
            return _UNARY[type(sign)](_value(operand))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _BINARY:
            return _bounded(_combined(type(sign), _value(left), _value(right)))
    raise Unreadable("not arithmetic")


def _combined(sign: type, left: int | float, right: int | float) -> int | float:
    if sign is ast.Pow and abs(right) > LARGEST_EXPONENT:
        raise Unreadable("too large")
    if sign is ast.Div and isinstance(left, int) and isinstance(right, int) and right and left % right == 0:
        return left // right  # exact also where a float would not be
    return _BINARY[sign](left, right)


def _bounded(number: Any) -> int | float:
    if isinstance(number, complex):
        raise Unreadable("not a real number")
    if not abs(number) <= LARGEST_NUMBER:  # NaN too
        raise Unreadable("too large")
    return number


def _written(number: int | float) -> str:
    return str(number) if isinstance(number, int) else f"{number:.12g}"
