"""Kills a process that works on a ledger, and checks what it left. Run by test_ledger_crashes.py in a process without
threads, so that each life can be a fork:

    python ledger_crashes.py FOLDER every-operation KIND    dies before each file operation in turn; KIND: kill, power
    python ledger_crashes.py FOLDER random SEED             dies at random moments, again and again; then one finishes

What is checked after each death: `checked`. Prints how many lives there were.
"""

import builtins
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import pandas  # noqa: F401  pyarrow imports it with its first array: once here, not once in every life
from sample_groups import CyclingCursor, answer

from rlpipe.data import storage as storage_module
from rlpipe.data.storage import Storage
from rlpipe.ledger.ledger import Ledger
from rlpipe.observe import rollouts

STEPS, PER_STEP, DEATHS = 2, 4, 8


def opened(folder):
    return Ledger(Storage(folder), CyclingCursor(), ["right"], lease_seconds=60.0)


def work(ledger, say):
    """Steps as the loop has them: groups finish in any order, and some are dropped and replaced."""
    while ledger.step < STEPS:
        step = ledger.step + 1
        answered(ledger, PER_STEP, say)
        groups = taken = ledger.take(PER_STEP)
        if flat := [group.group_id for group in taken if useless(group)]:
            ledger.drop(flat, "no signal")
            answered(ledger, len(flat), say)
            groups = [group for group in taken if not useless(group)] + ledger.take(len(flat))
        ledger.commit(step, [float(step)] * len(groups))
        say("commit", step, [[group.group_id, group.completions[0]] for group in groups])


def useless(group):
    return group.prompt.prompt_id == "p1"


def answered(ledger, count, say):
    leases = ledger.lease(count)
    leases = leases[::2] + leases[1::2]
    for some in (leases[:3], leases[3:]):
        groups = [answer(lease, f"by {os.getpid()}") for lease in some]
        ledger.append(groups)
        for group in groups:
            say("append", group.group_id, group.completions[0])


def life(folder, deadly):
    """A process that works, and a pipe with what was acknowledged to it. `deadly` is called in it first."""
    here, there = os.pipe()
    if (child := os.fork()) == 0:
        os.close(here)
        deadly(folder)
        with opened(folder) as ledger:
            work(ledger, lambda *said: os.write(there, json.dumps(said).encode() + b"\n"))
        os._exit(0)
    os.close(there)
    return child, here


def ended(child, pipe):
    """What was acknowledged, and whether the work was done."""
    said = b""
    while part := os.read(pipe, 1 << 16):
        said += part
    os.close(pipe)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), f"the child ended with {status}, which is neither its work nor the kill"
    return [json.loads(line) for line in said.splitlines()], status == 0


def checked(folder, appended, committed):
    """Nothing acknowledged is lost or changed, nothing is there twice, no prompt is skipped; opening again changes
    nothing."""
    first, second = (frontier(folder) for _ in range(2))
    assert first == second, "opened again, it is the same"
    step, trained, dropped, waiting = first
    done = [pair for groups in trained for pair in groups] + dropped
    there = dict(done) | {group_id: text for group_id, text in waiting if text}
    for group_id, text in appended.items():
        assert there.get(group_id) == text, f"{group_id} was acknowledged and is lost"
    assert {s: trained[s - 1] for s in committed} == committed, "a committed step has changed"
    assert step == len(trained) >= max(committed, default=0)
    prompts = sorted(plain(group_id) for group_id, _ in done + waiting)
    assert len(set(prompts)) == len(prompts), "a prompt is there twice"
    cursor = CyclingCursor()
    assert prompts == sorted(f"e{e}/{p.prompt_id}" for e, p in cursor.draw(len(prompts))), "a prompt is skipped"


def plain(group_id):
    """Epoch and prompt, without the number of the lease."""
    lease, prompt = group_id.split("/")
    return f"{lease.split('r')[0]}/{prompt}"


def frontier(folder):
    """Step, groups trained by step, groups dropped, and what is in flight with its text if it is answered."""
    with opened(folder) as ledger:
        book = ledger._book
        waiting = [(d.lease_id, d.group.completions[0] if d.group else None) for d in book._drawn]
        trained = [[[g.group_id, g.completions[0]] for g in ledger.committed(s)[0]] for s in range(1, ledger.step + 1)]
        rows = [row for s in range(1, ledger.step + 1) for row in rollouts.read(Storage(folder), s)]
        dropped = [(r["group_id"], r["completion"]) for r in rows if r["fate"] == "dropped"]
        assert len(rows) == sum(map(len, trained)) + len(dropped)
        assert rollouts.steps(Storage(folder)) == list(range(1, ledger.step + 1)), (
            "what was not committed is swept away"
        )
        assert sorted(book.segments) == ledger._segments.names()
        assert not list(Path(folder).glob("*/.*.partial"))
        return ledger.step, trained, dropped, waiting


def lived(folder, child, pipe, appended, committed):
    said, finished = ended(child, pipe)
    appended |= {name: what for kind, name, what in said if kind == "append"}
    committed |= {name: what for kind, name, what in said if kind == "commit"}
    checked(folder, appended, committed)
    return finished


class Operations:
    """Dies before file operation number `at`. With `power`, what no fsync has made durable is undone first: files
    are torn, and names of a folder are as they were when it was last synced."""

    def __init__(self, at, power):
        self.at, self.power, self.count = at, power, 0
        self.torn, self.undo = {}, {}

    def install(self, folder):
        self.folder, self.real = str(folder), {name: getattr(os, name) for name in ("fsync", "replace", "link")}
        self.open, self.unlink = builtins.open, os.unlink
        storage_module.open = self.opening
        os.fsync, os.replace, os.link, os.unlink, os.remove = (
            self.fsync, self.replace, self.link, self.unlinking, self.unlinking,
        )  # fmt: skip

    def step(self):
        self.count += 1
        if self.count == self.at:
            if self.power:
                self.lose()
            os.kill(os.getpid(), signal.SIGKILL)

    def opening(self, path, mode="r", **options):
        if "w" in mode:
            self.step()
            self.torn[os.path.realpath(path)] = True
        return self.open(path, mode, **options)

    def fsync(self, handle):
        self.step()
        path = os.readlink(f"/proc/self/fd/{handle}")
        self.torn.pop(path, None)
        self.undo.pop(path, None)

    def replace(self, source, target):
        self.step()
        self.named(target)
        self.real["replace"](source, target)
        self.moved(source, target)

    def link(self, source, target):
        self.step()
        self.real["link"](source, target)
        self.named(target)
        self.moved(source, target)

    def unlinking(self, path):
        self.step()
        stash = f"{self.folder}.lost-{self.count}"
        self.real["link"](path, stash)
        self.unlink(path)
        self.later(path, lambda: os.path.exists(path) or self.real["replace"](stash, path))

    def moved(self, source, target):
        if self.torn.pop(os.path.realpath(source), None):
            self.torn[os.path.realpath(target)] = True

    def named(self, target):
        self.later(target, lambda: os.path.exists(target) and self.unlink(target))

    def later(self, path, undo):
        self.undo.setdefault(os.path.realpath(os.path.dirname(path)), []).append(undo)

    def lose(self):
        for path in [path for path in self.torn if os.path.exists(path)]:
            os.truncate(path, os.path.getsize(path) // 2)
        for each in self.undo.values():
            for undo in reversed(each):
                undo()


def every_operation(base, kind):
    """The number of operations of an undisturbed life, each of which was the last one of another life."""
    os.fsync = lambda handle: None  # a kill does not need it, and for a loss of power `Operations` keeps account
    at, finished = 0, False
    while not finished:
        at += 1
        folder = base / str(at)
        child, pipe = life(folder, Operations(at, kind == "power").install)
        finished = lived(folder, child, pipe, appended := {}, committed := {})
        if not finished and at % 4 == 0:  # and whoever goes on from there comes to the end
            child, pipe = life(folder, lambda folder: None)
            assert lived(folder, child, pipe, appended, committed)
        shutil.rmtree(folder)
    return at


def at_random(base, seed):
    """How many lives ended by a kill while the work went on, before one could finish it."""
    global STEPS
    moments, appended, committed, two_steps = random.Random(seed), {}, {}, STEPS
    STEPS = sys.maxsize  # however fast the machine is, nobody is done before the kill
    for _ in range(DEATHS):
        child, pipe = life(base, lambda folder: None)
        time.sleep(moments.uniform(0.0, 0.15))
        os.kill(child, signal.SIGKILL)
        assert not lived(base, child, pipe, appended, committed)
    STEPS = max(committed, default=0) + two_steps
    child, pipe = life(base, lambda folder: None)
    assert lived(base, child, pipe, appended, committed)
    return DEATHS


if __name__ == "__main__":
    base, what, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    lives = at_random(base, int(how)) if what == "random" else every_operation(base, how)
    print(json.dumps({"lives": lives}), flush=True)
    os._exit(0)  # threads of Arrow, of which the forks have no part, may not end in order
