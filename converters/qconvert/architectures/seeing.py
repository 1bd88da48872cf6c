"""A model by the names of a family, where its architecture is known and all its tensors are there."""

from __future__ import annotations

from qconvert.architectures.backward import as_hf
from qconvert.architectures.catalogue import GGUF, HF, family_of
from qconvert.architectures.decoding import as_dense
from qconvert.architectures.forward import as_gguf
from qconvert.views import View
from qformat.errors import NotExact, QFormatError
from qformat.model import Model


def view(model: Model, family: str, decode: str = "", with_tokenizer: bool = True) -> View:
    """See a model by the names of a family.

    family  : "gguf" or "hf"
    decode  : floats that packed tensors are to be in the end, if they are: in a checkpoint, dense experts may lie the other
              way round, and its config says which floats these are
    with_tokenizer : whether its files or key-values are wanted as well; those of a large vocabulary take seconds
    returns : a view whose tensors are made when they are asked for; where a model is of no known architecture, or
              incomplete, the model as it is, and `missing` says why
    """
    try:
        if family_of(model) == family:
            return as_dense(model) if decode and family == HF else View(model)
        return as_gguf(model, with_tokenizer) if family == GGUF else as_hf(model, decode, with_tokenizer)
    except QFormatError as err:
        return View(model, missing=str(QFormatError(err.message, tensor=err.tensor, field=err.field)))


def whole_view(model: Model, family: str, with_tokenizer: bool = True) -> View:
    """See a model by the names of a family, as `view` does. Raises NotExact where it cannot be said by them."""
    found = view(model, family, with_tokenizer=with_tokenizer)
    if found.missing:
        raise NotExact(f"cannot go by {family} names: {found.missing}", path=model.path, field="names")
    return found
