"""Projected per-example gradients of batches, from a model and what an index says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor, nn

from lorif_core import projections as kinds
from lorif_core.capture import GradientCollector, Loss, Shared, Tape, tapped
from lorif_core.contraction import LayerGradient
from lorif_core.coverage import cover
from lorif_core.errors import StoreError
from lorif_core.integrity import read_checked
from lorif_core.layers import Layer
from lorif_core.manifest import Manifest, sizes_of
from lorif_core.objectives import Batch, to_device
from lorif_core.projections import Projections

PROJECTION = "projection.safetensors"


@dataclass(frozen=True)
class GradientPlan:
    """What is taken of a model: layers in index order, their projections, and how the model calls them."""

    layers: list[Layer]
    projections: Projections
    shared: Shared
    modified: list[str]

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[BatchGradients]:
        """Hooks on a frozen model for the length of the block."""
        device = device_of(model)
        collector = GradientCollector(self.projections.to(device).sides, frozenset(self.modified))
        with tapped(model, self.layers, collector.on_input, collector.on_gradient, self.shared) as tape:
            sizes = {layer.name: self.projections.size(layer) for layer in self.layers}
            yield BatchGradients(tape, collector, sizes, device)


@dataclass(frozen=True)
class BatchGradients:
    """Runs one batch at a time."""

    tape: Tape
    collector: GradientCollector
    sizes: dict[str, tuple[int, int]]
    device: torch.device

    def __call__(self, loss: Loss, batch: Batch) -> tuple[Tensor, dict[str, LayerGradient]]:
        """(losses [B], per layer the pair (X P_in, dY P_out) or the matrix [B, d1, d2])."""
        with torch.inference_mode(False):
            batch = to_device(batch, self.device)
        losses = self.tape(loss, batch)
        found = self.collector.take()
        # a batch that does not reach a layer has no gradient there
        return losses, {
            name: found[name] if name in found else torch.zeros(len(losses), *size, device=self.device)
            for name, size in self.sizes.items()
        }


def read_plan(path: Path, manifest: Manifest, model: nn.Module) -> GradientPlan:
    """The plan of an index for a model that has the indexed fingerprint.

    Raises:
        StoreError: the projections are missing, or not the ones the index was made with.
    """
    names = [entry.name for entry in manifest.layers]
    found = {layer.name: layer for layer in cover(model, names).layers}
    layers = [found[name] for name in names]
    projections = _read_projections(path, manifest, layers)
    if projections.digest() != manifest.projection:
        raise StoreError(
            f"the projections of {path} are not those it was built with: restore its files or rebuild the index"
        )
    return GradientPlan(layers, projections, manifest.shared, manifest.modified)


def _read_projections(path: Path, manifest: Manifest, layers: list[Layer]) -> Projections:
    kind, sizes = manifest.options["projection"], sizes_of(manifest.layers)
    if kind == "identity":
        return kinds.identity(layers)
    if kind == "rademacher":
        return kinds.rademacher(layers, sizes, manifest.options["seed"])
    data = read_checked(path / PROJECTION, manifest.files[PROJECTION])
    return kinds.from_tensors(kind, layers, load(data), sizes)


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))
