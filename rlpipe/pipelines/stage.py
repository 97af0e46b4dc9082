"""What every stage works with: its directory, its events, where its roles run, its data and its model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from rlpipe.data.chat import render_heldout, render_prompts
from rlpipe.data.flow import Prompt
from rlpipe.data.guidance import guided
from rlpipe.data.records import Records
from rlpipe.data.remote import storage_of
from rlpipe.data.source import Source, load_judged, load_preferences, load_records, load_sources
from rlpipe.data.storage import Storage
from rlpipe.models.load import context_length, load_causal_lm, load_tokenizer, materialise, resolve_dtype
from rlpipe.observe.events import EventLog
from rlpipe.pipelines.profiling import Steps
from rlpipe.recipe.adapter import is_the_result, virtual_tokens
from rlpipe.recipe.guidance import Specification
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.model import quantization_of
from rlpipe.recipe.preference import KtoRecipe, PreferenceRecipe
from rlpipe.recipe.tasks import RewardModelRecipe, RlRecipe, SftRecipe, StageRecipe
from rlpipe.runtime.roles import Runtime

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FINAL_MODEL = "model"
"""Folder of a stage's result in its directory: Hugging Face weights, configuration and tokenizer."""

FINAL_ADAPTER = "adapter"
"""Folder of the adapter that was trained, for PEFT; what it was merged into, if it can be, is the result beside it."""

LABELS = "labels"
"""Folder of what a labelling stage makes: data for other stages, and its card."""

RESULTS = (FINAL_MODEL, FINAL_ADAPTER, LABELS)


@dataclass(frozen=True)
class Stage:
    """One task of a run. What is expensive is made when it is first asked for."""

    recipe: StageRecipe
    directory: Path
    runtime: Runtime
    events: EventLog
    debug: bool
    profile: Steps | None = None
    """Of which steps traces are written."""

    @cached_property
    def storage(self) -> Storage:
        """Where what has to be durable at once is written; `directory` itself, unless that stands for a place in an
        object store."""
        return storage_of(self.directory)

    @cached_property
    def model_path(self) -> str:
        """The model the stage starts from; a scratch model is built here."""
        return materialise(self.recipe.model, self.recipe.seed, self.directory / "base")

    @cached_property
    def served_path(self) -> str:
        """What engines hold before anything is published to them: that model, or what a policy that is trained on 4-bit
        weights has in its place, which is written here."""
        recipe = self.recipe
        if not isinstance(recipe, RlRecipe) or quantization_of(recipe.model) is None:
            return self.model_path
        if recipe.publishing.base == "original":
            return self.model_path
        from rlpipe.training.export import save_pretrained

        directory = self.directory / "dequantized"
        model = load_causal_lm(recipe.model, self.model_path, resolve_dtype(recipe.model.dtype))
        save_pretrained(model, self.model_path, directory, writer=True)
        return str(directory)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        return load_tokenizer(self.recipe.model, self.model_path)

    @cached_property
    def dtype(self) -> str:
        """`float32` or `bfloat16`, for training and engines alike."""
        return str(resolve_dtype(self.recipe.model.dtype)).removeprefix("torch.")

    @cached_property
    def model_length(self) -> int:
        """Longest sequence of the model in tokens, virtual ones of its adapter left out."""
        return context_length(self.recipe.model, self.model_path) - virtual_tokens(self.recipe.adapter)

    @cached_property
    def sources(self) -> list[Source]:
        """What SFT learns from; the first is what it is asked about."""
        return load_sources(self.recipe.data)

    @cached_property
    def records(self) -> Records:
        match self.recipe:
            case SftRecipe():
                return self.sources[0].records
            case KtoRecipe():
                return load_judged(self.recipe.data)
            case RewardModelRecipe() | PreferenceRecipe():
                return load_preferences(self.recipe.data)
            case LabelRecipe(guidance=Specification() as guidance):
                return guided(load_records(self.recipe.data, only_prompts=True), guidance, self.tokenizer)
        return load_records(self.recipe.data, only_prompts=True)

    @cached_property
    def prompts(self) -> tuple[list[Prompt], list[Prompt]]:
        """(training, held-out) prompts as tokens."""
        return render_prompts(self.records, self.tokenizer)

    @cached_property
    def heldout(self) -> list[Prompt]:
        """Held-out prompts as tokens, for who has no use for the others."""
        return render_heldout(self.records, self.tokenizer)

    @cached_property
    def stop_token_ids(self) -> tuple[int, ...]:
        """What ends a response: end-of-sequence and the recipe's own."""
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*([] if eos is None else [eos]), *self.recipe.rollout.stop_token_ids]))

    @property
    def result(self) -> Path:
        """Where the model goes that the stage makes."""
        return self.directory / FINAL_MODEL

    @property
    def kept_adapter(self) -> Path | None:
        """Where the adapter goes that is the result in place of a model, if it cannot be merged into one."""
        return self.directory / FINAL_ADAPTER if is_the_result(self.recipe.adapter) else None
