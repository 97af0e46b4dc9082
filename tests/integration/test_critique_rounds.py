"""Critique and revision by a real model, from a recipe to the rollouts with their provenance."""

import json

import pandas as pd
import pytest
from online_runs import RECIPE, REWARD

from rlpipe.recipe.constitution import ranked, read

pytestmark = pytest.mark.integration

CONSTITUTION = """\
name: short
version: 1
principles:
  - {id: a, critique: "1?", revision: "1!", preference: p}
  - {id: b, critique: "2?", revision: "2!", preference: p}
  - {id: c, critique: "3?", revision: "3!", preference: p}
"""
SETTINGS = """
environment:
  kind: constitution
  path: constitution.yaml
  rounds: 2
  critique_request: "C {principle}"
  revision_request: "R {principle}"
"""


def test_rounds_of_a_real_model_are_kept_with_their_principles(tmp_path, warm_rlpipe):
    (tmp_path / "digits.py").write_text(REWARD)
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION)
    (tmp_path / "recipe.yaml").write_text(RECIPE + SETTINGS)
    ends = f"rollout.stop_token_ids={list(range(6, 150))}"  # a random model stops soon, but not always
    changes = ["schedule.steps=1", "evaluation.every=1", "rewards.max_failure_rate=1.0", "rollout.max_new_tokens=12"]
    done = warm_rlpipe.rlpipe(["run", "recipe.yaml", *changes, ends, "--debug", "--run-dir", "run"], tmp_path)
    assert done.code == 0, done.output

    rows = pd.read_parquet(tmp_path / "run" / "rollouts")
    whole = rows[rows["failure_kind"].isna()]
    assert len(rows) == 32 and len(whole) > 4
    principles = read(tmp_path / "constitution.yaml").principles
    for _, row in whole.iterrows():
        first, second, _ = ranked(principles, f"{row['sample_index']}/{row['prompt']}", 0)
        asked = [
            (turn["text"], json.loads(turn["note"])["principle"]) for turn in row["turns"] if turn["role"] == "user"
        ]
        assert asked == [
            (f"C {first.critique}", first.id),
            (f"R {first.revision}", first.id),
            (f"C {second.critique}", second.id),
            (f"R {second.revision}", second.id),
        ]
        assert row["completion"] == row["turns"][-1]["text"] and row["completion"].strip()
    failed = rows[rows["failure_kind"].notna()]
    assert set(failed["failure_kind"]) <= {"unfinished", "empty"}
    assert all(message.startswith("environment: ") for message in failed["failure_message"])
