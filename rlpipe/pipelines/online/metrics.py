"""What a step's samples look like in numbers. Names as in `observe.metrics`."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rlpipe.data.flow import FinishReason, Group, Score
from rlpipe.pipelines.evaluation import turns_metric

_CUT_OFF = (FinishReason.LENGTH, FinishReason.TURNS)


def sample_metrics(groups: Sequence[Group], seconds: float) -> dict[str, float]:
    """Means over the step's responses; rewards only over those whose reward could be computed."""
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [o for group in groups for o in group.outcomes]
    scores = [o for o in outcomes if isinstance(o, Score)]
    lengths = np.array([t.response_mask.sum() for t in trajectories])  # what an environment says costs no generation
    return {
        "reward": _mean([s.value for s in scores]),
        **{f"reward/{name}": _mean(values) for name, values in _components(scores).items()},
        "reward_failures": float(len(outcomes) - len(scores)),
        "groups_without_signal": float(np.mean([_is_flat(group) for group in groups])),
        "response_length": float(lengths.mean()),
        "truncated": float(np.mean([t.finish_reason in _CUT_OFF for t in trajectories])),
        **turns_metric(trajectories),
        "step_seconds": seconds,
        "tokens_per_second": float(lengths.sum()) / seconds,
    }


def _components(scores: Sequence[Score]) -> dict[str, list[float]]:
    values = defaultdict(list)
    for score in scores:
        for name, value in score.components.items():
            values[name].append(value)
    return values


def _is_flat(group: Group) -> bool:
    """True if all rewards of the group are equal: its advantages are 0 and it teaches nothing."""
    return len({o.value for o in group.outcomes if isinstance(o, Score)}) < 2


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
