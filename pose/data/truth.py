"""<split>.json: COCO keypoints with all that is known of a split's images, which the evaluation by OKS reads.

People are as the audit leaves them. Crowds, people without keypoints and people who were left out have num_keypoints 0
and so are ignored by the evaluation: finding them is neither right nor wrong. Outlines are run-length codes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pose.data.check import Audit, Person
from pose.data.check_regions import Region, area_of, is_region
from pose.data.sources import Source

KEPT_KEYS = ("info", "licenses", "categories")


def write_truth(source: Source, audited: Audit, images: list[dict], path: Path) -> None:
    """Writes the images and whoever is in them, annotations by image id and annotation id."""
    listed = {image["id"] for image in images}
    original = {annotation["id"]: annotation for annotation in source.coco["annotations"]}
    found: list[Person | Region] = [*audited.people, *audited.regions]
    everybody = [entry for entry in found if entry.image_id in listed]
    everybody.sort(key=lambda entry: (entry.image_id, entry.annotation_id))
    annotations = []
    for entry in everybody:
        record = original[entry.annotation_id]
        known = _person(entry, record) if isinstance(entry, Person) else _region(entry, record, source.skeleton.size)
        annotations.append(known | _outline(record, audited.outlines))
    value = {key: source.coco[key] for key in KEPT_KEYS if key in source.coco}
    value |= {"images": images, "annotations": annotations}
    path.write_text(json.dumps(value, separators=(",", ":"), allow_nan=False) + "\n")


def _person(person: Person, record: dict) -> dict:
    joints = np.round(person.keypoints, 3).tolist()
    return record | {
        "keypoints": [value for x, y, v in joints for value in (x, y, int(v))],
        "num_keypoints": sum(v > 0 for _, _, v in joints),
        "bbox": _xywh(person.box),
        "area": person.area,
    }


def _region(region: Region, record: dict, joints: int) -> dict:
    """Its published box and area where they are whole: the official evaluation reads both."""
    published = is_region(record) and record["bbox"][2] > 0 and record["bbox"][3] > 0
    bbox = record["bbox"] if published else _xywh(region.box)
    area = area_of(record) or float(bbox[2] * bbox[3])
    return record | {
        "keypoints": [0] * (3 * joints),
        "num_keypoints": 0,
        "bbox": bbox,
        "area": area,
        "iscrowd": int(bool(record.get("iscrowd"))),
    }


def _outline(record: Mapping, outlines: Mapping[int, dict]) -> dict:
    if record["id"] in outlines:
        return {"segmentation": outlines[record["id"]]}
    return {"segmentation": []} if "segmentation" in record else {}


def _xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = np.round(box, 3).tolist()
    return [x0, y0, round(x1 - x0, 3), round(y1 - y0, 3)]
