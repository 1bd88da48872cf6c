"""Products of float activations with packed weights measured, beside NumPy's with the same weights as float32, and a peer's.

Rates count bytes of the weights as float32. NumPy and the peer multiply on one thread, whatever the threads of the library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from bench import cases, peers
from bench.cases import Case
from bench.results import Result
from bench.rounds import Action, fitted, interleave, ratios
from bench.weights import floats, packed

import qformat

OURS, NUMPY = "qformat", "NumPy"
BUDGET = 0.7  # seconds for the rounds of one case
AGAINST = {NUMPY: OURS, "mlx": OURS}


def multiply(n_rows: int = cases.N_ROWS, chosen: Sequence[Case] = cases.PRODUCTS) -> Iterator[Result]:
    """Measure products with one row of activations and with several."""
    weights = floats(n_rows, cases.N_COLS)
    for case in chosen:
        with TemporaryDirectory(prefix="qformat-bench-") as folder:
            tensor = packed(case.target, weights, Path(folder))
            for n_x in cases.FEW:
                x = np.random.default_rng(1).standard_normal((n_x, cases.N_COLS), np.float32)
                other = x[0] if n_x == 1 else x.T
                out = np.empty((n_x, n_rows), np.float32)
                for n_threads in cases.THREADS:
                    qformat.set_threads(n_threads)
                    actions = [
                        Action(NUMPY, lambda other=other: np.matmul(weights, other), weights.nbytes),
                        Action(OURS, lambda x=x, w=tensor, out=out: qformat.matmul(x, w, out), weights.nbytes),
                    ]
                    if n_threads == 1:
                        makers = {peer: peers.multiplier(peer, case, weights, x) for peer in case.peers}
                        actions += [fitted(peer, maker, n_rows, weights[0].nbytes) for peer, maker in makers.items()]
                    spreads = interleave(actions, BUDGET)
                    figures = {"GB/s": spreads[OURS].gb_per_s, **ratios(spreads, AGAINST)}
                    yield Result("products", case.name, f"{n_x} row{'s' * (n_x > 1)}", n_threads, figures, spreads)
        qformat.set_threads(None)
