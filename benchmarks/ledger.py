"""What the durable ledger costs: one step, a step late in a long run, and a run of a million prompts.

    python benchmarks/ledger.py            # everything; about ten minutes
    python benchmarks/ledger.py --quick    # shrunk: does all of it work? Its figures mean nothing

Prints tables of medians. It works in a folder of the disk that it is started on (--folder), and removes it.
"""

import argparse
import os
import resource
import shutil
import statistics
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from rlpipe.data.cursor import PromptCursor
from rlpipe.data.flow import FinishReason, Group, Prompt, Score, Trajectory, VersionSpan
from rlpipe.data.storage import Storage
from rlpipe.ledger import history
from rlpipe.ledger.ledger import Ledger
from rlpipe.ledger.standing import standing

VOCABULARY = 150_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="shrunk; the figures mean nothing")
    parser.add_argument("--folder", type=Path, default=Path("ledger-benchmark"), help="where to write; removed")
    asked = parser.parse_args()
    shrink = 256 if asked.quick else 1
    for part in (one_step, many_groups_one_by_one, a_million_prompts):
        shutil.rmtree(asked.folder, ignore_errors=True)
        try:
            part(asked.folder, shrink)
        finally:
            shutil.rmtree(asked.folder, ignore_errors=True)


def one_step(folder: Path, shrink: int) -> None:
    """1,024 trajectories of 2,048 tokens: 128 prompts x 8, handed in at once, ten times; beside it, one bare write of
    as many bytes with one fsync."""
    groups, length, steps = 128, 2048 // shrink, 10
    prompts = made(groups * 64)
    answers = Answers(8, length)
    seconds = Seconds()
    with opened(folder, prompts) as ledger:
        for step in range(1, steps + 1):
            do_step(ledger, step, groups, answers, seconds, at_once=groups)
            data = os.urandom(folder_size(folder / "rollouts") // step)
            with seconds("bare write of the step's file"):
                Storage(folder).write("bare", data)
    print(f"\n{groups} groups of 8 responses of {length} tokens, a step; {steps} steps:\n")
    show(seconds)


def many_groups_one_by_one(folder: Path, shrink: int) -> None:
    """The same step, each of its groups handed in by itself."""
    groups, length = max(8, 128 // shrink), 2048 // shrink
    seconds = Seconds()
    with opened(folder, made(groups * 64)) as ledger:
        for step in (1, 2):
            do_step(ledger, step, groups, Answers(8, length), seconds, at_once=1)
    print("\nThe same, each group handed in by itself:\n")
    show(seconds)


def a_million_prompts(folder: Path, shrink: int) -> None:
    """A million prompts in steps of 512 x 1 response of 8 tokens: what a step costs in each tenth of the run, and what
    the ledger takes at the end."""
    groups, total = 512, 1_000_000 // shrink
    prompts, answers, steps = made(total), Answers(1, 8), total // groups
    print(f"\n{steps * groups:,} prompts in {steps:,} steps of {groups}:\n")
    print("| steps | lease, s | append, s | commit, s | manifest, bytes | files in ledger/ | peak memory, MiB |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    with opened(folder, prompts) as ledger:
        tenth = max(1, steps // 10)
        for first in range(1, steps + 1, tenth):
            seconds, last = Seconds(), min(first + tenth, steps + 1) - 1
            for step in range(first, last + 1):
                do_step(ledger, step, groups, answers, seconds, at_once=groups)
            cells = [f"{statistics.median(seconds.taken[what]):.4f}" for what in ("lease", "append", "commit")]
            [manifest] = (folder / "ledger").glob("manifest-*")
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
            counted = (manifest.stat().st_size, len(list((folder / "ledger").iterdir())), memory)
            print(f"| {first} to {last} | {' | '.join(cells)} | {' | '.join(map(str, counted))} |", flush=True)
    questions(folder, prompts)


def questions(folder: Path, prompts: list[Prompt]) -> None:
    """Opening that run again, and asking about it."""
    storage, seconds = Storage(folder), Seconds()
    with seconds("a cursor over the prompts (for comparison)"):
        cursor = PromptCursor(prompts, 0)
    [(_, asked)] = cursor.draw(1)
    with seconds("open the ledger again"):
        Ledger(storage, cursor, ["right"], 600.0).close()
    for again in ("the first time, which makes the index", "again"):
        with seconds(f"`rlpipe ledger --prompt`, {again}"), history.opened(storage, standing(storage).step) as past:
            assert len(past.of_prompt(asked.prompt_id)) == 1
    print("\nThen:\n")
    show(seconds)


class Answers:
    """Groups with `size` responses of `length` random tokens, no two alike: nothing compresses that would not."""

    def __init__(self, size: int, length: int) -> None:
        self.size, self.length, self.draws = size, length, np.random.default_rng(0)
        self.words = np.array([f"{number:04d} " for number in range(10_000)])
        self.scores = tuple(Score(float(i), {"right": float(i)}) for i in range(size))

    def to(self, group_id: str, prompt: Prompt) -> Group:
        trajectories = tuple(self._response(group_id, prompt, i) for i in range(self.size))
        texts = tuple("".join(self.words[t.response_tokens % 10_000]) for t in trajectories)
        return Group(group_id, prompt, trajectories, texts, self.scores)

    def _response(self, group_id: str, prompt: Prompt, index: int) -> Trajectory:
        tokens = self.draws.integers(0, VOCABULARY, self.length, dtype=np.int32)
        logprobs = -self.draws.exponential(size=self.length).astype(np.float32)
        mask, versions = np.ones(self.length, np.int8), (VersionSpan(0, 0),)
        own = (prompt.tokens, tokens, mask, logprobs, versions, FinishReason.STOP)
        return Trajectory(group_id, prompt.prompt_id, index, *own)


class Seconds:
    """Times by name: on the clock, and of the processor, which other processes do not disturb."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = defaultdict(list)
        self.computed: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str):
        begun, computed = time.perf_counter(), time.process_time()
        yield
        self.taken[name].append(time.perf_counter() - begun)
        self.computed[name].append(time.process_time() - computed)


def do_step(ledger: Ledger, step: int, count: int, answers: Answers, seconds: Seconds, at_once: int) -> None:
    with seconds("lease"):
        leases = ledger.lease(count)
    groups = [answers.to(lease.lease_id, lease.prompt) for lease in leases]
    with seconds("append"):
        for first in range(0, count, at_once):
            ledger.append(groups[first : first + at_once])
    with seconds("take"):
        taken = ledger.take(count)
    advantages = [0.5] * sum(len(group.outcomes) for group in taken)
    with seconds("commit"):
        ledger.commit(step, advantages)


def opened(folder: Path, prompts: list[Prompt]) -> Ledger:
    return Ledger(Storage(folder), PromptCursor(prompts, 0), ["right"], 600.0)


def made(count: int) -> list[Prompt]:
    tokens = np.arange(16, dtype=np.int32)
    return [Prompt(f"train-{i}-0123abcd", tokens, "12+34=", {"answer": "46"}) for i in range(count)]


def folder_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def show(seconds: Seconds) -> None:
    print("| | median, s | longest, s | of the processor, median, s |\n|---|---:|---:|---:|")
    for name, taken in seconds.taken.items():
        computed = statistics.median(seconds.computed[name])
        print(f"| {name} | {statistics.median(taken):.4f} | {max(taken):.4f} | {computed:.4f} |", flush=True)


if __name__ == "__main__":
    main()
