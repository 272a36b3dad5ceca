"""KAPAO's exported files, suppression and fusion within, find the people that the network finds."""

import logging

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scene_examples import coarse_noise

from pose.config import CropParams, ExportParams
from pose.config_loading import load
from pose.data.scenes import SceneLoader
from pose.export import export, exported_network, onnx_network
from pose.export_scenes import OUTPUTS, inputs
from pose.inference.scene_model import SceneModel
from pose.skeleton import LSP14
from pose.systems import create

pytestmark = pytest.mark.slow
SIZE = (128, 64)
PARAMS = ExportParams(tolerance_px=0.01, parity_images=4, latency_runs=1)
CROP = CropParams(view="person", size=48)

# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    sizes = [(90, 70), (60, 120), (200, 80), (64, 64), (128, 64)]
    return coarse_noise(tmp_path_factory.mktemp("prepared"), 128, sizes)


def answering(rescore):
    """A system that sees people and joints in noise, and joins some of them."""
    whole = load().systems["kapao"]
    fusion = whole.fusion.model_dump() | {"people": 10, "person_floor": 0.35, "fusion_floor": 0.4, "reach": 0.6}
    fusion["rescore"] = rescore
    changes = {"input_size": SIZE, "width": 0.125, "fusion": fusion}
    torch.manual_seed(4)
    system = create("kapao", type(whole).model_validate({**whole.model_dump(), **changes}), LSP14)
    with torch.no_grad():
        for key, tensor in system.network.state_dict().items():
            if key.endswith(("running_mean", "running_var")):
                tensor.add_(0.2 * torch.rand_like(tensor))
            elif tensor.ndim == 4:
                tensor.normal_(0, (4 / tensor[0].numel()) ** 0.5)
        noise = torch.randint(0, 2, (2, 3, 4, 8)).repeat_interleave(16, 2).repeat_interleave(16, 3) * 3.0 - 1.5
        system.network.eval()
        for layer, raw in zip(system.yolo.detect.m, system.network(noise)["levels"], strict=True):
            # As sure and unsure as a trained network is.
            layer.weight.mul_(1.5 / raw.std())
            layer.bias.view(3, -1)[:, 4:20] = 0
            layer.bias.view(3, -1)[:, 5] = 1
    return system


@pytest.fixture(scope="module", params=[False, True], ids=["as found", "rescored"])
def exported(request, tmp_path_factory, split):
    directory = tmp_path_factory.mktemp("scenes")
    system = answering(request.param)
    save_file(system.network.state_dict(), directory / "trained.safetensors")
    report = export(
        "kapao", system, directory / "trained.safetensors", split, CROP, directory / "bundle", PARAMS, threads=1
    )
    return system, directory / "bundle", report


def test_files_say_what_the_network_says(split, exported):
    system, bundle, report = exported
    assert max(report.parity_px.values()) < 0.01
    images = inputs(system, split, np.arange(5))
    runs = [onnx_network(bundle / "model.onnx", 1, OUTPUTS), exported_network(bundle / "model.pt2")]
    fused = 0
    for row in range(5):
        batch = system.prepare(next(SceneLoader(split, 1).batches(np.array([row]), 1, None, 0, 0)))
        with torch.no_grad():
            found = system.people(system.forward(system.network, batch))
        wanted = (found.boxes, found.scores, found.keypoints, found.confidences, found.confidences)
        # A person's joints without keypoint objects share one confidence, the others have each their own.
        fused += sum(len(row.unique()) - 1 for row in found.confidences)
        assert len(found.scores) > 1
        for run in runs:
            for part, ours in zip(wanted, run(images[row][None]), strict=True):
                np.testing.assert_allclose(ours, part.numpy(), atol=2e-3)
    assert fused > 5


def test_nobody_is_an_answer(exported):
    _, bundle, _ = exported
    blank = np.full((1, 3, SIZE[1], SIZE[0]), 116, np.uint8)
    for run in (onnx_network(bundle / "model.onnx", 1, OUTPUTS), exported_network(bundle / "model.pt2")):
        boxes, scores, keypoints, *_ = run(blank)
        assert len(boxes) == len(scores) == len(keypoints)


def test_a_bundle_predicts_pictures(exported):
    _, bundle, _ = exported
    model = SceneModel.load(bundle)
    assert model.finds_joints
    people = model.predict([Image.new("RGB", (300, 200), (200, 30, 90)), Image.new("RGB", (20, 30))], [3, 9])
    assert set(people.image_ids.tolist()) <= {3, 9}
    assert people.keypoints.shape[1:] == (14, 2)
    assert ((people.boxes >= 0) & (people.boxes <= 300)).all()
