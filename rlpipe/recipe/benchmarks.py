"""Standard benchmarks, run by EleutherAI's lm-evaluation-harness."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from rlpipe.recipe.base import FilePath, Strict


class Benchmarks(Strict):
    """Tasks of lm-evaluation-harness, in a process of its own for each model; `pip install 'rlpipe[eval]'`."""

    tasks: Annotated[list[str], Field(min_length=1)]
    """Names of tasks or groups, such as `gsm8k` and `mmlu` (`lm_eval ls tasks`), or of those in `include_path`."""
    include_path: FilePath | None = None
    """Folder with task files of your own, which may name local data."""
    backend: Literal["auto", "vllm", "hf"] = "auto"
    """What the harness has the model on: vLLM, or transformers (`hf`); auto is what rollout.engine is."""
    num_fewshot: NonNegativeInt | None = None
    """Examples before each question; what each task says if absent."""
    limit: PositiveInt | None = None
    """Questions of each task, the first ones; all if absent."""
    apply_chat_template: bool = False
    """Ask through the tokenizer's chat template."""
    batch_size: PositiveInt = 16
    """Questions at once, with `hf`; vLLM batches by itself."""
    deadline: PositiveFloat = 14400.0
    """Seconds that one model may take."""
