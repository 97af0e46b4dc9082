"""What the policy has ready for its engines, and on which way they get it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlpipe.rollout.carriers import Carrier, ObjectStore
from rlpipe.runtime.handle import Handle, Pending, Within
from rlpipe.training.policy import Policy
from rlpipe.weights.direct import Described
from rlpipe.weights.payload import Exported


class NoGpu(ValueError):
    """The recipe asks for a way between GPUs, and there are none."""


@dataclass(frozen=True, slots=True)
class Sent:
    """Under way; nothing is waited for yet."""

    carrier: Carrier
    exported: Pending[Exported]
    """Of rank 0: what a receipt must say."""
    awaited: list[Pending[Any]]
    """When these are there, engines can be told."""


Send = Callable[[], Sent]


@dataclass(frozen=True, slots=True)
class OverHost:
    """All weights or an adapter, packed into host memory by rank 0."""

    policy: Sequence[Handle[Policy]]
    within: Within

    def __call__(self) -> Sent:
        # Every rank takes part in gathering; rank 0 holds the payload, which is not waited for: it goes to the engines
        # only.
        exports = [rank.call(self.within, Policy.export) for rank in self.policy]
        exported = self.policy[0].call(self.within, Policy.exported)
        return Sent(ObjectStore(exports[0], self.within), exported, [*exports[1:], exported])


class FromGpu:
    """All weights, from where they lie."""

    def __init__(
        self,
        policy: Sequence[Handle[Policy]],
        carrier: Callable[[Pending[Described]], Carrier],
        otherwise: Send | None,
        setting: str,
        within: Within,
    ) -> None:
        """`otherwise` sends them for a policy that is on no GPU; without it that is an error, which names `setting`."""
        self._policy, self._carrier, self._within = policy, carrier, within
        self._otherwise, self._setting = otherwise, setting
        self._on_gpu: bool | None = None

    def __call__(self) -> Sent:
        """Raises `NoGpu`."""
        if self._on_gpu is None:
            self._on_gpu = self._policy[0].call(self._within, Policy.on_gpu).result()
        if not self._on_gpu:
            return self._without()
        described = [rank.call(self._within, Policy.describe) for rank in self._policy]
        exported = self._policy[0].call(self._within, Policy.exported)
        return Sent(self._carrier(described[0]), exported, [*described, exported])

    def _without(self) -> Sent:
        if self._otherwise is None:
            raise NoGpu(
                f"{self._setting} sends weights from GPU to GPU, and the policy trains on a CPU. Leave "
                "publishing.transport out, or set it to object_store."
            )
        return self._otherwise()
