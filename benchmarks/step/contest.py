"""What is compared: a recipe of rlpipe's, the floor under it, and who else does the same work."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step import machine
from step.work import LEARNING_RATE

FLOOR_VLLM, FLOOR_GRPO, FLOOR_PPO = "floor vllm", "floor transformers", "floor ppo"
TRL, TRL_VLLM, TRL_VLLM_PATCHED = "trl", "trl, vllm", "trl, vllm, patched"
OTHER_TRL = ("trl, static cache", "trl, continuous batching")


@dataclass(frozen=True, slots=True)
class Contest:
    """Who takes part beside rlpipe."""

    recipe: Path
    changes: dict[str, Any]
    """To the recipe, beside those that the case makes."""
    floor: str
    """The contestant that does every part of a step bare, with transformers' generation."""
    stepping: tuple[str, ...]
    """Contestants measured at every turn."""
    once: tuple[str, ...] = ()
    """Contestants asked for two steps, alone: those that fail as shipped, or are far too slow to wait for."""

    def generating_floor(self, engine: str) -> str:
        """The contestant whose generation is the floor under an engine."""
        return FLOOR_VLLM if engine == "vllm" else self.floor


def grpo(engines: tuple[str, ...], other_trl: bool) -> Contest:
    vllm = "vllm" in engines
    return Contest(
        recipe=Path(__file__).with_name("grpo.yaml"),
        changes={},
        floor=FLOOR_GRPO,
        stepping=(FLOOR_GRPO, TRL) + ((FLOOR_VLLM, TRL_VLLM_PATCHED) if vllm else ()),
        once=((TRL_VLLM,) if vllm else ()) + (OTHER_TRL if other_trl else ()),
    )


def ppo(engines: tuple[str, ...], classifier: Path, own_cores: bool) -> Contest:
    """`own_cores` gives policy and critic one thread each instead of all."""
    threads = 1 if own_cores else machine.THREADS
    return Contest(
        recipe=Path(__file__).with_name("ppo.yaml"),
        changes={
            "rewards.mix.0.path": classifier,
            "rewards.mix.0.threads": machine.THREADS,
            "critic.model.path": classifier,
            "critic.threads": threads,
            "critic.optimizer.learning_rate": LEARNING_RATE,
            "train.threads": threads,
        },
        floor=FLOOR_PPO,
        stepping=(FLOOR_PPO,) + ((FLOOR_VLLM,) if "vllm" in engines else ()),
    )
