"""Inputs of weights as models have them: neighbouring columns alike, some columns much larger than others."""

import numpy as np

from qformat.calibration import Statistics

F32 = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
F64 = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def correlated(n_samples: int, n_cols: int, seed: int = 3, mix: float = 0.9) -> F64:
    """Give samples of an AR(1) process over columns, each column times a log-normal number."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((n_samples, n_cols))
    found = noise.copy()
    for column in range(1, n_cols):
        found[:, column] = mix * found[:, column - 1] + np.sqrt(1 - mix * mix) * noise[:, column]
    return found * np.exp(rng.standard_normal(n_cols))


def statistics(inputs: F64) -> Statistics:
    """Sum up samples, (n, K)."""
    return Statistics(2 * inputs.T @ inputs, np.abs(inputs).mean(axis=0), len(inputs))


def of_hessian(hessian: F64) -> Statistics:
    """Give statistics with this Hessian, and no use for anything else."""
    return Statistics(np.array(hessian, np.float64), np.ones(len(hessian)), 1)


def weights(*shape: int, seed: int = 5) -> F32:
    """Give normal weights."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def output_error(lost: np.ndarray, hessian: F64) -> float:
    """Give tr(E H E^T), half the squared Frobenius norm of what the outputs lose times two."""
    error = lost.astype(np.float64)
    return float(np.einsum("ij,jk,ik->", error, hessian, error))
