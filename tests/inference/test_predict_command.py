"""`pose predict` on files, folders and globs, good and bad ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner, Result

from pose.cli import app
from pose.errors import ConfigError, DataError
from pose.inference.frames import find, read
from pose.skeleton import LSP14

INPUT = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that puts every joint at a quarter of the width and half of the height."""
    folder = tmp_path_factory.mktemp("bundle")
    k = LSP14.size
    place = np.tile(np.float32([INPUT / 4, INPUT / 2]), (1, k, 1))
    nodes = [
        helper.make_node("Shape", ["images"], ["batch"], start=0, end=1),
        helper.make_node("Concat", ["batch", "joints2"], ["shape3"], axis=0),
        helper.make_node("Expand", ["place", "shape3"], ["keypoints"]),
        helper.make_node("Concat", ["batch", "joints"], ["shape2"], axis=0),
        helper.make_node("Expand", ["sure", "shape2"], ["scores"]),
        helper.make_node("Identity", ["scores"], ["presence"]),
    ]
    constants = {
        "place": place, "sure": np.float32([[0.75]]), "joints2": np.array([k, 2]), "joints": np.array([k]),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "still",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 3, INPUT, INPUT])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("keypoints", "scores", "presence")],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    crop = {"view": "image", "size": 48}
    facts = {"system": "still", "skeleton": "lsp14", "input_size": [INPUT, INPUT], "crop": crop}
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Five good pictures in two folders, one of them no picture at all, one cut short."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name, size in {"a.jpg": (80, 60), "b.png": (33, 90), "more/a.jpg": (64, 64), "more/c.webp": (50, 40)}.items():
        pixels = generator.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    whole = (folder / "a.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "text.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not taken from a folder")
    return folder


def predict(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], catch_exceptions=False)


def test_bad_pictures_are_named_and_the_others_done(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = predict(photos, "--model", bundle, "--out", out, "--batch", 2)
    assert result.exit_code == DataError.exit_code
    said = " ".join(result.stderr.split())
    assert "2 of 6 inputs could not be read whole" in said
    assert "cut.jpg cannot be read" in said
    assert "text.jpg is not a picture" in said

    results = json.loads((out / "predictions.json").read_text())
    by_name = {Path(r["file_name"]).relative_to(photos).as_posix(): r for r in results}
    assert set(by_name) == {"a.jpg", "b.png", "more/a.jpg", "more/c.webp"}
    for name, found in by_name.items():
        with Image.open(photos / name) as image:
            width, height = image.size
        expected = [width / 4, height / 2, 0.75] * LSP14.size
        assert found["keypoints"] == pytest.approx(expected, abs=1e-3)
        assert found["bbox"] == [0, 0, width, height]
        assert (out / f"{name}.pose.jpg").is_file()


def test_results_are_coco_results(bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = predict(photos / "a.jpg", photos / "b.png", "--model", bundle, "--out", out, "--json")
    assert result.exit_code == 0
    printed = json.loads(result.stdout)
    assert printed == json.loads((out / "predictions.json").read_text())
    coco = COCO()
    coco.dataset = {
        "images": [{"id": entry["image_id"]} for entry in printed],
        "annotations": [],
        "categories": [{"id": 1, "name": "person", "keypoints": list(LSP14.joints)}],
    }
    coco.createIndex()
    loaded = coco.loadRes(printed)
    assert len(loaded.getAnnIds()) == 2


def test_find_takes_files_folders_and_globs_once_each(photos: Path) -> None:
    names = lambda *patterns: [p.relative_to(photos).as_posix() for p in find(list(map(str, patterns)))]  # noqa: E731
    assert names(photos / "b.png", photos / "*.jpg", photos / "b.png") == ["b.png", "a.jpg", "cut.jpg", "text.jpg"]
    assert names(photos / "**" / "a.jpg") == ["a.jpg", "more/a.jpg"]
    assert names(photos / "more") == ["more/a.jpg", "more/c.webp"]
    assert names(photos / "notes.txt") == ["notes.txt"]
    with pytest.raises(ConfigError, match=r"\*\.gif' names no picture"):
        find([str(photos / "*.gif")])


def test_second_run_does_not_predict_its_own_overlays(bundle: Path, photos: Path) -> None:
    out = photos / "more" / "out"
    for _ in range(2):
        assert predict(photos / "more", "--model", bundle, "--out", out).exit_code == 0
        assert len(json.loads((out / "predictions.json").read_text())) == 2
    assert predict(out / "a.jpg.pose.jpg", "--model", bundle, "--out", photos / "again").exit_code == 0


def test_results_in_the_pictures_own_folder_leave_the_pictures_alone(bundle: Path, photos: Path) -> None:
    before = (photos / "more/a.jpg").read_bytes()
    assert predict(photos / "more/a.jpg", "--model", bundle, "--out", photos / "more").exit_code == 0
    assert (photos / "more/a.jpg").read_bytes() == before


def test_picture_is_read_upright(tmp_path: Path) -> None:
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, :20, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    upright = read(tmp_path / "turned.png")
    assert upright.size == (20, 40)
    assert upright.getpixel((10, 5)) == (255, 0, 0)
    assert upright.getpixel((10, 35)) == (0, 0, 0)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_picture_of_any_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.new("RGB", (9, 7), (200, 200, 200)).convert(mode).save(path)
    assert read(path).mode == "RGB"


def test_missing_model_is_named(photos: Path, tmp_path: Path) -> None:
    result = predict(photos, "--model", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert result.exit_code == ConfigError.exit_code
    assert "nowhere holds no model" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()
