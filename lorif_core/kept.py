"""The curvature kept beside an index: its file, and what the manifest says of it.

The manifest's `curvature` holds `options`, `data` (the digest of the examples it is of), `damping` of each layer, `trace`
(of G^T G) of each that is updated and, once rows were added or removed (lorif_core.updates), of these `outside` (what of the
trace the kept directions do not hold) and `drift` (what updates neglected, a nuclear norm).
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load

from lorif_core.atomic import single_writer, write_tensors
from lorif_core.curvature import kernel_inverses
from lorif_core.damping import rescaled
from lorif_core.errors import StoreError
from lorif_core.integrity import read_checked
from lorif_core.inverse import LayerInverse, PrimalInverse, from_tensors, to_tensors
from lorif_core.manifest import Manifest, read_manifest
from lorif_core.options import CurvatureOptions
from lorif_core.remote import publish
from lorif_core.revisions import commit, refuse_pending
from lorif_core.store import FactorStore

log = logging.getLogger(__name__)

VERSION = 2
"""Of what `auto` means: a curvature of another is fitted anew."""
REFIT_SHARE = 0.1
"""The drift from which on the curvature should be fitted anew."""


def kept_curvature(
    store: FactorStore, options: CurvatureOptions, device: torch.device
) -> dict[str, LayerInverse] | None:
    """The curvature kept beside an index; None where it differs from these options in more than damping's multiplier.

    Raises:
        StoreError: its file is missing or damaged, or the index is.
    """
    manifest = store.manifest
    damping = kept_dampings(manifest, options)
    if damping is None:
        return None
    found = read_curvature(store.path, manifest, damping, device)
    others = {name: value for name, value in damping.items() if name not in found}
    return found | kernel_inverses(store, others, device)


def kept_dampings(manifest: Manifest, options: CurvatureOptions) -> dict[str, float] | None:
    """Each layer's lambda for the curvature beside an index; None where it is of other options or rows."""
    return rescaled(manifest.curvature or {}, record_of(manifest, options))


def record_of(manifest: Manifest, options: CurvatureOptions) -> dict[str, Any]:
    """What the manifest says of a curvature fitted now, but for its dampings."""
    return {"options": asdict(options), "data": manifest.data_digest(), "version": VERSION}


def read_curvature(
    folder: Path, manifest: Manifest, damping: dict[str, float], device: torch.device
) -> dict[str, LayerInverse]:
    """The inverse of every layer that is kept, with these dampings; a `KernelInverse` is not (`curvature.kernel_inverses`).

    Raises:
        StoreError: the file is missing or damaged.
    """
    file = manifest.file("curvature")
    if file is None:
        raise StoreError(f"{folder} has no curvature: call fit again, which fits it")
    try:
        data = read_checked(folder / file, manifest.files[file])
    except StoreError as error:
        raise StoreError(f"{error} (or call fit again, which fits it anew)") from None
    return from_tensors(load(data), damping, device)


def write_curvature(
    folder: Path, manifest: Manifest, found: dict[str, LayerInverse], record: dict[str, Any]
) -> Manifest:
    """Write the file of a curvature; returns the manifest that lists it, not yet written."""
    traces = {name: x.trace for name, x in found.items() if isinstance(x, PrimalInverse) and x.trace is not None}
    record = record | {"damping": {name: inverse.damping for name, inverse in found.items()}, "trace": traces}
    sha, _ = write_tensors(folder / manifest.named("curvature"), to_tensors(found))
    manifest = manifest.with_file("curvature", sha).with_(curvature=record)
    if (share := drift(manifest)) > REFIT_SHARE:
        log.warning("the curvature of %s drifted by %.0f %% over appends and purges: call refit()", folder, 100 * share)
    return manifest


def replace_curvature(
    folder: Path, manifest: Manifest, found: dict[str, LayerInverse], record: dict[str, Any]
) -> Manifest:
    """Put a curvature beside the index, in place of the one there may be; killed at any moment, one of the two is listed.

    Raises:
        StoreError: the index was changed meanwhile, or an append to it is unfinished.
    """
    with single_writer(folder):
        publish(folder)
        now = read_manifest(folder)
        if now.shards != manifest.shards:
            raise StoreError(f"{folder} was changed while its curvature was fitted: open it again")
        if now.curvature is not None:
            refuse_pending(folder, now)
            now = now.with_(revision=now.revision + 1)
        now = write_curvature(folder, now, found, record)
        commit(folder, now)
    return now


def drift(manifest: Manifest) -> float:
    """What updates neglected, as a share of what the curvature leaves out anyway: the worst layer's; 0 when just fitted.

    (A lambda is added to the latter, so that rounding errors of a curvature that leaves out nothing are none.)
    """
    record = manifest.curvature or {}
    shares = (
        neglected / (record["outside"][name] + record["damping"][name])
        for name, neglected in record.get("drift", {}).items()
    )
    return max(shares, default=0.0)
