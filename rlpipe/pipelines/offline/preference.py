"""Preference optimisation: TRL's DPO, KTO, ORPO and CPO trainers on Ray Train with DeepSpeed.

The driver reads, renders and tokenises the responses once; the ranks get token ids.
"""

import logging
from pathlib import Path

import numpy as np

from rlpipe.data.preferences import numbered
from rlpipe.data.records import Records
from rlpipe.data.responses import Judged, ResponsePair, encode_judged, encode_response_pairs
from rlpipe.models.load import load_tokenizer
from rlpipe.pipelines.offline.dpo_worker import DpoJob
from rlpipe.pipelines.offline.kto_worker import KtoJob
from rlpipe.pipelines.offline.launch import fields, launch, longest_sequence
from rlpipe.pipelines.offline.length_baseline import beside_length
from rlpipe.pipelines.offline.preference_judging import JudgingJob
from rlpipe.pipelines.offline.progress import Report
from rlpipe.pipelines.offline.reference_free_worker import CpoJob, OrpoJob
from rlpipe.pipelines.offline.table import Table
from rlpipe.pipelines.profiling import Steps
from rlpipe.recipe.preference import CpoRecipe, DpoRecipe, KtoRecipe, OrpoRecipe, PreferenceRecipe
from rlpipe.recipe.preference_training import KtoTraining

logger = logging.getLogger(__name__)

_JOBS = {DpoRecipe: DpoJob, KtoRecipe: KtoJob, OrpoRecipe: OrpoJob, CpoRecipe: CpoJob}


def run_preference(
    recipe: PreferenceRecipe,
    model_path: str,
    records: Records,
    output_dir: Path,
    debug: bool,
    report: Report,
    profile: Steps | None = None,
) -> None:
    """Train and write a Hugging Face folder (safetensors, configuration, tokenizer) to `output_dir`.

    `model_path` is what `materialise` gave. `report(step, metrics)` is called every train.logging_steps with TRL's
    metrics (loss, rewards/chosen, rewards/rejected, rewards/margins, rewards/accuracies, logps/...), and before and
    after training with heldout_loss, heldout_pair_accuracy, heldout_pair_accuracy_stderr, heldout_margin and, for
    comparison, heldout_length_baseline. `debug` trains in this process; otherwise Ray must be connected. Raises as
    `run_sft` does.
    """
    job = prepare(recipe, model_path, records, output_dir)
    launch(recipe.task.upper(), recipe, job, debug, beside_length(report, job.heldout), profile)


def prepare(recipe: PreferenceRecipe, model_path: str, records: Records, output_dir: Path) -> JudgingJob:
    """Everything the ranks need, checked."""
    tokenizer = load_tokenizer(recipe.model, model_path)
    max_length = longest_sequence(recipe, model_path)
    parts = (records.train, records.heldout)
    if isinstance(recipe, KtoRecipe):
        judged = [_shuffled(encode_judged(rows, records, tokenizer, max_length), recipe.seed) for rows in parts]
        _warn_of_balance(judged[0], recipe.train)
        train, heldout = (judged_table(part, recipe.train) for part in judged)
    else:
        train, heldout = (_pair_table(encode_response_pairs(rows, records, tokenizer, max_length)) for rows in parts)
    return _JOBS[type(recipe)](
        **fields(recipe, model_path, tokenizer, output_dir),
        training=recipe.train,
        train=train,
        heldout=heldout,
        prompts_B=np.array(numbered(ids.tobytes() for ids in heldout.sequences["prompt_ids"].apart())),
        max_length=max_length,
    )


def _pair_table(pairs: list[ResponsePair]) -> Table:
    columns = {"prompt_ids": "prompt", "chosen_ids": "chosen", "rejected_ids": "rejected"}
    return Table.of({name: [getattr(pair, field) for pair in pairs] for name, field in columns.items()})


def _shuffled(judged: list[Judged], seed: int) -> list[Judged]:
    """KTO takes its data as it stands, since responses that lie in one batch estimate its KL."""
    return [judged[i] for i in np.random.default_rng(seed).permutation(len(judged))]


def judged_table(judged: list[Judged], training: KtoTraining) -> Table:
    """The responses; for KTO's KL each prompt gets the response of its neighbour in the batch of all ranks, too, as in
    TRL on one rank."""
    sequences = {
        "prompt_ids": [one.prompt for one in judged],
        "completion_ids": [one.completion for one in judged],
    }
    if training.loss_type == "kto":
        batch = training.per_device_train_batch_size * training.ranks
        sequences["KL_completion_ids"] = _rotated(sequences["completion_ids"], batch)
    return Table.of(sequences, {"label": np.array([one.good for one in judged])})


def _rotated(completions: list[list[int]], batch: int) -> list[list[int]]:
    parts = (completions[start : start + batch] for start in range(0, len(completions), batch))
    return [ids for part in parts for ids in (part[-1], *part[:-1])]


def _warn_of_balance(judged: list[Judged], training: KtoTraining) -> None:
    good = sum(one.good for one in judged) * training.desirable_weight
    bad = sum(not one.good for one in judged) * training.undesirable_weight
    if not bad <= good <= 4 / 3 * bad:
        logger.warning(
            "Good and bad responses weigh %.0f to %.0f (count times weight). KTO's authors want 1 to 4/3; set "
            "train.desirable_weight or train.undesirable_weight.",
            good,
            bad,
        )
