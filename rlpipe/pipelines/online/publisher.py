"""Policy weights to every engine, and the proof that they arrived."""

import time
from collections.abc import Callable, Sequence

from rlpipe.data.flow import Tokens
from rlpipe.pipelines.online.sending import Send
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
        send: Send,
        pool: EnginePool,
        verifier: Verifier,
        probes: list[Tokens],
        seconds: float,
        look: Look = first_ready,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        """`send` makes the weights ready. `look` waits for the policy's ranks; engines generate until these have done
        so. `give_way` is called when they have, before an engine takes them."""
        self._give_way = give_way
        self.version: int | None = None
        """What was published last."""
        self.digest = ""
        """Of its bytes."""
        self._lasts = True
        """Whether an engine that starts later still gets what was published last."""
        self._look = look
        self._model, self._policy, self._send, self._pool = model, policy, send, pool
        self._verifier, self._probes, self._within = verifier, probes, Within("publish", seconds)

    def withdraw(self) -> None:
        """The policy is lost: engines go on with what they have, and one that starts waits for the next `publish`."""
        self._pool.withdraw(self._model)

    def hold(self) -> None:
        """The policy's weights are about to change: where engines get them straight from the policy, one that starts
        now waits for the next `publish`."""
        if not self._lasts:
            self.withdraw()

    def publish(self, version: int) -> dict[str, float]:
        """Returns how many bytes went to each engine, after how many seconds all served them, and the largest
        difference of the probes' log-probabilities over all engines, in nats.

        Raises `WeightSyncError` if an engine does not answer as the trainer does.
        """
        started = time.monotonic()
        sent = self._send()  # nothing is waited for until all is under way
        self._lasts = sent.carrier.lasts
        expected = [rank.call(self._within, Policy.probe, self._probes) for rank in self._policy]
        what = Publication(
            version, sent.carrier, sent.exported, expected[0], self._probes, self._verifier, self._within
        )
        results([*sent.awaited, *expected], self._look)
        self._give_way()
        delivered = self._pool.publish(self._model, what).values()
        self._give_way()  # ranks that a carrier has woken
        self.version, self.digest = version, what.truth[0].digest
        return {
            "publish/bytes": float(what.truth[0].nbytes),
            "publish/seconds": max(engine.at for engine in delivered) - started,
            "probe_difference": max(engine.found.mean_difference for engine in delivered),
            "probe_difference_max": max(engine.found.largest_difference for engine in delivered),
        }
