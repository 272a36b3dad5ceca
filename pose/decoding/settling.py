"""From poses with their boxes' scores to people: scored by box and joints, and nobody found twice.

A system names its own way, by which it is evaluated and by which it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pose.decoding.oks_nms import THRESHOLD, rescored, suppress
from pose.decoding.pose_nms import PoseNms, pose_nms
from pose.metrics.truth import sigmas_of
from pose.people import People
from pose.skeleton import Skeleton

EVERYONE = PoseNms(min_score=0.0)
"""The released numbers, but nobody is left out for a low score: average precision ranks, and viewers choose."""


@dataclass(frozen=True)
class Settling:
    """A way from poses to people."""

    name: str
    """Stands in protocols."""
    numbers: PoseNms | None
    """Of pose NMS; None: by OKS."""

    def people(self, people: People, skeleton: Skeleton) -> People:
        """Those who stay, of poses whose person scores are their boxes'."""
        if self.numbers is not None:
            return pose_nms(people, self.numbers)
        people = rescored(people, people.person_scores)
        return people.select(suppress(people, sigmas_of(skeleton)))


BY_OKS = Settling(f"oks {THRESHOLD:g}", None)
"""Person scores become box score x mean joint score, then OKS-NMS (SimpleBaseline, section 3.2)."""
BY_POSE_NMS = Settling("pose nms, released", EVERYONE)
"""Parametric pose NMS with the released constants (RMPE, section 3.4), which scores and merges poses itself."""


def by_fitted(numbers: PoseNms) -> Settling:
    """Parametric pose NMS with numbers that were fitted to a training split."""
    return Settling("pose nms, fitted", numbers)


def to_json(settling: Settling) -> dict[str, Any]:
    """As model.json has it."""
    return {"name": settling.name, "pose_nms": asdict(settling.numbers) if settling.numbers else None}


def from_json(value: Mapping[str, Any]) -> Settling:
    """Inverse of to_json."""
    return Settling(value["name"], PoseNms(**value["pose_nms"]) if value["pose_nms"] else None)
