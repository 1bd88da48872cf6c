"""Arrays measured: packed to floats, floats to packed, packed to packed.

Rates count bytes of the floats, of a transcode those of the packed result. The copy that is compared with is one thread's,
whatever the threads of the library; the streaming stores have as many threads as the library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes  # noqa: F401 - bfloat16 by its name
import numpy as np
import qconvert
from bench import cases, peers
from bench.cases import Case, Way
from bench.results import Result
from bench.roofline import copies, fills, paged
from bench.rounds import Action, fitted, interleave, ratios
from bench.weights import floats, packed
from numpy.typing import NDArray
from qconvert.run import units

import qformat
from qformat.threads import spread

OURS, OURS_FRESH, COPY, FILL = "qformat", "qformat fresh", "memcpy", "fill"
BUDGET = 0.7  # seconds for the rounds of one case
BESIDE = {COPY: OURS, FILL: OURS}
AGAINST = {**BESIDE, "ggml": OURS, "ggml rows": OURS, **dict.fromkeys(cases.FRESH, OURS_FRESH)}
MODULE = "model.layers.0.mlp.up_proj.weight"


def decode(n_rows: int = cases.N_ROWS, chosen: Sequence[Case] = cases.DECODE) -> Iterator[Result]:
    """Measure decoding: every format to every element type, some to arrays that begin anywhere."""
    weights = floats(n_rows, cases.N_COLS)
    copied = np.array(weights)
    room = paged((weights.nbytes,), np.uint8, 0)
    for case in chosen:
        with TemporaryDirectory(prefix="qformat-bench-") as folder:
            tensor = packed(case.target, weights, Path(folder))
            for n_threads in cases.THREADS:
                qformat.set_threads(n_threads)
                for dtype in cases.DTYPES if n_threads == 1 else cases.DTYPES[:1]:
                    out = _seen(room, tensor.shape, dtype)
                    actions = [*_roofs(out, copied, n_threads), _decoding(OURS, tensor, out)]
                    if n_threads == 1 and dtype == "float32":
                        actions += _beside(case, tensor, weights, out)
                    yield _result("decode", case.name, dtype, n_threads, actions)
            if case.name in cases.UNALIGNED:
                qformat.set_threads(1)
                yield from _anywhere(case, tensor, room)
        qformat.set_threads(None)


def quantize(n_rows: int = cases.N_ROWS, chosen: Sequence[Case] = cases.QUANTIZE) -> Iterator[Result]:
    """Measure quantizing float32."""
    weights = floats(n_rows, cases.N_COLS)
    room = paged(weights.shape, np.float32)
    row_bytes = weights[0].nbytes
    for case in chosen:
        for n_threads in cases.THREADS:
            qformat.set_threads(n_threads)
            actions = [
                Action(COPY, copies(room, weights), weights.nbytes),
                fitted(OURS, _quantizing(weights, case.target, to_same=True), n_rows, row_bytes),
                fitted(OURS_FRESH, _quantizing(weights, case.target), n_rows, row_bytes),
            ]
            if n_threads == 1:
                makers = {peer: peers.encoder(peer, case, weights) for peer in case.peers}
                actions += [fitted(peer, maker, n_rows, row_bytes) for peer, maker in makers.items()]
            yield _result("quantize", case.name, "float32", n_threads, actions, {**AGAINST, OURS_FRESH: OURS})
        qformat.set_threads(None)


def transcode(n_rows: int = cases.TRANSCODED_ROWS, chosen: Sequence[Way] = cases.TRANSCODE) -> Iterator[Result]:
    """Measure what `convert` does to the bytes of a tensor once it is planned, without any file."""
    weights = floats(n_rows, cases.N_COLS)
    for way in chosen:
        with TemporaryDirectory(prefix="qformat-bench-") as folder:
            source = Path(folder, "source.qfmt")
            qformat.save(source, {MODULE: packed(way.packed, weights, Path(folder))})
            if way.source != "qfmt":
                qconvert.convert(source, Path(folder, "source"), to=way.source)
                source = Path(folder, "source")
            plan = qconvert.plan(source, way.to)
            (item,) = plan.items
            made = [unit.make for unit in units(0, item)]
            n_bytes = sum(piece.data.size for make in made for piece in make())
            one, other = (paged((n_bytes,), np.uint8) for _ in range(2))
            for n_threads in cases.THREADS:
                qformat.set_threads(n_threads)
                actions = [
                    Action(COPY, copies(one, other), n_bytes),
                    Action(FILL, fills(one, n_threads), n_bytes),
                    Action(OURS, lambda made=made: _make_all(made), n_bytes),
                ]
                yield _result("transcode", way.name, item.verdict.verdict, n_threads, actions)
        qformat.set_threads(None)


def _roofs(out: NDArray[Any], source: NDArray[Any], n_threads: int) -> list[Action]:
    """Give the copy and the fill of an output."""
    other = source.reshape(-1).view(np.uint8)[: out.nbytes].view(out.dtype).reshape(out.shape)
    return [Action(COPY, copies(out, other), out.nbytes), Action(FILL, fills(out, n_threads), out.nbytes)]


def _beside(case: Case, tensor: qformat.PackedTensor, weights: NDArray[np.float32], out: NDArray[np.float32]) -> list[Action]:
    """Give what decodes with the peers, and the library making new memory where peers do."""
    n_rows, row_bytes = out.shape[0], out[0].nbytes
    found = [fitted(peer, peers.decoder(peer, case, weights, out), n_rows, row_bytes) for peer in case.peers]
    if set(case.peers) & set(cases.FRESH):
        found.append(fitted(OURS_FRESH, lambda n: lambda: tensor.dequantize(rows=slice(0, n)), n_rows, row_bytes))
    return found


def _decoding(name: str, tensor: qformat.PackedTensor, out: NDArray[Any]) -> Action:
    """Give what decodes as many rows of a tensor to an array as a turn has time for."""

    def make(n_rows: int) -> Callable[[], object]:
        return lambda: tensor.dequantize(out.dtype, slice(0, n_rows), out[:n_rows])

    return fitted(name, make, out.shape[0], out[0].nbytes)


def _anywhere(case: Case, tensor: qformat.PackedTensor, room: NDArray[np.uint8]) -> Iterator[Result]:
    """Measure decoding to arrays that begin past a page, beside one that begins there."""
    whole = _decoding(OURS, tensor, _seen(room, tensor.shape, "float32"))
    n_rows = min(whole.n_bytes // (4 * tensor.n_cols), tensor.n_rows - 1)
    outs = {OURS: room, **{f"past {past}": room[past:] for past in cases.PASTS}}

    def action(name: str) -> Action:
        out = _seen(outs[name], (n_rows, tensor.n_cols), "float32")
        return Action(name, lambda: tensor.dequantize(out.dtype, slice(0, n_rows), out), out.nbytes)

    spreads = interleave([action(name) for name in outs], BUDGET)
    for past in cases.PASTS:
        one = spreads[f"past {past}"]
        figures = {"GB/s": one.gb_per_s, "x aligned": one.gb_per_s / spreads[OURS].gb_per_s}
        yield Result("decode", case.name, f"float32 past {past}", 1, figures, spreads)


def _seen(room: NDArray[np.uint8], shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """See the beginning of a piece of memory as an array."""
    wanted = np.dtype(dtype)
    return room[: int(np.prod(shape)) * wanted.itemsize].view(wanted).reshape(shape)


def _quantizing(weights: NDArray[np.float32], target: str, to_same: bool = False) -> Callable[[int], Callable[[], object]]:
    """Give what quantizes as many rows, to new memory or to the same every time."""

    def make(n_rows: int) -> Callable[[], object]:
        out = qformat.quantize(weights[:n_rows], target) if to_same else None
        return lambda: qformat.quantize(weights[:n_rows], target, out=out)

    return make


def _make_all(made: Sequence[Callable[[], object]]) -> None:
    """Make all units on the library's threads, each let go of in its turn."""
    for _ in spread(lambda make: make(), made):
        pass


def _result(
    section: str, name: str, detail: str, n_threads: int, actions: list[Action], against: Mapping[str, str] = AGAINST
) -> Result:
    spreads = interleave(actions, BUDGET)
    figures = {"GB/s": spreads[OURS].gb_per_s, **ratios(spreads, against)}
    return Result(section, name, detail, n_threads, figures, spreads)
