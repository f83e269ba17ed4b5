"""Which layers of a model an index attributes, what it leaves out and why, and the share of parameters that covers.

A parameter that is not attributed silently would be a wrong score, so everything left out is either named in one error
(`strict=True`) or recorded (`strict=False`, or layers chosen by the user).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from lorif_core.layers import SUPPORTED, Layer, rule_of


@dataclass(frozen=True)
class Coverage:
    """The attributed layers in model order, what is left out (name -> reason), and the share of parameters covered."""

    layers: list[Layer]
    left_out: dict[str, str]
    share: float

    def without(self, unused: dict[str, str], model: nn.Module, strict: bool) -> Coverage:
        """The same without layers that a first batch showed to be unusable (name -> reason).

        Raises:
            ValueError: `strict` and there is one, or nothing would remain.
        """
        layers = [layer for layer in self.layers if layer.name not in unused]
        return _checked(model, layers, {**self.left_out, **unused}, dict(unused), strict)


def cover(model: nn.Module, patterns: Sequence[str] | None = None, *, strict: bool = True) -> Coverage:
    """The layers to attribute: all supported ones, or those whose name matches one of `patterns` (names or globs).

    Whether a parameter requires a gradient plays no part: choose trained layers by name where only some were trained.

    Raises:
        ValueError: a pattern matches nothing, no layer remains, or (`strict`) a module that owns parameters is not
            supported; all such modules are named in the one error.
    """
    modules = {name: module for name, module in model.named_modules() if _owns_parameters(module)}
    chosen = dict(modules)
    if patterns is not None:
        chosen = {name: m for name, m in modules.items() if any(fnmatchcase(name, p) for p in patterns)}
        missing = [p for p in patterns if not any(fnmatchcase(name, p) for name in modules)]
        if missing:
            raise ValueError(f"layers {missing} match no module with parameters; the model has {list(modules)}")
    layers, unsupported = [], {}
    for name, module in chosen.items():
        rule = rule_of(module)
        if rule is None:
            unsupported[name] = f"{type(module).__name__} is not supported"
        else:
            layers.append(Layer(name, module, rule, *rule.sides(module)))
    left_out = {name: "not chosen" for name in modules if name not in chosen} | unsupported
    return _checked(model, layers, left_out, unsupported, strict)


def _checked(
    model: nn.Module, layers: list[Layer], left_out: dict[str, str], problems: dict[str, str], strict: bool
) -> Coverage:
    if problems and strict:
        listed = "\n".join(f"  {name or '(the model itself)'}: {reason}" for name, reason in problems.items())
        raise ValueError(
            f"{len(problems)} layers cannot be attributed (supported: {SUPPORTED}):\n{listed}\n"
            "Choose others with layers=[...], or leave them out with strict=False (the share of parameters covered is recorded)."
        )
    if not layers:
        raise ValueError(
            f"no layer to attribute: the model has none of {SUPPORTED}"
            + (f"; left out: {left_out}" if left_out else "")
        )
    sizes = {id(p): p.numel() for p in model.parameters()}
    covered = {id(p) for layer in layers for p in layer.module.parameters(recurse=False)}
    return Coverage(layers, left_out, sum(sizes.get(i, 0) for i in covered) / max(sum(sizes.values()), 1))


def _owns_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None
