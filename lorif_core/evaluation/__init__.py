"""How good are the scores? Measures against retraining and against planted truth."""

from lorif_core.evaluation.lds import linear_datamodeling_score, ranks

__all__ = ["linear_datamodeling_score", "ranks"]
