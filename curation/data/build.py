"""Data by name: the shipped data sets and a user's own, from the ``class_path`` and ``init_args`` of a config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning import LightningDataModule

from curation.classes import construct, import_class, parameters_of, resolve_paths
from curation.data.adapter import adapt
from curation.data.edits import dropping
from curation.data.example_data import ExampleData
from curation.errors import DataError

if TYPE_CHECKING:
    from curation.data.questions import Staying

STAYING = "staying"
"""The parameter of a class that leaves rows out itself."""


def build_data(
    class_path: str, init_args: Mapping[str, Any] | None, root: str | Path, staying: Staying | None = None
) -> ExampleData:
    """Construct the data set or LightningDataModule called ``class_path``.

    Args:
        class_path: dotted path of a class, e.g. ``curation.data.TableData`` or ``my.package.MyDataModule``.
        init_args: its constructor's parameters.
        root: folder of the config file, which relative paths start from: those a class names in ``path_arguments``, and
            the folders among those in ``folder_arguments``.
        staying: which rows are left in; None: all. Classes with a parameter of that name are given it and ask before they look
            at how long a row is; from others the rows are dropped when they are made.

    Raises:
        DataError: no such class, not a LightningDataModule, unknown or missing parameters (with those it accepts), or the
            data are wrong.
    """
    cls = import_class(class_path, LightningDataModule, DataError)
    arguments = resolve_paths(cls, init_args or {}, root)
    early = staying is not None and STAYING in parameters_of(cls)[0]
    made = construct(cls, class_path, arguments | {STAYING: staying} if early else arguments, DataError)
    data = made if isinstance(made, ExampleData) else adapt(made)
    if staying is None or early:
        return data
    gone = data.examples.filter(~staying(data.examples, data.table))["example_id"]
    return data.edited(dropping(data.examples, gone)) if len(gone) else data
