"""Supervised fine-tuning: TRL's SFTTrainer on Ray Train with DeepSpeed.

The driver reads, renders and tokenises the records once; the ranks get token ids and labels.
"""

from pathlib import Path

from rlpipe.data.examples import Example, encode, truncate
from rlpipe.data.source import Records
from rlpipe.models.load import context_length, load_tokenizer
from rlpipe.pipelines.offline.launch import fields, launch
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.sft_worker import SftJob
from rlpipe.pipelines.offline.table import Table
from rlpipe.recipe.tasks import SftRecipe


def run_sft(
    recipe: SftRecipe, model_path: str, records: Records, output_dir: Path, debug: bool, report: Report
) -> None:
    """Train and write a Hugging Face folder (safetensors, configuration, tokenizer) to `output_dir`.

    `model_path` is what `materialise` gave. `report(step, metrics)` is called every train.logging_steps with loss,
    learning_rate, grad_norm, token_accuracy, entropy, tokens and epoch, and before and after training with
    heldout_loss and heldout_token_accuracy on evaluation.prompts of the held-out records. `debug` trains in this
    process; otherwise Ray must be connected. Raises `DataError`, `ModelError`, `PlacementError`, `DeadlineExceeded`,
    `RoleDied`, or `TrainingFailed` for what is not foreseen.
    """
    launch("SFT", recipe, prepare(recipe, model_path, records, output_dir), debug, report)


def prepare(recipe: SftRecipe, model_path: str, records: Records, output_dir: Path) -> SftJob:
    """Everything the ranks need, checked."""
    tokenizer = load_tokenizer(recipe.model, model_path)
    max_length = min(recipe.train.max_length, context_length(recipe.model, model_path))
    heldout = records.heldout[: recipe.evaluation.prompts]
    train_examples, heldout_examples = (
        truncate(encode(rows, records, tokenizer, recipe.train.loss_on), max_length)
        for rows in (records.train, heldout)
    )
    return SftJob(
        **fields(recipe, model_path, tokenizer, output_dir),
        training=recipe.train,
        train=_table(train_examples),
        heldout=_table(heldout_examples),
        max_length=max_length,
    )


def _table(examples: list[Example]) -> Table:
    return Table.of({"input_ids": [one.ids for one in examples], "labels": [one.labels for one in examples]})
