"""The models of an evaluation, each as the stage of which it is the model; and which of them share engines."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpipe.data.chat import render_prompts
from rlpipe.data.flow import Prompt
from rlpipe.data.records import DataError
from rlpipe.data.source import Records
from rlpipe.models.folders import adapter_settings, is_adapter
from rlpipe.models.load import ModelError, context_length, load_tokenizer, refuse_pickled
from rlpipe.models.trained_adapters import has_tokenizer
from rlpipe.pipelines.evaluating import keys
from rlpipe.pipelines.evaluating.questions import problem_id
from rlpipe.pipelines.fitting import room
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.evaluating import EvalRecipe, EvaluatedModel
from rlpipe.recipe.model import ScratchModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served(Stage):
    """One of the models."""

    name: str = ""
    questions: Records | None = None
    """What all of them are asked."""

    @cached_property
    def adapter(self) -> Path | None:
        """Raises `ModelError` for a folder without one."""
        spec = self.recipe.models[self.name]
        if not isinstance(spec, EvaluatedModel) or spec.adapter is None:
            return None
        folder = Path(spec.adapter).expanduser()
        if not is_adapter(folder):
            raise ModelError(
                f"models.{self.name}.adapter: {folder} has no adapter_config.json; give an adapter's folder"
            )
        refuse_pickled(folder)
        return folder

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """An adapter's own may have another chat template than its base."""
        own = self.adapter is not None and has_tokenizer(self.adapter)
        return load_tokenizer(self.recipe.model, str(self.adapter) if own else self.model_path)

    @property
    def from_scratch(self) -> bool:
        """Whether it is built from the recipe and the seed."""
        return isinstance(self.recipe.models[self.name], ScratchModel)

    @cached_property
    def key(self) -> str:
        """Of everything that its answers hang on, as it was when it was first looked for them: a model that is trained
        anew meanwhile is not taken for the one that answered."""
        return keys.of(self)

    @property
    def records(self) -> Records:
        return self.questions

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """Nothing to train on, and the questions. They have the same names for every model, so that its samples have
        the same seeds, however its tokenizer cuts them."""
        _, rendered = render_prompts(self.questions, self.tokenizer)
        rows = zip(rendered, self.questions.heldout, strict=True)
        return [], [replace(prompt, prompt_id=problem_id(i, record)) for i, (prompt, record) in enumerate(rows)]

    @cached_property
    def model_length(self) -> int:
        """Virtual tokens of the adapter left out."""
        taken = adapter_settings(self.adapter).get("num_virtual_tokens") if self.adapter else 0
        return context_length(self.recipe.model, self.model_path) - (taken or 0)

    @cached_property
    def lora_rank(self) -> int | None:
        """The greatest rank of an adapter that engines take while they run; None for another kind of adapter."""
        settings = adapter_settings(self.adapter) if self.adapter else {}
        return max(settings["r"], *(settings.get("rank_pattern") or {"": 0}).values()) if travels(settings) else None


def travels(settings: Mapping[str, Any]) -> bool:
    """Whether an adapter is B A on weights that stay as they are, and nothing else."""
    odd = ("use_dora", "modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters")
    plain = settings.get("bias", "none") == "none" and settings.get("init_lora_weights", True) in (
        True,
        False,
        "gaussian",
    )
    return settings.get("peft_type") == "LORA" and plain and not any(settings.get(key) for key in odd)


def served(stage: Stage, recipe: EvalRecipe, questions: Records) -> dict[str, Served]:
    """Every model, by its name. Raises `ModelError` for one that the engine cannot serve, and `DataError`."""
    found = {
        name: Served(
            recipe.alone(name), stage.directory / "models" / name, stage.runtime, stage.events, stage.debug,
            name=name, questions=questions,
        )
        for name in recipe.models
    }  # fmt: skip
    for one in found.values():
        _check_servable(one, recipe)
    fitting = _that_fit(found.values(), questions)
    return {name: replace(one, questions=fitting) for name, one in found.items()} if fitting is not questions else found


def _that_fit(models: Iterable[Served], questions: Records) -> Records:
    """Those that leave every model room for a whole answer; says how many do not. Raises `DataError` if none does."""
    long: set[int] = set()
    for one in models:
        left = room(one.recipe.rollout, one)
        long |= {i for i, prompt in enumerate(one.prompts[1]) if len(prompt.tokens) > left}
    if not long:
        return questions
    left_out = f"{len(long)} of {len(questions.heldout)} prompts leave no room for an answer in the length of a model"
    if len(long) == len(questions.heldout):
        raise DataError(f"{left_out}. Lower rollout.max_new_tokens, or raise rollout.max_model_len.")
    logger.warning("%s; no model is asked them.", left_out)
    return replace(questions, heldout=[row for i, row in enumerate(questions.heldout) if i not in long])


def _check_servable(one: Served, recipe: EvalRecipe) -> None:
    if one.adapter is None or one.lora_rank is not None or recipe.rollout.engine != "vllm":
        return
    kind = adapter_settings(one.adapter).get("peft_type")
    raise ModelError(
        f"models.{one.name}.adapter: {one.adapter} is of a kind ({kind}, or LoRA with more than its two matrices) that "
        "vLLM does not serve; set rollout.engine=transformers, or merge it (`rlpipe merge`) and give the model"
    )


@dataclass(frozen=True, slots=True)
class Sitting:
    """Models that the same engines serve, one after the other."""

    models: tuple[Served, ...]
    lora_rank: int | None
    """Adapters up to this rank come while they run."""

    @property
    def beside(self) -> Path | None:
        """An adapter that the engines are started with."""
        return self.models[0].adapter if self.lora_rank is None else None

    @property
    def names(self) -> str:
        return ", ".join(model.name for model in self.models)


def sittings(models: Sequence[Served], last: str | None) -> list[Sitting]:
    """As few as possible: models of one folder share engines, with LoRA adapters and without, where the tokenizers that
    come with the adapters ask and end alike; any other has its own.
    The model called `last` comes last, in the last one."""
    groups: dict[Any, list[Served]] = {}
    for model in models:
        alone = model.adapter is not None and model.lora_rank is None
        groups.setdefault(model.name if alone else _shared(model), []).append(model)
    found = [_sitting(sorted(group, key=lambda model: model.name == last)) for group in groups.values()]
    return sorted(found, key=lambda sitting: any(model.name == last for model in sitting.models))


def _shared(model: Served) -> Any:
    """What models have to have in common."""
    spec, tokenizer = model.recipe.model, model.tokenizer
    asks = (tokenizer.chat_template, tokenizer.eos_token_id)
    return (model.model_path, spec.dtype, getattr(spec, "revision", None), str(asks))


def _sitting(models: Sequence[Served]) -> Sitting:
    return Sitting(tuple(models), max((model.lora_rank or 0 for model in models), default=0) or None)
