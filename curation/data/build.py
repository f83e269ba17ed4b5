"""Data by name: the shipped data sets and a user's own, from the ``class_path`` and ``init_args`` of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from curation.classes import construct, import_class, resolve_paths
from curation.data.adapter import adapt
from curation.data.example_data import ExampleData
from curation.errors import DataError


def build_data(class_path: str, init_args: Mapping[str, Any] | None, root: str | Path) -> ExampleData:
    """Construct the data set or LightningDataModule called ``class_path``.

    Args:
        class_path: dotted path of a class, e.g. ``curation.data.TableData`` or ``my.package.MyDataModule``.
        init_args: its constructor's parameters.
        root: folder of the config file, which relative paths start from: those a class names in ``path_arguments``, and
            the folders among those in ``folder_arguments``.

    Raises:
        DataError: no such class, not a LightningDataModule, unknown or missing parameters (with those it accepts), or the
            data are wrong.
    """
    cls = import_class(class_path, LightningDataModule, DataError)
    data = construct(cls, class_path, resolve_paths(cls, init_args or {}, root), DataError)
    return data if isinstance(data, ExampleData) else adapt(data)
