"""The roles of a stage, as a runtime starts them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpipe.models.load import ModelError, load_tokenizer, materialise
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe import secrets
from rlpipe.recipe.critic import Critic as CriticSettings
from rlpipe.recipe.model import PretrainedModel, whole
from rlpipe.recipe.roles import FrozenRole, TrainedRole
from rlpipe.recipe.tasks import RlRecipe
from rlpipe.recipe.transport import Direct, direct_transport
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.roles import RoleSpec, Seat
from rlpipe.training.critic import Critic, CriticSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.policy import Policy, PolicySpec
from rlpipe.training.reference import Reference, ReferenceSpec
from rlpipe.training.sharding import Sharding

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLICY = "policy"
"""The name of the trained model: of its training role and of what the engines serve."""


def engines(stage: Stage, model_path: str, adapter: Path | None = None, lora_rank: int | None = None) -> RoleSpec:
    """Rollout engines that serve the model at `model_path` as version 0, or wait for an adapter on it: that of an RL
    task, or one of `lora_rank` at most. The `adapter` of a folder is served with it, and stays as it is."""
    rollout, model = stage.recipe.rollout, stage.recipe.model
    hub = isinstance(model, PretrainedModel) and model_path == model.path
    spec = EngineSpec(
        engine=rollout.engine,
        model=model_path,
        dtype=model.dtype,
        eos_token_ids=stage.stop_token_ids,
        version=0,
        max_model_len=rollout.max_model_len,
        max_num_seqs=rollout.max_num_seqs,
        kv_cache_gib=rollout.kv_cache_gib,
        gpu_memory_utilization=rollout.gpu_memory_utilization,
        tensor_parallel=rollout.tensor_parallel,
        transport=_direct_transport(stage),
        sleeps=_colocated(stage),
        seed=stage.recipe.seed,
        lora_rank=lora_rank or _served_rank(stage),
        adapter=str(adapter) if adapter else None,
        revision=model.revision if hub else None,
        trust_remote_code=isinstance(model, PretrainedModel) and model.trust_remote_code,
    )
    count = 1 if stage.debug else rollout.engines
    # One that takes another's place serves nothing before it has what the others were published.
    again = replace(spec, version=None) if isinstance(stage.recipe, RlRecipe) else spec
    return RoleSpec(
        "engine",
        RolloutWorker,
        lambda seat: (spec,),
        count,
        rollout.resources,
        rollout.threads,
        "rollout",
        again=(again,),
        at_least=rollout.min_engines,
        nodes=rollout.nodes,
        gpus=rollout.tensor_parallel,
        beside=POLICY if _colocated(stage) else None,
        secrets=hub_keys(model_path),
    )


def hub_keys(path: str) -> tuple[str, ...]:
    """The keys that a process needs which loads the model from there: none for a folder."""
    return () if Path(path).expanduser().is_dir() else secrets.HUB


def _direct_transport(stage: Stage) -> Direct | None:
    return direct_transport(stage.recipe) if isinstance(stage.recipe, RlRecipe) and not stage.debug else None


def _colocated(stage: Stage) -> bool:
    return isinstance(stage.recipe, RlRecipe) and stage.recipe.placement == "colocated"


def _served_rank(stage: Stage) -> int | None:
    """The rank of the adapter that the engines get; None where they get full weights."""
    recipe = stage.recipe
    if not isinstance(recipe, RlRecipe) or recipe.adapter is None or recipe.publishing.adapter == "merged":
        return None
    return recipe.adapter.r


def policy(stage: Stage) -> RoleSpec:
    """The trained model's ranks."""
    recipe = _rl(stage)
    train = recipe.train
    spec = PolicySpec(
        model=recipe.model,
        path=stage.model_path,
        algorithm=algorithm_settings(recipe),
        max_new_tokens=recipe.longest_response,
        temperature=recipe.rollout.temperature,
        total_steps=recipe.schedule.steps * train.minibatches * train.epochs,
        adapter=recipe.adapter,
        merge_adapter=recipe.publishing.adapter == "merged",
        lends_base=recipe.critic.share == "base",
        gives_way=_colocated(stage),
        optimizer=train.optimizer,
        dtype=recipe.model.dtype,
        sharding=_sharding(train),
        gradient_checkpointing=train.gradient_checkpointing,
        seed=recipe.seed,
        timeout_seconds=recipe.deadlines.train,
    )
    count = 1 if stage.debug else train.ranks
    return RoleSpec(
        POLICY,
        Policy,
        lambda seat: (spec, rank_of(seat)),
        count,
        train.resources,
        train.threads,
        "train",
        secrets=hub_keys(stage.model_path),
    )


def reference(stage: Stage) -> RoleSpec:
    """The frozen model the policy is kept close to."""
    recipe = _rl(stage)
    settings = recipe.reference
    spec = ReferenceSpec(
        model=recipe.model,
        path=stage.model_path,
        temperature=recipe.rollout.temperature,
        dtype=settings.dtype or recipe.model.dtype,
        sharding=frozen_sharding(settings),
        timeout_seconds=recipe.deadlines.train,
    )
    role = placed(stage, "reference", Reference, lambda seat: (spec, rank_of(seat)), settings, "reference")
    return replace(role, secrets=hub_keys(stage.model_path))


def critic(stage: Stage) -> RoleSpec:
    """The value model's ranks."""
    recipe = _rl(stage)
    train, settings = recipe.train, recipe.critic
    model, path = recipe.model if settings.adapter else whole(recipe.model), stage.model_path
    if settings.model is not None:
        model, path = settings.model, materialise(settings.model, recipe.seed, stage.directory / "critic-base")
        _check_vocabulary(stage, load_tokenizer(model, path))
    spec = CriticSpec(
        model=model,
        path=path,
        total_steps=recipe.schedule.steps * train.minibatches * train.epochs,
        adapter=settings.adapter,
        optimizer=settings.optimizer,
        dtype=settings.dtype or model.dtype,
        sharding=_sharding(settings),
        gradient_checkpointing=settings.gradient_checkpointing,
        value_clip=settings.value_clip,
        gives_way=_colocated(stage) and settings.share is not None,
        seed=recipe.seed,
        timeout_seconds=recipe.deadlines.train,
    )
    where = placed(stage, "critic", Critic, lambda seat: (spec, rank_of(seat)), settings, "critic")
    return replace(where, takes_host=settings.share == "base", secrets=hub_keys(path))


def placed(
    stage: Stage,
    name: str,
    role: type,
    arguments: Callable[[Seat], tuple[Any, ...]],
    settings: CriticSettings | FrozenRole,
    key: str,
) -> RoleSpec:
    """A role beside the policy, in processes of its own or in the policy's, as its section `key` says."""
    where = _rl(stage).train if settings.share else settings
    count = 1 if stage.debug else where.ranks
    host = POLICY if settings.share else None
    return RoleSpec(name, role, arguments, count, where.resources, where.threads, key, shares=host)


def frozen_sharding(settings: FrozenRole) -> Sharding:
    return Sharding(settings.zero_stage, offload_param=settings.offload_param)


def _sharding(settings: TrainedRole) -> Sharding:
    return Sharding(settings.zero_stage, settings.offload_optimizer, settings.offload_param)


def _check_vocabulary(stage: Stage, own: "PreTrainedTokenizerBase") -> None:
    if own.get_vocab() != stage.tokenizer.get_vocab():
        raise ModelError(
            f"critic.model: {own.name_or_path} has another vocabulary than the policy's model, whose tokens the critic "
            "judges one by one. Give a model with the same tokenizer, or leave critic.model out."
        )


def algorithm_settings(recipe: RlRecipe) -> dict[str, Any]:
    """What an `OnlineAlgorithm` is built from: the section without its name and what concerns sampling."""
    return recipe.algorithm.model_dump(exclude={"name", "group_size", "dynamic_sampling"})


def _rl(stage: Stage) -> RlRecipe:
    if not isinstance(stage.recipe, RlRecipe):
        raise TypeError(f"stage {stage.directory} is no RL task")
    return stage.recipe


def rank_of(seat: Seat) -> Rank:
    """Which rank a process of a training role is."""
    return Rank(seat.index, seat.count, seat.local_index, seat.address, seat.port)
