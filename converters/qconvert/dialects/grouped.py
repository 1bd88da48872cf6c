"""What GPTQ and AWQ checkpoints have alike: three arrays of a module, and what a config says of bits and groups.

A config may speak of single modules in patterns. Which module a pattern means is never worked out: arrays say bits and,
nearly always, groups, and have to be one of the ways that the config names. Must not read codes.

Source: ModelCloud/GPTQModel 7.7.0: gptqmodel/quantization/config.py (dynamic); intel/auto-round at b9f3d007:
auto_round/export/export_to_autoround/export.py, auto_round/inference/backend.py (packing_format).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from qconvert.dialects.dialect import Json, Shelf, Written, dense_modules
from qformat.errors import FileError

ARRAYS = (".qweight", ".qzeros", ".scales")
SCALES = ("float16", "bfloat16", "float32")
BITS = ("bits", "w_bit")
GROUPS = ("group_size", "q_group_size")
QUANTIZATION, SKIPPED = "quantization_config", "modules_to_not_convert"
OVERRIDES = ("dynamic", "extra_config")
AUTO_ROUND = ("auto-round", "intel/auto-round")
IN_BLOCKS = re.compile(r"\.\d+\.")  # modules among which quantizers look for matrices
BESIDE = ("quantize_config.json", "quant_config.json")  # of checkpoints older than quantization_config


def settings(shelf: Shelf) -> Json:
    """Give what the checkpoint says of its quantization, in config.json or in a file of its own."""
    return shelf.quantization or next((said for said in map(shelf.side, BESIDE) if said), {})


def convention(shelf: Shelf) -> tuple[str, str]:
    """Say whose convention arrays follow, and its kind: ("gptq", "v1"); each empty where nothing says it.

    The user is believed before the config.
    """
    for word in shelf.assume:
        name, _, kind = word.partition(":")
        if name in ("gptq", "awq"):
            return name, kind
    said = settings(shelf)
    method = str(said.get("quant_method", ""))
    if method not in AUTO_ROUND:
        return method, ""
    packing = str(said.get("packing_format", said.get("backend", "auto")))
    if "awq" in packing:
        return "awq", "gemm"
    if packing in ("auto_round", "auto_round:gptqmodel"):
        return "gptq", "v2"
    return ("gptq", "v1") if packing == "auto" or "gptq" in packing else (method, "")


def modules(shelf: Shelf, name: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Find the modules that follow a convention: by what is said, else by the arrays."""
    said, _ = convention(shelf)
    if said not in ("", name):
        return
    for module, arrays in shelf.modules(*ARRAYS):
        by_rows = shelf.infos[arrays[".qweight"]].shape[-1:] == shelf.infos[arrays[".scales"]].shape[-1:]
        if said or by_rows == (name == "gptq"):
            yield module, arrays


def check_bits(shelf: Shelf, bits: int, array: str) -> None:
    """Raise FileError where a config names other bits than an array has."""
    known = numbers_of(shelf, BITS)
    if known and bits not in known:
        message = f"fields of {bits} bits, expected {known[0]} as the config says"
        raise FileError(message, tensor=array, field="bits", found=bits, expected=known[0])


def group_size(shelf: Shelf, n_cols: int, n_groups: int, array: str, found: int = 0) -> int:
    """Give the neighbouring columns of a group; 0: all of them.

    found : columns of a group as the arrays themselves say it; 0: they do not

    Raises FileError where the config names other groups, or nothing says how many columns the groups have.
    """
    known = numbers_of(shelf, GROUPS)
    wrong = next((size for size in known if size != -1 and size < 1), None)
    if wrong is not None:
        raise FileError(f"group_size {wrong}, expected -1 or more than 0", field="group_size", found=wrong)
    sizes = dict.fromkeys(n_cols if size == -1 else size for size in known)
    fitting = [size for size in sizes if -(-n_cols // size) == n_groups and (n_groups == 1 or found in (0, size))]
    if n_groups == 1 and (fitting or not known):
        return 0
    if known and not fitting:
        lie = f"{n_cols} columns in {n_groups} groups{f' of {found}' if found else ''}"
        message = f"{lie}, expected groups of {known[0]} as the config says"
        raise FileError(message, tensor=array, field="group_size", found=n_groups, expected=known[0])
    whole = [size for size in fitting if n_cols % size == 0] or fitting or [found or n_cols // n_groups]
    if len(whole) > 1 or (not fitting and not found and n_cols % n_groups):
        message = f"{n_cols} columns in {n_groups} groups, expected a group_size in the config"
        raise FileError(message, tensor=array, field="group_size", found=n_groups)
    return whole[0]


def dense_in_blocks(weights: Sequence[Written]) -> list[str]:
    """List the modules that keep a dense matrix where a reader of the config would look for packed ones."""
    return [module for module in dense_modules(weights) if IN_BLOCKS.search(module)]


def carry(name: str, weights: Sequence[Written], source: Json, said: Mapping[str, Json]) -> Mapping[str, Json]:
    """Add what a source of the same method says of how it was made, and of modules that are none of the weights."""
    old = source.get(QUANTIZATION)
    if not said or not isinstance(old, Mapping) or old.get("quant_method") != name:
        return said
    mine = dict(said["config.json"][QUANTIZATION])
    if SKIPPED in mine and isinstance(old.get(SKIPPED), list):
        packed = [weight.module for weight in weights if not weight.form.scheme.is_dense]
        kept = [part for part in old[SKIPPED] if isinstance(part, str) and not any(part in module for module in packed)]
        others = [module for module in mine[SKIPPED] or () if not any(part in module for part in kept)]
        mine[SKIPPED] = [*kept, *others] or None
    known = {*mine, *OVERRIDES, "format"}
    return {"config.json": {QUANTIZATION: {**mine, **{key: value for key, value in old.items() if key not in known}}}}


def numbers_of(shelf: Shelf, keys: Sequence[str]) -> list[int]:
    """List what a checkpoint's config says by any of these keys, each number once: of all modules first, then of some."""
    return shelf.once(f"numbers of {keys[0]}", lambda: _numbers_of(settings(shelf), keys))


def _numbers_of(said: Json, keys: Sequence[str]) -> list[int]:
    tables = [said[key] for key in OVERRIDES if isinstance(said.get(key), Mapping)]
    some = [entry for table in tables for entry in table.values() if isinstance(entry, Mapping)]
    of_some = [entry[key] for entry in some for key in keys if entry.get(key) is not None]
    found = [said[key] for key in keys if key in said] + of_some
    for value in found:
        if type(value) is not int:
            raise FileError(f"{keys[0]} is {value!r}, expected an integer", field=keys[0], found=value)
    return list(dict.fromkeys(found))
