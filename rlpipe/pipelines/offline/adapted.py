"""Adapters in TRL's trainers, which hand them to PEFT."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlpipe.pipelines.offline.trl_around_steps import around_steps
from rlpipe.recipe.adapter import (
    AdaLoraAdapter,
    Adapter,
    BitFitAdapter,
    DeltaLoraAdapter,
    LoraAdapter,
    takes_weights_apart,
)

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PreTrainedModel, Trainer

    from rlpipe.training.adapter_export import Departure


def can_be_switched_off(adapter: Adapter | None) -> bool:
    """Whether the trained model is the one it began as while its adapter is off."""
    return adapter is not None and not isinstance(adapter, BitFitAdapter)


def ready(model: "PreTrainedModel", adapter: Adapter | None) -> "PreTrainedModel":
    """The model as a trainer gets it."""
    if isinstance(adapter, BitFitAdapter):
        from rlpipe.models.adapters import train_biases_alone

        train_biases_alone(model)
    return model


def options(
    adapter: Adapter | None, seed: int, task_type: Literal["CAUSAL_LM", "SEQ_CLS"], base: str, steps: int
) -> dict[str, Any]:
    """What a trainer of TRL is given besides. `base` is the path of the model that the adapter goes onto."""
    from rlpipe.models.adapters import peft_config

    if not can_be_switched_off(adapter):
        return {}
    return {"peft_config": peft_config(adapter, task_type, seed, base, steps)}


@contextmanager
def seeded(adapter: Adapter | None, seed: int) -> Iterator[None]:
    """The trainer that is made in the block draws the adapter's weights from the seed alone, on all ranks alike."""
    import torch

    from rlpipe.models.adapters import naming_the_targets

    if adapter is not None:
        torch.manual_seed(seed)
    with naming_the_targets(adapter):
        yield


def finish(
    trainer: "Trainer", adapter: Adapter | None, dtype: "torch.dtype", checkpoint: str | None
) -> "Callable[[], Departure | None]":
    """What PEFT's configuration does not say. Training goes on from `checkpoint`, if there is one. Returns what tells,
    later on, how the base's weights have changed."""
    from rlpipe.models.adapters import freeze, switched_off
    from rlpipe.training.adapter_export import Departure, adapter_state
    from rlpipe.training.base_update import BaseUpdate
    from rlpipe.training.rank_allocation import RankAllocation
    from rlpipe.training.sharding import declare_direct

    if not can_be_switched_off(adapter):
        return lambda: None
    model = trainer.model
    freeze(model, adapter)
    declare_direct(model)
    if getattr(model, "is_loaded_in_4bit", False):
        _compute_in(dtype, model)
    model.disable_adapter = partial(switched_off, model)  # TRL calls it for the reference
    if isinstance(adapter, LoraAdapter) and adapter.loraplus_lr_ratio != 1:
        trainer.create_optimizer = partial(_of_two_rates, trainer, adapter.loraplus_lr_ratio)
    if isinstance(adapter, AdaLoraAdapter):
        trainer.add_callback(around_steps(trainer, RankAllocation(model), checkpoint))
    if isinstance(adapter, DeltaLoraAdapter):
        update = BaseUpdate(model, adapter.update_ratio, adapter.start_step)
        trainer.add_callback(around_steps(trainer, update, checkpoint))
        return update.departure
    departure = Departure(adapter_state(model)) if takes_weights_apart(adapter) else None
    return lambda: departure


def sizes(model: "torch.nn.Module") -> dict[str, float]:
    """How many parameters are trained, and how many there are."""
    from rlpipe.training.sharding import size

    every = [(size(parameter).numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = sum(count for count, requires_grad in every if requires_grad)
    return {"trainable_parameters": float(trained), "parameters": float(sum(count for count, _ in every))}


def save(
    model: "PeftModel",
    adapter: Adapter,
    departure: "Departure | None",
    tokenizer_folder: str,
    merged_folder: Path,
    adapter_folder: Path,
    writer: bool,
) -> None:
    """The merged model, of an adapter that can be, and beside it the adapter. Collective."""
    from rlpipe.training.adapter_export import merged_parameters, save_adapter, save_changed
    from rlpipe.training.export import save_weights

    if adapter.mergeable:
        save_weights(model.get_base_model(), merged_parameters(model), tokenizer_folder, merged_folder, writer)
    if departure is None:
        save_adapter(model, adapter_folder, writer)
    else:
        save_changed(model, departure, adapter_folder, writer)


def _compute_in(dtype: "torch.dtype", model: "PeftModel") -> None:
    """TRL makes bfloat16 of every adapter on 4-bit weights, whatever the model computes in. In float32 that would mix
    types within a layer, and round away small steps; an adapter has hardly begun here, so the cast back loses
    nothing that counts."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)


def _of_two_rates(trainer: "Trainer", ratio: float, *_: Any) -> "torch.optim.Optimizer":
    """LoRA+: B learns `ratio` times as fast as A. Takes the place of the trainer's `create_optimizer`: under DeepSpeed
    an optimizer that the trainer was given before is dropped, without a word."""
    from peft.optimizers import create_loraplus_optimizer

    kind, settings = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer = create_loraplus_optimizer(
        trainer.model,
        kind,
        loraplus_lr_ratio=ratio,
        loraplus_weight_decay=trainer.args.weight_decay,
        **settings,
    )
    return trainer.optimizer
