"""By which names a model goes into a target: its own, or those that a runtime knows.

The one place where a model becomes a view of itself. Which names an architecture has is known to `architectures` alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qconvert import architectures
from qconvert.architectures.catalogue import ARCHITECTURE, CONFIG
from qconvert.like import as_like
from qconvert.targets import SUFFIXES, Target
from qconvert.views import View
from qformat.errors import NotExact, UsageError
from qformat.model import Model

AUTO, OWN, RUNTIME = "auto", "own", "runtime"
NAMES = (AUTO, OWN, RUNTIME)
NO_RUNTIME = "tensor names and metadata are the source's own: no runtime will load this file"
KEPT = "its names are kept, as is asked for"


def as_wanted(model: Model, target: Target, dst: Path | None = None, names: str = AUTO, like: Model | None = None) -> View:
    """See a model by the names that it is to have in a target.

    dst   : destination; a folder if absent, where the target is one of safetensors
    names : "auto": those of the target's runtimes, if these names and this architecture are known; "own": as they are;
            "runtime": those of the target's runtimes, or nothing
    like  : a reference of the same model, whose names, order and metadata are to be taken

    Raises NotExact where "runtime" names cannot be had or the reference is of another model, UsageError for another word and
    for a target that takes nothing of a reference.
    """
    if names not in NAMES:
        raise UsageError(f"names '{names}', expected one of {', '.join(NAMES)}", expected=NAMES)
    view = _seen(model, target, dst, names, like)
    return view if view.model is model else replace(view, source=model)


def _seen(model: Model, target: Target, dst: Path | None, names: str, like: Model | None) -> View:
    wanted = family_wanted(target, dst)
    if names == RUNTIME and not wanted:
        raise NotExact(f"no runtime will load this file: {target.name} in one file has names of its own", path=model.path)
    if like is not None:
        if names == OWN or target.container == "qfmt":
            what = "names 'own'" if names == OWN else "a .qfmt file"
            raise UsageError(f"{what} cannot take the names of '{like.path.name}'", path=model.path, field="like")
        return as_like(model, like, wanted, widens=target.container == "gguf")
    family = architectures.family_of(model)
    decoded = target.wanted.scheme.name if target.wanted is not None and target.is_dense else ""
    if family == wanted and target.is_dense and names != OWN:
        return architectures.view(model, wanted, decoded)
    if not wanted or (family or _by_container(model)) == wanted:
        return View(model)
    view = View(model, missing=KEPT) if names == OWN else architectures.view(model, wanted, decoded)
    if view.missing and names == RUNTIME:
        raise NotExact(f"no runtime will load this file: {view.missing}", path=model.path, field="names")
    return view


def family_wanted(target: Target, dst: Path | None) -> str:
    """Give whose names a target's runtimes know: "gguf", "hf", or of a file that no runtime loads by itself nothing."""
    if target.container != "safetensors":
        return "gguf" if target.container == "gguf" else ""
    return "" if dst is not None and SUFFIXES.get(dst.suffix.lower()) else "hf"


def runtime_of(target: Target, view: View) -> tuple[str, str]:
    """Name the runtime that will load what is written, or say why none will: one of the two is empty."""
    model = view.model
    if view.missing:
        return "", view.missing
    if target.container == "gguf":
        says = any(pair.key == ARCHITECTURE for pair in view.key_values) or ARCHITECTURE in model.metadata
        return ("llama.cpp", "") if says else ("", f"nothing says '{ARCHITECTURE}'")
    if target.container == "safetensors":
        of_model = CONFIG in model.assets
        return (target.dialect.name if target.dialect else "transformers", "") if of_model else ("", f"there is no {CONFIG}")
    return "", "a .qfmt file is for keeping weights"


def _by_container(model: Model) -> str:
    """Give the family of a model whose names tell nothing: that of the file that it came from."""
    return "gguf" if model.recipe is not None and model.recipe.facts["container"] == "gguf" else "hf"
