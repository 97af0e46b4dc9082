"""The names under which loops report metrics, and how views label them. Names not listed here are shown as they are.

Further names: `reward/NAME` is the mean of one component of the mix; `phase/NAME` seconds of a phase are TensorBoard's.
"""

import math
from typing import NamedTuple

NOTHING = "–"
"""Stands for a mean over no response: every reward failed, and their count is shown beside."""


class Label(NamedTuple):
    """How a metric is titled (and in a narrow place), its unit, and how one value is written, NaN among them."""

    title: str
    short: str
    unit: str = ""
    format: str = ".3g"
    nan: str = "nan"

    def text(self, value: float) -> str:
        """The value with its unit: `5.1 tokens`."""
        return self.number(value) + (f" {self.unit}" if self.unit else "")

    def brief(self, value: float) -> str:
        """For a line of many: `length 5.1`."""
        return f"{self.short} {self.number(value)}"

    def number(self, value: float) -> str:
        """The value alone."""
        return self.nan if math.isnan(value) else f"{value:{self.format}}"


METRICS = {
    "reward": Label("reward", "reward", "", ".3f", NOTHING),
    "accuracy": Label("held-out accuracy", "accuracy", "", ".1%", NOTHING),
    "reward_shaped": Label("reward after shaping", "shaped reward", "", ".3f", NOTHING),
    "pair_accuracy": Label("held-out pairs ranked right", "pair accuracy", "", ".1%"),
    "pair_accuracy_stderr": Label("standard error of the share of pairs ranked right", "±", "", ".1%"),
    "train_pair_accuracy": Label("training pairs ranked right", "training pairs", "", ".1%"),
    "length_baseline": Label("held-out pairs ranked right by length alone", "by length alone", "", ".1%"),
    "margin": Label("score of the chosen minus the rejected", "margin", "", ".3f"),
    "rewards/margins": Label("implied reward of the chosen minus the rejected", "margin", "", ".3f"),
    "rewards/accuracies": Label("training pairs with the higher implied reward", "pairs right", "", ".1%"),
    "rewards/chosen": Label("implied reward of the chosen", "chosen", "", ".3f"),
    "rewards/rejected": Label("implied reward of the rejected", "rejected", "", ".3f"),
    "logps/chosen": Label("log-probability of the chosen", "log p(chosen)", "nats", ".2f"),
    "logps/rejected": Label("log-probability of the rejected", "log p(rejected)", "nats", ".2f"),
    "dpo/loss": Label("loss of the step's pairs", "DPO loss", "", ".4g"),
    "dpo/pairs": Label("pairs of a better and a worse answer", "pairs", "", ".0f"),
    "kl": Label("KL to the reference, per response", "KL", "nats", ".3g"),
    "nll_loss": Label("negative log-likelihood of the chosen", "nll", "nats/token", ".4g"),
    "loss": Label("loss", "loss", "", ".4g"),
    "reference_kl": Label("KL to the reference", "KL", "nats/token", ".3g"),
    "kl_coefficient": Label("weight of the KL penalty", "KL weight", "", ".3g"),
    "reference_logprob": Label("what the reference thinks of the responses", "under reference", "nats/token", ".3f"),
    "policy_kl": Label("KL of the update", "update KL", "nats/token", ".2g"),
    "mismatch/abs": Label("trainer-engine mismatch", "mismatch", "nats/token", ".1e"),
    "mismatch/effective_samples": Label("effective sample size, as a share of the tokens", "effective", "", ".1%"),
    "staleness/mean": Label("versions since a response was begun", "staleness", "versions", ".2f"),
    "staleness/max": Label("most versions since a response was begun", "oldest", "versions", ".0f"),
    "staleness/tokens": Label("versions since a token was sampled", "token staleness", "versions", ".2f"),
    "staleness/admitted": Label("steps that may be sampled ahead", "ahead", "steps", ".0f"),
    "entropy": Label("entropy", "entropy", "nats/token", ".3g"),
    "response_length": Label("response length", "length", "tokens", ".1f"),
    "length": Label("response length", "length", "tokens", ".1f"),
    "win_rate": Label("answers better than the baseline's", "win rate", "", ".1%", NOTHING),
    "refusals": Label("refusals", "refusals", "", ".1%", NOTHING),
    "distinct_2": Label("different word pairs among the samples of a prompt", "distinct-2", "", ".3f", NOTHING),
    "self_overlap": Label("word pairs that samples of a prompt share", "self-overlap", "", ".3f", NOTHING),
    "perplexity": Label("perplexity of the samples under the reference", "perplexity", "", ".4g", NOTHING),
    "turns": Label("turns of the policy", "turns", "turns", ".2f"),
    "failure_rate": Label("share of failed rewards", "failure rate", "", ".1%", NOTHING),
    "failures": Label("failed held-out rewards", "failed rewards", "", ".0f"),
    "truncated": Label("responses cut off at the limit", "cut off", "", ".1%"),
    "tokens_per_second": Label("throughput", "tokens/s", "tokens/s", ",.0f"),
    "step_seconds": Label("step time", "step", "s", ".2f"),
    "seconds": Label("wall-clock time", "time", "s", ",.0f"),
    "steps": Label("steps", "steps", "", ",.0f"),
    "samples": Label("samples seen", "samples", "", ",.0f"),
    "peak_memory_gib": Label("peak memory", "memory", "GiB", ".2f"),
    "learning_rate": Label("learning rate", "lr", "", ".2e"),
    "grad_norm": Label("gradient norm", "grad norm", "", ".3g"),
    "clip_fraction": Label("clipped tokens", "clipped", "", ".2%"),
    "reward_failures": Label("failed rewards", "failed rewards", "", ".0f"),
    "groups_without_signal": Label("groups whose rewards are all equal", "no signal", "", ".1%"),
    "groups_dropped": Label("groups replaced by dynamic sampling", "replaced", "groups", ".0f"),
    "correction/cut": Label("tokens left out or capped by the correction", "cut", "", ".2%"),
    "correction/factor": Label("mean factor of the correction", "factor", "", ".3f"),
    "advantage_mean": Label("advantage", "advantage", "", ".3g", NOTHING),
    "advantage_std": Label("spread of the advantages", "advantage spread", "", ".3g"),
    "value_mean": Label("value that the critic expected", "value", "", ".3f", NOTHING),
    "return_mean": Label("return", "return", "", ".3f", NOTHING),
    "value/explained_variance": Label("share of the returns' variance that the critic foresaw", "foreseen", "", ".1%"),
    "value/loss": Label("critic's loss", "critic loss", "", ".4g"),
    "value/clip_fraction": Label("clipped values", "clipped values", "", ".2%"),
    "critic/grad_norm": Label("critic's gradient norm", "critic grad norm", "", ".3g"),
    "critic/learning_rate": Label("critic's learning rate", "critic lr", "", ".2e"),
    "heldout_loss": Label("held-out loss", "held-out loss", "nats/token", ".4g"),
    "best_step": Label("step of the best evaluation", "best at step", "", ".0f"),
    "token_accuracy": Label("token accuracy", "token accuracy", "", ".1%"),
    "heldout_token_accuracy": Label("held-out token accuracy", "held-out token accuracy", "", ".1%"),
    "trainable_parameters": Label("trained parameters", "trained", "", ",.0f"),
    "predicted_trainable_parameters": Label("trained parameters as predicted", "predicted", "", ",.0f"),
    "parameters": Label("parameters", "parameters", "", ",.0f"),
    "engines/working": Label("engines that worked", "engines", "", ".0f"),
    "engines/longest_seconds": Label("time of the engine that worked longest", "slowest engine", "s", ".2f"),
    "engines/idle": Label("share of the engines' time without work, beside that one", "engines idle", "", ".0%"),
    "engines/slowest_tokens_per_second": Label("throughput of the slowest engine", "slowest", "tokens/s", ",.0f"),
    "publish/bytes": Label("weights sent to each engine", "published", "bytes", ",.0f"),
    "publish/seconds": Label("time until all engines serve them", "publish", "s", ".3f"),
    "probe_difference": Label("trainer-engine difference on probe tokens", "probes", "nats/token", ".1e"),
}

SIZES = ("trainable_parameters", "predicted_trainable_parameters", "parameters")
"""What is counted once, before the first step."""


def label(name: str) -> Label:
    """The label of a metric; `pass@k` and rewards by component are recognised."""
    if name.startswith("reward/"):
        component = name.removeprefix("reward/")
        return Label(f"reward: {component}", component, "", ".3f", NOTHING)
    if name.startswith("pass@"):
        return Label(f"held-out {name}", name, "", ".1%", NOTHING)
    return METRICS.get(name, Label(name, name))
