"""Does a response keep to a row of tags, `<think>…</think><answer>…</answer>`? Plain search: nothing here can hang."""

from collections.abc import Sequence

from rlpipe.data.flow import Group
from rlpipe.recipe.rewards import FormatReward
from rlpipe.rewards.reward import Allowance, Component


class Format:
    """1 if each tag is opened and closed once, in order, with nothing but spaces outside; else 0."""

    def __init__(self, recipe: FormatReward):
        self.name = recipe.name
        self.weight = recipe.weight
        self._tags = tuple(recipe.tags)

    def start(self) -> None: ...

    def ready(self) -> None: ...

    def score(self, group: Group, allowance: Allowance) -> list[Component]:
        return [float(follows(completion, self._tags)) for completion in group.completions]

    def close(self) -> None: ...


def follows(text: str, tags: Sequence[str]) -> bool:
    """Whether the text is these tags in order, each written once."""
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        before, _, rest = text.partition(opening)
        content, closed, text = rest.partition(closing)
        if before.strip() or not closed or _has_any(content, tags):
            return False
    return not text.strip()


def _has_any(content: str, tags: Sequence[str]) -> bool:
    return any(mark in content for tag in tags for mark in (f"<{tag}>", f"</{tag}>"))
