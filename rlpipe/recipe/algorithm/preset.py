"""What every online algorithm is put together from."""

from typing import Annotated

from pydantic import BaseModel, Field, NonNegativeFloat, PositiveInt, model_validator

from rlpipe.recipe.algorithm.advantage import RELATIVE_TO_GROUP, Advantage, GroupAdvantage
from rlpipe.recipe.algorithm.correction import Correction, NoCorrection
from rlpipe.recipe.algorithm.kl import Kl
from rlpipe.recipe.algorithm.loss import Aggregation, Loss, PpoClipLoss
from rlpipe.recipe.algorithm.shaping import DynamicSampling, Shaping
from rlpipe.recipe.base import Strict

# In annotations, not below the fields: a preset that gives a part another default keeps the words.
GroupSize = Annotated[PositiveInt, Field(description="Responses sampled per prompt.")]
KlPenalty = Annotated[Kl, Field(description="The penalty for leaving the frozen reference.")]
ShapingList = Annotated[
    list[Shaping], Field(description="What is done to rewards before they become advantages, in this order.")
]
Dynamic = Annotated[
    DynamicSampling | None, Field(description="Replaces groups whose rewards are all equal; null keeps them.")
]
Entropy = Annotated[
    NonNegativeFloat, Field(description="Weight of the bonus for entropy in the loss, per nat and token.")
]


class Preset(Strict):
    """An online algorithm: its parts, each with a default. A preset changes defaults, and nothing else.

    A section of a part is laid over the preset's default of the same kind: `loss: {clip_high: 0.3}` changes one number.
    A section of another kind replaces it.
    """

    name: str
    group_size: GroupSize = 8
    advantage: Advantage = GroupAdvantage()
    loss: Loss = PpoClipLoss()
    aggregation: Aggregation = "token_mean"
    kl: KlPenalty = Kl()
    correction: Correction = NoCorrection()
    shaping: ShapingList = []
    dynamic_sampling: Dynamic = None
    entropy_coefficient: Entropy = 0.0

    @model_validator(mode="before")
    @classmethod
    def _over_the_preset(cls, given: object) -> object:
        return _laid_over(cls.defaults(), given) if isinstance(given, dict) else given

    @model_validator(mode="after")
    def _has_what_it_compares(self) -> "Preset":
        kind, alone = self.advantage.kind, self.group_size == 1
        if alone and kind in RELATIVE_TO_GROUP:
            raise ValueError(
                f"group_size=1 leaves nothing to compare with for advantage.kind={kind}: sample 2 or more per prompt, "
                "or take an advantage that needs no group (gae, reinforce++, return)"
            )
        if self.dynamic_sampling and (alone or kind not in RELATIVE_TO_GROUP):
            raise ValueError(
                f"dynamic_sampling replaces groups whose rewards are all equal, but with group_size={self.group_size} "
                f"and advantage.kind={kind} they are learned from: set it to null"
            )
        return self

    @model_validator(mode="after")
    def _penalty_pulls(self) -> "Preset":
        kl = self.kl
        if kl.coefficient == 0 and kl.controller.kind == "adaptive":
            raise ValueError(
                "kl.coefficient=0.0 stays 0 whatever kl.controller.kind=adaptive makes of it: give it a value to begin "
                "with"
            )
        if kl.coefficient > 0 and kl.placement == "loss" and kl.estimator == "k1":
            raise ValueError(
                "kl.estimator=k1 in the loss has a gradient of mean 0, which pulls nowhere: take k2 or k3, or "
                "kl.placement=reward"
            )
        return self

    @model_validator(mode="after")
    def _pairs_are_learned_from_exactly(self) -> "Preset":
        if self.advantage.kind != "dpo":
            return self
        needed = {"loss.kind": "policy_gradient", "aggregation": "sequence_mean_token_sum", "correction.kind": "none"}
        found = {"loss.kind": self.loss.kind, "aggregation": self.aggregation, "correction.kind": self.correction.kind}
        for key, value in needed.items():
            if found[key] != value:
                raise ValueError(
                    f"{key}={found[key]} would make another gradient than DPO's of advantage.kind=dpo; leave it out, "
                    f"or set it to {value}"
                )
        if self.kl.coefficient > 0 and self.kl.placement == "reward":
            raise ValueError(
                "kl.placement=reward with advantage.kind=dpo: pairs are compared by their rewards, and the reference "
                "is in their loss already; raise advantage.beta, or set kl.placement to loss"
            )
        return self

    @property
    def needs_reference(self) -> bool:
        """Whether there is a frozen model that the policy is compared with."""
        return self.kl.coefficient > 0 or self.advantage.kind == "dpo"

    @classmethod
    def defaults(cls) -> dict[str, object]:
        """The default of every part."""
        return {name: field.default for name, field in cls.model_fields.items() if not field.is_required()}


def _laid_over(defaults: dict[str, object], given: dict) -> dict:
    """`given`, its sections completed from those defaults that are of the same kind."""
    return given | {key: _completed(defaults.get(key), value) for key, value in given.items()}


def _completed(default: object, given: object) -> object:
    if not (isinstance(default, BaseModel) and isinstance(given, dict)):
        return given
    own = {name: getattr(default, name) for name in type(default).model_fields}
    same = given.get("kind", own.get("kind")) == own.get("kind")
    return own | _laid_over(own, given) if same else given
