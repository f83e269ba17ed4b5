from __future__ import annotations

import subprocess
import sys

import numpy as np

from curation.data.tokens import hashed_ids, trimmed


def grams(text: str, max_tokens: int = 200, buckets: int = 1 << 20) -> set[int]:
    return set(hashed_ids([text], max_tokens, buckets)[0].tolist()) - {0}


def test_ids_are_padded_with_zero_at_the_end() -> None:
    ids = hashed_ids(["good", "a good film, a very good film"], 64, 100)
    assert ids.shape == (2, 64) and ids.dtype == np.int64
    assert ids.max() < 100 and (ids[1][:13] > 0).all()
    for row in ids:
        used = int((row > 0).sum())
        assert (row[:used] > 0).all() and (row[used:] == 0).all()


def test_what_no_text_reaches_is_trimmed() -> None:
    ids = hashed_ids(["good", "a good film"], 64, 100)
    short = trimmed(ids, 0)
    longest = int((ids[1] > 0).sum())
    assert short.tolist() == ids[:, :longest].tolist() and (short > 0).all(axis=1).any()
    assert trimmed(short, 0).shape == short.shape and trimmed(ids[:0], 0).shape == (0, 64)


def test_words_pairs_and_parts_of_words_count() -> None:
    # "<ab>": 2 three-grams, 1 four-gram, and itself as a word.
    assert len(grams("ab")) == 4
    assert grams("ab") < grams("ab cd") and len(grams("ab cd")) == 9
    assert grams("ab cd") != grams("cd ab")
    assert len(grams("unhappy") & grams("happy")) >= 3


def test_case_is_ignored_and_punctuation_is_not() -> None:
    assert grams("Good!") == grams("good!") != grams("good")
    assert grams(":)") and grams("\U0001f600")
    assert grams("don't") != grams("don t")


def test_a_long_text_keeps_its_words_first() -> None:
    text = " ".join(f"w{number}" for number in range(20))
    words = set(hashed_ids([text], 20, 1 << 20)[0].tolist())
    assert words == set(hashed_ids([text], 500, 1 << 20)[0, :20].tolist())
    assert 0 not in words


def test_two_buckets_still_work() -> None:
    assert hashed_ids(["some words"], 5, 2).tolist() == [[1, 1, 1, 1, 1]]


def test_ids_are_the_same_in_every_process() -> None:
    code = "from curation.data.tokens import hashed_ids; print(hashed_ids(['a good film'], 9, 999).tolist())"
    other = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "1"}
    )
    assert other.stdout == f"{hashed_ids(['a good film'], 9, 999).tolist()}\n"
