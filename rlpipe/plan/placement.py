"""Which process goes where, as Ray packs a placement group: on as few nodes as there is room on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rlpipe.plan.hardware import Cluster, Node
from rlpipe.plan.roles import Role
from rlpipe.plan.usage import Parts, added, largest, total


@dataclass(frozen=True, slots=True)
class Seat:
    """One process, with every role that lives in it, or beside it on its GPU while the other sleeps."""

    roles: tuple[Role, ...]
    """The host first."""
    index: int
    beside: tuple[Role, ...] = ()
    """Colocated engines."""

    @property
    def host(self) -> Role:
        return self.roles[0]


@dataclass(slots=True)
class Spot:
    """A node while it fills up."""

    node: Node
    free: list[float]
    """Share of each GPU that is not reserved."""
    cpus: float
    gpus: list[list[Seat]]
    """What is on each GPU."""
    seats: list[Seat] = field(default_factory=list)

    def take(self, seat: Seat) -> bool:
        """Put a process here, if there is room."""
        wanted, cpus = seat.host.gpus, seat.host.cpus
        if cpus > self.cpus + 1e-9:
            return False
        chosen = self._room(wanted)
        if chosen is None:
            return False
        for gpu in chosen:
            self.free[gpu] -= min(wanted, 1.0)
            self.gpus[gpu].append(seat)
        self.cpus -= cpus
        self.seats.append(seat)
        return True

    def _room(self, wanted: float) -> list[int] | None:
        """The GPUs that a process gets: whole ones, or the fullest one with the share that it asks for."""
        if wanted < 1:
            fitting = [i for i, free in enumerate(self.free) if free + 1e-9 >= wanted]
            return [] if not wanted else [min(fitting, key=lambda i: self.free[i])] if fitting else None
        whole = [i for i, free in enumerate(self.free) if free >= 1 - 1e-9][: int(wanted)]
        return whole if len(whole) == int(wanted) else None


@dataclass(frozen=True, slots=True)
class Placed:
    """Where everything went."""

    spots: tuple[Spot, ...]
    homeless: tuple[Seat, ...]
    """Processes that no node has room for."""


def seats(roles: Sequence[Role]) -> list[Seat]:
    """The processes of some roles, in the order in which they are reserved."""
    hosted = [role for role in roles if role.shares and role.name != "engine"]
    asleep = [role for role in roles if role.shares and role.name == "engine"]
    found = []
    for host in (role for role in roles if role.shares is None):
        with_it = tuple(role for role in hosted if role.shares == host.name)
        beside = tuple(role for role in asleep if role.shares == host.name)
        found += [Seat((host, *with_it), i, beside) for i in range(host.count)]
    return found


def place(roles: Sequence[Role], cluster: Cluster) -> Placed:
    """Each process on the first node that has room, as Ray's PACK does, whatever order it sees nodes in; of a role that
    is spread, on the node with the fewest of them."""
    spots = tuple(_spot(node) for node in cluster.nodes)
    homeless = [seat for seat in seats(roles) if not any(spot.take(seat) for spot in _tried(seat, spots))]
    return Placed(spots, tuple(homeless))


def _tried(seat: Seat, spots: Sequence[Spot]) -> list[Spot]:
    """Nodes in the order in which a process is tried on them."""
    if not seat.host.spread:
        return list(spots)
    return sorted(spots, key=lambda spot: sum(other.host is seat.host for other in spot.seats))


def _spot(node: Node) -> Spot:
    return Spot(
        node, [1.0] * node.gpus, float("inf") if node.cpus is None else node.cpus, [[] for _ in range(node.gpus)]
    )


def on_gpu(seated: Sequence[Seat]) -> Parts:
    """Bytes by part on one GPU at its fullest moment. Processes do not wait for each other, so their peaks add up."""
    return added(*(largest(_moments(seat)) for seat in seated))


def _moments(seat: Seat) -> Iterator[Parts]:
    """Of a process: each of its roles at work in turn; then what is colocated, while it has made room."""
    resting = [role.usage.idle for role in seat.beside]
    for working in seat.roles:
        others = [role.usage.idle for role in seat.roles if role is not working]
        yield added(working.usage.peak, *others, *resting)
    for generating in seat.beside:
        context = {part: seat.host.usage.peak[part] for part in ("CUDA context",) if part in seat.host.usage.peak}
        yield added(generating.usage.peak, context, *(role.usage.away for role in seat.roles))


def on_host(spot: Spot) -> Parts:
    """Bytes by part in a node's memory at the fullest moment: working, generating, or loading models."""
    working, away, loading = [], [], []
    for seat in spot.seats:
        every = (*seat.roles, *seat.beside)
        guests = [{**role.usage.host, "process": 0} for role in seat.roles[1:]]
        host = [seat.host.usage.host, *guests, *(role.usage.host for role in seat.beside)]
        working += host if seat.host.gpus else [largest(_moments(seat))]
        away += [role.usage.away_host for role in seat.roles] if seat.beside else []
        loading += [{"loading": sum(role.usage.loading for role in every)}]
    processes = {"process": sum(parts.get("process", 0) for parts in working)}
    return largest([added(*working, *away), added(processes, *loading)])


def bytes_free(spot: Spot) -> Iterator[tuple[int, int]]:
    """Of each GPU: which, and how many bytes are left on it; below 0 where it does not hold what is placed there."""
    for i, seated in enumerate(spot.gpus):
        yield i, spot.node.gpu_bytes - total(on_gpu(seated))
