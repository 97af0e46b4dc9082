"""Proof that a publish arrived: by function, and by digest in addition.

The engine answers fixed probe tokens through the forward pass that serves requests, the trainer answers the same ones.
A digest alone would prove only that bytes came, not that they are what the engine samples from: an engine that packs
its weights can receive them all and go on with old ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Logprobs = Sequence[np.ndarray]
"""Per probe sequence, the log-probability of each token after the first."""

AUTO_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05}
"""Two correct implementations differ by about 1e-6 and 5e-3; one tied layer left behind differs by more than 1."""


SHARE_OF_CHANGE = 0.5
"""Where the engines' base is another one than the trainer's: how much of what the trainer's answers changed by theirs
may miss. Those of an adapter that never arrived miss all of it, and twice the adapter as much; the right one on a base
whose 4-bit weights are replaced by the original ones missed 13 to 17 % in tests."""


class WeightSyncError(RuntimeError):
    """An engine does not serve the weights the trainer has."""


@dataclass(frozen=True, slots=True)
class Verification:
    """How far engine and trainer are apart on the probe tokens, in nats."""

    mean_difference: float
    largest_difference: float
    tolerance: float
    tokens: int

    @property
    def passed(self) -> bool:
        # Written so that NaN fails.
        return self.mean_difference <= self.tolerance


def tolerance_for(setting: float | Literal["auto"], dtype: str) -> float:
    """The largest mean absolute difference allowed, from the recipe's setting and the engine's dtype."""
    return AUTO_TOLERANCE[dtype] if setting == "auto" else setting


def compare(trainer: Logprobs, engine: Logprobs, tolerance: float) -> Verification:
    """Absolute differences over all probe tokens. Raises ValueError if the shapes differ."""
    ours, theirs = _flat(trainer), _flat(engine)
    if ours.shape != theirs.shape:
        raise ValueError(f"probes: the trainer answered {ours.size} tokens, the engine {theirs.size}")
    difference = np.abs(ours - theirs)
    return Verification(float(difference.mean()), float(difference.max()), tolerance, difference.size)


class Verifier:
    """Checks every publish of a run and remembers what each engine answered last."""

    def __init__(self, tolerance: float, by_change: bool = False) -> None:
        """`by_change` is for engines that serve an adapter on another base than the trainer's: their answers differ
        from the trainer's from the beginning, so it is the changes since the first publish that must agree."""
        self._tolerance, self._by_change = tolerance, by_change
        self._first: dict[str, _Answer] = {}
        self._last: dict[str, _Answer] = {}

    def check(
        self,
        engine: str,
        version: int,
        sent_digest: str,
        received_digest: str | None,
        trainer: Logprobs,
        answers: Logprobs,
    ) -> Verification:
        """Raises `WeightSyncError` unless `engine` received the bytes that were sent, answers the probes as the
        trainer does, and has changed its answers since the last publish if the trainer has."""
        who = f"{engine}, weight version {version}"
        if received_digest not in (None, sent_digest):
            raise WeightSyncError(
                f"{who}: received bytes with digest {received_digest}, the trainer sent {sent_digest}. "
                "They were damaged or mixed up on the way; nothing this engine generates can be trusted."
            )
        found = compare(trainer, answers, self._tolerance)
        now = _Answer(sent_digest, _flat(trainer), _flat(answers))
        if self._by_change:
            self._check_change(who, self._first.setdefault(engine, now), now)
        elif not found.passed:
            raise WeightSyncError(_mismatch(who, found))
        self._check_moved(who, self._last.get(engine), now)
        self._last[engine] = now
        return found

    def _check_change(self, who: str, first: "_Answer", now: "_Answer") -> None:
        ours, theirs = now.trainer - first.trainer, now.engine - first.engine
        moved, missed = float(np.abs(ours).mean()), float(np.abs(theirs - ours).mean())
        allowed = max(self._tolerance, SHARE_OF_CHANGE * moved)
        if not missed <= allowed:  # NaN fails
            raise WeightSyncError(
                f"{who}: since the first publish the trainer's log-probabilities of the probe tokens changed by "
                f"{moved:.3g} nats in the mean, and the engine's by that with {missed:.3g} missing or too much; "
                f"{allowed:.3g} may be owed to its other base (publishing.base=original). The adapter that it samples "
                "with is not the one that was sent."
            )

    def _check_moved(self, who: str, before: "_Answer | None", now: "_Answer") -> None:
        if before is None or before.digest == now.digest or not np.array_equal(before.engine, now.engine):
            return
        # A step too small to show in the trainer's own answers proves nothing about the engine.
        moved = float(np.abs(now.trainer - before.trainer).mean())
        if moved > self._tolerance / 1000:
            raise WeightSyncError(
                f"{who}: the trainer's weights changed (its probe log-probabilities moved by {moved:.2g} nats in the "
                "mean) and the engine's answers are exactly those of the version before. It received the new weights "
                "and still generates with old ones."
            )


@dataclass(frozen=True, slots=True)
class _Answer:
    digest: str
    trainer: np.ndarray
    engine: np.ndarray


def _flat(logprobs: Logprobs) -> np.ndarray:
    return np.concatenate([np.asarray(sequence, np.float64) for sequence in logprobs])


def _mismatch(who: str, found: Verification) -> str:
    return (
        f"{who}: on {found.tokens} probe tokens the engine's log-probabilities differ from the trainer's by "
        f"{found.mean_difference:.3g} nats in the mean ({found.largest_difference:.3g} at most); publishing.tolerance "
        f"is {found.tolerance:.3g}. The bytes arrived, but the engine generates with other weights than these: samples "
        "would come from a wrong policy. If this is the first publish, check that both sides load the same model in "
        "the same dtype."
    )
