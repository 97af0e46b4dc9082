"""The best of the evaluations: kept as the result, and a reason to stop when there is no better one for long."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlpipe.pipelines.offline.progress import Progress
from rlpipe.pipelines.offline.trl_reporter import COMMON, FIRST, of_part
from rlpipe.recipe.training import OfflineTraining

HELDOUT = "heldout_"


def best_model(
    training: OfflineTraining,
    names: Mapping[str, str],
    others: Iterable[str],
    save: Callable[[], None],
    progress: Progress,
) -> Any:
    """A callback for a trainer whose metrics `names` names, theirs and ours; the parts `others` of the held-out records
    do not count. `save` writes the result as the model is now: collective, and all ranks see the same metrics."""
    from transformers import TrainerCallback
    from transformers.trainer_callback import ExportableState

    wanted = f"{HELDOUT}{training.metric_for_best_model}"
    [metric] = [theirs for theirs, ours in (COMMON | dict(names)).items() if ours == wanted]
    sign = -1.0 if training.metric_for_best_model == "loss" else 1.0

    class BestModel(TrainerCallback, ExportableState):
        """Compares evaluations, that before training among them. Checkpoints keep how they stand."""

        def __init__(self) -> None:
            self._best = self._improved_to = float("-inf")
            self._best_step = 0
            self._without_improvement = 0

        def state(self) -> dict[str, Any]:
            return {"args": {}, "attributes": dict(vars(self))}

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if saved := state.stateful_callbacks.get(type(self).__name__):
                vars(self).update(saved["attributes"])

        def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
            part, metrics = of_part(metrics, others)
            if part != FIRST:
                return
            value = sign * metrics[metric]
            if value > self._best:
                self._best, self._best_step = value, state.global_step
                save()
            improved = value > self._improved_to + training.early_stopping_threshold
            self._improved_to = value if improved else self._improved_to
            self._without_improvement = 0 if improved else self._without_improvement + 1
            patience = training.early_stopping_patience
            if patience is not None and self._without_improvement >= patience:
                control.should_training_stop = True

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            progress.metrics(state.global_step, {f"{HELDOUT}best_step": float(self._best_step)})

    return BestModel()
