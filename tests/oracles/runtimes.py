"""One model under two runtimes: transformers reads a folder, llama.cpp a GGUF file, both in float32 and of the same tokens.

llama.cpp keeps keys and values in float32 and computes attention step by step: nothing is rounded to 16 bits, but GELU, for
which see test_runtimes_gemma3.py. What is left are sums in another order, and sines, exponentials and square roots of other
libraries.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from conftest import ROOT
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

N_CTX = 128
# Of log-probabilities.
BOUND = 1e-3


@cache
def tool(name: str) -> ModuleType:
    """Give a script below tools/ as a module."""
    sys.path.append(str(ROOT / "tools"))
    return import_module(name)


def load(folder: Path) -> PreTrainedModel:
    """Let transformers load a folder, in float32 and with its plain attention. Every array must be one that the model has."""
    torch.set_num_threads(1)  # tokens are few: threads would mostly wait for one another
    model, said = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(said.values()), said
    loaded: PreTrainedModel = model
    return loaded


def logits(model: PreTrainedModel, ids: Sequence[int]) -> NDArray[np.float32]:
    """Compute the logits after every token with transformers: (n_tokens, n_vocab)."""
    with torch.no_grad():
        found: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].numpy()
    return found


def greedy(file: Path, prompts: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
    """Let llama.cpp give the tokens that follow each prompt, each the likeliest."""
    with tool("llama").Llama(file, N_CTX, in_float32=True) as model:
        return [model.greedy(prompt, n_tokens) for prompt in prompts]


def check_same(folder: Path, file: Path, prompts: Sequence[Sequence[int]], n_tokens: int) -> None:
    """Check that both runtimes say the same: greedy tokens, and log-probabilities within the bound."""
    model, log_softmax = load(folder), tool("llama").log_softmax
    made = greedy(file, prompts, n_tokens)
    with tool("llama").Llama(file, N_CTX, in_float32=True) as peer:
        for prompt, tokens in zip(prompts, made, strict=True):
            ids = [*prompt, *tokens]
            found, expected = peer.log_probabilities(ids), log_softmax(logits(model, ids))
            # After a sequence that is the same so far, the likeliest token is the next: so on to the last.
            assert expected[len(prompt) - 1 : -1].argmax(axis=1).tolist() == tokens
            assert np.abs(found - expected).max() <= BOUND
