"""What comes of an evaluation: `comparison.json`, `answers.parquet`, `comparison.html`, and the words for people."""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlpipe.data.flow import Score
from rlpipe.data.group_table import REWARD
from rlpipe.data.records import DataError
from rlpipe.observe import comparison
from rlpipe.pipelines.evaluating import keys
from rlpipe.pipelines.evaluating.benchmarks import Measured
from rlpipe.pipelines.evaluating.compare import (
    LOWER_IS_BETTER,
    WIN_RATE,
    Against,
    against,
    as_data,
    not_compared,
    regressions,
    wins,
)
from rlpipe.pipelines.evaluating.measures import (
    Measure,
    diversity_measures,
    failure_measure,
    failures_in,
    greedy_measures,
    kl_measures,
    left_out,
    mean_of,
    refusal_measure,
    sampled_measures,
    score_of,
)
from rlpipe.pipelines.evaluating.served import Served
from rlpipe.pipelines.evaluating.stored import Book
from rlpipe.pipelines.evaluation import Answered, said_in
from rlpipe.pipelines.stage import Stage
from rlpipe.recipe.evaluating import EvalRecipe, EvaluatedModel

ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class Found:
    """Everything about all models."""

    stored: dict[str, Answered]
    measures: dict[str, dict[str, Measure]]
    compared: dict[str, dict[str, Against]]
    """Of all but the baseline."""
    duels: dict[str, list[dict[str, Any]]]
    """Where there is a judge."""


def tell(
    stage: Stage,
    recipe: EvalRecipe,
    models: Mapping[str, Served],
    book: Book,
    reference: Served | None,
    benchmarks: Mapping[str, Measured],
) -> list[str]:
    """Write everything; returns the regressions in words. Raises `DataError`, when all is written, where there is none
    and something could not be compared."""
    with stage.events.phase("compare", says="comparing"):
        found = _found(recipe, models, book, reference, benchmarks)
        lower = _lower_is_better(benchmarks)
        lost = regressions(found.compared, recipe.regressions, recipe.level, lower)
        data = _data(recipe, models, found, benchmarks) | {"regressions": [as_data(each) for each in lost]}
        rows = _rows(recipe, found)
        _tell_cut(stage, models, found, book, reference)
        stage.storage.write(ANSWERS, _parquet(rows))
        comparison.write(stage.storage, data, rows)
    unclear = not_compared(found.compared, recipe.regressions)
    if unclear and not lost:
        raise DataError("\n".join(unclear))
    return [*(each.told for each in lost), *unclear]


def _found(
    recipe: EvalRecipe,
    models: Mapping[str, Served],
    book: Book,
    reference: Served | None,
    benchmarks: Mapping[str, Measured],
) -> Found:
    stored = {name: book.answers(model) for name, model in models.items()}
    measures = {name: _measures(recipe, model, stored[name], book, reference) for name, model in models.items()}
    for name, each in benchmarks.items():
        measures[name] |= {metric: mean_of(values) for metric, values in each.questions.items()}
    base = recipe.compared_with
    duels = _duels(recipe, models, book)
    compared = {}
    for name in models:
        if base in (None, name):
            continue
        if name in duels:
            measures[name][WIN_RATE] = mean_of([row["win"] for row in duels[name]])
        elif recipe.rewards is not None:
            measures[name][WIN_RATE] = wins(stored[name].greedy, stored[base].greedy, recipe.win_by)
        compared[name] = {
            metric: against(
                metric,
                measure,
                measures[base].get(metric),
                recipe.seed,
                _lower_is_better(benchmarks),
                recipe.regressions.get(metric, 0.0),
            )
            for metric, measure in measures[name].items()
            if metric == WIN_RATE or _same_questions(measure, measures[base].get(metric))
        }
    return Found(stored, measures, compared, duels)


def _tell_cut(stage: Stage, models: Mapping[str, Served], found: Found, book: Book, reference: Served | None) -> None:
    """Where one context is shorter than the answers of the other."""
    for name, model in models.items() if reference is not None else ():
        answered = found.stored[name]
        if count := left_out(*(book.logprobs(model, reader, answered) for reader in (model, reference))):
            stage.events.note(
                f"reference_kl and perplexity of {name} leave {count:,} tokens out, which do not fit into the context "
                f"of {name} or of {reference.name}; rollout.max_model_len, the same for both, ends answers before that"
            )


def _same_questions(ours: Measure, baseline: Measure | None) -> bool:
    """A benchmark may have been measured on more questions of one model than of another."""
    return baseline is not None and len(ours.above_N) == len(baseline.above_N)


def _lower_is_better(benchmarks: Mapping[str, Measured]) -> set[str]:
    return {*LOWER_IS_BETTER, *(name for each in benchmarks.values() for name in each.lower_is_better)}


def _duels(recipe: EvalRecipe, models: Mapping[str, Served], book: Book) -> dict[str, list[dict[str, Any]]]:
    """What a judge said, by model and prompt; nothing without one."""
    if recipe.judge is None:
        return {}
    base = models[recipe.compared_with]
    others = [model for model in models.values() if model is not base]
    return {one.name: book.judged(one, keys.of_judgements(recipe.judge, one, base)) for one in others}


def _measures(
    recipe: EvalRecipe, model: Served, answered: Answered, book: Book, reference: Served | None
) -> dict[str, Measure]:
    greedy, sampled = answered.greedy, answered.sampled
    found = greedy_measures(greedy, recipe.evaluation) | sampled_measures(sampled, recipe.evaluation)
    found["failure_rate"] = failure_measure(greedy)
    if recipe.refusals:
        found["refusals"] = refusal_measure(greedy, recipe.refusals)
    if recipe.evaluation.samples > 1:
        found |= diversity_measures(sampled)
    if reference is not None:
        found |= kl_measures(*(book.logprobs(model, reader, answered) for reader in (model, reference)))
    return found


def _data(
    recipe: EvalRecipe, models: Mapping[str, Served], found: Found, benchmarks: Mapping[str, Measured]
) -> dict[str, Any]:
    return {
        "baseline": recipe.compared_with,
        "reference": recipe.reference,
        "level": recipe.level,
        "prompts": len(next(iter(found.stored.values())).greedy),
        "samples": recipe.evaluation.samples,
        "models": {name: _model(recipe, name, found, benchmarks.get(name)) for name in models},
    }


def _model(recipe: EvalRecipe, name: str, found: Found, benchmarks: Measured | None) -> dict[str, Any]:
    spec = recipe.models[name]
    about = (
        spec.model_dump(include={"path", "adapter"}) if isinstance(spec, EvaluatedModel) else {"path": "from scratch"}
    )
    metrics = {metric: _metric(measure, recipe.seed) for metric, measure in found.measures[name].items()}
    for metric, (value, error) in (benchmarks.wholes if benchmarks else {}).items():
        metrics[metric] = {"value": value, "low": value - 1.96 * error, "high": value + 1.96 * error, "prompts": None}
    compared = {metric: as_data(each) for metric, each in found.compared.get(name, {}).items()}
    greedy = found.stored[name].greedy
    unjudged = sum(row["win"] is None for row in found.duels.get(name, []))
    counts = {"failures": failures_in(greedy), "failed_judgements": unjudged}
    return about | counts | {"metrics": metrics, "against": compared}


def _metric(measure: Measure, seed: int) -> dict[str, float | int]:
    low, high = measure.interval(seed)
    return {"value": measure.value, "low": low, "high": high, "prompts": int((measure.below_N > 0).sum())}


def _rows(recipe: EvalRecipe, found: Found) -> list[dict[str, Any]]:
    """One per prompt, model and answer: the greedy one first."""
    rewards = [reward.name for reward in recipe.mix]
    refused = {name: measures.get("refusals") for name, measures in found.measures.items()}
    rows = []
    for name, stored in found.stored.items():
        for kind, groups in (("greedy", stored.greedy), ("sampled", stored.sampled)):
            for place, group in enumerate(groups):
                for sample in range(len(group.trajectories)):
                    row = _row(recipe, rewards, group, sample)
                    measure = refused[name] if kind == "greedy" else None
                    refuses = None if measure is None else bool(measure.above_N[place])
                    duel = found.duels[name][place] if kind == "greedy" and name in found.duels else {}
                    judged = {f"judge_{key}": duel.get(key) for key in ("win", "details", "failure")}
                    rows.append({"model": name, "kind": kind, "sample": sample} | row | {"refused": refuses} | judged)
    return rows


def _row(recipe: EvalRecipe, rewards: list[str], group: Any, sample: int) -> dict[str, Any]:
    outcome, settings = group.outcomes[sample], recipe.evaluation
    scored = isinstance(outcome, Score)
    score = score_of(outcome, settings.correct_by)
    judged = score is not None and settings.correct_at is not None
    worth = outcome.value if scored and outcome.judged else None
    return {
        "prompt_id": group.prompt.prompt_id,
        "prompt": group.prompt.text,
        "columns": group.prompt.columns,
        "answer": said_in(group, sample),
        "correct": score >= settings.correct_at if judged else None,
        "reward": worth,
        **{f"{REWARD}{name}": outcome.components.get(name) if scored else None for name in rewards},
        "failure_kind": None if scored else outcome.kind,
        "failure_message": None if scored else outcome.message,
        "length": int(group.trajectories[sample].response_mask.sum()),
        "finish_reason": group.trajectories[sample].finish_reason.value,
    }


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row | {"columns": comparison.as_json(row["columns"])} for row in rows]), sink)
    return sink.getvalue()
