"""Tokenizers, from a folder into a GGUF file and back: real ones come back as they were, small ones as written by hand."""

import importlib
import json
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import handmade_tokenizer as made
import pytest
import qconvert
from qconvert.architectures.tokenizer import to_gguf, to_hf
from qconvert.containers.gguf_values import GGUFArray

from qformat.errors import FileError, NotExact

BYTE_LEVEL_SAID = {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": ["a", "b", "\u0120", "ab", "\u0120ab", "<|end|>", "<tool>", "[PAD7]", "[PAD8]"],
    "token_type": [1, 1, 1, 1, 1, 3, 4, 5, 5],
    "merges": ["a b", "\u0120 ab"],
}
# The second merge makes "aab" (9), the third "\u2581ab" (7): minus the place among the merges, then what nothing is merged to.
PIECES_SAID = {
    "model": "llama",
    "pre": "default",
    "tokens": ["<unk>", "<s>", "<0x0A>", "<0x0B>", "a", "b", "\u2581", "\u2581ab", "ab", "aab", "  ", "[PAD11]"],
    "scores": [-1000.0, -1000.0, 0.0, 0.0, -3.0, -4.0, -5.0, -2.0, -0.0, -1.0, -1000.0, -10000.0],
    "token_type": [3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 4, 5],
    "add_space_prefix": True,
    "bos_token_id": 1,
    "unknown_token_id": 0,
    "add_bos_token": True,
}
CONFIG: dict[str, Any] = {"bos_token": "<s>", "unk_token": {"content": "<unk>", "lstrip": False}}


@pytest.fixture(scope="module")
def gemma(root: Path) -> Iterator[tuple[dict[str, Any], Mapping[str, bytes]]]:
    """Give Gemma's key-values, and the files made of them."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory(prefix="qfmt-tokenizer-") as name:
        patch.syspath_prepend(root / "tools")
        importlib.import_module("installed").join_gemma(Path(name, "gemma.gguf"))
        source = key_values(Path(name, "gemma.gguf"))
        yield source, to_hf(source)


def key_values(path: Path) -> dict[str, Any]:
    with qconvert.open(path) as model:
        return {key: value for key, value in model.metadata.items() if key.startswith("tokenizer.")}


def raw(value: Any) -> Any:
    return bytes(value.raw) if isinstance(value, GGUFArray) else value


def back(files: Any, n_vocab: int, leave: str = "") -> dict[str, Any]:
    kept = {name: (lambda data=data: data) for name, data in files.items() if name != leave}
    return {pair.key: raw(pair.value) for pair in to_gguf(kept, {}, n_vocab)}


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    """Let the scripts below tools/ be imported."""
    monkeypatch.syspath_prepend(root / "tools")


def test_the_tokenizer_of_smollm2_comes_back_to_the_bit() -> None:
    installed = importlib.import_module("installed")
    source = key_values(installed.package_file(*installed.SMOLLM2))

    returned = back(to_hf(source), len(source["tokenizer.ggml.tokens"]))

    assert returned == {key: raw(value) for key, value in source.items()}


def test_the_tokenizer_of_gemma_comes_back_to_the_bit(gemma: tuple[dict[str, Any], Mapping[str, bytes]]) -> None:
    source, files = gemma

    returned = back(files, len(source["tokenizer.ggml.tokens"]))

    assert returned == {key: raw(value) for key, value in source.items()}


def test_without_its_scores_gemma_comes_back_with_those_that_its_merges_say(
    gemma: tuple[dict[str, Any], Mapping[str, bytes]],
) -> None:
    source, files = gemma

    returned = back(files, len(source["tokenizer.ggml.tokens"]), leave="tokenizer.model")

    scores, key = source["tokenizer.ggml.scores"].values(), "tokenizer.ggml.scores"
    again = struct.unpack(f"<{len(scores)}f", returned[key])
    tokens, kinds = (source[f"tokenizer.ggml.{name}"].values() for name in ("tokens", "token_type"))
    # What is left of a score is an order, and letters, to which nothing is merged, have none.
    other = {token for token, *pair in zip(tokens, scores, again, strict=True) if pair[0] != pair[1]}
    assert {key: value for key, value in returned.items() if key != "tokenizer.ggml.scores"} == {
        key: raw(value) for key, value in source.items() if key != "tokenizer.ggml.scores"
    }
    assert {len(token) for token in other} == {1}
    assert {kind for token, kind in zip(tokens, kinds, strict=True) if token in other} == {1}


def test_a_tokenizer_of_bytes_says_what_is_written_by_hand() -> None:
    assert made.said(made.folder(tokenizer_json=made.byte_level()), 9) == BYTE_LEVEL_SAID


def test_a_tokenizer_of_pieces_says_what_is_written_by_hand() -> None:
    files = made.folder(tokenizer_json=made.pieces(), tokenizer_config_json=CONFIG)

    said = made.said(files, 12)

    assert said == PIECES_SAID
    assert struct.pack("<f", said["scores"][8]) == struct.pack("<f", -0.0)


def test_a_tokenizer_model_alone_says_what_is_written_by_hand() -> None:
    config = CONFIG | {"added_tokens_decoder": {"8": {"content": "<mask>", "special": False}}}
    files = made.folder(
        tokenizer_model=made.pieces_model(),
        tokenizer_config_json=config,
        added_tokens_json={"y\u2581y": 9},
    )

    assert made.said(files, 11) == {
        "model": "llama",
        "pre": "default",
        "tokens": ["<unk>", "<s>", "<0x0A>", "a", "b", "ab", " x", "gone", "<mask>", "y y", "[PAD10]"],
        "scores": [0.0, 0.0, 0.0, -3.5, -4.0, -0.5, 0.0, 0.0, -1000.0, -1000.0, -10000.0],
        "token_type": [2, 3, 6, 1, 1, 1, 4, 5, 3, 4, 5],
        "add_space_prefix": True,
        "bos_token_id": 1,
        "unknown_token_id": 0,
    }


def test_a_tokenizer_model_lends_its_scores_to_a_tokenizer_json_of_the_same_pieces() -> None:
    # "ab" (8), "aab" (9), "\u2581ab" (7): the order of the merges.
    scores = [-7.0, -8.0, -9.0, -10.0, -11.0, -12.0, -13.0, -20.0, -15.0, -16.5]

    said = made.said(made.folder(tokenizer_json=made.pieces(), tokenizer_model=lender(scores)), 11)

    assert said["scores"] == [-1000.0, -1000.0, *scores[2:], -1000.0]
    assert said["token_type"] == [3, 3, 6, 6, 1, 1, 1, 1, 1, 1, 4]


def test_a_tokenizer_model_whose_scores_say_another_order_lends_nothing() -> None:
    scores = [-7.0, -8.0, -9.0, -10.0, -11.0, -12.0, -13.0, -14.0, -15.0, -16.0]
    files = made.folder(tokenizer_json=made.pieces(), tokenizer_config_json=CONFIG, tokenizer_model=lender(scores))

    assert made.said(files, 12) == PIECES_SAID


def lender(scores: list[float]) -> bytes:
    """Write the pieces of the hand-made tokenizer.json with other scores."""
    rows = made.pieces()["model"]["vocab"].items()
    return b"".join(made.piece(token, scores[at]) for token, at in rows) + made.trainer() + made.normalizer()


def test_a_tokenizer_model_of_other_pieces_lends_nothing() -> None:
    files = made.folder(tokenizer_json=made.pieces(), tokenizer_config_json=CONFIG, tokenizer_model=made.pieces_model())

    assert made.said(files, 12) == PIECES_SAID


def test_merges_written_with_a_space_and_as_pairs_are_the_same() -> None:
    pairs = made.byte_level()
    pairs["model"]["merges"] = [["a", "b"], ["\u0120", "ab"]]

    assert made.said(made.folder(tokenizer_json=pairs), 9) == BYTE_LEVEL_SAID


def test_ids_that_no_token_has_are_filled_up() -> None:
    gaps = made.byte_level()
    gaps["model"]["vocab"] |= {"ab": 8, "\u0120ab": 7}

    said = made.said(made.folder(tokenizer_json=gaps), 10)

    assert said["tokens"] == ["a", "b", "\u0120", "[PAD3]", "[PAD4]", "<|end|>", "<tool>", "\u0120ab", "ab", "[PAD9]"]
    assert said["token_type"] == [1, 1, 1, 5, 5, 3, 4, 1, 1, 5]


def test_pieces_for_which_a_model_has_no_row_are_left_out() -> None:
    said = made.said(made.folder(tokenizer_json=made.pieces(), tokenizer_config_json=CONFIG), 10)

    assert said["tokens"] == PIECES_SAID["tokens"][:10]
    assert said["scores"] == PIECES_SAID["scores"][:10]


@pytest.mark.parametrize("content", ["<|x|>", "<pad>", "<unused7>", "<\uff5cx\uff5c>"])
def test_added_tokens_that_look_special_control_the_model(content: str) -> None:
    tokenizer = made.byte_level()
    tokenizer["added_tokens"].append(made.added(7, content, False))

    assert made.said(made.folder(tokenizer_json=tokenizer), 8)["token_type"][7] == 3


CUTS = [
    ("gpt-2", made.BYTES, False),
    ("smollm", {"type": "Sequence", "pretokenizers": [made.DIGITS, made.BYTES]}, False),
    ("qwen2", made.split(made.CUT_QWEN2), False),
    ("llama-bpe", made.split(made.CUT_LLAMA3), True),
    ("llama-bpe", made.split(made.CUT_LLAMA3, "Removed", True), True),
    ("dbrx", made.split(made.CUT_LLAMA3), False),
    ("tekken", made.split(made.CUT_TEKKEN), True),
    ("gpt-4o", made.split(made.CUT_GPT4O), False),
    ("gpt-4o", made.split(made.CUT_GPT4O), True),
]


@pytest.mark.parametrize(("name", "pre", "whole_words"), CUTS)
def test_a_known_way_to_cut_texts_has_llama_cpps_name(name: str, pre: dict[str, Any], whole_words: bool) -> None:
    tokenizer = made.byte_level()
    tokenizer["pre_tokenizer"] = pre
    tokenizer["model"]["ignore_merges"] = whole_words
    tokenizer["normalizer"] = {"type": "NFC"}

    assert made.said(made.folder(tokenizer_json=tokenizer), 7)["pre"] == name


@pytest.mark.parametrize(("name", "pre", "whole_words"), [cut for cut in CUTS[:8] if cut[1] != CUTS[4][1]])
def test_the_way_to_cut_texts_is_written_as_checkpoints_have_it(name: str, pre: dict[str, Any], whole_words: bool) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()} | {"tokenizer.ggml.pre": name}

    written = json.loads(to_hf(metadata | {"tokenizer.ggml.bos_token_id": 5})["tokenizer.json"])

    assert written["pre_tokenizer"] == pre
    assert written["model"]["ignore_merges"] is whole_words
    assert written["normalizer"] == ({"type": "NFC"} if name == "qwen2" else None)


def test_what_begins_and_ends_a_text_is_said() -> None:
    config = {
        "bos_token": "<|end|>",
        "eos_token": {"content": "<|end|>"},
        "pad_token": "a",
        "eot_token": "<tool>",
        "add_bos_token": True,
        "add_eos_token": False,
        "add_prefix_space": False,
        "chat_template": "{{ messages }}",
    }
    files = made.folder(
        tokenizer_json=made.byte_level(), tokenizer_config_json=config, special_tokens_map_json={"unk_token": "b"}
    )

    assert made.said(files, 9, {"sep_token_id": 4, "mask_token_id": 77}) == BYTE_LEVEL_SAID | {
        "add_space_prefix": False,
        "bos_token_id": 5,
        "eos_token_id": 5,
        "eot_token_id": 6,
        "unknown_token_id": 1,
        "seperator_token_id": 4,
        "padding_token_id": 0,
        "add_bos_token": True,
        "add_eos_token": False,
        "chat_template": "{{ messages }}",
    }


def test_a_bos_that_llama_cpp_would_add_unasked_is_forbidden() -> None:
    tokenizer = made.byte_level()
    tokenizer["pre_tokenizer"] = made.split(made.CUT_LLAMA3)
    tokenizer["model"]["ignore_merges"] = True

    assert made.said(made.folder(tokenizer_json=tokenizer), 9)["add_bos_token"] is False


def test_a_bos_that_there_is_not_is_not_added() -> None:
    files = made.folder(tokenizer_json=made.byte_level(), tokenizer_config_json={"add_bos_token": True, "bos_token": None})

    assert made.said(files, 9)["add_bos_token"] is False


@pytest.mark.parametrize("config", [{}, {"bos_token": None}])
def test_a_template_is_read_from_a_file_of_its_own(config: dict[str, Any]) -> None:
    files = made.folder(tokenizer_json=made.byte_level(), tokenizer_config_json=config, chat_template_jinja="{{ x }}\n")

    assert made.said(files, 9)["chat_template"] == "{{ x }}\n"


def test_templates_by_name_come_back() -> None:
    templates = [{"name": "default", "template": "D"}, {"name": "tool use", "template": "T"}, {"name": "rag", "template": "R"}]
    files = made.folder(tokenizer_json=made.byte_level(), tokenizer_config_json={"chat_template": templates})

    metadata = {pair.key: pair.value for pair in to_gguf(files, {}, 9)}

    assert [metadata[f"tokenizer.chat_template{name}"] for name in ("", ".tool_use", ".rag")] == ["D", "T", "R"]
    assert json.loads(to_hf(metadata)["tokenizer_config.json"])["chat_template"] == [
        {"name": "default", "template": "D"},
        {"name": "tool_use", "template": "T"},
        {"name": "rag", "template": "R"},
    ]


def test_no_tokenizer_is_said_and_gives_no_files() -> None:
    assert made.said({}, 9) == {"model": "none"}
    assert to_hf({"tokenizer.ggml.model": "none"}) == {}
    assert to_hf({}) == {}


def test_key_values_of_pieces_give_the_files_written_by_hand() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in PIECES_SAID.items()} | {"general.architecture": "llama"}

    files = to_hf(metadata | {"llama.context_length": 64})

    written = json.loads(files["tokenizer.json"])
    source = made.pieces()
    assert written["normalizer"] == source["normalizer"]
    assert written["model"]["vocab"] == source["model"]["vocab"] | {"  ": 10}
    assert written["model"]["merges"] == source["model"]["merges"]
    assert (written["model"]["unk_token"], written["model"]["byte_fallback"]) == ("<unk>", True)
    assert written["added_tokens"] == [*source["added_tokens"][:2], made.added(10, "  ", False)]
    assert written["post_processor"]["single"] == source["post_processor"]["single"]
    special = {"bos_token": "<s>", "eos_token": "<0x0A>", "unk_token": "<unk>"}
    assert json.loads(files["special_tokens_map.json"]) == special
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": 2}
    assert json.loads(files["tokenizer_config.json"]) == special | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "model_max_length": 64,
    }


def test_pieces_without_a_space_before_them_are_normalized_without_one() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in PIECES_SAID.items()}

    written = json.loads(to_hf(metadata | {"tokenizer.ggml.add_space_prefix": False})["tokenizer.json"])

    assert written["normalizer"] == {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
    assert [step["type"] for step in written["decoder"]["decoders"]] == ["Replace", "ByteFallback", "Fuse"]


def test_a_written_tokenizer_model_says_what_a_hand_made_one_says() -> None:
    tokens = ["<unk>", "<s>", "<0x0A>", "a", "b", "ab", " x"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 6, 1, 1, 1, 4],
        "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -3.5, -4.0, -0.5, 0.0],
        "tokenizer.ggml.eos_token_id": 200,
    }

    written = to_hf(metadata)["tokenizer.model"]

    rows = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("<0x0A>", 0.0, 6), ("a", -3.5), ("b", -4.0), ("ab", -0.5), ("\u2581x", 0.0, 4)]
    none = (1 << 64) - 1
    trainer = made.field(3, 2) + made.field(4, 7) + made.field(35, 1) + made.field(40, 0) + made.field(45, b"<unk>")
    trainer += made.field(41, 1) + made.field(46, b"<s>") + made.field(42, 2) + made.field(47, b"<0x0A>") + made.field(43, none)
    normalizer = made.field(1, b"identity") + made.field(3, 1) + made.field(4, 0)
    assert written == b"".join(made.piece(*row) for row in rows) + made.field(2, trainer) + made.field(3, normalizer)


def test_padded_ids_are_left_out_of_a_tokenizer_json_and_filled_up_again() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()}

    files = to_hf(metadata)

    assert json.loads(files["tokenizer.json"])["model"]["vocab"] == made.byte_level()["model"]["vocab"] | {
        "<|end|>": 5,
        "<tool>": 6,
    }
    assert made.said({name: (lambda data=data: data) for name, data in files.items()}, 9) == BYTE_LEVEL_SAID


@pytest.mark.parametrize("name", ["gpt-2", "phi-2"])
def test_a_name_that_llama_cpp_reads_as_another_is_read_so_too(name: str) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()} | {"tokenizer.ggml.pre": name}

    assert json.loads(to_hf(metadata)["tokenizer.json"])["pre_tokenizer"] == made.BYTES


@pytest.mark.parametrize("kind", ["bert", "t5", "rwkv", "plamo2", 7])
def test_a_tokenizer_of_another_kind_is_refused_by_name(kind: object) -> None:
    with pytest.raises(
        NotExact, match=rf"field 'tokenizer\.ggml\.model': the tokenizer is '{kind}', expected 'gpt2' or 'llama'"
    ):
        to_hf({"tokenizer.ggml.model": kind})


def test_a_token_at_two_ids_is_refused() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()}
    metadata["tokenizer.ggml.tokens"] = [*BYTE_LEVEL_SAID["tokens"][:8], "b"]

    with pytest.raises(NotExact, match=r"the tokens 1 and 8 are both 'b', expected each once"):
        to_hf(metadata)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokens", None, r"field 'tokenizer\.ggml\.tokens': there is no list of str, which the tokenizer needs"),
        ("tokens", ["a", 1], r"there is no list of str"),
        ("merges", None, r"field 'tokenizer\.ggml\.merges': there is no list of str"),
        ("merges", ["ab"], r"merge 0, 'ab', expected two tokens whose whole is a token"),
        ("merges", ["a b", "b a"], r"merge 1, 'b a', expected two tokens whose whole is a token"),
        ("token_type", [1], r"field 'tokenizer\.ggml\.token_type': 1 values for 9 tokens, expected one for each"),
        ("token_type", [1, 1, 1, 9, 1, 1, 1, 1, 1], r"token 3 is of type 9, expected 1 to 6"),
        ("add_bos_token", 1, r"field 'tokenizer\.ggml\.add_bos_token': found 1, expected true or false"),
    ],
)
def test_key_values_that_do_not_fit_together_are_refused(key: str, value: object, words: str) -> None:
    metadata = {f"tokenizer.ggml.{name}": value for name, value in (BYTE_LEVEL_SAID | {key: value}).items()}

    with pytest.raises(FileError, match=words):
        to_hf(metadata)


def test_pieces_need_scores() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in PIECES_SAID.items() if key != "scores"}

    with pytest.raises(FileError, match=r"field 'tokenizer\.ggml\.scores': there is no list of float"):
        to_hf(metadata)


def test_a_cutting_that_is_not_known_is_refused_by_name() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()} | {"tokenizer.ggml.pre": "kimi-k2"}

    with pytest.raises(
        NotExact, match=r"field 'tokenizer\.ggml\.pre': texts are cut as 'kimi-k2' says, expected one of gpt-2, "
    ):
        to_hf(metadata)


@pytest.mark.parametrize("pre", ["llama-bpe", "gpt-2"])
def test_a_token_around_a_text_that_is_not_named_is_refused(pre: str) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()} | {"tokenizer.ggml.pre": pre}
    asked = {"tokenizer.ggml.add_bos_token": True} if pre == "gpt-2" else {}  # llama.cpp adds one to the other unasked

    words = r"field 'tokenizer\.ggml\.bos_token_id': a text is put beside a token that no key names"
    with pytest.raises(FileError, match=words):
        to_hf(metadata | asked)


def test_both_tokens_around_a_text_are_written_and_read() -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in BYTE_LEVEL_SAID.items()}
    asked = {"bos_token_id": 5, "eos_token_id": 6, "eot_token_id": 5, "add_bos_token": True, "add_eos_token": True}

    files = to_hf(metadata | {f"tokenizer.ggml.{key}": value for key, value in asked.items()})

    single, pair = (json.loads(files["tokenizer.json"])["post_processor"][name] for name in ("single", "pair"))
    first = [{"SpecialToken": {"id": "<|end|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    assert single == [*first, {"SpecialToken": {"id": "<tool>", "type_id": 0}}]
    assert pair == [
        *single,
        {"SpecialToken": {"id": "<|end|>", "type_id": 1}},
        {"Sequence": {"id": "B", "type_id": 1}},
        {"SpecialToken": {"id": "<tool>", "type_id": 1}},
    ]
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 5, "eos_token_id": [6, 5]}
    returned = made.said({name: (lambda data=data: data) for name, data in files.items()}, 9)
    # The package finds that nothing but the two stands between two texts.
    assert returned == BYTE_LEVEL_SAID | asked | {"add_sep_token": False}


def test_what_stands_before_a_text_is_found_among_other_steps() -> None:
    tokenizer = made.byte_level()
    tokenizer["added_tokens"].append(made.added(1, "b", True))
    before = {"SpecialToken": {"id": "b", "type_id": 0}}
    template = {"type": "TemplateProcessing", "single": [before, {"Sequence": {"id": "A", "type_id": 0}}], "pair": []}
    tokenizer["post_processor"] = {"type": "Sequence", "processors": [made.BYTES, template]}
    files = made.folder(tokenizer_json=tokenizer, tokenizer_config_json={"bos_token": "b"})

    said = made.said(files, 7)

    assert (said["bos_token_id"], said["add_bos_token"]) == (1, True)


def test_a_long_piece_is_read_and_an_added_token_takes_the_place_of_a_piece() -> None:
    pieces = made.piece("x" * 300, 0.0, 4) + made.piece("old", -1.0)
    files = made.folder(tokenizer_model=pieces + made.trainer() + made.normalizer(0), added_tokens_json={"new": 1})

    said = made.said(files, 2)

    assert said["tokens"] == ["x" * 300, "new"]
    assert said["token_type"] == [4, 4]
    assert said["add_space_prefix"] is False
