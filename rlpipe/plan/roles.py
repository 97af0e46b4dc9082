"""The processes that a recipe starts, each with what it takes, as `rlpipe.pipelines` starts them."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlpipe.plan.engines import Generator, engine
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.processes import Answerer, answerer
from rlpipe.plan.usage import Usage
from rlpipe.recipe.critic import Critic
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.judging import EngineJudge
from rlpipe.recipe.model import Dtype, PretrainedModel, ScratchModel
from rlpipe.recipe.rewards import ModelReward, RewardMix
from rlpipe.recipe.roles import FrozenRole, PolicyTraining
from rlpipe.recipe.rollout import Rollout
from rlpipe.recipe.training import Resources

FindModel = Callable[[PretrainedModel | ScratchModel], ModelFacts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A role of a task: `count` processes alike."""

    name: str
    key: str
    """The recipe's section, or empty."""
    count: int
    gpus: float
    """Of each process."""
    cpus: float
    shares: str | None = None
    """In whose processes it lives."""
    usage: Usage
    """Of each process, or of each GPU where a process has several."""
    model: str = ""
    """For people."""
    spread: bool = False
    """Over as many nodes as possible, and not on as few."""
    least: int | None = None
    """Processes without which the run does not start; all if absent."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where a task is planned to run."""

    on_gpu: bool
    """Whether there are GPUs, of which processes that say nothing get one each."""
    gpu_bytes: int
    """Memory of a GPU."""
    find: FindModel
    prompt: int | None
    """Tokens of a prompt, where that was said."""

    def gpus(self, resources: Resources, parts: int = 1) -> float:
        """That a process reserves; with `parts` each of them a whole one."""
        return resources.gpus_where(self.on_gpu, parts)


def width(dtype: Dtype, on_gpu: bool) -> int:
    """Bytes of an element that computes."""
    return {"auto": 2 if on_gpu else 4, "float32": 4, "bfloat16": 2}[dtype]


def generator(
    rollout: Rollout, model: ModelFacts, dtype: Dtype, setting: Setting, longest: int, colocated: bool,
    keeps_base: bool = False,
) -> Generator:  # fmt: skip
    """An engine for sequences of up to `longest` tokens."""
    on_gpu = colocated or setting.gpus(rollout.resources) > 0
    return Generator(
        shapes=model.shapes,
        parameters=model.shapes.size(scores=False),
        width=width(dtype, on_gpu),
        vllm=rollout.engine == "vllm",
        parts=rollout.tensor_parallel,
        max_num_seqs=rollout.max_num_seqs,
        whole=longest,
        utilization=rollout.gpu_memory_utilization,
        gpu_bytes=setting.gpu_bytes if on_gpu else 0,
        cache_gib=rollout.kv_cache_gib,
        sleeps=colocated,
        keeps_base=keeps_base,
    )


def engines(rollout: Rollout, made: Generator, model: str, gpus: float, shares: str | None = None) -> Role:
    """The engines of a task."""
    return Role(
        name="engine",
        key="rollout",
        count=rollout.engines,
        gpus=gpus,
        cpus=rollout.resources.cpus,
        shares=shares,
        usage=engine(made),
        model=model,
        spread=rollout.nodes == "spread",
        least=rollout.min_engines,
    )


def model_rewards(mix: RewardMix | None) -> list[tuple[str, ModelReward]]:
    """Those that are models, with the recipe key of each."""
    rewards = enumerate(mix.mix if mix else ())
    return [(f"rewards.mix.{i}", one) for i, one in rewards if isinstance(one, ModelReward)]


def scorers(mix: RewardMix | None, setting: Setting, longest: int, policy: PolicyTraining | None) -> list[Role]:
    """The models of a mix: reward models, and judges that are models of the run, of sequences of up to `longest`
    tokens."""
    found = [reward_model(key, one, setting, longest, policy) for key, one in model_rewards(mix)]
    for i, one in enumerate(mix.mix if mix else ()):
        if isinstance(one, JudgeReward) and isinstance(one.by, EngineJudge):
            found.append(judge(f"rewards.mix.{i}.by", one.name, one.by, setting, longest))
    return found


def judge(key: str, name: str, by: EngineJudge, setting: Setting, longest: int) -> Role:
    """Engines that answer questions: two responses and a prompt in each."""
    shared = {field: getattr(by, field) for field in Rollout.model_fields if hasattr(by, field)}
    rollout, model = Rollout(**shared, max_new_tokens=1), setting.find(PretrainedModel(path=by.path))
    whole = min(by.max_model_len or 3 * longest, model.context)
    made = generator(rollout, model, by.dtype, setting, whole, colocated=False)
    role = engines(rollout, made, model.name, setting.gpus(by.resources, by.tensor_parallel))
    return replace(role, name=f"judge {name}", key=key)


def placed(
    name: str,
    key: str,
    settings: PolicyTraining | Critic | FrozenRole,
    policy: PolicyTraining | None,
    model: str,
    usage: Usage,
    setting: Setting,
) -> Role:
    """A role in processes of its own, or in the policy's if it shares them."""
    shared = is_shared(settings)
    where = policy if shared and policy is not None else settings
    return Role(
        name=name,
        key=key,
        count=where.ranks,
        gpus=setting.gpus(where.resources),
        cpus=where.resources.cpus,
        shares="policy" if shared else None,
        usage=usage,
        model=model,
    )


def is_shared(settings: PolicyTraining | Critic | FrozenRole) -> bool:
    """Whether it lives in the policy's processes; the policy itself has no such key."""
    return not isinstance(settings, PolicyTraining) and settings.share is not None


def frozen(
    name: str,
    key: str,
    settings: FrozenRole,
    model: ModelFacts,
    parameters: int,
    b: int,
    positions: int,
    head: int,
    setting: Setting,
    policy: PolicyTraining | None,
) -> Role:
    """A model that only answers."""
    where = policy if settings.share and policy is not None else settings
    usage = answerer(
        Answerer(
            shapes=model.shapes,
            parameters=parameters,
            width=b,
            ranks=where.ranks,
            split=settings.zero_stage == 3,
            offload_param=settings.offload_param,
            positions=positions,
            head=head,
            on_gpu=setting.gpus(where.resources) > 0,
        )
    )
    return placed(name, key, settings, policy, model.name, usage, setting)


def reward_model(key: str, reward: ModelReward, setting: Setting, longest: int, policy: PolicyTraining | None) -> Role:
    """A reward model that judges sequences of up to `longest` tokens."""
    model = setting.find(PretrainedModel(path=reward.path))
    where = policy if reward.share and policy is not None else reward
    b = width(reward.dtype, setting.gpus(where.resources) > 0)
    positions = max(min(reward.max_length or longest, longest, model.context), reward.tokens_per_batch)
    size = model.shapes.size(scores=True)
    return frozen(f"reward {reward.name}", key, reward, model, size, b, positions, 0, setting, policy)
