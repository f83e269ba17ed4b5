"""LoRIF's results do not depend on batches, shards, blocks or interruptions, on the oracle's zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lorif_core.curvature as curvature_module
import lorif_core.index as index_module
import lorif_core.projections as projections_module
import lorif_core.scoring as scoring_module
from lorif_core import FactorStore, StoreError
from tests.lorif_core.against_oracle import (
    Stop,
    StoppingLoader,
    batches,
    exact,
    expected_gradients,
    fitted,
    loader,
    stored_gradients,
)
from tests.oracle import zoo
from tests.oracle.compare import assert_close_report
from tests.oracle.gradients import all_gradients
from tests.oracle.scores import dense_scores

GRADIENTS, SCORES = 1e-5, 1e-4
PCA = {"projection": "pca", "projection_factor": 2, "factor_rank": 1, "bits": 16}
RADEMACHER = {"projection": "rademacher", "projection_factor": 2, "factor_rank": 2, "bits": 16}


def rows_per_shard(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Shards of a few rows: their usual size is megabytes."""
    monkeypatch.setattr(index_module, "shard_rows", lambda bytes_per_example: rows)


@pytest.mark.parametrize("name", ["mlp", "mlp_shared", "cnn_batchnorm", "gpt_padded", "bag_dict", "gpt_conv1d"])
def test_batch_size_does_not_matter(name: str, tmp_path: Path) -> None:
    case = zoo.build(name)
    train, query = expected_gradients(name)
    expected = dense_scores(query, train, 0.5, "mean_norm")
    for batch_size in (1, 2, 6, 13):
        attributor = fitted(case, tmp_path / str(batch_size), batch_size)
        for layer, gradients in stored_gradients(tmp_path / str(batch_size)).items():
            assert_close_report(gradients, train[layer], GRADIENTS, f"{name} {layer}, batches of {batch_size}")
        scores = attributor.score(loader(case.query, min(batch_size, 4)))
        assert_close_report(scores, expected, SCORES, f"{name}, batches of {batch_size}")


@pytest.mark.parametrize("positions", [20_000, 8], ids=["all rows", "a sample"])
def test_batch_size_does_not_matter_to_pca(positions: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor which rows its covariances are estimated from, where there are more than it reads."""
    monkeypatch.setattr(projections_module, "PCA_POSITIONS", positions)
    case = zoo.build("wide_mlp")
    scores = [
        fitted(case, tmp_path / str(size), size, projection="pca").score(loader(case.query)) for size in (1, 3, 13)
    ]
    for other in scores[1:]:
        assert_close_report(other, scores[0], SCORES, "pca scores of other batch sizes")


class Sometimes(nn.Module):
    """Its second layer is called only for batches that have an example with a positive first feature."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        positive = x[:, :1] > 0
        if positive.any():
            y = torch.where(positive, self.second(y), y)
        return self.head(y)


def test_a_layer_that_a_batch_does_not_reach_has_zero_gradients_there(tmp_path: Path) -> None:
    model, generator = Sometimes(), torch.Generator().manual_seed(0)
    zoo.randomise(model, generator)
    items = zoo.vectors(generator, (6,), 3)[:12]
    for row, (x, _) in enumerate(items):
        x[0] = 1.0 if row < 5 else -1.0  # the batch of rows 8 to 11 never calls the second layer
    case = zoo.ZooCase("sometimes", model, "classification", items, items[:2], ["first", "second", "head"])
    train = all_gradients(model, case.loss, case.train_examples, case.layers)
    attributor = fitted(case, tmp_path)
    for layer, gradients in stored_gradients(tmp_path).items():
        assert_close_report(gradients, train[layer], GRADIENTS, layer)
    query = {layer: g[-1:] for layer, g in train.items()}
    scores = attributor.score(batches(items[-1:], 1))
    assert_close_report(scores, dense_scores(query, train, 0.5, "mean_norm"), SCORES, "a query without the layer")


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("name", ["mlp", "gpt_padded"])
def test_shards_and_blocks_do_not_matter(name: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = zoo.build(name)
    queries = loader(case.query)
    one = fitted(case, tmp_path / "one")
    rows_per_shard(monkeypatch, rows)
    monkeypatch.setattr(scoring_module, "BLOCK_NUMBERS", 300)
    monkeypatch.setattr(curvature_module, "BLOCK_NUMBERS", 300)
    many = fitted(case, tmp_path / "many")
    assert len(one.store.manifest.shards) == 1
    assert [shard.rows for shard in many.store.manifest.shards] == [rows] * (13 // rows) + [13 % rows] * (13 % rows > 0)
    first, second = stored_gradients(tmp_path / "one"), stored_gradients(tmp_path / "many")
    assert all(torch.equal(first[layer], second[layer]) for layer in first)
    assert torch.equal(one.store.losses(), many.store.losses())
    train, query = expected_gradients(name)
    expected = dense_scores(query, train, 0.5, "mean_norm")
    assert_close_report(many.score(queries), expected, SCORES, f"{name}, shards of {rows}")
    assert_close_report(many.self_influence(), one.self_influence(), GRADIENTS, f"{name}, shards of {rows}: own")
    best = many.top_k(queries, 4)
    assert_close_report(best.scores, expected.topk(4).values, SCORES, f"{name}, shards of {rows}: top 4")
    assert_close_report(expected.gather(1, best.indices), expected.topk(4).values, SCORES, "rows of the top 4")


@pytest.mark.parametrize(
    ("name", "options", "before", "error"),
    [
        ("gpt_padded", {"bucket": 1}, 1, Stop),
        ("gpt_padded", {"bucket": 2}, 3, Stop),
        ("wide_cnn", {"factor_rank": 2}, 2, KeyboardInterrupt),
        ("wide_mlp", PCA, 3, Stop),
        ("wide_gpt", PCA, 1, KeyboardInterrupt),
        ("wide_mlp", RADEMACHER, 2, Stop),
        ("wide_gpt", RADEMACHER, 3, KeyboardInterrupt),
    ],
)
def test_an_interrupted_fit_continues_bit_identically(
    name: str,
    options: dict[str, Any],
    before: int,
    error: type[BaseException],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Shards of 3 rows and batches of 4: a shard ends inside a batch."""
    rows_per_shard(monkeypatch, 3)
    case = zoo.build(name)
    whole = fitted(case, tmp_path / "whole", **options)
    reading = 3 if options.get("projection") == "pca" else 2  # the last pass over the data is the one that writes
    broken = StoppingLoader(batches(case.train, 4), before, error, reading)
    with pytest.raises(error):
        exact(case, **options).fit(broken, tmp_path / "parts")
    assert broken.read == reading
    with pytest.raises(StoreError, match="unfinished"):
        FactorStore.open(tmp_path / "parts")
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "parts" / "shards").glob("*.safetensors")}
    together = options.get("bucket", 1)
    assert len(kept) == before // together * together * 4 // 3
    (tmp_path / "parts" / "shards" / "00099.safetensors").write_bytes(b"half a shard")
    resumed = exact(case, **options).fit(loader(case.train), tmp_path / "parts")
    assert all(p.stat().st_mtime_ns == time for p, time in kept.items()), "a finished shard was written again"
    one, other = files(tmp_path / "whole"), files(tmp_path / "parts")
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == [], "files differ after resuming"
    assert torch.equal(whole.score(loader(case.query)), resumed.score(loader(case.query)))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


def test_a_loader_that_can_be_read_once_is_refused_or_whole(tmp_path: Path) -> None:
    """A generator's first batch must not be lost to a first look at the data."""
    case = zoo.build("mlp")
    expected, _ = expected_gradients("mlp")
    try:
        exact(case).fit((batch for batch in loader(case.train)), tmp_path)
    except ValueError:
        return
    for layer, gradients in stored_gradients(tmp_path).items():
        assert_close_report(gradients, expected[layer], GRADIENTS, layer)
