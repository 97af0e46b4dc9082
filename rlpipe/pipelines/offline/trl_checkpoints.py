"""Checkpoints of a TRL trainer, from which training goes on exactly.

A checkpoint holds DeepSpeed's state, the schedule, each rank's random state and the trainer's place in the data, as
transformers writes them, and in `model/` (with an adapter of PEFT in `adapter/`, too) the weights as in the result.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpipe.pipelines import checkpoints
from rlpipe.pipelines.stage import FINAL_ADAPTER, FINAL_MODEL
from rlpipe.recipe.training import OfflineTraining

if TYPE_CHECKING:
    from transformers import Trainer

SaveWeights = Callable[[Path, Path], None]
"""Writes the model and the adapter into two folders; collective."""


def arguments(training: OfflineTraining, directory: Path, resumed: bool) -> dict[str, Any]:
    """What a trainer of TRL is told of checkpoints."""
    saving = {
        "save_strategy": "steps",
        "save_steps": training.save_steps,
        # Beside the finished ones, so that a rename puts a checkpoint in its place.
        "output_dir": str(directory / checkpoints.FOLDER / ".partial"),
    }
    return (saving if training.save_steps else {}) | ({"eval_on_start": False} if resumed else {})


def check(checkpoint: Path, training: OfflineTraining) -> None:
    """Raises `CheckpointMismatch` if other ranks wrote it than shall go on from it."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    written = state["stateful_callbacks"]["Committer"]["attributes"]
    keys = ("ranks", "zero_stage")
    layout = {f"train.{key}": getattr(training, key) for key in keys}
    checkpoints.check_layout(checkpoint, {f"train.{key}": written[key] for key in keys}, layout)


def committer(trainer: "Trainer", training: OfflineTraining, directory: Path, save_weights: SaveWeights) -> Any:
    """A callback for `trainer` that puts what it has saved in its place below the stage's `directory`."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    def save_model(output_dir: str, _internal_call: bool = False) -> None:
        folder = Path(output_dir)
        save_weights(folder / FINAL_MODEL, folder / FINAL_ADAPTER)

    trainer.save_model = save_model

    class Committer(TrainerCallback, ExportableState):
        """Also keeps what TRL does not: how many tokens the trainer has seen."""

        def state(self) -> dict[str, Any]:
            tokens = getattr(trainer, "_total_train_tokens", 0)
            attributes = {"tokens": tokens, "ranks": training.ranks, "zero_stage": training.zero_stage}
            return {"args": {}, "attributes": attributes}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._clear(args)  # what a run that was killed had begun to write
            if saved := state.stateful_callbacks.get(type(self).__name__):
                trainer._total_train_tokens = saved["attributes"]["tokens"]

        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            trainer.accelerator.wait_for_everyone()
            if trainer.is_world_process_zero():
                written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
                checkpoints.commit(written, directory, state.global_step, training.save_total_limit)
            trainer.accelerator.wait_for_everyone()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._clear(args)

        def _clear(self, args: Any) -> None:
            if trainer.is_world_process_zero():
                shutil.rmtree(args.output_dir, ignore_errors=True)
            trainer.accelerator.wait_for_everyone()

    return Committer()
