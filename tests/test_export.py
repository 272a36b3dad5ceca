"""Both exported files say what the network says, at any batch size; a file that does not is refused."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pose.config import CropParams, ExportParams
from pose.config_loading import load
from pose.data.shards import Row, Split, write_shards
from pose.errors import ExportError
from pose.export import ExportReport, check_parity, export, exported_network, inputs, onnx_network
from pose.skeleton import LSP14
from pose.systems import create
from pose.systems.base import System

PARAMS = ExportParams(tolerance_px=0.01, parity_images=6, latency_runs=2)
CROP = CropParams(view="image", size=48)
SMALL = {"hidden": [48, 32], "coordinate_hidden": [48, 32]}
SIZES: dict[str, dict[str, Any]] = {
    "baseline1": {"input_size": 32, "channels": [8, 16], "batch_norm": True, **SMALL},
    "vgg16_regressor": {"input_size": 32, "channels": [8, 12, 16, 24, 24], "hidden": 48},
}


# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    directory = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(1)
    rows = []
    for number in range(10):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        keypoints, visibility = random.uniform(0, 48, (14, 2)), np.full(14, 2)
        to_crop, box = np.eye(2, 3, dtype=np.float32), np.array([0, 0, 48, 48])
        rows.append(
            Row(stream.getvalue(), f"im{number}.jpg", number, number, (48, 48), box, keypoints, visibility, to_crop)
        )
    write_shards(rows, directory, "test", 100, LSP14, CropParams(view="image", size=48))
    return Split.open(directory, "test")


def trained(name: str) -> System:
    """A system whose every number, batch statistics included, is far from its initial value."""
    whole = load().systems[name]
    torch.manual_seed(4)
    system = create(name, type(whole).model_validate({**whole.model_dump(), **SIZES[name]}), LSP14)
    with torch.no_grad():
        for parameter in system.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for key, buffer in system.network.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand_like(buffer))
    system.network.eval()
    return system


@pytest.fixture(scope="module", params=list(SIZES))
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, split: Split):
    directory = tmp_path_factory.mktemp(request.param)
    system = trained(request.param)
    save_file(system.network.state_dict(), directory / "trained.safetensors")
    report = export(
        request.param, system, directory / "trained.safetensors", split, CROP, directory / "bundle", PARAMS, threads=1
    )
    return request.param, system, directory / "bundle", report


def test_files_and_figures_are_there(exported) -> None:
    name, system, bundle, report = exported
    assert {path.name for path in bundle.iterdir()} == {
        "model.onnx", "model.pt2", "model.safetensors", "model.json", "export.json"
    }  # fmt: skip
    assert ExportReport.load(bundle) == report
    assert 0 <= max(report.parity_px.values()) <= PARAMS.tolerance_px
    assert report.latency_ms > 0
    assert report.throughput > 0
    described = json.loads((bundle / "model.json").read_text())
    assert (described["system"], described["skeleton"], described["input_size"]) == (name, "lsp14", [32, 32])
    assert described["crop"]["size"] == 48
    assert type(system.params).model_validate(described["params"]) == system.params


def test_any_batch_size_gives_the_networks_own_answer(exported, split: Split) -> None:
    _, system, bundle, _ = exported
    everything = onnx_network(bundle / "model.onnx", 1)(inputs(system, split, np.arange(10)))[0]
    assert everything.std(axis=0).max() > 0.1, "the images must matter for this to prove anything"
    for rows in ([3], [0, 1], [5, 2, 9, 1, 0, 7, 4]):
        images = inputs(system, split, np.array(rows))
        mean = torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1)
        deviation = torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1)
        with torch.no_grad():
            truth = system.joints(system.network((torch.from_numpy(images) - mean) / deviation))
        for run in (onnx_network(bundle / "model.onnx", 1), exported_network(bundle / "model.pt2")):
            keypoints, scores, presence = run(images)
            np.testing.assert_allclose(keypoints, truth.keypoints.numpy(), atol=0.01)
            np.testing.assert_allclose(scores, truth.scores.numpy(), atol=1e-3)
            np.testing.assert_allclose(presence, truth.presence.numpy(), atol=1e-3)


def test_the_onnx_file_is_whole_named_and_names_no_machine(exported) -> None:
    _, _, bundle, _ = exported
    model = onnx.load(bundle / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == ["images"]
    assert [value.name for value in model.graph.output] == ["keypoints", "scores", "presence"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    here = str(Path(__file__).resolve().parent.parent).encode()
    assert here not in (bundle / "model.onnx").read_bytes()


@pytest.mark.parametrize("exported", ["baseline1"], indirect=True)
def test_the_program_loads_without_our_code(exported, tmp_path: Path) -> None:
    """A consumer needs torch alone: nothing of pose is imported by loading or running model.pt2."""
    _, _, bundle, _ = exported
    program = (
        "import sys, torch; m = torch.export.load(sys.argv[1]).module(); "
        "print(m(torch.zeros(3, 3, 32, 32, dtype=torch.uint8))[0].shape, 'pose' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle / "model.pt2")],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "torch.Size([3, 14, 2]) False"


def test_a_file_of_other_weights_is_refused_by_image_and_joint(exported, split: Split) -> None:
    _, system, bundle, _ = exported
    rows = np.array([2, 5, 8])
    images = inputs(system, split, rows)
    run = onnx_network(bundle / "model.onnx", 1)
    honest = run(images)
    shifted = honest[0].copy()
    shifted[1, 12] += (0.3, 0.4)
    with pytest.raises(ExportError, match=r"image im5\.jpg .* neck is 0\.5 px away, .*1 of 42 joints in 1 images"):
        check_parity("tiny", run, images, (shifted, *honest[1:]), split, rows, 0.05)
    shifted[1, 12] = np.nan
    with pytest.raises(ExportError, match=r"im5\.jpg .* neck is nan px"):
        check_parity("tiny", run, images, (shifted, *honest[1:]), split, rows, 0.05)
    presence = honest[2] - 0.01
    with pytest.raises(ExportError, match=r"its presence differ by up to 0\.01"):
        check_parity("tiny", run, images, (*honest[:2], presence), split, rows, 0.05)
    assert check_parity("tiny", run, images, honest, split, rows, 0.05) == 0


def test_a_failed_export_leaves_nothing_behind(split: Split, tmp_path: Path) -> None:
    system = trained("baseline1")
    with torch.no_grad():
        system.network.fc1.bias[0] = float("nan")
    save_file(system.network.state_dict(), tmp_path / "trained.safetensors")
    with pytest.raises(ExportError, match=r"1 of the weights hold values that are not numbers, the first fc1\.bias"):
        export("baseline1", system, tmp_path / "trained.safetensors", split, CROP, tmp_path / "bundle", PARAMS, 1)
    assert not (tmp_path / "bundle").exists()
