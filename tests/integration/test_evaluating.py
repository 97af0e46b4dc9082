"""`task: eval` from the recipe to the page: a model, two adapters on it and another model, on the reference engine."""

import json
from functools import cache
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny_models
import torch
from served_adapters import exported_adapters

from rlpipe.data.storage import Storage
from rlpipe.observe import events
from rlpipe.pipelines.run import run
from rlpipe.recipe.evaluating import EvalRecipe

pytestmark = pytest.mark.integration

PROMPTS = [f"{i}+{i + 3}" for i in range(12)]
NEW = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Everything asked once; the right answers are what `base` says."""
    folder = tmp_path_factory.mktemp("evaluating")
    base = tiny_models.save_model(folder / "base")
    other = tiny_models.save_model(folder / "other", seed=1)
    adapted = exported_adapters(base, folder, {"small": 2, "wide": 4})
    spoken = {"base": tiny_models.load(base), "other": tiny_models.load(other)}
    spoken |= {name: model.merge_and_unload() for name, model in adapted.items()}
    world = SimpleNamespace(folder=folder, run_dir=folder / "run", models=spoken, tokenizer=_tokenizer(base))
    rows = [{"prompt": prompt, "answer": greedy(world, "base", prompt)} for prompt in PROMPTS]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    world.code = run(recipe(world, regressions={"accuracy": 0.1, "win_rate": 0.2}), world.run_dir, debug=True)
    world.data = json.loads((world.run_dir / "comparison.json").read_text())
    world.rows = pd.read_parquet(world.run_dir / "answers.parquet")
    return world


def _tokenizer(base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(base)


def recipe(world, **changes) -> EvalRecipe:
    folder = world.folder
    given = {
        "task": "eval",
        "models": {
            "base": {"path": str(folder / "base")},
            "other": {"path": str(folder / "other")},
            **{name: {"path": str(folder / "base"), "adapter": str(folder / name)} for name in ("small", "wide")},
        },
        "reference": "base",
        "data": {"kind": "records", "path": str(folder / "questions.jsonl")},
        "part": "all",
        "rewards": {"mix": [{"kind": "exact"}]},
        "rollout": {"engine": "transformers", "max_new_tokens": NEW},
        "evaluation": {"samples": 2, "pass_at": [1, 2]},
        "tracking": {"tensorboard": False},
    }
    return EvalRecipe.model_validate(given | changes)


def ids_of(world, prompt):
    messages = [{"role": "user", "content": prompt}]
    return world.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]


@cache
def _said(model, tokenizer, ids):
    ids = torch.tensor([ids])
    said = model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=NEW,
        eos_token_id=tokenizer.eos_token_id,
    )[0, ids.shape[1] :]  # fmt: skip
    return tokenizer.decode(said, skip_special_tokens=True).strip()


def greedy(world, name, prompt):
    """What transformers alone has the model say."""
    return _said(world.models[name], world.tokenizer, tuple(ids_of(world, prompt)))


def told(world, kind):
    return [event for event in events.read(Storage(world.run_dir))[0] if event["kind"] == kind]


def test_each_model_says_what_transformers_has_it_say(world):
    said = world.rows[world.rows["kind"] == "greedy"]
    assert len(said) == 4 * len(PROMPTS)
    for name in world.models:
        mine = said[said["model"] == name].sort_values(
            "prompt_id", key=lambda ids: ids.str.split("-").str[1].astype(int)
        )
        assert [text.strip() for text in mine["answer"]] == [greedy(world, name, prompt) for prompt in PROMPTS]
    assert len({tuple(said[said["model"] == name]["answer"]) for name in world.models}) == 4


def test_adapters_and_their_base_share_engines(world):
    started = [e["says"] for e in told(world, "phase") if e["phase"] == "start"]
    assert started == [
        "starting transformers for other",
        "starting transformers for small, wide, base, one adapter after the other",
    ]


def test_the_numbers_are_those_of_the_answers(world):
    base, other = world.data["models"]["base"]["metrics"], world.data["models"]["other"]
    assert base["accuracy"]["value"] == 1.0 and base["accuracy"]["low"] == pytest.approx(0.7575, abs=1e-4)
    mine = world.rows[(world.rows["model"] == "other") & (world.rows["kind"] == "greedy")]
    right = int(mine["correct"].sum())
    assert other["metrics"]["accuracy"]["value"] == right / len(PROMPTS) < 0.5
    assert other["against"]["accuracy"]["p"] == pytest.approx(2 / 2 ** (len(PROMPTS) - right))
    assert other["against"]["win_rate"]["difference"] == pytest.approx(right / len(PROMPTS) / 2 - 0.5)
    assert world.data["baseline"] == "base" and world.data["models"]["base"]["against"] == {}


def test_kl_and_perplexity_are_those_of_both_models_on_the_samples(world):
    assert world.data["models"]["base"]["metrics"]["reference_kl"]["value"] == pytest.approx(0, abs=1e-6)
    rows = pd.read_parquet(world.run_dir / "answers" / "wide.parquet")
    own = reference = tokens = 0.0
    for row in rows[rows["group_id"].str.contains("/sampled/")].itertuples():
        prompt, response = np.array(row.prompt_tokens), np.array(row.response_tokens)
        own += tiny_models.teacher_forced(world.models["wide"], prompt, response).sum()
        reference += tiny_models.teacher_forced(world.models["base"], prompt, response).sum()
        tokens += len(response)
    metrics = world.data["models"]["wide"]["metrics"]
    assert (
        metrics["reference_kl"]["value"] == pytest.approx((own - reference) / tokens, abs=1e-4)
        and metrics["reference_kl"]["value"] > 0.1
    )
    assert metrics["perplexity"]["value"] == pytest.approx(np.exp(-reference / tokens), rel=1e-4)


def test_a_regression_ends_the_run_with_1_when_all_is_written(world):
    assert world.code == 1
    flagged = {(each["model"], each["metric"]) for each in world.data["regressions"]}
    assert flagged == {(name, m) for name in ("other", "small", "wide") for m in ("accuracy", "win_rate")}
    [fault] = told(world, "fault")
    assert "other is worse than the baseline in accuracy: by " in fault["message"] and fault["fatal"]
    assert (world.run_dir / "comparison.html").exists() and (world.run_dir / "report.html").exists()


def test_what_has_answered_is_not_asked_again(world, tmp_path):
    import shutil

    again = SimpleNamespace(**vars(world) | {"run_dir": tmp_path / "run"})
    shutil.copytree(world.run_dir, again.run_dir)
    assert run(recipe(world), again.run_dir, debug=True) == 0
    assert told(again, "evaluation") == told(world, "evaluation"), "only the regressions went, which ask nothing"
    (again.run_dir / "comparison.json").unlink()
    (again.run_dir / "answers" / "wide.parquet").unlink()
    assert run(recipe(world), again.run_dir, debug=True) == 0
    assert [e["model"] for e in told(again, "evaluation")] == ["other", "small", "wide", "base", "wide"]
    assert json.loads((again.run_dir / "comparison.json").read_text())["models"] == world.data["models"]


def test_a_judge_compares_each_model_with_the_baseline_in_both_orders(world, tmp_path):
    import shutil

    template = tmp_path / "template.yaml"
    asks = "version: 1\noptions: [A, B]\nmessages:\n  - role: user\n    content: '{prompt} A {first} B {second}'\n"
    template.write_text(asks)
    shutil.copytree(world.run_dir, tmp_path / "run")
    (tmp_path / "run" / "comparison.json").unlink()
    by = {"kind": "engine", "engine": "transformers", "path": str(world.folder / "other")}
    judge = {"kind": "judge", "template": str(template), "least_mass": 0.0, "by": by}
    again = SimpleNamespace(**vars(world) | {"run_dir": tmp_path / "run"})
    assert run(recipe(world, judge=judge), again.run_dir, debug=True) == 0
    assert [e["says"] for e in told(again, "phase") if e["phase"] == "judge"] == [
        f"the judge compares {name} with base" for name in ("other", "small", "wide")
    ]
    data = json.loads((again.run_dir / "comparison.json").read_text())
    rows = pd.read_parquet(again.run_dir / "answers.parquet")
    mine = rows[(rows["model"] == "wide") & (rows["kind"] == "greedy")]
    assert data["models"]["wide"]["metrics"]["win_rate"]["value"] == pytest.approx(mine["judge_win"].mean())
    bases = rows[(rows["model"] == "base") & (rows["kind"] == "greedy")].set_index("prompt_id")
    row = next(row for row in mine.itertuples() if row.answer != bases.loc[row.prompt_id].answer)
    base = bases.loc[row.prompt_id]
    prompt = PROMPTS[int(row.prompt_id.split("-")[1])]
    first, second = (preferred(world, prompt, *pair) for pair in ((base.answer, row.answer), (row.answer, base.answer)))
    assert row.judge_win == pytest.approx((1 - first + second) / 2, abs=1e-4)
    assert run(recipe(world, judge=judge), again.run_dir, debug=True) == 0, "it is done, and says so"


def test_without_rewards_the_judge_compares_and_sees_a_specification_that_the_models_do_not(world, tmp_path):
    template, manners = tmp_path / "template.yaml", tmp_path / "manners.md"
    asks = "{prompt} A {first} B {second} {specification}"
    template.write_text(f"version: 1\noptions: [A, B]\nmessages:\n  - role: user\n    content: '{asks}'\n")
    manners.write_text("# Sums\n\nSay it.\n")
    by = {"kind": "engine", "engine": "transformers", "path": str(world.folder / "other")}
    asked = recipe(
        world,
        models={name: {"path": str(world.folder / name)} for name in ("base", "other")},
        reference=None,
        rewards=None,
        judge={"kind": "judge", "template": str(template), "least_mass": 0.0, "by": by},
        guidance={"kind": "specification", "path": str(manners), "otherwise": "Sums"},
    )
    assert run(asked, tmp_path / "run", debug=True) == 0
    metrics = json.loads((tmp_path / "run" / "comparison.json").read_text())["models"]["other"]["metrics"]
    assert set(metrics) == {"win_rate", "length", "refusals", "failure_rate", "distinct_2", "self_overlap"}
    rows = pd.read_parquet(tmp_path / "run" / "answers.parquet")
    assert rows["reward"].isna().all() and rows["correct"].isna().all() and rows["failure_kind"].isna().all()
    said = rows[rows["kind"] == "greedy"].set_index(["model", "prompt_id"])
    base, row = said.loc["base"].iloc[0], said.loc["other"].iloc[0]
    assert [base["answer"].strip(), row["answer"].strip()] == [greedy(world, m, PROMPTS[0]) for m in ("base", "other")]
    end = " # Sums\n\nSay it."
    first = preferred(world, PROMPTS[0], base["answer"], row["answer"], end)
    second = preferred(world, PROMPTS[0], row["answer"], base["answer"], end)
    assert row["judge_win"] == pytest.approx((1 - first + second) / 2, abs=1e-4)


@torch.no_grad()
def preferred(world, prompt, first, second, end=""):
    """With what probability transformers alone has the judge say A, of A and B."""
    ids = ids_of(world, f"{prompt} A {first} B {second}{end}")
    logits = world.models["other"](torch.tensor([ids])).logits[0, -1]
    both = logits[[world.tokenizer("A")["input_ids"][0], world.tokenizer("B")["input_ids"][0]]]
    return float(both.softmax(-1)[0])


def test_it_says_how_many_of_the_records_are_asked(world):
    from rlpipe.pipelines.evaluating.questions import questions

    records, says = questions(recipe(world, evaluation={"prompts": 5}), lambda: world.tokenizer)
    assert (len(records.heldout), says) == (5, "asking 5 prompts, the first of 12 (evaluation.prompts=5)")
    assert questions(recipe(world), lambda: world.tokenizer)[1] == "asking 12 prompts"
