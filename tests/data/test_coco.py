"""COCO in its official layout: a small archive made here, the real sample, and files that are something else."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pose.config import DatasetParams
from pose.config_loading import load_dataset
from pose.data import coco, masks, sources
from pose.data.check import Audit, audit
from pose.data.prepare import prepare
from pose.data.scenes import SceneSplit
from pose.data.shards import SPLITS, Split
from pose.data.sources import Source
from pose.errors import DataError
from pose.skeleton import COCO17, LSP14

ROOT = Path(__file__).resolve().parents[2]
SIZE = (60, 40)
WHOLE = [value for k in range(17) for value in (10 + k, 8 + k, 2)]
POLYGON = [[5, 5, 35, 5, 35, 35, 5, 35]]


def person(number: int, image: int, **changes: Any) -> dict:
    return {
        "id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "num_keypoints": 17, "keypoints": WHOLE,
        "bbox": [5, 5, 30, 30], "area": 640.5, "segmentation": POLYGON,
    } | changes  # fmt: skip


def crowd(number: int, image: int) -> dict:
    """The right half of the image, as an uncompressed run-length code."""
    half = SIZE[0] * SIZE[1] // 2
    outline = {"size": [SIZE[1], SIZE[0]], "counts": [half, half]}
    box = {"bbox": [30, 0, 30, 40], "area": half, "segmentation": outline}
    return person(number, image, iscrowd=1, num_keypoints=0, keypoints=[0] * 51, **box)


def unlabelled(number: int, image: int, **changes: Any) -> dict:
    return person(number, image, num_keypoints=0, keypoints=[0] * 51, **changes)


def annotation_file(images: range, annotations: list[dict]) -> dict:
    listed = [{"id": n, "file_name": f"{n:012d}.jpg", "width": SIZE[0], "height": SIZE[1]} for n in images]
    return {"info": {}, "images": listed, "annotations": annotations, "categories": [coco.category(COCO17)]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """An unpacked data set: train2017 has images 1 to 9, val2017 has 101 to 103."""
    folder = tmp_path / "unpacked"
    (folder / "annotations").mkdir(parents=True)
    random = np.random.default_rng(0)
    train = [person(n, n) for n in range(1, 9)] + [crowd(20, 1), unlabelled(21, 2)]
    val = [person(30, 101), crowd(31, 101), unlabelled(32, 102, bbox=[40, 10, 15, 20], segmentation=[])]
    for name, images, annotations in (
        ("train2017", range(1, 10), train),
        ("val2017", range(101, 104), val),
    ):
        (folder / name).mkdir()
        for number in images:
            coarse = Image.fromarray(random.integers(0, 256, (8, 12, 3), dtype=np.uint8))
            coarse.resize(SIZE, Image.Resampling.BICUBIC).save(folder / name / f"{number:012d}.jpg")
        save(folder, name, annotation_file(images, annotations))
    return folder


def save(root: Path, name: str, content: Any) -> Path:
    path = root / "annotations" / f"person_keypoints_{name}.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def opened(root: Path) -> Source:
    read = coco.read_coco(root)
    return Source(root, read, COCO17, coco.official_sides(read))


def audited(root: Path) -> Audit:
    return audit(opened(root), load_dataset("coco", ROOT).check)


def small() -> DatasetParams:
    params = load_dataset("coco", ROOT)
    shares = params.split.model_copy(update={"train": 0.5, "val": 0.5})
    return params.model_copy(update={"split": shares})


# ---------------------------------------------------------------- from archives to shards


def test_three_archives_become_one_source(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = tmp_path / "mirror" / "coco"
    mirror.mkdir(parents=True)
    for name, folder in (
        ("annotations_trainval2017", "annotations"),
        ("train2017", "train2017"),
        ("val2017", "val2017"),
    ):
        with zipfile.ZipFile(mirror / f"{name}.zip", "w") as archive:
            for path in sorted((root / folder).iterdir()):
                archive.write(path, f"{folder}/{path.name}")
    monkeypatch.setenv("POSE_MIRROR", (tmp_path / "mirror").as_uri())
    raw = tmp_path / "raw" / "coco"
    sources.fetch_dataset("coco", small(), raw)
    assert sorted(path.name for path in raw.iterdir()) == sorted(path.name for path in mirror.iterdir())
    source = sources.open_source("coco", small(), raw, tmp_path / "cache")
    assert source.skeleton is COCO17
    assert source.sides == dict.fromkeys((101, 102, 103), "test")
    assert all((source.root / image["file_name"]).is_file() for image in source.coco["images"])
    assert (raw / "val2017.zip").unlink() is None
    with pytest.raises(DataError, match=r"val2017\.zip is not there.*pose data fetch coco"):
        sources.open_source("coco", small(), raw, tmp_path / "cache")


def prepared(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("pose.data.prepare.open_source", lambda *_: opened(root))
    prepare("coco", small(), tmp_path / "raw", tmp_path / "cache", tmp_path / "out")
    return tmp_path / "out"


def test_crowds_and_people_without_keypoints(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = prepared(root, tmp_path, monkeypatch)
    people = {split: Split.open(folder, split).annotation_ids.tolist() for split in SPLITS}
    assert sorted(people["train"] + people["val"]) == list(range(1, 9))
    assert people["test"] == [30]

    truth = json.loads((folder / "test.json").read_text())
    assert [image["id"] for image in truth["images"]] == [101, 102, 103]
    known = {a["id"]: a for a in truth["annotations"]}
    assert {n: (a["iscrowd"], a["num_keypoints"]) for n, a in known.items()} == {30: (0, 17), 31: (1, 0), 32: (0, 0)}
    assert known[30]["area"] == 640.5
    assert known[32]["bbox"] == [40, 10, 15, 20]
    assert int(masks.decode(known[30]["segmentation"]).sum()) == 900
    assert int(masks.decode(known[31]["segmentation"]).sum()) == 1200
    assert COCO(str(folder / "test.json")).getAnnIds(iscrowd=True) == [31]

    scenes = SceneSplit.open(folder, "test")
    assert scenes.image_ids.tolist() == [101, 102, 103]
    assert scenes.annotation_ids.tolist() == [30, 32]
    assert scenes.labelled.sum(axis=1).tolist() == [17, 0]
    factor = load_dataset("coco", ROOT).scene.size / SIZE[0]  # type: ignore[union-attr]
    half, box = scenes.ignored(0), scenes.ignored(1)
    assert not scenes.ignored(2).any()
    assert half[:, half.shape[1] // 2 :].all()
    assert not half[:, : half.shape[1] // 2].any()
    assert box.sum() * 16 == pytest.approx(15 * 20 * factor**2, rel=0.02)


def test_images_without_anybody_are_measured_but_not_trained_on(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = prepared(root, tmp_path, monkeypatch)
    assert 9 not in SceneSplit.open(folder, "train").image_ids
    assert 103 in SceneSplit.open(folder, "test").image_ids


def test_a_picture_with_sixty_people(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(root, "val2017", annotation_file(range(101, 104), [person(200 + n, 102) for n in range(60)]))
    folder = prepared(root, tmp_path, monkeypatch)
    scenes = SceneSplit.open(folder, "test")
    assert [scenes.people_of(row) for row in range(3)] == [slice(0, 0), slice(0, 60), slice(60, 60)]
    assert len(Split.open(folder, "test")) == 60


def test_the_published_evaluation_finds_nothing_changed(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What OKS reads of an annotation is as published."""
    folder = prepared(root, tmp_path, monkeypatch)
    kept = json.loads((folder / "test.json").read_text())["annotations"]
    published = json.loads((root / "annotations" / "person_keypoints_val2017.json").read_text())["annotations"]
    for mine, theirs in zip(kept, published, strict=True):
        for key in ("id", "image_id", "category_id", "iscrowd", "num_keypoints", "keypoints", "bbox", "area"):
            assert mine[key] == theirs[key], key


# ---------------------------------------------------------------- files that are something else


def test_an_annotation_file_without_keypoints(root: Path) -> None:
    boxes = annotation_file(range(1, 10), [{k: v for k, v in person(1, 1).items() if k != "keypoints"}])
    save(root, "train2017", boxes)
    with pytest.raises(DataError, match=r"train2017\.json is an annotation file without keypoints"):
        coco.read_coco(root)
    boxes["categories"] = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}]
    save(root, "train2017", boxes)
    with pytest.raises(DataError, match="'person', 'bicycle'"):
        coco.read_coco(root)


def test_another_number_of_joints(root: Path) -> None:
    other = annotation_file(range(1, 10), [person(1, 1, keypoints=[1, 1, 2] * 14)])
    path = save(root, "train2017", other)
    assert "has 42 numbers in keypoints, coco17 has 51" in failure(root)
    save(root, "train2017", other | {"categories": [coco.category(LSP14)]})
    with pytest.raises(DataError, match=r"has 14 joints .* skeleton coco17 has 17"):
        coco.read_keypoints(path, COCO17)


@pytest.mark.parametrize(
    ("content", "said"),
    [("{", "is no JSON"), ([], "has no list 'images'"), ({"images": []}, "has no list 'annotations'")],
)
def test_no_annotation_file_at_all(root: Path, content: Any, said: str) -> None:
    path = save(root, "val2017", content)
    with pytest.raises(DataError, match=said):
        coco.read_coco(root)
    path.unlink()
    with pytest.raises(DataError, match=r"person_keypoints_val2017\.json cannot be read"):
        coco.read_coco(root)


def test_several_categories_leave_people(root: Path) -> None:
    bicycle = {"id": 90, "image_id": 1, "category_id": 2, "bbox": [0, 0, 9, 9]}
    content = annotation_file(range(1, 10), [person(1, 1), bicycle])
    content["categories"].append({"id": 2, "name": "bicycle"})
    assert [a["id"] for a in coco.read_keypoints(save(root, "train2017", content), COCO17)["annotations"]] == [1]


def failure(root: Path) -> str:
    with pytest.raises(DataError) as raised:
        audited(root).raise_if_failed()
    return str(raised.value)


def change(root: Path, *more: dict, images: range = range(1, 10)) -> None:
    save(root, "train2017", annotation_file(images, [*(person(n, n) for n in range(1, 9)), *more]))


def test_wrong_records_are_named(root: Path) -> None:
    change(root, person(8, 3))
    assert "duplicate_annotation_id: annotations[8] has id 8 again" in failure(root)
    change(root, person(9, 77))
    assert "annotations[8] is in image 77, which is not listed" in failure(root)
    change(root, images=range(1, 11))
    assert "missing_image: train2017/000000000010.jpg" in failure(root)


def test_boxes_outside_or_without_area(root: Path) -> None:
    """A person with keypoints there is left out; somebody without them leaves nothing to ignore."""
    change(
        root, person(9, 3, bbox=[70, 5, 10, 10], segmentation=[]), person(10, 3, bbox=[5, 5, 0, 10], segmentation=[])
    )
    found = audited(root)
    assert found.counts()["empty_box"] == 1
    assert found.counts()["box_outside"] == 1
    assert found.left_out == (10,)
    outside = {"bbox": [70, 5, 10, 10], "segmentation": []}
    change(root, unlabelled(9, 3, **outside), unlabelled(10, 4, bbox=[5, 5, 0, 0]))
    found = audited(root)
    assert found.counts()["empty_region"] == 1
    assert 9 in found.left_out


def test_a_broken_outline_gives_way_to_the_box(root: Path) -> None:
    change(root, unlabelled(9, 3, segmentation={"size": [1, 2], "counts": [2]}), person(10, 4, area=-1))
    found = audited(root)
    assert found.counts()["bad_outline"] == found.counts()["no_area"] == 1
    assert 9 not in found.outlines
    assert [region.box.tolist() for region in found.regions if region.annotation_id == 9] == [[5, 5, 35, 35]]
    assert next(p for p in found.people if p.annotation_id == 10).area == 900


def test_people_who_are_left_out_are_ignored_where_they_are(root: Path) -> None:
    broken = [float("nan") if n == 0 else value for n, value in enumerate(WHOLE)]
    change(root, person(9, 9, keypoints=broken))
    found = audited(root)
    assert found.left_out == (9,)
    region = next(region for region in found.regions if region.annotation_id == 9)
    assert not region.person


# ---------------------------------------------------------------- the real sample


def test_the_real_sample(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """154 people with keypoints in 159 images, six crowds; every annotation reaches a truth file."""
    if not (mirror / "coco" / "train2017.zip").is_file():
        pytest.skip(f"no COCO sample in {mirror}")
    monkeypatch.setenv("POSE_MIRROR", mirror.as_uri())
    params = load_dataset("coco", ROOT)
    params = params.model_copy(update={"scene": params.scene.model_copy(update={"size": 160})})  # type: ignore[union-attr]
    sources.fetch_dataset("coco", params, tmp_path / "raw")
    prepare("coco", params, tmp_path / "raw", tmp_path / "cache", tmp_path / "out")
    splits = {name: Split.open(tmp_path / "out", name) for name in SPLITS}
    assert sum(map(len, splits.values())) == 154
    assert len(splits["test"]) == 68
    truth = {name: json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in SPLITS}
    assert sum(len(value["images"]) for value in truth.values()) == 159
    everyone = [a for value in truth.values() for a in value["annotations"]]
    assert len(everyone) == 290
    assert sum(a["iscrowd"] for a in everyone) == 6
    shares = [masks.decode(a["segmentation"]).sum() / a["area"] for a in everyone if a["area"] > 500]
    assert np.percentile(shares, 2) > 0.9
    assert np.percentile(shares, 98) < 1.1
    scenes = SceneSplit.open(tmp_path / "out", "test")
    assert len(scenes) == 79
    assert sum(scenes.ignored(row).any() for row in range(79)) >= 10
