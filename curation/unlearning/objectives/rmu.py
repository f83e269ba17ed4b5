"""RMU: the records' hidden states are steered to a random direction, those of what stays held (arXiv 2403.03218)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curation.errors import ModelError
from curation.unlearning.objectives.base import Retain, Step, UnlearningObjective, required
from curation.unlearning.sequences import predict
from lorif_core.objectives import Batch


@dataclass(frozen=True)
class RMU(UnlearningObjective):
    """L_forget = |h - coefficient u|^2 / d a token, h [P, d] the output of `layer`, u a random unit vector of the seed's.

    What stays is held where it was, at the same layer, whatever `retain` says but `none`.

    Attributes:
        layer: dotted name of a module of the model that returns hidden states [B, P, d] or [B, d], or a tuple of them first.
        coefficient: how far out the records are steered.
        seed: of u.
    """

    layer: str
    coefficient: float = 2.0
    seed: int = 0
    gamma: float = 1.0
    alpha: float = 1.0
    retain: Retain = "nll"

    def problems(self, model: nn.Module) -> list[str]:
        """No such layer; says which there are."""
        modules = dict(model.named_modules())
        return [] if self.layer in modules else [_missing(self.layer, modules)]

    def forget_losses(self, model: nn.Module, step: Step) -> Tensor:
        """[B]."""
        states, mask = self.states(model, step.forget)
        return _over_tokens((states - self.coefficient * self._direction(states)).square().mean(-1), mask)

    def _retain_loss(self, model: nn.Module, step: Step) -> Tensor:
        states, mask = self.states(model, step.retain)
        reference = required(step.reference_retain, "the hidden states of the rows that stay in the model as it was")
        return _over_tokens((states - reference).square().mean(-1), mask).mean()

    def retain_reference(self, model: nn.Module, batch: Batch) -> Tensor:
        """Hidden states [B', P, d]."""
        return self.states(model, batch)[0]

    def states(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Hidden states [B, P, d] at the layer, and where something is predicted [B, P].

        Raises:
            ModelError: the model has no such layer.
        """
        with _output_of(model, self.layer) as outputs:
            mask = predict(model, batch).mask
        states = outputs[-1].float()
        return (states, mask) if states.ndim == 3 else (states.flatten(1).unsqueeze(1), mask)

    def _direction(self, states: Tensor) -> Tensor:
        drawn = torch.randn(states.shape[-1], generator=torch.Generator().manual_seed(self.seed))
        unit: Tensor = drawn / drawn.norm()
        return unit.to(states)


@contextmanager
def _output_of(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    modules = dict(model.named_modules())
    if layer not in modules:
        raise ModelError(_missing(layer, modules))
    found: list[Tensor] = []
    hook = modules[layer].register_forward_hook(
        lambda module, args, output: found.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        yield found
    finally:
        hook.remove()


def _missing(layer: str, modules: Iterable[str]) -> str:
    return f"rmu: the model has no module {layer!r}; it has {', '.join(sorted(modules)[:30])}"


def _over_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Means [B] of [B, P] where something is predicted."""
    found: Tensor = (values * mask).sum(1) / mask.sum(1).clamp_min(1)
    return found
