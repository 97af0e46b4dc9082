"""SFT on real Ray Train, DeepSpeed and TRL: stages, ranks and hosts agree, results load, failures are told."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl_stages import TINY, Figures, train_settings

from rlpipe.data.records import DataError
from rlpipe.data.source import load_sources
from rlpipe.models.load import materialise
from rlpipe.pipelines.offline import trl_worker
from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.ray_train import run_local, run_remote
from rlpipe.pipelines.offline.sft import prepare, run_sft
from rlpipe.pipelines.offline.trl_worker import train
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.tasks import SftRecipe
from rlpipe.recipe.training import Resources
from rlpipe.runtime.handle import DeadlineExceeded, RoleDied, Silent
from rlpipe.runtime.roles import PlacementError

pytestmark = pytest.mark.integration


def recipe(model=TINY, data=None, **settings):
    data = data or {"kind": "arithmetic", "heldout": 32}
    evaluation = {"prompts": 64}
    return SftRecipe.model_validate(
        {"task": "sft", "model": model, "data": data, "train": train_settings(**settings), "evaluation": evaluation}
    )


def launch(ranks=2, **deadlines):
    return Launch("SFT", ranks, Resources(), 1, Deadlines(**deadlines))


def run(settings, tmp_path, name, debug=True):
    figures = Figures()
    path = materialise(settings.model, settings.seed, tmp_path / "base")
    run_sft(settings, path, load_sources(settings.data), tmp_path / name, debug, figures)
    return figures


class Renumbered:
    """Progress of one of several trainings in the same processes."""

    def __init__(self, progress, offset):
        self.alive = progress.alive
        self.metrics = lambda step, values: progress.metrics(offset + step, values)


def train_one_after_another(jobs, progress):
    for number, job in enumerate(jobs):
        train(job, Renumbered(progress, 100 * number))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Losses and folder of one rank, ZeRO 0, in this process."""
    folder = tmp_path_factory.mktemp("alone")
    return run(recipe(), folder, "out"), folder / "out"


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.slow
def test_two_ranks_in_every_zero_stage_learn_as_one_rank_does(alone, ray_cluster, tmp_path):
    expected, expected_folder = alone
    stages = [0, 1, 2, 3]
    jobs = []
    for stage in stages:
        settings = recipe(zero_stage=stage, ranks=2, per_device_train_batch_size=8)
        path = materialise(settings.model, settings.seed, tmp_path / "base")
        jobs.append(prepare(settings, path, load_sources(settings.data), tmp_path / f"zero{stage}"))
    figures = Figures()
    run_remote(train_one_after_another, jobs, launch(), figures)
    for stage in stages:
        ours = Figures((step % 100, values) for step, values in figures if step // 100 == stage)
        assert [step for step, _ in ours] == [step for step, _ in expected] == [0, 0, 1, 2, 3, 4, 5, 5]
        for name in ("loss", "grad_norm", "learning_rate", "tokens"):
            np.testing.assert_allclose(ours.of(name), expected.of(name), rtol=2e-5, err_msg=f"ZeRO {stage}, {name}")
        # The trainer averages it over batches, and these are of another size.
        np.testing.assert_allclose(ours.of("heldout_loss"), expected.of("heldout_loss"), rtol=1e-3)
        torch.testing.assert_close(weights(tmp_path / f"zero{stage}"), weights(expected_folder), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_ray_and_debug_learn_the_same(alone, ray_cluster, tmp_path):
    expected, expected_folder = alone
    figures = run(recipe(), tmp_path, "out", debug=False)
    assert [step for step, _ in figures] == [step for step, _ in expected]
    for name in ("loss", "grad_norm", "heldout_loss"):
        np.testing.assert_allclose(figures.of(name), expected.of(name), rtol=1e-6, err_msg=name)
    torch.testing.assert_close(weights(tmp_path / "out"), weights(expected_folder))


def test_the_folder_is_a_plain_hugging_face_model(alone):
    figures, folder = alone
    assert sorted(file.name for file in folder.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.float32
    assert model.config.use_cache
    turns = [{"role": "user", "content": "2+3"}]
    assert tokenizer.apply_chat_template(turns, tokenize=False) == "<|user|>2+3<|end|>"
    assert figures.of("heldout_loss")[1] < figures.of("heldout_loss")[0]


def test_untied_embeddings_and_zero_3_save_every_weight(tmp_path):
    run(recipe(TINY | {"tie_word_embeddings": False}, zero_stage=3, max_steps=2), tmp_path, "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, weights(tmp_path / "base")["lm_head.weight"])


def test_packing_gives_the_loss_of_the_same_records_unpacked(tmp_path):
    """All records in one batch: packed documents must not see each other."""
    rows = tmp_path / "d.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}+{n}", "completion": "{2 * n}"}}\n' for n in range(40)))
    data = {"kind": "records", "path": str(rows), "heldout": {"count": 8}}
    unpacked = run(recipe(data=data, max_steps=1, per_device_train_batch_size=32), tmp_path, "unpacked")
    packed = recipe(data=data, max_steps=1, per_device_train_batch_size=2, packing=True, max_length=256)
    np.testing.assert_allclose(run(packed, tmp_path, "packed").of("loss"), unpacked.of("loss"), rtol=1e-5)


def test_too_little_data_for_a_batch_is_an_error_with_the_fix(tmp_path):
    rows = tmp_path / "d.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}", "completion": "{n}"}}\n' for n in range(9)))
    data = {"kind": "records", "path": str(rows), "heldout": {"count": 1}}
    with pytest.raises(DataError, match=r"8 records, fewer than one batch of 16.*Lower train.per_device"):
        run(recipe(data=data), tmp_path, "out")


def one_rank_fails(job, progress):
    import torch.distributed as dist

    if dist.get_rank() == 1:
        raise DataError(job)
    dist.barrier()  # rank 0 waits for a rank that never comes


def one_rank_dies(job, progress):
    import torch.distributed as dist

    if dist.get_rank() == 1:
        os._exit(3)
    dist.barrier()


def one_rank_hangs(job, progress):
    import torch.distributed as dist

    progress.alive("its first step")  # who has not said anything yet may be importing or loading
    if dist.get_rank() == 1:
        time.sleep(3)  # until it was asked for its first sign of life
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.barrier()


def says_nothing(job, progress):
    progress.alive("its first step")
    time.sleep(600)


def nothing(step, values):
    raise AssertionError("nothing is reported")


@pytest.mark.soak
def test_a_failing_rank_is_one_error_though_the_other_waits_for_it(ray_cluster):
    with pytest.raises(DataError, match=r"^d.jsonl, line 7$"):
        run_remote(one_rank_fails, "d.jsonl, line 7", launch(), nothing)


def test_a_dying_rank_is_one_error(ray_cluster):
    # Who notices it first is not ours to decide: Ray Train's look at the ranks, the other rank, or the next call of it.
    died = "Rank 1 of SFT training died: The actor is dead because its worker process"
    lost = "A rank other than 0 of SFT training died: rank 0 lost its connection"
    met = "A rank of SFT training died: The actor died unexpectedly"
    with pytest.raises(RoleDied, match=f"^({died}|{lost}|{met})"):
        run_remote(one_rank_dies, None, launch(), nothing)


def test_a_rank_that_hangs_is_one_error_long_before_the_deadline(ray_cluster):
    started = time.monotonic()
    with pytest.raises(
        Silent, match=r"^Rank 1 of SFT training gave no sign of life within 5 s \(deadlines.heart"
    ) as caught:
        run_remote(one_rank_hangs, None, launch(heartbeat=5), nothing)
    assert caught.value.who == "SFT[1]"
    assert time.monotonic() - started < 300


@pytest.mark.soak
def test_a_silent_training_runs_into_its_deadline_and_is_ended(ray_cluster):
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"a sign of life after its first step \(deadlines.train=3\)") as caught:
        run_remote(says_nothing, None, launch(ranks=1, train=3), nothing)
    assert "\nThe cluster has not given: " in str(caught.value)
    assert "\nRank 0 stands at:" in str(caught.value) and "time.sleep(600)" in str(caught.value)
    assert time.monotonic() - started < 300


def test_resources_that_the_cluster_lacks_are_an_error_with_the_lines_to_change(ray_cluster):
    with pytest.raises(PlacementError, match=r"Asked for: 50 x {'CPU': 0.5} \(train.ranks .* The cluster has CPU 8"):
        run_remote(says_nothing, None, launch(ranks=50, placement=2), nothing)


def test_debug_leaves_the_process_as_it_was(tmp_path):
    before = dict(os.environ)
    run(recipe(max_steps=1), tmp_path, "out")
    assert dict(os.environ) == before
    assert not torch.distributed.is_initialized()


def test_an_error_in_debug_is_the_function_s_own():
    with pytest.raises(ZeroDivisionError):
        run_local(lambda job, progress: 1 / 0, None, launch(), nothing)


@pytest.mark.soak
def test_gsm8k_from_a_real_pretrained_model(tmp_path):
    """stories260K knows no mathematics: about 3.4 nats per token on the questions."""
    if "RLPIPE_TEST_DATA" not in os.environ:
        pytest.skip("RLPIPE_TEST_DATA is not set: a folder with models/stories260K and data/gsm8k")
    folder = Path(os.environ["RLPIPE_TEST_DATA"])
    data = {
        "kind": "records", "path": str(folder / "data/gsm8k"), "columns": {"text": "question"}, "chat": False,
        "heldout": {"split": "test"},
    }  # fmt: skip
    settings = recipe(str(folder / "models/stories260K"), data, loss_on="all", max_steps=32)
    untrained, trained = run(settings, tmp_path, "out").of("heldout_loss")
    assert 3.3 < untrained < 3.7
    assert trained < 2.7


def test_the_best_model_is_the_result_and_patience_ends(tmp_path):
    """At a rate that wrecks the model after a step or so, under ZeRO-3."""
    wrecked = {"optimizer": {"learning_rate": 0.5, "warmup_steps": 0, "lr_scheduler_type": "constant"}}
    best = {"eval_steps": 1, "load_best_model_at_end": True, "early_stopping_patience": 2}
    figures = run(recipe(max_steps=8, zero_stage=3, **wrecked, **best), tmp_path, "out")
    losses = figures.of("heldout_loss")
    found = int(np.argmin(losses))
    assert figures.of("heldout_best_step") == [found]
    assert len(losses) == found + 3 < 9  # two that were worse, and no more
    again = run(recipe(str(tmp_path / "out"), max_steps=1), tmp_path, "again")
    assert again.of("heldout_loss")[0] == pytest.approx(losses[found], rel=1e-4)


def test_the_last_step_is_evaluated_whatever_the_interval(tmp_path):
    figures = run(recipe(eval_steps=2, load_best_model_at_end=True), tmp_path, "out")
    assert [step for step, values in figures if "heldout_loss" in values] == [0, 2, 4, 5]
    assert figures.of("heldout_best_step") == [5.0]


def test_a_mixture_is_measured_source_by_source(tmp_path):
    sums, longer = ({"kind": "arithmetic", "largest": 20, "heldout": 16, "operands": n} for n in (2, 3))
    rows = tmp_path / "text.jsonl"
    rows.write_text("".join(f'{{"text": "line {n}"}}\n' for n in range(20)))
    text = {"kind": "records", "path": str(rows), "chat": False, "heldout": {"count": 4}}
    data = {
        "kind": "mixture", "sources": {"sums": sums, "longer": longer, "text": text},
        "weights": {"sums": 0.5, "longer": 0.25, "text": 0.25},
    }  # fmt: skip
    best = {"eval_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "token_accuracy"}
    figures = run(recipe(data=data, **best), tmp_path, "out")
    for name in ("heldout_loss", "heldout_loss/longer", "heldout_loss/text", "heldout_token_accuracy/text"):
        assert len(figures.of(name)) == 4, name
    for number, source in enumerate([sums, longer, text]):
        alone = run(recipe(data=source, max_steps=1, loss_on="all" if number == 2 else "completion"), tmp_path, "alone")
        name = ["heldout_loss", "heldout_loss/longer", "heldout_loss/text"][number]
        assert figures.of(name)[0] == pytest.approx(alone.of("heldout_loss")[0], rel=1e-4)


def test_epochs_say_how_many_steps_there_are(tmp_path):
    """42 records in batches of 16 are 2 steps an epoch, the rest being left out; one and a half epochs are 3."""
    rows = tmp_path / "d.jsonl"
    rows.write_text("".join(f'{{"prompt": "{n}", "completion": "{n}"}}\n' for n in range(50)))
    data = {"kind": "records", "path": str(rows), "heldout": {"count": 8}}
    figures = run(recipe(data=data, max_steps=None, num_train_epochs=1.5), tmp_path, "out")
    assert (0, {"planned_steps": 3.0}) in figures[:2]
    assert [step for step, values in figures if "loss" in values] == [1, 2, 3]
    assert [step for step, values in figures if "heldout_loss" in values] == [0, 3]


def test_zero_3_in_bfloat16_keeps_the_rotary_frequencies(tmp_path, monkeypatch):
    """Splitting a model while it is read makes bfloat16 of them; the later a position, the further off it would be."""
    seen, save = [], trl_worker._save

    def look_and_save(trainer, *rest):
        model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        seen.append((model.model.rotary_emb.inv_freq.clone(), model.model.norm.weight.dtype))
        save(trainer, *rest)

    monkeypatch.setattr(trl_worker, "_save", look_and_save)
    for stage in (0, 3):
        run(recipe(TINY | {"dtype": "bfloat16"}, zero_stage=stage, max_steps=1), tmp_path, f"{stage}")
    (whole, whole_dtype), (split, split_dtype) = seen
    assert whole_dtype == split_dtype == torch.bfloat16
    assert whole.dtype == split.dtype == torch.float32
    assert torch.equal(whole, split) and not torch.equal(whole, whole.bfloat16().float())


@pytest.mark.parametrize(("strategy", "tokens"), [("bfd", 10 * 64), ("bfd_split", 10 * 201)])
def test_long_texts_are_cut_or_learned_whole(strategy, tokens, tmp_path):
    """Twelve files of 200 characters, which are a token each, and the end of each; two of the files are held out."""
    for number in range(12):
        (tmp_path / f"{number:02d}.txt").write_text("a long text " * 16 + "in files")
    data = {"kind": "records", "path": str(tmp_path), "chat": False, "heldout": {"count": 2}}
    packed = {"packing": True, "packing_strategy": strategy, "max_length": 64, "loss_on": "all"}
    settings = recipe(data=data, max_steps=2, per_device_train_batch_size=4, **packed)
    base = materialise(settings.model, 0, tmp_path / "model" / "base")
    job = prepare(settings, base, load_sources(settings.data), tmp_path / "model" / "out")
    counts = [len(table.sequences["input_ids"].tokens_N) for table in (job.train, job.heldout)]
    assert counts == [tokens, tokens // 5]
    assert max(map(len, job.train.sequences["input_ids"].apart())) == 64
    assert len(run(settings, tmp_path / "model", "trained").of("loss")) == 2
