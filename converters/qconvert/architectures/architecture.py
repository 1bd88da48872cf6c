"""What can be said of an architecture: its tensors, the order of their rows, and what its config says of it.

A declaration is data: templates of a checkpoint's names, from which the gguf package's tables give those of a GGUF file, and
rows that join a key of one to a field of the other. The same rows are read both ways. Must not know any architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qconvert.containers.gguf_types import STRING, UINT32
from qconvert.containers.gguf_values import Scalar

Config: TypeAlias = Mapping[str, Any]

FLOAT32 = 6  # number of the value type
LAYER, EXPERT = "{layer}", "{expert}"
# A query or key head is two halves in a checkpoint, turned against one another; some of llama.cpp's models turn neighbours.
QUERY_PAIRS = "head={attention.head_count} half=2 i={} -> head i half"
KEY_PAIRS = "head={attention.head_count_kv} half=2 i={} -> head i half"


@dataclass(frozen=True, slots=True)
class Tensor:
    """Tensors of a checkpoint and of a GGUF file that hold the same rows.

    name     : in a checkpoint; {layer} stands for a number, {expert} too, where each expert has a tensor of its own
    known    : names by which the package's table knows what a GGUF file has in its place; `name` where it is empty. Several
               take equal shares of the rows
    order    : of all rows in a GGUF file (right) as against a checkpoint (left), in the notation of `qformat.order`; a key of
               the file stands for its value, {} for whatever is left. Of a bias every value is a row. Empty: the same
    plus     : what a GGUF file adds to every value
    optional : whether a model may be without it
    flipped  : whether the rows of a dense tensor are columns in a checkpoint
    """

    name: str
    known: tuple[str, ...] = ()
    order: str = ""
    plus: float = 0.0
    optional: bool = False
    flipped: bool = False

    @property
    def is_bias(self) -> bool:
        """Tell whether every value is a row by itself."""
        return self.name.endswith("bias")


@dataclass(frozen=True, slots=True)
class Fact:
    """A key of a GGUF file and the field of a config that says the same.

    key      : without the architecture before it
    fields   : a dot goes one level down; the first that is there is read, the first is written
    kind     : value type of the key
    default  : where no field is there; None leaves the key out
    over     : two fields whose quotient is the default
    words    : what a GGUF file calls the words of a config; others have no place in it
    required : whether there is no model without it
    """

    key: str
    fields: tuple[str, ...]
    kind: int = UINT32
    default: Scalar | None = None
    over: tuple[str, str] | None = None
    words: Mapping[str, str] | None = None
    required: bool = False


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's architecture, as both sides know it.

    name      : in a GGUF file
    classes   : class by model type in a config; the first is written
    tensors   : in the order in which they are written, those of a layer one after another
    facts     : what both sides say
    fixed     : fields of a config that hold for every model of the architecture
    flags     : fields that tell whether there is a tensor, by the name of that of layer 0
    skipped   : tensors of a checkpoint that a runtime computes by itself
    wrapped   : how names begin in a checkpoint of which the model is a part, and how they do by themselves
    tied      : whether a config that does not say so shares the embedding with the output
    scalings  : kinds of rotary scaling that a GGUF file can say; "llama3" as a tensor
    doubts    : says what of a config a runtime does otherwise
    derived   : gives fields of a config that follow from others
    """

    name: str
    classes: Mapping[str, str]
    tensors: tuple[Tensor, ...]
    facts: tuple[Fact, ...]
    fixed: Config = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)
    skipped: tuple[str, ...] = ("model.layers.{layer}.self_attn.rotary_emb.inv_freq",)
    wrapped: Mapping[str, str] = field(default_factory=dict)
    tied: bool = False
    scalings: tuple[str, ...] = ("default", "linear", "yarn")
    doubts: Callable[[Config], str] = lambda config: ""
    derived: Callable[[Config], Config] = lambda config: {}

    @property
    def is_stacked(self) -> bool:
        """Tell whether each expert has tensors of its own in a checkpoint."""
        return any(EXPERT in tensor.name for tensor in self.tensors)


def rope_facts(theta: float | None = None) -> tuple[Fact, ...]:
    """Give the facts of rotary positions; `theta` where a config leaves it out."""
    scaling = {"linear": "linear", "yarn": "yarn"}
    return (
        Fact("rope.scaling.type", ("rope_scaling.rope_type",), STRING, words=scaling),
        Fact("rope.scaling.factor", ("rope_scaling.factor",), FLOAT32),
        Fact("rope.scaling.original_context_length", ("rope_scaling.original_max_position_embeddings",)),
        Fact("rope.scaling.yarn_ext_factor", ("rope_scaling.extrapolation_factor",), FLOAT32),
        Fact("rope.scaling.yarn_attn_factor", ("rope_scaling.attention_factor", "rope_scaling.attn_factor"), FLOAT32),
        Fact("rope.scaling.yarn_beta_fast", ("rope_scaling.beta_fast",), FLOAT32),
        Fact("rope.scaling.yarn_beta_slow", ("rope_scaling.beta_slow",), FLOAT32),
        Fact("rope.freq_base", ("rope_theta",), FLOAT32, theta),
    )


# What every model of decoder blocks says.
DECODER = (
    Fact("block_count", ("num_hidden_layers",), required=True),
    Fact("context_length", ("max_position_embeddings",), required=True),
    Fact("embedding_length", ("hidden_size",), required=True),
    Fact("feed_forward_length", ("intermediate_size",), required=True),
    Fact("attention.head_count", ("num_attention_heads",), required=True),
    Fact("attention.head_count_kv", ("num_key_value_heads", "num_attention_heads")),
)
EPSILON = Fact("attention.layer_norm_rms_epsilon", ("rms_norm_eps",), FLOAT32, required=True)
HEAD = (
    Fact("attention.key_length", ("head_dim",)),
    Fact("attention.value_length", ("head_dim",)),
)
EXPERTS = (
    Fact("expert_count", ("num_local_experts", "num_experts"), required=True),
    Fact("expert_used_count", ("num_experts_per_tok",), required=True),
)
EMBEDDING, NORM, OUTPUT = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"
IN_LAYER = "model.layers.{layer}."
