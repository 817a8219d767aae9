"""The model of a configuration."""

from __future__ import annotations

from mega_deploy.config.paper import MegaConfig
from mega_deploy.config.tasks import (
    ClassifierConfig,
    HuggingFaceConfig,
    LanguageModelConfig,
    PaperConfig,
    TranslationConfig,
)
from mega_deploy.models.paper.classifier import MegaClassifier
from mega_deploy.models.paper.encoder import MegaEncoder
from mega_deploy.models.paper.huggingface import MegaHuggingFace
from mega_deploy.models.paper.language_model import MegaLanguageModel
from mega_deploy.models.paper.translation import MegaTranslation

PaperModel = MegaEncoder | MegaClassifier | MegaLanguageModel | MegaTranslation | MegaHuggingFace


def build_model(config: PaperConfig) -> PaperModel:
    """A freshly initialised model; its `config` is the one given, its `source` None."""
    match config:
        case MegaConfig():
            return MegaEncoder(config)
        case ClassifierConfig():
            return MegaClassifier(config)
        case LanguageModelConfig():
            return MegaLanguageModel(config)
        case TranslationConfig():
            return MegaTranslation(config)
        case HuggingFaceConfig():
            return MegaHuggingFace(config)
