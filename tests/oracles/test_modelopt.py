"""ModelOpt makes the stored MXFP4 groups again, byte for byte."""

import mxfp4
import numpy as np


def test_quantizing_the_stored_input_gives_the_stored_groups() -> None:
    stored = np.load(mxfp4.STORED)

    scales, codes = mxfp4.modelopt(stored["x"])

    assert scales.tobytes() == stored["modelopt.scales"].tobytes()
    assert codes.tobytes() == stored["modelopt.codes"].tobytes()
