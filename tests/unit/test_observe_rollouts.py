"""Rollouts as Parquet, opened by the libraries people have."""

import json
from dataclasses import replace

import datasets
import numpy as np
import pandas
import pytest
from sample_groups import make_group

from rlpipe.data.flow import Failure, Score
from rlpipe.data.storage import Storage
from rlpipe.observe import rollouts
from rlpipe.observe.rollouts import Fate, Record

GROUP = replace(
    make_group(["4", "five", "6"], {"answer": "4", "level": 2}, group_id="e0/p"),
    outcomes=(
        Score(1.5, {"right": 1.0, "short": 0.5}),
        Failure("deadline", "right: no answer within 5 s"),
        Score(0.0, {"right": 0.0}),
    ),
)


@pytest.fixture
def folder(tmp_path):
    storage = Storage(tmp_path)
    name = rollouts.write(storage, 1, [Record(GROUP, 3, [0.5, 0.0, -0.5])], ["right", "short"])
    assert name == "rollouts/step-000001.parquet"
    failed = replace(GROUP, outcomes=(Failure("exception", "x"),) * 3)
    rollouts.write(storage, 12, [Record(failed, 4, [0.0] * 3, Fate.FAILED, "no reward: x")], ["right", "short"])
    assert rollouts.steps(storage) == [1, 12]
    return tmp_path / "rollouts"


def test_pandas_opens_a_run(folder):
    frame = pandas.read_parquet(folder)
    assert frame["step"].tolist() == [1, 1, 1, 12, 12, 12]
    assert frame["epoch"].tolist() == [3, 3, 3, 4, 4, 4]
    assert frame["fate"].tolist() == ["trained"] * 3 + ["failed"] * 3
    assert frame["reason"].isna().tolist() == [True] * 3 + [False] * 3
    assert frame["reason"].dropna().tolist() == ["no reward: x"] * 3
    first = frame[frame["step"] == 1]
    assert first["completion"].tolist() == ["4", "five", "6"]
    assert first["prompt"].tolist() == ["2+2="] * 3
    assert first["reward"].isna().tolist() == [False, True, False]
    assert first["reward"].dropna().tolist() == [1.5, 0.0]
    assert first["reward/right"].dropna().tolist() == [1.0, 0.0]
    assert first["reward/short"].dropna().tolist() == [0.5]
    assert first["failure_kind"].dropna().tolist() == ["deadline"]
    assert first["failure_message"].dropna().tolist() == ["right: no answer within 5 s"]
    assert first["advantage"].tolist() == [0.5, 0.0, -0.5]
    assert first["sample_index"].tolist() == [0, 1, 2]
    assert first["finish_reason"].tolist() == ["stop"] * 3
    assert json.loads(first["columns"][0]) == {"answer": "4", "level": 2}
    assert first["response_tokens"][1].tolist() == [7, 9]
    assert first["prompt_tokens"][1].tolist() == [1, 2]
    assert first["response_mask"][1].tolist() == [1, 1]
    assert first["behaviour_logprobs"][1].tolist() == [-0.5, -0.25]
    assert first["behaviour_logprobs"][1].dtype == np.float32
    assert first["versions"][0].tolist() == [{"first_token": 0, "version": 0}]
    assert frame[frame["step"] == 12]["reward"].isna().all()


def test_datasets_opens_a_run(folder, tmp_path):
    files = str(folder / "*.parquet")
    loaded = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 6
    assert loaded[0]["reward"] == 1.5
    assert loaded[1]["reward"] is None
    assert loaded[2]["response_tokens"] == [7, 10]


def test_a_step_reads_back_as_rows(folder):
    rows = rollouts.read(Storage(folder.parent), 1)
    assert [row["reward"] for row in rows] == [1.5, None, 0.0]
    assert rows[0]["versions"] == [{"first_token": 0, "version": 0}]


def test_a_step_without_groups_is_a_table_without_rows(tmp_path):
    rollouts.write(Storage(tmp_path), 1, [], ["right"])
    assert rollouts.read(Storage(tmp_path), 1) == []
