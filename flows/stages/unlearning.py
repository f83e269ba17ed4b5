"""Stage unlearn: the model without the records, as a checkpoint of the model's own."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import polars as pl
from torch import nn
from torch.utils.data import Dataset

from curation.data import ExampleData
from curation.data.questions import Questions
from curation.models.checkpoints import read_checkpoint, write_checkpoint
from curation.options import made_of
from curation.training import TrainOptions, train
from curation.unlearning.changes import Changes
from curation.unlearning.module import Refresh, evenly_spaced
from curation.unlearning.newton_head import NEWTON, NewtonOptions, unlearn_head
from curation.unlearning.objectives import build_objective
from curation.unlearning.rows import Rows
from curation.unlearning.unlearner import REFERENCE, unlearn
from curation.unlearning.ways import Aligner
from flows.environment import threads_default
from flows.files import write_json
from flows.stages.common import Arguments, Output, Progress, new_model, open_data, questions_of, trained_model
from flows.stages.weighing import by_cosine, read_weights, split_rows

RENEW_EVERY = 5
RENEWED_BY = 32
"""Rows that stay whose mean gradient weights are renewed by, evenly spaced."""
CHECKPOINT = "unlearned.ckpt"
ORACLE = "oracle"
APART, FRESH = 1000, 2000
"""Added to the seed, for the oracle and for fresh weights: the models that verification compares with are of other seeds."""

REFUSED = "guard-dynamic: {} weighings left too few records with any weight; the weights before them were kept"


def run(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Unlearn the rows in ``records`` from the model in ``checkpoint``, weighed as in ``weights_file``.

    Goes on from the last finished epoch that an interrupted run left in ``folder``.

    Returns:
        ``values``: ``changed`` and ``tensors`` (how many changed, of how many), ``norm`` of the change, ``seconds``, ``newton``
        (the step, and what error is to be expected; None where none was taken) and ``warnings``; files ``checkpoint``, and
        ``course`` (JSON: ``norms`` of each changed tensor, ``curve`` of the losses, ``weights`` at the end).
    """
    data, options = open_data(arguments), arguments["unlearn"]
    forget, retain = split_rows(data, pl.read_parquet(arguments["records"]), arguments["retain"], options)
    model = trained_model(arguments, data, arguments["checkpoint"])
    if options["objective"] == NEWTON:
        step = unlearn_head(model, forget, retain, made_of(f"objective {NEWTON}", NewtonOptions, options["options"]))
        newton: dict[str, Any] = {"newton": asdict(step.step), "warnings": step.step.warnings()}
        return _written(
            arguments, folder, model.cpu(), step.changes, step.curve, step.seconds, [1.0] * len(forget), newton
        )
    objective = build_objective(options["objective"], options["options"])
    model = model.cpu()
    chosen = TrainOptions(
        **arguments["train"] | {"max_epochs": options["max_epochs"], "seed": options["seed"]},
        threads=threads_default(),
        progress=False,
    )
    oracle = _oracle(arguments, data, folder) if objective.needs_oracle else None
    fresh = new_model(arguments, data, seed=FRESH + options["seed"]) if options["kept"] < 1 else None
    found = unlearn(
        model,
        objective,
        forget,
        retain,
        read_weights(arguments["weights_file"]),
        chosen,
        folder,
        lr=options["lr"],
        alternative=_alternative(data, forget, options["alternative"]) if objective.needs_alternative else None,
        refresh=_refresh(arguments["weights"], forget, retain),
        oracle=oracle,
        fresh=fresh,
        kept=options["kept"],
        schedule=options["schedule"],
        retain_per_record=options["retain_per_record"],
    )
    warnings = [REFUSED.format(found.refused)] * (found.refused > 0)
    told: dict[str, Any] = {"newton": None, "warnings": warnings}
    weights = found.weights.tolist()
    return _written(arguments, folder, model, found.changes, found.curve, found.seconds, weights, told)


def _written(
    arguments: Arguments,
    folder: Path,
    model: nn.Module,
    changes: Changes,
    curve: list[dict[str, float]],
    seconds: float,
    weights: list[float],
    values: dict[str, Any],
) -> Output:
    """The model as a checkpoint, and what became of it."""
    # All but the weights is as it was, so that it loads wherever the model did.
    content = read_checkpoint(arguments["checkpoint"])
    write_checkpoint(content | {"state_dict": model.state_dict()}, folder / CHECKPOINT)
    write_json(folder / "course.json", {"norms": changes.norms, "curve": curve, "weights": weights})
    values |= {"changed": changes.changed, "tensors": changes.tensors, "norm": changes.norm, "seconds": seconds}
    files = {"checkpoint": CHECKPOINT, "course": "course.json"}
    # model.ckpt is of the module that unlearns, its reference holds log-probabilities of the records.
    return Output(
        values, files, spent=("last.ckpt", "model.ckpt", REFERENCE, f"{ORACLE}/last.ckpt", f"{ORACLE}/model.ckpt")
    )


def _oracle(arguments: Arguments, data: ExampleData, folder: Path) -> nn.Module:
    """A model trained without the records, for a part of the passes."""
    options, train_options = arguments["unlearn"], arguments["train"]
    seed, passes = APART + options["seed"], options["oracle_epochs"] or -(-train_options["max_epochs"] // 2)
    oracle = new_model(arguments, data, seed=seed)
    chosen = TrainOptions(
        **train_options | {"max_epochs": passes, "seed": seed}, threads=threads_default(), progress=False
    )
    train(oracle, data.edited(pl.read_parquet(arguments["without"])), chosen, folder / ORACLE)
    return oracle


def _refresh(options: dict[str, Any], forget: Rows, retain: Rows) -> Refresh | None:
    if options["method"] != "guard-dynamic":
        return None
    every = options["refresh_every"] or RENEW_EVERY
    some = replace(retain, positions=evenly_spaced(retain.positions, RENEWED_BY))
    aligner = Aligner(forget, some, options["way"], cosine=by_cosine(options))
    return Refresh(every, options["temperature"], aligner)


class _Answered(Dataset[Any]):
    """The questions of some rows with another answer."""

    def __init__(self, data: Questions, positions: list[int], answer: str) -> None:
        questions = data.examples.filter(split="train")["question"].gather(positions)
        self._rows = {row: data.encode(question, answer) for row, question in zip(positions, questions, strict=True)}

    def __getitem__(self, position: int) -> Any:
        return self._rows[position]

    def __len__(self) -> int:
        return len(self._rows)


def _alternative(data: ExampleData, forget: Rows, answer: str) -> Rows:
    """The records' questions, answered by ``answer``.

    Raises:
        DataError: the rows are no questions.
    """
    return Rows(
        _Answered(questions_of(data), forget.positions.tolist(), answer), forget.positions, forget.collate, forget.size
    )
