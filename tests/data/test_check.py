"""The audit finds each thing once, names it, and leaves out what it says it leaves out."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from pose.config import CheckParams
from pose.data import duplicates
from pose.data.check import Audit, audit
from pose.data.findings import KINDS
from pose.data.sources import Source
from pose.errors import DataError
from pose.skeleton import COCO17, LSP14

PARAMS = CheckParams(
    max_bad_share=0.5,
    outside_tolerance=2,
    max_limb_share=0.6,
    min_visible=6,
    duplicate_correlation=0.995,
    max_pixels=100_000,
)
SIZE = (80, 120)
IMAGES = 8

STANDING = {
    "right_ankle": (34, 108), "right_knee": (34, 88), "right_hip": (34, 66), "left_hip": (46, 66),
    "left_knee": (46, 88), "left_ankle": (46, 108), "right_wrist": (22, 66), "right_elbow": (24, 50),
    "right_shoulder": (30, 32), "left_shoulder": (50, 32), "left_elbow": (56, 50), "left_wrist": (58, 66),
    "neck": (40, 30), "head_top": (40, 10),
}  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Source:
    """Eight different pictures with one standing person each; the audit finds nothing."""
    random = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, IMAGES + 1):
        coarse = random.integers(0, 256, (12, 8, 3), dtype=np.uint8)
        file = f"{number}.jpg"
        Image.fromarray(coarse).resize(SIZE, Image.Resampling.BICUBIC).save(tmp_path / file, quality=90)
        images.append({"id": number, "file_name": file, "width": SIZE[0], "height": SIZE[1]})
        triples = [value for joint in LSP14.joints for value in (*STANDING[joint], 2)]
        annotations.append(
            {"id": 100 + number, "image_id": number, "category_id": 1, "keypoints": triples, "num_keypoints": 14}
            | {"bbox": [22, 10, 36, 98], "area": 36 * 98, "iscrowd": 0}
        )
    return Source(tmp_path, {"info": {}, "categories": [], "images": images, "annotations": annotations}, LSP14)


def move(source: Source, number: int, joint: str, x: float, y: float, v: float = 2) -> None:
    k = LSP14.index(joint)
    source.coco["annotations"][number - 1]["keypoints"][3 * k : 3 * k + 3] = [x, y, v]


def only_finding(audited: Audit, kind: str):
    assert audited.counts() == {kind: 1}
    return audited.findings[0]


def test_a_sound_dataset_has_no_findings(source: Source) -> None:
    audited = audit(source, PARAMS)
    assert audited.findings == ()
    assert audited.left_out == ()
    assert [person.annotation_id for person in audited.people] == list(range(101, 109))
    audited.raise_if_failed()


# ---------------------------------------------------------------- images


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BROKEN_IMAGES: dict[str, Callable[[Path], object]] = {
    "missing_image": Path.unlink,
    "unreadable_image": lambda path: path.write_text("<html>404 not found</html>"),
    "truncated_image": cut_in_half,
    "too_many_pixels": lambda path: Image.new("L", (400, 300)).save(path),
    "size_mismatch": lambda path: Image.new("RGB", (SIZE[1], SIZE[0])).save(path),
}


@pytest.mark.parametrize("kind", BROKEN_IMAGES)
def test_broken_images_are_left_out_and_named(source: Source, kind: str) -> None:
    BROKEN_IMAGES[kind](source.root / "3.jpg")
    audited = audit(source, PARAMS)
    finding = only_finding(audited, kind)
    assert (finding.severity, finding.file, finding.image_id) == ("bad", "3.jpg", 3)
    assert audited.left_out == (103,)
    assert [image["id"] for image in audited.images] == [1, 2, 4, 5, 6, 7, 8]
    audited.raise_if_failed()


def test_more_bad_records_than_allowed_stop_with_the_culprit_named(source: Source) -> None:
    cut_in_half(source.root / "3.jpg")
    audited = audit(source, PARAMS.model_copy(update={"max_bad_share": 0.1}))
    with pytest.raises(DataError, match=r"1 of 8 images \(12\.5%\) are left out.*truncated_image: 3\.jpg"):
        audited.raise_if_failed()


def test_a_bomb_is_not_decoded(source: Source) -> None:
    Image.new("1", (20_000, 20_000)).save(source.root / "2.jpg", format="PNG")
    assert only_finding(audit(source, PARAMS), "too_many_pixels").file == "2.jpg"


def test_exif_rotation_is_told(source: Source) -> None:
    image = Image.open(source.root / "5.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(source.root / "5.jpg", exif=exif, quality=90)
    assert "orientation 6" in only_finding(audit(source, PARAMS), "exif_orientation").message


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_other_colour_modes_are_fine(source: Source, mode: str) -> None:
    image = Image.open(source.root / "1.jpg").convert(mode)
    image.save(source.root / "1.jpg", format="JPEG" if mode in ("L", "CMYK") else "PNG")
    assert audit(source, PARAMS).findings == ()


# ---------------------------------------------------------------- structure


def test_ids_files_and_fields(source: Source) -> None:
    images, annotations = source.coco["images"], source.coco["annotations"]
    breakages: list[tuple[str, str, Callable[[dict], object]]] = [
        ("duplicate_image_id", "id 1, as 1.jpg has", lambda coco: coco["images"][1].update(id=1)),
        ("duplicate_file", "images 1 and 2", lambda coco: coco["images"][1].update(file_name="1.jpg")),
        ("duplicate_annotation_id", "id 101 again", lambda coco: coco["annotations"][1].update(id=101)),
        ("unknown_image", "image 999", lambda coco: coco["annotations"][1].update(image_id=999)),
        ("missing_key", "images[1] has no 'width'", lambda coco: coco["images"][1].pop("width")),
        ("missing_key", "annotations[1] has no 'bbox'", lambda coco: coco["annotations"][1].pop("bbox")),
        ("missing_key", "annotations[1] has image_id = '2'", lambda coco: coco["annotations"][1].update(image_id="2")),
        ("missing_key", "2 numbers in bbox", lambda coco: coco["annotations"][1].update(bbox=[1, 2])),
        ("joint_count", "39 numbers", lambda coco: coco["annotations"][1].update(keypoints=[1.0] * 39)),
    ]
    for kind, message, breakage in breakages:
        source.coco.update(copy.deepcopy({"images": images, "annotations": annotations}))
        breakage(source.coco)
        audited = audit(source, PARAMS)
        assert audited.counts()[kind] == 1, kind
        with pytest.raises(DataError, match=kind) as raised:
            audited.raise_if_failed()
        assert message in str(raised.value)
        json.dumps(audited.to_json(), allow_nan=False)
        audited.contact_sheet(source, source.root / "sheet.png")


def test_an_empty_dataset_is_an_error(source: Source) -> None:
    source.coco["annotations"] = []
    with pytest.raises(DataError, match="not one annotation"):
        audit(source, PARAMS).raise_if_failed()
    source.coco["images"] = []
    with pytest.raises(DataError, match="not one annotation"):
        audit(source, PARAMS).raise_if_failed()


@pytest.mark.parametrize(
    ("field", "at", "value"),
    [
        ("keypoints", 4, "abc"), ("keypoints", 5, "2"), ("keypoints", 0, None), ("keypoints", 0, [1, 2]),
        ("keypoints", 0, True), ("bbox", 2, "36"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("labelled", [14, 0])
def test_what_is_no_number_is_named(source: Source, field: str, at: int, value: object, labelled: int) -> None:
    record = source.coco["annotations"][1]
    record["num_keypoints"] = labelled
    record[field][at] = value
    audited = audit(source, PARAMS)
    finding = next(finding for finding in audited.findings if finding.severity == "error")
    assert (finding.kind, finding.image_id, finding.annotation_id) == ("missing_key", 2, 102)
    with pytest.raises(DataError) as raised:
        audited.raise_if_failed()
    assert f"2.jpg: annotations[1], id 102, has {field}[{at}] = {value!r}, expected a number" in str(raised.value)


# ---------------------------------------------------------------- people


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_nan_joint_leaves_its_person_out(source: Source, value: float) -> None:
    move(source, 4, "left_knee", value, 20)
    audited = audit(source, PARAMS)
    finding = only_finding(audited, "nan_joint")
    assert (finding.severity, finding.annotation_id, finding.joints) == ("bad", 104, ("left_knee",))
    assert audited.left_out == (104,)
    json.dumps(audited.to_json(), allow_nan=False)


def test_what_an_unlabelled_joint_holds_is_nothing(source: Source) -> None:
    move(source, 4, "left_knee", math.nan, -1e9, v=0)
    audited = audit(source, PARAMS)
    assert audited.findings == ()
    assert audited.people[3].keypoints[LSP14.index("left_knee")].tolist() == [0, 0, 0]


def test_unknown_visibility_leaves_its_person_out(source: Source) -> None:
    move(source, 4, "neck", 40, 30, v=3)
    audited = audit(source, PARAMS)
    assert "neck has visibility 3" in only_finding(audited, "visibility_flag").message
    assert audited.left_out == (104,)


@pytest.mark.parametrize(
    ("x", "y", "clipped"), [(-1.5, 66, (0, 66)), (81.9, 66, (80, 66)), (22, 121, (22, 120)), (80, 120, None)]
)
def test_joints_just_outside_are_clipped(source: Source, x: float, y: float, clipped: tuple | None) -> None:
    move(source, 1, "right_wrist", x, y)
    audited = audit(source, PARAMS)
    told = [finding for finding in audited.findings if finding.kind == "joint_clipped"]
    assert len(told) == (clipped is not None)
    keypoints = audited.people[0].keypoints[LSP14.index("right_wrist")]
    assert keypoints.tolist() == [*(clipped or (x, y)), 2]


@pytest.mark.parametrize(("x", "y"), [(-2.1, 66), (300, 66), (22, 122.5)])
def test_joints_far_outside_are_left_out_and_their_person_kept(source: Source, x: float, y: float) -> None:
    move(source, 1, "right_wrist", x, y)
    audited = audit(source, PARAMS)
    finding = only_finding(audited, "joint_outside")
    assert (finding.severity, finding.joints) == ("bad", ("right_wrist",))
    assert audited.left_out == ()
    assert audited.people[0].keypoints[LSP14.index("right_wrist")].tolist() == [0, 0, 0]


def test_a_box_that_follows_a_wrong_joint_is_mended(source: Source) -> None:
    move(source, 1, "right_wrist", 386, 66)
    source.coco["annotations"][0]["bbox"] = [24, 10, 362, 98]
    audited = audit(source, PARAMS)
    assert audited.counts() == {"joint_outside": 1, "box_outside": 1}
    assert audited.people[0].box.tolist() == [24, 10, 58, 108]


def leave_only(source: Source, number: int, joints: tuple[str, ...]) -> None:
    for joint in set(LSP14.joints).difference(joints):
        move(source, number, joint, 0, 0, v=0)


@pytest.mark.parametrize("joints", [("left_shoulder", "right_shoulder"), ("neck",)])
def test_a_box_that_leaves_the_image_is_clipped_to_it(source: Source, joints: tuple[str, ...]) -> None:
    leave_only(source, 1, joints)
    source.coco["annotations"][0]["bbox"] = [15, -6, 72, 114]
    audited = audit(source, PARAMS)
    assert audited.counts() == {"box_outside": 1, "few_visible": 1}
    assert audited.left_out == ()
    assert audited.people[0].box.tolist() == [15, 0, 80, 108]


def test_a_clipped_box_holds_the_joints_that_were_beyond_it(source: Source) -> None:
    leave_only(source, 1, ("neck", "right_wrist"))
    move(source, 1, "neck", 40, 119)
    source.coco["annotations"][0]["bbox"] = [30, 10, 70, 98]
    assert audit(source, PARAMS).people[0].box.tolist() == [22, 10, 80, 119]


def test_a_box_that_no_joint_made_outlives_a_wrong_joint(source: Source) -> None:
    move(source, 1, "right_wrist", 386, 66)
    source.coco["annotations"][0]["bbox"] = [15, 5, 75, 110]
    audited = audit(source, PARAMS)
    assert audited.counts() == {"joint_outside": 1, "box_outside": 1}
    assert audited.people[0].box.tolist() == [15, 5, 80, 115]


def test_a_box_that_misses_the_image_becomes_that_of_the_joints(source: Source) -> None:
    source.coco["annotations"][0]["bbox"] = [90, 10, 36, 98]
    assert audit(source, PARAMS).people[0].box.tolist() == [22, 10, 58, 108]


@pytest.mark.parametrize("box", [[22, 10, 0, 98], [22, 10, 36, 0], [22, 10, -5, 98], [math.nan, 10, 5, 5]])
def test_a_box_without_area_leaves_its_person_out(source: Source, box: list[float]) -> None:
    source.coco["annotations"][6]["bbox"] = box
    audited = audit(source, PARAMS)
    assert only_finding(audited, "empty_box").annotation_id == 107
    assert audited.left_out == (107,)


def test_people_without_joints_are_left_out(source: Source) -> None:
    source.coco["annotations"][6]["keypoints"] = [0] * 42
    audited = audit(source, PARAMS)
    assert only_finding(audited, "no_joints").annotation_id == 107
    assert audited.left_out == (107,)


def test_few_visible_joints_are_a_warning(source: Source) -> None:
    for joint in LSP14.joints[5:]:
        move(source, 2, joint, *STANDING[joint], v=1)
    audited = audit(source, PARAMS)
    assert "5 joints are visible" in only_finding(audited, "few_visible").message
    assert audited.left_out == ()


def test_coincident_joints_are_a_warning(source: Source) -> None:
    move(source, 2, "right_wrist", 24.5, 50.5)
    finding = only_finding(audit(source, PARAMS), "coincident_joints")
    assert set(finding.joints) == {"right_wrist", "right_elbow"}


def test_an_implausible_limb_is_a_warning_and_names_its_ends(source: Source) -> None:
    move(source, 2, "right_wrist", 24, 112)  # the forearm is 62 of the person's 102 px
    finding = only_finding(audit(source, PARAMS), "long_limb")
    assert (finding.joints, finding.annotation_id) == (("right_wrist", "right_elbow"), 102)
    assert "62 px, 61% of the person" in finding.message
    assert audit(source, PARAMS.model_copy(update={"max_limb_share": 0.62})).findings == ()


def test_swapped_hips_are_suspected(source: Source) -> None:
    for side, other in (("left_hip", "right_hip"), ("right_hip", "left_hip")):
        move(source, 2, side, *STANDING[other])
    assert only_finding(audit(source, PARAMS), "left_right").annotation_id == 102


def test_seen_from_behind_is_not_suspected(source: Source) -> None:
    for joint in LSP14.joints:
        x, y = STANDING[joint]
        move(source, 2, joint, 80 - x, y)
    assert audit(source, PARAMS).findings == ()


def test_other_skeletons_are_audited_too(source: Source) -> None:
    head = {"nose": (40, 20), "left_eye": (42, 17), "right_eye": (38, 17), "left_ear": (45, 18), "right_ear": (35, 18)}
    points = STANDING | head
    for annotation in source.coco["annotations"]:
        annotation["keypoints"] = [value for joint in COCO17.joints for value in (*points[joint], 2)]
    assert audit(Source(source.root, source.coco, COCO17), PARAMS).findings == ()


# ---------------------------------------------------------------- near-duplicates


def test_near_duplicates_are_grouped_whatever_their_scale_and_compression(source: Source) -> None:
    image = Image.open(source.root / "2.jpg")
    image.resize((120, 180), Image.Resampling.LANCZOS).save(source.root / "7.jpg", quality=70)
    source.coco["images"][6].update(width=120, height=180)
    audited = audit(source, PARAMS)
    finding = only_finding(audited, "near_duplicate")
    assert (finding.file, finding.other_file) == ("2.jpg", "7.jpg")
    assert audited.groups == ((2, 7),)


def test_identical_bytes_are_told_as_such(source: Source) -> None:
    (source.root / "7.jpg").write_bytes((source.root / "2.jpg").read_bytes())
    assert "the same bytes as 7.jpg" in only_finding(audit(source, PARAMS), "near_duplicate").message


def test_correlated_pairs_against_numpy() -> None:
    random = np.random.default_rng(1)
    pictures = [Image.fromarray(random.integers(0, 256, (40, 30), dtype=np.uint8)) for _ in range(50)]
    pictures[31] = pictures[4].resize((90, 60))
    flat = Image.new("L", (30, 40), 128)
    thumbnails = np.stack([duplicates.thumbnail(picture) for picture in [*pictures, flat]])
    expected = np.corrcoef(thumbnails[:50])
    pairs = duplicates.correlated_pairs(thumbnails, 0.2)
    found = {(i, j): r for i, j, r in pairs}
    assert set(found) == {(i, j) for i, j in np.argwhere(np.triu(expected, 1) > 0.2).tolist()}
    assert (4, 31) in found
    for (i, j), correlation in found.items():
        assert correlation == pytest.approx(expected[i, j], abs=1e-5)


def test_blocks_do_not_lose_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbnails = np.random.default_rng(2).normal(size=(23, 40)).astype(np.float32)
    thumbnails /= np.linalg.norm(thumbnails, axis=1, keepdims=True)
    whole = duplicates.correlated_pairs(thumbnails, 0.1)
    monkeypatch.setattr(duplicates, "BLOCK", 5)
    assert [pair[:2] for pair in duplicates.correlated_pairs(thumbnails, 0.1)] == [pair[:2] for pair in whole]


def test_groups_are_connected_components() -> None:
    assert duplicates.groups([(7, 9), (1, 4), (9, 2), (4, 5), (1, 5)]) == [[1, 4, 5], [2, 7, 9]]


# ---------------------------------------------------------------- reports


def test_reports_say_everything(source: Source, tmp_path: Path) -> None:
    cut_in_half(source.root / "3.jpg")
    move(source, 1, "right_wrist", 300, 66)
    move(source, 2, "right_wrist", 24, 118)
    audited = audit(source, PARAMS)

    console = Console(width=200, record=True, file=(tmp_path / "table.txt").open("w"))
    console.print(audited.summary())
    table = console.export_text()
    report = json.loads(json.dumps(audited.to_json()))
    for kind in ("truncated_image", "joint_outside", "long_limb"):
        assert kind in table
        assert report["counts"][kind] == 1
    assert "7 of 8 people in 7 of 8 images" in table
    assert report["left_out"] == [103]
    assert {finding["severity"] for finding in report["findings"]} == {"bad", "warning"}

    audited.contact_sheet(source, tmp_path / "sheet.png")
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.height == 3 * (sheet.width // 6 + 44)  # a row for each kind


def test_every_kind_has_a_severity_and_a_meaning() -> None:
    assert {kind.severity for kind in KINDS.values()} == {"error", "bad", "warning"}
    assert all(kind.meaning for kind in KINDS.values())
