"""What the config of a compressed-tensors checkpoint says of a module, and what is written into it.

A config lists groups: modules by name, by pattern or by class, and how their weights and activations are quantized. It is
written from the weights' formats; activations, which no weight tells of, follow the source's config where it has one. Must
not know arrays.

Source: compressed-tensors 0.20.0: quantization/quant_config.py, quantization/quant_args.py, utils/match.py.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from qconvert.containers.strict_json import json_kind
from qconvert.dialects.dialect import Json, Shelf, Written, dense_modules
from qconvert.dialects.geometry import code_bits
from qformat.bits import DTYPES
from qformat.errors import FileError, show
from qformat.formats.form import Format
from qformat.scheme import Grid, Indexed, Integers, Levels, Scheme

NAME = "compressed-tensors"
FORMATS = {
    "pack": "pack-quantized",
    "int": "int-quantized",
    "float": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "mxfp6": "mxfp6-pack-quantized",
    "mxfp8": "mxfp8-quantized",
}
NAIVE, MIXED = "naive-quantized", "mixed-precision"
KNOWN = (*FORMATS.values(), NAIVE, MIXED, "dense")
OWN = ("kv_cache_scheme", "transform_config", "moe_sparsity_config")  # of the source, kept: no weight tells of them
SCALE_DTYPES = {"nvfp4": "torch.float8_e4m3fn", "mxfp4": "torch.uint8", "mxfp6": "torch.uint8", "mxfp8": "torch.uint8"}
PATTERN = "re:"
MAX_PATTERN, MAX_PATTERNS = 1000, 256  # characters of one, and of a name that is held against it; how many are read
# What a pattern may hold between its ".*": nothing that could be read in more ways than its text has places.
_CHOICE = re.compile(r"\((?:\?:)?([^()]*)\)")
_PLAIN = re.compile(r"(?:[\w\s/:-]|\\[.\-/_]|\.|\[[^\[\]\\]+\]\+?|\\d\+?|\((?:\?:)?(?:[\w|-]|\\[.\-_])*\)|\$)*")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a config says of a weight: the words of its `weights`."""

    kind: str
    num_bits: int
    symmetric: bool
    strategy: str
    group_size: int | None = None
    block_structure: tuple[int, int] | None = None
    actorder: str | None = None

    def args(self) -> dict[str, Any]:
        """Give the words as the config spells them; what does not apply is left out."""
        said: dict[str, Any] = {
            "num_bits": self.num_bits,
            "type": "int" if self.kind in ("pack", "int") else "float",
            "symmetric": self.symmetric,
            "group_size": self.group_size,
            "strategy": self.strategy,
            "dynamic": False,
        }
        more = {
            "block_structure": list(self.block_structure or ()) or None,
            "actorder": self.actorder,
            "scale_dtype": SCALE_DTYPES.get(self.kind),
        }
        return said | {key: value for key, value in more.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Groups:
    """The groups of a config, by what their targets are; `unread`: the first pattern that is not among them."""

    names: Mapping[str, Json]
    patterns: tuple[tuple[str, Json], ...]
    by_class: Json
    unread: str = ""

    def find(self, module: str) -> Json:
        """Give the group of a module: named, by a pattern, or by its class; empty where none takes it.

        Raises FileError where a pattern that is not read may be the one that takes it.
        """
        named = self.names.get(module) or next((group for target, group in self.patterns if matches(target, module)), None)
        if named is None and self.unread:
            found = show(self.unread, quote=True, limit=60)
            message = f"pattern {found} may mean this module and is not read, expected text, '.', '.*', classes and choices"
            raise FileError(message, tensor=module, field="config_groups", found=self.unread)
        return named or self.by_class


def settings_of(shelf: Shelf) -> Json:
    """Give what a checkpoint's config says of compressed-tensors; empty where it says nothing of it.

    Raises FileError for a format that is not known, and for groups that are none.
    """
    said = shelf.quantization or shelf.config.get("compression_config")
    if not isinstance(said, Mapping) or said.get("quant_method", NAME) != NAME:
        return {}
    groups, form = said.get("config_groups"), said.get("format")
    forms = [form, *(group.get("format") for group in _groups(said))]
    for found in forms:
        if found is not None and found not in KNOWN:
            name = show(found, quote=True, limit=60) if isinstance(found, str) else json_kind(found)
            raise FileError(f"format {name}, expected one of {', '.join(KNOWN)}", field="format", found=name, expected=KNOWN)
    if "quant_method" in said and (not isinstance(groups, Mapping) or not groups):
        found = "no groups" if isinstance(groups, Mapping) else json_kind(groups)
        raise FileError(f"{found}, expected the groups of modules that are quantized", field="config_groups", found=found)
    return said


def read_groups(settings: Json) -> Groups:
    """Read the groups of a config; of patterns the first few hundred."""
    names: dict[str, Json] = {}
    patterns: list[tuple[str, Json]] = []
    by_class: Json = {}
    for group in _groups(settings):
        for target in group["targets"]:
            if not isinstance(target, str):
                continue
            if target.startswith(PATTERN):
                patterns.append((target, group))
            elif "." not in target and target[:1].isupper():
                by_class = by_class or group
            else:
                names.setdefault(target, group)
    known = [(target, group) for target, group in patterns[:MAX_PATTERNS] if _runs(target)]
    unread = next((target for target, _ in patterns if target not in dict(known)), "")
    return Groups(names, tuple(known), by_class, unread)


def matches(target: str, module: str) -> bool:
    """Tell whether a target or an ignored name is a module's: its name, or "re:" and a pattern that its name begins with.

    Patterns of plain text, "." and ".*", classes and choices are read, in time that grows as the name does. No other
    pattern matches.
    """
    if not target.startswith(PATTERN):
        return target == module
    if len(module) > MAX_PATTERN:
        return False
    at = 0
    for number, run in enumerate(_runs(target)):
        found = run.search(module, at) if number else run.match(module)
        if found is None:
            return False
        at = found.end()
    return bool(_runs(target))


def write(weights: Sequence[Written], old: Json) -> dict[str, Any]:
    """Say how the packed ones of weights are stored: groups of equal ones, those of most weights by class.

    old : what the source's config says, for activations and what else no weight tells; empty without
    """
    packed = {weight.module: facts_of(weight) for weight in weights if not weight.form.scheme.is_dense}
    sizes = {facts.group_size for facts in packed.values()}
    whole = {weight.module: weight.shape[-1] for weight in weights if weight.module in packed}
    for module, facts in packed.items():  # rows that are one group among weights that have several
        if facts.strategy == "channel" and whole[module] in sizes:
            packed[module] = Facts(facts.kind, facts.num_bits, facts.symmetric, "group", whole[module])
    dense, known = {weight.name for weight in weights if weight.form.scheme.is_dense}, read_groups(old)
    groups: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for module, facts in packed.items():
        said = known.find(module)
        own = {**said, "format": said.get("format") or old.get("format")}
        group = {"weights": facts.args(), **_activations(module, facts, dense, own)}
        groups.setdefault(repr(group), (group, []))[1].append(module)
    order = sorted(groups.values(), key=lambda found: -len(found[1]))
    targets = [_targets(modules, is_first=not number) for number, (_, modules) in enumerate(order)]
    forms = Counter(group["format"] for group, _ in order)
    return {
        "quant_method": NAME,
        "format": MIXED if len(forms) > 1 else next(iter(forms)),
        "quantization_status": "compressed",
        "config_groups": {f"group_{n}": {"targets": targets[n], **group} for n, (group, _) in enumerate(order)},
        "ignore": _ignored(weights, packed, old),
        **{key: old[key] for key in OWN if old.get(key) is not None},
    }


def facts_of(weight: Written) -> Facts:
    """Read a weight's format as the words of a config."""
    scheme = weight.form.scheme
    kind, over = kind_of(weight.form), scheme.param("scales").group
    symmetric = all(param.name != "zeros" for param in scheme.params)
    bits = code_bits(scheme) or level_bits(scheme)
    if isinstance(over, Indexed):
        return Facts(kind, bits, symmetric, "group", -(-weight.shape[-1] // over.n_groups), actorder="group")
    assert isinstance(over, Grid)  # `forms` gives no other
    if over.rows > 1:
        return Facts(kind, bits, symmetric, "block", block_structure=(over.rows, over.cols))
    if over == Grid(0, 0):
        return Facts(kind, bits, symmetric, "tensor")
    if not over.cols:
        return Facts(kind, bits, symmetric, "channel")
    return Facts(kind, bits, symmetric, "tensor_group" if kind == "nvfp4" else "group", over.cols)


def kind_of(form: Format) -> str:
    """Tell which of the kinds a format is, by its codes and scales."""
    alphabet, scales = form.scheme.alphabet, form.scheme.param("scales").dtype
    if isinstance(alphabet, Integers):
        return "pack" if form.parts[0].layout.n_bytes > 1 else "int"
    bits = level_bits(form.scheme)
    if not DTYPES[scales].mantissa:
        return f"mxfp{bits}"
    return "nvfp4" if bits == 4 else "float"


def level_bits(scheme: Scheme) -> int:
    """Give the bits of a code of a small float type; 0 for other alphabets."""
    levels = scheme.alphabet.levels if isinstance(scheme.alphabet, Levels) else ()
    return (len(levels) - 1).bit_length() if levels else 0


def _groups(settings: Json) -> list[Json]:
    """List the groups; one whose key is the name of a preset is its targets, and says nothing of weights and inputs."""
    groups = settings.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    shaped = [group if isinstance(group, Mapping) else {"targets": group} for group in found]
    return [group for group in shaped if isinstance(group.get("targets"), list)]


@lru_cache(maxsize=1024)
def _runs(target: str) -> tuple[re.Pattern[str], ...]:
    """Cut a pattern at its ".*"; empty where it holds anything that is not read."""
    text = target.removeprefix(PATTERN).removeprefix("^")
    runs = text.split(".*")
    if len(text) > MAX_PATTERN or any(_PLAIN.fullmatch(run) is None for run in runs):
        return ()
    return tuple(re.compile(_CHOICE.sub(_once, run).replace("]+", "]++").replace("d+", "d++")) for run in runs)


def _once(choice: re.Match[str]) -> str:
    """Say a choice so that it is made once, the longest first: choices that are taken back cost all ways to make them."""
    return f"(?>{'|'.join(sorted(choice[1].split('|'), key=len, reverse=True))})"


def _targets(modules: list[str], is_first: bool) -> list[str]:
    """Name the modules of a group; those of the first by their class, but for embeddings, which are of another."""
    return ["Linear", *(module for module in modules if _is_embedding(module))] if is_first else sorted(modules)


def _ignored(weights: Sequence[Written], packed: Mapping[str, Facts], old: Json) -> list[str]:
    """List the modules that are of a quantized class and not quantized: what the source ignored, dense matrices, lm_head."""
    said = old.get("ignore")
    kept = [name for name in said if isinstance(name, str) and name not in packed] if isinstance(said, list) else []
    patterns = [name for name in kept if name.startswith(PATTERN)][:MAX_PATTERNS]
    wrong = {name for name in patterns if any(matches(name, module) for module in packed)}
    right = [name for name in patterns if name not in wrong]
    wanted = [module for module in (*dense_modules(weights), "lm_head") if module not in packed and not _is_embedding(module)]
    missing = [module for module in wanted if not any(matches(name, module) for name in right)]
    return list(dict.fromkeys([name for name in kept if name not in wrong] + missing))


def _is_embedding(module: str) -> bool:
    return "embed" in module.rpartition(".")[2]


def _activations(module: str, facts: Facts, dense: set[str], said: Json) -> dict[str, Any]:
    """Say how a module's inputs are quantized: as the source says, else as its arrays and the meaning of its kind do.

    said : group of the module in the source's config, and its format; no more than that where there is none
    """
    is_byte, static = facts.kind in ("int", "float"), f"{module}.input_scale" in dense
    inputs = said.get("input_activations")
    if inputs is None and is_byte and (static or "weights" not in said):
        inputs = Facts(facts.kind, 8, True, "tensor" if static else "token").args() | {"dynamic": not static}
        if facts.block_structure and not static:
            inputs |= {"strategy": "group", "group_size": facts.block_structure[1]}
    elif inputs is None and facts.kind == "nvfp4" and f"{module}.input_global_scale" in dense:
        inputs = facts.args() | {"dynamic": "local"}
    form = NAIVE if is_byte and said.get("format") == NAIVE else FORMATS[facts.kind]
    return {"input_activations": inputs, "output_activations": said.get("output_activations"), "format": form}
