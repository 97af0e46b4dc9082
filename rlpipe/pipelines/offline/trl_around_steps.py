"""What is done around each optimizer step of a TRL trainer, and is part of its checkpoints."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Trainer, TrainerCallback

    from rlpipe.training.masters import AroundSteps

FILE = "around_steps.pt"


def around_steps(trainer: "Trainer", around: "AroundSteps", checkpoint: str | None) -> "TrainerCallback":
    """A callback that has it done from the beginning of training on, when the engine is there; it goes on from what
    `checkpoint` holds. To be added before what puts checkpoints in their place."""
    import torch
    from transformers import TrainerCallback

    from rlpipe.training.masters import watch_steps

    class Watching(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            if checkpoint is not None:
                around.load(torch.load(Path(checkpoint) / FILE, map_location="cpu", weights_only=True))
            watch_steps(trainer.deepspeed, around)

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            kept = around.state()
            if trainer.is_world_process_zero():
                torch.save(kept, Path(args.output_dir) / f"checkpoint-{state.global_step}" / FILE)

    return Watching()
