"""The zoo: small models with seeded weights and tiny data, by name.

``CASES`` are models that attribution must get right. ``TRAPS`` are models for which a capture by hooks is easily and
silently wrong (no batch axis in front, a padding that F.unfold does not know, broadcast targets): right or a named
error, nothing between. ``WIDE`` have sides that are worth projecting.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from tests.oracle import zoo_models as models
from tests.oracle.gradients import Loss, is_norm
from tests.oracle.losses import IGNORED, LOSSES

N_TRAIN, N_QUERY = 13, 4  # 13 rows: no batch or shard size divides them


@dataclass(frozen=True)
class ZooCase:
    """A model with its data. Items are what a map-style dataset gives: no batch axis."""

    name: str
    model: nn.Module
    objective: str  # "classification", "causal_lm" or "regression"
    train: list[Any]
    query: list[Any]
    layers: list[str] = field(default_factory=list)  # layers with weights of their own, in the order of named_modules

    @property
    def loss(self) -> Loss:
        return LOSSES[self.objective]

    @property
    def train_examples(self) -> list[Any]:
        return [default_collate([item]) for item in self.train]

    @property
    def query_examples(self) -> list[Any]:
        return [default_collate([item]) for item in self.query]


Builder = Callable[[torch.Generator], tuple[nn.Module, str, list[Any]]]


def build(name: str) -> ZooCase:
    """A fresh, always identical case; the global random state is left as it was."""
    builder = {**CASES, **WIDE, **TRAPS}[name]
    seed = sum(map(ord, name))
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, objective, items = builder(generator)
    randomise(model, generator)
    layers = [key for key, module in model.named_modules() if is_layer(module)]
    return ZooCase(name, model, objective, items[:N_TRAIN], items[N_TRAIN:], layers)


def is_layer(module: nn.Module) -> bool:
    """Whether the oracle has gradients for the module."""
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.Embedding, models.Conv1D)) or is_norm(module)


def randomise(model: nn.Module, generator: torch.Generator) -> None:
    """Weights, norms' scales and running statistics away from their trivial initial values."""
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            centre = 1.0 if is_norm(module) and parameter is module.weight else 0.0
            parameter.data = centre + 0.4 * torch.randn(parameter.shape, generator=generator)
        if isinstance(module, nn.Embedding) and module.padding_idx is not None:
            module.weight.data[module.padding_idx] = 0.0
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)


def vectors(generator: torch.Generator, shape: tuple[int, ...], classes: int) -> list[tuple[Tensor, int]]:
    """(x [*shape], class) items."""
    count = N_TRAIN + N_QUERY
    x = torch.randn(count, *shape, generator=generator)
    y = torch.randint(classes, (count,), generator=generator).tolist()
    return list(zip(x, y, strict=True))


def vector_targets(generator: torch.Generator, shape: tuple[int, ...], outputs: tuple[int, ...]) -> list[Any]:
    """(x [*shape], y [*outputs]) items."""
    count = N_TRAIN + N_QUERY
    x = torch.randn(count, *shape, generator=generator)
    return list(zip(x, torch.randn(count, *outputs, generator=generator), strict=True))


def wide_mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(40, 24), nn.Tanh(), nn.Linear(24, 20, bias=False), nn.Tanh(), nn.Linear(20, 18))


def id_rows(generator: torch.Generator, low: int, vocab: int, length: int = 6) -> Tensor:
    """Ids in low .. vocab - 1, [items, T] int64."""
    return torch.randint(low, vocab, (N_TRAIN + N_QUERY, length), generator=generator)


def labelled_text(generator: torch.Generator) -> list[dict[str, Tensor]]:
    """Language-model dicts; the prompt (0 to 3 ids) and one id in the middle of every third row carry no label."""
    items = []
    for row, ids in enumerate(id_rows(generator, 0, 11)):
        labels = ids.clone()
        labels[: row % 4] = IGNORED
        if row % 3 == 0:
            labels[4] = IGNORED
        items.append({"input_ids": ids, "labels": labels})
    return items


def padded_text(generator: torch.Generator, labelled: bool) -> list[dict[str, Tensor]]:
    """Language-model dicts of 3 to 6 real ids, padded behind with id 0, which is a real id elsewhere too.

    With ``labelled``, labels are -100 on the padding and on the first id, and everywhere in row 5, which therefore has
    no loss and no gradient; else there are no labels.
    """
    items = []
    for row, ids in enumerate(id_rows(generator, 0, 11)):
        mask = (torch.arange(6) < 3 + row % 4).long()
        item = {"input_ids": ids * mask, "attention_mask": mask}
        if labelled:
            item["labels"] = torch.where(mask.bool(), ids, IGNORED)
            item["labels"][0 if row != 5 else slice(None)] = IGNORED
        items.append(item)
    return items


def tagged_text(generator: torch.Generator, as_dict: bool) -> list[Any]:
    """Padded ids with a class: (ids [T], class), or Hugging Face's dict."""
    items: list[Any] = []
    for row, ids in enumerate(id_rows(generator, 1, 13)):
        mask = (torch.arange(6) < 2 + row % 5).long()
        items.append(
            {"input_ids": ids * mask, "attention_mask": mask, "labels": row % 3} if as_dict else (ids * mask, row % 3)
        )
    return items


def mlp(bias: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8, bias), nn.Tanh(), nn.Linear(8, 7, bias), nn.ReLU(), nn.Linear(7, 4, bias))


def frozen_mlp() -> nn.Module:
    model = mlp(bias=True)
    model[0].requires_grad_(False)
    return model


def dropout_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 4)).train()


def same_padding() -> nn.Conv2d:
    return nn.Conv2d(4, 8, (2, 4), padding="same", groups=2)  # even kernels: padded on one side more than on the other


CASES: dict[str, Builder] = {
    "mlp": lambda g: (mlp(bias=True), "classification", vectors(g, (6,), 4)),
    "mlp_nobias": lambda g: (mlp(bias=False), "classification", vectors(g, (6,), 4)),
    "mlp_shared": lambda g: (models.SharedMLP(), "classification", vectors(g, (6,), 4)),
    "mlp_inplace": lambda g: (models.InplaceMLP(), "classification", vectors(g, (6,), 4)),
    "mlp_frozen": lambda g: (frozen_mlp(), "classification", vectors(g, (6,), 4)),
    "mlp_dropout": lambda g: (dropout_mlp(), "classification", vectors(g, (6,), 4)),
    "mlp_unused": lambda g: (models.UnusedLayerMLP(), "classification", vectors(g, (6,), 4)),
    "norms": lambda g: (models.NormMLP(), "classification", vectors(g, (6,), 4)),
    "cnn": lambda g: (models.CNN(), "classification", vectors(g, (2, 7, 8), 3)),
    "cnn_batchnorm": lambda g: (models.CNN(batch_norm=True), "classification", vectors(g, (2, 7, 8), 3)),
    "bag": lambda g: (models.BagOfTokens(), "classification", tagged_text(g, as_dict=False)),
    "bag_dict": lambda g: (models.BagOfTokens(as_object=True), "classification", tagged_text(g, as_dict=True)),
    "token_votes": lambda g: (models.TokenVotes(), "classification", vectors(g, (3, 4), 2)),
    "gpt": lambda g: (models.GPT(blocks=2), "causal_lm", labelled_text(g)),
    "gpt_padded": lambda g: (models.GPT(), "causal_lm", padded_text(g, labelled=True)),
    "gpt_unlabelled": lambda g: (models.GPT(), "causal_lm", padded_text(g, labelled=False)),
    "gpt_ids": lambda g: (models.GPT(as_object=False), "causal_lm", list(id_rows(g, 0, 11))),
    "gpt_conv1d": lambda g: (models.GPT(conv1d=True), "causal_lm", labelled_text(g)),
    "mixer": lambda g: (models.TokenMixer(), "regression", vector_targets(g, (2, 3, 5), (2,))),
    "regression": lambda g: (models.ScalarRegression(), "regression", vector_targets(g, (5,), ())),
}

# sides of 18 to 91, for projections: CASES have few sides above 16
WIDE: dict[str, Builder] = {
    "wide_mlp": lambda g: (wide_mlp(), "classification", vectors(g, (40,), 18)),
    "wide_cnn": lambda g: (models.CNN(batch_norm=True, wide=True), "classification", vectors(g, (2, 7, 8), 3)),
    "wide_gpt": lambda g: (models.GPT(dim=20, vocab=23), "causal_lm", labelled_text(g)),
}

TRAPS: dict[str, Builder] = {
    "broadcast_positions": lambda g: (
        models.GPT(broadcast_positions=True, as_object=False),
        "causal_lm",
        list(id_rows(g, 0, 11)),
    ),
    "tied": lambda g: (models.GPT(tied=True), "causal_lm", labelled_text(g)),
    "sequence_first": lambda g: (models.SequenceFirst(), "classification", vectors(g, (3, 4), 3)),
    "flattened_tokens": lambda g: (models.FlattenedTokens(), "classification", vectors(g, (3, 4), 3)),
    "cnn_same": lambda g: (models.CNN(middle=same_padding()), "classification", vectors(g, (2, 7, 8), 3)),
    "cnn_circular": lambda g: (
        models.CNN(middle=nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular")),
        "classification",
        vectors(g, (2, 7, 8), 3),
    ),
    "regression_column": lambda g: (models.ScalarRegression(column=True), "regression", vector_targets(g, (5,), ())),
}
