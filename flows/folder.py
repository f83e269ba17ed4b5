"""The folder of one stage: the manifest that says it is finished, and whether its bytes are still those written.

``manifest.json`` is written last. It lists every file the stage made with its sha256, and seals itself with a digest of
its own content, so that a flipped byte anywhere shows before a result is used again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flows.files import digest_file, digest_of, read_json, write_json

SCHEMA = 2
MANIFEST, LOG, INPUTS, JOB, USED = "manifest.json", "log.txt", "inputs.json", "job.json", "used"
Progress = Callable[[str, int, int | None], None]
_OWN = (MANIFEST, LOG, INPUTS, JOB, USED)  # the runner's, not the stage's


class Damaged(Exception):
    """The folder is not what the stage wrote; the text names the file."""


def write_manifest(folder: Path, result: Mapping[str, Any], spent: Collection[str] = ()) -> Path:
    """Mark the stage of ``folder`` finished.

    Args:
        folder: holds all that the stage made.
        result: ``stage``, ``digest``, ``values``, ``files`` (name -> path inside the folder) and ``seconds``.
        spent: paths inside the folder that are about to be removed.

    Returns:
        The manifest's path.
    """
    contents = _digests(folder, [path for path in _contents(folder) if path not in spent])
    body = {"schema": SCHEMA, **result, "sha256": contents}
    return write_json(folder / MANIFEST, body | {"seal": digest_of(body)})


def read_manifest(
    folder: Path, digest: str, progress: Progress = lambda text, done, total: None
) -> dict[str, Any] | None:
    """What `write_manifest` wrote, every byte of the folder's files checked.

    Args:
        folder: of the stage.
        digest: of the stage's inputs.
        progress: told of the files checked; a gigabyte takes seconds.

    Returns:
        The manifest; None when the stage of these inputs has not finished there.

    Raises:
        Damaged: a file is not as it was written, or is gone.
    """
    file = folder / MANIFEST
    if not file.is_file():
        return None
    manifest = read_json(file)
    if manifest is None or manifest.pop("seal", None) != digest_of(manifest):
        raise Damaged(f"{file} is damaged")
    if manifest["schema"] != SCHEMA or manifest["digest"] != digest:
        return None
    written = manifest["sha256"]
    for path in written:
        if not (folder / path).is_file():
            raise Damaged(f"{folder / path} is missing")
    for path, sha256 in _digests(folder, list(written), progress).items():
        if sha256 != written[path]:
            raise Damaged(f"{folder / path} is damaged: its bytes are not those that were written")
    return manifest


def _digests(folder: Path, paths: Sequence[str], progress: Progress = lambda text, done, total: None) -> dict[str, str]:
    """Path -> sha256 of each file, some at a time: hashing one takes one core."""
    found = {}
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for path, sha256 in zip(paths, pool.map(lambda path: digest_file(folder / path), paths), strict=True):
            found[path] = sha256
            progress("checking what is kept, file", len(found), len(paths))
    return found


def _contents(folder: Path) -> list[str]:
    """Paths inside ``folder`` of every file a stage made; names that start with a dot are locks and unfinished files."""
    found = []
    for place, _, names in os.walk(folder):
        found += [Path(place, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(path for path in found if path not in _OWN)
