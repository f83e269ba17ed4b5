"""A byte-level BPE without the words that only removed records had in them.

What was learnt from texts has their frequent words as tokens, names too. A merge that no text which stays ever takes part in
can be left out, and its token be called otherwise, without changing the ids of those texts: a pair is merged by its rank among
the pairs that are there. Ids stay, so that the model needs no change; a removed word is spelt in smaller pieces from then on.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer

from curation.data.questions import Questions
from curation.data.text_tokens import TRAINED, TextTokenizer
from curation.errors import DataError

Pair = tuple[str, str]
NO_BPE = (
    "data.init_args.tokenizer: the words of removed records cannot be taken out of it: expected a byte-level BPE as this tool "
    "learns (bpe, or a file one was saved to), got something else; give such a one, or purge nothing"
)
SPENT = "<removed-{}>"
"""What stands for a token that no text needs any more; its number is its id."""


def learnt(name: str) -> bool:
    """Whether a tokenizer called so (``tokenizer`` of a data set) is one of ours, learnt from data, and no public one."""
    return name == TRAINED or name.endswith(".json")


def texts_of(data: Questions) -> Iterator[str]:
    """Every text of a data set that is ever made into tokens: questions and all their answers, of every split."""
    template, columns = data.contents.template, ("paraphrased_answers", "perturbed_answers")
    others = [name for name in columns if name in data.examples.columns]
    for question, answer, *more in data.examples.select("question", "answer", *others).iter_rows():
        yield template.prompt(question)
        yield from map(template.completion, (answer, *(one for answers in more for one in answers or ())))


def keeping(tokenizer: TextTokenizer, texts: Iterable[str]) -> TextTokenizer:
    """The tokenizer with no more words in it than ``texts`` need, which have the same ids by it and by the one given.

    Args:
        tokenizer: a byte-level BPE, as `trained_tokenizer` gives.
        texts: all that stays.

    Raises:
        DataError: it is no such BPE, or makes other ids without the rest of its words.
    """
    content = json.loads(tokenizer.to_json())
    if content["model"]["type"] != "BPE" or (content["pre_tokenizer"] or {}).get("type") != "ByteLevel":
        raise DataError([NO_BPE])
    vocabulary, merges = content["model"]["vocab"], [tuple(pair) for pair in content["model"]["merges"]]
    known = list(texts)
    used = _merges_of(tokenizer.words(known), {pair: rank for rank, pair in enumerate(merges)})
    needed = {left + right for left, right in used} | {token["content"] for token in content["added_tokens"]}
    content["model"]["merges"] = [pair for pair in merges if pair in used]
    content["model"]["vocab"] = {
        token if len(token) == 1 or token in needed else SPENT.format(number): number
        for token, number in vocabulary.items()
    }
    found = tokenizer.replaced(Tokenizer.from_str(json.dumps(content)))
    if len(content["model"]["vocab"]) < len(vocabulary) or any(
        found.ids(text) != tokenizer.ids(text) for text in known
    ):
        raise DataError([NO_BPE])
    return found


def _merges_of(words: Iterable[str], ranks: dict[Pair, int]) -> set[Pair]:
    """The merges by which some words are put together from single characters."""
    used: set[Pair] = set()
    for word in words:
        parts = list(word)
        while pairs := [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]:
            best = min(pairs, key=ranks.__getitem__)
            used.add(best)
            parts = _merged(parts, best)
    return used


def _merged(parts: list[str], pair: Pair) -> list[str]:
    """The parts with each neighbouring pair of these as one."""
    found: list[str] = []
    for part in parts:
        if found and (found[-1], part) == pair:
            found[-1] += part
        else:
            found.append(part)
    return found
