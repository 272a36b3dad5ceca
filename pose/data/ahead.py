"""Batches made ahead of their use, on threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

B = TypeVar("B")


def batches_ahead(
    make: Callable[[np.ndarray], B], order: np.ndarray, batch_size: int, threads: int, start: int = 0
) -> Iterator[B]:
    """make(rows) for each `batch_size` rows of `order`, the last ones possibly fewer, without the first `start`.

    Up to `threads` batches are made ahead. An error of `make` is raised in its batch's turn.
    """
    waiting: deque[Future[B]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="loader")
    try:
        for first in range(start * batch_size, len(order), batch_size):
            waiting.append(pool.submit(make, np.asarray(order[first : first + batch_size], dtype=np.int64)))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
