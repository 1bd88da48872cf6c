"""Products of packed activations with packed weights measured, beside NumPy's product of the floats that they stand for.

Rates count bytes of the weights as float32. NumPy multiplies on one thread, whatever the threads of the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from bench import cases
from bench.cases import Product
from bench.results import Result
from bench.rounds import Action, interleave, ratios
from bench.weights import floats

import qformat

OURS, NUMPY = "qformat", "NumPy"
BUDGET = 0.7  # seconds for the rounds of one case
AGAINST = {NUMPY: OURS}


def multiply(n_rows: int = cases.N_ROWS, chosen: Sequence[Product] = cases.INTEGERS) -> Iterator[Result]:
    """Measure products with few and with several rows of activations."""
    weights = floats(n_rows, cases.N_COLS)
    for case in chosen:
        w = qformat.quantize(weights, case.weights)
        for n_x in cases.BATCHES:
            x = floats(n_x, cases.N_COLS)
            packed = qformat.quantize(x, case.activations)
            for n_threads in cases.THREADS:
                qformat.set_threads(n_threads)
                actions = [
                    Action(NUMPY, lambda x=x: np.matmul(x, weights.T), weights.nbytes),
                    Action(OURS, lambda x=packed, w=w: qformat.integer_matmul(x, w), weights.nbytes),
                ]
                spreads = interleave(actions, BUDGET)
                figures = {"GB/s": spreads[OURS].gb_per_s, **ratios(spreads, AGAINST)}
                rows = f"{n_x} row{'s' * (n_x > 1)}"
                yield Result("integers", case.name, rows, n_threads, figures, spreads)
            qformat.set_threads(None)
