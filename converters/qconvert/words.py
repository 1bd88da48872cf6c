"""What a user asks for in words: targets, rules and types of tensors, for quantizing.

Knows what words mean, and no model: whether a glob matches a tensor, or a rule fits each, is seen where they are planned.
"""

from __future__ import annotations

from collections.abc import Sequence

from qconvert.mixes import find_mix
from qconvert.targets import SAFETENSORS_DENSE, Target, find_mixed, find_target
from qformat.errors import UsageError
from qformat.formats import Format
from qformat.formats.dense import dense
from qformat.rules import rules


def check_words(to: str, rule: str | None, tensor_types: Sequence[str]) -> None:
    """Look up a target, a rule and types by their names. Raises UsageError for a word that means nothing."""
    target, mix = find_mixed(to)
    types = [form for _, form in (read_override(text, target) for text in tensor_types) if not form.scheme.is_dense]
    known = dict.fromkeys(
        name for form in (*types, *([target.wanted] if target.wanted else target.packed)) for name in rules(form)
    )
    if rule is not None and known and rule not in known:
        of = to if mix is None else f"the types of {to}"
        raise UsageError(f"unknown rule '{rule}' for '{of}': expected one of {', '.join(known)}", field="rule", found=rule)


def read_override(text: str, target: Target) -> tuple[str, Format]:
    """Read "GLOB=TYPE", a type of the target's container or f32, f16, bf16. Raises UsageError for anything else."""
    glob, equals, kind = text.rpartition("=")
    if not (glob and equals and kind):
        raise UsageError(f"tensor type '{text}', expected GLOB=TYPE, as in '*attn_v*=q6_k'", found=text)
    if kind.lower() in SAFETENSORS_DENSE:
        return glob, dense(SAFETENSORS_DENSE[kind.lower()])
    if find_mix(kind.lower()) is not None:
        raise UsageError(f"tensor type '{text}': '{kind}' is a mix of types, expected one type", found=kind)
    form = find_target(f"{target.container}:{kind}").wanted
    if form is None or form.scheme.is_dense:
        raise UsageError(f"tensor type '{text}': '{kind}' is no type to quantize to", found=kind)
    return glob, form
