"""A share of the budget for each value of a column (source, class, language), by score within it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.pool import Pool
from curation.selection.strategies.base import Need, Selection, Strategy, chosen

NOTHING = "(nothing)"
"""What rows without a value are counted as."""


@dataclass(frozen=True)
class Quotas(Strategy):
    """The highest scores of each value, as many as its share.

    Attributes:
        column: of the pool.
        shares: of the budget by value (as text), adding up to one; or `pool`, as the pool has them, or `equal`.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"columns"})

    column: str
    shares: Literal["pool", "equal"] | Mapping[str, float] = "pool"

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: shares are no shares.
        """
        if isinstance(self.shares, str):
            if self.shares not in ("pool", "equal"):
                raise ValueError(f"shares: expected pool, equal or a share for each value, got {self.shares!r}")
        elif not self.shares or min(self.shares.values()) < 0 or abs(sum(self.shares.values()) - 1) > 1e-6:
            raise ValueError(f"shares: expected shares of at least 0 that add up to 1, got {dict(self.shares)}")

    @property
    def column_names(self) -> tuple[str, ...]:
        """See `Strategy`."""
        return (self.column,)

    def shortfalls(self, pool: Pool, budget: Budget) -> list[str]:
        """See `Strategy`: a value has less than its share, or no rows at all, or its share is below its shortest row."""
        values, rows = self._values(pool), pool.rows()
        there = np.unique(values[rows]).tolist()
        if not isinstance(self.shares, str) and (unknown := sorted(set(self.shares) - set(there))):
            return [
                f"column {self.column!r}: no row is left with {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, there))}"
            ]
        unit = "rows" if budget.rows is not None else "tokens"
        problems = []
        for value, amount in self._amounts(values[rows], budget).items():
            lengths = pool.lengths[rows[values[rows] == value]]
            have = len(lengths) if budget.rows is not None else int(lengths.sum())
            if amount > have:
                problems.append(
                    f"column {self.column!r}: {value!r} is to have {amount:,} {unit}, but {have:,} are left to choose from: lower "
                    "the budget or its share"
                )
            elif budget.tokens is not None and 0 < amount < lengths.min():
                problems.append(
                    f"column {self.column!r}: {value!r} is to have {amount:,} tokens, its shortest row {lengths.min():,}: raise "
                    "the budget or its share"
                )
        return problems

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`; rows of values without a share are not chosen."""
        values, ranked, parts = self._values(pool), pool.ranked(), []
        for value, amount in self._amounts(values[pool.allowed], budget).items():
            if amount:
                part = Budget(rows=amount) if budget.rows is not None else Budget(tokens=amount)
                parts.append(part.take(ranked[values[ranked] == value], pool.lengths))
        rows = np.sort(np.concatenate(parts))
        rows = rows[np.argsort(-pool.scores[rows], kind="stable")]
        return chosen(
            pool, rows, [f"score {pool.scores[row]:.4g}, within the share of {values[row]!r}" for row in rows]
        )

    def _values(self, pool: Pool) -> np.ndarray:
        """Of the pool's rows in the column, as text, N.

        Raises:
            DataError: the pool has no columns.
        """
        if pool.columns is None:
            raise DataError(self.problems(pool))
        return np.array([NOTHING if x is None else str(x) for x in pool.columns[self.column].to_list()])

    def _amounts(self, values: np.ndarray, budget: Budget) -> dict[str, int]:
        """Rows or tokens of each value: rounded so that they add up to the budget, the largest remainders first."""
        names, counts = np.unique(values, return_counts=True)
        if self.shares == "pool":
            shares = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
        elif self.shares == "equal":
            shares = dict.fromkeys(names.tolist(), 1 / len(names))
        else:
            shares = {name: float(x) for name, x in self.shares.items()}
        whole = budget.rows if budget.rows is not None else budget.tokens or 0
        exact = {name: share * whole for name, share in shares.items()}
        found = {name: int(x + 1e-9) for name, x in exact.items()}
        by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
        for name in by_remainder[: whole - sum(found.values())]:
            found[name] += 1
        return found
