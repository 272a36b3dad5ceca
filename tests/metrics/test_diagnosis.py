from __future__ import annotations

import numpy as np
import pytest

from pose.metrics import diagnosis, oks
from pose.metrics.truth import sigmas_of
from pose.people import People
from pose.skeleton import COCO17

AREA = 100.0**2


def scene() -> tuple[dict, np.ndarray]:
    """Two people well apart in one image, one in the next."""
    generator = np.random.default_rng(4)
    grid = np.stack(np.meshgrid(np.arange(5), np.arange(4)), axis=2).reshape(-1, 2)[:17] * 90.0
    joints = np.stack([grid + generator.random((17, 2)), grid + np.array((600, 0)), grid + np.array((0, 5))])
    annotations = [
        {
            "id": n + 1, "image_id": image, "category_id": 1, "num_keypoints": 17, "iscrowd": 0, "area": AREA,
            "bbox": [*points.min(axis=0).tolist(), *np.ptp(points, axis=0).tolist()],
            "keypoints": np.concatenate([points, np.full((17, 1), 2)], axis=1).ravel().tolist(),
        }
        for n, (image, points) in enumerate(zip((1, 1, 2), joints, strict=True))
    ]  # fmt: skip
    images = [{"id": n, "width": 1200, "height": 500} for n in (1, 2)]
    return {"images": images, "categories": [{"id": 1, "name": "person"}], "annotations": annotations}, joints


def people_at(joints: np.ndarray, images: list[int], scores: list[float]) -> People:
    n = len(joints)
    ones = np.ones((n, 17), np.float32)
    return People(
        np.array(images), np.tile(np.float32([1200, 500]), (n, 1)), joints.astype(np.float32), ones, ones,
        np.zeros((n, 4), np.float32), np.float32(scores),
    )  # fmt: skip


def test_each_kind_of_error_is_recognised():
    truth, joints = scene()
    index = COCO17.index
    wrong = joints.copy()
    sigma = sigmas_of(COCO17)[index("left_knee")]
    wrong[0, index("left_knee")] += [np.sqrt(-np.log(0.7) * 2 * AREA) * 2 * sigma, 0]  # similarity 0.7
    wrong[0, [index("left_wrist"), index("right_wrist")]] = joints[0, [index("right_wrist"), index("left_wrist")]]
    wrong[0, index("right_ankle")] = joints[1, index("right_ankle")]
    wrong[0, index("left_ankle")] = joints[1, index("right_ankle")]  # somebody else's other side: a swap too
    wrong[0, index("nose")] -= 300
    result = oks.evaluate(people_at(wrong, [1, 1, 2], [0.9, 0.8, 0.7]), truth, COCO17)
    kinds = diagnosis.joint_kinds(result, np.arange(3), np.arange(3))
    named = {j: diagnosis.JOINT_KINDS[k] for j, k in zip(COCO17.joints, kinds[0], strict=True) if k}
    assert named == {
        "left_knee": "jitter", "left_wrist": "inversion", "right_wrist": "inversion", "right_ankle": "swap",
        "left_ankle": "swap", "nose": "miss",
    }  # fmt: skip
    assert not kinds[1:].any()
    found = diagnosis.evaluate(result)
    assert found.counts == {
        "good": 45, "jitter": 1, "inversion": 2, "swap": 2, "miss": 1, "background": 0, "duplicate": 0, "not_found": 0,
    }  # fmt: skip
    assert found.joints[index("nose")] == pytest.approx([2 / 3, 0, 0, 0, 1 / 3])
    assert all(found.gained[kind] >= 0 for kind in ("jitter", "inversion", "swap", "miss"))
    assert found.gained["inversion"] > found.gained["jitter"]


def test_mending_gives_back_exactly_what_was_lost():
    truth, joints = scene()
    missed = joints.copy()
    missed[:, :6] += 400
    found = diagnosis.evaluate(oks.evaluate(people_at(missed, [1, 1, 2], [0.9, 0.8, 0.7]), truth, COCO17))
    assert found.counts["miss"] == 18
    assert found.ap + found.gained["miss"] == pytest.approx(1)
    assert found.gained["swap"] == found.gained["background"] == found.gained["not_found"] == 0


def test_false_positives_and_people_not_found_cost_what_they_cost():
    truth, joints = scene()
    images, points = [1, 1, 2, 2], np.stack([joints[0], joints[0] + 1, joints[2] + 400, joints[2]])
    found = diagnosis.evaluate(oks.evaluate(people_at(points, images, [0.9, 0.8, 0.7, 0.6]), truth, COCO17))
    assert {k: found.counts[k] for k in ("background", "duplicate", "not_found")} == {
        "background": 1, "duplicate": 1, "not_found": 1,
    }  # fmt: skip
    assert min(found.gained[k] for k in ("background", "duplicate", "not_found")) > 0
    assert found.gained["jitter"] == found.gained["miss"] == 0


def test_nobody_found_is_only_people_not_found():
    truth, joints = scene()
    nobody = people_at(joints, [1, 1, 2], [1, 1, 1]).select(np.arange(0))
    found = diagnosis.evaluate(oks.evaluate(nobody, truth, COCO17))
    assert found.ap == 0
    assert found.counts["not_found"] == 3
    assert np.isnan(found.joints).all()
