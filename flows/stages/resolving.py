"""Stage resolve: which training rows a request means, and which others are the same record as one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from curation.data import CuratedData, ExampleData
from curation.data.edits import dropping
from curation.errors import DataError
from curation.examples import column_problems, name_rows, write_parquet_atomic
from curation.unlearning.duplicates import Duplicate, by_gradients, by_inputs, by_text
from curation.unlearning.ledger import Ledger
from flows.stages.common import Arguments, Output, Progress, content_digests, open_data
from lorif_core import FactorStore
from lorif_core.remote import checkout

BEFORE = "removed before"
"""Why a row goes that nobody asks for this time."""


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Find the rows of ``ids`` (text, or a number that the data has as such), or those of ``request.where``.

    The model that is unlearned from was trained on what the data holds, so that what ``ledger`` says was removed before, and the
    data still has, goes again: else a second request would bring back what the first had removed.

    Returns:
        ``values``: ``records`` (rows to be removed), ``requested`` of them, ``unknown`` (ids of the ledger's that no training
        row has), ``searched`` (how near-duplicates were looked for) and ``digest`` of the data without them; files
        ``records`` (``position`` among the training rows, ``example_id``, ``why``, ``of``: the requested row it is like,
        ``similarity``, ``content``: digest of the row) and ``decisions``, which drop them.

    Raises:
        DataError: an id that no training row has; the text names it. Or none of the rows that are to stay does.
    """
    data, request = open_data(arguments), arguments["request"]
    ids = data.train_ids()
    asked, unknown = asked_for(data, request, arguments["ids"])
    requested = positions_of(data, asked)
    if not len(requested):
        return Output({"records": 0, "requested": 0, "unknown": unknown, "searched": [], "digest": data.digest()})
    before = np.setdiff1d(positions_of(data, removed_before(arguments, ids)), requested)
    gone = np.union1d(requested, before)
    rules, found = request["near_duplicates"], list[tuple[str, Duplicate]]()
    searched = []
    texts = texts_of(data) if rules["text"] is not None else None
    if texts is not None:
        searched.append(f"text, cosine of tf-idf weighted character n-grams of at least {rules['text']}")
        found += [("near-duplicate by text", one) for one in by_text(texts, gone, rules["text"])]
    elif rules["text"] is not None and isinstance(data, CuratedData):
        searched.append("inputs, the same number for number")
        found += [("same inputs", one) for one in by_inputs(data.train_dataset, len(ids), gone)]
    if rules["attribution"] is not None:
        searched.append(f"attribution, cosine of the gradients in the index of at least {rules['attribution']}")
        store = FactorStore.open(checkout(arguments["index_path"]))
        found += [("near-duplicate by attribution", one) for one in by_gradients(store, gone, rules["attribution"])]
    rows: dict[int, dict[str, Any]] = {
        int(row): {"why": why, "of": None, "similarity": None}
        for why, positions in (("requested", requested), (BEFORE, before))
        for row in positions
    }
    for why, one in found:
        rows.setdefault(one.position, {"why": why, "of": ids[one.of], "similarity": one.similarity})
    if len(rows) == len(ids):
        raise DataError([f"request: all {len(ids)} training rows are to be removed; nothing would stay"])
    staying(
        data, np.array(sorted(rows)), arguments["retain"]
    )  # what is wrong with it is said before anything is weighed
    kind = data.examples["example_id"].dtype
    schema: dict[str, Any] = {
        "position": pl.Int64,
        "example_id": kind,
        "why": pl.String,
        "of": kind,
        "similarity": pl.Float64,
    }
    records = pl.DataFrame(
        [{"position": row, "example_id": ids[row], **rows[row]} for row in sorted(rows)], schema=schema
    )
    records = records.with_columns(content=pl.Series(content_digests(data, records["position"].to_list())))
    write_parquet_atomic(records, folder / "records.parquet")
    decisions = dropping(data.examples, records["example_id"])
    write_parquet_atomic(decisions, folder / "decisions.parquet")
    values = {
        "records": len(records),
        "requested": len(requested),
        "unknown": unknown,
        "searched": searched,
        "digest": data.edited(decisions).digest(),
    }
    return Output(values, {"records": "records.parquet", "decisions": "decisions.parquet"})


def asked_for(data: ExampleData, request: dict[str, Any], ids: list[Any] | None) -> tuple[list[Any], list[str]]:
    """The ids that are asked for, and those of them that no training row has: only requests of the ledger may name such.

    Raises:
        DataError: others do, or what ``request.where`` names is not there.
    """
    asked = ids if ids is not None else ids_where(data, "request.where", **request["where"])
    unknown = unknown_ids(data, asked)
    if unknown and not request["ledger"]:
        raise DataError([f"request: no training row has the id: {name_rows(unknown)}{_elsewhere(data, unknown)}"])
    return asked, unknown


def staying(data: ExampleData, gone: np.ndarray, retain: dict[str, Any]) -> np.ndarray:
    """Positions of the training rows that weights, steps and checks go by, sorted, int64 [n]: none of those that go.

    Args:
        data: whole.
        gone: positions of the rows that are removed.
        retain: which others are meant (``ids`` or ``where``); all where it names none.

    Raises:
        DataError: it names rows that are not there, or none that stays.
    """
    ids, where = retain["ids"], retain["where"]
    if not ids and where["column"] is None:
        return np.setdiff1d(np.arange(len(data.train_ids())), gone)
    ids = ids or ids_where(data, "retain.where", **where)
    if unknown := unknown_ids(data, ids):
        raise DataError([f"retain: no training row has the id: {name_rows(unknown)}{_elsewhere(data, unknown)}"])
    found = np.setdiff1d(positions_of(data, ids), gone)
    if not len(found):
        raise DataError([f"retain: all {len(ids)} rows that it names are to be removed"])
    return found


def ids_where(data: ExampleData, key: str, column: str, values: list[Any]) -> list[Any]:
    """Ids of the training rows that have one of ``values`` in ``column`` of the user's table; ``key`` asks for them.

    Raises:
        DataError: no such column, or a value that no training row has.
    """
    problems = column_problems(data.table, [column], key)
    if problems:
        raise DataError(problems)
    rows = (
        data.examples.head(len(data.table))
        .select("example_id", "split")
        .with_columns(cell=data.table[column].cast(pl.String))
    )
    train = rows.filter(split="train")
    missing = sorted({str(value) for value in values} - set(train["cell"].to_list()))
    if missing:
        raise DataError([f"{key}: no training row has {', '.join(map(repr, missing))} in the column {column!r}"])
    return train.filter(pl.col("cell").is_in([str(value) for value in values]))["example_id"].to_list()


def removed_before(arguments: Arguments, ids: list[Any]) -> list[Any]:
    """Those of ``ids`` that earlier requests of the job's ledger have removed; none where it has none."""
    if arguments["ledger"] is None:
        return []
    place, dataset = arguments["ledger"], arguments["request"]["dataset"]
    ledger = Ledger(place if "://" in place else Path(place))
    gone = ledger.removed(dataset)
    return [one for one in ids if ledger.record_hash(one, dataset) in gone] if gone else []


def unknown_ids(data: ExampleData, ids: list[Any]) -> list[str]:
    """Those of ``ids`` that no training row has."""
    known = set(map(str, data.train_ids()))
    return [str(one) for one in ids if str(one) not in known]


def positions_of(data: ExampleData, ids: list[Any]) -> np.ndarray:
    """Positions of the training rows called ``ids``, sorted, int64 [n]; an id that none has is left out."""
    wanted = set(map(str, ids))
    return np.array([row for row, one in enumerate(data.train_ids()) if str(one) in wanted], dtype=np.int64)


def _elsewhere(data: ExampleData, ids: list[str]) -> str:
    """How many of the ids are rows of another split."""
    other = set(map(str, data.examples["example_id"].to_list())) & set(ids)
    return f" ({len(other)} of them are rows of other splits, which were not trained on)" if other else ""


def texts_of(data: ExampleData) -> list[str] | None:
    """The text of each training row; None where rows are no text."""
    shown = data.show(0)
    if shown.text is None:
        return None
    return [data.show(row).text or "" for row in range(len(data.train_dataset))]
