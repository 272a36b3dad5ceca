"""The ranks of one training: who has which rows, and the few things they say to each other.

The process group is made by whoever starts the ranks (Ray, a test, torchrun); here it is only used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among all that train together. The default is a single process."""

    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Ranks on this machine, which share its cores."""
    device: torch.device = field(default_factory=lambda: torch.device("cuda" if torch.cuda.is_available() else "cpu"))

    @property
    def main(self) -> bool:
        """Rank 0, which alone writes files and speaks."""
        return self.rank == 0


def share(rows: np.ndarray, world: World) -> np.ndarray:
    """This rank's contiguous part of the rows; parts differ by one row at most."""
    return np.array_split(rows, world.size)[world.rank]


def sum_over_ranks(tensor: Tensor, world: World) -> Tensor:
    """The sum over ranks, the same bits on each."""
    if world.size > 1:
        dist.all_reduce(tensor)
    return tensor


def copy_from_main(tensors: Iterable[Tensor], world: World) -> None:
    """Overwrites each rank's tensors by those of rank 0."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def gather(value: T, world: World) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def on_main(action: Callable[[], T], world: World) -> T:
    """Runs an action on rank 0 and hands its result to all; if it raises, all ranks raise, so that none waits."""
    if world.size == 1:
        return action()
    answer: list[Any] = [None, None]
    if world.main:
        try:
            answer[0] = action()
        except Exception as error:
            answer[1] = error
    dist.broadcast_object_list(answer, src=0, device=world.device)
    if answer[1] is not None:
        raise answer[1]
    return answer[0]
