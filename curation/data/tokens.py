"""Texts as rows of token ids of one length: hashed n-grams, or the ids of a Hugging Face tokenizer.

Axes: N texts, T tokens a text.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from curation.errors import DataError
from curation.huggingface import pretrained

# A word keeps its apostrophe ("isn't"); a run of punctuation is a word too: smileys and !!! say a lot about a text.
WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]+")
CHARACTERS = (3, 4, 5)


def hashed_ids(texts: Sequence[str], max_tokens: int, buckets: int) -> np.ndarray:
    """Ids of the n-grams of every text, int64 [N, max_tokens]: 0 is padding, the others are 1 to ``buckets - 1``.

    In this order: lower-case words, pairs of neighbouring words, then the 3 to 5 character n-grams of each word with
    ``<`` and ``>`` around it; what does not fit is cut off, so a long text loses the last kind first. An id is a CRC-32,
    the same in every process and on every machine. Two n-grams may share one.
    """
    ids = np.zeros((len(texts), max_tokens), dtype=np.int64)
    for row, text in zip(ids, texts, strict=True):
        words = WORD.findall(text.lower())
        grams = [_bucket(f"w {word}", buckets) for word in words]
        grams += [_bucket(f"p {first} {second}", buckets) for first, second in zip(words, words[1:], strict=False)]
        for word in words:
            if len(grams) >= max_tokens:
                break
            grams += _character_grams(word, buckets)
        grams = grams[:max_tokens]
        row[: len(grams)] = grams
    return ids


def trimmed(ids: np.ndarray, pad_id: int) -> np.ndarray:
    """``ids`` [N, T] without the columns after the longest text, which hold nothing but padding."""
    used = np.flatnonzero((ids != pad_id).any(axis=0))
    return np.ascontiguousarray(ids[:, : used[-1] + 1]) if len(used) else ids


def _bucket(gram: str, buckets: int) -> int:
    return 1 + zlib.crc32(gram.encode()) % (buckets - 1)


@lru_cache(maxsize=1 << 16)
def _character_grams(word: str, buckets: int) -> tuple[int, ...]:
    marked = f"<{word}>"
    return tuple(
        _bucket(f"c {marked[start : start + size]}", buckets)
        for size in CHARACTERS
        for start in range(len(marked) - size + 1)
    )


def encoder_ids(texts: Sequence[str], max_tokens: int, tokenizer: str) -> tuple[np.ndarray, int, int]:
    """Ids of a Hugging Face tokenizer, cut and padded to ``max_tokens``.

    Args:
        texts: N texts.
        max_tokens: T.
        tokenizer: its name on the hub, or its folder.

    Returns:
        The ids, int64 [N, T]; how many different ids the tokenizer has; its padding id.

    Raises:
        DataError: transformers does not import, there is no such tokenizer, it cannot make ``max_tokens`` ids, or it knows
            no word of the texts.
    """
    loaded = pretrained("tokenizer", tokenizer, DataError)
    problems = []
    if loaded.pad_token_id is None:
        problems.append(f"the tokenizer {tokenizer!r} has no padding token, which texts of one length need")
    if max_tokens > loaded.model_max_length:
        problems.append(
            f"max_tokens is {max_tokens}, the tokenizer {tokenizer!r} makes {loaded.model_max_length} at most"
        )
    if problems:
        raise DataError(problems)
    encoded = loaded(list(texts), padding="max_length", truncation=True, max_length=max_tokens)
    ids = np.asarray(encoded["input_ids"], dtype=np.int64)
    if np.isin(ids, loaded.all_special_ids).all():  # transformers makes up an empty one for an encoder saved without
        raise DataError(
            [f"the tokenizer {tokenizer!r} knows no word of these texts; is its vocabulary beside its config?"]
        )
    return ids, len(loaded), int(loaded.pad_token_id)
