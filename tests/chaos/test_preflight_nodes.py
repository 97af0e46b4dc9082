"""Preflight on real nodes: what is wrong with one is told, with where and what to do, before anything is loaded."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray
from nodes import Nodes

import rlpipe
from rlpipe.observe import runinfo
from rlpipe.pipelines.run import FAILED, run
from rlpipe.recipe.load import load
from rlpipe.recipe.training import Resources
from rlpipe.runtime.preflight.survey import survey
from rlpipe.runtime.preflight.wanted import Demand, Wanted

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

RECIPE = """
task: rl
model: FOLDER
data: {kind: arithmetic, largest: 9, heldout: 16}
rewards: {mix: [{kind: exact}]}
algorithm: {name: grpo, group_size: 4}
schedule: {steps: 1, prompts_per_step: 4}
train: {ranks: 2, zero_stage: 1, resources: {cpus: 0.5}}
rollout: {engine: transformers, resources: {cpus: 0.5}}
"""
SHADOWED = "0.0.1"
"""Version of the package that another one hides on one node."""


@pytest.fixture(scope="module")
def cluster():
    found = Nodes()
    yield found
    found.close()


def checks(run_dir) -> dict[str, dict]:
    events = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    return {event["name"]: event for event in events if event["kind"] == "check"}


def ended(tmp_path, capsys, *changes: str) -> tuple[dict[str, dict], str]:
    """What a run that fails in preflight has found, by check, and what it said."""
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FOLDER", str(tmp_path / "model")))
    began = time.monotonic()
    assert run(load(tmp_path / "recipe.yaml", changes), tmp_path / "run", debug=False) == FAILED
    assert time.monotonic() - began < 60
    return checks(tmp_path / "run"), capsys.readouterr().out


@pytest.fixture
def model(tmp_path):
    """A folder like a model's. Nothing of it is ever loaded here."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")


def package_of_another_version(folder) -> str:
    """A `deepspeed` that Python finds before the real one, as in an environment that was set up at another time."""
    (folder / "deepspeed").mkdir(parents=True)
    (folder / "deepspeed" / "__init__.py").write_text(f'__version__ = "{SHADOWED}"\n')
    about = folder / f"deepspeed-{SHADOWED}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: deepspeed\nVersion: {SHADOWED}\n")
    return os.pathsep.join([str(folder), os.environ["PYTHONPATH"]])


HIDDEN = 'mount -t tmpfs none "$0" && mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"'
"""A folder that is empty, and one that is only read."""
BROKEN = 'mount --bind "$0" "$1" && shift && exec "$@"'
"""A folder in the place of another."""


@pytest.mark.soak
@pytest.mark.skipif(subprocess.run(["unshare", "-m", "true"]).returncode != 0, reason="mounts of its own need root")
def test_a_node_with_other_software_and_folders_and_one_that_cannot_import_rlpipe(cluster, model, tmp_path, capsys):
    cluster.have(1)
    (tmp_path / "run").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "__init__.py").write_text("raise ImportError('not this one')")
    own = ["unshare", "-m", "sh", "-c", HIDDEN, str(tmp_path / "model"), str(tmp_path / "run")]
    bad = cluster.join_by(own, PYTHONPATH=package_of_another_version(tmp_path / "older"))
    own = ["unshare", "-m", "sh", "-c", BROKEN, str(tmp_path / "broken"), str(Path(rlpipe.__file__).parent)]
    broken = cluster.join_by(own)
    try:
        found, said = ended(tmp_path, capsys)
    finally:
        cluster.lose_those_elsewhere()
    failed = {name for name, event in found.items() if event["status"] == "fail"}
    assert failed == {"nodes", "versions", "models", "run directory"}
    assert broken[:6] in found["nodes"]["detail"] and "not this one" in found["nodes"]["detail"]
    table = found["versions"]["detail"].splitlines()
    assert table[1].split() == ["deepspeed"], "nothing else differs"
    real = runinfo.versions()["deepspeed"]
    assert [line.split()[-1] for line in table[2:]] == [SHADOWED if bad[:6] in line else real for line in table[2:]]
    assert sum(bad[:6] in line for line in table) == 1 and len(table) == 2 + 4, "driver, head, and two workers"
    assert f"model.path: {tmp_path}/model cannot be read on " in found["models"]["detail"]
    assert bad[:6] in found["models"]["detail"] and "No such file or directory" in found["models"]["detail"]
    assert f"{tmp_path}/run cannot be written (Read-only file system) on " in found["run directory"]["detail"]
    assert found["ports"]["status"] == "ok" and found["handshake"]["status"] == "skip", "those that answer"
    for word in (SHADOWED, "to mend: ", "--run-dir", "model.path"):
        assert word in said
    assert not list((tmp_path / "run").glob(".preflight-*")), "nothing is left behind"
    assert not [name for name in os.listdir(tmp_path / "run") if name in ("base", "ledger")], "nothing was begun"


@pytest.mark.soak
def test_gpus_that_no_node_has_and_one_that_only_ray_believes_in(cluster, model, tmp_path, capsys):
    cluster.have(0)
    believed = cluster.join_by([], "--num-gpus=1")
    try:
        found, said = ended(tmp_path, capsys, "rollout.resources.gpus=2", "train.ranks=1", "train.zero_stage=0")
    finally:
        cluster.lose_those_elsewhere()
    assert found["resources"]["status"] == found["GPUs"]["status"] == "fail"
    assert found["resources"]["detail"].startswith(
        "engine: 1 x (CPU 0.5, GPU 2) asked for by rollout; no node has that much\n"
    )
    assert found["resources"]["fix"] == "lower rollout.resources, or add a node that has it"
    assert believed[:6] in found["GPUs"]["detail"] and "torch" in found["GPUs"]["detail"]
    assert "Preflight found what would stop this run. Nothing has been loaded." in said


def test_on_nodes_that_are_well_all_is_in_order_and_nothing_is_left(cluster, tmp_path):
    cluster.have(2)
    train = Demand("training", 2, Resources(cpus=0.5, gpus=0.0), "train", trains=True)
    found = survey(Wanted([[train]], tmp_path, 240.0), lambda check, seconds: None)
    assert {check.name: check.status for check in found} == {
        "resources": "ok", "files": "skip", "disk": "ok", "nodes": "ok", "versions": "ok", "ports": "ok",
        "run directory": "ok", "models": "skip", "GPUs": "skip", "handshake": "ok",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    deadline = time.monotonic() + 10
    while any(actor["class_name"] == "Probe" for actor in living()):
        assert time.monotonic() < deadline, "the probes end with it"
        time.sleep(0.1)


def living() -> list[dict]:
    found = ray._private.state.state.actor_table(None)
    return [{"class_name": each["ActorClassName"]} for each in found.values() if each["State"] == "ALIVE"]


def test_a_run_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "recipe.yaml").write_text(RECIPE.replace("FOLDER", "{scratch: qwen2}"))
    words = ["run", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "file/x")]
    done = subprocess.run([sys.executable, "-m", "rlpipe", *words], capture_output=True, text=True)
    says = f"{tmp_path}/file/x cannot be written (Not a directory); choose another folder: --run-dir"
    assert (done.returncode, done.stderr) == (2, f"error: {says}\n")
