"""From the payload columns of an example table to the inputs a model sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.data.columns import Columns, feature_inputs, text_problems
from curation.data.example_data import PayloadKind
from curation.data.images import MODES, array_images, file_images
from curation.data.tokens import encoder_ids, hashed_ids
from curation.errors import DataError
from curation.examples import contents_of, name_rows_where
from curation.huggingface import HASHED

# The first is for arrays in cells, the others are for files.
IMAGE_OPTIONS = ("image_shape", "image_size", "image_mode", "image_root")


@dataclass(frozen=True)
class PayloadReader:
    """Makes inputs; the options are those of ``TableData``."""

    max_tokens: int = 256
    buckets: int = 16384
    tokenizer: str = HASHED
    image_shape: Sequence[int] | None = None
    image_size: Sequence[int] | None = None
    image_mode: str | None = None
    image_root: str | Path | None = None

    def option_problems(self) -> list[str]:
        """What is wrong with the options."""
        problems = []
        if not _whole(self.max_tokens, 1):
            problems.append(f"max_tokens must be a whole number of at least 1, got {self.max_tokens!r}")
        if not _whole(self.buckets, 2):
            problems.append(f"buckets must be a whole number of at least 2, got {self.buckets!r}")
        for name, sizes, lengths in (
            ("image_shape", self.image_shape, (2, 3)),
            ("image_size", self.image_size, (2,)),
        ):
            if sizes is None:
                continue
            if isinstance(sizes, str) or not isinstance(sizes, Sequence) or len(sizes) not in lengths:
                problems.append(f"{name} must be a list of {' or '.join(map(str, lengths))} sizes, got {sizes!r}")
            elif not all(_whole(size, 1) for size in sizes):
                problems.append(f"{name} must hold whole numbers of at least 1, got {list(sizes)}")
        if self.image_mode not in (None, *MODES):
            problems.append(f"image_mode must be one of {', '.join(MODES)}; got {self.image_mode!r}")
        if not isinstance(self.tokenizer, str) or not self.tokenizer:
            problems.append(f"tokenizer must be {HASHED!r} or a Hugging Face tokenizer's name, got {self.tokenizer!r}")
        return problems

    def unused_options(self, columns: Columns) -> list[str]:
        """The options given that ``columns`` leave without a use, one sentence each."""
        unused = []
        if columns.text is None and self.tokenizer != HASHED:
            unused.append("tokenizer is for texts; name their column in text")
        if columns.image is None:
            unused += [f"{name} is for images; name their column in image" for name in self._given(*IMAGE_OPTIONS)]
        return unused

    def kind(self, columns: Columns) -> PayloadKind:
        """What a row is."""
        return "text" if columns.text is not None else "image" if columns.image is not None else "features"

    def read(
        self, examples: pl.DataFrame, columns: Columns, names: Sequence[object], file: Path
    ) -> tuple[np.ndarray, dict[str, Any], list[str]]:
        """Make the inputs of every row.

        Args:
            examples: an example table, made with ``columns``.
            columns: as resolved.
            names: what to call the rows in messages.
            file: what to call the table in messages, and where image paths start from without ``image_root``.

        Returns:
            The inputs [N, ...], what a model must know about them, and the problems; inputs are of no use with problems.
        """
        if columns.text is not None:
            return self._texts(examples["text"], names, f"{file}: column {columns.text!r}")
        if columns.image is not None:
            pixels, problems = self._images(examples["image"], names, f"{file}: column {columns.image!r}", file.parent)
            return pixels, {}, problems
        values, problems = feature_inputs(examples, columns.features or (), names, str(file))
        return values, {}, problems

    def _texts(
        self, texts: pl.Series, names: Sequence[object], where: str
    ) -> tuple[np.ndarray, dict[str, Any], list[str]]:
        nothing = np.zeros((0, self.max_tokens), dtype=np.int64)
        problems = text_problems(texts, names, where)
        if problems:
            return nothing, {}, problems
        try:
            if self.tokenizer == HASHED:
                ids, size, pad_id = hashed_ids(texts.to_list(), self.max_tokens, self.buckets), self.buckets, 0
            else:
                ids, size, pad_id = encoder_ids(texts.to_list(), self.max_tokens, self.tokenizer)
        except DataError as error:
            return nothing, {}, [f"{where}: {text}" for text in error.problems]
        blank = (ids == pad_id).all(axis=1)
        if blank.any():
            problems.append(f"{where}: a text without any token in {name_rows_where(names, blank)}")
        defaults = {
            "vocab_buckets": size,
            "pad_id": pad_id,
            "max_tokens": self.max_tokens,
            "tokenizer": self.tokenizer,
        }
        return ids, defaults, problems

    def _images(
        self, column: pl.Series, names: Sequence[object], where: str, folder: Path
    ) -> tuple[np.ndarray, list[str]]:
        in_files = column.dtype == pl.String
        kind, unused = ("cells with numbers", IMAGE_OPTIONS[:1]) if in_files else ("files", IMAGE_OPTIONS[1:])
        problems = [
            f"{where}: {name} is for {kind}, and the cells hold {contents_of(column.dtype)}"
            for name in self._given(*unused)
        ]
        if in_files:
            root = folder if self.image_root is None else Path(self.image_root)
            pixels, found = file_images(column, names, where, root, self.image_size, self.image_mode)
        else:
            pixels, found = array_images(column, names, where, self.image_shape)
        return pixels, problems + found

    def _given(self, *names: str) -> list[str]:
        return [name for name in names if getattr(self, name) is not None]


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
