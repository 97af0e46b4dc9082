"""The asynchronous reward stage: groups go in as they finish generating and come out scored.

    with build(recipe.rewards, base_dir, recipe.deadlines, debug=False) as stage:
        stage.submit(group)                  # outcomes still empty
        for group in stage.finished(0.1):    # in the order of completion
            ...
        stage.check(groups_of_the_step, step)

Scoring overlaps generation: it happens in threads here and in processes behind them, for each reward of the mix beside
the others. Under --debug it happens inside a `finished` that may wait, in the thread that calls it.
"""

import queue
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe import rewards as kinds
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.judging import EngineJudge
from rlpipe.recipe.rewards import RewardMix
from rlpipe.recipe.run import Deadlines
from rlpipe.rewards import code, function, maths, regex
from rlpipe.rewards.environment import FromEnvironment
from rlpipe.rewards.exact import Exact
from rlpipe.rewards.format import Format
from rlpipe.rewards.http import Http
from rlpipe.rewards.judging.judged import Judged
from rlpipe.rewards.judging.usage import TellUsage, Usage
from rlpipe.rewards.killable import InProcess, Pool
from rlpipe.rewards.lane import Lane, Raised, Said, Scoring
from rlpipe.rewards.mix import Mix, blamed
from rlpipe.rewards.model import Model, Scorer
from rlpipe.rewards.reward import Reward

CALLS_OF_ENDPOINT = 2
"""Of a judge behind an endpoint, which bounds its requests itself: while the last answers of one call come, the next
one is under way."""


class RewardFailed(RuntimeError):
    """More of a step's rewards failed than the recipe allows; the message has the reward, the count and an example."""


class RewardStage:
    """Scores groups, with at most so many calls at once of each reward of the mix; with none, inside `finished`."""

    def __init__(
        self,
        mix: Mix,
        calls_at_once: Sequence[int],
        seconds_per_group: float,
        max_failure_rate: float,
        tell: TellUsage = lambda name, usage: None,
    ):
        """`tell` hears what judges behind endpoints take, with each `check` and at the end."""
        self.names = mix.names
        """The components' names, in the recipe's order."""
        self._outstanding: set[Scoring] = set()
        self._scored: list[Group] = []
        """To be handed over; here, since the next reward heard may have an error to raise."""
        self._mix, self._tell = mix, tell
        self._told: dict[str, Usage] = {}
        self._max_failure_rate = max_failure_rate
        self._said: queue.SimpleQueue[Said | Raised] = queue.SimpleQueue()
        self._in_caller = not any(calls_at_once)
        mix.start()
        self._lanes = [
            Lane(reward, calls, seconds_per_group, self._said.put)
            for reward, calls in zip(mix.rewards, calls_at_once, strict=True)
        ]

    @property
    def outstanding(self) -> int:
        """Groups submitted and not yet handed over."""
        return len(self._outstanding) + len(self._scored)

    def asked(self) -> set[str]:
        """The ids of groups submitted and not yet handed over."""
        scored = {group.group_id for group in self._scored}
        return scored | {scoring.group.group_id for scoring in self._outstanding}

    def ready(self) -> None:
        """Wait until every reward is loaded. Raises `RewardUnusable` if one cannot be."""
        self._mix.ready()

    def submit(self, group: Group) -> None:
        """Score this group, whose outcomes are still empty."""
        scoring = Scoring(group)
        if not self._lanes:
            self._scored.append(self._done(scoring))
            return
        self._outstanding.add(scoring)
        for lane in self._lanes:
            lane.put(scoring)

    def finished(self, seconds: float) -> list[Group]:
        """The groups scored since the last call; waits up to `seconds` for the first, unless none is outstanding."""
        if seconds > 0:
            self.work_off()
        until = time.monotonic() + (seconds if self.outstanding else 0.0)
        while said := self._next(0.0 if self._scored else max(0.0, until - time.monotonic())):
            self._scored += self._filed(said)
        scored, self._scored = self._scored, []
        return scored

    def work_off(self) -> None:
        """Under --debug score all that waits, here and now."""
        if self._in_caller:
            for lane in self._lanes:
                lane.work_off()

    def forget(self) -> list[Group]:
        """Whatever is not scored yet is not asked for any more; what is still said of it is not heard. Returns it."""
        for lane in self._lanes:
            lane.forget()
        forgotten = [scoring.group for scoring in self._outstanding]
        self._outstanding.clear()
        return forgotten

    def check(self, groups: Sequence[Group], step: int) -> None:
        """Raise `RewardFailed` if too many rewards of the step failed."""
        self._tell_usage()
        check_failures(groups, step, self._max_failure_rate)

    def spent(self) -> dict[str, Usage]:
        """What judges behind endpoints have taken so far, by the name of the reward."""
        judges = {reward.name: reward.usage() for reward in self._mix.rewards if isinstance(reward, Judged)}
        return {name: usage for name, usage in judges.items() if usage is not None}

    def close(self) -> None:
        """Stop, killing what is still being scored."""
        for lane in self._lanes:
            lane.close()
        self._tell_usage()
        self._mix.close()

    def __enter__(self) -> "RewardStage":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _tell_usage(self) -> None:
        for name, usage in self.spent().items():
            new = usage.since(self._told.get(name, Usage()))
            self._told[name] = usage
            if new != Usage():
                self._tell(name, new)

    def _next(self, seconds: float) -> Said | None:
        """What a reward has said, waiting up to `seconds` for it; what it raised is raised here."""
        try:
            said = self._said.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(said, Said):
            return said
        if self._outstanding.isdisjoint(said.scorings):
            return self._next(0.0)
        raise said.error

    def _filed(self, said: Said) -> list[Group]:
        """The scored group, if this was the last that its rewards had to say."""
        scoring = said.scoring
        scoring.columns[said.reward] = said.column
        if len(scoring.columns) < len(self._lanes) or scoring not in self._outstanding:
            return []
        self._outstanding.remove(scoring)
        return [self._done(scoring)]

    def _done(self, scoring: Scoring) -> Group:
        return replace(scoring.group, outcomes=self._mix.outcomes(scoring.group, scoring.columns))


def check_failures(groups: Sequence[Group], step: int, allowed: float) -> None:
    """Raise `RewardFailed` if more than this share of the responses have a failure in place of a score."""
    failures = [(g, i, o) for g in groups for i, o in enumerate(g.outcomes) if isinstance(o, Failure)]
    responses = sum(len(group.outcomes) for group in groups)
    if failures and len(failures) > allowed * responses:
        raise RewardFailed(_failure_report(failures, responses, step, allowed))


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
    rewards: RewardMix | None,
    base_dir: Path,
    deadlines: Deadlines,
    debug: bool,
    scorers: Mapping[str, Scorer] | None = None,
    judges: Mapping[str, Judged] | None = None,
    tell: TellUsage = lambda name, usage: None,
) -> RewardStage:
    """The stage of a recipe. Its processes start at once, in the background; `ready` waits for them.

    Without rewards its outcomes are `mix.UNJUDGED`. `base_dir` is the recipe's folder. With `debug`, Python rewards run
    in this process and thread. `scorers` are the reward models that the runtime started, by the name of their reward;
    so are `judges`. `tell` hears what judges behind endpoints take.
    """
    asked = rewards.mix if rewards else []
    calls = [0 if debug else _calls_at_once(reward) for reward in asked]
    mix = Mix([_reward(reward, base_dir, deadlines.start, debug, scorers or {}, judges or {}) for reward in asked])
    return RewardStage(mix, calls, deadlines.reward, _allowed(rewards), tell)


def _allowed(rewards: RewardMix | None) -> float:
    """Without rewards the default: an environment may fail, too."""
    return rewards.max_failure_rate if rewards else RewardMix.model_fields["max_failure_rate"].default


def _calls_at_once(recipe: kinds.Reward) -> int:
    if isinstance(recipe, JudgeReward):
        return recipe.by.engines if isinstance(recipe.by, EngineJudge) else CALLS_OF_ENDPOINT
    return next((getattr(recipe, key) for key in ("processes", "requests", "ranks") if hasattr(recipe, key)), 1)


def _reward(
    recipe: kinds.Reward,
    base_dir: Path,
    start: float,
    debug: bool,
    scorers: Mapping[str, Scorer],
    judges: Mapping[str, Judged],
) -> Reward:
    match recipe:
        case JudgeReward():
            return judges[recipe.name]
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
            pool = InProcess(*target) if debug else Pool(*target, 1, start, secrets=recipe.secrets)
            return function.Function(recipe, pool)
