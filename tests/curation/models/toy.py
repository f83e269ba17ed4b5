"""Small data sets in the shape the models and the training expect."""

from __future__ import annotations

import numpy as np
import torch
from lightning import LightningDataModule
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(1)


class TensorData(LightningDataModule):
    """Tensors as training and validation splits; shuffled from the global random state unless ``generator`` is set."""

    def __init__(
        self,
        train: tuple[Tensor, Tensor],
        validation: tuple[Tensor, Tensor],
        generator: bool = True,
        workers: int = 0,
        batch_size: int = 32,
    ) -> None:
        super().__init__()
        self.splits = TensorDataset(*train), TensorDataset(*validation)
        self.generator, self.workers, self.batch_size = generator, workers, batch_size

    def train_dataloader(self) -> DataLoader:
        generator = torch.Generator().manual_seed(5) if self.generator else None
        return DataLoader(self.splits[0], self.batch_size, shuffle=True, generator=generator, num_workers=self.workers)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.splits[1], 256)


def digits() -> TensorData:
    """scikit-learn's digits, images [1, 8, 8] in [0, 1], 1,437 for training and 360 for validation."""
    bunch = load_digits()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(bunch.target)))
    images = torch.tensor(bunch.images / 16.0, dtype=torch.float32)[order, None]
    codes = torch.tensor(bunch.target, dtype=torch.int64)[order]
    return TensorData((images[:1437], codes[:1437]), (images[1437:], codes[1437:]), batch_size=64)


def blobs(rows: int = 160, generator: bool = True, workers: int = 0, scale: float = 1.0) -> TensorData:
    """Two classes of 4 features that a line separates but for a few rows; a quarter of the rows is for validation."""
    random = torch.Generator().manual_seed(1)
    codes = torch.randint(2, (rows,), generator=random)
    features = torch.randn(rows, 4, generator=random) + 1.5 * codes[:, None]
    split = rows * 3 // 4
    train, validation = (features[:split] * scale, codes[:split]), (features[split:] * scale, codes[split:])
    return TensorData(train, validation, generator, workers)
