"""The axis-order notation shared by layouts and tilings.

    h=2 j=16 -> j h

Left of the arrow: the axes of the logical order, slowest first, with their sizes. Right of it: the same axes as they are
stored, slowest first. It decides only how such a line is read; what an axis means is decided by `layout` and `tiling`.

Extras on the stored side, for formats that need them:
    ~h      the axis is stored backwards (the high nibble first)
    n=2@1   a stored axis that is not a logical one: fixed at coordinate 1
    p*36    the axis has this stride, given in bits, instead of the dense one
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from qformat.errors import UsageError

_AXIS = re.compile(r"([a-z][a-z0-9_]*)(?:=(\d+))?")
_STORED = re.compile(r"(~)?([a-z][a-z0-9_]*)(?:=(\d+)@(\d+)|\*(\d+))?")


@dataclass(frozen=True, slots=True)
class Strides:
    """Where the items of a run lie: item (i0, i1, ...) at bit `base + i0*steps[0] + i1*steps[1] + ...`."""

    base: int
    sizes: tuple[int, ...]
    steps: tuple[int, ...]

    def positions(self) -> tuple[int, ...]:
        """List the first bit of every item, in logical order."""
        found = [self.base]
        for n, step in zip(self.sizes, self.steps, strict=True):
            found = [start + i * step for start in found for i in range(n)]
        return tuple(found)


@lru_cache(maxsize=4096)
def strides(order: str, n_items: int, n_bits: int) -> Strides:
    """Read an order into strides.

    order   : the notation above; empty: `n_items` items one after the other
    n_items : what the product of the logical sizes must be
    n_bits  : bits of one item, the stride of the fastest stored axis

    Raises UsageError when the line cannot be read or its sizes do not give `n_items`.
    """
    if not order:
        return Strides(0, (n_items,), (n_bits,))
    logical, arrow, stored = order.partition("->")
    axes = dict(_sized(token, order) for token in logical.split())
    product = 1
    for size in axes.values():
        product *= size
    if not arrow or product != n_items or len(axes) != len(logical.split()):
        raise UsageError(f"axis order '{order}' holds {product} items, expected {n_items}")
    base, step, steps = 0, n_bits, {}
    for token in reversed(stored.split()):
        found = _STORED.fullmatch(token)
        if found is None:
            raise UsageError(f"axis order '{order}': cannot read '{token}'")
        backwards, name, fixed_size, fixed_at, explicit = found.groups()
        if fixed_size is not None:
            base += int(fixed_at) * step
            step *= int(fixed_size)
            continue
        if name not in axes or name in steps:
            raise UsageError(f"axis order '{order}': '{name}' must stand once on each side")
        stride = int(explicit) if explicit else step
        steps[name] = -stride if backwards else stride
        base += (axes[name] - 1) * stride if backwards else 0
        step = step if explicit else step * axes[name]
    if len(steps) != len(axes):
        raise UsageError(f"axis order '{order}': some axes are not stored")
    return Strides(base, tuple(axes.values()), tuple(steps[name] for name in axes))


def _sized(token: str, order: str) -> tuple[str, int]:
    found = _AXIS.fullmatch(token)
    if found is None or found.group(2) is None or int(found.group(2)) < 1:
        raise UsageError(f"axis order '{order}': cannot read '{token}', expected an axis with its size")
    return found.group(1), int(found.group(2))
