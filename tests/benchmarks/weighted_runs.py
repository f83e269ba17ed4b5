"""One unlearning with one way to weigh its records, measured where it has forgotten as much as never having learnt.

Axes: n records to be forgotten, m rows that stay.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from curation.data.questions import Questions
from curation.models.language import generate
from curation.unlearning.alignment import Alignment
from curation.unlearning.module import WATCHED, evenly_spaced
from curation.unlearning.objectives import Step, UnlearningObjective, build_objective
from curation.unlearning.rows import Rows
from curation.unlearning.sequences import predict
from curation.unlearning.verification.memorisation import (
    aggregate_truth_ratio,
    harmonic_mean,
    probability,
    rouge_l,
    truth_ratio,
)
from curation.unlearning.verification.records import Group, Records, records_of
from curation.unlearning.verification.scan import scan
from curation.unlearning.ways import Aligner
from curation.unlearning.weights import Weights, WeightsError, guard_weights, random_weights, uniform_weights
from tests.benchmarks.matched import cheapest_stop

BATCH = 16
"""Records in a step, the default of `curate unlearn`."""
LR = 5e-4
"""Its learning rate, likewise."""
SHARES = {"difference": 0.5, "npo": 0.25}
"""How much is to be forgotten, of the loss of rows never learnt: NPO by itself leaves records alone long before all of it."""
STEPS = 40
"""Of a run: twenty epochs of people, as `curate unlearn` does."""
LOOK_EVERY = 4
"""Steps between two looks at the losses."""
SCORED = 32
"""Rows that stay whose mean gradient `guard-dynamic` scores by, evenly spaced; `guard` takes all."""
ASKED = 24
"""Rows that stay whose utility is measured."""


@dataclass(frozen=True)
class Weighting:
    """One way to weigh the records, as `weights` in the configuration."""

    method: Literal["uniform", "random", "guard", "guard-dynamic"]
    score: Literal["dot", "cosine"] = "dot"
    temperature: float = 2.0
    every: int = 10

    def __str__(self) -> str:
        """As a row is called."""
        if self.method == "uniform":
            return self.method
        parts = [self.method, f"t{self.temperature:g}"]
        if self.method.startswith("guard"):
            parts.insert(1, self.score)
        return " ".join(parts + [f"every {self.every}"] * (self.method == "guard-dynamic"))


@dataclass(frozen=True)
class Subject:
    """A trained model and what it is asked.

    Attributes:
        model: never changed; each run unlearns a copy.
        forget: the records [n].
        retain: all rows that stay [m].
        asked: records, rows that stay and rows never learnt, for the measures.
        unseen_loss: mean of the rows never learnt, nats a token.
    """

    model: nn.Module
    forget: Rows
    retain: Rows
    asked: Records
    unseen_loss: float


def subject(data: Questions, records: np.ndarray, model: nn.Module) -> Subject:
    """What is to be forgotten by a model that has learnt ``data``."""
    ids = data.train_ids()
    asked = records_of(data, [ids[row] for row in records], retain_rows=ASKED)
    stays = np.setdiff1d(np.arange(len(ids)), records)
    rows = [Rows(data.train_dataset, positions, data.collate, BATCH) for positions in (records, stays)]
    unseen = data.ordered_dataloader("holdout", BATCH).dataset
    never = Rows(unseen, np.arange(len(unseen)), data.collate, BATCH)
    return Subject(model, rows[0], rows[1], asked, _mean_loss(model, never))


class _Scoring:
    """Alignments of the records with some rows that stay, and the CPU seconds they took."""

    def __init__(self, subject: Subject, rows: int, score: str) -> None:
        stays = subject.retain
        scored = replace(stays, positions=evenly_spaced(stays.positions, rows))
        self.aligner, self.seconds = Aligner(subject.forget, scored, cosine=score == "cosine"), 0.0

    def __call__(self, model: nn.Module) -> Alignment:
        begin = time.process_time()
        found = self.aligner(model)
        self.seconds += time.process_time() - begin
        return found


def run(subject: Subject, objective: str, options: dict[str, Any], weighting: Weighting, seed: int) -> dict[str, float]:
    """The figures of one run at its level; empty where the weights are refused or the level is not reached."""
    dynamic, level = weighting.method == "guard-dynamic", SHARES[objective] * subject.unseen_loss
    scoring = _Scoring(subject, SCORED if dynamic else len(subject.retain), weighting.score)
    weigh = _weigher(subject, weighting, scoring, seed)
    model = copy.deepcopy(subject.model)
    try:
        every = weighting.every if dynamic else STEPS
        way = _unlearn(model, build_objective(objective, options), subject, weigh, every, seed)
    except WeightsError as error:
        logging.getLogger(__name__).warning("%s: %s", weighting, error)
        return {}
    found = cheapest_stop(way.forgotten, way.retained, level)
    if found is None:
        return {"most": max(way.forgotten), "level": level}
    earlier, later = way.states[found.after - 1 : found.after + 1]
    model.load_state_dict({name: torch.lerp(earlier[name], later[name], found.share) for name in later})
    return measures(model, subject) | {
        "level": level,
        "ess": float(np.mean(way.sizes)) / len(subject.forget),
        "steps": (found.after - 1 + found.share) * LOOK_EVERY,
        "cost": scoring.seconds / (way.seconds - scoring.seconds),
    }


def _weigher(subject: Subject, weighting: Weighting, scoring: _Scoring, seed: int) -> Callable[[nn.Module], Weights]:
    count, temperature = len(subject.forget), weighting.temperature
    if weighting.method == "uniform":
        return lambda model: uniform_weights(count)
    if weighting.method == "random":
        return lambda model: random_weights(count, temperature, seed)
    return lambda model: guard_weights(scoring(model).values, temperature)


@dataclass
class _Way:
    """Mean losses of the records and of rows that stay, and the weights, at the start and every `LOOK_EVERY` steps.

    Attributes:
        seconds: CPU time of the steps with their weighing.
        sizes: effective sizes of the weights.
    """

    forgotten: list[float] = field(default_factory=list)
    retained: list[float] = field(default_factory=list)
    states: list[dict[str, Tensor]] = field(default_factory=list)
    seconds: float = 0.0
    sizes: list[float] = field(default_factory=list)

    def look(self, model: nn.Module, subject: Subject) -> None:
        """Note where it is."""
        stays = subject.retain
        watched = replace(stays, positions=evenly_spaced(stays.positions, WATCHED))
        self.forgotten.append(_mean_loss(model, subject.forget))
        self.retained.append(_mean_loss(model, watched))
        self.states.append({name: tensor.clone() for name, tensor in model.state_dict().items()})


def _unlearn(
    model: nn.Module,
    objective: UnlearningObjective,
    subject: Subject,
    weigh: Callable[[nn.Module], Weights],
    every: int,
    seed: int,
) -> _Way:
    """The steps of `curation.unlearning.module`, without its bookkeeping.

    The records' order and the rows that stay beside them are the seed's, whatever the weights.
    """
    generator = torch.Generator().manual_seed(seed)
    forget, retain = subject.forget, subject.retain
    with torch.no_grad():
        known = torch.cat([-predict(model, batch).total() for batch in forget])  # [n]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.0)
    way = _Way()
    way.look(model, subject)
    order: list[int] = []
    for step in range(STEPS):
        begin = time.process_time()
        if step % every == 0:
            found = weigh(model)
            weights = torch.from_numpy(found.values).float()
            way.sizes.append(found.effective_size)
        if not order:
            order = torch.randperm(len(forget), generator=generator).tolist()
        which, order = order[:BATCH], order[BATCH:]
        staying = torch.randint(len(retain), (len(which),), generator=generator).tolist()
        seen = Step(forget.batch(which), weights[which], retain.batch(staying), reference=known[which])
        optimizer.zero_grad()
        objective.loss(model, seen).backward()
        optimizer.step()
        way.seconds += time.process_time() - begin
        if (step + 1) % LOOK_EVERY == 0:
            way.look(model, subject)
    return way


@torch.no_grad()
def _mean_loss(model: nn.Module, rows: Rows) -> float:
    return float(torch.cat([predict(model, batch).mean() for batch in rows]).mean())


def measures(model: nn.Module, subject: Subject) -> dict[str, float]:
    """What is compared: of the model as it is."""
    gone, stays = scan(model, subject.forget), scan(model, subject.retain)
    return {
        "retain": float(stays.losses.mean()),
        "retain exact": float(np.mean([row.all() for row in stays.correct])),
        "utility": utility(model, subject.asked.retain),
        "forget": float(gone.losses.mean()),
        "p10": float(np.quantile(gone.losses, 0.1)),
        "forget exact": float(np.mean([row.all() for row in gone.correct])),
    }


def utility(model: nn.Module, group: Group) -> float:
    """Model utility of rows that stay: harmonic mean of probability, ROUGE-L recall and, with wrong answers, truth ratio."""
    texts = group.texts
    if texts is None:
        raise ValueError("expected questions")
    losses = scan(model, group.rows).losses
    told = generate(model, texts.prompts, texts.max_new_tokens, texts.end_id, texts.pad_id)
    parts = [float(probability(losses).mean())]
    parts.append(float(rouge_l(texts.answers, [texts.decode(ids) for ids in told], "recall").mean()))
    if texts.paraphrased is not None and texts.perturbed is not None:
        right, wrong = (
            each.per_record(scan(model, each.rows).losses, len(group)) for each in (texts.paraphrased, texts.perturbed)
        )
        parts.append(aggregate_truth_ratio(truth_ratio(right[:, None], wrong[:, None]), "true_better"))
    return harmonic_mean(parts)
