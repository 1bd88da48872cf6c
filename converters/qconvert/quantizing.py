"""Quantizing a checkpoint: which of its tensors, to what, and what it cost.

Plans and measures; how a rule chooses codes is known to `qformat.rules`, how a plan is carried out to `conversion`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from qconvert import opening
from qconvert.conversion import MAX_MEMORY, Progress, Report, carry_out, check_paths
from qconvert.planning import Item, Plan, can_requantize, decide, is_float_matrix
from qconvert.targets import Target, find_target
from qconvert.verdict import REFUSED, REQUANTIZE, Verdict, row_multiple
from qformat.errors import UsageError
from qformat.model import Model
from qformat.rules import ErrorReport, Sums, measure
from qformat.rules.catalogue import find as find_rule
from qformat.tensor import PackedTensor


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
) -> tuple[Report, dict[str, ErrorReport]]:
    """Quantize the float matrices of a checkpoint; everything else stays as it is.

    to               : target with a packed type: "qfmt:mxfp4", "gguf:q4_0"
    rule             : how scales and codes are chosen; the format's default if absent
    include, exclude : globs of tensor names
    returns          : the report, and the error of every quantized tensor, measured on the written file

    Raises NotExact for rows that are no whole blocks; FileError and UsageError as `convert` does.
    """
    path, target = Path(dst), find_target(to)
    with opening.open(src) as model:
        check_paths(model.path, path, force)
        model.verify()
        made = plan_quantize(model, target, rule, include, exclude)
        report = carry_out(model, made, path, REQUANTIZE, compress, max_memory, workers, progress, force=force)
        chosen = [item for item in made.items if item.rule]
        with opening.open(path) as written:
            return report, {item.name: measured(item.tensor, written[item.name]) for item in chosen}


def measured(source: PackedTensor, written: PackedTensor) -> ErrorReport:
    """Measure the error of a written tensor against its source, tile by tile."""
    total = Sums()
    for tile in source.tiles():
        rows = slice(*tile)
        total += measure(source.dequantize(rows=rows), written.dequantize(rows=rows))
    return total.report(written.bits_per_weight)


def plan_quantize(
    model: Model, target: Target, rule: str | None, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Plan:
    """Plan to quantize the float matrices of a model; whatever else it holds stays as it is.

    rule             : name of a rule of the target's format; its default if absent
    include, exclude : globs of tensor names

    Raises UsageError where the target names no packed format or the rule does not exist.
    """
    form = target.wanted
    if form is None or form.scheme.is_dense:
        raise UsageError(f"target '{target.name}' names no packed type to quantize to", expected="e.g. qfmt:mxfp4, gguf:q4_0")
    chosen = replace(form, rule=find_rule(form, rule).name)
    items = []
    for name, tensor in model.items():
        named = not include or any(fnmatchcase(name, glob) for glob in include)
        if named and not any(fnmatchcase(name, glob) for glob in exclude) and is_float_matrix(tensor):
            verdict = Verdict(REQUANTIZE, f"quantized by rule {chosen.rule}")
            if not can_requantize(tensor, chosen):
                reason = f"rows of {tensor.n_cols} weights, expected a multiple of {row_multiple(form)} ({form.name} block)"
                verdict = Verdict(REFUSED, reason, field="shape", value=float(tensor.n_cols))
            items.append(Item(name, tensor, chosen, verdict, target.container, rule=chosen.rule))
        else:
            items.append(decide(name, tensor, replace(target, wanted=None)))
    return Plan(target, tuple(items))
