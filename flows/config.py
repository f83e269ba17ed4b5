"""Reads a configuration: a YAML file, the overrides of the command line, and the schema; all problems at once."""

from __future__ import annotations

import importlib.metadata
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ByteSize, ValidationError
from pydantic.fields import FieldInfo

from flows.config_errors import did_you_mean, sentences
from flows.errors import ConfigError

DISTRIBUTION = "lorif-curation"
Schema = TypeVar("Schema", bound=BaseModel)

# Keys of the schema that name files or folders; relative ones in a file are meant from the file's folder.
_PATHS = (
    "model.checkpoint",
    "index.path",
    "workspace",
    "output_dir",
    "clean",
    "select",
    "request.ids_file",
    "evidence.key",
)


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as people expect it: 1e-3 is a number, a key given twice is an error, and of 1.2 the words that are booleans.

    A column or a label may be called ``on``, ``yes`` or ``no``; an option of the schema still takes these for its truth value.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if tag != "tag:yaml.org,2002:bool"]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return dict(super().construct_mapping(node, deep))


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def shipped_configs() -> Path | None:
    """The folder of the configurations that come with the tool, in a checkout or an installed wheel."""
    checkout = Path(__file__).resolve().parent.parent / "configs"
    if (checkout / "clean_digits.yaml").is_file():
        return checkout
    for distribution in importlib.metadata.distributions(name=DISTRIBUTION):
        for file in distribution.files or []:
            if file.name == "clean_digits.yaml":
                return Path(str(file.locate())).resolve().parent
    return None


def find_config(name: str) -> Path:
    """The file meant by ``name``: a path as given (``.yaml`` may be left out), else a shipped file of that name.

    Raises:
        ConfigError: there is no such file; the text names the shipped ones.
    """
    given = Path(name).expanduser()
    if given.is_dir():
        raise ConfigError(f"{given}: expected a configuration file, found a folder")
    for candidate in (given, given.with_name(given.name + ".yaml")):
        if candidate.is_file():
            return candidate.resolve()
    shipped = shipped_configs()
    names = sorted(path.name for path in shipped.glob("*.yaml")) if shipped else []
    if shipped and given.parent in (Path(), Path("configs")):
        for file_name in (given.name, given.name + ".yaml"):
            if file_name in names:
                return shipped / file_name
    hint = did_you_mean(given.name, [*names, *(Path(name).stem for name in names)])
    raise ConfigError(f"{given}: no such configuration file{hint} Shipped: {', '.join(names) or 'none'}")


def fields(schema: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every leaf of ``schema`` by its dotted key, in the order of the schema."""
    leaves: dict[str, FieldInfo] = {}
    for name, info in schema.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            leaves |= fields(info.annotation, f"{prefix}{name}.")
        else:
            leaves[f"{prefix}{name}"] = info
    return leaves


def describe(schema: type[BaseModel]) -> str:
    """The part of ``--help`` that lists every key with its type, default and meaning."""
    lines = []
    for key, info in fields(schema).items():
        default = "" if info.is_required() else f" [{_default(info)}]"
        lines.append(f"  --{key} {_type_name(info.annotation)}{default}\n      {info.description}")
    return "\n".join(lines)


def read_overrides(tokens: Sequence[str], schema: type[BaseModel]) -> tuple[dict[str, Any], list[str]]:
    """Dotted key -> value of ``--any.nested.key value`` or ``--any.nested.key=value``; values are read as YAML.

    Relative paths are meant from the current folder.

    Returns:
        What could be read, and a sentence for every unknown key, missing value and text that is no option: `load_config`
        reports these with what is wrong with the values.
    """
    known = fields(schema)
    found: dict[str, Any] = {}
    problems = []
    queue = list(tokens)
    while queue:
        token = queue.pop(0)
        if not token.startswith("--") or token == "--":
            problems.append(f"{token!r}: expected an option such as --train.max_epochs 5")
            continue
        key, equals, text = token[2:].partition("=")
        key = ".".join(part.replace("-", "_") for part in key.split("."))
        if not equals:
            if not queue or queue[0].startswith("--"):
                problems.append(f"--{key}: expected a value after it")
                continue
            text = queue.pop(0)
        if not _accepts(key, known):
            problems.append(f"--{key}: unknown option{did_you_mean(key, known)}")
            continue
        try:
            found[key] = _from_here(key, yaml.load(text, Loader=_Loader))
        except yaml.YAMLError:
            problems.append(f"--{key}: {text!r} is not a YAML value; quote it")
    return found, problems


def load_config(
    schema: type[Schema],
    file: Path,
    overrides: Mapping[str, Any] | None = None,
    problems: Sequence[str] = (),
    unused: Sequence[str] = (),
) -> Schema:
    """Read ``file``, put ``overrides`` over it and check the whole against ``schema``.

    Args:
        schema: of the file.
        file: YAML.
        overrides: dotted key -> value.
        problems: found before, reported with those found here.
        unused: keys at the top of the file that are left out, `unused_keys` for example.

    Raises:
        ConfigError: every problem, each with the file or option and its dotted key.
    """
    overrides = dict(overrides or {})
    tree = {key: value for key, value in _read_yaml(file).items() if key not in unused}
    for key in _PATHS:
        _resolve(tree, key.split("."), file.parent)
    for key, value in overrides.items():
        _insert(tree, key, value)
    known = schema.model_fields
    if "name" in known and "root" in known:
        tree.setdefault("name", re.sub(r"[^\w.-]", "-", file.stem).lstrip("_.-") or "run")
        tree.setdefault("root", str(file.parent))
        tree.setdefault("workspace", os.environ.get("CURATE_WORKSPACE") or "workspace")
        tree["workspace"] = os.path.abspath(os.path.expanduser(str(tree["workspace"])))
    try:
        config = schema.model_validate(tree)
    except ValidationError:
        raise ConfigError([*problems, *sentences(schema, tree, file, overrides, fields(schema))]) from None
    if problems:
        raise ConfigError(problems)
    return config


def unused_keys(file: Path, schema: type[BaseModel], whole: type[BaseModel]) -> list[str]:
    """Keys at the top of ``file`` that ``schema`` has no use for, being those of the wider schema ``whole``."""
    return [key for key in _read_yaml(file) if key in whole.model_fields and key not in schema.model_fields]


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: expected text in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{file}{line}: not valid YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise ConfigError(f"{file}: expected keys and values at the top level, got {type(tree).__name__}")
    return tree


def _accepts(key: str, known: Mapping[str, FieldInfo]) -> bool:
    """Whether ``key`` is a field, or lies inside a free mapping such as ``data.init_args``."""
    if key in known:
        return True
    return any(key.startswith(f"{name}.") and _is_mapping(info.annotation) for name, info in known.items())


def _is_mapping(annotation: Any) -> bool:
    return typing.get_origin(annotation) is dict


def _insert(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for name in parents:
        inner = tree.get(name)
        if not isinstance(inner, dict):
            inner = tree[name] = {}
        tree = inner
    tree[last] = value


def _resolve(tree: Any, parts: Sequence[str], base: Path) -> None:
    """Make the text at ``parts`` an absolute path, when it is there and no URL."""
    for name in parts[:-1]:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, dict) and isinstance(tree.get(parts[-1]), str) and "://" not in tree[parts[-1]]:
        tree[parts[-1]] = str(base / Path(tree[parts[-1]]).expanduser())


def _from_here(key: str, value: Any) -> Any:
    """A path given on the command line is meant from the current folder, wherever the file lies."""
    last = key.rsplit(".", 1)[-1]
    is_path = last == "path" or (last.endswith("_path") and last != "class_path") or key in _PATHS
    if isinstance(value, str) and is_path and "://" not in value:
        return os.path.abspath(os.path.expanduser(value))
    return value


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Literal:
        return "|".join(str(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(annotation) if argument is not type(None)]
        return "|".join(_type_name(argument) for argument in inner)
    if origin is dict:
        return "{key: value}"
    if origin is list:
        return "[...]"
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    return {str: "text", int: "integer", float: "number", bool: "true|false", Path: "path", ByteSize: "bytes"}[
        annotation
    ]


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
