"""Scenes: whole images with all their people, kept in Arrow shards, loaded in batches, fitted to a network's input.

A stored image is the original scaled so that its longer side is `size` (`fit`). In a batch all images have a canvas
of size x size with the image at its top left, so that what a row looks like does not depend on the batch.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from pose.config import AugmentParams
from pose.data import augment as augmentation
from pose.data.ahead import batches_ahead
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.data.crops import PADDING
from pose.data.scene_views import finish as finish
from pose.data.scene_views import plain as plain
from pose.data.shards import binary_buffers, read_batches, stack
from pose.errors import DataError
from pose.skeleton import Skeleton, skeleton_named

FORMAT = "1"


@dataclass(frozen=True)
class SceneRow:
    """One image and the P people in it, 0 and more. Crowds are no people; they belong into `ignored`."""

    jpeg: bytes
    """The stored image, RGB, encoded."""
    file_name: str
    """The original, relative to the dataset's archive."""
    image_id: int
    image_size: tuple[int, int]
    """Width and height of the original image."""
    annotation_ids: np.ndarray
    """[P]."""
    boxes: np.ndarray
    """[P, 4] xyxy, original px."""
    keypoints: np.ndarray
    """[P, K, 3] x, y in original px, COCO visibility; zeros where not labelled. A person may have none."""
    areas: np.ndarray
    """[P] segment area, square px of the original."""
    ignored: np.ndarray
    """bool of `mask_shape(stored width and height)`: cells of IGNORE_STRIDE stored px where nothing is known."""


def fit(image_size: tuple[int, int], size: int) -> tuple[int, int]:
    """Width and height of the stored image: the longer side is `size`, the aspect is kept to a pixel."""
    factor = size / max(image_size)
    width, height = (max(1, round(side * factor)) for side in image_size)
    return width, height


def mask_shape(stored: tuple[int, int]) -> tuple[int, int]:
    """Lines and columns of the mask of ignored regions for a stored image's width and height."""
    width, height = stored
    return -(-height // IGNORE_STRIDE), -(-width // IGNORE_STRIDE)


# ---------------------------------------------------------------- shards


def write_scenes(
    rows: Iterable[SceneRow], directory: Path, split: str, rows_per_shard: int, skeleton: Skeleton, size: int
) -> int:
    """Writes `scene-<split>-00000.arrow`, ... in the rows' order and returns how many images that were.

    size: longest side of a stored image. Raises ValueError where a row does not fit what is said of it.
    """
    schema = _schema(skeleton, size)
    remaining, written, number = iter(rows), 0, 0
    while shard := list(islice(remaining, rows_per_shard)):
        path = directory / f"scene-{split}-{number:05d}.arrow"
        records = [_record(row, skeleton, size) for row in shard]
        columns = [pa.array([record[field.name] for record in records], field.type) for field in schema]
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        written, number = written + len(shard), number + 1
    return written


def _schema(skeleton: Skeleton, size: int) -> pa.Schema:
    fields = {
        "jpeg": pa.large_binary(),
        "file_name": pa.string(),
        "image_id": pa.int64(),
        "image_size": pa.list_(pa.float32(), 2),
        "stored_size": pa.list_(pa.int64(), 2),
        "annotation_ids": pa.list_(pa.int64()),
        "boxes": pa.list_(pa.float32()),
        "keypoints": pa.list_(pa.float32()),
        "areas": pa.list_(pa.float32()),
        "ignored": pa.large_binary(),
    }
    metadata = {"format": FORMAT, "skeleton": skeleton.name, "size": str(size)}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()], metadata=metadata)


def _record(row: SceneRow, skeleton: Skeleton, size: int) -> dict:
    stored = Image.open(io.BytesIO(row.jpeg)).size
    people = len(row.annotation_ids)
    wanted = {
        "boxes": (people, 4),
        "keypoints": (people, skeleton.size, 3),
        "areas": (people,),
        "ignored": mask_shape(stored),
    }
    for name, shape in wanted.items():
        if np.shape(getattr(row, name)) != shape:
            raise ValueError(f"{name} of {row.file_name} is {np.shape(getattr(row, name))}, expected {shape}")
    if max(stored) > size:
        raise ValueError(f"the stored image of {row.file_name} is {stored}, larger than {size}; see scenes.fit")
    return vars(row) | {
        "stored_size": stored,
        "annotation_ids": np.asarray(row.annotation_ids, np.int64),
        "boxes": np.asarray(row.boxes, np.float32).ravel(),
        "keypoints": np.asarray(row.keypoints, np.float32).ravel(),
        "areas": np.asarray(row.areas, np.float32),
        # Most images have nothing to ignore.
        "ignored": np.packbits(row.ignored).tobytes() if np.any(row.ignored) else b"",
    }


class SceneSplit:
    """All images of one split. Small columns are arrays in memory, JPEGs and masks stay in the mapped files.

    The people of all images lie in one row of arrays; those of image n are `people_of(n)`.
    """

    def __init__(self, batches: list[pa.RecordBatch], files: list[Path], skeleton: Skeleton, size: int) -> None:
        self.skeleton = skeleton
        self.size = size
        """Longest side of a stored image, px."""
        self._files = files
        self._jpegs = [binary_buffers(batch.column("jpeg")) for batch in batches]
        self._masks = [binary_buffers(batch.column("ignored")) for batch in batches]
        self._starts = np.cumsum([0, *(len(batch) for batch in batches)])
        self.image_ids = stack(batches, "image_id", np.int64)
        """[N] int64."""
        self.image_sizes = stack(batches, "image_size", np.float32).reshape(-1, 2)
        """[N, 2] float32, width and height of the original images."""
        self.stored_sizes = stack(batches, "stored_size", np.int64).reshape(-1, 2)
        """[N, 2] int64, width and height of the stored images."""
        self.file_names: list[str] = [name for batch in batches for name in batch.column("file_name").to_pylist()]
        counts = [batch.column("annotation_ids").value_lengths().to_numpy() for batch in batches]
        self._people = np.cumsum([0, *np.concatenate(counts)])
        self.annotation_ids = stack(batches, "annotation_ids", np.int64)
        """[M] int64, as the other arrays of people in the images' order."""
        self.boxes = stack(batches, "boxes", np.float32).reshape(-1, 4)
        """[M, 4] float32 xyxy, original px."""
        self.areas = stack(batches, "areas", np.float32)
        """[M] float32, square px of the original."""
        joints = stack(batches, "keypoints", np.float32).reshape(-1, skeleton.size, 3)
        self.labelled = joints[:, :, 2] > 0
        """[M, K] bool: the joint has a position."""
        self.presence = (joints[:, :, 2] == 2).astype(np.float32)
        """[M, K] float32: 1 visible, 0 not."""
        self.keypoints = np.where(self.labelled[:, :, None], joints[:, :, :2], np.float32(0))
        """[M, K, 2] float32, original px; zeros where not labelled."""

    @staticmethod
    def open(directory: Path, split: str) -> SceneSplit:
        """Maps a prepared split. Raises DataError where it is missing, damaged or of another format."""
        paths = sorted(directory.glob(f"scene-{split}-*.arrow"))
        if not paths:
            raise DataError(
                f"{directory} holds no scene-{split}-*.arrow, which systems of the scene view need; prepare the "
                "dataset with a block `scene` in its parameters (`pose data prepare`)."
            )
        read = [(batch, path) for path in paths for batch in read_batches(path)]
        metadata = read[0][0].schema.metadata or {}
        if metadata.get(b"format") != FORMAT.encode() or b"size" not in metadata:
            raise DataError(
                f"{paths[0]} has scene format {metadata.get(b'format', b'none').decode()}, expected {FORMAT}; "
                "prepare the dataset again."
            )
        skeleton = skeleton_named(metadata[b"skeleton"].decode())
        return SceneSplit([b for b, _ in read], [path for _, path in read], skeleton, int(metadata[b"size"]))

    def __len__(self) -> int:
        return len(self.image_ids)

    def people_of(self, row: int) -> slice:
        """Where the people of an image are in the arrays of people."""
        return slice(int(self._people[row]), int(self._people[row + 1]))

    def jpeg(self, row: int) -> np.ndarray:
        """[bytes] uint8, the encoded stored image, a read-only view of the mapped file."""
        return self._bytes(self._jpegs, row)

    def ignored(self, row: int) -> np.ndarray:
        """bool of `mask_shape(stored size)`."""
        width, height = self.stored_sizes[row].tolist()
        shape = mask_shape((width, height))
        packed = self._bytes(self._masks, row)
        if not len(packed):
            return np.zeros(shape, bool)
        return np.unpackbits(packed, count=shape[0] * shape[1]).reshape(shape).astype(bool)

    def location(self, row: int) -> str:
        """Where a row is kept, for messages: the shard's file and the row within it."""
        shard, local = self._place(row)
        return f"{self._files[shard]}, row {local}"

    def _bytes(self, columns: list[tuple[np.ndarray, np.ndarray]], row: int) -> np.ndarray:
        shard, local = self._place(row)
        offsets, data = columns[shard]
        return data[offsets[local] : offsets[local + 1]]

    def _place(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a split with {len(self)} scenes")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])


# ---------------------------------------------------------------- batches


class SceneLoader:
    """Batches of one split. Their content depends on the arguments of `batches` alone, not on the threads."""

    def __init__(self, split: SceneSplit, threads: int) -> None:
        self.split = split
        self.threads = threads
        self._pin = torch.cuda.is_available()

    def batches(
        self,
        order: np.ndarray,
        batch_size: int,
        augment: AugmentParams | None,
        seed: int,
        epoch: int,
        start: int = 0,
    ) -> Iterator[SceneBatch]:
        """Batches of the images in `order`, the last one possibly smaller, without the first `start` batches.

        Images are uint8 [B, 3, size, size] (channels last in memory), people in their pixels. `augment` only draws
        the numbers; `finish` applies them. Raises DataError naming shard, row and image that cannot be decoded.
        """

        def make(rows: np.ndarray) -> SceneBatch:
            drawn = None if augment is None else torch.from_numpy(augmentation.draw(augment, seed, epoch, rows))
            return self._batch(rows, drawn)

        return batches_ahead(make, order, batch_size, self.threads, start)

    def _batch(self, rows: np.ndarray, drawn: Tensor | None) -> SceneBatch:
        split, count = self.split, len(rows)
        places = [split.people_of(row) for row in rows.tolist()]
        slots, k = max(1, *(place.stop - place.start for place in places)), split.skeleton.size
        scale = split.stored_sizes[rows] / split.image_sizes[rows].astype(np.float64)
        people = np.zeros((count, slots), bool)
        keypoints, labelled = np.zeros((count, slots, k, 2), np.float32), np.zeros((count, slots, k), bool)
        presence, boxes = np.zeros((count, slots, k), np.float32), np.zeros((count, slots, 4), np.float32)
        areas = np.zeros((count, slots), np.float32)
        for n, place in enumerate(places):
            here = slice(0, place.stop - place.start)
            people[n, here] = True
            keypoints[n, here] = split.keypoints[place] * scale[n]
            labelled[n, here], presence[n, here] = split.labelled[place], split.presence[place]
            boxes[n, here] = split.boxes[place] * np.tile(scale[n], 2)
            areas[n, here] = split.areas[place] * scale[n].prod()
        to_original = np.zeros((count, 2, 3), np.float32)
        to_original[:, [0, 1], [0, 1]] = 1 / scale
        images, ignored = self._decode(rows)
        arrays = {
            "extents": split.stored_sizes[rows].astype(np.float32), "people": people, "keypoints": keypoints,
            "labelled": labelled, "presence": presence, "boxes": boxes, "areas": areas, "ignored": ignored,
            "to_original": to_original, "sample": rows, "image_ids": split.image_ids[rows],
            "image_sizes": split.image_sizes[rows],
        }  # fmt: skip
        return SceneBatch(images, **{name: torch.from_numpy(a) for name, a in arrays.items()}, augment=drawn)

    def _decode(self, rows: np.ndarray) -> tuple[Tensor, np.ndarray]:
        """uint8 [B, 3, size, size] and bool [B, cells, cells]."""
        size = self.split.size
        images = torch.empty((len(rows), size, size, 3), dtype=torch.uint8, pin_memory=self._pin)
        ignored = np.zeros((len(rows), *mask_shape((size, size))), bool)
        pixels = images.numpy()
        for place, row in enumerate(rows.tolist()):
            place_on(pixels[place], decode(self.split, row))
            mask = self.split.ignored(row)
            ignored[place, : mask.shape[0], : mask.shape[1]] = mask
        return images.permute(0, 3, 1, 2), ignored


def place_on(canvas: np.ndarray, picture: np.ndarray) -> None:
    """Puts a picture [h, w, 3] at the top left of a canvas [size, size, 3], the rest gets PADDING. In place."""
    height, width = picture.shape[:2]
    canvas[:height, :width] = picture
    canvas[height:], canvas[:height, width:] = PADDING, PADDING


def decode(split: SceneSplit, row: int) -> np.ndarray:
    """[h, w, 3] uint8 RGB, the stored image of one row. Raises DataError naming its shard, row and image."""
    name = f"the scene in {split.location(row)}, image id {split.image_ids[row]} ({split.file_names[row]}),"
    try:
        image = Image.open(io.BytesIO(split.jpeg(row).tobytes()), formats=("JPEG",))
        pixels = np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{name} does not decode ({error}); the shard is damaged, prepare the dataset again."
        ) from error
    width, height = split.stored_sizes[row].tolist()
    if pixels.shape != (height, width, 3):
        raise DataError(f"{name} has shape {pixels.shape}, expected {(height, width, 3)}; prepare the dataset again.")
    return pixels


def unlabelled(pictures: Sequence[Image.Image], image_ids: Sequence[int], size: int, skeleton: Skeleton) -> SceneBatch:
    """A batch of pictures about whose people nothing is known: what `SceneLoader` gives, without the JPEG between.

    pictures: whole originals. size: side of the canvas; the input's longer side is as sharp as it gets.
    """
    count, k = len(pictures), skeleton.size
    canvas = np.empty((count, size, size, 3), np.uint8)
    for n, picture in enumerate(pictures):
        stored = picture.convert("RGB").resize(fit(picture.size, size), Image.Resampling.BILINEAR)
        place_on(canvas[n], np.asarray(stored))
    originals = torch.tensor([picture.size for picture in pictures], dtype=torch.float32)
    extents = torch.tensor([fit(picture.size, size) for picture in pictures], dtype=torch.float32)
    return SceneBatch(
        images=torch.from_numpy(canvas).permute(0, 3, 1, 2),
        extents=extents,
        people=torch.zeros(count, 1, dtype=torch.bool),
        keypoints=torch.zeros(count, 1, k, 2),
        labelled=torch.zeros(count, 1, k, dtype=torch.bool),
        presence=torch.zeros(count, 1, k),
        boxes=torch.zeros(count, 1, 4),
        areas=torch.zeros(count, 1),
        ignored=torch.zeros(count, *mask_shape((size, size)), dtype=torch.bool),
        to_original=torch.cat([torch.diag_embed(originals / extents), torch.zeros(count, 2, 1)], dim=2),
        sample=torch.arange(count),
        image_ids=torch.tensor(image_ids, dtype=torch.int64),
        image_sizes=originals,
    )
