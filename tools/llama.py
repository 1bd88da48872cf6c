"""llama.cpp as the reader of what was written: the tokens and logits of a model.

Calls the C functions that the xllamacpp wheel exports, through ctypes, on the CPU, so that the same file gives the same floats
on every run. Knows nothing of qformat: what it loads is a file like any other. Of the structures passed by value only the
fields up to the last one that is set are declared; the rest stays as the library's own defaults gave it. Where a field
lies is checked by its default: a library in which one has moved is refused, not misread.

Source: ggml-org/llama.cpp: include/llama.h (llama_context_params), src/llama-context.cpp (llama_context_default_params).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from installed import package_file
from numpy.typing import NDArray

PACKAGE = "xllamacpp"
ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
ROOM = 256  # more bytes than any parameter structure of the library has
UBATCH = 512  # tokens computed at a time

Token = ctypes.c_int32
Handle = ctypes.c_void_p
Log = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class LlamaError(Exception):
    """What llama.cpp refuses; the text carries the errors it logged."""


class ModelParams(ctypes.Structure):
    """llama_model_params, whole: nothing in it is changed."""

    _fields_ = (("rest", ctypes.c_ubyte * ROOM),)


# llama_context_params, up to the last field that is set, with what the library gives where nothing is set.
CONTEXT: tuple[tuple[str, Any, int | float | None], ...] = (
    ("n_ctx", ctypes.c_uint32, 512),
    ("n_batch", ctypes.c_uint32, 2048),
    ("n_ubatch", ctypes.c_uint32, 512),
    ("n_seq_max", ctypes.c_uint32, 1),
    ("n_rs_seq", ctypes.c_uint32, 0),
    ("n_outputs_max", ctypes.c_uint32, 0),
    ("n_outputs_max_per_seq", ctypes.c_uint32, 1),
    ("n_threads", ctypes.c_int32, 4),
    ("n_threads_batch", ctypes.c_int32, 4),
    ("ctx_type", ctypes.c_int32, 0),
    ("rope_scaling_type", ctypes.c_int32, -1),
    ("pooling_type", ctypes.c_int32, -1),
    ("attention_type", ctypes.c_int32, -1),
    ("flash_attn_type", ctypes.c_int32, -1),
    ("rope_freq_base", ctypes.c_float, 0.0),
    ("rope_freq_scale", ctypes.c_float, 0.0),
    ("yarn_ext_factor", ctypes.c_float, -1.0),
    ("yarn_attn_factor", ctypes.c_float, -1.0),
    ("yarn_beta_fast", ctypes.c_float, -1.0),
    ("yarn_beta_slow", ctypes.c_float, -1.0),
    ("yarn_orig_ctx", ctypes.c_uint32, 0),
    ("defrag_thold", ctypes.c_float, -1.0),
    ("cb_eval", ctypes.c_void_p, None),
    ("cb_eval_user_data", ctypes.c_void_p, None),
    ("type_k", ctypes.c_int32, 1),
    ("type_v", ctypes.c_int32, 1),
)


class ContextParams(ctypes.Structure):
    """llama_context_params."""

    _fields_ = (*((name, kind) for name, kind, _ in CONTEXT), ("rest", ctypes.c_ubyte * ROOM))


FLASH_ATTENTION_OFF = 0  # LLAMA_FLASH_ATTN_TYPE_DISABLED
F32 = 0  # GGML_TYPE_F32


class Batch(ctypes.Structure):
    """llama_batch; where `logits` is null, only the last token's are kept."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(Token)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.c_void_p),
        ("n_seq_id", ctypes.c_void_p),
        ("seq_id", ctypes.c_void_p),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


# name: what it returns, and its arguments
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (Log, ctypes.c_void_p)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_model_load_from_file": (Handle, (ctypes.c_char_p, ModelParams)),
    "llama_model_free": (None, (Handle,)),
    "llama_model_get_vocab": (Handle, (Handle,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (Handle,)),
    "llama_tokenize": (
        ctypes.c_int32,
        (Handle, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(Token), ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_init_from_model": (Handle, (Handle, ContextParams)),
    "llama_free": (None, (Handle,)),
    "llama_set_n_threads": (None, (Handle, ctypes.c_int32, ctypes.c_int32)),
    "llama_batch_get_one": (Batch, (ctypes.POINTER(Token), ctypes.c_int32)),
    "llama_decode": (ctypes.c_int32, (Handle, Batch)),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), (Handle, ctypes.c_int32)),
    "llama_get_memory": (Handle, (Handle,)),
    "llama_memory_clear": (None, (Handle, ctypes.c_bool)),
}

_logged: list[tuple[int, str]] = []  # level, text; of the model loaded last


def _keep(level: int, text: bytes, _: object) -> None:
    _logged.append((level, text.decode("utf-8", "replace").strip()))


def _errors() -> str:
    return "; ".join(text for level, text in _logged if level == ERROR_LEVEL)


_listen = Log(_keep)  # named: the library holds a bare pointer to it


@cache
def library() -> Any:
    """Load the wheel's extension module as a C library, without importing it. Raises LookupError where it is not installed."""
    loaded = ctypes.CDLL(str(package_file(PACKAGE, f"{PACKAGE}*.so")))
    for name, (restype, argtypes) in FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = restype, argtypes
    loaded.llama_log_set(_listen, None)
    loaded.llama_backend_init()
    return loaded


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Compute logarithms of probabilities, each row by itself, in float64: (..., n_vocab)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    made: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return made


def context_params(loaded: Any) -> ContextParams:
    """Give the library's own parameters. Raises LlamaError where one is not what it is here, which means that fields moved."""
    params: ContextParams = loaded.llama_context_default_params()
    given = [(name, getattr(params, name), expected) for name, _, expected in CONTEXT]
    moved = [f"{name} {found}, expected {expected}" for name, found, expected in given if found != expected]
    if moved:
        raise LlamaError(f"llama_context_params of another version of the library: {'; '.join(moved)}")
    return params


class Llama:
    """A loaded model with a context of its own; a context manager."""

    def __init__(self, path: Path, n_ctx: int, n_threads: int = 1, in_float32: bool = False) -> None:
        """Load a GGUF file, or the first of its parts.

        n_ctx      : tokens that a sequence may have
        in_float32 : keep keys and values in float32 and compute attention step by step, not as users run it: then float32
                     weights are multiplied without rounding anything to 16 bits, and another runtime's floats compare
        Raises LlamaError with what llama.cpp says where it refuses.
        """
        self._lib = library()
        self._context = self._model = None
        self.n_ctx = n_ctx
        _logged.clear()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        if not self._model:
            raise LlamaError(f"{path.name}: {_errors() or 'not loaded'}")
        params = context_params(self._lib)
        if in_float32:
            params.flash_attn_type, params.type_k, params.type_v = FLASH_ATTENTION_OFF, F32, F32
        params.n_ctx = params.n_batch = n_ctx
        params.n_ubatch = min(n_ctx, UBATCH)
        self._context = self._lib.llama_init_from_model(self._model, params)
        if not self._context:
            self.close()
            raise LlamaError(f"{path.name}: {_errors() or 'no context'}")
        self.log = tuple(text for _, text in _logged)  # what the library said while it loaded
        self._lib.llama_set_n_threads(self._context, n_threads, n_threads)
        self._vocab = self._lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._lib.llama_vocab_n_tokens(self._vocab))

    def __enter__(self) -> Llama:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the context and the model."""
        if self._context:
            self._lib.llama_free(self._context)
        if self._model:
            self._lib.llama_model_free(self._model)
        self._context = self._model = None

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Give the ids of a text's tokens, with those that the model's file asks for at its beginning.

        special : read the names of control tokens as these, not as text
        """
        raw = text.encode()
        ids = (Token * (len(raw) + 2))()
        n_tokens = self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), True, special)
        return list(ids[:n_tokens])

    def greedy(self, prompt: Sequence[int], n_tokens: int) -> list[int]:
        """Give the tokens that follow a prompt, each the likeliest, end marks taken as any other."""
        self._forget()
        made: list[int] = []
        ids = list(prompt)
        while len(made) < n_tokens:
            self._decode(ids, every=False)
            made.append(int(self._row(-1).argmax()))
            ids = made[-1:]
        return made

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Compute the logits after every token of a sequence, which begins anew: (n_tokens, n_vocab)."""
        self._forget()
        self._decode(ids, every=True)
        return np.stack([self._row(index) for index in range(len(ids))])

    def log_probabilities(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """Compute the logarithms of the probabilities of what follows every token of a sequence: (n_tokens, n_vocab)."""
        return log_softmax(self.logits(ids))

    def _forget(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def _decode(self, ids: Sequence[int], every: bool) -> None:
        if not 0 < len(ids) <= self.n_ctx:  # the library ends the process
            raise LlamaError(f"{len(ids)} tokens at once, expected 1 to {self.n_ctx}")
        tokens = (Token * len(ids))(*ids)  # named: the batch holds a bare pointer to it
        batch = self._lib.llama_batch_get_one(tokens, len(ids))
        if every:
            batch.logits = (ctypes.c_int8 * len(ids))(*[1] * len(ids))
        code = self._lib.llama_decode(self._context, batch)
        if code:
            raise LlamaError(f"decoding {len(ids)} tokens ended with {code}: {_errors()}")

    def _row(self, index: int) -> NDArray[np.float32]:
        return np.ctypeslib.as_array(self._lib.llama_get_logits_ith(self._context, index), (self.n_vocab,))
