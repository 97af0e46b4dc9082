"""How a run ends whose cluster cannot run it."""

from rlpipe.runtime.check import Check, lines


class PreflightFailed(RuntimeError):
    """The cluster cannot run the recipe; the message has what was seen where, and what to do."""

    def __init__(self, checks: list[Check]) -> None:
        self.failed = [check for check in checks if check.status == "fail"]
        found = "\n".join(f"  {line}" for line in lines(self.failed))
        super().__init__(f"Preflight found what would stop this run. Nothing has been loaded.\n{found}")
