"""What preflight finds, from what was wanted and what was seen."""

from pathlib import Path

import pytest

from rlpipe.pipelines.preflight import moments, wanted
from rlpipe.recipe.load import load
from rlpipe.recipe.training import Resources
from rlpipe.runtime.local import free_port
from rlpipe.runtime.preflight import agreement, gpus, places
from rlpipe.runtime.preflight.look import Seen, fingerprint
from rlpipe.runtime.preflight.nodes import ClusterNode, Growth, hosts
from rlpipe.runtime.preflight.probe import GpuSeen, Probe
from rlpipe.runtime.preflight.resources import check_resources
from rlpipe.runtime.preflight.wanted import Demand, Room
from rlpipe.runtime.reservation import OWN_MACHINE

GIB = 2**30


def node(name: str, cpus: float, gpus: float = 0, **others: float) -> ClusterNode:
    return ClusterNode(name, name, {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **others})


def demand(role: str, count: int, cpus: float, gpus: float | str = "auto", **others) -> Demand:
    return Demand(role, count, Resources(cpus=cpus, gpus=gpus), f"stages.rl.{role}", **others)


class TestResources:
    def test_two_gpus_on_one_node_where_each_has_one_can_never_be(self):
        found = check_resources([[demand("rollout", 1, 1, 2.0)]], [node("a", 8, 1), node("b", 8, 1)])
        assert found.status == "fail"
        assert found.detail.splitlines() == [
            "rollout: 1 x (CPU 1, GPU 2) asked for by stages.rl.rollout; no node has that much",
            "what there is, in all:",
            "  a: CPU 8, GPU 1",
            "  b: CPU 8, GPU 1",
        ]
        assert found.fix == "lower stages.rl.rollout.resources, or add a node that has it"

    def test_the_parts_of_an_engine_count_where_gpus_are_auto(self):
        split = [[demand("rollout", 1, 1, auto_gpus=2)]]
        assert check_resources(split, [node("a", 8, 1), node("b", 8, 1)]).status == "fail"
        assert check_resources(split, [node("a", 8, 2)]).status == "ok"
        assert check_resources(split, [node("a", 8)]).status == "ok", "without GPUs auto is none"

    def test_more_of_a_role_than_the_nodes_have_room_for(self):
        found = check_resources([[demand("rollout", 3, 3)]], [node("a", 5), node("b", 5)])
        assert found.status == "fail"
        asked = "rollout: 3 x (CPU 3, GPU 0) asked for by stages.rl.rollout"
        assert found.detail.startswith(f"{asked}; the nodes have room for 2\n")

    def test_each_role_fits_and_all_together_do_not(self):
        found = check_resources([[demand("train", 2, 2), demand("rollout", 1, 4)]], [node("a", 4), node("b", 3)])
        assert found.status == "fail"
        assert found.detail.startswith("CPU: 2 x 2 (train) + 1 x 4 (rollout) = 8; all nodes together have 7\n")

    def test_what_is_there_one_after_the_other_is_not_added_up(self):
        one, other = demand("train", 1, 4), demand("rollout", 1, 4)
        assert check_resources([[one], [other]], [node("a", 4)]).status == "ok"
        assert check_resources([[one, other]], [node("a", 4)]).status == "fail"

    def test_what_no_way_was_found_for_is_a_warning(self):
        found = check_resources([[demand("train", 2, 2), demand("rollout", 1, 2)]], [node("a", 3), node("b", 3)])
        assert found.status == "warn", "each node has room for one of the three"
        tight = [[demand("train", 1, 3), demand("rollout", 2, 2)]]
        assert check_resources(tight, [node("a", 4), node("b", 3)]).status == "ok"
        assert check_resources(tight, [node("a", 5), node("b", 2.5)]).status == "ok"
        assert check_resources(tight, [node("a", 6), node("b", 1)]).status == "warn"

    def test_what_is_lacking_is_no_failure_of_a_run_that_waits_for_nodes(self):
        wants = [[demand("rollout", 4, 1, 2.0)]]
        assert check_resources(wants, [node("head", 0)]).status == "fail"
        found = check_resources(wants, [node("head", 0)], waits=True)
        assert found.status == "warn" and "no node has that much" in found.detail

    def test_nodes_that_an_autoscaler_may_add_count(self):
        wants = [[demand("rollout", 4, 1, 2.0)]]
        assert check_resources(wants, [node("head", 4)]).status == "fail"
        workers = Growth("workers", {"CPU": 8, "GPU": 2}, 3)
        found = check_resources(wants, [node("head", 4)], [workers])
        assert "the nodes have room for 3" in found.detail
        assert "  up to 3 more of workers: CPU 8, GPU 2" in found.detail
        assert check_resources(wants, [node("head", 4)], [Growth("workers", {"CPU": 8, "GPU": 2}, -1)]).status == "ok"

    def test_on_a_machine_of_the_run_s_own_cpus_are_shared_and_gpus_are_not(self):
        mine = node("a", 2, **{OWN_MACHINE: 1})
        assert check_resources([[demand("train", 8, 1)]], [mine]).status == "ok"
        assert check_resources([[demand("train", 1, 1, 1.0)]], [mine]).status == "fail"

    def test_a_head_without_cpus_hosts_nothing(self):
        head, worker = node("head", 0), node("worker", 1)
        assert hosts([head, worker], [demand("train", 1, 0.5)]) == [worker]


class TestVersions:
    def test_who_differs_is_in_a_table_of_what_differs(self):
        a, b = node("10.0.0.1", 1), node("10.0.0.2", 1)
        same = {"python": "3.11.4", "deepspeed": "0.19.8", "torch": "2.13.0+cpu"}
        found = agreement.check_versions({a: same, b: {**same, "deepspeed": "0.19.0"}}, [a, b])
        assert found.status == "fail"
        assert found.detail.splitlines() == [
            "the nodes differ:",
            "            deepspeed",
            "  10.0.0.1  0.19.8",
            "  10.0.0.2  0.19.0",
        ]

    def test_other_builds_of_one_version_are_a_warning(self):
        a, b = node("a", 1), node("b", 1)
        builds = {a: {"torch": "2.13.0+cpu"}, b: {"torch": "2.13.0+cu130"}}
        assert agreement.check_versions(builds, [a, b]).status == "warn"
        assert agreement.check_versions({a: {"torch": "2.13.0"}, b: {"torch": "2.13.0"}}, [a, b]).status == "ok"

    def test_a_head_that_hosts_no_role_needs_no_engine(self):
        head, worker = node("head", 0), node("worker", 1)
        versions = {head: {"vllm": "absent", "torch": "2.13.0"}, worker: {"vllm": "0.26.0", "torch": "2.13.0"}}
        assert agreement.check_versions(versions, [worker]).status == "ok"
        assert agreement.check_versions(versions, [head, worker]).status == "fail"


def seen(**others) -> Seen:
    return Seen(**({"versions": {}, "models": {}, "reads": "", "writes": "", "binds": ""} | others))


class TestPlaces:
    def test_a_model_that_one_node_lacks_and_one_that_is_another(self):
        a, b = node("a", 1), node("b", 1)
        models = {"model.path": "/models/qwen"}
        on = {a: seen(models={"model.path": "no: No such file or directory"}), b: seen(models={"model.path": "5678"})}
        found = places.check_models(models, {"model.path": "1234"}, on)
        assert found.status == "fail"
        assert found.detail.splitlines() == [
            "model.path: /models/qwen cannot be read on a: No such file or directory",
            "model.path: /models/qwen holds something else on b than on the driver's node",
        ]
        same = {a: seen(models={"model.path": "1234"}), b: seen(models={"model.path": "1234"})}
        assert places.check_models(models, {"model.path": "1234"}, same).status == "ok"

    def test_a_fingerprint_sees_another_configuration_and_other_sizes(self, tmp_path):
        each = (("a", "{}", "1234"), ("b", "{}", "4321"), ("c", "{ }", "1234"), ("d", "{}", "12"))
        for name, config, weights in each:
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.json").write_text(config)
            (tmp_path / name / "model.safetensors").write_text(weights)
        a, b, c, d = (fingerprint(str(tmp_path / name)) for name in "abcd")
        assert a == b and len({a, c, d}) == 3
        assert fingerprint(str(tmp_path / "none")) == "no: No such file or directory"

    @pytest.mark.parametrize(
        ("driver", "found", "arrived", "says"),
        [
            ("Read-only file system", {}, {"a"}, "/runs/x cannot be written by the driver: Read-only file system"),
            ("", {"reads": "Stale"}, {"a"}, "/runs/x does not show what the driver has written there (Stale) on a"),
            ("", {"writes": "Read-only file system"}, {"a"}, "/runs/x cannot be written (Read-only file system) on a"),
            ("", {}, set(), "/runs/x is another one: the driver does not see what was written there, on a"),
        ],
    )  # fmt: skip
    def test_a_run_directory_that_cannot_serve(self, driver, found, arrived, says):
        check = places.check_run_dir("/runs/x", None, driver, {node("a", 1): seen(**found)}, arrived)
        assert (check.status, check.detail) == ("fail", says)

    def test_the_work_folder_of_a_run_in_an_object_store_is_set_by_a_variable(self):
        found = {node("a", 1): seen(reads="No such file or directory")}
        check = places.check_run_dir("/home/me/.cache/x", "s3://bucket/x", "", found, set())
        assert check.status == "fail"
        assert check.fix == (
            "checkpoints are written there before they are copied to s3://bucket/x: set RLPIPE_WORK on all nodes to a "
            "folder that every node sees and may write"
        )
        rooms = [Room(GIB, GIB, "1 checkpoint", "lower train.save_total_limit")]
        says = "make room, lower train.save_total_limit, or choose another place with RLPIPE_WORK"
        assert places.check_disk(0, rooms, "s3://bucket/x").fix == says

    def test_the_disk_has_room_for_nothing_for_one_or_for_all(self):
        rooms = [Room(7 * GIB, 2 * GIB, "3 checkpoints and the result", "lower train.save_total_limit")]
        assert [places.check_disk(free * GIB, rooms).status for free in (1, 5, 8)] == ["fail", "warn", "ok"]
        assert places.check_disk(GIB, rooms).detail == (
            "1.0 GiB free where the run directory is; at least 7.0 GiB is going to be written "
            "(3 checkpoints and the result)"
        )
        says = "make room, lower train.save_total_limit, or choose another place with --run-dir"
        assert places.check_disk(GIB, rooms).fix == says
        assert places.check_disk(GIB, []).status == "ok"

    def test_files_of_the_driver_are_opened(self, tmp_path):
        (tmp_path / "reward.py").write_text("")
        assert places.check_files({"rewards.mix.0.function": str(tmp_path / "reward.py")}).status == "ok"
        found = places.check_files({"data.path": str(tmp_path / "train.jsonl")})
        assert found.detail == f"data.path: {tmp_path}/train.jsonl: No such file or directory"


class TestGpus:
    def test_what_torch_sees_is_what_ray_gave(self):
        a = node("a", 8, 2)
        assert gpus.check_gpus([a], {a: GpuSeen(1, 1, "CUDA 13.0")}, {"a": ["H200", "H200"]}, {}).status == "ok"
        blind = gpus.check_gpus([a], {a: GpuSeen(1, 0, "CPU")}, {}, {})
        assert blind.detail == "a: Ray reserved 1 GPU, and torch (built for CPU) sees none"
        assert gpus.check_gpus([a], {a: GpuSeen(1, 2, "CUDA 13.0")}, {}, {}).status == "fail"
        fewer = gpus.check_gpus([a], {a: GpuSeen(1, 1, "CUDA 13.0")}, {"a": ["H200"]}, {})
        assert fewer.detail == "a: Ray gives out 2, and nvidia-smi lists 1"

    def test_taken_gpus_are_not_looked_at_and_that_is_said(self):
        a = node("a", 8, 2)
        assert gpus.check_gpus([a], {}, {}, {a: "no answer within 30 s"}).status == "warn"
        assert gpus.check_gpus([], {}, {}, {}).status == "skip"

    def test_a_process_that_fails_on_a_gpu_is_no_taken_gpu(self):
        a = node("a", 8, 2)
        found = gpus.check_gpus([a], {}, {}, {a: "ImportError: libcudart.so.13"})
        assert (found.status, found.detail) == ("fail", "a: ImportError: libcudart.so.13")


class TestHandshake:
    """As a probe does it, with torch's own gloo; the nodes are in tests/chaos."""

    def test_a_number_is_added_up(self):
        assert Probe.shake(None, 0, 1, "127.0.0.1", free_port(), 10.0) == ""

    def test_one_that_nobody_answers_ends_with_what_was_waited_for(self):
        said = Probe.shake(None, 0, 2, "127.0.0.1", free_port(), 1.0)
        assert said.startswith("DistStoreError: Timed out") and said.endswith("1/2 clients joined.")


class TestWanted:
    def asked(self, name: str, *changes: str) -> list[list[tuple[str, int]]]:
        return [[(d.role, d.count) for d in moment] for moment in moments(load(name, changes), "")]

    def test_the_roles_of_each_task_as_they_are_there_at_once(self):
        assert self.asked("arithmetic/sft") == [[("training", 1)], [("engine", 1)]]
        assert self.asked("arithmetic/reward_model") == [[("training", 1)]]
        assert self.asked("arithmetic/grpo", "rollout.engines=3", "train.ranks=2") == [[("policy", 2), ("engine", 3)]]
        later = self.asked("arithmetic/grpo", "rollout.engines=3", "rollout.min_engines=2")
        assert later == [[("policy", 1), ("engine", 2)]]
        roles = self.asked("arithmetic/grpo", "algorithm.kl.coefficient=0.1")
        assert roles == [[("policy", 1), ("engine", 1), ("reference", 1)]]

    def test_a_pipeline_wants_what_its_stages_want_under_their_keys(self):
        stages = load("arithmetic/pipeline").stages
        found = wanted({f"stages.{name}.": task for name, task in stages.items()}, Path("/runs/x"))
        keys = [f"stages.{stage}.{section}" for stage in ("sft", "grpo") for section in ("train", "rollout")]
        assert [demand.key for demand in found.demands] == keys
        assert found.models == {} and found.seconds == 120

    def test_models_are_for_all_nodes_and_other_files_for_the_driver(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "m").mkdir()
        (tmp_path / "train.jsonl").touch()
        (tmp_path / "r.py").touch()
        rewards = "rewards.mix=[{kind: python, name: r, function: 'r.py:f'}]"
        changes = ["model.path=m", "data={kind: records, path: train.jsonl}", rewards, "evaluation.correct_by=null"]
        found = wanted({"": load("arithmetic/grpo", changes)}, tmp_path)
        assert found.models == {"model.path": f"{tmp_path}/m"}
        assert found.files == {"data.path": f"{tmp_path}/train.jsonl", "rewards.mix.0.function": f"{tmp_path}/r.py"}


def test_an_evaluation_asks_for_one_model_at_a_time_and_for_its_judge_afterwards():
    judge = "judge={kind: judge, by: {kind: engine, path: FOLDER, engines: 2}}"
    found = moments(load("arithmetic/eval", [judge]), "stages.eval.")
    assert [[(each.role, each.count) for each in moment] for moment in found] == [[("engine", 1)], [("judge/judge", 2)]]
    found = moments(load("arithmetic/eval", [judge, "rewards=null"]), "stages.eval.")
    assert [[each.role for each in moment] for moment in found] == [["engine"], ["judge/judge"]]
