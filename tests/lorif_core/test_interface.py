"""What a user meets first: imports, options, and errors that say what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lorif_core import CausalLM, Classification, LoRIF, Regression, StoreError
from lorif_core.evaluation import linear_datamodeling_score
from lorif_core.evaluation.lds import ranks
from lorif_core.objectives import batch_rows
from lorif_core.options import CurvatureOptions
from lorif_core.projections import projected_size, random_normal, random_signs

ROWS = [(torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))]


class Odd(nn.Module):
    """Layers no rule knows, beside one that has one."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.recurrent = nn.Linear(6, 3), nn.GRU(6, 6, batch_first=True)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.known(x + self.recurrent(x.unsqueeze(1))[0].squeeze(1)) * self.scale


def test_the_core_imports_nothing_of_the_flows() -> None:
    banned = ("lightning", "polars", "prefect", "mlflow", "scipy", "sklearn")
    code = f"import sys; from lorif_core import *; print([m for m in {banned} if m in sys.modules], 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[] True"


def test_padding_on_either_side_leaves_the_loss_as_it_is() -> None:
    class Bigram(nn.Sequential):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            return super().forward(input_ids)

    model = Bigram(nn.Embedding(9, 4), nn.Linear(4, 9))
    ids = torch.randint(1, 9, (3, 5))
    plain = CausalLM().loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    for sides in ((0, 3), (3, 0)):
        padded = {
            "input_ids": nn.functional.pad(ids, sides),
            "attention_mask": nn.functional.pad(torch.ones_like(ids), sides),
        }
        torch.testing.assert_close(CausalLM().loss(model, padded), plain)


def test_all_wrong_options_are_reported_at_once() -> None:
    with pytest.raises(ValueError) as error:
        LoRIF(
            nn.Linear(6, 3),
            Classification(),
            projection="pac",
            bits=3,
            storage="sparse",
            factor_rank=0,
            damping=float("inf"),
            damping_rule="x",
            curvature_rank=-1,
            layers=5,
            bucket=True,
            memory_limit=0,
        )
    index = ("projection", "bits", "storage", "factor_rank", "layers")
    for name in (*index, "damping", "damping_rule", "curvature_rank", "bucket", "memory_limit"):
        assert f"{name}: expected" in str(error.value)


def test_unsupported_layers_are_named_together_or_left_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)the model itself.*recurrent: GRU is not supported"):
        LoRIF(Odd(), Classification()).fit(ROWS, tmp_path / "strict")
    attributor = LoRIF(Odd(), Classification(), strict=False).fit(ROWS, tmp_path / "loose")
    manifest = attributor.store.manifest
    assert set(manifest.left_out) == {"", "recurrent"}
    assert manifest.coverage == pytest.approx(21 / sum(p.numel() for p in Odd().parameters()))


def test_layers_that_match_nothing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['nowhere.\*'\] match no module"):
        LoRIF(nn.Sequential(nn.Linear(6, 3)), Classification(), layers=["0", "nowhere.*"]).fit(ROWS, tmp_path)


def test_a_shuffling_loader_is_refused(tmp_path: Path) -> None:
    data = TensorDataset(*ROWS[0])
    with pytest.raises(ValueError, match="shuffle=False"):
        LoRIF(nn.Linear(6, 3), Classification()).fit(DataLoader(data, shuffle=True), tmp_path)
    with pytest.raises(ValueError, match="only once"):
        LoRIF(nn.Linear(6, 3), Classification()).fit(iter(ROWS), tmp_path)


def test_rows_that_are_not_finite_are_named(tmp_path: Path) -> None:
    x, y = torch.randn(4, 6), torch.tensor([0, 1, 2, 0])
    x[2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"ids \['c'\]"):
        LoRIF(nn.Sequential(nn.Linear(6, 3)), Classification(), projection="identity").fit(
            [(x, y)], tmp_path, ids=list("abcd")
        )


def test_before_fit_and_for_no_examples_it_says_so(tmp_path: Path) -> None:
    attributor = LoRIF(nn.Sequential(nn.Linear(6, 3)), Classification())
    with pytest.raises(StoreError, match="call fit"):
        attributor.score(ROWS)
    with pytest.raises(StoreError, match="no examples"):
        attributor.fit([], tmp_path)


def test_progress_is_told(tmp_path: Path) -> None:
    seen = []
    LoRIF(nn.Sequential(nn.Linear(6, 3)), Classification(), progress=lambda *x: seen.append(x)).fit(ROWS * 3, tmp_path)
    assert ("index", 12, None) in seen and seen[-1][0] == "curvature"


@pytest.mark.parametrize(
    ("objective", "output", "batch", "message"),
    [
        (Classification(), (4, 3, 2), ROWS[0], r"logits \[B, K\]"),
        (Classification(), (4, 3), ROWS[0][0], "needs targets"),
        (Regression(), (4, 3), (ROWS[0][0], torch.randn(4, 2)), "one shape"),
        (CausalLM(), (4, 3), torch.zeros(4, 6, dtype=torch.int64), r"logits \[B, T, V\]"),
    ],
)
def test_outputs_of_another_shape_are_explained(objective, output, batch, message) -> None:
    with pytest.raises(ValueError, match=message):
        objective.loss(lambda x: torch.zeros(output), batch)


def test_classes_the_model_does_not_have_are_named() -> None:
    batch = torch.randn(4, 2), torch.tensor([0, 7, -100, 7])
    with pytest.raises(ValueError, match=r"class codes from 0 to 2, got \[-100, 7\]"):
        Classification().loss(nn.Linear(2, 3), batch)


def test_outputs_without_logits_are_explained() -> None:
    with pytest.raises(ValueError, match="has .logits, got SimpleNamespace"):
        Classification().loss(lambda x: SimpleNamespace(hidden=1), ROWS[0])
    with pytest.raises(ValueError, match="common first axis"):
        batch_rows({"a": torch.zeros(3), "b": torch.zeros(4)})


def test_a_rank_left_to_the_engine_is_all_where_that_costs_no_more() -> None:
    assert [CurvatureOptions().rank_of(n) for n in (1, 256, 768, 769)] == [1, 256, 768, 256]
    assert [CurvatureOptions(curvature_rank=300).rank_of(n) for n in (200, 768, 5000)] == [200, 300, 300]


def test_projected_sides() -> None:
    assert [projected_size(n, 4) for n in (1, 16, 17, 65, 256)] == [1, 16, 4, 16, 64]


def test_random_matrices_do_not_change() -> None:
    signs = random_signs("blocks.0.up/in", 5, 3, seed=7)
    assert signs.abs().eq(1).all() and torch.equal(signs, random_signs("blocks.0.up/in", 5, 3, seed=7))
    assert not torch.equal(signs, random_signs("blocks.0.up/out", 5, 3, seed=7))
    normal = random_normal("x", 200, 200, seed=0)
    assert abs(float(normal.mean())) < 0.02 and abs(float(normal.std()) - 1) < 0.02


def test_lds_is_the_mean_spearman_correlation() -> None:
    draw = np.random.default_rng(0)
    scores, masks = draw.integers(-9, 9, (7, 30)), draw.random((20, 30)) < 0.5
    losses = draw.integers(0, 9, (20, 7))
    found = linear_datamodeling_score(scores, masks, losses)
    expected = [spearmanr(masks @ scores[q], -losses[:, q]).statistic for q in range(7)]
    np.testing.assert_allclose(found.per_query, expected)
    assert found.low < found.value < found.high
    np.testing.assert_array_equal(ranks(np.array([[3.0], [1.0], [3.0]])), [[1.5], [0.0], [1.5]])
    assert np.isnan(linear_datamodeling_score(np.zeros((1, 30)), masks, losses[:, :1]).value)
    with pytest.raises(ValueError, match=r"scores \[Q, N\]"):
        linear_datamodeling_score(scores, masks[:, :5], losses)


@pytest.mark.parametrize(
    "option",
    [
        {"seed": "a"},
        {"seed": None},
        {"seed": 2**70},
        {"seed": 1.5},
        {"bits": True},
        {"factor_rank": True},
        {"layers": ()},
    ]
    + [{"damping": True}, {"curvature_rank": False}, {"memory_limit": True}, {"strict": "no"}, {"layers": [3]}]
    + [{"layers": 5}, {"bucket": True}, {"bucket": 0}],
    ids=str,
)
def test_an_option_of_another_type_is_refused_before_anything_is_built(option: dict[str, Any]) -> None:
    (name,) = option
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        LoRIF(nn.Linear(4, 3), Classification(), **option)


@pytest.mark.parametrize("k", [2.5, 0, True, "3", None])
def test_how_many_must_be_an_integer(k: Any, tmp_path: Path) -> None:
    attributor = LoRIF(nn.Linear(6, 3), Classification()).fit(ROWS, tmp_path)
    with pytest.raises(ValueError, match=f"^k: expected an integer >= 1, got {k!r}"):
        attributor.top_k(ROWS, k)
    assert attributor.top_k(ROWS, np.int64(2)).indices.shape == (4, 2)


def test_load_refuses_options_that_need_another_index(tmp_path: Path) -> None:
    model = nn.Linear(6, 3)
    LoRIF(model, Classification()).fit(ROWS, tmp_path)
    with pytest.raises(
        ValueError, match=r"expected only curvature_rank, .*, got bits, projection, seed: .*build another"
    ):
        LoRIF.load(tmp_path, model, projection="kfac", bits=1, seed=1, damping=2.0)
    changed = {"curvature_rank": 2, "damping": 2.0, "damping_rule": "trace", "memory_limit": 2**20, "bucket": 1}
    assert LoRIF.load(tmp_path, model, progress=print, **changed).bucket == 1
