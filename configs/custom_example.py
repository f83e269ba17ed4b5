"""A LightningDataModule and a LightningModule of one's own, with no more than `curate clean` needs."""

from __future__ import annotations

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset


class Rings(Dataset[tuple[Tensor, int]]):
    """Points of three noisy rings, some with the wrong ring as label.

    ``ids`` names the rows in all results; without it they are numbered.
    """

    def __init__(self, rows: int, wrong: float, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        rings = torch.randint(3, (rows,), generator=random)
        angle = 2 * torch.pi * torch.rand(rows, generator=random)
        radius = 1.0 + rings + 0.15 * torch.randn(rows, generator=random)
        self.points = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
        flipped = torch.rand(rows, generator=random) < wrong
        self.labels = torch.where(flipped, (rings + 1) % 3, rings)
        self.ids = [f"point-{row}" for row in range(rows)]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.points[row], int(self.labels[row])


class RingsDataModule(lightning.LightningDataModule):
    """Needed: ``train_dataloader`` and ``val_dataloader`` over map-style datasets of (input tensor, class number)."""

    def __init__(self, rows: int = 1200, wrong: float = 0.08, seed: int = 0) -> None:
        super().__init__()
        self.train, self.validation = Rings(rows, wrong, seed), Rings(rows // 4, 0.0, seed + 1)

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Training rows."""
        return DataLoader(self.train, batch_size=64, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        """Validation rows; their labels are trusted."""
        return DataLoader(self.validation, batch_size=256)


class RingsModule(lightning.LightningModule):
    """Needed: ``forward`` returns logits [B, K], the last ``nn.Linear`` is the classification head."""

    def __init__(self, width: int = 48, lr: float = 1e-2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.body = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, points: Tensor) -> Tensor:
        """Logits [B, 3] of points [B, 2]."""
        return self.head(self.body(points))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of one batch."""
        points, labels = batch
        return functional.cross_entropy(self(points), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])
