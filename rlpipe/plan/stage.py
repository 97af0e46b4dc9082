"""The plan of one task: its batches, its roles, where they go, what they take, how long a step lasts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from rlpipe.plan import batches, evaluating, labelling, offline_roles, seconds, shortages
from rlpipe.plan.batches import Batches
from rlpipe.plan.hardware import Cluster, Rates, rates
from rlpipe.plan.lengths import positions_of_offline, sequence_of_offline
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.offline_roles import evaluation, trainers
from rlpipe.plan.placement import Placed, place
from rlpipe.plan.remarks import of_offline, of_rl
from rlpipe.plan.rl_roles import RlRoles
from rlpipe.plan.roles import FindModel, Role, Setting, width
from rlpipe.plan.seconds import Seconds, Work
from rlpipe.plan.shortages import Shortage
from rlpipe.plan.weights import Weights, weights
from rlpipe.recipe.critic import Critic
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.model import quantization_of, whole
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.recipe.tasks import OfflineRecipe, RewardModelRecipe, RlRecipe, StageRecipe
from rlpipe.recipe.training import OfflineTraining


@dataclass(frozen=True, slots=True)
class Asked:
    """What was said besides the recipe."""

    prompt: int | None = None
    """Tokens of a prompt."""
    rates: Rates | None = None
    """Those of a usual GPU or CPU if absent."""


@dataclass(frozen=True, slots=True)
class Scene:
    """Roles that run at the same time."""

    title: str
    roles: tuple[Role, ...]
    placed: Placed


@dataclass(frozen=True, slots=True)
class StagePlan:
    """What one task takes."""

    name: str
    recipe: StageRecipe
    model: ModelFacts
    held: Weights
    """Of the trained model."""
    batches: Batches
    scenes: tuple[Scene, ...]
    seconds: Seconds
    rates: Rates
    remarks: tuple[str, ...]
    shortages: tuple[Shortage, ...]

    @property
    def fits(self) -> bool:
        return not self.shortages


def plan_stage(name: str, recipe: StageRecipe, cluster: Cluster, find: FindModel, asked: Asked) -> StagePlan:
    """Raises `NoSuchModel` or `Unpredictable` where a model's shapes are not known."""
    each = max((node.gpu_bytes for node in cluster.nodes), default=0)
    setting = Setting(cluster.on_gpu, each, find, asked.prompt)
    if isinstance(recipe, EvalRecipe):
        return _evaluation(name, recipe, cluster, setting, asked.rates)
    if isinstance(recipe, LabelRecipe):
        return _labelling(name, recipe, cluster, setting, asked.rates)
    model = find(recipe.model)
    scores = isinstance(recipe, RewardModelRecipe)
    held = weights(model.shapes, recipe.adapter, quantization_of(recipe.model), scores)
    speed = asked.rates or rates(setting.gpus(recipe.train.resources) > 0)
    parts = (
        _rl(recipe, setting, held, speed) if isinstance(recipe, RlRecipe) else _offline(recipe, setting, held, speed)
    )
    made, scenes, took, remarks, short = parts
    placed = [Scene(title, tuple(roles), place(roles, cluster)) for title, roles in scenes if roles]
    short = [*short, *(one for scene in placed for one in shortages.of_places(scene.placed))]
    return StagePlan(name, recipe, model, held, made, tuple(placed), took, speed, tuple(remarks), tuple(short))


def _evaluation(name: str, recipe: EvalRecipe, cluster: Cluster, setting: Setting, said: Rates | None) -> StagePlan:
    which, model = evaluating.largest(recipe, setting)
    held = replace(weights(model.shapes, None, None), trained=0, frozen=model.shapes.size(scores=False))
    speed = said or rates(setting.gpus(recipe.rollout.resources) > 0)
    made = evaluating.engine_of(recipe, model, which, setting)
    took = evaluating.answering(recipe, made, setting, speed)
    roles = tuple(evaluating.roles(recipe, model, made, setting))
    scene = Scene(f"while {which} answers", roles, place(roles, cluster))
    short = (
        *shortages.of_engine(made, min(recipe.rollout.max_model_len or model.context, model.context)),
        *shortages.of_places(scene.placed),
    )
    return StagePlan(name, recipe, model, held, evaluating.asked(recipe), (scene,), took, speed, (), short)


def _labelling(name: str, recipe: LabelRecipe, cluster: Cluster, setting: Setting, said: Rates | None) -> StagePlan:
    model = setting.find(recipe.model)
    held = replace(weights(model.shapes, None, None), trained=0, frozen=model.shapes.size(scores=False))
    speed = said or rates(setting.gpus(recipe.rollout.resources) > 0)
    moments = {title: tuple(roles) for title, roles in labelling.moments(recipe, model, setting).items() if roles}
    scenes = tuple(Scene(title, roles, place(roles, cluster)) for title, roles in moments.items())
    short = tuple(one for scene in scenes for one in shortages.of_places(scene.placed))
    took = labelling.responding(recipe, model, setting, speed)
    return StagePlan(name, recipe, model, held, labelling.asked(recipe), scenes, took, speed, (), short)


Parts = tuple[Batches, list[tuple[str, Sequence[Role]]], Seconds, list[str], list[Shortage]]


def _rl(recipe: RlRecipe, setting: Setting, held: Weights, speed: Rates) -> Parts:
    roles = RlRoles(recipe, setting)
    on_gpu = setting.gpus(recipe.train.resources) > 0
    policy = _work(roles.model, held, recipe.train, width(recipe.model.dtype, on_gpu))
    critic = _critic(recipe, setting)
    took = seconds.of_rl(recipe, policy, critic, roles.generator, roles.lengths, roles.sending, speed)
    longest = min(recipe.rollout.max_model_len or roles.model.context, roles.model.context)
    short = shortages.of_engine(roles.generator, longest)
    remarks = of_rl(recipe, roles, setting)
    return batches.of(recipe, roles.lengths), [("training and rollout", roles.all())], took, remarks, short


def _critic(recipe: RlRecipe, setting: Setting) -> Work | None:
    if recipe.algorithm.advantage.kind != "gae":
        return None
    critic = recipe.critic
    spec = critic.model or (recipe.model if critic.adapter else whole(recipe.model))
    model = setting.find(spec)
    held = weights(model.shapes, critic.adapter, quantization_of(spec), scores=True)
    where = recipe.train if critic.share else critic
    b = width(critic.dtype or spec.dtype, setting.gpus(where.resources) > 0)
    return Work(model.shapes, held, b, where.ranks, critic.gradient_checkpointing)


def _work(model: ModelFacts, held: Weights, train: PolicyTraining | OfflineTraining | Critic, b: int) -> Work:
    return Work(model.shapes, held, b, train.ranks, train.gradient_checkpointing)


def _offline(recipe: OfflineRecipe, setting: Setting, held: Weights, speed: Rates) -> Parts:
    train, model = recipe.train, setting.find(recipe.model)
    work = _work(model, held, train, width(recipe.model.dtype, setting.gpus(train.resources) > 0))
    length = sequence_of_offline(recipe, model.context)
    tokens = positions_of_offline(recipe, model.context) * train.ranks * train.gradient_accumulation_steps
    asks = offline_roles.asks_reference(recipe)
    took = seconds.of_offline(recipe, work, float(tokens), float(length), speed, asks)
    scenes = [("training", [trainers(recipe, setting)]), ("before and after training", evaluation(recipe, setting))]
    return batches.of(recipe, None), scenes, took, of_offline(recipe, model, setting), []
