"""How rewards become advantages. Each kind's equation and paper stand at its function in `rlpipe/algorithms`."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from rlpipe.recipe.base import Strict

Discount = Annotated[float, Field(ge=0, le=1)]


class GaeAdvantage(Strict):
    """Generalised advantage estimation, with a critic (Schulman et al. 2015, arXiv 1506.02438)."""

    kind: Literal["gae"] = "gae"
    """Token by token, against what the critic expected."""
    gamma: Discount = 1.0
    """Discount per token."""
    lam: Discount = 0.95
    """1 trusts the rewards alone (much variance), 0 the critic alone (its bias)."""
    whiten: bool = True
    """Bring the step's advantages to mean 0 and standard deviation 1."""


class GroupAdvantage(Strict):
    """Distance from the mean of the group (GRPO, Shao et al. 2024, arXiv 2402.03300)."""

    kind: Literal["group"] = "group"
    """Against the mean of all responses to the prompt."""
    scale_by_std: bool = True
    """Divide by the group's standard deviation; Dr.GRPO does not."""


class RlooAdvantage(Strict):
    """Distance from the mean of the others of the group (RLOO, Ahmadian et al. 2024, arXiv 2402.14740)."""

    kind: Literal["rloo"] = "rloo"
    """Against the mean of the other responses to the prompt."""


class ReinforcePlusPlusAdvantage(Strict):
    """The return, normalised over all tokens of the step (Hu et al. 2025, arXiv 2501.03262)."""

    kind: Literal["reinforce++"] = "reinforce++"
    """Against the mean of the step."""
    gamma: Discount = 1.0
    """Discount per token."""


class ReinforcePlusPlusBaselineAdvantage(Strict):
    """Distance from the group's mean, normalised over the step (Hu et al. 2025, arXiv 2501.03262)."""

    kind: Literal["reinforce++_baseline"] = "reinforce++_baseline"
    """Against the mean of all responses to the prompt, in standard deviations of the step."""


class ReturnAdvantage(Strict):
    """The plain return, without a baseline."""

    kind: Literal["return"] = "return"
    """The reward that is still to come."""
    gamma: Discount = 1.0
    """Discount per token."""
    whiten: bool = False
    """Bring the step's advantages to mean 0 and standard deviation 1."""


class DpoAdvantage(Strict):
    """Online DPO: the best answer against the worst (Rafailov et al. 2023, arXiv 2305.18290; Guo et al. 2024,
    arXiv 2402.04792)."""

    kind: Literal["dpo"] = "dpo"
    """The pair's margin in log-ratios to the reference, as DPO's loss weighs it."""
    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; the regularisation τ of ipo."""
    loss_type: Literal["sigmoid", "ipo"] = "sigmoid"
    """DPO's loss, or IPO's (Azar et al. 2023, arXiv 2310.12036)."""


Advantage = Annotated[
    GaeAdvantage
    | GroupAdvantage
    | RlooAdvantage
    | ReinforcePlusPlusAdvantage
    | ReinforcePlusPlusBaselineAdvantage
    | ReturnAdvantage
    | DpoAdvantage,
    Field(discriminator="kind", description="How rewards become advantages."),
]

RELATIVE_TO_GROUP = ("group", "rloo", "reinforce++_baseline", "dpo")
"""Kinds that compare the responses to one prompt: of a group of one they learn nothing."""
