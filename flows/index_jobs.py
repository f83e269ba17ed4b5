"""`curate index build | query | info | verify`. Only stages run here, no Prefect flow and no MLflow run."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import environment
from flows.config import find_config, load_config, read_overrides, unused_keys
from flows.errors import ConfigError
from flows.modelling import ModelRun, checkpoint_of, index_of
from flows.schema import CleanConfig, IndexConfig
from flows.screen import Screen
from flows.tracking import Tracker
from flows.unlearn_schema import UnlearnConfig


def build(options: argparse.Namespace, tokens: list[str]) -> int:
    """Train or load the model and index its training rows; prints where the index is."""
    config = read_config(options, tokens)
    if config.index.path is not None:
        raise ConfigError("index.path: names an index that is there already; leave it out to build one")
    with Screen() as screen, ModelRun(config, screen) as run:
        run.load(resolver(config))
        if options.estimate:
            expected = run.run("estimate", {"data": run.loaded["digest"]}, keep=False).values
        else:
            index = run.index(run.model())
    if options.estimate:
        print_json(expected) if options.json else _show_estimate(expected)
        return 0
    values = index.values
    if options.json:
        print_json({"path": whole_name(index_of(index)), **values})
        return 0
    Console().print(
        f"Index of {values['rows']:,} rows, {values['bytes_per_row']:,} bytes a row, "
        f"{100 * values['coverage']:.1f} % of the parameters: {index_of(index)}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def print_json(value: Any) -> None:
    """What `--json` asks for, on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def _show_estimate(expected: dict[str, Any]) -> None:
    """The lines of `curate index build --estimate`."""
    lines = [
        f"{expected['examples']:,} rows, {expected['layers']} layers: {expected['bytes_per_example']:,} bytes a row, "
        f"{expected['bytes'] / 2**20:,.1f} MiB in all",
        f"about {expected['index_seconds']:,.1f} s for the gradients and {expected['curvature_seconds']:,.1f} s for the "
        "curvature, as a few batches here would have it",
        f"about {expected['memory'] / 2**20:,.0f} MiB of memory above the model and its activations",
    ]
    for line in [*([expected["plan"]] if expected["plan"] else []), *lines]:
        Console().print(line, highlight=False, soft_wrap=True)


def query(options: argparse.Namespace, tokens: list[str]) -> int:
    """Show the strongest training rows for validation rows."""
    config = read_config(options, tokens)
    rows = _rows(options.rows)
    if options.top < 1:
        raise ConfigError(f"--top: expected a number from 1, got {options.top}")
    with Screen() as screen, ModelRun(config, screen) as run:
        run.load(resolver(config))
        over = [row for row in rows if row >= run.loaded["n_validation"]]
        if over:
            raise ConfigError(f"--rows: there are {run.loaded['n_validation']} validation rows (from 0), got {over}")
        if not run.is_indexed():
            build = ["curate", "index", "build", "--config", options.config, "--workspace", str(config.workspace)]
            raise ConfigError(
                f"there is no index for this configuration: build it with {shlex.join([*build, *tokens])}"
            )
        model = run.model()
        index = run.index(model)
        inputs = {"index": index.digest, "rows": rows, "top": options.top, "opponents": options.opponents}
        found = run.run(
            "query",
            inputs,
            keep=False,
            checkpoint=checkpoint_of(model),
            index_path=index_of(index),
            rows=rows,
            top=options.top,
            largest=not options.opponents,
        )
    if options.json:
        print_json(found.values["queries"])
        return 0
    console = Console()
    for entry in found.values["queries"]:
        console.print(_neighbours(entry, opponents=options.opponents))
    console.print(
        "score: by how much training on a row lowers the loss of the validation row, to first order; where the model is sure "
        "of that one, all are near 0",
        highlight=False,
    )
    return 0


def info(options: argparse.Namespace, tokens: list[str]) -> int:
    """Describe an index."""
    no_more(tokens)
    from lorif_core.codecs import row_bytes
    from lorif_core.kept import REFIT_SHARE, drift
    from lorif_core.manifest import read_manifest
    from lorif_core.remote import checkout

    with store_errors():
        manifest = read_manifest(checkout(index_place(options.path)))
    facts: dict[str, Any] = {
        "path": whole_name(options.path),
        "complete": manifest.complete,
        "rows": manifest.examples,
        "bytes_per_row": row_bytes(manifest.layers, manifest.bits),
        "shards": len(manifest.shards),
        "layers": [
            f"{layer.name} ({layer.kind}, {layer.d1} x {layer.d2}, rank {layer.rank})" for layer in manifest.layers
        ],
        **({"plan": manifest.plan} if manifest.plan else {}),
        "coverage": manifest.coverage,
        "left_out": manifest.left_out,
        "objective": manifest.objective,
        "model": manifest.model,
        "data": manifest.data_digest(),
        "options": manifest.options,
        "curvature": (manifest.curvature or {}).get("options"),
        "drift": round(drift(manifest), 4),
        "refit_due": drift(manifest) > REFIT_SHARE,
        "purged_rows": manifest.purged,
    }
    if options.json:
        print_json(facts)
        return 0
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in facts.items():
        lines = (
            value
            if isinstance(value, list)
            else [f"{k}: {v}" for k, v in value.items()]
            if isinstance(value, dict)
            else [value]
        )
        table.add_row(key, "\n".join(str(line) for line in lines) or "none")
    Console().print(table, highlight=False, markup=False)
    return 0


def verify(options: argparse.Namespace, tokens: list[str]) -> int:
    """Check every byte of an index; exit code 1 when something is wrong with it, 2 when there is none."""
    no_more(tokens)
    import lorif_core

    path = existing(options.path)
    with Screen() as screen:
        screen.begin("verify")
        problems = lorif_core.verify(path, progress=lambda done, total: screen.progress("files", done, total))
        screen.end(f"problems: {len(problems)}" if problems else "every file is as it was written")
    if options.json:
        print_json({"path": whole_name(path), "problems": problems})
    else:
        for problem in problems:
            print(problem)
    return 1 if problems else 0


def read_config(options: argparse.Namespace, tokens: list[str]) -> IndexConfig:
    """The configuration; that of a clean or unlearn job will do, so that the index of its run can be asked."""
    environment.prepare()
    overrides, problems = read_overrides(tokens, IndexConfig)
    if options.workspace is not None:
        overrides["workspace"] = os.path.abspath(os.path.expanduser(options.workspace))
    if options.memory_limit is not None:
        overrides["index.memory_limit"] = options.memory_limit
    file = find_config(options.config)
    wider = (CleanConfig, UnlearnConfig)
    unused = list(dict.fromkeys(key for whole in wider for key in unused_keys(file, IndexConfig, whole)))
    config = load_config(IndexConfig, file, overrides, problems, unused)
    if unused:
        note = f"{file}: an index has no use for {', '.join(unused)}; left out"
        Console(stderr=True).print(note, highlight=False, markup=False, soft_wrap=True)
    return config


def resolver(config: IndexConfig) -> Any:
    """What gives the checkpoint of a registered model."""
    return lambda uri, folder: Tracker(config.tracking, config.workspace).resolve(uri, folder)


def index_place(text: str) -> str:
    """A folder or URL of an index; ConfigError for a file."""
    path = Path(text)
    if path.is_file():
        raise ConfigError(f"{path} is a file; expected the folder of an index, such as {path.parent}")
    return text


def existing(text: str) -> str:
    """The folder or URL of an index that is there; ConfigError where none is."""
    from lorif_core.remote import is_there

    with store_errors():
        if not is_there(index_place(text)):
            raise ConfigError(f"{text}: no index there (manifest.json is missing)")
    return text


def whole_name(place: str) -> str:
    """The folder, from the root, or the URL."""
    return place if "://" in place else str(Path(place).resolve())


@contextmanager
def store_errors() -> Iterator[None]:
    """What is wrong with an index becomes exit code 2."""
    from lorif_core import StoreError

    try:
        yield
    except StoreError as error:
        raise ConfigError(str(error)) from None


def _rows(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise ConfigError(f"--rows: expected positions of validation rows such as 0,5,9; got {text!r}")
    return [int(part) for part in parts]


def _neighbours(entry: dict[str, Any], *, opponents: bool) -> Table:
    who = "opponents" if opponents else "supporters"
    table = Table(title=f"Validation row {entry['row']}, labelled {entry['label']}: strongest {who}")
    for column in ("training row", "label", "score"):
        table.add_column(column)
    for neighbour in entry["neighbours"]:
        table.add_row(str(neighbour["example_id"]), str(neighbour["label"]), f"{neighbour['score']:+.4g}")
    return table


def no_more(tokens: list[str]) -> None:
    """ConfigError for arguments that no option took."""
    if tokens:
        raise ConfigError(f"unknown arguments: {' '.join(tokens)}")
