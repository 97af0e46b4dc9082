"""The reward that the environment itself gave."""

from rlpipe.data.flow import Failure, Group, Trajectory
from rlpipe.recipe.rewards import EnvironmentReward
from rlpipe.rewards.reward import Allowance, Component


class FromEnvironment:
    """The episode's own reward or one of its components; `None` where the environment gave none."""

    def __init__(self, recipe: EnvironmentReward):
        self.name = recipe.name
        self.weight = recipe.weight
        self._component = recipe.component

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        return [self._of(trajectory) for trajectory in group.trajectories]

    def close(self) -> None: ...

    def _of(self, trajectory: Trajectory) -> Component:
        outcome = trajectory.episode.outcome if trajectory.episode else None
        if outcome is None or isinstance(outcome, Failure):
            return outcome
        if self._component is None:
            return outcome.value
        if self._component not in outcome.components:
            has = ", ".join(map(repr, sorted(outcome.components))) or "none"
            return Failure("unknown_component", f"the environment has no component {self._component!r} (it has: {has})")
        return outcome.components[self._component]
