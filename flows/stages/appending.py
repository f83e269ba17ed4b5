"""Stage append: training rows that an index does not have yet are added to it."""

from __future__ import annotations

from pathlib import Path

from curation.errors import ModelError
from flows.stages.common import Arguments, Output, Progress, open_data
from flows.stages.indexing import open_index
from lorif_core import StoreError
from lorif_core.kept import drift


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Add the training rows whose ids the index at ``index_path`` does not have, in their order in the data.

    Rows it has are not looked at again. Killed, the stage goes on where it stopped.

    Returns:
        ``values``: ``added`` and ``rows`` (now), ``gone`` (rows of the index that the data does not have) and the first
        of their ``gone_ids``, ``drift`` of the curvature.

    Raises:
        ModelError: the index is of another model, damaged, being written, or of other ids.
    """
    data = open_data(arguments)
    names = data.train_ids()
    try:
        attributor, _ = open_index(arguments, data, progress)
        known = attributor.store.ids()
        there = set(known)
        new = [row for row, name in enumerate(names) if name not in there]
        if new:
            loader = data.rows_dataloader(new, arguments["index"]["batch_size"])
            attributor.append(loader, ids=[names[row] for row in new])  # type: ignore[arg-type]
    except StoreError as error:
        raise ModelError(f"index.path: {error}") from error
    gone = sorted(there.difference(names), key=str)
    manifest = attributor.store.manifest
    return Output(
        {
            "added": len(new),
            "rows": manifest.examples,
            "gone": len(gone),
            "gone_ids": gone[:5],
            "drift": drift(manifest),
        }
    )
