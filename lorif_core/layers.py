"""Which modules have a gradient we know, and how it comes out of one layer's input and output gradient.

Axes: B examples, T positions (tokens, pixels; 1 for vectors), a = input side (a last row for the bias), b = output side,
d1 <= a and d2 <= b the projected sides.

The weight gradient of one example is a matrix [a, b], rows = inputs, columns = outputs, the bias its last row:
`G = X^T dY` for Linear, Conv2d and (one-hot X) Embedding, elementwise sums for scales. Adding a layer type is adding a rule here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Rule(ABC):
    """How one kind of layer's per-example weight gradient is made of its input and output gradient.

    A paired rule gives X and dY with G = X^T dY, a one-hot rule ids in place of X; a whole rule (groups, scales) only G.
    """

    @abstractmethod
    def sides(self, module: Any) -> tuple[int, int]:
        """(a, b): rows (inputs and the bias) and columns (outputs) of the gradient matrix."""


class PositionRule(Rule):
    """G is a sum over positions T, of products with the rows of dY."""

    @abstractmethod
    def outputs(self, module: Any, dy: Tensor) -> Tensor:
        """The output's gradient as dY [B, T, b]."""

    @abstractmethod
    def input_moment(self, module: Any, x: Tensor) -> Tensor:
        """Uncentred second moment of the inputs, summed over examples and positions: [a, a], or its diagonal [a]."""


class PairedRule(PositionRule):
    """G = X^T dY."""

    plain = False
    """X is the layer's own input [B, ..., in] (and a one for the bias), so it may be kept as it is."""

    @abstractmethod
    def inputs(self, module: Any, x: Tensor, p_in: Tensor | None) -> Tensor:
        """X P_in [B, T, d1], a tensor of its own."""

    def input_moment(self, module: Any, x: Tensor) -> Tensor:
        """X^T X [a, a]."""
        rows = self.inputs(module, x, None).flatten(0, 1)  # [B T, a]
        return rows.T @ rows  # [a, BT] @ [BT, a] -> [a, a]


class WholeRule(Rule):
    """G only as a whole."""

    @abstractmethod
    def keep(self, module: Any, x: Tensor) -> Tensor:
        """What the backward pass needs of the layer's input."""

    @abstractmethod
    def matrix(self, module: Any, kept: Tensor, dy: Tensor) -> Tensor:
        """G [B, a, b] from `keep`'s result and the output's gradient."""


class LinearRule(PairedRule):
    """`nn.Linear` and Hugging Face's `Conv1D`: X [B, ..., in] with a column of ones for the bias."""

    plain = True

    def sides(self, module: Any) -> tuple[int, int]:
        """(in + bias, out)."""
        rows, columns = module.weight.shape if _is_hf_conv1d(module) else module.weight.shape[::-1]
        return rows + (module.bias is not None), columns

    def inputs(self, module: Any, x: Tensor, p_in: Tensor | None) -> Tensor:
        """X P_in [B, T, d1], the bias row of P_in added to each position."""
        return _project_inputs(_positions(x.float()), module.bias is not None, p_in)

    def outputs(self, module: Any, dy: Tensor) -> Tensor:
        """DY [B, T, out]."""
        return _positions(dy.float())


class Conv2dRule(PairedRule):
    """`nn.Conv2d` with groups = 1: X = the unfolded patches [B, L, in kh kw]."""

    def sides(self, module: Any) -> tuple[int, int]:
        """(in kh kw + bias, out)."""
        return module.weight[0].numel() + (module.bias is not None), module.out_channels

    def inputs(self, module: Any, x: Tensor, p_in: Tensor | None) -> Tensor:
        """Patches times P_in [B, L, d1]; with a projection this is itself a convolution, so nothing is unfolded."""
        x = _pad(module, x.float())
        if p_in is None:
            return _project_inputs(_patches(module, x), module.bias is not None, None)
        weights = p_in[: module.weight[0].numel()].T.reshape(-1, *module.weight.shape[1:])  # [d1, in, kh, kw]
        projected: Tensor = (
            functional.conv2d(x, weights, None, module.stride, 0, module.dilation).flatten(2).mT
        )  # [B, L, d1]
        if module.bias is not None:
            projected += p_in[-1]  # [B, L, d1]
        return projected

    def outputs(self, module: Any, dy: Tensor) -> Tensor:
        """DY [B, L, out] over the L output pixels."""
        return _channels_last(dy.float())


class GroupedConv2dRule(WholeRule):
    """`nn.Conv2d` with groups: column o of the matrix sees only its own group's in / groups channels."""

    def sides(self, module: Any) -> tuple[int, int]:
        """(in / groups kh kw + bias, out)."""
        return module.weight[0].numel() + (module.bias is not None), module.out_channels

    def keep(self, module: Any, x: Tensor) -> Tensor:
        """The patches of each group [B, groups, L, a]."""
        x = _pad(module, x.float())
        patches = _patches(module, x).unflatten(2, (module.groups, -1)).transpose(1, 2)  # [B, groups, L, in/g kh kw]
        return functional.pad(patches, (0, 1), value=1.0) if module.bias is not None else patches

    def matrix(self, module: Any, kept: Tensor, dy: Tensor) -> Tensor:
        """One product a group."""
        grouped = dy.float().flatten(2).unflatten(1, (module.groups, -1)).mT  # [B, groups, L, out/g]
        products: Tensor = kept.mT @ grouped  # [B, groups, a, out/g]
        return products.transpose(1, 2).flatten(2)  # [B, a, out]


class OneHotRule(PositionRule):
    """`nn.Embedding`: X = one-hot ids [B, T], never written out; its projection is a `Lookup`."""

    def sides(self, module: Any) -> tuple[int, int]:
        """(vocabulary, dim); there is no bias."""
        return module.num_embeddings, module.embedding_dim

    def padding(self, module: Any) -> int | None:
        """The id that has no gradient."""
        found: int | None = module.padding_idx
        return found

    def ids(self, x: Tensor) -> Tensor:
        """Ids [B, T], a tensor of its own."""
        return x.reshape(len(x), -1).clone()

    def outputs(self, module: Any, dy: Tensor) -> Tensor:
        """DY [B, T, dim]; an input of one id an example has T = 1."""
        return _positions(dy.float())

    def input_moment(self, module: Any, x: Tensor) -> Tensor:
        """Counts of the ids [vocabulary]: one-hot inputs have a diagonal moment."""
        counts = torch.bincount(x.flatten(), minlength=module.num_embeddings).float()
        if module.padding_idx is not None:
            counts[module.padding_idx] = 0
        return counts


class ScaleRule(WholeRule):
    """Elementwise scale and shift after a normalisation: row 0 = gradient of the scale, row 1 = of the shift."""

    def __init__(self, normalise: Callable[[Any, Tensor], Tensor]) -> None:
        """`normalise(module, x)` gives the normalised input as [B, T, dim]."""
        self.normalise = normalise

    def sides(self, module: Any) -> tuple[int, int]:
        """(1, or 2 with a shift; number of scales)."""
        return 1 + (getattr(module, "bias", None) is not None), module.weight.numel()

    def keep(self, module: Any, x: Tensor) -> Tensor:
        """The normalised input [B, T, dim]."""
        return self.normalise(module, x.float())

    def matrix(self, module: Any, kept: Tensor, dy: Tensor) -> Tensor:
        """[B, 1 or 2, dim] from the sums over positions of x_hat * dY and dY."""
        dy = _channels_last(dy.float()) if isinstance(module, nn.BatchNorm2d) else dy.float().reshape(kept.shape)
        rows = [(kept * dy).sum(1)] + ([dy.sum(1)] if getattr(module, "bias", None) is not None else [])
        return torch.stack(rows, 1)


def _positions(x: Tensor) -> Tensor:
    """[B, ..., n] -> [B, T, n]."""
    return x.reshape(len(x), -1, x.shape[-1])


def _channels_last(x: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W, C]."""
    return x.flatten(2).mT


def _project_inputs(x: Tensor, bias: bool, p_in: Tensor | None) -> Tensor:
    """[X, 1] P_in, without building [X, 1] where there is a projection.

    Always a tensor of its own, so that a later in-place change of the layer's input cannot reach it.
    """
    if p_in is None:
        return functional.pad(x, (0, 1), value=1.0) if bias else x.clone()
    if not bias:
        return x @ p_in
    return torch.addmm(p_in[-1], x.flatten(0, 1), p_in[:-1]).view(*x.shape[:2], -1)  # [d1] + [B T, in] @ [in, d1]


def _pad(module: Any, x: Tensor) -> Tensor:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)


def _patches(module: Any, x: Tensor) -> Tensor:
    """[B, in, H, W] (padded) -> [B, L, in kh kw], channel-major as the weight is."""
    return functional.unfold(x, module.kernel_size, module.dilation, 0, module.stride).mT


def _layer_norm(module: Any, x: Tensor) -> Tensor:
    normalised = functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
    return normalised.reshape(len(x), -1, module.weight.numel())


def _rms_norm(module: Any, x: Tensor) -> Tensor:
    eps = getattr(module, "eps", getattr(module, "variance_epsilon", None))
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    axes = tuple(range(-module.weight.ndim, 0))
    normalised = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + eps)
    return normalised.reshape(len(x), -1, module.weight.numel())


def _batch_norm(module: Any, x: Tensor) -> Tensor:
    scale = torch.rsqrt(module.running_var.float() + module.eps)
    normalised: Tensor = (_channels_last(x) - module.running_mean.float()) * scale
    return normalised


def _is_hf_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


_LINEAR, _CONV, _GROUPED, _EMBEDDING = LinearRule(), Conv2dRule(), GroupedConv2dRule(), OneHotRule()
_LAYER_NORM, _RMS_NORM, _BATCH_NORM = ScaleRule(_layer_norm), ScaleRule(_rms_norm), ScaleRule(_batch_norm)

AnyRule = PairedRule | OneHotRule | WholeRule

SUPPORTED = "Linear, Conv1D (Hugging Face), Conv2d, Embedding, LayerNorm, RMSNorm, BatchNorm2d"


def rule_of(module: nn.Module) -> AnyRule | None:
    """The rule of a module's type, None where its gradient is not known here."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return None  # none, or computed from other parameters (weight normalisation and the like)
    if isinstance(module, nn.Linear) or _is_hf_conv1d(module):
        return _LINEAR
    if isinstance(module, nn.Conv2d):
        return _CONV if module.groups == 1 else _GROUPED
    if isinstance(module, nn.Embedding):
        plain = module.max_norm is None and not module.scale_grad_by_freq
        return _EMBEDDING if plain else None
    if isinstance(module, nn.LayerNorm):
        return _LAYER_NORM
    if isinstance(module, nn.BatchNorm2d):
        return _BATCH_NORM if module.track_running_stats else None
    if type(module).__name__.endswith("RMSNorm"):
        return _RMS_NORM
    return None


@dataclass(frozen=True)
class Layer:
    """One attributed layer: its name in the model, its module, its rule and the two sides of its gradient."""

    name: str
    module: nn.Module
    rule: AnyRule
    rows: int
    columns: int
