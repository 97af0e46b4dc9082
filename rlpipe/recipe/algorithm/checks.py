"""What an algorithm asks of the rest of the recipe."""

from rlpipe.recipe.algorithm.preset import Preset


def check(algorithm: Preset, minibatches: int, epochs: int, longest_response: int) -> None:
    """Raises ValueError where the training or the sampling does not go with the algorithm."""
    if algorithm.advantage.kind == "dpo" and minibatches * epochs > 1:
        raise ValueError(
            f"train.minibatches={minibatches} and train.epochs={epochs} train several times on a batch, and "
            "algorithm.advantage.kind=dpo takes the margins of its pairs once per batch; set both to 1"
        )
    if algorithm.loss.kind == "policy_gradient" and minibatches * epochs > 1:
        raise ValueError(
            f"train.minibatches={minibatches} and train.epochs={epochs} train several times on a batch, which "
            "algorithm.loss.kind=policy_gradient cannot: it has no ratio. Set both to 1, or take ppo_clip"
        )
    for i, shaping in enumerate(algorithm.shaping):
        if shaping.kind == "overlong" and shaping.buffer != "auto" and shaping.buffer > longest_response:
            raise ValueError(
                f"algorithm.shaping.{i}.buffer={shaping.buffer} exceeds the longest response of {longest_response} "
                "tokens: every response would be punished; lower it or raise rollout.max_new_tokens"
            )
