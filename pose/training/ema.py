"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema:
    """Averages parameters and floating buffers; integer buffers are copied.

    After update t = 1, 2, … of a phase: average = d·average + (1 − d)·weights with d = min(decay, (1 + t)/(10 + t)),
    so that the random start is soon forgotten in short phases.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = list(_tensors(network).values())
        self.tensors = {name: tensor.clone() for name, tensor in _tensors(network).items()}
        averaged = list(self.tensors.values())
        floating = [i for i, tensor in enumerate(averaged) if tensor.is_floating_point()]
        self._averaged = [averaged[i] for i in floating]
        self._followed = [self._live[i] for i in floating]
        self._counters = [
            (averaged[i], self._live[i]) for i in range(len(averaged)) if not averaged[i].is_floating_point()
        ]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the network's present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self._averaged, self._followed, 1 - decay)
        for mine, live in self._counters:
            mine.copy_(live)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averaged weights."""
        own = [tensor.clone() for tensor in self._live]
        self._write(list(self.tensors.values()))
        try:
            yield
        finally:
            self._write(own)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for live, value in zip(self._live, values, strict=True):
            live.copy_(value)

    def state_dict(self) -> dict:
        """All that `load_state_dict` needs."""
        return {"updates": self.updates, "tensors": self.tensors}

    def load_state_dict(self, state: dict) -> None:
        """Restores averages in place."""
        self.updates = state["updates"]
        for name, tensor in self.tensors.items():
            tensor.copy_(state["tensors"][name])


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in network.state_dict(keep_vars=True).items()}
