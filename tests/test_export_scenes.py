"""A scene system's exported files find the people that the network finds, in any number; others are refused."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from scene_examples import coarse_noise

from pose.config import CropParams, ExportParams
from pose.config_loading import load
from pose.data.scenes import SceneLoader, SceneSplit
from pose.errors import ExportError
from pose.export import ExportReport, export, exported_network, onnx_network
from pose.export_scenes import OUTPUTS, DeployedScene, check_parity, inputs
from pose.skeleton import LSP14
from pose.systems import create
from pose.systems.base import System

PARAMS = ExportParams(tolerance_px=0.01, parity_images=4, latency_runs=1)
CROP = CropParams(view="person", size=48)
TINY = {
    "input_size": (96, 64), "depth": 18, "pyramid_channels": 32, "box_hidden": 64, "anchors": (16, 24, 32, 48, 64),
    "proposals_test": 40, "detections": 10, "score_floor": 0.6925, "keypoint_channels": [32, 32],
}  # fmt: skip

# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> SceneSplit:
    sizes = [(90, 70), (60, 120), (200, 80), (64, 64), (96, 64)]
    return coarse_noise(tmp_path_factory.mktemp("prepared"), 96, sizes)


def trained() -> System:
    """A system whose every number, batch statistics included, is far from its initial value."""
    whole = load().systems["keypoint_rcnn"]
    torch.manual_seed(4)
    system = create("keypoint_rcnn", type(whole).model_validate({**whole.model_dump(), **TINY}), LSP14)
    with torch.no_grad():
        for key, buffer in system.network.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand_like(buffer))
        heads = system.network.roi_heads
        heads.box_predictor.cls_score.weight.mul_(8)
        heads.keypoint_predictor.kps_score_lowres.weight.mul_(4)
    system.network.eval()
    return system


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, split: SceneSplit):
    directory = tmp_path_factory.mktemp("scenes")
    system = trained()
    save_file(system.network.state_dict(), directory / "trained.safetensors")
    report = export(
        "keypoint_rcnn", system, directory / "trained.safetensors", split, CROP, directory / "bundle", PARAMS, threads=1
    )
    return system, directory / "bundle", report


@torch.no_grad()
def expected(system: System, split: SceneSplit, row: int) -> list[np.ndarray]:
    """What evaluation has of one image, in pixels of the input."""
    batch = system.prepare(next(SceneLoader(split, 1).batches(np.array([row]), 1, None, 0, 0)))
    found = system.people(system.forward(system.network, batch))
    parts = (found.boxes, found.scores, found.keypoints, found.confidences, found.confidences)
    return [part.numpy() for part in parts]


@pytest.mark.slow
def test_files_find_who_the_network_finds(exported, split: SceneSplit) -> None:
    system, bundle, report = exported
    assert ExportReport.load(bundle) == report
    assert 0 <= max(report.parity_px.values()) <= PARAMS.tolerance_px
    assert report.batch == 1
    described = json.loads((bundle / "model.json").read_text())
    assert (described["system"], described["view"], described["input_size"]) == ("keypoint_rcnn", "scene", [96, 64])
    counts = set()
    runs = [onnx_network(bundle / "model.onnx", 1, OUTPUTS), exported_network(bundle / "model.pt2")]
    for row in range(len(split)):
        wanted = expected(system, split, row)
        counts.add(len(wanted[0]))
        for run in runs:
            for name, ours, theirs in zip(OUTPUTS, wanted, run(inputs(system, split, np.array([row]))), strict=True):
                np.testing.assert_allclose(theirs, ours, atol=1e-3 if name in ("boxes", "keypoints") else 1e-5)
    assert len(counts) > 1, "different numbers of people must be found for this to prove anything"


@pytest.mark.slow
def test_a_picture_in_which_nobody_is_found(exported) -> None:
    system, bundle, _ = exported
    blank = np.full((1, 3, 64, 96), 124, np.uint8)
    with torch.no_grad():
        wanted = DeployedScene(system).eval()(torch.from_numpy(blank))
    assert len(wanted[0]) == 0
    for run in (onnx_network(bundle / "model.onnx", 1, OUTPUTS), exported_network(bundle / "model.pt2")):
        answer = run(blank)
        assert [part.shape for part in answer] == [tuple(part.shape) for part in wanted]


@pytest.mark.slow
def test_the_onnx_file_is_whole_and_the_program_needs_none_of_our_code(exported, tmp_path: Path) -> None:
    _, bundle, _ = exported
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.output] == list(OUTPUTS)
    here = str(Path(__file__).resolve().parent.parent).encode()
    assert here not in (bundle / "model.onnx").read_bytes()
    program = (
        "import sys, torch, torchvision; m = torch.export.load(sys.argv[1]).module(); "
        "print(m(torch.zeros(1, 3, 64, 96, dtype=torch.uint8))[0].shape[1], 'pose' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle / "model.pt2")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "4 False"


# ---------------------------------------------------------------- what is refused


def answer(people: int = 3) -> tuple[np.ndarray, ...]:
    random = np.random.default_rng(2)
    low = random.uniform(0, 40, (people, 2))
    boxes = np.concatenate([low, low + 20], axis=1).astype(np.float32)
    keypoints = random.uniform(0, 60, (people, 14, 2)).astype(np.float32)
    scores = random.uniform(0.2, 0.9, (people, 14)).astype(np.float32)
    return boxes, np.linspace(0.9, 0.5, people, dtype=np.float32), keypoints, scores, scores


def changed(part: int, where: tuple, value: float) -> tuple[np.ndarray, ...]:
    other = [array.copy() for array in answer()]
    other[part][where] += value
    return tuple(other)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (changed(0, (1, 2), 0.3), r"image im1\.jpg .*person 1 of 3 \(score 0\.700\) is lacking; .* 0\.3 px away"),
        (changed(1, (2,), 0.01), r"im1\.jpg .*person_scores differ by up to 0\.01"),
        (changed(2, (0, slice(3)), 2.0), r"3 of 42 joints in 1 images are more than 0\.01 px"),
        (changed(3, (slice(None), 5), 0.1), r"3 of 42 joints"),
        (changed(0, (0, 0), np.nan), r"im1\.jpg .* not numbers"),
        (tuple(part[:2] for part in answer()), r"person 2 of 3 .* is lacking"),
        (tuple(part[:0] for part in answer()), r"person 0 of 3 .* is lacking"),
    ],
)
def test_other_answers_are_refused_by_image_and_person(split: SceneSplit, other, message: str) -> None:
    images, rows = np.zeros((1, 3, 64, 96), np.uint8), np.array([1])
    with pytest.raises(ExportError, match=message):
        check_parity("tiny", lambda _: other, images, [answer()], split, rows, 0.01, 0.05)


def test_more_people_are_refused_and_those_at_the_floor_are_not(split: SceneSplit) -> None:
    images, rows = np.zeros((1, 3, 64, 96), np.uint8), np.array([1])
    fewer = tuple(part[:2] for part in answer())
    with pytest.raises(ExportError, match=r"person 2 of 3 \(score 0\.500\) is invented"):
        check_parity("tiny", lambda _: answer(), images, [fewer], split, rows, 0.01, 0.05)
    assert check_parity("tiny", lambda _: answer(), images, [fewer], split, rows, 0.01, 0.4999) == 0
    assert check_parity("tiny", lambda _: fewer, images, [answer()], split, rows, 0.01, 0.4999) == 0
    nobody = tuple(part[:0] for part in answer())
    assert check_parity("tiny", lambda _: nobody, images, [nobody], split, rows, 0.01, 0.05) == 0


def test_a_tie_among_many_joints_is_allowed_and_does_not_count(split: SceneSplit) -> None:
    images, rows = np.zeros((1, 3, 64, 96), np.uint8), np.array([1])
    ours, theirs = answer(10), answer(10)
    theirs[2][4, 4] += 1.0
    theirs[2][5, 5, 0] += 0.005
    assert check_parity("tiny", lambda _: theirs, images, [ours], split, rows, 0.01, 0.05) == pytest.approx(
        0.005, rel=0.01
    )


def test_what_comes_after_the_people_is_not_compared(split: SceneSplit) -> None:
    images, rows = np.zeros((1, 3, 64, 96), np.uint8), np.array([1])
    ours, theirs = (*answer(), np.array(3)), (*answer(), np.array(4))
    assert check_parity("tiny", lambda _: theirs, images, [ours], split, rows, 0.01, 0.05) == 0
