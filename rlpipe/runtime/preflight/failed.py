"""How a run ends whose cluster cannot run it."""

from rlpipe.runtime.check import Check, lines

PASSING = ("resources", "nodes", "ports", "GPUs", "handshake")
"""Checks that fail where a node is lost or is not there yet. Versions, files and folders stay as they are."""


class PreflightFailed(RuntimeError):
    """The cluster cannot run the recipe; the message has what was seen where, and what to do."""

    def __init__(self, checks: list[Check]) -> None:
        self.failed = [check for check in checks if check.status == "fail"]
        found = "\n".join(f"  {line}" for line in lines(self.failed))
        self.passing = all(check.name in PASSING for check in self.failed)
        """Whether the same may be well later on."""
        super().__init__(f"Preflight found what would stop this run. Nothing has been loaded.\n{found}")
