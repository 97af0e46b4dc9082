"""What a mistake in a recipe is answered with, word for word."""

# ruff: noqa: E501  (messages stand as people see them)

from pathlib import Path

import pytest

from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load, read

GOOD = """\
task: rl
model: {scratch: qwen2}
data: {kind: arithmetic}
rewards:
  mix:
    - kind: exact
algorithm: {name: grpo}
schedule:
  steps: 3
"""


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def problems(text: str, *overrides: str) -> list[str]:
    Path("r.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        load("r.yaml", overrides)
    return str(caught.value).splitlines()


def test_a_good_recipe_loads():
    Path("r.yaml").write_text(GOOD)
    assert load("r.yaml").schedule.steps == 3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # unknown keys
        (
            "steps: 3",
            "steps: 3\n  setps: 4",
            "r.yaml:10: schedule.setps: `setps` is not a key of `schedule`; did you mean `schedule.steps`?",
        ),
        (
            "task: rl",
            "task: rl\nlearning_rate: 1e-3",
            "r.yaml:2: learning_rate: `learning_rate` is not a key of the recipe; did you mean `train.optimizer.learning_rate` or `critic.optimizer.learning_rate`?",
        ),
        (
            "task: rl",
            "task: rl\ntrain:\n  lr: 1e-3",
            "r.yaml:3: train.lr: `lr` is not a key of `train`; did you mean `train.optimizer.learning_rate`?",
        ),
        (
            "task: rl",
            "task: rl\nthreads: 1",
            "r.yaml:2: threads: `threads` is not a key of the recipe; did you mean `train.threads` or `reference.threads` or `critic.threads`?",
        ),
        (
            "task: rl",
            "task: rl\ntrain:\n  max_steps: 1",
            "r.yaml:3: train.max_steps: `max_steps` is not a key of `train`; did you mean `schedule.steps`?",
        ),
        (
            "task: rl",
            "task: rl\npublishing: {zzz: 1}",
            "r.yaml:2: publishing.zzz: `zzz` is not a key of `publishing`; its keys are transport, adapter, base, tolerance",
        ),
        (
            "{kind: arithmetic}",
            "{kind: arithmetic, path: x}",
            "r.yaml:3: data.path: `path` does not go with `kind: arithmetic` of `data`; it goes with `kind: records`",
        ),
        (
            "{scratch: qwen2}",
            "{scratch: qwen2, path: x}",
            "r.yaml:2: model.path: `path` does not go with `scratch` of `model`",
        ),
        (
            "{scratch: qwen2}",
            "{path: x, layers: 2}",
            "r.yaml:2: model.layers: `layers` does not go with `path` of `model`",
        ),
        (
            "steps: 3",
            "steps: 3\n  seed: 4",
            "r.yaml:10: schedule.seed: `seed` is not a key of `schedule`; did you mean `seed` at the top level or `data.seed` or `environment.seed`?",
        ),
        # types, ranges, choices
        ("steps: 3", "steps: 0", "r.yaml:9: schedule.steps: expected a whole number above 0, found 0"),
        ("steps: 3", 'steps: "3"', "r.yaml:9: schedule.steps: expected a whole number above 0, found the text `3`"),
        ("steps: 3", "steps: 3.5", "r.yaml:9: schedule.steps: expected a whole number above 0, found 3.5"),
        ("steps: 3", "steps: true", "r.yaml:9: schedule.steps: expected a whole number above 0, found true"),
        ("steps: 3", "steps:", "r.yaml:9: schedule.steps: expected a whole number above 0, found nothing"),
        ("steps: 3", "steps: [3]", "r.yaml:9: schedule.steps: expected a whole number above 0, found a list"),
        ("  steps: 3", "  - steps", "r.yaml:8: schedule: expected a section with `steps`, found a list"),
        (
            "{kind: arithmetic}",
            "{kind: arithmetic, operands: 5}",
            "r.yaml:3: data.operands: expected a whole number from 2 to 4, found 5",
        ),
        (
            "task: rl",
            "task: rl\ntrain: {zero_stage: 4}",
            "r.yaml:2: train.zero_stage: expected one of `0`, `1`, `2`, `3`, found 4",
        ),
        (
            "task: rl",
            "task: rl\nrollout: {engine: vLLM}",
            "r.yaml:2: rollout.engine: expected one of `vllm`, `transformers`, found the text `vLLM`; did you mean `vllm`?",
        ),
        (
            "task: rl",
            "task: rl\nrollout: {max_model_len: long}",
            "r.yaml:2: rollout.max_model_len: expected a whole number above 0, or null, found the text `long`",
        ),
        (
            "task: rl",
            "task: rl\npublishing: {tolerance: x}",
            "r.yaml:2: publishing.tolerance: expected a number above 0, or `auto`, found the text `x`",
        ),
        (
            "task: rl",
            "task: rl\ntracking: {tensorboard: yes}",
            "r.yaml:2: tracking.tensorboard: expected true or false, found the text `yes`",
        ),
        (
            "task: rl",
            "task: rl\ntrain: {optimizer: 1e-3}",
            "r.yaml:2: train.optimizer: expected a section with keys such as `optim`, `learning_rate`, `weight_decay`, found 0.001",
        ),
        (
            "task: rl",
            "task: rl\nevaluation: {pass_at: [1, 0]}",
            "r.yaml:2: evaluation.pass_at.1: expected a whole number above 0, found 0",
        ),
        (
            "  mix:\n    - kind: exact",
            "  mix: []",
            "r.yaml:5: rewards.mix: expected a non-empty list, each item a section with `kind`: one of `code`, `environment`, `exact`, `format`, `http`, `judge`, `math`, `model`, `python`, `regex`, found an empty list",
        ),
        (
            "{name: grpo}",
            "{name: grpo, kl: {coefficient: .inf}}",
            "r.yaml:7: algorithm.kl.coefficient: expected a number of at least 0, found inf",
        ),
        # what names the kind of a thing
        (
            "task: rl",
            "task: sfl",
            "r.yaml:1: task: expected one of `cpo`, `dpo`, `eval`, `kto`, `label`, `orpo`, `pipeline`, `reward_model`, `rl`, `sft`, found the text `sfl`; did you mean `sft`?",
        ),
        (
            "task: rl\n",
            "",
            "r.yaml:1: task: missing; expected one of `cpo`, `dpo`, `eval`, `kto`, `label`, `orpo`, `pipeline`, `reward_model`, `rl`, `sft`",
        ),
        (
            "kind: exact",
            "kind: exakt",
            "r.yaml:6: rewards.mix.0.kind: expected one of `code`, `environment`, `exact`, `format`, `http`, `judge`, `math`, `model`, `python`, `regex`, found the text `exakt`; did you mean `exact`?",
        ),
        (
            "- kind: exact",
            "- name: exact",
            "r.yaml:6: rewards.mix.0.kind: missing; expected one of `code`, `environment`, `exact`, `format`, `http`, `judge`, `math`, `model`, `python`, `regex`",
        ),
        (
            "{name: grpo}",
            "{name: grop}",
            "r.yaml:7: algorithm.name: expected one of `cispo`, `dapo`, `dr_grpo`, `grpo`, `gspo`, `online_dpo`, `ppo`, `reinforce++`, `reinforce++_baseline`, `rloo`, found the text `grop`; did you mean `grpo`?",
        ),
        (
            "{scratch: qwen2}",
            "3",
            "r.yaml:2: model: expected a path or hub id (`model: PATH` or `model: {path: PATH}`), or `{scratch: qwen2}`, found 3",
        ),
        # missing
        (
            "steps: 3",
            "prompts_per_step: 3",
            "r.yaml:8: schedule.steps: missing; expected a whole number above 0 (RL steps; each samples, scores, trains and publishes once)",
        ),
        (
            "model: {scratch: qwen2}\n",
            "",
            "r.yaml:1: model: missing; expected a path or hub id (`model: PATH` or `model: {path: PATH}`), or `{scratch: qwen2}`",
        ),
        # whole sections
        (
            "steps: 3",
            "steps: 3\n  prompts_per_step: 5\ntrain: {minibatches: 2}",
            "r.yaml:10: schedule.prompts_per_step=5 does not divide into train.minibatches=2: whole groups stay in one optimizer step",
        ),
        (
            "task: rl",
            "task: rl\nevaluation:\n  pass_at: [8]\n  samples: 4",
            "r.yaml:4: evaluation: samples=4 is too few for pass_at=[8]",
        ),
        (
            "task: rl",
            "task: rl\nrollout: {max_model_len: 16}",
            "r.yaml:2: rollout: max_model_len=16 leaves no room for a prompt before max_new_tokens=16; raise the one or lower the other",
        ),
        (
            "task: rl",
            "task: rl\nrollout: {engines: 2, min_engines: 3}",
            "r.yaml:2: rollout: min_engines=3 is more than engines=2, which is how many there are at most; lower the one or raise the other",
        ),
        (
            "task: rl",
            "task: rl\nrollout: {nodes: spred}",
            "r.yaml:2: rollout.nodes: expected one of `pack`, `spread`, found the text `spred`; did you mean `spread`?",
        ),
        (
            "kind: exact",
            "kind: environment",
            "r.yaml:6: rewards.mix.0.kind=environment takes the reward that the environment gives, and environment.kind=single_turn gives none; choose another reward or environment",
        ),
        (
            "task: rl",
            "task: rl\nenvironment: {kind: guess_number, max_turns: 6, discount: 0.2}",
            "r.yaml:2: environment: discount=0.2 makes the last of max_turns=6 guesses worth nothing; keep it below 0.2",
        ),
        (
            "task: rl",
            "task: rl\nenvironment: {kind: python, implementation: mine.py}",
            "r.yaml:2: environment.implementation: expected `path/to/file.py:Class` or `package.module:Class`, found `mine.py`",
        ),
        (
            "{kind: arithmetic}",
            "{kind: guess_number, smallest: 9, largest: 9}",
            "r.yaml:3: data: smallest=9 leaves nothing to guess below largest=9; lower it",
        ),
        (
            "{scratch: qwen2}",
            "{scratch: qwen2, heads: 7}",
            "r.yaml:2: model: hidden_size=256 does not divide into heads=7",
        ),
        (
            "- kind: exact",
            "- kind: exact\n    - kind: exact",
            "r.yaml:7: rewards: mix.1.name=exact and mix.0.name=exact are the same; change one",
        ),
        (
            "- kind: exact",
            "- {kind: exact, weight: 0}",
            "r.yaml:6: rewards: mix.0.weight=0: with every weight 0 nothing would be learned",
        ),
        (
            "- kind: exact",
            "- {kind: python, name: a, function: f}",
            "r.yaml:6: rewards.mix.0.function: expected `path/to/file.py:function` or `package.module:function`, found `f`",
        ),
        (
            "task: rl",
            "task: rl\nname: a/b",
            "r.yaml:2: name: `a/b` names a folder; expected letters, digits, `-`, `_`, `.`, and no mark first",
        ),
        # the text itself
        (
            "steps: 3",
            "steps: 3\n  steps: 4",
            "r.yaml:10: schedule.steps: this key stands twice; the first is at r.yaml:9",
        ),
        ("steps: 3", "steps: [3", "r.yaml:10: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("  steps: 3", "  steps: &a\n    b: *a", "r.yaml:10: schedule.steps.b: an alias that contains itself"),
        (
            GOOD,
            "",
            "r.yaml:1: a recipe is a mapping that begins with a key such as `task: rl`; this file holds nothing",
        ),
        (
            GOOD,
            "- task: rl",
            "r.yaml:1: a recipe is a mapping that begins with a key such as `task: rl`; this file holds a sequence",
        ),
    ],
)
def test_message(old, new, expected):
    assert old in GOOD
    assert problems(GOOD.replace(old, new, 1)) == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            ["train.minibatches=3"],
            "override `train.minibatches=3`: schedule.prompts_per_step=32 does not divide into train.minibatches=3: whole groups stay in one optimizer step",
        ),
        (
            ["schedule.prompts_per_step=4", "train={minibatches: 3}"],
            "override `schedule.prompts_per_step=4`: schedule.prompts_per_step=4 does not divide into train.minibatches=3: whole groups stay in one optimizer step",
        ),
        (
            ["evaluation.pass_at.1=9"],
            "override `evaluation.pass_at.1=9`: evaluation: samples=4 is too few for pass_at=[1, 9]",
        ),
        (
            ["rewards.mix.0.weight=2", "rewards.mix.1.name=exact"],
            "override `rewards.mix.1.name=exact`: rewards: mix.1.name=exact and mix.0.name=exact are the same; change one",
        ),
    ],
)
def test_a_combination_that_an_override_made_impossible_is_blamed_on_it(changes, expected):
    text = GOOD.replace("- kind: exact", "- kind: exact\n    - {kind: exact, name: other}")
    assert problems(f"{text}evaluation:\n  pass_at: [1, 4]\n", *changes) == [expected]


def test_an_override_beside_it_is_not_blamed():
    assert problems(f"{GOOD}rollout:\n  max_model_len: 16\n", "rollout.threads=1") == [
        "r.yaml:11: rollout: max_model_len=16 leaves no room for a prompt before max_new_tokens=16; raise the one or lower the other"
    ]


def test_all_problems_at_once_in_the_order_of_the_file():
    assert problems(
        "# a comment\ntask: rl\nseed: x\n" + GOOD.removeprefix("task: rl\n") + "  prompts: 3\nfoo: 1\nfoo: 2\n",
        "seeed=1",
    ) == [
        "override `seeed=1`: seeed: `seeed` is not a key of the recipe; did you mean `seed`?",
        "r.yaml:3: seed: expected a whole number, found the text `x`",
        "r.yaml:12: schedule.prompts: `prompts` is not a key of `schedule`; did you mean `evaluation.prompts`?",
        "r.yaml:14: foo: this key stands twice; the first is at r.yaml:13",
        "r.yaml:14: foo: `foo` is not a key of the recipe; its keys are task, name, seed, model, adapter, data, rewards, "
        "environment, algorithm, schedule, placement, run, train, reference, critic, rollout, evaluation, publishing, deadlines, tracking",
    ]


def test_a_model_is_not_taught_the_environments_words():
    sft = "task: sft\nmodel: {scratch: qwen2}\ndata: {kind: guess_number}\ntrain: {max_steps: 3}\n"
    assert problems(sft) == [
        "r.yaml:4: train.loss_on=completion would teach the model what the environment says in these demonstrations, too; set train.loss_on=assistant"
    ]


def test_a_stage_is_named_in_full():
    stage = "".join(f"    {line}\n" for line in GOOD.splitlines())
    assert problems(f"task: pipeline\nstages:\n  first:\n{stage}    trian: {{}}\n") == [
        "r.yaml:13: stages.first.trian: `trian` is not a key of `stages.first`; did you mean `stages.first.train`?"
    ]


def test_a_key_of_another_task():
    assert problems("task: pipeline\nstages: {}\nmodel: x\n") == [
        "r.yaml:2: stages: expected a non-empty section of names, each holding a section with `task`: one of `cpo`, `dpo`, `eval`, `kto`, `label`, `orpo`, `reward_model`, `rl`, `sft`, found an empty section",
        "r.yaml:3: model: `model` does not go with `task: pipeline` of the recipe; it goes with `task: sft` or `task: reward_model` or `task: dpo` or `task: kto` or `task: orpo` or `task: cpo` or `task: rl` or `task: label`",
    ]


def test_missing_local_files_are_no_errors_of_the_recipe(tmp_path):
    Path("r.yaml").write_text(GOOD.replace("{scratch: qwen2}", "runs/sft/model"))
    assert list(map(str, read("r.yaml").missing)) == [
        f"r.yaml:2: model: no file or folder `runs/sft/model` in {tmp_path}; run the recipe that makes it first, or give "
        "another with `model=PATH`"
    ]


def test_what_makes_a_missing_model_is_named_where_a_shipped_recipe_does(tmp_path):
    Path("r.yaml").write_text(GOOD.replace("{scratch: qwen2}", "runs/arithmetic/stages/sft/model"))
    assert list(map(str, read("r.yaml").missing)) == [
        f"r.yaml:2: model: no file or folder `runs/arithmetic/stages/sft/model` in {tmp_path}; `rlpipe run "
        "arithmetic/pipeline` makes it, or give another with `model=PATH`"
    ]


def test_a_folder_that_holds_no_model_is_told_with_those_below_it_that_do(tmp_path):
    Path("r.yaml").write_text(GOOD.replace("{scratch: qwen2}", "runs/two"))
    for stage in ("sft", "grpo"):
        (tmp_path / f"runs/two/stages/{stage}/model").mkdir(parents=True)
    (tmp_path / "runs/two/stages/sft/model/config.json").touch()
    assert list(map(str, read("r.yaml").missing)) == [
        "r.yaml:2: model: the folder `runs/two` holds no model: it has no config.json; did you mean "
        "`runs/two/stages/sft/model`?"
    ]
    for holds in ("config.json", "adapter_config.json"):
        (made := tmp_path / "runs/two" / holds).touch()
        assert read("r.yaml").missing == ()
        made.unlink()


def test_an_algorithm_in_place_of_its_task():
    assert problems("task: grpo\n")[0].endswith("found the text `grpo`; write `task: rl` and `algorithm: {name: grpo}`")
    assert problems("task: ppo\n")[0].endswith("write `task: rl` and `algorithm: {name: ppo}`")
    assert problems("task: stf\n")[0].endswith("found the text `stf`; did you mean `sft`?")


def test_no_such_recipe():
    with pytest.raises(RecipeError) as caught:
        load("runs/x.yaml")
    assert str(caught.value) == (
        f"no recipe file `runs/x.yaml` in {Path.cwd()}; `rlpipe recipes list` shows those that come with it"
    )
    with pytest.raises(RecipeError) as caught:
        load("arithmetic/gropo")
    assert str(caught.value) == "no recipe file `arithmetic/gropo`; did you mean `arithmetic/grpo`?"
