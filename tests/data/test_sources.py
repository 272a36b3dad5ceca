import hashlib
import json
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pose.config import DatasetParams
from pose.data import sources, synthetic
from pose.errors import DataError
from pose.skeleton import COCO17, LSP14

REST = {
    "crop": {"view": "image", "size": 64},
    "split": {"train": 0.7, "val": 0.15, "test": 0.15},
    "check": {
        "max_bad_share": 0.02,
        "outside_tolerance": 2.0,
        "max_limb_share": 0.6,
        "min_visible": 6,
        "duplicate_correlation": 0.995,
        "max_pixels": 10**7,
    },
    "shard_rows": 100,
}
LSPET_SHA256 = "301d49900b76847fc843d73ac5ffb06c201d724f6d450c49e9c10e2db88ba721"


def synthetic_params(**changes):
    drawn = {"skeleton": "coco17", "images": 6, "width": 64, "height": 48, "people": (1, 2), "seed": 3}
    return DatasetParams(kind="synthetic", synthetic=drawn | changes, **REST)


def archive_params(kind, file, sha256=None):
    archive = {"file": file, "licence": "none", "sources": [{"url": "mirror", "sha256": sha256}]}
    return DatasetParams(kind=kind, archives=[archive], **REST)


def test_synthetic_from_nothing_to_a_source(tmp_path):
    params, raw, cache = synthetic_params(), tmp_path / "raw" / "drawn", tmp_path / "unpacked"
    sources.fetch_dataset("drawn", params, raw)
    assert [path.name for path in raw.iterdir()] == ["drawn.zip"]
    source = sources.open_source("drawn", params, raw, cache)
    assert source.skeleton is COCO17
    digest = hashlib.sha256((raw / "drawn.zip").read_bytes()).hexdigest()
    assert source.root == cache / f"drawn-{digest[:8]}"
    assert len(source.coco["images"]) == 6
    for entry in source.coco["images"]:
        with Image.open(source.root / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"]) == (64, 48)
    drawn = synthetic.draw(params.synthetic, 2)[1]
    assert [a for a in source.coco["annotations"] if a["image_id"] == 3] == json.loads(json.dumps(drawn))


def test_what_is_there_is_left_alone_and_other_params_draw_anew(tmp_path):
    raw = tmp_path / "raw" / "drawn"
    sources.fetch_dataset("drawn", synthetic_params(), raw)
    before = (raw / "drawn.zip").stat()
    sources.fetch_dataset("drawn", synthetic_params(), raw)
    assert (raw / "drawn.zip").stat().st_mtime_ns == before.st_mtime_ns
    sources.fetch_dataset("drawn", synthetic_params(seed=4), raw)
    assert (raw / "drawn.zip").stat().st_mtime_ns != before.st_mtime_ns


def test_two_versions_of_a_dataset_are_unpacked_side_by_side(tmp_path):
    raw, cache = tmp_path / "raw" / "drawn", tmp_path / "unpacked"
    for seed in (3, 4):
        sources.fetch_dataset("drawn", synthetic_params(seed=seed), raw)
        sources.open_source("drawn", synthetic_params(seed=seed), raw, cache)
    assert len(list(cache.iterdir())) == 2


def test_opening_before_fetching_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"drawn.zip is not there.*pose data fetch drawn"):
        sources.open_source("drawn", synthetic_params(), tmp_path / "raw", tmp_path / "unpacked")


@pytest.mark.parametrize(("kind", "block"), [("coco", "archives"), ("collage", "collage"), ("synthetic", "synthetic")])
def test_a_kind_without_its_block_is_refused(kind, block):
    with pytest.raises(ValueError, match=f"kind {kind} needs a block '{block}'"):
        DatasetParams(kind=kind, **REST)


@pytest.mark.parametrize(("kind", "digits"), [("lspet", 5), ("lsp", 4)])
def test_an_lsp_archive_through_a_mirror(tmp_path, monkeypatch, kind, digits):
    joints = np.full((14, 3, 5), 7.0)
    joints[:, 2] = 1.0
    if kind == "lsp":
        joints = joints.transpose(1, 0, 2).copy()
        joints[2] = 0.0
    savemat(tmp_path / "joints.mat", {"joints": joints})
    Image.new("RGB", (30, 20)).save(tmp_path / "image.jpg")
    (tmp_path / "mirror").mkdir()
    with zipfile.ZipFile(tmp_path / "mirror" / "set.zip", "w") as archive:
        archive.write(tmp_path / "joints.mat", "joints.mat")
        for number in range(1, 6):
            archive.write(tmp_path / "image.jpg", f"images/im{number:0{digits}d}.jpg")
    monkeypatch.setenv("POSE_MIRROR", (tmp_path / "mirror").as_uri())
    params = archive_params(kind, "set.zip")
    sources.fetch_dataset(kind, params, tmp_path / "raw" / kind)
    source = sources.open_source(kind, params, tmp_path / "raw" / kind, tmp_path / "unpacked")
    assert source.skeleton is LSP14
    assert source.coco["images"][4] == {
        "id": 5, "file_name": f"images/im{5:0{digits}d}.jpg", "width": 30, "height": 20,
    }  # fmt: skip
    expected = 7.0 if kind == "lspet" else 6.5
    assert source.coco["annotations"][4]["keypoints"] == [expected, expected, 2] * 14


def test_the_real_extended_archive(mirror, tmp_path, monkeypatch):
    """Figures from an independent study of the archive; the mean pose's PCK was 12.05 % on 1,500 images of it."""
    monkeypatch.setenv("POSE_MIRROR", mirror.as_uri())
    params = archive_params("lspet", "lspet_dataset.zip", LSPET_SHA256)
    sources.fetch_dataset("lspet", params, tmp_path / "raw" / "lspet")
    source = sources.open_source("lspet", params, tmp_path / "raw" / "lspet", tmp_path / "unpacked")
    images, annotations = source.coco["images"], source.coco["annotations"]
    assert len(images) == len(annotations) == 9000
    sizes = np.array([[image["width"], image["height"]] for image in images], dtype=float)
    assert sizes.min(axis=0).tolist() == [51, 34]
    assert sizes.max(axis=0).tolist() == [1723, 1148]
    for entry in images[::300]:
        with Image.open(source.root / entry["file_name"]) as image:
            assert image.size == (entry["width"], entry["height"])
    joints = np.array([a["keypoints"] for a in annotations], dtype=float).reshape(-1, 14, 3)
    visible = joints[..., 2] == 2
    assert visible.mean() == pytest.approx(0.8805, abs=1e-4)
    assert not joints[~visible].any()
    unit = joints[..., :2] / sizes[:, None]
    mean = np.array([unit[visible[:, k], k].mean(axis=0) for k in range(14)])
    hit = np.linalg.norm(unit - mean, axis=2) <= 1 / 12
    assert hit[visible].mean() == pytest.approx(0.1205, abs=0.005)
