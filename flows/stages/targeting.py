"""The target rows of a selection: which there are, which of them choose, and what must hold before anything is computed.

Axes: N training rows of the data (the pool), Q target rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from torch.utils.data import DataLoader, Dataset, Subset

from curation.data import CuratedData, ExampleData, Payload
from curation.data.chosen import Recoded
from curation.data.contents import digest_of_inputs, digest_of_row, texts_of
from curation.errors import DataError
from curation.examples import column_problems
from curation.selection.content import Content
from curation.selection.near_texts import near_copies
from flows.files import digest_of
from flows.stages.common import Arguments, open_data
from flows.stages.evaluation_rows import evaluation_rows
from flows.stages.strategies import budget_of, strategy_of

SHOWN = 24
"""Characters of an option of the data in a message: of a tokenizer it may be a digest."""
LEAST_ROWS = 10
"""Rows of the smallest pool there is something to choose from."""


@dataclass(frozen=True)
class Targets:
    """Target rows, in the order of their table.

    Attributes:
        dataset: item -> one row, map-style, labels coded as the pool's.
        collate: makes a batch of a list of rows.
        table: what is known of each: ``example_id``, the label or question, and the user's columns; Q rows.
        show: of a position how to show it.
        choosing: positions of those that choose, ascending, int64.
        measuring: positions of the others, which are held out, but for those that hold what a choosing row does, or nearly.
        groups: name of the target group of each row, Q.
        evaluation: what rows hold that are kept for a later test.
        digest: of the target rows, as they are and as models see them, and of which choose and which measure.
        evaluation_digest: of the evaluation rows; they decide what is excluded, but neither a score nor a model.
    """

    dataset: Dataset[Any]
    collate: Callable[[Sequence[Any]], Any]
    table: pl.DataFrame
    show: Callable[[int], Payload]
    choosing: np.ndarray
    measuring: np.ndarray
    groups: list[str]
    evaluation: Content
    digest: str
    evaluation_digest: str

    def __len__(self) -> int:
        """Q."""
        return len(self.table)

    def loader(self, positions: np.ndarray, batch_size: int) -> DataLoader[Any]:
        """Batches of some of them, in that order."""
        return DataLoader(Subset(self.dataset, positions.tolist()), batch_size, collate_fn=self.collate)


def open_targets(arguments: Arguments, data: ExampleData) -> Targets:
    """The target rows of a job over the pool ``data``.

    Raises:
        DataError: there are none, too few to choose and to measure, or their source does not go with the pool's.
    """
    options = arguments["target"]
    source, split = data, options["split"]
    if options["data"]["class_path"] is not None:
        source, split = _source(arguments), "all"
        _check_source(data, source)
    table = _described(source)
    rows = np.flatnonzero(_chosen_rows(options, source, table, split))
    if len(rows) < 2:
        raise DataError(
            [f"target: {len(rows)} target rows{_named(options)}; expected some to choose and some to measure"]
        )
    if len(rows) <= options["examples"]:
        raise DataError(
            [
                f"target.examples: {options['examples']} of {len(rows)} target rows{_named(options)} are to choose, which leaves "
                "none to measure: lower it"
            ]
        )
    groups = _groups(options["group_by"], table, rows)
    names = table["example_id"].gather(rows).to_list()
    choosing = np.sort(drawn_order(names, options["seed"])[: options["examples"]])
    dataset = Recoded(source, rows, _coded_as(data, source))
    texts = [source.show_row(int(row)).text for row in rows]
    seen = [
        [digest_of_inputs(dataset[row], text), digest_of_row(source, dataset[row])] for row, text in enumerate(texts)
    ]
    measuring = _others(choosing, [inputs for inputs, _ in seen], texts, arguments["decontaminate"]["near"])
    if not len(measuring):
        raise DataError(
            [
                f"target: all {len(rows) - len(choosing)} target rows{_named(options)} that are to measure hold exactly or nearly "
                "what one that chooses does; expected others"
            ]
        )
    evaluation = evaluation_rows([data] if source is data else [data, source])
    return Targets(
        dataset,
        source.collate,
        table[rows],
        lambda position: source.show_row(int(rows[position])),
        choosing,
        measuring,
        groups,
        evaluation,
        digest_of(
            [
                sorted(zip(map(str, names), seen, groups, strict=True)),
                options["examples"],
                options["seed"],
                sorted(str(names[row]) for row in measuring.tolist()),
            ]
        ),
        digest_of(sorted(zip(map(str, evaluation.ids), evaluation.digests, strict=True))),
    )


def check(arguments: Arguments, data: ExampleData) -> dict[str, Any]:
    """Refuse what cannot be selected; describe the target.

    Returns:
        ``digest`` of the target rows and ``evaluation_digest`` of those for a later test, how many target rows there are
        (``rows``), choose (``choosing``) and measure (``measuring``), the ``groups``, and how many rows of ``target.data`` are in
        splits that are no part of the target (``left_out``).

    Raises:
        DataError: the pool is tiny, the budget is larger than it, there is no target, a column is missing, a control is of
            other rows.
        ModelError: there is no such strategy or option of it.
    """
    count = len(data.train_dataset)
    if count < LEAST_ROWS:
        raise DataError(
            [f"the pool has {count} rows (training rows of the data); expected {LEAST_ROWS} or more to choose from"]
        )
    problems = []
    budget = budget_of(arguments)
    if budget.rows is not None and budget.rows > count:
        problems.append(f"budget.rows: {budget.rows:,} rows are to be chosen, but the pool has {count:,}")
    strategy = strategy_of(arguments)
    problems += column_problems(pool_columns(data), list(strategy.column_names), "strategy: the pool")
    if "bm25" in arguments["controls"] and data.show(0).text is None:
        problems.append(f"controls: bm25 compares texts, the pool holds {data.payload_kind}; leave it out")
    try:
        targets = open_targets(arguments, data)
    except DataError as error:
        problems += error.problems
    if problems:
        raise DataError(problems)
    return {
        "digest": targets.digest,
        "evaluation_digest": targets.evaluation_digest,
        "rows": len(targets),
        "choosing": len(targets.choosing),
        "measuring": len(targets.measuring),
        "groups": sorted({targets.groups[row] for row in targets.choosing}),
        "left_out": _left_out(arguments),
    }


def drawn_order(ids: Sequence[Any], seed: int) -> np.ndarray:
    """A random order of rows, int64: by a hash of seed and id, so that it hardly changes when rows come, go or move."""
    draws = [hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest() for name in ids]
    return np.array(sorted(range(len(draws)), key=draws.__getitem__), dtype=np.int64)


def contents(data: ExampleData) -> pl.DataFrame:
    """Of each row of the pool ``example_id``, ``inputs`` and ``content``: digests of what it is and of all a model sees of it."""
    rows, texts = data.train_dataset, texts_of(data)
    return pl.DataFrame(
        {
            "example_id": data.examples.filter(split="train")["example_id"],
            "inputs": [digest_of_inputs(rows[row], texts[row] if texts else None) for row in range(len(rows))],
            "content": [digest_of_row(data, rows[row]) for row in range(len(rows))],
        }
    )


def pool_columns(data: ExampleData) -> pl.DataFrame:
    """What is known of the pool's rows beside their payload, N rows."""
    return _described(data).filter(split="train")


def _described(data: ExampleData) -> pl.DataFrame:
    """The example table and the user's further columns, all splits; lists and pictures are left out."""
    plain = [name for name, dtype in data.examples.schema.items() if not dtype.is_nested() and dtype != pl.Object]
    known = data.examples.select(plain)
    if len(data.table) < len(known):  # the rows of a validation file have the example table's columns only
        return known
    further = [name for name, dtype in data.table.schema.items() if name not in known.columns and not dtype.is_nested()]
    return known.hstack(data.table.select(further))


def _chosen_rows(options: dict[str, Any], source: ExampleData, table: pl.DataFrame, split: str) -> np.ndarray:
    """Which rows of the source are target rows, bool [rows].

    Raises:
        DataError: there is no such column, or a value that no row of the split has.
    """
    seen = table["split"].is_in(["train", "validation"]) if split == "all" else table["split"] == split
    column, values = options["where"]["column"], [str(value) for value in options["where"]["values"]]
    if column is None:
        return seen.to_numpy()
    problems = column_problems(table, [column], "target.where")
    if problems:
        raise DataError(problems)
    cells = table[column].cast(pl.String)
    missing = sorted(set(values) - set(cells.filter(seen).to_list()))
    if missing:
        where = "the target's data" if split == "all" else f"the {split} split"
        raise DataError(
            [f"target.where: no row of {where} has {', '.join(map(repr, missing))} in the column {column!r}"]
        )
    rows: np.ndarray = (seen & cells.is_in(values)).to_numpy()
    return rows


def _source(arguments: Arguments) -> ExampleData:
    """What ``target.data`` names; rows that were purged are left out of it, too."""
    purged = {"purged": arguments["purged"]} if "purged" in arguments else {}
    return open_data({"data": arguments["target"]["data"], "root": arguments["root"], **purged})


def _left_out(arguments: Arguments) -> int:
    """Rows of ``target.data`` that are neither for training nor for validation there."""
    if arguments["target"]["data"]["class_path"] is None:
        return 0
    source = _source(arguments)
    return int((~source.examples["split"].is_in(["train", "validation"])).sum())


def _groups(column: str | None, table: pl.DataFrame, rows: np.ndarray) -> list[str]:
    if column is None:
        return ["target"] * len(rows)
    problems = column_problems(table, [column], "target.group_by")
    if problems:
        raise DataError(problems)
    return [str(value) for value in table[column].gather(rows).to_list()]


def _others(choosing: np.ndarray, inputs: Sequence[str], texts: Sequence[str | None], near: float | None) -> np.ndarray:
    """Positions of the target rows that do not choose and hold nothing that one that chooses does, int64, ascending.

    Args:
        choosing: positions of those that choose.
        inputs: digest of what each row is beside its label.
        texts: text of each row; None where rows are none.
        near: least similarity of texts that are nearly the same; None, or 1: only equal rows are.
    """
    chosen = set(choosing.tolist())
    known = {inputs[row] for row in chosen}
    left = [row for row in range(len(inputs)) if row not in chosen and inputs[row] not in known]
    if near is not None and near < 1 and texts[0] is not None:
        copies = near_copies(
            tuple(texts[row] or "" for row in sorted(chosen)), tuple(texts[row] or "" for row in left), near
        )
        left = [row for place, row in enumerate(left) if place not in copies]
    return np.array(left, dtype=np.int64)


def _check_source(data: ExampleData, source: ExampleData) -> None:
    """Nothing, where a model of the pool's rows takes those of the target.

    Raises:
        DataError: they are of another kind, another tokenizer made them, or the pool has not all of their labels.
    """
    if source.payload_kind != data.payload_kind:
        raise DataError(
            [f"target.data holds {source.payload_kind}, the pool {data.payload_kind}; one model takes one of them"]
        )
    mine, theirs = data.model_defaults(), source.model_defaults()
    if "tokenizer" in mine:  # texts may be padded to other lengths
        names: tuple[str, ...] = ("tokenizer", "vocab_size", "vocab_buckets", "pad_id")
    else:
        names = ("input_shape",)
    other = [
        f"{name} {str(theirs.get(name))[:SHOWN]} there, {str(mine[name])[:SHOWN]} here"
        for name in names
        if name in mine and theirs.get(name) != mine[name]
    ]
    problems = [
        f"target.data: its rows are made otherwise than the pool's ({'; '.join(other)}), and a model takes the one or the other: "
        "give target.data.init_args the options that data.init_args has, the same tokenizer by name or folder among them"
    ][: len(other)]
    if isinstance(data, CuratedData) and isinstance(source, CuratedData):
        unknown = [label for label in source.classes if label not in data.classes]
        if unknown:
            problems.append(f"target.data: no training row of the pool has the label {', '.join(map(repr, unknown))}")
    if problems:
        raise DataError(problems)


def _coded_as(data: ExampleData, source: ExampleData) -> list[int] | None:
    """Code of each of the source's labels among the pool's; None where they are the same, or there are none."""
    if not isinstance(data, CuratedData) or not isinstance(source, CuratedData) or source.classes == data.classes:
        return None
    codes = {label: code for code, label in enumerate(data.classes)}
    return [codes[label] for label in source.classes]


def _named(options: dict[str, Any]) -> str:
    """Where target rows were looked for."""
    if options["data"]["class_path"] is not None:
        return " in target.data"
    where = options["where"]
    narrowed = f" with {where['column']} {', '.join(map(repr, where['values']))}" if where["column"] else ""
    return f" in the {options['split']} split{narrowed}"
