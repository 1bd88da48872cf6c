"""Multiplies formats with floats on the processor that the environment names; prints digests, and how wide vectors are."""

import hashlib
import json

import numpy as np
from decoded_here import tensor_of
from made_tensors import made
from test_kernels import one_nan

import qformat
from qformat import formats
from qformat.kernels import cpu

SHAPE = (5, 1024)
BATCHES = (1, 2, 5)
MADE = (
    *("mxfp4", "nf4_b64", "int3_g64", "int4_g128", "int5_g64", "int8_g128", "q5_1", "q8_0", "q2_k", "q6_k", "iq4_xs", "tq2_0"),
    *("compressed-tensors:mxfp6", "compressed-tensors:mxfp8", "hqq:4"),
)
ANY = ("iq3_s", "iq2_xxs", "iq1_m")  # not made from values: any bytes


def main() -> None:
    """Multiply all of them."""
    rng, digests = np.random.default_rng(0), {}
    batches = [rng.standard_normal((n, SHAPE[1]), np.float32) for n in BATCHES]
    by_name = {form.name: form for form in (*formats.PLANAR, *formats.GGUF, *formats.DIALECTS)}
    for name in (*MADE, *ANY):
        tensor = made(by_name[name], SHAPE) if name in MADE else tensor_of(by_name[name], SHAPE)
        products = b"".join(one_nan(qformat.matmul(x, tensor)) for x in batches)
        digests[name] = hashlib.sha256(products).hexdigest()
    print(json.dumps({"digests": digests, "lanes": cpu.lanes()}))


if __name__ == "__main__":
    main()
