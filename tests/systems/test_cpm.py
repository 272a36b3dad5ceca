"""Convolutional Pose Machines against a functional second version, closed forms, and six images learnt by heart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pose.config_loading import load
from pose.data.batch import Batch
from pose.errors import ConfigError
from pose.skeleton import COCO17, LSP14, Skeleton
from pose.systems import create
from pose.systems.base import multiply_accumulates, parameter_count
from pose.systems.cpm import Cpm, CpmParams, centre_map

SMALL: dict[str, Any] = {
    "input_size": (64, 80),
    "stages": 3,
    "trunk_channels": (8, 12, 16),
    "trunk_kernel": 5,
    "feature_channels": 8,
    "feature_kernel": 3,
    "first_channels": 24,
    "first_kernel": 5,
    "stage_channels": 24,
    "stage_kernel": 5,
    "dropout": 0.0,
    "centre_sigma": 6.0,
}


def block(**changes: Any) -> dict[str, Any]:
    """The paper's recipe; changes to it by its own names, others to the sizes."""
    whole = load().systems["cpm"].model_dump()
    recipe = whole["recipes"]["paper"]
    own = {key: value for key, value in changes.items() if key in recipe}
    sizes = {key: value for key, value in changes.items() if key not in recipe}
    return {**whole, "recipe": "paper", "recipes": {"paper": {**recipe, **own}}, **sizes}


def small(skeleton: Skeleton = LSP14, **changes: Any) -> Cpm:
    params = CpmParams.model_validate(block(**{**SMALL, **changes}))
    torch.manual_seed(0)
    system = create("cpm", params, skeleton)
    assert isinstance(system, Cpm)
    return system


@pytest.mark.parametrize(("stages", "parameters"), [(6, 31_219_866), (1, 4_386_095), (2, 11_901_406)])
def test_has_the_releases_parameters(stages, parameters):
    # 31,219,866 is the sum over the layers of the release's definition for 14 joints and the background.
    params = CpmParams.model_validate(block(stages=stages))
    with torch.device("meta"):
        assert parameter_count(create("cpm", params, LSP14).network) == parameters


def test_multiply_accumulates_are_the_sum_over_its_layers():
    with torch.device("meta"):
        system = create("cpm", CpmParams.model_validate(block()), LSP14)
        counted = multiply_accumulates(system)
    trunk = 368**2 * 3 * 128 * 81 + 184**2 * 128**2 * 81 + 92**2 * 128**2 * 81
    features = 46**2 * 128 * 32 * 25
    first = 46**2 * (32 * 512 * 81 + 512**2 + 512 * 15)
    stage = 46**2 * (48 * 128 * 121 + 2 * 128**2 * 121 + 128**2 + 128 * 15)
    assert counted == 2 * trunk + 6 * features + first + 5 * stage


def functional(state: dict[str, Tensor], images: Tensor, centre: Tensor, stages: int) -> list[Tensor]:
    """The maps of every stage, written down layer by layer from the paper's figure; no dropout, no batch norm."""

    def convolve(x: Tensor, name: str, relu: bool = True) -> Tensor:
        weight = state[f"{name}.weight"]
        y = F.conv2d(F.pad(x, [weight.shape[-1] // 2] * 4), weight, state[f"{name}.bias"])
        return y.clamp(min=0) if relu else y

    def pool(x: Tensor) -> Tensor:
        # Even sides: one further row and column that never win give Caffe's rounding up.
        return F.max_pool2d(F.pad(x, (0, 1, 0, 1), value=-math.inf), 3, 2)

    def shared(x: Tensor, name: str) -> Tensor:
        for layer in (0, 3, 6):
            x = pool(convolve(x, f"{name}.{layer}"))
        return x

    x = convolve(shared(images, "stage1.0"), "stage1.1.0")
    x = convolve(convolve(x, "stage1.2.0"), "stage1.2.3")
    maps = [convolve(x, "stage1.2.6", relu=False)]
    third = shared(images, "trunk")
    for stage in range(stages - 1):
        x = torch.cat([convolve(third, f"features.{stage}.0"), maps[-1], centre.expand(len(images), -1, -1, -1)], dim=1)
        for layer in (0, 2, 4, 6):
            x = convolve(x, f"heads.{stage}.{layer}")
        maps.append(convolve(x, f"heads.{stage}.8", relu=False))
    return maps


def test_forward_equals_a_functional_version():
    system = small()
    with torch.no_grad():
        for parameter in system.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    images = torch.randn(2, 3, 80, 64)
    with torch.no_grad():
        got = system.network.eval()(images)["maps"]
        state = system.network.state_dict()
        wanted = functional(state, images, centre_map((64, 80), 6.0), 3)
    assert got.shape == (2, 3, 15, 10, 8)
    assert torch.stack(wanted, dim=1).std() > 0.1
    torch.testing.assert_close(got, torch.stack(wanted, dim=1), rtol=1e-4, atol=1e-4)


def test_maps_are_46_cells_at_the_papers_input():
    with torch.device("meta"):
        system = create("cpm", CpmParams.model_validate(block()), LSP14)
        assert system.network(torch.zeros(1, 3, 368, 368))["maps"].shape == (1, 6, 15, 46, 46)


def test_centre_map_is_the_mean_over_windows_of_a_gaussian_about_the_centre():
    got = centre_map((368, 184), 21.0)[0, 0].numpy()
    assert got.shape == (23, 46)
    x, y = np.arange(368) + 0.5, np.arange(184) + 0.5
    whole = np.exp(-((x - 184) ** 2 + (y[:, None] - 92) ** 2) / (2 * 21**2))
    for row, column in ((0, 0), (11, 22), (11, 23), (22, 45), (5, 30)):
        window = whole[8 * row : 8 * row + 9, 8 * column : 8 * column + 9]
        assert got[row, column] == pytest.approx(window.mean(), rel=1e-5, abs=1e-12)
    assert got.max() == pytest.approx(0.98, abs=0.02)


def test_squared_error_sums_over_stages_maps_and_cells(random_batch):
    system = small()
    batch = random_batch(system)
    maps = system.network(batch.images)["maps"].detach()
    wanted = 0.0
    x, y = np.meshgrid(np.arange(8) + 0.5, np.arange(10) + 0.5)
    for person in range(len(batch)):
        joints = np.zeros((14, 10, 8))
        for k in range(14):
            if batch.labelled[person, k]:
                at = batch.keypoints[person, k].numpy() / 8
                joints[k] = np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * 0.875**2))
        for stage in range(3):
            got = maps[person, stage].double().numpy()
            for k in range(14):
                if batch.labelled[person, k]:
                    wanted += ((got[k] - joints[k]) ** 2).sum() / 2
            wanted += ((got[14] - (1 - joints.max(axis=0))) ** 2).sum() / 2
    assert system.loss({"maps": maps}, batch)["maps"].item() == pytest.approx(wanted / len(batch), rel=1e-5)


def test_joints_without_a_label_have_no_gradient(random_batch):
    system = small(loss="cross_entropy")
    batch = random_batch(system)
    maps = system.network(batch.images)["maps"].detach().requires_grad_()
    system.loss({"maps": maps}, batch)["maps"].backward()
    touched = maps.grad.abs().amax(dim=(1, 3, 4)) > 0
    assert torch.equal(touched, batch.labelled)


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
@pytest.mark.parametrize("decode", ["quarter", "dark"])
def test_decoding_the_targets_gives_the_truth(random_batch, loss, decode):
    system = small(loss=loss, decode=decode, sigma=1.0)
    batch = random_batch(system)
    inner = torch.rand(batch.keypoints.shape, generator=torch.Generator().manual_seed(3))
    batch = batch.__class__(**{**vars(batch), "keypoints": 28 + inner * 12, "labelled": batch.labelled | True})
    maps, _ = system.targets(batch)
    maps = maps if loss == "squared_error" else maps[:, :14].clamp(min=1e-6).log()
    joints = system.joints({"maps": torch.stack([torch.zeros_like(maps), maps], dim=1)})
    error = (joints.keypoints - batch.keypoints).abs()
    # A quarter of a cell is at most two pixels off.
    assert error.max() < (2.01 if decode == "quarter" else 0.7)
    assert joints.scores.min() > 0.7
    assert joints.scores.max() <= 1


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_every_stage_answers_to_its_own_error(random_batch, loss):
    system = small(loss=loss)
    batch = random_batch(system)
    maps = system.network(batch.images)["maps"]
    maps.retain_grad()
    system.loss({"maps": maps}, batch)["maps"].backward()
    assert (maps.grad.abs().amax(dim=(0, 2, 3, 4)) > 0).all()
    silent = [name for name, p in system.network.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_flip_test_makes_answers_of_mirrored_images_mirrored(random_batch):
    system = small(flip_test=True, skeleton=COCO17)
    images = random_batch(system).images
    with torch.no_grad():
        network = system.network.eval()
        there = network(images)["maps"]
        back = network(images.flip(3))["maps"].flip(4)
        assert torch.allclose(there[:, :, :17], back[:, :, COCO17.mirror.tolist()], atol=1e-6)
        assert torch.allclose(there[:, :, 17], back[:, :, 17], atol=1e-6)
        plain = small(skeleton=COCO17).network.eval()(images)["maps"]
    assert (there - plain).abs().max() > 1e-4


@pytest.mark.parametrize("loss", ["squared_error", "cross_entropy"])
def test_learns_six_images_by_heart(random_batch: Callable[..., Batch], loss: str):
    system = small(stages=2, decode="dark", input_size=64, loss=loss, batch_norm=True)
    batch = random_batch(system, people=6)
    optimiser = torch.optim.Adam(system.network.parameters(), lr=4e-3)
    share = 0.0
    for step in range(200):
        optimiser.zero_grad()
        system.loss(system.network.train()(batch.images), batch)["maps"].backward()
        optimiser.step()
        if step % 25 == 24:
            with torch.no_grad():
                joints = system.joints(system.network.eval()(batch.images))
            distance = (joints.keypoints - batch.keypoints).norm(dim=2)[batch.labelled]
            share = (distance <= 64 / 12).float().mean().item()
            if share >= 0.95:
                return
    pytest.fail(f"{share:.3f} of the joints after 200 steps")


def test_one_stage_has_no_second_trunk(random_batch):
    system = small(stages=1)
    assert not list(system.network.trunk.parameters())
    assert system.network(random_batch(system).images)["maps"].shape == (4, 1, 15, 10, 8)


def test_an_input_of_broken_cells_is_refused():
    with pytest.raises(ConfigError, match=r"systems\.cpm\.input_size is \(64, 84\).*multiples of 8"):
        small(input_size=(64, 84))
