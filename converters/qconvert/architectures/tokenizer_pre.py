r"""How a text is cut into words before bytes are joined, under the names that llama.cpp has for it: a table.

A cutting is a sequence of regular expressions; each cuts what the one before has left, and what none matches stays in one
piece. Decides which cuttings have a name. Must not know vocabularies. A name is that of the expression in a tokenizer.json;
llama.cpp's own form of "gpt-4o" and "tekken" takes combining marks for no part of a word, so that it cuts some scripts, Hindi
for one, in other places.

Source: ggml-org/llama.cpp 00ad355e: src/llama-vocab.cpp (llm_tokenizer_bpe, the expressions and the names; those of
tokenizer.json stand there as comments); huggingface/tokenizers: pre_tokenizers/byte_level.rs, digits.rs;
huggingface/transformers 5.23.0: models/qwen2/tokenization_qwen2.py (the normalizer).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qconvert.architectures.tokenizer_node import Node
from qformat.errors import NotExact, show

# The ends that several expressions have: what is no letter, digit or space; lines; spaces but the last; the rest.
_LINES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _LINES
_SHORT = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # what English puts after an apostrophe
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_HEAD = r"[^\r\n\p{L}\p{N}]?"

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS = r"\p{N}"
LLAMA3 = rf"{_SHORT}|{_HEAD}\p{{L}}+|\p{{N}}{{1,3}}{_REST}"
QWEN2 = rf"{_SHORT}|{_HEAD}\p{{L}}+|\p{{N}}{_REST}"
QWEN35 = rf"{_SHORT}|{_HEAD}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_LINES}"
GPT4O = (
    rf"{_HEAD}{_UPPER}*{_LOWER}+{_SHORT}?|{_HEAD}{_UPPER}+{_LOWER}*{_SHORT}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_LINES}"
)
TEKKEN = rf"{_HEAD}{_UPPER}*{_LOWER}+|{_HEAD}{_UPPER}+{_LOWER}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*{_LINES}"


@dataclass(frozen=True, slots=True)
class Cutting:
    """One way to cut a text.

    name          : in tokenizer.ggml.pre
    cuts          : the expressions, in order
    whole_words   : whether a word that is a token is not joined anew; None where llama.cpp does not ask
    adds_bos      : what llama.cpp does where nothing is said
    composes      : whether the models that have it normalize to NFC, which llama.cpp leaves out
    aliases       : names that llama.cpp reads as the same
    """

    name: str
    cuts: tuple[str, ...]
    whole_words: bool | None = False
    adds_bos: bool = False
    composes: bool = False
    aliases: tuple[str, ...] = ()


CUTTINGS = (
    Cutting("gpt-2", (GPT2,), aliases=("phi-2", "mpt", "olmo", "jais", "gigachat", "mellum", "a.x-4.0", "exaone4")),
    Cutting("smollm", (DIGITS, GPT2), aliases=("starcoder", "refact", "codeshell", "exaone", "minerva-7b")),
    Cutting(
        "llama-bpe",
        (LLAMA3,),
        whole_words=True,
        adds_bos=True,
        aliases=("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    Cutting("dbrx", (LLAMA3,), aliases=("smaug-bpe",)),
    Cutting("tekken", (TEKKEN,), whole_words=True, adds_bos=True),
    Cutting("qwen2", (QWEN2,), composes=True),
    Cutting("stablelm2", (QWEN2,), aliases=("deepseek-r1-qwen", "megrez", "hunyuan", "solar-open")),
    Cutting("qwen35", (QWEN35,), composes=True),
    Cutting("default", (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    Cutting("gpt-4o", (GPT4O,), whole_words=None, aliases=("llama4", "kanana2")),
)


def find_cutting(name: str) -> Cutting:
    """Find a cutting by its name or an alias. Raises NotExact for one that is not in the table."""
    for cutting in CUTTINGS:
        if name == cutting.name or name in cutting.aliases:
            return cutting
    known = ", ".join(cutting.name for cutting in CUTTINGS)
    message = f"texts are cut as {show(name, quote=True, limit=60)} says, expected one of {known}"
    raise NotExact(message, field="tokenizer.ggml.pre", expected=known, found=name)


def recognize(root: Node) -> Cutting:
    """Name how a byte-level tokenizer.json cuts a text.

    root : the whole file

    Raises NotExact for a cutting that is not in the table, or a normalizer other than NFC, which changes no text that is
    composed already; FileError for what is no tokenizer.json.
    """
    normalizer = root.get("normalizer")
    if normalizer is not None:
        for step in normalizer.steps("normalizers"):
            if step.need("type").text() != "NFC":
                raise step.inexact(f"the normalizer {show(step.need('type').text(), quote=True)}, expected none or NFC")
    cuts: list[str] = []
    pre = root.get("pre_tokenizer")
    if pre is None:
        raise root.inexact("there is no 'pre_tokenizer', expected one that ends in 'ByteLevel'")
    *steps, last = pre.steps("pretokenizers") or [pre]
    if last.need("type").text() != "ByteLevel" or last.flag("add_prefix_space", default=True):
        raise last.inexact("expected 'ByteLevel' without a prefix at the end: llama.cpp reads bytes as letters")
    cuts += [_expression(step) for step in steps]
    if last.flag("use_regex", default=True):
        cuts.append(GPT2)
    whole_words = root.need("model").flag("ignore_merges")
    for cutting in CUTTINGS:
        if cutting.cuts == tuple(cuts) and cutting.whole_words in (whole_words, None):  # the first of those that cut alike
            return cutting
    how = " and words that are tokens are kept" if whole_words else ""
    message = f"llama.cpp is known to have no name for texts that are cut by {len(cuts)} expressions{how}"
    raise NotExact(message, path=root.path, field="tokenizer.ggml.pre", found=cuts)


def write_cutting(cutting: Cutting) -> Mapping[str, Any]:
    """Give the members `normalizer` and `pre_tokenizer` of a tokenizer.json."""
    *cuts, last = cutting.cuts
    steps: list[Mapping[str, Any]] = [_step(cut) for cut in cuts]
    steps += [] if last == GPT2 else [_step(last)]
    steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": last == GPT2})
    pre = {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else steps[0]
    return {"normalizer": {"type": "NFC"} if cutting.composes else None, "pre_tokenizer": pre}


def _step(cut: str) -> Mapping[str, Any]:
    if cut == DIGITS:
        return {"type": "Digits", "individual_digits": True}
    return {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}


def _expression(step: Node) -> str:
    """Give the regular expression by which a step cuts."""
    kind = step.need("type").text()
    if kind == "Digits" and step.flag("individual_digits"):
        return DIGITS
    how = (step.need("behavior").text(), step.flag("invert")) if kind == "Split" else None
    expression = step.need("pattern").get("Regex") if kind == "Split" else None
    # To remove what no expression matches, and keep matches apart, is the same where the expression matches everything.
    if expression is None or how not in (("Isolated", False), ("Removed", True)):
        raise step.inexact(f"the step {show(kind, quote=True)}, expected 'Split' by a regular expression, isolated")
    return expression.text()
