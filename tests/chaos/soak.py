"""Kills what a run is made of, at random moments, again and again, and checks that nothing was lost.

    make soak MINUTES=30            and SEED=7 for other moments than those of seed 0

First the recipe below runs undisturbed. Then it runs again and again, and in each run some processes get SIGKILL or
SIGSTOP: role processes (engine, policy, critic), which the run has to replace by itself, or the driver, after which
`rlpipe resume` has to go on. Each run must end well, and have been trained on what the undisturbed one was: the same
prompts in the same order with the same tokens, none missing and none twice; and come to the same weights (within 1e-4:
a batch that a fault has broken up is computed in other parts).

Prints a line for each run, and writes them to soak.jsonl in --folder. Exit code 1 if a run failed. It needs no GPU, and
starts a Ray of its own for each run.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

RECIPE = """
task: rl
name: soak
model: {scratch: qwen2, hidden_size: 64, layers: 2, heads: 2, kv_heads: 1, intermediate_size: 128}
data: {kind: arithmetic, largest: 9, heldout: 16}
rewards: {mix: [{kind: python, name: digits, function: digits.py:share}]}
algorithm: {name: ppo, group_size: 4}
schedule: {steps: 40, prompts_per_step: 8}
train: {threads: 1, optimizer: {learning_rate: 1e-3}, resources: {cpus: 0.1}, save_steps: 5, save_total_limit: 2}
critic: {threads: 1, resources: {cpus: 0.1}}
rollout: {engine: transformers, engines: 2, max_new_tokens: 16, threads: 1, resources: {cpus: 0.1}}
evaluation: {prompts: 8, every: 20, samples: 1, pass_at: []}
deadlines: {heartbeat: 10, train: 60, publish: 60}
"""
REWARD = """
import time

def share(completions, **columns):
    time.sleep(0.05)
    return [sum(c.isdigit() for c in text) / 16 for text in completions]
"""
RUN_SECONDS = 600.0
"""A run that takes longer hangs."""


@dataclass
class Fault:
    """What was done to a process."""

    kind: str
    whom: str
    after_step: int
    process: int


class Soak:
    """The recipe in a folder, and the run that nothing happened to."""

    def __init__(self, folder: Path, changes: list[str]) -> None:
        self.folder, self.changes = folder, changes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "soak.yaml").write_text(RECIPE)
        (folder / "digits.py").write_text(REWARD)
        whole = self.start("whole")
        if whole.wait(RUN_SECONDS):
            raise SystemExit(f"the undisturbed run failed: {self.log('whole')}")
        self.expected = trained_on(folder / "whole"), weights(folder / "whole")

    def start(self, name: str, resume: bool = False) -> subprocess.Popen:
        """`rlpipe run`, or `rlpipe resume`, in a process of its own."""
        where = str(self.folder / name)
        words = (
            ["resume", where] if resume else ["run", str(self.folder / "soak.yaml"), *self.changes, "--run-dir", where]
        )
        with self.log(name).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "rlpipe", *words], stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def disturbed(self, name: str, chance: random.Random, count: int, whom: tuple[str, ...]) -> tuple[list[Fault], str]:
        """One run with up to `count` faults; what they were, and what is wrong with the run, if anything is."""
        faults: list[Fault] = []
        run, until = self.start(name), time.monotonic() + RUN_SECONDS
        pause = chance.uniform(1.0, 4.0)
        while run.poll() is None:
            if time.monotonic() > until:
                end(run)
                return faults, f"it hung; see {self.log(name)}"
            if len(faults) < count and self._went_on(name, faults):
                time.sleep(pause)
                if fault := self._strike(run, name, chance, whom):
                    faults.append(fault)
                    pause = chance.uniform(1.0, 4.0)
                    if fault.whom == "driver":
                        run = self.start(name, resume=True)
            time.sleep(0.1)
        return faults, self._wrong(name, run.returncode)

    def _went_on(self, name: str, faults: list[Fault]) -> bool:
        """Whether the run has committed a step since the last fault: each is to be mended before the next."""
        last = faults[-1].after_step if faults else 0
        return steps(self.folder / name) > last

    def _strike(self, run: subprocess.Popen, name: str, chance: random.Random, whom: tuple[str, ...]) -> Fault | None:
        target = chance.choice(whom)
        at = steps(self.folder / name)
        if target == "driver":
            end(run)
            return Fault("SIGKILL", target, at, run.pid)
        roles = sorted(role_processes(run.pid), key=lambda process: process.pid)
        if not roles:
            return None
        kind, victim = chance.choice(["SIGKILL", "SIGKILL", "SIGSTOP"]), chance.choice(roles)
        os.kill(victim.pid, signal.Signals[kind])
        return Fault(kind, target, at, victim.pid)

    def _wrong(self, name: str, code: int) -> str:
        if code:
            return f"exit code {code}; see {self.log(name)}"
        if trained_on(self.folder / name) != self.expected[0]:
            return "it was trained on something else than the undisturbed run"
        ours, theirs = weights(self.folder / name), self.expected[1]
        apart = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs)
        return "" if apart < 1e-4 else f"its weights are {apart:.2g} off"


def role_processes(driver: int) -> list[psutil.Process]:
    """The processes of the run's Ray that host a role."""
    try:
        family = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in family if "ray::Host" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def end(run: subprocess.Popen) -> None:
    """SIGKILL to the driver; the Ray that it started goes with it, as on a machine that is lost."""
    family = psutil.Process(run.pid).children(recursive=True)
    run.kill()
    run.wait()
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def steps(directory: Path) -> int:
    """How many are committed."""
    return len(list((directory / "rollouts").glob("step-*.parquet")))


def trained_on(directory: Path) -> list[list[Any]]:
    """Prompts, epochs and tokens in the order of training. Lease ids may differ: a prompt that was leased twice was
    answered once."""
    columns = ("prompt_id", "epoch", "sample_index", "response_tokens")
    files = sorted((directory / "rollouts").glob("step-*.parquet"))
    return [[row[name] for name in columns] for file in files for row in pq.read_table(file).to_pylist()]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "model" / "model.safetensors")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=4, help="at most so many in a run")
    parser.add_argument("--folder", type=Path, help="where to work; a temporary one if absent")
    parser.add_argument("changes", nargs="*", help="key=value: changes of the recipe")
    given = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="soak-"))
    print(f"working in {folder}; first the run that nothing happens to", flush=True)
    soak, chance = Soak(folder, given.changes), random.Random(given.seed)
    until, runs, failed = time.monotonic() + 60 * given.minutes, 0, 0
    with (folder / "soak.jsonl").open("a") as report:
        while time.monotonic() < until:
            runs += 1
            faults, wrong = soak.disturbed(f"run-{runs}", chance, given.faults, ("role", "role", "driver"))
            failed += bool(wrong)
            told = [fault.__dict__ for fault in faults]
            report.write(json.dumps({"run": runs, "seed": given.seed, "faults": told, "wrong": wrong}) + "\n")
            report.flush()
            what = ", ".join(f"{fault.kind} of a {fault.whom} after step {fault.after_step}" for fault in faults)
            print(f"run {runs}: {what or 'no fault'}: {wrong or 'nothing lost'}", flush=True)
    print(f"{runs} runs, {failed} failed; {folder / 'soak.jsonl'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
