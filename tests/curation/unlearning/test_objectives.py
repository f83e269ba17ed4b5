"""Each objective against its formula, row by row and token by token in float64."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from curation.errors import CurationError, ModelError
from curation.unlearning.objectives import OBJECTIVES, Step, build_objective
from curation.unlearning.reference import make_reference
from tests.curation.unlearning.models import Language, classifier, points, texts


def log_p(model, row) -> list[torch.Tensor]:
    logits = model(row[None])[0]
    return [logits[t].log_softmax(-1)[row[t + 1]] for t in range(1, len(row) - 1)]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    torch.set_num_threads(1)
    before, now = Language().double(), Language(seed=5).double()
    forget, retain, other = texts(4, size=4), texts(5, seed=1, size=2), texts(4, seed=2, size=4)
    return before, now, forget, retain, other, tmp_path_factory.mktemp("reference")


def step_of(setting, objective) -> Step:
    before, _, forget, retain, other, folder = setting
    never_saw = oracle() if objective.needs_oracle else None
    reference = make_reference(
        folder / f"{type(objective).__name__}.safetensors", before, objective, forget, retain, other, never_saw
    )
    which = torch.tensor([4, 0])
    batch = retain.batch(which.tolist())
    mask = torch.nn.functional.pad(batch["labels"][:, 1:] != -100, (0, 1))
    return Step(
        forget=next(iter(forget)),
        weights=torch.tensor([0.5, 1.5, 0.25, 1.75], dtype=torch.float64),
        retain=batch,
        alternative=next(iter(other)),
        reference=reference.forget,
        reference_alternative=reference.alternative,
        reference_retain=reference.of_retained(which, mask),
        oracle=never_saw,
        reference_oracle=reference.oracle,
        learned=LEARNED,
    )


LEARNED = torch.tensor([True, False, True, False])


def oracle():
    return Language(seed=9).double()


def mean(values):
    return sum(values) / len(values)


def forget_term(name, options, beta, nll, ratio, ratio_other, nll_other):
    def preference(margin):
        return -2 / beta * torch.log(torch.sigmoid(beta * margin))

    if name in ("ascent", "difference"):
        return -nll
    if name == "bounded_ascent":
        return -min(nll, torch.tensor(options["bound"], dtype=torch.float64))
    if name == "npo":
        return preference(-ratio)
    if name == "simnpo":
        return preference(nll - options.get("delta", 0.0))
    return preference(ratio_other - ratio) if name == "dpo" else nll_other


def by_hand(name, options, setting):
    before, now, forget, retain, other, _ = setting
    weights = [0.5, 1.5, 0.25, 1.75]
    kept = [retain.dataset[i] for i in (4, 0)]
    terms = []
    for weight, row, alternative in zip(weights, forget.dataset.rows, other.dataset.rows, strict=True):
        nll, total = -mean(log_p(now, row)), sum(log_p(now, row))
        ratio = total - sum(log_p(before, row))
        ratio_other = sum(log_p(now, alternative)) - sum(log_p(before, alternative))
        beta = options.get("beta", {"npo": 0.1, "simnpo": 4.5, "dpo": 0.1}.get(name))
        if name == "oracle_matching":
            terms.append(weight * (nll + mean(log_p(oracle(), row)).detach()) ** 2)
            continue
        terms.append(weight * forget_term(name, options, beta, nll, ratio, ratio_other, -mean(log_p(now, alternative))))
    gamma = options.get("gamma", 0.125 if name == "simnpo" else 1.0)
    found = gamma * mean(terms)
    if name == "ascent":
        return found
    if options.get("retain") == "kl":
        divergences = []
        for row in kept:
            p = [model(row[None])[0].log_softmax(-1)[1 : len(row) - 1] for model in (before, now)]
            divergences.append((p[0].exp() * (p[0] - p[1])).sum(-1).mean())
        return found + options.get("alpha", 1.0) * mean(divergences)
    return found + options.get("alpha", 1.0) * mean([-mean(log_p(now, row)) for row in kept])


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ascent", {}),
        ("difference", {}),
        ("difference", {"retain": "kl", "alpha": 2.0, "gamma": 0.5}),
        ("bounded_ascent", {"bound": 2.4}),
        ("npo", {}),
        ("npo", {"beta": 1.0, "retain": "kl"}),
        ("simnpo", {}),
        ("simnpo", {"delta": 1.5, "gamma": 1.0}),
        ("dpo", {"beta": 0.5}),
        ("idk", {}),
        ("oracle_matching", {"relearn": 0.0, "retain": "kl", "alpha": 2.0, "gamma": 0.5}),
        ("oracle_matching", {"relearn": 0.0, "retain": "nll", "alpha": 1.0}),
    ],
)
def test_the_loss_is_its_formula(setting, name, options):
    objective = build_objective(name, options)
    found = objective.loss(setting[1], step_of(setting, objective))
    torch.testing.assert_close(found, by_hand(name, options, setting).detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    "name", [name for name in OBJECTIVES if name not in ("rmu", "idk", "dpo", "ascent", "oracle_matching")]
)
def test_a_step_against_the_gradient_forgets(setting, name):
    """Every objective but those that only teach another answer raises the records' loss where it alone counts."""
    objective = build_objective(name, {"alpha": 0.0} | ({"bound": 9.0} if name == "bounded_ascent" else {}))
    model = Language().double()
    step = step_of(setting, objective)
    before = [-float(mean(log_p(model, row)).detach()) for row in setting[2].dataset.rows]
    objective.loss(model, step).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.05 * p.grad
    after = [-float(mean(log_p(model, row)).detach()) for row in setting[2].dataset.rows]
    assert np.dot(step.weights, np.array(after) - before) > 0


def test_an_oracle_is_matched_from_above_and_from_below(setting):
    """Its records move towards it, wherever they are, and feel nothing where they are there."""
    objective = build_objective("oracle_matching", {"alpha": 0.0, "relearn": 0.0})
    step, rows = step_of(setting, objective), setting[2].dataset.rows
    wanted = -torch.stack([mean(log_p(step.oracle, row)) for row in rows]).detach()
    model = Language(seed=5).double()
    before = -torch.stack([mean(log_p(model, row)) for row in rows]).detach()
    objective.loss(model, step).backward()
    with torch.no_grad():
        for p in model.parameters():
            if p.grad is not None:
                p -= 0.01 * p.grad
    after = -torch.stack([mean(log_p(model, row)) for row in rows]).detach()
    assert ((wanted - after).square() * step.weights).sum() < ((wanted - before).square() * step.weights).sum()
    assert objective.loss(step.oracle, step).item() == 0
    with pytest.raises(ValueError, match="needs the records' losses under a model that never saw them"):
        objective.loss(model, replace(step, reference_oracle=None))
    again = build_objective("oracle_matching", {})
    with pytest.raises(ValueError, match="needs a model that never saw the records"):
        again.loss(model, replace(step, oracle=None))


def test_an_oracle_is_matched_after_some_records_are_learned_again(setting):
    """The records that are not learned, under both models after a signed step on those that are; gradients to first order."""
    options = {"alpha": 0.0, "relearn": 2.0, "reach": 1e-3, "gamma": 0.5}
    objective, without = (build_objective("oracle_matching", options | more) for more in ({}, {"relearn": 0.0}))
    step, rows = step_of(setting, objective), setting[2].dataset.rows
    again, asked = [rows[0], rows[2]], [rows[1], rows[3]]

    def after_a_step(model):
        """The losses of ``asked``, and the model they are of."""
        changed = copy.deepcopy(model)
        loss = mean([-mean(log_p(model, row)) for row in again])
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            for p, g in zip(changed.parameters(), gradients, strict=True):
                p -= 0 if g is None else 1e-3 * g.sign()
        return torch.stack([-mean(log_p(changed, row)) for row in asked]), changed

    now = Language(seed=5).double()
    found, changed = after_a_step(now)
    target = after_a_step(step.oracle)[0].detach()
    wanted = 0.5 * 2.0 * (step.weights[[1, 3]] * (found - target) ** 2).mean()
    extra = objective.loss(now, step) - without.loss(now, step)
    torch.testing.assert_close(extra, wanted, rtol=1e-9, atol=1e-12)
    theirs = torch.autograd.grad(wanted, list(changed.parameters()), allow_unused=True)
    ours = torch.autograd.grad(extra, list(now.parameters()), allow_unused=True)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-10)
    with pytest.raises(CurationError, match="relearn must not be negative and reach above 0"):
        build_objective("oracle_matching", {"relearn": -1.0})


def test_rmu_steers_hidden_states(setting):
    objective = build_objective("rmu", {"layer": "query", "coefficient": 3.0, "alpha": 2.0})
    before, now, forget, retain, _, _ = setting
    drawn = torch.randn(8, generator=torch.Generator().manual_seed(0))
    u = 3.0 * (drawn / drawn.norm()).double()

    def hidden(model, row):
        return model.query(model.embedding(row))[1 : len(row) - 1]

    steered = [((hidden(now, row) - u) ** 2).mean(-1).mean() for row in forget.dataset.rows]
    held = [((hidden(now, retain.dataset[i]) - hidden(before, retain.dataset[i])) ** 2).mean(-1).mean() for i in (4, 0)]
    wanted = mean([w * s for w, s in zip([0.5, 1.5, 0.25, 1.75], steered, strict=True)]) + 2.0 * mean(held)
    found = objective.loss(now, step_of(setting, objective))
    torch.testing.assert_close(found, wanted.detach(), rtol=1e-6, atol=1e-7)
    with pytest.raises(ModelError, match="no module 'nowhere'; it has"):
        build_objective("rmu", {"layer": "nowhere"}).loss(now, step_of(setting, objective))


def test_a_classifier_is_unlearned_alike():
    model, rows = classifier(), points(4, size=4)
    step = Step(forget=next(iter(rows)), weights=torch.ones(4), retain=next(iter(points(4, seed=3, size=4))))
    own = torch.nn.functional.cross_entropy(model(step.forget[0]), step.forget[1])
    kept = torch.nn.functional.cross_entropy(model(step.retain[0]), step.retain[1])
    torch.testing.assert_close(
        build_objective("difference", {}).loss(model, step).double(), kept - own, rtol=1e-5, atol=1e-6
    )


def test_a_bound_that_is_reached_stops():
    objective = build_objective("bounded_ascent", {"bound": 2.0})
    assert objective.reached(torch.tensor([2.0, 9.0, 1.8]))
    assert not objective.reached(torch.tensor([9.0, 9.0, 0.1]))  # a few far out do not make up for one that is not


def test_wrong_options_are_told_together():
    with pytest.raises(CurationError, match="expected one of ascent, bounded_ascent"):
        build_objective("gradient", {})
    with pytest.raises(CurationError, match="unknown options beta; missing bound; it takes bound, gamma"):
        build_objective("bounded_ascent", {"beta": 1})
    with pytest.raises(CurationError, match="bound: expected a loss above 0"):
        build_objective("bounded_ascent", {"bound": -math.pi})
