"""Label errors from one trained model: signals, an estimate of their number, and decisions with reasons."""

from curation.mislabel.calibration import loo_probabilities
from curation.mislabel.count import confident_joint, estimate_errors
from curation.mislabel.decisions import DecisionRule, decide
from curation.mislabel.forward import Forward, forward_pass
from curation.mislabel.kernel import kernel_loo
from curation.mislabel.newton import loo_logits
from curation.mislabel.signals import DEFAULT_SIGNAL, proponent_votes, rank_average, signals

__all__ = [
    "DEFAULT_SIGNAL",
    "DecisionRule",
    "Forward",
    "confident_joint",
    "decide",
    "estimate_errors",
    "forward_pass",
    "kernel_loo",
    "loo_logits",
    "loo_probabilities",
    "proponent_votes",
    "rank_average",
    "signals",
]
