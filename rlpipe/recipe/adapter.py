"""What is trained in place of a model's own weights. Keys are PEFT's."""

from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlpipe.recipe.adapter_base import Dropout, LoraMatrices, Targets
from rlpipe.recipe.adapter_ranks import AdaLoraAdapter, check_allocation
from rlpipe.recipe.base import Strict
from rlpipe.recipe.bottleneck import BottleneckAdapter
from rlpipe.recipe.delta_lora import DeltaLoraAdapter, check_base_can_move
from rlpipe.recipe.prompt_adapter import PrefixTuningAdapter, PromptTuningAdapter, VirtualTokens
from rlpipe.recipe.rewards import RewardMix
from rlpipe.recipe.rollout import Rollout
from rlpipe.recipe.training import OfflineTraining, SftTraining


class LoraAdapter(LoraMatrices):
    """Low-rank matrices beside frozen weights (Hu et al. 2021, arXiv 2106.09685): W + scale * B A."""

    kind: Literal["lora"]
    """Low-rank adaptation, and its variants DoRA, rsLoRA, PiSSA and LoRA+."""
    use_dora: bool = False
    """Learn the length of each output's weights apart from their direction (Liu et al. 2024, arXiv 2402.09353)."""
    init_lora_weights: Literal[True, "gaussian", "orthogonal", "pissa"] = True
    """How A and B begin: `true` is PEFT's (A uniform, B zero), `pissa` takes the largest singular vectors of the weight
    out of it (Meng et al. 2024, arXiv 2404.02948), so that the frozen rest is another weight than before."""
    loraplus_lr_ratio: Annotated[float, Field(ge=1)] = 1.0
    """Learning rate of B over that of A (LoRA+, Hayou et al. 2024, arXiv 2402.12354, recommends 16)."""

    @property
    def served_by_vllm(self) -> bool:
        return not self.use_dora and self.bias == "none"


class LoraFaAdapter(LoraMatrices):
    """LoRA whose A stays as it was drawn (Zhang et al. 2023, arXiv 2308.03303): half of the parameters, and of each
    layer's input only its r projections are kept for the backward pass."""

    kind: Literal["lora_fa"]
    """LoRA with A frozen."""

    @property
    def served_by_vllm(self) -> bool:
        return self.bias == "none"


class VeraAdapter(Strict):
    """Two vectors per layer around random matrices that all layers share (Kopiczko et al. 2023, arXiv 2310.11454)."""

    kind: Literal["vera"]
    """Vector-based random matrix adaptation."""
    r: PositiveInt = 256
    """Rank of the shared matrices."""
    vera_dropout: Dropout = 0.0
    """Share of the adapter's inputs dropped in training; 0 in RL."""
    d_initial: PositiveFloat = 0.1
    """What the vector of the rank begins as; that of the outputs begins as 0."""
    target_modules: Targets = "all-linear"
    """Names of the modules that get one, such as `q_proj`; `all-linear` is every linear layer but the output head."""
    served_by_vllm: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True


class Ia3Adapter(Strict):
    """A factor for each key, value and feed-forward channel (Liu et al. 2022, arXiv 2205.05638)."""

    kind: Literal["ia3"]
    """Infused adapter by inhibiting and amplifying inner activations."""
    target_modules: Annotated[list[str], Field(min_length=1)] = ["k_proj", "v_proj", "down_proj"]
    """Names of the modules that get one; the default fits the Llama and Qwen families."""
    feedforward_modules: list[str] = ["down_proj"]
    """Those of them whose inputs are scaled; of the others it is the outputs."""
    served_by_vllm: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True

    @model_validator(mode="after")
    def _are_targets(self) -> "Ia3Adapter":
        other = [name for name in self.feedforward_modules if name not in self.target_modules]
        if other:
            raise ValueError(f"feedforward_modules: {other[0]} is not among target_modules; add it there")
        return self


class BitFitAdapter(Strict):
    """The model's own biases, and nothing else (Ben Zaken et al. 2021, arXiv 2106.10199). Ours: PEFT has none."""

    kind: Literal["bitfit"]
    """Train biases alone; the model must have some."""
    mergeable: ClassVar[bool] = True


PeftAdapter = (
    LoraAdapter
    | LoraFaAdapter
    | AdaLoraAdapter
    | DeltaLoraAdapter
    | VeraAdapter
    | Ia3Adapter
    | BottleneckAdapter
    | PromptTuningAdapter
    | PrefixTuningAdapter
)
"""Those that PEFT puts beside the weights, and that can be switched off."""
AnyAdapter = PeftAdapter | BitFitAdapter
Adapter = Annotated[AnyAdapter, Field(discriminator="kind")]
UNMERGEABLE = tuple(
    kind for one in get_args(AnyAdapter) if not one.mergeable for kind in get_args(one.model_fields["kind"].annotation)
)
"""Kinds that do not become part of the weights: the result of a stage is then the adapter, and no model."""


def is_the_result(adapter: AnyAdapter | None) -> bool:
    """Whether what a stage leaves is an adapter, and no model."""
    return adapter is not None and not adapter.mergeable


def virtual_tokens(adapter: AnyAdapter | None) -> int:
    """Places of the model's context that the adapter takes."""
    return adapter.num_virtual_tokens if isinstance(adapter, VirtualTokens) else 0


def takes_weights_apart(adapter: AnyAdapter | None) -> bool:
    """Whether it begins as a part of the weights, which are without it from then on (PiSSA)."""
    return isinstance(adapter, LoraAdapter) and adapter.init_lora_weights == "pissa"


def changes_the_base(adapter: AnyAdapter | None) -> str | None:
    """The setting because of which what is left with the adapter off is another model than before, if there is one."""
    if takes_weights_apart(adapter):
        return "init_lora_weights=pissa"
    if isinstance(adapter, LoraMatrices) and adapter.bias != "none":
        return f"bias={adapter.bias}"
    return "kind=delta_lora" if isinstance(adapter, DeltaLoraAdapter) else None


def check_zero_stage(adapter: AnyAdapter | None, zero_stage: int, key: str = "train") -> None:
    """Raises ValueError for an adapter that cannot be made of a model that the section `key` splits."""
    if takes_weights_apart(adapter) and zero_stage == 3:
        raise ValueError(
            f"adapter.init_lora_weights=pissa takes weights apart, which {key}.zero_stage=3 has split over the ranks; "
            f"set {key}.zero_stage to 2 or less, or leave init_lora_weights out"
        )


def check_offline(adapter: AnyAdapter | None, training: OfflineTraining) -> None:
    """Raises ValueError for an adapter that a trainer of TRL cannot train so."""
    check_zero_stage(adapter, training.zero_stage)
    check_allocation(adapter, training)
    check_base_can_move(adapter, training)
    if isinstance(adapter, VirtualTokens) and isinstance(training, SftTraining) and training.packing:
        raise ValueError(
            f"train.packing=true puts several records into one sequence, before which adapter.kind={adapter.kind} puts "
            "its virtual tokens once; set train.packing=false, or take adapter.kind=lora"
        )
    if isinstance(adapter, PrefixTuningAdapter) and training.gradient_checkpointing:
        raise ValueError(
            "train.gradient_checkpointing=true computes layers again without the keys and values of "
            "adapter.kind=prefix_tuning; set it to false, or take adapter.kind=prompt_tuning or lora"
        )


def check_evaluated(adapter: AnyAdapter | None, rewards: RewardMix | None, rollout: Rollout) -> None:
    """Raises ValueError if held-out prompts are to be answered by an engine that cannot hold the adapter."""
    if is_the_result(adapter) and rewards is not None and rollout.engine == "vllm":
        raise ValueError(
            f"adapter.kind={adapter.kind} cannot be merged into weights, and vLLM cannot serve it: set "
            "rollout.engine=transformers, or leave out rewards, without which no held-out prompts are answered"
        )


def check_whole(adapter: AnyAdapter | None) -> None:
    """Raises ValueError for an adapter whose stage leaves no model, where others load one."""
    if is_the_result(adapter):
        raise ValueError(
            f"adapter.kind={adapter.kind} cannot be merged into weights, and rewards load a reward model whole; take "
            "adapter.kind=lora, or another kind that merges"
        )


def check_reference(adapter: AnyAdapter | None) -> None:
    """Raises ValueError for an adapter without which the model is not the reference any more."""
    setting = changes_the_base(adapter)
    if setting:
        instead = "take adapter.kind=lora" if setting == "kind=delta_lora" else f"leave {setting.split('=')[0]} out"
        raise ValueError(
            f"adapter.{setting}: the reference is the model with its adapter off, and that is another one here than "
            f"the model it began as; {instead}, or take a task without a reference (sft, orpo, cpo)"
        )


def check_followed(adapter: AnyAdapter | None, sync_ref_model: bool) -> None:
    """Raises ValueError for a reference that is to follow the policy, and is no model of its own."""
    if sync_ref_model and adapter is not None and not isinstance(adapter, BitFitAdapter):
        raise ValueError(
            f"train.sync_ref_model=true needs a reference of its own, and with adapter.kind={adapter.kind} it is the "
            "policy with its adapter off; leave train.sync_ref_model out, or train without an adapter"
        )


def check_learner(adapter: AnyAdapter, dropout_would: str) -> None:
    """Raises ValueError for an adapter that no role of RL can train. `dropout_would` says what dropout breaks."""
    if isinstance(adapter, BitFitAdapter | AdaLoraAdapter | DeltaLoraAdapter):
        raise ValueError(f"adapter.kind={adapter.kind} is for the offline tasks; take adapter.kind=lora in RL")
    if is_the_result(adapter):
        raise ValueError(
            f"adapter.kind={adapter.kind} is for the offline tasks: it cannot be merged into weights, and vLLM cannot "
            "serve it; take adapter.kind=lora in RL"
        )
    dropouts = [key for key in ("lora_dropout", "vera_dropout") if getattr(adapter, key, 0)]
    if dropouts:
        raise ValueError(
            f"adapter.{dropouts[0]}={getattr(adapter, dropouts[0])} would {dropout_would}; set it to 0 in RL"
        )
    if isinstance(adapter, LoraAdapter) and adapter.loraplus_lr_ratio != 1:
        raise ValueError(
            f"adapter.loraplus_lr_ratio={adapter.loraplus_lr_ratio:g} is for the offline tasks; leave it out in RL"
        )


def check_online(adapter: AnyAdapter, published: Literal["served", "merged"]) -> None:
    """Raises ValueError for an adapter of a policy that RL cannot train, or that cannot reach the engines as
    `published` says."""
    check_learner(adapter, "make the policy that is trained another one than the policy that sampled")
    check_reference(adapter)
    if published == "served" and not adapter.served_by_vllm:
        what = "use_dora=true" if adapter.kind == "lora" else f"kind={adapter.kind}"
        raise ValueError(
            f"adapter.{what}: vLLM cannot serve such an adapter; set publishing.adapter=merged, which sends it merged "
            "into full weights"
        )
