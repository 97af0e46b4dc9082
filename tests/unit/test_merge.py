"""Merging models and adapters: the numbers, what is written, and what is refused."""

import json
import math
import shutil

import pytest
import tiny_models
import torch
from peft import (
    IA3Config,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    VeraConfig,
    get_peft_model,
)
from safetensors.torch import load_file
from tiny_models import adapter_payload, request
from transformers import AutoTokenizer

from rlpipe.models.combine import Pruned, slerp, weighted_mean, weighted_sum
from rlpipe.models.load import ModelError
from rlpipe.pipelines.merge import How, merge

TOKENS = torch.from_numpy(request(0, prompt_length=40).prompt_tokens)[None].long()


def how(method="linear", weights=(), density=0.5, t=0.5, seed=0) -> How:
    return How(method, weights, density, t, seed)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models, and two adapters of different rank on the first."""
    top = tmp_path_factory.mktemp("models")
    tiny_models.save_model(top / "base")
    tiny_models.save_model(top / "other", seed=1)
    for seed, rank in ((1, 4), (2, 6)):
        save_adapter(top / "base", top / f"adapter-{seed}", seed, r=rank, lora_alpha=8)
    return top


def save_adapter(base, folder, seed, **settings):
    config = LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM", **settings)
    adapter_payload(get_peft_model(tiny_models.load(base), config), seed, folder)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model.eval()(TOKENS).logits


def with_both(folders) -> PeftModel:
    model = PeftModel.from_pretrained(tiny_models.load(folders / "base"), folders / "adapter-1", adapter_name="one")
    model.load_adapter(folders / "adapter-2", adapter_name="two")
    return model


def same(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


class TestNumbers:
    def test_halfway_between_orthogonal_unit_vectors(self):
        middle = slerp(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5)
        torch.testing.assert_close(middle, torch.tensor([math.sqrt(0.5), math.sqrt(0.5)]))

    def test_a_third_of_the_way_is_thirty_degrees(self):
        point = slerp(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]), 1 / 3)
        torch.testing.assert_close(point, torch.tensor([[math.cos(math.pi / 6)], [0.5]]))

    @pytest.mark.parametrize("b", [[0.3, 2.0, -1.0], [2.0, 4.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]])
    def test_the_ends_are_the_inputs(self, b):
        a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor(b)
        assert torch.equal(slerp(a, b, 0.0), a) and torch.equal(slerp(a, b, 1.0), b)

    def test_parallel_vectors_are_joined_by_a_line(self):
        torch.testing.assert_close(slerp(torch.tensor([2.0]), torch.tensor([4.0]), 0.25), torch.tensor([2.5]))

    def test_weights_of_a_mean_are_shares(self):
        pair = [torch.tensor([1.0, 8.0]), torch.tensor([5.0, 0.0])]
        assert weighted_mean(pair, [3.0, 1.0]).tolist() == [2.0, 6.0]
        assert weighted_sum(pair, [3.0, 1.0]).tolist() == [8.0, 24.0]

    def test_ties_by_hand(self):
        """Half of each is kept, [4, -3] and [-1, 6] of it; the sign of the sum wins; the mean of those that agree."""
        pair = [torch.tensor([4.0, -3.0, 1.0, 0.5]), torch.tensor([-1.0, 0.1, 0.2, 6.0])]
        assert Pruned("ties", 0.5)(pair, [1.0, 1.0]).tolist() == [4.0, -3.0, 0.0, 6.0]

    def test_dare_keeps_the_mean(self):
        torch.manual_seed(0)
        thinned = Pruned("dare_linear", 0.25)([torch.ones(100_000)], [1.0])
        assert set(thinned.tolist()) == {0.0, 4.0}
        assert thinned.mean().item() == pytest.approx(1.0, abs=0.02)


class TestAdapters:
    def test_one_is_the_adapted_model(self, folders, tmp_path):
        merge([str(folders / "adapter-1")], tmp_path / "out", None, how(), force=False)
        adapted = PeftModel.from_pretrained(tiny_models.load(folders / "base"), folders / "adapter-1")
        merged = tiny_models.load(tmp_path / "out")
        same(logits(merged), logits(adapted))
        assert (logits(merged) - logits(tiny_models.load(folders / "base"))).abs().max() > 0.1

    def test_the_folder_is_whole(self, folders, tmp_path):
        merge([str(folders / "adapter-1")], tmp_path / "out", None, how(), force=False)
        ours, theirs = (AutoTokenizer.from_pretrained(f) for f in (tmp_path / "out", folders / "base"))
        assert ours.get_vocab() == theirs.get_vocab() and ours.chat_template == theirs.chat_template
        assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == tiny_models.END
        names = load_file(tmp_path / "out/model.safetensors").keys()
        assert names == load_file(folders / "base/model.safetensors").keys()

    def test_the_base_s_precision_is_kept_and_rounded_to_once(self, folders, tmp_path):
        low = tmp_path / "low"
        shutil.copytree(folders / "base", low)
        tiny_models.load(low).to(torch.bfloat16).save_pretrained(low)
        merge([str(folders / "adapter-1")], tmp_path / "out", str(low), how(), force=False)
        layer = PeftModel.from_pretrained(tiny_models.load(low), folders / "adapter-1").base_model.model.model.layers[0]
        q = layer.self_attn.q_proj
        name = "model.layers.0.self_attn.q_proj.weight"
        expected = (q.base_layer.weight + q.get_delta_weight("default")).to(torch.bfloat16)
        assert torch.equal(load_file(tmp_path / "out/model.safetensors")[name], expected)

    def test_linear_is_the_sum_of_their_changes(self, folders, tmp_path):
        """PEFT's `cat`, the exact one of its combinations, of adapters of ranks 4 and 6."""
        sources = [str(folders / "adapter-1"), str(folders / "adapter-2")]
        merge(sources, tmp_path / "out", None, how(weights=(0.7, 0.2)), force=False)
        model = with_both(folders)
        model.add_weighted_adapter(["one", "two"], [0.7, 0.2], "both", combination_type="cat")
        model.set_adapter("both")
        same(logits(tiny_models.load(tmp_path / "out")), logits(model))

    def test_a_weight_of_zero_leaves_the_other(self, folders, tmp_path):
        sources = [str(folders / "adapter-1"), str(folders / "adapter-2")]
        merge(sources, tmp_path / "both", None, how(weights=(1.0, 0.0)), force=False)
        merge(sources[:1], tmp_path / "one", None, how(), force=False)
        same(logits(tiny_models.load(tmp_path / "both")), logits(tiny_models.load(tmp_path / "one")))

    @pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
    def test_as_peft_combines_them_at_full_rank(self, folders, tmp_path, monkeypatch, method):
        def every_third(change, density, rescale):
            kept = (torch.arange(change.numel()) % 3 == 0).reshape(change.shape)
            return change * kept / density

        monkeypatch.setattr("peft.utils.merge_utils.random_pruning", every_third)  # they draw at different times
        sources = [str(folders / "adapter-1"), str(folders / "adapter-2")]
        merge(sources, tmp_path / "out", None, how(method, (1.0, 0.5), density=0.3), force=False)
        model = with_both(folders)
        model.add_weighted_adapter(
            ["one", "two"], [1.0, 0.5], "both", f"{method}_svd", svd_rank=64, svd_full_matrices=False, density=0.3
        )
        model.set_adapter("both")
        torch.testing.assert_close(logits(tiny_models.load(tmp_path / "out")), logits(model), atol=1e-4, rtol=1e-4)

    def test_the_seed_decides_what_dare_drops(self, folders, tmp_path):
        sources = [str(folders / "adapter-1"), str(folders / "adapter-2")]
        for out, seed in (("one", 1), ("again", 1), ("two", 2)):
            merge(sources, tmp_path / out, None, how("dare_linear", seed=seed), force=False)
        one, again, two = (load_file(tmp_path / out / "model.safetensors") for out in ("one", "again", "two"))
        name = "model.layers.1.mlp.up_proj.weight"
        assert torch.equal(one[name], again[name]) and not torch.equal(one[name], two[name])

    @pytest.mark.parametrize(
        "config",
        [
            LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", use_dora=True),
            LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["norm"]),
            IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
            VeraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=4),
        ],
        ids=["dora", "modules_to_save", "ia3", "vera"],
    )
    def test_what_vllm_cannot_serve_is_merged(self, folders, tmp_path, config):
        adapted = get_peft_model(tiny_models.load(folders / "base"), config)
        torch.manual_seed(1)
        for parameter in (p for p in adapted.parameters() if p.requires_grad):
            parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(tmp_path / "adapter")
        merge([str(tmp_path / "adapter")], tmp_path / "out", None, how(), force=False)
        same(logits(tiny_models.load(tmp_path / "out")), logits(adapted))


class TestModels:
    def test_the_mean_of_a_model_with_itself_is_itself(self, folders, tmp_path):
        merge([str(folders / "base")] * 2, tmp_path / "out", None, how(), force=False)
        ours, theirs = (load_file(f / "model.safetensors") for f in (tmp_path / "out", folders / "base"))
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    def test_weights_are_shares(self, folders, tmp_path):
        merge([str(folders / "base"), str(folders / "other")], tmp_path / "out", None, how(weights=(3, 1)), force=False)
        out, a, b = (
            load_file(f / "model.safetensors") for f in (tmp_path / "out", folders / "base", folders / "other")
        )
        for name in out:
            torch.testing.assert_close(out[name], 0.75 * a[name] + 0.25 * b[name])

    @pytest.mark.parametrize(("t", "end"), [(0.0, "base"), (1.0, "other")])
    def test_slerp_begins_and_ends_at_the_models(self, folders, tmp_path, t, end):
        sources = [str(folders / "base"), str(folders / "other")]
        merge(sources, tmp_path / "out", None, how("slerp", t=t), force=False)
        assert torch.equal(logits(tiny_models.load(tmp_path / "out")), logits(tiny_models.load(folders / end)))

    def test_a_run_stands_for_its_model(self, folders, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "run/model").symlink_to(folders / "base")
        merge([str(tmp_path / "run"), str(folders / "base")], tmp_path / "out", None, how(), force=False)
        assert torch.equal(logits(tiny_models.load(tmp_path / "out")), logits(tiny_models.load(folders / "base")))


class TestRefused:
    def refused(self, sources, expected, out, how_=None, base=None):
        with pytest.raises(ModelError, match=expected):
            merge([str(source) for source in sources], out, base and str(base), how_ or how(), force=False)
        assert not out.exists()

    def changed(self, folders, tmp_path, **keys):
        shutil.copytree(folders / "base", tmp_path / "changed")
        config = tmp_path / "changed/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | keys))
        return tmp_path / "changed"

    def test_another_architecture(self, folders, tmp_path):
        changed = self.changed(folders, tmp_path, rms_norm_eps=1e-5)
        self.refused([folders / "base", changed], "rms_norm_eps is 1e-06 in .*base.* and 1e-05 in", tmp_path / "out")

    def test_other_shapes(self, folders, tmp_path):
        changed = self.changed(folders, tmp_path)
        weights = load_file(changed / "model.safetensors")
        weights["model.norm.weight"] = torch.ones(63)
        from safetensors.torch import save_file

        save_file(weights, changed / "model.safetensors")
        self.refused([folders / "base", changed], r"model\.norm\.weight is 64 in .* and 63 in", tmp_path / "out")

    def test_another_vocabulary(self, folders, tmp_path):
        changed = self.changed(folders, tmp_path)
        file = changed / "tokenizer.json"
        text = json.loads(file.read_text())
        vocabulary = text["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        file.write_text(json.dumps(text))
        self.refused([folders / "base", changed], "'a' is token \\d+ in .*base and token \\d+ in", tmp_path / "out")

    def test_adapters_of_different_bases(self, folders, tmp_path):
        save_adapter(folders / "other", tmp_path / "third", 3, r=4)
        expected = "different bases: .*adapter-1 was trained on .*base, .*third on .*other"
        self.refused([folders / "adapter-1", tmp_path / "third"], expected, tmp_path / "out")

    def test_an_adapter_of_another_shape(self, folders, tmp_path):
        shutil.copytree(folders / "adapter-1", tmp_path / "broken")
        config = tmp_path / "broken/adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"r": 5}))
        self.refused([tmp_path / "broken"], "does not fit .*base: size mismatch for .*lora_A", tmp_path / "out")

    @pytest.mark.filterwarnings("ignore:Found missing adapter keys")
    def test_an_adapter_whose_file_lacks_a_tensor(self, folders, tmp_path):
        from safetensors.torch import save_file

        shutil.copytree(folders / "adapter-1", tmp_path / "broken")
        tensors = load_file(tmp_path / "broken/adapter_model.safetensors")
        gone = sorted(tensors)[0]
        save_file({n: t for n, t in tensors.items() if n != gone}, tmp_path / "broken/adapter_model.safetensors")
        self.refused([tmp_path / "broken"], f"its file lacks {gone}", tmp_path / "out")

    def test_what_cannot_be_combined(self, folders, tmp_path):
        save_adapter(folders / "base", tmp_path / "dora", 3, r=4, use_dora=True)
        self.refused(
            [folders / "adapter-1", tmp_path / "dora"], "dora was trained with use_dora=True", tmp_path / "out"
        )

    def test_prompts_change_no_weights(self, folders, tmp_path):
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        get_peft_model(tiny_models.load(folders / "base"), config).save_pretrained(tmp_path / "prefix")
        self.refused([tmp_path / "prefix"], "PREFIX_TUNING.* changes no weights.*rlpipe chat", tmp_path / "out")

    @pytest.mark.parametrize(
        ("sources", "how_", "expected"),
        [
            (["base", "other"], how("ties"), "--method ties is for adapters"),
            (["adapter-1", "adapter-2"], how("slerp"), "slerp is for two whole models"),
            (["base", "other", "base"], how("slerp"), "given: 3 models"),
            (["base", "adapter-1"], how(), "some of these are adapters and others whole models"),
            (["base"], how(), "is one whole model"),
            (["base", "other"], how(weights=(1.0,)), "1 numbers for 2 sources"),
            (["base", "other"], how(weights=(1.0, -1.0)), "add up to 0"),
            (["base", "nowhere"], how(), "there is no folder .*nowhere"),
        ],
    )
    def test_what_makes_no_sense(self, folders, tmp_path, sources, how_, expected):
        self.refused([folders / source for source in sources], expected, tmp_path / "out", how_)
