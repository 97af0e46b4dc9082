"""Weights from GPU to GPU, with processes that only take notes: who is asked what, in which order."""

from types import SimpleNamespace

import pytest
import torch

from rlpipe.pipelines.online.publisher import Publisher
from rlpipe.pipelines.online.sending import FromGpu, NoGpu, Sent
from rlpipe.rollout.carriers import Ipc, Nccl, ObjectStore
from rlpipe.rollout.delivery import Delivered
from rlpipe.rollout.engine import Receipt
from rlpipe.runtime.handle import Within
from rlpipe.runtime.local import LocalHandle, LocalPending
from rlpipe.training.direct import Sender, checksum
from rlpipe.training.distributed import Rank
from rlpipe.weights.direct import Described, Part, Shape, Wire, split
from rlpipe.weights.payload import Exported
from rlpipe.weights.verify import Verification

SOON = Within("publish", 9.0)
SHAPES = tuple(Shape(name, "float32", (3,), 12) for name in "abcde")
PARTS = split(SHAPES, 24)


class Gpu:
    """What lies in the buffer of a rank, for an engine to open."""

    def __init__(self) -> None:
        self.buffer: str | None = None


class FakePolicy:
    """One rank."""

    def __init__(self, name: str, notes: list, gpu: Gpu) -> None:
        self._name, self._notes, self._gpu, self._tokens = name, notes, gpu, {}

    def part(self, index: int, keep: bool) -> Part | None:
        self._notes.append((self._name, "part", index, keep))
        if index >= len(PARTS):
            return None
        if keep:
            self._gpu.buffer = "".join(shape.name for shape in PARTS[index])
        return Part(PARTS[index], {self._name: (index,)} if keep else {})

    def give_way(self) -> None:
        self._notes.append((self._name, "give_way"))
        self._gpu.buffer = None

    def wire_token(self, engine: str) -> str | None:
        return self._tokens.get(engine)

    def open_wire(self, token: str) -> Wire:
        return Wire("10.0.0.1", 1234, token)

    def join(self, engine: str, wire: Wire, workers: int) -> None:
        self._notes.append((self._name, "join", engine, workers))
        self._tokens[engine] = wire.token

    def broadcast(self, engine: str) -> None:
        self._notes.append((self._name, "broadcast", engine))


class FakeEngine:
    """Reads what lies on its GPUs when it is told to."""

    def __init__(self, name: str, notes: list, gpus: dict[str, Gpu]) -> None:
        self._name, self._notes, self._gpus, self._token = name, notes, gpus, None
        self.read: list[str] = []

    def take(self, part: Part) -> None:
        self._notes.append((self._name, "take", "".join(shape.name for shape in part.tensors)))
        if part.handles is not None:
            assert part.handles.keys() == self._gpus.keys(), "a handle for each of its GPUs, and for no other"
            [read] = {gpu.buffer for gpu in self._gpus.values()}
            self.read.append(read)

    def publish(self, version: int, payload: object) -> Receipt:
        self._notes.append((self._name, "publish", version))
        return Receipt(version, None, 0.0)

    def wire_token(self) -> str | None:
        return self._token

    def join(self, wire: Wire) -> None:
        self._notes.append((self._name, "join", wire.address))
        self._token = wire.token


@pytest.fixture
def notes() -> list:
    return []


def run(steps):
    """What comes of a generator of calls, all of which have run."""
    try:
        while True:
            next(steps).result()
    except StopIteration as end:
        return end.value


def colocated(notes, split_model: bool):
    gpus = {f"policy[{i}]": Gpu() for i in range(4)}
    policy = [LocalHandle(name, FakePolicy(name, notes, gpu)) for name, gpu in gpus.items()]
    engines = [
        FakeEngine(f"engine[{i}]", notes, {name: gpus[name] for name in list(gpus)[2 * i : 2 * i + 2]})
        for i in range(2)
    ]
    handles = [LocalHandle(f"engine[{i}]", engine) for i, engine in enumerate(engines)]
    ranks = {"engine[0]": range(2), "engine[1]": range(2, 4)}
    return Ipc(policy, ranks, split_model, SOON), engines, handles


def test_an_engine_opens_the_buffers_of_its_own_ranks_part_by_part(notes):
    carrier, engines, handles = colocated(notes, split_model=False)
    assert run(carrier.hand_over(handles[1], 7)).result().version == 7
    assert engines[1].read == ["ab", "cd", "e"]
    assert [note for note in notes if note[1] != "part"] == [
        ("engine[1]", "take", "ab"), ("engine[1]", "take", "cd"), ("engine[1]", "take", "e"),
        ("policy[2]", "give_way"), ("policy[3]", "give_way"), ("engine[1]", "publish", 7),
    ]  # fmt: skip
    assert {note[0] for note in notes if note[1] == "part"} == {"policy[2]", "policy[3]"}


def test_ranks_that_share_the_model_gather_each_part_for_each_engine_in_the_same_order(notes):
    carrier, engines, handles = colocated(notes, split_model=True)
    deliveries = [carrier.hand_over(handle, 7) for handle in handles]
    while deliveries:  # side by side, as the pool has them
        for delivery in list(deliveries):
            if next(delivery, None) is None:
                deliveries.remove(delivery)
    assert [engine.read for engine in engines] == [["ab", "cd", "e"]] * 2, "no buffer is filled before it is read"
    asked = [[note[2] for note in notes if note[:2] == (f"policy[{i}]", "part")] for i in range(4)]
    assert asked == [[0, 0, 1, 1, 2, 2, 3, 3]] * 4
    left = [note[0] for note in notes if note[1] == "give_way"]
    assert set(left) == {f"policy[{i}]" for i in range(4)} and notes.index((left[0], "give_way")) > max(
        i for i, note in enumerate(notes) if note[1:3] == ("take", "e")
    )
    kept = {(note[0], note[2]) for note in notes if note[1] == "part" and note[3]}
    assert len(kept) == 4 * 4, "each keeps its parts for its own engine"


def test_ranks_that_helped_an_engine_leave_its_gpus_neighbours_too(notes):
    carrier, _, handles = colocated(notes, split_model=True)
    run(carrier.hand_over(handles[1], 7))
    assert [note[0] for note in notes if note[1] == "give_way"] == [f"policy[{i}]" for i in range(4)]


def test_an_engine_that_is_new_meets_rank_0_and_one_that_has_met_it_does_not(notes):
    policy = [LocalHandle(f"policy[{i}]", FakePolicy(f"policy[{i}]", notes, Gpu())) for i in range(2)]
    described = LocalPending(lambda: Described(SHAPES, "sum"), (), {})
    engine = LocalHandle("engine", FakeEngine("engine", notes, {}), lambda: FakeEngine("engine", notes, {}))
    carrier = Nccl(policy, described, 2, SOON)
    sent = [("policy[0]", "broadcast", "engine"), ("policy[1]", "broadcast", "engine"), ("engine", "take", "abcde")]
    met = [("engine", "join", "10.0.0.1"), ("policy[0]", "join", "engine", 2)]
    for version in (1, 2):
        run(carrier.hand_over(engine, version))
    assert notes == [*met, *sent, ("engine", "publish", 1), *sent, ("engine", "publish", 2)]
    notes.clear()
    engine.restart()
    run(carrier.hand_over(engine, 3))
    assert notes == [*met, *sent, ("engine", "publish", 3)]


def test_what_the_policy_raises_is_raised(notes):
    class Failing(FakePolicy):
        def broadcast(self, engine: str) -> None:
            raise RuntimeError("no more memory")

    described = LocalPending(lambda: Described(SHAPES, "sum"), (), {})
    carrier = Nccl([LocalHandle("policy", Failing("policy", notes, Gpu()))], described, 1, SOON)
    steps = carrier.hand_over(LocalHandle("engine", FakeEngine("engine", notes, {})), 1)
    with pytest.raises(RuntimeError, match="no more memory"):
        run(steps)


def test_without_a_gpu_auto_goes_over_host_memory_and_a_wish_is_an_error():
    class OnCpu:
        def on_gpu(self) -> bool:
            return False

    policy, setting = [LocalHandle("policy", OnCpu())], "publishing.transport=nccl"
    assert FromGpu(policy, lambda described: None, lambda: "over host", setting, SOON)() == "over host"
    with pytest.raises(NoGpu, match=f"{setting} sends weights from GPU to GPU, and the policy trains on a CPU"):
        FromGpu(policy, lambda described: None, None, setting, SOON)()


def test_parts_fit_into_the_buffer_and_one_tensor_is_never_cut():
    sizes = [10, 10, 30, 5, 5, 5, 8]
    shapes = tuple(Shape(str(i), "int8", (n,), n) for i, n in enumerate(sizes))
    assert [[s.nbytes for s in group] for group in split(shapes, 20)] == [[10, 10], [30], [5, 5, 5], [8]]
    assert split((), 20) == []


def test_a_description_changes_with_any_weight():
    model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    sender = Sender(Rank(), bucket_bytes=8)
    before = sender.describe(model)
    assert [(s.name, s.dtype, s.shape, s.nbytes) for s in before.tensors] == [
        ("weight", "bfloat16", (2, 3), 12), ("bias", "bfloat16", (2,), 4),
    ]  # fmt: skip
    assert before.nbytes == 16 and sender.describe(model).digest == before.digest
    assert [sender.part(model, i, keep=False).tensors[0].name for i in range(2)] == ["weight", "bias"]
    assert sender.part(model, 2, keep=False) is None
    with torch.no_grad():
        model.weight[1, 1] = torch.nextafter(model.weight[1, 1], torch.tensor(9.0, dtype=torch.bfloat16))
    assert sender.describe(model).digest != before.digest


def test_a_checksum_is_of_the_bits():
    assert checksum(torch.tensor([1, 2, -5], dtype=torch.int32)) == -2
    assert checksum(torch.tensor([1.0])) == 0x3F800000


class NotingPool:
    def __init__(self) -> None:
        self.withdrawn: list[str] = []

    def publish(self, model, what):
        return {"engine": Delivered(Verification(0.0, 0.0, 1e-3, 4), 0.0)}

    def withdraw(self, model):
        self.withdrawn.append(model)


@pytest.mark.parametrize(("carrier", "held"), [(ObjectStore(None, SOON), []), (Nccl([], None, 1, SOON), ["policy"])])
def test_weights_that_lie_in_the_policy_are_not_what_was_published_once_it_learns(carrier, held):
    pool, rank = NotingPool(), LocalHandle("policy[0]", SimpleNamespace(probe=lambda sequences: []))
    exported = LocalPending(lambda: Exported("sum", 12), (), {})
    publisher = Publisher("policy", [rank], lambda: Sent(carrier, exported, []), pool, None, [], 9.0)
    publisher.hold()
    assert pool.withdrawn == [], "nothing is published yet"
    publisher.publish(1)
    publisher.hold()
    assert pool.withdrawn == held
