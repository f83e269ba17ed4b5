"""The oracle against itself: every quantity by a second, independent route."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import default_collate

from tests.oracle import zoo
from tests.oracle.compare import assert_close_report, assert_rows_close, relative_error
from tests.oracle.gradients import all_gradients, arranged_gradient, is_norm, per_example_gradients, to_float64
from tests.oracle.losses import forward_example
from tests.oracle.metrics import lds, lds_per_query
from tests.oracle.projections import best_rank_c, pca_basis, project
from tests.oracle.scores import (
    dense_scores,
    dense_self_influence,
    dual_scores,
    flatten,
    graddot_scores,
    layer_damping,
    leading_eigenpairs,
)
from tests.oracle.tokens import captured_calls, token_covariances, token_rows

torch.set_num_threads(1)
EVERY_MODEL = [*zoo.CASES, *zoo.WIDE, *zoo.TRAPS]
RULES = ["mean_norm", "trace", "paper", "absolute"]
EXACT = 1e-12


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_layers(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Query and train gradients of three layers: N < D, N > D, and low rank."""
    train = {"wide": random(12, 5, 6, seed=seed), "narrow": random(12, 2, 3, seed=seed + 1)}
    train["low"] = (random(12, 2, seed=seed + 2) @ random(2, 20, seed=seed + 3)).reshape(12, 4, 5)
    return {name: random(3, *g.shape[1:], seed=seed + 4 + i) for i, (name, g) in enumerate(train.items())}, train


def library_loss(objective: str, outputs: Tensor, target: Tensor | None, ids: Tensor, mask: Tensor | None) -> Tensor:
    """The three losses in torch's own functions, without data-dependent control flow."""
    if objective == "classification":
        return nn.functional.cross_entropy(outputs, target, reduction="sum")
    if objective == "regression":
        return nn.functional.mse_loss(outputs.reshape(target.shape), target, reduction="sum") / 2
    labels = ids if target is None else target
    labels = labels if mask is None else torch.where(mask.bool(), labels, -100)
    return nn.functional.cross_entropy(outputs[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_gradients_equal_vmap_of_grad(name: str) -> None:
    case = zoo.build(name)
    if name == "tied":
        case.model.head.weight = nn.Parameter(case.model.tokens.weight.detach().clone())
    model = copy.deepcopy(case.model).double().eval()
    weights = dict(model.named_parameters())
    batch = to_float64(default_collate(case.train))  # [N, ...]

    def loss_of_one(weights: dict[str, Tensor], item: object) -> Tensor:
        example = unsqueezed(item)
        outputs, target = forward_example(lambda *a, **k: functional_call(model, weights, a, k), example)
        is_dict = isinstance(example, dict)
        ids = example.get("input_ids") if is_dict else example
        return library_loss(case.objective, outputs, target, ids, example.get("attention_mask") if is_dict else None)

    stacked = vmap(grad(loss_of_one), in_dims=(None, 0))(weights, batch)  # {weight: [N, *weight]}
    ours = all_gradients(case.model, case.loss, case.train_examples, case.layers)
    for layer, gradients in ours.items():
        twin = copy.deepcopy(model.get_submodule(layer))
        for i, actual in enumerate(gradients):
            for key, parameter in twin.named_parameters(recurse=False):
                parameter.grad = stacked[f"{layer}.{key}"][i]
            assert_close_report(actual, arranged_gradient(twin), 1e-10, f"{name} {layer} example {i}")


def unsqueezed(item: object) -> object:
    if isinstance(item, Tensor):
        return item[None]
    if isinstance(item, dict):
        return {key: value[None] for key, value in item.items()}
    return tuple(value[None] for value in item)


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_gradients_equal_inputs_times_output_gradients(name: str) -> None:
    """G = X^T dY with X written out by the definition of each layer; checks the arrangement of rows and columns."""
    case = zoo.build(name)
    examples = case.train_examples[1:2]
    for layer, gradients in all_gradients(case.model, case.loss, examples, case.layers).items():
        module = case.model.get_submodule(layer)
        for example, actual in zip(examples, gradients, strict=True):
            expected = torch.zeros_like(actual)
            for x, dy in captured_calls(case.model, case.loss, example, layer):
                expected += outer_products(module, x, dy)
            assert_close_report(actual, expected, 1e-10, f"{name} {layer}")


def outer_products(module: nn.Module, x: Tensor, dy: Tensor) -> Tensor:
    """X^T dY, [a, b], of one call; x and dy with a batch of one."""
    if isinstance(module, nn.Embedding):
        one_hot = nn.functional.one_hot(x.flatten(), module.num_embeddings).double()  # [T, vocab]
        if module.padding_idx is not None:
            one_hot[:, module.padding_idx] = 0.0
        return one_hot.T @ dy.reshape(-1, dy.shape[-1])
    if is_norm(module):
        normed = copy.deepcopy(module).double().eval()
        normed.weight.data.fill_(1.0)
        if getattr(normed, "bias", None) is not None:
            normed.bias.data.zero_()
        axes = (0, 2, 3) if isinstance(module, nn.BatchNorm2d) else tuple(range(dy.dim() - 1))
        rows = [(normed(x).detach() * dy).sum(axes)]
        return torch.stack(rows if getattr(module, "bias", None) is None else [*rows, dy.sum(axes)])
    if isinstance(module, nn.Conv2d):
        return unfolded_products(module, x, dy)
    rows = torch.cat([x, torch.ones(*x.shape[:-1], 1)], dim=-1) if module.bias is not None else x
    return rows.flatten(0, -2).T @ dy.flatten(0, -2)  # [a, T] @ [T, b]


def unfolded_products(module: nn.Conv2d, x: Tensor, dy: Tensor) -> Tensor:
    # torch holds the padding as (left, right, top, bottom) for every mode; stride, dilation and groups remain
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    groups, columns = module.groups, dy.flatten(2)[0].T  # [T, out]
    blocks = []
    for x_group, dy_group in zip(x.chunk(groups, 1), columns.chunk(groups, 1), strict=True):
        patches = nn.functional.unfold(x_group, module.kernel_size, module.dilation, 0, module.stride)[0].T  # [T, a]
        ones = [torch.ones(len(patches), 1)] if module.bias is not None else []
        blocks.append(torch.cat([patches, *ones], 1).T @ dy_group)  # [a, out / groups]
    return torch.cat(blocks, 1)  # [a, out]


@pytest.mark.parametrize("name", ["mlp_shared", "norms", "cnn_batchnorm", "gpt_padded", "gpt_conv1d", "bag_dict"])
def test_gradients_equal_finite_differences(name: str) -> None:
    """The squared norm of each layer's gradient is the slope of the loss along it."""
    case = zoo.build(name)
    example = case.train_examples[1]
    layers = all_gradients(case.model, case.loss, [example], case.layers)
    for layer, gradients in layers.items():
        model = copy.deepcopy(case.model).double().eval()
        module = model.get_submodule(layer)
        case.loss(model, to_float64(example)).backward()
        direction = {key: p.grad.clone() for key, p in module.named_parameters(recurse=False)}
        step, losses = 1e-5, []
        for sign in (1.0, -1.0):
            moved = copy.deepcopy(model)
            for key, p in moved.get_submodule(layer).named_parameters(recurse=False):
                p.data += sign * step * direction[key]
            losses.append(case.loss(moved, to_float64(example)).item())
        slope = torch.tensor((losses[0] - losses[1]) / (2 * step))
        assert_close_report(slope, gradients.square().sum(), 1e-5, f"{name} {layer}")


def test_gradients_leave_the_model_alone() -> None:
    case = zoo.build("mlp_dropout")
    before = copy.deepcopy(case.model.state_dict())
    random_state = torch.get_rng_state()
    per_example_gradients(case.model, case.loss, case.train_examples[:1], "0")
    assert case.model.training and all(p.grad is None for p in case.model.parameters())
    assert all(torch.equal(before[key], value) for key, value in case.model.state_dict().items())
    assert torch.equal(random_state, torch.get_rng_state())


def test_an_example_without_labels_and_an_unused_layer_have_zero_gradients() -> None:
    case = zoo.build("gpt_padded")
    gradients = per_example_gradients(case.model, case.loss, case.train_examples, "head")
    assert not gradients[5].any() and all(g.any() for i, g in enumerate(gradients) if i != 5)
    case = zoo.build("mlp_unused")
    assert not per_example_gradients(case.model, case.loss, case.train_examples, "never_called").any()


@pytest.mark.parametrize("rule", RULES)
def test_primal_equals_dual(rule: str) -> None:
    query, train = random_layers(10)
    primal = dense_scores(query, train, 0.3, rule)
    assert_close_report(dual_scores(query, train, 0.3, rule), primal, EXACT, rule, ["query", "train"])
    assert_close_report(dense_scores(query, train, 0.3, rule, rank=99), primal, EXACT, f"{rule}, rank 99")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("rank", [0, 1, 3, 40])
def test_truncated_scores_equal_the_woodbury_forms(rule: str, rank: int) -> None:
    """Three forms of H^-1 with the r leading right singular vectors of G itself (section 6)."""
    query, train = random_layers(20)
    sums: list[Tensor | float] = [0.0, 0.0, 0.0]
    for layer, gradients in train.items():
        g, q = flatten(gradients), flatten(query[layer])
        _, sigma, vt = torch.linalg.svd(g, full_matrices=False)
        # directions with sigma = 0 add nothing, and the first form would divide by it
        kept = min(rank, int((sigma > 1e-10 * sigma[0]).sum()))
        v, s2 = vt[:kept].T, sigma[:kept] ** 2  # [D, r], [r]
        lam = layer_damping(g, 0.3, rule, rank)
        eye = torch.eye(g.shape[1], dtype=torch.float64)
        paper = (eye - v @ torch.linalg.inv(torch.diag(1 / s2 + 1 / lam)) @ v.T / lam) / lam
        ratio = (eye - v @ torch.diag(s2 / (lam + s2)) @ v.T) / lam
        split = ((q @ g.T) - (q @ v) @ (g @ v).T) / lam + ((q @ v) / (lam + s2)) @ (g @ v).T
        for i, scores in enumerate([q @ paper @ g.T, q @ ratio @ g.T, split]):
            sums[i] = sums[i] + scores
    expected = dense_scores(query, train, 0.3, rule, rank)
    for form, scores in zip(["paper", "ratio", "split"], sums, strict=True):
        assert_close_report(scores, expected, EXACT, f"{form} form, rank {rank}, {rule}")


def test_rank_zero_is_graddot_over_lambda() -> None:
    query, train = random_layers(30)
    scores = dense_scores(query, train, 2.0, "absolute", rank=0)
    assert_close_report(scores, graddot_scores(query, train) / 2.0, EXACT, "rank 0")


def test_self_influence_is_the_diagonal_and_a_layer_of_zeros_adds_nothing() -> None:
    _, train = random_layers(40)
    own = dense_self_influence(train, 0.5, "mean_norm")
    assert_close_report(own, dual_scores(train, train, 0.5, "mean_norm").diagonal(), EXACT, "self-influence")
    assert (own > 0).all()
    with_zeros = {**train, "dead": torch.zeros(12, 3, 3)}
    assert torch.equal(dense_self_influence(with_zeros, 0.5, "mean_norm"), own)


def test_damping_rules_on_a_known_spectrum() -> None:
    g = torch.zeros(15, 20, dtype=torch.float64)
    sigma2 = torch.arange(15, 0, -1.0, dtype=torch.float64)  # 15, 14, ..., 1: trace 120
    g[range(15), range(15)] = sigma2.sqrt()
    expected = {"mean_norm": 120 / 15, "trace": 120 / 20, "absolute": 1.0, "paper": 120 / 15}
    for rule, value in expected.items():
        assert layer_damping(g, 1.0, rule) == pytest.approx(value, rel=EXACT)
    assert layer_damping(g, 0.1, "paper", rank=2) == pytest.approx(0.1 * sigma2[:12].mean().item(), rel=EXACT)
    assert layer_damping(g, 0.1, "paper", rank=9) == pytest.approx(0.8, rel=EXACT)
    with pytest.raises(ValueError, match="expected mean_norm"):
        layer_damping(g, 0.1, "mean")


def test_leading_eigenpairs_are_the_squared_singular_values() -> None:
    g = random(7, 11)
    values, vectors = leading_eigenpairs(g, 4)
    assert_close_report(values, torch.linalg.svdvals(g)[:4] ** 2, EXACT, "eigenvalues")
    assert_close_report(g.T @ (g @ vectors), vectors * values, EXACT, "eigenvectors")


def test_a_positive_score_is_a_proponent() -> None:
    """A small gradient step on a train example lowers the loss of the queries with a positive inner product."""
    case = zoo.build("mlp")
    query = all_gradients(case.model, case.loss, case.query_examples, case.layers)
    train = all_gradients(case.model, case.loss, case.train_examples, case.layers)
    scores, step = graddot_scores(query, train), 1e-5  # [Q, N]
    for i, example in enumerate(case.train_examples[:4]):
        model = copy.deepcopy(case.model).double()
        before = torch.stack([case.loss(model, to_float64(q)) for q in case.query_examples])
        case.loss(model, to_float64(example)).backward()
        for p in model.parameters():
            p.data -= step * p.grad
        after = torch.stack([case.loss(model, to_float64(q)) for q in case.query_examples])
        assert_close_report((before - after).detach() / step, scores[:, i], 1e-3, f"train {i}")


def test_project_equals_the_projection_of_both_sides() -> None:
    x, dy, p_in, p_out = random(9, 6), random(9, 5, seed=1), random(6, 3, seed=2), random(5, 2, seed=3)
    projected = project((x.T @ dy)[None], p_in, p_out)
    assert_close_report(projected[0], (x @ p_in).T @ (dy @ p_out), EXACT, "projection")


def test_best_rank_c_leaves_exactly_the_tail() -> None:
    g = random(3, 6, 5)
    for c in (1, 2, 5, 9):
        tail = torch.linalg.svdvals(g)[:, c:].square().sum(1).sqrt()
        assert_close_report(torch.linalg.norm(g - best_rank_c(g, c), dim=(1, 2)) + 1, tail + 1, EXACT, f"rank {c}")
    outer = random(3, 6, 1) @ random(3, 1, 5, seed=1)
    assert_rows_close(best_rank_c(outer, 1), outer, EXACT, "a rank-one gradient")


def test_pca_basis_diagonalises_and_covariances_are_matrix_products() -> None:
    case = zoo.build("gpt_conv1d")
    layer = "blocks.0.fc"
    rows = [token_rows(case.model, case.loss, e, layer) for e in case.train_examples]
    x, dy = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])  # [N T, a], [N T, b]
    for covariance, matrix in zip(
        token_covariances(case.model, case.loss, case.train_examples, layer), (x, dy), strict=True
    ):
        assert_close_report(covariance, matrix.T @ matrix / len(x), EXACT, "covariance")
        basis = pca_basis(covariance, 4)
        assert_close_report(basis.T @ basis, torch.eye(4), EXACT, "orthonormal columns")
        top = torch.linalg.svdvals(matrix)[:4] ** 2 / len(x)
        assert_close_report((basis.T @ covariance @ basis), torch.diag(top), 1e-10, "largest eigenvalues first")


def test_lds_is_the_rank_correlation_of_summed_scores() -> None:
    generator = np.random.default_rng(0)
    scores, masks = generator.normal(size=(3, 20)), generator.random((30, 20)) < 0.5
    summed = masks.astype(float) @ scores.T  # [M, Q]
    assert lds(scores, masks, np.exp(summed)) == pytest.approx(1.0)
    assert lds(scores, masks, -summed) == pytest.approx(-1.0)
    noisy = summed + generator.normal(size=summed.shape)
    ranks = [np.argsort(np.argsort(column)) for column in (summed[:, 1], noisy[:, 1])]
    assert lds_per_query(scores, masks, noisy)[1] == pytest.approx(np.corrcoef(*ranks)[0, 1])
    noisy[:, 0] = 0.0  # a constant measurement has no ranks: left out of the mean
    assert lds(scores, masks, noisy) == pytest.approx(lds_per_query(scores, masks, noisy)[1:].mean())


def test_a_failed_comparison_names_the_worst_entries() -> None:
    expected = random(4, 5)
    actual = expected.clone()
    actual[2, 3] *= 1.01
    with pytest.raises(AssertionError, match=r"scores: relative error [\s\S]*query=2, train=3\] .* ratio 1.01\n"):
        assert_close_report(actual, expected, 1e-6, "scores", ["query", "train"])
    assert_close_report(actual, expected, 1e-1, "scores")
    actual[0, 0] = float("nan")
    with pytest.raises(AssertionError, match="1 of 20 entries are not finite"):
        assert_close_report(actual, expected, 1.0, "scores")
    with pytest.raises(AssertionError, match="shape"):
        assert_close_report(expected[:1], expected, 1.0, "one row must not be broadcast")
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")


def test_the_zoo_is_the_same_every_time_and_keeps_the_random_state() -> None:
    state = torch.get_rng_state()
    for name in EVERY_MODEL:
        first, second = zoo.build(name), zoo.build(name)
        pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name
        assert len(first.train) == zoo.N_TRAIN and len(first.query) == zoo.N_QUERY
    assert torch.equal(state, torch.get_rng_state())
