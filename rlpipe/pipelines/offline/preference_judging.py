"""What a policy's rewards say on held-out records, over all of them and whatever the ranks.

TRL averages the means of batches, of which the last is smaller, and where policy and reference are still the same it
counts no pair as ranked right. Here every record counts the same, and equal rewards count one half.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlpipe.pipelines.offline.trl_worker import TrlJob

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

Summary = Callable[["torch.Tensor", "torch.Tensor"], dict[str, float]]


HELDOUT = {
    "eval_pair_accuracy": "heldout_pair_accuracy",
    "eval_pair_accuracy_stderr": "heldout_pair_accuracy_stderr",
    "eval_pair_margin": "heldout_margin",
}
"""Names of these metrics: the trainer's, and ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgingJob(TrlJob):
    """A job that ranks held-out responses."""

    prompts_B: np.ndarray
    """Which prompt each held-out record is about, as a number: those of one prompt are no independent evidence."""


def of_pairs(prompts_B: np.ndarray) -> Summary:
    """The share of pairs whose better response has the higher reward, its standard error, and by how much in the
    mean. Takes the rewards of both sides, each [B]."""

    def summary(chosen_B: "torch.Tensor", rejected_B: "torch.Tensor") -> dict[str, float]:
        won_B = won(chosen_B - rejected_B)
        return {
            "pair_accuracy": won_B.mean().item(),
            "pair_accuracy_stderr": clustered_stderr(won_B.numpy(), prompts_B),
            "pair_margin": (chosen_B - rejected_B).mean().item(),
        }

    return summary


def of_judged(prompts_B: np.ndarray) -> Summary:
    """The same over every pair of a good and a bad response: the accuracy is the area under the ROC curve. Takes
    rewards and labels, each [B].

    Its standard error is that of the mean over the good ones of the share of bad ones that each beats, and the other
    way round (DeLong et al. 1988), with the effects of one prompt added up (Obuchowski 1997).
    """

    def summary(rewards_B: "torch.Tensor", good_B: "torch.Tensor") -> dict[str, float]:
        good, bad = rewards_B[good_B], rewards_B[~good_B]
        if not len(good) or not len(bad):
            return {}
        beaten_G, beats_W = _shares(good, bad)
        share, good_B = beaten_G.mean(), good_B.numpy()
        effects_B = np.empty(len(good_B))
        effects_B[good_B], effects_B[~good_B] = (beaten_G - share) / len(good), (beats_W - share) / len(bad)
        return {
            "pair_accuracy": float(share),
            "pair_accuracy_stderr": _of_a_sum(effects_B, prompts_B),
            "pair_margin": (good.mean() - bad.mean()).item(),
        }

    return summary


def _shares(good: "torch.Tensor", bad: "torch.Tensor") -> tuple[np.ndarray, np.ndarray]:
    """What share of the bad ones each good one beats; by what share of the good ones each bad one is beaten."""
    rows, total = [], 0.0
    for part in good.double().split(1024):  # not all comparisons at once
        compared = won(part[:, None] - bad.double()).double()
        rows.append(compared.mean(1))
        total = total + compared.sum(0)
    return np.concatenate([row.numpy() for row in rows]), (total / len(good)).numpy()


def clustered_stderr(values_B: np.ndarray, clusters_B: np.ndarray) -> float:
    """Standard error of the mean of values of which those of one cluster are not independent:

        sqrt( sum over clusters c of (sum over i in c of (x_i - mean))^2 ) / n

    (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640, eq. 4). With clusters of one it is the usual one with n in
    place of n - 1. Shapes: both [B].
    """
    return _of_a_sum((values_B - values_B.mean()) / len(values_B), clusters_B)


def _of_a_sum(effects_B: np.ndarray, clusters_B: np.ndarray) -> float:
    return float(np.sqrt(np.square(np.bincount(clusters_B, weights=effects_B)).sum()))


def won(differences: "torch.Tensor") -> "torch.Tensor":
    """1 where a difference of rewards ranks right, 0 where it does not, one half where there is none."""
    return (differences > 0) + 0.5 * (differences == 0)


def judging(trainer: "type[Trainer]", summary: Summary) -> "type[Trainer]":
    """The trainer with `summary` among the metrics of each evaluation; it passes the rewards of each held-out batch to
    `judge`."""
    import torch

    class Judging(trainer):
        def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
            self._judged: list[list[torch.Tensor]] = []
            output = super().evaluation_loop(*args, **kwargs)
            columns_B = (torch.cat(parts) for parts in zip(*self._judged, strict=True))
            output.metrics.update({f"eval_{name}": value for name, value in summary(*columns_B).items()})
            return output

        def judge(self, *columns_B: torch.Tensor) -> None:
            """Collective. Records that fill up the last batch of the ranks are left out."""
            self._judged.append([self.accelerator.gather_for_metrics(column).cpu() for column in columns_B])

    return Judging


@contextmanager
def logprob_sums(*models: "torch.nn.Module | None") -> Iterator[list["torch.Tensor"]]:
    """Sums over each response of the log-probabilities that forwards with TRL's fused head give, in the order of the
    calls."""
    sums: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: Any) -> None:
        sums.append(output.log_probs.detach().sum(-1).float())

    hooks = [model.register_forward_hook(keep) for model in models if model is not None]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
