"""Collages: joints stay on their pixels, later tiles hide what is under them, splits stay apart, bytes repeat."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose.config import CollageParams, DatasetParams, SplitParams
from pose.config_loading import load_dataset
from pose.data import collage, sources
from pose.data.collage import Portrait, compose, write_archive
from pose.errors import DataError
from pose.skeleton import LSP14

ROOT = Path(__file__).resolve().parents[2]
PARAMS = CollageParams(of="lspet", images=20, width=200, height=160, people=(2, 5), overlap=0.2, seed=1)
SHARES = SplitParams(train=0.6, val=0.2, test=0.2)
COLOURS = np.array([[(k * 37) % 200 + 55, (k * 91) % 200 + 55, (k * 53) % 200 + 55] for k in range(14)])


def portrait(path: Path, number: int) -> Portrait:
    """A black picture with a square of its own colour around each joint."""
    random = np.random.default_rng(number)
    size = random.integers(120, 240, 2)
    cells = random.permutation(16)[:14]  # far enough from each other
    points = np.column_stack([cells % 4, cells // 4]) * (size - 40) / 3.2 + 20
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for colour, (x, y) in zip(COLOURS, points.astype(int), strict=True):
        pixels[y - 7 : y + 8, x - 7 : x + 8] = colour
    Image.fromarray(pixels).save(path)
    keypoints = np.column_stack([points.astype(int) + 0.5, np.full(14, 2.0)])
    box = np.concatenate([keypoints[:, :2].min(axis=0), keypoints[:, :2].max(axis=0)])
    return Portrait(path, keypoints, box, float((box[2:] - box[:2]).prod()))


@pytest.fixture
def portraits(tmp_path: Path) -> list[Portrait]:
    return [portrait(tmp_path / f"{number}.png", number) for number in range(6)]


def triples(annotation: dict) -> np.ndarray:
    return np.array(annotation["keypoints"]).reshape(-1, 3)


def test_visible_joints_are_where_their_pixels_are(portraits: list[Portrait]) -> None:
    seen = mirrored = 0
    for index in range(PARAMS.images):
        image, annotations = compose(PARAMS, portraits, LSP14, index)
        assert image.size == (200, 160)
        pixels = np.asarray(image, float)
        for annotation in annotations:
            joints = triples(annotation)
            inside = (joints[:, 0] > 2) & (joints[:, 0] < 198) & (joints[:, 1] > 2) & (joints[:, 1] < 158)
            for k in np.flatnonzero((joints[:, 2] == 2) & inside):
                found = pixels[int(joints[k, 1]), int(joints[k, 0])]
                straight, turned = (np.abs(found - COLOURS[j]).max() for j in (k, LSP14.mirror[k]))
                seen += min(straight, turned) < 40
                mirrored += turned < straight
                total = annotation["num_keypoints"]
                assert total == (joints[:, 2] > 0).sum()
    assert seen > 300
    assert mirrored > 50


def test_tiles_fill_the_image_and_hide_each_other(portraits: list[Portrait]) -> None:
    hidden = visible = 0
    for index in range(PARAMS.images):
        _, annotations = compose(PARAMS, portraits, LSP14, index)
        assert 2 <= len(annotations) <= 5
        for annotation in annotations:
            x, y, width, height = annotation["bbox"]
            assert 0 <= x < x + width <= 200
            assert 0 <= y < y + height <= 160
            assert 0 < annotation["area"] <= width * height * 1.05
            joints = triples(annotation)
            hidden += (joints[:, 2] == 1).sum()
            visible += (joints[:, 2] == 2).sum()
            seen = joints[joints[:, 2] == 2]
            assert (seen[:, :2] >= np.array([x, y]) - 1.01).all()
            assert (seen[:, :2] <= np.array([x + width, y + height]) + 1.01).all()
    assert 0.01 < hidden / visible < 0.3


def test_without_overlap_nothing_is_hidden(portraits: list[Portrait]) -> None:
    apart = PARAMS.model_copy(update={"overlap": 0.0})
    for index in range(PARAMS.images):
        _, annotations = compose(apart, portraits, LSP14, index)
        assert all((triples(annotation)[:, 2] == 2).all() for annotation in annotations)


def prepared(folder: Path, portraits: list[Portrait]) -> Path:
    """Two people to a split."""
    folder.mkdir()
    for n, split in enumerate(("train", "val", "test")):
        mine = portraits[2 * n : 2 * n + 2]
        images = [
            {"id": 2 * n + i, "file_name": p.path.name}
            | dict(zip(("width", "height"), Image.open(p.path).size, strict=True))
            for i, p in enumerate(mine)
        ]
        people = [
            {"id": 2 * n + i, "image_id": 2 * n + i, "num_keypoints": 14, "keypoints": p.keypoints.ravel().tolist()}
            | {"area": p.area, "bbox": [*p.box[:2].tolist(), *(p.box[2:] - p.box[:2]).tolist()]}
            for i, p in enumerate(mine)
        ]
        (folder / f"{split}.json").write_text(json.dumps({"images": images, "annotations": people}))
    (folder / "dataset.json").write_text(json.dumps({"skeleton": "lsp14"}))
    return folder


def test_archive_repeats_keeps_splits_apart_and_is_made_once(
    tmp_path: Path, portraits: list[Portrait], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = prepared(tmp_path / "lspet", portraits)
    used: dict[int, set[str]] = {}
    original = collage.compose

    def watched(params: CollageParams, chosen: list[Portrait], skeleton: object, index: int) -> tuple:
        used[index] = {p.path.name for p in chosen}
        return original(params, chosen, LSP14, index)

    monkeypatch.setattr(collage, "compose", watched)
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    write_archive(PARAMS, SHARES, base, tmp_path, one)
    write_archive(PARAMS, SHARES, base, tmp_path, two)
    assert hashlib.sha256(one.read_bytes()).digest() == hashlib.sha256(two.read_bytes()).digest()
    coco = json.loads(zipfile.ZipFile(one).read("annotations.json"))
    assert [image["split"] for image in coco["images"]] == ["train"] * 12 + ["val"] * 4 + ["test"] * 4
    own = {"train": {"0.png", "1.png"}, "val": {"2.png", "3.png"}, "test": {"4.png", "5.png"}}
    assert all(used[image["id"] - 1] == own[image["split"]] for image in coco["images"])
    assert len({a["id"] for a in coco["annotations"]}) == len(coco["annotations"])

    used.clear()
    write_archive(PARAMS, SHARES, base, tmp_path, one)
    assert not used
    write_archive(PARAMS.model_copy(update={"seed": 2}), SHARES, base, tmp_path, one)
    assert used


def test_the_other_dataset_comes_first(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.json is not there.*pose data prepare lspet"):
        write_archive(PARAMS, SHARES, tmp_path / "lspet", tmp_path, tmp_path / "one.zip")


def test_the_collages_of_params_yaml_say_their_split(
    tmp_path: Path, portraits: list[Portrait], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = load_dataset("collage", ROOT)
    params = DatasetParams.model_validate(block.model_dump() | {"collage": PARAMS.model_dump()})
    base = sources.Base(load_dataset("lspet", ROOT), tmp_path / "raw", prepared(tmp_path / "lspet", portraits))
    whole = sources.open_source
    monkeypatch.setattr(sources, "open_source", lambda *_: sources.Source(tmp_path, {}, LSP14))
    sources.fetch_dataset("collage", params, tmp_path / "raw", base, tmp_path / "cache")
    source = whole("collage", params, tmp_path / "raw", tmp_path / "cache")
    assert source.skeleton is LSP14
    assert set(source.sides.values()) == {"train", "val", "test"}
    assert len(source.sides) == len(source.coco["images"]) == 20
