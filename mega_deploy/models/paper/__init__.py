"""The paper's Mega (arXiv 2209.10655) in its trained form: one definition for fairseq's weights and Hugging Face's."""

from mega_deploy.models.paper.encoder import MegaEncoder, MegaStack
from mega_deploy.paper import MegaConfig

__all__ = ["MegaConfig", "MegaEncoder", "MegaStack"]
