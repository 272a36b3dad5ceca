"""Shards give back, in any order, exactly what was written."""

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pose.config import CropParams
from pose.data.shards import Row, Split, describe, write_shards
from pose.errors import DataError
from pose.skeleton import COCO17, LSP14


def make_rows(count: int, joints: int) -> list[Row]:
    random = np.random.default_rng(3)
    return [
        Row(
            jpeg=random.bytes(int(random.integers(0, 300))),
            file_name=f"images/{n:03d} é.jpg",
            image_id=10 * n + 2**40,
            annotation_id=n + 7,
            image_size=(int(random.integers(50, 2000)), int(random.integers(50, 2000))),
            box=random.uniform(0, 900, 4).astype(np.float32),
            keypoints=random.uniform(-5, 900, (joints, 2)).astype(np.float32),
            visibility=random.integers(0, 3, joints),
            to_crop=random.normal(size=(2, 3)).astype(np.float32),
        )
        for n in range(count)
    ]


@pytest.mark.parametrize(("count", "per_shard", "files"), [(23, 5, 5), (10, 5, 2), (1, 1000, 1)])
def test_random_access_gives_back_what_was_written(tmp_path: Path, count: int, per_shard: int, files: int) -> None:
    rows = make_rows(count, COCO17.size)
    assert write_shards(iter(rows), tmp_path, "val", per_shard, COCO17, CropParams(view="image", size=96)) == count
    assert len(list(tmp_path.glob("val-*.arrow"))) == files

    split = Split.open(tmp_path, "val")

    assert (len(split), split.crop.size, split.skeleton) == (count, 96, COCO17)
    for n in np.random.default_rng(0).permutation(count).tolist():
        assert split.jpeg(n).tobytes() == rows[n].jpeg
        assert split.file_names[n] == rows[n].file_name
        assert split.image_ids[n] == rows[n].image_id
        assert split.annotation_ids[n] == rows[n].annotation_id
        np.testing.assert_array_equal(split.image_sizes[n], rows[n].image_size)
        np.testing.assert_array_equal(split.boxes[n], rows[n].box)
        np.testing.assert_array_equal(split.keypoints[n], rows[n].keypoints)
        np.testing.assert_array_equal(split.to_crop[n], rows[n].to_crop)
        np.testing.assert_array_equal(split.labelled[n], rows[n].visibility > 0)
        np.testing.assert_array_equal(split.presence[n], rows[n].visibility == 2)


def test_jpegs_are_views_of_the_mapped_file(tmp_path: Path) -> None:
    write_shards(make_rows(6, 14), tmp_path, "train", 4, LSP14, CropParams(view="image", size=64))
    split = Split.open(tmp_path, "train")
    before = pa.total_allocated_bytes()
    views = [split.jpeg(n) for n in range(6)]
    assert pa.total_allocated_bytes() == before
    assert all(not view.flags.owndata and not view.flags.writeable for view in views)


@pytest.mark.parametrize("row", [-1, 6])
def test_rows_outside_the_split_are_refused(tmp_path: Path, row: int) -> None:
    write_shards(make_rows(6, 14), tmp_path, "train", 4, LSP14, CropParams(view="image", size=64))
    with pytest.raises(IndexError, match="6 rows"):
        Split.open(tmp_path, "train").jpeg(row)


def test_a_shard_can_be_read_as_a_stream(tmp_path: Path) -> None:
    rows = make_rows(5, 14)
    write_shards(rows, tmp_path, "train", 5, LSP14, CropParams(view="image", size=64))
    content = (tmp_path / "train-00000.arrow").read_bytes()
    streamed = pa.ipc.open_stream(content[8:]).read_all()  # the file format is the stream after its 8-byte mark
    assert streamed["jpeg"].to_pylist() == [row.jpeg for row in rows]


def test_truth_keeps_labelled_and_visible_apart(tmp_path: Path) -> None:
    row = dataclasses.replace(make_rows(1, 14)[0], visibility=np.array([0, 1, 2] + [2] * 11))
    write_shards([row], tmp_path, "test", 5, LSP14, CropParams(view="image", size=64))
    truth = Split.open(tmp_path, "test").truth()
    assert truth.scores[0, :3].tolist() == [0, 1, 1]
    assert truth.presence[0, :3].tolist() == [0, 0, 1]


def test_wrong_number_of_joints_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keypoints has 34 numbers a row, expected 28"):
        write_shards(make_rows(2, 17), tmp_path, "train", 4, LSP14, CropParams(view="image", size=64))


def test_missing_torn_and_foreign_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no train"):
        Split.open(tmp_path, "train")
    with pytest.raises(DataError, match=r"dataset\.json does not exist"):
        describe(tmp_path)

    write_shards(make_rows(4, 14), tmp_path, "train", 4, LSP14, CropParams(view="image", size=64))
    path = tmp_path / "train-00000.arrow"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"train-00000\.arrow is not a whole Arrow file"):
        Split.open(tmp_path, "train")

    table = pa.record_batch({"jpeg": [b"x"]})
    with pa.OSFile(str(tmp_path / "val-00000.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_batch(table)
    with pytest.raises(DataError, match="shard format none, expected 2"):
        Split.open(tmp_path, "val")
