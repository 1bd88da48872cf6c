"""What a tokenizer knows, whoever wrote it down: its tokens by id, what they are, and in which order pieces are joined.

Decides what ids may be, and what stands at one that nobody takes. Must not know any file.

Source: ggml-org/llama.cpp: include/llama.h (llama_token_type), conversion/base.py (get_vocab_base, does_token_look_special).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Never

from qformat.errors import FileError, NotExact, show

BYTE_LEVEL, PIECES = "gpt2", "llama"  # tokenizer.ggml.model: of bytes as letters, and sentencepiece's
SPACE = "\u2581"  # what stands for a space in a piece
UNSCORED = -1000.0  # of tokens that are found in a text before pieces are joined
UNUSED_SCORE = -10000.0

# Tokens that control a model though some checkpoints call them ordinary.
_CONTROLS = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_BRACKETS = (("<|", "|>"), ("<\uff5c", "\uff5c>"), ("<unused", ">"))


class Kind(IntEnum):
    """Kinds of tokens, with the numbers that both GGUF and sentencepiece give them."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a model.

    model     : BYTE_LEVEL or PIECES
    pre       : how a text is cut before pieces are joined, by its name in `tokenizer_pre`; "default" for PIECES
    tokens    : by id, none twice
    kinds     : by id
    scores    : by id; empty for BYTE_LEVEL
    merges    : pairs that are joined, first to last; empty for PIECES
    adds_space: whether a text begins with a space that is not in it; None where nobody says
    """

    model: str
    pre: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[tuple[str, str]] = field(default_factory=list)
    adds_space: bool | None = None


class Places:
    """Tokens on their way to their ids: each id once, each token once.

    beyond : tokens that were left out because the model has no row for their ids
    """

    def __init__(self, n_vocab: int, path: str, drops: bool = False) -> None:
        """Begin with no tokens.

        path  : the file that is read, for messages
        drops : whether tokens beyond the last id are left out, as llama.cpp's converter does for PIECES
        """
        self.tokens: list[str | None] = [None] * n_vocab
        self.kinds = [int(Kind.UNUSED)] * n_vocab
        self.scores = [UNUSED_SCORE] * n_vocab
        self.ids: dict[str, int] = {}
        self.beyond: set[str] = set()
        self._path, self._drops = path, drops

    def put(self, token: str, at: object, kind: Kind, score: float = UNSCORED, replaces: bool = False) -> None:
        """Put a token at an id.

        replaces : whether it may take the place of another

        Raises FileError for an id that is no number, outside the model's, or taken, and for a token at two ids.
        """
        if self._drops and type(at) is int and at >= len(self.tokens):
            self.beyond.add(token)
            return
        if type(at) is not int or not 0 <= at < len(self.tokens):
            self._refuse(token, f"the id of {_quoted(token)} is {at!s:.40}, expected 0 to {len(self.tokens) - 1}")
        if self.ids.setdefault(token, at) != at:
            self._refuse(token, f"{_quoted(token)} has the ids {self.ids[token]} and {at}, expected one")
        taken = self.tokens[at]
        if taken is not None and taken != token:
            if not replaces:
                self._refuse(token, f"{_quoted(taken)} and {_quoted(token)} have the id {at}, expected one token")
            del self.ids[taken]
        self.tokens[at], self.kinds[at], self.scores[at] = token, int(kind), score

    def finish(self) -> list[str]:
        """Give every id a token: one for a space that a text has, and a word of its own where there is none.

        Raises NotExact where two ids then have one token: llama.cpp refuses that.
        """
        named = [
            f"[PAD{at}]" if token is None else token.replace(SPACE, " ") if kind == Kind.USER_DEFINED else token
            for at, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True))
        ]
        if len(set(named)) != len(named):
            first: dict[str, int] = {}
            for at, token in enumerate(named):
                if first.setdefault(token, at) != at:
                    message = f"the ids {first[token]} and {at} are both {_quoted(token)}, expected each token once"
                    raise NotExact(message, field="tokenizer.ggml.tokens", found=token)
        return named

    def _refuse(self, token: str, message: str) -> Never:
        raise FileError(message, path=self._path, field="tokens", found=token)


def kind_of_added(token: str, is_special: bool) -> Kind:
    """Say what a token is that is found before pieces are joined."""
    looks = token in _CONTROLS or any(token.startswith(left) and token.endswith(right) for left, right in _BRACKETS)
    return Kind.CONTROL if is_special or looks else Kind.USER_DEFINED


def _quoted(token: str) -> str:
    return show(token, quote=True, limit=60)
