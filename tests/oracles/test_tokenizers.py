"""Tokenizers under both runtimes: what transformers makes of a folder, llama.cpp makes of a GGUF file, id for id.

llama.cpp is asked to read special tokens in a text, as transformers always does. Real ones first; then, for every way to cut a
text, and for pieces, one whose merges go across everything that a text is cut at, so that another cut gives other ids.
"""

import ctypes
import json
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import qconvert
import runtimes
from qconvert.architectures.tokenizer import to_gguf, to_hf
from qconvert.architectures.tokenizer_pre import CUTTINGS, Cutting, write_cutting
from qconvert.containers.gguf_values import GGUFArray
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer

TEXTS = (
    *("Hello world", " leading", "trailing ", "two  spaces", "   three", "tabs\tand\t\ttabs", "new\nline", "a\n\nb", "\n\n\n"),
    *("a\r\nb", "\r\r", " \n", "\n ", "a \n b", "123 1234567 3.14 1,000,000", "x=1;y=2", "def f(x):\n    return x**2\n"),
    *('for (int i=0;i<10;i++) { printf("%d\\n", i); }', "SELECT * FROM t WHERE a='b';", "日本語のテキスト", "中文字符测试"),
    *("한국어 문장", "Привет, мир!", "مرحبا بالعالم", "שלום", "हिन्दी पाठ", "ไทย", "🚀😶‍🌫️🦙", "emoji👩‍👩‍👧‍👦family", "é vs é"),
    *("ﬁ ligature", "I've you're he's we'll I'd I'm", "'RE 'Ve 'S 'lL", "don't DON'T", "ALLCAPS camelCase snake_case kebab"),
    *("https://example.org/a?b=c&d=e#f", "<html><body><h1>T</h1></body></html>", '{"a": [1, 2, {"b": null}]}'),
    *(
        "\u00a0nbsp\u2003em",
        "\u200bzero",
        "\u3000wide",
        "a" * 50,
        " " * 31,
        " " * 40,
        "\t" * 5,
        "\n" * 35,
        "!!!???...",
        "-" * 12,
    ),
    *(
        "``` code ```",
        "½ ⅓ ² ³ ①",
        "x²+y³=z⁴",
        "\x01\x7f",
        "\ufffd",
        "\U0001d518\U0001d52b\U0001d526",
        "mixed日本and英語text",
        "▁under▁",
        "▁ ▁",
    ),
    *("<s> </s>", "<bos>hi<eos>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "<|endoftext|>", "<unk>"),
    *("<start_of_turn>user\nhi<end_of_turn>\n", "a<|im_end|>b", "   <|im_end|>  ", "<|im_end|><|im_end|>", "[PAD3]"),
    *("the the the", "antidisestablishmentarianism", "1st 2nd 3rd", "٣٤٥", "१२३", "10e-5 0xFF", "\"quoted\" 'single'"),
    *(
        "C'est l'été",
        "naïve café",
        "ß ẞ",
        "ǅ ǆ",
        "…—\u2013",
        "end.",
        "e",
        " ",
        "  ",
        "\n",
        "A B C",
        "aB Cd EF",
        "100%",
        "$5 €6",
        "e\u0301a\u0300",
        "a Zqx",
        "Zqx",
    ),
)
# Every text, and every text beside another.
ALL = (*TEXTS, *(f"{one} {two}" for one, two in zip(TEXTS, TEXTS[7:] + TEXTS[:7], strict=True)))
# llama.cpp takes some texts in angle brackets for special, whatever a file says: no token is to be one of them. And one word
# is to be a token that no merges make.
WORD = "Zqx"
CORPUS = [text for text in ALL if "<" not in text and WORD not in text]
# llama.cpp's own expressions for these know letters of either case, and no marks on them.
WITHOUT_MARKS = ("gpt-4o", "tekken")
WIDTH = 32


class Peer:
    """A vocabulary that llama.cpp has loaded."""

    def __init__(self, path: Path) -> None:
        self._lib = runtimes.tool("llama").library()
        self._model = self._lib.llama_model_load_from_file(str(path).encode(), self._lib.llama_model_default_params())
        assert self._model, f"{path.name} is not loaded"
        self._vocab = self._lib.llama_model_get_vocab(self._model)

    def ids(self, text: str) -> list[int]:
        """Give the ids of a text in which special tokens are read."""
        raw = text.encode()
        ids = (ctypes.c_int32 * (len(raw) + 8))()
        return list(ids[: self._lib.llama_tokenize(self._vocab, raw, len(raw), ids, len(ids), True, True)])

    def close(self) -> None:
        self._lib.llama_model_free(self._model)


def peer_ids(path: Path, texts: Sequence[str]) -> dict[str, list[int]]:
    peer = Peer(path)
    made = {text: peer.ids(text) for text in texts}
    peer.close()
    return made


@pytest.fixture(scope="module", params=["smollm2", "gemma"])
def real(request: pytest.FixtureRequest) -> Iterator[tuple[Path, Path]]:
    """Give a real model's file, and a folder with the tokenizer that is made of it."""
    installed = runtimes.tool("installed")
    with tempfile.TemporaryDirectory(prefix="qfmt-tokenizers-") as name:
        source, folder = Path(name, "source.gguf"), Path(name, "folder")
        if request.param == "smollm2":
            source.symlink_to(installed.package_file(*installed.SMOLLM2))
        else:
            installed.join_gemma(source)
        with qconvert.open(source) as model:
            write(to_hf(model.metadata), folder)
        (folder / "config.json").write_text(
            json.dumps({"model_type": {"smollm2": "llama", "gemma": "gemma3_text"}[request.param]})
        )
        yield source, folder


def test_a_real_tokenizer_makes_the_ids_that_llama_cpp_makes(real: tuple[Path, Path]) -> None:
    source, folder = real
    tokenizer, plain = AutoTokenizer.from_pretrained(folder), Tokenizer.from_file(str(folder / "tokenizer.json"))

    expected = peer_ids(source, ALL)

    assert {text: tokenizer(text)["input_ids"] for text in ALL} == expected
    assert {text: plain.encode(text).ids for text in ALL} == expected


def test_a_real_tokenizer_reads_its_ids_back_and_knows_its_special_tokens(real: tuple[Path, Path]) -> None:
    source, folder = real
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with qconvert.open(source) as model:
        said = {key.removeprefix("tokenizer.ggml."): value for key, value in model.metadata.items()}

    words = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    assert {word: getattr(tokenizer, f"{word}_token_id") for word in words} == {
        word: said[f"{key}_token_id"] for word, key in words.items()
    }
    assert tokenizer.chat_template == said.get("tokenizer.chat_template")
    texts = [text for text in ALL if "▁" not in text]  # which stands for a space
    read = {text: tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts}
    assert read == {text: text for text in texts}


def test_what_transformers_saves_again_gives_the_same_key_values(real: tuple[Path, Path], tmp_path: Path) -> None:
    source, folder = real
    with qconvert.open(source) as model:
        said = {key: value for key, value in model.metadata.items() if key.startswith("tokenizer.")}

    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)

    files = {path.name: path.read_bytes for path in tmp_path.iterdir() if path.is_file()}
    again = {pair.key: pair.value for pair in to_gguf(files, {}, len(said["tokenizer.ggml.tokens"]))}
    assert kept(again) == kept(said)


@pytest.mark.parametrize("cutting", CUTTINGS, ids=lambda cutting: cutting.name)
def test_a_text_is_cut_by_every_name_as_llama_cpp_cuts_it(cutting: Cutting, tmp_path: Path) -> None:
    tokenizer = crossing_bytes(cutting)
    texts = [text for text in ALL if not cutting.composes or normalizers.NFC().normalize_str(text) == text]
    if cutting.name in WITHOUT_MARKS:
        texts = [text for text in texts if not any(unicodedata.category(letter).startswith("M") for letter in text)]

    expected = peer_ids(of_tokenizer(tokenizer, tmp_path), texts)

    found = Tokenizer.from_str(json.dumps(tokenizer))
    assert {text: found.encode(text).ids for text in texts} == expected
    assert len(texts) > 100


@pytest.mark.parametrize("names", [(one.name, two.name) for one in CUTTINGS for two in CUTTINGS if one.name < two.name])
def test_no_two_names_give_the_same_ids(names: tuple[str, str], crossed: dict[str, list[list[int]]]) -> None:
    assert crossed[names[0]] != crossed[names[1]]


@pytest.fixture(scope="module")
def crossed() -> dict[str, list[list[int]]]:
    """Give the ids of all texts by every name: were two the same, the texts would not show which was used."""
    made = {cutting.name: Tokenizer.from_str(json.dumps(crossing_bytes(cutting))) for cutting in CUTTINGS}
    return {name: [found.encode(text).ids for text in ALL] for name, found in made.items()}


@pytest.mark.parametrize("adds_space", [False, True])
def test_pieces_that_tokenizers_trained_are_joined_by_llama_cpp_in_the_same_order(adds_space: bool, tmp_path: Path) -> None:
    tokenizer = crossing_pieces(adds_space)

    expected = {text: Tokenizer.from_str(json.dumps(tokenizer)).encode(text).ids for text in ALL}

    assert peer_ids(of_tokenizer(tokenizer, tmp_path), ALL) == expected


@pytest.mark.parametrize("adds_space", [False, True])
def test_pieces_from_a_gguf_file_are_joined_in_the_same_order(adds_space: bool, tmp_path: Path) -> None:
    source = of_tokenizer(crossing_pieces(adds_space), tmp_path)
    with qconvert.open(source) as model:
        write(to_hf(model.metadata), tmp_path / "folder")

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "folder")

    assert {text: tokenizer(text)["input_ids"] for text in ALL} == peer_ids(source, ALL)


def crossing_bytes(cutting: Cutting) -> dict[str, Any]:
    """Make a tokenizer of bytes whose merges were learnt from texts that nothing had cut."""
    learnt = Tokenizer(models.BPE())
    learnt.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, special_tokens=special, show_progress=False)
    learnt.train_from_iterator(CORPUS, trainer)
    learnt.decoder = decoders.ByteLevel()
    made: dict[str, Any] = json.loads(learnt.to_str())
    made |= write_cutting(cutting)
    made["model"]["ignore_merges"] = bool(cutting.whole_words)
    made["model"]["vocab"][WORD] = len(made["model"]["vocab"])
    return made


def crossing_pieces(adds_space: bool) -> dict[str, Any]:
    """Make a tokenizer of pieces with bytes to fall back on, whose merges were learnt from texts that nothing had cut."""
    steps = [normalizers.Prepend("▁")] if adds_space else []
    learnt = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    learnt.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, limit_alphabet=120, show_progress=False)
    learnt.train_from_iterator(CORPUS, trainer)
    made: dict[str, Any] = json.loads(learnt.to_str())
    made["added_tokens"] = made["added_tokens"][:3]
    whole = complete(made["model"]["vocab"], [tuple(pair) for pair in made["model"]["merges"]], len(special))
    made["model"]["merges"] = whole
    return made


def complete(vocab: dict[str, int], merges: list[tuple[str, ...]], n_special: int) -> list[tuple[str, str]]:
    """List every pair whose whole is a piece, in the order in which the wholes were learnt: what pieces with scores do."""
    learnt = list(dict.fromkeys(left + right for left, right in merges))
    pieces = {token for token, at in vocab.items() if at >= n_special}
    halves = ((whole, cut) for whole in learnt for cut in range(len(whole) - 1, 0, -1))
    return [(whole[:cut], whole[cut:]) for whole, cut in halves if whole[:cut] in pieces and whole[cut:] in pieces]


def of_tokenizer(tokenizer: dict[str, Any], folder: Path) -> Path:
    """Write a model of one layer, with random weights, that has a tokenizer.json's tokens."""
    n_vocab = 1 + max(*tokenizer["model"]["vocab"].values(), *(token["id"] for token in tokenizer["added_tokens"]))
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    config = {"bos_token": "<s>", "add_bos_token": False} if tokenizer["model"]["byte_fallback"] else {}
    files = {"tokenizer.json": tokenizer, "tokenizer_config.json": config}
    assets = {name: partial(bytes, json.dumps(content).encode()) for name, content in files.items()}
    for pair in to_gguf(assets, {}, n_vocab):
        value = pair.value.values() if isinstance(pair.value, GGUFArray) else pair.value
        kind, of = gguf.GGUFValueType(pair.value_type), pair.element_type
        writer.add_key_value(pair.key, value, kind, None if of is None else gguf.GGUFValueType(of))
    writer.add_context_length(WIDTH)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(WIDTH)
    writer.add_block_count(1)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    matrices = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (n_vocab, WIDTH), "output_norm.weight": (WIDTH,)}
    shapes |= {f"blk.0.{name}.weight": (WIDTH, WIDTH) for name in matrices}
    shapes |= {f"blk.0.{name}.weight": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(name, np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def kept(said: Mapping[str, Any]) -> dict[str, Any]:
    """Give what transformers keeps of key-values: no scores, of which merges say the order, and nothing that is not so."""
    return {
        key: bytes(value.raw) if isinstance(value, GGUFArray) else value
        for key, value in said.items()
        if key != "tokenizer.ggml.scores" and value is not False
    }


def write(files: Any, folder: Path) -> None:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
