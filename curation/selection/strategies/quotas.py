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

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`.

        Raises:
            DataError: a value has fewer rows than its share, or none at all; or the column has values without a share.
        """
        if pool.columns is None:
            raise DataError(self.problems(pool))
        values = np.array([NOTHING if x is None else str(x) for x in pool.columns[self.column].to_list()])
        amounts = self._amounts(values[pool.allowed], budget)
        ranked, problems, parts = pool.ranked(), [], []
        for value, amount in amounts.items():
            own = ranked[values[ranked] == value]
            there = len(own) if budget.rows is not None else int(pool.lengths[own].sum())
            if amount > there:
                unit = "rows" if budget.rows is not None else "tokens"
                problems.append(
                    f"column {self.column!r}: {value!r} is to have {amount:,} {unit}, but {there:,} are left to choose from: lower "
                    "the budget or its share"
                )
            elif amount:
                part = Budget(rows=amount) if budget.rows is not None else Budget(tokens=amount)
                parts.append(part.take(own, pool.lengths))
        if problems:
            raise DataError(problems)
        rows = np.sort(np.concatenate(parts))
        rows = rows[np.argsort(-pool.scores[rows], kind="stable")]
        return chosen(
            pool, rows, [f"score {pool.scores[row]:.4g}, within the share of {values[row]!r}" for row in rows]
        )

    def _amounts(self, values: np.ndarray, budget: Budget) -> dict[str, int]:
        """Rows or tokens of each value: rounded so that they add up to the budget, the largest remainders first."""
        names, counts = np.unique(values, return_counts=True)
        if self.shares == "pool":
            shares = dict(zip(names.tolist(), (counts / counts.sum()).tolist(), strict=True))
        elif self.shares == "equal":
            shares = dict.fromkeys(names.tolist(), 1 / len(names))
        else:
            shares = {name: float(x) for name, x in self.shares.items()}
            if unknown := sorted(set(shares) - set(names.tolist())):
                raise DataError(
                    [
                        f"column {self.column!r}: no row is left with {', '.join(map(repr, unknown))}; it has "
                        f"{', '.join(map(repr, names.tolist()))}"
                    ]
                )
        whole = budget.rows if budget.rows is not None else budget.tokens or 0
        exact = {name: share * whole for name, share in shares.items()}
        found = {name: int(x + 1e-9) for name, x in exact.items()}
        by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
        for name in by_remainder[: whole - sum(found.values())]:
            found[name] += 1
        return found
