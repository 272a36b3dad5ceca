"""The report's pictures: predictions beside the truth, and how sure the system is of each joint."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from pose.evaluation import Evaluation
from pose.inference.draw import overlay
from pose.metrics import pck, presence
from pose.people import People
from pose.report.entry import Entry
from pose.skeleton import Skeleton

SIDE = 240
"""Longer side of a picture in the page, px."""
QUALITY = 82


@dataclass(frozen=True)
class Pair:
    """One person: the truth and the prediction over the same picture, as data URIs."""

    truth: str
    prediction: str
    caption: str


@dataclass(frozen=True)
class Joint:
    """One joint's bar: predicted probability of being visible, and whether it is."""

    name: str
    probability: float
    visible: bool


@dataclass(frozen=True)
class PresencePicture:
    """One person with the probability of every joint."""

    picture: str
    joints: list[Joint]
    caption: str


def galleries(entry: Entry, skeleton: Skeleton, size: int) -> dict[str, list[Pair]]:
    """best, median and worst people of one system, `size` each, by mean error of their labelled joints."""
    if entry.predictions is None or entry.truth is None or entry.crop is None:
        return {}
    errors = pck.image_errors(entry.predictions, entry.truth)
    scored = np.flatnonzero(~np.isnan(errors).all(axis=1))
    mean = np.nanmean(errors[scored], axis=1)
    order = scored[np.argsort(mean, kind="stable")]
    size = min(size, len(order))
    middle = (len(order) - size) // 2
    chosen = {"best": order[:size], "median": order[middle : middle + size], "worst": order[len(order) - size :][::-1]}
    return {
        name: [_pair(entry, entry.predictions, entry.truth, int(row), errors[row], skeleton) for row in rows]
        for name, rows in chosen.items()
    }


def presence_pictures(entry: Entry, skeleton: Skeleton, size: int) -> list[PresencePicture]:
    """People with absent joints: where the presence head is most right, then where it is most wrong.

    Empty for a system without a presence head.
    """
    predictions, truth, evaluation = entry.predictions, entry.truth, entry.evaluation
    if predictions is None or truth is None or entry.crop is None or not _has_presence(evaluation):
        return []
    visible = truth.presence > presence.THRESHOLD
    mixed = np.flatnonzero((~visible).any(axis=1) & visible.any(axis=1))
    wrong = np.abs(predictions.presence - visible).mean(axis=1)[mixed]
    order = mixed[np.argsort(wrong, kind="stable")]
    half = min(size, len(order)) // 2
    rows = [*order[:half], *order[len(order) - half :]]
    return [_presence_picture(entry, predictions, visible, int(row), skeleton) for row in rows]


def _has_presence(evaluation: Evaluation | None) -> bool:
    return evaluation is not None and "presence_accuracy" in evaluation.metrics


def _pair(entry: Entry, predictions: People, truth: People, row: int, errors: np.ndarray, skeleton: Skeleton) -> Pair:
    picture, to_picture = _natural(entry, truth, row)
    found, scored = pck.hits(errors, pck.IMAGE_THRESHOLD)
    return Pair(
        truth=_uri(_drawn(picture, truth, row, to_picture, skeleton)),
        prediction=_uri(_drawn(picture, predictions, row, to_picture, skeleton)),
        caption=f"image {truth.image_ids[row]}: mean error {100 * np.nanmean(errors):.1f} % of the side, "
        f"{int(found.sum())} of {int(scored.sum())} joints within 1/12",
    )


def _presence_picture(
    entry: Entry, predictions: People, visible: np.ndarray, row: int, skeleton: Skeleton
) -> PresencePicture:
    picture, to_picture = _natural(entry, predictions, row)
    right = (predictions.presence[row] > presence.THRESHOLD) == visible[row]
    return PresencePicture(
        picture=_uri(_drawn(picture, predictions, row, to_picture, skeleton)),
        joints=[
            Joint(name.replace("_", " "), float(predictions.presence[row, k]), bool(visible[row, k]))
            for k, name in enumerate(skeleton.joints)
        ],
        caption=f"image {predictions.image_ids[row]}: {int(right.sum())} of {len(right)} flags right",
    )


def _natural(entry: Entry, people: People, row: int) -> tuple[Image.Image, np.ndarray]:
    """The crop in the original's proportions, and the map from original pixels to it."""
    assert entry.crop is not None
    crop, to_crop = entry.crop(row)
    original = np.array(crop.size) / np.diag(to_crop[:, :2])
    scale = SIDE / original.max()
    size = np.maximum(np.round(original * scale), 1).astype(int)
    stretch = (size / np.array(crop.size))[:, None]
    return crop.resize((int(size[0]), int(size[1])), Image.Resampling.BICUBIC), to_crop * stretch


def _drawn(picture: Image.Image, people: People, row: int, to_picture: np.ndarray, skeleton: Skeleton) -> Image.Image:
    one = people.select(np.array([row]))
    moved = one.keypoints @ to_picture[:, :2].T + to_picture[:, 2]
    return overlay(picture, replace(one, keypoints=moved), skeleton).resize(picture.size, Image.Resampling.LANCZOS)


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
