"""Strikes what a run is made of, at random moments, again and again, and checks that nothing was lost.

    make soak MINUTES=30            and SEED=7 for other moments than those of seed 0

First the recipe below runs undisturbed. Then it runs again and again, and in each run processes get SIGKILL or SIGSTOP:
those of roles (engines, policy, critic), which the run has to replace by itself, or the driver, after which `rlpipe
resume` has to go on. Each run must end well, and have been trained on what the undisturbed one was: the same prompts in
the same order with the same tokens, none missing and none twice; and come to losses within 1e-4 of its own (a batch
that a fault has broken up is computed in other parts).

Prints a line for each run. The report, soak.md in --folder, has a line for each fault: what was struck, when the run
noticed, when it was served again, and what was lost. Exit code 1 if a run failed. It needs no GPU, and starts a Ray of
its own for each run.
"""

import argparse
import contextlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from soak_report import Fault, losses, report, steps, trained_on

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
deadlines: {heartbeat: 20, train: 60, publish: 60}
"""
REWARD = """
import time

def share(completions, **columns):
    time.sleep(0.05)
    return [sum(c.isdigit() for c in text) / 16 for text in completions]
"""
RUN_SECONDS = 900.0
"""A run that takes longer hangs."""
WITHIN = 1e-4


class Soak:
    """The recipe in a folder, and the run that nothing happened to."""

    def __init__(self, folder: Path, changes: list[str]) -> None:
        self.folder, self.changes = folder, changes
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "soak.yaml").write_text(RECIPE)
        (folder / "digits.py").write_text(REWARD)
        if self.start("whole").wait(RUN_SECONDS):
            raise SystemExit(f"the undisturbed run failed: {self.log('whole')}")
        self.expected = trained_on(folder / "whole"), losses(folder / "whole")
        self._stopped: list[psutil.Process] = []
        """Those that got SIGSTOP. (They know whether their number is another process's by now.)"""

    def start(self, name: str, resume: bool = False) -> subprocess.Popen:
        """`rlpipe run`, or `rlpipe resume`, in a process of its own."""
        where, recipe = str(self.folder / name), str(self.folder / "soak.yaml")
        words = ["resume", where] if resume else ["run", recipe, *self.changes, "--run-dir", where]
        command = [sys.executable, "-m", "rlpipe", *words]
        with self.log(name).open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)

    def log(self, name: str) -> Path:
        """What the run said."""
        return self.folder / f"{name}.log"

    def disturbed(self, name: str, chance: random.Random, count: int, whom: tuple[str, ...]) -> tuple[list[Fault], str]:
        """One run with up to `count` faults; what they were, and what is wrong with the run, if anything is."""
        faults: list[Fault] = []
        run, until = self.start(name), time.monotonic() + RUN_SECONDS
        while run.poll() is None:
            if time.monotonic() > until:
                end(run)
                return faults, f"it hung; see {self.log(name)}"
            # Each fault is to be mended before the next: a step has been committed since.
            if len(faults) < count and steps(self.folder / name) > (faults[-1].after_step if faults else 0):
                time.sleep(chance.uniform(0.0, 4.0))
                if fault := self._strike(run, name, chance, whom):
                    faults.append(fault)
                    run = self.start(name, resume=True) if fault.whom == "driver" else run
            time.sleep(0.1)
        while self._stopped:  # one that is stopped does not end with its run
            bury(self._stopped.pop())
        return faults, self._wrong(name, run.returncode)

    def _strike(self, run: subprocess.Popen, name: str, chance: random.Random, whom: tuple[str, ...]) -> Fault | None:
        target, at = chance.choice(whom), steps(self.folder / name)
        roles = sorted(role_processes(run.pid), key=lambda process: process.pid)
        if not roles or run.poll() is not None:
            return None
        if target == "driver":
            end(run)
            return Fault(name, "SIGKILL", target, at, time.time())
        kind, victim = chance.choice(["SIGKILL", "SIGKILL", "SIGSTOP"]), chance.choice(roles)
        victim.send_signal(signal.Signals[kind])
        self._stopped += [victim] if kind == "SIGSTOP" else []
        return Fault(name, kind, target, at, time.time())

    def _wrong(self, name: str, code: int) -> str:
        if code:
            return f"exit code {code}; see {self.log(name)}"
        if trained_on(self.folder / name) != self.expected[0]:
            return "it was trained on something else than the undisturbed run"
        ours, theirs = losses(self.folder / name), self.expected[1]
        if ours.keys() != theirs.keys():
            return f"it has numbers of the steps {sorted(ours)}"
        apart = max(abs(ours[step] - theirs[step]) for step in theirs)
        return "" if apart < WITHIN else f"its losses are up to {apart:.2g} off"


def role_processes(driver: int) -> list[psutil.Process]:
    """The processes of the run's Ray that host a role."""
    try:
        family = psutil.Process(driver).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [process for process in family if title(process).startswith("ray::Host")]


def title(process: psutil.Process) -> str:
    """Empty if it is gone."""
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
        bury(process)


def bury(process: psutil.Process) -> None:
    """Kill it, if it is still there, and no other that has got its number since."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()


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
    until, runs = time.monotonic() + 60 * given.minutes, []
    while time.monotonic() < until:
        name = f"run-{len(runs) + 1}"
        runs.append((name, *soak.disturbed(name, chance, given.faults, ("role", "role", "role", "driver"))))
        _, faults, wrong = runs[-1]
        what = ", ".join(f"{fault.kind} of a {fault.whom} after step {fault.after_step}" for fault in faults)
        print(f"{name}: {what or 'no fault'}: {wrong or 'nothing lost'}", flush=True)
        (folder / "soak.md").write_text(report(folder, runs, given.seed))
    print((folder / "soak.md").read_text())
    return 1 if any(wrong for _, _, wrong in runs) else 0


if __name__ == "__main__":
    sys.exit(main())
