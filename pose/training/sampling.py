"""Which rows each step of each rank sees: a function of (seed, epoch) alone."""

from __future__ import annotations

import numpy as np

from pose.errors import ConfigError
from pose.training.distributed import World, share


def epoch_order(rows: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of range(rows), int64."""
    # A counter far from those of the augmentation, which has the same key: see pose.data.augment.
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, 1 << 63, 0])).permutation(rows)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Whole batches only; the rows left over differ each epoch. A smaller dataset is one batch."""
    return max(1, rows // batch_size)


def rank_order(rows: int, batch_size: int, seed: int, epoch: int, world: World) -> tuple[np.ndarray, int]:
    """(this rank's rows of the whole epoch, its rows per step).

    Step g takes rows g·B to (g+1)·B of the epoch's order, whatever the number of ranks; each rank has its contiguous
    share of them. Raises ConfigError where a rank would have none.
    """
    size = min(batch_size, rows)
    if size < world.size:
        raise ConfigError(f"a batch of {size} rows cannot be shared by {world.size} workers; train with fewer workers")
    steps = steps_per_epoch(rows, size)
    order = epoch_order(rows, seed, epoch)[: steps * size].reshape(steps, size)
    mine = share(np.arange(size), world)
    return order[:, mine].reshape(-1), len(mine)
