"""The modules of the zoo: small, float32, every layer type and every wiring that attribution has to survive."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Conv1D(nn.Module):
    """Hugging Face's GPT-2 layer by shape and name: weight [in, out], nf = out."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.zeros(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)  # [B T, in] -> [B T, out]
        return flat.reshape(*x.shape[:-1], self.nf)


class LlamaRMSNorm(nn.Module):
    """Hugging Face's norm by name: its epsilon has another name, and is large here so that ignoring it shows."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.variance_epsilon = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon))


class SharedMLP(nn.Module):
    """One hidden Linear called twice, in-place ReLU behind both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.shared, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = self.relu(self.shared(x))
        return self.head(self.relu(self.shared(x)))


class InplaceMLP(nn.Module):
    """The outputs of its Linears are written over: ReLU in place, scaled in place, residual added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third, self.head = (
            nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False), nn.Linear(8, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu_(self.first(x))
        y = self.second(x)
        y *= 0.5
        y += x
        z = self.third(y)
        z += y
        return self.head(z)


class UnusedLayerMLP(nn.Module):
    """Has a layer that is never called and one that is called without reaching the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.never_called, self.off_path, self.head = (
            nn.Linear(6, 8), nn.Linear(3, 3), nn.Linear(8, 2), nn.Linear(8, 4),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        self.off_path(x)
        return self.head(x)


class NormMLP(nn.Module):
    """LayerNorm with and without shift, torch's RMSNorm and Hugging Face's."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.LayerNorm(8)
        self.second, self.scale_only = nn.Linear(8, 8), nn.LayerNorm(8, bias=False)
        self.third, self.rms = nn.Linear(8, 8), nn.RMSNorm(8)
        self.llama, self.head = LlamaRMSNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.norm(self.first(x)))
        x = torch.tanh(self.scale_only(self.second(x)))
        return self.head(self.llama(torch.tanh(self.rms(self.third(x)))))


class CNN(nn.Module):
    """Stride, padding, dilation, groups, depthwise with an oblong kernel, optionally BatchNorm; input [B, 2, 7, 8]."""

    def __init__(self, batch_norm: bool = False, middle: nn.Conv2d | None = None, wide: bool = False) -> None:
        super().__init__()
        a, b, c = (20, 24, 18) if wide else (4, 8, 5)
        self.strided = nn.Conv2d(2, a, 3, stride=2, padding=1)
        self.grouped = middle if middle is not None else nn.Conv2d(a, b, 3, padding=2, dilation=2, groups=2)
        self.norm = nn.BatchNorm2d(b) if batch_norm else nn.Identity()
        self.depthwise = nn.Conv2d(b, b, (3, 2), stride=(1, 2), padding=(1, 0), groups=b, bias=False)
        self.pointwise = nn.Conv2d(b, c, 1)
        self.head = nn.Linear(c, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.strided(x))
        x = torch.tanh(self.norm(self.grouped(x)))
        x = torch.tanh(self.pointwise(torch.tanh(self.depthwise(x))))
        return self.head(x.mean(dim=(2, 3)))


class BagOfTokens(nn.Module):
    """Embedding with a padding row, mean over the real tokens, MLP; takes ids [B, T] or Hugging Face's keywords."""

    def __init__(self, as_object: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(13, 6, padding_idx=0)
        self.hidden, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.as_object = as_object

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.embedding(input_ids)  # [B, T, 6]
        real = (input_ids != 0) if attention_mask is None else attention_mask.bool()
        pooled = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True).to(x.dtype)  # [B, 6]
        logits = self.head(torch.relu(self.hidden(pooled)))
        return SimpleNamespace(logits=logits) if self.as_object else logits


class Attention(nn.Module):
    """Causal attention with separate q, k, v."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.proj(attend(self.q(x), self.k(x), self.v(x), self.heads, mask))


class Conv1DAttention(nn.Module):
    """Causal attention with GPT-2's fused c_attn."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = Conv1D(3 * dim, dim), Conv1D(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self.c_attn(x).chunk(3, dim=-1)
        return self.c_proj(attend(q, k, v, self.heads, mask))


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v, causal; keys whose mask [B, T] is 0 are not attended to; [B, T, dim]."""
    batch, length, dim = q.shape
    q, k, v = (t.reshape(batch, length, heads, dim // heads).transpose(1, 2) for t in (q, k, v))  # [B, h, T, d]
    logits = q @ k.transpose(2, 3) / (dim // heads) ** 0.5  # [B, h, T, T]
    visible = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
    if mask is not None:
        visible = visible & mask.bool()[:, None, None, :]
    weights = logits.masked_fill(~visible, torch.finfo(logits.dtype).min).softmax(-1)
    return (weights @ v).transpose(1, 2).reshape(batch, length, dim)


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, attention: nn.Module, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), attention
        self.norm2, self.fc, self.out = nn.LayerNorm(dim), linear(dim, 2 * dim), linear(2 * dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.out(nn.functional.gelu(self.fc(self.norm2(x))))


class GPT(nn.Module):
    """A language model over ``vocab`` ids. Positions are looked up per example [B, T], or once and broadcast [T]."""

    def __init__(
        self,
        conv1d: bool = False,
        as_object: bool = True,
        tied: bool = False,
        broadcast_positions: bool = False,
        blocks: int = 1,
        dim: int = 8,
        vocab: int = 11,
    ) -> None:
        super().__init__()
        heads, length = 2, 6
        self.tokens, self.positions = nn.Embedding(vocab, dim), nn.Embedding(length, dim)
        self.blocks = nn.ModuleList(
            Block(dim, Conv1DAttention(dim, heads), lambda a, b: Conv1D(b, a))
            if conv1d
            else Block(dim, Attention(dim, heads), nn.Linear)
            for _ in range(blocks)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab, bias=False)
        if tied:
            self.head.weight = self.tokens.weight
        self.as_object, self.broadcast_positions = as_object, broadcast_positions

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        places = torch.arange(input_ids.shape[1])  # [T]
        if not self.broadcast_positions:
            places = places.expand_as(input_ids)  # [B, T]
        x = self.tokens(input_ids) + self.positions(places)  # [B, T, dim]
        for block in self.blocks:
            x = block(x, attention_mask)
        logits = self.head(self.norm(x))
        return SimpleNamespace(logits=logits) if self.as_object else logits


class TokenMixer(nn.Module):
    """Linears over 3- and 4-axis inputs whose last axis is not the channels; input [B, 2, 3, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.mix, self.head = nn.Linear(5, 4), nn.Linear(3, 6), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.last(x))  # [B, 2, 3, 4]
        x = torch.tanh(self.mix(x.transpose(2, 3)))  # [B, 2, 4, 6]
        return self.head(x.mean(dim=(1, 3)))  # [B, 2]


class TokenVotes(nn.Module):
    """A head on every token, logits averaged: gradients over many positions whose two columns sum to zero.

    Input [B, 3, 4]. The head's gradient has rank one, so rank-one factors must be exact.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x))).mean(1)


class SequenceFirst(nn.Module):
    """Its hidden Linear sees [T, B, d]: the batch is the second axis. Input [B, 3, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.hidden(x.transpose(0, 1))).mean(0))


class FlattenedTokens(nn.Module):
    """Its hidden Linear sees [B T, d]: batch and tokens in one axis. Input [B, 3, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.hidden(x.flatten(0, 1)))  # [B T, 6]
        return self.head(y.reshape(*x.shape[:2], 6).mean(1))


class ScalarRegression(nn.Module):
    """One output per example: [B], or [B, 1] with ``column``."""

    def __init__(self, column: bool = False) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 1)
        self.column = column

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.tanh(self.hidden(x)))  # [B, 1]
        return y if self.column else y[:, 0]
