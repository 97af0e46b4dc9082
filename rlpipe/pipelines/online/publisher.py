"""Policy weights to every engine, and the proof that they arrived."""

import time
from collections.abc import Sequence

from rlpipe.data.flow import Tokens
from rlpipe.rollout.pool import EnginePool
from rlpipe.runtime.handle import Handle, Within, results
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
    ) -> None:
        self._model, self._policy, self._pool = model, policy, pool
        self._verifier, self._probes, self._within = verifier, probes, Within("publish", seconds)

    def publish(self, version: int) -> dict[str, float]:
        """Returns how many bytes went to each engine, after how many seconds all served them, and the largest
        difference of the probes' log-probabilities over all engines, in nats.

        Raises `WeightSyncError` if an engine does not answer as the trainer does.
        """
        started = time.perf_counter()
        # Every rank takes part in gathering; rank 0 holds the payload. Nothing is waited for until all is under way.
        exports = [rank.call(self._within, Policy.export) for rank in self._policy]
        expected = [rank.call(self._within, Policy.probe, self._probes) for rank in self._policy]
        receipts = self._pool.publish(self._model, version, exports[0])
        seconds = time.perf_counter() - started
        answers = self._pool.probe(self._model, self._probes)
        sent = self._policy[0].call(self._within, Policy.exported).result()
        trainer = results(expected)[0]
        checked = [
            self._verifier.check(engine, version, sent.digest, receipts[engine].digest, trainer, answers[engine])
            for engine in receipts
        ]
        return {
            "publish/bytes": float(sent.nbytes),
            "publish/seconds": seconds,
            "probe_difference": max(found.mean_difference for found in checked),
            "probe_difference_max": max(found.largest_difference for found in checked),
        }
