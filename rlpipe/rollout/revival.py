"""An engine in the place of one that is lost, until it serves what the others serve."""

from collections.abc import Callable
from typing import Literal

from rlpipe.rollout.delivery import Deliverable, Delivered, put_to_sleep
from rlpipe.rollout.worker import RolloutWorker
from rlpipe.runtime.handle import Handle, Within
from rlpipe.runtime.revival import Steps, restarted

Wanted = Deliverable | Literal["later", "asleep"] | None
"""What engines serve: "later" while that is still to come, "asleep" while that is so and their GPUs are others'."""


def serving(engine: Handle[RolloutWorker], published: Callable[[], Wanted], within: Within) -> Steps[Delivered | None]:
    """Restart, weights, proof. `published` is what the engine is to serve at the time of asking; while that is "asleep"
    it is not started, and one that was starting is put to sleep, `within` some time. Returns the proof; None for
    engines to which nothing is published."""
    while published() == "asleep":
        yield None
    yield from restarted(engine)
    served, proof, awake = None, None, True
    # Others may have been published to while this one took its weights.
    while (publication := published()) is not served:
        if isinstance(publication, str):
            if publication == "asleep" and awake:
                yield from put_to_sleep(engine, within)
                awake = False
            yield None
            continue
        awake = True
        try:
            proof = yield from publication.deliver(engine)
        except Exception:
            if published() is publication:
                raise
            continue  # of weights that are not wanted any more
        served = publication
    return proof
