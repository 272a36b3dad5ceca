import io
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pose.config import AugmentParams, CropParams
from pose.data import augment, shards
from pose.data.batch import Batch
from pose.data.loader import Loader, decode
from pose.errors import DataError
from pose.skeleton import LSP14

SIZE = 48
FULL = AugmentParams(scale=0.25, rotate=30, translate=0.1, flip=0.5, colour=0.3, erase=0.5)


def encoded(number: int, size: int = SIZE, mode: str = "RGB") -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).resize((size, size), Image.BILINEAR).convert(mode).save(file, "JPEG", quality=92)
    return file.getvalue()


def row(number: int, jpeg: bytes | None = None) -> shards.Row:
    """A crop of a 96 x 192 image squashed to 48 x 48; every third joint has no position, the next is hidden."""
    visibility = np.resize([0, 1, 2], 14)
    keypoints = np.random.default_rng(100 + number).uniform(0, 96, (14, 2)) * [1, 2]
    keypoints[visibility == 0] = 0
    return shards.Row(
        jpeg=encoded(number) if jpeg is None else jpeg,
        file_name=f"images/im{number:04d}.jpg",
        image_id=1000 + number,
        annotation_id=number,
        image_size=(96, 192),
        box=np.array([1.0, 2.0, 90.0, 180.0]),
        keypoints=keypoints,
        visibility=visibility,
        to_crop=np.array([[0.5, 0, 0], [0, 0.25, 0]]),
    )


def split_of(rows: list[shards.Row], folder: Path, rows_per_shard: int = 10) -> shards.Split:
    shards.write_shards(rows, folder, "train", rows_per_shard, LSP14, CropParams(view="image", size=SIZE))
    return shards.Split.open(folder, "train")


@pytest.fixture(scope="module")
def split(tmp_path_factory) -> shards.Split:
    return split_of([row(number) for number in range(25)], tmp_path_factory.mktemp("shards"))


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second) > 0
    for a, b in zip(first, second, strict=True):
        assert (a.view, a.margin, a.tensors().keys()) == (b.view, b.margin, b.tensors().keys())
        for name, tensor in a.tensors().items():
            assert torch.equal(tensor, b.tensors()[name]), name


def test_batches_hold_the_rows_asked_for(split):
    order = np.array([24, 3, 11, 0, 19])
    batches = list(Loader(split, threads=2).batches(order, 2, None, seed=0, epoch=0))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert np.concatenate([batch.sample for batch in batches]).tolist() == order.tolist()
    for batch in batches:
        for place, number in enumerate(batch.sample.tolist()):
            expected = np.asarray(Image.open(io.BytesIO(encoded(number))))
            assert np.array_equal(batch.images[place].permute(1, 2, 0).numpy(), expected)
            truth = row(number)
            labelled = truth.visibility > 0
            assert np.array_equal(batch.labelled[place].numpy(), labelled)
            assert np.array_equal(batch.presence[place].numpy(), truth.visibility == 2)
            points = batch.keypoints[place].numpy()
            assert np.abs(points - truth.keypoints * [0.5, 0.25])[labelled].max() < 1e-4
            assert not points[~labelled].any()
            assert batch.image_ids[place] == 1000 + number
            assert batch.image_sizes[place].tolist() == [96, 192]
            assert batch.boxes[place].tolist() == [1, 2, 90, 180]
            assert batch.to_original[place].tolist() == [[2, 0, 0], [0, 4, 0]]


def test_images_are_bytes_on_their_way_to_the_device(split):
    batch = next(Loader(split, threads=1).batches(np.arange(4), 4, None, 0, 0))
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (4, 3, SIZE, SIZE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.augment is None


def test_augmentation_is_only_drawn(split):
    order = np.random.default_rng(0).permutation(len(split))
    plain = list(Loader(split, threads=1).batches(order, 8, None, 5, 6))
    drawn = list(Loader(split, threads=1).batches(order, 8, FULL, 5, 6))
    for a, b in zip(plain, drawn, strict=True):
        assert torch.equal(a.images, b.images)
        assert np.array_equal(b.augment.numpy(), augment.draw(FULL, 5, 6, b.sample.numpy()))


@pytest.mark.parametrize("start", [1, 3, 4])
def test_resumes_inside_an_epoch(split, start):
    order = np.random.default_rng(1).permutation(len(split))
    loader = Loader(split, threads=2)
    whole = list(loader.batches(order, 7, FULL, 0, 3))
    resumed = list(loader.batches(order, 7, FULL, 0, 3, start=start))
    assert len(whole) == 4
    if start == 4:
        assert resumed == []
    else:
        assert_same(resumed, whole[start:])


def test_threads_change_nothing(split):
    order = np.random.default_rng(2).permutation(len(split))
    one = list(Loader(split, threads=1).batches(order, 3, FULL, 0, 0))
    many = list(Loader(split, threads=5).batches(order, 3, FULL, 0, 0))
    assert_same(one, many)


def test_the_same_bits_twice_down_to_the_network(split):
    def seen() -> list[Batch]:
        batches = Loader(split, threads=2).batches(np.arange(25), 8, FULL, 0, 0)
        return [augment.finish(batch, (32, 32), LSP14) for batch in batches]

    assert_same(seen(), seen())


def test_a_rank_s_share_meets_the_same_changes(split):
    """Cut differently over batches, every sample still reaches the network with the same bits."""
    order = np.random.default_rng(3).permutation(len(split))

    def by_row(batch_size: int) -> dict[int, torch.Tensor]:
        batches = Loader(split, threads=1).batches(order, batch_size, FULL, 0, 0)
        finished = [augment.finish(batch, (32, 32), LSP14) for batch in batches]
        return {int(r): image for batch in finished for r, image in zip(batch.sample, batch.images, strict=True)}

    whole, parts = by_row(25), by_row(4)
    assert all(torch.equal(whole[number], parts[number]) for number in range(25))


def test_no_rows_are_no_batches(split):
    assert list(Loader(split, threads=1).batches(np.zeros(0, np.int64), 4, None, 0, 0)) == []


def test_stopping_early_leaves_no_thread(split):
    batches = Loader(split, threads=3).batches(np.arange(25), 2, None, 0, 0)
    next(batches)
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    batches.close()
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


class TestDamage:
    def damaged(self, folder: Path, jpeg: bytes) -> shards.Split:
        return split_of([row(0), row(1), row(2, jpeg), row(3)], folder, rows_per_shard=2)

    @pytest.mark.parametrize("cut", [0, 1, 30, 0.5, -25])
    def test_a_truncated_jpeg_is_named(self, tmp_path, cut):
        whole = encoded(2)
        jpeg = whole[: int(len(whole) * cut)] if cut == 0.5 else whole[: int(cut)]
        split = self.damaged(tmp_path, jpeg)
        with pytest.raises(DataError) as caught:
            list(Loader(split, threads=2).batches(np.arange(4), 2, None, 0, 0))
        message = str(caught.value)
        for part in (str(tmp_path / "train-00001.arrow"), "row 0", "image id 1002", "images/im0002.jpg", "prepare"):
            assert part in message
        assert "\n" not in message

    def test_what_is_no_jpeg_is_named(self, tmp_path):
        file = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE)).save(file, "PNG")
        for jpeg in (b"<html>not found</html>", file.getvalue()):
            with pytest.raises(DataError, match=r"train-00001\.arrow, row 0, image id 1002"):
                decode(self.damaged(tmp_path, jpeg), 2)

    @pytest.mark.parametrize(("size", "mode"), [(SIZE // 2, "RGB"), (SIZE, "L"), (SIZE, "CMYK")])
    def test_another_shape_is_named(self, tmp_path, size, mode):
        split = self.damaged(tmp_path, encoded(2, size, mode))
        with pytest.raises(DataError, match=r"image id 1002 .* expected \(48, 48, 3\)"):
            decode(split, 2)

    def test_the_batches_before_it_arrive(self, tmp_path):
        split = self.damaged(tmp_path, encoded(2)[:100])
        batches = Loader(split, threads=1).batches(np.arange(4), 2, None, 0, 0)
        assert next(batches).sample.tolist() == [0, 1]
        with pytest.raises(DataError):
            next(batches)
