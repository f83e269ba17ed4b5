"""Digests of what an index was made from: the model's weights and the examples, whatever batches they came in."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lorif_core.atomic import json_digest
from lorif_core.errors import StoreError
from lorif_core.objectives import Batch, batch_rows, plain_of, tensors_of


def model_fingerprint(model: nn.Module) -> str:
    """sha256 of every module's name, type and settings, and of every parameter's and buffer's name, dtype, shape and bytes.

    Two networks with the same weights and other activations differ; dropout, which evaluation does not know, plays no part.
    Buffers that are not saved with the weights (tables of angles, say) are computed anew by every process, where the last
    bits may depend on its device: of their floats the first 8 bits count. One that grows with the texts seen makes the model
    another each time it does.
    """
    sha = hashlib.sha256()
    for name, module in model.named_modules():
        if not isinstance(module, nn.modules.dropout._DropoutNd):
            settings = re.sub(r"(, )?inplace=(True|False)", "", module.extra_repr())
            sha.update(f"{name}:{type(module).__qualname__}({settings})".encode())
    saved = model.state_dict()
    computed = {name: tensor for name, tensor in model.named_buffers() if name not in saved}
    for name, tensor in [*sorted(saved.items()), *sorted(computed.items())]:
        if isinstance(tensor, Tensor):
            rounded = tensor.bfloat16() if name in computed and tensor.is_floating_point() else tensor
            sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + _raw(rounded))
    return sha.hexdigest()


def check_model(path: str | Path, expected: str, model: nn.Module) -> None:
    """Nothing, for the model with the fingerprint `expected`, from which the index at `path` was made.

    Raises:
        StoreError: it is another.
    """
    if (found := model_fingerprint(model)) != expected:
        raise StoreError(
            f"the index at {path} was made from another model: expected fingerprint {expected[:12]}, "
            f"got {found[:12]}; load that model's weights, or build an index for this one"
        )


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of named tensors: names, dtypes, shapes and bytes."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        sha.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode() + _raw(tensor))
    return sha.hexdigest()


class ExampleDigest:
    """A running digest of examples; equal for the same rows in the same order, however they are batched.

    (Sequences padded to the longest of their batch do depend on the batching: keep it, or pad to one length.) Tensors count,
    strings and numbers beside them; objects of other types do not.
    """

    def __init__(self) -> None:
        """An empty digest."""
        self._running: dict[str, Any] = {}

    def update(self, batch: Batch, start: int, stop: int) -> None:
        """Add rows start..stop of a batch."""
        for name, tensor in tensors_of(batch):
            self._add(f"{name}/{tensor.dtype}", _raw(tensor[start:stop]))
        for name, values in plain_of(batch, batch_rows(batch)):
            self._add(f"{name}/plain", "".join(f"{value!r}\n" for value in values[start:stop]).encode())

    def _add(self, key: str, data: bytes) -> None:
        if key not in self._running:
            self._running[key] = hashlib.sha256()
        self._running[key].update(data)

    def take(self) -> str:
        """The digest of the rows so far; starts anew."""
        value = json_digest({key: sha.hexdigest() for key, sha in self._running.items()})
        self._running = {}
        return value


def _raw(tensor: Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().flatten()
    return bytes(flat.view(torch.uint8).numpy()) if flat.numel() else b""
