"""Record what the inputs of a transformers model's linear layers are like while it reads a text: a file of calibration.

    .venv-oracles/bin/python tools/record_calibration.py MODEL_FOLDER OUT.safetensors TEXT_FILE ...

Each `torch.nn.Linear` W gets `W.weight.hessian`, `W.weight.mean_abs` and `W.weight.n_samples`, as docs/calibration.md describes
them. Layers that are given one input, as query, key and value are, share one sum while it is made. Needs torch and
transformers.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from qconvert.calibration import write_calibration
from qconvert.destination import check_paths

from qformat.calibration import Accumulator, Statistics
from qformat.errors import QFormatError, UsageError, about


class Recorder:
    """Sums up the inputs of linear layers, by the names of their weights."""

    def __init__(self) -> None:
        self._sums: dict[str, Accumulator] = {}
        self._shared: dict[str, str] = {}  # by layer, that under which its inputs are summed up
        self._last: tuple[torch.Tensor | None, str] = (None, "")
        self._n_calls: Counter[str] = Counter()

    def see(self, name: str, inputs: torch.Tensor) -> None:
        """Count in the inputs of a layer; those that the layer before was given too are counted once."""
        owner = self._last[1] if inputs is self._last[0] else name
        self._n_calls[name] += 1
        if self._shared.setdefault(name, owner) != owner:
            raise _not_always(name, self._shared[name])
        if owner == name:
            with about(None, name):
                accumulator = self._sums.setdefault(name, Accumulator(inputs.shape[-1]))
                accumulator.add(inputs.detach().to("cpu", torch.float32).numpy())
        self._last = inputs, owner

    def statistics(self) -> dict[str, Statistics]:
        """Give what was seen, by the names of weights."""
        for name, owner in self._shared.items():
            if self._n_calls[name] != self._n_calls[owner]:
                raise _not_always(name, owner)
        found = {name: accumulator.statistics() for name, accumulator in self._sums.items()}
        return {f"{name}.weight": found[owner] for name, owner in self._shared.items()}


def _not_always(name: str, owner: str) -> UsageError:
    return UsageError(f"layer shares its inputs with '{owner}' in one batch and not in another", tensor=name, field="inputs")


@contextmanager
def watching(model: torch.nn.Module, recorder: Recorder) -> Iterator[None]:
    """Have a recorder see the inputs of all linear layers of a model."""

    def hook(name: str) -> Any:
        return lambda module, args: recorder.see(name, args[0])

    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    hooks = [module.register_forward_pre_hook(hook(name)) for name, module in linear]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()


def record(model: torch.nn.Module, chunks: Iterable[list[int]]) -> dict[str, Statistics]:
    """Give the statistics of a causal model's linear layers over pieces of text, each of which begins with no memory."""
    recorder = Recorder()
    with torch.no_grad(), watching(model, recorder):
        for chunk in chunks:
            model(torch.tensor([chunk]))
    return recorder.statistics()


def cut(ids: list[int], n_chunk: int) -> list[list[int]]:
    """Cut a text into pieces."""
    return [ids[first : first + n_chunk] for first in range(0, len(ids), n_chunk)]


def positive(text: str) -> int:
    """Read a number of at least 1. Raises ValueError for another."""
    if (number := int(text)) < 1:
        raise ValueError(text)
    return number


def main() -> int:
    """Read a model and texts, and write the file; returns the exit code."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path, help="folder that transformers loads")
    parser.add_argument("out", type=Path, help="file to write; must not exist")
    parser.add_argument("text", type=Path, nargs="+")
    parser.add_argument("--tokens", type=positive, default=4096, help="of the texts, from the beginning")
    parser.add_argument("--chunk", type=positive, default=512, help="tokens that are read together")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="of the sums in the file")
    said = parser.parse_args()
    try:
        check_paths((), said.out, force=False)  # before the model reads for minutes
        text = "\n".join(path.read_text(encoding="utf-8") for path in said.text)
        ids = AutoTokenizer.from_pretrained(said.model)(text)["input_ids"][: said.tokens]
        model = AutoModelForCausalLM.from_pretrained(said.model, dtype=torch.float32).eval()
        statistics = record(model, cut(ids, said.chunk))
        write_calibration(said.out, statistics, said.dtype)
    except (QFormatError, OSError) as err:
        print(f"record_calibration: {err}", file=sys.stderr)
        return 1
    print(f"{len(ids)} tokens, {len(statistics)} layers, {said.out.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
