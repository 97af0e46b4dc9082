"""A cluster that starts nodes when a run asks for them: Ray's autoscaler, over nodes that are processes here."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import local_ray
import psutil
import pytest
import ray
from idle_role import Role
from nodes import STORE_BYTES

from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime.handle import Within, results
from rlpipe.runtime.local import free_port
from rlpipe.runtime.ray_runtime import RayRuntime, connected
from rlpipe.runtime.roles import RoleSpec

pytestmark = [pytest.mark.integration, pytest.mark.soak]


def configuration(port: int) -> dict:
    """Up to two nodes of one CPU, none at the beginning."""
    worker = {"resources": {"CPU": 1, "object_store_memory": STORE_BYTES}, "node_config": {}, "max_workers": 2}
    head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
    provider = {"type": "fake_multinode", "use_node_id_as_ip": True, "disable_node_updaters": True}
    provider |= {"disable_launch_config_check": True, "gcs_address": f"127.0.0.1:{port}"}
    commands = ["initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray"]
    return {
        "cluster_name": "ondemand", "max_workers": 2, "upscaling_speed": 100.0, "idle_timeout_minutes": 5.0,
        "provider": provider, "auth": {}, "docker": {}, "file_mounts": {}, "cluster_synced_files": [],
        "file_mounts_sync_continuously": False, "rsync_exclude": [], "rsync_filter": [],
        "head_node_type": "ray.head.default",
        "available_node_types": {"ray.head.default": head, "worker": worker | {"min_workers": 0}},
        **{f"{name}_commands": [] for name in commands},
    }  # fmt: skip


@pytest.fixture
def on_demand(monkeypatch):
    """A head without CPUs whose autoscaler may start two nodes. (As `ray.cluster_utils.AutoscalingCluster`, which would
    stop every other Ray of the machine.)"""
    others = ray.is_initialized()
    if others:
        ray.shutdown()
    local_ray.prepare()
    port = free_port()
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rl", ignore_cleanup_errors=True) as folder:
        with open(f"{folder}/nodes.yaml", "w") as file:
            json.dump(configuration(port), file)
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"]
        command += ["--node-ip-address=127.0.0.1", "--num-cpus=0", f"--object-store-memory={STORE_BYTES}"]
        command += ["--include-dashboard=false", f"--temp-dir={folder}", f"--autoscaling-config={folder}/nodes.yaml"]
        command += [f"--ray-client-server-port={free_port()}", "--dashboard-agent-listen-port=0"]
        environment = os.environ | {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        with open(f"{folder}/head.log", "wb") as log:
            head = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            started(head, folder)
            monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
            with connected():
                yield
        finally:
            family = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
            for process in [head, *family]:
                process.kill()
            head.wait()
            if others:
                local_ray.start()


def started(head: subprocess.Popen, folder: str) -> None:
    ends = time.monotonic() + 120
    while "Ray runtime started" not in (log := Path(f"{folder}/head.log").read_text()):
        assert time.monotonic() < ends and head.poll() is None, log
        time.sleep(0.2)


def test_engines_without_room_are_what_starts_nodes(on_demand):
    spec = RoleSpec(
        "engine", Role, lambda seat: (), 2, Resources(cpus=1.0, gpus=0.0), 1, "rollout", again=(), at_least=1
    )
    runtime = RayRuntime(Deadlines(start=150, placement=90))
    assert "CPU" not in ray.cluster_resources()
    try:
        started = runtime.start([spec])
        started.ready()
        late = started.handles["engine"][1]
        ends = time.monotonic() + 60
        while not late.begun and late.lacking():
            assert time.monotonic() < ends, "no node was started for the second engine"
            time.sleep(0.2)
        if not late.begun:
            late.restart().result()
        on = results([engine.call(Within("heartbeat", 30.0), Role.node) for engine in started.handles["engine"]])
        assert len(set(on)) == 2 and ray.cluster_resources()["CPU"] == 2.0
    finally:
        runtime.stop()
