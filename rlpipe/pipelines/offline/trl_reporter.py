"""What a TRL trainer tells while it trains."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rlpipe.pipelines.offline.progress import Progress

if TYPE_CHECKING:
    from transformers import Trainer

COMMON = {
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "grad_norm",
    "num_tokens": "tokens",
    "epoch": "epoch",
    "eval_loss": "heldout_loss",
}
"""Names of metrics that all trainers share: theirs, and ours."""


PLANNED = "planned_steps"
"""How many optimizer steps the epochs of a recipe amount to; told once, before the first."""

FIRST = ""
"""The name of the held-out records whose metrics stand for themselves, where further parts are measured beside them."""


def of_part(logs: Mapping[str, float], others: Iterable[str]) -> tuple[str, Mapping[str, float]]:
    """Which part of the held-out records the trainer's metrics are of, and the metrics as of a single part."""
    for part in (FIRST, *others):
        if f"eval_{part}_loss" in logs:
            return part, dict(logs) | {"eval_loss": logs[f"eval_{part}_loss"]}
    return FIRST, logs


def reporter(trainer: "Trainer", progress: Progress, names: Mapping[str, str], others: Iterable[str]) -> Any:
    """A callback for `trainer`; `names` are its further metrics, theirs and ours. Those of the held-out part X of
    `others` are called heldout_loss/X and so on."""
    from transformers import TrainerCallback

    ours_by_theirs = COMMON | dict(names)

    class Reporter(TrainerCallback):
        """Passes the trainer's figures on, asks for them after the last step, and stops at the first loss that is not a
        number."""

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if trainer.deepspeed.zero_optimization_stage() == 0:
                _keep_gradient_norm(trainer.deepspeed)
            if args.max_steps <= 0:
                progress.metrics(0, {PLANNED: float(state.max_steps)})

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.alive(f"step {state.global_step}")
            control.should_evaluate |= state.global_step == state.max_steps

        def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.alive(f"evaluation at step {state.global_step}")

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            part, logs = of_part(logs, others)
            values = {ours: float(logs[theirs]) for theirs, ours in ours_by_theirs.items() if theirs in logs}
            if "heldout_loss" in values:
                values.pop("epoch", None)  # of training, which an evaluation stands beside
            if not math.isfinite(values.get("loss", 0.0)):
                raise FloatingPointError(
                    f"The training loss is {values['loss']} at step {state.global_step}. Lower "
                    "train.optimizer.learning_rate, or look for records that break the model."
                )
            if values.keys() & {"loss", "heldout_loss"}:
                progress.metrics(
                    state.global_step, {f"{name}/{part}" if part else name: v for name, v in values.items()}
                )

    return Reporter()


def _keep_gradient_norm(engine: Any) -> None:
    """In stage 0 DeepSpeed clips in float32 without keeping the norm, which its engine then reports as None."""
    import torch

    def clip() -> None:
        parameters = list(engine.module.parameters())
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(parameters, engine.gradient_clipping())

    engine.clip_fp32_gradients = clip
