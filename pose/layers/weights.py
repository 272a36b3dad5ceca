"""First weights of a network, and weights from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pose.errors import TrainingError

COUNTED = "num_batches_tracked"
"""Batch normalisation's step counter, which releases of before torch 0.4.1 lack and evaluation never reads."""


def initialise(module: nn.Module, *, overlapping_pools: bool = False) -> None:
    """Normal weights of standard deviation gain / sqrt(fan-in) for convolutions and linear layers; biases zero.

    Convolutions have He's gain, the square root of 2, with which deep plain networks train from scratch (He et al.
    2015). Two exceptions keep momentum SGD at the recipes' rates from diverging, for the curvature of a squared error
    grows with the square of what reaches the last layer: linear layers have gain 1, and so have the convolutions of
    a trunk with overlapping 3x3 poolings, each of which about doubles the second moment.
    Draws from torch's global generator. Layers on the meta device have no weights and are left alone: drawing nothing
    costs seconds of imports there.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not layer.weight.is_meta:
            plain = isinstance(layer, nn.Linear) or overlapping_pools
            nn.init.kaiming_normal_(layer.weight, nonlinearity="linear" if plain else "relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def initialise_output(layer: nn.Linear, std: float, bias: float) -> None:
    """Small weights and a constant bias, so that a network's first answer is `bias` whatever it sees."""
    if not layer.weight.is_meta:
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
