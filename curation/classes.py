"""Classes by dotted path, with the parameters a config gives them: imported, checked, constructed.

Every function takes ``error``, which makes the exception to raise out of a list of sentences.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from curation.errors import CurationError

T = TypeVar("T")
MakeError = Callable[[list[str]], CurationError]


def import_class(class_path: str, base: type[T], error: MakeError) -> type[T]:
    """The class at ``class_path``, which must derive from ``base``.

    Raises:
        CurationError: made by ``error``: not a dotted path, no such module or class, or a class of another kind.
    """
    module_name, _, name = str(class_path).rpartition(".")
    if not module_name or not all(part.isidentifier() for part in str(class_path).split(".")):
        raise error([f"class_path must be a dotted path such as my.package.MyClass, got {class_path!r}"])
    try:
        module = importlib.import_module(module_name)
    except (ImportError, SyntaxError) as reason:
        raise error(
            [
                f"class_path {class_path}: importing {module_name} failed: {reason}. Check the spelling, install the "
                "package, or put its folder on PYTHONPATH"
            ]
        ) from reason
    found: Any = getattr(module, name, None)
    if _is_a(found, base):
        return found
    if found is None:
        names = {*vars(module), *getattr(module, "__all__", ())}  # a lazy package has only listed its names yet
        there = sorted(known for known in names if _is_a(getattr(module, known, None), base))
        listed = ", ".join(there) or "none"
        raise error(
            [f"class_path: {module_name} has no {name}{_close(name, there)}; its {base.__name__} classes: {listed}"]
        )
    raise error(
        [
            f"class_path: {class_path} is not a {base.__name__} class; it must derive from lightning.{base.__name__} "
            "(that of the package pytorch_lightning is another class)"
        ]
    )


def parameters_of(cls: type) -> tuple[dict[str, inspect.Parameter], bool]:
    """Named constructor parameters of a class, and whether it takes any other keyword too."""
    parameters = list(inspect.signature(cls).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    open_ended = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    return {parameter.name: parameter for parameter in parameters if parameter.kind in kinds}, open_ended


def construct(cls: type[T], class_path: str, arguments: Mapping[str, Any], error: MakeError) -> T:
    """``cls(**arguments)``.

    Raises:
        CurationError: made by ``error``: unknown or missing parameters (all of them, with those the class accepts), or
            the constructor refused their values or could not read what they name. Its own CurationErrors pass.
    """
    accepted, open_ended = parameters_of(cls)
    unknown = [] if open_ended else sorted(set(arguments) - set(accepted))
    problems = [f"{class_path}: unknown parameter {name!r}{_close(name, accepted)}" for name in unknown]
    for name, parameter in accepted.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            problems.append(f"{class_path}: missing parameter {name!r}")
    if problems:
        problems[-1] += f"; it accepts {', '.join(accepted) or 'none'}"
        raise error(problems)
    try:
        return cls(**arguments)
    except (TypeError, ValueError, OSError) as reason:
        raise error([f"{class_path} refused its parameters {dict(arguments)}: {reason}"]) from reason


def resolve_paths(cls: type, arguments: Mapping[str, Any], root: str | Path | None) -> dict[str, Any]:
    """``arguments`` with relative paths made absolute, starting from the folder ``root``; None: as they are.

    A class says which of its parameters are paths in ``path_arguments``, and which are a folder or else a name on the
    Hugging Face hub in ``folder_arguments``: of those, folders that are there, and what starts with ``.``, ``/`` or ``~``.
    """
    resolved = dict(arguments)
    if root is None:
        return resolved
    paths, folders = getattr(cls, "path_arguments", ()), getattr(cls, "folder_arguments", ())
    for name in (*paths, *folders):
        value = resolved.get(name)
        if not isinstance(value, (str, Path)):
            continue  # the class says what is wrong with it
        path = os.path.abspath(Path(root) / Path(value).expanduser())
        if name in paths or str(value).startswith((".", "/", "~")) or os.path.isdir(path):
            resolved[name] = path
    return resolved


def _is_a(value: Any, base: type[T]) -> TypeGuard[type[T]]:
    return isinstance(value, type) and issubclass(value, base)


def _close(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.65)
    return f" (did you mean {close[0]!r}?)" if close else ""
