"""How long the sequences of a task are, and how many positions a micro-batch has."""

from dataclasses import dataclass

from rlpipe.recipe.tasks import KtoRecipe, OfflineRecipe, RlRecipe, SftRecipe

PROMPT = 512
"""Tokens of a prompt where nobody says."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tokens of the sequences of an RL task."""

    prompt: int
    response: int
    """The longest that the recipe allows, over all turns."""

    @property
    def whole(self) -> int:
        return self.prompt + self.response


def of_rl(recipe: RlRecipe, context: int, prompt: int | None) -> Lengths:
    """With a model of `context` tokens, and prompts of `prompt` where that is said; longer ones than fit are left out
    of a run."""
    longest = min(recipe.rollout.max_model_len or context, context)
    response = min(recipe.longest_response, longest - 1)
    room = max(1, longest - response)
    return Lengths(min(prompt or PROMPT, room), response)


def positions_of_rl(recipe: RlRecipe, lengths: Lengths) -> int:
    """Of the fullest micro-batch of a rank: the budget, or all that it gets of an optimizer step, or one long
    sequence."""
    mine = sequences_of_step(recipe) * lengths.whole
    return max(lengths.whole, min(recipe.train.tokens_per_micro_batch, mine))


def sequences_of_step(recipe: RlRecipe) -> int:
    """That a rank gets of one optimizer step, at the most."""
    groups = -(-recipe.schedule.prompts_per_step // recipe.train.minibatches)
    return -(-groups * recipe.algorithm.group_size // recipe.train.ranks)


def micro_batches_of_rl(recipe: RlRecipe, lengths: Lengths) -> int:
    """Of one optimizer step on one rank, where all sequences have the same length."""
    fitting = max(1, recipe.train.tokens_per_micro_batch // lengths.whole)
    return -(-sequences_of_step(recipe) // fitting)


def sequence_of_offline(recipe: OfflineRecipe, context: int) -> int:
    """Tokens of the longest sequence."""
    return min(recipe.train.max_length, context)


def sequences_per_record(recipe: OfflineRecipe) -> int:
    """Pairs have two sequences, which are computed together."""
    return 1 if isinstance(recipe, SftRecipe | KtoRecipe) else 2


def positions_of_offline(recipe: OfflineRecipe, context: int) -> int:
    """Of a micro-batch whose records are all of the greatest length."""
    records = recipe.train.per_device_train_batch_size * sequences_per_record(recipe)
    return records * sequence_of_offline(recipe, context)
