"""What one measurement gives: who took how long, and the figures made of it.

Knows neither what was measured nor what is wished for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds of one competitor over the rounds, and the bytes that one turn of it is counted by; 0 where none are."""

    median: float
    least: float
    most: float
    n_rounds: int
    n_bytes: int = 0

    @property
    def gb_per_s(self) -> float:
        """Bytes by seconds, in 1e9 a second."""
        return self.n_bytes / 1e9 / self.median


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table.

    section : "decode", "quantize", "transcode", "products", "integers", "convert", "start-up", "growth"
    name    : what of it: a format, a way, a command
    detail  : element type, alignment, unit
    threads : of the library that is measured; peers have one
    figures : by name, with its unit: "GB/s", "s", "MB", "x memcpy"
    spreads : by competitor
    points  : of a growth: (size, seconds)
    """

    section: str
    name: str
    detail: str
    threads: int
    figures: Mapping[str, float]
    spreads: Mapping[str, Spread] = field(default_factory=dict)
    points: tuple[tuple[float, float], ...] = ()
