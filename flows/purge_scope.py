"""Which results in a workspace a purge is about: those of the same data, and all that are not certainly of other data.

Rows without ids are numbered, and the number of a removed row is another row's in other data. But data are copied, moved and
linked, and a result that was overlooked keeps a record: what cannot be told is taken for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from curation.data.text_tokens import STANDS_FOR, TOKENIZER
from flows.files import digest_file, read_json
from flows.folder import INPUTS
from flows.outputs import RUN
from flows.recorded import CONFIG

SUMMARY = "summary.json"


def of_other_data(home: Path, own: Path) -> Callable[[Path], bool]:
    """Whether a file in the workspace at ``home`` is certainly about other data than the run with the folder ``own``.

    A run is, where both read a file, both files are there, and they differ. Of a run are the files in its folder, copies of
    them beside its summary, and the stages made from its data.
    """
    mine = _data_file(own / CONFIG)
    if mine is None:
        return lambda file: False
    digest = cache(digest_file)

    def other(config: Path) -> bool:
        file = _data_file(config)
        return file is not None and file != mine and digest(file) != digest(mine)

    runs: dict[bool, set[str]] = {True: set(), False: set()}
    for config in home.rglob(CONFIG):
        if (data := _data_of(config.with_name(SUMMARY))) is not None:
            runs[other(config)].add(data)
    others, stages = runs[True] - runs[False], home / "stages"

    def apart(file: Path) -> bool:
        if file.with_name(CONFIG).is_file():
            return other(file.with_name(CONFIG))
        if stages in file.parents:
            said = read_json(stages / file.relative_to(stages).parts[0] / INPUTS)
            return isinstance(said, dict) and said.get("data") in others
        return _data_of(file.with_name(SUMMARY)) in others

    return apart


def naming(home: Path, ids: Collection[object], apart: Callable[[Path], bool]) -> list[Path]:
    """Configurations of runs that named one of the records, by its id or by a column's value, and the command lines beside them.

    They are read, not searched: an id or a value that is a number, or short, stands in many a file by chance.
    """
    gone, found = set(map(str, ids)), list[Path]()
    for file in home.rglob(CONFIG):
        if apart(file):
            continue
        said = _configuration(file)
        sections = [section for name in ("request", "retain") if isinstance(section := said.get(name), dict)]
        given = [one for section in sections if isinstance(section.get("ids"), list) for one in section["ids"]]
        if any(str(one) in gone for one in given) or (_by_value(said) and _resolved(file) & gone):
            found += [file, file.with_name(RUN)]
    return found


def tokenizers(home: Path, own: Path, apart: Callable[[Path], bool]) -> list[Path]:
    """The files but ``own`` that earlier purges left for tokenizers learnt from the same data.

    Names of records that go later are too short to be found there.
    """
    stands_for = (read_json(own) or {}).get(STANDS_FOR)
    found = []
    for path in home.rglob(TOKENIZER):
        said = read_json(path) or {}
        if home / "stages" in path.parents or path.resolve() == own.resolve() or STANDS_FOR not in said:
            continue
        if said[STANDS_FOR] == stands_for or not apart(path):
            found.append(path)
    return found


def _by_value(said: dict[str, Any]) -> bool:
    """Whether a configuration names records by a column's values."""
    request = said.get("request")
    where = request.get("where") if isinstance(request, dict) else None
    return isinstance(where, dict) and bool(where.get("values"))


def _resolved(config: Path) -> set[str]:
    """Ids of the records that a run resolved."""
    file = config.with_name("records.parquet")
    if not file.is_file():
        return set()
    frame = pl.read_parquet(file)
    return set(map(str, frame["example_id"])) if "example_id" in frame.columns else set()


def _data_file(config: Path) -> Path | None:
    """The file that a run with this configuration read its data from; None where it names none that is there."""
    said = _configuration(config)
    data = said.get("data")
    arguments = data.get("init_args") if isinstance(data, dict) else None
    path = arguments.get("path") if isinstance(arguments, dict) else None
    if not isinstance(path, str) or not path:
        return None
    file = Path(str(said.get("root", "")), Path(path).expanduser()).resolve()
    return file if file.is_file() else None


def _data_of(summary: Path) -> str | None:
    """Digest of the data of a run."""
    said = read_json(summary)
    digests = said.get("digests") if isinstance(said, dict) else None
    return digests.get("data") if isinstance(digests, dict) else None


def _configuration(file: Path) -> dict[str, Any]:
    """What a run's configuration says; nothing where it is none."""
    try:
        said = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return said if isinstance(said, dict) else {}
