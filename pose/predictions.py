"""What a system says of a prepared split: of its crops, of its whole images, or of boxes that a detector found."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pose.config import CropParams
from pose.data import crops, scenes
from pose.data.detections import Detections, ordered
from pose.data.loader import Loader
from pose.data.scenes import SceneLoader, SceneSplit
from pose.data.shards import Row, Split, write_shards
from pose.errors import DataError
from pose.people import People
from pose.progress import track
from pose.systems.base import System

ROWS_PER_SHARD = 5000


def predict(system: System, split: Split | SceneSplit, batch_size: int = 64, threads: int = 2) -> People:
    """What the system says of every row of a split, in the split's order: one person per crop, any number per image.

    The network is left in evaluation mode.
    """
    device = next(system.network.parameters()).device
    system.network.eval()
    loader = SceneLoader(split, threads) if isinstance(split, SceneSplit) else Loader(split, threads)
    parts = []
    batches = loader.batches(np.arange(len(split)), batch_size, augment=None, seed=0, epoch=0)
    with torch.inference_mode():
        for batch in track(batches, "predicting", total=-(-len(split) // batch_size)):
            ready = system.prepare(batch.to(device))
            parts.append(system.decode(system.forward(system.network, ready), ready))
    return People.concatenate(parts) if parts else nobody(split.skeleton.size)


def detect(detector: System, images: SceneSplit, batch_size: int, threads: int = 2) -> Detections:
    """The boxes of everyone that a scene-view system finds, on a GPU where there is one, which is free again then."""
    detector.network.to("cuda" if torch.cuda.is_available() else "cpu")
    found = predict(detector, images, batch_size, threads)
    detector.network.to("cpu")
    torch.cuda.empty_cache()
    return ordered(found.image_ids, found.boxes, found.person_scores)


def predict_boxes(
    system: System, images: SceneSplit, detected: Detections, crop: CropParams, batch_size: int = 64
) -> People:
    """The person-view system's poses in detected boxes, one per box; person scores are the boxes'.

    Crops are cut from the stored scenes, so that they are no sharper than these. Raises DataError for a box of another
    image or without area.
    """
    place = {number: row for row, number in enumerate(images.image_ids.tolist())}
    stray = [number for number in detected.image_ids.tolist() if number not in place]
    if stray:
        raise DataError(
            f"{len(stray)} of {len(detected)} detections are of images that the split does not have, the first of "
            f"image {stray[0]}; give the detections of this split."
        )
    if not len(detected):
        return nobody(images.skeleton.size)
    # In the scenes' order each is decoded once.
    order = np.argsort([place[number] for number in detected.image_ids.tolist()], kind="stable")
    with tempfile.TemporaryDirectory(prefix="pose-boxes-") as folder:
        rows = _cut(images, detected, order, place, crop)
        write_shards(rows, Path(folder), "boxes", ROWS_PER_SHARD, images.skeleton, crop)
        people = predict(system, Split.open(Path(folder), "boxes"), batch_size)
    return replace(people, person_scores=detected.scores[order].astype(np.float32))


def nobody(joints: int) -> People:
    """No people with so many joints."""
    return People(
        image_ids=np.zeros(0, np.int64), image_sizes=np.zeros((0, 2), np.float32),
        keypoints=np.zeros((0, joints, 2), np.float32), scores=np.zeros((0, joints), np.float32),
        presence=np.zeros((0, joints), np.float32), boxes=np.zeros((0, 4), np.float32),
        person_scores=np.zeros(0, np.float32),
    )  # fmt: skip


def best_in_each(people: People, truth: People) -> People:
    """For truth with one person per image: the most confident person found there, in the truth's order.

    Where nobody was found every joint lies an image's size outside of it, which no threshold reaches.
    """
    best: dict[int, int] = {}
    for row in np.argsort(people.person_scores, kind="stable").tolist():
        best[int(people.image_ids[row])] = row
    rows = np.array([best.get(number, -1) for number in truth.image_ids.tolist()], np.int64)
    found = rows >= 0
    keypoints = np.broadcast_to(-truth.image_sizes[:, None], truth.keypoints.shape).astype(np.float32)
    scores, presence = np.zeros(truth.scores.shape, np.float32), np.zeros(truth.scores.shape, np.float32)
    person_scores = np.zeros(len(truth), np.float32)
    keypoints[found] = people.keypoints[rows[found]]
    scores[found], presence[found] = people.scores[rows[found]], people.presence[rows[found]]
    person_scores[found] = people.person_scores[rows[found]]
    gaps = np.full(len(truth), np.nan, np.float32)
    gaps[found] = people.optimality_gaps[rows[found]]
    return People(truth.image_ids, truth.image_sizes, keypoints, scores, presence, truth.boxes, person_scores, gaps)


def _cut(
    images: SceneSplit, detected: Detections, order: np.ndarray, place: dict[int, int], crop: CropParams
) -> Iterator[Row]:
    """One row per box, in `order`."""
    skeleton, current, picture = images.skeleton, -1, None
    for n in track(order.tolist(), "cutting boxes", total=len(order)):
        row = place[int(detected.image_ids[n])]
        if row != current:
            current, picture = row, Image.fromarray(scenes.decode(images, row))
        box = detected.boxes[n]
        if not (box[2:] > box[:2]).all():
            raise DataError(f"detection {n} of image {detected.image_ids[n]} has the box {box.tolist()} without area.")
        width, height = (int(side) for side in images.image_sizes[row])
        affine = crops.crop_affine(crop, box, (width, height))
        stored = affine.copy()
        stored[:, :2] *= images.image_sizes[row] / images.stored_sizes[row]
        buffer = io.BytesIO()
        assert picture is not None
        crops.extract(picture, stored, crop.size).save(buffer, "JPEG", quality=crop.quality)
        yield Row(
            jpeg=buffer.getvalue(),
            file_name=images.file_names[row],
            image_id=int(detected.image_ids[n]),
            annotation_id=n,
            image_size=(width, height),
            box=box,
            keypoints=np.zeros((skeleton.size, 2)),
            visibility=np.zeros(skeleton.size, np.uint8),
            to_crop=affine,
        )
