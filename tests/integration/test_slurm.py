"""The Slurm script, run for real: two Ray nodes on this machine, with stand-ins for `srun` and `scontrol`."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import eventful_driver
import psutil
import pytest
from scraping import Samples, named_in_the_dashboard, names, scrape

from rlpipe.data.storage import Storage
from rlpipe.models.scratch import build
from rlpipe.observe import events
from rlpipe.recipe.model import ScratchModel
from rlpipe.runtime.local import free_port
from rlpipe.runtime.ray_metrics import gauges

SCRIPT = Path(__file__).parents[2] / "cluster/slurm/rlpipe.sbatch"
RECIPE = [
    "arithmetic/grpo", "rollout.engine=transformers", "schedule.prompts_per_step=2", "algorithm.group_size=4",
    "algorithm.kl.coefficient=0.01", "run.max_staleness=1", "algorithm.correction.kind=tis", "rollout.max_new_tokens=4",
    "evaluation.prompts=4", "evaluation.every=1000", "tracking.tensorboard=false", "train.resources.cpus=0.5",
    "rollout.resources.cpus=0.5", "reference.resources.cpus=0.5", "train.save_steps=1",
]  # fmt: skip
SRUN = """#!/usr/bin/env bash
# Runs the command on "node2": a second node of Ray's on this machine.
printf '%s\\n' "$*" >>"$STAND_INS/srun.log"
while [[ $1 == --* ]]; do shift; done
exec "$@" --node-ip-address=127.0.0.1 --metrics-export-port="$METRICS_PORT_2"
"""
SCONTROL = """#!/usr/bin/env bash
printf '%s\\n' "$*" >>"$STAND_INS/scontrol.log"
[ "$1 $2" != "show hostnames" ] || printf 'node1\\nnode2\\n'
"""
IN_TROUBLE = {"faults", "restarts", "warnings", "engine"}
"""Metrics that a run has not, in which nothing goes wrong, or that is of one engine."""

pytestmark = [pytest.mark.integration, pytest.mark.soak]


class Slurm:
    """One job of a cluster of two nodes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir, self.secrets = folder, folder / "runs/job", folder / "home/.rlpipe"
        (folder / "bin").mkdir()
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(0o755)
        self.ports = {name: str(free_port()) for name in ("PORT", "METRICS_PORT", "METRICS_PORT_2", "DASHBOARD_PORT")}
        code = f'#!/bin/sh\nexec {sys.executable} -m rlpipe "$@"\n'
        (folder / "bin/rlpipe").write_text(code)
        (folder / "bin/rlpipe").chmod(0o755)
        model = ScratchModel(scratch="qwen2", hidden_size=64, layers=2, heads=2, kv_heads=1, intermediate_size=128)
        build(model, 0, folder / "model")
        self.temporary = tempfile.mkdtemp(prefix="slurm")  # short, as it is to hold sockets

    def environment(self) -> dict[str, str]:
        paths = [str(self.folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        return own | {
            "PATH": os.pathsep.join(paths), "STAND_INS": str(self.folder), "HOME": str(self.folder / "home"),
            "SLURM_JOB_ID": "417", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_CPUS_ON_NODE": "2",
            "RUN_DIR": str(self.run_dir), "HEAD_ADDRESS": "127.0.0.1", "JOIN_SECONDS": "240", **self.ports,
            "RAY_START_OPTIONS": "--num-cpus=1 --object-store-memory=80000000 --dashboard-agent-listen-port=0",
            "RAY_metrics_report_interval_ms": "1000", "RAY_TMPDIR": self.temporary, "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
        }  # fmt: skip

    @contextlib.contextmanager
    def submitted(self, *arguments: str, **variables: str) -> Iterator[subprocess.Popen]:
        """The script at work."""
        with (self.folder / "output").open("a") as output:
            job = subprocess.Popen(
                ["bash", SCRIPT, *arguments], env=self.environment() | variables, cwd=self.folder,
                stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            yield job
        finally:
            if job.poll() is None:
                job.kill()
            for process in alive(self):
                process.kill()

    def scraped(self) -> Samples:
        """Of both nodes; the driver is on one of them."""
        return scrape(f"127.0.0.1:{self.ports['METRICS_PORT']}") | scrape(f"127.0.0.1:{self.ports['METRICS_PORT_2']}")

    def said(self, name: str = "output") -> str:
        file = self.folder / name
        return file.read_text() if file.exists() else ""

    def events(self) -> list[dict]:
        return events.read(Storage(self.run_dir))[0] if self.run_dir.exists() else []


def until(job: subprocess.Popen, seen: Callable[[], object], slurm: Slurm, seconds: float = 240) -> None:
    ends = time.monotonic() + seconds
    while not seen():
        assert job.poll() is None and time.monotonic() < ends, slurm.said()
        time.sleep(0.3)


@pytest.mark.timeout(600)
def test_a_job_runs_is_put_back_and_goes_on(tmp_path):
    slurm = Slurm(tmp_path)
    changes = [*RECIPE, f"model.path={tmp_path / 'model'}"]
    seen: dict[int, Samples] = {}

    with slurm.submitted(*changes, "schedule.steps=4000") as job:
        until(job, lambda: (slurm.secrets / "ray-token-417").exists(), slurm)
        token = slurm.secrets / "ray-token-417"
        assert token.stat().st_mode & 0o777 == 0o600 and len(token.read_text()) == 64
        until(job, lambda: complete(seen, slurm.scraped()), slurm)
        assert_private(slurm)
        assert_trouble_is_exported(slurm)
        job.send_signal(signal.SIGUSR1)  # as Slurm does before time is up
        assert job.wait(120) != 0
        is_gone(slurm)
    assert "requeue 417" in slurm.said("scontrol.log")
    assert not token.exists()
    done = [event["step"] for event in slurm.events() if event["kind"] == "commit"]
    assert_equal_to_the_events(seen, slurm)

    steps = f"schedule.steps={max(done) + 2}"
    with slurm.submitted("arithmetic/grpo", steps, SLURM_RESTART_COUNT="1") as job:
        assert job.wait(240) == 0, slurm.said()
    committed = [event["step"] for event in slurm.events() if event["kind"] == "commit"]
    assert sorted(set(committed)) == list(range(1, max(done) + 3)), "nothing is skipped"
    assert slurm.events()[-1]["status"] == "completed" and (slurm.run_dir / "model/model.safetensors").exists()
    assert slurm.said("scontrol.log").count("requeue") == 1
    [line] = set(slurm.said("srun.log").splitlines())
    assert "--nodes=1 --ntasks=1 --ntasks-per-node=1 --exclude=node1 --cpus-per-task=2" in line


def complete(seen: dict[int, Samples], found: Samples) -> bool:
    """Whether what is scraped has all that the dashboard shows of a healthy run; `seen` keeps it by step."""
    step = next((value for (name, _), value in found.items() if name == "ray_rlpipe_step"), 0)
    if step:
        seen[int(step)] = found
    shown = {name for name in named_in_the_dashboard() if name.split("_")[2] not in IN_TROUBLE}
    return shown <= names(found) and len(seen) > 1


def assert_equal_to_the_events(seen: dict[int, Samples], slurm: Slurm) -> None:
    """What was scraped are values of events: of the step that it says, or, as a scrape may come between two values of
    one step, of one of its neighbours; and of some step all are there."""
    written = {event["step"]: dict(exported(event)) for event in slurm.events() if event["kind"] == "metrics"}
    whole = 0
    for step, found in seen.items():
        around = [written[near] for near in (step - 1, step, step + 1) if near in written]
        for key in written[step].keys() & found.keys():
            assert any(found[key] == pytest.approx(values.get(key), rel=1e-6, nan_ok=True) for values in around), (
                step,
                key,
            )
        whole += all(
            found.get(key) == pytest.approx(value, rel=1e-6, nan_ok=True) for key, value in written[step].items()
        )
    assert whole, "no scrape has a whole step"


def exported(event: dict) -> Iterator[tuple[tuple[str, frozenset], float]]:
    """As it is to be found on the node. The run is called by its folder."""
    for sample in gauges(event):
        yield ("ray_" + sample.name, frozenset({"run": "job", **sample.tags}.items())), sample.value


def assert_trouble_is_exported(slurm: Slurm) -> None:
    """By another driver on the same cluster, to which everything happens that metrics tell of."""
    own = {"RAY_ADDRESS": f"127.0.0.1:{slurm.ports['PORT']}", "RAY_AUTH_MODE": "token"}
    own["RAY_AUTH_TOKEN_PATH"] = str(slurm.secrets / "ray-token-417")
    command = [sys.executable, eventful_driver.__file__, str(slurm.folder / "eventful")]
    with subprocess.Popen(command, env=slurm.environment() | own, stdin=subprocess.PIPE) as driver:
        ends = time.monotonic() + 120
        own = frozenset({"run": eventful_driver.RUN}.items())
        of_it = {("ray_rlpipe_step", own), ("ray_rlpipe_restarts_total", own | {("role", "engine")})}
        while not of_it <= slurm.scraped().keys() or named_in_the_dashboard() - names(slurm.scraped()):
            assert time.monotonic() < ends and driver.poll() is None, slurm.scraped()
            time.sleep(0.3)
        time.sleep(2)  # what has come in two reports is there in the end
        found = slurm.scraped()
        driver.communicate()

    def value(name: str, **tags: str) -> float:
        return found["ray_rlpipe_" + name, frozenset({"run": eventful_driver.RUN, **tags}.items())]

    assert value("step") == 2
    assert ("ray_rlpipe_reward", own) not in found, "a mean over nothing is NaN, and Ray exports none"
    assert (value("reward_component", component="exact"), value("mismatch_abs")) == (0.5, 1e-7)
    assert (value("evaluation_accuracy"), value("evaluation_pass_at_4")) == (0.5, 0.875)
    assert (value("steps_total"), value("tokens_total")) == (2, 2000)
    engine = {"engine": "engine[1]", "node": "10.0.0.7"}
    assert (value("engine_tokens_per_second", **engine), value("engine_outstanding_tokens", **engine)) == (812.5, 4096)
    assert value("phase_seconds_total", phase="train") == value("phase_last_seconds", phase="train") > 0
    assert (value("faults_total", fatal="false"), value("faults_total", fatal="true")) == (1, 1)
    assert (value("warnings_total"), value("restarts_total", role="engine")) == (3, 2)


def assert_private(slurm: Slurm) -> None:
    """The job server listens on the loopback address alone, and answers those who have the token."""
    port = int(slurm.ports["DASHBOARD_PORT"])
    listening = {c.laddr.ip for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port}
    assert listening == {"127.0.0.1"}
    jobs = f"http://127.0.0.1:{port}/api/jobs/"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(jobs, timeout=10)
    assert refused.value.code == 401
    token = (slurm.secrets / "ray-token-417").read_text()
    asked = urllib.request.Request(jobs, headers={"Authorization": f"Bearer {token}"})
    assert urllib.request.urlopen(asked, timeout=10).status == 200


def is_gone(slurm: Slurm) -> None:
    """Nothing that the job has started is left behind."""
    ends = time.monotonic() + 60
    while left := [process.name() for process in alive(slurm)]:
        assert time.monotonic() < ends, left
        time.sleep(0.3)


def alive(slurm: Slurm) -> list[psutil.Process]:
    """Processes of the job that are still there."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("RUN_DIR") == str(slurm.run_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found
