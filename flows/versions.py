"""Which versions made a result."""

from __future__ import annotations

import importlib.metadata
import platform

from flows import __version__

DECIDING = ("torch", "lightning", "numpy", "polars", "scikit-learn")


def deciding() -> dict[str, str]:
    """Versions of the packages that computed figures depend on; another version means computing again."""
    return {name: importlib.metadata.version(name) for name in DECIDING}


def recorded() -> dict[str, str]:
    """Versions written into every summary."""
    names = (*DECIDING, "prefect", "mlflow", "pydantic")
    return {
        "lorif-curation": __version__,
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in names},
    }
