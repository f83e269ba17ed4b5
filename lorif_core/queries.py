"""Queries on their way to the index: gradients of the measure, made ready, a bounded number at once.

Axes: Q queries, B of them a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorif_core.capture import Loss, frozen
from lorif_core.contraction import dense
from lorif_core.gradients import GradientPlan
from lorif_core.inverse import LayerInverse
from lorif_core.objectives import Batch
from lorif_core.query_cache import QueryCache, together
from lorif_core.scoring import Queries, prepared


def query_gradients(
    plan: GradientPlan, model: nn.Module, measure: Loss, loader: Iterable[Batch]
) -> Generator[dict[str, Tensor]]:
    """Projected gradients, whole: per layer [B, d1, d2] float32, batch by batch; the model is frozen until it is closed.

    Raises:
        ValueError: a gradient is not finite.
    """
    with frozen(model), plan.open(model) as gradients:
        for batch in loader:
            _, found = gradients(measure, batch)
            whole = {name: dense(gradient) for name, gradient in found.items()}
            bad = [name for name, gradient in whole.items() if not bool(torch.isfinite(gradient).all())]
            if bad:
                raise ValueError(
                    f"a query's gradient is not finite in layers {bad[:5]}: check the queries and the model's weights"
                )
            yield whole


def ready_queries(
    loader: Iterable[Batch],
    gradients: Callable[[Sequence[Batch]], Iterable[dict[str, Tensor]]],
    inverses: dict[str, LayerInverse],
    cache: QueryCache | None,
    examples: int,
    most: int,
    device: torch.device,
) -> Generator[Queries]:
    """Queries ready to be compared with the index, at most `most` at once, from the cache where they are in it.

    Args:
        loader: batches of queries.
        gradients: `query_gradients` of some batches.
        inverses: of the index.
        cache: what was made ready before; None = nothing is kept.
        examples: N.
        most: how many queries are held.
        device: where they go.
    """
    for batches in together(loader, most):
        key = cache.key(batches) if cache else ""
        kept = cache.read(key, device) if cache else None
        if kept is None:
            queries = prepared(_join(list(gradients(batches))), inverses, examples)
            if cache and queries.preconditioned:
                cache.write(key, queries.gradients)
        else:
            queries = Queries(kept, preconditioned=True)
        for start in range(0, len(queries), most):
            part = {name: gradient[start : start + most] for name, gradient in queries.gradients.items()}
            yield replace(queries, gradients=part)


def _join(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
