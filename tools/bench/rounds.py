"""Competitors measured in turns, so that whatever else the machine does meets all of them.

Decides in which order they run and how often. What they do, and what is made of their times, is others' business.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.results import Spread

LEAST, MOST = 3, 25  # rounds
PROBE_ROWS = 256
LONGEST = 0.12  # seconds that one turn may take; whatever is slower works on fewer rows, and is compared by its rate

Clock = Callable[[], float]


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True, slots=True)
class Action:
    """A competitor.

    run     : does one turn; what it returns is let go of after the clock was read
    n_bytes : bytes that its rate is counted by
    before  : makes ready for a turn, untimed
    """

    name: str
    run: Callable[[], object]
    n_bytes: int
    before: Callable[[], object] = nothing


def interleave(
    actions: Sequence[Action], budget: float, least: int = LEAST, most: int = MOST, clock: Clock = time.perf_counter
) -> Mapping[str, Spread]:
    """Run every action once unmeasured, then all of them round by round, each round beginning with another one.

    budget : seconds after which no further round begins, once there were `least`
    """
    for action in actions:
        action.before()
        action.run()
    seconds: dict[str, list[float]] = {action.name: [] for action in actions}
    started = clock()
    for number in range(most):
        if number >= least and clock() - started > budget:
            break
        for action in rotated(actions, number):
            action.before()
            began = clock()
            kept = action.run()
            seconds[action.name].append(clock() - began)
            del kept
    return {action.name: spread(seconds[action.name], action.n_bytes) for action in actions}


def rotated(actions: Sequence[Action], number: int) -> Sequence[Action]:
    """Give the order of a round."""
    first = number % len(actions)
    return [*actions[first:], *actions[:first]]


def spread(seconds: Sequence[float], n_bytes: int = 0) -> Spread:
    """Sum up the times of one competitor."""
    return Spread(median(seconds), min(seconds), max(seconds), len(seconds), n_bytes)


def fitted(
    name: str, make: Callable[[int], Callable[[], object]], n_rows: int, row_bytes: int, clock: Clock = time.perf_counter
) -> Action:
    """Make an action on as many rows as a turn has time for.

    make      : given a number of rows, makes what is run
    row_bytes : that one row is counted by
    """
    n_probe = min(PROBE_ROWS, n_rows)
    probe = make(n_probe)
    probe()
    began = clock()
    probe()
    whole = (clock() - began) * n_rows / n_probe
    while whole > LONGEST and n_rows > n_probe:
        n_rows, whole = n_rows // 2, whole / 2
    return Action(name, make(n_rows), n_rows * row_bytes)


def ratios(spreads: Mapping[str, Spread], against: Mapping[str, str]) -> dict[str, float]:
    """Give how many times as fast one competitor is as another, by "x other".

    against : who is compared, by the other's name; pairs of which one was not measured are left out
    """
    return {
        f"x {other}": spreads[one].gb_per_s / spreads[other].gb_per_s
        for other, one in against.items()
        if one in spreads and other in spreads
    }
