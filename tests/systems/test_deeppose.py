"""DeepPose's cascade: normalisation, crops, fitted errors, stages one after the other, images learnt by heart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pose.config_loading import load
from pose.data.batch import Batch
from pose.errors import ConfigError
from pose.skeleton import COCO17, LSP14, Skeleton
from pose.systems import create
from pose.systems.base import multiply_accumulates, parameter_count
from pose.systems.deeppose import DeepPose, cholesky, crop, last_side

SMALL: dict[str, Any] = {
    "input_size": (96, 80),
    "stage_size": 56,
    "stride": 2,
    "channels": (8, 12, 16, 16, 12),
    "hidden": [32, 32],
    "dropout": 0.0,
    "crops": 6,
}


def small(skeleton: Skeleton = LSP14, **changes: Any) -> DeepPose:
    whole = load().systems["deeppose"]
    block = {**whole.model_dump(), "recipe": "paper", **SMALL, **changes}
    if "recipes" not in changes:
        for recipe in block["recipes"].values():
            recipe["phases"] = recipe["phases"][: block["stages"]]
        block["recipes"]["paper"]["batch_norm"] = block.pop("batch_norm", False)
    params = type(whole).model_validate(block)
    torch.manual_seed(0)
    system = create("deeppose", params, skeleton)
    assert isinstance(system, DeepPose)
    return system


def begin(system: DeepPose, stage: int, *batches: Batch) -> None:
    """The phase's beginning as the training loop has it, on batches that are prepared already."""
    system.prepare = lambda batch: batch  # type: ignore[method-assign]
    system.network.eval()
    system.begin_phase(system.params.chosen.phases[stage - 1], lambda: iter(batches))
    system.cascade.stages[stage - 1].train()


def shaken(system: DeepPose) -> DeepPose:
    """With stages that all say something."""
    with torch.no_grad():
        for stage in system.cascade.stages:
            torch.nn.init.normal_(stage[-1].weight, std=0.02)
            torch.nn.init.normal_(stage[-1].bias, std=0.1)
    return system


def test_parameters_and_multiply_accumulates_are_the_sums_over_the_layers():
    with torch.device("meta"):
        system = create("deeppose", load().systems["deeppose"], LSP14)
        counted = multiply_accumulates(system)
    kernels = [3 * 96 * 121, 96 * 256 * 25, 256 * 384 * 9, 384 * 384 * 9, 384 * 256 * 9]
    matrices = [9216 * 4096, 4096 * 4096, 4096 * 28]
    biases = 96 + 256 + 384 + 384 + 256 + 4096 + 4096 + 28
    assert parameter_count(system.network) == 3 * (sum(kernels) + sum(matrices) + biases) == 3 * 58_396_060
    cells = [55 * 55, 27 * 27, 13 * 13, 13 * 13, 13 * 13]
    stage = sum(kernel * cell for kernel, cell in zip(kernels, cells, strict=True)) + sum(matrices)
    assert counted == (1 + 2 * 14) * stage
    assert last_side(220, 4) == 6


def test_first_stage_is_the_inverse_of_the_normalisation_by_the_canvas():
    system = shaken(small(stages=1))
    images = torch.randn(3, 3, 80, 96)
    with torch.no_grad():
        poses = system.network.eval()(images)["stages"][:, 0]
        seen = torch.nn.functional.interpolate(images, size=(56, 56), mode="bilinear", antialias=True)
        said = system.cascade.stages[0](seen).view(3, 14, 2)
    # N(y; b) = (y - centre) / size for the box b of the whole canvas, (48, 40) and (96, 80): equation 2.
    again = (poses.numpy() - np.array([48, 40])) / np.array([96, 80])
    np.testing.assert_allclose(again, said.numpy(), atol=1e-6)


def test_refinement_moves_each_joint_by_its_own_output_times_the_side_and_once():
    system = small(stages=2)
    shift = torch.linspace(-0.2, 0.2, 28).view(14, 2)
    with torch.no_grad():
        torch.nn.init.normal_(system.cascade.stages[0][-1].weight, std=0.05)
        system.cascade.stages[1][-1].bias.copy_(shift.flatten())
        first, second = system.network.eval()(torch.randn(2, 3, 80, 96))["stages"].unbind(dim=1)
    for person in range(2):
        pose = first[person].numpy()
        torso = np.linalg.norm(pose[9] - pose[2])  # left shoulder, right hip
        extent = np.ptp(pose, axis=0).max()
        side = 2.0 * max(torso, 0.25 * extent, 0.05 * 80)
        np.testing.assert_allclose(second[person].numpy(), pose + side * shift.numpy(), atol=1e-4)


def test_refinement_equals_a_loop_over_joints_and_crops():
    system = shaken(small(stages=2))
    images = torch.randn(2, 3, 80, 96)
    with torch.no_grad():
        network = system.cascade.eval()
        first, second = network(images)["stages"].unbind(dim=1)
        sides = 2.0 * network.diameters(first)
        for person in range(2):
            for joint in range(14):
                seen = crop(images[person, None], first[person, None, joint, None], sides[person, None, None], 56)
                said = network.stages[1](seen).view(14, 2)[joint]
                wanted = first[person, joint] + sides[person] * said
                torch.testing.assert_close(second[person, joint], wanted, atol=1e-3, rtol=1e-4)


def test_untrained_stages_move_nothing():
    system = small()
    with torch.no_grad():
        poses = system.network.eval()(torch.randn(2, 3, 80, 96))["stages"]
    assert poses.shape == (2, 3, 14, 2)
    assert torch.equal(poses[:, 1], poses[:, 0])
    assert torch.equal(poses[:, 2], poses[:, 0])


@pytest.mark.parametrize(("centre", "side"), [((40.0, 33.0), 20.0), ((51.3, 28.6), 33.7), ((30.25, 50.5), 14.0)])
def test_crops_are_those_of_pillow(centre, side):
    noise = np.random.default_rng(2).integers(0, 256, (80, 96), dtype=np.uint8)
    picture = Image.fromarray(noise.astype(np.float32))
    x, y = centre
    box = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    wanted = np.asarray(picture.transform((24, 24), Image.Transform.EXTENT, box, Image.Resampling.BILINEAR))
    images = torch.from_numpy(noise).float().expand(2, 3, 80, 96)
    others = torch.tensor([[10.0, 10.0], [x, y]]).expand(2, 2, 2)
    got = crop(images, others, torch.tensor([[8.0, side]]).expand(2, 2), 24)
    assert got.shape == (4, 3, 24, 24)
    np.testing.assert_allclose(got[1, 0].numpy(), wanted, atol=0.02)
    assert torch.equal(got[1], got[3])


def test_what_lies_outside_the_canvas_is_the_mean_colour():
    seen = crop(torch.ones(1, 3, 40, 40), torch.tensor([[[0.0, 20.0]]]), torch.tensor([[20.0]]), 10)
    assert (seen[0, :, :, :5] == 0).all()
    assert (seen[0, :, :, 6:] == 1).all()


def test_fitted_errors_are_numpys_mean_and_covariance(random_batch):
    system = shaken(small(stages=2))
    batches = [random_batch(system, people=5, seed=seed) for seed in range(4)]
    begin(system, 2, *batches)
    with torch.no_grad():
        system.cascade.running = 1
        found = torch.cat([system.network(batch.images)["stages"][:, 0] for batch in batches]).numpy()
    true = torch.cat([batch.keypoints for batch in batches]).numpy()
    labelled = torch.cat([batch.labelled for batch in batches]).numpy()
    for joint in range(14):
        errors = (found - true)[labelled[:, joint], joint].astype(np.float64)
        assert len(errors) > 10
        np.testing.assert_allclose(system.cascade.error_mean[0, joint], errors.mean(axis=0), rtol=1e-4, atol=1e-4)
        wanted = np.cov(errors.T, ddof=0)
        np.testing.assert_allclose(system.cascade.error_covariance[0, joint], wanted, rtol=1e-4, atol=1e-2)


def test_simulated_crops_are_drawn_from_the_fitted_errors(random_batch):
    system = small(stages=2, crops=4000)
    batch = random_batch(system, people=2)
    batch = replace(batch, labelled=batch.labelled & torch.tensor([[True], [False]]))
    network = system.cascade
    covariance = torch.tensor([[9.0, -3.0], [-3.0, 4.0]])
    network.error_mean[0] = torch.tensor([2.0, -1.0])
    network.error_covariance[0] = covariance
    centres, sides, chosen, weights = system.simulate(batch, 2)
    assert weights[0].eq(1).all()
    assert weights[1].eq(0).all()
    drawn = torch.bincount(chosen[0], minlength=14)
    assert torch.equal(drawn > 0, batch.labelled[0])
    even = 4000 / int(batch.labelled[0].sum())
    assert (drawn[batch.labelled[0]] - even).abs().max() < 5 * even**0.5
    moved = (centres[0] - batch.keypoints[0][chosen[0]]).numpy()
    np.testing.assert_allclose(moved.mean(axis=0), [2, -1], atol=0.25)
    np.testing.assert_allclose(np.cov(moved.T), covariance.numpy(), atol=0.8)
    assert sides[0, 0] == sides[0, -1] == 2.0 * network.diameters(batch.keypoints, batch.labelled)[0]


def test_diameter_of_poses_without_a_torso_comes_from_their_extent_and_never_vanishes():
    network = small().cascade
    pose = torch.zeros(4, 14, 2) + 30.0
    pose[0, 9] = torch.tensor([30.0 + 12, 30.0 - 16])  # left shoulder, 20 px from the right hip
    pose[1, 0] = torch.tensor([30.0, 70.0])  # an extent of 40 px, no torso
    pose[2] = pose[0]
    pose[3, 9] = torch.nan
    labelled = torch.ones(4, 14, dtype=torch.bool)
    labelled[2, 2] = False  # the hip: 16 px of extent are left
    labelled[3] = False
    labelled[3, 0] = True
    known = torch.where(labelled[..., None], pose, 0.0)
    assert network.diameters(known, labelled).tolist() == pytest.approx([20.0, 10.0, 4.0, 4.0])
    assert network.diameters(pose[:2]).tolist() == pytest.approx([20.0, 10.0])


@pytest.mark.parametrize("covariance", [[[4.0, 1.0], [1.0, 3.0]], [[0.0, 0.0], [0.0, 2.0]], [[1.0, 2.0], [2.0, 4.0]]])
def test_cholesky_of_regular_and_singular_covariances(covariance):
    lower = cholesky(torch.tensor(covariance))
    assert lower[0, 1] == 0
    torch.testing.assert_close(lower @ lower.T, torch.tensor(covariance))


def test_loss_is_squared_distance_in_shares_of_the_box(random_batch):
    system = shaken(small(stages=2))
    batch = random_batch(system)
    true, labelled = batch.keypoints.double().numpy(), batch.labelled.numpy()
    for running in (1, 2):
        system.cascade.running = running
        with torch.no_grad():
            outputs = system.forward(system.network.eval(), batch)
        poses = outputs["stages"].double().numpy()
        wanted = 0.0
        for person in range(len(batch)):
            box = np.array([96, 80.0])
            if running == 2:
                pose = poses[person, 0]
                box = 2.0 * max(np.linalg.norm(pose[9] - pose[2]), 0.25 * np.ptp(pose, axis=0).max(), 4.0)
            error = ((poses[person, -1] - true[person]) / box)[labelled[person]]
            wanted += (error**2).sum() / len(batch)
        assert system.loss(outputs, batch)["coordinates"].item() == pytest.approx(wanted, rel=1e-5)


def test_training_loss_of_a_later_stage_is_that_of_its_simulated_crops(random_batch):
    system = shaken(small(stages=2))
    batch = random_batch(system)
    begin(system, 2, batch)
    torch.manual_seed(5)
    outputs = system.forward(system.network, batch)
    torch.manual_seed(5)
    centres, sides, chosen, _ = system.simulate(batch, 2)
    wanted = []
    with torch.no_grad():
        for person in range(len(batch)):
            for m, joint in enumerate(chosen[person].tolist()):
                one = (centres[person, None, m, None], sides[person, None, m, None])
                said = system.cascade.stages[1](crop(batch.images[person, None], *one, 56)).view(14, 2)[joint]
                true = (batch.keypoints[person, joint] - centres[person, m]) / sides[person, m]
                wanted.append(((said - true) ** 2).sum().item())
    assert system.loss(outputs, batch)["coordinates"].item() == pytest.approx(14 * np.mean(wanted), rel=1e-3)


def test_preview_is_the_share_of_crops_that_see_a_pixel(random_batch):
    system = small(stages=2)
    batch = random_batch(system, people=2)
    preview = system.targets_preview(batch)
    assert preview.shape == (2, 80, 96)
    for person in range(2):
        known = batch.labelled[person]
        joints = batch.keypoints[person][known]
        side = 2.0 * system.cascade.diameters(batch.keypoints[person, None].nan_to_num(), known[None])
        for x, y in ((3, 70), (48, 40), (20, 11), (90, 5)):
            seen = ((joints - torch.tensor([x + 0.5, y + 0.5])).abs() <= side / 2).all(dim=1)
            assert preview[person, y, x].item() == pytest.approx(seen.float().mean().item())
    assert not small(stages=1).targets_preview(batch).any()


def test_each_phase_reaches_its_own_stage_alone(random_batch):
    system = small()
    batch = random_batch(system)
    for number in (1, 2, 3):
        begin(system, number, batch)
        system.network.requires_grad_(False)
        system.groups[f"stage{number}"][0].requires_grad_(True)
        system.loss(system.forward(system.network, batch), batch)["coordinates"].backward()
        reached = {name.split(".")[1] for name, p in system.network.named_parameters() if p.grad is not None}
        assert reached == {str(number - 1)}
        assert all(p.grad is not None for p in system.cascade.stages[number - 1].parameters())
        system.network.zero_grad()


def test_coco_skeleton_gives_seventeen_joints(random_batch):
    system = small(skeleton=COCO17)
    batch = random_batch(system)
    with torch.no_grad():
        people = system.decode(system.forward(system.network.eval(), batch), batch)
    assert people.keypoints.shape == (4, 17, 2)
    assert (people.presence == 1).all()


def test_learns_six_images_by_heart_and_refinement_helps(random_batch):
    system = small(stages=2, batch_norm=True, crops=14)
    batch = random_batch(system, people=6)
    # A square of its own colour at every joint: what a crop can show.
    colours = torch.randn(14, 3, generator=torch.Generator().manual_seed(4))
    for person in range(6):
        for joint in range(14):
            if batch.labelled[person, joint]:
                x, y = batch.keypoints[person, joint].int().tolist()
                batch.images[person, :, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = (
                    4 * colours[joint][:, None, None]
                )

    def distances() -> torch.Tensor:
        with torch.no_grad():
            found = system.joints(system.forward(system.network.eval(), batch)).keypoints
        return (found - batch.keypoints).norm(dim=2)[batch.labelled]

    def train(stage: int, steps: int) -> None:
        begin(system, stage, batch)
        optimiser = torch.optim.Adam(system.groups[f"stage{stage}"][0].parameters(), lr=3e-3)
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = 3e-3 * min(1.0, 2 * (1 - step / steps))
            optimiser.zero_grad()
            system.loss(system.forward(system.network, batch), batch)["coordinates"].backward()
            optimiser.step()

    untrained = distances().mean()
    train(1, 40)
    first = distances()
    assert first.mean() < 0.5 * untrained
    train(2, 140)
    assert distances().mean() < 0.8 * first.mean()
    assert (distances() <= 80 / 12).float().mean() > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stage_size": 20, "stride": 4}, r"systems\.deeppose\.stage_size is 20.*at least \d+ px"),
        ({"stages": 2, "recipes": ["stage1", "stage3"]}, r"deeppose\.recipes\.paper\.phases train.*in order"),
        ({"stages": 1, "recipes": ["stage1", "stage2"]}, r"phases\[1\]\.train names 'stage2'; deeppose has stage1"),
    ],
)
def test_sizes_and_phases_that_cannot_be_are_refused(change, message):
    if "recipes" in change:
        paper = load().systems["deeppose"].recipes["paper"].model_dump()
        phases = [{"name": s, "epochs": 1, "train": [s], "losses": {"coordinates": 1.0}} for s in change["recipes"]]
        change = {**change, "recipes": {"paper": {**paper, "phases": phases}}}
    with pytest.raises(ConfigError, match=message):
        small(**change)
