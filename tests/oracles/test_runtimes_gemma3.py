"""What sets gemma's logits apart under llama.cpp is its table of GELU: with the same table, transformers computes the same.

ggml reads GELU of float16 from a table of float16. Of most single tokens the logits then agree as those of other architectures
do; now and then a sum in another order meets the next entry.

Source: ggml-org/llama.cpp: ggml/src/ggml-cpu/vec.h (ggml_vec_geglu_f32).
"""

from pathlib import Path

import numpy as np
import pytest
import qconvert
import runtimes
import small_models
import torch

TOKENS = range(3, small_models.N_TOKENS, 8)
# Logits of at most 4, sums of at most 256 products in another order: 2e-6 is the median; without the table 1.9e-4 the least.
OTHER_ORDER = 1e-5


class Table(torch.nn.Module):
    """GELU as ggml's table has it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give the entry that float16 of each value leads to; none lies beyond 10."""
        entry = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, entry))


@pytest.mark.parametrize("has_table", [True, False])
def test_logits_agree_with_the_table_of_ggml(has_table: bool, tmp_path: Path) -> None:
    small_models.save("gemma3_text", tmp_path / "saved")
    qconvert.convert(tmp_path / "saved", tmp_path / "f32.gguf", "gguf:f32", names="runtime")
    model = runtimes.load(tmp_path / "saved")
    if has_table:
        for layer in model.model.layers:
            layer.mlp.act_fn = Table()

    with runtimes.tool("llama").Llama(tmp_path / "f32.gguf", runtimes.N_CTX, in_float32=True) as peer:
        apart = [np.abs(peer.logits([token]) - runtimes.logits(model, [token])).max() for token in TOKENS]

    assert np.median(apart) < OTHER_ORDER if has_table else np.min(apart) > OTHER_ORDER
