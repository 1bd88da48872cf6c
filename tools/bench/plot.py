"""The plot: a picture of SVG, written as text, so that no screen, font or library is needed to make it.

Bars show one figure of every line, with the goal as a stroke; growths are lines over logarithmic axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log10

from bench.goals import MISSED, OTHER, Mark
from bench.report import number
from bench.results import Result

# Which figure of a section is drawn, of lines with that many threads.
BARS = (
    ("decode", "x fill", 1),
    ("decode", "x memcpy", 2),
    ("quantize", "x memcpy", 1),
    ("transcode", "x memcpy", 1),
    ("products", "x NumPy", 1),
    ("integers", "x NumPy", 1),
    ("convert", "x disk", 2),
)
WIDTH, LABELS, ROW, TITLE = 960, 260, 15, 34
BAR_END = WIDTH - 60
COLOURS = {"met": "#2f7d4f", MISSED: "#b8453a", OTHER: "#7d8794", "": "#4a6fa5"}
LINES = ("#4a6fa5", "#b8453a", "#2f7d4f", "#8a5fa8", "#b98224", "#3d8f96", "#7d8794")
PANEL = 300  # height of a growth


def svg(results: Sequence[Result], marks: Sequence[Mark], title: str) -> str:
    """Draw all results that have a place in the plot."""
    drawn: list[str] = []
    y = 30.0
    drawn.append(_text(12, y, title, 15))
    y += 16
    for place, (state, colour) in enumerate(COLOURS.items()):
        drawn.append(_box(LABELS + 150 * place, y - 9, 10, 10, colour))
        drawn.append(_text(LABELS + 150 * place + 15, y, f"goal {state}" if state else "no goal"))
    for section, figure, n_threads in BARS:
        chosen = [r for r in results if (r.section, r.threads) == (section, n_threads) and figure in r.figures]
        if chosen:
            y += TITLE
            drawn.append(_text(12, y, f"{section}, {n_threads} thread{'s' * (n_threads > 1)}: {figure}", 13))
            drawn += _bars(chosen, figure, marks, y + 8)
            y += 8 + ROW * len(chosen)
    for detail in dict.fromkeys(result.detail for result in results if result.points):
        y += TITLE
        drawn.append(_text(12, y, f"growth {detail}: seconds", 13))
        drawn += _growth([result for result in results if result.points and result.detail == detail], y + 10)
        y += PANEL + 20
    size = f'width="{WIDTH}" height="{y + 20:.0f}" viewBox="0 0 {WIDTH} {y + 20:.0f}"'
    style = 'font-family="sans-serif" font-size="11" fill="#22262b"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, _box(0, 0, WIDTH, y + 20, "#ffffff"), *drawn, "</svg>", ""])


def _bars(results: Sequence[Result], figure: str, marks: Sequence[Mark], top: float) -> Iterator[str]:
    """Draw a bar for every line, and its goal."""
    goals = {id(m.result): m for m in marks if m.result is not None and m.goal.figure == figure}
    bounds = [goals[id(r)].goal.bound for r in results if id(r) in goals]
    most = max([*(r.figures[figure] for r in results), *bounds])
    scale = (BAR_END - LABELS) / most if most else 0
    for place, result in enumerate(results):
        y, mark, value = top + ROW * place, goals.get(id(result)), result.figures[figure]
        yield _text(12, y + 10, f"{result.name} {result.detail}")
        yield _box(LABELS, y + 1, value * scale, ROW - 4, COLOURS[mark.state if mark else ""])
        yield _text(LABELS + value * scale + 5, y + 10, number(value))
        if mark:
            x = LABELS + mark.goal.bound * scale
            yield _line([(x, y), (x, y + ROW - 2)], "#22262b")


def _growth(results: Sequence[Result], top: float) -> Iterator[str]:
    """Draw lines over logarithmic axes, with a stroke for every power of ten."""
    low_x, high_x = _powers([size for result in results for size, _ in result.points])
    low_y, high_y = _powers([seconds for result in results for _, seconds in result.points])

    def at(size: float, seconds: float) -> tuple[float, float]:
        across = (log10(size) - low_x) / (high_x - low_x)
        return LABELS + across * (BAR_END - LABELS), top + PANEL * (1 - (log10(seconds) - low_y) / (high_y - low_y))

    for power in range(low_x, high_x + 1):
        x, _ = at(10**power, 10**low_y)
        yield _line([(x, top), (x, top + PANEL)], "#dde1e6")
        yield _text(x - 12, top + PANEL + 14, f"{10.0**power:g}")
    for power in range(low_y, high_y + 1):
        _, y = at(10**low_x, 10**power)
        yield _line([(LABELS, y), (BAR_END, y)], "#dde1e6")
        yield _text(LABELS - 45, y + 4, f"{10.0**power:g}")
    for place, result in enumerate(results):
        colour = LINES[place % len(LINES)]
        yield _line([at(*point) for point in result.points], colour, 1.6)
        yield _box(12, top + 18 * place, 10, 10, colour)
        yield _text(28, top + 18 * place + 9, f"{result.name}, at the end n^{result.figures['at end']:.2f}")


def _powers(values: Sequence[float]) -> tuple[int, int]:
    """Give the powers of ten that hold values between them."""
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return low, max(high, low + 1)


def _text(x: float, y: float, words: str, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{escape(words)}</text>'


def _box(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def _line(points: Sequence[tuple[float, float]], colour: str, width: float = 1) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"/>'
