"""Adapters and the settings of each role in a recipe, and what cannot work."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.resolved import to_yaml

RL = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards: {mix: [{kind: exact}]}
algorithm: {name: ppo}
schedule: {steps: 3}
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(RL)


def message(*overrides):
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", overrides)
    return str(caught.value)


def test_an_adapter_has_peft_s_names_and_survives_being_written():
    recipe = load("r.yaml", ["adapter={kind: lora, r: 8}", "adapter.target_modules=[q_proj, v_proj]"])
    assert recipe.adapter.model_dump() == {
        "kind": "lora", "r": 8, "lora_alpha": 32, "use_rslora": False, "lora_dropout": 0.0, "bias": "none",
        "target_modules": ["q_proj", "v_proj"], "use_dora": False, "init_lora_weights": True, "loraplus_lr_ratio": 1.0,
    }  # fmt: skip
    Path("again.yaml").write_text(to_yaml(recipe))
    assert load("again.yaml") == recipe
    assert load("r.yaml").adapter is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["adapter.r=8"], "override `adapter.r=8`: adapter.kind: missing; expected one of `adalora`, `bitfit`, `bottleneck`, `delta_lora`, `ia3`, `lora`, `lora_fa`, `prefix_tuning`, `prompt_tuning`, `vera`"),
        (["adapter={kind: lora, alpha: 8}"], "override `adapter={kind: lora, alpha: 8}`: adapter.alpha: `alpha` is not a key of `adapter`; its keys are kind, r, lora_alpha, use_rslora, lora_dropout, bias, target_modules, use_dora, init_lora_weights, loraplus_lr_ratio"),
        (["adapter={kind: lora, lora_dropout: 0.1}"], "override `adapter={kind: lora, lora_dropout: 0.1}`: adapter.lora_dropout=0.1 would make the policy that is trained another one than the policy that sampled; set it to 0 in RL"),
        (["adapter={kind: lora, use_dora: true}"], "override `adapter={kind: lora, use_dora: true}`: adapter.use_dora=true: vLLM cannot serve such an adapter; set publishing.adapter=merged, which sends it merged into full weights"),
        (["adapter={kind: ia3}"], "override `adapter={kind: ia3}`: adapter.kind=ia3: vLLM cannot serve such an adapter; set publishing.adapter=merged, which sends it merged into full weights"),
        (["adapter={kind: adalora}"], "override `adapter={kind: adalora}`: adapter.kind=adalora is for the offline tasks; take adapter.kind=lora in RL"),
        (["adapter={kind: delta_lora}"], "override `adapter={kind: delta_lora}`: adapter.kind=delta_lora is for the offline tasks; take adapter.kind=lora in RL"),
        (["adapter={kind: lora, bias: all}"], "override `adapter={kind: lora, bias: all}`: adapter.bias=all: the reference is the model with its adapter off, and that is another one here than the model it began as; leave bias out, or take a task without a reference (sft, orpo, cpo)"),
        (["adapter={kind: bitfit}"], "override `adapter={kind: bitfit}`: adapter.kind=bitfit is for the offline tasks; take adapter.kind=lora in RL"),
        (["adapter={kind: lora, init_lora_weights: pissa}"], "override `adapter={kind: lora, init_lora_weights: pissa}`: adapter.init_lora_weights=pissa: the reference is the model with its adapter off, and that is another one here than the model it began as; leave init_lora_weights out, or take a task without a reference (sft, orpo, cpo)"),
        (["adapter={kind: lora, loraplus_lr_ratio: 16}"], "override `adapter={kind: lora, loraplus_lr_ratio: 16}`: adapter.loraplus_lr_ratio=16 is for the offline tasks; leave it out in RL"),
        (["adapter={kind: ia3, feedforward_modules: [up_proj]}"], "override `adapter={kind: ia3, feedforward_modules: [up_proj]}`: adapter: feedforward_modules: up_proj is not among target_modules; add it there"),
        (["publishing.adapter=merged"], "override `publishing.adapter=merged`: publishing.adapter=merged says how an adapter reaches the engines, and there is none: give one (adapter.kind=lora), or leave the key out"),
        (["train.offload_optimizer=true"], "override `train.offload_optimizer=true`: train: offload_optimizer=true with zero_stage=0: DeepSpeed offloads what it shards; set zero_stage to 1 or more"),
        (["critic={zero_stage: 2, offload_param: true}"], "override `critic={zero_stage: 2, offload_param: true}`: critic: offload_param=true with zero_stage=2: DeepSpeed offloads what it shards; set zero_stage to 3"),
        (["train.load_best_model_at_end=true"], "override `train.load_best_model_at_end=true`: train: load_best_model_at_end takes the best of the checkpoints; set save_steps, too"),
        (["train.load_best_model_at_end=true", "train.save_steps=30"], "override `train.save_steps=30`: train.load_best_model_at_end: with train.save_steps=30 and evaluation.every=25 some checkpoints are not evaluated; set save_steps to a multiple of every"),
        (["train={load_best_model_at_end: true, save_steps: 50, metric_for_best_model: pass@2}"], "override `train={load_best_model_at_end: true, save_steps: 50, metric_for_best_model: pass@2}`: train.metric_for_best_model=pass@2 is not measured here; what is: reward, accuracy, pass@1, pass@4"),
        (["train.save_total_limit=3"], "override `train.save_total_limit=3`: train: save_total_limit changes nothing without save_steps; set that, too"),
        (["reference.zero_stage=2"], "override `reference.zero_stage=2`: reference.zero_stage: expected one of `0`, `3`, found 2"),
        (["reference={share: policy, ranks: 2, resources: {gpus: 1}}"], "override `reference={share: policy, ranks: 2, resources: {gpus: 1}}`: reference: share=policy puts this role into the policy's processes, which `train` describes: leave out ranks and resources, or share"),
        (["reference.share=critic"], "override `reference.share=critic`: reference.share: expected `policy`, or null, found the text `critic`"),
        (["reference.ranks=2", "algorithm.kl.coefficient=0"], "override `algorithm.kl.coefficient=0`: reference: algorithm.kl.coefficient=0 runs without one: give it a value, or leave the section out"),
        (["reference.ranks=2", "adapter={kind: lora}"], "override `adapter={kind: lora}`: reference: with adapter.kind=lora the policy is the reference, too, while its adapter is off, and no second copy of the model is started; leave the section out"),
        (["critic.adapter={kind: bitfit}"], "override `critic.adapter={kind: bitfit}`: critic: adapter.kind=bitfit is for the offline tasks; take adapter.kind=lora in RL"),
        (["critic.adapter={kind: vera, vera_dropout: 0.1}"], "override `critic.adapter={kind: vera, vera_dropout: 0.1}`: critic: adapter.vera_dropout=0.1 would compute values that depend on what was dropped; set it to 0 in RL"),
        (["critic={zero_stage: 3, adapter: {kind: lora, init_lora_weights: pissa}}"], "override `critic={zero_stage: 3, adapter: {kind: lora, init_lora_weights: pissa}}`: critic: adapter.init_lora_weights=pissa takes weights apart, which critic.zero_stage=3 has split over the ranks; set critic.zero_stage to 2 or less, or leave init_lora_weights out"),
        (["critic.share=base"], "override `critic.share=base`: critic: share=base: the shared base model is frozen, so the critic needs an adapter of its own; give one (critic.adapter.kind=lora), or set share to policy"),
        (["critic={share: base, adapter: {kind: lora}}"], "override `critic={share: base, adapter: {kind: lora}}`: critic.share=base: without an adapter the policy changes the model that the critic would stand on; give it one (adapter.kind=lora), or set critic.share to policy"),
        (["critic={share: base, adapter: {kind: lora}, dtype: float32}"], "override `critic={share: base, adapter: {kind: lora}, dtype: float32}`: critic: share=base has the critic stand on the policy's own model; leave dtype out, or set share to policy"),
        (["critic={share: base, adapter: {kind: lora, bias: all}}"], "override `critic={share: base, adapter: {kind: lora, bias: all}}`: critic: adapter.bias=all changes the base model, which share=base has the policy use, too; leave bias out, or set share to policy"),
        (["critic={share: base, adapter: {kind: lora, init_lora_weights: pissa}}"], "override `critic={share: base, adapter: {kind: lora, init_lora_weights: pissa}}`: critic: adapter.init_lora_weights=pissa changes the base model, which share=base has the policy use, too; leave init_lora_weights out, or set share to policy"),
        (["critic={share: base, adapter: {kind: lora}, zero_stage: 3}"], "override `critic={share: base, adapter: {kind: lora}, zero_stage: 3}`: critic: critic.zero_stage=3 splits the base model for one role alone, and critic.share=base has two on it; set critic.zero_stage to 2 or less, or critic.share to policy"),
        (["adapter={kind: lora}", "critic={share: base, adapter: {kind: lora}}", "train.zero_stage=3"], "override `train.zero_stage=3`: train.zero_stage=3 splits the base model for one role alone, and critic.share=base has two on it; set train.zero_stage to 2 or less, or critic.share to policy"),
    ],
)  # fmt: skip
def test_what_cannot_work_says_so(overrides, expected):
    assert message(*overrides) == expected


SFT = """\
task: sft
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards: {mix: [{kind: exact}, {kind: model, path: org/model, share: policy}]}
train: {max_steps: 3}
"""


def test_sft_has_nothing_to_share():
    Path("r.yaml").write_text(SFT)
    assert message() == (
        "r.yaml:4: rewards.mix.1.share=policy: offline tasks have no policy processes to share; leave it out"
    )


def test_each_role_has_its_own_settings():
    recipe = load("r.yaml", ["reference={ranks: 2, zero_stage: 3, dtype: bfloat16}", "critic.share=policy"])
    assert (recipe.reference.ranks, recipe.reference.zero_stage, recipe.reference.dtype) == (2, 3, "bfloat16")
    assert (recipe.train.ranks, recipe.critic.share, recipe.reference.share) == (1, "policy", None)
