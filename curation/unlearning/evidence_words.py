"""What the tests of an evidence file measure, in words, for who reads it without knowing the names of open-unlearning."""

from __future__ import annotations

_AUC = "chance that a record looks more like training data than a held-out one (AUC: 0.5 = not to be told apart, 1 = remembered)"
_MEASURES = {
    "forget_quality": "distance between the distributions of truth ratios (Kolmogorov-Smirnov: 0 = alike, 1 = apart)",
    "forget_exact": "share of the records answered token for token; of a classifier: labelled as in the data",
    "forget_loss": "loss of the records, nats a token",
    "forget_accuracy": "share of the records that are labelled as in the data",
    "forget_Q_A_Prob": "probability of a record's answer, geometric mean over its tokens",
    "forget_Q_A_PARA_Prob": "the same of right answers in other words",
    "forget_Q_A_ROUGE": "share of the answer's words that the model gives in their order when asked (ROUGE-L recall)",
    "forget_knowmem_ROUGE": "likeness of what it answers to the record's answer (ROUGE-L F1): knowledge memorisation",
    "forget_verbmem_ROUGE": "likeness of how it goes on from the first half of the answer (ROUGE-L F1): verbatim memorisation",
    "forget_truth_ratio": "mean of min(r, 1 / r), r being the truth ratio: 1 = wrong answers as likely as right ones",
    "extraction_strength": "share of the answer that follows from the rest of it, 0 to 1",
    "exact_memorization": "share of the answer's tokens that are the likeliest after the true ones before them",
    "mia_loss": f"attack by the loss: {_AUC}",
    "mia_zlib": "attack by the loss over the size of the compressed text, likewise",
    "mia_min_k": "attack by the least likely two fifths of the tokens, likewise",
    "mia_min_k_plus_plus": "the same, each token by the spread of the model's own probabilities, likewise",
    "mia_reference": "attack by the difference to the loss under the first reference model, likewise",
    "privleak": "mia_min_k against that of the first reference model, in percent: below 0 = remembered, above = over-unlearned",
    "klom": "distance of the answers' margins from the reference models', in nats (KLOM, normal distributions; 0 = alike)",
    "loss_gap": "gap of the losses' roots to the reference models', in standard deviations between seeds; negative = remembered",
    "retain_exact": "share of the rows that stay answered token for token; of a classifier: labelled as in the data",
    "retain_accuracy": "share of the rows that stay that are labelled as in the data",
    "retain_Q_A_Prob": "probability of their answers, geometric mean over the tokens",
    "retain_Q_A_ROUGE": "share of their words that the model gives in their order when asked (ROUGE-L recall)",
    "retain_knowmem_ROUGE": "likeness of what it answers to their answers (ROUGE-L F1)",
    "retain_Truth_Ratio": "mean of max(0, 1 - r), r being the truth ratio: 1 = right answers far likelier than wrong ones",
    "model_utility": "harmonic mean of their probability, ROUGE-L recall and truth ratio",
}
_PROBES = {
    "tpr_at_1_fpr": "share of the records that it finds where one in a hundred held-out rows is taken for one",
    "direct": "asked as it is",
    "relearned": "after learning the other half of the records again",
}
PURGED = {
    "stages": "folders of intermediate results removed",
    "models": "checkpoints that knew the records removed",
    "files": "other files removed",
    "rows": "rows of other tables removed",
    "index_rows": "rows of the user's index removed",
    "files_searched": "files searched for the records after that",
    "bytes_searched": "bytes in them",
    "left": "files in which something of the records was found",
}
"""What a purge came to, in words."""
_ROUNDED = "quantised_"
_AGAINST = "retrained_"


def meaning(name: str) -> str | None:
    """What the test called ``name`` measures; None where there are no words for it."""
    measure, _, probe = name.partition("/")
    said = _MEASURES.get(measure)
    if said is None or not probe:
        return said
    if probe.startswith(_ROUNDED):
        return f"{said}; weights rounded to {probe.removeprefix(_ROUNDED)} bits"
    if probe.startswith(_AGAINST):
        return f"{said}; to reference model {int(probe.removeprefix(_AGAINST)) + 1}"
    return _PROBES[probe] if probe == "tpr_at_1_fpr" else f"{said}; {_PROBES.get(probe, probe)}"
