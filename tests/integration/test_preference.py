"""Preference optimisation on real Ray Train, DeepSpeed and TRL: TRL's own numbers, on one rank and on two."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlpipe.data.source import load_judged, load_preferences
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.preference import prepare, run_preference
from rlpipe.pipelines.offline.ray_train import run_remote
from rlpipe.pipelines.offline.trl_worker import train
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import CpoRecipe, DpoRecipe, KtoRecipe, OrpoRecipe
from rlpipe.recipe.training import Resources

pytestmark = pytest.mark.integration

TINY = {"scratch": "qwen2", "hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 128}
OF_ONE_LENGTH = {"kind": "arithmetic", "smallest": 10, "largest": 44, "heldout": 32}
"""Every micro-batch has as many tokens as any other: TRL's ORPO averages over those of a rank."""
RECIPES = {"dpo": DpoRecipe, "kto": KtoRecipe, "orpo": OrpoRecipe, "cpo": CpoRecipe}
STEPS, BATCH = 3, 8
RATE = {"learning_rate": 1e-3, "lr_scheduler_type": "linear"}
TASKS = {
    "dpo": {},
    "kto": {},
    "orpo": {},
    "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
}


VARIANTS = {
    "wpo": {"use_weighting": True},
    "tr-dpo": {"sync_ref_model": True, "ref_model_mixup_alpha": 0.5, "ref_model_sync_steps": 1},
}
"""Of DPO."""
SETTINGS = TASKS | VARIANTS


def recipe(task, data=OF_ONE_LENGTH, **settings):
    common = {"max_steps": STEPS, "per_device_train_batch_size": BATCH, "logging_steps": 1, "threads": 1}
    name = "dpo" if task in VARIANTS else "cpo" if task == "simpo" else task
    return RECIPES[name].model_validate(
        {
            "task": name, "model": TINY, "data": data,
            "train": common | {"optimizer": RATE} | SETTINGS.get(task, {}) | settings,
        }
    )  # fmt: skip


def records(settings):
    return (load_judged if isinstance(settings, KtoRecipe) else load_preferences)(settings.data)


class Figures(list):
    """Collects what is reported."""

    def __call__(self, step, values):
        self.append((step, values))

    def of(self, name):
        return [values[name] for _, values in self if name in values]


def run(settings, tmp_path, name):
    figures = Figures()
    path = materialise(settings.model, settings.seed, tmp_path / "base")
    run_preference(settings, path, records(settings), tmp_path / name, True, figures)
    return figures


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Figures and folder of each task on one rank, ZeRO 0, in this process."""
    folder = tmp_path_factory.mktemp("alone")
    return {task: (run(recipe(task), folder, task), folder / task) for task in SETTINGS}


def trl(task, settings, base, scratch):
    """What TRL logs by itself, from the raw records, without DeepSpeed and without us."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    config, trainer = {
        "dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer), "orpo": (ORPOConfig, ORPOTrainer),
        "simpo": (CPOConfig, CPOTrainer),
    }["dpo" if task in VARIANTS else task]  # fmt: skip
    arguments = config(
        output_dir=str(scratch), max_steps=STEPS, per_device_train_batch_size=BATCH, logging_steps=1, seed=0,
        learning_rate=1e-3, adam_beta2=0.95, weight_decay=0.0, use_cpu=True, bf16=False, report_to="none",
        save_strategy="no", disable_tqdm=True, gradient_checkpointing=False, max_length=64, **SETTINGS[task],
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = _shuffled_as_kto(settings, base) if task == "kto" else [_messages(r) for r in records(settings).train]
    tuned = trainer(
        model=AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    tuned.train()
    return [log for log in tuned.state.log_history if "loss" in log]


def _turn(role, content):
    return [{"role": role, "content": content}]


def _messages(record):
    sides = {side: _turn("assistant", record.fields[side]) for side in ("chosen", "rejected")}
    return {"prompt": _turn("user", record.fields["prompt"])} | sides


def _shuffled_as_kto(settings, base):
    """KTO takes its data in order, and ours is in that of the seed."""
    pairs = [_messages(record) for record in records(settings).train]
    rows = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for pair in pairs
        for side in ("chosen", "rejected")
    ]
    return [rows[i] for i in np.random.default_rng(settings.seed).permutation(len(rows))]


@pytest.mark.parametrize("task", SETTINGS)
def test_the_numbers_are_those_of_trl_by_itself(task, alone, tmp_path, monkeypatch):
    for name in (
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
    ):  # left by roles of other tests; TRL would take them for torchrun's
        monkeypatch.delenv(name, raising=False)
    figures, _ = alone[task]
    base = materialise(recipe(task).model, 0, tmp_path / "base")
    theirs = trl(task, recipe(task), base, tmp_path / "scratch")
    names = ["loss", "grad_norm", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"]
    for name in names:
        np.testing.assert_allclose(figures.of(name), [log[name] for log in theirs], rtol=1e-4, atol=1e-6, err_msg=name)


class Renumbered:
    """Progress of one of several trainings in the same processes."""

    def __init__(self, progress, offset):
        self.alive = progress.alive
        self.metrics = lambda step, values: progress.metrics(offset + step, values)


def train_one_after_another(jobs, progress):
    for number, job in enumerate(jobs):
        train(job, Renumbered(progress, 100 * number))


@pytest.mark.soak
def test_two_ranks_learn_as_one_rank_does(alone, ray_cluster, tmp_path):
    before = {"precompute_ref_log_probs": True}
    cases = [
        ("dpo", 3, before), ("tr-dpo", 2, {}), ("tr-dpo", 3, {}), ("kto", 2, before), ("kto", 3, {}), ("orpo", 2, {}),
        ("orpo", 3, {}), ("simpo", 2, {}), ("simpo", 3, {}),
    ]  # fmt: skip
    jobs = []
    for number, (task, stage, changes) in enumerate(cases):
        settings = recipe(task, zero_stage=stage, ranks=2, per_device_train_batch_size=BATCH // 2, **changes)
        path = materialise(settings.model, settings.seed, tmp_path / "base")
        jobs.append(prepare(settings, path, records(settings), tmp_path / str(number)))
    figures = Figures()
    run_remote(train_one_after_another, jobs, Launch("preference", 2, Resources(), 1, Deadlines()), figures)
    for number, (task, stage, _) in enumerate(cases):
        expected, expected_folder = alone[task]
        ours = Figures((step % 100, values) for step, values in figures if step // 100 == number)
        assert [step for step, _ in ours] == [step for step, _ in expected]
        for name in ("loss", "grad_norm", "rewards/margins", "heldout_pair_accuracy", "heldout_margin"):
            np.testing.assert_allclose(
                ours.of(name), expected.of(name), rtol=1e-3, atol=1e-5, err_msg=f"{task}, ZeRO {stage}: {name}"
            )
        torch.testing.assert_close(weights(tmp_path / str(number)), weights(expected_folder), rtol=1e-3, atol=1e-4)


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def token_logprobs(model, tokenizer, prompt, answer):
    """Of the answer, from a plain forward."""
    turns = _turn("user", prompt)
    start = len(tokenizer.apply_chat_template(turns, add_generation_prompt=True)["input_ids"])
    ids = torch.tensor([tokenizer.apply_chat_template([*turns, *_turn("assistant", answer)])["input_ids"]])
    with torch.no_grad():
        return model(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[start - 1 :, 0]


def logprob(model, tokenizer, prompt, answer):
    """Of the whole answer; and how many tokens it has."""
    logprobs = token_logprobs(model, tokenizer, prompt, answer)
    return logprobs.sum().item(), len(logprobs)


@pytest.mark.parametrize("task", TASKS)
def test_held_out_preferences_are_those_of_the_folder_by_itself(task, alone, tmp_path):
    figures, folder = alone[task]
    settings = recipe(task)
    base = materialise(settings.model, 0, tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, reference = (AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (folder, base))

    def reward(prompt, answer):
        total, tokens = logprob(model, tokenizer, prompt, answer)
        if task in ("dpo", "kto"):
            return settings.train.beta * (total - logprob(reference, tokenizer, prompt, answer)[0])
        return settings.train.beta * total / tokens

    rows = [record.fields for record in records(settings).heldout]
    chosen, rejected = (np.array([reward(row["prompt"], row[s]) for row in rows]) for s in ("chosen", "rejected"))
    ranked = chosen[:, None] > rejected if task == "kto" else chosen > rejected
    assert figures.of("heldout_pair_accuracy")[-1] == pytest.approx(ranked.mean(), abs=1e-6)
    assert figures.of("heldout_margin")[-1] == pytest.approx((chosen - rejected).mean(), abs=1e-5)


def test_before_training_the_policy_is_its_own_reference(alone):
    for task in ("dpo", "kto"):
        assert alone[task][0].of("heldout_pair_accuracy")[0] == 0.5
        assert alone[task][0].of("heldout_margin")[0] == pytest.approx(0.0, abs=1e-6)
    assert alone["dpo"][0].of("loss")[0] == pytest.approx(np.log(2), abs=1e-6)
    assert alone["kto"][0].of("loss")[0] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_a_reference_worked_out_before_training_changes_nothing(task, alone, tmp_path):
    figures = run(recipe(task, precompute_ref_log_probs=True), tmp_path, "out")
    for name in ("loss", "rewards/margins", "heldout_loss", "heldout_pair_accuracy", "heldout_margin"):
        np.testing.assert_allclose(figures.of(name), alone[task][0].of(name), rtol=1e-4, atol=1e-6, err_msg=name)


def test_without_a_reference_the_reward_is_the_log_probability(alone, tmp_path):
    figures = run(recipe("dpo", reference_free=True, max_steps=1), tmp_path, "out")
    [chosen, rejected] = (figures.of(f"rewards/{side}")[0] for side in ("chosen", "rejected"))
    assert chosen == pytest.approx(0.1 * figures.of("logps/chosen")[0], rel=1e-5)
    assert rejected == pytest.approx(0.1 * figures.of("logps/rejected")[0], rel=1e-5)
    assert figures.of("loss")[0] != pytest.approx(np.log(2), abs=1e-3)


def test_label_smoothing_makes_conservative_dpo(tmp_path):
    """From the margins of one pair: (1 - e) of the loss, and e of the loss of the pair turned round."""
    figures = run(recipe("dpo", label_smoothing=0.2, per_device_train_batch_size=1), tmp_path, "out")
    margins = np.array(figures.of("rewards/margins"))
    expected = 0.8 * np.log1p(np.exp(-margins)) + 0.2 * np.log1p(np.exp(margins))
    np.testing.assert_allclose(figures.of("loss"), expected, rtol=1e-5)
    assert abs(margins[-1]) > 1e-3


@pytest.mark.parametrize("task", ["dpo", "orpo"])
def test_gradient_checkpointing_changes_nothing(task, alone, tmp_path):
    figures = run(recipe(task, gradient_checkpointing=True), tmp_path, "out")
    np.testing.assert_allclose(figures.of("loss"), alone[task][0].of("loss"), rtol=1e-5)


@pytest.mark.parametrize("task", VARIANTS)
def test_a_variant_of_dpo_learns_something_else(task, alone):
    assert alone[task][0].of("loss")[-1] != pytest.approx(alone["dpo"][0].of("loss")[-1], abs=3e-4)


@pytest.mark.parametrize("task", ["dpo", "kto"])
def test_a_reference_that_follows_at_once_is_the_policy(task, alone, tmp_path):
    """So nothing is ever preferred: the margin is 0 after every step, though the policy moves."""
    follow = {"sync_ref_model": True, "ref_model_mixup_alpha": 1.0, "ref_model_sync_steps": 1}
    figures = run(recipe(task, zero_stage=3, **follow), tmp_path, "out")
    assert figures.of("rewards/margins") == pytest.approx([0.0] * STEPS, abs=1e-6)
    assert figures.of("heldout_margin") == pytest.approx([0.0, 0.0], abs=1e-6)
    base = weights(tmp_path / "base")
    assert not torch.equal(weights(tmp_path / "out")["model.norm.weight"], base["model.norm.weight"])


def test_the_temperature_of_discopop(tmp_path):
    """From the margins m of one pair: its losses are mixed by sigmoid(m / tau) (Lu et al. 2024, eq. 5)."""
    settings = {"loss_type": "discopop", "discopop_tau": 0.5, "per_device_train_batch_size": 1}
    figures = run(recipe("dpo", **settings), tmp_path, "out")
    m = np.array(figures.of("rewards/margins"))

    def expected(tau):
        share = 1 / (1 + np.exp(-m / tau))
        return (1 - share) * np.log1p(np.exp(-m)) + share * np.exp(-m)

    np.testing.assert_allclose(figures.of("loss"), expected(0.5), rtol=1e-5)
    assert abs(expected(0.5) - expected(0.05)).max() > 1e-3


def test_what_a_longer_answer_has_more_counts_by_ld_alpha(tmp_path):
    """Answers of 7 and 4 tokens, their ends included: the last three of the longer one count a quarter."""
    rows = tmp_path / "d.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}", "chosen": "abcdef", "rejected": "ghi"}}\n' for n in range(2)))
    data = {"kind": "records", "path": str(rows), "heldout": {"count": 1}}
    changes = {"reference_free": True, "ld_alpha": 0.25, "max_steps": 1, "per_device_train_batch_size": 1}
    figures = run(recipe("dpo", data, **changes), tmp_path, "out")
    model, tokenizer = (kind.from_pretrained(tmp_path / "base") for kind in (AutoModelForCausalLM, AutoTokenizer))
    chosen, rejected = (token_logprobs(model, tokenizer, "1", answer) for answer in ("abcdef", "ghi"))
    assert (len(chosen), len(rejected)) == (7, 4)
    weighted = (chosen[:4].sum() + 0.25 * chosen[4:].sum()).item()
    assert figures.of("logps/chosen")[0] == pytest.approx(weighted, rel=1e-5)
    assert figures.of("logps/rejected")[0] == pytest.approx(rejected.sum().item(), rel=1e-5)
    margin = 0.1 * (weighted - rejected.sum().item())
    assert figures.of("loss")[0] == pytest.approx(np.log1p(np.exp(-margin)), rel=1e-5)
    whole = 0.1 * sum(token_logprobs(model, tokenizer, "0", "abcdef")).item()
    short = 0.1 * sum(token_logprobs(model, tokenizer, "0", "ghi")).item()
    assert figures.of("heldout_margin")[0] == pytest.approx(whole - short, rel=1e-5), "held-out pairs count whole"
