"""Policy weights to every engine, and the proof that they arrived."""

import time
from collections.abc import Sequence

from rlpipe.data.flow import Tokens
from rlpipe.rollout.delivery import Publication
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Handle, Look, Within, first_ready, results
from rlpipe.training.policy import Policy
from rlpipe.weights.verify import Verifier


class Publisher:
    """Publishes the policy's current weights as one version to all engines of a model."""

    def __init__(
        self,
        model: str,
        policy: Sequence[Handle[Policy]],
        pool: EnginePool,
        verifier: Verifier,
        probes: list[Tokens],
        seconds: float,
        look: Look = first_ready,
    ) -> None:
        """`look` waits for the policy's ranks; engines generate until these have their weights ready."""
        self.version: int | None = None
        """What was published last."""
        self.digest = ""
        """Of its bytes."""
        self._look = look
        self._model, self._policy, self._pool = model, policy, pool
        self._verifier, self._probes, self._within = verifier, probes, Within("publish", seconds)

    def withdraw(self) -> None:
        """The policy is lost: engines go on with what they have, and one that starts waits for the next `publish`."""
        self._pool.withdraw(self._model)

    def publish(self, version: int) -> dict[str, float]:
        """Returns how many bytes went to each engine, after how many seconds all served them, and the largest
        difference of the probes' log-probabilities over all engines, in nats.

        Raises `WeightSyncError` if an engine does not answer as the trainer does.
        """
        started = time.monotonic()
        # Every rank takes part in gathering; rank 0 holds the payload. Nothing is waited for until all is under way.
        exports = [rank.call(self._within, Policy.export) for rank in self._policy]
        expected = [rank.call(self._within, Policy.probe, self._probes) for rank in self._policy]
        sent = self._policy[0].call(self._within, Policy.exported)
        what = Publication(version, exports[0], sent, expected[0], self._probes, self._verifier, self._within)
        results([*exports[1:], sent, *expected], self._look)  # not the payload: that goes to the engines only
        delivered = self._pool.publish(self._model, what).values()
        self.version, self.digest = version, what.truth[0].digest
        return {
            "publish/bytes": float(what.truth[0].nbytes),
            "publish/seconds": max(engine.at for engine in delivered) - started,
            "probe_difference": max(engine.found.mean_difference for engine in delivered),
            "probe_difference_max": max(engine.found.largest_difference for engine in delivered),
        }
