"""Tells which text a kernel is made from: its module's, and that of every module of this package which that one imports.

A kernel takes helpers, tables and constants from other modules, and machine code kept on disk outlives an edit of any of them.
Imports are found in the text, wherever they stand; reading it costs a millisecond or two, parsing it ten times that.
"""

from __future__ import annotations

import hashlib
import re
import sys
import time
from functools import lru_cache
from pathlib import Path

import llvmlite
import numba
import numpy

PACKAGE = "qformat"
ROOT = Path(__file__).resolve().parents[2]
IMPORT = re.compile(rf"^\s*(?:from\s+({PACKAGE}[\w.]*)\s+import\s+(\([^)]*\)|[^\n]*)|import\s+({PACKAGE}[\w.]*))", re.MULTILINE)
MADE_BY = f"{sys.implementation.cache_tag} {numba.__version__} {llvmlite.__version__} {numpy.__version__}"
LOADED = time.time() - 0.02  # file systems take the time from a clock that ticks every few milliseconds


@lru_cache(maxsize=64)
def digest(path: Path) -> str:
    """Give 16 hexadecimal digits that change with the compilers, a module's text or that of anything it imports from here.

    Raises OSError where a text cannot be read.
    """
    total = hashlib.blake2b(MADE_BY.encode(), digest_size=8)
    for source in sorted(sources(path)):
        total.update(_read(source)[0])
    return total.hexdigest()


def were_edited(path: Path) -> bool:
    """Tell whether any of these texts was written after it was loaded, so that it no longer says what runs.

    Raises OSError where a text cannot be found.
    """
    return any(max(status.st_mtime, status.st_ctime) > LOADED for status in map(Path.stat, sources(path)))


def sources(path: Path) -> set[Path]:
    """Find a module's file and those of this package that it imports, directly or not. Raises OSError as `digest` does."""
    found: set[Path] = set()
    left = {path}
    while left:
        source = left.pop()
        found.add(source)
        left |= _read(source)[1] - found
    return found


@lru_cache(maxsize=256)
def _read(path: Path) -> tuple[bytes, frozenset[Path]]:
    """Give the digest of a module's text, and the files that it imports itself."""
    text = path.read_bytes()
    imported = set()
    for module, names, whole in IMPORT.findall(text.decode()):
        place = ROOT.joinpath(*(module or whole).split("."))
        imported.add(place.with_suffix(".py"))
        if place.is_dir():
            imported.add(place / "__init__.py")
            imported.update(place / f"{name}.py" for name in re.findall(r"\w+", names))
            imported.update(place / name / "__init__.py" for name in re.findall(r"\w+", names))
    return hashlib.blake2b(text).digest(), frozenset(file for file in imported if file.is_file())
