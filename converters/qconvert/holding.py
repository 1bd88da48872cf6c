"""Which targets hold a checkpoint exactly, and how large it is in each.

A target is out with the first tensor that it does not hold, so the cheapest looks come first: what formats declare, then a
few rows of every tensor, then, for targets that are still in, every value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np

from qconvert.items import Item
from qconvert.naming import as_wanted, family_wanted
from qconvert.planning import settle, traced
from qconvert.targets import Target, packed_targets
from qconvert.verdict import REFUSED, Verdict, judge, same_parts
from qconvert.views import View
from qformat.errors import QFormatError, about
from qformat.formats import Format
from qformat.model import Model
from qformat.rows import rearrange
from qformat.tensor import PackedTensor, format_of

COUNTED = 5  # tensors that a target does not hold: no more are looked for
HEAD_WEIGHTS = 1 << 14  # of a tensor's first rows, which are looked at before all


@dataclass(frozen=True, slots=True)
class Held:
    """What one target can do for a checkpoint.

    n_bytes   : of all tensors in it; 0 where it does not hold them all
    n_refused : tensors that it does not hold, as far as was looked: there may be more
    tensor    : the first of these
    reason    : why it does not
    """

    target: str
    n_bytes: int = 0
    n_refused: int = 0
    tensor: str = ""
    reason: str = ""

    @property
    def is_exact(self) -> bool:
        """Whether the target holds every tensor."""
        return not self.n_refused


def targets_of(model: Model, progress: Callable[[int], None] = lambda n_targets: None) -> list[Held]:
    """Find what every packed target can do for a checkpoint.

    progress : told 1 for each target that is decided
    returns  : those that hold all tensors exactly, the smallest first; then the others
    """
    looks: dict[str, _Looks] = {}
    found = []
    for target in packed_targets():
        family = family_wanted(target, None)
        if family not in looks:
            looks[family] = _Looks(as_wanted(model, target))
        found.append(looks[family].held(target))
        progress(1)
    return sorted(found, key=lambda held: (held.n_refused, held.n_bytes))


class _Looks:
    """A checkpoint under the names of one family, and what was seen of it: no tensor is looked at twice for one format."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.tensors = dict(view.model.items())
        self.heads = {name: head(tensor) for name, tensor in self.tensors.items()}
        self.seen: dict[tuple[object, ...], Verdict] = {}

    def held(self, target: Target) -> Held:
        """Look at all tensors for one target: at their heads, then, unless some are refused by these, at every value."""
        out = list(islice((item for item in self.items(target, self.judge_head) if not item.verdict.is_exact), COUNTED))
        items = []
        for item in () if out else self.items(target, self.judge_whole):
            items.append(item)
            if not item.verdict.is_exact:
                out = [item]
                break
        if out:
            return Held(target.name, 0, len(out), out[0].name, out[0].verdict.reason)
        return Held(target.name, sum(item.n_bytes for item in items))

    def items(self, target: Target, look: Callable[[str, PackedTensor, Format], Verdict]) -> Iterator[Item]:
        """Settle every tensor by what a look says of it."""
        for name, tensor in self.tensors.items():
            with about(self.view.model.path, name):
                item = settle(name, tensor, target, self.view.model.packed_by.get(name, ""), partial(look, name))
                yield traced(item, self.view)

    def judge_head(self, name: str, whole: PackedTensor, form: Format) -> Verdict:
        """Judge a tensor by its first rows; by what formats declare, where no value was at fault for another.

        Whole where it already lies in that format, and where its rows have their parameters otherwise by themselves, so that
        a refusal of these says nothing of it.
        """
        tensor = self.heads[name]
        if same_parts(whole, form):
            return self.judge_whole(name, whole, form)
        found = self.once((format_of(tensor).meaning, form.meaning, tensor.n_cols), name, tensor, form)
        is_told = tensor.scheme == whole.scheme or found.is_exact
        return found if is_told else self.judge_whole(name, whole, form)

    def judge_whole(self, name: str, tensor: PackedTensor, form: Format) -> Verdict:
        """Judge a tensor by every value."""
        return self.once((name, form.meaning), name, tensor, form)

    def once(self, key: tuple[object, ...], name: str, tensor: PackedTensor, form: Format) -> Verdict:
        """Give the verdict that was found, or find it; one that values decide is not for other tensors."""
        found = self.seen.get(key)
        if found is None:
            found = judge(tensor, form)
            if key[0] == name or (found.verdict == REFUSED and found.value is None and found.index is None):
                self.seen[key] = found
        return found


def head(tensor: PackedTensor) -> PackedTensor:
    """See a tensor's first rows; the whole, where rows cannot be told apart."""
    n_rows = min(tensor.n_rows, max(1, HEAD_WEIGHTS // max(1, tensor.n_cols)))
    try:
        return rearrange([tensor], np.arange(n_rows), (n_rows, tensor.n_cols)) if len(tensor.shape) > 1 else tensor
    except QFormatError:
        return tensor
