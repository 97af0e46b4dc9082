"""What a step's samples look like in numbers. Names as in `observe.metrics`."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rlpipe.algorithms.shaping_kinds import Scored
from rlpipe.data.flow import FinishReason, Group, Score, TokenBatch, Trajectory
from rlpipe.pipelines.evaluating.measures import turns_metric
from rlpipe.pipelines.online.dynamic_sampling import flat

_CUT_OFF = (FinishReason.LENGTH, FinishReason.TURNS)


def sample_metrics(trained: Sequence[Group], dropped: Sequence[Group]) -> dict[str, float]:
    """Means over the step's responses, those of groups that dynamic sampling dropped among them, or rewards would look
    better than they are; rewards only over those whose reward could be computed."""
    groups = [*trained, *dropped]
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [o for group in groups for o in group.outcomes]
    scores = [o for o in outcomes if isinstance(o, Score)]
    lengths = np.array([t.response_mask.sum() for t in trajectories])  # what an environment says costs no generation
    return {
        "reward": _mean([s.value for s in scores]),
        **{f"reward/{name}": _mean(values) for name, values in _components(scores).items()},
        "reward_failures": float(len(outcomes) - len(scores)),
        "groups_without_signal": float(np.mean(flat(groups))),
        **({"groups_dropped": float(len(dropped))} if dropped else {}),
        "response_length": float(lengths.mean()),
        "truncated": float(np.mean([t.finish_reason in _CUT_OFF for t in trajectories])),
        **turns_metric(trajectories),
    }


def speed_metrics(trained: Sequence[Group], dropped: Sequence[Group], seconds: float) -> dict[str, float]:
    """How long the step took, and how many tokens it has gone through in that time: those sampled for it."""
    tokens = sum(float(t.response_mask.sum()) for group in [*trained, *dropped] for t in group.trajectories)
    return {"step_seconds": seconds, "tokens_per_second": tokens / seconds}


def staleness_metrics(trained: Sequence[Group], step: int, most: int) -> dict[str, float]:
    """How many versions older than the policy of the step's beginning the one was that sampled the first token: mean,
    maximum, and the share of responses for each number up to `most`; and the mean over all tokens. Nothing where
    `most` is 0."""
    if not most:
        return {}
    trajectories = [t for group in trained for t in group.trajectories]
    ages = np.array([step - 1 - t.versions[0].version for t in trajectories])
    of_tokens = np.concatenate([_ages(t, step) for t in trajectories])
    histogram = np.bincount(ages, minlength=most + 1) / len(ages)
    return {
        "staleness/mean": float(ages.mean()),
        "staleness/max": float(ages.max()),
        "staleness/tokens": float(of_tokens.mean()),
        **{f"staleness/share_{age}": float(share) for age, share in enumerate(histogram)},
    }


def _ages(trajectory: Trajectory, step: int) -> np.ndarray:
    """Of each token of the policy: versions since the one that sampled it."""
    firsts = [span.first_token for span in trajectory.versions]
    versions = np.array([span.version for span in trajectory.versions])
    span_of = np.searchsorted(firsts, np.arange(len(trajectory.response_tokens)), side="right") - 1
    return step - 1 - versions[span_of][trajectory.response_mask > 0]


def signal_metrics(batch: TokenBatch, shaped: Scored) -> dict[str, float]:
    """What the step learns from: rewards after shaping, over the responses trained on; advantages, values and returns
    over their tokens; the values are those from before the critic's update. And how likely the reference finds those
    tokens: exp(-reference_logprob) is their perplexity under it."""
    kept_N = batch.mask_N > 0
    advantages_N = batch.advantages_N[kept_N]
    metrics = {
        "reward_shaped": _mean(shaped.rewards_B[shaped.valid_B].tolist()),
        "advantage_mean": _mean(advantages_N),
        "advantage_std": float(np.std(advantages_N)) if kept_N.any() else 0.0,
    }
    if batch.reference_logprobs_N is not None:
        metrics["reference_logprob"] = _mean(batch.reference_logprobs_N[kept_N])
    if batch.values_N is None:
        return metrics
    return metrics | {"value_mean": _mean(batch.values_N[kept_N]), "return_mean": _mean(batch.returns_N[kept_N])}


def _components(scores: Sequence[Score]) -> dict[str, list[float]]:
    values = defaultdict(list)
    for score in scores:
        for name, value in score.components.items():
            values[name].append(value)
    return values


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")
