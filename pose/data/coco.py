"""COCO keypoints: the official archives of 2017, and entries that every dataset here writes.

Positions are taken as they are published, as continuous pixels, so that figures and results compare with those of the
official evaluation. People are all categories there is a use for; person_keypoints_*.json has no other.
"""

from __future__ import annotations

import json
from pathlib import Path

from pose.errors import DataError
from pose.skeleton import COCO17, Skeleton

FOLDERS = ("train2017", "val2017")
TEST_FOLDER = "val2017"
"""What the whole field measures itself on."""


def category(skeleton: Skeleton) -> dict:
    """The category entry for people with this skeleton; limbs count joints from 1, as COCO does."""
    return {
        "id": 1,
        "name": "person",
        "supercategory": "person",
        "keypoints": list(skeleton.joints),
        "skeleton": (skeleton.limb_indices + 1).tolist(),
    }


def read_coco(root: Path) -> dict:
    """Both official splits as one COCO keypoints dict; file_name is <folder>/<file>, relative to root.

    Raises DataError where an annotation file is missing, is no JSON, holds no keypoints or has other joints.
    """
    whole: dict = {"images": [], "annotations": []}
    for folder in FOLDERS:
        path = root / "annotations" / f"person_keypoints_{folder}.json"
        found = read_keypoints(path, COCO17)
        for image in found["images"]:
            whole["images"].append(image | {"file_name": f"{folder}/{image.get('file_name', '')}"})
        whole["annotations"] += found["annotations"]
        whole |= {key: found[key] for key in ("info", "licenses") if key in found}
    return whole | {"categories": [category(COCO17)]}


def official_sides(coco: dict) -> dict[int, str]:
    """val2017 is the test split, for everyone has trained on train2017 and tuned on what they took from it."""
    return {image["id"]: "test" for image in coco["images"] if image["file_name"].startswith(f"{TEST_FOLDER}/")}


def read_keypoints(path: Path, skeleton: Skeleton) -> dict:
    """One COCO annotation file, its people only, whose joints have to be the skeleton's in its order.

    Raises DataError. What is wrong with single records is for the audit to say.
    """
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}). Is this the archive of annotations?") from None
    except ValueError as error:
        raise DataError(f"{path} is no JSON ({error}). Unpack the archive again.") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(found, dict) or not isinstance(found.get(key), list):
            raise DataError(f"{path} has no list {key!r}, expected COCO's images, annotations and categories.")
    person = next((entry for entry in found["categories"] if entry.get("name") == "person"), None)
    annotations = [a for a in found["annotations"] if person is None or a.get("category_id") == person["id"]]
    if person is None or "keypoints" not in person or not any("keypoints" in a for a in annotations):
        raise DataError(
            f"{path} is an annotation file without keypoints: its categories name {_names(found['categories'])}, "
            f"expected 'person' with {skeleton.size} keypoints, and people who have them. Take person_keypoints_*.json."
        )
    if tuple(person["keypoints"]) != skeleton.joints:
        raise DataError(
            f"{path} has {len(person['keypoints'])} joints ({', '.join(person['keypoints'])}), skeleton "
            f"{skeleton.name} has {skeleton.size} ({', '.join(skeleton.joints)}). Use the skeleton that fits the file."
        )
    return found | {"annotations": annotations}


def _names(categories: list[dict]) -> str:
    return ", ".join(repr(entry.get("name")) for entry in categories[:5]) or "nothing"
