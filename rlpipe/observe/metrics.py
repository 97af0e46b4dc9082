"""The names under which loops report metrics, and how views label them. Names not listed here are shown as they are.

Further names: `reward/NAME` is the mean of one component of the mix; `phase/NAME` seconds of a phase are TensorBoard's.
"""

from typing import NamedTuple


class Label(NamedTuple):
    """How a metric is titled, its unit, and how one value is written."""

    title: str
    unit: str = ""
    format: str = ".3g"

    def text(self, value: float) -> str:
        return f"{value:{self.format}}" + (f" {self.unit}" if self.unit else "")


METRICS = {
    "reward": Label("reward", "", ".3f"),
    "accuracy": Label("held-out accuracy", "", ".1%"),
    "loss": Label("loss", "", ".4g"),
    "reference_kl": Label("KL to the reference", "nats/token", ".3g"),
    "policy_kl": Label("KL of the update", "nats/token", ".2g"),
    "mismatch/abs": Label("trainer-engine mismatch", "nats/token", ".1e"),
    "entropy": Label("entropy", "nats/token", ".3g"),
    "response_length": Label("response length", "tokens", ".1f"),
    "truncated": Label("responses cut off at the limit", "", ".1%"),
    "tokens_per_second": Label("tokens/s", "", ",.0f"),
    "step_seconds": Label("step time", "s", ".2f"),
    "learning_rate": Label("learning rate", "", ".2e"),
    "grad_norm": Label("gradient norm", "", ".3g"),
    "clip_fraction": Label("clipped tokens", "", ".2%"),
    "reward_failures": Label("failed rewards", "", ".0f"),
}


def label(name: str) -> Label:
    """The label of a metric; `pass@k` and rewards by component are recognised."""
    if name.startswith("reward/"):
        return Label(f"reward: {name.removeprefix('reward/')}", "", ".3f")
    if name.startswith("pass@"):
        return Label(f"held-out {name}", "", ".1%")
    return METRICS.get(name, Label(name))
