"""Supervised fine-tuning: TRL's SFTTrainer on Ray Train with DeepSpeed.

The driver reads, renders and tokenises the records once; the ranks get token ids and labels.
"""

from pathlib import Path

from rlpipe.data.examples import Example, LossOn, encode, split, truncate
from rlpipe.data.mixture import mixed
from rlpipe.data.records import Format, Record, Records
from rlpipe.data.source import Source
from rlpipe.models.load import load_tokenizer
from rlpipe.pipelines.offline.launch import fields, launch, longest_sequence
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.sft_worker import SftJob
from rlpipe.pipelines.offline.table import Table
from rlpipe.pipelines.profiling import Steps
from rlpipe.recipe.data import MixtureData
from rlpipe.recipe.tasks import SftRecipe


def run_sft(
    recipe: SftRecipe,
    model_path: str,
    sources: list[Source],
    output_dir: Path,
    debug: bool,
    report: Report,
    profile: Steps | None = None,
) -> None:
    """Train and write a Hugging Face folder (safetensors, configuration, tokenizer) to `output_dir`.

    `model_path` is what `materialise` gave. `report(step, metrics)` is called every train.logging_steps with loss,
    learning_rate, grad_norm, token_accuracy, entropy, tokens and epoch, and before and after training (and every
    train.eval_steps) with heldout_loss and heldout_token_accuracy on evaluation.prompts of the held-out records; those
    of source X of a mixture, the first aside, are called heldout_loss/X. `debug` trains in this process; otherwise Ray
    must be connected. Raises `DataError`, `ModelError`, `PlacementError`, `GivenUp` if processes are lost again and
    again, or `TrainingFailed` for what is not foreseen.
    """
    launch("SFT", recipe, prepare(recipe, model_path, sources, output_dir), debug, report, profile)


def prepare(recipe: SftRecipe, model_path: str, sources: list[Source], output_dir: Path) -> SftJob:
    """Everything the ranks need, checked."""
    tokenizer = load_tokenizer(recipe.model, model_path)
    max_length = longest_sequence(recipe, model_path)
    fit = split if recipe.train.packing_strategy == "bfd_split" else truncate

    def encoded(rows: list[Record], records: Records) -> list[Example]:
        loss_on = _loss_on(recipe, records)
        return fit(encode(rows, records, tokenizer, loss_on), max_length)

    parts = [encoded(source.records.train, source.records) for source in sources]
    heldout = [encoded(s.records.heldout[: recipe.evaluation.prompts], s.records) for s in sources]
    first, *others = (_table(part) for part in heldout)
    return SftJob(
        **fields(recipe, model_path, tokenizer, output_dir),
        training=recipe.train,
        train=_table(_together(recipe, sources, parts)),
        heldout=first,
        others={source.name: table for source, table in zip(sources[1:], others, strict=True)},
        max_length=max_length,
    )


def _loss_on(recipe: SftRecipe, records: Records) -> LossOn:
    """In a mixture plain text counts as a whole, beside records that have completions or turns."""
    whole = isinstance(recipe.data, MixtureData) and records.format is Format.TEXT
    return "all" if whole else recipe.train.loss_on


def _together(recipe: SftRecipe, sources: list[Source], parts: list[list[Example]]) -> list[Example]:
    if len(parts) == 1:
        return parts[0]
    training = recipe.train
    batch = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.ranks
    most = training.max_steps * batch if training.max_steps and not training.packing else None
    return mixed(parts, [source.weight for source in sources], most, recipe.seed)


def _table(examples: list[Example]) -> Table:
    return Table.of({"input_ids": [one.ids for one in examples], "labels": [one.labels for one in examples]})
