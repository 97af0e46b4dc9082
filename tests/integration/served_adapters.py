"""Adapters of one base as `rlpipe export` leaves them, for the tests of what vLLM makes of several."""

from collections.abc import Mapping
from pathlib import Path

import tiny_models
from peft import LoraConfig, PeftModel, get_peft_model
from tiny_models import adapter_payload

from rlpipe.pipelines.export import export


def exported_adapters(base: Path, folder: Path, ranks: Mapping[str, int]) -> dict[str, PeftModel]:
    """By name, each adapter on a base of its own, as PEFT has it; `folder`/NAME is what was exported."""
    made = {}
    for seed, (name, rank) in enumerate(ranks.items()):
        config = LoraConfig(r=rank, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        made[name] = get_peft_model(tiny_models.load(base), config)
        adapter_payload(made[name], seed, folder / f"trained-{name}")
        export(str(folder / f"trained-{name}"), folder / name, None, adapter_only=True, force=False)
    return made
