"""The tokenizer of a model, from a checkpoint's folder into a GGUF file and back.

Decides which files of a folder count: tokenizer.json says what the tokens are; a tokenizer.model beside it lends the scores
of its pieces, and counts alone where there is no tokenizer.json. Must not know tensors.

Source: ggml-org/llama.cpp: conversion/base.py (_set_vocab_gpt2, _create_vocab_sentencepiece), conversion/llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qconvert.architectures import tokenizer_folder, tokenizer_json, tokenizer_sentencepiece, tokenizer_special
from qconvert.architectures.tokenizer_folder import ADDS_SPACE, KINDS, MERGES, MODEL, PRE, SCORES, TOKENS
from qconvert.architectures.tokenizer_node import Node, parse
from qconvert.architectures.tokenizer_special import Assets
from qconvert.architectures.tokenizer_vocabulary import PIECES, Places, Vocabulary, kind_of_added
from qconvert.containers.gguf_types import ARRAY, BOOL, STRING
from qconvert.containers.gguf_values import KeyValue, key_value
from qformat.errors import FileError, NotExact

NO_TOKENIZER = "none"
INT32, FLOAT32 = 5, 6
ADDED = "added_tokens.json"
OTHERS = ("vocab.json", "vocab.txt", "tekken.json", "tiktoken.model", "spiece.model")


def to_gguf(assets: Assets, config: Mapping[str, Any], n_vocab: int) -> tuple[KeyValue, ...]:
    """Give the key-values of a folder's tokenizer.

    assets  : files of the folder by name
    config  : its config.json
    n_vocab : rows of the model's embedding; ids that no token has become "[PADn]", of type unused
    returns : `tokenizer.ggml.model` = "none" alone where the folder has no tokenizer

    Raises FileError for files that break their format; NotExact for a tokenizer that llama.cpp does not have, with `field`
    naming the key that cannot be said.
    """
    if tokenizer_json.NAME not in assets and tokenizer_sentencepiece.NAME not in assets:
        other = next((name for name in OTHERS if name in assets), None)
        if other is not None:
            message = f"the tokenizer is in '{other}' alone, expected a {tokenizer_json.NAME}, which says how texts are cut"
            raise NotExact(message, field=MODEL, found=other)
        return (key_value(MODEL, STRING, NO_TOKENIZER),)
    said = tokenizer_special.read_config(assets)
    root = parse(assets[tokenizer_json.NAME](), tokenizer_json.NAME) if tokenizer_json.NAME in assets else None
    vocabulary = _read(assets, root, said, n_vocab)
    adds_space = said.members().get("add_prefix_space") if vocabulary.adds_space is None else vocabulary.adds_space
    if vocabulary.model != PIECES and adds_space is True:
        message = "a space is put before a text, which llama.cpp does not do where tokens are made of bytes"
        raise NotExact(message, path=said.path, field="add_prefix_space", found=True)
    pairs = [
        key_value(MODEL, STRING, vocabulary.model),
        key_value(PRE, STRING, vocabulary.pre),
        key_value(TOKENS, ARRAY, vocabulary.tokens, STRING),
    ]
    if vocabulary.scores:
        pairs.append(key_value(SCORES, ARRAY, vocabulary.scores, FLOAT32))
    pairs.append(key_value(KINDS, ARRAY, vocabulary.kinds, INT32))
    if vocabulary.model != PIECES:
        pairs.append(key_value(MERGES, ARRAY, [f"{left} {right}" for left, right in vocabulary.merges], STRING))
    if isinstance(adds_space, bool):
        pairs.append(key_value(ADDS_SPACE, BOOL, adds_space))
    post_processor = root.members().get("post_processor") if root is not None else None
    return (*pairs, *tokenizer_special.read(assets, config, said, post_processor, vocabulary))


def to_hf(metadata: Mapping[str, Any]) -> Mapping[str, bytes]:
    """Give the files of a GGUF file's tokenizer, by name; none where it has no tokenizer.

    metadata : key-values of the file, lists as GGUFArray or as lists

    Raises NotExact for a tokenizer of another kind, with `field` naming the key that says so, and for one whose tokens or
    scores no tokenizer.json holds; FileError for key-values that do not fit together.
    """
    if metadata.get(MODEL, NO_TOKENIZER) == NO_TOKENIZER:
        return {}
    return tokenizer_folder.write(metadata, tokenizer_folder.read_vocabulary(metadata))


def _read(assets: Assets, root: Node | None, said: Node, n_vocab: int) -> Vocabulary:
    """Read the vocabulary from the files that count."""
    model = assets.get(tokenizer_sentencepiece.NAME)
    if root is not None:
        is_lent = model is not None and tokenizer_json.is_of_pieces(root)
        return tokenizer_json.read(root, n_vocab, tokenizer_sentencepiece.read_scores(model()) if model and is_lent else ())
    places = Places(n_vocab, tokenizer_sentencepiece.NAME, drops=True)
    adds_space = tokenizer_sentencepiece.read(model() if model else b"", places)
    _add(assets, said, places)
    return Vocabulary(PIECES, "default", places.finish(), places.kinds, places.scores, adds_space=adds_space)


def _add(assets: Assets, said: Node, places: Places) -> None:
    """Put the tokens that other files add to a tokenizer.model, in place of those that it has."""
    if ADDED in assets:
        for token, at in parse(assets[ADDED](), ADDED).members().items():
            places.put(token, at, kind_of_added(token, is_special=False), replaces=True)
    decoder = said.get("added_tokens_decoder")
    for at in decoder.members() if decoder is not None else ():
        node = said.need("added_tokens_decoder").need(at)
        if not (at.isascii() and at.isdigit() and len(at) < len(str(2**64))):
            raise FileError(f"the id {at!r:.40}, expected a number", path=said.path, field="added_tokens_decoder", found=at)
        token = node.need("content").text()
        places.put(token, int(at), kind_of_added(token, node.flag("special")), replaces=True)
