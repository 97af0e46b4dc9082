"""A user's environment, in the killable processes that user rewards run in.

The state of an episode travels, pickled, with every call: any process may take any step, and a process that is killed
takes no other episode with it. This process never opens it, so it may be of the user's own classes.
"""

import asyncio
import inspect
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rlpipe.data.flow import Failure
from rlpipe.recipe.environment import PythonEnvironment
from rlpipe.rewards import user_code
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance
from rlpipe.rollout.environments.environment import End, Reply, Response, Turn

FACTORY = "rlpipe.rollout.environments.user_class:load"


def factory_options(recipe: PythonEnvironment) -> dict[str, Any]:
    """What `load` takes."""
    return {"implementation": recipe.implementation, "options": recipe.options}


def load(implementation: str, options: dict[str, Any]) -> Callable[[tuple], Any]:
    """Runs in the child process: an instance of the class, ready to be called with `("reset", columns, seed)`, which
    gives a state, or `("step", state, response)`, which gives a state and a turn."""
    made = user_code.find(implementation, "")(**options)
    missing = [name for name in ("reset", "step") if not callable(getattr(made, name, None))]
    if missing:
        raise AttributeError(f"{implementation} has no method {' and no method '.join(missing)}")
    return _Bound(made, implementation)


class _Bound:
    def __init__(self, made: Any, name: str) -> None:
        self._made, self._name = made, name

    def __call__(self, request: tuple) -> Any:
        match request:
            case "reset", columns, seed:
                return self._packed(_awaited(self._made.reset(columns, seed)))
            case "step", packed, response:
                state = pickle.loads(packed)
                turn = _awaited(self._made.step(state, response))
                if not (isinstance(turn, End) or (isinstance(turn, Reply) and isinstance(turn.text, str))):
                    raise TypeError(f"{self._name}.step returned {turn!r:.100} and no End or Reply with text")
                return self._packed(state), turn

    def _packed(self, state: Any) -> bytes:
        try:
            return pickle.dumps(state)
        except Exception as error:
            raise TypeError(f"{self._name}: the state of an episode must be picklable: {error}") from error


def _awaited(value: Any) -> Any:
    return asyncio.run(_await(value)) if inspect.isawaitable(value) else value


async def _await(awaitable: Any) -> Any:
    return await awaitable


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
        answer = self._call(("reset", columns, seed))
        return answer if isinstance(answer, Failure) else Held(answer)

    def step(self, state: Held, response: Response) -> Turn | Failure:
        answer = self._call(("step", state.packed, response))
        if isinstance(answer, Failure):
            return answer
        state.packed, turn = answer
        return turn

    def _call(self, request: tuple) -> Any | Failure:
        return self._caller.call(request, self._seconds, Allowance(self._seconds))
