"""How many parameters learn, as counted in the model and as predicted from its configuration."""

import logging

from rlpipe.models.load import load_config
from rlpipe.pipelines.stage import Stage
from rlpipe.plan.adapter_size import trained_parameters
from rlpipe.plan.architecture import Unpredictable, architecture
from rlpipe.recipe.tasks import RewardModelRecipe

logger = logging.getLogger(__name__)


def tell(stage: Stage, trained: int, everything: int) -> None:
    """The counted and the predicted number, as a line and as metrics of step 0; a difference is a warning."""
    counted = {"trainable_parameters": float(trained), "parameters": float(everything)}
    try:
        predicted = _predicted(stage)
    except Unpredictable as why:
        stage.events.note(f"{trainable(trained, everything)}; no prediction: {why}")
        stage.events.metrics(0, counted)
        return
    if predicted != trained:
        logger.warning("%s trained parameters were predicted, and %s are trained", f"{predicted:,}", f"{trained:,}")
    stage.events.note(trainable(trained, everything) + (", as predicted" if predicted == trained else ""))
    stage.events.metrics(0, counted | {"predicted_trainable_parameters": float(predicted)})


def trainable(trained: int, everything: int) -> str:
    """How many parameters learn, for people."""
    return f"trainable: {trained:,} of {everything:,} ({trained / everything:.1%})".replace("%", " %")


def _predicted(stage: Stage) -> int:
    config = load_config(stage.recipe.model, stage.model_path).get_text_config().to_dict()
    scores = isinstance(stage.recipe, RewardModelRecipe)
    return trained_parameters(architecture(config), stage.recipe.adapter, scores)
