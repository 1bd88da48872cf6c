"""What is wished for, as data, and whether it was had.

A goal names lines of the table by patterns, a figure of theirs, and a bound. Where it is meant for other processors than the
one at hand, the figure is still told, and counts neither as met nor as missed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from fnmatch import fnmatchcase

from bench.results import Result
from bench.slope import STEEPEST

MET, MISSED, OTHER, UNMEASURED = "met", "missed", "not applicable", "not measured"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one figure of some lines.

    names, detail : patterns of the lines' names and details
    threads       : of the lines; 0 for those that tell none
    at_most       : whether the bound is an upper one
    needs         : feature of the processor that the goal is meant for; empty for any
    """

    section: str
    names: tuple[str, ...]
    detail: str
    threads: int
    figure: str
    bound: float
    at_most: bool = False
    needs: str = ""

    @property
    def text(self) -> str:
        """Say what is wished for."""
        on = f", {self.threads} thread{'s' * (self.threads > 1)}" if self.threads else ""
        where = f", on {self.needs}" if self.needs else ""
        detail = f" {self.detail}" if self.detail not in ("*", "") else ""
        sign = "<=" if self.at_most else ">="
        return f"{self.section}{detail}{on}{where}: {self.figure} {sign} {self.bound:g}"


@dataclass(frozen=True, slots=True)
class Mark:
    """What became of a goal on one line; no line where nothing of the goal was measured."""

    goal: Goal
    state: str
    result: Result | None = None
    value: float | None = None


def judge(goals: Sequence[Goal], results: Sequence[Result], features: AbstractSet[str]) -> Iterator[Mark]:
    """Mark every goal on every line that it speaks of, and every pattern that finds no line.

    features : of the processor that was measured on
    """
    for goal in goals:
        for pattern in goal.names:
            found = [result for result in results if _speaks_of(goal, pattern, result)]
            if not found:
                yield Mark(goal, UNMEASURED)
            for result in found:
                value = result.figures[goal.figure]
                is_met = value <= goal.bound if goal.at_most else value >= goal.bound
                state = OTHER if goal.needs and goal.needs not in features else MET if is_met else MISSED
                yield Mark(goal, state, result, value)


def _speaks_of(goal: Goal, pattern: str, result: Result) -> bool:
    return (
        result.section == goal.section
        and result.threads == goal.threads
        and fnmatchcase(result.name, pattern)
        and fnmatchcase(result.detail, goal.detail)
        and goal.figure in result.figures
    )


def gguf(*kinds: str) -> tuple[str, ...]:
    """Name GGUF's types as the table does."""
    return tuple(f"gguf:{kind}" for kind in kinds)


WIDE = "avx512f"
FAST = (
    *("mxfp4", "nf4", "int4_g32", "int4_g128", "int8"),
    *gguf("mxfp4", "q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q4_k", "q5_k", "q6_k", "nvfp4"),
)
SLOWER = gguf("q2_k", "q3_k", "iq4_nl", "iq4_xs", "tq2_0")
GRIDS = gguf("iq1_?", "iq2_*", "iq3_*")
QUICK = ("int4_g128", "mxfp4", "nf4", *gguf("q8_0", "q4_0"))
AT_BYTES = "float32 past 16"

GOALS = (
    *(
        Goal("decode", FAST, dtype, 1, figure, bound, needs=WIDE)
        for dtype in ("float32", "float16", "bfloat16")
        for figure, bound in (("x fill", 0.85), ("x memcpy", 1.6))
    ),
    *(Goal("decode", SLOWER, dtype, 1, "x memcpy", 1.0, needs=WIDE) for dtype in ("float32", "float16", "bfloat16")),
    Goal("decode", FAST, "float32", 2, "x memcpy", 3.0, needs=WIDE),
    Goal("decode", ("*",), AT_BYTES, 1, "x aligned", 0.9),
    Goal("decode", gguf("mxfp4"), "float32", 1, "x ggml", 3.0),
    Goal("decode", gguf("q4_0", "q4_k"), "float32", 1, "x ggml", 2.0),
    Goal("decode", gguf("q5_0", "q6_k"), "float32", 1, "x ggml", 4.0),
    Goal("decode", GRIDS, "float32", 1, "x ggml", 2.0),
    Goal("decode", gguf("*"), "float32", 1, "x ggml", 1.0),
    Goal("decode", ("nf4",), "float32", 1, "x bitsandbytes", 2.0),
    Goal("decode", gguf("*"), "float32", 1, "x gguf-py", 20.0),
    Goal("decode", ("mxfp4", "int4_*"), "float32", 1, "x mlx", 20.0),
    Goal("quantize", QUICK, "float32", 1, "x memcpy", 0.5),
    Goal("quantize", QUICK, "float32", 2, "x memcpy", 1.0),
    Goal("quantize", ("nf4",), "float32", 1, "x bitsandbytes", 50.0),
    Goal("quantize", gguf("q4_0"), "float32", 1, "x ggml", 3.0),
    Goal("quantize", gguf("mxfp4"), "float32", 1, "x ggml", 6.0),
    Goal("quantize", gguf("q8_0"), "float32", 1, "x ggml rows", 1.3),
    Goal("quantize", gguf("q?_k"), "float32", 1, "x ggml", 2.0),
    Goal("transcode", ("*",), "*", 1, "x memcpy", 0.5),
    Goal("products", ("mxfp4", "int4_g128"), "1 row", 1, "x NumPy", 2.3),
    Goal("products", ("int8",), "1 row", 1, "x NumPy", 1.6),
    Goal("products", ("*",), "*", 1, "x NumPy", 1.0),
    Goal("products", ("mxfp4", "int4_g128"), "*", 1, "x mlx", 5.0),
    Goal("integers", ("int8 x int8",), "1 row", 1, "x NumPy", 4.0),
    Goal("convert", ("* to *",), "*", 2, "unproved x disk", 0.8),
    Goal("convert", ("* to *",), "*", 2, "x disk", 0.4),
    Goal("convert", ("verify .qfmt",), "*", 2, "x BLAKE3", 0.8),
    Goal("convert", ("qfmt hash",), "*", 2, "x decode + BLAKE3", 0.8),
    Goal("start-up", ("qfmt --help",), "*", 1, "s", 0.12, at_most=True),
    Goal("start-up", ("qfmt inspect",), "100000 tensors*", 1, "s", 0.5, at_most=True),
    Goal("start-up", ("qfmt inspect",), "[SG]*", 1, "s", 0.2, at_most=True),
    Goal("start-up", ("first kernel",), "warm", 1, "s", 0.5, at_most=True),
    Goal("start-up", ("first kernel",), "cold", 1, "s", 1.5, at_most=True),
    Goal("start-up", ("open .qfmt",), "*", 1, "s", 0.005, at_most=True),
    Goal("start-up", ("open .qfmt",), "*", 1, "MB", 40.0, at_most=True),
    Goal("growth", ("*",), "by *", 0, "at end", STEEPEST, at_most=True),
    Goal("growth", ("*",), "by bytes", 0, "growth MB", 100.0, at_most=True),
)
