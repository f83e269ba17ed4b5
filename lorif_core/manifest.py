"""The manifest of a factor store: what was indexed, how, and which files hold it.

A JSON file written atomically after every shard; `digest` covers everything else in it, so a flipped byte shows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lorif_core.atomic import json_digest, write_bytes
from lorif_core.errors import StoreError

FORMAT = "lorif-factors"
SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
APPEND = "append.json"
SHARDS = "shards"
PARTS = "parts"
"""Where several workers build an index (`lorif_core.parallel`); gone when it is finished."""
QUERIES = "queries"
"""Cached queries (`lorif_core.query_cache`); no part of the index."""
FILE = re.compile(rf"({SHARDS}/|ids\.|projection\.|curvature\.)[\w-][\w.-]*")
"""The names of listed files: nothing outside the index's folder, whoever wrote the manifest."""
PURGED = "purged:"
"""What the digest of a span begins with once rows of it were purged."""


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


def sizes_of(layers: Iterable[LayerEntry]) -> dict[str, tuple[int, int]]:
    """(d1, d2) of each layer, by name."""
    return {layer.name: (layer.d1, layer.d2) for layer in layers}


@dataclass(frozen=True)
class Span:
    """Consecutive rows, and a digest of the examples they were made from."""

    rows: int
    data: str

    @property
    def comparable(self) -> bool:
        """Whether the rows can be compared with examples; after a purge they cannot (`without`)."""
        return not self.data.startswith(PURGED)

    def without(self, rows: list[int]) -> Span:
        """The span without some of its rows, marked by what it was and which are gone: no two purges give the same mark."""
        return Span(self.rows - len(rows), PURGED + json_digest([self.data, rows])) if rows else self


@dataclass(frozen=True)
class ShardEntry:
    """One finished shard: its file, the rows it holds, digests of its bytes, and the spans it was made from."""

    file: str
    start: int
    rows: int
    bytes: int
    sha256: str
    spans: list[Span]
    """One, unless shards were merged."""
    words: str = ""
    """`integrity.word_sum` of its bytes; empty where an older release wrote it."""
    energy: dict[str, float] = field(default_factory=dict)
    """Per layer, the sum of squared norms of its rows' projected gradients before they were factored and coded; after a
    purge the share of the rows that stayed."""


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
    """sha256 of every other file: those of `named` for projection, ids and curvature."""
    curvature: dict[str, Any] | None = None
    revision: int = 0
    """How often rows were appended or purged, or shards merged. Files written then carry it in their names: no name of a
    listed file is ever given to other content, so that a reader with an older manifest never reads other rows."""
    purged: int = 0
    """Rows purged so far."""
    numbered: bool = False
    """Whether the ids on disk are but the numbers the rows had when they were indexed, of which none is given twice: the
    next is `examples + purged`."""

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
        return json_digest([span.data for shard in self.shards for span in shard.spans])

    def file(self, kind: str) -> str | None:
        """The listed file of a kind (projection, ids, curvature)."""
        return next((file for file in self.files if file.partition(".")[0] == kind), None)

    def named(self, kind: str) -> str:
        """What a file of a kind is called when this revision writes it."""
        return f"{kind}.{self.revision:05d}.safetensors" if self.revision else f"{kind}.safetensors"

    def shard_file(self) -> str:
        """What the next shard is called when this revision writes it."""
        number = f"{len(self.shards):05d}.safetensors"
        return f"{SHARDS}/{self.revision:05d}-{number}" if self.revision else f"{SHARDS}/{number}"

    def with_shard(self, shard: ShardEntry) -> Manifest:
        """A copy with one more shard, which starts where the last one ends."""
        return self.with_(shards=[*self.shards, replace(shard, start=self.examples)])

    def with_file(self, kind: str, sha256: str | None) -> Manifest:
        """A copy that lists the file of a kind this revision wrote, or none, in place of the one before."""
        files = {file: sha for file, sha in self.files.items() if file != self.file(kind)}
        return self.with_(files=files | ({self.named(kind): sha256} if sha256 else {}))

    def write(self, folder: Path, name: str = MANIFEST) -> None:
        """Replace the folder's manifest."""
        body = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **asdict(self)}
        write_bytes(folder / name, _rendered(body | {"digest": json_digest(body)}))

    def with_(self, **changes: Any) -> Manifest:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def read_manifest(folder: Path, name: str = MANIFEST) -> Manifest:
    """The manifest of the index in `folder`.

    Raises:
        StoreError: there is none, it is damaged, or a newer version wrote it.
    """
    try:
        text = (folder / name).read_bytes()
    except FileNotFoundError:
        raise StoreError(f"no index at {folder}: {name} is missing; build it with fit(loader, path=...)") from None
    return parse_manifest(text, folder / name)


def parse_manifest(text: bytes, path: Path | str) -> Manifest:
    """The manifest that is written in `text`, which comes from `path`.

    Raises:
        StoreError: it is damaged, or a newer version wrote it.
    """
    try:
        body = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} is damaged ({error}); restore it or rebuild the index") from None
    found = body.get("format") if isinstance(body, dict) else type(body).__name__
    if found != FORMAT:
        raise StoreError(f"{path} is not a factor store's manifest: expected format {FORMAT!r}, got {found!r}")
    canonical = _rendered(body) == text  # a changed blank is not in the digest
    digest = body.pop("digest", None)
    version = body.get("schema_version")
    if type(version) is not int or version < 1:
        raise StoreError(
            f"{path} is damaged: expected a schema version, got {version!r}; restore it or rebuild the index"
        )
    if version > SCHEMA_VERSION:
        raise StoreError(
            f"{path} has schema version {version}, this lorif_core reads up to {SCHEMA_VERSION}: use a newer release"
        )
    if json_digest(body) != digest or not canonical:
        raise StoreError(f"{path} is damaged: its content does not match its digest; restore it or rebuild the index")
    body = {key: value for key, value in body.items() if key not in ("format", "schema_version")}
    try:
        layers = [LayerEntry(**entry) for entry in body.pop("layers")]
        shards = [_shard(entry) for entry in body.pop("shards")]
        manifest = Manifest(layers=layers, shards=shards, **body)
        foreign = [file for file in (*(x.file for x in shards), *manifest.files) if not FILE.fullmatch(file)]
    except (TypeError, KeyError) as error:
        raise StoreError(f"{path} is not one that this lorif_core writes ({error}); rebuild the index") from None
    if foreign:
        raise StoreError(f"{path} lists files that no index has, and is not used: {foreign[:5]}")
    return manifest


def _rendered(body: dict[str, Any]) -> bytes:
    return json.dumps(body, indent=1).encode()


def _shard(entry: dict[str, Any]) -> ShardEntry:
    """A shard as any schema has it: before rows could be purged it had one digest."""
    if "data" in entry:
        entry = entry | {"spans": [{"rows": entry["rows"], "data": entry["data"]}]}
        del entry["data"]
    return ShardEntry(**entry | {"spans": [Span(**span) for span in entry["spans"]]})
