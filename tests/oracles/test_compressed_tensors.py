"""compressed-tensors chooses the MXFP4 exponents that torchao chooses in mode even."""

import mxfp4
import numpy as np
import torch
from compressed_tensors.quantization.utils import generate_mx_scales


def test_the_exponents_of_groups_that_are_not_zero_are_those_of_mode_even() -> None:
    stored = np.load(mxfp4.STORED)
    maxima = np.abs(stored["x"]).max(axis=1)

    scales = generate_mx_scales(torch.from_numpy(maxima[maxima > 0])).numpy()

    assert scales.tolist() == stored["torchao_even.scales"][maxima > 0].tolist()
