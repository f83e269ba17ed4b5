"""The states of a model that score a pool (`flows.scorers`), opened: each with its weights, its index and its optimizer's state."""

from __future__ import annotations

from torch import nn

from curation.data import ExampleData
from curation.errors import CurationError, ModelError
from curation.models.checkpoints import first, read_checkpoint
from curation.selection.adam import Moments
from curation.selection.checkpoints import Checkpoint
from curation.selection.layer_weights import weights_by_layer
from flows.select_schema import PLAIN_PROJECTIONS
from flows.stages.common import Arguments, Progress
from flows.stages.indexing import open_index
from lorif_core.coverage import cover
from lorif_core.manifest import read_manifest
from lorif_core.remote import checkout


def open_scorers(arguments: Arguments, data: ExampleData, progress: Progress) -> list[Checkpoint]:
    """The ``checkpoints`` of a job, the last of which is the model itself."""
    found = []
    for one in arguments["checkpoints"]:
        attributor, model = open_index({**arguments, **one}, data, progress)
        moments = None if one["state"] is None else Moments.of(read_checkpoint(one["state"]), model)
        found.append(Checkpoint(attributor, one["learning_rate"], moments))
    return found


def layer_weights(arguments: Arguments, scorers: list[Checkpoint]) -> dict[str, float]:
    """The factors of layers' parts of every score."""
    layers = [layer.name for layer in scorers[-1].attributor.store.manifest.layers]
    return weights_by_layer(arguments["scores"]["layer_weights"], layers)


def check_scorers(arguments: Arguments, model: nn.Module) -> None:
    """Nothing, when the scores that are asked for can be computed with the job's model, before it is trained.

    Raises:
        ModelError: a layer that is weighed is not there; Adam does not train all layers that are indexed, or a model that is loaded
            has no state of its Adam.
    """
    options, index = arguments["scores"], arguments["index"]
    layers = cover(model, index["layers"], strict=index["strict"]).layers
    problems = []
    try:
        weights_by_layer(options["layer_weights"], [layer.name for layer in layers])
    except CurationError as error:
        problems.append(str(error))
    if options["adam"]:
        parameters = {f"{x.name}.{name}": p for x in layers for name, p in x.module.named_parameters(recurse=False)}
        if fixed := [name for name, parameter in parameters.items() if not parameter.requires_grad]:
            problems.append(f"scores.adam: {first(fixed)} of the index are not trained: leave them out by index.layers")
        if index["path"] is not None:
            made = read_manifest(checkout(index["path"])).options["projection"]
            if made not in PLAIN_PROJECTIONS:
                problems.append(
                    f"scores.adam: the index at {index['path']} was made with projection {made}; expected "
                    f"{' or '.join(PLAIN_PROJECTIONS)}"
                )
        checkpoint = arguments["model"]["checkpoint"]
        if checkpoint is not None:
            try:
                Moments.of(read_checkpoint(checkpoint), model)
            except ModelError as error:
                problems.append(f"scores.adam: {checkpoint}: {error}")
    if problems:
        raise ModelError("\n".join(problems))
