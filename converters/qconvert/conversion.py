"""Converting a checkpoint: plan, refuse or write, prove, and only then give the file its name.

The one place that joins plan, sinks, run and prove. The source is never written to; a destination appears whole or not at
all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qconvert import opening
from qconvert.containers.shards import NO_LIMITS, Limits
from qconvert.destination import check_folder, check_paths, check_space
from qconvert.planning import Item, Plan, make_plan, notices
from qconvert.prove import prove
from qconvert.run import write_items
from qconvert.sinks import open_sink
from qconvert.targets import SAFETENSORS_DENSE, SUFFIXES, Target, find_target
from qconvert.verdict import ORDER, REQUANTIZE, ROUNDED
from qformat.errors import NotExact, UsageError
from qformat.formats.dense import dense
from qformat.model import Model

ALLOW = ("exact", ROUNDED, REQUANTIZE)
MAX_MEMORY = 1 << 30

# Told what is being done ("plan", "write", "prove"), and bytes done and in all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What a conversion did, or would have done.

    plan     : every tensor's verdict
    refused  : tensors that stand in the way; nothing was written if there are any
    n_bytes  : size of the written file, 0 if none
    seconds  : time taken
    notices  : what a user should hear although nothing was lost
    paths    : the files or the folder that were written, the one to open first
    """

    plan: Plan
    refused: tuple[Item, ...]
    n_bytes: int
    seconds: float
    notices: tuple[str, ...] = ()
    paths: tuple[Path, ...] = ()


def plan(src: str | Path, to: str, assume: Sequence[str] = (), shapes: opening.Shapes = opening.NONE) -> Plan:
    """Decide what a conversion would do; nothing is written.

    src     : any source of weights
    to      : target, as `qfmt` spells it
    assume, shapes : what the source leaves open: see `opening.open`
    returns : per tensor the format it would take and the verdict; keeps the source open

    Raises FileError for a source that cannot be read, UsageError for an unknown target.
    """
    return make_plan(opening.open(src, True, assume, shapes), find_target(to))


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
    after: Callable[[Report], None] = lambda report: None,
    limits: Limits = NO_LIMITS,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
    receipt: Path | None = None,
) -> Report:
    """Convert a checkpoint, exactly or not at all.

    src        : any source of weights; never modified
    dst        : file to make, or what the names of several are made from; must not exist unless `force`
    to         : target; by default what the suffix of `dst` says
    allow      : "exact", or the worst verdict that is let pass: "rounded", "requantize"
    compress   : for `.qfmt`: "none", "scales" or "all"
    max_memory : bytes that may be held at a time, beyond the mapped source
    workers    : threads; the file never depends on it
    progress   : told stage, bytes done and bytes in all
    after      : given the report while the source is still open
    receipt    : file that `after` is going to write, which must be none of the source's
    limits     : what one of several files may hold
    assume, shapes : what the source leaves open: see `opening.open`

    Raises NotExact, with the report's first refusal, when a tensor's verdict is not allowed; nothing is written then.
    Raises FileError, UsageError as `open` and the writers do.
    """
    target = target_for(Path(dst), to)
    with opening.open(src, True, assume, shapes) as model:
        if receipt is not None:
            check_target(model, True, receipt)  # an older receipt may be replaced
        report = convert_model(
            model, Path(dst), target, to is not None, allow, compress, force, max_memory, workers, progress, limits
        )
        after(report)
        return report


def convert_model(
    model: Model,
    dst: Path,
    target: Target,
    is_named: bool,
    allow: str = "exact",
    compress: str = "none",
    force: bool = False,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
    limits: Limits = NO_LIMITS,
) -> Report:
    """Convert an open checkpoint; see `convert`.

    is_named : whether the user asked for the target by name, not by a suffix
    """
    started = time.monotonic()
    check_early(model, force, dst, limits)
    model.verify()
    if target.is_dense and not is_named:
        refuse_dense(model, target)
    made = make_plan(model, target, counted("plan", model.n_bytes, progress))
    report = carry_out(model, made, dst, allow, compress, max_memory, workers, progress, limits, force)
    return replace(report, seconds=time.monotonic() - started)


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
) -> Report:
    """Decode the packed tensors of a checkpoint; dense ones stay as they are.

    dst   : a .qfmt, .gguf or .safetensors file; with no such suffix a folder with a safetensors file
    dtype : "f32", "f16" or "bf16", to which decoded weights are rounded once
    assume, shapes : what the source leaves open: see `opening.open`

    Raises NotExact for a weight that overflows `dtype`; FileError and UsageError as `convert` does.
    """
    path = Path(dst)
    container = SUFFIXES.get(path.suffix.lower(), "safetensors")
    if container == "qfmt":
        target = replace(find_target("qfmt"), wanted=dense(SAFETENSORS_DENSE[dtype]))
    else:
        target = replace(find_target(f"{container}:{dtype}"), keeps=True)
    with opening.open(src, True, assume, shapes) as model:
        return convert_model(model, path, target, True, ROUNDED, "none", force, max_memory, workers, progress)


def carry_out(
    model: Model,
    made: Plan,
    dst: Path,
    allow: str = REQUANTIZE,
    compress: str = "none",
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
    limits: Limits = NO_LIMITS,
    force: bool = False,
) -> Report:
    """Write and prove a plan, unless it holds a verdict worse than `allow`."""
    started = time.monotonic()
    if SUFFIXES.get(dst.suffix.lower(), made.target.container) != made.target.container:
        raise UsageError(f"destination ends in '{dst.suffix}', the target is {made.target.name}", path=dst)
    refused = tuple(item for item in made.items if worse(item.verdict.verdict, allow))
    if refused:
        raise Refused(Report(made, refused, 0, time.monotonic() - started), model.path, allow)
    check_space(dst, made.n_bytes)
    paths: list[Path] = []

    def check(path: Path) -> None:
        check_target(model, force, path)
        paths.append(path)

    sink = open_sink(dst, model, made, compress, limits, check)
    try:
        with ThreadPoolExecutor(max(1, workers or min(4, os.cpu_count() or 1))) as executor:
            write_items(made.items, sink, executor, max_memory, counted("write", made.n_bytes, progress))
        hidden = sink.finish()
        with opening.open(hidden, assume=made.assume, shapes=made.shapes) as written:
            prove(made, written, counted("prove", model.n_bytes, progress))
            n_bytes = written.n_bytes
        sink.commit()
    finally:
        sink.abort()
    return Report(made, (), n_bytes, time.monotonic() - started, notices(model, made), tuple(paths))


class Refused(NotExact):
    """A conversion that was not allowed; carries the report. Its text is the first refusal."""

    def __init__(self, report: Report, path: Path, allow: str) -> None:
        self.report = report
        first = report.refused[0]
        verdict = first.verdict
        more = f" (and {len(report.refused) - 1} more)" if len(report.refused) > 1 else ""
        hint = "" if verdict.verdict == ORDER[-1] else f"; use --allow {verdict.verdict}"
        message = f"{first.source} to {first.target}: {verdict.reason}{hint}{more}"
        super().__init__(message, path=path, tensor=first.name, field=verdict.field, found=verdict.value)


def target_for(dst: Path, to: str | None) -> Target:
    """Find the target that a destination asks for. Raises UsageError where its suffix says nothing."""
    if to is not None:
        return find_target(to)
    if dst.suffix.lower() not in SUFFIXES:
        raise UsageError(f"cannot tell the target from '{dst.name}': give --to", path=dst, expected=tuple(SUFFIXES))
    target = find_target(SUFFIXES[dst.suffix.lower()])
    return replace(target, keeps=True)


def check_early(model: Model, force: bool, dst: Path, limits: Limits) -> None:
    """Refuse a destination before anything is planned, as far as its name is known by then."""
    check_folder(dst)
    if not limits.are_set:
        check_target(model, force, dst)


def check_target(model: Model, force: bool, dst: Path) -> None:
    """Refuse a destination that exists, or that is one of the source's files."""
    for src in (model.path, *model.files):
        check_paths(src, dst, force)


def refuse_dense(model: Model, target: Target) -> None:
    """Refuse to turn packed weights into dense ones because of a suffix alone."""
    for name, tensor in model.items():
        if not tensor.scheme.is_dense:
            message = (
                f"{tensor.scheme.name} weights would become dense in {target.name}: name a packed target"
                " (qfmt, gguf) or the dense one with --to, or use qfmt dequantize"
            )
            raise NotExact(message, path=model.path, tensor=name, field="scheme")


def worse(verdict: str, allow: str) -> bool:
    """Tell whether a verdict is worse than the worst that is allowed. Raises UsageError for an unknown `allow`."""
    if allow not in ALLOW:
        raise UsageError(f"allow '{allow}', expected one of {', '.join(ALLOW)}")
    return ORDER.index(verdict) > ORDER.index(allow)


def counted(what: str, total: int, progress: Progress) -> Callable[[int], None]:
    """Sum up the bytes done and pass them on."""
    done = 0

    def count(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(what, min(done, total), total)

    return count


def describe_item(item: Item) -> dict[str, Any]:
    """Give one tensor's line of a report, as `plan --json` and `convert --json` print it."""
    verdict = item.verdict
    return {
        "name": item.name,
        "shape": list(item.tensor.shape),
        "from": item.source,
        "to": item.target,
        "verdict": verdict.verdict,
        "reason": verdict.reason,
        "field": verdict.field,
        "index": verdict.index,
        "value": verdict.value,
        "n_rounded": verdict.n_rounded,
        "max_rel_error": verdict.max_rel_error,
    }
