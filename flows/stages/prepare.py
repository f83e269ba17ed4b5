"""Stage load: read and check the data, the model and what is to be loaded, before anything is computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from curation.data import CuratedData, ExampleData
from curation.data.questions import Questions
from curation.errors import CurationError, DataError, ModelError, TrainingError
from curation.examples import table_digest, write_parquet_atomic
from curation.mislabel import forward_pass
from curation.models import kind_of
from curation.options import made_of
from curation.unlearning.newton_head import NEWTON, NewtonOptions, check_head
from curation.unlearning.objectives import build_objective
from flows.files import digest_file, digest_of
from flows.requests import named_ids
from flows.stages import resolving, strategies, targeting
from flows.stages.common import (
    Arguments,
    Output,
    Progress,
    model_class,
    new_model,
    open_data,
    open_labelled,
    purged_rows,
    questions_of,
    trained_model,
    true_labels,
)
from flows.stages.scorers import check_scorers
from flows.stages.sources import sources_digest
from lorif_core import FactorStore, verify
from lorif_core.coverage import cover
from lorif_core.manifest import read_manifest
from lorif_core.options import IndexOptions
from lorif_core.planning import Shape, plan
from lorif_core.remote import checkout


def load(arguments: Arguments, folder: Path, progress: Progress) -> Output:
    """Open everything the job names; raise what is wrong with it; describe it.

    Returns:
        ``values``: ``digest``, ``n_train``, ``n_validation``, ``classes``, ``kind``, ``n_planted`` (rows whose label
        differs from a known true one, None where the truth is not known), ``purged`` (rows left out), ``table`` and ``truth``
        (digests of the user's own columns and of the true labels, which training does not see), ``model`` (class, parameters,
        code digest), ``tokenizer`` (digest of that of questions, or None), ``checkpoint`` (sha256 or None), ``index`` (sha256 of
        the manifest of an index named by the user, or None), and of a selection ``select``, its target
        (`flows.stages.targeting.check`), with the file ``rows`` (`flows.stages.targeting.contents`).
    """
    progress("reading the data", 0, None)
    data = open_data(arguments)
    target = None
    if "target" in arguments:
        target = targeting.check(arguments, data)
        write_parquet_atomic(targeting.contents(data), folder / "rows.parquet")
    truth = true_labels(data)
    planted = None if truth is None else int((truth != data.examples.filter(split="train")["label"]).sum())
    checkpoint = arguments["model"]["checkpoint"]
    if checkpoint is None:
        model = new_model(arguments, data, seed=arguments["train"]["seed"])
    else:
        model = trained_model(arguments, data, checkpoint)
    batch = next(iter(data.ordered_dataloader("train")))
    classes = list(data.classes) if isinstance(data, CuratedData) else []
    kind_of(batch).check(model, batch, len(classes))
    _check_layers(model, arguments["index"])
    if "target" in arguments:
        strategies.check_model(arguments, model, batch)
    if "signals" in arguments:
        open_labelled(arguments)
        _check_head(model, batch)
    if "unlearn" in arguments:
        _check_objective(arguments["unlearn"], data, model, batch)
        request = arguments["request"]
        if not request["ledger"]:  # its requests are refused one by one
            resolving.asked_for(data, request, named_ids(request))
    index = arguments["index"]["path"]
    if index is not None:
        if checkpoint is None:
            raise ModelError(
                f"index.path: the index at {index} belongs to one trained model: name it with model.checkpoint or "
                "model.registered, or leave index.path out"
            )
        if Path(index).is_file():
            raise ModelError(f"index.path: {index} is a file; expected the folder of an index")
        problems = verify(index, model, data.ordered_dataloader("train", arguments["index"]["batch_size"]))
        problems = problems or _other_ids(checkout(index), data.train_ids())
        if problems:
            raise ModelError("\n".join(f"index.path: {problem}" for problem in problems))
        _check_index_options(checkout(index), {name: arguments["index"][name] for name in arguments["index_asked"]})
    if "target" in arguments:
        check_scorers(arguments, model)
    return Output(
        {
            "digest": data.digest(),
            "n_train": len(data.train_dataset),
            "n_validation": len(data.validation_dataset),
            "classes": classes,
            "kind": data.payload_kind,
            "n_planted": planted,
            "table": table_digest(data.table),
            "purged": purged_rows(arguments),
            "truth": None if truth is None else digest_of(truth.to_list()),
            "model": {
                "class_path": model_class(arguments, data),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "code": sources_digest([model], Path(arguments["root"])),
            },
            "checkpoint": digest_file(Path(checkpoint)) if checkpoint else None,
            "index": digest_file(checkout(index) / "manifest.json") if index else None,
            "tokenizer": data.model_defaults()["tokenizer"] if isinstance(data, Questions) else None,
            "batch_size": data.batch_size,
            "select": target,
        },
        {"rows": "rows.parquet"} if target is not None else {},
    )


def _check_objective(options: Arguments, data: ExampleData, model: nn.Module, batch: Any) -> None:
    """Nothing, when the objective takes its options, and data and model the objective.

    Raises:
        ModelError: it does not; the text lists the options it takes.
        DataError: the objective teaches another answer, and the rows are no questions.
    """
    try:
        if options["objective"] == NEWTON:
            made_of(f"objective {NEWTON}", NewtonOptions, options["options"])
            check_head(model, batch)
        else:
            objective = build_objective(options["objective"], options["options"])
            if objective.needs_alternative:
                questions_of(data)
            problems = objective.problems(model)
            if problems:
                raise ModelError("\n".join(f"unlearn.options: {problem}" for problem in problems))
    except (ModelError, DataError):
        raise
    except CurationError as error:
        raise ModelError(f"unlearn.options: {error}") from error


def _check_layers(model: nn.Module, options: Arguments) -> None:
    """Nothing, when every layer can be indexed; the index stage, after a training, is too late to find out.

    Raises:
        ModelError: naming all layers that cannot; a budget of bytes is too small for any plan.
    """
    try:
        covered = cover(model, options["layers"], strict=options["strict"])
    except ValueError as error:
        raise ModelError(f"index.layers, index.strict: {error}") from error
    if options["bytes_per_example"] is None:
        return
    shapes = [Shape(x.name, type(x.module).__name__, x.rows, x.columns, vectors=True) for x in covered.layers]
    try:  # of vectors, the least there can be: a layer's gradients take no fewer bytes when there are positions
        plan(shapes, IndexOptions(projection=options["projection"]), options["bytes_per_example"])
    except ValueError as error:
        raise ModelError(f"index.{error}") from error


def _other_ids(index: Path, ids: list[str] | list[int]) -> list[str]:
    """Why the index's rows cannot be told by the data's ids: after a purge not every row can be compared by its content."""
    manifest = read_manifest(index)
    if manifest.file("ids") is None or manifest.numbered or FactorStore.open(index).ids() == ids:
        return []
    return [f"the rows of {index} have other ids, or another order, than the training rows of the data"]


def _check_index_options(index: Path, asked: Mapping[str, Any]) -> None:
    """Nothing, when the index at ``index`` was made with the options ``asked`` for: it is used as it is.

    Raises:
        ModelError: naming every option that was another.
    """
    manifest = read_manifest(index)
    made = {**manifest.options, **(manifest.curvature or {}).get("options", {})}
    problems = [
        f"index.{name}: the index at {index} was made with {made.get(name)!r}, got {wanted!r}: leave the option out, or "
        "leave index.path out to build an index with it"
        for name, wanted in asked.items()
        if made.get(name) != wanted
    ]
    if problems:
        raise ModelError("\n".join(problems))


def _check_head(model: nn.Module, batch: Sequence[Tensor]) -> None:
    """Nothing, when the score stage will find the inputs of the layer that makes the logits.

    Whatever signal decides, the suggested labels and the count of errors come from kernel leave-one-out on those. An
    index alone does without.

    Raises:
        ModelError: it cannot, or what the model makes of the batch is not finite.
    """
    try:
        forward_pass(model, [batch])
    except TrainingError as error:
        raise ModelError(f"{type(model).__name__}, on the first batch: {error}") from error
