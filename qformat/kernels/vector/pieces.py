"""Puts vector IR into kernels. Numba hands an intrinsic types and literals alone, so that what it is to emit goes by a key."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from typing import Any

from numba.core import cgutils, types
from numba.extending import intrinsic

from qformat.kernels.vector.ir import Value

# What emits a piece and, where that is a value, its type.
_PIECES: dict[str, tuple[Callable[..., Value], Any]] = {}


def piece(emits: Callable[..., Value], *made_of: Any, returns: Any = types.void) -> str:
    """Give the key of a piece of a kernel, the same in every process: machine code on disk is found by it.

    emits   : writes the piece down: IR builder, what it is made of, the arguments that `put` is given
    made_of : declarations whose text tells all about them
    returns : numba's type of the value that `emits` gives
    """
    key = sha256(repr((emits.__module__, emits.__qualname__, made_of)).encode()).hexdigest()
    _PIECES[key] = (lambda b, arguments: emits(b, *made_of, *arguments)), returns
    return key


@intrinsic(prefer_literal=True)
def put(typing, key, arguments):  # type: ignore[no-untyped-def]  # numba's own interface
    """Put a piece here; kernels call this.

    arguments : tuple of integers, and of tuples of integers
    """
    emitted, returns = _PIECES[key.literal_value]

    def generate(context, b, signature, args):  # type: ignore[no-untyped-def]  # numba's own interface
        found = emitted(b, cgutils.unpack_tuple(b, args[1], len(arguments)))  # type: ignore[no-untyped-call]  # numba's
        return context.get_dummy_value() if returns is types.void else found

    return returns(key, arguments), generate
