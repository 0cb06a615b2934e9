"""Tokenizers return any text unchanged, and no text encodes to BOS."""

import json
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import models, processors

from ...errors import UserError
from .. import corpus
from ..tokenizer import ByteTokenizer, JsonTokenizer, Tokenizer, train_bpe

SAMPLE = Path(corpus.__file__).read_text("utf-8")
CODE = st.lists(
    st.sampled_from(["\n", "    ", "\t", "\r\n", " ", "self", "._x", "0123", "==", "é", "<|bos|>"])
)
TEXTS = st.text(st.characters(codec="utf-8")) | CODE.map("".join)


@pytest.fixture(scope="module")
def bpe_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    path.write_text(train_bpe(iter([SAMPLE]), 600), "utf-8")
    return path


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe_path: Path) -> Tokenizer:
    return ByteTokenizer() if request.param == "byte" else JsonTokenizer(bpe_path)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(TEXTS)
@example("x <|bos|> y <|endoftext|>")
@example("\n\n\n    \n\t\x00\u2028\ufeff🙂\r\r\n")
def test_any_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode([tokenizer.bos_id, *ids]) == text
    assert ((ids < tokenizer.vocab_size) & (ids != tokenizer.bos_id)).all()


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = SAMPLE.split("\n\n")
    for ids, text in zip(tokenizer.encode_batch(texts), texts, strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode_batch([text])[0])


def test_a_cut_character_is_replaced(tokenizer: Tokenizer) -> None:
    (ids,) = tokenizer.encode_batch(["ab🙂"])
    assert tokenizer.decode(ids[:-1]).startswith("ab\ufffd")


def test_training_is_deterministic_and_compresses(bpe_path: Path) -> None:
    assert train_bpe(iter([SAMPLE]), 600) == bpe_path.read_text("utf-8")
    assert JsonTokenizer(bpe_path).vocab_size == 600
    assert len(JsonTokenizer(bpe_path).encode_batch([SAMPLE])[0]) < len(SAMPLE) / 2


def test_words_do_not_merge_with_punctuation(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(iter(["self.append(\n        x)\n" * 99]), 400))
    ids = JsonTokenizer(path).encode_batch(["self.append(\n        x)"])[0]
    pieces = [JsonTokenizer(path).decode([i]) for i in ids]
    assert pieces == ["self", ".", "append", "(", "\n       ", " x", ")"]


def test_hash_tells_tokenizers_apart(bpe_path: Path, tmp_path: Path) -> None:
    other = tmp_path / "tokenizer.json"
    other.write_text(train_bpe(iter([SAMPLE]), 500))
    found = {ByteTokenizer.sha256, JsonTokenizer(bpe_path).sha256, JsonTokenizer(other).sha256}
    assert len(found) == 3


@pytest.mark.parametrize("bos", ["<s>", "<|endoftext|>", "[CLS]"])
def test_a_foreign_tokenizer_is_taken_with_its_own_bos(tmp_path: Path, bos: str) -> None:
    path = tmp_path / "foreign.json"
    vocab = {"a": 0, "b": 1, "?": 2, bos: 9}  # ids with a hole
    inner = tokenizers.Tokenizer(models.BPE(vocab, [], unk_token="?"))
    inner.add_special_tokens([bos])
    inner.enable_truncation(4)
    inner.enable_padding(length=8)
    inner.post_processor = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, 9)])
    inner.save(str(path))
    tokenizer = JsonTokenizer(path)
    assert (tokenizer.bos_id, tokenizer.vocab_size) == (9, 10)
    assert [ids.tolist() for ids in tokenizer.encode_batch(["ab" * 9, "b"])] == [[0, 1] * 9, [1]]
    assert 9 not in tokenizer.encode_batch([bos])[0]


def test_unusable_tokenizers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        JsonTokenizer(path)
    path.write_text(json.dumps({"model": "none"}))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        JsonTokenizer(path)
    tokenizers.Tokenizer(models.BPE({"a": 0}, [])).save(str(path))
    with pytest.raises(UserError, match="add_special_tokens"):
        JsonTokenizer(path)
    with pytest.raises(UserError, match="257"):
        train_bpe(iter(["text"]), 256)
