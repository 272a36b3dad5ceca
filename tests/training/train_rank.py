"""One rank of a training as a process of its own, for tests that kill it. Not a test itself.

A victim sends itself SIGKILL before its so-many-th optimiser step of this attempt.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from pose.errors import PoseError
from pose.training import loop, stage
from pose.training.distributed import World
from pose.training.spec import TrainingSpec


def kill_before(step: int) -> None:
    """Patches the stage so that this process dies there."""
    taken, real = iter(range(step)), stage.Stage.step

    def dying(self, batch, number):
        if next(taken, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, batch, number)

    stage.Stage.step = dying


def main(spec_path: str, rank: int, size: int, rendezvous: str, kill_step: int = -1, victim: int = 0) -> int:
    """Exit code 4 where a TrainingError was raised, as every rank must."""
    if kill_step >= 0 and rank == victim:
        kill_before(kill_step)
    if size > 1:
        dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    try:
        loop.train(TrainingSpec.load(Path(spec_path)), World(rank, size, size, torch.device("cpu")))
    except PoseError as error:
        print(error, file=sys.stderr, flush=True)
        return error.exit_code
    return 0


def start(*arguments) -> None:
    """main as the target of a process."""
    sys.exit(main(*arguments))


def start_each(spec_paths: list[str], rank: int, size: int, rendezvous: str) -> None:
    """One training after the other in one process group; ends with 4 at the first that raises, naming it."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
    for path in spec_paths:
        spec = TrainingSpec.load(Path(path))
        try:
            loop.train(spec, World(rank, size, size, torch.device("cpu")))
        except Exception as error:
            print(f"{spec.system} on rank {rank}: {error}", file=sys.stderr, flush=True)
            os._exit(4)  # the others may wait for this rank for ever
