import os

import numpy as np
import pytest

from pose.config import SyntheticParams
from pose.data import synthetic
from pose.data.figures import FOREARM, SHIN, THIGH, UPPER_ARM, random_figure
from pose.data.painting import Canvas, Cloth
from pose.errors import ConfigError
from pose.skeleton import COCO17, LSP14


def params(**changes):
    defaults = {"skeleton": "lsp14", "images": 4, "width": 96, "height": 96, "people": (1, 1), "seed": 7}
    return SyntheticParams(**(defaults | changes))


def joints_of(annotations, skeleton=LSP14):
    """[N, K, 3]."""
    return np.array([a["keypoints"] for a in annotations], dtype=float).reshape(-1, skeleton.size, 3)


@pytest.fixture(scope="module")
def crowd():
    """Annotations of 200 images with one person each, [200, 14, 3], coordinates as shares of the image."""
    joints = joints_of([synthetic.draw(params(), index)[1][0] for index in range(200)])
    joints[..., :2] /= 96
    return joints


def test_a_picture_depends_on_seed_and_index_alone():
    image, annotations = synthetic.draw(params(), 3)
    again, same = synthetic.draw(params(images=1000), 3)
    assert np.array_equal(np.asarray(image), np.asarray(again))
    assert annotations == same
    for other in (synthetic.draw(params(), 4)[0], synthetic.draw(params(seed=8), 3)[0]):
        assert not np.array_equal(np.asarray(image), np.asarray(other))


def test_the_edition_is_raised_when_the_pictures_change():
    image = np.asarray(synthetic.draw(params(), 0)[0].convert("L"), dtype=float)
    blocks = image.reshape(4, 24, 4, 24).mean(axis=(1, 3)).round().astype(int)
    golden = EDITIONS[synthetic.EDITION]
    assert np.abs(blocks - golden).max() <= 2, f"other pictures need another EDITION; the blocks are {blocks.tolist()}"


EDITIONS = {1: np.array([[67, 68, 61, 66], [82, 52, 60, 76], [83, 74, 83, 79], [81, 83, 86, 79]])}


def test_a_mean_pose_fails(crowd):
    xy, visible = crowd[..., :2], crowd[..., 2] == 2
    mean = np.array([xy[visible[:, k], k].mean(axis=0) for k in range(14)])
    hit = np.linalg.norm(xy - mean, axis=2) <= 1 / 12
    assert 0.05 < hit[visible].mean() < 0.20


def test_presence_is_a_task(crowd):
    shares = [(crowd[..., 2] == v).mean() for v in (0, 1, 2)]
    assert 0.82 < shares[2] < 0.92
    assert shares[1] > 0.05
    assert shares[0] > 0.001
    assert ((crowd[..., 2] == 2).mean(axis=0) < 0.98).all(), "a joint that is always visible teaches nothing"


def test_most_people_are_seen_from_the_front_but_not_all(crowd):
    left, right = LSP14.index("left_shoulder"), LSP14.index("right_shoulder")
    both = (crowd[:, left, 2] == 2) & (crowd[:, right, 2] == 2)
    frontal = (crowd[both, left, 0] > crowd[both, right, 0]).mean()
    assert 0.65 < frontal < 0.95


@pytest.mark.parametrize("skeleton", [LSP14, COCO17])
def test_labels_fit_the_image(skeleton):
    settings = params(skeleton=skeleton.name, width=120, height=80, people=(2, 4))
    identities = []
    for index in range(25):
        image, annotations = synthetic.draw(settings, index)
        assert image.size == (120, 80)
        assert image.mode == "RGB"
        for annotation, joints in zip(annotations, joints_of(annotations, skeleton), strict=True):
            labelled, visible = joints[joints[:, 2] > 0], joints[joints[:, 2] == 2]
            assert ((labelled[:, :2] >= 0) & (labelled[:, :2] < (120, 80))).all()
            assert not joints[joints[:, 2] == 0].any()
            assert annotation["num_keypoints"] == len(labelled) > 0
            x, y, width, height = annotation["bbox"]
            assert (visible[:, :2] >= (x, y)).all()
            assert (visible[:, :2] <= (x + width, y + height)).all()
            assert 0 <= annotation["area"] <= width * height
            assert annotation["image_id"] == index + 1
            identities.append(annotation["id"])
    assert len(set(identities)) == len(identities)


def test_people_hide_each_other():
    alone = [a for index in range(30) for a in synthetic.draw(params(), index)[1]]
    together = [a for index in range(30) for a in synthetic.draw(params(people=(6, 6)), index)[1]]
    assert len(together) > 5 * len(alone)
    assert (joints_of(together)[..., 2] == 1).mean() > 1.2 * (joints_of(alone)[..., 2] == 1).mean()


def test_the_number_of_people_stays_in_its_range():
    counts = {len(synthetic.draw(params(people=(1, 3)), index)[1]) for index in range(40)}
    assert counts == {1, 2, 3}


def test_a_face_is_not_visible_from_behind():
    settings = params(skeleton="coco17")
    noses = []
    for index in range(200):
        joints = joints_of(synthetic.draw(settings, index)[1], COCO17)[0]
        left, right = joints[COCO17.index("left_shoulder")], joints[COCO17.index("right_shoulder")]
        if left[2] == right[2] == 2 and abs(left[1] - right[1]) < 12 and abs(left[0] - right[0]) > 10:
            noses.append((left[0] > right[0], joints[COCO17.index("nose"), 2] == 2))
    front = [seen for facing, seen in noses if facing]
    behind = [seen for facing, seen in noses if not facing]
    assert len(front) > 20
    assert len(behind) > 5
    assert np.mean(front) > 0.6
    assert np.mean(behind) < 0.35


def test_bones_keep_their_length_and_joints_their_limits():
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = random_figure(rng).points
        for side in ("left", "right"):
            chain = [points[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")]
            lengths = [np.linalg.norm(chain[i] - chain[j]) for i, j in ((0, 1), (1, 2), (3, 4), (4, 5))]
            np.testing.assert_allclose(lengths, [UPPER_ARM, FOREARM, THIGH, SHIN])
            for a, b, c, limit in ((0, 1, 2, 152), (3, 4, 5, 142)):
                upper, lower = chain[b] - chain[a], chain[c] - chain[b]
                cosine = upper @ lower / np.linalg.norm(upper) / np.linalg.norm(lower)
                assert np.degrees(np.arccos(np.clip(cosine, -1, 1))) < limit


def test_a_painted_capsule_has_the_area_of_a_capsule():
    plain = Cloth(np.full((3, 1, 1), 200, np.float32), np.zeros((3, 1, 1), np.float32))
    canvas = Canvas(np.zeros((3, 200, 200), np.float32), np.array([0, 0, -1.0]), np.zeros((200, 200), np.float32))
    canvas.slab(5, (np.array([50.0, 60.0]), np.array([130.0, 120.0])), (20.0, 20.0), plain, 200.0)
    owned = canvas.owner == 5
    assert owned.sum() == pytest.approx(np.pi * 20**2 + 40 * 100, rel=0.01)
    rows, columns = np.nonzero(owned)
    assert (columns.mean() + 0.5, rows.mean() + 0.5) == pytest.approx((90, 90), abs=0.1)
    assert canvas.image[:, ~owned].max() < 110, "only the smooth edge paints outside"


def test_a_part_outside_the_image_paints_nothing():
    plain = Cloth(np.full((3, 1, 1), 200, np.float32), np.zeros((3, 1, 1), np.float32))
    canvas = Canvas(np.zeros((3, 40, 40), np.float32), np.array([0, 0, -1.0]), np.zeros((40, 40), np.float32))
    canvas.slab(5, (np.array([-90.0, 60.0]), np.array([-50.0, 120.0])), (4.0, 4.0), plain, 100.0)
    assert not canvas.image.any()


def test_an_archive_is_the_same_bytes_however_many_processes_draw_it(tmp_path, monkeypatch):
    settings = params(images=70, width=64, height=64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    synthetic.write_archive(settings, tmp_path / "two.zip")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    synthetic.write_archive(settings, tmp_path / "one.zip")
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.zip", "two.zip"]


def test_an_archive_is_recognised_by_what_it_was_drawn_from(tmp_path, monkeypatch):
    path = tmp_path / "set.zip"
    assert not synthetic.is_drawn(params(), path)
    synthetic.write_archive(params(), path)
    assert synthetic.is_drawn(params(), path)
    assert not synthetic.is_drawn(params(seed=8), path)
    monkeypatch.setattr(synthetic, "EDITION", synthetic.EDITION + 1)
    assert not synthetic.is_drawn(params(), path)
    path.write_bytes(b"PK torn")
    assert not synthetic.is_drawn(params(), path)


def test_an_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch):
    def stop(settings, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "_encoded", stop)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_archive(params(), tmp_path / "set.zip")
    assert not list(tmp_path.iterdir())


def test_an_unknown_skeleton_is_named():
    with pytest.raises(ConfigError, match="lsp15"):
        synthetic.draw(params(skeleton="lsp15"), 0)
