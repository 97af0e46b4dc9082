"""Mathematical equality with the reference answer, by Math-Verify.

A response in which Math-Verify finds no answer is wrong (0): the policy can be asked to answer readably. A *reference*
that it cannot read is a `Failure`: the row cannot be judged. With `answer_after` the reference is what follows the last
such mark; a response that has the mark too is judged by what follows its last mark, else as a whole.
"""

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import MathReward
from rlpipe.rewards.extract import after, reference_after
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component

FACTORY = "rlpipe.rewards.verifier:load"


class Maths:
    """1 if the response's final answer equals the reference, else 0; each response with its own deadline."""

    def __init__(self, recipe: MathReward, caller: Caller):
        self.name = recipe.name
        self.weight = recipe.weight
        self._recipe = recipe
        self._caller = caller
        self.start, self.ready, self.close = caller.start, caller.ready, caller.close

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        answer = reference_after(group, self._recipe.answer_column, self._recipe.answer_after)
        rows = len(group.completions)
        if isinstance(answer, Failure):
            return [answer] * rows
        return [self._judge(answer, text, rows - row, allowance) for row, text in enumerate(group.completions)]

    def _judge(self, answer: str, completion: str, rows_left: int, allowance: Allowance) -> Component:
        final = after(completion, self._recipe.answer_after)
        verdict = self._caller.call((answer, final), self._recipe.deadline, allowance, rows_left)
        return Failure("unparseable_reference", verdict) if isinstance(verdict, str) else verdict
