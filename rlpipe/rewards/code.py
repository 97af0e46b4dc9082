"""Runs the program of each response against the row's tests, in sandboxes.

A wrong answer and an exception are 0: the policy can learn from them. What the sandbox had to stop is a `Failure` with
the kind of the limit. Expected outputs never enter the sandbox; snippets do, and run in a process of their own there.
"""

import logging
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import CodeReward
from rlpipe.rewards import extract
from rlpipe.rewards.code_tests import Pair, Tests, read_tests, same_output
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component, column
from rlpipe.rewards.sandbox.sandbox import Job, Limits, Run

FACTORY = "rlpipe.rewards.sandbox.runner:load"
BACKSTOP = 5.0
"""Seconds beyond its own deadline after which the sandbox's keeper is killed, too."""

logger = logging.getLogger(__name__)


def factory_options(recipe: CodeReward) -> dict:
    """What `runner.load` takes."""
    limits = Limits(recipe.memory_mb, recipe.files_mb, recipe.output_mb, recipe.max_processes)
    return {"limits": tuple(limits), "isolation": recipe.isolation}


class Code:
    """1 if the program passes the tests, or the share it passes; the programs of a group run side by side."""

    def __init__(self, recipe: CodeReward, caller: Caller):
        self.name = recipe.name
        self.weight = recipe.weight
        self._recipe = recipe
        self._caller = caller
        self._threads = ThreadPoolExecutor(recipe.processes, thread_name_prefix="code")
        self.ready = caller.ready

    def start(self) -> None:
        if self._recipe.isolation == "none":
            logger.warning("reward %r runs programs without isolation: isolation=none", self.name)
        self._caller.start()

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        rows = len(group.completions)
        tests = self._tests(group)
        if isinstance(tests, Failure):
            return [tests] * rows
        at_once = min(self._recipe.processes, rows)
        budgets = [Allowance(allowance.left * at_once / rows) for _ in range(rows)]
        components = list(self._threads.map(partial(self._judge, tests), group.completions, budgets))
        allowance.spend(sum(budget.seconds - budget.left for budget in budgets) / at_once)
        return components

    def close(self) -> None:
        self._caller.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _tests(self, group: Group) -> Tests | Failure:
        value = column(group, self._recipe.tests_column, "tests_column")
        if isinstance(value, Failure):
            return value
        try:
            return read_tests(value)
        except ValueError as error:
            return Failure("unparseable_reference", f"column {self._recipe.tests_column!r}: {error}")

    def _judge(self, tests: Tests, completion: str, budget: Allowance) -> Component:
        program = extract.program(completion)
        if isinstance(tests[0], Pair):
            return self._judge_output(program, tests, budget)
        run = self._run(Job(program, tests), budget)
        return run if isinstance(run, Failure) else self._credit(len(run.passed), len(tests))

    def _judge_output(self, program: str, pairs: tuple[Pair, ...], budget: Allowance) -> Component:
        passed = 0
        for index, pair in enumerate(pairs):
            run = self._run(Job(program, stdin=pair.input), budget, len(pairs) - index)
            if isinstance(run, Failure):
                return run
            passed += not run.kind and same_output(run.out, pair.output)
            if self._recipe.credit == "all" and passed <= index:
                break
        return self._credit(passed, len(pairs))

    def _credit(self, passed: int, tests: int) -> float:
        return passed / tests if self._recipe.credit == "share" else float(passed == tests)

    def _run(self, job: Job, budget: Allowance, runs_left: int = 1) -> Run | Failure:
        seconds = budget.share(self._recipe.deadline, runs_left)
        run = self._caller.call((job, seconds), seconds + BACKSTOP, budget)
        if isinstance(run, Failure) or run.kind in ("", "exception"):
            return run
        return Failure(run.kind, run.message)
