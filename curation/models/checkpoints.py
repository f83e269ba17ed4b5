"""Lightning checkpoints: written whole, read without unpickling code, and what keeps one from fitting a model."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import PickleError, UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from curation.errors import ModelError, TrainingError
from lorif_core.atomic import replacing

# More keys than this say nothing more about which model a checkpoint is of.
SHOWN = 5


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The content of a Lightning checkpoint, tensors on the CPU; ModelError when the file is not one."""
    damaged = f"{path} is not a Lightning checkpoint, or is damaged: torch cannot read it"
    try:
        with Path(path).open("rb") as file:
            # torch's own reader fails in many ways on a file that is no archive, or the first part of one.
            if not zipfile.is_zipfile(file):
                raise ModelError(damaged)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path}: the checkpoint cannot be read: {error.strerror or error}") from error
    except (UnpicklingError, RuntimeError, EOFError, ValueError, LookupError) as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            raise ModelError(
                f"{path} holds a {unsafe[1]}, which is not loaded because it could run code. Save hyper-parameters as "
                "plain numbers, strings, lists and dicts (save_hyperparameters(ignore=[...])) and save it again."
            ) from error
        raise ModelError(damaged) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise ModelError(
            f"{path} is not a Lightning checkpoint: it has no `state_dict`. Expected a file written by "
            "Trainer.save_checkpoint or by this tool (model.ckpt)."
        )
    return content


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint aside, sync it and rename it, so that ``path`` is whole even after a power cut.

    A killed run leaves at most one file beside ``path``, which the next one removes.

    Raises:
        TrainingError: it cannot be written; ``path`` is as it was.
    """
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    try:
        for stray in path.parent.glob(f".{path.name}.*.tmp"):
            stray.unlink()
        with replacing(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        raise TrainingError(
            f"cannot write {path}: {error.strerror or error}. Free disk space or choose another folder; run the same "
            "again to go on."
        ) from error


def state_problems(model: nn.Module, state: Mapping[str, Tensor]) -> list[str]:
    """Why ``state`` cannot be loaded into ``model``: missing, unexpected and mis-shaped keys, the first few of each."""
    own = model.state_dict()
    shapes = [
        f"{key} is {list(state[key].shape)}, expected {list(own[key].shape)}"
        for key in own
        if key in state and getattr(own[key], "shape", None) != getattr(state[key], "shape", None)
    ]
    groups = {
        "missing": [key for key in own if key not in state],
        "unexpected": [key for key in state if key not in own],
        "other shapes": shapes,
    }
    return [f"{what}: {first(items)}" for what, items in groups.items() if items]


def unsafe_hyperparameters(values: Mapping[str, Any]) -> list[str]:
    """Names and types of the hyper-parameters that a checkpoint would hold but could not be loaded with."""
    return [f"{name} ({type(value).__name__})" for name, value in values.items() if not _loads(value)]


def first(items: Sequence[str]) -> str:
    """The first few of ``items``, and how many more there are."""
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _loads(value: Any) -> bool:
    buffer = io.BytesIO()
    try:
        torch.save(value, buffer)
        buffer.seek(0)
        torch.load(buffer, weights_only=True)
    except (PickleError, AttributeError, TypeError):
        return False
    return True
