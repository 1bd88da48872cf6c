"""Which tokens begin and end a text, which are added without being asked for, and how a chat is written: as key-values.

The gguf package's SpecialVocab reads it, from a folder with what it looks at; its tables name the keys. Decides what it is
given: numbers that are ids, tokens that the vocabulary has. Must not know how a vocabulary is stored.

Source: gguf 0.19.0: gguf/vocab.py (SpecialVocab), gguf/gguf_writer.py (add_chat_template); ggml-org/llama.cpp:
src/llama-vocab.cpp (load: what is true where nothing is said).
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

from qconvert.architectures.tokenizer_node import Node, parse
from qconvert.architectures.tokenizer_pre import find_cutting
from qconvert.architectures.tokenizer_vocabulary import BYTE_LEVEL, Kind, Vocabulary
from qconvert.containers.gguf_types import ARRAY, BOOL, STRING, UINT32
from qconvert.containers.gguf_values import KeyValue, key_value
from qformat.errors import FileError, show

Assets = Mapping[str, Callable[[], bytes]]

CONFIG, TOKENS_MAP = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATES = ("chat_template.jinja", "chat_template.json")

# Keys of the ids, by the words that checkpoints use for them.
IDS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
ADDS = {
    "bos": "tokenizer.ggml.add_bos_token",
    "eos": "tokenizer.ggml.add_eos_token",
    "sep": "tokenizer.ggml.add_sep_token",
}
TEMPLATE, NAMED_TEMPLATE, TEMPLATE_NAMES = (
    "tokenizer.chat_template",
    "tokenizer.chat_template.{}",
    "tokenizer.chat_templates",
)


def read_config(assets: Assets) -> Node:
    """Read what a folder says of its tokenizer beside the vocabulary. Raises FileError."""
    members: dict[str, Any] = {}
    for name in (TOKENS_MAP, CONFIG):
        if name in assets:
            members |= parse(assets[name](), name).members()
    return Node(members, CONFIG)


def read(
    assets: Assets, config: Mapping[str, Any], said: Node, post_processor: object, vocabulary: Vocabulary
) -> list[KeyValue]:
    """Give the key-values of a folder.

    config         : the model's config.json
    said           : what `read_config` gives
    post_processor : the member of a tokenizer.json, None where there is none

    Raises FileError where SpecialVocab finds no sense in it.
    """
    ids, adds, template = _ask(assets, config, said, post_processor, vocabulary)
    places = {token: at for at, token in enumerate(vocabulary.tokens)}
    for word in ("eot", "eom"):
        token = _content(said, word)
        if token in places:
            ids.setdefault(word, places[token])
    if vocabulary.model == BYTE_LEVEL and find_cutting(vocabulary.pre).adds_bos:
        adds.setdefault("bos", False)  # llama.cpp adds one where nothing is said
    pairs = [key_value(key, UINT32, ids[word]) for word, key in IDS.items() if word in ids]
    pairs += [key_value(key, BOOL, adds[word] and word in ids) for word, key in ADDS.items() if word in adds]
    return pairs + _template(template)


def _ask(
    assets: Assets, config: Mapping[str, Any], said: Node, post_processor: object, vocabulary: Vocabulary
) -> tuple[dict[str, int], dict[str, bool], Any]:
    """Ask SpecialVocab, in a folder of its own."""
    named = {_content(said, word) for word in (*IDS, "cls")}
    added = [
        {"id": at, "content": token}
        for at, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind not in (Kind.NORMAL, Kind.BYTE, Kind.UNUSED) or token in named
    ]
    n_vocab = len(vocabulary.tokens)
    known = {f"{word}_token_id": config.get(f"{word}_token_id") for word in IDS}
    files: dict[str, bytes] = {
        "tokenizer.json": _dump({"added_tokens": added, "post_processor": post_processor}),
        "config.json": _dump({key: at for key, at in known.items() if type(at) is int and 0 <= at < n_vocab}),
    }
    files |= {name: assets[name]() for name in TEMPLATES if name in assets}
    if said.members() or files.keys() & set(TEMPLATES):
        files[CONFIG] = _dump({"name_or_path": "", **said.members()})  # an empty one would hide the template
    from gguf import SpecialVocab

    with tempfile.TemporaryDirectory(prefix="qfmt-") as folder, _quiet():
        for name, data in files.items():
            Path(folder, name).write_bytes(data)
        try:
            found = SpecialVocab(folder, n_vocab=n_vocab)
        except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError) as err:
            message = f"the special tokens make no sense: {show(str(err), limit=120)}"
            raise FileError(message, path=CONFIG, field="post_processor") from err
    return dict(found.special_token_ids), dict(found.add_special_token), found.chat_template


def _template(found: Any) -> list[KeyValue]:
    """Give the key-values of a template, or of several by name."""
    if found is None:
        return []
    if isinstance(found, str):
        return [key_value(TEMPLATE, STRING, found)]
    named: dict[str, str] = {}
    for node in Node(found, CONFIG, "chat_template").nodes():
        name = "".join(c if c in ascii_letters + digits else "_" for c in node.need("name").text())
        named[name] = node.need("template").text()
    default = named.pop("default", None)
    pairs = [key_value(NAMED_TEMPLATE.format(name), STRING, text) for name, text in named.items()]
    pairs += [key_value(TEMPLATE_NAMES, ARRAY, list(named), STRING)] if named else []
    return pairs + ([key_value(TEMPLATE, STRING, default)] if default is not None else [])


def _content(said: Node, word: str) -> str | None:
    """Give a special token's text, which stands there by itself or among its properties."""
    found = said.members().get(f"{word}_token")
    text = found.get("content") if isinstance(found, dict) else found
    return text if isinstance(text, str) else None


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's warnings, which are about its own choices, from the terminal."""
    logger = logging.getLogger("gguf.vocab")
    was = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was
