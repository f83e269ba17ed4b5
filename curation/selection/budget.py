"""How much may be chosen: rows, tokens, or a share of the pool's rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from curation.errors import DataError
from curation.selection.pool import Pool

PASSED_OVER = 100
"""Rows one after the other that are too long for what is left of the tokens: then it is used up. An order may be costly."""


@dataclass(frozen=True)
class Budget:
    """One of three.

    Attributes:
        rows: how many.
        tokens: how many in all rows together.
        share: of all rows of the pool, those excluded too, in (0, 1]; rounded down, at least one row.
    """

    rows: int | None = None
    tokens: int | None = None
    share: float | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: none or several are given, or one is out of range.
        """
        given = {name: x for name, x in vars(self).items() if x is not None}
        if len(given) != 1:
            raise ValueError(f"budget: expected one of rows, tokens, share; got {', '.join(given) or 'none'}")
        name, value = next(iter(given.items()))
        if name == "share" and not 0 < value <= 1:
            raise ValueError(f"budget.share: expected more than 0 and at most 1, got {value}")
        if name != "share" and value < 1:
            raise ValueError(f"budget.{name}: expected at least 1, got {value}")

    def of(self, pool: Pool) -> Budget:
        """The same in rows or tokens of a pool.

        Raises:
            DataError: the rows that are allowed have less than this.
        """
        allowed = pool.rows()
        rows = max(1, int(self.share * len(pool))) if self.share is not None else self.rows
        left = f"{len(allowed):,} of {len(pool):,} rows are left to choose from"
        if rows is not None and rows > len(allowed):
            asked = f" ({self.share:.1%} of {len(pool):,})" if self.share is not None else ""
            raise DataError([f"the budget of {rows:,} rows{asked} is larger than the pool: {left}; lower it"])
        lengths = pool.lengths[allowed]
        if self.tokens is not None and self.tokens > lengths.sum():
            raise DataError(
                [
                    f"the budget of {self.tokens:,} tokens is larger than the pool: {left}, with {lengths.sum():,}; lower it"
                ]
            )
        if self.tokens is not None and self.tokens < lengths.min():
            raise DataError(
                [f"the budget of {self.tokens:,} tokens is below the shortest row's {lengths.min():,}; raise it"]
            )
        return Budget(rows=rows, tokens=self.tokens)

    def left(self, rows: np.ndarray, lengths: np.ndarray) -> int:
        """Rows or tokens that are left when `rows` are taken."""
        return self.rows - len(rows) if self.rows is not None else (self.tokens or 0) - int(lengths[rows].sum())

    def most(self, pool: Pool) -> int:
        """How many rows can fit at most."""
        budget = self.of(pool)
        if budget.rows is not None:
            return budget.rows
        return int((np.sort(pool.lengths[pool.rows()]).cumsum() <= budget.tokens).sum())

    def take(self, order: Iterable[int], lengths: np.ndarray) -> np.ndarray:
        """The rows of `order` that fit, int64; a row too long for what is left of the tokens is passed over.

        Args:
            order: positions in the pool, each once; read no further than needed.
            lengths: tokens of the pool's rows, int64 [N].
        """
        if self.share is not None:
            raise ValueError("a share has no rows of its own: call Budget.of(pool) first")
        taken: list[int] = []
        left, passed, shortest = self.tokens or 0, 0, int(lengths.min())
        for row in order:
            if self.rows is not None:
                taken.append(int(row))
                if len(taken) == self.rows:
                    break
            elif lengths[row] > left:
                passed += 1
                if passed == PASSED_OVER:
                    break
            else:
                taken.append(int(row))
                left, passed = left - int(lengths[row]), 0
                if left < shortest:
                    break
        return np.array(taken, dtype=np.int64)
