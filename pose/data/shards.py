"""Shards: a split's crops and their truth in a few Arrow IPC files, memory-mapped.

Random access costs about two microseconds a row and no copy; read as a stream, each file is one record batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pose.config import CropParams
from pose.data.crops import transform
from pose.digests import file_sha256
from pose.errors import DataError
from pose.people import People
from pose.skeleton import Skeleton, skeleton_named

SPLITS = ("train", "val", "test")
FORMAT = "2"
DIGESTS = "SHA256SUMS"
"""Lists the folder's other files as `sha256sum --check` reads them."""


@dataclass(frozen=True)
class Row:
    """One person's crop and truth."""

    jpeg: bytes
    """The crop of [size, size] px, encoded."""
    file_name: str
    """The image it is cut from, relative to the dataset's archive."""
    image_id: int
    annotation_id: int
    image_size: tuple[int, int]
    """Width and height of the original image."""
    box: np.ndarray
    """[4] xyxy, original px."""
    keypoints: np.ndarray
    """[K, 2] original px; zeros where not labelled."""
    visibility: np.ndarray
    """[K] COCO: 0 not labelled, 1 labelled but hidden, 2 visible."""
    to_crop: np.ndarray
    """[2, 3] original px to crop px."""


def write_shards(
    rows: Iterable[Row], directory: Path, split: str, rows_per_shard: int, skeleton: Skeleton, crop: CropParams
) -> int:
    """Writes `<split>-00000.arrow`, ... in the rows' order and returns how many rows that were."""
    schema = _schema(skeleton, crop)
    remaining, written, number = iter(rows), 0, 0
    while shard := list(islice(remaining, rows_per_shard)):
        path = directory / f"{split}-{number:05d}.arrow"
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(_record_batch(shard, schema))
        written, number = written + len(shard), number + 1
    return written


class Split:
    """All rows of one split. Small columns are arrays in memory, JPEGs stay in the mapped files."""

    def __init__(self, batches: list[pa.RecordBatch], files: list[Path], skeleton: Skeleton, crop: CropParams) -> None:
        self.skeleton = skeleton
        self.crop = crop
        """What of each image is stored."""
        self._files = files
        self._jpegs = [binary_buffers(batch.column("jpeg")) for batch in batches]
        self._starts = np.cumsum([0, *(len(batch) for batch in batches)])
        k = skeleton.size
        self.keypoints = stack(batches, "keypoints", np.float32).reshape(-1, k, 2)
        """[N, K, 2] float32, original px; zeros where not labelled."""
        visibility = stack(batches, "visibility", np.uint8).reshape(-1, k)
        self.labelled = visibility > 0
        """[N, K] bool: the joint has a position."""
        self.presence = (visibility == 2).astype(np.float32)
        """[N, K] float32: 1 visible, 0 not."""
        self.to_crop = stack(batches, "to_crop", np.float32).reshape(-1, 2, 3)
        """[N, 2, 3] float32, original px to crop px."""
        self.image_ids = stack(batches, "image_id", np.int64)
        """[N] int64."""
        self.annotation_ids = stack(batches, "annotation_id", np.int64)
        """[N] int64."""
        self.image_sizes = stack(batches, "image_size", np.float32).reshape(-1, 2)
        """[N, 2] float32, width and height of the original images."""
        self.boxes = stack(batches, "box", np.float32).reshape(-1, 4)
        """[N, 4] float32 xyxy, original px."""
        self.file_names: list[str] = [name for batch in batches for name in batch.column("file_name").to_pylist()]

    @staticmethod
    def open(directory: Path, split: str) -> Split:
        """Maps a prepared split. Raises DataError where it is missing, damaged or of another format."""
        paths = sorted(directory.glob(f"{split}-*.arrow"))
        if not paths:
            raise DataError(f"{directory} holds no {split}-*.arrow; prepare the dataset first (`pose data prepare`).")
        read = [(batch, path) for path in paths for batch in read_batches(path)]
        batches, files = [batch for batch, _ in read], [path for _, path in read]
        metadata = batches[0].schema.metadata or {}
        if metadata.get(b"format") != FORMAT.encode():
            raise DataError(
                f"{paths[0]} has shard format {metadata.get(b'format', b'none').decode()}, expected {FORMAT}; "
                f"prepare the dataset again."
            )
        return Split(
            batches,
            files,
            skeleton_named(metadata[b"skeleton"].decode()),
            CropParams.model_validate_json(metadata[b"crop"]),
        )

    def __len__(self) -> int:
        return len(self.image_ids)

    def jpeg(self, row: int) -> np.ndarray:
        """[bytes] uint8, the encoded crop, a read-only view of the mapped file."""
        shard, local = self._place(row)
        offsets, data = self._jpegs[shard]
        return data[offsets[local] : offsets[local + 1]]

    def location(self, row: int) -> str:
        """Where a row is kept, for messages: the shard's file and the row within it."""
        shard, local = self._place(row)
        return f"{self._files[shard]}, row {local}"

    def _place(self, row: int) -> tuple[int, int]:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of a split with {len(self)} rows")
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return shard, row - int(self._starts[shard])

    def truth(self) -> People:
        """The ground truth: scores say which joints are labelled, presence which are visible."""
        return People(
            image_ids=self.image_ids,
            image_sizes=self.image_sizes,
            keypoints=self.keypoints,
            scores=self.labelled.astype(np.float32),
            presence=self.presence,
            boxes=self.boxes,
            person_scores=np.ones(len(self), np.float32),
        )

    @cached_property
    def crop_keypoints(self) -> np.ndarray:
        """[N, K, 2] float32, crop px; anything where not labelled."""
        return transform(self.to_crop, self.keypoints)


@dataclass(frozen=True)
class DatasetInfo:
    """What dataset.json says of a prepared dataset."""

    name: str
    skeleton: str
    crop: CropParams
    counts: dict[str, int]
    """People per split."""
    images: dict[str, int]
    """Images per split."""
    excluded: int
    """People left out as bad."""
    findings: dict[str, int]
    """What the audit found, counted by kind."""
    mean_pose: np.ndarray
    """[K, 2], mean of the train split's labelled joints as share of the image's width and height."""
    mean_pose_crop: np.ndarray
    """[K, 2], the same mean in crop px."""
    presence_rate: np.ndarray
    """[K], share of the train split's people in whom the joint is visible."""

    def save(self, directory: Path) -> None:
        """Writes dataset.json."""
        value: dict[str, Any] = vars(self) | {"crop": self.crop.model_dump(mode="json")}
        for key in ("mean_pose", "mean_pose_crop", "presence_rate"):
            value[key] = np.round(value[key], 6).tolist()
        (directory / "dataset.json").write_text(json.dumps(value, indent=2, allow_nan=False) + "\n")


def describe(directory: Path) -> DatasetInfo:
    """Reads dataset.json. Raises DataError where there is none."""
    path = directory / "dataset.json"
    if not path.exists():
        raise DataError(f"{path} does not exist; prepare the dataset first (`pose data prepare`).")
    value = json.loads(path.read_text())
    value["crop"] = CropParams(**value["crop"])
    for key in ("mean_pose", "mean_pose_crop", "presence_rate"):
        value[key] = np.array(value[key])
    return DatasetInfo(**value)


def seal(directory: Path) -> None:
    """Writes SHA256SUMS over all files of a prepared folder."""
    lines = [f"{file_sha256(path)}  {path.name}\n" for path in sorted(directory.iterdir()) if path.name != DIGESTS]
    (directory / DIGESTS).write_text("".join(lines))


def verify(directory: Path) -> None:
    """Compares a prepared folder with its SHA256SUMS, a second for 200 MB; DVC hands out a damaged cache unnoticed.

    Raises DataError naming the first file that is missing or differs.
    """
    if not (directory / DIGESTS).exists():
        raise DataError(f"{directory} has no {DIGESTS}; prepare the dataset first (`pose data prepare`).")
    for line in (directory / DIGESTS).read_text().splitlines():
        expected, name = line.split("  ", maxsplit=1)
        found = file_sha256(directory / name) if (directory / name).exists() else "nothing"
        if found != expected:
            raise DataError(
                f"{directory / name} is damaged: its sha256 is {found}, {DIGESTS} says {expected}. Prepare the "
                f"dataset again (`dvc repro --force prepare@{directory.name}`)."
            )


def _schema(skeleton: Skeleton, crop: CropParams) -> pa.Schema:
    def floats(length: int) -> pa.DataType:
        return pa.list_(pa.float32(), length)

    fields = {
        "jpeg": pa.large_binary(),
        "file_name": pa.string(),
        "image_id": pa.int64(),
        "annotation_id": pa.int64(),
        "image_size": floats(2),
        "box": floats(4),
        "keypoints": floats(2 * skeleton.size),
        "visibility": pa.list_(pa.uint8(), skeleton.size),
        "to_crop": floats(6),
    }
    metadata = {"format": FORMAT, "skeleton": skeleton.name, "crop": crop.model_dump_json()}
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields.items()], metadata=metadata)


def _record_batch(rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    def column(field: pa.Field) -> pa.Array:
        values = [getattr(row, field.name) for row in rows]
        if not pa.types.is_fixed_size_list(field.type):
            return pa.array(values, field.type)
        flat = np.stack([np.asarray(value).ravel() for value in values])
        if flat.shape[1] != field.type.list_size:
            raise ValueError(f"{field.name} has {flat.shape[1]} numbers a row, expected {field.type.list_size}")
        flat = flat.astype(field.type.value_type.to_pandas_dtype()).ravel()
        return pa.FixedSizeListArray.from_arrays(pa.array(flat), type=field.type)

    return pa.RecordBatch.from_arrays([column(field) for field in schema], schema=schema)


def read_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The record batches of one mapped Arrow file. Raises DataError where it is not whole."""
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a whole Arrow file ({error}); prepare the dataset again.") from error


def binary_buffers(array: pa.LargeBinaryArray) -> tuple[np.ndarray, np.ndarray]:
    """(offsets [N + 1], bytes) of a column of byte strings, without a copy."""
    _, offsets, data = array.buffers()
    positions = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return positions, np.frombuffer(data, np.uint8)


def stack(batches: list[pa.RecordBatch], name: str, dtype: type) -> np.ndarray:
    """A column of numbers, or the numbers in a column of lists, of all batches in one row."""
    columns = [batch.column(name) for batch in batches]
    parts = [c.flatten() if pa.types.is_nested(c.type) else c for c in columns]
    return np.concatenate([part.to_numpy(zero_copy_only=True) for part in parts]).astype(dtype)
