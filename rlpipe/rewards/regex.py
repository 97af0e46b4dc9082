"""A regular expression, looked for in a process that can be killed."""

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import RegexReward
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component, reference

FACTORY = "rlpipe.rewards.matcher:load"


def factory_options(recipe: RegexReward) -> dict:
    """What `matcher.load` takes."""
    return {"pattern": recipe.pattern, "full_match": recipe.full_match, "group": recipe.group}


class Regex:
    """1 if it matches (and its group equals the reference), else 0; each response with its own deadline."""

    def __init__(self, recipe: RegexReward, caller: Caller):
        self.name = recipe.name
        self.weight = recipe.weight
        self._recipe = recipe
        self._caller = caller
        self.start, self.ready, self.close = caller.start, caller.ready, caller.close

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        compares = self._recipe.group is not None
        answer = reference(group, self._recipe.answer_column) if compares else ""
        rows = len(group.completions)
        if isinstance(answer, Failure):
            return [answer] * rows
        return [
            self._caller.call((completion, answer), self._recipe.deadline, allowance, rows - row)
            for row, completion in enumerate(group.completions)
        ]
