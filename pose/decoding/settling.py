"""From poses with their boxes' scores to people: scored by box and joints, and nobody found twice.

A system names its own way, by which it is evaluated and by which it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pose.decoding.oks_nms import THRESHOLD, box_areas, rescored, seen_areas, suppress
from pose.decoding.pose_nms import PoseNms, pose_nms
from pose.metrics.truth import sigmas_of
from pose.people import People
from pose.skeleton import Skeleton

EVERYONE = PoseNms(min_score=0.0)
"""The released numbers, but nobody is left out for a low score: average precision ranks, and viewers choose."""
SURE = 0.2
"""Joints scored higher make a person's score in SimpleBaseline's release."""


@dataclass(frozen=True)
class View:
    """What a network sees of a box, for the areas that SimpleBaseline's release goes by."""

    aspect: float
    """Width over height of the input."""
    padding: float


@dataclass(frozen=True)
class Settling:
    """A way from poses to people."""

    name: str
    """Stands in protocols."""
    numbers: PoseNms | None
    """Of pose NMS; None: by OKS."""
    view: View | None = None
    """None: all joints make the score, and OKS goes by the boxes' areas; else both are as in the release."""

    def people(self, people: People, skeleton: Skeleton) -> People:
        """Those who stay, of poses whose person scores are their boxes'."""
        if self.numbers is not None:
            return pose_nms(people, self.numbers)
        people = rescored(people, people.person_scores, None if self.view is None else SURE)
        boxes, view = people.boxes, self.view
        areas = box_areas(boxes) if view is None else seen_areas(boxes, view.aspect, view.padding)
        return people.select(suppress(people, sigmas_of(skeleton), areas))


BY_OKS = Settling(f"oks {THRESHOLD:g}", None)
"""Person scores become box score x mean joint score, then OKS-NMS (SimpleBaseline, section 3.2)."""
BY_POSE_NMS = Settling("pose nms, released", EVERYONE)
"""Parametric pose NMS with the released constants (RMPE, section 3.4), which scores and merges poses itself."""


def by_fitted(numbers: PoseNms) -> Settling:
    """Parametric pose NMS with numbers that were fitted to a training split."""
    return Settling("pose nms, fitted", numbers)


def by_released_oks(input_size: tuple[int, int], padding: float) -> Settling:
    """As SimpleBaseline's release: only joints scored above 0.2 count, and areas are those of what the network sees."""
    width, height = input_size
    return Settling(f"{BY_OKS.name}, released", None, View(width / height, padding))


def to_json(settling: Settling) -> dict[str, Any]:
    """As model.json has it."""
    numbers, view = settling.numbers, settling.view
    return {
        "name": settling.name,
        "pose_nms": asdict(numbers) if numbers else None,
        "view": asdict(view) if view else None,
    }


def from_json(value: Mapping[str, Any]) -> Settling:
    """Inverse of to_json. Files of before there were views say nothing of one and had none."""
    numbers, view = value["pose_nms"], value.get("view")
    return Settling(value["name"], PoseNms(**numbers) if numbers else None, View(**view) if view else None)
