"""The files of a tokenizer in a checkpoint's folder, from the key-values of a GGUF file.

Everything goes into tokenizer.json, every token into its vocabulary, so that no id is left to whoever reads it; ids that no
token has are left out. Pieces are also written as tokenizer.model, which alone holds their scores. Decides what the files
say; must not know how key-values lie in a file.

Source: huggingface/tokenizers 0.23: the serde forms of its parts; huggingface/transformers 5.23.0:
src/transformers/convert_slow_tokenizer.py (SpmConverter), tokenization_utils_tokenizers.py; ggml-org/llama.cpp:
src/llama-vocab.cpp (load: what holds where nothing is said).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qconvert.architectures import tokenizer_sentencepiece
from qconvert.architectures.tokenizer_merges import Pair, merges_of
from qconvert.architectures.tokenizer_pre import find_cutting, write_cutting
from qconvert.architectures.tokenizer_special import ADDS, IDS, NAMED_TEMPLATE, TEMPLATE, TEMPLATE_NAMES
from qconvert.architectures.tokenizer_vocabulary import BYTE_LEVEL, PIECES, SPACE, Kind, Vocabulary
from qconvert.containers.gguf_values import GGUFArray
from qformat.errors import FileError, NotExact, show

Json = dict[str, Any]

MODEL, PRE = "tokenizer.ggml.model", "tokenizer.ggml.pre"
TOKENS, KINDS, SCORES, MERGES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores", "merges"))
ADDS_SPACE = "tokenizer.ggml.add_space_prefix"

# What llama.cpp takes for the ids where a file does not give them.
DEFAULT_IDS = {PIECES: {"bos": 1, "eos": 2, "unk": 0}, BYTE_LEVEL: {}}
BYTE_LEVEL_ID = 11  # of both, where one is added


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read the vocabulary of a GGUF file.

    Raises NotExact for a model other than "gpt2" and "llama", and for a token at two ids, which a folder has no way to say;
    FileError for lists that are not there, or do not fit together.
    """
    model = metadata.get(MODEL)
    if model not in (BYTE_LEVEL, PIECES):
        message = f"the tokenizer is {show(str(model), quote=True, limit=40)}, expected '{BYTE_LEVEL}' or '{PIECES}'"
        raise NotExact(message, field=MODEL, expected=(BYTE_LEVEL, PIECES), found=model)
    tokens = _values(metadata, TOKENS, str)
    kinds = _values(metadata, KINDS, int, len(tokens)) if KINDS in metadata else [int(Kind.NORMAL)] * len(tokens)
    strange = next((at for at, kind in enumerate(kinds) if not Kind.NORMAL <= kind <= Kind.BYTE), None)
    if strange is not None:
        raise FileError(f"token {strange} is of type {kinds[strange]}, expected 1 to 6", field=KINDS, found=kinds[strange])
    ids = {token: at for at, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        at, token = next((at, token) for at, token in enumerate(tokens) if ids[token] != at)
        message = f"the tokens {at} and {ids[token]} are both {show(token, quote=True, limit=60)}, expected each once"
        raise NotExact(message, field=TOKENS, found=token)
    if model == PIECES:
        scores = _values(metadata, SCORES, float, len(tokens))
        return Vocabulary(PIECES, "default", tokens, kinds, scores, adds_space=_flag(metadata, ADDS_SPACE, True))
    cutting = find_cutting(str(metadata.get(PRE, "default")))
    merges = [_pair(index, merge, ids) for index, merge in enumerate(_values(metadata, MERGES, str))]
    return Vocabulary(BYTE_LEVEL, cutting.name, tokens, kinds, merges=merges)


def write(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> Mapping[str, bytes]:
    """Give the files: name and content. Raises NotExact where scores put the merges of pieces in no order."""
    n_vocab = len(vocabulary.tokens)
    named = {word: metadata.get(key) for word, key in IDS.items()}  # llama.cpp leaves an id that no token has at its default
    ids = DEFAULT_IDS[vocabulary.model] | {word: at for word, at in named.items() if type(at) is int and 0 <= at < n_vocab}
    ids = {word: at for word, at in ids.items() if at < n_vocab}
    adds_bos = vocabulary.model == PIECES or find_cutting(vocabulary.pre).adds_bos
    begins = _around(metadata, vocabulary, ids, "bos", adds_bos)
    ends = _around(metadata, vocabulary, ids, "eos", False)
    of_pieces = vocabulary.model == PIECES
    special = {f"{word}_token": vocabulary.tokens[at] for word, at in ids.items()}
    files = {
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": _added(vocabulary),
            **(_pieces(vocabulary, ids) if of_pieces else _bytes(vocabulary)),
            "post_processor": _post_processor(vocabulary, begins, ends),
        },
        "tokenizer_config.json": _config(metadata, vocabulary, special),
        "special_tokens_map.json": special,
    }
    ends_text = [at for word in ("eos", "eot") if (at := ids.get(word)) is not None]
    generation = {f"{word}_token_id": ids[word] for word in ("bos", "pad") if word in ids}
    if ends_text:
        files["generation_config.json"] = generation | {"eos_token_id": ends_text if len(ends_text) > 1 else ends_text[0]}
    made = {name: (json.dumps(content, ensure_ascii=False) + "\n").encode() for name, content in files.items()}
    if of_pieces:
        made[tokenizer_sentencepiece.NAME] = tokenizer_sentencepiece.write(vocabulary, ids)
    return made


def _pieces(vocabulary: Vocabulary, ids: Mapping[str, int]) -> Json:
    """Give the members that say how pieces are joined."""
    rows = zip(vocabulary.tokens, vocabulary.kinds, vocabulary.scores, strict=True)
    merges = merges_of({token: score for token, kind, score in rows if kind == Kind.NORMAL})
    replace: Json = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    prepend: Json = {"type": "Prepend", "prepend": SPACE}
    decoders: list[Json] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    normalizer = replace
    if vocabulary.adds_space:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        normalizer = {"type": "Sequence", "normalizers": [prepend, replace]}
    unknown = vocabulary.tokens[ids["unk"]] if "unk" in ids else None
    return {
        "normalizer": normalizer,
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True),
    }


def _bytes(vocabulary: Vocabulary) -> Json:
    """Give the members that say how bytes are joined."""
    cutting = find_cutting(vocabulary.pre)
    return {
        **write_cutting(cutting),
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": _bpe(vocabulary, vocabulary.merges, ignore_merges=bool(cutting.whole_words)),
    }


def _bpe(vocabulary: Vocabulary, merges: Sequence[Pair], **others: Any) -> Json:
    rows = enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **others,
        "vocab": {token: at for at, (token, kind) in rows if kind != Kind.UNUSED or token != f"[PAD{at}]"},
        "merges": merges,
    }


def _added(vocabulary: Vocabulary) -> list[Json]:
    """List the tokens that are found before pieces are joined."""
    properties = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": at, "content": token, **properties, "special": kind != Kind.USER_DEFINED}
        for at, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.USER_DEFINED)
    ]


def _around(
    metadata: Mapping[str, Any], vocabulary: Vocabulary, ids: Mapping[str, int], word: str, default: bool
) -> int | None:
    """Give the id of a token that is put before or after a text. Raises FileError where one is asked for and none is there."""
    if not _flag(metadata, ADDS[word], default):
        return None
    at = ids.get(word, BYTE_LEVEL_ID)
    if at >= len(vocabulary.tokens):
        raise FileError(f"a text is put beside a token that no key names, expected '{IDS[word]}'", field=IDS[word])
    return at


def _post_processor(vocabulary: Vocabulary, begins: int | None, ends: int | None) -> Json | None:
    """Say which tokens stand around a text, and around each of two."""
    if begins is None and ends is None:
        return None
    around = [at for at in (begins, ends) if at is not None]
    tokens = {vocabulary.tokens[at]: at for at in around}

    def texts(*names: str) -> list[Json]:
        row: list[Json] = []
        for index, name in enumerate(names):
            row += [{"SpecialToken": {"id": vocabulary.tokens[begins], "type_id": index}}] if begins is not None else []
            row.append({"Sequence": {"id": name, "type_id": index}})
            row += [{"SpecialToken": {"id": vocabulary.tokens[ends], "type_id": index}}] if ends is not None else []
        return row

    return {
        "type": "TemplateProcessing",
        "single": texts("A"),
        "pair": texts("A", "B"),
        "special_tokens": {token: {"id": token, "ids": [at], "tokens": [token]} for token, at in tokens.items()},
    }


def _config(metadata: Mapping[str, Any], vocabulary: Vocabulary, special: Mapping[str, str]) -> Json:
    """Give what transformers asks for beside the vocabulary; its own class for each model would cut texts by its own rules."""
    made: Json = {"tokenizer_class": "PreTrainedTokenizerFast", **special, "clean_up_tokenization_spaces": False}
    for word in ("bos", "eos"):
        if ADDS[word] in metadata:
            made[f"add_{word}_token"] = _flag(metadata, ADDS[word], False)
    if vocabulary.model == BYTE_LEVEL and ADDS_SPACE in metadata:
        made["add_prefix_space"] = False  # llama.cpp adds none here, whatever the file says
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    if type(length) is int:
        made["model_max_length"] = length
    names = _values(metadata, TEMPLATE_NAMES, str) if TEMPLATE_NAMES in metadata else []
    named = {name: metadata.get(NAMED_TEMPLATE.format(name)) for name in names}
    default = metadata.get(TEMPLATE)
    if isinstance(default, str):
        made["chat_template"] = default
    if named:
        rows = {**({"default": default} if default is not None else {}), **named}
        made["chat_template"] = [{"name": name, "template": text} for name, text in rows.items() if isinstance(text, str)]
    return made


def _values(metadata: Mapping[str, Any], key: str, kind: type, n_values: int | None = None) -> list[Any]:
    """Read a list. Raises FileError where it is not there, or holds something else, or not as much as there are tokens."""
    found = metadata.get(key)
    values = found.values() if isinstance(found, GGUFArray) else found
    if not isinstance(values, list | tuple) or not all(type(value) is kind for value in values):
        raise FileError(f"there is no list of {kind.__name__}, which the tokenizer needs", field=key, expected=kind.__name__)
    if n_values is not None and len(values) != n_values:
        message = f"{len(values)} values for {n_values} tokens, expected one for each"
        raise FileError(message, field=key, expected=n_values, found=len(values))
    return list(values)


def _flag(metadata: Mapping[str, Any], key: str, default: bool) -> bool:
    found = metadata.get(key, default)
    if not isinstance(found, bool):
        raise FileError(f"found {show(str(found), limit=40)}, expected true or false", field=key, found=found)
    return found


def _pair(index: int, merge: str, ids: Mapping[str, int]) -> Pair:
    """Read a merge: two tokens with a space between, the first of which may begin with one."""
    cut = merge.find(" ", 1)
    pair = merge[:cut], merge[cut + 1 :]
    if cut < 0 or not all(token in ids for token in (*pair, "".join(pair))):
        message = f"merge {index}, {show(merge, quote=True, limit=80)}, expected two tokens whose whole is a token"
        raise FileError(message, field=MERGES, found=merge)
    return pair
