"""The processes of a run, as /proc tells them: all below one, and all of its session."""

import os
import re
import signal
from pathlib import Path

PROC = Path("/proc")


def family(leader: int) -> list[int]:
    """The session that the process leads, and all descendants of it. Nothing where there is no /proc."""
    parents, sessions = {}, {}
    for pid in (int(entry.name) for entry in PROC.glob("[0-9]*")):
        stat = _read(PROC / str(pid) / "stat").rpartition(")")[2].split()
        if stat:
            parents[pid], sessions[pid] = int(stat[1]), int(stat[3])
    # By session alone: once the leader has ended, its number may be that of a stranger.
    found = {pid for pid in parents if sessions[pid] == leader}
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return sorted(found)


def peak_bytes(pids: list[int]) -> int:
    """Sum over processes of the most memory that each has held (VmHWM): exact of one, of several an upper bound."""
    found = (re.search(r"^VmHWM:\s+(\d+) kB", _read(PROC / str(pid) / "status"), re.MULTILINE) for pid in pids)
    return sum(int(match[1]) * 1024 for match in found if match)


def end(pids: list[int], how: signal.Signals) -> None:
    """Send a signal to those that are still there."""
    for pid in pids:
        try:
            os.kill(pid, how)
        except (ProcessLookupError, PermissionError):
            continue


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended meanwhile
        return ""
