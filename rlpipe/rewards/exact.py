"""Exact match with the answer column.

With `answer_after` the reference is what follows the last such mark, and so is what counts of a response that has it.
With `inside` what counts of a response stands in the last such tag; a response without it is wrong (0). With both, the
mark is looked for inside the tag.
"""

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import ExactReward
from rlpipe.rewards.extract import after, inside, reference_after
from rlpipe.rewards.reward import Allowance, Component


class Exact:
    """1 if the response equals the reference, spaces around either aside; else 0. Needs no process of its own."""

    def __init__(self, recipe: ExactReward):
        self.name = recipe.name
        self.weight = recipe.weight
        self._recipe = recipe

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        answer = reference_after(group, self._recipe.answer_column, self._recipe.answer_after)
        if isinstance(answer, Failure):
            return [answer] * len(group.completions)
        return [float(self._final(completion) == answer.strip()) for completion in group.completions]

    def _final(self, completion: str) -> str | None:
        """What counts of it."""
        text = inside(completion, self._recipe.inside) if self._recipe.inside else completion
        return None if text is None else after(text, self._recipe.answer_after).strip()

    def close(self) -> None: ...
