"""`curate index append | purge | compact | refit`: an index that is there is changed in place."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from flows.errors import ConfigError
from flows.index_jobs import existing, no_more, print_json, read_config, resolver, store_errors, whole_name
from flows.modelling import ModelRun
from flows.schema import IndexSection
from flows.screen import Screen
from flows.worker import Progress


def append(options: argparse.Namespace, tokens: list[str]) -> int:
    """Add the training rows of the data that the index does not have yet, by their ids."""
    config = read_config(options, tokens)
    if config.index.path is None:
        raise ConfigError("index.path: name the index to add to (--index.path FOLDER or URL)")
    path = existing(config.index.path)
    checkpoint = config.model.checkpoint
    if config.model.registered is not None:
        checkpoint = resolver(config)(config.model.registered, config.workspace / "models")
    if checkpoint is None:
        raise ConfigError(
            "model.checkpoint: name the checkpoint of the model the index was made from (or model.registered)"
        )
    with Screen() as screen, ModelRun(config, screen) as run:
        named = config.model_dump(mode="json", include={"name", "data", "model", "root"})
        done = run.run("append", named, keep=False, checkpoint=str(checkpoint), index_path=str(path))
    values = done.values
    if options.json:
        print_json({"path": whole_name(path), **values})
        return 0
    lines = [f"{values['added']:,} rows added to the index of now {values['rows']:,}: {path}"]
    if values["gone"]:
        some = ", ".join(map(str, values["gone_ids"]))
        lines.append(
            f"{values['gone']:,} rows of the index are not in the data (first: {some}): see curate index purge"
        )
    _tell(lines + _kept_note(path) + _drift_note(values["drift"], path))
    return 0


def purge(options: argparse.Namespace, tokens: list[str]) -> int:
    """Remove rows and their bytes from an index."""
    no_more(tokens)
    limit = _memory_limit(options)
    import lorif_core

    def change(path: str, progress: Progress) -> tuple[dict[str, Any], list[str]]:
        asked = _asked(options)
        ids = _typed(asked, lorif_core.FactorStore.open(path).ids())
        done = lorif_core.purge(path, ids, progress=progress, refit=options.refit, memory_limit=limit)
        lines = [f"{done.rows:,} rows removed, {len(done.shards)} shards written anew or removed: {path}"]
        if done.not_found:
            lines.append(f"not in the index: {', '.join(map(str, done.not_found))}")
        return {"rows": done.rows, "shards": done.shards, "not_found": done.not_found}, lines

    return _changed(options, "purge", change)


def compact(options: argparse.Namespace, tokens: list[str]) -> int:
    """Merge the small shards of an index."""
    no_more(tokens)
    import lorif_core

    def change(path: str, progress: Progress) -> tuple[dict[str, Any], list[str]]:
        merged = lorif_core.compact(path)
        return {"merged": merged}, [f"{merged} shards merged into others: {path}"]

    return _changed(options, "compact", change)


def refit(options: argparse.Namespace, tokens: list[str]) -> int:
    """Fit the curvature of an index anew from all its rows."""
    no_more(tokens)
    limit = _memory_limit(options)
    from lorif_core.updates import refit

    def change(path: str, progress: Progress) -> tuple[dict[str, Any], list[str]]:
        refit(path, progress=progress, memory_limit=limit)
        return {"drift": _drift(path)}, [f"curvature fitted anew: {path}"]

    return _changed(options, "refit", change)


def _changed(
    options: argparse.Namespace, name: str, change: Callable[[str, Progress], tuple[dict[str, Any], list[str]]]
) -> int:
    """Change the index that is named on the command line; tell of it, in lines or as JSON."""
    path = existing(options.path)
    with store_errors(), Screen() as screen:
        screen.begin(name)
        found, lines = change(path, screen.progress)
        screen.end("done")
        notes = _kept_note(path) + _drift_note(_drift(path), path)
    if options.json:
        print_json({"path": whole_name(path), **found})
    else:
        _tell(lines + notes)
    return 0


def _memory_limit(options: argparse.Namespace) -> int:
    """Bytes."""
    given = {} if options.memory_limit is None else {"memory_limit": options.memory_limit}
    try:
        return IndexSection(**given).memory_limit
    except ValidationError:
        raise ConfigError(
            f'--memory-limit: expected bytes, or a text such as "500 MB", got {given["memory_limit"]}'
        ) from None


def _asked(options: argparse.Namespace) -> list[str]:
    """The ids on the command line and in the file."""
    ids = list(options.ids or [])
    if options.ids_file is not None:
        file = Path(options.ids_file)
        if not file.is_file():
            raise ConfigError(f"--ids-file: no such file: {file}")
        try:
            ids += [line for line in file.read_text(encoding="utf-8").splitlines() if line]
        except UnicodeDecodeError:
            raise ConfigError(f"--ids-file: {file} is not text in UTF-8; expected one id a line") from None
    if not ids:
        raise ConfigError("--ids, --ids-file: name the rows to remove")
    return ids


def _typed(asked: list[str], known: list[str] | list[int]) -> list[str] | list[int]:
    """The ids as the index has them: strings, or integers."""
    if not known or isinstance(known[0], str):
        return asked
    wrong = [one for one in asked if not one.removeprefix("-").isdecimal()]
    if wrong:
        raise ConfigError(f"--ids: this index has integers for ids, got {wrong[:5]}")
    return [int(one) for one in asked]


def _drift(path: str) -> float:
    from lorif_core.kept import drift
    from lorif_core.manifest import read_manifest
    from lorif_core.remote import checkout

    return drift(read_manifest(checkout(path)))


def _drift_note(drift: float, path: str) -> list[str]:
    from lorif_core.kept import REFIT_SHARE

    if drift <= REFIT_SHARE:
        return []
    return [f"The curvature drifted by {100 * drift:.0f} %: fit it anew with curate index refit {path}"]


def _kept_note(path: str) -> list[str]:
    """That a workspace does not take a changed index for its own."""
    if not (Path(path).parent / "manifest.json").is_file():
        return []
    return [
        "This index lies in a workspace, where the next run of its configuration builds it anew from its data: to keep "
        "what was changed, copy the folder and name it with index.path."
    ]


def _tell(lines: list[str]) -> None:
    console = Console()
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
