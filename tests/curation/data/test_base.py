from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.data import Digits
from curation.data.assembly import stratified_split
from curation.data.base import CuratedData, as_picture
from curation.data.rows import LabelledRows
from curation.errors import DataError
from tests.curation.data.builders import decisions

NOISE = {"kind": "pairwise", "rate": 0.08, "seed": 1}


@pytest.fixture(scope="module")
def noisy() -> CuratedData:
    return Digits(noise=NOISE)


def test_digits_are_what_scikit_learn_ships(noisy: CuratedData) -> None:
    assert noisy.examples.columns == ["example_id", "label", "image", "split", "true_label"]
    assert noisy.examples["example_id"].to_list() == list(range(1797))
    assert noisy.classes == list(range(10)) and noisy.payload_kind == "image"
    assert noisy.model_defaults() == {"input_shape": (1, 8, 8), "num_classes": 10}
    image, code = noisy.train_dataset[5]
    assert image.dtype == torch.float32 and image.min() >= 0 and image.max() <= 1 and type(code) is int


def test_the_split_is_stratified_and_covers_every_row(noisy: CuratedData) -> None:
    counts = noisy.examples.group_by("true_label").agg((pl.col("split") == "validation").mean().alias("share"))
    assert ((counts["share"] - 0.2).abs() < 0.01).all()
    assert len(noisy.train_dataset) + len(noisy.validation_dataset) == 1797


def test_noise_is_planted_into_training_labels_only(noisy: CuratedData) -> None:
    changed = noisy.examples.filter(pl.col("label") != pl.col("true_label"))
    assert changed.height == round(0.08 * len(noisy.train_dataset))
    assert set(changed["split"]) == {"train"}
    assert ((changed["true_label"] + 1) % 10 == changed["label"]).all()
    clean = Digits()
    assert "true_label" not in clean.examples.columns
    assert clean.examples["label"].equals(noisy.examples["true_label"].alias("label"))
    assert clean.examples["split"].equals(noisy.examples["split"])


@pytest.mark.parametrize("kind", ["uniform", "feature"])
def test_other_kinds_of_noise(kind: str) -> None:
    data = Digits(noise={"kind": kind, "rate": 0.1})
    assert (data.examples["label"] != data.examples["true_label"]).sum() == round(0.1 * len(data.train_dataset))


def test_index_order_is_table_order(noisy: CuratedData) -> None:
    rows = noisy.examples.filter(pl.col("split") == "train")
    assert noisy.train_ids() == rows["example_id"].to_list()
    assert noisy.train_labels().tolist() == rows["label"].to_list()
    batches = list(noisy.ordered_dataloader(batch_size=100))
    inputs, codes = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert codes.dtype == torch.int64 and codes.tolist() == rows["label"].to_list()
    pixels = torch.from_numpy(rows["image"].to_numpy().astype(np.float32) / 16)
    assert torch.equal(inputs[:, 0], pixels)
    validation = torch.cat([codes for _, codes in noisy.val_dataloader()])
    expected = noisy.examples.filter(pl.col("split") == "validation")["label"].to_list()
    assert validation.tolist() == expected
    assert [len(codes) for _, codes in batches] == [100] * 14 + [len(codes) - 1400]


def test_training_order_depends_on_the_seed_alone(noisy: CuratedData) -> None:
    def order(data: CuratedData) -> list[int]:
        return [code for _, codes in data.train_dataloader() for code in codes.tolist()]

    torch.manual_seed(1)
    first = order(noisy)
    torch.manual_seed(2)
    assert order(noisy) == first != noisy.train_labels().tolist()
    assert sorted(first) == sorted(noisy.train_labels().tolist())
    assert order(CuratedData(noisy.contents, batch_size=64, seed=5)) != first


def test_labels_handed_out_are_a_copy(noisy: CuratedData) -> None:
    labels = noisy.train_labels()
    labels[:] = 0
    assert noisy.train_labels().any()


def test_unknown_split_and_batch_size(noisy: CuratedData) -> None:
    with pytest.raises(ValueError, match="train or validation, got 'test'"):
        noisy.ordered_dataloader("test")
    with pytest.raises(DataError, match="no data set of the split 'test'; there are those of train, validation"):
        noisy.dataset("test")
    for size in (0, 1.5, True):
        with pytest.raises(DataError, match="batch_size"):
            CuratedData(noisy.contents, batch_size=size)  # type: ignore[arg-type]


def test_wrong_options_are_listed_together() -> None:
    with pytest.raises(DataError) as error:
        Digits(noise={"kind": "x", "rate": 2}, validation_fraction=1.0, batch_size=0, seed=-1)
    assert len(error.value.problems) == 5 and all(text.startswith("digits: ") for text in error.value.problems)


def test_the_digest_changes_exactly_with_what_training_sees() -> None:
    digest = Digits(noise=NOISE).digest()
    assert digest == Digits(noise=dict(NOISE)).digest()
    others = [
        Digits(),
        Digits(noise=NOISE | {"seed": 2}),
        Digits(noise=NOISE, batch_size=32),
        Digits(noise=NOISE, seed=1),
        Digits(noise=NOISE, validation_fraction=0.3),
    ]
    assert len({digest, *(data.digest() for data in others)}) == 6


def test_the_digest_ignores_true_labels() -> None:
    without_noise = Digits(noise=NOISE | {"rate": 0})
    assert "true_label" in without_noise.examples.columns
    assert without_noise.digest() == Digits().digest()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(0, 2), st.sampled_from(["input", "code", "order", "dtype", "shape"]))
def test_one_changed_value_changes_the_digest_of_rows(row: int, column: int, what: str) -> None:
    inputs, codes = torch.arange(18.0).reshape(6, 3), np.arange(6) % 2
    digest = LabelledRows(inputs, codes).digest()
    assert LabelledRows(inputs.clone(), codes.astype(np.int32)).digest() == digest
    other, other_codes = inputs.clone(), codes.copy()
    if what == "input":
        other[row, column] += 1
    elif what == "code":
        other_codes[row] += 1
    elif what == "order":
        other = other.roll(1, dims=0)
    else:
        other = other.double() if what == "dtype" else other.reshape(6, 1, 3)
    assert LabelledRows(other, other_codes).digest() != digest


def test_rows_read_one_by_one_have_the_digest_of_the_tensor() -> None:
    inputs, codes = torch.arange(18.0).reshape(6, 3), np.arange(6)
    rows = LabelledRows(inputs, codes)
    assert LabelledRows(list(inputs), codes).digest() == rows.digest()
    chosen = np.array([4, 0, 0])
    assert LabelledRows(list(inputs), codes).take(chosen, codes[:3]).digest() == rows.take(chosen, codes[:3]).digest()


def test_rows_need_one_code_each() -> None:
    with pytest.raises(ValueError, match="6 inputs and 5 codes"):
        LabelledRows(torch.zeros(6, 2), np.zeros(5))


def test_an_edit_drops_and_relabels_and_leaves_the_rest(noisy: CuratedData) -> None:
    ids = noisy.train_ids()
    table = {ids[0]: ("drop", None), ids[3]: ("relabel", 9), ids[4]: ("review", 1), ids[7]: ("drop", 2)}
    edited = noisy.edited(decisions(table, pl.Int64))
    left = [row for row in range(len(ids)) if row not in (0, 7)]
    assert edited.train_ids() == [ids[row] for row in left]
    expected = noisy.train_labels()[left]
    expected[left.index(3)] = 9
    assert edited.train_labels().tolist() == expected.tolist()
    for new, old in enumerate(left):
        assert torch.equal(edited.train_dataset[new][0], noisy.train_dataset[old][0])
    assert edited.validation_dataset is noisy.validation_dataset
    assert edited.classes == noisy.classes and edited.batch_size == noisy.batch_size and edited.seed == noisy.seed
    assert len(noisy.train_dataset) == len(ids)
    assert edited.examples["example_id"].to_list() == [i for i in range(1797) if i not in (ids[0], ids[7])]
    assert edited.examples["true_label"].len() == 1795
    assert np.array_equal(edited.show(1).image, noisy.show(2 if left[1] == 2 else 1).image)  # type: ignore[arg-type]


def test_edits_add_up_and_show_in_the_digest(noisy: CuratedData) -> None:
    first, second = noisy.train_ids()[:2]
    both = noisy.edited(decisions({first: ("drop", None), second: ("relabel", 5)}, pl.Int64))
    one = noisy.edited(decisions({first: ("drop", None)}, pl.Int64))
    assert one.edited(decisions({second: ("relabel", 5)}, pl.Int64)).digest() == both.digest()
    assert len({noisy.digest(), one.digest(), both.digest()}) == 3
    assert noisy.edited(decisions({first: ("keep", None)}, pl.Int64)).digest() == noisy.digest()


def test_the_cleaned_table_of_the_demo(noisy: CuratedData) -> None:
    first, second = noisy.train_ids()[:2]
    cleaned = noisy.cleaned_table(decisions({first: ("drop", None), second: ("relabel", 5)}, pl.Int64))
    assert cleaned.height == 1796 and set(cleaned["split"]) == {"train", "validation"}
    assert cleaned.filter(pl.col("example_id") == second)["label"].item() == 5


def test_a_row_is_shown_as_a_picture(noisy: CuratedData) -> None:
    payload = noisy.show(3)
    row = noisy.examples.filter(pl.col("example_id") == noisy.train_ids()[3])
    assert payload.kind == "image" and payload.text is None and payload.features is None
    assert payload.image is not None and payload.image.dtype == np.uint8
    assert np.array_equal(payload.image, np.rint(row["image"].to_numpy()[0] / 16 * 255))


@pytest.mark.parametrize(
    ("values", "shape", "corners"),
    [
        (torch.tensor([[0.0, 0.5], [0.2, 1.0]]), (2, 2), (0, 255)),
        (torch.tensor([[[-1.0, 0.0], [0.0, 3.0]]]), (2, 2), (0, 255)),
        (torch.full((3, 4, 5), 7.0), (4, 5, 3), (0, 0)),
        (torch.tensor([[[3, 200]]], dtype=torch.uint8), (1, 2), (3, 200)),
    ],
)
def test_any_tensor_makes_a_picture(values: torch.Tensor, shape: tuple[int, ...], corners: tuple[int, int]) -> None:
    picture = as_picture(values)
    assert picture.dtype == np.uint8 and picture.shape == shape
    assert (picture.flat[0], picture.flat[-1]) == corners


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_a_split_takes_the_share_of_every_label(labels: list[int], fraction: float, seed: int) -> None:
    ids = pl.Series([f"row{number}" for number in range(len(labels))])
    splits = stratified_split(ids, pl.Series(labels), fraction, seed)
    for label in set(labels):
        mine = [split for split, other in zip(splits, labels, strict=True) if other == label]
        assert mine.count("validation") == min(round(fraction * len(mine)), len(mine) - 1)
        assert set(mine) <= {"train", "validation"}
