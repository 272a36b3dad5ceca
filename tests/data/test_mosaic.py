"""Mosaics: where pixels and people of four scenes land in one picture."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pose.config import AugmentParams
from pose.data import augment as augmentation
from pose.data import scene_views
from pose.data.augment import COLUMNS
from pose.data.batch import IGNORE_STRIDE, SceneBatch
from pose.data.mosaic import FINE, TILES, compose_mosaics
from pose.skeleton import LSP14

STORED, SIZE = 96, (128, 64)


def scenes(count=4, seed=0, augment=None):
    """Stored scenes of one colour each, with two people and joints anywhere in them."""
    g = torch.Generator().manual_seed(seed)
    extents = torch.tensor([[96.0, 72], [60, 96], [96, 96], [48, 96], [96, 40]])[:count]
    low = torch.rand(count, 2, 2, generator=g) * 0.5 * extents[:, None]
    high = low + (0.2 + 0.3 * torch.rand(count, 2, 2, generator=g)) * extents[:, None]
    keypoints = low[:, :, None] + torch.rand(count, 2, 14, 2, generator=g) * (high - low)[:, :, None]
    images = torch.full((count, 3, STORED, STORED), 116, dtype=torch.uint8)
    ignored = torch.zeros(count, STORED // IGNORE_STRIDE, STORED // IGNORE_STRIDE, dtype=torch.bool)
    for n, (width, height) in enumerate(extents.int().tolist()):
        images[n, :, :height, :width] = torch.randint(256, (3, 1, 1), generator=g, dtype=torch.uint8)
        ignored[n, : height // 8, : width // 8] = True
    labelled = torch.rand(count, 2, 14, generator=g) > 0.3
    return SceneBatch(
        images=images, extents=extents, people=torch.ones(count, 2, dtype=torch.bool),
        keypoints=torch.where(labelled[..., None], keypoints, torch.nan), labelled=labelled,
        presence=labelled.float(), boxes=torch.cat([low, high], dim=2), areas=(high - low).prod(dim=2) * 0.5,
        ignored=ignored, to_original=torch.eye(2, 3).repeat(count, 1, 1), sample=torch.arange(count),
        image_ids=torch.arange(count), image_sizes=extents.clone(), augment=augment,
    )  # fmt: skip


def drawn(count=4, **ranges):
    return torch.from_numpy(augmentation.draw(AugmentParams(**ranges), 3, 1, np.arange(count)))


def point_of(row):
    """Where a sample's tiles meet, px of the canvas, from its numbers."""
    x, y = (float(row[COLUMNS.index(name)]) for name in ("erase_x", "erase_y"))
    return np.array([(y * FINE) % 1 * SIZE[0], int(x * FINE) / FINE * SIZE[1]])


def placed(batch, row, tile):
    """(factor, shift) of a tile, stored px to the canvas, where nothing is moved afterwards."""
    extent = batch.extents[(row + tile) % len(batch)].numpy()
    factor = min(SIZE / extent)
    return factor, point_of(batch.augment[row]) - factor * extent * (1 - np.array(TILES[tile]))


def test_tiles_meet_at_the_point_and_show_their_scenes():
    batch = scenes(augment=drawn())
    mosaic = compose_mosaics(batch, SIZE, LSP14, 1.0)
    assert mosaic.images.shape == (4, 3, SIZE[1], SIZE[0])
    normalise = augmentation.normaliser(torch.device("cpu"))
    colours = normalise(batch.images)[:, :, 0, 0]
    shown = torch.zeros(4, dtype=torch.int64)
    for row in range(4):
        for y in range(1, SIZE[1], 9):
            for x in range(1, SIZE[0], 9):
                inside = []
                for tile in range(4):
                    factor, shift = placed(batch, row, tile)
                    source = (np.array([x + 0.5, y + 0.5]) - shift) / factor
                    edge = np.minimum(source, batch.extents[(row + tile) % 4].numpy() - source).min()
                    if abs(edge) < 1.5:
                        break  # between two colours
                    if edge > 0:
                        inside.append((row + tile) % 4)
                else:
                    wanted = colours[inside[0]] if inside else torch.zeros(3)
                    assert len(inside) <= 1
                    shown[inside] += 1
                    torch.testing.assert_close(mosaic.images[row, :, y, x], wanted, atol=2e-2, rtol=0)
    assert (shown > 5).all()


@pytest.mark.parametrize("moved", [False, True])
def test_people_are_where_their_pixels_are(moved):
    """Joints by hand for unmoved mosaics; moved ones are the unmoved ones under the sample's movement."""
    ranges = {"scale": 0.5, "rotate": 20, "translate": 0.2, "flip": 0.5} if moved else {}
    batch = scenes(augment=drawn(**ranges))
    mosaic = compose_mosaics(batch, SIZE, LSP14, 1.0)
    assert mosaic.people.shape == (4, 8)
    change = augmentation.named(batch.augment)
    move = augmentation.movement(change, torch.tensor(SIZE).float().expand(4, 2)).numpy()
    seen = lost = 0
    for row in range(4):
        flipped = moved and change["flip"][row] > 0
        for tile in range(4):
            factor, shift = placed(batch, row, tile)
            other = (row + tile) % 4
            for person in range(2):
                slot = 2 * tile + person
                for joint in range(14):
                    source = LSP14.mirror[joint] if flipped else joint
                    if not batch.labelled[other, person, source]:
                        assert not mosaic.labelled[row, slot, joint]
                        continue
                    point = factor * batch.keypoints[other, person, source].numpy() + shift
                    point = move[row, :, :2] @ point + move[row, :, 2]
                    within = (point >= 0).all() and (point <= SIZE).all()
                    if mosaic.people[row, slot]:
                        assert bool(mosaic.labelled[row, slot, joint]) == within
                    if within and mosaic.people[row, slot]:
                        np.testing.assert_allclose(mosaic.keypoints[row, slot, joint], point, atol=1e-3)
                        assert mosaic.presence[row, slot, joint] == 1
                        seen += 1
                corners = batch.boxes[other, person].numpy()[[0, 1, 2, 1, 2, 3, 0, 3]].reshape(4, 2) * factor + shift
                corners = corners @ move[row, :, :2].T + move[row, :, 2]
                low, high = corners.min(axis=0).clip(0, SIZE), corners.max(axis=0).clip(0, SIZE)
                share = (high - low).prod() / (corners.max(axis=0) - corners.min(axis=0)).prod()
                if mosaic.people[row, slot]:
                    np.testing.assert_allclose(mosaic.boxes[row, slot], [*low, *high], atol=1e-3)
                    assert share > 0.099
                else:
                    assert share < 0.101 or (high - low).min() < 1.001
                    assert not mosaic.labelled[row, slot].any()
                    assert not mosaic.boxes[row, slot].any()
                    lost += 1
    assert seen > 50
    assert lost > 0


def test_ignored_regions_come_along():
    batch = scenes(augment=drawn())
    mosaic = compose_mosaics(batch, SIZE, LSP14, 1.0)
    assert mosaic.ignored.shape == (4, SIZE[1] // IGNORE_STRIDE, SIZE[0] // IGNORE_STRIDE)
    for row in range(4):
        wanted = np.zeros(mosaic.ignored.shape[1:])
        for tile in range(4):
            factor, shift = placed(batch, row, tile)
            extent = batch.extents[(row + tile) % 4].numpy()
            size = (extent // 8) * IGNORE_STRIDE * factor
            for i in range(wanted.shape[0]):
                for j in range(wanted.shape[1]):
                    place = (np.array([j, i]) + 0.5) * IGNORE_STRIDE
                    wanted[i, j] += (place >= shift).all() and (place <= shift + size).all()
        assert (mosaic.ignored[row].numpy() != (wanted > 0)).mean() < 0.08
        assert wanted.any()


def test_rows_without_a_mosaic_are_as_ever():
    """A share of the rows, the same ones in any batch; the others are what scenes.finish makes of them."""
    batch = scenes(5, augment=drawn(5, scale=0.3, flip=0.5, colour=0.2))
    numbers = (batch.augment[:, COLUMNS.index("erase_x")] * FINE) % 1
    share = float(numbers.sort().values[1:3].mean())
    mixed = compose_mosaics(batch, SIZE, LSP14, share)
    plain = scene_views.finish(batch, SIZE, LSP14)
    single = numbers >= share
    assert single.sum() == 3
    assert torch.equal(mixed.sample, batch.sample)
    assert torch.equal(mixed.image_ids, batch.image_ids)
    torch.testing.assert_close(mixed.images[single], plain.images[single], rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed.boxes[single, :2], plain.boxes[single])
    assert not mixed.people[single, 2:].any()
    assert mixed.people[~single, 2:].any()
    none = compose_mosaics(batch, SIZE, LSP14, 0.0)
    assert torch.equal(none.images, plain.images)


def test_a_single_row_is_its_own_company():
    batch = scenes(1, augment=drawn(1))
    mosaic = compose_mosaics(batch, SIZE, LSP14, 1.0)
    assert mosaic.people.shape == (1, 8)
    assert mosaic.images.isfinite().all()


def test_about_the_share_asked_for_is_put_together_and_the_point_is_anywhere():
    numbers = torch.from_numpy(augmentation.draw(AugmentParams(), 1, 2, np.arange(2000)))
    chosen = (numbers[:, COLUMNS.index("erase_x")] * FINE) % 1 < 0.3
    assert chosen.float().mean() == pytest.approx(0.3, abs=0.04)
    points = np.stack([point_of(row) / SIZE for row in numbers])
    assert points.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.03)
    assert abs(np.corrcoef(np.column_stack([points, chosen.numpy()]).T) - np.eye(3)).max() < 0.08


def test_it_takes_no_batch_without_numbers():
    with pytest.raises(AssertionError):
        compose_mosaics(replace(scenes(), augment=None), SIZE, LSP14, 1.0)
