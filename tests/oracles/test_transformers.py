"""transformers decodes the stored gpt-oss MXFP4 blocks to the stored values."""

from collections.abc import Callable, Mapping

import pytest
import torch
from numpy.typing import NDArray
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

Read = Callable[[str], Mapping[str, NDArray]]


@pytest.mark.parametrize("name", ["down_proj", "gate_up_proj"])
def test_decoding_the_stored_blocks_gives_the_stored_values(golden_hf: Read, name: str) -> None:
    module = f"model.layers.0.mlp.experts.{name}"
    stored = golden_hf("gpt-oss-mxfp4/experts/model")
    blocks = torch.from_numpy(stored[f"{module}_blocks"].copy())
    scales = torch.from_numpy(stored[f"{module}_scales"].copy())

    values = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)

    expected = golden_hf("gpt-oss-mxfp4/experts/expected")[f"{module}.float32"]
    assert values.contiguous().numpy().tobytes() == expected.tobytes()
