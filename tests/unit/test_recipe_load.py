"""What a recipe file comes to: YAML's scalars, `extends`, overrides, references, local files."""

# ruff: noqa: E501  (messages stand as people see them)

import math
import sys
from pathlib import Path
from subprocess import run

import pytest
import yaml

import rlpipe
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load, read, require_files
from rlpipe.recipe.references import resolve
from rlpipe.recipe.resolved import redacted, to_yaml
from rlpipe.recipe.schema import json_schema, study_json_schema
from rlpipe.recipe.shipped import folder, names, studies
from rlpipe.recipe.yaml_text import dump, parse

RL = """\
task: rl
model: {scratch: qwen2, layers: 2}
data: {kind: arithmetic, largest: 9, heldout: 10}
rewards:
  mix:
    - {kind: exact, name: first}
    - {kind: exact, name: second}
algorithm: {name: grpo, group_size: 4}
schedule: {steps: 3}
"""
SFT = """\
task: sft
model: {scratch: qwen2}
data: {kind: arithmetic}
train: {max_steps: 5}
"""
PIPELINE = """\
task: pipeline
stages:
  sft:
    extends: sft.yaml
  grpo:
    extends: rl.yaml
    model: ${stages.sft.model}
"""


@pytest.fixture(autouse=True)
def recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in (("rl.yaml", RL), ("sft.yaml", SFT), ("pipeline.yaml", PIPELINE)):
        Path(name).write_text(text)


def write(name: str, text: str) -> str:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def message(name: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(name, overrides)
    return str(caught.value)


class TestYaml:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("1e-4", 1e-4),
            ("1E5", 1e5),
            ("1.", 1.0),
            (".5", 0.5),
            ("+3", 3),
            ("017", 17),
            ("0x10", 16),
            ("0o17", 15),
            ("-.inf", -math.inf),
            ("true", True),
            ("FALSE", False),
            ("on", "on"),
            ("yes", "yes"),
            ("No", "No"),
            ("12:30:45", "12:30:45"),
            ("2020-01-01", "2020-01-01"),
            ("1_000", "1_000"),
            ("~", None),
            ("", None),
            ("Null", None),
            ("=", "="),
            ("'1e-4'", "1e-4"),
            ("{a: [1, 2.5, b]}", {"a": [1, 2.5, "b"]}),
        ],
    )
    def test_values(self, text, value):
        root, problems = parse(f"key: {text}", Path("r.yaml"))
        read_back = root.plain()["key"]
        assert (read_back, type(read_back), problems) == (value, type(value), [])

    def test_keys_stay_as_written(self):
        assert parse("{on: 1, 2: 3}", Path("r.yaml"))[0].plain() == {"on": 1, "2": 3}

    @pytest.mark.parametrize(
        "value",
        ["1e-4", "on", "yes", "null", "12:30", "#x", "${stages.sft.model}", 1e-5, -0.0, 7, None, True, "a\nb\n"],
    )
    def test_dump_reads_back(self, value):
        assert parse(dump({"key": value}), Path("r.yaml"))[0].plain() == {"key": value}


class TestExtends:
    def test_sections_merge_and_lists_replace(self):
        write(
            "a.yaml",
            "extends: rl.yaml\ndata: {largest: 19}\nrewards:\n  mix: [{kind: exact}]\nschedule: {prompts_per_step: 8}\n",
        )
        recipe = load("a.yaml")
        assert (recipe.data.largest, recipe.data.heldout) == (19, 10)
        assert [reward.name for reward in recipe.rewards.mix] == ["exact"]
        assert (recipe.schedule.steps, recipe.schedule.prompts_per_step) == (3, 8)

    @pytest.mark.parametrize(
        ("change", "key", "kept"),
        [
            ("data: {kind: records, path: hub/data}", "data", {"kind": "records", "path": "hub/data"}),
            ("data: {kind: arithmetic, heldout: 5}", "data", {"kind": "arithmetic", "largest": 9, "heldout": 5}),
            ("model: {path: hub/model}", "model", {"path": "hub/model"}),
            ("model: hub/model", "model", {"path": "hub/model"}),
            ("model: {heads: 4}", "model", {"scratch": "qwen2", "layers": 2, "heads": 4}),
        ],
    )
    def test_another_kind_replaces_the_section(self, change, key, kept):
        recipe = load(write("a.yaml", f"extends: rl.yaml\n{change}\n"))
        assert getattr(recipe, key).model_dump(exclude_unset=True) == kept

    def test_a_short_model_is_a_section(self):
        write("a.yaml", RL.replace("{scratch: qwen2, layers: 2}", "hub/model"))
        recipe = load(write("b.yaml", "extends: a.yaml\nmodel: {dtype: float32}\n"))
        assert recipe.model.model_dump(exclude_unset=True) == {"path": "hub/model", "dtype": "float32"}

    def test_chains_are_relative_to_each_file(self):
        write("deep/base.yaml", "extends: ../rl.yaml\nseed: 1\n")
        write("deep/more.yaml", "extends: base.yaml\nname: more\n")
        recipe = load(write("a.yaml", "extends: deep/more.yaml\nschedule: {steps: 9}\n"))
        assert (recipe.seed, recipe.name, recipe.schedule.steps) == (1, "more", 9)

    def test_a_section_may_extend_a_file_of_its_own(self):
        write("optimizer.yaml", "learning_rate: 3e-5\nwarmup_steps: 4\n")
        write("a.yaml", RL + "train:\n  optimizer: {extends: optimizer.yaml, warmup_steps: 5}\n")
        optimizer = load("a.yaml").train.optimizer
        assert (optimizer.learning_rate, optimizer.warmup_steps) == (3e-5, 5)

    def test_a_shipped_recipe_by_name(self):
        assert load(write("a.yaml", "extends: arithmetic/grpo\nschedule: {steps: 2}\n")).schedule.steps == 2

    def test_circle(self):
        write("b.yaml", "seed: 1\nextends: a.yaml\n")
        assert message(write("a.yaml", "extends: b.yaml\n")) == (
            "b.yaml:2: extends: these files extend each other in a circle: a.yaml → b.yaml → a.yaml"
        )

    def test_a_missing_file(self):
        assert message(write("a.yaml", "stages:\n  one:\n    extends: grop.yaml\n")) == (
            f"a.yaml:3: stages.one.extends: no recipe file `grop.yaml` in {Path.cwd()}; `rlpipe recipes list` shows "
            "those that come with it"
        )

    def test_several_files_at_once_are_refused(self):
        assert message(write("a.yaml", "extends: [rl.yaml, sft.yaml]\n")) == (
            "a.yaml:1: extends: expected one recipe file, for example `extends: base.yaml`"
        )

    def test_errors_name_the_file_that_holds_the_mistake(self):
        write("base.yaml", RL + "seed: x\n")
        assert message(write("a.yaml", "extends: base.yaml\nname: 1\n")) == (
            "a.yaml:2: name: expected text, found 1\nbase.yaml:10: seed: expected a whole number, found the text `x`"
        )


class TestOverrides:
    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("schedule.steps=20", "schedule.steps", 20),
            ("train.optimizer.learning_rate=1e-5", "train.optimizer.learning_rate", 1e-5),
            ("rewards.mix.1.weight=2", "rewards.mix.1.weight", 2.0),
            ("evaluation.pass_at=[1, 2]", "evaluation.pass_at", [1, 2]),
            ("train={minibatches: 2, optimizer: {learning_rate: 1e-5}}", "train.minibatches", 2),
            ("name='1e5'", "name", "1e5"),
            ("rollout.max_model_len=null", "rollout.max_model_len", None),
            ("model.path=hub/model", "model", {"path": "hub/model"}),
            ("model=hub/model", "model", {"path": "hub/model"}),
            ("rewards.mix.0.kind=math", "rewards.mix.0", {"kind": "math"}),
        ],
    )
    def test_values(self, override, key, value):
        found = load("rl.yaml", [override])
        for part in key.split("."):
            found = found[int(part)] if part.isdecimal() else getattr(found, part)
        assert (found.model_dump(exclude_unset=True) if isinstance(value, dict) else found) == value

    @pytest.mark.parametrize("text", ["Answer: yes # now", "on", "a, b", "####", "x=y"])
    def test_text_needs_no_quotes(self, text):
        overrides = ["data.path=hub/data", "data.kind=records", f"data.system={text}"]
        assert load("rl.yaml", overrides).data.system == text

    def test_the_order_does_not_matter_to_a_new_kind(self):
        for overrides in (["data.kind=records", "data.path=hub/data"], ["data.path=hub/data", "data.kind=records"]):
            assert load("rl.yaml", overrides).data.model_dump(exclude_unset=True) == {
                "kind": "records",
                "path": "hub/data",
            }

    def test_sft_keeps_its_own_optimizer_defaults(self):
        optimizer = load("sft.yaml", ["train.optimizer.learning_rate=2e-4"]).train.optimizer
        assert (optimizer.learning_rate, optimizer.lr_scheduler_type, optimizer.warmup_steps) == (2e-4, "cosine", 20)

    def test_of_a_stage(self):
        assert load("pipeline.yaml", ["stages.grpo.schedule.steps=7"]).stages["grpo"].schedule.steps == 7

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("steps", "override `steps`: expected KEY=VALUE, for example `schedule.steps=20`"),
            ("a..b=1", "override `a..b=1`: expected KEY=VALUE, for example `schedule.steps=20`"),
            (
                "train.lr=1",
                "override `train.lr=1`: train.lr: `lr` is not a key of `train`; did you mean `train.optimizer.learning_rate`?",
            ),
            ("seed.x=1", "override `seed.x=1`: seed: expected a whole number, found a section"),
            (
                "schedule.steps=0",
                "override `schedule.steps=0`: schedule.steps: expected a whole number above 0, found 0",
            ),
            (
                "rewards.mix.2.weight=1",
                "override `rewards.mix.2.weight=1`: rewards.mix.2.weight: `2` is no index of this list; expected one of `0`, `1`",
            ),
            (
                "data={a: ",
                "override `data={a: `: data: not valid YAML after `=`: expected the node content, but got '<stream end>'",
            ),
        ],
    )
    def test_messages(self, override, expected):
        assert message("rl.yaml", override).replace("but found", "but got") == expected

    def test_an_unknown_stage(self):
        assert message("pipeline.yaml", "stages.gpro.seed=1") == (
            "override `stages.gpro.seed=1`: stages.gpro.seed: no stage `gpro`; expected one of `sft`, `grpo`"
        )


class TestReferences:
    def test_stay_until_the_models_are_there(self):
        recipe = load("pipeline.yaml")
        assert recipe.stages["grpo"].model.path == "${stages.sft.model}"
        assert resolve(recipe, {"sft": "/a"}).stages["grpo"].model.path == "/a/model"
        assert resolve(recipe.stages["grpo"], {"sft": "/a"}).model.path == "/a/model"
        assert resolve(recipe.stages["sft"], {}) == recipe.stages["sft"]

    def test_resolve_changes_nothing_else(self):
        stage = load("pipeline.yaml").stages["grpo"]
        changed = resolve(stage, {"sft": "/a"}).model_dump()
        assert changed == stage.model_dump() | {"model": stage.model.model_dump() | {"path": "/a/model"}}

    def test_resolve_needs_the_model(self):
        with pytest.raises(KeyError, match="sft"):
            resolve(load("pipeline.yaml"), {})

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ("${stages.sfx.model}", "`${stages.sfx.model}` refers to nothing: expected `${stages.sft.model}`"),
            ("${stages.sft}", "`${stages.sft}` refers to nothing: expected `${stages.sft.model}`"),
            (
                "${stages.grpo.model}",
                "`${stages.grpo.model}` refers to nothing: stage `grpo` does not run before this one; expected `${stages.sft.model}`",
            ),
        ],
    )
    def test_messages(self, model, expected):
        write("pipeline.yaml", PIPELINE.replace("${stages.sft.model}", model))
        assert message("pipeline.yaml") == f"pipeline.yaml:7: stages.grpo.model.path: {expected}"

    def test_a_reward_and_a_critic_may_be_a_stage_s_model(self):
        changes = [
            "stages.grpo.rewards.mix=[{kind: exact}, {kind: model, path: '${stages.sft.model}'}]",
            "stages.grpo.algorithm.name=ppo",
            "stages.grpo.critic.model=${stages.sft.model}",
        ]
        stage = resolve(load("pipeline.yaml", changes), {"sft": "/a"}).stages["grpo"]
        assert (stage.rewards.mix[1].path, stage.critic.model.path) == ("/a/model", "/a/model")
        assert message("pipeline.yaml", changes[0].replace("sft.model", "rm.model")).endswith(
            "stages.grpo.rewards.mix.1.path: `${stages.rm.model}` refers to nothing: expected `${stages.sft.model}`"
        )

    def test_the_first_stage_has_none_before_it(self):
        assert message("pipeline.yaml", "stages.sft.model=${stages.grpo.model}") == (
            "override `stages.sft.model=${stages.grpo.model}`: stages.sft.model.path: `${stages.grpo.model}` refers to "
            "nothing: no stage runs before this; give a path or hub id"
        )

    def test_only_in_pipelines(self):
        assert message("rl.yaml", "model=${stages.sft.model}") == (
            "override `model=${stages.sft.model}`: model.path: `${stages.sft.model}` refers to nothing: a reference to a "
            "stage works only inside a pipeline's `stages`; give a path or hub id"
        )


class TestLocalFiles:
    def test_beside_the_recipe_first(self, tmp_path):
        write(
            "here/r.yaml", RL.replace("{kind: arithmetic, largest: 9, heldout: 10}", "{kind: records, path: d.jsonl}")
        )
        write("here/d.jsonl", "")
        write("d.jsonl", "")
        assert load("here/r.yaml").data.path == str(tmp_path / "here/d.jsonl")
        Path("here/d.jsonl").unlink()
        assert load("here/r.yaml").data.path == str(tmp_path / "d.jsonl")

    def test_of_a_base_beside_the_base(self, tmp_path):
        write("base/r.yaml", RL.replace("{scratch: qwen2, layers: 2}", "{path: hub/m, chat_template: t.jinja}"))
        write("base/t.jinja", "")
        loaded = read(write("a.yaml", "extends: base/r.yaml\n"))
        assert loaded.recipe.model.chat_template == str(tmp_path / "base/t.jinja")
        assert loaded.files == (Path("a.yaml").resolve(), tmp_path / "base/r.yaml", tmp_path / "base/t.jinja")

    def test_of_an_override_where_it_was_typed(self, tmp_path):
        write("here/r.yaml", RL)
        Path("here/model").mkdir()
        Path("model").mkdir()
        assert load("here/r.yaml", ["model.path=model"]).model.path == str(tmp_path / "model")

    def test_reward_functions(self, tmp_path):
        write("r.yaml", RL.replace("{kind: exact, name: first}", "{kind: python, name: first, function: f.py:reward}"))
        assert [problem.key for problem in read("r.yaml").missing] == ["rewards.mix.0.function"]
        write("f.py", "")
        assert load("r.yaml").rewards.mix[0].function == f"{tmp_path}/f.py:reward"
        module = load("r.yaml", ["rewards.mix.0.function=package.module:reward"])
        assert module.rewards.mix[0].function == "package.module:reward"

    @pytest.mark.parametrize(
        "path", ["./m", "../m", "/nowhere/m", "~/nowhere/m", "runs/m", "m.jsonl", "m.csv", "m.parquet", "m.json"]
    )
    def test_what_can_only_be_local_must_be_there(self, path):
        loaded = read("rl.yaml", [f"model.path={path}"])
        assert [problem.key for problem in loaded.missing] == ["model.path"]
        with pytest.raises(RecipeError, match=r"no file or folder `.*; .*, or give another with `model.path=PATH`"):
            require_files(loaded)

    @pytest.mark.parametrize("path", ["Qwen/Qwen2.5-0.5B-Instruct", "gpt2"])
    def test_hub_ids_stay(self, path):
        loaded = read("rl.yaml", [f"model.path={path}"])
        assert require_files(loaded).model.path == path


class TestResolved:
    def test_reads_back_to_the_same_recipe(self):
        for name in ("rl.yaml", "sft.yaml", "pipeline.yaml"):
            recipe = load(name)
            assert load(write("back.yaml", to_yaml(recipe))) == recipe

    def test_writes_every_default(self):
        assert "learning_rate: 0.001\n" in to_yaml(load("sft.yaml"))
        assert "group_size: 4\n" in to_yaml(load("rl.yaml"))

    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (
                {"api_key": "x", "hub_token": "x", "password": "x"},
                {"api_key": "[redacted]", "hub_token": "[redacted]", "password": "[redacted]"},
            ),
            (
                {"max_new_tokens": 8, "stop_token_ids": [1], "key": "x"},
                {"max_new_tokens": 8, "stop_token_ids": [1], "key": "x"},
            ),
            ("https://me:secret@host/x", "https://[redacted]@host/x"),
            ("https://host/x?a=1&token=abc&b=2", "https://host/x?a=1&token=[redacted]&b=2"),
            ("s3://bucket/x", "s3://bucket/x"),
            ("redis://default:default@host", "redis://[redacted]@host"),
            ("use hf_abcdefghijklmnop now", "use [redacted] now"),
            (["run", "rewards.mix.0.options.api_key=abc"], ["run", "rewards.mix.0.options.api_key=[redacted]"]),
        ],
    )
    def test_redacts_credentials(self, value, shown):
        assert redacted(value) == shown


class TestShipped:
    def test_names(self):
        assert {"arithmetic/sft", "arithmetic/grpo", "arithmetic/pipeline", "gsm8k/sft", "gsm8k/grpo"} <= set(names())

    @pytest.mark.parametrize("name", names())
    def test_every_recipe_loads_and_explains_itself(self, name):
        load(name)
        header = (folder() / f"{name}.yaml").read_text().split("\n\n")[0]
        assert all(line.startswith("#") for line in header.splitlines())
        for part in ("What it does", "What it needs", f"rlpipe run recipes/{name}.yaml", "Healthy run"):
            assert part in header

    @pytest.fixture(scope="class")
    @classmethod
    def validator(cls):
        """Of any recipe. The schema is checked once: that takes longer than a recipe."""
        jsonschema = pytest.importorskip("jsonschema")
        jsonschema.Draft202012Validator.check_schema(json_schema())
        return jsonschema.Draft202012Validator(json_schema())

    @pytest.mark.parametrize("name", names())
    def test_every_recipe_fits_the_json_schema(self, name, validator):
        data = yaml.safe_load((folder() / f"{name}.yaml").read_text().replace("e-", ".0e-"))
        validator.validate(data)

    @pytest.mark.parametrize("name", studies())
    def test_every_study_fits_its_json_schema_and_no_other_key_does(self, name):
        jsonschema = pytest.importorskip("jsonschema")
        data = yaml.safe_load((folder() / f"{name}.yaml").read_text().replace("e-", ".0e-"))
        jsonschema.validate(data, study_json_schema())
        with pytest.raises(jsonschema.ValidationError, match="repeats"):
            jsonschema.validate(data | {"repeats": 3}, study_json_schema())


def undescribed(schema: object, name: str = "the recipe") -> list[str]:
    """Keys of a JSON Schema that say nothing about themselves."""
    if isinstance(schema, list):
        return [key for part in schema for key in undescribed(part, name)]
    if not isinstance(schema, dict):
        return []
    properties = schema.get("properties", {})
    bare = [f"{name}: {key}" for key, value in properties.items() if not value.get("description")]
    return bare + [key for part, value in schema.items() for key in undescribed(value, part)]


def test_every_key_of_the_schema_says_what_it_is():
    assert undescribed(json_schema()) == undescribed(study_json_schema()) == []


def test_loading_and_the_command_line_import_nothing_heavy(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(rlpipe.__file__).parents[1]))
    heavy = "torch ray transformers vllm deepspeed trl peft datasets accelerate numpy pandas pyarrow rich jinja2 fsspec"
    code = f"""
import sys
import rlpipe.cli
from rlpipe.recipe.errors import RecipeError
from rlpipe.recipe.load import load
from rlpipe.recipe.schema import json_schema
load("arithmetic/pipeline", ["stages.grpo.schedule.steps=3"])
json_schema()
try:
    load("arithmetic/grpo", ["train.lr=3"])
except RecipeError:
    print(*sorted(set({heavy.split()}) & set(sys.modules)))
"""
    done = run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
