"""Quantizing a checkpoint: which of its tensors, to what, and what it cost.

Plans and measures; which types a mix has is known to `mixes`, how a rule chooses codes to `qformat.rules`, how a plan is
carried out to `conversion`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from qconvert import opening
from qconvert.calibrated import held_by_hessian, hessian_of, knows_none
from qconvert.calibration import Calibration, holds_calibration, open_calibration
from qconvert.containers.gguf_types import STRING, UINT32
from qconvert.containers.gguf_values import KeyValue, key_value
from qconvert.containers.shards import NO_LIMITS, Limits
from qconvert.conversion import Progress, Writing, carry_out, check_early
from qconvert.cutting import MAX_MEMORY, check_memory
from qconvert.digest import digest_file
from qconvert.imatrix import Imatrix, read_imatrix
from qconvert.items import Item, Plan
from qconvert.mixes import Choice, choose, fall_back, file_type_of
from qconvert.naming import AUTO, as_wanted
from qconvert.planning import MIN_MATRIX_RANK, matches, traced
from qconvert.quantized import keep, kept, kept_by_name, quantized
from qconvert.report import Report
from qconvert.roles import traits_of
from qconvert.said import listed, said_next
from qconvert.targets import find_mixed, gguf_type
from qconvert.views import View
from qconvert.wish import Wish, check_method
from qconvert.words import read_override
from qformat.errors import FileError, QFormatError, UsageError, about, show
from qformat.fold import narrower, refold
from qformat.formats import Format
from qformat.methods import RTN
from qformat.methods.quantizing import rule_of
from qformat.rules import ErrorReport, Sums, measure
from qformat.rules.catalogue import find as find_rule
from qformat.tensor import PackedTensor, format_of

QUANTIZATION_VERSION = 2  # of ggml's block types: GGML_QNT_VERSION
LISTED = 5


def quantize(
    src: str | Path,
    dst: str | Path,
    to: str,
    rule: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    compress: str = "none",
    force: bool = False,
    max_memory: int = MAX_MEMORY,
    workers: int | None = None,
    progress: Progress = lambda what, done, total: None,
    tensor_types: Sequence[str] = (),
    imatrix: str | Path | None = None,
    limits: Limits = NO_LIMITS,
    assume: Sequence[str] = (),
    shapes: opening.Shapes = opening.NONE,
    names: str = AUTO,
    method: str = "rtn",
    calibration: str | Path | None = None,
    allow_uncalibrated: bool = False,
    damping: float | None = None,
) -> tuple[Report, dict[str, ErrorReport]]:
    """Quantize the float matrices of a checkpoint; everything else stays as it is.

    to               : target with a packed type, "qfmt:mxfp4", "gguf:q4_k", or a mix of types, "gguf:q4_k_m"
    rule             : how scales and codes are chosen; the format's default if absent
    include, exclude : globs of tensor names, in the target or in the source
    tensor_types     : "GLOB=TYPE", before what the target says; the first that matches counts
    imatrix          : file of importances, for rules that have a use for them
    limits           : what one of several files may hold
    assume, shapes   : what the source leaves open: see `opening.open`
    names            : by which tensors go into the target: see `naming.as_wanted`
    method           : one of `qformat.methods.METHODS`
    calibration      : file of what is known of inputs, by the names of tensors in the source or in the target
    allow_uncalibrated : round what that file does not know to nearest; else it is refused
    damping          : share of the mean diagonal of a Hessian that is added to it, for gptq; the method's own if absent
    returns          : the report, and the error of every quantized tensor, measured on the written file

    Raises NotExact for rows that are no whole blocks; FileError and UsageError as `convert` does.
    """
    started = time.monotonic()
    how = check_method(method, rule, calibration is not None, imatrix is not None, allow_uncalibrated, damping)
    path, (target, mix) = Path(dst), find_mixed(to)
    overrides = [read_override(text, target) for text in tensor_types]
    importances = None if imatrix is None else read_importances(imatrix)
    for file, what in ((imatrix, "importance"), (calibration, "calibration")):
        if file is not None and path.exists() and path.samefile(file):
            raise UsageError(f"destination is the {what} file", path=path)
    with nullcontext() if calibration is None else open_calibration(calibration) as known:
        wish = Wish(target, mix, rule, include, exclude, overrides, importances, how, known, allow_uncalibrated)
        with opening.open(src, True, assume, shapes) as model:
            writing = Writing(compress, force, max_memory, workers, progress, limits)
            check_early(model, path, writing)
            model.verify()
            made = plan_quantize(as_wanted(model, target, path, names), wish)
            check_measuring(made, known, max_memory)
            report = carry_out(made, path, writing)
            report = replace(report, notices=(*report.notices, *said_of(made, wish)))
            chosen = [item for item in made.items if item.rule]
            with opening.open(report.paths[0], shapes=made.shapes) as written:
                errors = {
                    item.name: measured(item.tensor, written[item.name], made.view.names_of(item.name), known)
                    for item in chosen
                }
            return replace(report, seconds=time.monotonic() - started), errors


def read_importances(path: str | Path) -> Imatrix:
    """Read a file of importances. Raises UsageError for one of calibration, and FileError as `read_imatrix` does."""
    try:
        return read_imatrix(path)
    except FileError as err:
        if holds_calibration(path):
            message = "a file of calibration, expected one of importance: give it as --calibration, with --method"
            raise UsageError(message, path=path, field="imatrix") from err
        raise


def check_measuring(made: Plan, calibration: Calibration | None, max_memory: int) -> None:
    """Refuse Hessians by which errors of outputs are measured, where one takes more memory than there may be.

    Raises UsageError saying how much is needed.
    """
    for item in made.items:
        n_held = held_by_hessian(made.view.names_of(item.name), calibration, item.tensor) if item.rule else 0
        if n_held:
            with about(made.view.model.path, item.name):
                check_memory(item.tensor, max_memory, item.form, n_held)


def measured(
    source: PackedTensor, written: PackedTensor, names: Sequence[str] = (), calibration: Calibration | None = None
) -> ErrorReport:
    """Measure the error of a written tensor against its source, tile by tile; of outputs too, where inputs are known.

    names : by which they may be
    """
    hessian = hessian_of(names, calibration, source)
    total, seen = Sums(), source if hessian is not None else narrower(source, format_of(written))
    made = written if seen is source else refold(written, (seen.n_rows, seen.n_cols))
    for tile in seen.tiles():
        rows = slice(*tile)
        total += measure(seen.dequantize(rows=rows), made.dequantize(rows=rows), hessian)
    return total.report(written.bits_per_weight)


def plan_quantize(view: View, wish: Wish) -> Plan:
    """Plan to quantize the float matrices of a model; whatever else it holds stays as it is.

    Raises UsageError where the target names no packed format, a rule does not exist, a glob of the overrides matches nothing
    that is quantized, an importance has not the columns of its tensor, and as `check_calibrated` does.
    """
    form, mix, model = wish.target.wanted, wish.mix, view.model
    if mix is None and (form is None or form.scheme.is_dense):
        name = wish.target.name
        way = "" if wish.target.dialect is None else f"; quantize to one, as to qfmt:int4-g128, and convert to {name}"
        message = f"target '{name}' names no packed type to quantize to{way}"
        raise UsageError(message, expected="e.g. qfmt:mxfp4, gguf:q4_0, gguf:q4_k_m")
    if form is not None:
        rule_of(wish.method, form, wish.rule)
    types = choose_types(view, wish)
    items = []
    for name, tensor in model.items():
        try:
            own = view.names_of(name)
            reason = kept(own, tensor, wish)
            item = keep(name, tensor, wish, reason) if reason else quantized(own, tensor, *types[name], wish)
            items.append(traced(item, view))
        except QFormatError as err:
            err.tensor, err.path = err.tensor or name, err.path or str(model.path)
            raise
    for glob in (*(glob for glob, _ in wish.overrides), *wish.include):
        if not any(matches(view.names_of(name), glob) for name in types):
            message = f"no tensor to quantize matches '{glob}', of {len(types)}; a glob covers the whole name: '*attn_v*'"
            raise UsageError(message, path=model.path, found=glob)
    if not any(item.rule for item in items):
        return Plan(wish.target, tuple(items), view)
    check_calibrated(wish, items, model.path)
    is_gguf = wish.target.container == "gguf"
    of_imatrix = said_by_imatrix(wish.imatrix) if is_gguf and wish.imatrix is not None else []
    said, unsaid = said_next(view, items, [*of_imatrix, *said_by_method(wish, items)])
    return Plan(wish.target, tuple(items), view, (*(said_by_file(wish) if is_gguf else ()), *said), unsaid)


def choose_types(view: View, wish: Wish) -> dict[str, tuple[Format, str]]:
    """Choose a format for every matrix of a model that may be quantized, whatever its element type, and say why.

    Of a GGUF, only what llama.cpp's own tools would quantize. Reasons name the row of the mix, the fall-back, the override.
    """
    shapes = {name: tensor.shape for name, tensor in view.model.items()}
    own = {name: shape for name, shape in shapes.items() if len(shape) >= MIN_MATRIX_RANK and not kept_by_name(name, wish)}
    types: dict[str, tuple[Format, str]] = {}
    if wish.mix is not None:
        choices = choose(wish.mix, own, traits_of(view.model.metadata, shapes), wish.imatrix is not None)
        types = {name: (gguf_type(choice.kind), choice.reason) for name, choice in choices.items()}
    elif wish.target.wanted is not None:
        types = dict.fromkeys(own, (wish.target.wanted, f"as {wish.target.name} says"))
    for name in own:
        glob, form = next((pair for pair in wish.overrides if matches(view.names_of(name), pair[0])), ("", None))
        if form is not None:
            types[name] = form, f"as '{glob}' says"
            if wish.mix is not None and not form.scheme.is_dense:
                choice = fall_back(Choice(form.name, types[name][1]), own[name][-1])
                types[name] = gguf_type(choice.kind), choice.reason
    return types


def said_by_file(wish: Wish) -> list[KeyValue]:
    """Give the key-values by which a GGUF file says what its types are, as llama-quantize records them."""
    form = wish.target.wanted
    kind = wish.mix.file_type if wish.mix else file_type_of(form.name) if form else None
    pairs = [key_value("general.quantization_version", UINT32, QUANTIZATION_VERSION)]
    return pairs if kind is None else [*pairs, key_value("general.file_type", UINT32, kind)]


def said_by_imatrix(imatrix: Imatrix) -> list[KeyValue]:
    """Give the key-values by which a GGUF file says whose importance it was quantized by, as llama-quantize records them."""
    pairs = [key_value("quantize.imatrix.file", STRING, imatrix.path.name)]
    pairs += [key_value("quantize.imatrix.dataset", STRING, name) for name in imatrix.datasets[:1]]
    pairs.append(key_value("quantize.imatrix.entries_count", UINT32, len(imatrix.entries)))
    if imatrix.n_chunks:
        pairs.append(key_value("quantize.imatrix.chunks_count", UINT32, imatrix.n_chunks))
    return pairs


def said_by_method(wish: Wish, items: Sequence[Item]) -> list[KeyValue]:
    """Give the key-values that say by which method and calibration tensors were quantized; none for rules alone.

    Those of which nothing was known are there by name, one in a line.
    """
    method, calibration = wish.method, wish.calibration
    if method is RTN:
        return []
    said = {"quantize.method": method.name, "quantize.rule": ", ".join(dict.fromkeys(item.rule for item in items if item.rule))}
    if method.damping is not None:
        said["quantize.damping"] = repr(method.damping)
    if calibration is not None:
        said["quantize.calibration.file"] = calibration.path.name
        said["quantize.calibration.blake3"] = digest_file(calibration.path)
        unknown = uncalibrated(items)
        said |= {"quantize.uncalibrated": listed(unknown)} if unknown else {}
    return [key_value(key, STRING, text) for key, text in said.items()]


def uncalibrated(items: Sequence[Item]) -> list[str]:
    """Name the tensors that are quantized without anything known of their inputs."""
    return [item.name for item in items if item.rule and item.by is None and item.importance is None]


def check_calibrated(wish: Wish, items: Sequence[Item], path: Path) -> None:
    """Refuse a file of calibration that does not know the tensors that are quantized.

    Raises UsageError for tensors that are not in it, unless that is allowed, and for a file that has none of them.
    """
    unknown = uncalibrated(items)
    if wish.calibration is None or not unknown:
        return
    if len(unknown) == sum(bool(item.rule) for item in items):
        raise knows_none(wish.calibration)
    if not wish.allow_uncalibrated:
        them = f"it and {len(unknown) - 1} more" if len(unknown) > 1 else "it"
        way_out = f"--exclude {'it' if len(unknown) == 1 else 'them'}, or --allow-uncalibrated rounds to nearest"
        message = f"{wish.calibration.path.name} has no calibration for {them}: {way_out}"
        raise UsageError(message, path=path, tensor=unknown[0], field="calibration", found=len(unknown))


def said_of(made: Plan, wish: Wish) -> Iterator[str]:
    """Say what a user should hear about what was left alone, and about importance."""
    packed = sum(not item.tensor.scheme.is_dense for item in made.items)
    if packed and not any(item.rule for item in made.items):
        yield f"nothing was quantized: {packed} matrices are packed already; use qfmt dequantize first"
    if wish.mix is not None and wish.mix.wants_importance and wish.imatrix is None:
        yield f"{wish.mix.name} is meant for --imatrix: llama-quantize refuses to make it without"
    if wish.imatrix is not None:
        users = [item for item in made.items if item.rule and find_rule(item.form, item.rule).weighted is not None]
        without = [item.name for item in users if item.importance is None]
        if without:
            more = f" and {len(without) - LISTED} more" if len(without) > LISTED else ""
            listed = ", ".join(show(name, quote=True) for name in without[:LISTED])
            yield f"{wish.imatrix.path.name} has no importance for {len(without)} of {len(users)} tensors: {listed}{more}"
