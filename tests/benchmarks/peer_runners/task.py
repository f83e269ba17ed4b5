"""The task every runner is given: one causal language model, texts to index, texts to explain.

`make_task` writes it once, so that all read the same bytes; `measured` times what a runner does with it.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

BATCH = 32
"""Texts of 64 tokens a batch: bergson's own 2,048 tokens."""
VOCABULARY = 1024
TEXTS = "texts.safetensors"


@dataclass(frozen=True)
class Task:
    """A model in evaluation mode, and token ids [N, T] and [Q, T]."""

    model: LlamaForCausalLM
    train: Tensor
    query: Tensor

    @classmethod
    def read(cls, folder: Path) -> Task:
        """The task `make_task` wrote."""
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        texts = load_file(folder / TEXTS)
        return cls(model, texts["train"], texts["query"])


def make_task(folder: Path, train: int, query: int, length: int) -> int:
    """Write the model and the texts into `folder`; returns the model's number of parameters.

    The model is at its random start, the tokens follow Zipf's law: neither changes how long anything takes.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    frequencies = 1 / torch.arange(1, VOCABULARY + 1)
    ids = torch.multinomial(frequencies, (train + query) * length, replacement=True).view(-1, length)
    save_file({"train": ids[:train].clone(), "query": ids[train:].clone()}, folder / TEXTS)
    return sum(parameter.numel() for parameter in model.parameters())


def cpu_seconds() -> float:
    """User and system time of this process and the children it waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def measured(index: Callable[[Task, Path, str], Callable[[], Tensor]]) -> None:
    """Run a runner as `python -m RUNNER TASK OUT VARIANT`; the last line it prints is its figures as JSON.

    Args:
        index: index the texts into a folder in a variant; what it returns gives the scores [Q, N]. Imports and reading the
            model come before it, and are not timed.
    """
    torch.set_num_threads(1)
    folder, out, variant = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    task = Task.read(folder)
    begin = cpu_seconds()
    score = index(task, out, variant)
    indexed = cpu_seconds()
    scores = score()
    scored = cpu_seconds()
    if scores.shape != (len(task.query), len(task.train)) or not bool(torch.isfinite(scores).all()):
        raise ValueError(f"expected finite scores [{len(task.query)}, {len(task.train)}], got {tuple(scores.shape)}")
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    print(json.dumps({"index": indexed - begin, "queries": scored - indexed, "bytes": size}))
