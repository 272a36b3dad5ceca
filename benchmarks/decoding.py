"""Reading coordinates off heatmaps: batched tensor code against a loop over people and joints in numpy.

    python -m benchmarks.decoding [--people 128] [--json out.json]

Both ways read the same 17 x 64 x 48 maps of noisy Gaussians and take turns in one process. The loops are written here
after what the SimpleBaseline release and the usual DARK implementation do, whole-map smoothing included. On one
thread; numpy's products of maps this small use no more, but set OMP_NUM_THREADS=1 to be sure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pose.decoding.dark import BLUR, dark
from pose.decoding.peaks import quarter
from pose.layers.heatmaps import targets

TARGETS = {"quarter": 3.0, "dark": 2.5}
JOINTS, WIDTH, HEIGHT = 17, 48, 64


def maps_of(people: int) -> np.ndarray:
    """[B, 17, 64, 48] float32: a Gaussian of sigma 2 each, and a little noise."""
    generator = torch.Generator().manual_seed(0)
    keypoints = torch.rand(people, JOINTS, 2, generator=generator) * torch.tensor([4.0 * WIDTH, 4.0 * HEIGHT])
    labelled = torch.ones(people, JOINTS, dtype=torch.bool)
    maps, _ = targets(keypoints, labelled, (WIDTH, HEIGHT), 2.0, (4 * WIDTH, 4 * HEIGHT))
    return (maps + 0.02 * torch.randn(maps.shape, generator=generator)).numpy()


def maxima(maps: np.ndarray) -> np.ndarray:
    """[B, K, 2] float32 column and row of the highest cells, (0, 0) where nothing is positive."""
    flat = maps.reshape(*maps.shape[:2], -1)
    index, value = flat.argmax(axis=2), flat.max(axis=2)
    cells = np.stack([index % maps.shape[3], index // maps.shape[3]], axis=2).astype(np.float32)
    return cells * (value > 0)[..., None]


def quarter_per_joint(maps: np.ndarray) -> np.ndarray:
    """[B, K, 2] cell indices with the release's quarter offset."""
    cells = maxima(maps)
    for n in range(cells.shape[0]):
        for k in range(cells.shape[1]):
            heat = maps[n, k]
            x, y = int(np.floor(cells[n, k, 0] + 0.5)), int(np.floor(cells[n, k, 1] + 0.5))
            if 1 < x < heat.shape[1] - 1 and 1 < y < heat.shape[0] - 1:
                slope = np.array([heat[y, x + 1] - heat[y, x - 1], heat[y + 1, x] - heat[y - 1, x]])
                cells[n, k] += np.sign(slope) * 0.25
    return cells


def dark_per_joint(maps: np.ndarray) -> np.ndarray:
    """[B, K, 2] cell indices: whole maps smoothed and rescaled, logarithm, one Newton step per joint."""
    cells = maxima(maps)
    down, across = smoothing(maps.shape[2]), smoothing(maps.shape[3])
    for n in range(cells.shape[0]):
        for k in range(cells.shape[1]):
            smooth = down @ maps[n, k] @ across
            smooth *= maps[n, k].max() / smooth.max()
            log = np.log(np.maximum(smooth, 1e-10))
            x, y = int(cells[n, k, 0]), int(cells[n, k, 1])
            if 1 < x < log.shape[1] - 2 and 1 < y < log.shape[0] - 2:
                gradient = np.array([log[y, x + 1] - log[y, x - 1], log[y + 1, x] - log[y - 1, x]]) / 2
                dxx = (log[y, x + 2] - 2 * log[y, x] + log[y, x - 2]) / 4
                dyy = (log[y + 2, x] - 2 * log[y, x] + log[y - 2, x]) / 4
                dxy = (log[y + 1, x + 1] - log[y - 1, x + 1] - log[y + 1, x - 1] + log[y - 1, x - 1]) / 4
                if dxx * dyy - dxy**2 != 0:
                    cells[n, k] -= np.linalg.inv(np.array([[dxx, dxy], [dxy, dyy]])) @ gradient
    return cells


def smoothing(length: int) -> np.ndarray:
    """[length, length] float32, symmetric: a Gaussian of BLUR values with zeros beyond the ends, as a matrix.

    Two products with it smooth a map as quickly as an image library's separable filter does.
    """
    sigma = 0.3 * ((BLUR - 1) / 2 - 1) + 0.8
    kernel = np.exp(-((np.arange(BLUR) - BLUR // 2) ** 2) / (2 * sigma**2))
    distance = np.abs(np.arange(length)[:, None] - np.arange(length))
    weights = np.exp(-(distance**2) / (2 * sigma**2)) * (distance <= BLUR // 2) / kernel.sum()
    return weights.astype(np.float32)


def compare(ours: Callable[[], Any], loop: Callable[[], Any], rounds: int) -> dict[str, Any]:
    """Processor seconds of both ways in turn, which other programs disturb less than the clock; a round warms up."""
    seconds: dict[str, list[float]] = {"ours": [], "loop": []}
    for number in range(rounds + 1):
        for name, run in (("ours", ours), ("loop", loop)):
            start = time.process_time()
            run()
            if number > 0:
                seconds[name].append(time.process_time() - start)
    ratios = [slow / quick for slow, quick in zip(seconds["loop"], seconds["ours"], strict=True)]
    return {name: statistics.median(values) for name, values in seconds.items()} | {"ratio": statistics.median(ratios)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--people", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    maps = maps_of(arguments.people)
    tensor = torch.from_numpy(maps)
    ways = {"quarter": (quarter, quarter_per_joint), "dark": (dark, dark_per_joint)}
    results = {}
    print(f"{arguments.people} people, maps {JOINTS}x{HEIGHT}x{WIDTH}, one thread")
    print(f"{'decode':10}{'ours':>14}{'loop':>14}{'ratio':>8}{'target':>8}{'difference':>14}")
    for name, (ours, loop) in ways.items():
        with torch.inference_mode():
            difference = float(np.abs(ours(tensor)[0].numpy() - 0.5 - loop(maps)).max())
            r = compare(lambda ours=ours: ours(tensor), lambda loop=loop: loop(maps), arguments.rounds)
        results[name] = r | {"difference_cells": difference}
        each = {way: 1e6 * r[way] / arguments.people for way in ("ours", "loop")}
        print(
            f"{name:10}{each['ours']:8.1f} µs/p.{each['loop']:8.1f} µs/p.{r['ratio']:8.1f}{TARGETS[name]:8.1f}"
            f"{difference:8.1e} cells"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(vars(arguments) | {"json": None, "results": results}, indent=1))


if __name__ == "__main__":
    main()
