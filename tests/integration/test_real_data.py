"""Real text, a real pretrained model, real problems: where they lie is told by RLPIPE_TEST_DATA."""

import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rlpipe.data.storage import Storage
from rlpipe.observe.events import read
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.load import load

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif("RLPIPE_TEST_DATA" not in os.environ, reason="RLPIPE_TEST_DATA names no folder with real data"),
]

STORIES_END = "rollout.stop_token_ids=[1]"
"""The story model ends its stories with token 1, which is not its tokenizer's EOS."""


def real(name: str) -> Path:
    return Path(os.environ["RLPIPE_TEST_DATA"]) / name


def events(directory: Path, kind: str) -> list[dict]:
    return [event for event in read(Storage(directory))[0] if event["kind"] == kind]


def test_rl_makes_stories_happier_and_keeps_them_stories(tmp_path):
    directory = tmp_path / "run"
    changes = [
        f"model.path={real('models/stories260K')}", STORIES_END, "train.threads=1", "rollout.threads=1",
        "schedule.steps=16", "schedule.prompts_per_step=8", "rollout.max_new_tokens=48", "evaluation.every=16",
        "train.optimizer.learning_rate=6e-4", "algorithm.kl.coefficient=0.2",
    ]  # fmt: skip
    assert run(load("stories/grpo", changes), directory, debug=True) == DONE
    steps = [event["metrics"] for event in events(directory, "metrics")]
    before, after = ([step["reward/happy"] for step in part] for part in (steps[:3], steps[-3:]))
    assert sum(after) / 3 > sum(before) / 3 + 0.1, "the reward rises clearly"
    assert 0 < steps[-1]["reference_kl"] < 1.0, "nats per token: the penalty holds it near the pretrained model"
    assert steps[-1]["reward/variety"] > 0.5, "no chanting of the same words"
    page = (directory / "report.html").read_text()
    first, last = events(directory, "evaluation")
    for evaluation in (first, last):
        assert evaluation["samples"][0]["completion"].split("\n")[0][:20] in page, "the report shows both"
    assert first["samples"][0]["completion"] != last["samples"][0]["completion"]


def test_grpo_on_real_problems_with_the_maths_reward(tmp_path):
    directory = tmp_path / "run"
    changes = [
        f"model.path={real('models/stories260K')}", f"data.path={real('data/gsm8k/train.jsonl')}", "data.chat=false",
        "data.system=null", STORIES_END, "train.threads=1", "rollout.threads=1", "rollout.engine=transformers",
        "rollout.max_new_tokens=32", "rollout.max_model_len=null", "schedule.steps=3", "schedule.prompts_per_step=4",
        "algorithm.group_size=4", "evaluation.prompts=8", "evaluation.every=3", "evaluation.samples=4",
    ]  # fmt: skip
    assert run(load("gsm8k/grpo", changes), directory, debug=True) == DONE
    steps = [event["metrics"] for event in events(directory, "metrics")]
    assert len(steps) == 3
    for step in steps:
        assert step["reward_failures"] == 0, "a model that cannot do maths gives wrong answers, not failures"
        assert step["mismatch/abs"] < 1e-4
    asked = {row["prompt"] for row in _rollouts(directory)}
    lines = real("data/gsm8k/train.jsonl").read_text(encoding="utf-8").splitlines()
    problems = {json.loads(line)["question"] for line in lines}
    assert len(asked) == 12 and all(any(problem in text for problem in problems) for text in asked)


def _rollouts(directory: Path) -> list[dict]:
    files = sorted((directory / "rollouts").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]
