"""A synthetic index of GPT-2-small shape, written with the store's own formats: what `tests.benchmarks.scale` measures on.

And a network of its layers, for what only a model shows.

48 layers: 12 x (attention in 768 -> 2304, attention out 768 -> 768, MLP in 768 -> 3072, MLP out 3072 -> 768), f = 64.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from lorif_core.codecs import encode, row_bytes
from lorif_core.manifest import SHARDS, LayerEntry, Manifest, Span
from lorif_core.options import Storage
from lorif_core.store import FactorStore, shard_rows, write_shard

FACTOR = 64
SIDES = {"attention.in": (768, 2304), "attention.out": (768, 768), "mlp.in": (768, 3072), "mlp.out": (3072, 768)}
DIRECTIONS = 6
"""Of each side: the gradients' common part, above which there is noise."""


def layers(storage: Storage) -> list[LayerEntry]:
    """The 48 layers as a manifest has them."""
    rank = 1 if storage == "factors" else 0
    return [
        LayerEntry(f"block{i:02d}.{name}", "Linear", rows, columns, rows // FACTOR, columns // FACTOR, rank)
        for i in range(12)
        for name, (rows, columns) in SIDES.items()
    ]


class Network(nn.Module):
    """The 48 layers one after the other, blocks added to what goes in, and a head of three classes."""

    def __init__(self) -> None:
        """Random weights."""
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleList(nn.Linear(*sides) for sides in SIDES.values()) for _ in range(12))
        self.head = nn.Linear(768, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, 3] of vectors [B, T, 768]."""
        for attention_in, attention_out, mlp_in, mlp_out in self.blocks:  # type: ignore[misc]
            x = x + attention_out(attention_in(x)[..., :768])
            x = x + mlp_out(mlp_in(x).relu())
        logits: Tensor = self.head(x.mean(1))
        return logits


def gradients(layer: LayerEntry, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(left [n, d1, 1], right [n, d2, 1]): low rank plus noise."""

    def side(d: int) -> Tensor:
        common = torch.randn(count, DIRECTIONS, generator=generator) @ torch.randn(DIRECTIONS, d, generator=generator)
        return (common + 0.5 * torch.randn(count, d, generator=generator)).unsqueeze(2)

    return side(layer.d1), side(layer.d2)


def write(folder: Path, examples: int, bits: int = 16, storage: Storage = "factors") -> FactorStore:
    """Write an index of `examples` rows; each shard is a file of its own, its rows those of the first, turned round."""
    entries = layers(storage)
    size = min(examples, shard_rows(row_bytes(entries, bits)))
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, Tensor] = {"loss": torch.rand(size, generator=generator)}
    for layer in entries:
        left, right = gradients(layer, size, generator)
        stored = (left, right) if layer.rank else left @ right.mT  # [n, d1, 1] @ [n, 1, d2] -> [n, d1, d2]
        tensors |= {f"{name}.{layer.name}": x for name, x in encode(layer, stored, bits).items()}
    (folder / SHARDS).mkdir(parents=True)
    manifest = Manifest(
        options={"bits": bits, "storage": storage},
        objective="synthetic",
        model="none",
        layers=entries,
        left_out={},
        coverage=1.0,
        projection="none",
        complete=True,
    )
    for number, start in enumerate(range(0, examples, size)):
        rows = min(size, examples - start)
        turned = {name: x.roll(131 * number, 0)[:rows] for name, x in tensors.items()}
        manifest = write_shard(folder, manifest, turned, [Span(rows, f"{number}")], {})
    manifest.write(folder)
    return FactorStore.open(folder)
