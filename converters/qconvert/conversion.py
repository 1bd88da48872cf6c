"""Converting a checkpoint: plan, refuse or write, prove, and only then give the file its name.

The one place that joins plan, sinks, run and prove. The source is never written to; a destination appears whole or not at
all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qconvert import opening
from qconvert.containers.shards import NO_LIMITS, Limits
from qconvert.cutting import LEAST_MEMORY, MAX_MEMORY, check_memory
from qconvert.destination import check_beside, check_folder, check_held, check_paths, check_space
from qconvert.items import Plan
from qconvert.naming import AUTO, as_wanted
from qconvert.nearest import advise
from qconvert.planning import make_plan, notices
from qconvert.prove import prove
from qconvert.receipt import Asked, identity, make_receipt, write_receipt
from qconvert.report import Refused, Report, worse
from qconvert.run import held_by_methods, write_items
from qconvert.sinks import open_sink
from qconvert.targets import SAFETENSORS_DENSE, SUFFIXES, Target, find_target
from qconvert.verdict import REQUANTIZE, ROUNDED, same_parts
from qformat.errors import NotExact, UsageError, about
from qformat.file.hidden import Hidden
from qformat.formats.dense import dense
from qformat.model import Model

# Told what is being done ("plan", "write", "prove"), and bytes done and in all.
Progress = Callable[[str, int, int], None]
# Given a plan and its finished files, gives what is still hidden and belongs to them; None where nothing does.
Seal = Callable[[Plan, Model], Hidden | None]


@dataclass(frozen=True, slots=True)
class Writing:
    """How files are written.

    compress   : for `.qfmt`: "none", "scales" or "all"
    force      : whether an existing destination is replaced
    max_memory : bytes that may be held at a time, beyond the mapped source; at least 16 MiB
    workers    : threads; the file never depends on it
    progress   : told stage, bytes done and bytes in all
    limits     : what one of several files may hold

    Raises UsageError for less memory than anything takes.
    """

    compress: str = "none"
    force: bool = False
    max_memory: int = MAX_MEMORY
    workers: int | None = None
    progress: Progress = lambda what, done, total: None
    limits: Limits = NO_LIMITS

    def __post_init__(self) -> None:
        if not isinstance(self.max_memory, int) or self.max_memory < LEAST_MEMORY:
            message = f"{self.max_memory!r} bytes of memory to work in, expected at least {LEAST_MEMORY}"
            raise UsageError(message, expected=LEAST_MEMORY, found=self.max_memory)


def plan(
    src: str | Path,
    to: str,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
    names: str = AUTO,
    like: str | Path | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Plan:
    """Decide what a conversion would do; nothing is written.

    src     : any source of weights
    to      : target, as `qfmt` spells it
    assume, shapes : what the source leaves open: see `opening.open`
    names   : by which tensors go into the target: see `naming.as_wanted`
    like    : a file or folder of the same model, whose names, order and metadata are to be taken
    progress : told "plan", bytes looked at and bytes in all
    returns : per tensor the format it would take and the verdict; keeps the source open

    Raises FileError for a source that cannot be read, UsageError for an unknown target.
    """
    target = find_target(to)
    model = opening.open(src, True, assume, shapes)
    try:
        with opening.opened(like, assume) as reference:
            view = as_wanted(model, target, None, names, reference)
            return advise(make_plan(view, target, counted("plan", model.n_bytes, progress)))
    except BaseException:
        model.close()
        raise


def convert(
    src: str | Path,
    dst: str | Path,
    to: str | None = None,
    allow: str = "exact",
    compress: str = "none",
    force: bool = False,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
    limits: Limits = NO_LIMITS,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
    receipt: str | Path | None = None,
    names: str = AUTO,
    like: str | Path | None = None,
) -> Report:
    """Convert a checkpoint, exactly or not at all.

    src        : any source of weights; never modified
    dst        : file to make, or what the names of several are made from; must not exist unless `force`
    to         : target; by default what the suffix of `dst` says
    allow      : "exact", or the worst verdict that is let pass: "rounded", "requantize"
    receipt    : JSON file of verdicts and digests to write, from which `receipt.check_receipt` derives all anew; must not
                 exist unless `force`
    assume, shapes : what the source leaves open: see `opening.open`
    names      : by which tensors go into the target: see `naming.as_wanted`
    like       : a file or folder of the same model, whose names, order and metadata are to be taken
    compress, force, max_memory, workers, progress, limits : how files are written: see `Writing`

    Raises NotExact, with the report's first refusal, when a tensor's verdict is not allowed; nothing is written then.
    Raises FileError, UsageError as `open` and the writers do.
    """
    target = target_for(Path(dst), to)
    with opening.open(src, True, assume, shapes) as model, opening.opened(like, assume) as reference:
        for one in (model, reference):
            if receipt is not None and one is not None:
                check_beside(files_of(one), Path(receipt), Path(dst), force)
        writing = Writing(compress, force, max_memory, workers, progress, limits)
        is_folder = SUFFIXES.get(Path(dst).suffix.lower()) is None

        def seal(made: Plan, written: Model) -> Hidden | None:
            if receipt is None:
                return None
            asked = Asked(target.name, target.keeps, is_folder, allow, names, tuple(assume), shapes, identity(reference))
            return write_receipt(Path(receipt), make_receipt(asked, made, model, written))

        return convert_model(model, Path(dst), target, writing, allow, names, to is not None, reference, seal)


def convert_model(
    model: Model,
    dst: Path,
    target: Target,
    writing: Writing,
    allow: str = "exact",
    names: str = AUTO,
    is_named: bool = True,
    like: Model | None = None,
    seal: Seal = lambda made, written: None,
) -> Report:
    """Convert an open checkpoint; see `convert`.

    is_named : whether the user asked for the target by name, not by a suffix
    seal     : see `carry_out`
    """
    started = time.monotonic()
    check_early(model, dst, writing)
    if target.is_dense and not is_named:
        refuse_dense(model, target)
    view = as_wanted(model, target, dst, names, like)
    for name, tensor in view.model.items():
        with about(model.path, name):
            check_memory(tensor, writing.max_memory)
    made = make_plan(view, target, counted("plan", model.n_bytes, writing.progress), allow)
    return replace(carry_out(made, dst, writing, allow, seal), seconds=time.monotonic() - started)


def dequantize(
    src: str | Path,
    dst: str | Path,
    dtype: str = "f32",
    force: bool = False,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
    names: str = AUTO,
) -> Report:
    """Decode the packed tensors of a checkpoint; dense ones stay as they are.

    dst   : a .qfmt, .gguf or .safetensors file; with no such suffix a folder with a safetensors file
    dtype : "f32", "f16" or "bf16", to which decoded weights are rounded once
    assume, shapes : what the source leaves open: see `opening.open`
    names : by which tensors go into the target: see `naming.as_wanted`

    Raises NotExact for a weight that overflows `dtype`; FileError and UsageError as `convert` does.
    """
    path = Path(dst)
    container = SUFFIXES.get(path.suffix.lower(), "safetensors")
    if container == "qfmt":
        target = replace(find_target("qfmt"), wanted=dense(SAFETENSORS_DENSE[dtype]))
    else:
        target = replace(find_target(f"{container}:{dtype}"), keeps=True)
    with opening.open(src, True, assume, shapes) as model:
        return convert_model(model, path, target, Writing("none", force, max_memory, workers, progress), ROUNDED, names)


def carry_out(
    made: Plan, dst: Path, writing: Writing, allow: str = REQUANTIZE, seal: Seal = lambda made, written: None
) -> Report:
    """Write and prove a plan, unless it holds a verdict worse than `allow`.

    seal : given the proved files before they have their names, writes what is to be named right after them
    """
    started, model = time.monotonic(), made.view.model
    if SUFFIXES.get(dst.suffix.lower(), made.target.container) != made.target.container:
        raise UsageError(f"destination ends in '{dst.suffix}', the target is {made.target.name}", path=dst)
    if any(worse(item.verdict.verdict, allow) for item in made.items):
        made = advise(made, allow)
        refused = tuple(item for item in made.items if worse(item.verdict.verdict, allow))
        raise Refused(Report(made, refused, 0, time.monotonic() - started), model.path)
    held = held_by_methods(made.items)
    for item in made.items:
        if not same_parts(item.tensor, item.form):
            with about(model.path, item.name):
                check_memory(item.tensor, writing.max_memory, item.form, held)
    max_memory = writing.max_memory - held
    check_space(dst, made.n_bytes)
    paths: list[Path] = []
    sealed: Hidden | None = None

    def check(path: Path, names: Collection[str]) -> None:
        check_paths(files_of(model), path, writing.force, bool(names))
        check_held(files_of(model), path, names)
        paths.append(path)

    sink = open_sink(dst, made, writing.compress, writing.limits, check)
    try:
        written_bytes = counted("write", made.n_bytes, writing.progress)
        write_items(made.items, model.path, sink, writing.workers, max_memory, written_bytes)
        model.verify(anew=False)  # what was read was checked meanwhile
        hidden = sink.finish()
        with opening.open(hidden, assume=made.assume, shapes=made.shapes) as written:
            prove(made, written, counted("prove", model.n_bytes, writing.progress), max_memory)
            n_bytes, sealed = written.n_bytes, seal(made, written)
        sink.commit()
        if sealed is not None:
            sealed.commit()
    finally:
        sink.abort()
        if sealed is not None:
            sealed.abort()
    return Report(made, (), n_bytes, time.monotonic() - started, notices(made), tuple(paths))


def target_for(dst: Path, to: str | None) -> Target:
    """Find the target that a destination asks for. Raises UsageError where its suffix says nothing."""
    if to is not None:
        return find_target(to)
    if dst.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot tell the target from '{dst.name}': give --to", path=dst, expected=tuple(SUFFIXES))
    target = find_target(SUFFIXES[dst.suffix.lower()])
    return replace(target, keeps=True)


def check_early(model: Model, dst: Path, writing: Writing) -> None:
    """Refuse a destination before anything is planned, as far as its name is known by then."""
    check_folder(dst)
    if not writing.limits.are_set:
        check_paths(files_of(model), dst, writing.force, dst.suffix.lower() not in SUFFIXES)


def files_of(model: Model) -> tuple[Path, ...]:
    """List what a model is read from, and what lies beside that and belongs to it."""
    return (model.path, *model.files, *model.beside)


def refuse_dense(model: Model, target: Target) -> None:
    """Refuse to turn packed weights into dense ones because of a suffix alone."""
    for name, tensor in model.items():
        if not tensor.scheme.is_dense:
            message = (
                f"{tensor.scheme.name} weights would become dense in {target.name}: name a packed target"
                " (qfmt, gguf) or the dense one with --to, or use qfmt dequantize"
            )
            raise NotExact(message, path=model.path, tensor=name, field="scheme")


def counted(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """Sum up the bytes done and pass them on."""
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(what, min(done, total), total)

    return count
