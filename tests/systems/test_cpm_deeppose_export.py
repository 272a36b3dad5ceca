"""CPM and DeepPose exported: both files say what the network says, crops and refined poses included."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pose.config import CropParams, ExportParams
from pose.config_loading import load
from pose.data.shards import Row, Split, write_shards
from pose.export import export, exported_network, inputs, onnx_network
from pose.skeleton import LSP14
from pose.systems import create
from pose.systems.base import System

# pytest listens to every logger, which turns on torch's structured trace of each step of an export.
logging.getLogger("torch.__trace").disabled = True

PARAMS = ExportParams(tolerance_px=0.01, parity_images=6, latency_runs=1)
CROP = CropParams(view="image", size=64)
CPM = {
    "input_size": (64, 48),
    "stages": 3,
    "trunk_channels": (8, 12, 16),
    "feature_channels": 8,
    "first_channels": 16,
    "stage_channels": 16,
    "stage_kernel": 5,
    "centre_sigma": 6.0,
}
DEEPPOSE = {
    "input_size": (72, 64),
    "stage_size": 56,
    "stride": 2,
    "channels": (8, 12, 16, 16, 12),
    "hidden": [32, 32],
}
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "cpm of the paper": ("cpm", CPM | {"recipe": "paper"}),
    "modern cpm": ("cpm", CPM | {"recipe": "modern", "flip_test": True}),
    "deeppose of the paper": ("deeppose", DEEPPOSE | {"recipe": "paper"}),
    "modern deeppose": ("deeppose", DEEPPOSE | {"recipe": "modern"}),
}


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """Six pictures of soft colours."""
    directory = tmp_path_factory.mktemp("prepared")
    random = np.random.default_rng(1)
    rows = []
    for number in range(6):
        coarse = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((64, 64), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        keypoints, visibility = random.uniform(0, 64, (14, 2)), np.full(14, 2)
        to_crop, box = np.eye(2, 3, dtype=np.float32), np.array([0, 0, 64, 64])
        rows.append(
            Row(stream.getvalue(), f"im{number}.jpg", number, number, (64, 64), box, keypoints, visibility, to_crop)
        )
    write_shards(rows, directory, "test", 100, LSP14, CROP)
    return Split.open(directory, "test")


def shaken(name: str, sizes: dict[str, Any]) -> System:
    """A system whose every number is far from its initial value, so that all stages matter."""
    whole = load().systems[name]
    torch.manual_seed(4)
    system = create(name, type(whole).model_validate({**whole.model_dump(), **sizes}), LSP14)
    with torch.no_grad():
        for parameter in system.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for key, buffer in system.network.named_buffers():
            if key.endswith(("running_mean", "running_var")):
                buffer.add_(0.2 * torch.rand_like(buffer))
    system.network.eval()
    return system


@pytest.mark.parametrize(
    "case", [case if "paper" in case else pytest.param(case, marks=pytest.mark.slow) for case in SIZES]
)
def test_both_files_say_what_the_network_says_at_any_batch_size(case: str, split: Split, tmp_path: Path):
    name, sizes = SIZES[case]
    system = shaken(name, sizes)
    save_file(system.network.state_dict(), tmp_path / "trained.safetensors")
    out = tmp_path / "bundle"
    report = export(name, system, tmp_path / "trained.safetensors", split, CROP, out, PARAMS, threads=1)
    assert max(report.parity_px.values()) <= PARAMS.tolerance_px

    images = inputs(system, split, np.arange(6))
    with torch.no_grad():
        batch = torch.from_numpy(images)
        mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
        normalised = (batch.float() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        outputs = system.network(normalised)
        wanted = system.joints(outputs)
    if name == "deeppose":
        stages = outputs["stages"]
        assert (stages[:, 1:] - stages[:, :-1]).abs().amax(dim=(0, 2, 3)).min() > 0.5, "every stage moves something"
    else:
        assert outputs["maps"].std() > 0.01
    for run in (onnx_network(out / "model.onnx", 1), exported_network(out / "model.pt2")):
        for rows in (slice(0, 1), slice(0, 6)):
            keypoints, scores, presence = run(images[rows])
            np.testing.assert_allclose(keypoints, wanted.keypoints[rows].numpy(), atol=0.01)
            np.testing.assert_allclose(scores, wanted.scores[rows].numpy(), atol=1e-3)
            np.testing.assert_allclose(presence, wanted.presence[rows].numpy(), atol=1e-3)
