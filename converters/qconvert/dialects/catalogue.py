"""The dialects of safetensors checkpoints: a new one is a module here and one entry below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qconvert.dialects.awq import AWQ
from qconvert.dialects.bitnet import BITNET
from qconvert.dialects.bitsandbytes import BITSANDBYTES
from qconvert.dialects.compressed_tensors import COMPRESSED_TENSORS
from qconvert.dialects.dialect import Claim, Dialect, Shelf
from qconvert.dialects.fp8_block import FP8_BLOCK
from qconvert.dialects.gpt_oss import GPT_OSS
from qconvert.dialects.gptq import GPTQ
from qconvert.dialects.hqq import HQQ
from qconvert.dialects.mlx import MLX
from qconvert.dialects.modelopt import MODELOPT
from qconvert.dialects.quanto import QUANTO
from qconvert.dialects.refused import AS_ARRAYS, refuse, refuse_orphans
from qconvert.dialects.torchao import TORCHAO
from qformat.errors import FileError, UsageError

DIALECTS = (GPTQ, AWQ, BITSANDBYTES, COMPRESSED_TENSORS, MLX, HQQ, MODELOPT, GPT_OSS, QUANTO, FP8_BLOCK, BITNET, TORCHAO)


def claim_all(shelf: Shelf) -> Mapping[str, tuple[str, Claim]]:
    """Find every packed weight of a checkpoint: dialect and claim by logical name.

    Nothing is claimed where the user assumes "dense".

    Raises FileError where two claims meet in an array or a name, where a name is that of an array as well, and for packed
    weights that no dialect here reads.
    """
    if AS_ARRAYS in shelf.assume:
        return {}
    refuse(shelf)
    found: dict[str, tuple[str, Claim]] = {}
    owners: dict[str, str] = {}
    for dialect in DIALECTS:
        for claim in (claim for claim in dialect.claim(shelf) if claim.arrays):  # "" is no module, ".weight" not its weight
            taken = next((array for array in claim.arrays if array in owners), None)
            if taken is not None or claim.name in found:
                other = owners.get(taken or "", claim.name)
                raise FileError(f"belongs to '{other}' and to '{claim.name}' ({dialect.name})", tensor=taken or claim.name)
            if claim.name in shelf.infos and claim.name not in claim.arrays:
                message = f"is an array by itself, and the name of a weight in '{claim.arrays[0]}' ({dialect.name})"
                raise FileError(message, tensor=claim.name)
            owners.update(dict.fromkeys(claim.arrays, claim.name))
            found[claim.name] = dialect.name, claim
    refuse_orphans(shelf, owners)
    return found


def find(name: str) -> Dialect:
    """Find a dialect by its name. Raises UsageError for one that does not exist."""
    for dialect in DIALECTS:
        if dialect.name == name:
            return dialect
    raise UsageError(f"unknown dialect '{name}': expected one of {', '.join(d.name for d in DIALECTS)}", found=name)


def check_assumed(assume: Sequence[str]) -> None:
    """Raise UsageError for something assumed that no dialect leaves open: expected "dense", or a kind of one that does."""
    known = [*(f"{dialect.name}:{kind}" for dialect in DIALECTS for kind in dialect.open), AS_ARRAYS]
    for word in assume:
        if word not in known:
            raise UsageError(f"'{word}' cannot be assumed: expected one of {', '.join(known)}", found=word)
