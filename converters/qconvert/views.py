"""A checkpoint under other names: what each of its tensors is made of, without a byte being moved.

A view is a model like any other, so that planning, writing and proving need not know of it; what it adds is where each tensor
comes from. Which names and rearrangements an architecture has is decided in `architectures`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from qconvert.containers.gguf_values import KeyValue
from qconvert.verdict import Verdict
from qformat.model import Model


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor of a view comes from.

    names : of the source's tensors that it is made of, in order
    how   : what was done beside renaming: "rows permuted for 9 heads", "rows 0::2", "stack of 32", "+ 1"; empty if nothing
    loss  : gives the verdict `rounded` where undoing it does not give the source's values back; None where it does
    """

    names: tuple[str, ...]
    how: str = ""
    loss: Callable[[], Verdict | None] = lambda: None


@dataclass(frozen=True, slots=True)
class View:
    """A model by other names.

    model      : tensors by the view's names, and the metadata and assets that belong to these
    origins    : of every tensor, by the view's names; empty where the model is as it was
    key_values : what a GGUF file is to say; empty for other containers
    missing    : why the model is as it was: unknown architecture, tensors that are not there; empty where it is complete
    notices    : what a user should hear
    left_out   : the source's tensors that have no place here on purpose: copies, and what a runtime computes by itself
    source     : the model that this is a view of, where its metadata are not those of `model`
    """

    model: Model
    origins: Mapping[str, Origin] = field(default_factory=dict)
    key_values: tuple[KeyValue, ...] = ()
    missing: str = ""
    notices: tuple[str, ...] = ()
    left_out: frozenset[str] = frozenset()
    source: Model | None = None

    def names_of(self, name: str) -> tuple[str, ...]:
        """Give the names by which a user may call a tensor: the view's, and the source's of what it is made of."""
        return (name, *(self.origins[name].names if name in self.origins else ()))
