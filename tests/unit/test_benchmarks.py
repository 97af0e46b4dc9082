"""What the benchmarks compute themselves: the floor's advantages, and who is said to work while the driver waits. And
that the ledger's runs."""

import json
import sys
from pathlib import Path

import pytest
import torch

from rlpipe.algorithms.gae import gae

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import controller as controller_benchmark
import ledger as ledger_benchmark
from step import bare, floor_ppo, traced, waterfall
from step.waterfall import Bar


def test_the_floor_s_advantages_are_those_of_the_algorithm():
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 1, 1, 1, 0], [0, 0, 1, 1, 1], [0, 1, 0, 0, 0]], dtype=torch.float)
    values, penalty = torch.rand(2, 3, 5, generator=generator) * mask
    rewards = torch.tensor([1.0, -2.0, 0.5])
    last = torch.tensor([[0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [0, 1, 0, 0, 0]])
    expected, _ = gae(rewards[:, None] * last - penalty, values, mask, 1.0, floor_ppo.LAMBDA)
    torch.testing.assert_close(floor_ppo._gae(rewards, penalty, values, mask) * mask, expected)


def test_micro_batches_keep_every_row_within_the_positions(monkeypatch):
    monkeypatch.setattr(bare, "MICRO_BATCH_POSITIONS", 10)
    ids, column = torch.arange(20).view(5, 4), torch.arange(5)
    pieces = list(bare.micro_batches(ids, column))
    assert [list(piece[0].shape) for piece in pieces] == [[2, 4], [2, 4], [1, 4]]
    assert torch.cat([piece[1] for piece in pieces]).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("spans", "seconds"), [([], 0.0), ([(0, 2)], 1.0), ([(1, 2), (1.5, 3)], 2.0), ([(9, 10), (2, 3), (-1, 0.5)], 1.0)]
)
def test_seconds_that_are_covered(spans, seconds):
    assert waterfall.covered(spans, (1.0, 5.0)) == seconds


EVENTS = [
    {"kind": "phase", "phase": "train", "step": 3, "parent": None, "time": 110.0, "seconds": 4.0},
    {"kind": "phase", "phase": "train", "step": 2, "parent": None, "time": 99.0, "seconds": 4.0},
    {"kind": "phase", "phase": "evaluate", "step": 3, "parent": None, "time": 112.0, "seconds": 1.0},
    {"kind": "commit", "step": 3, "time": 110.0},
]
CALLS = [
    '["engine", "advance", 100.5, 101.0]', '["policy", "update", 106.0, 109.0]', '["engine", "advance", 101.01, 102.0]',
    '["critic", "update", 107.0, 109.5]', '["engine", "submit", 98.0, 99.0]',
]  # fmt: skip


@pytest.fixture
def found():
    return waterfall.bars(EVENTS, traced.read(CALLS), 3, 100.0, 111.0)


def test_bars_are_the_step_s_own_and_slices_of_a_call_are_one(found):
    assert found == [
        Bar("driver", "train", 6.0, 10.0),
        Bar("engine", "advance", 0.5, 2.0, calls=2),
        Bar("policy", "update", 6.0, 9.0),
        Bar("critic", "update", 7.0, 9.5),
    ]


def test_the_table_says_who_works_while_the_driver_waits(found):
    grid = waterfall.waits("short", found)
    assert grid.header == ("phase", "seconds", "engine", "policy", "critic", "no role works")
    assert grid.rows == (("train", "4.000", "", "3.000", "2.500", "0.500"),)
    assert grid.note == "policy and critic train at the same time for 2.000 s."


def test_the_drawing_has_a_row_per_lane_and_every_bar(found):
    drawing = waterfall.svg("one <step>", found)
    assert drawing.count('class="lane"') == 4 and drawing.count("<title>") == 4
    assert "one &lt;step&gt;" in drawing and "advance 1.500 s in 2 calls" in drawing


def test_a_traced_role_is_the_role_and_writes_its_calls_down(tmp_path):
    class Role:
        def double(self, number):
            return 2 * self._same(number)

        def _same(self, number):
            return number

    role = traced._traced(Role, "mine", str(tmp_path / "calls"))()
    assert (role.double(4), type(role).__name__) == (8, "Role")
    with pytest.raises(TypeError):
        role.double(None)
    calls = traced.read((tmp_path / "calls").read_text().splitlines())
    assert [(call.lane, call.what) for call in calls] == [("mine", "double")] * 2
    assert all(call.begin <= call.end for call in calls)


def test_the_ledger_s_benchmark_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ledger.py", "--quick", "--folder", str(tmp_path / "scratch")])
    ledger_benchmark.main()
    said = capsys.readouterr().out
    assert "3,584 prompts in 7 steps of 512" in said and "which makes the index" in said
    assert not (tmp_path / "scratch").exists()


def test_the_controller_s_benchmark_drives_the_real_one_and_adds_cells(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["controller.py", "--trajectories", "64", "--actors", "--out", "found.json"]
    for engines in ("1", "4"):
        monkeypatch.setattr(sys, "argv", [*command, "--engines", engines])
        controller_benchmark.main()
    cells = json.loads((tmp_path / "found.json").read_text())["cells"]
    assert list(cells) == ["1/64", "4/64"]
    phases = ["generate", "score", "prepare", "train", "record", "publish", "tell"]
    assert all(list(cell["seconds"]) == phases and min(cell["seconds"].values()) > 0 for cell in cells.values())
    # 64 responses of about 100 tokens at 50 a second: what the engines would have taken is not waited for.
    assert all(2 < cell["waited"] < 60 for cell in cells.values())
    assert cells["4/64"]["calls"] > cells["1/64"]["calls"] > 8
    assert "64 | 4 |" in capsys.readouterr().out
    assert "64 a step" in (tmp_path / "found.svg").read_text()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.json", "found.svg"], "nothing is left behind"
