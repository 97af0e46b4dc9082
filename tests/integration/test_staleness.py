"""Sampling ahead of training: at 0 it is a plain synchronous loop, above it nothing is too old, lost or mislabelled."""

import functools
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_online import RECIPE, REWARD, events, final_weights, strike_in_step, train
from test_online_resume import Killed, dies
from transformers import AutoModelForCausalLM

from rlpipe.data.flow import GroupRequest, Sampling, Score
from rlpipe.data.seeds import sample_seed
from rlpipe.ledger.ledger import Ledger
from rlpipe.pipelines.answers import group_of
from rlpipe.pipelines.online.loop import Loop
from rlpipe.pipelines.online.trainer import Trainer
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.rollout import pool
from rlpipe.rollout.pool import EnginePool
from rlpipe.rollout.transformers_engine import TransformersEngine
from rlpipe.runtime.handle import RoleDied
from rlpipe.training.policy import Policy

pytestmark = pytest.mark.integration

STALE = ("schedule.steps=5", "run.max_staleness=2", "algorithm.correction={kind: tis}", "rollout.max_new_tokens=24")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("staleness")
    (folder / "digits.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def test_none_is_a_plain_synchronous_loop_to_the_last_bit(folder, monkeypatch):
    ours = train(folder / "recipe.yaml", folder / "ours")
    losses = []
    monkeypatch.setattr(Loop, "run", lambda loop: losses.extend(synchronous(loop)))
    assert run(load(folder / "recipe.yaml"), folder / "plain", debug=True) == DONE
    assert losses == [ours[step]["loss"] for step in (1, 2, 3)]
    assert final_weights(folder / "ours") == final_weights(folder / "plain")


def synchronous(loop: Loop) -> list[float]:
    """Ask, wait for all, train, publish: as simple as it can be, on the engine itself."""
    policy = loop.trainer._roles["policy"][0]._role
    engine = loop.sampler._answers._rollouts._seats["policy"][0].handle._role._engine
    tokenizer, sampling = loop.sampler._answers._tokenizer, loop.sampler._sampling
    assert isinstance(engine, TransformersEngine) and isinstance(sampling, Sampling)
    engine.publish(0, policy.export())
    losses = []
    for step in (1, 2, 3):
        drawn = loop.ledger._cursor.draw(8)
        engine.submit([
            GroupRequest(p.prompt_id, p.prompt_id, p.tokens, tuple(sample_seed(0, p.prompt_id, e, i) for i in range(4)),
                         sampling)
            for e, p in drawn
        ])  # fmt: skip
        answers = []
        while len(answers) < 8 * 4:
            answers += engine.step()
        groups = []
        for _, prompt in drawn:
            own = sorted((t for t in answers if t.prompt_id == prompt.prompt_id), key=lambda t: t.sample_index)
            group = group_of(prompt, own, tokenizer)
            scores = [sum(c.isdigit() for c in text) / 6 for text in group.completions]
            groups.append(replace(group, outcomes=tuple(Score(s, {"digits": s}) for s in scores)))
        batch, _ = loop.trainer.batch(groups)
        losses.append(loop.trainer.update(batch, step)["loss"])
        engine.publish(step, policy.export())
    loop.finish()
    return losses


@pytest.fixture(scope="module")
def stale(folder) -> Path:
    """A run two versions ahead whose engine is published to in the middle of responses, with all checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "SLICE_SECONDS", 0.0)  # a look is one token of each response
        train(folder / "recipe.yaml", folder / "stale", *STALE, "train.save_steps=1", "train.save_total_limit=9",
              "rollout.max_num_seqs=24")  # fmt: skip
    return folder / "stale"


def rows(directory: Path, step: int) -> list[dict]:
    return pq.read_table(directory / "rollouts" / f"step-{step:06d}.parquet").to_pylist()


def test_nothing_is_older_than_the_recipe_allows_and_it_is_told(stale):
    told = {event["step"]: event["metrics"] for event in events(stale, "metrics") if event["step"]}
    oldest = 0
    for step in range(1, 6):
        ages = np.array([step - 1 - row["versions"][0]["version"] for row in rows(stale, step)])
        assert ages.min() >= 0 and ages.max() <= 2
        assert told[step]["staleness/max"] == ages.max()
        assert told[step]["staleness/mean"] == pytest.approx(ages.mean())
        assert [told[step][f"staleness/share_{age}"] for age in range(3)] == pytest.approx(
            [(ages == age).mean() for age in range(3)]
        )
        oldest = max(oldest, ages.max())
    assert oldest == 2, "it samples as far ahead as it may"
    assert told[5]["mismatch/abs"] > 10 * told[1]["mismatch/abs"], "older policies differ from the trained one"


def test_every_token_is_of_the_version_that_its_span_names(stale):
    """Recomputed with the weights of that version, which stand in its checkpoint."""
    models = {0: stale / "base"} | {v: stale / "checkpoints" / f"step-{v:06d}" / "model" for v in range(1, 6)}
    models = {v: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32) for v, path in models.items()}
    several = [row for step in range(1, 6) for row in rows(stale, step) if len(row["versions"]) > 1]
    assert len(several) > 10, "weights were published in the middle of responses"
    for row in several[::7]:
        prompt, response = row["prompt_tokens"], row["response_tokens"]
        tokens = torch.tensor([[*prompt, *response]])
        ends = [span["first_token"] for span in row["versions"][1:]] + [len(response)]
        for span, end in zip(row["versions"], ends, strict=True):
            part = slice(span["first_token"], end)
            with torch.inference_mode():
                found = {v: logprobs(model, tokens, len(prompt))[part] for v, model in models.items()}
            given = np.array(row["behaviour_logprobs"][part])
            gaps = {version: float(np.abs(each - given).max()) for version, each in found.items()}
            assert gaps[span["version"]] < 2e-5
            assert min(gaps, key=gaps.get) == span["version"], "no other version explains it better"


def logprobs(model: torch.nn.Module, tokens_1T: torch.Tensor, prompt: int) -> np.ndarray:
    """Of the response's tokens."""
    chosen_T = model(tokens_1T).logits[0, :-1].log_softmax(-1).gather(-1, tokens_1T[0, 1:, None])[:, 0]
    return chosen_T[prompt - 1 :].numpy()


def test_a_step_has_the_prompts_that_it_has_without_staleness(stale, folder):
    train(folder / "recipe.yaml", folder / "fresh", "schedule.steps=5", "evaluation.every=5")
    for step in range(1, 6):
        ours, theirs = ([row["prompt_id"] for row in rows(d, step)] for d in (stale, folder / "fresh"))
        assert ours == theirs


@pytest.mark.parametrize("death", [(Trainer, "update", 3), (Ledger, "commit", 3), (Ledger, "lease", 4)])
def test_killed_at_work_it_goes_on_and_no_prompt_is_lost_or_trained_twice(death, stale, folder, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        dies(patch, *death)
        run(load(folder / "recipe.yaml", STALE), tmp_path / "run", debug=True)
    train(folder / "recipe.yaml", tmp_path / "run", *STALE)
    for step in range(1, 6):
        assert [row["prompt_id"] for row in rows(tmp_path / "run", step)] == [r["prompt_id"] for r in rows(stale, step)]
        assert max(step - 1 - row["versions"][0]["version"] for row in rows(tmp_path / "run", step)) <= 2


def test_a_low_effective_sample_size_holds_sampling_back(folder, tmp_path):
    """No step of several versions has all of its tokens' weight."""
    metrics = train(folder / "recipe.yaml", tmp_path / "run", *STALE, "run.min_effective_sample_size=0.999999")
    admitted = [metrics[step]["staleness/admitted"] for step in range(1, 6)]
    assert admitted[0] == 2 and admitted[-1] == 0 and all(b in (a, a - 1) for a, b in pairwise(admitted))
    said = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert any("run.min_effective_sample_size" in line and "one less than before" in line for line in said)


def test_on_ray_engines_generate_while_the_policy_trains(folder, tmp_path, ray_cluster, monkeypatch):
    """And an engine that is lost meanwhile takes nothing with it."""
    struck = strike_in_step(2, 9, monkeypatch)
    update, harvest = Trainer.update, EnginePool._harvest
    training, heard = [], []

    def updating(trainer, *arguments):
        training.append(True)
        try:
            return update(trainer, *arguments)
        finally:
            training.clear()

    def harvesting(pool, seat):
        heard.append(bool(training and seat.groups))
        return harvest(pool, seat)

    monkeypatch.setattr(Trainer, "update", updating)
    monkeypatch.setattr(EnginePool, "_harvest", harvesting)
    changes = (*STALE, "rollout.engines=2", "train.minibatches=4", "rollout.max_new_tokens=160")
    metrics = train(folder / "recipe.yaml", tmp_path / "run", *changes, debug=False)
    assert len(struck) == 1
    assert any(heard), "no engine had finished a slice of work, and got the next one, while the policy trained"
    everything = [row for step in range(1, 6) for row in rows(tmp_path / "run", step)]
    assert any(len(row["versions"]) > 1 for row in everything), "and were at it when the new weights came"
    assert max(step["staleness/max"] for step in metrics.values()) in (1, 2)
    assert len(everything) == 4 * len({row["prompt_id"] for row in everything}) == 4 * 8 * 5


def test_training_roles_that_are_lost_start_again_and_no_answer_is_lost_or_too_old(
    folder, stale, tmp_path, monkeypatch
):
    monkeypatch.setattr(pool, "SLICE_SECONDS", 0.0)
    real, calls = Policy.update, []

    @functools.wraps(real)
    def dies_once(self, *arguments):
        calls.append("update")
        if len(calls) == 4:
            raise RoleDied("killed by the test", "policy")
        return real(self, *arguments)

    monkeypatch.setattr(Policy, "update", dies_once)
    asked, submit = [], TransformersEngine.submit

    def submitting(engine, requests):
        asked.extend(request.group_id for request in requests if not request.group_id.startswith("evaluation"))
        submit(engine, requests)

    monkeypatch.setattr(TransformersEngine, "submit", submitting)
    changes = (*STALE, "train.save_steps=2", "rollout.max_num_seqs=24")
    train(folder / "recipe.yaml", tmp_path / "run", *changes)
    assert len(calls) == 4 + 2 + 1, "step 3 is trained again behind the checkpoint of step 2, then 4 and 5"
    assert len(asked) == len(set(asked)) == 8 * 5 and not any("r1/" in group_id for group_id in asked), "none twice"
    for step in range(1, 6):
        ours = rows(tmp_path / "run", step)
        assert [row["prompt_id"] for row in ours] == [row["prompt_id"] for row in rows(stale, step)]
        assert max(step - 1 - row["versions"][0]["version"] for row in ours) <= 2


def test_answers_that_come_with_the_last_weights_are_used(folder, tmp_path):
    """A whole group is done within a slice, and the last one while weights are published."""
    metrics = train(folder / "recipe.yaml", tmp_path / "run", *STALE, "rollout.max_new_tokens=2", "evaluation.every=9")
    assert list(metrics) == [1, 2, 3, 4, 5]
    assert sum(len({row["prompt_id"] for row in rows(tmp_path / "run", step)}) for step in range(1, 6)) == 8 * 5
    ids = {row["group_id"] for step in range(1, 6) for row in rows(tmp_path / "run", step)}
    assert not [group_id for group_id in ids if "r1/" in group_id], "none was asked twice"


def test_what_needs_a_correction_says_so(folder):
    with pytest.raises(RecipeError, match=re.escape("run.max_staleness=1 trains on responses of older policies")):
        load(folder / "recipe.yaml", ["run.max_staleness=1"])
    shared = "rewards={mix: [{kind: model, path: somewhere, share: policy}]}"
    with pytest.raises(RecipeError, match="cannot score while these train, and run"):
        load(folder / "recipe.yaml", [*STALE, shared])
    with pytest.raises(RecipeError, match=r"min_effective_sample_size=0\.5 holds sampling back"):
        load(folder / "recipe.yaml", ["run.min_effective_sample_size=0.5"])
