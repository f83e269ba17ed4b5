"""What one example costs on disk: the numbers of a layer's gradient at 32, 16, 8, 4, 2 or 1 bit.

Axes: n examples, g groups (columns of the factors; one for a whole gradient), m numbers of a group, d1 / d2 projected sides.

32 and 16 bits are float32 and bfloat16. Fewer are codes with one bfloat16 scale a group, packed into bytes from the lowest
bits up: code q of b bits stands for (q + 1/2 - 2^(b-1)) scale, levels evenly spaced and symmetric, none of them zero. The
scale is the one of least squared error. The two sides of a factor column share a group: they are balanced first, so that
their numbers are of one size. Queries and curvature are never coded.

Limitations: numbers that are mostly zero (embeddings of a large vocabulary) come back as noise below 8 bits: leave those
layers out (`layers=`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lorif_core.blocks import Block, Stored
from lorif_core.manifest import LayerEntry

FLOATS = {32: torch.float32, 16: torch.bfloat16}
STEPS = {1: 1.596, 2: 0.9957, 4: 0.3352, 8: 1 / 127.5}
"""Where the search for a scale starts: the best spacing of levels for normal numbers (Max, 1960), as a multiple of their
root mean square; at 8 bits a multiple of the largest, which then keeps its place."""
NORMS_KEEP = {1: 0.637, 2: 0.881, 4: 0.988}
"""Of the squared norm of normal numbers, what their codes keep; with more bits all of it."""
WIDE = {4: torch.int16, 2: torch.int32, 1: torch.int64}
"""Integers with a byte for each code of a byte."""
REFINEMENTS = 3
"""Rounds of coding at a scale and fitting the scale to the codes."""
TINY = torch.finfo(torch.float32).tiny


def stored_rank(d1: int, d2: int, vectors: bool, storage: str, factor_rank: int) -> int:
    """C of a layer's stored factors, 0 where the gradient itself [d1, d2] is stored: asked for, or no larger.

    A gradient of one vector an example (`vectors`) has rank one: a pair of factors is all of it, more would be zeros.
    """
    rank = 1 if vectors else factor_rank if storage == "factors" else min(d1, d2)
    return 0 if rank * (d1 + d2) >= d1 * d2 else rank


def kept_norm(layer: LayerEntry, bits: int) -> float:
    """Of the squared norm of a layer's stored gradients, what coding them leaves: both sides of factors are coded."""
    return float(NORMS_KEEP.get(bits, 1.0) ** (2 if layer.rank else 1))


def row_bytes(layers: Iterable[LayerEntry], bits: int) -> int:
    """Bytes of one example: its gradient in every layer, and its loss in float32."""
    return 4 + sum(_layer_bytes(layer, bits) for layer in layers)


def _layer_bytes(layer: LayerEntry, bits: int) -> int:
    if bits in FLOATS:
        return layer.numbers * bits // 8
    groups, numbers = _shape(layer)
    return groups * (packed_bytes(numbers, bits) + 2)


def packed_bytes(numbers: int, bits: int) -> int:
    """Bytes of one group's codes."""
    return -(-numbers * bits // 8)


def encode(layer: LayerEntry, stored: Stored, bits: int) -> dict[str, Tensor]:
    """The tensors of some examples' gradients, first axis n, on the CPU.

    Args:
        layer: as the manifest has it.
        stored: the gradients [n, d1, d2] where `layer.rank` is 0, else (left [n, d1, c], right [n, d2, c]).
        bits: of a number.
    """
    if bits in FLOATS:
        named = (
            {"gradient": stored} if isinstance(stored, Tensor) else dict(zip(("left", "right"), stored, strict=True))
        )
        return {name: x.to("cpu", FLOATS[bits]) for name, x in named.items()}
    codes, scale = quantise(_grouped(stored), bits)
    return {"codes": codes.cpu(), "scale": scale.cpu()}


def decode(layer: LayerEntry, start: int, read: Callable[[str], Tensor], bits: int) -> Block:
    """The block of some rows; `read` gives those rows of one of the tensors of `encode`."""
    if bits in FLOATS:
        return Block(start, read("left"), read("right")) if layer.rank else Block(start, read("gradient"), None)
    numbers = dequantise(read("codes"), read("scale"), _shape(layer)[1], bits)  # [n, g, m]
    if layer.rank:
        return Block(start, numbers[..., : layer.d1].mT, numbers[..., layer.d1 :].mT)
    return Block(start, numbers.view(-1, layer.d1, layer.d2), None)


def quantise(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of groups of numbers.

    Args:
        x: [..., m] float32.
        bits: 8, 4, 2 or 1.

    Returns:
        Codes uint8 [..., packed_bytes(m)] and scales bfloat16 [...], zero where every number is.
    """
    size = x.abs().amax(-1) if bits == 8 else x.square().mean(-1).sqrt()
    scale = STEPS[bits] * size
    for _ in range(REFINEMENTS):
        levels = _codes(x, scale, bits) + _offset(bits)
        scale = (x * levels).sum(-1) / levels.square().sum(-1)
    scale = scale.bfloat16()
    return _pack(_codes(x, scale.float(), bits).to(torch.uint8), bits), scale


def dequantise(codes: Tensor, scale: Tensor, numbers: int, bits: int) -> Tensor:
    """The numbers [..., m] float32 that codes [..., packed_bytes(m)] and scales [...] stand for."""
    spacing = scale.float().unsqueeze(-1)
    levels = _unpack(codes, bits).sub_(2 ** (bits - 1)).view(torch.int8)[..., :numbers].float()
    return torch.addcmul(spacing / 2, levels, spacing, out=levels)  # (q - 2^(b-1) + 1/2) scale


def _unpack(codes: Tensor, bits: int) -> Tensor:
    """A byte for each code [..., bytes 8 / b], uint8: each byte is widened to 8 / b, its halves moved apart, then theirs.

    On vectors of integers this is several times faster than a table of the 256 bytes.
    """
    if bits == 8:
        return codes.clone()
    wide = codes.to(WIDE[bits])
    width = 8 * wide.element_size()  # in bits, of the wide integer; a byte's codes fill its lowest 8
    held = 8
    while held > bits:
        held, width = held // 2, width // 2
        mask = sum(((1 << held) - 1) << start for start in range(0, 8 * wide.element_size(), width))
        wide = wide.bitwise_or_(wide << (width - held)).bitwise_and_(mask)
    return wide.view(torch.uint8)


def _codes(x: Tensor, scale: Tensor, bits: int) -> Tensor:
    """The nearest level's number, 0 to 2^b - 1, as float."""
    return (x / scale.clamp_min(TINY).unsqueeze(-1)).floor_().add_(2 ** (bits - 1)).clamp_(0, 2**bits - 1)


def _offset(bits: int) -> float:
    half: int = 1 << (bits - 1)
    return 0.5 - half


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Codes [..., m] into bytes, the first number in the lowest bits."""
    each = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -codes.shape[-1] % each)).unflatten(-1, (-1, each))
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=codes.device)
    return (codes << shifts).sum(-1, dtype=torch.uint8)


def _shape(layer: LayerEntry) -> tuple[int, int]:
    """(g, m) of a layer."""
    return (layer.rank, layer.d1 + layer.d2) if layer.rank else (1, layer.size)


def _grouped(stored: Stored) -> Tensor:
    """[n, g, m]: whole gradients as they are, each factor column's two sides joined, their root mean squares made equal."""
    if isinstance(stored, Tensor):
        return stored.float().flatten(1).unsqueeze(1)
    left, right = (side.float().mT for side in stored)  # [n, c, d1], [n, c, d2]
    sizes = [side.square().mean(-1, keepdim=True).sqrt() for side in (left, right)]
    ratio = (sizes[1].clamp_min(TINY) / sizes[0].clamp_min(TINY)).sqrt()  # u sqrt(rv / ru), v sqrt(ru / rv)
    return torch.cat([left * ratio, right / ratio], -1)
