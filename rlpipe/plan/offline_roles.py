"""The roles of an offline task: TRL's trainer under DeepSpeed, and the engines of its evaluation."""

from rlpipe.plan import activations
from rlpipe.plan.lengths import PROMPT, positions_of_offline
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.processes import Learner, learner, spread_of
from rlpipe.plan.roles import Role, Setting, engines, generator, scorers, width
from rlpipe.plan.states import Spread
from rlpipe.plan.weights import Weights, weights
from rlpipe.recipe.adapter import BitFitAdapter
from rlpipe.recipe.model import quantization_of
from rlpipe.recipe.tasks import DpoRecipe, KtoRecipe, OfflineRecipe, RewardModelRecipe

BUCKET = 50_000_000
"""Elements that ZeRO sends at once (`rlpipe.pipelines.offline.trl_arguments`)."""


def trainers(recipe: OfflineRecipe, setting: Setting) -> Role:
    """The ranks that train."""
    train, model = recipe.train, setting.find(recipe.model)
    on_gpu = setting.gpus(train.resources) > 0
    scores = isinstance(recipe, RewardModelRecipe)
    held = weights(model.shapes, recipe.adapter, quantization_of(recipe.model), scores)
    spread = _spread(recipe, held, width(recipe.model.dtype, on_gpu), on_gpu)
    positions = positions_of_offline(recipe, model.context)
    learns = recipe.adapter is None
    head = 0 if scores else activations.trl_head(model.shapes, positions, spread.width, learns, on_gpu)
    usage = learner(
        Learner(
            shapes=model.shapes,
            weights=held,
            spread=spread,
            positions=positions,
            micro_batches=train.gradient_accumulation_steps,
            head=head,
            checkpointing=train.gradient_checkpointing,
            repeats_keys=True,
            beside=_reference(recipe, model, spread),
            file_bytes=model.file_bytes,
        )
    )
    return Role(
        name="trainer",
        key="train",
        count=train.ranks,
        gpus=setting.gpus(train.resources),
        cpus=train.resources.cpus,
        usage=usage,
        model=model.name,
    )


def _spread(recipe: OfflineRecipe, held: Weights, b: int, on_gpu: bool) -> Spread:
    train = recipe.train
    return spread_of(
        held,
        width=b,
        ranks=train.ranks,
        stage=train.zero_stage,
        optim=train.optimizer.optim,
        bucket=BUCKET,
        on_gpu=on_gpu,
        reduces_alone=True,
    )


def asks_reference(recipe: OfflineRecipe) -> bool:
    """Whether a reference answers in every step."""
    match recipe:
        case DpoRecipe():
            return not (recipe.train.precompute_ref_log_probs or recipe.train.reference_free)
        case KtoRecipe():
            return not recipe.train.precompute_ref_log_probs
    return False


def has_own_reference(recipe: OfflineRecipe) -> bool:
    """Whether a second model is held; with an adapter of PEFT the policy is the reference while that is off."""
    return asks_reference(recipe) and (recipe.adapter is None or isinstance(recipe.adapter, BitFitAdapter))


def _reference(recipe: OfflineRecipe, model: ModelFacts, spread: Spread) -> int:
    """Bytes of it on a rank: whole, or its share under ZeRO-3."""
    if not has_own_reference(recipe):
        return 0
    whole = spread.width * model.shapes.size(scores=False)
    return whole // spread.ranks if spread.stage == 3 else whole


def evaluation(recipe: OfflineRecipe, setting: Setting) -> list[Role]:
    """What answers held-out prompts before and after training, and the reward models that judge the answers."""
    if isinstance(recipe, RewardModelRecipe) or recipe.rewards is None:
        return []
    rollout, model = recipe.rollout, setting.find(recipe.model)
    longest = min(rollout.max_model_len or PROMPT + rollout.max_new_tokens, model.context)
    made = generator(rollout, model, recipe.model.dtype, setting, longest, colocated=False)
    judges = scorers(recipe.rewards, setting, longest, None)
    return [*judges, engines(rollout, made, model.name, setting.gpus(rollout.resources, rollout.tensor_parallel))]
