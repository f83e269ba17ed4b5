"""Models by name: the shipped ones and a user's own, built from a config or loaded from a Lightning checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule

from curation.classes import construct, import_class, parameters_of, resolve_paths
from curation.errors import ModelError
from curation.models.checkpoints import read_checkpoint, state_problems
from curation.models.seeding import seeded


def build_model(
    class_path: str,
    init_args: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    seed: int = 0,
    root: str | Path | None = None,
) -> LightningModule:
    """Construct the LightningModule called ``class_path``, its first weights drawn from ``seed``.

    Args:
        class_path: dotted path of a class, e.g. ``curation.models.ImageClassifier`` or ``my.package.MyModule``.
        init_args: constructor parameters the user gave.
        defaults: what the data knows (``input_shape``, ``num_classes``, ...); fills the constructor parameters of the
            same name that ``init_args`` leaves out, the rest of it is not used.
        seed: of the weights; the global random state is left as it was.
        root: folder of the config file, which relative paths in ``init_args`` start from, as in ``build_data``; None: the
            current folder.

    Raises:
        ModelError: no such class, not a LightningModule, unknown or missing parameters (all are listed, with those the
            class accepts), or the constructor refused their values.
    """
    cls = import_class(class_path, LightningModule, _model_error)
    accepted, _ = parameters_of(cls)
    filled = {name: value for name, value in (defaults or {}).items() if name in accepted}
    with seeded(seed):
        return construct(cls, class_path, filled | resolve_paths(cls, init_args or {}, root), _model_error)


def load_model(
    class_path: str,
    checkpoint: str | Path,
    init_args: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    root: str | Path | None = None,
) -> LightningModule:
    """Load a Lightning checkpoint into the class ``class_path``; returns it in eval mode, on the CPU.

    Constructor parameters come from ``init_args``, else from the hyper-parameters saved in the checkpoint, else from
    ``defaults``. Only tensors and plain values are ever unpickled (``weights_only``). ``root`` as in ``build_model``.

    Raises:
        ModelError: the file is not such a checkpoint, or it belongs to another model or to other data (a saved
            hyper-parameter differs from what ``defaults`` says, or weights are missing, unexpected or of another shape).
    """
    cls = import_class(class_path, LightningModule, _model_error)
    content = read_checkpoint(checkpoint)
    accepted, open_ended = parameters_of(cls)
    given, known = resolve_paths(cls, init_args or {}, root), dict(defaults or {})
    saved = dict(content.get("hyper_parameters", {}))
    saved = {name: value for name, value in saved.items() if open_ended or name in accepted}

    differing = [
        f"{name} is {saved[name]!r} in the checkpoint and {known[name]!r} in the data"
        for name in sorted(saved.keys() & known.keys() - given.keys())
        if saved[name] is not None and _plain(saved[name]) != _plain(known[name])
    ]
    if differing:
        raise ModelError(
            f"{checkpoint} was trained on other data: {'; '.join(differing)}. "
            "Give the checkpoint of a model trained on this data, or train one."
        )
    try:
        model = build_model(class_path, saved | given, known)
    except ModelError as error:
        raise ModelError(f"{checkpoint} does not fit {class_path}: {error}") from error
    model.on_load_checkpoint(content)
    problems = state_problems(model, content["state_dict"])
    if problems:
        raise ModelError(
            f"{checkpoint} is a checkpoint of another model than {class_path}: {'; '.join(problems)}. "
            "Check class_path and init_args, or train a new model."
        )
    model.load_state_dict(content["state_dict"])
    return model.eval()


def _model_error(problems: Sequence[str]) -> ModelError:
    return ModelError("\n".join(problems))


def _plain(value: Any) -> Any:
    """``value`` in a form in which a list and a tuple of the same numbers are equal."""
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
