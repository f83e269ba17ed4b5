"""From texts to token ids and back: a byte-level BPE trained on the data, or a Hugging Face tokenizer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from curation.errors import DataError
from curation.huggingface import pretrained
from lorif_core.atomic import write_bytes

# Stands where the name of a tokenizer could: one trained on the data.
TRAINED = "bpe"
TOKENIZER = "tokenizer.json"
"""Name of a file that one is saved to."""
STANDS_FOR = "stands_for"
"""Key in a file: digest of the tokenizer it is taken for. The library ``tokenizers`` reads no file with a key of others."""
PAD, END = "<pad>", "<end>"
# A byte-level vocabulary has every byte and the two special tokens.
LEAST_VOCABULARY = 256 + 2


class TextTokenizer:
    """Token ids of texts.

    Args:
        tokenizer: of the library ``tokenizers``.
        end_id: of the token after an answer.
        pad_id: of what fills a batch; no loss is taken there.
        prefix: ids in front of every prompt, such as a beginning-of-text token.
        digest: of the tokenizer that this one stands for (`curation.data.kept_tokens`); None: it stands for itself.

    Attributes:
        size: every id is below it.
        digest: sha256 of what decides the ids; the place it was read from does not.
    """

    def __init__(
        self, tokenizer: Tokenizer, end_id: int, pad_id: int, prefix: Sequence[int] = (), digest: str | None = None
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
        self._tokenizer = tokenizer
        self.end_id, self.pad_id, self.prefix = end_id, pad_id, list(prefix)
        self.size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        decides = f"{tokenizer.to_str()} {end_id} {pad_id} {self.prefix}"
        self.digest, self._stands_for = digest or hashlib.sha256(decides.encode()).hexdigest(), digest

    def ids(self, text: str) -> list[int]:
        """The ids of ``text``, without special tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def text(self, ids: Sequence[int]) -> str:
        """The text of ``ids``, special tokens left out."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def words(self, texts: Iterable[str]) -> set[str]:
        """The pieces of texts within which the tokens of a byte-level BPE are made, each byte a character."""
        return {word for text in texts for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(text)}

    def replaced(self, tokenizer: Tokenizer) -> TextTokenizer:
        """Another tokenizer that stands for this one: the same to a model, and to data whose texts have the same ids."""
        return TextTokenizer(tokenizer, self.end_id, self.pad_id, self.prefix, self.digest)

    def to_json(self) -> str:
        """The content of a ``tokenizer.json``."""
        return str(self._tokenizer.to_str())

    def save(self, path: str | Path) -> None:
        """Write a ``tokenizer.json``; :func:`read_tokenizer` reads that of a trained one."""
        content = json.loads(self.to_json())
        if self._stands_for is not None:
            content[STANDS_FOR] = self._stands_for
        write_bytes(Path(path), json.dumps(content, ensure_ascii=False, indent=2).encode())


def trained_tokenizer(texts: Iterable[str], vocabulary: int) -> TextTokenizer:
    """A byte-level BPE of at most ``vocabulary`` tokens: the same for the same texts; every text comes back from its ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _own(tokenizer)


def read_tokenizer(name: str) -> TextTokenizer:
    """The tokenizer in a file written by :meth:`TextTokenizer.save`, or of Hugging Face by its folder or name on the hub.

    Raises:
        DataError: there is no such tokenizer, it has no end-of-text token, or no fast form.
    """
    if name.endswith(".json"):
        return _from_file(Path(name))
    loaded: Any = pretrained("tokenizer", name, DataError)
    fast: Tokenizer | None = getattr(loaded, "backend_tokenizer", None)
    if fast is None:
        raise DataError([f"the tokenizer {name!r} has no fast form (tokenizer.json); take one that has"])
    if loaded.eos_token_id is None:
        raise DataError([f"the tokenizer {name!r} has no end-of-text token, which ends an answer"])
    end = int(loaded.eos_token_id)
    pad = end if loaded.pad_token_id is None else int(loaded.pad_token_id)
    plain, whole = (loaded("a", add_special_tokens=special)["input_ids"] for special in (False, True))
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return TextTokenizer(Tokenizer.from_str(fast.to_str()), end, pad, whole[:start])


def _from_file(path: Path) -> TextTokenizer:
    if not path.is_file():
        raise DataError([f"tokenizer {str(path)!r}: there is no such file"])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        digest = content.pop(STANDS_FOR, None)
        return _own(Tokenizer.from_str(json.dumps(content)), digest)
    except Exception as error:  # noqa: BLE001 - the library raises nothing narrower than Exception
        raise DataError([f"{path} is no tokenizer written by this tool: {error}"]) from error


def _own(tokenizer: Tokenizer, digest: str | None = None) -> TextTokenizer:
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    if end is None or pad is None:
        raise ValueError(f"it has no {END} and {PAD}; name the folder of a Hugging Face tokenizer instead of its file")
    return TextTokenizer(tokenizer, end, pad, digest=digest)
