"""Whole images as the scene view stores them, each with everyone in it and a mask of where nothing is known."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from pose.config import SceneParams
from pose.data import masks
from pose.data.check import Audit, Person
from pose.data.check_images import cores
from pose.data.check_regions import Region
from pose.data.scenes import SceneRow, fit
from pose.progress import track
from pose.skeleton import Skeleton

CHUNK = 256
"""Images held in memory at a time."""


def scene_rows(
    root: Path, audited: Audit, images: list[dict], skeleton: Skeleton, params: SceneParams, what: str
) -> Iterator[SceneRow]:
    """The rows of the images in their order, drawn on all cores."""
    people: dict[int, list[Person]] = defaultdict(list)
    regions: dict[int, list[Region]] = defaultdict(list)
    for person in audited.people:
        people[person.image_id].append(person)
    for region in audited.regions:
        regions[region.image_id].append(region)

    def row(record: dict) -> SceneRow:
        number = record["id"]
        codes = [_code(region, record, audited.outlines) for region in regions[number]]
        return _row(root, record, people[number], regions[number], codes, skeleton, params)

    with ThreadPoolExecutor(cores()) as pool:
        starts = range(0, len(images), CHUNK)
        made = (done for start in starts for done in pool.map(row, images[start : start + CHUNK]))
        yield from track(made, what, total=len(images))


def _code(region: Region, record: dict, outlines: dict[int, dict]) -> dict:
    """The region's outline, or its box where it has none."""
    if region.annotation_id in outlines:
        return outlines[region.annotation_id]
    return masks.encode(masks.box_outline(region.box), record["width"], record["height"])


def _row(
    root: Path,
    record: dict,
    people: list[Person],
    regions: list[Region],
    codes: list[dict],
    skeleton: Skeleton,
    params: SceneParams,
) -> SceneRow:
    image = Image.open(root / record["file_name"]).convert("RGB")
    stored = fit(image.size, params.size)
    buffer = io.BytesIO()
    image.resize(stored, Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=params.quality)
    unlabelled = [region for region in regions if region.person]
    everybody: list[Person | Region] = [*people, *unlabelled]
    boxes = [entry.box for entry in everybody]
    areas = [person.area for person in people]
    areas += [float((region.box[2:] - region.box[:2]).prod()) for region in unlabelled]
    keypoints = np.zeros((len(boxes), skeleton.size, 3))
    for n, person in enumerate(people):
        keypoints[n] = person.keypoints
    return SceneRow(
        jpeg=buffer.getvalue(),
        file_name=record["file_name"],
        image_id=record["id"],
        image_size=image.size,
        annotation_ids=np.array([entry.annotation_id for entry in everybody], np.int64),
        boxes=np.array(boxes).reshape(-1, 4),
        keypoints=keypoints,
        areas=np.array(areas),
        ignored=masks.ignored_cells(codes, stored),
    )
