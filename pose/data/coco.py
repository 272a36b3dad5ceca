"""COCO keypoints entries that more than one dataset writes."""

from __future__ import annotations

from pose.skeleton import Skeleton


def category(skeleton: Skeleton) -> dict:
    """The category entry for people with this skeleton; limbs count joints from 1, as COCO does."""
    return {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": (skeleton.limb_indices + 1).tolist(),
    }
