"""Mathematical equality with the reference answer, by Math-Verify.

A response in which Math-Verify finds no answer is wrong (0): the policy can be asked to answer readably. A *reference*
that it cannot read is a `Failure`: the row cannot be judged. With `answer_after` the reference is what follows the last
such mark; a response that has the mark too is judged by what follows its last mark, else as a whole.
"""

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import MathReward
from rlpipe.rewards.called import Called
from rlpipe.rewards.extract import after, reference_after
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component

FACTORY = "rlpipe.rewards.verifier:load"


class Maths(Called):
    """1 if the response's final answer equals the reference, else 0; each response with its own deadline."""

    def __init__(self, recipe: MathReward, caller: Caller):
        super().__init__(recipe, caller)
        self._recipe = recipe

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        answer = reference_after(group, self._recipe.answer_column, self._recipe.answer_after)
        verdicts = self._each(group, answer, self._request, self._recipe.deadline, allowance)
        return [Failure("unparseable_reference", v) if isinstance(v, str) else v for v in verdicts]

    def _request(self, answer: str, completion: str) -> tuple[str, str]:
        return answer, after(completion, self._recipe.answer_after)
