"""The index stage in shares: rows and layers split over workers, by the parts of `lorif_core.parallel`."""

from __future__ import annotations

from flows.stages.indexed import indexed
from flows.stages.steps import Share, Step
from lorif_core.index import Build
from lorif_core.parallel import build_part, join, make_head

INDEX = "index"
"""The index's folder in that of the stage."""


def _prepare(share: Share) -> None:
    """Make what all parts share: options, layers, projections. Their sample of rows is small: one process takes it."""
    make_head(_build(share), share.workers)


def _part(share: Share) -> None:
    """Index this worker's rows."""
    build_part(_build(share), share.worker, share.workers)


def _join(share: Share) -> None:
    build = _build(share)
    join(build.path, build.ids)


def _layers(share: Share) -> None:
    """Fit the curvature of this worker's layers."""
    attributor, _ = indexed(share.arguments, share.progress)
    attributor.fit_layers(share.folder / INDEX, share.worker, share.workers)


def _finish(share: Share) -> None:
    """Put the curvature beside the index."""
    attributor, _ = indexed(share.arguments, share.progress)
    attributor.finish(share.folder / INDEX)


def _build(share: Share) -> Build:
    attributor, rows = indexed(share.arguments, share.progress)
    return attributor.build(rows.loader, share.folder / INDEX, rows.ids)


STEPS = (
    Step("preparing the index", _prepare, by_all=False),
    Step("index", _part, by_all=True),
    Step("joining the index", _join, by_all=False),
    Step("curvature", _layers, by_all=True),
    Step("curvature of all layers", _finish, by_all=False),
)
