"""Rows sorted by length and shorn of padding: every row once, back in order, and the same gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lorif_core import CausalLM, LoRIF
from lorif_core.bucketing import mask_of, windows
from lorif_core.objectives import batch_rows
from tests.lorif_core.against_oracle import loader
from tests.oracle import zoo

LENGTHS = [3, 9, 1, 7, 9, 2, 5, 4, 6, 8, 1]


def batches(size: int, width: int = 12) -> list[dict[str, Tensor]]:
    found = []
    for start in range(0, len(LENGTHS), size):
        lengths = torch.tensor(LENGTHS[start : start + size])
        mask = (torch.arange(width) < lengths[:, None]).long()
        rows = torch.arange(start, start + len(lengths))
        found.append({"input_ids": mask * (rows[:, None] + 1), "attention_mask": mask, "labels": rows})
    return found


@pytest.mark.parametrize("size", [1, 3, 4, 11])
@pytest.mark.parametrize("together", [1, 2, 100])
def test_every_row_is_run_once_and_comes_back_in_order(size: int, together: int) -> None:
    seen = []
    for window in windows(batches(size), together):
        assert torch.equal(window.in_order([piece["labels"] for piece in window.pieces]), window.batch["labels"])
        assert all(batch_rows(piece) <= size for piece in window.pieces)
        for piece in window.pieces:
            longest = max(LENGTHS[row] for row in piece["labels"].tolist())
            assert piece["input_ids"].shape == piece["attention_mask"].shape == (len(piece["labels"]), longest)
            assert torch.equal(piece["input_ids"].amax(1), piece["labels"] + 1)
        seen += window.batch["labels"].tolist()
    assert seen == list(range(len(LENGTHS)))


def test_less_padding_is_run() -> None:
    def tokens(together: int) -> int:
        return sum(piece["input_ids"].numel() for window in windows(batches(3), together) for piece in window.pieces)

    assert sum(LENGTHS) <= tokens(4) < tokens(1) < 12 * len(LENGTHS)


def test_what_has_no_mask_or_is_padded_at_the_left_runs_as_it_comes() -> None:
    plain = [torch.zeros(2, 5), torch.zeros(3, 5)]
    assert [window.pieces for window in windows(plain, 8)] == [[plain[0]], [plain[1]]]
    left = {"input_ids": torch.ones(2, 4), "attention_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])}
    (window,) = windows([left], 8)
    assert all(piece["input_ids"].shape[1] == 4 for piece in window.pieces)


def test_batches_of_other_widths_are_not_joined_and_targets_beside_a_dict_follow() -> None:
    wide, narrow = batches(11, 12)[0], batches(11, 9)[0]
    assert len(list(windows([wide, narrow], 8))) == 2
    pairs = [({"input_ids": wide["input_ids"], "attention_mask": wide["attention_mask"]}, wide["labels"])]
    (window,) = windows(pairs, 8)
    assert isinstance(window.pieces[0], tuple)
    assert torch.equal(window.in_order([targets for _, targets in window.pieces]), wide["labels"])
    assert mask_of(window.pieces[0]).shape[1] == max(LENGTHS)


def test_an_index_of_padded_texts_is_the_one_without_buckets(tmp_path: Path) -> None:
    case = zoo.build("gpt_padded")
    padded = loader(case.train, 4)

    def gradients(bucket: int) -> dict[str, Tensor]:
        options = {"projection": "identity", "storage": "dense", "bits": 32, "bucket": bucket}
        store = LoRIF(case.model, CausalLM(), **options).fit(padded, tmp_path / f"{bucket}").store
        cpu = torch.device("cpu")
        return {x.name: torch.cat([b.dense(cpu) for b in store.blocks(x.name, 5)]) for x in store.manifest.layers}

    assert all(mask_of(batch) is not None for batch in padded)
    alone, together = gradients(1), gradients(3)
    for name, expected in alone.items():
        torch.testing.assert_close(together[name], expected, rtol=1e-5, atol=1e-6)


def test_embedded_tokens_are_shorn_with_their_mask() -> None:
    batch = batches(11)[0]
    embedded = {"inputs_embeds": torch.randn(11, 12, 5), "attention_mask": batch["attention_mask"]}
    for piece in windows([embedded], 1):
        (only,) = piece.pieces
        assert only["inputs_embeds"].shape == (11, max(LENGTHS), 5) and only["attention_mask"].shape[1] == max(LENGTHS)


@pytest.mark.parametrize("projection", ["pca", "kfac_true"])
def test_padding_plays_no_part_in_projections(projection: str, tmp_path: Path) -> None:
    """The same texts padded to their longest and beyond: P P^T of both sides is the same."""
    case = zoo.build("wide_gpt")
    mask = (torch.arange(6) < 2 + torch.arange(len(case.train))[:, None] % 3).long()
    ids = torch.stack([item["input_ids"] for item in case.train]) * mask

    def projections(width: int) -> dict[str, Tensor]:
        padded = {"input_ids": ids[:, :width], "attention_mask": mask[:, :width]}
        one = LoRIF(case.model, CausalLM(), projection=projection, layers="*fc")
        one.fit([padded], tmp_path / str(width))
        return {name: p @ p.T for name, p in load_file(tmp_path / str(width) / "projection.safetensors").items()}

    narrow, wide = projections(4), projections(6)
    for name, expected in narrow.items():
        torch.testing.assert_close(wide[name], expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
