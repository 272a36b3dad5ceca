"""From shards to batches: rows in the order asked for, decoded ahead on threads, uint8 until they are on the device."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pose.config import AugmentParams
from pose.data import augment as augmentation
from pose.data import crops
from pose.data.ahead import batches_ahead
from pose.data.batch import Batch
from pose.data.scenes import SceneLoader, SceneSplit
from pose.data.shards import Split
from pose.errors import DataError


def open_loader(view: Literal["person", "scene"], directory: Path, split: str, threads: int) -> Loader | SceneLoader:
    """The loader of a prepared split for systems of that view. Raises DataError as Split and SceneSplit do."""
    if view == "scene":
        return SceneLoader(SceneSplit.open(directory, split), threads)
    return Loader(Split.open(directory, split), threads)


class Loader:
    """Batches of one split. Their content depends on the arguments of `batches` alone, not on the threads."""

    def __init__(self, split: Split, threads: int) -> None:
        self.split = split
        self.threads = threads
        located = np.where(split.labelled[:, :, None], split.crop_keypoints, 0)
        self._keypoints = located.astype(np.float32)
        self._to_original = crops.invert(split.to_crop.astype(np.float64)).astype(np.float32)
        # Pinned memory lets the copy to a GPU overlap with its work.
        self._pin = torch.cuda.is_available()

    def batches(
        self,
        order: np.ndarray,
        batch_size: int,
        augment: AugmentParams | None,
        seed: int,
        epoch: int,
        start: int = 0,
    ) -> Iterator[Batch]:
        """Batches of the rows in `order`, the last one possibly smaller, without the first `start` batches.

        Images are uint8 [B, 3, H, W] of the stored size (channels last in memory), keypoints in their pixels, zero
        where not labelled. `augment` only draws the numbers; `pose.data.augment.finish` applies them.
        Raises DataError naming shard, row and image where a crop cannot be decoded.
        """

        def make(rows: np.ndarray) -> Batch:
            drawn = None if augment is None else torch.from_numpy(augmentation.draw(augment, seed, epoch, rows))
            return self._batch(rows, drawn)

        return batches_ahead(make, order, batch_size, self.threads, start)

    def _batch(self, rows: np.ndarray, drawn: Tensor | None) -> Batch:
        split = self.split
        return Batch(
            images=self._decode(rows),
            keypoints=torch.from_numpy(self._keypoints[rows]),
            labelled=torch.from_numpy(split.labelled[rows]),
            presence=torch.from_numpy(split.presence[rows]),
            to_original=torch.from_numpy(self._to_original[rows]),
            sample=torch.from_numpy(rows),
            image_ids=torch.from_numpy(split.image_ids[rows]),
            image_sizes=torch.from_numpy(split.image_sizes[rows]),
            boxes=torch.from_numpy(split.boxes[rows]),
            augment=drawn,
            view=split.crop.view,
            margin=split.crop.margin,
        )

    def _decode(self, rows: np.ndarray) -> Tensor:
        """[B, 3, H, W] uint8."""
        size = self.split.crop.size
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self._pin)
        pixels = images.numpy()
        for place, row in enumerate(rows.tolist()):
            pixels[place] = decode(self.split, row)
        return images.permute(0, 3, 1, 2)


def decode(split: Split, row: int) -> np.ndarray:
    """[S, S, 3] uint8 RGB, the stored crop of one row. Raises DataError naming its shard, row and image."""
    try:
        image = Image.open(io.BytesIO(split.jpeg(row).tobytes()), formats=("JPEG",))
        pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{_name(split, row)} does not decode ({error}); the shard is damaged, prepare the dataset again."
        ) from error
    expected = (split.crop.size, split.crop.size, 3)
    if pixels.shape != expected:
        raise DataError(
            f"{_name(split, row)} has shape {pixels.shape}, expected {expected}; prepare the dataset again."
        )
    return pixels


def _name(split: Split, row: int) -> str:
    return f"the crop in {split.location(row)}, image id {split.image_ids[row]} ({split.file_names[row]}),"
