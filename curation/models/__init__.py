"""The LightningModules that ship with the tool, and the functions that build and load them or a user's own."""

from curation.models.answers import answer_scores, evaluate_answers
from curation.models.base import Classifier
from curation.models.build import build_model, load_model
from curation.models.evaluation import check_batch, evaluate
from curation.models.gpt import TinyGPT
from curation.models.image import ImageClassifier
from curation.models.kinds import kind_of
from curation.models.language import LanguageModel, generate
from curation.models.pretrained_language import HuggingFaceLanguageModel
from curation.models.seeding import seeded
from curation.models.tabular import TabularClassifier
from curation.models.text import TextClassifier

__all__ = [
    "Classifier",
    "HuggingFaceLanguageModel",
    "ImageClassifier",
    "LanguageModel",
    "TabularClassifier",
    "TextClassifier",
    "TinyGPT",
    "answer_scores",
    "build_model",
    "check_batch",
    "evaluate",
    "evaluate_answers",
    "generate",
    "kind_of",
    "load_model",
    "seeded",
]
