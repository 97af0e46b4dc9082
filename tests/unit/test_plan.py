"""`rlpipe plan`: batch arithmetic, placement, what does not fit and what would, from recipes alone."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from rlpipe.cli import app
from rlpipe.plan.advice import advice
from rlpipe.plan.hardware import GIB, Cluster, HardwareError, Node, amount, cluster
from rlpipe.plan.model_files import facts
from rlpipe.plan.placement import on_gpu, on_host, place
from rlpipe.plan.stage import Asked
from rlpipe.plan.usage import total
from rlpipe.plan.whole import Unplannable, plan
from rlpipe.recipe.load import load
from rlpipe.recipe.model import PretrainedModel

ASKED = Asked(prompt=512)
SEVEN = "model.path=Qwen/Qwen2.5-7B-Instruct"


def planned(name, *changes, gpus="0", nodes=1, host=None):
    whole = plan(load(name, changes), cluster(gpus, nodes, host), ASKED)
    return whole.stages[0] if len(whole.stages) == 1 else whole.stages


def on_each_gpu(stage):
    return [
        [f"{role.name} {seat.index}" for seat in seated for role in (*seat.roles, *seat.beside)]
        for spot in stage.scenes[0].placed.spots
        for seated in spot.gpus
    ]


def role(stage, name):
    return next(role for scene in stage.scenes for role in scene.roles if role.name == name)


class TestBatches:
    def test_of_rl(self):
        numbers = planned("gsm8k/grpo", "train.minibatches=4", "train.epochs=2", "train.ranks=2").batches.numbers
        # 32 prompts x 8 = 256 trajectories; 64 of an optimizer step, 32 on a rank; 16 of 1,024 tokens in 16,384
        assert numbers == {
            "prompts_per_step": 32,
            "prompts": 6400,
            "trajectories_per_step": 256,
            "optimizer_steps_per_step": 8,
            "optimizer_steps": 1600,
            "trajectories_per_optimizer_step": 64,
            "trajectories_per_rank": 32,
            "micro_batches": 2,
        }

    def test_the_nearest_that_do(self):
        [ranks] = planned("gsm8k/grpo", "schedule.prompts_per_step=18", "train.ranks=32").batches.uneven
        assert "schedule.prompts_per_step=16 or 20 would" in ranks
        for prompts in (16, 20):
            assert not planned("gsm8k/grpo", f"schedule.prompts_per_step={prompts}", "train.ranks=32").batches.uneven
        [engines] = planned("gsm8k/grpo", "rollout.engines=5").batches.uneven
        assert engines == "32 groups do not divide into rollout.engines=5; schedule.prompts_per_step=30 or 35 would"

    def test_of_a_file(self, tmp_path):
        (tmp_path / "train.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 300)
        changes = (f"data.path={tmp_path}/train.jsonl", "data.config=null", "data.columns={}", "data.heldout.count=30",
                   "train.max_steps=null", "train.num_train_epochs=2", "train.per_device_train_batch_size=8",
                   "train.gradient_accumulation_steps=4")  # fmt: skip
        found = planned("gsm8k/sft", *changes).batches
        # 270 records make 33 micro-batches, those 9 optimizer steps of which the last has one micro-batch
        assert found.numbers["optimizer_steps"] == 18
        assert "the last step of each epoch has 1 of 4 micro-batches" in found.uneven[0]
        assert "records=256 or 288 would" in found.uneven[0]


class TestPlacement:
    def test_split(self):
        stage = planned("gsm8k/grpo", "train.ranks=2", "rollout.engines=2", gpus="4x24GB")
        assert on_each_gpu(stage) == [["policy 0"], ["policy 1"], ["engine 0"], ["engine 1"]]
        assert stage.fits

    def test_over_nodes(self):
        stage = planned("gsm8k/grpo", "train.ranks=3", "rollout.engines=2", gpus="2x24GB", nodes=3)
        assert on_each_gpu(stage) == [["policy 0"], ["policy 1"], ["policy 2"], ["engine 0"], ["engine 1"], []]

    def test_tensor_parallel_engines_stay_on_a_node(self):
        changes = ("train.ranks=3", "rollout.tensor_parallel=2")
        stage = planned("gsm8k/grpo", *changes, gpus="4x24GB", nodes=2)
        assert on_each_gpu(stage)[3:] == [[], ["engine 0"], ["engine 0"], [], []]

    def test_engines_that_are_spread(self):
        changes = ("train.ranks=1", "rollout.engines=4", "rollout.nodes=spread")
        stage = planned("gsm8k/grpo", *changes, gpus="4x24GB", nodes=2)
        first, second = on_each_gpu(stage)[:4], on_each_gpu(stage)[4:]
        assert first == [["policy 0"], ["engine 0"], ["engine 2"], []]
        assert second == [["engine 1"], ["engine 3"], [], []]

    def test_engines_that_may_come_later(self):
        few = ("rollout.engines=4", "rollout.min_engines=1")
        assert planned("gsm8k/grpo", *few, gpus="2x24GB").fits
        assert not planned("gsm8k/grpo", *few, gpus="1x24GB").fits

    def test_colocated(self):
        changes = ("train.ranks=2", "rollout.engines=2", "placement=colocated")
        stage = planned("gsm8k/grpo", *changes, gpus="2x24GB")
        assert on_each_gpu(stage) == [["policy 0", "engine 0"], ["policy 1", "engine 1"]]
        policy, engine = (role(stage, name).usage for name in ("policy", "engine"))
        [first, _] = [on_gpu(seated) for seated in stage.scenes[0].placed.spots[0].gpus]
        context = policy.peak["CUDA context"]
        # Either trains, and the other sleeps; while engines generate, the policy's states lie in host memory.
        assert total(first) == max(total(policy.peak) + total(engine.idle), total(engine.peak) + context)
        [spot] = stage.scenes[0].placed.spots
        assert on_host(spot)["optimizer"] == 2 * policy.moments["optimizer step"]["optimizer"]

    def test_shared(self):
        changes = (
            "algorithm.name=ppo",
            "algorithm.kl.coefficient=0.1",
            "critic.share=policy",
            "reference.share=policy",
        )
        stage = planned("gsm8k/grpo", *changes, gpus="2x80GB")
        assert on_each_gpu(stage) == [["policy 0", "reference 0", "critic 0"], ["engine 0"]]
        [policy, critic] = (role(stage, name).usage for name in ("policy", "critic"))
        [first, _] = [on_gpu(seated) for seated in stage.scenes[0].placed.spots[0].gpus]
        # They take turns: one works, the others rest without what only a step needs, the reference whole.
        at_work = max(total(policy.peak) + total(critic.idle), total(critic.peak) + total(policy.idle))
        assert total(first) == at_work + total(role(stage, "reference").usage.idle)
        assert "optimizer" in critic.peak
        assert "optimizer" not in critic.idle

    def test_half_a_gpu_each(self):
        half = ("train.resources.gpus=0.5", "rollout.resources.gpus=0.5", "rollout.gpu_memory_utilization=0.3")
        stage = planned("gsm8k/grpo", *half, gpus="1x48GB")
        assert on_each_gpu(stage) == [["policy 0", "engine 0"]]
        assert stage.fits
        assert any("vLLM refuses to start" in remark for remark in stage.remarks)

    def test_no_room(self):
        stage = planned("gsm8k/grpo", "train.ranks=4", gpus="4x24GB")
        assert not stage.fits
        assert [one.message for one in stage.shortages] == [
            "1 of 1 processes of engine have no place: each asks for 1 GPU of one node, and 0 GPUs are free behind the "
            "others (rollout.resources)"
        ]
        assert "train.ranks=2" in [one.change for one in suggested("gsm8k/grpo", "train.ranks=4", gpus="4x24GB")]


def suggested(name, *changes, gpus, host=None):
    whole = plan(load(name, changes), cluster(gpus, 1, host), ASKED)
    return advice(whole, whole.stages[0], ASKED)


class TestFitting:
    def test_seven_billion_parameters_on_one_gpu(self):
        stage = planned("gsm8k/grpo", SEVEN, "train.ranks=4", gpus="8x80GB")
        [short, *_] = stage.shortages
        assert short.where == "node 0, GPU 0"
        taken = total(role(stage, "policy").usage.peak)
        assert short.missing == taken - 80 * GIB
        assert f"{short.missing / GIB:.1f} GiB too much" in short.message

    def test_what_is_advised_fits(self):
        changes = (SEVEN, "train.ranks=4")
        found = suggested("gsm8k/grpo", *changes, gpus="8x80GB")
        assert found
        for one in found:
            again = planned("gsm8k/grpo", *changes, *one.change.split(), gpus="8x80GB")
            assert again.fits
            assert one.fullest <= 80 * GIB

    def test_host_memory(self):
        """Offloaded states of four ranks: 12 bytes a parameter, and more while they are stepped."""
        changes = (SEVEN, "train.ranks=4", "train.zero_stage=3", "train.offload_optimizer=true")
        stage = planned("gsm8k/grpo", *changes, gpus="8x80GB", host="64GB")
        assert [one.where for one in stage.shortages] == ["node 0"]
        [spot] = stage.scenes[0].placed.spots
        assert total(on_host(spot)) > 4 * 12 * 7.6e9 / 4
        assert planned("gsm8k/grpo", *changes, gpus="8x80GB", host="1TB").fits

    def test_a_cache_too_small_for_one_sequence(self):
        stage = planned("gsm8k/grpo", "rollout.max_model_len=null", "rollout.gpu_memory_utilization=0.1", gpus="2x24GB")
        assert "vLLM would not start; set rollout.max_model_len to" in stage.shortages[0].message

    def test_a_cache_too_small_for_all_sequences(self):
        changes = (SEVEN, "rollout.gpu_memory_utilization=0.5", "train.zero_stage=3", "train.ranks=4")
        stage = planned("gsm8k/grpo", *changes, gpus="8x48GB")
        [remark] = [one for one in stage.remarks if "KV cache" in one]
        made = role(stage, "engine").usage.peak
        # 28 layers, keys and values of 512, 2 bytes: 57,344 bytes a token
        holds = made["KV cache"] // (57344 * 1024)
        assert remark.startswith(f"the KV cache of an engine holds {holds:,} sequences of 1,024 tokens, and 256 are")


class TestModels:
    def test_a_folder_and_its_index(self, tmp_path):
        shapes = {"model_type": "qwen2", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 128}  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(shapes))
        (tmp_path / "model.safetensors.index.json").write_text(
            '{"metadata": {"total_size": 1234567}, "weight_map": {}}'
        )
        found = facts(PretrainedModel(path=str(tmp_path)))
        assert (found.context, found.file_bytes) == (128, 1234567)
        stage = planned("gsm8k/grpo", f"model.path={tmp_path}", "rollout.max_model_len=100", "rollout.max_new_tokens=8")
        assert any("may be another one than its config.json says" in remark for remark in stage.remarks)

    def test_the_hubs_cache(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        folder = tmp_path / "models--some--model"
        (folder / "snapshots" / "abc").mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("abc")
        shapes = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                  "intermediate_size": 96, "vocab_size": 100, "max_position_embeddings": 77}  # fmt: skip
        (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(shapes))
        assert facts(PretrainedModel(path="some/model")).context == 77

    def test_nowhere(self):
        with pytest.raises(Unplannable, match=r"model.path: some/other is neither in the hub's cache .*hf download"):
            planned("gsm8k/grpo", "model.path=some/other")

    def test_a_stage_takes_the_model_of_the_stage_before(self):
        sft, reward, ppo = planned("arithmetic/rlhf")
        assert {stage.model.name for stage in (sft, reward, ppo)} == {"from scratch"}
        assert role(ppo, "critic").model == "from scratch"


@pytest.mark.parametrize(
    ("text", "count"), [("80GB", 80 * GIB), ("1.5TB", 1.5 * 1024 * GIB), ("512 GiB", 512 * GIB), ("24g", 24 * GIB)]
)
def test_amounts(text, count):
    assert amount(text) == count


@pytest.mark.parametrize("text", ["80", "lots", "0GB", "GB"])
def test_no_amounts(text):
    with pytest.raises(HardwareError, match="80GB, 512GB or"):
        amount(text)


def test_a_gpu_of_no_node_is_too_large_for_a_process():
    recipe = load("gsm8k/grpo", ["train.resources.gpus=2"])
    [stage] = plan(recipe, cluster("1x80GB", 4, None), ASKED).stages
    assert [one.where for one in stage.shortages] == ["policy"]


def test_cpus_are_counted_where_they_are_known():
    nodes = tuple(Node(f"node {i}", 0, 0, None, cpus=0.5) for i in range(2))
    [stage] = plan(load("gsm8k/grpo"), Cluster(nodes, "two small ones"), ASKED).stages
    assert [[seat.host.name for seat in spot.seats] for spot in stage.scenes[0].placed.spots] == [
        ["policy", "driver"],
        ["engine"],
    ]
    homeless = place(stage.scenes[0].roles, Cluster(nodes[:1], "one")).homeless
    assert [seat.host.name for seat in homeless] == ["engine"]


class TestCommand:
    def invoke(self, *words):
        return CliRunner().invoke(app, ["plan", *words])

    def test_fits(self):
        done = self.invoke("gsm8k/grpo", "--gpus", "2x24GB")
        assert done.exit_code == 0, done.output
        assert max(map(len, done.output.splitlines())) <= 80
        assert "494,032,768 parameters" in done.output

    def test_does_not_fit(self):
        done = self.invoke("gsm8k/grpo", SEVEN, "--gpus", "2x80GB", "--json")
        assert done.exit_code == 1
        data = json.loads(done.stdout)
        assert not data["fits"]
        assert data["stages"][0]["shortages"]

    @pytest.mark.parametrize(
        ("words", "says"),
        [
            (["gsm8k/grpo", "train.rank=2"], "train.ranks"),
            (["gsm8k/grpo", "--gpus", "many"], "--gpus many: write how many GPUs a node has"),
            (["gsm8k/grpo", "--nodes", "2"], "--nodes says how many"),
            (["gsm8k/grpo", "model.path=no/model", "--gpus", "1x80GB"], "model.path"),
        ],
    )
    def test_mistakes(self, words, says):
        done = self.invoke(*words)
        assert done.exit_code == 2
        assert says in done.output

    def test_nothing_heavy_is_imported(self):
        code = (
            "import sys; from typer.testing import CliRunner; from rlpipe.cli import app\n"
            "done = CliRunner().invoke(app, ['plan', 'gsm8k/grpo', '--gpus', '2x24GB'])\n"
            "assert done.exit_code == 0, done.output\n"
            "print(sorted({'torch', 'ray', 'transformers', 'numpy'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestEvaluation:
    MODELS = ("models.sft={scratch: qwen2}", "models.grpo={path: Qwen/Qwen2.5-7B-Instruct}")

    def test_it_is_planned_for_its_largest_model_and_nothing_is_trained(self):
        stage = planned("arithmetic/eval", *self.MODELS, gpus="1x24GB")
        assert stage.model.name == "Qwen/Qwen2.5-7B-Instruct" and stage.held.trained == 0
        assert [scene.title for scene in stage.scenes] == ["while grpo answers"]
        assert stage.batches.numbers == {"models": 3, "answers_per_model": 2560, "answers": 7680}
        assert on_each_gpu(stage) == [["engine 0"]]

    def test_what_does_not_fit_has_a_larger_share_of_the_gpu_or_more_of_them(self):
        whole = plan(load("arithmetic/eval", self.MODELS), cluster("1x24GB", 1, None), ASKED)
        assert "has 12.0 GiB of each GPU (rollout.gpu_memory_utilization=0.5)" in whole.stages[0].shortages[0].message
        [found] = advice(whole, whole.stages[0], ASKED)
        assert found.change == "rollout.gpu_memory_utilization=0.9 rollout.max_model_len=32768"

    def test_in_a_pipeline_it_has_what_stages_before_it_make(self, tmp_path):
        file = tmp_path / "judged.yaml"
        stages = "  sft: {extends: arithmetic/sft}\n  eval:\n    extends: arithmetic/eval\n    models:\n"
        models = "      base: {scratch: qwen2}\n      sft: '${stages.sft.model}'\n      grpo: '${stages.sft.model}'\n"
        file.write_text(f"task: pipeline\nstages:\n{stages}{models}")
        assert [stage.recipe.task for stage in planned(file)] == ["sft", "eval"]
