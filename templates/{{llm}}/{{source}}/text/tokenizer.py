"""Text <-> token ids: bytes, a BPE trained on the corpus, or any `tokenizer.json`. Adds no BOS."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from ..errors import UserError

# Names of the token that begins a document, or separates two in some tokenizers.
BOS_NAMES = (
    *("<|bos|>", "<|begin_of_text|>", "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<bos>", "<s>"),
    *("[BOS]", "<|startoftext|>", "<|endoftext|>", "</s>", "<eos>", "[CLS]"),
)


class ByteTokenizer:
    """The 256 bytes of UTF-8, and BOS."""

    vocab_size = 257  # every id is smaller
    bos_id = 256
    sha256 = hashlib.sha256(b"the byte; BOS = 256").hexdigest()  # the same hash gives the same ids

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One array of ids for each text; none is BOS, even if the text contains its name."""
        return [np.frombuffer(text.encode(), np.uint8) for text in texts]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        """The text without BOS; a cut character becomes U+FFFD."""
        return bytes(i for i in ids if i != self.bos_id).decode(errors="replace")


class JsonTokenizer:
    """What a `tokenizer.json` says. Attributes and methods are those of ByteTokenizer."""

    def __init__(self, path: Path) -> None:
        try:
            json = path.read_bytes()
            self._inner = inner = tokenizers.Tokenizer.from_buffer(json)
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                got=f"tokenizer {str(path)!r}: {error}",
                expected="byte, bpe, or a tokenizer.json of the tokenizers library",
                do="correct --data.tokenizer, or save it again with tokenizers.Tokenizer.save",
            ) from error
        inner.encode_special_tokens = True  # a text that says "<|bos|>" begins no document
        inner.no_truncation()
        inner.no_padding()
        ids = [i for i in map(inner.token_to_id, BOS_NAMES) if i is not None]
        if not ids:
            special = [token.content for token in inner.get_added_tokens_decoder().values()]
            raise UserError(
                got=f"{path} with special tokens {', '.join(special) or '(none)'}",
                expected=f"a token to begin documents with: {', '.join(BOS_NAMES)}",
                do=f'add one: tokenizer.add_special_tokens(["{BOS_NAMES[0]}"]), and save it',
            )
        self.bos_id = ids[0]
        self.vocab_size = max(inner.get_vocab().values()) + 1  # ids may have holes
        self.sha256 = hashlib.sha256(json).hexdigest()

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        encodings = self._inner.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.uint32) for encoding in encodings]

    def decode(self, ids: Iterable[int | np.integer]) -> str:
        text = [int(i) for i in ids if i != self.bos_id]
        return self._inner.decode(text, skip_special_tokens=False)


type Tokenizer = ByteTokenizer | JsonTokenizer


def train_bpe(texts: Iterator[str], vocab_size: int) -> str:
    """The tokenizer.json of a byte-level BPE; the same texts give the same file."""
    if vocab_size < 257:
        raise UserError(
            got=f"vocab_size {vocab_size}",
            expected="at least 257: the bytes and BOS",
            do="raise --data.vocab-size, or use --data.tokenizer byte",
        )
    inner = tokenizers.Tokenizer(models.BPE())
    # GPT-2's pieces. On Python source a trigram model over them takes 1.681 bits per byte; where
    # line breaks and indents merge 1.688, punctuation and line breaks 1.697: fewer tokens, but each
    # is harder to predict.
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS_NAMES[0]],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return inner.to_str(pretty=True)
