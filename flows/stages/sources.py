"""The user's own code that decides a result: the classes the job names, and every module of theirs that these import."""

from __future__ import annotations

import os
import sys
import sysconfig
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from flows.files import digest_file, digest_of

# Their code, or their version, is part of every stage's digest already (`flows.files.code_digest`, `flows.versions`).
_KNOWN = {"lorif_core", "curation", "flows", "torch", "lightning", "numpy", "polars", "sklearn", "__main__"}


def sources_digest(objects: Iterable[Any], root: Path) -> str:
    """sha256 of the source files of ``objects``' classes, bases included, and of the user's modules loaded with them.

    Those are all loaded modules that lie below ``root`` or below a folder one of the classes is imported from, installed
    packages left out, and all of the packages that the classes belong to, installed or not.

    Limitations: what is imported only later, inside a training step for example, is not seen.

    Args:
        objects: made from the classes that the job names; their modules are loaded.
        root: folder of the configuration.
    """
    modules = {cls.__module__ for thing in objects for cls in type(thing).__mro__}
    modules = {name for name in modules if name.partition(".")[0] not in _KNOWN | sys.stdlib_module_names}
    packages = {name.partition(".")[0] for name in modules}
    files = dict(_loaded(packages))
    folders = {root.resolve(), *(_import_folder(name, files[name]) for name in modules & files.keys())}
    seen = []
    for name, path in files.items():
        if name.partition(".")[0] in packages or any(path.is_relative_to(folder) for folder in folders):
            seen.append((name, digest_file(path)))
    return digest_of(sorted(seen))


def _loaded(packages: Collection[str]) -> Iterator[tuple[str, Path]]:
    """The loaded modules with the files they came from: those of ``packages``, and all that are not installed."""
    standard = os.path.realpath(sysconfig.get_path("stdlib")) + os.sep
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None) if isinstance(module, ModuleType) else None
        top = name.partition(".")[0]
        if not isinstance(file, str) or top in _KNOWN or top in sys.stdlib_module_names:
            continue
        installed = file.startswith(standard) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)
        if (top in packages or not installed) and Path(file).is_file():
            yield name, Path(file).resolve()


def _import_folder(name: str, file: Path) -> Path:
    """The folder on the import path from which module ``name`` was found at ``file``."""
    depth = name.count(".") + (file.name == "__init__.py")
    return file.parents[depth]
