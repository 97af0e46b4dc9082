"""A small RL run, and what two such runs are compared by."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlpipe.data.storage import Storage
from rlpipe.observe.events import read
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.load import load

RECIPE = """
task: rl
name: online-test
model: {scratch: qwen2, hidden_size: 64, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 128}
data: {kind: arithmetic, largest: 9, heldout: 16}
rewards: {mix: [{kind: python, name: digits, function: digits.py:share}]}
algorithm: {name: grpo, group_size: 4}
schedule: {steps: 3, prompts_per_step: 8}
train: {threads: 1, optimizer: {learning_rate: 1e-2}, resources: {cpus: 0.1}}
rollout: {engine: transformers, max_new_tokens: 6, threads: 1, resources: {cpus: 0.1}}
evaluation: {prompts: 8, every: 3, samples: 2, pass_at: [1, 2]}
"""

# Every random model has some digits in its answers, so this reward has a signal from the first step.
REWARD = """
def share(completions, **columns):
    return [sum(c.isdigit() for c in text) / 6 for text in completions]
"""


def train(recipe_file: Path, directory: Path, *changes: str, debug: bool = True) -> dict[int, dict[str, float]]:
    """Metrics by step of a run that must succeed."""
    assert run(load(recipe_file, changes), directory, debug) == DONE
    return metrics_of(directory)


def metrics_of(directory: Path) -> dict[int, dict[str, float]]:
    """By step. Of one that was trained again, what was told last; its publishing is told apart."""
    found: dict[int, dict[str, float]] = {}
    for event in events(directory, "metrics"):
        found.setdefault(event["step"], {}).update(event["metrics"])
    found.pop(0, None)  # the model's sizes
    return found


def events(directory: Path, kind: str) -> list[dict]:
    return [event for event in read(Storage(directory))[0] if event["kind"] == kind]


TRAINED_ON = ("loss", "reward", "response_length", "entropy", "grad_norm", "policy_kl")
"""Metrics that depend on samples and weights alone, not on time."""


def assert_same(ours: dict, theirs: dict, within: float) -> None:
    assert ours.keys() == theirs.keys()
    for step in ours:
        for name in TRAINED_ON:
            assert ours[step][name] == pytest.approx(theirs[step][name], abs=within), (step, name)


def trained_on(directory: Path) -> list:
    """Prompts, tokens and versions in the order of training."""
    files = sorted((directory / "rollouts").glob("*.parquet"))
    columns = ("group_id", "sample_index", "response_tokens", "versions", "epoch")
    return [[row[name] for name in columns] for file in files for row in pq.read_table(file).to_pylist()]
