"""A curvature that several workers fit: the bytes of one process's, whoever fits what, and nothing wrong is taken."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from lorif_core import Classification, FactorStore, GradDot, LoRIF, verify
from lorif_core.manifest import LayerEntry
from lorif_core.options import CurvatureOptions
from lorif_core.shared_curvature import dealt
from tests.lorif_core.test_store import files, loader, network

KINDS = [
    {"projection": "pca", "projection_factor": 2},
    {"storage": "dense", "bits": 8, "projection_factor": 4, "curvature_rank": 5},
    {"damping": "auto", "projection": "rademacher"},
    {"projection": "kfac"},
]


def attributor(**options: Any) -> LoRIF:
    return LoRIF(network(), Classification(), **options)


def indexed(folder: Path, **options: Any) -> LoRIF:
    """Its rows, and no curvature yet."""
    one = attributor(**options)
    one.build(loader(), folder).run()
    return one


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_the_bytes_are_those_of_one_process(tmp_path: Path, options: dict[str, Any], workers: int) -> None:
    attributor(**options).fit(loader(), tmp_path / "whole")
    indexed(tmp_path / "shared", **options)
    for worker in reversed(range(workers)):
        attributor(**options).fit_layers(tmp_path / "shared", worker, workers)
    shares = list((tmp_path / "shared").glob("curvature.share-*"))
    assert len(shares) == (0 if options.get("projection") == "kfac" else min(workers, 2))  # of two layers
    attributor(**options).finish(tmp_path / "shared")
    assert files(tmp_path / "shared") == files(tmp_path / "whole")
    assert verify(tmp_path / "shared", network(), loader()) == []


def test_rows_fewer_than_a_layers_numbers(tmp_path: Path) -> None:
    for name in ("whole", "shared"):
        attributor(projection="identity").build(loader(20), tmp_path / name).run()
    for worker in range(2):
        attributor(projection="identity").fit_layers(tmp_path / "shared", worker, 2)
    for name in ("whole", "shared"):
        attributor(projection="identity").finish(tmp_path / name)
    assert files(tmp_path / "shared") == files(tmp_path / "whole")


def test_what_a_worker_did_not_do_is_done_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attributor().fit(loader(), tmp_path / "whole")
    indexed(tmp_path / "shared")
    attributor(curvature_rank=3).fit_layers(tmp_path / "shared", 1, 2)  # another curvature's
    with caplog.at_level(logging.INFO, "lorif_core.curvature"):
        attributor().fit_layers(tmp_path / "shared", 0, 2)
        fitted = len(caplog.records)
        attributor().fit_layers(tmp_path / "shared", 0, 2)  # started again: it is there
        assert len(caplog.records) == fitted
    attributor().finish(tmp_path / "shared")
    assert files(tmp_path / "shared") == files(tmp_path / "whole")


def test_a_damaged_share_is_fitted_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    attributor().fit(loader(), tmp_path / "whole")
    indexed(tmp_path / "shared")
    for worker in range(2):
        attributor().fit_layers(tmp_path / "shared", worker, 2)
    share = next((tmp_path / "shared").glob("curvature.share-*-0-of-2-*"))
    data = bytearray(share.read_bytes())
    data[-3] ^= 1
    share.write_bytes(data)
    attributor().finish(tmp_path / "shared")
    assert "is damaged: its layers are fitted again" in caplog.text
    assert files(tmp_path / "shared") == files(tmp_path / "whole")


def test_layers_whose_curvature_is_kept_are_not_fitted_again(tmp_path: Path) -> None:
    attributor().fit(loader(), tmp_path / "index")
    before = files(tmp_path / "index")
    attributor(damping=2.0).fit_layers(tmp_path / "index", 0, 1)  # differs in nothing but the multiplier
    GradDot(network(), Classification()).fit_layers(tmp_path / "index", 0, 1)
    assert files(tmp_path / "index") == before
    assert len(FactorStore.open(tmp_path / "index")) == 203


def test_layers_are_dealt_out_by_what_they_cost() -> None:
    sides = [(64, 64), (8, 8), (32, 32), (64, 64), (16, 16), (64, 64), (8, 8)]
    layers = [LayerEntry(f"layer{i}", "linear", d1, d2, d1, d2, 1) for i, (d1, d2) in enumerate(sides)]
    options = CurvatureOptions(256, 0.5, "mean_norm", 0)
    given = dealt(layers, 10_000, options, 3)
    assert sorted(sum(given, [])) == [layer.name for layer in layers]
    assert [sum(name in {"layer0", "layer3", "layer5"} for name in names) for names in given] == [1, 1, 1]
    assert dealt(layers[:2], 10_000, options, 3)[2] == []
