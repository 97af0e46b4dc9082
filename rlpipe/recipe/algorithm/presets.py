"""The online algorithms by name: each the setting of its paper. Where the paper is silent, or its authors' code or TRL
says otherwise, the docstring says what was taken."""

from typing import Annotated, Literal

from pydantic import Field

from rlpipe.recipe.algorithm.advantage import (
    Advantage,
    GaeAdvantage,
    GroupAdvantage,
    ReinforcePlusPlusAdvantage,
    ReinforcePlusPlusBaselineAdvantage,
    RlooAdvantage,
)
from rlpipe.recipe.algorithm.kl import Kl
from rlpipe.recipe.algorithm.loss import Aggregation, CispoLoss, GspoLoss, Loss, PolicyGradientLoss, PpoClipLoss
from rlpipe.recipe.algorithm.preset import Dynamic, GroupSize, KlPenalty, Preset, ShapingList
from rlpipe.recipe.algorithm.shaping import DynamicSampling, OverlongPenalty


class Ppo(Preset):
    """Proximal Policy Optimization with a critic, as for InstructGPT (Ouyang et al. 2022, arXiv 2203.02155).

    Clip 0.2, a KL penalty of 0.02 per token in the reward and no discount are that paper's (appendix C.4); lambda 0.95
    and whitened advantages are those of github.com/openai/lm-human-preferences, on which it builds. TRL takes 0.05.
    """

    name: Literal["ppo"]
    """A critic's advantages, PPO's clipped loss, a KL penalty in the reward."""
    group_size: GroupSize = 1
    advantage: Advantage = GaeAdvantage()
    kl: KlPenalty = Kl(placement="reward", coefficient=0.02, estimator="k1")


class Grpo(Preset):
    """Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300), as the field runs it now.

    Clip 0.2 is PPO's; the paper does not say its own. It has a KL penalty of 0.04 (k3), 64 responses and the mean over
    each response first; here, as by default in TRL, there is no penalty, 8 responses, and the mean is over tokens.
    """

    name: Literal["grpo"]
    """Group-relative advantages, PPO's clipped loss."""


class DrGrpo(Preset):
    """GRPO done right (Liu et al. 2025, arXiv 2503.20783): no division by the group's spread or the response's length.

    Clip 0.2, no KL and 8 responses are the paper's.
    """

    name: Literal["dr_grpo"]
    """GRPO without its division by spread and length."""
    advantage: Advantage = GroupAdvantage(scale_by_std=False)
    aggregation: Aggregation = "constant"


class Dapo(Preset):
    """Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476).

    Clip 0.2 and 0.28, 16 responses, no KL, token mean, overlong buffer a fifth of the longest response: section 4.1.
    Ten rounds of replacements are `max_num_gen_batches` of the authors' scripts.
    """

    name: Literal["dapo"]
    """GRPO with a higher upper clip, a price for length, and no groups without signal."""
    group_size: GroupSize = 16
    loss: Loss = PpoClipLoss(clip_high=0.28)
    shaping: ShapingList = [OverlongPenalty()]
    dynamic_sampling: Dynamic = DynamicSampling()


class Rloo(Preset):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740): the response is one action.

    4 responses, no ratio and no clip, and the KL in the reward are the paper's; the coefficient 0.05 is TRL's, as the
    paper's differ by data set. TRL keeps a clipped ratio, which with one update per batch is the same.
    """

    name: Literal["rloo"]
    """Leave-one-out advantages, the plain policy gradient, a KL penalty in the reward."""
    group_size: GroupSize = 4
    advantage: Advantage = RlooAdvantage()
    loss: Loss = PolicyGradientLoss()
    aggregation: Aggregation = "sequence_mean_token_sum"
    kl: KlPenalty = Kl(placement="reward", coefficient=0.05, estimator="k1")


class ReinforcePlusPlus(Preset):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): one response per prompt, normalised over the step.

    PPO's clip and k1 in the reward are the paper's; its coefficient 0.01 is the default of the authors' OpenRLHF.
    """

    name: Literal["reinforce++"]
    """Returns normalised over the step, PPO's clipped loss, a KL penalty in the reward."""
    group_size: GroupSize = 1
    advantage: Advantage = ReinforcePlusPlusAdvantage()
    kl: KlPenalty = Kl(placement="reward", coefficient=0.01, estimator="k1")


class ReinforcePlusPlusBaseline(Preset):
    """REINFORCE++ with the group's mean as baseline (Hu et al. 2025, arXiv 2501.03262).

    k2 in the loss is the paper's; its coefficient 1e-4 is that of the authors' ProRL v2 script in OpenRLHF.
    """

    name: Literal["reinforce++_baseline"]
    """Group-relative advantages normalised over the step, PPO's clipped loss, a KL penalty in the loss."""
    advantage: Advantage = ReinforcePlusPlusBaselineAdvantage()
    kl: KlPenalty = Kl(coefficient=1e-4, estimator="k2")


class Gspo(Preset):
    """Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071).

    Clip 3e-4 and 4e-4 are the paper's (section 5.1), and so is the mean over sequences (eq. 5). It names no KL penalty;
    its authors run without.
    """

    name: Literal["gspo"]
    """Group-relative advantages, the clipped ratio of whole responses."""
    loss: Loss = GspoLoss()
    aggregation: Aggregation = "sequence_mean"


class Cispo(Preset):
    """Clipped IS-weight Policy Optimization (MiniMax-M1, Chen et al. 2025, arXiv 2506.13585).

    No lower bound, no KL and the token mean are the paper's. It does not give the upper bound: a weight of at most 5 is
    ScaleRL's (Khatri et al. 2025, arXiv 2510.13786), which TRL recommends as `epsilon_high`.
    """

    name: Literal["cispo"]
    """Group-relative advantages, the policy gradient with a clipped weight."""
    loss: Loss = CispoLoss()


Algorithm = Annotated[
    Ppo | Grpo | DrGrpo | Dapo | Rloo | ReinforcePlusPlus | ReinforcePlusPlusBaseline | Gspo | Cispo,
    Field(discriminator="name"),
]
"""The algorithms of `task: rl`, told apart by `name`."""

PRESETS: dict[str, type[Preset]] = {
    "ppo": Ppo,
    "grpo": Grpo,
    "dr_grpo": DrGrpo,
    "dapo": Dapo,
    "rloo": Rloo,
    "reinforce++": ReinforcePlusPlus,
    "reinforce++_baseline": ReinforcePlusPlusBaseline,
    "gspo": Gspo,
    "cispo": Cispo,
}
