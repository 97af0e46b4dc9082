"""A weighted sum of rewards in which nothing that could not be computed counts as 0."""

import json
import math
from collections.abc import Mapping, Sequence

from rlpipe.data.flow import Failure, Group, Outcome, Score, Trajectory
from rlpipe.rewards.reward import Component, Explained, Reward

UNJUDGED = Score(math.nan, {})
"""Of a response in an evaluation where nobody says what one is worth."""


class Mix:
    """value = sum of weight times component, over the components that apply to the row."""

    def __init__(self, rewards: Sequence[Reward]):
        self.rewards = tuple(rewards)
        self.names = tuple(reward.name for reward in rewards)

    def start(self) -> None:
        for reward in self.rewards:
            reward.start()

    def ready(self) -> None:
        for reward in self.rewards:
            reward.ready()

    def outcomes(self, group: Group, said: Mapping[str, Sequence[Component]]) -> tuple[Outcome, ...]:
        """One outcome per response, from what each reward said about the group."""
        if not self.rewards:
            return tuple(broken_off(t) or UNJUDGED for t in group.trajectories)
        rows = zip(*([_finite(c) for c in said[name]] for name in self.names), strict=True)
        return tuple(broken_off(t) or self._outcome(row) for t, row in zip(group.trajectories, rows, strict=True))

    def close(self) -> None:
        for reward in self.rewards:
            reward.close()

    def _outcome(self, row: Sequence[Component]) -> Outcome:
        for name, component in zip(self.names, row, strict=True):
            if isinstance(component, Failure):
                return _blame(name, component)
        said = {name: component for name, component in zip(self.names, row, strict=True) if component is not None}
        details = {name: c.details for name, c in said.items() if isinstance(c, Explained)}
        components = {name: c.value if isinstance(c, Explained) else c for name, c in said.items()}
        if not components:
            return _blame("+".join(self.names), Failure("not_applicable", "no reward of the mix applies to this row"))
        value = sum(r.weight * components[r.name] for r in self.rewards if r.name in components)
        return Score(value, components, json.dumps(details, ensure_ascii=False) if details else "")


def broken_off(trajectory: Trajectory) -> Failure | None:
    """An episode whose environment failed has no reward, whatever could be said of its last turn."""
    outcome = trajectory.episode.outcome if trajectory.episode else None
    return _blame("environment", outcome) if isinstance(outcome, Failure) else None


def _finite(component: Component) -> Component:
    number = component.value if isinstance(component, Explained) else component
    if isinstance(number, float) and not math.isfinite(number):
        return Failure("not_a_number", f"the reward is {number}")
    return component


def _blame(reward: str, failure: Failure) -> Failure:
    return Failure(failure.kind, f"{reward}: {failure.message}")


def blamed(failure: Failure) -> str:
    """The name of the reward that a failure of a mix comes from."""
    return failure.message.partition(": ")[0]
