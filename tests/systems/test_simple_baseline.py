"""SimpleBaseline against a network put together from torchvision's, and against the release's behaviour."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pose.config_loading import load
from pose.data.batch import Batch
from pose.decoding.settling import BY_OKS, by_released_oks
from pose.errors import ConfigError, TrainingError
from pose.export import Deployed
from pose.layers.normalise import MEAN, STD
from pose.skeleton import COCO17, LSP14, Skeleton
from pose.systems import create
from pose.systems.base import multiply_accumulates, parameter_count
from pose.systems.simple_baseline import SimpleBaseline, blur_side

Make = Callable[..., SimpleBaseline]


@pytest.fixture
def make() -> Make:
    """make(skeleton, **changes): a ResNet-18 with narrow deconvolutions on 64x96 px, always the same weights."""

    def build(skeleton: Skeleton = COCO17, **changes: Any) -> SimpleBaseline:
        whole = load().systems["simple_baseline"]
        small = {"depth": 18, "input_size": [64, 96], "deconvolutions": [32, 32, 32], "sigma": 1.0}
        params = type(whole).model_validate({**whole.model_dump(), **small, **changes})
        torch.manual_seed(0)
        system = create("simple_baseline", params, skeleton)
        assert isinstance(system, SimpleBaseline)
        return system

    return build


class Reference(nn.Module):
    """The release's network on torchvision's ResNet: fed BGR whose channels have RGB's statistics, in its order."""

    def __init__(self, depth: int, joints: int, width: int = 256) -> None:
        super().__init__()
        trunk = torchvision.models.get_model(f"resnet{depth}", weights=None)
        self.trunk_channels = trunk.fc.in_features
        for name, module in trunk.named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)
        layers: list[nn.Module] = []
        for inputs in (self.trunk_channels, width, width):
            layers += [nn.ConvTranspose2d(inputs, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*layers)
        self.final_layer = nn.Conv2d(width, joints, 1)

    def forward(self, images: Tensor) -> Tensor:
        for module in self.children():
            images = module(images)
        return images


def reference(depth: int = 18, joints: int = 17, width: int = 32) -> Reference:
    """With weights and statistics far from their first ones, and maps of about unit height."""
    torch.manual_seed(5)
    network = Reference(depth, joints, width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
    return network.eval()


def fed_officially(network: Reference, rgb: Tensor) -> Tensor:
    """The network's maps of uint8 RGB images [B, 3, H, W], in the release's way of preparing them."""
    bgr = rgb.flip(1).float() / 255
    return network((bgr - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1))


def flip_back(maps: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
    """The release's: mirrored maps [B, K, h, w], sides swapped, all but the first column one to the right."""
    mirrored = maps[:, :, :, ::-1].copy()
    for left, right in pairs:
        mirrored[:, [left, right]] = mirrored[:, [right, left]]
    mirrored[:, :, :, 1:] = mirrored[:, :, :, :-1].copy()
    return mirrored


def pictures(people: int = 2, width: int = 64, height: int = 96) -> Tensor:
    """Smooth noise, uint8."""
    g = torch.Generator().manual_seed(2)
    coarse = torch.rand(people, 3, height // 8, width // 8, generator=g)
    return (255 * nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)).byte()


def batch_of(system: SimpleBaseline, people: int = 4) -> Batch:
    """Noise images with joints well inside; about a fifth not labelled."""
    (width, height), joints = system.params.input_size, system.skeleton.size
    size = torch.tensor([float(width), float(height)])
    g = torch.Generator().manual_seed(1)
    labelled = torch.rand(people, joints, generator=g) > 0.2
    keypoints = size * (0.15 + 0.7 * torch.rand(people, joints, 2, generator=g))
    return Batch(
        images=torch.randn(people, 3, height, width, generator=g),
        keypoints=torch.where(labelled[..., None], keypoints, torch.nan),
        labelled=labelled,
        presence=labelled.float(),
        to_original=torch.tensor([[2.0, 0, 5], [0, 3.0, 7]]).repeat(people, 1, 1),
        sample=torch.arange(people),
        image_ids=torch.arange(people),
        image_sizes=size.repeat(people, 1),
        boxes=torch.tensor([0.0, 0, width, height]).repeat(people, 1),
    )


@pytest.mark.parametrize(
    ("depth", "parameters", "giga"),
    [
        (18, 15_376_721, None),
        (34, 25_484_881, None),
        (50, 33_999_697, 5.43),
        (101, 52_991_825, 9.06),
        (152, 68_635_473, 12.70),
    ],
)
def test_parameters_and_multiply_accumulates_of_every_depth(depth, parameters, giga):
    block = load().systems["simple_baseline"]
    params = type(block).model_validate({**block.model_dump(), "depth": depth, "flip_test": False})
    with torch.device("meta"):
        system = create("simple_baseline", params, COCO17)
        assert parameter_count(system.network) == parameters
        if giga:
            assert multiply_accumulates(system) / 1e9 == pytest.approx(giga, abs=0.005)


@pytest.mark.parametrize("depth", [18, 50])
def test_official_weights_give_the_official_maps(make, depth):
    theirs = reference(depth)
    ours = make(depth=depth, flip_test=False)
    ours.load_official(theirs.state_dict())
    network = Deployed(ours).eval()
    with torch.no_grad():
        wanted = fed_officially(theirs, pictures())
        maps = network.network(network.normalise(pictures()))["maps"]
    assert wanted.std() > 0.01
    torch.testing.assert_close(maps, wanted, rtol=0, atol=1e-4 * max(1.0, wanted.abs().max().item()))


def test_official_weights_with_the_flip_test_give_the_official_coordinates(make):
    theirs = reference()
    ours = make()
    ours.load_official(theirs.state_dict())
    with torch.no_grad():
        straight, turned = (fed_officially(theirs, x).numpy() for x in (pictures(), pictures().flip(3)))
        joints = Deployed(ours).eval()(pictures())
    pairs = [(COCO17.index(left), COCO17.index(right)) for left, right in COCO17.mirror_pairs]
    maps = (straight + flip_back(turned, pairs)) / 2
    for person, joint in np.ndindex(maps.shape[:2]):
        heat = maps[person, joint]
        row, column = np.unravel_index(np.argmax(heat), heat.shape)
        x, y = (float(column), float(row)) if heat.max() > 0 else (0.0, 0.0)
        if 1 < x < heat.shape[1] - 1 and 1 < y < heat.shape[0] - 1:
            x += 0.25 * np.sign(heat[row, column + 1] - heat[row, column - 1])
            y += 0.25 * np.sign(heat[row + 1, column] - heat[row - 1, column])
        # The release counts pixels at their centres; this project at their upper left corners.
        assert joints[0][person, joint].tolist() == pytest.approx([4 * x + 0.5, 4 * y + 0.5], abs=1e-4)
        assert joints[1][person, joint].item() == pytest.approx(np.clip(heat.max(), 0, 1), abs=1e-4)


def test_all_kinds_of_official_files_are_taken(make):
    state = reference().state_dict()
    old = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in old.items()}}
    weights = []
    for file in (state, old, wrapped):
        system = make()
        system.load_official(file)
        weights.append(system.network.state_dict())
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
        assert torch.equal(value, weights[2][key]), key


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (lambda: reference(joints=16).state_dict(), r"final_layer\.weight is \(16, 32, 1, 1\), expected \(17, 32"),
        (lambda: reference(depth=34).state_dict(), r"unexpected: layer1\.2\.conv1\.weight"),
        (lambda: torchvision.models.resnet18().state_dict(), r"missing: deconv_layers\.0\..*unexpected: fc\.weight"),
        (lambda: {"model": 1, "epoch": 4}, r"this one has epoch, model and no tensors"),
    ],
)
def test_other_networks_weights_are_refused_by_name_and_shape(make, state, message):
    with pytest.raises(TrainingError, match=message):
        make().load_official(state())


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_groups_are_the_whole_network_without_overlap(make, recipe):
    system = make(recipe=recipe)
    grouped = [id(p) for modules in system.groups.values() for module in modules for p in module.parameters()]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in system.network.parameters()}


@pytest.mark.parametrize("recipe", ["paper", "modern"])
@pytest.mark.parametrize("skeleton", [COCO17, LSP14])
def test_the_loss_is_a_finite_scalar_that_reaches_every_parameter(make, recipe, skeleton):
    system = make(skeleton, recipe=recipe)
    batch = batch_of(system)
    loss = system.loss(system.network.train()(batch.images), batch)["maps"]
    assert loss.shape == ()
    assert loss.isfinite()
    loss.backward()
    assert [key for key, p in system.network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_decoding_the_target_gives_the_truth_in_original_pixels(make, recipe):
    system = make(recipe=recipe)
    batch = batch_of(system)
    batch = replace(batch, keypoints=batch.keypoints.nan_to_num(30.0), labelled=torch.ones_like(batch.labelled))
    maps, _ = system.targets(batch)
    outputs = {"maps": maps if recipe == "paper" else maps.clamp(min=1e-30).log()}
    people = system.decode(outputs, batch)
    x, y = batch.keypoints.unbind(dim=2)
    error = torch.from_numpy(people.keypoints) - torch.stack([2 * x + 5, 3 * y + 7], dim=2)
    # A rounded cell is up to 2 px from its joint (and ties leave it there); probabilities say it exactly.
    limit = torch.tensor([4.0, 6.0]) + 1e-3 if recipe == "paper" else torch.tensor([0.1, 0.15])
    assert (error.abs() <= limit).all()
    assert error.mean().abs() < (0.5 if recipe == "paper" else 0.01)
    assert people.scores.min() > 0.9
    assert people.scores.max() <= 1.0
    assert system.belief_maps(outputs).amax() == pytest.approx(1, abs=0.02)
    assert system.targets_preview(batch).shape == (4, 24, 16)


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_the_papers_larger_size_has_targets_of_sigma_3(make, recipe):
    system = make(recipe=recipe, input_size=[288, 384], sigma=3.0)
    assert system.params.map_size == (72, 96)
    assert blur_side(3.0) == 17
    batch = batch_of(system, people=1)
    batch = replace(batch, keypoints=batch.keypoints.nan_to_num(100.0), labelled=torch.ones_like(batch.labelled))
    with torch.no_grad():
        outputs = system.network.eval()(batch.images)
        assert outputs["maps"].shape == (1, 17, 96, 72)
        assert system.joints(outputs).keypoints.shape == (1, 17, 2)
    maps, weights = system.targets(batch)
    assert maps.shape == (1, 17, 96, 72)
    assert weights.all()
    # A Gaussian's sum over the cells says its width; the release cuts off 0.3 % of it along each axis.
    torch.testing.assert_close(maps.sum((2, 3)), torch.full((1, 17), 2 * math.pi * 3.0**2), rtol=0.02, atol=0)
    read = system.joints({"maps": maps if recipe == "paper" else maps.clamp(min=1e-30).log()})
    error = (read.keypoints - batch.keypoints).abs()
    # Cells are 4 px: the paper's Gaussian stands on the nearest, the other's where the joint is.
    assert error.max() <= (2 + 1e-3 if recipe == "paper" else 0.1)
    assert read.scores.min() > 0.9


def test_people_are_settled_as_in_the_release_where_pixels_are(make):
    system = make(recipe="modern")
    assert system.settling is BY_OKS
    system.load_official(reference().state_dict())
    assert system.settling == by_released_oks((64, 96), 1.25)
    assert make(recipe="paper", padding=1.1).settling == by_released_oks((64, 96), 1.1)


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_learns_four_noise_images_by_heart(make, recipe):
    system = make(LSP14, recipe=recipe, flip_test=False, input_size=[64, 64], deconvolutions=[16, 16, 16])
    batch = batch_of(system, people=4)
    network = system.network.train()
    optimiser = torch.optim.Adam(network.parameters(), lr=2e-3)
    for step in range(200):
        optimiser.zero_grad()
        outputs = network(batch.images)
        if step % 10 == 0:
            with torch.no_grad():
                error = (system.joints(outputs).keypoints - batch.keypoints).norm(dim=2)[batch.labelled]
            if (error < 5).float().mean() > 0.95:
                break
        system.loss(outputs, batch)["maps"].backward()
        optimiser.step()
    assert (error < 5).float().mean() > 0.95


def test_the_flip_test_is_the_mean_with_the_mirrored_image_and_only_in_evaluation(make):
    system = make()
    network, images = system.network, torch.randn(2, 3, 96, 64)
    nn.init.normal_(network.final_layer.weight)
    with torch.no_grad():
        for part in system.groups["head"]:
            part.eval()
        network.eval()
        single = network.maps(images)
        both = network(images)["maps"]
        mirrored = network(images.flip(3))["maps"]
        torch.testing.assert_close(mirrored.flip(3)[:, COCO17.mirror.tolist()], both)
        assert not torch.allclose(both, single)
        # As a phase trains only the head: the network as a whole stays in evaluation mode.
        network.deconv_layers.train()
        training = network(images)["maps"]
        assert torch.equal(training, network.maps(images))


def test_inputs_that_do_not_halve_five_times_are_refused_by_key(make):
    with pytest.raises(ConfigError, match=r"systems\.simple_baseline\.input_size is \(100, 96\).*multiples of 32"):
        make(input_size=[100, 96])


@pytest.mark.parametrize("recipe", ["paper", "modern"])
def test_the_traced_program_says_what_the_network_says(make, recipe):
    system = make(recipe=recipe)
    nn.init.normal_(system.network.final_layer.weight, std=0.3)
    deployed = Deployed(system).eval()
    images = pictures(3)
    with torch.no_grad():
        shapes = {"images": {0: torch.export.Dim("batch", min=1)}}
        program = torch.export.export(deployed, (images,), dynamic_shapes=shapes).module()
        for some in (images, images[:1]):
            for ours, theirs in zip(deployed(some), program(some), strict=True):
                torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)
