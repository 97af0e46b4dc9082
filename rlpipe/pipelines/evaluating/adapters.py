"""Adapters of one base, published one after the other to engines that hold it."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from rlpipe.models.folders import adapter_settings
from rlpipe.pipelines import roles
from rlpipe.pipelines.answering import Serving
from rlpipe.pipelines.evaluating.served import Served, Sitting
from rlpipe.rollout.fixed_adapter import Bare, FixedAdapter, without_effect
from rlpipe.runtime.handle import Within
from rlpipe.weights.packing import pack
from rlpipe.weights.payload import Payload
from rlpipe.weights.probes import choose_probes

if TYPE_CHECKING:
    from pathlib import Path


def publisher(sitting: Sitting, serving: Serving) -> Callable[[Served], None]:
    """What has the engines serve one of the models of a sitting. Without adapters they do from the start.

    The first thing that each gets is an adapter without effect: what it answers with that is what it has to differ
    from with others, and a model without an adapter is served so."""
    if sitting.lora_rank is None:
        return lambda model: None
    first = next(model for model in sitting.models if model.adapter)
    nothing = without_effect(payload_of(first.adapter))
    within = Within("publish", first.recipe.deadlines.publish)
    limit = min(first.recipe.rollout.max_model_len or first.model_length, first.model_length)
    bare = Bare(choose_probes([prompt.tokens for prompt in first.prompts[1]], len(first.tokenizer), limit), nothing)

    def publish(model: Served) -> None:
        version = 1 + [one.name for one in sitting.models].index(model.name)
        payload = nothing if model.adapter is None else payload_of(model.adapter)
        serving.pool.publish(roles.POLICY, FixedAdapter(f"models.{model.name}", version, payload, bare, within))

    return publish


def payload_of(folder: "Path") -> Payload:
    """A PEFT folder as engines take it."""
    from safetensors.torch import load_file

    settings = adapter_settings(folder)
    kept = json.loads(json.dumps(settings | {"inference_mode": True}))
    return pack(load_file(folder / "adapter_model.safetensors").items(), adapter_config=kept)
