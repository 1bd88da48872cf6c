"""mlx makes the stored MXFP4 groups again, byte for byte."""

import mxfp4
import numpy as np


def test_quantizing_the_stored_input_gives_the_stored_groups() -> None:
    stored = np.load(mxfp4.STORED)

    scales, codes = mxfp4.mlx(stored["x"])

    assert scales.tobytes() == stored["mlx.scales"].tobytes()
    assert codes.tobytes() == stored["mlx.codes"].tobytes()


def test_the_stored_input_is_made_from_its_seed() -> None:
    stored = np.load(mxfp4.STORED)

    assert mxfp4.make_input().tobytes() == stored["x"].tobytes()
