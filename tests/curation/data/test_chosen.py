"""Training on chosen rows: which are drawn, how often, and what tells one choice from another."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Subset

from curation.data import Digits, MixedDigits, People
from curation.data.chosen import ChosenRows, Passes, Recoded
from curation.data.contents import digest_of_inputs, lengths_of, texts_of
from curation.errors import DataError
from curation.models import build_model
from curation.training import TrainOptions, train

DIGITS = Digits(validation_fraction=0.5)
WATCHED = Subset(DIGITS.validation_dataset, range(20))


def chosen(rows: list[int], weights: list[float] | None = None, steps: int | None = None) -> ChosenRows:
    weighed = np.ones(len(rows)) if weights is None else np.array(weights)
    return ChosenRows(DIGITS, np.array(rows), weighed, WATCHED, "watched", steps)


def test_every_row_comes_once_a_pass_and_nearly_as_often_when_passes_are_cut() -> None:
    assert sorted(Passes(7, 7, None)) == list(range(7))
    counts = Counter(Passes(7, 3 * 7 + 2, None))
    assert set(counts.values()) == {3, 4} and sum(counts.values()) == 23
    assert len(Passes(7, 23, None)) == 23


def test_unequal_weights_are_shares_of_what_is_drawn() -> None:
    weights = torch.tensor([0.5, 1.5, 1.0])
    counts = Counter(Passes(3, 30_000, weights))
    for row in range(3):
        # Four standard deviations of a binomial count.
        assert abs(counts[row] / 30_000 - weights[row] / 3) < 4 * (0.25 / 30_000) ** 0.5


def test_an_epoch_has_the_steps_asked_for_whatever_the_number_of_rows() -> None:
    for rows in (3, 64, 200):
        loader = chosen(list(range(rows)), steps=5).train_dataloader()
        assert len(loader) == 5 and sum(len(codes) for _, codes in loader) == 5 * 64
    assert len(chosen(list(range(100))).train_dataloader()) == 2  # one pass


def test_two_trainings_on_the_same_rows_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    states = []
    for name in ("first", "again"):
        model = build_model("curation.models.ImageClassifier", {"arch": "mlp"}, DIGITS.model_defaults(), seed=1)
        rows = chosen([3, 1, 4, 15, 9], steps=2)
        result = train(model, rows, TrainOptions(max_epochs=2, seed=1, progress=False), tmp_path / name)
        assert [one["epoch"] for one in result.history] == [1, 2] and result.metrics["val_n"] == 20
        states.append(model.state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


def test_the_digest_tells_rows_weights_and_steps_apart() -> None:
    found = {
        one.digest()
        for one in (chosen([1, 2]), chosen([2, 1]), chosen([1, 2], [0.5, 1.5]), chosen([1, 2], steps=3), chosen([1, 3]))
    }
    assert len(found) == 5 and chosen([1, 2]).digest() in found
    with pytest.raises(ValueError, match="0 rows and 0 weights"):
        chosen([])


def test_rows_of_both_splits_are_recoded_and_shown() -> None:
    splits = DIGITS.examples["split"].to_list()
    rows = np.array([splits.index("validation"), splits.index("train")])
    codes = list(reversed(range(10)))
    found = Recoded(DIGITS, rows, codes)
    for (inputs, code), dataset in zip(found, (DIGITS.validation_dataset, DIGITS.train_dataset), strict=False):
        assert torch.equal(inputs, dataset[0][0]) and code == codes[dataset[0][1]]
    shown = DIGITS.show_row(int(rows[0])).image
    assert shown is not None
    assert np.array_equal(shown, np.rint(DIGITS.validation_dataset[0][0][0].numpy() * 255).astype(np.uint8))


def test_inputs_are_told_apart_by_their_bytes_and_texts_by_themselves() -> None:
    first, second = DIGITS.train_dataset[0], DIGITS.train_dataset[1]
    assert digest_of_inputs(first) == digest_of_inputs((first[0].clone(), 5)) != digest_of_inputs(second)
    padded = (torch.zeros(9, dtype=torch.int64), 0)
    assert digest_of_inputs(padded, "a text") == digest_of_inputs(first, "a text") != digest_of_inputs(first, "a Text")


def test_lengths_are_tokens_of_questions_and_ones_of_pictures() -> None:
    people = People(n_people=2, n_holdout=1, vocabulary=300)
    lengths = lengths_of(people)
    assert [len(people.train_dataset[row]["input_ids"]) for row in range(len(lengths))] == lengths.tolist()
    assert len(texts_of(people) or []) == len(lengths)
    assert texts_of(DIGITS) is None and set(lengths_of(DIGITS).tolist()) == {1}


def test_mixed_digits_are_spoilt_as_asked_and_only_in_training() -> None:
    data = MixedDigits(wrong=0.25, other=0.5)
    train, clean = data.examples.filter(split="train"), Digits(validation_fraction=0.3)
    counts = dict(train["source"].value_counts().iter_rows())
    assert counts == {
        "wrong labels": int(0.25 * len(train)),
        "other task": int(0.5 * len(train)),
        "digits": len(train) - int(0.25 * len(train)) - int(0.5 * len(train)),
    }
    wrong = train.filter(source="wrong labels")
    assert (wrong["label"] != wrong["true_label"]).all()
    labels = dict(clean.examples.select("example_id", "label").iter_rows())
    for name, shift in (("other task", 5), ("digits", 0)):
        part = train.filter(source=name)
        assert all(label == (labels[row] + shift) % 10 for row, label in part.select("example_id", "label").iter_rows())
    turned = next(row for row, source in enumerate(train["source"]) if source == "other task")
    place = clean.train_ids().index(data.train_ids()[turned])
    assert torch.equal(data.train_dataset[turned][0], torch.rot90(clean.train_dataset[place][0], dims=(1, 2)))
    assert set(data.examples.filter(split="validation")["source"]) == {"digits"}
    with pytest.raises(DataError, match="wrong and other must be shares that leave some rows"):
        MixedDigits(wrong=0.5, other=0.5)
