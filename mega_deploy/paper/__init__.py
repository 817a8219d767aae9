"""The paper's Mega (arXiv 2209.10655) as plain data: options, tasks, inputs and outputs. Nothing here needs torch."""

from mega_deploy.paper.config import MegaConfig

__all__ = ["MegaConfig"]
