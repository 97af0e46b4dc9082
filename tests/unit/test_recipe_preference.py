"""What cannot work in a preference task or an offline training, and what is said instead."""

from pathlib import Path

import pytest

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.preference_training import DpoTraining

RECIPE = "task: {}\nmodel: {{scratch: qwen2}}\ndata: {{kind: arithmetic}}\ntrain: {{max_steps: 9}}\n"
FOLLOW = ("sync_ref_model=true", "ref_model_sync_steps=2")


def problem(tmp_path: Path, task: str, *changes: str) -> str:
    (tmp_path / "r.yaml").write_text(RECIPE.format(task))
    with pytest.raises(RecipeError) as caught:
        load(tmp_path / "r.yaml", [f"train.{change}" if change[0] != "+" else change[1:] for change in changes])
    return str(caught.value)


@pytest.mark.parametrize("task", ["dpo", "kto", "orpo", "cpo"])
def test_every_task_has_defaults(tmp_path, task):
    (tmp_path / "r.yaml").write_text(RECIPE.format(task))
    recipe = load(tmp_path / "r.yaml")
    assert (recipe.task, recipe.name, recipe.train.beta) == (task, task, 0.1)


@pytest.mark.parametrize(
    ("task", "changes", "says"),
    [
        ("dpo", ["loss_type=ipo", "label_smoothing=0.1"], "changes nothing in loss_type=ipo; it goes with sigmoid"),
        ("dpo", ["loss_type=exo_pair"], "exo_pair needs label_smoothing above 0; its authors take 1e-3"),
        ("dpo", ["label_smoothing=0.5"], "expected a number of at least 0 and below 0.5"),
        ("dpo", ["loss_type=[sigmoid,robust]", "label_smoothing=0.1"], "two ways to use one label_smoothing"),
        ("dpo", ["loss_type=[sigmoid,sft]", "loss_weights=[1]"], "1 numbers for 2 losses of loss_type; give one for"),
        ("dpo", ["loss_type=[sigmoid,sigmoid]"], "has a loss twice; leave it out or raise its weight"),
        ("dpo", ["f_divergence_type=forward_kl", "loss_type=apo_zero"], "does not go with loss_type=apo_zero; take"),
        ("dpo", ["reference_free=true", "precompute_ref_log_probs=true"], "leaves nothing for precompute_ref_log_prob"),
        ("dpo", ["reference_free=true", "f_divergence_type=js_divergence"], "leaves nothing for f_divergence_type=js_"),
        ("dpo", ["ld_alpha=1.5"], "expected a number from 0 to 1, or null, found 1.5"),
        ("dpo", ["ld_alpha=0.5", "precompute_ref_log_probs=true"], "ranked by whole ones; leave one of them out"),
        ("dpo", ["use_weighting=true", "loss_type=aot"], "loss_type=aot sorts their sides apart; leave one of them"),
        ("dpo", ["discopop_tau=0.1"], "changes nothing in loss_type=sigmoid; it goes with discopop"),
        ("dpo", ["ref_model_mixup_alpha=0.5"], "changes nothing without sync_ref_model=true; set that, too"),
        ("kto", ["ref_model_sync_steps=4"], "changes nothing without sync_ref_model=true; set that, too"),
        ("kto", ["sync_ref_model=true"], "ref_model_sync_steps=512 is not below max_steps=9, so the reference would"),
        ("dpo", [*FOLLOW, "precompute_ref_log_probs=true"], "asks it only once; leave one of them out"),
        ("dpo", [*FOLLOW, "save_steps=10"], "a checkpoint does not hold the reference"),
        ("dpo", [*FOLLOW, "reference_free=true"], "leaves nothing for sync_ref_model=true to work on"),
        ("dpo", [*FOLLOW, "+adapter={kind: lora}"],
         "with adapter.kind=lora it is the policy with its adapter off; leave train.sync_ref_model out"),
        ("sft", ["num_train_epochs=2"], "says when training ends, and both are given; set one of them to null"),
        ("sft", ["max_steps=null"], "says when training ends, and neither is given; set one of them"),
        ("kto", ["per_device_train_batch_size=1"], "leaves none; raise one of them"),
        ("kto", ["loss_type=sigmoid"], "expected one of `kto`, `apo_zero_unpaired`"),
        ("cpo", ["loss_type=hinge", "label_smoothing=0.1"], "changes nothing in loss_type=hinge"),
        ("cpo", ["simpo_gamma=1.0"], "simpo_gamma=1.0 changes nothing in loss_type=sigmoid; it goes with simpo"),
        ("orpo", ["loss_type=simpo"], "`loss_type` is not a key of `train`"),
        ("orpo", ["+data={kind: guess_number}"], "data.kind: expected one of `arithmetic`, `records`"),
        ("kto", ["+rewards={mix: [{kind: environment}]}"], "takes the reward that the environment gives"),
        ("dpo", ["early_stopping_patience=2"], "early_stopping_patience needs evaluations during training; set"),
        ("dpo", ["load_best_model_at_end=true", "eval_steps=9"], "set eval_steps below max_steps"),
        ("dpo", ["early_stopping_threshold=0.1"], "changes nothing without early_stopping_patience"),
        ("dpo", ["metric_for_best_model=token_accuracy"], "expected one of `loss`, `pair_accuracy`, `margin`"),
        ("sft", ["metric_for_best_model=margin"], "expected one of `loss`, `token_accuracy`"),
        ("sft", ["optimizer.lr_scheduler_type=cosine_with_min_lr"], "needs lr_scheduler_kwargs: {min_lr: ...}"),
        ("sft", ["optimizer.lr_scheduler_kwargs={power: 2}"], "power is no argument of lr_scheduler_type=cosine"),
        ("sft", ["+data={kind: mixture, sources: {a: {kind: arithmetic}, b: {kind: arithmetic}}, weights: {a: 1}}"],
         "`b` has no weight; sources and weights must hold the same names"),
        ("sft", ["+data={kind: mixture, sources: {a: {kind: arithmetic}, b: {kind: guess_number}}, weights: {a: 1, "
                 "b: 1}}"], "set train.loss_on=assistant"),
        ("sft", ["+adapter={kind: adalora, init_r: 8}"], "target_r=8 is not below init_r=8, so that no rank could go"),
        ("dpo", ["+adapter={kind: adalora, tinit: 4, tfinal: 4}"], "leave less than two of train.max_steps=9 steps"),
        ("kto", ["+adapter={kind: adalora}", "eval_steps=3", "load_best_model_at_end=true"],
         "train.load_best_model_at_end could end before adapter.kind=adalora has come to its target rank"),
        ("kto", ["+adapter={kind: delta_lora}"], "kind=delta_lora: the reference is the model with its adapter off"),
        ("dpo", ["+adapter={kind: lora_fa, bias: lora_only}"], "bias=lora_only: the reference is the model with its"),
        ("sft", ["+adapter={kind: delta_lora, start_step: 9}"], "start_step=9 comes after the last of train.max_steps"),
        ("sft", ["+model={path: x, rope_scaling: {rope_type: yarn, factor: 1}}"], "expected a number above 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_an_error_with_the_fix(tmp_path, task, changes, says):
    assert says in problem(tmp_path, task, *changes)


def test_weights_of_losses():
    assert DpoTraining(max_steps=1).losses == {"sigmoid": 1.0}
    mpo = DpoTraining(max_steps=1, loss_type=["sigmoid", "bco_pair", "sft"], loss_weights=[0.8, 0.2, 1.0])
    assert mpo.losses == {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}


def test_epochs_in_place_of_steps(tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format("sft"))
    changes = ["train.max_steps=null", "train.num_train_epochs=1.5", "train.eval_steps=7"]
    train = load(tmp_path / "r.yaml", [*changes, "train.load_best_model_at_end=true"]).train
    assert (train.max_steps, train.duration) == (None, "1.5 epochs")
