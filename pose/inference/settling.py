"""From poses with their boxes' scores to people: scored by box and joints, and nobody found twice."""

from __future__ import annotations

from collections.abc import Callable

from pose.decoding.oks_nms import rescored, suppress
from pose.decoding.pose_nms import pose_nms
from pose.metrics.truth import sigmas_of
from pose.people import People
from pose.skeleton import Skeleton

Settle = Callable[[People, Skeleton], People]


def settling(system: str) -> Settle:
    """How a system's poses are settled: RMPE by its parametric pose NMS, others by rescoring and OKS-NMS."""
    return by_pose_nms if system == "alphapose" else by_oks


def by_oks(people: People, skeleton: Skeleton) -> People:
    """Person scores become box score x mean joint score, then OKS-NMS (SimpleBaseline, section 3.2)."""
    people = rescored(people, people.person_scores)
    return people.select(suppress(people, sigmas_of(skeleton)))


def by_pose_nms(people: People, skeleton: Skeleton) -> People:
    """Parametric pose NMS with the released constants (RMPE, section 3.4), which scores and merges poses itself."""
    return pose_nms(people)
