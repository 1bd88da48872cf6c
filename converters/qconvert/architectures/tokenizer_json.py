"""A tokenizer.json as a vocabulary: byte-level BPE, or sentencepiece's BPE with bytes to fall back on.

Decides which of these files llama.cpp can follow, and refuses the others by what they ask for; the gguf package's readers of
them need transformers, or ids without gaps. Of an added token its text and id are read, and whether it is special: that it
takes up spaces beside it, or stands for whole words alone, has no word in GGUF and is left out, as llama.cpp's converter does.
Must not know special ids, templates and other files.

Source: huggingface/tokenizers 0.23: models/bpe/serialization.rs, added_vocabulary.rs; ggml-org/llama.cpp: conversion/base.py
(get_vocab_base).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from qconvert.architectures.tokenizer_merges import Pair, scores_of
from qconvert.architectures.tokenizer_node import Node
from qconvert.architectures.tokenizer_pre import recognize
from qconvert.architectures.tokenizer_vocabulary import (
    BYTE_LEVEL,
    PIECES,
    SPACE,
    Kind,
    Places,
    Vocabulary,
    kind_of_added,
)
from qformat.errors import NotExact, show

NAME = "tokenizer.json"

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPLIT_AT_SPACES = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


def is_of_pieces(root: Node) -> bool:
    """Tell whether a file's tokens are sentencepiece's. Raises NotExact for a model other than BPE."""
    model = root.need("model")
    kind = model.get("type")
    if kind is not None and kind.text() != "BPE":
        message = f"the model is {show(kind.text(), quote=True, limit=40)}, expected 'BPE'"
        raise NotExact(message, path=root.path, field="tokenizer.ggml.model", expected="BPE", found=kind.text())
    return model.flag("byte_fallback")


def read(root: Node, n_vocab: int, lent: Sequence[tuple[str, float]] = ()) -> Vocabulary:
    """Read the vocabulary of a file.

    root    : the whole file
    n_vocab : ids that the model has
    lent    : pieces by id with their scores, as a tokenizer.model beside it has them; merges say less of scores. They count
              where every token that is not an added one is the piece of its id, and no merge stands before one of a higher
              score

    Raises FileError for what breaks the format, ids outside the model's or taken twice among it; NotExact for what
    llama.cpp's tokenizers do not do.
    """
    model = root.need("model")
    for member in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        asked = model.get(member)
        if asked is not None and asked.value:
            raise asked.inexact(f"found {show(str(asked.value), quote=True, limit=40)}, expected none")
    of_pieces = is_of_pieces(root)
    places = _place(root, n_vocab, of_pieces)
    merges = _merges(model.need("merges"), places)
    if not of_pieces:
        return Vocabulary(BYTE_LEVEL, recognize(root).name, places.finish(), places.kinds, merges=merges)
    for token, score in _scores(places, merges, lent).items():
        places.scores[places.ids[token]] = score
    adds_space = _adds_space(root)
    return Vocabulary(PIECES, "default", places.finish(), places.kinds, places.scores, adds_space=adds_space)


def _scores(places: Places, merges: Sequence[Pair], lent: Sequence[tuple[str, float]]) -> Mapping[str, float]:
    """Give the scores of all tokens but the added ones: those lent, if they say the merges; else what the merges say."""
    found = {token: at for token, at in places.ids.items() if places.kinds[at] in (Kind.NORMAL, Kind.BYTE, Kind.UNKNOWN)}
    normal = {token: at for token, at in found.items() if places.kinds[at] == Kind.NORMAL}
    own = [(left, right) for left, right in merges if left in normal and right in normal and left + right in normal]
    if lent and all(at < len(lent) and lent[at][0] == token for token, at in found.items()):
        scores = {token: lent[at][1] for token, at in found.items()}
        if all(scores["".join(one)] >= scores["".join(two)] for one, two in pairwise(own)):
            return scores
    return scores_of(own, sorted(normal, key=normal.__getitem__))


def _place(root: Node, n_vocab: int, of_pieces: bool) -> Places:
    """Put all tokens at their ids, the added ones last, which may be among the others."""
    vocab = root.need("model").need("vocab")
    unknown = root.need("model").get("unk_token")
    name = unknown.text() if unknown is not None and of_pieces else None

    places = Places(n_vocab, root.path, drops=of_pieces)
    for token, at in vocab.members().items():
        if of_pieces and _BYTE.fullmatch(token):
            places.put(token, at, Kind.BYTE, 0.0)
        else:
            places.put(token, at, Kind.UNKNOWN if token == name else Kind.NORMAL, 0.0)
    added = root.get("added_tokens")
    for node in added.nodes() if added is not None else ():
        token = node.need("content").text()
        places.put(token, node.need("id").value, kind_of_added(token, node.flag("special")))
    return places


def _merges(node: Node, places: Places) -> list[Pair]:
    """Read the merges, which are written as pairs or with a space between."""
    known = places.ids.keys() | places.beyond
    pairs: list[Pair] = []
    for index, item in enumerate(node.items()):
        pair = tuple(item.split(" ") if isinstance(item, str) else item if isinstance(item, list) else ())
        is_pair = len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is str
        if not (is_pair and pair[0] in known and pair[1] in known and pair[0] + pair[1] in known):
            message = f"found {show(str(item), quote=True, limit=80)}, expected two tokens whose whole is a token"
            raise node.at(index, item).error(message)
        pairs.append(pair)
    return pairs


def _adds_space(root: Node) -> bool:
    """Tell whether a text begins with a space that is not in it. Raises NotExact where spaces are not kept."""
    is_marked = adds_space = False
    normalizer, pre = root.get("normalizer"), root.get("pre_tokenizer")
    for step in normalizer.steps("normalizers") if normalizer is not None else ():
        match step.members():
            case {"type": "Prepend", "prepend": prepend} if prepend == SPACE and not is_marked:
                adds_space = True
            case {"type": "Replace", "pattern": {"String": " "}, "content": content} if content == SPACE:
                is_marked = True
            case _:
                raise step.inexact(_unlike("normalizer", step))
    for step in pre.steps("pretokenizers") if pre is not None else ():
        match step.members():
            case {"type": "Metaspace", "replacement": mark, "split": False} if mark == SPACE and not is_marked:
                scheme = step.get("prepend_scheme")
                adds_space, is_marked = scheme is None or scheme.text() != "never", True
            case members if members == _SPLIT_AT_SPACES and is_marked:
                pass  # there are none left
            case _:
                raise step.inexact(_unlike("pre-tokenizer", step))
    if not is_marked:
        raise root.inexact(f"nothing puts {show(SPACE, quote=True)} for spaces, which llama.cpp does before it joins pieces")
    return adds_space


def _unlike(what: str, step: Node) -> str:
    return f"the {what} {show(step.need('type').text(), quote=True, limit=40)} changes texts in a way that llama.cpp does not"
