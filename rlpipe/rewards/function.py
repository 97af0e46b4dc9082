"""A user's reward function with TRL's signature.

    def concise(prompts, completions, completion_ids, answer, **columns) -> list[float | None]:
        return [1.0 if len(text) < 80 else 0.0 for text in completions]

The function is called with keyword lists of equal length, one entry per response of one group: `prompts` and
`completions` (always strings: the rendered prompt and the decoded response, also for chat models), `completion_ids`
(token ids), and every further column of the row. With an environment a completion is the policy's last turn, and
`conversations` has all turns, each as a list of {role, content}. One without `**columns` gets just the arguments it
names; an async one is awaited. `None` means "does not apply to this row". A call that fails is repeated row by row, so
that only the rows at fault fail: a function that compares the responses of a group should return, not raise.
"""

from pathlib import Path

from rlpipe.data.flow import Failure, Group
from rlpipe.recipe.rewards import PythonReward
from rlpipe.rewards.called import Called
from rlpipe.rewards.killable import Caller
from rlpipe.rewards.reward import Allowance, Component

FACTORY = "rlpipe.rewards.user_code:load"
RESERVED = ("prompts", "completions", "completion_ids", "conversations", "prompt", "completion")


def factory_options(recipe: PythonReward, base_dir: Path) -> dict:
    """What `user_code.load` takes."""
    return {"function": recipe.function, "base_dir": str(base_dir), "options": recipe.options}


class Function(Called):
    """Calls the function for a group at once, and row by row if that fails."""

    def __init__(self, recipe: PythonReward, caller: Caller):
        super().__init__(recipe, caller)
        self._function = recipe.function
        self._deadline = recipe.deadline

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        rows = range(len(group.completions))
        # Half of what is left at most: a hanging batch must leave time to find the row that hangs.
        limit = min(self._deadline, allowance.left / 2) if len(rows) > 1 else self._deadline
        answers = self._caller.call(arguments(group, rows), limit, allowance)
        if isinstance(answers, Failure):
            return [self._score_row(group, row, len(rows) - row, allowance) for row in rows]
        return [self._component(answer) for answer in answers]

    def _score_row(self, group: Group, row: int, rows_left: int, allowance: Allowance) -> Component:
        answer = self._caller.call(arguments(group, [row]), self._deadline, allowance, rows_left)
        return self._named(answer) if isinstance(answer, Failure) else self._component(answer[0])

    def _component(self, answer: float | str | None) -> Component:
        return self._named(Failure("not_a_number", answer)) if isinstance(answer, str) else answer

    def _named(self, failure: Failure) -> Failure:
        """With the function's name, and the kind told apart where the message tells it."""
        kind = "wrong_length" if failure.message.startswith("WrongLength") else failure.kind
        return Failure(kind, f"{self._function}: {failure.message}")


def arguments(group: Group, rows) -> dict[str, list]:
    """TRL's keyword lists for these responses of the group."""
    columns = {k: [v] * len(rows) for k, v in group.prompt.columns.items() if k not in RESERVED}
    columns |= conversations(group, rows)
    return columns | {
        "prompts": [group.prompt.text] * len(rows),
        "completions": [group.completions[row] for row in rows],
        "completion_ids": [group.trajectories[row].response_tokens.tolist() for row in rows],
    }


def conversations(group: Group, rows) -> dict[str, list]:
    """Every turn of these responses in TRL's form; nothing without an environment."""
    if not group.conversations:
        return {}
    spoken = [group.conversations[row] for row in rows]
    return {"conversations": [[{"role": said.role, "content": said.text} for said in turns] for turns in spoken]}
