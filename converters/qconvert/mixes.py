"""Mixes: the block types that llama-quantize gives the tensors of a model for one of its file types, as data.

    gguf:q4_k_m        a mix
    gguf:q6_k_mix      a mix whose own name is that of a block type

A mix is a base type and rows that except some tensors from it. Rows of a length that a type's blocks do not divide fall back
to another type. Nothing here looks at values.

Source: ggml-org/llama.cpp at 007dbbf3: src/llama-quant.cpp (llama_tensor_get_type_impl, tensor_type_fallback). Two things are
left out: the exceptions for falcon, and that a fused attn_qkv is counted as attn_v, which makes that file's own rows for it
unreachable; those rows are kept here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from qconvert.containers.gguf_types import GGML_TYPES
from qconvert.roles import Shape, Traits, block_of, category, runtime_name


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor among its like.

    index        : its number among the tensors of its category, from 0; the block's, where a model has experts
    count        : how many there are; blocks for those of the feed-forward network
    is_stack     : whether it holds several matrices
    traits       : of the model
    has_imatrix  : whether importances are given
    """

    index: int
    count: int
    is_stack: bool
    traits: Traits
    has_imatrix: bool


@dataclass(frozen=True, slots=True)
class When:
    """A condition: words for the report, with the fields of a place in braces, and the test."""

    words: str
    holds: Callable[[Place], bool]


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors of a category that take another type than the base, when a condition holds."""

    category: str
    kind: str
    when: When | None = None


@dataclass(frozen=True, slots=True)
class Mix:
    """A file type of llama-quantize.

    name             : as a target spells it
    base             : type of every tensor that no row names
    file_type        : the number that general.file_type records
    rows             : exceptions; the first that holds counts
    output           : type of the output matrix
    wants_importance : llama-quantize makes it with importances alone
    """

    name: str
    base: str
    file_type: int
    rows: tuple[Row, ...] = ()
    output: str = "q6_k"
    wants_importance: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The type of one tensor, and why."""

    kind: str
    reason: str


ANY = "any"
_BLOCK = "block {place.index} of {place.count}"


def _spread(index: int, count: int) -> bool:
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


MORE_BITS = When(f"more bits for {_BLOCK}", lambda place: _spread(place.index, place.count))
FIRST_2 = When(_BLOCK, lambda place: place.index < 2)
FIRST_4 = When(_BLOCK, lambda place: place.index < 4)
FIRST_8TH = When(_BLOCK, lambda place: place.index < place.count // 8)
FIRST_16TH = When(_BLOCK, lambda place: place.index < place.count // 16)
WEIGHTED_8TH = When(f"{_BLOCK}, with importance", lambda place: place.has_imatrix and FIRST_8TH.holds(place))
UNWEIGHTED_8TH = When(f"{_BLOCK}, without importance", lambda place: not place.has_imatrix and FIRST_8TH.holds(place))
SHARED_BY_4 = When("{place.traits.gqa} query heads share it", lambda place: place.traits.gqa >= 4)
IN_70B = When("a model of 70B", lambda place: place.traits.is_70b)
OF_8 = When("8 experts", lambda place: place.traits.n_experts == 8)
NOT_OF_8 = When("not 8 experts", lambda place: place.traits.n_experts != 8)
ONE_MATRIX = When("no stack of experts", lambda place: not place.is_stack)

VALUES_70B = Row("attn_v", "q5_k", IN_70B)
OUTPUT_OF_8 = Row("attn_output", "q5_k", OF_8)
EMBEDDING = Row("token_embd", "q4_k")
NON_LINEAR = (Row("attn_v", "q5_k", SHARED_BY_4), Row("ffn_down", "q5_k", UNWEIGHTED_8TH), OUTPUT_OF_8)
IN_EVERY_MIX = (Row("attn_v", "q8_0", OF_8), Row("attn_k", "q8_0", OF_8))

# Of mixes with one base, the plainest comes first and the usual one last.
MIXES = (
    Mix("q1_0_mix", "q1_0", 40),
    Mix("q2_0_mix", "q2_0", 41, (EMBEDDING,)),
    Mix("tq1_0_mix", "tq1_0", 36, (EMBEDDING,)),
    Mix("tq2_0_mix", "tq2_0", 37, (EMBEDDING,)),
    Mix("q2_k_s", "q2_k", 21, (
        VALUES_70B, Row("attn_v", "q4_k", SHARED_BY_4), Row("ffn_down", "q4_k", FIRST_8TH),
    ), wants_importance=True),
    Mix("q2_k_mix", "q2_k", 10, (
        VALUES_70B, Row("attn_v", "q4_k", SHARED_BY_4), Row("attn_v", "q3_k"),
        Row("ffn_down", "q3_k"), OUTPUT_OF_8, Row("attn_output", "q3_k"),
    )),
    Mix("q3_k_s", "q3_k", 11, (VALUES_70B, OUTPUT_OF_8)),
    Mix("q3_k_l", "q3_k", 13, (
        Row("attn_v", "q5_k"), Row("ffn_down", "q5_k"), Row("attn_output", "q5_k", NOT_OF_8), Row("attn_qkv", "q4_k"),
    )),
    Mix("q3_k_m", "q3_k", 12, (
        Row("attn_v", "q5_k", FIRST_2), VALUES_70B, Row("attn_v", "q4_k"),
        Row("ffn_down", "q5_k", FIRST_16TH), Row("ffn_down", "q4_k"),
        OUTPUT_OF_8, Row("attn_output", "q4_k"), Row("attn_qkv", "q4_k"),
    )),
    Mix("q4_k_s", "q4_k", 14, (
        Row("attn_v", "q5_k", FIRST_4), VALUES_70B, Row("ffn_down", "q5_k", FIRST_8TH), OUTPUT_OF_8,
    )),
    Mix("q4_k_m", "q4_k", 15, (
        Row("attn_v", "q6_k", MORE_BITS), VALUES_70B, Row("ffn_down", "q6_k", MORE_BITS), OUTPUT_OF_8, Row("attn_qkv", "q5_k"),
    )),
    Mix("q5_k_s", "q5_k", 16),
    Mix("q5_k_m", "q5_k", 17, (
        Row("attn_v", "q6_k", MORE_BITS), Row("ffn_down", "q6_k", MORE_BITS), Row("attn_qkv", "q6_k"),
    )),
    Mix("q6_k_mix", "q6_k", 18),
    Mix("q4_0_mix", "q4_0", 2, (Row("ffn_down", "q4_1", WEIGHTED_8TH),)),
    Mix("q4_1_mix", "q4_1", 3),
    Mix("q5_0_mix", "q5_0", 8, (Row("ffn_down", "q5_1", WEIGHTED_8TH),)),
    Mix("q5_1_mix", "q5_1", 9),
    Mix("q8_0_mix", "q8_0", 7, output="q8_0"),
    Mix("iq4_nl_mix", "iq4_nl", 25, NON_LINEAR),
    Mix("iq4_xs_mix", "iq4_xs", 30, NON_LINEAR),
    Mix("nvfp4_mix", "nvfp4", 39),
    Mix("mxfp4_moe", "mxfp4", 38, (Row(ANY, "q8_0", ONE_MATRIX),), output="q8_0"),
)  # fmt: skip
# File types whose base nothing here encodes, and that are no block types themselves.
WITHOUT_ENCODER = {"iq2_m": "iq2_s", "iq3_xs": "iq3_s", "iq3_m": "iq3_s"}

FALL_BACK = {
    "q2_k": "q4_0", "q3_k": "q4_0", "q2_0": "q4_0", "tq1_0": "q4_0", "tq2_0": "q4_0",
    "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq4_xs": "iq4_nl",
}  # fmt: skip
LAST_RESORT = "f16"
DENSE_FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32}
N_WEIGHTS = {known.name: known.n_weights for known in GGML_TYPES.values()}


def find_mix(name: str) -> Mix | None:
    """Find a mix by its name in a target; None where there is none."""
    return next((mix for mix in MIXES if mix.name == name), None)


def mix_of(base: str) -> Mix | None:
    """Find the usual mix of a base type."""
    return next((mix for mix in reversed(MIXES) if mix.base == base), None)


def file_type_of(kind: str) -> int | None:
    """Give the number that general.file_type has for a file of one type; None where llama.cpp has none."""
    known = next((mix.file_type for mix in MIXES if mix.base == kind), None)
    return DENSE_FILE_TYPES.get(kind) if known is None else known


def choose(mix: Mix, shapes: Mapping[str, Shape], traits: Traits, has_imatrix: bool = False) -> dict[str, Choice]:
    """Choose the type of every tensor that is to be quantized, rows of any length allowed.

    shapes : of these tensors, by their own names
    """
    return {name: fall_back(_choose(mix, runtime_name(name), place), shapes[name][-1])
            for name, place in _places(shapes, traits, has_imatrix).items()}  # fmt: skip


def fall_back(choice: Choice, n_cols: int) -> Choice:
    """Give another type where a chosen one's blocks do not divide the rows."""
    kind, divisor = choice.kind, N_WEIGHTS[choice.kind]
    while n_cols % N_WEIGHTS[kind]:
        divisor, kind = N_WEIGHTS[kind], FALL_BACK.get(kind, LAST_RESORT)
    if kind == choice.kind:
        return choice
    return Choice(kind, f"{choice.reason}; rows of {n_cols} no multiple of {divisor}: {choice.kind} -> {kind}")


def _choose(mix: Mix, name: str, place: Place) -> Choice:
    what = category(name)
    if what == "output" or (what == "token_embd" and place.traits.is_tied):
        return Choice(mix.output, what if what == "output" else f"{what}, the output as well")
    for row in (*IN_EVERY_MIX, *mix.rows):
        if row.category in (what, ANY) and (row.when is None or row.when.holds(place)):
            return Choice(row.kind, f"{what}, {row.when.words.format(place=place)}" if row.when else f"{what} of {mix.name}")
    return Choice(mix.base, f"{what}, base of {mix.name}")


def _places(shapes: Mapping[str, Shape], traits: Traits, has_imatrix: bool) -> dict[str, Place]:
    """Number the tensors of each category, in the order of blocks."""
    order = sorted(shapes, key=lambda name: (-1 if (at := block_of(runtime_name(name))) is None else at, runtime_name(name)))
    like = {name: "attn_v" if (what := category(runtime_name(name))) == "attn_qkv" else what for name in order}
    counts, seen, places = Counter(like.values()), Counter[str](), {}
    for name, what in like.items():
        block = block_of(runtime_name(name))
        is_forward = what.startswith("ffn")
        index = block if is_forward and traits.n_experts > 1 and block is not None else seen[what]
        count = traits.n_blocks if is_forward else counts[what]
        places[name] = Place(index, count, len(shapes[name]) > 2 and shapes[name][-3] > 1, traits, has_imatrix)
        seen[what] += 1
    return places
