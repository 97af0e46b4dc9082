"""Engines that live on the policy's GPUs: turns are taken, and every number is the one of engines with their own."""

import functools
from pathlib import Path

import pytest
from online_runs import RECIPE, REWARD, assert_same, events, train, trained_on

from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import RoleDied
from rlpipe.training.policy import Policy

pytestmark = pytest.mark.integration

CHECKPOINTS = ("train.save_steps=2",)


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def split(recipe_file, tmp_path_factory) -> tuple[Path, dict]:
    """Engines and policy side by side, in this process."""
    directory = tmp_path_factory.mktemp("split") / "run"
    return directory, train(recipe_file, directory, *CHECKPOINTS)


def held(tensors) -> int:
    """Bytes of memory; weights that transformers has read from a file may be that file in memory."""
    return sum(t.untyped_storage().nbytes() for t in tensors if t.untyped_storage().resizable())


@pytest.fixture
def watched(monkeypatch) -> list[str]:
    """What engine and policy do, in order; each asserts that the other one holds nothing meanwhile."""
    done, roles = [], {}

    def on(role, method, busy, before=lambda: None):
        original = getattr(role, method)

        @functools.wraps(original)  # handles find methods by their names
        def watching(self, *args, **kwargs):
            roles[role] = self
            before()
            if not done or done[-1] != busy:
                done.append(busy)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(role, method, watching)

    def policy_is_away():
        engine = roles[Policy]._engine
        states = [value for state in engine._adamw.state.values() for value in state.values()]
        assert bool(states) == bool(engine.steps_done)
        assert held([*engine._module.module.parameters(), *states]) == 0

    def engine_is_away():
        assert held(roles[TransformersEngine]._model.parameters()) == 0
        assert roles[TransformersEngine].health().version is None

    on(Policy, "export", "export")
    on(Policy, "update", "train", engine_is_away)
    on(Policy, "save_state", "save", engine_is_away)
    on(Policy, "save", "save", engine_is_away)
    on(TransformersEngine, "step", "generate", policy_is_away)
    on(TransformersEngine, "publish", "publish", policy_is_away)
    on(TransformersEngine, "sleep", "sleep")
    return done


def test_the_same_numbers_bit_for_bit_while_only_one_of_the_two_holds_anything(recipe_file, split, tmp_path, watched):
    split_run, expected = split
    assert_same(train(recipe_file, tmp_path / "run", *CHECKPOINTS, "placement=colocated"), expected, within=0.0)
    assert trained_on(tmp_path / "run") == trained_on(split_run)
    ours, theirs = ([e["metrics"] for e in events(run, "evaluation")] for run in (tmp_path / "run", split_run))
    assert ours == theirs and len(ours) == 2
    publish, step, checkpoint = ["export", "publish"], ["generate", "sleep", "train"], ["sleep", "save"]
    assert watched == [
        "sleep", *publish,
        *step, *publish,
        *step, *publish, *checkpoint,
        *publish, *step, *publish,  # engines have slept for the checkpoint
        "generate", *checkpoint,  # held-out prompts; then the result
    ]  # fmt: skip


def test_a_critic_leaves_with_the_policy(recipe_file, tmp_path):
    ppo = ("algorithm={name: ppo}", "schedule.steps=2", "evaluation.every=2", "critic.share=policy")
    expected = train(recipe_file, tmp_path / "split", *ppo)
    assert_same(train(recipe_file, tmp_path / "run", *ppo, "placement=colocated"), expected, within=0.0)


def test_an_adapter_is_served_after_sleep(recipe_file, tmp_path):
    lora = ("adapter={kind: lora, r: 4}", "schedule.steps=2", "evaluation.every=2")
    expected = train(recipe_file, tmp_path / "split", *lora)
    assert_same(train(recipe_file, tmp_path / "run", *lora, "placement=colocated"), expected, within=0.0)


def test_a_policy_that_is_lost_in_its_turn_comes_back_while_engines_sleep(recipe_file, split, tmp_path, monkeypatch):
    update, faults = Trainer.update, [RoleDied("it is gone", who="policy")]

    def dying(self, batch, step):
        if step == 2 and faults:
            raise faults.pop()
        return update(self, batch, step)

    monkeypatch.setattr(Trainer, "update", dying)
    metrics = train(recipe_file, tmp_path / "run", *CHECKPOINTS, "placement=colocated")
    assert not faults
    assert_same(metrics, split[1], within=0.0)


def test_an_engine_that_is_lost_asleep_is_started_when_it_is_its_turn(recipe_file, split, tmp_path, monkeypatch):
    asleep, trained, faults = [], [], [RoleDied("it is gone", who="engine")]
    sleep, built, update = RolloutWorker.sleep, RolloutWorker.__init__, Trainer.update

    @functools.wraps(sleep)
    def dying(self):
        sleep(self)
        asleep.append(True)
        if len(asleep) == 3:  # at the beginning, and in two steps
            raise faults.pop()

    def building(self, spec):
        if not faults:
            assert trained == [2], "not while the policy trains"
        built(self, spec)

    def updating(self, batch, step):
        if not faults and step == 2:
            trained.append(step)
        return update(self, batch, step)

    monkeypatch.setattr(RolloutWorker, "sleep", dying)
    monkeypatch.setattr(RolloutWorker, "__init__", building)
    monkeypatch.setattr(Trainer, "update", updating)
    metrics = train(recipe_file, tmp_path / "run", *CHECKPOINTS, "placement=colocated")
    assert not faults and trained == [2]
    assert_same(metrics, split[1], within=0.0)


def test_under_ray_each_engine_is_beside_its_ranks(recipe_file, split, tmp_path, ray_cluster):
    changes = ("placement=colocated", "train.ranks=2", "rollout.engines=2", "train.zero_stage=2")
    metrics = train(recipe_file, tmp_path / "run", *CHECKPOINTS, *changes, debug=False)
    assert_same(metrics, split[1], within=1e-5)
