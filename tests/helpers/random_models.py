"""Models of the paper's family with random weights."""

import torch

from mega_deploy.models.paper import build_model


def randomised(config, seed, size=0.5):
    """A model in float64 whose every weight and buffer is random, with this standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    model = build_model(config).double().eval()
    for name, tensor in model.state_dict().items():
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) * size)
        if name.endswith("running_var"):
            tensor.abs_().add_(0.1)
    return model
