"""What an objective must know of the model as it was, computed once and kept on disk: no second model is in memory.

Axes: n records, m rows that stay, P predictions of a row, V what is chosen among, W tokens predicted in all m rows together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from curation.unlearning.objectives import UnlearningObjective
from curation.unlearning.rows import Rows
from curation.unlearning.sequences import predict
from lorif_core.atomic import write_tensors
from lorif_core.capture import frozen
from lorif_core.objectives import to_device


@dataclass(frozen=True)
class Reference:
    """Figures of the model as it was; what the objective does not need is None.

    Attributes:
        forget: log-probability of each record [n], summed over its tokens.
        alternative: that of the other answer to it [n].
        oracle: loss of each record under a model that never saw it [n], a mean over its tokens.
        retain: of each token that the rows that stay predict, what `retain_reference` gave [W, V or d].
        ends: where each of those rows ends in `retain`, int64 [m].
    """

    forget: Tensor | None = None
    alternative: Tensor | None = None
    oracle: Tensor | None = None
    retain: Tensor | None = None
    ends: Tensor | None = None

    def of_retained(self, which: Tensor, mask: Tensor) -> Tensor | None:
        """What is known of some rows that stay [B', P, V or d]: zero where nothing is predicted.

        Args:
            which: the rows, int64 [B'].
            mask: where their batch predicts something, bool [B', P].
        """
        if self.retain is None or self.ends is None:
            return None
        begins = torch.cat([self.ends.new_zeros(1), self.ends])
        found = self.retain.new_zeros(*mask.shape, self.retain.shape[1])
        parts = [self.retain[begins[i] : begins[i + 1]] for i in which.tolist()]
        found[mask.cpu()] = torch.cat(parts)
        return found


@torch.no_grad()
def make_reference(
    path: Path,
    model: nn.Module,
    objective: UnlearningObjective,
    forget: Rows,
    retain: Rows | None,
    alternative: Rows | None,
    oracle: nn.Module | None = None,
) -> Reference:
    """Compute what ``objective`` needs of ``model``, and of ``oracle`` where it needs one, and write it to ``path``.

    Size: m P V numbers of 4 bytes for retain = kl, d in place of V for RMU; a few bytes a record otherwise.
    """
    device = next(model.parameters()).device
    tensors: dict[str, Tensor] = {}

    def log_p(rows: Rows) -> Tensor:
        return torch.cat([-predict(model, to_device(batch, device)).total().cpu() for batch in rows])

    if oracle is not None:
        where = next(oracle.parameters()).device
        with frozen(oracle):
            means = [predict(oracle, to_device(batch, where)).mean().cpu() for batch in forget]
        tensors["oracle"] = torch.cat(means)
    with frozen(model):
        if objective.needs_reference:
            tensors["forget"] = log_p(forget)
            if objective.needs_alternative and alternative is not None:
                tensors["alternative"] = log_p(alternative)
        parts, ends = [], []
        for batch in retain or ():
            placed = to_device(batch, device)
            found = objective.retain_reference(model, placed)
            if found is None:
                break
            mask = predict(model, placed).mask
            parts.append(found[mask].cpu())  # [B', P, V] -> [tokens, V]
            ends.append(mask.sum(1).cpu())
        if parts:
            tensors |= {"retain": torch.cat(parts), "ends": torch.cat(ends).cumsum(0)}
    write_tensors(path, tensors)
    return read_reference(path)


def read_reference(path: Path) -> Reference:
    """What `make_reference` wrote; the rows that stay lie in the file, memory-mapped."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
        found = {
            name: file.get_tensor(name)
            for name in ("forget", "alternative", "oracle", "retain", "ends")
            if name in names
        }
    return Reference(**found)
