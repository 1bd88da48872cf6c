"""torch casts to and from the small floats as the stored tables say."""

from collections.abc import Callable, Mapping

import pytest
import torch
from numpy.typing import NDArray

Read = Callable[[str], Mapping[str, NDArray]]

EIGHT_BITS = ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"]


@pytest.mark.parametrize("dtype", EIGHT_BITS)
def test_every_code_decodes_to_the_stored_value(golden_hf: Read, dtype: str) -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(getattr(torch, dtype))

    values = codes.to(torch.float32)

    assert values.numpy().tobytes() == golden_hf("casts/casts")[f"torch.{dtype}.decode"].tobytes()


@pytest.mark.parametrize("dtype", [*EIGHT_BITS, "bfloat16", "float16"])
def test_float32_encodes_to_the_stored_codes(golden_hf: Read, dtype: str) -> None:
    casts = golden_hf("casts/casts")
    values = torch.from_numpy(casts["input.float32"].copy())
    stored = casts[f"torch.{dtype}.encode"]

    codes = values.to(getattr(torch, dtype)).view(torch.uint8 if stored.itemsize == 1 else torch.int16)

    assert codes.numpy().tobytes() == stored.tobytes()
