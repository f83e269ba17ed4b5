"""Rows drawn by how crowded their place is: pseudo density (papers/seeds.md S3, 2407.08659).

Axes: N rows that are allowed, K neighbours.

    v_i = mean distance of row i to its K nearest neighbours,   density_i = N (1 / v_i) / sum_j 1 / v_j   (mean one)

A row below the threshold is drawn with weight one, a denser one with weight w: w > 1 for fidelity (typical rows), w < 1 for
diversity (rare ones).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from curation.errors import DataError
from curation.selection.budget import Budget
from curation.selection.pool import Pool
from curation.selection.sampling import weighted_order
from curation.selection.similarity import neighbour_distance
from curation.selection.strategies.base import Need, Selection, Strategy, chosen

LEAST_DISTANCE = 1e-3
"""Of the median distance: rows that are the same are taken to be so far apart, or all the density would be theirs."""


@dataclass(frozen=True)
class Density(Strategy):
    """Draws by density, from the rows with the highest scores.

    Attributes:
        towards: `diversity`, or `fidelity`.
        neighbours: K.
        threshold: quantile of the density above which a row is dense, in (0, 1).
        factor: how much more seldom (diversity) or often (fidelity) a dense row is drawn; > 1.
        among: share of the rows to draw from, those with the highest scores, in (0, 1].
        reference: rows the neighbours are looked for among, drawn by the seed where there are more.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"vectors"})

    towards: Literal["diversity", "fidelity"] = "diversity"
    neighbours: int = 20
    threshold: float = 0.5
    factor: float = 10.0
    among: float = 1.0
    reference: int = 20_000

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            ValueError: any is out of range; lists all that are.
        """
        problems = []
        if self.towards not in ("diversity", "fidelity"):
            problems.append(f"towards: expected diversity or fidelity, got {self.towards!r}")
        if self.neighbours < 1:
            problems.append(f"neighbours: expected at least 1, got {self.neighbours}")
        if not 0 < self.threshold < 1:
            problems.append(f"threshold: expected a quantile between 0 and 1, got {self.threshold}")
        if not self.factor > 1:
            problems.append(f"factor: expected more than 1, got {self.factor}")
        if not 0 < self.among <= 1:
            problems.append(f"among: expected more than 0 and at most 1, got {self.among}")
        if self.reference < 2:
            problems.append(f"reference: expected at least 2 rows, got {self.reference}")
        if problems:
            raise ValueError("; ".join(problems))

    def choose(self, pool: Pool, budget: Budget, seed: int) -> Selection:
        """See `Strategy`.

        Raises:
            DataError: fewer rows are to be drawn from than the budget holds.
        """
        if pool.vectors is None:
            raise DataError(self.problems(pool))
        ranked = pool.ranked()
        rows = np.sort(ranked[: max(1, int(self.among * len(ranked)))])
        if (lacking := budget.left(rows, pool.lengths)) > 0:
            what = "rows" if budget.rows is not None else "tokens"
            raise DataError(
                [
                    f"among={self.among} leaves {len(rows):,} rows to draw from, {lacking:,} {what} short of the budget: raise it"
                ]
            )
        generator = np.random.default_rng(seed)
        density = pseudo_density(pool.vectors[rows], self.neighbours, self.reference, generator)
        dense = density > np.quantile(density, self.threshold)
        weights = np.where(dense, self.factor if self.towards == "fidelity" else 1 / self.factor, 1.0)
        taken = budget.take(rows[weighted_order(weights, generator)], pool.lengths)
        of = dict(zip(rows.tolist(), density.tolist(), strict=True))
        reasons = [f"drawn for {self.towards}, density {of[row]:.3g} (mean 1)" for row in taken.tolist()]
        return chosen(pool, taken, reasons)


def pseudo_density(vectors: np.ndarray, k: int, reference: int, generator: np.random.Generator) -> np.ndarray:
    """The density of each vector [N, D], float64 [N], mean one.

    Args:
        vectors: embeddings.
        k: neighbours.
        reference: they are looked for among so many rows, drawn where there are more.
        generator: draws them.
    """
    others = None
    if len(vectors) > reference:
        others = np.sort(generator.choice(len(vectors), reference, replace=False))
    distance = neighbour_distance(vectors, k, others)
    middle = float(np.median(distance))
    inverse = 1 / np.maximum(distance, LEAST_DISTANCE * middle if middle > 0 else 1.0)
    found: np.ndarray = inverse * len(inverse) / inverse.sum()
    return found
