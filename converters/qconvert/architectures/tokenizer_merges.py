"""Scores of pieces and merges of pairs: two ways to say in which order a sentencepiece tokenizer joins its pieces.

sentencepiece joins the two neighbours whose whole has the highest score; a list of merges joins the pair that stands first in
it. Decides which list says what scores say, and which scores say what a list says; a list that no scores can say is refused.
Must not know where either is written. Two pieces of one score are joined from the left by sentencepiece. No list says that,
except of runs of one character, which grow from the left where a longer left half stands first; Llama's spaces are such.

Source: google/sentencepiece: src/bpe_model.cc (SampleEncode); huggingface/transformers 5.23.0:
src/transformers/tokenization_utils_base.py (generate_merges).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from qformat.errors import FileError, NotExact, show

Pair = tuple[str, str]

MAX_PIECE = 256  # characters; sentencepiece's trainer makes pieces of at most 16, and a piece is cut at every place

_MERGES, _SCORES = "tokenizer.ggml.merges", "tokenizer.ggml.scores"


def merges_of(scores: Mapping[str, float]) -> list[Pair]:
    """List the pairs of pieces whose whole is a piece, in the order in which they are joined.

    scores : of every piece that can be joined or be the result, in the order of their ids

    Raises FileError for a score that is no number and a piece longer than MAX_PIECE; NotExact for a score of several pieces.

    >>> merges_of({"a": -2.0, "b": -3.0, "ab": -1.0, "abb": -0.0})
    [('ab', 'b'), ('a', 'b')]
    """
    found = [(-scores[left + right], -len(left), -len(right), left, right) for left, right in _halves(scores)]
    found.sort(key=lambda row: row[:3])
    for score, rows in groupby(found, key=lambda row: row[0]):
        wholes = list(dict.fromkeys(left + right for *_, left, right in rows))
        if len(wholes) > 1 and not _are_runs(wholes):
            message = f"{len(wholes)} pieces, {_named(*wholes[:2])} among them, have the score {-score:g}: no merge comes first"
            raise NotExact(message, field=_SCORES, found=-score)
    return [(left, right) for *_, left, right in found]


def scores_of(merges: Sequence[Pair], pieces: Sequence[str]) -> dict[str, float]:
    """Give each piece a score, such that all scores together say what the merges say.

    merges : pairs of pieces
    pieces : in the order of their ids; those of which merges tell are among them
    returns: minus the place among the pieces, where these stand in the order of their merges, as a trainer leaves them;
             else minus the place among the merged, and then of those that nothing is merged to

    Raises NotExact where scores cannot say the same: a pair whose whole is a piece but is never joined, or pieces whose
    merges stand among those of others.

    >>> scores_of([("ab", "b"), ("a", "b")], ["a", "b", "ab", "abb"])
    {'abb': -0.0, 'ab': -1.0, 'a': -2.0, 'b': -3.0}
    """
    listed = {pair: index for index, pair in enumerate(merges)}
    for left, right in _halves(dict.fromkeys(pieces, 0.0)):
        if (left, right) not in listed:
            message = f"{_named(left, right)} and their whole are pieces, but no merge joins them, as scores would"
            raise NotExact(message, field=_MERGES, found=f"{left} {right}")
    blocks = [(block, list(dict.fromkeys(left + right for left, right in block))) for block in _blocks(merges)]
    for block, wholes in blocks:
        if len(wholes) > 1 and not (_are_runs(wholes) and _grow_from_the_left(block, listed)):
            message = f"merges to {_named(*wholes[:2])} stand among one another, which no scores say"
            raise NotExact(message, field=_MERGES, found=wholes[0])
    places = {piece: index for index, piece in enumerate(pieces)}
    order = [places[whole] for _, wholes in blocks for whole in wholes]
    if all(before < after for before, after in pairwise(order)):
        return {piece: -float(place) for piece, place in places.items()}
    scores: dict[str, float] = {}
    for _, wholes in blocks:
        scores |= dict.fromkeys(wholes, -float(len(scores)))
    for piece in pieces:
        scores.setdefault(piece, -float(len(scores)))
    return scores


def _halves(scores: Mapping[str, float]) -> Iterator[Pair]:
    """Walk over every way to make a piece of two others."""
    for index, (piece, score) in enumerate(scores.items()):
        if len(piece) > MAX_PIECE:
            message = f"piece {index} has {len(piece)} characters, expected at most {MAX_PIECE}"
            raise FileError(message, field="tokenizer.ggml.tokens", expected=MAX_PIECE, found=len(piece))
        if math.isnan(score):
            raise FileError(f"the score of {show(piece, quote=True)} is no number", field=_SCORES, found=score)
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                yield left, right


def _blocks(merges: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Cut a list of merges into the shortest blocks such that all merges to a piece stand in one."""
    last = {left + right: index for index, (left, right) in enumerate(merges)}
    start = stop = 0
    for index, (left, right) in enumerate(merges):
        stop = max(stop, last[left + right])
        if index == stop:
            yield merges[start : index + 1]
            start = stop = index + 1


def _are_runs(wholes: Sequence[str]) -> bool:
    """Tell whether pieces are of one character, the same in all."""
    return len(set("".join(wholes))) == 1


def _grow_from_the_left(block: Sequence[Pair], listed: Mapping[Pair, int]) -> bool:
    """Tell whether a run takes up the next character before two others are joined."""
    one = block[0][0][0]
    two = listed.get((one, one), len(listed))
    return all(listed[left, right] < two for left, right in block if right == one != left)


def _named(left: str, right: str) -> str:
    return f"{show(left, quote=True, limit=60)} and {show(right, quote=True, limit=60)}"
