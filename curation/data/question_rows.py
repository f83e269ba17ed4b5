"""Questions and answers as token ids: the template, one row a pair, and batches of them.

Axes: B rows, T tokens of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from curation.data.text_tokens import TextTokenizer
from lorif_core.objectives import IGNORED

QUESTION, ANSWER = "{question}", "{answer}"
Row = dict[str, Tensor]
"""``input_ids``, ``attention_mask`` and ``labels``, int64 [T] each."""


@dataclass(frozen=True)
class Template:
    """Where question and answer stand in the text of a row.

    Attributes:
        text: holds ``{question}`` and ends with ``{answer}``.
    """

    text: str = "Question: {question}\nAnswer: {answer}"

    def problems(self) -> list[str]:
        """What is wrong with it: nothing, or one sentence."""
        text = self.text
        if isinstance(text, str) and text.count(QUESTION) == text.count(ANSWER) == 1 and text.endswith(ANSWER):
            return []
        return [f"template must hold {QUESTION} once and end with {ANSWER}, got {text!r}"]

    def prompt(self, question: str) -> str:
        """What stands before the answer, without the spaces in front of it: most tokenizers join them to its first word."""
        return self._before.rstrip(" ").replace(QUESTION, question)

    def completion(self, answer: str) -> str:
        """The answer, with those spaces."""
        return self._before[len(self._before.rstrip(" ")) :] + answer

    @property
    def _before(self) -> str:
        return self.text.removesuffix(ANSWER)


class QuestionRows(Dataset[Row]):
    """Rows whose loss is on the answer and its end token only.

    Args:
        tokens: ids of each row, int64 [T], prompt first.
        prompts: how many of them are the prompt, int64 [rows].
    """

    def __init__(self, tokens: Sequence[np.ndarray], prompts: np.ndarray) -> None:
        if len(tokens) != len(prompts):
            raise ValueError(f"QuestionRows: {len(tokens)} rows and {len(prompts)} prompts; expected as many")
        self.tokens, self.prompts = list(tokens), np.asarray(prompts, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> Row:
        ids = torch.from_numpy(self.tokens[row])
        labels = ids.clone()
        labels[: self.prompts[row]] = IGNORED
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def take(self, rows: np.ndarray) -> QuestionRows:
        """The rows at positions ``rows`` [M], in that order."""
        return QuestionRows([self.tokens[row] for row in rows.tolist()], self.prompts[rows])

    def digest(self) -> str:
        """Sha256 (64 hex digits) of the rows and their order."""
        digest = hashlib.sha256(self.prompts.astype("<i8").tobytes())
        for ids in self.tokens:
            digest.update(b"%d " % len(ids))
            digest.update(ids.astype("<i8").tobytes())
        return digest.hexdigest()


def answer_tokens(tokenizer: TextTokenizer, template: Template, question: str, answer: str) -> tuple[np.ndarray, int]:
    """Ids of a whole row, int64 [T], and how many of them are the prompt."""
    prompt = prompt_tokens(tokenizer, template, question)
    ids = [*prompt, *tokenizer.ids(template.completion(answer)), tokenizer.end_id]
    return np.array(ids, dtype=np.int64), len(prompt)


def prompt_tokens(tokenizer: TextTokenizer, template: Template, question: str) -> list[int]:
    """Ids of what stands before an answer."""
    return [*tokenizer.prefix, *tokenizer.ids(template.prompt(question))]


def padded(rows: Sequence[Mapping[str, Tensor]], pad_id: int) -> dict[str, Tensor]:
    """Rows as one batch, int64 [B, T] each, padded on the right to the longest: no attention and no loss there."""
    fills = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    return {
        name: torch.nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
        for name, fill in fills.items()
    }
