"""The truth that OKS is measured against: a split's COCO keypoint annotations as arrays, crowds and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from pose.errors import ConfigError, DataError
from pose.skeleton import Skeleton

OF_IMAGES = ("image_ids", "image_sizes")
"""Fields with a row per image; the others have one per annotation."""


@dataclass(frozen=True)
class Truth:
    """G annotations of one category over I images, images ascending by id, annotations in the file's order."""

    image_ids: np.ndarray
    """[I] int64, ascending; images without an annotation are among them."""
    category: int
    image: np.ndarray
    """[G] int64, position in image_ids."""
    ids: np.ndarray
    """[G] int64."""
    keypoints: np.ndarray
    """[G, K, 2] float64, original px."""
    labelled: np.ndarray
    """[G, K] bool."""
    visible: np.ndarray
    """[G, K] bool: labelled and not hidden."""
    boxes: np.ndarray
    """[G, 4] float64 xywh, as the file has them."""
    areas: np.ndarray
    """[G] float64."""
    crowd: np.ndarray
    """[G] bool."""
    ignored: np.ndarray
    """[G] bool: crowds and people without a labelled joint; who is found there is neither right nor wrong."""
    image_sizes: np.ndarray
    """[I, 2] float64, width and height; NaN where the file does not say."""

    def __len__(self) -> int:
        return len(self.image)

    def of_images(self, ids: np.ndarray) -> Truth:
        """The same of these images alone; ids that are not here are none."""
        stays = np.isin(self.image_ids, ids)
        rows = stays[self.image]
        parts = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name not in (*OF_IMAGES, "category")}
        place = np.cumsum(stays) - 1
        whole = {name: getattr(self, name)[stays] for name in OF_IMAGES}
        return Truth(**{**parts, **whole, "image": place[self.image[rows]], "category": self.category})


def read(coco: Mapping[str, Any], skeleton: Skeleton, name: str = "the annotations") -> Truth:
    """The annotations of a COCO keypoints file. `name` is what errors call it.

    Raises DataError for people without keypoints, with another number of joints, with an id that occurs twice or an
    image that is not listed, and where there is more than one category.
    """
    annotations: list[dict] = list(coco["annotations"])
    images = sorted(coco["images"], key=lambda image: image["id"])
    ids = np.array([image["id"] for image in images], np.int64)
    if len(np.unique(ids)) != len(ids):
        raise DataError(f"{name} lists image {_repeated(ids)} twice; ids must be unique.")
    categories = {a["category_id"] for a in annotations} or {c["id"] for c in coco.get("categories", [])} or {1}
    if len(categories) > 1:
        raise DataError(f"{name} has people of categories {sorted(categories)}; OKS is evaluated on one category.")
    _require_people(annotations, skeleton, name)
    numbers = np.array([a["id"] for a in annotations], np.int64)
    if len(np.unique(numbers)) != len(numbers):
        raise DataError(f"{name} has annotation id {_repeated(numbers)} twice; ids must be unique.")
    image_of = np.array([a["image_id"] for a in annotations], np.int64)
    if not np.isin(image_of, ids).all():
        stray = int(np.flatnonzero(~np.isin(image_of, ids))[0])
        raise DataError(f"{name}: annotation {numbers[stray]} is of image {image_of[stray]}, which is not listed.")
    triples = np.array([a["keypoints"] for a in annotations], np.float64).reshape(-1, skeleton.size, 3)
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], bool)
    counts = np.array([a.get("num_keypoints", -1) for a in annotations], np.int64)
    counts = np.where(counts < 0, (triples[..., 2] > 0).sum(axis=1), counts)
    return Truth(
        image_ids=ids,
        category=categories.pop(),
        image=np.searchsorted(ids, image_of),
        ids=numbers,
        keypoints=triples[..., :2],
        labelled=triples[..., 2] > 0,
        visible=triples[..., 2] > 1,
        boxes=np.array([a["bbox"] for a in annotations], np.float64).reshape(-1, 4),
        areas=np.array([a["area"] for a in annotations], np.float64),
        crowd=crowd,
        ignored=crowd | (counts == 0),
        image_sizes=np.array(
            [(i.get("width", np.nan), i.get("height", np.nan)) for i in images], np.float64
        ).reshape(-1, 2),
    )  # fmt: skip


def sigmas_of(skeleton: Skeleton) -> np.ndarray:
    """[K] float64 OKS constants. Raises ConfigError where the skeleton has none or not one per joint."""
    if skeleton.oks_sigmas is None:
        raise ConfigError(f"skeleton {skeleton.name} has no OKS sigmas, so OKS is not defined for it.")
    if len(skeleton.oks_sigmas) != skeleton.size:
        raise ConfigError(
            f"skeleton {skeleton.name} has {len(skeleton.oks_sigmas)} OKS sigmas for {skeleton.size} joints; "
            f"give one per joint in pose/skeleton.py."
        )
    return np.array(skeleton.oks_sigmas, np.float64)


def _require_people(annotations: Sequence[Mapping[str, Any]], skeleton: Skeleton, name: str) -> None:
    for annotation in annotations:
        missing = [key for key in ("id", "image_id", "keypoints", "bbox", "area") if key not in annotation]
        if missing:
            raise DataError(
                f"{name}: annotation {annotation.get('id', '?')} has no {', '.join(missing)}; "
                f"OKS needs the COCO keypoint annotations, not the boxes alone."
            )
        found = len(annotation["keypoints"])
        if found != 3 * skeleton.size:
            raise DataError(
                f"{name}: annotation {annotation['id']} has {found} keypoint numbers, skeleton {skeleton.name} with "
                f"{skeleton.size} joints needs {3 * skeleton.size}."
            )


def _repeated(values: np.ndarray) -> int:
    unique, counts = np.unique(values, return_counts=True)
    return int(unique[counts > 1][0])
