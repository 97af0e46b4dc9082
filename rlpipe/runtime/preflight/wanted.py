"""What a run is going to ask of a cluster, as plain values: no recipe and no model is needed to look at it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlpipe.recipe.training import Resources


@dataclass(frozen=True, slots=True)
class Demand:
    """Equal processes of a role."""

    role: str
    count: int
    resources: Resources
    key: str
    """Section of the recipe that says so: `stages.grpo.rollout`."""
    auto_gpus: int = 1
    """GPUs of each where `resources.gpus` is auto and the cluster has any."""
    trains: bool = False
    """Whether its processes talk to each other through torch.distributed."""

    def bundle(self, has_gpus: bool) -> dict[str, float]:
        """What each process reserves."""
        return self.resources.bundle(has_gpus, self.auto_gpus)


@dataclass(frozen=True, slots=True)
class Room:
    """What is written below the run directory, at least."""

    bytes: int
    """All of it that is there at once."""
    once: int
    """The smallest of it that is of use: one checkpoint, or the result."""
    what: str
    """For people: `3 checkpoints of 1.2 GiB and the model`."""
    less: str
    """How the recipe would write less."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Everything that is looked at."""

    moments: Sequence[Sequence[Demand]]
    """What is there at once, one after the other: an offline stage trains, then it evaluates."""
    run_dir: Path
    """Where it is on this machine's disks; of a run in an object store, its work folder."""
    seconds: float
    """For all of it (deadlines.preflight)."""
    models: Mapping[str, str] = field(default_factory=dict)
    """Folders that the roles' processes load from, by recipe key."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What the driver alone reads, by recipe key."""
    rooms: Sequence[Room] = ()
    waits: bool = False
    """Whether the recipe waits for nodes that are to come (deadlines.placement was raised): Ray's autoscalers for
    Kubernetes and clouds tell nobody what they may add."""

    copied_to: str | None = None
    """The object store that what is in `run_dir` is copied to."""

    @property
    def demands(self) -> list[Demand]:
        return [demand for moment in self.moments for demand in moment]
