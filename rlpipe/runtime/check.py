"""One finding about a machine or a cluster, and how several of them are shown: `rlpipe doctor` and preflight."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Check:
    """One finding. fail: the main path cannot run. warn: it runs, but slower or with less than it could. skip: there
    was nothing to find out, and `detail` says why."""

    name: str
    status: Literal["ok", "warn", "fail", "skip"]
    detail: str
    fix: str = ""


def ok(name: str, detail: str) -> Check:
    return Check(name, "ok", detail)


def warn(name: str, detail: str, fix: str) -> Check:
    return Check(name, "warn", detail, fix)


def fail(name: str, detail: str, fix: str) -> Check:
    return Check(name, "fail", detail, fix)


def skip(name: str, why: str) -> Check:
    return Check(name, "skip", why)


def lines(checks: Sequence[Check]) -> list[str]:
    """Each check in a line, or several where its detail has several, and below it how to mend it."""
    width = max((len(check.name) for check in checks), default=0)
    shown = []
    for check in checks:
        first, *more = check.detail.splitlines() or [""]
        shown.append(f"{check.status:<4}  {check.name:<{width}}  {first}")
        shown += [f"{'':<4}  {'':<{width}}  {line}" for line in more]
        if check.fix:
            shown.append(f"{'':<4}  {'':<{width}}  to mend: {check.fix}")
    return shown
