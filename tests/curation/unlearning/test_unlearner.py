"""Unlearning as one call, on a small model and real training steps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from curation.errors import TrainingError
from curation.training import TrainOptions
from curation.unlearning.alignment import Alignment, by_two_forwards
from curation.unlearning.module import Refresh, Unlearning
from curation.unlearning.objectives import build_objective
from curation.unlearning.rows import Rows
from curation.unlearning.shrinking import shrink
from curation.unlearning.unlearner import unlearn
from curation.unlearning.verification.relearning import part, relearned
from curation.unlearning.verification.scan import scan
from curation.unlearning.weights import Weights, guard_weights, uniform_weights
from tests.curation.unlearning.models import Language, texts

GONE, STAYS = np.arange(6), np.arange(6, 24)


@pytest.fixture(scope="module")
def known() -> tuple[Language, Rows, Rows]:
    """A model that knows 24 texts, 6 of which are to go."""
    torch.set_num_threads(1)
    rows = texts(24, size=4)
    return relearned(Language(), replace(rows, size=24), steps=150, lr=1e-2), part(rows, GONE), part(rows, STAYS)


def run(known, folder, name="difference", options=None, epochs=4, lr=1e-2, weights=None, **extra):
    model, forget, retain = known
    model = relearned(model, forget, steps=0, lr=lr)  # a copy
    given = weights or uniform_weights(len(forget))
    train = TrainOptions(max_epochs=epochs, progress=False)
    return model, unlearn(
        model, build_objective(name, options or {}), forget, retain, given, train, folder, lr=lr, **extra
    )


def test_the_records_go_and_the_rest_stays(known, tmp_path):
    _, forget, retain = known
    model, done = run(known, tmp_path)
    before = [scan(known[0], rows).losses.mean() for rows in (forget, retain)]
    after = [scan(model, rows).losses.mean() for rows in (forget, retain)]
    assert after[0] - before[0] > 1
    assert after[1] - before[1] < 0.5 * (after[0] - before[0])
    assert done.changes.changed > 0
    assert [point["step"] for point in done.curve] == [0, 2, 4, 6, 8]
    assert done.curve[-1]["forget_loss"] == pytest.approx(after[0], rel=1e-4)
    assert done.curve[0]["forget_loss"] == pytest.approx(before[0], rel=1e-4)
    assert done.curve[0]["retain_loss"] == pytest.approx(before[1], rel=1e-4)
    assert done.curve[-1]["retain_loss"] == pytest.approx(after[1], rel=1e-4)  # of the validation after the epoch


def test_an_infinite_temperature_unlearns_as_uniform_weights_do_bit_for_bit(known, tmp_path):
    alignment = np.random.default_rng(0).normal(size=6)
    weights = guard_weights(alignment, float("inf"))
    one, _ = run(known, tmp_path / "a")
    other, _ = run(known, tmp_path / "b", weights=weights)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_record_without_weight_is_spared(known, tmp_path):
    weights = Weights(np.array([0.0, 1.2, 1.2, 1.2, 1.2, 1.2]))
    model, _ = run(known, tmp_path, weights=weights, epochs=3)
    alike, _ = run(known, tmp_path / "alike", epochs=3)
    assert scan(model, known[1]).losses[0] < scan(alike, known[1]).losses[0] - 0.1


def test_weights_are_renewed_while_it_runs(known, tmp_path):
    model, forget, retain = known
    refresh = Refresh(2, 2.0, lambda current: by_two_forwards(current, forget, retain))
    _, done = run(known, tmp_path, refresh=refresh)
    assert done.weights.mean() == pytest.approx(1)
    assert done.weights.std() > 0


def test_a_weighing_that_leaves_too_few_records_any_weight_is_not_taken(known, tmp_path, monkeypatch):
    monkeypatch.setattr("curation.unlearning.weights.LEAST_EFFECTIVE", 0.5)
    lone = Alignment(np.array([-1.0, 0, 0, 0, 0, 0]), 0.0, "two_forwards")
    _, done = run(known, tmp_path, refresh=Refresh(2, 1.0, lambda current: lone))
    assert done.refused > 0 and done.weights.std() == 0


def test_a_bounded_ascent_ends_at_its_bound(known, tmp_path):
    _, done = run(known, tmp_path, "bounded_ascent", {"bound": 1.0}, epochs=50)
    assert len(done.curve) < 30
    assert 0.9 < done.curve[-1]["forget_loss"] < 3


@pytest.mark.parametrize(("name", "options"), [("npo", {"retain": "kl"}), ("simnpo", {}), ("rmu", {"layer": "value"})])
def test_objectives_run_with_their_references(known, tmp_path, name, options):
    _, done = run(known, tmp_path, name, options, epochs=2)
    assert done.curve[-1]["forget_loss"] != done.curve[0]["forget_loss"]


@pytest.mark.parametrize("name", ["dpo", "idk"])
def test_another_answer_can_be_taught(known, tmp_path, name):
    other = part(texts(24, seed=8, size=4), GONE)
    model, _ = run(known, tmp_path, name, epochs=8, alternative=other)
    assert scan(model, other).losses.mean() < scan(known[0], other).losses.mean() - 0.5
    with pytest.raises(ValueError, match="needs another answer to each of the 6 records"):
        run(known, tmp_path / "without", name)


def test_an_oracle_is_matched_record_by_record(known, tmp_path):
    _, forget, retain = known
    oracle = relearned(Language(seed=4), replace(retain, size=18), steps=60, lr=1e-2)
    wanted = scan(oracle, forget).losses
    extra = {"oracle": oracle, "schedule": "cosine", "retain_per_record": 2}
    model, done = run(known, tmp_path, "oracle_matching", {"alpha": 1.0, "reach": 1e-3}, epochs=25, lr=2e-2, **extra)
    after = scan(model, forget).losses
    assert np.abs(after - wanted).max() < 0.25 * np.abs(scan(known[0], forget).losses - wanted).max()
    assert scan(model, retain).losses.mean() < 0.5 * scan(oracle, forget).losses.mean()
    assert done.curve[-1]["forget_loss"] == pytest.approx(after.mean(), rel=1e-4)
    with pytest.raises(ValueError, match="needs a model that never saw the records"):
        run(known, tmp_path / "without", "oracle_matching")


def test_it_can_start_on_the_way_back_to_fresh_weights(known, tmp_path):
    """With no step worth the name it ends where it started, at the share of the weights that was kept."""
    fresh = Language(seed=6)
    model, _ = run(known, tmp_path, lr=1e-12, epochs=1, fresh=fresh, kept=0.75)
    for found, old, new in zip(model.parameters(), known[0].parameters(), fresh.parameters(), strict=True):
        torch.testing.assert_close(found, 0.75 * old + 0.25 * new, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="a fresh model is needed for the rest"):
        run(known, tmp_path / "a", kept=0.5)
    with pytest.raises(ValueError, match="kept: expected a share above 0"):
        shrink(Language(), fresh, 0.0)
    with pytest.raises(ValueError, match="of another kind: 7 parameters do not fit"):
        shrink(Language(), torch.nn.Linear(2, 2), 0.5)
    held = Language()
    held.head.requires_grad_(False)
    shrink(held, fresh, 0.5)
    assert torch.equal(held.head.weight, Language().head.weight)


def test_interrupted_it_goes_on_to_the_same_weights(known, tmp_path, monkeypatch):
    whole, done = run(known, tmp_path / "whole", "npo")
    note = Unlearning._note
    stopped = []

    def stop(self):
        if len(self.curve) == 3 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return note(self)

    monkeypatch.setattr(Unlearning, "_note", stop)
    with pytest.raises(KeyboardInterrupt):
        run(known, tmp_path / "part", "npo")
    again, resumed = run(known, tmp_path / "part", "npo")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert resumed.curve == done.curve


def test_no_change_and_wrong_counts_are_errors(known, tmp_path):
    with pytest.raises(TrainingError, match="changed none of the"):
        run(known, tmp_path / "a", lr=1e-30)
    with pytest.raises(ValueError, match="one weight a record: got 5 for 6"):
        run(known, tmp_path / "b", weights=uniform_weights(5))
