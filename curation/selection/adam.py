"""Adam's preconditioner on the target's gradients, so that scores go by the step that Adam would take (LESS, 2402.04333).

Axes: B target rows of a batch, a / b input and output side of a layer, d1 / d2 their projected sizes.

Training on a row i moves the weights by about -lr g_i / (sqrt(v) + eps), v the second moments that the optimizer has gathered,
so the target's loss falls by lr <g_q, D g_i> with D = diag(1 / (sqrt(v) + eps)). D is symmetric, <g_q, D g_i> = <D g_q, g_i>,
and an index holds g_i projected, of which no weight gradient was ever formed: so D goes to the target's side, where the rows
are few. It goes there BEFORE the projection: D scales single weights, a two-sided projection mixes them, and the two do not
commute. What is compared is P_in^T (D G_q) P_out with P_in^T G_i P_out, an estimate of <D g_q, g_i> as good as the
projection's of any dot product.

Limitations: LESS lets each row change m and v too, and adds Adam's momentum, which is the same for all rows: neither is here.
With normalised rows, a row is divided by the length of its own gradient, not of D times it, which would need its weight gradient.
D takes the place of the curvature: using both would precondition twice. A pca projection keeps the directions in which
gradients are large; D turns to those in which they are small, so an identity or rademacher projection suits it better.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from curation.errors import ModelError
from curation.models.checkpoints import first
from lorif_core import LoRIF
from lorif_core.capture import frozen
from lorif_core.contraction import dense, project
from lorif_core.gradients import read_plan
from lorif_core.layers import Layer
from lorif_core.lookup import Lookup
from lorif_core.objectives import Batch, batch_rows, select_rows
from lorif_core.precision import in_precision
from lorif_core.projections import identity

GRADIENT_NUMBERS = 2**26
"""Floats of whole gradients held at once: 256 MB."""


@dataclass(frozen=True)
class Moments:
    """What Adam divides a gradient by, for each parameter.

    Attributes:
        roots: sqrt(v) + eps by the parameter's name, v corrected for its bias; float32, of the parameter's shape.
    """

    roots: Mapping[str, Tensor]

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], model: nn.Module) -> Moments:
        """From the content of a Lightning checkpoint that has it: a state of `curation.selection.states`, not a `model.ckpt`.

        The optimizer must be one Adam or AdamW over the trained parameters in the model's own order, as shipped models have.

        Raises:
            ModelError: it has no optimizer, another one, or one of other parameters.
        """
        states = checkpoint.get("optimizer_states") or []
        if len(states) != 1:
            raise ModelError(
                f"expected a checkpoint with the state of one Adam optimizer, got {len(states)}: use one that Lightning's "
                "Trainer.save_checkpoint wrote; the model.ckpt of a finished training has none"
            )
        groups, state = states[0]["param_groups"], states[0]["state"]
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        held = sum(len(group["params"]) for group in groups)
        if len(groups) != 1 or held != len(trained):
            raise ModelError(
                f"the optimizer has {len(groups)} groups of {held} parameters in all; expected one group of the model's "
                f"{len(trained)} trained parameters, so that each can be told"
            )
        roots, problems = {}, []
        for (name, parameter), key in zip(trained, groups[0]["params"], strict=True):
            found = state.get(key, {})
            if "exp_avg_sq" not in found or "step" not in found:
                problems.append(f"{name} has no second moment")
            elif found["exp_avg_sq"].shape != parameter.shape:
                problems.append(
                    f"{name} is {list(parameter.shape)}, its second moment {list(found['exp_avg_sq'].shape)}"
                )
            else:
                unbiased = found["exp_avg_sq"].double() / (1 - groups[0]["betas"][1] ** float(found["step"]))
                roots[name] = (unbiased.sqrt() + groups[0]["eps"]).float()
        if problems:
            raise ModelError(f"the optimizer is not Adam's of this model: {first(problems)}")
        return cls(roots)

    def of_layer(self, layer: Layer) -> Tensor:
        """Sqrt(v) + eps in the order of a layer's gradient matrix [a, b]: inputs by outputs, the bias its last row.

        Raises:
            ModelError: a parameter of the layer has none: it was not trained.
        """
        own = [name for name, _ in layer.module.named_parameters(recurse=False) if name in ("weight", "bias")]
        names = [f"{layer.name}.{name}".lstrip(".") for name in own]
        if lacking := [name for name in names if name not in self.roots]:
            raise ModelError(
                f"layer {layer.name}: Adam never trained {', '.join(lacking)}; leave the layer out of the index (layers=...)"
            )
        weight = self.roots[names[0]]
        matrix = _as_matrix(layer, weight)
        if len(names) > 1:
            matrix = torch.cat([matrix, self.roots[names[1]].view(1, -1)])
        if tuple(matrix.shape) != (layer.rows, layer.columns):
            raise ModelError(
                f"layer {layer.name}: its gradient is {layer.rows} x {layer.columns}, Adam's moments {list(matrix.shape)}"
            )
        return matrix

    def gradients(self, attributor: LoRIF, loader: Iterable[Batch]) -> Generator[dict[str, Tensor]]:
        """Projected gradients of the measure, each weight's divided by sqrt(v) + eps first: what `LoRIF.gradients` gives else.

        Yields:
            Per layer [B, d1, d2] float32; several times a batch, where whole gradients are large.

        Raises:
            ModelError: a layer of the index was not trained by Adam, or its projection preconditions already.
        """
        model, device = attributor.model, attributor.device
        plan = read_plan(attributor.store.path, attributor.store.manifest, model)
        if (kind := plan.projections.kind) not in ("identity", "rademacher", "pca"):
            raise ModelError(
                f"Adam's moments need an index with an identity, rademacher or pca projection, got {kind}, which preconditions too"
            )
        sides = plan.projections.to(device).sides
        roots = {layer.name: self.of_layer(layer).to(device) for layer in plan.layers}
        rows = max(1, GRADIENT_NUMBERS // sum(root.numel() for root in roots.values()))
        measure = in_precision(attributor.objective.measure, attributor.options.precision, device)
        whole = replace(plan, projections=identity(plan.layers))
        with frozen(model), whole.open(model) as gradients:
            for batch in loader:
                count = batch_rows(batch)
                for start in range(0, count, rows):
                    part = select_rows(batch, list(range(start, min(start + rows, count))))
                    _, found = gradients(measure, part)
                    yield {name: _project(dense(found.pop(name)) / roots[name], *sides[name]) for name in list(roots)}


def _as_matrix(layer: Layer, weight: Tensor) -> Tensor:
    """A weight's numbers in the order of the layer's gradient, inputs by outputs."""
    if isinstance(layer.module, nn.Embedding) or hasattr(layer.module, "nf"):
        return weight
    if weight.ndim == 1 or not isinstance(layer.module, nn.Linear | nn.Conv2d):
        return weight.reshape(1, -1)  # a scale
    return weight.flatten(1).T


def _project(gradient: Tensor, p_in: Tensor | Lookup | None, p_out: Tensor | None) -> Tensor:
    """P_in^T G P_out: [B, a, b] -> [B, d1, d2]."""
    narrow = project(gradient, p_out)  # [B, a, b] @ [b, d2] -> [B, a, d2]
    if isinstance(p_in, Lookup):
        columns = p_in.codes.abs().long()
        entries = p_in.codes.sign() if p_in.scales is None else p_in.codes.sign() * p_in.scales
        scaled = narrow * entries[:, None]
        spread = narrow.new_zeros(len(narrow), p_in.width + 1, narrow.shape[2])
        return spread.index_add_(1, columns, scaled)[:, 1:]  # ids without a column have code 0
    return narrow if p_in is None else p_in.T @ narrow  # [d1, a] @ [B, a, d2] -> [B, d1, d2]
