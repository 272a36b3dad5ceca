"""From pictures to people: one person per picture, boxes first and a pose in each, or everyone at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from PIL import Image

from pose.data.detections import Detections
from pose.inference.predictor import Predictor, whole
from pose.inference.scene_model import SceneModel
from pose.people import People
from pose.skeleton import Skeleton

Boxes = tuple[np.ndarray, np.ndarray]
"""Of one picture: [N, 4] xyxy px and scores [N]."""
LEAST_SIDE = 1.0
"""px: a box of which less than this lies in the picture, in width or height, shows nobody."""


class Pipeline(Protocol):
    """What finds people in pictures."""

    @property
    def model(self) -> Predictor | SceneModel:
        """What says where the joints are."""

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> People:
        """Everyone in these RGB pictures, `ids` as their image ids, picture by picture; none is fine."""


@dataclass(frozen=True)
class SinglePerson:
    """One person per picture, the whole of it as the box; the person score is the mean joint score."""

    model: Predictor

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> People:
        """See Pipeline."""
        people = self.model.in_boxes(images, np.arange(len(images)), whole(images))
        return replace(people, image_ids=np.asarray(ids, np.int64)[people.image_ids])


@dataclass(frozen=True)
class TopDown:
    """Boxes first, then one pose in each, then what two boxes found twice is left away."""

    model: Predictor
    boxes: Callable[[Sequence[Image.Image], Sequence[int]], list[Boxes]]
    settle: Callable[[People, Skeleton], People]
    """From poses with their boxes' scores to people with their own, each once."""

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> People:
        """See Pipeline."""
        usable = [_within(boxes, image) for boxes, image in zip(self.boxes(images, ids), images, strict=True)]
        which = np.repeat(np.arange(len(images)), [len(scores) for _, scores in usable])
        boxes = np.concatenate([np.zeros((0, 4), np.float32), *(boxes for boxes, _ in usable)])
        scores = np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in usable)])
        poses = self.model.in_boxes(images, which, boxes)
        people = self.settle(replace(poses, person_scores=scores.astype(np.float32)), self.model.skeleton)
        people = people.select(np.lexsort((-people.person_scores, people.image_ids)))
        return replace(people, image_ids=np.asarray(ids, np.int64)[people.image_ids])


@dataclass(frozen=True)
class EndToEnd:
    """A model that finds everyone in a whole picture."""

    model: SceneModel

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> People:
        """See Pipeline. Everyone, however low the score, as evaluation counts them."""
        return self.model.predict(images, ids)


@dataclass(frozen=True)
class DetectedBoxes:
    """A person detector's boxes of at least `min_score`."""

    model: SceneModel
    min_score: float

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> list[Boxes]:
        """See TopDown.boxes."""
        places = np.arange(len(images))
        found = self.model.predict(images, places.tolist())
        found = found.select(found.person_scores >= self.min_score)
        return [(found.boxes[found.image_ids == n], found.person_scores[found.image_ids == n]) for n in places]


@dataclass(frozen=True)
class GivenBoxes:
    """Boxes that were there before, by image id; a picture without any has none."""

    detections: Detections

    def __call__(self, images: Sequence[Image.Image], ids: Sequence[int]) -> list[Boxes]:
        """See TopDown.boxes."""
        rows = [self.detections.of(int(image_id)) for image_id in ids]
        return [(self.detections.boxes[own], self.detections.scores[own]) for own in rows]


def _within(boxes: Boxes, image: Image.Image) -> Boxes:
    """Without the boxes that lie outside the picture or show less than a pixel of it. Coordinates stay."""
    places, scores = boxes
    inside = np.clip(places.reshape(-1, 2, 2), 0, image.size)
    seen = ((inside[:, 1] - inside[:, 0]) >= LEAST_SIDE).all(axis=1)
    return places[seen], scores[seen]
