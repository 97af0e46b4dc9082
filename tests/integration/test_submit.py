"""`rlpipe submit` and the verbs around it, against a real Ray head with dashboard and token authentication."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import psutil
import pytest
import ray
from online_runs import RECIPE, events, trained_on
from warm import Done

import rlpipe
from rlpipe.data.storage import Storage
from rlpipe.ledger.standing import standing

pytestmark = [pytest.mark.integration, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-the-tests-of-submit-01"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "NO_COLOR": "1",
    "COLUMNS": "200",
}
REWARD = """
import time
from counting import digits

def share(completions, **columns):
    time.sleep(0.4)
    return [digits(text) / 6 for text in completions]
"""
"""Slow, so that a test comes between its steps."""


@dataclass
class Head:
    """A Ray head of the tests' own, and a client machine that knows its token."""

    address: str
    joined_at: str
    """For who is on the cluster: RAY_ADDRESS."""
    folder: Path
    environment: dict[str, str]

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """`rlpipe WORDS` of a client."""
        return subprocess.Popen(
            [sys.executable, "-m", "rlpipe", *words],
            cwd=self.folder,
            env=self.environment | {"RAY_API_SERVER_ADDRESS": self.address, "PYTHONPATH": str(ROOT)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def do(self, *words: str, **environment: str) -> Done:
        begin = time.monotonic()
        client = self.start(*words, **environment)
        output, _ = client.communicate(timeout=240.0)
        return Done(client.returncode, output, time.monotonic() - begin)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    client = tmp_path_factory.mktemp("client")
    (client / "digits.py").write_text(REWARD)
    (client / "counting.py").write_text("def digits(text):\n    return sum(c.isdigit() for c in text)\n")
    (client / "small.yaml").write_text(RECIPE)
    # What runs on the cluster has no rlpipe of its own before `submit` brings one.
    outside = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH"))}
    programs = Path(sys.executable).parent
    environment = outside | ENVIRONMENT | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    port, dashboard, agent = free_ports(3)
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as scratch:  # a socket's path is short
        begin = [programs / "ray", "start", "--head", "--block", "--num-cpus=4", "--disable-usage-stats"]
        begin += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        begin += [f"--temp-dir={scratch}", "--object-store-memory=100000000"]
        process = subprocess.Popen(begin, env=environment, cwd=scratch, stdout=subprocess.DEVNULL)
        try:
            wait_for(lambda: answers(dashboard), 90, "the dashboard")
            yield Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", client, environment)
        finally:
            end(process)


def end(process: subprocess.Popen) -> None:
    whole = [*psutil.Process(process.pid).children(recursive=True), process]
    for each in whole:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def wait_for(condition, seconds: float, what: str) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"{what} did not come within {seconds} s"
        time.sleep(0.1)


def committed(run_dir: Path) -> int:
    found = standing(Storage(run_dir))
    return found.step if found else 0


def test_a_job_outlives_its_client_and_its_driver(head, tmp_path):
    run_dir = tmp_path / "run"
    changes = ["schedule.steps=6", "train.save_steps=2"]
    client = head.start("submit", "small.yaml", *changes, "--name", "sums", "--run-dir", str(run_dir), "--follow")
    wait_for(lambda: committed(run_dir) >= 1 or client.poll() is not None, 240, "step 1")
    assert client.poll() is None, client.communicate()
    client.kill()
    assert client.wait() == -signal.SIGKILL
    attached = head.start("attach", "sums")
    wait_for(lambda: committed(run_dir) >= 3, 120, "step 3")
    os.kill(int((run_dir / ".lock").read_text()), signal.SIGKILL)

    running = head.do("status", "sums")
    assert running.code == 0 and re.search(r"^job +sums  RUNNING for ", running.output), running.output
    assert re.search(r"^step +[2345]/6$", running.output, re.MULTILINE), running.output

    output, _ = attached.communicate(timeout=240)
    assert attached.returncode == 0, output
    assert (
        "The driver was lost: killed by SIGKILL. It resumes from the run directory in 1 s (1 of 3 in a row)" in output
    )
    shipped = re.search(r"^rlpipe: rlpipe (\S+) from (\S+);", output, re.MULTILINE)
    assert shipped[1] == rlpipe.__version__ and "/py_modules_files/" in shipped[2]
    assert "step 6/6" in output and "\x1b" not in output and "\r" not in output

    assert len(events(run_dir, "run_started")) == 2
    assert [fault["message"][:42] for fault in events(run_dir, "fault")] == [
        "The driver was lost: killed by SIGKILL. It"
    ]
    groups = [group for group, sample, *_ in trained_on(run_dir) if sample == 0]
    assert len(groups) == len(set(groups)) == 6 * 8
    assert (run_dir / "model" / "config.json").is_file()
    assert sorted(path.name for path in (run_dir / "inputs").rglob("*.py")) == ["counting.py", "digits.py"]

    ended = head.do("status", "sums")
    assert re.search(r"^job +sums  SUCCEEDED$", ended.output, re.MULTILINE)
    assert re.search(r"^step +6/6$", ended.output, re.MULTILINE)
    assert head.do("logs", "sums").output.count("step 6/6") == 1
    assert TOKEN not in "".join(path.read_text(errors="replace") for path in run_dir.rglob("*") if path.is_file())


def test_an_earlier_run_is_left_alone_and_a_mistake_is_not_tried_again(head, tmp_path):
    (tmp_path / "recipe.yaml").write_text("task: rl\n")
    refused = head.do("submit", "small.yaml", "--run-dir", str(tmp_path), "--name", "again", "--follow")
    assert refused.code == 2, refused.output
    assert f"{tmp_path} holds an earlier run, which stays; --resume goes on with it" in refused.output
    assert "The driver was lost" not in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]
    assert head.do("attach", "again").code == 2


def test_a_job_is_stopped_and_found(head, tmp_path):
    begun = head.do("submit", "small.yaml", "--run-dir", str(tmp_path / "run"), "--name", "long-one")
    assert begun.code == 0 and "status   RUNNING" in begun.output, begun.output
    stopped = head.do("stop", "long-one")
    assert stopped.code == 0 and stopped.output.startswith("long-one  STOPPED"), stopped.output
    assert head.do("attach", "long-one").code == 130
    listed = head.do("jobs")
    assert re.search(rf"^long-one +STOPPED +{tmp_path / 'run'}$", listed.output, re.MULTILINE), listed.output
    unknown = head.do("stop", "long-on")
    assert unknown.code == 2 and "knows no job long-on; there are long-one" in unknown.output
    taken = head.do("submit", "small.yaml", "--run-dir", str(tmp_path / "other"), "--name", "long-one")
    assert taken.code == 2 and "there is a job long-one" in taken.output


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"RAY_AUTH_TOKEN": "of-another-cluster-entirely-0000"}, "does not take the token that was sent"),
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token, and there is none here. Ray takes the token from"),
    ],
)  # fmt: skip
def test_a_token_that_does_not_fit(head, environment, says):
    refused = head.do("jobs", **environment)
    assert refused.code == 2 and says in refused.output, refused.output
    assert TOKEN not in refused.output and "Traceback" not in refused.output


ASKS = """
import os, sys
from rlpipe.runtime import ray_token
ray_token.ANSWER_SECONDS = 5.0
try:
    ray_token.require_admission(sys.argv[1])
    print("RAY_AUTH_MODE =", os.environ.get("RAY_AUTH_MODE"))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_cluster_is_asked_before_it_is_joined(head):
    """With a token only where it wants one; what Ray itself finds out after two minutes is said at once."""

    def said(address: str, **changes: str) -> str:
        environment = {key: value for key, value in head.environment.items() if key != "RAY_AUTH_MODE"}
        words = [sys.executable, "-c", ASKS, address]
        return subprocess.run(
            words, env=environment | {"PYTHONPATH": str(ROOT)} | changes, capture_output=True, text=True, timeout=120
        ).stdout.strip()

    at = head.joined_at
    assert said(at) == "RAY_AUTH_MODE = token"
    other = said(at, RAY_AUTH_TOKEN="of-another-cluster-entirely-0000")
    assert other.startswith(f"NotAdmitted the cluster at {at} does not take the token that was sent. Ray takes"), other
    without = said(at, RAY_AUTH_MODE="disabled")
    says = f"NotAdmitted the cluster at {at} asks for a token, and none is sent with RAY_AUTH_MODE=disabled. Ray takes"
    assert without.startswith(says), without


def test_an_address_that_is_no_dashboard(head):
    [nobody] = free_ports(1)
    silent = head.do("jobs", "--address", f"http://127.0.0.1:{nobody}")
    assert silent.code == 2 and "nothing that speaks HTTP answers" in silent.output, silent.output

    class Other(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        other = head.do("jobs", "--address", f"127.0.0.1:{server.server_port}")
        server.shutdown()
    assert other.code == 2 and "answers, but is no Ray dashboard (HTTP 404 for /api/version)" in other.output


def test_a_cluster_with_another_ray(monkeypatch):
    from packaging.requirements import Requirement

    from rlpipe.runtime import jobs

    monkeypatch.setattr(jobs, "rlpipe_requirements", lambda: [Requirement("ray[default,train]>=2.60")])
    jobs.require_version(ray.__version__)
    with pytest.raises(jobs.JobError, match=r"the cluster has Ray 2\.31\.0, and rlpipe runs on Ray >=2\.60"):
        jobs.require_version("2.31.0")
