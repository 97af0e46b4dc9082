"""Training sections of the preference tasks; names, losses and defaults are TRL's."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.training import OfflineOptimizer, OfflineSchedule, OfflineTraining

DpoLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
SMOOTHED: tuple[DpoLoss, ...] = ("sigmoid", "robust", "exo_pair", "aot", "aot_unpaired")
"""Losses in which label_smoothing means something."""
_OF_DIFFERENCES = ("sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft")
"""Losses of the difference of two rewards, in which an f-divergence's normaliser cancels."""


class PreferenceOptimizer(OfflineOptimizer):
    """The same with the defaults of preference optimisation, for models of billions of parameters."""

    learning_rate: PositiveFloat = 1e-6
    """Highest learning rate, reached after warm-up."""
    lr_scheduler_type: OfflineSchedule = "linear"
    """Shape after warm-up, as transformers names it."""


class PreferenceTraining(OfflineTraining):
    """What the preference tasks have in common; names are TRL's."""

    optimizer: PreferenceOptimizer = PreferenceOptimizer()
    """AdamW and its learning-rate schedule."""
    max_length: PositiveInt = 1024
    """Longest prompt with response in tokens; longer records are left out, and the count is reported."""
    metric_for_best_model: Literal["loss", "pair_accuracy", "margin"] = "loss"
    """Which held-out metric tells the best model."""


class SyncedReference(PreferenceTraining):
    """A reference that may follow the policy: TR-DPO (Gorbatovski et al. 2024, arXiv 2404.09656)."""

    precompute_ref_log_probs: bool = False
    """Work out the reference's log-probabilities once before training, instead of keeping a reference in memory."""
    sync_ref_model: bool = False
    """Let the reference follow the policy (TR-DPO), every ref_model_sync_steps."""
    ref_model_mixup_alpha: Annotated[float, Field(gt=0, le=1)] = 0.6
    """The policy's share α in the new reference; 1 makes it the policy itself."""
    ref_model_sync_steps: PositiveInt = 512
    """Optimizer steps between two such updates."""

    @model_validator(mode="after")
    def _reference_can_follow(self) -> "SyncedReference":
        if not self.sync_ref_model:
            for key in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
                value = getattr(self, key)
                if value != SyncedReference.model_fields[key].default:
                    raise ValueError(f"{key}={value} changes nothing without sync_ref_model=true; set that, too")
            return self
        if self.precompute_ref_log_probs:
            raise ValueError(
                "sync_ref_model=true changes the reference, and precompute_ref_log_probs=true asks it only once; leave "
                "one of them out"
            )
        if self.save_steps is not None:
            raise ValueError(
                "sync_ref_model=true: a checkpoint does not hold the reference, so a run could not go on from it as it "
                "was; leave save_steps out"
            )
        if self.max_steps is not None and self.ref_model_sync_steps >= self.max_steps:
            raise ValueError(
                f"ref_model_sync_steps={self.ref_model_sync_steps} is not below max_steps={self.max_steps}, so the "
                "reference would never follow the policy; lower it"
            )
        return self


class DpoTraining(SyncedReference):
    """DPO through TRL's DPOTrainer; names are TRL's."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference; the regularisation τ of ipo."""
    loss_type: DpoLoss | Annotated[list[DpoLoss], Field(min_length=1)] = "sigmoid"
    """One of TRL's losses by its name, or several, which are added up by loss_weights."""
    loss_weights: list[float] | None = None
    """Weight of each loss of loss_type; 1 each if absent."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of preferences taken to be the wrong way round: with sigmoid conservative DPO (cDPO), with robust its
    unbiased form; ε of exo_pair."""
    f_divergence_type: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    """What holds the policy to the reference (Wang et al. 2023, arXiv 2309.16240)."""
    f_alpha_divergence_coef: PositiveFloat = 0.5
    """α of alpha_divergence."""
    reference_free: bool = False
    """Take a reference to which all responses are equally likely: none is loaded, nothing holds the policy to its
    start."""
    ld_alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    """Length-desensitised DPO (Liu et al. 2024, arXiv 2409.06411): weight of the tokens by which one response is longer
    than the other; 1 each if absent."""
    use_weighting: bool = False
    """Weighted preference optimisation (WPO, Zhou et al. 2024, arXiv 2406.11827): pairs count by how likely the policy
    would write them."""
    discopop_tau: PositiveFloat = 0.05
    """Temperature τ of discopop."""

    @property
    def losses(self) -> dict[DpoLoss, float]:
        """The weight of each loss."""
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        return dict(zip(names, self.loss_weights or [1.0] * len(names), strict=True))

    @model_validator(mode="after")
    def _weights_match(self) -> "DpoTraining":
        names = [self.loss_type] if isinstance(self.loss_type, str) else self.loss_type
        if self.loss_weights is not None and len(self.loss_weights) != len(names):
            raise ValueError(
                f"loss_weights has {len(self.loss_weights)} numbers for {len(names)} losses of loss_type; give one for "
                "each loss"
            )
        if len(set(names)) < len(names):
            raise ValueError(f"loss_type=[{', '.join(names)}] has a loss twice; leave it out or raise its weight")
        return self

    @model_validator(mode="after")
    def _smoothing_is_used(self) -> "DpoTraining":
        losses = self.losses.keys()
        if self.label_smoothing and not losses & set(SMOOTHED):
            raise ValueError(
                f"label_smoothing={self.label_smoothing} changes nothing in loss_type={', '.join(losses)}; it goes "
                f"with {', '.join(SMOOTHED)}"
            )
        if "exo_pair" in losses and not self.label_smoothing:
            raise ValueError("loss_type=exo_pair needs label_smoothing above 0; its authors take 1e-3")
        if {"sigmoid", "robust"} <= losses and self.label_smoothing:
            raise ValueError(
                "loss_type holds both sigmoid and robust, two ways to use one label_smoothing; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _divergence_fits(self) -> "DpoTraining":
        odd = [name for name in self.losses if name not in _OF_DIFFERENCES]
        if self.f_divergence_type != "reverse_kl" and odd:
            raise ValueError(
                f"f_divergence_type={self.f_divergence_type} does not go with loss_type={', '.join(odd)}; take "
                f"reverse_kl, or a loss of {', '.join(_OF_DIFFERENCES)}"
            )
        return self

    @model_validator(mode="after")
    def _reference_is_used(self) -> "DpoTraining":
        for key, unused in (
            ("precompute_ref_log_probs=true", self.precompute_ref_log_probs),
            ("sync_ref_model=true", self.sync_ref_model),
            (f"f_divergence_type={self.f_divergence_type}", self.f_divergence_type != "reverse_kl"),
        ):
            if self.reference_free and unused:
                raise ValueError(f"reference_free=true leaves nothing for {key} to work on; leave one of them out")
        return self

    @model_validator(mode="after")
    def _variants_fit(self) -> "DpoTraining":
        sorting = [name for name in ("aot", "aot_unpaired") if name in self.losses]
        if self.use_weighting and sorting:
            raise ValueError(
                f"use_weighting=true weighs pairs, and loss_type={sorting[0]} sorts their sides apart; leave one of "
                "them out"
            )
        if "discopop" not in self.losses and self.discopop_tau != DpoTraining.model_fields["discopop_tau"].default:
            raise ValueError(
                f"discopop_tau={self.discopop_tau} changes nothing in loss_type={', '.join(self.losses)}; it goes with "
                "discopop"
            )
        if self.ld_alpha is not None and self.precompute_ref_log_probs:
            raise ValueError(
                "ld_alpha: precompute_ref_log_probs=true keeps the reference's weighted sums alone, and held-out pairs "
                "are ranked by whole ones; leave one of them out"
            )
        return self


class KtoTraining(SyncedReference):
    """KTO through TRL's KTOTrainer; names are TRL's."""

    beta: PositiveFloat = 0.1
    """How strongly the policy is held to the reference."""
    loss_type: Literal["kto", "apo_zero_unpaired"] = "kto"
    """kto (Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7), or APO-zero without pairs, which needs no estimate of
    the KL."""
    desirable_weight: PositiveFloat = 1.0
    """Weight of good responses in the loss."""
    undesirable_weight: PositiveFloat = 1.0
    """Weight of bad responses in the loss. The paper's eq. 8 wants the good ones' count times weight at 1 to 4/3 of the
    bad ones'."""

    @model_validator(mode="after")
    def _kl_can_be_estimated(self) -> "KtoTraining":
        if self.loss_type == "kto" and self.per_device_train_batch_size * self.ranks < 2:
            raise ValueError(
                "loss_type=kto estimates the KL from the other responses of a batch, and "
                "per_device_train_batch_size=1 with ranks=1 leaves none; raise one of them"
            )
        return self


class OrpoTraining(PreferenceTraining):
    """ORPO through TRL's ORPOTrainer; names are TRL's."""

    beta: PositiveFloat = 0.1
    """Weight λ of the odds-ratio term beside the likelihood of the chosen response."""


class CpoTraining(PreferenceTraining):
    """CPO and SimPO through TRL's CPOTrainer; names are TRL's."""

    beta: PositiveFloat = 0.1
    """Scale of the rewards in the loss; SimPO's authors take 2 to 2.5."""
    loss_type: Literal["sigmoid", "hinge", "ipo", "simpo"] = "sigmoid"
    """sigmoid is CPO; simpo compares mean log-probabilities and asks for a margin, with cpo_alpha=0 for the method of
    its paper."""
    cpo_alpha: NonNegativeFloat = 1.0
    """Weight of the likelihood of the chosen response."""
    simpo_gamma: PositiveFloat = 0.5
    """Margin γ that simpo asks for."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of preferences taken to be the wrong way round (sigmoid and simpo)."""

    @model_validator(mode="after")
    def _fits_the_loss(self) -> "CpoTraining":
        if self.label_smoothing and self.loss_type in ("hinge", "ipo"):
            raise ValueError(
                f"label_smoothing={self.label_smoothing} changes nothing in loss_type={self.loss_type}; it goes with "
                "sigmoid and simpo"
            )
        if self.loss_type != "simpo" and self.simpo_gamma != CpoTraining.model_fields["simpo_gamma"].default:
            raise ValueError(
                f"simpo_gamma={self.simpo_gamma} changes nothing in loss_type={self.loss_type}; it goes with simpo"
            )
        return self
