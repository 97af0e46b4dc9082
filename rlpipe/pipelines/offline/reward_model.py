"""Reward modelling: TRL's RewardTrainer on Ray Train with DeepSpeed.

The driver reads, renders and tokenises the preferences once; the ranks get token ids.
"""

from pathlib import Path

import numpy as np

from rlpipe.data.preferences import Pair, encode_pairs, numbered, truncated_left, within
from rlpipe.data.records import Record, Records
from rlpipe.models.load import load_tokenizer
from rlpipe.pipelines.offline.launch import fields, launch, longest_sequence
from rlpipe.pipelines.offline.length_baseline import beside_length
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.reward_model_worker import RewardModelJob
from rlpipe.pipelines.offline.table import Table
from rlpipe.pipelines.profiling import Steps
from rlpipe.recipe.tasks import RewardModelRecipe


def run_reward_model(
    recipe: RewardModelRecipe,
    model_path: str,
    records: Records,
    output_dir: Path,
    debug: bool,
    report: Report,
    profile: Steps | None = None,
) -> None:
    """Train and write a Hugging Face sequence classifier (safetensors, configuration, tokenizer) to `output_dir`.

    `model_path` is what `materialise` gave. `report(step, metrics)` is called every train.logging_steps with loss,
    train_pair_accuracy, margin (chosen minus rejected), mean_score, learning_rate, grad_norm, tokens and epoch, and
    before and after training with heldout_loss, heldout_pair_accuracy, heldout_pair_accuracy_stderr, heldout_margin
    and, for comparison, heldout_length_baseline. `debug` trains in this process; otherwise Ray must be connected.
    Raises as `run_sft` does.
    """
    train, heldout = encode(recipe, model_path, records)
    job = prepare(recipe, model_path, train, heldout, output_dir)
    launch("reward model", recipe, job, debug, beside_length(report, job.heldout), profile)


def encode(recipe: RewardModelRecipe, model_path: str, records: Records) -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs as tokens, those that are too long cut or left out."""
    tokenizer = load_tokenizer(recipe.model, model_path)
    longest = longest_sequence(recipe, model_path)

    def fitting(rows: list[Record]) -> list[Pair]:
        pairs = encode_pairs(rows, records, tokenizer)
        if recipe.train.truncation_side == "left":
            pairs = truncated_left(pairs, longest, tokenizer.bos_token_id)
        return within(pairs, longest)

    return fitting(records.train), fitting(records.heldout)


def prepare(
    recipe: RewardModelRecipe, model_path: str, train: list[Pair], heldout: list[Pair], output_dir: Path
) -> RewardModelJob:
    """Everything the ranks need."""
    return RewardModelJob(
        **fields(recipe, model_path, load_tokenizer(recipe.model, model_path), output_dir),
        training=recipe.train,
        train=_table(train),
        heldout=_table(heldout),
        prompts_B=np.array(numbered(pair.prompt for pair in heldout)),
        max_length=recipe.train.max_length,
    )


def _table(pairs: list[Pair]) -> Table:
    sequences = {"chosen_ids": [pair.chosen for pair in pairs], "rejected_ids": [pair.rejected for pair in pairs]}
    margins = np.array([pair.margin for pair in pairs], dtype=np.float32)
    return Table.of(sequences, {"margin": margins} if margins.any() else {})
