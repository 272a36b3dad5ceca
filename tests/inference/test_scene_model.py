"""Scene models: the graph's people against the network's, and both against what evaluation says of the same images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pose.config import CropParams
from pose.config_loading import load
from pose.data.scenes import SceneRow, SceneSplit, fit, mask_shape, write_scenes
from pose.errors import PoseError
from pose.inference import scene_model
from pose.inference.choice import choose
from pose.inference.pipelines import EndToEnd
from pose.inference.scene_model import SceneModel, to_people
from pose.inference.weights import Trained
from pose.people import People
from pose.predictions import predict
from pose.skeleton import LSP14
from pose.systems import create
from pose.systems.base import System

CANVAS = (96, 64)
SIZES = [(300, 150), (90, 120), (64, 64)]


@pytest.fixture(scope="module")
def system() -> System:
    """A Keypoint R-CNN of random weights that reports whatever it finds most likely."""
    whole = load().systems["keypoint_rcnn"]
    small = {
        "input_size": CANVAS, "depth": 18, "norm": "batch", "pyramid_channels": 16, "box_hidden": 32,
        "anchors": (16, 24, 32, 48, 64), "proposals_train": 40, "proposals_test": 20, "sampled_anchors": 32,
        "sampled_proposals": 16, "detections": 5, "score_floor": 0.0, "keypoint_channels": [16],
    }  # fmt: skip
    torch.manual_seed(0)
    system = create("keypoint_rcnn", type(whole).model_validate(whole.model_dump() | small), LSP14)
    system.network.eval()
    return system


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    generator = np.random.default_rng(0)
    return [
        Image.fromarray(generator.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        for size in SIZES
    ]


def test_says_what_evaluation_says(system: System, pictures: list[Image.Image], tmp_path: Path) -> None:
    side = max(CANVAS)
    rows = []
    for n, picture in enumerate(pictures):
        stored = picture.resize(fit(picture.size, side), Image.Resampling.BILINEAR)
        encoded = io.BytesIO()
        stored.save(encoded, "JPEG", quality=100, subsampling=0)
        none = np.zeros(mask_shape(stored.size), bool)
        row = SceneRow(
            encoded.getvalue(), f"{n}.jpg", n, picture.size, np.zeros(0), np.zeros((0, 4)),
            np.zeros((0, LSP14.size, 3)), np.zeros(0), none,
        )  # fmt: skip
        rows.append(row)
    write_scenes(rows, tmp_path, "test", 10, LSP14, side)
    evaluated = predict(system, SceneSplit.open(tmp_path, "test"), batch_size=1)

    model = scene_model._from_training(Trained("x", system, CropParams(view="image", size=96), Path("w")), Path("x"))
    found = model.predict(pictures, range(len(pictures)))
    assert len(found) == len(evaluated) > 0
    assert found.image_ids.tolist() == evaluated.image_ids.tolist()
    assert found.image_sizes.tolist() == evaluated.image_sizes.tolist()
    # The stored scene went through a JPEG, the picture did not.
    np.testing.assert_allclose(found.boxes, evaluated.boxes, atol=1.5)
    np.testing.assert_allclose(found.person_scores, evaluated.person_scores, atol=0.02)


def test_graph_speaks_in_pixels_of_the_picture(system: System, pictures: list[Image.Image]) -> None:
    """What the network finds on its canvas, through `to_people`, is what the system itself decodes."""
    from pose.data import scenes

    for n, picture in enumerate(pictures):
        batch = scenes.unlabelled([picture], [n], max(CANVAS), LSP14)
        ready = system.prepare(batch)
        with torch.inference_mode():
            outputs = system.forward(system.network, ready)
            expected, found = system.decode(outputs, ready), system.people(outputs)
        parts = (found.boxes, found.scores, found.keypoints, found.confidences, found.confidences)
        answer = to_people([part.numpy() for part in parts], batch, CANVAS)
        assert len(answer) == len(expected) > 0
        for name in ("image_ids", "image_sizes", "keypoints", "scores", "presence", "boxes", "person_scores"):
            np.testing.assert_allclose(getattr(answer, name), getattr(expected, name), atol=1e-3, err_msg=name)


def write_finder(folder: Path, system: str, view: str | None, left_away: int | None = None) -> Path:
    """A graph that finds one person, in a fixed place on its canvas, in any picture; how many it left away, if any."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    k = LSP14.size
    answers = {
        "boxes": np.float32([[16, 8, 48, 40]]), "person_scores": np.float32([0.8]),
        "keypoints": np.tile(np.float32([32, 24]), (1, k, 1)),
        "scores": np.full((1, k), np.float32(0.5)), "presence": np.full((1, k), np.float32(0.5)),
    }  # fmt: skip
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in answers]
    if left_away is not None:
        answers["left_away"] = np.array(left_away, np.int64)
        outputs.append(helper.make_tensor_value_info("left_away", TensorProto.INT64, []))
    graph = helper.make_graph(
        [helper.make_node("Identity", [f"fixed_{name}"], [name]) for name in answers],
        "finder",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, CANVAS[1], CANVAS[0]])],
        outputs,
        [numpy_helper.from_array(value, f"fixed_{name}") for name, value in answers.items()],
    )
    folder.mkdir()
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx"
    )
    crop = {"view": "image", "size": 64}
    params = {"grouping": {"candidates": 7}}
    facts = {"system": system, "skeleton": "lsp14", "input_size": CANVAS, "crop": crop, "params": params}
    (folder / "model.json").write_text(json.dumps(facts | ({"view": view} if view else {})))
    return folder


@pytest.mark.parametrize(("system_name", "view"), [("keypoint_rcnn", None), ("something_newer", "scene")])
def test_bundle_of_a_scene_system_works_by_itself(tmp_path: Path, system_name: str, view: str | None) -> None:
    pipeline = choose(write_finder(tmp_path / "b", system_name, view))
    assert isinstance(pipeline, EndToEnd)
    assert pipeline.model.finds_joints
    pictures = [Image.new("RGB", size) for size in SIZES]
    people = pipeline(pictures, [4, 5, 6])
    assert people.image_ids.tolist() == [4, 5, 6]
    for n, (width, height) in enumerate(SIZES):
        factor = max(width / CANVAS[0], height / CANVAS[1])
        np.testing.assert_allclose(people.keypoints[n], np.tile([32 * factor, 24 * factor], (LSP14.size, 1)), rtol=0.02)
        expected = np.minimum(np.array([16, 8, 48, 40]) * factor, [width, height, width, height])
        np.testing.assert_allclose(people.boxes[n], expected, rtol=0.02)


@pytest.mark.parametrize("broken", ["boxes", "keypoints", "presence"])
def test_a_graph_whose_answer_is_no_number_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    k = LSP14.size
    shapes = {"boxes": (2, 4), "person_scores": (2,), "keypoints": (2, k, 2), "scores": (2, k), "presence": (2, k)}
    answer = {name: np.ones(shapes[name], np.float32) for name in scene_model.OUTPUTS}
    answer[broken][1].flat[0] = np.nan
    methods = {"run": lambda self, names, feed: [answer[name] for name in names], "get_outputs": lambda self: []}
    session = type("Session", (), methods)()
    monkeypatch.setattr(scene_model, "onnx_session", lambda path: session)
    model = SceneModel.load(write_finder(tmp_path / "b", "keypoint_rcnn", None))
    with pytest.raises(PoseError, match=r"keypoint_rcnn \(.*b\) says of image id 41 holds values that are not numbers"):
        model.predict([Image.new("RGB", SIZES[0])], [41])


def test_a_graph_that_has_no_room_for_candidates_says_so_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [Image.new("RGB", size) for size in SIZES]
    crowded = SceneModel.load(write_finder(tmp_path / "crowded", "openpose", "scene", left_away=27))
    assert len(crowded.predict(pictures, [4, 5, 6])) == 3
    said = capsys.readouterr().err
    assert said.count("warning") == 1
    assert "no room for 27 candidates in image id 4; it keeps the highest 7 of each joint" in said
    assert "a higher systems.openpose.grouping.candidates" in said
    for name, left_away in (("roomy", 0), ("older", None)):
        model = SceneModel.load(write_finder(tmp_path / name, "openpose", "scene", left_away))
        assert len(model.predict(pictures, [4, 5, 6])) == 3
        assert capsys.readouterr().err == ""


def test_what_a_graph_lacks_the_network_itself_does(
    tmp_path: Path, system: System, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Trained("deepcut", system, CropParams(view="image", size=96), Path("w"))
    monkeypatch.setattr(scene_model, "trained", lambda folder: known)
    found = SceneModel.load(write_finder(tmp_path / "b", "deepcut", "scene")).predict(pictures, range(3))
    wanted = scene_model._from_training(known, tmp_path).predict(pictures, range(3))
    np.testing.assert_array_equal(found.keypoints, wanted.keypoints)
    assert len(found) > 3, "the graph finds one person in each"


def test_detector_finds_no_joints(tmp_path: Path) -> None:
    assert not SceneModel.load(write_finder(tmp_path / "b", "person_detector", "scene")).finds_joints


def test_everyone_is_someone_elses_picture() -> None:
    """People of several pictures stay with theirs, also where one has nobody."""
    counts = {0: 2, 1: 0, 2: 3}

    def find(batch) -> People:
        n = int(batch.image_ids[0])
        zeros = np.zeros((counts[n], LSP14.size), np.float32)
        sizes = np.tile(batch.image_sizes.numpy(), (counts[n], 1))
        places = np.zeros((counts[n], LSP14.size, 2), np.float32)
        ids = np.full(counts[n], n, np.int64)
        return People(ids, sizes, places, zeros, zeros, np.zeros((counts[n], 4), np.float32), zeros[:, 0])

    model = SceneModel("x", find, LSP14, CANVAS, finds_joints=True)
    people = model.predict([Image.new("RGB", size) for size in SIZES], [0, 1, 2])
    assert people.image_ids.tolist() == [0, 0, 2, 2, 2]
    assert people.image_sizes[0].tolist() == list(SIZES[0])
    assert people.image_sizes[-1].tolist() == list(SIZES[2])
