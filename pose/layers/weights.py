"""First weights of a network, and weights from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pose.errors import TrainingError

COUNTED = "num_batches_tracked"
"""Batch normalisation's step counter, which releases of before torch 0.4.1 lack and evaluation never reads."""


def initialise(network: nn.Module) -> None:
    """He initialisation (He et al. 2015, fan-in) of every convolution and linear layer; biases zero.

    Deep plain networks without batch normalisation train from scratch with it. Draws from torch's global generator.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def initialise_output(layer: nn.Linear, std: float, bias: float) -> None:
    """Small weights and a constant bias, so that a network's first answer is `bias` whatever it sees."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.constant_(layer.bias, bias)


@torch.no_grad()
def load_strictly(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies `state` into `module`; nothing may be missing, left over or of another shape.

    Raises TrainingError naming `source` and the tensors at fault.
    """
    own = module.state_dict()
    missing = [key for key in own if key not in state and not key.endswith(COUNTED)]
    unexpected = [key for key in state if key not in own]
    reshaped = [
        f"{key} is {tuple(state[key].shape)}, expected {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    faults = [
        f"{what}: {_few(names)}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", reshaped))
        if names
    ]
    if faults:
        raise TrainingError(
            f"{source} does not fit this network; {'; '.join(faults)}. "
            "Were they written by another system, or with other sizes in params.yaml?"
        )
    module.load_state_dict(dict(state), strict=False)


def _few(names: list[str], most: int = 5) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
