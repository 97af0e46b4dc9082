"""Prompts and the length of a model."""

import logging

from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.rollout import Rollout

logger = logging.getLogger(__name__)


def that_fit(prompts: list[Prompt], rollout: Rollout, stage: Stage) -> list[Prompt]:
    """Prompts that leave room for a whole response; says how many do not. Raises `DataError` if none does."""
    left = room(rollout, stage)
    fitting = [prompt for prompt in prompts if len(prompt.tokens) <= left]
    if len(fitting) < len(prompts):
        left_out = (
            f"{len(prompts) - len(fitting)} of {len(prompts)} prompts are longer than {left} tokens, which is what the "
            f"model's length leaves beside rollout.max_new_tokens={rollout.max_new_tokens}"
        )
        if not fitting:
            raise DataError(f"{left_out}. Lower rollout.max_new_tokens, or raise rollout.max_model_len.")
        logger.warning("%s; they are left out.", left_out)
    return fitting


def room(rollout: Rollout, stage: Stage) -> int:
    """Tokens that a whole response leaves to its prompt."""
    return longest(rollout, stage) - rollout.max_new_tokens


def longest(rollout: Rollout, stage: Stage) -> int:
    """Tokens of prompt and response together."""
    return min(rollout.max_model_len or stage.model_length, stage.model_length)
