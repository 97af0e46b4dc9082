"""Are models, files and the run directory there for those who need them, and is there room?"""

import os
from collections.abc import Mapping, Sequence

from rlpipe.data.remote import WORK
from rlpipe.runtime.check import Check, fail, ok, skip, warn
from rlpipe.runtime.preflight.look import Seen
from rlpipe.runtime.preflight.nodes import ClusterNode
from rlpipe.runtime.preflight.wanted import Room

GIB = 2**30
MODELS, FILES, RUN_DIR, DISK = "models", "files", "run directory", "disk"


def check_models(models: Mapping[str, str], here: Mapping[str, str], seen: Mapping[ClusterNode, Seen]) -> Check:
    """The same folder on every node that a role may come to. `here`: what the driver sees."""
    if not models:
        return skip(MODELS, "no model comes from a folder")
    found = [
        f"{key}: {models[key]} {what}"
        for key in models
        for what in [*_unlike(here[key], None, here[key]), *_on_nodes(key, here[key], seen)]
    ]
    if found:
        fix = "put the folder on storage that all nodes see under this path, or copy it to each; or name another in "
        return fail(MODELS, "\n".join(found), fix + ", ".join(models))
    where = f"the same on {len(seen)} nodes" if len(seen) > 1 else "there"
    return ok(MODELS, f"{', '.join(dict.fromkeys(models.values()))}: {where}")


def _on_nodes(key: str, expected: str, seen: Mapping[ClusterNode, Seen]) -> list[str]:
    return [what for node, found in seen.items() for what in _unlike(found.models[key], node, expected)]


def _unlike(found: str, node: ClusterNode | None, expected: str) -> list[str]:
    where = "here, where the driver is" if node is None else f"on {node.name}"
    if found.startswith("no: "):
        return [f"cannot be read {where}: {found.removeprefix('no: ')}"]
    return [f"holds something else {where} than on the driver's node"] if found != expected else []


def check_files(files: Mapping[str, str]) -> Check:
    """What the driver reads itself: data, rewards, templates."""
    problems = [f"{key}: {path}: {why}" for key, path in files.items() if (why := _unopened(path))]
    if problems:
        return fail(FILES, "\n".join(problems), "give the user that runs this the right to read them")
    if not files:
        return skip(FILES, "the recipe names none")
    return ok(FILES, f"{len(files)} that the driver reads can be read")


def _unopened(path: str) -> str:
    try:
        if os.path.isdir(path):
            os.listdir(path)
        else:
            open(path, "rb").close()
    except OSError as error:
        return str(error.strerror)
    return ""


def check_run_dir(
    run_dir: str, copied_to: str | None, driver: str, seen: Mapping[ClusterNode, Seen], arrived: set[str]
) -> Check:
    """`driver`: why the driver cannot write there, if it cannot. `arrived`: the nodes whose files the driver sees."""
    fix = "choose one that every node sees and may write, on shared storage (NFS and the like): --run-dir"
    if copied_to:
        fix = (
            f"checkpoints are written there before they are copied to {copied_to}: set {WORK} on all nodes to a folder "
            "that every node sees and may write"
        )
    if driver:
        return fail(RUN_DIR, f"{run_dir} cannot be written by the driver: {driver}", fix)
    found = [f"{run_dir} {what} on {node.name}" for node, each in seen.items() if (what := _apart(node, each, arrived))]
    if found:
        return fail(RUN_DIR, "\n".join(found), fix)
    shared = f", and shared by {len(seen)} nodes" if seen else ""
    return ok(RUN_DIR, f"{run_dir} can be written{shared}")


def _apart(node: ClusterNode, seen: Seen, arrived: set[str]) -> str:
    if seen.reads:
        return f"does not show what the driver has written there ({seen.reads})"
    if seen.writes:
        return f"cannot be written ({seen.writes})"
    return "" if node.id in arrived else "is another one: the driver does not see what was written there,"


def check_disk(free: int, rooms: Sequence[Room], copied_to: str | None = None) -> Check:
    """`free` bytes, against what is going to be written at least."""
    detail = f"{_gib(free)} free where the run directory is"
    if not rooms:
        return ok(DISK, f"{detail}; how much the run writes is not known")
    most = max(rooms, key=lambda room: room.bytes)
    needs = f"{detail}; at least {_gib(most.bytes)} is going to be written ({most.what})"
    fix = f"make room, {most.less}, or choose another place with {WORK if copied_to else '--run-dir'}"
    if free < max(room.once for room in rooms):
        return fail(DISK, needs, fix)
    return warn(DISK, needs, fix) if free < most.bytes else ok(DISK, needs)


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
