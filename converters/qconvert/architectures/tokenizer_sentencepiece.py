"""A tokenizer.model: sentencepiece's pieces, read from and written to the wire format of protocol buffers.

Decides which fields are read, and refuses a model that llama.cpp's tokenizer of pieces does not follow. Pieces that a user
defined are kept as such, as sentencepiece treats them. Must not know what other files add.

Source: google/sentencepiece: src/sentencepiece_model.proto; protocolbuffers: Encoding (wire types).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from qconvert.architectures.tokenizer_vocabulary import SPACE, Kind, Places, Vocabulary
from qformat.errors import FileError, NotExact

NAME = "tokenizer.model"

VARINT, BYTES, FIXED32 = 0, 2, 5  # wire types
N_BYTES = {1: 8, BYTES: 0, FIXED32: 4}  # of a value of each wire type but VARINT; BYTES say it themselves
MAX_VARINT_BITS = 64
PIECE, TRAINER, NORMALIZER = 1, 2, 3  # of ModelProto
TEXT, SCORE, KIND = 1, 2, 3  # of SentencePiece
MODEL_TYPE, VOCAB_SIZE, BYTE_FALLBACK = 3, 4, 35  # of TrainerSpec
SPECIAL = {"unk": (40, 45), "bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}  # of TrainerSpec: id, and the piece's text
CHARSMAP, DUMMY_PREFIX, EXTRA_SPACES = 2, 3, 4  # of NormalizerSpec
KINDS_OF_MODEL = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
BPE = 2

_ONE_BYTE = tuple(bytes([value]) for value in range(128))


class Field(NamedTuple):
    """A field of a message: a number, or bytes and where in the file they begin."""

    number: int
    value: int | bytes
    at: int

    def integer(self) -> int:
        """Give the number. Raises FileError where there are bytes."""
        if isinstance(self.value, bytes):
            raise FileError(f"field {self.number} holds bytes, expected a number", path=NAME, offset=self.at)
        return self.value

    def content(self) -> bytes:
        """Give the bytes. Raises FileError where there is a number."""
        if isinstance(self.value, int):
            raise FileError(f"field {self.number} holds a number, expected bytes", path=NAME, offset=self.at)
        return self.value


def read(data: bytes, places: Places) -> bool:
    """Put the pieces at their ids.

    returns: whether a text begins with a space that is not in it

    Raises FileError for bytes that are no such message; NotExact for a model that is not BPE, or that changes texts.
    """
    index, model_type, adds_space, takes_spaces, charsmap = 0, 1, 1, 1, b""
    for part in _fields(data, 0):
        if part.number == PIECE:
            token, score, kind = _piece(part, index)
            places.put(token, index, kind, score)
            index += 1
        elif part.number == TRAINER:
            model_type = next(
                (field.integer() for field in _fields(part.content(), part.at) if field.number == MODEL_TYPE), model_type
            )
        elif part.number == NORMALIZER:
            for field in _fields(part.content(), part.at):
                if field.number == CHARSMAP:
                    charsmap = field.content()
                elif field.number == DUMMY_PREFIX:
                    adds_space = field.integer()
                elif field.number == EXTRA_SPACES:
                    takes_spaces = field.integer()
    if index == 0:
        raise FileError("there are no pieces: this is no sentencepiece model", path=NAME)
    if model_type != BPE:
        found = KINDS_OF_MODEL.get(model_type, str(model_type))
        message = f"the model is '{found}', expected 'bpe': llama.cpp joins pieces by their scores"
        raise NotExact(message, path=NAME, field="tokenizer.ggml.model", expected="bpe", found=found)
    if charsmap or takes_spaces:
        what = f"a table of {len(charsmap)} bytes replaces characters" if charsmap else "repeated spaces are taken out"
        raise NotExact(f"{what}, which llama.cpp does not do", path=NAME, field="normalizer_spec")
    return bool(adds_space)


def read_scores(data: bytes) -> list[tuple[str, float]]:
    """Give the pieces by id with their scores. Raises FileError for bytes that are no such message."""
    parts = (part for part in _fields(data, 0) if part.number == PIECE)
    return [_piece(part, index)[:2] for index, part in enumerate(parts)]


def write(vocabulary: Vocabulary, ids: Mapping[str, int]) -> bytes:
    """Write the pieces of a vocabulary.

    ids : of "unk", "bos", "eos" and "pad" where there are such tokens
    """
    of_score = _key(SCORE, FIXED32)
    of_kind = {int(kind): _number(KIND, kind) if kind != Kind.NORMAL else b"" for kind in Kind}
    kinds = list(vocabulary.kinds)
    if "unk" in ids:
        kinds[ids["unk"]] = Kind.UNKNOWN  # sentencepiece wants one, which other files may call a control token
    pieces = [
        b"".join((_message(TEXT, token.replace(" ", SPACE).encode()), of_score, struct.pack("<f", score), of_kind[kind]))
        for token, kind, score in zip(vocabulary.tokens, kinds, vocabulary.scores, strict=True)
    ]
    trainer = _number(MODEL_TYPE, BPE) + _number(VOCAB_SIZE, len(pieces)) + _number(BYTE_FALLBACK, 1)
    for word, (of_id, of_text) in SPECIAL.items():
        at = ids.get(word, -1)
        trainer += _number(of_id, at % 2**64)  # a negative number is written as its complement of 64 bits
        trainer += _message(of_text, vocabulary.tokens[at].encode()) if at >= 0 else b""
    normalizer = _message(1, b"identity") + _number(DUMMY_PREFIX, int(vocabulary.adds_space is not False))
    normalizer += _number(EXTRA_SPACES, 0)
    return b"".join(_message(PIECE, piece) for piece in pieces) + _message(TRAINER, trainer) + _message(NORMALIZER, normalizer)


def _piece(part: Field, index: int) -> tuple[str, float, Kind]:
    text, score, kind = b"", 0.0, int(Kind.NORMAL)
    for field in _fields(part.content(), part.at):
        if field.number == TEXT:
            text = field.content()
        elif field.number == SCORE:
            if len(field.content()) != 4:
                raise FileError(f"the score of piece {index} is no float32", path=NAME, offset=field.at)
            score = struct.unpack("<f", field.content())[0]
        elif field.number == KIND:
            kind = field.integer()
    if not Kind.NORMAL <= kind <= Kind.BYTE:
        raise FileError(f"piece {index} is of kind {kind}, expected 1 to 6", path=NAME, offset=part.at, found=kind)
    try:
        return text.decode("utf-8"), score, Kind(kind)
    except UnicodeDecodeError as err:
        raise FileError(f"piece {index} is not UTF-8, expected UTF-8 text", path=NAME, offset=part.at) from err


def _fields(data: bytes, base: int) -> Iterator[Field]:
    """Walk over the fields of a message that begins at `base`: numbers, and everything else as bytes."""
    pos = 0
    while pos < len(data):
        start = pos
        key, pos = _varint(data, pos, base)
        wire = key & 7
        if wire == VARINT:
            value, pos = _varint(data, pos, base)
            yield Field(key >> 3, value, base + start)
            continue
        if wire not in N_BYTES:
            message = f"wire type {wire}, expected 0, 1, 2 or 5: this is no sentencepiece model"
            raise FileError(message, path=NAME, offset=base + start, found=wire)
        n_bytes, pos = (N_BYTES[wire], pos) if wire != BYTES else _varint(data, pos, base)
        if n_bytes > len(data) - pos:
            raise FileError(f"{n_bytes} bytes needed, {len(data) - pos} left", path=NAME, offset=base + pos)
        yield Field(key >> 3, data[pos : pos + n_bytes], base + pos)
        pos += n_bytes


def _varint(data: bytes, pos: int, base: int) -> tuple[int, int]:
    """Read a number and step over it."""
    if pos < len(data) and data[pos] < 128:
        return data[pos], pos + 1
    value = 0
    for shift in range(0, MAX_VARINT_BITS, 7):
        if pos == len(data):
            raise FileError("a number is cut off", path=NAME, offset=base + pos)
        byte = data[pos]
        pos += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, pos
    raise FileError(f"a number of more than {MAX_VARINT_BITS} bits", path=NAME, offset=base + pos)


def _message(number: int, content: bytes) -> bytes:
    return _key(number, BYTES) + _encoded(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _key(number, VARINT) + _encoded(value)


def _key(number: int, wire: int) -> bytes:
    return _encoded(number << 3 | wire)


def _encoded(value: int) -> bytes:
    if value < 128:
        return _ONE_BYTE[value]
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)
