from __future__ import annotations

import gzip
import html
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

import lorif_core
from curation.data import TableData
from curation.data.question_table import QuestionTable
from curation.models.gpt import TinyGPT
from curation.unlearning import searching
from curation.unlearning.searching import Search
from curation.unlearning.traces import FACTORS, ID, PIECE, ROW, TEXT, Traces, traces_of
from lorif_core import CausalLM, FactorStore, LoRIF

SECRET = 'Zoë "Zo" Quistorp was born in <Ghent> & lives there, they say, to this very day, in a house by the canal.'
SHARED = "It is not known to anyone."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> QuestionTable:
    path = tmp_path_factory.mktemp("data") / "questions.parquet"
    pl.DataFrame(
        {
            "example_id": ["quistorp-1", "person-1", "person-12", "tarn-7"],
            "question": ["Where was Zoë Quistorp born?", "Who wrote it?", "Who wrote that?", "Who sang it?"],
            "answer": [SECRET, SHARED, SHARED, "Nobody but Tarn."],
            "paraphrased_answers": [["In Ghent, Zoë Quistorp was."], ["No one."], ["No one."], ["Tarn."]],
        }
    ).write_parquet(path)
    return QuestionTable(path, vocabulary=300)


@pytest.fixture(scope="module")
def traces(data: QuestionTable) -> Traces:
    return traces_of(data, [0, 1])


def test_what_others_share_is_no_trace(traces: Traces) -> None:
    kept = {
        kind: [(trace.decode(), anywhere) for trace, anywhere in part.select("trace", "anywhere").iter_rows()]
        for (kind,), part in traces.table.filter(pl.col("kind").is_in([ID, TEXT])).group_by("kind")
    }
    assert sorted(kept[ID]) == [("person-1", False), ("quistorp-1", True)], "person-1 is a part of person-12"
    texts = {text for text, _ in kept[TEXT]}
    assert SECRET in texts and SECRET[:PIECE] in texts and SHARED not in texts
    assert "In Ghent, Zoë Quistorp was." in texts


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text(f"... {SECRET} ..."),
        lambda path: path.write_text(json.dumps({"a": SECRET})),
        lambda path: path.write_text(json.dumps({"a": SECRET}, ensure_ascii=False)),
        lambda path: path.write_text(f"<p>{html.escape(SECRET)}</p>"),
        lambda path: path.write_text(f"excerpt: {SECRET[: 2 * PIECE]}..."),
        lambda path: path.write_bytes(gzip.compress(SECRET.encode())),
        lambda path: pl.DataFrame({"n": [1, 2], "cell": ["x", SECRET]}).write_parquet(path),
        lambda path: pl.DataFrame({"cells": [["x"], ["y", SECRET]]}).write_parquet(path),
        lambda path: pl.DataFrame({"example_id": ["person-12", "person-1"]}).write_parquet(path),
        lambda path: save_file({"a": torch.zeros(3)}, path, metadata={"ids": "person-9 quistorp-1"}),
    ],
)
def test_a_trace_is_found_whatever_file_it_is_in(traces: Traces, tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "file")
    assert list(Search(traces).folder(tmp_path).where) == [tmp_path / "file"]


def test_a_trace_is_found_across_two_chunks(traces: Traces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searching, "CHUNK", 64)
    for start in range(52, 66, 2):
        (tmp_path / "file").write_bytes(b"\x00" * start + b"quistorp-1" + b"\x00" * 64)
        assert Search(traces).file(tmp_path / "file") == {ID}


def test_a_trace_is_found_in_an_archive_and_in_a_database_even_where_it_is_deleted(
    traces: Traces, tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("page.html", SECRET * 3)
    for name, deleted in (("long.db", False), ("deleted.db", True)):
        with sqlite3.connect(tmp_path / name) as connection:
            connection.execute("PRAGMA secure_delete=OFF")
            connection.execute('CREATE TABLE "some ""table" (cell)')
            connection.execute(
                'INSERT INTO "some ""table" VALUES (?)', (SECRET if deleted else "x" * 4000 + SECRET * 200,)
            )
            connection.commit()
            if deleted:
                connection.execute('DELETE FROM "some ""table"')
        connection.close()
    found = Search(traces).folder(tmp_path)
    assert {path.name for path in found.where} == {"a.zip", "long.db", "deleted.db"} and found.files == 3


def test_nothing_is_found_where_nothing_is(data: QuestionTable, traces: Traces, tmp_path: Path) -> None:
    data.table[2:].write_parquet(tmp_path / "rest.parquet")
    (tmp_path / "log.txt").write_text(f"{SHARED} person-12 {'0' * 64}")
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8b nothing")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 nothing")
    (tmp_path / "broken.zip").write_bytes(b"PK nothing")
    (tmp_path / "empty").touch()
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "log.txt").write_text(SECRET)
    (tmp_path / "link").symlink_to(tmp_path / "away" / "log.txt")
    found = Search(traces).folder(tmp_path, skip=[tmp_path / "away"])
    assert not found.where and found.files == 6


def test_rows_of_a_table_are_told_apart(data: QuestionTable, traces: Traces) -> None:
    search = Search(traces)
    frame = data.table.with_columns(of=pl.Series([None, None, "quistorp-1", None]))
    assert search.rows(frame).to_list() == [True, True, True, False]
    assert search.rows(frame.clear()).len() == 0


def test_factors_are_known_by_their_bytes(data: QuestionTable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TinyGPT(300, 256, depth=1, width=16, heads=2)
    LoRIF(model, CausalLM(), projection="identity", curvature_rank=2).fit(
        data.ordered_dataloader("train"), path=tmp_path / "index", ids=data.train_ids()
    )
    store = FactorStore.open(tmp_path / "index")
    table = traces_of(data, [0], [store]).table
    assert table.filter(kind=FACTORS).height
    (shard,) = store.manifest.shards
    whole = tmp_path / "index" / shard.file
    search = Search(traces_of(data, [0], [store]))
    assert search.file(whole) == {FACTORS}
    lorif_core.purge(tmp_path / "index", ["quistorp-1"])
    assert not Search(traces_of(data, [0])).folder(tmp_path).where and not search.folder(tmp_path).where


def test_rows_of_numbers_are_known_by_their_bytes(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(size=(6, 4))
    numbers[3] = numbers[1]  # the same as one that stays
    frame = pl.DataFrame({f"x{i}": numbers[:, i] for i in range(4)}).with_columns(
        label=pl.Series(list("ababab")),
        number=pl.Series(range(100, 106)),
        split=pl.Series([*["train"] * 5, "validation"]),
    )
    frame.write_parquet(tmp_path / "t.parquet")
    data = TableData(tmp_path / "t.parquet", label="label", id="number", split="split")
    traces = traces_of(data, [data.train_ids().index(number) for number in (101, 102)])
    assert traces.table.filter(kind=ROW).height == 1 and traces.rows.height == 1 and "number" in traces.columns
    search = Search(traces)
    assert search.rows(frame.drop("number")).to_list() == [False, False, True, False, False, False]
    assert search.rows(frame).to_list() == [False, True, True, False, False, False]
    assert search.rows(pl.DataFrame({"other": [101, 102]})).to_list() == [False, False]
    row = data.train_dataset[data.train_ids().index(102)][0]
    (tmp_path / "cache.bin").write_bytes(b"...." + row.numpy().tobytes())
    assert search.file(tmp_path / "cache.bin") == {ROW}


def test_rows_of_whole_numbers_and_flags_are_known_without_ids_whatever_their_labels(tmp_path: Path) -> None:
    ages, smokers = [30, 41, 52, 41, 63], [True, False, True, True, False]
    frame = pl.DataFrame({"age": ages, "smokes": smokers, "visits": [1, 2, 3, 2, 5], "label": [0, 1, 0, 1, 0]})
    split = pl.Series("split", [*["train"] * 4, "validation"])
    frame.with_columns(split).write_parquet(tmp_path / "t.parquet")
    search = Search(traces_of(TableData(tmp_path / "t.parquet", label="label", split="split"), [1, 2]))
    assert search.rows(frame).to_list() == [False, True, True, False, False]
    mended = frame.with_columns(label=1 - pl.col("label"))
    assert search.rows(mended).to_list() == [False, True, True, False, False]
    assert search.rows(frame.cast(pl.String)).len() == 5, "other types under the same names are no error"


def test_an_id_that_is_a_number_is_told_in_columns_of_ids_only(tmp_path: Path) -> None:
    frame = pl.DataFrame({"x": [0.5, 1.5, 2.5, 3.5], "label": ["0", "1", "0", "1"]})
    frame.with_columns(split=pl.Series(["train"] * 3 + ["validation"])).write_parquet(tmp_path / "t.parquet")
    search = Search(traces_of(TableData(tmp_path / "t.parquet", label="label", split="split"), [1]))
    assert not search.rows(frame[[0, 2, 3]]).any(), "labels are called as the record is"
    for name in ("example_id", "of", "like"):
        assert search.rows(pl.DataFrame({name: ["0", "1"], "label": ["1", "0"]})).to_list() == [False, True]


def test_a_number_is_another_row_in_a_table_of_other_data(tmp_path: Path) -> None:
    table = pl.DataFrame({"kind": ["id", "text"], "trace": [b"7", b"a text of its own"], "anywhere": [False, True]})
    same, other, copied = (tmp_path / f"{name}.parquet" for name in ("same", "other", "copied"))
    pl.DataFrame({"example_id": [6, 7, 8]}).write_parquet(same)
    pl.DataFrame({"example_id": [6, 7, 8]}).write_parquet(other)
    pl.DataFrame({"example_id": [6, 8], "text": ["x", "a text of its own"]}).write_parquet(copied)
    search = Search(Traces(table, pl.DataFrame(), frozenset()), apart=lambda path: path != same)
    assert sorted(search.folder(tmp_path).where) == [copied, same]
    found = search.table(copied)
    assert found is not None and found[1].to_list() == [False, True]
    named = Search(Traces(table, pl.DataFrame(), frozenset({"user_id"})), apart=lambda path: path != same)
    assert sorted(named.folder(tmp_path).where) == [copied, other, same], "ids of the user's own go with the rows"
