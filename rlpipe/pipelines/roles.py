"""The roles of a stage, as a runtime starts them."""

from typing import TYPE_CHECKING, Any

from rlpipe.models.load import ModelError, load_tokenizer, materialise
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.tasks import RlRecipe
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.roles import RoleSpec, Seat
from rlpipe.training.critic import Critic, CriticSpec
from rlpipe.training.distributed import Rank
from rlpipe.training.policy import Policy, PolicySpec
from rlpipe.training.reference import Reference, ReferenceSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

POLICY = "policy"
"""The name of the trained model: of its training role and of what the engines serve."""


def engines(stage: Stage, model_path: str) -> RoleSpec:
    """Rollout engines that serve the model at `model_path` as version 0."""
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
        seed=stage.recipe.seed,
        revision=model.revision if hub else None,
        trust_remote_code=model.trust_remote_code if hub else False,
    )
    count = 1 if stage.debug else rollout.engines
    return RoleSpec("engine", RolloutWorker, lambda seat: (spec,), count, rollout.resources, rollout.threads, "rollout")


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
        optimizer=train.optimizer,
        dtype=recipe.model.dtype,
        zero_stage=train.zero_stage,
        gradient_checkpointing=train.gradient_checkpointing,
        seed=recipe.seed,
        timeout_seconds=recipe.deadlines.train,
    )
    count = 1 if stage.debug else train.ranks
    return RoleSpec(POLICY, Policy, lambda seat: (spec, _rank(seat)), count, train.resources, train.threads, "train")


def reference(stage: Stage) -> RoleSpec:
    """The frozen model the policy is kept close to."""
    recipe = _rl(stage)
    spec = ReferenceSpec(recipe.model, stage.model_path, recipe.rollout.temperature, recipe.model.dtype)
    resources, threads = recipe.train.resources, recipe.train.threads
    return RoleSpec("reference", Reference, lambda seat: (spec, _rank(seat)), 1, resources, threads, "train")


def critic(stage: Stage) -> RoleSpec:
    """The value model's ranks."""
    recipe = _rl(stage)
    train, settings = recipe.train, recipe.critic
    model, path = recipe.model, stage.model_path
    if settings.model is not None:
        model, path = settings.model, materialise(settings.model, recipe.seed, stage.directory / "critic-base")
        _check_vocabulary(stage, load_tokenizer(model, path))
    spec = CriticSpec(
        model=model,
        path=path,
        total_steps=recipe.schedule.steps * train.minibatches * train.epochs,
        optimizer=settings.optimizer,
        dtype=model.dtype,
        zero_stage=settings.zero_stage,
        gradient_checkpointing=settings.gradient_checkpointing,
        value_clip=settings.value_clip,
        seed=recipe.seed,
        timeout_seconds=recipe.deadlines.train,
    )
    count, arguments = 1 if stage.debug else settings.ranks, lambda seat: (spec, _rank(seat))
    return RoleSpec("critic", Critic, arguments, count, settings.resources, settings.threads, "critic")


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


def _rank(seat: Seat) -> Rank:
    return Rank(seat.index, seat.count, seat.local_index, seat.address, seat.port)
