"""The asynchronous reward stage: groups go in as they finish generating and come out scored.

    with build(recipe.rewards, base_dir, recipe.deadlines, debug=False) as stage:
        stage.submit(group)                  # outcomes still empty
        for group in stage.finished(0.1):    # in the order of completion
            ...
        stage.check(groups_of_the_step, step)

Scoring overlaps generation: it happens in threads here and in processes behind them. Under --debug it happens inside
`finished`, one group at a time, in the thread that calls it.
"""

import queue
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe import rewards as kinds
from rlpipe.recipe.rewards import RewardMix
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards import code, function, maths, regex
from rlpipe.rewards.environment import FromEnvironment
from rlpipe.rewards.exact import Exact
from rlpipe.rewards.format import Format
from rlpipe.rewards.http import Http
from rlpipe.rewards.killable import InProcess, Pool
from rlpipe.rewards.mix import Mix, blamed
from rlpipe.rewards.model import Model, Scorer
from rlpipe.rewards.reward import Allowance, Reward


class RewardFailed(RuntimeError):
    """More of a step's rewards failed than the recipe allows; the message has the reward, the count and an example."""


class RewardStage:
    """Scores groups, at most `threads` at once; with 0 threads inside `finished`."""

    def __init__(self, mix: Mix, threads: int, seconds_per_group: float, max_failure_rate: float):
        self.names = mix.names
        """The components' names, in the recipe's order."""
        self.outstanding = 0
        """Groups submitted and not yet handed over."""
        self._mix = mix
        self._seconds_per_group = seconds_per_group
        self._max_failure_rate = max_failure_rate
        self._waiting: queue.SimpleQueue[Group | None] = queue.SimpleQueue()
        self._scored: queue.SimpleQueue[Group | Exception] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, daemon=True, name="reward") for _ in range(threads)]
        mix.start()
        for thread in self._threads:
            thread.start()

    def ready(self) -> None:
        """Wait until every reward is loaded. Raises `RewardUnusable` if one cannot be."""
        self._mix.ready()

    def submit(self, group: Group) -> None:
        """Score this group, whose outcomes are still empty."""
        self.outstanding += 1
        self._waiting.put(group)

    def finished(self, seconds: float) -> list[Group]:
        """The groups scored since the last call; waits up to `seconds` for the first, unless none is outstanding."""
        if not self.outstanding:
            return []
        if not self._threads:
            self._scored.put(self._score(self._waiting.get()))
        groups = deque()
        try:
            groups.append(self._scored.get(timeout=seconds))
            while True:
                groups.append(self._scored.get_nowait())
        except queue.Empty:
            pass
        self.outstanding -= len(groups)
        for group in groups:
            if isinstance(group, Exception):
                raise group
        return list(groups)

    def check(self, groups: Sequence[Group], step: int) -> None:
        """Raise `RewardFailed` if too many rewards of the step failed."""
        failures = [(g, i, o) for g in groups for i, o in enumerate(g.outcomes) if isinstance(o, Failure)]
        responses = sum(len(group.outcomes) for group in groups)
        if failures and len(failures) > self._max_failure_rate * responses:
            raise RewardFailed(_failure_report(failures, responses, step, self._max_failure_rate))

    def close(self) -> None:
        """Stop, killing what is still being scored."""
        for _ in self._threads:
            self._waiting.put(None)
        self._mix.close()

    def __enter__(self) -> "RewardStage":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _work(self) -> None:
        while (group := self._waiting.get()) is not None:
            try:
                self._scored.put(self._score(group))
            except Exception as error:
                self._scored.put(error)

    def _score(self, group: Group) -> Group:
        return replace(group, outcomes=self._mix.score(group, Allowance(self._seconds_per_group)))


def _failure_report(failures: list[tuple[Group, int, Failure]], responses: int, step: int, allowed: float) -> str:
    rate = len(failures) / responses
    causes = Counter((blamed(failure), failure.kind) for _, _, failure in failures)
    group, index, failure = failures[0]
    return "\n".join(
        [
            f"the rewards of {len(failures)} of {responses} responses ({rate:.1%}) could not be computed in step "
            f"{step}; rewards.max_failure_rate={allowed:g} allows {allowed:.1%}",
            *(f"  {count} x {reward}: {kind}" for (reward, kind), count in causes.most_common()),
            "  one of them:",
            f"    prompt      {group.prompt.text!r:.400}",
            f"    completion  {group.completions[index]!r:.400}",
            f"    {failure.kind:<11} {failure.message}",
            "Mend the reward or the data, or raise rewards.max_failure_rate. A failed reward is never counted as 0.",
        ]
    )


def build(
    rewards: RewardMix, base_dir: Path, deadlines: Deadlines, debug: bool, scorers: Mapping[str, Scorer] | None = None
) -> RewardStage:
    """The stage of a recipe. Its processes start at once, in the background; `ready` waits for them.

    `base_dir` is the recipe's folder. With `debug`, Python rewards run in this process and thread. `scorers` are the
    reward models that the runtime started, by the name of their reward.
    """
    threads = 0 if debug else sum(map(_groups_at_once, rewards.mix))
    mix = Mix([_reward(reward, base_dir, deadlines.start, debug, scorers or {}) for reward in rewards.mix])
    return RewardStage(mix, threads, deadlines.reward, rewards.max_failure_rate)


def _groups_at_once(recipe: kinds.Reward) -> int:
    return next((getattr(recipe, key) for key in ("processes", "requests", "ranks") if hasattr(recipe, key)), 1)


def _reward(recipe: kinds.Reward, base_dir: Path, start: float, debug: bool, scorers: Mapping[str, Scorer]) -> Reward:
    match recipe:
        case kinds.ExactReward():
            return Exact(recipe)
        case kinds.EnvironmentReward():
            return FromEnvironment(recipe)
        case kinds.FormatReward():
            return Format(recipe)
        case kinds.HttpReward():
            return Http(recipe)
        case kinds.ModelReward():
            return Model(recipe, scorers[recipe.name])
        case kinds.RegexReward():
            return regex.Regex(recipe, Pool(recipe.name, regex.FACTORY, regex.factory_options(recipe), 1, start))
        case kinds.MathReward():
            return maths.Maths(recipe, Pool(recipe.name, maths.FACTORY, {}, recipe.processes, start))
        case kinds.CodeReward():
            options = code.factory_options(recipe)
            return code.Code(recipe, Pool(recipe.name, code.FACTORY, options, recipe.processes, start))
        case kinds.PythonReward():
            target = (recipe.name, function.FACTORY, function.factory_options(recipe, base_dir))
            return function.Function(recipe, InProcess(*target) if debug else Pool(*target, 1, start))
