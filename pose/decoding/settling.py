"""From poses with their boxes' scores to people: scored by box and joints, and nobody found twice.

A system names its own way, by which it is evaluated and by which it predicts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pose.decoding.oks_nms import THRESHOLD, rescored, suppress
from pose.decoding.pose_nms import FITTED, PoseNms, pose_nms
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
    people: Callable[[People, Skeleton], People]
    """Of poses whose person scores are their boxes'."""


def _by_oks(people: People, skeleton: Skeleton) -> People:
    people = rescored(people, people.person_scores)
    return people.select(suppress(people, sigmas_of(skeleton)))


def _by_pose_nms(people: People, skeleton: Skeleton) -> People:
    return pose_nms(people, EVERYONE)


def by_fitted(numbers: PoseNms) -> Settling:
    """Parametric pose NMS with numbers that were fitted to a training split."""
    said = ", ".join(f"{getattr(numbers, name):.4g}" for name in FITTED)
    return Settling(f"pose nms, fitted {said}", lambda people, skeleton: pose_nms(people, numbers))


BY_OKS = Settling(f"oks {THRESHOLD:g}", _by_oks)
"""Person scores become box score x mean joint score, then OKS-NMS (SimpleBaseline, section 3.2)."""
BY_POSE_NMS = Settling("pose nms, released", _by_pose_nms)
"""Parametric pose NMS with the released constants (RMPE, section 3.4), which scores and merges poses itself."""
