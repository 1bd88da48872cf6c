"""Which architectures there are, and which one a model is, by what its files say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from qconvert.architectures.architecture import Architecture, Config
from qconvert.architectures.gemma3 import GEMMA3
from qconvert.architectures.gpt_oss import GPT_OSS
from qconvert.architectures.llama import LLAMA
from qconvert.architectures.qwen2 import QWEN2
from qconvert.architectures.qwen3 import QWEN3, QWEN3_MOE
from qconvert.containers.strict_json import parse_json
from qconvert.opening import gguf_header
from qformat.errors import FileError
from qformat.model import Model

ALL = (LLAMA, QWEN2, QWEN3, QWEN3_MOE, GEMMA3, GPT_OSS)
CONFIG = "config.json"
ARCHITECTURE = "general.architecture"
GGUF, HF = "gguf", "hf"
# Names that only one family has.
_GGUF = re.compile(r"token_embd\.weight|blk\.\d+\..+")
_HF = re.compile(r"(?:.+\.)?(?:embed_tokens\.weight|layers\.\d+\..+)")


def family_of(model: Model) -> str:
    """Tell by whose names a model goes: "gguf", "hf", or "" where nothing tells."""
    if gguf_header(model) is not None:
        return GGUF
    if CONFIG in model.assets:
        return HF
    by_name = ((GGUF, _GGUF), (HF, _HF))
    return next((family for family, pattern in by_name if any(map(pattern.fullmatch, model))), "")


def config_of(model: Model) -> Config:
    """Give what a model's config says; empty without one. Raises FileError where it is no JSON object."""
    if CONFIG not in model.assets:
        return {}
    found = parse_json(model.assets[CONFIG](), path=model.path, what=CONFIG)
    if not isinstance(found, dict):
        raise FileError(f"{CONFIG} is no JSON object", path=model.path, field=CONFIG)
    return found


def of_config(config: Config) -> Architecture | None:
    """Find the architecture that a plain config names; None where it is not known."""
    kind = config.get("model_type")
    return next((arch for arch in ALL if isinstance(kind, str) and kind in arch.classes), None)


def of_metadata(metadata: Mapping[str, Any]) -> Architecture | None:
    """Find the architecture that a GGUF file's metadata names; None where it is not known."""
    return next((arch for arch in ALL if arch.name == metadata.get(ARCHITECTURE)), None)
