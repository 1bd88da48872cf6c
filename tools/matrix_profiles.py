"""What the samples of the matrix are like, as data: codes, scales, what shares them, zero points.

A profile says nothing of formats; whether it says anything of a scheme is read off that scheme's steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from qformat.bits import DTYPES
from qformat.scheme import Indexed, Op, Scheme, refs


@dataclass(frozen=True, slots=True)
class Profile:
    """What the values of a sample are like.

    codes  : numbers around the zero point: "signs" -1 and 1, "ternary" 0 too, "crumbs" -2..1, "nibbles" -8..7, "all" of them
    scales : "half" one half; "powers" of two; "short" of eight significant bits, which float16 and bfloat16 hold; "float16",
             of eleven; "wide", beyond float16's exponents; "float32", of 24; "bits", any finite ones; "top", the byte 255
    spread : over what a scale is the same: "tensor", "row", "group"
    zeros  : "middle" of the codes, "low" their lowest, "whole" any integer, "between" integers, where the type has such
    order  : of groups that columns name: "runs" or "shuffled"
    """

    codes: str
    scales: str
    spread: str
    zeros: str = "middle"
    order: str = "runs"


# From the easiest to hold to the hardest.
PROFILES = {
    "signs": Profile("signs", "half", "tensor"),
    "ternary": Profile("ternary", "half", "tensor"),
    "crumbs": Profile("crumbs", "half", "tensor"),
    "nibbles": Profile("nibbles", "short", "row"),
    "low nibbles": Profile("nibbles", "half", "tensor", "low"),
    "one scale": Profile("all", "half", "tensor"),
    "lowest zero": Profile("all", "half", "tensor", "low"),
    "scale by row": Profile("all", "short", "row"),
    "powers of two": Profile("all", "powers", "group"),
    "short scales": Profile("all", "short", "group"),
    "float16 scales": Profile("all", "float16", "group"),
    "any zeros": Profile("all", "short", "group", "whole"),
    "wide scales": Profile("all", "wide", "group"),
    "float32 scales": Profile("all", "float32", "group", "whole"),
    "zeros between": Profile("all", "short", "group", "between"),
    "any bits": Profile("all", "bits", "group", "whole"),
    "byte 255": Profile("all", "top", "group"),
    "shuffled": Profile("all", "float16", "group", "whole", "shuffled"),
}
# Kinds of scales that say something only of types with so many bits of exponent and mantissa.
ASKS = {"float16": (5, 10), "wide": (8, 0), "float32": (8, 23)}
CODES = {"signs": (-1, 1), "ternary": (-1, 0, 1), "crumbs": tuple(range(-2, 2)), "nibbles": tuple(range(-8, 8))}


def says(scheme: Scheme, profile: Profile) -> bool:
    """Tell whether a profile says anything of a scheme that another does not."""
    roles = roles_of(scheme)
    elements = [DTYPES[scheme.param(name).dtype] for name in roles["scale"]]
    exponent, mantissa = ASKS.get(profile.scales, (0, 0))
    if not any(element.exponent >= exponent and element.mantissa >= mantissa for element in elements):
        return False
    if profile.scales == "top" and not any(element.kind == "float" and not element.mantissa for element in elements):
        return False
    zeros = [DTYPES[scheme.param(name).dtype].kind for name in roles["zero"]]
    held = {"middle": True, "between": bool(roles["bias"]) or "float" in zeros}.get(profile.zeros, bool(zeros or roles["bias"]))
    if profile.scales in ("float32", "bits"):  # with zero points or without
        held = True
    return held and (profile.order == "runs" or any(isinstance(param.group, Indexed) for param in scheme.params))


def roles_of(scheme: Scheme) -> dict[str, list[str]]:
    """Name the parameters that are zero points, scales, and biases, from the order of the steps."""
    found: dict[str, list[str]] = {"zero": [], "scale": [], "bias": []}
    for step in scheme.steps:
        is_scale = step.op in (Op.MUL, Op.DIV)
        role = "scale" if is_scale else "bias" if found["scale"] else "zero"
        found[role] += sorted(refs(step.operand))
    return found
