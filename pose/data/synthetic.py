"""Synthetic people: articulated, clothed figures that hide parts of themselves and of each other, exactly labelled.

A joint is visible (v = 2) if the pixel it falls on belongs to the body parts that meet in it, hidden (v = 1) if
something else covers it, unlabelled (v = 0) outside the image.
"""

from __future__ import annotations

import io
import json
import math
import os
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from pose.config import SyntheticParams
from pose.data.coco import category
from pose.data.figures import Person, random_figure
from pose.data.painting import PARTS, PARTS_PER_PERSON, Canvas, paint_person, random_cloth
from pose.data.scenery import background, expose, lamp
from pose.progress import track
from pose.skeleton import Skeleton, skeleton_named

ANNOTATIONS = "annotations.json"
EDITION = 1
"""Raised whenever the same parameters draw other pictures, so that older archives are drawn again."""
QUALITY = 92
PER_PROCESS = 64
"""Fewer images than this are not worth another process."""
FRAMING = 2.0
"""Photographers aim: 1 puts people anywhere, more puts them nearer to the middle."""
BEYOND = 0.1
"""Share of a person's extent that may stick out of the image."""
OBSTRUCTED = 0.4
"""Share of the images in which something stands before a person."""
OBSTACLE = 30_000
"""Owner number of what stands before people; people's parts count from 1."""

MEETING = {
    "shoulder": ("upper_arm", "torso"),
    "elbow": ("upper_arm", "forearm"),
    "wrist": ("forearm", "hand"),
    "hip": ("thigh", "torso"),
    "knee": ("thigh", "shin"),
    "ankle": ("shin", "foot"),
    "neck": ("neck", "torso", "head"),
    "head_top": ("head",),
    **dict.fromkeys(("nose", "eye", "ear"), ("head",)),
}
"""The parts of which one must be seen where a joint is, for the joint to count as visible."""
BURIED = 0.09
"""Statures that a shoulder or hip may lie behind the middle of the trunk and still count as visible through it."""


# ---------------------------------------------------------------- one image


def draw(params: SyntheticParams, index: int) -> tuple[Image.Image, list[dict]]:
    """Image number `index` (from 0) and its COCO annotations; the same for the same (seed, index) always.

    image_id is index + 1, annotation ids are unique over the dataset.
    """
    skeleton = skeleton_named(params.skeleton)
    rng = np.random.Generator(np.random.Philox(key=[params.seed, index]))
    grain = rng.standard_normal((params.height, params.width), dtype=np.float32)
    canvas = Canvas(background(rng, params.width, params.height), lamp(rng), grain)
    for _ in range(rng.integers(0, 3)):
        _stray_bar(rng, canvas, 0, rng.uniform(0.1, 0.9, 2) * (params.width, params.height))
    people = _place(rng, params)
    for number, person in enumerate(people):
        paint_person(rng, canvas, person, number * PARTS_PER_PERSON + 1)
    if rng.random() < OBSTRUCTED:
        behind = people[rng.integers(len(people))]
        _stray_bar(rng, canvas, OBSTACLE, behind.pixel(skeleton.joints[rng.integers(skeleton.size)]))
    annotations = []
    for number, person in enumerate(people):
        found = _annotate(canvas.owner, person, number * PARTS_PER_PERSON + 1, skeleton)
        if found["num_keypoints"]:
            identity = index * params.people[1] + number + 1
            annotations.append({"id": identity, "image_id": index + 1, "category_id": 1, **found, "iscrowd": 0})
    return expose(rng, canvas.image, grain), annotations


def _place(rng: np.random.Generator, params: SyntheticParams) -> list[Person]:
    """People of random size at random places, mostly inside the image and not all in one spot; nearest last."""
    count = int(rng.integers(params.people[0], params.people[1] + 1))
    side = min(params.width, params.height)
    placed: list[Person] = []
    boxes: list[np.ndarray] = []
    for _ in range(count):
        figure = random_figure(rng)
        flat = np.stack(list(figure.points.values()))[:, :2]
        low, high = flat.min(axis=0) - 0.04, flat.max(axis=0) + 0.04
        extent = high - low
        unit = side * rng.uniform(0.6, 1.0) / count**0.35 / max(float(extent.max()), 0.75)
        for _ in range(12):
            room = np.array([params.width, params.height]) - extent * unit
            beyond = BEYOND * extent * unit
            corner = rng.beta(FRAMING, FRAMING, 2) * (room + 2 * beyond) - beyond
            box = np.concatenate([corner, corner + extent * unit])
            if all(_overlap(box, other) < 0.4 for other in boxes):
                break
        boxes.append(box)
        placed.append(Person(figure, unit, corner - low * unit))
    return sorted(placed, key=lambda person: person.unit)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over the smaller of two xyxy boxes."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    if (size <= 0).any():
        return 0.0
    return float(size.prod() / min((a[2:] - a[:2]).prod(), (b[2:] - b[:2]).prod()))


def _stray_bar(rng: np.random.Generator, canvas: Canvas, owner: int, middle: np.ndarray) -> None:
    """Something long and textured like a limb around `middle` [2] px, that belongs to nobody."""
    side = min(canvas.owner.shape)
    angle, length = rng.uniform(0, np.pi), side * rng.uniform(0.06, 0.2)
    reach = length * np.array([np.cos(angle), np.sin(angle)])
    widths = (side * rng.uniform(0.015, 0.06), side * rng.uniform(0.015, 0.06))
    canvas.slab(owner, (middle - reach, middle + reach), widths, random_cloth(rng), side, corner=rng.uniform(0.2, 1))


# ---------------------------------------------------------------- labels


def _annotate(owner: np.ndarray, person: Person, first_owner: int, skeleton: Skeleton) -> dict:
    """Keypoints, visible silhouette's box and area."""
    keypoints: list[float] = []
    labelled = 0
    for joint in skeleton.joints:
        x, y = person.pixel(joint).round(2).tolist()
        v = _visibility(owner, person, first_owner, joint, x, y)
        keypoints += [x, y, v] if v else [0.0, 0.0, 0]
        labelled += v > 0
    mine = (owner >= first_owner) & (owner < first_owner + PARTS_PER_PERSON)
    rows, columns = np.flatnonzero(mine.any(axis=1)), np.flatnonzero(mine.any(axis=0))
    if not len(rows):
        return {"keypoints": keypoints, "num_keypoints": 0, "bbox": [0, 0, 0, 0], "area": 0}
    x0, y0, x1, y1 = int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1
    return {
        "keypoints": keypoints,
        "num_keypoints": labelled,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(mine.sum()),
    }


def _visibility(owner: np.ndarray, person: Person, first_owner: int, joint: str, x: float, y: float) -> int:
    height, width = owner.shape
    if not (0 <= x < width and 0 <= y < height):
        return 0
    seen = int(owner[int(y), int(x)]) - first_owner
    kind = joint.removeprefix("left_").removeprefix("right_")
    side = joint.removesuffix(kind)
    own = [PARTS.index(part if part in PARTS else side + part) for part in MEETING[kind]]
    if seen not in own:
        return 1
    depth = person.figure.points[joint][2]
    if kind in ("shoulder", "hip") and seen == PARTS.index("torso"):
        return 1 if depth > person.trunk_depth + BURIED else 2
    if kind in ("nose", "eye", "ear"):
        return 2 if depth <= person.figure.points["head_centre"][2] else 1
    return 2


# ---------------------------------------------------------------- the archive


def is_drawn(params: SyntheticParams, path: Path) -> bool:
    """Whether the archive at `path` is what `write_archive` writes for these parameters."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        if ANNOTATIONS not in archive.namelist():
            return False
        return json.loads(archive.read(ANNOTATIONS))["info"] == _info(params)


def write_archive(params: SyntheticParams, path: Path) -> None:
    """A zip of images/ and annotations.json (COCO keypoints), the same bytes whenever and wherever it is drawn.

    Takes its name only when it is whole.
    """
    images: list[dict] = []
    annotations: list[dict] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for index, (jpeg, people) in enumerate(track(_drawn(params), f"draw {path.name}", params.images)):
                name = f"images/{index + 1:06d}.jpg"
                archive.writestr(entry(name), jpeg)
                size = {"width": params.width, "height": params.height}
                images.append({"id": index + 1, "file_name": name, **size})
                annotations += people
            coco = {
                "info": _info(params),
                "categories": [category(skeleton_named(params.skeleton))],
                "images": images,
                "annotations": annotations,
            }
            archive.writestr(entry(ANNOTATIONS), json.dumps(coco, separators=(",", ":")))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _drawn(params: SyntheticParams) -> Iterator[tuple[bytes, list[dict]]]:
    """All images as JPEG bytes with their annotations, in order, by as many processes as there are cores."""
    processes = min(len(os.sched_getaffinity(0)), math.ceil(params.images / PER_PROCESS))
    if processes == 1:
        yield from map(_encoded, repeat(params), range(params.images))
        return
    # spawn: the caller may have threads (torch, a server), which a fork would copy in whatever state they are
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_encoded, repeat(params), range(params.images), chunksize=16)


def _encoded(params: SyntheticParams, index: int) -> tuple[bytes, list[dict]]:
    image, annotations = draw(params, index)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=QUALITY)
    return file.getvalue(), annotations


def entry(name: str) -> zipfile.ZipInfo:
    """A zip member of that name without a date."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.external_attr = 0o644 << 16
    return entry


def _info(params: SyntheticParams) -> dict:
    return {"description": "synthetic people", "edition": EDITION, "params": params.model_dump(mode="json")}
