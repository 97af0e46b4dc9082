"""Exact match with the answer column."""

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import ExactReward
from rlpipe.rewards.reward import Allowance, Component, reference


class Exact:
    """1 if the response equals the reference, spaces around either aside; else 0. Needs no process of its own."""

    def __init__(self, recipe: ExactReward):
        self.name = recipe.name
        self.weight = recipe.weight
        self._column = recipe.answer_column

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        answer = reference(group, self._column)
        if isinstance(answer, Failure):
            return [answer] * len(group.completions)
        return [float(completion.strip() == answer.strip()) for completion in group.completions]

    def close(self) -> None: ...
