"""Planted keys are found in nothing that a run writes, and in no process that does not need them."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import ClassVar

import pytest
import ray

from rlpipe.pipelines.offline.failures import Launch
from rlpipe.pipelines.offline.ray_train import run_remote
from rlpipe.recipe import secrets
from rlpipe.recipe.run import Deadlines
from rlpipe.recipe.training import Resources
from rlpipe.runtime import tracebacks
from rlpipe.runtime.handle import Within
from rlpipe.runtime.ray_runtime import RayRuntime
from rlpipe.runtime.roles import RoleSpec

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

PLANTED = {
    "WANDB_API_KEY": "planted-tracker-8f3a",
    "HF_TOKEN": "planted-hub-77c1",
    "JUDGE_API_KEY": "planted-judge-0b2d",
    "in the recipe": "planted-option-5e9f",
    "in a URL": "planted-url-41aa",
}
RECIPE = """
task: rl
model: {scratch: qwen2, hidden_size: 64, layers: 1, heads: 2, kv_heads: 1, intermediate_size: 64}
data: {kind: arithmetic, largest: 9, heldout: 8}
rewards:
  mix:
    - {kind: python, name: judged, function: 'judged.py:judged', secrets: [JUDGE_API_KEY]}
    - {kind: http, name: asked, url: URL}
algorithm: {name: grpo, group_size: 2}
schedule: {steps: 20, prompts_per_step: 2}
train: {threads: 1, resources: {cpus: 0.1}, save_steps: 1}
rollout: {engine: transformers, max_new_tokens: 4, threads: 1, resources: {cpus: 0.1}}
evaluation: {prompts: 2, every: 20, samples: 1, pass_at: []}
"""
REWARD = """
import contextlib
import json
import os
from pathlib import Path

def judged(completions, api_key, **columns):
    names = [name for name in os.environ if name in ("WANDB_API_KEY", "HF_TOKEN", "JUDGE_API_KEY")]
    hosts = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # one that has just ended
            title, environ = (process / "cmdline").read_text(), (process / "environ").read_text(errors="replace")
            if title.startswith("ray::Host") and os.environ["SESSION"] in environ:
                hosts[process.name] = environ
    Path(os.environ["SEEN"]).write_text(json.dumps({"names": names, "hosts": hosts}))
    print("the judge was asked with", os.environ["JUDGE_API_KEY"], flush=True)
    if list(Path("run/checkpoints").glob("step-*")):  # the run has come so far; now it ends
        raise ConnectionError(f"401 for {os.environ['JUDGE_API_KEY']} and {api_key}")
    return [float(len(text)) for text in completions]
"""


class Answering(http.server.BaseHTTPRequestHandler):
    """Scores, and remembers with what it was asked."""

    paths: ClassVar[set[str]] = set()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.paths.add(self.path)
        answer = json.dumps({"rewards": [1.0] * len(body["completions"])}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        """Quietly."""


@pytest.fixture
def server():
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}/score?token={PLANTED['in a URL']}"
    found.shutdown()


def start(folder: Path, url: str, session: Path) -> subprocess.CompletedProcess:
    """`rlpipe run` in a process of its own, whose Ray keeps its session in a folder that can be searched."""
    (folder / "judged.py").write_text(REWARD)
    (folder / "recipe.yaml").write_text(RECIPE)
    (folder / "judge-key").write_text(PLANTED["JUDGE_API_KEY"])
    words = ["run", "recipe.yaml", "--run-dir", "run", f"rewards.mix.1.url={url}"]
    words += [f"rewards.mix.0.options.api_key={PLANTED['in the recipe']}"]
    environment = {key: PLANTED[key] for key in ("WANDB_API_KEY", "HF_TOKEN")}
    environment |= {"JUDGE_API_KEY_FILE": str(folder / "judge-key"), "SEEN": str(folder / "seen.json")}
    environment |= {"RAY_TMPDIR": str(session), "SESSION": str(session), "DS_ACCELERATOR": "cpu"}
    command, environment = [sys.executable, "-m", "rlpipe", *words], os.environ | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def holding(folders: list[Path], values: list[str]) -> list[str]:
    """The files below that hold one of the values."""
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    assert len(files) > 20, "there is something to search"
    return [str(file) for file in files for value in values if value.encode() in file.read_bytes()]


@pytest.fixture
def session():
    """With a short path: Ray has sockets there."""
    found = Path(f"/tmp/rlpipe-secrets-{os.getpid()}")
    yield found
    shutil.rmtree(found, ignore_errors=True)


@pytest.mark.slow
def test_planted_keys_are_found_in_nothing_that_a_run_writes(tmp_path, server, session):
    """It trains, writes a checkpoint, and fails of an error that names two of them."""
    done = start(tmp_path, server, session)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "401 for [redacted] and [redacted]" in done.stdout, said
    assert "the judge was asked with [redacted]" in said
    assert [key for key, value in PLANTED.items() if value in said] == []
    assert list((tmp_path / "run/checkpoints").glob("step-*/policy")) and (tmp_path / "run/report.html").exists()
    assert list(session.glob("ray/session_*/logs/worker-*"))
    assert holding([tmp_path / "run", session], list(PLANTED.values())) == []
    assert Answering.paths == {f"/score?token={PLANTED['in a URL']}"}, "who needs it has it"
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert seen["names"] == ["JUDGE_API_KEY"], "the reward has what it names, and no other"
    assert len(seen["hosts"]) == 2, "engine and policy were there"
    assert [process for process, environ in seen["hosts"].items() for key in PLANTED.values() if key in environ] == []


class Environment:
    """A role that tells what it could give away."""

    def of(self) -> dict[str, str]:
        return dict(os.environ)

    def fail(self) -> None:
        raise ConnectionError(f"401 for {os.environ['HF_TOKEN']}")


def test_a_role_has_the_keys_it_names_and_no_others(ray_cluster, monkeypatch):
    monkeypatch.setattr(secrets, "_known", set())
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, PLANTED[name])

    def spec(name: str, keys: tuple[str, ...]) -> RoleSpec:
        reserved = Resources(cpus=0.1, gpus=0.0)
        return RoleSpec(name, Environment, lambda seat: (), 1, reserved, 1, "rollout", secrets=keys)

    runtime = RayRuntime(Deadlines(start=60, placement=10))
    try:
        started = runtime.start([spec("engine", ()), spec("policy", secrets.HUB)])
        started.ready()
        engine, policy = (started.handles[name][0] for name in ("engine", "policy"))
        within = Within("train", 20)
        assert not set(PLANTED.values()) & set(engine.call(within, Environment.of).result().values())
        has = policy.call(within, Environment.of).result()
        assert has["HF_TOKEN"] == PLANTED["HF_TOKEN"] and PLANTED["WANDB_API_KEY"] not in has.values()
        with pytest.raises(ConnectionError) as error:
            policy.call(within, Environment.fail).result()
        assert "401 for [redacted]" in str(error.value)
        assert PLANTED["HF_TOKEN"] not in str(vars(error.value)) + tracebacks.told(error.value)
        actors = str(ray._private.state.state.actor_table(None))
        assert "Host" in actors and not any(value in actors for value in PLANTED.values())
    finally:
        runtime.stop()


def tells(job, progress):
    progress.metrics(1, {name: float(name in os.environ) for name in ("HF_TOKEN", "WANDB_API_KEY")})


def test_a_rank_of_an_offline_training_has_the_keys_it_loads_with_and_no_others(ray_cluster, monkeypatch):
    for name in ("WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, PLANTED[name])
    told: list[dict[str, float]] = []
    launch = Launch("SFT", 1, Resources(cpus=0.1, gpus=0.0), 1, Deadlines(), secrets.HUB)
    run_remote(tells, None, launch, lambda step, values: told.append(values))
    assert told == [{"HF_TOKEN": 1.0, "WANDB_API_KEY": 0.0}]
