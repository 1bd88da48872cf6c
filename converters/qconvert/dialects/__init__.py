"""The dialects of safetensors checkpoints: a new one is a module here and one entry below."""

from __future__ import annotations

from collections.abc import Mapping

from qconvert.dialects.dialect import Claim, Dialect, Shelf
from qconvert.dialects.gptq import GPTQ
from qformat.errors import FileError, UsageError

DIALECTS = (GPTQ,)

__all__ = ["DIALECTS", "Claim", "Dialect", "Shelf", "claim_all", "find"]


def claim_all(shelf: Shelf) -> Mapping[str, tuple[str, Claim]]:
    """Find every packed weight of a checkpoint: dialect and claim by logical name.

    Raises FileError where two claims meet in an array or a name.
    """
    found: dict[str, tuple[str, Claim]] = {}
    owners: dict[str, str] = {}
    for dialect in DIALECTS:
        for claim in dialect.claim(shelf):
            taken = next((array for array in claim.arrays if array in owners), None)
            if taken is not None or claim.name in found:
                other = owners.get(taken or "", claim.name)
                raise FileError(f"belongs to '{other}' and to '{claim.name}' ({dialect.name})", tensor=taken or claim.name)
            owners.update(dict.fromkeys(claim.arrays, claim.name))
            found[claim.name] = dialect.name, claim
    return found


def find(name: str) -> Dialect:
    """Find a dialect by its name. Raises UsageError for one that does not exist."""
    for dialect in DIALECTS:
        if dialect.name == name:
            return dialect
    raise UsageError(f"unknown dialect '{name}': expected one of {', '.join(d.name for d in DIALECTS)}", found=name)
