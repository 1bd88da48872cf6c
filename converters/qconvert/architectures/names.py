"""Which tensors of a checkpoint and of a GGUF file are the same, by name.

The names of a GGUF file come from the tables of the gguf package, forward by asking, backward by having asked for every name
that an architecture can have. Must not know what is in a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from qconvert.architectures.architecture import EXPERT, LAYER, Architecture, Tensor

SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True, slots=True)
class Pair:
    """Tensors of one row of a declaration: their names in a checkpoint, and in a GGUF file."""

    tensor: Tensor
    hf: tuple[str, ...]
    gguf: tuple[str, ...]

    @property
    def is_cut(self) -> bool:
        """Tell whether sizes say how rows are cut or stacked."""
        return bool(self.tensor.order) or EXPERT in self.tensor.name


def pairs_of(arch: Architecture, n_layers: int, n_experts: int) -> list[Pair]:
    """List all tensors that a model of an architecture can have, in the order in which they are written.

    n_experts : of a layer, where each has tensors of its own
    """
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next((kind for kind, name in MODEL_ARCH_NAMES.items() if name == arch.name), None)
    assert kind is not None, f"'{arch.name}' is declared, which gguf.MODEL_ARCH_NAMES does not know"
    table = get_tensor_name_map(kind, n_layers)

    def translate(name: str) -> str:
        suffix = next((suffix for suffix in SUFFIXES if name.endswith(suffix)), "")
        found = table.get_name(name.removesuffix(suffix))
        assert found is not None, f"{arch.name} declares '{name}', which the tables do not know"
        return f"{found}{suffix or SUFFIXES[0]}"

    found = []
    for tensor, layer in _walk(arch, n_layers):
        names: tuple[str, ...] = (tensor.name.replace(LAYER, layer),)
        if EXPERT in tensor.name:
            names = tuple(names[0].replace(EXPERT, str(number)) for number in range(n_experts))
        known = tuple(name.replace(LAYER, layer) for name in tensor.known or (tensor.name,))
        found.append(Pair(tensor, names, tuple(map(translate, known))))
    return found


def skipped_names(arch: Architecture, n_layers: int) -> set[str]:
    """Give the names of a checkpoint's tensors that a runtime computes by itself."""
    return {name.replace(LAYER, str(layer)) for name in arch.skipped for layer in range(n_layers)}


def _walk(arch: Architecture, n_layers: int) -> Iterator[tuple[Tensor, str]]:
    """Walk over the tensors of a declaration, those of a layer once for each."""
    for is_layer, tensors in groupby(arch.tensors, lambda tensor: LAYER in tensor.name):
        held = list(tensors)
        for layer in range(n_layers if is_layer else 1):
            yield from ((tensor, str(layer)) for tensor in held)
