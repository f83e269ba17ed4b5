from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from curation.data import People, Questions, QuestionTable, build_data
from curation.errors import DataError
from lorif_core.objectives import IGNORED
from tests.curation.data.builders import write

ROWS = [
    {"name": "a", "q": "Who wrote it?", "a": "Ada  did.", "about": 1, "right": ["By Ada."], "part": "train"},
    {"name": "b", "q": "When was <end> it?", "a": "In 1900 – or so.", "about": 1, "right": [], "part": "train"},
    {
        "name": "c",
        "q": "Where?",
        "a": "Here, there and everywhere it could be.",
        "about": 2,
        "right": None,
        "part": "train",
    },
    {"name": "d", "q": "Why?", "a": "No <pad> reason.", "about": 3, "right": ["None."], "part": "holdout"},
]
NAMES = {"question": "q", "answer": "a", "id": "name", "split": "part"}


def table(folder: Path, rows: list[dict[str, Any]] = ROWS, **options: Any) -> Questions:
    return QuestionTable(write(pl.DataFrame(rows), folder), **{**NAMES, "paraphrased_answers": "right", **options})


def problems(path: Path, **options: Any) -> list[str]:
    with pytest.raises(DataError) as error:
        QuestionTable(path, **{**NAMES, **options})
    return error.value.problems


def test_a_row_is_the_prompt_the_answer_and_its_end_with_labels_on_the_last_two(tmp_path: Path) -> None:
    data = table(tmp_path)
    end = data.model_defaults()["end_id"]
    for position, row in enumerate(ROWS[:3]):
        ids, labels = data.train_dataset[position]["input_ids"], data.train_dataset[position]["labels"]
        prompt = data.encode_prompt(row["q"])
        assert ids[: len(prompt)].tolist() == prompt and (labels[: len(prompt)] == IGNORED).all()
        assert torch.equal(labels[len(prompt) :], ids[len(prompt) :])
        assert ids.tolist().count(end) == 1 and ids[-1] == end  # "<end>" in a text is text
        assert data.decode(ids[len(prompt) :].tolist()) == row["a"]
        assert data.decode(prompt) == f"Question: {row['q']}\nAnswer:"
        encoded = data.encode(row["q"], row["a"])
        assert all(torch.equal(encoded[name], data.train_dataset[position][name]) for name in encoded)


def test_batches_are_padded_on_the_right_in_table_order(tmp_path: Path) -> None:
    data = table(tmp_path)
    (batch,) = data.ordered_dataloader("train", 3)
    lengths = [len(data.train_dataset[row]["input_ids"]) for row in range(3)]
    assert batch["input_ids"].shape == (3, max(lengths)) == batch["labels"].shape
    assert batch["attention_mask"].sum(1).tolist() == lengths
    padding = batch["attention_mask"] == 0
    assert (batch["labels"][padding] == IGNORED).all() and (batch["input_ids"][padding] == 0).all()
    assert len(data.ordered_dataloader("holdout")) == 1 and len(data.ordered_dataloader("test")) == 0
    assert data.train_ids() == ["a", "b", "c"]
    (found,) = data.loader_of(["d", "a"])
    assert torch.equal(found["input_ids"][1, : lengths[0]], data.train_dataset[0]["input_ids"])
    with pytest.raises(DataError, match="no row of the data has the id: row with id 'z'"):
        data.loader_of(["a", "z"])


def test_a_trained_tokenizer_is_the_same_each_time_and_can_be_kept(tmp_path: Path) -> None:
    data, again = table(tmp_path), table(tmp_path)
    assert data.digest() == again.digest() and data.model_defaults() == again.model_defaults()
    assert data.model_defaults()["vocab_size"] <= 2048
    assert table(tmp_path, vocabulary=300).model_defaults()["vocab_size"] <= 300
    data.contents.tokenizer.save(tmp_path / "tokenizer.json")
    fewer = table(tmp_path, ROWS[:1], tokenizer=str(tmp_path / "tokenizer.json"))
    assert fewer.model_defaults() == data.model_defaults()
    assert torch.equal(fewer.train_dataset[0]["input_ids"], data.train_dataset[0]["input_ids"])
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="is no tokenizer written by this tool"):
        table(tmp_path, tokenizer=str(tmp_path / "tokenizer.json"))


def test_dropped_rows_are_gone_and_the_tokens_of_the_others_stay(tmp_path: Path) -> None:
    data = table(tmp_path)
    left = data.edited(pl.DataFrame({"example_id": ["b", "c"], "decision": ["drop", "keep"]}))
    assert left.train_ids() == ["a", "c"] and left.table.height == left.examples.height == 3
    assert left.model_defaults() == data.model_defaults() and left.digest() != data.digest()
    assert torch.equal(left.train_dataset[1]["input_ids"], data.train_dataset[2]["input_ids"])
    assert len(left.validation_dataset) == 2 and "1900" not in json.dumps(left.examples.to_dicts())
    with pytest.raises(DataError) as error:
        data.edited(pl.DataFrame({"example_id": ["d", "a", "a"], "decision": ["drop", "relabel", "gone"]}))
    assert [problem.split(":")[1].strip()[:12] for problem in error.value.problems] == [
        "no training ",
        "more than on",
        "decision is ",
        "relabel",
    ]
    with pytest.raises(DataError, match="no training row would be left"):
        data.edited(pl.DataFrame({"example_id": ["a", "b", "c"], "decision": ["drop"] * 3}))


def test_rows_are_found_by_the_value_of_any_column_of_the_users(tmp_path: Path) -> None:
    data = table(tmp_path)
    assert data.ids_where("about", [1, 3]) == ["a", "b", "d"]
    with pytest.raises(DataError, match="no row has 7"):
        data.ids_where("about", [1, 7])
    with pytest.raises(DataError, match="there is no column 'abot' .did you mean 'about'"):
        data.ids_where("abot", [1])
    assert data.examples["paraphrased_answers"].to_list() == [["By Ada."], [], [], ["None."]]
    assert data.show(0).text == "Who wrote it?\nAda  did."


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.jsonl", "t.json"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    plain = [{key: row[key] for key in ("q", "a")} for row in ROWS]
    if name == "t.json":
        (tmp_path / name).write_text(json.dumps(plain), encoding="utf-8")
    else:
        write(pl.DataFrame(plain), tmp_path, name)
    data = build_data("curation.data.QuestionTable", {"path": name, "question": "q", "answer": "a"}, tmp_path)
    assert data.train_ids() == [0, 1, 2, 3] and data.examples["answer"].to_list() == [row["a"] for row in ROWS]
    assert len(data.validation_dataset) == 4  # none is of that split: those trained on are watched


def test_all_problems_of_a_table_are_told_at_once(tmp_path: Path) -> None:
    bad = [{**ROWS[0], "a": " ", "part": "forget", "right": [""]}, ROWS[0], {**ROWS[1], "q": None}]
    found = problems(write(pl.DataFrame(bad), tmp_path), paraphrased_answers="right")
    assert [text.split(": ", 1)[1][:36] for text in found] == [
        "column 'name': the same id on severa",
        "column 'q': an empty text in row wit",
        "column 'a': an empty text in row wit",
        "column 'right': an empty text in row",
        "column 'part': 'forget' in row with ",
    ]
    path = write(pl.DataFrame(ROWS), tmp_path)
    assert len(problems(path, question="x", answer="y", vocabulary=1, template="{question}")) == 4
    assert "named for 2 uses" in problems(path, answer="q")[0]
    assert "raise it to" in problems(path, max_tokens=5)[0]
    assert "there is no such file" in problems(path, tokenizer="./none.json")[0]
    assert "no row is in the train split" in problems(write(pl.DataFrame(ROWS[3:]), tmp_path))[0]


def test_an_answer_longer_than_the_model_takes_is_refused() -> None:
    people = People(n_people=2, n_holdout=0, max_tokens=60)
    with pytest.raises(DataError, match="max_tokens is 60"):
        people.encode("Who?", "word " * 100)
