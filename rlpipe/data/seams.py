"""Where a prompt ends and its response begins, in tokens."""

import logging
from itertools import takewhile

logger = logging.getLogger(__name__)


def common_prefix(prompt: list[int], whole: list[int]) -> int:
    """How many tokens the two begin with alike: where the response begins, if `whole` is both."""
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(prompt, whole, strict=False)))


def warn_of_seams(origins: list[str], prompts: list[list[int]], starts: list[int]) -> None:
    """Tell of prompts whose last tokens are others once a response follows; `starts` is where the responses begin."""
    odd = [origin for origin, p, start in zip(origins, prompts, starts, strict=True) if start < len(p)]
    if odd:
        logger.warning(
            "%d of %d prompts tokenise differently alone than followed by their completion (first: %s): the model "
            "trains on another context than it sees at generation. End prompts on a token boundary, or use a chat "
            "template that renders the prompt the same way in both cases.",
            len(odd),
            len(origins),
            odd[0],
        )
