"""What is wrong with a configuration, as sentences: of single values, of unknown keys, and between several values."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean x?"`` for the nearest known word, or ``"."``."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else "."


def sentences(
    schema: type[BaseModel],
    tree: Mapping[str, Any],
    file: Path,
    overrides: Mapping[str, Any],
    known: Mapping[str, FieldInfo],
) -> list[str]:
    """One for everything that is wrong with ``tree``, none twice.

    Args:
        schema: what it should be.
        tree: what was read from ``file``, with ``overrides`` (by dotted key) put over it.
        file: named in what is said of what it holds.
        overrides: their options are named instead.
        known: every field of ``schema`` by its dotted key.
    """
    found: list[str] = []
    last = "", ""
    for item in _errors(schema, tree):
        key = ".".join(str(part) for part in item["loc"])
        # Inside a field pydantic's own names for the kinds it may be of follow: decide.budget.int.
        key = next((name for name in known if key.startswith(f"{name}.")), key)
        where = f"--{key}" if key in overrides else str(file)
        subject = where if key in overrides or not key else f"{where}: {key}"  # no key: of the sections together
        if item["type"] == "extra_forbidden":
            siblings = _section(schema, [str(part) for part in item["loc"][:-1]])
            found.append(f"{subject}: unknown key{did_you_mean(str(item['loc'][-1]), siblings)}")
        elif item["type"] == "missing":
            found.append(f"{subject}: required, but not given")
        else:
            got = "" if isinstance(item["input"], dict) else f", got {item['input']!r}"
            for line in filter(None, item["msg"].removeprefix("Value error, ").splitlines()):
                text = f"{line[0].lower()}{line[1:]}"
                if (key, got) != last or item["type"] == "value_error":
                    found.append(f"{subject}: {text}{got}")
                elif (kind := text.removeprefix("input should be ")) not in found[-1]:
                    # of a field that takes several kinds, each kind says why not
                    found[-1] = f"{found[-1].removesuffix(got)}, or {kind}{got}"
            last = key, got
    return list(dict.fromkeys(found))


def _errors(schema: type[BaseModel], tree: Mapping[str, Any]) -> list[ErrorDetails]:
    """Pydantic's, and those between values that are right, which it tells only of sections without other errors.

    So what is wrong is taken out, and the rest looked at again, without what is then said of a key that was taken out.
    """
    rest = copy.deepcopy(dict(tree))
    found: list[ErrorDetails] = []
    wrong: set[str] = set()
    while True:
        try:
            schema.model_validate(rest)
            return found
        except ValidationError as error:
            items = error.errors()
        for item in items:
            lines = [line for line in item["msg"].splitlines() if wrong.isdisjoint(re.findall(r"\w+", line))]
            if lines and wrong.isdisjoint(item["loc"]):
                item["msg"] = "\n".join(lines)
                found.append(item)
        taken = {_take_out(rest, item["loc"]): item["type"] for item in items if item["type"] != "missing"}
        taken.pop("", None)
        if not taken:
            return found
        wrong.update(key for key, kind in taken.items() if kind != "extra_forbidden")  # those say nothing of others


def _take_out(tree: dict[str, Any], place: Sequence[int | str]) -> str:
    """Delete what ``place`` leads to: the value of the innermost key on the way. Its name; empty where none is there."""
    holder, name, inner = tree, "", tree
    for part in place:
        if not isinstance(inner, dict) or part not in inner:
            break
        holder, name, inner = inner, str(part), inner[str(part)]
    holder.pop(name, None)
    return name


def _section(schema: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Names of the fields of the section at ``path``."""
    for name in path:
        info = schema.model_fields.get(name)
        if info is None or not (isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)):
            return []
        schema = info.annotation
    return list(schema.model_fields)
