"""How far scores are from those of a curvature fitted anew after rows were appended or purged, beside the drift that is reported.

A network on the digits; `updated`: mean Spearman correlation over 90 queries of the scores under the updated curvature with
those under one fitted anew from the same rows, `stale`: of those under the curvature from before the change.
"""

from __future__ import annotations

import logging
import tempfile

import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from lorif_core import Classification, LoRIF
from lorif_core.kept import drift
from lorif_core.scoring import all_scores
from tests.benchmarks.table import Row, show

RANKS = (16, 64, 256)
APPENDED = (50, 100, 200, 400, 600)
PURGED = (50, 100, 200, 300)


def trained() -> tuple[nn.Module, TensorDataset]:
    """A small network, and the digits it was trained on."""
    data = load_digits()
    x, y = torch.tensor(data.data / 16, dtype=torch.float32), torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimiser = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(8):
        for start in range(0, 1500, 32):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[start : start + 32]), y[start : start + 32]).backward()
            optimiser.step()
    return model, TensorDataset(x, y)


def agreement(one: Tensor, other: Tensor) -> float:
    """Mean Spearman correlation over the queries, both [Q, N]."""
    return float(sum(spearmanr(a, b).statistic for a, b in zip(one, other, strict=True)) / len(one))


def measured(model: nn.Module, data: TensorDataset, rank: int, first: int, appended: int, purged: int) -> Row:
    """One change of an index of `first` rows."""

    def rows(start: int, stop: int) -> DataLoader:
        return DataLoader(Subset(data, range(start, stop)), batch_size=64)

    queries = rows(1700, 1790)
    with tempfile.TemporaryDirectory() as folder:
        one = LoRIF(model, Classification(), curvature_rank=rank).fit(rows(0, first), folder, ids=list(range(first)))
        stale = one.curvature
        if appended:
            one.append(rows(first, first + appended), ids=list(range(first, first + appended)))
        else:
            one.purge(list(range(purged)))
        updated, share = one.score(queries), drift(one.store.manifest)
        whole = {
            name: torch.cat(parts)
            for name, parts in zip(stale, zip(*(x.values() for x in one.gradients(queries)), strict=True), strict=True)
        }
        before = {name: stale[name].precondition(x.flatten(1)).view_as(x) for name, x in whole.items()}
        old = all_scores(one.store, before, stale, one.device, lambda done: None)
        exact = one.refit().score(queries)
    what = f"r={rank}, {first} rows, {'+' if appended else '-'}{appended or purged}"
    return Row(what, {"drift": share, "updated": agreement(updated, exact), "stale": agreement(old, exact)})


def main(argv: list[str] | None = None) -> list[Row]:
    """Print the table."""
    torch.set_num_threads(1)
    logging.getLogger("lorif_core").setLevel(logging.ERROR)
    model, data = trained()
    cases = [(rank, 1000, count, 0) for rank in RANKS for count in APPENDED]
    cases += [(rank, 1600, 0, count) for rank in RANKS for count in PURGED]
    return show("curvature after appends and purges", [measured(model, data, *case) for case in cases])


if __name__ == "__main__":
    main()
