from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

import curation.data
from curation.data import CuratedData, Digits, TableData, build_data
from curation.errors import DataError
from tests.curation.data.builders import feature_frame, write

TABLE = "curation.data.TableData"


class Mine(LightningDataModule):
    """A user's module, its rows made from a file that must be there."""

    def __init__(self, rows: int, file: str | None = None) -> None:
        super().__init__()
        self.rows, self.file = TensorDataset(torch.ones(rows, 3), torch.arange(rows) % 2), file

    def setup(self, stage: str) -> None:
        if self.file is not None:
            Path(self.file).read_bytes()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=4)

    val_dataloader = train_dataloader


def problems(class_path: str, **init_args: object) -> list[str]:
    with pytest.raises(DataError) as error:
        build_data(class_path, init_args, Path())
    return error.value.problems


def test_shipped_data_by_name(tmp_path: Path) -> None:
    assert isinstance(build_data("curation.data.Digits", None, tmp_path), Digits)
    write(feature_frame(), tmp_path)
    data = build_data(TABLE, {"path": "table.parquet", "label": "y", "id": "key"}, tmp_path)
    assert isinstance(data, TableData)


def test_paths_start_from_the_folder_of_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    path = write(feature_frame(), tmp_path / "data")
    other = write(feature_frame().with_columns(pl.col("key") + "-validation"), tmp_path, "validation.csv")
    monkeypatch.chdir(tmp_path / "data")
    relative = {"path": "data/table.parquet", "validation_path": "validation.csv"}
    absolute = {"path": str(path), "validation_path": str(other)}
    made = [build_data(TABLE, {"label": "y", "id": "key", **paths}, tmp_path) for paths in (relative, absolute)]
    assert made[0].digest() == made[1].digest()
    with pytest.raises(DataError, match="there is no such file"):
        build_data(TABLE, {"label": "y", **relative}, tmp_path / "data")


def test_a_users_own_module_is_adapted() -> None:
    data = build_data(f"{__name__}.Mine", {"rows": 6}, Path())
    assert isinstance(data, CuratedData) and data.model_defaults() == {"input_shape": (3,), "num_classes": 2}
    (problem,) = problems(f"{__name__}.Mine", rows=6, file="gone.bin")
    assert "Mine: prepare_data or setup failed" in problem and "gone.bin" in problem


def test_what_does_not_fit_is_an_error_of_the_data() -> None:
    assert "curation.data has no Digit (did you mean 'Digits'?)" in problems("curation.data.Digit")[0]
    assert "(did you mean 'validation_fraction'?)" in problems("curation.data.Digits", validation_fracton=0.1)[0]
    assert "refused its parameters" in problems(f"{__name__}.Mine", rows="x")[0]
    assert "refused its parameters" in problems(TABLE, path=5, label="y")[0]


def test_the_package_has_only_the_names_it_lists() -> None:
    assert [getattr(curation.data, name).__name__ for name in curation.data.__all__] == curation.data.__all__
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        curation.data.Nothing  # noqa: B018
