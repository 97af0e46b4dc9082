"""The tasks a recipe can describe, and pipelines of them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from rlpipe.recipe.adapter import Adapter, check_evaluated, check_offline, check_online, check_whole
from rlpipe.recipe.algorithm import Algorithm, Schedule
from rlpipe.recipe.algorithm.checks import check
from rlpipe.recipe.base import FolderName, Strict
from rlpipe.recipe.critic import Critic, check_unsplit
from rlpipe.recipe.data import ArithmeticData, Data, GuessNumberData, MixtureData, PreferenceData, SftData
from rlpipe.recipe.environment import Environment, SingleTurn, check_requests, check_rewards, turns_of
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.model import Model, quantization_of
from rlpipe.recipe.placement import Placement, check_colocated
from rlpipe.recipe.preference import CpoRecipe, DpoRecipe, KtoRecipe, OrpoRecipe, PreferenceRecipe
from rlpipe.recipe.qlora import check_published, check_quantized
from rlpipe.recipe.rewards import RewardMix, check_correct_by, check_nothing_shared
from rlpipe.recipe.roles import PolicyTraining, Reference
from rlpipe.recipe.rollout import Evaluation, Rollout
from rlpipe.recipe.run import Deadlines, Publishing, Run, Tracking
from rlpipe.recipe.training import RewardModelTraining, SftTraining
from rlpipe.recipe.transport import check_transport


class SftRecipe(Strict):
    """Supervised fine-tuning."""

    task: Literal["sft"]
    """Supervised fine-tuning."""
    name: FolderName = "sft"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    """Seed of the model from scratch, the order of the data and every sample."""
    model: Model
    adapter: Adapter | None = None
    """What is trained in place of the model's own weights; absent for full fine-tuning."""
    data: SftData
    """Records to learn from."""
    train: SftTraining
    """Batches, optimizer and processes of the training."""
    rewards: RewardMix | None = None
    """If given, held-out prompts are answered and scored before and after training."""
    environment: Environment = SingleTurn(kind="single_turn")
    """What answers the model between its turns in that evaluation."""
    rollout: Rollout = Rollout()
    """Engines of that evaluation."""
    evaluation: Evaluation = Evaluation()
    """What is asked of the held-out data, before and after training."""
    deadlines: Deadlines = Deadlines()
    """How long remote waits may take."""
    tracking: Tracking = Tracking()
    """Where metrics go besides the run directory."""

    @model_validator(mode="after")
    def _adapter_fits(self) -> "SftRecipe":
        check_offline(self.adapter, self.train)
        check_evaluated(self.adapter, self.rewards, self.rollout)
        check_quantized(quantization_of(self.model), self.adapter)
        return self

    @model_validator(mode="after")
    def _learns_its_own_words(self) -> "SftRecipe":
        sources = self.data.sources.values() if isinstance(self.data, MixtureData) else [self.data]
        talks = any(
            isinstance(data, GuessNumberData) or (isinstance(data, ArithmeticData) and data.calls > 0)
            for data in sources
        )
        if talks and self.train.loss_on != "assistant":
            raise ValueError(
                f"train.loss_on={self.train.loss_on} would teach the model what the environment says in these "
                "demonstrations, too; set train.loss_on=assistant"
            )
        return self

    @model_validator(mode="after")
    def _rewards_fit_the_environment(self) -> "SftRecipe":
        check_requests(self.environment, self.data)
        if self.rewards is not None:
            check_rewards(self.environment, self.rewards)
            check_nothing_shared(self.rewards)
            check_correct_by(self.evaluation.correct_by, self.rewards)
        return self


class RewardModelRecipe(Strict):
    """Reward modelling: a sequence classifier that scores the better of two responses higher."""

    task: Literal["reward_model"]
    """Reward modelling from pairs of responses (Bradley and Terry 1952)."""
    name: FolderName = "reward-model"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    """Seed of the model from scratch, of the score head and of the order of the data."""
    model: Model
    """A causal language model, whose output head gives way to a new score head; or a reward model, to train on."""
    adapter: Adapter | None = None
    """What is trained in place of the model's own weights; absent for full fine-tuning."""
    data: PreferenceData
    """Preferences to learn from; with `kind: arithmetic`, pairs of the right sum and a likely wrong one."""
    train: RewardModelTraining
    """Batches, optimizer and processes of the training."""
    deadlines: Deadlines = Deadlines()
    """How long remote waits may take."""
    tracking: Tracking = Tracking()
    """Where metrics go besides the run directory."""

    @model_validator(mode="after")
    def _adapter_fits(self) -> "RewardModelRecipe":
        check_offline(self.adapter, self.train)
        check_whole(self.adapter)
        check_quantized(quantization_of(self.model), self.adapter)
        return self


class RlRecipe(Strict):
    """Online reinforcement learning: sample, score, train, publish."""

    task: Literal["rl"]
    """Online reinforcement learning."""
    name: FolderName = "rl"
    """Names the run directory, runs/NAME."""
    seed: int = 0
    """Seed of the model from scratch, the order of the data and every sample."""
    model: Model
    adapter: Adapter | None = None
    """What is trained in place of the model's own weights; absent for full fine-tuning."""
    data: Data
    """Prompts to sample from."""
    rewards: RewardMix
    """What a response is worth."""
    environment: Environment = SingleTurn(kind="single_turn")
    """What answers the policy between its turns."""
    algorithm: Algorithm
    """How rewards become advantages and a loss."""
    schedule: Schedule
    """How many steps, of how many prompts."""
    placement: Placement = "split"
    run: Run = Run()
    """How many versions samples may be older than the policy that learns from them."""
    train: PolicyTraining = PolicyTraining()
    """Optimizer, batches and processes of the policy's training."""
    reference: Reference = Reference()
    """The frozen model that the policy is kept close to, where `algorithm.kl` has a coefficient."""
    critic: Critic = Critic()
    """The value model, where the algorithm has one."""
    rollout: Rollout = Rollout()
    """Engines that generate the responses, and how they sample."""
    evaluation: Evaluation = Evaluation()
    """When and how held-out prompts are asked."""
    publishing: Publishing = Publishing()
    """What travels to the engines, and how it is proven that it arrived."""
    deadlines: Deadlines = Deadlines()
    """How long remote waits may take."""
    tracking: Tracking = Tracking()
    """Where metrics go besides the run directory."""

    @property
    def longest_response(self) -> int:
        """Tokens that the policy may write in answer to one prompt, over all of its turns."""
        return turns_of(self.environment) * self.rollout.max_new_tokens

    @model_validator(mode="after")
    def _rewards_fit_the_environment(self) -> "RlRecipe":
        check_requests(self.environment, self.data)
        check_rewards(self.environment, self.rewards)
        check_correct_by(self.evaluation.correct_by, self.rewards)
        return self

    @model_validator(mode="after")
    def _divisible(self) -> "RlRecipe":
        if self.schedule.prompts_per_step % self.train.minibatches:
            raise ValueError(
                f"schedule.prompts_per_step={self.schedule.prompts_per_step} does not divide into "
                f"train.minibatches={self.train.minibatches}: whole groups stay in one optimizer step"
            )
        return self

    @model_validator(mode="after")
    def _best_is_measured(self) -> "RlRecipe":
        train, every = self.train, self.evaluation.every
        if not train.load_best_model_at_end:
            return self
        if train.save_steps % every:
            raise ValueError(
                f"train.load_best_model_at_end: with train.save_steps={train.save_steps} and evaluation.every={every} "
                "some checkpoints are not evaluated; set save_steps to a multiple of every"
            )
        known = self.evaluation.metrics([reward.name for reward in self.rewards.mix])
        if train.metric_for_best_model not in known:
            raise ValueError(
                f"train.metric_for_best_model={train.metric_for_best_model} is not measured here; what is: "
                f"{', '.join(known)}"
            )
        return self

    @model_validator(mode="after")
    def _critic_is_used(self) -> "RlRecipe":
        if self.critic != Critic() and self.algorithm.advantage.kind != "gae":
            raise ValueError(
                f"critic: algorithm.name={self.algorithm.name} has none, as "
                f"algorithm.advantage.kind={self.algorithm.advantage.kind} needs no values; take algorithm.name=ppo or "
                "leave the section out"
            )
        return self

    @model_validator(mode="after")
    def _base_can_be_shared(self) -> "RlRecipe":
        if self.critic.share == "base":
            if self.adapter is None:
                raise ValueError(
                    "critic.share=base: without an adapter the policy changes the model that the critic would stand "
                    "on; give it one (adapter.kind=lora), or set critic.share to policy"
                )
            check_unsplit(self.train.zero_stage, "train")
        return self

    @model_validator(mode="after")
    def _reference_is_used(self) -> "RlRecipe":
        if self.reference == Reference():
            return self
        if not self.algorithm.needs_reference:
            raise ValueError(
                "reference: algorithm.kl.coefficient=0 runs without one: give it a value, or leave the section out"
            )
        if self.adapter is not None:
            raise ValueError(
                f"reference: with adapter.kind={self.adapter.kind} the policy is the reference, too, while its adapter "
                "is off, and no second copy of the model is started; leave the section out"
            )
        return self

    @model_validator(mode="after")
    def _adapter_fits(self) -> "RlRecipe":
        if self.adapter is None and self.publishing.adapter != "served":
            raise ValueError(
                f"publishing.adapter={self.publishing.adapter} says how an adapter reaches the engines, and there is "
                "none: give one (adapter.kind=lora), or leave the key out"
            )
        if self.adapter is not None:
            check_online(self.adapter, self.publishing.adapter)
        check_quantized(quantization_of(self.model), self.adapter)
        check_published(quantization_of(self.model), self.publishing)
        if self.critic.adapter is not None and self.critic.model is None:
            check_quantized(quantization_of(self.model), self.critic.adapter, "critic.adapter")
        return self

    @model_validator(mode="after")
    def _staleness_is_corrected(self) -> "RlRecipe":
        if self.run.max_staleness and self.algorithm.correction.kind == "none":
            raise ValueError(
                f"run.max_staleness={self.run.max_staleness} trains on responses of older policies, and "
                "algorithm.correction.kind=none counts them as if the trained one had written them; set it to tis "
                "(truncated importance weights), or to another one"
            )
        return self

    @model_validator(mode="after")
    def _can_take_turns(self) -> "RlRecipe":
        if self.placement == "colocated":
            check_colocated(self.run, self.train, self.critic, self.rollout)
        check_transport(self)
        return self

    @model_validator(mode="after")
    def _nothing_shared_is_asked_while_it_trains(self) -> "RlRecipe":
        shared = [i for i, reward in enumerate(self.rewards.mix) if getattr(reward, "share", None)]
        if self.run.max_staleness and shared:
            raise ValueError(
                f"rewards.mix.{shared[0]}.share=policy: a reward model in the policy's processes cannot score while "
                f"these train, and run.max_staleness={self.run.max_staleness} has them do both at once; leave share "
                "out, which gives it processes of its own, or set max_staleness to 0"
            )
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> "RlRecipe":
        check(self.algorithm, self.train.minibatches, self.train.epochs, self.longest_response)
        return self


OfflineRecipe = SftRecipe | RewardModelRecipe | PreferenceRecipe
"""What a trainer of TRL does."""
StageRecipe = (
    SftRecipe | RewardModelRecipe | DpoRecipe | KtoRecipe | OrpoRecipe | CpoRecipe | RlRecipe | LabelRecipe | EvalRecipe
)
"""One task."""
Task = Annotated[StageRecipe, Field(discriminator="task")]


class PipelineRecipe(Strict):
    """Stages run in order; a later stage takes an earlier one's model as `${stages.NAME.model}`, and what one has
    labelled as `${stages.NAME.preferences}`, `.unpaired` or `.best`."""

    task: Literal["pipeline"]
    """Several tasks in order."""
    name: FolderName = "pipeline"
    """Names the run directory, runs/NAME."""
    stages: Annotated[dict[FolderName, Task], Field(min_length=1)]
    """Tasks by name, in the order in which they run."""
    compare: bool = True
    """At the end ask the first stage's base and the models of all stages the same prompts: those of the last stage with
    rewards, else of its labels, else of its data; unless their own evaluations have been the same."""


Recipe = Annotated[StageRecipe | PipelineRecipe, Field(discriminator="task")]
