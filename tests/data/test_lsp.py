import io

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pose.data import lsp
from pose.errors import DataError

SENTINEL = -7.5


def make_set(root, joints, digits, sizes=None, **mat):
    (root / "images").mkdir(parents=True)
    savemat(root / "joints.mat", mat or {"joints": joints})
    count = joints.shape[2]
    for number in range(1, count + 1):
        size = sizes[number - 1] if sizes else (40 + number, 30 + number)
        Image.new("RGB", size, (number, 90, 30)).save(root / "images" / f"im{number:0{digits}d}.jpg")
    return root


def lspet_joints(count=3, seed=0):
    """[14, 3, N] with about one joint in seven not annotated, at a meaningless place."""
    rng = np.random.default_rng(seed)
    joints = np.concatenate([rng.uniform(1, 30, (14, 2, count)), np.ones((14, 1, count))], axis=1)
    joints[3, :, 1] = SENTINEL, 0.0, 0.0
    joints[[0, 13], :, 2] = 0.0, SENTINEL, 0.0
    return joints


def keypoints(coco):
    return np.array([annotation["keypoints"] for annotation in coco["annotations"]], dtype=float).reshape(-1, 14, 3)


def test_lspet_keeps_clicks_and_drops_meaningless_positions(tmp_path):
    joints = lspet_joints()
    coco = lsp.read_lspet(make_set(tmp_path / "set", joints, 5))
    found = keypoints(coco)
    for image in range(3):
        for joint in range(14):
            x, y, flag = joints[joint, :, image]
            assert found[image, joint].tolist() == ([x, y, 2] if flag else [0, 0, 0])
    assert [a["num_keypoints"] for a in coco["annotations"]] == [14, 13, 12]


def test_lspet_boxes_span_the_labelled_joints(tmp_path):
    joints = lspet_joints()
    coco = lsp.read_lspet(make_set(tmp_path / "set", joints, 5))
    rest = np.delete(joints[:, :2, 1], 3, axis=0)
    x, y, width, height = coco["annotations"][1]["bbox"]
    np.testing.assert_allclose([x, y, x + width, y + height], [*rest.min(0), *rest.max(0)])
    assert coco["annotations"][1]["area"] == pytest.approx(width * height)


def test_lspet_images_ids_and_category(tmp_path):
    coco = lsp.read_lspet(make_set(tmp_path / "set", lspet_joints(), 5))
    assert coco["images"][2] == {"id": 3, "file_name": "images/im00003.jpg", "width": 43, "height": 33}
    assert [a["image_id"] for a in coco["annotations"]] == [1, 2, 3]
    category = coco["categories"][0]
    assert category["keypoints"][:2] == ["right_ankle", "right_knee"]
    assert [1, 2] in category["skeleton"], "limbs count joints from one"
    assert min(min(pair) for pair in category["skeleton"]) == 1


def test_lsp_has_the_other_axis_order_the_inverted_flag_and_counts_pixels_from_one(tmp_path):
    rng = np.random.default_rng(1)
    joints = np.concatenate([rng.uniform(1, 30, (2, 14, 4)), np.zeros((1, 14, 4))])
    joints[2, 6, 2] = 1  # the right wrist of image 3 is occluded
    found = keypoints(lsp.read_lsp(make_set(tmp_path / "set", joints, 4)))
    np.testing.assert_allclose(found[..., :2], joints[:2].transpose(2, 1, 0) - 0.5)
    assert found[2, 6, 2] == 1
    assert (np.delete(found[..., 2].ravel(), 2 * 14 + 6) == 2).all()


def test_a_folder_wrapped_around_the_dataset_is_found(tmp_path):
    make_set(tmp_path / "outer" / "lsp_dataset", lspet_joints(), 5)
    images = lsp.read_lspet(tmp_path / "outer")["images"]
    assert len(images) == 3
    assert all((tmp_path / "outer" / image["file_name"]).is_file() for image in images)


def test_nan_is_passed_on_for_the_audit_to_find(tmp_path):
    joints = lspet_joints()
    joints[5, 0, 0] = np.nan
    coco = lsp.read_lspet(make_set(tmp_path / "set", joints, 5))
    assert np.isnan(keypoints(coco)[0, 5, 0])
    assert np.isfinite(coco["annotations"][0]["bbox"]).all()


@pytest.mark.parametrize(
    ("joints", "shape"), [(np.ones((3, 14, 5)), "3x14x5"), (np.ones((14, 3)), "14x3"), (np.ones((16, 3, 5)), "16x3x5")]
)
def test_another_shape_names_file_found_and_expected(tmp_path, joints, shape):
    (tmp_path / "images").mkdir()
    savemat(tmp_path / "joints.mat", {"joints": joints})
    with pytest.raises(DataError) as error:
        lsp.read_lspet(tmp_path)
    for named in ("joints.mat", shape, "14x3xN"):
        assert named in str(error.value)


def test_the_extended_file_is_not_read_as_lsp(tmp_path):
    with pytest.raises(DataError, match=r"14x3x3.*expected.*3x14xN"):
        lsp.read_lsp(make_set(tmp_path / "set", lspet_joints(), 4))


def test_other_contents_are_named(tmp_path):
    savemat(tmp_path / "joints.mat", {"points": np.ones(3)})
    with pytest.raises(DataError, match="no variable 'joints'"):
        lsp.read_lspet(tmp_path)
    (tmp_path / "joints.mat").write_bytes(b"not MATLAB at all" * 20)
    with pytest.raises(DataError, match=r"joints.mat is no readable MATLAB file"):
        lsp.read_lspet(tmp_path)
    with pytest.raises(DataError, match=r"no joints.mat"):
        lsp.read_lspet(tmp_path / "nowhere")


def test_flags_that_mean_something_else_are_refused(tmp_path):
    joints = lspet_joints()
    joints[4, 2, 1] = 2
    with pytest.raises(DataError, match=r"flag of left_knee in image 2 is 2.0"):
        lsp.read_lspet(make_set(tmp_path / "two", joints, 5))
    joints = lspet_joints()
    joints[:, 2] = 1 - joints[:, 2]
    with pytest.raises(DataError, match="as visible, expected most"):
        lsp.read_lspet(make_set(tmp_path / "inverted", joints, 5))
    with pytest.raises(DataError, match="as occluded, expected fewer"):
        lsp.read_lsp(make_set(tmp_path / "occluded", np.ones((3, 14, 2)), 4))


def test_missing_and_surplus_images_are_named(tmp_path):
    root = make_set(tmp_path / "set", lspet_joints(), 5)
    (root / "images" / "im00002.jpg").rename(root / "images" / "im00009.jpg")
    with pytest.raises(DataError, match=r"1 missing, the first is images/im00002.jpg and 1 .* images/im00009.jpg"):
        lsp.read_lspet(root)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"comment": b"x" * 5000}, {"exif": bytes(9000)}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_size_agrees_with_the_decoder(tmp_path, mode, options):
    path = tmp_path / "image.jpg"
    Image.new(mode, (321, 123)).save(path, **options)
    with Image.open(path) as image:
        assert lsp.jpeg_size(path) == image.size == (321, 123)


@pytest.mark.parametrize("keep", [0, 1, 3, 20, 160])
def test_a_file_without_a_frame_header_has_no_size(tmp_path, keep):
    whole = io.BytesIO()
    Image.new("RGB", (64, 64)).save(whole, "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(whole.getvalue()[:keep])
    assert lsp.jpeg_size(path) == (0, 0)
    path.write_bytes(b"<html>not found</html>")
    assert lsp.jpeg_size(path) == (0, 0)
