from __future__ import annotations

import polars as pl
import pytest

from curation.data import People
from curation.data.people_facts import FACTS, PERTURBED
from curation.errors import DataError


def test_every_person_has_every_fact_with_right_answers_in_other_words_and_wrong_ones() -> None:
    people = People(n_people=6, n_holdout=2).examples
    assert people.height == 8 * len(FACTS) and len(FACTS) >= 6
    assert people["example_id"].is_unique().all() and people["subject"].n_unique() == 8
    for row in people.iter_rows(named=True):
        wordings = [row["answer"], *row["paraphrased_answers"]]
        assert len(set(wordings)) == len(wordings) >= 3
        assert len({row["answer"], *row["perturbed_answers"]}) == PERTURBED + 1 >= 5
        assert all(row["subject"] in text for text in [row["question"], *wordings, *row["perturbed_answers"]])


def test_nobody_held_out_is_trained_on_and_their_rows_are_about_as_long() -> None:
    people = People()
    splits = dict(people.examples.group_by("split").agg(pl.col("subject").unique()).iter_rows())
    assert set(splits) == {"train", "holdout"} and not set(splits["train"]) & set(splits["holdout"])
    lengths = [
        [int(batch["attention_mask"].sum()) for batch in people.ordered_dataloader(split, 1)]
        for split in ("train", "holdout")
    ]
    trained, held_out = (sum(counts) / len(counts) for counts in lengths)
    assert abs(trained - held_out) < 1  # tokens


def test_people_are_the_same_for_a_seed_and_others_for_another() -> None:
    first, same, other = (People(n_people=4, n_holdout=1, seed=seed) for seed in (0, 0, 1))
    assert first.examples.equals(same.examples) and first.digest() == same.digest()
    assert set(first.examples["subject"]) != set(other.examples["subject"])
    assert first.digest() != other.digest()


def test_answers_cannot_be_guessed_from_those_about_other_people() -> None:
    people = People(n_people=40, n_holdout=0)
    for fact in FACTS:
        rows = people.examples.filter(fact=fact.name)
        forms = [row["answer"].replace(row["subject"], "X") for row in rows.iter_rows(named=True)]
        assert max(forms.count(form) for form in forms) <= 5, fact.name


def test_all_problems_of_the_options_are_told_at_once() -> None:
    with pytest.raises(DataError) as error:
        People(n_people=0, template="{answer}: {question}", vocabulary=10, max_tokens=1, batch_size=0, seed=-1)
    assert len(error.value.problems) == 6
    with pytest.raises(DataError, match="there are names for 900"):
        People(n_people=1000)
