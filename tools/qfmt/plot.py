"""What `qfmt quantize --report --plot` draws: error against bits per weight, each target by its name.

Decides where names stand, so that none covers another: beside its point, or as near as there is room, with a line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.destination import check_paths
from qconvert.survey import Cost

from qformat.errors import UsageError
from qformat.file.hidden import Hidden, explain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
FONT = 7
MARK, GAP = 3.0, 6.0  # points from a mark's centre to its edge, and to its name
PITCH = 1.15  # of the height of a name, from one to the next
STEPS = 80  # of half a line each, that a name may be away from its point

Point = tuple[float, float]
Box = tuple[float, float, float, float]  # left, lower, right and upper edge, in pixels


def check_plots(paths: Sequence[Path], src: Path, force: bool) -> None:
    """Refuse plots that would replace a file, and all where nothing can draw them, before work begins.

    Raises UsageError.
    """
    for number, path in enumerate(paths):
        check_paths([src], path, force)
        if path in paths[:number]:
            raise UsageError("named twice", path=path, field="plot")
    if paths:
        _library()


def draw(costs: Sequence[Cost], paths: Sequence[Path]) -> None:
    """Draw relative error, RMS of the error over that of the weights, against bits per weight. Raises FileError."""
    library = _library()
    measured = [(cost, cost.error) for cost in costs if cost.error is not None and cost.error.sqnr_db < float("inf")]
    figure = library.figure.Figure(figsize=(9, 6), layout="constrained", dpi=DPI)
    axes: Axes = figure.add_subplot(
        title="Error against bits per weight", xlabel="bits per weight", ylabel="relative RMS error"
    )
    axes.set_yscale("log")
    axes.margins(x=0.1)
    axes.grid(True, which="both", alpha=0.3)
    families = list(dict.fromkeys(cost.target.partition(":")[0] for cost, _ in measured))
    for number, family in enumerate(families):
        axes.scatter([], [], color=f"C{number}", label=family)
    if any(cost.unfit for cost, _ in measured):
        axes.scatter([], [], facecolors="none", edgecolors="black", label="some tensors do not fit")
    labels = []
    for cost, error in sorted(measured, key=lambda pair: pair[1].sqnr_db):
        family, _, name = cost.target.partition(":")
        colour, place = f"C{families.index(family)}", (error.bits_per_weight, 10 ** (-error.sqnr_db / 20))
        axes.scatter(*place, facecolors="none" if cost.unfit else colour, edgecolors=colour, s=(2 * MARK) ** 2)
        labels.append((name, place, colour))
    if measured:
        axes.legend()
        figure.draw_without_rendering()  # by which it is known where a point lies, in pixels
        _label(axes, labels)
    for path in paths:
        hidden, kind = Hidden(path), path.suffix[1:].lower()
        metadata = {"Date": None} if kind == "svg" else None  # so that the same figures give the same file
        with explain(path), library.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qfmt"}):
            figure.savefig(hidden.place, format=kind, dpi=DPI, metadata=metadata)
        hidden.commit()


def _label(axes: Axes, labels: Sequence[tuple[str, Point, str]]) -> None:
    """Write names, each with its point and colour, so that none covers another, a mark or the legend."""
    per_point = DPI / 72
    radius, gap = MARK * per_point, GAP * per_point
    marks = [(float(x), float(y)) for x, y in axes.transData.transform([point for _, point, _ in labels])]
    taken: list[Box] = [(x - radius, y - radius, x + radius, y + radius) for x, y in marks]
    legend = axes.get_legend()
    taken += [] if legend is None else [legend.get_window_extent().extents]
    for (name, point, colour), (x, y) in zip(labels, marks, strict=True):
        probe = axes.text(0, 0, name, fontsize=FONT)
        size = probe.get_window_extent()
        width, height = size.width, size.height * PITCH
        probe.remove()
        tried = [_box(x, y, width, height, gap, side, step) for step in _steps() for side in (1, -1)]
        side, step, box = next((each for each in tried if _is_free(each[2], taken, axes.bbox.extents)), tried[0])
        taken.append(box)
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": colour, "shrinkA": 0, "shrinkB": MARK, "relpos": (side < 0, 0.5)}
        shift = (side * GAP, step * height / 2 / per_point)
        said = axes.annotate(
            name, point, shift, textcoords="offset points", fontsize=FONT, va="center", ha="left" if side > 0 else "right",
            arrowprops=line if step else None,
        )  # fmt: skip
        said.set_in_layout(False)


def _steps() -> Iterator[int]:
    """Give how many half lines a name may be above its point, the nearest first: 0, 1, -1, 2, ..."""
    yield 0
    for step in range(1, STEPS):
        yield from (step, -step)


def _box(x: float, y: float, width: float, height: float, gap: float, side: int, step: int) -> tuple[int, int, Box]:
    """Give the box of a name on one side of its point; with side and step."""
    left, middle = x + gap if side > 0 else x - gap - width, y + step * height / 2
    return side, step, (left, middle - height / 2, left + width, middle + height / 2)


def _is_free(box: Box, taken: Sequence[Box], frame: Box) -> bool:
    """Tell whether a box lies in a frame and apart from others."""
    left, lower, right, upper = box
    is_inside = left >= frame[0] and lower >= frame[1] and right <= frame[2] and upper <= frame[3]
    return is_inside and not any(left < o[2] and o[0] < right and lower < o[3] and o[1] < upper for o in taken)


def _library() -> Any:
    """Give the library that draws. Raises UsageError where it is not installed."""
    try:
        import matplotlib.figure
    except ImportError as error:
        raise UsageError("a plot takes matplotlib: pip install 'qfmt[plot]'", field="plot") from error
    return matplotlib
