"""The online algorithms by name: each the setting of its paper. Docstrings say which numbers are the paper's, with the
section, and which are those of a reference implementation where the paper has none."""

from typing import Annotated, Literal

from pydantic import Field

from rlpipe.recipe.algorithm.advantage import (
    Advantage,
    DpoAdvantage,
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

    The paper's (appendix C.4): clip 0.2, a KL penalty of 0.02 in the reward of each token, no discount, temperature 1,
    and a critic that starts as the reward model. Its 8 optimizer steps per batch are `train.minibatches`, and its
    pretraining gradients are not there. Lambda 0.95 and whitened advantages are those of its authors' earlier code,
    github.com/openai/lm-human-preferences, which also whitens rewards (here `shaping`). TRL takes a KL of 0.05.
    """

    name: Literal["ppo"]
    """A critic's advantages, PPO's clipped loss, a KL penalty in the reward."""
    group_size: GroupSize = 1
    advantage: Advantage = GaeAdvantage()
    kl: KlPenalty = Kl(placement="reward", coefficient=0.02, estimator="k1")


class Grpo(Preset):
    """Group Relative Policy Optimization (Shao et al. 2024, arXiv 2402.03300), as the field runs it now.

    The paper has a KL penalty of 0.04, 64 responses and a single update per batch (section 4.2), k3 in the loss (eq. 4)
    and the mean over each response first (eq. 3); it does not say its clip. Here, as by default in TRL, there is no
    penalty, 8 responses, clip 0.2 (PPO's), and the mean is over tokens, as in DAPO and by default in verl.
    """

    name: Literal["grpo"]
    """Group-relative advantages, PPO's clipped loss."""


class DrGrpo(Preset):
    """GRPO done right (Liu et al. 2025, arXiv 2503.20783): no division by the group's spread or the response's length.

    Clip 0.2, no KL, 8 responses and one update per batch are the paper's (table 6) and its script's. The constant that
    it divides by is its longest response, 3000 tokens; here `rollout.max_new_tokens`.
    """

    name: Literal["dr_grpo"]
    """GRPO without its division by spread and length."""
    advantage: Advantage = GroupAdvantage(scale_by_std=False)
    aggregation: Aggregation = "constant"


class Dapo(Preset):
    """Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476).

    The paper's: clip 0.2 and 0.28, 16 responses, and an overlong buffer of 4096 of 20480 tokens (section 4.1), no KL
    (2.3), the token mean (3.3). Ten rounds are `max_num_gen_batches` of the script that reproduces it with verl; there
    they count the first sampling too, draw three times the prompts needed, and running out of them is an error.
    """

    name: Literal["dapo"]
    """GRPO with a higher upper clip, a price for length, and no groups without signal."""
    group_size: GroupSize = 16
    loss: Loss = PpoClipLoss(clip_high=0.28)
    shaping: ShapingList = [OverlongPenalty()]
    dynamic_sampling: Dynamic = DynamicSampling()


class Rloo(Preset):
    """REINFORCE with a leave-one-out baseline (Ahmadian et al. 2024, arXiv 2402.14740): the response is one action.

    No ratio, no clip, the KL in the reward and up to 4 responses (it compares 2 and 4) are the paper's. Its coefficient
    is 0.03 for TL;DR summaries and 0.10 for HH (appendix C); 0.05 is TRL's, whose default is 2 responses. TRL keeps a
    clipped ratio, which with one update per batch is the same.
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

    PPO's clip, k1 in the reward of each token and no discount are the paper's. Its coefficient differs by version and
    experiment; 0.01 is the default of the authors' OpenRLHF, as is clip 0.2.
    """

    name: Literal["reinforce++"]
    """Returns normalised over the step, PPO's clipped loss, a KL penalty in the reward."""
    group_size: GroupSize = 1
    advantage: Advantage = ReinforcePlusPlusAdvantage()
    kl: KlPenalty = Kl(placement="reward", coefficient=0.01, estimator="k1")


class ReinforcePlusPlusBaseline(Preset):
    """REINFORCE++ with the group's mean as baseline (Hu et al. 2025, arXiv 2501.03262).

    k2 in the loss is the paper's; its coefficient 1e-4 is that of the authors' ProRL v2 script in OpenRLHF, which also
    clips at 0.27 above, samples 16 responses and replaces groups without signal. Their plain script takes 1e-5 and 8.
    """

    name: Literal["reinforce++_baseline"]
    """Group-relative advantages normalised over the step, PPO's clipped loss, a KL penalty in the loss."""
    advantage: Advantage = ReinforcePlusPlusBaselineAdvantage()
    kl: KlPenalty = Kl(coefficient=1e-4, estimator="k2")


class Gspo(Preset):
    """Group Sequence Policy Optimization (Zheng et al. 2025, arXiv 2507.18071).

    The paper's: clip 3e-4 and 4e-4, four optimizer steps per batch (section 5.1; `train.minibatches` here, with one of
    which no ratio is ever clipped), the mean over sequences (eq. 5), no KL penalty. 8 responses are GRPO's here; verl's
    script takes 16.
    """

    name: Literal["gspo"]
    """Group-relative advantages, the clipped ratio of whole responses."""
    loss: Loss = GspoLoss()
    aggregation: Aggregation = "sequence_mean"


class Cispo(Preset):
    """Clipped IS-weight Policy Optimization (MiniMax-M1, Chen et al. 2025, arXiv 2506.13585).

    No lower bound, no KL and the token mean are the paper's (eq. 4, 5). It does not give the upper bound: a weight of
    at most 5 is ScaleRL's (Khatri et al. 2025, arXiv 2510.13786) and TRL's `epsilon_high` for it, with 16 responses;
    verl's example has 1.2. 8 responses are GRPO's here.
    """

    name: Literal["cispo"]
    """Group-relative advantages, the policy gradient with a clipped weight."""
    loss: Loss = CispoLoss()


class OnlineDpo(Preset):
    """Online DPO (Guo et al. 2024, arXiv 2402.04792): DPO on pairs of the policy's own samples, ranked as they come.

    Two responses per prompt are the paper's; of more, the best and the worst make the pair. What annotates them is the
    mix of rewards: a rule, a reward model, or a judge behind `kind: http`. beta 0.1 is TRL's default.
    """

    name: Literal["online_dpo"]
    """DPO's loss on the best and the worst of each group."""
    group_size: GroupSize = 2
    advantage: Advantage = DpoAdvantage()
    loss: Loss = PolicyGradientLoss()
    aggregation: Aggregation = "sequence_mean_token_sum"


Algorithm = Annotated[
    Ppo | Grpo | DrGrpo | Dapo | Rloo | ReinforcePlusPlus | ReinforcePlusPlusBaseline | Gspo | Cispo | OnlineDpo,
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
    "online_dpo": OnlineDpo,
}
