"""What an algorithm asks of the rest of the recipe."""

from rlpipe.recipe.algorithm.preset import Preset


def check(algorithm: Preset, minibatches: int, epochs: int, max_new_tokens: int) -> None:
    """Raises ValueError where the training or the sampling does not go with the algorithm."""
    if algorithm.loss.kind == "policy_gradient" and minibatches * epochs > 1:
        raise ValueError(
            f"train.minibatches={minibatches} and train.epochs={epochs} train several times on a batch, which "
            "algorithm.loss.kind=policy_gradient cannot: it has no ratio. Set both to 1, or take ppo_clip"
        )
    for i, shaping in enumerate(algorithm.shaping):
        if shaping.kind == "overlong" and shaping.buffer != "auto" and shaping.buffer > max_new_tokens:
            raise ValueError(
                f"algorithm.shaping.{i}.buffer={shaping.buffer} exceeds rollout.max_new_tokens={max_new_tokens}: "
                "every response would be punished; lower the one or raise the other"
            )
