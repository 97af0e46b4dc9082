"""The judges of a stage: engines that a runtime starts as roles, and who asks them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rlpipe.data.flow import Prompt
from rlpipe.data.guidance import asked_of
from rlpipe.data.judge_questions import transcript
from rlpipe.data.judge_template import Template, load
from rlpipe.models.load import context_length, load_tokenizer
from rlpipe.pipelines import roles
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.constitution import draw, read
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.judging import EngineJudge
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.rewards import RewardMix
from rlpipe.rewards.fleet import Fleet
from rlpipe.rewards.judging.endpoint import Endpoint
from rlpipe.rewards.judging.judged import Draw, Drawn, Judged
from rlpipe.rewards.judging.local import Local
from rlpipe.rewards.judging.reading import check_options
from rlpipe.rewards.reward import RewardUnusable
from rlpipe.rollout.engine import EngineSpec
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Handle
from rlpipe.runtime.roles import RoleSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


QUESTIONS_PER_REQUEST = 4
"""Of an endpoint's call, for each request that may be under way: a slow answer holds up no others."""


def specs(stage: Stage, mix: RewardMix) -> list[RoleSpec]:
    """One role per judge of the mix that is a model of this run."""
    return [
        _spec(stage, f"rewards.mix.{i}.by", reward)
        for i, reward in enumerate(mix.mix)
        if isinstance(reward, JudgeReward) and isinstance(reward.by, EngineJudge)
    ]


def judged(stage: Stage, mix: RewardMix, handles: Mapping[str, list[Handle[Any]]]) -> dict[str, Judged]:
    """The judges, by the name of their reward, over the handles of the started roles."""
    return {reward.name: _judged(stage, reward, handles) for reward in mix.mix if isinstance(reward, JudgeReward)}


def _judged(stage: Stage, reward: JudgeReward, handles: Mapping[str, list[Handle[Any]]]) -> Judged:
    by = reward.by
    if isinstance(by, EngineJudge):
        arbiter, at_once = _local(stage, reward, by, handles), by.questions_per_call
    else:
        arbiter, at_once = Endpoint(by, reward.least_mass), QUESTIONS_PER_REQUEST * by.requests
    return Judged(reward, arbiter, template_of(reward), drawer(reward), at_once)


def drawer(reward: JudgeReward) -> Draw:
    """How a prompt gets the principle that it is judged by: the same whatever chat template it is asked with."""
    if reward.constitution is None:
        return lambda prompt: None
    constitution = read(reward.constitution)
    origin = f"{constitution.name}@{constitution.version}"

    def drawn(prompt: Prompt) -> Drawn:
        principle = draw(constitution.principles, transcript(asked_of(prompt)), reward.seed)
        return Drawn(f"{origin}/{principle.id}", principle.preference)

    return drawn


def template_of(reward: JudgeReward) -> Template:
    """What the judge is asked. Raises `DataError`, and `RewardUnusable` where its options cannot be told apart."""
    template = load(reward.template)
    try:
        check_options(template.options)
    except ValueError as error:
        raise RewardUnusable(f"reward `{reward.name}`, template {template.name}: {error}") from None
    if reward.constitution is not None and "principle" not in template.marks:
        raise RewardUnusable(
            f"reward `{reward.name}`: the template {template.name} has no {{principle}}, so that the constitution "
            "would decide nothing; take template: compare_by_principle, or one of your own"
        )
    return template


def _local(stage: Stage, reward: JudgeReward, by: EngineJudge, handles: Mapping[str, list[Handle[Any]]]) -> Local:
    deadlines, replicas = stage.recipe.deadlines, [[handle] for handle in handles[_role(reward)]]
    fleet = Fleet(reward.name, replicas, deadlines, by.max_restarts, deadlines.heartbeat)
    longest = context_length(_model(by), by.path)
    limit = min(longest, by.max_model_len or longest) - 1  # an engine that is asked for probabilities adds a token
    return Local(by.path, fleet, _tokenizer(by), limit, reward.least_mass)


def _spec(stage: Stage, key: str, reward: JudgeReward) -> RoleSpec:
    by = reward.by
    tokenizer = _tokenizer(by)
    spec = EngineSpec(
        engine=by.engine,
        model=by.path,
        dtype=by.dtype,
        eos_token_ids=() if tokenizer.eos_token_id is None else (tokenizer.eos_token_id,),
        version=0,
        max_model_len=by.max_model_len,
        max_num_seqs=by.max_num_seqs,
        kv_cache_gib=by.kv_cache_gib,
        gpu_memory_utilization=by.gpu_memory_utilization,
        tensor_parallel=by.tensor_parallel,
        trust_remote_code=by.trust_remote_code,
    )
    return RoleSpec(
        _role(reward),
        RolloutWorker,
        lambda seat: (spec,),
        1 if stage.debug else by.engines,
        by.resources,
        by.threads,
        key,
        again=(spec,),
        gpus=by.tensor_parallel,
        secrets=roles.hub_keys(by.path),
    )


def _role(reward: JudgeReward) -> str:
    return f"judge/{reward.name}"


def _model(by: EngineJudge) -> PretrainedModel:
    return PretrainedModel(path=by.path, trust_remote_code=by.trust_remote_code)


def _tokenizer(by: EngineJudge) -> "PreTrainedTokenizerBase":
    return load_tokenizer(_model(by), by.path)
