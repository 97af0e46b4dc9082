"""Real text, a real pretrained model, real problems: where they lie is told by RLPIPE_TEST_DATA."""

import gzip
import json
import os
import runpy
import subprocess
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rlpipe.data.source import load_preferences
from rlpipe.data.storage import Storage
from rlpipe.observe.events import read
from rlpipe.pipelines.run import DONE, run
from rlpipe.recipe.load import load
from rlpipe.recipe.shipped import folder

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.skipif("RLPIPE_TEST_DATA" not in os.environ, reason="RLPIPE_TEST_DATA names no folder with real data"),
]

STORIES_END = "rollout.stop_token_ids=[1]"
"""The story model ends its stories with token 1, which is not its tokenizer's EOS."""

SMALL = [
    "train.threads=1", "train.gradient_accumulation_steps=1", "train.gradient_checkpointing=false", "data.chat=false",
    f"model.path={Path(os.environ.get('RLPIPE_TEST_DATA', '')) / 'models/stories260K'}",
]  # fmt: skip
"""Of an offline recipe for a GPU: the story model, one small batch to a step."""


def real(name: str) -> Path:
    return Path(os.environ["RLPIPE_TEST_DATA"]) / name


def events(directory: Path, kind: str) -> list[dict]:
    return [event for event in read(Storage(directory))[0] if event["kind"] == kind]


@pytest.mark.soak
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


@pytest.mark.soak
def test_ppo_on_stories_against_a_reward_model_of_preferences_over_them(tmp_path):
    """Every number of the first step is counted again from its stories, with plain transformers."""
    model, pairs, directory = str(real("models/stories260K")), tmp_path / "pairs.jsonl", tmp_path / "run"
    subprocess.run([sys.executable, folder() / "stories" / "preferences.py", model, pairs, "4"], check=True)
    happy = runpy.run_path(str(folder() / "stories" / "rewards.py"))["happy"]
    preferred = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    assert len(preferred) > 60
    assert all(more > less for more, less in (happy([p["chosen"], p["rejected"]]) for p in preferred))
    changes = [
        f"stages.reward.model.path={model}", f"stages.ppo.model.path={model}", f"stages.reward.data.path={pairs}",
        f"stages.ppo.{STORIES_END}", "stages.reward.data.heldout.count=20", "stages.reward.train.max_steps=4",
        "stages.reward.train.threads=1", "stages.reward.train.per_device_train_batch_size=16",
        *(f"stages.ppo.{key}.threads=1" for key in ("train", "rollout", "critic", "rewards.mix.0")),
        "stages.ppo.schedule.steps=2", "stages.ppo.schedule.prompts_per_step=16", "stages.ppo.evaluation.every=2",
        "stages.ppo.evaluation.prompts=4", "stages.ppo.rollout.max_new_tokens=40",
    ]  # fmt: skip
    assert run(load("stories/rlhf", changes), directory, debug=True) == DONE
    ppo = directory / "stages" / "ppo"
    first, second = (event["metrics"] for event in events(ppo, "metrics"))
    stories = [row for row in _rollouts(ppo) if row["step"] == 1]
    said = np.concatenate([story["behaviour_logprobs"] for story in stories])
    assert first["reference_logprob"] == pytest.approx(said.mean(), abs=1e-5), "the policy is still the reference"
    assert abs(first["reference_kl"]) < 1e-5 < abs(second["reference_kl"])
    assert first["reward/happy"] == pytest.approx(np.mean(happy([story["completion"] for story in stories])))
    judge = AutoModelForSequenceClassification.from_pretrained(directory / "stages" / "reward" / "model")
    whole = [torch.tensor([[*story["prompt_tokens"], *story["response_tokens"]]]) for story in stories]
    with torch.no_grad():
        scores = [judge(tokens).logits.item() for tokens in whole]
    assert [story["reward/model"] for story in stories] == pytest.approx(scores, abs=1e-4)
    assert first["reward"] == pytest.approx(np.mean(scores), abs=1e-4), "what is watched with weight 0 is not in it"


@pytest.mark.soak
def test_a_reward_model_of_what_people_prefer_is_measured_beside_length_and_its_error(tmp_path):
    """16 dialogues are learned by heart; what the run says of 32 others is what can be counted from their text."""
    tokenizer, directory = AutoTokenizer.from_pretrained(real("models/stories260K")), tmp_path / "run"
    with gzip.open(real("data/hh-rlhf/harmless-base-1800.jsonl.gz"), "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in islice(file, 300)]
    lengths = [[len(tokenizer(pair[side])["input_ids"]) + 1 for side in ("chosen", "rejected")] for pair in pairs]
    short = [(pair, both) for pair, both in zip(pairs, lengths, strict=True) if max(both) <= 192][:48]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair, _ in short), encoding="utf-8")
    changes = [
        f"model.path={real('models/stories260K')}", f"data.path={tmp_path / 'pairs.jsonl'}", "data.heldout.count=32",
        "train.threads=1", "train.per_device_train_batch_size=16", "train.max_steps=30", "train.max_length=192",
        "train.gradient_accumulation_steps=1", "train.gradient_checkpointing=false",
        "train.optimizer.learning_rate=2e-3", "train.optimizer.warmup_steps=2",
    ]  # fmt: skip
    assert run(load("hh/reward_model", changes), directory, debug=True) == DONE
    trained = [e["metrics"]["train_pair_accuracy"] for e in events(directory, "metrics") if "loss" in e["metrics"]]
    assert trained[-1] > 0.9, "the score head and all below it learn from whole dialogues"
    longer = sum((chosen > rejected) + 0.5 * (chosen == rejected) for _, (chosen, rejected) in short[:32])
    for found in events(directory, "evaluation"):
        accuracy = found["metrics"]["pair_accuracy"]
        assert found["metrics"]["length_baseline"] == max(longer, 32 - longer) / 32
        assert found["metrics"]["pair_accuracy_stderr"] == pytest.approx((accuracy * (1 - accuracy) / 32) ** 0.5)


def test_labelled_solutions_become_pairs_of_a_right_and_a_wrong_one(tmp_path):
    """Right is what has the reference's answer, which the labels do not say. No question is on both sides."""
    source, target = real("data/gsm8k/model_solutions.jsonl"), tmp_path / "solutions.jsonl"
    subprocess.run([sys.executable, folder() / "gsm8k" / "solutions.py", source, target], check=True)
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    truths = {f"{row['question']}\n": _answer(row["ground_truth"]) for row in rows}
    records = load_preferences(load("gsm8k/reward_model", [f"data.path={target}"]).data)
    assert len(records.heldout) == 190 and len(records.train) > 700
    for record in (*records.heldout, *records.train):
        truth = truths[record.fields["prompt"]]
        assert _answer(record.fields["chosen"]) == truth != _answer(record.fields["rejected"])
    asked, trained_on = ({r.fields["prompt"] for r in part} for part in (records.heldout, records.train))
    assert not asked & trained_on and len(asked | trained_on) == 353, "those with a right and a wrong solution"


def test_instructions_of_self_instruct_are_learned(tmp_path):
    """175 tasks by people; what is learned from some lowers the loss on others."""
    tasks, directory = tmp_path / "tasks.jsonl", tmp_path / "run"
    source = real("data/self-instruct/seed_tasks.jsonl")
    subprocess.run([sys.executable, folder() / "self_instruct" / "tasks.py", source, tasks], check=True)
    assert len(tasks.read_text(encoding="utf-8").splitlines()) == 175
    changes = [
        *SMALL, f"data.path={tasks}", "train.packing=false", "train.per_device_train_batch_size=8",
        "train.max_steps=16", "train.eval_steps=8", "train.max_length=160", "data.heldout.count=24",
        "train.optimizer.learning_rate=1e-3", "train.optimizer.warmup_steps=2",
    ]  # fmt: skip
    assert run(load("self_instruct/sft", changes), directory, debug=True) == DONE
    losses = [e["metrics"]["heldout_loss"] for e in events(directory, "metrics") if "heldout_loss" in e["metrics"]]
    assert len(losses) == 3
    assert losses[-1] < losses[0] - 0.5, "nats per token of instructions that were not trained on"


def test_dpo_on_what_people_prefer_is_measured_beside_length(tmp_path):
    """16 pairs are learned by heart, the one without an answer is left out, and length is counted from the text."""
    tokenizer, directory = AutoTokenizer.from_pretrained(real("models/stories260K")), tmp_path / "run"
    with gzip.open(real("data/hh-rlhf/harmless-base-1800.jsonl.gz"), "rt", encoding="utf-8") as file:
        pairs = [json.loads(line) for line in file]
    empty = next(pair for pair in pairs if pair["chosen"].rstrip().endswith("Assistant:"))
    lengths = [[len(tokenizer(pair[side])["input_ids"]) for side in ("chosen", "rejected")] for pair in pairs[:300]]
    fits = [(pair, both) for pair, both in zip(pairs, lengths, strict=False) if max(both) <= 120][:32]
    rows = [pair for pair, _ in fits]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, empty]), encoding="utf-8")
    changes = [
        *SMALL, f"data.path={tmp_path / 'pairs.jsonl'}", "data.data_dir=null", "data.heldout.count=16",
        "train.per_device_train_batch_size=16", "train.max_steps=12", "train.max_length=128",
        "train.optimizer.learning_rate=1e-3", "train.optimizer.warmup_steps=2", "train.logging_steps=1",
    ]  # fmt: skip
    assert run(load("hh/dpo", changes), directory, debug=True) == DONE
    trained = [e["metrics"]["rewards/accuracies"] for e in events(directory, "metrics") if "loss" in e["metrics"]]
    assert trained[0] == 0.0 and trained[-1] > 0.9
    before, after = (found["metrics"] for found in events(directory, "evaluation"))
    assert (before["pair_accuracy"], before["margin"]) == (0.5, 0.0), "the policy is its own reference"
    assert after["margin"] != 0
    longer = sum((chosen > rejected) + 0.5 * (chosen == rejected) for _, (chosen, rejected) in fits[:16])
    assert after["length_baseline"] == before["length_baseline"] == max(longer, 16 - longer) / 16
    accuracy = after["pair_accuracy"]
    assert after["pair_accuracy_stderr"] == pytest.approx((accuracy * (1 - accuracy) / 16) ** 0.5)


@pytest.mark.parametrize(("task", "rate"), [("dpo", 1e-3), pytest.param("kto", 2e-4, marks=pytest.mark.soak)])
def test_right_solutions_get_likelier_than_wrong_ones(task, rate, tmp_path):
    """24 short solutions to a dozen problems, seen ten times; what is held out is about other problems."""
    tokenizer, directory = AutoTokenizer.from_pretrained(real("models/stories260K")), tmp_path / "run"
    script = runpy.run_path(str(folder() / "gsm8k" / "solutions.py"))
    rows = map(json.loads, real("data/gsm8k/model_solutions.jsonl").read_text(encoding="utf-8").splitlines())
    problems = [[r for r in script["labelled"](row) if len(r["completion"]) < 160] for row in rows]
    mixed = [[one for one in answers if len(tokenizer(one["prompt"])["input_ids"]) < 120] for answers in problems]
    mixed = [answers for answers in mixed if {one["label"] for one in answers} == {True, False}][:20]
    assert all(_answer(one["completion"]) == one["answer"] for answers in mixed for one in answers if one["label"])
    lines = [json.dumps(one) + "\n" for answers in mixed for one in answers]
    (tmp_path / "solutions.jsonl").write_text("".join(lines), encoding="utf-8")
    changes = [
        *SMALL, f"data.path={tmp_path / 'solutions.jsonl'}", "data.heldout.count=12", "rewards=null",
        "train.per_device_train_batch_size=8", "train.max_steps=15", "train.max_length=256",
        f"train.optimizer.learning_rate={rate}", "train.optimizer.warmup_steps=1", "train.logging_steps=1",
    ]  # fmt: skip
    assert run(load(f"gsm8k/{task}", changes), directory, debug=True) == DONE
    steps = [e["metrics"] for e in events(directory, "metrics") if "loss" in e["metrics"]]
    assert steps[0]["rewards/margins"] == 0.0
    assert np.mean([step["rewards/margins"] for step in steps[-5:]]) > 0.1
    first, last = events(directory, "evaluation")
    assert first["metrics"]["pair_accuracy"] == 0.5
    assert 0.5 <= last["metrics"]["length_baseline"] <= 1
    assert 0 < last["metrics"]["pair_accuracy_stderr"] < 0.5


def _answer(solution: str) -> str:
    """The number after the last `A:`, as OpenAI's models were trained to end."""
    return solution.rpartition("A: ")[2].strip().replace(",", "").removesuffix(".0")


def _rollouts(directory: Path) -> list[dict]:
    files = sorted((directory / "rollouts").glob("*.parquet"))
    return [row for file in files for row in pq.read_table(file).to_pylist()]
