"""A regular expression, looked for in a process that can be killed."""

from rlpipe.data.flow import Group
from rlpipe.recipe.rewards import RegexReward
from rlpipe.rewards.called import Called
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component, reference

FACTORY = "rlpipe.rewards.matcher:load"


def factory_options(recipe: RegexReward) -> dict:
    """What `matcher.load` takes."""
    return {"pattern": recipe.pattern, "full_match": recipe.full_match, "group": recipe.group}


class Regex(Called):
    """1 if it matches (and its group equals the reference), else 0; each response with its own deadline."""

    def __init__(self, recipe: RegexReward, caller: Caller):
        super().__init__(recipe, caller)
        self._recipe = recipe

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        compares = self._recipe.group is not None
        answer = reference(group, self._recipe.answer_column) if compares else ""
        return self._each(group, answer, lambda answer, text: (text, answer), self._recipe.deadline, allowance)
