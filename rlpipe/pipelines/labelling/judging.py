"""Whoever judges responses: the rewards of the recipe."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from rlpipe.data.flow import Group
from rlpipe.ledger.book import Lease
from rlpipe.pipelines import reward_models
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.rewards.stage import RewardStage


class Judging:
    """The reward stage, asked about groups by their prompts."""

    def __init__(self, stage: RewardStage, groups: Mapping[str, Group]) -> None:
        """`groups` by prompt id: what is to be judged."""
        self._stage, self._groups = stage, groups

    def ask(self, leases: Sequence[Lease]) -> None:
        for lease in leases:
            self._stage.submit(_leased(self._groups[lease.prompt.prompt_id], lease))

    def answered(self, seconds: float) -> list[Group]:
        return self._stage.finished(seconds)

    def in_hand(self) -> Collection[str]:
        return self._stage.asked()

    def check(self, groups: Sequence[Group], step: int) -> None:
        self._stage.check(groups, step)


def _leased(group: Group, lease: Lease) -> Group:
    """Under the lease that it answers now."""
    ids = {"group_id": lease.lease_id, "prompt_id": lease.prompt.prompt_id}
    trajectories = tuple(replace(trajectory, **ids) for trajectory in group.trajectories)
    return replace(group, group_id=lease.lease_id, prompt=lease.prompt, trajectories=trajectories, outcomes=())


@contextmanager
def judging(stage: Stage, recipe: LabelRecipe, groups: Mapping[str, Group]) -> Iterator[Judging]:
    """The rewards of the recipe, started; ended with the block."""
    with ExitStack() as stack:
        stack.callback(stage.runtime.stop)
        with stage.events.phase("start", says="starting the judges"):
            specs = reward_models.specs(stage)
            started = stage.runtime.start(specs) if specs else None
            scoring = reward_models.scoring(stage, recipe.rewards, started.handles if started else {})
            stack.enter_context(scoring)
            if started:
                started.ready()
            scoring.ready()
        yield Judging(scoring, groups)
