"""What the end of a sandboxed program means."""

import signal
from typing import NamedTuple

from rlpipe.rewards.sandbox.watch import Ended

SIGNALS = {
    signal.SIGXCPU: ("deadline", "it used up its seconds of processor time"),
    signal.SIGXFSZ: ("files", "it wrote a larger file than it may"),
    signal.SIGSYS: (
        "forbidden",
        "it made a system call that it may not: network, other processes, the kernel's inner parts",
    ),
}
STOPPED = {
    "deadline": "it did not end in time",
    "memory": "its processes together took more memory than they may",
    "output": "it printed more than it may",
}


class Run(NamedTuple):
    """How a program ended: `kind` is empty if by itself, `exception` if by its own fault, else what it ran into."""

    kind: str
    message: str
    passed: frozenset[int]
    """Indices of the tests that held."""
    out: str


def judge(ended: Ended, nonce: str) -> Run:
    """What its end means, from what stopped it, what it reported and how it exited."""
    lines = [line.split(" ", 3) for line in ended.status.decode(errors="replace").splitlines()]
    passed = frozenset(int(line[2]) for line in lines if line[:2] == ["passed", nonce])
    out = ended.out.decode(errors="replace")
    kind, message = _end(ended, [line for line in lines if line[:2] == ["ended", nonce]], ["started"] in lines)
    return Run(kind, message, passed, out)


def _end(ended: Ended, reports: list[list[str]], started: bool) -> tuple[str, str]:
    if ended.stopped:
        return ended.stopped, STOPPED[ended.stopped]
    last_words = ended.errors.decode(errors="replace").strip()[-300:]
    if not started:
        return "crashed", f"the sandbox did not start (exit status {ended.code}): {last_words}"
    number = -ended.code if ended.code < 0 else ended.code - 128
    killed = number in set(signal.Signals)
    if reports and not killed:
        kind = reports[0][2]
        return ("" if kind == "-" else kind), " ".join(reports[0][3:])
    if killed:
        return SIGNALS.get(number, ("crashed", f"the program died of {signal.Signals(number).name}"))
    return ("exception" if ended.code else ""), f"the program left with status {ended.code}. {last_words}"
