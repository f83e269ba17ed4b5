"""The manifest of a factor store: what was indexed, how, and which files hold it.

A JSON file written atomically after every shard; `digest` covers everything else in it, so a flipped byte shows.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorif_core.atomic import json_digest, write_bytes
from lorif_core.errors import StoreError

FORMAT = "lorif-factors"
SCHEMA_VERSION = 2
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class LayerEntry:
    """One stored layer: sides of its gradient, projected sides, and the rank of its factors (0: the gradient itself)."""

    name: str
    kind: str
    rows: int
    columns: int
    d1: int
    d2: int
    rank: int

    @property
    def numbers(self) -> int:
        """Stored numbers an example: c (d1 + d2), or D where the gradient itself is stored."""
        return self.rank * (self.d1 + self.d2) or self.size

    @property
    def size(self) -> int:
        """D = d1 d2, the length of the projected gradient."""
        return self.d1 * self.d2


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: its file, the rows it holds, and digests of its bytes and of the examples it was made from."""

    file: str
    start: int
    rows: int
    bytes: int
    sha256: str
    data: str
    energy: dict[str, float] = field(default_factory=dict)
    """Per layer, the sum of squared norms of its rows' projected gradients before they were factored."""


@dataclass(frozen=True)
class Manifest:
    """Everything about an index that is not a tensor."""

    options: dict[str, Any]
    objective: str
    model: str
    layers: list[LayerEntry]
    left_out: dict[str, str]
    coverage: float
    projection: str
    plan: str = ""
    """Why the options are what they are, where `bytes_per_example` planned them."""
    shared: dict[str, int] = field(default_factory=dict)
    """Layers that run once for a whole batch (`capture.Shared`)."""
    modified: list[str] = field(default_factory=list)
    """Layers whose input the model changes in place after they read it."""
    shards: list[ShardEntry] = field(default_factory=list)
    complete: bool = False
    files: dict[str, str] = field(default_factory=dict)
    """sha256 of every other file: projection.safetensors, ids.safetensors, curvature.safetensors."""
    curvature: dict[str, Any] | None = None

    @property
    def examples(self) -> int:
        """Rows in finished shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def bits(self) -> int:
        """Of a stored number."""
        return int(self.options["bits"])

    def energy(self, layer: str) -> float:
        """The sum of squared norms of all examples' projected gradients of a layer, as they were before factoring.

        Raises:
            StoreError: an earlier version wrote the index and did not record it.
        """
        if any(layer not in shard.energy for shard in self.shards):
            raise StoreError(
                f"this index does not record how much of the gradients of {layer} its factors keep, which damping='auto' "
                "needs: build it anew with this version, or give damping a number"
            )
        return sum(shard.energy[layer] for shard in self.shards)

    def data_digest(self) -> str:
        """Digest of the indexed examples, in order."""
        return json_digest([shard.data for shard in self.shards])

    def write(self, folder: Path) -> None:
        """Replace the folder's manifest."""
        body = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}
        write_bytes(folder / MANIFEST, json.dumps(body | {"digest": json_digest(body)}, indent=1).encode())

    def with_(self, **changes: Any) -> Manifest:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the index in `folder`.

    Raises:
        StoreError: there is none, it is damaged, or a newer version wrote it.
    """
    path = folder / MANIFEST
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StoreError(f"no index at {folder}: {MANIFEST} is missing; build it with fit(loader, path=...)") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is damaged ({error}); restore it or rebuild the index") from None
    found = body.get("format") if isinstance(body, dict) else type(body).__name__
    if found != FORMAT:
        raise StoreError(f"{path} is not a factor store's manifest: expected format {FORMAT!r}, got {found!r}")
    digest = body.pop("digest", None)
    if not isinstance(body.get("schema_version"), int):
        raise StoreError(f"{path} is damaged: it has no schema version; restore it or rebuild the index")
    if body["schema_version"] > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {body['schema_version']}, this lorif_core reads up to {SCHEMA_VERSION}: use a newer release"
        )
    if json_digest(body) != digest:
        raise StoreError(f"{path} is damaged: its content does not match its digest; restore it or rebuild the index")
    body = {key: value for key, value in body.items() if key not in ("format", "schema_version")}
    layers = [LayerEntry(**entry) for entry in body.pop("layers")]
    shards = [ShardEntry(**entry) for entry in body.pop("shards")]
    return Manifest(layers=layers, shards=shards, **body)
