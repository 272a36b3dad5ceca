"""Torch's process-wide switches, for the duration of a training."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pose.config import TrainingParams
from pose.training.distributed import World


@contextmanager
def applied(params: TrainingParams, world: World) -> Iterator[None]:
    """Threads and determinism as params say; the former state comes back afterwards.

    threads = 0 shares the available cores among the ranks of this machine.
    """
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    cudnn = torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    # cuBLAS reads this when its first handle is made, and refuses deterministic mode without it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.set_num_threads(params.threads or max(1, len(os.sched_getaffinity(0)) // world.local_size))
    torch.use_deterministic_algorithms(params.deterministic)
    torch.backends.cudnn.benchmark = not params.deterministic
    torch.backends.cudnn.deterministic = params.deterministic
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic = cudnn


def seed_rank(seed: int, world: World) -> None:
    """Seeds torch's generators; every rank has its own stream for dropout."""
    torch.manual_seed(seed * 1009 + world.rank)


def rng_state(world: World) -> dict[str, torch.Tensor]:
    """State of the generators this rank draws from."""
    state = {"cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(world.device)
    return state


def restore_rng(state: dict[str, torch.Tensor], world: World) -> None:
    """Inverse of rng_state."""
    torch.set_rng_state(state["cpu"])
    if world.device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], world.device)
