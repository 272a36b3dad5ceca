"""`pose predict` on files, folders, globs and videos, with and without boxes, good and bad ones."""

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
from pose.inference.pipelines import EndToEnd
from pose.inference.scene_model import SceneModel
from pose.inference.video import Video
from pose.people import People
from pose.skeleton import LSP14

INPUT = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that puts every joint at a quarter of the width and half of the height."""
    return write_still(tmp_path_factory.mktemp("bundle"), {"view": "image", "size": 48})


@pytest.fixture(scope="module")
def person_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of each person's box, a quarter wider than the box."""
    return write_still(tmp_path_factory.mktemp("person"), {"view": "person", "size": 48, "margin": 2.0})


def write_still(folder: Path, crop: dict) -> Path:
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
    result = predict(photos, "--model", bundle, "--out", out, "--batch", 2, "--json")
    assert result.exit_code == DataError.exit_code
    assert len(json.loads(result.stdout)) == 4, "what was done is printed although something was not"
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
        assert found["box"] == [0, 0, width, height]
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


# ---------------------------------------------------------------- boxes


def detections(path: Path, boxes: dict[int, list[list[float]]]) -> Path:
    records = [
        {"image_id": image_id, "category_id": 1, "bbox": bbox, "score": 0.5}
        for image_id, own in boxes.items()
        for bbox in own
    ]
    path.write_text(json.dumps(records))
    return path


def test_boxes_of_a_file_are_looked_into(person_bundle: Path, photos: Path, tmp_path: Path) -> None:
    boxes = detections(tmp_path / "boxes.json", {1: [[10, 10, 20, 20], [40, 20, 30, 30]], 3: [[5, 5, 40, 40]], 99: []})
    files = [photos / "a.jpg", photos / "b.png", photos / "more/a.jpg"]
    out = tmp_path / "out"
    result = predict(*files, "--model", person_bundle, "--boxes", boxes, "--out", out, "--draw-boxes", "--draw-scores")
    assert result.exit_code == 0, result.stderr
    found = json.loads((out / "predictions.json").read_text())
    assert sorted((r["image_id"], Path(r["file_name"]).name, r["box"]) for r in found) == [
        (1, "a.jpg", [10, 10, 20, 20]), (1, "a.jpg", [40, 20, 30, 30]), (3, "a.jpg", [5, 5, 40, 40]),
    ]  # fmt: skip
    for r in found:
        x, y, side, _ = r["box"]
        assert r["score"] == pytest.approx(0.5 * 0.75)
        # A quarter of the padded box' width, half of its height.
        assert r["keypoints"][:2] == pytest.approx([x + side / 2 - 1.25 * side / 4, y + side / 2], abs=0.01)
    assert (out / "b.png.pose.jpg").is_file(), "a picture with nobody is drawn all the same"


def test_detections_of_other_pictures_are_refused(person_bundle: Path, photos: Path, tmp_path: Path) -> None:
    boxes = detections(tmp_path / "boxes.json", {139: [[0, 0, 9, 9]], 285: [[0, 0, 9, 9]]})
    result = predict(photos / "a.jpg", "--model", person_bundle, "--boxes", boxes, "--out", tmp_path / "out")
    assert result.exit_code == DataError.exit_code
    assert "detections for other images" in " ".join(result.stderr.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bbox", [[5, 5, 0, 10], [5, 5, 10, -1], [5, 5, 10]])
def test_boxes_without_area_are_named(person_bundle: Path, photos: Path, tmp_path: Path, bbox: list[float]) -> None:
    boxes = detections(tmp_path / "boxes.json", {1: [[0, 0, 9, 9], bbox]})
    result = predict(photos / "a.jpg", "--model", person_bundle, "--boxes", boxes, "--out", tmp_path / "out")
    assert result.exit_code == DataError.exit_code
    assert "detection 1 has" in " ".join(result.stderr.split())


def test_model_of_boxes_takes_the_whole_picture_as_one(person_bundle: Path, photos: Path, tmp_path: Path) -> None:
    result = predict(photos / "a.jpg", "--model", person_bundle, "--out", tmp_path / "out", "--json")
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)
    assert found["box"] == [0, 0, 80, 60]
    assert found["score"] == 0.75
    # The picture's 80 px times 1.25, as a square about its centre.
    assert found["keypoints"][:2] == pytest.approx([40 - 25, 30], abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "expected paths of pictures or videos, or --camera"),
        (("a.jpg", "--camera", "0"), "and not both"),
        (("{a}", "--boxes", "x.json", "--detector", "y"), "give one of them"),
        (("{a}", "--detector", "{person}"), "was trained on whole images"),
        (("{a}", "--boxes", "{boxes}"), "was trained on whole images"),
        (("{a}", "--maps"), "whose network this version does not have"),
        (("{a}", "--steps"), "whose network this version does not have"),
    ],
)
def test_what_does_not_go_together_is_said(
    bundle: Path, person_bundle: Path, photos: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    names = {"{a}": photos / "a.jpg", "{person}": person_bundle, "{boxes}": detections(tmp_path / "b.json", {})}
    result = predict(*(names.get(word, word) for word in arguments), "--model", bundle, "--out", tmp_path / "out")
    assert result.exit_code == ConfigError.exit_code
    assert said in " ".join(result.stderr.replace("│", " ").split())
    assert not (tmp_path / "out").exists()


def test_detector_must_be_one(person_bundle: Path, photos: Path, tmp_path: Path) -> None:
    arguments = ("--model", person_bundle, "--detector", person_bundle, "--out", tmp_path / "out")
    result = predict(photos / "a.jpg", *arguments)
    assert result.exit_code == ConfigError.exit_code
    assert "not where people are" in " ".join(result.stderr.split())


# ---------------------------------------------------------------- scores


def test_the_least_score_decides_what_of_a_scene_is_drawn_and_not_what_is_written(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(batch) -> People:
        zeros = np.zeros((2, LSP14.size), np.float32)
        boxes, scores = np.float32([[2, 2, 30, 40], [40, 10, 70, 50]]), np.float32([0.8, 0.1])
        sizes = np.tile(batch.image_sizes.numpy(), (2, 1))
        places = np.zeros((2, LSP14.size, 2), np.float32)
        return People(np.full(2, int(batch.image_ids[0])), sizes, places, zeros, zeros, boxes, scores)

    scene = EndToEnd(SceneModel("finder", find, LSP14, (64, 64), finds_joints=False))
    monkeypatch.setattr("pose.inference.choice.choose", lambda *_: scene)
    written, drawn = [], []
    for least in (0, 0.3, 0.9):
        result = predict(photos / "a.jpg", "--model", bundle, "--out", tmp_path / "out", "--min-score", least)
        assert result.exit_code == 0, result.stderr
        assert f"those scored {least:g} and more drawn" in " ".join(result.stderr.split())
        written.append(json.loads((tmp_path / "out/predictions.json").read_text()))
        drawn.append((tmp_path / "out/a.jpg.pose.jpg").read_bytes())
    assert [record["score"] for record in written[0]] == pytest.approx([0.8, 0.1])
    assert written[0] == written[1] == written[2]
    assert len(set(drawn)) == 3


def test_the_least_score_does_not_hide_whom_no_detector_found(bundle: Path, photos: Path, tmp_path: Path) -> None:
    drawn = []
    for least in (0, 0.9):
        predict(photos / "a.jpg", "--model", bundle, "--out", tmp_path / "out", "--min-score", least)
        drawn.append((tmp_path / "out/a.jpg.pose.jpg").read_bytes())
    assert drawn[0] == drawn[1]


# ---------------------------------------------------------------- videos


def test_video_becomes_an_annotated_video(bundle: Path, tmp_path: Path, make_video) -> None:
    make_video(tmp_path / "dance.mp4", 20)
    result = predict(tmp_path / "dance.mp4", "--model", bundle, "--out", tmp_path / "out", "--batch", 8)
    assert result.exit_code == 0, result.stderr
    found = json.loads((tmp_path / "out/predictions.json").read_text())
    assert [(r["image_id"], r["frame"]) for r in found] == [(n + 1, n) for n in range(20)]
    drawn = list(Video(tmp_path / "out/dance.mp4.pose.mp4").frames())
    np.testing.assert_allclose([frame.seconds for frame in drawn], [r["seconds"] for r in found], atol=2e-3)
    # Small pictures are enlarged to be read; every joint of this model is at a quarter of the width.
    assert drawn[3].image.size == (320, 240)
    assert (np.abs(np.asarray(drawn[3].image)[120, 80].astype(int) - 60) > 40).any()
    assert predict(tmp_path, "--model", bundle, "--out", tmp_path / "out", "--frames", 3).exit_code == 0
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 3, "the first run's video was not taken"


def test_video_that_breaks_off_keeps_what_was_done(bundle: Path, tmp_path: Path, make_video) -> None:
    whole = make_video(tmp_path / "whole.mp4", 60, movflags="+faststart").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (40, 30)).save(tmp_path / "last.png")
    out = tmp_path / "out"
    result = predict(tmp_path / "cut.mp4", tmp_path / "last.png", "--model", bundle, "--out", out)
    assert result.exit_code == DataError.exit_code
    said = " ".join(result.stderr.split())
    assert "cut.mp4 breaks off after" in said
    assert "1 of 2 inputs could not be read whole" in said
    found = json.loads((out / "predictions.json").read_text())
    drawn = list(Video(out / "cut.mp4.pose.mp4").frames())
    assert 20 < len(drawn) < 60
    assert len(found) == len(drawn) + 1
    assert found[-1]["file_name"].endswith("last.png")
    assert (out / "last.png.pose.jpg").is_file()


def test_interruption_keeps_what_was_done(
    bundle: Path, tmp_path: Path, make_video, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = Video.frames

    def until_ctrl_c(self: Video):
        for n, frame in enumerate(frames(self)):
            if n == 8:
                raise KeyboardInterrupt
            yield frame

    monkeypatch.setattr(Video, "frames", until_ctrl_c)
    video = make_video(tmp_path / "a.mp4", 20)
    result = predict(video, "--model", bundle, "--out", tmp_path / "out", "--batch", 4)
    assert result.exit_code == 0
    assert "interrupted; what was done until now is kept" in result.stderr
    monkeypatch.undo()
    assert len(json.loads((tmp_path / "out/predictions.json").read_text())) == 8
    assert len(list(Video(tmp_path / "out/a.mp4.pose.mp4").frames())) == 8
