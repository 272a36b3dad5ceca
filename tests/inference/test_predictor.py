"""The predictor's geometry against a graph whose answer is known, and its numbers against evaluation's."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageDraw, ImageFilter

from pose.config import CropParams
from pose.data import views
from pose.data.crops import crop_affine, extract
from pose.data.shards import Row, Split, write_shards
from pose.errors import ConfigError, ExportError, PoseError, TrainingError
from pose.evaluate import predict as evaluate_predict
from pose.inference.predictor import Predictor
from pose.inference.weights import network_of
from pose.layers.normalise import Normalise
from pose.skeleton import LSP14
from pose.systems import SYSTEMS, create
from pose.systems.base import System

SIZE, INPUT = 96, 64
CROP = CropParams(view="image", size=SIZE)


def write_centroid_bundle(folder: Path, crop: CropParams = CROP, input_size: int = INPUT) -> Path:
    """A bundle whose joint k is the centre of brightness of colour channel k mod 3; a dark one scores 0."""
    centres = np.arange(input_size, dtype=np.float32) + 0.5
    y, x = np.meshgrid(centres, centres, indexing="ij")
    moments = np.stack([x.ravel(), y.ravel(), np.ones(input_size**2, np.float32)], axis=1)
    constants = {
        "flat": np.array([0, 3, -1], np.int64), "moments": moments.astype(np.float32), "tiny": np.float32([1e-6]),
        "dark": np.float32([127]),
        "parts": np.array([2, 1], np.int64), "colours": np.arange(LSP14.size) % 3, "last": np.array([2], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
        # What JPEG leaves around an edge is not light, nor is the padding beyond the picture.
        helper.make_node("Sub", ["float", "dark"], ["above"]),
        helper.make_node("Relu", ["above"], ["light"]),
        helper.make_node("Reshape", ["light", "flat"], ["pixels"]),
        helper.make_node("MatMul", ["pixels", "moments"], ["sums"]),
        helper.make_node("Split", ["sums", "parts"], ["first", "mass"], axis=2),
        helper.make_node("Add", ["mass", "tiny"], ["safe"]),
        helper.make_node("Div", ["first", "safe"], ["centroids"]),
        helper.make_node("Gather", ["centroids", "colours"], ["keypoints"], axis=1),
        helper.make_node("Sign", ["mass"], ["sign"]),
        helper.make_node("Squeeze", ["sign", "last"], ["seen"]),
        helper.make_node("Gather", ["seen", "colours"], ["scores"], axis=1),
        helper.make_node("Identity", ["scores"], ["presence"]),
    ]
    k = LSP14.size
    graph = helper.make_graph(
        nodes,
        "centroids",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["B", 3, input_size, input_size])],
        [
            helper.make_tensor_value_info("keypoints", TensorProto.FLOAT, ["B", k, 2]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["B", k]),
            helper.make_tensor_value_info("presence", TensorProto.FLOAT, ["B", k]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    folder.mkdir(parents=True, exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, folder / "model.onnx")
    facts = {
        "system": "centroids", "params": {}, "skeleton": "lsp14", "joints": list(LSP14.joints),
        "input_size": [input_size, input_size], "crop": crop.model_dump(), "versions": {},
    }  # fmt: skip
    (folder / "model.json").write_text(json.dumps(facts))
    return folder


def block(size: tuple[int, int], centre: tuple[int, int]) -> Image.Image:
    """A black picture with a white block about a whole pixel, 0.2 of each side wide."""
    image = Image.new("RGB", size)
    half = (size[0] // 10, size[1] // 10)
    image.paste((255, 255, 255), (centre[0] - half[0], centre[1] - half[1], centre[0] + half[0], centre[1] + half[1]))
    return image


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_centroid_bundle(tmp_path_factory.mktemp("bundle"))


def test_joints_land_where_the_light_is(bundle: Path) -> None:
    sizes = [(640, 200), (97, 311), (64, 64), (1200, 900)]
    truth = [(int(0.3 * w), int(0.7 * h)) for w, h in sizes]
    images = [block(size, centre) for size, centre in zip(sizes, truth, strict=True)]
    people = Predictor.load(bundle).predict(images, first_id=5)
    assert people.image_ids.tolist() == [5, 6, 7, 8]
    assert people.image_sizes.tolist() == [list(size) for size in sizes]
    assert np.array_equal(people.boxes[:, 2:], people.image_sizes)
    # In px of the network's input; a wrong convention of pixel centres would cost 0.17.
    apart = np.abs(people.keypoints - np.array(truth)[:, None]) * INPUT / people.image_sizes[:, None]
    assert apart.max() < 0.08


def test_dark_picture_scores_nothing(bundle: Path) -> None:
    people = Predictor.load(bundle).predict([Image.new("RGB", (200, 100)), block((200, 100), (60, 50))])
    assert people.scores[0].tolist() == [0.0] * LSP14.size
    assert people.person_scores.tolist() == [0.0, 1.0]


def test_no_pictures_give_no_people(bundle: Path) -> None:
    people = Predictor.load(bundle).predict([])
    assert len(people) == 0
    assert people.keypoints.shape == (0, LSP14.size, 2)


@pytest.mark.parametrize(("part", "value"), [(0, np.nan), (1, np.nan), (2, np.inf)])
def test_answers_that_are_not_numbers_are_refused(part: int, value: float) -> None:
    def network(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        answer = np.zeros((len(images), 14, 2)), np.zeros((len(images), 14)), np.zeros((len(images), 14))
        answer[part][1, 5] = value
        return answer

    model = Predictor("broken (folder)", network, LSP14, CROP, (INPUT, INPUT))
    with pytest.raises(PoseError, match=r"broken \(folder\) says of image 1 of 3 in this batch holds values"):
        model.predict([Image.new("RGB", (40, 30))] * 3, first_id=7)


def test_input_is_what_evaluation_feeds() -> None:
    seen: list[np.ndarray] = []

    def network(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        seen.append(images)
        b = len(images)
        return np.zeros((b, 14, 2)), np.zeros((b, 14)), np.zeros((b, 14))

    picture = scene(3, (333, 241))
    Predictor("probe", network, LSP14, CROP, (INPUT, INPUT)).predict([picture])
    stored = np.asarray(Image.open(io.BytesIO(as_stored(picture)))).transpose(2, 0, 1)
    expected = views.resize(torch.from_numpy(stored.copy())[None], (INPUT, INPUT))
    assert np.abs(seen[0].astype(int) - expected.numpy().astype(int)).max() == 0


def as_stored(picture: Image.Image) -> bytes:
    """The crop as preparation writes it into a shard."""
    encoded = io.BytesIO()
    affine = crop_affine(CROP, np.zeros(4), picture.size)
    extract(picture, affine, SIZE).save(encoded, "JPEG", quality=CROP.quality)
    return encoded.getvalue()


def scene(seed: int, size: tuple[int, int]) -> Image.Image:
    """Random soft shapes."""
    generator = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(generator.integers(0, 255, 3).tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(12):
        x, y = generator.uniform(0, 1, 2) * size
        r = generator.uniform(0.05, 0.3) * min(size)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=tuple(generator.integers(0, 255, 3).tolist()))
    return image.filter(ImageFilter.GaussianBlur(min(size) / 40))


def make_lively(system: System) -> None:
    """A fresh coordinate head answers with the centre; afterwards joints move some pixels from picture to picture."""
    system.network.eval()
    head = system.network.coordinates[-1]
    torch.nn.init.orthogonal_(head.weight)
    probe = torch.stack([torch.from_numpy(np.array(scene(9 + n, (INPUT, INPUT)))) for n in range(8)])
    with torch.inference_mode():
        moved = system.network(Normalise()(probe.permute(0, 3, 1, 2)))["coordinates"].std(dim=0).mean()
    with torch.no_grad():
        head.weight *= 4 / INPUT / moved


def test_agrees_with_evaluation(tmp_path: Path, loaded_params) -> None:
    block = loaded_params.systems["baseline2"].model_copy(update={"input_size": (INPUT, INPUT), "hidden": [64, 32]})
    torch.manual_seed(0)
    system = create("baseline2", SYSTEMS["baseline2"].Params.model_validate(block.model_dump()), LSP14)
    make_lively(system)
    pictures = [scene(seed, size) for seed, size in enumerate([(320, 240), (200, 410), (128, 128), (511, 300)])]
    rows = []
    for n, picture in enumerate(pictures):
        affine = crop_affine(CROP, np.zeros(4), picture.size)
        box = np.array([0, 0, *picture.size], np.float32)
        zeros = np.zeros((LSP14.size, 2), np.float32)
        rows.append(Row(as_stored(picture), f"{n}.png", n, n, picture.size, box, zeros, np.ones(LSP14.size), affine))
    write_shards(rows, tmp_path, "test", 10, LSP14, CropParams(view="image", size=SIZE))

    evaluated = evaluate_predict(system, Split.open(tmp_path, "test"))
    predicted = Predictor("x", network_of(system), LSP14, CROP, (INPUT, INPUT)).predict(pictures)
    scale = INPUT / evaluated.image_sizes[:, None]
    apart = np.linalg.norm((evaluated.keypoints - predicted.keypoints) * scale, axis=2)
    in_input = evaluated.keypoints * scale
    assert in_input.std(axis=0).max() > 2.0, "the network does not react to its input, so agreement proves nothing"
    # In px of the network's input: the same pixels went in, so only the arithmetic's order may differ.
    assert apart.max() <= 1e-3, apart.max(axis=1)
    assert np.abs(evaluated.presence - predicted.presence).max() < 1e-4


def test_each_box_is_looked_into(tmp_path: Path) -> None:
    """Two lights in one picture, one in another; every box sees its own, also where it reaches over the edge."""
    model = Predictor.load(write_centroid_bundle(tmp_path, CropParams(view="person", size=SIZE, margin=2.0)))
    two = block((400, 300), (100, 200))
    two.paste((255, 255, 255), (290, 45, 310, 55))
    truth = np.array([[300, 50], [100, 200], [20, 30]], np.float32)
    boxes = np.array([[260, 0, 340, 100], [30, 120, 170, 280], [-20, 0, 60, 70]], np.float32)
    people = model.in_boxes([two, block((90, 120), (20, 30))], np.array([0, 0, 1]), boxes)
    assert people.image_ids.tolist() == [0, 0, 1]
    assert people.image_sizes.tolist() == [[400, 300], [400, 300], [90, 120]]
    assert np.array_equal(people.boxes, boxes)
    # px of the network's input: the box times its padding fills it.
    side = 1.25 * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    apart = np.abs(people.keypoints - truth[:, None]) * INPUT / side[:, None, None]
    assert apart.max() < 0.15, apart.max(axis=(1, 2))
    assert people.scores.min() == 1.0


def test_many_boxes_answer_as_one_by_one(tmp_path: Path) -> None:
    model = Predictor.load(write_centroid_bundle(tmp_path, CropParams(view="person", size=SIZE, margin=2.0)))
    picture = scene(4, (300, 200))
    corners = np.random.default_rng(1).uniform(0, 150, (70, 2))
    boxes = np.concatenate([corners, corners + 50], axis=1).astype(np.float32)
    together = model.in_boxes([picture], np.zeros(70, np.int64), boxes)
    for n in (0, 31, 32, 69):
        alone = model.in_boxes([picture], np.zeros(1, np.int64), boxes[n : n + 1])
        np.testing.assert_allclose(together.keypoints[n], alone.keypoints[0], atol=1e-3)


def test_model_of_whole_images_takes_no_boxes(bundle: Path) -> None:
    with pytest.raises(ConfigError, match="trained on whole images"):
        Predictor.load(bundle).in_boxes([Image.new("RGB", (40, 40))], np.zeros(1, np.int64), [[0, 0, 20, 40]])


def test_folder_without_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"holds no model: expected a bundle"):
        Predictor.load(tmp_path)


def test_broken_bundle_is_named(tmp_path: Path) -> None:
    folder = write_centroid_bundle(tmp_path)
    (folder / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ExportError, match=r"model\.onnx does not load in ONNX Runtime"):
        Predictor.load(folder)
    (folder / "model.json").write_text('{"system": "x"}')
    with pytest.raises(ExportError, match=r"model\.json does not describe a model \(KeyError: 'skeleton'\)"):
        Predictor.load(folder)


def test_unfinished_training_is_named(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text("{}")
    with pytest.raises(TrainingError, match="has not finished"):
        Predictor.load(tmp_path)


@pytest.fixture(scope="module")
def loaded_params():
    from pose.config_loading import load

    return load("demo")
