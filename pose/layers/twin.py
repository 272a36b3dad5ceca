"""RMPE's parallel pose network: a frozen copy, which teaches but does not learn (Fang et al., ICCV 2017, 3.1)."""

from __future__ import annotations

import copy

from torch import Tensor, nn


class Twin(nn.Module):
    """A copy of a network that nothing moves: its weights are buffers, and it is always in evaluation mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        for module in self.network.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach())
        self.network.eval()

    def follow(self, network: nn.Module) -> None:
        """Takes over its present weights."""
        self.network.load_state_dict(network.state_dict())

    def train(self, mode: bool = True) -> Twin:
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """What the network says."""
        return self.network(images)
