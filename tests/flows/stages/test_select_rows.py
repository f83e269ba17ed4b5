"""Rows of select: which are of the target, which cannot be chosen, and which are other rows than before."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from curation.errors import DataError
from curation.unlearning.exclusions import exclude
from flows.stages import excluding, prepare
from flows.stages.common import content_digests, open_data
from flows.stages.targeting import contents, open_targets
from tests.flows.stages.selections import arguments, ignore, texts


def test_targets_of_another_source_are_coded_as_the_pool_and_must_be_made_alike(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", "abc"[row % 3]) for row in range(30)])
    two = texts(tmp_path, "two.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", "cb"[row % 2]) for row in range(6)])
    config = {"data": pool, "target": {"data": two, "examples": 3}, "budget": {"rows": 9}, "controls": []}
    given = arguments(tmp_path, config)
    targets = open_targets(given, open_data(given))
    assert len(targets) == 6 and [code for _, code in (targets.dataset[row] for row in range(6))] == [2, 1] * 3
    assert sorted([*targets.choosing, *targets.measuring]) == list(range(6)) and len(targets.choosing) == 3
    source = open_data({"data": two, "root": given["root"]})
    exclude(tmp_path / "purged.json", "a purge", content_digests(source, [0, 3]))
    left = open_targets(given | {"purged": str(tmp_path / "purged.json")}, open_data(given))
    assert sorted(left.table["example_id"]) == ["t1", "t2", "t4", "t5"]
    buckets = {**two, "init_args": two["init_args"] | {"buckets": 999}}
    given = arguments(tmp_path, config | {"target": {"data": buckets, "examples": 3}})
    with pytest.raises(DataError, match=r"made otherwise than the pool's \(vocab_buckets 999 there, 16384 here\)"):
        open_targets(given, open_data(given))
    unknown = texts(
        tmp_path, "unknown.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", "de"[row % 2]) for row in range(6)]
    )
    given = arguments(tmp_path, config | {"target": {"data": unknown, "examples": 3}})
    with pytest.raises(DataError, match="no training row of the pool has the label 'd', 'e'"):
        open_targets(given, open_data(given))


def test_copies_of_target_rows_that_choose_do_not_measure(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
    own = texts(tmp_path, "own.csv", [(f"t{row}", f"{chr(97 + row // 3) * 9} else", row // 3 % 2) for row in range(12)])
    config = {"data": pool, "target": {"data": own, "examples": 3}, "budget": {"rows": 9}, "controls": []}
    given = arguments(tmp_path, config)
    targets = open_targets(given, open_data(given))
    said = [targets.show(row).text for row in range(12)]
    assert not {said[row] for row in targets.choosing} & {said[row] for row in targets.measuring}
    assert len(targets.measuring) == 12 - 3 * len({said[row] for row in targets.choosing})
    given = arguments(tmp_path, config | {"target": {"data": own, "examples": 11}})
    with pytest.raises(DataError, match="all 1 target rows in target.data that are to measure hold exactly or nearly"):
        open_targets(given, open_data(given))


def test_near_copies_of_target_rows_that_choose_do_not_measure_either(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
    said = [f"the {word} of the {word} is here with a {word} and another {word}" for word in ("sea", "fire", "stone")]
    rows = [(f"t{row}", said[row // 4] + "!" * (row % 4) + " so" * (row % 2), row // 4 % 2) for row in range(12)]
    own = texts(tmp_path, "own.csv", rows)
    config = {"data": pool, "target": {"data": own, "examples": 2}, "budget": {"rows": 9}, "controls": []}
    found = []
    for near in (None, 0.7):
        given = arguments(tmp_path, config | {"decontaminate": {"near": near}})
        found.append(open_targets(given, open_data(given)))
    equal, alike = found
    chose = {row // 4 for row in alike.choosing.tolist()}
    assert {row // 4 for row in equal.measuring.tolist()} == {0, 1, 2}
    assert {row // 4 for row in alike.measuring.tolist()} == {0, 1, 2} - chose and equal.digest != alike.digest


def test_rows_of_another_split_of_the_targets_data_are_told(tmp_path: Path) -> None:
    pool = texts(tmp_path, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
    own = texts(tmp_path, "own.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", row % 2) for row in range(12)])
    frame = pl.read_csv(tmp_path / "own.csv")
    frame.with_columns(split=pl.Series(["train"] * 7 + ["test"] * 3 + ["validation"] * 2)).write_csv(
        tmp_path / "own.csv"
    )
    config = {"data": pool, "target": {"data": own, "examples": 3}, "budget": {"rows": 9}, "controls": []}
    found = prepare.load(arguments(tmp_path, config), tmp_path, ignore).values["select"]
    assert (found["rows"], found["left_out"]) == (9, 3)


@pytest.mark.parametrize("where", ["pool", "own"])
def test_no_row_like_one_of_the_split_test_is_chosen(where: str, tmp_path: Path) -> None:
    said = [" ".join(f"{chr(97 + (row + word) % 26) * 3}{row}" for word in range(12)) for row in range(40)]
    rows = {"pool": [(f"r{row}", text, row % 2) for row, text in enumerate(said)]}
    rows["own"] = [(f"t{row}", f"{chr(97 + row) * 9} else", row % 2) for row in range(12)]
    sections = {name: texts(tmp_path, f"{name}.csv", some) for name, some in rows.items()}
    extra = pl.DataFrame(
        {"id": ["e0", "e1"], "text": [said[3], said[5] + "!!"], "label": [0, 9], "split": ["test"] * 2}
    )
    pl.concat([pl.read_csv(tmp_path / f"{where}.csv"), extra]).write_csv(tmp_path / f"{where}.csv")
    target = {"data": sections["own"], "examples": 3}
    given = arguments(tmp_path, {"data": sections["pool"], "target": target, "budget": {"rows": 9}, "controls": []})
    given["duplicates"]["remove"] = False
    prepare.load(given, tmp_path, ignore)
    values = excluding.run(given | {"rows": str(tmp_path / "rows.parquet")}, tmp_path, ignore).values
    excluded = pl.read_parquet(tmp_path / "excluded.parquet")
    assert values["excluded"] == {"evaluation rows": 2}
    assert excluded.select("example_id", "like").rows() == [("r3", "e0"), ("r5", "e1")]


def test_rows_of_the_split_test_are_told_apart_from_the_target(tmp_path: Path) -> None:
    found = []
    for number, said in enumerate((None, "of none in the pool", "words of row 7")):
        folder = tmp_path / str(number)
        folder.mkdir()
        pool = texts(folder, "pool.csv", [(f"r{row}", f"words of row {row}", row % 2) for row in range(30)])
        own = texts(folder, "own.csv", [(f"t{row}", f"{chr(97 + row) * 9} else", row % 2) for row in range(12)])
        if said is not None:
            extra = pl.DataFrame({"id": ["e"], "text": [said], "label": [0], "split": ["test"]})
            pl.concat([pl.read_csv(folder / "own.csv"), extra]).write_csv(folder / "own.csv")
        given = arguments(folder, {"data": pool, "target": {"data": own, "examples": 3}, "budget": {"rows": 9}})
        given["duplicates"]["remove"] = False
        target = prepare.load(given, folder, ignore).values["select"]
        values = excluding.run(given | {"rows": str(folder / "rows.parquet")}, folder, ignore).values
        found.append((target["digest"], target["evaluation_digest"], values["excluded_digest"]))
    target_digests, evaluation_digests, excluded_digests = (list(each) for each in zip(*found, strict=True))
    assert len(set(target_digests)) == 1, "names the grown index and the models"
    assert len(set(evaluation_digests)) == 3
    assert excluded_digests[0] == excluded_digests[1] != excluded_digests[2]


def test_numbers_of_the_split_test_are_not_chosen_either(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(40, 3)).round(3)
    values[39] = values[4]
    frame = pl.DataFrame(values, schema=["a", "b", "c"]).with_columns(
        id=pl.int_range(40), label=pl.int_range(40) % 2, split=pl.Series(["train"] * 32 + ["validation"] * 7 + ["test"])
    )
    frame.write_csv(tmp_path / "numbers.csv")
    init = {"path": "numbers.csv", "label": "label", "id": "id", "features": ["a", "b", "c"], "split": "split"}
    data = {"class_path": "TableData", "init_args": init}
    given = arguments(tmp_path, {"data": data, "target": {"examples": 3}, "budget": {"rows": 9}, "controls": []})
    prepare.load(given, tmp_path, ignore)
    excluding.run(given | {"rows": str(tmp_path / "rows.parquet")}, tmp_path, ignore)
    excluded = pl.read_parquet(tmp_path / "excluded.parquet")
    assert excluded.select("example_id", "kind", "like").rows() == [(4, "evaluation rows", "39")]


def test_a_row_whose_tokens_are_made_otherwise_is_another_row_of_a_growing_pool(tmp_path: Path) -> None:
    rows = [(f"r{row}", f"a number of words of row {row}", row % 2) for row in range(12)]
    short, long = (
        open_data(
            arguments(tmp_path, {"data": texts(tmp_path, "pool.csv", rows, max_tokens=most), "budget": {"rows": 9}})
        )
        for most in (2, 8)
    )
    before, after = contents(short), contents(long)
    assert before["inputs"].equals(after["inputs"])
    assert before.join(after, on=["example_id", "content"]).is_empty()
    padded = [(f"r{row}", text if row else f"{text} and more", label) for row, (_, text, label) in enumerate(rows)]
    wider = contents(
        open_data(arguments(tmp_path, {"data": texts(tmp_path, "wide.csv", padded), "budget": {"rows": 9}}))
    )
    plain = contents(open_data(arguments(tmp_path, {"data": texts(tmp_path, "pool.csv", rows), "budget": {"rows": 9}})))
    assert wider["content"][1:].equals(plain["content"][1:]), "padding makes no other row"
