"""Tells what the processor can do that numba compiles for: this one, or the one that its environment variables describe.

What is not listed among the features counts as missing: a processor named without features gets the forms that run anywhere.
`NUMBA_CPU_NAME=generic` means no features, any other name those of this processor unless `NUMBA_CPU_FEATURES` lists them.
"""

from __future__ import annotations

import sys
from functools import lru_cache

from numba import config
from numba.core.registry import cpu_target

ARM = ("aarch64", "arm64")


def lanes() -> int:
    """Count the float32 values of a vector: 16 with AVX-512, else 8.

    Where registers hold fewer, as with SSE and NEON, LLVM splits a vector of 8 into two: the same bits, and two independent
    operations in flight.
    """
    return 16 if "avx512f" in _target()[1] else 8


def has_f16c() -> bool:
    """Tell whether conversions between float32 and float16 are instructions; without them LLVM calls a library for each.

    AArch64 has always had them.
    """
    architecture, features = _target()
    return architecture in ARM or "f16c" in features


def byte_shuffle() -> str:
    """Name LLVM's operation that looks 16 bytes up in a table of 16 at once; empty where there is none."""
    architecture, features = _target()
    if architecture in ARM:
        return "llvm.aarch64.neon.tbl1.v16i8"
    return "llvm.x86.ssse3.pshuf.b.128" if "ssse3" in features else ""


def to_bfloat16() -> str:
    """Name LLVM's operation that rounds two vectors of 16 float32 to bfloat16; empty where there is none.

    It takes subnormal numbers for zero, so where these cannot be told (AVX-512 DQ) there is none either.
    """
    return "llvm.x86.avx512bf16.cvtne2ps2bf16.512" if _target()[1] >= {"avx512bf16", "avx512dq"} else ""


def has_byte_products() -> bool:
    """Tell whether AVX2 is there, with its products of bytes whose neighbours are added up in 16 bits."""
    return "avx2" in _target()[1]


def picks() -> int:
    """Count the values of 32 bits that one instruction picks by their numbers, of as many; 0 where there is none."""
    features = _target()[1]
    return lanes() if features & {"avx2", "avx512f"} else 0


def has_vectors() -> bool:
    """Tell whether vector forms may be used: compiled at all, and bytes in the order in which formats are stored."""
    return not config.DISABLE_JIT and sys.byteorder == "little"  # type: ignore[attr-defined]  # set when numba is imported


@lru_cache(maxsize=1)
def _target() -> tuple[str, frozenset[str]]:
    """Give architecture and features; of a feature that is listed twice, the last mention counts."""
    triple, _, listed = cpu_target.target_context.codegen().magic_tuple()
    named = {feature[1:]: feature[:1] == "+" for feature in listed.split(",")}
    return triple.partition("-")[0], frozenset(name for name, is_there in named.items() if is_there)
