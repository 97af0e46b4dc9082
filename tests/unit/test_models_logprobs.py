"""Log-probabilities without the distributions, against the plain computation with them."""

import pytest
import torch

import rlpipe.models.logprobs as module
from rlpipe.models.logprobs import logprobs_and_entropy, position_ids, token_logprobs
from rlpipe.models.scratch import build_model
from rlpipe.recipe.model import ScratchModel

LEFT_AND_RIGHT_PADDED = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def model(request):
    spec = ScratchModel(
        scratch="qwen2", hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    return build_model(spec, 0, 262, 0, 1)


@pytest.fixture
def ids_BT():
    return torch.randint(6, 262, (3, 6), generator=torch.Generator().manual_seed(0))


def plain(model, ids_BT, mask_BT, temperature):
    """The same with all logits and torch's log_softmax."""
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT, position_ids=position_ids(mask_BT)).logits
    distribution = torch.distributions.Categorical(logits=logits_BTV[:, :-1] / temperature)
    inside = mask_BT[:, 1:] * mask_BT[:, :-1]
    zero = torch.zeros(len(ids_BT), 1)
    return (
        torch.cat([zero, distribution.log_prob(ids_BT[:, 1:]) * inside], 1),
        torch.cat([zero, distribution.entropy() * inside], 1),
    )


def gradients(value, model):
    return torch.autograd.grad(value, list(model.parameters()))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("logits_per_chunk", [1 << 25, 262 * 4], ids=["whole", "chunked"])
def test_equals_the_plain_computation_with_gradient(model, ids_BT, temperature, logits_per_chunk, monkeypatch):
    monkeypatch.setattr(module, "_LOGITS_PER_CHUNK", logits_per_chunk)
    ours = logprobs_and_entropy(model, ids_BT, LEFT_AND_RIGHT_PADDED, temperature)
    theirs = plain(model, ids_BT, LEFT_AND_RIGHT_PADDED, temperature)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    assert not ours[1].requires_grad
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        gradients((ours[0] * weights).sum(), model), gradients((theirs[0] * weights).sum(), model), atol=2e-5, rtol=1e-4
    )


@pytest.mark.parametrize("logits_per_chunk", [1 << 25, 262 * 4], ids=["whole", "chunked"])
def test_the_entropy_has_a_gradient_where_it_is_asked_for(model, ids_BT, logits_per_chunk, monkeypatch):
    monkeypatch.setattr(module, "_LOGITS_PER_CHUNK", logits_per_chunk)
    mask_BT = LEFT_AND_RIGHT_PADDED
    ours = logprobs_and_entropy(model, ids_BT, mask_BT, 0.7, entropy_gradient=True)
    theirs = plain(model, ids_BT, mask_BT, 0.7)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=1e-5)
    weights = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    both = [((values[0] + values[1]) * weights).sum() for values in (ours, theirs)]
    torch.testing.assert_close(*(gradients(value, model) for value in both), atol=2e-5, rtol=1e-4)


def test_a_model_that_changes_its_logits_is_asked_for_them(model, ids_BT, monkeypatch):
    monkeypatch.setattr(model.config, "final_logit_softcapping", 30.0, raising=False)
    ones = torch.ones_like(ids_BT)
    torch.testing.assert_close(logprobs_and_entropy(model, ids_BT, ones, 1.0), plain(model, ids_BT, ones, 1.0))


def test_only_what_is_wanted_is_computed(model, ids_BT):
    mask, wanted = torch.ones_like(ids_BT), torch.zeros_like(ids_BT)
    wanted[0, 3:] = wanted[2, 0] = 1
    everything = token_logprobs(model, ids_BT, mask, 1.0)
    some = token_logprobs(model, ids_BT, mask, 1.0, wanted)
    torch.testing.assert_close(some[0, 3:], everything[0, 3:])
    assert some.count_nonzero() == 3  # index 0 has no context and stays 0


def test_nothing_wanted_gives_zeros_that_still_reach_every_parameter(model, ids_BT):
    logprobs = token_logprobs(model, ids_BT, torch.ones_like(ids_BT), 1.0, torch.zeros_like(ids_BT))
    assert not logprobs.any()
    assert all(not gradient.any() for gradient in gradients(logprobs.sum(), model))


def test_a_uniform_model_by_hand(ids_BT):
    model = build_model(ScratchModel(scratch="qwen2", hidden_size=64, layers=1, heads=2, kv_heads=1), 0, 262, 0, 1)
    torch.nn.init.zeros_(model.lm_head.weight)
    logprobs, entropy = logprobs_and_entropy(model, ids_BT, torch.ones_like(ids_BT), 1.0)
    log_262 = 5.568344503761097
    torch.testing.assert_close(logprobs, torch.tensor([0.0, *[-log_262] * 5]).expand(3, 6))
    torch.testing.assert_close(entropy, torch.tensor([0.0, *[log_262] * 5]).expand(3, 6))


def test_bfloat16_models_give_float32_results(ids_BT):
    spec = ScratchModel(scratch="qwen2", hidden_size=64, layers=1, heads=2, kv_heads=1, intermediate_size=64)
    model = build_model(spec, 0, 262, 0, 1).bfloat16()
    mask = torch.ones_like(ids_BT)
    ours = token_logprobs(model, ids_BT, mask, 1.0)
    assert ours.dtype == torch.float32
    logits_BTV = model(input_ids=ids_BT, attention_mask=mask).logits.float()
    theirs = logits_BTV[:, :-1].log_softmax(-1).gather(-1, ids_BT[:, 1:, None])[..., 0]
    torch.testing.assert_close(ours[:, 1:], theirs)


def test_the_model_is_as_before(model, ids_BT):
    before = model(ids_BT).logits
    token_logprobs(model, ids_BT, torch.ones_like(ids_BT), 1.0)
    assert "forward" not in vars(model.lm_head)
    torch.testing.assert_close(model(ids_BT).logits, before)


def test_positions_count_tokens_only():
    assert position_ids(LEFT_AND_RIGHT_PADDED).tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 3, 3], [0, 1, 2, 3, 4, 5]]
