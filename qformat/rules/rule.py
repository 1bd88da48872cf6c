"""What a quantization rule is: a name, a sentence that can be printed, and a function from weights to codes and parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qformat.coding import Coding
from qformat.rules.groups import Extremes
from qformat.scheme import Integers, Scheme

F32 = NDArray[np.float32]

# Logical arrays by name: "codes" and every parameter of the scheme.
Values = dict[str, NDArray[Any]]
Encode = Callable[[F32, Scheme, Extremes | None], Values]
Weighted = Callable[[F32, Scheme, F32], Values]
Coded = Callable[[Scheme], Coding]


@dataclass(frozen=True, slots=True)
class Rule:
    """A way to choose parameters and codes.

    name    : as it is asked for and recorded
    formula : one line: how the parameters come about, how codes are rounded, which way ties go
    source  : whose rule it is
    encode  : (rows, K) float32, scheme, extremes of the whole tensor where one group covers it -> logical arrays
    weighted: the same with an importance of every column, (1 or rows, K) float32; absent where the rule has no use for it
    coded   : what `encode` computes, for each group, as data of which a kernel is made; absent where it cannot be said so
    limited : whether a parameter beyond its type becomes the largest that the type holds, in place of infinity
    mirrored: whether integer codes reach equally far to both sides, the lowest of a signed alphabet being left out
    """

    name: str
    formula: str
    source: str
    encode: Encode
    weighted: Weighted | None = None
    coded: Coded | None = None
    limited: bool = False
    mirrored: bool = False

    def limits(self, scheme: Scheme) -> tuple[int, int] | None:
        """Give the lowest and the highest integer code that is used; None where codes are no integers."""
        codes = scheme.alphabet
        if not isinstance(codes, Integers):
            return None
        return (-codes.high if self.mirrored else codes.low), codes.high
