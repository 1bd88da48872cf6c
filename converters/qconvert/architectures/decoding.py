"""A checkpoint whose packed tensors are to be dense, which some architectures lay otherwise."""

from __future__ import annotations

from functools import partial

from qconvert.architectures.architecture import LAYER
from qconvert.architectures.catalogue import config_of, of_config
from qconvert.architectures.config import plain_config
from qconvert.architectures.flipping import flip
from qconvert.architectures.made import Made, view_of
from qconvert.views import Origin, View
from qformat.model import Model
from qformat.tensor import PackedTensor


def as_dense(model: Model) -> View:
    """See a checkpoint as one of dense tensors lies: packed stacks with rows and columns exchanged, where that is so.

    Raises FileError for a config that is no JSON object.
    """
    arch = of_config(plain_config(config_of(model)))
    ends = tuple(tensor.name.partition(LAYER)[2] for tensor in arch.tensors if tensor.flipped) if arch else ()
    flipped = {name for name in model if name.endswith(ends) and not model[name].scheme.is_dense} if ends else set()
    if not flipped:
        return View(model)

    def load(name: str) -> PackedTensor:
        return flip(model[name]) if name in flipped else model[name]

    how = "rows and columns exchanged"
    made = {name: Made(partial(load, name), Origin((name,), how if name in flipped else "")) for name in model}
    return view_of(model, made, model.metadata, model.assets, {})
