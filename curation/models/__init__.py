"""The LightningModules that ship with the tool, and the functions that build and load them or a user's own."""

from curation.models.base import Classifier
from curation.models.build import build_model, load_model
from curation.models.evaluation import check_batch, evaluate
from curation.models.image import ImageClassifier
from curation.models.seeding import seeded
from curation.models.tabular import TabularClassifier
from curation.models.text import TextClassifier

__all__ = [
    "Classifier",
    "ImageClassifier",
    "TabularClassifier",
    "TextClassifier",
    "build_model",
    "check_batch",
    "evaluate",
    "load_model",
    "seeded",
]
