"""What a policy's rewards say on held-out records, over all of them and whatever the ranks.

TRL averages the means of batches, of which the last is smaller, and where policy and reference are still the same it
counts no pair as ranked right. Here every record counts the same, and equal rewards count one half.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

Summary = Callable[["torch.Tensor", "torch.Tensor"], dict[str, float]]


def of_pairs(chosen_B: "torch.Tensor", rejected_B: "torch.Tensor") -> dict[str, float]:
    """The share of pairs whose better response has the higher reward, and by how much in the mean."""
    return {
        "pair_accuracy": won(chosen_B - rejected_B).mean().item(),
        "pair_margin": (chosen_B - rejected_B).mean().item(),
    }


def of_judged(rewards_B: "torch.Tensor", good_B: "torch.Tensor") -> dict[str, float]:
    """The same over every pair of a good and a bad response: the accuracy is the area under the ROC curve."""
    good, bad = rewards_B[good_B], rewards_B[~good_B]
    if not len(good) or not len(bad):
        return {}
    share = sum(won(part[:, None] - bad).mean().item() * len(part) for part in good.split(1024)) / len(good)
    return {"pair_accuracy": share, "pair_margin": (good.mean() - bad.mean()).item()}


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
