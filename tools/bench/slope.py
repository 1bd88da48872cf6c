"""How time grows with size: straight lines through measured points, by least squares. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

Points = Sequence[tuple[float, float]]  # (size, seconds), sizes ascending

LAST = 3  # points at the large end, where what is paid once no longer hides the growth
STEEPEST = 1.1  # of a growth that counts as linear


@dataclass(frozen=True, slots=True)
class Fit:
    """A growth.

    per_unit : seconds of one more unit of size, of the line through all points that is nearest to them in proportion
    once     : seconds of that line at size 0
    exponent : slope of the line through the logarithms of all points
    at_end   : the same of the last points alone: 1 where growth is linear, 2 where it is quadratic
    """

    per_unit: float
    once: float
    exponent: float
    at_end: float

    @property
    def is_linear(self) -> bool:
        """Whether the time at the large end grows no faster than the size."""
        return self.at_end <= STEEPEST


def fit(points: Points) -> Fit:
    """Fit the lines through at least two points of different sizes."""
    logs = [(log(size), log(seconds)) for size, seconds in points]
    per_unit, once = line(points, [1 / seconds**2 for _, seconds in points])
    return Fit(per_unit, once, line(logs)[0], line(logs[-LAST:])[0])


def line(points: Points, weights: Sequence[float] = ()) -> tuple[float, float]:
    """Give slope and height at 0 of the line with the least sum of squared distances, weighted."""
    weights = weights or [1.0] * len(points)
    total = sum(weights)
    x_mean = sum(w * x for w, (x, _) in zip(weights, points, strict=True)) / total
    y_mean = sum(w * y for w, (_, y) in zip(weights, points, strict=True)) / total
    across = sum(w * (x - x_mean) ** 2 for w, (x, _) in zip(weights, points, strict=True))
    along = sum(w * (x - x_mean) * (y - y_mean) for w, (x, y) in zip(weights, points, strict=True))
    slope = along / across
    return slope, y_mean - slope * x_mean
