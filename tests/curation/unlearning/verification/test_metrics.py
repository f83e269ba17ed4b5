"""Every measure against another implementation on random inputs: scipy, scikit-learn's definition by brute force, nltk."""

from __future__ import annotations

import itertools
import math
import re
import zlib

import numpy as np
import pytest
import torch
from nltk.stem.porter import PorterStemmer
from scipy import stats
from sklearn.metrics import roc_auc_score

from curation.unlearning.verification import membership, memorisation
from curation.unlearning.verification.intervals import bootstrap, forget_quality, gap_in_seed_sds, holm
from curation.unlearning.verification.klom import binned_kl, gaussian_kl, klom, klom_of_one, margins
from curation.unlearning.verification.panel import _utility
from curation.unlearning.verification.plain import plain
from curation.unlearning.verification.scan import Scan, scan
from tests.curation.unlearning.models import Language, classifier, points, texts

random = np.random.default_rng(0)


def random_scan(rows: int = 25) -> Scan:
    lengths = random.integers(1, 12, rows)
    return Scan(
        [-random.exponential(1.0, n) for n in lengths],
        [-random.exponential(1.5, n) for n in lengths],
        [random.uniform(0.1, 2, n) for n in lengths],
        [random.random(n) < 0.6 for n in lengths],
    )


def test_a_scan_equals_a_loop_over_tokens():
    model, rows = Language().double(), texts(6)
    found = scan(model, rows)
    for i, row in enumerate(rows.dataset.rows):
        logits = model(row[None])[0].detach()
        for t in range(1, len(row) - 1):
            log_p = logits[t].log_softmax(-1)
            p = log_p.exp()
            mean = float((p * log_p).sum())
            std = math.sqrt(float((p * (log_p - mean) ** 2).sum()))
            at = [getattr(found, name)[i][t - 1] for name in ("log_p", "mean", "std", "correct")]
            wanted = [float(log_p[row[t + 1]]), mean, std, float(logits[t].argmax() == row[t + 1])]
            np.testing.assert_allclose(at, wanted, atol=1e-6)
        assert len(found.log_p[i]) == len(row) - 2
    of_classes = scan(classifier(), points(4))
    inputs, codes = next(iter(points(4, size=4)))
    wanted = classifier()(inputs).log_softmax(1)[torch.arange(4), codes].detach()
    np.testing.assert_allclose(np.concatenate(of_classes.log_p), wanted, atol=1e-6)


def test_memorisation_by_definition():
    scanned = random_scan()
    exact, strength = memorisation.exact_memorisation(scanned), memorisation.extraction_strength(scanned)
    for i, row in enumerate(scanned.correct):
        assert exact[i] == pytest.approx(sum(row) / len(row))
        first = next((k for k in range(len(row)) if all(row[k:])), len(row))
        assert strength[i] == pytest.approx(1 - first / len(row))


def test_truth_ratio_by_definition():
    right, wrong = random.exponential(1, (9, 2)), random.exponential(2, (9, 5))
    found = memorisation.truth_ratio(right, wrong)
    for i in range(9):
        wrong_p = stats.gmean([math.exp(-x) for x in wrong[i]])
        right_p = stats.gmean([math.exp(-x) for x in right[i]])
        assert found[i] == pytest.approx(wrong_p / right_p, rel=1e-9)
    ratios = found.tolist()
    assert memorisation.aggregate_truth_ratio(found, "closer_to_1_better") == pytest.approx(
        sum(min(r, 1 / r) for r in ratios) / 9
    )
    assert memorisation.aggregate_truth_ratio(found, "true_better") == pytest.approx(
        sum(max(0, 1 - r) for r in ratios) / 9
    )
    assert memorisation.aggregate_truth_ratio(found, "prob_mean") == pytest.approx(sum(1 / (1 + r) for r in ratios) / 9)
    chances = memorisation.choice_probability(right[:, 0], wrong)
    assert chances[3] == pytest.approx(
        math.exp(-right[3, 0]) / (math.exp(-right[3, 0]) + sum(map(math.exp, -wrong[3])))
    )
    with pytest.raises(ValueError, match="expected closer_to_1_better"):
        memorisation.aggregate_truth_ratio(found, "median")


def brute_rouge_l(answer: str, generated: str) -> tuple[float, float]:
    """Recall and F1 from every common subsequence, the longest one counted."""
    stem = PorterStemmer().stem

    def words(text):
        found = re.sub(r"[^a-z0-9]+", " ", text.lower()).split()
        return [stem(word) if len(word) > 3 else word for word in found]

    a, b = words(answer), words(generated)
    longest = max(
        k
        for k in range(len(a) + 1)
        if any(_is_subsequence([a[i] for i in chosen], b) for chosen in itertools.combinations(range(len(a)), k))
    )
    recall, precision = longest / len(a), longest / len(b)
    return recall, 2 * recall * precision / (recall + precision) if longest else 0.0


def _is_subsequence(part, whole):
    rest = iter(whole)
    return all(word in rest for word in part)


def test_rouge_equals_the_longest_common_subsequence():
    vocabulary = ["writer", "writers", "born", "in", "Lisbon,", "the", "novels", "running", "award", "1958."]
    answers = [" ".join(random.choice(vocabulary, 6)) for _ in range(12)]
    generated = [" ".join(random.choice(vocabulary, int(random.integers(1, 9)))) for _ in range(12)]
    wanted = [brute_rouge_l(a, g) for a, g in zip(answers, generated, strict=True)]
    np.testing.assert_allclose(memorisation.rouge_l(answers, generated, "recall"), [x[0] for x in wanted], atol=1e-9)
    np.testing.assert_allclose(memorisation.rouge_l(answers, generated, "fmeasure"), [x[1] for x in wanted], atol=1e-9)


def test_model_utility_is_a_harmonic_mean():
    values = random.random(9).tolist()
    assert memorisation.harmonic_mean(values) == pytest.approx(stats.hmean(values))
    assert memorisation.harmonic_mean([0.5, 0.0]) == 0
    with pytest.raises(ValueError, match="at least zero"):
        memorisation.harmonic_mean([])


def test_model_utility_has_an_interval_where_few_rows_have_a_truth_ratio():
    losses, rouge, ratios = random.random(60), random.random(60), np.full(60, np.nan)
    ratios[[3, 40]] = 0.2, 0.5
    found = _utility(losses, rouge, ratios)
    parts = [np.exp(-losses).mean(), rouge.mean(), (0.8 + 0.5) / 2]
    assert found["agg_value"] == pytest.approx(stats.hmean(parts))
    assert 0 < found["low"] < found["agg_value"] < found["high"] < 1
    assert np.isnan(_utility(losses, rouge, np.full(60, np.nan))["agg_value"])


def test_attacks_by_definition():
    scanned, other = random_scan(), random_scan()
    words = ["to be or not to be " * int(k) for k in random.integers(1, 5, 25)]
    found = membership.attack_scores(scanned, words, scanned)
    assert set(found) == {"mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus", "mia_reference"}
    assert np.abs(found["mia_reference"]).max() == 0
    for i, row in enumerate(scanned.log_p):
        count = max(1, math.floor(0.4 * len(row)))
        assert found["mia_loss"][i] == pytest.approx(-sum(row) / len(row))
        assert found["mia_zlib"][i] == pytest.approx(-sum(row) / len(row) / len(zlib.compress(words[i].encode())))
        assert found["mia_min_k"][i] == pytest.approx(-sum(sorted(row)[:count]) / count)
        standard = sorted((p - m) / s for p, m, s in zip(row, scanned.mean[i], scanned.std[i], strict=True))
        assert found["mia_min_k_plus_plus"][i] == pytest.approx(-sum(standard[:count]) / count)
    a, b = scanned.losses, other.losses
    pairs = [(x < y) + 0.5 * (x == y) for x in a for y in b]
    assert membership.auc(a, b) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    truth = [0] * len(a) + [1] * len(b)
    assert membership.auc(a, b) == pytest.approx(roc_auc_score(truth, [*a, *b]), abs=1e-12)
    ties = np.round(a), np.round(b)
    assert membership.auc(*ties) == pytest.approx(roc_auc_score(truth, np.concatenate(ties)), abs=1e-12)
    assert membership.auc(a, b) == pytest.approx(1 - stats.mannwhitneyu(a, b).statistic / len(pairs), abs=1e-12)
    assert membership.tpr(a, b) == sum(x < min(b) for x in a) / len(a)  # 1 % of 25 rows is none


def test_alike_samples_have_an_auc_of_a_half_within_the_interval():
    inside = 0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        found = membership.attack(draw.normal(size=60), draw.normal(size=60), seed)
        inside += found.auc.low <= 0.5 <= found.auc.high
        assert found.null_error == pytest.approx(math.sqrt(121 / (12 * 3600)))
    assert inside >= 7


def test_privleak():
    assert membership.privleak(0.5) == 0
    assert membership.privleak(0.7, 0.7) == pytest.approx(0)
    assert membership.privleak(1.0) == -100  # all of it leaks
    assert membership.privleak(0.0) == 100
    assert membership.privleak(0.981) == pytest.approx(-96.2)
    with pytest.raises(ValueError, match="did it see the records"):
        membership.privleak(0.5, 1.0)


def test_forget_quality_is_scipys():
    a, b = random.normal(size=40), random.normal(0.5, 1, 50)
    found = forget_quality(a, b)
    assert found.p_value == stats.ks_2samp(a, b).pvalue
    assert found.statistic.point == stats.ks_2samp(a, b).statistic
    assert found.statistic.low <= found.statistic.point <= found.statistic.high
    assert forget_quality(a, a).p_value == 1


def test_bootstrap_intervals_hold_the_mean_nineteen_times_in_twenty():
    hits = 0
    for seed in range(20):
        sample = np.random.default_rng(seed).normal(2, 1, 80)
        found = bootstrap(lambda x: float(x.mean()), [sample], seed, resamples=400)
        hits += found.low <= 2 <= found.high
    assert hits >= 17


def test_holm_and_gaps():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert gap_in_seed_sds(3.0, [1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert gap_in_seed_sds(1.0, [1.0, 1.0]) == 0
    with pytest.raises(ValueError, match="at least 2 retrained"):
        gap_in_seed_sds(1.0, [1.0])


def test_margins_and_klom():
    p = random.uniform(0.01, 0.99, 20)
    np.testing.assert_allclose(margins(np.log(p)), np.log(p / (1 - p)), rtol=1e-9)
    assert np.isfinite(margins(np.array([0.0, -1e-300, -1e9]))).all()
    u, r = random.normal(1, 1, (400, 30)), random.normal(0, 1, (400, 30))
    assert gaussian_kl(u, r).mean() == pytest.approx(0.5, abs=0.05)  # of a shift by one standard deviation
    for i in range(3):
        edges = np.histogram_bin_edges(np.concatenate([u[:, i], r[:, i]]), 20)
        a, b = (np.histogram(x[:, i], edges)[0] / 400 for x in (u, r))
        assert binned_kl(u, r)[i] == pytest.approx(
            stats.entropy(a + 1e-300, np.maximum(b, 1e-5)) + math.log(1 / np.maximum(b, 1e-5).sum()), abs=1e-6
        )
    few = klom(random.normal(size=(5, 50)), random.normal(size=(10, 50)), binned=True)
    assert few.mean > 5  # noise, as its null says
    assert few.null_mean > 5
    assert klom(u, r, binned=False).null_mean < 0.05
    with pytest.raises(ValueError, match="at least 2 unlearned and 4 retrained"):
        klom(u[:1], r, binned=False)


def test_klom_of_one_model_is_its_squared_distance_in_spreads():
    retrained = random.normal(size=(5, 30))
    one = random.normal(size=30)
    found = klom_of_one(one, retrained)
    shifts = [(one[i] - retrained[:, i].mean()) ** 2 / (2 * retrained[:, i].var(ddof=1)) for i in range(30)]
    assert found.mean == pytest.approx(np.mean(shifts))
    assert found.p95 == pytest.approx(np.quantile(shifts, 0.95))
    left = klom_of_one(retrained[2], np.delete(retrained, 2, 0))
    nulls = [klom_of_one(retrained[s], np.delete(retrained, s, 0)).mean for s in range(5)]
    assert left.mean == nulls[2]
    assert found.null_mean == pytest.approx(np.mean(nulls))
    with pytest.raises(ValueError, match="at least 3 retrained"):
        klom_of_one(one, retrained[:2])


def test_measurements_become_plain_values():
    estimate = bootstrap(np.mean, [np.ones(3)], resamples=10)
    found = plain({"a": np.arange(2.0), 3: [estimate, (np.float32(1), np.nan)], "b": np.inf, "c": None})
    assert found == {
        "a": [0.0, 1.0],
        "3": [{"point": 1.0, "low": 1.0, "high": 1.0, "n": 3}, [1.0, None]],
        "b": None,
        "c": None,
    }
