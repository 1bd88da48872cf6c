"""A model by other names, put together: which names there must be, which tensors a name stands for.

Must not know architectures, nor which way a model is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

from qconvert.views import Origin, View
from qformat.errors import UsageError
from qformat.model import Model
from qformat.tensor import PackedTensor


@dataclass(frozen=True, slots=True)
class Made:
    """A tensor of a view: what makes it, and where it comes from."""

    load: Callable[[], PackedTensor]
    origin: Origin


def check_names(model: Model, what: str, groups: Iterable[tuple[tuple[str, ...], bool]], others: Set[str]) -> None:
    """Refuse a model that lacks a tensor, or has one that nothing is known of.

    what   : the architecture's name, for the message
    groups : names that belong together, and whether a model may be without them
    others : names that do not matter
    """
    known = set(others)
    for names, is_optional in groups:
        known.update(names)
        missing = next((name for name in names if name not in model), None)
        if missing is not None and not (is_optional and not any(name in model for name in names)):
            raise UsageError(f"tensor '{missing}' of {what} is missing")
    stranger = next((name for name in model if name not in known), None)
    if stranger is not None:
        raise UsageError(f"tensor '{stranger}' is none of {what}")


def unwrapped(model: Model, prefixes: Mapping[str, str]) -> tuple[Model, Mapping[str, str]]:
    """See a model that is part of another by the names that it has by itself.

    prefixes : how names begin, and how they do then
    returns  : the model, and its own names by the new ones

    Raises UsageError where two names become one.
    """
    own: dict[str, str] = {}
    for name in model:
        begin = next((begin for begin in prefixes if name.startswith(begin)), "")
        plain = prefixes[begin] + name.removeprefix(begin) if begin else name
        if plain in own:
            raise UsageError(f"tensors '{own[plain]}' and '{name}' are both '{plain}'")
        own[plain] = name
    packed_by = {name: model.packed_by[source] for name, source in own.items() if source in model.packed_by}
    return replace(model, names=own, load=lambda name: model[own[name]], packed_by=packed_by), own


def view_of(
    model: Model,
    made: Mapping[str, Made],
    metadata: Mapping[str, Any],
    assets: Mapping[str, Callable[[], bytes]],
    own: Mapping[str, str],
) -> View:
    """Make the view of a model that has these tensors, metadata and assets.

    own : names that the source has for those that it goes by here, where they differ
    """
    first = {name: next(iter(tensor.origin.names), "") for name, tensor in made.items()}
    packed_by = {name: model.packed_by[source] for name, source in first.items() if source in model.packed_by}
    seen = replace(
        model,
        names=made,
        load=lambda name: made[name].load(),
        read_metadata=lambda: metadata,
        assets=assets,
        read_recipe=lambda: None,
        packed_by=packed_by,
    )
    origins = {name: tensor.origin for name, tensor in made.items()}
    return View(seen, {n: replace(o, names=tuple(own.get(name, name) for name in o.names)) for n, o in origins.items()})
