"""A recipe made small: overrides with which any recipe runs in seconds on a CPU and fetches nothing from a network."""

import json
from pathlib import Path
from typing import Any

from rlpipe.recipe.data import ArithmeticData, ComparisonsData, Data, GuessNumberData, MixtureData
from rlpipe.recipe.environment import ConstitutionEnvironment
from rlpipe.recipe.evaluating import EvalRecipe
from rlpipe.recipe.judge import JudgeReward
from rlpipe.recipe.judging import EngineJudge
from rlpipe.recipe.labelling import LabelRecipe
from rlpipe.recipe.model import ScratchModel
from rlpipe.recipe.references import is_reference
from rlpipe.recipe.tasks import (
    OfflineRecipe,
    PipelineRecipe,
    Recipe,
    RewardModelRecipe,
    RlRecipe,
    SftRecipe,
    StageRecipe,
)

STEPS = 2
PROMPTS = 2
GROUP = 4
HELDOUT = 4
FILES = {
    "Anthropic/hh-rlhf": "pairs.jsonl",
    "HuggingFaceH4/ultrafeedback_binarized": "chosen.jsonl",
    "HuggingFaceH4/ultrachat_200k": "chats.jsonl",
    "tatsu-lab/alpaca": "alpaca.jsonl",
    "trl-lib/kto-mix-14k": "judged.jsonl",
    "roneneldan/TinyStories": "text.jsonl",
}
"""What stands in for a data set of the hub; for others `train.jsonl` does."""
TINY = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 128}


def make_local(folder: Path) -> None:
    """What stands in for the hub: `FOLDER`, a tiny model, `train.jsonl`, a few questions in GSM8K's form, the files of
    `FILES`, each in its data set's form, and answers that are right or wrong, in OpenAI's form
    (`example_model_solutions.jsonl`) and labelled (`solutions.jsonl`)."""
    from rlpipe.models.scratch import build

    build(ScratchModel(scratch="qwen2", **TINY, max_position_embeddings=2048), 0, folder / "FOLDER")
    rows = [
        {
            "question": f"Ann has {a} apples and gets {b} more. How many has she?",
            "answer": f"{a}+{b}=<<{a}+{b}={a + b}>>{a + b}\n#### {a + b}",
            "problem": f"{a}+{b}",
            "solution": str(a + b),
        }
        for a in range(8)
        for b in range(4)
    ]
    _write(folder / "train.jsonl", rows)
    asked = [f"\n\nHuman: What is {row['problem']}?\n\nAssistant:" for row in rows]
    pairs = [{"chosen": f"{a} {r['solution']}", "rejected": f"{a} No."} for a, r in zip(asked, rows, strict=True)]
    _write(folder / "pairs.jsonl", pairs)
    _write(folder / "text.jsonl", [{"text": row["question"]} for row in rows])
    chats = [_chat(row["problem"], row["solution"]) for row in rows]
    wrong = [_chat(row["problem"], "No.") for row in rows]
    _write(folder / "chats.jsonl", [{"messages": chat + chat} for chat in chats])
    both = zip(rows, chats, wrong, strict=True)
    _write(folder / "chosen.jsonl", [{"prompt": r["problem"], "chosen": c, "rejected": w} for r, c, w in both])
    judged = [(chat[:1], chat[1:], chat in chats) for two in zip(chats, wrong, strict=True) for chat in two]
    _write(folder / "judged.jsonl", [{"prompt": p, "completion": c, "label": good} for p, c, good in judged])

    told = [{"instruction": "Add.", "input": row["problem"], "output": row["solution"]} for row in rows]
    _write(folder / "alpaca.jsonl", told)
    task = {"id": "1", "instruction": "Add.", "instances": [{"input": "1+1", "output": "2"}]}
    _write(folder / "seed_tasks.jsonl", [task])

    solved = [{"question": row["problem"], **_solved(row["solution"])} for row in rows]
    _write(folder / "example_model_solutions.jsonl", solved)
    labelled = [(s["question"], a) for s in solved for a in s.values() if isinstance(a, dict)]
    records = [{"prompt": p, "completion": a["solution"], "label": a["is_correct"], "answer": "1"} for p, a in labelled]
    _write(folder / "solutions.jsonl", records)


def _chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _solved(right: str) -> dict[str, dict[str, Any]]:
    """What three models say, the first of them rightly, in the form of OpenAI's file."""
    said = (right, "100", "many")
    answers = {f"{i}b": {"is_correct": answer == right, "solution": f"A: {answer}"} for i, answer in enumerate(said)}
    return {"ground_truth": f"A: {right}", **answers}


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def shrunk(recipe: Recipe, local: Path, own_engine: bool = False) -> list[str]:
    """Overrides that make it small; `local` is where `make_local` wrote. Its engine is the quick one, unless it is to
    keep its own."""
    if isinstance(recipe, PipelineRecipe):
        return [f"stages.{name}.{o}" for name, task in recipe.stages.items() for o in shrunk(task, local, own_engine)]
    if isinstance(recipe, LabelRecipe):
        changes = _model(recipe, local) | _data(recipe, local) | _rollout(recipe, own_engine)
        changes |= _labels(recipe, local, own_engine)
        return [f"{key}={value}" for key, value in changes.items()]
    if isinstance(recipe, EvalRecipe):
        changes = _models(recipe, local) | _data(recipe, local) | _evaluation(recipe) | _rollout(recipe, own_engine)
        return [f"{key}={value}" for key, value in changes.items()]
    # On models this small a second thread costs more than it gives.
    changes = _model(recipe, local) | _data(recipe, local) | {"train.threads": 1}
    if not isinstance(recipe, RewardModelRecipe):
        changes |= _evaluation(recipe) | _rollout(recipe, own_engine)
    changes |= _rl(recipe) if isinstance(recipe, RlRecipe) else _offline(recipe)
    return [f"{key}={value}" for key, value in changes.items()]


def _model(recipe: StageRecipe, local: Path) -> dict[str, object]:
    model = recipe.model
    if isinstance(model, ScratchModel):
        return {f"model.{key}": value for key, value in TINY.items()}
    return {"model.path": local / "FOLDER"} if _elsewhere(model.path) else {}


def _models(recipe: EvalRecipe, local: Path) -> dict[str, object]:
    changes: dict[str, object] = {}
    for name, model in recipe.models.items():
        if isinstance(model, ScratchModel):
            changes |= {f"models.{name}.{key}": value for key, value in TINY.items()}
        elif _elsewhere(model.path):
            changes |= {f"models.{name}.path": local / "FOLDER"}
    return changes


def _data(recipe: StageRecipe, local: Path) -> dict[str, object]:
    if isinstance(recipe.data, MixtureData):
        parts = recipe.data.sources.items()
        return {key: value for name, part in parts for key, value in _part(f"data.sources.{name}", part, local).items()}
    if isinstance(recipe.data, ComparisonsData):
        return _part("data.pairs", recipe.data.pairs, local)
    return _part("data", recipe.data, local)


def _part(key: str, data: Data, local: Path) -> dict[str, object]:
    if isinstance(
        data, ArithmeticData
    ):  # sums of numbers of the same length, and hundreds of them in place of thousands
        return {f"{key}.heldout": 2 * HELDOUT, f"{key}.largest": data.smallest + 20}
    if isinstance(data, GuessNumberData):
        return {f"{key}.heldout": 2 * HELDOUT, f"{key}.games": 256}
    changes: dict[str, object] = {f"{key}.heldout.count": HELDOUT}
    if _elsewhere(data.path):
        own = Path(data.path).name
        path = local / (own if (local / own).exists() else FILES.get(data.path, "train.jsonl"))
        changes |= {f"{key}.path": path, f"{key}.split": "train", f"{key}.heldout.split": "null"}
    return changes


def _labels(recipe: LabelRecipe, local: Path, own_engine: bool) -> dict[str, object]:
    """A judge that has learned nothing says neither A nor B, and finds everything alike: both count here."""
    changes: dict[str, object] = {
        "labels.prompts": HELDOUT,
        "labels.heldout": HELDOUT,
        "labels.tie_within": 0.0,
        "labels.ties": "keep",
        "labels.accept_at": "null",
    }
    if isinstance(recipe.environment, ConstitutionEnvironment):  # of a random model, most turns would never end
        changes |= {"rollout.stop_token_ids": list(range(6, 150)), "rewards.max_failure_rate": 1.0}
    if recipe.guidance:
        changes |= {"guidance.max_tokens": 400, "guidance.sections": 1}
    for i, reward in enumerate(recipe.rewards.mix):
        if isinstance(reward, JudgeReward):
            changes |= {f"rewards.mix.{i}.least_mass": 0.0}
        if isinstance(reward, JudgeReward) and isinstance(reward.by, EngineJudge) and _elsewhere(reward.by.path):
            changes |= {f"rewards.mix.{i}.by.path": local / "FOLDER"}
        if isinstance(reward, JudgeReward) and isinstance(reward.by, EngineJudge):
            changes |= {f"rewards.mix.{i}.by.threads": 1, f"rewards.mix.{i}.by.kv_cache_gib": 0.05}
            changes |= {} if own_engine else {f"rewards.mix.{i}.by.engine": "transformers"}
    return changes


def _evaluation(recipe: StageRecipe) -> dict[str, object]:
    return {"evaluation.prompts": HELDOUT, "evaluation.samples": max(recipe.evaluation.pass_at, default=1)}


def _rollout(recipe: StageRecipe, own_engine: bool) -> dict[str, object]:
    changes: dict[str, object] = {
        "rollout.max_new_tokens": min(recipe.rollout.max_new_tokens, 16),
        "rollout.kv_cache_gib": 0.05,
        "rollout.threads": 1,
    }
    return changes | ({} if own_engine else {"rollout.engine": "transformers"}) | _one_process(recipe)


def _one_process(recipe: StageRecipe) -> dict[str, object]:
    """Of each role, where engines are spread over GPUs or over those of the policy."""
    if recipe.rollout.tensor_parallel == 1 and getattr(recipe, "placement", "split") == "split":
        return {}
    if isinstance(recipe, EvalRecipe):
        return {"rollout.engines": 1, "rollout.tensor_parallel": 1}
    return {"rollout.engines": 1, "rollout.tensor_parallel": 1, "train.ranks": 1, "train.zero_stage": 0}


def _offline(recipe: OfflineRecipe) -> dict[str, object]:
    packed = isinstance(recipe, SftRecipe) and recipe.train.packing
    return {
        "train.max_steps": STEPS,
        "train.per_device_train_batch_size": 4,
        "train.gradient_accumulation_steps": min(2, recipe.train.gradient_accumulation_steps),
        "train.logging_steps": 1,
        "train.eval_steps": 1 if recipe.train.eval_steps else "null",
        **({"train.max_length": 64} if packed else {}),  # so that few records make several sequences
    }


def _rl(recipe: RlRecipe) -> dict[str, object]:
    return {
        "schedule.steps": STEPS,
        "schedule.prompts_per_step": PROMPTS * recipe.train.minibatches,
        "algorithm.group_size": GROUP,
        "evaluation.every": STEPS,
    }


def _elsewhere(path: str) -> bool:
    """A hub id: what is neither here nor made by a stage or run."""
    return not is_reference(path) and not path.startswith("runs/") and not Path(path).exists()
