"""The paper's Mega (arXiv 2209.10655) in its trained form: one definition for fairseq's weights and Hugging Face's."""

from mega_deploy.config.paper import MegaConfig
from mega_deploy.models.paper.build import PaperModel, build_model
from mega_deploy.models.paper.classifier import MegaClassifier
from mega_deploy.models.paper.encoder import MegaEncoder, MegaStack
from mega_deploy.models.paper.huggingface import MegaHuggingFace
from mega_deploy.models.paper.language_model import MegaLanguageModel
from mega_deploy.models.paper.translation import MegaTranslation

__all__ = [
    "MegaClassifier",
    "MegaConfig",
    "MegaEncoder",
    "MegaHuggingFace",
    "MegaLanguageModel",
    "MegaStack",
    "MegaTranslation",
    "PaperModel",
    "build_model",
]
