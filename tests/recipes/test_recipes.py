"""Every shipped recipe, shrunk, from its file to its result; and what the result means."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import shrink

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.run import stages_of
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.load import load, read
from rlpipe.recipe.shipped import folder, names
from rlpipe.recipe.tasks import (
    OfflineRecipe,
    PipelineRecipe,
    PreferenceRecipe,
    RewardModelRecipe,
    RlRecipe,
    SftRecipe,
    StageRecipe,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

CHAINS = {
    "preferences": {
        "arithmetic/sft": [],
        "arithmetic/dpo": [],
        "arithmetic/dpo_lora": [],
        "arithmetic/kto": [],
        "arithmetic/orpo": [],
        "arithmetic/simpo": [],
        "arithmetic/mixture": [],
    },
    "hub preferences": {
        "ultrafeedback/dpo": [],
        "ultrafeedback/orpo": [],
        "ultrafeedback/simpo": [],
        "kto_mix/kto": [],
    },
    "hub sft": {"ultrachat/sft": [], "ultrachat/long": [], "self_instruct/sft": [], "stories/pretrain": []},
    "arithmetic": {
        "arithmetic/sft": [],
        "arithmetic/reward_model": [],
        "arithmetic/grpo": [],
        "arithmetic/eval": [],
        "arithmetic/grpo_async": [],
        "arithmetic/grpo_lora": [],
        "arithmetic/online_dpo": [],
        "arithmetic/grpo_qlora": [],
        "arithmetic/ppo": [],
        "arithmetic/ppo_lora": [],
        "arithmetic/ppo_qlora": [],
    },
    "constitutional": {"constitutional/revise": [], "constitutional/deliberative": []},
    "constitutional, more": {
        "constitutional/revise_7b": [],
        "constitutional/rlaif": [],
        "constitutional/rlaif_7b": [],
    },
    "rlaif": {"arithmetic/sft": [], "arithmetic/judge": [], "arithmetic/rlaif": []},
    "guess": {"arithmetic/guess": [], "arithmetic/guess_rl": []},
    "calculator": {"arithmetic/calculator": []},
    "gsm8k": {"gsm8k/sft": [], "gsm8k/grpo": ["model.path=runs/gsm8k-sft/model"], "gsm8k/reward_model": []},
    "gsm8k in turns": {"gsm8k/grpo_1gpu": [], "gsm8k/grpo_8gpus": [], "gsm8k/grpo_32gpus": []},
    "gsm8k preferences": {"gsm8k/dpo": [], "gsm8k/kto": [], "gsm8k/mixture": []},
    "hh": {"hh/reward_model": [], "hh/dpo": []},
    "rlhf": {"arithmetic/rlhf": []},
    "stories": {"stories/grpo": [], "stories/rlhf": [], "stories/sft": []},
}
"""Recipes with changes that their headers name, run in one folder one after the other, in one process with the
transformers engine. Later ones may start from what earlier ones made."""
LONG = {"constitutional, more"}
"""Chains that shorter ones, and tests of labelling by principles, stand for."""
AS_SHIPPED = ["arithmetic/pipeline"]
"""Recipes run with vLLM as their users run them, under Ray and with --debug."""
SHOWN_BY_THE_STAGES = {"arithmetic/pipeline", "arithmetic/guess", "arithmetic/calculator", "stories/rlhf"}
"""Pipelines whose stages are evaluated alike, or one of them. At the end of others all models are asked the same."""
RANKED = {"pair_accuracy", "pair_accuracy_stderr", "margin", "length_baseline"}
"""What is said of held-out preferences."""


def test_every_recipe_is_run():
    assert sorted({name for chain in CHAINS.values() for name in chain} | set(AS_SHIPPED)) == names()


@pytest.mark.parametrize("name", [name for chain in CHAINS.values() for name, changes in chain.items() if changes])
def test_the_header_names_the_change(name):
    [changes] = [chain[name] for chain in CHAINS.values() if name in chain]
    assert " ".join(changes) in (folder() / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", names())
def test_the_header_says_what_it_is(name):
    header = (folder() / f"{name}.yaml").read_text().partition("\n\ntask:")[0]
    for part in ("What it does", "What it needs", f"Command        rlpipe run recipes/{name}.yaml", "Healthy run"):
        assert part in header


@pytest.mark.slow
@pytest.mark.parametrize("chain", [c if c not in LONG else pytest.param(c, marks=pytest.mark.soak) for c in CHAINS])
def test_in_one_process(chain, warm_rlpipe, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, changes in CHAINS[chain].items():
        changes = small(name, local, *changes)
        done = warm_rlpipe.rlpipe(["run", f"{folder()}/{name}.yaml", *changes, "--debug"], tmp_path)
        assert done.code == 0, done.output
        check(Path("runs") / load(name).name, name, changes, done.output)


@pytest.mark.soak
@pytest.mark.parametrize("name", AS_SHIPPED)
def test_as_shipped_with_debug(name, warm_rlpipe, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes = small(name, local, own_engine=True)
    done = warm_rlpipe.rlpipe(["run", f"{folder()}/{name}.yaml", *changes, "--debug"], tmp_path)
    assert done.code == 0, done.output
    check(Path("runs") / load(name).name, name, changes, done.output)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [*AS_SHIPPED, pytest.param("arithmetic/rlaif", marks=pytest.mark.soak)])
def test_as_shipped(name, local, tmp_path, monkeypatch):
    """The one run whose processes are all started afresh, as a user's are: nothing is imported for them."""
    monkeypatch.chdir(tmp_path)
    changes = small(name, local, own_engine=True)
    done = subprocess.run(
        [sys.executable, "-m", "rlpipe", "run", f"{folder()}/{name}.yaml", *changes],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout
    check(Path("runs") / load(name).name, name, changes, done.stdout)


def small(name: str, local: Path, *changes: str, own_engine: bool = False) -> list[str]:
    """The changes, and what makes the recipe small."""
    return [*changes, *shrink.shrunk(load(name, changes), local, own_engine)]


def check(run_dir: Path, name: str, changes: list[str], output: str) -> None:
    recipe = load(name, changes)
    assert load(run_dir / "recipe.yaml") == recipe
    assert read(run_dir / "recipe.yaml").missing == ()
    page = (run_dir / "report.html").read_text()
    for stage, (task, place) in stages_of(recipe, run_dir).items():
        assert (stage or recipe.name) in page
        if isinstance(task, EvalRecipe):
            check_evaluation(task, place)
            continue
        check_stage(task, place)
    assert f"run directory  {run_dir}" in output
    assert "Traceback" not in output
    if isinstance(recipe, PipelineRecipe):
        place = run_dir / "stages" / "comparison"
        by_itself = any(isinstance(task, EvalRecipe) for task in recipe.stages.values())
        assert place.exists() == (name not in SHOWN_BY_THE_STAGES and not by_itself)
        if place.exists():
            check_comparison(load(name, changes), json.loads((place / "comparison.json").read_text()))
    if isinstance(recipe, PipelineRecipe) and not name.startswith("constitutional/"):  # whose stages judge nothing
        heading = next(line for line in output.splitlines() if re.match(r"┃ +┃", line))
        trained = [stage for stage, task in recipe.stages.items() if not isinstance(task, LabelRecipe | EvalRecipe)]
        assert re.findall(r"base|after \w+", heading) == ["base", *(f"after {stage}" for stage in trained)]


def check_stage(task: StageRecipe, place: Path) -> None:
    found, torn = events.read(Storage(place))
    assert torn == []
    assert [e["status"] for e in of(found, "run_finished")] == ["completed"]
    assert of(found, "fault") == []
    if isinstance(task, LabelRecipe):
        return check_labels(task, place)
    check_sizes(task, found)
    assert list((place / "tensorboard").iterdir())
    match task:
        case RlRecipe():
            check_rl(task, place, found)
        case SftRecipe():
            check_sft(task, found)
        case RewardModelRecipe():
            check_reward_model(task, found)
            return scores(place / "model")
        case PreferenceRecipe():
            check_preference(task, found)
    generates(place / "model")


def check_labels(task: LabelRecipe, place: Path) -> None:
    """Every prompt has its responses; every preference prefers what is worth more."""
    for part, count in (("train", task.labels.prompts), ("heldout", task.labels.heldout)):
        rows = [json.loads(line) for line in (place / f"labels/preferences/{part}.jsonl").open()]
        assert len({str(row["prompt"]) for row in rows}) == len(rows) <= count
        for row in rows:
            assert row["tie"] or row["chosen_score"] > row["rejected_score"]
            assert row["margin"] == pytest.approx(0.0 if row["tie"] else row["chosen_score"] - row["rejected_score"])
    judged = pd.concat(map(pd.read_parquet, sorted((place / "judged").glob("pass-*/rollouts/*.parquet"))))
    assert (judged.groupby("prompt_id").size() == task.responses.count).all()
    assert judged["prompt_id"].nunique() == task.labels.prompts + task.labels.heldout


def check_comparison(recipe: PipelineRecipe, data: dict) -> None:
    """Base and every stage that makes a model to answer, on the same."""
    assert data["baseline"] == "base" and set(data["models"]) == {"base", *recipe.stages} - {
        name for name, task in recipe.stages.items() if isinstance(task, RewardModelRecipe | LabelRecipe)
    }
    assert data["prompts"] == shrink.HELDOUT


def check_evaluation(task: EvalRecipe, place: Path) -> None:
    found, torn = events.read(Storage(place))
    assert torn == [] and [e["status"] for e in of(found, "run_finished")] == ["completed"]
    assert [e["model"] for e in of(found, "evaluation")] == [n for n in task.models if n != task.reference] + (
        [task.reference] if task.reference else []
    )
    data = json.loads((place / "comparison.json").read_text())
    rows = pd.read_parquet(place / "answers.parquet")
    greedy = rows[rows["kind"] == "greedy"]
    for name in task.models:
        mine = greedy[greedy["model"] == name]
        assert len(mine) == min(task.evaluation.prompts, data["prompts"]) == shrink.HELDOUT
        assert data["models"][name]["metrics"]["accuracy"]["value"] == mine["correct"].astype(float).mean()
    assert rows.groupby("model").size().nunique() == 1
    assert (greedy.groupby("prompt_id").size() == len(task.models)).all()
    assert (place / "comparison.html").stat().st_size > 1000


def check_sizes(task: StageRecipe, found: list[dict]) -> None:
    """What is trained is what was predicted."""
    sizes = [e["metrics"] for e in of(found, "metrics") if "trainable_parameters" in e["metrics"]]
    assert len(sizes) == (not isinstance(task, RlRecipe) or task.adapter is not None)
    assert all(s["predicted_trainable_parameters"] == s["trainable_parameters"] for s in sizes)


def check_rl(task: RlRecipe, place: Path, found: list[dict]) -> None:
    steps = list(range(1, task.schedule.steps + 1))
    trained = [e for e in of(found, "metrics") if "trainable_parameters" not in e["metrics"]]
    assert [e["step"] for e in trained] == steps
    assert [(e["step"], e["version"]) for e in of(found, "commit")] == [(s, s) for s in steps]
    assert [e["step"] for e in of(found, "evaluation")] == [
        s for s in [0, *steps] if s % task.evaluation.every == 0 or s == steps[-1]
    ]
    for event in trained:
        assert event["metrics"]["mismatch/abs"] < 1e-4
        assert event["metrics"]["probe_difference_max"] < 1e-3
        assert ("reference_kl" in event["metrics"]) == task.algorithm.needs_reference
    check_evaluations(task, found)
    check_rollouts(task, place)


def check_losses(task: OfflineRecipe, found: list[dict]) -> None:
    losses = {e["step"]: e["metrics"]["loss"] for e in of(found, "metrics") if "loss" in e["metrics"]}
    assert list(losses) == list(range(1, task.train.max_steps + 1))
    assert all(0 < loss < 20 for loss in losses.values())
    heldout = [e["step"] for e in of(found, "metrics") if "heldout_loss" in e["metrics"]]
    assert heldout == evaluated_steps(task)


def evaluated_steps(task: OfflineRecipe) -> list[int]:
    last, every = task.train.max_steps, task.train.eval_steps or task.train.max_steps
    return sorted({0, last, *range(every, last, every)})


def check_preference(task: PreferenceRecipe, found: list[dict]) -> None:
    check_losses(task, found)
    steps = evaluated_steps(task)
    answered = [e for e in of(found, "evaluation") if e["samples"]]
    ranked = [e for e in of(found, "evaluation") if not e["samples"]]
    assert [e["step"] for e in ranked] == steps
    assert all(event["metrics"].keys() == RANKED for event in ranked)
    assert [e["step"] for e in answered] == ([0, steps[-1]] if task.rewards else [])
    assert all("accuracy" in event["metrics"] for event in answered)


def check_reward_model(task: RewardModelRecipe, found: list[dict]) -> None:
    check_losses(task, found)
    assert [e["step"] for e in of(found, "evaluation")] == [0, task.train.max_steps]
    for event in of(found, "evaluation"):
        assert event["metrics"].keys() == RANKED


def check_sft(task: SftRecipe, found: list[dict]) -> None:
    check_losses(task, found)
    if task.rewards is not None:
        assert [e["step"] for e in of(found, "evaluation")] == [0, task.train.max_steps]
        check_evaluations(task, found)


def check_evaluations(task: SftRecipe | RlRecipe, found: list[dict]) -> None:
    settings = task.evaluation
    for event in of(found, "evaluation"):
        assert len(event["samples"]) == min(settings.show, settings.prompts)
        judged = settings.correct_at is not None
        assert ("accuracy" in event["metrics"]) == judged
        assert {f"pass@{k}" for k in settings.pass_at if judged} <= event["metrics"].keys()
        assert event["metrics"]["failures"] == 0


def check_rollouts(task: RlRecipe, place: Path) -> None:
    rows = pd.read_parquet(place / "rollouts")
    per_step = task.schedule.prompts_per_step * task.algorithm.group_size
    assert rows.groupby("step").size().to_dict() == dict.fromkeys(range(1, task.schedule.steps + 1), per_step)
    assert (rows.groupby("group_id").size() == task.algorithm.group_size).all()
    assert not rows["prompt_id"].str.startswith("heldout").any()
    weights = {reward.name: reward.weight for reward in task.rewards.mix}
    mixed = sum(weight * rows[f"reward/{name}"] for name, weight in weights.items() if weight)
    pd.testing.assert_series_equal(rows["reward"], mixed, check_names=False)
    versions = [[span["version"] for span in spans] for spans in rows["versions"]]
    ages = [step - 1 - min(each) for step, each in zip(rows["step"], versions, strict=True)]
    assert set(ages) == set(range(task.run.max_staleness + 1)), "on-policy, or as old as it may be"
    assert task.run.max_staleness or all(len(each) == 1 for each in versions)
    assert all(json.loads(columns) is not None for columns in rows["columns"])


def generates(model_folder: Path) -> None:
    """The result loads with transformers alone, and says something."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    prompt = tokenizer("Two and two make", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert output.shape[1] == prompt["input_ids"].shape[1] + 4


def scores(model_folder: Path) -> None:
    """The result loads with transformers alone as a classifier with one output."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForSequenceClassification.from_pretrained(model_folder)
    output = model(**tokenizer(["Two and two make", "four"], return_tensors="pt", padding=True)).logits
    assert output.shape == (2, 1)
    assert torch.isfinite(output).all()


def of(found: list[dict], kind: str) -> list[dict]:
    return [event for event in found if event["kind"] == kind]
