"""Preparation: the same bytes again, splits that stay put, crops and labels that belong together."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.config import ArchiveParams, ArchiveSource, CheckParams, CropParams, DatasetParams, SplitParams
from pose.config_loading import load_dataset
from pose.data import prepare as preparing
from pose.data.check import Audit, audit
from pose.data.crops import crop_affine, transform
from pose.data.prepare import prepare, split_images
from pose.data.shards import SPLITS, Split, describe, verify
from pose.data.sources import Source, fetch_dataset
from pose.digests import tree_sha256
from pose.errors import DataError
from pose.skeleton import LSP14

CHECK = CheckParams(
    max_bad_share=0.1,
    outside_tolerance=2,
    max_limb_share=2,
    min_visible=1,
    duplicate_correlation=0.995,
    max_pixels=100_000,
)
PARAMS = DatasetParams(
    kind="lspet",
    archives=[ArchiveParams(file="a.zip", sources=[ArchiveSource(url="mirror")], licence="")],
    crop=CropParams(view="image", size=32),
    split=SplitParams(train=0.6, val=0.2, test=0.2),
    check=CHECK,
    shard_rows=8,
)
IMAGES = 40


def make_source(root: Path, images: int = IMAGES, people: int = 1) -> Source:
    """Different pictures, each with a bright dot at every joint's place."""
    root.mkdir(parents=True)
    records, annotations = [], []
    for number in range(1, images + 1):
        random = np.random.default_rng(number)
        size = (int(random.integers(50, 120)), int(random.integers(50, 120)))
        coarse = random.integers(0, 120, (9, 9, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        records.append({"id": number, "file_name": f"{number}.png", "width": size[0], "height": size[1]})
        for person in range(people):
            points = random.uniform((5, 5), (size[0] - 5, size[1] - 5), (LSP14.size, 2))
            visibility = random.choice([0, 1, 2], LSP14.size, p=[0.1, 0.1, 0.8])
            low, high = points[visibility > 0].min(axis=0), points[visibility > 0].max(axis=0)
            annotations.append(
                {"id": 1000 * person + number, "image_id": number, "category_id": 1, "iscrowd": 0, "num_keypoints": 14}
                | {"keypoints": np.column_stack([points, visibility]).ravel().tolist(), "area": 1}
                | {"bbox": [*low.tolist(), *(high - low).tolist()]}
            )
        picture.save(root / f"{number}.png")
    return Source(root, {"info": {}, "categories": [], "images": records, "annotations": annotations}, LSP14)


@pytest.fixture
def prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Source, Path]]:
    source = make_source(tmp_path / "source", people=2)
    monkeypatch.setattr(preparing, "open_source", lambda *_: source)
    prepare("toy", PARAMS, tmp_path / "raw", tmp_path / "cache", tmp_path / "out" / "toy")
    return source, tmp_path / "out" / "toy"


def test_every_person_is_in_one_split_with_its_image(prepared: tuple[Source, Path]) -> None:
    source, folder = prepared
    splits = {name: Split.open(folder, name) for name in SPLITS}
    ids = [number for split in splits.values() for number in split.annotation_ids.tolist()]
    assert sorted(ids) == sorted(annotation["id"] for annotation in source.coco["annotations"])
    images = [set(split.image_ids.tolist()) for split in splits.values()]
    assert sum(len(part) for part in images) == IMAGES
    assert describe(folder).counts == {name: len(split) for name, split in splits.items()}
    assert describe(folder).images == dict(zip(SPLITS, map(len, images), strict=True))
    assert len(list(folder.glob("train-*.arrow"))) == -(-len(splits["train"]) // 8)


def test_rows_hold_the_annotations_and_the_images_pixels(prepared: tuple[Source, Path]) -> None:
    source, folder = prepared
    annotations = {annotation["id"]: annotation for annotation in source.coco["annotations"]}
    for split in (Split.open(folder, name) for name in SPLITS):
        for row, number in enumerate(split.annotation_ids.tolist()):
            triples = np.array(annotations[number]["keypoints"]).reshape(-1, 3)
            labelled = triples[:, 2] > 0
            np.testing.assert_array_equal(split.labelled[row], labelled)
            np.testing.assert_array_equal(split.presence[row], triples[:, 2] == 2)
            np.testing.assert_allclose(split.keypoints[row][labelled], triples[labelled, :2], atol=1e-4)
            assert not split.keypoints[row][~labelled].any()

            original = Image.open(source.root / split.file_names[row])
            assert split.image_sizes[row].tolist() == list(original.size)
            crop = Image.open(io.BytesIO(split.jpeg(row).tobytes()))
            assert crop.size == (32, 32)
            expected = np.asarray(original.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
            seen = np.asarray(crop.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
            assert np.abs(seen - expected).mean() < 6
            share = split.crop_keypoints[row] / 32
            np.testing.assert_allclose(share[labelled], triples[labelled, :2] / original.size, atol=1e-5)


def test_coco_files_say_what_the_shards_say(prepared: tuple[Source, Path]) -> None:
    _, folder = prepared
    for name in SPLITS:
        split, coco = Split.open(folder, name), json.loads((folder / f"{name}.json").read_text())
        assert [annotation["id"] for annotation in coco["annotations"]] == split.annotation_ids.tolist()
        triples = np.array([annotation["keypoints"] for annotation in coco["annotations"]]).reshape(len(split), -1, 3)
        np.testing.assert_allclose(triples[..., :2], split.keypoints, atol=1e-3)
        np.testing.assert_array_equal(triples[..., 2] == 2, split.presence == 1)
        assert [annotation["num_keypoints"] for annotation in coco["annotations"]] == split.labelled.sum(1).tolist()
        boxes = np.array([annotation["bbox"] for annotation in coco["annotations"]])
        np.testing.assert_allclose(boxes[:, :2] + boxes[:, 2:], split.boxes[:, 2:], atol=2e-3)


def test_dataset_json_describes_the_train_split(prepared: tuple[Source, Path]) -> None:
    source, folder = prepared
    info = describe(folder)
    numbers = set(Split.open(folder, "train").annotation_ids.tolist())
    sizes = {image["id"]: (image["width"], image["height"]) for image in source.coco["images"]}
    train = [annotation for annotation in source.coco["annotations"] if annotation["id"] in numbers]
    for k in range(LSP14.size):
        shares, visible = [], []
        for annotation in train:
            x, y, v = annotation["keypoints"][3 * k : 3 * k + 3]
            width, height = sizes[annotation["image_id"]]
            shares += [(x / width, y / height)] if v > 0 else []
            visible.append(v == 2)
        np.testing.assert_allclose(info.mean_pose[k], np.mean(shares, axis=0), atol=1e-5)
        np.testing.assert_allclose(info.mean_pose_crop[k], 32 * np.mean(shares, axis=0), atol=1e-3)
        assert info.presence_rate[k] == pytest.approx(np.mean(visible), abs=1e-5)


def test_again_gives_the_same_bytes(prepared: tuple[Source, Path], tmp_path: Path) -> None:
    _, folder = prepared
    before = tree_sha256(folder, ["**/*"])
    (folder / "stale").touch()
    prepare("toy", PARAMS, tmp_path / "raw", tmp_path / "cache", folder)
    assert tree_sha256(folder, ["**/*"]) == before
    assert [path.name for path in folder.parent.iterdir()] == ["toy"]


def test_person_crops_follow_their_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source", people=2)
    monkeypatch.setattr(preparing, "open_source", lambda *_: source)
    crop = CropParams(view="person", size=32)
    prepare("toy", PARAMS.model_copy(update={"crop": crop}), tmp_path, tmp_path, tmp_path / "toy")
    split = Split.open(tmp_path / "toy", "val")
    for row in range(len(split)):
        expected = crop_affine(crop, split.boxes[row], (0, 0))
        np.testing.assert_allclose(split.to_crop[row], expected, rtol=1e-4, atol=1e-3)
        corners = transform(split.to_crop[row], split.boxes[row].reshape(2, 2))
        assert np.ptp(corners, axis=0).max() == pytest.approx(32 / 1.25, abs=1e-3)


@pytest.mark.parametrize("name", ["train-00000.arrow", "dataset.json"])
def test_a_flipped_byte_is_found(prepared: tuple[Source, Path], name: str) -> None:
    _, folder = prepared
    verify(folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name} is damaged"):
        verify(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=rf"{name} is damaged: its sha256 is nothing"):
        verify(folder)


# ---------------------------------------------------------------- splits


def split_of(sha256: dict[int, str], groups: tuple[tuple[int, ...], ...] = ()) -> dict[int, str]:
    images = tuple({"id": number} for number in sha256)
    audited = Audit((), (), (), {}, (), images, len(images), sha256, groups)
    return split_images(audited, SplitParams(train=0.7, val=0.15, test=0.15))


def digests(count: int) -> dict[int, str]:
    return {number: np.random.default_rng(number).bytes(32).hex() for number in range(count)}


def test_splits_that_a_dataset_says_stay_and_their_near_duplicates_go() -> None:
    """Image 1 looks like 7, which is a test image by decree; 2 and 3 only look like each other."""
    hashes = digests(10)
    images = tuple({"id": number} for number in hashes)
    audited = Audit((), (), (), {}, (), images, len(images), hashes, ((1, 7), (2, 3)))
    sides = split_images(audited, SplitParams(train=0.7, val=0.15, test=0.15), {7: "test", 8: "test"})
    assert (sides[7], sides[8]) == ("test", "test")
    assert 1 not in sides
    assert sides[2] == sides[3]
    alone = split_of(hashes)
    assert all(sides[number] == alone[number] for number in (0, 2, 4, 5, 6, 9))


def test_shares_are_met() -> None:
    sides = list(split_of(digests(4000)).values())
    assert [round(sides.count(name) / 4000, 2) for name in SPLITS] == pytest.approx([0.7, 0.15, 0.15], abs=0.02)


def test_added_or_removed_images_move_no_other() -> None:
    few, many = split_of(digests(300)), split_of(digests(900))
    assert all(many[number] == side for number, side in few.items())


def test_near_duplicates_share_a_side_and_added_ones_follow() -> None:
    sha256 = digests(600)
    before = split_of({number: digest for number, digest in sha256.items() if number < 300})
    pairs = tuple((number, number + 300) for number in range(300))
    after = split_of(sha256, pairs)
    assert all(after[number] == after[number + 300] == before[number] for number in range(300))


def test_near_duplicate_images_end_on_one_side(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source")
    records = source.coco["images"]
    for number in range(1, 21):  # 21 to 40 become scaled copies of 1 to 20
        copy = Image.open(source.root / f"{number}.png").resize((100, 100))
        copy.save(source.root / f"{number + 20}.png")
        records[number + 19].update(width=100, height=100)
    audited = audit(source, CHECK)
    assert len(audited.groups) == 20
    sides = split_images(audited, PARAMS.split)
    assert all(sides[number] == sides[number + 20] for number in range(1, 21))
    assert len(set(sides.values())) == 3


# ---------------------------------------------------------------- what cannot be prepared


def test_an_empty_split_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source", images=3)
    monkeypatch.setattr(preparing, "open_source", lambda *_: source)
    shares = SplitParams(train=0.999, val=0.001, test=0)
    with pytest.raises(DataError, match=r"val split of toy is empty: 3 usable images"):
        prepare("toy", PARAMS.model_copy(update={"split": shares}), tmp_path, tmp_path, tmp_path / "out" / "toy")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failed_audit_keeps_what_was_prepared_and_leaves_its_report(
    prepared: tuple[Source, Path], tmp_path: Path
) -> None:
    source, folder = prepared
    before = tree_sha256(folder, ["**/*"])
    for number in range(1, 6):
        (source.root / f"{number}.png").unlink()
    with pytest.raises(DataError, match=r"5 of 40 images .* missing_image: 1\.png.*toy-audit/audit\.json"):
        prepare("toy", PARAMS, tmp_path / "raw", tmp_path / "cache", folder)
    assert tree_sha256(folder, ["**/*"]) == before
    assert json.loads((tmp_path / "cache" / "toy-audit" / "audit.json").read_text())["counts"]["missing_image"] == 5


def test_a_joint_that_is_never_labelled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source(tmp_path / "source")
    for annotation in source.coco["annotations"]:
        annotation["keypoints"][3 * LSP14.index("neck") + 2] = 0
    monkeypatch.setattr(preparing, "open_source", lambda *_: source)
    with pytest.raises(DataError, match="train split of toy labels neck"):
        prepare("toy", PARAMS, tmp_path, tmp_path, tmp_path / "toy")


# ---------------------------------------------------------------- the real archive


@pytest.mark.slow
def test_real_lsp_extended(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The 9,000-image copy: known outliers, near-duplicates and the mean pose's PCK."""
    monkeypatch.setenv("POSE_MIRROR", mirror.as_uri())
    params = load_dataset("lspet", Path(__file__).resolve().parents[2])
    fetch_dataset("lspet", params, tmp_path / "raw")
    prepare("lspet", params, tmp_path / "raw", tmp_path / "cache", tmp_path / "lspet")

    info = describe(tmp_path / "lspet")
    assert sum(info.counts.values()) == 9000
    assert info.excluded == 0
    assert info.findings["joint_outside"] == 1
    assert info.findings["joint_clipped"] == 6
    assert info.findings["near_duplicate"] == 20
    assert len(list((tmp_path / "lspet").iterdir())) < 20

    test = Split.open(tmp_path / "lspet", "test")
    error = np.linalg.norm(test.keypoints / test.image_sizes[:, None] - info.mean_pose, axis=2)
    assert (error[test.labelled] <= 1 / 12).mean() == pytest.approx(0.1205, abs=0.01)
    assert test.presence.mean() == pytest.approx(0.88, abs=0.01)
