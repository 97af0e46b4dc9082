"""The roles of an RL task."""

from rlpipe.plan import activations
from rlpipe.plan.lengths import Lengths, micro_batches_of_rl, of_rl, positions_of_rl, sequences_of_step
from rlpipe.plan.model_files import ModelFacts
from rlpipe.plan.processes import TRAINER, Learner, learner, spread_of
from rlpipe.plan.publishing import Sending
from rlpipe.plan.roles import (
    Role,
    Setting,
    engines,
    frozen,
    generator,
    is_shared,
    placed,
    scorers,
    width,
)
from rlpipe.plan.usage import Usage
from rlpipe.plan.weights import Weights, weights
from rlpipe.recipe.critic import Critic
from rlpipe.recipe.model import quantization_of, whole
from rlpipe.recipe.roles import PolicyTraining
from rlpipe.recipe.tasks import RlRecipe
from rlpipe.recipe.transport import direct_transport

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
        self._served = recipe.adapter is not None and recipe.publishing.adapter == "served"
        self.generator = generator(
            recipe.rollout, self.model, recipe.model.dtype, setting, longest, colocated, self._served
        )

    def all(self) -> list[Role]:
        """In the order in which they are started."""
        recipe = self.recipe
        found = scorers(recipe.rewards, self.setting, self.lengths.whole, recipe.train)
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
        return placed("policy", "train", train, None, self.model.name, usage, self.setting)

    def _learner(
        self, held: Weights, settings: PolicyTraining | Critic, model: ModelFacts, b: int, head: int, turns: bool
    ) -> Learner:
        where = self.recipe.train if is_shared(settings) else settings
        spread = spread_of(
            held,
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
            file_bytes=model.file_bytes,
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
        return placed("critic", "critic", critic, recipe.train, model.name, usage, self.setting)

    def _reference(self) -> Role:
        settings, b = self.recipe.reference, width(self.recipe.model.dtype, self._train_gpus > 0)
        if settings.dtype:
            b = width(settings.dtype, self._train_gpus > 0)
        rows = min(self.positions, sequences_of_step(self.recipe) * self.lengths.response)
        head = activations.head(self.model.shapes, rows, b, backward=False)
        parameters = self.model.shapes.size(scores=False)
        return frozen(
            "reference", "reference", settings, self.model, parameters, b, self.positions, head, self.setting,
            self.recipe.train,
        )  # fmt: skip

    @property
    def sending(self) -> Sending:
        """How a version gets to the engines."""
        recipe, held = self.recipe, weights(self.model.shapes, self.recipe.adapter, None)
        count = held.trained if self._served else self.model.shapes.size(scores=False)
        on_gpu = self._train_gpus > 0
        return Sending(
            nbytes=count * width(recipe.model.dtype, on_gpu),
            way=direct_transport(recipe) if on_gpu and self.generator.gpu_bytes > 0 else None,
            engines=recipe.rollout.engines,
            ranks=recipe.train.ranks,
            split=recipe.train.zero_stage == 3,
            on_gpu=on_gpu,
        )

    def _driver(self) -> Role:
        """The process that runs the loop. What does not go from GPU to GPU passes through host memory when it is
        published: once as it is packed, once in Ray's object store."""
        over_host = {} if self.sending.way else {"published weights": 2 * self.sending.nbytes}
        parts = {"process": TRAINER} | over_host
        return Role(
            name="driver", key="", count=1, gpus=0.0, cpus=0.0, usage=Usage(moments={"publishing": parts}, idle={})
        )

    def _engines(self) -> Role:
        rollout = self.recipe.rollout
        if self.generator.sleeps:
            return engines(rollout, self.generator, self.model.name, 0.0, shares="policy")
        gpus = self.setting.gpus(rollout.resources, rollout.tensor_parallel)
        return engines(rollout, self.generator, self.model.name, gpus)
