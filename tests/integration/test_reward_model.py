"""Reward modelling on real Ray Train, DeepSpeed and TRL: stages and ranks agree, the result is a plain classifier."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.source import load_preferences
from rlpipe.models.classifier import load_classifier
from rlpipe.models.load import ModelError, materialise
from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.ray_train import run_remote
from rlpipe.pipelines.offline.reward_model import encode, prepare, run_reward_model
from rlpipe.pipelines.offline.trl_worker import train
from rlpipe.recipe.model import PretrainedModel
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import RewardModelRecipe
from rlpipe.recipe.training import Resources

pytestmark = pytest.mark.integration


def recipe(model=TINY, data=None, **settings):
    data = data or {"kind": "arithmetic", "heldout": 37}
    return RewardModelRecipe.model_validate(
        {"task": "reward_model", "model": model, "data": data, "train": train_settings(**settings)}
    )


def run(settings, tmp_path, name, debug=True):
    figures = Figures()
    path = materialise(settings.model, settings.seed, tmp_path / "base")
    run_reward_model(settings, path, load_preferences(settings.data), tmp_path / name, debug, figures)
    return figures


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Figures and folder of one rank, ZeRO 0, in this process."""
    folder = tmp_path_factory.mktemp("alone")
    return run(recipe(), folder, "out"), folder / "out"


def heldout_pairs(settings, folder):
    return encode(settings, str(folder), load_preferences(settings.data))[1]


@torch.no_grad()
def scores(model, sequences):
    return [model(torch.tensor([ids])).logits.item() for ids in sequences]


def test_the_folder_is_a_plain_sequence_classifier(alone):
    figures, folder = alone
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_labels, model.config.pad_token_id) == (1, tokenizer.pad_token_id)
    assert model.config.architectures == ["Qwen2ForSequenceClassification"]
    turns = [{"role": "user", "content": "2+3"}, {"role": "assistant", "content": "5"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>2+3<|end|><|assistant|>5<|end|>"
    # The accuracy that was reported is that of the folder's own scores, pair by pair.
    pairs = heldout_pairs(recipe(), folder)
    chosen, rejected = (np.array(scores(model, [getattr(p, side) for p in pairs])) for side in ("chosen", "rejected"))
    assert figures.of("heldout_pair_accuracy")[1] == pytest.approx((chosen > rejected).mean())
    assert figures.of("heldout_margin")[1] == pytest.approx((chosen - rejected).mean(), abs=1e-5)
    longer = np.mean([len(pair.chosen) > len(pair.rejected) for pair in pairs])
    even = np.mean([len(pair.chosen) == len(pair.rejected) for pair in pairs])
    by_length = max(longer + even / 2, 1 - longer - even / 2)
    assert figures.of("heldout_length_baseline") == [pytest.approx(by_length)] * 2
    accuracy, stderr = (figures.of(f"heldout_pair_accuracy{suffix}")[1] for suffix in ("", "_stderr"))
    assert stderr == pytest.approx((accuracy * (1 - accuracy) / len(pairs)) ** 0.5), "each pair is about its own sum"


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_gives_the_same_scores(alone, side):
    _, folder = alone
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = side
    sequences = [pair.chosen for pair in heldout_pairs(recipe(), folder)[:4]] + [[9, 10, 11]]
    padded = tokenizer.pad({"input_ids": sequences}, return_tensors="pt")
    with torch.no_grad():
        together = model(**padded).logits[:, 0].tolist()
    assert together == pytest.approx(scores(model, sequences), abs=1e-5)


@pytest.mark.soak
def test_two_ranks_in_every_zero_stage_learn_as_one_rank_does(alone, ray_cluster, tmp_path):
    expected, expected_folder = alone
    jobs = []
    for stage in range(4):
        settings = recipe(zero_stage=stage, ranks=2, per_device_train_batch_size=8)
        path = materialise(settings.model, settings.seed, tmp_path / "base")
        pairs = encode(settings, path, load_preferences(settings.data))
        jobs.append(prepare(settings, path, *pairs, tmp_path / f"zero{stage}"))
    figures = Figures()
    run_remote(train_one_after_another, jobs, Launch("RM", 2, Resources(), 1, Deadlines()), figures)
    for stage in range(4):
        ours = Figures((step % 100, values) for step, values in figures if step // 100 == stage)
        assert [step for step, _ in ours] == [step for step, _ in expected] == [0, 0, 1, 2, 3, 4, 5, 5]
        for name in ("loss", "grad_norm", "learning_rate", "tokens", "heldout_margin"):
            np.testing.assert_allclose(
                ours.of(name), expected.of(name), rtol=1e-4, atol=1e-6, err_msg=f"{stage} {name}"
            )
        assert ours.of("heldout_pair_accuracy") == expected.of("heldout_pair_accuracy")
        torch.testing.assert_close(weights(tmp_path / f"zero{stage}"), weights(expected_folder), rtol=1e-4, atol=1e-5)


class Renumbered:
    """Progress of one of several trainings in the same processes."""

    def __init__(self, progress, offset):
        self.alive = progress.alive
        self.metrics = lambda step, values: progress.metrics(offset + step, values)


def train_one_after_another(jobs, progress):
    for number, job in enumerate(jobs):
        train(job, Renumbered(progress, 100 * number))


def weights(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder).state_dict()


def test_margin_and_centring_are_in_the_loss(tmp_path):
    """Against the formula, on one batch of the untrained model."""
    rows = [f'{{"prompt": "{n}", "chosen": "{n}a", "rejected": "b", "margin": {n / 4}}}\n' for n in range(17)]
    (tmp_path / "d.jsonl").write_text("".join(rows))
    data = {"kind": "records", "path": str(tmp_path / "d.jsonl"), "heldout": {"count": 1}}
    settings = recipe(data=data, max_steps=1, center_rewards_coefficient=0.5)
    loss = run(settings, tmp_path, "out").of("loss")[0]
    base = str(tmp_path / "base")
    model = load_classifier(settings.model, base, torch.float32, 0, head_seed=settings.seed)
    pairs, _ = encode(settings, base, load_preferences(settings.data))
    chosen, rejected = (torch.tensor(scores(model, [getattr(p, s) for p in pairs])) for s in ("chosen", "rejected"))
    margins = torch.tensor([pair.margin for pair in pairs])
    expected = -torch.nn.functional.logsigmoid(chosen - rejected - margins) + 0.5 * (chosen + rejected).square()
    assert loss == pytest.approx(expected.mean().item(), rel=1e-4)


def test_a_reward_model_is_trained_on_with_its_own_head(alone, tmp_path):
    expected, folder = alone
    figures = run(recipe(str(folder), max_steps=1), tmp_path, "out")
    assert figures.of("heldout_loss")[0] == pytest.approx(expected.of("heldout_loss")[1], rel=1e-5)


def test_a_language_model_is_no_reward_model_until_trained(tmp_path):
    base = materialise(recipe().model, 0, tmp_path / "base")
    with pytest.raises(ModelError, match=r"is no reward model: it has no score head. Train one .*task: reward_model"):
        load_classifier(PretrainedModel(path=base), base, torch.float32, 0)


def test_a_tiny_model_learns_to_tell_lengths(tmp_path):
    """Something that five dozen steps can teach: the longer answer is the better one."""
    rows = [f'{{"prompt": "{n}", "chosen": "aaaaaa", "rejected": "aa"}}\n' for n in range(200)]
    (tmp_path / "d.jsonl").write_text("".join(rows))
    data = {"kind": "records", "path": str(tmp_path / "d.jsonl"), "heldout": {"count": 20}}
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 0}
    figures = run(recipe(data=data, max_steps=30, optimizer=optimizer), tmp_path, "out")
    assert figures.of("heldout_pair_accuracy")[1] == 1.0
    assert figures.of("heldout_length_baseline") == [1.0, 1.0]
    assert figures.of("loss")[-1] < 0.1 < figures.of("loss")[0]
