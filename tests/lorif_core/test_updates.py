"""Curvature updated for rows added and removed, against dense float64 matrices and against a fit of what is then there.

Axes: D = 30 a flattened gradient, r = 6 directions.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lorif_core import LoRIF, updates
from lorif_core.inverse import DualInverse, KernelInverse
from lorif_core.kept import REFIT_SHARE, drift
from lorif_core.updates import Spectrum
from tests.lorif_core.test_lasting import NAMES, attributor, fitted, part, rows_of
from tests.lorif_core.test_store import loader, network

SIZE, RANK = 30, 6


def gradients(count: int, seed: int) -> Tensor:
    """Rows whose second moment falls off, float64 [count, D]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, generator=generator, dtype=torch.float64) * 0.8 ** torch.arange(SIZE)


def spectrum(rows: Tensor, rank: int) -> Spectrum:
    values, vectors = torch.linalg.eigh(rows.T @ rows)
    return Spectrum(vectors.flip(1)[:, :rank], values.flip(0)[:rank])


def dense(of: Spectrum) -> Tensor:
    return of.vectors * of.values @ of.vectors.T


def orthonormal(of: Spectrum) -> bool:
    return torch.allclose(of.vectors.T @ of.vectors, torch.eye(of.vectors.shape[1], dtype=torch.float64), atol=1e-9)


def test_with_every_direction_updates_are_exact() -> None:
    kept, gone, new = gradients(200, 0), gradients(20, 1), gradients(50, 2)
    found = spectrum(torch.cat([kept, gone]), SIZE)
    for block in new.split(16):
        found = found.add(block, SIZE)
    found = found.remove(gone)
    rows = torch.cat([kept, new])
    torch.testing.assert_close(dense(found), rows.T @ rows)
    assert orthonormal(found) and found.drift < 1e-8 * float(rows.square().sum())
    few = Spectrum(torch.zeros(SIZE, 0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)).add(rows[:4], RANK)
    torch.testing.assert_close(dense(few), rows[:4].T @ rows[:4])
    assert len(few.values) == 4 and orthonormal(few)
    nothing = few.add(torch.zeros(3, SIZE, dtype=torch.float64), RANK).remove(rows[:4])
    assert float(dense(nothing).abs().max()) < 1e-9 and bool((nothing.values >= 0).all())


@pytest.mark.parametrize("seed", range(5))
def test_drift_bounds_what_truncated_updates_neglect(seed: int) -> None:
    """The nuclear norm of the difference from the same changes without truncation; equal to it for one addition."""
    old, new = gradients(100, seed), gradients(40, 50 + seed)
    start = spectrum(old, RANK)
    added = start.add(new, RANK)
    whole = dense(start) + new.T @ new
    assert added.drift == pytest.approx(float(torch.linalg.svdvals(whole - dense(added)).sum()))
    found, exact = added, whole
    for step in range(4):
        gone, more = old[10 * step : 10 * step + 10], gradients(10, 100 + step)
        found, exact = found.remove(gone).add(more, RANK), exact - gone.T @ gone + more.T @ more
        assert orthonormal(found) and bool((found.values >= 0).all())
        assert float(torch.linalg.svdvals(exact - dense(found)).sum()) <= found.drift * (1 + 1e-9)


@pytest.mark.parametrize("rule", ["mean_norm", "trace", "paper", "absolute"])
def test_damping_is_that_of_a_fit(tmp_path: Path, rule: str) -> None:
    """From the exact trace; the paper's rule has to guess the few directions beyond r."""
    one = fitted(tmp_path, 150, curvature_rank=5, damping_rule=rule)
    one.append(part(150, 203), ids=NAMES[150:203])
    one.purge(NAMES[:20])
    updated = one.store.manifest.curvature["damping"]
    fit = one.refit().store.manifest.curvature["damping"]
    assert updated == pytest.approx(fit, rel=0.1 if rule == "paper" else 1e-5)


@pytest.mark.parametrize(("rank", "kind"), [("auto", KernelInverse), (9, DualInverse)])
def test_few_rows_are_fitted_anew(tmp_path: Path, rank: int | str, kind: type) -> None:
    """D > N: the update is the fit of the rows that are there, and has no drift."""
    options = {"projection": "identity", "factor_rank": 2, "curvature_rank": rank}
    one = fitted(tmp_path / "a", 40, **options).append(part(40, 60), ids=NAMES[40:60])
    assert all(isinstance(x, kind) for x in one.curvature.values())
    one.purge(NAMES[50:60])
    whole = fitted(tmp_path / "b", 50, **options)
    torch.testing.assert_close(one.score(loader(7)), whole.score(loader(7)), rtol=1e-5, atol=1e-5)
    assert drift(one.store.manifest) == 0


def test_scores_stay_close_until_a_refit_is_due(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = fitted(tmp_path, 180, curvature_rank=12)
    assert drift(one.store.manifest) == 0
    with caplog.at_level(logging.WARNING):
        one.append(part(180, 184), ids=NAMES[180:184])
    share = drift(one.store.manifest)
    assert 0 < share < REFIT_SHARE and not caplog.text
    updated = one.score(loader(9))
    exact = LoRIF.load(tmp_path, network()).refit().score(loader(9))
    agreement = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(updated, exact, strict=True)]
    assert min(agreement) > 0.99
    one = LoRIF.load(tmp_path, network())
    assert drift(one.store.manifest) == 0 and torch.equal(one.score(loader(9)), exact)
    with caplog.at_level(logging.WARNING):
        one.append(part(190, 300), ids=NAMES[190:300])
    assert drift(one.store.manifest) > REFIT_SHARE and "call refit()" in caplog.text


def test_a_curvature_of_other_options_is_left_alone(tmp_path: Path) -> None:
    """What is kept is updated under the options it was fitted with, whatever the attributor at hand asks for."""
    fitted(tmp_path, 150, curvature_rank=5)
    other = LoRIF.load(tmp_path, network(), curvature_rank=2)
    other.append(part(150, 160), ids=NAMES[150:160])
    assert other.store.manifest.curvature["options"]["curvature_rank"] == 5
    assert all(x.values.numel() == 2 for x in other.curvature.values())


def test_a_direction_of_removed_rows_alone_goes_with_them() -> None:
    others, alone = gradients(50, 0), torch.zeros(1, SIZE, dtype=torch.float64)
    others[:, 0], alone[0, 0] = 0, 100
    found = spectrum(torch.cat([others, alone]), RANK).remove(alone)
    assert found.vectors.shape == (SIZE, RANK - 1)
    assert float(found.vectors[0].abs().max()) < 1e-9


@pytest.mark.parametrize("rule", ["mean_norm", "paper"])
def test_without_directions_only_damping_changes(tmp_path: Path, rule: str) -> None:
    one = fitted(tmp_path, 100, curvature_rank=0, damping_rule=rule)
    one.append(part(100, 150), ids=NAMES[100:150])
    one.purge(NAMES[:20])
    assert drift(one.store.manifest) == 0 and all(not len(x.values) for x in one.curvature.values())
    updated = one.score(loader(5))
    torch.testing.assert_close(updated, one.refit().score(loader(5)), rtol=1e-4, atol=1e-5)


def test_an_update_reads_no_row_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trace lambda follows from is kept by the fit, and by every update."""
    one = fitted(tmp_path, 150, curvature_rank=5)
    monkeypatch.setattr(updates, "_trace", lambda blocks: pytest.fail("all rows are read"))
    one.append(part(150, 203), ids=NAMES[150:203])
    one.purge(NAMES[:20])
    kept = one.store.manifest.curvature["trace"]
    rows = rows_of(one.store)
    for layer in one.store.manifest.layers:
        assert kept[layer.name] == pytest.approx(float(rows[layer.name].double().square().sum()), rel=1e-6)


def test_what_factors_lost_is_followed_through_a_purge(tmp_path: Path) -> None:
    """Where rows differ in size, what is left of the whole norm is that of the rows that stay, not a share of their number."""
    options = {"projection": "identity", "factor_rank": 1}
    one = fitted(tmp_path / "a", 120, **options)
    name = one.store.manifest.layers[0].name
    order = rows_of(one.store)[name].square().sum(1).argsort(descending=True)
    one.purge([NAMES[i] for i in order[:30].tolist()])
    gone = tuple(order[:30].tolist())
    exact = attributor(**options).fit(part(0, 120, gone), tmp_path / "b").store.manifest.energy(name)
    assert one.store.manifest.energy(name) == pytest.approx(exact, rel=0.02)


def test_a_purge_may_fit_anew(tmp_path: Path) -> None:
    one = fitted(tmp_path / "a", 150, curvature_rank=5)
    one.purge(NAMES[:20], refit=True)
    assert drift(one.store.manifest) == 0
    exact = attributor(curvature_rank=5).fit(part(20, 150), tmp_path / "b")
    torch.testing.assert_close(one.score(loader(5)), exact.score(loader(5)), rtol=1e-3, atol=1e-4)


def test_a_damaged_curvature_does_not_stop_a_purge(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one = fitted(tmp_path, 60, curvature_rank=7)
    file = tmp_path / "curvature.safetensors"
    file.write_bytes(file.read_bytes() + b"?")
    with caplog.at_level(logging.WARNING):
        one.purge(NAMES[:3])
    assert "curvature.safetensors is damaged" in caplog.text
    assert one.store.manifest.curvature["options"]["curvature_rank"] == 7
    whole = attributor(curvature_rank=7).fit(part(3, 60), tmp_path / "b")
    torch.testing.assert_close(one.score(loader(5)), whole.score(loader(5)), rtol=1e-4, atol=1e-5)


def test_with_no_directions_all_of_the_rows_is_drift() -> None:
    old, new = gradients(50, 0), gradients(20, 1)
    added, size = spectrum(old, RANK).add(new, 0), float(new.square().sum())
    whole = dense(spectrum(old, RANK)) + new.T @ new
    assert len(added.values) == 0 and added.drift == pytest.approx(float(torch.linalg.svdvals(whole).sum()))
    assert added.remove(new).drift == pytest.approx(added.drift + size)


@pytest.mark.parametrize("change", ["append", "purge", "refit"])
def test_what_is_fitted_anew_keeps_to_the_memory_limit(
    change: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fitted(tmp_path, 150, damping="auto")
    one = LoRIF.load(tmp_path, network(), memory_limit=1)  # so little that it is said to be too little
    with caplog.at_level(logging.WARNING):
        if change == "append":
            one.append(part(150, 160), ids=NAMES[150:160])
        elif change == "purge":
            one.purge(NAMES[:2], refit=True)
        else:
            updates.refit(tmp_path, memory_limit=1)
    assert "needs more than memory_limit=1 bytes" in caplog.text
