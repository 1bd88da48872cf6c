"""Tokenizers small enough to be written by hand, as the files of a checkpoint's folder."""

import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from qconvert.architectures.tokenizer import to_gguf
from qconvert.containers.gguf_values import GGUFArray

Json = dict[str, Any]

# As they stand in the files of Qwen2.5, Llama 3, gpt-oss, Mistral Nemo, SmolLM2 and GPT-2.
CUT_QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CUT_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUT_GPT4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUT_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS: Json = {"type": "Digits", "individual_digits": True}
BOS_BEFORE: Json = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
}


def split(expression: str, behavior: str = "Isolated", invert: bool = False) -> Json:
    """Write how an expression cuts a text, bytes after it."""
    cut = {"type": "Split", "pattern": {"Regex": expression}, "behavior": behavior, "invert": invert}
    return {"type": "Sequence", "pretokenizers": [cut, BYTES | {"use_regex": False}]}


def added(at: int, content: str, special: bool) -> Json:
    """Write a token that is found before others are joined."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": at, "content": content, **plain, "special": special}


def byte_level() -> Json:
    """Write a tokenizer.json of bytes: three letters, two merges, one token of each kind after them."""
    return {
        "version": "1.0",
        "added_tokens": [added(5, "<|end|>", True), added(6, "<tool>", False)],
        "normalizer": None,
        "pre_tokenizer": dict(BYTES),
        "post_processor": None,
        "decoder": dict(BYTES),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "byte_fallback": False,
            "vocab": {"a": 0, "b": 1, "\u0120": 2, "ab": 3, "\u0120ab": 4},
            "merges": ["a b", "\u0120 ab"],
        },
    }


def pieces() -> Json:
    """Write a tokenizer.json of pieces: two letters, a space, two bytes, merges in another order than their wholes' ids."""
    return {
        "version": "1.0",
        "added_tokens": [added(0, "<unk>", True), added(1, "<s>", True), added(10, "\u2581\u2581", False)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "\u2581"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": BOS_BEFORE,
        "decoder": None,
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": {
                "<unk>": 0,
                "<s>": 1,
                "<0x0A>": 2,
                "<0x0B>": 3,
                "a": 4,
                "b": 5,
                "\u2581": 6,
                "\u2581ab": 7,
                "ab": 8,
                "aab": 9,
            },
            "merges": [["a", "b"], ["a", "ab"], ["\u2581", "ab"]],
        },
    }


def varint(value: int) -> bytes:
    """Write a number as protocol buffers do."""
    low = bytes([value & 127 | (128 if value > 127 else 0)])
    return low + varint(value >> 7) if value > 127 else low


def field(number: int, value: int | bytes | float) -> bytes:
    """Write a field of a message: a number, bytes, or a float of 32 bits."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def piece(text: str, score: float, kind: int = 1) -> bytes:
    """Write a piece of a tokenizer.model."""
    return field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != 1 else b""))


def trainer(model_type: int = 2) -> bytes:
    """Write what a tokenizer.model says of its training."""
    return field(2, field(1, b"corpus.txt") + field(3, model_type) + field(10, 0.5))


def normalizer(adds_space: int = 1, takes_spaces: int = 0, charsmap: bytes = b"") -> bytes:
    """Write what a tokenizer.model does to a text."""
    return field(3, field(1, b"identity") + field(2, charsmap) + field(3, adds_space) + field(4, takes_spaces))


def pieces_model() -> bytes:
    """Write a tokenizer.model with a piece of every kind."""
    rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("a", -3.5, 1), ("b", -4.0, 1), ("ab", -0.5, 1)]
    rows += [("\u2581x", 0.0, 4), ("gone", 0.0, 5)]
    return b"".join(piece(*row) for row in rows) + trainer() + normalizer()


def folder(**files: Json | bytes | str) -> dict[str, Callable[[], bytes]]:
    """Give files by name, with _json, _model and _jinja for the end of a name."""
    ends = ("json", "model", "jinja", "txt")
    names = {name: next(name.removesuffix(f"_{end}") + f".{end}" for end in ends if name.endswith(f"_{end}")) for name in files}

    def dumped(content: Json) -> bytes:
        return json.dumps(content).encode()

    def data(content: Json | bytes | str) -> bytes:
        return (
            content if isinstance(content, bytes) else (content if isinstance(content, str) else json.dumps(content)).encode()
        )

    return {names[name]: (lambda content=content: data(content)) for name, content in files.items()}


def said(files: Mapping[str, Callable[[], bytes]], n_vocab: int, config: Json | None = None) -> Json:
    """Give the key-values of a folder as plain values, without what all their keys begin with."""
    pairs = to_gguf(files, config or {}, n_vocab)
    plain = {pair.key: pair.value.values() if isinstance(pair.value, GGUFArray) else pair.value for pair in pairs}
    assert len(plain) == len(pairs)
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): value for key, value in plain.items()}
