"""Do the nodes have the same software? What one process pickles, another has to read."""

from collections.abc import Iterable, Mapping, Sequence

from rlpipe.runtime.check import Check, fail, ok, warn
from rlpipe.runtime.preflight.nodes import ClusterNode

NAME = "versions"
ABSENT = "absent"
ONLY_OF_ROLES = ("vllm", "deepspeed")
"""What a node needs only if a role may come to be there."""
FIX = (
    "give every node the same environment (one image, or `make setup` on each), and start its Ray again: `ray stop`, "
    "then `ray start`"
)


def check_versions(found: Mapping[ClusterNode, Mapping[str, str]], hosts: Sequence[ClusterNode]) -> Check:
    """`found`: versions by node, as far as they answered. `hosts`: those that roles may come to."""
    first = next(iter(found.values()))
    rows = {package: _row(package, found, hosts) for package in first}
    apart = {package: row for package, row in rows.items() if len({*map(_public, row.values())}) > 1}
    if apart:
        return fail(NAME, "\n".join(["the nodes differ:", *_table(apart, found)]), FIX)
    local = {package: row for package, row in rows.items() if len({*row.values()}) > 1}
    if local:
        return warn(NAME, "\n".join(["the nodes have other builds:", *_table(local, found)]), FIX)
    same = ", ".join(f"{package} {version}" for package, version in first.items() if version != ABSENT)
    return ok(NAME, f"everywhere {same}")


def _row(
    package: str, found: Mapping[ClusterNode, Mapping[str, str]], hosts: Sequence[ClusterNode]
) -> dict[ClusterNode, str]:
    """Version by node, without those that have none and need none."""
    there = {node: versions.get(package, ABSENT) for node, versions in found.items()}
    spare = package in ONLY_OF_ROLES
    return {node: version for node, version in there.items() if not (spare and version == ABSENT and node not in hosts)}


def _public(version: str) -> str:
    """`2.13.0+cpu` and `2.13.0+cu130` are builds of the same code."""
    return version.split("+")[0]


def _table(rows: Mapping[str, Mapping[ClusterNode, str]], nodes: Iterable[ClusterNode]) -> list[str]:
    """A column for each package that differs, a line for each node."""
    cells = [["", *rows], *([node.name, *(row.get(node, "-") for row in rows.values())] for node in nodes)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in cells]
    return [f"  {'  '.join(line)}".rstrip() for line in padded]
