"""What is differentiated: one loss per example, summed over its tokens or outputs, with the true labels.

Axes: B examples of a batch, T tokens, K classes, V vocabulary.

An objective has `loss` (its gradient is what an index stores) and `measure` (what a query explains, the loss unless
overridden). Both return one float per example, so that the gradient of their sum splits into exact per-example gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Batch = Any
"""`(inputs, targets)`, a dict of tensors (`input_ids`, `attention_mask`, `labels`, ...) or, for CausalLM, token ids."""

IGNORED = -100
TARGET_KEYS = ("labels", "label", "targets", "target")


class Objective(ABC):
    """A per-example loss and the measurement a query explains."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The training loss of each example, float [B], summed over its tokens or outputs."""

    def sampled_loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """The same with labels drawn from the model's own predictions, whose gradients' second moment is the Fisher matrix.

        An objective that cannot draw them takes the true labels; one that overrides `loss` overrides this too.
        """
        return self.loss(model, batch)

    def measure(self, model: nn.Module, batch: Batch) -> Tensor:
        """What a query explains, float [B]; a positive score then means: training on the example lowers it."""
        return self.loss(model, batch)


class Classification(Objective):
    """Cross entropy of one class per example (papers' -log p of the given label)."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy [B] from logits [B, K] and class codes [B].

        Raises:
            ValueError: the model's output is not [B, K], the batch has no targets, or one that is no class of the model.
        """
        return functional.cross_entropy(*self._predictions(model, batch), reduction="none")

    def sampled_loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Cross entropy [B] of a class drawn for each example."""
        logits, _ = self._predictions(model, batch)
        return functional.cross_entropy(logits, draw(logits, generator), reduction="none")

    def _predictions(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, K] and class codes [B]."""
        inputs, targets = split_batch(batch)
        logits = logits_of(call(model, inputs))
        if targets is None:
            raise ValueError(
                f"Classification needs targets: expected (inputs, targets) or a dict with one of {TARGET_KEYS}"
            )
        if logits.ndim != 2 or targets.ndim != 1 or len(logits) != len(targets):
            raise ValueError(
                "Classification expects logits [B, K] and class codes [B], "
                f"got logits {tuple(logits.shape)} and targets {tuple(targets.shape)}"
            )
        targets, classes = targets.long(), logits.shape[1]
        wrong = (targets < 0) | (targets >= classes)
        if bool(wrong.any()):
            got = targets[wrong].unique().tolist()[:5]
            raise ValueError(f"Classification expects class codes from 0 to {classes - 1}, got {got}")
        return logits.float(), targets


class CausalLM(Objective):
    """Next-token cross entropy, summed over the tokens of each sequence; -100 and padding are ignored.

    Padding neither is predicted nor predicts: the same tokens have the same loss with padding on the left and on the right.

    A batch is token ids [B, T], or a dict with `input_ids` and optionally `attention_mask` and `labels` (the model's
    own input arguments are passed on, `labels` never is, so that the model does not average the loss itself).
    """

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Summed next-token cross entropy [B] from logits [B, T, V].

        Raises:
            ValueError: the model's output is not [B, T, V].
        """
        return _token_loss(*self._predictions(model, batch))

    def sampled_loss(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> Tensor:
        """Summed cross entropy [B] of a next token drawn at each position that is not ignored."""
        logits, labels = self._predictions(model, batch)
        drawn = draw(logits, generator)  # [B, T]
        return _token_loss(logits, drawn.where(labels != IGNORED, IGNORED))

    def _predictions(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Logits [B, T, V] and the next tokens [B, T] they predict, the last one ignored."""
        inputs, labels = split_batch(batch)
        if labels is None:
            labels = inputs["input_ids"] if isinstance(inputs, Mapping) else inputs
        if isinstance(inputs, Mapping) and inputs.get("attention_mask") is not None:
            padding = inputs["attention_mask"] == 0
            labels = labels.masked_fill(padding | padding.roll(1, 1), IGNORED)  # the first label is never predicted
        logits = logits_of(call(model, inputs))
        if logits.ndim != 3 or logits.shape[:2] != labels.shape:
            raise ValueError(
                f"CausalLM expects logits [B, T, V] for labels [B, T], got {tuple(logits.shape)} and {tuple(labels.shape)}"
            )
        # Position t predicts token t + 1, the last one nothing. Ignoring it costs less than copying the other logits, and
        # rows of [B T, V] are normalised where they lie.
        return logits.float(), functional.pad(labels[:, 1:].long(), (0, 1), value=IGNORED)


class Regression(Objective):
    """Half the squared error, summed over the outputs of each example."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """0.5 * squared error [B] from outputs and targets of one shape [B, ...].

        Raises:
            ValueError: outputs and targets do not have the same shape (a trailing axis of one is squeezed).
        """
        inputs, targets = split_batch(batch)
        if targets is None:
            raise ValueError(
                f"Regression needs targets: expected (inputs, targets) or a dict with one of {TARGET_KEYS}"
            )
        outputs = logits_of(call(model, inputs)).float()
        if outputs.ndim == targets.ndim + 1 and outputs.shape[-1] == 1:
            outputs = outputs.squeeze(-1)
        if outputs.shape != targets.shape:
            raise ValueError(
                f"Regression expects outputs and targets of one shape, got {tuple(outputs.shape)} and {tuple(targets.shape)}"
            )
        return (
            0.5 * (outputs - targets.float()).square().flatten(1).sum(1)
            if outputs.ndim > 1
            else (0.5 * (outputs - targets.float()).square())
        )


def _token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy [B] of [B, T, V] against [B, T], summed over T."""
    found = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return found.view_as(labels).sum(1)


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One class code [...] from each softmax of logits [..., K]."""
    chances = logits.detach().softmax(-1).flatten(0, -2)
    return torch.multinomial(chances, 1, generator=generator).view(logits.shape[:-1])


BUILT_IN: dict[str, type[Objective]] = {c.__name__: c for c in (Classification, CausalLM, Regression)}


def split_batch(batch: Batch) -> tuple[Any, Tensor | None]:
    """Inputs for the model, and the targets where the batch has them.

    Raises:
        ValueError: the batch is neither a tensor, a dict, nor a tuple of one or two.
    """
    if isinstance(batch, Tensor):
        return batch, None
    if isinstance(batch, Mapping):
        targets = next((batch[key] for key in TARGET_KEYS if key in batch), None)
        return {key: value for key, value in batch.items() if key not in TARGET_KEYS}, targets
    if isinstance(batch, tuple | list) and len(batch) in (1, 2):
        return batch[0], batch[1] if len(batch) == 2 else None
    raise ValueError(f"expected a batch (inputs, targets), a dict or a tensor of ids, got {_describe(batch)}")


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's output: keyword arguments for a dict of inputs, one positional argument otherwise."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def logits_of(output: Any) -> Tensor:
    """The tensor of predictions: the output itself, its `.logits`, or its `["logits"]`.

    Raises:
        ValueError: the output has none of these.
    """
    if isinstance(output, Tensor):
        return output
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise ValueError(f"expected a model that returns a tensor or has .logits, got {_describe(output)}")
    return logits


def tensors_of(batch: Batch, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a batch with a stable name (`0`, `1`, or the dict key, dotted when nested)."""
    if isinstance(batch, Tensor):
        yield name or "0", batch
    elif isinstance(batch, Mapping):
        for key in sorted(batch):
            yield from tensors_of(batch[key], f"{name}.{key}" if name else str(key))
    elif isinstance(batch, tuple | list):
        for position, value in enumerate(batch):
            yield from tensors_of(value, f"{name}.{position}" if name else str(position))


def only_tensors(batch: Batch) -> bool:
    """Whether `tensors_of` gives all there is in the batch."""
    if isinstance(batch, Mapping):
        return all(map(only_tensors, batch.values()))
    if isinstance(batch, tuple | list):
        return all(map(only_tensors, batch))
    return batch is None or isinstance(batch, Tensor)


def plain_of(batch: Batch, rows: int, name: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Every string and number of a batch that is in no tensor, one a row: what is not given by row is the same for all."""
    if _is_by_row(batch, rows):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key in sorted(batch):
            yield from plain_of(batch[key], rows, f"{name}.{key}" if name else str(key))
    elif isinstance(batch, tuple | list):
        for position, value in enumerate(batch):
            yield from plain_of(value, rows, f"{name}.{position}" if name else str(position))
    elif isinstance(batch, str | bytes | int | float | complex):
        yield name, [batch] * rows


def _is_by_row(value: Any, rows: int) -> bool:
    """Whether it is a list or tuple of one string for each row, as `default_collate` makes them."""
    return type(value) in (list, tuple) and len(value) == rows and all(isinstance(x, str) for x in value)


def batch_rows(batch: Batch) -> int:
    """The number of examples B, the first axis of every tensor of the batch.

    Raises:
        ValueError: there is no tensor, or their first axes differ.
    """
    sizes = {name: len(tensor) if tensor.ndim else 1 for name, tensor in tensors_of(batch)}
    if len(set(sizes.values())) != 1:
        raise ValueError(
            f"expected tensors with one common first axis (the examples of the batch), got {sizes or _describe(batch)}"
        )
    return next(iter(sizes.values()))


def select_rows(batch: Batch, rows: list[int]) -> Batch:
    """The given examples of a batch, in that order; what is neither a tensor nor a list of one string a row is kept."""
    return _select(batch, rows, batch_rows(batch))


def _select(value: Any, rows: list[int], count: int) -> Any:
    if isinstance(value, Tensor):
        return value[rows]
    if isinstance(value, Mapping):
        return {key: _select(part, rows, count) for key, part in value.items()}
    if _is_by_row(value, count):
        return like(value, [value[row] for row in rows])
    if isinstance(value, tuple | list):
        return like(value, [_select(part, rows, count) for part in value])
    return value


def row_form(batch: Batch) -> list[tuple[str, torch.Size, torch.dtype]]:
    """Names, shapes of a row and dtypes of the batch's tensors: batches that differ in these are not joined."""
    return [(name, tensor.shape[1:], tensor.dtype) for name, tensor in tensors_of(batch)]


def join_rows(batches: Sequence[Batch]) -> Batch:
    """Batches of examples of one shape as one; what is neither a tensor nor a list of one string a row is of the first."""
    return _join(batches, [batch_rows(batch) for batch in batches])


def _join(values: Sequence[Any], counts: list[int]) -> Any:
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values))
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values], counts) for key in first}
    if all(map(_is_by_row, values, counts)):
        return like(first, [text for value in values for text in value])
    if isinstance(first, tuple | list):
        return like(first, [_join(parts, counts) for parts in zip(*values, strict=True)])
    return first


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with every tensor on `device`."""
    if isinstance(batch, Tensor):
        # a caller's inference mode makes tensors that no graph may hold
        return (batch.clone() if batch.is_inference() else batch).to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return like(batch, [to_device(value, device) for value in batch])
    return batch


def like(batch: tuple[Any, ...] | list[Any], values: list[Any]) -> Any:
    """Values in a tuple, list or named tuple of the batch's own type."""
    return type(batch)(*values) if hasattr(batch, "_fields") else type(batch)(values)


def describe(objective: Objective) -> str:
    """Its class and its plain attributes: what tells one objective from another."""
    values = {key: value for key, value in sorted(vars(objective).items()) if not key.startswith("_")}
    shown = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in values.items()}
    plain = [
        f"{k}={v!r}" for k, v in shown.items() if isinstance(v, str | int | float | bool | tuple | list | dict | None)
    ]
    return type(objective).__name__ + (f"({', '.join(plain)})" if plain else "")


def _describe(value: object) -> str:
    return f"{type(value).__name__}{f' of {len(value)}' if isinstance(value, tuple | list) else ''}"
