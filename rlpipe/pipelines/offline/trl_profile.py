"""What torch's profiler sees of some steps of a TRL trainer, on each rank."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpipe.data.storage import Storage
from rlpipe.pipelines.profiling import FOLDER, Steps
from rlpipe.runtime.recorder import Recorder

if TYPE_CHECKING:
    from transformers import TrainerCallback


def profiler(steps: Steps, directory: Path, rank: int) -> "TrainerCallback":
    """Writes profile/rank-RANK.json.gz into the stage's `directory`, on storage that all ranks share."""
    from transformers import TrainerCallback

    class Profiler(TrainerCallback):
        def __init__(self) -> None:
            self._recorder = Recorder()

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step + 1 == steps.first:
                self._recorder.start()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == steps.last:
                self._write()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._write()

        def _write(self) -> None:
            if (recording := self._recorder.stop()) is not None:
                Storage(directory).write(f"{FOLDER}/rank-{rank}.json.gz", recording.trace)

    return Profiler()
