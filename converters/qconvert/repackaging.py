"""The same tensors in other files: parts joined, a file divided, a few tensors taken out.

Decides which tensors go and into what container; the rest is a conversion like any other, with its verdicts and its proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qconvert import opening
from qconvert.containers.shards import NO_LIMITS, Limits
from qconvert.conversion import Progress, Writing, convert_model
from qconvert.cutting import MAX_MEMORY
from qconvert.dialects.own import holder, own
from qconvert.naming import OWN
from qconvert.planning import is_chosen
from qconvert.report import Report
from qconvert.targets import SUFFIXES, find_target
from qformat.errors import UsageError
from qformat.model import Model


def repackage(
    src: str | Path,
    dst: str | Path,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    limits: Limits = NO_LIMITS,
    force: bool = False,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
) -> Report:
    """Write the tensors of a checkpoint, or some of them, with its metadata into other files.

    src              : any source of weights; all of its parts are read
    dst              : file, or what the names of several are made from; the source's container, unless its suffix names
                       another
    include, exclude : globs of tensor names
    limits           : what one of several files may hold; without any, one file is written
    assume, shapes   : what the source leaves open: see `opening.open`

    Raises UsageError where no tensor is chosen; NotExact, FileError and UsageError as `convert` does.
    """
    path = Path(dst)
    with opening.open(src, True, assume, shapes) as model:
        container = SUFFIXES.get(path.suffix.lower(), "safetensors" if model.container == "folder" else model.container)
        target = replace(find_target(container), keeps=True)
        if container == "safetensors" and all(tensor.scheme.is_dense or holder(tensor) for _, tensor in model.items()):
            target = replace(target, wanted=None, dialect=own(model.packed_by))
        chosen = choose(model, include, exclude)
        writing = Writing("none", force, max_memory, workers, progress, limits)
        return convert_model(chosen, path, target, writing, names=OWN, is_named=False)


def choose(model: Model, include: Sequence[str], exclude: Sequence[str]) -> Model:
    """Leave out the tensors that are not chosen."""
    names = [name for name in model if is_chosen((name,), include, exclude)]
    if len(model) and not names:
        globs = ", ".join(map(repr, include)) or "every name"
        but = f" but not {', '.join(map(repr, exclude))}" if exclude else ""
        raise UsageError(f"none of {len(model)} tensors is chosen by {globs}{but}", path=model.path, found=0)
    return replace(model, names=names)
