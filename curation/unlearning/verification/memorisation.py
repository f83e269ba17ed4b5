"""How much of a record a model gives back: probability, exact memorisation, extraction strength, truth ratio, ROUGE-L.

Definitions and names are those of TOFU (arXiv 2401.06121), MUSE (2407.06460) and open-unlearning, so that its logs compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from rouge_score import rouge_scorer

from curation.unlearning.verification.scan import Scan

TruthAggregate = Literal["closer_to_1_better", "true_better", "prob_mean"]


def probability(losses: np.ndarray) -> np.ndarray:
    """exp(-NLL a token) of each answer, the geometric mean of its tokens' probabilities [n]."""
    found: np.ndarray = np.exp(-np.asarray(losses, dtype=np.float64))
    return found


def choice_probability(losses: np.ndarray, wrong_losses: np.ndarray) -> np.ndarray:
    """P(correct) / (P(correct) + sum_j P(wrong_j)) [n], from losses a token [n] and [n, J]: chances among given answers."""
    correct, wrong = probability(losses), probability(wrong_losses).sum(1)
    found: np.ndarray = correct / (correct + wrong)
    return found


def exact_memorisation(scanned: Scan) -> np.ndarray:
    """Share of each answer's tokens that are the model's likeliest, given the true ones before them [n]."""
    return np.array([row.mean() for row in scanned.correct])


def extraction_strength(scanned: Scan) -> np.ndarray:
    """1 - k / W [n], k the first token of an answer from which on all of them are the model's likeliest.

    The share of an answer that follows from the rest of it: 1 = all of it from the question alone, 0 = not its last token.
    """
    found = []
    for row in scanned.correct:
        wrong = np.flatnonzero(~row)
        start = wrong[-1] + 1 if len(wrong) else 0
        found.append(1 - start / len(row))
    return np.array(found)


def truth_ratio(paraphrased_losses: np.ndarray, perturbed_losses: np.ndarray) -> np.ndarray:
    """exp(-mean_j L(wrong_j)) / exp(-mean_k L(right_k)) [n], from losses a token [n, J] and [n, K].

    Near 1 or above: right answers in other words are no likelier than wrong ones.
    """
    found: np.ndarray = np.exp(paraphrased_losses.mean(1) - perturbed_losses.mean(1))
    return found


def aggregate_truth_ratio(ratios: np.ndarray, how: TruthAggregate) -> float:
    """One figure of truth ratios [n].

    Args:
        ratios: of `truth_ratio`.
        how: ``closer_to_1_better`` for what is to be forgotten, mean of min(R, 1 / R); ``true_better`` for what is to
            stay, mean of max(0, 1 - R); ``prob_mean``, mean chance of the right answer 1 / (1 + R).

    Raises:
        ValueError: another aggregate.
    """
    if how == "closer_to_1_better":
        return float(np.minimum(ratios, 1 / np.maximum(ratios, np.finfo(float).tiny)).mean())
    if how == "true_better":
        return float(np.maximum(0, 1 - ratios).mean())
    if how == "prob_mean":
        return float((1 / (1 + ratios)).mean())
    raise ValueError(f"expected closer_to_1_better, true_better or prob_mean, got {how!r}")


def rouge_l(answers: Sequence[str], generated: Sequence[str], measure: Literal["recall", "fmeasure"]) -> np.ndarray:
    """ROUGE-L of each generated text against its answer, stemmed [n]: recall as TOFU's, F1 as MUSE's."""
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return np.array(
        [getattr(scorer.score(a, g)["rougeL"], measure) for a, g in zip(answers, generated, strict=True)],
        dtype=np.float64,
    )


def harmonic_mean(values: Sequence[float]) -> float:
    """Model utility: n / sum 1 / x, zero as soon as one of them is."""
    if not len(values) or min(values) < 0:
        raise ValueError(f"expected figures of at least zero, got {list(values)}")
    return 0.0 if min(values) == 0 else len(values) / sum(1 / value for value in values)
