"""The rewards of a stage: the reward models that a runtime starts as roles, and the reward stage that asks them."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpipe.models.load import ModelError, context_length, load_tokenizer, refuse_pickled
from rlpipe.pipelines import judges, roles
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.rewards import CodeReward, ModelReward, RewardMix
from rlpipe.recipe.tasks import RewardModelRecipe
from rlpipe.rewards.encoding import encoder
from rlpipe.rewards.judging.usage import Usage
from rlpipe.rewards.model import Scorer
from rlpipe.rewards.stage import RewardStage, build
from rlpipe.runtime.handle import Handle
from rlpipe.runtime.roles import RoleSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.reward_model import RewardModel, RewardModelSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def specs(stage: Stage) -> list[RoleSpec]:
    """One role per reward model and judge of the mix."""
    mix = mix_of(stage)
    return [_spec(stage, key, reward) for key, reward in _model_rewards(stage)] + (
        judges.specs(stage, mix) if mix else []
    )


def scoring(stage: Stage, mix: RewardMix | None, handles: Mapping[str, list[Handle[Any]]]) -> RewardStage:
    """The stage's rewards, over the handles of the started roles. Notes how reward models get their tokens, and what
    keeps programs where they belong."""
    scorers = {reward.name: _scorer(stage, key, reward, handles) for key, reward in _model_rewards(stage)}
    for reward in mix.mix if mix else ():
        if isinstance(reward, CodeReward) and reward.isolation == "bubblewrap":
            stage.events.note(f"reward `{reward.name}`: bubblewrap keeps the programs it runs from everything else.")
    judging = judges.judged(stage, mix, handles) if mix else {}
    return build(mix, Path(), stage.recipe.deadlines, stage.debug, scorers, judging, partial(_tell, stage))


def _tell(stage: Stage, name: str, usage: Usage) -> None:
    """Into the run's events, which outlast this process."""
    stage.events.emit("usage", reward=name, **asdict(usage))


def mix_of(stage: Stage) -> RewardMix | None:
    """The rewards of a stage's recipe, where it has any."""
    return None if isinstance(stage.recipe, RewardModelRecipe) else stage.recipe.rewards


def _model_rewards(stage: Stage) -> list[tuple[str, ModelReward]]:
    """With the recipe key of each."""
    mix = mix_of(stage)
    rewards = enumerate(mix.mix if mix else [])
    return [(f"rewards.mix.{i}", reward) for i, reward in rewards if isinstance(reward, ModelReward)]


def _spec(stage: Stage, key: str, reward: ModelReward) -> RoleSpec:
    with _naming(key):
        refuse_pickled(Path(reward.path).expanduser())
    spec = RewardModelSpec(
        path=reward.path,
        pad_token_id=_tokenizer(key, reward).pad_token_id,
        dtype=reward.dtype,
        tokens_per_batch=reward.tokens_per_batch,
        sharding=roles.frozen_sharding(reward),
        trust_remote_code=reward.trust_remote_code,
        timeout_seconds=stage.recipe.deadlines.train,
    )
    role = roles.placed(stage, _role(reward), RewardModel, lambda seat: (spec, roles.rank_of(seat)), reward, key)
    role = replace(role, secrets=roles.hub_keys(reward.path))
    return replace(role, again=(spec, Rank())) if _alone(reward) else role


def _scorer(stage: Stage, key: str, reward: ModelReward, handles: Mapping[str, list[Handle[Any]]]) -> Scorer:
    encode, says = encoder(reward.name, stage.tokenizer, _tokenizer(key, reward), stage.records.chat)
    stage.events.note(says)
    with _naming(key):
        limit = context_length(_model(reward), reward.path)
    ranks = handles[_role(reward)]
    replicas = [ranks] if reward.zero_stage == 3 else [[rank] for rank in ranks]
    replaced_within = stage.recipe.deadlines if _alone(reward) else None
    length = min(limit, reward.max_length or limit)
    return Scorer(replicas, encode, length, replaced_within, stage.recipe.deadlines.heartbeat)


def _alone(reward: ModelReward) -> bool:
    """Whether a replica is one process that does nothing else."""
    return reward.zero_stage != 3 and not reward.share


def _role(reward: ModelReward) -> str:
    return f"reward/{reward.name}"


def _tokenizer(key: str, reward: ModelReward) -> "PreTrainedTokenizerBase":
    with _naming(key):
        return load_tokenizer(_model(reward), reward.path)


def _model(reward: ModelReward) -> PretrainedModel:
    return PretrainedModel(path=reward.path, trust_remote_code=reward.trust_remote_code)


@contextmanager
def _naming(key: str) -> Iterator[None]:
    """Errors of loading name the line of the reward, not that of the policy's model."""
    try:
        yield
    except ModelError as error:
        raise ModelError(
            re.sub(r"\bmodel\.(path|trust_remote_code)", rf"{key}.\1", str(error)).replace(
                "model.revision", "the branch"
            )
        ) from error
