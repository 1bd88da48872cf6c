"""Which rules a format has: found from what its scheme declares, the default first."""

from __future__ import annotations

from itertools import pairwise

from qformat.errors import UsageError
from qformat.formats.form import Format
from qformat.rules import affine, codebook, ggml, microscale, searched
from qformat.rules.rule import Rule
from qformat.rules.shrunk import searching
from qformat.scheme import Flat, Grid, Group, Integers, Levels, Scheme

E2M1 = "float4_e2m1fn"
OF_BLOCKS = ggml.RULES | searched.RULES  # by the name of ggml's block type
EXPONENTS = ("float8_e8m0fnu", "float8_e8m0half")


def rules(form: Format) -> tuple[str, ...]:
    """Name the quantization rules of a format, its default first; empty where nothing quantizes to it."""
    return tuple(rule.name for rule in _rules(form))


def describe(form: Format, rule: str | None = None) -> str:
    """Give a rule in one line: its name, formula, ties and source. Raises UsageError for an unknown one."""
    found = find(form, rule)
    return f"{found.name}: {found.formula} ({found.source})"


def find(form: Format, name: str | None = None) -> Rule:
    """Find a rule of a format, the default if unnamed.

    Raises UsageError when the format has no such rule; the message lists those it has.
    """
    known = _rules(form)
    if not known:
        is_grid = any("index" in part.layout.pieces for part in form.parts)
        why = "the search of its grid is not built; it can be read, copied and decoded" if is_grid else "no rule is known"
        raise UsageError(f"nothing quantizes to '{form.name}': {why}", field="rule", found=name)
    for rule in known:
        if name in (None, rule.name):
            return rule
    expected = ", ".join(rule.name for rule in known)
    message = f"unknown rule '{name}' for '{form.name}': expected one of {expected}"
    raise UsageError(message, field="rule", found=name, expected=tuple(rule.name for rule in known))


def _rules(form: Format) -> tuple[Rule, ...]:
    is_block = [part.layout.name for part in form.parts] == [form.name]  # whatever rule stands in it
    own = OF_BLOCKS.get(form.name, ()) if is_block else ()
    taken = {rule.name for rule in own}
    found = (*own, *(rule for rule in _family(form.scheme) if rule.name not in taken))
    ordered = tuple(sorted(found, key=lambda rule: rule.name != form.rule))
    searched = searching(ordered[0], form.scheme) if ordered else None
    return ordered if searched is None else (*ordered, searched)


def _family(scheme: Scheme) -> tuple[Rule, ...]:
    """Give the rules that any scheme of this kind has."""
    params = {param.name: param for param in scheme.params}
    scale = params.get("scales")
    if scale is None or len(scheme.steps) != len(params):
        return ()
    if isinstance(scheme.alphabet, Integers) and (_along_rows(scale.group) or scale.group == Grid(0, 0)):
        scaled = affine.SCALED if scheme.alphabet.low + scheme.alphabet.high <= 0 else ()  # codes -high..high exist
        families = {("scales",): scaled, ("scales", "zeros"): affine.ZEROED, ("biases", "scales"): affine.BIASED}
        return families.get(tuple(sorted(params)), ())
    if isinstance(scheme.alphabet, Levels) and len(params) == 1:
        if scheme.alphabet.name == E2M1 and scale.dtype in EXPONENTS and _along_rows(scale.group):
            return microscale.RULES
        if isinstance(scale.group, Flat) and all(low < high for low, high in pairwise(scheme.alphabet.levels)):
            return codebook.RULES
    return ()


def _along_rows(group: Group) -> bool:
    return isinstance(group, Grid) and group.rows == 1
