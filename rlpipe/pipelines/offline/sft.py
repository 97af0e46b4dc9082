"""Supervised fine-tuning: TRL's SFTTrainer on Ray Train with DeepSpeed.

The driver reads, renders and tokenises the records once; the ranks get token ids and labels.
"""

from pathlib import Path

from rlpipe.data.examples import encode, truncate
from rlpipe.data.source import Records
from rlpipe.models.load import context_length, load_tokenizer
from rlpipe.pipelines.offline.launch import launch
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.sft_worker import SftJob, TokenTable
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
        model=recipe.model,
        model_path=str(Path(model_path).resolve()) if Path(model_path).is_dir() else model_path,
        tokenizer=tokenizer,
        training=recipe.train,
        seed=recipe.seed,
        timeout_seconds=recipe.deadlines.train,
        train=TokenTable.of(train_examples),
        heldout=TokenTable.of(heldout_examples),
        max_length=max_length,
        output_dir=str(output_dir.resolve()),
    )
