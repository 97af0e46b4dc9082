"""The roles of an RL task."""

from rlpipe.plan import activations
from rlpipe.plan.lengths import Lengths, micro_batches_of_rl, of_rl, positions_of_rl, sequences_of_step
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.processes import TRAINER, Answerer, Learner, answerer, learner
from rlpipe.plan.roles import Role, Setting, engines, generator, model_rewards, width
from rlpipe.plan.states import Spread
from rlpipe.plan.usage import Usage
from rlpipe.plan.weights import Weights, weights
from rlpipe.recipe.critic import Critic
from rlpipe.recipe.model import PretrainedModel, quantization_of, whole
from rlpipe.recipe.rewards import ModelReward
from rlpipe.recipe.roles import FrozenRole, PolicyTraining
from rlpipe.recipe.tasks import RlRecipe

BUCKET = 200_000_000
"""Elements that ZeRO sends at once (`rlpipe.training.sharding`)."""


class RlRoles:
    """What the roles of one recipe take."""

    def __init__(self, recipe: RlRecipe, setting: Setting) -> None:
        self.recipe, self.setting = recipe, setting
        self.model = setting.find(recipe.model)
        self.lengths: Lengths = of_rl(recipe, self.model.context, setting.prompt)
        self.positions = positions_of_rl(recipe, self.lengths)
        self._train_gpus = setting.gpus(recipe.train.resources)
        longest = min(recipe.rollout.max_model_len or self.lengths.whole, self.lengths.whole)
        colocated = recipe.placement == "colocated" and self._train_gpus > 0
        self.generator = generator(recipe.rollout, self.model, recipe.model.dtype, setting, longest, colocated)

    def all(self) -> list[Role]:
        """In the order in which they are started."""
        recipe = self.recipe
        found = [self._reward(key, one) for key, one in model_rewards(recipe.rewards)]
        found += [self.policy(), self._engines()]
        if recipe.algorithm.needs_reference and recipe.adapter is None:
            found.append(self._reference())
        found += [self._critic()] if recipe.algorithm.advantage.kind == "gae" else []
        return [*found, self._driver()]

    def policy(self) -> Role:
        """The trained model's ranks."""
        recipe, train = self.recipe, self.recipe.train
        held = weights(self.model.shapes, recipe.adapter, quantization_of(recipe.model))
        b = width(recipe.model.dtype, self._train_gpus > 0)
        rows = min(self.positions, sequences_of_step(recipe) * self.lengths.response)
        head = activations.head(self.model.shapes, rows, b, backward=True)
        head += b * self.model.shapes.hidden * self.model.shapes.vocabulary * (recipe.adapter is None)
        usage = learner(self._learner(held, train, self.model, b, head, recipe.critic.share is not None))
        return self._role("policy", "train", train, self.model.name, usage)

    def _learner(
        self, held: Weights, settings: PolicyTraining | Critic, model: ModelFacts, b: int, head: int, turns: bool
    ) -> Learner:
        where = self.recipe.train if _is_shared(settings) else settings
        spread = Spread(
            trained=held.trained,
            frozen=held.frozen,
            packed=held.packed,
            small=held.small,
            largest=held.largest,
            width=b,
            ranks=where.ranks,
            stage=settings.zero_stage,
            optim=settings.optimizer.optim,
            offload_optimizer=settings.offload_optimizer,
            offload_param=settings.offload_param,
            bucket=min(held.trained, BUCKET),
            on_gpu=self.setting.gpus(where.resources) > 0,
        )
        return Learner(
            shapes=model.shapes,
            weights=held,
            spread=spread,
            positions=self.positions,
            micro_batches=micro_batches_of_rl(self.recipe, self.lengths),
            head=head,
            checkpointing=settings.gradient_checkpointing,
            repeats_keys=False,
            rests=turns,
        )

    def _critic(self) -> Role:
        recipe, critic = self.recipe, self.recipe.critic
        spec = critic.model or (recipe.model if critic.adapter else whole(recipe.model))
        model = self.setting.find(spec)
        held = weights(model.shapes, critic.adapter, quantization_of(spec), scores=True)
        if critic.share == "base":
            held = Weights(held.trained, 0, 0, held.trained, held.largest, held.rank, held.unpacked)
        on_gpu = (self._train_gpus if critic.share else self.setting.gpus(critic.resources)) > 0
        b = width(critic.dtype or spec.dtype, on_gpu)
        usage = learner(self._learner(held, critic, model, b, 0, critic.share is not None))
        return self._role("critic", "critic", critic, model.name, usage)

    def _reference(self) -> Role:
        settings, b = self.recipe.reference, width(self.recipe.model.dtype, self._train_gpus > 0)
        if settings.dtype:
            b = width(settings.dtype, self._train_gpus > 0)
        rows = min(self.positions, sequences_of_step(self.recipe) * self.lengths.response)
        head = activations.head(self.model.shapes, rows, b, backward=False)
        parameters = self.model.shapes.size(scores=False)
        return self._frozen("reference", "reference", settings, self.model, parameters, b, self.positions, head)

    def _reward(self, key: str, reward: ModelReward) -> Role:
        model = self.setting.find(PretrainedModel(path=reward.path))
        b = width(reward.dtype, (self._train_gpus if reward.share else self.setting.gpus(reward.resources)) > 0)
        longest = min(reward.max_length or model.context, self.lengths.whole, model.context)
        positions = max(longest, reward.tokens_per_batch)
        size = model.shapes.size(scores=True)
        return self._frozen(f"reward {reward.name}", key, reward, model, size, b, positions, 0)

    def _frozen(
        self,
        name: str,
        key: str,
        settings: FrozenRole,
        model: ModelFacts,
        parameters: int,
        b: int,
        positions: int,
        head: int,
    ) -> Role:
        gpus = self._train_gpus if settings.share else self.setting.gpus(settings.resources)
        usage = answerer(
            Answerer(
                shapes=model.shapes,
                parameters=parameters,
                width=b,
                ranks=self.recipe.train.ranks if settings.share else settings.ranks,
                split=settings.zero_stage == 3,
                offload_param=settings.offload_param,
                positions=positions,
                head=head,
                on_gpu=gpus > 0,
            )
        )
        return self._role(name, key, settings, model.name, usage)

    def _role(
        self, name: str, key: str, settings: PolicyTraining | Critic | FrozenRole, model: str, usage: Usage
    ) -> Role:
        """In processes of its own, or in the policy's."""
        shared = _is_shared(settings)
        where = self.recipe.train if shared else settings
        return Role(
            name=name,
            key=key,
            count=where.ranks,
            gpus=self.setting.gpus(where.resources),
            cpus=where.resources.cpus,
            shares="policy" if shared else None,
            usage=usage,
            model=model,
        )

    def _driver(self) -> Role:
        """The process that runs the loop. What the policy publishes passes through host memory: once as the policy packs
        it, once in Ray's object store."""
        recipe, held = self.recipe, weights(self.model.shapes, self.recipe.adapter, None)
        served = recipe.adapter is not None and recipe.publishing.adapter == "served"
        count = held.trained if served else self.model.shapes.size(scores=False)
        payload = count * width(recipe.model.dtype, self._train_gpus > 0)
        parts = {"process": TRAINER, "published weights": 2 * payload}
        return Role(
            name="driver", key="", count=1, gpus=0.0, cpus=0.0, usage=Usage(moments={"publishing": parts}, idle={})
        )

    def _engines(self) -> Role:
        rollout = self.recipe.rollout
        if self.generator.sleeps:
            return engines(rollout, self.generator, self.model.name, 0.0, shares="policy")
        gpus = self.setting.gpus(rollout.resources, rollout.tensor_parallel)
        return engines(rollout, self.generator, self.model.name, gpus)


def _is_shared(settings: PolicyTraining | Critic | FrozenRole) -> bool:
    """Whether it lives in the policy's processes; the policy itself has no such key."""
    return not isinstance(settings, PolicyTraining) and settings.share is not None
