"""Online DPO beside TRL's DPO trainer, and in the loop."""

import pytest
import tiny_models
import torch
from online_algorithms import algorithm, weights_of
from test_online import RECIPE, SOME_FLAT, train

from rlpipe.models.logprobs import token_logprobs

pytestmark = pytest.mark.integration

PROMPT = list(range(10, 15))
RESPONSES = [[20, 21, 22, 23], [30, 31], [40, 41, 42], [50, 51, 52, 53, 54]]
"""Chosen, rejected, rejected, chosen: of two prompts, here the same."""
CHOSEN, REJECTED = [0, 3], [1, 2]


def padded(rows):
    """Input ids [B, T] and the mask of the responses."""
    ids = [torch.tensor(PROMPT + RESPONSES[i]) for i in rows]
    mask = [torch.tensor([0.0] * len(PROMPT) + [1.0] * len(RESPONSES[i])) for i in rows]
    return (torch.nn.utils.rnn.pad_sequence(part, batch_first=True) for part in (ids, mask))


@pytest.fixture
def models(tmp_path):
    """A policy and another model as its reference."""
    return [tiny_models.load(tiny_models.save_model(tmp_path / str(seed), seed)) for seed in range(2)]


def trl(models, folder, loss_type):
    """The loss of TRL's DPO trainer and the gradient it leaves."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    policy, reference = models
    settings = DPOConfig(
        output_dir=str(folder / "out"), loss_type=[loss_type], beta=0.3, use_cpu=True, report_to=[], bf16=False,
        dataloader_pin_memory=False, gradient_checkpointing=False, disable_dropout=True,
    )  # fmt: skip
    records = Dataset.from_list([{"prompt": "1+1=", "chosen": "2", "rejected": "3"}])
    tokenizer = AutoTokenizer.from_pretrained(folder / "0")
    trainer = DPOTrainer(policy, reference, settings, train_dataset=records, processing_class=tokenizer)
    ids_BT, mask_BT = padded(CHOSEN + REJECTED)
    attention_BT = torch.stack([torch.arange(ids_BT.shape[1]) < len(PROMPT) + m.sum() for m in mask_BT]).long()
    inputs = {"input_ids": ids_BT, "attention_mask": attention_BT, "completion_mask": mask_BT.long()}
    loss = trainer.compute_loss(policy, inputs)
    loss.backward()
    return loss.item(), taken_gradient(policy)


def ours(models, loss_type):
    policy, reference = models
    ids_BT, mask_BT = padded(range(4))
    ones_BT = torch.ones_like(ids_BT)
    it = algorithm("online_dpo", advantage={"kind": "dpo", "beta": 0.3, "loss_type": loss_type})
    logprobs_BT = token_logprobs(policy, ids_BT, ones_BT, 1.0, mask_BT)
    with torch.no_grad():
        reference_BT = token_logprobs(reference, ids_BT, ones_BT, 1.0, mask_BT)
    signal = it.signal(
        rewards_B=torch.tensor([1.0, 0.0, 0.0, 1.0]), groups_B=torch.tensor([0, 0, 1, 1]),
        valid_B=torch.ones(4).bool(), mask_BT=mask_BT, kl_coefficient=0.0,
        old_logprobs_BT=logprobs_BT.detach(), reference_logprobs_BT=reference_BT,
    )  # fmt: skip
    loss, _ = it.loss(
        logprobs_BT=logprobs_BT, behaviour_logprobs_BT=logprobs_BT.detach(), advantages_BT=signal.advantages_BT,
        mask_BT=mask_BT, weights_BT=weights_of(it, mask_BT), kl_coefficient=0.0, reference_logprobs_BT=reference_BT,
    )  # fmt: skip
    loss.backward()
    return signal.metrics["dpo/loss"], taken_gradient(policy)


def taken_gradient(model):
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return gradient


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo"])
def test_loss_and_gradient_are_trl_s(models, tmp_path, monkeypatch, loss_type):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    loss, gradient = ours(models, loss_type)
    their_loss, their_gradient = trl(models, tmp_path, loss_type)
    assert loss == pytest.approx(their_loss, rel=1e-4)
    scale = max(float(g.abs().max()) for g in gradient.values())
    assert scale > 0.1 * loss
    for name, theirs in their_gradient.items():
        torch.testing.assert_close(gradient[name] / scale, theirs / scale, atol=1e-5, rtol=0, msg=name)


def test_a_run_counts_its_pairs_and_leaves_ties_out(tmp_path):
    (tmp_path / "digits.py").write_text(SOME_FLAT)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    metrics = train(tmp_path / "recipe.yaml", tmp_path / "run", "algorithm.name=online_dpo", "algorithm.group_size=4")
    for step in metrics.values():
        assert step["dpo/pairs"] == pytest.approx(8 * (1 - step["groups_without_signal"]))
    assert 0 < metrics[1]["dpo/pairs"] < 8
    assert metrics[1]["dpo/loss"] == pytest.approx(0.6931472) and metrics[1]["rewards/margins"] == pytest.approx(0)
    assert metrics[3]["dpo/loss"] != pytest.approx(0.6931472, abs=1e-3)
