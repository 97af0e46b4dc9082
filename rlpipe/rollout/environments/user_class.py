"""A user's environment, in the killable processes that user rewards run in.

The state of an episode travels, pickled, with every call: any process may take any step, and a process that is killed
takes no other episode with it. This process never opens it, so it may be of the user's own classes.
"""

import asyncio
import inspect
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlpipe.data.flow import Failure
from rlpipe.recipe.environment import PythonEnvironment
from rlpipe.rewards import child, user_code
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance
from rlpipe.rollout.environments.environment import End, Reply, Request, Response, Turn

FACTORY = "rlpipe.rollout.environments.user_class:load"


def factory_options(recipe: PythonEnvironment) -> dict[str, Any]:
    """What `load` takes."""
    return {"implementation": recipe.implementation, "options": recipe.options}


def load(implementation: str, options: dict[str, Any]) -> Callable[[tuple], Any]:
    """Runs in the child process: an instance of the class, ready to be called with `("reset", columns, seed)`, which
    gives a state, `("step", state, response)`, which gives a state and a turn, or `("many", requests)`, which gives a
    list of such."""
    made = user_code.find(implementation, "")(**options)
    missing = [name for name in ("reset", "step") if not callable(getattr(made, name, None))]
    if missing:
        raise AttributeError(f"{implementation} has no method {' and no method '.join(missing)}")
    return _Bound(made, implementation)


class _Bound:
    def __init__(self, made: Any, name: str) -> None:
        self._made, self._name = made, name

    def __call__(self, request: tuple) -> Any:
        if request[0] == "many":
            return self._all(request[1])
        state, value = self._begun(request)
        return self._ended(state, *_settled([value]))

    def _all(self, requests: list[tuple]) -> list[Any]:
        """`async` methods wait side by side. What one raises is its own; what `step_batch` raises is everybody's."""
        batch = [request for request in requests if request[0] == "step" and hasattr(self._made, "step_batch")]
        stepped = iter(self._step_batch(batch) if batch else [])
        begun = [next(stepped) if request in batch else _caught(self._begun, request) for request in requests]
        begun = [(None, pair) if isinstance(pair, Failure) else pair for pair in begun]
        values = _settled([value for _, value in begun])
        return [_caught(self._ended, state, value) for (state, _), value in zip(begun, values, strict=True)]

    def _step_batch(self, steps: list[tuple]) -> list[tuple[Any, Any]]:
        states, responses = [pickle.loads(packed) for _, packed, _ in steps], [response for _, _, response in steps]
        [turns] = _settled([self._made.step_batch(states, responses)])
        if isinstance(turns, Exception) or len(turns) != len(states):
            raise ValueError(f"{self._name}.step_batch gave {turns!r:.200} for {len(states)} states")
        return list(zip(states, turns, strict=True))

    def _begun(self, request: tuple) -> tuple[Any, Any]:
        """(state, what the method returned, which may have to be awaited); there is no state before a reset."""
        match request:
            case "reset", columns, seed:
                return _NEW, self._made.reset(columns, seed)
            case "step", packed, response:
                state = pickle.loads(packed)
                return state, self._made.step(state, response)

    def _ended(self, state: Any, value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        if isinstance(value, Failure):
            return value
        if state is _NEW:
            return self._packed(value)
        if not (isinstance(value, End) or (isinstance(value, Reply) and isinstance(value.text, str))):
            raise TypeError(f"{self._name}.step returned {value!r:.100} and no End or Reply with text")
        return self._packed(state), value

    def _packed(self, state: Any) -> bytes:
        try:
            return pickle.dumps(state)
        except Exception as error:
            raise TypeError(f"{self._name}: the state of an episode must be picklable: {error}") from error


_NEW = object()
"""In place of a state before there is one."""


def _caught(function: Callable[..., Any], *arguments: Any) -> Any:
    kind, value = child.answer(lambda _: function(*arguments), None)
    return Failure("exception", value) if kind == "raised" else value


def _settled(values: list[Any]) -> list[Any]:
    """What they are, or come to when they are awaited side by side; an exception stands in its place."""
    return asyncio.run(_awaited(values)) if any(map(inspect.isawaitable, values)) else values


async def _awaited(values: list[Any]) -> list[Any]:
    return await asyncio.gather(*(v if inspect.isawaitable(v) else _same(v) for v in values), return_exceptions=True)


async def _same(value: Any) -> Any:
    return value


@dataclass(slots=True)
class Held:
    """An episode's state as the processes know it."""

    packed: bytes


class UserClass:
    """Calls the class; every step within `seconds`."""

    def __init__(self, caller: Caller, seconds: float) -> None:
        self._caller, self._seconds = caller, seconds
        self.start, self.ready, self.close = caller.start, caller.ready, caller.close

    def reset(self, columns: dict[str, Any], seed: int) -> Held | Failure:
        return self._taken(("reset", columns, seed))

    def step(self, state: Held, response: Response) -> Turn | Failure:
        return self._taken(("step", state, response))

    def many(self, requests: Sequence[Request]) -> list[Any]:
        """All in one call within `seconds`. A call that fails is repeated one by one: states are as they were."""
        answers = self._call(("many", list(map(_sent, requests))))
        if isinstance(answers, Failure):
            return list(map(self._taken, requests))
        return list(map(_taken_in, requests, answers))

    def _taken(self, request: Request) -> Any | Failure:
        return _taken_in(request, self._call(_sent(request)))

    def _call(self, request: tuple) -> Any | Failure:
        return self._caller.call(request, self._seconds, Allowance(self._seconds))


def _sent(request: Request) -> tuple:
    """As it goes to the process."""
    return ("step", request[1].packed, request[2]) if request[0] == "step" else request


def _taken_in(request: Request, answer: Any) -> Held | Turn | Failure:
    """What the process answered; the state of a step is changed."""
    if isinstance(answer, Failure):
        return answer
    if request[0] == "reset":
        return Held(answer)
    request[1].packed, turn = answer
    return turn
