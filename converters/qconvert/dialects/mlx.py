"""MLX checkpoints: weight, scales and, of affine modules, biases; the config says bits, group size and mode of each module.

Arrays say which mode of small floats a module has. Of an affine one they give bits times group size alone: the config says
which, unless there is but one way.

Source: ml-explore/mlx 0.32.4: python/mlx/nn/layers/quantized.py; ml-explore/mlx-lm: mlx_lm/utils.py (load_model).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from qconvert.dialects.dialect import METADATA, Array, Claim, Dialect, Json, Shelf, Written, bind
from qconvert.dialects.geometry import coarser, code_bits, columns, integer_bits
from qformat.errors import FileError, UsageError
from qformat.formats.form import Format
from qformat.formats.mlx import BITS, DTYPES, FLOATS, GROUPS, NVFP4, WORD, affine, nvfp4_global
from qformat.scheme import Grid
from qformat.tensor import PackedTensor

NAME = "mlx"
KINDS = (*DTYPES, *FLOATS)
AFFINE = "affine"
KINDS_OF = {dtype: kind for kind, (dtype, _) in DTYPES.items()}
WEIGHT = "weight"
STACK_RANK = 3
NVFP4_GLOBAL = nvfp4_global()
DEFAULTS = (64, 4)  # group size and bits that the config need not say
MODES = {(form.scheme.alphabet, form.scheme.param("scales")): mode for mode, form in FLOATS.items()}
EXPERTS = re.compile(r"(?:.*\.)?experts\.[^.]+\.")


def claim(shelf: Shelf) -> Iterator[Claim]:
    """Find weights of 32-bit words that have scales, and biases unless the scales are bytes."""
    for name, info in shelf.infos.items():
        if info.dtype != "uint32":
            continue
        prefix = name.removesuffix(WEIGHT)
        scales, biases, both = (prefix + suffix for suffix in ("scales", "biases", "global_scale"))
        if prefix + WEIGHT != name or scales not in shelf.infos or (prefix and prefix[-1] != "."):
            continue
        arrays = {"codes": name, "scales": scales}
        if shelf.infos[scales].dtype != "uint8":
            arrays |= {"biases": biases} if biases in shelf.infos else {}
        elif both in shelf.infos:
            arrays["global_scale"] = both
        if "biases" in arrays or shelf.infos[scales].dtype == "uint8":
            found = weight_name(prefix, len(info.shape))
            yield Claim(found, tuple(arrays.values()), partial(load, shelf, prefix, arrays))


def load(shelf: Shelf, prefix: str, arrays: Mapping[str, str]) -> PackedTensor:
    """Make the tensor of a module. Raises FileError where its arrays do not fit one another, or the config."""
    name = arrays["codes"]
    *rows, n_words = shelf.infos[name].shape or (0,)
    if not rows or not n_words:
        found = " x ".join(map(str, shelf.infos[name].shape)) or "scalar"
        message = f"found {found}, expected a matrix of at least one word in a row"
        raise FileError(message, tensor=name, found=found, expected=1)
    dtypes = tuple(KINDS_OF) if "biases" in arrays else ("uint8",)
    info = shelf.expect(arrays["scales"], dtypes, (*rows, None), f"groups of each row of '{name}'")
    n_groups = info.shape[-1]
    if "biases" in arrays:
        shelf.expect(arrays["biases"], (info.dtype,), info.shape, "a bias for each scale")
        bits, group = solve(name, n_words, n_groups, said_of(shelf, prefix))
        form = affine(bits, group, KINDS_OF[info.dtype])
    else:
        form = floats(name, n_words, n_groups, said_of(shelf, prefix))
    if "global_scale" in arrays:
        shelf.expect(arrays["global_scale"], ("float32",), (1,), "a scale for the whole tensor")
        if form is not NVFP4:
            raise FileError(f"belongs to '{name}', which is {form.name}, expected mlx:nvfp4", tensor=arrays["global_scale"])
        form = NVFP4_GLOBAL
    n_cols = n_words * WORD // width(form)
    return bind(form, (*rows, n_cols), shelf, arrays, "" if info.dtype == "uint8" else info.dtype)


def said_of(shelf: Shelf, prefix: str) -> Json:
    """Give what the config says of a module: of it alone, or of all; empty where it says nothing."""
    said = shelf.config.get("quantization")
    said = said if isinstance(said, Mapping) else shelf.quantization
    own = said.get(prefix.removesuffix("."))
    return own if isinstance(own, Mapping) else said


def solve(name: str, n_words: int, n_groups: int, said: Json) -> tuple[int, int]:
    """Find bits and group size of an affine module. Raises FileError where none fits, or several and the config is silent."""
    fits = [(bits, group) for bits in BITS for group in GROUPS if n_words * WORD == n_groups * group * bits]
    sizes = f"{n_words} words and {n_groups} scales in a row"
    if "group_size" in said or "bits" in said:
        wanted = (number(said, "bits", DEFAULTS[1]), number(said, "group_size", DEFAULTS[0]))
        if wanted not in fits:
            message = f"{sizes}, expected those of {wanted[0]} bits in groups of {wanted[1]}, as the config says"
            raise FileError(message, tensor=name, found=(n_words, n_groups), expected=wanted)
        return wanted
    if len(fits) == 1:
        return fits[0]
    ways = " or ".join(f"{bits} bits in groups of {group}" for bits, group in fits)
    message = f"{sizes}, which are {ways}: expected 'quantization' of config.json to say" if fits else f"{sizes} fit no format"
    raise FileError(message, tensor=name, found=(n_words, n_groups), expected=ways)


def floats(name: str, n_words: int, n_groups: int, said: Json) -> Format:
    """Find the mode of a module of small floats. Raises FileError where none fits, or the config names another."""
    for mode, form in FLOATS.items():
        if n_words * WORD == n_groups * width(form) * group_of(form):
            if said.get("mode", mode) not in (mode, AFFINE):
                message = (
                    f"{n_words} words and {n_groups} scales in a row are {mode}, expected {said['mode']!r}, as the config says"
                )
                raise FileError(message, tensor=name, found=mode, expected=said["mode"])
            return form
    expected = ", ".join(f"{n_words * WORD / width(form) / group_of(form):g} ({mode})" for mode, form in FLOATS.items())
    message = f"{n_groups} scales for {n_words} words in a row, expected {expected}"
    raise FileError(message, tensor=name, found=n_groups, expected=expected)


def forms(kind: str, tensor: PackedTensor) -> Sequence[Format]:
    """Give the formats that could hold a tensor: as it is, in its own groups or others that there are."""
    n_cols, found = tensor.n_cols, list[Format]()
    bits, group = integer_bits(tensor.scheme), columns(tensor)
    wide = [n for n in BITS if bits is not None and n >= bits]
    if wide and group is not None:
        own = max((size for size in GROUPS if n_cols % size == 0 and group % size == 0), default=GROUPS[0])
        sizes = [size for size in dict.fromkeys((own, *coarser(tensor, GROUPS))) if n_cols % size == 0]
        found += [affine(wide[0], size, one) for size in sizes for one in DTYPES if kind in ("", one)]
    if code_bits(tensor.scheme) is None or kind in FLOATS:
        fitting = [FLOATS[one] for one in FLOATS if kind in ("", one) and n_cols % group_of(FLOATS[one]) == 0]
        is_global = tensor.scheme.steps == NVFP4_GLOBAL.scheme.steps and NVFP4 in fitting
        found += [NVFP4_GLOBAL] if is_global else fitting
    return found


def unbind(weight: Written) -> Sequence[Array]:
    """Give the arrays of a weight. Raises UsageError for a shape or a name that MLX has no place for."""
    prefix, form = prefix_of(weight.name, len(weight.shape)), weight.form
    *rows, n_cols = weight.shape
    if not rows or not n_cols or n_cols % group_of(form):
        expected = f"rows of a multiple of {group_of(form)} weights"
        raise UsageError(f"shape {list(weight.shape)}, expected {expected}", tensor=weight.name, found=weight.shape)
    arrays = [Array(f"{prefix}{WEIGHT}", "uint32", (*rows, n_cols * width(form) // WORD), "codes")]
    for param in form.scheme.params:
        shape = (1,) if param.group == Grid(0, 0) else (*rows, n_cols // group_of(form))
        dtype = param.dtype if param.dtype in KINDS_OF else "uint8"
        arrays.append(Array(prefix + param.name, dtype, shape, param.name))
    return arrays


def config(weights: Sequence[Written]) -> Mapping[str, Json]:
    """Say what most packed weights have in common, and of each other one what it has."""
    some = [weight for weight in weights if not weight.form.scheme.is_dense]
    packed = {prefix_of(weight.name, len(weight.shape)).removesuffix("."): facts_of(weight.form) for weight in some}
    if not packed:
        return {}
    most = Counter(packed.values()).most_common(1)[0][0]
    said: dict[str, Any] = said_as(most)
    said |= {module: said_as(facts) for module, facts in packed.items() if facts != most}
    return {"config.json": {"quantization": said, "quantization_config": said}, METADATA: {"format": NAME}}


def facts_of(form: Format) -> tuple[int, int, str]:
    """Give group size, bits and mode of a format."""
    return group_of(form), width(form), MODES.get((form.scheme.alphabet, form.scheme.param("scales")), AFFINE)


def said_as(facts: tuple[int, int, str]) -> dict[str, Any]:
    """Spell facts as the config does."""
    return dict(zip(("group_size", "bits", "mode"), facts, strict=True))


def width(form: Format) -> int:
    """Give the bits of a code."""
    codes = form.parts[0].layout.codes
    assert codes is not None  # every format of MLX has them
    return codes.width


def group_of(form: Format) -> int:
    """Give the weights that share a scale."""
    group = form.scheme.param("scales").group
    assert isinstance(group, Grid)  # and groups within rows
    return group.cols


def number(said: Json, key: str, default: int) -> int:
    """Read a number of the config. Raises FileError for anything else."""
    found = said.get(key, default)
    if type(found) is not int:
        raise FileError(f"'{key}' of the config's quantization is {found!r}, expected an integer", field=key, found=found)
    return found


def weight_name(prefix: str, rank: int) -> str:
    """Name the weight of a module: a stack of experts bears the module's own name, as gpt-oss has it."""
    return prefix.removesuffix(".") if rank == STACK_RANK and EXPERTS.fullmatch(prefix) else prefix + WEIGHT


def prefix_of(name: str, rank: int) -> str:
    """Give what the names of a weight's arrays begin with. Raises UsageError where they would not give the name back."""
    for prefix in (name.removesuffix(WEIGHT), name + "."):
        if weight_name(prefix, rank) == name and prefix[-1:] in ("", "."):
            return prefix
    expected = f"'<module>.{WEIGHT}', or of a stack '<module>.experts.<name>'"
    raise UsageError(f"mlx names weights {expected}", tensor=name, field="name", expected=expected)


MLX = Dialect(NAME, KINDS, claim, forms, unbind, config)
