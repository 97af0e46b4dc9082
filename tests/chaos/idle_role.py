"""A role that does nothing: what processes that host roles import is kept small."""

import ray


class Role:
    """Counts its calls, and knows where it is."""

    def __init__(self, *_) -> None:
        self.number = 0

    def count(self) -> int:
        self.number += 1
        return self.number

    def node(self) -> str:
        """The id of the Ray node that this process is on."""
        return ray.get_runtime_context().get_node_id()
