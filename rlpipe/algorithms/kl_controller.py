"""The coefficient of the KL penalty over a run."""

import math
from typing import Protocol


class KlController(Protocol):
    """What the loop asks of a controller: the coefficient to use now, and a place to report what came of it."""

    coefficient: float

    def update(self, kl: float, sequences: int) -> None: ...

    def state(self) -> dict[str, float]: ...

    def load(self, state: dict[str, float]) -> None: ...


class FixedKl:
    """The same coefficient from beginning to end."""

    def __init__(self, coefficient: float) -> None:
        self.coefficient = coefficient

    def update(self, kl: float, sequences: int) -> None:
        """Nothing to do."""

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold: nothing, the recipe says it all."""
        return {}

    def load(self, state: dict[str, float]) -> None:
        """Go on from `state`."""


class AdaptiveKl:
    """A proportional controller in log space (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

        error       = clip( (KL - target) / target, -0.2, 0.2 )
        coefficient = coefficient * (1 + K * error)               K = sequences / horizon

    KL and target are in the same units, in the paper nats per sequence (6 there). The paper's K is 0.1 per update; its
    code has it as the batch's share of a horizon in sequences, so that the speed does not depend on the batch size.
    """

    MAX_ERROR = 0.2

    def __init__(self, coefficient: float, target: float, horizon: float) -> None:
        if target <= 0 or horizon <= 0:
            raise ValueError(f"an adaptive KL needs target and horizon above 0, not target={target}, horizon={horizon}")
        self.coefficient = coefficient
        self._target, self._horizon = target, horizon

    def update(self, kl: float, sequences: int) -> None:
        """The measured KL of the last batch of so many sequences moves the coefficient; none leave it as it is."""
        if sequences == 0:
            return
        if not math.isfinite(kl):
            raise ValueError(f"the KL to the reference is {kl}: log-probabilities of one of the two are off")
        error = max(-self.MAX_ERROR, min(self.MAX_ERROR, kl / self._target - 1))
        # A batch above the horizon counts as one horizon, or the coefficient could turn negative.
        self.coefficient *= 1 + min(1.0, sequences / self._horizon) * error

    def state(self) -> dict[str, float]:
        """What a checkpoint must hold."""
        return {"coefficient": self.coefficient}

    def load(self, state: dict[str, float]) -> None:
        """Go on from `state`."""
        self.coefficient = state["coefficient"]
