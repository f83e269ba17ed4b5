"""Readers while one writer works: every row they get is the row its id says, or they are told to open the index again."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from lorif_core import FactorStore, StoreError, verify
from tests.killing import Server
from tests.lorif_core.test_kills import server  # noqa: F401 - a fixture
from tests.lorif_core.test_lasting import NAMES, fitted
from tests.lorif_core.test_store import network


def test_rows_are_those_of_their_ids_whatever_the_writer_does(
    server: Server,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole = fitted(tmp_path / "whole", projection="pca", projection_factor=2)
    losses = dict(zip(whole.store.ids(), whole.store.losses().tolist(), strict=True))
    folder, seen, told = tmp_path / "index", set(), []
    assert not server.attempt("fit", folder, None)

    def write() -> None:
        for step in ("append", "purge", "compact"):
            assert not server.attempt(step, folder, None)

    writer = threading.Thread(target=write)
    writer.start()
    going = True
    while going:
        going = writer.is_alive()  # and once more when it is done
        try:
            store = FactorStore.open(folder)
            names = store.ids()
            rows = torch.cat([block.left for block in store.blocks("0", 7)])
            found = store.losses().tolist()
        except StoreError as error:
            assert "open it again" in str(error), error
            told.append(error)
            continue
        assert len(names) == len(rows) == len(found)
        assert all(losses[name] == loss for name, loss in zip(names, found, strict=True))
        seen.add(len(names))
    writer.join()
    last = 203 - len(NAMES[0:203:3])
    assert last in seen <= {120, 203, last}
    assert verify(folder, network()) == []
