"""Dynamic sampling: groups that teach nothing make room for others within the step."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import compress

import numpy as np
import torch

from rlpipe.algorithms.groups import has_signal
from rlpipe.data.flow import Failure, Group
from rlpipe.pipelines.online.batch import scored


def flat(groups: Sequence[Group]) -> np.ndarray:
    """Of each group whether its rewards, before any shaping, are all equal: it has fewer than two, or no spread."""
    if not groups:
        return np.zeros(0, dtype=bool)
    sizes = [len(group.outcomes) for group in groups]
    rewards = scored(groups)
    groups_B = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(sizes))
    signal_B = has_signal(rewards.rewards_B, groups_B, rewards.valid_B).numpy()
    return ~signal_B[np.cumsum([0, *sizes[:-1]])]  # a group's members all have the same answer


def replace_flat(
    groups: Sequence[Group],
    max_rounds: int,
    drop: Callable[[list[str], str], None],
    sample: Callable[[int], list[Group]],
) -> tuple[list[Group], list[Group]]:
    """The groups to train on, as many as were given, and those dropped on the way (DAPO, Yu et al. 2025,
    arXiv 2503.14476, section 3.2).

    Flat groups are dropped and as many sampled anew, up to `max_rounds` times; flat ones of the last round stay. `drop`
    gets the ids of dropped groups and the reason, before `sample` is asked for replacements.
    """
    kept, dropped = list(groups), []
    for _ in range(max_rounds):
        is_flat = flat(kept)
        if not is_flat.any():
            break
        useless = list(compress(kept, is_flat))
        for reason, ids in _reasons(useless).items():
            drop(ids, reason)
        dropped += useless
        kept = [*compress(kept, ~is_flat), *sample(len(useless))]
    return kept, dropped


def _reasons(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Why these teach nothing, and which of them for what reason."""
    reasons = defaultdict(list)
    for group in groups:
        failed = sum(isinstance(outcome, Failure) for outcome in group.outcomes)
        few = len(group.outcomes) - failed < 2
        equal = "no signal: its rewards are all equal"
        reasons["its rewards could not be computed" if failed and few else equal].append(group.group_id)
    return reasons
