"""Mathematical equality with the reference answer, by Math-Verify.

A response in which Math-Verify finds no answer is wrong (0): the policy can be asked to answer readably. A *reference*
that it cannot read is a `Failure`: the row cannot be judged. With `answer_after` the reference is what follows the last
such mark; a response that has the mark too is judged by what follows its last mark, else as a whole.
"""

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import MathReward
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component, reference

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
        answer = self._reference(group)
        rows = len(group.completions)
        if isinstance(answer, Failure):
            return [answer] * rows
        return [self._judge(answer, text, rows - row, allowance) for row, text in enumerate(group.completions)]

    def _reference(self, group: Group) -> str | Failure:
        text, mark = reference(group, self._recipe.answer_column), self._recipe.answer_after
        if isinstance(text, Failure) or mark is None:
            return text
        if mark not in text:
            return Failure("unparseable_reference", f"no answer_after={mark!r} in the reference {text!r:.200}")
        return text.rpartition(mark)[2].strip()

    def _judge(self, answer: str, completion: str, rows_left: int, allowance: Allowance) -> Component:
        mark = self._recipe.answer_after
        final = completion.rpartition(mark)[2] if mark else completion
        verdict = self._caller.call((answer, final), self._recipe.deadline, allowance, rows_left)
        return Failure("unparseable_reference", verdict) if isinstance(verdict, str) else verdict
