"""Building an index: one pass over the training data, from a model to a factor store on disk.

Axes: B examples of a batch, N training examples, d1 / d2 projected sides, c factor rank.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lorif_core import projections as kinds
from lorif_core.atomic import single_writer, write_tensors
from lorif_core.bucketing import Window, windows
from lorif_core.capture import Loss, frozen
from lorif_core.codecs import row_bytes
from lorif_core.coverage import cover
from lorif_core.digests import ExampleDigest, model_fingerprint
from lorif_core.errors import StoreError
from lorif_core.gradients import PROJECTION, GradientPlan, device_of, read_plan
from lorif_core.layers import OneHotRule, PositionRule
from lorif_core.loaders import check_loader, counted, examples_of
from lorif_core.manifest import MANIFEST, SHARDS, Manifest, read_manifest, sizes_of
from lorif_core.measured import measured
from lorif_core.objectives import Batch, Objective, batch_rows, describe, select_rows
from lorif_core.options import PLANNED, IndexOptions, differences
from lorif_core.planning import Shape, entries, plan
from lorif_core.precision import in_precision
from lorif_core.probe import Probe, probe
from lorif_core.projections import Projections, Sizes
from lorif_core.remote import publish
from lorif_core.revisions import refuse_pending, sweep
from lorif_core.rows import IndexRows, made_of
from lorif_core.store import FactorStore, Ids, check_ids, check_rows, not_comparable, shard_rows
from lorif_core.writer import StoreWriter

log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]
"""(what is being done, rows done, rows in all where known)."""
PARTS, SPLIT = "parts", "split.json"
"""The folder in an index where several workers build it, and the file there that says how (`lorif_core.parallel`)."""


@dataclass(frozen=True)
class Part:
    """Consecutive rows of an index that one of several workers builds (`lorif_core.parallel`)."""

    head: Path
    """Folder of the index, whose options, layers and projections are taken as they are."""
    before: int
    """Rows of another worker with which the loader begins: they are in a batch with this part's, run and not stored."""
    rows: int
    shard_rows: int


@dataclass(frozen=True)
class Build:
    """One call of `fit`: what is indexed, how, and where."""

    model: nn.Module
    objective: Objective
    options: IndexOptions
    loader: Iterable[Batch]
    path: Path
    ids: Ids | None
    progress: Progress
    bucket: int
    """Batches of padded texts sorted by length together (`lorif_core.bucketing`)."""
    memory_limit: int
    """Bytes of the sums held at once: of moments, and of a curvature that is fitted anew."""
    part: Part | None = None
    """Which rows of the index at `part.head` are built at `path`; None = all."""

    def run(self) -> Manifest:
        """Index every example of the loader, continuing what an earlier, interrupted call left at the path.

        Raises:
            StoreError: the folder holds an index of another model, other options or data, or another process writes it; ids
                repeat, or are not as many as the examples.
            ValueError: the loader shuffles, a layer cannot be attributed, a gradient is not finite.
        """
        check_loader(self.loader)
        self.check_ids()
        self.path.mkdir(parents=True, exist_ok=True)
        begin = time.perf_counter()
        with single_writer(self.path), frozen(self.model):
            self._check_parts()
            manifest, plan = self._resume() if (self.path / MANIFEST).exists() else self._start()
            manifest = self._write_shards(manifest, plan)
            publish(self.path)
        log.info("indexed %d examples at %s in %.1f s", manifest.examples, self.path, time.perf_counter() - begin)
        return manifest

    def head(self) -> Manifest:
        """Everything of the index but its rows: made now, or read and checked where it is there.

        Raises:
            StoreError: the folder holds an index of another model or other options, or another process writes it.
            ValueError: the loader shuffles, a layer cannot be attributed.
        """
        check_loader(self.loader)
        self.path.mkdir(parents=True, exist_ok=True)
        with single_writer(self.path), frozen(self.model):
            if not (self.path / MANIFEST).exists():
                return self._start()[0]
            manifest = read_manifest(self.path)
            self._check_same(manifest)
            return manifest

    def check_ids(self) -> None:
        """Nothing, when the ids can name the examples, as far as can be said before any is read.

        Raises:
            StoreError: they are of mixed or other types, repeat, or are not as many as the loader says it has examples.
        """
        if self.ids is None:
            return
        check_ids(self.ids)
        examples = counted(self.loader) if self.part is None else self.part.rows
        if examples is not None and len(self.ids) != examples:
            raise StoreError(f"expected one id an example: got {len(self.ids)} ids for {examples} examples")

    def _check_parts(self) -> None:
        """Remove the parts that joining left behind, when nothing of them is needed any more.

        Raises:
            StoreError: they are not joined yet.
        """
        if not (self.path / PARTS).exists():
            return
        if not ((self.path / MANIFEST).exists() and read_manifest(self.path).complete):
            raise StoreError(
                f"{self.path} is being built by several workers (see {PARTS}/{SPLIT}): run it again with as many, "
                f"or remove the folder"
            )
        shutil.rmtree(self.path / PARTS)

    def _start(self) -> tuple[Manifest, GradientPlan]:
        shutil.rmtree(self.path / SHARDS, ignore_errors=True)
        if self.part is not None:
            whole = read_manifest(self.part.head)
            self._check_same(whole)
            plan = read_plan(self.part.head, whole, self.model)
            whole = whole.with_(shards=[], files={}, complete=False)
            whole.write(self.path)
            return whole, plan
        options, device = self.options, device_of(self.model)
        coverage = cover(self.model, options.layers, strict=options.strict)
        seen = probe(self.model, self._precise(self.objective.loss), coverage, self.loader, device, options.strict)
        options, reason = planned(options, seen)
        layers = entries(shapes_of(seen), options)
        projections = self._projections(options, seen, sizes_of(layers))
        gradients = GradientPlan(seen.coverage.layers, projections, seen.shared, seen.modified)
        files = {}
        if projections.measured:
            files[PROJECTION], _ = write_tensors(self.path / PROJECTION, projections.tensors())
        manifest = Manifest(
            options=_plain(options),
            objective=describe(self.objective),
            model=model_fingerprint(self.model),
            layers=layers,
            left_out=seen.coverage.left_out,
            coverage=seen.coverage.share,
            projection=projections.digest(),
            plan=reason,
            shared=seen.shared,
            modified=seen.modified,
            files=files,
        )
        manifest.write(self.path)
        return manifest, gradients

    def _resume(self) -> tuple[Manifest, GradientPlan]:
        manifest = read_manifest(self.path)
        self._check_same(manifest)
        refuse_pending(self.path, manifest)
        sweep(self.path, manifest)
        log.info("continuing at row %d of %s", manifest.examples, self.path)
        if self.part is not None:  # a part lists no projections of its own
            return manifest, read_plan(self.part.head, read_manifest(self.part.head), self.model)
        return manifest, read_plan(self.path, manifest, self.model)

    def _check_same(self, manifest: Manifest) -> None:
        """Nothing, when the index of `manifest` is of this model, objective and options; StoreError otherwise."""
        stored = {**manifest.options, "objective": manifest.objective, "model": manifest.model}
        names = PLANNED if self.options.bytes_per_example is not None else ()
        wanted = {
            **_plain(self.options),
            **{name: stored[name] for name in names},
            "objective": describe(self.objective),
            "model": model_fingerprint(self.model),
        }
        if changed := differences(stored, wanted):
            raise StoreError(
                f"{self.path} holds an index made otherwise ({'; '.join(changed)}): use another folder, or remove this one"
            )

    def _projections(self, options: IndexOptions, seen: Probe, sizes: Sizes) -> Projections:
        layers = seen.coverage.layers
        if options.projection == "identity":
            return kinds.identity(layers)
        if options.projection == "rademacher":
            return kinds.rademacher(layers, sizes, options.seed)
        return measured(
            self.model,
            self.objective,
            options,
            seen,
            sizes,
            self.loader,
            self.memory_limit,
            lambda done: self.progress("projection", done, None),
        )

    def index_rows(self, writer: StoreWriter, plan: GradientPlan, first: int) -> int:
        """Write the loader's examples, which are rows `first` and on of the index; finished ones are only compared.

        Returns:
            How many the loader gave.

        Raises:
            StoreError: finished rows were made from other examples.
            ValueError: a loss or gradient is not finite.
        """
        manifest = writer.manifest
        ranks = {layer.name: layer.rank for layer in manifest.layers}
        total = len(self.ids) if self.ids is not None else examples_of(self.loader)
        digest, row, loss = ExampleDigest(), 0, self._precise(self.objective.loss)
        with plan.open(self.model) as gradients:
            for window, own in self._windows():
                batch = window.batch if own is None else select_rows(window.batch, own)
                done = check_rows(self.path, manifest, batch, first + row, digest)
                if done < batch_rows(batch):
                    made = made_of(window, gradients, loss, ranks, self.options.seed)
                    if own is not None:
                        made = made.select(own)
                    self._check_finite(made, row)
                    writer.append(made, batch, done)
                row += batch_rows(batch)
                self.progress("index", row, total)
        return row

    def _write_shards(self, manifest: Manifest, plan: GradientPlan) -> Manifest:
        rows = shard_rows(row_bytes(manifest.layers, manifest.bits)) if self.part is None else self.part.shard_rows
        with StoreWriter(self.path, manifest, rows) as writer:
            row = self.index_rows(writer, plan, 0)
            if row < manifest.examples:
                raise StoreError(
                    f"{self.path} already holds {manifest.examples} examples, the loader gave only {row}: "
                    "the data changed; use another folder"
                )
            if not manifest.complete:
                return writer.close(self.ids)
        if row > manifest.examples:
            raise StoreError(
                f"{self.path} is finished with {manifest.examples} examples, the loader gave {row}: "
                "the data changed; use another folder"
            )
        if self.ids is not None and FactorStore(self.path, manifest).ids() != list(self.ids):
            raise StoreError(f"{self.path} was indexed under other ids: use another folder, or pass the same ids")
        if unchecked := not_comparable(manifest):
            log.warning("%d rows of %s were only counted: others were purged from among them", unchecked, self.path)
        return manifest

    def _windows(self) -> Iterator[tuple[Window, list[int] | None]]:
        """Windows and which of their rows are this part's, None = all; a window with none is left out.

        A window that two parts share is run whole by both: its arithmetic is that of a build by one process.
        """
        position = 0 if self.part is None else -self.part.before
        for window in windows(self.loader, self.bucket):
            size = batch_rows(window.batch)
            stop = size if self.part is None else min(size, self.part.rows - position)
            own = list(range(max(0, -position), stop))
            position += size
            if own:
                yield window, None if len(own) == size else own

    def _precise(self, loss: Loss) -> Loss:
        return in_precision(loss, self.options.precision, device_of(self.model))

    def _check_finite(self, made: IndexRows, row: int) -> None:
        """Nothing, when every loss and gradient of the window starting at `row` is finite.

        Raises:
            ValueError: naming rows and layers.
        """
        bad, layers = made.not_finite()
        if not bad:
            return
        names = [row + i if self.ids is None else self.ids[row + i] for i in bad]
        raise ValueError(
            f"{len(bad)} examples have a loss or gradient that is not finite: ids {names[:5]}, layers {layers[:5]}; "
            "check these rows' inputs and the model's weights"
        )


def shapes_of(seen: Probe) -> list[Shape]:
    """The layers that are attributed, as `lorif_core.planning` sees them."""
    return [
        Shape(
            layer.name,
            type(layer.module).__name__,
            layer.rows,
            layer.columns,
            isinstance(layer.rule, PositionRule) and layer.name in seen.single,
            isinstance(layer.rule, OneHotRule),
        )
        for layer in seen.coverage.layers
    ]


def planned(options: IndexOptions, seen: Probe) -> tuple[IndexOptions, str]:
    """The options with `PLANNED` filled in where a number of bytes is given, and why."""
    if options.bytes_per_example is None:
        return options, ""
    found = plan(shapes_of(seen), options, options.bytes_per_example)
    log.info("%s", found.reason)
    return found.options, found.reason


def _plain(options: IndexOptions) -> dict[str, Any]:
    """Options as JSON gives them back."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(options).items()}
