from __future__ import annotations

import numpy as np
import pytest
import torch

from curation.unlearning.rows import Rows
from curation.unlearning.verification.quantisation import quantised
from curation.unlearning.verification.relearning import losses_after_relearning, relearned
from curation.unlearning.verification.scan import scan
from curation.unlearning.verification.verdicts import Probe, judge, worst
from tests.curation.unlearning.models import Language, texts

N, SEEDS, TOLERANCE = 60, 5, 5.0


def world(seed: int):
    """Losses of 60 records under seeds that never saw them; and one more such model, and the model that did."""
    draw = np.random.default_rng(seed)
    center = draw.uniform(2, 4, N)
    retrained = center + 0.1 * draw.normal(size=(SEEDS, N))
    return retrained, center + 0.1 * draw.normal(size=N), 0.05 * draw.random(N)


def test_a_model_retrained_from_another_seed_passes():
    passed = 0
    for seed in range(50):
        retrained, another, before = world(seed)
        passed += judge({"direct": Probe(another, retrained, before)}, TOLERANCE).worst == "CONSISTENT_WITH_RETRAIN"
    assert passed >= 48


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (lambda another, before: before, "RESIDUAL"),  # unchanged
        (lambda another, before: another + 5, "OVER_UNLEARNED"),  # refuses, or noise
        (lambda another, before: np.where(np.arange(N) == 17, 0.1, another), "RESIDUAL"),  # one record still there
        (lambda another, before: np.where(np.arange(N) == 17, 9.0, another), "OVER_UNLEARNED"),
    ],
)
def test_the_worst_record_decides(after, verdict):
    retrained, another, before = world(0)
    found = judge({"direct": Probe(after(another, before), retrained, before)}, TOLERANCE)
    assert found.worst == verdict
    assert found.gaps["direct"].shape == (N,)


def test_noise_is_no_memory_where_models_are_sure_of_a_wrong_answer():
    """Some records cost models that never saw them more than blind guessing does."""
    retrained, another, before = world(0)
    sure = np.where(np.arange(N) % 2, 3.0, 0.0)  # up to 7 nats
    noise = Probe(np.full(N, 4.6), retrained + sure, before)
    assert judge({"direct": noise}, TOLERANCE, blind=4.6).worst == "OVER_UNLEARNED"
    assert judge({"direct": noise}, TOLERANCE).worst == "RESIDUAL"
    known = Probe(np.where(np.arange(N) == 17, 0.1, another + sure), retrained + sure, before)
    assert judge({"direct": known}, TOLERANCE, blind=4.6).verdicts[17] == "RESIDUAL"


def test_losses_that_vary_more_the_larger_they_are_are_judged_alike():
    """Records of 1 to 10 nats whose spread between seeds grows with their size: the largest stay within bounds."""
    draw = np.random.default_rng(1)
    center, passed = draw.uniform(1, 10, N), 0
    for _ in range(50):
        losses = center + 0.06 * center**0.5 * draw.normal(size=(SEEDS + 1, N))
        probe = Probe(losses[0], losses[1:], 0.05 * draw.random(N))
        passed += judge({"direct": probe}, TOLERANCE).worst == "CONSISTENT_WITH_RETRAIN"
    assert passed >= 48


def test_what_comes_back_under_one_probe_is_residual():
    retrained, another, before = world(0)
    suppressed = Probe(before + 0.5, retrained - 0.2)
    found = judge({"direct": Probe(another, retrained, before), "relearned": suppressed}, TOLERANCE)
    assert found.worst == "RESIDUAL"


def test_a_record_that_was_not_known_shows_nothing():
    retrained, another, before = world(0)
    before = np.where(np.arange(N) == 3, another, before)
    found = judge({"direct": Probe(another, retrained, before)}, TOLERANCE)
    assert found.verdicts[3] == "NO_BASELINE"
    assert found.worst == "NO_BASELINE"


def test_a_record_that_was_not_known_does_not_stand_in_the_way_of_those_that_were():
    retrained, another, before = world(0)
    before = np.where(np.arange(N) == 3, another, before)
    found = judge({"direct": Probe(another, retrained, before)}, TOLERANCE)
    assert found.shown
    assert not judge({"direct": Probe(before, retrained, before)}, TOLERANCE).shown
    # where nothing was known, an unchanged model would look the same
    assert not judge({"direct": Probe(another, retrained, another)}, TOLERANCE).shown
    # nor may a record that was not known be out of bounds by any probe
    hidden = Probe(np.where(np.arange(N) == 3, 0.01, another), retrained)
    both = judge({"direct": Probe(another, retrained, before), "relearned": hidden}, TOLERANCE)
    assert both.verdicts[3] == "NO_BASELINE" and not both.shown
    gap, probe = both.farthest
    assert probe == "relearned" and gap == both.gaps["relearned"][3]


def test_too_few_seeds_cannot_show_anything():
    retrained, another, before = world(0)
    assert judge({"direct": Probe(another, retrained[:1], before)}, TOLERANCE).worst == "UNTESTABLE"
    assert judge({"direct": Probe(another, retrained[:2], before)}, 1.0).worst == "UNTESTABLE"
    assert not judge({"direct": Probe(another, retrained[:1], before)}, TOLERANCE).shown


def test_wrong_arguments_are_told():
    retrained, another, before = world(0)
    with pytest.raises(ValueError, match="no probe was put to the model as it was"):
        judge({"direct": Probe(another, retrained)}, TOLERANCE)
    with pytest.raises(ValueError, match="tolerance: expected a number above 0"):
        judge({"direct": Probe(another, retrained, before)}, 0)
    with pytest.raises(ValueError, match="probe direct: expected 60 records"):
        judge({"direct": Probe(another, retrained[:, :5], before)}, 1.0)


def test_the_order_of_verdicts():
    assert worst(["CONSISTENT_WITH_RETRAIN", "NO_BASELINE", "UNTESTABLE"]) == "UNTESTABLE"
    assert worst(["OVER_UNLEARNED", "RESIDUAL"]) == "RESIDUAL"


def test_quantised_weights_are_on_the_grid_and_the_model_is_left_alone():
    model = Language()
    before = model.head.weight.detach().clone()
    found = quantised(model, 4)
    rows = found.head.weight.detach()
    scale = before.abs().amax(1, keepdim=True) / 7
    torch.testing.assert_close(rows / scale, (rows / scale).round(), atol=1e-4, rtol=0)
    assert float((rows - before).abs().max() / scale.max()) <= 0.5 + 1e-4
    assert torch.equal(model.head.weight, before)
    assert torch.equal(found.head.bias, model.head.bias)
    with pytest.raises(ValueError, match="expected 2 to 8"):
        quantised(model, 16)


def learned(model, rows: Rows, steps: int):
    return relearned(model, rows, steps=steps, lr=1e-2)


def test_adapters_alone_are_learned_again():
    """A model is relearned as it was trained: what is frozen stays."""
    model = Language()
    model.embedding.requires_grad_(False)
    found = learned(model, texts(8, size=8), 3)
    assert torch.equal(found.embedding.weight, model.embedding.weight)
    assert not torch.equal(found.head.weight, model.head.weight)
    everything = learned(model.requires_grad_(False), texts(8, size=8), 3)
    assert not torch.equal(everything.embedding.weight, model.embedding.weight)


def test_relearning_brings_back_what_was_only_hidden():
    """A model that knew the records and had its head turned off knows the other half again; a stranger does not."""
    torch.set_num_threads(1)
    rows = texts(16, size=16)
    knows = learned(Language(), rows, 150)
    hidden = learned(knows, rows, 0)
    with torch.no_grad():
        hidden.head.bias[int(rows.dataset[0][0])] += 4.0
    stranger = learned(Language(seed=3), texts(16, seed=9, size=16), 150)
    options = {"steps": 10, "lr": 1e-2}
    assert (
        losses_after_relearning(hidden, rows, **options).mean()
        < 0.7 * losses_after_relearning(stranger, rows, **options).mean()
    )
    before = scan(knows, rows).losses
    losses_after_relearning(knows, rows, **options)
    np.testing.assert_array_equal(scan(knows, rows).losses, before)
