"""One unlearning with one way to weigh its records, measured where it has forgotten as much as never having learnt.

Axes: n records to be forgotten, m rows that stay.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import nn

from curation.data.questions import Questions
from curation.models.language import generate
from curation.unlearning.alignment import Alignment
from curation.unlearning.module import evenly_spaced
from curation.unlearning.objectives import Step, build_objective
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
from curation.unlearning.weights import UnevenWeightsError, Weights, guard_weights, random_weights, uniform_weights
from tests.benchmarks.matched import bracket

logger = logging.getLogger(__name__)

BATCH = 16
"""Records in a step, the default of `curate unlearn`."""
LR = 5e-4
"""Its learning rate, likewise."""
ALPHA = 4.0
"""Weight of the rows that stay in a run that is stopped: with 1, the default, hardly any of them is answered at the end."""
SHARES = {"difference": 0.5, "npo": 0.25}
"""How much is to be forgotten, of the loss of rows never learnt: NPO by itself leaves records alone long before all of it."""
STEPS = 40
"""Of every run: twenty passes over the records of people and of TOFU, as `curate unlearn` makes."""
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
    every: int = 5

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


class _Unlearning:
    """The steps of `curation.unlearning.module`, without its bookkeeping.

    The records' order and the rows that stay beside them are the seed's, whatever the weights.

    Attributes:
        model: a copy of the subject's, as far as it is.
        steps: how many were made.
        loss: mean of the records.
    """

    def __init__(self, subject: Subject, objective: str, alpha: float, weighting: Weighting, seed: int) -> None:
        self.subject, self.weighting = subject, weighting
        self.model, self.steps, self.seconds = copy.deepcopy(subject.model), 0, 0.0
        self.objective = build_objective(objective, {"alpha": alpha})
        dynamic = weighting.method == "guard-dynamic"
        self._every = weighting.every if dynamic else STEPS
        self._scoring = _Scoring(subject, SCORED if dynamic else len(subject.retain), weighting.score)
        self._weigh = _weigher(subject, weighting, self._scoring, seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._order: list[int] = []
        self._weighed: list[Weights] = []
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=0.0)
        with torch.no_grad():
            self._known = torch.cat([-predict(self.model, batch).total() for batch in subject.forget])  # [n]

    @property
    def loss(self) -> float:
        """Of the records, as far as it is."""
        return _mean_loss(self.model, self.subject.forget)

    def step(self) -> None:
        """Make one.

        Raises:
            UnevenWeightsError: the first weights leave too few records with any; later ones that do are not taken.
        """
        begin = time.process_time()
        if self.steps % self._every == 0:
            try:
                self._weighed.append(self._weigh(self.model))
            except UnevenWeightsError:
                if not self._weighed:
                    raise
        if not self._order:
            self._order = torch.randperm(len(self.subject.forget), generator=self._generator).tolist()
        which, self._order = self._order[:BATCH], self._order[BATCH:]
        retain = self.subject.retain
        staying = torch.randint(len(retain), (len(which),), generator=self._generator).tolist()
        weights = torch.from_numpy(self._weighed[-1].values).float()[which]
        seen = Step(self.subject.forget.batch(which), weights, retain.batch(staying), reference=self._known[which])
        self._optimizer.zero_grad()
        self.objective.loss(self.model, seen).backward()
        self._optimizer.step()
        self.steps += 1
        self.seconds += time.process_time() - begin

    def figures(self) -> dict[str, float]:
        """Of the model as far as it is, and what the weights were."""
        sizes = [each.effective_size for each in self._weighed]
        return measures(self.model, self.subject) | {
            "steps": self.steps,
            "alpha": self.objective.alpha,
            "ess": float(np.mean(sizes)) / len(self.subject.forget),
            "cost": self._scoring.seconds / (self.seconds - self._scoring.seconds),
        }


def stopped(subject: Subject, objective: str, weighting: Weighting, seed: int) -> dict[str, float]:
    """The figures of a run that ends as soon as it reaches the level; none where it does not, or weights are refused."""
    level, run = SHARES[objective] * subject.unseen_loss, _Unlearning(subject, objective, ALPHA, weighting, seed)
    here = run.loss
    for _ in range(STEPS):
        before, earlier = here, {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
        try:
            run.step()
        except UnevenWeightsError as error:
            logger.warning("%s: %s", weighting, error)
            return {}
        here = run.loss
        if here >= level:
            share = (level - before) / (here - before)
            later = run.model.state_dict()
            run.model.load_state_dict({name: torch.lerp(earlier[name], later[name], share) for name in later})
            return run.figures()
    return {}


def tuned(subject: Subject, objective: str, weighting: Weighting, seed: int, start: float) -> dict[str, float]:
    """The figures of a whole run that ends at the level, between those of two; none where none does, or weights are refused.

    Args:
        subject: what is unlearned.
        objective: its loss.
        weighting: of the records.
        seed: of the order of both.
        start: weight of the rows that stay that is tried first (`matched.bracket`).
    """
    runs: dict[float, _Unlearning] = {}

    def forgotten(alpha: float) -> float:
        runs[alpha] = _Unlearning(subject, objective, alpha, weighting, seed)
        for _ in range(STEPS):
            runs[alpha].step()
        return runs[alpha].loss

    try:
        found = bracket(forgotten, SHARES[objective] * subject.unseen_loss, start)
    except UnevenWeightsError as error:
        logger.warning("%s: %s", weighting, error)
        return {}
    if found is None:
        return {}
    lower, higher = runs[found.lower].figures(), runs[found.higher].figures()
    return {name: (1 - found.share) * lower[name] + found.share * higher[name] for name in lower}


def _weigher(subject: Subject, weighting: Weighting, scoring: _Scoring, seed: int) -> Callable[[nn.Module], Weights]:
    count, temperature = len(subject.forget), weighting.temperature
    if weighting.method == "uniform":
        return lambda model: uniform_weights(count)
    if weighting.method == "random":
        return lambda model: random_weights(count, temperature, seed)
    return lambda model: guard_weights(scoring(model).values, temperature)


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
