"""Tokenizer files that break their format, or ask for what llama.cpp does not do: one line that says what and where."""

from collections.abc import Callable
from typing import Any

import handmade_tokenizer as made
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qconvert.architectures.tokenizer import to_gguf, to_hf
from qconvert.architectures.tokenizer_merges import MAX_PIECE, merges_of, scores_of

from qformat.errors import FileError, NotExact, QFormatError

Json = dict[str, Any]
Change = Callable[[Json], object]

# What is changed in a tokenizer.json of bytes, and the words of the error.
BROKEN: list[tuple[str, Change, str]] = [
    ("no model", lambda t: t.pop("model"), r"tokenizer\.json: there is no 'model'"),
    ("model a list", lambda t: t.update(model=[]), r"tokenizer\.json: field 'model': found a list, expected an object"),
    ("no vocab", lambda t: t["model"].pop("vocab"), r"field 'model': there is no 'vocab'"),
    ("vocab a list", lambda t: t["model"].update(vocab=["a"]), r"field 'model\.vocab': found a list, expected an object"),
    ("no merges", lambda t: t["model"].pop("merges"), r"field 'model': there is no 'merges'"),
    ("merges an object", lambda t: t["model"].update(merges={}), r"field 'model\.merges': found an object, expected a list"),
    (
        "merge of one",
        lambda t: t["model"].update(merges=["ab"]),
        r"field 'model\.merges\[0\]': found 'ab', expected two tokens",
    ),
    ("merge of three", lambda t: t["model"]["merges"].append("a b ab"), r"field 'model\.merges\[2\]': found 'a b ab'"),
    ("merge of numbers", lambda t: t["model"].update(merges=[[1, 2]]), r"field 'model\.merges\[0\]': found '\[1, 2\]'"),
    ("merge of lists", lambda t: t["model"].update(merges=[[["a"], ["b"]]]), r"field 'model\.merges\[0\]'"),
    ("merge of strangers", lambda t: t["model"].update(merges=["a z"]), r"found 'a z', expected two tokens whose whole is a"),
    ("merge to nothing", lambda t: t["model"].update(merges=["b a"]), r"found 'b a', expected two tokens whose whole is a"),
    ("id a string", lambda t: t["model"]["vocab"].update(a="0"), r"field 'tokens': the id of 'a' is 0, expected 0 to 8"),
    ("id true", lambda t: t["model"]["vocab"].update(b=True), r"the id of 'b' is True, expected 0 to 8"),
    ("id a fraction", lambda t: t["model"]["vocab"].update(b=1.0), r"the id of 'b' is 1\.0, expected 0 to 8"),
    ("id below zero", lambda t: t["model"]["vocab"].update(b=-1), r"the id of 'b' is -1, expected 0 to 8"),
    ("id too great", lambda t: t["model"]["vocab"].update(b=9), r"the id of 'b' is 9, expected 0 to 8"),
    ("id immense", lambda t: t["model"]["vocab"].update(b=10**30), r"the id of 'b' is 1000000000000000000000000000000, exp"),
    ("id twice", lambda t: t["model"]["vocab"].update(b=0), r"'a' and 'b' have the id 0, expected one token"),
    ("added twice", lambda t: t["added_tokens"].append(made.added(7, "a", True)), r"'a' has the ids 0 and 7, expected one"),
    ("added over", lambda t: t["added_tokens"].append(made.added(0, "z", True)), r"'a' and 'z' have the id 0"),
    (
        "added a string",
        lambda t: t.update(added_tokens=["z"]),
        r"field 'added_tokens\[0\]': found a string, expected an object",
    ),
    ("added untold", lambda t: t.update(added_tokens=[{"id": 7}]), r"field 'added_tokens\[0\]': there is no 'content'"),
    (
        "special a word",
        lambda t: t["added_tokens"][0].update(special="y"),
        r"field 'added_tokens\[0\]\.special': found a string",
    ),
    ("no cut's type", lambda t: t.update(pre_tokenizer={}), r"field 'pre_tokenizer': there is no 'type'"),
    ("no steps", lambda t: t.update(pre_tokenizer={"type": "Sequence"}), r"there is no 'pretokenizers'"),
    ("byte_fallback a word", lambda t: t["model"].update(byte_fallback="y"), r"field 'model\.byte_fallback': found a string"),
    (
        "senseless template",
        lambda t: t.update(post_processor={"type": "TemplateProcessing", "single": [1, 2]}),
        r"make no sense",
    ),
]
# The same for what is legal and has no equal.
UNLIKE: list[tuple[str, Change, str]] = [
    (
        "unigram",
        lambda t: t["model"].update(type="Unigram"),
        r"field 'tokenizer\.ggml\.model': the model is 'Unigram', expected",
    ),
    ("wordpiece", lambda t: t["model"].update(type="WordPiece"), r"the model is 'WordPiece', expected 'BPE'"),
    (
        "prefix",
        lambda t: t["model"].update(continuing_subword_prefix="##"),
        r"field 'model\.continuing_subword_prefix': found '##'",
    ),
    ("suffix", lambda t: t["model"].update(end_of_word_suffix="</w>"), r"field 'model\.end_of_word_suffix': found '</w>'"),
    ("dropout", lambda t: t["model"].update(dropout=0.1), r"field 'model\.dropout': found '0\.1', expected none"),
    ("no cut", lambda t: t.update(pre_tokenizer=None), r"there is no 'pre_tokenizer', expected one that ends in 'ByteLevel'"),
    (
        "whitespace",
        lambda t: t.update(pre_tokenizer={"type": "Whitespace"}),
        r"expected 'ByteLevel' without a prefix at the end",
    ),
    ("a space before", lambda t: t["pre_tokenizer"].update(add_prefix_space=True), r"expected 'ByteLevel' without a prefix"),
    (
        "lower case",
        lambda t: t.update(normalizer={"type": "Lowercase"}),
        r"field 'normalizer': the normalizer 'Lowercase', expected",
    ),
    (
        "an own cut",
        lambda t: t.update(pre_tokenizer=made.split("x+")),
        r"field 'tokenizer\.ggml\.pre': llama\.cpp is known to have",
    ),
    (
        "removing",
        lambda t: t.update(pre_tokenizer=made.split("x+", "Removed")),
        r"pretokenizers\[0\]': the step 'Split', expected",
    ),
    ("digits in runs", lambda t: t.update(pre_tokenizer=digits_in_runs()), r"pretokenizers\[0\]': the step 'Digits', expected"),
    (
        "whole words",
        lambda t: t["model"].update(ignore_merges=True),
        r"no name for texts that are cut by 1 expressions and words",
    ),
    (
        "one text twice",
        lambda t: t["added_tokens"].extend(two_spaces()),
        r"the ids 7 and 8 are both 'x y', expected each token onc",
    ),
]
# And for pieces.
UNLIKE_PIECES: list[tuple[str, Change, str]] = [
    (
        "case",
        lambda t: t.update(normalizer={"type": "Lowercase"}),
        r"field 'normalizer': the normalizer 'Lowercase' changes texts",
    ),
    ("no mark", lambda t: t.update(normalizer=None), r"nothing puts '.' for spaces, which llama\.cpp does before"),
    ("words", lambda t: t.update(pre_tokenizer={"type": "Whitespace"}), r"the pre-tokenizer 'Whitespace' changes texts"),
    (
        "split",
        lambda t: t.update(normalizer=None, pre_tokenizer=metaspace(split=True)),
        r"the pre-tokenizer 'Metaspace' changes",
    ),
    ("late space", lambda t: t["normalizer"]["normalizers"].reverse(), r"normalizers\[1\]': the normalizer 'Prepend' changes"),
    (
        "unjoined",
        lambda t: t["model"]["merges"].pop(),
        r"field 'tokenizer\.ggml\.merges': '.' and 'ab' and their whole are pieces, b",
    ),
]


def digits_in_runs() -> Json:
    return {"type": "Sequence", "pretokenizers": [made.DIGITS | {"individual_digits": False}, made.BYTES]}


def two_spaces() -> list[Json]:
    return [made.added(7, "x y", False), made.added(8, "x\u2581y", False)]


def metaspace(split: bool, scheme: str = "always") -> Json:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": split}


def changed(tokenizer: Json, change: Change) -> Any:
    change(tokenizer)
    return made.folder(tokenizer_json=tokenizer)


def error_of(call: Callable[[], object]) -> str:
    """Give the words of the one kind of error that may come, empty where none comes."""
    try:
        call()
    except QFormatError as err:
        return str(err)
    return ""


def by_name(table: list[tuple[str, Change, str]]) -> Any:
    return pytest.mark.parametrize(("change", "words"), [row[1:] for row in table], ids=[row[0] for row in table])


@by_name(BROKEN)
def test_a_broken_tokenizer_json_is_refused_in_one_line(change: Change, words: str) -> None:
    with pytest.raises(FileError, match=words) as caught:
        to_gguf(changed(made.byte_level(), change), {}, 9)

    assert "\n" not in str(caught.value)


@by_name(UNLIKE)
def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused_by_what_it_asks_for(change: Change, words: str) -> None:
    with pytest.raises(NotExact, match=words):
        to_gguf(changed(made.byte_level(), change), {}, 9)


@by_name(UNLIKE_PIECES)
def test_pieces_that_llama_cpp_does_not_join_so_are_refused(change: Change, words: str) -> None:
    with pytest.raises(NotExact, match=words):
        to_gguf(changed(made.pieces(), change), {}, 12)


@pytest.mark.parametrize(("scheme", "expected"), [("always", True), ("first", True), ("never", False)])
def test_metaspace_says_whether_a_space_is_put_before_a_text(scheme: str, expected: bool) -> None:
    tokenizer = made.pieces() | {"normalizer": None, "pre_tokenizer": metaspace(False, scheme)}

    assert made.said(made.folder(tokenizer_json=tokenizer), 12)["add_space_prefix"] is expected


def test_what_gemma_does_to_spaces_is_read() -> None:
    cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}
    tokenizer = made.pieces() | {"pre_tokenizer": cut}
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}

    assert made.said(made.folder(tokenizer_json=tokenizer), 12)["add_space_prefix"] is False


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"tokenizer_json": b"[]"}, r"tokenizer\.json: found a list, expected an object"),
        (
            {"tokenizer_json": b'{"model"'},
            r"tokenizer\.json: the tokenizer is nested|tokenizer\.json.*the tokenizer is not JSON",
        ),
        ({"tokenizer_json": b'{"model": 1, "model": 2}'}, r"holds 'model' twice in one object"),
        ({"tokenizer_json": b'{"a": NaN}'}, r"holds NaN, which is not JSON"),
        ({"tokenizer_config_json": b"7"}, r"tokenizer_config\.json: found a number, expected an object"),
        ({"special_tokens_map_json": b"[1]"}, r"special_tokens_map\.json: found a list, expected an object"),
        ({"chat_template_jinja": b"\xff"}, r"the special tokens make no sense: .*utf-8"),
        (
            {"tokenizer_config_json": b'{"chat_template": [{"name": "a"}]}'},
            r"field 'chat_template\[0\]': there is no 'template'",
        ),
        (
            {"tokenizer_config_json": b'{"chat_template": [7]}'},
            r"field 'chat_template\[0\]': found a number, expected an object",
        ),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused(files: Json, words: str) -> None:
    with pytest.raises(FileError, match=words):
        to_gguf(made.folder(**({"tokenizer_json": made.byte_level()} | files)), {}, 9)


def test_a_space_before_every_text_is_refused_where_tokens_are_bytes() -> None:
    files = made.folder(tokenizer_json=made.byte_level(), tokenizer_config_json={"add_prefix_space": True})

    with pytest.raises(NotExact, match=r"tokenizer_config\.json: field 'add_prefix_space': a space is put before a text"):
        to_gguf(files, {}, 9)


@pytest.mark.parametrize("name", ["vocab_json", "vocab_txt"])
def test_a_vocabulary_that_does_not_say_how_texts_are_cut_is_refused(name: str) -> None:
    with pytest.raises(NotExact, match=r"the tokenizer is in 'vocab\.(json|txt)' alone, expected a tokenizer\.json"):
        to_gguf(made.folder(**{name: {"a": 0}}), {}, 9)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (made.piece("a", 0.0) + made.trainer(1) + made.normalizer(), r"the model is 'unigram', expected 'bpe'"),
        (made.piece("a", 0.0) + made.normalizer(), r"the model is 'unigram', expected 'bpe'"),
        (made.piece("a", 0.0) + made.trainer() + made.normalizer(1, 1), r"repeated spaces are taken out"),
        (made.piece("a", 0.0) + made.trainer() + made.normalizer(1, 0, b"abc"), r"a table of 3 bytes replaces characters"),
    ],
)
def test_a_tokenizer_model_that_llama_cpp_does_not_follow_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(NotExact, match=words):
        to_gguf(made.folder(tokenizer_model=data), {}, 4)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"IQ== 0\nIg== 1\n", r"tokenizer\.model: there are no pieces: this is no sentencepiece model"),  # Llama 3's is such
        (made.piece("a", 0.0, 7), r"tokenizer\.model: at 0x2: piece 0 is of kind 7, expected 1 to 6"),
        (made.field(1, made.field(1, b"\xff")), r"tokenizer\.model: at 0x2: piece 0 is not UTF-8"),
        (made.field(1, made.field(1, 5)), r"tokenizer\.model: at 0x2: field 1 holds a number, expected bytes"),
        (made.field(1, made.field(3, b"x")), r"field 3 holds bytes, expected a number"),
        (made.field(1, made.field(2, b"xy")), r"the score of piece 0 is no float32"),
        (made.field(1, 5), r"at 0x0: field 1 holds a number, expected bytes"),
        (b"\x0a\x7f", r"at 0x2: 127 bytes needed, 0 left"),
        (b"\x0b", r"at 0x0: wire type 3, expected 0, 1, 2 or 5"),
        (b"\xff" * 20, r"a number of more than 64 bits"),
        (b"\xff", r"a number is cut off"),
        (made.piece("a", 0.0) * 2, r"'a' has the ids 0 and 1, expected one"),
    ],
)
def test_bytes_that_are_no_tokenizer_model_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(FileError, match=words):
        to_gguf(made.folder(tokenizer_model=data), {}, 4)


def test_a_tokenizer_model_cut_anywhere_is_refused_or_whole() -> None:
    whole = made.pieces_model()
    for n_bytes in range(len(whole)):
        with pytest.raises(QFormatError):
            to_gguf(made.folder(tokenizer_model=whole[:n_bytes]), {}, 9)
    assert made.said(made.folder(tokenizer_model=whole), 9)["tokens"][5] == "ab"


@pytest.mark.parametrize("at", ["x", "-1", "\u0661", "9" * 30])
def test_an_added_token_at_an_id_that_is_none_is_refused(at: str) -> None:
    files = made.folder(
        tokenizer_model=made.pieces_model(), tokenizer_config_json={"added_tokens_decoder": {at: {"content": "z"}}}
    )

    with pytest.raises(FileError, match=r"field 'added_tokens_decoder': the id '.*', expected a number"):
        to_gguf(files, {}, 9)


def test_scores_that_several_pieces_have_put_their_merges_in_no_order() -> None:
    with pytest.raises(NotExact, match=r"2 pieces, 'ab' and 'bc' among them, have the score -1: no merge comes first"):
        merges_of({"a": 0.0, "b": 0.0, "c": 0.0, "ab": -1.0, "bc": -1.0})


def test_runs_of_one_character_may_have_one_score() -> None:
    low = -1e9
    merges = merges_of({"_": low, "__": low, "____": low, "___": low, "a": 0.0, "_a": -1.0})

    assert merges == [("_", "a"), ("___", "_"), ("__", "__"), ("__", "_"), ("_", "___"), ("_", "__"), ("_", "_")]
    assert scores_of(merges, ["_", "__", "____", "___", "a", "_a"]) == {
        "_a": -0.0,
        **dict.fromkeys(["____", "___"], -1.0),
        "__": -3.0,
        "_": -4.0,
        "a": -5.0,
    }


def test_a_run_that_does_not_grow_from_the_left_is_refused() -> None:
    merges = [("__", "__"), ("_", "__"), ("_", "_"), ("__", "_"), ("___", "_"), ("_", "___")]

    with pytest.raises(NotExact, match=r"merges to '____' and '___' stand among one another, which no scores say"):
        scores_of(merges, ["_", "__", "___", "____"])


def test_merges_that_stand_among_others_are_refused() -> None:
    merges = [("ab", "c"), ("b", "cd"), ("a", "bc"), ("bc", "d"), ("a", "b"), ("b", "c"), ("c", "d")]

    with pytest.raises(NotExact, match=r"merges to 'abc' and 'bcd' stand among one another, which no scores say"):
        scores_of(merges, ["a", "b", "c", "d", "ab", "bc", "cd", "abc", "bcd"])


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(FileError, match=r"field 'tokenizer\.ggml\.scores': the score of 'a' is no number"):
        merges_of({"a": float("nan")})


def test_a_piece_that_is_too_long_to_be_cut_everywhere_is_refused() -> None:
    with pytest.raises(FileError, match=rf"piece 1 has {MAX_PIECE + 1} characters, expected at most {MAX_PIECE}"):
        merges_of({"a" * MAX_PIECE: 0.0, "b" * (MAX_PIECE + 1): 0.0})


@given(st.lists(st.text("ab_", min_size=1, max_size=5), unique=True, max_size=40), st.randoms(use_true_random=False))
def test_scores_and_merges_say_the_same(pieces: list[str], random: Any) -> None:
    order = list(range(len(pieces)))
    random.shuffle(order)
    scores = {piece: -float(rank) for piece, rank in zip(pieces, order, strict=True)}

    merges = merges_of(scores)

    assert merges_of(scores_of(merges, pieces)) == merges


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["type", "pretokenizers", "single", "pair", "id", "content", "SpecialToken", "pattern"]), x
            )
        ),
    ),
    st.sampled_from(["model", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"]),
)
def test_whatever_stands_in_a_tokenizer_json_gives_key_values_or_one_error(value: object, member: str) -> None:
    files = made.folder(tokenizer_json=made.byte_level() | {member: value})

    assert "\n" not in error_of(lambda: to_gguf(files, {}, 9))


@given(
    st.dictionaries(
        st.sampled_from(["bos_token", "eos_token", "add_bos_token", "chat_template", "add_prefix_space", "cls_token"]),
        st.none()
        | st.booleans()
        | st.integers()
        | st.text(max_size=3)
        | st.lists(st.integers())
        | st.dictionaries(st.just("content"), st.integers() | st.text(max_size=2)),
    )
)
def test_whatever_a_config_says_gives_key_values_or_one_error(config: Json) -> None:
    files = made.folder(tokenizer_json=made.byte_level(), tokenizer_config_json=config)

    assert "\n" not in error_of(lambda: made.said(files, 9))


@given(
    st.dictionaries(
        st.sampled_from(["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "add_bos_token"]),
        st.sampled_from(["gpt2", "llama", "gpt-2"])
        | st.integers()
        | st.booleans()
        | st.lists(st.integers(0, 7) | st.text("ab ", max_size=3) | st.floats()),
    )
)
def test_whatever_key_values_say_gives_files_or_one_error(said: Json) -> None:
    metadata = {f"tokenizer.ggml.{key}": value for key, value in ({"model": "llama", "tokens": ["a", "b"]} | said).items()}

    assert "\n" not in error_of(lambda: to_hf(metadata))
