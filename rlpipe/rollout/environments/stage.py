"""The asynchronous environment stage: steps go in as turns finish generating, and their answers come out.

    with build(recipe.environment, recipe.deadlines, debug=False) as stage:
        stage.reset(key, columns, seed)
        stage.step(key, state, response)
        for key, answer in stage.finished(0.1):    # in the order of completion
            ...

Environments work beside generation: in threads here and, for a class of a user, in processes behind them, which take
one call or one batch of calls at a time. Under --debug they work inside `finished`, in the thread that calls it and
without a deadline, so that a breakpoint stops the world.
"""

import contextlib
import queue
import threading
import time
from collections.abc import Hashable
from typing import Any

from rlpipe.data.flow import Failure
from rlpipe.recipe import environment as kinds
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards import child
from rlpipe.rewards.killable import InProcess, Pool
from rlpipe.rollout.environments import user_class
from rlpipe.rollout.environments.calculator import Calculator
from rlpipe.rollout.environments.critique import CritiqueAndRevision
from rlpipe.rollout.environments.environment import Environment, Request, Response
from rlpipe.rollout.environments.guess_number import GuessNumber

Answer = tuple[Hashable, Any]
"""The key of a call, and what it gave: a state, a turn, or a `Failure`."""


class EnvironmentStage:
    """Calls one environment, for at most `threads` episodes at once; with 0 threads inside `finished`.

    A call that takes longer than `seconds` is given up: its answer is a `Failure`, and a new thread takes the place of
    the one that hangs. None: the environment keeps the deadline itself.
    """

    def __init__(self, environment: Environment, threads: int, seconds: float | None, batch: int = 1) -> None:
        """With `batch` above 1 up to so many calls that wait are made together, by the environment's `many`."""
        self._environment, self._threads, self._seconds, self._batch = environment, threads, seconds, batch
        self._waiting: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self._calls: set[_Call] = set()
        environment.start()
        for _ in range(threads):
            self._start_thread()

    @property
    def outstanding(self) -> int:
        """Calls submitted and not yet handed over."""
        return len(self._calls) + self._answers.qsize()

    def ready(self) -> None:
        """Wait until the environment is loaded. Raises `RewardUnusable` if it cannot be."""
        self._environment.ready()

    def reset(self, key: Hashable, columns: dict[str, Any], seed: int) -> None:
        """Ask for the state of a new episode."""
        self._submit(key, ("reset", columns, seed))

    def step(self, key: Hashable, state: Any, response: Response) -> None:
        """Ask for the answer to a turn."""
        self._submit(key, ("step", state, response))

    def finished(self, seconds: float) -> list[Answer]:
        """Answers since the last call; waits up to `seconds` for the first, unless none is outstanding."""
        if not self._threads:
            self._work_here()
        first = self._first(seconds) if self.outstanding else []
        self._give_up_the_late()
        return first + [self._answers.get() for _ in range(self._answers.qsize())]

    def close(self) -> None:
        """Stop; what still hangs is left to itself."""
        for _ in range(self._threads):
            self._waiting.put(None)
        self._environment.close()

    def __enter__(self) -> "EnvironmentStage":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _submit(self, key: Hashable, request: Request) -> None:
        call = _Call(key, request)
        self._calls.add(call)
        self._waiting.put(call)

    def _start_thread(self) -> None:
        threading.Thread(target=self._work, daemon=True, name="environment").start()

    def _work(self) -> None:
        while (call := self._waiting.get()) is not None:
            calls = self._with_more(call)
            if not all(list(map(self._hand_over, calls, self._made(calls)))):
                return  # given up meanwhile; another thread has taken this one's place

    def _work_here(self) -> None:
        while not self._waiting.empty():
            calls = self._with_more(self._waiting.get())
            list(map(self._hand_over, calls, self._made(calls)))

    def _with_more(self, call: "_Call") -> "list[_Call]":
        """The call, and what else waits and goes with it."""
        calls = [call]
        with contextlib.suppress(queue.Empty):
            while len(calls) < self._batch:
                if (more := self._waiting.get_nowait()) is None:
                    self._waiting.put(None)  # the end, which a thread is to find
                    break
                calls.append(more)
        return calls

    def _made(self, calls: "list[_Call]") -> list[Any]:
        """The answers; a `Failure` for an exception."""
        for call in calls:
            call.begun = time.monotonic()
        if len(calls) > 1:
            return self._environment.many([call.request for call in calls])
        return [_answer(self._environment, call.request) for call in calls]

    def _hand_over(self, call: "_Call", answer: Any) -> bool:
        """False if the call was answered before."""
        if not call.claim():
            return False
        self._answers.put((call.key, answer))
        self._calls.discard(call)
        return True

    def _first(self, seconds: float) -> list[Answer]:
        """The next answer, unless the time is over or a call is late before."""
        until = time.monotonic() + seconds
        if self._seconds is not None:
            until = min([until, *(call.begun + self._seconds for call in list(self._calls) if call.begun)])
        try:
            return [self._answers.get(timeout=max(0.0, until - time.monotonic()))]
        except queue.Empty:
            return []

    def _give_up_the_late(self) -> None:
        if self._seconds is None or not self._threads:
            return
        latest = time.monotonic() - self._seconds
        for call in [call for call in list(self._calls) if call.begun is not None and call.begun < latest]:
            why = f"the environment did not answer within deadlines.environment={self._seconds:g} s"
            if self._hand_over(call, Failure("deadline", why)):
                self._start_thread()


class _Call:
    """One call of the environment. Whoever claims it first answers it."""

    def __init__(self, key: Hashable, request: Request) -> None:
        self.key, self.request = key, request
        self.begun: float | None = None
        self._claimed = threading.Lock()

    def claim(self) -> bool:
        return self._claimed.acquire(blocking=False)


def _answer(environment: Environment, request: Request) -> Any:
    method, *arguments = request
    kind, value = child.answer(lambda _: getattr(environment, method)(*arguments), None)
    return Failure("exception", value) if kind == "raised" else value


def build(recipe: kinds.Environment, deadlines: Deadlines, debug: bool) -> EnvironmentStage | None:
    """The stage of a recipe; None for a single turn. Its processes start at once, in the background."""
    if isinstance(recipe, kinds.SingleTurn):
        return None
    if not isinstance(recipe, kinds.PythonEnvironment):
        return EnvironmentStage(_builtin(recipe), 0 if debug else 1, deadlines.environment)
    target = (recipe.implementation, user_class.FACTORY, user_class.factory_options(recipe))
    caller = (
        InProcess(*target, what="environment")
        if debug
        else Pool(*target, recipe.processes, deadlines.start, what="environment", secrets=recipe.secrets)
    )
    threads = 0 if debug else recipe.processes
    return EnvironmentStage(user_class.UserClass(caller, deadlines.environment), threads, None, recipe.batch)


def _builtin(recipe: kinds.Calculator | kinds.GuessNumber | kinds.ConstitutionEnvironment) -> Environment:
    match recipe:
        case kinds.Calculator():
            return Calculator(recipe)
        case kinds.GuessNumber():
            return GuessNumber(recipe)
        case kinds.ConstitutionEnvironment():
            return CritiqueAndRevision(recipe)
