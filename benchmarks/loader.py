"""Loader against the per-image pipeline that pose repositories publish, in images per second of one core.

    python -m benchmarks.loader --data data/prepared/lspet --source data/unpacked/lspet-301d4990
    python -m benchmarks.loader --data data/prepared/coco --source data/unpacked/coco-3b171085

shards     what `pose.data.loader` hands to a device: mapped JPEG -> uint8 [B, 3, S, S], keypoints and truth in its
           pixels, augmentation drawn. Warp, colour, normalisation and targets are the device's work.
on_cpu     the same, and `pose.data.augment.finish` run on the same core: resize, warp, colour, erase, normalise. No
           target maps: the regressors need none.
per_image  one person after the other, as official datasets do in `__getitem__`: open and decode, draw a change, warp
           with PIL (bilinear), float32, normalise, a Gaussian target map of a quarter of the input's size per joint in
           a numpy loop; stacked to a batch. It opens the original files under --source, the whole image for each of
           its people, or decodes the shards' own JPEGs without it.
near_warp  per_image with nearest-neighbour sampling: nearer to what OpenCV's bilinear warp costs, where PIL's is slow.

All sides make batches of the same rows at the same input, in one thread, in turns: S x S where whole images are stored
(S: the stored crop), 192 x 256 and 1.25 times the box where people are. The files are in the page cache. Time is
processor time of the whole process, so that a busy machine changes little. JSON on stdout.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pose.config import ROOT, AugmentParams
from pose.data.augment import finish
from pose.data.loader import Loader
from pose.data.shards import Split
from pose.errors import DataError, PoseError
from pose.progress import say, track

BATCH = 64
AUGMENT = AugmentParams(scale=0.25, rotate=20, translate=0.08, flip=0.5, colour=0.3)
SIGMA = 2.0
"""Of the target maps, px of the map."""
PADDING = 1.25
"""The box times this fills the input of the person view."""
EXPECTED = {"image": 3.0, "person": 6.0}
"""Of the first ratio, by what the shards hold."""
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)


def main() -> None:
    """Parses the arguments, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data/prepared/lspet", help="a prepared dataset")
    parser.add_argument("--source", type=Path, help="its unpacked archive: the naive side then reads original files")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    try:
        result = compare(arguments.data, arguments.source, arguments.images, arguments.repetitions)
    except PoseError as error:
        say(str(error))
        sys.exit(error.exit_code)
    print(json.dumps(result, indent=2))


def compare(data: Path, source: Path | None, images: int, repetitions: int) -> dict:
    """Medians over interleaved repetitions; the ratio is the median of each repetition's own ratio."""
    torch.set_num_threads(1)
    split = Split.open(data, "train")
    if source is not None and not (source / split.file_names[0]).is_file():
        raise DataError(f"{source} has no {split.file_names[0]}; --source is the folder {data} was prepared from.")
    # A small split is gone through several times.
    rows = np.resize(np.random.default_rng(0).permutation(len(split)), images)
    expected = EXPECTED[split.crop.view]
    sides: dict[str, Callable[[], None]] = {
        "shards": lambda: from_shards(split, rows, finished=False),
        "on_cpu": lambda: from_shards(split, rows, finished=True),
        "per_image": lambda: per_image(split, rows, source, Image.Resampling.BILINEAR),
        "near_warp": lambda: per_image(split, rows, source, Image.Resampling.NEAREST),
    }
    for side in sides.values():
        side()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in track(range(repetitions), "repetitions", total=repetitions):
        for name, side in sides.items():
            began = time.process_time()
            side()
            rates[name].append(len(rows) / (time.process_time() - began))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    for name, rate in medians.items():
        say(f"{name:<10} {rate:8.0f} images/s/core  ({min(rates[name]):.0f} to {max(rates[name]):.0f})")
    ratios = {
        "shards_to_per_image": _ratio(rates["shards"], rates["per_image"]),
        "shards_to_near_warp": _ratio(rates["shards"], rates["near_warp"]),
        "on_cpu_to_per_image": _ratio(rates["on_cpu"], rates["per_image"]),
    }
    say(", ".join(f"{name} {value:.2f}" for name, value in ratios.items()) + f" (the first: at least {expected:g})")
    return {
        "ratio": ratios["shards_to_per_image"],
        "expected": expected,
        "reached": ratios["shards_to_per_image"] >= expected,
        "ratios": ratios,
        "images_per_second_per_core": {name: round(rate, 1) for name, rate in medians.items()},
        "crop_size": split.crop.size,
        "input": input_size(split),
        "rows": len(rows),
        "people": min(len(split), images),
        "repetitions": repetitions,
        "per_image_reads": "original files" if source else "the shards' JPEGs",
    }


def _ratio(ours: list[float], theirs: list[float]) -> float:
    return round(statistics.median(a / b for a, b in zip(ours, theirs, strict=True)), 3)


def from_shards(split: Split, rows: np.ndarray, finished: bool) -> None:
    """One pass of the loader. Its one decoding thread works while this one waits: one core in all."""
    for batch in Loader(split, threads=1).batches(rows, BATCH, AUGMENT, seed=0, epoch=0):
        if finished:
            finish(batch, input_size(split), split.skeleton, PADDING)


def input_size(split: Split) -> tuple[int, int]:
    """Width and height of what both sides make."""
    return (split.crop.size, split.crop.size) if split.crop.view == "image" else (192, 256)


def to_input(split: Split, row: int) -> np.ndarray:
    """[3, 3], original px to the unchanged input: whole images squashed, boxes padded to the input's aspect."""
    width, height = input_size(split)
    if split.crop.view == "image":
        return np.vstack([split.to_crop[row], [0, 0, 1]]).astype(np.float64)
    x0, y0, x1, y1 = split.boxes[row].tolist()
    scale = min(width / (x1 - x0), height / (y1 - y0)) / PADDING
    shift = [width / 2 - scale * (x0 + x1) / 2, height / 2 - scale * (y0 + y1) / 2]
    return np.array([[scale, 0, shift[0]], [0, scale, shift[1]], [0, 0, 1]])


def per_image(split: Split, rows: np.ndarray, source: Path | None, filter_: Image.Resampling) -> None:
    """One pass of the naive pipeline."""
    rng = np.random.default_rng(0)
    for first in range(0, len(rows), BATCH):
        samples = [naive_sample(split, int(row), source, filter_, rng) for row in rows[first : first + BATCH]]
        for parts in zip(*samples, strict=True):
            torch.stack(parts)


def naive_sample(
    split: Split, row: int, source: Path | None, filter_: Image.Resampling, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Image [3, H, W] float32, target maps [K, H/4, W/4] and their weights [K]."""
    width, height = input_size(split)
    file: Path | io.BytesIO = (
        io.BytesIO(split.jpeg(row).tobytes()) if source is None else source / split.file_names[row]
    )
    image = Image.open(file).convert("RGB")
    to_crop = np.vstack([split.to_crop[row], [0, 0, 1]]).astype(np.float64)
    stored = np.eye(3) if source is not None else np.linalg.inv(to_crop)  # pixels of `image` -> original
    whole = random_change(rng, width, height) @ to_input(split, row)
    back = np.linalg.inv(whole @ stored)
    warped = image.transform((width, height), Image.Transform.AFFINE, back[:2].ravel().tolist(), filter_)
    pixels = torch.from_numpy(np.array(warped)).permute(2, 0, 1).contiguous().float()
    pixels.div_(255).sub_(MEAN).div_(STD)
    targets = np.zeros((split.skeleton.size, height // 4, width // 4), dtype=np.float32)
    weights = split.labelled[row].astype(np.float32)
    for joint in range(split.skeleton.size):
        if weights[joint]:
            x, y, _ = whole @ [*split.keypoints[row, joint], 1.0]
            weights[joint] = draw_gaussian(targets[joint], x / 4, y / 4)
    return pixels, torch.from_numpy(targets), torch.from_numpy(weights)


def random_change(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """[3, 3] in input pixels, within AUGMENT's ranges, without the joint swap that a mirror would need."""
    angle, factor = math.radians(AUGMENT.rotate) * rng.uniform(-1, 1), (1 + AUGMENT.scale) ** rng.uniform(-1, 1)
    turn = factor * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    middle = np.array([width, height]) / 2
    shift = middle - turn @ middle + 2 * middle * AUGMENT.translate * rng.uniform(-1, 1, 2)
    return np.vstack([np.column_stack([turn, shift]), [0, 0, 1]])


def draw_gaussian(target: np.ndarray, x: float, y: float) -> float:
    """Sets the patch of 6 sigma around (x, y) and returns the joint's weight: 0 where the patch is outside."""
    reach, (height, width) = int(3 * SIGMA), target.shape
    column, line = int(x), int(y)
    left, top = column - reach, line - reach
    right, bottom = column + reach + 1, line + reach + 1
    if left >= width or top >= height or right < 0 or bottom < 0:
        return 0.0
    along = np.arange(2 * reach + 1, dtype=np.float32)
    patch = np.exp(-((along - reach) ** 2 + (along[:, None] - reach) ** 2) / (2 * SIGMA**2))
    x0, y0, x1, y1 = max(0, left), max(0, top), min(right, width), min(bottom, height)
    target[y0:y1, x0:x1] = patch[y0 - top : y1 - top, x0 - left : x1 - left]
    return 1.0


if __name__ == "__main__":
    main()
