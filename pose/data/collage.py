"""Collages: real people of a prepared dataset tiled into one image, to detect and tell apart on real pixels.

An image is cut into as many cells as it has people, each cell filled with one photograph's part around its person,
scaled and perhaps mirrored. Tiles reach a little over their neighbours; joints under a later tile are hidden (v = 1).
All people of a collage are from one split of the other dataset, and it is in that split itself. Strangers in the
background of a photograph are not annotated there and so are not here.
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pose.config import CollageParams, SplitParams
from pose.data.check_images import cores
from pose.data.coco import category
from pose.data.crops import PADDING, transform
from pose.data.shards import SPLITS
from pose.data.synthetic import ANNOTATIONS, entry
from pose.digests import file_sha256
from pose.errors import DataError
from pose.progress import track
from pose.skeleton import Skeleton, skeleton_named

EDITION = 2
"""Raised whenever the same parameters tile other pictures, so that older archives are made again."""
QUALITY = 92
FILL = (0.6, 0.95)
"""Share of its cell that a person's box spans, along the side on which it is tightest."""
BEYOND = 0.08
"""Share of a person's longer side by which hands, feet and flesh stand out beyond the joints, whose box is all that
LSP has."""
SPLIT_AT = (0.38, 0.62)
"""Where a cell is cut in two, as share of its longer side."""
SEEN = 0.3
"""A person has to keep this share of the labelled joints in sight to stay annotated with keypoints."""


@dataclass(frozen=True)
class Portrait:
    """One person to tile with."""

    path: Path
    keypoints: np.ndarray
    """[K, 3] x, y in the photograph's px, COCO visibility."""
    box: np.ndarray
    """[4] xyxy around the body, px of the photograph."""
    area: float
    """Square px of the box around the joints, as the photograph's dataset counts it."""


@dataclass(frozen=True)
class Tile:
    """One person's place in a collage."""

    cell: tuple[int, int, int, int]
    """xyxy, px of the collage."""
    picture: Image.Image
    """Of the cell's size."""
    keypoints: np.ndarray
    """[K, 3] px of the collage."""
    box: np.ndarray
    """[4] xyxy, px of the collage, clipped to the cell."""
    area: float
    """Square px of the collage, were all of the person to be seen."""


# ---------------------------------------------------------------- one image


def compose(
    params: CollageParams, portraits: list[Portrait], skeleton: Skeleton, index: int
) -> tuple[Image.Image, list[dict]]:
    """Image number `index` (from 0) and its COCO annotations; the same for the same arguments always."""
    rng = np.random.Generator(np.random.Philox(key=[params.seed, index]))
    count = int(rng.integers(params.people[0], params.people[1] + 1))
    cells = [_grown(cell, params) for cell in _cells(rng, params.width, params.height, count)]
    chosen = rng.choice(len(portraits), size=count, replace=count > len(portraits))
    image = Image.new("RGB", (params.width, params.height), PADDING)
    owner = np.zeros((params.height, params.width), np.int16)
    tiles = []
    for number, place in enumerate(rng.permutation(count), start=1):
        tile = _tile(rng, portraits[chosen[place]], cells[place], skeleton)
        x0, y0, x1, y1 = tile.cell
        image.paste(tile.picture, (x0, y0))
        owner[y0:y1, x0:x1] = number
        tiles.append(tile)
    annotations = []
    for number, tile in enumerate(tiles, start=1):
        found = _annotate(tile, owner == number)
        if found is not None:
            identity = index * params.people[1] + number
            annotations.append({"id": identity, "image_id": index + 1, "category_id": 1, **found, "iscrowd": 0})
    return image, annotations


def _cells(rng: np.random.Generator, width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """`count` xyxy cells that fill the image: the largest is cut across its longer side until there are enough."""
    cells = [(0, 0, width, height)]
    while len(cells) < count:
        x0, y0, x1, y1 = cells.pop(int(np.argmax([(c[2] - c[0]) * (c[3] - c[1]) for c in cells])))
        share = rng.uniform(*SPLIT_AT)
        if x1 - x0 >= y1 - y0:
            middle = round(x0 + share * (x1 - x0))
            cells += [(x0, y0, middle, y1), (middle, y0, x1, y1)]
        else:
            middle = round(y0 + share * (y1 - y0))
            cells += [(x0, y0, x1, middle), (x0, middle, x1, y1)]
    return cells


def _grown(cell: tuple[int, int, int, int], params: CollageParams) -> tuple[int, int, int, int]:
    """The cell with half the overlap more on each of its sides, inside the image."""
    x0, y0, x1, y1 = cell
    dx, dy = round((x1 - x0) * params.overlap / 2), round((y1 - y0) * params.overlap / 2)
    return max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, params.width), min(y1 + dy, params.height)


def _tile(rng: np.random.Generator, portrait: Portrait, cell: tuple[int, int, int, int], skeleton: Skeleton) -> Tile:
    photograph = Image.open(portrait.path).convert("RGB")
    keypoints, box = portrait.keypoints.copy(), portrait.box.copy()
    if rng.random() < 0.5:
        photograph = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        keypoints = keypoints[skeleton.mirror]
        keypoints[:, 0] = np.where(keypoints[:, 2] > 0, photograph.width - keypoints[:, 0], 0)
        box[[0, 2]] = photograph.width - box[[2, 0]]
    size = np.array([cell[2] - cell[0], cell[3] - cell[1]])
    largest = float((size / np.maximum(box[2:] - box[:2], 1)).min())
    # Rather a larger person than one beyond whose photograph the tile has to be made up.
    filling = min(float((size / photograph.size).max()), FILL[1] * largest)
    scale = max(rng.uniform(*FILL) * largest, filling)
    window = _window(rng, box, size / scale, np.array(photograph.size, np.float64))
    picture = _cut(photograph, window, (int(size[0]), int(size[1])))
    scales = size / (window[2:] - window[:2])
    to_cell = np.column_stack([np.diag(scales), cell[:2] - scales * window[:2]])
    keypoints[:, :2] = np.where(keypoints[:, 2:] > 0, transform(to_cell, keypoints[:, :2]), 0)
    corners = transform(to_cell, box.reshape(2, 2))
    limits = np.array(cell, np.float64)
    box = np.clip(corners, limits[:2], limits[2:]).ravel()
    return Tile(cell, picture, keypoints, box, portrait.area * float(scales.prod()))


def _window(rng: np.random.Generator, box: np.ndarray, size: np.ndarray, photograph: np.ndarray) -> np.ndarray:
    """xyxy of that size around the box, at a random place but inside the photograph where that is possible."""
    low, high = box[2:] - size, box[:2]  # the window's corner lies between them, or the box would stick out
    inside_low, inside_high = np.maximum(low, 0), np.minimum(high, photograph - size)
    fits = inside_low <= inside_high
    low, high = np.where(fits, inside_low, low), np.where(fits, inside_high, high)
    # Where the photograph is too small for the window, as much of it as there is.
    centred = np.clip((photograph - size) / 2, low, high)
    corner = np.where(fits, low + rng.random(2) * (high - low), centred)
    return np.concatenate([corner, corner + size])


def _cut(photograph: Image.Image, window: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The window's pixels, antialiased; beyond the photograph its edge goes on."""
    low = np.minimum(np.floor(window[:2]), 0).astype(int)
    high = np.maximum(np.ceil(window[2:]), photograph.size).astype(int)
    if low.any() or (high > photograph.size).any():
        after = high - photograph.size
        margins = ((-low[1], after[1]), (-low[0], after[0]), (0, 0))
        photograph = Image.fromarray(np.pad(np.asarray(photograph), margins, mode="edge"))
    moved = window - np.tile(low, 2)
    return photograph.resize(size, Image.Resampling.BILINEAR, box=tuple(moved.tolist()))


def _annotate(tile: Tile, mine: np.ndarray) -> dict | None:
    """Keypoints, box and area of a tile of which the pixels `mine` [H, W] are on top; None where nothing is to see.

    The box is that of what can be seen, the area the seen share of the whole.
    """
    keypoints = tile.keypoints.copy()
    height, width = mine.shape
    columns = np.clip(np.floor(keypoints[:, 0]).astype(int), 0, width - 1)
    rows = np.clip(np.floor(keypoints[:, 1]).astype(int), 0, height - 1)
    labelled = keypoints[:, 2] > 0
    seen = labelled & mine[rows, columns]
    keypoints[labelled & ~seen, 2] = 1
    x0, y0, x1, y1 = (int(value) for value in (*np.floor(tile.box[:2]), *np.ceil(tile.box[2:])))
    part = mine[y0:y1, x0:x1]
    if not part.any():
        return None
    lines, across = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    low = np.maximum(tile.box[:2], (x0 + across[0], y0 + lines[0]))
    high = np.minimum(tile.box[2:], (x0 + across[-1] + 1, y0 + lines[-1] + 1))
    if seen.sum() < SEEN * labelled.sum():
        keypoints[:] = 0
    return {
        "keypoints": [value for x, y, v in keypoints.round(2).tolist() for value in (x, y, int(v))],
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        "bbox": [*low.round(2).tolist(), *(high - low).round(2).tolist()],
        "area": round(tile.area * float(part.mean()), 2),
    }


# ---------------------------------------------------------------- the archive


def write_archive(params: CollageParams, shares: SplitParams, prepared: Path, images: Path, path: Path) -> None:
    """A zip of images/ and annotations.json (COCO keypoints, each image with its `split`), unless it is there.

    prepared: the other dataset's folder; images: where its photographs lie. The bytes depend on the arguments and the
    prepared dataset alone. Raises DataError where that is not prepared.
    """
    portraits, skeleton, stamp = _portraits(prepared, images)
    info = {"description": f"collages of {params.of}", "edition": EDITION, "of": stamp}
    info["params"] = params.model_dump(mode="json") | {"split": shares.model_dump(mode="json")}
    if _is_made(info, path):
        return
    listed: list[dict] = []
    annotations: list[dict] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    sides = _sides(params.images, shares)
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            made = _composed(params, portraits, skeleton, sides)
            for index, (jpeg, people) in enumerate(track(made, f"tile {path.name}", params.images)):
                name = f"images/{index + 1:06d}.jpg"
                archive.writestr(entry(name), jpeg)
                size = {"width": params.width, "height": params.height}
                listed.append({"id": index + 1, "file_name": name, **size, "split": sides[index]})
                annotations += people
            coco = {"info": info, "categories": [category(skeleton)], "images": listed, "annotations": annotations}
            archive.writestr(entry(ANNOTATIONS), json.dumps(coco, separators=(",", ":")))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _bodily(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The box of the joints with what of the body stands out beyond them, inside the photograph."""
    around = BEYOND * (box[2:] - box[:2]).max()
    return np.clip(box + around * np.array([-1, -1, 1, 1]), 0, np.tile(size, 2))


def _portraits(prepared: Path, images: Path) -> tuple[dict[str, list[Portrait]], Skeleton, str]:
    """The people of each split, their skeleton, and a digest of what they were read from."""
    portraits: dict[str, list[Portrait]] = {}
    digests = []
    for split in SPLITS:
        path = prepared / f"{split}.json"
        if not path.is_file():
            raise DataError(f"{path} is not there. Prepare it first: pose data prepare {prepared.name}")
        coco = json.loads(path.read_text())
        files = {image["id"]: image for image in coco["images"]}
        portraits[split] = [
            Portrait(
                images / files[person["image_id"]]["file_name"],
                np.array(person["keypoints"], np.float64).reshape(-1, 3),
                _bodily(_xyxy(person["bbox"]), _size(files[person["image_id"]])),
                float(person["area"]),
            )
            for person in coco["annotations"]
            if person["num_keypoints"]
        ]
        digests.append(file_sha256(path))
    name = json.loads((prepared / "dataset.json").read_text())["skeleton"]
    return portraits, skeleton_named(name), " ".join(digests)


def _size(image: dict) -> np.ndarray:
    return np.array([image["width"], image["height"]], np.float64)


def _xyxy(bbox: list[float]) -> np.ndarray:
    x, y, width, height = bbox
    return np.array([x, y, x + width, y + height], np.float64)


def _sides(images: int, shares: SplitParams) -> list[str]:
    """The split of each image, in shares as exact as whole images allow."""
    train, val = round(images * shares.train), round(images * (shares.train + shares.val))
    return ["train" if n < train else "val" if n < val else "test" for n in range(images)]


def _composed(
    params: CollageParams, portraits: dict[str, list[Portrait]], skeleton: Skeleton, sides: list[str]
) -> Iterator[tuple[bytes, list[dict]]]:
    """All images as JPEG bytes with their annotations, in order, on all cores."""

    def make(index: int) -> tuple[bytes, list[dict]]:
        image, annotations = compose(params, portraits[sides[index]], skeleton, index)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=QUALITY)
        return file.getvalue(), annotations

    with ThreadPoolExecutor(cores()) as pool:
        yield from pool.map(make, range(len(sides)))


def _is_made(info: dict, path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return ANNOTATIONS in archive.namelist() and json.loads(archive.read(ANNOTATIONS))["info"] == info
