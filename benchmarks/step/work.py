"""The work every contestant does: the same model, prompts, group size, length and reward."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlpipe.data.flow import Prompt

SEED = 0
LEARNING_RATE = 1e-5
TEMPERATURE = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """One step: `prompts` x `group` responses of exactly `new_tokens` tokens."""

    name: str
    prompts: int
    group: int
    new_tokens: int

    @property
    def samples(self) -> int:
        return self.prompts * self.group

    def __str__(self) -> str:
        return f"{self.samples} samples ({self.prompts} prompts x {self.group}) of {self.new_tokens} new tokens"


GRPO_CASES = (Case("short", 32, 8, 16), Case("long", 8, 8, 128))
GRPO_QUICK = (Case("short", 4, 4, 4), Case("long", 2, 4, 16))
PPO_CASES = (Case("short", 256, 1, 16), Case("long", 64, 1, 128))
PPO_QUICK = (Case("short", 16, 1, 4), Case("long", 8, 1, 16))


def build_model(folder: Path) -> None:
    """rlpipe's embedded default with random weights, made to never end a response by itself.

    Fixed lengths must not come from a sampling option: `min_tokens` changes the distribution, and `ignore_eos` is
    vLLM's alone. So the end token is made impossible in the weights: every token's embedding gets the same large
    component along one axis, which adds the same to every logit, and the end token's (tied) output row the opposite
    one. Its probability is then about e^-20.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlpipe.models.scratch import build
    from rlpipe.recipe.model import ScratchModel

    build(ScratchModel(scratch="qwen2"), SEED, folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    rows_VH = model.get_input_embeddings().weight.data
    rows_VH[:, 0] = 4.0
    rows_VH[AutoTokenizer.from_pretrained(folder).eos_token_id, 0] = -4.0
    model.save_pretrained(folder)


def classifier_of(model: Path) -> Path:
    """Where the classifier that goes with a model lies."""
    return model.with_name("classifier")


def build_classifier(model: Path) -> None:
    """The same backbone under a random score head: what scores, and what the critic starts from."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(model)
    classifier = AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype="float32")
    classifier.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    classifier.save_pretrained(classifier_of(model))
    tokenizer.save_pretrained(classifier_of(model))


def draw_prompts(folder: Path, count: int) -> "list[Prompt]":
    """The training prompts that an rlpipe run with seed `SEED` draws, in its order."""
    from rlpipe.data.cursor import PromptCursor

    cursor = PromptCursor(_training_prompts(folder), SEED)
    return [prompt for _, prompt in cursor.draw(count)]


@cache
def _training_prompts(folder: Path) -> "list[Prompt]":
    from transformers import AutoTokenizer

    from rlpipe.data.chat import render_prompts
    from rlpipe.data.source import load_records
    from rlpipe.recipe.data import ArithmeticData

    records = load_records(ArithmeticData(kind="arithmetic"), only_prompts=True)
    return render_prompts(records, AutoTokenizer.from_pretrained(folder))[0]


def even_bytes(completions: list[str], **_: Any) -> list[float]:
    """The reward: the share of characters with an even code point. Costs nothing, and differs between the samples of
    a random model, so that advantages and gradients are those of a real step."""
    return [sum(ord(c) % 2 == 0 for c in text) / max(1, len(text)) for text in completions]
