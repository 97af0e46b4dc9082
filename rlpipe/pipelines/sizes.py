"""How many parameters learn, as counted in the model and as predicted from its configuration."""

import logging

from rlpipe.models.load import load_config
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.stage import Stage
from rlpipe.plan.adapter_size import trained_parameters
from rlpipe.plan.architecture import KNOWN, architecture
from rlpipe.recipe.tasks import RewardModelRecipe

logger = logging.getLogger(__name__)


def tell(stage: Stage, trained: int, everything: int) -> None:
    """The counted and the predicted number, as a line and as metrics of step 0; a difference is a warning."""
    predicted, why_not = _predicted(stage)
    counted = {"trainable_parameters": float(trained), "parameters": float(everything)}
    known = {} if predicted is None else {"predicted_trainable_parameters": float(predicted)}
    _say(stage.events, trained, everything, predicted, why_not)
    stage.events.metrics(0, counted | known)


def trainable(trained: int, everything: int) -> str:
    """How many parameters learn, for people."""
    return f"trainable: {trained:,} of {everything:,} ({trained / everything:.1%})".replace("%", " %")


def _say(events: EventLog, trained: int, everything: int, predicted: int | None, why_not: str) -> None:
    line = trainable(trained, everything)
    if predicted is None:
        line += f"; no prediction: {why_not}"
    elif predicted == trained:
        line += ", as predicted"
    else:
        logger.warning("%s trained parameters were predicted, and %s are trained", f"{predicted:,}", f"{trained:,}")
    events.note(line)


def _predicted(stage: Stage) -> tuple[int | None, str]:
    recipe = stage.recipe
    config = load_config(recipe.model, stage.model_path).get_text_config().to_dict()
    model = architecture(config)
    if model is None:
        return None, f"the shapes of {config.get('model_type')} models are not known, but {', '.join(KNOWN)}"
    found = trained_parameters(model, recipe.adapter, isinstance(recipe, RewardModelRecipe))
    return found, "adapter.target_modules names modules besides the decoder's linear layers"
