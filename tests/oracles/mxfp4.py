"""What each peer makes of the same groups in MXFP4: the source of spec/vectors/mxfp4/rules.npz.

Run it with the environment of `make oracles` to write that file; the tests beside it compare the file with the installed peers.
It must not know the project's own quantizers.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

STORED = Path(__file__).resolve().parent.parent.parent / "spec" / "vectors" / "mxfp4" / "rules.npz"
SEED = 20261121

Packed = tuple[NDArray[np.uint8], NDArray[np.uint8]]


def make_input() -> NDArray[np.float32]:
    """Make float32 [n_groups, 32]: every threshold of a group's maximum with both neighbours, ties of codes, random groups."""
    rng = np.random.default_rng(SEED)
    thresholds = np.float32([1, 1.25, 1.5, 1.75, 2, 6 / 4, 7 / 4])
    edges = np.stack([np.nextafter(thresholds, np.float32(0)), thresholds, np.nextafter(thresholds, np.float32(9))])
    maxima = np.concatenate([np.ldexp(edges.ravel(), k) for k in (-100, -9, 0, 3, 120)]).astype(np.float32)
    below = rng.uniform(-1, 1, (len(maxima), 32)).astype(np.float32) * maxima[:, None]
    below[np.arange(len(maxima)), rng.integers(0, 32, len(maxima))] = maxima * rng.choice(np.float32([-1, 1]), len(maxima))
    ties = np.float32([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6, 0.5, 1, 1.5, 2, 3, 4, 0, 5.5])
    exact = np.concatenate([ties, -ties])[None] * np.ldexp(np.float32(1), [[0], [1], [-5], [-20]])
    plain = rng.normal(0, 0.02, (64, 32)) * np.ldexp(1.0, rng.integers(-8, 8, (64, 1)))
    zeros = np.zeros((2, 32))
    zeros[1, ::3] = -0.0
    return np.concatenate([below, exact, plain, zeros]).astype(np.float32)


def torchao(values: NDArray[np.float32], mode: str) -> Packed:
    """Quantize with torchao: `to_mx` under one of its scaling modes."""
    import torch
    from torchao.prototype.mx_formats.config import ScaleCalculationMode
    from torchao.prototype.mx_formats.mx_tensor import to_mx

    scales, codes = to_mx(torch.from_numpy(values), torch.float4_e2m1fn_x2, 32, ScaleCalculationMode(mode))
    return scales.view(torch.uint8).numpy().reshape(-1), codes.view(torch.uint8).numpy().reshape(-1, 16)


def mlx(values: NDArray[np.float32]) -> Packed:
    """Quantize with mlx on the CPU: `quantize` in mode mxfp4."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    codes, scales = mx.quantize(mx.array(values), group_size=32, bits=4, mode="mxfp4")
    return np.array(scales).reshape(-1), np.array(codes).view(np.uint8).reshape(-1, 16)


def modelopt(values: NDArray[np.float32]) -> Packed:
    """Quantize with ModelOpt: `MXFP4QTensor.quantize`."""
    import torch
    from modelopt.torch.quantization.qtensor import MXFP4QTensor

    packed, scales = MXFP4QTensor.quantize(torch.from_numpy(values), 32)
    return scales.numpy().reshape(-1), packed._quantized_data.numpy().reshape(-1, 16)


PEERS: dict[str, Callable[[NDArray[np.float32]], Packed]] = {
    "torchao_floor": lambda values: torchao(values, "floor"),
    "torchao_ceil": lambda values: torchao(values, "ceil"),
    "torchao_rceil": lambda values: torchao(values, "rceil"),
    "torchao_even": lambda values: torchao(values, "even"),
    "mlx": mlx,
    "modelopt": modelopt,
}


def main() -> int:
    """Write the stored vectors."""
    values = make_input()
    arrays = {"x": values}
    for peer, quantize in PEERS.items():
        arrays[f"{peer}.scales"], arrays[f"{peer}.codes"] = quantize(values)
    STORED.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(STORED, **arrays)
    return 0


if __name__ == "__main__":
    sys.exit(main())
