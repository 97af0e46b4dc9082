"""Memory of a process: bytes by part, at the moments that count."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

Parts = dict[str, int]
"""Bytes by what they are for."""


def added(*parts: Mapping[str, int]) -> Parts:
    """The sum, part by part; what is 0 is left out."""
    names = dict.fromkeys(name for one in parts for name in one)
    return {name: total for name in names if (total := sum(one.get(name, 0) for one in parts))}


def total(parts: Mapping[str, int]) -> int:
    return sum(parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Bytes of one process of a role, on its GPU (its device) and in host memory. On a CPU both are one: everything
    stands under `moments`, and `host` is empty."""

    moments: Mapping[str, Parts]
    """On the device, by moment of its work: `backward`, `step`, …"""
    idle: Parts
    """On the device while another role works."""
    away: Parts = field(default_factory=dict)
    """On the device while engines generate on it (placement=colocated)."""
    host: Parts = field(default_factory=dict)
    """In host memory, at the most."""
    away_host: Parts = field(default_factory=dict)
    """In host memory while engines generate on its GPU, in addition."""
    loading: int = 0
    """In host memory while the model is read, before it goes to its GPU."""

    @property
    def fullest(self) -> str:
        """The moment with the most on the device."""
        return max(self.moments, key=lambda moment: total(self.moments[moment]))

    @property
    def peak(self) -> Parts:
        """What is on the device then."""
        return self.moments[self.fullest]


def largest(moments: Iterable[Parts]) -> Parts:
    """The one with the largest sum."""
    return max(moments, key=total)
