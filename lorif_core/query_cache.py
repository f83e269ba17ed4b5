"""Preconditioned queries kept beside an index, so that the same queries asked again cost no gradient.

    queries/<key>.safetensors    per layer, float32 [Q, d1, d2], and the sha256 of it all

A key is a digest of everything the tensors follow from: the queries themselves, the objective, the model, the precision of
the pass, the projections and the inverse curvature. A file is written whole or not at all; one that does not hold what it
should is made again. The newest few are kept. Nothing here belongs to the index: the folder can be removed at any time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from lorif_core.atomic import json_digest, write_tensors
from lorif_core.digests import ExampleDigest, model_fingerprint, tensors_digest
from lorif_core.inverse import LayerInverse, to_tensors
from lorif_core.manifest import QUERIES
from lorif_core.objectives import BUILT_IN, Batch, Objective, batch_rows, describe, only_tensors, tensors_of
from lorif_core.precision import Precision
from lorif_core.store import FactorStore

log = logging.getLogger(__name__)

KEPT = 8
MOST_BYTES = 2**26
"""Of one file; more queries at once are not kept: writing them takes as long as what it saves."""
_DIGEST = "sha256"


BATCH_BYTES = 2**28
"""Of the queries' inputs held at once."""


@dataclass(frozen=True)
class QueryCache:
    """The folder of one index's queries, for one objective and curvature: what `origin` says, in any JSON."""

    folder: Path
    origin: dict[str, str]

    def key(self, batches: Sequence[Batch]) -> str:
        """Digest of the queries of some batches, and of `origin`; empty, and nothing kept, where they are more than tensors."""
        digest = ExampleDigest()
        for batch in batches:
            if not only_tensors(batch):  # an option of the model, say, which no digest of rows has
                return ""
            digest.update(batch, 0, batch_rows(batch))
        return json_digest({**self.origin, "queries": digest.take()})

    def read(self, key: str, device: torch.device) -> dict[str, Tensor] | None:
        """What was kept under a key; None where nothing whole is."""
        if not key:
            return None
        file = self.folder / f"{key}.safetensors"
        try:
            found = load(file.read_bytes())
            if bytes(found.pop(_DIGEST, torch.zeros(0, dtype=torch.uint8)).tolist()).hex() != _seal(key, found):
                raise SafetensorError("its digest is another")
        except FileNotFoundError:
            return None
        except OSError as error:  # the scores do not depend on it
            log.warning("%s cannot be read (%s): computing its queries again", file, error)
            return None
        except (SafetensorError, ValueError) as error:
            log.warning("%s is damaged (%s): computing its queries again", file, error)
            return None
        with suppress(OSError):  # of a folder that cannot be written
            os.utime(file)
        log.info("queries read from %s", file)
        return {name: tensor.to(device) for name, tensor in found.items()}

    def write(self, key: str, queries: dict[str, Tensor]) -> None:
        """Keep queries under a key, if they are not too large, and remove the oldest of more than `KEPT`."""
        if not key or sum(tensor.numel() * tensor.element_size() for tensor in queries.values()) > MOST_BYTES:
            return
        tensors = {name: tensor.cpu() for name, tensor in queries.items()}
        seal = torch.tensor(list(bytes.fromhex(_seal(key, tensors))), dtype=torch.uint8)
        try:
            self.folder.mkdir(exist_ok=True)
            write_tensors(self.folder / f"{key}.safetensors", {**tensors, _DIGEST: seal})
            files = sorted(self.folder.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
            for file in files[KEPT:]:
                file.unlink(missing_ok=True)
        except OSError as error:  # the scores do not depend on it: a read-only index can be asked too
            log.warning("queries are not kept in %s: %s", self.folder, error)


def together(loader: Iterable[Batch], most: int) -> Iterator[list[Batch]]:
    """Batches of at least `most` examples or `BATCH_BYTES` in all."""
    waiting: list[Batch] = []
    rows = size = 0
    for batch in loader:
        waiting.append(batch)
        rows += batch_rows(batch)
        size += sum(tensor.numel() * tensor.element_size() for _, tensor in tensors_of(batch))
        if rows >= most or size >= BATCH_BYTES:
            yield waiting
            waiting, rows, size = [], 0, 0
    if waiting:
        yield waiting


def query_cache(
    store: FactorStore,
    model: nn.Module,
    objective: Objective,
    precision: Precision,
    inverses: Mapping[str, LayerInverse],
) -> QueryCache | None:
    """Where an index's queries are kept; None where the objective is not a built-in one, as nothing identifies its code.

    Nor are those of a built-in one that was given attributes of its own, a measure perhaps.
    """
    if type(objective) not in BUILT_IN.values() or vars(objective):
        return None
    manifest = store.manifest
    tensors, damping = to_tensors(dict(inverses)), {name: repr(inverse.damping) for name, inverse in inverses.items()}
    origin = {
        "objective": describe(objective),
        "model": model_fingerprint(model),  # as it is now: it may have been trained on since it was indexed
        "attributes": _attributes(model),
        "precision": precision,
        "projection": manifest.projection,
        "layers": json_digest([asdict(layer) for layer in manifest.layers]),
        "curvature": json_digest([tensors_digest(tensors), damping]),
    }
    return QueryCache(store.path / QUERIES, origin)


def _attributes(model: nn.Module) -> str:
    """Digest of the modules' plain attributes (a temperature, say), which the model's fingerprint leaves out."""
    plain = (bool, int, float, str, type(None))
    found = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if key != "training" and isinstance(value, plain)
    }
    return json_digest({key: repr(value) for key, value in found.items()})


def _seal(key: str, tensors: dict[str, Tensor]) -> str:
    return json_digest([key, tensors_digest(tensors)])
